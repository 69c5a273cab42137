//! The public id of a token: a `UUIDv7`, written as 22 base62 digits everywhere.

use super::base62;
use crate::clock::MAX_CLOCK_ERROR;
use crate::random::{RandomError, SecureRandom};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

/// The public id of a token: 128 bits, a `UUIDv7` (RFC 9562 section 5.7).
///
/// The ids of one service increase strictly, even within a millisecond. Ids of several services
/// sort by their time of creation, to the millisecond.
///
/// An id is not a secret: log it, show it, put it in a URL. Its text is always the 22 characters
/// that are in the plaintext token.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId {
    high: u64,
    low: u64,
}

/// The error for a text or bytes that are not a token id.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the text is not a token id; write all 22 characters of the id, which are 0-9A-Za-z")]
#[non_exhaustive]
pub struct TokenIdError;

impl TokenId {
    /// Characters of an id's text.
    pub const TEXT_LEN: usize = 22;

    /// Marks empty places in memory. It is not a `UUIDv7`, so no text or bytes from outside are
    /// read as this id.
    pub(crate) const VACANT: Self = Self { high: 0, low: 0 };

    /// A well-formed id of 1970 that no token has. It replaces a text that is not an id in a
    /// lookup.
    #[cfg(feature = "api")]
    pub(crate) const UNISSUED: Self = Self { high: Self::VERSION, low: Self::VARIANT };

    const VERSION: u64 = 0x7000;
    const VARIANT: u64 = 0x8000_0000_0000_0000;

    /// Creates the id from 16 bytes, as [`to_bytes`](Self::to_bytes) returned them.
    ///
    /// # Errors
    /// [`TokenIdError`] if the bytes are not a `UUIDv7`.
    pub fn from_bytes(bytes: [u8; 16]) -> Result<Self, TokenIdError> {
        let [high, low] = words(u128::from_be_bytes(bytes));
        Self::from_words([high, low]).ok_or(TokenIdError)
    }

    /// Returns the 16 bytes of the UUID, big-endian, for a `uuid` or a 16-byte binary column.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.to_u128().to_be_bytes()
    }

    /// Returns when the id was created, to the millisecond.
    ///
    /// After a clock goes back, new ids keep the time from which it went back, for up to a day.
    pub fn created_at(self) -> DateTime<Utc> {
        DateTime::from_timestamp_millis((self.high >> 16).cast_signed())
            .expect("2^48 milliseconds end in the year 10889")
    }

    pub(crate) const fn from_words([high, low]: [u64; 2]) -> Option<Self> {
        if high & 0xF000 == Self::VERSION && low >> 62 == 0b10 {
            Some(Self { high, low })
        } else {
            None
        }
    }

    pub(crate) const fn words(self) -> [u64; 2] {
        [self.high, self.low]
    }

    pub(crate) fn digits(self) -> [u8; Self::TEXT_LEN] {
        let mut text = [0; Self::TEXT_LEN];
        let words =
            [base62::encode::<{ base62::WORD_DIGITS }>(self.high), base62::encode(self.low)];
        for (place, digit) in text.iter_mut().zip(words.as_flattened()) {
            *place = *digit;
        }
        text
    }

    const fn to_u128(self) -> u128 {
        from_words(self.words())
    }
}

/// Generates the ids of one service, for its tokens and its audit events.
///
/// Each id is greater than the one before (RFC 9562 section 6.2, method 1). The 12 bits after the
/// milliseconds are a counter that starts at 11 random bits in each new millisecond and overflows
/// into the milliseconds. If the clock stops or goes back by up to
/// [`MAX_CLOCK_ERROR`](crate::clock::MAX_CLOCK_ERROR), the ids continue from the last one. If the
/// clock goes back further, it was wrong before, and the ids follow the clock again. The remaining
/// 62 bits of an id are random.
pub(crate) struct IdSource {
    /// The milliseconds and the counter of the last token id, 60 bits.
    last: AtomicU64,
    /// The milliseconds and the counter of the last event id. Events have a separate counter, so
    /// that token ids do not depend on the number of events.
    last_event: AtomicU64,
    /// The random bits of the last id. All bits are set if there is none.
    drawn: AtomicU64,
    /// The number of events so far, and the key with which it is hashed.
    events: AtomicU64,
    event_key: RandomState,
}

