//! Measures patkit against its alternatives at one job: take a valid credential of a user, return
//! who the user is.
//!
//! If a peer's credentials contain permissions, the peer also checks one, and patkit is measured
//! with and without that check.
//!
//! `scripts/peers` runs the program. It prints a table, and writes `peers.md` and `peers.svg` into
//! the folder that it is given.
//!
//! Each figure is the lower quartile of many samples of about 50 µs. The samples alternate over all
//! peers, so that other load of the machine affects all of them. The unit is HMAC: pre-keyed
//! HMAC-SHA256 over 48 bytes.
//!
//! patkit's tokens can be revoked. Peers without revocation therefore also look up a set of as many
//! revoked ids as there are credentials. Only patkit looks up the current state of the owner. The
//! rows of patkit share one store, and in each round a row walks over tokens of its own. The texts
//! of a sample are copied before it begins, because a request would bring its text along. Peers
//! without a store have credentials for only 1,000 users, because a million would take an hour to
//! sign and change nothing.

use api_keys_simplified::{ApiKeyManagerV0, Environment, ExposeSecret, KeyStatus, SecureString};
use argon2::password_hash::SaltString;
use argon2::{Argon2, PasswordHash, PasswordHasher, PasswordVerifier};
use biscuit_auth::macros::{authorizer, biscuit};
use biscuit_auth::{Biscuit, KeyPair};
use ed25519_dalek::SigningKey;
use hmac::{Hmac, KeyInit, Mac};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use patkit::clock::CoarseClock;
use patkit::{
    Credential,
    Actor, Clock, Keyring, MemoryDirectory, MemoryStore, NewToken, Owner, OwnerId, OwnerKind, RoleCatalog,
    SystemClock, TokenPolicy, TokenService, Verified,
};
use prefixed_api_key::{PrefixedApiKey, PrefixedApiKeyController};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::hint::black_box;
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const SIZES: [usize; 2] = [1_000, 1_000_000];
/// The number of credentials of a peer that stores nothing per credential.
const SIGNED: usize = 1_000;
const ROUNDS: usize = 400;
/// The number of verifications before each sample.
const WARM: usize = 2_000;
const SAMPLE: Duration = Duration::from_micros(50);
const PERMISSION: &str = "datastores:read";

/// The rows of patkit, with the exact and the coarse clock.
const EXACT: &str = "patkit, header to Verified";
const COARSE: &str = "patkit, header to Verified, coarse clock";
const EXACT_ASKED: &str = "patkit, and one permission asked";
const COARSE_ASKED: &str = "patkit, and one permission asked, coarse clock";

/// Verifies a credential.
type Verify = Box<dyn Fn(&str)>;

struct Peer {
    name: &'static str,
    what: &'static str,
    texts: Rc<Vec<String>>,
    verify: Verify,
    /// The number of verifications in one sample.
    batch: usize,
    samples: Vec<f64>,
}

fn main() {
    let folder = PathBuf::from(std::env::args().nth(1).expect("the folder to write to"));
    let mut rows: Vec<(&'static str, &'static str, Vec<f64>)> = Vec::new();
    let mut floors = Vec::new();
    for size in SIZES {
        let (floor, peers) = measure(size);
        floors.push(floor);
        for peer in peers {
            match rows.iter_mut().find(|(name, ..)| *name == peer.0) {
                Some((.., figures)) => figures.push(peer.2),
                None => rows.push((peer.0, peer.1, vec![peer.2])),
            }
        }
    }
    let table = table(&rows, &floors);
    println!("{table}");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("peers.md"), table).unwrap();
    std::fs::write(folder.join("peers.svg"), plot(&rows)).unwrap();
}

