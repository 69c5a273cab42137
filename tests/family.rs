//! The family of a compromised token: removing a member never cuts the family, and other tokens
//! stay valid.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::too_many_lines
)]

use chrono::TimeDelta;
use patkit::policy::ReuseSignal;
use patkit::token::{ActorRef, Authority};
use patkit::{
    Actor, AuditAction, IssuedToken, NewToken, Reason, RejectReason, TokenId, TokenPolicy,
    TokenState,
};
use std::time::Duration;
use support::{World, grants, id, ready, session};

/// How a token joins the family of another token.
#[derive(Debug, Clone, Copy)]
enum Way {
    Made,
    RotatedItself,
    RotatedAnother,
    Restored,
}

const WAYS: [Way; 4] = [Way::Made, Way::RotatedItself, Way::RotatedAnother, Way::Restored];

/// How a member is removed after it has ended.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Removal {
    Deleted,
    Pruned,
}

fn named(name: &str) -> NewToken {
    NewToken::named(name).never_expires()
}

/// Adds the next member below `parent`.
fn join(world: &World, parent: &IssuedToken, way: Way, name: &str) -> IssuedToken {
    let through = world.through(parent);
    match way {
        Way::Made => world.generate(&through, named(name)).unwrap(),
        Way::RotatedItself => {
            ready(world.service.rotate(&through, parent.token.id(), Duration::ZERO)).unwrap()
        }
        Way::RotatedAnother => {
            let other = world.issue("ada", named(name));
            ready(world.service.rotate(&through, other.token.id(), Duration::ZERO)).unwrap()
        }
        Way::Restored => {
            let other = world.issue("ada", named(name));
            ready(world.service.revoke(&session("ada"), other.token.id(), Reason::Owner)).unwrap();
            ready(world.service.restore(&through, other.token.id())).unwrap();
            other
        }
    }
}

fn remove(world: &World, token: TokenId, removal: Removal) {
    if world.stored(token).state(world.now()) == TokenState::Active {
        ready(world.service.revoke(&session("ada"), token, Reason::Owner)).unwrap();
    }
    match removal {
        Removal::Deleted => ready(world.service.delete(&session("ada"), token)).unwrap(),
        Removal::Pruned => {
            world.advance(TimeDelta::days(2));
            assert!(ready(world.service.prune(Duration::from_secs(86_400))).unwrap() >= 1);
        }
    }
    assert!(world.find(token).is_none());
}

fn reason_of(world: &World, token: &IssuedToken) -> Option<Reason> {
    world.facts(token.token.id()).revocation.map(|revocation| revocation.reason)
}

/// Joins three members below the root in every way, and removes one or both of the first two in
/// every way and order.
#[test]
fn whoever_is_removed_never_cuts_the_family() {
    for ways in WAYS
        .into_iter()
        .flat_map(|a| WAYS.map(|b| (a, b)))
        .flat_map(|(a, b)| WAYS.map(|c| [a, b, c]))
    {
        for order in [&[0_usize][..], &[1], &[0, 1], &[1, 0]] {
            for removal in [Removal::Deleted, Removal::Pruned] {
                let world = World::new();
                let root = world.issue("ada", named("root"));
                let mut members: Vec<IssuedToken> = Vec::new();
                for (place, way) in ways.into_iter().enumerate() {
                    let parent = members.last().unwrap_or(&root);
                    members.push(join(&world, parent, way, &format!("member {place}")));
                }
                for place in order {
                    // Pruning may have removed more than one member.
                    if world.find(members[*place].token.id()).is_some() {
                        remove(&world, members[*place].token.id(), removal);
                    }
                }
                let leaf = &members[2];
                assert_eq!(world.refusal(leaf), None, "{ways:?} {order:?} {removal:?}");
                if world.find(root.token.id()).is_none() {
                    // The root rotated itself, ended and was pruned, so that nobody can report it
                    // any more.
                    continue;
                }
                ready(world.service.revoke(&session("ada"), root.token.id(), Reason::Compromised))
                    .unwrap();
                assert_eq!(
                    reason_of(&world, leaf),
                    Some(Reason::Compromised),
                    "{ways:?} {order:?} {removal:?}"
                );
            }
        }
    }
}

