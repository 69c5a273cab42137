//! Reading, exporting and purging the stored audit events.

use super::{CorruptRecord, StoreError};
use crate::audit::AuditEvent;
use crate::clock::micros;
use crate::owner::{OwnerId, Realm};
use crate::token::TokenId;
use chrono::{DateTime, Utc};
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// The maximum number of events in a page of [`AuditLog::events`] or [`AuditLog::export`].
pub const MAX_EVENTS: usize = 1_000;

/// Reads the audit events. Optional for a store.
///
/// There are two ways to read, because an event has two places in time. [`events`](Self::events)
/// reads by [`at`](AuditEvent::at), the instant at which the event happened, which is what people
/// search for. [`export`](Self::export) reads by commit, the instant from which the event could be
/// read. The commit may be much later: sampled refusals are stored with the next flush, and events
/// of a transaction of the host's are stored with its commit. A copy that continues after its last
/// event must therefore follow the commits.
pub trait AuditLog: Send + Sync {
    /// Returns one page of the events that match `query`.
    ///
    /// They are in the order of ([`at`](AuditEvent::at), [`id`](AuditEvent::id)). Pages neither
    /// repeat nor skip events, however many happened at one instant. An event that is stored while
    /// the pages are read is missed if its place is on a page that was already read.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails. A corrupt event is reported in the page and does not fail
    /// it.
    fn events(
        &self,
        query: &EventQuery,
    ) -> impl Future<Output = Result<EventPage, StoreError>> + Send;

    /// Returns up to `limit` events of all realms that follow `after` in the order of commits.
    ///
    /// No later commit changes this order: a reader that continues from [`ExportPage::next`] gets
    /// every event exactly once, including events that are committed long after they happened. An
    /// empty page means that there is currently nothing to export. A store may hold back an event
    /// until every transaction that was open at its commit has ended.
    ///
    /// Events that [`prune_events`](Self::prune_events) removed are no longer exported. Erasing an
    /// owner changes stored events, but not copies that were exported before.
    ///
    /// # Errors
    /// [`StoreError::Cursor`] if `after` is not a cursor of this store; other [`StoreError`]s if
    /// the store fails. A corrupt event is reported in the page, counts towards `limit`, and does
    /// not fail the page.
    fn export(
        &self,
        after: &ExportCursor,
        limit: usize,
    ) -> impl Future<Output = Result<ExportPage, StoreError>> + Send;

    /// Removes up to `limit` events that happened before `before`, oldest first, and returns their
    /// number.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails.
    fn prune_events(
        &self,
        before: DateTime<Utc>,
        limit: usize,
    ) -> impl Future<Output = Result<usize, StoreError>> + Send;
}

/// A query for audit events: which ones, in which order, and from where on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventQuery {
    /// Only events of this realm.
    pub realm: Realm,
    /// Only events of this token.
    pub token: Option<TokenId>,
    /// Only events of tokens of this owner. Events whose owner was erased match no owner.
    pub owner: Option<OwnerId>,
    /// Only events from this instant on (inclusive).
    pub from: Option<DateTime<Utc>>,
    /// Only events before this instant (exclusive).
    pub until: Option<DateTime<Utc>>,
    /// The order of the events.
    pub order: EventOrder,
    /// Only events that come after this one in that order.
    pub after: Option<EventCursor>,
    /// The maximum number of events in the page, from 1 to [`MAX_EVENTS`].
    pub limit: usize,
}

/// The order of the events of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(clippy::exhaustive_enums, reason = "there are two directions")]
pub enum EventOrder {
    /// The latest event first.
    #[default]
    NewestFirst,
    /// The earliest event first.
    OldestFirst,
}

impl EventQuery {
    /// Queries all events of a realm, newest first, [`MAX_EVENTS`] per page.
    pub fn new(realm: Realm) -> Self {
        Self {
            realm,
            token: None,
            owner: None,
            from: None,
            until: None,
            order: EventOrder::default(),
            after: None,
            limit: MAX_EVENTS,
        }
    }

    /// Keeps only events of this token.
    pub fn token(mut self, token: TokenId) -> Self {
        self.token = Some(token);
        self
    }

    /// Keeps only events of tokens of this owner.
    pub fn owner(mut self, owner: OwnerId) -> Self {
        self.owner = Some(owner);
        self
    }

    /// Keeps only events from this instant on (inclusive).
    pub fn from(mut self, at: DateTime<Utc>) -> Self {
        self.from = Some(at);
        self
    }

    /// Keeps only events before this instant (exclusive).
    pub fn until(mut self, at: DateTime<Utc>) -> Self {
        self.until = Some(at);
        self
    }

