//! The management API, which the settings page and scripts call.

use super::body::{EditBody, IssuedAnswer, NewTokenBody, PageAnswer, RotateBody};
use super::limit::{Limits, Quota};
use super::request::{
    PAGING, expected_versions, id_of, json_body, limited, not_json, page_of, query_of,
};
use super::service::{
    Answer, AnswerFuture, BoxError, Methods, RequestBody, below, call_of, json, json_bytes,
    no_such_path, serve, with_headers,
};
use super::{Authenticator, Incident, Problem, cross_site, secret, user};
use crate::owner::{Directory, DirectoryError};
use crate::service::{Actor, IssuedToken, ManageError, TokenPage, Unavailable, VerifyError};
use crate::store::TokenStore;
use crate::token::{Reason, TokenId, TokenView};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, LOCATION, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tower_service::Service;

/// Looks up the signed-in user of a request, which is all that the management API needs from the
/// host's sessions.
///
/// A function is enough: `|request: &Parts| -> Option<Actor> { … }`.
pub trait Sessions: Send + Sync + 'static {
    /// Returns the actor of the session that a request belongs to ([`Actor::signed_in`]). `None` if
    /// nobody is signed in.
    ///
    /// It is not called for a request with a bearer token, unless that token is [foreign and
    /// ignored](Authenticator::ignore_foreign). If the session is identified by a header that no
    /// browser sends by itself, declare it with [`Actor::proven_by_header`].
    ///
    /// # Errors
    /// [`DirectoryError`] if the lookup fails. The client is asked to retry.
    fn actor(
        &self,
        request: &Parts,
    ) -> impl Future<Output = Result<Option<Actor>, DirectoryError>> + Send;
}

impl<F: Fn(&Parts) -> Option<Actor> + Send + Sync + 'static> Sessions for F {
    async fn actor(&self, request: &Parts) -> Result<Option<Actor>, DirectoryError> {
        Ok(self(request))
    }
}

/// The management API, as a [`tower_service::Service`] that any tower or hyper host can mount under
/// a path of its choice. Bodies of requests may have any type; bodies of responses are complete.
///
/// axum's `nest_service` mounts it as it is. A host whose router passes on whole paths, such as one
/// on plain hyper or actix-web, sets [`base_path`](ManagementApiBuilder::base_path).
///
/// ```no_run
/// # use patkit::http::{Authenticator, ManagementApi};
/// # use patkit::{Actor, MemoryDirectory, MemoryStore, TokenService};
/// # use std::sync::Arc;
/// # fn app(tokens: Arc<TokenService<MemoryStore, MemoryDirectory>>, session: fn(&http::request::Parts) -> Option<Actor>) -> axum::Router {
/// let authenticator = Authenticator::new(tokens);
/// let api = ManagementApi::new(authenticator, session);
/// axum::Router::new().nest_service("/api", api)
/// # }
/// ```
///
/// | call | effect |
/// |---|---|
/// | `GET /user-tokens` | lists the actor's personal tokens, newest first |
/// | `POST /user-tokens` | creates a token, see [`NewTokenBody`]: 201, `bearer_token` |
/// | `GET /user-tokens/service` | lists the service tokens of the realm, newest first |
/// | `GET`, `DELETE /user-tokens/current` | shows or revokes (204) this request's bearer token |
/// | `GET /user-tokens/{id}` | shows a token; its `ETag` is its version |
/// | `PATCH`, `PUT /user-tokens/{id}` | changes a token atomically, see [`EditBody`] |
/// | `POST /user-tokens/{id}/rotate` | replaces a token, see [`RotateBody`]: 201, `bearer_token` |
/// | `DELETE /user-tokens/{id}` | deletes a token (204); 409 while it is active |
///
/// Lists are paged by `?limit=50` (1 to 200) and `&cursor=`. With `If-Match`, a change applies only
/// to that version; otherwise it gets 412.
///
/// The actor is the bearer token of the request or, if the request has none, the user whom the host
/// reports as signed in. If a bearer token is refused, the session is not tried.
///
/// # Refusals
/// Refusals are `application/problem+json`:
///
/// - 400 if the body is not JSON
/// - 401, 403, 405, 412, 503
/// - 404 if the token does not exist or the actor may not see it, or if the path is unknown or has
///   an extra slash
/// - 409 if the name is taken or the state does not allow the call
/// - 413 over 64 KiB, and 415 if the body is not `application/json`
/// - 422 if a field of the body or the query is unknown or refused (`errors` lists all of them,
///   each with its JSON pointer)
/// - 429 over the host's limit
///
/// No cache may store an answer.
///
/// Each answer has a `Patkit-User` header, an opaque marker of the user whom it is for. A request
/// that sends the marker back is answered only for that user: it gets 412 `user_changed` if another
/// user has signed in meanwhile. The settings page sends the marker with every request; other
/// clients need not.
///
/// # Cross-site requests
/// Without a bearer token, a state-changing call passes if one of these conditions holds:
///
/// 1. It has `Sec-Fetch-Site: same-origin`, which a page cannot forge.
/// 2. Its `Origin` is in the list of [`allow_origin`](ManagementApiBuilder::allow_origin).
/// 3. It has no `Sec-Fetch-Site`, and the host and the port of its `Origin` are those of its
///    `Host`. Browsers omit `Sec-Fetch-Site` on plain HTTP, such as `http://nas.local`. A proxy in
///    front of the host must pass `Host` on unchanged.
/// 4. The session is [proven by a header](Actor::proven_by_header) that no browser sends by itself.
///
/// Otherwise the call is refused with 403 and the code `cross_site`. The detail says which check
/// failed and what to set, and [`on_incident`](Authenticator::on_incident) is called with
/// [`Incident::CrossSite`].
///
#[cfg_attr(not(doctest), doc = "", doc = include_str!("cors.md"))]
///
/// # Lost answers
/// If the answer to a rotation without overlap is lost, nobody has the successor's text. Rotate
/// once more, or request an overlap if the connection is unreliable.
pub struct ManagementApi<S, D, A>(Arc<Api<S, D, A>>);

