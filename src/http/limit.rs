//! How many tokens one credential makes in a time.

use crate::service::ActorCredential;
use http::HeaderValue;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Credentials that are remembered at once; each of them may make tokens. If there are more, the one whose window began first is
/// forgotten.
const MOST_CREDENTIALS: usize = 10_000;

const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// A limit for each credential: so many tokens in a window of time, which begins with the first of them.
pub(super) struct Limits {
    most: u32,
    per: Duration,
    windows: Mutex<HashMap<ActorCredential, Window>>,
}

#[derive(Clone, Copy)]
struct Window {
    start: Duration,
    used: u32,
}

/// What is left of a limit after a request was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quota {
    pub(super) is_admitted: bool,
    most: u32,
    left: u32,
    window_seconds: u64,
    reset_seconds: u64,
}

impl Limits {
    /// Brings what is out of bounds to the nearer bound: 1 token or more, 1 millisecond to 365 days.
    pub(super) fn new(most: u32, per: Duration) -> Self {
        Self { most: most.max(1), per: per.clamp(SHORTEST, LONGEST), windows: Mutex::default() }
    }

    /// Counts a token that this credential wants to make. `now` is the time since some fixed moment.
    pub(super) fn count(&self, credential: ActorCredential, now: Duration) -> Quota {
        let is_over = |window: &Window| now.saturating_sub(window.start) >= self.per;
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= MOST_CREDENTIALS && !windows.contains_key(&credential) {
            windows.retain(|_, window| !is_over(window));
            if windows.len() >= MOST_CREDENTIALS {
                let oldest =
                    windows.iter().min_by_key(|(_, window)| window.start).map(|(key, _)| key.clone());
                oldest.map(|key| windows.remove(&key));
            }
        }
        let fresh = Window { start: now, used: 0 };
        let window = windows.entry(credential).or_insert(fresh);
        if is_over(window) {
            *window = fresh;
        }
        let is_admitted = window.used < self.most;
        window.used = window.used.saturating_add(u32::from(is_admitted));
        let reset = window.start.saturating_add(self.per).saturating_sub(now);
        Quota {
            is_admitted,
            most: self.most,
            left: self.most.saturating_sub(window.used),
            window_seconds: whole_seconds(self.per),
            reset_seconds: whole_seconds(reset),
        }
    }
}

impl Quota {
    /// Returns the seconds until a new window has begun.
    pub(super) const fn retry_after(self) -> u64 {
        self.reset_seconds
    }

    /// Returns `RateLimit-Policy` and `RateLimit`, as revision 09 of draft-ietf-httpapi-ratelimit-headers defines them.
    pub(super) fn fields(self) -> Option<[(&'static str, HeaderValue); 2]> {
        let Self { most, left, window_seconds, reset_seconds, .. } = self;
        let policy = HeaderValue::try_from(format!("\"tokens\";q={most};w={window_seconds}")).ok()?;
        let limit = HeaderValue::try_from(format!("\"tokens\";r={left};t={reset_seconds}")).ok()?;
        Some([("ratelimit-policy", policy), ("ratelimit", limit)])
    }
}

/// Rounded up, so that whoever waits as long finds a new window.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owner::OwnerId;
    use crate::service::Actor;

    fn credential(number: usize) -> ActorCredential {
        Actor::session(OwnerId::new(&format!("user {number}")).unwrap()).credential()
    }

    #[test]
    fn each_credential_has_its_own_window_and_the_map_has_a_bound() {
        let limits = Limits::new(2, Duration::from_secs(60));
        let seconds = Duration::from_secs;
        let admits = |number, now| limits.count(credential(number), now).is_admitted;
        for number in 0..MOST_CREDENTIALS {
            assert!(admits(number, seconds(u64::from(number > 0))));
        }
        assert!(admits(7, seconds(2)));
        assert!(!admits(7, seconds(2)), "two are the most");
        assert!(admits(MOST_CREDENTIALS, seconds(59)), "forgets the one whose window began first");
        let windows = || limits.windows.lock().unwrap().len();
        assert_eq!(windows(), MOST_CREDENTIALS);
        assert!(!limits.windows.lock().unwrap().contains_key(&credential(0)));
        assert!(!admits(7, seconds(60)), "not one that came later");
        assert!(admits(MOST_CREDENTIALS + 1, seconds(61)));
        assert_eq!(windows(), 2, "forgets all whose window is over");
    }

    #[test]
    fn a_client_that_waits_as_long_as_it_is_told_is_admitted_and_one_that_does_not_is_not() {
        for (most, per_millis) in [(1, 1), (1, 999), (2, 1_000), (3, 1_500), (5, 3_600_000), (1, 86_400_001)]
        {
            let limits = Limits::new(most, Duration::from_millis(per_millis));
            let start = Duration::from_millis(123_456);
            for number in 0..most {
                let quota = limits.count(credential(0), start);
                assert!(quota.is_admitted && quota.left == most - 1 - number, "{quota:?}");
            }
            for passed in [0, per_millis / 3, per_millis.saturating_sub(1)] {
                let now = start + Duration::from_millis(passed);
                let quota = limits.count(credential(0), now);
                assert!(!quota.is_admitted && quota.left == 0, "{quota:?}");
                let told = Duration::from_secs(quota.retry_after());
                assert!(told >= Duration::from_millis(per_millis - passed), "{quota:?}");
                assert!(told < Duration::from_millis(per_millis - passed + 1_000), "{quota:?}");
            }
            let now = start + Duration::from_millis(per_millis);
            assert!(limits.count(credential(0), now).is_admitted, "{most} in {per_millis} ms");
        }
    }

    #[test]
    fn the_fields_are_structured_as_the_draft_writes_them() {
        let limits = Limits::new(2, Duration::from_millis(60_500));
        let quota = limits.count(credential(0), Duration::from_secs(5));
        let [policy, limit] = quota.fields().unwrap();
        assert_eq!((policy.0, policy.1.to_str().unwrap()), ("ratelimit-policy", "\"tokens\";q=2;w=61"));
        assert_eq!((limit.0, limit.1.to_str().unwrap()), ("ratelimit", "\"tokens\";r=1;t=61"));
    }
}
