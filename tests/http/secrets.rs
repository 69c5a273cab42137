//! Secrets are in no text that any value shows of itself, and in no memory after they are dropped.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::too_many_lines,
    clippy::large_stack_arrays,
    clippy::print_stderr
)]

use patkit::audit::TracingSink;
use patkit::service::BuildError;
use patkit::store::{ListBy, ListQuery};
use patkit::token::{ForeignDigest, KeyId, KeyedDigest, Seal, StoredDigest};
use patkit::{
    Actor, Credential, Directory, DirectoryError, IssuedToken, Keyring, ManageError, NewToken,
    Owner, OwnerId, Realm, Reason, TokenEdit, TokenId, TokenService, TokenStore, VerifyError,
};
use std::error::Error;
use std::fmt::Debug;
use std::io::Write;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{World, builder, home, id, ready, session};
use tracing_subscriber::util::SubscriberInitExt;

/// The place of the secret in a text with the brand `acme`.
const SECRET: std::ops::Range<usize> = 31..75;

const KEY: [u8; 32] = [
    0x9e, 0x37, 0x79, 0xb9, 0x7f, 0x4a, 0x7c, 0x15, 0xf3, 0x9c, 0xc0, 0x60, 0x5c, 0xed, 0xc8, 0x34,
    0x10, 0x82, 0x27, 0x6b, 0xf3, 0xa2, 0x72, 0x51, 0xf8, 0x6c, 0x6a, 0x11, 0xd0, 0xc1, 0x8e, 0x95,
];
const KEY_TEXT: &str = "njd5uX9KfBXznMBgXO3INBCCJ2vzonJR+GxqEdDBjpU=";

/// All texts that values showed of themselves.
#[derive(Default)]
struct Shown(Vec<String>);

impl Shown {
    fn debug(&mut self, value: &impl Debug) {
        self.0.extend([format!("{value:?}"), format!("{value:#?}")]);
    }

    fn error(&mut self, error: &(dyn Error + 'static)) {
        let mut next = Some(error);
        while let Some(error) = next {
            self.0.extend([error.to_string(), format!("{error:?}"), format!("{error:#?}")]);
            next = error.source();
        }
    }

    fn result<T: Debug, E: Error + 'static>(&mut self, result: Result<T, E>) {
        match result {
            Ok(value) => self.debug(&value),
            Err(error) => self.error(&error),
        }
    }

    fn json(&mut self, value: &impl serde::Serialize) {
        self.0.push(serde_json::to_string_pretty(value).unwrap());
    }
}

/// Texts that must not occur anywhere.
#[derive(Default)]
struct Canaries(Vec<String>);

impl Canaries {
    /// Adds the bytes, eight at a time, in every form in which they are likely to be shown.
    fn bytes(&mut self, bytes: &[u8]) {
        for part in bytes.windows(8) {
            let join = |show: &dyn Fn(&u8) -> String, between: &str| {
                part.iter().map(show).collect::<Vec<_>>().join(between)
            };
            let word = u64::from_be_bytes(part.try_into().unwrap());
            self.0.extend([
                join(&|byte| format!("{byte:02x}"), ""),
                join(&|byte| format!("{byte:02X}"), ""),
                join(&u8::to_string, ", "),
                join(&u8::to_string, ","),
                join(&|byte| format!("{byte:#x}"), ", "),
                join(&|byte| format!("\\x{byte:02x}"), ""),
                join(&u8::to_string, ",\n    "),
                word.to_string(),
                word.swap_bytes().to_string(),
            ]);
        }
    }

    fn issued(&mut self, world: &World, issued: &IssuedToken) {
        let secret = &issued.plaintext.expose_secret()[SECRET];
        self.0.extend((0..secret.len() - 8).map(|start| secret[start..start + 8].to_owned()));
        self.0.push(issued.plaintext.expose_secret()[75..].to_owned());
        for word in secret.as_bytes().as_chunks::<11>().0 {
            self.bytes(&value(word).to_be_bytes());
        }
        if let StoredDigest::Keyed(digest) = &world.stored(issued.token.id()).digest {
            self.bytes(digest.mac());
        }
    }
}

