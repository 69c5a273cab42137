//! The management API, which the settings page and scripts call.

use super::body::{
    EditBody, IssuedAnswer, NewTokenBody, PageAnswer, RotateBody, refused_by_service,
};
use super::json_fields::Refused;
use super::layer::mark_as_sensitive;
use super::limit::{Limits, Quota};
use super::{Authenticator, Incident, Problem, cross_site, secret, user};
use crate::owner::{Directory, DirectoryError};
use crate::service::{Actor, IssuedToken, ManageError, TokenPage, Unavailable, VerifyError};
use crate::store::{MAX_PAGE, TokenStore};
use crate::token::{Reason, TokenId, TokenView};
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, Request, State};
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_MATCH, LOCATION,
    RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt;
use serde::Serialize;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The number of tokens on a page if the client does not set it.
const DEFAULT_PAGE: usize = 50;
/// The most bytes of a request's body. All fields at their longest, with each character escaped,
/// fit together.
const MAX_BODY: usize = 64 * 1024;
/// The most bytes of a body that are read. Those beyond `MAX_BODY` are dropped, and are read only
/// so that the client can still get the answer.
const MOST_DROPPED: usize = 1024 * 1024;

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

/// The management API. [`router`](Self::router) mounts under any path:
///
/// ```no_run
/// # use patkit::http::{Authenticator, ManagementApi};
/// # use patkit::{Actor, MemoryDirectory, MemoryStore, TokenService};
/// # use std::sync::Arc;
/// # fn app(tokens: Arc<TokenService<MemoryStore, MemoryDirectory>>, session: fn(&http::request::Parts) -> Option<Actor>) -> axum::Router {
/// let authenticator = Authenticator::new(tokens);
/// let api = ManagementApi::new(authenticator, session);
/// axum::Router::new().nest_service("/api", api.router())
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
            origins: Vec::new(),
            is_recent: None,
            limits: None,
        })
    }

    /// Returns the authenticator of the API.
    pub fn authenticator(&self) -> &Authenticator<S, D> {
        &self.0.authenticator
    }

    /// Returns the routes, which also answer unknown paths below their own.
    ///
    /// Mount them with `nest_service`, which also passes on the base path with a trailing slash.
    /// With `nest`, the host must answer that path. Before you `merge` them into a router with its
    /// own fallback, call `reset_fallback` on them.
    pub fn router<T: Clone + Send + Sync + 'static>(&self) -> Router<T> {
        let own = get(list::<S, D, A>).post(generate::<S, D, A>);
        let current = get(show_current::<S, D, A>).delete(revoke_current::<S, D, A>);
        let one = get(show::<S, D, A>)
            .put(edit::<S, D, A>)
            .patch(edit::<S, D, A>)
            .delete(delete::<S, D, A>);
        Router::new()
            .route("/user-tokens", no_other(own))
            .route("/user-tokens/service", no_other(get(list_service::<S, D, A>)))
            .route("/user-tokens/current", no_other(current))
            .route("/user-tokens/{id}", no_other(one))
            .route("/user-tokens/{id}/rotate", no_other(post(rotate::<S, D, A>)))
            .route_layer(from_fn(user::name_user))
            .fallback(async || no_such_path())
            .with_state(self.0.clone())
    }

    #[cfg(feature = "console")]
    pub(super) fn shared(&self) -> Arc<Api<S, D, A>> {
        self.0.clone()
    }
}

