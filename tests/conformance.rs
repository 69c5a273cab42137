//! The conformance suite on the shipped store and on pointers to it. The suite can also fail: each
//! fault that is tried here is caught by the check that is named for it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unimplemented,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::too_many_lines
)]

use chrono::{DateTime, Utc};
use patkit::audit::AuditEvent;
use patkit::conformance::{Failure, Suite};
use patkit::owner::Realm;
use patkit::store::{
    AuditLog, Change, ChangeBatch, Conflict, CursorError, DynTokenStore, EventCursor, EventOrder,
    EventPage, EventQuery, ExportCursor, ExportPage, KeyChecks, ListBy, ListQuery, Page,
    TokenCounts, Touch,
};
use patkit::token::{ActorRef, Description, KeyCheck, KeyId, StoredDigest, TokenName};
use patkit::{MemoryStore, StoreError, Token, TokenId, TokenState, TokenStore};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[tokio::test]
async fn the_memory_store_is_right() {
    let suite = Suite::new(|| async { MemoryStore::new() });
    let report = suite.run().await.unwrap();
    assert!(report.passed.len() > 30);
    suite.run_audit_log().await.unwrap();
    suite.run_counts().await.unwrap();
    suite.run_key_checks().await.unwrap();
}

#[test]
fn the_memory_store_is_right_when_changes_race_on_threads() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let suite = Suite::new(|| async { MemoryStore::new() });
    let report = suite.run_races(|future| runtime.block_on(future)).unwrap();
    assert_eq!(report.passed.len(), 5);
}

#[tokio::test]
async fn pointers_to_a_store_are_right() {
    Suite::new(|| async { Arc::new(MemoryStore::new()) }).run().await.unwrap();
    Suite::new(|| async { Box::new(MemoryStore::new()) }).run().await.unwrap();
    Suite::new(|| async { &*Box::leak(Box::new(MemoryStore::new())) }).run().await.unwrap();
    Suite::new(|| async { Arc::new(MemoryStore::new()) as Arc<dyn DynTokenStore> })
        .run()
        .await
        .unwrap();
    Suite::new(|| async { Box::new(Arc::new(MemoryStore::new())) as Box<dyn DynTokenStore> })
        .run()
        .await
        .unwrap();
}

#[test]
fn the_futures_of_the_suite_and_of_every_store_can_be_sent() {
    fn can_be_sent<T: Send>(_: T) {}
    let suite = Suite::new(|| async { MemoryStore::new() });
    can_be_sent(suite.run());
    can_be_sent(suite.run_audit_log());
    can_be_sent(suite.run_counts());
    can_be_sent(suite.run_key_checks());
    let store: Arc<dyn DynTokenStore> = Arc::new(MemoryStore::new());
    can_be_sent(TokenStore::touch(&store, &[]));
    can_be_sent(store.commit(&ChangeBatch::new()));
    can_be_sent(store.list(&ListQuery::new(ListBy::Idle(DateTime::UNIX_EPOCH))));
    can_be_sent(store.list_ended(DateTime::UNIX_EPOCH, 1));
}

#[tokio::test]
async fn a_plain_store_that_shares_no_code_with_the_shipped_one_is_right() {
    let suite = Suite::new(|| async { Model::default() });
    suite.run().await.unwrap();
    suite.run_audit_log().await.unwrap();
    suite.run_counts().await.unwrap();
    suite.run_key_checks().await.unwrap();
}

