//! The mapping of records and events to rows: the columns, and how to read them back.
//!
//! The SQL stores use it, and so can any other store that keeps integers, texts and bytes. Write
//! with [`token_values`] and read with [`read_token`]; every value must be returned unchanged.
//!
//! The SQL files of this crate (`src/store/migrations`) document the columns. The values contain a
//! token's digest and its seal, so keep them in the store only.

use super::CorruptRecord;
use crate::audit::{AuditAction, AuditEvent, EventId};
use crate::clock::micros;
use crate::owner::{OwnerId, OwnerKind, Realm};
use crate::permission::{Grant, Scope};
use crate::token::{
    ActorRef, Authority, Description, Facts, ForeignDigest, KeyId, KeyedDigest, LastUse, Lifetime,
    NameKey, Networks, Reason, Revocation, Seal, StoredDigest, Succession, Token, TokenId,
    TokenKind, TokenName,
};
use chrono::{DateTime, Utc};
use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A value in a row. A null value has a type too.
#[derive(Clone, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "a store must be able to keep every value")]
pub enum Value {
    /// A 64-bit integer.
    Int(Option<i64>),
    /// A text.
    Text(Option<String>),
    /// Bytes.
    Bytes(Option<Vec<u8>>),
}

/// Shows the type and not the value, which may be a digest.
impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Int(_) => "Int(…)",
            Self::Text(_) => "Text(…)",
            Self::Bytes(_) => "Bytes(…)",
        })
    }
}

/// A row to read cell by cell.
///
/// A method returns `None` if the cell is missing or has a value of another type. Texts and bytes
/// are borrowed, because most of them are parsed into something else.
pub trait Row {
    /// Returns the integer in a cell.
    fn int(&self, index: usize) -> Option<Option<i64>>;
    /// Returns the text in a cell.
    fn text(&self, index: usize) -> Option<Option<&str>>;
    /// Returns the bytes in a cell.
    fn bytes(&self, index: usize) -> Option<Option<&[u8]>>;
}

/// A null value reads as a null of every type, because not every driver knows the type of a null.
impl Row for [Value] {
    fn int(&self, index: usize) -> Option<Option<i64>> {
        match self.get(index)? {
            Value::Int(value) => Some(*value),
            value => value.is_null().then_some(None),
        }
    }

    fn text(&self, index: usize) -> Option<Option<&str>> {
        match self.get(index)? {
            Value::Text(value) => Some(value.as_deref()),
            value => value.is_null().then_some(None),
        }
    }

    fn bytes(&self, index: usize) -> Option<Option<&[u8]>> {
        match self.get(index)? {
            Value::Bytes(value) => Some(value.as_deref()),
            value => value.is_null().then_some(None),
        }
    }
}

impl Row for Vec<Value> {
    fn int(&self, index: usize) -> Option<Option<i64>> {
        self.as_slice().int(index)
    }

    fn text(&self, index: usize) -> Option<Option<&str>> {
        self.as_slice().text(index)
    }

    fn bytes(&self, index: usize) -> Option<Option<&[u8]>> {
        self.as_slice().bytes(index)
    }
}

impl Value {
    fn is_null(&self) -> bool {
        matches!(self, Self::Int(None) | Self::Text(None) | Self::Bytes(None))
    }

    pub(super) fn text(value: &(impl ToString + ?Sized)) -> Self {
        Self::Text(Some(value.to_string()))
    }

    pub(super) fn id(id: TokenId) -> Self {
        Self::Bytes(Some(id.to_bytes().to_vec()))
    }

    pub(super) fn time(at: DateTime<Utc>) -> Self {
        Self::Int(Some(micros(at)))
    }

    /// Creates an integer from a count, saturating at the maximum of a column.
    pub(super) fn count(value: impl TryInto<i64>) -> Self {
        Self::Int(Some(value.try_into().unwrap_or(i64::MAX)))
    }
}

