//! Tokens in a PostgreSQL database: for any number of machines.
//!
//! A pooler in transaction mode may be in between: see
//! [`SqlStoreBuilder::pooler`](super::SqlStoreBuilder::pooler). The store refuses to open unless
//! the host's database has:
//!
//! * `server_encoding` UTF8, because names may be in any script;
//! * `synchronous_commit` other than off, so that an acknowledged revocation survives a crash.
//!
//! Reads go to the server of the pool. Connect the pool to the primary; otherwise an acknowledged
//! revocation is seen late by the lag of the replica.
//!
//! # In a transaction of your own
//!
//! For the effects on errors, locks and isolation, see [`SqlStoreWithin`](super::SqlStoreWithin).
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
//! // The change is committed, so notify the audit sink.
//! tokens.after_commit(&uncommitted);
//! # Ok(issued.plaintext)
//! # }
//! ```

use super::sql::{
    Dialect, Engine, Migration, Session, SetupError, SqlStore, Value, bound, read_changed,
    unavailable,
};
use super::{ChangeFeed, Feed, FeedEvent, FollowError, StoreError, Touch};
use crate::clock::micros;
use crate::token::TokenId;
use sqlx::{AssertSqlSafe, Pool, Row, raw_sql};
use sqlx_postgres::{PgConnection, PgListener, PgRow, Postgres};
use std::collections::BTreeSet;
use std::fmt::Write;
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
        name: "postgres",
        // All transactions before the oldest one open in the snapshot have ended, so none of their
        // events is committed later.
        export: |columns, events, _name| {
            format!(
                "SELECT {columns}, event.xact, event.seq, txid_snapshot_xmax(snapshot.open) \
                 FROM (SELECT txid_current_snapshot() AS open) AS snapshot \
                 LEFT JOIN (SELECT * FROM {events} WHERE xact < txid_snapshot_xmin(txid_current_snapshot()) \
                 AND (xact, seq) > ($1, $2) ORDER BY xact, seq LIMIT $3) AS event \
                 ON TRUE ORDER BY event.xact, event.seq"
            )
        },
        has_transaction_ids: true,
        // Overrides the session's default. A compare-and-set needs no higher level, and a higher
        // level would make it fail where it could wait.
        begin: "BEGIN ISOLATION LEVEL READ COMMITTED",
        skip_locked: " FOR UPDATE SKIP LOCKED",
        lock_rows: Some(" FOR NO KEY UPDATE"),
        count_schemas: Some("SELECT COUNT(*) FROM pg_catalog.pg_namespace WHERE nspname = $1"),
        longest_name: Some(63),
        reserved_prefix: None,
        notifies: true,
        // The lock belongs to the transaction, so that it works through a pooler. The result is a
        // text, like that of every statement here.
        lock: Some("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))::text"),
        migrations: &[Migration {
            version: 1,
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

    async fn fetch_one(
        connection: &mut PgConnection,
        keeps: bool,
        sql: Arc<str>,
        values: Vec<Value>,
    ) -> Result<Option<PgRow>, sqlx::Error> {
        bound::<Self>(sql, values).persistent(keeps).fetch_optional(connection).await
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
        let latest: Vec<i64> = uses.iter().map(|touch| micros(touch.plausible_until)).collect();
        let addresses: Vec<Option<String>> = uses
            .iter()
            .map(|touch| touch.last_use.address.map(|address| address.to_string()))
            .collect();
        // Locks the rows in the order of their ids, which an update alone does not guarantee, so
        // that two nodes do not deadlock.
        let sql = format!(
            "WITH used AS (SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::text[], $4::bigint[]) \
               AS used (id, at, address, latest)), \
             locked AS MATERIALIZED (SELECT id FROM {table} WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE) \
             UPDATE {table} AS token SET last_used_at = used.at, last_used_address = used.address \
             FROM used JOIN locked ON locked.id = used.id \
             WHERE token.id = used.id AND (token.last_used_at IS NULL OR token.last_used_at < used.at \
             OR token.last_used_at > used.latest)"
        );
        let query = sqlx::query::<Self>(AssertSqlSafe(sql))
            .persistent(keeps)
            .bind(ids)
            .bind(times)
            .bind(addresses)
            .bind(latest);
        query.execute(connection).await.map(drop)
    }

    async fn check(pool: &Pool<Self>, _probe: &str) -> Result<(), SetupError> {
        let mut session = Session::<Self>::acquire(pool).await?;
        let mut transaction = session.begin("BEGIN").await?;
        let sql =
            "SELECT current_setting('server_encoding'), current_setting('synchronous_commit')";
        let rows = Self::fetch(&mut transaction, false, sql.into(), Vec::new()).await?;
        transaction.commit().await?;
        let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let (encoding, commit): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        if encoding != "UTF8" {
            return Err(SetupError::Setting {
                setting: "server_encoding",
                found: encoding,
                needed: "UTF8",
                cure: "create the database with `ENCODING 'UTF8'`",
                harm: "names in some scripts cannot be stored",
            });
        }
        if commit == "off" {
            return Err(SetupError::Setting {
                setting: "synchronous_commit",
                found: commit,
                needed: "any value but off",
                cure: "set it for the pool's role with `ALTER ROLE … SET synchronous_commit = on`",
                harm: "an acknowledged revocation is lost in a crash",
            });
        }
        Ok(())
    }

    fn int(row: &PgRow, index: usize) -> Result<Option<i64>, sqlx::Error> {
        row.try_get(index)
    }

    fn text(row: &PgRow, index: usize) -> Result<Option<&str>, sqlx::Error> {
        row.try_get(index)
    }

    fn bytes(row: &PgRow, index: usize) -> Result<Option<&[u8]>, sqlx::Error> {
        row.try_get(index)
    }
}

/// Delivers changes from notifications or by polling.
///
/// LISTEN takes a connection of the pool for itself. If notifications do not arrive, as behind a
/// pooler in transaction mode, the feed polls for new events.
///
/// **Changes that commit late are still delivered.** An event gets its number before its
/// transaction commits, so an event with a lower number may become visible after one with a higher
/// number. The feed keeps the numbers that are missing below the highest one. It queries them again
/// until every transaction has ended that had begun when the number was missed. A number that is
/// still missing then was rolled back. The open transactions come from the snapshot of the same
/// statement that reads the events (`txid_current_snapshot`; PostgreSQL 12 documentation, section
/// 9.26). The numbers of a transaction that was open when polling began are unknown, so when one of
/// those ends, any record may have changed ([`FeedEvent::Missed`]).
///
/// An engine that speaks PostgreSQL's protocol but has another kind of transactions (`CockroachDB`,
/// `YugabyteDB`) has no such snapshots. Do not follow there; the cache lifetime then bounds
/// staleness.
#[derive(Debug)]
pub struct PostgresFeed(Hearing);

#[derive(Debug)]
enum Hearing {
    Listens(PgListener),
    Polls(PostgresStore, Seen),
}

impl ChangeFeed for PostgresStore {
    type Feed = PostgresFeed;

    fn check_following(&self) -> Result<(), FollowError> {
        let connections = self.pool.options().get_max_connections();
        let needed = if self.statements.keeps { MIN_CONNECTIONS } else { 1 };
        if connections < needed {
            Err(FollowError::PoolTooSmall { connections, needed })
        } else {
            Ok(())
        }
    }

    async fn listen(&self) -> Result<Option<PostgresFeed>, StoreError> {
        if !self.statements.keeps {
            return Ok(None);
        }
        let mut listener = PgListener::connect_with(&self.pool).await.map_err(unavailable)?;
        listener.eager_reconnect(false);
        listener.listen(&self.statements.channel()).await.map_err(unavailable)?;
        Ok(Some(PostgresFeed(Hearing::Listens(listener))))
    }

    async fn probe(&self, nonce: u64) -> Result<(), StoreError> {
        let mut connection = self.pool.acquire().await.map_err(unavailable)?;
        // One message to the server, so that it passes through every pooler.
        let sql = format!("NOTIFY \"{}\", '{PROBE}{nonce:016x}'", self.statements.channel());
        Postgres::script(&mut connection, sql).await.map_err(unavailable)
    }

    async fn poll(&self) -> Result<PostgresFeed, StoreError> {
        let seen = begin_to_poll(self).await?;
        Ok(PostgresFeed(Hearing::Polls(self.clone(), seen)))
    }
}

/// One connection listens, and at least one other commits and probes.
const MIN_CONNECTIONS: u32 = 2;
/// The prefix of a notification that proves that notifications arrive.
const PROBE: &str = "probe ";

impl Feed for PostgresFeed {
    async fn next(&mut self) -> Result<FeedEvent, StoreError> {
        let listener = match &mut self.0 {
            Hearing::Listens(listener) => listener,
            Hearing::Polls(store, seen) => return poll(store, seen).await,
        };
        // `None` if the connection was lost. The follower then starts again.
        let notification = listener.try_recv().await.map_err(unavailable)?;
        let lost = || StoreError::unavailable("the connection that listens for changes was lost");
        Ok(read_notification(notification.ok_or_else(lost)?.payload()))
    }
}

/// Parses the payload of a notification.
///
/// A payload that is neither a probe nor a list of ids says that there were too many ids, or
/// someone else sent it. In both cases any record may have been changed.
fn read_notification(payload: &str) -> FeedEvent {
    if let Some(nonce) = payload.strip_prefix(PROBE) {
        return u64::from_str_radix(nonce, 16).map_or(FeedEvent::Missed, FeedEvent::Proven);
    }
    let ids = payload.split(' ').map(str::parse).collect::<Result<Vec<_>, _>>();
    ids.map_or(FeedEvent::Missed, FeedEvent::Changed)
}

/// The event numbers that were seen.
#[derive(Debug)]
struct Seen {
    /// The highest number.
    newest: i64,
    /// Lower numbers that were missing.
    gaps: Vec<Gap>,
    /// The first transaction that had not begun when polling began, and the number of earlier
    /// transactions that are still open.
    first: i64,
    open: i64,
}

/// Numbers that may still become visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gap {
    first: i64,
    last: i64,
    /// The first transaction that had not begun when the numbers were missed.
    ///
    /// That transaction and all later ones give higher numbers, because a transaction gets its own
    /// id before it numbers an event.
    next: i64,
}

