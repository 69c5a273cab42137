//! A poem host with personal access tokens, their API and their settings page:
//! `cargo run -p poem_host`.
//!
//! It keeps the tokens in memory, makes one, prints `curl` lines to try, and serves on a free port
//! (or `-- --port 3000`) until Ctrl-C or SIGTERM.

mod layers;

use layers::{mounted, through, with_address};
use patkit::http::{Authenticator, Console, ManagementApi};
use patkit::{
    Actor, Keyring, MemoryDirectory, MemoryStore, NewToken, Owner, OwnerId, OwnerKind,
    TokenService, Verified,
};
use poem::listener::TcpAcceptor;
use poem::web::Data;
use poem::{EndpointExt, Route, Server, get, handler};
use std::error::Error;
use std::sync::Arc;
use tokio::net::TcpListener;

#[handler]
fn whoami(Data(token): Data<&Verified>) -> String {
    format!("you are {}\n", token.owner().id())
}

/// Your sessions. This example trusts the cookie; yours looks it up.
fn signed_in(request: &http::request::Parts) -> Option<Actor> {
    let cookies = request.headers.get("cookie")?.to_str().ok()?;
    let session = cookies.split("; ").find_map(|cookie| cookie.strip_prefix("session="))?;
    OwnerId::new(session).ok().map(Actor::signed_in)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let ada = OwnerId::new("ada")?;
    let users = [Owner::new(ada.clone(), OwnerKind::Human).with_role("member")];
    let tokens = TokenService::builder(MemoryStore::new(), MemoryDirectory::from_iter(users));
    let tokens = Arc::new(tokens.brand("acme").keyring(Keyring::ephemeral()?).build()?);
    let flusher = tokens.clone();
    tokio::spawn(async move { flusher.run_flusher(tokio::time::sleep).await });
    let issued = tokens.generate(&Actor::signed_in(ada), NewToken::named("try me")).await?;

    let authenticator = Authenticator::new(tokens.clone());
    let required = authenticator.required();
    let api = ManagementApi::builder(authenticator, signed_in).base_path("/api").build();
    let page = Console::builder(&api, "/api").base_path("/settings/tokens").build();
    let me =
        get(whoami).around(move |endpoint, request| through(required.clone(), endpoint, request));
    let app = Route::new()
        .at("/me", me)
        .nest_no_strip("/api", mounted(api))
        .nest_no_strip("/settings/tokens", mounted(page))
        .before(with_address);

    let stopped = asked_to_stop()?;
    let port = std::env::args().skip_while(|argument| argument != "--port").nth(1);
    let port = port.unwrap_or_default().parse().unwrap_or(0);
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    println!("listening on {url}\n\n  curl -i {url}/me");
    println!("  curl -i {url}/me -H 'Authorization: Bearer {}'", issued.plaintext.expose_secret());
    let server = Server::new_with_acceptor(TcpAcceptor::from_tokio(listener)?);
    server.run_with_graceful_shutdown(app, stopped, None).await?;
    Ok(tokens.shutdown().await?) // writes the last uses
}

/// Returns a future that is ready on Ctrl-C, or on the SIGTERM that a supervisor sends.
///
/// Both are caught from the call on, so that neither ends the process before the future is polled.
fn asked_to_stop() -> std::io::Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    let (mut interrupted, mut terminated) = {
        use tokio::signal::unix::{SignalKind, signal};
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    #[cfg(windows)]
    let (mut interrupted, mut terminated) =
        (tokio::signal::windows::ctrl_c()?, tokio::signal::windows::ctrl_close()?);
    Ok(async move {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
    })
}
