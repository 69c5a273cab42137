//! The keys that make digests.

use super::digest::{DigestKey, KeyedDigest, Message, derive, hmac_sha256};
use crate::random::{RandomError, SecureRandom, SystemRandom};
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use std::env::VarError;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Fewest bytes of a key: the length of the digest (RFC 2104 section 3).
pub const MIN_KEY_BYTES: usize = 32;
/// Most bytes of a key. More would add nothing and suggest a wrong file.
pub const MAX_KEY_BYTES: usize = 1024;
/// Most keys of a keyring.
pub const MAX_KEYS: usize = 64;

/// The small number by which a record names its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(u16);

impl KeyId {
    /// Creates the id with this number.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// Returns the number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The host's secret keys. The primary key makes new digests; the others still verify old ones.
///
/// To rotate keys, add the new key in the second place and deploy everywhere, so that every node
/// can verify with it. Then move it to the first place and deploy again. Give the new key a greater
/// id than the old one, because a record moves only to a greater id. A verification moves its token
/// to the primary key. [`TokenService::check`](crate::TokenService::check) counts the tokens left
/// under each key, and [`TokenService::list_under_key`](crate::TokenService::list_under_key) lists
/// them. Drop the old key once no token is left under it. A token whose key is missing does not
/// verify and is reported as an operational error.
///
/// The key material is wiped when the keyring is dropped. `Debug` shows only the ids.
pub struct Keyring {
    primary: Key,
    others: Vec<Key>,
}

struct Key {
    id: KeyId,
    material: Zeroizing<Vec<u8>>,
    digest: DigestKey,
    /// Whether the last check found the check value of another key under this id.
    is_wrong: AtomicBool,
}

/// A value that shows whether two nodes, or two starts, have the same key under an id.
///
/// A store keeps the first value of each id. The value is an HMAC under a separate sub-key, cut to
/// 16 bytes, and reveals nothing about the key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyCheck {
    key: KeyId,
    value: [u8; 16],
}

impl KeyCheck {
    /// Creates a check value from the values that a store kept.
    pub const fn new(key: KeyId, value: [u8; 16]) -> Self {
        Self { key, value }
    }

    /// Returns the id of the key.
    pub const fn key(&self) -> KeyId {
        self.key
    }

    /// Returns the 16 bytes that a store keeps.
    pub const fn value(&self) -> &[u8; 16] {
        &self.value
    }
}

impl fmt::Debug for KeyCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyCheck(key {}, …)", self.key)
    }
}

impl Keyring {
    /// Creates a keyring with one key, the primary.
    ///
    /// The key must be at least [`MIN_KEY_BYTES`] bytes from a random generator.
    ///
    /// # Errors
    /// [`KeyringError`] if the key is too short or too long.
    pub fn new(primary: KeyId, key: &[u8]) -> Result<Self, KeyringError> {
        Ok(Self { primary: Key::new(primary, key)?, others: Vec::new() })
    }

