//! The texts of errors. Each text is read alone in a log, so that it must name the refused thing,
//! and the bound or the cure.

#![allow(clippy::unwrap_used, clippy::panic, clippy::arithmetic_side_effects, reason = "tests")]

use patkit::lifecycle::RefusalReason;
use patkit::owner::cache::OwnerCacheError;
use patkit::permission::{PermissionError, ScopeError};
use patkit::policy::{LifetimeError, PolicyError, ReuseSignal};
use patkit::role::{RoleCatalogBuilder, RoleError, RoleName, RoleNameError, UnknownName};
use patkit::service::{Attenuation, PolicyRule};
use patkit::store::StoreError;
use patkit::token::{Authority, KeyId, NameError, NetworkError, NetworksError};
use patkit::{
    Credential, DirectoryError, InvalidInput, ManageError, NewToken, OwnerKind, PermissionDenied,
    Reason, RejectReason, RoleCatalog, TokenEdit, TokenPolicy, Unavailable,
};
use std::error::Error;
use std::time::Duration;
use support::{World, id, nowhere, ready, session};

/// A text, and the words that it must contain: the thing, and the bound or the cure.
type Expected = (String, &'static [&'static str]);

fn of(error: impl Error, words: &'static [&'static str]) -> Expected {
    (error.to_string(), words)
}

/// Checks that each text can be read alone.
fn check(texts: &[Expected]) {
    const WITHOUT_SUBJECT: [&str; 9] =
        ["it ", "its ", "that ", "which ", "this ", "what ", "who ", "is ", "must "];
    for (text, words) in texts {
        let lower = text.to_lowercase();
        for clause in lower.split([';', ':', '.']).map(str::trim_start) {
            let headless = WITHOUT_SUBJECT.into_iter().find(|start| clause.starts_with(start));
            assert_eq!(headless, None, "{text}");
        }
        assert!(
            ![" it is", " it has", " it was"].iter().any(|words| lower.contains(words)),
            "{text}"
        );
        for word in *words {
            assert!(text.contains(word), "{text}: names {word}");
        }
        assert!(text.len() < 300 && !text.contains(['\n', '\0']), "{text}");
        assert!(text.starts_with(|first: char| first.is_lowercase() || first == '\''), "{text}");
    }
}

#[test]
fn texts_of_names_scopes_and_networks() {
    let role = || RoleName::parse("member").unwrap();
    check(&[
        of(NameError::Empty, &["text", "visible character"]),
        of(NameError::TooLong { most: 255 }, &["text", "255", "shorten"]),
        of(NameError::Character('\0'), &["text", "U+0000", "leave"]),
        of(PermissionError::Empty, &["permission", "datastores:read"]),
        of(PermissionError::TooLong { bytes: 200 }, &["permission", "200", "128"]),
        of(PermissionError::EmptySegment { at: 3 }, &["permission", "byte 3"]),
        of(PermissionError::BadCharacter { at: 3 }, &["permission", "byte 3", "a-z"]),
        of(PermissionError::MisplacedWildcard { at: 3 }, &["grant", "byte 3", "datastores:*"]),
        of(PermissionError::NotConcrete { at: 3 }, &["permission", "byte 3", "datastores:read"]),
        of(ScopeError::TooManyEntries, &["scope", "64"]),
        of(
            ScopeError::BadEntry { index: 3, source: PermissionError::Empty },
            &["scope", "entry 3", "write"],
        ),
        of(NetworkError::NotANetwork, &["network", "10.0.0.0/8"]),
        of(NetworkError::PrefixTooLong { most: 32 }, &["network", "32"]),
        of(NetworkError::HostBitsSet, &["network", "10.0.0.0/8"]),
        of(NetworksError::Empty, &["list of networks", "leave"]),
        of(NetworksError::TooMany, &["networks", "32"]),
        of(
            NetworksError::Entry { place: 3, source: NetworkError::HostBitsSet },
            &["networks", "entry 3"],
        ),
        of(RoleNameError::Empty, &["role", "64"]),
        of(RoleNameError::TooLong { bytes: 70 }, &["role", "70", "64"]),
        of(RoleNameError::BadCharacter { at: 3 }, &["role", "byte 3", "a-z"]),
        of(
            RoleError::BadName { name: "A\n".into(), source: RoleNameError::Empty },
            &["role", "\"A\\n\"", "a-z"],
        ),
        of(RoleError::Duplicate { role: role() }, &["role member", "leave out"]),
        of(
            RoleError::UnknownRole { role: "memer".into(), given: "a".into() },
            &["\"memer\"", "define"],
        ),
        of(
            RoleError::UnknownParent { role: role(), parent: "x".into() },
            &["role member", "\"x\"", "define"],
        ),
        of(RoleError::Cycle { roles: vec![role()] }, &["ring", "remove", "member -> member"]),
        of(
            RoleError::BadGrant { role: role(), grant: "A".into(), source: PermissionError::Empty },
            &["role member", "\"A\"", "write"],
        ),
        of(
            RoleError::BadPermission { permission: "A".into(), source: PermissionError::Empty },
            &["permission \"A\"", "write"],
        ),
        of(
            RoleError::DuplicatePermission { permission: "a:b".into() },
            &["permission a:b", "leave out"],
        ),
        of(RoleError::TooManyPermissions { count: 10_001 }, &["10001", "10000"]),
        of(RoleError::TooManyRoles { count: 10_001 }, &["10001", "10000"]),
        of(RoleError::TooManyGrants { count: 10_001 }, &["10001", "10000"]),
        (UnknownName::Role("memer").to_string(), &["role \"memer\"", "define"]),
        (UnknownName::Permission("a:b").to_string(), &["permission \"a:b\"", "declare"]),
        of(OwnerCacheError::Lifetime, &["owner cache's lifetime", "1 day"]),
        of(OwnerCacheError::Capacity, &["owner cache's capacity", "1 or more"]),
        of(DirectoryError::new("down"), &["directory"]),
    ]);
}

