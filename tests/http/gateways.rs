//! Forward auth, introspection and revocation, as services.

#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

use super::http::with_other_secret;
use http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use patkit::clock::{Clock, SystemClock};
use patkit::http::{
    Authenticator, ClientAddress, Connection, ForwardAuth, IdentityField, Incident, Introspection,
    Revocation,
};
use patkit::owner::DirectoryError;
use patkit::token::Networks;
use patkit::{
    Actor, Directory, Keyring, MemoryDirectory, MemoryStore, NewToken, Owner, OwnerId, OwnerKind,
    Realm, Reason, RoleCatalog, TokenId, TokenService,
};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::num::NonZeroU8;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tower::ServiceExt;

type Bytes = axum::body::Bytes;

/// A directory that can fail.
struct Users {
    entries: MemoryDirectory,
    is_down: AtomicBool,
    /// An owner whose entry cannot be read.
    unreadable: Mutex<Option<OwnerId>>,
}

impl Directory for Users {
    async fn find(
        &self,
        realm: &Realm,
        id: &OwnerId,
    ) -> Result<Option<Arc<Owner>>, DirectoryError> {
        let is_unreadable = self.unreadable.lock().unwrap().as_ref() == Some(id);
        if is_unreadable || self.is_down.load(Ordering::SeqCst) {
            return Err(DirectoryError::new("down"));
        }
        self.entries.find(realm, id).await
    }
}

type Tokens = TokenService<MemoryStore, Arc<Users>>;

fn id(text: &str) -> OwnerId {
    OwnerId::new(text).unwrap()
}

fn tenant() -> Realm {
    Realm::new("tenant/\u{e9}").unwrap()
}

fn world() -> (Arc<Tokens>, Arc<Users>) {
    let human = |name: &str| Owner::new(id(name), OwnerKind::Human).with_role("editor");
    let entries = MemoryDirectory::from_iter([
        human("ada").with_name("Ada Lovelace"),
        human("m\u{e9}l, \"x\" %").in_realm(tenant()),
        Owner::new(id("nothing"), OwnerKind::Human).with_role("member"),
        human("asker"),
        human("asker").in_realm(tenant()),
    ]);
    let users =
        Arc::new(Users { entries, is_down: AtomicBool::new(false), unreadable: Mutex::default() });
    let roles = RoleCatalog::standard_builder()
        .role("editor")
        .inherits("editor", "member")
        .grant("editor", ["data:*", "tokens:introspect"]);
    let tokens = TokenService::builder(MemoryStore::new(), users.clone());
    let tokens = tokens.brand("acme").keyring(Keyring::ephemeral().unwrap());
    (Arc::new(tokens.roles(roles.build().unwrap()).build().unwrap()), users)
}

async fn issue(tokens: &Tokens, actor: &Actor, new: NewToken) -> (TokenId, String) {
    let issued = tokens.generate(actor, new).await.unwrap();
    (issued.token.id(), issued.plaintext.expose_secret().to_owned())
}

fn named(name: &str) -> NewToken {
    NewToken::named(name).expires_in_days(30)
}

fn ada() -> Actor {
    Actor::signed_in(id("ada"))
}

