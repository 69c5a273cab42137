//! The token: the stored record, and the view that is shown of it.

pub(crate) mod access;
pub(crate) mod base62;
pub(crate) mod details;
pub(crate) mod digest;
mod facts;
mod format;
pub(crate) mod id;
mod keyring;
mod name;
mod network;
pub(crate) mod secret;
mod unicode;

pub use digest::KeyedDigest;
pub use facts::{ActorRef, Authority, Facts, Reason, Revocation, Succession, TokenState};
pub use format::{Brand, BrandError, MalformedToken, TokenFormat, TokenFormatError};
pub(crate) use format::{Presented, Unreadable};
pub use id::{TokenId, TokenIdError};
pub use keyring::{
    KeyCheck, KeyId, Keyring, KeyringEnvError, KeyringError, MAX_KEY_BYTES, MAX_KEYS, MIN_KEY_BYTES,
};
pub use name::{Description, MAX_DESCRIPTION_CHARS, MAX_NAME_CHARS, NameError, NameKey, TokenName};
pub use network::{MAX_NETWORKS, Network, NetworkError, Networks, NetworksError};
pub use secret::PlaintextToken;
pub use unicode::UNICODE_VERSION;

use crate::clock::{at_micros, plausible_until};
use crate::named_enum::named_enum;
use crate::owner::{Owner, OwnerId, OwnerKind, Realm};
use crate::permission::Scope;
use crate::snapshot::Snapshot;
use access::Terms;
use chrono::{DateTime, SecondsFormat, Utc};
use details::{Details, Packed};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use subtle::ConstantTimeEq;

named_enum! {
    /// Says whose a token is, and so who manages it.
    #[derive(PartialOrd, Ord)]
    pub enum TokenKind {
        /// The owner is a human, who manages the token.
        Personal = "personal",
        /// The owner is a service user. Admins manage the token.
        Service = "service",
    }
}

impl TokenKind {
    /// Returns the code of the kind in a token's text: `pat` or `svc`.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Personal => "pat",
            Self::Service => "svc",
        }
    }

    /// Returns the kind of owner whose tokens are of this kind.
    pub const fn owner_kind(self) -> OwnerKind {
        match self {
            Self::Personal => OwnerKind::Human,
            Self::Service => OwnerKind::Service,
        }
    }

    /// Returns the kind of token that an owner of this kind has. `None` if the owner is internal.
    pub const fn for_owner(kind: OwnerKind) -> Option<Self> {
        match kind {
            OwnerKind::Human => Some(Self::Personal),
            OwnerKind::Service => Some(Self::Service),
            OwnerKind::Internal => None,
        }
    }

    pub(crate) const fn byte(self) -> u8 {
        match self {
            Self::Personal => 1,
            Self::Service => 2,
        }
    }
}

