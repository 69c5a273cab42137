//! An actix-web host with personal access tokens, their API and their settings page:
//! `cargo run -p actix_host`.
//!
//! It keeps the tokens in memory, makes one, prints `curl` lines to try, and serves on a free port
//! (or `-- --port 3000`) until Ctrl-C or SIGTERM. The worker threads share the token service.

use actix_web::rt::{System, spawn, time::sleep};
use actix_web::web::{get, scope};
use actix_web::{App, HttpServer};
use patkit::http::{Authenticator, Console, ManagementApi, Permitted, RequiredPermission};
use patkit::{
    Actor, Keyring, MemoryDirectory, MemoryStore, NewToken, Owner, OwnerId, OwnerKind,
    TokenService, Verified,
};
use std::error::Error;
use std::net::TcpListener;
use std::sync::Arc;

struct ManageTokens;

impl RequiredPermission for ManageTokens {
    const PERMISSION: &'static str = "tokens:manage";
}

async fn whoami(token: Verified) -> String {
    format!("you are {}\n", token.owner().id())
}

async fn manager(token: Permitted<ManageTokens>) -> String {
    format!("{} manages tokens\n", token.owner().id())
}

async fn hello(token: Option<Verified>) -> String {
    token.map_or("hello\n".to_owned(), |token| format!("hello {}\n", token.owner().id()))
}

/// Your sessions. This example trusts the cookie; yours looks it up.
fn signed_in(request: &http::request::Parts) -> Option<Actor> {
    let cookies = request.headers.get("cookie")?.to_str().ok()?;
    let session = cookies.split("; ").find_map(|cookie| cookie.strip_prefix("session="))?;
    OwnerId::new(session).ok().map(Actor::signed_in)
}

fn main() -> Result<(), Box<dyn Error>> {
    System::new().block_on(run())
}

async fn run() -> Result<(), Box<dyn Error>> {
    let ada = OwnerId::new("ada")?;
    let users = [Owner::new(ada.clone(), OwnerKind::Human).with_role("member")];
    let tokens = TokenService::builder(MemoryStore::new(), MemoryDirectory::from_iter(users));
    let tokens = Arc::new(tokens.brand("acme").keyring(Keyring::ephemeral()?).build()?);
    let flusher = tokens.clone();
    spawn(async move { flusher.run_flusher(sleep).await });
    let issued = tokens.generate(&Actor::signed_in(ada), NewToken::named("try me")).await?;

    let authenticator = Authenticator::new(tokens.clone());
    let api = ManagementApi::builder(authenticator.clone(), signed_in).base_path("/api").build();
    let page = Console::builder(&api, "/api").base_path("/settings/tokens").build();
    let app = move || {
        App::new()
            .service(scope("/me").wrap(authenticator.required()).route("", get().to(whoami)))
            .service(scope("/manage").wrap(authenticator.required()).route("", get().to(manager)))
            .service(scope("/hello").wrap(authenticator.optional()).route("", get().to(hello)))
            .service(api.clone())
            .service(page.clone())
    };
    let port = std::env::args().skip_while(|argument| argument != "--port").nth(1);
    let port = port.unwrap_or_default().parse().unwrap_or(0);
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    let url = format!("http://{}", listener.local_addr()?);
    println!("listening on {url}\n\n  curl -i {url}/me");
    println!("  curl -i {url}/me -H 'Authorization: Bearer {}'", issued.plaintext.expose_secret());
    HttpServer::new(app).listen(listener)?.run().await?; // until Ctrl-C or SIGTERM
    Ok(tokens.shutdown().await?)
}
