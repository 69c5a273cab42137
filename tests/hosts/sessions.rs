//! Every kind of session in front of the management API, in `examples/sessions_host`: a cookie, the
//! host's own JWT, a token, and a JWT beside a token.

use super::{Answer, SAME_ORIGIN, Server, bearer, example, run};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use patkit::clock::{Clock, SystemClock};
use serde_json::{Value, json};
use sha2::Sha256;

const SECRET: &str = "a secret of a test, longer than 32 bytes";
const ADA: &str = "user=ada&password=analytical";
/// The text of the refusal of the host's layer. patkit answers with JSON.
const NOT_A_JWT: &str = "the JWT is refused\n";

/// Makes a JWT (RFC 7519) that ends this many seconds from now.
fn jwt(algorithm: &str, seconds: i64, secret: &str) -> String {
    let ends = SystemClock::new().now().timestamp() + seconds;
    signed(algorithm, &json!({"sub": "ada", "exp": ends}), secret)
}

fn signed(algorithm: &str, claims: &Value, secret: &str) -> String {
    let part = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let head = part(json!({"typ": "JWT", "alg": algorithm}));
    let text = format!("{head}.{}", part(claims.clone()));
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    let mac = mac.chain_update(&text).finalize().into_bytes();
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(mac))
}

impl Server {
    fn with_sessions() -> Self {
        Self::run(example("sessions_host").env("ACME_JWT_SECRET", SECRET))
    }

    fn form(&self, path: &str, headers: &[&str], body: &str) -> Answer {
        let length = format!("Content-Length: {}", body.len());
        let form = ["Content-Type: application/x-www-form-urlencoded", &length];
        self.exchange(&format!("POST {path}"), &[headers, &form].concat(), body)
    }

    /// Signs Ada in by the form, and returns the header of the session.
    fn cookie_of_ada(&self) -> String {
        let answer = self.form("/sign-in", &[], ADA);
        assert_eq!((answer.status(), answer.header("location")), (303, Some("/")));
        let cookie = answer.header("set-cookie").unwrap();
        assert!(cookie.contains("HttpOnly; SameSite=Strict"), "{cookie}");
        format!("Cookie: {}", cookie.split(';').next().unwrap())
    }

    fn create(&self, name: &str, headers: &[&str]) -> Answer {
        self.request("POST /api/user-tokens", headers, &json!({ "name": name }).to_string())
    }

    fn token_of_ada(&self, cookie: &str) -> String {
        let made = self.create("a token", &[cookie, SAME_ORIGIN]);
        assert_eq!(made.status(), 201, "{made:?}");
        made.json().get("bearer_token").and_then(Value::as_str).unwrap().to_owned()
    }
}

fn code(answer: &Answer) -> (u16, String) {
    let code = answer.json().get("code").and_then(Value::as_str).unwrap().to_owned();
    (answer.status(), code)
}

