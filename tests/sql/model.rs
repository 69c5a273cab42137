//! Random histories of all operations, checked against a second implementation of the rules.
//!
//! `model/rules.rs` restates what the contract says of the lifecycle, of policies, of who may
//! manage what, and of rotation. A history is a series of steps by owners, admins, tokens, the host
//! and its directory, and the clock: see `model/history.rs`. Few owners and tokens take part, so
//! that they collide. Each step runs on the rules, on a service over the memory store, and on one
//! over SQLite. All three must return the same answer and leave the same records. Four services
//! with different policies share each store. In some steps two operations race: the second one
//! happens before the first commit of the first one, and one order of the two must explain every
//! answer and record.
//!
//! Two facts are checked besides the rules: nothing obtained through a token ever works again once
//! that token was revoked as compromised, and the ids of a service increase.
//!
//! A failing history is shortened and printed, with the settings that replay it:
//!
//! ```text
//! PATKIT_MODEL_SEED=17 PATKIT_MODEL_OPERATIONS=200 cargo test -p patkit-tests-sql --test model
//! ```
//!
//! The seed is that of the first history, and each further history has the next seed. A history
//! ends early if a removal leaves a token with more parents or ancestors than a record has room
//! for, because the contract does not say which of them it keeps.
//!
//! `scripts/model-bugs` puts ten bugs into a copy of the crate, one at a time, and fails unless
//! this test finds each.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::struct_excessive_bools,
    clippy::print_stderr,
    clippy::too_many_lines,
    clippy::unreachable,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "model/history.rs"]
mod history;
#[path = "model/play.rs"]
mod play;
#[path = "model/random.rs"]
mod random;
#[path = "model/rules.rs"]
mod rules;
#[path = "model/shrink.rs"]
mod shrink;
#[path = "model/world.rs"]
mod world;

use play::{Source, Stage, play};
use std::fmt::Write;

/// The number of steps of a history.
const LENGTH: usize = 200;

/// Reads a number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => {
            text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}; set it to a number"))
        }
        Err(_) => default,
    }
}

#[test]
fn the_crate_does_what_the_rules_say() {
    let stage = Stage::new();
    let first = setting("PATKIT_MODEL_SEED", 1);
    let operations = usize::try_from(setting("PATKIT_MODEL_OPERATIONS", 100_000)).unwrap();
    let mut done = 0;
    for seed in first.. {
        if done >= operations {
            break;
        }
        let played = play(&stage, seed, &Source::Drawn(LENGTH));
        done += played.steps.len();
        let Some(failure) = played.failure else { continue };
        // Silences the panics of the tries, which are all the same.
        std::panic::set_hook(Box::new(|_| {}));
        let steps = shrink::shrink(played.steps, |steps| {
            play(&stage, seed, &Source::Given(steps)).failure.is_some()
        });
        let shortest = play(&stage, seed, &Source::Given(&steps)).failure.unwrap_or(failure);
        let _ = std::panic::take_hook();
        let mut story = String::new();
        for step in &steps {
            let _ = writeln!(story, "{step:?}");
        }
        panic!(
            "after {done} operations, a history of {} steps fails:\n{story}\n{shortest}\n\nplay it again with \
             PATKIT_MODEL_SEED={seed} PATKIT_MODEL_OPERATIONS={LENGTH}",
            steps.len()
        );
    }
}
