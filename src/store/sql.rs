//! The code shared by the SQL stores: statements, error mapping, and the store contract.
//!
//! [`Engine`] holds the differences between the engines.

mod error;
mod migrate;
mod names;
mod within;

pub use error::{NameError, SetupError, SqlFault};
pub(super) use migrate::Migration;
use names::Names;
pub use within::SqlStoreWithin;

pub(super) use super::record::Value;
use super::record::{
    EVENT_COLUMNS, Row, TOKEN_COLUMNS, event_values, read_event, read_id, read_token, token_values,
};
use crate::audit::AuditEvent;
use crate::clock::{micros, plausible_until};
use crate::store::{
    AuditLog, Change, ChangeBatch, Conflict, CorruptRecord, CursorError, EventCursor, EventOrder,
    EventPage, EventQuery, ExportCursor, ExportPage, KeyChecks, ListBy, ListQuery, MAX_EVENTS,
    Page, StoreError, TokenCounts, TokenStore, Touch,
};
use crate::token::{KeyCheck, KeyId, Token, TokenId, TokenState};
use chrono::{DateTime, Utc};
use error::Violation;
pub(super) use error::unavailable;
use sqlx::pool::PoolConnection;
use sqlx::query::Query;
use sqlx::{
    AssertSqlSafe, Connection, Database, Encode, Pool, SqlSafeStr, Transaction, Type, query,
};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fmt::Write;
use std::sync::Arc;

/// A database engine that can hold tokens. Only this crate implements it.
pub trait Engine: Database<Connection: Send> + sealed::Sealed {
    /// The differences in the text of statements.
    #[doc(hidden)]
    const DIALECT: Dialect;

    /// Runs a statement and returns the number of rows that it changed.
    ///
    /// `keeps` says whether the connection keeps the statement prepared.
    #[doc(hidden)]
    fn execute(
        connection: &mut Self::Connection,
        keeps: bool,
        sql: Arc<str>,
        values: Vec<Value>,
    ) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;

    /// Runs a statement and returns its rows.
    #[doc(hidden)]
    fn fetch(
        connection: &mut Self::Connection,
        keeps: bool,
        sql: Arc<str>,
        values: Vec<Value>,
    ) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send;

    /// Runs a statement that returns at most one row, and waits for nothing after that row.
    #[doc(hidden)]
    fn fetch_one(
        connection: &mut Self::Connection,
        keeps: bool,
        sql: Arc<str>,
        values: Vec<Value>,
    ) -> impl Future<Output = Result<Option<Self::Row>, sqlx::Error>> + Send;

    /// Runs several statements unchanged.
    #[doc(hidden)]
    fn script(
        connection: &mut Self::Connection,
        sql: String,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Records last uses, each of a different token, in one statement that contains `table` as
    /// given.
    #[doc(hidden)]
    fn touch(
        connection: &mut Self::Connection,
        keeps: bool,
        table: &str,
        uses: &[Touch],
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Refuses a pool that would break the contract.
    ///
    /// `probe` is the quoted name of a table that the check may create.
    #[doc(hidden)]
    fn check(pool: &Pool<Self>, probe: &str)
    -> impl Future<Output = Result<(), SetupError>> + Send;

    /// Reads an integer from a cell.
    #[doc(hidden)]
    fn int(row: &Self::Row, index: usize) -> Result<Option<i64>, sqlx::Error>;

    /// Reads a text from a cell.
    #[doc(hidden)]
    fn text(row: &Self::Row, index: usize) -> Result<Option<&str>, sqlx::Error>;

    /// Reads bytes from a cell.
    #[doc(hidden)]
    fn bytes(row: &Self::Row, index: usize) -> Result<Option<&[u8]>, sqlx::Error>;
}

mod sealed {
    pub trait Sealed {}

    #[cfg(feature = "sqlite")]
    impl Sealed for sqlx_sqlite::Sqlite {}
    #[cfg(feature = "postgres")]
    impl Sealed for sqlx_postgres::Postgres {}
}

/// The differences between the engines in the text of statements.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Dialect {
    /// The prefix of export cursors.
    pub(super) name: &'static str,
    /// Builds the statement that reads up to `$3` events after the transaction `$1` and the number
    /// `$2`.
    ///
    /// It selects the columns, the transaction and the number of each event, and the newest
    /// transaction or number. If there are no events, it returns one row that has only the newest.
    /// The arguments are the columns, the quoted name of the events table, and that name as a text.
    pub(super) export: fn(columns: &str, events: &str, name: &str) -> String,
    /// Whether events are exported in the order of their transaction ids.
    pub(super) has_transaction_ids: bool,
    /// Begins a transaction that writes.
    pub(super) begin: &'static str,
    /// The suffix of a sub-query that selects rows to remove.
    pub(super) skip_locked: &'static str,
    /// The suffix of a query that locks the rows it reads; `None` if a transaction locks the whole
    /// database.
    pub(super) lock_rows: Option<&'static str>,
    /// Counts the schemas with the name `$1`; `None` if the host cannot choose a schema.
    pub(super) count_schemas: Option<&'static str>,
    /// The maximum length of a name in bytes; the engine truncates longer names.
    pub(super) longest_name: Option<usize>,
    /// The prefix that no name may have, in lower case.
    pub(super) reserved_prefix: Option<&'static str>,
    /// Ensures that only one node migrates at a time.
    pub(super) lock: Option<&'static str>,
    /// Whether listening nodes are notified of changes.
    pub(super) notifies: bool,
    pub(super) migrations: &'static [Migration],
}

/// A store in the host's database, on the host's own connection pool.
///
/// A clone is cheap and shares the pool.
pub struct SqlStore<E: Engine> {
    pub(super) pool: Pool<E>,
    pub(super) statements: Arc<Statements>,
}

/// Builds a [`SqlStore`].
#[derive(Debug)]
pub struct SqlStoreBuilder<E: Engine> {
    pool: Pool<E>,
    prefix: String,
    schema: Option<String>,
    keeps: bool,
}

impl<E: Engine> SqlStore<E> {
    /// Returns a builder for a store on the host's pool.
    pub fn builder(pool: Pool<E>) -> SqlStoreBuilder<E> {
        SqlStoreBuilder { pool, prefix: "patkit_".into(), schema: None, keeps: true }
    }

