//! Forward auth: a gateway asks before it passes a request on.

use crate::http::request::query_of;
use crate::http::service::{
    Answer, AnswerFuture, BoxError, RequestBody, below, no_such_path, serve, with_headers,
};
use crate::http::{Authenticator, FieldError, Incident, Problem};
use crate::owner::Directory;
use crate::permission::{Permission, PermissionError};
use crate::service::Verified;
use crate::store::TokenStore;
use bytes::Bytes;
use http::header::CACHE_CONTROL;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use tower_service::Service;

/// The value of a header that would be empty otherwise.
///
/// Caddy 2.8 to 2.11 does not replace a header of the client by an empty one, so that a client could
/// set it.
const NOTHING: &str = "-";

/// The characters that a header's value has no room for, or that separate entries.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%').add(b',').add(b'\\');

/// The answer to the question of a gateway whether a request may pass, for nginx `auth_request`,
/// Caddy `forward_auth`, Traefik `ForwardAuth` and Envoy `ext_authz` over HTTP. It is a
/// [`tower_service::Service`] that is mounted as [`ManagementApi`](crate::http::ManagementApi) is.
///
/// The gateway sends the headers of the client's request and no body. The method and, below the
/// [base path](ForwardAuthBuilder::base_path), the path do not matter.
///
/// | answer | if |
/// |---|---|
/// | 200, with the identity in headers | the token is valid and has the permission |
/// | 401, with the challenge | there is no valid token, for whatever reason |
/// | 403 | the token lacks the permission, or a browser sent HTTP Basic for another site |
/// | 503, with `Retry-After` | the store or the directory does not answer |
///
/// A permission is required by [`require`](ForwardAuthBuilder::require), by `?require=permission`
/// in the address that the gateway asks, or by both. Any other query is refused with 422, which all
/// gateways treat as a refusal.
///
/// The guides `gateways`, `nginx`, `caddy`, `traefik` and `envoy` in `patkit::docs::guides` have a
/// configuration for each gateway.
///
/// # Identity headers
/// | field | default name | value |
/// |---|---|---|
/// | [`Owner`](IdentityField::Owner) | `Patkit-Owner` | the owner's id |
/// | [`OwnerKind`](IdentityField::OwnerKind) | `Patkit-Owner-Kind` | `human` or `service` |
/// | [`TokenId`](IdentityField::TokenId) | `Patkit-Token` | the token's id |
/// | [`Realm`](IdentityField::Realm) | `Patkit-Realm` | the realm, `-` for the default realm |
/// | [`Permissions`](IdentityField::Permissions) | `Patkit-Permissions` | the effective permissions, separated by spaces, `-` for none |
///
/// A 200 always has all five, so that the gateway replaces whatever the client sent by the same
/// names. A request with such a name in which `_` stands for `-` gets 401, because no gateway replaces
/// it and some backends take both for the same. Bytes other than visible ASCII, and `"`, `%`, `,` and `\`, are percent-encoded (RFC 3986
/// section 2.1), and so is a value that is `-` alone. The gateway must pass these five on from the
/// answer, and only from there.
///
/// ```
/// # use patkit::http::{Authenticator, ForwardAuth, IdentityField};
/// # use patkit::{MemoryDirectory, MemoryStore, TokenService};
/// # use std::sync::Arc;
/// # fn app(tokens: Arc<TokenService<MemoryStore, MemoryDirectory>>) -> Result<axum::Router, Box<dyn std::error::Error>> {
/// let gate = ForwardAuth::builder(Authenticator::new(tokens))
///     .header(IdentityField::Owner, "X-Auth-User")?
///     .build();
/// # Ok(
/// axum::Router::new().nest_service("/auth", gate)
/// # )
/// # }
/// ```
pub struct ForwardAuth<S, D>(Arc<Gate<S, D>>);

struct Gate<S, D> {
    authenticator: Authenticator<S, D>,
    base: String,
    names: [HeaderName; 5],
    required: Option<Permission>,
    reads_query: bool,
}

/// The settings of a [`ForwardAuth`].
pub struct ForwardAuthBuilder<S, D>(Gate<S, D>);

/// A part of the identity that a gateway passes on to the service behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdentityField {
    /// The owner's id.
    Owner,
    /// The owner's kind: `human` or `service`.
    OwnerKind,
    /// The token's id.
    TokenId,
    /// The realm.
    Realm,
    /// The permissions that both the owner and the token's scope allow.
    Permissions,
}