    /// Adds a key that verifies existing digests and makes no new ones.
    ///
    /// # Errors
    /// [`KeyringError`] if the key is too short or too long, or if the keyring already has its id
    /// or the key itself.
    pub fn with_key(mut self, id: KeyId, key: &[u8]) -> Result<Self, KeyringError> {
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

    /// Reads a keyring from the text of one environment variable: `2:<base64>,1:<base64>`, the
    /// primary first.
    ///
    /// The base64 is in RFC 4648's standard alphabet, with or without padding. White space around
    /// an entry is ignored. `openssl rand -base64 32` makes a key.
    ///
    /// # Errors
    /// [`KeyringError`], which names the entry and reveals nothing of it.
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
            let key = BASE64
                .decode(key.trim())
                .map(Zeroizing::new)
                .map_err(|_| KeyringError::NotBase64(id))?;
            keyring = Some(match keyring {
                None => Self::new(id, &key)?,
                Some(keyring) => keyring.with_key(id, &key)?,
            });
        }
        keyring.ok_or(KeyringError::Empty)
    }

    /// Reads a keyring from the environment variable `name`, such as `ACME_TOKEN_KEYS`.
    ///
    /// The format is that of [`from_text`](Self::from_text).
    ///
    /// # Errors
    /// [`KeyringEnvError`], which names the variable and the cure.
    pub fn from_env(name: &str) -> Result<Self, KeyringEnvError> {
        let error = |cause| KeyringEnvError { name: name.into(), cause };
        let text = match std::env::var(name) {
            Ok(text) => Zeroizing::new(text),
            Err(VarError::NotPresent) => return Err(error(None)),
            Err(VarError::NotUnicode(text)) => {
                drop(Zeroizing::new(text.into_encoded_bytes()));
                return Err(error(Some(KeyringError::NoId { entry: 1 })));
            }
        };
        Self::from_text(&text).map_err(|cause| error(Some(cause)))
    }

    /// Creates a keyring with one new key of id 1, which exists as long as the process, for tests
    /// and examples.
    ///
    /// # Errors
    /// [`RandomError`] if the system's generator fails.
    pub fn ephemeral() -> Result<Self, RandomError> {
        let mut material = Zeroizing::new([0; MIN_KEY_BYTES]);
        SystemRandom::new().fill(&mut *material)?;
        Ok(Self { primary: Key::ready(KeyId(1), &*material), others: Vec::new() })
    }

    /// Returns the id of the key that makes new digests.
    pub fn primary(&self) -> KeyId {
        self.primary.id
    }

    /// Returns the ids of all keys, the primary first.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> + '_ {
        self.keys().map(|key| key.id)
    }

    /// Returns the digest under the primary key.
    pub(crate) fn digest(&self, message: &Message) -> KeyedDigest {
        self.primary.digest(message)
    }

    /// Returns the digest under the key that a record names. `None` if the keyring has no such key.
    pub(crate) fn digest_under(&self, key: KeyId, message: &Message) -> Option<KeyedDigest> {
        self.keys().find(|each| each.id == key).map(|key| key.digest(message))
    }

    /// Returns the check value of each key, the primary's first.
    pub(crate) fn checks(&self) -> impl Iterator<Item = KeyCheck> + '_ {
        self.keys().map(Key::check)
    }

    /// Marks exactly these keys as wrong.
    pub(crate) fn set_wrong(&self, wrong: &[KeyId]) {
        for key in self.keys() {
            key.is_wrong.store(wrong.contains(&key.id), Ordering::Relaxed);
        }
    }

    /// Returns whether the last check found this key wrong. A key that the keyring lacks is not
    /// wrong but missing.
    #[inline]
    pub(crate) fn is_wrong(&self, key: KeyId) -> bool {
        let found = if key == self.primary.id { Some(&self.primary) } else { self.other(key) };
        found.is_some_and(|key| key.is_wrong.load(Ordering::Relaxed))
    }

    #[cold]
    fn other(&self, id: KeyId) -> Option<&Key> {
        self.others.iter().find(|key| key.id == id)
    }

    fn keys(&self) -> impl Iterator<Item = &Key> + '_ {
        std::iter::once(&self.primary).chain(&self.others)
    }
}

impl Key {
    fn new(id: KeyId, material: &[u8]) -> Result<Self, KeyringError> {
        match material.len() {
            bytes @ 0..MIN_KEY_BYTES => Err(KeyringError::TooShort { key: id, bytes }),
            MIN_KEY_BYTES..=MAX_KEY_BYTES if is_one_byte(material) => {
                Err(KeyringError::RepeatedByte(id))
            }
            MIN_KEY_BYTES..=MAX_KEY_BYTES => Ok(Self::ready(id, material)),
            bytes => Err(KeyringError::TooLong { key: id, bytes }),
        }
    }

    fn ready(id: KeyId, material: &[u8]) -> Self {
        let digest = DigestKey::new(&derive(material, b"token digest"));
        Self {
            id,
            material: Zeroizing::new(material.to_vec()),
            digest,
            is_wrong: AtomicBool::new(false),
        }
    }

