//! The carriers beside `Authorization: Bearer`: HTTP Basic, named headers and a bare token.

#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::WWW_AUTHENTICATE;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::Empty;
use patkit::http::{Authenticator, BasicCarrier, CarrierError, Incident, ManagementApi, Problem};
use patkit::{
    Actor, Keyring, MemoryDirectory, MemoryStore, NewToken, Owner, OwnerId, OwnerKind, Reason,
    TokenService, Verified,
};
use std::sync::{Arc, Mutex};
use tower::ServiceExt;

type Tokens = TokenService<MemoryStore, MemoryDirectory>;
type Auth = Authenticator<MemoryStore, MemoryDirectory>;

fn id(text: &str) -> OwnerId {
    OwnerId::new(text).unwrap()
}

/// Returns a service and the text of one token.
async fn world() -> (Arc<Tokens>, String) {
    let ada = Owner::new(id("ada"), OwnerKind::Human).with_role("member");
    let tokens = TokenService::builder(MemoryStore::new(), MemoryDirectory::from_iter([ada]));
    let tokens: Tokens =
        tokens.brand("acme").keyring(Keyring::ephemeral().unwrap()).build().unwrap();
    let new = NewToken::named("ci").expires_in_days(30);
    let issued = tokens.generate(&Actor::signed_in(id("ada")), new).await.unwrap();
    (Arc::new(tokens), issued.plaintext.expose_secret().to_owned())
}

/// Returns an authenticator with every carrier.
fn with_all(tokens: &Arc<Tokens>) -> Auth {
    Authenticator::new(tokens.clone())
        .accept_basic(BasicCarrier::any_user())
        .accept_header("X-API-Key")
        .unwrap()
        .accept_header("private-token")
        .unwrap()
        .accept_bare()
}

fn basic(pair: impl AsRef<[u8]>) -> String {
    format!("Basic {}", STANDARD.encode(pair))
}

/// The headers of a request, which may have bytes that are not ASCII.
fn headers(lines: &[(&str, &[u8])]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        let name: HeaderName = name.parse().unwrap();
        headers.append(name, HeaderValue::from_bytes(value).unwrap());
    }
    headers
}

/// Returns the status of a refusal, 200 for a token, and 0 without a credential.
fn status(outcome: &Result<Option<Verified>, Problem>) -> u16 {
    match outcome {
        Ok(Some(_)) => 200,
        Ok(None) => 0,
        Err(problem) => problem.status().as_u16(),
    }
}

/// A row of a table: header lines, and the status.
type Row<'a> = (Vec<(&'a str, Vec<u8>)>, u16);

async fn check(authenticator: &Auth, rows: Vec<Row<'_>>) {
    for (lines, expected) in rows {
        let lines: Vec<(&str, &[u8])> =
            lines.iter().map(|(name, value)| (*name, value.as_slice())).collect();
        let headers = headers(&lines);
        let outcome = authenticator.authenticate(&headers, &Extensions::new()).await;
        assert_eq!(status(&outcome), expected, "{:.200}", format!("{lines:?} {outcome:?}"));
    }
}

fn one(name: &str, value: impl Into<Vec<u8>>, status: u16) -> Row<'_> {
    (vec![(name, value.into())], status)
}

#[tokio::test]
async fn a_carrier_is_read_only_if_the_host_has_added_it() {
    let (tokens, good) = world().await;
    let plain = Authenticator::new(tokens.clone());
    let rows = || {
        vec![
            one("authorization", basic(format!("git:{good}")), 0),
            one("authorization", good.clone(), 0),
            one("x-api-key", good.clone(), 0),
            one("private-token", good.clone(), 0),
        ]
    };
    check(&plain, rows()).await;
    // Each switch adds its own carrier and no other.
    let switches: [fn(Auth) -> Auth; 4] = [
        |auth| auth.accept_basic(BasicCarrier::any_user()),
        Auth::accept_bare,
        |auth| auth.accept_header("X-API-Key").unwrap(),
        |auth| auth.accept_header("Private-Token").unwrap(),
    ];
    for (added, switch) in switches.iter().enumerate() {
        let authenticator = switch(plain.clone());
        let mut rows = rows();
        for (index, (_, status)) in rows.iter_mut().enumerate() {
            *status = if index == added { 200 } else { 0 };
        }
        check(&authenticator, rows).await;
        check(&authenticator, vec![one("authorization", format!("Bearer {good}"), 200)]).await;
    }
}

