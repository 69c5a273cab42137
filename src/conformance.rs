//! A test suite for stores. It checks every promise of [`TokenStore`] through the store's methods
//! alone.
//!
//! The author of a store calls it from one test, with a factory for empty stores:
//!
//! ```
//! use patkit::MemoryStore;
//! use patkit::conformance::Suite;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! Suite::new(|| async { MemoryStore::new() }).run().await.unwrap();
//! # }
//! ```
//!
//! The factory is called once per check, so that no check depends on another one. It may panic if
//! it cannot create a store. For a store that also reads audit events, counts records or keeps key
//! checks, there are [`Suite::run_audit_log`], [`Suite::run_counts`] and [`Suite::run_key_checks`].
//! [`Suite::run`] makes changes conflict by polling many futures at once, on the runtime that
//! awaits it. [`Suite::run_races`] does so from many threads.
//!
//! For a wrapper whose reads may lag behind its commits, pass the bound of the lag and the
//! runtime's sleep:
//!
//! ```
//! # use patkit::MemoryStore;
//! # use patkit::conformance::Suite;
//! # use std::time::Duration;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! # let cached = || async { MemoryStore::new() };
//! let bound = Duration::from_millis(1);
//! Suite::new(cached).staleness(bound, tokio::time::sleep).run().await.unwrap();
//! # }
//! ```
//!
//! All checks run, even if one has failed. The [`Failure`] names each failed check, with the
//! sentence of the contract that the store breaks and what was seen instead.
//!
//! The suite cannot show that a commit whose future is dropped, or whose connection is lost, is
//! applied either whole or not at all, that committed data survives a crash, or that a corrupt
//! record affects no other record. The tests of the store itself must show these, because they need
//! access to what is below the store.

use crate::BoxedFuture;
use crate::audit::{AuditAction, AuditEvent, EventId};
use crate::clock::MAX_CLOCK_ERROR;
use crate::owner::{OwnerId, OwnerKind, Realm};
use crate::permission::Scope;
use crate::store::{
    AuditLog, Change, ChangeBatch, Conflict, EventPage, EventQuery, ExportCursor, KeyChecks,
    ListBy, ListQuery, MAX_PAGE, StoreError, StoredToken, TokenCounts, TokenStore, Touch,
};
use crate::token::{
    ActorRef, Authority, Description, Facts, ForeignDigest, KeyCheck, KeyId, KeyedDigest, LastUse,
    Lifetime, NameKey, Networks, Reason, Revocation, Seal, StoredDigest, Succession, Token,
    TokenId, TokenKind, TokenName, TokenState,
};
use chrono::{DateTime, Utc};
use std::borrow::Borrow;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

type Sleep = Box<dyn Fn(Duration) -> BoxedFuture<'static, ()> + Send + Sync>;

/// The checks, the factory of the stores under test, and the staleness of their reads.
pub struct Suite<F> {
    factory: F,
    settling: Settling,
}

struct Settling {
    staleness: Duration,
    sleep: Sleep,
}

impl<F> Suite<F> {
    /// Creates the suite for the stores of `factory`, each of which must be empty and separate from
    /// the others.
    ///
    /// Reads of the stores must never be stale, unless [`staleness`](Self::staleness) allows it.
    pub fn new(factory: F) -> Self {
        let settling = Settling {
            staleness: Duration::ZERO,
            sleep: Box::new(|_| Box::pin(std::future::ready(()))),
        };
        Self { factory, settling }
    }

    /// Allows reads that lag behind commits by up to `staleness`.
    ///
    /// A read that starts `staleness` after a commit must see it; an earlier read may miss it. The
    /// suite waits this long between a change and each read of its effect.
    pub fn staleness<T: Future<Output = ()> + Send + 'static>(
        mut self,
        staleness: Duration,
        sleep: impl Fn(Duration) -> T + Send + Sync + 'static,
    ) -> Self {
        self.settling =
            Settling { staleness, sleep: Box::new(move |duration| Box::pin(sleep(duration))) };
        self
    }
}

impl<F> fmt::Debug for Suite<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suite").field("staleness", &self.settling.staleness).finish_non_exhaustive()
    }
}

/// One check of the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Check {
    /// The name of the check.
    pub name: &'static str,
    /// The sentence of the contract.
    pub contract: &'static str,
}

/// The checks of a run in which all passed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The checks, in the order in which they ran.
    pub passed: Vec<Check>,
}

/// The checks that a store has failed.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("the store breaks its contract:\n{}", self.list())]
#[non_exhaustive]
pub struct Failure {
    /// Each failed check, and what was seen.
    pub broken: Vec<(Check, String)>,
}

impl Failure {
    /// Returns whether the check with this name failed.
    pub fn names(&self, check: &str) -> bool {
        self.broken.iter().any(|(broken, _)| broken.name == check)
    }

