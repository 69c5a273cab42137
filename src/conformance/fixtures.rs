//! Records, changes and lists from which the checks are built.

use super::bench::Seen;
use crate::owner::{OwnerId, OwnerKind, Realm};
use crate::permission::Scope;
use crate::store::{Change, ListBy, ListQuery, Touch};
use crate::token::{
    ActorRef, Authority, Description, Facts, ForeignDigest, KeyId, KeyedDigest, LastUse, Lifetime,
    Networks, Reason, Revocation, Seal, StoredDigest, Succession, Token, TokenId, TokenKind,
    TokenName,
};
use chrono::{DateTime, Utc};
use std::borrow::Borrow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Returns the instant this many microseconds after 2027-01-15 08:00:00 UTC.
pub(super) fn at(micros: i64) -> Result<DateTime<Utc>, Seen> {
    DateTime::from_timestamp_micros(1_800_000_000_000_000_i64.saturating_add(micros))
        .ok_or_else(|| Seen("the suite is broken: an instant is out of range".into()))
}

/// Returns an id. A greater number makes a newer id. Ten ids share a millisecond, so that both
/// parts of an id count.
pub(super) fn id(number: u64) -> Result<TokenId, Seen> {
    let millis = 1_800_000_000_000_u64.saturating_add(number.checked_div(10).unwrap_or_default());
    let place = number.checked_rem(10).unwrap_or_default();
    let spread = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 2;
    // Even places differ in the twelve bits after the version, and pairs only in the low word.
    let (high, low) = (place >> 1, (place & 1) << 61);
    let words =
        [(millis << 16) | 0x7000 | (high << 4), (1 << 63) | low | (spread & ((1 << 61) - 1))];
    TokenId::from_words(words)
        .ok_or_else(|| Seen("the suite is broken: an id is out of range".into()))
}

/// Returns a plain record: active, personal, without an expiry, of the owner `owner`, with a unique
/// name.
pub(super) fn record(number: u64) -> Result<Token, Seen> {
    let made = at(i64::try_from(number).unwrap_or_default())?;
    let owner = OwnerId::new("owner")?;
    let [byte, ..] = number.to_le_bytes();
    let name = TokenName::new(&format!("token {number}"))?;
    Ok(Token {
        id: id(number)?,
        realm: Realm::default(),
        kind: TokenKind::Personal,
        owner: owner.clone(),
        owner_kind: OwnerKind::Human,
        name_key: Some(name.key()),
        name,
        description: None,
        scope: Scope::inherit(),
        networks: None,
        digest: StoredDigest::Keyed(KeyedDigest::new(KeyId::new(1), [byte; 32])),
        created_at: made,
        created_by: ActorRef::Owner(owner),
        restored_by: None,
        predecessor: None,
        ancestor: None,
        lifetime: Lifetime::Default,
        facts: Facts::default(),
        idle_from: made,
        reuse_reported_at: None,
        notified_days: None,
        last_used: None,
        seal: None,
        version: 1,
    })
}

pub(super) fn records(numbers: impl IntoIterator<Item = u64>) -> Result<Vec<Token>, Seen> {
    numbers.into_iter().map(record).collect()
}

pub(super) fn revocation(reason: Reason, micros: i64) -> Result<Box<Revocation>, Seen> {
    Ok(Box::new(Revocation {
        at: at(micros)?,
        by: ActorRef::System,
        authority: Authority::System,
        reason,
    }))
}

fn succession(successor: u64) -> Result<Option<Succession>, Seen> {
    Ok(Some(Succession { successor: id(successor)?, at: at(0)?, until: at(1)? }))
}

/// Gives the token a successor, which takes over its name.
pub(super) fn retire(token: &mut Token, successor: u64) -> Result<(), Seen> {
    token.facts.succession = succession(successor)?;
    token.name_key = None;
    Ok(())
}

pub(super) fn named(mut token: Token, name: &str) -> Result<Token, Seen> {
    token.rename(TokenName::new(name)?);
    Ok(token)
}

/// Returns the token under the name of another token.
pub(super) fn namesake(mut token: Token, other: &Token) -> Token {
    token.rename(other.name.clone());
    token
}

pub(super) fn insert(token: &Token) -> Change {
    Change::Insert(Arc::new(token.clone()))
}

pub(super) fn update(token: &Token) -> Change {
    Change::Update(Arc::new(token.clone()))
}

pub(super) fn remove(token: &Token) -> Change {
    Change::Remove { id: token.id, version: token.version }
}

/// Returns the record after a change, with the next version.
pub(super) fn changed(token: &Token, change: impl FnOnce(&mut Token)) -> Token {
    let mut after = token.clone();
    change(&mut after);
    after.version = token.version.saturating_add(1);
    after
}

pub(super) fn touch(token: &Token, micros: i64, address: Option<IpAddr>) -> Result<Touch, Seen> {
    Ok(Touch::new(token.id, LastUse::new(at(micros)?, address)))
}

pub(super) fn v4(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))
}

pub(super) fn v6() -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xffff))
}

pub(super) fn by_owner(owner: &str, kind: Option<TokenKind>) -> Result<ListQuery, Seen> {
    Ok(ListQuery::new(ListBy::Owner { realm: Realm::default(), owner: OwnerId::new(owner)?, kind }))
}

