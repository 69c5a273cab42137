//! The keys that digests are made with.

use super::digest::{DigestKey, KeyedDigest, Message, derive};
use crate::random::{RandomError, SecureRandom, SystemRandom};
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Fewest bytes of a key: as many as the digest has (RFC 2104 section 3).
pub const MIN_KEY_BYTES: usize = 32;
/// Most bytes of a key; more would add nothing and is a sign of a wrong file.
pub const MAX_KEY_BYTES: usize = 1024;
/// Most keys of a keyring.
pub const MAX_KEYS: usize = 64;

/// The small number that a record names its key by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(u16);

impl KeyId {
    /// The id with this number.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The host's secret keys: one is primary and makes new digests, the others still verify old ones.
///
/// To change keys: add the new one in the second place and deploy everywhere, so that every node can verify with it;
/// then put it first and deploy again; wait until no record is left under the old one (a verification moves its token; a count per key tells), then drop the old one. A token whose
/// key is missing does not verify and is reported as an operational error.
///
/// The key material is wiped when the keyring is dropped; `Debug` shows the ids alone.
pub struct Keyring {
    primary: Key,
    others: Vec<Key>,
}

struct Key {
    id: KeyId,
    material: Zeroizing<Vec<u8>>,
    digest: DigestKey,
}

impl Keyring {
    /// A keyring with one key, the primary: at least [`MIN_KEY_BYTES`] bytes from a random generator.
    ///
    /// # Errors
    /// [`KeyringError`] when the key is too short or too long.
    pub fn new(primary: KeyId, key: &[u8]) -> Result<Self, KeyringError> {
        Ok(Self { primary: Key::new(primary, key)?, others: Vec::new() })
    }

    /// Adds a key that verifies digests made with it and makes no new ones.
    ///
    /// # Errors
    /// [`KeyringError`] when the key is too short or too long, or its id or the key itself is there already.
    pub fn with(mut self, id: KeyId, key: &[u8]) -> Result<Self, KeyringError> {
        let key = Key::new(id, key)?;
        for other in self.keys() {
            if other.id == id {
                return Err(KeyringError::RepeatedId(id));
            }
            if bool::from(other.material.as_slice().ct_eq(&key.material)) {
                return Err(KeyringError::EqualKeys(other.id, id));
            }
        }
        self.others.push(key);
        if self.others.len() < MAX_KEYS { Ok(self) } else { Err(KeyringError::TooMany) }
    }

    /// Reads a keyring from the text of one environment variable: `2:<base64>,1:<base64>`, the primary first.
    ///
    /// The base64 is RFC 4648's standard alphabet, its padding may be left out; white space around an entry is
    /// passed over. `openssl rand -base64 32` makes a key.
    ///
    /// # Errors
    /// [`KeyringError`], which names the entry and holds nothing of it.
    pub fn from_text(text: &str) -> Result<Self, KeyringError> {
        if text.trim().is_empty() {
            return Err(KeyringError::Empty);
        }
        let mut keyring: Option<Self> = None;
        for (place, entry) in (1..).zip(text.split(',')) {
            let (id, key) = entry.split_once(':').ok_or(KeyringError::NoId { entry: place })?;
            let id = id.trim();
            let number = id.parse().ok().filter(|_| id.bytes().all(|byte| byte.is_ascii_digit()));
            let id = KeyId(number.ok_or(KeyringError::NoId { entry: place })?);
            let key =
                BASE64.decode(key.trim()).map(Zeroizing::new).map_err(|_| KeyringError::NotBase64(id))?;
            keyring = Some(match keyring {
                None => Self::new(id, &key)?,
                Some(keyring) => keyring.with(id, &key)?,
            });
        }
        keyring.ok_or(KeyringError::Empty)
    }

    /// A keyring with one new key, id 1, that lives as long as the process: for tests and examples.
    ///
    /// # Errors
    /// [`RandomError`] when the system's generator fails.
    pub fn ephemeral() -> Result<Self, RandomError> {
        let mut material = Zeroizing::new([0; MIN_KEY_BYTES]);
        SystemRandom::new().fill(&mut *material)?;
        Ok(Self { primary: Key::ready(KeyId(1), &*material), others: Vec::new() })
    }

    /// The id of the key that makes new digests.
    pub fn primary(&self) -> KeyId {
        self.primary.id
    }

    /// The ids of all keys, the primary first.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> + '_ {
        self.keys().map(|key| key.id)
    }

    /// The digest under the primary key.
    pub(crate) fn digest(&self, message: &Message) -> KeyedDigest {
        self.primary.digest(message)
    }

    /// The digest under the key that a record names; `None` when the keyring has no such key.
    pub(crate) fn digest_under(&self, key: KeyId, message: &Message) -> Option<KeyedDigest> {
        self.keys().find(|each| each.id == key).map(|key| key.digest(message))
    }

    fn keys(&self) -> impl Iterator<Item = &Key> + '_ {
        std::iter::once(&self.primary).chain(&self.others)
    }
}

impl Key {
    fn new(id: KeyId, material: &[u8]) -> Result<Self, KeyringError> {
        match material.len() {
            bytes @ 0..MIN_KEY_BYTES => Err(KeyringError::TooShort { key: id, bytes }),
            MIN_KEY_BYTES..=MAX_KEY_BYTES => Ok(Self::ready(id, material)),
            bytes => Err(KeyringError::TooLong { key: id, bytes }),
        }
    }

