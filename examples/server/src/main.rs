//! A complete axum host with personal access tokens: `cargo run -p server`.
//!
//! It creates a SQLite file for its tokens, has four demo users, and serves
//!
//! | path | what |
//! |---|---|
//! | `/` | the settings page |
//! | `/api/user-tokens` | the management API |
//! | `/api/openapi.json` | its `OpenAPI` document, which is also written beside the database |
//! | `/demo/…` | an API of the host's own, which tokens open |
//! | `/sign-in` | the stub of a sign-in |
//!
//! Options: `--port 3000` (0 chooses a free port, which is printed), `--database-url sqlite:FILE`
//! or `postgres://…`, `--print-openapi`.
//!
//! **Sign-in is a stub**: it asks for no password. A real host has its own sessions. Mel is a
//! member, Max a manager, Ada an admin, and `ci-bot` a service user whose tokens Ada manages.
//!
//! Ada signs in and makes a token. Only this response contains the token's text:
//!
//! ```sh
//! curl -s localhost:3000/sign-in -c jar -d user=ada
//! curl -i localhost:3000/api/user-tokens -b jar -H 'Sec-Fetch-Site: same-origin' \
//!      -H 'Content-Type: application/json' \
//!      -d '{"name":"ci","expires_in_days":30,"scopes":["datastores:read"]}'
//! TOKEN=...        # "bearer_token" of the answer
//! ```
//!
//! A script uses the token (200). The scope does not allow it to write (403). A request without a
//! token is refused (401).
//!
//! ```sh
//! curl -i localhost:3000/demo/datastores -H "Authorization: Bearer $TOKEN"
//! curl -i localhost:3000/demo/datastores -H "Authorization: Bearer $TOKEN" -X POST
//! curl -i localhost:3000/demo/datastores
//! ```
//!
//! The token reads its own record and revokes itself. Then it is refused (401). The client does not
//! learn why, but the terminal of the server shows the reason.
//!
//! ```sh
//! curl -i localhost:3000/api/user-tokens/current -H "Authorization: Bearer $TOKEN"
//! curl -i localhost:3000/api/user-tokens/current -H "Authorization: Bearer $TOKEN" -X DELETE
//! curl -i localhost:3000/demo/datastores -H "Authorization: Bearer $TOKEN"
//! ```
//!
//! `DEMO_TOKEN_KEYS` holds the keys of the digests, for example
//! `DEMO_TOKEN_KEYS="1:$(openssl rand -base64 32)"`. The server does not start if a known key id
//! has another key. If the variable is not set, each start creates a new key, and earlier tokens no
//! longer verify.

use axum::Router;
use axum::extract::{Form, State};
use axum::http::StatusCode;
use axum::http::header::{COOKIE, LOCATION, SET_COOKIE};
use axum::http::request::Parts;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use patkit::http::{
    Authenticator, ClientAddress, Console, Incident, ManagementApi, Permitted, RequirePermission,
    RequiredPermission, openapi,
};
use patkit::store::{ChangeFeed, KeyChecks};
use patkit::{
    Actor, CachedStore, Keyring, MemoryDirectory, Owner, OwnerId, OwnerKind, RoleCatalog, SqlStore,
    TokenService, TokenStore, Verified,
};
use serde::Deserialize;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use std::collections::HashMap;
use std::error::Error;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;

type Failure = Box<dyn Error + Send + Sync>;

/// The demo's users: id, name, kind, role.
const USERS: [(&str, &str, OwnerKind, &str); 4] = [
    ("mel", "Mel Member", OwnerKind::Human, "member"),
    ("max", "Max Manager", OwnerKind::Human, "manager"),
    ("ada", "Ada Admin", OwnerKind::Human, "admin"),
    ("ci-bot", "CI bot", OwnerKind::Service, "robot"),
];

/// The signed-in user by the value of the session cookie. A real host has its own sessions.
type Sessions = Arc<Mutex<HashMap<String, OwnerId>>>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let options = Options::read()?;
    if options.print_openapi {
        println!("{}", openapi("/api").to_pretty_json()?);
        return Ok(());
    }
    let listener = TcpListener::bind(("127.0.0.1", options.port)).await?;
    if options.database_url.starts_with("postgres") {
        let pool = PgPoolOptions::new().connect(&options.database_url).await?;
        serve(SqlStore::builder(pool).migrate().await?, listener).await
    } else {
        let file = SqliteConnectOptions::from_str(&options.database_url)?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal);
        println!("tokens are in {}", file.get_filename().display());
        let document = file.get_filename().with_extension("openapi.json");
        std::fs::write(&document, openapi("/api").to_pretty_json()?)?;
        println!("the OpenAPI document is in {}", document.display());
        let pool = SqlitePoolOptions::new().connect_with(file).await?;
        serve(SqlStore::builder(pool).migrate().await?, listener).await
    }
}