    /// Sets the order to oldest first.
    pub fn oldest_first(mut self) -> Self {
        self.order = EventOrder::OldestFirst;
        self
    }

    /// Keeps only events after this one: [`EventPage::next`] of the previous page.
    pub fn after(mut self, cursor: Option<EventCursor>) -> Self {
        self.after = cursor;
        self
    }

    /// Sets the maximum number of events, clamped to 1 to [`MAX_EVENTS`].
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit.clamp(1, MAX_EVENTS);
        self
    }

    /// Whether an event matches the query and follows [`after`](Self::after).
    pub fn holds(&self, event: &AuditEvent) -> bool {
        let is_further = match self.order {
            EventOrder::NewestFirst => Ordering::Less,
            EventOrder::OldestFirst => Ordering::Greater,
        };
        event.realm == self.realm
            && self.token.is_none_or(|token| event.token == token)
            && self.owner.as_ref().is_none_or(|owner| event.owner.as_ref() == Some(owner))
            && self.from.is_none_or(|from| event.at >= from)
            && self.until.is_none_or(|until| event.at < until)
            && self.after.is_none_or(|after| EventCursor::of(event).cmp(&after) == is_further)
    }
}

/// The place of an event among all events: the time at which it happened, then its id.
///
/// Its text is safe in a URL and holds only these two. A query applies all its filters with every
/// cursor, so that a forged cursor reveals nothing that the query does not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventCursor {
    micros: i64,
    id: [u8; 16],
}

impl EventCursor {
    /// Returns the place of this event.
    pub fn of(event: &AuditEvent) -> Self {
        Self::new(micros(event.at), event.id.to_bytes())
    }

    /// Creates the place of the event that happened at `micros` and has an id of these bytes.
    ///
    /// `micros` counts microseconds since 1970-01-01T00:00:00Z; for the bytes see
    /// [`EventId::to_bytes`](crate::EventId::to_bytes). The event may be one that cannot be read.
    pub const fn new(micros: i64, id: [u8; 16]) -> Self {
        Self { micros, id }
    }

    /// Returns the time of the event, in microseconds since 1970-01-01T00:00:00Z.
    pub const fn micros(self) -> i64 {
        self.micros
    }

    /// Returns the bytes of the event's id.
    pub const fn id_bytes(self) -> [u8; 16] {
        self.id
    }
}

/// The sign bit of the microseconds, flipped in the text so that texts sort as the cursors do.
const SIGN: u64 = 1 << 63;

impl fmt::Display for EventCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.micros.cast_unsigned() ^ SIGN;
        write!(f, "e{micros:016x}{:032x}", u128::from_be_bytes(self.id))
    }
}

impl fmt::Debug for EventCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventCursor({self})")
    }
}

impl FromStr for EventCursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let parse = || {
            let (micros, id) = text.strip_prefix('e')?.split_at_checked(16)?;
            let micros = u64::from_str_radix(micros, 16).ok()? ^ SIGN;
            let id = u128::from_str_radix(id, 16).ok()?;
            // Accepts only the one canonical text of a cursor.
            let cursor = Self::new(micros.cast_signed(), id.to_be_bytes());
            (cursor.to_string() == text).then_some(cursor)
        };
        parse().ok_or(CursorError::Malformed)
    }
}

/// The position at which an export continues.
///
/// A store creates it and reads it back; only [`ExportCursor::start`] works for all stores. Keep
/// its text with the copy, ideally in the same transaction, so that the copy and the cursor never
/// disagree.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ExportCursor(Box<str>);

impl ExportCursor {
    /// Returns the cursor before the first event.
    pub fn start() -> Self {
        Self::default()
    }

    /// Creates a cursor from its text, as [`as_str`](Self::as_str) returned it or as a store builds
    /// it.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// Returns the text; empty at the start.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the cursor at these numbers for this kind of store.
    pub(super) fn at(store: &str, numbers: &[i64]) -> Self {
        let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
        Self(format!("{store}:{}", numbers.join(":")).into())
    }

    /// Returns the numbers of a cursor of this kind of store; zeros at the start.
    pub(super) fn numbers<const N: usize>(&self, store: &str) -> Result<[i64; N], CursorError> {
        if self.0.is_empty() {
            return Ok([0; N]);
        }
        let (kind, numbers) = self.0.split_once(':').ok_or(CursorError::Malformed)?;
        let numbers = numbers.split(':').map(str::parse).collect::<Result<Vec<i64>, _>>();
        let numbers = numbers.map_err(|_| CursorError::Malformed)?;
        if kind != store {
            return Err(CursorError::OtherStore);
        }
        let numbers: [i64; N] = numbers.try_into().map_err(|_| CursorError::Malformed)?;
        // Accepts only the canonical text. Numbers that a store counts are never negative.
        let is_own =
            numbers.iter().all(|number| *number >= 0) && Self::at(store, &numbers) == *self;
        if is_own { Ok(numbers) } else { Err(CursorError::Malformed) }
    }
}

