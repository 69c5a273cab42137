//! Tokens over HTTP: a layer that authenticates bearer requests, extractors, the management API and
//! its settings page.
//!
//! | feature | adds |
//! |---|---|
//! | `tower` | [`Authenticator`], layers [`required`] and [`optional`], [`RequirePermission`], refusals by [`Challenge`] |
//! | `api` | [`ManagementApi`], for a user or a token |
//! | `openapi` | [`openapi`](openapi()) |
//! | `console` | [`Console`] |
//! | `gateways` | [`ForwardAuth`], [`Introspection`], [`Revocation`] |
//! | `axum` | [`Verified`] as an extractor, [`Permitted`] |
//! | `actix` | the same extractors; the layers as middleware, and the services in an `App` |
//!
//! [`ManagementApi`] and [`Console`] are tower services from a request with any body to a complete
//! response, so that any tower or hyper host can mount them.
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

#[cfg(feature = "actix")]
mod actix;
mod address;
#[cfg(feature = "api")]
mod api;
#[cfg(feature = "axum")]
mod axum;
#[cfg(feature = "api")]
mod body;
mod carrier;
mod challenge;
#[cfg(feature = "console")]
mod console;
mod cross_site;
#[cfg(feature = "gateways")]
mod gateway;
#[cfg(feature = "api")]
mod json_fields;
mod layer;
#[cfg(feature = "api")]
mod limit;
#[cfg(feature = "openapi")]
mod openapi;
#[cfg(any(feature = "actix", feature = "axum"))]
mod permitted;
mod problem;
#[cfg(feature = "api")]
mod request;
#[cfg(feature = "api")]
mod secret;
#[cfg(feature = "api")]
mod service;
#[cfg(feature = "api")]
mod user;

pub use address::{ClientAddress, Connection};
#[cfg(feature = "api")]
pub use api::{ManagementApi, ManagementApiBuilder, OriginError, Sessions};
#[cfg(feature = "api")]
pub use body::{
    EditBody, FieldErrorBody, IssuedBody, NewTokenBody, PageBody, ProblemBody, RevokedBody,
    RevokedByBody, RotateBody, TokenBody, UserBody,
};
pub use carrier::{BasicCarrier, CarrierError};
pub use challenge::{Challenge, RealmError};
#[cfg(feature = "console")]
pub use console::{Console, ConsoleBuilder};
pub use cross_site::CrossSiteError;
#[cfg(feature = "gateways")]
pub use gateway::{
    ForwardAuth, ForwardAuthBuilder, IdentityField, IdentityHeaderError, Introspection, Revocation,
};
pub use layer::{
    AuthFuture, AuthLayer, AuthService, RequirePermission, RequirePermissionService, ResponseBody,
};
#[cfg(feature = "openapi")]
pub use openapi::openapi;
#[cfg(any(feature = "actix", feature = "axum"))]
pub use permitted::{Permitted, RequiredPermission};
pub use problem::{FieldError, Problem};

