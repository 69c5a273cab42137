//! Measures a verification that reads a database against the bare lookup of the same row, with 10^6
//! tokens, and what recording last uses adds:
//! `cargo bench -p patkit-benches-sql --bench store_path`.
//!
//! The bare lookup is what a host would write: a prepared statement through the same pool, by the
//! primary key, of the same columns, whose row is not read. SQLite is in a file, over sqlx.
//! PostgreSQL is at `PATKIT_TEST_POSTGRES_URL` and MariaDB at `PATKIT_TEST_MARIADB_URL`
//! (`scripts/postgres start DIR` and `scripts/mariadb start DIR` start them); the bench says which
//! of them is not set, and skips it. PostgreSQL is measured over sqlx and over tokio-postgres, on
//! the same tables, and then the one against the other.
//!
//! Compared operations alternate within one run, in short samples. A time is the lower quartile of
//! the samples, and a ratio is the median of the ratios of each turn. The bench `store` measures a
//! page of a list.

#![allow(
    missing_docs,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench measures time and prints"
)]

use bench_tables::places;
use chrono::{DateTime, TimeDelta};
use patkit::store::record::TOKEN_COLUMNS;
use patkit::{
    Actor, Credential, Keyring, ManualClock, MemoryDirectory, NewToken, Owner, OwnerId, OwnerKind,
    SqlStore, TokenId, TokenPolicy, TokenService, TokenStore,
};
use sqlx::AssertSqlSafe;
use sqlx::mysql::MySqlPool;
use sqlx::postgres::PgPool;
use sqlx::sqlite::SqlitePool;
use std::sync::Arc;
use std::time::Instant;

const SIZE: u64 = 1_000_000;
/// The number of connections in the pool.
const CONNECTIONS: u32 = 4;
/// The number of concurrent tasks, and the number of lookups of each task in a sample.
const AT_ONCE: [(u64, usize); 2] = [(1, 40), (16, 10)];
const TURNS: usize = 400;
/// The number of tokens that are verified, at random places among the others.
const VERIFIED: u64 = 4_000;
/// Verifications of one token per minute, which is the granularity of last uses: one a minute, one
/// every ten seconds, one a second.
const PER_MINUTE: [u32; 3] = [1, 6, 60];

/// A store that can run the bare lookup.
trait Bare: TokenStore + Clone + 'static {
    fn look_up(&self, sql: Arc<str>, id: TokenId) -> impl Future<Output = bool> + Send;
}

impl Bare for SqlStore<SqlitePool> {
    async fn look_up(&self, sql: Arc<str>, id: TokenId) -> bool {
        let query = sqlx::query(AssertSqlSafe(sql)).bind(id.to_bytes().to_vec());
        query.fetch_optional(self.pool()).await.unwrap().is_some()
    }
}

impl Bare for SqlStore<MySqlPool> {
    async fn look_up(&self, sql: Arc<str>, id: TokenId) -> bool {
        let sql = sql.replace("$1", "?");
        let query = sqlx::query(AssertSqlSafe(sql)).bind(id.to_bytes().to_vec());
        query.fetch_optional(self.pool()).await.unwrap().is_some()
    }
}

impl Bare for SqlStore<PgPool> {
    async fn look_up(&self, sql: Arc<str>, id: TokenId) -> bool {
        let query = sqlx::query(AssertSqlSafe(sql)).bind(id.to_bytes().to_vec());
        query.fetch_optional(self.pool()).await.unwrap().is_some()
    }
}

impl Bare for SqlStore<deadpool_postgres::Pool> {
    async fn look_up(&self, sql: Arc<str>, id: TokenId) -> bool {
        let client = self.pool().get().await.unwrap();
        let statement = client.prepare_cached(&sql).await.unwrap();
        client.query_opt(&statement, &[&&id.to_bytes()[..]]).await.unwrap().is_some()
    }
}

#[derive(Clone, Copy)]
enum Way {
    Bare,
    Find,
    Verify,
}

struct Bench<S> {
    service: TokenService<S, MemoryDirectory>,
    /// The statement of the bare lookup.
    sql: Arc<str>,
    tokens: Vec<(TokenId, String)>,
}

