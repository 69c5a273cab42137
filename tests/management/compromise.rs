//! Tokens that are revoked as compromised, and their families.

use super::reason_of;
use chrono::TimeDelta;
use patkit::audit::AuditAction;
use patkit::store::MAX_PAGE;
use patkit::token::ActorRef;
use patkit::{Actor, IssuedToken, ManageError, NewToken, Reason};
use std::time::Duration;
use support::{World, id, ready, session};

#[test]
fn a_service_token_that_an_admin_reports_takes_its_family_with_it() {
    let world = World::new();
    let robot = world.issue("robot", NewToken::named("robot"));
    let make = |through: &IssuedToken, name: &str| {
        let new = NewToken::named(name).scope(["service-tokens:manage"]).for_service(id("robot"));
        world.generate(&world.through(through), new).unwrap()
    };
    let child = make(&robot, "child");
    let grandchild = make(&child, "grandchild");
    let other = world.issue("robot", NewToken::named("other"));
    ready(world.service.revoke(&session("ada"), robot.token.id(), Reason::Compromised)).unwrap();
    for token in [&robot, &child, &grandchild] {
        assert_eq!(reason_of(&world, token), Some(Reason::Compromised));
        let restored = ready(world.service.restore(&Actor::system(), token.token.id()));
        assert!(matches!(restored, Err(ManageError::Refused(_))));
    }
    assert_eq!(world.refusal(&other), None);
}

/// A token that made a child, which made a grandchild, which made a great-grandchild.
struct Family {
    root: IssuedToken,
    child: IssuedToken,
    grandchild: IssuedToken,
    great: IssuedToken,
    stranger: IssuedToken,
    sibling: IssuedToken,
}

fn family(world: &World) -> Family {
    let make = |through: &IssuedToken, name: &str| {
        world.generate(&world.through(through), NewToken::named(name)).unwrap()
    };
    let root = world.issue("ada", NewToken::named("root"));
    let child = make(&root, "child");
    let grandchild = make(&child, "grandchild");
    let service = NewToken::named("great").scope(["datastores:read"]).for_service(id("bot"));
    let great = world.generate(&world.through(&grandchild), service).unwrap();
    let stranger = world.issue("ada", NewToken::named("stranger"));
    let sibling = make(&stranger, "sibling");
    Family { root, child, grandchild, great, stranger, sibling }
}

#[test]
fn compromise_follows_the_family_through_every_state_of_the_middle() {
    type Before = fn(&World, &Family);
    let nothing: Before = |_, _| {};
    let revoked: Before = |world, family| {
        ready(world.service.revoke(&session("ada"), family.child.token.id(), Reason::Owner))
            .unwrap();
    };
    let deleted: Before = |world, family| {
        let child = family.child.token.id();
        ready(world.service.revoke(&session("ada"), child, Reason::Owner)).unwrap();
        ready(world.service.delete(&session("ada"), child)).unwrap();
    };
    let both_deleted: Before = |world, family| {
        for token in [&family.child, &family.grandchild] {
            let id = token.token.id();
            ready(world.service.revoke(&session("ada"), id, Reason::Owner)).unwrap();
            ready(world.service.delete(&session("ada"), id)).unwrap();
        }
    };
    let pruned: Before = |world, family| {
        ready(world.service.revoke(&session("ada"), family.child.token.id(), Reason::Owner))
            .unwrap();
        world.advance(TimeDelta::days(3));
        ready(world.service.prune(Duration::from_secs(86_400))).unwrap();
    };
    let rotated_by_itself: Before = |world, family| {
        let actor = world.through(&family.child);
        ready(world.service.rotate(&actor, family.child.token.id(), Duration::ZERO)).unwrap();
    };
    let root_expired: Before = |world, family| {
        world.clock.set(world.facts(family.root.token.id()).expires_at.unwrap());
    };
    for (label, before) in [
        ("nothing", nothing),
        ("revoked", revoked),
        ("deleted", deleted),
        ("both deleted", both_deleted),
        ("pruned", pruned),
        ("rotated by itself", rotated_by_itself),
        ("all expired", root_expired),
    ] {
        for by in ["its owner", "itself", "the host"] {
            let world = World::new();
            let family = family(&world);
            let itself = world.through(&family.root);
            before(&world, &family);
            let actor = match by {
                "its owner" => session("ada"),
                "itself" if label == "all expired" => continue,
                "itself" => itself,
                _ => Actor::system(),
            };
            world.heard.take();
            let told = world.events();
            ready(world.service.revoke(&actor, family.root.token.id(), Reason::Compromised))
                .unwrap();
            let mut family_events = 0;
            for token in world.tokens() {
                let is_family =
                    token.id != family.stranger.token.id() && token.id != family.sibling.token.id();
                let reason = token.facts.revocation.as_ref().map(|revocation| revocation.reason);
                let expected = is_family.then_some(Reason::Compromised);
                assert_eq!(reason, expected, "{label}, by {by}: {}", token.name);
                family_events += usize::from(is_family);
            }
            let stored = world.events_since(&told);
            assert_eq!(stored.len(), family_events, "{label}, by {by}: one event per token");
            assert!(stored.iter().all(|event| {
                event.action == AuditAction::Revoked
                    && event.reason.as_deref() == Some("compromised")
            }));
            assert_eq!(world.heard.take(), stored);
            let again = world.snapshot();
            let who = if by == "itself" { session("ada") } else { actor };
            ready(world.service.revoke(&who, family.root.token.id(), Reason::Compromised)).unwrap();
            assert_eq!(world.snapshot(), again, "a second report changes nothing");
        }
    }
}

