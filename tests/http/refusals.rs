//! Every refusal over a socket, byte for byte, from hosts on several frameworks.
//!
//! All hosts run the same test. Each has the routes `/required/x`, `/permitted/x` (which needs
//! `data:write`) and `/optional/x`, which answer with the owner's id or `nobody`, `/own/x`, which
//! verifies and refuses without a layer, and the management API below `/api`.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "refusals/actix.rs"]
mod actix;
#[path = "refusals/axum.rs"]
mod axum;
#[path = "refusals/hyper.rs"]
mod hyper;
#[path = "refusals/poem.rs"]
mod poem;
#[path = "refusals/tonic.rs"]
mod tonic;

use super::http::with_other_secret;
use chrono::TimeDelta;
use http::request::Parts;
use patkit::http::{Authenticator, ManagementApi, Problem};
use patkit::owner::DirectoryError;
use patkit::service::RejectReason;
use patkit::{
    Actor, Credential, Directory, Keyring, ManualClock, MemoryDirectory, MemoryStore, NewToken,
    Owner, OwnerId, OwnerKind, Realm, Reason, RoleCatalog, TokenService,
};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The users of the hosts, and a directory that can fail.
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
type Auth = Authenticator<MemoryStore, Arc<Users>>;
type Api = ManagementApi<MemoryStore, Arc<Users>, fn(&Parts) -> Option<Actor>>;

/// Returns the management API under this path, for tokens alone.
fn api(authenticator: &Auth, base: &str) -> Api {
    let nobody: fn(&Parts) -> Option<Actor> = |_| None;
    ManagementApi::builder(authenticator.clone(), nobody).base_path(base).build()
}

/// Verifies a request and demands a permission without a layer.
async fn by_hand(authenticator: &Auth, headers: Vec<Vec<u8>>) -> Result<String, Problem> {
    let credential = Credential::headers(&headers).from_address(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let verified = authenticator.tokens().verify(credential).await;
    let verified = verified.map_err(|error| authenticator.challenge().refused(&error))?;
    verified.require("data:write").map_err(|denied| authenticator.challenge().denied(&denied))?;
    Ok(verified.owner().id().to_string())
}

fn id(text: &str) -> OwnerId {
    OwnerId::new(text).unwrap()
}

/// An answer without the headers that are the server's own.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    headers: Vec<String>,
    /// The announced length of the body.
    length: usize,
    body: String,
}

impl Answer {
    fn problem(status: u16, headers: &[&str], body: &str) -> Self {
        let own = ["cache-control: no-store", "content-type: application/problem+json"];
        let mut headers: Vec<String> =
            own.iter().chain(headers).map(|line| (*line).to_owned()).collect();
        headers.sort();
        Self { status, headers, length: body.len(), body: body.to_owned() }
    }

    fn read(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap();
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
        let length = length.unwrap_or_else(|| panic!("{text:?}")).parse().unwrap();
        let is_servers = |line: &&str| {
            ["date", "connection", "content-length"].contains(&line.split(':').next().unwrap())
        };
        let mut headers: Vec<String> =
            lines.filter(|line| !is_servers(line)).map(str::to_owned).collect();
        headers.sort();
        Self { status: status.parse().unwrap(), headers, length, body: body.to_owned() }
    }
}

/// Sends these lines as they are.
async fn send(address: SocketAddr, method: &str, path: &str, lines: &[&str], body: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let lines: String = lines.iter().flat_map(|line| [line, "\r\n"]).collect();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    Answer::read(str::from_utf8(&answer).unwrap())
}

/// What a request presents, and why it is refused.
struct Case {
    reason: RejectReason,
    headers: Vec<String>,
}

struct World {
    tokens: Arc<Tokens>,
    users: Arc<Users>,
    cases: Vec<Case>,
    /// A token that may do everything, and one that lacks `data:write` and `tokens:manage`.
    good: String,
    narrow: String,
}

