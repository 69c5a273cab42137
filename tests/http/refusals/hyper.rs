//! A host on plain hyper: the layers of tower, and services that get whole paths.

use super::{Auth, api, by_hand, refuses_alike};
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use http_body_util::Full;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use patkit::Verified;
use patkit::http::{Challenge, Connection, Problem, RequirePermission};
use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tower::{Layer, ServiceExt};

type Body = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;

fn boxed<B>(response: Response<B>) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    response.map(|body| body.map_err(Into::into).boxed_unsync())
}

pub(super) fn values(headers: &HeaderMap) -> Vec<Vec<u8>> {
    headers.get_all(AUTHORIZATION).iter().map(|value| value.as_bytes().to_vec()).collect()
}

/// Answers a request that a layer has passed, and refuses one without a token if it needs one.
pub(super) fn owner(request: &http::Extensions) -> Response<Full<Bytes>> {
    let name = request
        .get()
        .map_or("nobody".to_owned(), |token: &Verified| token.owner().id().to_string());
    assert!(Challenge::of(request).is_some(), "the request has passed a layer");
    Response::new(Full::new(name.into()))
}

pub(super) fn answer(result: Result<String, Problem>) -> Response<Full<Bytes>> {
    match result {
        Ok(text) => Response::new(Full::new(text.into())),
        Err(problem) => problem.to_response().map(Full::new),
    }
}

async fn route(
    authenticator: Auth,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let show = tower::service_fn(async |request: Request<Incoming>| {
        Ok::<_, Infallible>(owner(request.extensions()))
    });
    let path = request.uri().path().split('/').nth(1).unwrap_or_default().to_owned();
    Ok(match path.as_str() {
        "required" => boxed(authenticator.required().layer(show).oneshot(request).await?),
        "permitted" => {
            let permitted = RequirePermission::new("data:write").unwrap().layer(show);
            boxed(authenticator.required().layer(permitted).oneshot(request).await?)
        }
        "optional" => boxed(authenticator.optional().layer(show).oneshot(request).await?),
        "own" => boxed(answer(by_hand(&authenticator, values(request.headers())).await)),
        _ => boxed(api(&authenticator, "/api/").oneshot(request).await?),
    })
}

async fn start(authenticator: Auth) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, peer) = listener.accept().await.unwrap();
            let authenticator = authenticator.clone();
            let service = service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(Connection(peer.ip()));
                route(authenticator.clone(), request)
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hyper_host_refuses_as_all_hosts_do() {
    refuses_alike(start).await;
}
