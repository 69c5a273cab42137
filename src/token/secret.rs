//! The text that holds a secret: without `Clone`, `Display`, `Serialize` and equality, and wiped
//! when it is dropped.

use super::{TokenId, TokenKind};
use std::fmt;
use zeroize::Zeroizing;

/// The text that the client sends. It exists only once, when the token is generated or rotated.
///
/// Show it to the owner and drop it, which wipes it from memory. Copies that the host makes of
/// [`expose_secret`](Self::expose_secret) are the host's to wipe.
pub struct PlaintextToken {
    text: Zeroizing<String>,
    brand: Box<str>,
    kind: TokenKind,
    id: TokenId,
}

impl PlaintextToken {
    /// Returns the whole text, secret included. It is the only access to the text.
    pub fn expose_secret(&self) -> &str {
        &self.text
    }

    /// Returns the token's public id.
    pub fn id(&self) -> TokenId {
        self.id
    }

    /// Returns the token's kind.
    pub fn kind(&self) -> TokenKind {
        self.kind
    }

    pub(crate) fn write(
        brand: &str,
        kind: TokenKind,
        id: TokenId,
        write: impl FnOnce(&mut String),
    ) -> Self {
        // Reserves room for the longest brand, so that the text never moves and leaves no copy
        // behind.
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
