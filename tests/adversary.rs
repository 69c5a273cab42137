//! Adversaries that act at the worst moment: between what an operation reads and what it writes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::type_complexity,
    clippy::arithmetic_side_effects
)]

use chrono::{DateTime, TimeDelta, Utc};
use patkit::audit::AuditAction;
use patkit::owner::MemoryDirectory;
use patkit::policy::ReuseSignal;
use patkit::service::Attenuation;
use patkit::store::{ChangeBatch, CorruptRecord, ListQuery, Page, Touch};
use patkit::{
    Actor, Credential, Keyring, ManageError, MemoryStore, NewToken, Reason, RejectReason,
    StoreError, Token, TokenId, TokenPolicy, TokenService, TokenState, TokenStore,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{World, home, id, ready, session};

/// A store with hooks after each list and before each commit, a corrupt record, and slow touches.
struct Watched {
    inner: Arc<MemoryStore>,
    after_list: Mutex<Option<Box<dyn FnMut() + Send>>>,
    before_commit: Mutex<Option<Box<dyn FnMut() + Send>>>,
    corrupt: Mutex<Option<TokenId>>,
}

impl TokenStore for Watched {
    async fn find(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        if *self.corrupt.lock().unwrap() == Some(id) {
            return Err(StoreError::Corrupt(CorruptRecord::new(
                "tokens",
                "scope",
                &id.to_string(),
            )));
        }
        self.inner.find(id).await
    }

    async fn find_current(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.find(id).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        let page = self.inner.list(query).await;
        if let Some(act) = self.after_list.lock().unwrap().as_mut() {
            act();
        }
        page
    }

    async fn commit(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        if let Some(act) = self.before_commit.lock().unwrap().as_mut() {
            act();
        }
        self.inner.commit(batch).await
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        // Delays a small batch longer, so that it does not overtake a large one.
        let wait = if uses.len() < 1_000 { 50 } else { 20 };
        if tokio::runtime::Handle::try_current().is_ok() {
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
        self.inner.touch(uses).await
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        self.inner.list_ended(before, limit).await
    }
}

type Service = TokenService<Arc<Watched>, Arc<MemoryDirectory>>;

const OLD_KEY: &str = "1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn watched(world: &World, policy: TokenPolicy, keys: &str) -> (Arc<Watched>, Arc<Service>) {
    let store = Arc::new(Watched {
        inner: world.store.clone(),
        after_list: Mutex::default(),
        before_commit: Mutex::default(),
        corrupt: Mutex::default(),
    });
    let builder = TokenService::builder(store.clone(), world.directory.clone())
        .brand("acme")
        .audit_refusals(1);
    let builder = builder
        .policy(policy)
        .clock(world.clock.clone())
        .keyring(Keyring::from_text(keys).unwrap());
    (store, Arc::new(builder.build().unwrap()))
}

fn revoking() -> TokenPolicy {
    TokenPolicy::builder().reuse(ReuseSignal::RevokeFamily, 30).build().unwrap()
}

/// Renames a token through itself after each list, so that its version changes before each commit.
fn keep_renaming(world: &Arc<World>, store: &Watched, through: Actor, token: TokenId) {
    let (world, count) = (world.clone(), AtomicUsize::new(0));
    *store.after_list.lock().unwrap() = Some(Box::new(move || {
        let name = format!("renamed {}", count.fetch_add(1, Ordering::SeqCst));
        ready(world.service.rename(&through, token, &name)).map(drop).unwrap_or_default();
    }));
}

#[test]
fn nobody_holds_off_the_revocation_of_a_token_by_changing_it() {
    for reason in [Reason::Owner, Reason::Compromised] {
        let world = Arc::new(World::new());
        let token = world.issue("ann", NewToken::named("token"));
        let (store, service) = watched(&world, TokenPolicy::default(), OLD_KEY);
        let (other, thief, tries) = (world.clone(), world.through(&token), AtomicUsize::new(0));
        let id = token.token.id();
        // The thief's change wins against the commit 1,000 times.
        *store.before_commit.lock().unwrap() = Some(Box::new(move || {
            let number = tries.fetch_add(1, Ordering::SeqCst);
            if number < 1_000 {
                ready(other.service.rename(&thief, id, &format!("renamed {number}"))).unwrap();
            }
        }));
        ready(service.revoke(&session("ann"), id, reason)).unwrap();
        assert!(world.verify(&token).is_err());
    }
}

#[test]
fn a_successor_that_is_deleted_while_reuse_is_followed_takes_nobody_out_of_the_line() {
    let world = Arc::new(World::new());
    let (store, service) = watched(&world, revoking(), OLD_KEY);
    let rotate = |id| ready(service.rotate(&session("ann"), id, Duration::ZERO)).unwrap();
    let first = world.issue("ann", NewToken::named("a"));
    let second = rotate(first.token.id());
    let third = rotate(second.token.id());
    let (other, gone) = (world.clone(), second.token.id());
    *store.after_list.lock().unwrap() = Some(Box::new(move || {
        ready(other.service.delete(&session("ann"), gone)).unwrap_or_default();
    }));
    assert!(ready(service.verify(Credential::text(first.plaintext.expose_secret()))).is_err());
    *store.after_list.lock().unwrap() = None;
    assert!(world.find(gone).is_none());
    assert!(world.verify(&third).is_err(), "it is still of the line");
}

#[test]
fn nobody_holds_off_a_compromise_by_changing_a_member() {
    for actor in [session("ann"), Actor::system()] {
        let world = Arc::new(World::new());
        let root = world.issue("ann", NewToken::named("root"));
        let kid = world.generate(&world.through(&root), NewToken::named("kid")).unwrap();
        let grandchild =
            world.generate(&world.through(&kid), NewToken::named("grandchild")).unwrap();
        let (store, service) = watched(&world, TokenPolicy::default(), OLD_KEY);
        keep_renaming(&world, &store, world.through(&kid), kid.token.id());
        ready(service.revoke(&actor, root.token.id(), Reason::Compromised)).unwrap();
        for token in [&root, &kid, &grandchild] {
            assert_eq!(
                world.facts(token.token.id()).revocation.unwrap().reason,
                Reason::Compromised
            );
        }
    }
}

#[test]
fn nobody_holds_off_the_signal_of_reuse_by_changing_a_member() {
    let world = Arc::new(World::with(revoking()));
    let root = world.issue("ann", NewToken::named("root"));
    let kid = world.generate(&world.through(&root), NewToken::named("kid")).unwrap();
    let next =
        ready(world.service.rotate(&session("ann"), root.token.id(), Duration::ZERO)).unwrap();
    let (store, service) = watched(&world, revoking(), OLD_KEY);
    keep_renaming(&world, &store, world.through(&kid), kid.token.id());
    assert!(ready(service.verify(Credential::text(root.plaintext.expose_secret()))).is_err());
    let told = world.events().iter().filter(|event| event.action == AuditAction::Reuse).count();
    assert_eq!(told, 1);
    for token in [&kid, &next] {
        assert_eq!(world.facts(token.token.id()).revocation.unwrap().reason, Reason::Reuse);
    }
}

#[test]
fn a_member_that_is_deleted_meanwhile_hides_nobody() {
    let world = Arc::new(World::with(revoking()));
    let root = world.issue("ann", NewToken::named("root"));
    let kid = world.generate(&world.through(&root), NewToken::named("kid")).unwrap();
    let grandchild = world.generate(&world.through(&kid), NewToken::named("grandchild")).unwrap();
    ready(world.service.revoke(&session("ann"), kid.token.id(), Reason::Owner)).unwrap();
    let next =
        ready(world.service.rotate(&session("ann"), root.token.id(), Duration::ZERO)).unwrap();
    let (store, service) = watched(&world, revoking(), OLD_KEY);
    let (other, kid) = (world.clone(), kid.token.id());
    *store.after_list.lock().unwrap() = Some(Box::new(move || {
        ready(other.service.delete(&session("ann"), kid)).unwrap_or_default();
    }));
    assert!(ready(service.verify(Credential::text(root.plaintext.expose_secret()))).is_err());
    assert_eq!(world.refusal(&next), Some(RejectReason::Revoked));
    assert_eq!(world.refusal(&grandchild), Some(RejectReason::Revoked));
}

#[test]
fn a_thief_cannot_delete_the_token_that_he_stole_through_its_child() {
    let world = World::new();
    let stolen = world.issue("ann", NewToken::named("stolen"));
    let child = world.generate(&world.through(&stolen), NewToken::named("child")).unwrap();
    let thief = world.through(&child);
    ready(world.service.revoke(&thief, stolen.token.id(), Reason::Owner)).unwrap();
    let refused = ready(world.service.delete(&thief, stolen.token.id()));
    assert!(matches!(refused, Err(ManageError::Attenuation(Attenuation::Family))), "{refused:?}");
    ready(world.service.revoke(&session("ann"), stolen.token.id(), Reason::Compromised)).unwrap();
    assert_eq!(world.refusal(&child), Some(RejectReason::Revoked));
    // The owner may delete the token in a session.
    ready(world.service.delete(&session("ann"), stolen.token.id())).unwrap();
}

#[test]
fn a_thief_cannot_hide_a_rotation_by_deleting_what_he_rotated() {
    let world = World::with(revoking());
    let stolen = world.issue("ann", NewToken::named("stolen"));
    let thief = world.through(&stolen);
    let next = ready(world.service.rotate(&thief, stolen.token.id(), Duration::ZERO)).unwrap();
    let refused = ready(world.service.delete(&world.through(&next), stolen.token.id()));
    assert!(matches!(refused, Err(ManageError::Attenuation(Attenuation::Family))), "{refused:?}");
    assert_eq!(
        world.refusal(&stolen),
        Some(RejectReason::Revoked),
        "the rightful owner presents it"
    );
    assert_eq!(world.refusal(&next), Some(RejectReason::Revoked));
}

#[test]
fn a_token_made_while_its_owner_takes_leave_does_not_stay() {
    for erase in [false, true] {
        let world = Arc::new(World::new());
        world.token("ann", "old");
        let (store, service) = watched(&world, TokenPolicy::default(), OLD_KEY);
        let (other, once) = (world.clone(), AtomicUsize::new(0));
        *store.after_list.lock().unwrap() = Some(Box::new(move || {
            if once.fetch_add(1, Ordering::SeqCst) == 0 {
                other.token("ann", "late");
            }
        }));
        let count = if erase {
            ready(service.erase_owner(&home(), &id("ann")))
        } else {
            ready(service.revoke_all(&home(), &id("ann")))
        };
        assert_eq!(count.unwrap(), 2);
        assert!(world.tokens().iter().all(|token| token.state(world.now()) == TokenState::Revoked));
        assert_eq!(world.tokens().is_empty(), erase);
    }
}

#[test]
fn one_record_that_turns_corrupt_keeps_no_flush_from_writing_the_rest() {
    let world = World::new();
    let policy = TokenPolicy::builder().idle_limit_days(1).build().unwrap();
    let (store, service) = watched(
        &world,
        policy,
        &format!("2:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8,{OLD_KEY}"),
    );
    let corrupt = world.issue("ann", NewToken::named("corrupt"));
    let expired = world.issue("ann", NewToken::named("expired"));
    let moved = world.issue("ann", NewToken::named("moved"));
    for token in [&corrupt, &moved] {
        ready(service.verify(Credential::text(token.plaintext.expose_secret()))).unwrap();
    }
    *store.corrupt.lock().unwrap() = Some(corrupt.token.id());
    world.force(expired.token.id(), |token| token.facts.expires_at = Some(world.now()));
    assert!(ready(service.verify(Credential::text(expired.plaintext.expose_secret()))).is_err());
    assert!(ready(service.flush()).is_err(), "it is told once");
    let count = |action| world.events().iter().filter(|event| event.action == action).count();
    assert_eq!((count(AuditAction::Refused), count(AuditAction::Redigested)), (1, 1));
    assert!(ready(service.flush()).is_ok(), "and then over");
    world.advance(TimeDelta::days(2));
    assert!(ready(service.sweep_idle()).unwrap() > 0);
}

#[tokio::test]
async fn a_shutdown_that_says_so_has_written_everything() {
    let world = World::new();
    let issue = |number| world.issue("ann", NewToken::named(&format!("token {number}")));
    let tokens: Vec<_> = (0..1_500).map(issue).collect();
    let (_, service) = watched(&world, TokenPolicy::default(), OLD_KEY);
    let flusher = service.clone();
    let flusher = tokio::spawn(async move { flusher.run_flusher(tokio::time::sleep).await });
    tokio::time::sleep(Duration::from_millis(5)).await;
    for token in &tokens {
        service.verify(Credential::text(token.plaintext.expose_secret())).await.unwrap();
    }
    let early = service.clone();
    let early = tokio::spawn(async move { early.flush().await });
    tokio::task::yield_now().await;
    service.shutdown().await.unwrap();
    assert!(world.tokens().iter().all(|token| token.last_used.is_some()));
    early.await.unwrap().unwrap();
    flusher.await.unwrap();
}

#[tokio::test]
async fn a_shutdown_waits_for_a_flush_that_began_after_it() {
    let world = World::new();
    let issue = |number| world.issue("ann", NewToken::named(&format!("token {number}")));
    let tokens: Vec<_> = (0..1_500).map(issue).collect();
    let (_, service) = watched(&world, TokenPolicy::default(), OLD_KEY);
    for token in &tokens {
        service.verify(Credential::text(token.plaintext.expose_secret())).await.unwrap();
    }
    let stopping = service.clone();
    let stopping = tokio::spawn(async move { stopping.shutdown().await });
    tokio::task::yield_now().await;
    assert_eq!(service.usage().pending, 500, "the shutdown has taken its first batch");
    let late = service.clone();
    let late = tokio::spawn(async move { late.flush().await });
    // The rest is in the late flush, whose smaller batch takes longer.
    stopping.await.unwrap().unwrap();
    assert!(world.tokens().iter().all(|token| token.last_used.is_some()));
    late.await.unwrap().unwrap();
}