impl IdSource {
    const COUNTER_BITS: u32 = 12;
    const DRAWS: u32 = 64;
    /// The largest start of the counter. It leaves half of the counter for the ids of the same
    /// millisecond.
    const COUNTER_START: u64 = 0x07FF;
    /// The end of the year 9999. Later instants count as this one, so that the counter never
    /// overflows the 48 bits of milliseconds. Instants before 1970 count as 1970.
    const LAST_MILLIS: u64 = 253_402_300_799_999;

    /// [`MAX_CLOCK_ERROR`](crate::clock::MAX_CLOCK_ERROR) in milliseconds.
    const LONGEST_STEP_BACK: u64 = MAX_CLOCK_ERROR.num_milliseconds().unsigned_abs();

    pub(crate) fn new() -> Self {
        Self {
            last: AtomicU64::new(0),
            last_event: AtomicU64::new(0),
            drawn: AtomicU64::new(u64::MAX),
            events: AtomicU64::new(0),
            event_key: RandomState::new(),
        }
    }

    /// Draws random bits.
    ///
    /// The counter makes ids differ even if the generator repeats itself. A generator that repeats
    /// itself would also repeat secrets, so a repetition is drawn again and finally is an error.
    fn draw(&self, random: &dyn SecureRandom) -> Result<[u64; 2], RandomError> {
        for _ in 0..Self::DRAWS {
            let mut bytes = [0; 16];
            random.fill(&mut bytes)?;
            let [start, low] = words(u128::from_be_bytes(bytes));
            let low = low & (TokenId::VARIANT >> 1).wrapping_sub(1);
            if self.drawn.swap(low, Ordering::AcqRel) != low {
                return Ok([start, low]);
            }
        }
        Err(RandomError::new())
    }

    /// Generates an id for a token created at `now`.
    ///
    /// # Errors
    /// [`RandomError`] if the generator fails or repeats itself.
    pub(crate) fn generate(
        &self,
        now: DateTime<Utc>,
        random: &dyn SecureRandom,
    ) -> Result<TokenId, RandomError> {
        let [start, low] = self.draw(random)?;
        Ok(Self::after(&self.last, now, start, low))
    }

    /// Returns the 128 bits of the id of a new audit event at `now`, which have the type of a token
    /// id.
    ///
    /// The bits that distinguish events of several services need not be unpredictable. They are a
    /// keyed hash of the event's number, so that a revocation does not fail if the random generator
    /// does.
    pub(crate) fn generate_event(&self, now: DateTime<Utc>) -> TokenId {
        let number = self.events.fetch_add(1, Ordering::Relaxed);
        let hash = self.event_key.hash_one(number);
        let low = hash & !TokenId::VARIANT & !(TokenId::VARIANT >> 1);
        Self::after(&self.last_event, now, hash >> 32, low)
    }

    /// Returns the id that follows the last one and has the random bits `low`. `start` is the first
    /// counter value of a new millisecond.
    fn after(last: &AtomicU64, now: DateTime<Utc>, start: u64, low: u64) -> TokenId {
        let millis =
            |at: DateTime<Utc>| at.timestamp_millis().max(0).unsigned_abs().min(Self::LAST_MILLIS);
        let own = (millis(now) << Self::COUNTER_BITS) | (start & Self::COUNTER_START);
        let latest = millis(now).saturating_add(Self::LONGEST_STEP_BACK) << Self::COUNTER_BITS;
        let next =
            |last: u64| if last < own || last > latest { own } else { last.saturating_add(1) };
        let last = last.fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| Some(next(last)));
        let ordered = next(last.expect("the update always gives a value"));
        let (millis, counter) = (ordered >> Self::COUNTER_BITS, ordered & 0x0FFF);
        TokenId { high: (millis << 16) | TokenId::VERSION | counter, low: TokenId::VARIANT | low }
    }
}