    /// Returns the host's pool.
    pub fn pool(&self) -> &Pool<E> {
        &self.pool
    }

    /// Runs one statement that returns rows, in its own transaction and without keeping it
    /// prepared.
    ///
    /// A pooler in transaction mode assigns a connection to one transaction.
    pub(super) async fn fetch_unprepared(
        &self,
        sql: &Arc<str>,
        values: Vec<Value>,
    ) -> Result<Vec<E::Row>, StoreError> {
        let mut session = Session::<E>::acquire(&self.pool).await.map_err(unavailable)?;
        let mut transaction = session.begin("BEGIN").await.map_err(unavailable)?;
        let rows =
            E::fetch(&mut transaction, false, sql.clone(), values).await.map_err(unavailable)?;
        transaction.commit().await.map_err(unavailable)?;
        Ok(rows)
    }

    /// Checks that the database answers and that its tables exist.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if either is not the case.
    pub async fn health(&self) -> Result<(), StoreError> {
        self.fetch(&self.statements.health, Vec::new()).await.map(drop)
    }
}

impl<E: Engine> Clone for SqlStore<E> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone(), statements: self.statements.clone() }
    }
}

impl<E: Engine> fmt::Debug for SqlStore<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlStore")
            .field("table", &self.statements.tokens_shown)
            .finish_non_exhaustive()
    }
}

impl<E: Engine> SqlStoreBuilder<E> {
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
    pub async fn migrate(self) -> Result<SqlStore<E>, SetupError> {
        let store = self.unchecked()?;
        E::check(&store.pool, &store.statements.names.probe()).await?;
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
    pub async fn open(self) -> Result<SqlStore<E>, SetupError> {
        let store = self.unchecked()?;
        E::check(&store.pool, &store.statements.names.probe()).await?;
        migrate::check(&store).await?;
        Ok(store)
    }

    fn unchecked(self) -> Result<SqlStore<E>, SetupError> {
        let names = Names::new::<E>(self.prefix, self.schema)?;
        let statements = Statements::new(names, self.keeps, &E::DIALECT);
        Ok(SqlStore { pool: self.pool, statements: Arc::new(statements) })
    }
}

/// The texts of all statements, built once so that connections find their prepared statements
/// again.
#[derive(Debug)]
pub(super) struct Statements {
    /// Whether connections keep the statements prepared.
    pub(super) keeps: bool,
    names: Names,
    /// The quoted name of the table of tokens.
    tokens: String,
    pub(super) events: String,
    /// The name of the table of tokens in errors.
    tokens_shown: String,
    pub(super) events_shown: String,
    find: Arc<str>,
    insert: Arc<str>,
    update: Arc<str>,
    remove: Arc<str>,
    erase: Arc<str>,
    count_by_state: Arc<str>,
    tokens_per_key: Arc<str>,
    key_checks_shown: String,
    read_key_checks: Arc<str>,
    record_key_check: Arc<str>,
    health: Arc<str>,
    export: Arc<str>,
}

impl Statements {
    fn new(names: Names, keeps: bool, dialect: &Dialect) -> Self {
        let (tokens, events) = (names.table("tokens"), names.table("events"));
        let key_checks = names.table("key_checks");
        let columns = TOKEN_COLUMNS.join(", ");
        // All columns but the id and, at the end, those of the last use.
        let assignments: Vec<String> = TOKEN_COLUMNS
            .iter()
            .enumerate()
            .filter(|(_, column)| **column != "id" && !column.starts_with("last_used"))
            .map(|(index, column)| format!("{column} = ${}", index.saturating_add(1)))
            .collect();
        let version = TOKEN_COLUMNS.len().saturating_sub(2);
        Self {
            find: format!("SELECT {columns} FROM {tokens} WHERE id = $1").into(),
            insert: format!("INSERT INTO {tokens} ({columns}) VALUES ({})", places(1, TOKEN_COLUMNS.len())).into(),
            update: format!(
                "UPDATE {tokens} SET {} WHERE id = $1 AND version = ${version} - 1",
                assignments.join(", ")
            )
            .into(),
            remove: format!("DELETE FROM {tokens} WHERE id = $1 AND version = $2").into(),
            erase: format!(
                "UPDATE {events} SET address = NULL, \
                 owner = CASE WHEN owner = $2 THEN NULL ELSE owner END, \
                 actor = CASE WHEN actor_owner = $2 THEN 'erased' ELSE actor END, \
                 actor_token = CASE WHEN actor_owner = $2 THEN NULL ELSE actor_token END, \
                 actor_owner = CASE WHEN actor_owner = $2 THEN NULL ELSE actor_owner END \
                 WHERE (realm = $1 AND owner = $2) OR (realm = $1 AND actor_owner = $2)"
            )
            .into(),
            count_by_state: format!(
                "SELECT COUNT(*) FILTER (WHERE {}), COUNT(*) FILTER (WHERE {}), \
                 COUNT(*) FILTER (WHERE {}) FROM {tokens}",
                in_state(TokenState::Active, "$1"),
                in_state(TokenState::Revoked, "$1"),
                in_state(TokenState::Expired, "$1"),
            )
            .into(),
            tokens_per_key: format!(
                "SELECT digest_key, COUNT(*) FROM {tokens} WHERE digest_key IS NOT NULL \
                 GROUP BY digest_key ORDER BY digest_key"
            )
            .into(),
            read_key_checks: format!("SELECT key_id, check_value FROM {key_checks} ORDER BY key_id").into(),
            record_key_check: format!(
                "INSERT INTO {key_checks} (key_id, check_value) VALUES ($1, $2) ON CONFLICT (key_id) DO NOTHING"
            )
            .into(),
            health: format!("SELECT 1 FROM {tokens} LIMIT 1").into(),
            export: (dialect.export)(
                &EVENT_COLUMNS.map(|column| format!("event.{column}")).join(", "),
                &events,
                &names.events_text(),
            )
            .into(),
            tokens_shown: names.shown("tokens"),
            events_shown: names.shown("events"),
            key_checks_shown: names.shown("key_checks"),
            keeps,
            names,
            tokens,
            events,
        }
    }

