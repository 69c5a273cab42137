//! Invalid input: the error of every public constructor and operation, and that nothing changes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::items_after_statements,
    clippy::string_slice,
    clippy::type_complexity,
    clippy::arithmetic_side_effects,
    clippy::too_many_lines
)]

use chrono::{DateTime, TimeDelta, Utc};
use patkit::lifecycle::RefusalReason;
use patkit::owner::cache::OwnerCacheError;
use patkit::owner::{IdError, Identifier};
use patkit::permission::{PermissionError, ScopeError};
use patkit::policy::{LifetimeError, MAX_DAYS, ReuseSignal};
use patkit::role::{RoleCatalogBuilder, RoleError, RoleNameError};
use patkit::service::{BuildError, InvalidInput, TokenEdit};
use patkit::token::{
    Brand, BrandError, Description, KeyId, KeyringError, Lifetime, NameError, Network,
    NetworkError, Networks, NetworksError, TokenFormat, TokenFormatError, TokenIdError, TokenName,
};
use patkit::{
    Grant, Keyring, ManageError, NewToken, OwnerCache, OwnerId, Permission, PermissionSet, Realm,
    Reason, RoleCatalog, Scope, TokenId, TokenPolicy,
};
use std::time::Duration;
use support::{Builder, World, id, nowhere, ready, session};

/// Returns the only error that a brand has.
fn brand_error() -> BrandError {
    Brand::new("").unwrap_err()
}

/// Returns the only error that a token id has.
fn id_error() -> TokenIdError {
    "".parse::<TokenId>().unwrap_err()
}

#[test]
fn brands() {
    for good in ["ab", "a1", "acme", "a234567890123456"] {
        assert_eq!(Brand::new(good).unwrap().as_str(), good);
        assert_eq!(good.parse::<Brand>().unwrap().as_str(), good);
    }
    for bad in [
        "",
        "a",
        "1a",
        "A",
        "Ab",
        "aB",
        "a_b",
        "a-b",
        "a b",
        " ab",
        "ab ",
        "a\0",
        "a\n",
        "é",
        "aé",
        "ａｂ",
        "a2345678901234567",
    ] {
        assert_eq!(Brand::new(bad), Err(brand_error()), "{bad:?}");
    }
    assert_eq!(Brand::new(&"a".repeat(1 << 20)), Err(brand_error()));
}

#[test]
fn token_formats() {
    let brand = |text: &str| Brand::new(text).unwrap();
    let some =
        |count: usize| (0..count).map(|number| brand(&format!("b{number}"))).collect::<Vec<_>>();
    assert!(TokenFormat::new(brand("acme"), &some(8)).is_ok());
    assert_eq!(
        TokenFormat::new(brand("acme"), &some(9)).unwrap_err(),
        TokenFormatError::TooManyBrands
    );
    for former in [vec![brand("acme")], vec![brand("old"), brand("old")]] {
        let repeated = former[0].clone();
        let error = TokenFormat::new(brand("acme"), &former).unwrap_err();
        assert_eq!(error, TokenFormatError::RepeatedBrand(repeated));
    }
}

const A: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const B: &str = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";

