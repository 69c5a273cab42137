//! Several processes on one database, each with a cache: measures how soon all of them see a
//! revocation.
//!
//! `PATKIT_NODE_ROUNDS` sets how many revocations are measured for each engine; it defaults to 50.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests"
)]

use patkit::store::ChangeFeed;
use patkit::{CachedStore, Clock, Credential, NewToken, Reason, SystemClock, TokenStore};
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use support_sql::{
    Folder, PostgresStore, ada, pooler_pool, postgres_pool, schema, service, sqlite_store, unique,
};

const TARGET: &str = "PATKIT_NODE_TARGET";
/// The number of nodes besides the one that revokes.
const NODES: usize = 3;
const LIFETIME: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(50);

fn now() -> i64 {
    SystemClock::new().now_micros()
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "@{line}").unwrap();
    out.flush().unwrap();
}

/// Verifies each text from standard input until it is rejected, and prints the time of the
/// rejection.
async fn be_a_node<S: TokenStore + ChangeFeed + 'static>(store: S) {
    let cache = Arc::new(CachedStore::builder(store).lifetime(LIFETIME).build().unwrap());
    let following = cache.clone();
    tokio::spawn(async move { following.run_following(INTERVAL, tokio::time::sleep).await });
    while !cache.stats().is_following {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let service = service(cache);
    say("ready");
    loop {
        let mut text = String::new();
        if std::io::stdin().read_line(&mut text).unwrap() == 0 {
            return;
        }
        let text = text.trim();
        service.verify(Credential::text(text)).await.unwrap();
        say("verified");
        while service.verify(Credential::text(text)).await.is_ok() {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        say(&now().to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "in processes of its own, by the tests below"]
async fn node() {
    let target = std::env::var(TARGET).unwrap();
    match target.split_once('|').unwrap() {
        ("sqlite", file) => be_a_node(sqlite_store(Path::new(file)).await).await,
        ("pooler", schema) => {
            let pool = pooler_pool(4).await;
            be_a_node(
                PostgresStore::builder(pool).schema(schema).pooler(true).open().await.unwrap(),
            )
            .await;
        }
        (_, schema) => {
            let pool = postgres_pool(4).await;
            be_a_node(PostgresStore::builder(pool).schema(schema).open().await.unwrap()).await;
        }
    }
}

struct Node {
    process: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Node {
    fn start(target: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "--test-threads=1", "many_nodes::node"])
            .env(TARGET, target)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { input: process.stdin.take(), output, process }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    fn hear(&mut self) -> String {
        loop {
            let line = self.output.next().expect("the node has ended").unwrap();
            if let Some((_, said)) = line.split_once('@') {
                return said.to_owned();
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn measure<S: TokenStore>(store: S, target: &str, how: &str) {
    let service = service(store);
    let mut nodes: Vec<Node> = (0..NODES).map(|_| Node::start(target)).collect();
    for node in &mut nodes {
        assert_eq!(node.hear(), "ready");
    }
    let rounds =
        std::env::var("PATKIT_NODE_ROUNDS").ok().map_or(50, |rounds| rounds.parse().unwrap());
    let mut lags = Vec::new();
    for _ in 0..rounds {
        let issued = service.generate(&ada(), NewToken::named(&unique("token"))).await.unwrap();
        for node in &mut nodes {
            node.tell(issued.plaintext.expose_secret());
            assert_eq!(node.hear(), "verified");
        }
        service.revoke(&ada(), issued.token.id(), Reason::Owner).await.unwrap();
        let acknowledged = now();
        for node in &mut nodes {
            lags.push((node.hear().parse::<i64>().unwrap() - acknowledged).max(0));
        }
    }
    lags.sort_unstable();
    let (median, most) = (lags[lags.len() / 2], lags[lags.len() - 1]);
    println!(
        "{how}: {rounds} revocations seen on {NODES} other nodes after {median} µs (median), {most} µs (most)"
    );
    assert!(
        most < i64::try_from(LIFETIME.as_micros()).unwrap(),
        "over the bound that is documented"
    );
    // Far below the lifetime, so the nodes were notified instead of waiting for expiry.
    assert!(median < i64::try_from(LIFETIME.as_micros()).unwrap() / 10, "nobody heard of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_is_seen_on_every_node_that_listens_to_postgres() {
    let pool = postgres_pool(4).await;
    let schema = schema(&pool).await;
    let store = PostgresStore::builder(pool).schema(&schema).migrate().await.unwrap();
    measure(store, &format!("postgres|{schema}"), "PostgreSQL, LISTEN").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_is_seen_on_every_node_that_polls_postgres_behind_a_pooler() {
    let schema = schema(&postgres_pool(1).await).await;
    let pool = pooler_pool(4).await;
    let store = PostgresStore::builder(pool).schema(&schema).pooler(true).migrate().await.unwrap();
    measure(store, &format!("pooler|{schema}"), "PostgreSQL behind a pooler, polled each 50 ms")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_is_seen_on_every_node_that_polls_sqlite() {
    let folder = Folder::new();
    let file = folder.path().join("db");
    let store = sqlite_store(&file).await;
    measure(store, &format!("sqlite|{}", file.display()), "SQLite, polled each 50 ms").await;
}

/// If the channel is lost, the cache reports the loss and evicts everything before it follows
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_is_lost_and_found_leaves_nothing_stale() {
    let pool = postgres_pool(8).await;
    let schema = schema(&pool).await;
    let store = PostgresStore::builder(pool.clone()).schema(&schema).migrate().await.unwrap();
    let cache = Arc::new(CachedStore::builder(store.clone()).lifetime(LIFETIME).build().unwrap());
    let (following, elsewhere) = (cache.clone(), service(store));
    let runner =
        tokio::spawn(async move { following.run_following(INTERVAL, tokio::time::sleep).await });
    let here = service(cache.clone());
    let until = async |what: &str, is_so: &dyn Fn() -> bool| {
        for _ in 0..5_000 {
            if is_so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("{what}");
    };
    until("it does not follow", &|| cache.stats().is_following).await;
    for _ in 0..5 {
        let issued = elsewhere.generate(&ada(), NewToken::named(&unique("token"))).await.unwrap();
        let text = issued.plaintext.expose_secret();
        here.verify(Credential::text(text)).await.unwrap();
        // Cuts every listening connection, so that the revocation happens while nobody listens.
        sqlx::raw_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE query LIKE 'LISTEN%' AND pid <> pg_backend_pid()",
        )
        .execute(&pool)
        .await
        .unwrap();
        elsewhere.revoke(&ada(), issued.token.id(), Reason::Owner).await.unwrap();
        let mut refused = false;
        for _ in 0..5_000 {
            if here.verify(Credential::text(text)).await.is_err() {
                refused = true;
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(refused, "it is believed though the channel was lost");
    }
    runner.abort();
    assert!(runner.await.unwrap_err().is_cancelled());
    assert!(!cache.stats().is_following, "nobody follows any more");
}
