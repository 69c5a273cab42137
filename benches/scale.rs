//! Measures the memory and the speed of the memory store with 10^3 to 10^7 tokens:
//! `cargo bench -p patkit-benches --bench scale`.
//!
//! Add `-- quick` for 10^3 to 10^5 tokens, or `-- 1000000` for only that number. A whole run takes
//! some minutes, and 10^7 tokens take 10^7 times the memory that the figures show for one token.
//! Each size runs in a process of its own, because memory that an earlier size had freed would be
//! used again and distort the resident set.
//!
//! * **Traffic**: one token (hot); any token with the same chance (uniform); and Zipf's law with
//!   s = 1, in which the token of rank k has a chance of 1/k. A rank is `size^u` for a uniform `u`
//!   between 0 and 1, and does not depend on the age of the token. The walk is fixed. The headers
//!   of 10^6 requests are kept in the order of the requests, not those of all tokens.
//! * **Time**: nanoseconds and HMACs as in the bench `verify`, then the time of a call on one
//!   thread and on each of two, and how many times the throughput of one thread two have.
//! * **Memory**: bytes that were allocated for the store and not freed, which include indexes and
//!   free places of tables, less the bytes of the names, which belong to the host. Owner ids are
//!   shared with the directory and not counted. The growth of the resident set beside it also
//!   includes the overhead of the allocator, and names.
//! * **Loading**: batches of 1,000 records through `TokenStore::commit`, without events. A service
//!   over a store that keeps nothing makes the records. Each was just used, and many have the same
//!   scope.
//! * **Generating**: `TokenService::generate` over the full store, with an audit event for each
//!   token.

#![allow(
    missing_docs,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a bench measures time and prints"
)]

use bench_common::{
    BATCH, Figure, Throughput, builder, floor, ids, measure, random, ready, threads,
};
use chrono::{DateTime, Utc};
use patkit::store::{Change, ChangeBatch, ListQuery, Page, StoreError, Touch};
use patkit::token::LastUse;
use patkit::{
    Actor, Credential, IssuedToken, MemoryDirectory, MemoryStore, NewToken, OwnerId, Token,
    TokenId, TokenPolicy, TokenService, TokenStore,
};
use std::hint::black_box;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The number of requests in a walk.
const WALK: usize = 1 << 20;
/// The number of bytes in a header.
const HEADER: usize = "Bearer acme_pat_".len() + 72;
/// The number of records in a batch.
const LOADED: usize = 1_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let size = arguments.iter().find_map(|argument| argument.parse().ok());
    let is_quick = arguments.iter().any(|argument| argument == "quick");
    match size {
        Some(size) => scale(size),
        None => {
            for power in 3..=if is_quick { 5 } else { 7 } {
                let size = 10_usize.pow(power).to_string();
                let status =
                    Command::new(std::env::current_exe().unwrap()).arg(size).status().unwrap();
                assert!(status.success(), "{status}");
            }
        }
    }
}

/// Prints all figures for one size.
fn scale(size: usize) {
    let owners = ids((size / 10).clamp(1, 1_000));
    println!("\n{size} tokens of {} owners", owners.len());
    let any = random().map(|number| (number % size as u64) as usize);
    let mut traffic = [
        Traffic::new("one hot token", [size / 2].into_iter()),
        Traffic::new("Zipf", random().take(WALK).map(|number| ranked(number, size))),
        Traffic::new("uniform", any.take(WALK)),
    ];
    let store = load(size, &owners, &mut traffic);

    // Uses are noted at most once a day, so that none is noted while this measures.
    let policy =
        TokenPolicy::builder().last_used_granularity(Duration::from_secs(86_400)).build().unwrap();
    let service = builder(store, &owners).policy(policy).build().unwrap();
    let verify = |header: &str| {
        black_box(ready(service.verify(Credential::headers(Some(header)))).unwrap());
    };
    println!("{:<28} {}    {}", "", Figure::HEAD, Throughput::HEAD);
    for traffic in &traffic {
        let mut next = (0..).map(|n| traffic.header(n).to_owned());
        let figure = measure(2_000, || next.by_ref().take(BATCH).collect(), verify);
        // The second thread is half a walk ahead.
        let throughput = threads(|thread, n| verify(traffic.header(thread * WALK / 2 + n)));
        println!("verify, {:<20} {figure}    {throughput}", traffic.name);
    }
    println!("{:<28} {:>27}    {}", "the floor itself", "", threads(|_, n| floor(n)));

    let mut numbers = (size..).map(|n| n.to_string());
    // Few enough that the size hardly changes.
    let samples = (size / 10 / BATCH).clamp(10, 200);
    let generated = measure(
        samples,
        || numbers.by_ref().take(BATCH).collect(),
        |n| drop(black_box(generate(&service, &owners, n.parse().unwrap()))),
    );
    println!("{:<28} {generated}    {:.0} a second", "generate", 1e9 / generated.ns);
}