/// Serves requests over a store until the process is asked to stop.
async fn serve<S>(store: S, listener: TcpListener) -> Result<(), Failure>
where
    S: TokenStore + ChangeFeed + KeyChecks + 'static,
{
    let cache = Arc::new(CachedStore::builder(store).build()?);
    let lasting_keys = lasting_keys()?;
    let keys_last = lasting_keys.is_some();
    let keyring = match lasting_keys {
        Some(keyring) => keyring,
        None => Keyring::ephemeral()?,
    };
    let tokens = TokenService::builder(cache.clone(), directory()?)
        .brand("demo")
        .keyring(keyring)
        .roles(roles()?)
        .audit_refusals(1)
        .build()?;
    let tokens = Arc::new(tokens);
    if keys_last {
        println!("the keys are right: {}", tokens.check().await?);
    }
    let sessions = Sessions::default();

    let authenticator = Authenticator::new(tokens.clone())
        .client_address(ClientAddress::connection())
        .on_incident(log);
    let signed_in = sessions.clone();
    let api = ManagementApi::builder(authenticator.clone(), move |request: &Parts| {
        signed_in_user(&signed_in, request)
    })
    .limit_generation(1_000, Duration::from_secs(60))
    .build();
    let console = Console::builder(&api, "/api")
        .sign_in("/sign-in")
        .scopes(["datastores:read", "datastores:write"])?
        .service_user(&OwnerId::new("ci-bot")?, "CI bot")
        .build();

    // The routes that tokens open. One layer covers all of them, and each route requires a
    // permission, either on the route or in the signature of its handler.
    let writes = RequirePermission::new("datastores:write")?;
    let demo = Router::new()
        .route("/whoami", get(whoami))
        .route("/hello", get(hello))
        .route("/datastores", get(read_datastores))
        .route("/datastores", post(make_datastore).layer(writes))
        .route_layer(authenticator.required())
        .route("/open", get(hello));

    let app = Router::new()
        .nest_service("/api", api)
        .route("/api/openapi.json", get(async || axum::Json(openapi("/api"))))
        .nest("/demo", demo)
        .route("/sign-in", get(sign_in_page).post(sign_in).with_state(sessions))
        .route("/favicon.ico", get(async || StatusCode::NO_CONTENT))
        .fallback_service(console);

    // Writes last uses every few seconds, and follows the changes of other processes.
    let flusher = tokens.clone();
    tokio::spawn(async move { flusher.run_flusher(tokio::time::sleep).await });
    tokio::spawn(async move {
        let Err(error) = cache.run_following(Duration::from_millis(500), tokio::time::sleep).await;
        println!("changes of other processes are not followed: {error}");
    });

    let stopped = asked_to_stop()?;
    let url = format!("http://{}", listener.local_addr()?);
    println!("listening on {url}\n\nOpen it in a browser, or try:\n{}", curl_lines(&url));
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(stopped)
        .await?;
    tokens.shutdown().await?;
    println!("stopped, with all last uses written");
    Ok(())
}

fn directory() -> Result<MemoryDirectory, Failure> {
    let users = USERS.iter().map(|(id, name, kind, role)| {
        Ok::<_, Failure>(Owner::new(OwnerId::new(id)?, *kind).with_name(name).with_role(role))
    });
    users.collect()
}

fn roles() -> Result<RoleCatalog, Failure> {
    let roles = RoleCatalog::standard_builder()
        .grant("member", ["datastores:read"])
        .grant("manager", ["datastores:write"])
        .grant("admin", ["scim:*"])
        .role("robot")
        .grant("robot", ["datastores:read", "datastores:write"]);
    Ok(roles.build()?)
}

/// Returns the keys of the environment, or `None` if they are not set. A real host always sets
/// them.
fn lasting_keys() -> Result<Option<Keyring>, Failure> {
    if std::env::var_os("DEMO_TOKEN_KEYS").is_some() {
        return Ok(Some(Keyring::from_env("DEMO_TOKEN_KEYS")?));
    }
    println!(
        "DEMO_TOKEN_KEYS is not set: the key is new, and tokens of an earlier start do not verify"
    );
    Ok(None)
}