impl World {
    async fn new() -> Self {
        let human = |name: &str| Owner::new(id(name), OwnerKind::Human).with_role("editor");
        let users: MemoryDirectory =
            ["ada", "off", "gone", "old", "bot"].into_iter().map(human).collect();
        let users = Arc::new(Users { users, is_down: AtomicBool::new(false) });
        let roles = RoleCatalog::standard_builder()
            .role("editor")
            .inherits("editor", "member")
            .grant("editor", ["data:*"]);
        let clock = Arc::new(ManualClock::at(chrono::DateTime::UNIX_EPOCH));
        let service = || {
            let service = TokenService::builder(MemoryStore::new(), users.clone());
            let service = service.brand("acme").keyring(Keyring::ephemeral().unwrap());
            let roles = roles.clone().build().unwrap();
            Arc::new(service.roles(roles).clock(clock.clone()).build().unwrap())
        };
        let (tokens, elsewhere): (Arc<Tokens>, Arc<Tokens>) = (service(), service());
        let issue = async |tokens: &Tokens, owner: &str, new: NewToken| {
            let issued = tokens.generate(&Actor::signed_in(id(owner)), new).await.unwrap();
            (issued.token.id(), issued.plaintext.expose_secret().to_owned())
        };
        let named = |name: &str| NewToken::named(name).expires_in_days(90);
        let (_, good) = issue(&tokens, "ada", named("good")).await;
        let (_, narrow) = issue(&tokens, "ada", named("narrow").scope(["data:read"])).await;
        let (revoked_id, revoked) = issue(&tokens, "ada", named("revoked")).await;
        tokens.revoke(&Actor::signed_in(id("ada")), revoked_id, Reason::Owner).await.unwrap();
        let (_, expired) = issue(&tokens, "ada", named("expired").expires_in_days(1)).await;
        let (_, bound) = issue(&tokens, "ada", named("bound").networks(["192.0.2.0/24"])).await;
        let (_, unknown) = issue(&elsewhere, "ada", named("elsewhere")).await;
        let (_, disabled) = issue(&tokens, "off", named("disabled")).await;
        let (_, of_nobody) = issue(&tokens, "gone", named("of nobody")).await;
        let (_, old) = issue(&tokens, "old", named("old")).await;
        let (_, of_service) = issue(&tokens, "bot", named("of a service")).await;
        let put = |owner: Owner| users.users.put(owner.with_role("editor"));
        put(Owner::new(id("off"), OwnerKind::Human).with_enabled(false));
        users.users.remove(&Realm::default(), &id("gone"));
        let later = chrono::DateTime::UNIX_EPOCH + TimeDelta::seconds(1);
        put(Owner::new(id("old"), OwnerKind::Human).with_tokens_valid_after(later));
        put(Owner::new(id("bot"), OwnerKind::Service));
        clock.advance(TimeDelta::days(2));

        let bearer = |reason, text: &str| Case {
            reason,
            headers: vec![format!("Authorization: Bearer {text}")],
        };
        let wrong_secret = with_other_secret(&good, &narrow);
        let cases = vec![
            Case { reason: RejectReason::NoCredential, headers: vec![] },
            Case {
                reason: RejectReason::NoCredential,
                headers: vec!["Authorization: Basic YTpi".to_owned()],
            },
            bearer(RejectReason::InvalidRequest, ""),
            bearer(RejectReason::InvalidRequest, &format!("{good} {good}")),
            Case {
                reason: RejectReason::InvalidRequest,
                headers: vec![format!("Authorization: Bearer {good}"); 2],
            },
            bearer(RejectReason::Malformed, "acme_pat_x"),
            bearer(RejectReason::Unknown, &unknown),
            bearer(RejectReason::WrongSecret, &wrong_secret),
            bearer(RejectReason::Revoked, &revoked),
            bearer(RejectReason::Expired, &expired),
            bearer(RejectReason::OwnerDisabled, &disabled),
            bearer(RejectReason::OwnerUnknown, &of_nobody),
            bearer(RejectReason::OwnerKind, &of_service),
            bearer(RejectReason::BeforeValidAfter, &old),
            bearer(RejectReason::AddressNotAllowed, &bound),
        ];
        Self { tokens, users, cases, good, narrow }
    }

    fn authenticator(&self) -> Auth {
        Authenticator::new(self.tokens.clone()).challenge_realm("Acme").unwrap()
    }

    /// Checks that each case is refused for its reason, and that no reason lacks a case.
    async fn check_cases(&self) {
        for case in &self.cases {
            let values = case.headers.iter().map(|line| line.split_once(": ").unwrap().1);
            let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
            let credential = values.collect::<Vec<_>>();
            let credential = Credential::headers(&credential).from_address(address);
            let error = self.tokens.verify(credential).await.unwrap_err();
            assert_eq!(error.reject_reason(), Some(case.reason), "{:?}", case.headers);
        }
        for reason in RejectReason::ALL {
            assert!(self.cases.iter().any(|case| case.reason == reason), "{reason}");
        }
    }
}

