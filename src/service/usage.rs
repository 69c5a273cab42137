//! The writes that a verification defers: last uses, moves of digests to the primary key, and
//! audited rejections.
//!
//! They are kept in memory, up to a cap, and written in batches.

use super::error::{ManageError, RejectReason, Unavailable, store_error};
use super::manage::changed;
use super::verify::Peer;
use super::{TokenService, lock};
use crate::audit::{AuditAction, AuditEvent, EventId};
use crate::clock::{MAX_CLOCK_ERROR, at_micros};
use crate::owner::{Directory, OwnerId, Realm};
use crate::shard;
use crate::store::{Change, ChangeBatch, StoreError, StoredToken, TokenStore, Touch};
use crate::token::{ActorRef, KeyedDigest, LastUse, StoredDigest, Token, TokenId};
use chrono::{DateTime, Utc};
use std::borrow::Cow;
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::time::Duration;

/// The maximum number of flushes in a shutdown, for a host that still verifies.
const MAX_LAST_FLUSHES: usize = 64;
/// The maximum number of last uses in one call of [`TokenStore::touch`].
const TOUCH_BATCH: usize = 1_000;
/// The maximum number of digests that wait to be moved. Any other token moves at a later
/// verification.
const REDIGEST_CAP: usize = 10_000;
/// The maximum number of rejections that wait to be stored. Any others are counted as dropped.
const REFUSAL_CAP: usize = 10_000;
const CLOCK_ERROR_MICROS: i64 = MAX_CLOCK_ERROR.num_seconds() * 1_000_000;
/// The number of places of the filter, a power of two.
const FILTER: usize = 4_096;
const SHARDS: usize = 16;

pub(super) struct Usage {
    granularity_micros: i64,
    /// The uses already recorded in the current stretch of time. Each place has a hash of a token
    /// and a stretch. A busy token costs only the read of its place.
    filter: Box<[AtomicU64; FILTER]>,
    pending: [Mutex<HashMap<TokenId, LastUse>>; SHARDS],
    pending_len: AtomicUsize,
    cap: usize,
    redigests: Mutex<HashMap<TokenId, Redigest>>,
    refusals: Mutex<Vec<AuditEvent>>,
    refusals_audited: u32,
    dropped: AtomicU64,
    failed_flushes: AtomicU64,
    /// The number of running flushes.
    flushing: AtomicUsize,
    stopping: AtomicBool,
    /// Tasks that wait for a flush to end or for the service to stop.
    waiting: Mutex<Vec<Waker>>,
}

#[derive(Clone, Copy)]
struct Redigest {
    version: u64,
    digest: KeyedDigest,
}

/// Counters of the deferred writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageStats {
    /// The number of tokens whose last use waits to be written.
    pub pending: usize,
    /// The number of last uses and audited rejections dropped since the service was built, because
    /// too many waited.
    pub dropped: u64,
    /// The number of flushes that failed since the service was built. Their data is kept.
    pub failed_flushes: u64,
}

impl Usage {
    pub(super) fn new(granularity: Duration, cap: usize, refusals_audited: u32) -> Self {
        // Made on the heap, because it is large for a stack.
        let filter: Box<[AtomicU64]> =
            std::iter::repeat_with(AtomicU64::default).take(FILTER).collect();
        Self {
            // A granularity beyond the range of `i64` counts as the maximum.
            granularity_micros: granularity.as_micros().try_into().unwrap_or(i64::MAX),
            filter: filter.try_into().expect("the iterator has `FILTER` items"),
            pending: std::array::from_fn(|_| Mutex::default()),
            pending_len: AtomicUsize::new(0),
            cap,
            redigests: Mutex::default(),
            refusals: Mutex::default(),
            refusals_audited,
            dropped: AtomicU64::new(0),
            failed_flushes: AtomicU64::new(0),
            flushing: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            waiting: Mutex::default(),
        }
    }

    /// Creates an empty `Usage` with the same bounds.
    pub(super) fn anew(&self) -> Self {
        Self::new(
            Duration::from_micros(self.granularity_micros.unsigned_abs()),
            self.cap,
            self.refusals_audited,
        )
    }

    /// Records a use, unless the last use that the store knows is recent enough.
    ///
    /// `known_at` is that last use, in microseconds.
    #[inline]
    pub(super) fn record(&self, id: TokenId, known_at: Option<i64>, peer: Peer, now: i64) {
        // A known use somewhat later than now is recent enough, because a last use never moves
        // back. A use later than any right clock would record is not. One unsigned comparison
        // checks both bounds.
        let is_far = |known: i64| {
            let age = now.saturating_sub(known).saturating_add(CLOCK_ERROR_MICROS);
            age.cast_unsigned()
                >= self.granularity_micros.saturating_add(CLOCK_ERROR_MICROS).cast_unsigned()
        };
        if known_at.is_none_or(is_far) {
            self.note(id, peer, now);
        }
    }

