//! A small axum host with personal access tokens: `cargo run --example server` (or `-- --port 8080`; port 0 takes a free
//! one and prints it).
//!
//! **Sign-in is a stub.** Whoever sends `X-Demo-User: ada` is Ada: no password, no session. A real host puts its own
//! session there and, where that is a cookie, guards the calls that change something against cross-site requests.
//! Ada is an editor, Bob a guest who may not make tokens. Tokens live in memory and go with the process.
//!
//! Ada makes a token. This is the one answer that holds its text:
//!
//! ```sh
//! curl -i localhost:3000/tokens -H 'X-Demo-User: ada' -H 'Content-Type: application/json' \
//!      -d '{"name":"ci","expires_in_days":30,"scopes":["datastores:read"]}'
//! TOKEN=...        # "bearer_token" of the answer
//! ```
//!
//! A script uses it (200). The scope does not let it write (403). Without a token: 401.
//!
//! ```sh
//! curl -i localhost:3000/datastores -H "Authorization: Bearer $TOKEN"
//! curl -i localhost:3000/datastores -H "Authorization: Bearer $TOKEN" -X POST
//! curl -i localhost:3000/datastores
//! ```
//!
//! Ada looks at her tokens and revokes this one; then it is refused (401). The client is not told why, the terminal of
//! the server is.
//!
//! ```sh
//! curl -i localhost:3000/tokens -H 'X-Demo-User: ada'
//! ID=...           # "id" of the token
//! curl -i localhost:3000/tokens/$ID -H 'X-Demo-User: ada' -X DELETE
//! curl -i localhost:3000/datastores -H "Authorization: Bearer $TOKEN"
//! ```
//!
//! Two credentials at once are a bad request (400), and Bob may not make tokens (403):
//!
//! ```sh
//! curl -i localhost:3000/datastores -H "Authorization: Bearer $TOKEN" -H 'Authorization: Bearer x'
//! curl -i localhost:3000/tokens -H 'X-Demo-User: bob' -H 'Content-Type: application/json' -d '{"name":"mine"}'
//! ```
//!
//! Digests are made with the keys of `DEMO_TOKEN_KEYS`, for example
//! `DEMO_TOKEN_KEYS="1:$(openssl rand -base64 32)" cargo run --example server`; without it, with a new key each time.

#![allow(clippy::print_stdout, reason = "the terminal is its log")]

use axum::extract::{ConnectInfo, FromRequestParts, Json, Path, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use patkit::service::PermissionDenied;
use patkit::{
    Actor, Keyring, ManageError, MemoryDirectory, MemoryStore, NewToken, Owner, OwnerId, OwnerKind, Reason,
    RejectReason, RoleCatalog, TokenId, TokenService, Verified, VerifyError,
};
use serde_json::{Value, json};
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;

type Tokens = Arc<TokenService<MemoryStore, MemoryDirectory>>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let tokens = service()?;
    let app = axum::Router::new()
        .route("/tokens", get(list_tokens).post(make_token))
        .route("/tokens/{id}", delete(revoke_token))
        .route("/datastores", get(read_datastores).post(make_datastore))
        .with_state(tokens.clone());

    // Last uses are written every few seconds, and once more at the end.
    let flusher = tokens.clone();
    tokio::spawn(async move { flusher.run_flusher(tokio::time::sleep).await });

    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port()?)).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(async { tokio::signal::ctrl_c().await.unwrap_or_default() })
        .await?;
    tokens.shutdown().await?;
    println!("stopped, with all last uses written");
    Ok(())
}

