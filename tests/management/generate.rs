//! Generation: creators, owners, names, ids, scopes under `scim:`, and the limit of live tokens.

use super::ids;
use chrono::TimeDelta;
use patkit::service::{InvalidInput, TokenEdit};
use patkit::token::ActorRef;
use patkit::{
    Actor, ManageError, NewToken, Owner, OwnerId, OwnerKind, Reason, TokenId, TokenPolicy,
    TokenState,
};
use std::time::Duration;
use support::{World, beta, id, ready, session, start};

#[test]
fn the_creator_is_recorded() {
    let world = World::new();
    let by_session = world.generate(&session("ann"), NewToken::named("a")).unwrap();
    assert_eq!(*by_session.token.created_by(), ActorRef::Owner(id("ann")));
    let via = world.issue("ada", NewToken::named("via"));
    let actor = world.through(&via);
    let expected = ActorRef::Token { owner: id("ada"), id: via.token.id() };
    let personal = world.generate(&actor, NewToken::named("b")).unwrap();
    let service = NewToken::named("c").scope([""; 0]).for_service(id("bot"));
    let service = world.generate(&actor, service).unwrap();
    for made in [&personal, &service] {
        assert_eq!(*made.token.created_by(), expected);
        assert_eq!(world.stored(made.token.id()).created_by, expected);
    }
}

#[test]
fn a_scope_that_covers_scim_takes_its_own_permission() {
    let world = World::new();
    for (scope, covers) in [
        (vec!["scim:*"], true),
        (vec!["scim:users"], true),
        (vec!["datastores:read", "scim:users:read"], true),
        (vec!["*"], true),
        (vec!["scim"], false),
        (vec!["scimitar:*"], false),
        (vec![], false),
    ] {
        let new = || NewToken::named(&format!("{scope:?}")).scope(scope.iter().copied());
        let for_bot = || new().for_service(id("bot"));
        // `ann` and `robot` may manage tokens of their kind but lack `tokens:scim`; `ada` has all
        // permissions.
        for (actor, asked) in [(session("ann"), new()), (session("robot"), for_bot())] {
            match world.generate(&actor, asked) {
                Err(ManageError::Forbidden { permission }) => {
                    assert_eq!((permission, covers), ("tokens:scim", true));
                }
                result => assert!(result.is_ok() && !covers, "{scope:?}: {result:?}"),
            }
        }
        world.generate(&session("ada"), new()).unwrap();
        if covers {
            world.generate(&session("ada"), for_bot()).unwrap();
        }
    }
    // Restores and rotates a token that somebody else made.
    let token = world.issue("ann", NewToken::named("scim").scim_only()).token.id();
    let rotated = ready(world.service.rotate(&session("ann"), token, Duration::ZERO));
    assert!(matches!(rotated, Err(ManageError::Forbidden { permission: "tokens:scim" })));
    ready(world.service.revoke(&session("ann"), token, Reason::Owner)).unwrap();
    let restored = ready(world.service.restore(&session("ann"), token));
    assert!(matches!(restored, Err(ManageError::Forbidden { permission: "tokens:scim" })));
    assert_eq!(world.stored(token).state(world.now()), TokenState::Revoked);
}

#[test]
fn the_limit_of_live_tokens_counts_what_is_active_and_has_no_successor() {
    let policy = TokenPolicy::builder().live_tokens_per_owner(2).build().unwrap();
    let world = World::with(policy);
    let ann = session("ann");
    let generate = |name: &str| world.generate(&ann, NewToken::named(name).expires_in_days(10));
    let full = |result: Result<(), ManageError>| {
        assert!(matches!(result, Err(ManageError::TooManyTokens { most: 2 })), "{result:?}");
    };
    let first = generate("1").unwrap().token.id();
    let second = generate("2").unwrap().token.id();
    let before = world.snapshot();
    full(generate("3").map(drop));
    assert_eq!(world.snapshot(), before);
    // Other owners have limits of their own.
    world.generate(&session("bob"), NewToken::named("1")).unwrap();
    world.generate(&Actor::signed_in_to(beta(), id("ann")), NewToken::named("1")).unwrap();
    let service = |name: &str| NewToken::named(name).for_service(id("bot"));
    world.generate(&session("ada"), service("1")).unwrap();
    world.generate(&session("ada"), service("2")).unwrap();
    full(world.generate(&session("ada"), service("3")).map(drop));
    // A revoked token makes room, and a restored token needs room.
    ready(world.service.revoke(&ann, first, Reason::Owner)).unwrap();
    let third = generate("3").unwrap().token.id();
    full(ready(world.service.restore(&ann, first)).map(drop));
    full(ready(world.service.edit(&ann, first, TokenEdit::new().active(true))).map(drop));
    // A rotation needs no room, and a token in its overlap takes none.
    let hour = Duration::from_secs(3_600);
    let fourth = ready(world.service.rotate(&ann, third, hour)).unwrap().token.id();
    assert_eq!(world.stored(third).state(world.now()), TokenState::Active);
    full(generate("5").map(drop));
    ready(world.service.revoke(&ann, fourth, Reason::Owner)).unwrap();
    generate("5").unwrap();
    full(generate("6").map(drop));
    // An expired token makes room.
    world.clock.set(world.facts(second).expires_at.unwrap());
    generate("7").unwrap();
    generate("8").unwrap();
    full(generate("9").map(drop));
}

