//! The keyed digest of a token: `HMAC-SHA256(key, version ‖ kind ‖ id ‖ secret)`.
//!
//! The message is always 50 bytes. With the key's two pads compressed beforehand, a digest
//! therefore costs exactly two compressions of SHA-256 (RFC 2104, FIPS 180-4). The block function
//! is called directly, because the general streaming `Hmac` costs a third more for buffers that a
//! message of fixed length does not need. Tests compare it with `Hmac<Sha256>`.

use super::{KeyId, TokenId, TokenKind};
use crate::random::{RandomError, SecureRandom};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use sha2::block_api::compress256;
use std::fmt;
use std::ops::Range;
use subtle::{Choice, ConstantTimeEq};
use zeroize::{Zeroize, Zeroizing, optimization_barrier};

/// The first byte of every message. Another layout of the message gets another number.
const VERSION: u8 = 1;
/// Bytes of a message.
const MESSAGE_LEN: usize = 1 + 1 + 16 + 32;
/// Where the secret is in a message.
const SECRET: Range<usize> = 18..MESSAGE_LEN;
/// Words of the id and the secret together.
const WORDS: usize = 2 + 4;

/// The stored form of a token's secret: its digest, and the id of the key that made it.
///
/// A digest is not a secret, because nobody can turn it into a token or check a guess without the
/// key. Still, no `Debug` output shows it and it does not serialize: a store writes
/// [`mac`](Self::mac) and [`key`](Self::key).
#[derive(Clone, Copy)]
pub struct KeyedDigest {
    key: KeyId,
    mac: [u8; 32],
}

impl KeyedDigest {
    /// Creates a digest from the values that a store kept.
    pub const fn new(key: KeyId, mac: [u8; 32]) -> Self {
        Self { key, mac }
    }

    /// Returns the id of the key that made the digest.
    pub const fn key(&self) -> KeyId {
        self.key
    }

    /// Returns the 32 bytes of the HMAC.
    pub const fn mac(&self) -> &[u8; 32] {
        &self.mac
    }

    /// Returns the HMAC in words, in the byte order of memory.
    pub(crate) fn words(&self) -> [u64; 4] {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(self.mac.as_chunks().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        words
    }
}

/// Compares the bytes of the digest in constant time.
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

/// Compares two digests.
///
/// All differences are first collected in one word, so that `subtle`'s barrier is needed once
/// instead of 32 times.
pub(crate) fn same(one: [u64; 4], other: [u64; 4]) -> Choice {
    let differences =
        one.iter().zip(other).fold(0, |differences, (one, other)| differences | (one ^ other));
    differences.ct_eq(&0)
}

/// The block that is hashed for a token's digest: `version ‖ kind ‖ id ‖ secret`, then SHA-256's
/// padding.
///
/// It holds the secret and is wiped when it is dropped. A text is parsed directly into it, number
/// by number. The processor loads a block in pieces of sixteen bytes and stalls while shorter
/// stores to a piece are still on their way to memory. Writing a message just before it is hashed
/// would cost a fifth of the digest.
pub(crate) struct Message([u8; 64]);

impl Message {
    /// Creates an empty message to fill in place, because moving a filled one would leave a copy
    /// behind.
    pub(crate) const fn room() -> Self {
        let mut block = const { padded::<MESSAGE_LEN>() };
        let [version, ..] = &mut block;
        *version = VERSION;
        Self(block)
    }

    #[cfg(test)]
    pub(crate) fn new(kind: TokenKind, id: TokenId, secret: [u64; 4]) -> Self {
        let mut message = Self::room();
        message.set_kind(kind);
        for (word, number) in message.words_mut().zip(id.words().into_iter().chain(secret)) {
            *word = number.to_be_bytes();
        }
        message
    }

    /// Creates a message with a random secret.
    pub(crate) fn generate(
        kind: TokenKind,
        id: TokenId,
        random: &dyn SecureRandom,
    ) -> Result<Self, RandomError> {
        let mut message = Self::room();
        message.set_kind(kind);
        for (word, number) in message.words_mut().zip(id.words()) {
            *word = number.to_be_bytes();
        }
        random.fill(message.0.get_mut(SECRET).expect("the range is within the block"))?;
        Ok(message)
    }

    pub(crate) fn set_kind(&mut self, kind: TokenKind) {
        let [_, byte, ..] = &mut self.0;
        *byte = kind.byte();
    }

    /// Returns the two words of the id, then the four of the secret.
    #[inline]
    pub(crate) fn words_mut(&mut self) -> impl Iterator<Item = &mut [u8; 8]> {
        let [_, _, words @ ..] = &mut self.0;
        words.as_chunks_mut().0.iter_mut().take(WORDS)
    }

    /// Returns the values of the words of [`words_mut`](Self::words_mut).
    pub(crate) fn words(&self) -> impl Iterator<Item = u64> {
        let [_, _, words @ ..] = &self.0;
        let words = words.as_chunks().0.iter().take(WORDS);
        words.map(|word| u64::from_be_bytes(*word))
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // The array is wiped at once, because wiping it byte by byte, as `Zeroizing` does, would
        // cost a tenth of the digest.
        self.0 = [0; 64];
        optimization_barrier(&self.0);
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Message(…)")
    }
}

/// A prepared key: the state of SHA-256 after each of HMAC's two pads.
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

