//! The types that hold a secret: no `Clone`, no `Display`, no `Serialize`, no equality, wiped when dropped.

use super::{TokenId, TokenKind};
use crate::random::{RandomError, SecureRandom};
use std::fmt;
use zeroize::{Zeroizing, optimization_barrier};

/// The text that the client sends. It exists once: when the token is generated or rotated.
///
/// Show it to its owner and drop it; it is wiped from memory then. What the host copied out of
/// [`expose_secret`](Self::expose_secret) is the host's to wipe.
pub struct PlaintextToken {
    text: Zeroizing<String>,
    brand: Box<str>,
    kind: TokenKind,
    id: TokenId,
}

impl PlaintextToken {
    /// The whole text, secret included: the one way to get at it.
    pub fn expose_secret(&self) -> &str {
        &self.text
    }

    /// The token's public id.
    pub fn id(&self) -> TokenId {
        self.id
    }

    /// The token's kind.
    pub fn kind(&self) -> TokenKind {
        self.kind
    }

    pub(crate) fn write(brand: &str, kind: TokenKind, id: TokenId, write: impl FnOnce(&mut String)) -> Self {
        // Room for the longest brand, so that the text never moves and leaves a copy behind.
        let mut text = Zeroizing::new(String::with_capacity(128));
        write(&mut text);
        Self { text, brand: brand.into(), kind, id }
    }
}

impl fmt::Debug for PlaintextToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PlaintextToken({}_{}_{}…)", self.brand, self.kind.code(), self.id)
    }
}

/// The 256 secret bits, as the four words of their text.
pub(crate) struct Secret([u64; 4]);

impl Secret {
    /// Characters of a secret's text.
    pub(crate) const TEXT_LEN: usize = 44;

    #[cfg(test)]
    pub(crate) const fn new(words: [u64; 4]) -> Self {
        Self(words)
    }

    pub(crate) fn generate(random: &dyn SecureRandom) -> Result<Self, RandomError> {
        let mut bytes = Zeroizing::new([0; 32]);
        random.fill(&mut *bytes)?;
        let mut secret = Self([0; 4]);
        let (chunks, _) = bytes.as_chunks();
        for (word, chunk) in secret.0.iter_mut().zip(chunks) {
            *word = u64::from_be_bytes(*chunk);
        }
        Ok(secret)
    }

    /// Room for a secret: one that is moved would leave a copy behind.
    pub(crate) const fn room() -> Self {
        Self([0; 4])
    }

    /// To be read into, in place.
    #[inline]
    pub(crate) const fn words_mut(&mut self) -> &mut [u64; 4] {
        &mut self.0
    }

    pub(crate) const fn words(&self) -> &[u64; 4] {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0 = [0; 4];
        optimization_barrier(&self.0);
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}