/// Returns, for the floor and each peer, the name, what it does, and the nanoseconds of one
/// verification.
fn measure(size: usize) -> (f64, Vec<(&'static str, &'static str, f64)>) {
    eprintln!("making {size} credentials of each");
    let mut peers = vec![peer("floor", "one pre-keyed HMAC-SHA256 over 48 bytes", floor())];
    peers.extend(patkit(size));
    let unasked = "std map, no owner; no permission asked";
    peers.push(peer("prefixed-api-key", unasked, prefixed(size)));
    let signed = "revocation set; one permission asked, of those when it was signed";
    peers.push(peer("jsonwebtoken HS256", signed, hs256(size)));
    peers.push(peer("jsonwebtoken EdDSA", signed, eddsa(size)));
    peers.push(peer("biscuit-auth", signed, biscuits(size)));
    let slow = "its own defaults (Argon2id), std map of hashes; no permission asked";
    peers.push(peer("api-keys-simplified", slow, simplified()));
    peers.push(peer("Argon2id alone", "the argon2 crate's defaults; no permission asked", argon()));
    eprintln!("measuring");
    for peer in &mut peers {
        // Takes the shortest of several, because the first may wait for memory that the system has
        // paged out.
        let one = peer.texts.iter().cycle().take(25).map(|text| {
            let started = Instant::now();
            (peer.verify)(text);
            started.elapsed().as_nanos()
        });
        peer.batch = usize::try_from(SAMPLE.as_nanos() / one.min().unwrap().max(1)).unwrap().max(1);
    }
    for round in 0..ROUNDS {
        for (number, peer) in peers.iter_mut().enumerate() {
            // Measures operations that take milliseconds less often.
            if peer.batch == 1 && round % 40 != 0 {
                continue;
            }
            // Warms the caches, which the previous peer has filled.
            let warm = if peer.batch > 1 { WARM } else { 0 };
            // Starts each row of patkit at other tokens, because the previous row left its own in
            // the cache.
            let start = number * 10_000_000 + round * 7_919;
            peer.walk(start + peer.batch, warm).iter().for_each(|text| (peer.verify)(text));
            let texts = peer.walk(start, peer.batch);
            let started = Instant::now();
            texts.iter().for_each(|text| (peer.verify)(text));
            peer.samples.push(started.elapsed().as_nanos() as f64 / peer.batch as f64);
        }
    }
    let figures: Vec<_> = peers
        .into_iter()
        .map(|mut peer| {
            peer.samples.sort_by(f64::total_cmp);
            (peer.name, peer.what, peer.samples[peer.samples.len() / 4])
        })
        .collect();
    (figures[0].2, figures)
}

fn peer(
    name: &'static str,
    what: &'static str,
    (texts, verify): (impl Into<Rc<Vec<String>>>, Verify),
) -> Peer {
    Peer { name, what, texts: texts.into(), verify, batch: 1, samples: Vec::new() }
}

impl Peer {
    /// Returns copies of `count` texts, from a place of a walk over all texts.
    fn walk(&self, start: usize, count: usize) -> Vec<String> {
        (start..start + count).map(|n| self.texts[place(n, self.texts.len())].clone()).collect()
    }
}

