//! The `Authorization` header of a bearer request (RFC 9110 section 11, RFC 6750 section 2.1), as text: no HTTP library is
//! needed.

/// Most bytes of a header that are looked at; a longer one holds no token of ours, whose text has 97 at most.
pub const MAX_HEADER_BYTES: usize = 8 * 1024;

/// Why a header holds no bearer credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BearerError {
    /// There is no credential, or one of another scheme: answer 401 without an error code.
    #[error("there is no bearer credential")]
    Missing,
    /// `Bearer` is not followed by exactly one token68, or the header is too long: answer 400, `invalid_request`.
    #[error("the bearer credential is malformed")]
    Malformed,
}

/// The only one of a request's `Authorization` headers, from their values as they came; none where there is none.
///
/// # Errors
/// [`BearerError::Malformed`] where there is more than one, or it is not visible ASCII with spaces and tabs
/// (RFC 9110 section 5.5).
pub fn only<'a>(headers: impl IntoIterator<Item = &'a [u8]>) -> Result<Option<&'a str>, BearerError> {
    let mut headers = headers.into_iter();
    match (headers.next(), headers.next()) {
        (None, _) => Ok(None),
        (Some(header), None) if header.len() > MAX_HEADER_BYTES => Err(BearerError::Malformed),
        (Some(header), None) if header.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~')) => {
            str::from_utf8(header).map(Some).map_err(|_| BearerError::Malformed)
        }
        (Some(_), _) => Err(BearerError::Malformed),
    }
}

/// The credential in an `Authorization` header. The scheme is compared without regard to case; one or more spaces stand
/// after it; then exactly one token68 (RFC 9110 section 11.2) and nothing else but spaces.
///
/// A request with more than one `Authorization` header is malformed as a whole: that is for the caller to see.
///
/// # Errors
/// [`BearerError`], which never holds anything of the header.
pub fn credential(header: &str) -> Result<&str, BearerError> {
    let text = after_scheme(header)?;
    if is_token68(text) { Ok(text) } else { Err(BearerError::Malformed) }
}

/// What stands after the scheme, trimmed of spaces, without a look at it.
pub(crate) fn after_scheme(header: &str) -> Result<&str, BearerError> {
    const SCHEME: &[u8; 6] = b"bearer";
    // The usual header, without a search for where anything ends.
    if let Some(text) = header.strip_prefix("Bearer ")
        && header.len() <= MAX_HEADER_BYTES
        && !text.starts_with(' ')
        && !text.ends_with(' ')
    {
        return Ok(text);
    }
    let Some((scheme, rest)) = header.as_bytes().split_first_chunk::<6>() else {
        return Err(BearerError::Missing);
    };
    if !scheme.eq_ignore_ascii_case(SCHEME) {
        return Err(BearerError::Missing);
    }
    match rest.first() {
        Some(b' ') if header.len() <= MAX_HEADER_BYTES => {
            let text = header.get(SCHEME.len()..).unwrap_or_default();
            Ok(text.trim_matches(' '))
        }
        // `Bearerx` is another scheme; `Bearer` and a tab, a comma or whatever is not a scheme at all.
        Some(byte) if is_token_char(*byte) => Err(BearerError::Missing),
        Some(_) | None => Err(BearerError::Malformed),
    }
}

/// RFC 9110 section 11.2: `1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "+" / "/" ) *"="`.
pub(crate) fn is_token68(text: &str) -> bool {
    // What our own tokens are made of is seen without a branch per byte.
    let plain = text.bytes().fold(true, |plain, byte| {
        plain & ((byte | 0x20).wrapping_sub(b'a') < 26 || byte.wrapping_sub(b'0') < 10 || byte == b'_')
    });
    if plain {
        return !text.is_empty();
    }
    let body = text.trim_end_matches('=');
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte);
    !body.is_empty() && body.bytes().all(fits)
}

/// RFC 9110 section 5.6.2, `tchar`.
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
        let bad: [&[&[u8]]; 4] =
            [&[b"Bearer abc", b"Bearer abc"], &[b"Bearer \xff"], &[b"Bearer \0"], &[b"a\r\nb"]];
        for headers in bad {
            assert_eq!(only(headers.iter().copied()), Err(BearerError::Malformed));
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