#[tokio::test]
async fn every_broken_store_is_caught_by_the_check_named_for_it() {
    use Fault as F;
    let table = [
        (F::InsertOverwrites, "an_insert_never_overwrites"),
        (F::UpdateIgnoresVersions, "an_update_needs_the_version_before"),
        (F::UpdateAddsWhatIsMissing, "an_update_needs_the_version_before"),
        (F::UpdateSetsLastUse, "an_update_keeps_the_last_use"),
        (F::UpdateForgetsNull, "an_updated_record_comes_back_unchanged"),
        (F::RemoveIgnoresVersions, "a_remove_needs_its_version"),
        (F::RemoveIgnoresWhatIsMissing, "a_remove_needs_its_version"),
        (F::ConflictsAreAllOfVersions, "an_insert_never_overwrites"),
        (F::LastConflictIsTold, "the_first_conflict_is_told"),
        (F::HalfBatches, "a_batch_that_conflicts_leaves_nothing"),
        (F::OneChangePerBatch, "a_batch_is_done_whole"),
        (F::NoNames, "a_name_is_unique"),
        (F::NamesAsShown, "a_name_is_unique"),
        (F::NamesOfTheActiveAlone, "a_name_is_unique"),
        (F::NamesAcrossOwners, "a_name_is_one_owners_alone"),
        (F::NamesIgnoreKinds, "a_name_is_one_owners_alone"),
        (F::OwnersIgnoreCase, "a_name_is_one_owners_alone"),
        (F::NamesOfTheSucceeded, "a_name_is_free_again"),
        (F::NamesChangeByChange, "a_name_is_handed_on_within_a_batch"),
        (F::NamesBeforeTheBatch, "two_of_one_name_in_a_batch_conflict"),
        (F::NoOwnerKinds, "a_kind_fits_its_owner"),
        (F::OwnerKindsAtInsertAlone, "a_kind_fits_its_owner"),
        (F::TimesToTheSecond, "an_inserted_record_comes_back_unchanged"),
        (F::EmptyScopeIsInherit, "an_inserted_record_comes_back_unchanged"),
        (F::NamesAreFolded, "an_inserted_record_comes_back_unchanged"),
        (F::NamesAreJudged, "a_name_key_is_opaque"),
        (F::DescriptionsAreJudged, "a_name_key_is_opaque"),
        (F::KeysAreComputed, "a_name_key_is_opaque"),
        (F::CurrentIsOneChangeBehind, "a_change_is_current_at_once"),
        (F::CurrentFindsTheRemoved, "a_change_is_current_at_once"),
        (F::FindsTheNextId, "what_is_not_there_is_not_found"),
        (F::ListIgnoresRealms, "a_list_holds_what_it_should"),
        (F::ListIgnoresKinds, "a_list_holds_what_it_should"),
        (F::ListForgetsCreators, "a_list_holds_what_it_should"),
        (F::ListForgetsRestorers, "a_list_holds_what_it_should"),
        (F::ListForgetsAncestors, "a_list_holds_what_it_should"),
        (F::ListOfKeyHoldsForeign, "a_list_of_a_key_holds_its_digests"),
        (F::ListOfKeyForgetsRevoked, "a_list_of_a_key_holds_its_digests"),
        (F::OldestFirst, "a_list_is_newest_first"),
        (F::ByTimeAlone, "a_list_is_newest_first"),
        (F::PageDropsOne, "pages_are_exact"),
        (F::PageRepeatsOne, "pages_are_exact"),
        (F::PageTooLong, "pages_are_exact"),
        (F::NextAfterTheLast, "pages_are_exact"),
        (F::PagesByOffset, "pages_hold_while_records_come_and_go"),
        (F::ActiveAtItsExpiry, "only_active_ones_are_listed"),
        (F::RevokedLater, "only_active_ones_are_listed"),
        (F::IdleInclusive, "idle_ones_are_listed"),
        (F::IdleIgnoresRestoring, "idle_ones_are_listed"),
        (F::IdleBelievesTheFuture, "idle_ones_are_listed"),
        (F::TouchGoesBack, "a_touch_moves_forward_alone"),
        (F::TouchKeepsTheFuture, "a_touch_replaces_what_a_wrong_clock_noted"),
        (F::TouchGoesBackByADay, "a_touch_replaces_what_a_wrong_clock_noted"),
        (F::TouchTakesEqualTimes, "a_touch_moves_forward_alone"),
        (F::TouchMovesVersion, "a_touch_changes_nothing_else"),
        (F::TouchBringsBack, "a_touch_brings_nothing_back"),
        (F::TouchStopsAtUnknown, "a_touch_brings_nothing_back"),
        (F::TouchFewAtOnce, "a_thousand_touches_at_once"),
        (F::EndedExclusive, "ended_records_are_listed"),
        (F::EndedIgnoresRevoked, "ended_records_are_listed"),
        (F::EndedIgnoresLimit, "the_first_to_end_are_listed_first"),
        (F::EndedOldestFirst, "the_first_to_end_are_listed_first"),
        (F::CompareThenWait, "of_updates_at_once_one_wins"),
        (F::CompareThenWait, "of_inserts_of_one_name_at_once_one_wins"),
        (F::CompareThenWait, "of_inserts_of_one_id_at_once_one_wins"),
        (F::CompareThenWait, "of_batches_in_opposite_order_one_wins"),
        (F::TouchWritesBack, "touches_and_updates_at_once_are_all_kept"),
    ];
    let mut missed = Vec::new();
    for (fault, check) in table {
        let verdict = Suite::new(|| async move { Model::broken(fault) }).run().await;
        if !verdict.as_ref().is_err_and(|failure| failure.names(check)) {
            missed.push((fault, check, verdict.err()));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

#[tokio::test]
async fn every_broken_audit_log_is_caught_by_the_check_named_for_it() {
    use Fault as F;
    let table = [
        (F::EventsLost, "an_event_comes_back_unchanged"),
        (F::EventsWithoutAddress, "an_event_comes_back_unchanged"),
        (F::EventsNewestFirst, "an_event_comes_back_unchanged"),
        (F::EventsOldestFirst, "pages_of_events_neither_repeat_nor_skip"),
        (F::EventsOfAllRealms, "events_are_of_one_realm_token_owner_and_period"),
        (F::EventsOfAllOwners, "events_are_of_one_realm_token_owner_and_period"),
        (F::EventsOfAllTokens, "events_are_of_one_realm_token_owner_and_period"),
        (F::EventsFromExclusive, "events_are_of_one_realm_token_owner_and_period"),
        (F::EventsUntilInclusive, "events_are_of_one_realm_token_owner_and_period"),
        (F::EventsWithoutLimit, "events_are_of_one_realm_token_owner_and_period"),
        (F::EventsSkipAnInstant, "pages_of_events_neither_repeat_nor_skip"),
        (F::EventsRepeatTheLast, "pages_of_events_neither_repeat_nor_skip"),
        (F::EventsAsStored, "pages_of_events_neither_repeat_nor_skip"),
        (F::EventsTwice, "an_event_is_stored_once"),
        (F::ExportByTime, "an_export_holds_each_event_once_in_the_order_of_the_commits"),
        (F::ExportOfOneRealm, "an_export_holds_each_event_once_in_the_order_of_the_commits"),
        (F::ExportRepeatsTheLast, "an_export_holds_each_event_once_in_the_order_of_the_commits"),
        (F::ExportNumbersAgain, "an_export_holds_each_event_once_in_the_order_of_the_commits"),
        (F::ExportAfterAnything, "a_cursor_of_another_store_is_refused"),
        (F::EventsNeedAChange, "a_batch_may_hold_events_alone"),
        (F::EventsBeforeTheConflict, "a_conflict_leaves_no_event"),
        (F::EraseBeforeTheConflict, "a_conflict_leaves_no_event"),
        (F::EraseAllRealms, "erasing_takes_out_every_trace"),
        (F::EraseOwnersAlone, "erasing_takes_out_every_trace"),
        (F::EraseAddedToo, "erasing_takes_out_every_trace"),
        (F::PurgeEventsInclusive, "events_are_pruned_oldest_first"),
        (F::PurgeEventsWithoutLimit, "events_are_pruned_oldest_first"),
    ];
    for (fault, check) in table {
        let suite = Suite::new(|| async move { Model::broken(fault) });
        assert_caught(suite.run_audit_log().await, fault, check);
    }
}

#[tokio::test]
async fn every_broken_count_is_caught_by_the_check_named_for_it() {
    let table = [(Fault::CountsRevokedFirst, "states_are_counted_at_an_instant")];
    for (fault, check) in table {
        let suite = Suite::new(|| async move { Model::broken(fault) });
        assert_caught(suite.run_counts().await, fault, check);
    }
}

#[tokio::test]
async fn every_broken_key_check_is_caught_by_the_check_named_for_it() {
    let table = [
        (Fault::CountsForeignDigests, "digests_are_counted_by_key"),
        (Fault::CountsOneRealm, "digests_are_counted_by_key"),
        (Fault::CountsActiveKeys, "digests_are_counted_by_key"),
        (Fault::KeyChecksOverwrite, "the_first_key_check_stays"),
        (Fault::KeyChecksRepeat, "the_first_key_check_stays"),
        (Fault::KeyChecksCut, "the_first_key_check_stays"),
    ];
    for (fault, check) in table {
        let suite = Suite::new(|| async move { Model::broken(fault) });
        assert_caught(suite.run_key_checks().await, fault, check);
    }
}

#[test]
fn broken_stores_are_caught_by_races_on_threads() {
    let table = [
        (Fault::CompareThenWait, "of_updates_at_once_one_wins"),
        (Fault::CompareThenWait, "of_inserts_of_one_name_at_once_one_wins"),
        (Fault::CompareThenWait, "of_inserts_of_one_id_at_once_one_wins"),
        (Fault::TouchWritesBack, "touches_and_updates_at_once_are_all_kept"),
    ];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (fault, check) in table {
        // Runs up to 20 times, because the scheduler decides whether two threads meet in one run.
        let suite = Suite::new(|| async move { Model::broken(fault) });
        let run = || suite.run_races(|future| runtime.block_on(future));
        let verdict = (0..20).map(|_| run()).find(Result::is_err).unwrap_or_else(run);
        assert_caught(verdict, fault, check);
    }
}

#[tokio::test]
async fn a_store_whose_reads_lag_passes_where_it_says_by_how_much() {
    // Time passes only while the suite waits.
    let suite = |declared: u64| {
        let millis = Arc::new(AtomicU64::new(0));
        let clock = millis.clone();
        Suite::new(move || {
            let clock = clock.clone();
            async move { Lagging::new(clock) }
        })
        .staleness(Duration::from_millis(declared), move |duration| {
            millis.fetch_add(u64::try_from(duration.as_millis()).unwrap(), Ordering::SeqCst);
            std::future::ready(())
        })
    };
    suite(50).run().await.unwrap();
    suite(1_000).run().await.unwrap();
    let failure = suite(49).run().await.unwrap_err();
    assert!(failure.names("an_inserted_record_comes_back_unchanged"));
    let failure = suite(0).run().await.unwrap_err();
    assert!(failure.names("a_batch_is_done_whole"), "{failure}");
}

#[tokio::test]
async fn a_failure_says_which_check_failed_what_the_contract_says_and_what_was_seen() {
    let suite = Suite::new(|| async { Model::broken(Fault::TouchGoesBack) });
    let failure = suite.run().await.unwrap_err();
    assert!(
        failure.names("a_touch_moves_forward_alone") && !failure.names("a_list_is_newest_first")
    );
    let text = format!("{failure:?}");
    assert_eq!(text, failure.to_string());
    for part in ["a_touch_moves_forward_alone", "never back", "the field last_used of "] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

#[tokio::test]
async fn a_store_that_is_down_fails_with_what_it_said() {
    let failure = Suite::new(|| async { Model::broken(Fault::Down) }).run().await.unwrap_err();
    assert!(failure.to_string().contains("unplugged"), "{failure}");
}

fn assert_caught<T>(verdict: Result<T, Failure>, fault: Fault, check: &str) {
    let Err(failure) = verdict else {
        panic!("{fault:?} was not caught");
    };
    assert!(failure.names(check), "{check} did not catch {fault:?}: {failure}");
}

/// One way to break the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    InsertOverwrites,
    UpdateIgnoresVersions,
    UpdateAddsWhatIsMissing,
    UpdateSetsLastUse,
    UpdateForgetsNull,
    RemoveIgnoresVersions,
    RemoveIgnoresWhatIsMissing,
    ConflictsAreAllOfVersions,
    LastConflictIsTold,
    HalfBatches,
    OneChangePerBatch,
    NoNames,
    NamesAsShown,
    NamesOfTheActiveAlone,
    NamesAcrossOwners,
    NamesIgnoreKinds,
    OwnersIgnoreCase,
    NamesOfTheSucceeded,
    NamesChangeByChange,
    NamesBeforeTheBatch,
    NoOwnerKinds,
    OwnerKindsAtInsertAlone,
    TimesToTheSecond,
    EmptyScopeIsInherit,
    NamesAreFolded,
    NamesAreJudged,
    DescriptionsAreJudged,
    KeysAreComputed,
    CurrentIsOneChangeBehind,
    CurrentFindsTheRemoved,
    FindsTheNextId,
    ListIgnoresRealms,
    ListIgnoresKinds,
    ListForgetsCreators,
    ListForgetsRestorers,
    ListForgetsAncestors,
    OldestFirst,
    ByTimeAlone,
    PageDropsOne,
    PageRepeatsOne,
    PageTooLong,
    NextAfterTheLast,
    PagesByOffset,
    ActiveAtItsExpiry,
    RevokedLater,
    IdleInclusive,
    IdleIgnoresRestoring,
    IdleBelievesTheFuture,
    TouchGoesBack,
    TouchKeepsTheFuture,
    TouchGoesBackByADay,
    TouchTakesEqualTimes,
    TouchMovesVersion,
    TouchBringsBack,
    TouchStopsAtUnknown,
    TouchFewAtOnce,
    TouchWritesBack,
    EndedExclusive,
    EndedIgnoresRevoked,
    EndedIgnoresLimit,
    EndedOldestFirst,
    CompareThenWait,
    EventsLost,
    EventsWithoutAddress,
    EventsNewestFirst,
    EventsOldestFirst,
    EventsOfAllRealms,
    EventsOfAllOwners,
    EventsOfAllTokens,
    EventsFromExclusive,
    EventsUntilInclusive,
    EventsSkipAnInstant,
    EventsRepeatTheLast,
    EventsAsStored,
    EventsTwice,
    ExportByTime,
    ExportOfOneRealm,
    ExportRepeatsTheLast,
    ExportNumbersAgain,
    ExportAfterAnything,
    EventsWithoutLimit,
    EventsNeedAChange,
    EventsBeforeTheConflict,
    EraseBeforeTheConflict,
    EraseAllRealms,
    EraseOwnersAlone,
    EraseAddedToo,
    PurgeEventsInclusive,
    PurgeEventsWithoutLimit,
    CountsRevokedFirst,
    CountsForeignDigests,
    CountsOneRealm,
    CountsActiveKeys,
    KeyChecksOverwrite,
    KeyChecksRepeat,
    KeyChecksCut,
    ListOfKeyHoldsForeign,
    ListOfKeyForgetsRevoked,
    Down,
}

/// A plain implementation of the contract, with places to break it.
#[derive(Default)]
struct Model {
    fault: Option<Fault>,
    state: Mutex<State>,
}

#[derive(Default, Clone)]
struct State {
    records: BTreeMap<TokenId, Arc<Token>>,
    removed: BTreeMap<TokenId, Arc<Token>>,
    /// Events with their sequence numbers.
    events: Vec<(usize, AuditEvent)>,
    numbered: usize,
    key_checks: Vec<KeyCheck>,
    /// Records as they were before their last update.
    replaced: BTreeMap<TokenId, Arc<Token>>,
    offsets: BTreeMap<TokenId, usize>,
}

impl Model {
    fn broken(fault: Fault) -> Self {
        Self { fault: Some(fault), state: Mutex::default() }
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn up(&self) -> Result<(), StoreError> {
        if self.is(Fault::Down) { Err(StoreError::unavailable("unplugged")) } else { Ok(()) }
    }

    /// Returns the record as it is stored, which loses something under some faults.
    fn stored(&self, token: &Arc<Token>) -> Arc<Token> {
        let mut stored = Token::clone(token);
        if self.is(Fault::TimesToTheSecond) {
            stored.created_at = DateTime::from_timestamp(stored.created_at.timestamp(), 0).unwrap();
        }
        if self.is(Fault::EmptyScopeIsInherit)
            && stored.scope.as_set().is_some_and(patkit::PermissionSet::is_empty)
        {
            stored.scope = patkit::Scope::inherit();
        }
        if self.is(Fault::NamesAreFolded) {
            stored.name = TokenName::stored(&stored.name.as_str().replace('𝔄', "a"));
        }
        if self.is(Fault::NamesAreJudged) {
            stored.name = TokenName::new(stored.name.as_str()).unwrap_or(stored.name);
        }
        if self.is(Fault::DescriptionsAreJudged) {
            let judged = |text: Description| Description::new(text.as_str()).unwrap_or(Some(text));
            stored.description = stored.description.and_then(judged);
        }
        if self.is(Fault::KeysAreComputed) {
            stored.rename(stored.name.clone());
        }
        Arc::new(stored)
    }

    fn name_of(&self, token: &Token) -> Option<(String, String, String, String)> {
        let ended = token.facts.expires_at.is_some() || token.facts.revocation.is_some();
        if self.is(Fault::NoNames) || (self.is(Fault::NamesOfTheActiveAlone) && ended) {
            return None;
        }
        if token.facts.succession.is_some() && !self.is(Fault::NamesOfTheSucceeded) {
            return None;
        }
        let mut owner = token.owner.as_str().to_owned();
        if self.is(Fault::NamesAcrossOwners) {
            owner.clear();
        }
        if self.is(Fault::OwnersIgnoreCase) {
            owner.make_ascii_lowercase();
        }
        let kind = if self.is(Fault::NamesIgnoreKinds) { "" } else { token.kind.as_str() };
        let name = if self.is(Fault::NamesAsShown) {
            token.name.as_str().to_owned()
        } else {
            format!("{:?}", token.name_key.unwrap_or_else(|| token.name.key()))
        };
        Some((token.realm.as_str().to_owned(), owner, kind.to_owned(), name))
    }

    fn check_version(&self, state: &State, change: &Change) -> Result<(), Conflict> {
        let id = change.id();
        let version = state.records.get(&id).map(|token| token.version);
        let (fits, conflict) = match change {
            Change::Insert(_) => {
                (version.is_none() || self.is(Fault::InsertOverwrites), Conflict::Id(id))
            }
            Change::Update(token) => {
                let fits = match version {
                    None => self.is(Fault::UpdateAddsWhatIsMissing),
                    Some(_) if self.is(Fault::UpdateIgnoresVersions) => true,
                    Some(version) => version.checked_add(1) == Some(token.version),
                };
                (fits, Conflict::Version(id))
            }
            Change::Remove { version: expected, .. } => {
                let fits = match version {
                    None => self.is(Fault::RemoveIgnoresWhatIsMissing),
                    Some(version) => version == *expected || self.is(Fault::RemoveIgnoresVersions),
                };
                (fits, Conflict::Version(id))
            }
            _ => unimplemented!("another change"),
        };
        match (fits, self.is(Fault::ConflictsAreAllOfVersions)) {
            (true, _) => Ok(()),
            (false, true) => Err(Conflict::Version(id)),
            (false, false) => Err(conflict),
        }
    }

    fn check_names(&self, state: &State, token: &Token) -> Result<(), Conflict> {
        let name = self.name_of(token);
        let in_use = state.records.values().any(|other| {
            // These cheap comparisons save most of the time.
            (other.name_key == token.name_key || other.name == token.name)
                && other.id != token.id
                && name.is_some()
                && self.name_of(other) == name
        });
        if in_use { Err(Conflict::Name(token.id)) } else { Ok(()) }
    }

    fn check_kind(&self, change: &Change) -> Result<(), Conflict> {
        let token = match change {
            Change::Insert(token) => token,
            Change::Update(token) if !self.is(Fault::OwnerKindsAtInsertAlone) => token,
            _ => return Ok(()),
        };
        if token.owner_kind == token.kind.owner_kind() || self.is(Fault::NoOwnerKinds) {
            Ok(())
        } else {
            Err(Conflict::OwnerKind(token.id))
        }
    }

    fn check(&self, state: &State, batch: &ChangeBatch) -> Result<(), Conflict> {
        let mut after = state.clone();
        let mut conflicts: Vec<Conflict> = Vec::new();
        for change in &batch.changes {
            conflicts.extend(self.check_version(state, change).err());
            conflicts.extend(self.check_kind(change).err());
            if let Change::Insert(token) | Change::Update(token) = change {
                if self.is(Fault::NamesChangeByChange) {
                    conflicts.extend(self.check_names(&after, token).err());
                }
                if self.is(Fault::NamesBeforeTheBatch) {
                    let mut before = state.clone();
                    batch.changes.iter().for_each(|change| {
                        before.records.remove(&change.id());
                    });
                    conflicts.extend(self.check_names(&before, token).err());
                }
            }
            self.apply(&mut after, change);
        }
        if !self.is(Fault::NamesChangeByChange) && !self.is(Fault::NamesBeforeTheBatch) {
            for change in &batch.changes {
                if let Change::Insert(token) | Change::Update(token) = change {
                    conflicts.extend(self.check_names(&after, token).err());
                }
            }
        }
        if self.is(Fault::LastConflictIsTold) {
            conflicts.reverse();
        }
        conflicts.first().map_or(Ok(()), |conflict| Err(*conflict))
    }

    fn apply(&self, state: &mut State, change: &Change) {
        match change {
            Change::Insert(token) => {
                state.records.insert(token.id, self.stored(token));
            }
            Change::Update(token) => {
                let mut after = Token::clone(&self.stored(token));
                if let Some(stored) = state.records.get(&token.id) {
                    if !self.is(Fault::UpdateSetsLastUse) {
                        after.last_used = stored.last_used;
                    }
                    if self.is(Fault::UpdateForgetsNull) {
                        after.description =
                            after.description.or_else(|| stored.description.clone());
                    }
                }
                let before = state.records.insert(token.id, Arc::new(after));
                state.replaced.extend(before.map(|before| (token.id, before)));
            }
            Change::Remove { id, .. } => {
                if let Some(token) = state.records.remove(id) {
                    state.removed.insert(*id, token);
                }
            }
            _ => unimplemented!("another change"),
        }
    }

    fn fits(&self, query: &ListQuery, token: &Token) -> bool {
        let same_realm = |realm: &Realm| token.realm == *realm || self.is(Fault::ListIgnoresRealms);
        let any_kind = self.is(Fault::ListIgnoresKinds);
        let in_list = match &query.by {
            ListBy::Owner { realm, owner, kind } => {
                let same_owner = if self.is(Fault::OwnersIgnoreCase) {
                    token.owner.as_str().eq_ignore_ascii_case(owner.as_str())
                } else {
                    token.owner == *owner
                };
                same_realm(realm)
                    && same_owner
                    && kind.is_none_or(|kind| token.kind == kind || any_kind)
            }
            ListBy::Kind { realm, kind } => same_realm(realm) && (token.kind == *kind || any_kind),
            ListBy::Creator(creator) => {
                !self.is(Fault::ListForgetsCreators)
                    && matches!(&token.created_by, ActorRef::Token { id, .. } if id == creator)
            }
            ListBy::Restorer(restorer) => {
                !self.is(Fault::ListForgetsRestorers) && token.restored_by == Some(*restorer)
            }
            ListBy::Ancestor(ancestor) => {
                !self.is(Fault::ListForgetsAncestors) && token.ancestor == Some(*ancestor)
            }
            ListBy::Key(key) => match &token.digest {
                StoredDigest::Keyed(digest) => {
                    let is_revoked = token.facts.revocation.is_some();
                    digest.key() == *key && !(is_revoked && self.is(Fault::ListOfKeyForgetsRevoked))
                }
                _ => *key == KeyId::new(0) && self.is(Fault::ListOfKeyHoldsForeign),
            },
            ListBy::Idle(before) => {
                let last = match token.last_used {
                    Some(used) if self.is(Fault::IdleIgnoresRestoring) => used.at,
                    Some(used) => used.at.max(token.idle_from),
                    None => token.idle_from,
                };
                let is_idle = match query.active_at {
                    Some(now) if !self.is(Fault::IdleBelievesTheFuture) => {
                        let right =
                            |at: &DateTime<Utc>| *at <= now + patkit::clock::MAX_CLOCK_ERROR;
                        let used = token.last_used.map(|used| used.at).filter(right);
                        let from = Some(token.idle_from).filter(right);
                        from.max(used).is_none_or(|last| last < *before)
                    }
                    _ => last < *before,
                };
                is_idle || (last == *before && self.is(Fault::IdleInclusive))
            }
            _ => unimplemented!("another list"),
        };
        let active = query.active_at.is_none_or(|now| {
            let expired = match token.facts.expires_at {
                Some(at) if self.is(Fault::ActiveAtItsExpiry) => at < now,
                Some(at) => at <= now,
                None => false,
            };
            let revoked = match &token.facts.revocation {
                Some(revocation) if self.is(Fault::RevokedLater) => revocation.at <= now,
                revocation => revocation.is_some(),
            };
            !expired && !revoked
        });
        in_list && active
    }

    fn store_events(&self, state: &mut State, events: &[AuditEvent]) {
        for event in events {
            let is_new = state.events.iter().all(|(_, stored)| stored.id != event.id);
            if is_new || self.is(Fault::EventsTwice) {
                state.numbered += 1;
                let number = state.numbered;
                state.events.push((number, event.clone()));
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// Yields to other futures of the same task and to other threads.
async fn wait() {
    std::thread::yield_now();
    let mut waited = false;
    std::future::poll_fn(|context| {
        if waited {
            return std::task::Poll::Ready(());
        }
        waited = true;
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
    std::thread::sleep(Duration::from_micros(50));
}

impl TokenStore for Model {
    async fn find(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.up()?;
        let state = self.state();
        if self.is(Fault::FindsTheNextId) {
            return Ok(state.records.range(id..).next().map(|(_, token)| token.clone()));
        }
        Ok(state.records.get(&id).cloned())
    }

    async fn find_current(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        let from_before = {
            let state = self.state();
            match self.fault {
                Some(Fault::CurrentIsOneChangeBehind) => state.replaced.get(&id).cloned(),
                Some(Fault::CurrentFindsTheRemoved) if !state.records.contains_key(&id) => {
                    state.removed.get(&id).cloned()
                }
                _ => None,
            }
        };
        match from_before {
            Some(token) => Ok(Some(token)),
            None => self.find(id).await,
        }
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        self.up()?;
        let mut state = self.state();
        let all = state.records.values().rev();
        let mut tokens: Vec<Arc<Token>> =
            all.filter(|token| self.fits(query, token)).cloned().collect();
        if self.is(Fault::ByTimeAlone) {
            tokens.sort_by_key(|token| std::cmp::Reverse(token.id.created_at()));
            tokens
                .chunk_by_mut(|one, next| one.id.created_at() == next.id.created_at())
                .for_each(<[_]>::reverse);
        }
        if self.is(Fault::PagesByOffset) {
            let offset = query.after.and_then(|after| state.offsets.get(&after).copied());
            let offset = offset.unwrap_or(0).min(tokens.len());
            tokens.drain(..offset);
        } else if let Some(after) = query.after {
            tokens.retain(|token| {
                token.id < after || (token.id == after && self.is(Fault::PageRepeatsOne))
            });
        }
        if self.is(Fault::PageDropsOne) && query.after.is_some() && !tokens.is_empty() {
            tokens.remove(0);
        }
        let limit = query.limit + usize::from(self.is(Fault::PageTooLong));
        let more = tokens.len() > limit;
        tokens.truncate(limit);
        let last = tokens.last().map(|token| token.id);
        let next = last.filter(|_| more || self.is(Fault::NextAfterTheLast));
        if let Some(next) = next.filter(|_| self.is(Fault::PagesByOffset)) {
            let before = query.after.and_then(|after| state.offsets.get(&after).copied());
            let offset = before.unwrap_or(0) + tokens.len();
            state.offsets.insert(next, offset);
        }
        if self.is(Fault::OldestFirst) {
            tokens.reverse();
        }
        Ok(Page::new(tokens, Vec::new(), next))
    }

    async fn commit(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        self.up()?;
        let waits = self.is(Fault::CompareThenWait);
        let first = self.check(&self.state(), batch);
        if waits {
            first.map_err(StoreError::Conflict)?;
            wait().await;
        }
        let mut state = self.state();
        let verdict = if waits { Ok(()) } else { self.check(&state, batch) };
        if verdict.is_err() {
            if self.is(Fault::HalfBatches) {
                for change in &batch.changes {
                    if self.check(&state, &ChangeBatch::new().change(change.clone())).is_err() {
                        break;
                    }
                    self.apply(&mut state, change);
                }
            }
            if self.is(Fault::EventsBeforeTheConflict) {
                self.store_events(&mut state, &batch.events);
            }
            if !self.is(Fault::EraseBeforeTheConflict) {
                return verdict.map_err(StoreError::Conflict);
            }
        }
        if self.is(Fault::EraseAddedToo) {
            self.store_events(&mut state, &batch.events);
        }
        if let Some((realm, owner)) = &batch.erase {
            for (_, event) in &mut state.events {
                let realm = if self.is(Fault::EraseAllRealms) {
                    event.realm.clone()
                } else {
                    realm.clone()
                };
                if self.is(Fault::EraseOwnersAlone) {
                    if event.realm == realm && event.owner.as_ref() == Some(owner) {
                        event.owner = None;
                    }
                } else {
                    event.erase(&realm, owner);
                }
            }
        }
        verdict.map_err(StoreError::Conflict)?;
        let most = if self.is(Fault::OneChangePerBatch) { 1 } else { usize::MAX };
        for change in batch.changes.iter().take(most) {
            self.apply(&mut state, change);
        }
        let lost = self.is(Fault::EventsLost)
            || self.is(Fault::EraseAddedToo)
            || (self.is(Fault::EventsNeedAChange) && batch.changes.is_empty());
        if !lost {
            self.store_events(&mut state, &batch.events);
        }
        Ok(())
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        self.up()?;
        let most = if self.is(Fault::TouchFewAtOnce) { 500 } else { usize::MAX };
        for touch in uses.iter().take(most) {
            let mut found = self.state().records.get(&touch.id).cloned();
            if found.is_none() && self.is(Fault::TouchStopsAtUnknown) {
                return Ok(());
            }
            if found.is_none() && self.is(Fault::TouchBringsBack) {
                found = self.state().removed.get(&touch.id).cloned();
            }
            if self.is(Fault::TouchWritesBack) {
                wait().await;
            }
            let mut state = self.state();
            if !self.is(Fault::TouchWritesBack) && !self.is(Fault::TouchBringsBack) {
                found = state.records.get(&touch.id).cloned();
            }
            let Some(token) = found else { continue };
            let newer = token.last_used.is_none_or(|known| {
                (match self.fault {
                    Some(Fault::TouchKeepsTheFuture) => known.at < touch.last_use.at,
                    Some(Fault::TouchGoesBackByADay) => {
                        Touch::new(touch.id, touch.last_use).replaces(known.at)
                    }
                    _ => touch.replaces(known.at),
                }) || (known.at == touch.last_use.at && self.is(Fault::TouchTakesEqualTimes))
                    || self.is(Fault::TouchGoesBack)
            });
            if newer {
                let mut after = Token::clone(&token);
                after.last_used = Some(touch.last_use);
                after.version += u64::from(self.is(Fault::TouchMovesVersion));
                state.records.insert(touch.id, Arc::new(after));
            }
        }
        Ok(())
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        self.up()?;
        let state = self.state();
        let is_over =
            |at: &DateTime<Utc>| *at < before || (*at == before && !self.is(Fault::EndedExclusive));
        let mut ended: Vec<(DateTime<Utc>, Arc<Token>)> = Vec::new();
        for token in state.records.values() {
            let revocation = token.facts.revocation.as_ref().map(|fact| fact.at);
            let revoked_at = revocation.filter(|_| !self.is(Fault::EndedIgnoresRevoked));
            let ends = [token.facts.expires_at, revoked_at].into_iter().flatten().filter(is_over);
            ended.extend(ends.min().map(|at| (at, token.clone())));
        }
        // The map is ordered by id.
        if !self.is(Fault::EndedOldestFirst) {
            ended.sort_by_key(|(at, _)| *at);
        }
        if !self.is(Fault::EndedIgnoresLimit) {
            ended.truncate(limit);
        }
        Ok(Page::new(ended.into_iter().map(|(_, token)| token).collect(), Vec::new(), None))
    }
}

impl AuditLog for Model {
    async fn events(&self, query: &EventQuery) -> Result<EventPage, StoreError> {
        let mut wanted = query.clone();
        if self.is(Fault::EventsOfAllOwners) {
            wanted.owner = None;
        }
        if self.is(Fault::EventsOfAllTokens) {
            wanted.token = None;
        }
        if self.is(Fault::EventsFromExclusive) {
            wanted.from = wanted.from.map(|from| from + chrono::TimeDelta::microseconds(1));
        }
        if self.is(Fault::EventsUntilInclusive) {
            wanted.until = wanted.until.map(|until| until + chrono::TimeDelta::microseconds(1));
        }
        let after = wanted.after.take();
        let mut events: Vec<AuditEvent> =
            self.state().events.iter().map(|(_, event)| event.clone()).collect();
        events.retain(|event| {
            let elsewhere = AuditEvent { realm: wanted.realm.clone(), ..event.clone() };
            wanted.holds(if self.is(Fault::EventsOfAllRealms) { &elsewhere } else { event })
        });
        let newest_first = query.order == EventOrder::NewestFirst;
        if self.is(Fault::EventsAsStored) {
            events.sort_by_key(|event| event.at);
        } else {
            events.sort_by_key(EventCursor::of);
        }
        if (newest_first && !self.is(Fault::EventsOldestFirst)) || self.is(Fault::EventsNewestFirst)
        {
            events.reverse();
        }
        // The page starts after the last event of the page before.
        if let Some(after) = after {
            let is_before = |event: &AuditEvent| {
                let place = EventCursor::of(event);
                let order = if self.is(Fault::EventsSkipAnInstant) {
                    place.micros().cmp(&after.micros())
                } else {
                    place.cmp(&after)
                };
                let order = if newest_first { order.reverse() } else { order };
                order.is_lt() || (order.is_eq() && !self.is(Fault::EventsRepeatTheLast))
            };
            let begin = events.iter().rposition(is_before).map_or(0, |place| place + 1);
            events.drain(..begin);
        }
        let is_last = events.len() <= query.limit;
        if !self.is(Fault::EventsWithoutLimit) {
            events.truncate(query.limit);
        }
        if self.is(Fault::EventsWithoutAddress) {
            for event in &mut events {
                event.address = None;
            }
        }
        let next = events.last().filter(|_| !is_last).map(EventCursor::of);
        Ok(EventPage::new(events, Vec::new(), next))
    }

    async fn export(&self, after: &ExportCursor, limit: usize) -> Result<ExportPage, StoreError> {
        let state = self.state();
        let number = match after.as_str() {
            "" => 0,
            text => match text.strip_prefix("model ").map(str::parse) {
                Some(Ok(number)) => number,
                _ if self.is(Fault::ExportAfterAnything) => 0,
                _ => return Err(CursorError::Malformed.into()),
            },
        };
        let mut events = state.events.clone();
        if self.is(Fault::ExportByTime) {
            events.sort_by_key(|(_, event)| EventCursor::of(event));
            events.iter_mut().zip(1..).for_each(|(event, number)| event.0 = number);
        }
        events.retain(|(_, event)| {
            !self.is(Fault::ExportOfOneRealm) || event.realm == Realm::default()
        });
        let first = if self.is(Fault::ExportRepeatsTheLast) { number.max(1) } else { number + 1 };
        events.retain(|(each, _)| *each >= first);
        events.truncate(limit);
        let last = events.last().map_or(number, |(number, _)| *number);
        let next = ExportCursor::new(&format!("model {last}"));
        Ok(ExportPage::new(events.into_iter().map(|(_, event)| event).collect(), Vec::new(), next))
    }

    async fn prune_events(&self, before: DateTime<Utc>, limit: usize) -> Result<usize, StoreError> {
        let mut state = self.state();
        let limit = if self.is(Fault::PurgeEventsWithoutLimit) { usize::MAX } else { limit };
        let inclusive = self.is(Fault::PurgeEventsInclusive);
        let mut old: Vec<AuditEvent> =
            state.events.iter().map(|(_, event)| event.clone()).collect();
        old.retain(|event| event.at < before || (event.at == before && inclusive));
        old.sort_by_key(EventCursor::of);
        old.truncate(limit);
        state.events.retain(|(_, event)| !old.contains(event));
        if self.is(Fault::ExportNumbersAgain) {
            state.numbered = state.events.len();
        }
        Ok(old.len())
    }
}

impl TokenCounts for Model {
    async fn count_by_state(
        &self,
        now: DateTime<Utc>,
    ) -> Result<Vec<(TokenState, u64)>, StoreError> {
        let state = self.state();
        let state_of = |token: &Token| match &token.facts.revocation {
            Some(_) if self.is(Fault::CountsRevokedFirst) => TokenState::Revoked,
            _ => token.state(now),
        };
        // States without a record are omitted, which the contract allows.
        let mut counts: Vec<(TokenState, u64)> = Vec::new();
        for token in state.records.values() {
            let found = state_of(token);
            match counts.iter_mut().find(|(state, _)| *state == found) {
                Some((_, count)) => *count += 1,
                None => counts.push((found, 1)),
            }
        }
        Ok(counts)
    }
}

impl KeyChecks for Model {
    async fn key_checks(&self) -> Result<Vec<KeyCheck>, StoreError> {
        Ok(self.state().key_checks.clone())
    }

    async fn record_key_check(&self, check: &KeyCheck) -> Result<(), StoreError> {
        let mut state = self.state();
        let place = state.key_checks.iter().position(|known| known.key() == check.key());
        match place {
            Some(place) if self.is(Fault::KeyChecksOverwrite) => {
                state.key_checks.remove(place);
                state.key_checks.push(*check);
            }
            Some(_) if !self.is(Fault::KeyChecksRepeat) => {}
            _ if self.is(Fault::KeyChecksCut) => {
                let mut value = *check.value();
                value[15] = 0;
                state.key_checks.push(KeyCheck::new(check.key(), value));
            }
            _ => state.key_checks.push(*check),
        }
        Ok(())
    }

    async fn tokens_per_key(&self) -> Result<Vec<(KeyId, u64)>, StoreError> {
        let state = self.state();
        let mut counts: BTreeMap<KeyId, u64> = BTreeMap::new();
        for token in state.records.values() {
            let key = match &token.digest {
                StoredDigest::Keyed(digest) => digest.key(),
                _ if self.is(Fault::CountsForeignDigests) => KeyId::new(0),
                _ => continue,
            };
            let is_active = token.facts.revocation.is_none();
            if (self.is(Fault::CountsOneRealm) && token.realm != Realm::default())
                || (self.is(Fault::CountsActiveKeys) && !is_active)
            {
                continue;
            }
            *counts.entry(key).or_default() += 1;
        }
        Ok(counts.into_iter().collect())
    }
}

/// A store whose reads show the state of 50 ms ago, by a clock of its own.
struct Lagging {
    inner: Model,
    millis: Arc<AtomicU64>,
    /// The state before each change, with the time of the change.
    past: Mutex<Vec<(u64, State)>>,
}

impl Lagging {
    fn new(millis: Arc<AtomicU64>) -> Self {
        Self { inner: Model::default(), millis, past: Mutex::default() }
    }

    fn remember(&self) {
        let before = self.inner.state().clone();
        self.past.lock().unwrap().push((self.millis.load(Ordering::SeqCst), before));
    }

    fn seen(&self) -> Model {
        let now = self.millis.load(Ordering::SeqCst);
        let past = self.past.lock().unwrap();
        let hidden = past.iter().find(|(at, _)| now < at + 50);
        let state = hidden.map_or_else(|| self.inner.state().clone(), |(_, before)| before.clone());
        Model { fault: None, state: Mutex::new(state) }
    }
}

impl TokenStore for Lagging {
    async fn find(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        let found = self.seen().find(id).await?;
        Ok(found)
    }

    async fn find_current(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.inner.find(id).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        self.seen().list(query).await
    }

    async fn commit(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        self.remember();
        self.inner.commit(batch).await
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        self.remember();
        self.inner.touch(uses).await
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        self.remember();
        self.inner.list_ended(before, limit).await
    }
}
