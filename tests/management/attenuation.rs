//! Attenuation: nothing made or changed through a token is wider than the token.

use chrono::TimeDelta;
use patkit::policy::LifetimeError;
use patkit::service::{Attenuation, InvalidInput};
use patkit::token::{ActorRef, Authority, Revocation};
use patkit::{
    Actor, AuditEvent, Credential, IssuedToken, ManageError, NewToken, Reason, Token, TokenId,
};
use std::net::IpAddr;
use std::time::Duration;
use support::{World, id, ready, session, start};

#[test]
fn what_is_made_through_a_token_is_no_wider_than_it_in_scope() {
    type Entries = Option<&'static [&'static str]>;
    const MANAGE: &[&str] = &["tokens:manage", "service-tokens:manage", "datastores:*"];
    // The token's scope, the requested scope, and whether it is allowed for its own owner and for
    // another one.
    let table: [(Entries, Entries, bool, bool); 12] = [
        (None, None, true, false),
        (None, Some(&[]), true, true),
        (None, Some(&["anything:at:all"]), true, true),
        (Some(MANAGE), None, false, false),
        (Some(MANAGE), Some(&[]), true, true),
        (Some(MANAGE), Some(&["tokens:manage"]), true, true),
        (Some(MANAGE), Some(&["datastores:read"]), true, true),
        (Some(MANAGE), Some(&["datastores:*"]), true, true),
        (Some(MANAGE), Some(&["datastores:read", "buckets:read"]), false, false),
        (Some(MANAGE), Some(&["datastores"]), false, false),
        (Some(MANAGE), Some(&["tokens:*"]), false, false),
        (Some(MANAGE), Some(&["tokens:oversee"]), false, false),
    ];
    for (outer, inner, own, another) in table {
        for (expected, for_service) in [(own, false), (another, true)] {
            let world = World::new();
            let with = |new: NewToken, scope: Entries| {
                scope.into_iter().fold(new, |new, s| new.scope(s.iter().copied()))
            };
            let via = world.issue("ada", with(NewToken::named("via"), outer));
            let actor = world.through(&via);
            let new = with(NewToken::named("child"), inner);
            let new = if for_service { new.for_service(id("bot")) } else { new };
            let before = world.snapshot();
            let result = world.generate(&actor, new);
            let label = format!("{outer:?} makes {inner:?}, for a service user: {for_service}");
            check_attenuated(
                &world,
                result.map(|made| made.token.id()),
                expected,
                Attenuation::Scope,
                &before,
                &label,
            );
        }
    }
}

fn check_attenuated(
    world: &World,
    result: Result<TokenId, ManageError>,
    expected: bool,
    what: Attenuation,
    before: &(Vec<Token>, Vec<AuditEvent>),
    label: &str,
) {
    match result {
        Ok(_) => assert!(expected, "{label}"),
        Err(ManageError::Attenuation(refused)) => {
            assert!(!expected, "{label}");
            assert_eq!(refused, what, "{label}");
            assert_eq!(world.snapshot(), *before, "{label}");
        }
        Err(error) => panic!("{label}: {error:?}"),
    }
}

type Networks = Option<&'static [&'static str]>;

/// A token's networks, the networks of another token, and whether the latter are within the former.
const NETWORKS: [(Networks, Networks, bool); 9] = [
    (None, None, true),
    (None, Some(&["10.0.0.0/8"]), true),
    (Some(&["10.0.0.0/8"]), None, false),
    (Some(&["10.0.0.0/8"]), Some(&["10.0.0.0/8"]), true),
    (Some(&["10.0.0.0/8"]), Some(&["10.1.0.0/16", "10.2.3.4"]), true),
    (Some(&["10.0.0.0/8"]), Some(&["10.0.0.0/7"]), false),
    (Some(&["10.0.0.0/8"]), Some(&["10.1.0.0/16", "11.0.0.1"]), false),
    (Some(&["10.0.0.0/8"]), Some(&["::/0"]), false),
    (Some(&["10.0.0.0/8", "2001:db8::/32"]), Some(&["2001:db8:1::/48", "::ffff:10.0.0.1"]), true),
];

fn networked(new: NewToken, networks: Networks) -> NewToken {
    networks.into_iter().fold(new, |new, networks| new.networks(networks.iter().copied()))
}

/// Returns an actor through a token that is restricted to networks, verified from within them.
fn through_from_inside(world: &World, via: &IssuedToken) -> Actor {
    let inside: IpAddr = "10.0.0.1".parse().unwrap();
    let verified = ready(
        world
            .service
            .verify(Credential::text(via.plaintext.expose_secret()).from_address(Some(inside))),
    )
    .unwrap();
    Actor::token(&verified)
}