    fn list(&self) -> String {
        let lines = self
            .broken
            .iter()
            .map(|(check, seen)| format!("* {}: \"{}\"; but {seen}", check.name, check.contract));
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// Formats as `Display`, so that `unwrap` shows each check on its own line.
impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Runs the checks, each on a store of its own, even if earlier ones failed.
macro_rules! run {
    ($suite:expr; $($check:ident: $contract:literal),+ $(,)?) => {{
        let mut verdicts = Vec::new();
        $(
            let verdict = Box::pin(async {
                let bench = Bench { store: ($suite.factory)().await, settling: &$suite.settling };
                $check(&bench).await
            });
            let verdict = verdict.await;
            verdicts.push((Check { name: stringify!($check), contract: $contract }, verdict));
        )+
        judged(verdicts)
    }};
}

fn judged(verdicts: Vec<(Check, Result<(), Seen>)>) -> Result<Report, Failure> {
    let mut passed = Vec::new();
    let mut broken = Vec::new();
    for (check, verdict) in verdicts {
        match verdict {
            Ok(()) => passed.push(check),
            Err(Seen(seen)) => broken.push((check, seen)),
        }
    }
    if broken.is_empty() { Ok(Report { passed }) } else { Err(Failure { broken }) }
}

impl<F, Fut, S> Suite<F>
where
    F: Fn() -> Fut + Send + Sync,
    Fut: Future<Output = S> + Send,
    S: TokenStore,
{
    /// Checks the promises of [`TokenStore`].
    ///
    /// # Errors
    /// [`Failure`], which names every check that failed.
    pub async fn run(&self) -> Result<Report, Failure> {
        run! { self;
            an_inserted_record_comes_back_unchanged: "times and all other fields come back unchanged",
            an_updated_record_comes_back_unchanged: "an update puts a record in the place of the one with its id",
            what_is_not_there_is_not_found: "the record with this id",
            a_change_is_current_at_once: "the record as the database has it now",
            an_insert_never_overwrites: "an insert with an id that is there is a conflict",
            a_kind_fits_its_owner: "a record whose kind does not fit its owner's is refused",
            an_update_needs_the_version_before: "an update whose expected version is not the record's is a conflict, and so is one whose record is gone",
            an_update_keeps_the_last_use: "an update keeps the stored last use, whatever its record says",
            a_remove_needs_its_version: "a remove whose expected version is not the record's is a conflict, and so is one whose record is gone",
            a_batch_is_done_whole: "a commit does everything in its batch or nothing",
            a_batch_that_conflicts_leaves_nothing: "a commit does everything in its batch or nothing",
            the_first_conflict_is_told: "a conflict for the first change that conflicts",
            a_name_key_is_opaque: "a store keeps a name, a description and a name's key as they are, and decides by the key alone",
            a_name_is_unique: "among the records of one realm, owner and kind, the key of a name is unique where it is there",
            a_name_is_one_owners_alone: "among the records of one realm, owner and kind; owners and realms are compared byte by byte",
            a_name_is_free_again: "among the records that are there and have no successor",
            a_name_is_handed_on_within_a_batch: "names are checked on what a batch leaves behind",
            two_of_one_name_in_a_batch_conflict: "names are checked on what a batch leaves behind",
            a_list_holds_what_it_should: "a list by owner, kind, creator or last activity",
            a_list_is_newest_first: "newest (greatest id) first",
            pages_are_exact: "at most as many as asked for; where the next page begins, none on the last one",
            pages_hold_while_records_come_and_go: "what comes after the last one of the page before",
            only_active_ones_are_listed: "only those that are active at this instant",
            a_list_of_a_key_holds_its_digests: "those whose digest was made with this key, in all realms",
            idle_ones_are_listed: "those whose last activity lies before an instant",
            a_touch_moves_forward_alone: "each moves its record's last use forward or does nothing, never back",
            a_touch_replaces_what_a_wrong_clock_noted: "unless the stored one was noted by a clock that was wrong",
            a_touch_changes_nothing_else: "the version does not move",
            a_touch_brings_nothing_back: "a record that is gone stays gone",
            a_thousand_touches_at_once: "notes last uses",
            ended_records_are_listed: "records that expired or were revoked at or before `before`",
            the_first_to_end_are_listed_first: "up to `limit` records, those that ended first in front",
            of_updates_at_once_one_wins: "changes are atomic and never lost",
            of_inserts_of_one_name_at_once_one_wins: "changes are atomic and never lost",
            of_inserts_of_one_id_at_once_one_wins: "an insert never overwrites",
            of_batches_in_opposite_order_one_wins: "a commit does everything in its batch or nothing",
            touches_and_updates_at_once_are_all_kept: "last uses belong to `touch` alone, and it never moves the version",
        }
    }

    /// Runs changes from eight threads in races against each other.
    ///
    /// `block_on` runs a future to its end on the calling thread, which is one of the suite's own:
    ///
    /// ```
    /// # use patkit::MemoryStore;
    /// # use patkit::conformance::Suite;
    /// let runtime = tokio::runtime::Runtime::new().unwrap();
    /// Suite::new(|| async { MemoryStore::new() }).run_races(|future| runtime.block_on(future)).unwrap();
    /// ```
    ///
    /// Call this outside any runtime.
    ///
    /// # Errors
    /// [`Failure`], which names every race that failed.
    pub fn run_races(
        &self,
        block_on: impl Fn(BoxedFuture<'_, ()>) + Sync,
    ) -> Result<Report, Failure> {
        let mut verdicts = Vec::new();
        for (check, plan) in race_plans() {
            let verdict = plan.and_then(|plan| {
                let store = blocked(&block_on, async { (self.factory)().await })?;
                let bench = Bench { store, settling: &self.settling };
                blocked(&block_on, bench.commit_all(&plan.before))??;
                let results = on_threads(&bench.store, &plan, &block_on)?;
                blocked(&block_on, plan.check(&bench, &results))?
            });
            verdicts.push((check, verdict));
        }
        judged(verdicts)
    }
}

impl<F, Fut, S> Suite<F>
where
    F: Fn() -> Fut + Send + Sync,
    Fut: Future<Output = S> + Send,
    S: TokenStore + AuditLog,
{
    /// Checks the promises of [`AuditLog`], and that events are stored together with their change
    /// or not at all.
    ///
    /// # Errors
    /// [`Failure`], which names every check that failed.
    pub async fn run_audit_log(&self) -> Result<Report, Failure> {
        run! { self;
            an_event_comes_back_unchanged: "the events of a realm, oldest first",
            events_are_of_one_realm_token_owner_and_period: "the events of a realm, a token, an owner and a period, at most `limit`",
            pages_of_events_neither_repeat_nor_skip: "pages neither repeat nor skip events, however many happened at one instant",
            an_event_is_stored_once: "an event whose id is stored already stays as it is",
            an_export_holds_each_event_once_in_the_order_of_the_commits: "a reader that goes on from `ExportPage::next` gets every event exactly once",
            a_cursor_of_another_store_is_refused: "`StoreError::Cursor` if `after` is not a cursor of this store",
            a_batch_may_hold_events_alone: "a batch may hold events alone",
            a_conflict_leaves_no_event: "a commit does everything in its batch or nothing, audit events included",
            erasing_takes_out_every_trace: "take out the traces of this owner from all stored events, before these are added",
            events_are_pruned_oldest_first: "removes up to `limit` events that are older than an instant, oldest first, and says how many",
        }
    }
}

impl<F, Fut, S> Suite<F>
where
    F: Fn() -> Fut + Send + Sync,
    Fut: Future<Output = S> + Send,
    S: TokenStore + TokenCounts,
{
    /// Checks the promises of [`TokenCounts`].
    ///
    /// # Errors
    /// [`Failure`], which names every check that failed.
    pub async fn run_counts(&self) -> Result<Report, Failure> {
        run! { self;
            states_are_counted_at_an_instant: "how many records are in each state at `now`",
        }
    }
}

impl<F, Fut, S> Suite<F>
where
    F: Fn() -> Fut + Send + Sync,
    Fut: Future<Output = S> + Send,
    S: TokenStore + KeyChecks,
{
    /// Checks the promises of [`KeyChecks`].
    ///
    /// # Errors
    /// [`Failure`], which names every check that failed.
    pub async fn run_key_checks(&self) -> Result<Report, Failure> {
        run! { self;
            digests_are_counted_by_key: "how many records, of whatever realm and state, have a digest under each key",
            the_first_key_check_stays: "records a check value, unless there is one for its key id",
        }
    }
}

/// A description of what was seen instead of the promised result.
struct Seen(String);

impl<E: std::error::Error> From<E> for Seen {
    fn from(error: E) -> Self {
        let mut text = format!("it answered: {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        Self(text)
    }
}

fn ensure(holds: bool, seen: impl FnOnce() -> String) -> Result<(), Seen> {
    if holds { Ok(()) } else { Err(Seen(seen())) }
}

/// A store, and the time to wait until its reads show a change.
struct Bench<'a, S> {
    store: S,
    settling: &'a Settling,
}

impl<S: TokenStore> Bench<'_, S> {
    async fn settle(&self) {
        if !self.settling.staleness.is_zero() {
            (self.settling.sleep)(self.settling.staleness).await;
        }
    }

    async fn commit_all(&self, changes: &[Change]) -> Result<(), Seen> {
        // A statement per record is slow for thousands of records, and a store need not accept all
        // of them at once.
        for chunk in changes.chunks(100) {
            let batch = ChangeBatch { changes: chunk.to_vec(), ..ChangeBatch::new() };
            self.store.commit(&batch).await?;
        }
        Ok(())
    }

    async fn insert(&self, tokens: &[Token]) -> Result<(), Seen> {
        let inserts: Vec<Change> = tokens.iter().map(insert).collect();
        self.commit_all(&inserts).await
    }

    async fn commit(&self, changes: impl IntoIterator<Item = Change> + Send) -> Result<(), Seen> {
        Ok(self.store.commit(&batch(changes)).await?)
    }

    /// Commits changes that must conflict in this way.
    async fn refused(
        &self,
        changes: impl IntoIterator<Item = Change> + Send,
        conflict: Conflict,
    ) -> Result<(), Seen> {
        let result = self.store.commit(&batch(changes)).await;
        conflicts(&result, conflict)
    }

    /// Checks the record without waiting, because the caller has waited.
    async fn holds(&self, expected: &Token) -> Result<(), Seen> {
        let is_it = |found: Option<&Token>| match found {
            None => Err(Seen(format!("{} was not found", expected.id))),
            Some(found) => same(expected, found),
        };
        is_it(self.store.find(expected.id).await?.as_deref())?;
        match self.find_at_once(expected.id) {
            Some(found) => is_it(found.as_ref()),
            None => Ok(()),
        }
    }

    async fn lacks(&self, id: TokenId) -> Result<(), Seen> {
        let is_none = |found: Option<&Token>| {
            ensure(found.is_none(), || format!("{id} was found: {found:?}"))
        };
        is_none(self.store.find(id).await?.as_deref())?;
        is_none(self.find_at_once(id).flatten().as_ref())
    }

    /// Returns the store's immediate answer for a verification, if it has one.
    #[allow(clippy::option_option, reason = "not known, or known that there is no such record")]
    fn find_at_once(&self, id: TokenId) -> Option<Option<Token>> {
        let shortcut = self.store.shortcut();
        let found = shortcut.find(id, shortcut.prefetch(id))?;
        Some(found.map(StoredToken::into_token))
    }

    /// Returns the ids of all pages of a list.
    async fn list(&self, query: &ListQuery) -> Result<Vec<TokenId>, Seen> {
        let mut ids = Vec::new();
        let mut query = query.clone();
        loop {
            let page = self.store.list(&query).await?;
            ensure(page.corrupt.is_empty(), || {
                format!("these records were corrupt: {:?}", page.corrupt)
            })?;
            ensure(page.tokens.len() <= query.limit, || {
                format!("a page of {} held {}", query.limit, page.tokens.len())
            })?;
            ids.extend(page.tokens.iter().map(|token| token.id));
            let Some(next) = page.next else { return Ok(ids) };
            ensure(!page.tokens.is_empty(), || {
                "an empty page said that there is a next one".into()
            })?;
            ensure(query.after.is_none_or(|after| next < after), || {
                format!("the page after {:?} goes on at {next}", query.after)
            })?;
            query = query.after(Some(next));
        }
    }

    async fn lists(&self, query: &ListQuery, expected: &[TokenId]) -> Result<(), Seen> {
        let found = self.list(query).await?;
        ensure(found == expected, || {
            format!("{query:?} held {}, not {}", shown_ids(&found), shown_ids(expected))
        })
    }
}

fn batch(changes: impl IntoIterator<Item = Change>) -> ChangeBatch {
    ChangeBatch { changes: changes.into_iter().collect(), ..ChangeBatch::new() }
}

fn conflicts(result: &Result<(), StoreError>, conflict: Conflict) -> Result<(), Seen> {
    match result {
        Err(StoreError::Conflict(found)) if *found == conflict => Ok(()),
        Err(other) => Err(Seen(format!("it answered {other:?} instead of {conflict:?}"))),
        Ok(()) => Err(Seen(format!("it was committed instead of {conflict:?}"))),
    }
}

fn shown_ids(ids: &[TokenId]) -> String {
    let more = ids.len().saturating_sub(8);
    let mut text: Vec<String> = ids.iter().take(8).map(ToString::to_string).collect();
    if more > 0 {
        text.push(format!("and {more} more"));
    }
    format!("[{}]", text.join(", "))
}

/// Compares every field and names the first that differs.
fn same(expected: &Token, found: &Token) -> Result<(), Seen> {
    let Token {
        id,
        realm,
        kind,
        owner,
        owner_kind,
        name,
        name_key,
        description,
        scope,
        networks,
        digest,
        created_at,
        created_by,
        restored_by,
        predecessor,
        ancestor,
        lifetime,
        facts,
        idle_from,
        reuse_reported_at,
        notified_days,
        last_used,
        seal,
        version,
    } = expected;
    macro_rules! compare {
        ($($field:ident),+) => {
            $(ensure(*$field == found.$field, || {
                let (field, wrong) = (stringify!($field), &found.$field);
                format!("the field {field} of {id} was {wrong:?}, not {:?}", $field)
            })?;)+
        };
    }
    compare!(
        id,
        realm,
        kind,
        owner,
        owner_kind,
        name,
        name_key,
        description,
        scope,
        networks,
        digest
    );
    compare!(
        created_at,
        created_by,
        restored_by,
        predecessor,
        ancestor,
        lifetime,
        facts,
        idle_from,
        reuse_reported_at,
        notified_days,
        last_used,
        seal,
        version
    );
    Ok(())
}

/// Returns the instant this many microseconds after 2027-01-15 08:00:00 UTC.
fn at(micros: i64) -> Result<DateTime<Utc>, Seen> {
    DateTime::from_timestamp_micros(1_800_000_000_000_000_i64.saturating_add(micros))
        .ok_or_else(|| Seen("the suite is broken: an instant is out of range".into()))
}

/// Returns an id. A greater number makes a newer id. Ten ids share a millisecond, so that both
/// parts of an id count.
fn id(number: u64) -> Result<TokenId, Seen> {
    let millis = 1_800_000_000_000_u64.saturating_add(number.checked_div(10).unwrap_or_default());
    let place = number.checked_rem(10).unwrap_or_default();
    let spread = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 2;
    // Even places differ in the twelve bits after the version, and pairs only in the low word.
    let (high, low) = (place >> 1, (place & 1) << 61);
    let words =
        [(millis << 16) | 0x7000 | (high << 4), (1 << 63) | low | (spread & ((1 << 61) - 1))];
    TokenId::from_words(words)
        .ok_or_else(|| Seen("the suite is broken: an id is out of range".into()))
}

/// Returns a plain record: active, personal, without an expiry, of the owner `owner`, with a unique
/// name.
fn record(number: u64) -> Result<Token, Seen> {
    let made = at(i64::try_from(number).unwrap_or_default())?;
    let owner = OwnerId::new("owner")?;
    let [byte, ..] = number.to_le_bytes();
    let name = TokenName::new(&format!("token {number}"))?;
    Ok(Token {
        id: id(number)?,
        realm: Realm::default(),
        kind: TokenKind::Personal,
        owner: owner.clone(),
        owner_kind: OwnerKind::Human,
        name_key: Some(name.key()),
        name,
        description: None,
        scope: Scope::inherit(),
        networks: None,
        digest: StoredDigest::Keyed(KeyedDigest::new(KeyId::new(1), [byte; 32])),
        created_at: made,
        created_by: ActorRef::Owner(owner),
        restored_by: None,
        predecessor: None,
        ancestor: None,
        lifetime: Lifetime::Default,
        facts: Facts::default(),
        idle_from: made,
        reuse_reported_at: None,
        notified_days: None,
        last_used: None,
        seal: None,
        version: 1,
    })
}

fn records(numbers: impl IntoIterator<Item = u64>) -> Result<Vec<Token>, Seen> {
    numbers.into_iter().map(record).collect()
}

fn revocation(reason: Reason, micros: i64) -> Result<Box<Revocation>, Seen> {
    Ok(Box::new(Revocation {
        at: at(micros)?,
        by: ActorRef::System,
        authority: Authority::System,
        reason,
    }))
}

fn succession(successor: u64) -> Result<Option<Succession>, Seen> {
    Ok(Some(Succession { successor: id(successor)?, at: at(0)?, until: at(1)? }))
}

/// Gives the token a successor, which takes over its name.
fn retire(token: &mut Token, successor: u64) -> Result<(), Seen> {
    token.facts.succession = succession(successor)?;
    token.name_key = None;
    Ok(())
}

fn named(mut token: Token, name: &str) -> Result<Token, Seen> {
    token.rename(TokenName::new(name)?);
    Ok(token)
}

/// Returns the token under the name of another token.
fn namesake(mut token: Token, other: &Token) -> Token {
    token.rename(other.name.clone());
    token
}

fn insert(token: &Token) -> Change {
    Change::Insert(Arc::new(token.clone()))
}

fn update(token: &Token) -> Change {
    Change::Update(Arc::new(token.clone()))
}

fn remove(token: &Token) -> Change {
    Change::Remove { id: token.id, version: token.version }
}

/// Returns the record after a change, with the next version.
fn changed(token: &Token, change: impl FnOnce(&mut Token)) -> Token {
    let mut after = token.clone();
    change(&mut after);
    after.version = token.version.saturating_add(1);
    after
}

fn touch(token: &Token, micros: i64, address: Option<IpAddr>) -> Result<Touch, Seen> {
    Ok(Touch::new(token.id, LastUse::new(at(micros)?, address)))
}

fn v4(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))
}

fn v6() -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xffff))
}

fn by_owner(owner: &str, kind: Option<TokenKind>) -> Result<ListQuery, Seen> {
    Ok(ListQuery::new(ListBy::Owner { realm: Realm::default(), owner: OwnerId::new(owner)?, kind }))
}

fn ids_of(tokens: &[impl Borrow<Token>]) -> Vec<TokenId> {
    tokens.iter().map(|token| token.borrow().id).collect()
}

/// Returns the ids of these numbers, newest first.
fn ids(numbers: impl IntoIterator<Item = u64>) -> Result<Vec<TokenId>, Seen> {
    let mut ids = numbers.into_iter().map(id).collect::<Result<Vec<_>, _>>()?;
    ids.sort_unstable();
    ids.reverse();
    Ok(ids)
}

