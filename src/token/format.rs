//! The text of a plaintext token: `<brand>_<kind>_<id><secret><checksum>`.
//!
//! | part | characters | content |
//! |---|---|---|
//! | brand | 2–16 | the host's choice, `[a-z][a-z0-9]{1,15}` |
//! | kind | 3 | `pat` or `svc` |
//! | id | 22 | 128 bits, two words of 11 base62 digits |
//! | secret | 44 | 256 bits, four words of 11 base62 digits |
//! | checksum | 6 | CRC-32/ISO-HDLC of all characters before it |
//!
//! The checksum finds typing errors and keeps noise away from the store. It proves nothing, because
//! anybody who knows the rules can compute it.

use super::base62::NonDigits;
use super::digest::Message;
use super::secret::PlaintextToken;
use super::{TokenId, TokenKind, base62};
use std::fmt;
use std::str::FromStr;
use zeroize::Zeroizing;

/// Characters after the two underscores.
const BODY_LEN: usize = TokenId::TEXT_LEN + 4 * base62::WORD_DIGITS + base62::CRC_DIGITS;
/// Room for the longest brand, the kind and both underscores, in whole words. It is less than the
/// length of the shortest token.
const MAX_PREFIX_LEN: usize = 24;
/// The maximum number of former brands that a service may accept.
pub(crate) const MAX_FORMER_BRANDS: usize = 8;

/// The first part of a token's text: `[a-z][a-z0-9]{1,15}`, so 2 to 16 characters.
///
/// It shows people and secret scanners which host issued the token.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Brand(Box<str>);

/// The error for a text that is not a [`Brand`].
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a brand must have 2 to 16 characters, a letter of a-z first and then a-z or 0-9, such as \
     \"acme\""
)]
#[non_exhaustive]
pub struct BrandError;

impl Brand {
    /// Creates the brand with this text.
    ///
    /// # Errors
    /// [`BrandError`] if the text is not `[a-z][a-z0-9]{1,15}`.
    pub fn new(text: &str) -> Result<Self, BrandError> {
        let [first, rest @ ..] = text.as_bytes() else {
            return Err(BrandError);
        };
        let fits = (1..=15).contains(&rest.len())
            && first.is_ascii_lowercase()
            && rest.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if fits { Ok(Self(text.into())) } else { Err(BrandError) }
    }

    /// Returns the brand's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Brand {
    type Err = BrandError;

    fn from_str(text: &str) -> Result<Self, BrandError> {
        Self::new(text)
    }
}

impl fmt::Display for Brand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Brand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Brand({self})")
    }
}

/// The error for a text that is not one of this host's tokens. It has no details, because only the
/// text was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the text is not a token of this host; send the whole text of a token")]
#[non_exhaustive]
pub struct MalformedToken;

/// The formats that a host accepts: those of its brand and of its former brands.
#[derive(Debug, Clone)]
pub struct TokenFormat {
    brand: Brand,
    /// Each brand with each kind, the current brand first.
    prefixes: Box<[Prefix]>,
}

/// The start of a text: `brand_kind_`.
#[derive(Debug, Clone)]
struct Prefix {
    text: Box<str>,
    /// The prefix in words, in the byte order of memory, and a mask of the bits that count.
    words: [u64; 3],
    mask: [u64; 3],
    kind: TokenKind,
    /// The checksum state after the prefix. It is cloned for each text, because a new one would
    /// first detect the processor's features.
    checksum: crc32fast::Hasher,
}

impl Prefix {
    fn new(brand: &Brand, kind: TokenKind) -> Self {
        let text: Box<str> = format!("{brand}_{}_", kind.code()).into();
        let (mut bytes, mut mask) = ([0; MAX_PREFIX_LEN], [0; MAX_PREFIX_LEN]);
        for ((byte, mask), character) in bytes.iter_mut().zip(&mut mask).zip(text.bytes()) {
            (*byte, *mask) = (character, u8::MAX);
        }
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(text.as_bytes());
        Self { checksum, words: prefix_words(&bytes), mask: prefix_words(&mask), text, kind }
    }

    /// Returns the rest of a text after the prefix. Returns `None` if the text lacks the prefix or
    /// does not have the length of a token.
    #[inline]
    fn strip<'a>(&self, text: &'a [u8]) -> Option<&'a [u8; BODY_LEN]> {
        let (_, body) = text.split_at_checked(self.text.len())?;
        // Any text of a token's length is long enough for this. Whole words are compared without a
        // call.
        let words = prefix_words(text.first_chunk()?);
        let places = words.iter().zip(&self.words).zip(&self.mask);
        let differences = places.fold(0, |all, ((word, own), mask)| all | ((word ^ own) & mask));
        if differences == 0 { body.try_into().ok() } else { None }
    }

    /// Returns the checksum of the prefix and the rest after it.
    fn checksum(&self, rest: &[u8]) -> u32 {
        let mut checksum = self.checksum.clone();
        checksum.update(rest);
        checksum.finalize()
    }
}