/// The columns of a token, in the order of writing and reading.
///
/// This crate does not produce values of `foreign_scheme`, `foreign_digest`, `notified_days`,
/// `seal_key` and `seal` yet. A store keeps such values unchanged.
pub const TOKEN_COLUMNS: [&str; 41] = [
    "id",
    "realm",
    "owner",
    "owner_kind",
    "kind",
    "name",
    "name_key",
    "description",
    "created_at",
    "created_by",
    "created_by_owner",
    "created_by_token",
    "expires_at",
    "revoked_at",
    "revoked_reason",
    "revoked_by",
    "revoked_by_owner",
    "revoked_by_token",
    "revoked_authority",
    "successor",
    "succeeded_at",
    "succeeded_until",
    "predecessor",
    "restored_by_token",
    "ancestor",
    "lifetime",
    "scope",
    "scope_grants",
    "networks",
    "digest_key",
    "digest",
    "foreign_scheme",
    "foreign_digest",
    "idle_from",
    "reuse_reported_at",
    "notified_days",
    "seal_key",
    "seal",
    "version",
    // An update does not change these two columns.
    "last_used_at",
    "last_used_address",
];

/// The columns of an event, in the order of writing and reading.
pub const EVENT_COLUMNS: [&str; 11] = [
    "id",
    "at",
    "realm",
    "action",
    "actor",
    "actor_owner",
    "actor_token",
    "token",
    "owner",
    "reason",
    "address",
];

/// Returns the values of [`TOKEN_COLUMNS`] for a record.
pub fn token_values(token: &Token) -> Vec<Value> {
    let opt_time = |at: Option<DateTime<Utc>>| Value::Int(at.map(micros));
    let opt_text = |text: Option<String>| Value::Text(text);
    let revocation = token.facts.revocation.as_deref();
    let succession = token.facts.succession;
    let (digest, foreign) = match &token.digest {
        StoredDigest::Keyed(digest) => (Some(*digest), None),
        StoredDigest::Foreign(foreign) => (None, Some(foreign)),
    };
    let seal = token.seal.as_ref().map(Seal::mac);
    let key = |mac: Option<&KeyedDigest>| Value::Int(mac.map(|mac| mac.key().get().into()));
    let bytes = |mac: Option<&KeyedDigest>| Value::Bytes(mac.map(|mac| mac.mac().to_vec()));
    let mut values = vec![
        Value::id(token.id),
        Value::text(token.realm.as_str()),
        Value::text(&token.owner),
        Value::text(&token.owner_kind),
        Value::text(&token.kind),
        Value::text(token.name.as_str()),
        Value::Bytes(token.name_key.map(|key| key.as_bytes().to_vec())),
        opt_text(token.description.as_ref().map(|description| description.as_str().to_owned())),
        Value::time(token.created_at),
    ];
    values.extend(actor_values(Some(&token.created_by)));
    values.extend([
        opt_time(token.facts.expires_at),
        opt_time(revocation.map(|revocation| revocation.at)),
        opt_text(revocation.map(|revocation| revocation.reason.as_str().to_owned())),
    ]);
    values.extend(actor_values(revocation.map(|revocation| &revocation.by)));
    values.extend([
        opt_text(revocation.map(|revocation| revocation.authority.to_string())),
        opt_id(succession.map(|succession| succession.successor)),
        opt_time(succession.map(|succession| succession.at)),
        opt_time(succession.map(|succession| succession.until)),
        opt_id(token.predecessor),
        opt_id(token.restored_by),
        opt_id(token.ancestor),
        Value::text(&match token.lifetime {
            Lifetime::Default => "default".to_owned(),
            Lifetime::Never => "never".to_owned(),
            Lifetime::Days(days) => days.to_string(),
            Lifetime::Seconds(seconds) => format!("{seconds}s"),
        }),
        Value::text(if token.scope.is_inherit() { "inherit" } else { "only" }),
        opt_text(token.scope.as_set().map(|grants| joined(grants.iter().map(Grant::as_str)))),
        opt_text(
            token
                .networks
                .as_ref()
                .map(|networks| joined(networks.iter().map(ToString::to_string))),
        ),
        key(digest.as_ref()),
        bytes(digest.as_ref()),
        opt_text(foreign.map(|foreign| foreign.scheme.clone().into_string())),
        Value::Bytes(foreign.map(|foreign| foreign.value.to_vec())),
        Value::time(token.idle_from),
        opt_time(token.reuse_reported_at),
        Value::Int(token.notified_days.map(i64::from)),
        key(seal),
        bytes(seal),
        Value::count(token.version),
        opt_time(token.last_used.map(|used| used.at)),
        opt_address(token.last_used.and_then(|used| used.address)),
    ]);
    values
}