#[test]
fn texts_of_policies_and_lifetimes() {
    let build = TokenPolicy::builder;
    let refused = |builder: patkit::policy::TokenPolicyBuilder| -> PolicyError {
        builder.build().unwrap_err()
    };
    let month = || build().longest_lifetime_days(30);
    check(&[
        of(refused(build().default_lifetime_days(0)), &["policy's default_lifetime", "60 s"]),
        of(refused(build().longest_lifetime_days(0)), &["policy's longest_lifetime", "60 s"]),
        of(
            refused(build().live_tokens_per_owner(0)),
            &["policy's live_tokens_per_owner", "1 or more"],
        ),
        of(refused(build().idle_limit_days(0)), &["policy's idle_limit_days", "1 to 365000 days"]),
        of(
            refused(build().longest_overlap(Duration::MAX)),
            &["policy's longest_overlap", "365000 days"],
        ),
        of(refused(build().reuse(ReuseSignal::RevokeFamily, 0)), &["policy's reuse", "window"]),
        of(
            refused(month().never_allowed(true)),
            &["never_allowed", "longest_lifetime", "leave out one"],
        ),
        of(
            refused(month().default_lifetime_days(31)),
            &["default_lifetime", "longest_lifetime", "set"],
        ),
        of(LifetimeError::TooShort, &["lifetime", "60 s"]),
        of(
            LifetimeError::TooLong { most: Duration::from_secs(30 * 86_400) },
            &["lifetime", "30 days"],
        ),
        of(LifetimeError::NeverNotAllowed, &["lifetime", "ask for"]),
        of(LifetimeError::OutlivesCreator, &["lifetime", "token", "shorter"]),
        of(LifetimeError::Overflow, &["lifetime", "last date", "shorter"]),
    ]);
}

