//! The answer to a refused or failed request: a status and `application/problem+json` (RFC 9457).
//!
//! Every text in it is a constant of this crate, or names a field that the client sent and its
//! bound.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};
#[cfg(feature = "api")]
use http_body_util::Full;
use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};
use std::borrow::Cow;
use std::fmt;

/// The seconds after which a client may retry if a backend was unavailable.
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// The most characters of a field's name that an error shows.
///
/// The longest name of a field is shorter. The secret of a token that was sent as a name by mistake
/// begins later: brand, kind and id take 28 characters or more.
#[cfg(feature = "api")]
const MOST_SHOWN: usize = 24;

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

#[cfg(feature = "api")]
impl FieldError {
    /// Creates an error of the field at this path (names and indexes, outermost first). At most
    /// `MOST_SHOWN` characters of each name are shown.
    pub(super) fn new(path: &[&str], detail: impl Into<Cow<'static, str>>) -> Self {
        let escaped = |name: &&str| {
            let name: String = name.chars().take(MOST_SHOWN).collect();
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
    #[cfg(feature = "api")]
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
    #[cfg(feature = "api")]
    pub(super) fn of_field(mut self, field: &str) -> Self {
        self.0.errors = vec![FieldError::new(&[field], self.0.detail.clone())];
        self
    }

    /// Keeps only errors of these fields, which the request has.
    #[cfg(feature = "api")]
    pub(super) fn about(mut self, fields: &[&str]) -> Self {
        self.0.errors.retain(|error| fields.iter().any(|field| error.is_of(field)));
        self
    }

    pub(super) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// Adds these values of a header, none or more.
    pub(super) fn with_headers(
        mut self,
        name: &HeaderName,
        values: impl IntoIterator<Item = HeaderValue>,
    ) -> Self {
        self.0.headers.extend(values.into_iter().map(|value| (name.clone(), value)));
        self
    }

    pub(super) fn retried(self) -> Self {
        self.with_header(RETRY_AFTER, RETRY_SECONDS)
    }

    /// Returns the answer if the store, the directory or another part of the host does not answer:
    /// 503, with `Retry-After`.
    pub fn unavailable() -> Self {
        let detail = "the service is not available at the moment; try again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail).retried()
    }

    #[cfg(feature = "api")]
    pub(super) fn into_full(self) -> Response<Full<Bytes>> {
        self.to_response().map(Full::new)
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
            headers.append(name, value.clone());
        }
        response
    }
}

/// Shows the description of the problem.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.detail())
    }
}

impl std::error::Error for Problem {}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_written_as_rfc_9457_has_it() {
        let response = Problem::unavailable().to_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert_eq!(response.headers()["retry-after"], "1");
        let expected = r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"the service is not available at the moment; try again","code":"unavailable"}"#;
        assert_eq!(response.body(), expected);
    }
}