#[test]
fn a_successor_that_its_owner_made_is_not_family_and_one_that_the_token_made_is() {
    let world = World::new();
    let root = world.issue("ada", named("root"));
    let child = join(&world, &root, Way::Made, "child");
    let kept =
        ready(world.service.rotate(&session("ada"), child.token.id(), Duration::ZERO)).unwrap();
    let other = join(&world, &root, Way::Made, "other");
    let taken = join(&world, &other, Way::RotatedItself, "other");
    for gone in [&child, &other] {
        remove(&world, gone.token.id(), Removal::Deleted);
    }
    ready(world.service.revoke(&session("ada"), root.token.id(), Reason::Compromised)).unwrap();
    assert_eq!(world.refusal(&kept), None);
    assert_eq!(reason_of(&world, &taken), Some(Reason::Compromised));
}

#[test]
fn a_token_that_its_owner_restored_again_is_no_longer_family() {
    let world = World::new();
    let root = world.issue("ada", named("root"));
    let restored = join(&world, &root, Way::Restored, "restored");
    let stored = world.stored(restored.token.id());
    assert_eq!(stored.restored_by, Some(root.token.id()));
    ready(world.service.revoke(&session("ada"), restored.token.id(), Reason::Owner)).unwrap();
    ready(world.service.restore(&session("ada"), restored.token.id())).unwrap();
    ready(world.service.revoke(&session("ada"), root.token.id(), Reason::Compromised)).unwrap();
    assert_eq!(world.refusal(&restored), None);
}

/// Otherwise a compromise and a restoration in flight could miss each other.
#[test]
fn a_restoration_moves_the_version_of_the_token_that_it_was_made_through() {
    let world = World::new();
    let root = world.issue("ada", named("root"));
    let before = world.stored(root.token.id()).version;
    join(&world, &root, Way::Restored, "restored");
    assert_eq!(world.stored(root.token.id()).version, before + 1);
}

/// The middle token has two parents: it was made through one token and restored through another.
#[test]
fn a_removed_member_hands_its_children_to_both_of_its_parents() {
    for removal in [Removal::Deleted, Removal::Pruned] {
        for reported in [0, 1] {
            let world = World::new();
            let parents =
                [world.issue("ada", named("maker")), world.issue("ada", named("restorer"))];
            let middle = join(&world, &parents[0], Way::Made, "middle");
            ready(world.service.revoke(&session("ada"), middle.token.id(), Reason::Owner)).unwrap();
            ready(world.service.restore(&world.through(&parents[1]), middle.token.id())).unwrap();
            let leaf = join(&world, &middle, Way::Made, "leaf");
            remove(&world, middle.token.id(), removal);
            let root = parents[reported].token.id();
            ready(world.service.revoke(&session("ada"), root, Reason::Compromised)).unwrap();
            assert_eq!(
                reason_of(&world, &leaf),
                Some(Reason::Compromised),
                "{removal:?} {reported}"
            );
        }
    }
}

/// The member between the root and the leaf is removed. A later restoration of the leaf in a
/// session does not cut the leaf off.
#[test]
fn a_child_that_was_handed_on_stays_family_when_its_owner_restores_it() {
    for removal in [Removal::Deleted, Removal::Pruned] {
        for ways in [
            [Way::Restored, Way::Made],
            [Way::Restored, Way::RotatedItself],
            [Way::Made, Way::Made],
        ] {
            let world = World::new();
            let root = world.issue("ada", named("root"));
            let middle = join(&world, &root, ways[0], "middle");
            let leaf = join(&world, &middle, ways[1], "leaf");
            remove(&world, middle.token.id(), removal);
            ready(world.service.revoke(&session("ada"), leaf.token.id(), Reason::Owner)).unwrap();
            ready(world.service.restore(&session("ada"), leaf.token.id())).unwrap();
            assert_eq!(world.refusal(&leaf), None, "{ways:?} {removal:?}");
            ready(world.service.revoke(&session("ada"), root.token.id(), Reason::Compromised))
                .unwrap();
            assert_eq!(reason_of(&world, &leaf), Some(Reason::Compromised), "{ways:?} {removal:?}");
        }
    }
}

#[test]
fn a_token_with_more_parents_than_a_record_has_room_for_is_suspected() {
    let world = World::new();
    let parents = ["a", "b", "c"].map(|name| world.issue("ada", named(name)));
    let middle = join(&world, &parents[0], Way::Made, "middle");
    let leaf = join(&world, &middle, Way::Made, "leaf");
    for (token, restorer) in [(&middle, &parents[1]), (&leaf, &parents[2])] {
        ready(world.service.revoke(&session("ada"), token.token.id(), Reason::Owner)).unwrap();
        ready(world.service.restore(&world.through(restorer), token.token.id())).unwrap();
    }
    remove(&world, middle.token.id(), Removal::Deleted);
    assert_eq!(reason_of(&world, &leaf), Some(Reason::Suspected));
    let suspected = Some(Reason::Suspected.as_str());
    assert!(world.events().iter().any(|event| {
        event.token == leaf.token.id()
            && event.action == AuditAction::Revoked
            && event.reason.as_deref() == suspected
    }));
}