pub(super) struct Api<S, D, A> {
    authenticator: Authenticator<S, D>,
    sessions: A,
    /// The path of the API, without a trailing slash.
    base: String,
    origins: Vec<HeaderValue>,
    is_recent: Option<IsRecent>,
    limits: Option<Limits>,
}

type IsRecent = Box<dyn Fn(&Parts, &Actor) -> bool + Send + Sync>;

/// The error for a text that is not an origin.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the origin {0:?} is refused; write scheme, host and port, such as https://app.example.com"
)]
#[non_exhaustive]
pub struct OriginError(pub String);

/// The settings of an API, before the API is shared.
pub struct ManagementApiBuilder<S, D, A>(Api<S, D, A>);

impl<S: TokenStore + 'static, D: Directory + 'static, A: Sessions> ManagementApi<S, D, A> {
    /// Creates the API with no origins but its own and no limit.
    pub fn new(authenticator: Authenticator<S, D>, sessions: A) -> Self {
        Self::builder(authenticator, sessions).build()
    }

    /// Creates a builder for an API with other settings.
    pub fn builder(
        authenticator: Authenticator<S, D>,
        sessions: A,
    ) -> ManagementApiBuilder<S, D, A> {
        ManagementApiBuilder(Api {
            authenticator,
            sessions,
            base: String::new(),
            origins: Vec::new(),
            is_recent: None,
            limits: None,
        })
    }

    /// Returns the authenticator of the API.
    pub fn authenticator(&self) -> &Authenticator<S, D> {
        &self.0.authenticator
    }

    #[cfg(feature = "console")]
    pub(super) fn shared(&self) -> Arc<Api<S, D, A>> {
        self.0.clone()
    }
}

/// Mounts the service in an `App` or a scope, for all paths below its base path.
#[cfg(feature = "actix")]
impl<S, D, A> actix_web::dev::HttpServiceFactory for ManagementApi<S, D, A>
where
    S: TokenStore + 'static,
    D: Directory + 'static,
    A: Sessions,
{
    fn register(self, config: &mut actix_web::dev::AppService) {
        let base = self.0.base.clone();
        super::actix::register(self, &base, config);
    }
}

impl<S, D, A, B> Service<Request<B>> for ManagementApi<S, D, A>
where
    S: TokenStore + 'static,
    D: Directory + 'static,
    A: Sessions,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = AnswerFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> AnswerFuture {
        let api = self.0.clone();
        api.authenticator.mark_as_sensitive(request.headers_mut());
        serve(request, async move |parts, body| api.answer(parts, body).await)
    }
}

