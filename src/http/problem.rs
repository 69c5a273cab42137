//! The answer to a refused or failed request: a status, `application/problem+json` (RFC 9457), and
//! the challenge of RFC 6750.
//!
//! Every text in it is a constant of this crate, or names a field that the client sent and its
//! bound.

use crate::service::{RejectReason, VerifyError};
use crate::token::Brand;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};
use std::borrow::Cow;

/// The seconds after which a client may retry if a backend was unavailable.
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// The answer to a refused or failed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem(Box<Members>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Members {
    status: StatusCode,
    code: &'static str,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// A refused field of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FieldError {
    /// The JSON pointer (RFC 6901) of the field in the body, such as `/scopes/0`. A field of the
    /// query is named as if the query were an object.
    pub pointer: String,
    /// The problem with the field, for the user who filled it in.
    pub detail: Cow<'static, str>,
}

#[cfg(feature = "axum")]
impl FieldError {
    /// Creates an error of the field at this path (names and indexes, outermost first). At most 64
    /// characters of each name are shown.
    pub(super) fn new(path: &[&str], detail: impl Into<Cow<'static, str>>) -> Self {
        let escaped = |name: &&str| {
            let name: String = name.chars().take(64).collect();
            format!("/{}", name.replace('~', "~0").replace('/', "~1"))
        };
        Self { pointer: path.iter().map(escaped).collect(), detail: detail.into() }
    }

    /// Returns whether the error is about the field of this name or a part of it.
    pub(super) fn is_of(&self, field: &str) -> bool {
        let rest = self.pointer.strip_prefix('/').and_then(|pointer| pointer.strip_prefix(field));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl Problem {
    pub(super) fn new(
        status: StatusCode,
        code: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        let (detail, errors, headers) = (detail.into(), Vec::new(), Vec::new());
        Self(Box::new(Members { status, code, detail, errors, headers }))
    }

    /// Returns a 422 that lists these refused fields.
    #[cfg(feature = "axum")]
    pub(super) fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = match &errors[..] {
            [error] => error.detail.clone(),
            _ => format!("{} fields are refused; correct each field in `errors`", errors.len())
                .into(),
        };
        let mut problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail);
        problem.0.errors = errors;
        problem
    }

    /// Returns the status of the answer.
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// Returns the code of the problem for programs, such as `invalid_token` or `name_taken`.
    pub fn code(&self) -> &'static str {
        self.0.code
    }

    /// Returns the description, for humans to read.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// Returns every refused field of the request.
    pub fn errors(&self) -> &[FieldError] {
        &self.0.errors
    }

    /// Sets the field that the problem is about. The detail says what is wrong with it.
    #[cfg(feature = "axum")]
    pub(super) fn of_field(mut self, field: &str) -> Self {
        self.0.errors = vec![FieldError::new(&[field], self.0.detail.clone())];
        self
    }

    /// Keeps only errors of these fields, which the request has.
    #[cfg(feature = "axum")]
    pub(super) fn about(mut self, fields: &[&str]) -> Self {
        self.0.errors.retain(|error| fields.iter().any(|field| error.is_of(field)));
        self
    }

    pub(super) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    fn challenged(self, challenge: HeaderValue) -> Self {
        self.with_header(WWW_AUTHENTICATE, challenge)
    }

    pub(super) fn retried(self) -> Self {
        self.with_header(RETRY_AFTER, RETRY_SECONDS)
    }

    pub(super) fn no_credential(challenge: &Challenge) -> Self {
        let detail =
            "the request has no bearer credential; send the header `Authorization: Bearer <token>`";
        Self::new(StatusCode::UNAUTHORIZED, "no_credential", detail).challenged(challenge.plain())
    }

    pub(super) fn invalid_token(challenge: &Challenge) -> Self {
        let detail = "the token is refused; send the whole text of a token that is active";
        Self::new(StatusCode::UNAUTHORIZED, "invalid_token", detail)
            .challenged(challenge.error("invalid_token"))
    }

    pub(super) fn unavailable() -> Self {
        let detail = "the service is not available at the moment; try again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail).retried()
    }

    /// Returns a refusal for a missing permission. The permission is `None` if the client must not
    /// learn it.
    pub(super) fn insufficient_scope(challenge: &Challenge, permission: Option<&str>) -> Self {
        let detail: Cow<'static, str> = match permission {
            Some(permission) => format!(
                "the token does not have the permission {permission}; use a token that has it"
            )
            .into(),
            None => "the token may not do this; use a token that may do more, or sign in".into(),
        };
        Self::new(StatusCode::FORBIDDEN, "insufficient_scope", detail)
            .challenged(challenge.insufficient(permission))
    }

    pub(super) fn refused(error: &VerifyError, challenge: &Challenge) -> Self {
        match error.reject_reason() {
            None => Self::unavailable(),
            Some(RejectReason::NoCredential) => Self::no_credential(challenge),
            Some(RejectReason::InvalidRequest) => {
                let detail = "the request does not have exactly one well-formed bearer credential; \
                              send the header `Authorization: Bearer <token>` once";
                Self::new(StatusCode::BAD_REQUEST, "invalid_request", detail)
                    .challenged(challenge.error("invalid_request"))
            }
            Some(_) => Self::invalid_token(challenge),
        }
    }

    /// Returns the HTTP response.
    pub fn to_response(&self) -> Response<Bytes> {
        let body = serde_json::to_vec(self).expect("texts and numbers have a JSON form");
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = self.0.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        for (name, value) in &self.0.headers {
            headers.insert(name, value.clone());
        }
        response
    }
}

