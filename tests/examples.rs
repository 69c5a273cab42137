//! The examples do what they say: the quickstart runs through, and the server answers its own curl lines.
//!
//! `cargo test` builds the examples next to the tests; with `--test examples` alone, run `cargo build --examples` first.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

use patkit::token::{Brand, TokenFormat};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

/// An example's program: beside the directory that this test's own program is in.
fn example(name: &str) -> Command {
    let own = std::env::current_exe().unwrap();
    let profile = own.parent().and_then(|deps| deps.parent()).unwrap();
    let program: PathBuf = profile.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(program.is_file(), "{} is missing: run `cargo build --examples`", program.display());
    let mut command = Command::new(program);
    command.env_remove("DEMO_TOKEN_KEYS").stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}

#[test]
fn the_quickstart_runs_through() {
    let output = run(&mut example("quickstart"));
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    for step in [
        "Generate",
        "Authenticate",
        "Require",
        "Demote",
        "Revoke",
        "Restore",
        "Rotate",
        "Expire",
        "Delete",
        "audit",
    ] {
        let shown = stdout.lines().any(|line| line.starts_with("== ") && line.contains(step));
        assert!(shown, "no step {step:?} in\n{stdout}");
    }
    assert!(stdout.ends_with("Every step did what it should.\n"), "{stdout}");
}

/// The server on a free port, stopped at the end of the test.
struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
    address: String,
    log: String,
}

