//! Rows and records: a row is read as the record that it was written from, and an incomplete fact
//! is never read as another one. No database constraints protect [`read_token`] here.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use chrono::{DateTime, TimeDelta, Utc};
use patkit::owner::{OwnerId, OwnerKind, Realm};
use patkit::store::record::{TOKEN_COLUMNS, Value, read_token, token_values};
use patkit::token::{
    ActorRef, Authority, Description, Facts, ForeignDigest, KeyId, KeyedDigest, LastUse, Lifetime,
    NameKey, Networks, Reason, Revocation, Seal, StoredDigest, Succession, TokenKind, TokenName,
};
use patkit::{Scope, Token, TokenId};
use std::collections::BTreeSet;

fn id(byte: u8) -> TokenId {
    let mut bytes = [byte; 16];
    (bytes[6], bytes[8]) = (0x70, 0x80);
    TokenId::from_bytes(bytes).unwrap()
}

fn owner(text: &str) -> OwnerId {
    OwnerId::new(text).unwrap()
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
}

/// Returns a token with every optional fact except a successor.
fn full() -> Token {
    let name = TokenName::new("ci").unwrap();
    Token {
        digest: StoredDigest::Keyed(KeyedDigest::new(KeyId::new(1), [7; 32])),
        owner: owner("ann"),
        realm: Realm::new("home").unwrap(),
        networks: Some(Networks::parse(["10.0.0.0/8", "::1"]).unwrap()),
        kind: TokenKind::Personal,
        owner_kind: OwnerKind::Human,
        facts: Facts {
            expires_at: Some(at(900)),
            revocation: Some(Box::new(Revocation {
                at: at(500),
                by: ActorRef::Token { owner: owner("mel"), id: id(2) },
                authority: Authority::Admin,
                reason: Reason::Admin,
            })),
            succession: None,
        },
        last_used: Some(LastUse::new(at(400), Some([192, 0, 2, 1].into()))),
        created_at: at(100),
        id: id(1),
        scope: Scope::only(["a:b", "c:*"]).unwrap(),
        name_key: Some(name.key()),
        name,
        description: Description::new("for tests").unwrap(),
        created_by: ActorRef::Token { owner: owner("ann"), id: id(3) },
        restored_by: Some(id(4)),
        predecessor: Some(id(5)),
        ancestor: Some(id(7)),
        lifetime: Lifetime::Days(30),
        idle_from: at(200),
        reuse_reported_at: Some(at(300)),
        notified_days: Some(7),
        seal: Some(Seal::new(KeyedDigest::new(KeyId::new(2), [8; 32]))),
        version: 9,
    }
}

/// Returns one token with a successor and a foreign digest, and tokens with each kind of actor.
fn records() -> Vec<Token> {
    let mut succeeded = full();
    succeeded.facts.succession = Some(Succession { successor: id(6), at: at(600), until: at(700) });
    succeeded.name_key = None;
    succeeded.digest = StoredDigest::Foreign(ForeignDigest::new("sha256", &[1, 2, 3]));
    succeeded.scope = Scope::inherit();
    let mut records = vec![full(), succeeded];
    for actor in
        [ActorRef::System, ActorRef::Owner(owner("ann")), ActorRef::Erased, ActorRef::Unproven]
    {
        let mut token = full();
        token.created_by = actor.clone();
        token.facts.revocation.as_mut().unwrap().by = actor;
        token.last_used = Some(LastUse::new(at(400), None));
        records.push(token);
    }
    records.push(Token {
        facts: Facts::default(),
        networks: None,
        last_used: None,
        description: None,
        restored_by: None,
        predecessor: None,
        ancestor: None,
        reuse_reported_at: None,
        notified_days: None,
        seal: None,
        ..full()
    });
    records
}

fn is_null(value: &Value) -> bool {
    matches!(value, Value::Int(None) | Value::Text(None) | Value::Bytes(None))
}

fn nulled(value: &Value) -> Value {
    match value {
        Value::Int(_) => Value::Int(None),
        Value::Text(_) => Value::Text(None),
        Value::Bytes(_) => Value::Bytes(None),
    }
}

