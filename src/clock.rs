//! The sources of time. No other file reads the system's clock.
//!
//! Instants are chrono's `DateTime<Utc>`, cut to the microsecond when they enter the crate, so that
//! every store returns the same instant.

#![allow(clippy::disallowed_methods)]

use chrono::{DateTime, TimeDelta, Utc};
#[cfg(all(feature = "coarse-clock", target_os = "linux"))]
use rustix::time::{ClockId, clock_getres, clock_gettime};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A source of time.
///
/// There is no leeway for clock skew. A node whose clock is 5 s ahead refuses a token 5 s early; a
/// node whose clock is 5 s behind accepts it 5 s late. Keep the nodes on NTP. If a clock goes back,
/// an expired token works again until the clock is right. On a right clock, no token outlives its
/// stored expiry.
pub trait Clock: Send + Sync {
    /// Returns the current instant. The caller cuts it to the microsecond.
    fn now(&self) -> DateTime<Utc>;

    /// Returns [`now`](Self::now) in microseconds since 1970, cut towards the past.
    ///
    /// A verification judges by this time, and nothing else asks for it. A clock that counts in
    /// microseconds can return its count without building a date. The result may be behind
    /// [`now`](Self::now) by a bounded time; tokens then live that much longer.
    fn now_micros(&self) -> i64 {
        micros(self.now())
    }

    /// Returns the time since some fixed moment. It never goes back, even if the time of day is
    /// changed.
    ///
    /// Lifetimes of kept data, such as cache entries, are measured by it.
    fn monotonic(&self) -> Duration;
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> DateTime<Utc> {
        (**self).now()
    }

    fn now_micros(&self) -> i64 {
        (**self).now_micros()
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
    /// Creates the system's clock.
    pub const fn new() -> Self {
        Self
    }
}

impl Clock for SystemClock {
    fn now(&self) -> DateTime<Utc> {
        at_micros(self.now_micros())
    }

    fn now_micros(&self) -> i64 {
        // A broken clock may be before 1970 or beyond the range of `i64`; neither may panic.
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_secs())
                .map_or(i64::MAX, |seconds| from_parts(seconds, since.subsec_micros().into())),
            Err(before) => {
                let nanos = before.duration().as_nanos();
                i64::try_from(nanos.div_ceil(1_000)).map_or(i64::MIN, i64::saturating_neg)
            }
        }
    }

    fn monotonic(&self) -> Duration {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        START.elapsed()
    }
}

const fn from_parts(seconds: i64, micros: i64) -> i64 {
    seconds.saturating_mul(1_000_000).saturating_add(micros)
}

/// The system's clock as of the kernel's last tick, for faster verifications.
///
/// Reading it takes a fifth of the time of the exact clock, whose reading is a tenth of a
/// verification in memory. Pass it to
/// [`TokenServiceBuilder::clock`](crate::service::TokenServiceBuilder::clock).
///
/// [`now_micros`](Clock::now_micros), which verifications use, is never ahead of the exact time and
/// at most one [`tick`](Self::tick) behind it: 1 to 10 ms, depending on how the kernel was built.
/// [`now`](Clock::now), which changes use, and [`monotonic`](Clock::monotonic) are exact.
///
/// A token may therefore be verified for up to a tick after its expiry, and the times of
/// verifications, last uses and audited refusals may be early by up to a tick. A revocation is seen
/// at once, because it is a fact and not a time. A new token is verified at once, because nothing
/// compares its creation with now.
///
/// On Linux only; elsewhere it is the exact clock.
#[cfg(feature = "coarse-clock")]
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct CoarseClock;

#[cfg(feature = "coarse-clock")]
impl CoarseClock {
    /// Creates the system's clock as of its last tick.
    pub const fn new() -> Self {
        Self
    }

    /// Returns the time by which the clock may be behind. Zero where it is the exact clock.
    pub fn tick(&self) -> Duration {
        #[cfg(target_os = "linux")]
        {
            let tick = clock_getres(ClockId::RealtimeCoarse);
            tick.try_into().expect("the resolution of a clock is not negative")
        }
        #[cfg(not(target_os = "linux"))]
        Duration::ZERO
    }
}

#[cfg(feature = "coarse-clock")]
impl Clock for CoarseClock {
    fn now(&self) -> DateTime<Utc> {
        SystemClock.now()
    }

    fn now_micros(&self) -> i64 {
        #[cfg(target_os = "linux")]
        {
            let now = clock_gettime(ClockId::RealtimeCoarse);
            // Nanoseconds count forwards before 1970 as well.
            from_parts(now.tv_sec, now.tv_nsec.div_euclid(1_000))
        }
        #[cfg(not(target_os = "linux"))]
        SystemClock.now_micros()
    }

    fn monotonic(&self) -> Duration {
        SystemClock.monotonic()
    }
}

/// A clock that changes only when it is set or advanced, for tests and examples.
#[derive(Debug)]
pub struct ManualClock {
    now: AtomicI64,
    /// The microseconds by which the clock was advanced.
    passed: AtomicU64,
}