#[test]
fn keyrings() {
    use KeyringError as E;
    let one = KeyId::new(1);
    let short = |bytes| E::TooShort { key: one, bytes };
    for (text, error) in [
        (String::new(), E::Empty),
        ("  ".to_owned(), E::Empty),
        (",".to_owned(), E::NoId { entry: 1 }),
        (A.to_owned(), E::NoId { entry: 1 }),
        (format!("one:{A}"), E::NoId { entry: 1 }),
        (format!("-1:{A}"), E::NoId { entry: 1 }),
        (format!("1.0:{A}"), E::NoId { entry: 1 }),
        (format!("65536:{A}"), E::NoId { entry: 1 }),
        (format!("99999999999999999999:{A}"), E::NoId { entry: 1 }),
        (format!("1:{A},"), E::NoId { entry: 2 }),
        (format!("1:{A},,2:{B}"), E::NoId { entry: 2 }),
        (format!("1:{A};2:{B}"), E::NotBase64(one)),
        ("1:!".to_owned(), E::NotBase64(one)),
        (format!("1:{}", A.replace('A', "_")), E::NotBase64(one)),
        ("1:".to_owned(), short(0)),
        ("1:AAAA".to_owned(), short(3)),
        (format!("1:{A},1:{B}"), E::RepeatedId(one)),
        (format!("1:{A},2:{A}"), E::EqualKeys(one, KeyId::new(2))),
    ] {
        assert_eq!(Keyring::from_text(&text).err(), Some(error), "{text}");
        assert!(!error.to_string().contains(A) && !format!("{error:?}").contains(A));
    }
    let key = |first: u8, bytes: usize| {
        let mut key = vec![7; bytes];
        key[0] = first;
        key
    };
    assert_eq!(Keyring::new(one, &key(1, 31)).err(), Some(short(31)));
    assert!(Keyring::new(one, &key(1, 32)).is_ok() && Keyring::new(one, &key(1, 1024)).is_ok());
    assert_eq!(Keyring::new(one, &key(7, 32)).err(), Some(E::RepeatedByte(one)));
    assert_eq!(Keyring::new(one, &key(1, 1025)).err(), Some(E::TooLong { key: one, bytes: 1025 }));
    let two = |second: &[u8], number| {
        Keyring::new(one, &key(1, 32)).unwrap().with_key(KeyId::new(number), second)
    };
    assert_eq!(two(&key(2, 32), 1).err(), Some(E::RepeatedId(one)));
    assert_eq!(two(&key(1, 32), 2).err(), Some(E::EqualKeys(one, KeyId::new(2))));
    assert_eq!(two(&key(7, 32), 2).err(), Some(E::RepeatedByte(KeyId::new(2))));
    assert_eq!(two(&key(2, 31), 2).err(), Some(E::TooShort { key: KeyId::new(2), bytes: 31 }));
    assert!(two(&key(2, 32), 2).is_ok());
}

#[test]
fn owner_ids_and_realms() {
    for good in ["a", " ", "é", "a b", "urn:x:1", "\u{202E}", &"x".repeat(255), &"é".repeat(127)]
    {
        assert_eq!(OwnerId::new(good).unwrap().as_str(), good);
        assert_eq!(Realm::new(good).unwrap().as_str(), good);
    }
    let table: [(String, fn(Identifier) -> IdError); 9] = [
        (String::new(), IdError::Empty),
        ("x".repeat(256), |what| IdError::TooLong { what, bytes: 256 }),
        ("é".repeat(128), |what| IdError::TooLong { what, bytes: 256 }),
        ("x".repeat(1 << 20), |what| IdError::TooLong { what, bytes: 1 << 20 }),
        ("\0".to_owned(), IdError::Control),
        ("a\nb".to_owned(), IdError::Control),
        ("a\tb".to_owned(), IdError::Control),
        ("a\u{7f}".to_owned(), IdError::Control),
        ("a\u{9b}b".to_owned(), IdError::Control),
    ];
    for (bad, error) in table {
        assert_eq!(OwnerId::new(&bad), Err(error(Identifier::Owner)), "{bad:.20?}");
        assert_eq!(Realm::new(&bad), Err(error(Identifier::Realm)), "{bad:.20?}");
        assert!(serde_json::from_value::<OwnerId>(serde_json::Value::String(bad)).is_err());
    }
}

/// Returns invalid names with their errors.
fn bad_names() -> Vec<(String, NameError)> {
    use NameError as E;
    let mut names = vec![
        (String::new(), E::Empty),
        (" \t\n ".to_owned(), E::Empty),
        ("\u{200B}\u{200D}".to_owned(), E::Empty),
        ("x".repeat(256), E::TooLong { most: 255 }),
        ("é".repeat(256), E::TooLong { most: 255 }),
        ("x".repeat(1 << 20), E::TooLong { most: 255 }),
    ];
    for character in [
        '\0', '\u{1}', '\t', '\n', '\r', '\u{1b}', '\u{7f}', '\u{85}', '\u{9b}', '\u{2028}',
        '\u{2029}', '\u{202A}', '\u{202B}', '\u{202C}', '\u{202D}', '\u{202E}', '\u{2066}',
        '\u{2067}', '\u{2068}', '\u{2069}',
    ] {
        names.push((format!("a{character}b"), E::Character(character)));
    }
    names
}

fn bad_descriptions() -> Vec<(String, NameError)> {
    let mut descriptions: Vec<_> = bad_names()
        .into_iter()
        .filter(|(text, error)| matches!(error, NameError::Character(_)) && text != "a\nb")
        .collect();
    for long in ["x".repeat(1_001), "é".repeat(1_001), "x".repeat(1 << 20)] {
        descriptions.push((long, NameError::TooLong { most: 1_000 }));
    }
    descriptions
}