impl<S, D, A> ManagementApiBuilder<S, D, A> {
    /// Answers calls below this path, such as `/api`, with or without a trailing slash. Defaults to
    /// the root.
    ///
    /// Set it if the service gets the whole path of each request, as it does from hyper and
    /// actix-web, in a scope too. axum's `nest_service` removes the path under which it mounts a
    /// service, so nothing is left to set.
    pub fn base_path(mut self, path: &str) -> Self {
        path.trim_end_matches('/').clone_into(&mut self.0.base);
        self
    }

    /// Also allows state-changing calls from pages of this origin, such as
    /// `https://app.example.com`.
    ///
    /// The host must answer the browser's preflight requests; see [`ManagementApi`].
    ///
    /// # Errors
    /// [`OriginError`] if the text is not a scheme, host and port as a browser writes them: without
    /// the scheme's default port (RFC 6454 section 6.2).
    pub fn allow_origin(mut self, origin: &str) -> Result<Self, OriginError> {
        let (scheme, host) = origin.split_once("://").unwrap_or_default();
        let is_plain = |text: &str, more: &[u8]| {
            !text.is_empty()
                && text.bytes().all(|byte| {
                    byte.is_ascii_lowercase() || byte.is_ascii_digit() || more.contains(&byte)
                })
        };
        let value = HeaderValue::from_str(origin).map_err(|_| OriginError(origin.to_owned()))?;
        let is_default = matches!(
            (scheme, host.rsplit_once(':')),
            ("http", Some((_, "80"))) | ("https", Some((_, "443")))
        );
        if is_default || !is_plain(scheme, b"+-.") || !is_plain(host, b"-._~:[]%") {
            return Err(OriginError(origin.to_owned()));
        }
        self.0.origins.push(value);
        Ok(self)
    }

    /// Creates and rotates tokens only if this function finds the session's sign-in recent enough.
    ///
    /// Otherwise the client gets 403 `recent_sign_in_required`. The function is not called for a
    /// bearer token.
    pub fn recent_sign_in(
        mut self,
        is_recent: impl Fn(&Parts, &Actor) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.0.is_recent = Some(Box::new(is_recent));
        self
    }

    /// Limits each credential to `most` created or rotated tokens in each window of length `per`.
    ///
    /// `most` is 1 or more, and `per` is 1 millisecond to 365 days; a value out of bounds counts as
    /// the nearer bound. Calls beyond the limit get 429, with `Retry-After` and the `RateLimit`
    /// fields of revision 09 of draft-ietf-httpapi-ratelimit-headers.
    ///
    /// A credential is a bearer token, or a session's owner. Only calls that the actor may make are
    /// counted, so a token without permissions uses up nobody's limit. A token that another token made
    /// has a window of its own, so
    /// [`live_tokens_per_owner`](crate::policy::TokenPolicyBuilder::live_tokens_per_owner) is what
    /// bounds the descendants of a stolen one. The window begins with the first counted call. Windows are kept in this process, for at most 10,000 credentials, and
    /// are measured by the service's [`Clock`](crate::Clock).
    pub fn limit_generation(mut self, most: u32, per: Duration) -> Self {
        self.0.limits = Some(Limits::new(most, per));
        self
    }

    /// Builds the API.
    pub fn build(self) -> ManagementApi<S, D, A> {
        ManagementApi(Arc::new(self.0))
    }
}

impl<S, D, A> Clone for ManagementApi<S, D, A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S, D, A> fmt::Debug for ManagementApi<S, D, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManagementApi")
            .field("authenticator", &self.0.authenticator)
            .field("origins", &self.0.origins)
            .finish_non_exhaustive()
    }
}

impl<S, D, A> fmt::Debug for ManagementApiBuilder<S, D, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManagementApiBuilder")
            .field("origins", &self.0.origins)
            .finish_non_exhaustive()
    }
}

/// The caller of a request.
pub(super) struct Caller {
    pub(super) actor: Actor,
    /// The bearer token, if the caller is one.
    token: Option<TokenId>,
    /// The marker of the user, for the answer.
    marker: Option<HeaderValue>,
}

