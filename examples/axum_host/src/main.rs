//! An axum host on PostgreSQL with personal access tokens, their API and their settings page. The
//! README shows it.
//!
//! Run it with `cargo run -p axum_host`. `DATABASE_URL` must name a database that has a table
//! `users (id text, role text, enabled boolean)`, `ACME_TOKEN_KEYS` holds the keys (`1:` and the
//! base64 of 32 random bytes), and `LISTEN` is an address. It stops on Ctrl-C and SIGTERM, after it
//! has written all last uses. On Windows, wait for `tokio::signal::ctrl_c` instead.

// README: from here
use axum::{Router, http::header::COOKIE, http::request::Parts, routing::get};
use patkit::http::{Authenticator, Console, ManagementApi};
use patkit::owner::{Directory, DirectoryError, Owner, OwnerId, OwnerKind, Realm};
use patkit::{Actor, CachedStore, Keyring, SqlStore, TokenService, Verified};
use sqlx::PgPool;
use std::{env, error::Error, net::SocketAddr, sync::Arc, time::Duration};
use tokio::signal::unix::{SignalKind, signal};
use tokio::{select, time::sleep};

/// Your users.
struct Users(PgPool);

impl Directory for Users {
    async fn find(&self, _: &Realm, id: &OwnerId) -> Result<Option<Arc<Owner>>, DirectoryError> {
        let query = sqlx::query_as("SELECT role, enabled FROM users WHERE id = $1");
        let row = query.bind(id.as_str()).fetch_optional(&self.0).await;
        let row: Option<(String, bool)> = row.map_err(DirectoryError::new)?;
        let owner = Owner::new(id.clone(), OwnerKind::Human);
        Ok(row.map(|(role, enabled)| owner.with_role(&role).with_enabled(enabled).into()))
    }
}

/// Your sessions. This example trusts the cookie; yours looks it up.
fn signed_in(parts: &Parts) -> Option<Actor> {
    let mut cookies = parts.headers.get(COOKIE)?.to_str().ok()?.split("; ");
    OwnerId::new(cookies.find_map(|one| one.strip_prefix("session="))?).ok().map(Actor::signed_in)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let db = PgPool::connect(&env::var("DATABASE_URL")?).await?;
    let store = SqlStore::builder(db.clone()).migrate().await?;
    let store = CachedStore::builder(store).build()?;
    let tokens = TokenService::builder(store, Users(db)).brand("acme");
    let tokens = Arc::new(tokens.keyring(Keyring::from_env("ACME_TOKEN_KEYS")?).build()?);
    tokens.check().await?; // finds wrong and missing keys before your users do
    let (flusher, follower) = (tokens.clone(), tokens.clone());
    tokio::spawn(async move { flusher.run_flusher(sleep).await });
    let second = Duration::from_secs(1);
    tokio::spawn(async move { follower.store().run_following(second, sleep).await });

    let api = ManagementApi::new(Authenticator::new(tokens.clone()), signed_in);
    let app = Router::new()
        .route("/whoami", get(async |token: Verified| token.owner().id().to_string()))
        .route_layer(api.authenticator().required()) // the routes above need a token
        .nest_service("/settings/tokens", Console::new(&api, "/api"))
        .nest_service("/api", api)
        .into_make_service_with_connect_info::<SocketAddr>();
    let listener = tokio::net::TcpListener::bind(env::var("LISTEN")?).await?;
    let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stopped = async move { select!(_ = int.recv() => (), _ = term.recv() => ()) };
    axum::serve(listener, app).with_graceful_shutdown(stopped).await?;
    Ok(tokens.shutdown().await?)
}