#[test]
fn names_and_descriptions() {
    for (text, error) in bad_names() {
        assert_eq!(TokenName::new(&text).err(), Some(error), "{text:.20?}");
    }
    for (text, error) in bad_descriptions() {
        assert_eq!(Description::new(&text).err(), Some(error), "{text:.20?}");
    }
    assert!(TokenName::new(&"é".repeat(255)).is_ok());
    assert!(TokenName::new(&format!("  {}  ", "x".repeat(255))).is_ok(), "counted after trimming");
    assert!(Description::new(&"é\n".repeat(500)).is_ok());
    for empty in ["", " ", "\n\n"] {
        assert_eq!(Description::new(empty), Ok(None));
    }
}

/// Invalid networks with their errors.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

const BAD_NETWORKS: [(&str, NetworkError); 20] = [
    ("", NetworkError::NotANetwork),
    ("/", NetworkError::NotANetwork),
    ("/8", NetworkError::NotANetwork),
    ("10.0.0.0/", NetworkError::NotANetwork),
    ("10.0.0.0/8/8", NetworkError::NotANetwork),
    ("10.0.0.0/-8", NetworkError::NotANetwork),
    ("10.0.0.0/+8", NetworkError::NotANetwork),
    ("10.0.0.0/08", NetworkError::NotANetwork),
    ("10.0.0.0/ 8", NetworkError::NotANetwork),
    (" 10.0.0.0/8", NetworkError::NotANetwork),
    ("10.0.0.0/255.0.0.0", NetworkError::NotANetwork),
    ("10.0.0", NetworkError::NotANetwork),
    ("010.0.0.1", NetworkError::NotANetwork),
    ("localhost", NetworkError::NotANetwork),
    ("fe80::1%eth0", NetworkError::NotANetwork),
    ("[::1]", NetworkError::NotANetwork),
    ("10.0.0.0/33", NetworkError::PrefixTooLong { most: 32 }),
    ("::/129", NetworkError::PrefixTooLong { most: 128 }),
    ("10.0.0.1/8", NetworkError::HostBitsSet),
    ("2001:db8::1/32", NetworkError::HostBitsSet),
];

#[test]
fn networks() {
    for (text, error) in BAD_NETWORKS {
        assert_eq!(text.parse::<Network>(), Err(error), "{text:?}");
        let source = error;
        assert_eq!(
            Networks::parse(["::1", text]),
            Err(NetworksError::Entry { place: 1, source }),
            "{text:?}"
        );
    }
    assert_eq!("10.0.0.0/999".parse::<Network>(), Err(NetworkError::PrefixTooLong { most: 32 }));
    assert_eq!("10.0.0.0/1000".parse::<Network>(), Err(NetworkError::NotANetwork));
    assert_eq!(Networks::parse([""; 0]), Err(NetworksError::Empty));
    assert_eq!(Networks::new([]), Err(NetworksError::Empty));
    assert!(Networks::parse(["::1"; 32]).is_ok());
    assert_eq!(Networks::parse(["::1"; 33]), Err(NetworksError::TooMany));
    assert_eq!(Networks::new(["::1".parse().unwrap(); 33]), Err(NetworksError::TooMany));
    let endless = std::iter::repeat("::1");
    assert_eq!(Networks::parse(endless), Err(NetworksError::TooMany));
    assert_eq!(
        Network::new("10.0.0.0".parse().unwrap(), 33),
        Err(NetworkError::PrefixTooLong { most: 32 })
    );
    assert_eq!(Network::new("10.0.0.1".parse().unwrap(), 31), Err(NetworkError::HostBitsSet));
}

/// Returns invalid permissions with their errors, which are also the errors of grants.
fn bad_permissions() -> Vec<(String, PermissionError)> {
    use PermissionError as E;
    vec![
        (String::new(), E::Empty),
        (":".to_owned(), E::EmptySegment { at: 0 }),
        (":a".to_owned(), E::EmptySegment { at: 0 }),
        ("a:".to_owned(), E::EmptySegment { at: 2 }),
        ("a::b".to_owned(), E::EmptySegment { at: 2 }),
        ("A".to_owned(), E::BadCharacter { at: 0 }),
        ("a:B".to_owned(), E::BadCharacter { at: 2 }),
        ("a b".to_owned(), E::BadCharacter { at: 1 }),
        ("a\0".to_owned(), E::BadCharacter { at: 1 }),
        ("a.b".to_owned(), E::BadCharacter { at: 1 }),
        ("aé".to_owned(), E::BadCharacter { at: 1 }),
        ("x".repeat(129), E::TooLong { bytes: 129 }),
        ("x".repeat(1 << 20), E::TooLong { bytes: 1 << 20 }),
    ]
}