impl Caller {
    /// Names the user in an answer, refusals included.
    pub(super) fn name_in(self, answer: Answer) -> Response<Full<Bytes>> {
        let mut response = answer.unwrap_or_else(Problem::into_full);
        if let Some(marker) = self.marker {
            response.headers_mut().insert(user::USER, marker);
        }
        response
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    List,
    Generate,
    ListService,
    ShowCurrent,
    RevokeCurrent,
    Show,
    Edit,
    Delete,
    Rotate,
}

impl Call {
    /// Returns the fields that the query may have.
    const fn query_fields(self) -> &'static [&'static str] {
        match self {
            Self::List | Self::ListService => &PAGING,
            _ => &[],
        }
    }
}

const OWN: Methods<Call> = &[(Method::GET, Call::List), (Method::POST, Call::Generate)];
const SERVICE: Methods<Call> = &[(Method::GET, Call::ListService)];
const CURRENT: Methods<Call> =
    &[(Method::GET, Call::ShowCurrent), (Method::DELETE, Call::RevokeCurrent)];
const ONE: Methods<Call> = &[
    (Method::GET, Call::Show),
    (Method::PUT, Call::Edit),
    (Method::PATCH, Call::Edit),
    (Method::DELETE, Call::Delete),
];
const ROTATION: Methods<Call> = &[(Method::POST, Call::Rotate)];

/// Returns the calls at a path, and the part of the path that names a token, or an empty text if
/// none does.
fn route(path: &str) -> Option<(Methods<Call>, &str)> {
    let mut parts = path.strip_prefix("/user-tokens")?.split('/');
    match (parts.next()?, parts.next(), parts.next(), parts.next()) {
        ("", None, None, None) => Some((OWN, "")),
        ("", Some("service"), None, None) => Some((SERVICE, "")),
        ("", Some("current"), None, None) => Some((CURRENT, "")),
        ("", Some(id), None, None) if !id.is_empty() => Some((ONE, id)),
        ("", Some(id), Some("rotate"), None) if !id.is_empty() => Some((ROTATION, id)),
        _ => None,
    }
}

/// A call that creates a token's text.
#[derive(Clone, Copy)]
enum Issuing {
    Personal,
    Service,
    Rotation(TokenId),
}

impl<S: TokenStore, D: Directory, A: Sessions> Api<S, D, A> {
    /// Finds the call and authenticates its caller, before anything else of the request is read.
    async fn answer(&self, parts: Parts, body: RequestBody) -> Answer {
        let path = below(parts.uri.path(), &self.base);
        let (methods, id) = path.and_then(route).ok_or_else(no_such_path)?;
        let call = call_of(methods, &parts.method)?;
        let caller = self.caller(&parts).await?;
        let answer = self.perform(call, id, &caller, &parts, body).await;
        Ok(caller.name_in(answer))
    }

    async fn perform(
        &self,
        call: Call,
        id: &str,
        caller: &Caller,
        parts: &Parts,
        body: RequestBody,
    ) -> Answer {
        let query = query_of(parts, call.query_fields())?;
        match call {
            Call::List => self.list(caller, &query).await,
            Call::Generate => self.generate(caller, parts, body).await,
            Call::ListService => self.list_service(caller, &query).await,
            Call::ShowCurrent => self.show(caller, caller.token.ok_or_else(no_token_in_use)?).await,
            Call::RevokeCurrent => self.revoke_current(caller).await,
            Call::Show => self.show(caller, id_of(id)).await,
            Call::Edit => self.edit(caller, id_of(id), parts, body).await,
            Call::Delete => self.delete(caller, id_of(id)).await,
            Call::Rotate => self.rotate(caller, id_of(id), parts, body).await,
        }
    }

    async fn list(&self, caller: &Caller, query: &[(String, String)]) -> Answer {
        let (after, limit) = page_of(query)?;
        let page = self.authenticator.tokens.list(&caller.actor, after, limit).await;
        self.page(caller, page)
    }

    async fn list_service(&self, caller: &Caller, query: &[(String, String)]) -> Answer {
        let (after, limit) = page_of(query)?;
        let page = self.authenticator.tokens.list_service(&caller.actor, after, limit).await;
        self.page(caller, page)
    }