pub(super) fn ids_of(tokens: &[impl Borrow<Token>]) -> Vec<TokenId> {
    tokens.iter().map(|token| token.borrow().id).collect()
}

/// Returns the ids of these numbers, newest first.
pub(super) fn ids(numbers: impl IntoIterator<Item = u64>) -> Result<Vec<TokenId>, Seen> {
    let mut ids = numbers.into_iter().map(id).collect::<Result<Vec<_>, _>>()?;
    ids.sort_unstable();
    ids.reverse();
    Ok(ids)
}

/// Returns records that together have every possible value of each field: each variant, each
/// absence, and the bounds of the allowed range.
pub(super) fn every_kind_of_record() -> Result<Vec<Token>, Seen> {
    // 255 bytes, most of them in multi-byte characters.
    let long = format!("{}x", "é".repeat(127));
    let wide = "𝔄".repeat(255);
    let text = format!("first line\nsecond line\n\n{}", "é\"'\\%_;--".repeat(40));
    let actors = [
        ActorRef::System,
        ActorRef::Owner(OwnerId::new(&long)?),
        ActorRef::Token { owner: OwnerId::new("o'wner\\ \"%_")?, id: id(1)? },
        ActorRef::Erased,
    ];
    let scopes = [Scope::inherit(), Scope::only([""; 0])?, Scope::only(["a:b", "scim:*", "*"])?];
    let networks = [
        None,
        Some(Networks::parse(["10.0.0.0/8", "192.0.2.1/32"])?),
        Some(Networks::parse(["2001:db8::/32", "::/0", "0.0.0.0/0", "::1"])?),
    ];
    let lifetimes = [
        Lifetime::Default,
        Lifetime::Days(1),
        Lifetime::Days(u32::MAX),
        Lifetime::Seconds(60),
        Lifetime::Seconds(u64::MAX),
        Lifetime::Never,
    ];
    let digests = [
        StoredDigest::Keyed(KeyedDigest::new(KeyId::new(0), [0; 32])),
        StoredDigest::Keyed(KeyedDigest::new(KeyId::new(u16::MAX), [0xff; 32])),
        StoredDigest::Foreign(ForeignDigest::new("sha256", &[0, 1, 0xff])),
        StoredDigest::Foreign(ForeignDigest::new("", &[])),
    ];
    let (first, last) = (extreme("0001-01-01T00:00:00Z")?, extreme("9999-12-31T23:59:59.999999Z")?);
    let instants = [first, at(-1)?, at(0)?, at(1)?, last];
    let mut tokens = Vec::new();
    // Each reason is used twice, so that the values of the lists, which have different lengths,
    // meet in many combinations.
    for (number, reason) in Reason::ALL.into_iter().chain(Reason::ALL).enumerate() {
        let mut token = record(u64::try_from(number)?.saturating_add(100))?;
        let has = |bit: usize| number & bit == bit;
        let instant = pick(&instants, number)?;
        if has(1) {
            token.kind = TokenKind::Service;
            token.owner_kind = OwnerKind::Service;
        } else {
            token.description = Description::new(&text)?;
            token.notified_days = Some(pick(&[0, u16::MAX, 30], number)?);
            token.seal = Some(Seal::new(KeyedDigest::new(KeyId::new(3), [7; 32])));
            token.predecessor = Some(id(999)?);
            token.restored_by = Some(id(998)?);
            token.ancestor = Some(id(997)?);
        }
        if has(2) {
            token.realm = Realm::new(&long)?;
            token.owner = OwnerId::new(&long)?;
            token.reuse_reported_at = Some(instant);
        }
        if has(4) {
            token.rename(TokenName::new(&wide)?);
            token.owner = OwnerId::new(&format!("own'er {number}"))?;
            retire(&mut token, 1)?;
        }
        if has(8) {
            let address = pick(&[None, Some(v4(1)), Some(v6())], number)?;
            token.last_used = Some(LastUse::new(instant, address));
        }
        token.scope = pick(&scopes, number)?;
        token.networks = pick(&networks, number)?;
        token.digest = pick(&digests, number)?;
        token.created_at = instant;
        token.created_by = pick(&actors, number)?;
        token.lifetime = pick(&lifetimes, number)?;
        token.idle_from = pick(&[last, first, at(999_999)?], number)?;
        // The first record has neither an expiry nor a revocation.
        if number > 0 {
            token.facts.expires_at = (!has(1)).then_some(instant);
            token.facts.revocation = Some(Box::new(Revocation {
                at: instant,
                by: pick(&actors, number)?,
                authority: pick(&[Authority::Owner, Authority::Admin, Authority::System], number)?,
                reason,
            }));
        }
        tokens.push(token);
    }
    Ok(tokens)
}

/// Returns the item at this place of the list, which repeats without end.
fn pick<T: Clone>(list: &[T], place: usize) -> Result<T, Seen> {
    let found = list.iter().cycle().nth(place);
    found.cloned().ok_or_else(|| Seen("the suite is broken: a list is empty".into()))
}

pub(super) fn extreme(text: &str) -> Result<DateTime<Utc>, Seen> {
    let instant = DateTime::parse_from_rfc3339(text);
    let instant = instant.map_err(|error| Seen(format!("the suite is broken: {text}: {error}")))?;
    Ok(instant.to_utc())
}
