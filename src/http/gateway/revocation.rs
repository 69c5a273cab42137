//! Token revocation (RFC 7009).

use super::Form;
use crate::http::service::{
    Answer, AnswerFuture, BoxError, Methods, RequestBody, below, call_of, no_such_path, serve,
    with_headers,
};
use crate::http::{Authenticator, Incident};
use crate::owner::Directory;
use crate::service::{Actor, Credential, ManageError, RejectReason, Rejected, VerifyError};
use crate::store::TokenStore;
use crate::token::{Reason, TokenId};
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
/// A token whose owner is disabled or unknown is revoked too, by the host, because it would work
/// again with its owner. A token of an enabled owner that is bound to networks revokes itself only
/// from there.
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
        let (actor, id) = match tokens.inspect(credential).await {
            Ok(verified) => (Actor::token(&verified), verified.token().id()),
            Err(VerifyError::Rejected(rejected)) => match proven_without_owner(&rejected) {
                Some(id) => (Actor::system(), id),
                None => return Ok(done()),
            },
            Err(error @ VerifyError::Unavailable(_)) => {
                self.authenticator.watch.tell(Incident::Refused(&error));
                return Err(challenge.refused(&error));
            }
        };
        let revoked = match tokens.revoke(&actor, id, Reason::Owner).await {
            // The owner was disabled, or the token ended, after the look at both.
            Err(ManageError::ActorRejected(_)) => {
                tokens.revoke(&Actor::system(), id, Reason::Owner).await
            }
            revoked => revoked,
        };
        match revoked {
            // A token that is expired, revoked or removed does not work, which is what was asked for.
            Ok(_) | Err(ManageError::NotFound | ManageError::Refused(_)) => Ok(done()),
            Err(error) => {
                self.authenticator.watch.tell(Incident::NotDone(&error));
                Err(challenge.not_done(&error, &actor))
            }
        }
    }
}

/// Returns the id of a token whose secret is proven, and which is refused because of its owner alone.
///
/// A verification looks at the owner only after the secret and the token's own state.
fn proven_without_owner(rejected: &Rejected) -> Option<TokenId> {
    match rejected.reason {
        RejectReason::OwnerDisabled
        | RejectReason::OwnerUnknown
        | RejectReason::OwnerKind
        | RejectReason::BeforeValidAfter => rejected.token,
        _ => None,
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
