//! The hot paths allocate nothing once they are warm.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test"
)]

use chrono::{DateTime, Utc};
use http::{HeaderValue, Request, Response};
use http_body_util::Either;
use patkit::http::{Authenticator, Connection};
use patkit::owner::{DirectoryError, DynDirectory, Realm};
use patkit::store::{
    Change, ChangeBatch, DynTokenStore, ListBy, ListQuery, Page, StoreError, Touch,
};
use patkit::token::{ActorRef, Brand, TokenFormat, TokenName};
use patkit::{
    Actor, Credential, Directory, Keyring, MemoryDirectory, MemoryStore, NewToken, Owner,
    OwnerCache, OwnerId, OwnerKind, Permission, RoleCatalog, Token, TokenId, TokenKind,
    TokenService, TokenStore, TokenView, Verified,
};
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tower_layer::Layer;
use tower_service::Service;

fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the memory store waited"),
    }
}

fn allocations(work: impl FnMut()) -> u64 {
    allocation_counter::measure(work).count_total
}

fn directory() -> MemoryDirectory {
    [Owner::new(ada(), OwnerKind::Human).with_role("member")].into_iter().collect()
}

fn ada() -> OwnerId {
    OwnerId::new("ada").unwrap()
}

fn service<S: TokenStore, D: Directory>(store: S, directory: D) -> TokenService<S, D> {
    let roles = RoleCatalog::standard_builder().grant("member", ["datastores:read"]);
    let roles = roles.role("storage").grant("storage", ["datastores:*"]).build().unwrap();
    let builder = TokenService::builder(store, directory).brand("acme").roles(roles);
    builder.keyring(Keyring::ephemeral().unwrap()).build().unwrap()
}

fn headers<S: TokenStore, D: Directory>(service: &TokenService<S, D>, count: usize) -> Vec<String> {
    let make = |n| {
        let new = NewToken::named(&format!("token {n}"))
            .scope(["datastores:*"])
            .networks(["10.0.0.0/8", "::1"]);
        let issued = ready(service.generate(&Actor::signed_in(ada()), new)).unwrap();
        format!("Bearer {}", issued.plaintext.expose_secret())
    };
    (0..count).map(make).collect()
}

#[test]
fn a_verification_allocates_nothing_once_warm() {
    let service = service(MemoryStore::new(), directory());
    let headers = headers(&service, 100);
    let peer = Some([10, 1, 2, 3].into());
    let verify = |header: &String| {
        ready(service.verify(Credential::headers(Some(header)).from_address(peer))).unwrap()
    };
    // Warm-up: the first use of each token is recorded, and a second one within the granularity is
    // not.
    for header in &headers {
        drop(verify(header));
    }
    let read = Permission::parse("datastores:read").unwrap();
    let count = allocations(|| {
        for header in &headers {
            let verified = verify(header);
            assert!(verified.allows(&read));
            assert!(verified.require("datastores:read").is_ok());
            assert_eq!(verified.token().owner_id(), verified.owner().id());
        }
    });
    assert_eq!(count, 0);

    ready(service.flush()).unwrap();
    assert_eq!(allocations(|| headers.iter().map(verify).for_each(drop)), 0, "after a flush");
    let verified = verify(&headers[0]);
    assert_eq!(allocations(|| drop(ready(service.recheck(&verified)).unwrap())), 0, "a recheck");
    assert_eq!(allocations(|| drop(verified.clone())), 0, "a clone");
}

/// The service of a host, which answers at once. It cannot be cloned without a panic.
struct Answer;

impl Clone for Answer {
    fn clone(&self) -> Self {
        panic!("the layer cloned the service")
    }
}

impl Service<Request<()>> for Answer {
    type Response = Response<bool>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<bool>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        std::future::ready(Ok(Response::new(request.extensions().get::<Verified>().is_some())))
    }
}