fn service() -> Result<Tokens, Box<dyn Error>> {
    let owner = |id: &str, role: &str| -> Result<Owner, Box<dyn Error>> {
        Ok(Owner::new(OwnerId::new(id)?, OwnerKind::Human).role(role))
    };
    let users: MemoryDirectory = [owner("ada", "editor")?, owner("bob", "guest")?].into_iter().collect();
    let roles = RoleCatalog::standard()
        .role("guest", &[], &["datastores:read"])
        .role("editor", &["member", "guest"], &["datastores:write"])
        .build()?;
    let keyring = if let Ok(text) = std::env::var("DEMO_TOKEN_KEYS") {
        Keyring::from_text(&text)?
    } else {
        println!("DEMO_TOKEN_KEYS is not set: the key is new and goes with the process");
        Keyring::ephemeral()?
    };
    let tokens = TokenService::builder(MemoryStore::new(), users)
        .brand("demo")
        .keyring(keyring)
        .roles(roles)
        .build()?;
    Ok(Arc::new(tokens))
}

fn port() -> Result<u16, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Ok(3000),
        ["--port", port] => Ok(port.parse()?),
        _ => Err("usage: server [--port PORT]".into()),
    }
}

// What a bearer token opens.

async fn read_datastores(Bearer(verified): Bearer) -> Result<Json<Value>, Refusal> {
    verified.require("datastores:read")?;
    Ok(Json(json!(["invoices", "orders"])))
}

async fn make_datastore(Bearer(verified): Bearer) -> Result<StatusCode, Refusal> {
    verified.require("datastores:write")?;
    Ok(StatusCode::CREATED)
}

/// A handler that takes this runs for a verified bearer token alone.
struct Bearer(Verified);

impl FromRequestParts<Tokens> for Bearer {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, tokens: &Tokens) -> Result<Self, Refusal> {
        let headers = parts.headers.get_all(AUTHORIZATION).iter().map(HeaderValue::as_bytes);
        Ok(Self(tokens.verify_headers(headers, peer(parts)).await?))
    }
}

/// Behind a proxy that you trust, take the address from what it says instead.
fn peer(parts: &Parts) -> Option<std::net::IpAddr> {
    let info = parts.extensions.get::<ConnectInfo<SocketAddr>>();
    info.map(|ConnectInfo(address)| address.ip())
}

// What a signed-in user does with tokens.

async fn make_token(
    SignedIn(actor): SignedIn,
    State(tokens): State<Tokens>,
    Json(body): Json<Value>,
) -> Result<Response, Refusal> {
    let new = wanted(&body).ok_or(Refusal::Invalid("name, expires_in_days, scopes".into()))?;
    let issued = tokens.generate(&actor, new).await?;
    let body = json!({ "bearer_token": issued.plaintext.expose_secret(), "token": issued.token });
    Ok((StatusCode::CREATED, [(CACHE_CONTROL, "no-store")], Json(body)).into_response())
}

async fn list_tokens(
    SignedIn(actor): SignedIn,
    State(tokens): State<Tokens>,
) -> Result<Json<Value>, Refusal> {
    let page = tokens.list(&actor, None, 50).await?;
    Ok(Json(json!({ "items": page.items, "next": page.next })))
}

async fn revoke_token(
    SignedIn(actor): SignedIn,
    State(tokens): State<Tokens>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let id: TokenId = id.parse().map_err(|_| Refusal::NotFound)?;
    let revoked = tokens.revoke(&actor, id, Reason::Owner).await?;
    Ok(Json(json!(revoked)))
}

/// What the body asks for. A field of another type is refused: taken for absent, a bad `scopes` would give everything.
fn wanted(body: &Value) -> Option<NewToken> {
    let mut new = NewToken::named(body.get("name")?.as_str()?);
    if let Some(days) = body.get("expires_in_days") {
        new = new.expires_in_days(days.as_i64()?);
    }
    if let Some(scopes) = body.get("scopes") {
        let scopes: Option<Vec<&str>> = scopes.as_array()?.iter().map(Value::as_str).collect();
        new = new.scope(scopes?);
    }
    Some(new)
}

/// The stub: believes what it is told. See the top of this file.
struct SignedIn(Actor);