    /// Returns the statement for a list, with its values.
    ///
    /// `after` is the id that the list starts after. It may be a value that is not a valid id.
    fn list(&self, query: &ListQuery, after: Option<Value>) -> (Arc<str>, Vec<Value>) {
        let mut values = Vec::new();
        let mut conditions: Vec<String> = Vec::new();
        let mut bind = |value: Value| {
            values.push(value);
            format!("${}", values.len())
        };
        match &query.by {
            ListBy::Owner { realm, owner, kind } => {
                conditions.push(format!("realm = {}", bind(Value::text(realm.as_str()))));
                conditions.push(format!("owner = {}", bind(Value::text(owner))));
                conditions.extend(kind.map(|kind| format!("kind = {}", bind(Value::text(&kind)))));
            }
            ListBy::Kind { realm, kind } => {
                conditions.push(format!("realm = {}", bind(Value::text(realm.as_str()))));
                conditions.push(format!("kind = {}", bind(Value::text(&kind))));
            }
            ListBy::Creator(creator) => {
                conditions.push(format!("created_by_token = {}", bind(Value::id(*creator))));
            }
            ListBy::Restorer(restorer) => {
                conditions.push(format!("restored_by_token = {}", bind(Value::id(*restorer))));
            }
            ListBy::Ancestor(ancestor) => {
                conditions.push(format!("ancestor = {}", bind(Value::id(*ancestor))));
            }
            ListBy::Key(key) => {
                conditions.push(format!("digest_key = {}", bind(Value::count(key.get()))));
            }
            ListBy::Idle(before) => {
                let before = bind(Value::time(*before));
                let latest = query.active_at.map(|now| bind(Value::time(plausible_until(now))));
                let is_before = |column: &str| match &latest {
                    None => format!("{column} < {before}"),
                    Some(latest) => format!("({column} < {before} OR {column} > {latest})"),
                };
                conditions.push(is_before("idle_from"));
                conditions.push(format!("(last_used_at IS NULL OR {})", is_before("last_used_at")));
            }
        }
        if let Some(now) = query.active_at {
            let now = bind(Value::time(now));
            conditions.push(in_state(TokenState::Active, &now));
        }
        conditions.extend(after.map(|after| format!("id < {}", bind(after))));
        // Reads one row more than requested, to know whether there is a next page.
        let limit = bind(Value::count(query.limit.max(1).saturating_add(1)));
        let sql = format!(
            "SELECT {} FROM {} WHERE {} ORDER BY id DESC LIMIT {limit}",
            TOKEN_COLUMNS.join(", "),
            self.tokens,
            conditions.join(" AND ")
        );
        (sql.into(), values)
    }

