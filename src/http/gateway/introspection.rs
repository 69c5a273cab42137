//! Token introspection (RFC 7662).

use super::Form;
use crate::http::service::{
    Answer, AnswerFuture, BoxError, Methods, RequestBody, below, call_of, json, no_such_path, serve,
};
use crate::http::{Authenticator, FieldError, Incident, Problem};
use crate::owner::Directory;
use crate::permission::TOKENS_INTROSPECT;
use crate::service::{Credential, Verified, VerifyError};
use crate::store::TokenStore;
use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use serde::Serialize;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;
use std::task::{Context, Poll};
use tower_service::Service;

/// The introspection endpoint of RFC 7662, where a service in another language asks about a token
/// that it got. It is a [`tower_service::Service`] that is mounted as
/// [`ManagementApi`](crate::http::ManagementApi) is.
///
/// The caller sends a `POST` with a token of its own, which must hold
/// [`tokens:introspect`](crate::permission::TOKENS_INTROSPECT), and a form:
///
/// | field | content |
/// |---|---|
/// | `token` | the text of the token in question |
/// | `client_address` | the IP address of the client that sent it, if the caller knows it. Without an address, a token that is bound to networks is not active |
/// | `token_type_hint` and others | ignored |
///
/// The answer for an active token has `active`, `scope` (the effective permissions, separated by
/// spaces; those with a trailing `*` are [grants](crate::permission::Grant)), `sub` (the owner's
/// id), `username` (the owner's name, if it has one), `token_type` (`Bearer`), `iat`, `exp` (if it
/// expires) and `jti` (the token's id). For every other text it is exactly `{"active":false}`: a
/// token that is unknown, revoked, expired or of another realm, and a text that is not a token. A
/// caller without a valid token gets 401, and one without the permission 403.
///
/// A question does not count as a use of the token, unless the host [counts
/// it](Self::count_as_use). If a known token is refused, that is audited as in a verification.
///
/// A caller may keep an answer for a while, and uses revoked tokens for as long.
pub struct Introspection<S, D> {
    authenticator: Authenticator<S, D>,
    base: String,
    is_use: bool,
}

const METHODS: Methods<()> = &[(Method::POST, ())];

/// The answer for an active token (RFC 7662 section 2.2).
#[derive(Serialize)]
struct Description<'a> {
    active: bool,
    scope: String,
    sub: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<&'a str>,
    token_type: &'static str,
    iat: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<i64>,
    jti: String,
}

impl<S, D> Introspection<S, D> {
    /// Creates the endpoint, which answers every path that it gets and records no use.
    pub fn new(authenticator: Authenticator<S, D>) -> Self {
        Self { authenticator, base: String::new(), is_use: false }
    }

    /// Answers this path alone, such as `/introspect`, with or without a trailing slash.
    pub fn base_path(mut self, path: &str) -> Self {
        path.trim_end_matches('/').clone_into(&mut self.base);
        self
    }

    /// Counts each question about an active token as a use of that token, from the `client_address`
    /// of the form.
    pub fn count_as_use(mut self) -> Self {
        self.is_use = true;
        self
    }
}

impl<S: TokenStore, D: Directory> Introspection<S, D> {
    async fn answer(&self, parts: Parts, body: RequestBody) -> Answer {
        let rest = below(parts.uri.path(), &self.base).ok_or_else(no_such_path)?;
        if !matches!(rest, "" | "/") {
            return Err(no_such_path());
        }
        call_of(METHODS, &parts.method)?;
        let caller = self.authenticator.authenticate(&parts.headers, &parts.extensions).await?;
        let challenge = self.authenticator.challenge();
        let caller = caller.ok_or_else(|| challenge.no_credential())?;
        caller.require(TOKENS_INTROSPECT).map_err(|denied| challenge.denied(&denied))?;
        let form = Form::read(&parts, body).await?;
        let (token, address) = (form.token()?, address_of(&form)?);
        let Ok(text) = str::from_utf8(&token) else { return Ok(inactive()) };
        let credential = Credential::text(text).in_realm(caller.realm()).from_address(address);
        let tokens = self.authenticator.tokens();
        let found = if self.is_use {
            tokens.verify(credential).await
        } else {
            tokens.inspect(credential).await
        };
        match found {
            Ok(verified) => Ok(active(&verified)),
            Err(VerifyError::Rejected(_)) => Ok(inactive()),
            Err(error @ VerifyError::Unavailable(_)) => {
                self.authenticator.watch.tell(Incident::Refused(&error));
                Err(challenge.refused(&error))
            }
        }
    }
}

/// Returns the address of the client that sent the token in question.
fn address_of(form: &Form) -> Result<Option<IpAddr>, Problem> {
    let Some(text) = form.field("client_address")? else { return Ok(None) };
    let address = str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
    let detail = "the client address is not an IP address; send one such as 192.0.2.1, or leave \
                  client_address out";
    let refused = || Problem::invalid(vec![FieldError::new(&["client_address"], detail)]);
    address.map(Some).ok_or_else(refused)
}

fn active(verified: &Verified) -> Response<Full<Bytes>> {
    let (token, owner) = (verified.token(), verified.owner());
    let scope: Vec<String> =
        verified.effective_permissions().iter().map(ToString::to_string).collect();
    let body = Description {
        active: true,
        scope: scope.join(" "),
        sub: owner.id().as_str(),
        username: owner.name(),
        token_type: "Bearer",
        iat: token.created_at().timestamp(),
        exp: token.expires_at().map(|expires_at| expires_at.timestamp()),
        jti: token.id().to_string(),
    };
    json(StatusCode::OK, &body)
}

fn inactive() -> Response<Full<Bytes>> {
    json(StatusCode::OK, &BTreeMap::from([("active", false)]))
}

impl<S, D, B> Service<Request<B>> for Introspection<S, D>
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
    for Introspection<S, D>
{
    fn register(self, config: &mut actix_web::dev::AppService) {
        let base = self.base.clone();
        crate::http::actix::register(self, &base, config);
    }
}

impl<S, D> Clone for Introspection<S, D> {
    fn clone(&self) -> Self {
        let (authenticator, base) = (self.authenticator.clone(), self.base.clone());
        Self { authenticator, base, is_use: self.is_use }
    }
}

impl<S, D> fmt::Debug for Introspection<S, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Introspection")
            .field("authenticator", &self.authenticator)
            .field("base", &self.base)
            .field("is_use", &self.is_use)
            .finish()
    }
}