impl FromRequestParts<Tokens> for SignedIn {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &Tokens) -> Result<Self, Refusal> {
        let name = parts.headers.get("x-demo-user").and_then(|name| name.to_str().ok());
        let owner = OwnerId::new(name.unwrap_or_default()).map_err(|_| Refusal::SignedOut)?;
        let actor = Actor::session(owner);
        Ok(Self(match peer(parts) {
            Some(address) => actor.from_address(address),
            None => actor,
        }))
    }
}

/// What the client is told instead of an answer. Every rejected credential gets the same one.
enum Refusal {
    /// No credential.
    SignedOut,
    /// A credential that was rejected, whatever the reason.
    InvalidToken,
    InvalidRequest,
    InsufficientScope(PermissionDenied),
    Forbidden,
    NotFound,
    Conflict(String),
    Invalid(String),
    Unavailable,
}

impl From<VerifyError> for Refusal {
    fn from(error: VerifyError) -> Self {
        // For the operator alone. Neither an id nor a reason is a secret.
        match &error {
            VerifyError::Rejected(rejected) => println!("rejected: {} {:?}", rejected.reason, rejected.token),
            error => println!("unavailable: {error:?}"),
        }
        match error.reject_reason() {
            Some(RejectReason::NoCredential) => Self::SignedOut,
            Some(RejectReason::InvalidRequest) => Self::InvalidRequest,
            Some(_) => Self::InvalidToken,
            None => Self::Unavailable,
        }
    }
}

impl From<PermissionDenied> for Refusal {
    fn from(denied: PermissionDenied) -> Self {
        Self::InsufficientScope(denied)
    }
}

impl From<ManageError> for Refusal {
    fn from(error: ManageError) -> Self {
        println!("not done: {error}");
        match error {
            ManageError::ActorRejected(_) => Self::SignedOut,
            ManageError::Forbidden { .. }
            | ManageError::ReasonNotAllowed(_)
            | ManageError::Attenuation(_) => Self::Forbidden,
            ManageError::NotFound => Self::NotFound,
            ManageError::Invalid(input) => Self::Invalid(input.to_string()),
            ManageError::TooManyTokens { .. } => Self::Conflict(error.to_string()),
            error if error.is_conflict() => Self::Conflict(error.to_string()),
            _ => Self::Unavailable,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, header, detail) = match self {
            Self::SignedOut => (StatusCode::UNAUTHORIZED, challenge(""), None),
            Self::InvalidToken => (StatusCode::UNAUTHORIZED, challenge(r#", error="invalid_token""#), None),
            Self::InvalidRequest => {
                (StatusCode::BAD_REQUEST, challenge(r#", error="invalid_request""#), None)
            }
            Self::InsufficientScope(denied) => (
                StatusCode::FORBIDDEN,
                challenge(&format!(r#", error="insufficient_scope", scope="{}""#, denied.permission)),
                Some(denied.to_string()),
            ),
            Self::Forbidden => (StatusCode::FORBIDDEN, None, None),
            Self::NotFound => (StatusCode::NOT_FOUND, None, None),
            Self::Conflict(detail) => (StatusCode::CONFLICT, None, Some(detail)),
            Self::Invalid(detail) => (StatusCode::UNPROCESSABLE_ENTITY, None, Some(detail)),
            Self::Unavailable => {
                let retry = HeaderValue::from_static("1");
                (StatusCode::SERVICE_UNAVAILABLE, Some((RETRY_AFTER, retry)), None)
            }
        };
        let mut body = json!({ "status": status.as_u16(), "title": status.canonical_reason() });
        if let (Some(fields), Some(detail)) = (body.as_object_mut(), detail) {
            fields.insert("detail".into(), detail.into());
        }
        let mut headers: HeaderMap = header.into_iter().collect();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        (status, headers, body.to_string()).into_response()
    }
}

/// RFC 6750, section 3. What stands in it comes from this file, never from the request.
fn challenge(error: &str) -> Option<(axum::http::HeaderName, HeaderValue)> {
    let value = HeaderValue::try_from(format!(r#"Bearer realm="demo"{error}"#));
    value.ok().map(|value| (WWW_AUTHENTICATE, value))
}