impl Serialize for FieldError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut error = serializer.serialize_struct("FieldError", 2)?;
        error.serialize_field("pointer", &self.pointer)?;
        error.serialize_field("detail", &*self.detail)?;
        error.end()
    }
}

/// Serializes as RFC 9457 section 3.1 requires, with `code` and `errors` as extensions. The type is
/// `about:blank`, so the title is that of the status (section 4.2.1).
impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut problem = serializer.serialize_struct("Problem", 6)?;
        problem.serialize_field("type", "about:blank")?;
        let title = self.0.status.canonical_reason().expect("this crate uses registered statuses");
        problem.serialize_field("title", title)?;
        problem.serialize_field("status", &self.0.status.as_u16())?;
        problem.serialize_field("detail", &*self.0.detail)?;
        problem.serialize_field("code", self.0.code)?;
        if self.0.errors.is_empty() {
            problem.skip_field("errors")?;
        } else {
            problem.serialize_field("errors", &self.0.errors)?;
        }
        problem.end()
    }
}

/// The challenges of one protection space (RFC 9110 section 11.5).
#[derive(Debug, Clone)]
pub(super) struct Challenge(HeaderValue);

/// The error for a `realm` that no challenge can have.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the realm of a challenge is refused; use 1 to 128 visible ASCII characters or spaces, such as \
     \"acme\""
)]
#[non_exhaustive]
pub struct RealmError;

impl Challenge {
    pub(super) fn new(realm: &str) -> Result<Self, RealmError> {
        let fits = (1..=128).contains(&realm.len())
            && realm.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        let escaped = realm.replace('\\', "\\\\").replace('"', "\\\"");
        let value =
            HeaderValue::try_from(format!("Bearer realm=\"{escaped}\"")).map_err(|_| RealmError)?;
        if fits { Ok(Self(value)) } else { Err(RealmError) }
    }

    /// Creates the challenge whose realm is the brand.
    pub(super) fn of_brand(brand: &Brand) -> Self {
        Self::new(brand.as_str()).expect("a brand has 2 to 16 letters and digits")
    }

    /// Returns a challenge of no service, for tests of hosts.
    #[cfg(feature = "testkit")]
    pub(super) const fn of_nobody() -> Self {
        Self(HeaderValue::from_static("Bearer realm=\"test\""))
    }

    fn plain(&self) -> HeaderValue {
        self.0.clone()
    }

    fn error(&self, error: &'static str) -> HeaderValue {
        self.with(&format!(", error=\"{error}\""))
    }

    /// Builds the challenge for a missing permission. The permission needs no escaping, because all
    /// of its characters are allowed in a scope token (RFC 6749 section 3.3).
    fn insufficient(&self, permission: Option<&str>) -> HeaderValue {
        let scope =
            permission.map(|permission| format!(", scope=\"{permission}\"")).unwrap_or_default();
        self.with(&format!(", error=\"insufficient_scope\"{scope}"))
    }

    fn with(&self, parameters: &str) -> HeaderValue {
        let value = [self.0.as_bytes(), parameters.as_bytes()].concat();
        HeaderValue::from_bytes(&value).expect("the realm and the parameters are visible ASCII")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_realm_is_quoted() {
        let challenge = Challenge::new(r#"say "hi" \o/"#).unwrap();
        assert_eq!(challenge.plain(), r#"Bearer realm="say \"hi\" \\o/""#);
        let expected = r#"Bearer realm="say \"hi\" \\o/", error="insufficient_scope", scope="a:b""#;
        assert_eq!(challenge.insufficient(Some("a:b")), expected);
        for bad in ["", "a\r\nSet-Cookie: b", "caf\u{e9}", "\0", &"a".repeat(129)] {
            assert_eq!(Challenge::new(bad).unwrap_err(), RealmError, "{bad:?}");
        }
    }

    #[test]
    fn a_problem_is_written_as_rfc_9457_has_it() {
        let challenge = Challenge::new("acme").unwrap();
        let response = Problem::invalid_token(&challenge).to_response();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert_eq!(
            response.headers()["www-authenticate"],
            r#"Bearer realm="acme", error="invalid_token""#
        );
        let expected = r#"{"type":"about:blank","title":"Unauthorized","status":401,"detail":"the token is refused; send the whole text of a token that is active","code":"invalid_token"}"#;
        assert_eq!(response.body(), expected);
    }
}
