//! The steps that all services of this crate share, from a request with any body to its response.

use super::Problem;
use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, X_CONTENT_TYPE_OPTIONS,
};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use serde::Serialize;
use std::convert::Infallible;
use std::error::Error;
use std::pin::Pin;

pub(super) type BoxError = Box<dyn Error + Send + Sync>;

/// The body of a request. Its one type keeps the calls free of the host's types.
pub(super) type RequestBody = UnsyncBoxBody<Bytes, BoxError>;

pub(super) type Answer = Result<Response<Full<Bytes>>, Problem>;

pub(super) type AnswerFuture =
    Pin<Box<dyn Future<Output = Result<Response<Full<Bytes>>, Infallible>> + Send>>;

/// The methods of a path, in the order of the `Allow` header, each with its call.
pub(super) type Methods<C> = &'static [(Method, C)];

/// Answers a request by this function.
pub(super) fn serve<B, F>(
    request: Request<B>,
    answer: impl FnOnce(Parts, RequestBody) -> F + Send + 'static,
) -> AnswerFuture
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    F: Future<Output = Answer> + Send,
{
    let (parts, body) = request.into_parts();
    let is_head = parts.method == Method::HEAD;
    let body = body.map_err(Into::into).boxed_unsync();
    Box::pin(async move {
        let response = answer(parts, body).await.unwrap_or_else(Problem::into_full);
        Ok(if is_head { without_body(response) } else { response })
    })
}

/// Drops the body of the response to a `HEAD` request and keeps its length (RFC 9110
/// section 9.3.2).
fn without_body(mut response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    let length = response.body().size_hint().exact();
    if let Some(length) = length.filter(|_| response.status() != StatusCode::NO_CONTENT) {
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    response.map(|_| Full::default())
}

/// Returns the rest of a path that is below this base, which has no trailing slash.
pub(super) fn below<'a>(path: &'a str, base: &str) -> Option<&'a str> {
    path.strip_prefix(base).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Returns the call of a method. A `HEAD` request is a call of `GET`.
///
/// # Errors
/// [`Problem`] with 405 and the `Allow` header if the path does not have the method.
pub(super) fn call_of<C: Copy>(methods: Methods<C>, method: &Method) -> Result<C, Problem> {
    let wanted = if method == Method::HEAD { &Method::GET } else { method };
    let found = methods.iter().find(|(method, _)| method == wanted);
    found.map(|(_, call)| *call).ok_or_else(|| {
        let names = methods.iter().map(|(method, _)| match method.as_str() {
            "GET" => "GET,HEAD",
            other => other,
        });
        let allow = HeaderValue::try_from(names.collect::<Vec<_>>().join(","))
            .expect("names of methods are valid in a header value");
        let detail = "the method is not allowed at this path; use one that the Allow header lists";
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
            .with_header(ALLOW, allow)
    })
}

pub(super) fn no_such_path() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "no_such_path",
        "the path does not exist; correct it, and look for an extra slash",
    )
}

pub(super) fn json<T: Serialize>(status: StatusCode, body: &T) -> Response<Full<Bytes>> {
    json_bytes(status, serde_json::to_vec(body).map(Bytes::from))
}

/// Returns a response with this JSON, or 503 if it could not be written.
pub(super) fn json_bytes(
    status: StatusCode,
    body: serde_json::Result<Bytes>,
) -> Response<Full<Bytes>> {
    let Ok(body) = body else { return Problem::unavailable().into_full() };
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    with_headers(status, headers, body)
}

pub(super) fn with_headers<const N: usize>(
    status: StatusCode,
    headers: [(HeaderName, HeaderValue); N],
    body: Bytes,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    *response.headers_mut() = HeaderMap::from_iter(headers);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_below_a_base_at_a_slash_alone() {
        for (path, base, rest) in [
            ("/api/x", "/api", Some("/x")),
            ("/api/", "/api", Some("/")),
            ("/api", "/api", Some("")),
            ("/x", "", Some("/x")),
            ("/apix", "/api", None),
            ("/x/api", "/api", None),
            ("/a%70i/x", "/api", None),
            ("*", "", None),
        ] {
            assert_eq!(below(path, base), rest, "{path} {base}");
        }
    }

    #[test]
    fn an_answer_to_head_has_the_length_of_the_body_that_it_leaves_out() {
        let json = with_headers(StatusCode::OK, [], Bytes::from_static(b"{}"));
        let response = without_body(json);
        assert_eq!(response.headers()[CONTENT_LENGTH], "2");
        assert_eq!(response.body().size_hint().exact(), Some(0));
        let none = with_headers(StatusCode::NO_CONTENT, [], Bytes::new());
        assert!(without_body(none).headers().is_empty());
    }
}
