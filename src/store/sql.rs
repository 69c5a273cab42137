//! What the stores in SQL databases share: the statements, what a failure means, and the contract kept by them. What differs
//! between the engines is in [`Engine`].

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
    AuditLog, Change, ChangeBatch, Conflict, CorruptRecord, CursorError, EventCursor, EventOrder, EventPage,
    EventQuery, ExportCursor, ExportPage, KeyChecks, ListBy, ListQuery, MAX_EVENTS, Page, StoreError,
    TokenCounts, TokenStore, Touch,
};
use crate::token::{KeyCheck, KeyId, Token, TokenId, TokenState};
use chrono::{DateTime, Utc};
use error::Violation;
pub(super) use error::unavailable;
use sqlx::pool::PoolConnection;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection, Database, Encode, Pool, SqlSafeStr, Transaction, Type, query};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fmt::Write;
use std::sync::Arc;

/// A database engine that tokens can be kept in. It is implemented in this crate alone.
pub trait Engine: Database<Connection: Send> + sealed::Sealed {
    /// What differs in the text of statements.
    #[doc(hidden)]
    const DIALECT: Dialect;

    /// Runs a statement and says how many rows it changed. `keeps`: the connection keeps it prepared.
    #[doc(hidden)]
    fn execute(
        connection: &mut Self::Connection,
        keeps: bool,
        sql: Arc<str>,
        values: Vec<Value>,
    ) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;

    /// Runs a statement and gives its rows.
    #[doc(hidden)]
    fn fetch(
        connection: &mut Self::Connection,
        keeps: bool,
        sql: Arc<str>,
        values: Vec<Value>,
    ) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send;

    /// Runs a statement that gives one row at most. Nothing but that row has to be waited for.
    #[doc(hidden)]
    fn fetch_one(
        connection: &mut Self::Connection,
        keeps: bool,
        sql: Arc<str>,
        values: Vec<Value>,
    ) -> impl Future<Output = Result<Option<Self::Row>, sqlx::Error>> + Send;

