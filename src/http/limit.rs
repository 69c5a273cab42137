//! The limit on the number of tokens that one credential creates in a window of time.

use crate::service::ActorCredential;
use http::HeaderValue;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The most windows that are kept at once, which bounds the memory to a few megabytes. If more
/// credentials create tokens, the window that began first is dropped, and its credential starts a
/// new one.
const MAX_WINDOWS: usize = 10_000;

const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// Allows each credential a number of tokens in a window of time.
///
/// The window of a credential begins with the first counted token, and the next one begins with the
/// first token after its end. The caller passes in the time, from
/// [`Clock::monotonic`](crate::Clock::monotonic).
pub(super) struct Limits {
    most: u32,
    length: Duration,
    windows: Mutex<HashMap<ActorCredential, Window>>,
}

#[derive(Clone, Copy)]
struct Window {
    start: Duration,
    used: u32,
}

/// The state of a limit after a request was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quota {
    pub(super) is_admitted: bool,
    most: u32,
    left: u32,
    window_seconds: u64,
    reset_seconds: u64,
}

impl Limits {
    /// Allows `most` tokens in each window of `length`. A value out of bounds counts as the nearer
    /// bound: at least 1 token, and 1 millisecond to 365 days.
    pub(super) fn new(most: u32, length: Duration) -> Self {
        Self {
            most: most.max(1),
            length: length.clamp(SHORTEST, LONGEST),
            windows: Mutex::default(),
        }
    }

    /// Counts a token that this credential is about to create, unless its limit is reached. `now`
    /// is the time since some fixed moment.
    pub(super) fn count(&self, credential: ActorCredential, now: Duration) -> Quota {
        // Nothing below panics, so a poisoned lock still protects a consistent map.
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= MAX_WINDOWS && !windows.contains_key(&credential) {
            self.drop_windows(&mut windows, now);
        }
        let window = windows.entry(credential).or_insert(Window { start: now, used: 0 });
        if self.has_ended(window, now) {
            *window = Window { start: now, used: 0 };
        }
        // If a host's clock breaks its contract and goes back, the window still ends at most its
        // own length from now, instead of when the clock has caught up.
        window.start = window.start.min(now);
        let is_admitted = window.used < self.most;
        window.used = window.used.saturating_add(u32::from(is_admitted));
        let reset = window.start.saturating_add(self.length).saturating_sub(now);
        Quota {
            is_admitted,
            most: self.most,
            left: self.most.saturating_sub(window.used),
            window_seconds: whole_seconds(self.length),
            reset_seconds: whole_seconds(reset),
        }
    }

    fn has_ended(&self, window: &Window, now: Duration) -> bool {
        now.saturating_sub(window.start) >= self.length
    }

    /// Drops all windows that have ended, or the one that began first if none has.
    fn drop_windows(&self, windows: &mut HashMap<ActorCredential, Window>, now: Duration) {
        windows.retain(|_, window| !self.has_ended(window, now));
        if windows.len() < MAX_WINDOWS {
            return;
        }
        let oldest = windows.iter().min_by_key(|(_, window)| window.start);
        if let Some(oldest) = oldest.map(|(credential, _)| credential.clone()) {
            windows.remove(&oldest);
        }
    }
}

impl Quota {
    /// Returns the seconds until the window has ended.
    pub(super) const fn retry_after(self) -> u64 {
        self.reset_seconds
    }

    /// Returns `RateLimit-Policy` and `RateLimit`, as revision 09 of
    /// draft-ietf-httpapi-ratelimit-headers defines them.
    pub(super) fn fields(self) -> [(&'static str, HeaderValue); 2] {
        let Self { most, left, window_seconds, reset_seconds, .. } = self;
        let value = |text: String| HeaderValue::try_from(text).expect("the text is visible ASCII");
        let policy = value(format!("\"tokens\";q={most};w={window_seconds}"));
        let limit = value(format!("\"tokens\";r={left};t={reset_seconds}"));
        [("ratelimit-policy", policy), ("ratelimit", limit)]
    }
}

/// Returns the seconds of a duration, rounded up, so that a client that waits this long finds that
/// the window has ended.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, ManualClock};
    use crate::owner::OwnerId;
    use crate::service::Actor;
    use chrono::{DateTime, TimeDelta, Utc};

    const SECOND: Duration = Duration::from_secs(1);

    fn credential(number: usize) -> ActorCredential {
        Actor::signed_in(OwnerId::new(&format!("user {number}")).unwrap()).credential()
    }

    fn windows(limits: &Limits) -> usize {
        limits.windows.lock().unwrap().len()
    }

    #[test]
    fn each_credential_has_its_own_window_and_the_map_has_a_bound() {
        let limits = Limits::new(2, 60 * SECOND);
        let admits =
            |number, seconds| limits.count(credential(number), seconds * SECOND).is_admitted;
        for number in 0..MAX_WINDOWS {
            assert!(admits(number, u32::from(number > 0)));
        }
        assert!(admits(7, 2));
        assert!(!admits(7, 2), "two are the most");
        assert!(admits(MAX_WINDOWS, 59), "drops the window that began first");
        assert_eq!(windows(&limits), MAX_WINDOWS);
        assert!(!limits.windows.lock().unwrap().contains_key(&credential(0)));
        assert!(!admits(7, 60), "its window was not dropped");
        assert!(admits(MAX_WINDOWS + 1, 61));
        assert_eq!(windows(&limits), 2, "drops all windows that have ended");
    }

