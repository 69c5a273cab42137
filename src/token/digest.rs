//! The keyed digest of a token: `HMAC-SHA256(key, version ‖ kind ‖ id ‖ secret)`.
//!
//! The message is always 50 bytes, so with the key's two pads compressed beforehand a digest costs exactly two
//! compressions of SHA-256 (RFC 2104, FIPS 180-4). The block function is called directly: the general streaming
//! `Hmac` costs a third more for buffers that a message of fixed length does not need. Tests hold it against
//! `Hmac<Sha256>`.

use super::secret::Secret;
use super::{KeyId, TokenId, TokenKind};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use sha2::block_api::compress256;
use std::fmt;
use subtle::{Choice, ConstantTimeEq};
use zeroize::{Zeroize, Zeroizing, optimization_barrier};

/// The first byte of every message; another layout of the message gets another number.
const VERSION: u8 = 1;
/// Bytes of a message.
const MESSAGE_LEN: usize = 1 + 1 + 16 + 32;

/// What a store keeps of a token's secret: its digest, and the id of the key it was made with.
///
/// It is no secret in itself, since nobody can turn it into a token or check a guess without the key. Still it shows
/// in no `Debug` output and does not serialize: a store writes [`mac`](Self::mac) and [`key`](Self::key).
#[derive(Clone, Copy)]
pub struct KeyedDigest {
    key: KeyId,
    mac: [u8; 32],
}

impl KeyedDigest {
    /// A digest as a store gives it back.
    pub const fn new(key: KeyId, mac: [u8; 32]) -> Self {
        Self { key, mac }
    }

    /// The key that it was made with.
    pub const fn key(&self) -> KeyId {
        self.key
    }

    /// The 32 bytes of the HMAC.
    pub const fn mac(&self) -> &[u8; 32] {
        &self.mac
    }

    /// The same bytes in words, as they lie in memory.
    pub(crate) fn words(&self) -> [u64; 4] {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(self.mac.as_chunks().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        words
    }
}

/// In constant time over the digest's bytes.
impl PartialEq for KeyedDigest {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key && bool::from(same(self.words(), other.words()))
    }
}

impl Eq for KeyedDigest {}

impl fmt::Debug for KeyedDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyedDigest(key {}, …)", self.key)
    }
}

/// All differences are gathered in one word first, so that `subtle`'s barrier stands once instead of 32 times.
pub(crate) fn same(one: [u64; 4], other: [u64; 4]) -> Choice {
    let differences = one.iter().zip(other).fold(0, |differences, (one, other)| differences | (one ^ other));
    differences.ct_eq(&0)
}

/// A key made ready: the state of SHA-256 after each of HMAC's two pads.
pub(crate) struct DigestKey {
    inner: [u32; 8],
    outer: [u32; 8],
}

impl DigestKey {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        let state = |pad: u8| {
            let mut block = Zeroizing::new([pad; 64]);
            for (byte, key) in block.iter_mut().zip(key) {
                *byte ^= key;
            }
            let mut state = SHA256_START;
            compress256(&mut state, std::slice::from_ref(&*block));
            state
        };
        Self { inner: state(0x36), outer: state(0x5c) }
    }

    /// The digest of a token.
    pub(crate) fn digest(&self, kind: TokenKind, id: TokenId, secret: &Secret) -> [u8; 32] {
        let mut message = [0; 64];
        let [high, low] = id.words();
        let words = [high, low].into_iter().chain(secret.words().iter().copied());
        let [version, kind_byte, rest @ ..] = &mut message;
        *version = VERSION;
        *kind_byte = kind.byte();
        for (place, word) in rest.as_chunks_mut().0.iter_mut().zip(words) {
            *place = word.to_be_bytes();
        }
        let mac = self.hmac(&mut message);
        // Wiped as a whole: byte by byte, as `Zeroizing` does it, would cost a tenth of the digest.
        message = [0; 64];
        optimization_barrier(&message);
        mac
    }

    /// HMAC of the first [`MESSAGE_LEN`] bytes of `block`; the rest of it gets SHA-256's padding.
    fn hmac(&self, block: &mut [u8; 64]) -> [u8; 32] {
        #[cfg(test)]
        COUNT.set(COUNT.get().saturating_add(1));
        pad::<MESSAGE_LEN>(block);
        let mut inner = self.inner;
        compress256(&mut inner, std::slice::from_ref(block));

        let mut block = [0; 64];
        write_state(&inner, &mut block);
        pad::<32>(&mut block);
        let mut outer = self.outer;
        compress256(&mut outer, &[block]);

        let mut mac = [0; 32];
        write_state(&outer, &mut mac);
        mac
    }
}

