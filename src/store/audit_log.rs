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

/// Most events that a page of [`AuditLog::events`] or [`AuditLog::export`] is asked for.
pub const MAX_EVENTS: usize = 1_000;

/// Reading the audit events; not every store needs it.
///
/// There are two ways to read, because an event has two places in time. Its [`at`](AuditEvent::at) is when it happened, and
/// is what people look for: [`events`](Self::events). Its commit is when it could first be read, and may be much later:
/// sampled refusals are stored with the next flush, and events of a transaction of the host's are stored with its commit. A
/// copy that goes on from its last event has to follow the commits: [`export`](Self::export).
pub trait AuditLog: Send + Sync {
    /// Returns one page of the events that `query` asks for, in the order of ([`at`](AuditEvent::at),
    /// [`id`](AuditEvent::id)). Pages neither repeat nor skip events, however many happened at one instant. An event that
    /// is stored while the pages are read is missed if its place is on a page that was read before.
    ///
    /// # Errors
    /// [`StoreError`] if the store failed. A corrupt event is told in the page and does not fail it.
    fn events(&self, query: &EventQuery) -> impl Future<Output = Result<EventPage, StoreError>> + Send;

    /// Returns up to `limit` events of all realms that were committed after those before `after`, in an order that no later
    /// commit changes: a reader that goes on from [`ExportPage::next`] gets every event exactly once, those included that are
    /// committed long after they happened. An empty page means that there is nothing to export at present. A store may hold an
    /// event back as long as a transaction that was open at its commit is not over.
    ///
    /// Events that [`purge_events`](Self::purge_events) removed are not exported any more. The traces that erasing an owner
    /// takes out of stored events stay in copies that were exported before.
    ///
    /// # Errors
    /// [`StoreError::Cursor`] if `after` is not a cursor of this store; other [`StoreError`]s if the store failed. A corrupt
    /// event is told in the page, counts towards `limit`, and does not fail it.
    fn export(
        &self,
        after: &ExportCursor,
        limit: usize,
    ) -> impl Future<Output = Result<ExportPage, StoreError>> + Send;

    /// Removes up to `limit` events that happened before `before`, oldest first, and returns how many.
    ///
    /// # Errors
    /// [`StoreError`] if the store failed.
    fn purge_events(
        &self,
        before: DateTime<Utc>,
        limit: usize,
    ) -> impl Future<Output = Result<usize, StoreError>> + Send;
}

/// Which audit events to read, in which order, and from where on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventQuery {
    /// Only events of this realm.
    pub realm: Realm,
    /// Only events of this token.
    pub token: Option<TokenId>,
    /// Only events of tokens of this owner. Events whose owner was erased are none of anybody's.
    pub owner: Option<OwnerId>,
    /// Only events from this instant on (inclusive).
    pub from: Option<DateTime<Utc>>,
    /// Only events before this instant (exclusive).
    pub until: Option<DateTime<Utc>>,
    /// In which order the events come.
    pub order: EventOrder,
    /// Only events that come after this one in that order.
    pub after: Option<EventCursor>,
    /// Most events of the page, from 1 to [`MAX_EVENTS`].
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
    /// All events of a realm, newest first, [`MAX_EVENTS`] a page.
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

    /// Only events of this token.
    pub fn token(mut self, token: TokenId) -> Self {
        self.token = Some(token);
        self
    }

    /// Only events of tokens of this owner.
    pub fn owner(mut self, owner: OwnerId) -> Self {
        self.owner = Some(owner);
        self
    }

    /// Only events from this instant on (inclusive).
    pub fn from(mut self, at: DateTime<Utc>) -> Self {
        self.from = Some(at);
        self
    }

    /// Only events before this instant (exclusive).
    pub fn until(mut self, at: DateTime<Utc>) -> Self {
        self.until = Some(at);
        self
    }

    /// The earliest event first.
    pub fn oldest_first(mut self) -> Self {
        self.order = EventOrder::OldestFirst;
        self
    }

    /// Only events that come after this one: [`EventPage::next`] of the page before.
    pub fn after(mut self, cursor: Option<EventCursor>) -> Self {
        self.after = cursor;
        self
    }

    /// At most this many events, held to 1 to [`MAX_EVENTS`].
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit.clamp(1, MAX_EVENTS);
        self
    }

    /// Whether an event belongs to the query and comes after [`after`](Self::after).
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