/// Returns the values of [`EVENT_COLUMNS`] for an event.
pub fn event_values(event: &AuditEvent) -> Vec<Value> {
    let mut values = vec![
        Value::id(event.id.uuid()),
        Value::time(event.at),
        Value::text(event.realm.as_str()),
        Value::text(&event.action),
    ];
    values.extend(actor_values(Some(&event.actor)));
    values.extend([
        Value::id(event.token),
        Value::Text(event.owner.as_ref().map(ToString::to_string)),
        Value::Text(event.reason.as_deref().map(str::to_owned)),
        opt_address(event.address),
    ]);
    values
}

/// Returns the kind, owner and token of an actor.
fn actor_values(actor: Option<&ActorRef>) -> [Value; 3] {
    [
        Value::Text(actor.map(|actor| actor.kind().to_owned())),
        Value::Text(actor.and_then(ActorRef::owner_id).map(ToString::to_string)),
        opt_id(actor.and_then(ActorRef::token_id)),
    ]
}

/// Parses a number, and accepts only the text that this crate writes for it.
fn canonical<N: FromStr + ToString>(text: &str) -> Option<N> {
    text.parse().ok().filter(|number: &N| number.to_string() == text)
}

fn opt_id(id: Option<TokenId>) -> Value {
    Value::Bytes(id.map(|id| id.to_bytes().to_vec()))
}

fn opt_address(address: Option<IpAddr>) -> Value {
    Value::Text(address.map(|address| address.to_string()))
}

fn joined<T: AsRef<str>>(parts: impl Iterator<Item = T>) -> String {
    let mut text = String::new();
    for part in parts {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(part.as_ref());
    }
    text
}

/// Reads the record in a row of [`TOKEN_COLUMNS`]. Errors name `table` as the row's table.
///
/// # Errors
/// [`CorruptRecord`], which names the first column with an invalid value.
pub fn read_token(row: &(impl Row + ?Sized), table: &str) -> Result<Token, CorruptRecord> {
    let mut cells = Cells::new(row, table, &TOKEN_COLUMNS);
    let id = cells.required(Cells::id)?;
    cells.row = Some(id);
    let realm = cells.realm()?;
    let owner = cells.required(Cells::owner)?;
    let owner_kind = cells.parsed(OwnerKind::from_name)?;
    let kind = cells.parsed(TokenKind::from_name)?;
    // Names and descriptions are only displayed, so a stored one is accepted even if the
    // current rules would refuse a new one.
    let name = cells.parsed(|text| Some(TokenName::stored(text)))?;
    let name_key = cells.array()?.map(NameKey::from_bytes);
    let description = cells.opt_parsed(|text| Some(Description::stored(text)))?;
    let created_at = cells.required(Cells::time)?;
    let created_by = cells.actor()?.ok_or_else(|| cells.corrupt_in("created_by"))?;
    let expires_at = cells.time()?;
    let revocation = cells.revocation()?;
    let succession = cells.succession()?;
    if name_key.is_some() == succession.is_some() {
        return Err(cells.corrupt_in("name_key"));
    }
    let predecessor = cells.id()?;
    let restored_by = cells.id()?;
    let ancestor = cells.id()?;
    let lifetime = cells.lifetime()?;
    let scope = cells.scope()?;
    let networks = cells.opt_parsed(|text| Networks::parse(text.split(' ')).ok())?;
    let digest = cells.digest()?;
    let idle_from = cells.required(Cells::time)?;
    let reuse_reported_at = cells.time()?;
    let notified_days = cells.number()?;
    let seal = cells.mac()?.map(Seal::new);
    let version = cells.required(Cells::number)?;
    let last_used_at = cells.time()?;
    let address = cells.address()?;
    let last_used = match (last_used_at, address) {
        (None, None) => None,
        (Some(at), address) => Some(LastUse { at, address }),
        (None, Some(_)) => return Err(cells.corrupt_in("last_used_at")),
    };
    Ok(Token {
        digest,
        owner,
        realm,
        networks,
        kind,
        owner_kind,
        facts: Facts { expires_at, revocation, succession },
        last_used,
        created_at,
        id,
        scope,
        name,
        name_key,
        description,
        created_by,
        restored_by,
        predecessor,
        ancestor,
        lifetime,
        idle_from,
        reuse_reported_at,
        notified_days,
        seal,
        version,
    })
}