fn value(digits: &[u8]) -> u64 {
    digits.iter().fold(0, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'A'..=b'Z' => digit - b'A' + 10,
            _ => digit - b'a' + 36,
        };
        number * 62 + u64::from(digit)
    })
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A directory that fails.
struct Down;

impl Directory for Down {
    async fn find(&self, _: &Realm, _: &OwnerId) -> Result<Option<Arc<Owner>>, DirectoryError> {
        Err(DirectoryError::new("unplugged"))
    }
}

fn keyring() -> Keyring {
    Keyring::new(KeyId::new(7), &KEY).unwrap()
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[test]
fn a_whole_life_shows_no_secret_no_key_and_no_digest_anywhere() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::TRACE);
    let _guard =
        subscriber.with_writer(move || writer.clone()).with_ansi(false).finish().set_default();

    let mut shown = Shown::default();
    let mut canaries = Canaries::default();
    canaries.bytes(&KEY);
    canaries.0.extend((0..KEY_TEXT.len() - 8).map(|start| KEY_TEXT[start..start + 8].to_owned()));
    assert_eq!(base64(&KEY), KEY_TEXT);

    let build = |builder: support::Builder| {
        builder.keyring(keyring()).audit_sink(TracingSink::new()).audit_refusals(1)
    };
    let world = World::built(build).unwrap();
    let service = &world.service;
    let ann = session("ann");
    shown.debug(&build(builder(world.store.clone(), world.directory.clone(), world.clock.clone())));
    shown.debug(service);
    shown.debug(&world.store);
    shown.debug(&keyring());
    shown.debug(service.format());

    let new = || NewToken::named("one").scope(["datastores:read"]).description("for the backup");
    shown.debug(&new());
    let issued = ready(service.generate(&ann, new())).unwrap();
    canaries.issued(&world, &issued);
    let text = issued.plaintext.expose_secret();
    shown.debug(&issued);
    shown.debug(&issued.plaintext);
    shown.debug(&issued.token);
    shown.json(&issued.token);
    let stored = world.stored(issued.token.id());
    shown.debug(&*stored);
    shown.debug(&stored.digest);
    if let StoredDigest::Keyed(digest) = &stored.digest {
        shown.debug(digest);
        shown.debug(&Seal::new(*digest));
        shown.debug(&Seal::new(KeyedDigest::new(KeyId::new(1), *digest.mac())));
        shown.debug(&StoredDigest::Foreign(ForeignDigest::new("sha256", digest.mac())));
    }
    let verified =
        ready(service.verify(Credential::text(text).from_address(Some([10, 0, 0, 1].into()))))
            .unwrap();
    shown.debug(&verified);
    shown.json(verified.token());
    shown.debug(verified.owner());
    shown.debug(&Actor::token(&verified));
    shown.result(verified.require("datastores:write"));
    shown.result(ready(service.recheck(&verified)));

    // Almost valid texts, wherever a text is parsed.
    let other = ready(service.generate(&ann, NewToken::named("two"))).unwrap();
    canaries.issued(&world, &other);
    let body = &text[..80];
    let reversed: String = text.chars().rev().collect();
    for bad in [body, &text[1..], &reversed, &text[5..], &text[SECRET], &text.to_ascii_lowercase()]
    {
        shown.result(ready(service.verify(Credential::text(bad))));
        shown.result(service.format().check(bad));
        shown.result(TokenId::from_str(bad));
        shown.result(patkit::token::Brand::new(bad));
        for header in
            [format!("Bearer {bad}"), bad.to_owned(), format!("Bearer {bad}, Bearer {text}")]
        {
            shown.result(ready(service.verify(Credential::headers(Some(&header)))));
            shown.result(ready(
                service.verify(Credential::headers([header.as_bytes(), header.as_bytes()])),
            ));
        }
    }
    shown.result(serde_json::from_value::<TokenId>(serde_json::Value::String(text.to_owned())));

    // Refusals of every kind, of an actor and of a credential.
    let token = issued.token.id();
    shown.result(ready(service.generate(&ann, new())));
    shown.result(ready(service.restore(&ann, token)));
    shown.result(ready(service.delete(&ann, token)));
    shown.result(ready(service.get(&session("bob"), token)));
    shown.result(ready(service.get(&session("nil"), token)));
    shown.result(ready(service.revoke(&ann, token, Reason::Admin)));
    shown.result(ready(service.rename(&ann, token, "two")));
    shown.result(ready(service.edit(&ann, token, TokenEdit::new())));
    shown.result(ready(service.rotate(&ann, token, Duration::from_secs(u64::MAX / 4))));
    for bad in [
        NewToken::named(""),
        NewToken::named("x").scope(["A"]),
        NewToken::named("x").networks(["10.0.0.1/8"]),
        NewToken::named("x").expires_in_days(-1),
        NewToken::named("x").description("\u{202e}"),
        NewToken::named("x").for_service(id("ann")),
    ] {
        shown.debug(&bad);
        shown.result(ready(service.generate(&session("ada"), bad)));
    }
    let through = Actor::token(&verified);
    shown.result(ready(service.generate(&through, NewToken::named("wider"))));
    let rotated = ready(service.rotate(&ann, token, Duration::ZERO)).unwrap();
    canaries.issued(&world, &rotated);
    shown.debug(&rotated);
    shown.result(ready(service.verify(Credential::text(text))));
    shown.result(ready(service.verify(Credential::text(rotated.plaintext.expose_secret()))));
    shown.result(ready(service.list(&through, None, 50)));
    ready(service.revoke(&Actor::system(), rotated.token.id(), Reason::Compromised)).unwrap();
    shown.result(ready(service.verify(Credential::text(rotated.plaintext.expose_secret()))));
    shown.result(ready(service.restore(&ann, rotated.token.id())));
    shown.result(ready(service.recheck(&verified)));
    world.advance(chrono::TimeDelta::days(100));
    shown.result(ready(service.verify(Credential::text(other.plaintext.expose_secret()))));
    world.put("ann", |ann| ann.with_enabled(false));
    shown.result(ready(service.rename(&ann, other.token.id(), "x")));

    // The services that it depends on fail.
    let other_keys = Keyring::new(KeyId::new(8), b"another key, which no record needs").unwrap();
    let plain = || builder(world.store.clone(), world.directory.clone(), world.clock.clone());
    let missing = plain().keyring(other_keys).build().unwrap();
    shown.result(ready(missing.verify(Credential::text(text))));
    let down = TokenService::builder(world.store.clone(), Down).brand("acme").keyring(keyring());
    let down = down.clock(world.clock.clone()).build().unwrap();
    shown.debug(&down);
    world.put("bob", |bob| bob.with_role("member"));
    let living = world.generate(&session("bob"), NewToken::named("living")).unwrap();
    canaries.issued(&world, &living);
    shown.result(ready(down.verify(Credential::text(living.plaintext.expose_secret()))));
    shown.result(ready(down.generate(&session("bob"), NewToken::named("x"))));
    ready(service.flush()).unwrap();
    shown.debug(&service.usage());
    shown.debug(&world.events());
    shown.debug(&ready(world.store.list(&ListQuery::new(ListBy::Owner {
        realm: home(),
        owner: id("bob"),
        kind: None,
    }))));

    // Keyrings that are refused.
    let key = KEY_TEXT;
    for bad in [
        key.to_owned(),
        format!("{key}:1"),
        format!("x:{key}"),
        format!("1:{key}:"),
        format!("1:{key}!"),
        format!("1:{}", &key[..20]),
        format!("1:{key},1:{key}"),
        format!("1:{key},2:{key}"),
        format!("1:{key},{key}"),
        format!("1={key}"),
        format!("1:{}", base64(&KEY.repeat(40))),
    ] {
        let result = Keyring::from_text(&bad);
        assert!(result.is_err(), "{bad}");
        shown.result(result);
    }
    shown.result(Keyring::new(KeyId::new(1), &KEY[..31]));
    shown.result(keyring().with_key(KeyId::new(8), &KEY));
    let builds: [Result<_, BuildError>; 3] = [
        plain().brand("A").build(),
        plain().former_brand("acme").build(),
        plain().pending_cap(0).build(),
    ];
    for result in builds {
        shown.result(result);
    }

    let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for word in ["generated", "rotated", "revoked", "refused", "compromised"] {
        assert!(logged.contains(word), "{word} was not logged");
    }
    assert!(logged.contains(&token.to_string()), "ids are no secret");
    shown.0.push(logged);
    assert!(
        shown.0.len() > 300 && canaries.0.len() > 1_000,
        "{} {}",
        shown.0.len(),
        canaries.0.len()
    );
    for text in &shown.0 {
        for canary in &canaries.0 {
            assert!(!text.contains(canary.as_str()), "{canary:?} in {text}");
        }
    }
}