impl fmt::Display for ExportCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The reason why a cursor was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CursorError {
    /// The text is not a cursor, or is one of another list.
    #[error(
        "the cursor is malformed; begin again without one, or with the cursor that the last page returned"
    )]
    Malformed,
    /// Another kind of store created the cursor.
    #[error(
        "the cursor is of another kind of store; begin the export again with `ExportCursor::start()`"
    )]
    OtherStore,
    /// The cursor is from another database, or the database was restored from a copy into a new
    /// server.
    #[error(
        "the cursor is ahead of this database, so another database made the cursor; begin the \
         export again with `ExportCursor::start()`"
    )]
    OtherDatabase,
}

impl From<CursorError> for StoreError {
    fn from(error: CursorError) -> Self {
        Self::Cursor(error)
    }
}

/// One page of audit events.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct EventPage {
    /// The events, in the order of the query.
    pub events: Vec<AuditEvent>,
    /// The events of the page that could not be read; report them.
    pub corrupt: Vec<CorruptRecord>,
    /// The start of the next page; `None` on the last page.
    pub next: Option<EventCursor>,
}

impl EventPage {
    /// Creates a page of these events; the next page starts after `next`.
    pub fn new(
        events: Vec<AuditEvent>,
        corrupt: Vec<CorruptRecord>,
        next: Option<EventCursor>,
    ) -> Self {
        Self { events, corrupt, next }
    }
}

/// One page of an export.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ExportPage {
    /// The events, in the order of their commits.
    pub events: Vec<AuditEvent>,
    /// The events of the page that could not be read; report them.
    pub corrupt: Vec<CorruptRecord>,
    /// The cursor at which the export continues, also if the page is empty.
    pub next: ExportCursor,
}

impl ExportPage {
    /// Creates a page of these events; the export continues at `next`.
    pub fn new(events: Vec<AuditEvent>, corrupt: Vec<CorruptRecord>, next: ExportCursor) -> Self {
        Self { events, corrupt, next }
    }

    /// Whether there was nothing to export.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.corrupt.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_from_its_text_and_sorts_as_it() {
        let mut before: Option<EventCursor> = None;
        for micros in [i64::MIN, -1, 0, 1, i64::MAX] {
            for id in [[0; 16], [7; 16], [0xFF; 16]] {
                let cursor = EventCursor::new(micros, id);
                assert_eq!(cursor.to_string().parse(), Ok(cursor));
                assert!(before.is_none_or(
                    |before| before < cursor && before.to_string() < cursor.to_string()
                ));
                before = Some(cursor);
            }
        }
    }

    #[test]
    fn a_text_that_is_no_cursor_is_refused() {
        let good = EventCursor::new(5, [0xAB; 16]).to_string();
        let plus = format!("e+{}", good.get(2..).unwrap_or_default());
        for bad in [
            "",
            "e",
            "e0",
            "é",
            &*good.to_uppercase(),
            &format!("{good}0"),
            &plus,
            "postgres:1:2",
            "eéééééééééé",
        ] {
            assert_eq!(bad.parse::<EventCursor>(), Err(CursorError::Malformed), "{bad}");
        }
    }

    #[test]
    fn an_export_cursor_is_read_by_its_own_kind_of_store_alone() {
        assert_eq!(ExportCursor::start().numbers("memory"), Ok([0]));
        let cursor = ExportCursor::at("postgres", &[7, 9]);
        assert_eq!(ExportCursor::new(cursor.as_str()).numbers("postgres"), Ok([7, 9]));
        assert_eq!(cursor.numbers::<1>("memory"), Err(CursorError::OtherStore));
        for bad in [
            "x",
            "memory",
            "memory:",
            "memory:-1",
            "memory:+1",
            "memory:01",
            "memory:1:2",
            "memory:1 ",
            "é:é",
        ] {
            assert_eq!(
                ExportCursor::new(bad).numbers::<1>("memory"),
                Err(CursorError::Malformed),
                "{bad}"
            );
        }
        // Neither an event id nor a cursor of a list is a cursor of an export.
        let of_list = EventCursor::new(0, [1; 16]);
        assert_eq!(
            ExportCursor::new(&of_list.to_string()).numbers::<1>("memory"),
            Err(CursorError::Malformed)
        );
    }
}
