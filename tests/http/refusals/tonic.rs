//! A tonic host, which accepts HTTP/1 as well: a layer around each service.

use super::hyper::{answer, owner, values};
use super::{Auth, api, by_hand, refuses_alike};
use http::Request;
use patkit::http::{Connection, RequirePermission};
use std::convert::Infallible;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::transport::server::{TcpConnectInfo, TcpIncoming};
use tower::{Layer, Service};

/// A service under the path that `N` names, as a code generator makes one.
struct Named<N, S>(PhantomData<fn() -> N>, S);

struct Required;
struct Permitted;
struct Optional;
struct Own;
struct Api;

impl<S> NamedService for Named<Required, S> {
    const NAME: &'static str = "required";
}

impl<S> NamedService for Named<Permitted, S> {
    const NAME: &'static str = "permitted";
}

impl<S> NamedService for Named<Optional, S> {
    const NAME: &'static str = "optional";
}

impl<S> NamedService for Named<Own, S> {
    const NAME: &'static str = "own";
}

impl<S> NamedService for Named<Api, S> {
    const NAME: &'static str = "api";
}

impl<N, S: Clone> Clone for Named<N, S> {
    fn clone(&self) -> Self {
        Self(PhantomData, self.1.clone())
    }
}

impl<N, S: Service<Request<Body>>> Service<Request<Body>> for Named<N, S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.1.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        self.1.call(request)
    }
}

async fn start(authenticator: Auth) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let show = tower::service_fn(async |request: Request<Body>| {
        Ok::<_, Infallible>(owner(request.extensions()))
    });
    let permitted = RequirePermission::new("data:write").unwrap().layer(show);
    let permitted = authenticator.required().layer(permitted);
    let own = authenticator.clone();
    let own = tower::service_fn(move |request: Request<Body>| {
        let own = own.clone();
        async move { Ok::<_, Infallible>(answer(by_hand(&own, values(request.headers())).await)) }
    });
    let with_address = tower::util::MapRequestLayer::new(|mut request: Request<_>| {
        let peer =
            request.extensions().get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
        if let Some(peer) = peer {
            request.extensions_mut().insert(Connection(peer.ip()));
        }
        request
    });
    let server = Server::builder()
        .accept_http1(true)
        .layer(with_address)
        .add_service(Named::<Required, _>(PhantomData, authenticator.required().layer(show)))
        .add_service(Named::<Permitted, _>(PhantomData, permitted))
        .add_service(Named::<Optional, _>(PhantomData, authenticator.optional().layer(show)))
        .add_service(Named::<Own, _>(PhantomData, own))
        .add_service(Named::<Api, _>(PhantomData, api(&authenticator, "/api")))
        .serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(server);
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tonic_host_refuses_as_all_hosts_do() {
    refuses_alike(start).await;
}
