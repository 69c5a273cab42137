//! Delivers the changes that others make, by notifications or by polling.

use super::driver::{Connection, Driver, Listener, Statement};
use super::engine::EngineKind;
use super::error::unavailable;
use super::reads::Place;
use super::{SqlStore, first_int};
use crate::store::record::{Row, Value};
use crate::store::{ChangeFeed, CorruptRecord, Feed, FeedEvent, FollowError, StoreError};
use crate::token::TokenId;
use std::collections::BTreeSet;
use std::fmt;
use std::fmt::Write;

/// Delivers changes from notifications or by polling.
///
/// In PostgreSQL, a driver that can listens for notifications. If they do not arrive, as behind a
/// pooler in transaction mode, and with other drivers and engines, the feed polls for new events.
///
/// **In PostgreSQL, changes that commit late are still delivered.** An event gets its number before
/// its transaction commits, so an event with a lower number may become visible after one with a
/// higher number. The feed keeps the numbers that are missing below the highest one. It queries them
/// again until every transaction has ended that had begun when the number was missed. A number that
/// is still missing then was rolled back. The open transactions come from the snapshot of the same
/// statement that reads the events (`txid_current_snapshot`; PostgreSQL 12 documentation, section
/// 9.26). The numbers of a transaction that was open when polling began are unknown, so when one of
/// those ends, any record may have changed ([`FeedEvent::Missed`]).
///
/// An engine that speaks PostgreSQL's protocol but has another kind of transactions (`CockroachDB`,
/// `YugabyteDB`) has no such snapshots. Do not follow there; the cache lifetime then bounds
/// staleness.
///
/// **In SQLite, MySQL and MariaDB no event commits late**, because a transaction numbers its events
/// under a lock that it holds until it ends.
pub struct SqlFeed<D: Driver>(Hearing<D>);

enum Hearing<D: Driver> {
    Listens(D::Listener),
    /// The number of the newest event that was seen.
    PollsInOrder(SqlStore<D>, i64),
    PollsSnapshots(SqlStore<D>, Seen),
}

impl<D: Driver> fmt::Debug for SqlFeed<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Hearing::Listens(_) => "SqlFeed(listens)",
            Hearing::PollsInOrder(..) | Hearing::PollsSnapshots(..) => "SqlFeed(polls)",
        })
    }
}

/// One connection listens, and at least one other commits and probes.
const MIN_CONNECTIONS: u32 = 2;
/// The prefix of a notification that proves that notifications arrive.
const PROBE: &str = "probe ";

impl<D: Driver> SqlStore<D> {
    /// Whether changes are announced by notifications that this driver can receive.
    fn notifies(&self) -> bool {
        self.statements.dialect.notifies && self.statements.keeps
    }
}

impl<D: Driver> ChangeFeed for SqlStore<D> {
    type Feed = SqlFeed<D>;

    fn check_following(&self) -> Result<(), FollowError> {
        let connections = self.driver.max_connections();
        let listens = self.notifies() && D::Listener::TAKES_CONNECTION;
        // Polling takes a connection only for the duration of a statement.
        let needed = if listens { MIN_CONNECTIONS } else { 1 };
        if connections < needed {
            Err(FollowError::PoolTooSmall { connections, needed })
        } else {
            Ok(())
        }
    }

    async fn listen(&self) -> Result<Option<SqlFeed<D>>, StoreError> {
        if !self.notifies() {
            return Ok(None);
        }
        let listener = self.driver.listen(&self.statements.channel()).await;
        Ok(listener.map_err(unavailable)?.map(|listener| SqlFeed(Hearing::Listens(listener))))
    }

    async fn probe(&self, nonce: u64) -> Result<(), StoreError> {
        if !self.statements.dialect.notifies {
            return Ok(());
        }
        let mut session = self.driver.acquire().await.map_err(unavailable)?;
        // One message to the server, so that it passes through every pooler.
        let sql = format!("NOTIFY \"{}\", '{PROBE}{nonce:016x}'", self.statements.channel());
        session.run(&sql).await.map_err(unavailable)
    }