/// A token as a store keeps it.
///
/// It does not serialize: pages and APIs show a [`TokenView`]. The struct is open and exhaustive so
/// that a store can read and write every field. A new field is a breaking change on purpose,
/// because a store that omits a field loses data.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::exhaustive_structs, reason = "a store must not be able to forget a field")]
pub struct Token {
    /// The digest that the token's secret is checked against.
    pub digest: StoredDigest,
    /// The owner that the token acts as.
    pub owner: OwnerId,
    /// The tenant.
    pub realm: Realm,
    /// The networks from which the token may be used. It may be used from anywhere if this is
    /// `None`.
    pub networks: Option<Networks>,
    /// Personal or service.
    pub kind: TokenKind,
    /// The kind of the owner when the token was created. A store refuses a record whose `kind` does
    /// not fit this kind.
    pub owner_kind: OwnerKind,
    /// The expiry, revocation and succession, from which the state is derived.
    pub facts: Facts,
    /// The last use known to the store.
    pub last_used: Option<LastUse>,
    /// When the token was created.
    pub created_at: DateTime<Utc>,
    /// The public id.
    pub id: TokenId,
    /// The scope to which the token is narrowed.
    pub scope: Scope,
    /// The name that the owner gave the token.
    pub name: TokenName,
    /// The key by which the name is unique within its realm, owner and kind. `None` exactly if the
    /// token has a successor, which then has the key. [`rename`](Self::rename) sets both.
    pub name_key: Option<NameKey>,
    /// The purpose of the token, in the owner's words.
    pub description: Option<Description>,
    /// The creator of the token, by which the family of a compromised token is found. Once the
    /// token that created this one is removed, this field names that token's own creator.
    pub created_by: ActorRef,
    /// The token through which this one was last restored.
    ///
    /// `None` if it was never restored, or was last restored by a session or the host. The token
    /// also belongs to the family of the token that is named here.
    pub restored_by: Option<TokenId>,
    /// The token that this one replaced by rotation.
    pub predecessor: Option<TokenId>,
    /// A token from which this one descends through removed tokens of its line. Reuse of the
    /// ancestor reaches this token, but compromise of the ancestor does not.
    pub ancestor: Option<TokenId>,
    /// The requested lifetime. Rotation requests it again.
    pub lifetime: Lifetime,
    /// The start of the idle time of an unused token: when the token was created or last restored.
    pub idle_from: DateTime<Utc>,
    /// When a use of the token after its rotation was last reported.
    pub reuse_reported_at: Option<DateTime<Utc>>,
    /// The smallest threshold, in days before the expiry, for which a notice was claimed. This
    /// crate claims none yet; a store keeps the value unchanged.
    pub notified_days: Option<u16>,
    /// The MAC of a sealing store over all fields above that decide access.
    pub seal: Option<Seal>,
    /// The number of changes of the record, from 1. A batch of last uses does not change it.
    pub version: u64,
}

impl Token {
    /// Returns the placeholder for a missing record. It is recognized by its address and never
    /// handed out.
    pub(crate) fn vacant() -> &'static Arc<Self> {
        static VACANT: LazyLock<Arc<Token>> = LazyLock::new(|| {
            Arc::new(Token {
                digest: StoredDigest::Keyed(KeyedDigest::new(KeyId::new(0), [0; 32])),
                owner: Owner::nobody().id().clone(),
                realm: Realm::default(),
                networks: None,
                kind: TokenKind::Personal,
                owner_kind: OwnerKind::Internal,
                facts: Facts::default(),
                last_used: None,
                created_at: DateTime::UNIX_EPOCH,
                id: TokenId::VACANT,
                scope: Scope::none(),
                name: TokenName::stored(""),
                name_key: None,
                description: None,
                created_by: ActorRef::System,
                restored_by: None,
                predecessor: None,
                ancestor: None,
                lifetime: Lifetime::Default,
                idle_from: DateTime::UNIX_EPOCH,
                reuse_reported_at: None,
                notified_days: None,
                seal: None,
                version: 0,
            })
        });
        &VACANT
    }

    /// Returns the state at `now`.
    pub fn state(&self, now: DateTime<Utc>) -> TokenState {
        self.facts.state(now)
    }

    /// Returns whether the token may be used from `address`. If the token is bound to networks,
    /// `None` is not allowed.
    pub fn is_allowed_from(&self, address: Option<IpAddr>) -> bool {
        is_allowed(self.networks.as_ref(), address)
    }

    /// Sets the name, and the name key unless the token has a successor.
    pub fn rename(&mut self, name: TokenName) {
        self.name_key = self.facts.succession.is_none().then(|| name.key());
        self.name = name;
    }

    /// Returns when the token was last used, restored or created, whichever is latest.
    pub fn last_activity(&self) -> DateTime<Utc> {
        self.last_used.map_or(self.idle_from, |used| used.at.max(self.idle_from))
    }

    /// Returns whether the token was created before `instant`.
    ///
    /// A creation later than [`MAX_CLOCK_ERROR`](crate::clock::MAX_CLOCK_ERROR) after `now` counts
    /// as before any instant, because a wrong clock stored it.
    pub fn is_older_than(&self, instant: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        self.created_at < instant || self.created_at > plausible_until(now)
    }

    /// Returns whether the token was not used, restored or created since `before`.
    ///
    /// With `now`, an activity later than [`MAX_CLOCK_ERROR`](crate::clock::MAX_CLOCK_ERROR) after
    /// `now` does not count, because a wrong clock recorded it.
    pub fn is_idle(&self, before: DateTime<Utc>, now: Option<DateTime<Utc>>) -> bool {
        let latest = now.map_or(DateTime::<Utc>::MAX_UTC, plausible_until);
        let is_before = |at: DateTime<Utc>| at < before || at > latest;
        is_before(self.idle_from) && self.last_used.is_none_or(|used| is_before(used.at))
    }

    /// Returns the id of the token that created this one. `None` if no token did.
    pub fn creator(&self) -> Option<TokenId> {
        self.created_by.token_id()
    }
}

