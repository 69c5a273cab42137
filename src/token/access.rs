//! The fields of a record that a verification reads.
//!
//! A table in memory keeps them beside the id. Among a million records, a verification therefore
//! reads no second place in memory to decide on one.

use super::facts::NEVER_ENDS;
use super::{KeyId, KeyedDigest, StoredDigest, Token, TokenKind, TokenState};
use crate::clock::{at_micros, micros, plausible_until};
use chrono::{DateTime, Utc};
use std::ops::Deref;

/// The last use of an unused token. It is earlier than any instant.
const NEVER_USED: i64 = i64::MIN;

/// The fields that a verification decides on, as words of a table: four of the digest, and the
/// [`Terms`].
///
/// A field is decoded only when it is asked for, because each move costs and most fields are read
/// once.
#[derive(Clone, Copy)]
pub(crate) struct Access {
    digest: [u64; 4],
    terms: Terms,
}

/// Expiry, creation and last use, in microseconds since 1970. A fourth word has a number for the
/// record's owner, the digest's key and the flags.
#[derive(Clone, Copy)]
pub(crate) struct Terms([u64; 4]);

impl Access {
    /// Packs a record, with the number of its owner in a table.
    pub(crate) fn of(token: &Token, owner: u32) -> Self {
        let (digest, foreign) = match &token.digest {
            StoredDigest::Keyed(digest) => (*digest, false),
            StoredDigest::Foreign(_) => (KeyedDigest::new(KeyId::new(0), [0; 32]), true),
        };
        let flags = [
            (Terms::SERVICE, token.kind == TokenKind::Service),
            (Terms::FOREIGN, foreign),
            (Terms::REVOKED, token.facts.revocation.is_some()),
            (Terms::NETWORKS, token.networks.is_some()),
        ];
        let flags =
            flags.iter().filter(|(_, is_set)| *is_set).fold(0, |flags, (flag, _)| flags | flag);
        let expires_at = token.facts.expires_at.map_or(NEVER_ENDS, micros);
        let last_used_at = token.last_used.map_or(NEVER_USED, |used| micros(used.at));
        let [expires_at, created_at, last_used_at] =
            [expires_at, micros(token.created_at), last_used_at].map(i64::cast_unsigned);
        let rest = u64::from(owner) << 32 | u64::from(digest.key().get()) << 16 | flags;
        Self { digest: digest.words(), terms: Terms([expires_at, created_at, last_used_at, rest]) }
    }

    pub(crate) const fn from_words(words: [u64; 8]) -> Self {
        let [a, b, c, d, terms @ ..] = words;
        Self { digest: [a, b, c, d], terms: Terms(terms) }
    }

    pub(crate) const fn words(self) -> [u64; 8] {
        let ([a, b, c, d], Terms([expires_at, created_at, last_used_at, rest])) =
            (self.digest, self.terms);
        [a, b, c, d, expires_at, created_at, last_used_at, rest]
    }

    /// Returns the words of the digest.
    pub(crate) const fn digest(&self) -> [u64; 4] {
        self.digest
    }

    /// Returns the digest as a record has it. If there is no keyed digest yet, the result is the
    /// digest of no token.
    pub(crate) fn keyed_digest(&self) -> KeyedDigest {
        let mut mac = [0; 32];
        for (place, word) in mac.as_chunks_mut().0.iter_mut().zip(self.digest) {
            *place = word.to_ne_bytes();
        }
        KeyedDigest::new(KeyId::new(self.rest_from(16)), mac)
    }

    pub(crate) const fn terms(&self) -> Terms {
        self.terms
    }

    /// Returns a copy with this last use.
    pub(crate) fn used_at(self, at: DateTime<Utc>) -> Self {
        let Terms([expires_at, created_at, _, rest]) = self.terms;
        Self { terms: Terms([expires_at, created_at, micros(at).cast_unsigned(), rest]), ..self }
    }
}

impl Deref for Access {
    type Target = Terms;

    #[inline]
    fn deref(&self) -> &Terms {
        &self.terms
    }
}

impl Terms {
    const SERVICE: u64 = 1;
    /// The token has no keyed digest yet.
    const FOREIGN: u64 = 1 << 1;
    const REVOKED: u64 = 1 << 2;
    const NETWORKS: u64 = 1 << 3;
    /// The state that a view shows. The state is active if neither flag is set.
    const SEEN_REVOKED: u64 = 1 << 4;
    const SEEN_EXPIRED: u64 = 1 << 5;
    /// In a view: the directory could not answer for the owner.
    const NO_ANSWER: u64 = 1 << 6;
    /// In a view: the owner's *valid after* is later than the creation.
    const ENDED: u64 = 1 << 7;

