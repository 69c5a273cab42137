//! Rotation: a successor replaces a token, and what happens if the old token is used again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::too_many_lines
)]

use chrono::{DateTime, TimeDelta, Utc};
use patkit::audit::AuditAction;
use patkit::lifecycle::RefusalReason;
use patkit::policy::{LifetimeError, ReuseSignal};
use patkit::service::InvalidInput;
use patkit::token::{ActorRef, Authority};
use patkit::{
    Actor, AuditEvent, Credential, IssuedToken, ManageError, NewToken, Reason, RejectReason,
    TokenId, TokenPolicy, TokenState,
};
use std::net::IpAddr;
use std::time::Duration;
use support::{Service, World, id, ready, session, start};

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
const TICK: TimeDelta = TimeDelta::microseconds(1);

fn rotate(
    world: &World,
    actor: &Actor,
    token: TokenId,
    overlap: Duration,
) -> Result<IssuedToken, ManageError> {
    ready(world.service.rotate(actor, token, overlap))
}

fn refused(result: Result<IssuedToken, ManageError>) -> RefusalReason {
    match result {
        Err(ManageError::Refused(refusal)) => refusal.why,
        other => panic!("{other:?}"),
    }
}

#[allow(clippy::unnecessary_wraps, reason = "an expiry is an option")]
fn in_days(days: i64) -> Option<DateTime<Utc>> {
    Some(start() + TimeDelta::days(days))
}

#[test]
fn without_overlap_the_successor_takes_over_at_once() {
    let world = World::new();
    let old = world.issue("ann", NewToken::named("a"));
    let new = rotate(&world, &session("ann"), old.token.id(), Duration::ZERO).unwrap();
    assert_eq!(world.refusal(&old), Some(RejectReason::Revoked));
    assert_eq!(world.refusal(&new), None);
    let facts = world.facts(old.token.id());
    let revocation = facts.revocation.unwrap();
    assert_eq!((revocation.reason, revocation.authority), (Reason::Rotated, Authority::Owner));
    assert_eq!(revocation.by, ActorRef::Owner(id("ann")));
    assert_eq!(facts.succession.unwrap().successor, new.token.id());
    assert_eq!(facts.succession.unwrap().at, world.now());
    assert_ne!(old.plaintext.expose_secret(), new.plaintext.expose_secret());
}

#[test]
fn with_overlap_both_work_until_its_end_to_the_microsecond() {
    for overlap in [Duration::from_micros(1), HOUR, 7 * DAY] {
        let world = World::new();
        let old = world.issue("ann", NewToken::named("a"));
        let new = rotate(&world, &session("ann"), old.token.id(), overlap).unwrap();
        let end = start() + TimeDelta::from_std(overlap).unwrap();
        assert_eq!(world.facts(old.token.id()).expires_at, Some(end));
        assert_eq!(world.facts(old.token.id()).revocation, None);
        for (now, expected) in [
            (start(), None),
            (end - TICK, None),
            (end, Some(RejectReason::Expired)),
            (end + TICK, Some(RejectReason::Expired)),
        ] {
            world.clock.set(now);
            assert_eq!(world.refusal(&old), expected, "{overlap:?}");
            assert_eq!(world.refusal(&new), None, "{overlap:?}");
        }
    }
}

#[test]
fn an_overlap_never_lengthens_an_expiry() {
    let world = World::new();
    for (days, overlap, expected) in
        [(1, 7 * DAY, 1), (7, 7 * DAY, 7), (8, 7 * DAY, 7), (1, DAY, 1)]
    {
        let new = NewToken::named(&format!("{days} {overlap:?}")).expires_in_days(days);
        let old = world.issue("ann", new).token.id();
        rotate(&world, &session("ann"), old, overlap).unwrap();
        assert_eq!(world.facts(old).expires_at, in_days(expected), "{days} {overlap:?}");
    }
}

