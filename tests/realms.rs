//! Realms are isolated: anything in another realm answers like something that does not exist.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use patkit::policy::Oversight;
use patkit::service::TokenEdit;
use patkit::store::{AuditLog, EventQuery};
use patkit::{
    Actor, Credential, Directory, DirectoryError, IssuedToken, ManageError, NewToken, Owner,
    OwnerCache, OwnerId, OwnerKind, Realm, Reason, RejectReason, TokenId, TokenPolicy, VerifyError,
};
use std::sync::Arc;
use std::time::Duration;
use support::{World, beta, builder, home, id, nowhere, ready};

fn world() -> World {
    let policy = TokenPolicy::builder().oversight(Oversight::RevokeOnly).build().unwrap();
    World::built(|builder| builder.policy(policy).audit_refusals(1)).unwrap()
}

/// Returns actors of the other realm: with all permissions and with none, in sessions and through
/// tokens, and the host.
fn foreigners(world: &World) -> Vec<(&'static str, Actor)> {
    let inherit = world.issue_in(&beta(), "ada", NewToken::named("via"));
    let service = world.issue_in(&beta(), "robot", NewToken::named("via"));
    let narrow = world.issue_in(&beta(), "ann", NewToken::named("via").scope(["tokens:manage"]));
    vec![
        ("the same id", Actor::signed_in_to(beta(), id("ann"))),
        ("an admin", Actor::signed_in_to(beta(), id("ada"))),
        ("nobody much", Actor::signed_in_to(beta(), id("nil"))),
        ("internal", Actor::signed_in_to(beta(), id("core"))),
        ("service", Actor::signed_in_to(beta(), id("robot"))),
        ("disabled", Actor::signed_in_to(beta(), id("off"))),
        ("unknown", Actor::signed_in_to(beta(), id("ghost"))),
        ("an admin's token", world.through(&inherit)),
        ("a service token", world.through(&service)),
        ("a token of the same id", world.through(&narrow)),
        ("the host", Actor::system_in(beta())),
    ]
}

type Operate = fn(&World, &Actor, TokenId) -> Result<(), ManageError>;

const OPERATIONS: [(&str, Operate); 13] = [
    ("get", |world, actor, id| ready(world.service.get(actor, id)).map(drop)),
    ("rename", |world, actor, id| ready(world.service.rename(actor, id, "x")).map(drop)),
    ("rename to what is refused", |world, actor, id| {
        ready(world.service.rename(actor, id, "")).map(drop)
    }),
    ("describe", |world, actor, id| {
        ready(world.service.edit(actor, id, TokenEdit::new().description("x"))).map(drop)
    }),
    ("revoke", |world, actor, id| {
        ready(world.service.edit(actor, id, TokenEdit::new().active(false))).map(drop)
    }),
    ("revoke as owner", |world, actor, id| {
        ready(world.service.revoke(actor, id, Reason::Owner)).map(drop)
    }),
    ("compromise", |world, actor, id| {
        ready(world.service.revoke(actor, id, Reason::Compromised)).map(drop)
    }),
    ("revoke as rotated", |world, actor, id| {
        ready(world.service.revoke(actor, id, Reason::Rotated)).map(drop)
    }),
    ("restore", |world, actor, id| ready(world.service.restore(actor, id)).map(drop)),
    ("rotate", |world, actor, id| ready(world.service.rotate(actor, id, Duration::ZERO)).map(drop)),
    ("rotate with too much overlap", |world, actor, id| {
        ready(world.service.rotate(actor, id, Duration::MAX)).map(drop)
    }),
    ("delete", |world, actor, id| ready(world.service.delete(actor, id))),
    ("an empty edit", |world, actor, id| {
        ready(world.service.edit(actor, id, TokenEdit::new())).map(drop)
    }),
];

