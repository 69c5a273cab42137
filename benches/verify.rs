//! Measures a verification against the floor in the same run: one pre-keyed HMAC over 48 bytes.
//!
//! Run with `cargo bench -p patkit-benches --bench verify`; add `-- quick` for 10^3 tokens alone.
//!
//! Each figure is the lower quartile of many short samples (about 20 µs each), because other load
//! of the machine only adds to a sample. Compare ratios, not nanoseconds. The floor is measured
//! again beside every line.

#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::disallowed_methods,
    reason = "a bench measures time and prints"
)]

use bench_common::{BATCH, Figure, Throughput, builder, floor, ids, measure, random, ready};
use patkit::clock::CoarseClock;
use patkit::{
    Actor, CachedStore, Credential, MemoryDirectory, MemoryStore, NewToken, TokenService,
    TokenStore,
};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

type Service = TokenService<Arc<MemoryStore>, MemoryDirectory>;

fn main() {
    let quick = std::env::args().any(|argument| argument == "quick");
    let sizes: &[usize] = if quick { &[1_000] } else { &[1_000, 1_000_000] };
    for &size in sizes {
        let owners = size.min(1_000);
        let (service, texts) = service(size, owners);
        println!("\n{size} tokens of {owners} owners");
        println!("{:<46} {}", "", Figure::HEAD);
        let mut walk = uniform(size).into_iter().cycle();
        let hot = || vec![texts[7 % size].clone(); BATCH];
        let mut any = || walk.by_ref().take(BATCH).map(|n| texts[n].clone()).collect::<Vec<_>>();
        line("verify, one hot token", hot, |header| verify(&service, header));
        line("verify, uniform", &mut any, |header| verify(&service, header));
        let coarse = builder(service.store().clone(), &ids(owners))
            .clock(CoarseClock::new())
            .pending_cap(size);
        let coarse = coarse.build().unwrap();
        line("verify, one hot token, coarse clock", hot, |header| verify(&coarse, header));
        line("verify, uniform, coarse clock", &mut any, |header| verify(&coarse, header));
        line("verify and require, uniform", &mut any, |header| {
            let verified = ready(service.verify(Credential::headers(Some(header)))).unwrap();
            black_box(verified.require("datastores:read").is_ok());
        });
        rejections(&service, &texts);
        let cached = cached(&service, size, owners);
        for text in &texts {
            verify(&cached, text);
        }
        line("through the cache, one hot token, coarse clock", hot, |header| {
            verify(&cached, header);
        });
        line("through the cache, uniform, coarse clock", &mut any, |header| {
            verify(&cached, header);
        });
        println!("{:<46} {}", "two threads against one", Throughput::HEAD);
        let half = size / 2;
        // The texts come from main memory as well, unlike those of requests. In the bench `scale`
        // they are in the processor's cache.
        threads("distinct tokens", |thread, n| verify(&service, &texts[thread * half + n % half]));
        threads("one hot token", |_, _| verify(&service, &texts[7 % size]));
        threads("through the cache, distinct tokens", |thread, n| {
            verify(&cached, &texts[thread * half + n % half]);
        });
        threads("through the cache, one hot token", |_, _| verify(&cached, &texts[7 % size]));
        threads("the floor itself", |_, n| floor(n));
    }
}

/// Returns a service for the same tokens behind a cache, both with the coarse clock.
fn cached(
    service: &Service,
    size: usize,
    owners: usize,
) -> TokenService<CachedStore<Arc<MemoryStore>>, MemoryDirectory> {
    let store = CachedStore::builder(service.store().clone())
        .capacity(2 * size as u64)
        .lifetime(Duration::from_secs(3_600))
        .clock(CoarseClock::new());
    builder(store.build().unwrap(), &ids(owners))
        .clock(CoarseClock::new())
        .pending_cap(size)
        .build()
        .unwrap()
}

