//! Verification: from the text of a request to a `Verified` or to the matching refusal.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::too_many_lines,
    clippy::type_complexity,
    clippy::unnecessary_wraps
)]

use chrono::{DateTime, TimeDelta, Utc};
use patkit::audit::AuditAction;
use patkit::random::{RandomError, SecureRandom};
use patkit::service::{RejectReason, Rejected, Unavailable, VerifyError};
use patkit::store::{ChangeBatch, KeyChecks, ListQuery, Page, Touch};
use patkit::token::{ActorRef, Brand, ForeignDigest, KeyId, StoredDigest, TokenFormat};
use patkit::{
    Actor, Clock, Credential, Directory, DirectoryError, Grant, IssuedToken, Keyring, ManualClock,
    MemoryDirectory, MemoryStore, NewToken, Owner, OwnerId, OwnerKind, Permission,
    PermissionDenied, Realm, Reason, RoleCatalog, Scope, StoreError, Token, TokenId, TokenKind,
    TokenService, TokenState, TokenStore, Verified,
};
use proptest::prelude::*;
use regex::Regex;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use support::{World, beta, builder, grants, home, id, nowhere, ready, session, start};

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// The places of the parts in a text with the brand `acme`.
const ID: std::ops::Range<usize> = 9..31;
const SECRET: std::ops::Range<usize> = 31..75;
const CHECKSUM: usize = 75;

const KEY_1: &str = "1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const KEY_2: &str = "2:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";
/// The first key with the id of the second, and the second key with the id of the first.
const KEY_1_AS_2: &str = "2:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const KEY_2_AS_1: &str = "1:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";

const MICRO: TimeDelta = TimeDelta::microseconds(1);

/// CRC-32/ISO-HDLC, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

fn base62(mut number: u64, digits: usize) -> String {
    let mut text = vec![b'0'; digits];
    for place in text.iter_mut().rev() {
        *place = DIGITS[(number % 62) as usize];
        number /= 62;
    }
    String::from_utf8(text).unwrap()
}

/// Returns the text of a token as the documentation describes it.
fn print(brand: &str, kind: &str, id: [u8; 16], secret: [u8; 32]) -> String {
    let mut text = format!("{brand}_{kind}_");
    for word in id.as_chunks::<8>().0.iter().chain(secret.as_chunks::<8>().0) {
        text.push_str(&base62(u64::from_be_bytes(*word), 11));
    }
    checked(&text)
}

/// Returns the text with its checksum.
fn checked(text: &str) -> String {
    format!("{text}{}", base62(crc32(text.as_bytes()).into(), 6))
}

/// Changes a text and corrects its checksum.
fn forged(text: &str, change: impl FnOnce(&mut String)) -> String {
    let mut text = text[..CHECKSUM].to_owned();
    change(&mut text);
    checked(&text)
}

fn text(issued: &IssuedToken) -> &str {
    issued.plaintext.expose_secret()
}

/// Returns a text with the id of one token and the secret of the other.
fn mixed(id: &IssuedToken, secret: &IssuedToken) -> String {
    forged(text(id), |mixed| mixed.replace_range(SECRET, &text(secret)[SECRET]))
}

/// Returns the token's text with a wrong secret.
fn wrong(issued: &IssuedToken) -> String {
    forged(text(issued), |text| {
        let other = if text.as_bytes()[74] == b'0' { "1" } else { "0" };
        text.replace_range(74..75, other);
    })
}

fn rejected<T>(result: Result<T, VerifyError>) -> Rejected {
    match result {
        Err(VerifyError::Rejected(rejected)) => rejected,
        Err(error) => panic!("not rejected but {error}"),
        Ok(_) => panic!("accepted"),
    }
}

fn reason<T>(result: Result<T, VerifyError>) -> RejectReason {
    rejected(result).reason
}

fn verify(world: &World, text: &str) -> Result<Verified, VerifyError> {
    ready(world.service.verify(Credential::text(text)))
}

fn header(issued: &IssuedToken) -> String {
    format!("Bearer {}", text(issued))
}

fn address(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}

fn keyring(keys: &[&str]) -> Keyring {
    Keyring::from_text(&keys.join(",")).unwrap()
}

/// Returns a service with these keys over the store, the directory and the clock of a world.
fn with_keys(world: &World, keys: &[&str]) -> support::Service {
    let builder = builder(world.store.clone(), world.directory.clone(), world.clock.clone());
    builder.keyring(keyring(keys)).audit_sink(world.heard.clone()).build().unwrap()
}

fn named(name: &str) -> NewToken {
    NewToken::named(name)
}

#[test]
fn each_reason_is_given_exactly_where_it_applies_and_all_look_alike_to_the_client() {
    use RejectReason as R;
    let world = World::new();
    let issue = |name| world.issue("ann", named(name));
    let bob = |name| world.issue("bob", named(name));
    let service = &world.service;
    let (revoked, expired, inside) = (
        issue("revoked"),
        world.issue("ann", named("expired").expires_in_days(1)),
        world.issue("ann", named("inside").networks(["10.0.0.0/8"])),
    );
    let good = issue("good");
    let unknown = forged(text(&good), |text| text.replace_range(ID, &nowhere().to_string()));
    ready(service.revoke(&Actor::system(), revoked.token.id(), Reason::System)).unwrap();
    world.advance(TimeDelta::days(1));

    let mut seen = Vec::new();
    let mut check = |expected: RejectReason, token: Option<TokenId>, credential: Credential<'_>| {
        // An inspection refuses for the same reason.
        for error in [ready(service.verify(credential)), ready(service.inspect(credential))] {
            let error = error.unwrap_err();
            assert_eq!(error.to_string(), "the credential was rejected", "{expected}");
            assert_eq!(error.reject_reason(), Some(expected));
            assert!(std::error::Error::source(&error).is_none(), "{expected}");
            assert_eq!(rejected(Err::<(), _>(error)).token, token, "{expected}");
        }
        seen.push(expected);
    };
    let of = |issued: &IssuedToken| Some(issued.token.id());
    let wrong = wrong(&good);
    check(R::NoCredential, None, Credential::headers(None::<&str>));
    check(R::InvalidRequest, None, Credential::headers(Some("Bearer a b")));
    check(R::Malformed, None, Credential::text("acme_pat_0"));
    check(R::Unknown, Some(nowhere()), Credential::text(&unknown));
    check(R::WrongSecret, of(&good), Credential::text(&wrong));
    check(R::Revoked, of(&revoked), Credential::text(text(&revoked)));
    check(R::Expired, of(&expired), Credential::text(text(&expired)));
    check(R::AddressNotAllowed, of(&inside), Credential::text(text(&inside)));
    let late = bob("late");
    world.put("bob", |bob| bob.with_tokens_valid_after(world.now() + MICRO));
    check(R::BeforeValidAfter, of(&late), Credential::text(text(&late)));
    world.put("bob", |bob| bob.with_enabled(false));
    check(R::OwnerDisabled, of(&late), Credential::text(text(&late)));
    world.directory.put(Owner::new(id("bob"), OwnerKind::Service));
    check(R::OwnerKind, of(&late), Credential::text(text(&late)));
    world.directory.remove(&home(), &id("bob"));
    check(R::OwnerUnknown, of(&late), Credential::text(text(&late)));

    assert_eq!(seen.len(), R::ALL.len());
    for reason in R::ALL {
        assert_eq!(seen.iter().filter(|each| **each == reason).count(), 1, "{reason}");
    }
    verify(&world, text(&good)).unwrap();
}