use crate::authorization;
use crate::owner::{Directory, Realm};
use crate::service::{
    Credential, ManageError, RejectReason, Rejected, TokenService, Verified, VerifyError,
};
use crate::store::{CorruptRecord, TokenStore};
use carrier::{Carried, Carriers};
use http::header::{AUTHORIZATION, Entry, ORIGIN};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Authenticates requests and builds the answers to refused clients. It is cheap to clone.
pub struct Authenticator<S, D> {
    tokens: Arc<TokenService<S, D>>,
    only: Option<Realm>,
    address: ClientAddress,
    ignores_foreign: bool,
    /// The carriers beside `Authorization: Bearer`, if the host has added any.
    carriers: Option<Arc<Carriers>>,
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
    /// A session's state-changing call, or a token by HTTP Basic, was refused, because nothing
    /// shows that a page of this site sent it.
    CrossSite(&'a CrossSiteError),
    /// A request through a gateway was refused, because this header of its client's is an identity
    /// header to servers that take `_` and `-` for the same.
    #[cfg(feature = "gateways")]
    Disguised(&'a HeaderName),
}

/// Marks the extensions of a request as a layer does, for tests without a layer.
#[cfg(feature = "testkit")]
pub(crate) fn let_through(extensions: &mut Extensions, verified: Option<Verified>) {
    layer::let_through(extensions, verified, Challenge::of_nobody());
}

/// The credential of a request, before its verification.
enum Found<'a> {
    /// The `Authorization` headers, if no other carrier is accepted.
    Headers(&'a HeaderMap),
    Carried(Carried<'a>),
}

/// Returns whether a browser says that a page sent the request, and not its user, who typed an address
/// or followed a link.
fn is_by_page(headers: &HeaderMap) -> bool {
    let all_are = |name, wanted| headers.get_all(name).iter().all(|value| value == wanted);
    let is_by_user = all_are("sec-fetch-site", "none")
        || headers.contains_key("sec-fetch-mode") && all_are("sec-fetch-mode", "navigate");
    headers.contains_key(ORIGIN) || !is_by_user
}

fn values_of(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers.get_all(AUTHORIZATION).iter().map(HeaderValue::as_bytes)
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
            carriers: None,
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
        if let Some(basic) = self.carriers.as_ref().and_then(|carriers| carriers.basic.as_ref()) {
            self.challenge = self.challenge.with_basic(basic.is_only_challenge());
        }
        Ok(self)
    }

    /// Also accepts a token as the password of HTTP Basic (RFC 7617), as git, pip, npm, Maven and
    /// Docker send it. A client without a valid token then gets a challenge of `Basic` beside that
    /// of `Bearer`.
    ///
    /// Browsers ask for a password when they get that challenge, and then send it with each request
    /// to the host, whichever page makes the request. A request that a page of another site has sent,
    /// as `Origin` or `Sec-Fetch-Site` shows, is therefore refused with 403 `cross_site`, unless the
    /// user followed a link (`Sec-Fetch-Mode: navigate`). Use an authenticator without Basic for the
    /// [`ManagementApi`] of a page.
    pub fn accept_basic(mut self, basic: BasicCarrier) -> Self {
        self.challenge = self.challenge.with_basic(basic.is_only_challenge());
        self.carriers_mut().basic = Some(basic);
        self
    }

    /// Also accepts a token as the only content of this header, such as `X-API-Key` or
    /// `PRIVATE-TOKEN`. Call it again for another header.
    ///
    /// # Errors
    /// [`CarrierError`] if the text is not a name of a header, or the header has another meaning.
    pub fn accept_header(mut self, name: &str) -> Result<Self, CarrierError> {
        self.carriers_mut().add_header(name)?;
        Ok(self)
    }

    /// Also accepts `Authorization: <token>` without a scheme, as cargo sends it to a registry.
    ///
    /// An `Authorization` header without a space is then a token, and never the name of a scheme.
    pub fn accept_bare(mut self) -> Self {
        self.carriers_mut().is_bare_accepted = true;
        self
    }

    fn carriers_mut(&mut self) -> &mut Carriers {
        Arc::make_mut(self.carriers.get_or_insert_default())
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

    /// Verifies the credential of a request, for hosts that need no layer.
    ///
    /// Returns `None` if the request has no credential, or one that is
    /// [ignored](Self::ignore_foreign).
    ///
    /// # Errors
    /// [`Problem`], the answer for the client.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Result<Option<Verified>, Problem> {
        let Some(found) = self.credential_of(headers)? else { return Ok(None) };
        let credential = self.complete(&found, headers, extensions)?;
        self.answer_to(self.tokens.verify(credential).await)
    }

    /// Verifies the credential of a request as [`authenticate`](Self::authenticate) does, if nothing
    /// must be waited for.
    fn authenticate_at_once(
        &self,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Option<Result<Option<Verified>, Problem>> {
        let found = match self.credential_of(headers) {
            Ok(Some(found)) => found,
            Ok(None) => return Some(Ok(None)),
            Err(problem) => return Some(Err(problem)),
        };
        let decision = match self.complete(&found, headers, extensions) {
            Ok(credential) => self.tokens.verify_at_once(&credential)?,
            Err(problem) => return Some(Err(problem)),
        };
        Some(self.answer_to(decision))
    }

    /// Returns the credential of a request, or `None` if the request has none, or a foreign one that
    /// is ignored.
    fn credential_of<'a>(&self, headers: &'a HeaderMap) -> Result<Option<Found<'a>>, Problem> {
        let is_foreign =
            |text: &[u8]| self.ignores_foreign && !self.tokens.format().has_prefix_in(text);
        let Some(carriers) = &self.carriers else {
            let is_foreign = self.ignores_foreign
                && authorization::only(values_of(headers))
                    .and_then(|header| {
                        header.map_or(Ok(None), |header| authorization::token68(header, b"bearer"))
                    })
                    .is_ok_and(|text| text.is_some_and(is_foreign));
            return Ok((!is_foreign).then_some(Found::Headers(headers)));
        };
        let Some(carried) = carriers.find(headers, is_foreign) else { return Ok(None) };
        // A browser sends a password that it has once asked for with the requests of any site.
        if matches!(carried, Carried::Basic(_)) && is_by_page(headers) {
            cross_site::check(headers, None, &[]).map_err(|error| self.other_site(&error))?;
        }
        Ok(Some(Found::Carried(carried)))
    }

    /// Returns the credential to verify, with the address and the realm.
    fn complete<'a>(
        &'a self,
        found: &'a Found<'a>,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Result<Credential<'a>, Problem> {
        let credential = match found {
            Found::Headers(headers) => Credential::headers(values_of(headers)),
            Found::Carried(carried) => carried.credential().map_err(|reason| {
                let error = Rejected { reason, token: None }.into();
                self.watch.tell(Incident::Refused(&error));
                self.challenge.refused(&error)
            })?,
        };
        Ok(self.of_client(credential, headers, extensions))
    }