#[tokio::test]
async fn each_carrier_takes_exactly_one_token() {
    let (tokens, good) = world().await;
    let all = with_all(&tokens);
    let text = good.as_str();
    let megabyte = "a".repeat(1 << 20);
    let mut rows = vec![
        // HTTP Basic. The user name is ignored, and the password is all that follows the first
        // colon.
        one("authorization", basic(format!("git:{text}")), 200),
        one("authorization", basic(format!(":{text}")), 200),
        one("authorization", basic(format!("m\u{e9}l:{text}")), 200),
        one("authorization", basic([b"\xff\xfe:", text.as_bytes()].concat()), 200),
        one("authorization", basic(format!("git:{text}")).replace("Basic", "bASIC"), 200),
        one("authorization", basic(format!("git:{text}")).replace("Basic", "Basic  "), 200),
        one("authorization", format!("{} ", basic(format!("git:{text}"))), 200),
        one("authorization", basic(format!("git::{text}")), 400),
        one("authorization", basic(format!("{text}:x")), 401),
        one("authorization", basic(format!("{text}:")), 400),
        one("authorization", basic(text), 400),
        one("authorization", basic(":"), 400),
        one("authorization", basic("git:x"), 401),
        one("authorization", basic(format!("git:{text}\n")), 400),
        one("authorization", basic(format!("git\0:{text}")), 400),
        one("authorization", basic(format!("git:\0{text}")), 400),
        one("authorization", basic(format!("git:{text}\0")), 400),
        one("authorization", basic(format!("git:Bearer {text}")), 400),
        one("authorization", basic(""), 400),
        one("authorization", "Basic", 400),
        one("authorization", "Basic ", 400),
        one("authorization", "Basic\tYTpi", 400),
        one("authorization", "Basic YTpi,YTpi", 400),
        one("authorization", "Basic YTpi YTpi", 400),
        one("authorization", "Basic YTp", 400),
        one("authorization", "Basic YTpiYQ", 400),
        one("authorization", "Basic YTpi====", 400),
        one("authorization", "Basic Y-_i", 400),
        one("authorization", "Basic \u{e9}", 400),
        one("authorization", format!("Basic {megabyte}"), 400),
        one("authorization", basic(format!("git:{megabyte}")), 400),
        // Another scheme, of any length and with any characters.
        one("authorization", "Digest username=\"x\"", 0),
        one("authorization", format!("Negotiate {}", "A".repeat(12_000)), 0),
        one("authorization", [b"NTLM \xff".as_slice(), &[0xe9; 12_000]].concat(), 0),
        one("authorization", "", 0),
        // A bare token.
        one("authorization", text, 200),
        one("authorization", format!("{text}x"), 401),
        one("authorization", "Negotiate", 401),
        one("authorization", "Bearer", 400),
        one("authorization", format!("{text},{text}"), 400),
        one("authorization", format!("\u{e9}{text}"), 400),
        one("authorization", megabyte.clone(), 400),
        // A named header.
        one("x-api-key", text, 200),
        one("private-token", text, 200),
        one("x-api-key", "", 400),
        one("x-api-key", "x", 401),
        one("x-api-key", format!("Bearer {text}"), 400),
        one("x-api-key", format!("{text}, {text}"), 400),
        one("x-api-key", format!("{text}\t"), 400),
        one("x-api-key", "caf\u{e9}", 400),
        one("x-api-key", megabyte, 400),
    ];
    // Two credentials of any carriers, equal or not.
    let bearer = ("authorization", format!("Bearer {text}").into_bytes());
    let by_basic = ("authorization", basic(format!("git:{text}")).into_bytes());
    let bare = ("authorization", text.as_bytes().to_vec());
    let key = ("x-api-key", text.as_bytes().to_vec());
    let token = ("private-token", text.as_bytes().to_vec());
    let digest = ("authorization", b"Digest x".to_vec());
    let places = [&bearer, &by_basic, &bare, &key, &token];
    for first in places {
        for second in places {
            rows.push((vec![first.clone(), second.clone()], 400));
        }
        for wrong in ["x-api-key", "private-token"] {
            rows.push((vec![first.clone(), (wrong, b"x".to_vec())], 400));
        }
    }
    // Another scheme is no credential, unless there are two `Authorization` headers.
    rows.push((vec![digest.clone(), key.clone()], 200));
    rows.push((vec![digest.clone(), bearer.clone()], 400));
    rows.push((vec![digest.clone(), digest], 400));
    rows.push((vec![("authorization", b"Basic $".to_vec()), key], 400));
    check(&all, rows).await;
}

