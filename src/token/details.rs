//! The rest of a record beside its id and its [`Access`], packed as a table in memory holds it.
//!
//! Fields of the access are not stored twice. Fields that few records have are in a separate box.
//! Both parts together make a whole [`Token`], for callers that need more than a verification or a
//! view reads.

use super::access::{Access, Terms};
use super::facts::ended_at;
use super::{
    ActorRef, Description, Facts, ForeignDigest, LastUse, Lifetime, NameKey, Networks, Revocation,
    Seal, StoredDigest, Succession, Token, TokenId, TokenName,
};
use crate::clock::at_micros;
use crate::owner::{OwnerId, OwnerKind, Realm};
use crate::permission::Scope;
use chrono::{DateTime, Utc};
use std::net::{IpAddr, Ipv4Addr};
use std::num::{NonZeroU8, NonZeroU16, NonZeroU32};
use std::sync::Arc;

/// A record as a table in memory or a cache has it.
#[derive(Clone)]
pub(crate) struct Packed {
    pub(crate) id: TokenId,
    pub(crate) access: Access,
    pub(crate) details: Arc<Details>,
}

impl Packed {
    /// Packs a record that shares nothing with others.
    pub(crate) fn of(token: &Token) -> Self {
        let account = Arc::new(Account::new(token.realm.clone(), token.owner.clone()));
        let details = Details::of(token, account, Arc::new(token.scope.clone()));
        Self { id: token.id, access: Access::of(token, 0), details: Arc::new(details) }
    }

    /// Returns the whole record.
    pub(crate) fn token(&self) -> Token {
        self.details.token(self.id, &self.access)
    }

    /// Returns a copy with this last use. `None` if the known last use is not replaced by it.
    pub(crate) fn used(self, last_use: LastUse, plausible_until: DateTime<Utc>) -> Option<Self> {
        let known = self.access.last_used_at().map(at_micros);
        if known.is_some_and(|known| !last_use.replaces(known, plausible_until)) {
            return None;
        }
        let LastUse { at, address } = last_use;
        let details = self.details.used_from(address).map_or(self.details, Arc::new);
        Some(Self { access: self.access.used_at(at), details, ..self })
    }

    /// Returns the same instant as [`Facts::ended_at`].
    pub(crate) fn ended_at(&self) -> Option<DateTime<Utc>> {
        ended_at(self.access.expires_at(), self.details.revocation())
    }
}

/// An owner of tokens: the fields that all its records share.
pub(crate) struct Account {
    realm: Realm,
    owner: OwnerId,
    /// The creator of most of its tokens.
    in_session: ActorRef,
}

impl Account {
    pub(crate) fn new(realm: Realm, owner: OwnerId) -> Self {
        Self { realm, in_session: ActorRef::Owner(owner.clone()), owner }
    }
}

/// The packed details; see the module.
#[derive(Clone)]
pub(crate) struct Details {
    name: TokenName,
    name_key: Option<NameKey>,
    scope: Arc<Scope>,
    account: Arc<Account>,
    rare: Option<Box<RareFields>>,
    /// The address of the last use if it is an IPv4 address, and `None` if the address is in the box
    /// or missing.
    address: Option<NonZeroU32>,
    /// `None` if the version is in the box. One byte, so that the record stays small.
    version: Option<NonZeroU8>,
    /// Days, or [`NEVER`]. `None` for the default, unless the lifetime is in the box.
    lifetime: Option<NonZeroU16>,
}

/// Fields that few records have, or that do not fit elsewhere.
#[derive(Clone, PartialEq, Default)]
struct RareFields {
    networks: Option<Networks>,
    description: Option<Description>,
    /// The creator, if it is not the owner in a session.
    created_by: Option<Box<ActorRef>>,
    restored_by: Option<TokenId>,
    predecessor: Option<TokenId>,
    ancestor: Option<TokenId>,
    /// The start of the idle time, if it is not the creation.
    idle_from: Option<DateTime<Utc>>,
    revocation: Option<Box<Revocation>>,
    succession: Option<Box<Succession>>,
    foreign: Option<Box<ForeignDigest>>,
    seal: Option<Box<Seal>>,
    reuse_reported_at: Option<DateTime<Utc>>,
    address: Option<IpAddr>,
    version: Option<u64>,
    lifetime: Option<Lifetime>,
    notified_days: Option<u16>,
    /// The kind of the owner, if it does not follow from the kind of the token.
    owner_kind: Option<OwnerKind>,
}

/// [`Lifetime::Never`].
const NEVER: NonZeroU16 = NonZeroU16::MAX;

