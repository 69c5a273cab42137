//! Tokens over HTTP: a layer that authenticates bearer requests, extractors, the management API and
//! its settings page.
//!
//! | feature | adds |
//! |---|---|
//! | `tower` | [`Authenticator`], layers [`required`] and [`optional`], [`RequirePermission`] |
//! | `axum` | [`Verified`] as an extractor, [`Permitted`], [`ManagementApi`] for a user or token |
//! | `openapi` | [`openapi`](openapi()) |
//! | `console` | [`Console`] |
//!
//! # Refusals
//! A refusal follows RFC 6750 section 3 and RFC 9110 section 11, with a body of type
//! `application/problem+json` (RFC 9457). Its `WWW-Authenticate` is `Bearer realm="…"` with these
//! parameters:
//!
//! | request | status | parameters |
//! |---|---|---|
//! | no credential, or one of another scheme | 401 | none |
//! | a token that is refused for any reason | 401 | `error="invalid_token"` |
//! | a permission is missing | 403 | `error="insufficient_scope", scope="…"` |
//! | more than one `Authorization` | 400 | `error="invalid_request"` |
//! | `Bearer` without exactly one token68 after it | 400 | `error="invalid_request"` |
//! | the store or the directory does not answer | 503 | no challenge; `Retry-After`, in seconds |
//!
//! All refusals of a token are equal, byte for byte. Only the operator gets the reason, through
//! [`Authenticator::on_incident`]. A token is read only from the header, never from a query or a
//! body. A refusal is final: nothing behind the layer, such as a session's cookie, is tried
//! instead.
//!
//! [`required`]: Authenticator::required
//! [`optional`]: Authenticator::optional

mod address;
mod layer;
mod problem;

#[cfg(feature = "axum")]
mod body;
#[cfg(feature = "console")]
mod console;
#[cfg(feature = "axum")]
mod cross_site;
#[cfg(feature = "axum")]
mod extract;
#[cfg(feature = "axum")]
mod json_fields;
#[cfg(feature = "axum")]
mod limit;
#[cfg(feature = "openapi")]
mod openapi;
#[cfg(feature = "axum")]
mod router;
#[cfg(feature = "axum")]
mod secret;
#[cfg(feature = "axum")]
mod user;

pub use address::{ClientAddress, Connection};
#[cfg(feature = "axum")]
pub use body::{
    EditBody, FieldErrorBody, IssuedBody, NewTokenBody, PageBody, ProblemBody, RevokedBody,
    RevokedByBody, RotateBody, TokenBody, UserBody,
};
#[cfg(feature = "console")]
pub use console::Console;
#[cfg(feature = "axum")]
pub use cross_site::CrossSiteError;
#[cfg(feature = "axum")]
pub use extract::{Permitted, RequiredPermission};
pub use layer::{
    AuthLayer, AuthService, RequirePermission, RequirePermissionService, ResponseBody,
};
#[cfg(feature = "openapi")]
pub use openapi::openapi;
pub use problem::{FieldError, Problem, RealmError};
#[cfg(feature = "axum")]
pub use router::{ManagementApi, ManagementApiBuilder, OriginError, Sessions};

use crate::owner::{Directory, Realm};
use crate::service::{Credential, ManageError, RejectReason, TokenService, Verified, VerifyError};
use crate::store::{CorruptRecord, TokenStore};
use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap, HeaderValue};
use problem::Challenge;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Authenticates requests and builds the answers to refused clients. It is cheap to clone.
pub struct Authenticator<S, D> {
    tokens: Arc<TokenService<S, D>>,
    only: Option<Realm>,
    address: ClientAddress,
    ignores_foreign: bool,
    watch: Watch,
    challenge: Challenge,
}

