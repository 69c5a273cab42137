//! A host whose tokens open services in other languages: `cargo run -p gateway_host`.
//!
//! A gateway, such as nginx or Caddy, asks it about each request, and a service asks it about a
//! token. It creates the SQLite file `gateway-host.db` anew, serves on a free port (or
//! `-- --port 3000`) until Ctrl-C or SIGTERM, and prints two tokens to try: Ada's, which may do what
//! Ada may, and that of the service `backend`, which may introspect tokens.
//!
//! | path | what |
//! |---|---|
//! | `/auth` | forward auth, for gateways |
//! | `/introspect` | RFC 7662, for services |
//! | `/revoke` | RFC 7009, for whoever has a token |
//! | `/api/user-tokens` | the management API, for Ada's token |
//!
//! The guides `gateways`, `nginx`, `caddy` and `introspection` say what to put in front of it, and
//! `scripts/gateways` tests them with this host.

use axum::Router;
use axum::http::request::Parts;
use patkit::http::{
    Authenticator, ClientAddress, ForwardAuth, Introspection, ManagementApi, Revocation,
};
use patkit::token::Networks;
use patkit::{
    Actor, Keyring, MemoryDirectory, NewToken, Owner, OwnerId, OwnerKind, RoleCatalog, SqlStore,
    TokenService,
};
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use std::error::Error;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::sync::Arc;
use tokio::net::TcpListener;

const DATABASE: &str = "gateway-host.db";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let stopped = asked_to_stop()?;
    let (ada, backend) = (OwnerId::new("ada")?, OwnerId::new("backend")?);
    let users: MemoryDirectory = [
        Owner::new(ada.clone(), OwnerKind::Human).with_name("Ada Lovelace").with_role("editor"),
        Owner::new(backend.clone(), OwnerKind::Service).with_role("backend"),
    ]
    .into_iter()
    .collect();
    let roles = RoleCatalog::standard_builder()
        .role("editor")
        .inherits("editor", "member")
        .grant("editor", ["datastores:read", "datastores:write"])
        .role("backend")
        .grant("backend", ["tokens:introspect"]);
    let store = SqlStore::builder(database().await?).migrate().await?;
    let tokens = TokenService::builder(store, users)
        .brand("acme")
        .keyring(Keyring::ephemeral()?)
        .roles(roles.build()?)
        .build()?;
    let tokens = Arc::new(tokens);
    tokens.check().await?;
    let flusher = tokens.clone();
    tokio::spawn(async move { flusher.run_flusher(tokio::time::sleep).await });
    let of_ada = tokens.generate(&Actor::signed_in(ada), NewToken::named("try me")).await?;
    let of_backend = NewToken::named("backend").for_service(backend);
    let of_backend = tokens.generate(&Actor::system(), of_backend).await?;

    // The gateway runs on the same machine. Nobody else is believed about a client's address.
    let gateway = Networks::parse(["127.0.0.1/32"])?;
    let address = ClientAddress::forwarded("x-forwarded-for".parse()?, NonZeroU8::MIN);
    let authenticator =
        Authenticator::new(tokens.clone()).client_address(address.only_through(gateway));
    let app = Router::new()
        .nest_service("/auth", ForwardAuth::new(authenticator.clone()))
        .nest_service("/introspect", Introspection::new(authenticator.clone()))
        .nest_service("/revoke", Revocation::new(authenticator.clone()))
        .nest_service("/api", ManagementApi::new(authenticator, |_: &Parts| None::<Actor>))
        .into_make_service_with_connect_info::<SocketAddr>();

    let port = std::env::args().skip_while(|argument| argument != "--port").nth(1);
    let listener =
        TcpListener::bind(("127.0.0.1", port.unwrap_or_default().parse().unwrap_or(0))).await?;
    let url = format!("http://{}", listener.local_addr()?);
    println!("ADA={}", of_ada.plaintext.expose_secret());
    println!("BACKEND={}", of_backend.plaintext.expose_secret());
    println!("listening on {url}\n");
    println!("  curl -i '{url}/auth?require=datastores:read' -H \"Authorization: Bearer $ADA\"");
    println!(
        "  curl -i {url}/introspect -H \"Authorization: Bearer $BACKEND\" -d \"token=$ADA\"\n  \
           curl -i {url}/revoke -d \"token=$ADA\""
    );
    axum::serve(listener, app).with_graceful_shutdown(stopped).await?;
    Ok(tokens.shutdown().await?)
}

/// Opens a new database, because the keys are new as well. A real host keeps both.
async fn database() -> Result<SqlitePool, Box<dyn Error + Send + Sync>> {
    for file in [DATABASE.to_owned(), format!("{DATABASE}-wal"), format!("{DATABASE}-shm")] {
        match std::fs::remove_file(file) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    let file = SqliteConnectOptions::new().filename(DATABASE).create_if_missing(true);
    Ok(SqlitePool::connect_with(file.journal_mode(SqliteJournalMode::Wal)).await?)
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