/// Returns whether a token that is bound to these networks may be used from this address.
pub(crate) fn is_allowed(networks: Option<&Networks>, address: Option<IpAddr>) -> bool {
    networks.is_none_or(|networks| address.is_some_and(|address| networks.contains(address)))
}

/// The digest that a token's secret is checked against.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoredDigest {
    /// This crate's own keyed digest.
    Keyed(KeyedDigest),
    /// A digest imported from another system, for a token that was not yet presented here. This
    /// crate imports none yet.
    Foreign(ForeignDigest),
}

/// A digest of another system's scheme.
///
/// This crate neither makes nor verifies such digests yet; a store keeps them unchanged.
#[derive(Clone)]
#[non_exhaustive]
pub struct ForeignDigest {
    /// The name of the scheme.
    pub scheme: Box<str>,
    /// The digest with its parameters, in the scheme's own form.
    pub value: Box<[u8]>,
}

impl ForeignDigest {
    /// Creates a digest of this scheme.
    pub fn new(scheme: &str, value: &[u8]) -> Self {
        Self { scheme: scheme.into(), value: value.into() }
    }
}

/// Compares the bytes of the digest in constant time.
impl PartialEq for ForeignDigest {
    fn eq(&self, other: &Self) -> bool {
        self.scheme == other.scheme && bool::from(self.value.ct_eq(&other.value))
    }
}

impl Eq for ForeignDigest {}

impl fmt::Debug for ForeignDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ForeignDigest({:?}, …)", self.scheme)
    }
}

/// A requested lifetime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Lifetime {
    /// The policy's default, because no lifetime was requested.
    #[default]
    Default,
    /// A number of whole days.
    Days(u32),
    /// A number of seconds.
    Seconds(u64),
    /// An unlimited lifetime.
    Never,
}

/// When and from where a token was last used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LastUse {
    /// The time, to the policy's granularity.
    pub at: DateTime<Utc>,
    /// The client's address, if the host gave it.
    pub address: Option<IpAddr>,
}

impl LastUse {
    /// Creates a use at `at`, cut to the microsecond.
    ///
    /// An IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2) becomes the IPv4 address in it.
    pub fn new(at: DateTime<Utc>, address: Option<IpAddr>) -> Self {
        Self { at: crate::clock::cut(at), address: address.map(|address| address.to_canonical()) }
    }

    /// Returns whether this use replaces a use at `known`.
    ///
    /// It does if this use is later, or if `known` is after `plausible_until`, in which case a
    /// wrong clock wrote `known`.
    pub(crate) fn replaces(&self, known: DateTime<Utc>, plausible_until: DateTime<Utc>) -> bool {
        known < self.at || known > plausible_until
    }
}

/// The MAC of a sealing store over a record.
///
/// This crate makes no seals yet; a store keeps them unchanged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seal(KeyedDigest);

impl Seal {
    /// Creates a seal from a MAC.
    pub const fn new(mac: KeyedDigest) -> Self {
        Self(mac)
    }

    /// Returns the MAC, with the key that made it.
    pub const fn mac(&self) -> &KeyedDigest {
        &self.0
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seal(key {}, …)", self.0.key())
    }
}