/// Prints an incident for the operator only. Ids and reasons are not secrets.
fn log(incident: Incident<'_>) {
    match incident {
        Incident::Refused(patkit::VerifyError::Rejected(rejected)) => {
            println!("rejected: {} {:?}", rejected.reason, rejected.token);
        }
        incident => println!("{incident:?}"),
    }
}

// Handlers that a bearer token opens.

struct ReadDatastores;

impl RequiredPermission for ReadDatastores {
    const PERMISSION: &'static str = "datastores:read";
}

async fn whoami(token: Verified) -> String {
    format!("{}, by the token {}", token.owner().id(), token.token().name())
}

/// Answers `/demo/hello`, which needs a token, and `/demo/open`, which does not.
async fn hello() -> &'static str {
    "hello"
}

async fn read_datastores(_: Permitted<ReadDatastores>) -> axum::Json<[&'static str; 2]> {
    axum::Json(["invoices", "orders"])
}

async fn make_datastore() -> StatusCode {
    StatusCode::CREATED
}

// The stub of the sign-in.

async fn sign_in_page() -> Html<String> {
    let humans = USERS.iter().filter(|(_, _, kind, _)| *kind == OwnerKind::Human);
    let buttons: Vec<String> = humans
        .map(|(id, name, ..)| format!("<p><button name=user value={id}>{name}</button>"))
        .collect();
    let buttons = buttons.concat();
    Html(format!(
        "<!doctype html><html lang=en><title>Sign in</title><h1>Sign in as</h1><form method=post>{buttons}</form>"
    ))
}

#[derive(Deserialize)]
struct SignIn {
    user: String,
}

async fn sign_in(State(sessions): State<Sessions>, Form(form): Form<SignIn>) -> Response {
    let is_human =
        |user: &&(&str, &str, OwnerKind, &str)| user.0 == form.user && user.2 == OwnerKind::Human;
    let user = USERS.iter().find(is_human).and_then(|user| OwnerId::new(user.0).ok());
    let (Some(user), Ok(key)) = (user, session_key()) else {
        return (StatusCode::UNPROCESSABLE_ENTITY, "there is no such user").into_response();
    };
    let cookie = format!("session={key}; Path=/; HttpOnly; SameSite=Lax");
    if let Ok(mut sessions) = sessions.lock() {
        sessions.insert(key, user);
    }
    (StatusCode::SEE_OTHER, [(SET_COOKIE, cookie), (LOCATION, "/".to_owned())]).into_response()
}

/// Returns 128 random bits, which cannot be guessed.
fn session_key() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    rand::TryRng::try_fill_bytes(&mut rand::rngs::SysRng, &mut bytes)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

fn signed_in_user(sessions: &Sessions, request: &Parts) -> Option<Actor> {
    let cookies = request.headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|value| value.split(';')).map(str::trim);
    let sessions = sessions.lock().ok()?;
    let user = pairs.find_map(|pair| sessions.get(pair.strip_prefix("session=")?))?;
    Some(Actor::signed_in(user.clone()))
}

struct Options {
    port: u16,
    database_url: String,
    print_openapi: bool,
}

impl Options {
    fn read() -> Result<Self, Failure> {
        let mut options = Self {
            port: 3000,
            database_url: "sqlite:patkit-demo.db".to_owned(),
            print_openapi: false,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or("the option needs a value");
            match argument.as_str() {
                "--port" => options.port = value()?.parse()?,
                "--database-url" => options.database_url = value()?,
                "--print-openapi" => options.print_openapi = true,
                _ => {
                    return Err(
                        "usage: server [--port PORT] [--database-url URL] [--print-openapi]".into(),
                    );
                }
            }
        }
        Ok(options)
    }
}

fn curl_lines(url: &str) -> String {
    format!(
        "  curl -s {url}/sign-in -c jar -d user=ada\n  \
           curl -s {url}/api/user-tokens -b jar -H 'Sec-Fetch-Site: same-origin' -H 'Content-Type: application/json' \\\n    \
             -d '{{\"name\":\"ci\",\"expires_in_days\":30}}'\n  \
           curl -i {url}/demo/datastores -H \"Authorization: Bearer $TOKEN\"   # \"bearer_token\" of the answer\n"
    )
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