/// Makes tokens of every state and kind in the default realm.
fn natives(world: &World) -> Vec<IssuedToken> {
    let ann = Actor::signed_in(id("ann"));
    let active = world.issue("ann", NewToken::named("active"));
    let service = world.issue("bot", NewToken::named("service"));
    let revoked = world.issue("ann", NewToken::named("revoked"));
    ready(world.service.revoke(&ann, revoked.token.id(), Reason::Owner)).unwrap();
    let rotated = world.issue("ann", NewToken::named("rotated"));
    let successor =
        ready(world.service.rotate(&ann, rotated.token.id(), Duration::from_secs(60))).unwrap();
    let expired = world.issue("ann", NewToken::named("expired").expires_in_days(1));
    let expiry = expired.token.expires_at();
    world.force(expired.token.id(), |token| {
        token.facts.expires_at = Some(token.created_at);
    });
    assert!(expiry.is_some());
    vec![active, service, revoked, rotated, successor, expired]
}

#[test]
fn every_operation_on_a_token_of_another_realm_answers_like_one_on_nothing() {
    let world = world();
    let natives = natives(&world);
    for (who, actor) in foreigners(&world) {
        for (operation, operate) in OPERATIONS {
            let before = world.snapshot();
            let on_nothing = operate(&world, &actor, nowhere()).unwrap_err();
            for token in &natives {
                let error = operate(&world, &actor, token.token.id()).unwrap_err();
                let label = format!("{operation} by {who} of {}", token.token.name());
                assert_eq!(format!("{error:?}"), format!("{on_nothing:?}"), "{label}");
                assert_eq!(error.to_string(), on_nothing.to_string(), "{label}");
            }
            assert_eq!(world.snapshot(), before, "{operation} by {who}");
        }
    }
    assert!(world.heard.all().iter().all(|event| event.realm == home()));
}

#[test]
fn the_same_operations_work_within_the_realm() {
    // Shows that the test above does not pass for lack of permissions.
    let world = world();
    let token = world.issue_in(&beta(), "ann", NewToken::named("a")).token.id();
    let ann = Actor::signed_in_to(beta(), id("ann"));
    for operation in ["get", "rename", "describe", "revoke", "restore", "compromise", "delete"] {
        let (_, operate) = OPERATIONS.iter().find(|each| each.0 == operation).unwrap();
        operate(&world, &ann, token).unwrap();
    }
}

#[test]
fn lists_of_another_realm_are_empty() {
    let world = world();
    natives(&world);
    let (ada, ann) =
        (Actor::signed_in_to(beta(), id("ada")), Actor::signed_in_to(beta(), id("ann")));
    let ids = world.tokens().into_iter().map(|token| token.id);
    // Any cursor, including the ids of the other realm.
    for after in ids.map(Some).chain([None, Some(nowhere())]) {
        let pages = [
            ready(world.service.list(&ann, after, 200)).unwrap(),
            ready(world.service.list(&ada, after, 200)).unwrap(),
            ready(world.service.list_service(&ada, after, 200)).unwrap(),
            ready(world.service.list_overseen(&ada, &id("ann"), after, 200)).unwrap(),
        ];
        for page in pages {
            assert!(page.items.is_empty() && page.corrupt.is_empty() && page.next.is_none());
        }
    }
    let mine = world.issue_in(&beta(), "ann", NewToken::named("mine")).token.id();
    let page = ready(world.service.list(&ann, None, 200)).unwrap();
    assert_eq!(page.items.iter().map(patkit::TokenView::id).collect::<Vec<_>>(), [mine]);
    assert!(page.items.iter().all(|entry| *entry.realm() == beta()));
}