#[test]
fn what_is_made_restored_or_rotated_through_a_token_is_no_wider_than_it_in_networks() {
    for (outer, inner, expected) in NETWORKS {
        let label = format!("{outer:?}, {inner:?}");
        for operation in ["generate", "restore", "rotate"] {
            let world = World::new();
            let via = world.issue("ann", networked(NewToken::named("via"), outer));
            let actor = through_from_inside(&world, &via);
            let new = networked(NewToken::named("other"), inner);
            let result = if operation == "generate" {
                let before = world.snapshot();
                (world.generate(&actor, new).map(|made| made.token.id()), before)
            } else {
                operate_on_other(&world, &actor, new, operation)
            };
            check_attenuated(&world, result.0, expected, Attenuation::Networks, &result.1, &label);
        }
    }
}

/// Restores or rotates another token of `ann` through an actor.
fn operate_on_other(
    world: &World,
    actor: &Actor,
    new: NewToken,
    operation: &str,
) -> (Result<TokenId, ManageError>, (Vec<Token>, Vec<AuditEvent>)) {
    let other = world.issue("ann", new).token.id();
    if operation == "restore" {
        ready(world.service.revoke(&session("ann"), other, Reason::Owner)).unwrap();
    }
    let before = world.snapshot();
    let result = match operation {
        "restore" => ready(world.service.restore(actor, other)).map(|view| view.id()),
        "rotate" => {
            ready(world.service.rotate(actor, other, Duration::ZERO)).map(|made| made.token.id())
        }
        _ => panic!("no such operation"),
    };
    (result, before)
}

#[test]
fn what_is_restored_or_rotated_through_a_token_is_no_wider_than_it_in_scope_and_expiry() {
    let manage =
        || NewToken::named("via").scope(["tokens:manage", "datastores:*"]).expires_in_days(10);
    let other = || NewToken::named("other").expires_in_days(10);
    let table = [
        (other().scope(["datastores:read"]), None),
        (other().scope(["datastores:read"]).expires_in_days(9), None),
        (other(), Some(Attenuation::Scope)),
        (other().scope(["buckets:read"]), Some(Attenuation::Scope)),
        (other().scope(["tokens:*"]), Some(Attenuation::Scope)),
        (other().scope(["datastores:read"]).expires_in_days(11), Some(Attenuation::Expiry)),
        (other().scope(["datastores:read"]).never_expires(), Some(Attenuation::Expiry)),
    ];
    for (new, refused) in table {
        for operation in ["restore", "rotate"] {
            let world = World::new();
            let actor = world.through(&world.issue("ann", manage()));
            let label = format!("{operation} {new:?}");
            let (result, before) = operate_on_other(&world, &actor, new.clone(), operation);
            let what = refused.unwrap_or(Attenuation::Scope);
            check_attenuated(&world, result, refused.is_none(), what, &before, &label);
        }
    }
}

#[test]
fn a_service_token_that_inherits_is_neither_restored_nor_rotated_through_a_token_of_another_owner()
{
    for operation in ["restore", "rotate"] {
        for inherits in [true, false] {
            let world = World::new();
            let actor = world.through(&world.issue("ada", NewToken::named("via")));
            let new = NewToken::named("service");
            let new = if inherits { new } else { new.scope(["datastores:read"]) };
            let token = world.issue("bot", new).token.id();
            if operation == "restore" {
                ready(world.service.revoke(&session("ada"), token, Reason::Admin)).unwrap();
            }
            let before = world.snapshot();
            let result = match operation {
                "restore" => ready(world.service.restore(&actor, token)).map(|view| view.id()),
                _ => ready(world.service.rotate(&actor, token, Duration::ZERO))
                    .map(|made| made.token.id()),
            };
            check_attenuated(&world, result, !inherits, Attenuation::Scope, &before, operation);
        }
    }
}