    /// Returns the statement for a page of events and one event more, with its values.
    fn events(&self, query: &EventQuery) -> (Arc<str>, Vec<Value>) {
        let mut values = Vec::new();
        let mut bind = |value: Value| {
            values.push(value);
            format!("${}", values.len())
        };
        let mut conditions = vec![format!("realm = {}", bind(Value::text(query.realm.as_str())))];
        conditions.extend(query.token.map(|token| format!("token = {}", bind(Value::id(token)))));
        conditions.extend(
            query.owner.as_ref().map(|owner| format!("owner = {}", bind(Value::text(owner)))),
        );
        conditions.extend(query.from.map(|from| format!("at >= {}", bind(Value::time(from)))));
        conditions.extend(query.until.map(|until| format!("at < {}", bind(Value::time(until)))));
        let (direction, is_further) = match query.order {
            EventOrder::NewestFirst => (" DESC", "<"),
            EventOrder::OldestFirst => ("", ">"),
        };
        if let Some(after) = query.after {
            let micros = bind(Value::Int(Some(after.micros())));
            let id = bind(Value::Bytes(Some(after.id_bytes().to_vec())));
            conditions.push(format!("(at, id) {is_further} ({micros}, {id})"));
        }
        let limit = bind(Value::count(query.limit.max(1).saturating_add(1)));
        let sql = format!(
            "SELECT {} FROM {} WHERE {} ORDER BY at{direction}, id{direction} LIMIT {limit}",
            EVENT_COLUMNS.join(", "),
            self.events,
            conditions.join(" AND ")
        );
        (sql.into(), values)
    }

    /// Returns the channel for notifications of changes. Its name is short, however long the
    /// table's name is.
    ///
    /// Two stores that share a channel occasionally invalidate a record needlessly.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code, reason = "the other engine has none"))]
    pub(super) fn channel(&self) -> String {
        format!("patkit_{:08x}", crc32fast::hash(self.tokens.as_bytes()))
    }

    /// Selects the ids and versions of `count` records.
    fn versions(&self, count: usize) -> String {
        format!("SELECT id, version FROM {} WHERE id IN ({})", self.tokens, places(1, count))
    }

    /// Frees `count` names temporarily.
    ///
    /// The placeholders collide with no name, because no hash of a name is as short as an id.
    fn clear_names(&self, count: usize) -> String {
        format!(
            "UPDATE {} SET name_key = id WHERE id IN ({}) AND successor IS NULL",
            self.tokens,
            places(1, count)
        )
    }

    /// Selects ended records.
    ///
    /// Both numbers are literals so that the planner can estimate how few rows end before the
    /// instant, and choose the right index.
    fn list_ended(&self, before: i64, limit: usize) -> String {
        format!(
            "SELECT {} FROM {} WHERE ended_at <= {before} ORDER BY ended_at, id LIMIT {limit}",
            TOKEN_COLUMNS.join(", "),
            self.tokens
        )
    }

    fn prune_events(&self, skip_locked: &str, before: i64, limit: usize) -> String {
        let events = &self.events;
        format!(
            "DELETE FROM {events} WHERE seq IN (SELECT seq FROM {events} WHERE at < {before} \
             ORDER BY at, id LIMIT {limit}{skip_locked})"
        )
    }

    fn insert_events(&self, count: usize) -> String {
        let mut sql = format!("INSERT INTO {} ({}) VALUES ", self.events, EVENT_COLUMNS.join(", "));
        for event in 0..count {
            let first = event.saturating_mul(EVENT_COLUMNS.len()).saturating_add(1);
            let comma = if event == 0 { "" } else { ", " };
            // Writing to a `String` cannot fail.
            let _ = write!(sql, "{comma}({})", places(first, EVENT_COLUMNS.len()));
        }
        sql.push_str(" ON CONFLICT (id) DO NOTHING");
        sql
    }
}

/// A statement with its values.
pub(super) fn bound<'q, E: Database>(
    sql: Arc<str>,
    values: Vec<Value>,
) -> Query<'q, E, E::Arguments>
where
    Option<i64>: Encode<'q, E> + Type<E>,
    Option<String>: Encode<'q, E> + Type<E>,
    Option<Vec<u8>>: Encode<'q, E> + Type<E>,
{
    values.into_iter().fold(query(AssertSqlSafe(sql)), |query, value| match value {
        Value::Int(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
        Value::Bytes(value) => query.bind(value),
    })
}

/// Returns `count` placeholders: `$first, …`.
pub(super) fn places(first: usize, count: usize) -> String {
    let mut text = String::new();
    for place in first..first.saturating_add(count) {
        let comma = if place == first { "" } else { ", " };
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{comma}${place}");
    }
    text
}

/// A connection on which a transaction is begun.
///
/// If the session is dropped while the transaction begins, the connection is closed, because it may
/// have an open transaction that its next user must not inherit.
pub(super) struct Session<E: Engine> {
    connection: PoolConnection<E>,
    is_begun: bool,
}

impl<E: Engine> Session<E> {
    pub(super) async fn acquire(pool: &Pool<E>) -> Result<Self, sqlx::Error> {
        Ok(Self { connection: pool.acquire().await?, is_begun: false })
    }

    /// Begins a transaction. Not an `async fn`, because the compiler would then require of texts of
    /// every lifetime what `begin_with` accepts only of static ones.
    pub(super) fn begin(
        &mut self,
        statement: &'static str,
    ) -> impl Future<Output = Result<Transaction<'_, E>, sqlx::Error>> + Send {
        let Self { connection, is_begun } = self;
        let beginning =
            Connection::begin_with(&mut **connection, SqlSafeStr::into_sql_str(statement));
        async move {
            let transaction = beginning.await?;
            *is_begun = true;
            Ok(transaction)
        }
    }
}

