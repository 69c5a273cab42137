//! An axum host with every kind of session in front of the management API:
//! `ACME_JWT_SECRET=$(openssl rand -base64 32) cargo run -p sessions_host`.
//!
//! | who | signs in by | proves itself by | may change tokens |
//! |---|---|---|---|
//! | a browser | the form at `/` | a cookie | from this site's pages |
//! | an app | `POST /app/sign-in` | a JWT in `Authorization: Bearer` | always |
//! | a script | a token | the token in `Authorization: Bearer` | with its permissions |
//!
//! Users, sessions and tokens are in memory. It prints `curl` lines to try, and serves on a free
//! port (or `-- --port 3000`) until Ctrl-C or SIGTERM.

mod cookie;
mod hs256;
mod jwt;

use axum::extract::{Form, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{StatusCode, request::Parts};
use axum::routing::{get, post};
use axum::{Extension, Router, middleware::from_fn_with_state};
use axum_login::{AuthManagerLayerBuilder, AuthnBackend};
use cookie::{Account, Accounts, Session, SignIn};
use jwt::{Claims, Jwts, accept_jwt};
use patkit::http::{Authenticator, Challenge, Console, ManagementApi, Problem};
use patkit::{
    Actor, Keyring, MemoryDirectory, MemoryStore, Owner, OwnerId, OwnerKind, TokenService, Verified,
};
use std::{env, error::Error, net::SocketAddr, sync::Arc};
use tokio::net::TcpListener;
use tower_sessions::{MemoryStore as SessionStore, SessionManagerLayer};

/// Returns who is signed in, for the management API. It is called for requests without a token.
fn signed_in(request: &Parts) -> Option<Actor> {
    if let Some(claims) = request.extensions.get::<Claims>() {
        // No browser sends the header by itself, so no page of another site can forge the request.
        return Some(Actor::signed_in(OwnerId::new(&claims.sub).ok()?).proven_by_header());
    }
    // A request that has brought a credential is never the cookie's.
    if request.headers.contains_key(AUTHORIZATION) {
        return None;
    }
    let account = request.extensions.get::<Session>()?.user.as_ref()?;
    OwnerId::new(account.name).ok().map(Actor::signed_in)
}

/// A route that takes a token or a JWT.
async fn whoami(
    token: Option<Verified>,
    jwt: Option<Extension<Claims>>,
    challenge: Challenge,
) -> Result<String, Problem> {
    match (token, jwt) {
        (Some(token), _) => Ok(format!("{}, by a token\n", token.owner().id())),
        (None, Some(Extension(claims))) => Ok(format!("{}, by a JWT\n", claims.sub)),
        (None, None) => Err(challenge.no_credential()),
    }
}

/// Signs an app in.
async fn app_sign_in(
    State((accounts, jwts)): State<(Accounts, Arc<Jwts>)>,
    Form(form): Form<SignIn>,
) -> Result<String, StatusCode> {
    let Ok(account) = accounts.authenticate(form).await;
    let account = account.ok_or(StatusCode::UNAUTHORIZED)?;
    jwts.issue(account.name).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let secret = env::var("ACME_JWT_SECRET").unwrap_or_default();
    if secret.len() < 32 {
        return Err("ACME_JWT_SECRET has fewer than 32 bytes; set it to the output of \
                    `openssl rand -base64 32`"
            .into());
    }
    let jwts = Arc::new(Jwts::new(secret.as_bytes())?);
    let accounts = [("ada", "analytical"), ("mel", "optimal")];
    let accounts = Accounts(accounts.map(|(name, password)| Account { name, password }).into());
    let users = MemoryDirectory::new();
    for account in accounts.0.iter() {
        users.put(Owner::new(OwnerId::new(account.name)?, OwnerKind::Human).with_role("member"));
    }
    let tokens = TokenService::builder(MemoryStore::new(), users);
    let tokens = Arc::new(tokens.brand("acme").keyring(Keyring::ephemeral()?).build()?);
    let flusher = tokens.clone();
    tokio::spawn(async move { flusher.run_flusher(tokio::time::sleep).await });

    // JWTs have the scheme of tokens, and are left to the layer for JWTs.
    let authenticator = Authenticator::new(tokens.clone()).ignore_foreign();
    let api = ManagementApi::new(authenticator.clone(), signed_in);
    let page = Console::new(&api, "/api");
    let with_jwt = from_fn_with_state(jwts.clone(), accept_jwt);
    let with_cookie = SessionManagerLayer::new(SessionStore::default());
    // Only because this example has no TLS: a browser then sends the cookie over plain HTTP.
    let with_cookie = with_cookie.with_secure(false);
    let with_cookie = AuthManagerLayerBuilder::new(accounts.clone(), with_cookie).build();

    let app = Router::new()
        .route("/whoami", get(whoami))
        .route_layer(with_jwt.clone())
        .route_layer(authenticator.optional()) // before the layer for JWTs
        .merge(Router::new().nest_service("/api", api).layer(with_jwt))
        .nest_service("/settings/tokens", page)
        .route("/", get(cookie::home))
        .route("/sign-in", post(cookie::sign_in))
        .route("/sign-out", post(cookie::sign_out))
        .route("/app/sign-in", post(app_sign_in).with_state((accounts, jwts)))
        .layer(with_cookie);

    let stopped = asked_to_stop()?;
    let port = env::args().skip_while(|argument| argument != "--port").nth(1);
    let port = port.unwrap_or_default().parse().unwrap_or(0);
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    println!("listening on {url}\n\n  the form is at {url}/, for ada with the password analytical");
    println!("  jwt=$(curl -s {url}/app/sign-in -d user=ada -d password=analytical)");
    println!("  curl -i {url}/whoami -H \"Authorization: Bearer $jwt\"");
    let create = r#"--json '{"name":"ci"}' -H "Authorization: Bearer $jwt""#;
    println!("  curl -i {url}/api/user-tokens {create}");
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, app).with_graceful_shutdown(stopped).await?;
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
