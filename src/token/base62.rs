//! Base62, digits `0-9A-Za-z`, big-endian, fixed width. Canonical: one number has one text.
//!
//! Both directions work on secrets, so neither branches on a digit nor uses one as an index. A text is first checked as a
//! whole ([`are_digits`]); what reads it then ([`word`], [`crc`]) takes that for granted.

/// Digits of one 64-bit word: 62^11 > 2^64 > 62^10.
pub(crate) const WORD_DIGITS: usize = 11;
/// Digits of a CRC-32: 62^6 > 2^32 > 62^5.
pub(crate) const CRC_DIGITS: usize = 6;

/// Writes `value` as exactly `N` digits; what does not fit is cut off at the top, so `N` must be wide enough.
pub(crate) fn encode<const N: usize>(mut value: u64) -> [u8; N] {
    let mut text = [b'0'; N];
    for place in text.iter_mut().rev() {
        *place = digit(value % 62);
        value /= 62;
    }
    text
}

/// Whether all characters are digits; of fewer than sixteen none are. Without an exit and of operations that vectors have, so
/// that the compiler makes vectors of it.
#[inline]
pub(crate) fn are_digits(text: &[u8]) -> bool {
    // The last sixteen stand for what is left over, and may be looked at twice.
    let (chunks, _) = text.as_chunks();
    let Some(last) = text.last_chunk() else { return false };
    let amiss = chunks.iter().chain([last]).fold([0; 16], |mut amiss: [u8; 16], chunk: &[u8; 16]| {
        for (amiss, &character) in amiss.iter_mut().zip(chunk) {
            // By how much it lies above the ten numbers, and above the letters, of which both cases are one by this bit.
            let number = character.wrapping_sub(b'0').saturating_sub(9);
            let letter = (character | 0x20).wrapping_sub(b'a').saturating_sub(25);
            *amiss |= number.min(letter);
        }
        amiss
    });
    u128::from_ne_bytes(amiss) == 0
}

/// The number that eleven digits are, and whether it is over 2^64-1, in which case it is another one.
#[inline]
pub(crate) fn word(text: &[u8; WORD_DIGITS]) -> (u64, bool) {
    let ([first @ .., _, _, _], [_, _, _, last @ ..]) = (text, text);
    let [_, _, _, _, _, a, b, c] = values(*last).to_le_bytes();
    let high = join(values(*first));
    let low = u64::from(a)
        .wrapping_mul(62 * 62)
        .wrapping_add(u64::from(b).wrapping_mul(62))
        .wrapping_add(u64::from(c));
    let (high, is_over) = high.overflowing_mul(62 * 62 * 62);
    let (number, is_over_too) = high.overflowing_add(low);
    (number, is_over | is_over_too)
}

/// The number that the last six of these digits are.
pub(crate) fn crc(text: [u8; 8]) -> u64 {
    // The first two stand in the lowest bytes.
    join(values(text) & !0xFFFF)
}

/// The values of eight digits, each in its byte.
const fn values(text: [u8; 8]) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let text = u64::from_le_bytes(text);
    // A byte's top bit is set where its character is a letter (at least 'A'), or a lower-case one: all are below 0x80.
    let letters = (text.wrapping_add(ONES * (0x80 - 0x41)) >> 7) & ONES;
    let lower = (text.wrapping_add(ONES * (0x80 - 0x61)) >> 7) & ONES;
    // Over the gap between '9' and 'A', then over the one between 'Z' and 'a'. No byte borrows from the next.
    text.wrapping_sub(ONES * 0x30).wrapping_sub(letters.wrapping_mul(7)).wrapping_sub(lower.wrapping_mul(6))
}

/// The number that eight digits are: joined in pairs, then pairs of pairs, side by side in one word, so that it takes three
/// multiplications instead of eight.
const fn join(values: u64) -> u64 {
    const PAIR: u64 = 0x00FF_00FF_00FF_00FF;
    const FOUR: u64 = 0x0000_FFFF_0000_FFFF;
    const EIGHT: u64 = 0x0000_0000_FFFF_FFFF;
    let pairs = (values & PAIR).wrapping_mul(62).wrapping_add((values >> 8) & PAIR);
    let fours = (pairs & FOUR).wrapping_mul(62 * 62).wrapping_add((pairs >> 16) & FOUR);
    (fours & EIGHT).wrapping_mul(62 * 62 * 62 * 62).wrapping_add(fours >> 32)
}

/// The character of a number below 62.
#[allow(clippy::as_conversions, clippy::cast_possible_truncation, reason = "the number is below 62")]
const fn digit(number: u64) -> u8 {
    let number = number as u8;
    // Over the gap between '9' and 'A', then over the one between 'Z' and 'a'.
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
                assert_eq!(values([byte; 8]), 0x0101_0101_0101_0101 * place as u64);
                assert_eq!(digit(place as u64), byte);
            }
        }
    }

    #[test]
    fn words_have_an_end() {
        for number in [0, 1, 61, 62, u64::MAX - 1, u64::MAX, 839_299_365_868_340_224] {
            let text = encode(number);
            assert_eq!(word(&text), (number, false));
        }
        assert_eq!(&encode::<11>(u64::MAX), b"LygHa16AHYF");
        for over in
            [b"LygHa16AHYG", b"M0000000000", b"zzzzzzzzzzz", b"Lzzzzzzzzzz", b"LygHa16AHZ0", b"LygHa16B000"]
        {
            assert!(word(over).1);
        }
    }

    #[test]
    fn checksums_are_read_from_the_end() {
        for number in [0, 1, u64::from(u32::MAX), 1 << 32] {
            let [a, b, c, d, e, f] = encode(number);
            assert_eq!(crc([b'z', b'z', a, b, c, d, e, f]), number);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(number: u64) {
            prop_assert_eq!(word(&encode(number)), (number, false));
        }

        #[test]
        fn what_is_read_is_the_number_and_nothing_else(text in "[0-9A-Za-z]{11}|L[x-z][a-z][G-I][0-9A-Za-z]{7}") {
            let text: &[u8; 11] = text.as_bytes().try_into().unwrap();
            let number = text.iter().fold(0_u128, |number, byte| {
                number * 62 + DIGITS.iter().position(|digit| digit == byte).unwrap() as u128
            });
            let (read, is_over) = word(text);
            prop_assert_eq!((!is_over).then_some(read), u64::try_from(number).ok());
        }
    }
}
