//! Code that the benches share: a service with many owners, the unit of the figures, and the
//! measurement of one figure.

#![allow(
    missing_docs,
    missing_debug_implementations,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a bench measures time"
)]

use hmac::{Hmac, KeyInit, Mac};
use patkit::service::TokenServiceBuilder;
use patkit::{
    Keyring, MemoryDirectory, Owner, OwnerId, OwnerKind, RoleCatalog, TokenService, TokenStore,
};
use sha2::Sha256;
use std::fmt;
use std::hint::black_box;
use std::pin::pin;
use std::sync::{Barrier, LazyLock};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

/// Calls of one sample, and floors of one sample, which take about 20 µs each.
pub const BATCH: usize = 100;
const FLOORS: usize = 160;

/// Rounds of threads, the measured calls of one thread in a round, and the calls before them that
/// are not measured. A round is shorter than the 1 to 2 ms after which a busy system takes the
/// processor away.
const ROUNDS: usize = 201;
const CALLS: usize = 2_000;
const WARM: usize = 500;

pub fn ids(owners: usize) -> Vec<OwnerId> {
    (0..owners).map(|n| OwnerId::new(&format!("user-{n:06}")).unwrap()).collect()
}

/// Creates a service for these owners. All services have one key, so that one verifies what another
/// creates.
pub fn builder<S: TokenStore>(
    store: S,
    owners: &[OwnerId],
) -> TokenServiceBuilder<S, MemoryDirectory> {
    let permissions = ["datastores:read", "datastores:write"];
    let owner = |id: &OwnerId| Owner::new(id.clone(), OwnerKind::Human).with_role("member");
    let directory: MemoryDirectory = owners.iter().map(owner).collect();
    TokenService::builder(store, directory)
        .brand("acme")
        .keyring(Keyring::from_text("1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap())
        .roles(RoleCatalog::standard_builder().grant("member", permissions).build().unwrap())
}

/// Polls a future once, because the memory store never waits.
pub fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the memory store waited"),
    }
}

/// Computes the unit: pre-keyed HMAC-SHA256 over 48 bytes.
pub fn floor(n: usize) {
    static KEYED: LazyLock<Hmac<Sha256>> =
        LazyLock::new(|| Hmac::new_from_slice(&[7; 32]).unwrap());
    let mut mac = KEYED.clone();
    let mut message = [0x55_u8; 48];
    message[..8].copy_from_slice(&n.to_le_bytes());
    mac.update(&message);
    black_box(mac.finalize().into_bytes());
}

/// Returns pseudo-random numbers, the same in each run.
pub fn random() -> impl Iterator<Item = u64> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    })
}

/// Nanoseconds of one call, and of one floor measured at the same time.
pub struct Figure {
    pub ns: f64,
    floor: f64,
}

impl Figure {
    /// The heading over the columns of a figure.
    pub const HEAD: &str = "       ns  floor ns    HMAC";
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.1} {:>9.1} {:>7.2}", self.ns, self.floor, self.ns / self.floor)
    }
}

/// Measures one call over this many samples, with the floor beside each. Copies the texts of a
/// sample before it begins, because a request's text comes from its socket and is in the
/// processor's cache.
pub fn measure(
    samples: usize,
    mut texts: impl FnMut() -> Vec<String>,
    work: impl Fn(&str),
) -> Figure {
    let mut measured: Vec<f64> = Vec::new();
    let mut floors: Vec<f64> = Vec::new();
    for _ in 0..samples {
        let texts = texts();
        (0..FLOORS / 8).for_each(floor);
        let started = Instant::now();
        for text in &texts {
            work(text);
        }
        measured.push(started.elapsed().as_nanos() as f64 / texts.len() as f64);
        let started = Instant::now();
        (0..FLOORS).for_each(floor);
        floors.push(started.elapsed().as_nanos() as f64 / FLOORS as f64);
    }
    Figure { ns: quartile(measured), floor: quartile(floors) }
}

/// Nanoseconds of one call on one thread, and on each of two threads. Displays also how many times
/// the throughput of one thread two have.
pub struct Throughput {
    one: f64,
    two: f64,
}

impl Throughput {
    /// The heading over the columns of a throughput.
    pub const HEAD: &str = "    ns, 1     ns, 2   times";
}

impl fmt::Display for Throughput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.1} {:>9.1} {:>7.2}", self.one, self.two, 2.0 * self.one / self.two)
    }
}

/// Measures two threads against one.
///
/// Rounds of one and of two threads alternate, and of two threads the slower one counts. `work`
/// gets the number of the thread, and a number that grows from round to round.
pub fn threads(work: impl Fn(usize, usize) + Sync) -> Throughput {
    let mut first = 0;
    let mut round = |count: usize| {
        let barrier = Barrier::new(count);
        let times = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..count)
                .map(|thread| {
                    let (barrier, work) = (&barrier, &work);
                    scope.spawn(move || {
                        (first..first + WARM).for_each(|n| work(thread, n));
                        barrier.wait();
                        let started = Instant::now();
                        (first + WARM..first + WARM + CALLS).for_each(|n| work(thread, n));
                        started.elapsed().as_nanos() as f64 / CALLS as f64
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).fold(0.0, f64::max)
        });
        first += WARM + CALLS;
        times
    };
    let (one, two) = (0..ROUNDS).map(|_| (round(1), round(2))).unzip();
    Throughput { one: quartile(one), two: quartile(two) }
}

/// Returns the lower quartile, because other load of the machine only adds to a sample.
fn quartile(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 4]
}