#[test]
fn compromise_goes_down_the_family_and_not_up() {
    let world = World::new();
    let family = family(&world);
    ready(world.service.revoke(&session("ada"), family.grandchild.token.id(), Reason::Compromised))
        .unwrap();
    for token in [&family.root, &family.child, &family.stranger, &family.sibling] {
        assert_eq!(world.refusal(token), None);
    }
    assert_eq!(reason_of(&world, &family.grandchild), Some(Reason::Compromised));
    assert_eq!(reason_of(&world, &family.great), Some(Reason::Compromised));
}

#[test]
fn no_other_reason_follows_the_family() {
    for reason in [Reason::System, Reason::Offboarding, Reason::Idle] {
        let world = World::new();
        let family = family(&world);
        ready(world.service.revoke(&Actor::system(), family.root.token.id(), reason)).unwrap();
        for token in [&family.child, &family.grandchild, &family.great] {
            assert_eq!(reason_of(&world, token), None, "{reason}");
        }
    }
}

#[test]
fn a_deleted_record_hands_its_children_to_its_own_maker() {
    let world = World::new();
    let family = family(&world);
    let (root, child) = (family.root.token.id(), family.child.token.id());
    let grandchild = family.grandchild.token.id();
    ready(world.service.revoke(&session("ada"), child, Reason::Owner)).unwrap();
    ready(world.service.delete(&session("ada"), child)).unwrap();
    assert_eq!(world.stored(grandchild).creator(), Some(root));
    ready(world.service.revoke(&session("ada"), root, Reason::Owner)).unwrap();
    ready(world.service.delete(&session("ada"), root)).unwrap();
    assert_eq!(world.stored(grandchild).created_by, ActorRef::Owner(id("ada")));
    assert_eq!(
        world.refusal(&family.grandchild),
        None,
        "no other reason than its own takes it away"
    );
}

/// The family is larger than one page of the store.
#[test]
fn compromise_reaches_every_child_of_a_large_family() {
    let world = World::new();
    let root = world.issue("ann", NewToken::named("root"));
    let through = world.through(&root);
    let children = MAX_PAGE + 2;
    for number in 0..children {
        world.generate(&through, NewToken::named(&format!("child {number}"))).unwrap();
    }
    ready(world.service.revoke(&session("ann"), root.token.id(), Reason::Compromised)).unwrap();
    let tokens = world.tokens();
    assert_eq!(tokens.len(), children + 1);
    for token in tokens {
        assert_eq!(token.facts.revocation.unwrap().reason, Reason::Compromised, "{}", token.name);
    }
}
