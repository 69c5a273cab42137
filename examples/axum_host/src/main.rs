//! An axum host on PostgreSQL with personal access tokens, their API and their settings page. The
//! README shows it.
//!
//! Run it with `cargo run -p axum_host`. `DATABASE_URL` must name a database that has a table
//! `users (id text, role text, enabled boolean)`, `ACME_TOKEN_KEYS` holds the keys (`1:` and the
//! base64 of 32 random bytes), and `LISTEN` is an address. It stops on Ctrl-C and SIGTERM, after it
//! has written all last uses. On Windows there is only `ctrl_c`.

// README: from here
use axum::{Router, http::header::COOKIE, http::request::Parts, routing::get};
use patkit::http::{Authenticator, Console, ManagementApi};
use patkit::owner::{Directory, DirectoryError, Owner, OwnerId, OwnerKind, Realm};
use patkit::{Actor, CachedStore, Keyring, PostgresStore, TokenService, Verified};
use std::{error::Error, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    join, select, signal::ctrl_c, signal::unix::SignalKind, signal::unix::signal, time::sleep,
};

/// Your users.
struct Users(sqlx::PgPool);

impl Directory for Users {
    async fn find(&self, _: &Realm, id: &OwnerId) -> Result<Option<Arc<Owner>>, DirectoryError> {
        let query =
            sqlx::query_as("SELECT role, enabled FROM users WHERE id = $1").bind(id.as_str());
        let row: Option<(String, bool)> =
            query.fetch_optional(&self.0).await.map_err(DirectoryError::new)?;
        Ok(row.map(|(role, on)| {
            Owner::new(id.clone(), OwnerKind::Human).with_role(&role).with_enabled(on).into()
        }))
    }
}

/// Your sessions: here, whoever the cookie names. Yours looks the cookie up.
fn signed_in(parts: &Parts) -> Option<Actor> {
    OwnerId::new(parts.headers.get(COOKIE)?.to_str().ok()?.strip_prefix("session=")?)
        .ok()
        .map(Actor::signed_in)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let pool = sqlx::PgPool::connect(&std::env::var("DATABASE_URL")?).await?;
    let store =
        CachedStore::builder(PostgresStore::builder(pool.clone()).migrate().await?).build()?;
    let keyring = Keyring::from_env("ACME_TOKEN_KEYS")?;
    let tokens =
        Arc::new(TokenService::builder(store, Users(pool)).brand("acme").keyring(keyring).build()?);
    tokens.check().await?; // wrong and missing keys are found here, not by your users
    let (jobs, mut terminated) = (tokens.clone(), signal(SignalKind::terminate())?);
    let second = Duration::from_secs(1);
    tokio::spawn(async move {
        join!(jobs.run_flusher(sleep), jobs.store().run_following(second, sleep))
    });

    let api = ManagementApi::new(Authenticator::new(tokens.clone()), signed_in);
    let app = Router::new()
        .route("/whoami", get(async |token: Verified| token.owner().id().to_string()))
        .route_layer(api.authenticator().required()) // what stands above needs a token
        .nest_service("/settings/tokens", Console::new(&api, "/api").router::<()>())
        .nest_service("/api", api.router::<()>())
        .into_make_service_with_connect_info::<SocketAddr>();
    let listener = tokio::net::TcpListener::bind(std::env::var("LISTEN")?).await?;
    let stopped = async move { select!(_ = ctrl_c() => (), _ = terminated.recv() => ()) };
    axum::serve(listener, app).with_graceful_shutdown(stopped).await?;
    Ok(tokens.shutdown().await?)
}