#[test]
fn a_plaintext_shows_its_brand_kind_and_id_alone() {
    let world = World::new();
    let issued = world.issue("bot", NewToken::named("one"));
    let shown = format!("{:?}", issued.plaintext);
    assert_eq!(shown, format!("PlaintextToken(acme_svc_{}…)", issued.token.id()));
    assert_eq!(format!("{:#?}", issued.plaintext), shown);
}

#[test]
fn a_credential_is_rejected_without_a_word_of_it() {
    let world = World::new();
    let issued = world.issue("ann", NewToken::named("one"));
    let text = issued.plaintext.expose_secret();
    let Err(VerifyError::Rejected(rejected)) =
        ready(world.service.verify(Credential::text(&text[..80])))
    else {
        panic!("accepted");
    };
    assert_eq!(format!("{rejected:?}"), "Rejected { reason: Malformed, token: None }");
    let error = ManageError::ActorRejected(rejected);
    assert_eq!(
        error.to_string(),
        "the actor was rejected, because the owner or the token no longer works"
    );
}

#[cfg(target_os = "linux")]
mod memory {
    //! A process searches its own memory. The patterns are masked, so that it does not find them.

    use patkit::random::{RandomError, SecureRandom};
    use patkit::{
        Credential, Keyring, MemoryDirectory, MemoryStore, NewToken, Owner, OwnerKind, RoleCatalog,
        TokenService, token::KeyId,
    };
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::process::Command;
    use std::sync::Mutex;
    use std::time::Duration;
    use support::session;
    use zeroize::Zeroizing;

