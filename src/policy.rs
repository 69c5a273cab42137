//! What a host allows: a value with defaults and bounds. A bad one is refused when it is built.

use crate::token::Lifetime;
use chrono::{DateTime, TimeDelta, Utc};
use std::time::Duration;

/// Most days of any lifetime or limit in a policy: a thousand years, so that no sum of two dates overflows by mistake.
pub const MAX_DAYS: u32 = 365_000;

/// What a host allows.
///
/// | setting | default | bounds |
/// |---|---|---|
/// | [`shown_lifetimes`](TokenPolicyBuilder::shown_lifetimes) | 30, 60, 90, 365 days, never | hints for a page; 1 to [`MAX_DAYS`] days |
/// | [`default_lifetime_days`](TokenPolicyBuilder::default_lifetime_days) | 90 | 1 to [`MAX_DAYS`]; clamped to the longest |
/// | [`longest_lifetime_days`](TokenPolicyBuilder::longest_lifetime_days) | none | 1 to [`MAX_DAYS`]; then *never* is refused |
/// | [`never_allowed`](TokenPolicyBuilder::never_allowed) | yes | |
/// | [`live_tokens_per_owner`](TokenPolicyBuilder::live_tokens_per_owner) | none | 1 or more |
/// | [`idle_limit_days`](TokenPolicyBuilder::idle_limit_days) | none | 1 to [`MAX_DAYS`] |
/// | [`longest_overlap`](TokenPolicyBuilder::longest_overlap) | 7 days | 0 to [`MAX_DAYS`] days |
/// | [`reuse`](TokenPolicyBuilder::reuse) | alert, window 30 days | window up to [`MAX_DAYS`] days |
/// | [`tokens_managing_tokens`](TokenPolicyBuilder::tokens_managing_tokens) | attenuated | |
/// | [`oversight`](TokenPolicyBuilder::oversight) | hidden | |
/// | [`last_used_granularity`](TokenPolicyBuilder::last_used_granularity) | 60 s | 0 s or more |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPolicy {
    shown_lifetimes: Vec<Lifetime>,
    default_lifetime_days: u32,
    longest_lifetime_days: Option<u32>,
    never_allowed: bool,
    live_tokens_per_owner: Option<u32>,
    idle_limit_days: Option<u32>,
    longest_overlap: TimeDelta,
    reuse: ReuseSignal,
    reuse_window_days: u32,
    tokens_managing_tokens: TokenManagement,
    oversight: Oversight,
    last_used_granularity: TimeDelta,
}

/// What happens when the right secret of a rotated token is presented after its overlap. It is refused in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ReuseSignal {
    /// Nothing more.
    Off,
    /// One audit event per token and hour.
    #[default]
    Alert,
    /// The event, and within the window after the rotation its living descendants are revoked.
    RevokeFamily,
}

/// Whether a token may manage tokens. Any token may inspect and revoke itself, and rotate itself unless forbidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum TokenManagement {
    /// It may, where its effective permissions hold the permission; what it makes is no wider than itself.
    #[default]
    Attenuated,
    /// The same, and only where its scope names the permission itself, not by a wildcard or by inheriting.
    Named,
    /// It may not.
    Forbidden,
}

/// What holders of `tokens:oversee` see of personal tokens of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Oversight {
    /// Nothing.
    #[default]
    Hidden,
    /// They may list them and revoke them.
    RevokeOnly,
}

/// Why a policy was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the policy's {setting} must be {bounds}")]
#[non_exhaustive]
pub struct PolicyError {
    /// The setting, by the name of its method.
    pub setting: &'static str,
    /// What it may be.
    pub bounds: &'static str,
}

/// Why a lifetime was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LifetimeError {
    /// It is less than a day.
    #[error("a lifetime is 1 day or more")]
    TooShort,
    /// It is longer than the policy's longest, or than any policy's.
    #[error("a lifetime is {most} days at most")]
    TooLong {
        /// The longest, in days.
        most: u32,
    },
    /// The policy wants an end.
    #[error("a lifetime without end is not allowed")]
    NeverNotAllowed,
    /// It would outlive the token through which it is made.
    #[error("a token made through a token ends no later than that one")]
    OutlivesCreator,
    /// The date is beyond the calendar.
    #[error("the expiry is beyond the last representable date")]
    Overflow,
}

