//! Tokens in a SQLite database: for one machine.
//!
//! The store refuses to open unless the host's pool has:
//!
//! * a journal in WAL mode (`journal_mode`), so that verifications and changes do not wait for each
//!   other;
//! * `synchronous` FULL or EXTRA, so that an acknowledged revocation survives a loss of power;
//! * a `busy_timeout` of 1 s or more, so that changes on several connections wait for each other
//!   instead of failing;
//! * for an in-memory database: one database that all connections of the pool share. Use a pool of
//!   one connection, because connections that share an in-memory cache fail instead of waiting for
//!   each other as those of a file do.
//!
//! sqlx's `SqliteConnectOptions` default to the second and the third; the first is
//! `.journal_mode(SqliteJournalMode::Wal)`.
//!
//! # Several processes that start at once
//!
//! Only one connection can switch a new file's journal to WAL. The others do not wait but fail at
//! once with `SQLITE_BUSY`, even with a long timeout. A file in WAL mode stays in WAL mode. If
//! several processes or connections may be the first to open the file, let one connection open it
//! before the others, for example in a deployment step.
//!
//! # In a transaction of your own
//!
//! Begin it with `BEGIN IMMEDIATE`: see [`SqlStoreWithin`](super::SqlStoreWithin). With a pool of
//! one connection, do everything within the transaction, because a service outside would wait for
//! the connection that the transaction has.
//!
//! ```
//! # async fn add_project(
//! #     pool: &sqlx_sqlite::SqlitePool,
//! #     tokens: &patkit::TokenService<patkit::SqliteStore, patkit::MemoryDirectory>,
//! #     ada: &patkit::Actor,
//! # ) -> Result<patkit::PlaintextToken, Box<dyn std::error::Error>> {
//! use patkit::NewToken;
//!
//! let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
//! sqlx::query("INSERT INTO projects (name) VALUES ('apollo')").execute(&mut *transaction).await?;
//! let within = tokens.within(tokens.store().within(&mut transaction));
//! let issued = within.generate(ada, NewToken::named("apollo deploys")).await?;
//! let uncommitted = within.into_uncommitted();
//! transaction.commit().await?;
//! // The change is committed, so notify the audit sink.
//! tokens.after_commit(&uncommitted);
//! # Ok(issued.plaintext)
//! # }
//! ```

use super::sql::{
    Dialect, Engine, Migration, SetupError, SqlStore, Value, bound, first_int, read_changed,
    unavailable,
};
use super::{ChangeFeed, Feed, FeedEvent, FollowError, StoreError, Touch};
use sqlx::{Pool, Row, raw_sql};
use sqlx_sqlite::{Sqlite, SqliteConnection, SqliteRow};
use std::sync::Arc;

/// A [`TokenStore`](crate::TokenStore) in a SQLite database (version 3.37 or later).
///
/// ```no_run
/// # use patkit::SqliteStore;
/// # async fn open(pool: sqlx_sqlite::SqlitePool) -> Result<(), patkit::store::SetupError> {
/// let store = SqliteStore::builder(pool).migrate().await?;
/// # Ok(())
/// # }
/// ```
pub type SqliteStore = SqlStore<Sqlite>;

impl Engine for Sqlite {
    const DIALECT: Dialect = Dialect {
        name: "sqlite",
        // Only one transaction writes at a time, so the numbers are in commit order. AUTOINCREMENT
        // never reuses a number.
        export: |columns, events, name| {
            format!(
                "SELECT {columns}, 0, event.seq, newest.seq \
                 FROM (SELECT COALESCE(MAX(seq), 0) AS seq FROM sqlite_sequence WHERE name = {name} COLLATE NOCASE) AS newest \
                 LEFT JOIN (SELECT * FROM {events} WHERE $1 >= 0 AND seq > $2 ORDER BY seq LIMIT $3) AS event \
                 ON TRUE ORDER BY event.seq"
            )
        },
        has_transaction_ids: false,
        // Takes the write lock at once, because a transaction that reads before it writes cannot
        // wait for the lock.
        begin: "BEGIN IMMEDIATE",
        skip_locked: "",
        lock_rows: None,
        count_schemas: None,
        longest_name: None,
        reserved_prefix: Some("sqlite_"),
        notifies: false,
        lock: None,
        migrations: &[Migration {
            version: 1,
            sql: include_str!("migrations/sqlite/0001_tokens.sql"),
        }],
    };

    async fn execute(
        connection: &mut SqliteConnection,
        keeps: bool,
        sql: Arc<str>,
        values: Vec<Value>,
    ) -> Result<u64, sqlx::Error> {
        Ok(bound::<Self>(sql, values).persistent(keeps).execute(connection).await?.rows_affected())
    }