    fn ready(id: KeyId, material: &[u8]) -> Self {
        let digest = DigestKey::new(&derive(material, b"token digest"));
        Self { id, material: Zeroizing::new(material.to_vec()), digest }
    }

    fn digest(&self, message: &Message) -> KeyedDigest {
        KeyedDigest::new(self.id, self.digest.digest(message))
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keyring").field(&self.ids().map(KeyId::get).collect::<Vec<_>>()).finish()
    }
}

/// Why a keyring was refused. It holds nothing of any key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyringError {
    /// The text is empty.
    #[error("the keyring is empty: it needs one key at least, as `1:<base64 of 32 bytes or more>`")]
    Empty,
    /// An entry does not begin with a number and a colon.
    #[error("entry {entry} of the keyring does not begin with a key id from 0 to 65535 and a colon")]
    NoId {
        /// Which entry, from 1.
        entry: usize,
    },
    /// A key is no base64.
    #[error("key {0} of the keyring is not base64 in the standard alphabet")]
    NotBase64(KeyId),
    /// A key has fewer than [`MIN_KEY_BYTES`] bytes.
    #[error("key {key} of the keyring has {bytes} bytes; it needs {MIN_KEY_BYTES} at least")]
    TooShort {
        /// Which key.
        key: KeyId,
        /// How many bytes it has.
        bytes: usize,
    },
    /// A key has more than [`MAX_KEY_BYTES`] bytes.
    #[error("key {key} of the keyring has {bytes} bytes; {MAX_KEY_BYTES} is the most")]
    TooLong {
        /// Which key.
        key: KeyId,
        /// How many bytes it has.
        bytes: usize,
    },
    /// An id stands there twice.
    #[error("key {0} stands in the keyring twice")]
    RepeatedId(KeyId),
    /// Two ids have the same key.
    #[error("keys {0} and {1} of the keyring are the same key")]
    EqualKeys(KeyId, KeyId),
    /// More than [`MAX_KEYS`] keys.
    #[error("a keyring holds {MAX_KEYS} keys at most")]
    TooMany,
}

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{TokenId, TokenKind};

    const ONE: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const TWO: &str = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8";

    #[test]
    fn a_keyring_is_read_from_text() {
        let ring = Keyring::from_text(&format!("2:{ONE}, 1:{TWO}\n")).unwrap();
        assert_eq!(ring.primary(), KeyId(2));
        assert_eq!(ring.ids().collect::<Vec<_>>(), [KeyId(2), KeyId(1)]);
        assert_eq!(format!("{ring:?}"), "Keyring([2, 1])");
    }

    #[test]
    fn what_is_refused() {
        use KeyringError as E;
        let table = [
            (String::new(), E::Empty),
            (" \n".to_owned(), E::Empty),
            (ONE.to_owned(), E::NoId { entry: 1 }),
            (format!("x:{ONE}"), E::NoId { entry: 1 }),
            (format!("+1:{ONE}"), E::NoId { entry: 1 }),
            (format!("-1:{ONE}"), E::NoId { entry: 1 }),
            (format!(":{ONE}"), E::NoId { entry: 1 }),
            (format!("65536:{ONE}"), E::NoId { entry: 1 }),
            (format!("1:{ONE},"), E::NoId { entry: 2 }),
            (format!("1:{ONE},2"), E::NoId { entry: 2 }),
            ("1:".to_owned(), E::TooShort { key: KeyId(1), bytes: 0 }),
            ("1:AAAA".to_owned(), E::TooShort { key: KeyId(1), bytes: 3 }),
            ("7:-_-_".to_owned(), E::NotBase64(KeyId(7))),
            (format!("1:{ONE},1:{TWO}"), E::RepeatedId(KeyId(1))),
            (format!("1:{ONE},2:{ONE}"), E::EqualKeys(KeyId(1), KeyId(2))),
        ];
        for (text, error) in table {
            assert_eq!(Keyring::from_text(&text).err(), Some(error), "{text}");
        }
        assert_eq!(Keyring::new(KeyId(1), &[0; 31]).err(), Some(E::TooShort { key: KeyId(1), bytes: 31 }));
        assert_eq!(Keyring::new(KeyId(1), &[0; 1025]).err(), Some(E::TooLong { key: KeyId(1), bytes: 1025 }));
        let mut full = Keyring::new(KeyId(0), &[0; 32]).unwrap();
        for number in 1..64 {
            full = full.with(KeyId(number), &[u8::try_from(number).unwrap(); 32]).unwrap();
        }
        assert_eq!(full.with(KeyId(64), &[64; 32]).err(), Some(E::TooMany));
    }

    #[test]
    fn a_missing_key_makes_no_digest() {
        let ring = Keyring::from_text(&format!("2:{ONE}")).unwrap();
        let id = TokenId::from_words([0x7000, 1 << 63]).unwrap();
        let message = Message::new(TokenKind::Personal, id, [1; 4]);
        assert!(ring.digest_under(KeyId(1), &message).is_none());
        assert_eq!(ring.digest_under(KeyId(2), &message), Some(ring.digest(&message)));
    }
}