    const MASK: u8 = 0xA5;
    const CHUNK: usize = 1 << 20;
    const LONGEST: usize = 256;

    /// The part of the memory that is searched. It is never freed, because a new one would overwrite
    /// what is looked for.
    static PART: Mutex<Vec<u8>> = Mutex::new(Vec::new());

    /// A masked pattern.
    struct Pattern {
        name: &'static str,
        masked: Vec<u8>,
    }

    /// Returns a secret or a key that exists in the program only in masked form.
    const fn masked(seed: u64) -> [u8; 32] {
        let mut bytes = [0; 32];
        let mut state = seed;
        let mut place = 0;
        while place < bytes.len() {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            bytes[place] = (state >> 56).to_be_bytes()[7];
            place += 1;
        }
        bytes
    }

    static SECRETS: [[u8; 32]; 2] = [masked(1), masked(2)];
    static KEY: [u8; 32] = masked(3);

    fn unmask(masked: &[u8; 32], bytes: &mut [u8]) {
        for (byte, masked) in bytes.iter_mut().zip(masked) {
            *byte = std::hint::black_box(*masked) ^ MASK;
        }
    }

    /// Returns the secrets in turn.
    struct Chosen(std::sync::atomic::AtomicUsize);

    impl SecureRandom for Chosen {
        fn fill(&self, buffer: &mut [u8]) -> Result<(), RandomError> {
            if buffer.len() == 32 {
                let number = self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                unmask(&SECRETS[number % 2], buffer);
            } else {
                patkit::random::SystemRandom::new().fill(buffer)?;
            }
            Ok(())
        }
    }

