//! The parts of a request that the calls of the management API read: an id, the query, `If-Match` and
//! the body.

use super::Problem;
use super::json_fields::Refused;
use super::service::RequestBody;
use crate::store::MAX_PAGE;
use crate::token::TokenId;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, IF_MATCH};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, LengthLimitError};
use percent_encoding::percent_decode_str;
use std::error::Error;
use std::iter::successors;
use zeroize::{Zeroize, Zeroizing};

/// The number of tokens on a page if the client does not set it.
const DEFAULT_PAGE: usize = 50;
/// The most bytes of a request's body. All fields at their longest, with each character escaped,
/// fit together.
pub(super) const MAX_BODY: usize = 64 * 1024;
/// The most bytes of a body that are read. Those beyond `MAX_BODY` are dropped, and are read only
/// so that the client can still get the answer.
pub(super) const MOST_DROPPED: usize = 1024 * 1024;

/// The fields of a list's query.
pub(super) const PAGING: [&str; 2] = ["limit", "cursor"];

/// Returns the id that a part of the path is.
///
/// A text that is not an id is looked up as the id of no token, so that an actor without
/// permissions gets the same answer for every text.
pub(super) fn id_of(part: &str) -> TokenId {
    let text = percent_decode_str(part).decode_utf8();
    text.ok().and_then(|text| text.parse().ok()).unwrap_or(TokenId::UNISSUED)
}

/// Reads a query that may have each of these fields once.
pub(super) fn query_of(parts: &Parts, fields: &[&str]) -> Result<Vec<(String, String)>, Problem> {
    let pairs = pairs(parts.uri.query().unwrap_or_default());
    let mut refused = Refused::default();
    for (place, (name, _)) in pairs.iter().enumerate() {
        if refused.has(name) {
            continue;
        }
        if !fields.contains(&name.as_str()) {
            let detail = match fields {
                [] => "the request takes no query; leave the query out".to_owned(),
                _ => format!("the query takes only {}; leave the rest out", fields.join(" and ")),
            };
            refused.refuse(&[name], detail);
        } else if pairs.iter().take(place).any(|(earlier, _)| earlier == name) {
            refused.refuse(&[name], format!("the query has {name} twice; send {name} once"));
        }
    }
    refused.finish().map(|()| pairs)
}

/// The most fields of a query that are checked.
///
/// No call takes so many, so the first 64 of a longer query already include a refused one.
const MOST_FIELDS: usize = 64;

/// Decodes a query as a browser encodes a form (URL standard, application/x-www-form-urlencoded).
fn pairs(query: &str) -> Vec<(String, String)> {
    let decoded = |text: &str| {
        let text = text.replace('+', " ");
        percent_decode_str(&text).decode_utf8_lossy().into_owned()
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty()).take(MOST_FIELDS);
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect()
}

pub(super) fn page_of(query: &[(String, String)]) -> Result<(Option<TokenId>, usize), Problem> {
    let value = |name: &str| query.iter().find(|(field, _)| field == name).map(|(_, value)| value);
    let mut refused = Refused::default();
    let limit = value("limit")
        .map(|text| text.parse().ok().filter(|number| (1..=MAX_PAGE).contains(number)));
    if limit == Some(None) {
        let detail = format!("the limit is not a number from 1 to {MAX_PAGE}; choose one of those");
        refused.refuse(&["limit"], detail);
    }
    let after = value("cursor").map(|text| text.parse().ok());
    if after == Some(None) {
        let detail = "the cursor is malformed; send `next` of the page before, or leave the cursor \
                      out for the first page";
        refused.refuse(&["cursor"], detail);
    }
    refused.finish()?;
    Ok((after.flatten(), limit.flatten().unwrap_or(DEFAULT_PAGE)))
}

/// Reads `If-Match` (RFC 9110 section 13.1.1). `None` if any version matches.
///
/// Tags are compared strongly, so a weak tag names no version. Neither does a tag that is not from
/// this API, or a malformed field.
pub(super) fn expected_versions(headers: &HeaderMap) -> Option<Vec<u64>> {
    let mut lines = headers.get_all(IF_MATCH).iter().peekable();
    lines.peek()?;
    // Splits at each comma, because no version's tag has one. A tag with a comma becomes pieces
    // that name no version.
    let tags: Vec<&[u8]> = lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .collect();
    if tags == [b"*"] {
        return None;
    }
    let version = |tag: &[u8]| {
        let digits = str::from_utf8(tag).ok()?.strip_prefix('"')?.strip_suffix('"')?;
        // Accepts only one spelling of each version.
        digits.parse().ok().filter(|version: &u64| version.to_string() == digits)
    };
    Some(tags.into_iter().filter_map(version).collect())
}

