//! Parses the `Authorization` header of a request.
//!
//! The format is that of RFC 9110 section 11, of RFC 6750 section 2.1 and, for a host that accepts
//! HTTP Basic, of RFC 7617 section 2.

/// The maximum length of an `Authorization` header of the scheme `Bearer`: 8 KiB.
///
/// The text of a token has 97 bytes at most. Headers of other schemes are not bounded here.
pub(crate) const MAX_HEADER_BYTES: usize = 8 * 1024;

/// The error if a header has no bearer credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BearerError {
    /// There is no credential, or it has another scheme.
    Missing,
    /// `Bearer` is not followed by exactly one token68, or the header is too long.
    Malformed,
}

/// Returns the only `Authorization` header of a request, or `None` without one.
///
/// # Errors
/// [`BearerError::Malformed`] if there is more than one.
#[cfg(feature = "tower")]
pub(crate) fn only<'a>(
    headers: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Option<&'a [u8]>, BearerError> {
    let mut headers = headers.into_iter();
    let first = headers.next();
    if headers.next().is_some() { Err(BearerError::Malformed) } else { Ok(first) }
}

/// Returns the token68 after a scheme, of any length. `None` if the header has another scheme.
///
/// # Errors
/// [`BearerError::Malformed`] unless exactly one token68 follows the name.
#[cfg(feature = "tower")]
pub(crate) fn token68<'a>(
    header: &'a [u8],
    scheme: &[u8],
) -> Result<Option<&'a [u8]>, BearerError> {
    let Some(rest) = after_name(header, scheme) else { return Ok(None) };
    let text = rest.strip_prefix(b" ").map(trim_spaces).filter(|text| is_token68(text));
    text.map(Some).ok_or(BearerError::Malformed)
}

/// Returns the rest of a header after the name of a scheme, or `None` if it has another scheme.
///
/// The name is in lower case, and is compared without regard to case.
fn after_name<'a>(header: &'a [u8], scheme: &[u8]) -> Option<&'a [u8]> {
    let (name, rest) = header.split_at_checked(scheme.len())?;
    // `Bearerx` is another scheme. `Bearer` before a tab or a comma is not, because a scheme name
    // cannot contain either.
    let is_named =
        name.eq_ignore_ascii_case(scheme) && !rest.first().is_some_and(|byte| is_token_char(*byte));
    is_named.then_some(rest)
}

/// Returns the text after the scheme `Bearer`, trimmed of spaces, without checking it.
///
/// The scheme is compared without regard to case, and one or more spaces must follow it. The caller
/// must check that the rest is exactly one token68 (RFC 9110 section 11.2).
pub(crate) fn after_scheme(header: &[u8]) -> Result<&[u8], BearerError> {
    // The fast path for the usual header: no search for the end of the scheme or the token.
    if let Some(text) = header.strip_prefix(b"Bearer ")
        && header.len() <= MAX_HEADER_BYTES
        && !text.starts_with(b" ")
        && !text.ends_with(b" ")
    {
        return Ok(text);
    }
    let rest = after_name(header, b"bearer").ok_or(BearerError::Missing)?;
    if rest.first() != Some(&b' ') || header.len() > MAX_HEADER_BYTES {
        return Err(BearerError::Malformed);
    }
    Ok(trim_spaces(rest))
}

fn trim_spaces(mut text: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] | [rest @ .., b' '] = text {
        text = rest;
    }
    text
}

/// Returns whether a text is a token68 of RFC 9110 section 11.2:
/// `1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "+" / "/" ) *"="`.
pub(crate) fn is_token68(text: &[u8]) -> bool {
    // The characters of this crate's own tokens are checked without a branch per byte.
    let plain = text.iter().fold(true, |plain, &byte| {
        plain
            & ((byte | 0x20).wrapping_sub(b'a') < 26
                || byte.wrapping_sub(b'0') < 10
                || byte == b'_')
    });
    if plain {
        return !text.is_empty();
    }
    let mut body = text;
    while let [rest @ .., b'='] = body {
        body = rest;
    }
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte);
    !body.is_empty() && body.iter().all(fits)
}

/// Returns whether a byte is a `tchar` of RFC 9110 section 5.6.2.
fn is_token_char(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(header: &[u8]) -> Result<&[u8], BearerError> {
        let text = after_scheme(header)?;
        if is_token68(text) { Ok(text) } else { Err(BearerError::Malformed) }
    }

    #[test]
    fn credentials_of_other_schemes_are_not_judged_by_length_or_characters() {
        let schemes = [
            "NTLM",
            "Negotiate",
            "AWS4-HMAC-SHA256",
            "Digest",
            "Basic",
            "Bearerx",
            "Bearer-MAC",
            "B",
            "",
        ];
        let bodies: [&[u8]; 6] =
            [b"", b" abc", b" \xff\xfe", b"\0", b"\r\n", " Bearer caf\u{e9}".as_bytes()];
        for (scheme, body) in schemes.iter().flat_map(|scheme| bodies.map(|body| (scheme, body))) {
            for length in [0, MAX_HEADER_BYTES, 1 << 20] {
                let header =
                    [scheme.as_bytes(), body, &vec![0xe9; length], &vec![b'a'; length]].concat();
                assert_eq!(
                    credential(&header),
                    Err(BearerError::Missing),
                    "{scheme} {body:?} {length}"
                );
            }
        }
    }

    #[test]
    fn headers() {
        use BearerError::{Malformed, Missing};
        let long = format!("Bearer {}", "a".repeat(MAX_HEADER_BYTES));
        let megabyte = format!("Bearer {}", "a".repeat(1 << 20));
        let table = [
            ("Bearer abc", Ok("abc")),
            ("bearer abc", Ok("abc")),
            ("BEARER abc", Ok("abc")),
            ("Bearer   abc", Ok("abc")),
            ("Bearer abc ", Ok("abc")),
            ("Bearer a-._~+/0==", Ok("a-._~+/0==")),
            ("", Err(Missing)),
            ("Basic abc", Err(Missing)),
            ("Bear", Err(Missing)),
            ("Bearers abc", Err(Missing)),
            ("Béarer abc", Err(Missing)),
            ("Bearer", Err(Malformed)),
            ("Bearer ", Err(Malformed)),
            ("Bearer =", Err(Malformed)),
            ("Bearer a=b", Err(Malformed)),
            ("Bearer abc def", Err(Malformed)),
            ("Bearer abc, Bearer def", Err(Malformed)),
            ("Bearer abc,def", Err(Malformed)),
            ("Bearer\tabc", Err(Malformed)),
            ("Bearer \tabc", Err(Malformed)),
            ("Bearer abc\t", Err(Malformed)),
            ("Bearer abc\0", Err(Malformed)),
            ("Bearer abc\r\nX: y", Err(Malformed)),
            ("Bearer ab\u{e9}", Err(Malformed)),
            ("Bearer\u{e9}", Err(Malformed)),
            ("Bearer \"abc\"", Err(Malformed)),
            ("Bearer,abc", Err(Malformed)),
            (" Bearer abc", Err(Missing)),
            (long.as_str(), Err(Malformed)),
            (megabyte.as_str(), Err(Malformed)),
        ];
        for (header, expected) in table {
            let expected = expected.map(str::as_bytes);
            assert_eq!(credential(header.as_bytes()), expected, "{header:.40}");
        }
        for header in [b"Bearer \xff".as_slice(), b"Bearer\xff", b"bearer \0", b"Bearer a\x80"] {
            assert_eq!(credential(header), Err(Malformed), "{header:?}");
        }
    }
}