    /// Returns the addresses of the patterns in the writable memory of this process.
    fn search(patterns: &[Pattern]) -> Vec<(&'static str, String, u64)> {
        assert!(patterns.iter().all(|pattern| pattern.masked.len() <= LONGEST));
        let mut buffer = PART.lock().unwrap();
        buffer.resize(CHUNK + LONGEST, 0);
        let own = buffer.as_ptr_range();
        let own = own.start.addr()..own.end.addr();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let memory = File::open("/proc/self/mem").unwrap();
        let mut found = Vec::new();
        for line in maps.lines() {
            let mut fields = line.split_whitespace();
            let (range, access) = (fields.next().unwrap(), fields.next().unwrap());
            let name = fields.nth(3).unwrap_or("anonymous");
            if !access.starts_with("rw") {
                continue;
            }
            let (start, end) = range.split_once('-').unwrap();
            let bound = |text| usize::from_str_radix(text, 16).unwrap();
            let (start, end) = (bound(start), bound(end));
            for at in (start..end).step_by(CHUNK) {
                let length = (end - at).min(buffer.len());
                let Ok(read) = memory.read_at(&mut buffer[..length], at.try_into().unwrap()) else {
                    continue;
                };
                for (offset, window) in (0..read).map(|offset| (offset, &buffer[offset..read])) {
                    let is = |pattern: &Pattern| {
                        window.len() >= pattern.masked.len()
                            && window[0] ^ MASK == pattern.masked[0]
                            && window
                                .iter()
                                .zip(&pattern.masked)
                                .all(|(byte, masked)| byte ^ MASK == *masked)
                    };
                    if own.contains(&(at + offset)) {
                        continue;
                    }
                    for pattern in patterns.iter().filter(|pattern| is(pattern)) {
                        found.push((
                            pattern.name,
                            format!("{name} {range}"),
                            (at + offset).try_into().unwrap(),
                        ));
                    }
                }
            }
        }
        buffer.fill(0);
        std::hint::black_box(&buffer);
        found.sort();
        found.dedup();
        found
    }

    fn patterns(text: &str) -> Vec<Pattern> {
        let mask =
            |bytes: &[u8]| bytes.iter().map(|byte| std::hint::black_box(*byte) ^ MASK).collect();
        let mut patterns = vec![Pattern { name: "text", masked: mask(&text.as_bytes()[31..75]) }];
        for place in 0..4 {
            let digits = &text.as_bytes()[31 + 11 * place..42 + 11 * place];
            patterns.push(Pattern { name: "a word of the text", masked: mask(digits) });
        }
        for secret in &SECRETS {
            patterns.push(Pattern { name: "bytes", masked: secret.to_vec() });
            for word in secret.as_chunks::<8>().0 {
                patterns
                    .push(Pattern { name: "a word", masked: word.iter().rev().copied().collect() });
                patterns.push(Pattern { name: "a word, big-endian", masked: word.to_vec() });
            }
        }
        patterns.push(Pattern { name: "key", masked: KEY.to_vec() });
        // The allocator overwrites the first words of freed memory, so each word is searched for.
        for word in KEY.as_chunks::<8>().0 {
            patterns.push(Pattern { name: "a word of the key", masked: word.to_vec() });
        }
        patterns
    }

    /// Returns a service with the key and the secrets, whose tokens may ask about tokens.
    fn service() -> TokenService<MemoryStore, MemoryDirectory> {
        let ada = Owner::new(support::id("ada"), OwnerKind::Human).with_role("member");
        let roles = RoleCatalog::standard_builder().grant("member", ["tokens:introspect"]);
        let mut key = Zeroizing::new([0; 32]);
        unmask(&KEY, &mut *key);
        let keyring = Keyring::new(KeyId::new(1), &*key).unwrap();
        let service = TokenService::builder(MemoryStore::new(), MemoryDirectory::from_iter([ada]))
            .brand("acme")
            .keyring(keyring);
        service.roles(roles.build().unwrap()).random(Chosen(0.into())).build().unwrap()
    }

