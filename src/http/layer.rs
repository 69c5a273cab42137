//! The layers, which decide whether a request reaches a service.

use super::challenge::{Challenge, Passed};
use super::{Authenticator, Problem};
use crate::owner::Directory;
use crate::permission::{Permission, PermissionError};
use crate::service::Verified;
use crate::store::TokenStore;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{Either, Full};
use pin_project_lite::pin_project;
use std::fmt;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tower_layer::Layer;
use tower_service::Service;

/// The body of an answer: the service's own body, or that of a refusal.
pub type ResponseBody<B> = Either<B, Full<Bytes>>;

type Answer<B, E> = Result<Response<ResponseBody<B>>, E>;

pin_project! {
    /// The future of an answer behind a layer: the service's own, or a refusal.
    ///
    /// It decides without a box if the verification waits for nothing, as with a cached token.
    pub struct AuthFuture<F, B, E> {
        #[pin]
        state: State<F, B, E>,
    }
}

pin_project! {
    #[project = Projection]
    enum State<F, B, E> {
        Inner { #[pin] future: F },
        Refused { refusal: Ready<Response<Full<Bytes>>> },
        // The verification, and then the service.
        Waiting { future: Pin<Box<dyn Future<Output = Answer<B, E>> + Send>> },
    }
}

impl<F, B, E> AuthFuture<F, B, E> {
    fn inner(future: F) -> Self {
        Self { state: State::Inner { future } }
    }

    fn refused(problem: &Problem) -> Self {
        let refusal = ready(problem.to_response().map(Full::new));
        Self { state: State::Refused { refusal } }
    }
}

impl<F: Future<Output = Result<Response<B>, E>>, B, E> Future for AuthFuture<F, B, E> {
    type Output = Answer<B, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer<B, E>> {
        match self.project().state.project() {
            Projection::Inner { future } => {
                let response = ready!(future.poll(context));
                Poll::Ready(response.map(|response| response.map(Either::Left)))
            }
            Projection::Refused { refusal } => {
                let refusal = ready!(Pin::new(refusal).poll(context));
                Poll::Ready(Ok(refusal.map(Either::Right)))
            }
            Projection::Waiting { future } => future.as_mut().poll(context),
        }
    }
}

impl<F, B, E> fmt::Debug for AuthFuture<F, B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthFuture").finish_non_exhaustive()
    }
}

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
///
/// With the feature `actix`, it is also middleware of actix-web, for `wrap`. Handlers then get the
/// token by extractors.
pub struct AuthLayer<S, D> {
    pub(super) authenticator: Arc<Authenticator<S, D>>,
    pub(super) is_required: bool,
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
    pub(super) layer: AuthLayer<S, D>,
    pub(super) inner: I,
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
    type Future = AuthFuture<I::Future, B, I::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), I::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<A>) -> Self::Future {
        let authenticator = &self.layer.authenticator;
        match authenticator.authenticate_at_once(request.headers(), request.extensions()) {
            Some(decision) => match self.layer.admit(&mut request, decision) {
                Ok(()) => AuthFuture::inner(self.inner.call(request)),
                Err(problem) => AuthFuture::refused(&problem),
            },
            None => self.wait(request),
        }
    }
}

impl<S: TokenStore + 'static, D: Directory + 'static, I> AuthService<S, D, I> {
    /// Answers a request whose verification has to wait for the store or the directory.
    fn wait<A, B>(&mut self, request: Request<A>) -> AuthFuture<I::Future, B, I::Error>
    where
        I: Service<Request<A>, Response = Response<B>> + Clone + Send + 'static,
        I::Future: Send,
        A: Send + 'static,
    {
        let layer = self.layer.clone();
        // The service that was polled ready answers. Its clone may not be ready.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let answered = Box::pin(async move {
            // A body need not be `Sync`, so it cannot be borrowed across the call of the store.
            let (parts, body) = request.into_parts();
            let decision =
                layer.authenticator.authenticate(&parts.headers, &parts.extensions).await;
            let mut request = Request::from_parts(parts, body);
            match layer.admit(&mut request, decision) {
                Ok(()) => AuthFuture::inner(inner.call(request)).await,
                Err(problem) => AuthFuture::<I::Future, B, I::Error>::refused(&problem).await,
            }
        });
        AuthFuture { state: State::Waiting { future: answered } }
    }
}

impl<S: TokenStore, D: Directory> AuthLayer<S, D> {
    /// Puts the outcome of a verification into the extensions, unless the request is refused.
    fn admit<A>(
        &self,
        request: &mut Request<A>,
        decision: Result<Option<Verified>, Problem>,
    ) -> Result<(), Problem> {
        let verified = self.decide(decision)?;
        let challenge = self.authenticator.challenge.clone();
        let_through(request.extensions_mut(), verified, challenge);
        self.authenticator.mark_as_sensitive(request.headers_mut());
        Ok(())
    }

    /// Returns the verified token, or `None` if the layer also admits requests without one.
    pub(super) fn decide(
        &self,
        decision: Result<Option<Verified>, Problem>,
    ) -> Result<Option<Verified>, Problem> {
        match decision? {
            None if self.is_required => Err(self.authenticator.challenge.no_credential()),
            verified => Ok(verified),
        }
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
    pub(super) permission: Permission,
    pub(super) inner: I,
}

impl<I, A, B> Service<Request<A>> for RequirePermissionService<I>
where
    I: Service<Request<A>, Response = Response<B>>,
{
    type Response = Response<ResponseBody<B>>;
    type Error = I::Error;
    type Future = AuthFuture<I::Future, B, I::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), I::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        match permitted(request.extensions(), &self.permission) {
            Ok(_) => AuthFuture::inner(self.inner.call(request)),
            Err(problem) => AuthFuture::refused(&problem),
        }
    }
}

/// Puts the results of a layer into the extensions.
pub(super) fn let_through(
    extensions: &mut http::Extensions,
    verified: Option<Verified>,
    challenge: Challenge,
) {
    match verified {
        Some(verified) => drop(extensions.insert(verified)),
        // A value from an outer layer, or from the host, is not this layer's result.
        None => drop(extensions.remove::<Verified>()),
    }
    extensions.insert(Passed(challenge));
}

/// Returns the token that a layer has verified, if any, and the layer's challenge.
///
/// Without the mark `Passed`, no layer has seen the request, and nothing in the extensions counts.
pub(super) fn passed(
    extensions: &http::Extensions,
) -> Result<(Option<&Verified>, &Challenge), Problem> {
    let Some(Passed(challenge)) = extensions.get() else { return Err(without_layer()) };
    Ok((extensions.get(), challenge))
}

/// Returns the token that a layer has verified.
#[cfg(any(feature = "actix", feature = "axum"))]
pub(super) fn verified(extensions: &http::Extensions) -> Result<&Verified, Problem> {
    let (verified, challenge) = passed(extensions)?;
    verified.ok_or_else(|| challenge.no_credential())
}

/// Returns the token that a layer has verified, if it has this permission.
pub(super) fn permitted<'a>(
    extensions: &'a http::Extensions,
    permission: &Permission,
) -> Result<&'a Verified, Problem> {
    let (verified, challenge) = passed(extensions)?;
    let verified = verified.ok_or_else(|| challenge.no_credential())?;
    if verified.allows(permission) {
        return Ok(verified);
    }
    Err(challenge.insufficient_scope(Some(permission.as_str())))
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
