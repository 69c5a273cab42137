//! A test suite for stores. It checks every promise of [`TokenStore`] through the store's methods
//! alone.
//!
//! The author of a store calls it from one test, with a factory for empty stores:
//!
//! ```
//! use patkit::MemoryStore;
//! use patkit::conformance::Suite;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! Suite::new(|| async { MemoryStore::new() }).run().await.unwrap();
//! # }
//! ```
//!
//! The factory is called once per check, so that no check depends on another one. It may panic if
//! it cannot create a store. For a store that also reads audit events, counts records or keeps key
//! checks, there are [`Suite::run_audit_log`], [`Suite::run_counts`] and [`Suite::run_key_checks`].
//! [`Suite::run`] makes changes conflict by polling many futures at once, on the runtime that
//! awaits it. [`Suite::run_races`] does so from many threads.
//!
//! For a wrapper whose reads may lag behind its commits, pass the bound of the lag and the
//! runtime's sleep:
//!
//! ```
//! # use patkit::MemoryStore;
//! # use patkit::conformance::Suite;
//! # use std::time::Duration;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! # let cached = || async { MemoryStore::new() };
//! let bound = Duration::from_millis(1);
//! Suite::new(cached).staleness(bound, tokio::time::sleep).run().await.unwrap();
//! # }
//! ```
//!
//! All checks run, even if one has failed. The [`Failure`] names each failed check, with the
//! sentence of the contract that the store breaks and what was seen instead.
//!
//! The suite cannot show that a commit whose future is dropped, or whose connection is lost, is
//! applied either whole or not at all, that committed data survives a crash, or that a corrupt
//! record affects no other record. The tests of the store itself must show these, because they need
//! access to what is below the store.

// The build fails if no list names a check, because the check's function is then dead code.
#![deny(dead_code)]

mod audit_log;
mod batches;
mod bench;
mod counts;
mod ended;
mod fixtures;
mod key_checks;
mod lists;
mod names;
mod races;
mod records;
mod uses;

use crate::BoxedFuture;
use crate::store::{AuditLog, KeyChecks, MemoryStore, TokenCounts, TokenStore};
use bench::{Bench, Seen};
use races::{Race, blocked, on_threads};
use std::fmt;
use std::time::Duration;

type Sleep = Box<dyn Fn(Duration) -> BoxedFuture<'static, ()> + Send + Sync>;

/// The checks, the factory of the stores under test, and the staleness of their reads.
pub struct Suite<F> {
    factory: F,
    settling: Settling,
}

struct Settling {
    staleness: Duration,
    sleep: Sleep,
}

impl<F> Suite<F> {
    /// Creates the suite for the stores of `factory`, each of which must be empty and separate from
    /// the others.
    ///
    /// Reads of the stores must never be stale, unless [`staleness`](Self::staleness) allows it.
    pub fn new(factory: F) -> Self {
        let settling = Settling {
            staleness: Duration::ZERO,
            sleep: Box::new(|_| Box::pin(std::future::ready(()))),
        };
        Self { factory, settling }
    }

    /// Allows reads that lag behind commits by up to `staleness`.
    ///
    /// A read that starts `staleness` after a commit must see it; an earlier read may miss it. The
    /// suite waits this long between a change and each read of its effect.
    pub fn staleness<T: Future<Output = ()> + Send + 'static>(
        mut self,
        staleness: Duration,
        sleep: impl Fn(Duration) -> T + Send + Sync + 'static,
    ) -> Self {
        self.settling =
            Settling { staleness, sleep: Box::new(move |duration| Box::pin(sleep(duration))) };
        self
    }
}

impl<F> fmt::Debug for Suite<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suite").field("staleness", &self.settling.staleness).finish_non_exhaustive()
    }
}

/// One check of the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Check {
    /// The name of the check.
    pub name: &'static str,
    /// The sentence of the contract.
    pub contract: &'static str,
}

/// The checks of a run in which all passed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The checks, in the order in which they ran.
    pub passed: Vec<Check>,
}

/// The checks that a store has failed.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("the store breaks its contract:\n{}", self.list())]
#[non_exhaustive]
pub struct Failure {
    /// Each failed check, and what was seen.
    pub broken: Vec<(Check, String)>,
}

impl Failure {
    /// Returns whether the check with this name failed.
    pub fn names(&self, check: &str) -> bool {
        self.broken.iter().any(|(broken, _)| broken.name == check)
    }