    /// Returns the terms for a view that found the token in this state.
    pub(crate) const fn seen(self, state: TokenState) -> Self {
        let Self([a, b, c, rest]) = self;
        match state {
            TokenState::Active => self,
            TokenState::Revoked => Self([a, b, c, rest | Self::SEEN_REVOKED]),
            TokenState::Expired => Self([a, b, c, rest | Self::SEEN_EXPIRED]),
        }
    }

    /// Returns the terms for a view if the directory could not answer for the owner.
    pub(crate) const fn without_answer(self) -> Self {
        let Self([a, b, c, rest]) = self;
        Self([a, b, c, rest | Self::NO_ANSWER])
    }

    /// Returns the terms for a view if the owner's *valid after* has ended the token.
    pub(crate) const fn ended(self) -> Self {
        let Self([a, b, c, rest]) = self;
        Self([a, b, c, rest | Self::ENDED])
    }

    /// Returns whether the owner's *valid after* has ended the token.
    pub(crate) const fn is_ended(&self) -> bool {
        self.has(Self::ENDED)
    }

    /// Returns whether the directory could not answer for the owner.
    pub(crate) const fn lacks_answer(&self) -> bool {
        self.has(Self::NO_ANSWER)
    }

    /// Returns the state that a view found.
    pub(crate) const fn state_seen(&self) -> TokenState {
        if self.has(Self::SEEN_EXPIRED) {
            TokenState::Expired
        } else if self.has(Self::SEEN_REVOKED) {
            TokenState::Revoked
        } else {
            TokenState::Active
        }
    }

    pub(crate) const fn kind(&self) -> TokenKind {
        if self.has(Self::SERVICE) { TokenKind::Service } else { TokenKind::Personal }
    }

    /// Returns the id of the key of the digest that proves a token of this kind. `None` if there is
    /// no such digest.
    pub(crate) fn key(&self, kind: TokenKind) -> Option<KeyId> {
        (kind == self.kind() && !self.has(Self::FOREIGN)).then(|| KeyId::new(self.rest_from(16)))
    }

    /// Returns the state at `now`, in microseconds.
    pub(crate) const fn state(&self, now: i64) -> TokenState {
        let Self([expires_at, ..]) = self;
        TokenState::derived(expires_at.cast_signed(), self.has(Self::REVOKED), now)
    }

    /// Returns when the token expires. `None` if it never does.
    pub(crate) fn expires_at(&self) -> Option<DateTime<Utc>> {
        let Self([expires_at, ..]) = self;
        Some(expires_at.cast_signed()).filter(|at| *at != NEVER_ENDS).map(at_micros)
    }

    /// Returns the time of creation, in microseconds.
    pub(crate) const fn created_at(&self) -> i64 {
        let Self([_, created_at, ..]) = self;
        created_at.cast_signed()
    }

    /// Returns whether the token was created before `instant`; `now` is in microseconds.
    ///
    /// A creation later than a right clock may have stored at `now` counts as before any instant.
    /// Otherwise, such a token would survive every "sign out everywhere" until that time.
    pub(crate) fn is_older_than(&self, instant: DateTime<Utc>, now: i64) -> bool {
        self.created_at() < micros(instant)
            || self.created_at() > micros(plausible_until(at_micros(now)))
    }

    /// Returns the last use known to the store, in microseconds.
    pub(crate) const fn last_used_at(&self) -> Option<i64> {
        let Self([.., last_used_at, _]) = self;
        let last_used_at = last_used_at.cast_signed();
        if last_used_at == NEVER_USED { None } else { Some(last_used_at) }
    }

    pub(crate) const fn has_networks(&self) -> bool {
        self.has(Self::NETWORKS)
    }

    /// Returns the number of the record's owner.
    #[allow(clippy::as_conversions, clippy::cast_possible_truncation, reason = "32 bits are left")]
    pub(crate) const fn owner(&self) -> u32 {
        let Self([.., rest]) = self;
        (*rest >> 32) as u32
    }

    const fn has(&self, flag: u64) -> bool {
        let Self([.., rest]) = self;
        *rest & flag != 0
    }

    #[allow(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        reason = "16 bits are wanted"
    )]
    const fn rest_from(&self, bit: u32) -> u16 {
        let Self([.., rest]) = self;
        (*rest >> bit) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{
        ActorRef, Authority, Facts, ForeignDigest, LastUse, Networks, Reason, Revocation,
    };
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
                digest: if foreign {
                    StoredDigest::Foreign(ForeignDigest::new("other", &mac))
                } else {
                    StoredDigest::Keyed(KeyedDigest::new(KeyId::new(key), mac))
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
        /// Goes through the words, as a table does.
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
                let expected = match &token.digest {
                    StoredDigest::Keyed(digest) if token.kind == kind => Some((digest.key(), digest.words())),
                    _ => None,
                };
                prop_assert_eq!(access.key(kind).map(|key| (key, access.digest())), expected);
            }
        }
    }
}