#[test]
fn a_request_through_the_layer_allocates_twice_and_clones_no_service() {
    let service = Arc::new(service(MemoryStore::new(), directory()));
    let header = HeaderValue::try_from(headers(&service, 1).remove(0)).unwrap();
    let request = |has_token: bool| {
        let mut request = Request::new(());
        let header = if has_token { header.clone() } else { HeaderValue::from_static("Basic x") };
        request.headers_mut().insert("authorization", header);
        request.extensions_mut().insert(Connection([10, 1, 2, 3].into()));
        request
    };
    let authenticator = Authenticator::new(service);
    let mut required = authenticator.required().layer(Answer);
    let mut optional = authenticator.optional().layer(Answer);
    let mut bare = Answer;
    // Warm-up.
    ready(required.call(request(true))).unwrap();
    for _ in 0..3 {
        let made = allocations(|| drop(ready(bare.call(request(true)))));
        let through = allocations(|| {
            let answer = ready(required.call(request(true))).unwrap();
            assert!(matches!(answer.into_body(), Either::Left(true)));
        });
        // The verified token, and the mark that the layer has seen the request.
        assert_eq!(through - made, 2);
        let made = allocations(|| drop(ready(bare.call(request(false)))));
        let through = allocations(|| {
            let answer = ready(optional.call(request(false))).unwrap();
            assert!(matches!(answer.into_body(), Either::Left(false)));
        });
        assert_eq!(through - made, 1, "without a token");
    }
}

#[test]
fn names_that_the_catalogue_does_not_know_cost_no_memory() {
    for role in ["member", "everything"] {
        let ada = Owner::new(ada(), OwnerKind::Human)
            .with_role("member")
            .with_role(role)
            .with_role("memer");
        let roles = RoleCatalog::standard_builder()
            .role("everything")
            .grant("everything", ["*"])
            .permission("datastores:read");
        let builder = TokenService::builder(MemoryStore::new(), MemoryDirectory::from_iter([ada]));
        let builder = builder.brand("acme").roles(roles.build().unwrap());
        let service = builder.keyring(Keyring::ephemeral().unwrap()).build().unwrap();
        let header = headers(&service, 1).remove(0);
        let peer = Some([10, 1, 2, 3].into());
        let odd = Permission::parse("datastores:raed").unwrap();
        let demand = || {
            let verified =
                ready(service.verify(Credential::headers(Some(&header)).from_address(peer)))
                    .unwrap();
            assert_eq!(verified.allows(&odd), role == "everything");
            assert_eq!(verified.require("datastores:read").is_ok(), role == "everything");
        };
        demand();
        // The error of a refusal allocates the name of the permission.
        let expected = u64::from(role == "member");
        assert_eq!(allocations(demand), expected, "{role}");
    }
}

#[test]
fn a_refusal_allocates_nothing() {
    let service = service(MemoryStore::new(), directory());
    let header = headers(&service, 1).remove(0);
    let other = self::service(MemoryStore::new(), directory());
    let unknown = headers(&other, 1).remove(0);
    let text = &header["Bearer ".len()..];
    let mut checksum = header.clone();
    checksum.pop();
    for (name, header) in [
        ("unknown", unknown.as_str()),
        ("checksum", checksum.as_str()),
        ("no address", header.as_str()),
        ("other scheme", "Basic abc"),
        ("not a token68", "Bearer a b"),
        ("bare", text),
    ] {
        let refuse = || assert!(ready(service.verify(Credential::headers(Some(header)))).is_err());
        refuse();
        assert_eq!(allocations(refuse), 0, "{name}");
    }
}

#[test]
fn reading_a_text_allocates_nothing() {
    let format =
        TokenFormat::new(Brand::new("acme").unwrap(), &[Brand::new("old").unwrap()]).unwrap();
    let service = service(MemoryStore::new(), directory());
    let header = headers(&service, 1).remove(0);
    assert_eq!(allocations(|| assert!(format.check(&header["Bearer ".len()..]).is_ok())), 0);
    assert_eq!(allocations(|| assert!(format.check(&header).is_err())), 0);
}