#[cfg(test)]
thread_local! {
    /// The digests of this thread, for the test that counts them.
    pub(crate) static COUNT: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

impl Drop for DigestKey {
    fn drop(&mut self) {
        self.inner.zeroize();
        self.outer.zeroize();
    }
}

impl fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DigestKey(…)")
    }
}

/// A sub-key of `key` for one use (RFC 5869: extract, then the first block of expand).
pub(crate) fn derive(key: &[u8], usage: &[u8]) -> Zeroizing<[u8; 32]> {
    let extracted = Zeroizing::new(hmac_sha256(b"patkit", &[key]));
    Zeroizing::new(hmac_sha256(&*extracted, &[usage, &[1]]))
}

fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC takes a key of any length, so this never is an error; were it one, the zeros would not be used as a key
    // that anybody holds: the same function checks what it made.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return [0; 32];
    };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// SHA-256's padding for the second and last block of a message, of which it holds `LEN` bytes
/// (FIPS 180-4 section 5.1.1).
fn pad<const LEN: usize>(block: &mut [u8; 64]) {
    const { assert!(LEN < 56, "the length would not fit into the block") };
    #[allow(
        clippy::as_conversions,
        clippy::arithmetic_side_effects,
        reason = "computed when compiled, below 2^10"
    )]
    let bits = const { ((64 + LEN) * 8) as u64 };
    if let Some((marker, rest)) = block.get_mut(LEN..).and_then(<[u8]>::split_first_mut) {
        *marker = 0x80;
        rest.fill(0);
    }
    if let Some(length) = block.last_chunk_mut() {
        *length = bits.to_be_bytes();
    }
}

fn write_state(state: &[u32; 8], bytes: &mut [u8]) {
    for (place, word) in bytes.as_chunks_mut().0.iter_mut().zip(state) {
        *place = word.to_be_bytes();
    }
}

/// FIPS 180-4 section 5.3.3.
const SHA256_START: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

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

    fn id(random: u64) -> TokenId {
        TokenId::from_words([0x0190_0000_0000_7000 | (random & 0xFFF), 1 << 63 | random >> 2]).unwrap()
    }

    proptest! {
        #[test]
        fn a_digest_is_the_hmac_of_its_message(key: [u8; 32], secret: [u64; 4], random: u64, personal: bool) {
            let kind = if personal { TokenKind::Personal } else { TokenKind::Service };
            let mut message = vec![1, kind.byte()];
            message.extend(id(random).to_bytes());
            message.extend(secret.iter().flat_map(|word| word.to_be_bytes()));
            prop_assert_eq!(message.len(), MESSAGE_LEN);
            let expected = hmac_sha256(&key, &[&message]);
            prop_assert_eq!(DigestKey::new(&key).digest(kind, id(random), &Secret::new(secret)), expected);
        }
    }

    #[test]
    fn everything_in_the_message_counts() {
        let key = DigestKey::new(&[7; 32]);
        let base = key.digest(TokenKind::Personal, id(1), &Secret::new([1, 2, 3, 4]));
        for other in [
            key.digest(TokenKind::Service, id(1), &Secret::new([1, 2, 3, 4])),
            key.digest(TokenKind::Personal, id(2), &Secret::new([1, 2, 3, 4])),
            key.digest(TokenKind::Personal, id(1), &Secret::new([0, 2, 3, 4])),
            key.digest(TokenKind::Personal, id(1), &Secret::new([1, 2, 3, 5])),
            DigestKey::new(&[8; 32]).digest(TokenKind::Personal, id(1), &Secret::new([1, 2, 3, 4])),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn one_bit_of_difference_is_seen_wherever_it_stands() {
        let one = KeyedDigest::new(KeyId::new(1), [0x55; 32]);
        assert!(bool::from(same(one.words(), one.words())));
        for bit in 0..256 {
            let mut other = one;
            other.mac[bit / 8] ^= 1 << (bit % 8);
            assert!(one != other && !bool::from(same(one.words(), other.words())), "{bit}");
        }
    }

    #[test]
    fn sub_keys_are_those_of_rfc_5869() {
        // PRK = HMAC(salt, key), T(1) = HMAC(PRK, info ‖ 1): RFC 5869 sections 2.2 and 2.3, test case 1.
        let salt: Vec<u8> = (0..=0x0c).collect();
        let prk = hmac_sha256(&salt, &[&[0x0b; 22]]);
        assert_eq!(prk[..4], [0x07, 0x77, 0x09, 0x36]);
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        let okm = hmac_sha256(&prk, &[&info, &[1]]);
        assert_eq!(okm[..4], [0x3c, 0xb2, 0x5f, 0x25]);
        assert_ne!(derive(b"key", b"digest"), derive(b"key", b"seal"));
    }
}