#[test]
fn verifying_in_another_realm_answers_like_nothing() {
    let world = world();
    let natives = natives(&world);
    let deleted = world.issue("ann", NewToken::named("deleted"));
    ready(world.service.revoke(&Actor::signed_in(id("ann")), deleted.token.id(), Reason::Owner))
        .unwrap();
    ready(world.service.delete(&Actor::signed_in(id("ann")), deleted.token.id())).unwrap();
    let verify = |token: &IssuedToken, realm: &Realm| {
        let text = token.plaintext.expose_secret();
        match ready(world.service.verify(Credential::text(text).in_realm(realm))) {
            Err(VerifyError::Rejected(rejected)) => {
                assert_eq!(rejected.token, Some(token.token.id()));
                (rejected.reason, rejected.to_string())
            }
            other => panic!("{other:?}"),
        }
    };
    let before = world.snapshot();
    let unknown = verify(&deleted, &beta());
    assert_eq!(unknown.0, RejectReason::Unknown);
    for token in &natives {
        assert_eq!(verify(token, &beta()), unknown, "{}", token.token.name());
        assert_eq!(verify(token, &Realm::new("nowhere").unwrap()), unknown);
    }
    // No use, refusal or reuse is recorded.
    ready(world.service.flush()).unwrap();
    assert_eq!(world.snapshot(), before);
    let text = natives[0].plaintext.expose_secret();
    let verified = ready(world.service.verify(Credential::text(text).in_realm(&home()))).unwrap();
    assert_eq!(*verified.realm(), home());
}

#[test]
fn the_same_name_and_the_same_owner_id_in_two_realms_are_two() {
    let world = world();
    let here = world.generate(&Actor::signed_in(id("ann")), NewToken::named("a")).unwrap();
    let there =
        world.generate(&Actor::signed_in_to(beta(), id("ann")), NewToken::named("a")).unwrap();
    assert_ne!(here.token.id(), there.token.id());
    assert_eq!((here.token.realm(), there.token.realm()), (&home(), &beta()));
    let owner = |token: &IssuedToken| world.verify(token).unwrap().owner().clone();
    assert_eq!(*owner(&here).realm(), home());
    assert_eq!(*owner(&there).realm(), beta());
    // The owner is disabled in one realm and enabled in the other.
    world.put("ann", |ann| ann.with_role("member").with_enabled(false));
    assert_eq!(world.refusal(&here), Some(RejectReason::OwnerDisabled));
    assert_eq!(world.refusal(&there), None);
}

#[test]
fn an_owner_of_one_realm_is_unknown_in_the_other() {
    let world = world();
    world.put("local", |owner| owner.with_role("admin"));
    world.directory.put(Owner::new(id("local-bot"), OwnerKind::Service));
    ready(world.service.list(&Actor::signed_in(id("local")), None, 1)).unwrap();
    let local =
        ready(world.service.list(&Actor::signed_in_to(beta(), id("local")), None, 1)).unwrap_err();
    let ghost =
        ready(world.service.list(&Actor::signed_in_to(beta(), id("ghost")), None, 1)).unwrap_err();
    assert_eq!(format!("{local:?}"), format!("{ghost:?}"));
    let ada = Actor::signed_in_to(beta(), id("ada"));
    let make = |owner: &str| {
        world.generate(&ada, NewToken::named("a").for_service(id(owner))).unwrap_err()
    };
    assert_eq!(format!("{:?}", make("local-bot")), format!("{:?}", make("ghost")));
    assert_eq!(make("local-bot").to_string(), make("ghost").to_string());
    let page = ready(world.service.list_overseen(&ada, &id("local"), None, 1)).unwrap();
    assert!(page.items.is_empty(), "like the list of nobody");
}

#[test]
fn what_the_host_does_to_an_owner_stays_in_the_realm() {
    let world = world();
    let here = world.issue("ann", NewToken::named("a"));
    let there = world.issue_in(&beta(), "ann", NewToken::named("a"));
    let of = |realm: &Realm| {
        let tokens: Vec<_> =
            world.tokens().into_iter().filter(|token| token.realm == *realm).collect();
        (tokens, world.events_in(realm))
    };
    let before = of(&home());
    assert_eq!(ready(world.service.revoke_all(&beta(), &id("ann"))).unwrap(), 1);
    assert_eq!(world.refusal(&there), Some(RejectReason::Revoked));
    assert_eq!(ready(world.service.erase_owner(&beta(), &id("ann"))).unwrap(), 1);
    assert_eq!(of(&home()), before);
    assert_eq!(world.refusal(&here), None);
    assert_eq!(
        ready(world.service.erase_owner(&Realm::new("nowhere").unwrap(), &id("ann"))).unwrap(),
        0
    );
    assert_eq!(of(&home()), before);
}

