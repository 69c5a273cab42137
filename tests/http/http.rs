//! HTTP over a real socket: the answer to each call for each actor, and to hostile requests.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::too_many_lines,
    clippy::unwrap_used,
    reason = "tests"
)]

use axum::Router;
use axum::body::Body;
use axum::routing::{get, post};
use chrono::{DateTime, TimeDelta, Utc};
use http::header::{COOKIE, HeaderMap};
use http::request::Parts;
use http::{HeaderName, Method, Request, Response};
use patkit::http::{
    Authenticator, ClientAddress, Console, Incident, IssuedBody, ManagementApi, PageBody,
    Permitted, ProblemBody, RequirePermission, RequiredPermission, Sessions, TokenBody, openapi,
};
use patkit::owner::DirectoryError;
use patkit::store::{AuditLog, EventQuery};
use patkit::{
    Actor, Credential, Directory, Keyring, ManualClock, MemoryDirectory, MemoryStore, NewToken,
    Owner, OwnerId, OwnerKind, Realm, Reason, RoleCatalog, TokenEdit, TokenId, TokenService,
    Verified,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::{Layer, Service, ServiceExt};

/// The users of the host, and a directory that can fail.
struct Users {
    users: MemoryDirectory,
    is_down: AtomicBool,
}

impl Directory for Users {
    async fn find(
        &self,
        realm: &Realm,
        id: &OwnerId,
    ) -> Result<Option<Arc<Owner>>, DirectoryError> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err(DirectoryError::new("down"));
        }
        self.users.find(realm, id).await
    }
}

type Tokens = TokenService<MemoryStore, Arc<Users>>;

struct ReadData;

impl RequiredPermission for ReadData {
    const PERMISSION: &'static str = "data:read";
}

/// A host on its own port.
struct Host {
    base: String,
    address: SocketAddr,
    client: reqwest::Client,
    tokens: Arc<Tokens>,
    users: Arc<Users>,
    clock: Arc<ManualClock>,
    incidents: Arc<Mutex<Vec<String>>>,
    /// The answers in the `OpenAPI` document: method, path, status.
    documented: BTreeSet<(String, String, u16)>,
}

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

fn id(text: &str) -> OwnerId {
    OwnerId::new(text).unwrap()
}

fn session(text: &str) -> Actor {
    Actor::signed_in(id(text))
}

/// Signs in the user named in the cookie.
fn signed_in(request: &Parts) -> Option<Actor> {
    let cookie = request.headers.get(COOKIE)?.to_str().ok()?;
    Some(session(cookie.strip_prefix("session=")?))
}

async fn whoami(verified: Verified) -> String {
    verified.owner().id().to_string()
}

async fn maybe(verified: Option<Verified>, headers: HeaderMap) -> String {
    match (verified, headers.get(COOKIE)) {
        (Some(verified), _) => format!("token of {}", verified.owner().id()),
        (None, Some(_)) => "cookie".to_owned(),
        (None, None) => "nobody".to_owned(),
    }
}

/// The settings of a test's host.
#[derive(Default)]
struct Wanted {
    address: Option<ClientAddress>,
    limit: Option<(u32, Duration)>,
    is_recent_sign_in: bool,
}

impl Host {
    async fn new() -> Self {
        Self::wanted(Wanted::default()).await
    }

    async fn wanted(wanted: Wanted) -> Self {
        let human = |name: &str, role: &str| Owner::new(id(name), OwnerKind::Human).with_role(role);
        let users: MemoryDirectory = [
            human("mel", "member").with_name("Mel"),
            human("other", "member"),
            human("max", "manager"),
            human("ada", "admin"),
            human("guest", "guest"),
            Owner::new(id("ci-bot"), OwnerKind::Service).with_role("robot"),
        ]
        .into_iter()
        .collect();
        let users = Arc::new(Users { users, is_down: AtomicBool::new(false) });
        let roles = RoleCatalog::standard_builder()
            .role("guest")
            .grant("guest", ["data:read"])
            .role("robot")
            .grant("robot", ["data:*", "service-tokens:manage"])
            .grant("member", ["data:read"])
            .build()
            .unwrap();
        let clock = Arc::new(ManualClock::at(start()));
        let tokens = TokenService::builder(MemoryStore::new(), users.clone())
            .brand("acme")
            .keyring(Keyring::ephemeral().unwrap())
            .roles(roles)
            .clock(clock.clone())
            .build()
            .unwrap();
        let tokens = Arc::new(tokens);

        let incidents = Arc::new(Mutex::new(Vec::new()));
        let heard = incidents.clone();
        let mut authenticator =
            Authenticator::new(tokens.clone()).challenge_realm("Acme").unwrap().on_incident(
                move |incident: Incident<'_>| heard.lock().unwrap().push(format!("{incident:?}")),
            );
        if let Some(address) = wanted.address {
            authenticator = authenticator.client_address(address);
        }
        let mut api = ManagementApi::builder(authenticator.clone(), signed_in)
            .allow_origin("https://app.example.com")
            .unwrap();
        if let Some((most, per)) = wanted.limit {
            api = api.limit_generation(most, per);
        }
        if wanted.is_recent_sign_in {
            api = api.recent_sign_in(|request, _| request.headers.contains_key("x-recent"));
        }
        let api = api.build();
        let required = Router::new()
            .route("/whoami", get(whoami))
            .route("/data", get(async |token: Permitted<ReadData>| token.owner().id().to_string()))
            .route(
                "/data",
                post(async || "written").layer(RequirePermission::new("data:write").unwrap()),
            )
            .layer(authenticator.required());
        let optional = Router::new().route("/maybe", get(maybe)).layer(authenticator.optional());
        let console = Console::builder(&api, "/api/")
            .title("<Tokens>")
            .theme(":root { --patkit-accent: #0a7; }");
        let app = Router::new()
            .nest_service("/settings", console.build())
            .nest_service("/api", api.clone())
            .nest_service("/of/{tenant}/{id}", api)
            .merge(required)
            .merge(optional)
            .route("/forgotten", get(whoami))
            .route("/forgotten/optional", get(maybe));

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>())
                .await
                .unwrap();
        });
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let base = format!("http://{address}");
        Self { base, address, client, tokens, users, clock, incidents, documented: documented() }
    }

    /// Sends a call of the management API, and checks the answer against the `OpenAPI` document.
    async fn call(&self, who: &Who, method: Method, path: &str, body: Option<Value>) -> Answer {
        let mut headers = who.headers();
        let body = body.map(|body| body.to_string());
        if body.is_some() {
            headers.push(("content-type", "application/json".to_owned()));
        }
        self.send(method, &format!("/api{path}"), &headers, body).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        body: Option<String>,
    ) -> Answer {
        let mut request = self.client.request(method.clone(), format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let answer = Answer { status, headers, body: response.text().await.unwrap() };
        if let Some(path) = path.strip_prefix("/api/user-tokens") {
            self.check_documented(&method, path, &answer);
        }
        answer
    }

    /// Checks that the document has the status, and that the body has its type.
    fn check_documented(&self, method: &Method, path: &str, answer: &Answer) {
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{answer:?}");
        let path = path.split('?').next().unwrap();
        let parts: Vec<&str> = path.split('/').collect();
        let path = match parts[..] {
            [""] => "",
            ["", "service"] => "/service",
            ["", "current"] => "/current",
            ["", _] => "/{id}",
            ["", _, "rotate"] => "/{id}/rotate",
            _ => return,
        };
        if answer.status == 405 {
            return;
        }
        let key = (method.to_string(), format!("/user-tokens{path}"), answer.status);
        assert!(self.documented.contains(&key), "not in the document: {key:?}");
        let has_token = answer.body.contains("bearer_token");
        if answer.status < 300 && answer.status != 204 {
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{answer:?}");
        }
        match (answer.status, path) {
            (201, _) => drop(answer.json::<IssuedBody>()),
            (200, "" | "/service") => drop(answer.json::<PageBody>()),
            (200, _) => drop(answer.json::<TokenBody>()),
            (204, _) => assert_eq!(answer.body, ""),
            _ => drop(answer.problem()),
        }
        assert_eq!(has_token && answer.status != 422, answer.status == 201, "{answer:?}");
    }

    /// Sends bytes unchanged and returns the answer.
    async fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    async fn issue(&self, actor: &Actor, new: NewToken) -> (TokenId, String) {
        let issued = self.tokens.generate(actor, new).await.unwrap();
        (issued.token.id(), issued.plaintext.expose_secret().to_owned())
    }

    /// Makes a token in this state.
    async fn token(&self, kind: Target, state: &str) -> TokenId {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("target {}", NUMBER.fetch_add(1, Ordering::SeqCst));
        let (actor, new) = match kind {
            Target::Personal => (session("mel"), NewToken::named(&name)),
            Target::Service => {
                (session("ada"), NewToken::named(&name).for_service(id("ci-bot")).scope(["data:*"]))
            }
        };
        // A token restores and rotates only tokens that end before it does, so these end early.
        let (id, _) =
            self.issue(&actor, new.expires_in_days(if state == "expired" { 1 } else { 30 })).await;
        match state {
            "revoked" => drop(self.tokens.revoke(&actor, id, own_reason(kind)).await.unwrap()),
            "expired" => self.expire(id).await,
            _ => {}
        }
        id
    }

    /// Moves a token's expiry into the past, which no call can do.
    async fn expire(&self, id: TokenId) {
        use patkit::TokenStore;
        use patkit::store::{Change, ChangeBatch};
        let mut record =
            patkit::Token::clone(&self.tokens.store().find(id).await.unwrap().unwrap());
        record.facts.expires_at = Some(start() - TimeDelta::days(1));
        record.version += 1;
        let batch = ChangeBatch::new().change(Change::Update(Arc::new(record)));
        self.tokens.store().commit(&batch).await.unwrap();
    }
}

fn own_reason(kind: Target) -> Reason {
    if kind == Target::Personal { Reason::Owner } else { Reason::Admin }
}

