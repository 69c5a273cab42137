//! The layers, which decide whether a request reaches a service.

use super::problem::Challenge;
use super::{Authenticator, Problem};
use crate::owner::Directory;
use crate::permission::{Permission, PermissionError};
use crate::service::Verified;
use crate::store::TokenStore;
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response};
use http_body_util::{Either, Full};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tower_layer::Layer;
use tower_service::Service;

/// The body of an answer: the service's own body, or that of a refusal.
pub type ResponseBody<B> = Either<B, Full<Bytes>>;

type Answer<B, E> = Pin<Box<dyn Future<Output = Result<Response<ResponseBody<B>>, E>> + Send>>;

/// The mark in the extensions of a request that a layer let through, with the challenge for later
/// refusals.
#[derive(Debug, Clone)]
pub(super) struct Passed(pub(super) Challenge);

/// The layer that verifies the bearer credential of each request and puts a [`Verified`] into its
/// extensions.
///
/// See [`Authenticator::required`] and [`Authenticator::optional`].
///
/// It works with hyper, axum, tonic and everything else that uses requests of the `http` crate. A
/// refused credential never reaches the service behind it. With axum, pass the layer to
/// `Router::route_layer`, because `Router::layer` would also guard unknown routes. The layer marks
/// the `Authorization` header of the requests that it lets through as sensitive, so that the header
/// map's `Debug` output does not show it.
pub struct AuthLayer<S, D> {
    authenticator: Arc<Authenticator<S, D>>,
    is_required: bool,
}

impl<S, D> AuthLayer<S, D> {
    pub(super) fn new(authenticator: Authenticator<S, D>, is_required: bool) -> Self {
        Self { authenticator: Arc::new(authenticator), is_required }
    }
}

impl<S, D> Clone for AuthLayer<S, D> {
    fn clone(&self) -> Self {
        Self { authenticator: self.authenticator.clone(), is_required: self.is_required }
    }
}

impl<S, D> fmt::Debug for AuthLayer<S, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthLayer")
            .field("authenticator", &self.authenticator)
            .field("is_required", &self.is_required)
            .finish()
    }
}

impl<S, D, I> Layer<I> for AuthLayer<S, D> {
    type Service = AuthService<S, D, I>;

    fn layer(&self, inner: I) -> Self::Service {
        AuthService { layer: self.clone(), inner }
    }
}

/// A service behind an [`AuthLayer`].
pub struct AuthService<S, D, I> {
    layer: AuthLayer<S, D>,
    inner: I,
}

impl<S, D, I: Clone> Clone for AuthService<S, D, I> {
    fn clone(&self) -> Self {
        Self { layer: self.layer.clone(), inner: self.inner.clone() }
    }
}

impl<S, D, I> fmt::Debug for AuthService<S, D, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthService").field("layer", &self.layer).finish_non_exhaustive()
    }
}

impl<S, D, I, A, B> Service<Request<A>> for AuthService<S, D, I>
where
    S: TokenStore + 'static,
    D: Directory + 'static,
    I: Service<Request<A>, Response = Response<B>> + Clone + Send + 'static,
    I::Future: Send,
    A: Send + 'static,
{
    type Response = Response<ResponseBody<B>>;
    type Error = I::Error;
    type Future = Answer<B, I::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), I::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let layer = self.layer.clone();
        let mut inner = ready(&mut self.inner);
        Box::pin(async move {
            // A body need not be `Sync`, so it cannot be borrowed across the call of the store.
            let (mut parts, body) = request.into_parts();
            let authenticator = &layer.authenticator;
            match authenticator.authenticate(&parts.headers, &parts.extensions).await {
                Err(problem) => return Ok(refusal(&problem)),
                Ok(None) if layer.is_required => {
                    return Ok(refusal(&authenticator.no_credential()));
                }
                Ok(verified) => {
                    let_through(&mut parts.extensions, verified, authenticator.challenge.clone());
                }
            }
            mark_as_sensitive(&mut parts.headers);
            inner
                .call(Request::from_parts(parts, body))
                .await
                .map(|response| response.map(Either::Left))
        })
    }
}