/// The error for a text that is not the name of an identity header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the identity header {0:?} is refused; use a name of 1 to 64 letters, digits and hyphens that no other field has, such as \
     X-Auth-User"
)]
#[non_exhaustive]
pub struct IdentityHeaderError(pub String);

impl IdentityField {
    const ALL: [Self; 5] =
        [Self::Owner, Self::OwnerKind, Self::TokenId, Self::Realm, Self::Permissions];

    fn value(self, verified: &Verified) -> HeaderValue {
        let text = match self {
            Self::Owner => encoded(verified.owner().id().as_str()),
            Self::OwnerKind => verified.owner().kind().to_string(),
            Self::TokenId => verified.token().id().to_string(),
            Self::Realm => encoded(verified.realm().as_str()),
            Self::Permissions => {
                let held = verified.effective_permissions();
                let held: Vec<String> = held.iter().map(ToString::to_string).collect();
                never_empty(held.join(" "))
            }
        };
        HeaderValue::try_from(text).expect("the text is visible ASCII")
    }
}

/// Encodes a text as a header's value that is not empty.
fn encoded(text: &str) -> String {
    never_empty(utf8_percent_encode(text, ENCODED).to_string())
}

/// Returns the mark for an empty text, and encodes a text that looks like the mark.
fn never_empty(text: String) -> String {
    match text.as_str() {
        "" => NOTHING.to_owned(),
        NOTHING => "%2D".to_owned(),
        _ => text,
    }
}

impl<S, D> ForwardAuth<S, D> {
    /// Creates the service with the default names and without a required permission.
    pub fn new(authenticator: Authenticator<S, D>) -> Self {
        Self::builder(authenticator).build()
    }

    /// Creates a builder for a service with other settings.
    ///
    /// The connections come from the gateway, so
    /// [`client_address`](Authenticator::client_address) should be a header that the gateway
    /// writes, and trusted only
    /// [from the gateway's address](crate::http::ClientAddress::only_through).
    pub fn builder(authenticator: Authenticator<S, D>) -> ForwardAuthBuilder<S, D> {
        let names = [
            "patkit-owner",
            "patkit-owner-kind",
            "patkit-token",
            "patkit-realm",
            "patkit-permissions",
        ];
        ForwardAuthBuilder(Gate {
            authenticator,
            base: String::new(),
            names: names.map(HeaderName::from_static),
            required: None,
            reads_query: true,
        })
    }
}

impl<S, D> ForwardAuthBuilder<S, D> {
    /// Answers this path, such as `/auth`, and all paths below it. Defaults to every path that the
    /// service gets.
    pub fn base_path(mut self, path: &str) -> Self {
        path.trim_end_matches('/').clone_into(&mut self.0.base);
        self
    }

    /// Sets the name of an identity header.
    ///
    /// # Errors
    /// [`IdentityHeaderError`] if the name is not 1 to 64 letters, digits and hyphens, or if another
    /// field has it.
    // The gateway and the backends may take `-` and `_` for the same, so a name has no `_`.
    pub fn header(mut self, field: IdentityField, name: &str) -> Result<Self, IdentityHeaderError> {
        let refused = || IdentityHeaderError(name.chars().take(64).collect());
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if name.len() > 64 || !name.bytes().all(is_plain) {
            return Err(refused());
        }
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| refused())?;
        for (other, taken) in IdentityField::ALL.iter().zip(&mut self.0.names) {
            if *other == field {
                *taken = header.clone();
            } else if *taken == header {
                return Err(refused());
            }
        }
        Ok(self)
    }

    /// Requires a permission of every request, such as `datastores:read`.
    ///
    /// # Errors
    /// [`PermissionError`] if the text is not a concrete permission.
    pub fn require(mut self, permission: &str) -> Result<Self, PermissionError> {
        self.0.required = Some(Permission::parse(permission)?);
        Ok(self)
    }

    /// Does not read the query of the requests.
    ///
    /// This is for Envoy, which asks with the path and the query of the client's request.
    pub fn ignore_query(mut self) -> Self {
        self.0.reads_query = false;
        self
    }

    /// Builds the service.
    pub fn build(self) -> ForwardAuth<S, D> {
        ForwardAuth(Arc::new(self.0))
    }
}