/// The open transactions in a statement's snapshot.
///
/// All transactions before `oldest` have ended, and none from `next` on has begun. `before` counts
/// the open ones that were already open when polling began.
#[derive(Debug, Default, Clone, Copy)]
struct Open {
    oldest: i64,
    next: i64,
    before: i64,
}

/// The maximum number of gaps. Beyond it the feed ends, and the follower starts a new one.
const MAX_GAPS: usize = 10_000;

/// The snapshot of a statement, which is the one that the statement reads the events with.
const SNAPSHOT: &str = "(SELECT txid_current_snapshot() AS open) AS snapshot";

async fn begin_to_poll(store: &PostgresStore) -> Result<Seen, StoreError> {
    let events = &store.statements.events;
    let sql = format!(
        "SELECT txid_snapshot_xmax(open), (SELECT COUNT(*) FROM txid_snapshot_xip(open)), \
         (SELECT COALESCE(MAX(seq), 0) FROM {events}) FROM {SNAPSHOT}"
    );
    let rows = store.fetch_unprepared(&sql.into(), Vec::new()).await?;
    let number = |index| rows.first().and_then(|row| Postgres::int(row, index).ok().flatten());
    match (number(0), number(1), number(2)) {
        (Some(first), Some(open), Some(newest)) => {
            Ok(Seen { newest, gaps: Vec::new(), first, open })
        }
        _ => Err(StoreError::unavailable("the database returned no snapshot")),
    }
}