#[test]
fn what_is_made_through_a_token_ends_no_later_and_the_default_is_shortened() {
    let days = |count| start() + TimeDelta::days(count);
    let outer = |new: NewToken, limit: Option<i64>| match limit {
        Some(limit) => new.expires_in_days(limit),
        None => new.never_expires(),
    };
    type Ask = fn(NewToken) -> NewToken;
    let default: Ask = |new| new;
    let ten: Ask = |new| new.expires_in_days(10);
    let eleven: Ask = |new| new.expires_in_days(11);
    let never: Ask = NewToken::never_expires;
    // The end of the token in days, the requested lifetime, and the result.
    let table = [
        (Some(10), default, Ok(Some(days(10)))),
        (Some(10), ten, Ok(Some(days(10)))),
        (Some(10), eleven, Err(LifetimeError::OutlivesCreator)),
        (Some(10), never, Err(LifetimeError::OutlivesCreator)),
        (Some(200), default, Ok(Some(days(90)))),
        (None, default, Ok(Some(days(90)))),
        (None, eleven, Ok(Some(days(11)))),
        (None, never, Ok(None)),
    ];
    for (limit, ask, expected) in table {
        let world = World::new();
        let actor = world.through(&world.issue("ann", outer(NewToken::named("via"), limit)));
        let result = world.generate(&actor, ask(NewToken::named("child")));
        match (result, expected) {
            (Ok(made), Ok(expected)) => assert_eq!(made.token.expires_at(), expected),
            (Err(ManageError::Invalid(InvalidInput::Lifetime(error))), Err(expected)) => {
                assert_eq!(error, expected);
            }
            (result, expected) => panic!("{limit:?}: {result:?}, not {expected:?}"),
        }
    }
    // One minute later, a lifetime of ten days outlives the token.
    let world = World::new();
    let actor = world.through(&world.issue("ann", NewToken::named("via").expires_in_days(10)));
    world.advance(TimeDelta::minutes(1));
    assert!(world.generate(&actor, NewToken::named("a").expires_in_days(10)).is_err());
    let made = world.generate(&actor, NewToken::named("b")).unwrap();
    assert_eq!(made.token.expires_at(), Some(days(10)));
}

#[test]
fn a_child_stays_within_its_creators_scope_when_the_owner_is_promoted() {
    let world = World::new();
    let narrow = NewToken::named("via").scope(["tokens:manage", "datastores:*"]);
    let via = world.issue("ann", narrow);
    let child = NewToken::named("child").scope(["datastores:read", "tokens:manage"]);
    let child = world.generate(&world.through(&via), child).unwrap();
    let inheriting = world.issue("ann", NewToken::named("inherits"));
    world.put("ann", |ann| ann.with_role("admin").with_grants(support::grants(&["*"])));
    for token in [&via, &child] {
        let verified = world.verify(token).unwrap();
        for permission in ["service-tokens:manage", "tokens:oversee", "buckets:read", "scim:users"]
        {
            assert!(verified.require(permission).is_err(), "{permission}");
        }
        verified.require("datastores:read").unwrap();
    }
    // A token that inherits follows its owner in both directions.
    world.verify(&inheriting).unwrap().require("buckets:read").unwrap();
    world.put("ann", |ann| ann);
    assert!(world.verify(&inheriting).unwrap().require("datastores:read").is_err());
    assert!(world.verify(&child).unwrap().require("datastores:read").is_err());
}

#[test]
fn a_service_token_makes_none_that_inherits_for_another_service_user() {
    for (scope, allowed) in [(None, false), (Some(["datastores:read"]), true)] {
        let world = World::new();
        let actor = world.through(&world.issue("robot", NewToken::named("via")));
        let new = NewToken::named("child").for_service(id("bot"));
        let before = world.snapshot();
        let made = world.generate(&actor, scope.into_iter().fold(new, NewToken::scope));
        let made = made.map(|made| made.token.id());
        check_attenuated(&world, made, allowed, Attenuation::Scope, &before, &format!("{scope:?}"));
    }
}

#[test]
fn through_a_token_the_trace_of_a_rotation_stays_also_when_its_successor_is_gone() {
    let world = World::new();
    let ann = session("ann");
    let thief = world.through(&world.issue("ann", NewToken::named("stolen")));
    let old = world.token("ann", "a");
    let successor = ready(world.service.rotate(&ann, old, Duration::ZERO)).unwrap().token.id();
    ready(world.service.revoke(&ann, successor, Reason::Owner)).unwrap();
    ready(world.service.delete(&ann, successor)).unwrap();
    let before = world.snapshot();
    let deleted = ready(world.service.delete(&thief, old));
    assert!(matches!(deleted, Err(ManageError::Attenuation(Attenuation::Family))), "{deleted:?}");
    assert_eq!(world.snapshot(), before);
    ready(world.service.delete(&ann, old)).unwrap();
}

#[test]
fn a_token_of_the_other_kind_is_anothers_even_if_its_owner_has_the_same_id() {
    let world = World::new();
    let ada = world.issue("ada", NewToken::named("ada's"));
    let through = world.through(&ada);
    let service = world.issue("bot", NewToken::named("of the service user before")).token.id();
    world.force(service, |token| {
        token.owner = id("ada");
        let (at, by) = (start(), ActorRef::System);
        let (authority, reason) = (Authority::Admin, Reason::Admin);
        token.facts.revocation = Some(Box::new(Revocation { at, by, authority, reason }));
    });
    let restored = ready(world.service.restore(&through, service)).map(drop);
    assert!(matches!(restored, Err(ManageError::Attenuation(Attenuation::Scope))), "{restored:?}");
}