#[test]
fn permissions_grants_and_scopes() {
    use PermissionError as E;
    for (text, error) in bad_permissions() {
        assert_eq!(Permission::parse(&text).err(), Some(error), "{text:.20?}");
        assert_eq!(Grant::parse(&text).err(), Some(error), "{text:.20?}");
        assert_eq!(PermissionSet::parse(["a", &text]).err(), Some(error), "{text:.20?}");
        let bad = ScopeError::BadEntry { index: 1, source: error };
        assert_eq!(Scope::only(["a", &text]).err(), Some(bad), "{text:.20?}");
        assert_eq!(Scope::inherit().allows_str(&text), Err(error), "{text:.20?}");
    }
    for text in ["a:*", "*"] {
        assert!(matches!(Permission::parse(text), Err(E::NotConcrete { .. })), "{text}");
        assert!(Grant::parse(text).is_ok());
    }
    for text in ["a*", "*a", "a:*:b", "*:a", "**", "a:*b", "a:**"] {
        assert!(Permission::parse(text).is_err(), "{text}");
        assert!(
            matches!(Grant::parse(text), Err(E::MisplacedWildcard { .. })),
            "{text}: {:?}",
            Grant::parse(text)
        );
    }
    assert!(Scope::only(["a"; 64]).is_ok());
    assert_eq!(Scope::only(["a"; 65]), Err(ScopeError::TooManyEntries));
    assert_eq!(Scope::only(std::iter::repeat("a")), Err(ScopeError::TooManyEntries));
    let grant = Grant::parse("a").unwrap();
    assert_eq!(Scope::only_grants(std::iter::repeat_n(grant, 65)), Err(ScopeError::TooManyEntries));
}

#[test]
fn role_catalogues() {
    let role = |name: &str| patkit::role::RoleName::parse(name).unwrap();
    let build = RoleCatalog::builder;
    let bad_name = |name: &str, source| RoleError::BadName { name: name.to_owned(), source };
    let table: Vec<(RoleCatalogBuilder, RoleError)> = vec![
        (build().role(""), bad_name("", RoleNameError::Empty)),
        (build().role("A"), bad_name("A", RoleNameError::BadCharacter { at: 0 })),
        (build().role("a:b"), bad_name("a:b", RoleNameError::BadCharacter { at: 1 })),
        (
            build().role(&"x".repeat(65)),
            bad_name(&"x".repeat(65), RoleNameError::TooLong { bytes: 65 }),
        ),
        (build().role("a").role("a"), RoleError::Duplicate { role: role("a") }),
        (
            RoleCatalog::standard_builder().role("member"),
            RoleError::Duplicate { role: role("member") },
        ),
        (
            build().role("a").inherits("a", "b"),
            RoleError::UnknownParent { role: role("a"), parent: "b".to_owned() },
        ),
        (
            build().grant("a", ["b"]),
            RoleError::UnknownRole { role: "a".to_owned(), given: "b".to_owned() },
        ),
        (
            build().role("a").grant("a", ["b:*:c"]),
            RoleError::BadGrant {
                role: role("a"),
                grant: "b:*:c".to_owned(),
                source: PermissionError::MisplacedWildcard { at: 2 },
            },
        ),
        (build().role("a").inherits("a", "a"), RoleError::Cycle { roles: vec![role("a")] }),
    ];
    for (builder, error) in table {
        assert_eq!(builder.build().unwrap_err(), error);
    }
    let ring = build()
        .role("a")
        .inherits("a", "b")
        .role("b")
        .inherits("b", "c")
        .role("c")
        .inherits("c", "a");
    assert!(matches!(ring.build(), Err(RoleError::Cycle { roles }) if roles.len() == 3));
    let many = (0..=10_000).fold(build(), |catalog, number| catalog.role(&format!("r{number}")));
    assert_eq!(many.build().unwrap_err(), RoleError::TooManyRoles { count: 10_001 });
    let grants: Vec<String> = (0..=10_000).map(|number| format!("g{number}")).collect();
    let many = build().role("a").grant("a", grants);
    assert_eq!(many.build().unwrap_err(), RoleError::TooManyGrants { count: 10_001 });
}

