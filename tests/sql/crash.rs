//! Kills a writer, and a server, and checks that no acknowledged change is lost and no change is
//! half stored.
//!
//! `PATKIT_CRASH_ROUNDS` sets how often a writer is killed for each engine; it defaults to 200.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests"
)]

use patkit::audit::AuditAction;
use patkit::store::{AuditLog, EventQuery};
use patkit::{
    Credential, IssuedToken, ManageError, MemoryDirectory, NewToken, PostgresStore, Realm, Reason,
    TokenId, TokenService, TokenState, TokenStore, VerifyError,
};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use support_sql::{
    Folder, ada, postgres_pool, postgres_url, schema, service, sqlite_store, unique,
};

const TARGET: &str = "PATKIT_CRASH_TARGET";

type Service<S> = TokenService<S, MemoryDirectory>;

/// Announces a change, makes it and acknowledges it, in an endless loop.
async fn write_for_ever<S: TokenStore>(service: Service<S>) {
    let say = |line: String| {
        let mut out = std::io::stdout().lock();
        // If the write fails, the reader is gone, and this process ends soon.
        let _ = writeln!(out, "@{line}").and_then(|()| out.flush());
    };
    loop {
        let issued = service.generate(&ada(), NewToken::named(&unique("token"))).await.unwrap();
        let (id, text) = (issued.token.id(), issued.plaintext);
        say(format!("generated {id} {}", text.expose_secret()));
        for step in 0..4 {
            if step % 2 == 0 {
                say(format!("revoking {id}"));
                service.revoke(&ada(), id, Reason::Owner).await.unwrap();
                say(format!("revoked {id}"));
            } else {
                say(format!("restoring {id}"));
                service.restore(&ada(), id).await.unwrap();
                say(format!("restored {id}"));
            }
        }
        if id.to_bytes()[15] % 2 == 0 {
            say(format!("revoking {id}"));
            service.revoke(&ada(), id, Reason::Owner).await.unwrap();
            say(format!("revoked {id}"));
        }
    }
}

#[tokio::test]
#[ignore = "in a process of its own, by the tests below"]
async fn writer() {
    let target = std::env::var(TARGET).unwrap();
    match target.split_once('|').unwrap() {
        ("sqlite", file) => write_for_ever(service(sqlite_store(Path::new(file)).await)).await,
        (_, schema) => {
            // Lets `until_it_is_gone` recognize these connections.
            let options =
                postgres_url().parse::<PgConnectOptions>().unwrap().application_name(schema);
            let pool = PgPoolOptions::new().max_connections(2).connect_with(options).await.unwrap();
            let store = PostgresStore::builder(pool).schema(schema).open().await.unwrap();
            write_for_ever(service(store)).await;
        }
    }
}

/// The output of the writer about one token.
#[derive(Default, Debug)]
struct Said {
    text: String,
    /// The number of acknowledged changes.
    done: u64,
    is_revoked: bool,
    /// Set while a change is announced but not acknowledged.
    is_open: bool,
}

/// Kills a writer after a delay and returns its output by token.
fn kill_writer(target: &str, after: Duration) -> HashMap<TokenId, Said> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "--test-threads=1", "crash::writer"])
        .env(TARGET, target)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let output = child.stdout.take().unwrap();
    let (first, begun) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut lines = Vec::new();
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            // A truncated line is not an acknowledgement.
            if let Some((_, line)) = line.split_once('@') {
                let _ = first.send(());
                lines.push(line.to_owned());
            }
        }
        lines
    });
    begun.recv_timeout(Duration::from_secs(60)).expect("the writer wrote nothing");
    std::thread::sleep(after);
    // Sends SIGKILL.
    child.kill().unwrap();
    child.wait().unwrap();
    let mut said: HashMap<TokenId, Said> = HashMap::new();
    for line in reader.join().unwrap() {
        let words: Vec<&str> = line.split(' ').collect();
        let [what, id, rest @ ..] = &*words else { panic!("{line}") };
        let of = said.entry(id.parse().unwrap()).or_default();
        match *what {
            "generated" => rest[0].clone_into(&mut of.text),
            "revoking" | "restoring" => of.is_open = true,
            _ => {
                of.is_open = false;
                of.done += 1;
                of.is_revoked = *what == "revoked";
            }
        }
    }
    said
}

