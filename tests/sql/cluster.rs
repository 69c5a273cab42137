//! Several servers: a Galera cluster with writers on all nodes, of which nodes are killed, and a
//! primary of PostgreSQL whose synchronous standby takes over.
//!
//! `PATKIT_CLUSTER_ROUNDS` sets how often a server is killed. It defaults to 20. A node takes 15 s to
//! join again.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests"
)]

use crate::crash::{Loads, Server, Tally, recovers, server_folder};
use crate::kills::{Service, delay, service};
use deadpool_postgres::{Manager, Pool};
use patkit::{Credential, NewToken, Reason, RejectReason, SqlStore};
use sqlx::Executor;
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support_sql::{MariaDbStore, ada, unique};
use tokio_postgres::NoTls;

fn rounds() -> u64 {
    std::env::var("PATKIT_CLUSTER_ROUNDS").ok().map_or(20, |rounds| rounds.parse().unwrap())
}

type Node = Arc<Service<MariaDbStore>>;

async fn node(url: &str) -> Node {
    let options: MySqlConnectOptions = url.parse().unwrap();
    let pool = MySqlPoolOptions::new()
        .max_connections(6)
        .acquire_timeout(Duration::from_secs(2))
        // A read waits for what other nodes have acknowledged.
        .after_connect(|connection, _| {
            Box::pin(async move { connection.execute("SET wsrep_sync_wait = 1").await.map(drop) })
        })
        .connect_with(options)
        .await
        .unwrap();
    Arc::new(service(MariaDbStore::builder(pool).migrate().await.unwrap()))
}

/// Returns the sum of a counter over the nodes.
async fn counted(nodes: &[Node], name: &str) -> u64 {
    let mut sum = 0;
    for node in nodes {
        let sql =
            "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = ?";
        let value: String =
            sqlx::query_scalar(sql).bind(name).fetch_one(node.store().pool()).await.unwrap();
        sum += value.parse::<u64>().unwrap();
    }
    sum
}

#[test]
fn a_node_that_is_killed_loses_nothing_that_any_node_acknowledged() {
    let server = Server("mariadb", server_folder());
    let urls = server.run(&["cluster"], &[]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let nodes: Vec<Node> = urls.lines().map(|url| runtime.block_on(node(url))).collect();
    assert_eq!(nodes.len(), 3);

    // Without the setting, a store refuses to open.
    runtime.block_on(async {
        let pool = sqlx::MySqlPool::connect(urls.lines().next().unwrap()).await.unwrap();
        let refused = MariaDbStore::builder(pool).open().await.unwrap_err().to_string();
        assert!(refused.starts_with("wsrep_sync_wait is \"0\"; patkit needs 1"), "{refused}");
    });

    let tally = Arc::new(Tally::default());
    let mut conflicts = 0;
    for round in 0..rounds() {
        let killed = usize::try_from(round % 3).unwrap();
        let pairs: Vec<_> =
            (0..6).map(|writer| [&nodes[writer % 3], &nodes[(writer + 1) % 3]]).collect();
        let loads = Loads::start(&runtime, &pairs, &tally);
        std::thread::sleep(Duration::from_millis(300) + delay(round));
        conflicts = conflicts.max(runtime.block_on(async {
            counted(&nodes, "wsrep_local_cert_failures").await
                + counted(&nodes, "wsrep_local_bf_aborts").await
        }));
        let number = (killed + 1).to_string();
        server.run(&["kill"], &[&number]);
        // The others go on once they have noticed.
        std::thread::sleep(Duration::from_millis(500));
        server.run(&["rejoin"], &[&number]);
        std::thread::sleep(Duration::from_millis(200));
        loads.end(&runtime, &nodes);
        // What one node acknowledges, each other node sees at once.
        runtime.block_on(async {
            for (one, node) in nodes.iter().enumerate() {
                let issued = node.generate(&ada(), NewToken::named(&unique("b"))).await.unwrap();
                let text = issued.plaintext.expose_secret();
                for other in &nodes {
                    other.verify(Credential::text(text)).await.unwrap();
                }
                nodes[(one + 1) % 3]
                    .revoke(&ada(), issued.token.id(), Reason::Owner)
                    .await
                    .unwrap();
                for other in &nodes {
                    let refused = other.verify(Credential::text(text)).await.unwrap_err();
                    assert_eq!(refused.reject_reason(), Some(RejectReason::Revoked));
                }
            }
        });
    }
    println!("{} nodes killed: {tally}, {conflicts} conflicts of certification", rounds());
    assert!(conflicts > 0, "the nodes did not write at the same time");
    assert!(tally.unavailable.load(Ordering::Relaxed) > 0, "no kill was felt");
}

/// The host names both servers, and connects to the one that writes.
#[test]
fn a_standby_that_takes_over_has_all_that_was_acknowledged() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let tally = Arc::new(Tally::default());
    for round in 0..rounds() {
        let server = Server("postgres", server_folder());
        let urls = server.run(&["pair"], &[]);
        let folders: Vec<&str> =
            urls.lines().map(|url| url.split_once("&host=").unwrap().1).collect();
        let config = format!(
            "host={},{} user=postgres dbname=postgres target_session_attrs=read-write connect_timeout=2",
            folders[0], folders[1]
        );
        let manager = Manager::new(config.parse().unwrap(), NoTls);
        let pool = Pool::builder(manager).max_size(8).build().unwrap();
        let service = runtime.block_on(async {
            Arc::new(service(SqlStore::builder(pool).migrate().await.unwrap()))
        });
        let loads = Loads::start(&runtime, &[[&service; 2]; 6], &tally);
        std::thread::sleep(Duration::from_millis(100) + delay(round));
        server.run(&["fail-over"], &[]);
        recovers(&runtime, &service);
        std::thread::sleep(Duration::from_millis(100));
        loads.end(&runtime, &[service]);
    }
    println!("{} primaries killed: {tally}", rounds());
    assert!(tally.unavailable.load(Ordering::Relaxed) > 0, "no kill was felt");
}