    async fn fetch(
        connection: &mut SqliteConnection,
        keeps: bool,
        sql: Arc<str>,
        values: Vec<Value>,
    ) -> Result<Vec<SqliteRow>, sqlx::Error> {
        bound::<Self>(sql, values).persistent(keeps).fetch_all(connection).await
    }

    async fn fetch_one(
        connection: &mut SqliteConnection,
        keeps: bool,
        sql: Arc<str>,
        values: Vec<Value>,
    ) -> Result<Option<SqliteRow>, sqlx::Error> {
        bound::<Self>(sql, values).persistent(keeps).fetch_optional(connection).await
    }

    async fn script(connection: &mut SqliteConnection, sql: String) -> Result<(), sqlx::Error> {
        raw_sql(sqlx::AssertSqlSafe(sql)).execute(connection).await.map(drop)
    }

    async fn touch(
        connection: &mut SqliteConnection,
        _keeps: bool,
        table: &str,
        uses: &[Touch],
    ) -> Result<(), sqlx::Error> {
        let sql = touch_statement(table, uses.len());
        let values = uses.iter().flat_map(|touch| {
            let address = touch.last_use.address.map(|address| address.to_string());
            let [at, latest] = [touch.last_use.at, touch.plausible_until].map(Value::time);
            [Value::id(touch.id), at, Value::Text(address), latest]
        });
        // The text depends on the number of uses, so keeping it prepared would not pay.
        bound::<Self>(sql.into(), values.collect())
            .persistent(false)
            .execute(connection)
            .await
            .map(drop)
    }

    async fn check(pool: &Pool<Self>, probe: &str) -> Result<(), SetupError> {
        let mut connection = pool.acquire().await?;
        let mut setting = async |name: &str| -> Result<String, sqlx::Error> {
            let rows =
                Self::fetch(&mut connection, false, format!("PRAGMA {name}").into(), Vec::new())
                    .await?;
            let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
            let number = row.try_get::<i64, _>(0).map(|number| number.to_string());
            number.or_else(|_| row.try_get::<String, _>(0))
        };
        let journal = setting("journal_mode").await?;
        let synchronous = setting("synchronous").await?;
        let timeout = setting("busy_timeout").await?;
        // The file of `main`, which is empty for an in-memory database. Its journal is not checked.
        let sql = "SELECT COALESCE(MAX(file), '') FROM pragma_database_list WHERE name = 'main'";
        let rows = Self::fetch(&mut connection, false, sql.into(), Vec::new()).await?;
        let is_in_memory = rows
            .first()
            .and_then(|row| row.try_get::<String, _>(0).ok())
            .is_some_and(|file| file.is_empty());
        if journal != "wal" && !is_in_memory {
            return Err(SetupError::Setting {
                setting: "journal_mode",
                found: journal,
                needed: "WAL",
                cure: "set `.journal_mode(SqliteJournalMode::Wal)`",
                harm: "verifications and changes wait for each other",
            });
        }
        // FULL is 2, EXTRA is 3.
        if !is_in_memory && !matches!(&*synchronous, "2" | "3") {
            return Err(SetupError::Setting {
                setting: "synchronous",
                found: if synchronous == "0" { "off".into() } else { "normal".into() },
                needed: "FULL or EXTRA",
                cure: "set `.synchronous(SqliteSynchronous::Full)`",
                harm: "an acknowledged revocation is lost with the power",
            });
        }
        if timeout.parse::<u64>().is_ok_and(|millis| millis < 1_000) {
            return Err(SetupError::Setting {
                setting: "busy_timeout",
                found: format!("{timeout} ms"),
                needed: "1 s or more",
                cure: "set `.busy_timeout(Duration::from_secs(5))`",
                harm: "changes of two connections fail instead of waiting for each other",
            });
        }
        if is_in_memory && pool.options().get_max_connections() > 1 {
            let mut second = pool.acquire().await?;
            Self::script(&mut connection, format!("CREATE TABLE {probe} (probe)")).await?;
            let is_shared =
                Self::script(&mut second, format!("SELECT 1 FROM {probe}")).await.is_ok();
            Self::script(&mut connection, format!("DROP TABLE {probe}")).await?;
            if !is_shared {
                return Err(SetupError::Setting {
                    setting: "the database in memory",
                    found: "one for each connection".into(),
                    needed: "one database for all connections",
                    cure: "set `.max_connections(1)`, or use a file",
                    harm: "each connection has tokens of its own",
                });
            }
        }
        Ok(())
    }

    fn int(row: &SqliteRow, index: usize) -> Result<Option<i64>, sqlx::Error> {
        row.try_get(index)
    }

    fn text(row: &SqliteRow, index: usize) -> Result<Option<&str>, sqlx::Error> {
        row.try_get(index)
    }

