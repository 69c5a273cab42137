//! What happened, for the host's records: the events, and the sink that is told of them.
//!
//! An event is stored in the same commit as the change that it tells of: the store's table is the truth. The sink is
//! called after the commit, once, best effort: a crash in between loses the call, not the event.

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

/// What happened to a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AuditAction {
    /// It was made.
    Generated,
    /// It was put back into use.
    Restored,
    /// It was taken out of use.
    Revoked,
    /// Its name or its description was changed.
    Renamed,
    /// A successor took its place.
    Rotated,
    /// Its record was removed.
    Deleted,
    /// Its right secret was presented after it had been rotated.
    Reuse,
    /// Its text was found where it should not be.
    Leak,
    /// Its digest was moved to the primary key.
    Redigested,
    /// It was presented and refused.
    Refused,
}

impl AuditAction {
    /// All actions.
    pub const ALL: [Self; 10] = [
        Self::Generated,
        Self::Restored,
        Self::Revoked,
        Self::Renamed,
        Self::Rotated,
        Self::Deleted,
        Self::Reuse,
        Self::Leak,
        Self::Redigested,
        Self::Refused,
    ];

    /// The action's name, such as `generated`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Generated => "generated",
            Self::Restored => "restored",
            Self::Revoked => "revoked",
            Self::Renamed => "renamed",
            Self::Rotated => "rotated",
            Self::Deleted => "deleted",
            Self::Reuse => "reuse",
            Self::Leak => "leak",
            Self::Redigested => "redigested",
            Self::Refused => "refused",
        }
    }

    /// The action with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.as_str() == name)
    }
}

impl fmt::Display for AuditAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The id of an audit event: 128 bits, a `UUIDv7` (RFC 9562 section 5.7), written as 22 characters of `0-9A-Za-z`.
///
/// The ids that one service makes increase strictly, so that its events of one instant have an order. A sink and the stored
/// events name an event by the same id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(TokenId);

/// The text or the bytes are not an event id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event id is 22 characters of 0-9A-Za-z that hold a UUIDv7")]
#[non_exhaustive]
pub struct EventIdError;

impl EventId {
    /// The id in these 16 bytes, as [`to_bytes`](Self::to_bytes) returned them.
    ///
    /// # Errors
    /// [`EventIdError`] if they do not hold a `UUIDv7`.
    pub fn from_bytes(bytes: [u8; 16]) -> Result<Self, EventIdError> {
        TokenId::from_bytes(bytes).map(Self).map_err(|_| EventIdError)
    }

    /// The 16 bytes of the UUID, big-endian.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_bytes()
    }

    /// Returns the id of a new event at `now`.
    pub(crate) fn generate(ids: &IdSource, now: DateTime<Utc>) -> Self {
        Self(ids.generate_event(now))
    }

    pub(crate) const fn new(uuid: TokenId) -> Self {
        Self(uuid)
    }

    /// The UUID.
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

/// One event. It never holds any of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a store must not be able to forget a field")]
pub struct AuditEvent {
    /// Which event.
    pub id: EventId,
    /// When.
    pub at: DateTime<Utc>,
    /// In which realm.
    pub realm: Realm,
    /// What.
    pub action: AuditAction,
    /// By whom.
    pub actor: ActorRef,
    /// To which token.
    pub token: TokenId,
    /// Whose token that is; none once the owner was erased.
    pub owner: Option<OwnerId>,
    /// Why: the name of a [`Reason`], or of the reason of a refusal.
    pub reason: Option<Cow<'static, str>>,
    /// From where, if the host said.
    pub address: Option<IpAddr>,
}

impl AuditEvent {
    /// This event because of `reason`.
    pub fn because(mut self, reason: Reason) -> Self {
        self.reason = Some(Cow::Borrowed(reason.as_str()));
        self
    }

    /// Takes out every trace of `owner`, as erasing an owner does to the stored events: whose the token was, who did it,
    /// and from where.
    pub fn erase(&mut self, realm: &Realm, owner: &OwnerId) {
        if self.realm != *realm {
            return;
        }
        let theirs = self.owner.as_ref() == Some(owner);
        let by_them = self.actor.owner() == Some(owner);
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

/// Is told of every event after it was stored; of a refusal when it happens, since those are stored with the next flush.
///
/// It is called on the thread of the operation: hand the event on and return. A panic in it goes to the caller of the
/// operation, which is committed by then.
pub trait AuditSink: Send + Sync {
    /// This happened.
    fn record(&self, event: &AuditEvent);

    /// An owner has a role, or a route demands a permission, that the role catalogue does not know. It is called once for each
    /// name while a service lives, for up to [`MAX_REPORTED_NAMES`](crate::role::MAX_REPORTED_NAMES) roles and as many
    /// permissions. Does nothing unless it is implemented.
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

/// Writes each event as one `tracing` event of level INFO (WARN for reuse, leaks and compromise) with the target
/// `patkit::audit`. Subscribers get every text as a field and escape it as they do.
#[cfg(feature = "tracing")]
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct TracingSink;

#[cfg(feature = "tracing")]
impl TracingSink {
    /// The sink.
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
                    actor_owner = ?event.actor.owner().map(OwnerId::as_str),
                    actor_token = ?event.actor.token(),
                    reason = event.reason.as_deref(),
                    address = ?event.address,
                )
            };
        }
        let alarming = matches!(event.action, AuditAction::Reuse | AuditAction::Leak)
            || event.reason.as_deref() == Some(Reason::Compromised.as_str());
        // A level is part of the macro's static call site, so it cannot come in as a value.
        if alarming {
            write_at!(tracing::Level::WARN);
        } else {
            write_at!(tracing::Level::INFO);
        }
    }
}

/// Counts each event in the counter `patkit_audit_events_total`, with the labels `action` and `reason`.
#[cfg(feature = "metrics")]
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct MetricsSink;

#[cfg(feature = "metrics")]
impl MetricsSink {
    /// The sink.
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