fn prefix_words(bytes: &[u8; MAX_PREFIX_LEN]) -> [u64; 3] {
    let mut words = [0; 3];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    words
}

/// The reason why a text could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// The text does not have the form of our tokens, or a number in it is too large.
    Form,
    /// The text has the form of our tokens, with only letters, digits and underscores, but a wrong
    /// checksum.
    Checksum,
}

/// The content of a well-formed text. Nothing of it is proven.
#[derive(Clone, Copy)]
pub(crate) struct Presented<'a> {
    pub(crate) kind: TokenKind,
    pub(crate) id: TokenId,
    body: &'a [u8; BODY_LEN],
}

impl Presented<'_> {
    /// Reads the presented text again.
    pub(crate) fn read(&self, message: &mut Message) {
        // The text was readable when it was presented.
        read_body(self.body, self.kind, message, NonDigits::default());
    }
}

/// Reads the presented text in place, because moving a secret would leave a copy behind.
///
/// Returns `None` if `non_digits` has a deviation from an earlier read, a character of the id or the
/// secret is not a digit, a number is over 2^64-1, or the id is invalid.
#[inline]
fn read_body(
    body: &[u8; BODY_LEN],
    kind: TokenKind,
    message: &mut Message,
    mut non_digits: NonDigits,
) -> Option<TokenId> {
    message.set_kind(kind);
    for (place, word) in message.words_mut().enumerate() {
        let at = place.wrapping_mul(base62::WORD_DIGITS);
        *word = base62::word(body.get(at..)?.first_chunk()?, &mut non_digits).to_be_bytes();
    }
    let mut words = message.words();
    let id = TokenId::from_words([words.next()?, words.next()?])?;
    non_digits.is_nothing().then_some(id)
}

impl TokenFormat {
    /// Creates the format of `brand`, which also accepts the texts of `former` brands, at most
    /// eight.
    ///
    /// # Errors
    /// [`TokenFormatError`] if there are more than eight former brands, or a brand is given twice.
    pub fn new(brand: Brand, former: &[Brand]) -> Result<Self, TokenFormatError> {
        if former.len() > MAX_FORMER_BRANDS {
            return Err(TokenFormatError::TooManyBrands);
        }
        let brands: Vec<&Brand> = std::iter::once(&brand).chain(former).collect();
        for (place, each) in brands.iter().enumerate() {
            if brands.iter().take(place).any(|earlier| earlier == each) {
                return Err(TokenFormatError::RepeatedBrand(Brand::clone(each)));
            }
        }
        let of_brand = |brand: &&Brand| TokenKind::ALL.map(|kind| Prefix::new(brand, kind));
        let prefixes = brands.iter().flat_map(of_brand).collect();
        Ok(Self { brand, prefixes })
    }

    /// Returns the brand that new tokens get.
    pub fn brand(&self) -> &Brand {
        &self.brand
    }

    /// Returns whether an accepted brand and a kind are anywhere in a text, as in this host's tokens.
    ///
    /// A token in quotes, after a second scheme or as the user name of HTTP Basic is this host's too.
    #[cfg(feature = "tower")]
    pub(crate) fn has_prefix_in(&self, text: &[u8]) -> bool {
        self.prefixes.iter().any(|prefix| {
            let prefix = prefix.text.as_bytes();
            text.windows(prefix.len()).any(|part| part == prefix)
        })
    }

    /// Returns a regular expression that finds this host's tokens in any text.
    ///
    /// It is meant for secret scanners, log filters and pre-commit hooks, and is in the common
    /// subset of RE2, PCRE, Python, JavaScript and Rust.
    ///
    /// It has no word boundary, because a token often follows the letter of an escape (`\t`,
    /// `\u003d`), a percent code or an underscore. [`check`](Self::check) uses the checksum to
    /// distinguish tokens from other hits. A hit that fails the check may overlap a token, for
    /// example if the start of another token was cut off and glued to it. Continue the search one
    /// character after the start of that hit, not after its end.
    pub fn scanner_expression(&self) -> String {
        let prefixes: Vec<&str> = self.prefixes.iter().map(|prefix| &*prefix.text).collect();
        format!(r"(?:{})[0-9A-Za-z]{{{BODY_LEN}}}", prefixes.join("|"))
    }