/// Reads the event in a row of [`EVENT_COLUMNS`]. Errors name `table` as the row's table.
///
/// # Errors
/// [`CorruptRecord`], which names the first column with an invalid value.
pub fn read_event(row: &(impl Row + ?Sized), table: &str) -> Result<AuditEvent, CorruptRecord> {
    let mut cells = Cells::new(row, table, &EVENT_COLUMNS);
    let id = cells.required(Cells::id)?;
    cells.row = Some(id);
    Ok(AuditEvent {
        id: EventId::new(id),
        at: cells.required(Cells::time)?,
        realm: cells.realm()?,
        action: cells.parsed(AuditAction::from_name)?,
        actor: cells.actor()?.ok_or_else(|| cells.corrupt_in("actor"))?,
        token: cells.required(Cells::id)?,
        owner: cells.owner()?,
        reason: cells.text()?.map(|text| Cow::Owned(text.to_owned())),
        address: cells.address()?,
    })
}

/// Reads the id in the first column of a row.
///
/// # Errors
/// [`CorruptRecord`] if the column has no valid id.
pub fn read_id(row: &(impl Row + ?Sized), table: &str) -> Result<TokenId, CorruptRecord> {
    Cells::new(row, table, &TOKEN_COLUMNS).required(Cells::id)
}

/// Reads the cells of a row in order.
struct Cells<'a, R: ?Sized> {
    of_row: &'a R,
    table: &'a str,
    columns: &'a [&'static str],
    /// The index of the next cell.
    index: usize,
    /// The id of the row, once it was read.
    row: Option<TokenId>,
    /// The owner that was read last. The token's creator is usually the same owner, and both then
    /// share one text.
    named: Option<OwnerId>,
}

impl<'a, R: Row + ?Sized> Cells<'a, R> {
    /// Reads the columns of a revocation, which are all null or all set.
    fn revocation(&mut self) -> Result<Option<Box<Revocation>>, CorruptRecord> {
        let revoked_at = self.time()?;
        let reason = self.opt_parsed(Reason::from_name)?;
        let revoked_by = self.actor()?;
        let authority = self.opt_parsed(Authority::from_name)?;
        match (revoked_at, reason, revoked_by, authority) {
            (None, None, None, None) => Ok(None),
            (Some(at), Some(reason), Some(by), Some(authority)) => {
                Ok(Some(Box::new(Revocation { at, by, authority, reason })))
            }
            (at, reason, by, authority) => Err(self.incomplete(&[
                ("revoked_at", at.is_some()),
                ("revoked_reason", reason.is_some()),
                ("revoked_by", by.is_some()),
                ("revoked_authority", authority.is_some()),
            ])),
        }
    }

    /// Reads the columns of a succession, which are all null or all set.
    fn succession(&mut self) -> Result<Option<Succession>, CorruptRecord> {
        match (self.id()?, self.time()?, self.time()?) {
            (None, None, None) => Ok(None),
            (Some(successor), Some(at), Some(until)) => {
                Ok(Some(Succession { successor, at, until }))
            }
            (successor, at, until) => Err(self.incomplete(&[
                ("successor", successor.is_some()),
                ("succeeded_at", at.is_some()),
                ("succeeded_until", until.is_some()),
            ])),
        }
    }

    /// Reads a lifetime: `default`, `never`, days, or seconds with an `s`.
    fn lifetime(&mut self) -> Result<Lifetime, CorruptRecord> {
        self.parsed(|text| match text {
            "default" => Some(Lifetime::Default),
            "never" => Some(Lifetime::Never),
            _ => match text.strip_suffix('s') {
                Some(seconds) => canonical(seconds).map(Lifetime::Seconds),
                None => canonical(text).map(Lifetime::Days),
            },
        })
    }