/// Returns the number of a token by Zipf's law. A prime that divides no size spreads the ranks over
/// the numbers.
fn ranked(number: u64, size: usize) -> usize {
    let even = (number >> 11) as f64 / (1_u64 << 53) as f64;
    (size as f64).powf(even) as usize * 6_700_417 % size
}

/// Generates the n-th token.
fn generate<S: TokenStore>(
    service: &TokenService<S, MemoryDirectory>,
    owners: &[OwnerId],
    n: usize,
) -> IssuedToken {
    let actor = Actor::signed_in(owners[n % owners.len()].clone());
    ready(service.generate(&actor, NewToken::named(&format!("token-{n}")).scope(["datastores:*"])))
        .unwrap()
}

/// Creates a store with this many tokens and prints what it took. Fills the walks with their
/// headers.
fn load(size: usize, owners: &[OwnerId], traffic: &mut [Traffic]) -> MemoryStore {
    let maker = builder(Made::default(), owners).build().unwrap();
    // Computes what is cached for each owner first, because it does not belong to the store.
    for n in 0..owners.len() {
        generate(&maker, owners, n);
        maker.store().take();
    }

    let mut loaded = None;
    let mut names = 0;
    let mut time = Duration::ZERO;
    let resident_before = resident();
    let held = allocation_counter::measure(|| {
        let store = loaded.insert(MemoryStore::new());
        for first in (0..size).step_by(LOADED) {
            for n in first..size.min(first + LOADED) {
                let issued = generate(&maker, owners, n);
                let header = format!("Bearer {}", issued.plaintext.expose_secret());
                for traffic in &mut *traffic {
                    traffic.keep(n, &header);
                }
            }
            let mut batch = ChangeBatch::new();
            for token in maker.store().take() {
                names += token.name.as_str().len();
                batch = batch.change(Change::Insert(Arc::new(token)));
            }
            let started = Instant::now();
            ready(store.commit(&batch)).unwrap();
            time += started.elapsed();
        }
    });
    let per_token = |bytes: f64| bytes / size as f64;
    let own = per_token(held.bytes_current as f64 - names as f64);
    let grown = match (resident_before, resident()) {
        (Some(before), Some(after)) => format!("{:.0}", per_token(after - before)),
        _ => "not known".to_owned(),
    };
    println!(
        "{:<28} {own:>9.0}   and {:.0} of its name; resident: {grown}",
        "bytes per token",
        per_token(names as f64)
    );
    println!(
        "{:<28} {:>9.0}   ns each, {:.3} s in all",
        "load",
        per_token(time.as_nanos() as f64),
        time.as_secs_f64()
    );
    loaded.unwrap()
}

/// Returns the bytes of the resident set, or `None` if the system does not say.
fn resident() -> Option<f64> {
    // The same as the second number of `statm`, in kilobytes instead of pages.
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(kilobytes.trim().trim_end_matches(" kB").parse::<f64>().ok()? * 1_024.0)
}

/// Headers in the order of the requests, concatenated, so that they are read sequentially, as from
/// a socket.
struct Traffic {
    name: &'static str,
    headers: String,
    /// Pairs of a token and its place in the walk that have no header yet, the lowest token last.
    open: Vec<(usize, usize)>,
}

impl Traffic {
    /// Creates a walk over these tokens.
    fn new(name: &'static str, walk: impl Iterator<Item = usize>) -> Self {
        let mut open: Vec<(usize, usize)> = walk.zip(0..).collect();
        open.sort_unstable_by(|one, other| other.cmp(one));
        // Written before anything is measured, so that it is resident.
        Self { name, headers: ".".repeat(HEADER * open.len()), open }
    }

    /// Stores the header of a token at each of its places. Must be called in the order of the
    /// tokens.
    fn keep(&mut self, token: usize, header: &str) {
        while let Some((_, place)) = self.open.pop_if(|(wanted, _)| *wanted == token) {
            self.headers.replace_range(HEADER * place..HEADER * (place + 1), header);
        }
    }

    /// Returns the n-th header. Starts over after the last one.
    fn header(&self, n: usize) -> &str {
        let start = HEADER * n % self.headers.len();
        &self.headers[start..start + HEADER]
    }
}

/// A store that only collects what is put into it, so that tokens are made as a host makes them and
/// kept elsewhere.
#[derive(Default)]
struct Made(Mutex<Vec<Token>>);

impl Made {
    fn take(&self) -> Vec<Token> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl TokenStore for Made {
    async fn find(&self, _id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        Ok(None)
    }

    async fn find_current(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.find(id).await
    }

    async fn list(&self, _query: &ListQuery) -> Result<Page, StoreError> {
        Ok(Page::default())
    }

    async fn commit(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        for change in &batch.changes {
            if let Change::Insert(token) = change {
                let last_used = Some(LastUse::new(token.created_at, None));
                self.0.lock().unwrap().push(Token { last_used, ..Token::clone(token) });
            }
        }
        Ok(())
    }

    async fn touch(&self, _uses: &[Touch]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn list_ended(&self, _before: DateTime<Utc>, _limit: usize) -> Result<Page, StoreError> {
        Ok(Page::default())
    }
}