#[test]
fn each_refusal_of_a_known_token_is_audited_with_its_owner_and_its_reason() {
    use RejectReason as R;
    let happens: [(R, &dyn Fn(&World, TokenId)); 7] = [
        (R::Revoked, &|world, id| {
            ready(world.service.revoke(&Actor::system(), id, Reason::System)).unwrap();
        }),
        (R::Expired, &|world, _| world.advance(TimeDelta::days(91))),
        (R::OwnerDisabled, &|world, _| world.put("ann", |ann| ann.with_enabled(false))),
        (R::OwnerUnknown, &|world, _| {
            world.directory.remove(&home(), &id("ann"));
        }),
        (R::OwnerKind, &|world, _| world.directory.put(Owner::new(id("ann"), OwnerKind::Internal))),
        (R::BeforeValidAfter, &|world, _| {
            world.put("ann", |ann| ann.with_tokens_valid_after(start() + MICRO));
        }),
        (R::AddressNotAllowed, &|world, id| {
            world.force(id, |token| {
                token.networks = Some(patkit::token::Networks::parse(["192.0.2.0/24"]).unwrap());
            });
        }),
    ];
    for (expected, happens) in happens {
        let world = World::built(|builder| builder.audit_refusals(1)).unwrap();
        let issued = world.issue("ann", named("one"));
        let token = issued.token.id();
        happens(&world, token);
        world.heard.take();
        let owner = id("ann");
        let holder = ActorRef::Token { owner: owner.clone(), id: token };
        for (text, actor, reason) in [
            (text(&issued).to_owned(), holder, expected),
            // A caller without the secret of the token is not named as the token.
            (wrong(&issued), ActorRef::Unproven, R::WrongSecret),
        ] {
            let credential = Credential::text(&text).from_address(address("10.0.0.1"));
            for is_inspection in [false, true] {
                let error = if is_inspection {
                    ready(world.service.inspect(credential))
                } else {
                    ready(world.service.verify(credential))
                };
                assert_eq!(error.unwrap_err().reject_reason(), Some(reason));
                let events = world.heard.take();
                let [event] = &events[..] else { panic!("{reason}: {events:?}") };
                assert_eq!((event.action, event.token), (AuditAction::Refused, token), "{reason}");
                assert_eq!((event.owner.as_ref(), &event.actor), (Some(&owner), &actor));
                assert_eq!(event.reason.as_deref(), Some(reason.as_str()));
                let (from, at) = (address("10.0.0.1"), world.now());
                assert_eq!((event.address, event.at), (from, at), "{reason}");
                ready(world.service.flush()).unwrap();
                assert!(world.events().contains(event), "{reason}: the same is stored");
            }
        }
    }
}

#[test]
fn only_the_holder_of_the_secret_learns_what_became_of_a_token() {
    let cases: [(&str, RejectReason, &dyn Fn(&World, TokenId)); 7] = [
        ("revoked", RejectReason::Revoked, &|world, id| {
            ready(world.service.revoke(&Actor::system(), id, Reason::Compromised)).unwrap();
        }),
        ("expired", RejectReason::Expired, &|world, _| world.advance(TimeDelta::days(91))),
        ("disabled", RejectReason::OwnerDisabled, &|world, _| {
            world.put("ann", |ann| ann.with_enabled(false));
        }),
        ("gone", RejectReason::OwnerUnknown, &|world, _| {
            world.directory.remove(&home(), &id("ann"));
        }),
        ("kind", RejectReason::OwnerKind, &|world, _| {
            world.directory.put(Owner::new(id("ann"), OwnerKind::Internal));
        }),
        ("reused id", RejectReason::BeforeValidAfter, &|world, _| {
            world.put("ann", |ann| ann.with_tokens_valid_after(start() + TimeDelta::days(1)));
        }),
        ("elsewhere", RejectReason::AddressNotAllowed, &|world, id| {
            world.force(id, |token| {
                token.networks = Some(patkit::token::Networks::parse(["10.0.0.0/8"]).unwrap());
            });
        }),
    ];
    for (name, expected, happens) in cases {
        let world = World::new();
        let issued = world.issue("ann", named("one"));
        verify(&world, text(&issued)).unwrap();
        happens(&world, issued.token.id());
        assert_eq!(reason(verify(&world, text(&issued))), expected, "{name}");
        assert_eq!(reason(verify(&world, &wrong(&issued))), RejectReason::WrongSecret, "{name}");
        let as_service = forged(text(&issued), |text| text.replace_range(5..8, "svc"));
        assert_eq!(reason(verify(&world, &as_service)), RejectReason::WrongSecret, "{name}");
    }
}

#[test]
fn a_secret_opens_no_other_record_of_the_same_owner() {
    let world = World::new();
    let (one, two) = (world.issue("ann", named("one")), world.issue("ann", named("two")));
    assert_eq!(reason(verify(&world, &mixed(&one, &two))), RejectReason::WrongSecret);
    assert_eq!(reason(verify(&world, &mixed(&two, &one))), RejectReason::WrongSecret);
    verify(&world, &mixed(&one, &one)).unwrap();
}

#[test]
fn a_digest_copied_to_another_record_opens_neither_with_either_secret() {
    let world = World::new();
    let (thief, victim) = (world.issue("bob", named("mine")), world.issue("ada", named("theirs")));
    let stolen = world.stored(thief.token.id()).digest.clone();
    world.force(victim.token.id(), |token| token.digest = stolen.clone());
    assert_eq!(world.stored(victim.token.id()).digest, stolen);
    for text in [text(&victim).to_owned(), mixed(&victim, &thief), mixed(&thief, &victim)] {
        assert_eq!(reason(verify(&world, &text)), RejectReason::WrongSecret);
    }
    verify(&world, text(&thief)).unwrap();
}

#[test]
fn a_digest_under_the_number_of_another_key_opens_nothing() {
    let world = World::new();
    let issued = world.issue("ann", named("one"));
    for keys in [&[KEY_2_AS_1][..], &[KEY_1_AS_2, KEY_2_AS_1]] {
        let service = with_keys(&world, keys);
        assert_eq!(
            reason(ready(service.verify(Credential::text(text(&issued))))),
            RejectReason::WrongSecret
        );
    }
}

#[test]
fn the_kind_is_bound_to_the_secret_in_the_text_and_in_the_record() {
    let world = World::new();
    let (personal, service) = (world.issue("ann", named("one")), world.issue("bot", named("two")));
    let as_kind = |issued: &IssuedToken, kind: &str| {
        forged(text(issued), |text| text.replace_range(5..8, kind))
    };
    assert_eq!(as_kind(&personal, "pat"), text(&personal), "the forger's own checksum is right");
    assert_eq!(reason(verify(&world, &as_kind(&personal, "svc"))), RejectReason::WrongSecret);
    assert_eq!(reason(verify(&world, &as_kind(&service, "pat"))), RejectReason::WrongSecret);

    // The record has the other kind, and the directory agrees with the record.
    world.force(personal.token.id(), |token| {
        token.kind = TokenKind::Service;
        token.owner_kind = OwnerKind::Service;
    });
    world.directory.put(Owner::new(id("ann"), OwnerKind::Service));
    for kind in ["pat", "svc"] {
        assert_eq!(
            reason(verify(&world, &as_kind(&personal, kind))),
            RejectReason::WrongSecret,
            "{kind}"
        );
    }
}

#[test]
fn a_token_whose_key_is_missing_is_unavailable_whatever_secret_is_presented() {
    let world = World::new();
    let (issued, other) = (world.issue("ann", named("one")), world.issue("ann", named("two")));
    ready(world.service.revoke(&Actor::system(), other.token.id(), Reason::System)).unwrap();
    let service = with_keys(&world, &[KEY_2]);
    for text in [text(&issued).to_owned(), wrong(&issued), text(&other).to_owned()] {
        let error = ready(service.verify(Credential::text(&text))).unwrap_err();
        assert_eq!(error.reject_reason(), None);
        let VerifyError::Unavailable(Unavailable::KeyMissing(key)) = error else {
            panic!("{error}")
        };
        assert_eq!(key, KeyId::new(1));
    }
    // Without a record, no key can be missing.
    let unknown = forged(text(&issued), |text| text.replace_range(ID, &nowhere().to_string()));
    assert_eq!(reason(ready(service.verify(Credential::text(&unknown)))), RejectReason::Unknown);
    ready(service.flush()).unwrap();
    assert_eq!(service.usage().pending, 0);
    ready(with_keys(&world, &[KEY_2, KEY_1]).verify(Credential::text(text(&issued)))).unwrap();
}