impl<S, D, A> ManagementApiBuilder<S, D, A> {
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
    /// counted, so a token without permissions uses up nobody's limit. The window begins with the
    /// first counted call. Windows are kept in this process, for at most 10,000 credentials, and
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

type Shared<S, D, A> = State<Arc<Api<S, D, A>>>;
type Answer = Result<Response, Problem>;
type PathOf = Result<Path<Vec<(String, String)>>, PathRejection>;

/// The caller of a request.
pub(super) struct Caller {
    pub(super) actor: Actor,
    /// The bearer token, if the caller is one.
    token: Option<TokenId>,
}

/// A call with a known caller and a checked query, which has only fields of this call.
struct Call {
    caller: Caller,
    parts: Parts,
    body: Body,
    query: Vec<(String, String)>,
}

async fn list<S: TokenStore, D: Directory, A: Sessions>(
    State(api): Shared<S, D, A>,
    request: Request,
) -> Answer {
    let call = api.admit(request, &PAGING).await?;
    let (after, limit) = page_of(&call.query)?;
    let page = api.authenticator.tokens.list(&call.caller.actor, after, limit).await;
    api.page(&call.caller, page)
}

async fn list_service<S: TokenStore, D: Directory, A: Sessions>(
    State(api): Shared<S, D, A>,
    request: Request,
) -> Answer {
    let call = api.admit(request, &PAGING).await?;
    let (after, limit) = page_of(&call.query)?;
    let page = api.authenticator.tokens.list_service(&call.caller.actor, after, limit).await;
    api.page(&call.caller, page)
}

async fn generate<S: TokenStore, D: Directory, A: Sessions>(
    State(api): Shared<S, D, A>,
    request: Request,
) -> Answer {
    let Call { caller, parts, body, .. } = api.admit(request, &[]).await?;
    let body = json_body(&parts, body).await?;
    api.demand_recent_sign_in(&parts, &caller)?;
    let body = NewTokenBody::read(&body)?;
    let new = body.to_new()?;
    let issuing = if body.user_id.is_some() { Issuing::Service } else { Issuing::Personal };
    let quota = api.count_issuing(&caller, issuing).await?;
    let issued = api.authenticator.tokens.generate(&caller.actor, new).await;
    let issued = issued.map_err(|error| api.not_done(&error, &caller))?;
    Ok(issued_answer(&issued, &format!("user-tokens/{}", issued.token.id()), quota))
}

async fn show_current<S: TokenStore, D: Directory, A: Sessions>(
    State(api): Shared<S, D, A>,
    request: Request,
) -> Answer {
    let Call { caller, .. } = api.admit(request, &[]).await?;
    api.show(&caller, caller.token.ok_or_else(no_token_in_use)?).await
}

async fn revoke_current<S: TokenStore, D: Directory, A: Sessions>(
    State(api): Shared<S, D, A>,
    request: Request,
) -> Answer {
    let Call { caller, .. } = api.admit(request, &[]).await?;
    let id = caller.token.ok_or_else(no_token_in_use)?;
    let revoked = api.authenticator.tokens.revoke(&caller.actor, id, Reason::Owner).await;
    revoked.map_err(|error| api.not_done(&error, &caller))?;
    Ok(no_content())
}

async fn show<S: TokenStore, D: Directory, A: Sessions>(
    State(api): Shared<S, D, A>,
    path: PathOf,
    request: Request,
) -> Answer {
    let Call { caller, .. } = api.admit(request, &[]).await?;
    api.show(&caller, id_of(path)).await
}

async fn edit<S: TokenStore, D: Directory, A: Sessions>(
    State(api): Shared<S, D, A>,
    path: PathOf,
    request: Request,
) -> Answer {
    let Call { caller, parts, body, .. } = api.admit(request, &[]).await?;
    let mut edit = EditBody::read(&json_body(&parts, body).await?)?.to_edit()?;
    if let Some(versions) = expected_versions(&parts.headers) {
        edit = edit.only_versions(versions);
    }
    let edited = api.authenticator.tokens.edit(&caller.actor, id_of(path), edit).await;
    let edited = edited
        .map_err(|error| api.not_done(&error, &caller).about(&["name", "description", "reason"]))?;
    Ok(token_answer(&edited))
}

async fn rotate<S: TokenStore, D: Directory, A: Sessions>(
    State(api): Shared<S, D, A>,
    path: PathOf,
    request: Request,
) -> Answer {
    let Call { caller, parts, body, .. } = api.admit(request, &[]).await?;
    let is_plain = !parts.headers.contains_key(CONTENT_TYPE);
    let body =
        if is_plain { limited(&parts, body).await? } else { json_body(&parts, body).await? };
    let wanted = match &body[..] {
        [] => RotateBody::default(),
        _ if is_plain => return Err(not_json()),
        body => RotateBody::read(body)?,
    };
    api.demand_recent_sign_in(&parts, &caller)?;
    let id = id_of(path);
    let quota = api.count_issuing(&caller, Issuing::Rotation(id)).await?;
    let issued = api.authenticator.tokens.rotate(&caller.actor, id, wanted.overlap()).await;
    let issued =
        issued.map_err(|error| api.not_done(&error, &caller).about(&["overlap_seconds"]))?;
    Ok(issued_answer(&issued, &format!("../{}", issued.token.id()), quota))
}

async fn delete<S: TokenStore, D: Directory, A: Sessions>(
    State(api): Shared<S, D, A>,
    path: PathOf,
    request: Request,
) -> Answer {
    let Call { caller, .. } = api.admit(request, &[]).await?;
    let deleted = api.authenticator.tokens.delete(&caller.actor, id_of(path)).await;
    deleted.map_err(|error| api.not_done(&error, &caller))?;
    Ok(no_content())
}

/// A call that creates a token's text.
#[derive(Clone, Copy)]
enum Issuing {
    Personal,
    Service,
    Rotation(TokenId),
}

impl<S: TokenStore, D: Directory, A: Sessions> Api<S, D, A> {
    /// Authenticates the caller, before anything else of the request is read, and then checks the
    /// query, which may have `fields`.
    async fn admit(&self, request: Request, fields: &[&str]) -> Result<Call, Problem> {
        let (mut parts, body) = request.into_parts();
        mark_as_sensitive(&mut parts.headers);
        let caller = self.caller(&parts).await?;
        let query = query_of(&parts, fields)?;
        Ok(Call { caller, parts, body, query })
    }

