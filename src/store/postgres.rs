//! Tokens in a PostgreSQL database: for any number of machines.
//!
//! A pooler in transaction mode may stand in between: see [`SqlStoreBuilder::pooler`](super::SqlStoreBuilder::pooler). What the store needs of the host's database, and refuses to open without:
//!
//! * `server_encoding` UTF8, since names are in every script;
//! * `synchronous_commit` other than off, so that a revocation that was acknowledged is there after a crash.
//!
//! Reads go where the pool leads: to the primary, or an acknowledged revocation is seen late by as much as the replica lags.
//!
//! # In a transaction of your own
//!
//! What that means for errors, locks and isolation: [`SqlStoreWithin`](super::SqlStoreWithin).
//!
//! ```
//! # async fn add_project(
//! #     pool: &sqlx_postgres::PgPool,
//! #     tokens: &patkit::TokenService<patkit::PostgresStore, patkit::MemoryDirectory>,
//! #     ada: &patkit::Actor,
//! # ) -> Result<patkit::PlaintextToken, Box<dyn std::error::Error>> {
//! use patkit::NewToken;
//!
//! let mut transaction = pool.begin().await?;
//! sqlx::query("INSERT INTO projects (name) VALUES ('apollo')").execute(&mut *transaction).await?;
//! let within = tokens.within(tokens.store().within(&mut transaction));
//! let issued = within.generate(ada, NewToken::named("apollo deploys")).await?;
//! let uncommitted = within.into_uncommitted();
//! transaction.commit().await?;
//! // Now it has happened, and the audit sink is told.
//! tokens.committed(&uncommitted);
//! # Ok(issued.plaintext)
//! # }
//! ```

use super::sql::{Dialect, Engine, Migration, Session, SetupError, SqlStore, Value, bound, unavailable};
use super::{ChangeFeed, Feed, FeedEvent, StoreError, Touch};
use crate::clock::micros;
use sqlx::{AssertSqlSafe, Pool, Row, raw_sql};
use sqlx_postgres::{PgConnection, PgListener, PgRow, Postgres};
use std::sync::Arc;

/// A [`TokenStore`](crate::TokenStore) in a PostgreSQL database (version 12 or later).
///
/// ```no_run
/// # use patkit::PostgresStore;
/// # async fn open(pool: sqlx_postgres::PgPool) -> Result<(), patkit::store::SetupError> {
/// let store = PostgresStore::builder(pool).schema("auth").migrate().await?;
/// # Ok(())
/// # }
/// ```
pub type PostgresStore = SqlStore<Postgres>;

impl Engine for Postgres {
    const DIALECT: Dialect = Dialect {
        // Whatever the session's default is: a compare-and-set needs no more, and more would make it fail where it could wait.
        begin: "BEGIN ISOLATION LEVEL READ COMMITTED",
        skip_locked: " FOR UPDATE SKIP LOCKED",
        lock_rows: Some(" FOR NO KEY UPDATE"),
        has_schemas: true,
        notifies: true,
        // Of the transaction, so that a pooler may stand in between. The result is a text, as that of every statement here.
        lock: Some("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))::text"),
        migrations: &[Migration {
            version: 1,
            min_compatible: 1,
            name: "tokens",
            sql: include_str!("migrations/postgres/0001_tokens.sql"),
        }],
    };

    async fn execute(
        connection: &mut PgConnection,
        keeps: bool,
        sql: Arc<str>,
        values: Vec<Value>,
    ) -> Result<u64, sqlx::Error> {
        Ok(bound::<Self>(sql, values).persistent(keeps).execute(connection).await?.rows_affected())
    }

    async fn fetch(
        connection: &mut PgConnection,
        keeps: bool,
        sql: Arc<str>,
        values: Vec<Value>,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        bound::<Self>(sql, values).persistent(keeps).fetch_all(connection).await
    }

