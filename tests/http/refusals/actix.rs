//! An actix-web host: extractors behind the layer as middleware, and a mounted service.

use super::{Auth, api, by_hand, refuses_alike};
use actix_web::http::header::HeaderValue;
use actix_web::web::{get, resource, scope, to};
use actix_web::{App, HttpRequest, HttpServer, rt::System};
use patkit::Verified;
use patkit::http::{Permitted, RequirePermission, RequiredPermission};
use std::net::{SocketAddr, TcpListener};

struct WriteData;

impl RequiredPermission for WriteData {
    const PERMISSION: &'static str = "data:write";
}

async fn whoami(token: Verified) -> String {
    token.owner().id().to_string()
}

/// A handler whose refusals are all the layers'.
async fn plain() -> &'static str {
    "ada"
}

async fn permitted(token: Permitted<WriteData>) -> String {
    token.owner().id().to_string()
}

async fn optional(token: Option<Verified>) -> String {
    token.map_or("nobody".to_owned(), |token| token.owner().id().to_string())
}

/// Counts the values of a carrier, and those that the `Debug` output of the headers does not show.
fn hidden(request: &HttpRequest) -> String {
    let values = request.headers().get_all("x-api-key");
    let values: Vec<bool> = values.map(HeaderValue::is_sensitive).collect();
    let hidden = values.iter().filter(|is_hidden| **is_hidden).count();
    format!("{hidden} of {}", values.len())
}

/// Starts a host, whose handlers demand the token and the permission in their signatures, or leave
/// both to the layers.
fn start(authenticator: Auth, is_in_signature: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let app = move || {
        let (layer, auth) = (authenticator.required(), authenticator.clone());
        let own = move |request: HttpRequest| {
            let values = request.headers().get_all("authorization");
            let values: Vec<Vec<u8>> = values.map(|value| value.as_bytes().to_vec()).collect();
            let auth = auth.clone();
            async move { by_hand(&auth, values).await }
        };
        let hidden = get().to(|request: HttpRequest| std::future::ready(hidden(&request)));
        let demands = RequirePermission::new("data:write").unwrap();
        let (required, permitted) = if is_in_signature {
            (get().to(whoami), get().to(permitted))
        } else {
            (get().to(plain), get().to(plain).wrap(demands))
        };
        App::new()
            .service(scope("/required").route("/x", required).wrap(layer.clone()))
            .service(resource("/permitted/x").route(permitted).wrap(layer))
            .service(resource("/optional/x").route(to(optional)).wrap(authenticator.optional()))
            .service(resource("/hidden").route(hidden).wrap(authenticator.required()))
            .route("/own/x", get().to(own))
            .route("/forgotten", get().to(whoami))
            .service(api(&authenticator, "/api"))
    };
    std::thread::spawn(move || {
        let server = HttpServer::new(app).workers(1).listen(listener).unwrap();
        System::new().block_on(server.run()).unwrap();
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn an_actix_host_refuses_as_all_hosts_do() {
    refuses_alike(async |authenticator| start(authenticator, true)).await;
    refuses_alike(async |authenticator| start(authenticator, false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_of_actix_without_the_layer_is_refused() {
    let world = super::World::new().await;
    let address = start(world.authenticator(), true);
    let good = format!("Authorization: Bearer {}", world.good);
    let answer = super::send(address, "GET", "/forgotten", &[&good], "").await;
    assert_eq!(answer.status, 500);
    assert!(answer.body.contains("not_authenticated"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_of_a_carrier_is_sensitive_behind_the_layer() {
    let world = super::World::new().await;
    let authenticator = world.authenticator().ignore_foreign().accept_header("x-api-key").unwrap();
    let address = start(authenticator, true);
    let ours = format!("X-API-Key: {}", world.good);
    let answer = super::send(address, "GET", "/hidden", &["X-API-Key: foreign", &ours], "").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "2 of 2"), "{answer:?}");
}