#[test]
fn texts_of_management() {
    let invalid = |input: InvalidInput, words| of(ManageError::from(input), words);
    let mut texts = vec![
        of(
            ManageError::Forbidden { permission: "tokens:manage" },
            &["permission tokens:manage", "actor"],
        ),
        of(
            ManageError::ForbiddenByPolicy(PolicyRule::OversightHidden),
            &["policy", "personal tokens"],
        ),
        of(
            ManageError::ForbiddenByPolicy(PolicyRule::OversightRevokeOnly),
            &["policy", "overseer"],
        ),
        of(ManageError::ForbiddenByPolicy(PolicyRule::TokensManagingTokens), &["policy", "scope"]),
        of(ManageError::NotForHost, &["host", "Actor::signed_in"]),
        of(ManageError::NotFound, &["token"]),
        of(ManageError::ReasonNotAllowed(Reason::Idle), &["actor", "idle", "leave"]),
        of(ManageError::NameTaken, &["name", "choose another"]),
        of(ManageError::TooManyTokens { most: 3 }, &["owner", "3 active tokens", "revoke"]),
        of(ManageError::Outdated, &["token", "read"]),
        of(ManageError::Contended, &["token", "try again"]),
        of(
            ManageError::OutcomeUnknown {
                token: nowhere(),
                source: StoreError::unavailable("cut"),
            },
            &["store", "token", "read"],
        ),
        of(Unavailable::Store(StoreError::unavailable("down")), &["token store", "try again"]),
        of(Unavailable::Directory(DirectoryError::new("down")), &["directory", "try again"]),
        of(Unavailable::KeyMissing(KeyId::new(7)), &["keyring", "7", "add key 7"]),
        invalid(InvalidInput::Name(NameError::Empty), &["name", "visible character"]),
        invalid(InvalidInput::Description(NameError::Empty), &["description", "visible character"]),
        invalid(InvalidInput::Lifetime(LifetimeError::TooShort), &["lifetime", "60 s"]),
        invalid(InvalidInput::Scope(ScopeError::TooManyEntries), &["scope", "64"]),
        invalid(InvalidInput::Networks(NetworksError::Empty), &["networks", "leave"]),
        invalid(
            InvalidInput::Overlap { most: Duration::from_secs(7 * 86_400) },
            &["overlap", "604800 s"],
        ),
        invalid(InvalidInput::OwnerUnknown, &["directory", "owner", "check"]),
        invalid(InvalidInput::OwnerDisabled, &["owner", "enable"]),
        invalid(InvalidInput::OwnerKind(OwnerKind::Internal), &["owner", "internal", "human"]),
        invalid(InvalidInput::NothingToChange, &["edit", "name"]),
    ];
    for what in
        [Attenuation::Scope, Attenuation::Networks, Attenuation::Expiry, Attenuation::Family]
    {
        texts.push(of(ManageError::Attenuation(what), &["token", "through"]));
    }
    for why in [
        RefusalReason::StillActive,
        RefusalReason::NotRevoked,
        RefusalReason::Revoked,
        RefusalReason::Expired,
        RefusalReason::HasSuccessor,
        RefusalReason::Final(Reason::Compromised),
        RefusalReason::Authority(Authority::Admin),
    ] {
        texts.push(of(why, &[]));
    }
    let denied = PermissionDenied::NotGranted { permission: "a:b".into() };
    texts.push(of(denied, &["token", "permission a:b"]));
    let denied =
        PermissionDenied::NotAPermission { text: "A".into(), source: PermissionError::Empty };
    texts.push(of(denied, &["text \"A\"", "permission"]));
    check(&texts);
}

#[test]
fn texts_of_what_the_service_refuses() {
    let world = World::new();
    let ann = session("ann");
    let token = world.issue("ann", NewToken::named("a"));
    let id_of = token.token.id();
    let rejected = world.generate(&session("ghost"), NewToken::named("b")).unwrap_err();
    let cause = rejected.source().unwrap().to_string();
    let unknown =
        world.generate(&ann, NewToken::named("b").scope(["datastores:raed"])).unwrap_err();
    let service =
        world.generate(&session("ada"), NewToken::named("b").for_service(id("ann"))).unwrap_err();
    check(&[
        of(rejected, &["actor", "owner", "token"]),
        (cause, &["credential"]),
        of(unknown, &["scope entry datastores:raed", "write datastores:read"]),
        of(service, &["owner", "human", "service users"]),
        of(
            ready(world.service.delete(&ann, id_of)).unwrap_err(),
            &["token", "active", "deleted", "revoke"],
        ),
        of(
            ready(world.service.restore(&ann, id_of)).unwrap_err(),
            &["token", "active", "restored"],
        ),
        of(
            ready(world.service.edit(&ann, id_of, TokenEdit::new())).unwrap_err(),
            &["edit", "name"],
        ),
    ]);
    // The reason of a rejection is in a field for the host, because the text may reach a client.
    let error = ready(world.service.verify(Credential::text("nonsense"))).unwrap_err();
    assert_eq!(error.reject_reason(), Some(RejectReason::Malformed));
    assert_eq!(error.to_string(), "the credential was rejected");
    let roles = RoleCatalog::builder().permission("A");
    let built: Result<RoleCatalog, _> = RoleCatalogBuilder::build(roles);
    check(&[of(built.unwrap_err(), &["declared permission"])]);
}