#[tokio::test]
async fn a_user_name_that_is_not_configured_is_refused() {
    let (tokens, good) = world().await;
    let users = BasicCarrier::of_users(["git", "__token__"]).unwrap();
    let refusals = Arc::new(Mutex::new(Vec::new()));
    let told = refusals.clone();
    let authenticator =
        Authenticator::new(tokens).accept_basic(users).on_incident(move |incident| {
            if let Incident::Refused(error) = incident {
                told.lock().unwrap().push(error.reject_reason().unwrap().as_str());
            }
        });
    let rows = vec![
        one("authorization", basic(format!("git:{good}")), 200),
        one("authorization", basic(format!("__token__:{good}")), 200),
        one("authorization", basic(format!("Git:{good}")), 401),
        one("authorization", basic(format!(":{good}")), 401),
        one("authorization", basic(format!("git2:{good}")), 401),
        one("authorization", format!("Bearer {good}"), 200),
    ];
    check(&authenticator, rows).await;
    assert_eq!(*refusals.lock().unwrap(), ["malformed"; 3]);
    // What one user name has learned, another one would have learned too.
    let refused = async |pair: String| {
        let headers = headers(&[("authorization", basic(pair).as_bytes())]);
        let problem = authenticator.authenticate(&headers, &Extensions::new()).await.unwrap_err();
        problem.to_response()
    };
    let (user, token) =
        (refused(format!("x:{good}")).await, refused("git:acme_pat_x".into()).await);
    assert_eq!(user.headers(), token.headers());
    assert_eq!(user.body(), token.body());

    assert_eq!(BasicCarrier::of_users::<&str>([]).unwrap_err(), CarrierError::NoUsers);
    for name in ["", "a:b", "a\nb", "\0", &"a".repeat(256)] {
        let refused = BasicCarrier::of_users(["git", name]).unwrap_err();
        assert!(matches!(&refused, CarrierError::User { name: shown } if name.starts_with(shown)));
        assert!(refused.to_string().len() < 300, "{refused}");
    }
    assert!(BasicCarrier::of_users([&"a".repeat(255)]).is_ok());
}

#[tokio::test]
async fn a_foreign_credential_is_passed_on_and_ours_is_not() {
    let (tokens, good) = world().await;
    let ignoring = with_all(&tokens).ignore_foreign();
    let jwt = "eyJhbGciOiJIUzI1NiJ9.e30.c2ln";
    let long = format!("{jwt}{}", "x".repeat(12_000));
    let mistyped = format!("{good}x");
    let mut rows = vec![
        one("authorization", format!("Bearer {jwt}"), 0),
        one("authorization", format!("Bearer {long}"), 0),
        one("authorization", basic(format!("git:{jwt}")), 0),
        one("authorization", basic(format!("git:{long}")), 0),
        one("authorization", basic("ada:pass word \u{e9}"), 0),
        one("authorization", jwt, 0),
        one("authorization", "Negotiate", 0),
        one("x-api-key", jwt, 0),
        one("x-api-key", "two words", 0),
        one("x-api-key", "", 0),
        one("x-api-key", long.clone(), 0),
        // Ours, mistyped: it is refused in every carrier.
        one("authorization", format!("Bearer {mistyped}"), 401),
        one("authorization", basic(format!("git:{mistyped}")), 401),
        one("authorization", basic(format!("git:acme_pat_{long}")), 400),
        one("authorization", mistyped.clone(), 401),
        one("x-api-key", mistyped.clone(), 401),
        one("x-api-key", "acme_svc_ x", 400),
        // So is ours in the wrong place, or with something around it.
        one("x-api-key", format!("Bearer {good}"), 400),
        one("x-api-key", format!("\"{good}\""), 400),
        one("x-api-key", format!("{jwt}, {good}"), 400),
        one("authorization", basic(format!("{good}:")), 400),
        one("authorization", basic(format!("{good}:x-oauth-basic")), 401),
        one("authorization", basic(format!("git: {good}")), 400),
        one("authorization", format!("Bearer token={good}"), 400),
        one("authorization", format!("Bearer token/{good}"), 401),
        // Not one well-formed credential.
        one("authorization", "Bearer", 400),
        one("authorization", "Bearer a b", 400),
        one("authorization", "Basic $", 400),
        one("authorization", basic("no colon"), 400),
    ];
    // A foreign credential beside ours is none.
    let foreign = ("authorization", format!("Bearer {jwt}").into_bytes());
    let key = ("x-api-key", good.clone().into_bytes());
    rows.push((vec![foreign.clone(), key.clone()], 200));
    rows.push((vec![("private-token", b"glpat-x".to_vec()), key.clone()], 200));
    rows.push((vec![foreign.clone(), foreign.clone()], 400));
    rows.push((vec![foreign.clone(), ("authorization", format!("Bearer {good}").into())], 400));
    rows.push((vec![foreign, ("x-api-key", mistyped.into_bytes())], 401));
    rows.push((vec![key.clone(), key], 400));
    check(&ignoring, rows).await;

    let only_git = BasicCarrier::of_users(["git"]).unwrap();
    let ignoring = Authenticator::new(tokens).accept_basic(only_git).ignore_foreign();
    let rows = vec![
        one("authorization", basic(format!("ada:{jwt}")), 0),
        one("authorization", basic(format!("ada:{good}")), 401),
        one("authorization", basic(format!("git:{good}")), 200),
    ];
    check(&ignoring, rows).await;
}

