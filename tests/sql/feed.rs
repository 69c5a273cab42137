//! Following changes in PostgreSQL: changes that commit late are delivered, and a silent connection
//! is noticed.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use chrono::{DateTime, Utc};
use patkit::store::sql::SqlFeed;
use patkit::store::{
    ChangeBatch, ChangeFeed, Feed, FeedEvent, FollowError, ListQuery, Page, StoreError, Touch,
};
use patkit::{
    CachedStore, Credential, MemoryDirectory, NewToken, OwnerId, Realm, Reason, RejectReason,
    Token, TokenId, TokenService, TokenStore, VerifyError,
};
use sqlx::Row;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgSslMode};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support_sql::{
    PostgresStore, SqliteStore, ada, pooler_pool, pooler_url, postgres_pool, postgres_url, schema,
    service, sqlite_memory_pool, unique,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// Creates a store whose changes are polled.
async fn polled(pool: &PgPool) -> PostgresStore {
    let schema = schema(&postgres_pool(1).await).await;
    PostgresStore::builder(pool.clone()).schema(&schema).pooler(true).migrate().await.unwrap()
}

/// Waits for all transactions that are already open; the caller must have none open.
async fn others_are_over(pool: &PgPool) {
    let number = async |what: &'static str| -> i64 {
        sqlx::query(what).fetch_one(pool).await.unwrap().get(0)
    };
    let next = number("SELECT txid_snapshot_xmax(txid_current_snapshot())").await;
    while number("SELECT txid_snapshot_xmin(txid_current_snapshot())").await < next {
        tokio::task::yield_now().await;
    }
}

