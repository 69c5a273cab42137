//! Owner ids that went to somebody else, and tokens that their owner's *valid after* has ended.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "tests"
)]

use chrono::{DateTime, TimeDelta, Utc};
use patkit::audit::AuditAction;
use patkit::policy::Oversight;
use patkit::service::StateCounts;
use patkit::token::ActorRef;
use patkit::{
    Actor, ManageError, NewToken, Owner, Reason, RejectReason, TokenEdit, TokenId, TokenPolicy,
    TokenState, TokenView,
};
use std::time::Duration;
use support::{World, id, ready, session};

const MICRO: TimeDelta = TimeDelta::microseconds(1);

/// Hands the id `ann` over to somebody else.
fn hand_over(world: &World) {
    world.advance(TimeDelta::days(1));
    let now = world.now();
    world.put("ann", |ann| ann.with_role("member").with_id_held_since(now));
}

fn own(world: &World, actor: &Actor, limit: usize) -> Vec<TokenId> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = ready(world.service.list(actor, after, limit)).unwrap();
        assert!(page.items.len() <= limit);
        // Only the last page may be short, because a short page would show that tokens are left
        // out.
        assert!(
            page.next.is_none()
                || (page.items.len() == limit && page.next == page.items.last().map(TokenView::id))
        );
        assert!(after.is_none() || !page.items.is_empty(), "the page before was the last one");
        all.extend(page.items.iter().map(TokenView::id));
        match page.next {
            Some(next) => after = Some(next),
            None => return all,
        }
    }
}

fn json(view: &TokenView) -> serde_json::Value {
    serde_json::to_value(view).unwrap()
}

#[test]
fn tokens_of_a_former_bearer_are_invisible_to_the_present_one() {
    let world = World::new();
    let named = |name: &str| NewToken::named(name).description("of the former bearer");
    let active = world.issue("ann", named("active"));
    let revoked = world.issue("ann", named("revoked"));
    ready(world.service.revoke(&session("ann"), revoked.token.id(), Reason::Owner)).unwrap();
    let expired = world.issue("ann", named("expired").expires_in_seconds(60));
    hand_over(&world);
    let present = world.generate(&session("ann"), NewToken::named("present")).unwrap();

    let before = world.snapshot();
    for actor in [session("ann"), world.through(&present)] {
        assert_eq!(own(&world, &actor, 50), [present.token.id()]);
        let counts = ready(world.service.count(&actor)).unwrap();
        assert_eq!((counts.active, counts.revoked, counts.expired, counts.ended), (1, 0, 0, 0));
        for former in [&active, &revoked, &expired] {
            let (service, id) = (&world.service, former.token.id());
            let errors = [
                ready(service.get(&actor, id)).err(),
                ready(service.rename(&actor, id, "mine")).err(),
                ready(service.edit(&actor, id, TokenEdit::new().active(true))).err(),
                ready(service.revoke(&actor, id, Reason::Compromised)).err(),
                ready(service.restore(&actor, id)).err(),
                ready(service.rotate(&actor, id, Duration::ZERO)).err(),
                ready(service.delete(&actor, id)).err(),
            ];
            for (place, error) in errors.into_iter().enumerate() {
                assert!(matches!(error, Some(ManageError::NotFound)), "{place}: {error:?}");
            }
        }
    }
    assert_eq!(world.snapshot(), before);
    assert_eq!(world.refusal(&active), Some(RejectReason::BeforeValidAfter));
    assert_eq!(world.refusal(&present), None);
}

#[test]
fn the_pages_of_the_present_bearer_do_not_tell_of_the_former_one() {
    for (former, present) in [(0, 3), (1, 0), (5, 4), (7, 6), (250, 1)] {
        let world = World::new();
        for n in 0..former {
            world.token("ann", &format!("former {n}"));
        }
        hand_over(&world);
        let made: Vec<TokenId> =
            (0..present).map(|n| world.token("ann", &format!("{n}"))).collect();
        let newest_first: Vec<TokenId> = made.into_iter().rev().collect();
        for limit in 1..=present + 1 {
            assert_eq!(
                own(&world, &session("ann"), limit),
                newest_first,
                "{former} {present} {limit}"
            );
        }
    }
}

#[test]
fn the_instant_itself_belongs_to_the_present_bearer() {
    for (since, is_seen) in [(-MICRO, true), (TimeDelta::zero(), true), (MICRO, false)] {
        let world = World::new();
        let token = world.issue("ann", NewToken::named("a"));
        world.put("ann", |ann| ann.with_role("member").with_id_held_since(world.now() + since));
        assert_eq!(
            ready(world.service.get(&session("ann"), token.token.id())).is_ok(),
            is_seen,
            "{since}"
        );
        assert_eq!(own(&world, &session("ann"), 9).len(), usize::from(is_seen));
        assert_eq!(world.refusal(&token).is_none(), is_seen);
    }
}

