//! The management API: what a settings page and a script call.

use super::body::{EditBody, IssuedBody, NewTokenBody, PageBody, RotateBody, TokenBody, read};
use super::layer::mark_as_sensitive;
use super::limit::Limits;
use super::{Authenticator, Incident, Problem};
use crate::owner::{Directory, DirectoryError};
use crate::service::{Actor, InvalidInput, IssuedToken, ManageError, TokenPage, Unavailable, VerifyError};
use crate::store::{MAX_PAGE, TokenStore};
use crate::token::{Reason, TokenId};
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, ORIGIN, RETRY_AFTER,
    X_CONTENT_TYPE_OPTIONS,
};
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};
use http_body_util::BodyExt;
use serde::Serialize;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Tokens on a page, where a client does not say.
const DEFAULT_PAGE: usize = 50;
/// Bytes of a request's body: the longest of all fields together, each character escaped, have room in it.
const MAX_BODY: usize = 64 * 1024;
/// Bytes of a body that are read at all, for its client's sake.
const MOST_DROPPED: usize = 1024 * 1024;

/// Says who is signed in: the one thing that the management API has to know of the host's sessions.
///
/// A function does, too: `|request: &Parts| -> Option<Actor> { … }`.
pub trait Sessions: Send + Sync + 'static {
    /// The actor of the session that a request belongs to ([`Actor::session`]); `None` where nobody is signed in. It is not asked
    /// about a request with a bearer token.
    ///
    /// # Errors
    /// [`DirectoryError`] when it cannot be found out: the client is told to try again.
    fn actor(&self, request: &Parts) -> impl Future<Output = Result<Option<Actor>, DirectoryError>> + Send;
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
/// axum::Router::new().nest("/api", api.router())
/// # }
/// ```
///
/// | call | does |
/// |---|---|
/// | `GET /user-tokens` | the actor's personal tokens, newest first: `?limit=50` (1 to 200) `&cursor=` |
/// | `POST /user-tokens` | makes one, see [`NewTokenBody`]: 201, with `bearer_token` |
/// | `GET /user-tokens/service` | the service tokens of the realm, paged alike |
/// | `GET`, `DELETE /user-tokens/current` | the bearer token of this request: shows it, revokes it (204) |
/// | `GET /user-tokens/{id}` | shows one |
/// | `PUT /user-tokens/{id}` | changes it as a whole, see [`EditBody`] |
/// | `POST /user-tokens/{id}/rotate` | lets a successor take its place, see [`RotateBody`]: 201, with `bearer_token` |
/// | `DELETE /user-tokens/{id}` | deletes it (204); 409 while it is active |
///
/// The actor is the bearer token of the request or, where it has none, whoever the host says is signed in. A bearer token that is
/// refused is refused: the session is not asked. Without a bearer token, a call that changes anything is let through only with
/// `Sec-Fetch-Site: same-origin`, which a page cannot forge, or with an `Origin` of the configured list.
///
/// Refusals are `application/problem+json`: 400 for what is no JSON, 401, 403, 404 for what is not there or not for the actor to
/// see, 405, 409 for a name that is taken or a state that does not allow it, 413 over 64 KiB, 415 for what is not
/// `application/json`, 422 for a field that is unknown or refused (`field` names it), 429 over the host's limit, 503. No answer
/// is to be stored by a cache.
///
/// A rotation without overlap whose answer is lost leaves a successor whose text nobody has: rotate once more, or ask for an
/// overlap where the line is bad.
pub struct ManagementApi<S, D, A>(Arc<Api<S, D, A>>);

pub(super) struct Api<S, D, A> {
    authenticator: Authenticator<S, D>,
    sessions: A,
    origins: Vec<HeaderValue>,
    is_recent: Option<IsRecent>,
    limits: Option<Limits>,
}

type IsRecent = Box<dyn Fn(&Parts, &Actor) -> bool + Send + Sync>;

/// The text is no origin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no origin such as https://app.example.com")]
#[non_exhaustive]
pub struct OriginError(pub String);

/// Settings that are given before the API is shared.
pub struct ManagementApiBuilder<S, D, A>(Api<S, D, A>);

impl<S: TokenStore + 'static, D: Directory + 'static, A: Sessions> ManagementApi<S, D, A> {
    /// The API with no origins but its own and no limit.
    pub fn new(authenticator: Authenticator<S, D>, sessions: A) -> Self {
        Self::builder(authenticator, sessions).build()
    }