#[tokio::test]
async fn the_challenge_names_basic_only_where_it_is_accepted() {
    let (tokens, good) = world().await;
    let plain = Authenticator::new(tokens).challenge_realm(r#"a "b""#).unwrap();
    let challenges = |problem: &Problem| -> Vec<String> {
        let response = problem.to_response();
        let values = response.headers().get_all(WWW_AUTHENTICATE).iter();
        values.map(|value| value.to_str().unwrap().to_owned()).collect()
    };
    let of = |authenticator: &Auth| {
        let challenge = authenticator.challenge().clone();
        challenges(&challenge.no_credential())
    };
    let bearer = r#"Bearer realm="a \"b\"""#;
    let basic_alone = r#"Basic realm="a \"b\"", charset="UTF-8""#;
    assert_eq!(of(&plain), [bearer]);
    assert_eq!(of(&plain.clone().accept_bare().accept_header("x-key").unwrap()), [bearer]);
    let both = plain.clone().accept_basic(BasicCarrier::any_user());
    assert_eq!(of(&both), [bearer, basic_alone]);
    let only = plain.accept_basic(BasicCarrier::any_user().only_challenge());
    assert_eq!(of(&only), [basic_alone]);
    // The order of the calls does not matter.
    let renamed = only.clone().challenge_realm("c").unwrap();
    assert_eq!(of(&renamed), [r#"Basic realm="c", charset="UTF-8""#]);

    let refused = async |authenticator: &Auth, value: String| {
        let headers = headers(&[("authorization", value.as_bytes())]);
        challenges(&authenticator.authenticate(&headers, &Extensions::new()).await.unwrap_err())
    };
    let error = |error: &str| format!(r#"{bearer}, error="{error}""#);
    assert_eq!(refused(&both, basic("a:b")).await, [&error("invalid_token"), basic_alone]);
    assert_eq!(refused(&both, "Basic $".into()).await, [error("invalid_request")]);
    assert_eq!(refused(&only, basic("a:b")).await, [basic_alone]);
    assert!(refused(&only, "Basic $".into()).await.is_empty());
    let headers = headers(&[("authorization", basic(format!("a:{good}")).as_bytes())]);
    let verified = both.authenticate(&headers, &Extensions::new()).await.unwrap().unwrap();
    let denied = verified.require("data:write").unwrap_err();
    let scope = format!(r#"{bearer}, error="insufficient_scope", scope="data:write""#);
    assert_eq!(challenges(&both.challenge().denied(&denied)), [scope]);
    assert!(challenges(&only.challenge().denied(&denied)).is_empty());
}

#[tokio::test]
async fn a_browser_sends_no_password_for_a_page_of_another_site() {
    let (tokens, good) = world().await;
    let incidents = Arc::new(Mutex::new(0));
    let told = incidents.clone();
    let authenticator = with_all(&tokens).on_incident(move |incident| {
        *told.lock().unwrap() += u32::from(matches!(incident, Incident::CrossSite(_)));
    });
    let by_basic = ("authorization", basic(format!("ada:{good}")).into_bytes());
    let line = |name: &'static str, value: &str| (name, value.as_bytes().to_vec());
    let host = || line("host", "packages.example");
    let rows = vec![
        (vec![by_basic.clone(), host()], 200),
        (vec![by_basic.clone(), host(), line("origin", "https://packages.example")], 200),
        (
            vec![by_basic.clone(), line("origin", "null"), line("sec-fetch-site", "same-origin")],
            200,
        ),
        // A link on another site opens a page, which changes nothing. An image on it is no link.
        (
            vec![
                by_basic.clone(),
                host(),
                line("sec-fetch-site", "cross-site"),
                line("sec-fetch-mode", "navigate"),
            ],
            200,
        ),
        (vec![by_basic.clone(), host(), line("sec-fetch-site", "none")], 200),
        (vec![by_basic.clone(), host(), line("sec-fetch-site", "same-origin")], 200),
        (
            vec![
                by_basic.clone(),
                host(),
                line("sec-fetch-site", "cross-site"),
                line("sec-fetch-mode", "no-cors"),
            ],
            403,
        ),
        (vec![by_basic.clone(), host(), line("sec-fetch-site", "same-site")], 403),
        (vec![by_basic.clone(), host(), line("origin", "https://evil.example")], 403),
        (vec![by_basic.clone(), host(), line("origin", "null")], 403),
        (vec![by_basic.clone(), line("origin", "https://packages.example")], 403),
        (
            vec![
                by_basic.clone(),
                host(),
                line("origin", "https://packages.example"),
                line("sec-fetch-site", "same-site"),
            ],
            403,
        ),
        // What no browser sends by itself is not judged.
        (vec![line("x-api-key", &good), host(), line("origin", "https://evil.example")], 200),
        (
            vec![
                line("authorization", &format!("Bearer {good}")),
                host(),
                line("origin", "https://evil.example"),
            ],
            200,
        ),
    ];
    check(&authenticator, rows).await;
    assert_eq!(*incidents.lock().unwrap(), 6);
}

#[tokio::test]
async fn the_management_api_takes_every_carrier_before_a_session() {
    let (tokens, good) = world().await;
    let actor = Actor::signed_in(id("ada"));
    let session = |_: &http::request::Parts| {
        Some(Actor::signed_in(OwnerId::new("nobody").unwrap()).proven_by_header())
    };
    let api = ManagementApi::new(with_all(&tokens), session);
    let get = async |name: &str, value: &str| {
        let request = Request::get("/user-tokens/current").header(name, value);
        let response =
            api.clone().oneshot(request.body(Empty::<bytes::Bytes>::new()).unwrap()).await.unwrap();
        response.status().as_u16()
    };
    let lines = [
        ("authorization", format!("Bearer {good}")),
        ("authorization", basic(format!("x:{good}"))),
        ("authorization", good.clone()),
        ("x-api-key", good.clone()),
    ];
    for (name, value) in &lines {
        assert_eq!(get(name, value).await, 200, "{name}");
    }
    let token = tokens.list(&actor, None, 1).await.unwrap().items.remove(0).id();
    tokens.revoke(&actor, token, Reason::Owner).await.unwrap();
    for (name, value) in &lines {
        assert_eq!(get(name, value).await, 401, "{name}");
    }
}

#[tokio::test]
async fn a_header_that_may_carry_a_token_is_sensitive_to_the_service_behind_the_layer() {
    let (tokens, good) = world().await;
    for (name, value) in [
        ("authorization", format!("Bearer {good}")),
        ("authorization", basic(format!("x:{good}"))),
        ("x-api-key", good.clone()),
    ] {
        let service = tower::service_fn(async |request: Request<()>| {
            let headers = request.headers();
            assert!(headers.len() == 1 && headers.values().all(HeaderValue::is_sensitive));
            Ok::<_, std::convert::Infallible>(http::Response::new(()))
        });
        let layer = with_all(&tokens).required();
        let service = tower_layer_of(&layer, service);
        let request = Request::get("/").header(name, &value).body(()).unwrap();
        let response = service.oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200, "{name}");
    }
}

fn tower_layer_of<L: tower::Layer<S>, S>(layer: &L, service: S) -> L::Service {
    layer.layer(service)
}

#[tokio::test]
async fn only_a_header_without_another_meaning_carries_a_token() {
    let (tokens, _) = world().await;
    for name in [
        "",
        "a b",
        "x:",
        "x_key",
        "caf\u{e9}",
        "Authorization",
        "Cookie",
        "Host",
        "Forwarded",
        "Content-Length",
        "Transfer-Encoding",
        "Origin",
        &"x".repeat(65),
    ] {
        let refused = Authenticator::new(tokens.clone()).accept_header(name).unwrap_err();
        assert!(
            matches!(&refused, CarrierError::Header { name: shown } if name.starts_with(shown))
        );
        assert!(refused.to_string().contains("X-API-Key"), "{refused}");
    }
    for name in ["X-API-Key", "private-token", "X", &"x".repeat(64)] {
        assert!(Authenticator::new(tokens.clone()).accept_header(name).is_ok(), "{name}");
    }
}
