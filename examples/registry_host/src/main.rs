//! A host of git repositories and packages, whose clients send tokens in carriers of their own:
//! `cargo run -p registry_host -- FOLDER`. `scripts/clients` runs the clients.
//!
//! It makes a token for ada, prints it, and serves the files of FOLDER on a free port (or
//! `-- FOLDER 3000`) until Ctrl-C or SIGTERM. Tokens are in memory.
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
use axum::{Router, routing::any, routing::get};
use patkit::http::{
    Authenticator, BasicCarrier, Challenge, ManagementApi, Problem, RequirePermission,
};
use patkit::{
    Actor, Keyring, MemoryDirectory, MemoryStore, NewToken, Owner, OwnerId, OwnerKind, RoleCatalog,
    TokenService, Verified,
};
use std::path::{Component, PathBuf};
use std::{env, error::Error, net::SocketAddr, sync::Arc};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let folder = arguments.next().ok_or("usage: registry_host FOLDER [PORT]")?;
    let folder = PathBuf::from(folder).canonicalize()?;
    let port = arguments.next().unwrap_or_default().parse().unwrap_or(0);

    let ada = OwnerId::new("ada")?;
    let users = MemoryDirectory::new();
    users.put(Owner::new(ada.clone(), OwnerKind::Human).with_role("member"));
    let grants = ["code:read", "code:write", "packages:read"];
    let roles = RoleCatalog::standard_builder().grant("member", grants).build()?;
    let tokens = TokenService::builder(MemoryStore::new(), users).brand("acme").roles(roles);
    let tokens = Arc::new(tokens.keyring(Keyring::ephemeral()?).build()?);
    let issued = tokens.generate(&Actor::signed_in(ada), NewToken::named("first")).await?;

    // Each part accepts only the carriers of its clients. All accept `Authorization: Bearer`, as npm
    // sends it.
    let plain = Authenticator::new(tokens.clone());
    let basic = plain.clone().accept_basic(BasicCarrier::any_user());
    let header = basic.clone().accept_header("X-API-Key")?;
    let bare = plain.clone().accept_bare();

    let reads = RequirePermission::new("packages:read")?;
    let python = Router::new().route("/simple/{*path}", get(file));
    let npm = Router::new().route("/npm/-/whoami", get(npm_user)).route("/npm/{*path}", get(file));
    let cargo = Router::new().route("/cargo/{*path}", get(file));
    let app = Router::new()
        .merge(python.route_layer(reads.clone()).route_layer(basic.required()))
        .merge(npm.route_layer(reads.clone()).route_layer(plain.required()))
        .merge(cargo.route_layer(reads).route_layer(bare.required()))
        .merge(Router::new().route("/git/{*path}", any(git)).route_layer(basic.required()))
        .merge(Router::new().route("/whoami", get(user)).route_layer(header.required()))
        .with_state(folder)
        .nest_service("/api", ManagementApi::new(plain, |_: &Parts| None::<Actor>))
        .into_make_service_with_connect_info::<SocketAddr>();

    let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stopped = async move { tokio::select!(_ = int.recv() => (), _ = term.recv() => ()) };
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("token {}", issued.plaintext.expose_secret());
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app).with_graceful_shutdown(stopped).await?;
    Ok(tokens.shutdown().await?)
}

/// Answers `/whoami`.
async fn user(token: Verified) -> String {
    format!("you are {}\n", token.owner().id())
}

/// Answers `npm whoami`.
async fn npm_user(token: Verified) -> impl IntoResponse {
    // An owner id may hold characters that JSON escapes, but "ada" does not.
    ([(CONTENT_TYPE, "application/json")], format!(r#"{{"username":"{}"}}"#, token.owner().id()))
}

/// Answers git, which needs `code:write` to push and `code:read` for the rest.
async fn git(
    State(folder): State<PathBuf>,
    Path(path): Path<String>,
    token: Verified,
    challenge: Challenge,
    request: Request,
) -> Result<Response, Problem> {
    let is_push = path.ends_with("/git-receive-pack")
        || request.uri().query() == Some("service=git-receive-pack");
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