    /// Begins one with other settings.
    pub fn builder(authenticator: Authenticator<S, D>, sessions: A) -> ManagementApiBuilder<S, D, A> {
        ManagementApiBuilder(Api {
            authenticator,
            sessions,
            origins: Vec::new(),
            is_recent: None,
            limits: None,
        })
    }

    /// The routes.
    pub fn router<T: Clone + Send + Sync + 'static>(&self) -> Router<T> {
        let own = get(list::<S, D, A>).post(generate::<S, D, A>);
        let current = get(show_current::<S, D, A>).delete(revoke_current::<S, D, A>);
        let one = get(show::<S, D, A>).put(edit::<S, D, A>).delete(delete::<S, D, A>);
        Router::new()
            .route("/user-tokens", no_other(own))
            .route("/user-tokens/service", no_other(get(list_service::<S, D, A>)))
            .route("/user-tokens/current", no_other(current))
            .route("/user-tokens/{id}", no_other(one))
            .route("/user-tokens/{id}/rotate", no_other(post(rotate::<S, D, A>)))
            .with_state(self.0.clone())
    }

    #[cfg(feature = "console")]
    pub(super) fn shared(&self) -> Arc<Api<S, D, A>> {
        self.0.clone()
    }
}

impl<S, D, A> ManagementApiBuilder<S, D, A> {
    /// Lets calls that change anything through from pages of this origin as well, such as `https://app.example.com`. Answering
    /// the browser's questions by CORS is the host's.
    ///
    /// # Errors
    /// [`OriginError`] for what is no scheme, host and port as a browser writes them (RFC 6454 section 6.2), which leaves the
    /// scheme's own port out.
    pub fn allow_origin(mut self, origin: &str) -> Result<Self, OriginError> {
        let (scheme, host) = origin.split_once("://").unwrap_or_default();
        let is_plain = |text: &str, more: &[u8]| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || more.contains(&byte))
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

    /// Makes and rotates tokens only where this says that the sign-in of the session is recent enough; otherwise the client is
    /// told so (403, `recent_sign_in_required`). A bearer token is not asked for it.
    pub fn recent_sign_in(
        mut self,
        is_recent: impl Fn(&Parts, &Actor) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.0.is_recent = Some(Box::new(is_recent));
        self
    }

    /// Lets each actor make or rotate at most `most` tokens (1 or more) in `per` (1 millisecond to 365 days; what is outside counts
    /// as the nearer of them); 429 beyond. Counted in this process by tower's `RateLimit`, which needs tokio's timer; all tokens of
    /// one owner count as that owner.
    pub fn limit_generation(mut self, most: u32, per: Duration) -> Self {
        self.0.limits = Some(Limits::new(most, per));
        self
    }

    /// The API.
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
        f.debug_struct("ManagementApiBuilder").field("origins", &self.0.origins).finish_non_exhaustive()
    }
}

type Shared<S, D, A> = State<Arc<Api<S, D, A>>>;
type Answer = Result<Response, Problem>;
type PathOf = Result<Path<Vec<(String, String)>>, PathRejection>;

/// Who calls.
pub(super) struct Caller {
    pub(super) actor: Actor,
    /// The bearer token, where it is one.
    token: Option<TokenId>,
}

async fn list<S: TokenStore, D: Directory, A: Sessions>(
    State(api): Shared<S, D, A>,
    request: Request,
) -> Answer {
    let (caller, parts, _) = api.admit(request).await?;
    let (after, limit) = page_of(&parts)?;
    let page = api.authenticator.tokens.list(&caller.actor, after, limit).await;
    api.page(&caller, page)
}

async fn list_service<S: TokenStore, D: Directory, A: Sessions>(
    State(api): Shared<S, D, A>,
    request: Request,
) -> Answer {
    let (caller, parts, _) = api.admit(request).await?;
    let (after, limit) = page_of(&parts)?;
    let page = api.authenticator.tokens.list_service(&caller.actor, after, limit).await;
    api.page(&caller, page)
}

