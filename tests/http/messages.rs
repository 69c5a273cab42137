//! The texts of the errors that a host can meet at start.
//!
//! Each text names the thing and is complete alone in a log. `Debug`, which a `main` prints, is the
//! same sentence with its causes.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "tests"
)]

use patkit::http::Authenticator;
use patkit::owner::{IdError, Identifier};
use patkit::random::RandomError;
use patkit::service::{
    BuildError, CheckError, ManageError, RejectReason, TokenServiceBuilder, Unavailable,
};
use patkit::store::Conflict;
use patkit::token::{Brand, KeyId, Network, Networks, TokenFormat};
use patkit::{
    Actor, CachedStore, DirectoryError, Keyring, MemoryDirectory, MemoryStore, NewToken,
    OwnerCache, OwnerId, Realm, RoleCatalog, StoreError, TokenId, TokenPolicy, TokenService,
};
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use support::{World, builder, id, nowhere, ready, session};

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const OTHER: &str = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";

fn err<T, E: Error + 'static>(result: Result<T, E>) -> Box<dyn Error> {
    Box::new(result.err().unwrap())
}

type Builder = TokenServiceBuilder<MemoryStore, MemoryDirectory>;

fn built(change: impl FnOnce(Builder) -> Builder) -> Box<dyn Error> {
    let builder = TokenService::builder(MemoryStore::new(), MemoryDirectory::new());
    let builder = builder.brand("acme").keyring(Keyring::from_text(&format!("1:{KEY}")).unwrap());
    err(change(builder).build())
}