    /// Runs everything that handles a secret, and drops all of it.
    #[inline(never)]
    fn live() -> Vec<Pattern> {
        let service = service();
        let issued =
            support::ready(service.generate(&session("ada"), NewToken::named("one"))).unwrap();
        let text = issued.plaintext.expose_secret();
        let patterns = patterns(text);
        let found = search(&patterns);
        for name in ["text", "key"] {
            assert!(
                found.iter().any(|each| each.0 == name),
                "the search finds nothing of what lives: {name}"
            );
        }
        support::ready(service.verify(Credential::text(text))).unwrap();
        let header = joined(&["Bearer ", text]);
        support::ready(service.verify(Credential::headers(Some(&header)))).unwrap();
        support::ready(service.verify(Credential::text(&text[..80]))).unwrap_err();
        let token = issued.token.id();
        let next = support::ready(service.rotate(&session("ada"), token, Duration::ZERO)).unwrap();
        support::ready(service.verify(Credential::text(text))).unwrap_err();
        support::ready(service.flush()).unwrap();
        // The last call, so that nothing overwrites what it leaves.
        support::ready(service.verify(Credential::text(next.plaintext.expose_secret()))).unwrap();
        patterns
    }

    /// Joins texts in a buffer that does not grow, so that no copy is left behind.
    fn joined(parts: &[&str]) -> Zeroizing<String> {
        let length = parts.iter().map(|part| part.len()).sum();
        let mut text = Zeroizing::new(String::with_capacity(length));
        for part in parts {
            text.push_str(part);
        }
        text
    }

    /// Makes, sends and drops the answer of the HTTP API that contains a new token's text.
    #[inline(never)]
    fn live_over_http() -> Vec<Pattern> {
        use http_body_util::BodyExt;
        use patkit::http::{Authenticator, ManagementApi};
        use tower::ServiceExt;

        let service = service();
        let sessions = |_: &http::request::Parts| Some(session("ada").proven_by_header());
        let api = ManagementApi::new(Authenticator::new(std::sync::Arc::new(service)), sessions);
        let request =
            http::Request::post("/user-tokens").header("content-type", "application/json");
        let request = request.body(axum::body::Body::from("{\"name\":\"one\"}")).unwrap();
        let mut answer = support::ready(api.oneshot(request)).unwrap();
        assert_eq!(answer.status(), 201);
        let body = support::ready(answer.body_mut().frame()).unwrap().unwrap().into_data().unwrap();
        assert!(support::ready(answer.body_mut().frame()).is_none());
        let start = "{\"bearer_token\":\"".len();
        let patterns = patterns(str::from_utf8(&body[start..start + 81]).unwrap());
        assert!(
            search(&patterns).iter().any(|found| found.0 == "text"),
            "the search does not see the answer"
        );
        patterns
    }

    /// Sends a token by HTTP Basic and in forms, where each request wipes what it sent.
    #[inline(never)]
    fn live_by_other_carriers() -> Vec<Pattern> {
        use base64::Engine;
        use base64::engine::general_purpose::STANDARD;
        use bytes::Bytes;
        use http_body_util::Full;
        use patkit::http::{Authenticator, BasicCarrier, Introspection, Revocation};
        use tower::{Layer, ServiceExt, service_fn};

        let service = service();
        let issued =
            support::ready(service.generate(&session("ada"), NewToken::named("one"))).unwrap();
        let text = issued.plaintext.expose_secret();
        let mut patterns = patterns(text);
        // So long that no later allocation overwrites all that is left of it. The same is below.
        let user = "a".repeat(4_000);
        let encoded = Zeroizing::new(STANDARD.encode(&*joined(&[&user, ":", text])));
        let basic = joined(&["Basic ", &encoded]);
        let masked = encoded.as_bytes()[encoded.len() - 60..encoded.len() - 12].iter();
        let masked = masked.map(|byte| std::hint::black_box(*byte) ^ MASK).collect();
        patterns.push(Pattern { name: "base64", masked });
        assert!(search(&patterns).iter().any(|found| found.0 == "base64"));

        let authenticator = Authenticator::new(std::sync::Arc::new(service));
        let authenticator = authenticator.accept_basic(BasicCarrier::any_user());
        // The owner of the bytes wipes them.
        let sent = |text: &str| Bytes::from_owner(Zeroizing::new(text.as_bytes().to_vec()));
        let header = || http::HeaderValue::from_maybe_shared(sent(&basic)).unwrap();
        let blank = "+".repeat(20_000);
        let request = |field: &str| {
            let form = joined(&["a=", &blank, field, &text[..8], "%5F", &text[9..], "&c=", &blank]);
            let request = http::Request::post("/").header("authorization", header());
            let request = request.header("content-type", "application/x-www-form-urlencoded");
            request.body(Full::new(sent(&form))).unwrap()
        };
        let introspection = Introspection::new(authenticator.clone());
        let answer = support::ready(introspection.oneshot(request("&token="))).unwrap();
        assert_eq!(answer.status(), 200);
        let revocation = Revocation::new(authenticator.clone());
        let revoke = |field| {
            support::ready(revocation.clone().oneshot(request(field))).unwrap().status().as_u16()
        };
        assert_eq!([revoke("&token="), revoke("&refresh_token=")], [200, 400]);

        let request = http::Request::get("/").header("authorization", header());
        let request = request.body(Full::<Bytes>::default()).unwrap();
        let unreached = service_fn(async |_: http::Request<Full<Bytes>>| {
            Ok::<_, std::convert::Infallible>(http::Response::new(Full::<Bytes>::default()))
        });
        let layered = authenticator.required().layer(unreached);
        assert_eq!(support::ready(layered.oneshot(request)).unwrap().status(), 401);
        patterns
    }