    /// Returns the digest of a token: the HMAC of the message in this block.
    pub(crate) fn digest(&self, message: &Message) -> [u8; 32] {
        #[cfg(test)]
        COUNT.set(COUNT.get().saturating_add(1));
        let mut inner = self.inner;
        compress256(&mut inner, std::slice::from_ref(&message.0));

        let mut block = const { padded::<32>() };
        write_state(&inner, &mut block);
        let mut outer = self.outer;
        compress256(&mut outer, &[block]);

        let mut mac = [0; 32];
        write_state(&outer, &mut mac);
        mac
    }
}

#[cfg(test)]
thread_local! {
    /// Counts the digests of this thread, for a test.
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

/// Derives a sub-key of `key` for one use (RFC 5869: extract, then the first block of expand).
pub(crate) fn derive(key: &[u8], usage: &[u8]) -> Zeroizing<[u8; 32]> {
    let extracted = Zeroizing::new(hmac_sha256(b"patkit", &[key]));
    Zeroizing::new(hmac_sha256(&*extracted, &[usage, &[1]]))
}

pub(crate) fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mac = Hmac::<Sha256>::new_from_slice(key);
    let mut mac = mac.expect("HMAC accepts a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// Returns a block with SHA-256's padding.
///
/// It is the second and last block of a message and holds the first `LEN` bytes of it (FIPS 180-4
/// section 5.1.1).
#[allow(
    clippy::as_conversions,
    clippy::arithmetic_side_effects,
    reason = "computed when compiled, below 2^10"
)]
const fn padded<const LEN: usize>() -> [u8; 64] {
    const { assert!(LEN < 56, "the length would not fit into the block") };
    let mut block = [0; 64];
    if let Some((_, [marker, ..])) = block.split_at_mut_checked(LEN) {
        *marker = 0x80;
    }
    if let Some(length) = block.last_chunk_mut() {
        *length = (((64 + LEN) * 8) as u64).to_be_bytes();
    }
    block
}

fn write_state(state: &[u32; 8], bytes: &mut [u8]) {
    for (place, word) in bytes.as_chunks_mut().0.iter_mut().zip(state) {
        *place = word.to_be_bytes();
    }
}

/// The initial hash value of FIPS 180-4 section 5.3.3.
const SHA256_START: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

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
        TokenId::from_words([0x0190_0000_0000_7000 | (random & 0xFFF), 1 << 63 | random >> 2])
            .unwrap()
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
            prop_assert_eq!(DigestKey::new(&key).digest(&Message::new(kind, id(random), secret)), expected);
        }
    }

    /// Returns the numbers from 1 on.
    struct Counting(std::sync::atomic::AtomicU8);

    impl SecureRandom for Counting {
        fn fill(&self, buffer: &mut [u8]) -> Result<(), RandomError> {
            buffer.fill_with(|| self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1);
            Ok(())
        }
    }

    #[test]
    fn a_secret_is_what_the_generator_gave_and_all_of_it() {
        let random = Counting(0.into());
        let message = Message::generate(TokenKind::Personal, id(1), &random).unwrap();
        let [high, low] = id(1).words();
        let secret: Vec<u8> = message.words().skip(2).flat_map(u64::to_be_bytes).collect();
        assert!(message.words().take(2).eq([high, low]));
        assert_eq!(secret, (1..=32).collect::<Vec<u8>>());
        let [a, b, c, d] =
            [0, 8, 16, 24].map(|at| u64::from_be_bytes(secret[at..at + 8].try_into().unwrap()));
        let again = Message::new(TokenKind::Personal, id(1), [a, b, c, d]);
        assert_eq!(
            DigestKey::new(&[7; 32]).digest(&message),
            DigestKey::new(&[7; 32]).digest(&again)
        );
    }

    #[test]
    fn everything_in_the_message_counts() {
        let key = DigestKey::new(&[7; 32]);
        let base = key.digest(&Message::new(TokenKind::Personal, id(1), [1, 2, 3, 4]));
        for other in [
            key.digest(&Message::new(TokenKind::Service, id(1), [1, 2, 3, 4])),
            key.digest(&Message::new(TokenKind::Personal, id(2), [1, 2, 3, 4])),
            key.digest(&Message::new(TokenKind::Personal, id(1), [0, 2, 3, 4])),
            key.digest(&Message::new(TokenKind::Personal, id(1), [1, 2, 3, 5])),
            DigestKey::new(&[8; 32]).digest(&Message::new(
                TokenKind::Personal,
                id(1),
                [1, 2, 3, 4],
            )),
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
        // PRK = HMAC(salt, key), T(1) = HMAC(PRK, info ‖ 1): RFC 5869 sections 2.2 and 2.3, test
        // case 1.
        let salt: Vec<u8> = (0..=0x0c).collect();
        let prk = hmac_sha256(&salt, &[&[0x0b; 22]]);
        assert_eq!(prk[..4], [0x07, 0x77, 0x09, 0x36]);
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        let okm = hmac_sha256(&prk, &[&info, &[1]]);
        assert_eq!(okm[..4], [0x3c, 0xb2, 0x5f, 0x25]);
        assert_ne!(derive(b"key", b"digest"), derive(b"key", b"seal"));
    }
}
