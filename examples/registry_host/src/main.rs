//! A host of git repositories and packages, whose clients send tokens in carriers of their own:
//! `cargo run -p registry_host -- FOLDER`. `scripts/clients` runs the clients.
//!
//! It makes a token, prints a `curl` line to try, and serves the files of FOLDER on a free port (or
//! `-- FOLDER --port 3000`) until Ctrl-C or SIGTERM. Tokens are in memory.
//!
//! | path | client | serves |
//! |---|---|---|
//! | `/git/` | git | the bare repositories in `FOLDER/git`, to clone and to push |
//! | `/simple/` | pip | a Python package index (PEP 503) in `FOLDER/simple` |
//! | `/npm/` | npm | the packages in `FOLDER/npm`, and `/npm/-/whoami` |
//! | `/cargo/` | cargo | a sparse index and its crates in `FOLDER/cargo` |
//! | `/whoami` | curl, wget | the owner of the token |
//! | `/api/` | | the management API, by which a token makes and revokes tokens |

mod cgi;

use axum::extract::{OriginalUri, Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{StatusCode, request::Parts};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::any, routing::get};
use patkit::http::{
    Authenticator, BasicCarrier, Challenge, ManagementApi, Problem, RequirePermission,
};
use patkit::{
    Actor, Keyring, MemoryDirectory, MemoryStore, NewToken, Owner, OwnerId, OwnerKind, RoleCatalog,
    TokenService, Verified,
};
use std::collections::BTreeMap;
use std::path::{Component, PathBuf};
use std::{env, error::Error, net::SocketAddr, sync::Arc};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = env::args().nth(1).ok_or("usage: registry_host FOLDER [--port PORT]")?;
    let folder = PathBuf::from(folder).canonicalize()?;
    let port = env::args().skip_while(|argument| argument != "--port").nth(1);
    let port = port.unwrap_or_default().parse().unwrap_or(0);

    let ada = OwnerId::new("ada")?;
    let users = MemoryDirectory::new();
    users.put(Owner::new(ada.clone(), OwnerKind::Human).with_role("member"));
    let grants = ["code:read", "code:write", "packages:read"];
    let roles = RoleCatalog::standard_builder().grant("member", grants).build()?;
    let tokens = TokenService::builder(MemoryStore::new(), users).brand("acme").roles(roles);
    let tokens = Arc::new(tokens.keyring(Keyring::ephemeral()?).build()?);
    let flusher = tokens.clone();
    tokio::spawn(async move { flusher.run_flusher(tokio::time::sleep).await });
    let issued = tokens.generate(&Actor::signed_in(ada), NewToken::named("first")).await?;

    // Each part accepts only what its clients send, beside `Authorization: Bearer`.
    let bearer = Authenticator::new(tokens.clone());
    let basic = bearer.clone().accept_basic(BasicCarrier::any_user());
    let bare = bearer.clone().accept_bare();
    let reads = RequirePermission::new("packages:read")?;

    let git = Router::new()
        .route("/git/{*path}", any(git)) // requires code:read or code:write
        .route_layer(basic.required());
    let python = Router::new()
        .route("/simple/{*path}", get(file))
        .route_layer(reads.clone())
        .route_layer(basic.required());
    let npm = Router::new()
        .route("/npm/-/whoami", get(npm_user))
        .route("/npm/{*path}", get(file))
        .route_layer(reads.clone())
        .route_layer(bearer.required());
    let cargo = Router::new()
        .route("/cargo/{*path}", get(file))
        .route_layer(reads)
        .route_layer(bare.required());
    let whoami = Router::new()
        .route("/whoami", get(user))
        .route_layer(basic.accept_header("X-API-Key")?.required());

    let app = Router::new()
        .merge(git.merge(python).merge(npm).merge(cargo).with_state(folder))
        .merge(whoami)
        .nest_service("/api", ManagementApi::new(bearer, |_: &Parts| None::<Actor>))
        .into_make_service_with_connect_info::<SocketAddr>();

    let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stopped = async move { tokio::select!(_ = int.recv() => (), _ = term.recv() => ()) };
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    println!("listening on {url}\n");
    let text = issued.plaintext.expose_secret();
    println!("  curl -i {url}/whoami -H 'Authorization: Bearer {text}'");
    axum::serve(listener, app).with_graceful_shutdown(stopped).await?;
    Ok(tokens.shutdown().await?)
}

/// Answers `/whoami`.
async fn user(token: Verified) -> String {
    format!("you are {}\n", token.owner().id())
}

/// Answers `npm whoami`.
async fn npm_user(token: Verified) -> Json<BTreeMap<&'static str, String>> {
    Json(BTreeMap::from([("username", token.owner().id().to_string())]))
}

/// Answers git, which needs `code:write` to push and `code:read` for the rest.
async fn git(
    State(folder): State<PathBuf>,
    Path(path): Path<String>,
    token: Verified,
    challenge: Challenge,
    request: Request,
) -> Result<Response, Problem> {
    let query = request.uri().query().unwrap_or_default();
    let is_push = path.contains("git-receive-pack") || query.contains("git-receive-pack");
    let permission = if is_push { "code:write" } else { "code:read" };
    token.require(permission).map_err(|denied| challenge.denied(&denied))?;
    let answer = cgi::http_backend(&folder.join("git"), &path, token.owner().id(), request).await;
    Ok(answer.unwrap_or_else(|error| {
        eprintln!("git http-backend: {error}");
        StatusCode::BAD_GATEWAY.into_response()
    }))
}

/// Answers with a file of the folder, or with the `index.html` of a folder below.
async fn file(
    State(folder): State<PathBuf>,
    OriginalUri(uri): OriginalUri,
    Path(path): Path<String>,
) -> Response {
    let first = uri.path().split('/').nth(1).unwrap_or_default();
    let mut file = PathBuf::from(first).join(&path);
    if !file.components().all(|part| matches!(part, Component::Normal(_))) {
        return StatusCode::NOT_FOUND.into_response();
    }
    if path.ends_with('/') {
        file.push("index.html");
    }
    let is_page = file.extension().is_some_and(|extension| extension == "html");
    let kind = if is_page { "text/html" } else { "application/octet-stream" };
    match tokio::fs::read(folder.join(file)).await {
        Ok(bytes) => ([(CONTENT_TYPE, kind)], bytes).into_response(),
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}