impl<E: Engine> Drop for Session<E> {
    fn drop(&mut self) {
        if !self.is_begun {
            self.connection.close_on_drop();
        }
    }
}

/// A row of the database.
struct Read<'a, E: Engine>(&'a E::Row);

impl<E: Engine> Row for Read<'_, E> {
    fn int(&self, index: usize) -> Option<Option<i64>> {
        E::int(self.0, index).ok()
    }

    fn text(&self, index: usize) -> Option<Option<&str>> {
        E::text(self.0, index).ok()
    }

    fn bytes(&self, index: usize) -> Option<Option<&[u8]>> {
        E::bytes(self.0, index).ok()
    }
}

/// Reads an integer that is not null from a cell of the first row.
pub(super) fn first_int<E: Engine>(rows: &[E::Row], index: usize) -> Result<i64, sqlx::Error> {
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    E::int(row, index)?.ok_or_else(|| sqlx::Error::ColumnDecode {
        index: index.to_string(),
        source: Box::new(sqlx::error::UnexpectedNullError),
    })
}

/// Reads the number of an event and its token from two adjacent cells; `None` for an empty row.
pub(super) fn read_changed<E: Engine>(
    row: &E::Row,
    index: usize,
    table: &str,
) -> Result<Option<(i64, TokenId)>, StoreError> {
    let Some(number) = E::int(row, index).map_err(unavailable)? else {
        return Ok(None);
    };
    let bytes = E::bytes(row, index.saturating_add(1))
        .ok()
        .flatten()
        .and_then(|bytes| bytes.try_into().ok());
    let id = bytes.and_then(|bytes| TokenId::from_bytes(bytes).ok());
    let corrupt = || StoreError::Corrupt(CorruptRecord::new(table, "token", &number.to_string()));
    Ok(Some((number, id.ok_or_else(corrupt)?)))
}

/// The reason why a batch was not written. The transaction must be rolled back.
enum Failure {
    Conflict(Conflict),
    Sql(sqlx::Error),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

/// Writes a batch within a transaction.
struct Writer<'a, E: Engine> {
    connection: &'a mut E::Connection,
    statements: &'a Statements,
}

/// The maximum number of rows that one statement reads or removes, even if its limit is higher.
const MAX_ROWS: usize = 1_000_000;
/// The maximum number of values in one statement.
///
/// SQLite allows 32,766 and PostgreSQL 65,535. SQLite looks up each value by its name among all of
/// them, so many more values would take seconds.
const MAX_VALUES: usize = 3_000;
/// The maximum number of last uses in one statement, with four values each.
///
/// Higher than `MAX_VALUES` allows, because SQLite takes these values by position and searches for
/// no names.
const MAX_TOUCHES: usize = 8_000;

impl<E: Engine> Writer<'_, E> {
    async fn write(&mut self, batch: &ChangeBatch) -> Result<(), Failure> {
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
            E::execute(
                self.connection,
                self.statements.keeps,
                self.statements.erase.clone(),
                values,
            )
            .await?;
        }
        for events in batch.events.chunks(MAX_VALUES.div_euclid(EVENT_COLUMNS.len())) {
            let mut sql = self.statements.insert_events(events.len());
            let mut values: Vec<Value> = events.iter().flat_map(event_values).collect();
            if E::DIALECT.notifies {
                // One statement stores the events and notifies. The notification is sent when the
                // transaction commits.
                let place = values.len().saturating_add(1);
                sql = format!(
                    "WITH stored AS ({sql} RETURNING 1) SELECT pg_notify({})",
                    places(place, 2)
                );
                values.push(Value::text(&self.statements.channel()));
                let ids = batch.changes.iter().map(Change::id);
                values.push(Value::Text(Some(told(
                    ids.chain(events.iter().map(|event| event.token)),
                ))));
            }
            E::execute(self.connection, self.statements.keeps, sql.into(), values).await?;
        }
        Ok(())
    }

    /// Locks several rows in the order of their ids.
    ///
    /// Two batches, or a batch and a batch of last uses, therefore never deadlock.
    async fn lock_rows(&mut self, batch: &ChangeBatch) -> Result<(), Failure> {
        let is_there = |change: &&Change| !matches!(change, Change::Insert(_));
        let ids: Vec<TokenId> = batch.changes.iter().filter(is_there).map(Change::id).collect();
        let Some(lock) = E::DIALECT.lock_rows.filter(|_| ids.len() > 1) else {
            return Ok(());
        };
        // Sorted first, because several statements must lock in one ascending order too.
        let ids: BTreeSet<TokenId> = ids.into_iter().collect();
        let ids: Vec<TokenId> = ids.into_iter().collect();
        for ids in ids.chunks(MAX_VALUES) {
            let tokens = &self.statements.tokens;
            let sql = format!(
                "SELECT id FROM {tokens} WHERE id IN ({}) ORDER BY id{lock}",
                places(1, ids.len())
            );
            let values = ids.iter().copied().map(Value::id).collect();
            E::fetch(self.connection, self.statements.keeps, sql.into(), values).await?;
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
            let sql = self.statements.clear_names(ids.len());
            E::execute(
                self.connection,
                self.statements.keeps,
                sql.into(),
                ids.iter().copied().map(Value::id).collect(),
            )
            .await?;
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
        let changed = E::execute(self.connection, self.statements.keeps, sql.clone(), values).await;
        match (changed, change) {
            (Ok(1), _) => Ok(()),
            (Ok(_), change) => Err(Failure::Conflict(Conflict::Version(change.id()))),
            (Err(error), change) => Err(match Violation::of(&error) {
                Some(Violation::Name) => Failure::Conflict(Conflict::Name(change.id())),
                Some(Violation::Id) => Failure::Conflict(Conflict::Id(change.id())),
                None => Failure::Sql(error),
            }),
        }
    }
}

