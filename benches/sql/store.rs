//! Measures the stores with 10^4 and 10^6 tokens, the memory store in bytes and those in databases
//! in time: `cargo bench -p patkit-benches-sql --bench store`.
//!
//! SQLite is in a file. PostgreSQL is at `PATKIT_TEST_POSTGRES_URL` and MariaDB at
//! `PATKIT_TEST_MARIADB_URL` (`scripts/postgres start DIR` and `scripts/mariadb start DIR` start
//! them, MariaDB with `PATKIT_MARIADB_MEMORY=1G`); the bench says which of them is not set, and skips
//! it. Each figure is the median of many calls. Compare ratios. Loading takes some minutes.

#![allow(
    missing_docs,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench measures time and prints"
)]

use bench_common::{builder, ids, ready};
use bench_tables::rows::{ENDED, PER_OWNER};
use bench_tables::{id, places};
use chrono::{DateTime, Utc};
use patkit::owner::{OwnerId, Realm};
use patkit::store::{Change, ChangeBatch, ListBy, ListQuery, Touch};
use patkit::token::ActorRef;
use patkit::token::{LastUse, TokenName};
use patkit::{
    Actor, AuditAction, AuditEvent, EventId, MemoryStore, NewToken, Token, TokenKind, TokenStore,
};
use std::time::Instant;

