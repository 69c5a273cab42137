//! Measures a permission check: `PermissionSet` against the representations that were rejected.
//!
//! Each figure is the median over many samples of about 20 µs, in nanoseconds per check, followed
//! by its ratio to the floor. The floor is one lookup of the same text in a `HashSet<String>` of
//! the same size, which knows no wildcards, measured in the same run. The requests of a case
//! alternate, so that the branch predictor does not learn a single one.
//!
//! Run with `cargo bench -p patkit-benches --bench permission`.

#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::string_slice
)]
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::as_conversions)]
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use patkit::permission::{Permission, PermissionSet};
use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::hint::black_box;
use std::time::{Duration, Instant};

const SAMPLES: usize = 501;
const SAMPLE: Duration = Duration::from_micros(20);
const REQUESTS: usize = 16;

fn main() {
    println!("ns for one check (ratio to one lookup in a HashSet<String>)\n");
    println!(
        "{:>6} {:9} {:>7} {:>14} {:>14} {:>14} {:>14} {:>14}",
        "grants",
        "request",
        "floor",
        "allows",
        "allows_str",
        "sorted text",
        "sorted hashes",
        "linear hashes"
    );
    for size in [4, 16, 64, 1_024] {
        let grants = grants(size);
        let set = PermissionSet::parse(&grants).unwrap();
        let texts = SortedTexts::new(&grants);
        let sorted = Hashes::sorted(&grants);
        let linear = Hashes::sorted(&grants);
        let plain: HashSet<String> = grants.iter().cloned().collect();

        for (case, expected) in [("hit", true), ("miss", false), ("wildcard", true)] {
            let requests: Vec<String> =
                (0..REQUESTS).map(|turn| request(case, turn, size)).collect();
            let parsed: Vec<Permission> =
                requests.iter().map(|text| Permission::parse(text).unwrap()).collect();
            let hashed: Vec<Hashed> = requests.iter().map(|text| Hashed::new(text)).collect();
            for (at, text) in requests.iter().enumerate() {
                assert_eq!(set.allows(&parsed[at]), expected, "{text}");
                assert_eq!(set.allows_str(text), Ok(expected), "{text}");
                assert_eq!(texts.allows(text), expected, "{text}");
                assert_eq!(sorted.allows_by_search(&hashed[at]), expected, "{text}");
                assert_eq!(linear.allows_by_scan(&hashed[at]), expected, "{text}");
            }
            let floor =
                measure(|turn| black_box(&plain).contains(black_box(&requests[turn]).as_str()));
            let figures = [
                measure(|turn| black_box(&set).allows(black_box(&parsed[turn]))),
                measure(|turn| black_box(&set).allows_str(black_box(&requests[turn])) == Ok(true)),
                measure(|turn| black_box(&texts).allows(black_box(&requests[turn]))),
                measure(|turn| black_box(&sorted).allows_by_search(black_box(&hashed[turn]))),
                measure(|turn| black_box(&linear).allows_by_scan(black_box(&hashed[turn]))),
            ];
            print!("{size:>6} {case:9} {floor:>7.1}");
            for figure in figures {
                print!(" {figure:>6.1} ({:>4.2}x)", figure / floor);
            }
            println!();
        }
    }
}

/// Returns the median time of one call in nanoseconds, less the cost of the empty loop.
fn measure(check: impl Fn(usize) -> bool) -> f64 {
    let calls = (SAMPLE.as_nanos() as f64 / sample(&check, 1_000).max(0.5)) as usize;
    let median = |mut samples: Vec<f64>| {
        samples.sort_by(f64::total_cmp);
        samples[SAMPLES / 2]
    };
    let with = median((0..SAMPLES).map(|_| sample(&check, calls)).collect());
    let without = median((0..SAMPLES).map(|_| sample(&|_| true, calls)).collect());
    (with - without).max(0.0)
}

fn sample(check: &impl Fn(usize) -> bool, calls: usize) -> f64 {
    let start = Instant::now();
    for call in 0..calls {
        black_box(check(black_box(call) % REQUESTS));
    }
    start.elapsed().as_nanos() as f64 / calls as f64
}

/// Returns grants of which three in four are concrete, and the fourth is a wildcard.
fn grants(size: usize) -> Vec<String> {
    (0..size)
        .map(|at| if at % 4 == 3 { format!("area-{at}:*") } else { format!("resource-{at}:read") })
        .collect()
}

fn request(case: &str, turn: usize, size: usize) -> String {
    let group = (turn * 71) % size / 4 * 4;
    match case {
        "hit" => format!("resource-{}:read", group + turn % 3),
        "miss" => format!("resource-{}:delete", group + turn % 3),
        _ => format!("area-{}:parts:write", group + 3),
    }
}

/// Rejected: the grants as sorted text, with a binary search for each prefix.
struct SortedTexts(Vec<String>);

impl SortedTexts {
    fn new(grants: &[String]) -> Self {
        let mut keys: Vec<String> =
            grants.iter().map(|grant| grant.trim_end_matches('*').to_owned()).collect();
        keys.sort();
        Self(keys)
    }

    fn allows(&self, permission: &str) -> bool {
        self.has(permission)
            || permission.match_indices(':').any(|(at, _)| self.has(&permission[..=at]))
    }

    fn has(&self, key: &str) -> bool {
        self.0.binary_search_by(|own| own.as_str().cmp(key)).is_ok()
    }
}

/// Rejected: the hashes of the grants in one array, searched or scanned. Texts are compared if
/// hashes match.
struct Hashes {
    hashes: Vec<u64>,
    keys: Vec<String>,
}

/// A permission with the hashes of its prefixes, as `Permission` has them.
struct Hashed {
    text: String,
    hash: u64,
    prefixes: Vec<(u64, usize)>,
}

impl Hashed {
    fn new(text: &str) -> Self {
        let prefixes =
            text.match_indices(':').map(|(at, _)| (hash(&text[..=at]), at + 1)).collect();
        Self { text: text.to_owned(), hash: hash(text), prefixes }
    }
}

impl Hashes {
    fn sorted(grants: &[String]) -> Self {
        let mut pairs: Vec<(u64, String)> = grants
            .iter()
            .map(|grant| grant.trim_end_matches('*'))
            .map(|key| (hash(key), key.to_owned()))
            .collect();
        pairs.sort();
        let (hashes, keys) = pairs.into_iter().unzip();
        Self { hashes, keys }
    }

    fn allows_by_search(&self, permission: &Hashed) -> bool {
        let has = |hash: u64, key: &str| {
            self.hashes.binary_search(&hash).is_ok_and(|at| self.keys[at] == key)
        };
        has(permission.hash, &permission.text)
            || permission
                .prefixes
                .iter()
                .any(|(hash, bytes)| has(*hash, &permission.text[..*bytes]))
    }

    fn allows_by_scan(&self, permission: &Hashed) -> bool {
        let has = |hash: u64, key: &str| {
            self.hashes.iter().position(|own| *own == hash).is_some_and(|at| self.keys[at] == key)
        };
        has(permission.hash, &permission.text)
            || permission
                .prefixes
                .iter()
                .any(|(hash, bytes)| has(*hash, &permission.text[..*bytes]))
    }
}

fn hash(key: &str) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(key)
}