async fn generate<S: TokenStore, D: Directory, A: Sessions>(
    State(api): Shared<S, D, A>,
    request: Request,
) -> Answer {
    let (caller, parts, body) = api.admit(request).await?;
    let body = json_body(&parts, body).await?;
    api.demand_issuing(&parts, &caller)?;
    let new = read::<NewTokenBody>(&body)?.to_new()?;
    let issued = api.authenticator.tokens.generate(&caller.actor, new).await;
    let issued = issued.map_err(|error| api.not_done(&error, &caller))?;
    Ok(issued_answer(&issued, &format!("user-tokens/{}", issued.token.id())))
}

async fn show_current<S: TokenStore, D: Directory, A: Sessions>(
    State(api): Shared<S, D, A>,
    request: Request,
) -> Answer {
    let (caller, ..) = api.admit(request).await?;
    api.show(&caller, caller.token.ok_or_else(no_token_in_use)?).await
}

async fn revoke_current<S: TokenStore, D: Directory, A: Sessions>(
    State(api): Shared<S, D, A>,
    request: Request,
) -> Answer {
    let (caller, ..) = api.admit(request).await?;
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
    let (caller, ..) = api.admit(request).await?;
    api.show(&caller, id_of(path)).await
}

async fn edit<S: TokenStore, D: Directory, A: Sessions>(
    State(api): Shared<S, D, A>,
    path: PathOf,
    request: Request,
) -> Answer {
    let (caller, parts, body) = api.admit(request).await?;
    let edit = read::<EditBody>(&json_body(&parts, body).await?)?.to_edit()?;
    let edited = api.authenticator.tokens.edit(&caller.actor, id_of(path), edit).await;
    let edited =
        edited.map_err(|error| api.not_done(&error, &caller).about(&["name", "description", "reason"]))?;
    Ok(json(StatusCode::OK, &TokenBody::from(&edited)))
}

async fn rotate<S: TokenStore, D: Directory, A: Sessions>(
    State(api): Shared<S, D, A>,
    path: PathOf,
    request: Request,
) -> Answer {
    let (caller, parts, body) = api.admit(request).await?;
    let is_plain = !parts.headers.contains_key(CONTENT_TYPE);
    let body = if is_plain { limited(&parts, body).await? } else { json_body(&parts, body).await? };
    let wanted = match &body[..] {
        [] => RotateBody::default(),
        _ if is_plain => return Err(not_json()),
        body => read::<RotateBody>(body)?,
    };
    api.demand_issuing(&parts, &caller)?;
    let issued = api.authenticator.tokens.rotate(&caller.actor, id_of(path), wanted.overlap()).await;
    let issued = issued.map_err(|error| api.not_done(&error, &caller).about(&["overlap_seconds"]))?;
    Ok(issued_answer(&issued, &format!("../{}", issued.token.id())))
}

async fn delete<S: TokenStore, D: Directory, A: Sessions>(
    State(api): Shared<S, D, A>,
    path: PathOf,
    request: Request,
) -> Answer {
    let (caller, ..) = api.admit(request).await?;
    let deleted = api.authenticator.tokens.delete(&caller.actor, id_of(path)).await;
    deleted.map_err(|error| api.not_done(&error, &caller))?;
    Ok(no_content())
}

impl<S: TokenStore, D: Directory, A: Sessions> Api<S, D, A> {
    /// Finds out who calls, before anything else of the request is looked at.
    async fn admit(&self, request: Request) -> Result<(Caller, Parts, Body), Problem> {
        let (mut parts, body) = request.into_parts();
        mark_as_sensitive(&mut parts.headers);
        let caller = self.caller(&parts).await?;
        Ok((caller, parts, body))
    }

    pub(super) async fn caller(&self, parts: &Parts) -> Result<Caller, Problem> {
        let verified = if parts.headers.contains_key(AUTHORIZATION) {
            self.authenticator.authenticate(&parts.headers, &parts.extensions).await?
        } else {
            None
        };
        if let Some(verified) = verified {
            return Ok(Caller { actor: Actor::token(&verified), token: Some(verified.token().id()) });
        }
        let actor = self.sessions.actor(parts).await.map_err(|error| {
            let error = VerifyError::from(Unavailable::Directory(error));
            self.authenticator.watch.tell(Incident::Refused(&error));
            Problem::unavailable()
        })?;
        let actor = actor.ok_or_else(|| self.authenticator.no_credential())?;
        if !parts.method.is_safe() && !self.is_from_here(parts) {
            let detail = "the call does not come from a page of this site";
            return Err(Problem::new(StatusCode::FORBIDDEN, "cross_site", detail));
        }
        let address = self.authenticator.address_of(&parts.headers, &parts.extensions);
        let actor = match address {
            Some(address) => actor.from_address(address),
            None => actor,
        };
        Ok(Caller { actor, token: None })
    }