/// Returns records that together have every possible value of each field: each variant, each
/// absence, and the bounds of the allowed range.
fn every_kind_of_record() -> Result<Vec<Token>, Seen> {
    // 255 bytes, most of them in multi-byte characters.
    let long = format!("{}x", "é".repeat(127));
    let wide = "𝔄".repeat(255);
    let text = format!("first line\nsecond line\n\n{}", "é\"'\\%_;--".repeat(40));
    let actors = [
        ActorRef::System,
        ActorRef::Owner(OwnerId::new(&long)?),
        ActorRef::Token { owner: OwnerId::new("o'wner\\ \"%_")?, id: id(1)? },
        ActorRef::Erased,
    ];
    let scopes = [Scope::inherit(), Scope::only([""; 0])?, Scope::only(["a:b", "scim:*", "*"])?];
    let networks = [
        None,
        Some(Networks::parse(["10.0.0.0/8", "192.0.2.1/32"])?),
        Some(Networks::parse(["2001:db8::/32", "::/0", "0.0.0.0/0", "::1"])?),
    ];
    let lifetimes = [
        Lifetime::Default,
        Lifetime::Days(1),
        Lifetime::Days(u32::MAX),
        Lifetime::Seconds(60),
        Lifetime::Seconds(u64::MAX),
        Lifetime::Never,
    ];
    let digests = [
        StoredDigest::Keyed(KeyedDigest::new(KeyId::new(0), [0; 32])),
        StoredDigest::Keyed(KeyedDigest::new(KeyId::new(u16::MAX), [0xff; 32])),
        StoredDigest::Foreign(ForeignDigest::new("sha256", &[0, 1, 0xff])),
        StoredDigest::Foreign(ForeignDigest::new("", &[])),
    ];
    let (first, last) = (extreme("0001-01-01T00:00:00Z")?, extreme("9999-12-31T23:59:59.999999Z")?);
    let instants = [first, at(-1)?, at(0)?, at(1)?, last];
    let mut tokens = Vec::new();
    // Each reason is used twice, so that the values of the lists, which have different lengths,
    // meet in many combinations.
    for (number, reason) in Reason::ALL.into_iter().chain(Reason::ALL).enumerate() {
        let mut token = record(u64::try_from(number)?.saturating_add(100))?;
        let has = |bit: usize| number & bit == bit;
        let instant = pick(&instants, number)?;
        if has(1) {
            token.kind = TokenKind::Service;
            token.owner_kind = OwnerKind::Service;
        } else {
            token.description = Description::new(&text)?;
            token.notified_days = Some(pick(&[0, u16::MAX, 30], number)?);
            token.seal = Some(Seal::new(KeyedDigest::new(KeyId::new(3), [7; 32])));
            token.predecessor = Some(id(999)?);
            token.restored_by = Some(id(998)?);
            token.ancestor = Some(id(997)?);
        }
        if has(2) {
            token.realm = Realm::new(&long)?;
            token.owner = OwnerId::new(&long)?;
            token.reuse_reported_at = Some(instant);
        }
        if has(4) {
            token.rename(TokenName::new(&wide)?);
            token.owner = OwnerId::new(&format!("own'er {number}"))?;
            retire(&mut token, 1)?;
        }
        if has(8) {
            let address = pick(&[None, Some(v4(1)), Some(v6())], number)?;
            token.last_used = Some(LastUse::new(instant, address));
        }
        token.scope = pick(&scopes, number)?;
        token.networks = pick(&networks, number)?;
        token.digest = pick(&digests, number)?;
        token.created_at = instant;
        token.created_by = pick(&actors, number)?;
        token.lifetime = pick(&lifetimes, number)?;
        token.idle_from = pick(&[last, first, at(999_999)?], number)?;
        // The first record has neither an expiry nor a revocation.
        if number > 0 {
            token.facts.expires_at = (!has(1)).then_some(instant);
            token.facts.revocation = Some(Box::new(Revocation {
                at: instant,
                by: pick(&actors, number)?,
                authority: pick(&[Authority::Owner, Authority::Admin, Authority::System], number)?,
                reason,
            }));
        }
        tokens.push(token);
    }
    Ok(tokens)
}

/// Returns the item at this place of the list, which repeats without end.
fn pick<T: Clone>(list: &[T], place: usize) -> Result<T, Seen> {
    let found = list.iter().cycle().nth(place);
    found.cloned().ok_or_else(|| Seen("the suite is broken: a list is empty".into()))
}

fn extreme(text: &str) -> Result<DateTime<Utc>, Seen> {
    let instant = DateTime::parse_from_rfc3339(text);
    let instant = instant.map_err(|error| Seen(format!("the suite is broken: {text}: {error}")))?;
    Ok(instant.to_utc())
}

async fn an_inserted_record_comes_back_unchanged<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let tokens = every_kind_of_record()?;
    bench.insert(&tokens).await?;
    bench.settle().await;
    for token in &tokens {
        bench.holds(token).await?;
        // A list also reads records, and maybe by other code.
        let query = ListQuery::new(ListBy::Owner {
            realm: token.realm.clone(),
            owner: token.owner.clone(),
            kind: None,
        });
        let page = bench.store.list(&query).await?;
        let listed = page.tokens.iter().find(|listed| listed.id == token.id);
        let listed =
            listed.ok_or_else(|| Seen(format!("the list of its owner lacked {}", token.id)))?;
        same(token, listed)?;
    }
    Ok(())
}

async fn an_updated_record_comes_back_unchanged<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let tokens = every_kind_of_record()?;
    // The identity and the owner of a record stay. Everything else changes, and then changes back.
    let plain = |token: &Token| -> Result<Token, Seen> {
        let plain = Token {
            id: token.id,
            realm: token.realm.clone(),
            kind: token.kind,
            owner: token.owner.clone(),
            owner_kind: token.owner_kind,
            created_at: token.created_at,
            ..record(1)?
        };
        named(plain, &format!("plain {}", token.id))
    };
    let before = tokens.iter().map(plain).collect::<Result<Vec<_>, _>>()?;
    bench.insert(&before).await?;
    let full: Vec<Token> =
        tokens.iter().map(|token| Token { version: 2, last_used: None, ..token.clone() }).collect();
    let updates: Vec<Change> = full.iter().map(update).collect();
    bench.commit_all(&updates).await?;
    bench.settle().await;
    for token in &full {
        bench.holds(token).await?;
    }
    let bare: Vec<Token> =
        before.iter().map(|token| Token { version: 3, ..token.clone() }).collect();
    let updates: Vec<Change> = bare.iter().map(update).collect();
    bench.commit_all(&updates).await?;
    bench.settle().await;
    for token in &bare {
        bench.holds(token).await?;
    }
    Ok(())
}

async fn what_is_not_there_is_not_found<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    bench.lacks(id(1)?).await?;
    bench.insert(&records([1, 3])?).await?;
    bench.settle().await;
    for number in [0, 2, 4, 1_000] {
        bench.lacks(id(number)?).await?;
    }
    Ok(())
}

/// Reads without waiting, however stale other reads may be.
async fn a_change_is_current_at_once<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let mut token = record(1)?;
    let is_current = async |expected: Option<&Token>| match (
        bench.store.find_current(id(1)?).await?,
        expected,
    ) {
        (Some(found), Some(expected)) => same(expected, &found),
        (None, None) => Ok(()),
        (found, _) => Err(Seen(format!("the record was {found:?} instead of {expected:?}"))),
    };
    is_current(None).await?;
    bench.insert(std::slice::from_ref(&token)).await?;
    is_current(Some(&token)).await?;
    // Reads before each change, so that a cache holds the earlier answer.
    for lifetime in [Lifetime::Never, Lifetime::Days(7)] {
        drop(bench.store.find(token.id).await?);
        token = Token { lifetime, version: token.version.saturating_add(1), ..token };
        bench.commit([update(&token)]).await?;
        is_current(Some(&token)).await?;
    }
    drop(bench.store.find(token.id).await?);
    bench.commit([Change::Remove { id: token.id, version: token.version }]).await?;
    is_current(None).await
}

async fn an_insert_never_overwrites<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let first = record(1)?;
    bench.insert(std::slice::from_ref(&first)).await?;
    let other = Token { id: first.id, ..record(2)? };
    bench.refused([insert(&other)], Conflict::Id(first.id)).await?;
    // Another realm, another owner and the next version make no difference: the id is the same.
    let elsewhere = Token {
        realm: Realm::new("elsewhere")?,
        owner: OwnerId::new("somebody else")?,
        version: 2,
        ..other
    };
    bench.refused([insert(&elsewhere)], Conflict::Id(first.id)).await?;
    bench.settle().await;
    bench.holds(&first).await
}

async fn a_kind_fits_its_owner<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let misfits = [
        (TokenKind::Personal, OwnerKind::Service),
        (TokenKind::Personal, OwnerKind::Internal),
        (TokenKind::Service, OwnerKind::Human),
        (TokenKind::Service, OwnerKind::Internal),
    ];
    let good = record(1)?;
    bench.insert(std::slice::from_ref(&good)).await?;
    for (kind, owner_kind) in misfits {
        let token = Token { kind, owner_kind, ..record(2)? };
        bench.refused([insert(&token)], Conflict::OwnerKind(token.id)).await?;
        let after = changed(&good, |good| (good.kind, good.owner_kind) = (kind, owner_kind));
        bench.refused([update(&after)], Conflict::OwnerKind(good.id)).await?;
    }
    bench.settle().await;
    bench.lacks(id(2)?).await?;
    bench.holds(&good).await
}

async fn an_update_needs_the_version_before<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let first = record(1)?;
    let second = changed(&first, |token| token.notified_days = Some(7));
    bench.insert(std::slice::from_ref(&first)).await?;
    bench.commit([update(&second)]).await?;
    for version in [0, 1, 2, 4, u64::MAX] {
        let stale = named(Token { version, ..second.clone() }, "stale")?;
        bench.refused([update(&stale)], Conflict::Version(first.id)).await?;
    }
    for version in [0, 1, 2] {
        let missing = Token { version, ..record(2)? };
        bench.refused([update(&missing)], Conflict::Version(missing.id)).await?;
    }
    bench.settle().await;
    bench.lacks(id(2)?).await?;
    bench.holds(&second).await?;
    let third = changed(&second, |token| token.notified_days = Some(1));
    bench.commit([update(&third)]).await?;
    bench.settle().await;
    bench.holds(&third).await
}

async fn an_update_keeps_the_last_use<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let used = record(1)?;
    let unused = record(2)?;
    bench.insert(&[used.clone(), unused.clone()]).await?;
    bench.store.touch(&[touch(&used, 500, Some(v4(1)))?]).await?;
    let known = Some(LastUse::new(at(500)?, Some(v4(1))));
    let mut stored = used;
    // A missing, an older and a newer last use: the record's own value has no effect.
    for claimed in
        [None, Some(LastUse::new(at(400)?, None)), Some(LastUse::new(at(600)?, Some(v6())))]
    {
        stored = changed(&stored, |token| token.last_used = claimed);
        bench.commit([update(&stored)]).await?;
    }
    let claims = changed(&unused, |token| token.last_used = known);
    bench.commit([update(&claims)]).await?;
    bench.settle().await;
    stored.last_used = known;
    bench.holds(&stored).await?;
    bench.holds(&Token { last_used: None, ..claims }).await
}

async fn a_remove_needs_its_version<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let first = record(1)?;
    let second = changed(&first, |token| token.notified_days = Some(7));
    bench.insert(std::slice::from_ref(&first)).await?;
    bench.commit([update(&second)]).await?;
    for version in [0, 1, 3] {
        let stale = Token { version, ..first.clone() };
        bench.refused([remove(&stale)], Conflict::Version(first.id)).await?;
    }
    let missing = record(2)?;
    bench.refused([remove(&missing)], Conflict::Version(missing.id)).await?;
    bench.settle().await;
    bench.holds(&second).await?;
    bench.commit([remove(&second)]).await?;
    bench.settle().await;
    bench.lacks(first.id).await?;
    bench.lists(&by_owner("owner", None)?, &[]).await?;
    bench.refused([remove(&second)], Conflict::Version(first.id)).await?;
    let third = changed(&second, |_| {});
    bench.refused([update(&third)], Conflict::Version(first.id)).await
}

