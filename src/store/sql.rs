//! Tokens in an SQL database: SQLite, PostgreSQL, MySQL or MariaDB, through any [`Driver`].

mod audit;
mod driver;
mod engine;
mod error;
mod feed;
mod migrate;
mod names;
mod reads;
#[cfg(any(feature = "sqlx-sqlite", feature = "sqlx-postgres", feature = "sqlx-mysql"))]
pub mod sqlx;
mod statements;
#[cfg(feature = "tokio-postgres")]
pub mod tokio_postgres;
mod within;
mod writer;

pub use super::record::{Row, Value};
pub use driver::{Connection, Driver, Listener, NoListener, Session, Statement};
pub use engine::{Engine, MySql, Postgres, Sqlite};
pub use error::{NameError, SetupError, SqlError};
pub use feed::SqlFeed;
pub use within::SqlStoreWithin;

use engine::{EngineKind, check_mysql, check_postgres, check_sqlite};
use error::{Meaning, unavailable};
use names::Names;
use reads::{Place, find, latest, list, list_ended, named, repeated};
use statements::Statements;
use writer::{Failure, Writer};

use crate::store::{ChangeBatch, ListQuery, Page, StoreError, TokenStore, Touch};
use crate::token::{Token, TokenId};
use chrono::{DateTime, Utc};
use std::fmt;
use std::sync::Arc;

/// The engine of a driver.
type EngineOf<D> = <<D as Driver>::Session as Connection>::Engine;
/// The row of a driver.
type RowOf<D> = <<D as Driver>::Session as Connection>::Row;

/// A store in the host's database, on the host's own connection pool.
///
/// `D` is the pool: any [`Driver`]. A clone is cheap and shares the pool.
///
/// ```no_run
/// # #[cfg(feature = "sqlx-postgres")]
/// # async fn open(pool: sqlx_postgres::PgPool) -> Result<(), patkit::store::sql::SetupError> {
/// use patkit::SqlStore;
///
/// let store = SqlStore::builder(pool).schema("auth").migrate().await?;
/// # Ok(())
/// # }
/// ```
pub struct SqlStore<D: Driver> {
    driver: D,
    statements: Arc<Statements>,
}

/// Builds a [`SqlStore`].
pub struct SqlStoreBuilder<D: Driver> {
    driver: D,
    prefix: String,
    schema: Option<String>,
    keeps: bool,
}

impl<D: Driver> SqlStore<D> {
    /// Returns a builder for a store on the host's pool.
    pub fn builder(driver: D) -> SqlStoreBuilder<D> {
        SqlStoreBuilder { driver, prefix: "patkit_".into(), schema: None, keeps: true }
    }

    /// Returns the host's pool.
    pub fn pool(&self) -> &D {
        &self.driver
    }

    /// Runs one statement that returns rows, in its own transaction.
    ///
    /// A pooler in transaction mode assigns a connection to one transaction.
    async fn fetch_in_transaction(
        &self,
        statement: Statement,
    ) -> Result<Vec<RowOf<D>>, StoreError> {
        let mut transaction = Begun::begin(&self.driver, "BEGIN").await.map_err(unavailable)?;
        let rows = transaction.session().fetch(statement).await.map_err(unavailable)?;
        transaction.commit().await.map_err(unavailable)?;
        Ok(rows)
    }

    /// Begins a transaction that writes.
    async fn begin_to_write(&self) -> Result<Begun<D::Session>, StoreError> {
        Begun::begin_to_write(&self.driver).await.map_err(unavailable)
    }

    /// Checks that the database answers and that its tables exist.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if either is not the case.
    pub async fn health(&self) -> Result<(), StoreError> {
        self.fetch(self.statements.statement(&self.statements.health, Vec::new())).await.map(drop)
    }

    /// Refuses a pool or a database that would break the contract.
    async fn check_settings(&self) -> Result<(), SetupError> {
        match self.statements.dialect.kind {
            EngineKind::Sqlite => check_sqlite(&self.driver, &self.statements.names.probe()).await,
            EngineKind::Postgres => check_postgres(&self.driver).await,
            EngineKind::MySql => check_mysql(&self.driver).await,
        }
    }
}

impl<D: Driver> Clone for SqlStore<D> {
    fn clone(&self) -> Self {
        Self { driver: self.driver.clone(), statements: self.statements.clone() }
    }
}

impl<D: Driver> fmt::Debug for SqlStore<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlStore")
            .field("table", &self.statements.tokens_shown)
            .finish_non_exhaustive()
    }
}

impl<D: Driver> fmt::Debug for SqlStoreBuilder<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlStoreBuilder")
            .field("prefix", &self.prefix)
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}

