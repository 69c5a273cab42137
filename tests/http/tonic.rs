//! The layer in front of a gRPC service.

#![allow(clippy::unwrap_used, reason = "tests")]

use http::{Request, Response};
use patkit::http::{Authenticator, ClientAddress, RequirePermission};
use patkit::{
    Actor, Keyring, MemoryDirectory, MemoryStore, NewToken, Owner, OwnerId, OwnerKind,
    TokenService, Verified,
};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tower::Service;

/// A service as a code generator makes it of a `.proto` file, with one method that returns the
/// caller.
#[derive(Clone)]
struct Greeter;

impl NamedService for Greeter {
    const NAME: &'static str = "demo.Greeter";
}

impl Service<Request<Body>> for Greeter {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let verified = request.extensions().get::<Verified>().unwrap();
        let response = Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "0")
            .header("owner", verified.owner().id().as_str());
        ready(Ok(response.body(Body::empty()).unwrap()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_service_behind_the_layer_hears_of_verified_callers_alone() {
    let ada = Owner::new(OwnerId::new("ada").unwrap(), OwnerKind::Human).with_role("member");
    let tokens = TokenService::builder(MemoryStore::new(), MemoryDirectory::from_iter([ada]))
        .brand("acme")
        .keyring(Keyring::ephemeral().unwrap())
        .build()
        .unwrap();
    let tokens = Arc::new(tokens);
    let actor = Actor::signed_in(OwnerId::new("ada").unwrap());
    let issued = tokens.generate(&actor, NewToken::named("grpc")).await.unwrap();
    let narrow = tokens.generate(&actor, NewToken::named("narrow").scope([""; 0])).await.unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/demo.Greeter/Hello", listener.local_addr().unwrap());
    let authenticator = Authenticator::new(tokens).client_address(ClientAddress::unknown());
    let server = Server::builder()
        .layer(authenticator.required())
        .layer(RequirePermission::new("tokens:manage").unwrap())
        .add_service(Greeter)
        .serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(server);

    let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().unwrap();
    for (text, status, owner) in [
        (Some(issued.plaintext.expose_secret()), 200, Some("ada")),
        (Some(narrow.plaintext.expose_secret()), 403, None),
        (Some("acme_pat_nonsense"), 401, None),
        (None, 401, None),
    ] {
        let mut request = client.post(&url).header("content-type", "application/grpc");
        if let Some(text) = text {
            request = request.bearer_auth(text);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), status);
        let said = response.headers().get("owner").map(|owner| owner.to_str().unwrap());
        assert_eq!(said, owner);
        assert_eq!(response.headers().contains_key("www-authenticate"), status != 200);
    }
}