/// Returns each error with the parts of its text: the refused thing, and the bound or the cure.
#[allow(clippy::too_many_lines, reason = "one table")]
fn met_at_start() -> Vec<(Box<dyn Error>, Vec<&'static str>)> {
    let plain = || TokenService::builder(MemoryStore::new(), MemoryDirectory::new());
    let ring = || Keyring::from_text(&format!("1:{KEY}")).unwrap();
    let keys = |text: &str| err(Keyring::from_text(text));
    let openssl = "`openssl rand -base64 32`";
    let many = |text: String| {
        (0..33).map(|number| text.replace('#', &number.to_string())).collect::<Vec<_>>()
    };
    let networks = many("10.0.#.0/24".into());
    let brand = |text: &str| Brand::new(text).unwrap();
    let formers: Vec<Brand> = many("b#".into()).iter().map(|text| brand(text)).collect();
    let world = World::new();
    world.token("ann", "one");
    ready(world.service.check()).unwrap();
    let check = |keys: &str| {
        let builder = builder(world.store.clone(), world.directory.clone(), world.clock.clone());
        err(ready(builder.keyring(Keyring::from_text(keys).unwrap()).build().unwrap().check()))
    };
    let cache = |error: fn(patkit::store::cached::CachedStoreBuilder<MemoryStore>) -> _| {
        let result: Result<CachedStore<MemoryStore>, _> =
            error(CachedStore::builder(MemoryStore::new()));
        err(result)
    };
    let owners = |lifetime, capacity| {
        err(OwnerCache::builder(MemoryDirectory::new())
            .lifetime(lifetime)
            .capacity(capacity)
            .build())
    };
    let second = Duration::from_secs(1);
    let authenticator =
        || Authenticator::new(Arc::new(plain().brand("acme").keyring(ring()).build().unwrap()));
    let api = || {
        patkit::http::ManagementApi::builder(authenticator(), |_: &http::request::Parts| {
            None::<Actor>
        })
    };
    vec![
        (
            err(plain().keyring(ring()).build()),
            vec!["the service has no brand", "`.brand(\"acme\")`"],
        ),
        (
            err(plain().brand("acme").build()),
            vec!["the service has no keyring", "Keyring::from_env"],
        ),
        (built(|builder| builder.brand("Acme")), vec!["the brand \"Acme\"", "a-z", "2 to 16"]),
        (built(|builder| builder.brand("")), vec!["the brand \"\"", "2 to 16"]),
        (built(|builder| builder.former_brand("a-b")), vec!["the brand \"a-b\"", "a-z"]),
        (built(|builder| builder.former_brand("acme")), vec!["the brand acme", "twice", "once"]),
        (
            err(TokenFormat::new(brand("acme"), &formers)),
            vec!["former brands", "at most 8", "drop"],
        ),
        (
            built(|builder| builder.flush_interval(Duration::ZERO)),
            vec!["the flush interval", "1 ms to 1 hour"],
        ),
        (built(|builder| builder.pending_cap(0)), vec!["the cap of pending uses", "1 or more"]),
        (err(Brand::new("1a")), vec!["brand", "2 to 16"]),
        (keys(""), vec!["the keyring is empty", "1:<base64"]),
        (keys(KEY), vec!["entry 1 of the keyring", "0 to 65535", "1:<base64"]),
        (keys(&format!("1:{KEY},")), vec!["entry 2 of the keyring"]),
        (keys("1:-_"), vec!["key 1 of the keyring", "base64", openssl]),
        (keys("1:AAAA"), vec!["key 1 of the keyring", "3 bytes", "at least 32", openssl]),
        (
            err(Keyring::new(KeyId::new(3), &[7; 1_025])),
            vec!["key 3 of the keyring", "at most 1024", openssl],
        ),
        (
            err(Keyring::new(KeyId::new(3), &[7; 32])),
            vec!["key 3 of the keyring", "repeated", openssl],
        ),
        (keys(&format!("1:{KEY},1:{OTHER}")), vec!["the keyring", "the id 1", "an id of its own"]),
        (keys(&format!("1:{KEY},2:{KEY}")), vec!["keys 1 and 2 of the keyring", "equal", openssl]),
        (
            err(Keyring::from_env("PATKIT_TEST_NEVER_SET")),
            vec!["PATKIT_TEST_NEVER_SET is not set", openssl],
        ),
        // Cargo sets this variable for every test.
        (
            err(Keyring::from_env("CARGO_PKG_NAME")),
            vec!["CARGO_PKG_NAME", "entry 1 of the keyring"],
        ),
        (
            check(&format!("1:{OTHER}")),
            vec!["key 1 of the keyring", "1 token needs", "restore the secret"],
        ),
        (
            check(&format!("2:{OTHER}")),
            vec!["the keyring has no key 1", "1 token needs", "add key 1"],
        ),
        (err(OwnerId::new("")), vec!["the owner id is empty", "1 to 255 bytes"]),
        (err(OwnerId::new(&"x".repeat(256))), vec!["the owner id has 256 bytes", "at most 255"]),
        (err(OwnerId::new("a\n")), vec!["the owner id", "control character", "remove"]),
        (err(Realm::new("")), vec!["the realm is empty", "1 to 255 bytes"]),
        (err(Realm::new(&"é".repeat(200))), vec!["the realm has 400 bytes", "at most 255"]),
        (err(Realm::new("\u{7f}")), vec!["the realm", "control character", "remove"]),
        (err("10.0.0".parse::<Network>()), vec!["a network", "10.0.0.0/8"]),
        (err("10.0.0.0/33".parse::<Network>()), vec!["prefix length of a network", "32"]),
        (err("::1/129".parse::<Network>()), vec!["prefix length of a network", "128"]),
        (
            err("10.0.0.1/8".parse::<Network>()),
            vec!["the network", "after its prefix length", "10.0.0.0/8"],
        ),
        (err(Networks::parse([])), vec!["the list of networks is empty", "leave it out"]),
        (
            err(Networks::parse(networks.iter().map(|text| &**text))),
            vec!["the list of networks", "32"],
        ),
        (err(Networks::parse(["10.0.0.0/8", "x"])), vec!["entry 1 of the networks"]),
        (err("x".parse::<TokenId>()), vec!["a token id", "22 characters"]),
        (Box::new(RandomError::new()), vec!["the random generator", "try again"]),
        (Box::new(DirectoryError::new("down")), vec!["the directory of owners"]),
        (
            Box::new(Unavailable::Store(StoreError::unavailable("down"))),
            vec!["the token store", "try again"],
        ),
        (
            Box::new(Unavailable::Directory(DirectoryError::new("down"))),
            vec!["the directory", "try again"],
        ),
        (
            Box::new(Unavailable::KeyMissing(KeyId::new(4))),
            vec!["the keyring has no key 4", "add key 4"],
        ),
        (
            Box::new(Unavailable::WrongKey(KeyId::new(4))),
            vec!["key 4 of the keyring", "restore its secret"],
        ),
        (
            Box::new(CheckError::Store(StoreError::unavailable("down"))),
            vec!["the keys", "the token store"],
        ),
        (Box::new(StoreError::unavailable("down")), vec!["the token store"]),
        (
            Box::new(StoreError::Conflict(Conflict::Name(nowhere()))),
            vec!["the change", "the name of"],
        ),
        (
            cache(|builder| builder.lifetime(Duration::ZERO).build()),
            vec!["the lifetime of the cache", "1 ms to 1 h"],
        ),
        (
            cache(|builder| builder.capacity(0).build()),
            vec!["the capacity of the cache", "1 or more", ".capacity("],
        ),
        (
            cache(|builder| builder.reads_at_once(0).build()),
            vec!["the reads_at_once of the cache", "1 or more"],
        ),
        (owners(Duration::ZERO, 1), vec!["the owner cache's lifetime", "1 day"]),
        (owners(second, 0), vec!["the owner cache's capacity", "1 or more"]),
        (err(authenticator().challenge_realm("")), vec!["the realm of a challenge", "1 to 128"]),
        (err(api().allow_origin("app")), vec!["the origin \"app\"", "https://app.example.com"]),
    ]
}