fn assert_host_refuses(answer: &Answer, what: &str) {
    assert_eq!((answer.status(), answer.body.as_str()), (401, NOT_A_JWT), "{what}");
    assert_eq!(answer.challenge(), r#"Bearer realm="acme", error="invalid_token""#, "{what}");
}

#[test]
fn a_session_by_cookie_changes_tokens_from_pages_of_this_site_until_it_is_signed_out() {
    let server = Server::with_sessions();
    assert!(server.get("/", &[]).body.contains(r#"action="/sign-in""#));
    assert_eq!(server.form("/sign-in", &[], "user=ada&password=wrong").status(), 401);
    assert_eq!(server.get("/api/user-tokens", &[]).status(), 401);

    let cookie = server.cookie_of_ada();
    assert!(server.get("/", &[&cookie]).body.contains("You are ada"));
    let page = server.get("/settings/tokens", &[&cookie]);
    assert!(
        page.status() == 200 && page.body.contains(r#"<meta name="patkit-api" content="/api">"#)
    );
    assert_eq!(server.get("/settings/tokens/settings.json", &[&cookie]).status(), 200);
    assert_eq!(server.create("by the page", &[&cookie, SAME_ORIGIN]).status(), 201);
    for site in ["cross-site", "same-site", "none"] {
        let site = format!("Sec-Fetch-Site: {site}");
        let refused = server.create("by another site", &[&cookie, &site]);
        assert_eq!(code(&refused), (403, "cross_site".to_owned()), "{site}");
    }
    let refused = server.create("by another site", &[&cookie, "Origin: https://evil.example"]);
    assert_eq!(code(&refused), (403, "cross_site".to_owned()));
    assert_eq!(code(&server.create("by nobody", &[&cookie])), (403, "cross_site".to_owned()));
    let list = server.get("/api/user-tokens", &[&cookie]).json();
    assert_eq!(list.get("items").and_then(Value::as_array).map(Vec::len), Some(1), "{list}");

    assert_eq!(server.form("/sign-out", &[&cookie], "").status(), 303);
    let gone = server.get("/api/user-tokens", &[&cookie]);
    assert_eq!(code(&gone), (401, "no_credential".to_owned()));
    assert_eq!(server.create("too late", &[&cookie, SAME_ORIGIN]).status(), 401);
    #[cfg(unix)]
    server.stop("TERM");
}

#[test]
fn a_session_by_jwt_changes_tokens_from_anywhere_while_the_jwt_is_valid() {
    let server = Server::with_sessions();
    assert_eq!(server.form("/app/sign-in", &[], "user=ada&password=wrong").status(), 401);
    let issued = server.form("/app/sign-in", &[], ADA);
    assert_eq!(issued.status(), 200);
    for (number, text) in [issued.body, jwt("HS256", 60, SECRET)].iter().enumerate() {
        let header = bearer(text);
        assert_eq!(server.get("/api/user-tokens", &[&header]).status(), 200);
        let name = format!("by JWT {number}");
        // No browser sends the header by itself, so the site of the page says nothing.
        let made = server.create(&name, &[&header, "Sec-Fetch-Site: cross-site"]);
        assert_eq!(made.status(), 201, "{made:?}");
        assert_eq!(server.create(&format!("{name} too"), &[&header]).status(), 201);
    }
    let mut forged = jwt("HS256", 60, SECRET);
    let dot = forged.rfind('.').unwrap();
    forged.truncate(dot + 1);
    let cases = [
        ("expired", jwt("HS256", -1, SECRET)),
        ("without an end", signed("HS256", &json!({"sub": "ada"}), SECRET)),
        ("of algorithm none, signed", jwt("none", 60, SECRET)),
        ("of algorithm none", jwt("none", 60, SECRET).rsplit_once('.').unwrap().0.to_owned() + "."),
        ("without a signature", forged),
        ("of another algorithm", jwt("HS384", 60, SECRET)),
        ("of another secret", jwt("HS256", 60, "another secret, of 32 bytes and more")),
        ("no JWT", "garbage".to_owned()),
    ];
    let cookie = server.cookie_of_ada();
    for (what, text) in cases {
        let header = bearer(&text);
        for path in ["/whoami", "/api/user-tokens"] {
            assert_host_refuses(&server.get(path, &[&header]), what);
            assert_host_refuses(&server.get(path, &[&header, &cookie]), what);
        }
        assert_host_refuses(&server.create(what, &[&header, &cookie, SAME_ORIGIN]), what);
    }
}

#[test]
fn one_route_takes_a_jwt_or_a_token_and_refuses_two() {
    let server = Server::with_sessions();
    let token = server.token_of_ada(&server.cookie_of_ada());
    let (jwt, expired) = (jwt("HS256", 60, SECRET), jwt("HS256", -1, SECRET));
    let with = |credentials: &[&str]| {
        let headers: Vec<String> = credentials.iter().map(|text| bearer(text)).collect();
        server.get("/whoami", &headers.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let accepted = with(&[&token]);
    assert_eq!((accepted.status(), accepted.body.as_str()), (200, "ada, by a token\n"));
    let accepted = with(&[&jwt]);
    assert_eq!((accepted.status(), accepted.body.as_str()), (200, "ada, by a JWT\n"));
    let lower = server.get("/whoami", &[&format!("authorization: bearer  {jwt}")]);
    assert_eq!(lower.body, "ada, by a JWT\n");
    let nobody = with(&[]);
    assert_eq!(code(&nobody), (401, "no_credential".to_owned()));
    assert_eq!(nobody.challenge(), r#"Bearer realm="acme""#);

    let mistyped = format!("{}{}", token.split_at(token.len() - 1).0, "!");
    let shorter = token.split_at(token.len() - 1).0;
    for (text, expected) in [
        (mistyped.as_str(), (400, "invalid_request")),
        (shorter, (401, "invalid_token")),
        ("acme_pat_x", (401, "invalid_token")),
    ] {
        let refused = with(&[text]);
        assert_eq!(code(&refused), (expected.0, expected.1.to_owned()), "{text}");
    }
    for two in [
        [&token, &jwt],
        [&jwt, &token],
        [&jwt, &jwt],
        [&token, &token],
        [&expired, &token],
        [&token, &expired],
    ] {
        let headers = two.map(|text| bearer(text));
        let headers = [headers[0].as_str(), headers[1].as_str()];
        for path in ["/whoami", "/api/user-tokens"] {
            let refused = server.get(path, &headers);
            assert_eq!(code(&refused), (400, "invalid_request".to_owned()), "{path} {two:?}");
        }
    }
}

#[test]
fn a_refused_bearer_never_falls_back_to_a_cookie() {
    let server = Server::with_sessions();
    let cookie = server.cookie_of_ada();
    let token = server.token_of_ada(&cookie);
    let used = bearer(&token);
    assert_eq!(server.request("DELETE /api/user-tokens/current", &[&used], "").status(), 204);
    for text in [token.as_str(), "acme_pat_x", "acme_x", "x y"] {
        let header = bearer(text);
        for headers in [[header.as_str(), &cookie], [&cookie, header.as_str()]] {
            let read = server.get("/api/user-tokens", &headers);
            assert!([400, 401].contains(&read.status()), "{text} {read:?}");
            let [one, two] = headers;
            let made = server.create("by the cookie", &[one, two, SAME_ORIGIN]);
            assert_eq!(made.status(), read.status(), "{text} {made:?}");
        }
    }
    assert_eq!(server.get("/api/user-tokens", &[&cookie]).status(), 200);
}

#[test]
fn a_host_without_a_secret_for_its_jwts_does_not_start() {
    for secret in ["", "short"] {
        let output = run(example("sessions_host").env("ACME_JWT_SECRET", secret));
        assert!(!output.status.success());
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains("ACME_JWT_SECRET") && told.contains("openssl rand"), "{told}");
    }
}