#[test]
fn a_store_that_is_as_large_as_before_holds_as_much_memory_as_before() {
    let store = MemoryStore::new();
    let service = service(store, directory());
    let new = NewToken::named("first");
    let first = ready(service.generate(&Actor::signed_in(ada()), new)).unwrap().token.id();
    let first = ready(service.store().find(first)).unwrap().unwrap();
    let churn = |from: u64, to: u64| {
        for number in from..to {
            let mut bytes = first.id.to_bytes();
            bytes[9..].copy_from_slice(&number.to_be_bytes()[1..]);
            let id = TokenId::from_bytes(bytes).unwrap();
            let name = TokenName::new(&format!("token {number}")).unwrap();
            let mut token = Token { id, ..Token::clone(&first) };
            token.rename(name);
            let insert = ChangeBatch::new().change(Change::Insert(token.into()));
            ready(service.store().commit(&insert)).unwrap();
            let remove = ChangeBatch::new().change(Change::Remove { id, version: 1 });
            ready(service.store().commit(&remove)).unwrap();
        }
    };
    churn(0, 10_000);
    let grown = allocation_counter::measure(|| churn(10_000, 60_000)).bytes_current;
    assert!(grown.abs() < 100_000, "{grown} bytes more after 50,000 records that came and went");
}

#[test]
fn a_token_takes_at_most_240_bytes_beside_its_name() {
    const OWNERS: usize = 100;
    const EACH: usize = 500;
    let service = service(MemoryStore::new(), directory());
    let first = ready(service.generate(&Actor::signed_in(ada()), NewToken::named("first")))
        .unwrap()
        .token
        .id();
    let first = ready(service.store().find(first)).unwrap().unwrap();
    let mut store = None;
    let mut strings = 0;
    let held = allocation_counter::measure(|| {
        let store = store.insert(MemoryStore::new());
        for number in 0..OWNERS * EACH {
            let name = TokenName::new(&format!("token {number}")).unwrap();
            strings += name.as_str().len();
            let owner = OwnerId::new(&format!("owner {}", number % OWNERS)).unwrap();
            let mut bytes = first.id.to_bytes();
            bytes[9..].copy_from_slice(&number.to_be_bytes()[1..]);
            let id = TokenId::from_bytes(bytes).unwrap();
            let created_by = ActorRef::Owner(owner.clone());
            let mut token = Token { id, owner, created_by, ..Token::clone(&first) };
            token.rename(name);
            ready(store.commit(&ChangeBatch::new().change(Change::Insert(Arc::new(token)))))
                .unwrap();
        }
    });
    let bytes = usize::try_from(held.bytes_current).unwrap() - strings;
    assert!(bytes <= OWNERS * EACH * 240, "{} bytes for each", bytes / (OWNERS * EACH));
}

/// Stores are moved into a service, and services are moved into futures.
#[test]
fn stores_and_services_are_small() {
    assert!(size_of::<MemoryStore>() <= 1_024, "{}", size_of::<MemoryStore>());
    assert!(size_of::<MemoryDirectory>() <= 16);
    assert!(size_of::<TokenService<MemoryStore, MemoryDirectory>>() <= 2_048);
}

#[test]
fn tokens_that_are_narrowed_to_the_same_share_their_scope() {
    let service = service(MemoryStore::new(), directory());
    let entries: Vec<String> =
        (0..64).map(|n| format!("datastores:of-a-rather-long-name-{n}")).collect();
    let make = |from: usize, scoped: bool| {
        for n in from..from + 100 {
            let new = NewToken::named(&format!("token {n}"));
            let new = if scoped { new.scope(entries.clone()) } else { new };
            drop(ready(service.generate(&Actor::signed_in(ada()), new)).unwrap());
        }
    };
    // Warm-up: tables grow here, and not in the measured call.
    make(0, true);
    let bytes = allocation_counter::measure(|| make(1_000, true)).bytes_current;
    assert!(
        bytes < 100 * 4_000,
        "{bytes} bytes for 100 tokens, of which each scope takes 8,000 alone"
    );
}