#[test]
fn the_audit_of_one_realm_says_nothing_of_the_other() {
    let world = world();
    let token = world.token("ann", "a");
    let events = |realm: &Realm, token| {
        let mut query = EventQuery::new(realm.clone());
        query.token = token;
        ready(world.store.events(&query)).unwrap().events
    };
    assert_eq!(events(&home(), Some(token)).len(), 1);
    assert_eq!(events(&beta(), Some(token)), vec![]);
    assert_eq!(events(&beta(), None), vec![]);
    world.issue_in(&beta(), "ann", NewToken::named("b"));
    assert!(events(&beta(), None).iter().all(|event| event.realm == beta()));
    assert_eq!(events(&beta(), None).len(), 1);
}

/// Answers every lookup with the owner of the default realm.
struct Careless(Arc<Owner>);

impl Directory for Careless {
    async fn find(
        &self,
        _realm: &Realm,
        _id: &OwnerId,
    ) -> Result<Option<Arc<Owner>>, DirectoryError> {
        Ok(Some(self.0.clone()))
    }
}

#[test]
fn an_owner_of_another_realm_or_id_was_not_found() {
    let world = world();
    let token = world.issue_in(&beta(), "ann", NewToken::named("a"));
    let ann = Arc::new(Owner::new(id("ann"), OwnerKind::Human).with_role("admin"));
    let service = patkit::TokenService::builder(world.store.clone(), Careless(ann.clone()))
        .brand("acme")
        .keyring(
            patkit::Keyring::from_text("1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap(),
        )
        .clock(world.clock.clone())
        .build()
        .unwrap();
    let verified = ready(service.verify(Credential::text(token.plaintext.expose_secret())));
    assert_eq!(verified.unwrap_err().reject_reason(), Some(RejectReason::OwnerUnknown));
    for actor in [Actor::signed_in_to(beta(), id("ann")), Actor::signed_in(id("bob"))] {
        let listed = ready(service.list(&actor, None, 1));
        let Err(ManageError::ActorRejected(rejected)) = listed else { panic!("{listed:?}") };
        assert_eq!(rejected.reason, RejectReason::OwnerUnknown);
    }
    ready(service.list(&Actor::signed_in(id("ann")), None, 1)).unwrap();
    // A cache does not store the wrong answer for the requested owner.
    let cache = OwnerCache::builder(Careless(ann))
        .lifetime(Duration::from_secs(60))
        .capacity(16)
        .build()
        .unwrap();
    for _ in 0..2 {
        assert!(ready(cache.find(&beta(), &id("ann"))).unwrap().is_none());
        assert!(ready(cache.find(&home(), &id("bob"))).unwrap().is_none());
        assert!(ready(cache.find(&home(), &id("ann"))).unwrap().is_some());
    }
}

#[test]
fn a_cache_of_owners_keeps_realms_apart() {
    let world = world();
    let cache = OwnerCache::builder(world.directory.clone())
        .lifetime(Duration::from_secs(60))
        .capacity(64)
        .clock(world.clock.clone())
        .build()
        .unwrap();
    for realm in [home(), beta()] {
        for _ in 0..2 {
            let owner = ready(cache.find(&realm, &id("ann"))).unwrap().unwrap();
            assert_eq!(*owner.realm(), realm);
        }
    }
    assert_eq!(cache.len(), 2);
    cache.invalidate_owner(&beta(), &id("ann"));
    assert_eq!(cache.len(), 1);
    assert_eq!(*ready(cache.find(&home(), &id("ann"))).unwrap().unwrap().realm(), home());
}

#[test]
fn a_host_without_tenants_never_sees_a_realm() {
    let world = world();
    let made = world.generate(&Actor::signed_in(id("ann")), NewToken::named("a")).unwrap();
    assert_eq!(made.token.realm().as_str(), "");
    assert_eq!(*world.verify(&made).unwrap().realm(), Realm::default());
    // The default realm has no name that a caller could pass.
    assert!(Realm::new("").is_err());
    let same =
        builder(world.store.clone(), world.directory.clone(), world.clock.clone()).build().unwrap();
    ready(same.verify(Credential::text(made.plaintext.expose_secret()))).unwrap();
}

#[test]
fn a_token_of_another_realm_whose_key_is_missing_is_unknown() {
    let world = World::new();
    let token = world.issue("ann", NewToken::named("a"));
    let other_keys =
        patkit::Keyring::from_text("2:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=").unwrap();
    let service = builder(world.store.clone(), world.directory.clone(), world.clock.clone())
        .keyring(other_keys)
        .build()
        .unwrap();
    let error =
        ready(service.verify(Credential::text(token.plaintext.expose_secret()).in_realm(&beta())))
            .unwrap_err();
    assert_eq!(error.reject_reason(), Some(RejectReason::Unknown), "{error:?}");
}

#[test]
fn an_owner_that_the_directory_cannot_answer_for_fails_no_list() {
    let world = World::new();
    let (bot, robot) = (world.token("bot", "one"), world.token("robot", "two"));
    let gone = world.token("ann", "three");
    let broken = FailsForOne { inner: world.directory.clone(), failing: "bot" };
    let service = patkit::TokenService::builder(world.store.clone(), broken)
        .brand("acme")
        .keyring(
            patkit::Keyring::from_text("1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap(),
        )
        .clock(world.clock.clone())
        .build()
        .unwrap();
    world.directory.remove(&home(), &id("ann"));
    let page = ready(service.list(&Actor::system(), None, 10)).unwrap();
    let rows: Vec<_> = page
        .items
        .iter()
        .map(|row| (row.id(), row.owner().is_some(), row.owner_unavailable()))
        .collect();
    assert_eq!(rows, [(gone, false, false), (robot, true, false), (bot, false, true)]);
    let json = |row: usize| serde_json::to_value(&page.items[row]).unwrap()["user"].clone();
    assert_eq!(
        json(2),
        serde_json::json!({"id": "bot", "name": null, "kind": "service", "unavailable": true})
    );
    assert_eq!(json(0), serde_json::json!({"id": "ann", "name": null, "kind": "human"}));
    let page = ready(service.list_service(&support::session("ada"), None, 10)).unwrap();
    assert_eq!(page.items.len(), 2);
    // A single token and the result of a change show it too.
    assert!(ready(service.get(&Actor::system(), bot)).unwrap().owner_unavailable());
    let revoked = ready(service.revoke(&Actor::system(), bot, Reason::System)).unwrap();
    assert!(revoked.owner_unavailable() && revoked.owner().is_none());
}

/// A directory that fails for one owner.
struct FailsForOne {
    inner: Arc<patkit::MemoryDirectory>,
    failing: &'static str,
}

impl Directory for FailsForOne {
    async fn find(
        &self,
        realm: &Realm,
        id: &OwnerId,
    ) -> Result<Option<Arc<Owner>>, DirectoryError> {
        if id.as_str() == self.failing {
            return Err(DirectoryError::new("the directory is down"));
        }
        self.inner.find(realm, id).await
    }
}

#[test]
fn a_recheck_finds_no_token_that_is_in_another_realm_by_now() {
    let world = world();
    let issued = world.issue("ann", NewToken::named("a"));
    let verified = world.verify(&issued).unwrap();
    ready(world.service.recheck(&verified)).unwrap();
    world.force(issued.token.id(), |token| token.realm = beta());
    let error = ready(world.service.recheck(&verified)).unwrap_err();
    assert_eq!(error.reject_reason(), Some(RejectReason::Unknown));
}