/// The view of a token for pages and APIs.
///
/// It has every field but the digest and the seal, the state at one instant, and the owner if the
/// directory knows it.
///
/// The stored facts make the state `active`, `revoked` or `expired`. If the token is active by the
/// stored facts but the owner's *valid after* has ended it, the view shows `ended`.
///
/// A view serializes to the form of a JSON API: `id, name, description, kind, state, active,
/// created, expiration, last_used, last_used_address, revoked, scopes` (null: inherit),
/// `allowed_networks, successor, user {id, name, kind}`. Times are RFC 3339 in UTC. If the
/// directory could not answer for the owner, `user` also has `unavailable: true`.
#[derive(Clone)]
pub struct TokenView {
    id: TokenId,
    terms: Terms,
    details: Snapshot<Details>,
    owner: Option<Snapshot<Owner>>,
}

/// A directory's answer for a token's owner.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum OwnerAnswer {
    /// The directory knows the owner.
    Known(Arc<Owner>),
    /// The directory knows no such owner.
    Unknown,
    /// The directory could not answer.
    Unavailable,
}

impl OwnerAnswer {
    /// Returns whether the owner's *valid after* has ended a token.
    pub(crate) fn has_ended(&self, token: &Token, now: DateTime<Utc>) -> bool {
        let Self::Known(owner) = self else { return false };
        owner.tokens_valid_after().is_some_and(|after| token.is_older_than(after, now))
    }
}

impl From<Option<Arc<Owner>>> for OwnerAnswer {
    fn from(owner: Option<Arc<Owner>>) -> Self {
        owner.map_or(Self::Unknown, Self::Known)
    }
}

impl TokenView {
    /// Creates the view of a token at `now`.
    pub fn new(token: &Token, owner: impl Into<OwnerAnswer>, now: DateTime<Utc>) -> Self {
        let Packed { id, access, details } = Packed::of(token);
        let owner = owner.into();
        let terms = access.terms().seen(token.state(now));
        let terms = if owner.has_ended(token, now) { terms.ended() } else { terms };
        let (terms, owner) = match owner {
            OwnerAnswer::Known(owner) => (terms, Some(owner.into())),
            OwnerAnswer::Unknown => (terms, None),
            OwnerAnswer::Unavailable => (terms.without_answer(), None),
        };
        Self { id, terms, details: details.into(), owner }
    }

    /// Creates the view of a token that was found active, without reading the details.
    pub(crate) const fn active(
        id: TokenId,
        terms: Terms,
        details: Snapshot<Details>,
        owner: Snapshot<Owner>,
    ) -> Self {
        Self { id, terms, details, owner: Some(owner) }
    }

    /// Returns the public id.
    pub fn id(&self) -> TokenId {
        self.id
    }

    /// Returns the tenant.
    pub fn realm(&self) -> &Realm {
        self.details.realm()
    }

    /// Returns whether the token is personal or a service token.
    pub fn kind(&self) -> TokenKind {
        self.terms.kind()
    }

    /// Returns the state at the instant of the view, by the stored facts.
    pub fn state(&self) -> TokenState {
        self.terms.state_seen()
    }

    /// Returns whether the owner's *valid after* has ended the token, or the owner's id now belongs
    /// to somebody else.
    ///
    /// Such a token is refused in every state. Returns false if the directory could not answer.
    pub fn is_ended(&self) -> bool {
        self.terms.is_ended()
    }

    /// Returns whether the state is active and the owner's *valid after* has not ended the token.
    pub fn is_active(&self) -> bool {
        self.state() == TokenState::Active && !self.is_ended()
    }