    /// The id is in the message, so that the store does not show whether two ids have equal keys.
    fn check(&self) -> KeyCheck {
        let mac =
            hmac_sha256(&*derive(&self.material, b"key check"), &[&self.id.get().to_be_bytes()]);
        let mut value = [0; 16];
        value.iter_mut().zip(mac).for_each(|(place, byte)| *place = byte);
        KeyCheck { key: self.id, value }
    }

    fn digest(&self, message: &Message) -> KeyedDigest {
        KeyedDigest::new(self.id, self.digest.digest(message))
    }
}

/// Returns whether a key repeats a single byte, which makes it a placeholder such as zeros.
///
/// It always reads every byte.
fn is_one_byte(material: &[u8]) -> bool {
    let first = material.first().expect("the caller has checked the length");
    material.iter().fold(0, |differs, byte| differs | (byte ^ first)) == 0
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keyring").field(&self.ids().map(KeyId::get).collect::<Vec<_>>()).finish()
    }
}

/// The reason why a keyring was refused. It reveals nothing of any key.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyringError {
    /// The text is empty.
    #[error("the keyring is empty; give at least one key, `1:<base64 of 32 bytes or more>`")]
    Empty,
    /// An entry does not begin with a number and a colon.
    #[error(
        "entry {entry} of the keyring does not begin with a key id from 0 to 65535 and a colon; write `1:<base64 of the key>`"
    )]
    NoId {
        /// The number of the entry, from 1.
        entry: usize,
    },
    /// A key is not base64.
    #[error(
        "key {0} of the keyring is not base64 in the standard alphabet; make one with `openssl rand -base64 32`"
    )]
    NotBase64(KeyId),
    /// A key has fewer than [`MIN_KEY_BYTES`] bytes.
    #[error(
        "key {key} of the keyring has {bytes} bytes; use at least {MIN_KEY_BYTES}: make a key with \
         `openssl rand -base64 32`"
    )]
    TooShort {
        /// The id of the key.
        key: KeyId,
        /// The length of the key in bytes.
        bytes: usize,
    },
    /// A key has more than [`MAX_KEY_BYTES`] bytes.
    #[error(
        "key {key} of the keyring has {bytes} bytes; use at most {MAX_KEY_BYTES}: make a key with \
         `openssl rand -base64 32`"
    )]
    TooLong {
        /// The id of the key.
        key: KeyId,
        /// The length of the key in bytes.
        bytes: usize,
    },
    /// A key repeats a single byte.
    #[error(
        "key {0} of the keyring is one byte repeated; make a random one with `openssl rand -base64 32`"
    )]
    RepeatedByte(KeyId),
    /// Two keys have the same id.
    #[error("the keyring has two keys with the id {0}; give each key an id of its own")]
    RepeatedId(KeyId),
    /// Two ids have the same key.
    #[error(
        "keys {0} and {1} of the keyring are equal; make a new one with `openssl rand -base64 32`"
    )]
    EqualKeys(KeyId, KeyId),
    /// There are more than [`MAX_KEYS`] keys.
    #[error("the keyring has more than {MAX_KEYS} keys; remove keys that no stored token needs")]
    TooMany,
}

/// The error of [`Keyring::from_env`]. It reveals nothing of any key.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyringEnvError {
    name: Box<str>,
    /// `None` if the variable is not set.
    cause: Option<KeyringError>,
}

impl KeyringEnvError {
    /// Returns the name of the environment variable.
    pub fn variable(&self) -> &str {
        &self.name
    }

    /// Returns the error of the variable's text. `None` if the variable is not set.
    pub const fn cause(&self) -> Option<KeyringError> {
        self.cause
    }
}

impl fmt::Display for KeyringEnvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.cause {
            None | Some(KeyringError::Empty) => {
                let state = if self.cause.is_none() { "not set" } else { "empty" };
                write!(
                    f,
                    "{name} is {state}; create a key with `openssl rand -base64 32` and set {name} to `1:<that>`"
                )
            }
            Some(cause) => write!(f, "{name} is not a valid keyring: {cause}"),
        }
    }
}