    pub(super) async fn caller(&self, parts: &Parts) -> Result<Caller, Problem> {
        let verified = if parts.headers.contains_key(AUTHORIZATION) {
            self.authenticator.authenticate(&parts.headers, &parts.extensions).await?
        } else {
            None
        };
        if let Some(verified) = verified {
            let actor = Actor::token(&verified);
            user::check(parts, &actor)?;
            return Ok(Caller { actor, token: Some(verified.token().id()) });
        }
        let actor = self.sessions.actor(parts).await.map_err(|error| {
            let error = VerifyError::from(Unavailable::Directory(error));
            self.authenticator.watch.tell(Incident::Refused(&error));
            Problem::unavailable()
        })?;
        let actor = actor.ok_or_else(|| self.authenticator.no_credential())?;
        if !parts.method.is_safe() && !actor.is_proven_by_header() {
            cross_site::check(parts, &self.origins).map_err(|error| {
                self.authenticator.watch.tell(Incident::CrossSite(&error));
                Problem::new(StatusCode::FORBIDDEN, "cross_site", error.to_string())
            })?;
        }
        user::check(parts, &actor)?;
        let address = self.authenticator.address_of(&parts.headers, &parts.extensions);
        let actor = match address {
            Some(address) => actor.from_address(address),
            None => actor,
        };
        Ok(Caller { actor, token: None })
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
    pub(super) fn tokens(&self) -> &crate::service::TokenService<S, D> {
        &self.authenticator.tokens
    }

    async fn show(&self, caller: &Caller, id: TokenId) -> Answer {
        let token = self.authenticator.tokens.get(&caller.actor, id).await;
        let token = token.map_err(|error| self.not_done(&error, caller))?;
        Ok(token_answer(&token))
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
        let challenge = &self.authenticator.challenge;
        let problem = |status, code| Problem::new(status, code, error.to_string());
        match error {
            ManageError::ActorRejected(_) if caller.token.is_some() => {
                Problem::invalid_token(challenge)
            }
            ManageError::ActorRejected(_) => self.authenticator.no_credential(),
            ManageError::Forbidden { permission } if caller.token.is_some() => {
                Problem::insufficient_scope(challenge, Some(permission))
            }
            ManageError::Attenuation(_) if caller.token.is_some() => {
                Problem::insufficient_scope(challenge, None)
            }
            ManageError::Forbidden { .. }
            | ManageError::Attenuation(_)
            | ManageError::NotForHost => problem(StatusCode::FORBIDDEN, "forbidden"),
            ManageError::ForbiddenByPolicy(_) => {
                problem(StatusCode::FORBIDDEN, "forbidden_by_policy")
            }
            ManageError::NotFound => problem(StatusCode::NOT_FOUND, "not_found"),
            ManageError::Refused(_) => problem(StatusCode::CONFLICT, "state"),
            ManageError::NameTaken => problem(StatusCode::CONFLICT, "name_taken").of_field("name"),
            ManageError::TooManyTokens { .. } => problem(StatusCode::CONFLICT, "too_many_tokens"),
            ManageError::Contended => problem(StatusCode::CONFLICT, "contended"),
            ManageError::Outdated => problem(StatusCode::PRECONDITION_FAILED, "outdated"),
            ManageError::ReasonNotAllowed(_) => {
                problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid").of_field("reason")
            }
            ManageError::Invalid(input) => match refused_by_service(input) {
                (errors, detail) if errors.is_empty() => {
                    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail)
                }
                (errors, _) => Problem::invalid(errors),
            },
            ManageError::OutcomeUnknown { .. } => {
                problem(StatusCode::SERVICE_UNAVAILABLE, "outcome_unknown").retried()
            }
            ManageError::Unavailable(_) | ManageError::Random(_) => Problem::unavailable(),
        }
    }
}

/// Returns the id in the last part of the path. The parts before it belong to the path under which
/// the host mounts the API.
///
/// A text that is not an id is looked up as the id of no token, so that an actor without
/// permissions gets the same answer for every text.
fn id_of(path: PathOf) -> TokenId {
    let last = path.ok().and_then(|Path(mut parts)| parts.pop());
    last.and_then(|(_, id)| id.parse().ok()).unwrap_or(TokenId::UNISSUED)
}

fn no_token_in_use() -> Problem {
    let detail = "the request has no bearer token; send the token that the request is about, or \
                  use the token's id in the path";
    Problem::new(StatusCode::NOT_FOUND, "not_found", detail)
}

pub(super) fn no_such_path() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "no_such_path",
        "the path does not exist; correct it, and look for an extra slash",
    )
}