/// Returns a place of a pseudo-random walk.
fn place(n: usize, size: usize) -> usize {
    let mut state = (n as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    ((state ^ (state >> 27)) % size as u64) as usize
}

fn floor() -> (Vec<String>, Verify) {
    let keyed = Hmac::<Sha256>::new_from_slice(&[7; 32]).unwrap();
    let verify: Verify = Box::new(move |text| {
        let mut mac = keyed.clone();
        let mut message = [0x55_u8; 48];
        message[..8].copy_from_slice(text.as_bytes());
        mac.update(&message);
        black_box(mac.finalize().into_bytes());
    });
    ((0..1_000).map(|n| format!("{n:08}")).collect(), verify)
}

type Service = Rc<TokenService<Arc<MemoryStore>, MemoryDirectory>>;

/// Returns the rows of patkit, over one store.
fn patkit(size: usize) -> Vec<Peer> {
    let ids: Vec<OwnerId> = (0..1_000).map(|n| OwnerId::new(&format!("user-{n:06}")).unwrap()).collect();
    let store = Arc::new(MemoryStore::new());
    let exact = service(store.clone(), &ids, SystemClock::new(), 2 * size);
    let coarse = service(store, &ids, CoarseClock::new(), 2 * size);
    let headers: Vec<String> = (0..size)
        .map(|n| {
            let actor = Actor::signed_in(ids[n % ids.len()].clone());
            let issued = ready(exact.generate(&actor, NewToken::named(&format!("token-{n}")))).unwrap();
            format!("Bearer {}", issued.plaintext.expose_secret())
        })
        .collect();
    // Each token was just used and its use is written, as on a busy host.
    headers.iter().for_each(|header| drop(verified(&exact, header)));
    ready(exact.flush()).unwrap();
    let headers = Rc::new(headers);
    let found = "owner and permissions as they are now, revocable; no permission asked";
    let asked = "owner and permissions as they are now, revocable; one permission asked";
    vec![
        peer(EXACT, found, (headers.clone(), verify(&exact))),
        peer(COARSE, found, (headers.clone(), verify(&coarse))),
        peer(EXACT_ASKED, asked, (headers.clone(), verify_and_ask(&exact))),
        peer(COARSE_ASKED, asked, (headers.clone(), verify_and_ask(&coarse))),
    ]
}

fn service(
    store: Arc<MemoryStore>,
    ids: &[OwnerId],
    clock: impl Clock + 'static,
    pending_cap: usize,
) -> Service {
    let directory: MemoryDirectory =
        ids.iter().map(|id| Owner::new(id.clone(), OwnerKind::Human).with_role("member")).collect();
    // Uses are noted at most once a day, so that none is noted while this measures.
    let policy = TokenPolicy::builder().last_used_granularity(Duration::from_secs(86_400)).build().unwrap();
    let service = TokenService::builder(store, directory)
        .brand("acme")
        .keyring(Keyring::from_text("1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap())
        .roles(RoleCatalog::standard_builder().grant("member", [PERMISSION]).build().unwrap())
        .policy(policy)
        .clock(clock)
        .pending_cap(pending_cap)
        .build()
        .unwrap();
    Rc::new(service)
}

fn verified(service: &Service, header: &str) -> Verified {
    ready(service.verify(Credential::headers(Some(header)))).unwrap()
}

fn verify(service: &Service) -> Verify {
    let service = service.clone();
    Box::new(move |header| drop(black_box(verified(&service, header))))
}

fn verify_and_ask(service: &Service) -> Verify {
    let service = service.clone();
    Box::new(move |header| verified(&service, header).require(PERMISSION).unwrap())
}

fn prefixed(size: usize) -> (Vec<String>, Verify) {
    let controller = PrefixedApiKeyController::configure()
        .prefix("acme".to_owned())
        .rng_osrng()
        .digest_sha256()
        .short_token_length(16)
        .long_token_length(32)
        .short_token_prefix(None)
        .finalize()
        .unwrap();
    let mut hashes = HashMap::new();
    let keys: Vec<String> = (0..size)
        .map(|n| {
            let (key, hash) = controller.generate_key_and_hash();
            hashes.insert(key.short_token().to_owned(), (hash, n));
            key.to_string()
        })
        .collect();
    let verify: Verify = Box::new(move |text| {
        let key = PrefixedApiKey::from_string(text).unwrap();
        let (hash, user) = &hashes[key.short_token()];
        assert!(controller.check_hash(&key, hash));
        black_box(user);
    });
    (keys, verify)
}

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    jti: String,
    exp: u64,
    permissions: Vec<String>,
}

fn jwt(size: usize, algorithm: Algorithm, signing: &EncodingKey, key: DecodingKey) -> (Vec<String>, Verify) {
    let exp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 86_400;
    let tokens: Vec<String> = (0..SIGNED)
        .map(|n| {
            let claims = Claims {
                sub: format!("user-{n:06}"),
                jti: format!("{n:032x}"),
                exp,
                permissions: vec![PERMISSION.to_owned()],
            };
            encode(&Header::new(algorithm), &claims, signing).unwrap()
        })
        .collect();
    let revoked: HashSet<String> = (0..size).map(|n| format!("revoked {n:024x}")).collect();
    let validation = Validation::new(algorithm);
    let verify: Verify = Box::new(move |text| {
        let claims = decode::<Claims>(text, &key, &validation).unwrap().claims;
        assert!(!revoked.contains(&claims.jti));
        assert!(claims.permissions.iter().any(|permission| permission == PERMISSION));
    });
    (tokens, verify)
}

fn hs256(size: usize) -> (Vec<String>, Verify) {
    let (signing, key) = (EncodingKey::from_secret(&[7; 32]), DecodingKey::from_secret(&[7; 32]));
    jwt(size, Algorithm::HS256, &signing, key)
}

fn eddsa(size: usize) -> (Vec<String>, Verify) {
    // PKCS #8 (RFC 8410 section 7) with a fixed seed.
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend([7; 32]);
    let public = SigningKey::from_bytes(&[7; 32]).verifying_key();
    jwt(size, Algorithm::EdDSA, &EncodingKey::from_ed_der(&der), DecodingKey::from_ed_der(public.as_bytes()))
}

fn biscuits(size: usize) -> (Vec<String>, Verify) {
    let root = KeyPair::new();
    let tokens: Vec<String> = (0..SIGNED)
        .map(|n| {
            let user = format!("user-{n:06}");
            let token = biscuit!("user({user}); right(\"datastores\", \"read\");").build(&root).unwrap();
            token.to_base64().unwrap()
        })
        .collect();
    let revoked: HashSet<Vec<u8>> = (0..size).map(|n| format!("{n:064x}").into_bytes()).collect();
    let public = root.public();
    let verify: Verify = Box::new(move |text| {
        let token = Biscuit::from_base64(text, public).unwrap();
        assert!(token.revocation_identifiers().iter().all(|id| !revoked.contains(id)));
        let mut authorizer =
            authorizer!("allow if user($user), right(\"datastores\", \"read\");").build(&token).unwrap();
        authorizer.authorize().unwrap();
    });
    (tokens, verify)
}

fn simplified() -> (Vec<String>, Verify) {
    let manager = ApiKeyManagerV0::init_default_config("acme_sk").unwrap();
    let mut hashes = HashMap::new();
    // Only a few keys, because each takes one Argon2.
    let keys: Vec<String> = (0..3)
        .map(|_| {
            let key = manager.generate(Environment::production()).unwrap();
            let text = key.key().expose_secret().to_owned();
            hashes.insert(manager.extract_key_id(key.key()), key.expose_hash().hash().to_owned());
            text
        })
        .collect();
    let verify: Verify = Box::new(move |text| {
        let key = SecureString::from(text.to_owned());
        let hash = &hashes[&manager.extract_key_id(&key)];
        assert!(matches!(manager.verify(Credential::text(&key).from_address(hash)).unwrap(), KeyStatus::Valid));
    });
    (keys, verify)
}

fn argon() -> (Vec<String>, Verify) {
    let salt = SaltString::encode_b64(&[7; 16]).unwrap();
    let hash = Argon2::default().hash_password(b"a secret of a token", &salt).unwrap().to_string();
    let verify: Verify = Box::new(move |text| {
        let hash = PasswordHash::new(&hash).unwrap();
        Argon2::default().verify_password(text.as_bytes(), &hash).unwrap();
    });
    (vec!["a secret of a token".to_owned()], verify)
}

/// Polls a future once, because the memory store never waits.
fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the memory store waited"),
    }
}