#[test]
fn a_verification_moves_a_token_to_the_primary_key_and_the_old_one_may_go() {
    let world = World::new();
    let (used, idle) = (world.issue("ann", named("used")), world.issue("ann", named("idle")));
    let counts = || {
        let mut counts = ready(world.store.tokens_per_key()).unwrap();
        counts.sort_unstable();
        counts
    };
    let (one, two) = (KeyId::new(1), KeyId::new(2));
    let service = with_keys(&world, &[KEY_2, KEY_1]);
    assert_eq!(counts(), [(one, 2)]);
    ready(service.verify(Credential::text(text(&used)))).unwrap();
    assert_eq!(counts(), [(one, 2)], "the request itself writes nothing");
    assert_eq!(
        reason(ready(service.verify(Credential::text(&wrong(&idle))))),
        RejectReason::WrongSecret
    );
    world.heard.take();
    ready(service.flush()).unwrap();
    assert_eq!(counts(), [(one, 1), (two, 1)]);

    let redigested = |events: Vec<patkit::AuditEvent>| -> Vec<TokenId> {
        let of = events.into_iter().filter(|event| event.action == AuditAction::Redigested);
        of.map(|event| event.token).collect()
    };
    assert_eq!(redigested(world.heard.take()), [used.token.id()]);
    assert_eq!(redigested(world.events()), [used.token.id()]);
    ready(service.verify(Credential::text(text(&used)))).unwrap();
    ready(service.flush()).unwrap();
    assert_eq!(redigested(world.events()), [used.token.id()], "once");
    let (before, after) = (&used.token, world.stored(used.token.id()));
    assert_eq!(after.version, 2);
    assert_eq!((after.facts.expires_at, &after.name), (before.expires_at(), before.name()));

    let later = with_keys(&world, &[KEY_2]);
    ready(later.verify(Credential::text(text(&used)))).unwrap();
    assert_eq!(
        reason(ready(later.verify(Credential::text(&wrong(&used))))),
        RejectReason::WrongSecret
    );
    assert!(matches!(
        ready(later.verify(Credential::text(text(&idle)))),
        Err(VerifyError::Unavailable(Unavailable::KeyMissing(key))) if key == one
    ));
    // The old node does not know the new key yet, so that it fails closed with an operational
    // error.
    assert!(matches!(
        ready(world.service.verify(Credential::text(text(&used)))),
        Err(VerifyError::Unavailable(Unavailable::KeyMissing(key))) if key == two
    ));
}

#[test]
fn a_change_between_a_verification_and_the_move_of_its_digest_is_not_undone() {
    let world = World::new();
    let issued = world.issue("ann", named("one"));
    let token = issued.token.id();
    let service = with_keys(&world, &[KEY_2, KEY_1]);
    ready(service.verify(Credential::text(text(&issued)))).unwrap();
    ready(service.revoke(&Actor::system(), token, Reason::System)).unwrap();
    let revoked = world.stored(token);
    ready(service.flush()).unwrap();
    let after = world.stored(token);
    assert_eq!((&after.facts, after.version), (&revoked.facts, revoked.version));
    assert_eq!(after.digest, revoked.digest);
    assert_eq!(
        reason(ready(service.verify(Credential::text(text(&issued))))),
        RejectReason::Revoked
    );

    ready(service.restore(&Actor::system(), token)).unwrap();
    ready(service.verify(Credential::text(text(&issued)))).unwrap();
    ready(service.rename(&session("ann"), token, "other")).unwrap();
    ready(service.flush()).unwrap();
    assert_eq!(world.stored(token).name.as_str(), "other");
    assert_eq!(ready(world.store.tokens_per_key()).unwrap(), [(KeyId::new(1), 1)]);
    ready(service.verify(Credential::text(text(&issued)))).unwrap();
    ready(service.flush()).unwrap();
    assert_eq!(ready(world.store.tokens_per_key()).unwrap(), [(KeyId::new(2), 1)]);

    ready(with_keys(&world, &[KEY_1, KEY_2]).verify(Credential::text(text(&issued)))).unwrap();
    ready(service.revoke(&Actor::system(), token, Reason::System)).unwrap();
    ready(service.delete(&session("ann"), token)).unwrap();
    ready(service.flush()).unwrap();
    assert!(world.find(token).is_none());
}

#[test]
fn refusals_move_no_digest() {
    let world = World::new();
    let revoked = world.issue("ann", named("revoked"));
    let disabled = world.issue("bob", named("disabled"));
    let elsewhere = world.issue("ann", named("elsewhere").networks(["10.0.0.0/8"]));
    ready(world.service.revoke(&Actor::system(), revoked.token.id(), Reason::System)).unwrap();
    world.put("bob", |bob| bob.with_enabled(false));
    let service = with_keys(&world, &[KEY_2, KEY_1]);
    for issued in [&revoked, &disabled, &elsewhere] {
        rejected(ready(service.verify(Credential::text(text(issued)))));
        rejected(ready(service.verify(Credential::text(&wrong(issued)))));
    }
    let before = world.snapshot();
    ready(service.flush()).unwrap();
    assert_eq!(world.snapshot(), before);
}

#[test]
fn a_foreign_credential_opens_nothing() {
    let world = World::new();
    let issued = world.issue("ann", named("one"));
    let mac = match &world.stored(issued.token.id()).digest {
        StoredDigest::Keyed(digest) => digest.mac().to_vec(),
        other => panic!("{other:?}"),
    };
    for value in
        [&mac[..], &[], &[0; 32], text(&issued).as_bytes(), &text(&issued).as_bytes()[SECRET]]
    {
        world.force(issued.token.id(), |token| {
            token.digest = StoredDigest::Foreign(ForeignDigest::new("sha256", value));
        });
        assert_eq!(reason(verify(&world, text(&issued))), RejectReason::WrongSecret);
    }
    ready(world.service.flush()).unwrap();
    assert_eq!(world.stored(issued.token.id()).last_used, None);
}

#[test]
fn a_digest_of_zeros_in_the_store_opens_nothing() {
    let world = World::new();
    let issued = world.issue("ann", named("one"));
    world.force(issued.token.id(), |token| {
        token.digest = StoredDigest::Keyed(patkit::token::KeyedDigest::new(KeyId::new(1), [0; 32]));
    });
    assert_eq!(reason(verify(&world, text(&issued))), RejectReason::WrongSecret);
}

#[test]
fn a_disabled_owner_stops_every_token_at_once_and_enabling_starts_them_again() {
    let world = World::new();
    let (one, two) = (world.issue("ann", named("one")), world.issue("ann", named("two")));
    for _ in 0..3 {
        world.put("ann", |ann| ann.with_enabled(false));
        assert_eq!(world.refusal(&one), Some(RejectReason::OwnerDisabled));
        assert_eq!(world.refusal(&two), Some(RejectReason::OwnerDisabled));
        world.put("ann", |ann| ann);
        assert_eq!((world.refusal(&one), world.refusal(&two)), (None, None));
        world.directory.remove(&home(), &id("ann"));
        assert_eq!(world.refusal(&one), Some(RejectReason::OwnerUnknown));
        world.put("ann", |ann| ann);
        assert_eq!(world.refusal(&one), None);
    }
}

#[test]
fn an_owner_of_another_kind_has_no_such_tokens() {
    let world = World::new();
    for (name, right) in [("ann", OwnerKind::Human), ("bot", OwnerKind::Service)] {
        let issued = world.issue(name, named("one"));
        for kind in [OwnerKind::Human, OwnerKind::Service, OwnerKind::Internal] {
            world.directory.put(Owner::new(id(name), kind));
            let expected = (kind != right).then_some(RejectReason::OwnerKind);
            assert_eq!(world.refusal(&issued), expected, "{name} as {kind}");
        }
    }
}

#[test]
fn valid_after_refuses_what_was_made_before_it_to_the_microsecond() {
    let world = World::new();
    let issued = world.issue("ann", named("one"));
    assert_eq!(issued.token.created_at(), start());
    for (after, expected) in [
        (start() - MICRO, None),
        (start(), None),
        (start() + TimeDelta::nanoseconds(999), None),
        (start() + MICRO, Some(RejectReason::BeforeValidAfter)),
        (start() + TimeDelta::days(365_000), Some(RejectReason::BeforeValidAfter)),
        (DateTime::<Utc>::MIN_UTC, None),
        (DateTime::<Utc>::MAX_UTC, Some(RejectReason::BeforeValidAfter)),
    ] {
        world.put("ann", |ann| ann.with_tokens_valid_after(after));
        assert_eq!(world.refusal(&issued), expected, "{after}");
    }
    world.put("ann", |ann| ann.with_tokens_valid_after(start() + MICRO));
    world.advance(MICRO);
    let new = world.issue("ann", named("new"));
    assert_eq!(world.refusal(&new), None, "a new token works");
}

