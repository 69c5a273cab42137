//! Follows changes that others make, by notifications if they provably arrive and otherwise by
//! polling.

use super::CachedStore;
use crate::store::{ChangeFeed, Feed, FeedEvent, TokenStore};
use std::future::poll_fn;
use std::hash::BuildHasher;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

/// The time between two proofs that notifications arrive.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// The time limit for a proof, a poll, and the start of listening or polling.
const PATIENCE: Duration = Duration::from_secs(5);
/// The time of polling before listening is tried again, if notifications did not arrive.
const LISTEN_AGAIN: Duration = Duration::from_secs(60);

/// Follows the changes of a cache's store.
pub(super) struct Follower<'a, S: TokenStore, Z> {
    cache: &'a CachedStore<S>,
    interval: Duration,
    sleep: Z,
    /// Counts the probes, so that no two have the same nonce.
    probes: AtomicU64,
}

/// The result of an attempt to listen.
enum Listening<F> {
    /// A notification of our own arrived.
    Proven(F),
    /// The store has no notifications.
    NoChannel,
    /// A notification of our own was sent and did not arrive.
    Unheard,
    /// The store is unavailable.
    Failed,
}

/// The result of a probe.
enum Proof {
    Heard,
    Unheard,
    Failed,
}

impl<'a, S, Z, F> Follower<'a, S, Z>
where
    S: TokenStore + ChangeFeed,
    Z: Fn(Duration) -> F + Send + Sync,
    F: Future<Output = ()> + Send,
{
    pub(super) fn new(cache: &'a CachedStore<S>, interval: Duration, sleep: Z) -> Self {
        Self { cache, interval, sleep, probes: AtomicU64::new(0) }
    }

    /// Follows until following fails, then waits for the interval.
    pub(super) async fn follow(&self) {
        match self.listen().await {
            Listening::Proven(feed) => self.hear(feed).await,
            Listening::NoChannel => self.poll(false).await,
            Listening::Unheard => {
                report_unheard();
                // Polling goes on while listening is tried again.
                if let Some(feed) = before(self.listen_again(), self.poll(true)).await {
                    self.hear(feed).await;
                }
            }
            Listening::Failed => {}
        }
        self.cache.stop_following();
        (self.sleep)(self.interval).await;
    }

    async fn listen(&self) -> Listening<S::Feed> {
        let mut feed = match before(self.cache.store.listen(), (self.sleep)(PATIENCE)).await {
            Some(Ok(Some(feed))) => feed,
            Some(Ok(None)) => return Listening::NoChannel,
            Some(Err(_)) | None => return Listening::Failed,
        };
        match self.prove(&mut feed).await {
            Proof::Heard => Listening::Proven(feed),
            Proof::Unheard => Listening::Unheard,
            Proof::Failed => Listening::Failed,
        }
    }

    async fn listen_again(&self) -> S::Feed {
        loop {
            (self.sleep)(LISTEN_AGAIN).await;
            if let Listening::Proven(feed) = self.listen().await {
                return feed;
            }
        }
    }

    /// Listens to a feed that was just proven, until the feed ends or a proof fails.
    async fn hear(&self, mut feed: S::Feed) {
        // The feed does not deliver changes made before it started to listen.
        self.cache.begin_following(true);
        loop {
            if before(self.hear_until(&mut feed, None), (self.sleep)(PROBE_EVERY)).await.is_some() {
                return;
            }
            if !matches!(self.prove(&mut feed).await, Proof::Heard) {
                return;
            }
        }
    }

    /// Sends a notification and waits until the feed returns it.
    ///
    /// Changes that the feed delivers meanwhile are applied.
    async fn prove(&self, feed: &mut S::Feed) -> Proof {
        // Random, because other nodes probe on the same channel.
        let nonce =
            self.cache.lookup.epochs.hasher.hash_one(self.probes.fetch_add(1, Ordering::Relaxed));
        let mut is_sent = false;
        let heard = {
            let mut sending = pin!(self.cache.store.probe(nonce));
            let mut hearing = pin!(self.hear_until(feed, Some(nonce)));
            let both = poll_fn(|context| {
                if !is_sent {
                    match sending.as_mut().poll(context) {
                        Poll::Ready(Ok(())) => is_sent = true,
                        Poll::Ready(Err(_)) => return Poll::Ready(None),
                        Poll::Pending => {}
                    }
                }
                hearing.as_mut().poll(context)
            });
            before(both, (self.sleep)(PATIENCE)).await
        };
        match heard {
            Some(Some(())) => Proof::Heard,
            None if is_sent => Proof::Unheard,
            Some(None) | None => Proof::Failed,
        }
    }

    /// Applies the feed's changes until the feed returns this nonce. Returns `None` if the feed
    /// ends.
    async fn hear_until(&self, feed: &mut S::Feed, nonce: Option<u64>) -> Option<()> {
        loop {
            let event = feed.next().await.ok()?;
            if matches!(event, FeedEvent::Proven(heard) if Some(heard) == nonce) {
                return Some(());
            }
            self.cache.hear(event);
        }
    }

    /// Polls until the store fails. `instead` says that the store's notifications do not arrive.
    async fn poll(&self, instead: bool) {
        let Some(Ok(mut feed)) = before(self.cache.store.poll(), (self.sleep)(PATIENCE)).await
        else {
            return;
        };
        self.cache.begin_following(!instead);
        while let Some(Ok(event)) = before(feed.next(), (self.sleep)(PATIENCE)).await {
            self.cache.hear(event);
            (self.sleep)(self.interval).await;
        }
    }
}

/// Warns the operator, once for each attempt that finds notifications missing.
fn report_unheard() {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        target: "patkit::cache",
        "notifications of the token store do not arrive, as behind a pooler in transaction mode; changes are \
         polled instead. Declare the pooler with `.pooler(true)`, or connect the pool to the database itself"
    );
}

/// Returns the output of `future`, or `None` if `end` completes first.
async fn before<T>(
    future: impl Future<Output = T> + Send,
    end: impl Future<Output = ()> + Send,
) -> Option<T> {
    let (mut future, mut end) = (pin!(future), pin!(end));
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => end.as_mut().poll(context).map(|()| None),
    })
    .await
}
