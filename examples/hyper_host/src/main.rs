//! The layer over plain hyper, without a framework: `cargo run -p hyper_host`.
//!
//! It makes a token, prints `curl` lines to try, and serves on a free port (or `-- --port 3000`)
//! until Ctrl-C or SIGTERM. Other tower servers, such as tonic, use the layer in the same way.

use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use patkit::http::{Authenticator, Connection, RequirePermission};
use patkit::{
    Actor, Keyring, MemoryDirectory, MemoryStore, NewToken, Owner, OwnerId, OwnerKind,
    TokenService, Verified,
};
use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use tokio::net::TcpListener;
use tower::{ServiceBuilder, ServiceExt, service_fn};

/// Answers requests that passed the layers: each has a valid token with the permission.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let owner =
        request.extensions().get::<Verified>().map(|verified| verified.owner().id().to_string());
    Ok(Response::new(Full::new(format!("you are {}\n", owner.unwrap_or_default()).into())))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let ada = OwnerId::new("ada")?;
    let users: MemoryDirectory =
        [Owner::new(ada.clone(), OwnerKind::Human).with_role("member")].into_iter().collect();
    let tokens = TokenService::builder(MemoryStore::new(), users)
        .brand("acme")
        .keyring(Keyring::ephemeral()?)
        .build()?;
    let tokens = Arc::new(tokens);
    tokens.check().await?;
    let flusher = tokens.clone();
    tokio::spawn(async move { flusher.run_flusher(tokio::time::sleep).await });
    let issued = tokens.generate(&Actor::signed_in(ada), NewToken::named("try me")).await?;

    let mut stopped = std::pin::pin!(asked_to_stop()?);
    let port = std::env::args().skip_while(|argument| argument != "--port").nth(1);
    let listener =
        TcpListener::bind(("127.0.0.1", port.unwrap_or_default().parse().unwrap_or(0))).await?;
    let url = format!("http://{}", listener.local_addr()?);
    println!("listening on {url}\n\n  curl -i {url}");
    println!("  curl -i {url} -H 'Authorization: Bearer {}'", issued.plaintext.expose_secret());

    let layers = ServiceBuilder::new()
        .layer(Authenticator::new(tokens.clone()).required())
        .layer(RequirePermission::new("tokens:manage")?);
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => accepted?,
            () = &mut stopped => break,
        };
        // Adds the client's address, which tokens that are bound to networks need, and which is
        // recorded with the last use.
        let with_address = move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Connection(peer.ip()));
            request
        };
        let service = layers.clone().service(service_fn(answer)).map_request(with_address);
        tokio::spawn(async move {
            let connection = http1::Builder::new();
            // Ignores the error of a client that disconnects.
            let _ = connection
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
                .await;
        });
    } // Writes the last uses.
    tokens.shutdown().await?;
    Ok(())
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