/// An event for the operator's logs, of which the client gets only a part.
///
/// Neither an incident nor its `Debug` output reveals any of a token's secret.
#[derive(Debug)]
#[non_exhaustive]
pub enum Incident<'a> {
    /// A credential was refused or could not be verified.
    Refused(&'a VerifyError),
    /// An operation of the management API failed.
    NotDone(&'a ManageError),
    /// A record that belongs to a list is corrupt.
    Corrupt(&'a CorruptRecord),
    /// A session's state-changing call was refused, because nothing shows that a page of this site
    /// sent it.
    #[cfg(feature = "axum")]
    CrossSite(&'a CrossSiteError),
}

/// Marks the extensions of a request as a layer does, for tests without a layer.
#[cfg(feature = "testkit")]
pub(crate) fn let_through(extensions: &mut Extensions, verified: Option<Verified>) {
    layer::let_through(extensions, verified, Challenge::of_nobody());
}

/// The callback for incidents.
#[derive(Clone, Default)]
struct Watch(Option<Arc<Watcher>>);

type Watcher = dyn Fn(Incident<'_>) + Send + Sync;

impl Watch {
    fn tell(&self, incident: Incident<'_>) {
        if let Some(watch) = &self.0 {
            watch(incident);
        }
    }
}

impl<S: TokenStore, D: Directory> Authenticator<S, D> {
    /// Creates an authenticator.
    ///
    /// The address of a client is that of its connection ([`ClientAddress::connection`]). The
    /// `realm` of the challenges is the service's brand.
    pub fn new(tokens: Arc<TokenService<S, D>>) -> Self {
        let challenge = Challenge::of_brand(tokens.format().brand());
        let address = ClientAddress::connection();
        Self {
            tokens,
            only: None,
            address,
            ignores_foreign: false,
            watch: Watch::default(),
            challenge,
        }
    }

    /// Sets the `realm` of the challenges (RFC 9110 section 11.5), which names the protected
    /// resources to humans.
    ///
    /// # Errors
    /// [`RealmError`] unless the realm is 1 to 128 visible ASCII characters or spaces.
    pub fn challenge_realm(mut self, realm: &str) -> Result<Self, RealmError> {
        self.challenge = Challenge::new(realm)?;
        Ok(self)
    }

    /// Verifies only tokens of this tenant. Tokens of other tenants are unknown.
    ///
    /// If a host has several tenants and does not call this method, each handler must check
    /// [`Verified::realm`].
    pub fn only_realm(mut self, realm: Realm) -> Self {
        self.only = Some(realm);
        self
    }

    /// Sets the source of the client's address.
    pub fn client_address(mut self, address: ClientAddress) -> Self {
        self.address = address;
        self
    }

    /// Treats a bearer credential that is not this host's as no credential.
    ///
    /// This is for a host whose own tokens, such as JWTs, use the same scheme. The header is passed
    /// on unchanged, so that the host's own check behind [`optional`](Self::optional), or the
    /// sessions of the management API, can read it.
    ///
    /// A credential is this host's if it begins with an accepted brand and a kind, such as
    /// `acme_pat_`. A mistyped token of this host is therefore still refused. So is a request with
    /// two `Authorization` headers, or with a credential that is not one token68. The length of a
    /// foreign credential is not bounded.
    pub fn ignore_foreign(mut self) -> Self {
        self.ignores_foreign = true;
        self
    }

    /// Calls `watch` for each incident. It must not block.
    pub fn on_incident(mut self, watch: impl Fn(Incident<'_>) + Send + Sync + 'static) -> Self {
        self.watch = Watch(Some(Arc::new(watch)));
        self
    }

    /// Returns the token service.
    pub fn tokens(&self) -> &Arc<TokenService<S, D>> {
        &self.tokens
    }

    /// Returns the layer that passes only requests with a valid token.
    pub fn required(&self) -> AuthLayer<S, D> {
        AuthLayer::new(self.clone(), true)
    }

    /// Returns the layer that also passes requests without a bearer credential, for the service
    /// behind it to decide.
    ///
    /// A refused credential is also refused here.
    pub fn optional(&self) -> AuthLayer<S, D> {
        AuthLayer::new(self.clone(), false)
    }

    /// Verifies the bearer credential of a request, for hosts that need no layer.
    ///
    /// Returns `None` if the request has no bearer credential, or one that is
    /// [ignored](Self::ignore_foreign).
    ///
    /// # Errors
    /// [`Problem`], the answer for the client.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Result<Option<Verified>, Problem> {
        let address = self.address_of(headers, extensions);
        let values = || headers.get_all(AUTHORIZATION).iter().map(HeaderValue::as_bytes);
        let is_foreign = |text| !self.tokens.format().has_prefix(text);
        if self.ignores_foreign && crate::authorization::token68(values()).is_some_and(is_foreign) {
            return Ok(None);
        }
        let mut credential = Credential::headers(values()).from_address(address);
        if let Some(realm) = &self.only {
            credential = credential.in_realm(realm);
        }
        let verified = self.tokens.verify(credential).await;
        match verified {
            Ok(verified) => Ok(Some(verified)),
            Err(error) if error.reject_reason() == Some(RejectReason::NoCredential) => Ok(None),
            Err(error) => {
                self.watch.tell(Incident::Refused(&error));
                Err(Problem::refused(&error, &self.challenge))
            }
        }
    }

    /// Returns the answer for a client without a credential.
    pub fn no_credential(&self) -> Problem {
        Problem::no_credential(&self.challenge)
    }

    fn address_of(&self, headers: &HeaderMap, extensions: &Extensions) -> Option<IpAddr> {
        self.address.of(headers, extensions)
    }
}

impl<S, D> Clone for Authenticator<S, D> {
    fn clone(&self) -> Self {
        Self {
            tokens: self.tokens.clone(),
            only: self.only.clone(),
            address: self.address.clone(),
            ignores_foreign: self.ignores_foreign,
            watch: self.watch.clone(),
            challenge: self.challenge.clone(),
        }
    }
}

impl<S, D> fmt::Debug for Authenticator<S, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator")
            .field("tokens", &self.tokens)
            .field("only", &self.only)
            .field("address", &self.address)
            .field("ignores_foreign", &self.ignores_foreign)
            .field("challenge", &self.challenge)
            .finish_non_exhaustive()
    }
}