    fn bytes(row: &SqliteRow, index: usize) -> Result<Option<&[u8]>, sqlx::Error> {
        row.try_get(index)
    }
}

/// Builds the statement that records `uses` last uses.
///
/// Its parameters are unnamed, because SQLite would look up named ones one by one. It selects the
/// ids twice, because SQLite would otherwise read the whole table and look up each record among the
/// uses.
fn touch_statement(table: &str, uses: usize) -> String {
    let rows = vec!["(?, ?, ?, ?)"; uses].join(", ");
    format!(
        "WITH used (id, at, address, latest) AS (VALUES {rows}) \
         UPDATE {table} SET last_used_at = used.at, last_used_address = used.address FROM used \
         WHERE {table}.id IN (SELECT id FROM used) AND {table}.id = used.id \
         AND ({table}.last_used_at IS NULL OR {table}.last_used_at < used.at \
         OR {table}.last_used_at > used.latest)"
    )
}

/// Polls for the events since the last poll.
///
/// Every change numbers its events under the lock that it holds until it commits, so no event
/// commits late.
#[derive(Debug)]
pub struct SqliteFeed {
    pool: Pool<Sqlite>,
    /// The name of the events table in errors.
    events: String,
    /// The statements that read the newest number and the events since, and the last number seen.
    newest: Arc<str>,
    since: Arc<str>,
    seen: i64,
}

impl ChangeFeed for SqliteStore {
    type Feed = SqliteFeed;

    fn check_following(&self) -> Result<(), FollowError> {
        // Polling takes a connection only for the duration of a statement.
        Ok(())
    }

    async fn listen(&self) -> Result<Option<SqliteFeed>, StoreError> {
        Ok(None)
    }

    async fn probe(&self, _nonce: u64) -> Result<(), StoreError> {
        Ok(())
    }

    async fn poll(&self) -> Result<SqliteFeed, StoreError> {
        let events = &self.statements.events;
        let mut feed = SqliteFeed {
            pool: self.pool.clone(),
            events: self.statements.events_shown.clone(),
            newest: format!("SELECT COALESCE(MAX(seq), 0) FROM {events}").into(),
            since: format!("SELECT seq, token FROM {events} WHERE seq > $1 ORDER BY seq").into(),
            seen: 0,
        };
        let rows = feed.ask(feed.newest.clone(), Vec::new()).await?;
        feed.seen = first_int::<Sqlite>(&rows, 0).map_err(unavailable)?;
        Ok(feed)
    }
}

impl SqliteFeed {
    async fn ask(&self, sql: Arc<str>, values: Vec<Value>) -> Result<Vec<SqliteRow>, StoreError> {
        let mut connection = self.pool.acquire().await.map_err(unavailable)?;
        Sqlite::fetch(&mut connection, true, sql, values).await.map_err(unavailable)
    }
}

impl Feed for SqliteFeed {
    async fn next(&mut self) -> Result<FeedEvent, StoreError> {
        let rows = self.ask(self.since.clone(), vec![Value::Int(Some(self.seen))]).await?;
        let mut ids = Vec::with_capacity(rows.len());
        for row in &rows {
            if let Some((number, id)) = read_changed::<Sqlite>(row, 0, &self.events)? {
                ids.push(id);
                self.seen = number;
            }
        }
        Ok(FeedEvent::Changed(ids))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::AssertSqlSafe;
    use sqlx_sqlite::SqlitePoolOptions;

    #[tokio::test]
    async fn last_uses_are_written_by_the_index_of_ids() {
        let pool =
            SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await.unwrap();
        SqliteStore::builder(pool.clone()).migrate().await.unwrap();
        let rows = "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT 20000) \
             INSERT INTO patkit_tokens (id, realm, owner, owner_kind, kind, name, name_key, created_at, created_by, \
             lifetime, scope, digest_key, digest, idle_from, version) \
             SELECT unhex(printf('%032x', n)), '', 'owner', 'human', 'personal', 'a', unhex(printf('%064x', n)), n, \
             'system', 'default', 'inherit', 1, unhex(printf('%064x', n)), n, 1 FROM numbers; ANALYZE";
        raw_sql(rows).execute(&pool).await.unwrap();
        for uses in [1, 10, 1_000, 8_000] {
            let explain = format!("EXPLAIN QUERY PLAN {}", touch_statement("patkit_tokens", uses));
            let plan = raw_sql(AssertSqlSafe(explain)).fetch_all(&pool).await.unwrap();
            let plan: Vec<String> = plan.iter().map(|row| row.get(3)).collect();
            assert!(
                !plan.iter().any(|line| line.contains("SCAN patkit_tokens")),
                "{uses}: {plan:#?}"
            );
        }
    }
}