fn documented() -> BTreeSet<(String, String, u16)> {
    let document: Value = serde_json::to_value(openapi("/api")).unwrap();
    let mut all = BTreeSet::new();
    for (path, calls) in document["paths"].as_object().unwrap() {
        for (method, call) in calls.as_object().unwrap() {
            for status in call["responses"].as_object().unwrap().keys() {
                all.insert((method.to_uppercase(), path.clone(), status.parse().unwrap()));
            }
        }
    }
    all
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next().map(|value| value.to_str().unwrap());
        assert_eq!(values.next(), None, "{name} stands there twice");
        value
    }

    fn json<T: serde::de::DeserializeOwned>(&self) -> T {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Returns the fields that were refused.
    fn pointers(&self) -> Vec<String> {
        self.problem().errors.into_iter().map(|error| error.pointer).collect()
    }

    fn problem(&self) -> ProblemBody {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem: ProblemBody = serde_json::from_str(&self.body).unwrap();
        assert_eq!((problem.status, problem.r#type.as_str()), (self.status, "about:blank"));
        problem
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// A token of `mel`.
    Personal,
    /// A token of the service user.
    Service,
}

/// The caller of a request.
#[derive(Debug, Clone)]
enum Who {
    Nobody,
    Session(&'static str),
    Token(String),
}

impl Who {
    fn headers(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Nobody => vec![],
            Self::Session(user) => {
                vec![
                    ("cookie", format!("session={user}")),
                    ("sec-fetch-site", "same-origin".to_owned()),
                ]
            }
            // Also sends the cookie of a session, which must be ignored.
            Self::Token(text) => {
                vec![
                    ("authorization", format!("Bearer {text}")),
                    ("cookie", "session=ada".to_owned()),
                ]
            }
        }
    }
}

/// An actor of the table of all calls, and its rights.
struct Row {
    name: &'static str,
    who: Who,
    /// Whether the actor's credential is accepted.
    is_admitted: bool,
    /// The owner whose personal tokens the actor manages, if any.
    manages_personal_of: Option<&'static str>,
    manages_service: bool,
    /// The actor's own token, if it is a token.
    own: Option<TokenId>,
}

impl Row {
    fn is_token(&self) -> bool {
        matches!(self.who, Who::Token(_))
    }

    fn sees(&self, target: Target) -> bool {
        match target {
            Target::Personal => self.manages_personal_of == Some("mel"),
            Target::Service => self.manages_service,
        }
    }

    /// Returns the answer to a call about a token, by SPEC's tables.
    fn expected(&self, call: &str, target: Target, state: &str) -> (u16, &'static str) {
        if !self.is_admitted {
            return (401, if self.is_token() { "invalid_token" } else { "no_credential" });
        }
        if self.manages_personal_of.is_none() && !self.manages_service {
            return (403, if self.is_token() { "insufficient_scope" } else { "forbidden" });
        }
        if !self.sees(target) {
            return (404, "not_found");
        }
        match (call, state) {
            ("rotate", "active") => (201, ""),
            ("rotate" | "restore", "expired") | ("rotate", _) | ("delete", "active") => {
                (409, "state")
            }
            ("delete", _) => (204, ""),
            _ => (200, ""),
        }
    }
}

async fn rows(host: &Host) -> Vec<Row> {
    let mut rows = vec![];
    let mut row = |name, who, manages_personal_of, manages_service| {
        rows.push(Row {
            name,
            who,
            is_admitted: true,
            manages_personal_of,
            manages_service,
            own: None,
        });
    };
    row("nobody", Who::Nobody, None, false);
    row("owner", Who::Session("mel"), Some("mel"), false);
    row("another member", Who::Session("other"), Some("other"), false);
    row("manager", Who::Session("max"), Some("max"), false);
    row("admin", Who::Session("ada"), Some("ada"), true);
    row("without the permission", Who::Session("guest"), None, false);
    row("unknown to the directory", Who::Session("ghost"), None, false);
    for refused in ["nobody", "unknown to the directory"] {
        rows.iter_mut().find(|row| row.name == refused).unwrap().is_admitted = false;
    }
    for (name, user, new, manages_personal_of, manages_service) in [
        ("owner's token", "mel", NewToken::named("whole").never_expires(), Some("mel"), false),
        (
            "owner's narrow token",
            "mel",
            NewToken::named("narrow").scope(["data:read"]),
            None,
            false,
        ),
        (
            "another's token",
            "other",
            NewToken::named("whole").never_expires(),
            Some("other"),
            false,
        ),
        ("admin's token", "ada", NewToken::named("whole").never_expires(), Some("ada"), true),
        (
            "service token",
            "ada",
            NewToken::named("robot").for_service(id("ci-bot")).never_expires(),
            None,
            true,
        ),
    ] {
        let (own, text) = host.issue(&session(user), new).await;
        let who = Who::Token(text);
        rows.push(Row {
            name,
            who,
            is_admitted: true,
            manages_personal_of,
            manages_service,
            own: Some(own),
        });
    }
    let (revoked, text) = host.issue(&session("mel"), NewToken::named("revoked")).await;
    host.tokens.revoke(&session("mel"), revoked, Reason::Owner).await.unwrap();
    rows.push(Row {
        name: "revoked token",
        who: Who::Token(text),
        is_admitted: false,
        manages_personal_of: None,
        manages_service: false,
        own: Some(revoked),
    });
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_answers_every_actor_by_the_tables_in_every_state() {
    let host = Host::new().await;
    let rows = rows(&host).await;
    assert_eq!(rows.len(), 13);
    for row in &rows {
        for target in [Target::Personal, Target::Service] {
            for state in ["active", "revoked", "expired"] {
                for call in ["show", "revoke", "restore", "rename", "rotate", "delete"] {
                    let id = host.token(target, state).await;
                    let (method, path, body) = match call {
                        "show" => (Method::GET, format!("/user-tokens/{id}"), None),
                        "revoke" => (
                            Method::PUT,
                            format!("/user-tokens/{id}"),
                            Some(json!({"active": false})),
                        ),
                        "restore" => (
                            Method::PUT,
                            format!("/user-tokens/{id}"),
                            Some(json!({"active": true})),
                        ),
                        "rename" => (
                            Method::PUT,
                            format!("/user-tokens/{id}"),
                            Some(json!({"name": format!("new {id}")})),
                        ),
                        "rotate" => {
                            (Method::POST, format!("/user-tokens/{id}/rotate"), Some(json!({})))
                        }
                        _ => (Method::DELETE, format!("/user-tokens/{id}"), None),
                    };
                    let answer = host.call(&row.who, method, &path, body).await;
                    let case = format!("{} {call} {target:?} {state}: {answer:?}", row.name);
                    check(&answer, row.expected(call, target, state), row, &case);
                    check_effect(&host, &answer, call, state, id, &case).await;
                }
            }
        }
    }
}

fn check(answer: &Answer, (status, code): (u16, &str), row: &Row, case: &str) {
    assert_eq!(answer.status, status, "{case}");
    let challenge = answer.header("www-authenticate");
    if status < 400 {
        assert_eq!(challenge, None, "{case}");
        return;
    }
    assert_eq!(answer.problem().code, code, "{case}");
    match code {
        "no_credential" => assert_eq!(challenge, Some(r#"Bearer realm="Acme""#), "{case}"),
        "invalid_token" => {
            assert_eq!(challenge, Some(r#"Bearer realm="Acme", error="invalid_token""#), "{case}");
        }
        "insufficient_scope" => {
            let start = r#"Bearer realm="Acme", error="insufficient_scope", scope=""#;
            assert!(challenge.unwrap().starts_with(start) && row.is_token(), "{case}");
        }
        _ => assert_eq!(challenge, None, "{case}"),
    }
}

/// Checks that a successful call took effect and that a refused one changed nothing.
async fn check_effect(
    host: &Host,
    answer: &Answer,
    call: &str,
    state: &str,
    id: TokenId,
    case: &str,
) {
    let now = host.tokens.get(&Actor::system(), id).await;
    if call == "delete" && answer.status == 204 {
        assert!(now.is_err(), "{case}");
        return;
    }
    let expected = match (call, answer.status) {
        ("revoke", 200) if state == "expired" => "expired",
        ("revoke", 200) | ("rotate", 201) => "revoked",
        ("restore", 200) => "active",
        _ => state,
    };
    let now = now.unwrap();
    assert_eq!(now.state().as_str(), expected, "{case}");
    assert_eq!(
        now.name().as_str().starts_with("new"),
        call == "rename" && answer.status == 200,
        "{case}"
    );
    if let ("show" | "revoke" | "restore" | "rename", 200) = (call, answer.status) {
        let shown: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(shown, serde_json::to_value(&now).unwrap(), "{case}");
    }
    if answer.status == 201 {
        let issued: IssuedBody = answer.json();
        assert_eq!(answer.header("location").unwrap(), format!("../{}", issued.token.id), "{case}");
        assert_eq!(now.successor().unwrap().to_string(), issued.token.id, "{case}");
        host.tokens.verify(Credential::text(&issued.bearer_token)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_generation_and_the_token_in_use_answer_every_actor_by_the_tables() {
    let host = Host::new().await;
    let rows = rows(&host).await;
    for row in &rows {
        let refused = |may: bool, good: u16| match (row.is_admitted, may) {
            (true, true) => (good, ""),
            (true, false) if row.is_token() => (403, "insufficient_scope"),
            (true, false) => (403, "forbidden"),
            (false, _) if row.is_token() => (401, "invalid_token"),
            (false, _) => (401, "no_credential"),
        };
        let personal = row.manages_personal_of.is_some();
        let name = format!("new of {}", row.name);
        let service = json!({"name": name, "user_id": "ci-bot", "scopes": ["data:read"]});
        for (method, path, body, expected) in [
            (Method::GET, "/user-tokens", None, refused(personal, 200)),
            (Method::GET, "/user-tokens/service", None, refused(row.manages_service, 200)),
            (Method::POST, "/user-tokens", Some(json!({"name": name})), refused(personal, 201)),
            (Method::POST, "/user-tokens", Some(service), refused(row.manages_service, 201)),
        ] {
            let answer = host.call(&row.who, method, path, body).await;
            let case = format!("{} {path}: {answer:?}", row.name);
            check(&answer, expected, row, &case);
            if answer.status == 201 {
                let issued: IssuedBody = answer.json();
                assert_eq!(
                    answer.header("location").unwrap(),
                    format!("user-tokens/{}", issued.token.id)
                );
                host.tokens.verify(Credential::text(&issued.bearer_token)).await.unwrap();
            }
            if answer.status == 200 {
                let page: PageBody = answer.json();
                let owner = row.manages_personal_of.unwrap_or_default();
                let is_right = |token: &TokenBody| match path {
                    "/user-tokens" => token.kind == "personal" && token.user.id == owner,
                    _ => token.kind == "service" && token.user.id == "ci-bot",
                };
                assert!(page.items.iter().all(is_right), "{case}");
            }
        }
        let answer = host.call(&row.who, Method::GET, "/user-tokens/current", None).await;
        let is_session = matches!(row.who, Who::Session(_));
        let expected = if is_session { (404, "not_found") } else { refused(true, 200) };
        check(&answer, expected, row, &format!("{} current: {answer:?}", row.name));
        if answer.status == 200 {
            assert_eq!(answer.json::<TokenBody>().id, row.own.unwrap().to_string());
        }
        let answer = host.call(&row.who, Method::DELETE, "/user-tokens/current", None).await;
        let expected = if expected.0 == 200 { (204, "") } else { expected };
        check(&answer, expected, row, &format!("{} current: {answer:?}", row.name));
        if answer.status == 204 {
            let again = host.call(&row.who, Method::GET, "/user-tokens/current", None).await;
            assert_eq!((again.status, again.problem().code.as_str()), (401, "invalid_token"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_in_a_body_is_named() {
    let host = Host::new().await;
    let (id, _) = host.issue(&session("ada"), NewToken::named("here")).await;
    let one = format!("/user-tokens/{id}");
    let rotate = format!("/user-tokens/{id}/rotate");
    let deep = format!("{{\"name\":{}1{}}}", "[".repeat(100_000 / 4), "]".repeat(100_000 / 4));
    let nested = format!("{{\"name\":{}1{}}}", "[".repeat(200), "]".repeat(200));
    let large = json!({"name": "a", "description": "b".repeat(65_536)}).to_string();
    let long = json!({"name": "é".repeat(256)}).to_string();
    let many: Vec<String> = (0..65).map(|number| format!("data:s{number}")).collect();
    let many = json!({"name": "a", "scopes": many}).to_string();
    let new = "/user-tokens";
    let table: &[(&str, &str, &str, u16, &str, &str)] = &[
        // Invalid JSON.
        ("POST", new, "", 400, "invalid_json", ""),
        ("POST", new, "{", 400, "invalid_json", ""),
        ("POST", new, "{\"name\":\"a\"} x", 400, "invalid_json", ""),
        ("POST", new, "{\"name\":\"\u{0}\"}", 400, "invalid_json", ""),
        ("POST", new, "{'name':'a'}", 400, "invalid_json", ""),
        ("POST", new, &nested, 422, "invalid", "name"),
        (
            "POST",
            new,
            "{\"expires_in_days\":1e400,\"name\":\"a\"}",
            422,
            "invalid",
            "expires_in_days",
        ),
        // Another shape.
        ("POST", new, "[]", 422, "invalid", ""),
        ("POST", new, "[", 400, "invalid_json", ""),
        (
            "POST",
            new,
            "[\"a\", \"b\", 30, false, [], [\"10.0.0.0/8\"], \"ci-bot\"]",
            422,
            "invalid",
            "",
        ),
        ("PUT", &one, " [false]", 422, "invalid", ""),
        ("POST", &rotate, "\r\n\t []", 422, "invalid", ""),
        ("POST", &rotate, "[3600]", 422, "invalid", ""),
        ("POST", new, "null", 422, "invalid", ""),
        ("POST", new, "\"name\"", 422, "invalid", ""),
        ("POST", new, "{}", 422, "invalid", "name"),
        ("POST", new, "{\"name\":1}", 422, "invalid", "name"),
        ("POST", new, "{\"name\":null}", 422, "invalid", "name"),
        ("POST", new, "{\"name\":\"a\",\"name\":\"b\"}", 422, "invalid", "name"),
        ("POST", new, "{\"name\":\"a\",\"scope\":[]}", 422, "invalid", "scope"),
        ("POST", new, "{\"name\":\"a\",\"access_token\":\"x\"}", 422, "invalid", "access_token"),
        ("POST", new, "{\"name\":\"a\",\"scopes\":\"data:read\"}", 422, "invalid", "scopes"),
        ("POST", new, "{\"name\":\"a\",\"scopes\":[1]}", 422, "invalid", "scopes/0"),
        (
            "POST",
            new,
            "{\"name\":\"a\",\"allowed_networks\":null}",
            422,
            "invalid",
            "allowed_networks",
        ),
        (
            "POST",
            new,
            "{\"name\":\"a\",\"scim_endpoints_only\":1}",
            422,
            "invalid",
            "scim_endpoints_only",
        ),
        // Out of bounds.
        ("POST", new, "{\"name\":\"\"}", 422, "invalid", "name"),
        ("POST", new, "{\"name\":\"  \"}", 422, "invalid", "name"),
        ("POST", new, "{\"name\":\"a\\u0000b\"}", 422, "invalid", "name"),
        ("POST", new, "{\"name\":\"a\\u001bb\"}", 422, "invalid", "name"),
        ("POST", new, "{\"name\":\"a\\u202eb\"}", 422, "invalid", "name"),
        ("POST", new, &long, 422, "invalid", "name"),
        (
            "POST",
            new,
            "{\"name\":\"a\",\"description\":\"b\\u0007\"}",
            422,
            "invalid",
            "description",
        ),
        ("POST", new, "{\"name\":\"a\",\"expires_in_days\":0}", 422, "invalid", "expires_in_days"),
        ("POST", new, "{\"name\":\"a\",\"expires_in_days\":-1}", 422, "invalid", "expires_in_days"),
        (
            "POST",
            new,
            "{\"name\":\"a\",\"expires_in_days\":366}",
            422,
            "invalid",
            "expires_in_days",
        ),
        (
            "POST",
            new,
            "{\"name\":\"a\",\"expires_in_days\":1000000000000000000}",
            422,
            "invalid",
            "expires_in_days",
        ),
        (
            "POST",
            new,
            "{\"name\":\"a\",\"expires_in_days\":99999999999999999999}",
            422,
            "invalid",
            "expires_in_days",
        ),
        (
            "POST",
            new,
            "{\"name\":\"a\",\"expires_in_days\":1.5}",
            422,
            "invalid",
            "expires_in_days",
        ),
        (
            "POST",
            new,
            "{\"name\":\"a\",\"expires_in_days\":\"30\"}",
            422,
            "invalid",
            "expires_in_days",
        ),
        ("POST", new, "{\"name\":\"a\",\"scopes\":[\"data:*:x\"]}", 422, "invalid", "scopes/0"),
        ("POST", new, "{\"name\":\"a\",\"scopes\":[\"Data:read\"]}", 422, "invalid", "scopes/0"),
        ("POST", new, &many, 422, "invalid", "scopes"),
        (
            "POST",
            new,
            "{\"name\":\"a\",\"allowed_networks\":[]}",
            422,
            "invalid",
            "allowed_networks",
        ),
        (
            "POST",
            new,
            "{\"name\":\"a\",\"allowed_networks\":[\"10.0.0.1/8\"]}",
            422,
            "invalid",
            "allowed_networks/0",
        ),
        (
            "POST",
            new,
            "{\"name\":\"a\",\"scopes\":[],\"scim_endpoints_only\":true}",
            422,
            "invalid",
            "scim_endpoints_only",
        ),
        ("POST", new, "{\"name\":\"a\",\"user_id\":\"\"}", 422, "invalid", "user_id"),
        ("POST", new, "{\"name\":\"a\",\"user_id\":\"ghost\"}", 422, "invalid", "user_id"),
        ("POST", new, "{\"name\":\"a\",\"user_id\":\"mel\"}", 422, "invalid", "user_id"),
        ("POST", new, "{\"name\":\"HERE\"}", 409, "name_taken", "name"),
        ("PUT", &one, "{}", 422, "invalid", ""),
        ("PUT", &one, "{\"reason\":\"compromised\"}", 422, "invalid", "reason"),
        ("PUT", &one, "{\"active\":true,\"reason\":\"owner\"}", 422, "invalid", "reason"),
        ("PUT", &one, "{\"active\":false,\"reason\":\"because\"}", 422, "invalid", "reason"),
        ("PUT", &one, "{\"active\":false,\"reason\":\"system\"}", 422, "invalid", "reason"),
        ("PUT", &one, "{\"active\":\"false\"}", 422, "invalid", "active"),
        ("PUT", &one, "{\"active\":null}", 422, "invalid", "active"),
        ("PUT", &one, "{\"description\":null}", 422, "invalid", "description"),
        ("PUT", &one, "{\"expires_in_days\":30}", 422, "invalid", "expires_in_days"),
        ("POST", &rotate, "{\"overlap_seconds\":-1}", 422, "invalid", "overlap_seconds"),
        ("POST", &rotate, "{\"overlap_seconds\":604801}", 422, "invalid", "overlap_seconds"),
        ("POST", &rotate, "{\"overlap\":1}", 422, "invalid", "overlap"),
        // Too large.
        ("POST", new, &large, 413, "too_large", ""),
        ("POST", new, &deep, 422, "invalid", "name"),
    ];
    let admin = Who::Session("ada");
    for (method, path, body, status, code, field) in table {
        let mut headers = admin.headers();
        headers.push(("content-type", "application/json; charset=utf-8".to_owned()));
        let method: Method = method.parse().unwrap();
        let answer =
            host.send(method, &format!("/api{path}"), &headers, Some((*body).to_owned())).await;
        let problem = answer.problem();
        let case = format!("{body:.90}: {answer:?}");
        assert_eq!((answer.status, problem.code.as_str()), (*status, *code), "{case}");
        let fields: Vec<&str> = problem.errors.iter().map(|error| &error.pointer[1..]).collect();
        assert_eq!(fields.join(" "), *field, "{case}");
        assert!(problem.errors.iter().all(|error| !error.detail.is_empty()), "{case}");
        assert!(!problem.detail.is_empty(), "{case}");
    }
    let page = host.call(&admin, Method::GET, "/user-tokens", None).await.json::<PageBody>();
    assert_eq!(page.items.len(), 1, "nothing was made: {page:?}");
    assert!(page.items[0].active && page.items[0].name == "here");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_another_kind_are_refused() {
    let host = Host::new().await;
    let (id, _) = host.issue(&session("mel"), NewToken::named("here")).await;
    let body = r#"{"name":"new"}"#.to_owned();
    let other = |content_type: Option<&str>| {
        let mut headers = Who::Session("mel").headers();
        headers.extend(content_type.map(|value| ("content-type", value.to_owned())));
        headers
    };
    for content_type in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
        Some("application/jsonp"),
    ] {
        for (method, path) in [
            (Method::POST, "/api/user-tokens".to_owned()),
            (Method::PUT, format!("/api/user-tokens/{id}")),
        ] {
            let answer = host.send(method, &path, &other(content_type), Some(body.clone())).await;
            assert_eq!(
                (answer.status, answer.problem().code.as_str()),
                (415, "unsupported_media_type")
            );
        }
        let rotate = format!("/api/user-tokens/{id}/rotate");
        let answer =
            host.send(Method::POST, &rotate, &other(content_type), Some("{}".to_owned())).await;
        assert_eq!(answer.status, 415, "{content_type:?}");
    }
    // A rotation needs no body.
    let rotate = format!("/api/user-tokens/{id}/rotate");
    let issued: IssuedBody = host.send(Method::POST, &rotate, &other(None), None).await.json();
    let rotate = format!("/api/user-tokens/{}/rotate", issued.token.id);
    assert_eq!(
        host.send(Method::POST, &rotate, &other(Some("application/json")), None).await.status,
        201
    );
    // A body without an end is cut off at the bound, whatever length it announced.
    let request = format!(
        "POST /api/user-tokens HTTP/1.1\r\nHost: x\r\nCookie: session=mel\r\nSec-Fetch-Site: same-origin\r\n\
         Content-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n11000\r\n{}\r\n0\r\n\r\n",
        " ".repeat(0x11000)
    );
    let answer = host.raw(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    // A client that is still sending receives the reason instead of a connection reset.
    for length in ["Content-Length: 1000000", "Content-Length: 65537"] {
        let request = format!(
            "POST /api/user-tokens HTTP/1.1\r\nHost: x\r\nCookie: session=mel\r\nSec-Fetch-Site: same-origin\r\n\
             Content-Type: application/json\r\n{length}\r\nConnection: close\r\n\r\n{}",
            " ".repeat(length.rsplit(' ').next().unwrap().parse().unwrap())
        );
        let answer = host.raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    }
    // The server does not wait for the end of an endless body.
    let mut stream = TcpStream::connect(host.address).await.unwrap();
    let head = "POST /api/user-tokens HTTP/1.1\r\nHost: x\r\nCookie: session=mel\r\nSec-Fetch-Site: same-origin\r\n\
                Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    for _ in 0..17 {
        stream.write_all(chunk.as_bytes()).await.unwrap();
    }
    let mut start = [0; 13];
    let answered =
        tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut start)).await;
    answered.expect("the answer waits for more of the body").unwrap();
    assert_eq!(&start, b"HTTP/1.1 413 ");
    // The server does not wait for a body whose announced length is too large.
    let request = "POST /api/user-tokens HTTP/1.1\r\nHost: x\r\nCookie: session=mel\r\nSec-Fetch-Site: same-origin\r\n\
                   Content-Type: application/json\r\nContent-Length: 1000000000000\r\nConnection: close\r\n\r\n";
    assert!(host.raw(request.as_bytes()).await.starts_with("HTTP/1.1 413 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_headers_get_the_status_and_the_challenge_of_the_rfcs() {
    let host = Host::new().await;
    let (_, token) = host.issue(&session("mel"), NewToken::named("good")).await;
    let good = format!("Authorization: Bearer {token}\r\n");
    let long = format!("Authorization: Bearer {}\r\n", "a".repeat(65_536));
    let none = (401, r#"Bearer realm="Acme""#);
    let invalid = (401, r#"Bearer realm="Acme", error="invalid_token""#);
    let malformed = (400, r#"Bearer realm="Acme", error="invalid_request""#);
    let table: Vec<(String, (u16, &str))> = vec![
        (String::new(), none),
        ("Authorization:\r\n".into(), none),
        ("Authorization: Basic YWRhOmFkYQ==\r\n".into(), none),
        (format!("Authorization: Token {token}\r\n"), none),
        (format!("Authorization: {token}\r\n"), none),
        ("Authorization: Bearer\r\n".into(), malformed),
        ("Authorization: Bearer \r\n".into(), malformed),
        (format!("Authorization: Bearer\t{token}\r\n"), malformed),
        (format!("Authorization: Bearer {token} {token}\r\n"), malformed),
        (format!("Authorization: Bearer {token}, Bearer {token}\r\n"), malformed),
        (format!("Authorization: Bearer \"{token}\"\r\n"), malformed),
        (format!("{good}{good}"), malformed),
        (format!("{good}Authorization: Basic YWRhOmFkYQ==\r\n"), malformed),
        (format!("Authorization: Basic YWRhOmFkYQ==\r\n{good}"), malformed),
        (long, malformed),
        ("Authorization: Bearer caf\u{e9}\r\n".into(), malformed),
        ("Authorization: Bearer abc\r\n".into(), invalid),
        (format!("Authorization: Bearer {}\r\n", mistyped(&token)), invalid),
        (good.clone(), (200, "")),
        (format!("authorization: bEaReR {token}\r\n"), (200, "")),
        (format!("Authorization: Bearer   {token}  \r\n"), (200, "")),
    ];
    for (headers, (status, challenge)) in table {
        for (path, cookie) in
            [("/whoami", ""), ("/maybe", "Cookie: session=ada\r\n"), ("/api/user-tokens", "")]
        {
            // If a credential is optional, one of another scheme counts as none.
            let is_let_through = path == "/maybe" && challenge == none.1;
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{cookie}{headers}\r\n"
            );
            let answer = host.raw(request.as_bytes()).await;
            let status = if is_let_through { 200 } else { status };
            let case = format!("{path} {headers:.80?}: {answer}");
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{case}");
            if status != 200 {
                assert!(
                    answer.contains(&format!("\r\nwww-authenticate: {challenge}\r\n")),
                    "{case}"
                );
                assert!(
                    answer.contains("\r\ncontent-type: application/problem+json\r\n"),
                    "{case}"
                );
            }
            if is_let_through {
                assert!(answer.ends_with("\r\n\r\ncookie"), "{case}");
            }
        }
    }
    // Headers that no HTTP server accepts.
    for header in ["Authorization: Bearer abc\0\r\n", "Authorization: Bearer abc\rX: y\r\n"] {
        let request =
            format!("GET /whoami HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n");
        let answer = host.raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    // A token anywhere else is ignored.
    let body = json!({"name": "a", "access_token": token}).to_string();
    for path in [
        format!("/whoami?access_token={token}"),
        format!("/api/user-tokens?access_token={token}"),
        format!("/api/user-tokens/current?bearer_token={token}"),
    ] {
        let answer = host.send(Method::GET, &path, &[], None).await;
        assert_eq!(
            (answer.status, answer.header("www-authenticate")),
            (401, Some(none.1)),
            "{path}"
        );
    }
    for content_type in ["application/json", "application/x-www-form-urlencoded"] {
        let headers = [("content-type", content_type.to_owned())];
        let body = if content_type.ends_with("json") {
            body.clone()
        } else {
            format!("access_token={token}")
        };
        let answer = host.send(Method::POST, "/api/user-tokens", &headers, Some(body)).await;
        assert_eq!(
            (answer.status, answer.header("www-authenticate")),
            (401, Some(none.1)),
            "{content_type}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_refused_tokens_get_one_answer_byte_for_byte() {
    let host = Host::new().await;
    let mel = session("mel");
    let (_, unknown) = {
        let other = Host::new().await;
        other.issue(&mel, NewToken::named("elsewhere")).await
    };
    let (revoked_id, revoked) = host.issue(&mel, NewToken::named("revoked")).await;
    host.tokens.revoke(&mel, revoked_id, Reason::Owner).await.unwrap();
    let (expired_id, expired) = host.issue(&mel, NewToken::named("expired")).await;
    host.expire(expired_id).await;
    let (_, elsewhere) =
        host.issue(&mel, NewToken::named("bound").networks(["192.0.2.0/24"])).await;
    let (_, disabled) = host.issue(&session("max"), NewToken::named("disabled")).await;
    host.users
        .users
        .put(Owner::new(id("max"), OwnerKind::Human).with_role("manager").with_enabled(false));
    let (_, gone) = host.issue(&session("other"), NewToken::named("gone")).await;
    host.users.users.remove(&Realm::default(), &id("other"));
    let (_, old) = host.issue(&session("ada"), NewToken::named("old")).await;
    let reused = Owner::new(id("ada"), OwnerKind::Human).with_role("admin");
    host.users.users.put(reused.with_tokens_valid_after(start() + TimeDelta::seconds(1)));

    let cases = [
        ("malformed", "acme_pat_x".to_owned()),
        ("unknown", unknown),
        ("wrong secret", with_other_secret(&revoked, &expired)),
        ("revoked", revoked),
        ("expired", expired),
        ("address", elsewhere),
        ("disabled", disabled),
        ("gone", gone),
        ("before", old),
    ];
    for path in ["/whoami", "/maybe", "/api/user-tokens", "/api/user-tokens/current"] {
        let mut answers = BTreeSet::new();
        for (name, token) in &cases {
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nCookie: session=mel\r\nAuthorization: Bearer {token}\r\n\r\n"
            );
            let answer = host.raw(request.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 401 "), "{name}: {answer}");
            let lines: Vec<&str> =
                answer.split("\r\n").filter(|line| !line.starts_with("date: ")).collect();
            answers.insert(lines.join("\n"));
        }
        assert_eq!(answers.len(), 1, "{path}: {answers:?}");
    }
    // The operator learns the reason, and nobody learns the secret.
    let incidents = host.incidents.lock().unwrap().join("\n");
    for reason in [
        "Malformed",
        "Unknown",
        "WrongSecret",
        "Revoked",
        "Expired",
        "AddressNotAllowed",
        "OwnerDisabled",
        "OwnerUnknown",
        "BeforeValidAfter",
    ] {
        assert!(incidents.contains(reason), "{reason}: {incidents}");
    }
    for (_, token) in &cases[1..] {
        let secret = &token["acme_pat_".len() + TokenId::TEXT_LEN..];
        assert!(!incidents.contains(secret) && !incidents.contains(&token[..]));
    }
}

/// Returns the text with a different last character.
fn mistyped(text: &str) -> String {
    format!("{}{}", &text[..text.len() - 1], if text.ends_with('x') { 'y' } else { 'x' })
}

/// Returns the first text with the secret of the second and a right checksum.
pub(super) fn with_other_secret(text: &str, other: &str) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let start = text.len() - 50;
    let mut forged = format!("{}{}", &text[..start], &other[start..start + 44]);
    let mut checksum = u64::from(crc32fast::hash(forged.as_bytes()));
    let mut digits = [b'0'; 6];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[usize::try_from(checksum % 62).unwrap()];
        checksum /= 62;
    }
    forged.push_str(str::from_utf8(&digits).unwrap());
    forged
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_changes_things_from_a_page_of_the_site_alone() {
    let host = Host::new().await;
    let cookie = ("cookie", "session=mel".to_owned());
    let site = |value: &str| ("sec-fetch-site", value.to_owned());
    let origin = |value: &str| ("origin", value.to_owned());
    let good = origin("https://app.example.com");
    let table: Vec<(Vec<(&str, String)>, bool)> = vec![
        (vec![], false),
        (vec![site("same-origin")], true),
        (vec![site("same-site")], false),
        (vec![site("cross-site")], false),
        (vec![site("none")], false),
        (vec![site("Same-Origin")], false),
        (vec![site("cross-site"), site("same-origin")], false),
        (vec![good.clone()], true),
        (vec![site("cross-site"), good.clone()], true),
        (vec![site("cross-site"), origin("https://evil.example.com")], false),
        (vec![origin("https://app.example.com.evil.com")], false),
        (vec![origin("http://app.example.com")], false),
        (vec![origin("null")], false),
        (vec![good, origin("https://evil.example.com")], false),
    ];
    for (number, (headers, passes)) in table.iter().enumerate() {
        let mut headers = headers.clone();
        headers.extend([cookie.clone(), ("content-type", "application/json".to_owned())]);
        let body = json!({"name": format!("token {number}")}).to_string();
        let answer = host.send(Method::POST, "/api/user-tokens", &headers, Some(body)).await;
        if *passes {
            assert_eq!(answer.status, 201, "{headers:?}");
        } else {
            assert_eq!(
                (answer.status, answer.problem().code.as_str()),
                (403, "cross_site"),
                "{headers:?}"
            );
        }
        // Reads are allowed, also for a link from another site.
        assert_eq!(host.send(Method::GET, "/api/user-tokens", &headers, None).await.status, 200);
    }
    let (id, token) = host.issue(&session("mel"), NewToken::named("other")).await;
    for (method, path) in [
        (Method::PUT, format!("/api/user-tokens/{id}")),
        (Method::PATCH, format!("/api/user-tokens/{id}")),
        (Method::DELETE, format!("/api/user-tokens/{id}")),
        (Method::POST, format!("/api/user-tokens/{id}/rotate")),
        (Method::DELETE, "/api/user-tokens/current".to_owned()),
    ] {
        let headers =
            [cookie.clone(), site("cross-site"), ("content-type", "application/json".to_owned())];
        let answer =
            host.send(method, &path, &headers, Some("{\"active\":false}".to_owned())).await;
        assert_eq!((answer.status, answer.problem().code.as_str()), (403, "cross_site"), "{path}");
    }
    // A browser does not send a bearer token by itself.
    let bearer = Who::Token(token);
    assert_eq!(host.call(&bearer, Method::DELETE, "/user-tokens/current", None).await.status, 204);
    for bad in [
        "",
        "app.example.com",
        "https://",
        "https://app.example.com/",
        "https://App.example.com",
        "https://app.example.com:443",
        "http://app.example.com:80",
        "null",
    ] {
        let builder = ManagementApi::builder(Authenticator::new(host.tokens.clone()), signed_in);
        assert!(builder.allow_origin(bad).is_err(), "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_follow_each_other_and_cursors_open_nothing_of_others() {
    let host = Host::new().await;
    for number in 0..7 {
        host.clock.advance(TimeDelta::milliseconds(5));
        host.issue(&session("mel"), NewToken::named(&format!("token {number}"))).await;
    }
    let mel = Who::Session("mel");
    let (mut names, mut path) = (vec![], "/user-tokens?limit=3".to_owned());
    let mut pages = 0;
    loop {
        let page: PageBody = host.call(&mel, Method::GET, &path, None).await.json();
        pages += 1;
        names.extend(page.items.into_iter().map(|token| token.name));
        let Some(next) = page.next else { break };
        path = format!("/user-tokens?limit=3&cursor={next}");
        // Another actor who sends the cursor gets its own tokens.
        let other =
            host.call(&Who::Session("other"), Method::GET, &path, None).await.json::<PageBody>();
        assert!(other.items.is_empty());
    }
    assert_eq!((pages, names.len()), (3, 7));
    assert_eq!((names[0].as_str(), names[6].as_str()), ("token 6", "token 0"));
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=-1", "limit"),
        ("limit=x", "limit"),
        ("limit=", "limit"),
        ("limit=1&limit=2", "limit"),
        ("cursor=", "cursor"),
        ("cursor=x", "cursor"),
        ("cursor=%00", "cursor"),
        ("cursor=0000000000000000000000", "cursor"),
    ] {
        for list in ["/user-tokens", "/user-tokens/service"] {
            let answer = host
                .call(&Who::Session("ada"), Method::GET, &format!("{list}?{query}"), None)
                .await;
            assert_eq!(
                (answer.status, answer.pointers()),
                (422, vec![format!("/{field}")]),
                "{query}"
            );
        }
    }
    assert_eq!(host.call(&mel, Method::GET, "/user-tokens?limit=200", None).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_is_what_is_made_and_changed() {
    let host = Host::new().await;
    let admin = Who::Session("ada");
    let body = json!({
        "name": " nightly ", "description": "for the\nnight", "expires_in_days": 365, "scopes": ["data:read"],
        "allowed_networks": ["10.0.0.0/8", "2001:db8::/32"],
    });
    let made: IssuedBody = host.call(&admin, Method::POST, "/user-tokens", Some(body)).await.json();
    let token = &made.token;
    assert_eq!(
        (token.name.as_str(), token.description.as_deref()),
        ("nightly", Some("for the\nnight"))
    );
    let year =
        (start() + TimeDelta::days(365)).to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true);
    assert_eq!(token.expiration.as_deref(), Some(year.as_str()));
    assert_eq!(token.scopes, Some(vec!["data:read".to_owned()]));
    assert_eq!(token.allowed_networks.as_deref().unwrap(), ["10.0.0.0/8", "2001:db8::/32"]);
    assert!(!format!("{made:?}").contains(&made.bearer_token), "{made:?}");

    for (body, scopes, expires) in [
        (json!({"name": "1"}), None, true),
        (json!({"name": "2", "expires_in_days": null}), None, false),
        (json!({"name": "3", "scopes": []}), Some(vec![]), true),
        (json!({"name": "4", "scim_endpoints_only": true}), Some(vec!["scim:*".to_owned()]), true),
        (json!({"name": "5", "scim_endpoints_only": false}), None, true),
    ] {
        let made: IssuedBody =
            host.call(&admin, Method::POST, "/user-tokens", Some(body)).await.json();
        assert_eq!(
            (&made.token.scopes, made.token.expiration.is_some()),
            (&scopes, expires),
            "{made:?}"
        );
    }
    let scim = json!({"name": "6", "scim_endpoints_only": true});
    let refused = host.call(&Who::Session("mel"), Method::POST, "/user-tokens", Some(scim)).await;
    assert_eq!(refused.status, 403);

    // An edit is one change: because the name is taken, nothing happens.
    let path = format!("/user-tokens/{}", token.id);
    let all = |name: &str| json!({"active": false, "reason": "compromised", "name": name, "description": ""});
    assert_eq!(host.call(&admin, Method::PUT, &path, Some(all("1"))).await.status, 409);
    let shown: TokenBody = host.call(&admin, Method::GET, &path, None).await.json();
    assert_eq!(&shown, token);
    let changed: TokenBody =
        host.call(&admin, Method::PUT, &path, Some(all("weekly"))).await.json();
    assert_eq!(
        (changed.name.as_str(), changed.description, changed.active),
        ("weekly", None, false)
    );
    let revoked = changed.revoked.unwrap();
    assert_eq!(
        (revoked.reason.as_str(), revoked.by.owner.as_deref()),
        ("compromised", Some("ada"))
    );
    let restored = host.call(&admin, Method::PUT, &path, Some(json!({"active": true}))).await;
    assert_eq!((restored.status, restored.problem().code.as_str()), (409, "state"));

    // Works beside its successor for an hour.
    let (id, old) =
        host.issue(&session("ada"), NewToken::named("rotated").scope(["data:read"])).await;
    let path = format!("/user-tokens/{id}/rotate");
    let hour = json!({"overlap_seconds": 3600});
    let new: IssuedBody = host.call(&admin, Method::POST, &path, Some(hour)).await.json();
    for text in [&old, &new.bearer_token] {
        let answer =
            host.send(Method::GET, "/data", &Who::Token(text.clone()).headers(), None).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "ada"));
    }
    host.clock.advance(TimeDelta::hours(1));
    let late = host.send(Method::GET, "/data", &Who::Token(old).headers(), None).await;
    assert_eq!(late.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn permissions_are_demanded_by_route_and_by_signature() {
    let host = Host::new().await;
    let (_, reads) =
        host.issue(&session("mel"), NewToken::named("reads").scope(["data:read"])).await;
    let (_, nothing) = host.issue(&session("mel"), NewToken::named("nothing").scope([""; 0])).await;
    let robot = NewToken::named("robot").for_service(id("ci-bot"));
    let (_, writes) = host.issue(&session("ada"), robot.scope(["data:*"])).await;
    for (method, token, status, lacks) in [
        (Method::GET, &reads, 200, ""),
        (Method::GET, &nothing, 403, "data:read"),
        (Method::GET, &writes, 200, ""),
        (Method::POST, &reads, 403, "data:write"),
        (Method::POST, &writes, 200, ""),
    ] {
        let answer = host.send(method, "/data", &Who::Token(token.clone()).headers(), None).await;
        assert_eq!(answer.status, status, "{answer:?}");
        if status == 403 {
            let challenge =
                format!(r#"Bearer realm="Acme", error="insufficient_scope", scope="{lacks}""#);
            assert_eq!(answer.header("www-authenticate"), Some(challenge.as_str()));
            assert_eq!(answer.problem().code, "insufficient_scope");
        }
    }
    // Without the layer, a handler refuses every request.
    let forgotten = host.send(Method::GET, "/forgotten", &Who::Token(writes).headers(), None).await;
    assert_eq!((forgotten.status, forgotten.problem().code.as_str()), (500, "not_authenticated"));
    for headers in [vec![], Who::Session("mel").headers()] {
        let forgotten = host.send(Method::GET, "/forgotten/optional", &headers, None).await;
        assert_eq!(
            (forgotten.status, forgotten.problem().code.as_str()),
            (500, "not_authenticated")
        );
    }
    let open = host.send(Method::GET, "/maybe", &[], None).await;
    assert_eq!((open.status, open.body.as_str()), (200, "nobody"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_found_out_is_unavailable_and_never_refused() {
    let host = Host::new().await;
    let (_, token) = host.issue(&session("mel"), NewToken::named("good")).await;
    host.users.is_down.store(true, Ordering::SeqCst);
    for who in [Who::Token(token.clone()), Who::Session("mel")] {
        let answer = host.call(&who, Method::GET, "/user-tokens", None).await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{answer:?}");
        assert_eq!(
            (answer.problem().code.as_str(), answer.header("www-authenticate")),
            ("unavailable", None)
        );
    }
    for path in ["/whoami", "/maybe"] {
        let answer = host.send(Method::GET, path, &Who::Token(token.clone()).headers(), None).await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{path}");
    }
    host.users.is_down.store(false, Ordering::SeqCst);
    let answer = host.send(Method::GET, "/whoami", &Who::Token(token).headers(), None).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "mel"));
    assert!(host.incidents.lock().unwrap().iter().any(|incident| incident.contains("Unavailable")));
}

/// Sessions whose lookup fails.
struct NoSessions;

impl Sessions for NoSessions {
    async fn actor(&self, _: &Parts) -> Result<Option<Actor>, DirectoryError> {
        Err(DirectoryError::new("the sessions are down"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_hears_of_sessions_that_do_not_answer() {
    let host = Host::new().await;
    let incidents = Arc::new(Mutex::new(Vec::new()));
    let heard = incidents.clone();
    let authenticator =
        Authenticator::new(host.tokens.clone()).on_incident(move |incident: Incident<'_>| {
            heard.lock().unwrap().push(format!("{incident:?}"));
        });
    let app = ManagementApi::new(authenticator, NoSessions);
    let request = Request::get("/user-tokens").body(Body::empty()).unwrap();
    let answer = app.oneshot(request).await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["retry-after"]),
        (503, &"1".parse().unwrap())
    );
    let incidents = incidents.lock().unwrap().join("\n");
    assert!(
        incidents.contains("the directory of owners did not answer")
            && incidents.contains("the sessions are down"),
        "{incidents}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_of_one_tenant_takes_no_token_of_another() {
    let host = Host::new().await;
    let (here, there) = (Realm::new("here").unwrap(), Realm::new("there").unwrap());
    let mel = |realm: &Realm| {
        Owner::new(id("mel"), OwnerKind::Human).with_role("member").in_realm(realm.clone())
    };
    let mut tokens = vec![];
    for realm in [&here, &there] {
        host.users.users.put(mel(realm));
        let actor = Actor::signed_in_to(realm.clone(), id("mel"));
        tokens.push(host.issue(&actor, NewToken::named("one")).await.1);
    }
    let bound = Authenticator::new(host.tokens.clone()).only_realm(here);
    let every = Authenticator::new(host.tokens.clone());
    let of = async |authenticator: &Authenticator<_, _>, text: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", format!("Bearer {text}").parse().unwrap());
        let found = authenticator.authenticate(&headers, &http::Extensions::new()).await;
        found
            .map(|verified| verified.unwrap().realm().as_str().to_owned())
            .map_err(|problem| problem.code())
    };
    assert_eq!(of(&bound, &tokens[0]).await, Ok("here".to_owned()));
    assert_eq!(of(&bound, &tokens[1]).await, Err("invalid_token"));
    assert_eq!(of(&every, &tokens[1]).await, Ok("there".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_a_call_does_not_have_is_not_named() {
    let host = Host::new().await;
    let target = host.token(Target::Service, "active").await;
    host.users
        .users
        .put(Owner::new(id("ci-bot"), OwnerKind::Service).with_role("robot").with_enabled(false));
    let path = format!("/user-tokens/{target}/rotate");
    let answer = host.call(&Who::Session("ada"), Method::POST, &path, Some(json!({}))).await;
    assert_eq!((answer.status, answer.pointers()), (422, vec![]), "{answer:?}");
    let new = json!({"name": "new", "user_id": "ci-bot"});
    let answer = host.call(&Who::Session("ada"), Method::POST, "/user-tokens", Some(new)).await;
    assert_eq!(
        (answer.status, answer.pointers()),
        (422, vec!["/user_id".to_owned()]),
        "{answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_counts_only_from_where_the_host_trusts() {
    let header = HeaderName::from_static("x-forwarded-for");
    let trusted = ClientAddress::forwarded(header, NonZeroU8::new(1).unwrap());
    for (wanted, forwarded, status) in [
        (None, "192.0.2.7", 401),
        (Some(trusted.clone()), "192.0.2.7", 200),
        (Some(trusted.clone()), "192.0.2.7, 127.0.0.1", 401),
        (Some(trusted), "", 401),
        (Some(ClientAddress::unknown()), "192.0.2.7", 401),
    ] {
        let host = Host::wanted(Wanted { address: wanted, ..Wanted::default() }).await;
        let (id, token) =
            host.issue(&session("mel"), NewToken::named("bound").networks(["192.0.2.0/24"])).await;
        let mut headers = Who::Token(token).headers();
        headers.push(("x-forwarded-for", forwarded.to_owned()));
        assert_eq!(
            host.send(Method::GET, "/whoami", &headers, None).await.status,
            status,
            "{forwarded}"
        );
        if status == 200 {
            host.tokens.flush().await.unwrap();
            let path = format!("/user-tokens/{id}");
            let shown: TokenBody =
                host.call(&Who::Session("mel"), Method::GET, &path, None).await.json();
            assert_eq!(shown.last_used_address.as_deref(), Some("192.0.2.7"));
            // The audit log has the address of a session too.
            let mut headers = Who::Session("mel").headers();
            headers.push(("x-forwarded-for", forwarded.to_owned()));
            headers.push(("content-type", "application/json".to_owned()));
            let body = Some(json!({"name": "audited"}).to_string());
            assert_eq!(
                host.send(Method::POST, "/api/user-tokens", &headers, body).await.status,
                201
            );
            let log = host.tokens.store();
            let events =
                log.events(&EventQuery::new(Realm::default()).from(start())).await.unwrap();
            let addresses: Vec<_> =
                events.events.iter().filter_map(|event| event.address).collect();
            assert_eq!(addresses, ["192.0.2.7".parse::<std::net::IpAddr>().unwrap()]);
        }
    }
    // The address of the connection.
    let host = Host::new().await;
    let (_, token) =
        host.issue(&session("mel"), NewToken::named("local").networks(["127.0.0.0/8"])).await;
    assert_eq!(
        host.send(Method::GET, "/whoami", &Who::Token(token).headers(), None).await.status,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn generation_is_limited_for_each_credential_after_authorization() {
    let limit = Some((2, Duration::from_secs(3_600)));
    let host = Host::wanted(Wanted { limit, ..Wanted::default() }).await;
    let make = async |who: &Who, name: &str| {
        host.call(who, Method::POST, "/user-tokens", Some(json!({"name": name}))).await
    };
    let (own, token) = host.issue(&session("mel"), NewToken::named("own").never_expires()).await;
    let (weak, leaked) =
        host.issue(&session("mel"), NewToken::named("leaked").scope([""; 0])).await;
    // A leaked token without permissions uses up no limit, not even its own.
    for _ in 0..5 {
        assert_eq!(make(&Who::Token(leaked.clone()), "0").await.status, 403);
    }
    // A request with an invalid body is not counted either.
    assert_eq!(make(&Who::Session("mel"), "").await.status, 422);
    for who in [Who::Session("mel"), Who::Token(token)] {
        let first = make(&who, &format!("{who:?}").chars().take(40).collect::<String>()).await;
        assert_eq!((first.status, first.header("ratelimit")), (201, Some("\"tokens\";r=1;t=3600")));
        assert_eq!(first.header("ratelimit-policy"), Some("\"tokens\";q=2;w=3600"));
        let rotate = format!("/user-tokens/{own}/rotate");
        let wrong = json!({"overlap_seconds": 99_999_999});
        assert_eq!(host.call(&who, Method::POST, &rotate, Some(wrong)).await.status, 422);
        host.clock.advance(TimeDelta::milliseconds(600_500));
        for path in ["/user-tokens", &rotate] {
            let body = if path == "/user-tokens" { json!({"name": "3"}) } else { json!({}) };
            let refused = host.call(&who, Method::POST, path, Some(body)).await;
            assert_eq!(
                (refused.status, refused.problem().code.as_str()),
                (429, "too_many_requests")
            );
            assert_eq!(refused.header("retry-after"), Some("3000"), "to the next whole second");
            assert_eq!(refused.header("ratelimit"), Some("\"tokens\";r=0;t=3000"));
        }
        assert_eq!(host.call(&who, Method::GET, "/user-tokens", None).await.status, 200);
    }
    assert_eq!(make(&Who::Session("other"), "1").await.status, 201);
    // A token may rotate itself, which counts for that token.
    let rotate = format!("/user-tokens/{weak}/rotate");
    let rotated = host.call(&Who::Token(leaked), Method::POST, &rotate, Some(json!({}))).await;
    assert_eq!((rotated.status, rotated.header("ratelimit")), (201, Some("\"tokens\";r=1;t=3600")));
    host.clock.advance(TimeDelta::seconds(3_000));
    assert_eq!(
        make(&Who::Session("mel"), "later").await.status,
        201,
        "after as long as Retry-After said"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_that_is_too_old_is_refused_before_the_limit_is_counted() {
    let limit = Some((1, Duration::from_secs(60)));
    for rotates in [false, true] {
        let host =
            Host::wanted(Wanted { limit, is_recent_sign_in: true, ..Wanted::default() }).await;
        let (own, _) = host.issue(&session("mel"), NewToken::named("own")).await;
        let path = if rotates {
            format!("/api/user-tokens/{own}/rotate")
        } else {
            "/api/user-tokens".into()
        };
        let body = Some(if rotates { json!({}) } else { json!({"name": "1"}) }.to_string());
        let mut headers = Who::Session("mel").headers();
        headers.push(("content-type", "application/json".to_owned()));
        for _ in 0..3 {
            let answer = host.send(Method::POST, &path, &headers, body.clone()).await;
            assert_eq!(
                (answer.status, answer.problem().code.as_str()),
                (403, "recent_sign_in_required")
            );
        }
        headers.push(("x-recent", "yes".to_owned()));
        assert_eq!(
            host.send(Method::POST, &path, &headers, body.clone()).await.status,
            201,
            "{path}"
        );
        let answer = host.send(Method::POST, &path, &headers, body).await;
        assert_eq!(answer.status, 429, "{path}: one is the most");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_other_schemes_are_none_and_the_session_beside_them_is_used() {
    let host = Host::new().await;
    for scheme in ["NTLM", "Negotiate", "AWS4-HMAC-SHA256", "Digest", "Bearerx"] {
        for rest in [
            "abc".to_owned(),
            "a".repeat(20_000),
            "caf\u{e9}".to_owned(),
            "a, b=\"c\"; d".to_owned(),
        ] {
            for (path, cookie, status) in [
                ("/whoami", "", 401),
                ("/maybe", "Cookie: session=mel\r\n", 200),
                ("/api/user-tokens", "Cookie: session=mel\r\n", 200),
                ("/api/user-tokens", "", 401),
            ] {
                let line = format!("Authorization: {scheme} {rest}\r\n");
                let start = format!(
                    "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{cookie}{line}"
                );
                let answer = host.raw(format!("{start}\r\n").as_bytes()).await;
                assert!(
                    answer.starts_with(&format!("HTTP/1.1 {status} ")),
                    "{scheme} {rest:.20} {answer}"
                );
                let twice = host.raw(format!("{start}{line}\r\n").as_bytes()).await;
                assert!(twice.starts_with("HTTP/1.1 400 "), "{scheme} {rest:.20} {twice}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_credential_is_none_where_the_host_says_so() {
    let host = Host::new().await;
    let (_, token) = host.issue(&session("mel"), NewToken::named("good")).await;
    let jwt = |length: usize| format!("Bearer eyJhbGciOiJFUzI1NiJ9.{}.c2ln", "a".repeat(length));
    let by_jwt = |request: &Parts| {
        let value = request.headers.get("authorization")?.to_str().ok()?;
        value.starts_with("Bearer eyJ").then(|| session("mel").proven_by_header())
    };
    let plain = Authenticator::new(host.tokens.clone());
    let ignoring = plain.clone().ignore_foreign();
    let app = |authenticator: &Authenticator<_, _>| -> Router {
        let seen = async |verified: Option<Verified>, headers: HeaderMap| {
            let header =
                headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
            format!("{} {}", verified.is_some(), header.unwrap_or_default())
        };
        Router::new()
            .route("/maybe", get(seen))
            .route_layer(authenticator.optional())
            .nest_service("/api", ManagementApi::new(authenticator.clone(), by_jwt))
    };
    let call = async |app: Router, method: Method, path: &str, header: &str| {
        let request = Request::builder().method(method).uri(path).header("authorization", header);
        let request = request.header("content-type", "application/json");
        let answer =
            app.oneshot(request.body(Body::from("{\"name\":\"by JWT\"}")).unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(answer.into_body(), 100_000).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    };
    for length in [1, 20_000] {
        let header = jwt(length);
        let (status, seen) = call(app(&ignoring), Method::GET, "/maybe", &header).await;
        assert_eq!((status, seen), (200, format!("false {header}")), "untouched");
        assert_ne!(call(app(&plain), Method::GET, "/maybe", &header).await.0, 200);
        assert_ne!(call(app(&plain), Method::GET, "/api/user-tokens", &header).await.0, 200);
        assert_eq!(call(app(&ignoring), Method::GET, "/api/user-tokens", &header).await.0, 200);
    }
    // Without `Sec-Fetch-Site` and `Origin`: no page can make a browser send that header.
    assert_eq!(call(app(&ignoring), Method::POST, "/api/user-tokens", &jwt(1)).await.0, 201);
    let mistyped = format!("Bearer {}", mistyped(&token));
    for (header, status) in [
        (format!("Bearer {token}"), 200),
        (mistyped, 401),
        ("Bearer acme_pat_".to_owned(), 401),
        ("Bearer acme_svc_x".to_owned(), 401),
        ("Bearer".to_owned(), 400),
        ("Bearer eyJ eyJ".to_owned(), 400),
        (format!("Bearer eyJ, Bearer {token}"), 400),
    ] {
        assert_eq!(
            call(app(&ignoring), Method::GET, "/maybe", &header).await.0,
            status,
            "{header}"
        );
        assert_eq!(
            call(app(&ignoring), Method::GET, "/api/user-tokens", &header).await.0,
            status,
            "{header}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_local_name_on_plain_http_works_and_other_origins_do_not() {
    let host = Host::new().await;
    let own = host.base.clone();
    for (number, (origin, passes)) in [
        (own.clone(), true),
        (own.replace("http://", "https://"), true),
        ("http://127.0.0.1".to_owned(), false),
        ("http://evil.local".to_owned(), false),
        (format!("{own}0"), false),
        ("null".to_owned(), false),
    ]
    .into_iter()
    .enumerate()
    {
        host.incidents.lock().unwrap().clear();
        let headers = [
            ("cookie", "session=mel".to_owned()),
            ("origin", origin.clone()),
            ("content-type", "application/json".to_owned()),
        ];
        let body = json!({"name": format!("token {number}")}).to_string();
        let answer = host.send(Method::POST, "/api/user-tokens", &headers, Some(body)).await;
        let incidents = host.incidents.lock().unwrap().join("");
        if passes {
            assert_eq!(answer.status, 201, "{origin} {answer:?}");
            assert_eq!(incidents, "");
        } else {
            let problem = answer.problem();
            assert_eq!((answer.status, problem.code.as_str()), (403, "cross_site"), "{origin}");
            assert!(
                problem.detail.contains("allow_origin") && problem.detail.contains("Host"),
                "{problem:?}"
            );
            assert!(
                incidents.contains("CrossSite(OtherOrigin") && incidents.contains(&origin),
                "{incidents}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_and_slashes_too_many_are_problems_and_bases_work_with_and_without() {
    let host = Host::new().await;
    let console = || {
        Console::new(
            &ManagementApi::new(Authenticator::new(host.tokens.clone()), signed_in),
            "/api/",
        )
    };
    let api = || ManagementApi::new(Authenticator::new(host.tokens.clone()), signed_in);
    let apps: [Router; 3] = [
        Router::new().nest_service("/a/api", api()).nest_service("/a/page", console()),
        Router::new().nest_service("/a/api/", api()).nest_service("/a/page/", console()),
        Router::new()
            .nest("/a", Router::new().nest_service("/api", api()).nest_service("/page", console())),
    ];
    for app in apps {
        let get = async |path: &str| {
            let request =
                Request::get(path).header("cookie", "session=mel").body(Body::empty()).unwrap();
            let answer = app.clone().oneshot(request).await.unwrap();
            let content_type = answer
                .headers()
                .get("content-type")
                .map(|value| value.to_str().unwrap().to_owned());
            let status = answer.status().as_u16();
            let body = axum::body::to_bytes(answer.into_body(), 1_000_000).await.unwrap();
            (status, content_type.unwrap_or_default(), String::from_utf8(body.to_vec()).unwrap())
        };
        assert_eq!(get("/a/api/user-tokens").await.0, 200);
        assert_eq!(get("/a/page/").await.0, 200);
        for path in [
            "/a/api/",
            "/a/api/x",
            "/a/api/user-tokens/",
            "/a/api/user-tokens/current/",
            "/a/api/user-tokens/x/y/z",
            "/a/api/user-tokens/x/rotate/",
            "/a/page/x",
            "/a/page/style.css/",
        ] {
            let (status, content_type, body) = get(path).await;
            assert_eq!(
                (status, content_type.as_str()),
                (404, "application/problem+json"),
                "{path}"
            );
            let problem: ProblemBody = serde_json::from_str(&body).unwrap();
            assert_eq!(problem.code, "no_such_path", "{path}");
        }
    }
    assert_eq!(
        serde_json::to_value(openapi("/api/")).unwrap(),
        serde_json::to_value(openapi("/api")).unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preflight_is_answered_by_a_cors_layer_that_is_outermost() {
    use tower_http::cors::CorsLayer;
    let host = Host::new().await;
    let authenticator = Authenticator::new(host.tokens.clone());
    let origin = "https://app.example.com";
    let cors = || {
        CorsLayer::new()
            .allow_origin(http::HeaderValue::from_static(origin))
            .allow_methods([Method::POST])
            .allow_headers([http::header::AUTHORIZATION, http::header::CONTENT_TYPE])
    };
    let routes = || Router::new().route("/data", get(async || "data"));
    let api = ManagementApi::new(authenticator.clone(), signed_in);
    let outermost = routes()
        .route_layer(authenticator.required())
        .nest_service("/api", api.clone())
        .layer(cors());
    let innermost =
        routes().layer(cors()).layer(authenticator.required()).nest_service("/api", api);
    for (app, statuses) in [(outermost, [200, 200]), (innermost, [401, 405])] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        for (path, status) in ["/data", "/api/user-tokens"].into_iter().zip(statuses) {
            let request = host
                .client
                .request(Method::OPTIONS, format!("{base}{path}"))
                .header("origin", origin);
            let request = request.header("access-control-request-method", "POST");
            let answer = request
                .header("access-control-request-headers", "authorization")
                .send()
                .await
                .unwrap();
            assert_eq!(answer.status(), status, "{path}");
            let allowed = answer.headers().get("access-control-allow-origin");
            assert_eq!(
                allowed.map(|value| value.to_str().unwrap()),
                (status == 200).then_some(origin)
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refused_field_is_told_at_once_by_its_pointer_and_unknown_query_fields_too() {
    let host = Host::new().await;
    let mel = Who::Session("mel");
    let body = json!({
        "name": "", "description": "a\u{7}", "expires_in_days": 30.5, "scopes": ["data:read", "A", 1, "b:*:c"],
        "allowed_networks": ["10.0.0.0/8", "10.0.0.1/8"], "user_id": 7, "x/y~z": 1,
    });
    let answer = host.call(&mel, Method::POST, "/user-tokens", Some(body)).await;
    let pointers: BTreeSet<String> = answer.pointers().into_iter().collect();
    let expected = [
        "/allowed_networks/1",
        "/description",
        "/expires_in_days",
        "/name",
        "/scopes/2",
        "/user_id",
        "/x~1y~0z",
    ];
    assert_eq!(pointers, expected.map(ToOwned::to_owned).into(), "{answer:?}");
    let body = json!({"name": "a", "scopes": ["data:read", "A", "b:*:c"], "allowed_networks": []});
    let answer = host.call(&mel, Method::POST, "/user-tokens", Some(body)).await;
    assert_eq!(answer.pointers(), ["/scopes/1", "/scopes/2", "/allowed_networks"], "{answer:?}");
    assert!(!answer.body.contains("entry") && !answer.body.contains("grant"), "{answer:?}");
    let body = json!({"name": "a", "scopes": ["dta:read", "data:read", "other:thing", "data:*"]});
    let answer = host.call(&mel, Method::POST, "/user-tokens", Some(body)).await;
    assert_eq!(
        (answer.status, answer.pointers()),
        (422, vec!["/scopes/0".to_owned(), "/scopes/2".to_owned()])
    );
    let details: Vec<String> =
        answer.problem().errors.into_iter().map(|error| error.detail).collect();
    let expected = [
        "there is no permission dta:read; write data:read if that was meant",
        "there is no permission other:thing; correct the permission or leave it out",
    ];
    assert_eq!(details, expected);
    let many = json!({"name": "a", "scopes": vec![1; 20_000]});
    let answer = host.call(&mel, Method::POST, "/user-tokens", Some(many)).await;
    assert!(answer.status == 422 && answer.body.len() < 20_000, "{}", answer.body.len());

    let id = host.token(Target::Personal, "active").await;
    for (method, path) in [
        (Method::GET, "/user-tokens".to_owned()),
        (Method::POST, "/user-tokens".to_owned()),
        (Method::GET, "/user-tokens/service".to_owned()),
        (Method::GET, "/user-tokens/current".to_owned()),
        (Method::DELETE, "/user-tokens/current".to_owned()),
        (Method::GET, format!("/user-tokens/{id}")),
        (Method::PUT, format!("/user-tokens/{id}")),
        (Method::PATCH, format!("/user-tokens/{id}")),
        (Method::DELETE, format!("/user-tokens/{id}")),
        (Method::POST, format!("/user-tokens/{id}/rotate")),
    ] {
        let answer =
            host.call(&mel, method, &format!("{path}?Limit=1&a=&a=2"), Some(json!({}))).await;
        assert_eq!(
            (answer.status, answer.pointers()),
            (422, vec!["/Limit".to_owned(), "/a".to_owned()]),
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_ended_for_its_owner_is_not_shown_as_active() {
    let host = Host::new().await;
    let id = host.token(Target::Personal, "active").await;
    let mel = Who::Session("mel");
    host.clock.advance(TimeDelta::hours(1));
    let signed_out = Owner::new(self::id("mel"), OwnerKind::Human).with_role("member");
    host.users.users.put(signed_out.with_tokens_valid_after(start() + TimeDelta::hours(1)));
    let path = format!("/user-tokens/{id}");
    let shown: Value = host.call(&mel, Method::GET, &path, None).await.json();
    assert_eq!((shown["state"].as_str(), shown["active"].as_bool()), (Some("ended"), Some(false)));
    for (body, state) in [
        (json!({"active": false}), "ended"),
        (json!({"active": false, "reason": "owner"}), "revoked"),
    ] {
        let answer = host.call(&mel, Method::PATCH, &path, Some(body)).await;
        assert_eq!(answer.json::<Value>()["state"], state, "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_with_a_zero_fraction_is_an_integer_wherever_one_is_read() {
    let host = Host::new().await;
    let mut headers = Who::Session("mel").headers();
    headers.push(("content-type", "application/json".to_owned()));
    for (number, status) in [
        ("30.0", 201),
        ("3e1", 201),
        ("300e-1", 201),
        ("30.5", 422),
        ("-0.0", 422),
        ("1e400", 422),
        ("\"NaN\"", 422),
        ("\"30\"", 422),
        ("true", 422),
        ("30.00000000000000000000001", 422),
    ] {
        let body = format!(
            "{{\"name\":\"n {}\",\"expires_in_days\":{number}}}",
            number.len() * 7 + usize::from(number.as_bytes()[1])
        );
        let answer = host.send(Method::POST, "/api/user-tokens", &headers, Some(body)).await;
        assert_eq!(answer.status, status, "{number} {answer:?}");
        if status == 422 {
            assert_eq!(answer.pointers(), ["/expires_in_days"], "{number}");
        }
        let id = host.token(Target::Personal, "active").await;
        let body = format!("{{\"overlap_seconds\":{number}}}");
        let answer = host
            .send(Method::POST, &format!("/api/user-tokens/{id}/rotate"), &headers, Some(body))
            .await;
        let status = if number == "-0.0" { 201 } else { status };
        assert_eq!(answer.status, status, "{number} {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_bound_to_the_version_that_was_read() {
    let host = Host::new().await;
    let id = host.token(Target::Personal, "active").await;
    let path = format!("/api/user-tokens/{id}");
    let mut headers = Who::Session("mel").headers();
    headers.push(("content-type", "application/json".to_owned()));
    let etag = async || {
        let shown = host.send(Method::GET, &path, &Who::Session("mel").headers(), None).await;
        shown.header("etag").unwrap().to_owned()
    };
    for (number, method) in [Method::PATCH, Method::PUT].into_iter().enumerate() {
        let now = etag().await;
        let bare = now.trim_matches('"').to_owned();
        for wrong in [
            "\"0\"",
            "\"99\", \"98\"",
            &format!("W/{now}"),
            &bare,
            "",
            "\"0",
            &format!("\"0{bare}\""),
            "\"*\"",
            "*, \"0\"",
        ] {
            let mut headers = headers.clone();
            headers.push(("if-match", wrong.to_owned()));
            let body = Some("{\"name\":\"wrong\"}".to_owned());
            let answer = host.send(method.clone(), &path, &headers, body).await;
            assert_eq!(
                (answer.status, answer.problem().code.as_str()),
                (412, "outdated"),
                "{wrong}"
            );
        }
        assert_eq!(etag().await, now, "nothing changed");
        for (place, right) in [now.clone(), "*".to_owned()].into_iter().enumerate() {
            let mut headers = headers.clone();
            let right = if place == 0 { format!("\"77\",  {right}") } else { right };
            headers.push(("if-match", right));
            let body = Some(json!({"name": format!("right {number} {place}")}).to_string());
            let answer = host.send(method.clone(), &path, &headers, body).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.header("etag").unwrap(), etag().await);
        }
        assert_ne!(etag().await, now);
    }
}

#[tokio::test]
async fn a_permission_is_not_demanded_of_a_request_that_no_layer_has_seen() {
    let host = Host::new().await;
    let (_, token) = host.issue(&session("mel"), NewToken::named("good")).await;
    let verified = host.tokens.verify(Credential::text(&token)).await.unwrap();
    let demand = RequirePermission::new("data:read").unwrap();
    let call = async |request: Request<Body>| {
        let app: Router = Router::new()
            .route("/layer", get(async || "in").layer(demand.clone()))
            .route("/permitted", get(async |_: Permitted<ReadData>| "in"))
            .route("/verified", get(async |_: Verified| "in"));
        app.oneshot(request).await.unwrap().status().as_u16()
    };
    for path in ["/layer", "/permitted", "/verified"] {
        let mut request = Request::get(path).body(Body::empty()).unwrap();
        assert_eq!(call(request).await, 500, "{path}");
        request = Request::get(path).body(Body::empty()).unwrap();
        request.extensions_mut().insert(verified.clone());
        assert_eq!(call(request).await, 500, "{path}");
        request = Request::get(path).body(Body::empty()).unwrap();
        patkit::testkit::let_through(request.extensions_mut(), Some(verified.clone()));
        assert_eq!(call(request).await, 200, "{path}");
        request = Request::get(path).body(Body::empty()).unwrap();
        patkit::testkit::let_through(request.extensions_mut(), None);
        assert_eq!(call(request).await, 401, "{path}");
    }
}

/// A [`Verified`] that other code left in the extensions is not taken for the layer's own.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_credential_has_no_token_whatever_was_left_in_its_extensions() {
    let host = Host::new().await;
    let (_, token) = host.issue(&session("mel"), NewToken::named("good")).await;
    let (_, other) = host.issue(&session("other"), NewToken::named("good")).await;
    let left = host.tokens.verify(Credential::text(&token)).await.unwrap();
    for (credential, expected) in [(None, "nobody"), (Some(&other), "token of other")] {
        let mut request = Request::get("/maybe").body(Body::empty()).unwrap();
        request.extensions_mut().insert(left.clone());
        if let Some(credential) = credential {
            let value = format!("Bearer {credential}").parse().unwrap();
            request.headers_mut().insert("authorization", value);
        }
        let layer = Authenticator::new(host.tokens.clone()).optional();
        let app: Router = Router::new().route("/maybe", get(maybe)).layer(layer);
        let answer = app.oneshot(request).await.unwrap();
        let shown = axum::body::to_bytes(answer.into_body(), 1_000).await.unwrap();
        assert_eq!(shown, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_out_of_bounds_is_brought_within_them() {
    for (limit, seconds) in
        [((0, Duration::MAX), "31536000"), ((0, Duration::from_secs(1 << 40)), "31536000")]
    {
        let host = Host::wanted(Wanted { limit: Some(limit), ..Wanted::default() }).await;
        let make = async |name: &str| {
            host.call(
                &Who::Session("mel"),
                Method::POST,
                "/user-tokens",
                Some(json!({"name": name})),
            )
            .await
        };
        assert_eq!(make("1").await.status, 201, "{limit:?}");
        let refused = make("2").await;
        assert_eq!(
            (refused.status, refused.header("retry-after")),
            (429, Some(seconds)),
            "{limit:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_can_demand_a_recent_sign_in() {
    let host = Host::wanted(Wanted { is_recent_sign_in: true, ..Wanted::default() }).await;
    let (own, token) = host.issue(&session("mel"), NewToken::named("own").never_expires()).await;
    let rotate = format!("/api/user-tokens/{own}/rotate");
    let body = |name: &str| Some(json!({"name": name}).to_string());
    let mut headers = Who::Session("mel").headers();
    headers.push(("content-type", "application/json".to_owned()));
    for (path, body) in [("/api/user-tokens", body("1")), (rotate.as_str(), Some("{}".to_owned()))]
    {
        let answer = host.send(Method::POST, path, &headers, body).await;
        assert_eq!(
            (answer.status, answer.problem().code.as_str()),
            (403, "recent_sign_in_required")
        );
    }
    assert_eq!(host.send(Method::GET, "/api/user-tokens", &headers, None).await.status, 200);
    headers.push(("x-recent", "yes".to_owned()));
    assert_eq!(host.send(Method::POST, "/api/user-tokens", &headers, body("1")).await.status, 201);
    let by_token = host
        .call(&Who::Token(token), Method::POST, "/user-tokens", Some(json!({"name": "2"})))
        .await;
    assert_eq!(by_token.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_makes_nothing_wider_than_itself() {
    let host = Host::new().await;
    let scope = ["tokens:manage", "data:read"];
    let new = NewToken::named("narrow").scope(scope).expires_in_days(10).networks(["127.0.0.0/8"]);
    let (_, token) = host.issue(&session("mel"), new).await;
    let who = Who::Token(token);
    let fits = json!({"name": "fits", "scopes": ["data:read"], "expires_in_days": 10, "allowed_networks": ["127.0.0.1/32"]});
    assert_eq!(host.call(&who, Method::POST, "/user-tokens", Some(fits.clone())).await.status, 201);
    for (field, value, status) in [
        ("scopes", json!(["data:*"]), 403),
        ("allowed_networks", json!(["0.0.0.0/0"]), 403),
        ("expires_in_days", json!(11), 422),
        ("expires_in_days", json!(null), 422),
    ] {
        let mut body = fits.clone();
        body["name"] = json!("wider");
        body[field] = value;
        let answer = host.call(&who, Method::POST, "/user-tokens", Some(body)).await;
        assert_eq!(answer.status, status, "{field} {answer:?}");
        if status == 403 {
            let challenge = r#"Bearer realm="Acme", error="insufficient_scope""#;
            assert_eq!(answer.header("www-authenticate"), Some(challenge));
        } else {
            assert_eq!(answer.pointers(), [format!("/{field}")]);
        }
    }
    // Without a scope, it would inherit all permissions.
    let answer =
        host.call(&who, Method::POST, "/user-tokens", Some(json!({"name": "wider"}))).await;
    assert_eq!(answer.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_names_every_call_and_no_other() {
    let host = Host::new().await;
    let document: Value = serde_json::to_value(openapi("/api")).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    assert_eq!(document["servers"][0]["url"], "/api");
    // Every reference resolves.
    let text = document.to_string();
    let references: BTreeSet<&str> =
        text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(references.len() >= 7, "{references:?}");
    for reference in references {
        assert!(document.pointer(reference).is_some(), "{reference}");
    }
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 5);
    let id = host.token(Target::Personal, "active").await;
    for (path, calls) in paths {
        let path = format!("/api{}", path.replace("{id}", &id.to_string()));
        for method in
            [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS]
        {
            let answer = host.send(method.clone(), &path, &[], None).await;
            let is_there = calls.get(method.as_str().to_lowercase()).is_some();
            // Nobody is signed in, so every existing call answers 401 first.
            let expected =
                if is_there { (401, "no_credential") } else { (405, "method_not_allowed") };
            assert_eq!(
                (answer.status, answer.problem().code.as_str()),
                expected,
                "{method} {path}"
            );
            if !is_there {
                let allowed: BTreeSet<&str> =
                    answer.header("allow").unwrap().split(',').filter(|m| *m != "HEAD").collect();
                let documented: BTreeSet<String> =
                    calls.as_object().unwrap().keys().map(|m| m.to_uppercase()).collect();
                assert_eq!(allowed, documented.iter().map(String::as_str).collect(), "{path}");
            }
        }
    }
    // The documented fields are exactly those that are read.
    let fields = &document["components"]["schemas"]["NewTokenBody"]["properties"];
    let names: BTreeSet<&str> = fields.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "allowed_networks",
        "description",
        "expires_in_days",
        "name",
        "scim_endpoints_only",
        "scopes",
        "user_id",
    ];
    assert_eq!(names, BTreeSet::from(expected));
    assert_eq!(document["components"]["schemas"]["NewTokenBody"]["additionalProperties"], false);
    assert_eq!(document["components"]["schemas"]["NewTokenBody"]["required"], json!(["name"]));
    assert_eq!(fields["expires_in_days"]["type"], json!(["integer", "null"]), "{fields}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_has_the_hosts_title_and_theme_and_tells_what_its_user_may_do() {
    let host = Host::new().await;
    let page = host.send(Method::GET, "/settings", &[], None).await;
    assert!(
        page.body.contains("<title>&lt;Tokens&gt;</title>")
            && page.body.contains("content=\"/api\"")
    );
    assert!(page.body.contains("href=\"./settings/style.css\""), "{page:?}");
    let style = host.send(Method::GET, "/settings/style.css", &[], None).await;
    assert!(style.body.ends_with("\n:root { --patkit-accent: #0a7; }"), "{:?}", style.headers);
    let settings = async |who: &Who| {
        host.send(Method::GET, "/settings/settings.json", &who.headers(), None).await
    };
    assert_eq!(settings(&Who::Nobody).await.status, 401);
    assert_eq!(settings(&Who::Session("ghost")).await.status, 401);
    let guest: Value = settings(&Who::Session("guest")).await.json();
    assert_eq!(guest["may"], json!({"personal": false, "service": false, "scim": false}));
    assert_eq!((&guest["user"]["id"], &guest["scopes"]), (&json!("guest"), &json!(["data:read"])));
    let (_, narrow) =
        host.issue(&session("ada"), NewToken::named("narrow").scope(["tokens:manage"])).await;
    let through: Value = settings(&Who::Token(narrow)).await.json();
    assert_eq!(through["may"], json!({"personal": true, "service": false, "scim": false}));
    assert_eq!(through["scopes"], json!(["tokens:manage"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_one_users_page_does_nothing_for_another() {
    let host = Host::new().await;
    let mel = Who::Session("mel");
    let get = async |who: &Who| host.call(who, Method::GET, "/user-tokens", None).await;
    let marker = async |who: &Who| get(who).await.header("patkit-user").unwrap().to_owned();
    let (mels, adas) = (marker(&mel).await, marker(&Who::Session("ada")).await);
    assert_ne!(mels, adas);
    let (own, bearer) = host.issue(&session("mel"), NewToken::named("of mel")).await;
    let bearer = Who::Token(bearer);
    assert_eq!(marker(&bearer).await, mels, "the same through a token");
    let body = |value: Value| Some(value.to_string());
    let calls = [
        (Method::GET, "/api/user-tokens".to_owned(), None, 200),
        (Method::GET, "/settings/settings.json".to_owned(), None, 200),
        (Method::GET, format!("/api/user-tokens/{own}"), None, 200),
        (Method::POST, "/api/user-tokens".to_owned(), body(json!({"name": "another"})), 201),
        (Method::PUT, format!("/api/user-tokens/{own}"), body(json!({"name": "renamed"})), 200),
        (Method::PUT, format!("/api/user-tokens/{own}"), body(json!({"active": false})), 200),
        (Method::DELETE, format!("/api/user-tokens/{own}"), None, 204),
        (Method::POST, format!("/api/user-tokens/{own}/rotate"), body(json!({})), 404),
    ];
    let before = get(&mel).await.body;
    let bad = [
        vec![&*adas],
        vec![&*mels, &*adas],
        vec![&*adas, &*mels],
        vec![""],
        vec!["mel"],
        vec!["*"],
    ];
    for who in [&mel, &bearer] {
        for (method, path, body, _) in &calls {
            for markers in &bad {
                let mut headers = who.headers();
                headers.push(("content-type", "application/json".to_owned()));
                headers.extend(markers.iter().map(|marker| ("patkit-user", (*marker).to_owned())));
                let answer = host.send(method.clone(), path, &headers, body.clone()).await;
                assert_eq!(
                    (answer.status, &*answer.problem().code),
                    (412, "user_changed"),
                    "{answer:?}"
                );
            }
        }
    }
    assert_eq!(get(&mel).await.body, before, "nothing has changed");
    for (method, path, body, status) in calls {
        let mut headers = mel.headers();
        headers.push(("content-type", "application/json".to_owned()));
        headers.push(("patkit-user", mels.clone()));
        let answer = host.send(method, &path, &headers, body).await;
        assert_eq!(
            (answer.status, answer.header("patkit-user")),
            (status, Some(&*mels)),
            "{answer:?}"
        );
    }
    let nobody = host.call(&Who::Nobody, Method::GET, "/user-tokens", None).await;
    assert_eq!((nobody.status, nobody.header("patkit-user")), (401, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_are_none_are_answered_like_ids_of_nobody() {
    let host = Host::new().await;
    let unknown = host.token(Target::Personal, "active").await.to_string();
    for (who, status) in
        [(Who::Session("other"), 404), (Who::Session("guest"), 403), (Who::Nobody, 401)]
    {
        for id in [
            unknown.as_str(),
            "x",
            "0000000000000000000000",
            "%00",
            "%ff",
            "..%2f",
            &"a".repeat(5_000),
        ] {
            for (method, body) in [
                (Method::GET, None),
                (Method::PUT, Some(json!({"active": false}))),
                (Method::DELETE, None),
            ] {
                let answer =
                    host.call(&who, method.clone(), &format!("/user-tokens/{id}"), body).await;
                assert_eq!(answer.status, status, "{method} {id:.30} {answer:?}");
            }
        }
    }
    // The refused calls changed nothing: the owner can still edit the token.
    let edit = TokenEdit::new().active(true);
    host.tokens.edit(&session("mel"), unknown.parse().unwrap(), edit).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_works_under_a_path_with_parameters_of_the_hosts() {
    let host = Host::new().await;
    let (id, _) = host.issue(&session("mel"), NewToken::named("here")).await;
    let mut headers = Who::Session("mel").headers();
    headers.push(("content-type", "application/json".to_owned()));
    let one = format!("/of/acme/x/user-tokens/{id}");
    let answer = host.send(Method::GET, &one, &headers, None).await;
    assert_eq!((answer.status, answer.json::<TokenBody>().id), (200, id.to_string()));
    let answer =
        host.send(Method::POST, &format!("{one}/rotate"), &headers, Some("{}".to_owned())).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let answer = host.send(Method::DELETE, &one, &headers, None).await;
    assert_eq!(answer.status, 204, "{answer:?}");
}

/// A service that answers only after it was polled ready, and each clone must be polled again.
#[derive(Default)]
struct Strict {
    is_ready: bool,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Service<Request<Body>> for Strict {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        assert!(std::mem::take(&mut self.is_ready), "it was not found ready");
        ready(Ok(Response::new(Body::from(format!("{:?}", request.headers())))))
    }
}

#[tokio::test]
async fn layers_call_what_was_found_ready_and_hide_the_credential_from_its_logs() {
    let host = Host::new().await;
    let (_, token) = host.issue(&session("mel"), NewToken::named("good")).await;
    let authenticator = Authenticator::new(host.tokens.clone());
    let demands = RequirePermission::new("data:read").unwrap();
    let mut service = authenticator.required().layer(demands.layer(Strict::default()));
    for _ in 0..2 {
        let request = Request::get("/").header("authorization", format!("Bearer {token}"));
        let request = request.body(Body::empty()).unwrap();
        let answer = service.ready().await.unwrap().call(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        let shown = axum::body::to_bytes(Body::new(answer.into_body()), 10_000).await.unwrap();
        let shown = str::from_utf8(&shown).unwrap();
        assert!(shown.contains("authorization") && !shown.contains(&token), "{shown}");
    }
    let mut open = authenticator.optional().layer(Strict::default());
    for _ in 0..2 {
        let request = Request::get("/")
            .header("authorization", "Basic c2VjcmV0")
            .body(Body::empty())
            .unwrap();
        let answer = open.ready().await.unwrap().call(request).await.unwrap();
        let shown = axum::body::to_bytes(Body::new(answer.into_body()), 10_000).await.unwrap();
        assert!(!str::from_utf8(&shown).unwrap().contains("c2VjcmV0"), "{shown:?}");
    }
}

#[tokio::test]
async fn the_hosts_sessions_are_asked_without_a_credential_in_their_logs() {
    let host = Host::new().await;
    let shown = Arc::new(Mutex::new(String::new()));
    let seen = shown.clone();
    let sessions = move |request: &Parts| -> Option<Actor> {
        *seen.lock().unwrap() = format!("{request:?}");
        None
    };
    let app = ManagementApi::new(Authenticator::new(host.tokens.clone()), sessions);
    let request = Request::get("/user-tokens").header("authorization", "Basic c2VjcmV0");
    let answer = app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 401);
    let shown = shown.lock().unwrap().clone();
    assert!(shown.contains("authorization") && !shown.contains("c2VjcmV0"), "{shown}");
}