/// Returns the upper and the lower half of a number of 128 bits.
#[allow(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "the two halves are wanted"
)]
pub(crate) const fn words(number: u128) -> [u64; 2] {
    [(number >> 64) as u64, number as u64]
}

/// Returns the number with these halves.
#[allow(clippy::as_conversions, reason = "u128::from is not const; u64 to u128 loses nothing")]
pub(crate) const fn from_words([high, low]: [u64; 2]) -> u128 {
    ((high as u128) << 64) | low as u128
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(str::from_utf8(&self.digits()).expect("the digits of base62 are ASCII"))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenId({self})")
    }
}

impl FromStr for TokenId {
    type Err = TokenIdError;

    fn from_str(text: &str) -> Result<Self, TokenIdError> {
        let digits: &[u8; Self::TEXT_LEN] = text.as_bytes().try_into().map_err(|_| TokenIdError)?;
        let mut non_digits = base62::NonDigits::default();
        let mut words = [0; 2];
        for (word, digits) in words.iter_mut().zip(digits.as_chunks::<{ base62::WORD_DIGITS }>().0)
        {
            let mut window = [b'0'; base62::WINDOW];
            for (place, digit) in window.iter_mut().zip(digits) {
                *place = *digit;
            }
            *word = base62::word(&window, &mut non_digits);
        }
        Self::from_words(words).filter(|_| non_digits.is_nothing()).ok_or(TokenIdError)
    }
}

impl Serialize for TokenId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TokenId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
#[allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::many_single_char_names,
    clippy::string_slice,
    reason = "tests"
)]
mod tests {
    use super::*;
    use crate::random::SystemRandom;
    use chrono::TimeDelta;
    use std::collections::HashSet;

    fn new_id(source: &IdSource, now: DateTime<Utc>) -> TokenId {
        source.generate(now, &SystemRandom::new()).unwrap()
    }