/// How the member between the reused token and the leaf came from the reused token.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Link {
    /// The owner rotated the reused token.
    Successor,
    /// The reused token made the member.
    Child,
    /// The reused token restored the member.
    Restored,
}

/// How the leaf came from that member.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Below {
    Successor,
    Child,
    Restored,
}

#[test]
fn reuse_reaches_whatever_came_of_a_line_through_removed_members() {
    let mut cases = 0;
    for link in [Link::Successor, Link::Child, Link::Restored] {
        for below in [Below::Successor, Below::Child, Below::Restored] {
            for removal in [Removal::Deleted, Removal::Pruned] {
                for depth in 1..=3 {
                    reuse_reaches(link, below, removal, depth);
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, 54);
}

/// Checks that reuse of a rotated token reaches a leaf behind `depth` removed members.
fn reuse_reaches(link: Link, below: Below, removal: Removal, depth: usize) {
    let case = format!("{link:?}, {below:?}, {removal:?}, {depth}");
    let policy = TokenPolicy::builder().reuse(ReuseSignal::RevokeFamily, 30).build().unwrap();
    let world = World::with(policy);
    let service = &world.service;
    // The root ends last, so that pruning keeps it.
    let days = |days: u64| Duration::from_secs(days * 86_400);
    let rotate_with = |token: &IssuedToken, overlap| {
        ready(service.rotate(&session("ada"), token.token.id(), overlap)).unwrap()
    };
    let rotate = |token: &IssuedToken| rotate_with(token, Duration::ZERO);
    let root = world.issue("ada", named("root"));
    let mut member = match link {
        Link::Successor => rotate_with(&root, days(5)),
        Link::Child => join(&world, &root, Way::Made, "member"),
        Link::Restored => join(&world, &root, Way::Restored, "member"),
    };
    let mut removed = vec![member.token.id()];
    for _ in 1..depth {
        member = rotate(&member);
        removed.push(member.token.id());
    }
    let leaf = match below {
        Below::Successor => rotate(&member),
        Below::Child => join(&world, &member, Way::Made, "leaf"),
        Below::Restored => join(&world, &member, Way::Restored, "leaf"),
    };
    let bystander = world.issue("ada", named("bystander"));
    if link != Link::Successor {
        rotate_with(&root, days(5));
    }
    for id in &removed {
        if world.stored(*id).state(world.now()) == TokenState::Active {
            ready(service.revoke(&session("ada"), *id, Reason::Owner)).unwrap();
        }
    }
    match removal {
        Removal::Deleted => removed.iter().for_each(|id| remove(&world, *id, removal)),
        Removal::Pruned => {
            world.advance(TimeDelta::days(2));
            ready(service.prune(days(1))).unwrap();
        }
    }
    assert!(removed.iter().all(|id| world.find(*id).is_none()), "{case}");
    assert_eq!(reason_of(&world, &leaf), None, "{case}");

    world.advance(TimeDelta::days(6));
    assert_eq!(world.refusal(&root), Some(RejectReason::Expired), "{case}");
    assert_eq!(reason_of(&world, &leaf), Some(Reason::Reuse), "{case}");
    assert_eq!(reason_of(&world, &bystander), None, "{case}");
}

#[test]
fn the_compromise_of_a_predecessor_spares_what_its_removed_successor_made() {
    let world = World::new();
    let root = world.issue("ada", named("root"));
    let next =
        ready(world.service.rotate(&session("ada"), root.token.id(), Duration::ZERO)).unwrap();
    let leaf = join(&world, &next, Way::Made, "leaf");
    let last =
        ready(world.service.rotate(&session("ada"), next.token.id(), Duration::ZERO)).unwrap();
    remove(&world, next.token.id(), Removal::Deleted);
    assert_eq!(world.stored(leaf.token.id()).ancestor, Some(root.token.id()));

    for stolen in [&root, &last] {
        ready(world.service.revoke(&session("ada"), stolen.token.id(), Reason::Compromised))
            .unwrap();
    }
    assert_eq!(reason_of(&world, &leaf), None);
}

/// A restoration in a session clears only the restorer of a token, and no other ancestor.
#[test]
fn reuse_still_reaches_a_token_that_its_owner_restored_after_the_reused_one_had() {
    let policy = TokenPolicy::builder().reuse(ReuseSignal::RevokeFamily, 30).build().unwrap();
    let world = World::with(policy);
    let (ada, service) = (session("ada"), &world.service);
    let root = world.issue("ada", named("root"));
    let rotate = |token: &IssuedToken| {
        ready(service.rotate(&ada, token.token.id(), Duration::ZERO)).unwrap()
    };
    let member = join(&world, &root, Way::Made, "member");
    let next = rotate(&member);
    let leaf = join(&world, &next, Way::Made, "leaf");
    ready(service.revoke(&ada, leaf.token.id(), Reason::Owner)).unwrap();
    ready(service.restore(&world.through(&root), leaf.token.id())).unwrap();
    for removed in [&member, &next] {
        remove(&world, removed.token.id(), Removal::Deleted);
    }
    ready(service.revoke(&ada, leaf.token.id(), Reason::Owner)).unwrap();
    ready(service.restore(&ada, leaf.token.id())).unwrap();
    assert_eq!(world.stored(leaf.token.id()).restored_by, None);

    rotate(&root);
    assert_eq!(world.refusal(&root), Some(RejectReason::Revoked));
    assert_eq!(reason_of(&world, &leaf), Some(Reason::Reuse));
}

#[test]
fn pruning_is_stored_with_one_event_for_each_token() {
    let world = World::new();
    let tokens: Vec<TokenId> =
        (0..3).map(|number| world.token("ann", &format!("token {number}"))).collect();
    for token in &tokens {
        ready(world.service.revoke(&session("ann"), *token, Reason::Owner)).unwrap();
    }
    world.advance(TimeDelta::days(2));
    world.heard.take();
    assert_eq!(ready(world.service.prune(Duration::from_secs(86_400))).unwrap(), 3);
    let heard = world.heard.take();
    assert_eq!(heard.len(), 3);
    for token in &tokens {
        let is_told = |event: &&patkit::AuditEvent| {
            event.token == *token
                && event.action == AuditAction::Deleted
                && event.actor == ActorRef::System
        };
        assert_eq!(heard.iter().filter(is_told).count(), 1);
        assert_eq!(world.events().iter().filter(is_told).count(), 1);
    }
}

/// A former admin reports her own token. The tokens that it made for others are revoked, but not
/// for good.
#[test]
fn tokens_of_others_without_authority_over_them_are_suspected_and_an_admin_may_restore_them() {
    for is_demoted in [true, false] {
        let world = World::new();
        let root = world.issue("ada", named("root"));
        let through = world.through(&root);
        let service = named("service").scope(["datastores:read"]).for_service(id("bot"));
        let service = world.generate(&through, service).unwrap();
        let own = world.generate(&through, named("own")).unwrap();
        if is_demoted {
            world.put("ada", |ada| {
                ada.with_role("member").with_grants(grants(&["datastores:read"]))
            });
        }
        ready(world.service.revoke(&session("ada"), root.token.id(), Reason::Compromised)).unwrap();
        assert_eq!(reason_of(&world, &own), Some(Reason::Compromised));
        let expected = if is_demoted { Reason::Suspected } else { Reason::Compromised };
        assert_eq!(reason_of(&world, &service), Some(expected));
        assert_eq!(world.refusal(&service), Some(RejectReason::Revoked));
        world.put("mia", |mia| mia.with_role("admin").with_grants(grants(&["datastores:read"])));
        let restored = ready(world.service.restore(&session("mia"), service.token.id()));
        assert_eq!(restored.is_ok(), is_demoted);
        if is_demoted {
            assert_eq!(world.refusal(&service), None);
            // A suspected token may turn out to be compromised, and the host decides.
            ready(world.service.revoke(&Actor::system(), root.token.id(), Reason::Compromised))
                .unwrap();
            assert_eq!(reason_of(&world, &service), Some(Reason::Compromised));
        }
    }
}

#[test]
fn a_suspicion_takes_the_authority_of_an_admin_to_lift() {
    let world = World::new();
    let root = world.issue("ada", named("root"));
    let service = named("service").scope(["datastores:read"]).for_service(id("bot"));
    let service = world.generate(&world.through(&root), service).unwrap();
    world.put("ada", |ada| ada.with_role("member"));
    ready(world.service.revoke(&session("ada"), root.token.id(), Reason::Compromised)).unwrap();
    let revocation = world.facts(service.token.id()).revocation.unwrap();
    assert_eq!((revocation.reason, revocation.authority), (Reason::Suspected, Authority::Admin));
}