/// A clock whose time for verifications lags behind its time for changes, as a coarse clock may.
struct Behind(Arc<ManualClock>);

impl Clock for Behind {
    fn now(&self) -> DateTime<Utc> {
        self.0.now()
    }

    fn now_micros(&self) -> i64 {
        self.0.now_micros() - LAG.num_microseconds().unwrap()
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }
}

const LAG: TimeDelta = TimeDelta::milliseconds(10);

#[test]
fn a_coarse_clock_delays_an_expiry_and_nothing_else() {
    let clock = Arc::new(ManualClock::at(start()));
    let world = World::built(|builder| builder.clock(Behind(clock.clone()))).unwrap();
    let refusal = |issued: &IssuedToken| {
        ready(world.service.verify(Credential::text(text(issued)))).map(drop).err()
    };
    let refusal = |issued: &IssuedToken| refusal(issued).and_then(|error| error.reject_reason());
    let make = |name: &str| {
        ready(world.service.generate(&session("ann"), named(name).expires_in_days(1))).unwrap()
    };

    let issued = make("new");
    assert_eq!(refusal(&issued), None, "a new token works at once");
    world.put("ann", |ann| ann.with_tokens_valid_after(start()).with_role("member"));
    assert_eq!(refusal(&issued), None, "also where no earlier one does");

    let rotated = make("rotated");
    let successor =
        ready(world.service.rotate(&session("ann"), rotated.token.id(), Duration::ZERO)).unwrap();
    assert_eq!(refusal(&successor), None);
    assert_eq!(
        refusal(&rotated),
        Some(RejectReason::Revoked),
        "what is rotated away is refused at once"
    );
    let reuse = world.events().iter().filter(|event| event.action == AuditAction::Reuse).count();
    assert_eq!(reuse, 1, "and its use is told at once");

    let revoked = make("revoked");
    assert_eq!(refusal(&revoked), None);
    ready(world.service.revoke(&session("ann"), revoked.token.id(), Reason::Owner)).unwrap();
    assert_eq!(refusal(&revoked), Some(RejectReason::Revoked), "at once");

    clock.advance(TimeDelta::days(1) + LAG - MICRO);
    assert_eq!(refusal(&issued), None, "it lives longer by the lag");
    clock.advance(MICRO);
    assert_eq!(refusal(&issued), Some(RejectReason::Expired));
}

#[test]
fn a_token_follows_the_roles_of_its_owner_at_once() {
    let world = World::new();
    let issued = world.issue("mia", named("one"));
    let able = |what: &str| world.verify(&issued).unwrap().require(what).is_ok();
    let table: [(&[&str], &[&str], [bool; 3]); 6] = [
        (&["admin"], &[], [true, true, false]),
        (&["manager"], &[], [true, false, false]),
        (&[], &[], [false, false, false]),
        (&[], &["datastores:*"], [false, false, true]),
        (&["member"], &["*"], [true, true, true]),
        (&["no-such-role"], &[], [false, false, false]),
    ];
    for (roles, direct, expected) in table {
        world.put("mia", |mia| {
            roles.iter().fold(mia, |mia, role| mia.with_role(role)).with_grants(grants(direct))
        });
        let seen = ["tokens:manage", "service-tokens:manage", "datastores:read"].map(able);
        assert_eq!(seen, expected, "{roles:?} {direct:?}");
    }
}

#[test]
fn what_was_verified_keeps_what_it_allowed_then() {
    let world = World::new();
    let verified = world.verify(&world.issue("mia", named("one"))).unwrap();
    world.put("mia", |mia| mia);
    assert!(verified.require("tokens:manage").is_ok());
    assert!(ready(world.service.recheck(&verified)).unwrap().require("tokens:manage").is_err());
}

#[test]
fn an_owner_shared_by_services_with_two_catalogues_is_judged_by_each_by_its_own() {
    let world = World::new();
    let issued = world.issue("mia", named("one"));
    let roles =
        RoleCatalog::builder().role("manager").grant("manager", ["other:read"]).build().unwrap();
    let other = builder(world.store.clone(), world.directory.clone(), world.clock.clone());
    let other = other.roles(roles).build().unwrap();
    for _ in 0..2 {
        let here = world.verify(&issued).unwrap();
        let there = ready(other.verify(Credential::text(text(&issued)))).unwrap();
        assert!(here.require("tokens:manage").is_ok() && here.require("other:read").is_err());
        assert!(there.require("tokens:manage").is_err() && there.require("other:read").is_ok());
        assert!(!there.effective_permissions().allows_str("tokens:manage").unwrap());
    }
}

#[test]
fn networks_admit_the_addresses_in_them_and_no_missing_one() {
    let world = World::new();
    let networks = ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"];
    let issued = world.issue("ann", named("one").networks(networks));
    let free = world.issue("ann", named("free"));
    let table = [
        ("10.0.0.0", true),
        ("10.255.255.255", true),
        ("9.255.255.255", false),
        ("11.0.0.0", false),
        ("::ffff:10.1.2.3", true),
        ("::ffff:11.1.2.3", false),
        ("::10.1.2.3", false),
        ("64:ff9b::10.1.2.3", false),
        ("192.0.2.7", true),
        ("::ffff:192.0.2.7", true),
        ("192.0.2.6", false),
        ("2001:db8::1", true),
        ("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", true),
        ("2001:db9::", false),
        ("::", false),
    ];
    for (peer, fits) in table {
        let result = ready(
            world.service.verify(Credential::text(text(&issued)).from_address(address(peer))),
        );
        let verified = match result {
            Ok(verified) => Some(verified.address()),
            Err(error) => {
                assert_eq!(error.reject_reason(), Some(RejectReason::AddressNotAllowed), "{peer}");
                None
            }
        };
        let canonical = || address(peer).map(|address| address.to_canonical());
        assert_eq!(verified, fits.then(canonical), "{peer}");
        ready(world.service.verify(Credential::text(text(&free)).from_address(address(peer))))
            .unwrap();
    }
    assert_eq!(world.refusal(&issued), Some(RejectReason::AddressNotAllowed), "no address");
    assert_eq!(world.refusal(&free), None);
}

#[test]
fn permissions_that_are_none_are_denied_to_everybody() {
    let world = World::new();
    world.put("ada", |ada| ada.with_grants(grants(&["*"])));
    let all = world.verify(&world.issue("ada", named("all"))).unwrap();
    all.require("datastores:read").unwrap();
    for text in [
        "",
        "*",
        ":",
        "a:",
        ":a",
        "a::b",
        "a:*",
        "*:a",
        "A:b",
        "a:B",
        "datastores:Read",
        "a b",
        " a",
        "a ",
        "a\n",
        "a\0",
        "é",
        "a.b",
        "a:b*",
        "**",
        "\u{202e}a",
        "'; drop table tokens; --",
    ] {
        let denied = all.require(text).unwrap_err();
        assert!(matches!(&denied, PermissionDenied::NotAPermission { text: of, .. } if of == text));
        assert_eq!(
            denied.to_string(),
            format!(
                "the text {text:?}, which a route demands, is not a permission; write one such as \
                 datastores:read"
            )
        );
        assert!(!denied.to_string().contains(['\n', '\0', '\u{202e}']), "shown escaped");
    }
    let long = all.require(&"a".repeat(1 << 20)).unwrap_err();
    assert!(long.to_string().len() < 300, "{long}");
    let nothing =
        world.verify(&world.issue("ada", named("none").scope(Vec::<String>::new()))).unwrap();
    assert!(nothing.require("datastores:read").is_err());
    assert!(nothing.effective_permissions().is_empty());
    let nobody = world.verify(&world.issue("nil", named("nil"))).unwrap();
    assert!(nobody.require("datastores:read").is_err());
}

fn grant_text() -> impl Strategy<Value = String> {
    prop_oneof![
        1 => Just("*".to_owned()),
        9 => ("[ab](:[ab]){0,2}", any::<bool>())
            .prop_map(|(text, wild)| if wild { format!("{text}:*") } else { text }),
    ]
}