fn refused(reason: RejectReason) -> Answer {
    match reason {
        RejectReason::NoCredential => Answer::problem(
            401,
            &[r#"www-authenticate: Bearer realm="Acme""#],
            r#"{"type":"about:blank","title":"Unauthorized","status":401,"detail":"the request has no bearer credential; send the header `Authorization: Bearer <token>`","code":"no_credential"}"#,
        ),
        RejectReason::InvalidRequest => Answer::problem(
            400,
            &[r#"www-authenticate: Bearer realm="Acme", error="invalid_request""#],
            r#"{"type":"about:blank","title":"Bad Request","status":400,"detail":"the request does not have exactly one well-formed bearer credential; send the header `Authorization: Bearer <token>` once","code":"invalid_request"}"#,
        ),
        _ => Answer::problem(
            401,
            &[r#"www-authenticate: Bearer realm="Acme", error="invalid_token""#],
            r#"{"type":"about:blank","title":"Unauthorized","status":401,"detail":"the token is refused; send the whole text of a token that is active","code":"invalid_token"}"#,
        ),
    }
}

fn denied(permission: &str) -> Answer {
    let challenge = format!(
        r#"www-authenticate: Bearer realm="Acme", error="insufficient_scope", scope="{permission}""#
    );
    let body = format!(
        r#"{{"type":"about:blank","title":"Forbidden","status":403,"detail":"the token does not have the permission {permission}; use a token that has it","code":"insufficient_scope"}}"#
    );
    Answer::problem(403, &[&challenge], &body)
}

fn unavailable() -> Answer {
    Answer::problem(
        503,
        &["retry-after: 1"],
        r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"the service is not available at the moment; try again","code":"unavailable"}"#,
    )
}

/// The test of every host, which this function starts.
async fn refuses_alike(start: impl AsyncFnOnce(Auth) -> SocketAddr) {
    let world = World::new().await;
    world.check_cases().await;
    let address = start(world.authenticator()).await;
    let get = async |path: &str, headers: &[String]| {
        let lines: Vec<&str> = headers.iter().map(String::as_str).collect();
        send(address, "GET", path, &lines, "").await
    };
    let paths = ["/required/x", "/permitted/x", "/optional/x", "/own/x", "/api/user-tokens"];
    for case in &world.cases {
        for path in paths {
            let answer = get(path, &case.headers).await;
            if path == "/optional/x" && case.reason == RejectReason::NoCredential {
                assert_eq!((answer.status, answer.body.as_str()), (200, "nobody"));
            } else {
                assert_eq!(answer, refused(case.reason), "{path} {:?}", case.headers);
            }
        }
    }
    let good = [format!("Authorization: bearer {}", world.good)];
    let narrow = [format!("authorization:  Bearer {}", world.narrow)];
    for path in paths {
        let expected = match path {
            "/permitted/x" | "/own/x" => Some("data:write"),
            "/api/user-tokens" => Some("tokens:manage"),
            _ => None,
        };
        let answer = get(path, &narrow).await;
        match expected {
            Some(permission) if path == "/api/user-tokens" => {
                let mut answer = answer;
                answer.headers.retain(|line| !line.starts_with("patkit-user: "));
                assert_eq!(answer, denied(permission), "{path}");
            }
            Some(permission) => assert_eq!(answer, denied(permission), "{path}"),
            None => assert_eq!((answer.status, answer.body.as_str()), (200, "ada"), "{path}"),
        }
        assert_eq!(get(path, &good).await.status, 200, "{path}");
    }
    let head = send(address, "HEAD", "/api/user-tokens", &[&good[0]], "").await;
    let got = get("/api/user-tokens", &good).await;
    assert!(head.body.is_empty() && got.length > 2, "{head:?}");
    assert_eq!(head, Answer { body: String::new(), ..got });
    let of_api = async |method: &str, path: &str, body: &str| {
        send(address, method, path, &[&good[0], "Content-Type: application/json"], body).await
    };
    let made = of_api("POST", "/api/user-tokens", r#"{"name":"by the API"}"#).await;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(of_api("POST", "/api/user-tokens", &" ".repeat(200_000)).await.status, 413);
    assert_eq!(of_api("POST", "/api/user-tokens", "{").await.status, 400);
    let wrong = of_api("DELETE", "/api/user-tokens", "").await;
    assert_eq!((wrong.status, &wrong.headers[0][..]), (405, "allow: GET,HEAD,POST"));
    assert_eq!(of_api("GET", "/api/user-tokens/", "").await.status, 404);
    assert_eq!(of_api("GET", "/api/%75ser-tokens", "").await.status, 404);
    world.users.is_down.store(true, Ordering::SeqCst);
    for path in paths {
        assert_eq!(get(path, &good).await, unavailable(), "{path}");
    }
}
