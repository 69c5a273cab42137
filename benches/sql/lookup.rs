//! Measures a verification without a cache against the bare lookup of the same row, over one
//! driver. The benches of drivers outside this workspace include this file.
//!
//! The bare lookup is what a host would write: a prepared statement by the primary key, of the same
//! columns, through the same pool. Both alternate within one run, in short samples, one request at a
//! time. A time is the lower quartile of the samples, and the ratio is the median of the ratios of
//! each turn.

#[allow(dead_code, reason = "no bench measures all engines")]
#[path = "rows.rs"]
pub mod rows;

use chrono::TimeDelta;
use patkit::store::record::TOKEN_COLUMNS;
use patkit::store::sql::{Connection, Driver};
use patkit::{
    Actor, Credential, Keyring, ManualClock, MemoryDirectory, NewToken, Owner, OwnerId, OwnerKind,
    SqlStore, TokenId, TokenPolicy, TokenService,
};
use rows::Engine;
use std::sync::Arc;
use std::time::Instant;

/// The number of tokens that are verified, at even distances among the rows.
const VERIFIED: u64 = 2_000;
const TURNS: usize = 1_000;
/// The number of lookups in a sample.
const SAMPLE: usize = 20;

/// Returns the number of rows to measure with: the first argument that is a number.
pub fn rows() -> u64 {
    std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000)
}

fn quantile(mut values: Vec<f64>, part: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / part]
}

fn service<D: Driver>(
    store: SqlStore<D>,
    clock: Option<Arc<ManualClock>>,
) -> TokenService<SqlStore<D>, MemoryDirectory> {
    let ada = Owner::new(OwnerId::new("ada").unwrap(), OwnerKind::Human).with_role("member");
    let builder = TokenService::builder(store, [ada].into_iter().collect())
        .brand("acme")
        .keyring(Keyring::from_text("1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap())
        .policy(TokenPolicy::builder().never_allowed(true).build().unwrap());
    match clock {
        Some(clock) => builder.clock(clock).build().unwrap(),
        None => builder.build().unwrap(),
    }
}

/// Fills a store whose tables have this prefix, and prints a line with the engine, the driver, the
/// microseconds of a verification and of a bare lookup, and the ratio of the two.
///
/// `bare` looks up the row of an id with a statement, and returns whether there is one.
pub async fn measure<D: Driver>(
    (engine, driver): (Engine, &str),
    (store, prefix): (SqlStore<D>, &str),
    bare: impl AsyncFn(&D, &str, TokenId) -> bool,
) {
    let rows = rows();
    let mut session = store.pool().acquire().await.unwrap();
    for statement in rows::insert(engine, &format!("{prefix}tokens"), rows) {
        session.run(&statement).await.unwrap();
    }
    drop(session);
    let tokens = generate(&store, rows).await;
    let placeholder = match engine {
        Engine::Sqlite => "?1",
        Engine::Postgres => "$1",
        Engine::MariaDb => "?",
    };
    let sql =
        format!("SELECT {} FROM {prefix}tokens WHERE id = {placeholder}", TOKEN_COLUMNS.join(", "));
    let service = service(store, None);
    let mut times = [const { Vec::new() }; 2];
    // A walk over all tokens that is not in their order.
    let mut walk = (0..).map(|step: usize| &tokens[step * 1_201 % tokens.len()]);
    for turn in 0..TURNS {
        for way in [turn % 2, 1 - turn % 2] {
            let began = Instant::now();
            for (id, text) in walk.by_ref().take(SAMPLE) {
                if way == 0 {
                    assert!(bare(service.store().pool(), &sql, *id).await);
                } else {
                    service.verify(Credential::text(text)).await.unwrap();
                }
            }
            times[way].push(began.elapsed().as_nanos() as f64 / 1_000.0 / SAMPLE as f64);
        }
    }
    let ratios = times[1].iter().zip(&times[0]).map(|(verified, bare)| verified / bare).collect();
    let [bare, verified] = times.map(|times| quantile(times, 4));
    let ratio = quantile(ratios, 2);
    let engine = match engine {
        Engine::Sqlite => "SQLite",
        Engine::Postgres => "PostgreSQL",
        Engine::MariaDb => "MariaDB",
    };
    println!(
        "{engine} {driver}: {rows} rows, {verified:.1} µs, bare {bare:.1} µs, {ratio:.2} times"
    );
}

/// Generates the tokens that are verified, each with the creation time of the rows around it.
async fn generate<D: Driver>(store: &SqlStore<D>, rows: u64) -> Vec<(TokenId, String)> {
    let clock = Arc::new(ManualClock::at(chrono::DateTime::UNIX_EPOCH));
    let maker = service(store.clone(), Some(clock.clone()));
    let ada = Actor::signed_in(OwnerId::new("ada").unwrap());
    let mut tokens = Vec::new();
    for number in 0..VERIFIED {
        let new = NewToken::named(&format!("ci {number}")).never_expires();
        let issued = maker.generate(&ada, new).await.unwrap();
        tokens.push((issued.token.id(), issued.plaintext.expose_secret().to_owned()));
        clock.advance(TimeDelta::milliseconds((rows / VERIFIED).cast_signed()));
    }
    tokens
}