async fn a_batch_is_done_whole<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let (changes_later, goes) = (record(1)?, record(2)?);
    bench.insert(&[changes_later.clone(), goes.clone()]).await?;
    let comes = record(3)?;
    let after = changed(&changes_later, |token| token.notified_days = Some(7));
    bench.commit([remove(&goes), insert(&comes), update(&after)]).await?;
    bench.settle().await;
    bench.lacks(goes.id).await?;
    bench.holds(&comes).await?;
    bench.holds(&after).await?;
    bench.lists(&by_owner("owner", None)?, &ids([1, 3])?).await?;
    bench.commit([]).await
}

async fn a_batch_that_conflicts_leaves_nothing<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let before = records([1, 2, 3])?;
    bench.insert(&before).await?;
    let [stays, goes, other] = before.as_slice() else {
        return Ok(());
    };
    let comes = record(4)?;
    let after = changed(stays, |token| token.notified_days = Some(7));
    let stale = changed(&changed(other, |_| {}), |_| {});
    let same_id = Token { id: other.id, ..record(5)? };
    let same_name = namesake(record(5)?, other);
    let misfit = Token { owner_kind: OwnerKind::Internal, ..record(5)? };
    let gone = Change::Remove { id: id(9)?, version: 1 };
    let last = [
        (insert(&same_id), Conflict::Id(other.id)),
        (update(&stale), Conflict::Version(other.id)),
        (gone, Conflict::Version(id(9)?)),
        (insert(&same_name), Conflict::Name(same_name.id)),
        (insert(&misfit), Conflict::OwnerKind(misfit.id)),
    ];
    for (change, conflict) in last {
        let changes = [insert(&comes), update(&after), remove(goes), change];
        bench.refused(changes, conflict).await?;
    }
    bench.settle().await;
    for token in &before {
        bench.holds(token).await?;
    }
    bench.lacks(comes.id).await?;
    bench.lacks(id(5)?).await?;
    bench.lists(&by_owner("owner", None)?, &ids([1, 2, 3])?).await?;
    // Names were neither claimed nor freed, and versions did not change.
    let claims = namesake(record(6)?, &comes);
    let takes = namesake(record(7)?, goes);
    bench.commit([insert(&claims), update(&after)]).await?;
    bench.refused([insert(&takes)], Conflict::Name(takes.id)).await
}

async fn the_first_conflict_is_told<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let tokens = records([1, 2, 3])?;
    bench.insert(&tokens).await?;
    let stale: Vec<Change> = tokens.iter().rev().map(update).collect();
    bench.refused(stale, Conflict::Version(id(3)?)).await?;
    let again: Vec<Change> = tokens.iter().map(insert).collect();
    bench.refused(again, Conflict::Id(id(1)?)).await
}

async fn a_name_is_unique<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let called = |number: u64, name: &str| named(record(number)?, name);
    let first = called(1, "Straße")?;
    bench.insert(std::slice::from_ref(&first)).await?;
    // Texts with one key are one name, in every spelling.
    for same in ["Straße", "STRASSE", "strasse", "\u{ff33}trasse"] {
        let token = called(2, same)?;
        bench.refused([insert(&token)], Conflict::Name(token.id)).await?;
    }
    // Revoked and expired records keep their names.
    let ended = changed(&first, |token| token.facts.expires_at = Some(token.created_at));
    bench.commit([update(&ended)]).await?;
    let token = called(2, "strasse")?;
    bench.refused([insert(&token)], Conflict::Name(token.id)).await?;
    // Texts with different keys are different names, even if a collation treats them as equal.
    let others = [
        "strase",
        "resume",
        "résumé",
        "a b",
        "ab",
        "ı",
        "i",
        "%",
        "_",
        "straße\u{301}",
        "аdmin",
        "admin",
    ];
    for (number, other) in (10..).zip(others) {
        bench.commit([insert(&called(number, other)?)]).await?;
    }
    let other = called(10, "strase")?;
    let onto = changed(&other, |token| token.rename(first.name.clone()));
    bench.refused([update(&onto)], Conflict::Name(other.id)).await?;
    // A record does not conflict with its own name.
    let rewritten = changed(&other, |token| token.notified_days = Some(1));
    bench.commit([update(&rewritten)]).await?;
    let shouted = named(changed(&rewritten, |_| {}), "STRASE")?;
    bench.commit([update(&shouted)]).await?;
    bench.settle().await;
    bench.holds(&shouted).await?;
    bench.lacks(id(2)?).await
}

async fn a_name_key_is_opaque<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    // A store neither computes a key nor checks a text, because another version of the crate may
    // have written both.
    let keyed = |number: u64, name: &str, byte: u8| -> Result<Token, Seen> {
        let name_key = Some(NameKey::from_bytes([byte; 32]));
        Ok(Token { name: TokenName::stored(name), name_key, ..record(number)? })
    };
    let texts = [
        "ci",
        " ",
        "",
        "\u{202e}a\u{2028}b\r\n\t",
        "\u{10ffff}\u{378}",
        "e\u{301}",
        "a  b ",
        "\u{2800}",
    ];
    let mut tokens = Vec::new();
    for ((number, byte), text) in (1..).zip(0..).zip(texts) {
        let description = Some(Description::stored(text));
        tokens.push(Token { description, ..keyed(number, text, byte)? });
    }
    // One name has two keys.
    tokens.push(keyed(50, "ci", 50)?);
    bench.insert(&tokens).await?;
    bench.settle().await;
    for token in &tokens {
        bench.holds(token).await?;
    }
    for token in [keyed(60, "another", 0)?, keyed(60, "ci", 50)?, keyed(60, "", 7)?] {
        bench.refused([insert(&token)], Conflict::Name(token.id)).await?;
    }
    let [first, ..] = tokens.as_slice() else {
        return Ok(());
    };
    let onto = changed(first, |token| token.name_key = Some(NameKey::from_bytes([1; 32])));
    bench.refused([update(&onto)], Conflict::Name(first.id)).await?;
    let away = changed(first, |token| token.name_key = Some(NameKey::from_bytes([60; 32])));
    bench.commit([update(&away)]).await?;
    bench.commit([insert(&keyed(61, "ci", 0)?)]).await
}

async fn a_name_is_one_owners_alone<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let first = record(1)?;
    let like = |number: u64| -> Result<Token, Seen> { Ok(namesake(record(number)?, &first)) };
    bench.insert(std::slice::from_ref(&first)).await?;
    let mut others =
        vec![Token { kind: TokenKind::Service, owner_kind: OwnerKind::Service, ..like(2)? }];
    // Owners that differ in case, trailing spaces, normalization or pattern characters are
    // different owners.
    let owners = ["Owner", "owner ", "öwner", "o\u{308}wner", "owne_", "owner%", "another"];
    for (number, owner) in (10..).zip(owners) {
        others.push(Token { owner: OwnerId::new(owner)?, ..like(number)? });
    }
    for (number, realm) in (20..).zip(["realm", "Realm", "realm ", "%"]) {
        others.push(Token { realm: Realm::new(realm)?, ..like(number)? });
    }
    for other in &others {
        bench.commit([insert(other)]).await?;
    }
    let second = like(30)?;
    bench.refused([insert(&second)], Conflict::Name(second.id)).await?;
    bench.settle().await;
    for other in others.iter().filter(|other| other.owner != first.owner) {
        let query = ListQuery::new(ListBy::Owner {
            realm: Realm::default(),
            owner: other.owner.clone(),
            kind: None,
        });
        bench.lists(&query, &[other.id]).await?;
    }
    for other in others.iter().filter(|other| other.realm != first.realm) {
        let query =
            ListQuery::new(ListBy::Kind { realm: other.realm.clone(), kind: TokenKind::Personal });
        bench.lists(&query, &[other.id]).await?;
    }
    Ok(())
}

async fn a_name_is_free_again<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let tokens = records([1, 2, 3])?;
    bench.insert(&tokens).await?;
    let [removed, renamed, rotated] = tokens.as_slice() else {
        return Ok(());
    };
    bench.commit([remove(removed)]).await?;
    let renamed_after = named(changed(renamed, |_| {}), "renamed")?;
    bench.commit([update(&renamed_after)]).await?;
    let mut rotated_after = changed(rotated, |_| {});
    retire(&mut rotated_after, 6)?;
    bench.commit([update(&rotated_after)]).await?;
    for (number, free) in (4..).zip([removed, renamed, rotated]) {
        let token = namesake(record(number)?, free);
        bench.commit([insert(&token)]).await?;
    }
    // A second record with a successor and that name does not conflict either.
    let mut other = namesake(record(7)?, rotated);
    retire(&mut other, 6)?;
    bench.commit([insert(&other)]).await?;
    let taken = namesake(record(8)?, rotated);
    bench.refused([insert(&taken)], Conflict::Name(taken.id)).await
}

async fn a_name_is_handed_on_within_a_batch<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    for (number, forwards) in [(10, true), (20, false)] {
        let in_order = |mut changes: Vec<Change>| {
            if !forwards {
                changes.reverse();
            }
            changes
        };
        // Rotate, three times in a row.
        let mut current = record(number)?;
        bench.insert(std::slice::from_ref(&current)).await?;
        for next in (number..).skip(1).take(3) {
            let successor = namesake(record(next)?, &current);
            let mut retired = changed(&current, |_| {});
            retire(&mut retired, next)?;
            bench.commit(in_order(vec![update(&retired), insert(&successor)])).await?;
            current = successor;
        }
        // Remove.
        let heir = namesake(record(number.saturating_add(5))?, &current);
        bench.commit(in_order(vec![remove(&current), insert(&heir)])).await?;
        // Rename each other.
        let other = record(number.saturating_add(6))?;
        bench.insert(std::slice::from_ref(&other)).await?;
        let one = changed(&heir, |token| token.rename(other.name.clone()));
        let two = changed(&other, |token| token.rename(heir.name.clone()));
        bench.commit(in_order(vec![update(&one), update(&two)])).await?;
        bench.settle().await;
        bench.holds(&one).await?;
        bench.holds(&two).await?;
        let taken = namesake(record(number.saturating_add(7))?, &two);
        bench.refused([insert(&taken)], Conflict::Name(taken.id)).await?;
    }
    Ok(())
}

async fn two_of_one_name_in_a_batch_conflict<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let one = record(1)?;
    let two = namesake(record(2)?, &one);
    let result = bench.store.commit(&batch([insert(&one), insert(&two)])).await;
    let told = result.as_ref().err().and_then(StoreError::conflict);
    // The conflict may name either of the two.
    let told = told.filter(|conflict| *conflict == Conflict::Name(one.id));
    conflicts(&result, told.unwrap_or(Conflict::Name(two.id)))?;
    bench.settle().await;
    bench.lacks(one.id).await?;
    bench.lacks(two.id).await
}

async fn a_list_holds_what_it_should<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let service =
        |token: Token| Token { kind: TokenKind::Service, owner_kind: OwnerKind::Service, ..token };
    let made_by = |number: u64| -> Result<ActorRef, Seen> {
        Ok(ActorRef::Token { owner: OwnerId::new("owner")?, id: id(number)? })
    };
    let elsewhere = Realm::new("elsewhere")?;
    let tokens = [
        record(1)?,
        service(record(2)?),
        Token { created_by: made_by(1)?, ..record(3)? },
        Token { owner: OwnerId::new("other")?, created_by: made_by(1)?, ..service(record(4)?) },
        Token { realm: elsewhere.clone(), restored_by: Some(id(1)?), ..record(5)? },
        Token {
            realm: elsewhere.clone(),
            created_by: made_by(3)?,
            ancestor: Some(id(2)?),
            ..service(record(6)?)
        },
    ];
    bench.insert(&tokens).await?;
    bench.settle().await;
    let owner = |realm: &Realm, owner: &str, kind| -> Result<ListBy, Seen> {
        Ok(ListBy::Owner { realm: realm.clone(), owner: OwnerId::new(owner)?, kind })
    };
    let of_kind = |realm: &Realm, kind| ListBy::Kind { realm: realm.clone(), kind };
    let here = Realm::default();
    let (personal, of_service) = (TokenKind::Personal, TokenKind::Service);
    let table: [(ListBy, &[u64]); 19] = [
        (owner(&here, "owner", None)?, &[1, 2, 3]),
        (owner(&here, "owner", Some(personal))?, &[1, 3]),
        (owner(&here, "owner", Some(of_service))?, &[2]),
        (owner(&here, "other", None)?, &[4]),
        (owner(&here, "other", Some(personal))?, &[]),
        (owner(&here, "nobody", None)?, &[]),
        (owner(&elsewhere, "owner", None)?, &[5, 6]),
        (of_kind(&here, personal), &[1, 3]),
        (of_kind(&here, of_service), &[2, 4]),
        (of_kind(&elsewhere, of_service), &[6]),
        (of_kind(&Realm::new("nowhere")?, personal), &[]),
        (ListBy::Creator(id(1)?), &[3, 4]),
        (ListBy::Creator(id(3)?), &[6]),
        (ListBy::Creator(id(2)?), &[]),
        (ListBy::Restorer(id(1)?), &[5]),
        (ListBy::Restorer(id(3)?), &[]),
        (ListBy::Ancestor(id(2)?), &[6]),
        (ListBy::Ancestor(id(1)?), &[]),
        (ListBy::Idle(at(1_000)?), &[1, 2, 3, 4, 5, 6]),
    ];
    for (by, expected) in table {
        bench.lists(&ListQuery::new(by), &ids(expected.iter().copied())?).await?;
    }
    // An update moves a record from one list to another.
    let [.., adopted] = &tokens;
    let third = id(3)?;
    let adopted = changed(adopted, |token| {
        token.created_by = ActorRef::Erased;
        token.restored_by = Some(third);
        token.ancestor = Some(third);
    });
    bench.commit([update(&adopted)]).await?;
    bench.settle().await;
    bench.lists(&ListQuery::new(ListBy::Creator(id(3)?)), &[]).await?;
    bench.lists(&ListQuery::new(ListBy::Restorer(id(3)?)), &ids([6])?).await?;
    bench.lists(&ListQuery::new(ListBy::Ancestor(id(2)?)), &[]).await?;
    bench.lists(&ListQuery::new(ListBy::Ancestor(id(3)?)), &ids([6])?).await
}