    #[test]
    fn a_client_that_waits_as_long_as_it_is_told_is_admitted_and_one_that_does_not_is_not() {
        for (most, millis) in
            [(1, 1), (1, 999), (2, 1_000), (3, 1_500), (5, 3_600_000), (1, 86_400_001)]
        {
            let limits = Limits::new(most, Duration::from_millis(millis));
            let start = Duration::from_millis(123_456);
            for number in 0..most {
                let quota = limits.count(credential(0), start);
                assert!(quota.is_admitted && quota.left == most - 1 - number, "{quota:?}");
            }
            for passed in [0, millis / 3, millis.saturating_sub(1)] {
                let now = start + Duration::from_millis(passed);
                let quota = limits.count(credential(0), now);
                assert!(!quota.is_admitted && quota.left == 0, "{quota:?}");
                let told = Duration::from_secs(quota.retry_after());
                assert!(told >= Duration::from_millis(millis - passed), "{quota:?}");
                assert!(told < Duration::from_millis(millis - passed + 1_000), "{quota:?}");
            }
            let now = start + Duration::from_millis(millis);
            assert!(limits.count(credential(0), now).is_admitted, "{most} in {millis} ms");
        }
    }

    /// The end of a window belongs to the next window, to the nanosecond.
    #[test]
    fn a_window_begins_with_the_first_token_and_not_with_its_end() {
        let limits = Limits::new(1, 10 * SECOND);
        let admits = |now| limits.count(credential(0), now).is_admitted;
        assert!(admits(3 * SECOND));
        assert!(!admits(Duration::new(12, 999_999_999)));
        assert!(admits(13 * SECOND));
        assert!(!admits(22 * SECOND), "the second window began at 13 s");
        assert!(admits(25 * SECOND));
        assert!(!admits(33 * SECOND), "the third window began at 25 s, and not at 23 s");
    }

    #[test]
    fn values_out_of_bounds_count_as_the_nearer_bound() {
        let shortest = Limits::new(0, Duration::ZERO);
        assert!(shortest.count(credential(0), SECOND).is_admitted, "at least one token");
        let refused = shortest.count(credential(0), SECOND);
        assert!(!refused.is_admitted);
        assert_eq!(refused.retry_after(), 1, "less than a second is rounded up");
        assert!(shortest.count(credential(0), SECOND + SHORTEST).is_admitted);

        let longest = Limits::new(u32::MAX, Duration::MAX);
        let quota = longest.count(credential(0), SECOND);
        assert_eq!((quota.left, quota.retry_after()), (u32::MAX - 1, 365 * 86_400));
        // At the greatest time, the window can no longer end.
        let last = Limits::new(1, LONGEST);
        assert!(last.count(credential(0), Duration::MAX).is_admitted);
        assert!(!last.count(credential(0), Duration::MAX).is_admitted);
    }

    /// A host's clock must not go back. If it does, no credential gets more tokens, and none waits
    /// longer than one window.
    #[test]
    fn a_clock_that_goes_back_gives_nothing_and_locks_nobody_out() {
        let limits = Limits::new(2, 60 * SECOND);
        let count = |seconds| limits.count(credential(0), seconds * SECOND);
        assert!(count(1_000).is_admitted);
        assert!(count(500).is_admitted, "the second of two");
        let refused = count(500);
        assert_eq!((refused.is_admitted, refused.retry_after()), (false, 60));
        let refused = count(559);
        assert_eq!((refused.is_admitted, refused.retry_after()), (false, 1));
        assert!(count(560).is_admitted);
    }

    /// Changes of the time of day by the host do not move a window.
    #[test]
    fn a_time_of_day_that_is_set_back_changes_nothing() {
        let clock = ManualClock::at(DateTime::<Utc>::UNIX_EPOCH);
        let limits = Limits::new(1, 60 * SECOND);
        let count = || limits.count(credential(0), clock.monotonic());
        assert!(count().is_admitted);
        clock.set(DateTime::<Utc>::UNIX_EPOCH - TimeDelta::days(1));
        assert_eq!(count().retry_after(), 60);
        clock.advance(TimeDelta::seconds(59));
        assert_eq!(count().retry_after(), 1);
        clock.advance(TimeDelta::seconds(1));
        assert!(count().is_admitted);
    }

    #[test]
    fn the_map_keeps_its_bound_when_the_clock_goes_back() {
        let limits = Limits::new(1, 60 * SECOND);
        for number in 0..MAX_WINDOWS {
            assert!(limits.count(credential(number), 1_000 * SECOND).is_admitted);
        }
        for number in MAX_WINDOWS..MAX_WINDOWS + 20 {
            assert!(limits.count(credential(number), 10 * SECOND).is_admitted);
            assert_eq!(windows(&limits), MAX_WINDOWS);
        }
    }

    #[test]
    fn the_fields_are_structured_as_the_draft_writes_them() {
        let limits = Limits::new(2, Duration::from_millis(60_500));
        let quota = limits.count(credential(0), 5 * SECOND);
        let [policy, limit] = quota.fields();
        assert_eq!(
            (policy.0, policy.1.to_str().unwrap()),
            ("ratelimit-policy", "\"tokens\";q=2;w=61")
        );
        assert_eq!((limit.0, limit.1.to_str().unwrap()), ("ratelimit", "\"tokens\";r=1;t=61"));
    }
}
