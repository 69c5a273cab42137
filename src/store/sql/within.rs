//! The store within a transaction of the host's.

use super::driver::{Connection, Driver, Statement};
use super::error::unavailable;
use super::reads::{Place, find, latest, list, list_ended, named, repeated};
use super::statements::Statements;
use super::writer::{Failure, Writer};
use super::{EngineOf, MAX_TOUCHES, SqlStore};
use crate::store::record::Row;
use crate::store::{ChangeBatch, ListQuery, Page, StoreError, TokenStore, Touch};
use crate::token::{Token, TokenId};
use chrono::{DateTime, Utc};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// A [`SqlStore`] within a transaction of the host's. Created by [`SqlStore::within`].
///
/// Its changes happen if the host commits, and only then. It reads what the transaction sees,
/// including its own changes; others see them after the commit. It is a [`TokenStore`], so that
/// [`TokenService::within`](crate::TokenService::within) supports every operation with all rules.
/// Of two concurrent calls one is refused, because a transaction does one thing at a time.
///
/// **Errors.** Each [`commit`](TokenStore::commit) is a savepoint of its own, which costs two
/// statements more than outside a transaction. A conflict (a taken name, another version) rolls
/// back to the savepoint, and the transaction continues as it was before. After
/// [`StoreError::Unavailable`], or if a future was dropped before it completed, the transaction is
/// unusable and all further calls are refused. Roll it back then. If you commit it instead, each
/// change is stored whole or not at all, and PostgreSQL may report success for a commit that was
/// a rollback. With sqlx in MySQL, a commit after a dropped future waits without end:
/// [`MySql`](super::MySql) says how to prevent that.
///
/// **Locks.** A changed record stays locked until the transaction ends, and so does its name. In
/// SQLite the whole database is locked for writing, and in MySQL every other change that records an
/// event waits. Keep the transaction short, and change the tokens last. If two transactions change
/// the same tokens in different orders, PostgreSQL and MySQL abort one of them, whose call returns
/// `Unavailable`.
///
/// **How to begin.** In PostgreSQL, use the default isolation, READ COMMITTED. At a higher level,
/// changing a token that another transaction has changed meanwhile returns `Unavailable` and is not
/// retried. In SQLite, use `BEGIN IMMEDIATE` (sqlx: `pool.begin_with("BEGIN IMMEDIATE")`), because a
/// transaction that reads before it writes fails if another one has written in between.
pub struct SqlStoreWithin<C: Connection> {
    statements: Arc<Statements>,
    /// The connection, which each call takes and puts back unless the transaction became unusable.
    connection: Mutex<Option<C>>,
}

impl<D: Driver> SqlStore<D> {
    /// Returns this store within a transaction that the host has begun.
    ///
    /// `connection` is the host's transaction: a [`Connection`] to the same database. With sqlx it
    /// is `&mut Transaction`.
    pub fn within<C>(&self, connection: C) -> SqlStoreWithin<C>
    where
        C: Connection<Engine = EngineOf<D>>,
    {
        SqlStoreWithin {
            statements: self.statements.clone(),
            connection: Mutex::new(Some(connection)),
        }
    }
}

/// The connection during a call. Unless the call puts it back, the transaction is unusable.
struct Taken<'a, C: Connection> {
    place: &'a Mutex<Option<C>>,
    connection: Option<C>,
}

impl<C: Connection> Taken<'_, C> {
    fn connection(&mut self) -> &mut C {
        self.connection.as_mut().expect("only its end takes the connection")
    }

    fn put_back(mut self) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = self.connection.take();
    }
}

impl<C: Connection> Drop for Taken<'_, C> {
    fn drop(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            connection.abandon();
        }
    }
}

impl<C: Connection> SqlStoreWithin<C> {
    fn take(&self) -> Result<Taken<'_, C>, StoreError> {
        let place = &self.connection;
        let connection = place.lock().unwrap_or_else(PoisonError::into_inner).take();
        if connection.is_none() {
            return Err(StoreError::unavailable(
                "the transaction is in use, or has failed: roll it back",
            ));
        }
        Ok(Taken { place, connection })
    }

    /// Writes a batch at a savepoint: everything is kept, or nothing.
    async fn write(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        let mut taken = self.take()?;
        let connection = taken.connection();
        connection.run("SAVEPOINT patkit").await.map_err(unavailable)?;
        let mut writer = Writer { connection: &mut *connection, statements: &self.statements };
        let written = writer.write(batch).await;
        if written.is_err() {
            connection.run("ROLLBACK TO SAVEPOINT patkit").await.map_err(unavailable)?;
        }
        let written = match written {
            Ok(()) => Ok(()),
            Err(Failure::Conflict(conflict)) => Err(StoreError::Conflict(conflict)),
            Err(Failure::Sql(error)) => return Err(unavailable(error)),
        };
        connection.run("RELEASE SAVEPOINT patkit").await.map_err(unavailable)?;
        taken.put_back();
        written
    }
}

impl<C: Connection> Place for SqlStoreWithin<C> {
    type Row = C::Row;

    fn statements(&self) -> &Statements {
        &self.statements
    }

    async fn fetch(&self, statement: Statement) -> Result<Vec<C::Row>, StoreError> {
        let mut taken = self.take()?;
        let rows = taken.connection().fetch(statement).await.map_err(unavailable)?;
        taken.put_back();
        Ok(rows)
    }

    async fn fetch_one<T: Send>(
        &self,
        statement: Statement,
        read: impl FnOnce(&dyn Row) -> T + Send,
    ) -> Result<Option<T>, StoreError> {
        let mut taken = self.take()?;
        let row = taken.connection().fetch_one(statement, read).await.map_err(unavailable)?;
        taken.put_back();
        Ok(row)
    }
}

impl<C: Connection> TokenStore for SqlStoreWithin<C> {
    async fn find(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        find(self, id).await
    }

    async fn find_current(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.find(id).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        list(self, query).await
    }

    async fn commit(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        repeated(self, batch).await?;
        let written = self.write(batch).await;
        named(self, batch, written).await
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        let mut taken = self.take()?;
        for chunk in latest(uses).chunks(MAX_TOUCHES) {
            taken.connection().execute(self.statements.touch(chunk)).await.map_err(unavailable)?;
        }
        taken.put_back();
        Ok(())
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        list_ended(self, before, limit).await
    }
}

impl<C: Connection> fmt::Debug for SqlStoreWithin<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlStoreWithin")
            .field("table", &self.statements.tokens_shown)
            .finish_non_exhaustive()
    }
}