/// Returns the changed ids, or `None` if any token may have changed.
async fn told(feed: &mut impl Feed) -> Option<Vec<TokenId>> {
    match feed.next().await.unwrap() {
        FeedEvent::Changed(ids) => Some(ids),
        FeedEvent::Missed => None,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_commits_behind_later_ones_is_told() {
    let pool = pooler_pool(3).await;
    let store = polled(&pool).await;
    let tokens = service(store.clone());
    let late = tokens.generate(&ada(), NewToken::named("late")).await.unwrap().token.id();
    let rolled_back =
        tokens.generate(&ada(), NewToken::named("rolled back")).await.unwrap().token.id();
    let mut feed = store.poll().await.unwrap();
    // Transactions that were already open at the first poll would add other ids.
    others_are_over(&postgres_pool(1).await).await;
    told(&mut feed).await;
    assert_eq!(told(&mut feed).await, Some(vec![]));

    // Both take a number. One commits after later ones do, and one never commits.
    let mut first = pool.begin().await.unwrap();
    let mut second = pool.begin().await.unwrap();
    let within = tokens.within(store.within(&mut first));
    within.revoke(&ada(), late, Reason::Owner).await.unwrap();
    drop(within.into_uncommitted());
    let within = tokens.within(store.within(&mut second));
    within.revoke(&ada(), rolled_back, Reason::Owner).await.unwrap();
    drop(within.into_uncommitted());
    for number in 0..3 {
        let later =
            tokens.generate(&ada(), NewToken::named(&format!("later {number}"))).await.unwrap();
        assert_eq!(told(&mut feed).await, Some(vec![later.token.id()]));
    }
    assert_eq!(told(&mut feed).await, Some(vec![]));
    second.rollback().await.unwrap();
    assert_eq!(told(&mut feed).await, Some(vec![]));
    first.commit().await.unwrap();
    assert_eq!(told(&mut feed).await, Some(vec![late]));
    assert_eq!(told(&mut feed).await, Some(vec![]), "once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_was_under_way_when_the_asking_began_is_told() {
    let pool = pooler_pool(3).await;
    let store = polled(&pool).await;
    let tokens = service(store.clone());
    let issued = tokens.generate(&ada(), NewToken::named("a")).await.unwrap();
    let mut transaction = pool.begin().await.unwrap();
    let within = tokens.within(store.within(&mut transaction));
    within.revoke(&ada(), issued.token.id(), Reason::Owner).await.unwrap();
    drop(within.into_uncommitted());
    tokens.generate(&ada(), NewToken::named("later")).await.unwrap();
    let mut feed = store.poll().await.unwrap();
    told(&mut feed).await;
    transaction.commit().await.unwrap();
    // The feed does not know which, because the number is lower than all that it has looked at.
    assert_eq!(told(&mut feed).await, None);
}

/// A store that reads and changes through one pool and follows through another.
struct Split {
    direct: PostgresStore,
    followed: PostgresStore,
}

impl TokenStore for Split {
    async fn find(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.direct.find(id).await
    }

    async fn find_current(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.direct.find_current(id).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        self.direct.list(query).await
    }

    async fn commit(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        self.direct.commit(batch).await
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        self.direct.touch(uses).await
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        self.direct.list_ended(before, limit).await
    }
}

impl ChangeFeed for Split {
    type Feed = SqlFeed<PgPool>;

    fn check_following(&self) -> Result<(), FollowError> {
        self.followed.check_following()
    }

    async fn listen(&self) -> Result<Option<SqlFeed<PgPool>>, StoreError> {
        self.followed.listen().await
    }

    async fn probe(&self, nonce: u64) -> Result<(), StoreError> {
        self.followed.probe(nonce).await
    }

    async fn poll(&self) -> Result<SqlFeed<PgPool>, StoreError> {
        self.followed.poll().await
    }
}

/// Returns a store that follows through an undeclared pooler in transaction mode, and the store of
/// another process.
async fn undeclared() -> (Split, PostgresStore) {
    let direct = postgres_pool(4).await;
    let schema = schema(&direct).await;
    let direct = PostgresStore::builder(direct).schema(&schema).migrate().await.unwrap();
    // The pooler does not track prepared statements.
    let options: PgConnectOptions = pooler_url().parse().unwrap();
    let pool = PgPoolOptions::new()
        .max_connections(4)
        .connect_with(options.statement_cache_capacity(0))
        .await
        .unwrap();
    for _ in 0..100 {
        // An unnamed statement is lost if the pooler switches connections between two messages.
        if let Ok(followed) = PostgresStore::builder(pool.clone()).schema(&schema).open().await {
            return (Split { direct: direct.clone(), followed }, direct);
        }
    }
    panic!("the store is not opened through the pooler");
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..60_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{what}");
}

/// Returns the time until a revocation by another process takes effect.
async fn seen_after<S: TokenStore, T: TokenStore>(
    here: &TokenService<S, MemoryDirectory>,
    elsewhere: &TokenService<T, MemoryDirectory>,
) -> Duration {
    let issued = elsewhere.generate(&ada(), NewToken::named(&unique("token"))).await.unwrap();
    let text = issued.plaintext.expose_secret();
    // Until the notification of the new token arrives, cached records are evicted again.
    for _ in 0..3 {
        here.verify(Credential::text(text)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    elsewhere.revoke(&ada(), issued.token.id(), Reason::Owner).await.unwrap();
    let start = Instant::now();
    while here.verify(Credential::text(text)).await.is_ok() {
        assert!(start.elapsed() < Duration::from_secs(60), "it is never seen");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    start.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_was_not_declared_is_found_out_and_changes_are_polled() {
    let (store, elsewhere) = undeclared().await;
    let lifetime = Duration::from_secs(3_600);
    let cache = Arc::new(CachedStore::builder(store).lifetime(lifetime).build().unwrap());
    let following = cache.clone();
    let claimed = Arc::new(AtomicUsize::new(0));
    let (watched, claims) = (cache.clone(), claimed.clone());
    let sampler = tokio::spawn(async move {
        loop {
            claims.fetch_add(usize::from(watched.stats().is_following), Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    // A fifth of the time, so that the feed retries listening during the test.
    let sleep = |time: Duration| tokio::time::sleep(time / 5);
    let runner =
        tokio::spawn(
            async move { following.run_following(Duration::from_millis(250), sleep).await },
        );
    until("it does not poll", || cache.stats().is_polling_instead).await;
    let (here, elsewhere) = (service(cache.clone()), service(elsewhere));
    let start = Instant::now();
    // Longer than the time until the feed retries listening, 12 s here.
    while start.elapsed() < Duration::from_secs(15) {
        let seen = seen_after(&here, &elsewhere).await;
        assert!(seen < Duration::from_secs(5), "{seen:?}");
        assert!(cache.stats().is_polling_instead);
    }
    assert_eq!(claimed.load(Ordering::SeqCst), 0, "it never follows");
    sampler.abort();
    runner.abort();
    assert!(runner.await.unwrap_err().is_cancelled());
    assert!(!cache.stats().is_polling_instead);
}

/// Uses the longest lifetime, so that only the lost connection can explain a miss.
#[tokio::test(flavor = "multi_thread")]
async fn a_cache_whose_listener_was_killed_forgets_everything_and_follows_when_it_is_proven_again()
{
    let pool = postgres_pool(6).await;
    let schema = schema(&pool).await;
    let store = PostgresStore::builder(pool.clone()).schema(&schema).migrate().await.unwrap();
    let lifetime = Duration::from_secs(3_600);
    let cache = Arc::new(CachedStore::builder(store.clone()).lifetime(lifetime).build().unwrap());
    let (here, following) = (service(cache.clone()), cache.clone());
    let runner = tokio::spawn(async move {
        following.run_following(Duration::from_millis(500), tokio::time::sleep).await
    });
    until("it does not follow", || cache.stats().is_following).await;
    let issued = here.generate(&ada(), NewToken::named("a")).await.unwrap();
    let text = issued.plaintext.expose_secret();
    // Waits until the notification of its own change has arrived.
    tokio::time::sleep(Duration::from_millis(200)).await;
    here.verify(Credential::text(text)).await.unwrap();
    let reads = cache.stats().reads;
    here.verify(Credential::text(text)).await.unwrap();
    assert_eq!(cache.stats().reads, reads, "it is kept");
    let listeners = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE query LIKE 'LISTEN%' AND pid <> pg_backend_pid()";
    sqlx::raw_sql(listeners).execute(&pool).await.unwrap();
    until("the loss is not noticed", || !cache.stats().is_following).await;
    here.verify(Credential::text(text)).await.unwrap();
    assert!(cache.stats().reads > reads, "everything was forgotten");
    until("it does not follow again", || cache.stats().is_following).await;
    let seen = seen_after(&here, &service(store)).await;
    assert!(seen < Duration::from_secs(5), "{seen:?}");
    runner.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_of_more_changes_than_it_can_name_forgets_everything() {
    let pool = postgres_pool(6).await;
    let schema = schema(&pool).await;
    let store = PostgresStore::builder(pool).schema(&schema).migrate().await.unwrap();
    let lifetime = Duration::from_secs(3_600);
    let cache = Arc::new(CachedStore::builder(store.clone()).lifetime(lifetime).build().unwrap());
    let (here, elsewhere, following) = (service(cache.clone()), service(store), cache.clone());
    let runner = tokio::spawn(async move {
        following.run_following(Duration::from_millis(500), tokio::time::sleep).await
    });
    until("it does not follow", || cache.stats().is_following).await;
    let mut issued = Vec::new();
    for number in 0..301 {
        let name = NewToken::named(&format!("token {number}"));
        issued.push(elsewhere.generate(&ada(), name).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let last = issued.last().unwrap().plaintext.expose_secret();
    here.verify(Credential::text(last)).await.unwrap();
    // One batch, and so one notification.
    elsewhere.erase_owner(&Realm::default(), &OwnerId::new("ada").unwrap()).await.unwrap();
    let start = Instant::now();
    while here.verify(Credential::text(last)).await.is_ok() {
        assert!(start.elapsed() < Duration::from_secs(4), "it was not heard");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    runner.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_too_small_to_follow_is_refused() {
    let pool = postgres_pool(1).await;
    let schema = schema(&pool).await;
    let open = async |connections, pooler| {
        let pool = postgres_pool(connections).await;
        PostgresStore::builder(pool).schema(&schema).pooler(pooler).migrate().await.unwrap()
    };
    let cache = CachedStore::builder(open(1, false).await).build().unwrap();
    let following = cache.run_following(Duration::from_millis(500), tokio::time::sleep);
    let Err(error) = tokio::time::timeout(Duration::from_secs(5), following).await.unwrap();
    let FollowError::PoolTooSmall { connections, needed } = error else { panic!("{error:?}") };
    assert_eq!((connections, needed), (1, 2));
    assert!(error.to_string().contains(".max_connections(2)"), "{error}");
    assert!(!cache.stats().is_following);
    assert_eq!(open(2, false).await.check_following(), Ok(()));
    // Polling needs no connection of its own.
    assert_eq!(open(1, true).await.check_following(), Ok(()));
    let sqlite = sqlite_memory_pool(1).await;
    assert_eq!(SqliteStore::builder(sqlite).migrate().await.unwrap().check_following(), Ok(()));

    // With the smallest pool, all other calls still work.
    let cache = Arc::new(CachedStore::builder(open(2, false).await).build().unwrap());
    let (here, following) = (service(cache.clone()), cache.clone());
    let runner = tokio::spawn(async move {
        following.run_following(Duration::from_millis(500), tokio::time::sleep).await
    });
    until("it does not follow", || cache.stats().is_following).await;
    let issued = here.generate(&ada(), NewToken::named("a")).await.unwrap();
    here.verify(Credential::text(issued.plaintext.expose_secret())).await.unwrap();
    runner.abort();
}

/// Forwards data while the connection's number is at least `silenced`, then stops without closing.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    number: usize,
    silenced: Arc<AtomicUsize>,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if number < silenced.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// Starts a proxy before the server.
///
/// Returns its port, the number of connections, and how many of the first ones are silenced.
async fn network() -> (u16, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let options: PgConnectOptions = postgres_url().parse().unwrap();
    let socket =
        options.get_socket().map(|dir| dir.join(format!(".s.PGSQL.{}", options.get_port())));
    let address = (options.get_host().to_owned(), options.get_port());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (count, silenced) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counting, silent) = (count.clone(), silenced.clone());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let number = counting.fetch_add(1, Ordering::SeqCst);
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server): (
                Box<dyn AsyncRead + Send + Unpin>,
                Box<dyn AsyncWrite + Send + Unpin>,
            ) = if let Some(socket) = &socket {
                let (from, to) = UnixStream::connect(socket).await.unwrap().into_split();
                (Box::new(from), Box::new(to))
            } else {
                let (from, to) = TcpStream::connect(&address).await.unwrap().into_split();
                (Box::new(from), Box::new(to))
            };
            tokio::spawn(pass(from_client, to_server, number, silent.clone()));
            tokio::spawn(pass(from_server, to_client, number, silent.clone()));
        }
    });
    (port, count, silenced)
}

/// Uses the longest lifetime and a connection that is silent but not closed.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_fell_silent_is_noticed_and_nothing_stale_is_left() {
    let direct = postgres_pool(2).await;
    let schema = schema(&direct).await;
    let elsewhere =
        service(PostgresStore::builder(direct).schema(&schema).migrate().await.unwrap());
    let (port, count, silenced) = network().await;
    let options: PgConnectOptions = postgres_url().parse().unwrap();
    let options = PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(port)
        .username(options.get_username())
        .database(options.get_database().unwrap_or("postgres"))
        .ssl_mode(PgSslMode::Disable);
    // A short timeout, so that the test does not wait long for the dead connections.
    let timeout = Duration::from_millis(500);
    let pool = PgPoolOptions::new()
        .max_connections(10)
        .acquire_timeout(timeout)
        .connect_with(options)
        .await
        .unwrap();
    let store = PostgresStore::builder(pool).schema(&schema).open().await.unwrap();
    let lifetime = Duration::from_secs(3_600);
    let cache = Arc::new(CachedStore::builder(store).lifetime(lifetime).build().unwrap());
    // Generated before the cache listens, because its notification would evict the record under
    // test.
    let issued = elsewhere.generate(&ada(), NewToken::named("a")).await.unwrap();
    let text = issued.plaintext.expose_secret();
    let (following, here) = (cache.clone(), service(cache.clone()));
    // Shortens the waits, not the actions that follow them.
    let sleep = |time: Duration| tokio::time::sleep(time.min(Duration::from_millis(200)));
    let runner =
        tokio::spawn(
            async move { following.run_following(Duration::from_millis(10), sleep).await },
        );
    while !cache.stats().is_following {
        tokio::task::yield_now().await;
    }
    here.verify(Credential::text(text)).await.unwrap();
    silenced.store(count.load(Ordering::SeqCst), Ordering::SeqCst);
    elsewhere.revoke(&ada(), issued.token.id(), Reason::Owner).await.unwrap();
    for _ in 0..10_000 {
        match here.verify(Credential::text(text)).await {
            // The silence is not noticed yet, or the pool still holds other dead connections.
            Ok(_) | Err(VerifyError::Unavailable(_)) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(error) => {
                assert_eq!(error.reject_reason(), Some(RejectReason::Revoked));
                runner.abort();
                return;
            }
        }
    }
    panic!("nobody noticed");
}