const SIZES: [u64; 2] = [10_000, 1_000_000];
struct Figures(Vec<(&'static str, f64)>);

/// Returns the median of each operation in microseconds.
async fn measure<S: TokenStore>(store: &S, size: u64) -> Figures {
    let mut figures = Vec::new();
    let mut walk = places(size);
    let template: Token = Token::clone(&store.find(id(size)).await.unwrap().unwrap());

    let mut times = Vec::new();
    for _ in 0..2_000 {
        let wanted = id(walk.next().unwrap());
        let began = Instant::now();
        store.find(wanted).await.unwrap().unwrap();
        times.push(began.elapsed());
    }
    figures.push(("find by id: a verification", median(times)));

    let mut times = Vec::new();
    for _ in 0..300 {
        let owner =
            OwnerId::new(&format!("owner {}", walk.next().unwrap() % (size / PER_OWNER))).unwrap();
        let by = ListBy::Owner { realm: Realm::default(), owner, kind: Some(TokenKind::Personal) };
        let began = Instant::now();
        let page = store.list(&ListQuery::new(by).limit(50)).await.unwrap();
        times.push(began.elapsed());
        assert_eq!(page.tokens.len() as u64, PER_OWNER);
    }
    figures.push(("list: an owner's tokens", median(times)));

    let mut times = Vec::new();
    for _ in 0..100 {
        let by = ListBy::Kind { realm: Realm::default(), kind: TokenKind::Personal };
        let after = Some(id(walk.next().unwrap()));
        let began = Instant::now();
        store.list(&ListQuery::new(by).limit(50).after(after)).await.unwrap();
        times.push(began.elapsed());
    }
    figures.push(("list: a page of 50 out of all", median(times)));

    let mut times = Vec::new();
    for number in 0..300 {
        let name = TokenName::new(&format!("made {number}")).unwrap();
        let mut token = Token { id: id(size + 1 + number), version: 1, ..template.clone() };
        token.rename(name);
        let batch = ChangeBatch::new().change(Change::Insert(token.into()));
        let began = Instant::now();
        store.commit(&batch).await.unwrap();
        times.push(began.elapsed());
    }
    figures.push(("commit: a new token", median(times)));

    let mut times = Vec::new();
    for round in 1..=20 {
        let at: DateTime<Utc> = DateTime::from_timestamp(1_800_000_000 + round, 0).unwrap();
        let uses: Vec<Touch> = walk
            .by_ref()
            .take(1_000)
            .map(|number| Touch::new(id(number), LastUse::new(at, None)))
            .collect();
        let began = Instant::now();
        store.touch(&uses).await.unwrap();
        times.push(began.elapsed());
    }
    figures.push(("touch: a batch of 1,000", median(times)));

    // Of the smaller size, a thousandth is ten tokens.
    let mut times = Vec::new();
    let ended = DateTime::from_timestamp_micros(ENDED.cast_signed()).unwrap();
    for _ in 0..5 {
        let began = Instant::now();
        let page = store.list_ended(ended, 2).await.unwrap();
        assert_eq!(page.tokens.len(), 2);
        let removals =
            page.tokens.iter().map(|token| Change::Remove { id: token.id, version: token.version });
        store.commit(&removals.fold(ChangeBatch::new(), ChangeBatch::change)).await.unwrap();
        times.push(began.elapsed());
    }
    figures.push(("prune: the 2 that ended first", median(times)));
    Figures(figures)
}

fn median(mut times: Vec<std::time::Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_nanos() as f64 / 1_000.0
}

fn print(engine: &str, figures: &[Figures]) {
    println!("\n{engine:<32} {:>12} {:>12} {:>7}", "10^4, µs", "10^6, µs", "times");
    for (small, large) in figures[0].0.iter().zip(&figures[1].0) {
        println!("{:<32} {:>12.1} {:>12.1} {:>7.2}", small.0, small.1, large.1, large.1 / small.1);
    }
}

async fn sqlite(size: u64) -> Figures {
    let (store, folder) = bench_tables::sqlite(size, 1).await;
    let figures = measure(&store, size).await;
    folder.remove(store).await;
    figures
}

async fn postgres(url: &str, size: u64) -> Figures {
    let store = bench_tables::postgres(url, size, 1).await;
    let figures = measure(&store, size).await;
    bench_tables::drop_tables(&store, size).await;
    figures
}

async fn mariadb(url: &str, size: u64) -> Figures {
    let store = bench_tables::mariadb(url, size, 1).await;
    let figures = measure(&store, size).await;
    bench_tables::drop_tables(&store, size).await;
    figures
}

/// Returns a token as a host makes it.
fn template() -> Token {
    let ids = ids(1);
    let tokens = builder(MemoryStore::new(), &ids).build().unwrap();
    let issued =
        ready(tokens.generate(&Actor::signed_in(ids[0].clone()), NewToken::named("template")))
            .unwrap();
    Token::clone(&ready(tokens.store().find(issued.token.id())).unwrap().unwrap())
}

/// Returns the bytes that the memory store holds for each token: all that was allocated and not
/// freed, which includes its share of the index and of free places.
///
/// With `is_told`, each token has the event of its creation. The second figure excludes the host's
/// own strings: names and owner ids.
fn bytes_per_token(template: &Token, size: u64, is_told: bool) -> [f64; 2] {
    let mut store = None;
    let mut strings = 0;
    let owners = 1_000.min(size);
    let held = allocation_counter::measure(|| {
        let memory = store.insert(MemoryStore::new());
        for number in 1..=size {
            let owner = OwnerId::new(&format!("owner {}", number % owners)).unwrap();
            let name = TokenName::new(&format!("token {number}")).unwrap();
            strings += name.as_str().len();
            strings += if number <= owners { owner.as_str().len() } else { 0 };
            let created_by = ActorRef::Owner(owner.clone());
            let mut token =
                Token { id: id(number), owner: owner.clone(), created_by, ..template.clone() };
            token.rename(name);
            let event = is_told.then(|| AuditEvent {
                id: EventId::from_bytes(id(number).to_bytes()).unwrap(),
                at: token.created_at,
                realm: token.realm.clone(),
                action: AuditAction::Generated,
                actor: ActorRef::Owner(owner.clone()),
                token: token.id,
                owner: Some(owner),
                reason: None,
                address: None,
            });
            let mut batch = ChangeBatch::new().change(Change::Insert(token.into()));
            batch.events.extend(event);
            ready(memory.commit(&batch)).unwrap();
        }
    });
    drop(store);
    [held.bytes_current as f64, held.bytes_current as f64 - strings as f64]
        .map(|bytes| bytes / size as f64)
}

#[tokio::main]
async fn main() {
    let template = template();
    println!("{:<32} {:>12} {:>12}", "Memory of 10^3 owners, bytes", "10^4", "10^6");
    for (what, is_told) in [("the record", false), ("the record and an audit event", true)] {
        let [small, large] = SIZES.map(|size| bytes_per_token(&template, size, is_told));
        println!("{what:<32} {:>12.0} {:>12.0}", small[0], large[0]);
        println!("{:<32} {:>12.0} {:>12.0}", "  beyond names and owners", small[1], large[1]);
    }
    print("SQLite", &[sqlite(SIZES[0]).await, sqlite(SIZES[1]).await]);
    if let Some(url) = bench_tables::url(bench_tables::POSTGRES) {
        print("PostgreSQL", &[postgres(&url, SIZES[0]).await, postgres(&url, SIZES[1]).await]);
    }
    if let Some(url) = bench_tables::url(bench_tables::MARIADB) {
        print("MariaDB", &[mariadb(&url, SIZES[0]).await, mariadb(&url, SIZES[1]).await]);
    }
}
