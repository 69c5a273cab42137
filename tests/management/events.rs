//! The audit events of each operation, in the store and at the sink.

use chrono::TimeDelta;
use patkit::audit::AuditAction;
use patkit::service::TokenEdit;
use patkit::token::ActorRef;
use patkit::{Actor, AuditEvent, Credential, NewToken, Reason, TokenId};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{World, builder, home, id, ready, session};

/// Returns an event in the form of the table below.
fn told(event: &AuditEvent) -> (AuditAction, TokenId, Option<String>) {
    (event.action, event.token, event.reason.as_ref().map(ToString::to_string))
}

#[test]
fn every_operation_stores_its_events_and_tells_the_sink_the_same() {
    use AuditAction::{Deleted, Generated, Renamed, Restored, Revoked, Rotated};
    let address: IpAddr = "203.0.113.5".parse().unwrap();
    type Operate = fn(&World, &Actor, TokenId) -> Option<TokenId>;
    let generate: Operate =
        |world, actor, _| Some(world.generate(actor, NewToken::named("new")).unwrap().token.id());
    let rename: Operate = |world, actor, id| {
        ready(world.service.rename(actor, id, "renamed")).unwrap();
        None
    };
    let describe: Operate = |world, actor, id| {
        ready(world.service.edit(actor, id, TokenEdit::new().description("d"))).unwrap();
        None
    };
    let revoke: Operate = |world, actor, id| {
        ready(world.service.edit(actor, id, TokenEdit::new().active(false))).unwrap();
        None
    };
    let compromise: Operate = |world, actor, id| {
        ready(world.service.revoke(actor, id, Reason::Compromised)).unwrap();
        None
    };
    let restore: Operate = |world, actor, id| {
        ready(world.service.restore(actor, id)).unwrap();
        None
    };
    let rotate: Operate = |world, actor, id| {
        let made = ready(world.service.rotate(actor, id, Duration::ZERO)).unwrap();
        Some(made.token.id())
    };
    let delete: Operate = |world, actor, id| {
        ready(world.service.delete(actor, id)).unwrap();
        None
    };
    let get: Operate = |world, actor, id| {
        ready(world.service.get(actor, id)).unwrap();
        None
    };
    let list: Operate = |world, actor, _| {
        ready(world.service.list(actor, None, 10)).unwrap();
        None
    };
    let nothing: Operate = |world, actor, id| {
        ready(world.service.edit(actor, id, TokenEdit::new().active(true).name("target"))).unwrap();
        None
    };
    // The operation, whether the token is revoked before, and the events. `true` marks an event of
    // the token that the operation makes.
    let table: [(&str, Operate, bool, Vec<(AuditAction, bool, Option<&str>)>); 11] = [
        ("generate", generate, false, vec![(Generated, true, None)]),
        ("rename", rename, false, vec![(Renamed, false, None)]),
        ("describe", describe, false, vec![(Renamed, false, None)]),
        ("revoke", revoke, false, vec![(Revoked, false, Some("owner"))]),
        ("compromise", compromise, false, vec![(Revoked, false, Some("compromised"))]),
        ("restore", restore, true, vec![(Restored, false, None)]),
        ("rotate", rotate, false, vec![(Rotated, false, None), (Generated, true, None)]),
        ("delete", delete, true, vec![(Deleted, false, None)]),
        ("get", get, false, vec![]),
        ("list", list, false, vec![]),
        ("nothing", nothing, false, vec![]),
    ];
    for (label, operate, revoked, expected) in table {
        for through_token in [false, true] {
            let world = World::new();
            let token = world.token("ann", "target");
            if revoked {
                ready(world.service.revoke(&session("ann"), token, Reason::Owner)).unwrap();
            }
            let via = world.issue("ann", NewToken::named("via"));
            let (actor, by) = if through_token {
                let verified = ready(world.service.verify(
                    Credential::text(via.plaintext.expose_secret()).from_address(Some(address)),
                ))
                .unwrap();
                let by = ActorRef::Token { owner: id("ann"), id: via.token.id() };
                (Actor::token(&verified), by)
            } else {
                (session("ann").from_address(address), ActorRef::Owner(id("ann")))
            };
            world.advance(TimeDelta::minutes(5));
            let before = world.events();
            world.heard.take();
            let made = operate(&world, &actor, token);
            let stored = world.events_since(&before);
            let wanted: Vec<_> = expected
                .iter()
                .map(|(action, new, reason)| {
                    let about = if *new { made.unwrap() } else { token };
                    (*action, about, reason.map(str::to_owned))
                })
                .collect();
            assert_eq!(stored.iter().map(told).collect::<Vec<_>>(), wanted, "{label}");
            for event in &stored {
                assert_eq!(event.at, world.now(), "{label}");
                assert_eq!(event.realm, home(), "{label}");
                assert_eq!(event.actor, by, "{label}");
                assert_eq!(event.owner, Some(id("ann")), "{label}");
                assert_eq!(event.address, Some(address), "{label}");
            }
            assert_eq!(world.heard.take(), stored, "{label}");
        }
    }
}

/// Checks that each event is already stored when the sink receives it.
struct AfterTheCommit(Arc<patkit::MemoryStore>, Mutex<usize>);

impl patkit::AuditSink for AfterTheCommit {
    fn record(&self, event: &AuditEvent) {
        use patkit::store::{AuditLog, EventQuery};
        let query = EventQuery::new(event.realm.clone()).token(event.token).from(event.at);
        let stored = ready(self.0.events(&query)).unwrap();
        assert!(stored.events.contains(event), "{event:?}");
        *self.1.lock().unwrap() += 1;
    }
}

#[test]
fn the_sink_is_told_after_the_commit() {
    let world = World::new();
    let sink = Arc::new(AfterTheCommit(world.store.clone(), Mutex::new(0)));
    let service = builder(world.store.clone(), world.directory.clone(), world.clock.clone())
        .audit_sink(sink.clone())
        .build()
        .unwrap();
    let ann = session("ann");
    let made = ready(service.generate(&ann, NewToken::named("a"))).unwrap().token.id();
    let next = ready(service.rotate(&ann, made, Duration::ZERO)).unwrap().token.id();
    ready(service.rename(&ann, next, "b")).unwrap();
    ready(service.revoke(&ann, next, Reason::Owner)).unwrap();
    ready(service.restore(&ann, next)).unwrap();
    ready(service.revoke_all(&home(), &id("ann"))).unwrap();
    ready(service.delete(&ann, next)).unwrap();
    ready(service.erase_owner(&home(), &id("ann"))).unwrap();
    assert_eq!(*sink.1.lock().unwrap(), 9);
}