/// The place where statements run: a connection of the pool, or a transaction of the host's.
pub(super) trait Place<E: Engine>: Sync {
    fn statements(&self) -> &Statements;

    /// Runs one statement that returns rows.
    fn fetch(
        &self,
        sql: &Arc<str>,
        values: Vec<Value>,
    ) -> impl Future<Output = Result<Vec<E::Row>, StoreError>> + Send;

    /// Runs one statement that returns at most one row.
    fn fetch_one(
        &self,
        sql: &Arc<str>,
        values: Vec<Value>,
    ) -> impl Future<Output = Result<Option<E::Row>, StoreError>> + Send {
        async { Ok(self.fetch(sql, values).await?.pop()) }
    }
}

impl<E: Engine> Place<E> for SqlStore<E> {
    fn statements(&self) -> &Statements {
        &self.statements
    }

    async fn fetch(&self, sql: &Arc<str>, values: Vec<Value>) -> Result<Vec<E::Row>, StoreError> {
        if self.statements.keeps {
            let mut connection = self.pool.acquire().await.map_err(unavailable)?;
            return E::fetch(&mut connection, true, sql.clone(), values).await.map_err(unavailable);
        }
        self.fetch_unprepared(sql, values).await
    }

    async fn fetch_one(
        &self,
        sql: &Arc<str>,
        values: Vec<Value>,
    ) -> Result<Option<E::Row>, StoreError> {
        if !self.statements.keeps {
            return Ok(self.fetch(sql, values).await?.pop());
        }
        let mut connection = self.pool.acquire().await.map_err(unavailable)?;
        E::fetch_one(&mut connection, true, sql.clone(), values).await.map_err(unavailable)
    }
}

async fn find<E: Engine>(
    place: &impl Place<E>,
    id: TokenId,
) -> Result<Option<Arc<Token>>, StoreError> {
    let statements = place.statements();
    let Some(row) = place.fetch_one(&statements.find, vec![Value::id(id)]).await? else {
        return Ok(None);
    };
    let token =
        read_token(&Read::<E>(&row), &statements.tokens_shown).map_err(StoreError::Corrupt)?;
    Ok(Some(token.into()))
}

