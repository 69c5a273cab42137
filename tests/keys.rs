//! The check of the keyring against the store: wrong keys, missing keys, and the tokens left under
//! a key.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::large_futures,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use chrono::{DateTime, Utc};
use patkit::service::{CheckError, KeyReport, Unavailable};
use patkit::store::{ChangeBatch, KeyChecks, ListQuery, Page, Touch};
use patkit::token::{KeyCheck, KeyId};
use patkit::{
    Actor, Credential, IssuedToken, Keyring, ManageError, MemoryStore, NewToken, Realm, Reason,
    RejectReason, StoreError, Token, TokenId, TokenService, TokenStore, TokenView, VerifyError,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{World, beta, builder, home, id, nowhere, ready, session};

/// The key of the tests' world, which has the id 1.
const A: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const B: &str = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";
const C: &str = "QEFCQ0RFRkdISUpLTE1OT1BRUlNUVVZXWFlaW1xdXl8=";

fn keyring(keys: &[(u16, &str)]) -> Keyring {
    let keys: Vec<String> = keys.iter().map(|(id, key)| format!("{id}:{key}")).collect();
    Keyring::from_text(&keys.join(",")).unwrap()
}

/// Returns a node of the world with these keys.
fn node(world: &World, keys: &[(u16, &str)]) -> support::Service {
    let builder = builder(world.store.clone(), world.directory.clone(), world.clock.clone());
    builder
        .keyring(keyring(keys))
        .audit_refusals(1)
        .audit_sink(world.heard.clone())
        .build()
        .unwrap()
}

fn key(number: u16) -> KeyId {
    KeyId::new(number)
}

fn text(issued: &IssuedToken) -> &str {
    issued.plaintext.expose_secret()
}

/// Returns the token's text with the secret of another token.
fn wrong(issued: &IssuedToken, other: &IssuedToken) -> String {
    let format =
        patkit::token::TokenFormat::new(patkit::token::Brand::new("acme").unwrap(), &[]).unwrap();
    let front = text(issued).len() - 50;
    // Only the checksum has to be computed: CRC-32, in 6 digits of base62.
    let body = format!("{}{}", &text(issued)[..front], &text(other)[front..front + 44]);
    let mut crc = crc32fast::hash(body.as_bytes());
    let digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut sum = [b'0'; 6];
    for place in sum.iter_mut().rev() {
        *place = digits[usize::try_from(crc % 62).unwrap()];
        crc /= 62;
    }
    let text = format!("{body}{}", String::from_utf8(sum.to_vec()).unwrap());
    format.check(&text).unwrap();
    text
}

fn report(result: Result<KeyReport, CheckError>) -> KeyReport {
    match result {
        Err(CheckError::Keys(report)) => report,
        other => panic!("no wrong or missing key but {other:?}"),
    }
}

fn is_wrong_key<T>(result: &Result<T, VerifyError>, expected: u16) -> bool {
    matches!(result, Err(VerifyError::Unavailable(Unavailable::WrongKey(found))) if *found == key(expected))
}

fn reason<T>(result: Result<T, VerifyError>) -> Option<RejectReason> {
    result.err().and_then(|error| error.reject_reason())
}

#[test]
fn the_first_check_of_an_empty_store_records_the_keys_and_later_ones_find_them() {
    let world = World::new();
    for _ in 0..2 {
        let good = ready(node(&world, &[(2, B), (1, A)]).check()).unwrap();
        assert!(good.is_good());
        assert_eq!(good.tokens, [(key(1), 0), (key(2), 0)]);
    }
    // Only the key of each id matters, and not the order or the number of the keys.
    for good in [&[(1, A)][..], &[(2, B)], &[(1, A), (2, B)], &[(2, B), (3, C)]] {
        ready(node(&world, good).check()).unwrap();
    }
    for (keys, wrong) in [
        (&[(1, B)][..], &[1][..]),
        (&[(2, A)], &[2]),
        (&[(1, B), (2, A)], &[1, 2]),
        (&[(2, A), (1, B)], &[1, 2]),
        (&[(2, B), (1, C)], &[1]),
        (&[(4, C), (3, B), (1, A)], &[3]),
    ] {
        let report = report(ready(node(&world, keys).check()));
        assert_eq!(report.wrong, wrong.iter().copied().map(key).collect::<Vec<_>>(), "{keys:?}");
        assert!(report.missing.is_empty() && !report.is_good());
    }
    assert!(world.tokens().is_empty() && world.events().is_empty(), "a check changes no record");
}

#[test]
fn tokens_under_another_key_with_the_same_id_are_unavailable_and_never_a_wrong_secret() {
    let world = World::new();
    let [one, two, revoked, late] =
        ["one", "two", "revoked", "late"].map(|name| world.issue("ann", NewToken::named(name)));
    let robot = world.issue("bot", NewToken::named("robot"));
    ready(world.service.revoke(&Actor::system(), revoked.token.id(), Reason::System)).unwrap();
    ready(world.service.check()).unwrap();

    for keys in [&[(1, B)][..], &[(2, C), (1, B)], &[(1, B), (2, C)]] {
        let node = node(&world, keys);
        assert_eq!(
            reason(ready(node.verify(Credential::text(text(&one))))),
            Some(RejectReason::WrongSecret),
            "unchecked"
        );
        let report = report(ready(node.check()));
        assert_eq!((&report.wrong, &report.missing), (&vec![key(1)], &vec![]));
        assert_eq!(report.tokens_under(key(1)), 5);
        ready(node.flush()).unwrap();
        world.heard.take();
        let before = world.snapshot();
        for presented in
            [text(&one), text(&robot), text(&revoked), &wrong(&one, &two), &wrong(&revoked, &one)]
        {
            assert!(is_wrong_key(&ready(node.verify(Credential::text(presented))), 1));
            assert!(is_wrong_key(
                &ready(node.verify(Credential::headers(Some(&format!("Bearer {presented}"))))),
                1
            ));
            assert!(is_wrong_key(
                &ready(node.verify(Credential::text(presented).in_realm(&home()))),
                1
            ));
            // A token of another realm is unknown, whatever its key.
            let elsewhere = ready(node.verify(Credential::text(presented).in_realm(&beta())));
            assert_eq!(reason(elsewhere), Some(RejectReason::Unknown));
        }
        assert_eq!(
            reason(ready(node.verify(Credential::text("acme_pat_0")))),
            Some(RejectReason::Malformed)
        );
        let unknown = text(&one).replace(&one.token.id().to_string(), &nowhere().to_string());
        assert!(reason(ready(node.verify(Credential::text(&unknown)))).is_some());
        ready(node.flush()).unwrap();
        assert_eq!(
            (world.snapshot(), world.heard.take()),
            (before, Vec::new()),
            "nothing is told of a fault of the host"
        );
        assert_eq!(node.usage().pending, 0);
    }
    // With the right key, valid tokens verify again, and revoked tokens are still revoked.
    ready(world.service.verify(Credential::text(text(&late)))).unwrap();
    assert_eq!(
        reason(ready(world.service.verify(Credential::text(text(&revoked))))),
        Some(RejectReason::Revoked)
    );
}

#[test]
fn no_token_is_made_under_a_wrong_primary_key() {
    let world = World::new();
    let issued = world.issue("ann", NewToken::named("one"));
    ready(world.service.check()).unwrap();
    let before = world.snapshot();
    let node = node(&world, &[(1, B)]);
    report(ready(node.check()));
    let new = || NewToken::named("two");
    let robot = || new().for_service(id("bot"));
    let is_refused = |result: Result<IssuedToken, ManageError>| matches!(result, Err(ManageError::Unavailable(Unavailable::WrongKey(found))) if found == key(1));
    assert!(is_refused(ready(node.generate(&session("ann"), new()))));
    assert!(is_refused(ready(node.generate(&session("ada"), robot()))));
    assert!(is_refused(ready(node.generate(&Actor::system(), robot()))));
    assert!(is_refused(ready(node.rotate(&session("ann"), issued.token.id(), Duration::ZERO))));
    let within = node.within(MemoryStore::new());
    assert!(
        is_refused(ready(within.generate(&session("ann"), new()))),
        "in a transaction of the host's too"
    );
    assert_eq!(world.snapshot(), before);
    // Tokens can still be managed, because a leaked token has to be revoked.
    ready(node.revoke(&session("ann"), issued.token.id(), Reason::Compromised)).unwrap();
    // A wrong key that is not primary does not block the generation of tokens.
    let other = self::node(&world, &[(2, C), (1, B)]);
    report(ready(other.check()));
    let made = ready(other.generate(&session("ann"), new())).unwrap();
    ready(other.verify(Credential::text(text(&made)))).unwrap();
}

#[test]
fn no_digest_moves_to_a_wrong_key() {
    let world = World::new();
    let issued = world.issue("ann", NewToken::named("one"));
    ready(node(&world, &[(1, A), (2, B)]).check()).unwrap();
    let stored = || world.stored(issued.token.id()).digest.clone();
    let before = stored();
    // Verifies before and after the fault is known, and flushes after it.
    let node = node(&world, &[(2, C), (1, A)]);
    ready(node.verify(Credential::text(text(&issued)))).unwrap();
    assert_eq!(report(ready(node.check())).wrong, [key(2)]);
    ready(node.flush()).unwrap();
    assert_eq!(stored(), before);
    world.advance(chrono::TimeDelta::hours(1));
    ready(node.verify(Credential::text(text(&issued)))).unwrap();
    ready(node.flush()).unwrap();
    assert_eq!(stored(), before);
    let right = self::node(&world, &[(2, B), (1, A)]);
    ready(right.check()).unwrap();
    ready(right.verify(Credential::text(text(&issued)))).unwrap();
    ready(right.flush()).unwrap();
    assert_ne!(stored(), before);
    ready(self::node(&world, &[(2, B)]).verify(Credential::text(text(&issued)))).unwrap();
}

#[test]
fn keys_that_records_need_and_the_keyring_lacks_are_reported_with_their_number() {
    let world = World::new();
    world.token("ann", "one");
    ready(world.service.check()).unwrap();
    let both = node(&world, &[(3, C), (1, A)]);
    for name in ["two", "three"] {
        ready(both.generate(&session("ann"), NewToken::named(name))).unwrap();
    }
    let good = ready(both.check()).unwrap();
    assert_eq!(good.tokens, [(key(1), 1), (key(3), 2)]);
    assert_eq!(good.to_string(), "1 token under key 1, 2 tokens under key 3");
    assert_eq!((good.tokens_under(key(3)), good.tokens_under(key(2))), (2, 0));

    let lacking = report(ready(node(&world, &[(2, B)]).check()));
    assert_eq!((lacking.wrong.len(), lacking.missing.as_slice()), (0, &[key(1), key(3)][..]));
    assert_eq!(lacking.tokens, [(key(1), 1), (key(2), 0), (key(3), 2)]);
    let error = CheckError::Keys(lacking);
    assert_eq!(
        error.to_string(),
        "the keyring has no key 1, which 1 token needs: add key 1 to the keyring, or remove the tokens under it if its secret \
         is lost; the keyring has no key 3, which 2 tokens need: add key 3 to the keyring, or remove the tokens under it if \
         its secret is lost"
    );
    let both_faults = report(ready(node(&world, &[(3, A)]).check()));
    assert_eq!(
        (both_faults.wrong.as_slice(), both_faults.missing.as_slice()),
        (&[key(3)][..], &[key(1)][..])
    );
    let text = CheckError::Keys(both_faults).to_string();
    assert!(
        text.starts_with("key 3 of the keyring is not the key that this store knows as key 3"),
        "{text}"
    );
    assert!(text.contains("restore the secret of key 3") && text.contains("add key 1"), "{text}");
    for secret in [A, B, C] {
        assert!(!text.contains(&secret[..8]));
    }
}

/// The store is from an older version, or was never checked.
#[test]
fn the_first_check_believes_the_keyring() {
    let world = World::new();
    let issued = world.issue("ann", NewToken::named("one"));
    let wrong = node(&world, &[(1, B)]);
    assert_eq!(ready(wrong.check()).unwrap().tokens_under(key(1)), 1);
    assert_eq!(
        reason(ready(wrong.verify(Credential::text(text(&issued))))),
        Some(RejectReason::WrongSecret)
    );
    assert_eq!(report(ready(world.service.check())).wrong, [key(1)]);
}

#[test]
fn the_tokens_under_a_key_are_listed_realm_by_realm_and_page_by_page() {
    let world = World::new();
    let (old, new) = (node(&world, &[(1, A), (2, B)]), node(&world, &[(2, B), (1, A)]));
    let mut under_one = Vec::new();
    for number in 0..7 {
        let name = NewToken::named(&format!("token {number}"));
        let in_beta = Actor::signed_in_to(beta(), id("ann"));
        // Puts 0 to 2 tokens of the other realm in between, so that a page of the store holds more
        // or fewer tokens of one realm than are left.
        for copy in 0..number % 3 {
            ready(old.generate(&in_beta, NewToken::named(&format!("token {number} {copy}"))))
                .unwrap();
        }
        let issued = ready(old.generate(&session("ann"), name)).unwrap();
        under_one.push((issued.token.id(), text(&issued).to_owned()));
        let other = NewToken::named(&format!("other {number}"));
        ready(new.generate(&session("ann"), other)).unwrap();
    }
    ready(old.revoke(&session("ann"), under_one[3].0, Reason::Owner)).unwrap();
    under_one.reverse();
    let listed = |realm: &Realm, number: u16, limit: usize| {
        let (mut ids, mut next): (Vec<TokenId>, _) = (Vec::new(), None);
        loop {
            let page = ready(new.list_under_key(realm, key(number), next, limit)).unwrap();
            assert!(page.items.len() <= limit && page.corrupt.is_empty());
            assert!(
                page.items.iter().all(|token| token.realm() == realm && token.owner().is_some())
            );
            ids.extend(page.items.iter().map(TokenView::id));
            next = page.next;
            if next.is_none() {
                return ids;
            }
        }
    };
    let expected: Vec<TokenId> = under_one.iter().map(|(id, _)| *id).collect();
    for limit in [1, 2, 3, 6, 7, 8, 50] {
        assert_eq!(listed(&home(), 1, limit), expected, "{limit}");
        assert_eq!(listed(&beta(), 1, limit).len(), 6);
        assert_eq!(listed(&home(), 2, limit).len(), 7);
        assert_eq!(listed(&beta(), 2, limit), []);
        assert_eq!(listed(&home(), 9, limit), []);
    }
    // A verification moves its token to the new key, so that the token is no longer listed.
    ready(new.verify(Credential::text(&under_one[0].1))).unwrap();
    ready(new.flush()).unwrap();
    assert_eq!(listed(&home(), 1, 50), expected[1..]);
    assert_eq!(ready(new.check()).unwrap().tokens, [(key(1), 12), (key(2), 8)]);
}

/// A store whose key checks can fail, change behind the service's back, or be recorded by another
/// node at the same time.
#[derive(Default)]
struct Shaky {
    inner: MemoryStore,
    checks: Mutex<Vec<KeyCheck>>,
    /// Key checks that another node records between this node's first read and its own record.
    rival: Mutex<Vec<KeyCheck>>,
    /// Keys that the store names although no record is under them.
    unused: Mutex<Vec<KeyId>>,
    is_down: AtomicBool,
}

impl KeyChecks for Shaky {
    async fn key_checks(&self) -> Result<Vec<KeyCheck>, StoreError> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err(StoreError::unavailable("down"));
        }
        let known = self.checks.lock().unwrap().clone();
        self.checks.lock().unwrap().append(&mut self.rival.lock().unwrap());
        Ok(known)
    }

    async fn record_key_check(&self, check: &KeyCheck) -> Result<(), StoreError> {
        let mut checks = self.checks.lock().unwrap();
        if !checks.iter().any(|known| known.key() == check.key()) {
            checks.push(*check);
        }
        Ok(())
    }

    async fn tokens_per_key(&self) -> Result<Vec<(KeyId, u64)>, StoreError> {
        let mut counts = self.inner.tokens_per_key().await?;
        counts.extend(self.unused.lock().unwrap().iter().map(|key| (*key, 0)));
        Ok(counts)
    }
}

