//! Writes a batch within a transaction.

use super::driver::Connection;
use super::error::{Meaning, SqlError};
use super::statements::Statements;
use crate::store::record::{EVENT_COLUMNS, TOKEN_COLUMNS, Value, token_values};
use crate::store::{Change, ChangeBatch, Conflict};
use crate::token::TokenId;
use std::collections::BTreeSet;

/// The reason why a batch was not written. The transaction must be rolled back.
pub(super) enum Failure {
    Conflict(Conflict),
    Sql(SqlError),
}

impl From<SqlError> for Failure {
    fn from(error: SqlError) -> Self {
        Self::Sql(error)
    }
}

/// The maximum number of values in one statement.
///
/// SQLite allows 32,766, and PostgreSQL and MySQL 65,535. SQLite drivers may look up each value by
/// its name among all of them, so many more values would take seconds.
pub(super) const MAX_VALUES: usize = 3_000;

/// Writes a batch within a transaction.
pub(super) struct Writer<'a, C> {
    pub(super) connection: &'a mut C,
    pub(super) statements: &'a Statements,
}

impl<C: Connection> Writer<'_, C> {
    pub(super) async fn write(&mut self, batch: &ChangeBatch) -> Result<(), Failure> {
        self.lock_rows(batch).await?;
        self.clear_names(batch).await?;
        // Changes that free a name run before those that take one.
        let mut changes: Vec<&Change> = batch.changes.iter().collect();
        changes.sort_by_key(|change| {
            let takes_name = match change {
                Change::Remove { .. } => 0,
                Change::Update(token) if token.name_key.is_none() => 1,
                Change::Update(_) => 2,
                Change::Insert(_) => 3,
            };
            (takes_name, change.id())
        });
        for change in changes {
            self.change(change).await?;
        }
        if let Some((realm, owner)) = &batch.erase {
            let values = vec![Value::text(realm.as_str()), Value::text(owner)];
            let statement = self.statements.statement(&self.statements.erase, values);
            self.connection.execute(statement).await?;
        }
        self.record(batch).await
    }

    /// Stores the events.
    async fn record(&mut self, batch: &ChangeBatch) -> Result<(), Failure> {
        if batch.events.is_empty() {
            return Ok(());
        }
        if let Some(statement) = self.statements.take_numbers(batch.events.len()) {
            self.connection.execute(statement).await?;
        }
        let mut later = batch.events.len();
        for events in batch.events.chunks(MAX_VALUES.div_euclid(EVENT_COLUMNS.len())) {
            later = later.saturating_sub(events.len());
            let ids = batch.changes.iter().map(Change::id);
            self.connection.execute(self.statements.insert_events(events, later, ids)).await?;
        }
        Ok(())
    }

    /// Locks several rows in the order of their ids.
    ///
    /// Two batches, or a batch and a batch of last uses, therefore never deadlock.
    async fn lock_rows(&mut self, batch: &ChangeBatch) -> Result<(), Failure> {
        let is_there = |change: &&Change| !matches!(change, Change::Insert(_));
        let ids: Vec<TokenId> = batch.changes.iter().filter(is_there).map(Change::id).collect();
        if ids.len() < 2 {
            return Ok(());
        }
        // Sorted first, because several statements must lock in one ascending order too.
        let ids: BTreeSet<TokenId> = ids.into_iter().collect();
        let ids: Vec<TokenId> = ids.into_iter().collect();
        for ids in ids.chunks(MAX_VALUES) {
            let ids = ids.iter().copied().map(Value::id).collect();
            if let Some(statement) = self.statements.lock_rows(ids) {
                self.connection.fetch(statement).await?;
            }
        }
        Ok(())
    }

    /// Frees the names of updated records first, if there are several.
    ///
    /// A record may then take the name that another record gives up, in any order of their updates.
    async fn clear_names(&mut self, batch: &ChangeBatch) -> Result<(), Failure> {
        let takers: Vec<TokenId> = batch
            .changes
            .iter()
            .filter_map(|change| match change {
                Change::Update(token) if token.name_key.is_some() => Some(token.id),
                _ => None,
            })
            .collect();
        if takers.len() < 2 {
            return Ok(());
        }
        for ids in takers.chunks(MAX_VALUES) {
            let ids = ids.iter().copied().map(Value::id).collect();
            self.connection.execute(self.statements.clear_names(ids)).await?;
        }
        Ok(())
    }

    async fn change(&mut self, change: &Change) -> Result<(), Failure> {
        let (sql, values) = match change {
            Change::Insert(token) => (&self.statements.insert, token_values(token)),
            Change::Update(token) => {
                let mut values = token_values(token);
                // Drops the values of the last use, which an update keeps.
                values.truncate(TOKEN_COLUMNS.len().saturating_sub(2));
                (&self.statements.update, values)
            }
            Change::Remove { id, version } => {
                (&self.statements.remove, vec![Value::id(*id), Value::count(*version)])
            }
        };
        if let Change::Insert(token) | Change::Update(token) = change
            && token.owner_kind != token.kind.owner_kind()
        {
            return Err(Failure::Conflict(Conflict::OwnerKind(token.id)));
        }
        let statement = self.statements.statement(sql, values);
        match (self.connection.execute(statement).await, change) {
            (Ok(1), _) => Ok(()),
            (Ok(_), change) => Err(Failure::Conflict(Conflict::Version(change.id()))),
            (Err(error), change) => Err(match self.statements.meaning(&error) {
                Meaning::NameTaken => Failure::Conflict(Conflict::Name(change.id())),
                Meaning::IdTaken => Failure::Conflict(Conflict::Id(change.id())),
                _ => Failure::Sql(error),
            }),
        }
    }
}
