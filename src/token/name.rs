//! The name and the description of a token.

use super::TokenId;
use super::unicode::{Class, class, nfkc_casefold};
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::Arc;
use unicode_normalization::UnicodeNormalization;

/// Most characters (Unicode scalar values) of a name.
pub const MAX_NAME_CHARS: usize = 255;
/// Most characters (Unicode scalar values) of a description.
pub const MAX_DESCRIPTION_CHARS: usize = 1_000;

/// The name that the owner of a token gave it, for display.
///
/// [`new`](Self::new) checks a new name once: it has 1 to 255 characters, at least one of them
/// visible, and is in Unicode's normalization form C. A stored name is never checked again
/// ([`stored`](Self::stored)), so that another version of Unicode cannot make a record unreadable.
///
/// Two names are the same if their [keys](Self::key) are equal. `==` compares only the texts.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TokenName(Box<str>);

impl TokenName {
    /// Checks a new name.
    ///
    /// The text is trimmed, and each run of white space becomes one space. Characters that look
    /// like a space, such as the Braille pattern without dots and the Hangul fillers, count as
    /// white space.
    ///
    /// # Errors
    /// [`NameError`] if the text has no visible character, is too long, or has a character that is
    /// not allowed: controls, line separators, characters that embed, override or isolate the
    /// direction of text, characters for private use, and characters that are not assigned in
    /// [`UNICODE_VERSION`](super::UNICODE_VERSION). Combining marks and format characters alone are
    /// not visible.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let text = trimmed(text);
        // Rejects a text of a megabyte before it is folded.
        check_bytes(text, MAX_NAME_CHARS)?;
        check_characters(text, |_| false)?;
        let text = spaces_folded(text);
        if !shows(&text) {
            return Err(NameError::Empty);
        }
        Ok(Self(normalized(&text, MAX_NAME_CHARS)?.into()))
    }

    /// Creates a name from the text that a store kept. The text is not checked.
    pub fn stored(text: &str) -> Self {
        Self(text.into())
    }

    /// Returns this name, shortened if necessary, with the id of its token appended. No other token
    /// has that name.
    pub(crate) fn with_id(&self, id: TokenId) -> Self {
        const ID_CHARS: usize = 22;
        let kept = MAX_NAME_CHARS.saturating_sub(ID_CHARS).saturating_sub(" ()".len());
        let kept: String = self.0.chars().take(kept).collect();
        Self(format!("{kept} ({id})").into())
    }

    /// Returns the text, for display.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Computes the key by which a token of this name is unique.
    ///
    /// Letters of different scripts that look alike (Latin `a`, Cyrillic `а`) are different
    /// letters.
    pub fn key(&self) -> NameKey {
        // Folds the spaces again, because an ignored character may have been between two of them.
        let folded = spaces_folded(&nfkc_casefold(&self.0));
        NameKey(Sha256::digest(folded.trim_matches(' ')).into())
    }
}

/// The key by which names are unique within a realm, owner and kind.
///
/// It is the SHA-256 of the name's NFKC case folding (Unicode Standard, section 3.13.5,
/// `toNFKC_Casefold`), in which each run of white space is one space.
///
/// It is computed once, when a name is written. A store keeps it as opaque bytes and never computes
/// it, because another version of this crate may compute another key for the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameKey([u8; 32]);

impl NameKey {
    /// Creates a key from the bytes that a store kept.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes, for a store.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for TokenName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for TokenName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenName({:?})", self.as_str())
    }
}

impl Serialize for TokenName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// The description that the owner of a token gave it, for display.
///
/// It has at most 1,000 characters, in Unicode's normalization form C. As with a [`TokenName`], a
/// new description is checked and a stored one is not.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Description(Arc<str>);

impl Description {
    /// Checks a new description. The text is trimmed. Returns `None` if it has no visible
    /// character.
    ///
    /// # Errors
    /// [`NameError`] if the text is too long or has a character that is not allowed. The same
    /// characters are refused as in a [name](TokenName::new), except line feeds.
    pub fn new(text: &str) -> Result<Option<Self>, NameError> {
        let text = trimmed(text);
        check_bytes(text, MAX_DESCRIPTION_CHARS)?;
        check_characters(text, |character| character == '\n')?;
        if !shows(text) {
            return Ok(None);
        }
        Ok(Some(Self(normalized(text, MAX_DESCRIPTION_CHARS)?.into())))
    }

    /// Creates a description from the text that a store kept. The text is not checked.
    pub fn stored(text: &str) -> Self {
        Self(text.into())
    }

    /// Returns the text, for display.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Description({:?})", self.as_str())
    }
}

impl Serialize for Description {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// The reason why a name or a description was refused.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The text is empty after trimming, or has no visible character.
    #[error("the text shows nothing; write at least one visible character")]
    Empty,
    /// The text has more characters than allowed.
    #[error("the text is longer than {most} characters; shorten the text")]
    TooLong {
        /// Most characters allowed.
        most: usize,
    },
    /// The text has a control character, a line separator, a character that overrides the direction
    /// of text, or a character that is for private use or not assigned.
    #[error("the text has the character U+{:04X}, which is not allowed; leave the character out", u32::from(*.0))]
    Character(char),
}

/// Most bytes that may become one character. The longest canonical decomposition is four characters
/// of four bytes each.
const MAX_BYTES_PER_CHAR: usize = 16;

fn check_bytes(text: &str, most: usize) -> Result<(), NameError> {
    if text.len() > most.saturating_mul(MAX_BYTES_PER_CHAR) {
        return Err(NameError::TooLong { most });
    }
    Ok(())
}