/// The fields of a list's query.
const PAGING: [&str; 2] = ["limit", "cursor"];

/// Reads a query that may have each of these fields once.
fn query_of(parts: &Parts, fields: &[&str]) -> Result<Vec<(String, String)>, Problem> {
    let query = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri);
    let Ok(Query(pairs)) = query else {
        return Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "invalid_query",
            "the query is not well-formed; send `name=value` pairs, percent-encoded",
        ));
    };
    let mut refused = Refused::default();
    for (place, (name, _)) in pairs.iter().enumerate() {
        if refused.has(name) {
            continue;
        }
        if !fields.contains(&name.as_str()) {
            let detail = match fields {
                [] => "the request takes no query; leave the query out".to_owned(),
                _ => format!("the query takes only {}; leave the rest out", fields.join(" and ")),
            };
            refused.refuse(&[name], detail);
        } else if pairs.iter().take(place).any(|(earlier, _)| earlier == name) {
            refused.refuse(&[name], format!("the query has {name} twice; send {name} once"));
        }
    }
    refused.finish().map(|()| pairs)
}

fn page_of(query: &[(String, String)]) -> Result<(Option<TokenId>, usize), Problem> {
    let value = |name: &str| query.iter().find(|(field, _)| field == name).map(|(_, value)| value);
    let mut refused = Refused::default();
    let limit = value("limit")
        .map(|text| text.parse().ok().filter(|number| (1..=MAX_PAGE).contains(number)));
    if limit == Some(None) {
        let detail = format!("the limit is not a number from 1 to {MAX_PAGE}; choose one of those");
        refused.refuse(&["limit"], detail);
    }
    let after = value("cursor").map(|text| text.parse().ok());
    if after == Some(None) {
        let detail = "the cursor is malformed; send `next` of the page before, or leave the cursor \
                      out for the first page";
        refused.refuse(&["cursor"], detail);
    }
    refused.finish()?;
    Ok((after.flatten(), limit.flatten().unwrap_or(DEFAULT_PAGE)))
}