    /// Adds the address of the client, and the realm if only one is accepted.
    fn of_client<'a>(
        &'a self,
        credential: Credential<'a>,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Credential<'a> {
        let credential = credential.from_address(self.address_of(headers, extensions));
        match &self.only {
            Some(realm) => credential.in_realm(realm),
            None => credential,
        }
    }

    /// Returns the outcome of a verification for the client, and reports a refusal to the operator.
    fn answer_to(
        &self,
        decision: Result<Verified, VerifyError>,
    ) -> Result<Option<Verified>, Problem> {
        match decision {
            Ok(verified) => Ok(Some(verified)),
            Err(error) if error.reject_reason() == Some(RejectReason::NoCredential) => Ok(None),
            Err(error) => {
                self.watch.tell(Incident::Refused(&error));
                Err(self.challenge.refused(&error))
            }
        }
    }

    fn other_site(&self, error: &CrossSiteError) -> Problem {
        self.watch.tell(Incident::CrossSite(error));
        let detail = "a page of another site sent this request with a password that the browser keeps; \
                      send the token as `Authorization: Bearer <token>`";
        Problem::new(http::StatusCode::FORBIDDEN, "cross_site", detail)
    }

    /// Marks the headers that may carry a token, so that the `Debug` output of the header map does
    /// not show them.
    fn mark_as_sensitive(&self, headers: &mut HeaderMap) {
        for name in self.carrier_headers() {
            if let Entry::Occupied(mut values) = headers.entry(name) {
                values.iter_mut().for_each(|value| value.set_sensitive(true));
            }
        }
    }

    /// Returns the headers that may carry a token.
    fn carrier_headers(&self) -> impl Iterator<Item = &HeaderName> {
        let added = self.carriers.iter().flat_map(|carriers| carriers.headers());
        std::iter::once(&AUTHORIZATION).chain(added)
    }

    /// Returns the challenge, which makes the answers for clients that the host refuses itself.
    pub fn challenge(&self) -> &Challenge {
        &self.challenge
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
            carriers: self.carriers.clone(),
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
            .field("carriers", &self.carriers)
            .field("challenge", &self.challenge)
            .finish_non_exhaustive()
    }
}