    /// Records a use after [`record`](Self::record) found that the store knows no recent one.
    #[inline(never)]
    fn note(&self, id: TokenId, peer: Peer, now: i64) {
        let mark = self.mark(id, now);
        if mark.is_some_and(|(place, mark)| place.load(Ordering::Relaxed) == mark) {
            return;
        }
        let use_now = LastUse::new(at_micros(now), peer.address());
        if self.add(Touch::new(id, use_now)) {
            if let Some((place, mark)) = mark {
                place.store(mark, Ordering::Relaxed);
            }
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the filter's place for a token and the mark for the stretch of time that contains
    /// `now`.
    ///
    /// Two tokens with the same place and mark would hide one use of one of them, once. With 63
    /// bits of mark, this does not happen in practice.
    ///
    /// Returns `None` if the granularity is zero, so that every use is recorded.
    fn mark(&self, id: TokenId, now: i64) -> Option<(&AtomicU64, u64)> {
        let stretch = now.checked_div(self.granularity_micros)?.cast_unsigned();
        let [_, low] = id.words();
        // Never zero, because an unused place has zero.
        let mark = (low ^ stretch.wrapping_mul(0x9E37_79B9_7F4A_7C15)) | 1;
        Some((shard::of_hash(&self.filter, low), mark))
    }

    /// Adds a use to the pending ones. Returns false if there is no room.
    fn add(&self, touch: Touch) -> bool {
        let mut pending = self.shard(touch.id);
        if let Some(known) = pending.get_mut(&touch.id) {
            if touch.replaces(known.at) {
                *known = touch.last_use;
            }
            return true;
        }
        let has_room = self.pending_len.fetch_add(1, Ordering::AcqRel) < self.cap;
        if has_room {
            pending.insert(touch.id, touch.last_use);
        } else {
            self.pending_len.fetch_sub(1, Ordering::AcqRel);
        }
        has_room
    }

    fn shard(&self, id: TokenId) -> MutexGuard<'_, HashMap<TokenId, LastUse>> {
        let [_, low] = id.words();
        lock(shard::of_hash(&self.pending, low >> 16))
    }

    /// Takes up to one batch of pending uses, to be written at `now`.
    fn take(&self, now: DateTime<Utc>) -> Vec<Touch> {
        let mut touches = Vec::new();
        for shard in &self.pending {
            let mut pending = lock(shard);
            let room = TOUCH_BATCH.saturating_sub(touches.len());
            let some: Vec<TokenId> = pending.keys().copied().take(room).collect();
            for id in some {
                touches.extend(pending.remove(&id).map(|last_use| Touch::at(id, last_use, now)));
            }
        }
        self.pending_len.fetch_sub(touches.len(), Ordering::AcqRel);
        touches
    }

    pub(super) fn redigest(&self, id: TokenId, version: u64, digest: KeyedDigest) {
        let mut redigests = lock(&self.redigests);
        if redigests.len() < REDIGEST_CAP || redigests.contains_key(&id) {
            redigests.insert(id, Redigest { version, digest });
        }
    }

    /// Erases an owner from the rejections that wait to be stored.
    pub(super) fn erase(&self, realm: &Realm, owner: &OwnerId) {
        for event in lock(&self.refusals).iter_mut() {
            event.erase(realm, owner);
        }
    }

    /// Waits until `is_so` returns true.
    ///
    /// Code that changes what `is_so` reads must call [`wake`](Self::wake) afterwards.
    fn wait<'a>(&'a self, is_so: impl Fn(&Self) -> bool + 'a) -> impl Future<Output = ()> + 'a {
        poll_fn(move |context| {
            if is_so(self) {
                return Poll::Ready(());
            }
            let mut waiting = lock(&self.waiting);
            if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            drop(waiting);
            // `is_so` may have become true before the waker was registered.
            if is_so(self) { Poll::Ready(()) } else { Poll::Pending }
        })
    }

    fn wake(&self) {
        for waker in std::mem::take(&mut *lock(&self.waiting)) {
            waker.wake();
        }
    }

    fn stats(&self) -> UsageStats {
        UsageStats {
            pending: self.pending_len.load(Ordering::Acquire),
            dropped: self.dropped.load(Ordering::Relaxed),
            failed_flushes: self.failed_flushes.load(Ordering::Relaxed),
        }
    }
}

/// A running flush, which ends when this is dropped.
struct Flushing<'a>(&'a Usage);

impl<'a> Flushing<'a> {
    fn begin(usage: &'a Usage) -> Self {
        usage.flushing.fetch_add(1, Ordering::AcqRel);
        Self(usage)
    }
}