    fn list(&self) -> String {
        let lines = self
            .broken
            .iter()
            .map(|(check, seen)| format!("* {}: \"{}\"; but {seen}", check.name, check.contract));
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// Formats as `Display`, so that `unwrap` shows each check on its own line.
impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Runs the checks, each on a store of its own, even if earlier ones failed.
///
/// The name before a brace is the module of the checks.
macro_rules! run {
    ($suite:expr; $($topic:ident { $($check:ident: $contract:literal),+ $(,)? })+) => {{
        let mut verdicts = Vec::new();
        $($(
            let verdict = Box::pin(async {
                let bench = Bench { store: ($suite.factory)().await, settling: &$suite.settling };
                $topic::$check(&bench).await
            });
            let verdict = verdict.await;
            verdicts.push((Check { name: stringify!($check), contract: $contract }, verdict));
        )+)+
        judged(verdicts)
    }};
}

fn judged(verdicts: Vec<(Check, Result<(), Seen>)>) -> Result<Report, Failure> {
    let mut passed = Vec::new();
    let mut broken = Vec::new();
    for (check, verdict) in verdicts {
        match verdict {
            Ok(()) => passed.push(check),
            Err(Seen(seen)) => broken.push((check, seen)),
        }
    }
    if broken.is_empty() { Ok(Report { passed }) } else { Err(Failure { broken }) }
}

impl<F, Fut, S> Suite<F>
where
    F: Fn() -> Fut + Send + Sync,
    Fut: Future<Output = S> + Send,
    S: TokenStore,
{
    /// Checks the promises of [`TokenStore`].
    ///
    /// # Errors
    /// [`Failure`], which names every check that failed.
    pub async fn run(&self) -> Result<Report, Failure> {
        run! { self;
            records {
                an_inserted_record_comes_back_unchanged: "times and all other fields come back unchanged",
                an_updated_record_comes_back_unchanged: "an update puts a record in the place of the one with its id",
                what_is_not_there_is_not_found: "the record with this id",
                a_change_is_current_at_once: "the record as the database has it now",
                an_insert_never_overwrites: "an insert with an id that is there is a conflict",
                a_kind_fits_its_owner: "a record whose kind does not fit its owner's is refused",
                an_update_needs_the_version_before: "an update whose expected version is not the record's is a conflict, and so is one whose record is gone",
                an_update_keeps_the_last_use: "an update keeps the stored last use, whatever its record says",
                a_remove_needs_its_version: "a remove whose expected version is not the record's is a conflict, and so is one whose record is gone",
            }
            batches {
                a_batch_is_done_whole: "a commit does everything in its batch or nothing",
                a_batch_that_conflicts_leaves_nothing: "a commit does everything in its batch or nothing",
                the_first_conflict_is_told: "a conflict for the first change that conflicts",
            }
            names {
                a_name_key_is_opaque: "a store keeps a name, a description and a name's key as they are, and decides by the key alone",
                a_name_is_unique: "among the records of one realm, owner and kind, the key of a name is unique where it is there",
                a_name_is_one_owners_alone: "among the records of one realm, owner and kind; owners and realms are compared byte by byte",
                a_name_is_free_again: "among the records that are there and have no successor",
                a_name_is_handed_on_within_a_batch: "names are checked on what a batch leaves behind",
                two_of_one_name_in_a_batch_conflict: "names are checked on what a batch leaves behind",
            }
            lists {
                a_list_holds_what_it_should: "a list by owner, kind, creator or last activity",
                a_list_is_newest_first: "newest (greatest id) first",
                pages_are_exact: "at most as many as asked for; where the next page begins, none on the last one",
                pages_hold_while_records_come_and_go: "what comes after the last one of the page before",
                only_active_ones_are_listed: "only those that are active at this instant",
                a_list_of_a_key_holds_its_digests: "those whose digest was made with this key, in all realms",
                idle_ones_are_listed: "those whose last activity lies before an instant",
            }
            uses {
                a_touch_moves_forward_alone: "each moves its record's last use forward or does nothing, never back",
                a_touch_replaces_what_a_wrong_clock_noted: "unless the stored one was noted by a clock that was wrong",
                a_touch_changes_nothing_else: "the version does not move",
                a_touch_brings_nothing_back: "a record that is gone stays gone",
                a_thousand_touches_at_once: "notes last uses",
            }
            ended {
                ended_records_are_listed: "records that expired or were revoked at or before `before`",
                the_first_to_end_are_listed_first: "up to `limit` records, those that ended first in front",
            }
            races {
                of_updates_at_once_one_wins: "changes are atomic and never lost",
                of_inserts_of_one_name_at_once_one_wins: "changes are atomic and never lost",
                of_inserts_of_one_id_at_once_one_wins: "an insert never overwrites",
                of_batches_in_opposite_order_one_wins: "a commit does everything in its batch or nothing",
                touches_and_updates_at_once_are_all_kept: "last uses belong to `touch` alone, and it never moves the version",
            }
        }
    }

    /// Runs changes from eight threads in races against each other.
    ///
    /// `block_on` runs a future to its end on the calling thread, which is one of the suite's own:
    ///
    /// ```
    /// # use patkit::MemoryStore;
    /// # use patkit::conformance::Suite;
    /// let runtime = tokio::runtime::Runtime::new().unwrap();
    /// Suite::new(|| async { MemoryStore::new() }).run_races(|future| runtime.block_on(future)).unwrap();
    /// ```
    ///
    /// Call this outside any runtime.
    ///
    /// # Errors
    /// [`Failure`], which names every race that failed.
    pub fn run_races(
        &self,
        block_on: impl Fn(BoxedFuture<'_, ()>) + Sync,
    ) -> Result<Report, Failure> {
        let mut verdicts = Vec::new();
        for (check, plan) in race_plans() {
            let verdict = plan.and_then(|plan| {
                let store = blocked(&block_on, async { (self.factory)().await })?;
                let bench = Bench { store, settling: &self.settling };
                blocked(&block_on, bench.commit_all(&plan.before))??;
                let results = on_threads(&bench.store, &plan, &block_on)?;
                blocked(&block_on, plan.check(&bench, &results))?
            });
            verdicts.push((check, verdict));
        }
        judged(verdicts)
    }
}

impl<F, Fut, S> Suite<F>
where
    F: Fn() -> Fut + Send + Sync,
    Fut: Future<Output = S> + Send,
    S: TokenStore + AuditLog,
{
    /// Checks the promises of [`AuditLog`], and that events are stored together with their change
    /// or not at all.
    ///
    /// # Errors
    /// [`Failure`], which names every check that failed.
    pub async fn run_audit_log(&self) -> Result<Report, Failure> {
        run! { self;
            audit_log {
                an_event_comes_back_unchanged: "the events of a realm, oldest first",
                events_are_of_one_realm_token_owner_and_period: "the events of a realm, a token, an owner and a period, at most `limit`",
                pages_of_events_neither_repeat_nor_skip: "pages neither repeat nor skip events, however many happened at one instant",
                an_event_is_stored_once: "an event whose id is stored already stays as it is",
                an_export_holds_each_event_once_in_the_order_of_the_commits: "a reader that goes on from `ExportPage::next` gets every event exactly once",
                a_cursor_of_another_store_is_refused: "`StoreError::Cursor` if `after` is not a cursor of this store",
                a_batch_may_hold_events_alone: "a batch may hold events alone",
                a_conflict_leaves_no_event: "a commit does everything in its batch or nothing, audit events included",
                erasing_takes_out_every_trace: "take out the traces of this owner from all stored events, before these are added",
                events_are_pruned_oldest_first: "removes up to `limit` events that are older than an instant, oldest first, and says how many",
            }
        }
    }
}

impl<F, Fut, S> Suite<F>
where
    F: Fn() -> Fut + Send + Sync,
    Fut: Future<Output = S> + Send,
    S: TokenStore + TokenCounts,
{
    /// Checks the promises of [`TokenCounts`].
    ///
    /// # Errors
    /// [`Failure`], which names every check that failed.
    pub async fn run_counts(&self) -> Result<Report, Failure> {
        run! { self;
            counts {
                states_are_counted_at_an_instant: "how many records are in each state at `now`",
            }
        }
    }
}

impl<F, Fut, S> Suite<F>
where
    F: Fn() -> Fut + Send + Sync,
    Fut: Future<Output = S> + Send,
    S: TokenStore + KeyChecks,
{
    /// Checks the promises of [`KeyChecks`].
    ///
    /// # Errors
    /// [`Failure`], which names every check that failed.
    pub async fn run_key_checks(&self) -> Result<Report, Failure> {
        run! { self;
            key_checks {
                digests_are_counted_by_key: "how many records, of whatever realm and state, have a digest under each key",
                the_first_key_check_stays: "records a check value, unless there is one for its key id",
            }
        }
    }
}

fn race_plans() -> [(Check, Result<Race, Seen>); 5] {
    macro_rules! check {
        ($check:ident, $contract:literal) => {{
            // Fails to compile if the check's function does not exist.
            let _ = races::$check::<MemoryStore>;
            Check { name: stringify!($check), contract: $contract }
        }};
    }
    [
        (
            check!(of_updates_at_once_one_wins, "changes are atomic and never lost"),
            races::race_of_updates(),
        ),
        (
            check!(of_inserts_of_one_name_at_once_one_wins, "changes are atomic and never lost"),
            races::race_of_names(),
        ),
        (
            check!(of_inserts_of_one_id_at_once_one_wins, "an insert never overwrites"),
            races::race_of_ids(),
        ),
        (
            check!(
                of_batches_in_opposite_order_one_wins,
                "a commit does everything in its batch or nothing"
            ),
            races::race_of_batches(),
        ),
        (
            check!(
                touches_and_updates_at_once_are_all_kept,
                "last uses belong to `touch` alone, and it never moves the version"
            ),
            races::race_with_touches(),
        ),
    ]
}