    /// Reads a scope, which is never null.
    fn scope(&mut self) -> Result<Scope, CorruptRecord> {
        let inherits = self.parsed(|text| match text {
            "inherit" => Some(true),
            "only" => Some(false),
            _ => None,
        })?;
        let grants = self
            .opt_parsed(|text| Scope::only(text.split(' ').filter(|part| !part.is_empty())).ok())?;
        match (inherits, grants) {
            (true, None) => Ok(Scope::inherit()),
            (false, Some(scope)) => Ok(scope),
            (true, Some(_)) | (false, None) => Err(self.corrupt()),
        }
    }

    /// Reads the digest of a record, which has exactly one.
    fn digest(&mut self) -> Result<StoredDigest, CorruptRecord> {
        let digest = self.mac()?;
        let scheme = self.text()?;
        match (digest, scheme, self.bytes()?) {
            (Some(digest), None, None) => Ok(StoredDigest::Keyed(digest)),
            (None, Some(scheme), Some(value)) => {
                Ok(StoredDigest::Foreign(ForeignDigest::new(scheme, value)))
            }
            (None, None, None) => Err(self.corrupt_in("digest")),
            (None, scheme, value) => Err(self.incomplete(&[
                ("foreign_scheme", scheme.is_some()),
                ("foreign_digest", value.is_some()),
            ])),
            // The record has two digests.
            (Some(_), scheme, _) => Err(self.corrupt_in(if scheme.is_some() {
                "foreign_scheme"
            } else {
                "foreign_digest"
            })),
        }
    }