impl TokenStore for Shaky {
    async fn find(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.inner.find(id).await
    }

    async fn find_current(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.inner.find_current(id).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        self.inner.list(query).await
    }

    async fn commit(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        self.inner.commit(batch).await
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        self.inner.touch(uses).await
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        self.inner.list_ended(before, limit).await
    }
}

#[test]
fn what_the_last_check_found_holds_until_the_next_one_that_gets_an_answer() {
    let world = World::new();
    let store = Arc::new(Shaky::default());
    let node = |keys| {
        TokenService::builder(store.clone(), world.directory.clone())
            .brand("acme")
            .keyring(keyring(keys))
            .clock(world.clock.clone())
            .build()
            .unwrap()
    };
    let (right, wrong) = (node(&[(1, A)]), node(&[(1, B)]));
    let issued = ready(right.generate(&session("ann"), NewToken::named("one"))).unwrap();
    store.is_down.store(true, Ordering::SeqCst);
    let down = ready(right.check()).unwrap_err();
    assert!(matches!(down, CheckError::Store(StoreError::Unavailable(_))), "{down:?}");
    ready(right.verify(Credential::text(text(&issued)))).unwrap();

    store.is_down.store(false, Ordering::SeqCst);
    ready(right.check()).unwrap();
    report(ready(wrong.check()));
    assert!(is_wrong_key(&ready(wrong.verify(Credential::text(text(&issued)))), 1));
    store.is_down.store(true, Ordering::SeqCst);
    ready(wrong.check()).unwrap_err();
    assert!(is_wrong_key(&ready(wrong.verify(Credential::text(text(&issued)))), 1), "still");
    // The host discards the old tokens and their check value, and starts over.
    store.is_down.store(false, Ordering::SeqCst);
    store.checks.lock().unwrap().clear();
    ready(wrong.check()).unwrap();
    assert_eq!(
        reason(ready(wrong.verify(Credential::text(text(&issued))))),
        Some(RejectReason::WrongSecret)
    );
    let made = ready(wrong.generate(&session("ann"), NewToken::named("two"))).unwrap();
    ready(wrong.verify(Credential::text(text(&made)))).unwrap();
}