impl Details {
    /// Returns the details of no token, the placeholder for a missing record.
    pub(crate) fn vacant() -> Self {
        let token = Token::vacant();
        let nobody = Account::new(token.realm.clone(), token.owner.clone());
        Self::of(token, Arc::new(nobody), Arc::new(token.scope.clone()))
    }

    /// Packs a record. `account` is its owner's, and `scope` is its scope.
    pub(crate) fn of(token: &Token, account: Arc<Account>, scope: Arc<Scope>) -> Self {
        let (lifetime, rare_lifetime) = packed_lifetime(token.lifetime);
        let version = u8::try_from(token.version).ok().and_then(NonZeroU8::new);
        let (address, rare_address) = packed(token.last_used.and_then(|used| used.address));
        let rare = RareFields {
            networks: token.networks.clone(),
            description: token.description.clone(),
            created_by: (token.created_by != account.in_session)
                .then(|| Box::new(token.created_by.clone())),
            restored_by: token.restored_by,
            predecessor: token.predecessor,
            ancestor: token.ancestor,
            idle_from: (token.idle_from != token.created_at).then_some(token.idle_from),
            revocation: token.facts.revocation.clone(),
            succession: token.facts.succession.map(Box::new),
            foreign: match &token.digest {
                StoredDigest::Foreign(digest) => Some(Box::new(digest.clone())),
                StoredDigest::Keyed(_) => None,
            },
            seal: token.seal.map(Box::new),
            reuse_reported_at: token.reuse_reported_at,
            address: rare_address,
            version: version.is_none().then_some(token.version),
            lifetime: rare_lifetime,
            notified_days: token.notified_days,
            owner_kind: (token.owner_kind != token.kind.owner_kind()).then_some(token.owner_kind),
        };
        Self {
            name: token.name.clone(),
            name_key: token.name_key,
            scope,
            account,
            rare: boxed(rare),
            address,
            version,
            lifetime,
        }
    }

    /// Returns the whole record.
    pub(crate) fn token(&self, id: TokenId, access: &Access) -> Token {
        let rare = self.rare.as_deref().cloned().unwrap_or_default();
        let created_at = at_micros(access.created_at());
        Token {
            digest: match rare.foreign {
                Some(digest) => StoredDigest::Foreign(*digest),
                None => StoredDigest::Keyed(access.keyed_digest()),
            },
            owner: self.owner().clone(),
            realm: self.realm().clone(),
            networks: rare.networks,
            kind: access.kind(),
            owner_kind: rare.owner_kind.unwrap_or(access.kind().owner_kind()),
            facts: Facts {
                expires_at: access.expires_at(),
                revocation: rare.revocation,
                succession: rare.succession.map(|succession| *succession),
            },
            last_used: self.last_used(access),
            created_at,
            id,
            scope: self.scope().clone(),
            name: self.name.clone(),
            name_key: self.name_key(),
            description: rare.description,
            created_by: self.created_by().clone(),
            restored_by: rare.restored_by,
            predecessor: rare.predecessor,
            ancestor: rare.ancestor,
            lifetime: match (rare.lifetime, self.lifetime) {
                (Some(lifetime), _) => lifetime,
                (None, None) => Lifetime::Default,
                (None, Some(NEVER)) => Lifetime::Never,
                (None, Some(days)) => Lifetime::Days(days.get().into()),
            },
            idle_from: rare.idle_from.unwrap_or(created_at),
            reuse_reported_at: rare.reuse_reported_at,
            notified_days: rare.notified_days,
            seal: rare.seal.map(|seal| *seal),
            version: self.version(),
        }
    }

    pub(crate) fn realm(&self) -> &Realm {
        &self.account.realm
    }

    pub(crate) fn owner(&self) -> &OwnerId {
        &self.account.owner
    }

    pub(crate) const fn name(&self) -> &TokenName {
        &self.name
    }

    /// Returns the same key as [`Token::name_key`].
    pub(crate) fn name_key(&self) -> Option<NameKey> {
        self.name_key
    }

    pub(crate) fn description(&self) -> Option<&Description> {
        self.rare.as_ref()?.description.as_ref()
    }

    pub(crate) fn scope(&self) -> &Scope {
        &self.scope
    }

    pub(crate) fn networks(&self) -> Option<&Networks> {
        self.rare.as_ref()?.networks.as_ref()
    }

    pub(crate) fn created_by(&self) -> &ActorRef {
        let other = self.rare.as_ref().and_then(|rare| rare.created_by.as_deref());
        other.unwrap_or(&self.account.in_session)
    }