    /// Fetch Metadata: a browser sets `Sec-Fetch-Site` itself, and no page can; `Origin` likewise (Fetch standard).
    fn is_from_here(&self, parts: &Parts) -> bool {
        let only = |name: &str| {
            let mut values = parts.headers.get_all(name).iter();
            values.next().filter(|_| values.next().is_none())
        };
        only("sec-fetch-site").is_some_and(|site| site == "same-origin")
            || only(ORIGIN.as_str()).is_some_and(|origin| self.origins.contains(origin))
    }

    /// Before a token's text is made.
    fn demand_issuing(&self, parts: &Parts, caller: &Caller) -> Result<(), Problem> {
        if let (Some(is_recent), None) = (&self.is_recent, caller.token)
            && !is_recent(parts, &caller.actor)
        {
            let detail = "sign in again: the last sign-in is too long ago for this";
            return Err(Problem::new(StatusCode::FORBIDDEN, "recent_sign_in_required", detail));
        }
        match &self.limits {
            Some(limits) if !limits.admits(&caller.actor, self.authenticator.tokens.monotonic()) => {
                let detail = "too many tokens were made in a short time";
                let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail);
                Err(problem.with_header(RETRY_AFTER, limits.seconds().into()))
            }
            _ => Ok(()),
        }
    }

    #[cfg(feature = "console")]
    pub(super) fn tokens(&self) -> &crate::service::TokenService<S, D> {
        &self.authenticator.tokens
    }

    async fn show(&self, caller: &Caller, id: TokenId) -> Answer {
        let token = self.authenticator.tokens.get(&caller.actor, id).await;
        let token = token.map_err(|error| self.not_done(&error, caller))?;
        Ok(json(StatusCode::OK, &TokenBody::from(&token)))
    }

    fn page(&self, caller: &Caller, page: Result<TokenPage, ManageError>) -> Answer {
        let page = page.map_err(|error| self.not_done(&error, caller))?;
        for record in &page.corrupt {
            self.authenticator.watch.tell(Incident::Corrupt(record));
        }
        Ok(json(StatusCode::OK, &PageBody::from(&page)))
    }

    /// What the client is told of an operation that was not done.
    pub(super) fn not_done(&self, error: &ManageError, caller: &Caller) -> Problem {
        self.authenticator.watch.tell(Incident::NotDone(error));
        let challenge = &self.authenticator.challenge;
        let problem = |status, code| Problem::new(status, code, error.to_string());
        match error {
            ManageError::ActorRejected(_) if caller.token.is_some() => Problem::invalid_token(challenge),
            ManageError::ActorRejected(_) => self.authenticator.no_credential(),
            ManageError::Forbidden { permission } if caller.token.is_some() => {
                Problem::insufficient_scope(challenge, Some(permission))
            }
            ManageError::Attenuation(_) if caller.token.is_some() => {
                Problem::insufficient_scope(challenge, None)
            }
            ManageError::Forbidden { .. } | ManageError::Attenuation(_) | ManageError::NotForHost => {
                problem(StatusCode::FORBIDDEN, "forbidden")
            }
            ManageError::ForbiddenByPolicy(_) => problem(StatusCode::FORBIDDEN, "forbidden_by_policy"),
            ManageError::NotFound => problem(StatusCode::NOT_FOUND, "not_found"),
            ManageError::Refused(_) => problem(StatusCode::CONFLICT, "state"),
            ManageError::NameTaken => problem(StatusCode::CONFLICT, "name_taken").of_field("name"),
            ManageError::TooManyTokens { .. } => problem(StatusCode::CONFLICT, "too_many_tokens"),
            ManageError::Contended => problem(StatusCode::CONFLICT, "contended"),
            ManageError::ReasonNotAllowed(_) => {
                problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid").of_field("reason")
            }
            ManageError::Invalid(input) => {
                let (mut detail, mut cause) = (input.to_string(), input.source());
                while let Some(error) = cause {
                    detail = format!("{detail}: {error}");
                    cause = error.source();
                }
                let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail);
                match field_of(input) {
                    Some(field) => problem.of_field(field),
                    None => problem,
                }
            }
            ManageError::OutcomeUnknown { .. } => {
                problem(StatusCode::SERVICE_UNAVAILABLE, "outcome_unknown").retried()
            }
            ManageError::Unavailable(_) | ManageError::Random(_) => Problem::unavailable(),
        }
    }
}

