//! Kills writers of each driver, and servers, and checks that no acknowledged change is lost and no
//! change is half stored.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests"
)]

use crate::kills::{Mark, Service, delay, lose_nothing, service, target, whole, write_for_ever};
use deadpool_postgres::{Manager, Pool};
use patkit::store::AuditLog;
use patkit::store::SqlStore;
use patkit::store::sql::Driver;
use patkit::{
    Credential, IssuedToken, ManageError, NewToken, Reason, TokenId, TokenStore, VerifyError,
};
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use support_sql::{
    Folder, MariaDbStore, PostgresStore, ada, mariadb_pool, mariadb_schema, mariadb_url,
    postgres_pool, postgres_url, schema, sqlite_store, unique,
};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_postgres::{Config, NoTls};

#[tokio::test]
#[ignore = "in a process of its own, by the tests below"]
async fn sqlite_writer() {
    write_for_ever(sqlite_store(Path::new(&target())).await).await;
}

#[test]
fn a_writer_to_sqlite_that_is_killed_loses_nothing() {
    let folder = Folder::new();
    let file = folder.path().join("db");
    let runtime = Runtime::new().unwrap();
    let store = runtime.block_on(sqlite_store(&file));
    let writer = ("crash::sqlite_writer", file.to_str().unwrap());
    lose_nothing(&runtime, store, writer, Mark::None);
}

#[tokio::test]
#[ignore = "in a process of its own, by the tests below"]
async fn postgres_writer() {
    let schema = target();
    let options = postgres_url().parse::<PgConnectOptions>().unwrap().application_name(&schema);
    let pool = PgPoolOptions::new().max_connections(2).connect_with(options).await.unwrap();
    write_for_ever(SqlStore::builder(pool).schema(&schema).open().await.unwrap()).await;
}

#[test]
fn a_writer_to_postgres_that_is_killed_loses_nothing() {
    let runtime = Runtime::new().unwrap();
    let (store, schema) = runtime.block_on(async {
        let pool = postgres_pool(4).await;
        let schema = schema(&pool).await;
        (PostgresStore::builder(pool).schema(&schema).migrate().await.unwrap(), schema)
    });
    let writer = ("crash::postgres_writer", &*schema);
    lose_nothing(&runtime, store, writer, Mark::ApplicationName(&schema));
}

#[tokio::test]
#[ignore = "in a process of its own, by the tests below"]
async fn tokio_postgres_writer() {
    let schema = target();
    let mut config = postgres_url().parse::<Config>().unwrap();
    config.application_name(&schema);
    let pool = Pool::builder(Manager::new(config, NoTls)).build().unwrap();
    write_for_ever(SqlStore::builder(pool).schema(&schema).open().await.unwrap()).await;
}

#[test]
fn a_writer_over_tokio_postgres_that_is_killed_loses_nothing() {
    let runtime = Runtime::new().unwrap();
    let (store, schema) = runtime.block_on(async {
        let schema = schema(&postgres_pool(1).await).await;
        let manager = Manager::new(postgres_url().parse::<Config>().unwrap(), NoTls);
        let pool = Pool::builder(manager).build().unwrap();
        (SqlStore::builder(pool).schema(&schema).migrate().await.unwrap(), schema)
    });
    let writer = ("crash::tokio_postgres_writer", &*schema);
    lose_nothing(&runtime, store, writer, Mark::ApplicationName(&schema));
}

#[tokio::test]
#[ignore = "in a process of its own, by the tests below"]
async fn mariadb_writer() {
    let schema = target();
    let options = mariadb_url().parse::<MySqlConnectOptions>().unwrap().database(&schema);
    let pool = MySqlPoolOptions::new().max_connections(2).connect_with(options).await.unwrap();
    write_for_ever(SqlStore::builder(pool).schema(&schema).open().await.unwrap()).await;
}

#[test]
fn a_writer_to_mariadb_that_is_killed_loses_nothing() {
    let runtime = Runtime::new().unwrap();
    let (store, schema) = runtime.block_on(async {
        let pool = mariadb_pool(4).await;
        let schema = mariadb_schema(&pool).await;
        (MariaDbStore::builder(pool).schema(&schema).migrate().await.unwrap(), schema)
    });
    let writer = ("crash::mariadb_writer", &*schema);
    lose_nothing(&runtime, store, writer, Mark::Database(&schema));
}

/// A database server for one test, of a script of this name. Its commits reach the disk.
pub(super) struct Server(pub(super) &'static str, pub(super) String);

impl Server {
    /// Runs a command of the script on the server's folder.
    pub(super) fn run(&self, command: &[&str], arguments: &[&str]) -> String {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts");
        let output = Command::new(scripts.join(self.0))
            .args(command)
            .arg(&self.1)
            .args(arguments)
            .env("PATKIT_POSTGRES_FSYNC", "on")
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "scripts/{} {command:?} failed", self.0);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.run(&["stop"], &[]);
    }
}