/// Checks that acknowledged changes are stored with their events, that none is half stored, and
/// that no revoked token verifies.
async fn check<S: TokenStore + AuditLog>(service: &Service<S>, said: &HashMap<TokenId, Said>) {
    for (id, said) in said {
        let found = service.store().find(*id).await.unwrap().expect("it was acknowledged");
        let (done, state) = whole(service, &found).await;
        assert!(
            done == said.done || (said.is_open && done == said.done + 1),
            "{id}: {done} of {said:?}"
        );
        let is_revoked = if done == said.done { said.is_revoked } else { !said.is_revoked };
        assert_eq!(state == TokenState::Revoked, is_revoked, "{id}: {said:?}");
        let verified = service.verify(Credential::text(&said.text)).await;
        assert_eq!(verified.is_err(), is_revoked, "{id}: {said:?}");
    }
}

/// Checks that each version of a record has exactly one event, and returns the number of changes
/// and the state.
async fn whole<S: TokenStore + AuditLog>(
    service: &Service<S>,
    token: &patkit::Token,
) -> (u64, TokenState) {
    let realm = Realm::default();
    let events =
        service.store().events(&EventQuery::new(realm).token(token.id)).await.unwrap().events;
    let count = |action| {
        u64::try_from(events.iter().filter(|event| event.action == action).count()).unwrap()
    };
    assert_eq!(count(AuditAction::Generated), 1);
    let changes = count(AuditAction::Revoked) + count(AuditAction::Restored);
    assert_eq!(token.version, 1 + changes, "each change with its event");
    let state = token.state(patkit::Clock::now(&patkit::SystemClock::new()));
    assert_eq!(state == TokenState::Revoked, changes % 2 == 1);
    (changes, state)
}

/// Waits until the killed writer's connections are closed.
///
/// Until then the server may still execute a change that the writer requested.
async fn until_it_is_gone(service: &Service<PostgresStore>, schema: &str) {
    let sql = "SELECT 1 FROM pg_stat_activity WHERE application_name = $1";
    let pool = service.store().pool();
    while !sqlx::query(sql).bind(schema).fetch_all(pool).await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
}

fn rounds() -> u64 {
    std::env::var("PATKIT_CRASH_ROUNDS").ok().map_or(200, |rounds| rounds.parse().unwrap())
}

/// Returns a delay of 0 to 60 ms, which spans the whole lives of several tokens.
fn delay(round: u64) -> Duration {
    Duration::from_micros((round * 7_919) % 60_000)
}

#[test]
fn a_writer_to_sqlite_that_is_killed_loses_nothing() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = Folder::new();
    let file = folder.path().join("db");
    let service = runtime.block_on(async { service(sqlite_store(&file).await) });
    let mut changes = 0;
    for round in 0..rounds() {
        let said = kill_writer(&format!("sqlite|{}", file.display()), delay(round));
        changes += said.values().map(|said| said.done + 1).sum::<u64>();
        runtime.block_on(check(&service, &said));
    }
    println!("{} writers killed, {changes} changes acknowledged, none lost", rounds());
}

#[test]
fn a_writer_to_postgres_that_is_killed_loses_nothing() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (service, schema) = runtime.block_on(async {
        let pool = postgres_pool(4).await;
        let schema = schema(&pool).await;
        let store = PostgresStore::builder(pool).schema(&schema).migrate().await.unwrap();
        (service(store), schema)
    });
    let mut changes = 0;
    for round in 0..rounds() {
        let said = kill_writer(&format!("postgres|{schema}"), delay(round));
        changes += said.values().map(|said| said.done + 1).sum::<u64>();
        runtime.block_on(until_it_is_gone(&service, &schema));
        runtime.block_on(check(&service, &said));
    }
    println!("{} writers killed, {changes} changes acknowledged, none lost", rounds());
}

/// A PostgreSQL server for one test.
struct Server(String);

