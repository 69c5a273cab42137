//! The examples work as documented: the quickstart runs to its end, and the server answers its own
//! curl lines.
//!
//! Cargo does not build the programs of other packages for a test. This command does:
//! `cargo build --workspace --all-features --bins --examples --tests`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

#[path = "sessions.rs"]
mod sessions;

use patkit::token::{Brand, TokenFormat};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The header that a browser sends for a request from a page of the same site.
const SAME_ORIGIN: &str = "Sec-Fetch-Site: same-origin";

/// The command that builds the programs of the tests.
const BUILD: &str = "`cargo build --workspace --all-features --bins --examples --tests`";

/// Returns an example's program, which is next to the directory of this test's program.
fn example(name: &str) -> Command {
    let own = std::env::current_exe().unwrap();
    let profile = own.parent().and_then(|deps| deps.parent()).unwrap();
    let folder = if name == "quickstart" { profile.join("examples") } else { profile.to_owned() };
    let program = folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(program.is_file(), "{} is missing; run {BUILD}", program.display());
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

/// A server on a free port, which stops when it is dropped.
struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
    address: String,
    log: String,
    folder: PathBuf,
}

impl Server {
    /// Starts the example `server` on a new database.
    fn start(keys: Option<&str>) -> Self {
        let mut command = example("server");
        if let Some(keys) = keys {
            command.env("DEMO_TOKEN_KEYS", keys);
        }
        Self::run(command.args(["--port", "0"]))
    }

    fn run(command: &mut Command) -> Self {
        let mut server = Self::spawn(command);
        while server.address.is_empty() {
            let mut line = String::new();
            assert_ne!(
                server.stdout.read_line(&mut line).unwrap(),
                0,
                "the server ended: {}",
                server.log
            );
            server.log.push_str(&line);
            if let Some(address) = line.trim_end().strip_prefix("listening on http://") {
                server.address = address.to_owned();
            }
        }
        server
    }

    /// Starts a program that listens at the address in `LISTEN` and does not print it.
    #[cfg(unix)]
    fn listening(command: &mut Command) -> Self {
        let free =
            std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let mut server = Self::spawn(command.env("LISTEN", &free));
        while TcpStream::connect(&free).is_err() {
            assert_eq!(server.child.try_wait().unwrap(), None, "the server ended");
            std::thread::sleep(Duration::from_millis(20));
        }
        server.address = free;
        server
    }

