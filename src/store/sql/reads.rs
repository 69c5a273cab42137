//! What the store and the store within a transaction of the host's have in common.

use super::driver::Statement;
use super::statements::Statements;
use super::writer::MAX_VALUES;
use crate::clock::micros;
use crate::store::record::{Row, Value, read_id, read_token};
use crate::store::{
    Change, ChangeBatch, Conflict, CorruptRecord, ListQuery, Page, StoreError, Touch,
};
use crate::token::{Token, TokenId};
use chrono::{DateTime, Utc};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The maximum number of rows that one statement reads or removes, even if its limit is higher.
pub(super) const MAX_ROWS: usize = 1_000_000;

/// The place where statements run: a connection of the pool, or a transaction of the host's.
pub(super) trait Place: Sync {
    type Row: Row + Send + Sync;

    fn statements(&self) -> &Statements;

    /// Runs one statement that returns rows.
    fn fetch(
        &self,
        statement: Statement,
    ) -> impl Future<Output = Result<Vec<Self::Row>, StoreError>> + Send;

    /// Runs one statement that returns at most one row, and reads the row.
    fn fetch_one<T: Send>(
        &self,
        statement: Statement,
        read: impl FnOnce(&dyn Row) -> T + Send,
    ) -> impl Future<Output = Result<Option<T>, StoreError>> + Send;
}

pub(super) async fn find(
    place: &impl Place,
    id: TokenId,
) -> Result<Option<Arc<Token>>, StoreError> {
    let statements = place.statements();
    let statement = statements.statement(&statements.find, vec![Value::id(id)]).single();
    let read = |row: &dyn Row| read_token(row, &statements.tokens_shown).map(Arc::new);
    place.fetch_one(statement, read).await?.transpose().map_err(StoreError::Corrupt)
}

pub(super) async fn list(place: &impl Place, query: &ListQuery) -> Result<Page, StoreError> {
    let statements = place.statements();
    let limit = query.limit.max(1);
    let mut page = Page::default();
    let mut after = query.after.map(Value::id);
    loop {
        let mut rows = place.fetch(statements.list(query, after)).await?;
        let is_last = rows.len() <= limit;
        rows.truncate(limit);
        for row in &rows {
            match read_token(row, &statements.tokens_shown) {
                Ok(token) => {
                    page.next = Some(token.id);
                    page.tokens.push(Arc::new(token));
                }
                Err(record) => {
                    page.next = read_id(row, &statements.tokens_shown).ok().or(page.next);
                    page.corrupt.push(record);
                }
            }
        }
        if is_last {
            page.next = None;
            return Ok(page);
        }
        if page.next.is_some() {
            return Ok(page);
        }
        // No row has a readable id for the next page to start after, so continue after the raw last
        // id.
        after =
            rows.last().and_then(|row| row.bytes(0)).map(|id| Value::Bytes(id.map(<[u8]>::to_vec)));
    }
}

pub(super) async fn list_ended(
    place: &impl Place,
    before: DateTime<Utc>,
    limit: usize,
) -> Result<Page, StoreError> {
    let statements = place.statements();
    // Bounded because a larger limit may exceed what the database can count to.
    let statement = statements.list_ended(micros(before), limit.min(MAX_ROWS));
    let mut page = Page::default();
    for row in place.fetch(statement).await? {
        match read_token(&row, &statements.tokens_shown) {
            Ok(token) => page.tokens.push(Arc::new(token)),
            Err(record) => page.corrupt.push(record),
        }
    }
    Ok(page)
}

/// Returns the latest use of each token, in the order of the ids.
///
/// The order is the order in which rows are locked, so that two nodes that write at once do not
/// deadlock.
pub(super) fn latest(uses: &[Touch]) -> Vec<Touch> {
    let mut latest: HashMap<TokenId, Touch> = HashMap::new();
    for touch in uses {
        let known = latest.entry(touch.id).or_insert(*touch);
        if touch.replaces(known.last_use.at) {
            *known = *touch;
        }
    }
    let mut latest: Vec<Touch> = latest.into_values().collect();
    latest.sort_by_key(|touch| touch.id);
    latest
}

/// Returns the conflict of the first change whose id or version conflicts, or else `seen`.
///
/// The statements may have met another conflict first, because they did not run in the order of the
/// batch.
async fn first_conflict(
    place: &impl Place,
    changes: &[Change],
    seen: Conflict,
) -> Result<Conflict, StoreError> {
    let statements = place.statements();
    let mut versions = HashMap::new();
    for changes in changes.chunks(MAX_VALUES) {
        let ids = changes.iter().map(|change| Value::id(change.id())).collect();
        for row in place.fetch(statements.versions(ids)).await? {
            let id = read_id(&row, &statements.tokens_shown).map_err(StoreError::Corrupt)?;
            let version = row.int(1).flatten();
            let corrupt =
                || CorruptRecord::new(&statements.tokens_shown, "version", &id.to_string());
            versions.insert(id, version.ok_or_else(|| StoreError::Corrupt(corrupt()))?);
        }
    }
    let conflict = changes.iter().find_map(|change| {
        let version = versions.get(&change.id()).copied();
        match change {
            Change::Insert(token) => version.map(|_| Conflict::Id(token.id)),
            Change::Update(token) => {
                let expected =
                    token.version.checked_sub(1).and_then(|before| i64::try_from(before).ok());
                (version != expected).then_some(Conflict::Version(token.id))
            }
            Change::Remove { id, version: expected } => {
                (version != i64::try_from(*expected).ok()).then_some(Conflict::Version(*id))
            }
        }
    });
    Ok(conflict.unwrap_or(seen))
}

/// Errors if a batch changes one record twice.
///
/// The conflict is that of the first change that does not apply, which is at the latest the second
/// change of that record.
pub(super) async fn repeated(place: &impl Place, batch: &ChangeBatch) -> Result<(), StoreError> {
    let mut seen = HashSet::new();
    let mut changes = batch.changes.iter().enumerate();
    let Some((index, again)) = changes.find(|(_, change)| !seen.insert(change.id())) else {
        return Ok(());
    };
    let (first, _) = batch.changes.split_at(index);
    let twice = match again {
        Change::Insert(token) => Conflict::Id(token.id),
        change => Conflict::Version(change.id()),
    };
    Err(StoreError::Conflict(first_conflict(place, first, twice).await?))
}

/// Replaces the conflict of a write with the one to report, after the transaction has ended.
pub(super) async fn named(
    place: &impl Place,
    batch: &ChangeBatch,
    written: Result<(), StoreError>,
) -> Result<(), StoreError> {
    match written {
        Err(StoreError::Conflict(seen)) => {
            Err(StoreError::Conflict(first_conflict(place, &batch.changes, seen).await?))
        }
        written => written,
    }
}
