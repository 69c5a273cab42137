//! Tests of the table against a map of std, and of readers beside writers on real threads.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::many_single_char_names,
    reason = "tests"
)]

use super::index::scaled;
use super::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

fn table() -> Table<u64, 2> {
    Table::new(Arc::new(u64::MAX))
}

fn key(number: u64) -> Key {
    [number / 3, LEAST_SECOND_WORD + number]
}

fn get(table: &Table<u64, 2>, number: u64) -> Option<([u64; 2], u64)> {
    table.get(key(number), |_| true).map(|entry| (entry.words, **entry.value))
}

proptest! {
    /// Few keys, so that slots are often removed and reused, and indexes often grow.
    #[test]
    fn it_is_a_map(steps in prop::collection::vec((0..3_u8, 0..2_000_u64, any::<u64>()), 0..4_000)) {
        let (table, mut map) = (table(), HashMap::new());
        for (what, number, value) in steps {
            match what {
                0 => {
                    table.put(key(number), |_| true, [value, !value], Arc::new(value));
                    map.insert(number, value);
                }
                1 => prop_assert_eq!(table.remove(key(number), |_| true), map.remove(&number).is_some()),
                _ => {
                    let expected = map.get(&number).map(|value| ([*value, !*value], *value));
                    prop_assert_eq!(get(&table, number), expected);
                }
            }
        }
        for number in 0..2_000 {
            prop_assert_eq!(get(&table, number).map(|(_, value)| value), map.get(&number).copied());
        }
    }
}

/// Some of these keys share a tag. Slots are reused for other keys between `seek` and `get_from`.
#[test]
fn a_look_ahead_changes_nothing_of_what_is_found() {
    let table = table();
    for number in 0..5_000 {
        table.put(key(number), |_| true, [number; 2], Arc::new(number));
    }
    let ahead: Vec<_> = (0..6_000).map(|number| table.seek(key(number))).collect();
    let from = |number: u64| {
        let entry = table.get_from(ahead[number as usize], key(number), |_| true)?;
        Some((entry.words, **entry.value))
    };
    let misled =
        (0..5_000).filter(|n| table.place_of(key(*n), |_| true) != ahead[*n as usize]).count();
    assert!(misled > 0, "no tag is shared");
    for number in 0..6_000 {
        assert_eq!(from(number), (number < 5_000).then_some(([number; 2], number)));
    }
    for number in 0..2_500 {
        assert!(table.remove(key(number), |_| true));
    }
    for number in 5_000..8_000 {
        table.put(key(number), |_| true, [number; 2], Arc::new(number));
    }
    for number in 0..6_000 {
        assert_eq!(from(number), (number >= 2_500).then_some(([number; 2], number)));
    }
    // Places that have the slot of another key.
    for number in 2_500..5_000 {
        let other = table.place_of(key(number + 1), |_| true);
        let found = table.get_from(other, key(number), |_| true).map(|entry| **entry.value);
        assert_eq!(found, Some(number));
    }
}

#[test]
fn removing_and_adding_for_ever_takes_no_more_room() {
    let table = table();
    for number in 0..200_000 {
        table.put(key(number), |_| true, [0; 2], Arc::new(number));
        if number >= 100 {
            assert!(table.remove(key(number - 100), |_| true));
        }
    }
    let most = table.shards.iter().map(Shard::len_for_writer).max();
    assert!(most <= Some(128), "{most:?} places of an index");
    // At most 101 values at a time, a small part of what one shard holds.
    let slots: u32 = table.shards.iter().map(|shard| shard.lock().last).sum();
    assert!(slots <= 700, "{slots} slots");
}

/// A client that invents ids may vary a few of their bits. For one secret in a hundred, some of
/// those keys lie close together; for three secrets at once, none do.
#[test]
fn keys_that_differ_in_a_few_bits_of_either_word_lie_apart() {
    let tables: Vec<_> = std::iter::repeat_with(table).take(3).collect();
    let base = [0x0190_1234_5678_7ABC, 0x8123_4567_89AB_CDEF];
    let most_at_one_place = |table: &Table<u64, 2>, word: usize, shift: u32| {
        let mut counts = HashMap::new();
        for number in 0..1_024_u64 {
            let mut key = base;
            key[word] ^= number << shift;
            let hash = table.hash(key);
            // 16 shards of 512 places.
            *counts
                .entry((hash >> (u64::BITS - SHARD_BITS), scaled(hash, 512)))
                .or_insert(0_u32) += 1;
        }
        counts.into_values().max()
    };
    for word in 0..2 {
        for shift in 0..=54 {
            let most =
                tables.iter().map(|table| most_at_one_place(table, word, shift)).min().flatten();
            assert!(most <= Some(16), "word {word}, bits from {shift}: {most:?} at one place");
        }
    }
}

#[test]
fn values_that_share_a_key_are_told_apart() {
    let table = table();
    for value in [10, 11, 12] {
        table.put(key(1), |found| *found == value, [value; 2], Arc::new(value));
    }
    table.put(key(1), |found| *found == 11, [7; 2], Arc::new(11));
    assert!(table.remove(key(1), |found| *found == 10));
    let get = |value| table.get(key(1), |found| *found == value).map(|entry| entry.words);
    assert_eq!((get(10), get(11), get(12)), (None, Some([7; 2]), Some([12; 2])));
}

/// Keys that stay are always found, with a value and words of one put, and with no older value than
/// the last one that was acknowledged before the search.
#[test]
fn readers_never_miss_and_never_see_a_torn_value() {
    const STAYING: u64 = 500;
    let (table, over) = (table(), AtomicBool::new(false));
    for number in 0..STAYING {
        table.put(key(number), |_| true, [0, 0], Arc::new(0));
    }
    let acknowledged: Vec<AtomicU64> = (0..STAYING).map(|_| AtomicU64::new(0)).collect();
    thread::scope(|scope| {
        for reader in 0..2 {
            let (table, over, acknowledged) = (&table, &over, &acknowledged);
            scope.spawn(move || {
                let mut number = reader;
                while !over.load(Ordering::Relaxed) {
                    number = (number * 31 + 7) % STAYING;
                    let least = acknowledged[number as usize].load(Ordering::Acquire);
                    let ([one, two], value) = get(table, number).expect("it is always there");
                    assert!(one == two && two == value, "torn");
                    assert!(value >= least, "older than what was acknowledged");
                    assert_eq!(get(table, STAYING + 5_000_000), None);
                }
            });
        }
        for round in 1..=40_u64 {
            for number in 0..STAYING {
                table.put(key(number), |_| true, [round; 2], Arc::new(round));
                acknowledged[number as usize].store(round, Ordering::Release);
                // Other keys are added and removed, so that indexes grow and are tidied.
                table.put(key(STAYING + round * STAYING + number), |_| true, [1; 2], Arc::new(1));
                if round % 3 == 0 {
                    table.remove(key(STAYING + (round - 1) * STAYING + number), |_| true);
                }
            }
        }
        over.store(true, Ordering::Relaxed);
    });
}