    fn spawn(command: &mut Command) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let folder =
            std::env::temp_dir().join(format!("patkit-server-{}-{number}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let mut child = command.current_dir(&folder).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdout, address: String::new(), log: String::new(), folder }
    }

    /// Returns the token of the `curl` line that the program prints after its address.
    fn printed_token(&mut self) -> String {
        let mut lines = String::new();
        while !lines.contains("Bearer ") {
            assert_ne!(self.stdout.read_line(&mut lines).unwrap(), 0, "{lines}");
        }
        let text = lines.split("Bearer ").nth(1).unwrap();
        text.trim().trim_end_matches('\'').to_owned()
    }

    /// Sends a request with these header lines and a JSON body.
    fn request(&self, line: &str, headers: &[&str], body: &str) -> Answer {
        if body.is_empty() {
            return self.exchange(line, headers, body);
        }
        let length = format!("Content-Length: {}", body.len());
        let headers = [headers, &["Content-Type: application/json", &length]].concat();
        self.exchange(line, &headers, body)
    }

    fn exchange(&self, line: &str, headers: &[&str], body: &str) -> Answer {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut request =
            format!("{line} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        for header in headers {
            request.push_str(header);
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

    /// Generates a token as Ada, who is signed in.
    fn make(&self, body: &str) -> Answer {
        let cookie = self.sign_in("ada");
        self.request("POST /api/user-tokens", &[&cookie, SAME_ORIGIN], body)
    }

    /// Returns the header of a session.
    fn sign_in(&self, user: &str) -> String {
        let form = "Content-Type: application/x-www-form-urlencoded";
        let body = format!("user={user}");
        let length = format!("Content-Length: {}", body.len());
        let answer = self.exchange("POST /sign-in", &[form, &length], &body);
        let cookie = answer.header("set-cookie").expect("a session");
        format!("Cookie: {}", cookie.split(';').next().unwrap())
    }

    fn make_named(&self, name: &str) -> (String, String) {
        let made = self.make(&format!(
            r#"{{"name":"{name}","expires_in_days":30,"scopes":["datastores:read"]}}"#
        ));
        assert_eq!(made.status(), 201, "{made:?}");
        let json = made.json();
        let text = json.get("bearer_token").and_then(Value::as_str).unwrap();
        let id = json.get("id").and_then(Value::as_str).unwrap();
        (text.to_owned(), id.to_owned())
    }

    /// Stops the server as ctrl-c (`INT`) or a supervisor (`TERM`) does, and returns all that it
    /// printed.
    #[cfg(unix)]
    fn stop(mut self, signal: &str) -> String {
        let kill = format!("kill -{signal} {}", self.child.id());
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
        std::fs::remove_dir_all(&self.folder).unwrap_or_default();
    }
}

/// An answer without its `date` line.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    head: Vec<String>,
    body: String,
}

impl Answer {
    fn read(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        let head = head
            .split("\r\n")
            .filter(|line| !line.starts_with("date: "))
            .map(str::to_owned)
            .collect();
        Self { head, body: body.to_owned() }
    }

    fn status(&self) -> u16 {
        let code = self.head.first().and_then(|line| line.split(' ').nth(1));
        code.unwrap().parse().unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut values =
            self.head.iter().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
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

#[test]
fn the_server_answers_its_curl_lines() {
    let server = Server::start(None);
    let (text, id) = server.make_named("ci");
    assert!(text.starts_with("demo_pat_") && text.contains(&id));
    let datastores = "/demo/datastores";
    let used = server.get(datastores, &[&bearer(&text)]);
    assert_eq!((used.status(), used.body.as_str()), (200, r#"["invoices","orders"]"#));
    let denied = server.request(&format!("POST {datastores}"), &[&bearer(&text)], "");
    assert_eq!(denied.status(), 403);
    assert_eq!(
        denied.challenge(),
        r#"Bearer realm="demo", error="insufficient_scope", scope="datastores:write""#
    );
    let none = server.get(datastores, &[]);
    assert_eq!((none.status(), none.challenge()), (401, r#"Bearer realm="demo""#));
    assert_eq!(server.get("/demo/whoami", &[&bearer(&text)]).body, "ada, by the token ci");

    let current = server.get("/api/user-tokens/current", &[&bearer(&text)]);
    assert_eq!(current.json().get("id").and_then(Value::as_str), Some(id.as_str()));
    let gone = server.request("DELETE /api/user-tokens/current", &[&bearer(&text)], "");
    assert_eq!(gone.status(), 204);
    let refused = server.get(datastores, &[&bearer(&text)]);
    assert_eq!(refused.status(), 401);
    assert_eq!(refused.challenge(), r#"Bearer realm="demo", error="invalid_token""#);
}

#[cfg(unix)]
#[test]
fn the_server_stops_with_all_last_uses_written_and_logs_reasons_without_secrets() {
    let server = Server::start(None);
    let (revoked, id) = server.make_named("revoked");
    let (living, _) = server.make_named("living");
    let cookie = server.sign_in("ada");
    let edit = server.request(
        &format!("PUT /api/user-tokens/{id}"),
        &[&cookie, SAME_ORIGIN],
        r#"{"active":false}"#,
    );
    assert_eq!(edit.status(), 200, "{edit:?}");
    for text in [revoked.as_str(), "demo_pat_nonsense"] {
        assert_eq!(server.get("/demo/whoami", &[&bearer(text)]).status(), 401);
    }
    assert_eq!(server.get("/demo/whoami", &[&bearer(&living)]).status(), 200);
    let database =
        std::fs::read_dir(&server.folder).unwrap().map(|entry| entry.unwrap().file_name());
    let files: Vec<String> = database.map(|name| name.into_string().unwrap()).collect();
    assert!(files.contains(&"patkit-demo.db".to_owned()), "{files:?}");
    let document = std::fs::read_to_string(server.folder.join("patkit-demo.openapi.json")).unwrap();
    let offered = server.get("/api/openapi.json", &[]).json();
    assert_eq!(serde_json::from_str::<Value>(&document).unwrap(), offered);

    let log = server.stop("INT");
    for reason in ["revoked", "malformed"] {
        assert!(log.contains(&format!("rejected: {reason} ")), "{reason}: {log}");
    }
    for text in [&revoked, &living] {
        let secret = text.split_at(text.len() - 50).1;
        assert!(!log.contains(secret), "{log}");
    }
    assert!(log.ends_with("stopped, with all last uses written\n"), "{log}");
}

#[test]
fn the_page_shows_what_its_user_may_do_and_no_more() {
    let server = Server::start(None);
    let page = server.get("/", &[]);
    assert_eq!(page.status(), 200);
    let policy = page.header("content-security-policy").unwrap();
    for part in
        ["default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"]
    {
        assert!(policy.contains(part) && !policy.contains("unsafe"), "{policy}");
    }
    let mut size = page.body.len();
    for (file, content_type) in [
        ("/style.css", "text/css; charset=utf-8"),
        ("/script.js", "text/javascript; charset=utf-8"),
    ] {
        let answer = server.get(file, &[]);
        assert_eq!((answer.status(), answer.header("content-type")), (200, Some(content_type)));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        size += answer.body.len();
    }
    assert!(size < 76_000, "the page is {size} bytes");
    assert!(!page.body.contains("{{"), "a place was not filled: {}", page.body);
    assert!(page.body.contains(r#"<meta name="patkit-api" content="/api">"#));
    assert!(page.body.contains(r#"src="script.js""#) && page.body.contains(r#"href="style.css""#));

    assert_eq!(server.get("/settings.json", &[]).status(), 401);
    for (user, service, scim) in [("mel", false, false), ("max", false, false), ("ada", true, true)]
    {
        let settings = server.get("/settings.json", &[&server.sign_in(user)]).json();
        let may = |what: &str| settings.pointer(&format!("/may/{what}")).and_then(Value::as_bool);
        assert_eq!(
            (may("personal"), may("service"), may("scim")),
            (Some(true), Some(service), Some(scim))
        );
        let users = settings.get("service_users").and_then(Value::as_array).unwrap();
        assert_eq!(users.is_empty(), !service, "{settings}");
        let lifetimes = settings.pointer("/policy/lifetimes").unwrap();
        assert_eq!(lifetimes, &serde_json::json!([30, 60, 90, 365, null]));
    }
}

#[test]
fn the_keyring_of_the_environment_is_used_or_refused() {
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let server = Server::start(Some(&format!("1:{key}")));
    assert!(!server.log.contains("DEMO_TOKEN_KEYS"), "{}", server.log);
    let (text, _) = server.make_named("ci");
    assert_eq!(server.get("/demo/whoami", &[&bearer(&text)]).status(), 200);

    for keys in ["", "1:AAECAwQ=", key, &format!("1:{key},1:{key}")] {
        let mut refused = example("server");
        refused
            .args(["--port", "0", "--database-url", "sqlite::memory:"])
            .env("DEMO_TOKEN_KEYS", keys);
        let output = run(refused.current_dir(&server.folder));
        assert!(!output.status.success(), "{keys}");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!told.contains("AAECAwQ"), "{output:?}");
        assert!(told.starts_with("Error: DEMO_TOKEN_KEYS "), "{output:?}");
    }
    let mut another = example("server");
    another
        .args(["--port", "0"])
        .env("DEMO_TOKEN_KEYS", "1:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=");
    let output = run(another.current_dir(&server.folder));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        told.starts_with("Error: key 1 of the keyring is not the key that this store knows"),
        "{output:?}"
    );
}

#[test]
fn the_layer_works_over_plain_hyper() {
    let mut server = Server::run(&mut example("hyper_host"));
    let text = server.printed_token();
    let answer = server.get("/", &[&bearer(&text)]);
    assert_eq!((answer.status(), answer.body.as_str()), (200, "you are ada\n"));
    let refused = server.get("/", &[]);
    assert_eq!((refused.status(), refused.challenge()), (401, r#"Bearer realm="acme""#));
    assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    #[cfg(unix)]
    server.stop("TERM");
}

/// Returns how many lines of a source are neither blank, nor comments, nor imports.
fn lines_of_code(source: &str) -> usize {
    let is_code = |line: &&str| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with("//") && !line.starts_with("use ")
    };
    source.lines().filter(is_code).count()
}

/// A gRPC client sends HTTP/2, and one message of a length of four bytes after a byte of flags.
#[test]
fn a_service_of_tonic_behind_the_layer_needs_a_token() {
    assert!(lines_of_code(include_str!("../../examples/tonic_host/src/main.rs")) < 60);
    let mut server = Server::run(&mut example("tonic_host"));
    let text = server.printed_token();
    let call = |method: &str, text: Option<&str>| {
        // Ends with the call, and closes the connection, for which the server would wait.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().unwrap();
        let request = client.post(format!("http://{}/{method}", server.address));
        let request = request.header("content-type", "application/grpc").body(vec![0; 5]);
        let request = match text {
            Some(text) => request.bearer_auth(text),
            None => request,
        };
        runtime.block_on(async {
            let answer = request.send().await.unwrap();
            let headers = answer.headers().clone();
            (answer.status().as_u16(), headers, answer.bytes().await.unwrap())
        })
    };
    let (status, headers, body) = call("acme.Who/Am", Some(&text));
    assert_eq!(
        (status, headers.get("content-type").unwrap().as_bytes()),
        (200, &b"application/grpc"[..])
    );
    // The field 1 of the message is a text of three bytes.
    assert_eq!(&body[..], b"\0\0\0\0\x05\x0a\x03ada");
    let (status, headers, _) = call("acme.Who/Unknown", Some(&text));
    assert_eq!((status, headers.get("grpc-status").unwrap().as_bytes()), (200, &b"12"[..]));
    for (text, challenge) in [
        (None, r#"Bearer realm="acme""#),
        (Some("acme_pat_x"), r#"Bearer realm="acme", error="invalid_token""#),
    ] {
        for method in ["acme.Who/Am", "acme.Who/Unknown"] {
            let (status, headers, _) = call(method, text);
            assert_eq!(
                (status, headers.get("www-authenticate").unwrap().to_str().unwrap()),
                (401, challenge)
            );
            assert_eq!(headers.get("content-type").unwrap(), "application/problem+json");
        }
    }
    #[cfg(unix)]
    server.stop("TERM");
}

#[test]
fn a_poem_host_has_routes_the_api_and_the_page() {
    assert!(lines_of_code(include_str!("../../examples/poem_host/src/main.rs")) < 60);
    let mut server = Server::run(&mut example("poem_host"));
    let text = server.printed_token();
    let answer = server.get("/me", &[&bearer(&text)]);
    assert_eq!((answer.status(), answer.body.as_str()), (200, "you are ada\n"));
    let refused = server.get("/me", &[]);
    assert_eq!((refused.status(), refused.challenge()), (401, r#"Bearer realm="acme""#));
    assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    // The layer and the API know the address of the client.
    let session = ["Cookie: a=b; session=ada", SAME_ORIGIN];
    for (network, status) in [("127.0.0.0/8", 200), ("192.0.2.0/24", 401)] {
        let body = format!(r#"{{"name":"{network}","allowed_networks":["{network}"]}}"#);
        let made = server.request("POST /api/user-tokens", &session, &body);
        let made = made.json();
        let bound = bearer(made.get("bearer_token").and_then(Value::as_str).unwrap());
        for path in ["/me", "/api/user-tokens"] {
            assert_eq!(server.get(path, &[&bound]).status(), status, "{path} {network}");
        }
    }
    let made = server.request("POST /api/user-tokens", &session, r#"{"name":"ci"}"#);
    assert_eq!(made.status(), 201, "{made:?}");
    for (path, link) in [
        ("/settings/tokens", "href=\"./tokens/style.css\""),
        ("/settings/tokens/", "href=\"style.css\""),
    ] {
        let page = server.get(path, &[]);
        assert!(page.status() == 200 && page.body.contains(link), "{page:?}");
    }
    assert_eq!(server.get("/settings/tokens/style.css", &[]).status(), 200);
    #[cfg(unix)]
    server.stop("TERM");
}

#[test]
fn an_actix_host_has_routes_the_api_and_the_page() {
    assert!(lines_of_code(include_str!("../../examples/actix_host/src/main.rs")) < 60);
    let mut server = Server::run(&mut example("actix_host"));
    let text = server.printed_token();
    for (path, body) in
        [("/me", "you are ada\n"), ("/manage", "ada manages tokens\n"), ("/hello", "hello ada\n")]
    {
        let answer = server.get(path, &[&bearer(&text)]);
        assert_eq!((answer.status(), answer.body.as_str()), (200, body));
    }
    assert_eq!(server.get("/hello", &[]).body, "hello\n");
    let refused = server.get("/me", &[]);
    assert_eq!((refused.status(), refused.challenge()), (401, r#"Bearer realm="acme""#));
    let session = ["Cookie: a=b; session=ada", SAME_ORIGIN];
    let made = server.request("POST /api/user-tokens", &session, r#"{"name":"ci"}"#);
    assert_eq!(made.status(), 201, "{made:?}");
    for (path, link) in [
        ("/settings/tokens", "href=\"./tokens/style.css\""),
        ("/settings/tokens/", "href=\"style.css\""),
    ] {
        let page = server.get(path, &[]);
        assert!(page.status() == 200 && page.body.contains(link), "{page:?}");
    }
    assert_eq!(server.get("/settings/tokens/style.css", &[]).status(), 200);
    #[cfg(unix)]
    server.stop("TERM");
}

#[cfg(unix)]
#[test]
fn a_server_that_is_terminated_has_written_the_last_use() {
    for signal in ["TERM", "INT"] {
        let mut server = Server::start(None);
        let (text, _) = server.make_named("used");
        server.make_named("unused");
        assert_eq!(server.get("/demo/whoami", &[&bearer(&text)]).status(), 200);
        // Keeps the folder, which dropping the server would remove.
        let folder = std::mem::take(&mut server.folder);
        server.stop(signal);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let used: Vec<String> = runtime.block_on(async {
            let options =
                sqlx::sqlite::SqliteConnectOptions::new().filename(folder.join("patkit-demo.db"));
            let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
            let query = "SELECT name FROM patkit_tokens WHERE last_used_at IS NOT NULL";
            sqlx::query_scalar(query).fetch_all(&pool).await.unwrap()
        });
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(used, ["used"], "{signal}");
    }
}

/// Returns the text of a file of the repository.
fn text_of(file: &str) -> String {
    std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(file))
        .unwrap()
}

/// Returns the blocks of code of a guide, each with its language on the first line.
fn blocks_of(guide: &str) -> Vec<String> {
    let page = text_of(&format!("src/docs/guides/{guide}.md"));
    page.split("```").skip(1).step_by(2).map(str::to_owned).collect()
}

/// The code that a guide shows of an example is in that example's `main.rs`.
fn check_code(guide: &str, folder: &str) {
    // Without indentation, which differs.
    let lines = |text: &str| text.lines().map(str::trim).collect::<Vec<_>>().join("\n");
    let source = lines(&text_of(&format!("examples/{folder}/src/main.rs")));
    let blocks = blocks_of(guide);
    let rust = blocks.iter().filter_map(|block| block.strip_prefix("rust,ignore\n"));
    let rust: Vec<String> = rust.map(lines).collect();
    assert!(!rust.is_empty(), "{guide}");
    for block in rust {
        assert!(source.contains(&block), "{guide}: {block}");
    }
}

/// The dependencies that a guide shows of an example are those of that example.
fn check_manifest(guide: &str, folder: &str) {
    let manifest = text_of(&format!("examples/{folder}/Cargo.toml"));
    let blocks = blocks_of(guide);
    let toml = blocks.iter().find_map(|block| block.strip_prefix("toml\n")).unwrap();
    for line in toml.lines().filter(|line| !line.starts_with("patkit ")) {
        assert!(manifest.contains(line), "{guide}: {line}");
    }
    let features = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("patkit ")).unwrap();
        line.split_once("features").unwrap().1.to_owned()
    };
    assert_eq!(features(toml), features(&manifest), "{guide}");
}

/// `scripts/clients` runs the clients of the host.
#[cfg(unix)]
#[test]
fn a_registry_host_serves_files_of_its_folder_and_no_others() {
    let main = include_str!("../../examples/registry_host/src/main.rs");
    let cgi = include_str!("../../examples/registry_host/src/cgi.rs");
    assert!(lines_of_code(main) + lines_of_code(cgi) < 200);
    let mut server = Server::run(example("registry_host").arg("."));
    for folder in ["simple", "npm"] {
        std::fs::create_dir(server.folder.join(folder)).unwrap();
        std::fs::write(server.folder.join(folder).join("file"), folder).unwrap();
    }
    std::fs::write(server.folder.join("secret"), "secret").unwrap();
    let text = bearer(&server.printed_token());
    for (path, status) in [
        ("/simple/file", 200),
        ("/simple/other", 404),
        ("/simple/..%2fsecret", 404),
        ("/simple/%2e%2e/secret", 404),
        ("/simple/../npm/file", 404),
        ("/simple/file/../../secret", 404),
        ("/simple/%2fetc/passwd", 404),
        ("/simple//etc/passwd", 404),
        ("/git/..%2fsimple%2ffile", 500),
    ] {
        assert_eq!(server.get(path, &[&text]).status(), status, "{path}");
        assert_eq!(server.get(path, &[]).status(), 401, "{path}");
    }
    server.stop("TERM");
}

/// Each guide of a client shows lines of the host that the client is tested with.
#[test]
fn the_guides_of_clients_show_the_host() {
    for guide in ["git", "pip", "npm", "cargo_registry", "curl", "wget", "maven"] {
        check_code(guide, "registry_host");
    }
}

/// Each guide of a driver that is an example shows the code, the dependencies and the number of
/// lines of that example.
#[test]
fn the_guides_of_drivers_show_their_examples() {
    let all_drivers = include_str!("../../src/docs/guides/own_driver.md");
    for guide in ["rusqlite", "diesel", "seaorm"] {
        let folder = format!("{guide}_host");
        check_code(guide, &folder);
        check_manifest(guide, &folder);

        let mut is_import = false;
        let code = text_of(&format!("examples/{folder}/src/driver.rs"));
        let code = code.lines().filter(|line| {
            is_import |= line.starts_with("use ");
            let is_code = !is_import && !line.trim().is_empty() && !line.trim().starts_with("//");
            is_import &= !line.ends_with(';');
            is_code
        });
        let row = format!("`examples/{folder}` | {} |", code.count());
        assert!(all_drivers.contains(&row), "{row}");
    }
}

#[test]
fn the_guides_of_frameworks_show_their_examples() {
    for guide in ["hyper", "actix", "tonic", "poem", "sessions"] {
        let folder = format!("{guide}_host");
        check_code(guide, &folder);
        check_manifest(guide, &folder);
    }
    let adapters = text_of("examples/poem_host/src/layers.rs").lines().count();
    assert_eq!(adapters, 97, "the guides frameworks and poem give this number");
}

/// The README's host is the example's text, is short, and works with a real database.
#[cfg(unix)]
#[test]
fn the_host_of_the_readme_runs_on_postgresql() {
    let source = include_str!("../../examples/axum_host/src/main.rs")
        .split_once("// README: from here\n")
        .unwrap()
        .1;
    assert!(include_str!("../../README.md").contains(&format!("```rust,no_run\n{source}```\n")));
    assert!(lines_of_code(source) < 40);

    let url = std::env::var("PATKIT_TEST_POSTGRES_URL")
        .expect("scripts/test starts a database and sets this");
    let schema = format!("host_{}", std::process::id());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let pool = runtime.block_on(async { sqlx::PgPool::connect(&url).await.unwrap() });
    let sql = |statements: String| {
        runtime.block_on(async {
            sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(&pool).await.unwrap();
        });
    };
    sql(format!(
        "CREATE SCHEMA {schema}; CREATE TABLE {schema}.users (id text, role text, enabled boolean); \
         INSERT INTO {schema}.users VALUES ('ada', 'member', true)"
    ));
    let command_with = |keys: &str| {
        let mut command = example("axum_host");
        command.env("DATABASE_URL", format!("{url}&options[search_path]={schema}"));
        command.env("ACME_TOKEN_KEYS", keys).env("LISTEN", "127.0.0.1:0");
        command
    };
    let mut command = command_with("1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
    let server = Server::listening(&mut command);

    let session = ["Cookie: session=ada", SAME_ORIGIN];
    let made = server.request("POST /api/user-tokens", &session, r#"{"name":"ci"}"#);
    assert_eq!(made.status(), 201, "{made:?}");
    let text = bearer(made.json().get("bearer_token").and_then(Value::as_str).unwrap());
    let used = server.get("/whoami", &[&text]);
    assert_eq!((used.status(), used.body.as_str()), (200, "ada"));
    // Both signals cause a flush. The service alone would write the use only seconds later.
    let query = "SELECT COUNT(*) FROM {schema}.patkit_tokens WHERE last_used_at IS NOT NULL";
    let written = || {
        let count = sqlx::query_scalar(sqlx::AssertSqlSafe(query.replace("{schema}", &schema)));
        let count: i64 = runtime.block_on(async { count.fetch_one(&pool).await.unwrap() });
        count
    };
    assert_eq!(written(), 0);
    server.stop("TERM");
    assert_eq!(written(), 1);
    let mut wrong = command_with("1:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=");
    let refused = run(&mut wrong);
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(
        told.starts_with(
            "Error: key 1 of the keyring is not the key that this store knows as key 1"
        ),
        "{told}"
    );
    let server = Server::listening(&mut command);
    assert_eq!(server.get("/whoami", &[]).status(), 401);
    assert_eq!(server.get("/whoami", &session).status(), 401, "a session is no token");
    let page = server.get("/settings/tokens", &session);
    assert_eq!(page.status(), 200);
    assert!(page.body.contains(r#"src="./tokens/script.js""#), "{page:?}");
    assert_eq!(server.get("/settings/tokens/script.js", &session).status(), 200);
    assert_eq!(server.get("/settings/nothing", &session).status(), 404);
    assert_eq!(server.get("/settings/tokens/settings.json", &session).status(), 200);
    sql(format!("UPDATE {schema}.users SET enabled = false"));
    assert_eq!(server.get("/whoami", &[&text]).status(), 401);
    server.stop("INT");
    sql(format!("DROP SCHEMA {schema} CASCADE"));
}

#[test]
fn the_readme_shows_a_token_and_the_expression_that_finds_it() {
    let readme = include_str!("../../README.md");
    let format = TokenFormat::new(Brand::new("acme").unwrap(), &[]).unwrap();
    let mut shown = readme.lines().filter(|line| line.starts_with("acme_pat_"));
    assert!(format.check(shown.next().unwrap()).is_ok());
    let expression = format.scanner_expression();
    assert!(readme.lines().any(|line| line == expression), "{expression}");
}

/// Returns the source of a test named as in the threat model: `file::name` or `folder::file::name`
/// below `tests/`, or `module::tests::name` in the source.
///
/// `http::name` is in `http/http.rs`.
fn source_of(test: &str) -> Option<(PathBuf, &str)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (place, name) = test.rsplit_once("::")?;
    let file = match place.strip_suffix("::tests") {
        Some(module @ ("table" | "service::verify")) => {
            format!("src/{}/tests.rs", module.replace("::", "/"))
        }
        Some(module) => format!("src/{}.rs", module.replace("::", "/")),
        None if place == "http" => "tests/http/http.rs".to_owned(),
        None => format!("tests/{}.rs", place.replace("::", "/")),
    };
    Some((root.join(file), name))
}

#[test]
fn every_row_of_the_threat_model_names_tests_that_exist() {
    let page = include_str!("../../src/docs/threat_model.md");
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
            let source = std::fs::read_to_string(&file).unwrap_or_else(|error| {
                panic!("row {number}, {test}: {}: {error}", file.display())
            });
            assert!(source.contains(&format!("fn {name}(")), "row {number}: there is no {test}");
        }
    }
    assert!(rows > 40, "the table was not found: {rows} rows");
}
