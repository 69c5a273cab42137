//! Pruning of records that ended.

use chrono::{DateTime, TimeDelta, Utc};
use patkit::store::{Change, ChangeBatch, ListQuery, Page, StoreError, Touch};
use patkit::{NewToken, Reason, Token, TokenId, TokenStore};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::{World, ready, session};

/// Counts the lists of ended tokens, and records the largest one.
struct Counting {
    store: Arc<patkit::MemoryStore>,
    lists: AtomicUsize,
    largest: AtomicUsize,
}

impl TokenStore for Counting {
    async fn find(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.store.find(id).await
    }

    async fn find_current(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.find(id).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        self.store.list(query).await
    }

    async fn commit(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        self.store.commit(batch).await
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        self.store.touch(uses).await
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        let page = self.store.list_ended(before, limit).await?;
        self.lists.fetch_add(1, Ordering::SeqCst);
        self.largest.fetch_max(page.tokens.len().max(limit), Ordering::SeqCst);
        Ok(page)
    }
}

#[test]
fn pruning_goes_in_bounded_batches_until_nothing_is_left() {
    let world = World::new();
    let made = world.issue("ann", NewToken::named("model"));
    let model = world.stored(made.token.id());
    ready(world.service.revoke(&session("ann"), made.token.id(), Reason::Owner)).unwrap();
    // 1,700 revoked copies of the token.
    let mut batch = ChangeBatch::new();
    for number in 0_u16..1_700 {
        let mut bytes = model.id.to_bytes();
        bytes[14..].copy_from_slice(&number.to_be_bytes());
        bytes[9] ^= 1;
        let mut token = Token {
            id: TokenId::from_bytes(bytes).unwrap(),
            facts: world.facts(model.id),
            ..Token::clone(&model)
        };
        token.rename(patkit::token::TokenName::new(&format!("copy {number}")).unwrap());
        batch = batch.change(Change::Insert(Arc::new(token)));
    }
    ready(world.store.commit(&batch)).unwrap();
    let alive = world.issue("ann", NewToken::named("alive"));
    world.advance(TimeDelta::days(2));
    let counting = Arc::new(Counting {
        store: world.store.clone(),
        lists: AtomicUsize::new(0),
        largest: AtomicUsize::new(0),
    });
    let service = patkit::TokenService::builder(counting.clone(), world.directory.clone())
        .brand("acme")
        .keyring(patkit::Keyring::ephemeral().unwrap())
        .clock(world.clock.clone())
        .build()
        .unwrap();
    assert_eq!(ready(service.prune(Duration::from_secs(3 * 86_400))).unwrap(), 0, "not that long");
    assert_eq!(world.store.len(), 1_702);
    assert_eq!(ready(service.prune(Duration::from_secs(86_400))).unwrap(), 1_701);
    assert_eq!(world.store.len(), 1);
    assert!(world.find(alive.token.id()).is_some());
    assert!(counting.largest.load(Ordering::SeqCst) <= 500);
    assert!(counting.lists.load(Ordering::SeqCst) >= 4);
}

#[test]
fn pruning_takes_what_ended_long_enough_ago_to_the_microsecond() {
    let tick = TimeDelta::microseconds(1);
    let age = TimeDelta::days(30);
    for (waited, removed) in [(age - tick, 0), (age, 2), (age + tick, 2)] {
        let world = World::new();
        let expired = world.issue("ann", NewToken::named("expired").expires_in_days(1));
        let revoked = world.issue("ann", NewToken::named("revoked"));
        let active = world.issue("ann", NewToken::named("active"));
        world.advance(TimeDelta::days(1));
        ready(world.service.revoke(&session("ann"), revoked.token.id(), Reason::Owner)).unwrap();
        world.advance(waited);
        assert_eq!(ready(world.service.prune(age.to_std().unwrap())).unwrap(), removed, "{waited}");
        assert_eq!(world.find(expired.token.id()).is_none(), removed == 2);
        assert!(world.find(active.token.id()).is_some());
    }
}

#[test]
fn pruning_never_takes_what_has_not_ended() {
    let world = World::new();
    world.token("ann", "a");
    for age in [Duration::ZERO, Duration::from_secs(86_400), Duration::MAX] {
        assert_eq!(ready(world.service.prune(age)).unwrap(), 0, "{age:?}");
    }
    assert_eq!(world.store.len(), 1);
}
