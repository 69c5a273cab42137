//! The text that holds a secret: no `Clone`, no `Display`, no `Serialize`, no equality, wiped when dropped.

use super::{TokenId, TokenKind};
use std::fmt;
use zeroize::Zeroizing;

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
