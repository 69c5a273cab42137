//! Base62 with the digits `0-9A-Za-z`, big-endian, of fixed width and canonical: each number has
//! exactly one text.
//!
//! Both directions work on secrets, so neither branches on a digit nor uses a digit as an index.
//! Any text is read, and a check afterwards shows whether it consisted of digits ([`NonDigits`]).
//! Sixteen characters are read together; the performance page says what that gains over a plain
//! loop.

use super::id;

/// Digits of one 64-bit word: 62^11 > 2^64 > 62^10.
pub(crate) const WORD_DIGITS: usize = 11;
/// Characters that are read together: the digits of a word and some that follow.
pub(crate) const WINDOW: usize = 16;
/// Digits of a CRC-32: 62^6 > 2^32 > 62^5.
pub(crate) const CRC_DIGITS: usize = 6;

/// Writes `value` as exactly `N` digits. `N` must be wide enough, because excess high digits are
/// cut off.
pub(crate) fn encode<const N: usize>(value: u64) -> [u8; N] {
    let mut text = [0; N];
    encode_into(value, &mut text);
    text
}

/// Writes `value` as [`encode`] does, into an array that the caller can wipe.
pub(crate) fn encode_into<const N: usize>(mut value: u64, text: &mut [u8; N]) {
    for place in text.iter_mut().rev() {
        *place = digit(value % 62);
        value /= 62;
    }
}

/// Collects the deviations of a text from the digits of numbers below 2^64.
///
/// They are collected without a branch and checked once, at the end.
#[derive(Default)]
pub(crate) struct NonDigits {
    /// The excess of each character over the digits. Zero for a digit.
    characters: [u8; WINDOW],
    is_over: bool,
}

impl NonDigits {
    /// Checks sixteen characters.
    ///
    /// Uses only operations that exist for vectors, so that the compiler vectorizes this function,
    /// as it does [`values`].
    #[inline]
    fn look(&mut self, window: &[u8; WINDOW]) {
        for (non_digits, &character) in self.characters.iter_mut().zip(window) {
            // The excess over the decimal digits, and over the letters, whose two cases differ only
            // in this bit.
            let number = character.wrapping_sub(b'0').saturating_sub(9);
            let letter = (character | 0x20).wrapping_sub(b'a').saturating_sub(25);
            *non_digits |= number.min(letter);
        }
    }

    pub(crate) fn is_nothing(&self) -> bool {
        !self.is_over && u128::from_ne_bytes(self.characters) == 0
    }
}

/// Returns whether all characters are digits. Returns false for fewer than sixteen characters.
#[inline]
pub(crate) fn are_digits(text: &[u8]) -> bool {
    // The last sixteen cover the remainder, so some characters may be checked twice.
    let (chunks, _) = text.as_chunks();
    let Some(last) = text.last_chunk() else { return false };
    let mut non_digits = NonDigits::default();
    chunks.iter().chain([last]).for_each(|chunk| non_digits.look(chunk));
    non_digits.is_nothing()
}

/// Returns the number of the first eleven of sixteen digits.
///
/// The result is meaningless if the number is over 2^64-1 or any of the sixteen characters is not a
/// digit.
#[inline]
pub(crate) fn word(window: &[u8; WINDOW], non_digits: &mut NonDigits) -> u64 {
    let [first, rest] = halves(values(window, non_digits));
    let low = (rest & 0xFF)
        .wrapping_mul(62 * 62)
        .wrapping_add((rest >> 8 & 0xFF).wrapping_mul(62))
        .wrapping_add(rest >> 16 & 0xFF);
    let (high, is_over) = join(first).overflowing_mul(62 * 62 * 62);
    let (number, is_over_too) = high.overflowing_add(low);
    non_digits.is_over |= is_over | is_over_too;
    number
}

/// Returns the number of the last six of sixteen digits.
///
/// The result is meaningless if any of the sixteen characters is not a digit.
#[inline]
pub(crate) fn crc(window: &[u8; WINDOW], non_digits: &mut NonDigits) -> u64 {
    let [_, last] = halves(values(window, non_digits));
    // The first two of these eight do not belong to the six. They are in the lowest bytes.
    join(last & !0xFFFF)
}

/// Splits the bytes into two words, the first byte lowest.
#[inline]
fn halves(bytes: [u8; WINDOW]) -> [u64; 2] {
    let [last, first] = id::words(u128::from_le_bytes(bytes));
    [first, last]
}