#[test]
fn policies() {
    let build = TokenPolicy::builder;
    let over = Duration::from_secs(86_400) * (MAX_DAYS + 1);
    let table = [
        (build().shown_lifetimes([Lifetime::Days(30), Lifetime::Days(0)]), "shown_lifetimes"),
        (build().shown_lifetimes([Lifetime::Days(MAX_DAYS + 1)]), "shown_lifetimes"),
        (build().default_lifetime_days(0), "default_lifetime"),
        (build().default_lifetime_days(u32::MAX), "default_lifetime"),
        (build().longest_lifetime_days(0), "longest_lifetime"),
        (build().longest_lifetime_days(MAX_DAYS + 1), "longest_lifetime"),
        (build().live_tokens_per_owner(0), "live_tokens_per_owner"),
        (build().idle_limit_days(0), "idle_limit_days"),
        (build().idle_limit_days(MAX_DAYS + 1), "idle_limit_days"),
        (build().longest_overlap(over), "longest_overlap"),
        (build().longest_overlap(Duration::MAX), "longest_overlap"),
        (build().reuse(ReuseSignal::RevokeFamily, MAX_DAYS + 1), "reuse"),
    ];
    for (builder, setting) in table {
        let error = builder.build().unwrap_err();
        assert_eq!(error.setting(), setting);
        assert!(error.to_string().contains(setting));
    }
    let least = build()
        .shown_lifetimes([])
        .default_lifetime_days(1)
        .longest_lifetime_days(1)
        .live_tokens_per_owner(1)
        .idle_limit_days(1)
        .longest_overlap(Duration::ZERO)
        .reuse(ReuseSignal::RevokeFamily, 1)
        .last_used_granularity(Duration::ZERO);
    assert!(least.build().is_ok());
}

#[test]
fn lifetimes() {
    for (days, expected) in [
        (i64::MIN, Err(LifetimeError::TooShort)),
        (-1, Err(LifetimeError::TooShort)),
        (0, Err(LifetimeError::TooShort)),
        (1, Ok(Lifetime::Days(1))),
        (i64::from(MAX_DAYS), Ok(Lifetime::Days(MAX_DAYS))),
        (i64::from(MAX_DAYS) + 1, Err(LifetimeError::TooLong { most: DAY * MAX_DAYS })),
        (i64::from(u32::MAX) + 1, Err(LifetimeError::TooLong { most: DAY * MAX_DAYS })),
        (1_000_000_000_000_000_000, Err(LifetimeError::TooLong { most: DAY * MAX_DAYS })),
        (i64::MAX, Err(LifetimeError::TooLong { most: DAY * MAX_DAYS })),
    ] {
        assert_eq!(Lifetime::days(days), expected, "{days}");
    }
}

#[test]
fn owner_caches() {
    let cache = |lifetime, capacity| {
        OwnerCache::builder(()).lifetime(lifetime).capacity(capacity).build().map(drop)
    };
    let day = Duration::from_secs(86_400);
    let nanosecond = Duration::from_nanos(1);
    for (lifetime, capacity, expected) in [
        (Duration::ZERO, 1, Err(OwnerCacheError::Lifetime)),
        (nanosecond, 1, Ok(())),
        (day, 1, Ok(())),
        (day + nanosecond, 1, Err(OwnerCacheError::Lifetime)),
        (Duration::MAX, 1, Err(OwnerCacheError::Lifetime)),
        (day, 0, Err(OwnerCacheError::Capacity)),
        (day, usize::MAX, Ok(())),
    ] {
        assert_eq!(cache(lifetime, capacity), expected, "{lifetime:?} {capacity}");
    }
}

#[test]
fn services() {
    type Change = fn(Builder) -> Builder;
    let table: [(Change, Result<(), BuildError>); 14] = [
        (|builder| builder, Ok(())),
        (|builder| builder.brand("A"), Err(BuildError::Brand("A".to_owned(), brand_error()))),
        (|builder| builder.former_brand(""), Err(BuildError::Brand(String::new(), brand_error()))),
        (
            |builder| builder.former_brand("acme"),
            Err(BuildError::Format(TokenFormatError::RepeatedBrand(Brand::new("acme").unwrap()))),
        ),
        (
            |builder| {
                (0..9).fold(builder, |builder, number| builder.former_brand(&format!("b{number}")))
            },
            Err(BuildError::Format(TokenFormatError::TooManyBrands)),
        ),
        (|builder| builder.flush_interval(Duration::ZERO), Err(BuildError::FlushInterval)),
        (
            |builder| builder.flush_interval(Duration::from_micros(999)),
            Err(BuildError::FlushInterval),
        ),
        (|builder| builder.flush_interval(Duration::from_millis(1)), Ok(())),
        (|builder| builder.flush_interval(Duration::from_secs(3_600)), Ok(())),
        (
            |builder| builder.flush_interval(Duration::from_secs(3_601)),
            Err(BuildError::FlushInterval),
        ),
        (|builder| builder.flush_interval(Duration::MAX), Err(BuildError::FlushInterval)),
        (|builder| builder.pending_cap(0), Err(BuildError::PendingCap)),
        (|builder| builder.pending_cap(1), Ok(())),
        (|builder| builder.roles(support::catalog()), Ok(())),
    ];
    for (change, expected) in table {
        assert_eq!(World::built(change).map(drop), expected);
    }
    let bare = || {
        patkit::TokenService::builder(patkit::MemoryStore::new(), patkit::MemoryDirectory::new())
    };
    assert_eq!(bare().build().map(drop), Err(BuildError::NoBrand));
    assert_eq!(bare().brand("acme").build().map(drop), Err(BuildError::NoKeyring));
    let no_brand = bare().keyring(Keyring::ephemeral().unwrap());
    assert_eq!(no_brand.build().map(drop), Err(BuildError::NoBrand));
}