async fn poll(store: &PostgresStore, seen: &mut Seen) -> Result<FeedEvent, StoreError> {
    let events = &store.statements.events;
    let rows = store.fetch_unprepared(&seen.statement(events).into(), Vec::new()).await?;
    let mut open = None;
    let mut told = Vec::with_capacity(rows.len());
    for row in &rows {
        let number = |index| Postgres::int(row, index).ok().flatten();
        open = match (number(0), number(1), number(2)) {
            (Some(oldest), Some(next), Some(before)) => Some(Open { oldest, next, before }),
            _ => None,
        };
        // `None` for a row that holds only the snapshot.
        told.extend(read_changed::<Postgres>(row, 3, &store.statements.events_shown)?);
    }
    let open = open.ok_or_else(|| StoreError::unavailable("the database returned no snapshot"))?;
    seen.hear(open, &told)
}

impl Seen {
    /// Builds the statement that reads new and missing events.
    fn statement(&self, events: &str) -> String {
        let Self { newest, first, .. } = self;
        let mut told = format!("SELECT seq, token FROM {events} WHERE seq > {newest}");
        if !self.gaps.is_empty() {
            let gaps: Vec<String> =
                self.gaps.iter().map(|gap| format!("({}, {})", gap.first, gap.last)).collect();
            // Writing to a `String` cannot fail.
            let _ = write!(
                told,
                " UNION ALL SELECT seq, token FROM (VALUES {}) AS gap (first, last) \
                 JOIN {events} ON seq BETWEEN gap.first AND gap.last",
                gaps.join(", ")
            );
        }
        format!(
            "SELECT txid_snapshot_xmin(open), txid_snapshot_xmax(open), \
             (SELECT COUNT(*) FROM txid_snapshot_xip(open) AS id WHERE id < {first}), told.seq, told.token \
             FROM {SNAPSHOT} LEFT JOIN ({told}) AS told ON TRUE"
        )
    }

    /// Applies the result of a statement.
    fn hear(&mut self, open: Open, told: &[(i64, TokenId)]) -> Result<FeedEvent, StoreError> {
        let came: BTreeSet<i64> = told.iter().map(|(number, _)| *number).collect();
        let highest = came.last().map_or(self.newest, |last| self.newest.max(*last));
        let new = Gap { first: self.newest.saturating_add(1), last: highest, next: open.next };
        self.newest = highest;
        // If all transactions that could have the number have ended, the number was rolled back.
        let may_come = |gap: &Gap| open.oldest < gap.next;
        let gaps = self.gaps.iter().copied().chain([new]).filter(may_come);
        self.gaps = gaps.flat_map(|gap| gap.without(&came)).collect();
        if self.gaps.len() > MAX_GAPS {
            return Err(StoreError::unavailable(format!(
                "more than {MAX_GAPS} ranges of event numbers are uncommitted; end long \
                 transactions"
            )));
        }
        let has_ended = open.before < self.open;
        self.open = open.before;
        if has_ended {
            return Ok(FeedEvent::Missed);
        }
        Ok(FeedEvent::Changed(told.iter().map(|(_, id)| *id).collect()))
    }
}