/// Returns the record without these columns.
///
/// Returns `None` unless the columns are whole facts that a record may lack.
fn without(token: &Token, columns: &BTreeSet<&'static str>) -> Option<Token> {
    let mut token = token.clone();
    let mut rest = columns.clone();
    let mut take = |group: &[&'static str]| {
        let is_whole = group.iter().all(|column| rest.contains(column));
        if is_whole {
            rest.retain(|column| !group.contains(column));
        }
        is_whole
    };
    if take(&["description"]) {
        token.description = None;
    }
    if take(&["expires_at"]) {
        token.facts.expires_at = None;
    }
    if take(&["predecessor"]) {
        token.predecessor = None;
    }
    if take(&["ancestor"]) {
        token.ancestor = None;
    }
    if take(&["restored_by_token"]) {
        token.restored_by = None;
    }
    if take(&["networks"]) {
        token.networks = None;
    }
    if take(&["reuse_reported_at"]) {
        token.reuse_reported_at = None;
    }
    if take(&["notified_days"]) {
        token.notified_days = None;
    }
    if take(&["seal_key", "seal"]) {
        token.seal = None;
    }
    if take(&["last_used_at", "last_used_address"])
        || (token.last_used.is_some_and(|used| used.address.is_none()) && take(&["last_used_at"]))
    {
        token.last_used = None;
    } else if take(&["last_used_address"]) {
        token.last_used = token.last_used.map(|used| LastUse::new(used.at, None));
    }
    rest.is_empty().then_some(token)
}

#[test]
fn a_row_is_read_as_it_was_written() {
    for token in records() {
        let values = token_values(&token);
        assert_eq!(values.len(), TOKEN_COLUMNS.len());
        assert_eq!(read_token(&*values, "tokens").unwrap(), token);
    }
}

#[test]
fn half_a_fact_is_corruption_that_names_its_column() {
    let mut corrupt = 0;
    for token in records() {
        let values = token_values(&token);
        for first in 0..values.len() {
            for second in first..values.len() {
                if is_null(&values[first]) || is_null(&values[second]) {
                    continue;
                }
                let mut row = values.clone();
                row[first] = nulled(&row[first]);
                row[second] = nulled(&row[second]);
                let columns = BTreeSet::from([TOKEN_COLUMNS[first], TOKEN_COLUMNS[second]]);
                match (read_token(&*row, "tokens"), without(&token, &columns)) {
                    (Ok(read), Some(expected)) => assert_eq!(read, expected, "{columns:?}"),
                    (Err(error), None) => {
                        corrupt += 1;
                        assert_eq!(error.table, "tokens");
                        let row = if columns.contains("id") {
                            "?".to_owned()
                        } else {
                            token.id.to_string()
                        };
                        assert_eq!(error.row, row, "{columns:?}");
                        // If both digests are missing, the error names the first one.
                        let names = columns.contains(&*error.column)
                            || (columns.contains("foreign_digest") && error.column == "digest");
                        assert!(names, "{columns:?}: {}", error.column);
                    }
                    (read, expected) => {
                        panic!("{columns:?} was read as {read:?}, not {expected:?}")
                    }
                }
            }
        }
    }
    assert!(corrupt > 1_000, "{corrupt}");
}

