//! The audit log, the counts and the key checks.

use super::driver::{Connection, Driver};
use super::error::unavailable;
use super::reads::{MAX_ROWS, Place};
use super::{RowOf, SqlStore, first_int};
use crate::audit::AuditEvent;
use crate::clock::micros;
use crate::store::record::{EVENT_COLUMNS, Row, Value, read_event};
use crate::store::{
    AuditLog, CorruptRecord, CursorError, EventCursor, EventPage, EventQuery, ExportCursor,
    ExportPage, KeyChecks, MAX_EVENTS, StoreError, TokenCounts,
};
use crate::token::{KeyCheck, KeyId, TokenState};
use chrono::{DateTime, Utc};

/// Reads the events in these rows, and the locations of those that cannot be read.
fn read_events(rows: &[impl Row], table: &str) -> (Vec<AuditEvent>, Vec<CorruptRecord>) {
    let (mut events, mut corrupt) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        match read_event(row, table) {
            Ok(event) => events.push(event),
            Err(record) => corrupt.push(record),
        }
    }
    (events, corrupt)
}

impl<D: Driver> AuditLog for SqlStore<D> {
    async fn events(&self, query: &EventQuery) -> Result<EventPage, StoreError> {
        let limit = query.limit.max(1);
        let mut rows = self.fetch(self.statements.events(query)).await?;
        let is_last = rows.len() <= limit;
        rows.truncate(limit);
        let (events, corrupt) = read_events(&rows, &self.statements.events_shown);
        let place = |row: &RowOf<D>| {
            let id = row.bytes(0).flatten().and_then(|id| id.try_into().ok());
            let micros = row.int(1).flatten();
            let corrupt = |column| {
                StoreError::Corrupt(CorruptRecord::new(&self.statements.events_shown, column, "?"))
            };
            Ok::<_, StoreError>(EventCursor::new(
                micros.ok_or_else(|| corrupt("at"))?,
                id.ok_or_else(|| corrupt("id"))?,
            ))
        };
        let next = rows.last().filter(|_| !is_last).map(place);
        Ok(EventPage::new(events, corrupt, next.transpose()?))
    }

    async fn export(&self, after: &ExportCursor, limit: usize) -> Result<ExportPage, StoreError> {
        let dialect = self.statements.dialect;
        let [transaction, number] = after.numbers(dialect.name)?;
        let limit = limit.clamp(1, MAX_EVENTS);
        let values = [transaction, number].map(|number| Value::Int(Some(number)));
        let values = values.into_iter().chain([Value::count(limit)]).collect();
        let mut rows =
            self.fetch(self.statements.statement(&self.statements.export, values)).await?;
        let cell = |row: &RowOf<D>, index: usize| {
            row.int(EVENT_COLUMNS.len().saturating_add(index)).ok_or_else(|| {
                StoreError::unavailable("the database returned a number of another type")
            })
        };
        let number_in = |row: &RowOf<D>, index: usize| {
            let lacking =
                || StoreError::unavailable("the database returned an event without a number");
            cell(row, index)?.ok_or_else(lacking)
        };
        let newest = rows.first().map(|row| cell(row, 2)).transpose()?.flatten();
        let newest =
            newest.ok_or_else(|| StoreError::unavailable("the database returned no snapshot"))?;
        let is_own =
            if dialect.has_transaction_ids { transaction < newest } else { number <= newest };
        if !is_own {
            return Err(CursorError::OtherDatabase.into());
        }
        // Drops the row that holds only the newest number. A number that cannot be read is no such
        // row, and the last one becomes an error below.
        rows.retain(|row| !matches!(cell(row, 1), Ok(None)));
        let (events, corrupt) = read_events(&rows, &self.statements.events_shown);
        let last = match rows.last() {
            Some(row) => [number_in(row, 0)?, number_in(row, 1)?],
            None => [transaction, number],
        };
        let next = ExportCursor::at(dialect.name, &last);
        Ok(ExportPage::new(events, corrupt, next))
    }

    async fn prune_events(&self, before: DateTime<Utc>, limit: usize) -> Result<usize, StoreError> {
        let limit = limit.min(MAX_ROWS);
        let statement = self.statements.prune_events(micros(before), limit);
        let mut transaction = self.begin_to_write().await?;
        let removed = transaction.session().execute(statement).await.map_err(unavailable)?;
        transaction.commit().await.map_err(unavailable)?;
        // Saturates on a machine of 32 bits, though no statement removes more than `MAX_ROWS`.
        Ok(usize::try_from(removed).unwrap_or(usize::MAX))
    }
}

impl<D: Driver> TokenCounts for SqlStore<D> {
    async fn count_by_state(
        &self,
        now: DateTime<Utc>,
    ) -> Result<Vec<(TokenState, u64)>, StoreError> {
        let rows = self
            .fetch(
                self.statements.statement(&self.statements.count_by_state, vec![Value::time(now)]),
            )
            .await?;
        let count = |(index, state)| {
            let count = first_int(&rows, index).map_err(unavailable)?;
            let negative = |_| StoreError::unavailable("the database returned a negative count");
            Ok((state, u64::try_from(count).map_err(negative)?))
        };
        let states = [TokenState::Active, TokenState::Revoked, TokenState::Expired];
        states.into_iter().enumerate().map(count).collect()
    }
}

impl<D: Driver> KeyChecks for SqlStore<D> {
    async fn key_checks(&self) -> Result<Vec<KeyCheck>, StoreError> {
        let rows = self
            .fetch(self.statements.statement(&self.statements.read_key_checks, Vec::new()))
            .await?;
        let read = |row: &RowOf<D>| {
            let number = row.int(0).flatten();
            let row_name = number.map_or_else(|| "?".into(), |number| number.to_string());
            let corrupt = |column| {
                let table = &self.statements.key_checks_shown;
                StoreError::Corrupt(CorruptRecord::new(table, column, &row_name))
            };
            let key = number
                .and_then(|number| number.try_into().ok())
                .ok_or_else(|| corrupt("key_id"))?;
            let value = row.bytes(1).flatten().and_then(|bytes| bytes.try_into().ok());
            Ok(KeyCheck::new(KeyId::new(key), value.ok_or_else(|| corrupt("check_value"))?))
        };
        rows.iter().map(read).collect()
    }

    async fn record_key_check(&self, check: &KeyCheck) -> Result<(), StoreError> {
        let values =
            vec![Value::count(check.key().get()), Value::Bytes(Some(check.value().to_vec()))];
        let statement = self.statements.statement(&self.statements.record_key_check, values);
        let mut transaction = self.begin_to_write().await?;
        transaction.session().execute(statement).await.map_err(unavailable)?;
        transaction.commit().await.map_err(unavailable)
    }

    async fn tokens_per_key(&self) -> Result<Vec<(KeyId, u64)>, StoreError> {
        let rows = self
            .fetch(self.statements.statement(&self.statements.tokens_per_key, Vec::new()))
            .await?;
        let read = |row: &RowOf<D>| {
            let key = row.int(0).flatten().and_then(|number| number.try_into().ok());
            let corrupt = || CorruptRecord::new(&self.statements.tokens_shown, "digest_key", "?");
            let key = key.ok_or_else(|| StoreError::Corrupt(corrupt()))?;
            let count = row.int(1).flatten();
            let count = count.and_then(|count| u64::try_from(count).ok());
            let lacking = || StoreError::unavailable("the database returned no count of tokens");
            Ok((KeyId::new(key), count.ok_or_else(lacking)?))
        };
        rows.iter().map(read).collect()
    }
}