    async fn generate(&self, caller: &Caller, parts: &Parts, body: RequestBody) -> Answer {
        let body = json_body(parts, body).await?;
        self.demand_recent_sign_in(parts, caller)?;
        let body = NewTokenBody::read(&body)?;
        let new = body.to_new()?;
        let issuing = if body.user_id.is_some() { Issuing::Service } else { Issuing::Personal };
        let quota = self.count_issuing(caller, issuing).await?;
        let issued = self.authenticator.tokens.generate(&caller.actor, new).await;
        let issued = issued.map_err(|error| self.not_done(&error, caller))?;
        Ok(issued_answer(&issued, &format!("user-tokens/{}", issued.token.id()), quota))
    }

    async fn revoke_current(&self, caller: &Caller) -> Answer {
        let id = caller.token.ok_or_else(no_token_in_use)?;
        let revoked = self.authenticator.tokens.revoke(&caller.actor, id, Reason::Owner).await;
        revoked.map_err(|error| self.not_done(&error, caller))?;
        Ok(no_content())
    }

    async fn show(&self, caller: &Caller, id: TokenId) -> Answer {
        let token = self.authenticator.tokens.get(&caller.actor, id).await;
        let token = token.map_err(|error| self.not_done(&error, caller))?;
        Ok(token_answer(&token))
    }

    async fn edit(&self, caller: &Caller, id: TokenId, parts: &Parts, body: RequestBody) -> Answer {
        let mut edit = EditBody::read(&json_body(parts, body).await?)?.to_edit()?;
        if let Some(versions) = expected_versions(&parts.headers) {
            edit = edit.only_versions(versions);
        }
        let edited = self.authenticator.tokens.edit(&caller.actor, id, edit).await;
        let edited = edited.map_err(|error| {
            self.not_done(&error, caller).about(&["name", "description", "reason"])
        })?;
        Ok(token_answer(&edited))
    }

    async fn rotate(
        &self,
        caller: &Caller,
        id: TokenId,
        parts: &Parts,
        body: RequestBody,
    ) -> Answer {
        let is_plain = !parts.headers.contains_key(CONTENT_TYPE);
        let body =
            if is_plain { limited(parts, body).await? } else { json_body(parts, body).await? };
        let wanted = match &body[..] {
            [] => RotateBody::default(),
            _ if is_plain => return Err(not_json()),
            body => RotateBody::read(body)?,
        };
        self.demand_recent_sign_in(parts, caller)?;
        let quota = self.count_issuing(caller, Issuing::Rotation(id)).await?;
        let issued = self.authenticator.tokens.rotate(&caller.actor, id, wanted.overlap()).await;
        let issued =
            issued.map_err(|error| self.not_done(&error, caller).about(&["overlap_seconds"]))?;
        Ok(issued_answer(&issued, &format!("../{}", issued.token.id()), quota))
    }

    async fn delete(&self, caller: &Caller, id: TokenId) -> Answer {
        let deleted = self.authenticator.tokens.delete(&caller.actor, id).await;
        deleted.map_err(|error| self.not_done(&error, caller))?;
        Ok(no_content())
    }

    pub(super) async fn caller(&self, parts: &Parts) -> Result<Caller, Problem> {
        let verified = self.authenticator.authenticate(&parts.headers, &parts.extensions).await?;
        if let Some(verified) = verified {
            let actor = Actor::token(&verified);
            let marker = user::check(parts, &actor)?;
            return Ok(Caller { actor, token: Some(verified.token().id()), marker });
        }
        let actor = self.sessions.actor(parts).await.map_err(|error| {
            let error = VerifyError::from(Unavailable::Directory(error));
            self.authenticator.watch.tell(Incident::Refused(&error));
            Problem::unavailable()
        })?;
        let actor = actor.ok_or_else(|| self.authenticator.challenge.no_credential())?;
        if !parts.method.is_safe() && !actor.is_proven_by_header() {
            let authority = parts.uri.authority();
            cross_site::check(&parts.headers, authority, &self.origins).map_err(|error| {
                self.authenticator.watch.tell(Incident::CrossSite(&error));
                Problem::new(StatusCode::FORBIDDEN, "cross_site", error.to_string())
            })?;
        }
        let marker = user::check(parts, &actor)?;
        let address = self.authenticator.address_of(&parts.headers, &parts.extensions);
        let actor = match address {
            Some(address) => actor.from_address(address),
            None => actor,
        };
        Ok(Caller { actor, token: None, marker })
    }