    /// Runs several statements as they are.
    #[doc(hidden)]
    fn script(
        connection: &mut Self::Connection,
        sql: String,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Notes last uses, each of another token, in one statement. `table` is to stand in it.
    #[doc(hidden)]
    fn touch(
        connection: &mut Self::Connection,
        keeps: bool,
        table: &str,
        uses: &[Touch],
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Refuses a pool that would break the contract. `probe` is the quoted name of a table that the check may create.
    #[doc(hidden)]
    fn check(pool: &Pool<Self>, probe: &str) -> impl Future<Output = Result<(), SetupError>> + Send;

    /// The integer in a cell.
    #[doc(hidden)]
    fn int(row: &Self::Row, index: usize) -> Result<Option<i64>, sqlx::Error>;

    /// The text in a cell.
    #[doc(hidden)]
    fn text(row: &Self::Row, index: usize) -> Result<Option<&str>, sqlx::Error>;

    /// The bytes in a cell.
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

/// What differs between the engines in the text of statements.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Dialect {
    /// What export cursors begin with.
    pub(super) name: &'static str,
    /// Reads up to `$3` events that come after the transaction `$1` and the number `$2`: their columns, their transaction, their
    /// number, and the newest transaction or number. One row with the newest alone if there are none. It is made of the columns,
    /// the quoted name of the table of events and that name as a text.
    pub(super) export: fn(columns: &str, events: &str, name: &str) -> String,
    /// Whether events are exported by the ids of their transactions.
    pub(super) has_transaction_ids: bool,
    /// Begins a transaction that changes something.
    pub(super) begin: &'static str,
    /// Stands behind a sub-query that picks rows to be removed.
    pub(super) skip_locked: &'static str,
    /// Stands behind a query that locks the rows which it reads, where a transaction does not have the whole database.
    pub(super) lock_rows: Option<&'static str>,
    /// Counts the schemas with the name `$1`, where tables can lie in a schema of the host's choice.
    pub(super) count_schemas: Option<&'static str>,
    /// Most bytes of a name; the engine cuts longer ones.
    pub(super) longest_name: Option<usize>,
    /// What no name may begin with, in lower case.
    pub(super) reserved_prefix: Option<&'static str>,
    /// Lets one node at a time migrate.
    pub(super) lock: Option<&'static str>,
    /// Whether nodes that listen are told of changes.
    pub(super) notifies: bool,
    pub(super) migrations: &'static [Migration],
}

/// A store in a database of the host's, built on the host's own pool of connections.
///
/// Cloning it is cheap; the clones share the pool.
pub struct SqlStore<E: Engine> {
    pub(super) pool: Pool<E>,
    pub(super) statements: Arc<Statements>,
}

/// Makes a [`SqlStore`].
#[derive(Debug)]
pub struct SqlStoreBuilder<E: Engine> {
    pool: Pool<E>,
    prefix: String,
    schema: Option<String>,
    keeps: bool,
}

impl<E: Engine> SqlStore<E> {
    /// Begins a store on the host's pool.
    pub fn builder(pool: Pool<E>) -> SqlStoreBuilder<E> {
        SqlStoreBuilder { pool, prefix: "patkit_".into(), schema: None, keeps: true }
    }

    /// The pool.
    pub fn pool(&self) -> &Pool<E> {
        &self.pool
    }

    /// Runs one statement that gives rows, in a transaction of its own and without keeping it prepared: a pooler in transaction
    /// mode gives one connection for one transaction.
    pub(super) async fn fetch_unprepared(
        &self,
        sql: &Arc<str>,
        values: Vec<Value>,
    ) -> Result<Vec<E::Row>, StoreError> {
        let mut session = Session::<E>::acquire(&self.pool).await.map_err(unavailable)?;
        let mut transaction = session.begin("BEGIN").await.map_err(unavailable)?;
        let rows = E::fetch(&mut transaction, false, sql.clone(), values).await.map_err(unavailable)?;
        transaction.commit().await.map_err(unavailable)?;
        Ok(rows)
    }

    /// Whether the database answers and its tables are there.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when not.
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
        f.debug_struct("SqlStore").field("table", &self.statements.tokens_shown).finish_non_exhaustive()
    }
}

impl<E: Engine> SqlStoreBuilder<E> {
    /// What the names of tables, indexes and constraints begin with; `patkit_` by default.
    ///
    /// All names are quoted, so that any text works: upper case, spaces, quotes, words of SQL. An empty prefix and one with a NUL
    /// character are refused. In PostgreSQL a prefix has at most 48 bytes, so that no name exceeds PostgreSQL's 63; in SQLite
    /// it must not begin with `sqlite_`, and prefixes that differ in ASCII case alone name the same tables.
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The schema of the tables; by default the first one of the connections' search path. The host creates it. It is quoted,
    /// as the prefix is, and has 1 to 63 bytes. Only PostgreSQL has schemas.
    pub fn schema(mut self, schema: &str) -> Self {
        self.schema = Some(schema.into());
        self
    }

    /// Whether a pooler in transaction mode is between the pool and the database: PgBouncer of any version, and others like it.
    /// Defaults to `false`.
    ///
    /// Such a pooler passes on no notifications, so a cache polls for changes instead of listening. It may also give each
    /// statement another connection, so no statement is kept prepared and each is a transaction of its own, which costs two more
    /// round trips to the server.
    ///
    /// Declare it. If it is not declared, a cache finds out within 10 s that no notification arrives, polls, and says so
    /// (`CacheStats::is_polling_instead`); but it goes on trying to listen, and every statement fails through a pooler that does
    /// not track prepared statements (PgBouncer before 1.21, or with `max_prepared_statements` 0).
    pub fn pooler(mut self, is_between: bool) -> Self {
        self.keeps = !is_between;
        self
    }

    /// The store, after its tables were created or brought to this version. Any number of nodes may do so at once.
    ///
    /// # Errors
    /// [`SetupError`]: a name is refused, the database did what it was asked for not, or its tables are of a version that this one
    /// does not go with.
    pub async fn migrate(self) -> Result<SqlStore<E>, SetupError> {
        let store = self.unchecked()?;
        E::check(&store.pool, &store.statements.names.probe()).await?;
        migrate::migrate(&store).await?;
        migrate::check(&store).await?;
        Ok(store)
    }