/// Reads `If-Match` (RFC 9110 section 13.1.1). `None` if any version matches.
///
/// Tags are compared strongly, so a weak tag names no version. Neither does a tag that is not from
/// this API, or a malformed field.
fn expected_versions(headers: &HeaderMap) -> Option<Vec<u64>> {
    let mut lines = headers.get_all(IF_MATCH).iter().peekable();
    lines.peek()?;
    // Splits at each comma, because no version's tag has one. A tag with a comma becomes pieces
    // that name no version.
    let tags: Vec<&[u8]> = lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .collect();
    if tags == [b"*"] {
        return None;
    }
    let version = |tag: &[u8]| {
        let digits = str::from_utf8(tag).ok()?.strip_prefix('"')?.strip_suffix('"')?;
        // Accepts only one spelling of each version.
        digits.parse().ok().filter(|version: &u64| version.to_string() == digits)
    };
    Some(tags.into_iter().filter_map(version).collect())
}

fn not_json() -> Problem {
    let detail = "the body is not declared as JSON; send `Content-Type: application/json`";
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
}

async fn json_body(parts: &Parts, body: Body) -> Result<Bytes, Problem> {
    let content_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.map(|value| value.split_once(';').map_or(value, |(start, _)| start));
    if !essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json")) {
        return Err(not_json());
    }
    limited(parts, body).await
}

/// Reads a body of up to `MAX_BODY` bytes.
///
/// A larger body is read up to `MOST_DROPPED` and dropped. If the connection were closed while the
/// client is still sending, the client would see only the closed connection, not the reason.
async fn limited(parts: &Parts, mut body: Body) -> Result<Bytes, Problem> {
    let too_large = || {
        let detail = "the body is larger than 64 KiB; send fewer or shorter fields";
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
    };
    let announced =
        parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: usize| length > MOST_DROPPED) {
        return Err(too_large());
    }
    let (mut read, mut length) = (Vec::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let is_over =
                error.source().is_some_and(<dyn Error>::is::<http_body_util::LengthLimitError>);
            let broken = || {
                let detail = "the body could not be read to its end; send the request again";
                Problem::new(StatusCode::BAD_REQUEST, "invalid_body", detail)
            };
            if is_over { too_large() } else { broken() }
        })?;
        let data = frame.into_data().unwrap_or_default();
        length = length.saturating_add(data.len());
        if length > MOST_DROPPED {
            break;
        }
        if length > MAX_BODY {
            read = Vec::new();
        } else {
            read.extend_from_slice(&data);
        }
    }
    if length > MAX_BODY { Err(too_large()) } else { Ok(read.into()) }
}

/// Returns the only answer with a token's text. Its body is wiped when it is dropped.
fn issued_answer(issued: &IssuedToken, location: &str, quota: Option<Quota>) -> Response {
    let body =
        IssuedAnswer { bearer_token: issued.plaintext.expose_secret(), token: &issued.token };
    let mut response = answer(StatusCode::CREATED, secret::json(&body));
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
fn token_answer(token: &TokenView) -> Response {
    let mut response = json(StatusCode::OK, token);
    response.headers_mut().insert(ETAG, etag(token));
    response
}

fn etag(token: &TokenView) -> HeaderValue {
    HeaderValue::try_from(format!("\"{}\"", token.version()))
        .expect("digits and quotes are valid in a header value")
}

pub(super) fn json<T: Serialize>(status: StatusCode, body: &T) -> Response {
    answer(status, serde_json::to_vec(body).map(Bytes::from))
}

fn answer(status: StatusCode, body: serde_json::Result<Bytes>) -> Response {
    match body {
        Ok(body) => {
            let headers = [
                (CONTENT_TYPE, HeaderValue::from_static("application/json")),
                (CACHE_CONTROL, HeaderValue::from_static("no-store")),
                (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            ];
            (status, headers, body).into_response()
        }
        Err(_) => Problem::unavailable().into_response(),
    }
}

fn no_content() -> Response {
    (StatusCode::NO_CONTENT, [(CACHE_CONTROL, HeaderValue::from_static("no-store"))])
        .into_response()
}

/// Refuses every other method. axum adds the `Allow` header.
fn no_other<T: Clone + Send + Sync + 'static>(methods: MethodRouter<T>) -> MethodRouter<T> {
    methods.fallback(async |_: Method| {
        let detail = "the method is not allowed at this path; use one that the Allow header lists";
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
    })
}