impl<D: Driver> SqlStoreBuilder<D> {
    /// Sets the prefix of the names of tables, indexes and constraints. Defaults to `patkit_`.
    ///
    /// All names are quoted, so that any text works: upper case, spaces, quotes, SQL keywords. An
    /// empty prefix and a prefix with a NUL character are refused. In PostgreSQL a prefix may have
    /// at most 48 bytes, so that no name exceeds PostgreSQL's limit of 63 bytes. In SQLite it must
    /// not begin with `sqlite_`, and prefixes that differ only in ASCII case name the same tables.
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets the schema of the tables. Defaults to the first schema in the connections' search path.
    ///
    /// The host creates the schema. Its name is quoted, as the prefix is, and must be 1 to
    /// 63 bytes. Only PostgreSQL has schemas.
    pub fn schema(mut self, schema: &str) -> Self {
        self.schema = Some(schema.into());
        self
    }

    /// Sets whether a pooler in transaction mode is between the pool and the database. Defaults to
    /// `false`.
    ///
    /// Such poolers are PgBouncer of any version and similar ones. They pass on no notifications,
    /// so a cache polls for changes instead of listening. They may also assign another connection
    /// to each statement, so no statement is kept prepared and each is its own transaction, which
    /// costs two more round trips to the server.
    ///
    /// Declare the pooler. Otherwise a cache notices within 10 s that no notification arrives,
    /// polls, and reports it (`CacheStats::is_polling_instead`), but keeps trying to listen. Every
    /// statement then also fails through a pooler that does not track prepared statements
    /// (PgBouncer before 1.21, or with `max_prepared_statements` 0).
    pub fn pooler(mut self, is_between: bool) -> Self {
        self.keeps = !is_between;
        self
    }

    /// Creates or migrates the tables and returns the store. Any number of nodes may do so at once.
    ///
    /// # Errors
    /// [`SetupError`] if a name is refused, if the database refused or failed a request, or if the
    /// tables have a version that this program is not compatible with.
    pub async fn migrate(self) -> Result<SqlStore<D>, SetupError> {
        let store = self.unchecked()?;
        store.check_settings().await?;
        migrate::migrate(&store).await?;
        migrate::check(&store).await?;
        Ok(store)
    }

    /// Returns the store without migrating; the tables must exist.
    ///
    /// For hosts that run the SQL files of this crate (`src/store/migrations`) themselves.
    ///
    /// # Errors
    /// As [`migrate`](Self::migrate), and also if tables are missing or have an earlier version.
    pub async fn open(self) -> Result<SqlStore<D>, SetupError> {
        let store = self.unchecked()?;
        store.check_settings().await?;
        migrate::check(&store).await?;
        Ok(store)
    }

    fn unchecked(self) -> Result<SqlStore<D>, SetupError> {
        let dialect = EngineOf::<D>::DIALECT;
        let names = Names::new(dialect, self.prefix, self.schema)?;
        let statements = Statements::new(names, self.keeps, dialect);
        Ok(SqlStore { driver: self.driver, statements: Arc::new(statements) })
    }
}

/// A connection with a transaction.
///
/// If it is dropped before the transaction has ended, the connection is abandoned, because its next
/// user must not inherit the transaction.
struct Begun<S: Session>(Option<S>);

impl<S: Session> Begun<S> {
    async fn begin<D: Driver<Session = S>>(
        driver: &D,
        sql: &'static str,
    ) -> Result<Self, SqlError> {
        let mut begun = Self(Some(driver.acquire().await?));
        begun.session().begin(sql).await?;
        Ok(begun)
    }

    /// Begins a transaction that writes.
    async fn begin_to_write<D: Driver<Session = S>>(driver: &D) -> Result<Self, SqlError> {
        let dialect = S::Engine::DIALECT;
        let mut begun = Self(Some(driver.acquire().await?));
        if let Some(before) = dialect.before_begin {
            begun.session().run(before).await?;
        }
        begun.session().begin(dialect.begin).await?;
        Ok(begun)
    }

    fn session(&mut self) -> &mut S {
        self.0.as_mut().expect("only the end of the transaction takes the connection")
    }

    async fn commit(mut self) -> Result<(), SqlError> {
        self.session().commit().await?;
        drop(self.0.take());
        Ok(())
    }

    async fn rollback(mut self) -> Result<(), SqlError> {
        self.session().rollback().await?;
        drop(self.0.take());
        Ok(())
    }
}

impl<S: Session> Drop for Begun<S> {
    fn drop(&mut self) {
        if let Some(mut session) = self.0.take() {
            session.abandon();
        }
    }
}

impl<D: Driver> Place for SqlStore<D> {
    type Row = RowOf<D>;

    fn statements(&self) -> &Statements {
        &self.statements
    }

