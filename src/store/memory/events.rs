//! The audit events of the in-memory store, indexed by time and by commit order.

use crate::audit::{AuditEvent, EventId};
use crate::clock::micros;
use crate::owner::{OwnerId, Realm};
use crate::store::{
    CursorError, EventCursor, EventOrder, EventPage, EventQuery, ExportCursor, ExportPage,
    MAX_EVENTS,
};
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;

/// The prefix of this store's export cursors.
const KIND: &str = "memory";

#[derive(Default)]
pub(super) struct Events {
    /// The events by their number, from 1. One lock covers all events, so this is the commit order.
    by_number: BTreeMap<i64, AuditEvent>,
    /// The numbers by the events' places in time.
    by_place: BTreeMap<EventCursor, i64>,
    ids: HashSet<EventId>,
    last: i64,
}

impl Events {
    pub(super) fn add(&mut self, event: &AuditEvent) {
        if self.ids.insert(event.id) {
            self.last = self.last.saturating_add(1);
            self.by_place.insert(EventCursor::of(event), self.last);
            self.by_number.insert(self.last, event.clone());
        }
    }

    pub(super) fn erase(&mut self, realm: &Realm, owner: &OwnerId) {
        self.by_number.values_mut().for_each(|event| event.erase(realm, owner));
    }

    pub(super) fn page(&self, query: &EventQuery) -> EventPage {
        let limit = query.limit.max(1);
        let after = query.after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut events: Vec<AuditEvent> = match query.order {
            EventOrder::OldestFirst => {
                let numbers =
                    self.by_place.range((after, Bound::Unbounded)).map(|(_, number)| number);
                self.held(query, numbers, limit)
            }
            EventOrder::NewestFirst => {
                let numbers =
                    self.by_place.range((Bound::Unbounded, after)).rev().map(|(_, number)| number);
                self.held(query, numbers, limit)
            }
        };
        let is_last = events.len() <= limit;
        events.truncate(limit);
        let next = events.last().filter(|_| !is_last).map(EventCursor::of);
        EventPage::new(events, Vec::new(), next)
    }

    /// Returns the matching events, one more than requested to know whether there is a next page.
    fn held<'a>(
        &self,
        query: &EventQuery,
        numbers: impl Iterator<Item = &'a i64>,
        limit: usize,
    ) -> Vec<AuditEvent> {
        let held = numbers
            .map(|number| self.by_number.get(number).expect("both maps have the same events"))
            .filter(|event| query.holds(event));
        held.take(limit.saturating_add(1)).cloned().collect()
    }

    pub(super) fn export(
        &self,
        after: &ExportCursor,
        limit: usize,
    ) -> Result<ExportPage, CursorError> {
        let [mut last] = after.numbers(KIND)?;
        if last > self.last {
            return Err(CursorError::OtherDatabase);
        }
        let further = self.by_number.range((Bound::Excluded(last), Bound::Unbounded));
        let mut events = Vec::new();
        for (number, event) in further.take(limit.clamp(1, MAX_EVENTS)) {
            last = *number;
            events.push(event.clone());
        }
        Ok(ExportPage::new(events, Vec::new(), ExportCursor::at(KIND, &[last])))
    }

    pub(super) fn prune(&mut self, before: DateTime<Utc>, limit: usize) -> usize {
        let before = EventCursor::new(micros(before), [0; 16]);
        let gone: Vec<(EventCursor, i64)> = self
            .by_place
            .range(..before)
            .take(limit)
            .map(|(place, number)| (*place, *number))
            .collect();
        for (place, number) in &gone {
            self.by_place.remove(place);
            let event = self.by_number.remove(number).expect("both maps have the same events");
            self.ids.remove(&event.id);
        }
        gone.len()
    }
}