    async fn script(connection: &mut PgConnection, sql: String) -> Result<(), sqlx::Error> {
        raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop)
    }

    async fn touch(
        connection: &mut PgConnection,
        keeps: bool,
        table: &str,
        uses: &[Touch],
    ) -> Result<(), sqlx::Error> {
        let ids: Vec<Vec<u8>> = uses.iter().map(|touch| touch.id.to_bytes().to_vec()).collect();
        let times: Vec<i64> = uses.iter().map(|touch| micros(touch.last_use.at)).collect();
        let addresses: Vec<Option<String>> =
            uses.iter().map(|touch| touch.last_use.address.map(|address| address.to_string())).collect();
        // The rows are locked in the order of their ids, which an update alone does not promise: two nodes never wait for each
        // other.
        let sql = format!(
            "WITH used AS (SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::text[]) AS used (id, at, address)), \
             locked AS MATERIALIZED (SELECT id FROM {table} WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE) \
             UPDATE {table} AS token SET last_used_at = used.at, last_used_address = used.address \
             FROM used JOIN locked ON locked.id = used.id \
             WHERE token.id = used.id AND (token.last_used_at IS NULL OR token.last_used_at < used.at)"
        );
        let query =
            sqlx::query::<Self>(AssertSqlSafe(sql)).persistent(keeps).bind(ids).bind(times).bind(addresses);
        query.execute(connection).await.map(drop)
    }

    async fn check(pool: &Pool<Self>, _table: &str) -> Result<(), SetupError> {
        let mut session = Session::<Self>::acquire(pool).await?;
        let mut transaction = session.begin("BEGIN").await?;
        let sql = "SELECT current_setting('server_encoding'), current_setting('synchronous_commit')";
        let rows = Self::fetch(&mut transaction, false, sql.into(), Vec::new()).await?;
        transaction.commit().await?;
        let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let (encoding, commit): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        if encoding != "UTF8" {
            return Err(SetupError::Setting {
                setting: "server_encoding",
                found: encoding,
                needed: "UTF8",
                reason: "names are in every script",
            });
        }
        if commit == "off" {
            return Err(SetupError::Setting {
                setting: "synchronous_commit",
                found: commit,
                needed: "on, or any other but off",
                reason: "a revocation that was acknowledged would be lost in a crash",
            });
        }
        Ok(())
    }

    fn int(row: &PgRow, index: usize) -> Result<Option<i64>, sqlx::Error> {
        row.try_get(index)
    }

    fn text(row: &PgRow, index: usize) -> Result<Option<String>, sqlx::Error> {
        row.try_get(index)
    }

    fn bytes(row: &PgRow, index: usize) -> Result<Option<Vec<u8>>, sqlx::Error> {
        row.try_get(index)
    }
}

/// Hears of changes by LISTEN, on a connection of its own.
///
/// It takes one connection of the pool for itself. Behind a pooler in transaction mode there is none: the lifetimes of the cache
/// are the bound. They are, too, while a connection is lost without either side noticing.
#[derive(Debug)]
pub struct PostgresFeed(PgListener);

impl ChangeFeed for PostgresStore {
    type Feed = PostgresFeed;

    async fn follow(&self) -> Result<PostgresFeed, StoreError> {
        if !self.keeps_statements() {
            return Err(StoreError::unavailable("a pooler in transaction mode passes on no notification"));
        }
        let mut listener = PgListener::connect_with(&self.pool).await.map_err(unavailable)?;
        listener.eager_reconnect(false);
        listener.listen(&self.statements.channel()).await.map_err(unavailable)?;
        Ok(PostgresFeed(listener))
    }
}

impl Feed for PostgresFeed {
    const IS_POLLED: bool = false;

    async fn next(&mut self) -> Result<FeedEvent, StoreError> {
        // None: the connection was lost. Whoever follows begins anew.
        let told = self.0.try_recv().await.map_err(unavailable)?;
        let told = told.ok_or_else(|| StoreError::unavailable("the connection that listens was lost"))?;
        // What is no list of ids says that there were too many, or was sent by somebody else: better all than none.
        let ids = told.payload().split(' ').map(str::parse).collect::<Result<Vec<_>, _>>();
        Ok(ids.map_or(FeedEvent::Missed, FeedEvent::Changed))
    }
}