    fn new(cells: &'a R, table: &'a str, columns: &'a [&'static str]) -> Self {
        Self { of_row: cells, table, columns, index: 0, row: None, named: None }
    }

    /// Reports the cell that was read last.
    fn corrupt(&self) -> CorruptRecord {
        self.corrupt_at(self.index.saturating_sub(1))
    }

    fn corrupt_at(&self, index: usize) -> CorruptRecord {
        self.corrupt_in(self.columns.get(index).expect("no cell is read after the last column"))
    }

    fn corrupt_in(&self, column: &str) -> CorruptRecord {
        let row = self.row.map_or_else(|| "?".to_owned(), |id| id.to_string());
        CorruptRecord::new(self.table, column, &row)
    }

    /// Reports the first null column of a group whose columns must be all null or all set.
    fn incomplete(&self, group: &[(&'static str, bool)]) -> CorruptRecord {
        let missing = group.iter().find(|(_, is_there)| !is_there);
        let (column, _) = missing.expect("the caller found that a column of the group is null");
        self.corrupt_in(column)
    }

    fn next<T>(
        &mut self,
        read: impl FnOnce(&'a R, usize) -> Option<Option<T>>,
    ) -> Result<Option<T>, CorruptRecord> {
        let value = read(self.of_row, self.index);
        self.index = self.index.saturating_add(1);
        value.ok_or_else(|| self.corrupt())
    }

    fn text(&mut self) -> Result<Option<&'a str>, CorruptRecord> {
        self.next(R::text)
    }

    fn bytes(&mut self) -> Result<Option<&'a [u8]>, CorruptRecord> {
        self.next(R::bytes)
    }

    fn required<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<Option<T>, CorruptRecord>,
    ) -> Result<T, CorruptRecord> {
        read(self)?.ok_or_else(|| self.corrupt())
    }

    fn opt_parsed<T>(
        &mut self,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, CorruptRecord> {
        match self.text()? {
            None => Ok(None),
            Some(text) => parse(text).map(Some).ok_or_else(|| self.corrupt()),
        }
    }

    fn parsed<T>(&mut self, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, CorruptRecord> {
        self.required(|cells| cells.opt_parsed(parse))
    }

    fn number<T: TryFrom<i64>>(&mut self) -> Result<Option<T>, CorruptRecord> {
        match self.next(R::int)? {
            None => Ok(None),
            Some(number) => T::try_from(number).map(Some).map_err(|_| self.corrupt()),
        }
    }

    fn time(&mut self) -> Result<Option<DateTime<Utc>>, CorruptRecord> {
        match self.number()? {
            None => Ok(None),
            Some(micros) => {
                DateTime::from_timestamp_micros(micros).map(Some).ok_or_else(|| self.corrupt())
            }
        }
    }

    fn array<const N: usize>(&mut self) -> Result<Option<[u8; N]>, CorruptRecord> {
        match self.bytes()? {
            None => Ok(None),
            Some(bytes) => bytes.try_into().map(Some).map_err(|_| self.corrupt()),
        }
    }

    fn id(&mut self) -> Result<Option<TokenId>, CorruptRecord> {
        match self.array()? {
            None => Ok(None),
            Some(bytes) => TokenId::from_bytes(bytes).map(Some).map_err(|_| self.corrupt()),
        }
    }

    /// Reads a key's number and the MAC made with that key.
    fn mac(&mut self) -> Result<Option<KeyedDigest>, CorruptRecord> {
        let first = self.index;
        match (self.number()?, self.array()?) {
            (None, None) => Ok(None),
            (Some(key), Some(mac)) => Ok(Some(KeyedDigest::new(KeyId::new(key), mac))),
            (None, Some(_)) => Err(self.corrupt_at(first)),
            (Some(_), None) => Err(self.corrupt()),
        }
    }

    fn realm(&mut self) -> Result<Realm, CorruptRecord> {
        self.parsed(
            |text| if text.is_empty() { Some(Realm::default()) } else { Realm::new(text).ok() },
        )
    }

    fn owner(&mut self) -> Result<Option<OwnerId>, CorruptRecord> {
        let named = self.named.take();
        let owner = self.opt_parsed(|text| match &named {
            Some(named) if named.as_str() == text => Some(named.clone()),
            _ => OwnerId::new(text).ok(),
        })?;
        self.named = owner.clone().or(named);
        Ok(owner)
    }

    fn address(&mut self) -> Result<Option<IpAddr>, CorruptRecord> {
        self.opt_parsed(|text| text.parse().ok())
    }

    /// Reads an actor; `None` if all three cells are null.
    fn actor(&mut self) -> Result<Option<ActorRef>, CorruptRecord> {
        let first = self.index;
        let (kind, owner, token) = (self.text()?, self.owner()?, self.id()?);
        let wrong = match (kind, owner, token) {
            (None, None, None) => return Ok(None),
            (Some("system"), None, None) => return Ok(Some(ActorRef::System)),
            (Some("erased"), None, None) => return Ok(Some(ActorRef::Erased)),
            (Some("unproven"), None, None) => return Ok(Some(ActorRef::Unproven)),
            (Some("owner"), Some(owner), None) => return Ok(Some(ActorRef::Owner(owner))),
            (Some("token"), Some(owner), Some(id)) => {
                return Ok(Some(ActorRef::Token { owner, id }));
            }
            // The owner or the token is missing, or the kind must not have one.
            (Some("owner" | "token"), None, _)
            | (Some("system" | "erased" | "unproven"), Some(_), _) => 1,
            (Some("owner" | "token" | "system" | "erased" | "unproven"), ..) => 2,
            (None | Some(_), ..) => 0,
        };
        Err(self.corrupt_at(first.saturating_add(wrong)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_who_made_the_token_is_read_once() {
        let ada = OwnerId::new("ada").unwrap();
        let by = |owner: &str| ActorRef::Owner(OwnerId::new(owner).unwrap());
        for (created_by, is_shared) in [(by("ada"), true), (by("eve"), false)] {
            let name = TokenName::new("ci").unwrap();
            let id = TokenId::from_words([0x0190_0000_0000_7000, 1 << 63]).unwrap();
            let vacant = Token::clone(Token::vacant());
            let mut token = Token { id, owner: ada.clone(), created_by, version: 1, ..vacant };
            token.rename(name);
            let read = read_token(&*token_values(&token), "tokens").unwrap();
            assert_eq!((&read.owner, &read.created_by), (&token.owner, &token.created_by));
            let maker = read.created_by.owner_id().unwrap().as_str();
            assert_eq!(std::ptr::eq(maker, read.owner.as_str()), is_shared);
        }
    }
}