    pub(crate) fn restored_by(&self) -> Option<TokenId> {
        self.rare.as_ref()?.restored_by
    }

    pub(crate) fn ancestor(&self) -> Option<TokenId> {
        self.rare.as_ref()?.ancestor
    }

    pub(crate) fn revocation(&self) -> Option<&Revocation> {
        self.rare.as_ref()?.revocation.as_deref()
    }

    pub(crate) fn succession(&self) -> Option<&Succession> {
        self.rare.as_ref()?.succession.as_deref()
    }

    /// Returns the last use. Its time is in the terms.
    pub(crate) fn last_used(&self, terms: &Terms) -> Option<LastUse> {
        let at = at_micros(terms.last_used_at()?);
        let rare = self.rare.as_ref().and_then(|rare| rare.address);
        let address =
            rare.or_else(|| self.address.map(|bits| Ipv4Addr::from_bits(bits.get()).into()));
        Some(LastUse { at, address })
    }

    /// Returns a copy with this address of the last use. `None` if the address does not change.
    pub(crate) fn used_from(&self, address: Option<IpAddr>) -> Option<Self> {
        let (address, rare_address) = packed(address);
        let before = self.rare.as_ref().and_then(|rare| rare.address);
        if (address, rare_address) == (self.address, before) {
            return None;
        }
        let rare = self.rare.as_deref().cloned().unwrap_or_default();
        Some(Self {
            address,
            rare: boxed(RareFields { address: rare_address, ..rare }),
            ..self.clone()
        })
    }

    pub(crate) fn version(&self) -> u64 {
        let rare = || self.rare.as_ref().and_then(|rare| rare.version);
        let version = self.version.map(|version| version.get().into()).or_else(rare);
        version.expect("a version that is not here is in the box")
    }
}

/// Boxes the rare fields, if any is set.
fn boxed(rare: RareFields) -> Option<Box<RareFields>> {
    (rare != RareFields::default()).then(|| Box::new(rare))
}

/// Returns an address as 32 bits that are not zero, or else the address itself.
fn packed(address: Option<IpAddr>) -> (Option<NonZeroU32>, Option<IpAddr>) {
    let bits = match address {
        Some(IpAddr::V4(address)) => NonZeroU32::new(address.to_bits()),
        _ => None,
    };
    (bits, if bits.is_some() { None } else { address })
}

