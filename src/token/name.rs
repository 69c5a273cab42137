//! The name and the description of a token.

use super::TokenId;
use caseless::Caseless;
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::Arc;
use unicode_normalization::UnicodeNormalization;

/// Most characters (Unicode scalar values) of a name.
pub const MAX_NAME_CHARS: usize = 255;
/// Most characters (Unicode scalar values) of a description.
pub const MAX_DESCRIPTION_CHARS: usize = 1_000;

/// What its owner calls a token: 1 to 255 characters after trimming, in Unicode's normalization form C, without
/// control characters, line separators and the characters that override the direction of text.
///
/// Two names are the same where their [`key`](Self::key)s are. Letters of different scripts that look alike
/// (Latin `a`, Cyrillic `а`) are different letters.
#[derive(Clone)]
pub struct TokenName {
    /// The text; where its key is another one, a zero character, which is in no name, and the key.
    text_and_key: Box<str>,
}

impl TokenName {
    /// The name with this text.
    ///
    /// # Errors
    /// [`NameError`] when the text is empty or too long, or has a character that may not stand in a name.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let text = normalized(text, MAX_NAME_CHARS, |_| false)?;
        let name = Self::of_normalized(&text);
        // What is invisible altogether cannot be told apart on a page.
        if name.key().is_empty() { Err(NameError::Empty) } else { Ok(name) }
    }

    fn of_normalized(text: &str) -> Self {
        let key = fold(text);
        Self { text_and_key: if key == text { key.into() } else { format!("{text}\0{key}").into() } }
    }

    /// The name of no token.
    pub(crate) fn vacant() -> Self {
        Self { text_and_key: "".into() }
    }

    /// This name, cut where need be, with the id of its token behind it: no other token has that name.
    pub(crate) fn with_id(&self, id: TokenId) -> Self {
        const ID_CHARS: usize = 22;
        let kept = MAX_NAME_CHARS.saturating_sub(ID_CHARS).saturating_sub(" ()".len());
        // The name is in form C, and so is each beginning of it.
        let kept: String = self.as_str().chars().take(kept).collect();
        Self::of_normalized(&format!("{kept} ({id})"))
    }

    /// The name as it is shown.
    pub fn as_str(&self) -> &str {
        self.text_and_key.split_once('\0').map_or(&self.text_and_key, |(text, _)| text)
    }

    /// What names are compared by: the NFKC case folding (Unicode Standard, section 3.13.5, `toNFKC_Casefold`).
    /// Stores keep it as it is, as part of a unique key; it is at most 18 times as long as the name.
    pub fn key(&self) -> &str {
        self.text_and_key.split_once('\0').map_or(&self.text_and_key, |(_, key)| key)
    }
}

impl TokenName {
    /// SHA-256 of the [`key`](Self::key): for stores whose unique indexes hold only so much.
    pub fn key_hash(&self) -> [u8; 32] {
        Sha256::digest(self.key().as_bytes()).into()
    }
}

/// Names are equal where their keys are.
impl PartialEq for TokenName {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for TokenName {}

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

/// What a token is for, in its owner's words: at most 1,000 characters, in Unicode's normalization form C; the rules
/// of a name but for line feeds, which may stand in it. It is trimmed too.
#[derive(Clone, PartialEq, Eq)]
pub struct Description(Arc<str>);

impl Description {
    /// The description with this text; `None` for one that is empty after trimming.
    ///
    /// # Errors
    /// [`NameError`] when the text is too long or has a character that may not stand in it.
    pub fn new(text: &str) -> Result<Option<Self>, NameError> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        normalized(text, MAX_DESCRIPTION_CHARS, |character| character == '\n').map(|text| Some(Self(text)))
    }

    /// The description as it is shown.
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

/// Why a name or a description was refused.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Nothing is left after trimming, or nothing that can be seen.
    #[error("the text shows nothing; write at least one visible character")]
    Empty,
    /// It has more characters than allowed.
    #[error("the text is longer than {most} characters; shorten the text")]
    TooLong {
        /// Most characters allowed.
        most: usize,
    },
    /// It has a control character, a line separator or a character that overrides the direction of text.
    #[error("the text has the character U+{:04X}, which is not allowed; leave the character out", u32::from(*.0))]
    Character(char),
}

/// Bytes that may become one character: the longest canonical decomposition is four characters, of four bytes each.
const MAX_BYTES_PER_CHAR: usize = 16;

fn normalized(text: &str, most: usize, allowed: impl Fn(char) -> bool) -> Result<Arc<str>, NameError> {
    // Refuse a megabyte before doing anything with it.
    if text.len() > most.saturating_mul(MAX_BYTES_PER_CHAR) {
        return Err(NameError::TooLong { most });
    }
    if let Some(bad) = text.chars().find(|&character| is_refused(character) && !allowed(character)) {
        return Err(NameError::Character(bad));
    }
    // In form C already, a byte to a character. Most names are such, and each look-up in a database reads one.
    if text.is_ascii() {
        return if text.len() > most { Err(NameError::TooLong { most }) } else { Ok(text.into()) };
    }
    let text: String = text.nfc().collect();
    if text.chars().count() > most { Err(NameError::TooLong { most }) } else { Ok(text.into()) }
}

/// Controls, line and paragraph separators, and the characters that embed, override or isolate a direction of text
/// (Unicode Standard Annex 9, section 2).
fn is_refused(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// `toNFKC_Casefold`, which for ASCII comes to lower case.
fn fold(text: &str) -> String {
    if text.is_ascii() { text.to_ascii_lowercase() } else { fold_any(text) }
}

/// Fold, drop what is ignorable, normalize, until nothing changes. Twice is enough by the standard's own recipe for
/// compatibility caseless matching (section 3.13.5, D146).
fn fold_any(text: &str) -> String {
    let once = |text: &str| -> String {
        text.nfd().default_case_fold().filter(|&character| !is_ignorable(character)).nfkc().collect()
    };
    once(&once(text))
}

/// `Default_Ignorable_Code_Point` (Unicode Standard Annex 44, `DerivedCoreProperties.txt`).
fn is_ignorable(character: char) -> bool {
    matches!(
        character,
        '\u{00AD}' | '\u{034F}' | '\u{061C}' | '\u{115F}'..='\u{1160}' | '\u{17B4}'..='\u{17B5}'
        | '\u{180B}'..='\u{180F}' | '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{206F}'
        | '\u{3164}' | '\u{FE00}'..='\u{FE0F}' | '\u{FEFF}' | '\u{FFA0}' | '\u{FFF0}'..='\u{FFF8}'
        | '\u{1BCA0}'..='\u{1BCA3}' | '\u{1D173}'..='\u{1D17A}' | '\u{E0000}'..='\u{E0FFF}'
    )
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
            assert_eq!(name(one), name(other), "{one} {other}");
        }
        for (one, other) in [("a", "\u{430}"), ("ci", "ci2"), ("I", "\u{131}"), ("a b", "ab")] {
            assert_ne!(name(one), name(other), "{one} {other}");
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
        assert_eq!(name(&"e\u{301}".repeat(255)).as_str().chars().count(), 255, "counted in form C");
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
        assert_eq!(Description::new(&"x".repeat(1_001)).err(), Some(NameError::TooLong { most: 1_000 }));
    }

    #[test]
    fn ascii_is_in_form_c_and_folds_to_lower_case() {
        let all: String = (0..=127_u8).map(char::from).collect();
        assert_eq!(all.nfc().collect::<String>(), all);
        assert_eq!(fold(&all), fold_any(&all));
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
                prop_assert_eq!(fold(first.key()), first.key(), "folding twice is folding once");
            }
        }
    }
}
