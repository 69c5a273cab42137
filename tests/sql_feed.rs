//! Hearing of changes in PostgreSQL: what commits late is told, and a connection that died without a word is noticed.

#![cfg(all(feature = "postgres", feature = "sqlite", feature = "cache"))]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod support_sql;

use patkit::store::{ChangeFeed, Feed, FeedEvent};
use patkit::{CachedStore, NewToken, PostgresStore, Reason, RejectReason, TokenId, VerifyError};
use sqlx::Row;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgSslMode};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support_sql::{ada, pooler_pool, postgres_pool, postgres_url, schema, service};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// A store whose changes are asked for.
async fn polled(pool: &PgPool) -> PostgresStore {
    let schema = schema(&postgres_pool(1).await).await;
    PostgresStore::builder(pool.clone()).schema(&schema).pooler(true).migrate().await.unwrap()
}

/// Returns when all transactions are over that had begun before; whoever calls it has none open.
async fn others_are_over(pool: &PgPool) {
    let number =
        async |what: &'static str| -> i64 { sqlx::query(what).fetch_one(pool).await.unwrap().get(0) };
    let next = number("SELECT txid_snapshot_xmax(txid_current_snapshot())").await;
    while number("SELECT txid_snapshot_xmin(txid_current_snapshot())").await < next {
        tokio::task::yield_now().await;
    }
}

/// The ids that are told; none where any may have changed.
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
    let rolled_back = tokens.generate(&ada(), NewToken::named("rolled back")).await.unwrap().token.id();
    let mut feed = store.follow().await.unwrap();
    assert!(feed.is_polled());
    // Those that were open when it began would tell more than is asked here.
    others_are_over(&postgres_pool(1).await).await;
    told(&mut feed).await;
    assert_eq!(told(&mut feed).await, Some(vec![]));

    // Both take a number; one commits behind later ones, and one never does.
    let mut first = pool.begin().await.unwrap();
    let mut second = pool.begin().await.unwrap();
    let within = tokens.within(store.within(&mut first));
    within.revoke(&ada(), late, Reason::Owner).await.unwrap();
    drop(within.into_uncommitted());
    let within = tokens.within(store.within(&mut second));
    within.revoke(&ada(), rolled_back, Reason::Owner).await.unwrap();
    drop(within.into_uncommitted());
    for number in 0..3 {
        let later = tokens.generate(&ada(), NewToken::named(&format!("later {number}"))).await.unwrap();
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
    let mut feed = store.follow().await.unwrap();
    told(&mut feed).await;
    transaction.commit().await.unwrap();
    // Not which: its number is lower than all that was looked at.
    assert_eq!(told(&mut feed).await, None);
}

/// Passes on what it reads while its number is not below `silenced`; then nothing, and closes nothing.
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

/// Stands between a client and the server; gives its port, how many connections there were, and how many of the first are to
/// fall silent.
async fn network() -> (u16, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let options: PgConnectOptions = postgres_url().parse().unwrap();
    let socket = options.get_socket().map(|dir| dir.join(format!(".s.PGSQL.{}", options.get_port())));
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

/// The longest lifetime, and a connection that nobody closed and that says nothing any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_fell_silent_is_noticed_and_nothing_stale_is_left() {
    let direct = postgres_pool(2).await;
    let schema = schema(&direct).await;
    let elsewhere = service(PostgresStore::builder(direct).schema(&schema).migrate().await.unwrap());
    let (port, count, silenced) = network().await;
    let options: PgConnectOptions = postgres_url().parse().unwrap();
    let options = PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(port)
        .username(options.get_username())
        .database(options.get_database().unwrap_or("postgres"))
        .ssl_mode(PgSslMode::Disable);
    // What hangs is given up soon, so that the test need not wait.
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
    // Before anybody listens: what the notification of it forgets would hide what is shown here.
    let issued = elsewhere.generate(&ada(), NewToken::named("a")).await.unwrap();
    let text = issued.plaintext.expose_secret();
    let (following, here) = (cache.clone(), service(cache.clone()));
    // Times are shortened, which says nothing of what is done when they are over.
    let sleep = |time: Duration| tokio::time::sleep(time.min(Duration::from_millis(200)));
    let runner = tokio::spawn(async move { following.run_following(Duration::from_millis(10), sleep).await });
    while !cache.stats().is_following {
        tokio::task::yield_now().await;
    }
    here.verify(text, None).await.unwrap();
    silenced.store(count.load(Ordering::SeqCst), Ordering::SeqCst);
    elsewhere.revoke(&ada(), issued.token.id(), Reason::Owner).await.unwrap();
    for _ in 0..10_000 {
        match here.verify(text, None).await {
            // Not noticed yet, or the pool has not given up the other dead connections.
            Ok(_) | Err(VerifyError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(error) => {
                assert_eq!(error.reject_reason(), Some(RejectReason::Revoked));
                runner.abort();
                return;
            }
        }
    }
    panic!("nobody noticed");
}