async fn a_list_of_a_key_holds_its_digests<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let under = |key| StoredDigest::Keyed(KeyedDigest::new(KeyId::new(key), [1; 32]));
    let mut tokens = records(1..=6)?;
    for (number, token) in (1..).zip(&mut tokens) {
        token.digest = match number {
            1 => StoredDigest::Foreign(ForeignDigest::new("sha256", &[1; 32])),
            2 | 5 => under(u16::MAX),
            _ => under(0),
        };
    }
    if let [_, second, third, ..] = &mut *tokens {
        second.realm = Realm::new("elsewhere")?;
        third.facts.revocation = Some(revocation(Reason::Owner, 0)?);
    }
    bench.insert(&tokens).await?;
    bench.settle().await;
    let by = |key| ListQuery::new(ListBy::Key(KeyId::new(key)));
    bench.lists(&by(0), &ids([3, 4, 6])?).await?;
    bench.lists(&by(u16::MAX), &ids([2, 5])?).await?;
    bench.lists(&by(1), &[]).await?;
    bench.lists(&by(0).active_at(at(0)?), &ids([4, 6])?).await?;
    // A digest that changes its key moves from one list to another.
    let Some(moved) = tokens.get(3) else { return Ok(()) };
    bench.commit([update(&changed(moved, |token| token.digest = under(u16::MAX)))]).await?;
    bench.settle().await;
    bench.lists(&by(0), &ids([3, 6])?).await?;
    bench.lists(&by(u16::MAX), &ids([2, 4, 5])?).await
}

async fn a_list_is_newest_first<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    // Out of order of their ids, many in one millisecond, and older ones last.
    let numbers = [17, 3, 25, 4, 12, 5, 11, 24, 16, 13];
    bench.insert(&records(numbers)?).await?;
    bench.settle().await;
    let expected = ids(numbers)?;
    bench.lists(&by_owner("owner", None)?, &expected).await?;
    let personal = ListBy::Kind { realm: Realm::default(), kind: TokenKind::Personal };
    bench.lists(&ListQuery::new(personal), &expected).await?;
    bench.lists(&ListQuery::new(ListBy::Idle(at(1_000)?)), &expected).await
}

async fn pages_are_exact<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let count = u64::try_from(MAX_PAGE)?.saturating_add(1);
    bench.insert(&records(1..=count)?).await?;
    bench.settle().await;
    let all = ids(1..=count)?;
    let child_of = ListQuery::new(ListBy::Idle(at(1_000)?));
    for query in [by_owner("owner", Some(TokenKind::Personal))?, child_of] {
        for limit in [1, 2, 67, MAX_PAGE] {
            bench.lists(&query.clone().limit(limit), &all).await?;
        }
        // The end of a list: a page with all remaining records is the last one, even if it is full.
        for (left, limit, more) in
            [(2, 1, true), (2, 2, false), (2, 3, false), (1, 1, false), (0, 1, false)]
        {
            let last = id(u64::try_from(left)?.saturating_add(1))?;
            let page = bench.store.list(&query.clone().after(Some(last)).limit(limit)).await?;
            let seen = page.tokens.len();
            ensure(seen == limit.min(left) && page.next.is_some() == more, || {
                format!(
                    "with {left} left, a page of {limit} held {seen} and went on at {:?}",
                    page.next
                )
            })?;
        }
    }
    // A page may begin at an id without a record.
    let between = by_owner("owner", None)?.after(Some(id(count.saturating_add(1_000))?));
    bench.lists(&between, &all).await?;
    bench.commit([remove(&record(100)?)]).await?;
    bench.settle().await;
    let rest = by_owner("owner", None)?.after(Some(id(100)?));
    bench.lists(&rest, &ids(1..100)?).await
}

async fn pages_hold_while_records_come_and_go<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    // Records with multiples of three stay. Others appear and disappear between the pages.
    let stay = || (100..140_u64).filter(|number| number.checked_rem(3) == Some(0));
    let go: Vec<u64> = (100..140_u64).filter(|number| number.checked_rem(3) == Some(1)).collect();
    let come: Vec<u64> = (90..150_u64).filter(|number| number.checked_rem(3) == Some(2)).collect();
    bench.insert(&records(stay())?).await?;
    bench.insert(&records(go.iter().copied())?).await?;
    bench.settle().await;
    let mut seen = Vec::new();
    let mut query = by_owner("owner", None)?.limit(2);
    let mut leaving = go.iter().copied();
    let mut coming = come.iter().copied();
    loop {
        let page = bench.store.list(&query).await?;
        seen.extend(page.tokens.iter().map(|token| token.id));
        let Some(next) = page.next else { break };
        query = query.after(Some(next));
        // Removes records at both ends and in the middle, and also the record after which the next
        // page begins.
        if page.tokens.len() == 2
            && let Some(last) = page.tokens.last()
            && go.contains(&number_of(last))
        {
            bench.commit([remove(last)]).await.unwrap_or_default();
        }
        for number in leaving.by_ref().take(1) {
            bench.commit([remove(&record(number)?)]).await.unwrap_or_default();
        }
        for number in coming.by_ref().take(2) {
            bench.insert(&[record(number)?]).await?;
        }
        bench.settle().await;
        ensure(seen.len() < 1_000, || "the pages did not end".into())?;
    }
    ensure(seen.is_sorted_by(|one, next| one > next), || {
        format!("the pages held {} in this order", shown_ids(&seen))
    })?;
    let seen: BTreeSet<TokenId> = seen.into_iter().collect();
    let missing: Vec<TokenId> = ids(stay())?.into_iter().filter(|id| !seen.contains(id)).collect();
    ensure(missing.is_empty(), || {
        format!("the pages lacked {}, which were there all the time", shown_ids(&missing))
    })
}

/// Returns the number from which [`record`] made the token.
fn number_of(token: &Token) -> u64 {
    let micros = token.created_at.timestamp_micros();
    u64::try_from(micros.saturating_sub(1_800_000_000_000_000)).unwrap_or_default()
}

async fn only_active_ones_are_listed<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let expires = |number: u64, micros: i64| -> Result<Token, Seen> {
        let mut token = record(number)?;
        token.facts.expires_at = Some(at(micros)?);
        Ok(token)
    };
    let revoke = |mut token: Token, micros: i64| -> Result<Token, Seen> {
        token.facts.revocation = Some(revocation(Reason::Owner, micros)?);
        Ok(token)
    };
    let tokens = [
        record(1)?,
        expires(2, 999)?,
        expires(3, 1_000)?,
        expires(4, 1_001)?,
        revoke(record(5)?, 0)?,
        // Revoked at a later instant, which makes no difference, because a revocation always
        // counts.
        revoke(record(6)?, 5_000)?,
        revoke(expires(7, 5_000)?, 0)?,
    ];
    bench.insert(&tokens).await?;
    bench.settle().await;
    let table: [(i64, &[u64]); 4] =
        [(998, &[1, 2, 3, 4]), (999, &[1, 3, 4]), (1_000, &[1, 4]), (1_001, &[1])];
    let personal = ListBy::Kind { realm: Realm::default(), kind: TokenKind::Personal };
    let queries = [
        by_owner("owner", None)?,
        ListQuery::new(personal),
        ListQuery::new(ListBy::Idle(at(9_999)?)),
    ];
    for query in queries {
        for (now, expected) in table {
            for limit in [1, 2, MAX_PAGE] {
                let query = query.clone().active_at(at(now)?).limit(limit);
                bench.lists(&query, &ids(expected.iter().copied())?).await?;
            }
        }
        bench.lists(&query, &ids(1..=7)?).await?;
    }
    Ok(())
}

#[allow(clippy::arithmetic_side_effects, reason = "instants of a test, far from the ends")]
async fn idle_ones_are_listed<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let idle = |number: u64, from: i64, used: Option<i64>| -> Result<Token, Seen> {
        let last_used = used.map(at).transpose()?.map(|at| LastUse::new(at, None));
        Ok(Token { idle_from: at(from)?, last_used, ..record(number)? })
    };
    let tokens = [
        idle(1, 999, None)?,
        idle(2, 1_000, None)?,
        idle(3, 1_001, None)?,
        idle(4, 0, Some(999))?,
        idle(5, 0, Some(1_000))?,
        // Restored after its last use.
        idle(6, 1_000, Some(500))?,
        Token { realm: Realm::new("elsewhere")?, ..idle(7, 500, Some(0))? },
    ];
    bench.insert(&tokens).await?;
    bench.settle().await;
    let idle_at =
        |micros: i64| -> Result<ListQuery, Seen> { Ok(ListQuery::new(ListBy::Idle(at(micros)?))) };
    bench.lists(&idle_at(1_000)?, &ids([1, 4, 7])?).await?;
    bench.lists(&idle_at(1_001)?, &ids([1, 2, 4, 5, 6, 7])?).await?;
    bench.lists(&idle_at(0)?, &[]).await?;
    // A use counts immediately.
    let [first, ..] = &tokens;
    bench.store.touch(&[touch(first, 1_000, None)?]).await?;
    bench.settle().await;
    bench.lists(&idle_at(1_000)?, &ids([4, 7])?).await?;
    // Instants that a wrong clock recorded do not keep a record active.
    let error = MAX_CLOCK_ERROR.num_seconds() * 1_000_000;
    let from_the_future = [
        idle(11, error + 500, None)?,
        idle(12, error + 501, None)?,
        idle(13, 0, Some(error + 500))?,
        idle(14, 0, Some(error + 501))?,
        idle(15, error + 501, Some(error + 501))?,
        idle(16, error + 501, Some(499))?,
        idle(17, error + 501, Some(500))?,
    ];
    bench.insert(&from_the_future).await?;
    bench.settle().await;
    let at_that_time = ListQuery::new(ListBy::Idle(at(500)?)).active_at(at(500)?);
    bench.lists(&at_that_time, &ids([12, 14, 15, 16])?).await
}

async fn a_touch_moves_forward_alone<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let token = record(1)?;
    bench.insert(std::slice::from_ref(&token)).await?;
    bench.store.touch(&[]).await?;
    let steps = [
        (1_000, Some(v4(1)), 1_000, Some(v4(1))),
        (1_000, Some(v4(2)), 1_000, Some(v4(1))),
        (999, Some(v4(2)), 1_000, Some(v4(1))),
        (-5_000_000, None, 1_000, Some(v4(1))),
        (1_001, Some(v6()), 1_001, Some(v6())),
        (1_002, None, 1_002, None),
    ];
    for (micros, address, known, from) in steps {
        bench.store.touch(&[touch(&token, micros, address)?]).await?;
        bench.settle().await;
        let last_used = Some(LastUse::new(at(known)?, from));
        bench.holds(&Token { last_used, ..token.clone() }).await?;
    }
    Ok(())
}

