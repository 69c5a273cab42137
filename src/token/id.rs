//! The public id of a token: a `UUIDv7`, written as 22 base62 digits everywhere.

use super::base62;
use crate::random::{RandomError, SecureRandom};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// The public id of a token: 128 bits, a `UUIDv7` (RFC 9562 section 5.7), so that ids sort by their time of
/// creation, to the millisecond.
///
/// It is no secret: log it, show it, put it in a URL. Its text is always the same 22 characters that stand in the
/// plaintext token.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId {
    high: u64,
    low: u64,
}

/// The text or the bytes are no token id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token id is 22 characters of 0-9A-Za-z that hold a UUIDv7")]
#[non_exhaustive]
pub struct TokenIdError;

impl TokenId {
    /// Characters of an id's text.
    pub const TEXT_LEN: usize = 22;

    /// Marks empty places in memory. It is no `UUIDv7`, and no text or bytes from outside are read as this id.
    pub(crate) const VACANT: Self = Self { high: 0, low: 0 };

    /// A well-formed id of 1970 that no token has: stands for a text that is no id where an unknown id is looked up.
    #[cfg(feature = "axum")]
    pub(crate) const UNISSUED: Self = Self { high: Self::VERSION, low: Self::VARIANT };

    const VERSION: u64 = 0x7000;
    const VARIANT: u64 = 0x8000_0000_0000_0000;

    /// A new id for a token made at `now`.
    pub(crate) fn generate(now: DateTime<Utc>, random: &dyn SecureRandom) -> Result<Self, RandomError> {
        let mut bytes = [0; 16];
        random.fill(&mut bytes)?;
        let [high, low] = words(u128::from_be_bytes(bytes));
        // 48 bits of milliseconds; before 1970 they would wrap to the far future, so they stop at zero.
        let millis = u64::try_from(now.timestamp_millis()).unwrap_or(0);
        Ok(Self {
            high: (millis << 16) | Self::VERSION | (high & 0x0FFF),
            low: Self::VARIANT | (low & (Self::VARIANT >> 1).wrapping_sub(1)),
        })
    }

    /// The id in these 16 bytes, as [`to_bytes`](Self::to_bytes) gave them.
    ///
    /// # Errors
    /// [`TokenIdError`] when they hold no `UUIDv7`.
    pub fn from_bytes(bytes: [u8; 16]) -> Result<Self, TokenIdError> {
        let [high, low] = words(u128::from_be_bytes(bytes));
        Self::from_words([high, low]).ok_or(TokenIdError)
    }

    /// The 16 bytes of the UUID, big-endian: what a `uuid` or a 16-byte binary column holds.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.to_u128().to_be_bytes()
    }

    /// When the id was made, to the millisecond.
    pub fn created_at(self) -> DateTime<Utc> {
        i64::try_from(self.high >> 16)
            .ok()
            .and_then(DateTime::from_timestamp_millis)
            .unwrap_or(DateTime::UNIX_EPOCH)
    }

    pub(crate) const fn from_words([high, low]: [u64; 2]) -> Option<Self> {
        if high & 0xF000 == Self::VERSION && low >> 62 == 0b10 { Some(Self { high, low }) } else { None }
    }

    pub(crate) const fn words(self) -> [u64; 2] {
        [self.high, self.low]
    }

    pub(crate) fn digits(self) -> [u8; Self::TEXT_LEN] {
        let mut text = [0; Self::TEXT_LEN];
        let words = [base62::encode::<{ base62::WORD_DIGITS }>(self.high), base62::encode(self.low)];
        for (place, digit) in text.iter_mut().zip(words.as_flattened()) {
            *place = *digit;
        }
        text
    }

    const fn to_u128(self) -> u128 {
        from_words(self.words())
    }
}

/// The upper and the lower half of a number of 128 bits.
#[allow(clippy::as_conversions, clippy::cast_possible_truncation, reason = "the two halves are wanted")]
pub(crate) const fn words(number: u128) -> [u64; 2] {
    [(number >> 64) as u64, number as u64]
}

/// The number that has these halves.
#[allow(clippy::as_conversions, reason = "u128::from is not const; u64 to u128 loses nothing")]
pub(crate) const fn from_words([high, low]: [u64; 2]) -> u128 {
    ((high as u128) << 64) | low as u128
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(str::from_utf8(&self.digits()).unwrap_or_default())
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
        let mut amiss = base62::Amiss::default();
        let mut words = [0; 2];
        for (word, digits) in words.iter_mut().zip(digits.as_chunks::<{ base62::WORD_DIGITS }>().0) {
            let mut window = [b'0'; base62::WINDOW];
            for (place, digit) in window.iter_mut().zip(digits) {
                *place = *digit;
            }
            *word = base62::word(&window, &mut amiss);
        }
        Self::from_words(words).filter(|_| amiss.is_nothing()).ok_or(TokenIdError)
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

    #[test]
    fn an_id_is_a_uuid_v7_with_its_time() {
        let now = DateTime::from_timestamp_millis(1_777_777_777_123).unwrap();
        let id = TokenId::generate(now, &SystemRandom::new()).unwrap();
        assert_eq!(id.created_at(), now);
        let bytes = id.to_bytes();
        assert_eq!((bytes[6] >> 4, bytes[8] >> 6), (7, 0b10));
        assert_eq!(TokenId::from_bytes(bytes), Ok(id));
        assert_eq!(id.to_string().len(), TokenId::TEXT_LEN);
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn ids_sort_by_time_as_numbers_as_bytes_and_as_text() {
        let at = |ms| {
            TokenId::generate(DateTime::from_timestamp_millis(ms).unwrap(), &SystemRandom::new()).unwrap()
        };
        let (old, new) = (at(1_777_777_777_123), at(1_777_777_777_124));
        assert!(old < new && old.to_bytes() < new.to_bytes() && old.to_string() < new.to_string());
    }

    #[test]
    fn what_is_no_uuid_v7_is_refused() {
        assert_eq!(TokenId::from_bytes([0; 16]), Err(TokenIdError));
        assert_eq!(TokenId::from_bytes([0xFF; 16]), Err(TokenIdError));
        for text in
            ["", "0000000000000000000000", "zzzzzzzzzzzzzzzzzzzzzz", "018f2c1e-0000-7000-8000-000000000000"]
        {
            assert_eq!(text.parse::<TokenId>(), Err(TokenIdError));
        }
    }

    #[test]
    fn a_clock_before_1970_or_far_ahead_makes_an_id_all_the_same() {
        for now in [DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC] {
            let id = TokenId::generate(now, &SystemRandom::new()).unwrap();
            assert_eq!(TokenId::from_bytes(id.to_bytes()), Ok(id));
        }
    }
}