impl Server {
    fn run(&self, command: &str) -> String {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/postgres");
        let output = Command::new(script)
            .args([command, &self.0])
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "scripts/postgres {command} failed");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.run("stop");
    }
}

#[derive(Default)]
struct Tally {
    acknowledged: AtomicUsize,
    unavailable: AtomicUsize,
    unknown: AtomicUsize,
}

/// Revokes, restores and verifies one token until `over` is set.
///
/// Returns the numbers of changes and of changes with an unknown outcome.
async fn load<S: TokenStore + AuditLog>(
    service: Arc<Service<S>>,
    issued: IssuedToken,
    over: Arc<AtomicBool>,
    tally: Arc<Tally>,
) -> (TokenId, u64, u64) {
    let (mut done, mut unknown) = (0, 0);
    while !over.load(Ordering::Relaxed) {
        let before = done;
        let result = if done % 2 == 0 && unknown == 0 {
            service.revoke(&ada(), issued.token.id(), Reason::Owner).await
        } else {
            service.restore(&ada(), issued.token.id()).await
        };
        match result {
            Ok(_) => done += 1,
            Err(ManageError::OutcomeUnknown { .. }) => unknown += 1,
            Err(ManageError::Unavailable(_)) => {}
            Err(other) => panic!("{other:?}"),
        }
        let count = if done > before { &tally.acknowledged } else { &tally.unavailable };
        count.fetch_add(1, Ordering::Relaxed);
        if unknown > 0 {
            tally.unknown.fetch_add(1, Ordering::Relaxed);
            return (issued.token.id(), done, unknown);
        }
        match service.verify(Credential::text(issued.plaintext.expose_secret())).await {
            Ok(_) => assert_eq!(done % 2, 0, "a revoked token was verified"),
            Err(VerifyError::Rejected(_)) => {
                assert_eq!(done % 2, 1, "a token that works was rejected");
            }
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    (issued.token.id(), done, unknown)
}

#[test]
fn a_server_that_is_killed_under_load_loses_nothing_and_is_unavailable_meanwhile() {
    let server = Server(std::env::temp_dir().join(unique("pg")).to_str().unwrap().to_owned());
    let url = server.run("start");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let tally = Arc::new(Tally::default());
    let service = runtime.block_on(async {
        let options: PgConnectOptions = url.parse().unwrap();
        let pool = PgPoolOptions::new()
            .max_connections(8)
            .acquire_timeout(Duration::from_millis(500))
            .connect_with(options)
            .await
            .unwrap();
        Arc::new(service(PostgresStore::builder(pool).migrate().await.unwrap()))
    });
    for round in 0..20_u64 {
        let over = Arc::new(AtomicBool::new(false));
        // Generated while the server is up.
        let mut loads = Vec::new();
        for _ in 0..6 {
            let new = NewToken::named(&unique("token"));
            let issued = runtime.block_on(service.generate(&ada(), new)).unwrap();
            loads.push(runtime.spawn(load(service.clone(), issued, over.clone(), tally.clone())));
        }
        std::thread::sleep(Duration::from_millis(40) + delay(round));
        server.run("crash");
        std::thread::sleep(Duration::from_millis(50));
        server.run("restart");
        // The same host recovers, with the same pool.
        runtime.block_on(async {
            let recovered = async {
                while service.store().health().await.is_err() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), recovered)
                .await
                .expect("the host did not recover");
        });
        std::thread::sleep(Duration::from_millis(50));
        over.store(true, Ordering::Relaxed);
        for load in loads {
            let (id, done, unknown) = runtime.block_on(load).unwrap();
            runtime.block_on(async {
                let token = service.store().find(id).await.unwrap().unwrap();
                let (changes, _) = whole(&service, &token).await;
                assert!(
                    (done..=done + unknown).contains(&changes),
                    "{changes} of {done} and {unknown} unknown"
                );
            });
        }
    }
    let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    println!(
        "20 crashes: {} changes acknowledged, {} refused as unavailable, {} of unknown outcome",
        count(&tally.acknowledged),
        count(&tally.unavailable),
        count(&tally.unknown)
    );
    assert!(count(&tally.unavailable) > 0, "no crash was felt");
}