pub(super) fn not_json() -> Problem {
    let detail = "the body is not declared as JSON; send `Content-Type: application/json`";
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
}

pub(super) async fn json_body(
    parts: &Parts,
    body: RequestBody,
) -> Result<Zeroizing<Vec<u8>>, Problem> {
    let content_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.map(|value| value.split_once(';').map_or(value, |(start, _)| start));
    if !essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json")) {
        return Err(not_json());
    }
    limited(parts, body).await
}

/// Reads a body of up to `MAX_BODY` bytes, which is wiped when it is dropped: a form may hold a token.
///
/// A larger body is read up to `MOST_DROPPED` and dropped. If the connection were closed while the
/// client is still sending, the client would see only the closed connection, not the reason.
pub(super) async fn limited(
    parts: &Parts,
    mut body: RequestBody,
) -> Result<Zeroizing<Vec<u8>>, Problem> {
    let too_large = || {
        let detail = "the body is larger than 64 KiB; send fewer or shorter fields";
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
    };
    let announced = parts.headers.get(CONTENT_LENGTH);
    let announced: Option<usize> = announced.and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length| length > MOST_DROPPED) {
        return Err(too_large());
    }
    // Holds the whole body, so it does not grow and leave a copy behind.
    let capacity = announced.unwrap_or(MAX_BODY).min(MAX_BODY);
    let (mut read, mut length) = (Zeroizing::new(Vec::with_capacity(capacity)), 0_usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let mut causes = successors(Some::<&dyn Error>(&*error), |&cause| cause.source());
            let is_over = causes.any(<dyn Error>::is::<LengthLimitError>);
            let broken = || {
                let detail = "the body could not be read to its end; send the request again";
                Problem::new(StatusCode::BAD_REQUEST, "invalid_body", detail)
            };
            if is_over { too_large() } else { broken() }
        })?;
        let data = frame.into_data().unwrap_or_default();
        length = length.saturating_add(data.len());
        if length > MOST_DROPPED {
            break;
        }
        if length <= MAX_BODY {
            read.extend_from_slice(&data);
        } else if !read.is_empty() {
            // Once, because it wipes the whole capacity.
            read.zeroize();
        }
    }
    if length > MAX_BODY { Err(too_large()) } else { Ok(read) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_as_a_form() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        for (query, expected) in [
            ("", vec![]),
            ("&&", vec![]),
            ("a=b&c", vec![pair("a", "b"), pair("c", "")]),
            ("a=b=c&=d", vec![pair("a", "b=c"), pair("", "d")]),
            ("a+b=%2B+%26%3d", vec![pair("a b", "+ &=")]),
            (
                "a=%c3%a9&b=%ff&c=%4&d=%zz",
                vec![pair("a", "\u{e9}"), pair("b", "\u{fffd}"), pair("c", "%4"), pair("d", "%zz")],
            ),
        ] {
            assert_eq!(pairs(query), expected, "{query}");
        }
        assert_eq!(pairs(&"a&".repeat(MOST_FIELDS * 1000)).len(), MOST_FIELDS);
    }

    #[test]
    fn an_id_may_be_percent_encoded_and_other_texts_are_the_id_of_no_token() {
        let bytes = [0, 0, 0, 0, 0, 1, 0x70, 0, 0x80, 0, 0, 0, 0, 0, 0, 0];
        let id = TokenId::from_bytes(bytes).unwrap();
        let text = id.to_string();
        let encoded = text.replace('0', "%30");
        assert_ne!(text, encoded);
        assert_eq!((id_of(&text), id_of(&encoded)), (id, id));
        assert_ne!(id, TokenId::UNISSUED);
        for text in ["", "x", "%", "%ff", "..%2f"] {
            assert_eq!(id_of(text), TokenId::UNISSUED, "{text}");
        }
    }
}
