//! Offboarding: revocation of all tokens of an owner, and erasure of the owner's traces.

use super::reason_of;
use chrono::TimeDelta;
use patkit::audit::AuditAction;
use patkit::token::{ActorRef, Authority};
use patkit::{
    Actor, AuditEvent, Credential, IssuedToken, ManageError, NewToken, Reason, RejectReason,
};
use std::net::IpAddr;
use std::time::Duration;
use support::{World, beta, home, id, ready, session};

#[test]
fn offboarding_revokes_what_is_active_and_keeps_first_facts() {
    let world = World::new();
    let active = world.issue("ann", NewToken::named("active"));
    let narrowed = world.issue("ann", NewToken::named("narrowed").scope(["datastores:read"]));
    let revoked = world.issue("ann", NewToken::named("revoked"));
    let expired = world.issue("ann", NewToken::named("expired").expires_in_days(1));
    let elsewhere = world.issue_in(&beta(), "ann", NewToken::named("active"));
    let others = world.issue("bob", NewToken::named("active"));
    let robots = world.issue("bot", NewToken::named("service"));
    ready(world.service.revoke(&session("ann"), revoked.token.id(), Reason::Owner)).unwrap();
    world.advance(TimeDelta::days(1));
    world.heard.take();
    let told = world.events();
    assert_eq!(ready(world.service.revoke_all(&home(), &id("ann"))).unwrap(), 2);
    for token in [&active, &narrowed] {
        let revocation = world.facts(token.token.id()).revocation.unwrap();
        assert_eq!(revocation.reason, Reason::Offboarding);
        assert_eq!(revocation.authority, Authority::System);
        assert_eq!(revocation.by, ActorRef::System);
        assert_eq!(revocation.at, world.now());
        assert_eq!(world.refusal(token), Some(RejectReason::Revoked));
        let restored = ready(world.service.restore(&session("ann"), token.token.id()));
        assert!(matches!(restored, Err(ManageError::Refused(_))), "not by its owner");
    }
    assert_eq!(reason_of(&world, &revoked), Some(Reason::Owner));
    assert_eq!(reason_of(&world, &expired), None);
    for token in [&elsewhere, &others, &robots] {
        assert_eq!(reason_of(&world, token), None);
    }
    let stored = world.events_since(&told);
    assert_eq!(world.heard.take().len(), 2);
    assert_eq!(stored.len(), 2);
    assert_eq!(ready(world.service.revoke_all(&home(), &id("ann"))).unwrap(), 0, "twice is once");
    assert_eq!(ready(world.service.revoke_all(&home(), &id("ghost"))).unwrap(), 0);
    assert_eq!(
        ready(world.service.revoke_all(&home(), &id("bot"))).unwrap(),
        1,
        "service tokens too"
    );
    ready(world.service.restore(&Actor::system(), active.token.id())).unwrap();
    assert_eq!(world.refusal(&active), None);
}

const ERASED: &str = "somebody@to-be-erased.example";

/// Lets one owner do everything that is audited, and has everything done to that owner.
fn a_life(world: &World) -> Vec<IssuedToken> {
    let address: IpAddr = "192.0.2.7".parse().unwrap();
    world.put(ERASED, |owner| owner.with_role("admin"));
    let me = session(ERASED).from_address(address);
    let made = world.generate(&me, NewToken::named("one")).unwrap();
    let one = made.token.id();
    ready(world.service.rename(&me, one, "uno")).unwrap();
    ready(world.service.revoke(&me, one, Reason::Owner)).unwrap();
    assert!(world.verify(&made).is_err());
    ready(world.service.restore(&me, one)).unwrap();
    let successor = ready(world.service.rotate(&me, one, Duration::ZERO)).unwrap();
    assert!(
        ready(
            world.service.verify(
                Credential::text(made.plaintext.expose_secret()).from_address(Some(address))
            )
        )
        .is_err()
    );
    let through = Actor::token(
        &ready(world.service.verify(
            Credential::text(successor.plaintext.expose_secret()).from_address(Some(address)),
        ))
        .unwrap(),
    );
    let child = world.generate(&through, NewToken::named("child")).unwrap();
    let bots = NewToken::named("bots").scope(["datastores:read"]).for_service(id("bot"));
    let bots = world.generate(&through, bots).unwrap();
    ready(world.service.rename(&through, bots.token.id(), "theirs")).unwrap();
    let gone = world.generate(&me, NewToken::named("gone")).unwrap();
    ready(world.service.revoke(&Actor::system(), gone.token.id(), Reason::System)).unwrap();
    ready(world.service.delete(&me, gone.token.id())).unwrap();
    ready(world.service.flush()).unwrap();
    vec![made, successor, child, bots]
}

