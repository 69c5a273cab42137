//! Operations of the host.

use super::ids;
use patkit::service::InvalidInput;
use patkit::token::ActorRef;
use patkit::{Actor, ManageError, NewToken, OwnerKind, Reason, TokenId, TokenKind};
use support::{World, beta, home, id, ready, session, start};

#[test]
fn the_host_lists_counts_and_gets_everything_of_its_realm() {
    let world = World::new();
    // Personal and service tokens alternate, with many of one kind before and after them, and with
    // tokens of another realm in between.
    for number in 0..23 {
        let owner = if number % 2 == 0 || !(5..=12).contains(&number) { "ann" } else { "bot" };
        world.issue(owner, NewToken::named(&format!("{number}")));
        world.issue_in(&beta(), owner, NewToken::named(&format!("{number}")));
    }
    let all: Vec<TokenId> =
        world.tokens().iter().filter(|token| token.realm == home()).map(|token| token.id).collect();
    assert_eq!(all.len(), 23);
    for limit in [0, 1, 2, 3, 5, 22, 23, 24, 200, usize::MAX] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = ready(world.service.list(&Actor::system(), after, limit)).unwrap();
            assert!(page.items.len() <= limit.clamp(1, 200));
            seen.extend(ids(&page));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen, all, "{limit}");
    }
    for id in &all {
        assert_eq!(ready(world.service.get(&Actor::system(), *id)).unwrap().id(), *id);
        let other = ready(world.service.get(&Actor::system_in(beta()), *id));
        assert!(matches!(other, Err(ManageError::NotFound)));
    }
    let of = |name: &str| {
        let page =
            ready(world.service.list_overseen(&Actor::system(), &id(name), None, 200)).unwrap();
        ids(&page)
    };
    assert_eq!((of("ann").len(), of("bot").len(), of("ghost").len()), (19, 4, 0));
    assert_eq!(
        ids(&ready(world.service.list_service(&Actor::system(), None, 200)).unwrap()),
        of("bot")
    );
    // Revoked and expired tokens are listed and counted too.
    let counts = |actor: &Actor| {
        let counts = ready(world.service.count(actor)).unwrap();
        (counts.active, counts.revoked, counts.expired)
    };
    assert_eq!(counts(&Actor::system()), (23, 0, 0));
    ready(world.service.revoke(&Actor::system(), all[0], Reason::System)).unwrap();
    world.force(all[1], |token| token.facts.expires_at = Some(start()));
    assert_eq!(counts(&Actor::system()), (21, 1, 1));
    assert_eq!(counts(&Actor::system_in(beta())), (23, 0, 0));
    // An owner counts only its own tokens.
    assert_eq!(counts(&session("ann")), (17, 1, 1));
    assert_eq!(counts(&session("bob")), (0, 0, 0));
    let refused = ready(world.service.count(&session("nil")));
    assert!(
        matches!(refused, Err(ManageError::Forbidden { permission: "tokens:manage" })),
        "{refused:?}"
    );
}

#[test]
fn the_host_makes_the_first_service_token_and_no_other() {
    let world = World::new();
    let system = Actor::system();
    let issued = world.generate(&system, NewToken::named("first").for_service(id("bot"))).unwrap();
    assert_eq!(world.refusal(&issued), None);
    let stored = world.stored(issued.token.id());
    assert_eq!((&stored.created_by, stored.kind), (&ActorRef::System, TokenKind::Service));
    // A scope under `scim:` is allowed too, because nobody else could make the first such token.
    world.generate(&system, NewToken::named("scim").for_service(id("bot")).scim_only()).unwrap();
    let refused = world.generate(&system, NewToken::named("personal"));
    assert!(matches!(refused, Err(ManageError::NotForHost)), "{refused:?}");
    for (owner, expected) in [("ann", OwnerKind::Human), ("core", OwnerKind::Internal)] {
        let refused = world.generate(&system, NewToken::named("x").for_service(id(owner)));
        let Err(ManageError::Invalid(InvalidInput::OwnerKind(kind))) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(kind, expected);
    }
    let refused = world.generate(&system, NewToken::named("x").for_service(id("ghost")));
    assert!(
        matches!(refused, Err(ManageError::Invalid(InvalidInput::OwnerUnknown))),
        "{refused:?}"
    );
}
