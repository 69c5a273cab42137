//! Tokens over HTTP: a layer that authenticates bearer requests, extractors, the management API and its settings page.
//!
//! | feature | what it brings |
//! |---|---|
//! | `tower` | [`Authenticator`], its layers [`required`](Authenticator::required) and [`optional`](Authenticator::optional), [`RequirePermission`] |
//! | `axum` | [`Verified`] as an extractor, [`Permitted`], [`ManagementApi`] for a signed-in user or a token |
//! | `openapi` | [`openapi`](openapi()) |
//! | `console` | [`Console`] |
//!
//! # What a client is told
//! By RFC 6750 section 3 and RFC 9110 section 11, with a body of type `application/problem+json` (RFC 9457):
//!
//! | request | status | `WWW-Authenticate` |
//! |---|---|---|
//! | no credential, or one of another scheme | 401 | `Bearer realm="…"` |
//! | a token that is refused, whatever the reason | 401 | `Bearer realm="…", error="invalid_token"` |
//! | a permission is missing | 403 | `Bearer realm="…", error="insufficient_scope", scope="…"` |
//! | more than one `Authorization`, or `Bearer` without exactly one token68 after it | 400 | `Bearer realm="…", error="invalid_request"` |
//! | the store or the directory does not answer | 503 | none, but `Retry-After`, in seconds |
//!
//! All refusals of a token are the same, byte for byte: why it was refused is for the operator, who hears of it through
//! [`Authenticator::on_incident`]. A token is looked for in the header alone, never in a query or a body. A refused one is an
//! answer: nothing that comes after the layer, a session's cookie for instance, is asked instead.

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
mod fields;
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
    EditBody, FieldErrorBody, IssuedBody, NewTokenBody, PageBody, ProblemBody, RevokedBody, RevokedByBody,
    RotateBody, TokenBody, UserBody,
};
#[cfg(feature = "console")]
pub use console::Console;
#[cfg(feature = "axum")]
pub use cross_site::CrossSiteError;
#[cfg(feature = "axum")]
pub use extract::{Permitted, RequiredPermission};
pub use layer::{AuthLayer, AuthService, RequirePermission, RequirePermissionService, ResponseBody};
#[cfg(feature = "openapi")]
pub use openapi::openapi;
pub use problem::{FieldError, Problem, RealmError};
#[cfg(feature = "axum")]
pub use router::{ManagementApi, ManagementApiBuilder, OriginError, Sessions};

use crate::owner::{Directory, Realm};
use crate::service::{ManageError, RejectReason, TokenService, Verified, VerifyError};
use crate::store::{CorruptRecord, TokenStore};
use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap, HeaderValue};
use problem::Challenge;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Finds out who sends a request, and says what a client is told instead of an answer. Cloning it is cheap.
pub struct Authenticator<S, D> {
    tokens: Arc<TokenService<S, D>>,
    only: Option<Realm>,
    address: ClientAddress,
    ignores_foreign: bool,
    watch: Watch,
    challenge: Challenge,
}