impl Server {
    fn start(keys: Option<&str>) -> Self {
        let mut command = example("server");
        command.args(["--port", "0"]).stdout(Stdio::piped());
        if let Some(keys) = keys {
            command.env("DEMO_TOKEN_KEYS", keys);
        }
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut log = String::new();
        let address = loop {
            let mut line = String::new();
            assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "the server ended: {log}");
            log.push_str(&line);
            if let Some(address) = line.trim_end().strip_prefix("listening on http://") {
                break address.to_owned();
            }
        };
        Self { child, stdout, address, log }
    }

    /// One request with these header lines.
    fn request(&self, line: &str, headers: &[&str], body: &str) -> Answer {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut request = format!("{line} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        for header in headers {
            request.push_str(header);
            request.push_str("\r\n");
        }
        if !body.is_empty() {
            let length = body.len();
            request.push_str("Content-Type: application/json\r\nContent-Length: ");
            request.push_str(&length.to_string());
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        request.push_str(body);
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        Answer::read(&text)
    }

    fn get(&self, path: &str, headers: &[&str]) -> Answer {
        self.request(&format!("GET {path}"), headers, "")
    }

    /// What Ada is told when she asks for a token.
    fn make(&self, body: &str) -> Answer {
        self.request("POST /tokens", &["X-Demo-User: ada"], body)
    }

    fn make_named(&self, name: &str) -> (String, String) {
        let made =
            self.make(&format!(r#"{{"name":"{name}","expires_in_days":30,"scopes":["datastores:read"]}}"#));
        assert_eq!(made.status(), 201, "{made:?}");
        let json = made.json();
        let text = json.get("bearer_token").and_then(Value::as_str).unwrap();
        let id = json.pointer("/token/id").and_then(Value::as_str).unwrap();
        (text.to_owned(), id.to_owned())
    }

    /// Stops the server as ctrl-c does, and gives all that it printed.
    #[cfg(unix)]
    fn stop(mut self) -> String {
        let kill = format!("kill -INT {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        let mut log = std::mem::take(&mut self.log);
        self.stdout.read_to_string(&mut log).unwrap();
        assert!(self.child.wait().unwrap().success(), "{log}");
        log
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().map(|_| ()).unwrap_or_default();
    }
}

/// An answer as it came, but for the `date` line.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    head: Vec<String>,
    body: String,
}

impl Answer {
    fn read(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        let head = head.split("\r\n").filter(|line| !line.starts_with("date: ")).map(str::to_owned).collect();
        Self { head, body: body.to_owned() }
    }

    fn status(&self) -> u16 {
        let code = self.head.first().and_then(|line| line.split(' ').nth(1));
        code.unwrap().parse().unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.head.iter().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let value = values.next();
        assert_eq!(values.next(), None, "{name} stands there twice");
        value
    }

    fn challenge(&self) -> &str {
        self.header("www-authenticate").expect("a challenge")
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

fn bearer(text: &str) -> String {
    format!("Authorization: Bearer {text}")
}

/// The first token's text with the secret of the second one and a checksum that is right.
fn with_secret_of(text: &str, other: &str) -> String {
    const SECRET_AND_CHECKSUM: usize = 44 + 6;
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let (start, _) = text.split_at(text.len() - SECRET_AND_CHECKSUM);
    let (_, secret) = other.split_at(other.len() - SECRET_AND_CHECKSUM);
    let mut forged = format!("{start}{}", secret.split_at(44).0);
    let mut checksum = u64::from(crc32fast::hash(forged.as_bytes()));
    let mut digits = String::new();
    for _ in 0..6 {
        let digit = usize::try_from(checksum % 62).unwrap();
        digits.insert(0, char::from(*DIGITS.get(digit).unwrap()));
        checksum /= 62;
    }
    forged.push_str(&digits);
    forged
}

#[test]
fn the_server_answers_its_curl_lines() {
    let server = Server::start(None);
    let made = server.make(r#"{"name":"ci","expires_in_days":30,"scopes":["datastores:read"]}"#);
    assert_eq!(made.status(), 201, "{made:?}");
    assert_eq!(made.header("cache-control"), Some("no-store"));
    let json = made.json();
    let text = json.get("bearer_token").and_then(Value::as_str).unwrap();
    let id = json.pointer("/token/id").and_then(Value::as_str).unwrap();
    assert!(text.starts_with("demo_pat_") && text.contains(id), "{made:?}");

    let used = server.get("/datastores", &[&bearer(text)]);
    assert_eq!((used.status(), used.body.as_str()), (200, r#"["invoices","orders"]"#));
    let denied = server.request("POST /datastores", &[&bearer(text)], "");
    assert_eq!(denied.status(), 403);
    assert_eq!(
        denied.challenge(),
        r#"Bearer realm="demo", error="insufficient_scope", scope="datastores:write""#
    );
    for headers in [&[][..], &["Authorization: Basic YWRhOmFkYQ=="]] {
        let none = server.get("/datastores", headers);
        assert_eq!((none.status(), none.challenge()), (401, r#"Bearer realm="demo""#));
    }

    let listed = server.get("/tokens", &["X-Demo-User: ada"]);
    assert_eq!(listed.status(), 200);
    assert!(listed.body.contains(id) && !listed.body.contains(text), "{listed:?}");
    let revoked = server.request(&format!("DELETE /tokens/{id}"), &["X-Demo-User: ada"], "");
    assert_eq!(revoked.status(), 200, "{revoked:?}");
    assert_eq!(revoked.json().get("state").and_then(Value::as_str), Some("revoked"));
    let refused = server.get("/datastores", &[&bearer(text)]);
    assert_eq!(refused.status(), 401);
    assert_eq!(refused.challenge(), r#"Bearer realm="demo", error="invalid_token""#);

    for headers in [
        &[bearer(text), bearer("x")][..],
        &[bearer(text), bearer(text)],
        &[bearer("a b")],
        &[bearer("a,b")],
        &["Authorization: Bearer".to_owned()],
    ] {
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let bad = server.get("/datastores", &headers);
        assert_eq!(bad.status(), 400, "{headers:?}");
        assert_eq!(bad.challenge(), r#"Bearer realm="demo", error="invalid_request""#);
    }
    let by_bob = server.request("POST /tokens", &["X-Demo-User: bob"], r#"{"name":"mine"}"#);
    assert_eq!(by_bob.status(), 403, "{by_bob:?}");
}

#[test]
fn the_server_says_what_is_wrong_with_a_request() {
    let server = Server::start(None);
    assert_eq!(server.get("/tokens", &[]).status(), 401, "not signed in");
    assert_eq!(server.get("/tokens", &["X-Demo-User: eve"]).status(), 401, "unknown");
    let (_, id) = server.make_named("ci");
    for (body, status) in [
        (r#"{"name":"CI"}"#, 409),
        (r#"{"name":"\u0000"}"#, 422),
        (r#"{"name":"a","expires_in_days":0}"#, 422),
        (r#"{"name":"a","expires_in_days":"7"}"#, 422),
        (r#"{"name":"a","scopes":"datastores:read"}"#, 422),
        (r#"{"name":"a","scopes":["a:*:b"]}"#, 422),
        (r#"{"scopes":[]}"#, 422),
        ("[]", 422),
        ("{", 400),
    ] {
        assert_eq!(server.make(body).status(), status, "{body}");
    }
    let ada = ["X-Demo-User: ada"];
    let (start, last) = id.split_at(id.len() - 1);
    let other = if last == "0" { "1" } else { "0" };
    for unknown in ["nonsense", &format!("{start}{other}")] {
        let gone = server.request(&format!("DELETE /tokens/{unknown}"), &ada, "");
        assert_eq!(gone.status(), 404, "{unknown}");
    }
}

#[cfg(unix)]
#[test]
fn all_rejected_credentials_get_the_same_bytes_and_the_operator_the_reason() {
    let server = Server::start(None);
    let elsewhere = Server::start(None);
    let (revoked, id) = server.make_named("revoked");
    let (living, _) = server.make_named("living");
    let (unknown, _) = elsewhere.make_named("elsewhere");
    let wrong = with_secret_of(&living, &unknown);
    let gone = server.request(&format!("DELETE /tokens/{id}"), &["X-Demo-User: ada"], "");
    assert_eq!(gone.status(), 200);

    let expected = server.get("/datastores", &[&bearer(&revoked)]);
    assert_eq!(expected.status(), 401);
    for text in [unknown.as_str(), &wrong, "demo_pat_nonsense", "x"] {
        assert_eq!(server.get("/datastores", &[&bearer(text)]), expected);
    }
    assert_eq!(server.get("/datastores", &[&bearer(&living)]).status(), 200);

    let log = server.stop();
    for reason in ["revoked", "unknown", "wrong_secret", "malformed"] {
        assert!(log.contains(&format!("rejected: {reason} ")), "{reason}: {log}");
    }
    for text in [&revoked, &living, &unknown, &wrong] {
        let secret = text.split_at(text.len() - 50).1;
        assert!(!log.contains(secret), "{log}");
    }
    assert!(log.ends_with("stopped, with all last uses written\n"), "{log}");
}

#[test]
fn the_keyring_of_the_environment_is_used_or_refused() {
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let server = Server::start(Some(&format!("1:{key}")));
    assert!(!server.log.contains("DEMO_TOKEN_KEYS"), "{}", server.log);
    let (text, _) = server.make_named("ci");
    assert_eq!(server.get("/datastores", &[&bearer(&text)]).status(), 200);

    for keys in ["", "1:AAECAwQ=", key, &format!("1:{key},1:{key}")] {
        let output = run(example("server").args(["--port", "0"]).env("DEMO_TOKEN_KEYS", keys));
        assert!(!output.status.success(), "{keys}");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("AAECAwQ"), "{output:?}");
    }
}

#[test]
fn the_readme_shows_a_token_and_the_expression_that_finds_it() {
    let readme = include_str!("../README.md");
    let format = TokenFormat::new(Brand::new("acme").unwrap(), &[]).unwrap();
    let mut shown = readme.lines().filter(|line| line.starts_with("acme_pat_"));
    assert!(format.check(shown.next().unwrap()).is_ok());
    let expression = format.scanner_expression();
    assert!(readme.lines().any(|line| line == expression), "{expression}");
}

/// Where a test named as in the threat model is: `file::name`, or `module::tests::name`.
fn source_of(test: &str) -> Option<(PathBuf, &str)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let (place, name) = test.rsplit_once("::")?;
    let file = match place.strip_suffix("::tests") {
        Some(module) => format!("src/{}.rs", module.replace("::", "/")),
        None => format!("tests/{place}.rs"),
    };
    Some((root.join(file), name))
}

#[test]
fn every_row_of_the_threat_model_names_tests_that_exist() {
    let page = include_str!("../src/docs/threat_model.md");
    let (_, table) = page.split_once("| # | attack or fault |").unwrap();
    let mut rows = 0;
    for row in table.lines().filter(|row| row.starts_with("| ")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let (Some(number), Some(tests)) = (cells.first(), cells.get(3)) else {
            panic!("not a row: {row}");
        };
        if number.parse::<u32>().is_err() {
            continue;
        }
        rows += 1;
        let tests: Vec<&str> = tests.split('`').filter(|part| part.contains("::")).collect();
        assert!(!tests.is_empty(), "row {number} names no test");
        for test in tests {
            let (file, name) = source_of(test).unwrap();
            let source = std::fs::read_to_string(&file)
                .unwrap_or_else(|error| panic!("row {number}, {test}: {}: {error}", file.display()));
            assert!(source.contains(&format!("fn {name}(")), "row {number}: there is no {test}");
        }
    }
    assert!(rows > 40, "the table was not found: {rows} rows");
}