impl<S: TokenStore, D: Directory> Gate<S, D> {
    async fn answer(&self, parts: Parts) -> Answer {
        below(parts.uri.path(), &self.base).ok_or_else(no_such_path)?;
        let challenge = self.authenticator.challenge();
        if let Some(name) = self.disguised(&parts.headers) {
            self.authenticator.watch.tell(Incident::Disguised(name));
            return Err(challenge.invalid_token());
        }
        let verified = self.authenticator.authenticate(&parts.headers, &parts.extensions).await;
        let verified = verified.map_err(|problem| match problem.status() {
            // nginx takes every other status for a failure of its own.
            StatusCode::BAD_REQUEST => challenge.invalid_token(),
            _ => problem,
        })?;
        let verified = verified.ok_or_else(|| challenge.no_credential())?;
        let asked = self.required_by(&parts)?;
        for permission in self.required.iter().chain(&asked) {
            if !verified.allows(permission) {
                return Err(challenge.insufficient_scope(Some(permission.as_str())));
            }
        }
        let no_store = [(CACHE_CONTROL, HeaderValue::from_static("no-store"))];
        let mut response = with_headers(StatusCode::OK, no_store, Bytes::new());
        self.identify(&verified, response.headers_mut());
        Ok(response)
    }

    /// Returns a header of the client's that is an identity header but for `_` in place of `-`.
    ///
    /// The gateway does not replace it, and a backend may take it for the identity header: in the
    /// variables of CGI (RFC 3875 section 4.1.18), both have the same name.
    fn disguised<'a>(&self, headers: &'a HeaderMap) -> Option<&'a HeaderName> {
        let is_disguised = |name: &&HeaderName| {
            let plain = name.as_str().replace('_', "-");
            name.as_str().contains('_') && self.names.iter().any(|taken| taken.as_str() == plain)
        };
        headers.keys().find(is_disguised)
    }

    /// Returns the permission of the query.
    fn required_by(&self, parts: &Parts) -> Result<Option<Permission>, Problem> {
        if !self.reads_query {
            return Ok(None);
        }
        let query = query_of(parts, &["require"])?;
        let Some((_, text)) = query.first() else { return Ok(None) };
        let permission = Permission::parse(text).map_err(|error| {
            Problem::invalid(vec![FieldError::new(&["require"], error.to_string())])
        })?;
        Ok(Some(permission))
    }

    fn identify(&self, verified: &Verified, headers: &mut HeaderMap) {
        for (field, name) in IdentityField::ALL.iter().zip(&self.names) {
            headers.insert(name, field.value(verified));
        }
    }
}

impl<S, D, B> Service<Request<B>> for ForwardAuth<S, D>
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
        let gate = self.0.clone();
        serve(request, async move |parts, _: RequestBody| gate.answer(parts).await)
    }
}

/// Mounts the service in an `App` or a scope, for its base path and all paths below it.
#[cfg(feature = "actix")]
impl<S: TokenStore + 'static, D: Directory + 'static> actix_web::dev::HttpServiceFactory
    for ForwardAuth<S, D>
{
    fn register(self, config: &mut actix_web::dev::AppService) {
        let base = self.0.base.clone();
        crate::http::actix::register(self, &base, config);
    }
}

impl<S, D> Clone for ForwardAuth<S, D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S, D> fmt::Debug for ForwardAuth<S, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt("ForwardAuth", f)
    }
}

impl<S, D> fmt::Debug for ForwardAuthBuilder<S, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt("ForwardAuthBuilder", f)
    }
}

impl<S, D> Gate<S, D> {
    fn fmt(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(name)
            .field("authenticator", &self.authenticator)
            .field("base", &self.base)
            .field("names", &self.names)
            .field("required", &self.required)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_visible_ascii_and_never_empty() {
        for (text, expected) in [
            ("", "-"),
            ("-", "%2D"),
            ("--", "--"),
            ("ada", "ada"),
            ("a b,c\"d%e\\f", "a%20b%2Cc%22d%25e%5Cf"),
            ("m\u{e9}l@example.com", "m%C3%A9l@example.com"),
            ("a\r\nX: y", "a%0D%0AX:%20y"),
            ("\u{7f}", "%7F"),
        ] {
            assert_eq!(encoded(text), expected);
            assert!(HeaderValue::try_from(encoded(text)).is_ok());
        }
    }
}