    async fn poll(&self) -> Result<SqlFeed<D>, StoreError> {
        if self.statements.dialect.kind == EngineKind::Postgres {
            let seen = begin_to_poll(self).await?;
            return Ok(SqlFeed(Hearing::PollsSnapshots(self.clone(), seen)));
        }
        let sql = format!("SELECT COALESCE(MAX(seq), 0) FROM {}", self.statements.events);
        let rows = self.fetch(Statement::new(sql.into(), Vec::new())).await?;
        let newest = first_int(&rows, 0).map_err(unavailable)?;
        Ok(SqlFeed(Hearing::PollsInOrder(self.clone(), newest)))
    }
}

impl<D: Driver> Feed for SqlFeed<D> {
    async fn next(&mut self) -> Result<FeedEvent, StoreError> {
        match &mut self.0 {
            Hearing::Listens(listener) => {
                // After an error the follower starts again.
                let payload = listener.next().await.map_err(unavailable)?;
                Ok(read_notification(&payload))
            }
            Hearing::PollsInOrder(store, newest) => poll_in_order(store, newest).await,
            Hearing::PollsSnapshots(store, seen) => poll(store, seen).await,
        }
    }
}

/// Reads the events after the newest one that was seen, in engines that number events in the order
/// of their commits.
async fn poll_in_order<D: Driver>(
    store: &SqlStore<D>,
    newest: &mut i64,
) -> Result<FeedEvent, StoreError> {
    let events = &store.statements.events;
    let sql = format!("SELECT seq, token FROM {events} WHERE seq > $1 ORDER BY seq");
    let sql = store.statements.dialect.sql(sql);
    let statement = store.statements.statement(&sql, vec![Value::Int(Some(*newest))]);
    let rows = store.fetch(statement).await?;
    let mut ids = Vec::with_capacity(rows.len());
    for row in &rows {
        if let Some((number, id)) = read_changed(row, 0, &store.statements.events_shown)? {
            ids.push(id);
            *newest = number;
        }
    }
    Ok(FeedEvent::Changed(ids))
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

/// Reads the number of an event and its token from two adjacent cells; `None` for an empty row.
fn read_changed(
    row: &impl Row,
    index: usize,
    table: &str,
) -> Result<Option<(i64, TokenId)>, StoreError> {
    let unreadable = || CorruptRecord::new(table, "seq", "?");
    let Some(number) = row.int(index).ok_or_else(|| StoreError::Corrupt(unreadable()))? else {
        return Ok(None);
    };
    let bytes =
        row.bytes(index.saturating_add(1)).flatten().and_then(|bytes| bytes.try_into().ok());
    let id = bytes.and_then(|bytes| TokenId::from_bytes(bytes).ok());
    let corrupt = || StoreError::Corrupt(CorruptRecord::new(table, "token", &number.to_string()));
    Ok(Some((number, id.ok_or_else(corrupt)?)))
}

/// The event numbers that were seen.
#[derive(Debug)]
pub(super) struct Seen {
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

async fn begin_to_poll<D: Driver>(store: &SqlStore<D>) -> Result<Seen, StoreError> {
    let events = &store.statements.events;
    let sql = format!(
        "SELECT txid_snapshot_xmax(open), (SELECT COUNT(*) FROM txid_snapshot_xip(open)), \
         (SELECT COALESCE(MAX(seq), 0) FROM {events}) FROM {SNAPSHOT}"
    );
    let rows = store.fetch_in_transaction(Statement::new(sql.into(), Vec::new())).await?;
    let number = |index| rows.first().and_then(|row| row.int(index).flatten());
    match (number(0), number(1), number(2)) {
        (Some(first), Some(open), Some(newest)) => {
            Ok(Seen { newest, gaps: Vec::new(), first, open })
        }
        _ => Err(StoreError::unavailable("the database returned no snapshot")),
    }
}

async fn poll<D: Driver>(store: &SqlStore<D>, seen: &mut Seen) -> Result<FeedEvent, StoreError> {
    let sql = seen.statement(&store.statements.events);
    let rows = store.fetch_in_transaction(Statement::new(sql.into(), Vec::new())).await?;
    let mut open = None;
    let mut told = Vec::with_capacity(rows.len());
    for row in &rows {
        let number = |index| row.int(index).flatten();
        open = match (number(0), number(1), number(2)) {
            (Some(oldest), Some(next), Some(before)) => Some(Open { oldest, next, before }),
            _ => None,
        };
        // `None` for a row that holds only the snapshot.
        told.extend(read_changed(row, 3, &store.statements.events_shown)?);
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