#[test]
fn token_ids() {
    let id = nowhere();
    let text = id.to_string();
    assert_eq!(text.parse(), Ok(id));
    assert_eq!(TokenId::from_bytes(id.to_bytes()), Ok(id));
    let mut bad = vec![
        String::new(),
        "0".repeat(22),
        "z".repeat(22),
        text.to_lowercase(),
        format!("{text}0"),
        format!(" {text}"),
        text[..21].to_owned(),
        text.replacen(&text[5..6], "-", 1),
        text.replacen(&text[5..6], "\0", 1),
        format!("{}é", &text[..20]),
        "018f3c5e-7c1a-7000-8000-000000000000".to_owned(),
        "x".repeat(1 << 20),
    ];
    bad.retain(|each| *each != text);
    for text in bad {
        assert_eq!(text.parse::<TokenId>(), Err(id_error()), "{text:.40?}");
        assert!(serde_json::from_value::<TokenId>(serde_json::Value::String(text)).is_err());
    }
    // A wrong version or variant of the UUID.
    for (place, value) in [(6, 0x41), (6, 0x61), (6, 0x81), (8, 0x11), (8, 0x51), (8, 0xD1)] {
        let mut bytes = id.to_bytes();
        bytes[place] = value;
        assert_eq!(TokenId::from_bytes(bytes), Err(id_error()), "{place} {value:x}");
    }
    assert_eq!(TokenId::from_bytes([0; 16]), Err(id_error()));
    assert_eq!(TokenId::from_bytes([0xFF; 16]), Err(id_error()));
}

/// Runs an operation that must fail, checks that nothing changed, and returns the error.
///
/// The text of the error must be fit for a log and for a page.
fn unchanged(
    world: &World,
    result: impl FnOnce() -> Result<(), ManageError>,
    label: &str,
) -> ManageError {
    let before = (world.store.len(), world.snapshot());
    world.heard.take();
    let error = result().expect_err(label);
    assert_eq!((world.store.len(), world.snapshot()), before, "{label}");
    assert!(world.heard.take().is_empty(), "{label}");
    assert!(!error.to_string().contains(char::is_control), "{label}");
    error
}

fn field(error: &ManageError, label: &str) -> &'static str {
    match error {
        ManageError::Invalid(input) => {
            assert!(error.to_string().contains(input.field()), "{label}: {error}");
            assert!(!input.to_string().contains(char::is_control), "{label}");
            input.field()
        }
        error => panic!("{label}: {error:?}"),
    }
}