#[test]
fn what_contradicts_another_column_is_corruption() {
    let place = |column: &str| TOKEN_COLUMNS.iter().position(|each| *each == column).unwrap();
    let [personal, succeeded, by_system, ..] = <[Token; 7]>::try_from(records()).unwrap();
    let text = |text: &str| Value::Text(Some(text.to_owned()));
    let bytes = |length: usize| Value::Bytes(Some(vec![7; length]));
    let table = [
        // A scope that both inherits and lists.
        (&personal, "scope", text("inherit"), "scope_grants"),
        (&succeeded, "scope_grants", text("a:b"), "scope_grants"),
        (&succeeded, "scope", text("only"), "scope_grants"),
        (&personal, "scope", text("Inherit"), "scope"),
        (&personal, "scope", text(""), "scope"),
        // Two digests, or one and a half.
        (&personal, "foreign_scheme", text("sha256"), "foreign_scheme"),
        (&personal, "foreign_digest", bytes(3), "foreign_digest"),
        (&succeeded, "digest_key", Value::Int(Some(1)), "digest"),
        (&succeeded, "digest", bytes(32), "digest_key"),
        // A name key that no lookup finds, and one that blocks the successor's key.
        (&personal, "name_key", bytes(16), "name_key"),
        (&personal, "name_key", bytes(33), "name_key"),
        (&succeeded, "name_key", bytes(32), "name_key"),
        (&by_system, "created_by_owner", text("ann"), "created_by_owner"),
        (
            &by_system,
            "created_by_token",
            Value::Bytes(Some(personal.id.to_bytes().to_vec())),
            "created_by_token",
        ),
        (&by_system, "revoked_by", text("owner"), "revoked_by_owner"),
        (&by_system, "revoked_by", text("somebody"), "revoked_by"),
        (&personal, "revoked_by", text("owner"), "revoked_by_token"),
        (&personal, "digest", bytes(31), "digest"),
        (&personal, "digest_key", Value::Int(Some(65_536)), "digest_key"),
        (&personal, "seal_key", Value::Int(Some(-1)), "seal_key"),
        (&personal, "version", Value::Int(Some(-1)), "version"),
        (&personal, "networks", text(""), "networks"),
        (&personal, "lifetime", text("030"), "lifetime"),
        (&personal, "created_at", Value::Int(Some(i64::MAX)), "created_at"),
    ];
    for (token, column, value, named) in table {
        let mut row = token_values(token);
        row[place(column)] = value;
        let error = read_token(&*row, "tokens").unwrap_err();
        assert_eq!((&*error.column, &*error.row), (named, &*token.id.to_string()), "{column}");
    }
}

/// Names, descriptions and keys that this version does not write.
#[test]
fn a_text_for_display_never_makes_a_record_corrupt() {
    for text in [
        "",
        "  ",
        "\u{202E}x",
        "\u{378}",
        "e\u{301}",
        "a\n\u{2028}b",
        "\u{2800}",
        &"x".repeat(5_000),
    ] {
        for token in records() {
            let name_key = token.name_key.map(|_| NameKey::from_bytes([9; 32]));
            let description = token.description.is_some().then(|| Description::stored(text));
            let token = Token { name: TokenName::stored(text), name_key, description, ..token };
            assert_eq!(read_token(&*token_values(&token), "tokens").unwrap(), token, "{text:?}");
        }
    }
}

/// Digests are compared only through [`KeyedDigest`], [`Seal`] and [`ForeignDigest`], in constant
/// time.
///
/// The bytes themselves are compared nowhere.
#[test]
fn no_source_compares_the_bytes_of_a_digest() {
    let mut folders = vec![std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../src")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files += 1;
                let source = std::fs::read_to_string(&path).unwrap();
                let source = source.split("#[cfg(test)]").next().unwrap();
                for (number, line) in source.lines().enumerate() {
                    let compares =
                        line.contains("==") || line.contains("!=") || line.contains("assert_eq!");
                    let reads = [".mac()", ".mac ", "mac ==", "mac !=", ".value =="]
                        .iter()
                        .any(|text| line.contains(text));
                    assert!(!(compares && reads), "{}:{}: {line}", path.display(), number + 1);
                }
            }
        }
    }
    assert!(files > 40, "{files}");
}

/// The comparisons of a token's digest or of a key.
///
/// A change to one of them must be repeated here, and must still compare in constant time.
#[test]
fn digests_are_compared_in_constant_time_where_they_are_compared() {
    let comparisons = [
        ("token.rs", "self.scheme == other.scheme && bool::from(self.value.ct_eq(&other.value)) }"),
        (
            "token/digest.rs",
            "self.key == other.key && bool::from(same(self.words(), other.words())) }",
        ),
        (
            "token/digest.rs",
            "pub(crate) fn same(one: [u64; 4], other: [u64; 4]) -> Choice { let differences = \
             one.iter().zip(other).fold(0, |differences, (one, other)| differences | (one ^ other)); \
             differences.ct_eq(&0) }",
        ),
        (
            "service/verify/proof.rs",
            "let is_same = same(computed.words(), stored.map_or([0; 4], |(_, digest)| digest)); \
             Ok(bool::from(is_same) && stored.is_some()) }",
        ),
        ("token/keyring.rs", "if bool::from(other.material.as_slice().ct_eq(&key.material)) {"),
    ];
    for (file, comparison) in comparisons {
        let path = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../src").join(file);
        let source = std::fs::read_to_string(path).unwrap();
        let source = source.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(source.matches(comparison).count(), 1, "{file}: {comparison}");
    }
}
