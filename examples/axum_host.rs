//! An axum host on PostgreSQL with personal access tokens, their API and their settings page; the README shows it.
//!
//! It wants `DATABASE_URL`, whose database has a table `users (id text, role text, enabled boolean)`, the keys in
//! `ACME_TOKEN_KEYS` (`1:` and the base64 of 32 random bytes), and an address in `LISTEN`:
//! `cargo run --example axum_host --features postgres,cache,console`.

#![allow(clippy::print_stdout, reason = "an example")]

// README: from here
use axum::{Router, http::header::COOKIE, http::request::Parts, routing::get};
use patkit::http::{Authenticator, Console, ManagementApi};
use patkit::owner::{Directory, DirectoryError, Owner, OwnerId, OwnerKind, Realm};
use patkit::{Actor, CachedStore, Keyring, PostgresStore, Snapshot, TokenService, Verified};
use std::{error::Error, net::SocketAddr, sync::Arc};

/// Your users.
struct Users(sqlx::PgPool);

impl Directory for Users {
    async fn find(&self, _: &Realm, id: &OwnerId) -> Result<Option<Snapshot<Owner>>, DirectoryError> {
        let query = sqlx::query_as("SELECT role, enabled FROM users WHERE id = $1").bind(id.as_str());
        let user: Option<(String, bool)> =
            query.fetch_optional(&self.0).await.map_err(DirectoryError::new)?;
        Ok(user.map(|(role, on)| Owner::new(id.clone(), OwnerKind::Human).role(&role).enabled(on).into()))
    }
}

/// Your sessions: here, whoever the cookie names. Yours looks the cookie up.
fn signed_in(request: &Parts) -> Option<Actor> {
    let cookie = request.headers.get(COOKIE)?.to_str().ok()?;
    OwnerId::new(cookie.strip_prefix("session=")?).ok().map(Actor::session)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let pool = sqlx::PgPool::connect(&std::env::var("DATABASE_URL")?).await?;
    let store = CachedStore::builder(PostgresStore::builder(pool.clone()).migrate().await?).build()?;
    let keyring = Keyring::from_env("ACME_TOKEN_KEYS")?;
    let tokens = Arc::new(TokenService::builder(store, Users(pool)).brand("acme").keyring(keyring).build()?);
    let flusher = tokens.clone();
    tokio::spawn(async move { flusher.run_flusher(tokio::time::sleep).await });

    let authenticator = Authenticator::new(tokens.clone());
    let api = ManagementApi::new(authenticator.clone(), signed_in);
    let app = Router::new()
        .route("/whoami", get(async |token: Verified| token.owner().id().to_string()))
        .route_layer(authenticator.required()) // what stands above needs a token
        .nest_service("/settings/tokens", Console::new(&api, "/api").router::<()>())
        .nest_service("/api", api.router::<()>())
        .into_make_service_with_connect_info::<SocketAddr>();
    let listener = tokio::net::TcpListener::bind(std::env::var("LISTEN")?).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app).with_graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) }).await?;
    Ok(tokens.shutdown().await?)
}
