//! Parses the `Authorization` header of a bearer request without an HTTP library.
//!
//! The format is that of RFC 9110 section 11 and RFC 6750 section 2.1.

/// The maximum length of an `Authorization` header of the scheme `Bearer`: 8 KiB.
///
/// The text of a token has 97 bytes at most. Headers of other schemes are not bounded here.
pub const MAX_HEADER_BYTES: usize = 8 * 1024;

/// The error if a header has no bearer credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BearerError {
    /// There is no credential, or it has another scheme. Answer 401 without an error code.
    #[error("the request has no bearer credential")]
    Missing,
    /// `Bearer` is not followed by exactly one token68, or the header is too long.
    ///
    /// Answer 400 with `invalid_request`.
    #[error(
        "the bearer credential is malformed: `Bearer`, a space and one token are expected, 8 KiB at most"
    )]
    Malformed,
}

/// Returns the value of a request's only `Authorization` header.
///
/// `headers` are the values as received. Returns `None` if there is none, or if it has another
/// scheme than `Bearer`. A credential of another scheme is never checked, regardless of its length
/// and bytes.
///
/// # Errors
/// [`BearerError::Malformed`] if there is more than one header, of any scheme, or if the bearer
/// credential is longer than [`MAX_HEADER_BYTES`] or is not visible ASCII with spaces and tabs (RFC
/// 9110 section 5.5).
pub fn only<'a>(
    headers: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Option<&'a str>, BearerError> {
    let mut headers = headers.into_iter();
    match (headers.next(), headers.next()) {
        (None, _) => Ok(None),
        (Some(header), None) if after_name(header).is_none() => Ok(None),
        (Some(header), None) if header.len() > MAX_HEADER_BYTES => Err(BearerError::Malformed),
        (Some(header), None) if header.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~')) => {
            str::from_utf8(header).map(Some).map_err(|_| BearerError::Malformed)
        }
        (Some(_), _) => Err(BearerError::Malformed),
    }
}

/// Returns the bearer credential of a request's only `Authorization` header.
///
/// Returns `None` unless it is one well-formed token68, of any length.
#[cfg(feature = "tower")]
pub(crate) fn token68<'a>(headers: impl IntoIterator<Item = &'a [u8]>) -> Option<&'a str> {
    let mut headers = headers.into_iter();
    let (header, None) = (headers.next()?, headers.next()) else { return None };
    let text = str::from_utf8(after_name(header)?).ok()?.strip_prefix(' ')?.trim_matches(' ');
    is_token68(text).then_some(text)
}

/// Returns the rest of a header after the name `Bearer`, or `None` if it has another scheme.
fn after_name(header: &[u8]) -> Option<&[u8]> {
    let (name, rest) = header.split_first_chunk::<6>()?;
    // `Bearerx` is another scheme. `Bearer` before a tab or a comma is not, because a scheme name
    // cannot contain either.
    let is_ours = name.eq_ignore_ascii_case(b"bearer")
        && !rest.first().is_some_and(|byte| is_token_char(*byte));
    is_ours.then_some(rest)
}

/// Returns the credential of an `Authorization` header.
///
/// The scheme is compared without regard to case. One or more spaces must follow, then exactly one
/// token68 (RFC 9110 section 11.2) and nothing else but spaces.
///
/// A request with more than one `Authorization` header is malformed as a whole; the caller must
/// check for that.
///
/// # Errors
/// [`BearerError`], which never contains any part of the header.
pub fn credential(header: &str) -> Result<&str, BearerError> {
    let text = after_scheme(header)?;
    if is_token68(text) { Ok(text) } else { Err(BearerError::Malformed) }
}

/// Returns the text after the scheme, trimmed of spaces, without checking it.
pub(crate) fn after_scheme(header: &str) -> Result<&str, BearerError> {
    // The fast path for the usual header: no search for the end of the scheme or the token.
    if let Some(text) = header.strip_prefix("Bearer ")
        && header.len() <= MAX_HEADER_BYTES
        && !text.starts_with(' ')
        && !text.ends_with(' ')
    {
        return Ok(text);
    }
    let rest = after_name(header.as_bytes()).ok_or(BearerError::Missing)?;
    if rest.first() != Some(&b' ') || header.len() > MAX_HEADER_BYTES {
        return Err(BearerError::Malformed);
    }
    let text = header.get(header.len().saturating_sub(rest.len())..);
    text.map(|text| text.trim_matches(' ')).ok_or(BearerError::Malformed)
}

/// Returns whether a text is a token68 of RFC 9110 section 11.2:
/// `1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "+" / "/" ) *"="`.
pub(crate) fn is_token68(text: &str) -> bool {
    // The characters of this crate's own tokens are checked without a branch per byte.
    let plain = text.bytes().fold(true, |plain, byte| {
        plain
            & ((byte | 0x20).wrapping_sub(b'a') < 26
                || byte.wrapping_sub(b'0') < 10
                || byte == b'_')
    });
    if plain {
        return !text.is_empty();
    }
    let body = text.trim_end_matches('=');
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte);
    !body.is_empty() && body.bytes().all(fits)
}

/// Returns whether a byte is a `tchar` of RFC 9110 section 5.6.2.
fn is_token_char(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_one_header_or_none() {
        assert_eq!(only([]), Ok(None));
        assert_eq!(only([b"Bearer abc".as_slice()]), Ok(Some("Bearer abc")));
        let long = [b"Bearer ", "a".repeat(MAX_HEADER_BYTES).as_bytes()].concat();
        let bad: [&[&[u8]]; 7] = [
            &[b"Bearer abc", b"Bearer abc"],
            &[b"Bearer abc", b"NTLM abc"],
            &[b"NTLM abc", b"NTLM abc"],
            &[b"Bearer \xff"],
            &[b"bearer \0"],
            &[b"Bearer\xff"],
            &[&long],
        ];
        for headers in bad {
            assert_eq!(only(headers.iter().copied()), Err(BearerError::Malformed));
        }
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
                assert_eq!(only([header.as_slice()]), Ok(None), "{scheme} {body:?} {length}");
                if let Ok(text) = str::from_utf8(&header) {
                    assert_eq!(
                        credential(text),
                        Err(BearerError::Missing),
                        "{scheme} {body:?} {length}"
                    );
                }
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
            ("Bearer \"abc\"", Err(Malformed)),
            ("Bearer,abc", Err(Malformed)),
            (" Bearer abc", Err(Missing)),
            (long.as_str(), Err(Malformed)),
            (megabyte.as_str(), Err(Malformed)),
        ];
        for (header, expected) in table {
            assert_eq!(credential(header), expected, "{header:.40}");
        }
    }
}
