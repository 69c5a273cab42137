//! The sweep of idle tokens.

use super::reason_of;
use chrono::TimeDelta;
use patkit::token::Authority;
use patkit::{NewToken, Reason, TokenPolicy};
use std::time::Duration;
use support::{World, beta, ready, session};

fn idle_world(days: u32) -> World {
    let policy = TokenPolicy::builder()
        .idle_limit_days(days)
        .last_used_granularity(Duration::from_secs(60))
        .build()
        .unwrap();
    World::built(|builder| builder.policy(policy).flush_interval(Duration::from_secs(10))).unwrap()
}

#[test]
fn the_sweep_waits_for_the_limit_and_its_slack_to_the_microsecond() {
    // The limit of one day, plus the granularity and the flush interval.
    let end = TimeDelta::days(1) + TimeDelta::seconds(60) + TimeDelta::seconds(10);
    let tick = TimeDelta::microseconds(1);
    for (waited, swept) in [(end - tick, 0), (end, 0), (end + tick, 1)] {
        let world = idle_world(1);
        let token = world.issue("ann", NewToken::named("a"));
        world.advance(waited);
        assert_eq!(ready(world.service.sweep_idle()).unwrap(), swept, "{waited}");
        let revocation = world.facts(token.token.id()).revocation;
        assert_eq!(revocation.is_some(), swept == 1);
        if let Some(revocation) = revocation {
            assert_eq!(revocation.reason, Reason::Idle);
            assert_eq!(revocation.authority, Authority::System);
            ready(world.service.restore(&session("ann"), token.token.id())).unwrap();
            assert_eq!(
                ready(world.service.sweep_idle()).unwrap(),
                0,
                "restored: it counts from then"
            );
            world.advance(end + tick);
            assert_eq!(ready(world.service.sweep_idle()).unwrap(), 1);
        }
    }
}

#[test]
fn a_use_puts_the_sweep_off_also_one_that_was_not_written_yet() {
    let end = TimeDelta::days(1) + TimeDelta::seconds(70);
    for flushed in [true, false] {
        let world = idle_world(1);
        let token = world.issue("ann", NewToken::named("a"));
        world.advance(TimeDelta::hours(20));
        world.verify(&token).unwrap();
        if flushed {
            ready(world.service.flush()).unwrap();
        }
        world.advance(TimeDelta::hours(20));
        assert_eq!(ready(world.service.sweep_idle()).unwrap(), 0);
        world.advance(end - TimeDelta::hours(20));
        assert_eq!(ready(world.service.sweep_idle()).unwrap(), 0);
        world.advance(TimeDelta::microseconds(1));
        assert_eq!(ready(world.service.sweep_idle()).unwrap(), 1);
    }
}

#[test]
fn a_sweep_takes_what_is_active_in_all_realms_and_nothing_without_a_limit() {
    let world = World::new();
    world.issue("ann", NewToken::named("a").never_expires());
    world.advance(TimeDelta::days(1_000));
    assert_eq!(ready(world.service.sweep_idle()).unwrap(), 0, "no limit, no sweep");

    let world = idle_world(2);
    let tokens = [
        world.issue("ann", NewToken::named("a")),
        world.issue_in(&beta(), "ann", NewToken::named("a")),
        world.issue("bot", NewToken::named("a")),
    ];
    let revoked = world.issue("ann", NewToken::named("revoked"));
    ready(world.service.revoke(&session("ann"), revoked.token.id(), Reason::Owner)).unwrap();
    let expired = world.issue("ann", NewToken::named("expired").expires_in_days(1));
    world.advance(TimeDelta::days(3));
    let young = world.issue("ann", NewToken::named("young"));
    assert_eq!(ready(world.service.sweep_idle()).unwrap(), 3);
    for token in &tokens {
        assert_eq!(reason_of(&world, token), Some(Reason::Idle));
    }
    assert_eq!(reason_of(&world, &revoked), Some(Reason::Owner));
    assert_eq!(reason_of(&world, &expired), None);
    assert_eq!(reason_of(&world, &young), None);
    assert_eq!(ready(world.service.sweep_idle()).unwrap(), 0);
}