async fn body_of(response: Response<Full<Bytes>>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn ask(
    gate: &ForwardAuth<MemoryStore, Arc<Users>>,
    path: &str,
    lines: &[(&str, &str)],
) -> Response<Full<Bytes>> {
    let request = lines
        .iter()
        .fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
    gate.clone().oneshot(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap()
}

const NAMES: [&str; 5] =
    ["patkit-owner", "patkit-owner-kind", "patkit-token", "patkit-realm", "patkit-permissions"];

fn identity(headers: &HeaderMap) -> Vec<Option<&str>> {
    NAMES.iter().map(|name| headers.get(*name).map(|value| value.to_str().unwrap())).collect()
}

#[tokio::test]
async fn forward_auth_names_the_owner_of_a_valid_token_and_nobody_else() {
    let (tokens, users) = world();
    let (narrow_id, narrow) =
        issue(&tokens, &ada(), named("a").scope(["data:read", "data:x:*"])).await;
    let (wide_id, wide) =
        issue(&tokens, &Actor::signed_in_to(tenant(), id("m\u{e9}l, \"x\" %")), named("b")).await;
    let nothing = Actor::signed_in(id("nothing"));
    let (_, empty) = issue(&tokens, &nothing, named("c").scope(["data:read"])).await;
    let gate = ForwardAuth::builder(Authenticator::new(tokens.clone())).base_path("/auth").build();
    let passed = async |text: &str| {
        let lines = [("authorization", format!("Bearer {text}"))];
        let lines: Vec<(&str, &str)> = lines.iter().map(|(n, v)| (*n, v.as_str())).collect();
        let response = ask(&gate, "/auth", &lines).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["cache-control"], "no-store");
        let headers = response.headers().clone();
        assert_eq!(body_of(response).await, "");
        headers
    };
    let (narrow_id, wide_id) = (narrow_id.to_string(), wide_id.to_string());
    assert_eq!(
        identity(&passed(&narrow).await),
        ["ada", "human", &narrow_id, "-", "data:read data:x:*"].map(Some)
    );
    assert_eq!(
        identity(&passed(&wide).await),
        [
            "m%C3%A9l%2C%20%22x%22%20%25",
            "human",
            &wide_id,
            "tenant/%C3%A9",
            "data:* tokens:introspect tokens:manage"
        ]
        .map(Some)
    );
    assert_eq!(identity(&passed(&empty).await)[4], Some("-"));

    // The permission that the address demands, and the one that the host demands.
    let bearer = |text: &str| [("authorization".to_owned(), format!("Bearer {text}"))];
    let status = async |gate: &ForwardAuth<MemoryStore, Arc<Users>>, path: &str, text: &str| {
        let lines = bearer(text);
        let lines: Vec<(&str, &str)> =
            lines.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let response = ask(gate, path, &lines).await;
        let refused = response.status() != 200;
        assert_eq!(identity(response.headers()).iter().all(Option::is_none), refused, "{path}");
        let challenge = response.headers().get(WWW_AUTHENTICATE);
        let challenge = challenge.map(|value| value.to_str().unwrap().to_owned());
        (response.status().as_u16(), challenge.unwrap_or_default())
    };
    let short = |scope: &str| {
        (403, format!(r#"Bearer realm="acme", error="insufficient_scope", scope="{scope}""#))
    };
    assert_eq!(status(&gate, "/auth?require=data:read", &narrow).await.0, 200);
    assert_eq!(status(&gate, "/auth/?require=data%3Aread", &narrow).await.0, 200);
    assert_eq!(status(&gate, "/auth?require=data:write", &narrow).await, short("data:write"));
    assert_eq!(status(&gate, "/auth/any/path", &narrow).await.0, 200);
    // An error in the gateway's configuration never lets a request through.
    for query in [
        "require",
        "require=",
        "require=data:*",
        "require=*",
        "require=Data",
        "Require=data:read",
        "required=data:read",
        "require=data:read&require=data:read",
        "require=data:read&x=y",
        "x",
    ] {
        assert_eq!(status(&gate, &format!("/auth?{query}"), &narrow).await.0, 422, "{query}");
    }
    for outside in ["/", "/authx", "/x/auth"] {
        assert_eq!(status(&gate, outside, &narrow).await.0, 404, "{outside}");
    }
    let writes = ForwardAuth::builder(Authenticator::new(tokens.clone())).require("data:write");
    let writes = writes.unwrap();
    assert_eq!(status(&writes.build(), "/?require=data:read", &narrow).await, short("data:write"));
    let envoy = ForwardAuth::builder(Authenticator::new(tokens.clone()))
        .require("data:read")
        .unwrap()
        .ignore_query()
        .build();
    assert_eq!(status(&envoy, "/a/b?require=data:write&x", &narrow).await.0, 200);
    assert_eq!(status(&envoy, "/a/b?require=data:write&x", &empty).await, short("data:read"));

    // Everything refused is 401, so that nginx passes it on.
    let no_token = r#"Bearer realm="acme""#;
    let refused = r#"Bearer realm="acme", error="invalid_token""#;
    for (lines, challenge) in [
        (vec![], no_token),
        (vec![("authorization", "Basic YTpi")], no_token),
        (vec![("authorization", "Bearer")], refused),
        (vec![("authorization", "Bearer acme_pat_x")], refused),
        (vec![("authorization", "Bearer x y")], refused),
        (vec![("authorization", "Bearer x"), ("authorization", "Bearer y")], refused),
        // What a client says of itself is no credential.
        (vec![("patkit-owner", "ada"), ("patkit-permissions", "*")], no_token),
    ] {
        let response = ask(&gate, "/auth", &lines).await;
        assert_eq!(response.status(), 401, "{lines:?}");
        assert_eq!(response.headers()[WWW_AUTHENTICATE], challenge, "{lines:?}");
        assert!(identity(response.headers()).iter().all(Option::is_none));
    }
    users.is_down.store(true, Ordering::SeqCst);
    assert_eq!(status(&gate, "/auth", &narrow).await, (503, String::new()));
}

#[tokio::test]
async fn no_gateway_passes_on_a_disguised_identity_header() {
    let (tokens, _) = world();
    let (_, text) = issue(&tokens, &ada(), named("a")).await;
    let incidents = Arc::new(Mutex::new(Vec::new()));
    let told = incidents.clone();
    let watching = Authenticator::new(tokens.clone()).on_incident(move |incident| {
        if let Incident::Disguised(name) = incident {
            told.lock().unwrap().push(name.as_str().to_owned());
        }
    });
    let watching = ForwardAuth::new(watching);
    let header = format!("Bearer {text}");
    let disguised = ["patkit_owner", "Patkit_Owner_Kind", "patkit-owner_kind", "PATKIT_TOKEN"];
    for name in disguised {
        let lines = [("authorization", header.as_str()), (name, "root")];
        let response = ask(&watching, "/", &lines).await;
        assert_eq!(response.status(), 401, "{name}");
        assert!(identity(response.headers()).iter().all(Option::is_none), "{name}");
    }
    assert_eq!(*incidents.lock().unwrap(), disguised.map(str::to_lowercase));
    for other in ["x_request_id", "patkit-owner", "patkit_owners"] {
        let lines = [("authorization", header.as_str()), (other, "root")];
        assert_eq!(ask(&watching, "/", &lines).await.status(), 200, "{other}");
    }
}

#[tokio::test]
async fn a_wrong_query_is_told_to_who_may_ask_and_without_a_secret() {
    let (tokens, _) = world();
    let (_, text) = issue(&tokens, &ada(), named("a")).await;
    let gate = ForwardAuth::new(Authenticator::new(tokens));
    let header = format!("Bearer {text}");
    assert_eq!(ask(&gate, "/?x", &[]).await.status(), 401);
    let told = ask(&gate, &format!("/?{text}"), &[("authorization", &header)]).await;
    assert_eq!(told.status(), 422);
    let told = body_of(told).await;
    let is_told = |count| told.contains(text.get(..count).unwrap());
    assert!(is_told(24) && !is_told(25), "{told}");
}

#[tokio::test]
async fn an_identity_header_has_a_name_of_its_own() {
    let (tokens, _) = world();
    let (_, text) = issue(&tokens, &ada(), named("a")).await;
    let builder = || ForwardAuth::builder(Authenticator::new(tokens.clone()));
    for bad in ["", "a b", "x_user", "x:", "caf\u{e9}", &"x".repeat(65), "Patkit-Realm"] {
        let refused = builder().header(IdentityField::Owner, bad).unwrap_err();
        assert!(refused.to_string().contains("X-Auth-User"), "{refused}");
    }
    let swapped = builder()
        .header(IdentityField::Owner, "X-Auth-User")
        .and_then(|builder| builder.header(IdentityField::Owner, "x-user"))
        .and_then(|builder| builder.header(IdentityField::Realm, "X-Auth-User"))
        .unwrap();
    assert!(swapped.header(IdentityField::TokenId, "X-User").is_err());
    let gate = builder().header(IdentityField::Owner, "X-Auth-User").unwrap().build();
    let value = format!("Bearer {text}");
    let response = ask(&gate, "/", &[("authorization", &value)]).await;
    assert_eq!(response.headers()["x-auth-user"], "ada");
    assert!(!response.headers().contains_key("patkit-owner"));
}

#[tokio::test]
async fn an_address_comes_from_a_gateway_only_if_the_gateway_is_trusted() {
    let (tokens, _) = world();
    let (_, bound) = issue(&tokens, &ada(), named("bound").networks(["192.0.2.0/24"])).await;
    let one = NonZeroU8::MIN;
    let trusted = Networks::parse(["10.0.0.0/8", "fd00::/8"]).unwrap();
    let address = ClientAddress::forwarded("x-forwarded-for".parse().unwrap(), one);
    let gate = |address: ClientAddress| {
        ForwardAuth::new(Authenticator::new(tokens.clone()).client_address(address))
    };
    let status = async |gate: &ForwardAuth<_, _>, peer: Option<&str>, forwarded: &str| {
        let request = Request::get("/").header("authorization", format!("Bearer {bound}"));
        let mut request =
            request.header("x-forwarded-for", forwarded).body(Full::<Bytes>::default()).unwrap();
        if let Some(peer) = peer {
            request.extensions_mut().insert(Connection(peer.parse::<IpAddr>().unwrap()));
        }
        gate.clone().oneshot(request).await.unwrap().status().as_u16()
    };
    let strict = gate(address.clone().only_through(trusted));
    for (peer, forwarded, expected) in [
        (Some("10.1.2.3"), "192.0.2.7", 200),
        (Some("fd00::1"), "192.0.2.7", 200),
        (Some("::ffff:10.1.2.3"), "203.0.113.1, 192.0.2.7", 200),
        (Some("10.1.2.3"), "192.0.2.7, 203.0.113.1", 401),
        // The client itself, which may write what it likes.
        (Some("203.0.113.9"), "192.0.2.7", 401),
        (Some("11.0.0.1"), "192.0.2.7", 401),
        (Some("192.0.2.8"), "203.0.113.1", 200),
        (None, "192.0.2.7", 401),
    ] {
        assert_eq!(status(&strict, peer, forwarded).await, expected, "{peer:?} {forwarded}");
    }
    // Without the networks, every peer is believed.
    assert_eq!(status(&gate(address), Some("203.0.113.9"), "192.0.2.7").await, 200);
}

/// The endpoints, and the text of a token that may introspect.
async fn endpoints(tokens: &Arc<Tokens>) -> (Introspection<MemoryStore, Arc<Users>>, String) {
    let asker = Actor::signed_in(id("asker"));
    let (_, text) = issue(tokens, &asker, named("service").scope(["tokens:introspect"])).await;
    (Introspection::new(Authenticator::new(tokens.clone())).base_path("/introspect"), text)
}

fn form(path: &str, bearer: Option<&str>, body: String) -> Request<Full<Bytes>> {
    let request = Request::post(path).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    let request = match bearer {
        Some(text) => request.header("authorization", format!("Bearer {text}")),
        None => request,
    };
    request.body(Full::from(body)).unwrap()
}

async fn introspect(
    endpoint: &Introspection<MemoryStore, Arc<Users>>,
    caller: &str,
    body: String,
) -> (u16, String) {
    let request = form("/introspect", Some(caller), body);
    let response = endpoint.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["cache-control"], "no-store");
    (response.status().as_u16(), body_of(response).await)
}

#[tokio::test]
async fn introspection_describes_an_active_token_and_hides_all_others_alike() {
    let (tokens, users) = world();
    let (endpoint, caller) = endpoints(&tokens).await;
    let (token, text) = issue(&tokens, &ada(), named("a").scope(["data:read", "data:x"])).await;
    let (status, body) =
        introspect(&endpoint, &caller, format!("token={text}&token_type_hint=x")).await;
    let view = tokens.get(&ada(), token).await.unwrap();
    let expected = json!({
        "active": true,
        "scope": "data:read data:x",
        "sub": "ada",
        "username": "Ada Lovelace",
        "token_type": "Bearer",
        "iat": view.created_at().timestamp(),
        "exp": view.expires_at().unwrap().timestamp(),
        "jti": token.to_string(),
    });
    assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()), (200, expected));

    let (_, for_ever) = issue(&tokens, &ada(), NewToken::named("b").never_expires()).await;
    let (_, body) = introspect(&endpoint, &caller, format!("token={for_ever}")).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (&body["exp"], &body["scope"]),
        (&Value::Null, &json!("data:* tokens:introspect tokens:manage"))
    );

    let (revoked_id, revoked) = issue(&tokens, &ada(), named("revoked")).await;
    tokens.revoke(&ada(), revoked_id, Reason::Owner).await.unwrap();
    let elsewhere = Actor::signed_in_to(tenant(), id("asker"));
    let (_, of_tenant) = issue(&tokens, &elsewhere, named("of a tenant")).await;
    let (_, bound) = issue(&tokens, &ada(), named("bound").networks(["192.0.2.0/24"])).await;
    let inactive = [
        revoked,
        of_tenant,
        bound.clone(),
        with_other_secret(&text, &for_ever),
        "x".to_owned(),
        "eyJhbGciOiJIUzI1NiJ9.e30.c2ln".to_owned(),
        "caf%C3%A9".to_owned(),
        "%FF%00".to_owned(),
        format!("{text}x"),
        "x".repeat(60_000),
    ];
    for text in inactive {
        let answer = introspect(&endpoint, &caller, format!("token={text}")).await;
        assert_eq!(answer, (200, r#"{"active":false}"#.to_owned()), "{text:.80}");
    }
    for (address, active) in
        [("192.0.2.9", true), ("192.0.3.9", false), ("%3A%3Affff%3A192.0.2.9", true)]
    {
        let body = format!("token={bound}&client_address={address}");
        let (status, body) = introspect(&endpoint, &caller, body).await;
        assert_eq!((status, body.contains("\"active\":true")), (200, active), "{address}");
    }
    users.is_down.store(true, Ordering::SeqCst);
    assert_eq!(introspect(&endpoint, &caller, format!("token={text}")).await.0, 503);
}

#[tokio::test]
async fn introspection_needs_a_permission_and_one_token_in_a_form() {
    let (tokens, _) = world();
    let (endpoint, caller) = endpoints(&tokens).await;
    let (_, text) = issue(&tokens, &ada(), named("a").scope(["data:read"])).await;
    let send = async |request| {
        let response = endpoint.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = body_of(response).await;
        assert!(!body.contains("active\":"), "{body}");
        status
    };
    let body = || format!("token={text}");
    assert_eq!(send(form("/introspect", None, body())).await, 401);
    assert_eq!(send(form("/introspect", Some("acme_pat_x"), body())).await, 401);
    // A token that does not hold the permission learns nothing, not even of itself.
    assert_eq!(send(form("/introspect", Some(&text), body())).await, 403);
    for wrong in ["", "token=", "token", "Token=x", "token=x&token=y", "a=b"] {
        assert_eq!(
            send(form("/introspect", Some(&caller), wrong.to_owned())).await,
            400,
            "{wrong}"
        );
    }
    let wrong = format!("token={text}&client_address=localhost");
    assert_eq!(send(form("/introspect", Some(&caller), wrong)).await, 422);
    let twice = format!("token={text}&client_address=::1&client_address=::1");
    assert_eq!(send(form("/introspect", Some(&caller), twice)).await, 400);
    assert_eq!(send(form("/introspect", Some(&caller), "x".repeat(70_000))).await, 413);
    assert_eq!(send(form("/introspect/x", Some(&caller), body())).await, 404);
    let mut json = form("/introspect", Some(&caller), body());
    json.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    assert_eq!(send(json).await, 415);
    let mut none = form("/introspect", Some(&caller), body());
    none.headers_mut().remove(CONTENT_TYPE);
    assert_eq!(send(none).await, 415);
    // A token in a query is never looked at.
    let mut get = form(&format!("/introspect?token={text}"), Some(&caller), String::new());
    *get.method_mut() = Method::GET;
    assert_eq!(send(get).await, 405);
}

#[tokio::test]
async fn the_operator_hears_of_a_token_that_could_not_be_looked_up() {
    let (tokens, users) = world();
    let (_, caller) = endpoints(&tokens).await;
    let (_, text) = issue(&tokens, &ada(), named("a")).await;
    let incidents = Arc::new(Mutex::new(0));
    let told = incidents.clone();
    let watching = Authenticator::new(tokens.clone()).on_incident(move |incident| {
        *told.lock().unwrap() += u32::from(matches!(incident, Incident::Refused(_)));
    });
    *users.unreadable.lock().unwrap() = Some(id("ada"));
    let introspection = Introspection::new(watching.clone());
    let asked = introspection.oneshot(form("/", Some(&caller), format!("token={text}"))).await;
    assert_eq!((asked.unwrap().status().as_u16(), *incidents.lock().unwrap()), (503, 1));
    let revoked = Revocation::new(watching).oneshot(form("/", None, format!("token={text}"))).await;
    assert_eq!((revoked.unwrap().status().as_u16(), *incidents.lock().unwrap()), (503, 2));
}

#[tokio::test]
async fn a_question_counts_as_a_use_only_if_the_host_says_so() {
    let (tokens, _) = world();
    let (endpoint, caller) = endpoints(&tokens).await;
    let (token, text) = issue(&tokens, &ada(), named("a")).await;
    let last_use = async || {
        tokens.flush().await.unwrap();
        tokens.get(&ada(), token).await.unwrap().last_used()
    };
    let body = || format!("token={text}&client_address=192.0.2.9");
    assert_eq!(introspect(&endpoint, &caller, body()).await.0, 200);
    assert_eq!(last_use().await, None);
    assert_eq!(introspect(&endpoint.count_as_use(), &caller, body()).await.0, 200);
    let last_use = last_use().await.unwrap();
    assert_eq!(last_use.address, Some("192.0.2.9".parse().unwrap()));
}

#[tokio::test]
async fn a_token_revokes_itself() {
    let (tokens, users) = world();
    let endpoint = Revocation::new(Authenticator::new(tokens.clone())).base_path("/revoke");
    let revoke = async |body: String| {
        let response = endpoint.clone().oneshot(form("/revoke", None, body)).await.unwrap();
        let status = response.status().as_u16();
        (status, body_of(response).await)
    };
    let (token, text) = issue(&tokens, &ada(), named("a").scope(["data:read"])).await;
    let (other, for_ever) = issue(&tokens, &ada(), NewToken::named("b").never_expires()).await;
    let (bound_id, bound) = issue(&tokens, &ada(), named("bound").networks(["192.0.2.0/24"])).await;
    let done = (200, String::new());
    for nothing in ["x", &with_other_secret(&text, &for_ever), &format!("{text}x"), "%FF", &bound] {
        assert_eq!(revoke(format!("token={nothing}")).await, done, "{nothing}");
    }
    // A token of an owner who is away for a while does not wait for the owner's return.
    let zoe = id("zoe");
    let person = || Owner::new(zoe.clone(), OwnerKind::Human).with_role("editor");
    let of_zoe = Actor::signed_in(zoe.clone());
    let states: [Box<dyn Fn()>; 3] = [
        Box::new(|| users.entries.put(person().with_enabled(false))),
        Box::new(|| assert!(users.entries.remove(&Realm::default(), &zoe))),
        Box::new(|| users.entries.put(person().with_tokens_valid_after(SystemClock::new().now()))),
    ];
    for (number, change) in states.iter().enumerate() {
        users.entries.put(person());
        let (away, text) = issue(&tokens, &of_zoe, named(&format!("away {number}"))).await;
        change();
        assert_eq!(revoke(format!("token={text}")).await, done, "{number}");
        users.entries.put(person());
        let token = tokens.get(&of_zoe, away).await.unwrap();
        assert_eq!(token.revocation().unwrap().reason, Reason::Owner, "{number}");
    }
    for untouched in [token, other, bound_id] {
        assert!(tokens.get(&ada(), untouched).await.unwrap().is_active());
    }
    assert_eq!(revoke(format!("token_type_hint=access_token&token={text}")).await, done);
    let revoked = tokens.get(&ada(), token).await.unwrap();
    assert_eq!(revoked.revocation().unwrap().reason, Reason::Owner);
    assert_eq!(revoked.last_used(), None);
    assert_eq!(revoke(format!("token={text}")).await, done, "again");
    assert!(tokens.get(&ada(), other).await.unwrap().is_active());
    for wrong in ["", "token=", "token=x&token=x"] {
        assert_eq!(revoke(wrong.to_owned()).await.0, 400, "{wrong}");
    }
    users.is_down.store(true, Ordering::SeqCst);
    assert_eq!(revoke(format!("token={for_ever}")).await.0, 503);
}