impl Lifetime {
    /// A lifetime of whole days.
    ///
    /// # Errors
    /// [`LifetimeError`] for less than 1 day or more than [`MAX_DAYS`].
    pub fn days(days: i64) -> Result<Self, LifetimeError> {
        if days < 1 {
            return Err(LifetimeError::TooShort);
        }
        match u32::try_from(days) {
            Ok(days @ 1..=MAX_DAYS) => Ok(Self::Days(days)),
            _ => Err(LifetimeError::TooLong { most: MAX_DAYS }),
        }
    }
}

impl TokenPolicy {
    /// A builder with the defaults.
    pub fn builder() -> TokenPolicyBuilder {
        TokenPolicyBuilder { policy: Self::default() }
    }

    /// The lifetimes that a page offers; others may be asked for.
    pub fn shown_lifetimes(&self) -> &[Lifetime] {
        &self.shown_lifetimes
    }

    /// The lifetime in days when none is asked for.
    pub fn default_lifetime_days(&self) -> u32 {
        self.longest_lifetime_days
            .map_or(self.default_lifetime_days, |most| most.min(self.default_lifetime_days))
    }

    /// The longest lifetime in days.
    pub fn longest_lifetime_days(&self) -> Option<u32> {
        self.longest_lifetime_days
    }

    /// Whether a token may live without end.
    pub fn is_never_allowed(&self) -> bool {
        self.never_allowed && self.longest_lifetime_days.is_none()
    }

    /// Most active tokens of one owner.
    pub fn live_tokens_per_owner(&self) -> Option<u32> {
        self.live_tokens_per_owner
    }

    /// After how many days without use a sweep revokes a token.
    pub fn idle_limit_days(&self) -> Option<u32> {
        self.idle_limit_days
    }

    /// The longest overlap of a rotation.
    pub fn longest_overlap(&self) -> TimeDelta {
        self.longest_overlap
    }

    /// What reuse of a rotated token does.
    pub fn reuse(&self) -> ReuseSignal {
        self.reuse
    }

    /// For how many days after a rotation reuse revokes the family.
    pub fn reuse_window_days(&self) -> u32 {
        self.reuse_window_days
    }

    /// Whether tokens may manage tokens.
    pub fn tokens_managing_tokens(&self) -> TokenManagement {
        self.tokens_managing_tokens
    }

    /// What overseers see.
    pub fn oversight(&self) -> Oversight {
        self.oversight
    }

    /// How finely the last use is recorded.
    pub fn last_used_granularity(&self) -> TimeDelta {
        self.last_used_granularity
    }

    /// When a token made at `now` with this lifetime ends. `through` is the expiry of the token that it is made through,
    /// where one is: the outer `None` means no token, the inner one that the token has no end.
    ///
    /// # Errors
    /// [`LifetimeError`] when the lifetime is not allowed; the default one is shortened instead.
    pub fn expiry(
        &self,
        lifetime: Lifetime,
        now: DateTime<Utc>,
        through: Option<Option<DateTime<Utc>>>,
    ) -> Result<Option<DateTime<Utc>>, LifetimeError> {
        let creator = through.flatten();
        let expires_at = match lifetime {
            Lifetime::Default => {
                let end = after_days(now, self.default_lifetime_days())?;
                return Ok(Some(creator.map_or(end, |creator| creator.min(end))));
            }
            Lifetime::Never if !self.is_never_allowed() => return Err(LifetimeError::NeverNotAllowed),
            Lifetime::Never => None,
            Lifetime::Days(0) => return Err(LifetimeError::TooShort),
            Lifetime::Days(days) => {
                let most = self.longest_lifetime_days.unwrap_or(MAX_DAYS);
                if days > most {
                    return Err(LifetimeError::TooLong { most });
                }
                Some(after_days(now, days)?)
            }
        };
        match creator {
            Some(creator) if expires_at.is_none_or(|expires_at| expires_at > creator) => {
                Err(LifetimeError::OutlivesCreator)
            }
            _ => Ok(expires_at),
        }
    }