#[derive(Default)]
pub(super) struct Tally {
    acknowledged: AtomicUsize,
    pub(super) unavailable: AtomicUsize,
    unknown: AtomicUsize,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        write!(
            f,
            "{} changes acknowledged, {} refused as unavailable, {} of unknown outcome",
            count(&self.acknowledged),
            count(&self.unavailable),
            count(&self.unknown)
        )
    }
}

/// Revokes, restores and verifies one token until `over` is set. `reader` verifies.
///
/// Returns the numbers of changes and of changes with an unknown outcome.
async fn load<S: TokenStore + AuditLog>(
    service: Arc<Service<S>>,
    reader: Arc<Service<S>>,
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
        match reader.verify(Credential::text(issued.plaintext.expose_secret())).await {
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
fn a_server_of_postgres_that_is_killed_under_load_loses_nothing() {
    let server = Server("postgres", server_folder());
    let options: PgConnectOptions = server.run(&["start"], &[]).parse().unwrap();
    let runtime = Runtime::new().unwrap();
    let service = runtime.block_on(async {
        let pool = PgPoolOptions::new()
            .max_connections(8)
            .acquire_timeout(Duration::from_millis(500))
            .connect_with(options)
            .await
            .unwrap();
        service(PostgresStore::builder(pool).migrate().await.unwrap())
    });
    crashes(&server, &runtime, &Arc::new(service));
}

#[test]
fn a_server_of_mariadb_that_is_killed_under_load_loses_nothing() {
    let server = Server("mariadb", server_folder());
    let options: MySqlConnectOptions = server.run(&["start"], &[]).parse().unwrap();
    let runtime = Runtime::new().unwrap();
    let service = runtime.block_on(async {
        let pool = MySqlPoolOptions::new()
            .max_connections(8)
            .acquire_timeout(Duration::from_millis(500))
            .connect_with(options)
            .await
            .unwrap();
        service(MariaDbStore::builder(pool).migrate().await.unwrap())
    });
    crashes(&server, &runtime, &Arc::new(service));
}

pub(super) fn server_folder() -> String {
    std::env::temp_dir().join(unique("server")).to_str().unwrap().to_owned()
}

/// Loads that run at the same time.
pub(super) struct Loads {
    over: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<(TokenId, u64, u64)>>,
}

impl Loads {
    /// Starts a load for each pair of a host that writes and a host that verifies.
    pub(super) fn start<S: TokenStore + AuditLog + 'static>(
        runtime: &Runtime,
        hosts: &[[&Arc<Service<S>>; 2]],
        tally: &Arc<Tally>,
    ) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let start = |&[writer, reader]: &[&Arc<Service<S>>; 2]| {
            let new = NewToken::named(&unique("token"));
            let issued = runtime.block_on(writer.generate(&ada(), new)).unwrap();
            let (writer, reader) = (Arc::clone(writer), Arc::clone(reader));
            runtime.spawn(load(writer, reader, issued, over.clone(), tally.clone()))
        };
        let tasks = hosts.iter().map(start).collect();
        Self { over, tasks }
    }

    /// Ends the loads, and checks that each of these hosts finds all that was acknowledged.
    pub(super) fn end<S: TokenStore + AuditLog>(
        self,
        runtime: &Runtime,
        hosts: &[Arc<Service<S>>],
    ) {
        self.over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            let (id, done, unknown) = runtime.block_on(task).unwrap();
            for host in hosts {
                let (changes, _) = runtime.block_on(async {
                    let token = host.store().find(id).await.unwrap().unwrap();
                    whole(host, &token).await
                });
                assert!(
                    (done..=done + unknown).contains(&changes),
                    "{changes} of {done} and {unknown} unknown"
                );
            }
        }
    }
}

/// Waits until a host works again by itself, with the pool that it has.
pub(super) fn recovers<D: Driver>(runtime: &Runtime, host: &Service<SqlStore<D>>) {
    runtime.block_on(async {
        let recovered = async {
            while host.store().health().await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let recovered = tokio::time::timeout(Duration::from_secs(20), recovered).await;
        recovered.expect("the host did not recover");
    });
}

/// Kills the server 20 times under load. It is unavailable meanwhile, and loses nothing.
fn crashes<D: Driver>(server: &Server, runtime: &Runtime, host: &Arc<Service<SqlStore<D>>>) {
    let tally = Arc::new(Tally::default());
    for round in 0..20_u64 {
        let loads = Loads::start(runtime, &[[host; 2]; 6], &tally);
        std::thread::sleep(Duration::from_millis(40) + delay(round));
        server.run(&["crash"], &[]);
        std::thread::sleep(Duration::from_millis(50));
        server.run(&["restart"], &[]);
        recovers(runtime, host);
        std::thread::sleep(Duration::from_millis(50));
        loads.end(runtime, std::slice::from_ref(host));
    }
    println!("20 crashes: {tally}");
    assert!(tally.unavailable.load(Ordering::Relaxed) > 0, "no crash was felt");
}