    /// Returns the kind and the id of `text` if it is a token of this host, as far as the text
    /// alone shows.
    ///
    /// It checks the form, brand, alphabet and checksum.
    ///
    /// # Errors
    /// [`MalformedToken`] if the text is not such a token.
    pub fn check(&self, text: &str) -> Result<(TokenKind, TokenId), MalformedToken> {
        let presented =
            self.parse(text.as_bytes(), &mut Message::room()).map_err(|_| MalformedToken)?;
        Ok((presented.kind, presented.id))
    }

    /// Parses a text and writes its content in place.
    ///
    /// It allocates nothing, and rejects a wrong checksum before it reads the rest.
    #[inline(always)]
    #[allow(
        clippy::inline_always,
        reason = "measured: what it gives would be moved through memory, for a tenth of a verification"
    )]
    pub(crate) fn parse<'a>(
        &self,
        text: &'a [u8],
        message: &mut Message,
    ) -> Result<Presented<'a>, Unreadable> {
        let (prefix, body) = self.split(text).ok_or(Unreadable::Form)?;
        let (Some((checked, _)), Some(last)) =
            (body.split_last_chunk::<{ base62::CRC_DIGITS }>(), body.last_chunk())
        else {
            return Err(Unreadable::Form);
        };
        let mut non_digits = NonDigits::default();
        if base62::crc(last, &mut non_digits) != u64::from(prefix.checksum(checked)) {
            return Err(if base62::are_digits(body) {
                Unreadable::Checksum
            } else {
                Unreadable::Form
            });
        }
        let id = read_body(body, prefix.kind, message, non_digits).ok_or(Unreadable::Form)?;
        Ok(Presented { kind: prefix.kind, id, body })
    }

    fn split<'a>(&self, text: &'a [u8]) -> Option<(&Prefix, &'a [u8; BODY_LEN])> {
        self.prefixes.iter().find_map(|prefix| Some((prefix, prefix.strip(text)?)))
    }

    /// Writes a token's text.
    pub(crate) fn print(&self, kind: TokenKind, id: TokenId, message: &Message) -> PlaintextToken {
        let brand = self.brand.as_str();
        PlaintextToken::write(brand, kind, id, |text| {
            text.push_str(brand);
            text.push('_');
            text.push_str(kind.code());
            text.push('_');
            for word in message.words() {
                push_digits::<{ base62::WORD_DIGITS }>(text, word);
            }
            push_digits::<{ base62::CRC_DIGITS }>(text, crc_in_registers(text.as_bytes()).into());
        })
    }

    /// Returns the length in bytes of a token's text with this brand.
    pub fn text_len(&self) -> usize {
        self.brand.as_str().len().saturating_add(1 + 3 + 1 + BODY_LEN)
    }
}

/// The error of [`TokenFormat::new`].
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenFormatError {
    /// There are more than eight former brands.
    #[error(
        "the service has too many former brands; keep at most {MAX_FORMER_BRANDS}, and drop brands \
         that no token has any more"
    )]
    TooManyBrands,
    /// A brand is given twice.
    #[error(
        "the brand {0} is given twice; name each brand once, by `.brand(…)` or `.former_brand(…)`"
    )]
    RepeatedBrand(Brand),
}

/// Returns the CRC-32 of a secret text.
///
/// For 16 bytes or more, `crc32fast` uses vector code, which leaves a copy of the last 16 bytes on
/// the stack. Shorter pieces stay in registers.
fn crc_in_registers(text: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    text.chunks(8).for_each(|piece| hasher.update(piece));
    hasher.finalize()
}