fn traces(events: &[AuditEvent]) -> Vec<&AuditEvent> {
    events.iter().filter(|event| format!("{event:?}").contains(ERASED)).collect()
}

#[test]
fn erasing_an_owner_leaves_no_trace_in_any_stored_event() {
    let world = World::built(|builder| builder.audit_refusals(1)).unwrap();
    let lives = a_life(&world);
    let elsewhere = world.issue_in(&beta(), "ann", NewToken::named("elsewhere"));
    assert!(traces(&world.events()).len() > 10, "there is something to erase");
    let kinds: std::collections::HashSet<AuditAction> =
        world.events().iter().map(|event| event.action).collect();
    for action in [
        AuditAction::Generated,
        AuditAction::Renamed,
        AuditAction::Revoked,
        AuditAction::Restored,
        AuditAction::Rotated,
        AuditAction::Reuse,
        AuditAction::Deleted,
        AuditAction::Refused,
    ] {
        assert!(kinds.contains(&action), "{action}");
    }
    let before = world.events().len();
    world.heard.take();
    assert_eq!(ready(world.service.erase_owner(&home(), &id(ERASED))).unwrap(), 3);
    assert_eq!(traces(&world.events()), Vec::<&AuditEvent>::new());
    let heard = world.heard.take();
    assert_eq!(
        (heard.len(), traces(&heard)),
        (3, vec![]),
        "the sink is not told of whom they were"
    );
    let after = world.events();
    assert_eq!(after.len(), before + 3, "no event goes, and each removal is told");
    let address: IpAddr = "192.0.2.7".parse().unwrap();
    assert!(after.iter().all(|event| event.address != Some(address)), "the address is a trace too");
    let [made, successor, child, bots] = lives.as_slice() else { panic!("four tokens") };
    for token in [made, successor, child] {
        assert!(world.find(token.token.id()).is_none());
        assert_eq!(world.refusal(token), Some(RejectReason::Unknown));
    }
    assert_eq!(world.refusal(bots), None, "what was made for others stays");
    assert_eq!(world.stored(bots.token.id()).created_by, ActorRef::Erased);
    assert_eq!(world.refusal(&elsewhere), None);
    assert_eq!(ready(world.service.erase_owner(&home(), &id(ERASED))).unwrap(), 0, "twice is once");
}

#[test]
fn erasing_an_owner_leaves_the_other_realm_alone() {
    let world = World::new();
    let here = world.issue("ann", NewToken::named("here"));
    let there = world.issue_in(&beta(), "ann", NewToken::named("there"));
    let before = world.events_in(&beta());
    assert_eq!(ready(world.service.erase_owner(&home(), &id("ann"))).unwrap(), 1);
    assert_eq!(world.events_in(&beta()), before);
    assert_eq!(world.refusal(&here), Some(RejectReason::Unknown));
    assert!(world.find(there.token.id()).is_some());
}

#[test]
fn a_refusal_that_was_not_written_yet_leaves_no_trace_of_an_erased_owner() {
    let world = World::built(|builder| builder.audit_refusals(1)).unwrap();
    world.put("somebody@to-be-erased.example", |owner| owner.with_role("member"));
    let token =
        world.generate(&session("somebody@to-be-erased.example"), NewToken::named("a")).unwrap();
    ready(world.service.revoke(
        &session("somebody@to-be-erased.example"),
        token.token.id(),
        Reason::Owner,
    ))
    .unwrap();
    assert!(world.verify(&token).is_err());
    ready(world.service.erase_owner(&home(), &id("somebody@to-be-erased.example"))).unwrap();
    ready(world.service.flush()).unwrap();
    assert!(
        world
            .events()
            .iter()
            .all(|event| !format!("{event:?}").contains("somebody@to-be-erased.example"))
    );
}

/// The refusal is pending in the service while the owner is erased within a transaction of the
/// host.
#[test]
fn a_refusal_that_was_not_written_yet_leaves_no_trace_of_an_owner_that_was_erased_within_a_transaction()
 {
    let world = World::built(|builder| builder.audit_refusals(1)).unwrap();
    world.put(ERASED, |owner| owner.with_role("member"));
    let token = world.generate(&session(ERASED), NewToken::named("a")).unwrap();
    ready(world.service.revoke(&session(ERASED), token.token.id(), Reason::Owner)).unwrap();
    assert!(world.verify(&token).is_err());
    let within = world.service.within(world.store.clone());
    ready(within.erase_owner(&home(), &id(ERASED))).unwrap();
    world.service.after_commit(&within.into_uncommitted());
    ready(world.service.flush()).unwrap();
    assert!(world.events().iter().any(|event| event.action == AuditAction::Refused));
    assert_eq!(traces(&world.events()), Vec::<&AuditEvent>::new());
}