// There is no `source`, because the text already includes the cause.
impl std::error::Error for KeyringEnvError {}

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
            (format!("3:{}", "A".repeat(43)), E::RepeatedByte(KeyId(3))),
            (format!("3:{}", "/".repeat(86) + "8"), E::RepeatedByte(KeyId(3))),
            (format!("1:{ONE},3:{}", "q".repeat(44)), E::RepeatedByte(KeyId(3))),
        ];
        for (text, error) in table {
            assert_eq!(Keyring::from_text(&text).err(), Some(error), "{text}");
        }
        assert_eq!(
            Keyring::new(KeyId(1), &[0; 31]).err(),
            Some(E::TooShort { key: KeyId(1), bytes: 31 })
        );
        assert_eq!(
            Keyring::new(KeyId(1), &[0; 1025]).err(),
            Some(E::TooLong { key: KeyId(1), bytes: 1025 })
        );
        for byte in [0, 1, b'x', 255] {
            for bytes in [32, 33, 64, 1024] {
                assert_eq!(
                    Keyring::new(KeyId(1), &vec![byte; bytes]).err(),
                    Some(E::RepeatedByte(KeyId(1)))
                );
                let mut other = vec![byte; bytes];
                other[bytes - 1] ^= 1;
                assert!(Keyring::new(KeyId(1), &other).is_ok());
            }
        }
        let of = |number: u16| {
            let mut key = [7; 32];
            key[..2].copy_from_slice(&number.to_be_bytes());
            key
        };
        let mut full = Keyring::new(KeyId(0), &of(0)).unwrap();
        for number in 1..64 {
            full = full.with_key(KeyId(number), &of(number)).unwrap();
        }
        assert_eq!(full.with_key(KeyId(64), &of(64)).err(), Some(E::TooMany));
    }

    #[test]
    fn an_error_of_the_environment_names_the_variable_and_the_cure() {
        // Cargo sets this variable for every test, and it is not a keyring.
        let wrong = Keyring::from_env("CARGO_PKG_NAME").unwrap_err();
        assert_eq!(
            (wrong.variable(), wrong.cause()),
            ("CARGO_PKG_NAME", Some(KeyringError::NoId { entry: 1 }))
        );
        assert!(
            wrong.to_string().starts_with("CARGO_PKG_NAME is not a valid keyring: entry 1 "),
            "{wrong}"
        );
        let missing = Keyring::from_env("PATKIT_TEST_NEVER_SET").unwrap_err();
        let text = "PATKIT_TEST_NEVER_SET is not set; create a key with `openssl rand -base64 32` and set \
                    PATKIT_TEST_NEVER_SET to `1:<that>`";
        assert_eq!((missing.cause(), missing.to_string()), (None, text.to_owned()));
        assert_eq!(format!("{missing:?}"), text, "what a `main` prints");
        let empty = KeyringEnvError { name: "KEYS".into(), cause: Some(KeyringError::Empty) };
        assert!(empty.to_string().starts_with("KEYS is empty; create a key"), "{empty}");
    }

    /// Stores keep these values forever. They were computed with Python's `hmac`.
    #[test]
    fn check_values_do_not_change_from_version_to_version() {
        let hex = |check: KeyCheck| format!("{:032x}", u128::from_be_bytes(*check.value()));
        let ring = Keyring::from_text(&format!("1:{ONE},258:{TWO}")).unwrap();
        let other = Keyring::from_text(&format!("258:{ONE},1:{TWO}")).unwrap();
        let values: Vec<String> = ring.checks().chain(other.checks()).map(hex).collect();
        assert_eq!(values[0], "58f13193053ab2855e6d6ad222f8f15c");
        assert_eq!(values[2], "3c34af54970ad4815d955581e6ed1b71");
        assert_eq!(values[3], "718ef49516525f4b4753108d6f1a2ce0");
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