/// Returns every permission that such grants can tell apart.
fn universe() -> Vec<Permission> {
    let mut texts: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
    for depth in 0..3 {
        let longest: Vec<String> =
            texts.iter().filter(|text| text.matches(':').count() == depth).cloned().collect();
        texts.extend(
            longest.iter().flat_map(|text| ["a", "b", "c"].map(|next| format!("{text}:{next}"))),
        );
    }
    texts.iter().map(|text| Permission::parse(text).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_allowed_is_what_owner_and_scope_both_allow(
        direct in prop::collection::vec(grant_text(), 0..4),
        role in prop::collection::vec(grant_text(), 0..3),
        scope in prop::option::of(prop::collection::vec(grant_text(), 0..4)),
    ) {
        let world = World::built(|builder| {
            builder.roles(RoleCatalog::standard_builder().role("host").grant("host", &role).build().unwrap())
        }).unwrap();
        let new = scope.iter().fold(named("one"), |new, scope| new.scope(scope.clone()));
        let issued = world.issue("ada", new);
        let parse = |texts: &[String]| texts.iter().map(|text| Grant::parse(text).unwrap()).collect::<Vec<_>>();
        world.put("ada", |ada| ada.with_role("host").with_grants(parse(&direct)));
        let verified = world.verify(&issued).unwrap();
        let effective = verified.effective_permissions();
        let owned = parse(&direct.iter().chain(&role).cloned().collect::<Vec<_>>());
        let narrowed = scope.as_deref().map(parse);
        for permission in universe() {
            let has = owned.iter().any(|grant| grant.covers(&permission));
            let within = narrowed.as_ref().is_none_or(|scope| scope.iter().any(|each| each.covers(&permission)));
            prop_assert_eq!(verified.allows(&permission), has && within, "{:?}", permission);
            prop_assert_eq!(verified.require(permission.as_str()).is_ok(), has && within);
            prop_assert_eq!(effective.allows(&permission), has && within, "{:?}", permission);
        }
    }
}

#[test]
fn an_inspection_describes_the_token_as_a_verification_does_and_records_no_use() {
    let world = World::new();
    let issued = world.issue("ann", named("one").scope(["datastores:read"]));
    let from = address("10.0.0.1");
    let credential = Credential::text(text(&issued)).from_address(from);
    let inspected = ready(world.service.inspect(credential)).unwrap();
    assert_eq!(world.service.usage().pending, 0);
    ready(world.service.flush()).unwrap();
    assert_eq!(world.stored(issued.token.id()).last_used, None);
    let verified = ready(world.service.verify(credential)).unwrap();
    assert_eq!(world.service.usage().pending, 1);
    assert_eq!(format!("{inspected:?}"), format!("{verified:?}"));
    assert_eq!((inspected.address(), inspected.verified_at()), (from, world.now()));

    // It moves no digest to another key either.
    let renewed = with_keys(&world, &[KEY_2, KEY_1]);
    ready(renewed.inspect(credential)).unwrap();
    ready(renewed.flush()).unwrap();
    assert_eq!(ready(world.store.tokens_per_key()).unwrap(), [(KeyId::new(1), 1)]);
}

#[test]
fn a_recheck_refuses_what_no_longer_works_and_sees_what_works_again() {
    let world = World::new();
    let issue = || {
        let name = format!("token {}", world.tokens().len());
        let issued = world.issue("ann", named(&name).expires_in_days(30).networks(["10.0.0.0/8"]));
        ready(
            world.service.verify(Credential::text(text(&issued)).from_address(address("10.0.0.1"))),
        )
        .unwrap()
    };
    let recheck = |verified: &Verified| ready(world.service.recheck(verified));
    let verified = issue();
    let token = verified.token().id();
    let again = recheck(&verified).unwrap();
    assert_eq!(
        (again.token().id(), again.address(), again.owner().id()),
        (token, verified.address(), &id("ann"))
    );

    ready(world.service.revoke(&session("ann"), token, Reason::Owner)).unwrap();
    let refusal = rejected(recheck(&verified));
    assert_eq!((refusal.reason, refusal.token), (RejectReason::Revoked, Some(token)));
    assert_eq!(verified.token().state(), TokenState::Active, "it tells how things were");
    ready(world.service.restore(&session("ann"), token)).unwrap();
    recheck(&verified).unwrap();

    world.put("ann", |ann| ann.with_enabled(false));
    assert_eq!(reason(recheck(&verified)), RejectReason::OwnerDisabled);
    world.directory.remove(&home(), &id("ann"));
    assert_eq!(reason(recheck(&verified)), RejectReason::OwnerUnknown);
    world.directory.put(Owner::new(id("ann"), OwnerKind::Service));
    assert_eq!(reason(recheck(&verified)), RejectReason::OwnerKind);
    world.put("ann", |ann| ann.with_tokens_valid_after(start() + MICRO));
    assert_eq!(reason(recheck(&verified)), RejectReason::BeforeValidAfter);
    world.put("ann", |ann| ann.with_role("member"));
    recheck(&verified).unwrap();

    world.force(token, |token| {
        token.networks = Some(patkit::token::Networks::parse(["192.0.2.0/24"]).unwrap());
    });
    assert_eq!(reason(recheck(&verified)), RejectReason::AddressNotAllowed);

    let deleted = issue();
    ready(world.service.revoke(&session("ann"), deleted.token().id(), Reason::Owner)).unwrap();
    ready(world.service.delete(&session("ann"), deleted.token().id())).unwrap();
    assert_eq!(reason(recheck(&deleted)), RejectReason::Unknown);

    let expiring = issue();
    world.clock.set(expiring.token().expires_at().unwrap() - MICRO);
    let late = recheck(&expiring).unwrap();
    assert_eq!(late.verified_at(), world.now());
    ready(world.service.flush()).unwrap();
    let used = world.stored(expiring.token().id()).last_used.unwrap();
    assert_eq!((used.at, used.address), (world.now(), verified.address()), "it counts as a use");
    world.advance(MICRO);
    assert_eq!(reason(recheck(&expiring)), RejectReason::Expired);
    assert_eq!(reason(recheck(&late)), RejectReason::Expired);
}

#[test]
fn a_token_of_another_realm_is_unknown_whatever_its_secret_and_state() {
    let world = World::new();
    let service = &world.service;
    let issued = world.issue_in(&beta(), "ann", named("one"));
    for text in [text(&issued).to_owned(), wrong(&issued)] {
        let refusal = rejected(ready(service.verify(Credential::text(&text).in_realm(&home()))));
        assert_eq!(
            (refusal.reason, refusal.token),
            (RejectReason::Unknown, Some(issued.token.id()))
        );
        let header = format!("Bearer {text}");
        assert_eq!(
            reason(ready(service.verify(Credential::headers(Some(&header)).in_realm(&home())))),
            RejectReason::Unknown
        );
    }
    assert_eq!(
        ready(service.verify(Credential::text(text(&issued)).in_realm(&beta()))).unwrap().realm(),
        &beta()
    );
    assert_eq!(ready(service.verify(Credential::text(text(&issued)))).unwrap().realm(), &beta());
    let header = header(&issued);
    ready(service.verify(Credential::headers(Some(&header)).in_realm(&beta()))).unwrap();
    assert_eq!(
        reason(ready(service.verify(Credential::headers(None::<&str>).in_realm(&beta())))),
        RejectReason::NoCredential
    );
    assert_eq!(
        reason(ready(
            service.verify(Credential::text(text(&issued)).in_realm(&Realm::new("gamma").unwrap()))
        )),
        RejectReason::Unknown
    );

    ready(service.revoke(&Actor::system_in(beta()), issued.token.id(), Reason::System)).unwrap();
    assert_eq!(
        reason(ready(service.verify(Credential::text(text(&issued)).in_realm(&home())))),
        RejectReason::Unknown
    );
    assert_eq!(
        reason(ready(service.verify(Credential::text(text(&issued)).in_realm(&beta())))),
        RejectReason::Revoked
    );
    ready(service.flush()).unwrap();
    assert!(world.events().iter().all(|event| event.realm == beta()));
}

#[test]
fn a_missing_key_of_another_realm_is_not_told() {
    let world = World::new();
    let issued = world.issue_in(&beta(), "ann", named("one"));
    let service = with_keys(&world, &[KEY_2]);
    assert_eq!(
        reason(ready(service.verify(Credential::text(text(&issued)).in_realm(&home())))),
        RejectReason::Unknown
    );
}

#[test]
fn a_request_has_one_header_or_is_refused() {
    let world = World::new();
    let issued = world.issue("ann", named("one"));
    let header = header(&issued);
    let good = header.as_bytes();
    let with = |more: &[u8]| [good, more].concat();
    let verify = |headers: &[&[u8]]| {
        ready(world.service.verify(Credential::headers(headers.iter().copied())))
    };
    verify(&[good]).unwrap();
    assert_eq!(reason(verify(&[])), RejectReason::NoCredential);
    assert_eq!(reason(verify(&[b"Basic YTpi"])), RejectReason::NoCredential);
    assert_eq!(reason(verify(&[b""])), RejectReason::NoCredential);
    // An unknown scheme counts as no credential, whatever its characters.
    assert_eq!(reason(verify(&[b"\xc3\xa9 Bearer"])), RejectReason::NoCredential);
    let refused: [&[&[u8]]; 9] = [
        &[good, good],
        &[good, b""],
        &[b"", good],
        &[b"Basic YTpi", good],
        &[good, b"Basic YTpi", good],
        &[&with(b"\xff")],
        &[&with("é".as_bytes())],
        &[&with(b"\0")],
        &[&with(b"\r\nX-Admin: 1")],
    ];
    for headers in refused {
        assert_eq!(
            reason(verify(headers)),
            RejectReason::InvalidRequest,
            "{:?}",
            headers[0].escape_ascii()
        );
    }
}

/// A store that counts its calls.
#[derive(Default)]
struct Counted {
    inner: MemoryStore,
    finds: AtomicUsize,
    others: AtomicUsize,
}

impl TokenStore for Counted {
    async fn find(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.finds.fetch_add(1, Ordering::Relaxed);
        self.inner.find(id).await
    }

    async fn find_current(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.find(id).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        self.others.fetch_add(1, Ordering::Relaxed);
        self.inner.list(query).await
    }

    async fn commit(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        self.others.fetch_add(1, Ordering::Relaxed);
        self.inner.commit(batch).await
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        self.others.fetch_add(1, Ordering::Relaxed);
        self.inner.touch(uses).await
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        self.others.fetch_add(1, Ordering::Relaxed);
        self.inner.list_ended(before, limit).await
    }
}

/// A directory that counts its lookups.
#[derive(Default)]
struct Asked {
    inner: MemoryDirectory,
    finds: AtomicUsize,
    down: AtomicBool,
}

impl Directory for Asked {
    async fn find(
        &self,
        realm: &Realm,
        id: &OwnerId,
    ) -> Result<Option<Arc<Owner>>, DirectoryError> {
        self.finds.fetch_add(1, Ordering::Relaxed);
        if self.down.load(Ordering::Relaxed) {
            return Err(DirectoryError::new("unplugged"));
        }
        self.inner.find(realm, id).await
    }
}

fn counted() -> (TokenService<Counted, Asked>, IssuedToken) {
    let directory = Asked::default();
    directory.inner.put(Owner::new(id("ann"), OwnerKind::Human).with_role("member"));
    let builder = TokenService::builder(Counted::default(), directory)
        .brand("acme")
        .keyring(keyring(&[KEY_1]));
    let service = builder.clock(ManualClock::at(start())).build().unwrap();
    let issued = ready(service.generate(&session("ann"), named("one"))).unwrap();
    service.store().finds.store(0, Ordering::Relaxed);
    service.store().others.store(0, Ordering::Relaxed);
    service.directory().finds.store(0, Ordering::Relaxed);
    (service, issued)
}

#[test]
fn hostile_headers_are_refused_by_their_text_alone() {
    use RejectReason::{InvalidRequest, Malformed, NoCredential};
    let (service, issued) = counted();
    let text = text(&issued);
    let other_brand = checked(&format!("acmf{}", &text[4..CHECKSUM]));
    let table: Vec<(&str, String, RejectReason)> = vec![
        ("empty", String::new(), NoCredential),
        ("spaces", "   ".into(), NoCredential),
        ("bare", text.into(), NoCredential),
        ("basic", format!("Basic {text}"), NoCredential),
        ("longer scheme", format!("BearerX {text}"), NoCredential),
        ("space before", format!(" Bearer {text}"), NoCredential),
        ("no credential", "Bearer".into(), InvalidRequest),
        ("no credential but spaces", "Bearer    ".into(), InvalidRequest),
        ("tab", format!("Bearer\t{text}"), InvalidRequest),
        ("tab after space", format!("Bearer \t{text}"), InvalidRequest),
        ("tab at the end", format!("Bearer {text}\t"), InvalidRequest),
        ("comma-joined", format!("Bearer {text}, Bearer {text}"), InvalidRequest),
        ("comma-joined, no space", format!("Bearer {text},Bearer {text}"), InvalidRequest),
        ("comma-joined with basic", format!("Bearer {text}, Basic YTpi"), InvalidRequest),
        ("two credentials", format!("Bearer {text} {text}"), InvalidRequest),
        ("auth-param", format!("Bearer token=\"{text}\""), InvalidRequest),
        ("quoted", format!("Bearer \"{text}\""), InvalidRequest),
        ("NUL", format!("Bearer {text}\0"), InvalidRequest),
        ("NUL inside", format!("Bearer {}\0{}", &text[..40], &text[41..]), InvalidRequest),
        ("CRLF", format!("Bearer {text}\r\nX-Admin: 1"), InvalidRequest),
        ("LF", format!("Bearer {text}\n"), InvalidRequest),
        ("escape", format!("Bearer \u{1b}[31m{text}"), InvalidRequest),
        ("non-ASCII", format!("Bearer {text}é"), InvalidRequest),
        (
            "non-ASCII inside, as long",
            format!("Bearer {}é{}", &text[..40], &text[42..]),
            InvalidRequest,
        ),
        ("full-width digits", format!("Bearer {}０{}", &text[..40], &text[43..]), InvalidRequest),
        ("bidi", format!("Bearer \u{202e}{text}"), InvalidRequest),
        ("64 KiB", format!("Bearer {}", "a".repeat(64 << 10)), InvalidRequest),
        ("1 MB", format!("Bearer {}", "a".repeat(1 << 20)), InvalidRequest),
        (
            "1 MB of spaces before it",
            format!("Bearer {}{text}", " ".repeat(1 << 20)),
            InvalidRequest,
        ),
        (
            "1 MB of spaces after it",
            format!("Bearer {text}{}", " ".repeat(1 << 20)),
            InvalidRequest,
        ),
        ("1 MB of another scheme", "a".repeat(1 << 20), NoCredential),
        ("1 MB of NUL", "\0".repeat(1 << 20), NoCredential),
        (
            "a JWT",
            "Bearer eyJhbGciOiJIUzI1NiJ9.e30.XmNK3GpH3Ys_7wsYBfq4C3M6goz71I7dTgUkuIa5lyQ".into(),
            Malformed,
        ),
        ("padded", format!("Bearer {text}="), Malformed),
        ("cut", format!("Bearer {}", &text[..80]), Malformed),
        ("longer", format!("Bearer {text}0"), Malformed),
        ("7 KiB", format!("Bearer {}", "a".repeat(7 << 10)), Malformed),
        ("upper case", format!("Bearer {}", text.to_ascii_uppercase()), Malformed),
        ("another brand", format!("Bearer {other_brand}"), Malformed),
        (
            "another kind",
            format!("Bearer {}", forged(text, |t| t.replace_range(5..8, "xyz"))),
            Malformed,
        ),
        (
            "no number",
            format!("Bearer {}", forged(text, |t| t.replace_range(31..42, "zzzzzzzzzzz"))),
            Malformed,
        ),
        (
            "no id",
            format!("Bearer {}", forged(text, |t| t.replace_range(ID, &"0".repeat(22)))),
            Malformed,
        ),
    ];
    for (name, header, expected) in table {
        let refusal = rejected(ready(service.verify(Credential::headers(Some(&header)))));
        assert_eq!((refusal.reason, refusal.token), (expected, None), "{name}");
    }
    for header in
        ["bearer", "BEARER", "BeArEr", "Bearer  "].map(|scheme| format!("{scheme} {text}  "))
    {
        assert_eq!(service.store().finds.swap(0, Ordering::Relaxed), 0, "the store was not asked");
        ready(service.verify(Credential::headers(Some(&header)))).unwrap();
        assert_eq!(service.store().finds.swap(0, Ordering::Relaxed), 1);
    }
    assert_eq!(
        service.store().others.load(Ordering::Relaxed),
        0,
        "nothing is written by a request"
    );
}

#[test]
fn a_long_header_costs_no_more_than_a_short_one() {
    let (service, issued) = counted();
    let long = format!("Bearer {}{}", text(&issued), " ".repeat(16 << 20));
    // Scanning every byte of each header would take many minutes.
    for _ in 0..100_000 {
        assert_eq!(
            reason(ready(service.verify(Credential::headers(Some(&long))))),
            RejectReason::InvalidRequest
        );
    }
}

#[test]
fn a_verification_asks_the_store_once_and_the_directory_only_about_what_is_proven() {
    let (service, issued) = counted();
    let asked = || {
        let store = service.store().finds.swap(0, Ordering::Relaxed);
        (store, service.directory().finds.swap(0, Ordering::Relaxed))
    };
    ready(service.verify(Credential::text(text(&issued)))).unwrap();
    assert_eq!(asked(), (1, 1));
    rejected(ready(service.verify(Credential::text(&wrong(&issued)))));
    assert_eq!(asked(), (1, 0));
    let unknown = forged(text(&issued), |text| text.replace_range(ID, &nowhere().to_string()));
    rejected(ready(service.verify(Credential::text(&unknown))));
    assert_eq!(asked(), (1, 0));
    service.directory().down.store(true, Ordering::Relaxed);
    let error = ready(service.verify(Credential::text(text(&issued)))).unwrap_err();
    assert!(matches!(error, VerifyError::Unavailable(Unavailable::Directory(_))));
    assert_eq!(
        reason(ready(service.verify(Credential::text(&wrong(&issued))))),
        RejectReason::WrongSecret
    );
    assert_eq!(service.usage().pending, 1, "the one success");
}

#[test]
fn a_token_expires_at_the_instant_itself() {
    let world = World::new();
    let issued = world.issue("ann", named("one").expires_in_days(30));
    let end = issued.token.expires_at().unwrap();
    for (now, expected) in [
        (end - MICRO, None),
        (end, Some(RejectReason::Expired)),
        (end + MICRO, Some(RejectReason::Expired)),
        (end - MICRO, None),
    ] {
        world.clock.set(now);
        assert_eq!(world.refusal(&issued), expected, "{now}");
    }
}

#[test]
fn a_clock_that_goes_back_or_far_ahead_breaks_nothing() {
    let world = World::new();
    let service = &world.service;
    let short = world.issue("ann", named("short").expires_in_days(1));
    let never = world.issue("ann", named("never").never_expires());
    let times = [
        start() - TimeDelta::hours(1),
        start() + TimeDelta::days(36_525),
        DateTime::<Utc>::UNIX_EPOCH,
        DateTime::<Utc>::MIN_UTC,
        DateTime::<Utc>::MAX_UTC,
        start(),
    ];
    for (number, now) in times.into_iter().enumerate() {
        world.clock.set(now);
        let expected = (now >= start() + TimeDelta::days(1)).then_some(RejectReason::Expired);
        assert_eq!(world.refusal(&short), expected, "{now}");
        let verified = world.verify(&never).unwrap();
        ready(service.recheck(&verified)).unwrap();
        // The token is either made or refused as out of range.
        if let Ok(new) = world.generate(&session("ann"), named(&format!("new {number}"))) {
            world.verify(&new).unwrap();
            ready(service.rotate(&session("ann"), new.token.id(), Duration::from_secs(60))).ok();
            ready(service.revoke(&session("ann"), new.token.id(), Reason::Owner)).ok();
        }
        ready(service.flush()).unwrap();
        ready(service.sweep_idle()).unwrap();
    }
    assert_eq!(world.refusal(&short), None, "right again when the clock is");
    world.advance(TimeDelta::days(1));
    assert_eq!(world.refusal(&short), Some(RejectReason::Expired));
}

#[test]
fn two_services_over_one_store_see_each_others_changes_at_once() {
    let world = World::new();
    let there = with_keys(&world, &[KEY_1]);
    let here = &world.service;
    let issued = ready(there.generate(&session("ann"), named("one"))).unwrap();
    let token = issued.token.id();
    let refusal = || world.refusal(&issued);
    assert_eq!(refusal(), None);
    for _ in 0..2 {
        ready(there.revoke(&session("ann"), token, Reason::Owner)).unwrap();
        assert_eq!(refusal(), Some(RejectReason::Revoked));
        ready(here.restore(&session("ann"), token)).unwrap();
        ready(there.verify(Credential::text(text(&issued)))).unwrap();
    }
    ready(there.rename(&session("ann"), token, "renamed")).unwrap();
    assert_eq!(world.verify(&issued).unwrap().token().name().as_str(), "renamed");
    let next = ready(here.rotate(&session("ann"), token, Duration::ZERO)).unwrap();
    assert_eq!(reason(ready(there.verify(Credential::text(text(&issued))))), RejectReason::Revoked);
    ready(there.verify(Credential::text(text(&next)))).unwrap();
    ready(there.revoke(&session("ann"), next.token.id(), Reason::Owner)).unwrap();
    ready(there.delete(&session("ann"), next.token.id())).unwrap();
    assert_eq!(world.refusal(&next), Some(RejectReason::Unknown));
}

#[test]
fn former_brands_work_and_their_kind_and_id_are_bound_as_well() {
    let world = World::new();
    let issued = world.issue("ann", named("one"));
    let renamed = builder(world.store.clone(), world.directory.clone(), world.clock.clone());
    let renamed = renamed.brand("other").former_brand("acme").build().unwrap();
    ready(renamed.verify(Credential::text(text(&issued)))).unwrap();
    assert_eq!(
        reason(ready(renamed.verify(Credential::text(&wrong(&issued))))),
        RejectReason::WrongSecret
    );
    let new = ready(renamed.generate(&session("ann"), named("two"))).unwrap();
    assert!(text(&new).starts_with("other_pat_"));
    assert_eq!(reason(verify(&world, text(&new))), RejectReason::Malformed);
}

/// Returns fixed bytes: 16 for the id, and 32 for the secret.
struct Chosen([u8; 16], [u8; 32]);

impl SecureRandom for Chosen {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), RandomError> {
        match buffer.len() {
            16 => buffer.copy_from_slice(&self.0),
            32 => buffer.copy_from_slice(&self.1),
            other => panic!("{other} bytes were asked for"),
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_token_that_is_generated_has_the_documented_text_and_verifies(
        id_bytes: [u8; 16], secret: [u8; 32], brand in "[a-z][a-z0-9]{1,15}", is_service: bool,
    ) {
        let world = World::built(|builder| builder.brand(&brand).random(Chosen(id_bytes, secret))).unwrap();
        let new = named("one");
        let new = if is_service { new.for_service(id("bot")) } else { new };
        let issued = world.generate(&session("ada"), new).unwrap();
        let kind = if is_service { "svc" } else { "pat" };
        let expected = print(&brand, kind, issued.token.id().to_bytes(), secret);
        prop_assert_eq!(text(&issued), &expected);
        prop_assert_eq!(&issued.token.id().to_bytes()[10..], &id_bytes[10..]);
        let format = world.service.format();
        prop_assert_eq!(format.text_len(), expected.len());
        let kind = if is_service { TokenKind::Service } else { TokenKind::Personal };
        prop_assert_eq!(format.check(&expected), Ok((kind, issued.token.id())));
        prop_assert_eq!(verify(&world, &expected).unwrap().token().id(), issued.token.id());
        let scanner = Regex::new(&format.scanner_expression()).unwrap();
        let dump = format!("x{expected}.");
        prop_assert_eq!(matches(format, &scanner, &dump), vec![&*expected]);
    }

    #[test]
    fn a_text_is_read_exactly_where_it_is_the_print_of_its_id(
        high: u64, low: u64, secret: [u8; 32], noise in "[0-9A-Za-z]{11}", place in 0_usize..6,
    ) {
        let format = TokenFormat::new(Brand::new("acme").unwrap(), &[]).unwrap();
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&((high & !0xF000) | 0x7000).to_be_bytes());
        bytes[8..].copy_from_slice(&((low >> 2) | 1 << 63).to_be_bytes());
        let id = TokenId::from_bytes(bytes).unwrap();
        let text = print("acme", "svc", bytes, secret);
        prop_assert_eq!(format.check(&text), Ok((TokenKind::Service, id)));
        // Random digits in place of a word are read only if they fit, and never as another token's
        // text.
        let start = 9 + 11 * place;
        let changed = forged(&text, |text| text.replace_range(start..start + 11, &noise));
        if let Ok((_, read)) = format.check(&changed) {
            prop_assert_eq!(&read.to_string(), &changed[ID]);
            prop_assert!(&noise[..] <= "LygHa16AHYF");
        } else {
            prop_assert!(place < 2 || &noise[..] > "LygHa16AHYF");
        }
    }

    #[test]
    fn any_text_is_refused_without_a_panic(text in any::<String>(), cut in 0_usize..81) {
        let format = TokenFormat::new(Brand::new("acme").unwrap(), &[]).unwrap();
        prop_assert!(format.check(&text).is_err());
        let good = print("acme", "pat", nowhere().to_bytes(), [7; 32]);
        let mixed = [[&good[..cut], &text].concat(), [&text, &good[cut + 1..]].concat()];
        prop_assert!(mixed.iter().all(|text| format.check(text).is_err()));
    }
}

#[test]
fn one_changed_character_is_refused_by_the_text_alone() {
    let (service, issued) = counted();
    let good = text(&issued);
    assert_eq!(good.len(), 81);
    let refused = |text: &str| {
        assert!(service.format().check(text).is_err(), "{text:?}");
        let refusal = rejected(ready(service.verify(Credential::text(text))));
        assert_eq!((refusal.reason, refusal.token), (RejectReason::Malformed, None), "{text:?}");
    };
    for place in 0..good.len() {
        let (before, after) = (&good[..place], &good[place + 1..]);
        for byte in 0..=u8::MAX {
            // All characters of one byte, and then two-byte characters with every possible second
            // byte.
            let character = char::from(byte);
            if character != char::from(good.as_bytes()[place]) {
                refused(&format!("{before}{character}{after}"));
            }
        }
        for more in ["", "\u{ff10}", "\u{0391}", "\u{1d7d8}", "00", "\r\n"] {
            refused(&format!("{before}{more}{after}"));
        }
        for more in DIGITS {
            refused(&format!("{}{}{}", before, char::from(*more), &good[place..]));
        }
        let mut swapped = good.as_bytes().to_vec();
        if place > 0 && swapped[place] != swapped[place - 1] {
            swapped.swap(place, place - 1);
            refused(str::from_utf8(&swapped).unwrap());
        }
    }
    for length in 0..good.len() {
        refused(&good[..length]);
        refused(&good[good.len() - length..]);
    }
    for whole in
        [format!("{good}{good}"), format!(" {good}"), format!("{good} "), format!("{good}\n")]
    {
        refused(&whole);
    }
    assert_eq!(service.store().finds.load(Ordering::Relaxed), 0, "the store was not asked");
    ready(service.verify(Credential::text(good))).unwrap();
}

/// Returns the tokens that a scanner finds in a text by the format's `expression` and the checksum.
///
/// The scan follows the documentation of the expression.
fn matches<'a>(format: &TokenFormat, expression: &Regex, text: &'a str) -> Vec<&'a str> {
    let (mut found, mut from) = (Vec::new(), 0);
    while let Some(hit) = expression.find_at(text, from) {
        let is_token = format.check(hit.as_str()).is_ok();
        from = if is_token { hit.end() } else { hit.start() + 1 };
        found.extend(is_token.then_some(hit.as_str()));
    }
    found
}