#[allow(clippy::arithmetic_side_effects, reason = "instants of a test, far from the ends")]
async fn a_touch_replaces_what_a_wrong_clock_noted<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let token = record(1)?;
    bench.insert(std::slice::from_ref(&token)).await?;
    // In seconds: when the token was used, when that is written, and the last use known afterwards.
    let day = MAX_CLOCK_ERROR.num_seconds();
    let century = day * 36_525;
    let steps = [
        (century, century, century),
        // A use a day after now is still accepted.
        (century - day, century - day, century),
        (century - day - 1, century - day - 1, century - day - 1),
        (century, century, century),
        (10 * day, 10 * day, 10 * day),
        // These are written long after the use.
        (5 * day, 10 * day, 10 * day),
        (5 * day, 9 * day, 10 * day),
        (10 * day + 1, 10 * day + 1, 10 * day + 1),
    ];
    let instant = |seconds: i64| at(seconds * 1_000_000);
    for (used, now, known) in steps {
        let used = LastUse::new(instant(used)?, Some(v4(1)));
        bench.store.touch(&[Touch::at(token.id, used, instant(now)?)]).await?;
        bench.settle().await;
        let last_used = Some(LastUse::new(instant(known)?, Some(v4(1))));
        bench.holds(&Token { last_used, ..token.clone() }).await?;
    }
    Ok(())
}

async fn a_touch_changes_nothing_else<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let tokens = every_kind_of_record()?;
    bench.insert(&tokens).await?;
    let last = LastUse::new(extreme("9999-12-31T23:59:59.999999Z")?, Some(v6()));
    let uses: Vec<Touch> = tokens.iter().map(|token| Touch::new(token.id, last)).collect();
    bench.store.touch(&uses).await?;
    bench.settle().await;
    for token in &tokens {
        // Some were used at this very instant.
        let last_used = token.last_used.filter(|used| used.at >= last.at).or(Some(last));
        bench.holds(&Token { last_used, ..token.clone() }).await?;
    }
    // A change that was prepared before the touch does not conflict with the touch.
    for token in &tokens {
        bench.commit([update(&changed(token, |_| {}))]).await?;
    }
    Ok(())
}

async fn a_touch_brings_nothing_back<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let tokens = records([1, 2])?;
    bench.insert(&tokens).await?;
    let [gone, here] = tokens.as_slice() else {
        return Ok(());
    };
    bench.commit([remove(gone)]).await?;
    let unknown = record(3)?;
    let uses = [touch(gone, 1, None)?, touch(&unknown, 1, None)?, touch(here, 1, None)?];
    bench.store.touch(&uses).await?;
    bench.settle().await;
    bench.lacks(gone.id).await?;
    bench.lacks(unknown.id).await?;
    bench.lists(&by_owner("owner", None)?, &[here.id]).await?;
    let last_used = Some(LastUse::new(at(1)?, None));
    bench.holds(&Token { last_used, ..here.clone() }).await
}

async fn a_thousand_touches_at_once<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let tokens = records(1..=1_000)?;
    bench.insert(&tokens).await?;
    let last_use = |number: usize| -> Result<LastUse, Seen> {
        let address = (number & 1 == 1).then_some(v4(7));
        Ok(LastUse::new(at(i64::try_from(number)?)?, address))
    };
    let mut uses = Vec::new();
    for (number, token) in tokens.iter().enumerate() {
        uses.push(Touch::new(token.id, last_use(number)?));
    }
    bench.store.touch(&uses).await?;
    bench.settle().await;
    for (number, token) in tokens.iter().enumerate() {
        let last_used = Some(last_use(number)?);
        bench.holds(&Token { last_used, ..token.clone() }).await?;
    }
    Ok(())
}

fn in_order(numbers: &[u64]) -> Result<Vec<TokenId>, Seen> {
    numbers.iter().map(|number| id(*number)).collect()
}

async fn ended_records_are_listed<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    let ends = |number: u64, expires: Option<i64>, revoked: Option<i64>| -> Result<Token, Seen> {
        let mut token = record(number)?;
        token.facts.expires_at = expires.map(at).transpose()?;
        token.facts.revocation =
            revoked.map(|micros| revocation(Reason::Admin, micros)).transpose()?;
        Ok(token)
    };
    let ended = [
        ends(1, Some(994), None)?,
        ends(2, Some(1_000), None)?,
        ends(3, None, Some(995))?,
        ends(4, None, Some(999))?,
        ends(5, Some(5_000), Some(998))?,
        ends(6, Some(997), Some(5_000))?,
        Token { realm: Realm::new("elsewhere")?, ..ends(7, Some(996), None)? },
    ];
    let others = [
        ends(11, Some(1_001), None)?,
        ends(12, None, Some(1_001))?,
        ends(13, Some(1_001), Some(1_001))?,
        ends(14, None, None)?,
    ];
    bench.insert(&ended).await?;
    bench.insert(&others).await?;
    bench.settle().await;
    let expected = in_order(&[1, 3, 7, 6, 5, 4, 2])?;
    let page = bench.store.list_ended(at(1_000)?, 100).await?;
    let listed = ids_of(&page.tokens);
    ensure(listed == expected && page.corrupt.is_empty(), || {
        format!("it listed {}, not {}", shown_ids(&listed), shown_ids(&expected))
    })?;
    for found in &page.tokens {
        let inserted = ended.iter().find(|token| token.id == found.id);
        same(inserted.ok_or_else(|| Seen(format!("{} was never inserted", found.id)))?, found)?;
    }
    Ok(())
}

async fn the_first_to_end_are_listed_first<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    // Older records ended later.
    let mut tokens = records(1..=5)?;
    for (place, token) in (0_i64..).zip(&mut tokens) {
        token.facts.expires_at = Some(at(place.saturating_neg())?);
    }
    bench.insert(&tokens).await?;
    bench.settle().await;
    for (limit, expected) in
        [(2, &[5, 4][..]), (4, &[5, 4, 3, 2]), (5, &[5, 4, 3, 2, 1]), (9, &[5, 4, 3, 2, 1])]
    {
        let page = bench.store.list_ended(at(1_000)?, limit).await?;
        let (listed, expected) = (ids_of(&page.tokens), in_order(expected)?);
        ensure(listed == expected, || {
            format!("a list of {limit} held {}, not {}", shown_ids(&listed), shown_ids(&expected))
        })?;
    }
    // A restored record leaves the list, and a revoked one joins it.
    let [first, .., last] = tokens.as_slice() else { return Ok(()) };
    let restored = changed(last, |token| token.facts.expires_at = None);
    let revoked = revocation(Reason::Owner, -100)?;
    let revoked = changed(first, |token| token.facts.revocation = Some(revoked));
    bench.commit([update(&restored), update(&revoked)]).await?;
    bench.settle().await;
    let listed = ids_of(&bench.store.list_ended(at(1_000)?, 100).await?.tokens);
    let expected = in_order(&[1, 4, 3, 2])?;
    ensure(listed == expected, || {
        format!("it listed {}, not {}", shown_ids(&listed), shown_ids(&expected))
    })
}

/// The work of one of several concurrent tasks. Its items run in order, up to the first that fails.
enum Work {
    Commits(Vec<ChangeBatch>),
    Touches(Vec<Touch>),
}

impl Work {
    async fn perform<S: TokenStore>(&self, store: &S) -> Result<(), StoreError> {
        match self {
            Self::Commits(batches) => {
                for batch in batches {
                    store.commit(batch).await?;
                }
            }
            Self::Touches(uses) => {
                for touch in uses {
                    store.touch(std::slice::from_ref(touch)).await?;
                }
            }
        }
        Ok(())
    }
}

/// A race: the initial records, the concurrent work, and how much of the work may succeed.
struct Race {
    before: Vec<Change>,
    /// The work by round. The work of one round is concurrent.
    rounds: Vec<Vec<Work>>,
    outcome: Outcome,
}

enum Outcome {
    /// In each round, exactly one succeeds and determines the records. All others get this
    /// conflict.
    One(Box<dyn Fn(usize, usize) -> Result<Conflict, Seen> + Send + Sync>),
    /// The same as `One`, except that the store may also have given up on those that fail.
    OneOrGivenUp,
    /// All succeed, and these are the records afterwards.
    All(Vec<Token>),
}

type Results = Vec<Vec<Result<(), StoreError>>>;

const AT_ONCE: u64 = 8;
const ROUNDS: u64 = 25;
const ROUND_OF_TOUCHES: u16 = 200;

impl Race {
    async fn check<S: TokenStore>(
        &self,
        bench: &Bench<'_, S>,
        results: &Results,
    ) -> Result<(), Seen> {
        bench.settle().await;
        for (round, (works, results)) in self.rounds.iter().zip(results).enumerate() {
            let mut done = Vec::new();
            for (place, (work, result)) in works.iter().zip(results).enumerate() {
                match (result, &self.outcome) {
                    (Ok(()), _) => done.push(work),
                    (Err(_), Outcome::One(conflict)) => conflicts(result, conflict(round, place)?)?,
                    (
                        Err(StoreError::Unavailable(_) | StoreError::Conflict(_)),
                        Outcome::OneOrGivenUp,
                    ) => {}
                    (Err(error), _) => {
                        return Err(Seen(format!("one of several at once got {error:?}")));
                    }
                }
            }
            if matches!(self.outcome, Outcome::All(_)) {
                continue;
            }
            ensure(done.len() == 1, || {
                format!("{} of {} at once were done", done.len(), works.len())
            })?;
            for work in done {
                let Work::Commits(batches) = work else { continue };
                for change in batches.iter().flat_map(|batch| &batch.changes) {
                    if let Change::Insert(token) | Change::Update(token) = change {
                        bench.holds(token).await?;
                    }
                }
            }
        }
        if let Outcome::All(after) = &self.outcome {
            for token in after {
                bench.holds(token).await?;
            }
        }
        Ok(())
    }
}