    async fn fetch(&self, statement: Statement) -> Result<Vec<RowOf<D>>, StoreError> {
        if !self.statements.keeps {
            return self.fetch_in_transaction(statement).await;
        }
        let mut session = self.driver.acquire().await.map_err(unavailable)?;
        session.fetch(statement).await.map_err(unavailable)
    }

    async fn fetch_one<T: Send>(
        &self,
        statement: Statement,
        read: impl FnOnce(&dyn Row) -> T + Send,
    ) -> Result<Option<T>, StoreError> {
        if !self.statements.keeps {
            let rows = self.fetch_in_transaction(statement).await?;
            return Ok(rows.first().map(|row| read(row)));
        }
        let mut session = self.driver.acquire().await.map_err(unavailable)?;
        session.fetch_one(statement, read).await.map_err(unavailable)
    }
}

/// The number of times that a batch is tried if other transactions keep interfering.
///
/// Batches lock records in one order, so only a host's own transaction, a cluster or the gaps that
/// MySQL locks make them interfere.
const MAX_TRIES: u32 = 10;

/// The longest pause before a batch is tried again, in milliseconds.
const MAX_PAUSE: u32 = 250;

impl<D: Driver> SqlStore<D> {
    /// Writes a batch in a transaction: everything is committed, or nothing.
    async fn write(&self, batch: &ChangeBatch) -> Result<(), Written> {
        let mut transaction = self.begin_to_write().await.map_err(Written::Failed)?;
        let connection = transaction.session();
        let written = Writer { connection, statements: &self.statements }.write(batch).await;
        let Err(failure) = written else {
            return transaction.commit().await.map_err(|error| {
                match self.statements.meaning(&error) {
                    Meaning::RolledBack => Written::RolledBack(error),
                    _ => Written::Failed(error::commit(error, self.statements.dialect.kind)),
                }
            });
        };
        // The rollback finishes before the error is returned. If it fails, the connection is
        // abandoned, which also rolls back.
        transaction.rollback().await.map_err(|error| Written::Failed(unavailable(error)))?;
        Err(match failure {
            Failure::Conflict(conflict) => Written::Failed(StoreError::Conflict(conflict)),
            Failure::Sql(error) if self.statements.meaning(&error) == Meaning::RolledBack => {
                Written::RolledBack(error)
            }
            Failure::Sql(error) => Written::Failed(unavailable(error)),
        })
    }

    /// Waits after the n-th try for a random time, which gets longer with each, so that those who
    /// interfere do not do it again.
    ///
    /// The database waits, because the crate has no runtime that could.
    async fn pause(&self, tries: u32) -> Result<(), SqlError> {
        let Some(pause) = self.statements.dialect.pause else { return Ok(()) };
        let millis = 2_u32.saturating_pow(tries.saturating_add(1)).min(MAX_PAUSE);
        self.driver.acquire().await?.run(&pause(millis)).await
    }
}

/// The reason why a transaction wrote nothing.
enum Written {
    /// Another transaction interfered.
    RolledBack(SqlError),
    Failed(StoreError),
}

impl<D: Driver> TokenStore for SqlStore<D> {
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
        let mut tries = 1_u32;
        let written = loop {
            match self.write(batch).await {
                Ok(()) => return Ok(()),
                Err(Written::RolledBack(_)) if tries < MAX_TRIES => {
                    if let Err(error) = self.pause(tries).await {
                        break Err(unavailable(error));
                    }
                    tries = tries.saturating_add(1);
                }
                Err(Written::RolledBack(error)) => break Err(unavailable(error)),
                Err(Written::Failed(error)) => break Err(error),
            }
        };
        named(self, batch, written).await
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        for chunk in latest(uses).chunks(MAX_TOUCHES) {
            let statement = self.statements.touch(chunk);
            if self.statements.keeps {
                let mut session = self.driver.acquire().await.map_err(unavailable)?;
                session.execute(statement).await.map_err(unavailable)?;
            } else {
                let mut transaction =
                    Begun::begin(&self.driver, "BEGIN").await.map_err(unavailable)?;
                transaction.session().execute(statement).await.map_err(unavailable)?;
                transaction.commit().await.map_err(unavailable)?;
            }
        }
        Ok(())
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        list_ended(self, before, limit).await
    }
}

/// The maximum number of last uses in one statement, with up to four values each.
const MAX_TOUCHES: usize = 8_000;

/// The error for an answer that the database does not give.
fn unexpected(what: &str) -> SqlError {
    SqlError::failed(&format!("the database returned {what}"))
}

/// Reads an integer that is not null from a cell of the first row.
fn first_int(rows: &[impl Row], index: usize) -> Result<i64, SqlError> {
    let row = rows.first().ok_or_else(|| unexpected("no row"))?;
    row.int(index).flatten().ok_or_else(|| unexpected("no number"))
}