    /// When a successor made at `now` ends: the same lifetime again, shortened to what is allowed today.
    ///
    /// # Errors
    /// [`LifetimeError::Overflow`] at the end of the calendar.
    pub fn renewed_expiry(
        &self,
        lifetime: Lifetime,
        now: DateTime<Utc>,
    ) -> Result<Option<DateTime<Utc>>, LifetimeError> {
        match (lifetime, self.longest_lifetime_days) {
            (Lifetime::Never, None) if self.never_allowed => Ok(None),
            (Lifetime::Default | Lifetime::Never, None) => {
                after_days(now, self.default_lifetime_days).map(Some)
            }
            (Lifetime::Never, Some(most)) => after_days(now, most).map(Some),
            (Lifetime::Default, Some(_)) => after_days(now, self.default_lifetime_days()).map(Some),
            (Lifetime::Days(days), most) => {
                after_days(now, days.clamp(1, most.unwrap_or(MAX_DAYS))).map(Some)
            }
        }
    }

    /// When a successor ends that is made through a token at `now`: when its predecessor does. A predecessor without an expiry gets
    /// a successor with the longest lifetime that is allowed today.
    ///
    /// # Errors
    /// [`LifetimeError::Overflow`] at the end of the calendar.
    pub(crate) fn kept_expiry(
        &self,
        expires_at: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> Result<Option<DateTime<Utc>>, LifetimeError> {
        match (expires_at, self.longest_lifetime_days) {
            (None, Some(most)) => after_days(now, most).map(Some),
            (kept, _) => Ok(kept),
        }
    }
}

impl Default for TokenPolicy {
    fn default() -> Self {
        Self {
            shown_lifetimes: vec![
                Lifetime::Days(30),
                Lifetime::Days(60),
                Lifetime::Days(90),
                Lifetime::Days(365),
                Lifetime::Never,
            ],
            default_lifetime_days: 90,
            longest_lifetime_days: None,
            never_allowed: true,
            live_tokens_per_owner: None,
            idle_limit_days: None,
            longest_overlap: days(7),
            reuse: ReuseSignal::Alert,
            reuse_window_days: 30,
            tokens_managing_tokens: TokenManagement::Attenuated,
            oversight: Oversight::Hidden,
            last_used_granularity: TimeDelta::seconds(60),
        }
    }
}

/// Makes a [`TokenPolicy`].
#[derive(Debug, Clone)]
pub struct TokenPolicyBuilder {
    policy: TokenPolicy,
}

impl TokenPolicyBuilder {
    /// The lifetimes that a page offers.
    pub fn shown_lifetimes(mut self, lifetimes: impl IntoIterator<Item = Lifetime>) -> Self {
        self.policy.shown_lifetimes = lifetimes.into_iter().collect();
        self
    }

    /// The lifetime, in days, when none is asked for.
    pub fn default_lifetime_days(mut self, days: u32) -> Self {
        self.policy.default_lifetime_days = days;
        self
    }

    /// The longest lifetime, in days. With it, a lifetime without end is refused.
    pub fn longest_lifetime_days(mut self, days: u32) -> Self {
        self.policy.longest_lifetime_days = Some(days);
        self
    }

    /// Whether a token may live without end.
    pub fn never_allowed(mut self, allowed: bool) -> Self {
        self.policy.never_allowed = allowed;
        self
    }

    /// Most active tokens of one owner. Requests that race may pass it by their number; a restored token counts, one
    /// that was rotated and is in its overlap does not.
    pub fn live_tokens_per_owner(mut self, most: u32) -> Self {
        self.policy.live_tokens_per_owner = Some(most);
        self
    }

    /// After how many days without use a sweep revokes a token; the last use is known to within the granularity and the
    /// flush interval, so the sweep waits that much longer.
    pub fn idle_limit_days(mut self, days: u32) -> Self {
        self.policy.idle_limit_days = Some(days);
        self
    }

    /// The longest overlap that a rotation may ask for.
    pub fn longest_overlap(mut self, overlap: Duration) -> Self {
        // What chrono cannot hold is over the bound too, and refused by it.
        self.policy.longest_overlap = TimeDelta::from_std(overlap).unwrap_or(TimeDelta::MAX);
        self
    }

