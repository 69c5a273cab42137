//! The adapter for actix-web: the layers as middleware, extractors, and the services of this crate
//! as services of an `App`.
//!
//! actix-web has its own types for requests, from an earlier release of `http`. The adapter
//! translates them, and decides nothing.

#[cfg(feature = "api")]
mod mount;

#[cfg(feature = "api")]
pub(super) use mount::register;

use super::challenge::Challenge;
use super::layer::{let_through, passed, permitted, verified};
use super::{
    AuthLayer, AuthService, Connection, Permitted, Problem, RequirePermission,
    RequirePermissionService, RequiredPermission,
};
use crate::owner::Directory;
use crate::service::Verified;
use crate::store::TokenStore;
use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{Payload, Service, ServiceRequest, ServiceResponse, Transform};
use actix_web::http::header;
use actix_web::{FromRequest, HttpMessage, HttpRequest, HttpResponse, ResponseError};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue};
use std::future::{Ready, ready};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// The results of a layer, in the extensions of actix's request.
struct Seen(Extensions);

type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

impl<S, D, I, B> Transform<I, ServiceRequest> for AuthLayer<S, D>
where
    S: TokenStore + 'static,
    D: Directory + 'static,
    I: Service<ServiceRequest, Response = ServiceResponse<B>, Error = actix_web::Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = actix_web::Error;
    type Transform = AuthService<S, D, Rc<I>>;
    type InitError = ();
    type Future = Ready<Result<Self::Transform, ()>>;

    fn new_transform(&self, inner: I) -> Self::Future {
        ready(Ok(tower_layer::Layer::layer(self, Rc::new(inner))))
    }
}

impl<S, D, I, B> Service<ServiceRequest> for AuthService<S, D, Rc<I>>
where
    S: TokenStore + 'static,
    D: Directory + 'static,
    I: Service<ServiceRequest, Response = ServiceResponse<B>, Error = actix_web::Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = actix_web::Error;
    type Future = LocalFuture<Result<Self::Response, Self::Error>>;

    fn poll_ready(&self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&self, mut request: ServiceRequest) -> Self::Future {
        let (layer, inner) = (self.layer.clone(), self.inner.clone());
        Box::pin(async move {
            let authenticator = &layer.authenticator;
            let Some((headers, mut extensions)) = parts_of(request.request()) else {
                return Ok(refusal(request, &authenticator.challenge.invalid_request()));
            };
            let decision = authenticator.authenticate(&headers, &extensions).await;
            match layer.decide(decision) {
                Err(problem) => return Ok(refusal(request, &problem)),
                Ok(verified) => {
                    let_through(&mut extensions, verified, authenticator.challenge.clone());
                }
            }
            for name in authenticator.carrier_headers() {
                mark_as_sensitive(request.headers_mut(), name.as_str());
            }
            request.extensions_mut().insert(Seen(extensions));
            inner.call(request).await.map(ServiceResponse::map_into_left_body)
        })
    }
}

/// Marks all values of a header, so that the `Debug` output of the header map does not show them.
fn mark_as_sensitive(headers: &mut header::HeaderMap, name: &str) {
    let Ok(name) = header::HeaderName::try_from(name) else { return };
    // The map lends only the first value of a name.
    let values: Vec<_> = headers.remove(&name).collect();
    for mut value in values {
        value.set_sensitive(true);
        headers.append(name.clone(), value);
    }
}

impl<I, B> Transform<I, ServiceRequest> for RequirePermission
where
    I: Service<ServiceRequest, Response = ServiceResponse<B>, Error = actix_web::Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = actix_web::Error;
    type Transform = RequirePermissionService<Rc<I>>;
    type InitError = ();
    type Future = Ready<Result<Self::Transform, ()>>;

    fn new_transform(&self, inner: I) -> Self::Future {
        ready(Ok(tower_layer::Layer::layer(self, Rc::new(inner))))
    }
}

impl<I, B> Service<ServiceRequest> for RequirePermissionService<Rc<I>>
where
    I: Service<ServiceRequest, Response = ServiceResponse<B>, Error = actix_web::Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = actix_web::Error;
    type Future = LocalFuture<Result<Self::Response, Self::Error>>;

    fn poll_ready(&self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&self, request: ServiceRequest) -> Self::Future {
        let found =
            seen(request.request(), |extensions| permitted(extensions, &self.permission).map(drop));
        let inner = self.inner.clone();
        Box::pin(async move {
            match found {
                Err(problem) => Ok(refusal(request, &problem)),
                Ok(()) => inner.call(request).await.map(ServiceResponse::map_into_left_body),
            }
        })
    }
}

/// Extracts the token that the layer has verified.
///
/// Without a token, the handler does not run, and the client learns that it needs one.
/// `Option<Verified>` is `None` in that case, and also where no layer is around the handler.
impl FromRequest for Verified {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(seen(request, |extensions| verified(extensions).cloned()))
    }
}

/// Extracts the token that the layer has verified, if it has the permission `P`.
impl<P: RequiredPermission + 'static> FromRequest for Permitted<P> {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(seen(request, Self::of))
    }
}

/// Extracts the challenge of the layer.
impl FromRequest for Challenge {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(seen(request, |extensions| {
            passed(extensions).map(|(_, challenge)| challenge.clone())
        }))
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> actix_web::http::StatusCode {
        let status = self.status().as_u16();
        actix_web::http::StatusCode::from_u16(status).expect("both crates have the same statuses")
    }

    fn error_response(&self) -> HttpResponse {
        let (parts, body) = self.to_response().into_parts();
        head_of(&parts).body(body)
    }
}

/// Calls a function with the results of the layer.
fn seen<T>(request: &HttpRequest, read: impl FnOnce(&Extensions) -> T) -> T {
    match request.extensions().get() {
        Some(Seen(extensions)) => read(extensions),
        None => read(&Extensions::new()),
    }
}

fn refusal<B>(request: ServiceRequest, problem: &Problem) -> ServiceResponse<EitherBody<B>> {
    request.into_response(problem.error_response()).map_into_right_body()
}

/// Returns the headers of a request, and extensions with the address of its connection.
///
/// Returns `None` if the later release of `http` does not allow a value, so that no credential is
/// overlooked. A name that it does not allow is not one that this crate reads.
fn parts_of(request: &HttpRequest) -> Option<(HeaderMap, Extensions)> {
    let mut all = HeaderMap::new();
    for (name, value) in request.headers() {
        if let Ok(name) = HeaderName::from_bytes(name.as_str().as_bytes()) {
            all.append(name, HeaderValue::from_bytes(value.as_bytes()).ok()?);
        }
    }
    let mut extensions = Extensions::new();
    if let Some(peer) = request.peer_addr() {
        extensions.insert(Connection(peer.ip()));
    }
    Some((all, extensions))
}

/// Starts a response with this status and these headers.
fn head_of(parts: &http::response::Parts) -> actix_web::HttpResponseBuilder {
    let status = actix_web::http::StatusCode::from_u16(parts.status.as_u16());
    let mut response = HttpResponse::build(status.expect("both crates have the same statuses"));
    for (name, value) in &parts.headers {
        response.append_header((name.as_str(), value.as_bytes()));
    }
    response
}