/// Returns a lifetime as days or [`NEVER`], or else the lifetime itself. The default is neither.
fn packed_lifetime(lifetime: Lifetime) -> (Option<NonZeroU16>, Option<Lifetime>) {
    let days = match lifetime {
        Lifetime::Default => return (None, None),
        Lifetime::Never => return (Some(NEVER), None),
        Lifetime::Days(days) => u16::try_from(days).ok().and_then(NonZeroU16::new),
        Lifetime::Seconds(_) => None,
    };
    match days.filter(|days| *days != NEVER) {
        Some(days) => (Some(days), None),
        None => (None, Some(lifetime)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{Authority, KeyId, KeyedDigest, Reason, TokenKind};
    use proptest::option::of;
    use proptest::prelude::*;

    fn at(micros: impl Strategy<Value = i64>) -> impl Strategy<Value = DateTime<Utc>> {
        micros.prop_map(at_micros)
    }

    fn instant() -> impl Strategy<Value = DateTime<Utc>> {
        at(prop_oneof![-100_i64..100, -1_000_000_000_000_000..4_000_000_000_000_000_i64])
    }

    fn id() -> impl Strategy<Value = TokenId> {
        any::<[u64; 2]>().prop_map(|[high, low]| {
            TokenId::from_words([high & !0xF000 | 0x7000, low >> 2 | 1 << 63]).unwrap()
        })
    }

    fn owner() -> impl Strategy<Value = OwnerId> {
        "[a-c]".prop_map(|text| OwnerId::new(&text).unwrap())
    }

    fn actor() -> impl Strategy<Value = ActorRef> {
        prop_oneof![
            Just(ActorRef::System),
            Just(ActorRef::Erased),
            owner().prop_map(ActorRef::Owner),
            (owner(), id()).prop_map(|(owner, id)| ActorRef::Token { owner, id }),
        ]
    }

    fn digest() -> impl Strategy<Value = KeyedDigest> {
        any::<(u16, [u8; 32])>().prop_map(|(key, mac)| KeyedDigest::new(KeyId::new(key), mac))
    }

    fn stored_digest() -> impl Strategy<Value = StoredDigest> {
        let foreign = any::<[u8; 8]>().prop_map(|value| ForeignDigest::new("other", &value));
        prop_oneof![digest().prop_map(StoredDigest::Keyed), foreign.prop_map(StoredDigest::Foreign)]
    }

    fn address() -> impl Strategy<Value = Option<IpAddr>> {
        prop_oneof![
            Just(None),
            Just(Some(Ipv4Addr::UNSPECIFIED.into())),
            any::<IpAddr>().prop_map(Some)
        ]
    }

    fn lifetime() -> impl Strategy<Value = Lifetime> {
        let days = prop_oneof![0_u32..3, 65_533_u32..65_538, any::<u32>()];
        let seconds = any::<u64>().prop_map(Lifetime::Seconds);
        prop_oneof![
            Just(Lifetime::Default),
            Just(Lifetime::Never),
            days.prop_map(Lifetime::Days),
            seconds
        ]
    }

    fn version() -> impl Strategy<Value = u64> {
        prop_oneof![0_u64..3, 254_u64..258, any::<u64>()]
    }

    prop_compose! {
        fn facts()(
            expires_at in of(instant()),
            revoked in of((instant(), actor())),
            rotated in of((id(), instant(), instant())),
        ) -> Facts {
            Facts {
                expires_at,
                revocation: revoked.map(|(at, by)| {
                    Box::new(Revocation { at, by, authority: Authority::Admin, reason: Reason::Idle })
                }),
                succession: rotated.map(|(successor, at, until)| Succession { successor, at, until }),
            }
        }
    }

    prop_compose! {
        fn token()(
            (digest, owner, realm, networks) in
                (stored_digest(), owner(), "[a-b]", of(prop::sample::select(vec!["10.0.0.0/8", "::1"]))),
            (is_service, owner_kind) in (any::<bool>(), prop::sample::select(vec![
                OwnerKind::Human, OwnerKind::Service, OwnerKind::Internal,
            ])),
            facts in facts(),
            (used, address) in (of(instant()), address()),
            (created_at, id, scope, name) in
                (instant(), id(), of("[a-c]:[a-c]"), prop::sample::select(vec!["one", "Two", "Dre\u{fc}"])),
            name_key in of(prop_oneof![Just([0; 32]), any::<[u8; 32]>()]),
            (description, created_by, predecessor, ancestor, lifetime) in
                (of("[a-c]{1,3}"), actor(), of(id()), of(id()), lifetime()),
            (restored_by, idle_from, reuse_reported_at, notified_days, seal) in
                (of(id()), of(instant()), of(instant()), of(any::<u16>()), of(digest())),
            version in version(),
        ) -> Token {
            let kind = if is_service { TokenKind::Service } else { TokenKind::Personal };
            Token {
                digest,
                owner,
                realm: Realm::new(&realm).unwrap(),
                networks: networks.map(|network| Networks::parse([network]).unwrap()),
                kind,
                owner_kind,
                facts,
                last_used: used.map(|at| LastUse { at, address }),
                created_at,
                id,
                scope: scope.map_or(Scope::inherit(), |grant| Scope::only([grant.as_str()]).unwrap()),
                name: TokenName::stored(name),
                name_key: name_key.map(NameKey::from_bytes),
                description: description.and_then(|text| Description::new(&text).unwrap()),
                created_by,
                restored_by,
                predecessor,
                ancestor,
                lifetime,
                idle_from: idle_from.unwrap_or(created_at),
                reuse_reported_at,
                notified_days,
                seal: seal.map(Seal::new),
                version,
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_out_as_it_was(token in token()) {
            let packed = Packed::of(&token);
            let unpacked = packed.token();
            prop_assert_eq!(packed.details.name_key(), token.name_key);
            prop_assert_eq!(unpacked, token);
        }

        #[test]
        fn a_later_use_changes_the_last_use_alone(
            token in token(), at in instant(), address in address(), plausible_until in instant(),
        ) {
            let last_use = LastUse { at, address };
            let is_later = token.last_used.is_none_or(|known| known.at < at || known.at > plausible_until);
            let used = Packed::of(&token).used(last_use, plausible_until);
            let expected = is_later.then_some(Token { last_used: Some(last_use), ..token });
            prop_assert_eq!(used.map(|packed| packed.token()), expected);
        }

        #[test]
        fn both_forms_end_at_one_instant(token in token()) {
            prop_assert_eq!(Packed::of(&token).ended_at(), token.facts.ended_at());
        }
    }

    #[test]
    fn what_every_record_has_is_small() {
        assert!(size_of::<Details>() <= 80);
    }
}