/// Returns the values of sixteen digits. A character that is not a digit gets a meaningless value.
#[inline]
fn values(window: &[u8; WINDOW], non_digits: &mut NonDigits) -> [u8; WINDOW] {
    non_digits.look(window);
    window.map(|character| {
        // Each mask has all bits set or none. The comparisons are signed because vectors have no
        // others, and correct because no digit is above 127.
        let letter = if character.cast_signed() > b'@'.cast_signed() { u8::MAX } else { 0 };
        let lower = if character.cast_signed() > b'`'.cast_signed() { u8::MAX } else { 0 };
        // Skips the gap between '9' and 'A', then the gap between 'Z' and 'a'.
        character.wrapping_sub(b'0').wrapping_sub(letter & 7).wrapping_sub(lower & 6)
    })
}

/// Returns the number of eight digits.
///
/// It joins pairs, then pairs of pairs, side by side in one word, which takes three multiplications
/// instead of eight.
const fn join(values: u64) -> u64 {
    const PAIR: u64 = 0x00FF_00FF_00FF_00FF;
    const FOUR: u64 = 0x0000_FFFF_0000_FFFF;
    const EIGHT: u64 = 0x0000_0000_FFFF_FFFF;
    let pairs = (values & PAIR).wrapping_mul(62).wrapping_add((values >> 8) & PAIR);
    let fours = (pairs & FOUR).wrapping_mul(62 * 62).wrapping_add((pairs >> 16) & FOUR);
    (fours & EIGHT).wrapping_mul(62 * 62 * 62 * 62).wrapping_add(fours >> 32)
}

/// Returns the character of a number below 62.
#[allow(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "the number is below 62"
)]
const fn digit(number: u64) -> u8 {
    let number = number as u8;
    // Skips the gap between '9' and 'A', then the gap between 'Z' and 'a'.
    let letters = if number >= 10 { 7 } else { 0 };
    let lower = if number >= 36 { 6 } else { 0 };
    b'0'.wrapping_add(number).wrapping_add(letters).wrapping_add(lower)
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
    use proptest::prelude::*;

    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

    #[test]
    fn every_byte_is_a_digit_or_refused() {
        for byte in 0..=u8::MAX {
            let place = DIGITS.iter().position(|&digit| digit == byte);
            for (len, at) in [(16, 0), (22, 3), (22, 21), (40, 17), (72, 71)] {
                let mut text = vec![b'0'; len];
                text[at] = byte;
                assert_eq!(are_digits(&text), place.is_some(), "{byte} at {at} of {len}");
            }
            if let Some(place) = place {
                assert_eq!(values(&[byte; 16], &mut NonDigits::default()), [place as u8; 16]);
                assert_eq!(digit(place as u64), byte);
            }
        }
    }

    fn read(text: &[u8; 11]) -> Option<u64> {
        let mut window = [b'z'; 16];
        window[..11].copy_from_slice(text);
        let mut non_digits = NonDigits::default();
        let number = word(&window, &mut non_digits);
        non_digits.is_nothing().then_some(number)
    }

    #[test]
    fn words_have_an_end() {
        for number in [0, 1, 61, 62, u64::MAX - 1, u64::MAX, 839_299_365_868_340_224] {
            assert_eq!(read(&encode(number)), Some(number));
        }
        assert_eq!(&encode::<11>(u64::MAX), b"LygHa16AHYF");
        for over in [
            b"LygHa16AHYG",
            b"M0000000000",
            b"zzzzzzzzzzz",
            b"Lzzzzzzzzzz",
            b"LygHa16AHZ0",
            b"LygHa16B000",
        ] {
            assert_eq!(read(over), None);
        }
    }

    #[test]
    fn checksums_are_read_from_the_end() {
        for number in [0, 1, u64::from(u32::MAX), 1 << 32] {
            let mut window = [b'z'; 16];
            window[10..].copy_from_slice(&encode::<6>(number));
            assert_eq!(crc(&window, &mut NonDigits::default()), number);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(number: u64) {
            prop_assert_eq!(read(&encode(number)), Some(number));
        }

        #[test]
        fn what_is_read_is_the_number_and_nothing_else(text in "[0-9A-Za-z]{11}|L[x-z][a-z][G-I][0-9A-Za-z]{7}") {
            let text: &[u8; 11] = text.as_bytes().try_into().unwrap();
            let number = text.iter().fold(0_u128, |number, byte| {
                number * 62 + DIGITS.iter().position(|digit| digit == byte).unwrap() as u128
            });
            prop_assert_eq!(read(text), u64::try_from(number).ok());
        }
    }
}
