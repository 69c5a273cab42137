//! An axum host: extractors behind the layer, and services mounted by `nest_service`.

use super::{Auth, api, by_hand, refuses_alike};
use axum::Router;
use axum::routing::get;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use patkit::Verified;
use patkit::http::{Permitted, RequiredPermission};
use std::net::SocketAddr;
use tokio::net::TcpListener;

struct WriteData;

impl RequiredPermission for WriteData {
    const PERMISSION: &'static str = "data:write";
}

async fn start(authenticator: Auth) -> SocketAddr {
    let required = Router::new()
        .route("/required/x", get(async |token: Verified| token.owner().id().to_string()))
        .route(
            "/permitted/x",
            get(async |token: Permitted<WriteData>| token.owner().id().to_string()),
        )
        .route_layer(authenticator.required());
    let optional = async |token: Option<Verified>| {
        token.map_or("nobody".to_owned(), |token| token.owner().id().to_string())
    };
    let optional =
        Router::new().route("/optional/x", get(optional)).route_layer(authenticator.optional());
    let api = api(&authenticator, "");
    let own = async move |headers: HeaderMap| {
        let values = headers.get_all(AUTHORIZATION).iter();
        by_hand(&authenticator, values.map(|value| value.as_bytes().to_vec()).collect()).await
    };
    let app = required.merge(optional).route("/own/x", get(own)).nest_service("/api", api);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn an_axum_host_refuses_as_all_hosts_do() {
    refuses_alike(start).await;
}
