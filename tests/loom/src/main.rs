//! Models of the lock-free table, which loom runs in all orders of their accesses: `scripts/loom`.
//!
//! The models run the files of `src/table` themselves. Only `parts.rs` differs: it takes atomics
//! and locks from loom, and makes blocks so short that three keys grow every array.
//!
//! # What the models cover
//!
//! * Interleavings of a reader and a writer or of two writers, in one model of a reader and two
//!   writers, with at most as many preemptions as `LOOM_MAX_PREEMPTIONS` says, 3 by default.
//! * Stale values: a load returns each older value that the orderings of C++20 permit, so that an
//!   ordering that is too weak fails on every processor, also on x86-64.
//!
//! # What they do not cover
//!
//! * `ArcSwap`, `OnceLock` and `Mutex` themselves. The models rely on what these promise; see
//!   `parts.rs` for the stand-ins.
//! * Interleavings that loom skips, because it tries to swap an access only with the last one
//!   before it of the same atomic. Each model therefore names the outcomes that it must reach.
//! * A load that returns a value stored later in the run, as relaxed atomics permit.
//! * More preemptions, more threads, longer histories, and sizes other than those of the models.
//!   `src/table/tests.rs` and `tests/races.rs` run the real sizes on real threads, by chance.
//! * Progress: termination of a reader that retries.

#![allow(dead_code, reason = "the models do not call every function of the table")]

#[path = "../../../src/table/mod.rs"]
mod table;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use std::collections::BTreeSet;
use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, OnceLock};
use std::time::Instant;
use table::{BoundedTable, Key, Place, Table};

/// The preemptions of a run, unless `LOOM_MAX_PREEMPTIONS` says otherwise. Loom's documentation
/// calls 2 or 3 enough for most bugs.
const PREEMPTIONS: usize = 3;

/// A name, a model, and all outcomes that its runs must have. Without the outcomes, a model that
/// loom does not explore would pass.
type Model = (&'static str, fn(), &'static [&'static str]);

const MODELS: [Model; 11] = [
    ("read while written", read_while_written, &["new", "old"]),
    ("read twice while written", read_twice_while_written, &["new new", "old new", "old old"]),
    ("read while added", read_while_added, &["found", "found after none", "none"]),
    ("read while removed", read_while_removed, &["found", "none"]),
    ("read while a slot is reused", read_while_a_slot_is_reused, &["found", "none"]),
    ("read by a stale place", read_by_a_stale_place, &["found", "none"]),
    ("read while the index grows", read_while_the_index_grows, &["found"]),
    ("read while keys change places", read_while_keys_change_places, &["found"]),
    ("read while it grows and shrinks", read_while_it_grows_and_shrinks, &["found"]),
    ("two writers", two_writers, &["1 kept", "1 removed", "2 kept", "2 removed"]),
    ("read while evicted", read_while_evicted, &["found", "none"]),
];

/// Runs the models whose names contain an argument, or all models if there is none.
fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    // Chosen beforehand so that all runs of a model do the same.
    loom::model(|| {
        keys();
    });
    let mut ran = 0;
    for (name, model, outcomes) in MODELS {
        if wanted.is_empty() || wanted.iter().any(|wanted| name.contains(wanted.as_str())) {
            println!("{name}: begins");
            let began = Instant::now();
            let runs = explore(model);
            let seen = std::mem::take(&mut *SEEN.lock().unwrap());
            assert!(
                seen.iter().eq(outcomes),
                "loom tried too little: {seen:?} instead of {outcomes:?}"
            );
            println!("{name}: holds in {runs} runs, {:.1?}", began.elapsed());
            ran += 1;
        }
    }
    assert!(ran > 0, "no model is named {wanted:?}");
}

fn explore(model: fn()) -> usize {
    let runs = std::sync::Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let mut loom = loom::model::Builder::new();
    loom.preemption_bound = loom.preemption_bound.or(Some(PREEMPTIONS));
    loom.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    runs.load(Ordering::Relaxed)
}

/// The outcomes of a model so far.
static SEEN: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());

fn saw(outcome: &'static str) {
    SEEN.lock().unwrap().insert(outcome);
}

/// Runs `reader` beside `writer`, in each order that loom tries.
fn beside<T>(writer: impl FnOnce() + 'static, reader: impl FnOnce() -> T) -> T {
    // Loom swaps two accesses only if no other access of the same atomic lies between them. Both
    // threads begin with this one, so that loom lets either of them begin.
    let begun = Arc::new(AtomicU64::new(0));
    let writer = {
        let begun = begun.clone();
        thread::spawn(move || {
            begun.fetch_add(1, Ordering::Relaxed);
            writer();
        })
    };
    begun.fetch_add(1, Ordering::Relaxed);
    let read = reader();
    writer.join().unwrap();
    read
}