/// A store may name a key that has no records any more.
#[test]
fn a_key_without_records_is_not_missing() {
    let world = World::new();
    let store = Arc::new(Shaky::default());
    *store.unused.lock().unwrap() = vec![key(7)];
    let builder = TokenService::builder(store, world.directory.clone()).brand("acme");
    let node = builder.keyring(keyring(&[(1, A)])).build().unwrap();
    let found = ready(node.check()).unwrap();
    assert_eq!((found.missing, found.tokens), (vec![], vec![(key(1), 0)]));
}

#[test]
fn of_two_nodes_with_different_keys_that_check_first_at_once_one_is_wrong() {
    let world = World::new();
    let value_of = |keys: &[(u16, &str)]| {
        let store = Arc::new(MemoryStore::new());
        let other = builder(store.clone(), world.directory.clone(), world.clock.clone());
        ready(other.keyring(keyring(keys)).build().unwrap().check()).unwrap();
        ready(store.key_checks()).unwrap()
    };
    for (rival, wrong) in [(B, vec![key(1)]), (A, vec![])] {
        let store = Arc::new(Shaky::default());
        *store.rival.lock().unwrap() = value_of(&[(1, rival)]);
        let node = TokenService::builder(store.clone(), world.directory.clone())
            .brand("acme")
            .keyring(keyring(&[(1, A)]))
            .build()
            .unwrap();
        let found = match ready(node.check()) {
            Ok(report) | Err(CheckError::Keys(report)) => report,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(found.wrong, wrong);
    }
}

#[test]
fn a_check_value_differs_by_key_and_by_id_and_shows_nothing() {
    let world = World::new();
    ready(node(&world, &[(1, A), (2, B), (3, C)]).check()).unwrap();
    let other = World::new();
    ready(node(&other, &[(2, A), (1, B)]).check()).unwrap();
    let values = |world: &World| ready(world.store.key_checks()).unwrap();
    let all: Vec<[u8; 16]> =
        [values(&world), values(&other)].concat().iter().map(|check| *check.value()).collect();
    for (index, value) in all.iter().enumerate() {
        assert!(!all[index + 1..].contains(value));
    }
    let shown = format!("{:?}", values(&world));
    assert_eq!(shown, "[KeyCheck(key 1, …), KeyCheck(key 2, …), KeyCheck(key 3, …)]");
}
