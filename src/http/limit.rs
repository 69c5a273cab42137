//! How often one actor makes tokens.

use crate::owner::{OwnerId, Realm};
use crate::service::Actor;
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tower::limit::RateLimit;
use tower::limit::rate::Rate;
use tower_service::Service;

/// Actors that are remembered at once, each of them one that the host knows. Where more make tokens at the same time, those that did
/// so longest ago are forgotten.
const MOST_ACTORS: usize = 10_000;

const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// A limit for each actor, by tower's [`RateLimit`].
pub(super) struct Limits {
    rate: Rate,
    per: Duration,
    actors: Mutex<HashMap<(Realm, Option<OwnerId>), Known>>,
}

struct Known {
    limit: RateLimit<Permit>,
    last: Duration,
}

/// What is limited: a service that says yes.
struct Permit;

impl Service<()> for Permit {
    type Response = ();
    type Error = Infallible;
    type Future = Ready<Result<(), Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        ready(Ok(()))
    }
}

impl Limits {
    /// What tower's limit would panic over is brought within bounds: no tokens, no time, and an end after that of all clocks.
    pub(super) fn new(most: u32, per: Duration) -> Self {
        let per = per.clamp(SHORTEST, LONGEST);
        Self { rate: Rate::new(most.max(1).into(), per), per, actors: Mutex::default() }
    }

    /// The seconds after which a new window begins at the latest.
    pub(super) fn seconds(&self) -> u64 {
        self.per.as_secs().saturating_add(u64::from(self.per.subsec_nanos() > 0))
    }

    /// Whether the actor may now; it counts as done. `now` is the time since some fixed moment.
    pub(super) fn admits(&self, actor: &Actor, now: Duration) -> bool {
        let mut actors = self.actors.lock().unwrap_or_else(PoisonError::into_inner);
        if actors.len() >= MOST_ACTORS {
            actors.retain(|_, known| now.saturating_sub(known.last) < self.per);
        }
        let key = actor.counts_as();
        if actors.len() >= MOST_ACTORS && !actors.contains_key(&key) {
            let oldest = actors.iter().min_by_key(|(_, known)| known.last).map(|(key, _)| key.clone());
            oldest.map(|key| actors.remove(&key));
        }
        let known = actors
            .entry(key)
            .or_insert_with(|| Known { limit: RateLimit::new(Permit, self.rate), last: now });
        match known.limit.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => {
                known.last = now;
                drop(known.limit.call(()));
                true
            }
            Poll::Pending => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actor(number: usize) -> Actor {
        Actor::session(OwnerId::new(&format!("user {number}")).unwrap())
    }

    #[tokio::test]
    async fn each_actor_has_its_own_limit_and_the_map_has_a_bound() {
        let limits = Limits::new(2, Duration::from_secs(60));
        let seconds = Duration::from_secs;
        for number in 0..MOST_ACTORS {
            assert!(limits.admits(&actor(number), seconds(0)));
        }
        assert!(limits.admits(&actor(7), seconds(1)));
        assert!(!limits.admits(&actor(7), seconds(1)), "twice is all");
        // Whoever comes then takes the place of one that came first.
        assert!(limits.admits(&actor(MOST_ACTORS), seconds(59)));
        assert_eq!(limits.actors.lock().unwrap().len(), MOST_ACTORS);
        assert!(!limits.admits(&actor(7), seconds(59)), "and not of one that came later");
        assert!(limits.admits(&actor(MOST_ACTORS + 1), seconds(60)));
        assert_eq!(limits.actors.lock().unwrap().len(), 3, "whose time is over are forgotten");
    }
}
