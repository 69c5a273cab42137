//! The stored facts about a token, from which its state is derived. [`lifecycle`](crate::lifecycle)
//! decides which changes are allowed.

use super::{Rfc3339, TokenId};
use crate::clock::micros;
use crate::named_enum::named_enum;
use crate::owner::OwnerId;
use chrono::{DateTime, Utc};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

named_enum! {
    /// The state of a token at one instant.
    pub enum TokenState {
        /// The token works.
        Active = "active",
        /// The token was revoked and has not reached its expiry.
        Revoked = "revoked",
        /// The token has reached its expiry, whether it was revoked or not.
        Expired = "expired",
    }
}

/// The stored facts from which a token's state is derived.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(clippy::exhaustive_structs, reason = "a store must not be able to forget a field")]
pub struct Facts {
    /// When the token expires. `None` if it never does.
    pub expires_at: Option<DateTime<Utc>>,
    /// The revocation, if the token was revoked. Boxed, because most tokens are not revoked.
    pub revocation: Option<Box<Revocation>>,
    /// The succession, if the token was rotated.
    pub succession: Option<Succession>,
}

impl Facts {
    /// Returns the state at `now`. A token is expired from the very instant of its expiry.
    pub fn state(&self, now: DateTime<Utc>) -> TokenState {
        let expires_at = self.expires_at.map_or(NEVER_ENDS, micros);
        TokenState::derived(expires_at, self.revocation.is_some(), micros(now))
    }

    /// Returns when the token expires or was revoked, whichever comes first. `None` if neither
    /// applies.
    ///
    /// Pruning uses this instant.
    pub fn ended_at(&self) -> Option<DateTime<Utc>> {
        ended_at(self.expires_at, self.revocation.as_deref())
    }
}

/// Returns the earlier of an expiry and a revocation.
pub(super) fn ended_at(
    expires_at: Option<DateTime<Utc>>,
    revocation: Option<&Revocation>,
) -> Option<DateTime<Utc>> {
    expires_at.into_iter().chain(revocation.map(|revocation| revocation.at)).min()
}

/// The expiry of a token that never expires. It is later than any instant.
pub(super) const NEVER_ENDS: i64 = i64::MAX;

impl TokenState {
    /// Derives the state; nothing else decides it. Instants are microseconds since 1970.
    pub(super) const fn derived(expires_at: i64, is_revoked: bool, now: i64) -> Self {
        if expires_at <= now {
            Self::Expired
        } else if is_revoked {
            Self::Revoked
        } else {
            Self::Active
        }
    }
}

/// The revocation of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a store must not be able to forget a field")]
pub struct Revocation {
    /// When the token was revoked.
    pub at: DateTime<Utc>,
    /// Who revoked the token.
    pub by: ActorRef,
    /// The authority of the actor who revoked the token. Restoring the token needs at least this
    /// authority.
    pub authority: Authority,
    /// Why the token was revoked.
    pub reason: Reason,
}

impl Serialize for Revocation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut revocation = serializer.serialize_struct("Revocation", 3)?;
        revocation.serialize_field("at", &Rfc3339(self.at))?;
        revocation.serialize_field("by", &self.by)?;
        revocation.serialize_field("reason", self.reason.as_str())?;
        revocation.end()
    }
}

/// The rotation of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a store must not be able to forget a field")]
pub struct Succession {
    /// The token that replaced this one.
    pub successor: TokenId,
    /// When the token was rotated.
    pub at: DateTime<Utc>,
    /// The end of the overlap, until which the token works beside its successor. Equal to `at` if
    /// there was no overlap. Presenting the token after the overlap is a signal of reuse.
    pub until: DateTime<Utc>,
}

named_enum! {
    /// Why a token was revoked.
    pub enum Reason {
        /// The owner revoked the token.
        Owner = "owner",
        /// An admin revoked the token.
        Admin = "admin",
        /// The host revoked the token.
        System = "system",
        /// All tokens of the owner were revoked.
        Offboarding = "offboarding",
        /// The token was unused for longer than the policy allows.
        Idle = "idle",
        /// A successor replaced the token.
        Rotated = "rotated",
        /// An ancestor of the token was presented after its rotation.
        Reuse = "reuse",
        /// The token descends from a compromised token, but the actor who reported that token has no
        /// authority over this one. An admin may restore it.
        Suspected = "suspected",
        /// Others know the token's secret.
        Compromised = "compromised",
    }
}

impl Reason {
    /// Returns whether no authority restores a token that was revoked for this reason.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Rotated | Self::Reuse | Self::Compromised => true,
            Self::Owner
            | Self::Admin
            | Self::System
            | Self::Offboarding
            | Self::Idle
            | Self::Suspected => false,
        }
    }
}

named_enum! {
    /// The capacity in which somebody acts. Later variants have more weight.
    #[derive(PartialOrd, Ord)]
    pub enum Authority {
        /// The token's own owner, or the token itself.
        Owner = "owner",
        /// Somebody who may manage other owners' tokens.
        Admin = "admin",
        /// The host.
        System = "system",
    }
}

/// The recorded actor of a change.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ActorRef {
    /// The host itself.
    System,
    /// An owner in a session.
    Owner(OwnerId),
    /// An owner through one of its tokens.
    Token {
        /// The owner.
        owner: OwnerId,
        /// The token.
        id: TokenId,
    },
    /// An actor whose traces were erased.
    Erased,
    /// An actor who did not prove an identity, because the presented secret was wrong.
    Unproven,
}

impl ActorRef {
    /// Returns `system`, `owner`, `token`, `erased` or `unproven`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Owner(_) => "owner",
            Self::Token { .. } => "token",
            Self::Erased => "erased",
            Self::Unproven => "unproven",
        }
    }

    /// Returns the id of the owner. `None` if the actor is the host, erased or unproven.
    pub const fn owner_id(&self) -> Option<&OwnerId> {
        match self {
            Self::Owner(owner) | Self::Token { owner, .. } => Some(owner),
            Self::System | Self::Erased | Self::Unproven => None,
        }
    }

    /// Returns the id of the token through which the actor acted. `None` if there is none.
    pub const fn token_id(&self) -> Option<TokenId> {
        match self {
            Self::Token { id, .. } => Some(*id),
            Self::System | Self::Owner(_) | Self::Erased | Self::Unproven => None,
        }
    }
}

/// Serializes as `{kind, owner, token}`. A missing owner or token is null.
impl Serialize for ActorRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut actor = serializer.serialize_struct("Actor", 3)?;
        actor.serialize_field("kind", self.kind())?;
        actor.serialize_field("owner", &self.owner_id())?;
        actor.serialize_field("token", &self.token_id())?;
        actor.end()
    }
}