#[test]
fn the_later_of_both_instants_counts() {
    let owner = || Owner::new(id("ann"), patkit::OwnerKind::Human);
    let at = |day: i64| DateTime::<Utc>::UNIX_EPOCH + TimeDelta::days(day);
    for (owner, valid, held) in [
        (owner(), None, None),
        (owner().with_tokens_valid_after(at(1)), Some(at(1)), None),
        (owner().with_id_held_since(at(1)), Some(at(1)), Some(at(1))),
        (
            owner().with_id_held_since(at(1)).with_tokens_valid_after(at(2)),
            Some(at(2)),
            Some(at(1)),
        ),
        (
            owner().with_tokens_valid_after(at(2)).with_id_held_since(at(1)),
            Some(at(2)),
            Some(at(1)),
        ),
        (
            owner().with_id_held_since(at(2)).with_tokens_valid_after(at(1)),
            Some(at(2)),
            Some(at(2)),
        ),
        (
            owner().with_tokens_valid_after(at(1)).with_id_held_since(at(2)),
            Some(at(2)),
            Some(at(2)),
        ),
    ] {
        assert_eq!((owner.tokens_valid_after(), owner.id_held_since()), (valid, held));
    }
}

#[test]
fn a_former_bearer_keeps_nobody_from_a_name() {
    let world = World::new();
    let longest = "é".repeat(255);
    for name in ["ci", "Straße", &longest] {
        let mut former = Vec::new();
        for round in 0..3 {
            hand_over(&world);
            let other = world.generate(
                &session("ann"),
                NewToken::named(&format!("other {round} {}", former.len())),
            );
            let other = other.unwrap().token.id();
            // The name is taken by generating and by renaming in turn, in any spelling that counts
            // as the same.
            let asked = if round == 0 { name.to_owned() } else { name.to_uppercase() };
            let made = if round == 1 {
                ready(world.service.rename(&session("ann"), other, &asked)).unwrap()
            } else {
                world.generate(&session("ann"), NewToken::named(&asked)).unwrap().token
            };
            assert_eq!(made.name().as_str(), asked);
            // Among the owner's current tokens, the name is still taken.
            let taken = world.generate(&session("ann"), NewToken::named(name)).unwrap_err();
            assert!(matches!(taken, ManageError::NameTaken), "{taken:?}");
            let moved = world.token("ann", &format!("moved {round} {}", made.id()));
            let taken = ready(world.service.rename(&session("ann"), moved, name)).unwrap_err();
            assert!(matches!(taken, ManageError::NameTaken), "{taken:?}");
            former.push(made.id());
        }
        former.pop();
        for id in former {
            let stored = world.stored(id);
            let shown = stored.name.as_str();
            assert!(
                shown.ends_with(&format!(" ({id})")) && shown.chars().count() <= 255,
                "{shown}"
            );
            let told: Vec<_> =
                world.events().into_iter().filter(|event| event.token == id).collect();
            let renamed = told.iter().filter(|event| event.action == AuditAction::Renamed);
            assert_eq!(
                renamed.filter(|event| event.actor == ActorRef::System).count(),
                1,
                "{told:?}"
            );
        }
    }
}

#[test]
fn a_name_is_not_freed_where_the_id_was_always_the_owners() {
    let world = World::new();
    let token = world.token("ann", "ci");
    world.advance(TimeDelta::days(1));
    world.put("ann", |ann| ann.with_role("member").with_tokens_valid_after(world.now()));
    let before = world.snapshot();
    let refused = world.generate(&session("ann"), NewToken::named("CI")).unwrap_err();
    assert!(matches!(refused, ManageError::NameTaken), "{refused:?}");
    assert_eq!(world.snapshot(), before);
    assert_eq!(world.stored(token).name.as_str(), "ci");
}

#[test]
fn a_service_user_that_is_another_one_gets_its_names_too() {
    let world = World::new();
    let new = || NewToken::named("deploy").scope(["datastores:read"]).for_service(id("bot"));
    let former = world.generate(&session("ada"), new()).unwrap();
    world.advance(TimeDelta::days(1));
    world.put("bot", |bot| bot.with_id_held_since(world.now()));
    let present = world.generate(&session("ada"), new()).unwrap();
    // The admin sees both tokens.
    let page = ready(world.service.list_service(&session("ada"), None, 9)).unwrap();
    let shown: Vec<_> = page.items.iter().map(|view| (view.id(), view.shown_state())).collect();
    assert_eq!(shown, [(present.token.id(), "active"), (former.token.id(), "ended")]);
    let renamed =
        ready(world.service.rename(&session("ada"), former.token.id(), "old deploy")).unwrap();
    assert!(!renamed.is_active());
}

