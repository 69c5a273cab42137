//! Audit events, and the sink that receives them.
//!
//! An event is stored in the same commit as the change that it describes, so the store's table is
//! authoritative. The sink is called after the commit, once and best effort. A crash between the
//! two loses the call, but not the event.

use crate::named_enum::named_enum;
use crate::owner::{OwnerId, Realm};
use crate::role::UnknownName;
use crate::token::id::IdSource;
use crate::token::{ActorRef, Reason, TokenId};
use chrono::{DateTime, Utc};
use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

named_enum! {
    /// The kind of an audit event of a token.
    pub enum AuditAction {
        /// The token was made.
        Generated = "generated",
        /// The token was put back into use.
        Restored = "restored",
        /// The token was taken out of use.
        Revoked = "revoked",
        /// The token's name or description was changed.
        Renamed = "renamed",
        /// The token was replaced by a successor.
        Rotated = "rotated",
        /// The token's record was removed.
        Deleted = "deleted",
        /// The token's right secret was presented after the token had been rotated.
        Reuse = "reuse",
        /// The token's text was found where it should not be. This crate does not record this
        /// action yet; a store keeps its events unchanged.
        Leak = "leak",
        /// The token's digest was moved to the primary key.
        Redigested = "redigested",
        /// The token was presented and refused.
        Refused = "refused",
    }
}

/// The id of an audit event.
///
/// It is 128 bits, a `UUIDv7` (RFC 9562 section 5.7), written as 22 characters of `0-9A-Za-z`. The
/// ids from one service strictly increase, so its events of one instant are ordered. Sinks and
/// stored events use the same ids.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(TokenId);

/// The error if a text or bytes are not an event id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the text is not an event id; write all 22 characters of the id, which are 0-9A-Za-z")]
#[non_exhaustive]
pub struct EventIdError;

impl EventId {
    /// Creates an id from the 16 bytes that [`to_bytes`](Self::to_bytes) returned.
    ///
    /// # Errors
    /// [`EventIdError`] if the bytes are not a `UUIDv7`.
    pub fn from_bytes(bytes: [u8; 16]) -> Result<Self, EventIdError> {
        TokenId::from_bytes(bytes).map(Self).map_err(|_| EventIdError)
    }

    /// Returns the 16 bytes of the UUID, big-endian.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_bytes()
    }

    /// Creates the id of a new event at `now`.
    pub(crate) fn generate(ids: &IdSource, now: DateTime<Utc>) -> Self {
        Self(ids.generate_event(now))
    }

    pub(crate) const fn new(uuid: TokenId) -> Self {
        Self(uuid)
    }

    /// Returns the 128 bits, which have the type of a token id.
    pub(crate) const fn uuid(self) -> TokenId {
        self.0
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventId({self})")
    }
}

impl FromStr for EventId {
    type Err = EventIdError;

    fn from_str(text: &str) -> Result<Self, EventIdError> {
        text.parse().map(Self).map_err(|_| EventIdError)
    }
}

/// An audit event. It never contains any part of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a store must not be able to forget a field")]
pub struct AuditEvent {
    /// The id of the event.
    pub id: EventId,
    /// The time of the event.
    pub at: DateTime<Utc>,
    /// The realm of the token.
    pub realm: Realm,
    /// The action.
    pub action: AuditAction,
    /// The actor.
    pub actor: ActorRef,
    /// The token.
    pub token: TokenId,
    /// The token's owner. `None` once the owner was erased.
    pub owner: Option<OwnerId>,
    /// The name of a [`Reason`], or of the reason of a refusal.
    pub reason: Option<Cow<'static, str>>,
    /// The address of the actor, if the host gave one.
    pub address: Option<IpAddr>,
}

impl AuditEvent {
    /// Sets the reason.
    pub fn because(mut self, reason: Reason) -> Self {
        self.reason = Some(Cow::Borrowed(reason.as_str()));
        self
    }

    /// Removes every trace of `owner`, as erasing an owner does to the stored events.
    ///
    /// This clears the token's owner, the actor and the address.
    pub fn erase(&mut self, realm: &Realm, owner: &OwnerId) {
        if self.realm != *realm {
            return;
        }
        let theirs = self.owner.as_ref() == Some(owner);
        let by_them = self.actor.owner_id() == Some(owner);
        if theirs {
            self.owner = None;
        }
        if by_them {
            self.actor = ActorRef::Erased;
        }
        if theirs || by_them {
            self.address = None;
        }
    }
}

/// Receives every event after it was stored.
///
/// A refusal is received at once, before the next flush stores it.
///
/// The sink is called on the thread of the operation, so hand the event on and return. A panic in
/// the sink reaches the caller of the operation, which is committed by then.
pub trait AuditSink: Send + Sync {
    /// Receives an event.
    fn record(&self, event: &AuditEvent);

    /// Receives a name that the role catalogue does not know.
    ///
    /// Called when an owner has an unknown role or a route demands an unknown permission, once for
    /// each name, for up to [`MAX_REPORTED_NAMES`](crate::role::MAX_REPORTED_NAMES) roles and as
    /// many permissions. The default does nothing.
    fn unknown_name(&self, _name: UnknownName<'_>) {}
}

impl<S: AuditSink + ?Sized> AuditSink for Arc<S> {
    fn record(&self, event: &AuditEvent) {
        (**self).record(event);
    }

    fn unknown_name(&self, name: UnknownName<'_>) {
        (**self).unknown_name(name);
    }
}

/// Writes each event as one `tracing` event with the target `patkit::audit`.
///
/// The level is INFO, or WARN for reuse, leaks and compromise. Subscribers get every text as a
/// field and escape it in their own way.
#[cfg(feature = "tracing")]
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct TracingSink;

#[cfg(feature = "tracing")]
impl TracingSink {
    /// Creates the sink.
    pub const fn new() -> Self {
        Self
    }
}

#[cfg(feature = "tracing")]
impl AuditSink for TracingSink {
    fn record(&self, event: &AuditEvent) {
        macro_rules! write_at {
            ($level:expr) => {
                tracing::event!(
                    target: "patkit::audit",
                    $level,
                    id = %event.id,
                    action = event.action.as_str(),
                    realm = ?event.realm.as_str(),
                    token = %event.token,
                    owner = ?event.owner.as_ref().map(OwnerId::as_str),
                    actor = event.actor.kind(),
                    actor_owner = ?event.actor.owner_id().map(OwnerId::as_str),
                    actor_token = ?event.actor.token_id(),
                    reason = event.reason.as_deref(),
                    address = ?event.address,
                )
            };
        }
        let alarming = matches!(event.action, AuditAction::Reuse | AuditAction::Leak)
            || event.reason.as_deref() == Some(Reason::Compromised.as_str());
        // The level must be a constant because it is part of the macro's static call site.
        if alarming {
            write_at!(tracing::Level::WARN);
        } else {
            write_at!(tracing::Level::INFO);
        }
    }
}

/// Counts each event in `patkit_audit_events_total`, with the labels `action` and `reason`.
#[cfg(feature = "metrics")]
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct MetricsSink;

#[cfg(feature = "metrics")]
impl MetricsSink {
    /// Creates the sink.
    pub const fn new() -> Self {
        Self
    }
}

#[cfg(feature = "metrics")]
impl AuditSink for MetricsSink {
    fn record(&self, event: &AuditEvent) {
        let reason = event.reason.clone().unwrap_or_default();
        metrics::counter!(
            "patkit_audit_events_total",
            "action" => event.action.as_str(),
            "reason" => reason.into_owned(),
        )
        .increment(1);
    }
}