fn table(rows: &[(&'static str, &'static str, Vec<f64>)], floors: &[f64]) -> String {
    let row = |wanted| &rows.iter().find(|(name, ..)| *name == wanted).unwrap().2;
    let (exact, coarse) = (row(EXACT), row(COARSE));
    let mut text = String::from(
        "| | 10^3: ns | HMAC | patkit × | coarse × | 10^6: ns | HMAC | patkit × | coarse × | what it does |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|---|\n",
    );
    for (name, what, figures) in rows {
        write!(text, "| {name} |").unwrap();
        for (size, ns) in figures.iter().enumerate() {
            let [hmacs, exact, coarse] = [floors, exact, coarse].map(|unit| short(ns / unit[size]));
            write!(text, " {ns:.0} | {hmacs} | {exact} | {coarse} |").unwrap();
        }
        writeln!(text, " {what} |").unwrap();
    }
    text
}

fn short(ratio: f64) -> String {
    if ratio < 10.0 { format!("{ratio:.1}") } else { format!("{ratio:.0}") }
}

/// Draws bars on a logarithmic scale, from 100 ns to 1 s.
fn plot(rows: &[(&'static str, &'static str, Vec<f64>)]) -> String {
    const LEFT: f64 = 330.0;
    const DECADE: f64 = 75.0;
    let x = |ns: f64| LEFT + (ns / 10.0).log10().max(0.0) * DECADE;
    let height = 60 + rows.len() * 44;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1020\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"20\">One verification, in ns, on a logarithmic scale: with 10^3 credentials (dark) and with 10^6 (light)</text>\n",
    );
    for power in 1..=8 {
        let at = LEFT + f64::from(power - 1) * DECADE;
        writeln!(svg, "<line x1=\"{at}\" y1=\"30\" x2=\"{at}\" y2=\"{}\" stroke=\"#ddd\"/>", height - 25)
            .unwrap();
        let label =
            ["10 ns", "100 ns", "1 µs", "10 µs", "100 µs", "1 ms", "10 ms", "100 ms"][power as usize - 1];
        writeln!(svg, "<text x=\"{at}\" y=\"{}\" fill=\"#666\">{label}</text>", height - 8).unwrap();
    }
    for (row, (name, _, figures)) in rows.iter().enumerate() {
        let top = 40 + row * 44;
        writeln!(svg, "<text x=\"10\" y=\"{}\">{name}</text>", top + 20).unwrap();
        for (bar, ns) in figures.iter().enumerate() {
            let color = match (name.starts_with("patkit"), bar) {
                (true, 0) => "#0a6",
                (true, _) => "#7cb",
                (_, 0) => "#567",
                _ => "#9ab",
            };
            let (y, end) = (top + bar * 17, x(*ns));
            let width = end - LEFT;
            writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.0}\" height=\"15\" fill=\"{color}\"/>"
            )
            .unwrap();
            writeln!(svg, "<text x=\"{:.0}\" y=\"{}\" fill=\"#333\">{ns:.0}</text>", end + 5.0, y + 12)
                .unwrap();
        }
    }
    svg.push_str("</svg>\n");
    svg
}