#[test]
fn an_overlap_over_the_bound_is_refused_and_changes_nothing() {
    let week = TokenPolicy::default();
    let none = TokenPolicy::builder().longest_overlap(Duration::ZERO).build().unwrap();
    let nanosecond = Duration::from_nanos(1);
    let century = 36_500 * DAY;
    let table = [
        (&week, 7 * DAY, true),
        (&week, 7 * DAY + nanosecond, false),
        (&week, 7 * DAY + Duration::from_micros(1), false),
        (&week, century, false),
        (&week, Duration::MAX, false),
        (&none, Duration::ZERO, true),
        (&none, nanosecond, false),
        (&none, HOUR, false),
    ];
    for (policy, overlap, allowed) in table {
        let world = World::with(policy.clone());
        let old = world.token("ann", "a");
        let before = world.snapshot();
        match rotate(&world, &session("ann"), old, overlap) {
            Ok(_) => assert!(allowed, "{overlap:?}"),
            Err(ManageError::Invalid(InvalidInput::Overlap { most })) => {
                assert!(!allowed, "{overlap:?}");
                assert_eq!(most, policy.longest_overlap());
                assert_eq!(world.snapshot(), before);
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[test]
fn the_successor_is_like_its_predecessor_but_for_what_is_its_own() {
    let world = World::new();
    let new = NewToken::named("Nightly")
        .description("every night")
        .scope(["datastores:read"])
        .networks(["10.0.0.0/8"])
        .expires_in_days(30);
    let old = world.issue("ann", new);
    let address: IpAddr = "10.0.0.1".parse().unwrap();
    ready(
        world
            .service
            .verify(Credential::text(old.plaintext.expose_secret()).from_address(Some(address))),
    )
    .unwrap();
    ready(world.service.flush()).unwrap();
    world.advance(TimeDelta::days(3));
    let restorer = world.token("ann", "restorer");
    world.force(old.token.id(), |token| {
        token.restored_by = Some(restorer);
        token.notified_days = Some(7);
    });
    let new = rotate(&world, &session("ann"), old.token.id(), HOUR).unwrap();
    let (old, new) = (world.stored(old.token.id()), world.stored(new.token.id()));
    assert_eq!(new.name.as_str(), old.name.as_str());
    assert_eq!(
        (
            &new.description,
            &new.scope,
            &new.networks,
            new.lifetime,
            &new.owner,
            new.kind,
            &new.realm
        ),
        (
            &old.description,
            &old.scope,
            &old.networks,
            old.lifetime,
            &old.owner,
            old.kind,
            &old.realm
        )
    );
    assert!(new.id > old.id);
    assert_ne!(new.digest, old.digest);
    assert_eq!((new.created_at, new.idle_from), (world.now(), world.now()));
    assert_eq!((new.version, new.last_used, new.facts.succession), (1, None, None));
    assert_eq!((&new.created_by, new.restored_by), (&ActorRef::Owner(id("ann")), None));
    assert_eq!((new.predecessor, new.notified_days), (Some(old.id), None));
    assert!(old.last_used.is_some());
}

#[test]
fn an_owner_gets_the_lifetime_anew_and_a_token_keeps_the_expiry() {
    let table = [
        (NewToken::named("a"), 90),
        (NewToken::named("a").expires_in_days(1), 1),
        (NewToken::named("a").expires_in_days(30), 30),
    ];
    for (new, days) in table {
        for by in ["owner", "itself", "another token"] {
            let world = World::new();
            let old = world.issue("ann", new.clone());
            let expiry = in_days(days);
            assert_eq!(old.token.expires_at(), expiry);
            let via = world.issue("ann", NewToken::named("via").never_expires());
            let actor = match by {
                "owner" => session("ann"),
                "itself" => world.through(&old),
                _ => world.through(&via),
            };
            world.advance(TimeDelta::hours(20));
            let new = rotate(&world, &actor, old.token.id(), HOUR).unwrap();
            let expected =
                if by == "owner" { expiry.map(|at| at + TimeDelta::hours(20)) } else { expiry };
            assert_eq!(new.token.expires_at(), expected, "{days} days, by {by}");
        }
    }
}

#[test]
fn a_thief_who_rotates_for_ever_gains_no_day() {
    let world = World::new();
    let first = world.issue("ann", NewToken::named("a").expires_in_days(10));
    let end = first.token.expires_at();
    let mut current = first;
    for _ in 0..9 {
        world.advance(TimeDelta::days(1));
        let actor = world.through(&current);
        current = rotate(&world, &actor, current.token.id(), HOUR).unwrap();
        assert_eq!(current.token.expires_at(), end);
    }
    world.clock.set(end.unwrap());
    assert_eq!(world.refusal(&current), Some(RejectReason::Expired));
}

#[test]
fn a_lifetime_begins_anew_under_todays_policy() {
    let month = || TokenPolicy::builder().longest_lifetime_days(30).build().unwrap();
    let ending = || TokenPolicy::builder().never_allowed(false).build().unwrap();
    let short = || TokenPolicy::builder().default_lifetime_days(5).build().unwrap();
    let table = [
        (NewToken::named("a").never_expires(), TokenPolicy::default(), None),
        (NewToken::named("a").never_expires(), month(), in_days(30)),
        (NewToken::named("a").never_expires(), ending(), in_days(90)),
        (NewToken::named("a").expires_in_days(365), month(), in_days(30)),
        (NewToken::named("a").expires_in_days(7), month(), in_days(7)),
        (NewToken::named("a"), month(), in_days(30)),
        (NewToken::named("a"), short(), in_days(5)),
        (NewToken::named("a").expires_in_days(30), short(), in_days(30)),
    ];
    for (new, policy, expected) in table {
        let world = World::new();
        let old = world.issue("ann", new.clone()).token.id();
        let today = world.under(policy);
        let made = ready(today.rotate(&session("ann"), old, Duration::ZERO)).unwrap();
        assert_eq!(made.token.expires_at(), expected, "{new:?}");
        // The lifetime that was requested first is requested again, in case the policy allows it
        // again.
        let again = rotate(&world, &session("ann"), made.token.id(), Duration::ZERO).unwrap();
        assert_eq!(world.stored(again.token.id()).lifetime, world.stored(old).lifetime);
    }
    // Through a token, a successor without an expiry gets one only under a policy with a longest
    // lifetime. An existing expiry is kept.
    for (new, policy, expected) in [
        (NewToken::named("a").never_expires(), TokenPolicy::default(), None),
        (NewToken::named("a").never_expires(), month(), in_days(30)),
        (NewToken::named("a").never_expires(), ending(), None),
        (NewToken::named("a").expires_in_days(365), month(), in_days(365)),
    ] {
        for is_itself in [true, false] {
            let world = World::new();
            let old = world.issue("ann", new.clone());
            let via = world.issue("ann", NewToken::named("via").never_expires());
            let actor = world.through(if is_itself { &old } else { &via });
            let made =
                ready(world.under(policy.clone()).rotate(&actor, old.token.id(), Duration::ZERO));
            assert_eq!(made.unwrap().token.expires_at(), expected, "{new:?}");
        }
    }
    let world = World::new();
    world.clock.set(DateTime::<Utc>::MAX_UTC - TimeDelta::days(100));
    let old = world.token("ann", "a");
    world.advance(TimeDelta::days(50));
    let before = world.snapshot();
    let result = rotate(&world, &session("ann"), old, Duration::ZERO);
    let overflow = matches!(
        result,
        Err(ManageError::Invalid(InvalidInput::Lifetime(LifetimeError::Overflow)))
    );
    assert!(overflow, "{result:?}");
    assert_eq!(world.snapshot(), before);
}

#[test]
fn a_name_is_handed_on_as_often_as_the_token_is_rotated() {
    for overlap in [Duration::ZERO, HOUR] {
        let world = World::new();
        let mut current = world.token("ann", "a");
        let mut all = vec![current];
        for _ in 0..3 {
            current = rotate(&world, &session("ann"), current, overlap).unwrap().token.id();
            all.push(current);
        }
        for token in &all {
            assert_eq!(world.stored(*token).name.as_str(), "a");
        }
        for pair in all.windows(2) {
            assert_eq!(world.facts(pair[0]).succession.unwrap().successor, pair[1]);
        }
        // The last one has the name, and no other token may take it.
        let taken = world.generate(&session("ann"), NewToken::named("A"));
        assert!(matches!(taken, Err(ManageError::NameTaken)));
        let other = world.token("ann", "b");
        let taken = ready(world.service.rename(&session("ann"), other, "a"));
        assert!(matches!(taken, Err(ManageError::NameTaken)));
        // A predecessor claims no name, so that it may have the name of another token.
        ready(world.service.rename(&session("ann"), all[0], "b")).unwrap();
        ready(world.service.rename(&session("ann"), all[1], "b")).unwrap();
        // Once the last one is renamed, the name is free, and the predecessors do not claim it.
        ready(world.service.rename(&session("ann"), current, "c")).unwrap();
        let next = world.token("ann", "a");
        rotate(&world, &session("ann"), next, overlap).unwrap();
    }
}

#[test]
fn a_predecessor_is_neither_rotated_nor_restored_again() {
    // The overlap, the action on the predecessor, the wait, and why rotating and restoring are then
    // refused.
    type Then = fn(&World, TokenId);
    let nothing: Then = |_, _| {};
    let revoke: Then = |world, old| {
        ready(world.service.revoke(&session("ann"), old, Reason::Owner)).unwrap();
    };
    let delete_successor: Then = |world, old| {
        let successor = world.facts(old).succession.unwrap().successor;
        ready(world.service.revoke(&session("ann"), successor, Reason::Owner)).unwrap();
        ready(world.service.delete(&session("ann"), successor)).unwrap();
    };
    let minute = TimeDelta::minutes(1);
    let two_hours = TimeDelta::hours(2);
    let table = [
        (
            Duration::ZERO,
            nothing,
            minute,
            RefusalReason::Revoked,
            RefusalReason::Final(Reason::Rotated),
        ),
        (
            Duration::ZERO,
            delete_successor,
            minute,
            RefusalReason::Revoked,
            RefusalReason::Final(Reason::Rotated),
        ),
        (HOUR, nothing, minute, RefusalReason::HasSuccessor, RefusalReason::NotRevoked),
        (HOUR, delete_successor, minute, RefusalReason::HasSuccessor, RefusalReason::NotRevoked),
        (HOUR, revoke, minute, RefusalReason::Revoked, RefusalReason::HasSuccessor),
        (HOUR, nothing, two_hours, RefusalReason::Expired, RefusalReason::Expired),
        (HOUR, revoke, two_hours, RefusalReason::Expired, RefusalReason::Expired),
    ];
    for (overlap, then, wait, no_rotation, no_restoration) in table {
        let world = World::new();
        let old = world.token("ann", "a");
        rotate(&world, &session("ann"), old, overlap).unwrap();
        then(&world, old);
        world.advance(wait);
        let before = world.snapshot();
        assert_eq!(refused(rotate(&world, &session("ann"), old, overlap)), no_rotation);
        for actor in [session("ann"), Actor::system()] {
            match ready(world.service.restore(&actor, old)) {
                Err(ManageError::Refused(refusal)) => assert_eq!(refusal.why, no_restoration),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(world.snapshot(), before);
    }
}

#[test]
fn rotating_twice_at_once_gives_one_successor_and_one_conflict() {
    for overlap in [Duration::ZERO, HOUR] {
        for round in 0..100 {
            let world = World::new();
            let old = world.token("ann", &round.to_string());
            let results = std::thread::scope(|scope| {
                let threads = [(), (), ()]
                    .map(|()| scope.spawn(|| rotate(&world, &session("ann"), old, overlap)));
                threads.map(|thread| thread.join().unwrap())
            });
            let (made, failed): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
            assert_eq!((made.len(), failed.len()), (1, 2));
            for result in failed {
                assert!(result.unwrap_err().is_conflict());
            }
            assert_eq!(world.store.len(), 2);
            let successor = made[0].as_ref().unwrap().token.id();
            assert_eq!(world.facts(old).succession.unwrap().successor, successor);
        }
    }
}

#[test]
fn the_owner_must_still_be_one_that_has_such_tokens() {
    let world = World::new();
    let token = world.token("bot", "a");
    let before = world.snapshot();
    world.put("bot", |bot| bot.with_enabled(false));
    let result = rotate(&world, &session("ada"), token, Duration::ZERO);
    assert!(matches!(result, Err(ManageError::Invalid(InvalidInput::OwnerDisabled))), "{result:?}");
    world.directory.remove(&support::home(), &id("bot"));
    let result = rotate(&world, &session("ada"), token, Duration::ZERO);
    assert!(matches!(result, Err(ManageError::Invalid(InvalidInput::OwnerUnknown))), "{result:?}");
    world.directory.put(patkit::Owner::new(id("bot"), patkit::OwnerKind::Human));
    let result = rotate(&world, &session("ada"), token, Duration::ZERO);
    assert!(matches!(result, Err(ManageError::Invalid(InvalidInput::OwnerKind(_)))), "{result:?}");
    assert_eq!(world.snapshot(), before);
}

#[test]
fn a_rotation_is_told_as_one_event_of_each_token() {
    let world = World::new();
    let first = world.issue("ann", NewToken::named("a"));
    let through_itself = world.through(&first);
    for (actor, overlap) in [(session("ann"), Duration::ZERO), (through_itself, HOUR)] {
        let old = match overlap {
            HOUR => first.token.id(),
            _ => world.token("ann", "b"),
        };
        let before = world.events();
        let new = rotate(&world, &actor, old, overlap).unwrap().token.id();
        let events = world.events_since(&before);
        let told: Vec<_> = events.iter().map(|event| (event.action, event.token)).collect();
        assert_eq!(told, [(AuditAction::Rotated, old), (AuditAction::Generated, new)]);
    }
}

/// The service does not search a family twice within a minute, unless a member was restored.
#[test]
fn a_member_that_is_restored_is_revoked_by_the_next_reuse() {
    let world = signalling(ReuseSignal::RevokeFamily, 30);
    let old = world.issue("ann", NewToken::named("a"));
    let new = rotate(&world, &session("ann"), old.token.id(), Duration::ZERO).unwrap();
    ready(world.service.revoke(&session("ann"), new.token.id(), Reason::Owner)).unwrap();
    assert_eq!(world.refusal(&old), Some(RejectReason::Revoked));
    ready(world.service.restore(&session("ann"), new.token.id())).unwrap();
    assert_eq!(world.refusal(&new), None);
    assert_eq!(world.refusal(&old), Some(RejectReason::Revoked));
    assert_eq!(world.refusal(&new), Some(RejectReason::Revoked));
}

/// Otherwise a new member of the family and a revocation of the family could miss each other.
#[test]
fn a_rotation_moves_the_version_of_the_token_that_it_was_made_through() {
    let world = World::new();
    let (via, other) = (world.issue("ann", NewToken::named("via")), world.token("ann", "other"));
    let version = |token| world.stored(token).version;
    let before = version(via.token.id());
    let successor = rotate(&world, &world.through(&via), other, HOUR).unwrap();
    assert_eq!(version(via.token.id()), before + 1);
    rotate(&world, &session("ann"), successor.token.id(), HOUR).unwrap();
    assert_eq!(version(via.token.id()), before + 1, "a session moves nothing");
    rotate(&world, &world.through(&via), via.token.id(), HOUR).unwrap();
    assert_eq!(version(via.token.id()), before + 2, "once for both");
}

/// Returns a world with a reuse signal.
fn signalling(signal: ReuseSignal, window_days: u32) -> World {
    World::with(TokenPolicy::builder().reuse(signal, window_days).build().unwrap())
}

/// Returns the events of reuse, and those of revocations because of reuse.
fn signals(world: &World) -> (Vec<AuditEvent>, Vec<AuditEvent>) {
    let events = world.events();
    let with =
        |action| events.iter().filter(|event| event.action == action).cloned().collect::<Vec<_>>();
    let revoked = with(AuditAction::Revoked);
    let reuse = revoked.into_iter().filter(|event| event.reason.as_deref() == Some("reuse"));
    (with(AuditAction::Reuse), reuse.collect())
}

/// A predecessor with a chain of successors, children of each, and strangers.
struct Clan {
    old: IssuedToken,
    descendants: Vec<IssuedToken>,
    strangers: Vec<IssuedToken>,
}

fn clan(world: &World, overlap: Duration) -> Clan {
    let ann = session("ann");
    let old = world.issue("ann", NewToken::named("a"));
    let through_old = world.through(&old);
    let child_of_old = world.generate(&through_old, NewToken::named("child of old")).unwrap();
    let second = rotate(world, &ann, old.token.id(), overlap).unwrap();
    let child_of_second =
        world.generate(&world.through(&second), NewToken::named("child of second")).unwrap();
    let third = rotate(world, &world.through(&second), second.token.id(), Duration::ZERO).unwrap();
    let child_of_third =
        world.generate(&world.through(&third), NewToken::named("child of third")).unwrap();
    let grandchild =
        world.generate(&world.through(&child_of_third), NewToken::named("grandchild")).unwrap();
    let own = world.generate(&ann, NewToken::named("own")).unwrap();
    let others = world.issue("bob", NewToken::named("a"));
    Clan {
        old,
        descendants: vec![child_of_old, child_of_second, third, child_of_third, grandchild],
        strangers: vec![own, others],
    }
}

#[test]
fn reuse_is_signalled_as_the_policy_says() {
    for (signal, told, revokes) in [
        (ReuseSignal::Off, 0, false),
        (ReuseSignal::Alert, 1, false),
        (ReuseSignal::RevokeFamily, 1, true),
    ] {
        for overlap in [Duration::ZERO, HOUR] {
            let world = signalling(signal, 30);
            let clan = clan(&world, overlap);
            world.advance(TimeDelta::hours(2));
            let before = world.snapshot();
            world.heard.take();
            let address: IpAddr = "192.0.2.1".parse().unwrap();
            let text = clan.old.plaintext.expose_secret();
            let error =
                ready(world.service.verify(Credential::text(text).from_address(Some(address))))
                    .unwrap_err();
            let state =
                if overlap.is_zero() { RejectReason::Revoked } else { RejectReason::Expired };
            assert_eq!(error.reject_reason(), Some(state), "refused in any case");
            let (reuse, revoked) = signals(&world);
            assert_eq!(reuse.len(), told, "{signal:?}");
            for event in &reuse {
                assert_eq!(event.token, clan.old.token.id());
                assert_eq!(event.owner, Some(id("ann")));
                assert_eq!((&event.actor, event.at), (&ActorRef::System, world.now()));
                assert_eq!(event.address, Some(address));
            }
            assert_eq!(revoked.len(), if revokes { clan.descendants.len() } else { 0 });
            for token in &clan.descendants {
                let revocation = world.facts(token.token.id()).revocation;
                assert_eq!(revocation.is_some(), revokes, "{signal:?}");
                if let Some(revocation) = revocation {
                    assert_eq!(revocation.reason, Reason::Reuse);
                    assert_eq!(
                        (revocation.by, revocation.authority),
                        (ActorRef::System, Authority::System)
                    );
                    assert!(
                        ready(world.service.restore(&Actor::system(), token.token.id())).is_err()
                    );
                }
            }
            for token in &clan.strangers {
                assert_eq!(world.refusal(token), None, "{signal:?}");
            }
            assert_eq!(
                world.heard.take(),
                world.events_since(&before.1),
                "the sink hears the same"
            );
            if signal == ReuseSignal::Off {
                assert_eq!(world.snapshot(), before);
            }
            let facts = world.facts(clan.old.token.id());
            let same = before.0.iter().find(|token| token.id == clan.old.token.id()).unwrap();
            assert_eq!(facts, same.facts, "the predecessor itself stays as it was");
        }
    }
}

#[test]
fn what_is_revoked_already_keeps_its_reason() {
    let world = signalling(ReuseSignal::RevokeFamily, 30);
    let clan = clan(&world, Duration::ZERO);
    let child = clan.descendants[0].token.id();
    ready(world.service.revoke(&session("ann"), child, Reason::Owner)).unwrap();
    assert!(world.verify(&clan.old).is_err());
    assert_eq!(world.facts(child).revocation.unwrap().reason, Reason::Owner);
    assert_eq!(signals(&world).1.len(), clan.descendants.len() - 1);
}

#[test]
fn nothing_is_revoked_outside_the_window() {
    for (days, wait, revokes) in [
        (30, TimeDelta::days(30) - TICK, true),
        (30, TimeDelta::days(30), true),
        (30, TimeDelta::days(30) + TICK, false),
        (30, TimeDelta::days(80), false),
        (1, TimeDelta::days(1), true),
        (1, TimeDelta::days(1) + TICK, false),
    ] {
        let world = signalling(ReuseSignal::RevokeFamily, days);
        let clan = clan(&world, Duration::ZERO);
        world.advance(wait);
        assert!(world.verify(&clan.old).is_err());
        let (reuse, revoked) = signals(&world);
        assert_eq!(reuse.len(), 1, "{wait}: it is told");
        assert_eq!(!revoked.is_empty(), revokes, "{wait}");
        for token in &clan.descendants {
            assert_eq!(world.refusal(token).is_some(), revokes, "{wait}");
        }
    }
}

#[test]
fn reuse_is_told_once_an_hour() {
    for signal in [ReuseSignal::Alert, ReuseSignal::RevokeFamily] {
        let world = signalling(signal, 30);
        let clan = clan(&world, Duration::ZERO);
        let hour = TimeDelta::hours(1);
        let mut expected = 0;
        for (wait, told) in [
            (TimeDelta::zero(), 1),
            (TimeDelta::zero(), 0),
            (hour - TICK, 0),
            (TICK, 1),
            (hour - TICK, 0),
            (TICK, 1),
            (TimeDelta::days(60), 1),
            (TimeDelta::minutes(59), 0),
        ] {
            world.advance(wait);
            for _ in 0..3 {
                assert!(world.verify(&clan.old).is_err());
            }
            expected += told;
            assert_eq!(signals(&world).0.len(), expected, "{signal:?} after {wait}");
        }
    }
}

#[test]
fn each_predecessor_has_its_own_hour() {
    let world = signalling(ReuseSignal::Alert, 30);
    let first = world.issue("ann", NewToken::named("a"));
    let second = rotate(&world, &session("ann"), first.token.id(), Duration::ZERO).unwrap();
    rotate(&world, &session("ann"), second.token.id(), Duration::ZERO).unwrap();
    assert!(world.verify(&first).is_err());
    assert!(world.verify(&second).is_err());
    let told: Vec<_> = signals(&world).0.iter().map(|event| event.token).collect();
    assert_eq!(told, [first.token.id(), second.token.id()]);
}

#[test]
fn parallel_clients_in_the_overlap_raise_no_signal() {
    for signal in [ReuseSignal::Alert, ReuseSignal::RevokeFamily] {
        let world = signalling(signal, 30);
        let old = world.issue("ann", NewToken::named("a"));
        let new = rotate(&world, &session("ann"), old.token.id(), HOUR).unwrap();
        for _ in 0..60 {
            assert_eq!(world.refusal(&old), None);
            assert_eq!(world.refusal(&new), None);
            world.advance(TimeDelta::seconds(59));
        }
        world.clock.set(start() + TimeDelta::hours(1) - TICK);
        assert_eq!(world.refusal(&old), None);
        assert_eq!(signals(&world), (vec![], vec![]));
        world.advance(TICK);
        assert_eq!(world.refusal(&old), Some(RejectReason::Expired));
        assert_eq!(signals(&world).0.len(), 1, "now it is after the overlap");
    }
}

#[test]
fn what_is_no_right_secret_of_a_predecessor_raises_no_signal() {
    let world = signalling(ReuseSignal::RevokeFamily, 30);
    let revoked = world.issue("ann", NewToken::named("revoked"));
    let expired = world.issue("ann", NewToken::named("expired").expires_in_days(1));
    let old = world.issue("ann", NewToken::named("a"));
    let new = rotate(&world, &session("ann"), old.token.id(), Duration::ZERO).unwrap();
    ready(world.service.revoke(&session("ann"), revoked.token.id(), Reason::Owner)).unwrap();
    world.advance(TimeDelta::days(1));
    let other = world.stored(new.token.id()).digest.clone();
    world.force(old.token.id(), |token| token.digest = other);
    for (token, reason) in [
        (&revoked, RejectReason::Revoked),
        (&expired, RejectReason::Expired),
        (&old, RejectReason::WrongSecret),
    ] {
        assert_eq!(world.refusal(token), Some(reason));
    }
    ready(world.service.delete(&session("ann"), old.token.id())).unwrap();
    assert_eq!(world.refusal(&old), Some(RejectReason::Unknown));
    assert_eq!(signals(&world), (vec![], vec![]));
    assert_eq!(world.refusal(&new), None);
}

#[test]
fn several_services_over_one_store_tell_one_reuse() {
    let world = signalling(ReuseSignal::Alert, 30);
    let old = world.issue("ann", NewToken::named("a"));
    rotate(&world, &session("ann"), old.token.id(), Duration::ZERO).unwrap();
    let nodes: [Service; 3] = [(); 3].map(|()| world.under(world.service.policy().clone()));
    for node in &nodes {
        assert!(ready(node.verify(Credential::text(old.plaintext.expose_secret()))).is_err());
    }
    std::thread::scope(|scope| {
        for node in &nodes {
            scope.spawn(|| {
                assert!(
                    ready(node.verify(Credential::text(old.plaintext.expose_secret()))).is_err()
                );
            });
        }
    });
    assert_eq!(signals(&world).0.len(), 1);
}

#[test]
fn a_successor_of_a_retired_token_lives_on_when_the_old_record_is_gone() {
    let world = World::new();
    let old = world.issue("ann", NewToken::named("a"));
    let new = rotate(&world, &world.through(&old), old.token.id(), Duration::ZERO).unwrap();
    assert_eq!(new.token.created_by().token_id(), Some(old.token.id()));
    ready(world.service.delete(&session("ann"), old.token.id())).unwrap();
    assert_eq!(world.refusal(&new), None);
    assert_eq!(world.stored(new.token.id()).state(world.now()), TokenState::Active);
}

fn revoking() -> World {
    World::with(TokenPolicy::builder().reuse(ReuseSignal::RevokeFamily, 30).build().unwrap())
}

#[test]
fn an_overlap_ends_at_a_whole_microsecond() {
    let world = World::new();
    let token = world.token("ann", "a");
    ready(world.service.rotate(&session("ann"), token, Duration::from_nanos(1_500))).unwrap();
    let expiry = world.facts(token).expires_at.unwrap();
    assert_eq!(expiry.timestamp_subsec_nanos() % 1_000, 0, "{expiry}");
}

#[test]
fn a_client_in_the_overlap_raises_no_signal_also_when_the_predecessor_was_revoked() {
    for reason in [Reason::Owner, Reason::Compromised] {
        let world = revoking();
        let old = world.issue("ann", NewToken::named("a"));
        let hour = Duration::from_secs(3_600);
        let new = ready(world.service.rotate(&session("ann"), old.token.id(), hour)).unwrap();
        ready(world.service.revoke(&session("ann"), old.token.id(), reason)).unwrap();
        world.advance(TimeDelta::minutes(1));
        assert_eq!(world.refusal(&old), Some(RejectReason::Revoked));
        assert_eq!(world.refusal(&new), None, "{reason}");
    }
}

#[test]
fn reuse_finds_the_living_behind_a_deleted_member_of_the_chain() {
    let world = revoking();
    let ann = session("ann");
    let old = world.issue("ann", NewToken::named("a"));
    let second = ready(world.service.rotate(&ann, old.token.id(), Duration::ZERO)).unwrap();
    let third = ready(world.service.rotate(&ann, second.token.id(), Duration::ZERO)).unwrap();
    ready(world.service.delete(&ann, second.token.id())).unwrap();
    assert!(world.verify(&old).is_err());
    assert_eq!(world.refusal(&third), Some(RejectReason::Revoked));
}

/// Each remaining record names its neighbours in the line, so that a later removal still finds
/// them.
#[test]
fn reuse_finds_the_living_behind_members_that_were_deleted_one_after_the_other() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
        let world = revoking();
        let ann = session("ann");
        let old = world.issue("ann", NewToken::named("a"));
        let mut line = vec![old.token.id()];
        let mut last = None;
        for _ in 0..4 {
            let next = rotate(&world, &ann, *line.last().unwrap(), Duration::ZERO).unwrap();
            line.push(next.token.id());
            last = Some(next);
        }
        for index in order {
            ready(world.service.delete(&ann, line[index + 1])).unwrap();
        }
        assert!(world.verify(&old).is_err());
        assert_eq!(world.refusal(&last.unwrap()), Some(RejectReason::Revoked), "{order:?}");
    }
}

/// Another node may have restored a member without notifying this node.
#[test]
fn a_member_that_another_node_restored_is_revoked_by_reuse_a_minute_later() {
    let world = revoking();
    let old = world.issue("ann", NewToken::named("a"));
    let new = rotate(&world, &session("ann"), old.token.id(), Duration::ZERO).unwrap();
    ready(world.service.revoke(&session("ann"), new.token.id(), Reason::Owner)).unwrap();
    assert_eq!(world.refusal(&old), Some(RejectReason::Revoked));
    let other = world.under(world.service.policy().clone());
    ready(other.restore(&session("ann"), new.token.id())).unwrap();
    world.advance(TimeDelta::minutes(1));
    assert_eq!(world.refusal(&old), Some(RejectReason::Revoked));
    assert_eq!(world.refusal(&new), Some(RejectReason::Revoked));
    assert_eq!(signals(&world).0.len(), 1, "it is told once an hour all the same");
}

#[test]
fn a_rotation_by_a_clock_that_was_ahead_is_over_by_a_right_clock() {
    for overlap in [Duration::ZERO, HOUR] {
        let world = revoking();
        let old = world.issue("ann", NewToken::named("a").never_expires());
        world.clock.set(start() + TimeDelta::days(36_500));
        let new = rotate(&world, &session("ann"), old.token.id(), overlap).unwrap();
        ready(world.service.revoke(&session("ann"), old.token.id(), Reason::Owner)).unwrap();
        world.clock.set(start() + TimeDelta::days(1));
        assert_eq!(world.refusal(&old), Some(RejectReason::Revoked));
        let (reuse, revoked) = signals(&world);
        assert_eq!((reuse.len(), revoked.len()), (1, 1), "{overlap:?}");
        assert_eq!(world.refusal(&new), Some(RejectReason::Revoked), "{overlap:?}");
    }
}

#[test]
fn a_clock_that_was_ahead_does_not_mute_the_signal() {
    let world = World::new();
    let old = world.issue("ann", NewToken::named("a").never_expires());
    ready(world.service.rotate(&session("ann"), old.token.id(), Duration::ZERO)).unwrap();
    world.advance(TimeDelta::days(36_500));
    assert!(world.verify(&old).is_err());
    world.clock.set(start() + TimeDelta::days(1));
    assert!(world.verify(&old).is_err());
    let told = world.events().iter().filter(|event| event.action == AuditAction::Reuse).count();
    assert_eq!(told, 2);
}