/// A value is a number, and the word beside it is the same number.
type Numbers = Table<u64, 1>;

/// Returns the key of most models. Its search begins at place 0 of an index of two places, and at
/// place 1 of an index of three.
fn key() -> Key {
    keys()[4]
}

/// Returns a key whose search begins at place 0 of every index.
fn other() -> Key {
    keys()[0]
}

/// Returns keys of one shard, one tag and one second word, by the twelfth of the index in which
/// their search begins.
fn keys() -> [Key; 12] {
    static KEYS: OnceLock<[Key; 12]> = OnceLock::new();
    *KEYS.get_or_init(|| {
        let table = table();
        std::array::from_fn(|twelfth| table.key_in_twelfth(twelfth as u64))
    })
}

fn table() -> Arc<Numbers> {
    Arc::new(Table::new(std::sync::Arc::new(u64::MAX)))
}

fn table_of(numbers: &[(Key, u64)]) -> Arc<Numbers> {
    let table = table();
    for (key, number) in numbers {
        put(&table, *key, *number);
    }
    table
}

fn put(table: &Numbers, key: Key, number: u64) {
    assert!(table.put(key, |_| true, [number], number.into()).is_some());
}

fn get(table: &Numbers, key: Key) -> Option<u64> {
    get_from(table, None, key)
}

fn get_from(table: &Numbers, place: Option<Place>, key: Key) -> Option<u64> {
    let entry = table.get_from(place, key, |_| true)?;
    let number = **entry.value;
    assert_eq!(entry.words, [number], "torn");
    Some(number)
}

/// A key that stays is found whole, with the value last put before the search.
fn read_while_written() {
    let (table, acknowledged) = (table_of(&[(key(), 1)]), Arc::new(AtomicU64::new(1)));
    let writer = {
        let (table, acknowledged) = (table.clone(), acknowledged.clone());
        move || {
            put(&table, key(), 2);
            acknowledged.store(2, Ordering::Release);
        }
    };
    beside(writer, || {
        let least = acknowledged.load(Ordering::Acquire);
        let found = get(&table, key()).expect("it stays");
        assert!(found >= least, "older than what was acknowledged");
        saw(if found == 1 { "old" } else { "new" });
    });
    assert_eq!(get(&table, key()), Some(2));
}

/// A reader that saw a change never sees the earlier value again.
fn read_twice_while_written() {
    let table = table_of(&[(key(), 1)]);
    let writer = {
        let table = table.clone();
        move || put(&table, key(), 2)
    };
    saw(match beside(writer, || [get(&table, key()), get(&table, key())]) {
        [Some(1), Some(1)] => "old old",
        [Some(1), Some(2)] => "old new",
        [Some(2), Some(2)] => "new new",
        other => panic!("{other:?}"),
    });
}

/// A key that is added is found after its acknowledgement. The index grows from nothing.
fn read_while_added() {
    let (table, acknowledged) = (table(), Arc::new(AtomicU64::new(0)));
    let writer = {
        let (table, acknowledged) = (table.clone(), acknowledged.clone());
        move || {
            put(&table, key(), 1);
            acknowledged.store(1, Ordering::Release);
        }
    };
    beside(writer, || {
        let is_acknowledged = acknowledged.load(Ordering::Acquire) == 1;
        match [get(&table, key()), get(&table, key())] {
            [Some(1), Some(1)] => saw("found"),
            [None, Some(1)] if !is_acknowledged => saw("found after none"),
            [None, None] if !is_acknowledged => saw("none"),
            other => panic!("{other:?}, acknowledged: {is_acknowledged}"),
        }
    });
    assert_eq!(get(&table, key()), Some(1));
}

/// Removes a key, then puts another key into the same slot.
fn reuse(table: &Arc<Numbers>) -> impl FnOnce() + 'static {
    let table = table.clone();
    move || {
        assert!(table.remove(key(), |_| true));
        put(&table, other(), 2);
    }
}

/// A search for the removed key returns its value or none.
fn read_while_removed() {
    let table = table_of(&[(key(), 1)]);
    match beside(reuse(&table), || get(&table, key())) {
        Some(1) => saw("found"),
        None => saw("none"),
        wrong => panic!("{wrong:?}"),
    }
    assert_eq!((get(&table, key()), get(&table, other())), (None, Some(2)));
}

