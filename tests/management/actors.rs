//! Actors: when an actor loses its rights, and the reasons and the authority of its revocations.

use super::{How, OPERATIONS, Scene, Target};
use chrono::TimeDelta;
use patkit::policy::{Oversight, TokenManagement};
use patkit::service::TokenEdit;
use patkit::token::Authority;
use patkit::{ManageError, NewToken, Owner, OwnerKind, Reason, RejectReason, TokenId};
use support::{World, home, id, ready, session};

#[test]
fn an_actor_that_is_no_longer_somebody_is_rejected_in_every_operation() {
    type Change = fn(&World, TokenId);
    let revoke: Change = |world, via| {
        ready(world.service.revoke(&session("ada"), via, Reason::Owner)).unwrap();
    };
    let delete: Change = |world, via| {
        ready(world.service.revoke(&session("ada"), via, Reason::Owner)).unwrap();
        ready(world.service.delete(&session("ada"), via)).unwrap();
    };
    let expire: Change = |world, via| world.clock.set(world.facts(via).expires_at.unwrap());
    let disable: Change =
        |world, _| world.put("ada", |ada| ada.with_role("admin").with_enabled(false));
    let remove: Change = |world, _| assert!(world.directory.remove(&home(), &id("ada")));
    let sign_out: Change = |world, _| {
        let after = world.now() + TimeDelta::microseconds(1);
        world.put("ada", |ada| ada.with_role("admin").with_tokens_valid_after(after));
    };
    let convert: Change = |world, _| {
        world.directory.put(Owner::new(id("ada"), OwnerKind::Service).with_role("admin"));
    };
    // The end of the token, the resulting rejection of the token, and that of a session.
    let table = [
        (revoke, RejectReason::Revoked, None),
        (delete, RejectReason::Unknown, None),
        (expire, RejectReason::Expired, None),
        (disable, RejectReason::OwnerDisabled, Some(RejectReason::OwnerDisabled)),
        (remove, RejectReason::OwnerUnknown, Some(RejectReason::OwnerUnknown)),
        (sign_out, RejectReason::BeforeValidAfter, None),
        (convert, RejectReason::OwnerKind, None),
    ];
    for (end, token_reason, session_reason) in table {
        for through_token in [true, false] {
            let expected = if through_token { Some(token_reason) } else { session_reason };
            let Some(expected) = expected else { continue };
            for operation in OPERATIONS {
                for target in [Target::Other, Target::Service, Target::Itself] {
                    let mut scene = Scene::new(
                        How::Inherit("ada"),
                        TokenManagement::Attenuated,
                        Oversight::RevokeOnly,
                    );
                    if !through_token {
                        scene.actor = session("ada");
                    }
                    let via = scene.via.as_ref().unwrap().token.id();
                    end(&scene.world, via);
                    let before = scene.world.snapshot();
                    match scene.operate(operation, scene.target(target)) {
                        Err(ManageError::ActorRejected(rejected)) => {
                            assert_eq!(rejected.reason, expected);
                        }
                        other => panic!("{operation}: {other:?}, not {expected}"),
                    }
                    assert_eq!(scene.world.snapshot(), before);
                }
            }
        }
    }
}

#[test]
fn a_demoted_owner_loses_the_management_of_what_it_made_at_once() {
    let world = World::new();
    let service = world.issue("bot", NewToken::named("a")).token.id();
    let personal = world.token("ada", "b");
    let via = world.issue("ada", NewToken::named("via"));
    for actor in [session("ada"), world.through(&via)] {
        world.put("ada", |ada| ada.with_role("admin"));
        ready(world.service.get(&actor, service)).unwrap();
        world.put("ada", |ada| ada.with_role("member"));
        assert!(matches!(ready(world.service.get(&actor, service)), Err(ManageError::NotFound)));
        ready(world.service.get(&actor, personal)).unwrap();
        world.put("ada", |ada| ada);
        let forbidden = ready(world.service.get(&actor, personal));
        assert!(matches!(forbidden, Err(ManageError::Forbidden { .. })));
    }
}

/// The reasons that each actor may give, and the one that is used if it gives none.
#[test]
fn an_actor_revokes_for_its_own_reasons_alone() {
    use Reason::{Admin, Compromised, Idle, Offboarding, Owner, System};
    let table: [(&str, How, Target, Reason, Authority, &[Reason]); 7] = [
        ("owner", How::Session("ann"), Target::Own, Owner, Authority::Owner, &[Owner, Compromised]),
        (
            "owner through a token",
            How::Inherit("ann"),
            Target::Own,
            Owner,
            Authority::Owner,
            &[Owner, Compromised],
        ),
        (
            "token itself",
            How::Only("ann", &[]),
            Target::Itself,
            Owner,
            Authority::Owner,
            &[Owner, Compromised],
        ),
        (
            "admin",
            How::Session("ada"),
            Target::Service,
            Admin,
            Authority::Admin,
            &[Admin, Compromised],
        ),
        (
            "overseer",
            How::Session("ada"),
            Target::Other,
            Admin,
            Authority::Admin,
            &[Admin, Compromised],
        ),
        (
            "host, personal",
            How::System,
            Target::Other,
            System,
            Authority::System,
            &[Owner, Admin, System, Offboarding, Idle, Compromised],
        ),
        (
            "host, service",
            How::System,
            Target::Service,
            System,
            Authority::System,
            &[Owner, Admin, System, Offboarding, Idle, Compromised],
        ),
    ];
    for (label, how, target, own, authority, allowed) in table {
        for reason in Reason::ALL.map(Some).into_iter().chain([None]) {
            let scene = Scene::new(how, TokenManagement::Attenuated, Oversight::RevokeOnly);
            let token = scene.target(target);
            let edit = TokenEdit::new().active(false);
            let edit = reason.into_iter().fold(edit, TokenEdit::reason);
            let before = scene.world.snapshot();
            let result = ready(scene.world.service.edit(&scene.actor, token, edit));
            if reason.is_none_or(|reason| allowed.contains(&reason)) {
                let view = result.unwrap();
                let revocation = view.revocation().unwrap();
                assert_eq!(revocation.reason, reason.unwrap_or(own), "{label}");
                assert_eq!(revocation.authority, authority, "{label}");
            } else {
                match result {
                    Err(ManageError::ReasonNotAllowed(refused)) => {
                        assert_eq!(Some(refused), reason, "{label}");
                    }
                    other => panic!("{label}: {reason:?} answers {other:?}"),
                }
                assert_eq!(scene.world.snapshot(), before, "{label}");
            }
        }
    }
}

#[test]
fn a_service_token_that_revokes_itself_does_so_with_the_authority_of_an_owner() {
    let world = World::new();
    let token = world.issue("robot", NewToken::named("a"));
    let actor = world.through(&token);
    let edit = TokenEdit::new().active(false);
    let view = ready(world.service.edit(&actor, token.token.id(), edit)).unwrap();
    assert_eq!(view.revocation().unwrap().authority, Authority::Owner);
}