async fn list<E: Engine>(place: &impl Place<E>, query: &ListQuery) -> Result<Page, StoreError> {
    let statements = place.statements();
    let limit = query.limit.max(1);
    let mut page = Page::default();
    let mut after = query.after.map(Value::id);
    loop {
        let (sql, values) = statements.list(query, after);
        let mut rows = place.fetch(&sql, values).await?;
        let is_last = rows.len() <= limit;
        rows.truncate(limit);
        for row in &rows {
            match read_token(&Read::<E>(row), &statements.tokens_shown) {
                Ok(token) => {
                    page.next = Some(token.id);
                    page.tokens.push(Arc::new(token));
                }
                Err(record) => {
                    page.next =
                        read_id(&Read::<E>(row), &statements.tokens_shown).ok().or(page.next);
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
        after = rows
            .last()
            .and_then(|row| E::bytes(row, 0).ok())
            .map(|id| Value::Bytes(id.map(<[u8]>::to_vec)));
    }
}

async fn list_ended<E: Engine>(
    place: &impl Place<E>,
    before: DateTime<Utc>,
    limit: usize,
) -> Result<Page, StoreError> {
    let statements = place.statements();
    // Bounded because a larger limit may exceed what the database can count to.
    let sql = statements.list_ended(micros(before), limit.min(MAX_ROWS));
    let mut page = Page::default();
    for row in place.fetch(&sql.into(), Vec::new()).await? {
        match read_token(&Read::<E>(&row), &statements.tokens_shown) {
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
fn latest(uses: &[Touch]) -> Vec<Touch> {
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

/// Writes a batch and ends the transaction: everything is committed, or nothing.
///
/// The conflict returned is the first one met.
async fn write<E: Engine>(
    mut transaction: Transaction<'_, E>,
    statements: &Statements,
    batch: &ChangeBatch,
    failed: fn(sqlx::Error) -> StoreError,
) -> Result<(), StoreError> {
    let written = Writer::<E> { connection: &mut transaction, statements }.write(batch).await;
    let Err(failure) = written else {
        return transaction.commit().await.map_err(failed);
    };
    // The rollback finishes before the error is returned. If it fails, the connection is closed,
    // which also rolls back.
    transaction.rollback().await.map_err(unavailable)?;
    Err(match failure {
        Failure::Sql(error) => unavailable(error),
        Failure::Conflict(conflict) => StoreError::Conflict(conflict),
    })
}

/// Returns the conflict of the first change whose id or version conflicts, or else `seen`.
///
/// The statements may have met another conflict first, because they did not run in the order of the
/// batch.
async fn first_conflict<E: Engine>(
    place: &impl Place<E>,
    changes: &[Change],
    seen: Conflict,
) -> Result<Conflict, StoreError> {
    let statements = place.statements();
    let mut versions = HashMap::new();
    for changes in changes.chunks(MAX_VALUES) {
        let ids = changes.iter().map(|change| Value::id(change.id())).collect();
        for row in place.fetch(&statements.versions(changes.len()).into(), ids).await? {
            let id =
                read_id(&Read::<E>(&row), &statements.tokens_shown).map_err(StoreError::Corrupt)?;
            let version = E::int(&row, 1).ok().flatten();
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
async fn repeated<E: Engine>(place: &impl Place<E>, batch: &ChangeBatch) -> Result<(), StoreError> {
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
async fn named<E: Engine>(
    place: &impl Place<E>,
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

impl<E: Engine> TokenStore for SqlStore<E> {
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
        let mut session = Session::<E>::acquire(&self.pool).await.map_err(unavailable)?;
        let transaction = session.begin(E::DIALECT.begin).await.map_err(unavailable)?;
        let written = write(transaction, &self.statements, batch, error::commit).await;
        // Released before another connection is acquired, because the pool may have no other.
        drop(session);
        named(self, batch, written).await
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        let Statements { keeps, tokens, .. } = &*self.statements;
        for chunk in latest(uses).chunks(MAX_TOUCHES) {
            if *keeps {
                let mut connection = self.pool.acquire().await.map_err(unavailable)?;
                E::touch(&mut connection, true, tokens, chunk).await.map_err(unavailable)?;
            } else {
                let mut session = Session::<E>::acquire(&self.pool).await.map_err(unavailable)?;
                let mut transaction = session.begin("BEGIN").await.map_err(unavailable)?;
                E::touch(&mut transaction, false, tokens, chunk).await.map_err(unavailable)?;
                transaction.commit().await.map_err(unavailable)?;
            }
        }
        Ok(())
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        list_ended(self, before, limit).await
    }
}

/// Reads the events in these rows, and the locations of those that cannot be read.
fn read_events<E: Engine>(rows: &[E::Row], table: &str) -> (Vec<AuditEvent>, Vec<CorruptRecord>) {
    let (mut events, mut corrupt) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        match read_event(&Read::<E>(row), table) {
            Ok(event) => events.push(event),
            Err(record) => corrupt.push(record),
        }
    }
    (events, corrupt)
}

/// Builds the payload of a notification: the ids, or a mark that they are too many for one payload.
fn told(ids: impl Iterator<Item = TokenId>) -> String {
    let ids: BTreeSet<TokenId> = ids.collect();
    // PostgreSQL allows 7,999 bytes.
    if ids.len() > 300 {
        return "*".into();
    }
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

impl<E: Engine> AuditLog for SqlStore<E> {
    async fn events(&self, query: &EventQuery) -> Result<EventPage, StoreError> {
        let (sql, values) = self.statements.events(query);
        let limit = query.limit.max(1);
        let mut rows = self.fetch(&sql, values).await?;
        let is_last = rows.len() <= limit;
        rows.truncate(limit);
        let (events, corrupt) = read_events::<E>(&rows, &self.statements.events_shown);
        let place = |row: &E::Row| {
            let id = E::bytes(row, 0).ok().flatten().and_then(|id| id.try_into().ok());
            let micros = E::int(row, 1).ok().flatten();
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
        let [transaction, number] = after.numbers(E::DIALECT.name)?;
        let limit = limit.clamp(1, MAX_EVENTS);
        let values = [transaction, number].map(|number| Value::Int(Some(number)));
        let values = values.into_iter().chain([Value::count(limit)]).collect();
        let mut rows = self.fetch(&self.statements.export, values).await?;
        let cell = |row: &E::Row, index: usize| {
            E::int(row, EVENT_COLUMNS.len().saturating_add(index)).map_err(unavailable)
        };
        let number_in = |row: &E::Row, index: usize| {
            let lacking =
                || StoreError::unavailable("the database returned an event without a number");
            cell(row, index)?.ok_or_else(lacking)
        };
        let newest = rows.first().map(|row| cell(row, 2)).transpose()?.flatten();
        let newest =
            newest.ok_or_else(|| StoreError::unavailable("the database returned no snapshot"))?;
        let is_own =
            if E::DIALECT.has_transaction_ids { transaction < newest } else { number <= newest };
        if !is_own {
            return Err(CursorError::OtherDatabase.into());
        }
        // Drops the row that holds only the newest number. A number that cannot be read is no such
        // row, and the last one becomes an error below.
        rows.retain(|row| !matches!(cell(row, 1), Ok(None)));
        let (events, corrupt) = read_events::<E>(&rows, &self.statements.events_shown);
        let last = match rows.last() {
            Some(row) => [number_in(row, 0)?, number_in(row, 1)?],
            None => [transaction, number],
        };
        let next = ExportCursor::at(E::DIALECT.name, &last);
        Ok(ExportPage::new(events, corrupt, next))
    }

    async fn prune_events(&self, before: DateTime<Utc>, limit: usize) -> Result<usize, StoreError> {
        let limit = limit.min(MAX_ROWS);
        let sql = self.statements.prune_events(E::DIALECT.skip_locked, micros(before), limit);
        let mut session = Session::<E>::acquire(&self.pool).await.map_err(unavailable)?;
        let mut transaction = session.begin(E::DIALECT.begin).await.map_err(unavailable)?;
        let removed = E::execute(&mut transaction, false, sql.into(), Vec::new())
            .await
            .map_err(unavailable)?;
        transaction.commit().await.map_err(unavailable)?;
        // Saturates on a machine of 32 bits, though no statement removes more than `MAX_ROWS`.
        Ok(usize::try_from(removed).unwrap_or(usize::MAX))
    }
}

impl<E: Engine> TokenCounts for SqlStore<E> {
    async fn count_by_state(
        &self,
        now: DateTime<Utc>,
    ) -> Result<Vec<(TokenState, u64)>, StoreError> {
        let rows = self.fetch(&self.statements.count_by_state, vec![Value::time(now)]).await?;
        let count = |(index, state)| {
            let count = first_int::<E>(&rows, index).map_err(unavailable)?;
            let negative = |_| StoreError::unavailable("the database returned a negative count");
            Ok((state, u64::try_from(count).map_err(negative)?))
        };
        let states = [TokenState::Active, TokenState::Revoked, TokenState::Expired];
        states.into_iter().enumerate().map(count).collect()
    }
}

impl<E: Engine> KeyChecks for SqlStore<E> {
    async fn key_checks(&self) -> Result<Vec<KeyCheck>, StoreError> {
        let rows = self.fetch(&self.statements.read_key_checks, Vec::new()).await?;
        let read = |row: &E::Row| {
            let number = E::int(row, 0).ok().flatten();
            let row_name = number.map_or_else(|| "?".into(), |number| number.to_string());
            let corrupt = |column| {
                let table = &self.statements.key_checks_shown;
                StoreError::Corrupt(CorruptRecord::new(table, column, &row_name))
            };
            let key = number
                .and_then(|number| number.try_into().ok())
                .ok_or_else(|| corrupt("key_id"))?;
            let value = E::bytes(row, 1).ok().flatten().and_then(|bytes| bytes.try_into().ok());
            Ok(KeyCheck::new(KeyId::new(key), value.ok_or_else(|| corrupt("check_value"))?))
        };
        rows.iter().map(read).collect()
    }

    async fn record_key_check(&self, check: &KeyCheck) -> Result<(), StoreError> {
        let values =
            vec![Value::count(check.key().get()), Value::Bytes(Some(check.value().to_vec()))];
        let sql = self.statements.record_key_check.clone();
        let mut session = Session::<E>::acquire(&self.pool).await.map_err(unavailable)?;
        let mut transaction = session.begin(E::DIALECT.begin).await.map_err(unavailable)?;
        E::execute(&mut transaction, false, sql, values).await.map_err(unavailable)?;
        transaction.commit().await.map_err(unavailable)
    }

    async fn tokens_per_key(&self) -> Result<Vec<(KeyId, u64)>, StoreError> {
        let rows = self.fetch(&self.statements.tokens_per_key, Vec::new()).await?;
        let read = |row: &E::Row| {
            let key = E::int(row, 0).ok().flatten().and_then(|number| number.try_into().ok());
            let corrupt = || CorruptRecord::new(&self.statements.tokens_shown, "digest_key", "?");
            let key = key.ok_or_else(|| StoreError::Corrupt(corrupt()))?;
            let count = E::int(row, 1).map_err(unavailable)?;
            let count = count.and_then(|count| u64::try_from(count).ok());
            let lacking = || StoreError::unavailable("the database returned no count of tokens");
            Ok((KeyId::new(key), count.ok_or_else(lacking)?))
        };
        rows.iter().map(read).collect()
    }
}
/// Returns the condition of the records that are in a state at `now`, as
/// [`Facts::state`](crate::token::Facts::state) derives it.
fn in_state(state: TokenState, now: &str) -> String {
    match state {
        TokenState::Active => {
            format!("revoked_at IS NULL AND (expires_at IS NULL OR expires_at > {now})")
        }
        TokenState::Revoked => {
            format!("revoked_at IS NOT NULL AND (expires_at IS NULL OR expires_at > {now})")
        }
        TokenState::Expired => format!("expires_at <= {now}"),
    }
}