#[test]
fn each_text_names_the_thing_and_the_bound_or_the_cure() {
    for (error, parts) in met_at_start() {
        let text = error.to_string();
        for part in parts {
            assert!(text.contains(part), "no {part:?} in {text:?}");
        }
        let words = format!(" {text}").to_lowercase();
        for headless in [" it is ", " it has ", " is refused;", "this one"] {
            assert!(!words.starts_with(headless) && !words.contains(": it "), "{text:?}");
        }
        assert!(!text.ends_with('.') && !text.contains('\n') && text.len() < 400, "{text:?}");
    }
}

#[test]
fn a_main_that_returns_an_error_prints_the_sentence_and_its_causes() {
    for (error, _) in met_at_start() {
        let mut expected = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            expected = format!("{expected}: {error}");
            cause = error.source();
        }
        assert_eq!(format!("{error:?}"), expected);
    }
    let down = Unavailable::Store(StoreError::unavailable("the pool timed out"));
    assert_eq!(
        format!("{down:?}"),
        "the token store did not answer; try again: the token store is unavailable: the pool timed out"
    );
    // These errors do not occur at start, but in a `main` that makes the first token of an
    // installation.
    let policy = TokenPolicy::builder().idle_limit_days(0).build().unwrap_err();
    assert_eq!(format!("{policy:?}"), policy.to_string());
    let roles = RoleCatalog::standard_builder().role("").build().unwrap_err();
    assert!(format!("{roles:?}").starts_with(&roles.to_string()));
    let world = World::new();
    let taken = NewToken::named("one").for_service(id("bot"));
    world.generate(&Actor::system(), taken.clone()).unwrap();
    let error = world.generate(&Actor::system(), taken).unwrap_err();
    assert_eq!(
        format!("{error:?}"),
        "another token of the owner has this name; choose another name"
    );
    let error = world.generate(&session("off"), NewToken::named("one")).unwrap_err();
    assert_eq!(
        format!("{error:?}"),
        "the actor was rejected, because the owner or the token no longer works: the credential was rejected: owner_disabled"
    );
    assert!(
        matches!(error, ManageError::ActorRejected(rejected) if rejected.reason == RejectReason::OwnerDisabled)
    );
}

#[test]
fn no_error_at_start_shows_a_key() {
    for (error, _) in met_at_start() {
        for text in [error.to_string(), format!("{error:?}")] {
            assert!(!text.contains(&KEY[..8]) && !text.contains(&OTHER[..8]), "{text}");
        }
    }
}

/// The types remain comparable values.
#[test]
fn errors_compare_and_say_what_they_are_about() {
    assert_eq!(OwnerId::new("").unwrap_err(), IdError::Empty(Identifier::Owner));
    assert_eq!(Realm::new("").unwrap_err(), IdError::Empty(Identifier::Realm));
    let bytes = 256;
    assert_eq!(
        Realm::new(&"x".repeat(bytes)).unwrap_err(),
        IdError::TooLong { what: Identifier::Realm, bytes }
    );
    let missing =
        TokenService::builder(MemoryStore::new(), MemoryDirectory::new()).brand("acme").build();
    assert_eq!(missing.err(), Some(BuildError::NoKeyring));
}