/// Runs a race on the runtime that awaits this.
async fn raced<S: TokenStore>(bench: &Bench<'_, S>, race: Race) -> Result<(), Seen> {
    bench.commit_all(&race.before).await?;
    let mut results = Vec::new();
    for round in &race.rounds {
        let futures =
            round.iter().map(|work| -> BoxedFuture<'_, _> { Box::pin(work.perform(&bench.store)) });
        results.push(join_all(futures.collect()).await);
    }
    race.check(bench, &results).await
}

/// Polls all futures at once, in one task.
async fn join_all<T: Send>(futures: Vec<BoxedFuture<'_, T>>) -> Vec<T> {
    let mut running: Vec<(BoxedFuture<'_, T>, Option<T>)> =
        futures.into_iter().map(|future| (future, None)).collect();
    std::future::poll_fn(|context| {
        for (future, output) in &mut running {
            if output.is_none()
                && let Poll::Ready(ready) = future.as_mut().poll(context)
            {
                *output = Some(ready);
            }
        }
        if running.iter().all(|(_, output)| output.is_some()) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    running.into_iter().filter_map(|(_, output)| output).collect()
}

/// Returns the output of a future that runs on this thread.
fn blocked<T: Send>(
    block_on: &(impl Fn(BoxedFuture<'_, ()>) + Sync),
    future: impl Future<Output = T> + Send,
) -> Result<T, Seen> {
    let output = Mutex::new(None);
    block_on(Box::pin(async {
        let ready = future.await;
        *output.lock().unwrap_or_else(PoisonError::into_inner) = Some(ready);
    }));
    let output = output.into_inner().unwrap_or_else(PoisonError::into_inner);
    output.ok_or_else(|| Seen("`block_on` returned before the future was done".into()))
}

/// Runs the rounds one after the other, with each work of a round on its own thread.
fn on_threads<S: TokenStore>(
    store: &S,
    race: &Race,
    block_on: &(impl Fn(BoxedFuture<'_, ()>) + Sync),
) -> Result<Results, Seen> {
    let mut results = Vec::new();
    for round in &race.rounds {
        let line = std::sync::Barrier::new(round.len());
        let of_round: Vec<Result<Result<(), StoreError>, Seen>> = std::thread::scope(|scope| {
            let threads: Vec<_> = round
                .iter()
                .map(|work| {
                    scope.spawn(|| {
                        line.wait();
                        blocked(block_on, work.perform(store))
                    })
                })
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(Seen("the store, or `block_on`, panicked".into())))
            };
            threads.into_iter().map(join).collect()
        });
        results.push(of_round.into_iter().collect::<Result<Vec<_>, _>>()?);
    }
    Ok(results)
}

fn race_plans() -> [(Check, Result<Race, Seen>); 5] {
    let check = |name, contract| Check { name, contract };
    [
        (
            check("of_updates_at_once_one_wins", "changes are atomic and never lost"),
            race_of_updates(),
        ),
        (
            check("of_inserts_of_one_name_at_once_one_wins", "changes are atomic and never lost"),
            race_of_names(),
        ),
        (
            check("of_inserts_of_one_id_at_once_one_wins", "an insert never overwrites"),
            race_of_ids(),
        ),
        (
            check(
                "of_batches_in_opposite_order_one_wins",
                "a commit does everything in its batch or nothing",
            ),
            race_of_batches(),
        ),
        (
            check(
                "touches_and_updates_at_once_are_all_kept",
                "last uses belong to `touch` alone, and it never moves the version",
            ),
            race_with_touches(),
        ),
    ]
}

async fn of_updates_at_once_one_wins<S: TokenStore>(bench: &Bench<'_, S>) -> Result<(), Seen> {
    raced(bench, race_of_updates()?).await
}

fn race_of_updates() -> Result<Race, Seen> {
    let tokens = records(0..ROUNDS)?;
    let writers = |token: &Token| -> Result<Vec<Work>, Seen> {
        let work = |writer: u64| {
            let days = u16::try_from(writer)?;
            let after = changed(token, |token| token.notified_days = Some(days));
            Ok(Work::Commits(vec![batch([update(&after)])]))
        };
        (0..AT_ONCE).map(work).collect()
    };
    Ok(Race {
        before: tokens.iter().map(insert).collect(),
        rounds: tokens.iter().map(writers).collect::<Result<_, _>>()?,
        outcome: Outcome::One(Box::new(|round, _| Ok(Conflict::Version(id(round.try_into()?)?)))),
    })
}

/// Returns the number of a record that one work of a round inserts.
fn contender(round: u64, place: u64) -> u64 {
    round.saturating_mul(100).saturating_add(place).saturating_add(1_000)
}

async fn of_inserts_of_one_name_at_once_one_wins<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    raced(bench, race_of_names()?).await
}

fn race_of_names() -> Result<Race, Seen> {
    let round = |round: u64| -> Result<Vec<Work>, Seen> {
        let work = |place: u64| {
            let token = named(record(contender(round, place))?, &format!("wanted {round}"))?;
            Ok(Work::Commits(vec![batch([insert(&token)])]))
        };
        (0..AT_ONCE).map(work).collect()
    };
    Ok(Race {
        before: Vec::new(),
        rounds: (0..ROUNDS).map(round).collect::<Result<_, _>>()?,
        outcome: Outcome::One(Box::new(|round, place| {
            Ok(Conflict::Name(id(contender(round.try_into()?, place.try_into()?))?))
        })),
    })
}

async fn of_inserts_of_one_id_at_once_one_wins<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    raced(bench, race_of_ids()?).await
}

fn race_of_ids() -> Result<Race, Seen> {
    let round = |round: u64| -> Result<Vec<Work>, Seen> {
        let work = |place: u64| {
            let token = Token { id: id(round)?, ..record(contender(round, place))? };
            Ok(Work::Commits(vec![batch([insert(&token)])]))
        };
        (0..AT_ONCE).map(work).collect()
    };
    Ok(Race {
        before: Vec::new(),
        rounds: (0..ROUNDS).map(round).collect::<Result<_, _>>()?,
        outcome: Outcome::One(Box::new(|round, _| Ok(Conflict::Id(id(round.try_into()?)?)))),
    })
}

async fn of_batches_in_opposite_order_one_wins<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    raced(bench, race_of_batches()?).await
}

/// Half of the batches change two records in one order, and half in the other order. A store that
/// locks them one by one deadlocks.
fn race_of_batches() -> Result<Race, Seen> {
    let tokens = records(0..ROUNDS.saturating_mul(2))?;
    let writers = |pair: &[Token]| -> Result<Vec<Work>, Seen> {
        let work = |writer: u64| {
            let days = u16::try_from(writer)?;
            let mut changes: Vec<Change> = pair
                .iter()
                .map(|token| update(&changed(token, |token| token.notified_days = Some(days))))
                .collect();
            if writer & 1 == 1 {
                changes.reverse();
            }
            Ok(Work::Commits(vec![batch(changes)]))
        };
        (0..AT_ONCE).map(work).collect()
    };
    Ok(Race {
        before: tokens.iter().map(insert).collect(),
        rounds: tokens.chunks(2).map(writers).collect::<Result<_, _>>()?,
        outcome: Outcome::OneOrGivenUp,
    })
}

async fn touches_and_updates_at_once_are_all_kept<S: TokenStore>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    raced(bench, race_with_touches()?).await
}

/// One task changes a record again and again, and all others record uses of it. No task waits for
/// another.
fn race_with_touches() -> Result<Race, Seen> {
    let token = record(0)?;
    let mut current = token.clone();
    let mut batches = Vec::new();
    for days in 0..ROUND_OF_TOUCHES {
        current = changed(&current, |token| token.notified_days = Some(days));
        batches.push(batch([update(&current)]));
    }
    let last = i64::from(ROUND_OF_TOUCHES).saturating_mul(10);
    let uses = |first: i64| -> Result<Work, Seen> {
        let uses = (first..=last).step_by(10).map(|micros| touch(&token, micros, Some(v4(1))));
        Ok(Work::Touches(uses.collect::<Result<_, _>>()?))
    };
    let mut round = vec![uses(10)?, Work::Commits(batches)];
    for first in 2..i64::try_from(AT_ONCE)? {
        round.push(uses(first)?);
    }
    current.last_used = Some(LastUse::new(at(last)?, Some(v4(1))));
    Ok(Race {
        before: vec![insert(&token)],
        rounds: vec![round],
        outcome: Outcome::All(vec![current]),
    })
}

/// Returns an event of the token with this number, at this many microseconds. Its id is greater
/// than those of earlier calls.
fn event(number: u64, micros: i64, action: AuditAction) -> Result<AuditEvent, Seen> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    Ok(AuditEvent {
        id: EventId::new(id(COUNT.fetch_add(1, Ordering::Relaxed))?),
        at: at(micros)?,
        realm: Realm::default(),
        action,
        actor: ActorRef::System,
        token: id(number)?,
        owner: Some(OwnerId::new("owner")?),
        reason: None,
        address: None,
    })
}

fn events_alone(events: Vec<AuditEvent>) -> ChangeBatch {
    ChangeBatch { events, ..ChangeBatch::new() }
}

async fn logs<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
    realm: &Realm,
    expected: &[AuditEvent],
) -> Result<(), Seen> {
    bench.settle().await;
    let found = bench.store.events(&EventQuery::new(realm.clone()).oldest_first()).await?;
    ensure(found.corrupt.is_empty() && found.next.is_none() && found.events == expected, || {
        format!("the events were {found:?}, not {expected:?}")
    })
}

async fn an_event_comes_back_unchanged<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let actors = [
        ActorRef::System,
        ActorRef::Owner(OwnerId::new(&"é".repeat(127))?),
        ActorRef::Token { owner: OwnerId::new("o'wner \"%_\\")?, id: id(7)? },
        ActorRef::Erased,
    ];
    let addresses = [None, Some(v4(9)), Some(v6())];
    let reasons = Reason::ALL.map(Reason::as_str);
    let mut events = Vec::new();
    for ((number, action), actor) in (0..).zip(AuditAction::ALL).zip(actors.iter().cycle()) {
        let place = usize::try_from(number)?;
        events.push(AuditEvent {
            actor: actor.clone(),
            owner: if number & 1 == 0 { Some(OwnerId::new("owner")?) } else { None },
            reason: reasons.get(place).map(|reason| Cow::Borrowed(*reason)),
            address: addresses.iter().copied().cycle().nth(place).flatten(),
            ..event(u64::try_from(number)?, number, action)?
        });
    }
    let (first, rest) = events.split_at(1);
    let with_change = ChangeBatch { events: first.to_vec(), ..batch([insert(&record(0)?)]) };
    bench.store.commit(&with_change).await?;
    bench.store.commit(&events_alone(rest.to_vec())).await?;
    logs(bench, &Realm::default(), &events).await
}

async fn events_are_of_one_realm_token_owner_and_period<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    use AuditAction::{Generated, Renamed, Revoked};
    let elsewhere = Realm::new("elsewhere")?;
    let other = OwnerId::new("Owner")?;
    let one = event(1, 0, Generated)?;
    let two = event(2, 1, Generated)?;
    let three = event(1, 2, Renamed)?;
    let four = AuditEvent { owner: Some(other.clone()), ..event(1, 2, Revoked)? };
    let ownerless = AuditEvent { owner: None, ..event(2, 3, Revoked)? };
    let abroad = AuditEvent { realm: elsewhere.clone(), ..event(1, 3, Revoked)? };
    let all = [&one, &two, &three, &four, &ownerless, &abroad].map(Clone::clone);
    // Stored out of order of their time.
    bench.store.commit(&events_alone(all.iter().rev().cloned().collect())).await?;
    let home = Realm::default();
    logs(bench, &home, all.get(..5).unwrap_or_default()).await?;
    logs(bench, &elsewhere, std::slice::from_ref(&abroad)).await?;
    logs(bench, &Realm::new("nowhere")?, &[]).await?;
    let of = || EventQuery::new(home.clone()).oldest_first();
    let (token, nobody) = (id(1)?, OwnerId::new("nobody")?);
    let table = [
        (of().from(at(1)?), vec![&two, &three, &four, &ownerless]),
        (of().until(at(2)?), vec![&one, &two]),
        (of().from(at(1)?).until(at(3)?), vec![&two, &three, &four]),
        (of().from(at(2)?).until(at(2)?), vec![]),
        (of().from(at(4)?), vec![]),
        (of().token(token), vec![&one, &three, &four]),
        (of().token(token).limit(2), vec![&one, &three]),
        (of().token(token).from(at(1)?).limit(1), vec![&three]),
        (of().token(id(3)?), vec![]),
        (of().owner(other.clone()), vec![&four]),
        (of().owner(one.owner.clone().unwrap_or(nobody.clone())), vec![&one, &two, &three]),
        (of().owner(nobody), vec![]),
        (of().owner(other).token(id(2)?), vec![]),
        (EventQuery::new(elsewhere.clone()).token(token), vec![&abroad]),
    ];
    for (query, expected) in table {
        let newest = EventQuery { order: crate::store::EventOrder::NewestFirst, ..query.clone() };
        let found = bench.store.events(&query).await?;
        ensure(found.events.iter().eq(expected.iter().copied()), || {
            format!("the events of {query:?} were {found:?}, not {expected:?}")
        })?;
        if newest.limit >= 5 {
            let found = bench.store.events(&newest).await?;
            ensure(found.events.iter().eq(expected.iter().rev().copied()), || {
                format!("the events of {newest:?} were {found:?}, not {expected:?} from the end")
            })?;
        }
    }
    Ok(())
}

/// Ten events have one instant, one is before it and one is after it.
async fn pages_of_events_neither_repeat_nor_skip<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let mut expected = vec![event(1, -1, AuditAction::Generated)?];
    for number in 0..10 {
        expected.push(event(number, 0, AuditAction::Revoked)?);
    }
    expected.push(event(1, 1, AuditAction::Restored)?);
    // Stored out of order, half of them in one commit.
    let mut stored = expected.clone();
    stored.reverse();
    stored.rotate_left(5);
    let together = stored.split_off(6);
    bench.store.commit(&events_alone(together)).await?;
    for event in stored {
        bench.store.commit(&events_alone(vec![event])).await?;
    }
    bench.settle().await;
    for oldest_first in [true, false] {
        for limit in [1, 2, 3, 4, 12, 13] {
            let mut query = EventQuery::new(Realm::default()).limit(limit);
            if oldest_first {
                query = query.oldest_first();
            }
            let mut read = Vec::new();
            loop {
                let EventPage { events, next, .. } = bench.store.events(&query).await?;
                ensure(events.len() <= limit, || {
                    format!("{} events came, not {limit}", events.len())
                })?;
                read.extend(events);
                // The cursor goes through its text, as with a client.
                let Some(next) = next.filter(|_| read.len() <= expected.len()) else { break };
                let next =
                    next.to_string().parse().map_err(|error| Seen(format!("{next}: {error}")))?;
                query = query.after(Some(next));
            }
            ensure(read == expected, || {
                format!(
                    "the pages of {limit}, oldest first {oldest_first}, held {read:?}, not {expected:?}"
                )
            })?;
        }
        expected.reverse();
    }
    Ok(())
}