fn check_characters(text: &str, allowed: impl Fn(char) -> bool) -> Result<(), NameError> {
    let refused = |character: &char| class(*character) == Class::Refused && !allowed(*character);
    text.chars().find(refused).map_or(Ok(()), |character| Err(NameError::Character(character)))
}

/// Returns whether a character is white space, including line ends, or looks like it.
fn is_blank(character: char) -> bool {
    class(character) == Class::Blank
        || matches!(character, '\t'..='\r' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

fn trimmed(text: &str) -> &str {
    text.trim_matches(is_blank)
}

/// Returns the text with one space for each run of blank characters.
fn spaces_folded(text: &str) -> String {
    let mut folded = String::with_capacity(text.len());
    for character in text.chars() {
        if !is_blank(character) {
            folded.push(character);
        } else if !folded.ends_with(' ') {
            folded.push(' ');
        }
    }
    folded
}

fn shows(text: &str) -> bool {
    text.chars().any(|character| class(character) == Class::Shown)
}

/// Returns the text in normalization form C.
fn normalized(text: &str, most: usize) -> Result<String, NameError> {
    let text: String = text.nfc().collect();
    if text.chars().count() > most { Err(NameError::TooLong { most }) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> TokenName {
        TokenName::new(text).unwrap()
    }

    #[test]
    fn names_are_trimmed_and_in_form_c() {
        assert_eq!(name(" ci \t").as_str(), "ci");
        assert_eq!(name("cafe\u{301}").as_str(), "caf\u{e9}");
    }

    #[test]
    fn what_is_the_same_name_and_what_is_not() {
        for (one, other) in [
            ("CI", "ci"),
            ("caf\u{e9}", "CAFE\u{301}"),
            ("Straße", "STRASSE"),
            ("ﬁle", "FILE"),
            ("Ⅷ", "viii"),
            ("ci", "c\u{AD}i\u{200D}"),
            ("Σίσυφος", "ΣΊΣΥΦΟΣ"),
            ("Å", "\u{212B}"),
        ] {
            assert_eq!(name(one).key(), name(other).key(), "{one} {other}");
        }
        for (one, other) in [("a", "\u{430}"), ("ci", "ci2"), ("I", "\u{131}"), ("a b", "ab")] {
            assert_ne!(name(one).key(), name(other).key(), "{one} {other}");
        }
    }

    #[test]
    fn what_is_refused() {
        use NameError as E;
        let table = [
            ("", E::Empty),
            (" \n\t", E::Empty),
            ("\u{200B}\u{AD}", E::Empty),
            ("a\nb", E::Character('\n')),
            ("a\0b", E::Character('\0')),
            ("a\u{7f}b", E::Character('\u{7f}')),
            ("a\u{85}b", E::Character('\u{85}')),
            ("a\x1b[31mb", E::Character('\x1b')),
            ("a\r\nb", E::Character('\r')),
            ("a\u{2028}b", E::Character('\u{2028}')),
            ("a\u{202E}b", E::Character('\u{202E}')),
            ("a\u{2066}b", E::Character('\u{2066}')),
        ];
        for (text, error) in table {
            assert_eq!(TokenName::new(text).err(), Some(error), "{text:?}");
        }
        assert_eq!(name(&"é".repeat(255)).as_str().chars().count(), 255);
        assert_eq!(
            name(&"e\u{301}".repeat(255)).as_str().chars().count(),
            255,
            "counted in form C"
        );
        for long in ["é".repeat(256), "x".repeat(1 << 20), "\u{301}".repeat(1 << 20)] {
            assert_eq!(TokenName::new(&long).err(), Some(E::TooLong { most: 255 }));
        }
    }

    #[test]
    fn descriptions_may_have_lines() {
        assert_eq!(Description::new(" a\nb ").unwrap().unwrap().as_str(), "a\nb");
        assert_eq!(Description::new(" \n ").unwrap(), None);
        assert_eq!(Description::new("a\rb").err(), Some(NameError::Character('\r')));
        assert!(Description::new(&"x".repeat(1_000)).is_ok());
        assert_eq!(
            Description::new(&"x".repeat(1_001)).err(),
            Some(NameError::TooLong { most: 1_000 })
        );
    }

    #[test]
    fn ascii_is_in_form_c_and_folds_to_lower_case() {
        let all: String = (0..=127_u8).map(char::from).collect();
        assert_eq!(all.nfc().collect::<String>(), all);
        assert_eq!(nfkc_casefold(&all), all.to_ascii_lowercase());
        // A letter that is not ASCII makes the folding read the tables.
        assert_eq!(
            nfkc_casefold(&format!("{all}\u{df}")),
            format!("{}ss", all.to_ascii_lowercase())
        );
        assert_eq!(name(&"x".repeat(255)).as_str().len(), 255);
        assert_eq!(TokenName::new(&"x".repeat(256)).err(), Some(NameError::TooLong { most: 255 }));
    }

    proptest! {
        #[test]
        fn a_name_is_stable(text in "\\PC{0,40}") {
            if let Ok(first) = TokenName::new(&text) {
                let again = TokenName::new(first.as_str()).unwrap();
                prop_assert_eq!(first.as_str(), again.as_str());
                prop_assert_eq!(first.key(), again.key());
                let folded = nfkc_casefold(first.as_str());
                prop_assert_eq!(nfkc_casefold(&folded), folded, "folding twice is folding once");
            }
        }
    }
}