#[test]
fn the_expression_for_scanners_finds_tokens_in_a_dump_and_nothing_else() {
    let world = World::built(|builder| builder.former_brand("old")).unwrap();
    let personal = world.issue("ann", named("one"));
    let service = world.issue("bot", named("two"));
    let (one, two) = (text(&personal), text(&service));
    let old = print("old", "pat", nowhere().to_bytes(), [3; 32]);
    let format = world.service.format();
    let expression = format.scanner_expression();
    assert_eq!(expression, r"(?:acme_pat_|acme_svc_|old_pat_|old_svc_)[0-9A-Za-z]{72}");
    let scanner = Regex::new(&expression).unwrap();
    let dump = format!(
        "curl -H 'Authorization: Bearer {one}' https://x/?token={two}&a=1\n\
         {{\"token\":\"{old}\"}}\nTOKEN={one}\n({two})\n\u{e9}{one}\u{e9}\n\
         x{one} {one}x _{one} {one}_ {} {}",
        &one[..80],
        one.to_ascii_uppercase()
    );
    assert_eq!(
        matches(format, &scanner, &dump),
        [one, two, &old, one, two, one, one, one, one, one]
    );
    assert!(matches(format, &scanner, "").is_empty());
    // A double click selects the whole token.
    assert!(one.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'));
}

#[test]
fn the_expression_for_scanners_finds_a_token_whatever_stands_around_it() {
    // One brand is the end of another.
    let brands = ["acme", "me", "e0", "old"].map(|brand| Brand::new(brand).unwrap());
    let format = TokenFormat::new(brands[0].clone(), &brands[1..]).unwrap();
    let scanner = Regex::new(&format.scanner_expression()).unwrap();
    let ascii: Vec<String> = (0..=127_u8).map(|byte| char::from(byte).to_string()).collect();
    let escapes = [
        "\\t",
        "\\n",
        "\\r\\n",
        "\\u003d",
        "\\u{3D}",
        "\\x3d",
        "\\075",
        "%0A",
        "%3D",
        "=3D",
        "=0A",
        "=\n",
        "&#61;",
        "&quot;",
        "\\\\t",
        "_",
        "__",
        "bearer_",
        "Bearer",
        "TOKEN_",
        "\u{e9}",
        "\u{130}",
        "\u{10348}",
        "ac",
        "m",
        "acme_",
        "acme_pat_",
        "acme_pat_0",
        "pat_",
        "_pat_",
        "acme_svc_0123456789",
    ];
    for brand in ["acme", "me", "e0", "old"] {
        for kind in ["pat", "svc"] {
            let token = &*print(brand, kind, nowhere().to_bytes(), [5; 32]);
            for around in ascii.iter().map(String::as_str).chain(escapes) {
                for text in [
                    format!("{around}{token}"),
                    format!("{around}{token}{around}"),
                    format!("{{\"a\":\"b{around}{token}\"}}"),
                ] {
                    assert_eq!(matches(&format, &scanner, &text), [token], "{text:?}");
                }
                let glued = format!("{around}{token}{token}{around}{token}");
                assert_eq!(matches(&format, &scanner, &glued), [token; 3], "{glued:?}");
            }
            // The start of a token that was cut off covers the brand of the next token.
            for cut in 1..token.len() {
                let glued = format!("{}{token}{token}", &token[..cut]);
                assert_eq!(matches(&format, &scanner, &glued), [token; 2], "{glued:?}");
                assert!(
                    matches(&format, &scanner, &token[..cut]).is_empty()
                        && matches(&format, &scanner, &token[cut..]).is_empty()
                );
            }
        }
    }
    // The same form under a brand that only ends like ours.
    let foreign = print("home", "pat", nowhere().to_bytes(), [5; 32]);
    assert!(matches(&format, &scanner, &foreign).is_empty());
    assert!(scanner.is_match(&foreign), "the checksum told it, not a boundary");
}

#[test]
fn a_verified_tells_what_was_verified() {
    let world = World::new();
    let new = named("nightly").scope(["datastores:*"]).description("for the backup");
    let issued = world.issue("ann", new);
    world.advance(TimeDelta::seconds(5));
    let verified = ready(
        world.service.verify(Credential::text(text(&issued)).from_address(address("192.0.2.1"))),
    )
    .unwrap();
    assert_eq!(verified.token().id(), issued.token.id());
    assert_eq!(verified.token().name().as_str(), "nightly");
    assert_eq!((verified.owner().id(), verified.owner().kind()), (&id("ann"), OwnerKind::Human));
    assert_eq!(verified.token().owner_id(), verified.owner().id());
    assert_eq!((verified.realm(), verified.address()), (&home(), address("192.0.2.1")));
    assert_eq!(verified.verified_at(), start() + TimeDelta::seconds(5));
    assert_eq!(verified.token().scope(), &Scope::only(["datastores:*"]).unwrap());
    let effective = verified.effective_permissions();
    assert_eq!(effective.iter().map(Grant::as_str).collect::<Vec<_>>(), ["datastores:read"]);
}