/// What the API calls the field.
const fn field_of(input: &InvalidInput) -> Option<&'static str> {
    Some(match input {
        InvalidInput::Name(_) => "name",
        InvalidInput::Description(_) => "description",
        InvalidInput::Lifetime(_) => "expires_in_days",
        InvalidInput::Scope(_) => "scopes",
        InvalidInput::Networks(_) => "allowed_networks",
        InvalidInput::Overlap { .. } => "overlap_seconds",
        InvalidInput::OwnerUnknown | InvalidInput::OwnerDisabled | InvalidInput::OwnerKind(_) => "user_id",
        InvalidInput::NothingToChange => return None,
    })
}

/// The id is the last part; those before it are of the path that the host mounts the API under. What is no id is the id of no
/// token: so whoever may do nothing hears nothing else than for any other.
fn id_of(path: PathOf) -> TokenId {
    let last = path.ok().and_then(|Path(mut parts)| parts.pop());
    last.and_then(|(_, id)| id.parse().ok()).unwrap_or(TokenId::VACANT)
}

fn no_token_in_use() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found", "the request has no bearer token")
}

fn page_of(parts: &Parts) -> Result<(Option<TokenId>, usize), Problem> {
    let refused = |field: &'static str, detail| {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail).of_field(field)
    };
    let query = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri);
    let Ok(Query(pairs)) = query else {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_query", "the query is not well-formed"));
    };
    let (mut after, mut limit) = (None, None);
    for (name, value) in &pairs {
        match name.as_str() {
            "limit" if limit.is_none() => {
                let number = value.parse().ok().filter(|number| (1..=MAX_PAGE).contains(number));
                limit = Some(number.ok_or_else(|| refused("limit", "a limit is 1 to 200"))?);
            }
            "cursor" if after.is_none() => {
                let id = value.parse().map_err(|_| refused("cursor", "there is no such page"))?;
                after = Some(id);
            }
            "limit" => return Err(refused("limit", "the parameter is given twice")),
            "cursor" => return Err(refused("cursor", "the parameter is given twice")),
            _ => {}
        }
    }
    Ok((after, limit.unwrap_or(DEFAULT_PAGE)))
}

fn not_json() -> Problem {
    let detail = "the body has to be application/json";
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
}

async fn json_body(parts: &Parts, body: Body) -> Result<Bytes, Problem> {
    let content_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(not_json());
    }
    limited(parts, body).await
}

/// Reads a body to the bound. A larger one is read on for a while and dropped: a client that is still sending when the connection
/// is closed would hear of the closing alone and not of why.
async fn limited(parts: &Parts, mut body: Body) -> Result<Bytes, Problem> {
    let too_large = || {
        let detail = "the body is 64 KiB at most";
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
    };
    let announced = parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: usize| length > MOST_DROPPED) {
        return Err(too_large());
    }
    let (mut read, mut length) = (Vec::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let is_over = error.source().is_some_and(<dyn Error>::is::<http_body_util::LengthLimitError>);
            let broken =
                || Problem::new(StatusCode::BAD_REQUEST, "invalid_body", "the body could not be read");
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

fn issued_answer(issued: &IssuedToken, location: &str) -> Response {
    let body = IssuedBody {
        bearer_token: issued.plaintext.expose_secret().to_owned(),
        token: TokenBody::from(&issued.token),
    };
    let mut response = json(StatusCode::CREATED, &body);
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

pub(super) fn json<T: Serialize>(status: StatusCode, body: &T) -> Response {
    match serde_json::to_vec(body) {
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
    (StatusCode::NO_CONTENT, [(CACHE_CONTROL, HeaderValue::from_static("no-store"))]).into_response()
}

/// Every other method: axum adds the `Allow` header.
fn no_other<T: Clone + Send + Sync + 'static>(methods: MethodRouter<T>) -> MethodRouter<T> {
    methods.fallback(async |_: Method| {
        let detail = "the method is none of those in Allow";
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
    })
}