    /// What happens when a rotated token is presented after its overlap, and for how many days after the rotation
    /// [`ReuseSignal::RevokeFamily`] revokes.
    pub fn reuse(mut self, signal: ReuseSignal, window_days: u32) -> Self {
        self.policy.reuse = signal;
        self.policy.reuse_window_days = window_days;
        self
    }

    /// Whether tokens may manage tokens.
    pub fn tokens_managing_tokens(mut self, rule: TokenManagement) -> Self {
        self.policy.tokens_managing_tokens = rule;
        self
    }

    /// What holders of `tokens:oversee` see of personal tokens of others.
    pub fn oversight(mut self, oversight: Oversight) -> Self {
        self.policy.oversight = oversight;
        self
    }

    /// How finely the last use is recorded: uses within this much of the recorded one are not written. The sweep of idle tokens
    /// waits so much longer.
    pub fn last_used_granularity(mut self, granularity: Duration) -> Self {
        self.policy.last_used_granularity = TimeDelta::from_std(granularity).unwrap_or(TimeDelta::MAX);
        self
    }

    /// The policy.
    ///
    /// # Errors
    /// [`PolicyError`], which names the setting that is out of its bounds.
    pub fn build(self) -> Result<TokenPolicy, PolicyError> {
        const DAYS: &str = "1 to 365000 days";
        let Self { policy } = self;
        let in_days = |days: u32| (1..=MAX_DAYS).contains(&days);
        let checks = [
            (
                "shown_lifetimes",
                DAYS,
                policy.shown_lifetimes.iter().all(|shown| match shown {
                    Lifetime::Days(days) => in_days(*days),
                    Lifetime::Default | Lifetime::Never => true,
                }),
            ),
            ("default_lifetime_days", DAYS, in_days(policy.default_lifetime_days)),
            ("longest_lifetime_days", DAYS, policy.longest_lifetime_days.is_none_or(in_days)),
            ("live_tokens_per_owner", "1 or more", policy.live_tokens_per_owner != Some(0)),
            ("idle_limit_days", DAYS, policy.idle_limit_days.is_none_or(in_days)),
            ("longest_overlap", "0 to 365000 days", policy.longest_overlap <= days(MAX_DAYS)),
            ("reuse", "a window of 0 to 365000 days", policy.reuse_window_days <= MAX_DAYS),
        ];
        match checks.into_iter().find(|(_, _, fits)| !fits) {
            Some((setting, bounds, _)) => Err(PolicyError { setting, bounds }),
            None => Ok(policy),
        }
    }
}

pub(crate) fn days(days: u32) -> TimeDelta {
    TimeDelta::try_days(i64::from(days)).unwrap_or(TimeDelta::MAX)
}

fn after_days(now: DateTime<Utc>, count: u32) -> Result<DateTime<Utc>, LifetimeError> {
    now.checked_add_signed(days(count)).ok_or(LifetimeError::Overflow)
}

#[cfg(test)]
#[allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::many_single_char_names,
    clippy::string_slice,
    reason = "tests"
)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    fn in_days(count: u32) -> DateTime<Utc> {
        now() + days(count)
    }

    #[test]
    fn a_bad_policy_is_refused_by_the_name_of_its_setting() {
        let build = TokenPolicy::builder;
        let century = Duration::from_secs(86_400 * 365_001);
        let table = [
            (build().default_lifetime_days(0), "default_lifetime_days"),
            (build().default_lifetime_days(365_001), "default_lifetime_days"),
            (build().longest_lifetime_days(0), "longest_lifetime_days"),
            (build().longest_lifetime_days(u32::MAX), "longest_lifetime_days"),
            (build().live_tokens_per_owner(0), "live_tokens_per_owner"),
            (build().idle_limit_days(0), "idle_limit_days"),
            (build().longest_overlap(century), "longest_overlap"),
            (build().longest_overlap(Duration::MAX), "longest_overlap"),
            (build().reuse(ReuseSignal::Alert, 365_001), "reuse"),
            (build().shown_lifetimes([Lifetime::Days(0)]), "shown_lifetimes"),
        ];
        for (builder, setting) in table {
            assert_eq!(builder.build().unwrap_err().setting, setting);
        }
        assert_eq!(build().build(), Ok(TokenPolicy::default()));
        assert!(
            build().longest_overlap(Duration::ZERO).last_used_granularity(Duration::ZERO).build().is_ok()
                && build().last_used_granularity(Duration::MAX).build().is_ok()
        );
    }

    #[test]
    fn lifetimes_of_any_number_are_a_lifetime_or_an_error() {
        assert_eq!(Lifetime::days(1), Ok(Lifetime::Days(1)));
        assert_eq!(Lifetime::days(365_000), Ok(Lifetime::Days(365_000)));
        for few in [0, -1, i64::MIN] {
            assert_eq!(Lifetime::days(few), Err(LifetimeError::TooShort));
        }
        for many in [365_001, 1_000_000_000_000_000_000, i64::MAX] {
            assert_eq!(Lifetime::days(many), Err(LifetimeError::TooLong { most: MAX_DAYS }));
        }
    }

    #[test]
    fn expiries() {
        use LifetimeError as E;
        let open = TokenPolicy::default();
        let month = TokenPolicy::builder().longest_lifetime_days(30).build().unwrap();
        let ending = TokenPolicy::builder().never_allowed(false).build().unwrap();
        let soon = Some(Some(in_days(10)));
        let table = [
            (&open, Lifetime::Default, None, Ok(Some(in_days(90)))),
            (&open, Lifetime::Days(365), None, Ok(Some(in_days(365)))),
            (&open, Lifetime::Days(0), None, Err(E::TooShort)),
            (&open, Lifetime::Days(u32::MAX), None, Err(E::TooLong { most: MAX_DAYS })),
            (&open, Lifetime::Never, None, Ok(None)),
            (&open, Lifetime::Never, Some(None), Ok(None)),
            (&open, Lifetime::Default, soon, Ok(Some(in_days(10)))),
            (&open, Lifetime::Days(10), soon, Ok(Some(in_days(10)))),
            (&open, Lifetime::Days(11), soon, Err(E::OutlivesCreator)),
            (&open, Lifetime::Never, soon, Err(E::OutlivesCreator)),
            (&month, Lifetime::Default, None, Ok(Some(in_days(30)))),
            (&month, Lifetime::Days(30), None, Ok(Some(in_days(30)))),
            (&month, Lifetime::Days(31), None, Err(E::TooLong { most: 30 })),
            (&month, Lifetime::Never, None, Err(E::NeverNotAllowed)),
            (&ending, Lifetime::Never, None, Err(E::NeverNotAllowed)),
        ];
        for (policy, lifetime, through, expected) in table {
            assert_eq!(policy.expiry(lifetime, now(), through), expected, "{lifetime:?} {through:?}");
        }
        let end = DateTime::<Utc>::MAX_UTC;
        assert_eq!(open.expiry(Lifetime::Days(1), end, None), Err(E::Overflow));
        assert_eq!(open.expiry(Lifetime::Default, end, None), Err(E::Overflow));
    }

    #[test]
    fn a_successor_gets_its_lifetime_again_under_todays_policy() {
        let open = TokenPolicy::default();
        let month = TokenPolicy::builder().longest_lifetime_days(30).build().unwrap();
        let ending = TokenPolicy::builder().never_allowed(false).build().unwrap();
        let table = [
            (&open, Lifetime::Never, None),
            (&open, Lifetime::Days(365), Some(365)),
            (&open, Lifetime::Default, Some(90)),
            (&month, Lifetime::Never, Some(30)),
            (&month, Lifetime::Days(365), Some(30)),
            (&month, Lifetime::Days(7), Some(7)),
            (&month, Lifetime::Default, Some(30)),
            (&ending, Lifetime::Never, Some(90)),
        ];
        for (policy, lifetime, expected) in table {
            assert_eq!(policy.renewed_expiry(lifetime, now()), Ok(expected.map(in_days)), "{lifetime:?}");
        }
    }
}