    /// The store, whose tables must be there: for hosts that run the SQL files of this crate
    /// (`src/store/migrations`) themselves.
    ///
    /// # Errors
    /// As [`migrate`](Self::migrate); also when tables are missing or of an earlier version.
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

/// The texts of all statements: made once, so that connections find the prepared ones again.
#[derive(Debug)]
pub(super) struct Statements {
    /// Whether connections keep them prepared.
    pub(super) keeps: bool,
    names: Names,
    /// The tables, quoted.
    tokens: String,
    pub(super) events: String,
    /// The tables, as errors name them.
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
                "SELECT COUNT(*) FILTER (WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $1)), \
                 COUNT(*) FILTER (WHERE revoked_at IS NOT NULL AND (expires_at IS NULL OR expires_at > $1)), \
                 COUNT(*) FILTER (WHERE expires_at <= $1) FROM {tokens}"
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

    /// A list, and what is to be bound to it. `after` is the id that it begins after, or what stands in the place of one.
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
            ListBy::Key(key) => conditions.push(format!("digest_key = {}", bind(Value::count(key.get())))),
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
            conditions.push(format!("revoked_at IS NULL AND (expires_at IS NULL OR expires_at > {now})"));
        }
        conditions.extend(after.map(|after| format!("id < {}", bind(after))));
        // One more than is asked for tells whether there is a next page.
        let limit = bind(Value::count(query.limit.max(1).saturating_add(1)));
        let sql = format!(
            "SELECT {} FROM {} WHERE {} ORDER BY id DESC LIMIT {limit}",
            TOKEN_COLUMNS.join(", "),
            self.tokens,
            conditions.join(" AND ")
        );
        (sql.into(), values)
    }

    /// A page of events and one more, and what is to be bound to it.
    fn events(&self, query: &EventQuery) -> (Arc<str>, Vec<Value>) {
        let mut values = Vec::new();
        let mut bind = |value: Value| {
            values.push(value);
            format!("${}", values.len())
        };
        let mut conditions = vec![format!("realm = {}", bind(Value::text(query.realm.as_str())))];
        conditions.extend(query.token.map(|token| format!("token = {}", bind(Value::id(token)))));
        conditions.extend(query.owner.as_ref().map(|owner| format!("owner = {}", bind(Value::text(owner)))));
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

    /// The channel that changes are told on; its name is short whatever the table's is. Two stores that share it forget a record
    /// too many now and then.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code, reason = "the other engine has none"))]
    pub(super) fn channel(&self) -> String {
        format!("patkit_{:08x}", crc32fast::hash(self.tokens.as_bytes()))
    }

    /// Id and version of so many records.
    fn versions(&self, count: usize) -> String {
        format!("SELECT id, version FROM {} WHERE id IN ({})", self.tokens, places(1, count))
    }

    /// Takes so many names away for a moment: those that stand in their place are no one's, since no name's hash is as short.
    fn clear_names(&self, count: usize) -> String {
        format!(
            "UPDATE {} SET name_key = id WHERE id IN ({}) AND successor IS NULL",
            self.tokens,
            places(1, count)
        )
    }

    /// Both numbers stand in the text: a planner that knows how little lies before the instant goes by the right index.
    fn list_ended(&self, before: i64, limit: usize) -> String {
        format!(
            "SELECT {} FROM {} WHERE ended_at <= {before} ORDER BY ended_at, id LIMIT {limit}",
            TOKEN_COLUMNS.join(", "),
            self.tokens
        )
    }

    fn purge_events(&self, skip_locked: &str, before: i64, limit: usize) -> String {
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
            // Writing to a text cannot fail.
            let _ = write!(sql, "{comma}({})", places(first, EVENT_COLUMNS.len()));
        }
        sql.push_str(" ON CONFLICT (id) DO NOTHING");
        sql
    }
}

/// A statement with its values.
pub(super) fn bound<'q, E: Database>(sql: Arc<str>, values: Vec<Value>) -> Query<'q, E, E::Arguments>
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

/// `$first, …`: so many.
pub(super) fn places(first: usize, count: usize) -> String {
    let mut text = String::new();
    for place in first..first.saturating_add(count) {
        let comma = if place == first { "" } else { ", " };
        // Writing to a text cannot fail.
        let _ = write!(text, "{comma}${place}");
    }
    text
}

/// A connection that a transaction is begun on. Dropped while it begins, the connection is closed: whether a transaction is open
/// on it is not known then, and nobody else shall find out.
pub(super) struct Session<E: Engine> {
    connection: PoolConnection<E>,
    is_begun: bool,
}

