//! What a verification reads of a record, apart from the rest of it: in a table in memory it lies beside the id, so that of a
//! million records no second place in memory has to be read to know whether one lets its holder in.

use super::facts::NEVER_ENDS;
use super::{Credential, KeyId, KeyedDigest, Token, TokenKind, TokenState};
use crate::clock::micros;

/// Earlier than any instant: the last use of what was not used.
const NEVER_USED: i64 = i64::MIN;

/// What a verification decides on, as words that a table keeps: the four of the digest; expiry, creation and last use, in
/// microseconds since 1970; then a number for the record's owner, the digest's key and the flags.
///
/// It stays in words until something of it is asked for: each move of it costs, and most of it is read once.
#[derive(Clone, Copy)]
pub(crate) struct Access([u64; 8]);

impl Access {
    const SERVICE: u64 = 1;
    /// There is no keyed digest yet.
    const FOREIGN: u64 = 1 << 1;
    const REVOKED: u64 = 1 << 2;
    const NETWORKS: u64 = 1 << 3;

    /// What is in a record, and the number that its owner has in some table.
    pub(crate) fn of(token: &Token, owner: u32) -> Self {
        let (digest, foreign) = match &token.credential {
            Credential::Keyed(digest) => (*digest, false),
            Credential::Foreign(_) => (KeyedDigest::new(KeyId::new(0), [0; 32]), true),
        };
        let flags = [
            (Self::SERVICE, token.kind == TokenKind::Service),
            (Self::FOREIGN, foreign),
            (Self::REVOKED, token.facts.revocation.is_some()),
            (Self::NETWORKS, token.networks.is_some()),
        ];
        let flags = flags.iter().filter(|(_, is_set)| *is_set).fold(0, |flags, (flag, _)| flags | flag);
        let [a, b, c, d] = digest.words();
        let expires_at = token.facts.expires_at.map_or(NEVER_ENDS, micros);
        let last_used_at = token.last_used.map_or(NEVER_USED, |used| micros(used.at));
        let [expires_at, created_at, last_used_at] =
            [expires_at, micros(token.created_at), last_used_at].map(i64::cast_unsigned);
        let rest = u64::from(owner) << 32 | u64::from(digest.key().get()) << 16 | flags;
        Self([a, b, c, d, expires_at, created_at, last_used_at, rest])
    }

    pub(crate) const fn from_words(words: [u64; 8]) -> Self {
        Self(words)
    }

    pub(crate) const fn words(self) -> [u64; 8] {
        self.0
    }

    pub(crate) const fn kind(&self) -> TokenKind {
        if self.has(Self::SERVICE) { TokenKind::Service } else { TokenKind::Personal }
    }

    /// The key of the digest that a token of this kind is proven by, if there is one.
    pub(crate) fn key(&self, kind: TokenKind) -> Option<KeyId> {
        (kind == self.kind() && !self.has(Self::FOREIGN)).then(|| KeyId::new(self.rest_from(16)))
    }

    /// The words of that digest.
    pub(crate) const fn digest(&self) -> [u64; 4] {
        let [a, b, c, d, ..] = self.0;
        [a, b, c, d]
    }

    /// The state at `now`, in microseconds.
    pub(crate) const fn state(&self, now: i64) -> TokenState {
        let [.., expires_at, _, _, _] = self.0;
        TokenState::derived(expires_at.cast_signed(), self.has(Self::REVOKED), now)
    }

    /// In microseconds.
    pub(crate) const fn created_at(&self) -> i64 {
        let [.., created_at, _, _] = self.0;
        created_at.cast_signed()
    }

    /// The last use known to the store, in microseconds.
    pub(crate) const fn last_used_at(&self) -> Option<i64> {
        let [.., last_used_at, _] = self.0;
        let last_used_at = last_used_at.cast_signed();
        if last_used_at == NEVER_USED { None } else { Some(last_used_at) }
    }

    pub(crate) const fn has_networks(&self) -> bool {
        self.has(Self::NETWORKS)
    }

    /// The number of the record's owner.
    #[allow(clippy::as_conversions, clippy::cast_possible_truncation, reason = "32 bits are left")]
    pub(crate) const fn owner(&self) -> u32 {
        let [.., rest] = self.0;
        (rest >> 32) as u32
    }

    const fn has(&self, flag: u64) -> bool {
        let [.., rest] = self.0;
        rest & flag != 0
    }

    #[allow(clippy::as_conversions, clippy::cast_possible_truncation, reason = "16 bits are wanted")]
    const fn rest_from(&self, bit: u32) -> u16 {
        let [.., rest] = self.0;
        (rest >> bit) as u16
    }
}
#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{ActorRef, Authority, Facts, ForeignDigest, LastUse, Networks, Reason, Revocation};
    use chrono::{DateTime, Utc};
    use proptest::prelude::*;

    fn at(micros: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(micros).unwrap()
    }

    prop_compose! {
        fn token()(
            mac: [u8; 32], key: u16, foreign: bool, service: bool, revoked: bool, networks: bool,
            expires in prop::option::of(-1_000_i64..1_000), used in prop::option::of(-1_000_i64..1_000),
            created in -1_000_i64..1_000,
        ) -> Token {
            let revocation =
                Revocation { at: at(0), by: ActorRef::System, authority: Authority::System, reason: Reason::System };
            Token {
                credential: if foreign {
                    Credential::Foreign(ForeignDigest::new("other", &mac))
                } else {
                    Credential::Keyed(KeyedDigest::new(KeyId::new(key), mac))
                },
                kind: if service { TokenKind::Service } else { TokenKind::Personal },
                facts: Facts {
                    expires_at: expires.map(at),
                    revocation: revoked.then(|| Box::new(revocation)),
                    succession: None,
                },
                networks: networks.then(|| Networks::parse(["10.0.0.0/8"]).unwrap()),
                created_at: at(created),
                last_used: used.map(|used| LastUse::new(at(used), None)),
                ..Token::clone(Token::vacant())
            }
        }
    }

    proptest! {
        /// Through its words, as a table has it.
        #[test]
        fn it_says_what_the_record_says(token in token(), owner: u32, now in -1_000_i64..1_000) {
            let access = Access::from_words(Access::of(&token, owner).words());
            prop_assert_eq!(access.owner(), owner);
            prop_assert_eq!(access.kind(), token.kind);
            prop_assert_eq!(access.state(now), token.state(at(now)));
            prop_assert_eq!(access.created_at(), micros(token.created_at));
            prop_assert_eq!(access.last_used_at(), token.last_used.map(|used| micros(used.at)));
            prop_assert_eq!(access.has_networks(), token.networks.is_some());
            for kind in [TokenKind::Personal, TokenKind::Service] {
                let expected = match &token.credential {
                    Credential::Keyed(digest) if token.kind == kind => Some((digest.key(), digest.words())),
                    _ => None,
                };
                prop_assert_eq!(access.key(kind).map(|key| (key, access.digest())), expected);
            }
        }
    }
}
