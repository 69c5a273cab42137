//! Where the time comes from. No other file reads the system's clock.
//!
//! Instants are chrono's `DateTime<Utc>`, cut to the microsecond when they enter the crate, so that every
//! store gives back the same instant.

#![allow(clippy::disallowed_methods)]

use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, Utc};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Says what time it is.
///
/// There is no leeway for clock skew anywhere: a node whose clock is ahead by five seconds refuses a token five
/// seconds early, one that is behind accepts it five seconds late. Keep the nodes on NTP. A clock that goes back
/// makes an expired token live again until the clock is right; no token outlives its stored expiry on a right
/// clock.
pub trait Clock: Send + Sync {
    /// The present instant. What is finer than a microsecond is cut off by the caller.
    fn now(&self) -> DateTime<Utc>;

    /// The time since some fixed moment. It never goes back, whatever is done to the time of day: what is kept for a while
    /// is measured by it.
    fn monotonic(&self) -> Duration;
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> DateTime<Utc> {
        (**self).now()
    }

    fn monotonic(&self) -> Duration {
        (**self).monotonic()
    }
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct SystemClock;

impl SystemClock {
    /// The system's clock.
    pub const fn new() -> Self {
        Self
    }
}

impl Clock for SystemClock {
    fn now(&self) -> DateTime<Utc> {
        // Before 1970 and beyond chrono's range are both possible on a broken clock; neither may panic.
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => at_seconds(since.as_secs(), cut_nanos(since.subsec_nanos())),
            Err(before) => {
                let micros = i64::try_from(before.duration().as_micros());
                at_micros(micros.map_or(i64::MIN, i64::saturating_neg))
            }
        }
    }

    fn monotonic(&self) -> Duration {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        START.elapsed()
    }
}

/// A clock that stands still until it is told otherwise; for tests and examples.
#[derive(Debug)]
pub struct ManualClock {
    now: AtomicI64,
    /// Microseconds by which it was moved forward.
    passed: AtomicU64,
}

impl ManualClock {
    /// A clock that shows `now`.
    pub fn at(now: DateTime<Utc>) -> Self {
        Self { now: AtomicI64::new(now.timestamp_micros()), passed: AtomicU64::new(0) }
    }

    /// Shows `now` from here on; it may lie in the past. No time passes by that: the clock was wrong before.
    pub fn set(&self, now: DateTime<Utc>) {
        self.now.store(now.timestamp_micros(), Ordering::SeqCst);
    }

    /// Moves the clock by `by`, backwards where it is negative; stops at the ends of chrono's range. Time passes when it goes
    /// forward.
    pub fn advance(&self, by: TimeDelta) {
        let by = by.num_microseconds().unwrap_or(i64::MAX);
        let now = self.now.load(Ordering::SeqCst).saturating_add(by);
        self.now.store(now, Ordering::SeqCst);
        self.passed.fetch_add(u64::try_from(by).unwrap_or(0), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> DateTime<Utc> {
        at_micros(self.now.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.passed.load(Ordering::SeqCst))
    }
}

/// The instant so long after 1970 began. The date of the day is kept from one call to the next: finding it is a third of
/// what reading the clock costs.
fn at_seconds(seconds: u64, nanos: u32) -> DateTime<Utc> {
    const DAY: u64 = 86_400;
    thread_local! {
        static TODAY: Cell<(u64, NaiveDate)> = const { Cell::new((0, NaiveDate::MIN)) };
    }
    let (day, second) = (seconds / DAY, seconds % DAY);
    let time =
        u32::try_from(second).ok().and_then(|s| NaiveTime::from_num_seconds_from_midnight_opt(s, nanos));
    let (known_day, mut date) = TODAY.get();
    if known_day != day || date == NaiveDate::MIN {
        match i64::try_from(seconds).ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0)) {
            Some(instant) => date = instant.date_naive(),
            None => return DateTime::<Utc>::MAX_UTC,
        }
        TODAY.set((day, date));
    }
    date.and_time(time.unwrap_or_default()).and_utc()
}

/// Cuts an instant to the microsecond, towards the past.
pub(crate) fn cut(instant: DateTime<Utc>) -> DateTime<Utc> {
    let nanos = instant.timestamp_subsec_nanos();
    if nanos == cut_nanos(nanos) {
        return instant;
    }
    DateTime::from_timestamp_micros(instant.timestamp_micros()).unwrap_or(instant)
}

const fn cut_nanos(nanos: u32) -> u32 {
    nanos.saturating_sub(nanos % 1_000)
}

fn at_micros(micros: i64) -> DateTime<Utc> {
    let end = if micros < 0 { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC };
    DateTime::from_timestamp_micros(micros).unwrap_or(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_cut_to_the_microsecond() {
        let fine = DateTime::from_timestamp(5, 123_456_789).unwrap();
        assert_eq!(cut(fine).timestamp_subsec_nanos(), 123_456_000);
        let before_1970 = DateTime::from_timestamp(-5, 999_999_999).unwrap();
        assert_eq!(cut(before_1970), DateTime::from_timestamp(-5, 999_999_000).unwrap());
    }

    #[test]
    fn a_broken_clock_does_not_panic() {
        assert_eq!(at_micros(i64::MAX), DateTime::<Utc>::MAX_UTC);
        assert_eq!(at_micros(i64::MIN), DateTime::<Utc>::MIN_UTC);
        let clock = ManualClock::at(DateTime::<Utc>::MAX_UTC);
        clock.advance(TimeDelta::MAX);
        clock.now();
        clock.advance(TimeDelta::MIN);
        clock.advance(TimeDelta::MIN);
        clock.now();
    }

    #[test]
    fn seconds_are_the_instant_that_they_are() {
        for seconds in [0, 1, 86_399, 86_400, 1_800_000_000, 1_800_057_599, 1_800_057_600, 0, 253_402_300_799]
        {
            let expected = DateTime::from_timestamp(seconds.try_into().unwrap(), 123_456_000).unwrap();
            assert_eq!(at_seconds(seconds, 123_456_000), expected);
        }
        for beyond in [u64::MAX, 10_000_000_000_000] {
            assert_eq!(at_seconds(beyond, 0), DateTime::<Utc>::MAX_UTC);
        }
    }

    #[test]
    fn the_system_clock_reads_the_time() {
        let now = SystemClock::new().now();
        assert!(now.timestamp() > 1_700_000_000);
        assert_eq!(now, cut(now));
    }
}