impl<E: Engine> Session<E> {
    pub(super) async fn acquire(pool: &Pool<E>) -> Result<Self, sqlx::Error> {
        Ok(Self { connection: pool.acquire().await?, is_begun: false })
    }

    /// Not an `async fn`: the compiler would ask of every text what `begin_with` takes of static ones.
    pub(super) fn begin(
        &mut self,
        statement: &'static str,
    ) -> impl Future<Output = Result<Transaction<'_, E>, sqlx::Error>> + Send {
        let Self { connection, is_begun } = self;
        let beginning = Connection::begin_with(&mut **connection, SqlSafeStr::into_sql_str(statement));
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

/// The number of an event and the token that it is about, in two cells that follow each other; none in an empty row.
pub(super) fn read_changed<E: Engine>(
    row: &E::Row,
    index: usize,
    table: &str,
) -> Result<Option<(i64, TokenId)>, StoreError> {
    let Some(number) = E::int(row, index).map_err(unavailable)? else {
        return Ok(None);
    };
    let bytes = E::bytes(row, index.saturating_add(1)).ok().flatten().and_then(|bytes| bytes.try_into().ok());
    let id = bytes.and_then(|bytes| TokenId::from_bytes(bytes).ok());
    let corrupt = || StoreError::Corrupt(CorruptRecord::new(table, "token", &number.to_string()));
    Ok(Some((number, id.ok_or_else(corrupt)?)))
}

/// Why a batch was not written; the transaction is to be rolled back.
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

/// Most rows that one statement reads or removes, whatever its limit.
const MAX_ROWS: usize = 1_000_000;
/// Most values of one statement: SQLite takes 32,766, PostgreSQL 65,535. SQLite looks up each by its name among all of them, so
/// that many more would take seconds.
const MAX_VALUES: usize = 3_000;
/// Most last uses of one statement, of four values each, which have no names in SQLite.
const MAX_TOUCHES: usize = 8_000;

impl<E: Engine> Writer<'_, E> {
    async fn write(&mut self, batch: &ChangeBatch) -> Result<(), Failure> {
        self.lock_rows(batch).await?;
        self.clear_names(batch).await?;
        // What frees a name before what takes one.
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
            E::execute(self.connection, self.statements.keeps, self.statements.erase.clone(), values).await?;
        }
        for events in batch.events.chunks(MAX_VALUES.div_euclid(EVENT_COLUMNS.len())) {
            let mut sql = self.statements.insert_events(events.len());
            let mut values: Vec<Value> = events.iter().flat_map(event_values).collect();
            if E::DIALECT.notifies {
                // One statement for both. It is sent when the transaction commits.
                let place = values.len().saturating_add(1);
                sql = format!("WITH stored AS ({sql} RETURNING 1) SELECT pg_notify({})", places(place, 2));
                values.push(Value::text(&self.statements.channel()));
                let ids = batch.changes.iter().map(Change::id);
                values.push(Value::Text(Some(told(ids.chain(events.iter().map(|event| event.token))))));
            }
            E::execute(self.connection, self.statements.keeps, sql.into(), values).await?;
        }
        Ok(())
    }

    /// Locks rows in the order of their ids, where there are several: two batches, and a batch of last uses, never wait for each
    /// other.
    async fn lock_rows(&mut self, batch: &ChangeBatch) -> Result<(), Failure> {
        let is_there = |change: &&Change| !matches!(change, Change::Insert(_));
        let ids: Vec<TokenId> = batch.changes.iter().filter(is_there).map(Change::id).collect();
        let Some(lock) = E::DIALECT.lock_rows.filter(|_| ids.len() > 1) else {
            return Ok(());
        };
        // In several statements, those of a later one are greater.
        let ids: BTreeSet<TokenId> = ids.into_iter().collect();
        let ids: Vec<TokenId> = ids.into_iter().collect();
        for ids in ids.chunks(MAX_VALUES) {
            let tokens = &self.statements.tokens;
            let sql =
                format!("SELECT id FROM {tokens} WHERE id IN ({}) ORDER BY id{lock}", places(1, ids.len()));
            let values = ids.iter().copied().map(Value::id).collect();
            E::fetch(self.connection, self.statements.keeps, sql.into(), values).await?;
        }
        Ok(())
    }

    /// Where several records are updated, one may take the name that another one has until then, whatever the order.
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
                // Those of the last use.
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