/// Something that a client is not told the whole of, for the operator's logs. Neither it nor its `Debug` output holds any of a
/// token's secret.
#[derive(Debug)]
#[non_exhaustive]
pub enum Incident<'a> {
    /// A credential was refused, or it could not be verified.
    Refused(&'a VerifyError),
    /// An operation of the management API was not done.
    NotDone(&'a ManageError),
    /// A record that a list should have held is corrupt.
    Corrupt(&'a CorruptRecord),
    /// A session's call that changes something was refused, because nothing shows that a page of this site sent it.
    #[cfg(feature = "axum")]
    CrossSite(&'a CrossSiteError),
}

/// What a layer does to a request that it lets through, without a layer.
#[cfg(feature = "testkit")]
pub(crate) fn let_through(extensions: &mut Extensions, verified: Option<Verified>) {
    layer::let_through(extensions, verified, Challenge::of_nobody());
}

/// Who hears of incidents.
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
    /// An authenticator whose clients have the address of their connection ([`ClientAddress::connection`]); the `realm` of its
    /// challenges is the service's brand.
    pub fn new(tokens: Arc<TokenService<S, D>>) -> Self {
        let challenge = Challenge::of_brand(tokens.format().brand());
        let address = ClientAddress::connection();
        Self { tokens, only: None, address, ignores_foreign: false, watch: Watch::default(), challenge }
    }

    /// With this `realm` in its challenges (RFC 9110 section 11.5): it names what is protected, to humans.
    ///
    /// # Errors
    /// [`RealmError`] unless it is 1 to 128 visible ASCII characters or spaces.
    pub fn realm(mut self, realm: &str) -> Result<Self, RealmError> {
        self.challenge = Challenge::new(realm)?;
        Ok(self)
    }

    /// Verifies tokens of this tenant alone: those of others are unknown. Where a host has more than one and does not say this, each
    /// handler has to look at [`Verified::realm`].
    pub fn only_realm(mut self, realm: Realm) -> Self {
        self.only = Some(realm);
        self
    }

    /// Takes the address of a client from there.
    pub fn client_address(mut self, address: ClientAddress) -> Self {
        self.address = address;
        self
    }

    /// Treats a bearer credential that is not of this host's as no credential: for a host whose own tokens, such as JWTs, share the
    /// scheme. The header is passed on untouched, so that the host's own check behind [`optional`](Self::optional), or
    /// the sessions of the management API, sees it.
    ///
    /// A credential is of this host's if it begins with an accepted brand and a kind, such as `acme_pat_`. So a mistyped token of
    /// this host's is still refused, and so is a request with two `Authorization` headers or with a credential that is not one
    /// token68. The length of a foreign credential is not bounded.
    pub fn ignore_foreign(mut self) -> Self {
        self.ignores_foreign = true;
        self
    }

    /// Calls this for everything that a client is not told the whole of; it must not block.
    pub fn on_incident(mut self, watch: impl Fn(Incident<'_>) + Send + Sync + 'static) -> Self {
        self.watch = Watch(Some(Arc::new(watch)));
        self
    }

    /// The service.
    pub fn tokens(&self) -> &Arc<TokenService<S, D>> {
        &self.tokens
    }

    /// The layer that lets requests with a good token pass alone.
    pub fn required(&self) -> AuthLayer<S, D> {
        AuthLayer::new(self.clone(), true)
    }

    /// The layer that also lets requests without a bearer credential pass, for what comes after it to decide. A credential that
    /// is refused is refused here as well.
    pub fn optional(&self) -> AuthLayer<S, D> {
        AuthLayer::new(self.clone(), false)
    }

    /// Verifies the bearer credential of a request; `None` if it has none, or one that is [ignored](Self::ignore_foreign). For hosts that
    /// need no layer.
    ///
    /// # Errors
    /// [`Problem`]: what the client is told.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Result<Option<Verified>, Problem> {
        let address = self.address_of(headers, extensions);
        let values = || headers.get_all(AUTHORIZATION).iter().map(HeaderValue::as_bytes);
        let is_foreign = |text| !self.tokens.format().has_prefix(text);
        if self.ignores_foreign && crate::bearer::token68(values()).is_some_and(is_foreign) {
            return Ok(None);
        }
        let verified = match &self.only {
            None => self.tokens.verify_headers(values(), address).await,
            Some(realm) => self.tokens.verify_headers_in(realm, values(), address).await,
        };
        match verified {
            Ok(verified) => Ok(Some(verified)),
            Err(error) if error.reject_reason() == Some(RejectReason::NoCredential) => Ok(None),
            Err(error) => {
                self.watch.tell(Incident::Refused(&error));
                Err(Problem::refused(&error, &self.challenge))
            }
        }
    }

    /// What a client without a credential is told.
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
