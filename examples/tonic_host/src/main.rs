//! A gRPC service on tonic that needs a token: `cargo run -p tonic_host`.
//!
//! It keeps the tokens in memory, makes one, prints `curl` lines to try, and serves on a free port
//! (or `-- --port 3000`) until Ctrl-C or SIGTERM.

mod who;

use http::Request;
use patkit::http::{Authenticator, Connection, RequirePermission};
use patkit::{
    Actor, Keyring, MemoryDirectory, MemoryStore, NewToken, Owner, OwnerId, OwnerKind,
    TokenService, Verified,
};
use std::error::Error;
use std::sync::Arc;
use tokio::net::TcpListener;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Server;
use tonic::transport::server::{TcpConnectInfo, TcpIncoming};
use tower::util::MapRequestLayer;
use who::WhoServer;

/// The only method of the service: the caller's name.
async fn whoami(request: tonic::Request<()>) -> Result<tonic::Response<String>, Status> {
    let token = request.extensions().get::<Verified>();
    let token = token.ok_or_else(|| Status::unauthenticated("the method needs a token"))?;
    Ok(tonic::Response::new(token.owner().id().to_string()))
}

/// Adds the client's address, which tokens that are bound to networks need, and which is recorded
/// with the last use.
fn with_address(mut request: Request<Body>) -> Request<Body> {
    let peer = request.extensions().get().and_then(TcpConnectInfo::remote_addr);
    if let Some(peer) = peer {
        request.extensions_mut().insert(Connection(peer.ip()));
    }
    request
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

    let stopped = asked_to_stop()?;
    let port = std::env::args().skip_while(|argument| argument != "--port").nth(1);
    let port = port.unwrap_or_default().parse().unwrap_or(0);
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    // The five bytes are the head of an empty message.
    let call = "printf '\\0\\0\\0\\0\\0' | curl -i --http2-prior-knowledge --data-binary @- -o -";
    let call = format!("{call} {url}/acme.Who/Am -H 'Content-Type: application/grpc'");
    println!("listening on {url}\n\n  {call}");
    println!("  {call} -H 'Authorization: Bearer {}'", issued.plaintext.expose_secret());
    Server::builder()
        .layer(MapRequestLayer::new(with_address))
        .layer(Authenticator::new(tokens.clone()).required())
        .layer(RequirePermission::new("tokens:manage")?)
        .add_service(WhoServer)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), stopped)
        .await?;
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
