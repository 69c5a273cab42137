//! Token revocation (RFC 7009).

use super::Form;
use crate::http::service::{
    Answer, AnswerFuture, BoxError, Methods, RequestBody, below, call_of, no_such_path, serve,
    with_headers,
};
use crate::http::{Authenticator, Incident};
use crate::owner::Directory;
use crate::service::{Actor, Credential, ManageError, VerifyError};
use crate::store::TokenStore;
use crate::token::Reason;
use bytes::Bytes;
use http::header::CACHE_CONTROL;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use std::convert::Infallible;
use std::fmt;
use std::task::{Context, Poll};
use tower_service::Service;

/// The revocation endpoint of RFC 7009, where a token revokes itself. It is a
/// [`tower_service::Service`] that is mounted as [`ManagementApi`](crate::http::ManagementApi) is.
///
/// A client sends a `POST` with the token's text in the field `token` of a form. The text is the
/// proof, so no other credential is needed, as for a public client of section 2.1. The answer is
/// 200 whether or not there was such a token (section 2.2), 400 without the field, 503 if the store
/// does not answer.
///
/// A token that is bound to networks revokes itself only from there.
pub struct Revocation<S, D> {
    authenticator: Authenticator<S, D>,
    base: String,
}

const METHODS: Methods<()> = &[(Method::POST, ())];

impl<S, D> Revocation<S, D> {
    /// Creates the endpoint, which answers every path that it gets.
    pub fn new(authenticator: Authenticator<S, D>) -> Self {
        Self { authenticator, base: String::new() }
    }

    /// Answers this path alone, such as `/revoke`, with or without a trailing slash.
    pub fn base_path(mut self, path: &str) -> Self {
        path.trim_end_matches('/').clone_into(&mut self.base);
        self
    }
}

impl<S: TokenStore, D: Directory> Revocation<S, D> {
    async fn answer(&self, parts: Parts, body: RequestBody) -> Answer {
        let rest = below(parts.uri.path(), &self.base).ok_or_else(no_such_path)?;
        if !matches!(rest, "" | "/") {
            return Err(no_such_path());
        }
        call_of(METHODS, &parts.method)?;
        let token = Form::read(&parts, body).await?.token()?;
        let Ok(text) = str::from_utf8(&token) else { return Ok(done()) };
        let credential = Credential::text(text);
        let credential =
            self.authenticator.of_client(credential, &parts.headers, &parts.extensions);
        let (tokens, challenge) = (self.authenticator.tokens(), self.authenticator.challenge());
        let verified = match tokens.inspect(credential).await {
            Ok(verified) => verified,
            Err(VerifyError::Rejected(_)) => return Ok(done()),
            Err(error @ VerifyError::Unavailable(_)) => {
                self.authenticator.watch.tell(Incident::Refused(&error));
                return Err(challenge.refused(&error));
            }
        };
        let actor = Actor::token(&verified);
        match tokens.revoke(&actor, verified.token().id(), Reason::Owner).await {
            // It no longer works, which is what was asked for.
            Ok(_) | Err(ManageError::ActorRejected(_) | ManageError::NotFound) => Ok(done()),
            Err(error) => {
                self.authenticator.watch.tell(Incident::NotDone(&error));
                Err(challenge.not_done(&error, &actor))
            }
        }
    }
}

fn done() -> Response<Full<Bytes>> {
    let no_store = [(CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    with_headers(StatusCode::OK, no_store, Bytes::new())
}

impl<S, D, B> Service<Request<B>> for Revocation<S, D>
where
    S: TokenStore + 'static,
    D: Directory + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = AnswerFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> AnswerFuture {
        let endpoint = self.clone();
        serve(request, async move |parts, body| endpoint.answer(parts, body).await)
    }
}

/// Mounts the service in an `App` or a scope, at its base path.
#[cfg(feature = "actix")]
impl<S: TokenStore + 'static, D: Directory + 'static> actix_web::dev::HttpServiceFactory
    for Revocation<S, D>
{
    fn register(self, config: &mut actix_web::dev::AppService) {
        let base = self.base.clone();
        crate::http::actix::register(self, &base, config);
    }
}

impl<S, D> Clone for Revocation<S, D> {
    fn clone(&self) -> Self {
        Self { authenticator: self.authenticator.clone(), base: self.base.clone() }
    }
}

impl<S, D> fmt::Debug for Revocation<S, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocation")
            .field("authenticator", &self.authenticator)
            .field("base", &self.base)
            .finish()
    }
}