/// A search for the key that was put into the slot returns its value or none.
fn read_while_a_slot_is_reused() {
    let table = table_of(&[(key(), 1)]);
    match beside(reuse(&table), || get(&table, other())) {
        Some(2) => saw("found"),
        None => saw("none"),
        wrong => panic!("{wrong:?}"),
    }
}

/// A search that begins in a place whose slot now holds another key returns the value of the
/// requested key, or none.
fn read_by_a_stale_place() {
    let table = table_of(&[(key(), 1)]);
    let place = table.seek(key());
    assert!(place.is_some() && table.remove(key(), |_| true));
    let writer = {
        let table = table.clone();
        move || put(&table, other(), 2)
    };
    match beside(writer, || [key(), other()].map(|key| get_from(&table, place, key))) {
        [None, Some(2)] => saw("found"),
        [None, None] => saw("none"),
        wrong => panic!("{wrong:?}"),
    }
}

/// A key that stays is found while other keys make the index and the array of slots grow.
fn read_while_the_index_grows() {
    let table = table_of(&[(key(), 1)]);
    let writer = {
        let table = table.clone();
        move || {
            put(&table, other(), 2);
            put(&table, keys()[8], 3);
        }
    };
    assert_eq!(beside(writer, || get(&table, key())), Some(1));
    saw("found");
    let found = [key(), other(), keys()[8]].map(|key| get(&table, key));
    assert_eq!(found, [Some(1), Some(2), Some(3)]);
}

/// A key that stays is found while growth gives its place to another key that stays.
fn read_while_keys_change_places() {
    // Both searches begin at place 0 of three, and at places 1 and 0 of four.
    let moved = keys()[3];
    let table = table_of(&[(moved, 1), (other(), 2)]);
    let writer = {
        let table = table.clone();
        move || put(&table, keys()[8], 3)
    };
    assert_eq!(beside(writer, || get(&table, moved)), Some(1));
    saw("found");
    let found = [moved, other(), keys()[8]].map(|key| get(&table, key));
    assert_eq!(found, [Some(1), Some(2), Some(3)]);
}

/// A key that stays is found while growth gives its place to a key that another thread removes.
fn read_while_it_grows_and_shrinks() {
    let (table, begun) = (table_of(&[(key(), 1)]), Arc::new(AtomicU64::new(0)));
    let writer = {
        let (table, begun) = (table.clone(), begun.clone());
        move || {
            put(&table, other(), 2);
            let removes = thread::spawn(move || {
                // As in `beside`: lets loom begin with this thread or with the reader.
                begun.fetch_add(1, Ordering::Relaxed);
                assert!(table.remove(other(), |_| true));
            });
            removes.join().unwrap();
        }
    };
    let found = beside(writer, || {
        begun.fetch_add(1, Ordering::Relaxed);
        get(&table, key())
    });
    assert_eq!(found, Some(1));
    saw("found");
    assert_eq!((get(&table, key()), get(&table, other())), (Some(1), None));
}

/// Two writers of one key leave one value and lose no change of another key.
fn two_writers() {
    let table = table();
    let writer = {
        let table = table.clone();
        move || {
            put(&table, key(), 1);
            put(&table, other(), 3);
        }
    };
    let is_removed = beside(writer, || {
        put(&table, key(), 2);
        table.remove(other(), |_| true)
    });
    assert_eq!(get(&table, other()), if is_removed { None } else { Some(3) });
    match (get(&table, key()), is_removed) {
        (Some(1), true) => saw("1 removed"),
        (Some(1), false) => saw("1 kept"),
        (Some(2), true) => saw("2 removed"),
        (Some(2), false) => saw("2 kept"),
        wrong => panic!("{wrong:?}"),
    }
    assert!(table.remove(key(), |_| true));
    assert!(!table.remove(key(), |_| true), "it was there twice");
}

/// A full cache evicts, and never returns the value of another key.
fn read_while_evicted() {
    let numbers: BoundedTable<u64, 1> = BoundedTable::new(std::sync::Arc::new(u64::MAX), 1);
    numbers.put(key(), [1], 1.into(), |_| false);
    let numbers = Arc::new(numbers);
    let writer = {
        let numbers = numbers.clone();
        move || numbers.put(other(), [2], 2.into(), |_| false)
    };
    beside(writer, || match numbers.get(None, key()) {
        Some(entry) => {
            assert_eq!((entry.words, **entry.value), ([1], 1));
            numbers.note(entry.place);
            saw("found");
        }
        None => saw("none"),
    });
    assert_eq!(numbers.len(), 1);
    assert!(numbers.get(None, key()).is_none());
    assert_eq!(numbers.get(None, other()).map(|entry| entry.words), Some([2]));
}