#[test]
fn what_is_at_hand_behind_dyn_allocates_nothing_either() {
    let store: Arc<dyn DynTokenStore> = Arc::new(MemoryStore::new());
    let directory: Arc<dyn DynDirectory> = Arc::new(directory());
    assert_eq!(allocations_of_a_verification(&service(store, directory)), 0);
}

#[test]
fn what_a_cache_keeps_allocates_nothing() {
    let directory = OwnerCache::builder(Waits(directory()))
        .lifetime(Duration::from_secs(3_600))
        .capacity(100)
        .build()
        .unwrap();
    assert_eq!(allocations_of_a_verification(&service(MemoryStore::new(), directory)), 0);
}

#[test]
fn what_a_cache_of_tokens_keeps_allocates_nothing() {
    let store = patkit::CachedStore::builder(Waits(MemoryStore::new())).build().unwrap();
    assert_eq!(allocations_of_a_verification(&service(store, directory())), 0);
}

/// Checks the counter: a verification that waits takes one box, and each call behind `dyn` one
/// more.
///
/// The remaining allocations are those of the store for the record, and those of the record's view.
#[test]
fn what_is_waited_for_takes_one_allocation_and_one_per_question_behind_dyn() {
    let waiting = service(Waits(MemoryStore::new()), directory());
    let of_verification = allocations_of_a_verification(&waiting);
    let of_record = allocations_of_a_record(&waiting);
    assert_eq!(of_verification, 1 + of_record);
    assert_eq!(allocations_of_a_verification(&service(MemoryStore::new(), Waits(directory()))), 1);
    let store: Arc<dyn DynTokenStore> = Arc::new(Waits(MemoryStore::new()));
    let directory: Arc<dyn DynDirectory> = Arc::new(Waits(directory()));
    assert_eq!(allocations_of_a_verification(&service(store, directory)), 3 + of_record);
}

/// Returns how often the store and the view allocate for the first record.
fn allocations_of_a_record<D: Directory>(service: &TokenService<Waits<MemoryStore>, D>) -> u64 {
    let by = ListBy::Kind { realm: Realm::default(), kind: TokenKind::Personal };
    let id = ready(service.store().list(&ListQuery::new(by))).unwrap().tokens[0].id;
    let now = patkit::Clock::now(&patkit::SystemClock::new());
    allocations(|| {
        let found = ready(service.store().find(id)).unwrap().unwrap();
        drop(TokenView::new(&found, None, now));
    })
}

fn allocations_of_a_verification<S: TokenStore, D: Directory>(service: &TokenService<S, D>) -> u64 {
    let header = headers(service, 1).remove(0);
    let verify = || {
        let credential = Credential::headers([&header]).from_address(IpAddr::from([10, 0, 0, 1]));
        drop(ready(service.verify(credential)).unwrap());
    };
    verify();
    allocations(verify)
}

/// Answers only through a future, as a store or a directory on a network does.
struct Waits<T>(T);

impl TokenStore for Waits<MemoryStore> {
    async fn find(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.0.find(id).await
    }

    async fn find_current(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.find(id).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        self.0.list(query).await
    }

    async fn commit(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        self.0.commit(batch).await
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        self.0.touch(uses).await
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        self.0.list_ended(before, limit).await
    }
}

impl Directory for Waits<MemoryDirectory> {
    async fn find(
        &self,
        realm: &Realm,
        id: &OwnerId,
    ) -> Result<Option<Arc<Owner>>, DirectoryError> {
        self.0.find(realm, id).await
    }
}