    /// Returns the state as a page shows it: `active`, `revoked`, `expired` or `ended`.
    pub fn shown_state(&self) -> &'static str {
        match self.state() {
            TokenState::Active if self.is_ended() => "ended",
            state => state.as_str(),
        }
    }

    /// Returns the name.
    pub fn name(&self) -> &TokenName {
        self.details.name()
    }

    /// Returns the description.
    pub fn description(&self) -> Option<&Description> {
        self.details.description()
    }

    /// Returns the id of the owner that the token acts as.
    pub fn owner_id(&self) -> &OwnerId {
        self.details.owner()
    }

    /// Returns the current state of the owner.
    ///
    /// Returns `None` if the directory knows no such owner or could not answer.
    /// [`owner_unavailable`](Self::owner_unavailable) distinguishes the two.
    pub fn owner(&self) -> Option<&Owner> {
        self.owner.as_deref()
    }

    /// Returns whether the directory could not answer for the owner when the view was created. It
    /// may answer later.
    pub fn owner_unavailable(&self) -> bool {
        self.terms.lacks_answer()
    }

    /// Returns the scope to which the token is narrowed.
    pub fn scope(&self) -> &Scope {
        self.details.scope()
    }

    /// Returns the networks from which the token may be used. `None` if it may be used from
    /// anywhere.
    pub fn networks(&self) -> Option<&Networks> {
        self.details.networks()
    }

    /// Returns when the token was created.
    pub fn created_at(&self) -> DateTime<Utc> {
        at_micros(self.terms.created_at())
    }

    /// Returns who created the token.
    pub fn created_by(&self) -> &ActorRef {
        self.details.created_by()
    }

    /// Returns when the token expires. `None` if it never does.
    pub fn expires_at(&self) -> Option<DateTime<Utc>> {
        self.terms.expires_at()
    }

    /// Returns the last use. `None` if the token was never used. A use within the last flush
    /// interval may be missing.
    pub fn last_used(&self) -> Option<LastUse> {
        self.details.last_used(&self.terms)
    }

    /// Returns when, why and by whom the token was revoked.
    pub fn revocation(&self) -> Option<&Revocation> {
        self.details.revocation()
    }

    /// Returns the id of the token that replaced this one. `None` if there is none.
    pub fn successor(&self) -> Option<TokenId> {
        self.details.succession().map(|succession| succession.successor)
    }

    /// Returns the number of changes of the record.
    pub fn version(&self) -> u64 {
        self.details.version()
    }
}

impl fmt::Debug for TokenView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenView")
            .field("id", &self.id())
            .field("kind", &self.kind())
            .field("state", &self.shown_state())
            .field("name", self.name())
            .field("owner", self.owner_id())
            .finish_non_exhaustive()
    }
}

impl Serialize for TokenView {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut view = serializer.serialize_struct("Token", 15)?;
        view.serialize_field("id", &self.id())?;
        view.serialize_field("name", self.name())?;
        view.serialize_field("description", &self.description())?;
        view.serialize_field("kind", self.kind().as_str())?;
        view.serialize_field("state", self.shown_state())?;
        view.serialize_field("active", &self.is_active())?;
        view.serialize_field("created", &Rfc3339(self.created_at()))?;
        view.serialize_field("expiration", &self.expires_at().map(Rfc3339))?;
        view.serialize_field("last_used", &self.last_used().map(|used| Rfc3339(used.at)))?;
        view.serialize_field("last_used_address", &self.last_used().and_then(|used| used.address))?;
        view.serialize_field("revoked", &self.revocation())?;
        view.serialize_field("scopes", self.scope())?;
        view.serialize_field("allowed_networks", &self.networks())?;
        view.serialize_field("successor", &self.successor())?;
        view.serialize_field("user", &User(self))?;
        view.end()
    }
}

/// The owner as a view shows it.
struct User<'a>(&'a TokenView);

impl Serialize for User<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let owner = self.0.owner();
        let kind = owner.map_or(self.0.kind().owner_kind(), Owner::kind);
        let mut user = serializer.serialize_struct("User", 4)?;
        user.serialize_field("id", self.0.owner_id())?;
        user.serialize_field("name", &owner.and_then(|owner| owner.name()))?;
        user.serialize_field("kind", kind.as_str())?;
        if self.0.owner_unavailable() {
            user.serialize_field("unavailable", &true)?;
        } else {
            user.skip_field("unavailable")?;
        }
        user.end()
    }
}

/// An instant in RFC 3339 form, in UTC, with microseconds if it has any.
pub(crate) struct Rfc3339(pub(crate) DateTime<Utc>);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_rfc3339_opts(SecondsFormat::AutoSi, true))
    }
}

impl Serialize for Rfc3339 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