/// The layer that requires a permission, inside an [`AuthLayer`].
///
/// A token without the permission is refused with 403. A request that no [`AuthLayer`] let through
/// is refused with 500, regardless of its extensions, because the host has left out that layer.
///
/// ```
/// # use patkit::http::RequirePermission;
/// let writes = RequirePermission::new("datastores:write")?;
/// assert!(RequirePermission::new("datastores:*").is_err());
/// # Ok::<(), patkit::permission::PermissionError>(())
/// ```
#[derive(Debug, Clone)]
pub struct RequirePermission(Permission);

impl RequirePermission {
    /// Requires this permission of every request.
    ///
    /// # Errors
    /// [`PermissionError`] if the text is not a concrete permission.
    pub fn new(permission: &str) -> Result<Self, PermissionError> {
        Permission::parse(permission).map(Self)
    }
}

impl<I> Layer<I> for RequirePermission {
    type Service = RequirePermissionService<I>;

    fn layer(&self, inner: I) -> Self::Service {
        RequirePermissionService { permission: self.0.clone(), inner }
    }
}

/// A service behind a [`RequirePermission`].
#[derive(Debug, Clone)]
pub struct RequirePermissionService<I> {
    permission: Permission,
    inner: I,
}

impl<I, A, B> Service<Request<A>> for RequirePermissionService<I>
where
    I: Service<Request<A>, Response = Response<B>> + Clone + Send + 'static,
    I::Future: Send,
    A: Send + 'static,
{
    type Response = Response<ResponseBody<B>>;
    type Error = I::Error;
    type Future = Answer<B, I::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), I::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let verified = permitted(request.extensions(), &self.permission).map(drop);
        let mut inner = ready(&mut self.inner);
        Box::pin(async move {
            match verified {
                Err(problem) => Ok(refusal(&problem)),
                Ok(()) => inner.call(request).await.map(|response| response.map(Either::Left)),
            }
        })
    }
}

/// Puts the results of a layer into the extensions.
pub(super) fn let_through(
    extensions: &mut http::Extensions,
    verified: Option<Verified>,
    challenge: Challenge,
) {
    // A value from an outer layer, or from the host, is not this layer's result.
    extensions.remove::<Verified>();
    if let Some(verified) = verified {
        extensions.insert(verified);
    }
    extensions.insert(Passed(challenge));
}

/// Returns the token that a layer has verified.
///
/// It checks `Passed` first. Without that mark, no layer has seen the request, and nothing in the
/// extensions counts.
pub(super) fn verified(extensions: &http::Extensions) -> Result<&Verified, Problem> {
    let Some(Passed(challenge)) = extensions.get() else { return Err(without_layer()) };
    extensions.get().ok_or_else(|| Problem::no_credential(challenge))
}

/// Returns the token that a layer has verified, if it has this permission.
pub(super) fn permitted<'a>(
    extensions: &'a http::Extensions,
    permission: &Permission,
) -> Result<&'a Verified, Problem> {
    let Some(Passed(challenge)) = extensions.get() else { return Err(without_layer()) };
    let verified = verified(extensions)?;
    if verified.allows(permission) {
        return Ok(verified);
    }
    Err(Problem::insufficient_scope(challenge, Some(permission.as_str())))
}

/// Returns the answer if the host has left out the layer. Every request is refused, and the
/// operator gets a log event if the feature `tracing` is on.
pub(super) fn without_layer() -> Problem {
    #[cfg(feature = "tracing")]
    tracing::error!(
        "a route asks for a verified token, but no AuthLayer has seen the request: put Authenticator::required() or optional() around \
         the route"
    );
    let detail =
        "the server does not authenticate this route; the operator has to add the layer that does";
    Problem::new(http::StatusCode::INTERNAL_SERVER_ERROR, "not_authenticated", detail)
}

pub(super) fn mark_as_sensitive(headers: &mut HeaderMap) {
    if let http::header::Entry::Occupied(mut values) = headers.entry(AUTHORIZATION) {
        values.iter_mut().for_each(|value| value.set_sensitive(true));
    }
}

fn refusal<B>(problem: &Problem) -> Response<ResponseBody<B>> {
    problem.to_response().map(|body| Either::Right(Full::new(body)))
}

/// Returns the service that was polled ready and leaves its clone, which may not be ready, in its
/// place.
fn ready<I: Clone>(inner: &mut I) -> I {
    let clone = inner.clone();
    std::mem::replace(inner, clone)
}