impl ManualClock {
    /// Creates a clock that shows `now`.
    pub fn at(now: DateTime<Utc>) -> Self {
        Self { now: AtomicI64::new(now.timestamp_micros()), passed: AtomicU64::new(0) }
    }

    /// Sets the time, which may be in the past. [`monotonic`](Clock::monotonic) does not change, as
    /// if the clock had been wrong before.
    pub fn set(&self, now: DateTime<Utc>) {
        self.now.store(now.timestamp_micros(), Ordering::SeqCst);
    }

    /// Advances the clock by `by`, or moves it back if `by` is negative.
    ///
    /// The clock stops at the ends of chrono's range. [`monotonic`](Clock::monotonic) advances only
    /// if `by` is positive.
    pub fn advance(&self, by: TimeDelta) {
        // A span beyond `i64` microseconds, which is longer than chrono's range, counts as the
        // longest of its sign.
        let longest = if by < TimeDelta::zero() { i64::MIN } else { i64::MAX };
        let by = by.num_microseconds().unwrap_or(longest);
        let now = self.now.load(Ordering::SeqCst).saturating_add(by);
        self.now.store(now, Ordering::SeqCst);
        self.passed.fetch_add(by.max(0).unsigned_abs(), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> DateTime<Utc> {
        at_micros(self.now_micros())
    }

    fn now_micros(&self) -> i64 {
        self.now.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.passed.load(Ordering::SeqCst))
    }
}

/// The maximum by which a stored instant may be ahead of now: 1 day.
///
/// Clocks of nodes may differ, but not by a day. A later instant was stored by a wrong clock, and
/// nothing waits for it.
pub const MAX_CLOCK_ERROR: TimeDelta = TimeDelta::days(1);

/// Returns the latest instant that a right clock may have stored at `now`, at most the end of
/// chrono's range.
pub(crate) fn plausible_until(now: DateTime<Utc>) -> DateTime<Utc> {
    now.checked_add_signed(MAX_CLOCK_ERROR).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// Cuts an instant to the microsecond, towards the past.
///
/// A leap second after chrono's last second has no microseconds in chrono's range, and is not cut.
pub(crate) fn cut(instant: DateTime<Utc>) -> DateTime<Utc> {
    let nanos = instant.timestamp_subsec_nanos();
    if nanos == cut_nanos(nanos) {
        return instant;
    }
    DateTime::from_timestamp_micros(instant.timestamp_micros()).unwrap_or(instant)
}

/// Returns the microseconds since 1970, cut as [`cut`] does.
///
/// The cut does not change an expiry check: an expiry at a whole microsecond is reached at an
/// instant exactly if it is reached at the cut of that instant. chrono's range is well within that
/// of `i64`.
pub(crate) fn micros(instant: DateTime<Utc>) -> i64 {
    instant.timestamp_micros()
}

const fn cut_nanos(nanos: u32) -> u32 {
    nanos.saturating_sub(nanos % 1_000)
}

/// Returns the instant at `micros` since 1970. Beyond chrono's range, returns the end of the range.
pub(crate) fn at_micros(micros: i64) -> DateTime<Utc> {
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
        for instant in [fine, before_1970, DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC] {
            assert_eq!(micros(instant), micros(cut(instant)));
        }
        assert_eq!(micros(before_1970), -4_000_001);
    }

    #[test]
    fn a_broken_clock_does_not_panic() {
        assert_eq!(at_micros(i64::MAX), DateTime::<Utc>::MAX_UTC);
        assert_eq!(at_micros(i64::MIN), DateTime::<Utc>::MIN_UTC);
        let clock = ManualClock::at(DateTime::<Utc>::MAX_UTC);
        clock.advance(TimeDelta::MAX);
        assert_eq!(clock.now(), DateTime::<Utc>::MAX_UTC);
        clock.advance(TimeDelta::MIN);
        clock.advance(TimeDelta::MIN);
        assert_eq!(clock.now(), DateTime::<Utc>::MIN_UTC);
    }

    #[cfg(feature = "coarse-clock")]
    #[test]
    fn the_coarse_clock_is_never_ahead() {
        let (exact, coarse) = (SystemClock::new(), CoarseClock::new());
        for _ in 0..10_000 {
            let read = coarse.now_micros();
            let after = exact.now_micros();
            assert!(read <= after, "{read} is ahead of {after}");
        }
        assert!(coarse.now_micros() > 1_700_000_000_000_000, "in microseconds");
        assert!(coarse.tick() <= Duration::from_millis(10), "{:?}", coarse.tick());
    }

    #[test]
    fn the_system_clock_reads_the_time() {
        let now = SystemClock::new().now();
        assert!(now.timestamp() > 1_700_000_000);
        assert_eq!(now, cut(now));
        assert!((0..60_000_000).contains(&(SystemClock::new().now_micros() - micros(now))));
    }
}