    /// Refuses a session whose sign-in is too old to create a token's text.
    fn demand_recent_sign_in(&self, parts: &Parts, caller: &Caller) -> Result<(), Problem> {
        match (&self.is_recent, caller.token) {
            (Some(is_recent), None) if !is_recent(parts, &caller.actor) => {
                let detail = "the last sign-in is too long ago for this; sign in again";
                Err(Problem::new(StatusCode::FORBIDDEN, "recent_sign_in_required", detail))
            }
            _ => Ok(()),
        }
    }

    /// Counts a token that is about to be created, if the host has a limit and the actor may create
    /// the token.
    ///
    /// If the actor may not, the service refuses the call, and nothing is counted.
    async fn count_issuing(
        &self,
        caller: &Caller,
        issuing: Issuing,
    ) -> Result<Option<Quota>, Problem> {
        let Some(limits) = &self.limits else { return Ok(None) };
        let tokens = &self.authenticator.tokens;
        let standing =
            tokens.standing(&caller.actor).await.map_err(|error| self.not_done(&error, caller))?;
        let is_allowed = match issuing {
            Issuing::Personal => standing.manages_tokens,
            Issuing::Service => standing.manages_service_tokens,
            Issuing::Rotation(id) => {
                standing.manages_tokens
                    || standing.manages_service_tokens
                    || caller.token == Some(id)
            }
        };
        if !is_allowed {
            return Ok(None);
        }
        let quota = limits.count(caller.actor.credential(), tokens.monotonic());
        if quota.is_admitted {
            return Ok(Some(quota));
        }
        let detail = format!(
            "too many tokens were made in a short time; try again in {} s",
            quota.retry_after()
        );
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail)
            .with_header(RETRY_AFTER, quota.retry_after().into());
        Err(quota.fields().into_iter().fold(problem, |problem, (name, value)| {
            problem.with_header(HeaderName::from_static(name), value)
        }))
    }

    #[cfg(feature = "console")]
    pub(super) fn authenticator(&self) -> &Authenticator<S, D> {
        &self.authenticator
    }

    fn page(&self, caller: &Caller, page: Result<TokenPage, ManageError>) -> Answer {
        let page = page.map_err(|error| self.not_done(&error, caller))?;
        for record in &page.corrupt {
            self.authenticator.watch.tell(Incident::Corrupt(record));
        }
        Ok(json(StatusCode::OK, &PageAnswer { items: &page.items, next: page.next }))
    }

    /// Returns the answer for a failed operation.
    pub(super) fn not_done(&self, error: &ManageError, caller: &Caller) -> Problem {
        self.authenticator.watch.tell(Incident::NotDone(error));
        self.authenticator.challenge.not_done(error, &caller.actor)
    }
}

fn no_token_in_use() -> Problem {
    let detail = "the request has no bearer token; send the token that the request is about, or \
                  use the token's id in the path";
    Problem::new(StatusCode::NOT_FOUND, "not_found", detail)
}

/// Returns the only answer with a token's text. Its body is wiped when it is dropped.
fn issued_answer(
    issued: &IssuedToken,
    location: &str,
    quota: Option<Quota>,
) -> Response<Full<Bytes>> {
    let body =
        IssuedAnswer { bearer_token: issued.plaintext.expose_secret(), token: &issued.token };
    let mut response = json_bytes(StatusCode::CREATED, secret::json(&body));
    let headers = response.headers_mut();
    if let Ok(location) = HeaderValue::from_str(location) {
        headers.insert(LOCATION, location);
    }
    headers.insert(ETAG, etag(&issued.token));
    for (name, value) in quota.into_iter().flat_map(Quota::fields) {
        headers.insert(name, value);
    }
    response
}

/// Returns an answer with the token, and its version as the `ETag`.
fn token_answer(token: &TokenView) -> Response<Full<Bytes>> {
    let mut response = json(StatusCode::OK, token);
    response.headers_mut().insert(ETAG, etag(token));
    response
}

fn etag(token: &TokenView) -> HeaderValue {
    HeaderValue::try_from(format!("\"{}\"", token.version()))
        .expect("digits and quotes are valid in a header value")
}

fn no_content() -> Response<Full<Bytes>> {
    let headers = [(CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    with_headers(StatusCode::NO_CONTENT, headers, Bytes::new())
}