impl Gap {
    /// Returns the parts of the gap that remain after these numbers became visible.
    fn without(self, came: &BTreeSet<i64>) -> Vec<Self> {
        let mut left = Vec::new();
        let mut first = self.first;
        for number in came.iter().filter(|number| (self.first..=self.last).contains(number)) {
            if first < *number {
                left.push(Self { first, last: number.saturating_sub(1), ..self });
            }
            first = number.saturating_add(1);
        }
        if first <= self.last {
            left.push(Self { first, ..self });
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(first: i64, last: i64, next: i64) -> Gap {
        Gap { first, last, next }
    }

    fn told(numbers: impl IntoIterator<Item = i64>) -> Vec<(i64, TokenId)> {
        numbers.into_iter().map(|number| (number, TokenId::VACANT)).collect()
    }

    #[test]
    fn a_notification_that_cannot_be_read_says_that_any_record_may_have_been_changed() {
        let id: TokenId = "08MfSztK9DeFxhE1wuUQiY".parse().unwrap();
        for ids in [vec![id], vec![id; 300]] {
            let payload = ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            assert_eq!(read_notification(&payload), FeedEvent::Changed(ids));
        }
        for nonce in [0, 1, u64::MAX] {
            assert_eq!(
                read_notification(&format!("{PROBE}{nonce:016x}")),
                FeedEvent::Proven(nonce)
            );
        }
        let unreadable = [
            "*",
            "",
            " ",
            "probe",
            "probe ",
            "probe x",
            "probe 10000000000000000",
            "PROBE 1",
            &format!("{id} "),
            &format!("{id} *"),
            &format!("{id}{id}"),
            &format!("{id} {PROBE}1"),
        ];
        for payload in unreadable {
            assert_eq!(read_notification(payload), FeedEvent::Missed, "{payload:?}");
        }
    }

    #[test]
    fn a_number_that_is_missing_is_asked_for_until_all_that_could_have_it_are_over() {
        let mut seen = Seen { newest: 10, gaps: Vec::new(), first: 100, open: 0 };
        let open = |oldest, next| Open { oldest, next, before: 0 };
        // Open transactions before 105 hold 11, 12 and 14.
        seen.hear(open(101, 105), &told([13, 15])).unwrap();
        assert_eq!((seen.newest, &*seen.gaps), (15, &[gap(11, 12, 105), gap(14, 14, 105)][..]));
        seen.hear(open(102, 110), &told([12, 18])).unwrap();
        assert_eq!(seen.gaps, [gap(11, 11, 105), gap(14, 14, 105), gap(16, 17, 110)]);
        // The last but one transaction before 105 ends, and then the last one.
        seen.hear(open(104, 111), &told([])).unwrap();
        assert_eq!(seen.gaps, [gap(11, 11, 105), gap(14, 14, 105), gap(16, 17, 110)]);
        seen.hear(open(105, 111), &told([14])).unwrap();
        assert_eq!((seen.newest, &*seen.gaps), (18, &[gap(16, 17, 110)][..]));
        // No transaction is open, so the missing numbers will never become visible.
        seen.hear(open(120, 120), &told([20])).unwrap();
        assert_eq!((seen.newest, &*seen.gaps), (20, &[][..]));
    }

    #[test]
    fn each_end_of_a_transaction_from_before_tells_that_anything_may_have_changed() {
        let mut seen = Seen { newest: 0, gaps: Vec::new(), first: 100, open: 2 };
        let mut hear =
            |before| seen.hear(Open { oldest: 90, next: 100, before }, &told([])).unwrap();
        assert_eq!(hear(2), FeedEvent::Changed(Vec::new()));
        assert_eq!(hear(1), FeedEvent::Missed);
        assert_eq!(hear(1), FeedEvent::Changed(Vec::new()));
        assert_eq!(hear(0), FeedEvent::Missed);
    }

    #[test]
    fn too_many_gaps_end_the_feed() {
        let mut seen = Seen { newest: 0, gaps: Vec::new(), first: 100, open: 0 };
        let every_other = told((1..30_000).filter(|number| number % 2 == 0));
        assert!(seen.hear(Open { oldest: 90, next: 100, before: 0 }, &every_other).is_err());
    }
}