/// The place of an event among all events: when it happened, then its id.
///
/// Its text is safe in a URL. It holds no more than the event's instant and id, and a query applies all its filters whatever
/// the cursor says, so that a cursor from elsewhere shows nothing that the query does not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventCursor {
    micros: i64,
    id: [u8; 16],
}

impl EventCursor {
    /// The place of this event.
    pub fn of(event: &AuditEvent) -> Self {
        Self::new(micros(event.at), event.id.to_bytes())
    }

    /// The place of an event that happened at `micros`, in microseconds since 1970-01-01T00:00:00Z, and has the id with
    /// these bytes ([`EventId::to_bytes`](crate::EventId::to_bytes)). It may be one that cannot be read.
    pub const fn new(micros: i64, id: [u8; 16]) -> Self {
        Self { micros, id }
    }

    /// When the event happened, in microseconds since 1970-01-01T00:00:00Z.
    pub const fn micros(self) -> i64 {
        self.micros
    }

    /// The bytes of the event's id.
    pub const fn id_bytes(self) -> [u8; 16] {
        self.id
    }
}

/// The sign of the microseconds, flipped in a text, so that texts sort as the cursors do.
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
            // One cursor has one text.
            let cursor = Self::new(micros.cast_signed(), id.to_be_bytes());
            (cursor.to_string() == text).then_some(cursor)
        };
        parse().ok_or(CursorError::Malformed)
    }
}

/// Where an export goes on. A store makes it and reads it back; only [`ExportCursor::start`] is alike for all stores.
///
/// Keep its text beside the copy, best in the same transaction, so that the copy and the cursor never disagree.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ExportCursor(Box<str>);

impl ExportCursor {
    /// The cursor before the first event.
    pub fn start() -> Self {
        Self::default()
    }

    /// The cursor with this text: as [`as_str`](Self::as_str) returned it, or as a store makes it.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The text; empty at the start.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The cursor of a store of this kind at these numbers.
    pub(super) fn at(store: &str, numbers: &[i64]) -> Self {
        let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
        Self(format!("{store}:{}", numbers.join(":")).into())
    }

    /// The numbers of a cursor of a store of this kind; the least ones at the start.
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
        // One cursor has one text, and no number that a store counts is negative.
        let is_own = numbers.iter().all(|number| *number >= 0) && Self::at(store, &numbers) == *self;
        if is_own { Ok(numbers) } else { Err(CursorError::Malformed) }
    }
}

impl fmt::Display for ExportCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Why a cursor is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CursorError {
    /// The text is not a cursor, or is one of another list.
    #[error(
        "the cursor is malformed; begin again without one, or with the cursor that the last page returned"
    )]
    Malformed,
    /// Another kind of store made it.
    #[error("the cursor is of another kind of store; begin the export again with `ExportCursor::start()`")]
    OtherStore,
    /// The database is not the one that it was made in, or was restored from a copy into a new server.
    #[error(
        "the cursor is ahead of the database, which another server made; begin the export again with \
         `ExportCursor::start()`"
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
    /// Those of the page that could not be read; report them.
    pub corrupt: Vec<CorruptRecord>,
    /// Where the next page begins; `None` on the last one.
    pub next: Option<EventCursor>,
}

impl EventPage {
    /// A page of these, which goes on after `next`.
    pub fn new(events: Vec<AuditEvent>, corrupt: Vec<CorruptRecord>, next: Option<EventCursor>) -> Self {
        Self { events, corrupt, next }
    }
}

/// One page of an export.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ExportPage {
    /// The events, in the order of their commits.
    pub events: Vec<AuditEvent>,
    /// Those of the page that could not be read; report them.
    pub corrupt: Vec<CorruptRecord>,
    /// Where the export goes on, also if the page is empty.
    pub next: ExportCursor,
}

impl ExportPage {
    /// A page of these, which goes on after `next`.
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
                assert!(
                    before.is_none_or(|before| before < cursor && before.to_string() < cursor.to_string())
                );
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
            assert_eq!(ExportCursor::new(bad).numbers::<1>("memory"), Err(CursorError::Malformed), "{bad}");
        }
        // An id is not a place in an export, and a place in a list is none either.
        let of_list = EventCursor::new(0, [1; 16]);
        assert_eq!(
            ExportCursor::new(&of_list.to_string()).numbers::<1>("memory"),
            Err(CursorError::Malformed)
        );
    }
}
