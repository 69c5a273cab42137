//! The store within a transaction of the host's.

use super::{
    Engine, MAX_TOUCHES, Place, SqlStore, Statements, find, latest, list, list_ended, named,
    repeated, unavailable, write,
};
use crate::store::record::Value;
use crate::store::{ChangeBatch, ListQuery, Page, StoreError, TokenStore, Touch};
use crate::token::{Token, TokenId};
use chrono::{DateTime, Utc};
use sqlx::{Connection, Transaction};
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
/// change is stored whole or not at all, and sqlx may report success for a commit that was a
/// rollback.
///
/// **Locks.** A changed record stays locked until the transaction ends, and so do its name and, in
/// SQLite, the whole database for writing. Keep the transaction short, and change the tokens last.
/// If two transactions change the same tokens in different orders, PostgreSQL aborts one of them,
/// whose call returns `Unavailable`.
///
/// **How to begin.** In PostgreSQL, use the default isolation, READ COMMITTED. At a higher level,
/// changing a token that another transaction has changed meanwhile returns `Unavailable` and is not
/// retried. In SQLite, use `BEGIN IMMEDIATE` (`pool.begin_with("BEGIN IMMEDIATE")`), because a
/// transaction that reads before it writes fails if another one has written in between.
pub struct SqlStoreWithin<'a, E: Engine> {
    statements: Arc<Statements>,
    /// The connection, which each call takes and puts back unless the transaction became unusable.
    connection: Mutex<Option<&'a mut E::Connection>>,
}

impl<E: Engine> SqlStore<E> {
    /// Returns this store within a transaction that the host has begun with sqlx.
    ///
    /// The transaction must be on a connection to the same database. The modules `sqlite` and
    /// `postgres` show how.
    pub fn within<'a>(&self, transaction: &'a mut Transaction<'_, E>) -> SqlStoreWithin<'a, E> {
        SqlStoreWithin {
            statements: self.statements.clone(),
            connection: Mutex::new(Some(&mut **transaction)),
        }
    }
}

impl<'a, E: Engine> SqlStoreWithin<'a, E> {
    fn take(&self) -> Result<&'a mut E::Connection, StoreError> {
        let taken = self.connection.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.ok_or_else(|| {
            StoreError::unavailable("the transaction is in use, or has failed: roll it back")
        })
    }

    fn put_back(&self, connection: &'a mut E::Connection) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
    }
}

impl<E: Engine> Place<E> for SqlStoreWithin<'_, E> {
    fn statements(&self) -> &Statements {
        &self.statements
    }

    async fn fetch(&self, sql: &Arc<str>, values: Vec<Value>) -> Result<Vec<E::Row>, StoreError> {
        let connection = self.take()?;
        let rows = E::fetch(connection, self.statements.keeps, sql.clone(), values).await;
        let rows = rows.map_err(unavailable)?;
        self.put_back(connection);
        Ok(rows)
    }
}

impl<E: Engine> TokenStore for SqlStoreWithin<'_, E> {
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
        let connection = self.take()?;
        // Creates a savepoint, because sqlx knows that a transaction is open.
        let savepoint = Connection::begin(&mut *connection).await.map_err(unavailable)?;
        let written = write(savepoint, &self.statements, batch, unavailable).await;
        if matches!(written, Ok(()) | Err(StoreError::Conflict(_))) {
            self.put_back(connection);
        }
        named(self, batch, written).await
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        let connection = self.take()?;
        let Statements { keeps, tokens, .. } = &*self.statements;
        for chunk in latest(uses).chunks(MAX_TOUCHES) {
            E::touch(connection, *keeps, tokens, chunk).await.map_err(unavailable)?;
        }
        self.put_back(connection);
        Ok(())
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        list_ended(self, before, limit).await
    }
}

impl<E: Engine> fmt::Debug for SqlStoreWithin<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlStoreWithin")
            .field("table", &self.statements.tokens_shown)
            .finish_non_exhaustive()
    }
}