#[test]
fn a_former_bearer_takes_up_no_room() {
    let policy = TokenPolicy::builder().live_tokens_per_owner(2).build().unwrap();
    let world = World::with(policy);
    for name in ["a", "b"] {
        world.generate(&session("ann"), NewToken::named(name)).unwrap();
    }
    hand_over(&world);
    let made = ["a", "b"]
        .map(|name| world.generate(&session("ann"), NewToken::named(name)).unwrap().token.id());
    let full = world.generate(&session("ann"), NewToken::named("c")).unwrap_err();
    assert!(matches!(full, ManageError::TooManyTokens { most: 2 }), "{full:?}");
    ready(world.service.revoke(&session("ann"), made[0], Reason::Owner)).unwrap();
    ready(world.service.restore(&session("ann"), made[0])).unwrap();
    ready(world.service.revoke(&session("ann"), made[0], Reason::Owner)).unwrap();
    world.generate(&session("ann"), NewToken::named("c")).unwrap();
    let full = ready(world.service.restore(&session("ann"), made[0])).unwrap_err();
    assert!(matches!(full, ManageError::TooManyTokens { most: 2 }), "{full:?}");
}

#[test]
fn overseers_and_the_host_see_what_is_no_longer_accepted() {
    let world =
        World::with(TokenPolicy::builder().oversight(Oversight::RevokeOnly).build().unwrap());
    let former = world.issue("ann", NewToken::named("a")).token.id();
    hand_over(&world);
    let present = world.issue("ann", NewToken::named("b")).token.id();
    let listed = |actor: &Actor| {
        let page = ready(world.service.list_overseen(actor, &id("ann"), None, 9)).unwrap();
        page.items.iter().map(|view| (view.id(), view.shown_state())).collect::<Vec<_>>()
    };
    let system = Actor::system();
    for actor in [session("ada"), system.clone()] {
        assert_eq!(listed(&actor), [(present, "active"), (former, "ended")]);
    }
    let view = ready(world.service.get(&system, former)).unwrap();
    assert!(view.is_ended() && !view.is_active() && view.state() == TokenState::Active);
    ready(world.service.revoke(&session("ada"), former, Reason::Admin)).unwrap();
    assert_eq!(listed(&system), [(present, "active"), (former, "revoked")]);
}

#[test]
fn a_token_that_valid_after_has_ended_is_shown_so() {
    let world = World::new();
    let ann = session("ann");
    let ended = world.issue("ann", NewToken::named("ended")).token.id();
    let revoked = world.issue("ann", NewToken::named("revoked")).token.id();
    ready(world.service.revoke(&ann, revoked, Reason::Owner)).unwrap();
    let expired = world.issue("ann", NewToken::named("expired").expires_in_seconds(60)).token.id();
    world.advance(TimeDelta::days(1));
    world.put("ann", |ann| ann.with_role("member").with_tokens_valid_after(world.now()));
    let active = world.issue("ann", NewToken::named("active")).token.id();

    let page = ready(world.service.list(&ann, None, 9)).unwrap();
    let expected =
        [(active, "active"), (expired, "expired"), (revoked, "revoked"), (ended, "ended")];
    for (view, (id, state)) in page.items.iter().zip(expected) {
        let one = ready(world.service.get(&ann, id)).unwrap();
        for view in [view, &one] {
            assert_eq!((view.id(), view.shown_state()), (id, state));
            assert_eq!(json(view)["state"], state);
            assert_eq!(json(view)["active"], state == "active");
            assert!(format!("{view:?}").contains(state), "{view:?}");
        }
    }
    assert_eq!(page.items.len(), 4);
    let counts: StateCounts = ready(world.service.count(&ann)).unwrap();
    assert_eq!((counts.active, counts.revoked, counts.expired, counts.ended), (1, 1, 1, 1));

    // Sending back the current values changes nothing, but an edit with a reason revokes.
    let before = world.snapshot();
    let same = TokenEdit::new().name("ended").active(false);
    assert_eq!(ready(world.service.edit(&ann, ended, same)).unwrap().shown_state(), "ended");
    assert_eq!(world.snapshot(), before);
    let refused = ready(world.service.delete(&ann, ended)).unwrap_err();
    assert!(matches!(refused, ManageError::Refused(_)), "{refused:?}");
    let revoke = TokenEdit::new().active(false).reason(Reason::Owner);
    assert_eq!(ready(world.service.edit(&ann, ended, revoke)).unwrap().shown_state(), "revoked");
    ready(world.service.delete(&ann, ended)).unwrap();

    // Other tokens are revoked without a reason.
    let revoked = ready(world.service.edit(&ann, active, TokenEdit::new().active(false))).unwrap();
    assert_eq!(revoked.shown_state(), "revoked");
}