#[test]
fn generating_names_the_field_that_is_refused() {
    let month = TokenPolicy::builder().longest_lifetime_days(30).build().unwrap();
    let ending = TokenPolicy::builder().never_allowed(false).build().unwrap();
    let open = TokenPolicy::default();
    let new = || NewToken::named("fine");
    let mut table: Vec<(&TokenPolicy, NewToken, &str)> = vec![
        (&open, new().expires_in_days(0), "lifetime"),
        (&open, new().expires_in_days(-1), "lifetime"),
        (&open, new().expires_in_days(i64::MIN), "lifetime"),
        (&open, new().expires_in_days(i64::MAX), "lifetime"),
        (&open, new().expires_in_days(1_000_000_000_000_000_000), "lifetime"),
        (&open, new().expires_in_days(365_001), "lifetime"),
        (&open, new().expires_in_seconds(59), "lifetime"),
        (&open, new().expires_in_seconds(-1), "lifetime"),
        (&open, new().expires_in_seconds(i64::MAX), "lifetime"),
        (&month, new().expires_in_seconds(30 * 86_400 + 1), "lifetime"),
        (&month, new().expires_in_days(31), "lifetime"),
        (&month, new().never_expires(), "lifetime"),
        (&ending, new().never_expires(), "lifetime"),
        (&open, new().networks([""; 0]), "networks"),
        (&open, new().networks(["::1"; 33]), "networks"),
        (&open, new().scope(["a"; 65]), "scope"),
        (&open, new().scope(["a:*:b"]), "scope"),
        (&open, new().for_service(id("ghost")), "owner"),
        (&open, new().for_service(id("ada")), "owner"),
        (&open, new().for_service(id("core")), "owner"),
    ];
    let names = bad_names();
    table.extend(names.iter().map(|(name, _)| (&open, NewToken::named(name), "name")));
    let descriptions = bad_descriptions();
    table.extend(
        descriptions.iter().map(|(text, _)| (&open, new().description(text), "description")),
    );
    table.extend(
        BAD_NETWORKS.iter().map(|(text, _)| (&open, new().networks(["::1", text]), "networks")),
    );
    let permissions = bad_permissions();
    table.extend(permissions.iter().map(|(text, _)| (&open, new().scope(["a", text]), "scope")));
    for (policy, new, expected) in table {
        let world = World::with(policy.clone());
        world.token("ada", "other");
        let label: String = format!("{new:?}").chars().take(300).collect();
        let error = unchanged(&world, || world.generate(&session("ada"), new).map(drop), &label);
        assert_eq!(field(&error, &label), expected, "{label}");
    }
}

#[test]
fn a_token_lives_for_a_minute_or_more() {
    let hour = TokenPolicy::builder().longest_lifetime(Duration::from_secs(3_600)).build().unwrap();
    let world = World::with(hour);
    let new = |seconds| NewToken::named(&format!("n{seconds}")).expires_in_seconds(seconds);
    for seconds in [60, 61, 3_600] {
        let made = world.generate(&session("ann"), new(seconds)).unwrap();
        assert_eq!(made.token.expires_at(), Some(world.now() + TimeDelta::seconds(seconds)));
    }
    let made = world.generate(&session("ann"), NewToken::named("default")).unwrap();
    assert_eq!(made.token.expires_at(), Some(world.now() + TimeDelta::hours(1)));
    for refused in
        [new(i64::MIN), new(0), new(59), new(3_601), NewToken::named("a").expires_in_days(1)]
    {
        let label = format!("{refused:?}");
        let error =
            unchanged(&world, || world.generate(&session("ann"), refused).map(drop), &label);
        assert_eq!(field(&error, &label), "lifetime", "{label}");
    }
}

#[test]
fn a_refused_lifetime_is_never_no_expiry() {
    let world = World::new();
    let end = DateTime::<Utc>::MAX_UTC - TimeDelta::days(30);
    world.clock.set(end);
    for new in [
        NewToken::named("a"),
        NewToken::named("a").expires_in_days(31),
        NewToken::named("a").expires_in_days(365_000),
    ] {
        let error =
            unchanged(&world, || world.generate(&session("ann"), new).map(drop), "overflow");
        assert!(
            matches!(error, ManageError::Invalid(InvalidInput::Lifetime(LifetimeError::Overflow))),
            "{error:?}"
        );
    }
    let made = world.generate(&session("ann"), NewToken::named("a").expires_in_days(29)).unwrap();
    assert!(made.token.expires_at().is_some());
}

#[test]
fn editing_names_the_field_that_is_refused() {
    let world = World::new();
    let token = world.token("ann", "a");
    let ann = session("ann");
    let new = TokenEdit::new;
    let mut table = vec![(new(), "edit"), (new().reason(Reason::Owner), "edit")];
    for (text, _) in bad_names() {
        table.push((new().name(&text), "name"));
        table.push((new().name(&text).active(false).description("fine"), "name"));
    }
    for (text, _) in bad_descriptions() {
        table.push((new().description(&text), "description"));
        table.push((new().description(&text).active(false).name("fine"), "description"));
    }
    for (edit, expected) in table {
        let label: String = format!("{edit:?}").chars().take(300).collect();
        // An existing and a missing token give the same error.
        for id in [token, nowhere()] {
            let result = || ready(world.service.edit(&ann, id, edit.clone())).map(drop);
            let error = unchanged(&world, result, &label);
            assert_eq!(field(&error, &label), expected, "{label}");
        }
    }
}