    /// Runs far down the stack, so that the later search does not overwrite the remains.
    #[inline(never)]
    fn live_below() -> Vec<Pattern> {
        let room = [0_u8; 256 << 10];
        std::hint::black_box(&room);
        let patterns = live();
        std::hint::black_box(&room);
        patterns
    }

    #[inline(never)]
    fn live_over_http_below() -> Vec<Pattern> {
        let room = [0_u8; 256 << 10];
        std::hint::black_box(&room);
        let patterns = live_over_http();
        std::hint::black_box(&room);
        patterns
    }

    #[inline(never)]
    fn live_by_other_carriers_below() -> Vec<Pattern> {
        let room = [0_u8; 256 << 10];
        std::hint::black_box(&room);
        let patterns = live_by_other_carriers();
        std::hint::black_box(&room);
        patterns
    }

    #[test]
    #[ignore = "in a process of its own, by the test below"]
    fn a_process_that_looks_through_its_own_memory() {
        nothing_is_left(&live_below());
    }

    #[test]
    #[ignore = "in a process of its own, by the test below"]
    fn a_process_that_looks_for_its_answers() {
        nothing_is_left(&live_over_http_below());
    }

    #[test]
    #[ignore = "in a process of its own, by the test below"]
    fn a_process_that_looks_for_what_other_carriers_brought() {
        nothing_is_left(&live_by_other_carriers_below());
    }

    fn nothing_is_left(patterns: &[Pattern]) {
        let mut found = search(patterns);
        for (name, region, address) in &found {
            eprintln!("{name} at {address:#x} in {region}");
        }
        // Without optimization, each moved value leaves a copy on the stack, word by word, and the
        // checksum's vector code (`crc32fast`) leaves blocks of the text. With optimization, the
        // values are in registers, and nothing is left.
        let here = 0_u8;
        let here = u64::try_from(std::ptr::from_ref(&here).addr()).unwrap();
        let is_on_stack = |address: u64| (here - (1 << 20)..here).contains(&address);
        if cfg!(debug_assertions) {
            let words = ["a word of the text", "a word", "a word, big-endian"];
            found.retain(|(name, _, address)| !words.contains(name) || !is_on_stack(*address));
        }
        assert!(found.is_empty());
    }

    #[test]
    fn nothing_of_a_secret_or_a_key_is_left_in_memory_once_all_is_dropped() {
        in_its_own_process("memory::a_process_that_looks_through_its_own_memory");
    }

    #[test]
    fn nothing_of_a_new_token_is_left_in_memory_once_its_answer_is_dropped() {
        in_its_own_process("memory::a_process_that_looks_for_its_answers");
    }

    #[test]
    fn nothing_of_a_token_by_basic_or_in_a_form_is_left_in_memory() {
        in_its_own_process("memory::a_process_that_looks_for_what_other_carriers_brought");
    }

    fn in_its_own_process(name: &str) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "--test-threads=1", name])
            .output()
            .unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("1 test"), "it did not run: {said}");
        assert!(output.status.success(), "{said}");
    }
}