/// Where statements are run: on a connection of the pool, or within a transaction of the host's.
pub(super) trait Place<E: Engine>: Sync {
    fn statements(&self) -> &Statements;

    /// Runs one statement that gives rows.
    fn fetch(
        &self,
        sql: &Arc<str>,
        values: Vec<Value>,
    ) -> impl Future<Output = Result<Vec<E::Row>, StoreError>> + Send;

    /// Runs one statement that gives one row at most.
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

    async fn fetch_one(&self, sql: &Arc<str>, values: Vec<Value>) -> Result<Option<E::Row>, StoreError> {
        if !self.statements.keeps {
            return Ok(self.fetch(sql, values).await?.pop());
        }
        let mut connection = self.pool.acquire().await.map_err(unavailable)?;
        E::fetch_one(&mut connection, true, sql.clone(), values).await.map_err(unavailable)
    }
}

async fn find<E: Engine>(place: &impl Place<E>, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
    let statements = place.statements();
    let Some(row) = place.fetch_one(&statements.find, vec![Value::id(id)]).await? else {
        return Ok(None);
    };
    let token = read_token(&Read::<E>(&row), &statements.tokens_shown).map_err(StoreError::Corrupt)?;
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
                    page.next = read_id(&Read::<E>(row), &statements.tokens_shown).ok().or(page.next);
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
        // Not one id that the next page could begin after: read on behind the last of them, whatever it is.
        after =
            rows.last().and_then(|row| E::bytes(row, 0).ok()).map(|id| Value::Bytes(id.map(<[u8]>::to_vec)));
    }
}

async fn list_ended<E: Engine>(
    place: &impl Place<E>,
    before: DateTime<Utc>,
    limit: usize,
) -> Result<Page, StoreError> {
    let statements = place.statements();
    // What no database counts to is no limit.
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

/// The latest use of each token, in the order of the ids: two nodes that write at once lock rows in one order.
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

/// Writes a batch and ends the transaction: all of it is done, or nothing. A conflict is told as it was met.
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
    // Rolled back before anything is said. If that fails the connection is closed, which rolls back, too.
    transaction.rollback().await.map_err(unavailable)?;
    Err(match failure {
        Failure::Sql(error) => unavailable(error),
        Failure::Conflict(conflict) => StoreError::Conflict(conflict),
    })
}

/// The first change whose id or version conflicts is told, and only where there is none the conflict that was seen: the
/// statements were not run in the order of the batch.
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
            let id = read_id(&Read::<E>(&row), &statements.tokens_shown).map_err(StoreError::Corrupt)?;
            versions.insert(id, E::int(&row, 1).ok().flatten());
        }
    }
    let conflict = changes.iter().find_map(|change| {
        let version = versions.get(&change.id()).copied().flatten();
        match change {
            Change::Insert(token) => version.map(|_| Conflict::Id(token.id)),
            Change::Update(token) => {
                let expected = token.version.checked_sub(1).and_then(|before| i64::try_from(before).ok());
                (version != expected).then_some(Conflict::Version(token.id))
            }
            Change::Remove { id, version: expected } => {
                (version != i64::try_from(*expected).ok()).then_some(Conflict::Version(*id))
            }
        }
    });
    Ok(conflict.unwrap_or(seen))
}

/// What a batch conflicts with that changes one record twice, if it does: with the first of its changes that does not fit, the
/// second of that record at the latest.
async fn repeated<E: Engine>(place: &impl Place<E>, batch: &ChangeBatch) -> Result<(), StoreError> {
    let mut seen = HashSet::new();
    let Some(index) = batch.changes.iter().position(|change| !seen.insert(change.id())) else {
        return Ok(());
    };
    let (first, rest) = batch.changes.split_at(index);
    let twice = match rest.first() {
        Some(Change::Insert(token)) => Conflict::Id(token.id),
        Some(change) => Conflict::Version(change.id()),
        None => return Ok(()),
    };
    Err(StoreError::Conflict(first_conflict(place, first, twice).await?))
}