async fn an_event_is_stored_once<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let told = event(1, 0, AuditAction::Refused)?;
    let other = event(1, 0, AuditAction::Refused)?;
    bench.store.commit(&events_alone(vec![told.clone()])).await?;
    bench.store.commit(&events_alone(vec![told.clone(), other.clone()])).await?;
    logs(bench, &Realm::default(), &[told.clone(), other.clone()]).await?;
    exports(bench, &mut ExportCursor::start(), 10, &[told, other]).await
}

/// The number of times that an export is retried for events that are held back by another
/// transaction that is still open.
const EXPORT_TRIES: usize = 20_000;

/// Exports all events, this many at once.
async fn exports<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
    cursor: &mut ExportCursor,
    limit: usize,
    expected: &[AuditEvent],
) -> Result<(), Seen> {
    bench.settle().await;
    let mut read = Vec::new();
    for _ in 0..EXPORT_TRIES {
        let page = bench.store.export(cursor, limit).await?;
        ensure(page.events.len() <= limit, || {
            format!("{} events came, not {limit}", page.events.len())
        })?;
        *cursor = ExportCursor::new(page.next.as_str());
        let is_late = page.is_empty() && read.len() < expected.len();
        if !is_late && (page.is_empty() || read.len() > expected.len()) {
            break;
        }
        read.extend(page.events);
    }
    ensure(read == expected, || {
        format!("the export of {limit} at once held {read:?}, not {expected:?}")
    })
}

async fn an_export_holds_each_event_once_in_the_order_of_the_commits<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let elsewhere = Realm::new("elsewhere")?;
    // Later commits have earlier events, as with a flush.
    let mut commits = Vec::new();
    for (number, micros) in [9, 5, 5, -3, 7].into_iter().enumerate() {
        let realm = if number == 2 { elsewhere.clone() } else { Realm::default() };
        commits.push(AuditEvent { realm, ..event(1, micros, AuditAction::Refused)? });
    }
    let mut cursors = [1, 2, 3, 4].map(|limit| (limit, ExportCursor::start()));
    for (limit, cursor) in &mut cursors {
        exports(bench, cursor, *limit, &[]).await?;
    }
    for event in &commits {
        bench.store.commit(&events_alone(vec![event.clone()])).await?;
        for (limit, cursor) in &mut cursors {
            exports(bench, cursor, *limit, std::slice::from_ref(event)).await?;
        }
    }
    for limit in [1, 2, 3, 4] {
        exports(bench, &mut ExportCursor::start(), limit, &commits).await?;
    }
    // Purged events are not exported, and an existing cursor continues.
    ensure(bench.store.prune_events(at(6)?, 10).await? == 3, || "not all were pruned".into())?;
    let [(_, cursor), ..] = &mut cursors;
    exports(bench, cursor, 2, &[]).await?;
    let last = event(1, 0, AuditAction::Refused)?;
    bench.store.commit(&events_alone(vec![last.clone()])).await?;
    exports(bench, cursor, 2, std::slice::from_ref(&last)).await?;
    let left: Vec<AuditEvent> = commits
        .iter()
        .filter(|event| event.at >= at(6).unwrap_or(event.at))
        .cloned()
        .chain([last])
        .collect();
    exports(bench, &mut ExportCursor::start(), 2, &left).await
}

async fn a_cursor_of_another_store_is_refused<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let told = event(1, 0, AuditAction::Refused)?;
    bench.store.commit(&events_alone(vec![told.clone()])).await?;
    bench.settle().await;
    let mut own = ExportCursor::start();
    exports(bench, &mut own, 1, std::slice::from_ref(&told)).await?;
    let of_list = crate::store::EventCursor::of(&told).to_string();
    let texts = [
        "another",
        "another:1",
        "another:1:1",
        "\0",
        "é",
        &of_list,
        &format!("{own}0x"),
        &format!(" {own}"),
    ];
    for text in texts {
        let seen = bench.store.export(&ExportCursor::new(text), 1).await;
        ensure(matches!(seen, Err(StoreError::Cursor(_))), || {
            format!("the export after the cursor {text:?} gave {seen:?}, not `StoreError::Cursor`")
        })?;
    }
    Ok(())
}

async fn a_batch_may_hold_events_alone<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let told = event(1, 0, AuditAction::Refused)?;
    bench.store.commit(&events_alone(vec![told.clone()])).await?;
    logs(bench, &Realm::default(), &[told]).await
}

async fn a_conflict_leaves_no_event<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let token = record(1)?;
    let told = event(1, 0, AuditAction::Generated)?;
    let good = ChangeBatch { events: vec![told.clone()], ..batch([insert(&token)]) };
    bench.store.commit(&good).await?;
    let bad = [
        (insert(&token), Conflict::Id(token.id)),
        (update(&token), Conflict::Version(token.id)),
        (insert(&namesake(record(3)?, &token)), Conflict::Name(id(3)?)),
    ];
    for (change, conflict) in bad {
        let batch = ChangeBatch {
            events: vec![event(2, 1, AuditAction::Generated)?],
            erase: Some((Realm::default(), token.owner.clone())),
            ..batch([insert(&record(2)?), change])
        };
        conflicts(&bench.store.commit(&batch).await, conflict)?;
    }
    logs(bench, &Realm::default(), &[told]).await
}

async fn erasing_takes_out_every_trace<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let (owner, other) = (OwnerId::new("owner")?, OwnerId::new("other")?);
    let told =
        |micros: i64, realm: &Realm, of: &OwnerId, by: ActorRef| -> Result<AuditEvent, Seen> {
            Ok(AuditEvent {
                realm: realm.clone(),
                owner: Some(of.clone()),
                actor: by,
                address: Some(v4(1)),
                ..event(1, micros, AuditAction::Revoked)?
            })
        };
    let through = ActorRef::Token { owner: owner.clone(), id: id(1)? };
    let (home, elsewhere) = (Realm::default(), Realm::new("elsewhere")?);
    let events = vec![
        told(0, &home, &owner, ActorRef::Owner(owner.clone()))?,
        told(1, &home, &owner, ActorRef::System)?,
        told(2, &home, &other, through)?,
        told(3, &home, &other, ActorRef::Owner(other.clone()))?,
        told(4, &elsewhere, &owner, ActorRef::Owner(owner.clone()))?,
    ];
    bench.store.commit(&events_alone(events.clone())).await?;
    let last = told(5, &home, &owner, ActorRef::Owner(owner.clone()))?;
    let erasing = ChangeBatch {
        erase: Some((home.clone(), owner.clone())),
        ..events_alone(vec![last.clone()])
    };
    bench.store.commit(&erasing).await?;
    let mut expected = events;
    for event in &mut expected {
        event.erase(&home, &owner);
    }
    let abroad = expected.pop();
    expected.push(last);
    logs(bench, &home, &expected).await?;
    logs(bench, &elsewhere, &Vec::from_iter(abroad)).await
}

async fn events_are_pruned_oldest_first<S: TokenStore + AuditLog>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let mut events = Vec::new();
    for number in 0..5 {
        events.push(event(1, number, AuditAction::Refused)?);
    }
    bench.store.commit(&events_alone(events.clone())).await?;
    for (removed, left) in [(2, 2), (1, 3), (0, 3)] {
        let count = bench.store.prune_events(at(3)?, 2).await?;
        ensure(count == removed, || format!("{count} events were pruned, not {removed}"))?;
        logs(bench, &Realm::default(), events.get(left..).unwrap_or_default()).await?;
    }
    Ok(())
}

async fn states_are_counted_at_an_instant<S: TokenStore + TokenCounts>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let mut tokens = records(1..=5)?;
    for (number, token) in (1..).zip(&mut tokens) {
        token.facts = Facts {
            expires_at: if number < 4 { Some(at(1_000)?) } else { None },
            revocation: if number & 1 == 1 { Some(revocation(Reason::Owner, 0)?) } else { None },
            succession: None,
        };
    }
    bench.insert(&tokens).await?;
    bench.settle().await;
    for (now, active, revoked, expired) in [(999, 2, 3, 0), (1_000, 1, 1, 3), (1_001, 1, 1, 3)] {
        let counts = bench.store.count_by_state(at(now)?).await?;
        for (state, expected) in [
            (TokenState::Active, active),
            (TokenState::Revoked, revoked),
            (TokenState::Expired, expired),
        ] {
            let counted: u64 = counts
                .iter()
                .filter(|(counted, _)| *counted == state)
                .map(|(_, count)| count)
                .sum();
            ensure(counted == expected, || {
                format!("{counted} were counted as {state} at {now}, not {expected}")
            })?;
        }
    }
    Ok(())
}

async fn digests_are_counted_by_key<S: TokenStore + KeyChecks>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let mut tokens = records(1..=6)?;
    for (number, token) in (1..).zip(&mut tokens) {
        token.digest = match number {
            1 => StoredDigest::Foreign(ForeignDigest::new("sha256", &[1; 32])),
            2 | 3 => StoredDigest::Keyed(KeyedDigest::new(KeyId::new(u16::MAX), [1; 32])),
            _ => StoredDigest::Keyed(KeyedDigest::new(KeyId::new(0), [1; 32])),
        };
        match number {
            4 => token.realm = Realm::new("elsewhere")?,
            5 => token.facts.revocation = Some(revocation(Reason::Owner, 0)?),
            _ => {}
        }
    }
    bench.insert(&tokens).await?;
    bench.settle().await;
    let mut counts = bench.store.tokens_per_key().await?;
    counts.retain(|(_, count)| *count > 0);
    counts.sort_unstable();
    let expected = [(KeyId::new(0), 3), (KeyId::new(u16::MAX), 2)];
    ensure(counts == expected, || format!("the counts were {counts:?}, not {expected:?}"))
}

async fn the_first_key_check_stays<S: TokenStore + KeyChecks>(
    bench: &Bench<'_, S>,
) -> Result<(), Seen> {
    let check = |key, byte| KeyCheck::new(KeyId::new(key), [byte; 16]);
    let known = async || -> Result<Vec<(KeyId, [u8; 16])>, Seen> {
        bench.settle().await;
        let known = bench.store.key_checks().await?;
        let mut known: Vec<_> = known.iter().map(|check| (check.key(), *check.value())).collect();
        known.sort_unstable();
        Ok(known)
    };
    let found = known().await?;
    ensure(found.is_empty(), || format!("an empty store has the key checks {found:?}"))?;
    let value = [255, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14];
    let first = KeyCheck::new(KeyId::new(u16::MAX), value);
    bench.store.record_key_check(&first).await?;
    bench.store.record_key_check(&check(0, 0)).await?;
    bench.store.record_key_check(&first).await?;
    bench.store.record_key_check(&check(u16::MAX, 7)).await?;
    bench.store.record_key_check(&check(0, 8)).await?;
    // Keys stay known even if no record uses them.
    let token = record(1)?;
    bench.insert(std::slice::from_ref(&token)).await?;
    bench.commit([remove(&token)]).await?;
    let expected = [(KeyId::new(0), [0; 16]), (KeyId::new(u16::MAX), value)];
    let found = known().await?;
    ensure(found == expected, || format!("the key checks were {found:?}, not {expected:?}"))?;
    // One of many concurrent check values remains.
    let writers: Vec<KeyCheck> = (1..=8).map(|byte| check(1, byte)).collect();
    let writers = writers
        .iter()
        .map(|check| -> BoxedFuture<'_, _> { Box::pin(bench.store.record_key_check(check)) });
    for result in join_all(writers.collect()).await {
        result?;
    }
    let found = known().await?;
    ensure(found.len() == 3, || format!("the key checks were {found:?}, not one per key"))
}
