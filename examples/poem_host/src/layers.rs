//! Layers and services of tower in poem, for a host to copy.
//!
//! poem's own adapters (its feature `tower-compat`) do not fit: that for layers needs services that
//! take poem's requests, and that for services loses the length of the response, so that the
//! server sends it in chunks.

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Either, Full};
use patkit::http::{Connection, ResponseBody};
use poem::{Body, Endpoint, Error, IntoResponse, Request, Response, ResponseParts, Result};
use std::convert::Infallible;
use std::{io, mem::take, sync::Arc};
use tower::util::BoxCloneService;
use tower::{Layer, Service, ServiceExt, service_fn};

/// An endpoint as a layer sees it.
type Next = BoxCloneService<http::Request<Request>, http::Response<Body>, Error>;

/// Passes a request through a layer to an endpoint, for `EndpointExt::around`.
///
/// The layer sees the headers and the extensions. The rest of poem's request, such as the
/// parameters of its path, goes with them as the body.
pub(crate) async fn through<L>(
    layer: L,
    endpoint: Arc<impl Endpoint + 'static>,
    mut request: Request,
) -> Result<Response>
where
    L: Layer<Next>,
    L::Service: Send
        + Service<
            http::Request<Request>,
            Response = http::Response<ResponseBody<Body>>,
            Error = Error,
            Future: Send,
        >,
{
    let next = service_fn(move |mut head: http::Request<Request>| {
        let endpoint = endpoint.clone();
        async move {
            let mut request = take(head.body_mut());
            *request.headers_mut() = take(head.headers_mut());
            *request.extensions_mut() = take(head.extensions_mut());
            let response = endpoint.call(request).await?.into_response();
            Ok(http::Response::<BoxBody<Bytes, io::Error>>::from(response).map(Body::from))
        }
    });
    let service = layer.layer(BoxCloneService::new(next));
    let (headers, extensions) = (take(request.headers_mut()), take(request.extensions_mut()));
    let mut head = http::Request::new(request);
    (*head.headers_mut(), *head.extensions_mut()) = (headers, extensions);
    let response = service.oneshot(head).await?;
    Ok(poem_response(response.map(|body| match body {
        Either::Left(body) => body,
        Either::Right(refusal) => poem_body(refusal),
    })))
}

/// Makes an endpoint of a service, such as the management API, for `Route::nest_no_strip`.
pub(crate) fn mounted<S>(service: S) -> impl Endpoint<Output = Response>
where
    S: Clone + Send + Sync,
    S: Service<
            http::Request<BoxBody<Bytes, io::Error>>,
            Response = http::Response<Full<Bytes>>,
            Error = Infallible,
            Future: Send,
        >,
{
    poem::endpoint::make(move |request: Request| {
        let service = service.clone();
        async move {
            let Ok(response) = service.oneshot(request.into()).await;
            poem_response(response.map(poem_body))
        }
    })
}

/// Adds the client's address, which tokens that are bound to networks need, and which is recorded
/// with the last use. For `EndpointExt::before`.
pub(crate) async fn with_address(mut request: Request) -> Result<Request> {
    if let Some(peer) = request.remote_addr().as_socket_addr().copied() {
        request.set_data(Connection(peer.ip()));
    }
    Ok(request)
}

fn poem_body(body: Full<Bytes>) -> Body {
    body.map_err(|never| match never {}).boxed().into()
}

fn poem_response(response: http::Response<Body>) -> Response {
    let (http::response::Parts { status, version, headers, extensions, .. }, body) =
        response.into_parts();
    Response::from_parts(ResponseParts { status, version, headers, extensions }, body)
}