#[test]
fn names_are_unique_for_realm_owner_and_kind_among_what_is_not_deleted() {
    let world = World::new();
    let ann = session("ann");
    let generate =
        |name: &str| world.generate(&ann, NewToken::named(name)).map(|made| made.token.id());
    let taken = |result: Result<TokenId, ManageError>| {
        assert!(matches!(result, Err(ManageError::NameTaken)), "{result:?}");
    };
    let first = generate("Straße").unwrap();
    for same in ["Straße", "STRASSE", "strasse ", "stra\u{AD}sse", "ｓtrasse"] {
        let before = world.snapshot();
        taken(generate(same));
        assert_eq!(world.snapshot(), before);
    }
    let second = generate("b").unwrap();
    taken(ready(world.service.rename(&ann, second, "STRASSE")).map(|view| view.id()));
    ready(world.service.rename(&ann, first, "STRASSE")).unwrap();
    assert_eq!(world.stored(first).name.as_str(), "STRASSE", "its own name in another form");
    // Another owner, another kind and another realm may have the same name.
    world.generate(&session("bob"), NewToken::named("b")).unwrap();
    world.generate(&session("ada"), NewToken::named("b").for_service(id("bot"))).unwrap();
    world.generate(&session("ada"), NewToken::named("b").for_service(id("robot"))).unwrap();
    world.generate(&Actor::signed_in_to(beta(), id("ann")), NewToken::named("b")).unwrap();
    // A revoked or expired token keeps its name, and a deleted one does not.
    ready(world.service.revoke(&ann, second, Reason::Owner)).unwrap();
    taken(generate("b"));
    ready(world.service.delete(&ann, second)).unwrap();
    let second = generate("b").unwrap();
    world.clock.set(world.facts(second).expires_at.unwrap());
    taken(generate("b"));
    ready(world.service.delete(&ann, second)).unwrap();
    generate("b").unwrap();
}

#[test]
fn an_owner_of_the_wrong_kind_gets_no_token() {
    let world = World::new();
    let ada = session("ada");
    let cases: [(&str, Option<OwnerKind>); 4] = [
        ("ann", Some(OwnerKind::Human)),
        ("core", Some(OwnerKind::Internal)),
        ("bot", None),
        ("robot", None),
    ];
    for (owner, refused) in cases {
        let before = world.snapshot();
        let result = world.generate(&ada, NewToken::named("a").for_service(id(owner)));
        match (result, refused) {
            (Ok(_), None) => {}
            (Err(ManageError::Invalid(InvalidInput::OwnerKind(kind))), Some(expected)) => {
                assert_eq!(kind, expected);
                assert_eq!(world.snapshot(), before);
            }
            (result, _) => panic!("{owner}: {result:?}"),
        }
    }
    // A personal token for an owner that is not human but has all permissions.
    for (owner, kind) in [("bot", OwnerKind::Service), ("core", OwnerKind::Internal)] {
        world.put(owner, |owner| owner.with_role("admin"));
        match world.generate(&session(owner), NewToken::named("b")) {
            Err(ManageError::Invalid(InvalidInput::OwnerKind(refused))) => {
                assert_eq!(refused, kind);
            }
            result => panic!("{owner}: {result:?}"),
        }
    }
    let nobody: OwnerId = id("ghost");
    let unknown = world.generate(&ada, NewToken::named("c").for_service(nobody));
    assert!(matches!(unknown, Err(ManageError::Invalid(InvalidInput::OwnerUnknown))));
    world.put("bot", |bot| bot.with_enabled(false));
    let disabled = world.generate(&ada, NewToken::named("d").for_service(id("bot")));
    assert!(matches!(disabled, Err(ManageError::Invalid(InvalidInput::OwnerDisabled))));
}

#[test]
fn the_limit_of_live_tokens_counts_both_kinds_together() {
    let policy = TokenPolicy::builder().live_tokens_per_owner(2).build().unwrap();
    let world = World::with(policy);
    // The host changes the kind of the owner.
    world.issue("bot", NewToken::named("as a service"));
    let second = world.issue("bot", NewToken::named("second")).token.id();
    world.directory.put(Owner::new(id("bot"), OwnerKind::Human).with_role("member"));
    let bot = session("bot");
    let error = world.generate(&bot, NewToken::named("as a human")).unwrap_err();
    assert!(matches!(error, ManageError::TooManyTokens { most: 2 }), "{error:?}");
    assert!(error.is_conflict());
    ready(world.service.revoke(&Actor::system(), second, Reason::System)).unwrap();
    world.generate(&bot, NewToken::named("as a human")).unwrap();
    let error = ready(world.service.restore(&Actor::system(), second)).unwrap_err();
    assert!(matches!(error, ManageError::TooManyTokens { most: 2 }), "{error:?}");
}

#[test]
fn ids_increase_with_a_clock_that_stands_still_or_goes_back_also_within_a_transaction() {
    let world = World::new();
    let mut made = Vec::new();
    for number in 0..100 {
        let within = world.service.within(world.store.clone());
        let name = |part: &str| NewToken::named(&format!("{part} {number}"));
        made.push(world.generate(&session("ann"), name("outside")).unwrap().token.id());
        made.push(ready(within.generate(&session("ann"), name("within"))).unwrap().token.id());
        let uncommitted = within.into_uncommitted();
        world.service.after_commit(&uncommitted);
        if number % 10 == 9 {
            world.clock.set(start() - TimeDelta::seconds(number));
        }
    }
    assert!(made.is_sorted_by(|one, other| one < other));
    let page = ready(world.service.list(&session("ann"), None, 200)).unwrap();
    assert!(ids(&page).into_iter().rev().eq(made), "newest first");
}