impl Drop for Flushing<'_> {
    fn drop(&mut self) {
        self.0.flushing.fetch_sub(1, Ordering::AcqRel);
        self.0.wake();
    }
}

/// A batch of last uses during its write.
///
/// Uses that the store did not acknowledge are put back, even if the flush is dropped half way.
struct InFlight<'a> {
    usage: &'a Usage,
    touches: Vec<Touch>,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        for touch in self.touches.drain(..) {
            if !self.usage.add(touch) {
                self.usage.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// A batch of audit events during its write.
///
/// Events that were not stored are put back, even if the flush is dropped half way.
struct RefusalsInFlight<'a> {
    usage: &'a Usage,
    events: Vec<AuditEvent>,
}

impl Drop for RefusalsInFlight<'_> {
    fn drop(&mut self) {
        let mut waiting = lock(&self.usage.refusals);
        let room = REFUSAL_CAP.saturating_sub(waiting.len());
        let lost = self.events.len().saturating_sub(room);
        let lost = u64::try_from(lost).expect("a usize has at most 64 bits");
        self.usage.dropped.fetch_add(lost, Ordering::Relaxed);
        waiting.extend(self.events.drain(..).take(room));
    }
}

impl<S: TokenStore, D: Directory> TokenService<S, D> {
    /// Writes the last uses, the moves of digests and the audited rejections that are pending.
    ///
    /// Last uses take one call of the store per 1,000. A write that fails is kept for the next
    /// flush.
    ///
    /// # Errors
    /// [`Unavailable`] if the store failed.
    pub async fn flush(&self) -> Result<(), Unavailable> {
        let flushing = Flushing::begin(&self.usage);
        let result = self.flush_all().await;
        drop(flushing);
        if result.is_err() {
            self.usage.failed_flushes.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    /// Writes all three kinds, even if one of them fails.
    async fn flush_all(&self) -> Result<(), Unavailable> {
        let uses = self.flush_uses().await;
        let redigests = self.flush_redigests().await;
        let refusals = self.flush_refusals().await;
        uses.and(redigests).and(refusals)
    }

    async fn flush_uses(&self) -> Result<(), Unavailable> {
        // Uses recorded meanwhile are left for the next flush, so this writes only as many batches
        // as wait now.
        let batches = self.usage.stats().pending.div_ceil(TOUCH_BATCH);
        for _ in 0..batches {
            let mut batch = InFlight { usage: &self.usage, touches: self.usage.take(self.now()) };
            if batch.touches.is_empty() {
                break;
            }
            self.store.touch(&batch.touches).await.map_err(Unavailable::Store)?;
            batch.touches.clear();
        }
        Ok(())
    }

    async fn flush_refusals(&self) -> Result<(), Unavailable> {
        let mut refusals = RefusalsInFlight { usage: &self.usage, events: Vec::new() };
        refusals.events.append(&mut lock(&self.usage.refusals));
        if refusals.events.is_empty() {
            return Ok(());
        }
        let batch = ChangeBatch { events: refusals.events.clone(), ..ChangeBatch::new() };
        // The sink was notified when the rejection happened. Events that may have been stored are
        // not stored again.
        let result = self.store.commit(&batch).await;
        if matches!(result, Ok(()) | Err(StoreError::OutcomeUnknown(_))) {
            refusals.events.clear();
        }
        result.map_err(Unavailable::Store)
    }

    async fn flush_redigests(&self) -> Result<(), Unavailable> {
        let waiting: Vec<(TokenId, Redigest)> =
            lock(&self.usage.redigests).iter().map(|(id, redigest)| (*id, *redigest)).collect();
        let mut corrupt = Ok(());
        for (id, redigest) in waiting {
            let done = match self.find_current(id).await {
                Ok(Some(token)) if token.version == redigest.version => {
                    self.move_digest(&token, redigest).await
                }
                // The token changed since, so the next verification moves its digest.
                Ok(_) => Ok(()),
                Err(unavailable) => Err(unavailable.into()),
            };
            match done {
                Err(ManageError::Unavailable(Unavailable::Store(
                    error @ StoreError::Corrupt(_),
                ))) => {
                    corrupt = Err(Unavailable::Store(error));
                }
                Err(ManageError::Unavailable(unavailable)) => return Err(unavailable),
                // A conflict means that the token changed meanwhile. If the outcome of the commit
                // is unknown, the next verification finds it.
                _ => {}
            }
            lock(&self.usage.redigests).remove(&id);
        }
        corrupt
    }

    async fn move_digest(&self, token: &Token, redigest: Redigest) -> Result<(), ManageError> {
        if self.keyring.is_wrong(redigest.digest.key()) {
            // The primary key is not the one that this store knows. The digest stays under its
            // present key until a verification finds the right primary key.
            return Ok(());
        }
        let after = changed(token, |token| {
            token.digest = StoredDigest::Keyed(redigest.digest);
        });
        let now = self.now();
        let event = AuditEvent {
            id: EventId::generate(&self.ids, now),
            at: now,
            realm: token.realm.clone(),
            action: AuditAction::Redigested,
            actor: ActorRef::System,
            token: token.id,
            owner: Some(token.owner.clone()),
            reason: None,
            address: None,
        };
        let batch = ChangeBatch::new().change(Change::Update(after)).event(event);
        self.commit(batch).await.map_err(|error| match error {
            StoreError::Conflict(_) => ManageError::Contended,
            error => store_error(error, token.id),
        })
    }

    /// Flushes every flush interval until [`shutdown`](Self::shutdown).
    ///
    /// This needs no particular runtime. Pass the sleep function of yours and spawn the future:
    ///
    /// ```
    /// # use patkit::{MemoryDirectory, MemoryStore, TokenService};
    /// # use std::sync::Arc;
    /// # fn spawn(tokens: &Arc<TokenService<MemoryStore, MemoryDirectory>>) {
    /// let flusher = tokens.clone();
    /// tokio::spawn(async move { flusher.run_flusher(tokio::time::sleep).await });
    /// # }
    /// ```
    ///
    /// A flush that fails is counted ([`usage`](Self::usage)) and retried after the next interval.
    pub async fn run_flusher<F: Future<Output = ()> + Send>(
        &self,
        sleep: impl Fn(Duration) -> F + Send,
    ) {
        let is_stopping = |usage: &Usage| usage.stopping.load(Ordering::Acquire);
        while !is_stopping(&self.usage) {
            let mut sleeping = pin!(sleep(self.flush_interval));
            let mut stopping = pin!(self.usage.wait(is_stopping));
            poll_fn(|context| match sleeping.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(()),
                Poll::Pending => stopping.as_mut().poll(context),
            })
            .await;
            // The shutdown does the last flush.
            if !is_stopping(&self.usage) {
                // A failure is counted, and its data is kept for the next flush.
                let _ = self.flush().await;
            }
        }
    }

    /// Ends [`run_flusher`](Self::run_flusher), waits for running flushes, and flushes the rest.
    ///
    /// # Errors
    /// [`Unavailable`] if the store failed. Unwritten data is lost when the process ends.
    pub async fn shutdown(&self) -> Result<(), Unavailable> {
        self.usage.stopping.store(true, Ordering::Release);
        self.usage.wake();
        let is_idle = |usage: &Usage| usage.flushing.load(Ordering::Acquire) == 0;
        // Flushes several times, because a flush that was running may have failed and put its data
        // back. The number of tries is bounded, because the host may still verify.
        for _ in 0..MAX_LAST_FLUSHES {
            self.usage.wait(is_idle).await;
            self.flush().await?;
            if is_idle(&self.usage)
                && self.usage.stats().pending == 0
                && lock(&self.usage.refusals).is_empty()
            {
                break;
            }
        }
        Ok(())
    }

    /// Returns the counters of the deferred writes, for the host's monitoring.
    pub fn usage(&self) -> UsageStats {
        self.usage.stats()
    }

    /// Returns whether to audit this rejection, at random.
    ///
    /// A client that could count rejections would otherwise use decoys to choose which of its own
    /// is audited. If the generator fails, the rejection is audited.
    fn is_sampled(&self, one_in: u32) -> bool {
        let Some(one_in) = NonZeroU32::new(one_in) else { return false };
        if one_in == NonZeroU32::MIN {
            return true;
        }
        let mut bytes = [0; 8];
        let drawn = self.random.fill(&mut bytes).map(|()| u64::from_ne_bytes(bytes));
        drawn.is_ok_and(|drawn| drawn % NonZeroU64::from(one_in) == 0) || drawn.is_err()
    }

    /// Audits the rejection of a known token, if it is sampled.
    pub(super) fn audit_refusal(
        &self,
        found: &StoredToken<'_>,
        reason: RejectReason,
        peer: Option<IpAddr>,
        now: i64,
    ) {
        if !self.is_sampled(self.usage.refusals_audited) {
            return;
        }
        let now = at_micros(now);
        let event = AuditEvent {
            id: EventId::generate(&self.ids, now),
            at: now,
            realm: found.realm().clone(),
            action: AuditAction::Refused,
            actor: match reason {
                RejectReason::WrongSecret => ActorRef::Unproven,
                _ => ActorRef::Token { owner: found.owner().clone(), id: found.id() },
            },
            token: found.id(),
            owner: Some(found.owner().clone()),
            reason: Some(Cow::Borrowed(reason.as_str())),
            address: peer,
        };
        self.tell(std::slice::from_ref(&event));
        drop(RefusalsInFlight { usage: &self.usage, events: vec![event] });
    }
}