/// Appends a number of `N` digits, and wipes the array in which they were computed.
fn push_digits<const N: usize>(text: &mut String, number: u64) {
    let mut digits = Zeroizing::new([0; N]);
    base62::encode_into(number, &mut digits);
    text.extend(digits.iter().copied().map(char::from));
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

    fn format() -> TokenFormat {
        TokenFormat::new(Brand::new("acme").unwrap(), &[Brand::new("ac").unwrap()]).unwrap()
    }

    fn id() -> TokenId {
        TokenId::from_words([0x0190_0000_0000_7abc, 0x8000_0000_0000_0001]).unwrap()
    }

    #[test]
    fn a_known_token_has_its_known_text() {
        let plaintext = format().print(
            TokenKind::Personal,
            id(),
            &Message::new(TokenKind::Personal, id(), [1, 2, 3, u64::MAX]),
        );
        let text = plaintext.expose_secret();
        assert_eq!(text.len(), 81);
        assert_eq!(text.len(), format().text_len());
        assert_eq!(
            text,
            // Computed by another implementation of base62 and CRC-32.
            "acme_pat_08Jf7vJUPGOAzL8n0Y58m9000000000010000000000200000000003LygHa16AHYF4D0MJZ"
        );
        let mut message = Message::room();
        let presented = format().parse(text.as_bytes(), &mut message).unwrap();
        assert_eq!((presented.kind, presented.id), (TokenKind::Personal, id()));
        let [high, low] = id().words();
        assert!(message.words().eq([high, low, 1, 2, 3, u64::MAX]));
        let mut again = Message::room();
        presented.read(&mut again);
        assert!(again.words().eq(message.words()));
    }

    #[test]
    fn former_brands_are_read_and_unknown_ones_are_not() {
        let former = TokenFormat::new(Brand::new("ac").unwrap(), &[]).unwrap();
        let text =
            former.print(TokenKind::Service, id(), &Message::new(TokenKind::Service, id(), [9; 4]));
        assert_eq!(format().check(text.expose_secret()), Ok((TokenKind::Service, id())));
        let other = TokenFormat::new(Brand::new("acm").unwrap(), &[]).unwrap();
        assert_eq!(other.check(text.expose_secret()), Err(MalformedToken));
    }

    #[test]
    fn a_word_that_overflows_or_an_id_that_is_none_is_refused_with_a_right_checksum() {
        let good = format().print(
            TokenKind::Personal,
            id(),
            &Message::new(TokenKind::Personal, id(), [1; 4]),
        );
        let good = good.expose_secret();
        for (place, digits) in
            [(9, "zzzzzzzzzzz"), (9, "00000000000"), (31, "LygHa16AHYG"), (31, "zzzzzzzzzzz")]
        {
            let mut text = good[..75].to_owned();
            text.replace_range(place..place + 11, digits);
            let checksum = base62::encode::<6>(u64::from(crc32fast::hash(text.as_bytes())));
            text.push_str(str::from_utf8(&checksum).unwrap());
            assert_eq!(format().check(&text), Err(MalformedToken), "{text}");
        }
    }

    #[test]
    fn what_is_no_digit_is_refused_wherever_it_stands_with_a_right_checksum() {
        let good = format().print(
            TokenKind::Personal,
            id(),
            &Message::new(TokenKind::Personal, id(), [1; 4]),
        );
        for at in 9..75 {
            for other in (0..0x80_u8).map(char::from).filter(|other| !other.is_ascii_alphanumeric())
            {
                let mut text = good.expose_secret()[..75].to_owned();
                text.replace_range(at..=at, &other.to_string());
                let checksum = base62::encode::<6>(u64::from(crc32fast::hash(text.as_bytes())));
                text.push_str(str::from_utf8(&checksum).unwrap());
                assert_eq!(format().check(&text), Err(MalformedToken), "{text:?}");
            }
        }
        // If these characters were read as digits, they would have the same value. The first digit
        // of a checksum is none of these, because it is at most 4.
        let mut number = 0;
        for at in 76..81 {
            let (mut text, alias) = std::iter::repeat_with(|| {
                number += 1;
                let text = format().print(
                    TokenKind::Personal,
                    id(),
                    &Message::new(TokenKind::Personal, id(), [number; 4]),
                );
                let alias = match text.expose_secret().as_bytes()[at] {
                    letter @ b'A'..=b'G' => letter - b'A' + b':',
                    letter @ b'a'..=b'f' => letter - b'a' + b'[',
                    _ => 0,
                };
                (text.expose_secret().to_owned(), char::from(alias))
            })
            .find(|(_, alias)| *alias != '\0')
            .unwrap();
            assert!(format().check(&text).is_ok());
            text.replace_range(at..=at, &alias.to_string());
            assert_eq!(format().check(&text), Err(MalformedToken), "{text:?}");
        }
    }

    #[test]
    fn brands_have_bounds() {
        for good in ["ac", "a0", "acme", "abcdefghijklmnop"] {
            assert_eq!(Brand::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "a", "0a", "Acme", "ac_me", "acmé", "ac-me", "abcdefghijklmnopq"] {
            assert_eq!(Brand::new(bad), Err(BrandError), "{bad}");
        }
        let acme = Brand::new("acme").unwrap();
        assert_eq!(
            TokenFormat::new(acme.clone(), std::slice::from_ref(&acme)).unwrap_err(),
            TokenFormatError::RepeatedBrand(acme.clone())
        );
        let many: Vec<Brand> = (0..9).map(|n| Brand::new(&format!("b{n}")).unwrap()).collect();
        assert_eq!(TokenFormat::new(acme, &many).unwrap_err(), TokenFormatError::TooManyBrands);
    }
}