fn service<S: TokenStore>(
    store: S,
    clock: Option<Arc<ManualClock>>,
) -> TokenService<S, MemoryDirectory> {
    let users =
        (0..1_000).map(|number| Owner::new(owner(number), OwnerKind::Human).with_role("member"));
    let builder = TokenService::builder(store, users.collect())
        .brand("acme")
        .keyring(Keyring::from_text("1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap())
        .policy(TokenPolicy::builder().never_allowed(true).build().unwrap());
    match clock {
        Some(clock) => builder.clock(clock).build().unwrap(),
        None => builder.build().unwrap(),
    }
}

fn owner(number: u64) -> OwnerId {
    OwnerId::new(&format!("user {number}")).unwrap()
}

impl<S: Bare> Bench<S> {
    /// Makes the tokens that are verified, each with the creation time of the tokens around it.
    ///
    /// Their names begin with `name`.
    async fn new(store: S, table: &str, name: &str) -> Self {
        let clock = Arc::new(ManualClock::at(DateTime::UNIX_EPOCH));
        let maker = service(store.clone(), Some(clock.clone()));
        let mut tokens = Vec::new();
        for (number, place) in (0..VERIFIED).zip(places(SIZE)) {
            clock.set(DateTime::from_timestamp_millis(place.cast_signed()).unwrap());
            let new = NewToken::named(&format!("{name} {number}")).never_expires();
            let issued =
                maker.generate(&Actor::signed_in(owner(number % 1_000)), new).await.unwrap();
            tokens
                .push((issued.token.id(), format!("Bearer {}", issued.plaintext.expose_secret())));
        }
        let sql = format!("SELECT {} FROM {table} WHERE id = $1", TOKEN_COLUMNS.join(", "));
        Self { service: service(store, None), sql: sql.into(), tokens }
    }

    /// Returns the microseconds of one lookup, if `tasks` tasks do `each` lookups each.
    async fn sample(self: &Arc<Self>, way: Way, (tasks, each): (u64, usize), turn: u64) -> f64 {
        let began = Instant::now();
        let tasks: Vec<_> = (0..tasks)
            .map(|task| {
                let bench = self.clone();
                tokio::spawn(async move {
                    // Starts each sample in another part of the walk.
                    let from = (turn * 7_919 + task * 251) as usize;
                    for (id, header) in
                        bench.tokens.iter().cycle().skip(from % VERIFIED as usize).take(each)
                    {
                        bench.go(way, *id, header).await;
                    }
                })
            })
            .collect();
        let count = tasks.len() * each;
        for task in tasks {
            task.await.unwrap();
        }
        began.elapsed().as_nanos() as f64 / 1_000.0 / count as f64
    }

    async fn go(&self, way: Way, id: TokenId, header: &str) {
        match way {
            Way::Bare => assert!(self.service.store().look_up(self.sql.clone(), id).await),
            Way::Find => assert!(self.service.store().find(id).await.unwrap().is_some()),
            Way::Verify => {
                self.service.verify(Credential::headers(Some(header))).await.unwrap();
            }
        }
    }

    /// Returns the microseconds of a verification by one task.
    async fn compare(self: &Arc<Self>) -> f64 {
        let mut verified = 0.0;
        for at_once in AT_ONCE.into_iter().rev() {
            let ways = [Way::Bare, Way::Find, Way::Verify];
            let mut times = [const { Vec::new() }; 3];
            for turn in 0..TURNS {
                // Rotates the order, so that none always comes first.
                for place in 0..3 {
                    let way = (place + turn) % 3;
                    times[way]
                        .push(self.sample(ways[way], at_once, (turn * 3 + place) as u64).await);
                }
            }
            let what = ["bare look-up", "find", "verify_header"];
            for ((what, way), bare) in what.iter().zip(&times).zip([&times[0]; 3]) {
                let ratios = way.iter().zip(bare).map(|(way, bare)| way / bare).collect();
                let what = format!("{what}, {} at once", at_once.0);
                println!(
                    "{what:<32} {:>9.1} {:>7.2}",
                    quantile(way.clone(), 4),
                    quantile(ratios, 2)
                );
            }
            verified = quantile(times[2].clone(), 4);
        }
        verified
    }

    /// Prints what recording last uses adds to a verification that takes this many microseconds.
    async fn last_uses(&self, verified: f64) {
        let clock = Arc::new(ManualClock::at(DateTime::from_timestamp(1_900_000_000, 0).unwrap()));
        let service = service(self.service.store().clone(), Some(clock.clone()));
        let mut times = Vec::new();
        for round in 0..20 {
            clock.advance(TimeDelta::minutes(2));
            for (_, header) in self.tokens.iter().cycle().skip(round * 1_000).take(1_000) {
                service.verify(Credential::headers(Some(header))).await.unwrap();
            }
            let began = Instant::now();
            service.flush().await.unwrap();
            times.push(began.elapsed().as_nanos() as f64 / 1_000.0);
        }
        let each = quantile(times, 2) / 1_000.0;
        println!("{:<32} {each:>9.1} {:>7.2}", "flush of 1,000, each token", each / verified);
        for often in PER_MINUTE {
            let times = 1.0 + each / f64::from(often) / verified;
            let what = format!("verified {often} times a minute");
            println!("{what:<32} {:>9.1} {times:>7.3}", verified + each / f64::from(often));
        }
        println!("at most 1.02 from {:.0} times a minute on", (each / verified / 0.02).ceil());
    }
}

fn quantile(mut values: Vec<f64>, part: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / part]
}

async fn run<S: Bare>(engine: &str, store: S, table: &str) -> Arc<Bench<S>> {
    println!("\n{engine:<32} {:>9} {:>7}", "µs", "times");
    let bench = Arc::new(Bench::new(store, table, engine).await);
    let verified = bench.compare().await;
    bench.last_uses(verified).await;
    bench
}

/// Compares verifications of the same tables over sqlx and over tokio-postgres.
async fn against<A: Bare, B: Bare>(sqlx: Arc<Bench<A>>, tokio_postgres: Arc<Bench<B>>) {
    println!("\n{:<32} {:>9} {:>7}", "sqlx in times of tokio-postgres", "", "times");
    for (what, way) in [("bare look-up", Way::Bare), ("verify_header", Way::Verify)] {
        for at_once in AT_ONCE {
            let mut ratios = Vec::new();
            for turn in 0..TURNS as u64 {
                // Alternates which comes first.
                let ratio = if turn % 2 == 0 {
                    let time = sqlx.sample(way, at_once, turn).await;
                    time / tokio_postgres.sample(way, at_once, turn).await
                } else {
                    let time = tokio_postgres.sample(way, at_once, turn).await;
                    sqlx.sample(way, at_once, turn).await / time
                };
                ratios.push(ratio);
            }
            let what = format!("{what}, {} at once", at_once.0);
            println!("{what:<32} {:>9} {:>7.2}", "", quantile(ratios, 2));
        }
    }
}

#[tokio::main]
async fn main() {
    let (store, folder) = bench_tables::sqlite(SIZE, CONNECTIONS).await;
    run("SQLite, sqlx", store.clone(), "patkit_tokens").await;
    folder.remove(store).await;
    let table = format!("{}tokens", bench_tables::prefix(SIZE));
    if let Some(url) = bench_tables::url(bench_tables::POSTGRES) {
        let store = bench_tables::postgres(&url, SIZE, CONNECTIONS).await;
        let sqlx = run("PostgreSQL, sqlx", store.clone(), &table).await;
        let other = bench_tables::tokio_postgres(&url, SIZE, CONNECTIONS as usize).await;
        let tokio_postgres = run("PostgreSQL, tokio-postgres", other, &table).await;
        against(sqlx, tokio_postgres).await;
        bench_tables::drop_tables(&store, SIZE).await;
    }
    if let Some(url) = bench_tables::url(bench_tables::MARIADB) {
        let store = bench_tables::mariadb(&url, SIZE, CONNECTIONS).await;
        run("MariaDB, sqlx", store.clone(), &table).await;
        bench_tables::drop_tables(&store, SIZE).await;
    }
}