/// What a batch conflicts with, where the transaction that found it out is over.
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
        // Given back before another one is asked for: the pool may have no other.
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

/// The events in these rows, and where those are that cannot be read.
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

/// What a notification says: ids, or that they are too many for one.
fn told(ids: impl Iterator<Item = TokenId>) -> String {
    let ids: BTreeSet<TokenId> = ids.collect();
    // PostgreSQL takes 7,999 bytes.
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
            let corrupt =
                |column| StoreError::Corrupt(CorruptRecord::new(&self.statements.events_shown, column, "?"));
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
            E::int(row, EVENT_COLUMNS.len().saturating_add(index)).ok().flatten()
        };
        let newest = rows.first().and_then(|row| cell(row, 2));
        let newest = newest.ok_or_else(|| StoreError::unavailable("the database tells no snapshot"))?;
        let is_own = if E::DIALECT.has_transaction_ids { transaction < newest } else { number <= newest };
        if !is_own {
            return Err(CursorError::OtherDatabase.into());
        }
        // A row for the newest number alone.
        rows.retain(|row| cell(row, 1).is_some());
        let (events, corrupt) = read_events::<E>(&rows, &self.statements.events_shown);
        let last = rows.last().and_then(|row| Some([cell(row, 0)?, cell(row, 1)?]));
        let next = ExportCursor::at(E::DIALECT.name, &last.unwrap_or([transaction, number]));
        Ok(ExportPage::new(events, corrupt, next))
    }

    async fn purge_events(&self, before: DateTime<Utc>, limit: usize) -> Result<usize, StoreError> {
        let limit = limit.min(MAX_ROWS);
        let sql = self.statements.purge_events(E::DIALECT.skip_locked, micros(before), limit);
        let mut session = Session::<E>::acquire(&self.pool).await.map_err(unavailable)?;
        let mut transaction = session.begin(E::DIALECT.begin).await.map_err(unavailable)?;
        let removed =
            E::execute(&mut transaction, false, sql.into(), Vec::new()).await.map_err(unavailable)?;
        transaction.commit().await.map_err(unavailable)?;
        Ok(usize::try_from(removed).unwrap_or(usize::MAX))
    }
}

impl<E: Engine> TokenCounts for SqlStore<E> {
    async fn count_by_state(&self, now: DateTime<Utc>) -> Result<Vec<(TokenState, u64)>, StoreError> {
        let rows = self.fetch(&self.statements.count_by_state, vec![Value::time(now)]).await?;
        let count = |index| {
            let cell = rows.first().and_then(|row| E::int(row, index).ok().flatten());
            cell.and_then(|count| u64::try_from(count).ok()).unwrap_or(0)
        };
        let states = [TokenState::Active, TokenState::Revoked, TokenState::Expired];
        Ok(states.into_iter().enumerate().map(|(index, state)| (state, count(index))).collect())
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
            let key = number.and_then(|number| number.try_into().ok()).ok_or_else(|| corrupt("key_id"))?;
            let value = E::bytes(row, 1).ok().flatten().and_then(|bytes| bytes.try_into().ok());
            Ok(KeyCheck::new(KeyId::new(key), value.ok_or_else(|| corrupt("check_value"))?))
        };
        rows.iter().map(read).collect()
    }

    async fn record_key_check(&self, check: &KeyCheck) -> Result<(), StoreError> {
        let values = vec![Value::count(check.key().get()), Value::Bytes(Some(check.value().to_vec()))];
        let sql = self.statements.record_key_check.clone();
        let mut session = Session::<E>::acquire(&self.pool).await.map_err(unavailable)?;
        let mut transaction = session.begin(E::DIALECT.begin).await.map_err(unavailable)?;
        E::execute(&mut transaction, false, sql, values).await.map_err(unavailable)?;
        transaction.commit().await.map_err(unavailable)
    }

    async fn tokens_per_key(&self) -> Result<Vec<(KeyId, u64)>, StoreError> {
        let rows = self.fetch(&self.statements.tokens_per_key, Vec::new()).await?;
        let number = |row, index| E::int(row, index).ok().flatten();
        let counts = rows.iter().filter_map(|row| {
            let key = KeyId::new(number(row, 0)?.try_into().ok()?);
            Some((key, number(row, 1)?.try_into().ok()?))
        });
        Ok(counts.collect())
    }
}