fn rejections(service: &Service, texts: &[String]) {
    let good = &texts[0];
    let mut bad_checksum = good.clone();
    let last = if good.ends_with('0') { "1" } else { "0" };
    bad_checksum.replace_range(good.len() - 1.., last);
    let refuse = |header: &str| refuse(service, header);
    line("refuse: checksum", || vec![bad_checksum.clone(); BATCH], refuse);
    let wrong: Vec<String> = texts.iter().take(BATCH).map(|text| forged(text, false)).collect();
    let unknown: Vec<String> = texts.iter().take(BATCH).map(|text| forged(text, true)).collect();
    let secret = line("refuse: wrong secret", || wrong.clone(), refuse);
    let id = line("refuse: unknown id", || unknown.clone(), refuse);
    println!("{:<46} {:>27.2}", "unknown id against wrong secret", id / secret);
}

/// Returns the text with another secret, with another id if `other_id`, and with the right
/// checksum.
fn forged(text: &str, other_id: bool) -> String {
    let mut text = text.to_owned();
    let start = "Bearer acme_pat_".len();
    let secret_at = start + 22 + 8;
    flip(&mut text, secret_at);
    if other_id {
        // Changes random bits of the id, below its variant.
        flip(&mut text, start + 20);
        flip(&mut text, start + 19);
    }
    let checksum = crc32(&text.as_bytes()["Bearer ".len()..text.len() - 6]);
    let digits = base62(u64::from(checksum));
    let len = text.len();
    text.replace_range(len - 6.., &digits);
    text
}

fn flip(text: &mut String, at: usize) {
    let other = if &text[at..=at] == "3" { "4" } else { "3" };
    text.replace_range(at..=at, other);
}

fn base62(mut number: u64) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut text = [b'0'; 6];
    for place in text.iter_mut().rev() {
        *place = DIGITS[(number % 62) as usize];
        number /= 62;
    }
    String::from_utf8(text.to_vec()).unwrap()
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// Creates a service with this many tokens, evenly spread over the owners, and returns their
/// `Authorization` headers.
///
/// Every token was just used and its use is written, which is the state of a host after its first
/// minute.
fn service(size: usize, owners: usize) -> (Service, Vec<String>) {
    let ids = ids(owners);
    let service =
        builder(Arc::new(MemoryStore::new()), &ids).pending_cap(2 * size).build().unwrap();
    let started = Instant::now();
    let mut texts: Vec<String> = (0..size)
        .map(|n| {
            let new = NewToken::named(&format!("token-{n}")).scope(["datastores:*"]);
            let actor = Actor::signed_in(ids[n % owners].clone());
            let issued = ready(service.generate(&actor, new)).unwrap();
            format!("Bearer {}", issued.plaintext.expose_secret())
        })
        .collect();
    let made = started.elapsed();
    texts.sort_by_key(|text| crc32(text.as_bytes()));
    for text in &texts {
        verify(&service, text);
    }
    ready(service.flush()).unwrap();
    println!("generated in {:.1} µs each", made.as_micros() as f64 / size as f64);
    (service, texts)
}

fn verify<S: TokenStore>(service: &TokenService<S, MemoryDirectory>, header: &str) {
    black_box(ready(service.verify(Credential::headers(Some(header)))).unwrap());
}

fn refuse(service: &Service, header: &str) {
    black_box(ready(service.verify(Credential::headers(Some(header)))).unwrap_err());
}

/// Returns a fixed pseudo-random walk over all places.
fn uniform(size: usize) -> Vec<usize> {
    random().map(|number| (number % size as u64) as usize).take(1 << 20).collect()
}

/// Prints one line and returns the nanoseconds.
fn line(name: &str, headers: impl FnMut() -> Vec<String>, work: impl Fn(&str)) -> f64 {
    let figure = measure(2_000, headers, work);
    println!("{name:<46} {figure}");
    figure.ns
}

/// Prints the throughput of two threads against that of one.
fn threads(name: &str, work: impl Fn(usize, usize) + Sync) {
    println!("{name:<46} {}", bench_common::threads(work));
}
