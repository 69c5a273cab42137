//! A poem host: layers around endpoints and a mounted service, with the adapters of the example.

#[path = "../../../examples/poem_host/src/layers.rs"]
mod layers;

use super::{Auth, api, by_hand, refuses_alike};
use layers::{mounted, through, with_address};
use patkit::Verified;
use patkit::http::{Challenge, Problem, RequirePermission};
use poem::http::header::AUTHORIZATION;
use poem::listener::TcpAcceptor;
use poem::web::{Data, Path};
use poem::{Body, EndpointExt, IntoResponse, Request, Response, Route, Server, get, handler};
use std::net::SocketAddr;
use tokio::net::TcpListener;

#[handler]
fn whoami(Data(token): Data<&Verified>, Path(rest): Path<String>) -> String {
    assert_eq!(rest, "x", "a layer keeps the parameters of the path");
    token.owner().id().to_string()
}

#[handler]
fn anyone(request: &Request) -> String {
    assert!(Challenge::of(request.extensions()).is_some(), "the request has passed a layer");
    let token = request.data::<Verified>();
    token.map_or("nobody".to_owned(), |token| token.owner().id().to_string())
}

fn response(problem: &Problem) -> Response {
    let (parts, body) = problem.to_response().into_parts();
    let mut response = Response::builder().status(parts.status).body(Body::from_bytes(body));
    *response.headers_mut() = parts.headers;
    response
}

async fn start(authenticator: Auth) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (required, optional) = (authenticator.required(), authenticator.optional());
    let permission = RequirePermission::new("data:write").unwrap();
    let first = required.clone();
    let own = authenticator.clone();
    let own = poem::endpoint::make(move |request: Request| {
        let own = own.clone();
        async move {
            let values = request.headers().get_all(AUTHORIZATION).iter();
            let values = values.map(|value| value.as_bytes().to_vec()).collect();
            match by_hand(&own, values).await {
                Ok(name) => name.into_response(),
                Err(problem) => response(&problem),
            }
        }
    });
    let app = Route::new()
        .at(
            "/required/:rest",
            get(whoami).around(move |next, request| through(required.clone(), next, request)),
        )
        .at(
            "/permitted/:rest",
            get(whoami)
                .around(move |next, request| through(permission.clone(), next, request))
                .around(move |next, request| through(first.clone(), next, request)),
        )
        .at(
            "/optional/x",
            get(anyone).around(move |next, request| through(optional.clone(), next, request)),
        )
        .at("/own/x", get(own))
        .nest_no_strip("/api", mounted(api(&authenticator, "/api")))
        .before(with_address);
    let server = Server::new_with_acceptor(TcpAcceptor::from_tokio(listener).unwrap());
    tokio::spawn(async move { server.run(app).await.unwrap() });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poem_host_refuses_as_all_hosts_do() {
    refuses_alike(start).await;
}