#[test]
fn what_an_operation_refuses_changes_nothing() {
    let world = World::new();
    let ann = session("ann");
    let token = world.token("ann", "a");
    world.token("ann", "taken");
    let service = &world.service;
    type Fits = fn(&ManageError) -> bool;
    let not_found: Fits = |error| matches!(error, ManageError::NotFound);
    let refused: Fits = |error| matches!(error, ManageError::Refused(_));
    let overlap: Fits = |error| matches!(error, ManageError::Invalid(InvalidInput::Overlap { .. }));
    let table: Vec<(&str, Box<dyn Fn() -> Result<(), ManageError> + '_>, Fits)> = vec![
        ("get nothing", Box::new(|| ready(service.get(&ann, nowhere())).map(drop)), not_found),
        (
            "rename nothing",
            Box::new(|| ready(service.rename(&ann, nowhere(), "b")).map(drop)),
            not_found,
        ),
        (
            "revoke nothing",
            Box::new(|| ready(service.revoke(&ann, nowhere(), Reason::Owner)).map(drop)),
            not_found,
        ),
        (
            "restore nothing",
            Box::new(|| ready(service.restore(&ann, nowhere())).map(drop)),
            not_found,
        ),
        (
            "rotate nothing",
            Box::new(|| ready(service.rotate(&ann, nowhere(), Duration::ZERO)).map(drop)),
            not_found,
        ),
        ("delete nothing", Box::new(|| ready(service.delete(&ann, nowhere()))), not_found),
        (
            "generate a taken name",
            Box::new(|| world.generate(&ann, NewToken::named("TAKEN")).map(drop)),
            |error| matches!(error, ManageError::NameTaken),
        ),
        (
            "rename to a taken name",
            Box::new(|| ready(service.rename(&ann, token, "TAKEN")).map(drop)),
            |error| matches!(error, ManageError::NameTaken),
        ),
        (
            "restore an active one",
            Box::new(|| ready(service.restore(&ann, token)).map(drop)),
            refused,
        ),
        ("delete an active one", Box::new(|| ready(service.delete(&ann, token))), refused),
        (
            "revoke for a reason of others",
            Box::new(|| ready(service.revoke(&ann, token, Reason::Admin)).map(drop)),
            |error| matches!(error, ManageError::ReasonNotAllowed(Reason::Admin)),
        ),
        (
            "too much overlap",
            Box::new(|| ready(service.rotate(&ann, token, Duration::from_secs(604_801))).map(drop)),
            overlap,
        ),
        (
            "all overlap",
            Box::new(|| ready(service.rotate(&ann, token, Duration::MAX)).map(drop)),
            overlap,
        ),
    ];
    for (label, operate, fits) in table {
        let error = unchanged(&world, operate, label);
        assert!(fits(&error), "{label}: {error:?}");
    }
}

#[test]
fn a_refusal_by_state_says_so() {
    let world = World::new();
    let token = world.token("ann", "a");
    ready(world.service.revoke(&session("ann"), token, Reason::Owner)).unwrap();
    let result = || ready(world.service.rotate(&session("ann"), token, Duration::ZERO)).map(drop);
    match unchanged(&world, result, "rotate") {
        ManageError::Refused(refusal) => assert_eq!(refusal.why, RefusalReason::Revoked),
        error => panic!("{error:?}"),
    }
}

#[test]
fn lists_take_any_limit_and_any_cursor() {
    let world = World::new();
    world.token("ann", "a");
    for limit in [0, 1, 200, 201, usize::MAX] {
        let page = ready(world.service.list(&session("ann"), None, limit)).unwrap();
        assert_eq!(page.items.len(), 1);
        let past = ready(world.service.list(&session("ann"), Some(nowhere()), limit)).unwrap();
        assert!(past.items.len() <= 1);
    }
}

#[test]
fn what_the_host_asks_for_has_no_bad_values() {
    let world = World::new();
    world.token("ann", "a");
    let before = world.snapshot();
    for age in [Duration::ZERO, Duration::MAX] {
        assert_eq!(ready(world.service.prune(age)).unwrap(), 0);
    }
    for now in [DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC] {
        let idle = TokenPolicy::builder().idle_limit_days(MAX_DAYS).build().unwrap();
        let service = world.under(idle);
        world.clock.set(now);
        assert!(ready(service.sweep_idle()).is_ok());
        assert!(ready(service.prune(Duration::MAX)).is_ok());
    }
    world.clock.set(support::start());
    assert_eq!(ready(world.service.revoke_all(&support::home(), &id("ghost"))).unwrap(), 0);
    assert_eq!(world.snapshot(), before);
}