    #[test]
    fn an_id_is_a_uuid_v7_with_its_time() {
        let now = DateTime::from_timestamp_millis(1_777_777_777_123).unwrap();
        let id = new_id(&IdSource::new(), now);
        assert_eq!(id.created_at(), now);
        let bytes = id.to_bytes();
        assert_eq!((bytes[6] >> 4, bytes[8] >> 6), (7, 0b10));
        assert_eq!(TokenId::from_bytes(bytes), Ok(id));
        assert_eq!(id.to_string().len(), TokenId::TEXT_LEN);
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn ids_sort_by_time_as_numbers_as_bytes_and_as_text() {
        let at = |ms| new_id(&IdSource::new(), DateTime::from_timestamp_millis(ms).unwrap());
        let (old, new) = (at(1_777_777_777_123), at(1_777_777_777_124));
        assert!(old < new && old.to_bytes() < new.to_bytes() && old.to_string() < new.to_string());
    }

    #[test]
    fn what_is_no_uuid_v7_is_refused() {
        assert_eq!(TokenId::from_bytes([0; 16]), Err(TokenIdError));
        assert_eq!(TokenId::from_bytes([0xFF; 16]), Err(TokenIdError));
        for text in [
            "",
            "0000000000000000000000",
            "zzzzzzzzzzzzzzzzzzzzzz",
            "018f2c1e-0000-7000-8000-000000000000",
        ] {
            assert_eq!(text.parse::<TokenId>(), Err(TokenIdError));
        }
    }

    #[test]
    fn a_clock_before_1970_or_far_ahead_makes_an_id_all_the_same() {
        for now in [DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC] {
            let source = IdSource::new();
            let ids: Vec<TokenId> = (0..10_000).map(|_| new_id(&source, now)).collect();
            assert!(ids.is_sorted_by(|a, b| a < b), "{now}");
            assert!(ids.iter().all(|id| TokenId::from_bytes(id.to_bytes()) == Ok(*id)));
        }
    }

    #[test]
    fn ids_increase_whatever_the_clock_does_within_a_day() {
        let source = IdSource::new();
        let start = DateTime::from_timestamp_millis(1_777_777_777_123).unwrap();
        let mut last = new_id(&source, start);
        // The clock stops, runs ahead, goes back by a little, goes back by a day, and continues.
        for offset in [0, 1, 0, -1, 2, -3_600_000, 3_600_000, 3_600_000 - 86_399_000, 0, 3_600_001]
        {
            for _ in 0..5_000 {
                let id = new_id(&source, start + TimeDelta::milliseconds(offset));
                assert!(id > last, "{offset}: {id:?} after {last:?}");
                last = id;
            }
        }
        assert!(last.created_at() < start + TimeDelta::hours(2), "the counter does not run away");
    }

    #[test]
    fn a_clock_that_was_a_century_ahead_once_leaves_nothing_behind() {
        let source = IdSource::new();
        let start = DateTime::from_timestamp_millis(1_777_777_777_123).unwrap();
        new_id(&source, start + TimeDelta::days(36_525));
        let (one, two) = (new_id(&source, start), new_id(&source, start));
        assert_eq!(one.created_at(), start);
        assert!(one < two);
    }

    #[test]
    fn ids_of_events_increase_and_differ_from_those_of_other_services() {
        let now = DateTime::from_timestamp_millis(1_777_777_777_123).unwrap();
        let (one, other) = (IdSource::new(), IdSource::new());
        let make =
            |source: &IdSource| (0..10_000).map(|_| source.generate_event(now)).collect::<Vec<_>>();
        let (mut ids, others) = (make(&one), make(&other));
        for ids in [&ids, &others] {
            assert!(ids.is_sorted_by(|a, b| a < b));
            assert!(ids.iter().all(|id| id.to_string().parse() == Ok(*id)));
            assert!(ids.iter().all(|id| TokenId::from_bytes(id.to_bytes()) == Ok(*id)));
        }
        ids.extend(others);
        // A clock that was wrong for more than a day repeats the milliseconds, but not the ids.
        one.generate_event(now + TimeDelta::days(3));
        ids.extend(make(&one));
        let low: HashSet<u64> = ids.iter().map(|id| id.words()[1]).collect();
        assert_eq!(low.len(), ids.len());
    }

    #[test]
    fn threads_share_one_order() {
        let source = IdSource::new();
        let now = DateTime::from_timestamp_millis(1_777_777_777_123).unwrap();
        let made = || {
            let ids: Vec<TokenId> = (0..20_000).map(|_| new_id(&source, now)).collect();
            assert!(ids.is_sorted_by(|a, b| a < b));
            ids
        };
        let (mut all, other) = std::thread::scope(|scope| {
            let other = scope.spawn(made);
            (made(), other.join().unwrap())
        });
        all.extend(other);
        let orders: HashSet<u64> = all.iter().map(|id| id.words()[0]).collect();
        assert_eq!(orders.len(), all.len(), "no two ids have the same place in the order");
    }

    #[test]
    fn an_id_keeps_62_random_bits() {
        let source = IdSource::new();
        let now = DateTime::from_timestamp_millis(1_777_777_777_123).unwrap();
        let (mut ever_set, mut always_set) = (0, u64::MAX);
        for _ in 0..1_000 {
            let [_, low] = new_id(&source, now).words();
            ever_set |= low;
            always_set &= low;
        }
        assert_eq!((ever_set, always_set), (u64::MAX >> 2 | 1 << 63, 1 << 63));
    }
}
