//! The token policy of a host: settings with defaults and bounds, checked when the policy is built.

use crate::clock::cut;
use crate::token::Lifetime;
use chrono::{DateTime, TimeDelta, Utc};
use std::fmt;
use std::time::Duration;

/// The maximum of any lifetime or limit in a policy, in days.
///
/// This is a thousand years, so that no sum of two dates overflows by mistake.
pub const MAX_DAYS: u32 = 365_000;

/// The shortest lifetime of a token, in seconds.
pub const MIN_LIFETIME_SECONDS: u32 = 60;

/// The token policy of a host.
///
/// | setting | default | bounds |
/// |---|---|---|
/// | [`shown_lifetimes`] | 30, 60, 90, 365 days and never, if allowed | each must be allowed |
/// | [`default_lifetime`] | 90 days, or the longest if that is less | not above the longest |
/// | [`longest_lifetime`] | none | if set, *never* is refused |
/// | [`never_allowed`] | yes, unless there is a longest | not `true` beside a longest lifetime |
/// | [`live_tokens_per_owner`] | none | 1 or more |
/// | [`idle_limit_days`] | none | 1 or more, not below the granularity |
/// | [`longest_overlap`] | 7 days, or the longest if that is less | not above the longest |
/// | [`reuse`] | alert, window 30 days | to revoke, a window of 1 day or more, above the overlap |
/// | [`tokens_managing_tokens`] | attenuated | |
/// | [`oversight`] | hidden | |
/// | [`last_used_granularity`] | 60 s | 0 s or more, not above the idle limit |
/// | [`unknown_scopes`] | refused | |
///
/// Every lifetime must be [`MIN_LIFETIME_SECONDS`] to [`MAX_DAYS`]. The overlap, the idle limit and
/// the reuse window must be [`MAX_DAYS`] at most.
///
/// [`shown_lifetimes`]: TokenPolicyBuilder::shown_lifetimes
/// [`default_lifetime`]: TokenPolicyBuilder::default_lifetime
/// [`longest_lifetime`]: TokenPolicyBuilder::longest_lifetime
/// [`never_allowed`]: TokenPolicyBuilder::never_allowed
/// [`live_tokens_per_owner`]: TokenPolicyBuilder::live_tokens_per_owner
/// [`idle_limit_days`]: TokenPolicyBuilder::idle_limit_days
/// [`longest_overlap`]: TokenPolicyBuilder::longest_overlap
/// [`reuse`]: TokenPolicyBuilder::reuse
/// [`tokens_managing_tokens`]: TokenPolicyBuilder::tokens_managing_tokens
/// [`oversight`]: TokenPolicyBuilder::oversight
/// [`last_used_granularity`]: TokenPolicyBuilder::last_used_granularity
/// [`unknown_scopes`]: TokenPolicyBuilder::unknown_scopes
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPolicy {
    shown_lifetimes: Vec<Lifetime>,
    default_lifetime: Duration,
    longest_lifetime: Option<Duration>,
    never_allowed: bool,
    live_tokens_per_owner: Option<u32>,
    idle_limit_days: Option<u32>,
    longest_overlap: Duration,
    reuse: ReuseSignal,
    reuse_window_days: u32,
    tokens_managing_tokens: TokenManagement,
    oversight: Oversight,
    last_used_granularity: Duration,
    unknown_scopes: UnknownScopes,
}

/// The reaction when the right secret of a rotated token is presented after its overlap.
///
/// The secret is refused in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ReuseSignal {
    /// Does nothing more.
    Off,
    /// Records one audit event per token and hour.
    #[default]
    Alert,
    /// Records the event and, within the window after the rotation, revokes the token's living
    /// descendants.
    RevokeFamily,
}

/// Whether a token may manage tokens.
///
/// Any token may inspect and revoke itself, and may rotate itself unless management is forbidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum TokenManagement {
    /// A token may manage tokens if its effective permissions include the permission. The tokens
    /// that it makes are no wider than itself.
    #[default]
    Attenuated,
    /// As [`Attenuated`](Self::Attenuated), but only if the token's scope names the permission
    /// itself: neither a wildcard nor *inherit* suffices.
    Named,
    /// A token may not manage tokens.
    Forbidden,
}

/// The access of holders of `tokens:oversee` to other owners' personal tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Oversight {
    /// No access.
    #[default]
    Hidden,
    /// Holders may list and revoke the tokens.
    RevokeOnly,
}

/// The handling of unknown scope entries.
///
/// An entry is unknown if it covers no permission that the [role catalogue](crate::RoleCatalog)
/// knows or that the token's owner holds. An existing token that has such an entry is rotated and
/// restored with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum UnknownScopes {
    /// The token is not generated. The error names the entry.
    #[default]
    Refused,
    /// The entry is accepted as it is.
    Allowed,
}

/// The error of [`TokenPolicyBuilder::build`].
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// A setting is out of its bounds.
    #[error("the policy's {setting} is out of bounds; set it to {bounds}")]
    OutOfBounds {
        /// The setting, by the name of its method.
        setting: &'static str,
        /// The allowed values.
        bounds: &'static str,
    },
    /// Two settings contradict each other. The host set the first one itself.
    #[error("the policy's {setting} contradicts its {other}; {cure}")]
    Contradiction {
        /// The setting, by the name of its method.
        setting: &'static str,
        /// The setting that it contradicts.
        other: &'static str,
        /// What to change.
        cure: &'static str,
    },
}

impl PolicyError {
    /// Returns the refused setting, by the name of its method.
    pub const fn setting(&self) -> &'static str {
        match self {
            Self::OutOfBounds { setting, .. } | Self::Contradiction { setting, .. } => setting,
        }
    }
}

/// The error if a lifetime is not allowed.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LifetimeError {
    /// The lifetime is less than [`MIN_LIFETIME_SECONDS`].
    #[error("the lifetime is too short; ask for {MIN_LIFETIME_SECONDS} s or more")]
    TooShort,
    /// The lifetime is longer than the longest of this policy, or than any policy allows.
    #[error("the lifetime is too long; ask for {} at most", Span(*most))]
    TooLong {
        /// The longest allowed lifetime.
        most: Duration,
    },
    /// The policy requires an expiry.
    #[error("a token without an expiry is not allowed; ask for a lifetime in days or seconds")]
    NeverNotAllowed,
    /// The token would outlive the token through which it is made.
    #[error("the new token would outlive the token that makes it; ask for a shorter lifetime")]
    OutlivesCreator,
    /// The expiry is beyond the last date that can be represented.
    #[error("the lifetime ends after the last date that can be represented; ask for a shorter one")]
    Overflow,
}

const SECONDS_PER_DAY: u64 = 24 * 60 * 60;

/// Shows a time span: in days if it is whole days, otherwise in seconds.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.as_secs(), self.0.subsec_nanos()) {
            (SECONDS_PER_DAY, 0) => f.write_str("1 day"),
            (seconds @ SECONDS_PER_DAY.., 0) if seconds % SECONDS_PER_DAY == 0 => {
                write!(f, "{} days", seconds / SECONDS_PER_DAY)
            }
            (seconds, _) => write!(f, "{seconds} s"),
        }
    }
}

impl Lifetime {
    /// Creates a lifetime of whole days.
    ///
    /// # Errors
    /// [`LifetimeError`] if it is less than 1 day or more than [`MAX_DAYS`].
    pub fn days(days: i64) -> Result<Self, LifetimeError> {
        if days < 1 {
            return Err(LifetimeError::TooShort);
        }
        match u32::try_from(days) {
            Ok(days @ 1..=MAX_DAYS) => Ok(Self::Days(days)),
            _ => Err(LifetimeError::TooLong { most: longest() }),
        }
    }

    /// Creates a lifetime in seconds.
    ///
    /// # Errors
    /// [`LifetimeError`] if it is less than [`MIN_LIFETIME_SECONDS`] or more than [`MAX_DAYS`].
    pub fn seconds(seconds: i64) -> Result<Self, LifetimeError> {
        match u64::try_from(seconds) {
            Ok(seconds) => bounded(Duration::from_secs(seconds)).map(|_| Self::Seconds(seconds)),
            Err(_) => Err(LifetimeError::TooShort),
        }
    }

    /// Returns the length of the lifetime, or `None` if it depends on the policy or has no end.
    fn span(self) -> Option<Duration> {
        match self {
            Self::Days(count) => Some(days(count)),
            Self::Seconds(count) => Some(Duration::from_secs(count)),
            Self::Default | Self::Never => None,
        }
    }
}

/// The longest lifetime that any policy allows.
fn longest() -> Duration {
    days(MAX_DAYS)
}

fn shortest() -> Duration {
    Duration::from_secs(MIN_LIFETIME_SECONDS.into())
}

/// Checks a lifetime against the bounds of every policy.
fn bounded(lifetime: Duration) -> Result<Duration, LifetimeError> {
    if lifetime < shortest() {
        Err(LifetimeError::TooShort)
    } else if lifetime > longest() {
        Err(LifetimeError::TooLong { most: longest() })
    } else {
        Ok(lifetime)
    }
}

impl TokenPolicy {
    /// Creates a builder with the defaults.
    pub fn builder() -> TokenPolicyBuilder {
        TokenPolicyBuilder::default()
    }

    /// Returns the lifetimes that a page offers. Requests may ask for others.
    pub fn shown_lifetimes(&self) -> &[Lifetime] {
        &self.shown_lifetimes
    }

    /// Returns the lifetime that applies if a request asks for none.
    pub fn default_lifetime(&self) -> Duration {
        self.default_lifetime
    }

    /// Returns the longest lifetime.
    pub fn longest_lifetime(&self) -> Option<Duration> {
        self.longest_lifetime
    }

    /// Returns whether a token may have no expiry.
    pub fn is_never_allowed(&self) -> bool {
        self.never_allowed
    }

    /// Returns the maximum number of active tokens of one owner.
    pub fn live_tokens_per_owner(&self) -> Option<u32> {
        self.live_tokens_per_owner
    }

    /// Returns after how many days without use a sweep revokes a token.
    pub fn idle_limit_days(&self) -> Option<u32> {
        self.idle_limit_days
    }

    /// Returns the longest overlap of a rotation.
    pub fn longest_overlap(&self) -> Duration {
        self.longest_overlap
    }

    /// Returns the reaction to reuse of a rotated token.
    pub fn reuse(&self) -> ReuseSignal {
        self.reuse
    }

    /// Returns for how many days after a rotation reuse revokes the family.
    pub fn reuse_window_days(&self) -> u32 {
        self.reuse_window_days
    }

    /// Returns whether tokens may manage tokens.
    pub fn tokens_managing_tokens(&self) -> TokenManagement {
        self.tokens_managing_tokens
    }

    /// Returns the access of overseers to other owners' personal tokens.
    pub fn oversight(&self) -> Oversight {
        self.oversight
    }

    /// Returns how finely the last use is recorded.
    pub fn last_used_granularity(&self) -> Duration {
        self.last_used_granularity
    }

    /// Returns the handling of unknown scope entries.
    pub fn unknown_scopes(&self) -> UnknownScopes {
        self.unknown_scopes
    }

    /// Returns the expiry of a token made at `now` with this lifetime, or `None` if it has no
    /// expiry.
    ///
    /// `through` is the expiry of the token through which the new token is made. The outer `None`
    /// means that there is no such token, the inner `None` that it has no expiry.
    ///
    /// # Errors
    /// [`LifetimeError`] if the lifetime is not allowed. The default lifetime is shortened instead.
    pub fn expiry(
        &self,
        lifetime: Lifetime,
        now: DateTime<Utc>,
        through: Option<Option<DateTime<Utc>>>,
    ) -> Result<Option<DateTime<Utc>>, LifetimeError> {
        let creator = through.flatten();
        let expires_at = match (lifetime, lifetime.span()) {
            (_, Some(span)) => {
                let span = bounded(span)?;
                let most = self.longest_lifetime.unwrap_or_else(longest);
                if span > most {
                    return Err(LifetimeError::TooLong { most });
                }
                Some(after(now, span)?)
            }
            (Lifetime::Never, None) if !self.never_allowed => {
                return Err(LifetimeError::NeverNotAllowed);
            }
            (Lifetime::Never, None) => None,
            (_, None) => {
                let end = after(now, self.default_lifetime)?;
                return Ok(Some(creator.map_or(end, |creator| creator.min(end))));
            }
        };
        match creator {
            Some(creator) if expires_at.is_none_or(|expires_at| expires_at > creator) => {
                Err(LifetimeError::OutlivesCreator)
            }
            _ => Ok(expires_at),
        }
    }

    /// Returns the expiry of a successor made at `now`.
    ///
    /// The successor gets its predecessor's lifetime again, shortened to what the policy allows
    /// now.
    ///
    /// # Errors
    /// [`LifetimeError::Overflow`] if the expiry is beyond the last date that can be represented.
    pub fn renewed_expiry(
        &self,
        lifetime: Lifetime,
        now: DateTime<Utc>,
    ) -> Result<Option<DateTime<Utc>>, LifetimeError> {
        let most = self.longest_lifetime.unwrap_or_else(longest);
        let span = match (lifetime, lifetime.span()) {
            (_, Some(span)) => span.clamp(shortest(), most),
            (Lifetime::Never, None) if self.never_allowed => return Ok(None),
            (Lifetime::Never, None) => self.longest_lifetime.unwrap_or(self.default_lifetime),
            (_, None) => self.default_lifetime,
        };
        after(now, span).map(Some)
    }

    /// Returns the expiry of a successor that is made through a token at `now`.
    ///
    /// The successor expires when its predecessor does. If the predecessor has no expiry, the
    /// successor gets the longest lifetime that the policy allows now.
    ///
    /// # Errors
    /// [`LifetimeError::Overflow`] if the expiry is beyond the last date that can be represented.
    pub(crate) fn kept_expiry(
        &self,
        expires_at: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> Result<Option<DateTime<Utc>>, LifetimeError> {
        match (expires_at, self.longest_lifetime) {
            (None, Some(most)) => after(now, most).map(Some),
            (kept, _) => Ok(kept),
        }
    }
}

impl Default for TokenPolicy {
    fn default() -> Self {
        Self {
            shown_lifetimes: SHOWN.to_vec(),
            default_lifetime: days(90),
            longest_lifetime: None,
            never_allowed: true,
            live_tokens_per_owner: None,
            idle_limit_days: None,
            longest_overlap: days(7),
            reuse: ReuseSignal::Alert,
            reuse_window_days: 30,
            tokens_managing_tokens: TokenManagement::Attenuated,
            oversight: Oversight::Hidden,
            last_used_granularity: Duration::from_secs(60),
            unknown_scopes: UnknownScopes::Refused,
        }
    }
}

const SHOWN: [Lifetime; 5] = [
    Lifetime::Days(30),
    Lifetime::Days(60),
    Lifetime::Days(90),
    Lifetime::Days(365),
    Lifetime::Never,
];

/// Builds a [`TokenPolicy`].
///
/// A default is adjusted to the settings that it would contradict. Two contradicting settings that
/// the host made are refused.
#[derive(Debug, Clone, Default)]
pub struct TokenPolicyBuilder {
    /// The settings that contradict no other, and the defaults of all settings.
    policy: TokenPolicy,
    shown_lifetimes: Option<Vec<Lifetime>>,
    default_lifetime: Option<Duration>,
    never_allowed: Option<bool>,
    longest_overlap: Option<Duration>,
}

impl TokenPolicyBuilder {
    /// Sets the lifetimes that a page offers.
    pub fn shown_lifetimes(mut self, lifetimes: impl IntoIterator<Item = Lifetime>) -> Self {
        self.shown_lifetimes = Some(lifetimes.into_iter().collect());
        self
    }

    /// Sets the lifetime that applies if a request asks for none.
    pub fn default_lifetime(mut self, lifetime: Duration) -> Self {
        self.default_lifetime = Some(lifetime);
        self
    }

    /// Sets [`default_lifetime`](Self::default_lifetime) in whole days.
    pub fn default_lifetime_days(mut self, count: u32) -> Self {
        self.default_lifetime = Some(days(count));
        self
    }

    /// Sets the longest lifetime. With it, tokens without an expiry are refused.
    pub fn longest_lifetime(mut self, lifetime: Duration) -> Self {
        self.policy.longest_lifetime = Some(lifetime);
        self
    }

    /// Sets [`longest_lifetime`](Self::longest_lifetime) in whole days.
    pub fn longest_lifetime_days(mut self, count: u32) -> Self {
        self.policy.longest_lifetime = Some(days(count));
        self
    }

    /// Sets whether a token may have no expiry.
    pub fn never_allowed(mut self, allowed: bool) -> Self {
        self.never_allowed = Some(allowed);
        self
    }

    /// Sets the maximum number of active tokens of one owner.
    ///
    /// Concurrent requests may exceed the maximum by their number. A restored token counts; a
    /// rotated token in its overlap does not.
    pub fn live_tokens_per_owner(mut self, most: u32) -> Self {
        self.policy.live_tokens_per_owner = Some(most);
        self
    }

    /// Sets after how many days without use a sweep revokes a token.
    ///
    /// The sweep waits longer by the granularity and the flush interval, because the last use is
    /// known only to within both.
    pub fn idle_limit_days(mut self, days: u32) -> Self {
        self.policy.idle_limit_days = Some(days);
        self
    }

    /// Sets the longest overlap that a rotation may ask for.
    pub fn longest_overlap(mut self, overlap: Duration) -> Self {
        self.longest_overlap = Some(overlap);
        self
    }

    /// Sets what happens when a rotated token is presented after its overlap.
    ///
    /// [`ReuseSignal::RevokeFamily`] revokes for `window_days` after the rotation. The window must
    /// be longer than the overlaps, because reuse begins when an overlap ends.
    pub fn reuse(mut self, signal: ReuseSignal, window_days: u32) -> Self {
        self.policy.reuse = signal;
        self.policy.reuse_window_days = window_days;
        self
    }

    /// Sets whether tokens may manage tokens.
    pub fn tokens_managing_tokens(mut self, rule: TokenManagement) -> Self {
        self.policy.tokens_managing_tokens = rule;
        self
    }

    /// Sets the access of holders of `tokens:oversee` to other owners' personal tokens.
    pub fn oversight(mut self, oversight: Oversight) -> Self {
        self.policy.oversight = oversight;
        self
    }

    /// Sets how finely the last use is recorded.
    ///
    /// A use within this span of the recorded one is not written. The sweep of idle tokens waits
    /// longer by this span.
    pub fn last_used_granularity(mut self, granularity: Duration) -> Self {
        self.policy.last_used_granularity = granularity;
        self
    }

    /// Sets the handling of a scope entry that covers no known permission.
    pub fn unknown_scopes(mut self, rule: UnknownScopes) -> Self {
        self.policy.unknown_scopes = rule;
        self
    }

    /// Builds the policy.
    ///
    /// # Errors
    /// [`PolicyError`], which names the setting that is out of its bounds, or two settings that
    /// contradict each other.
    pub fn build(self) -> Result<TokenPolicy, PolicyError> {
        self.check_bounds()?;
        self.check_contradictions()?;
        let Self { mut policy, shown_lifetimes, default_lifetime, never_allowed, longest_overlap } =
            self;
        let most = policy.longest_lifetime.unwrap_or_else(longest);
        policy.never_allowed = never_allowed.unwrap_or(policy.longest_lifetime.is_none());
        policy.default_lifetime =
            default_lifetime.unwrap_or_else(|| policy.default_lifetime.min(most));
        policy.longest_overlap =
            longest_overlap.unwrap_or_else(|| policy.longest_overlap.min(most));
        policy.shown_lifetimes = shown_lifetimes.unwrap_or_else(|| {
            let is_allowed = |shown: &Lifetime| match shown.span() {
                Some(span) => span <= most,
                None => *shown != Lifetime::Never || policy.never_allowed,
            };
            SHOWN.into_iter().filter(is_allowed).collect()
        });
        Ok(policy)
    }

    fn check_bounds(&self) -> Result<(), PolicyError> {
        const LIFETIME: &str = "60 s to 365000 days";
        let Self { policy, shown_lifetimes, default_lifetime, longest_overlap, .. } = self;
        let is_lifetime = |span: Duration| bounded(span).is_ok();
        let mut shown = shown_lifetimes.iter().flatten();
        let window = match policy.reuse {
            ReuseSignal::RevokeFamily => {
                (1, "a window of 1 to 365000 days, within which reuse revokes the family")
            }
            ReuseSignal::Off | ReuseSignal::Alert => (0, "a window of 0 to 365000 days"),
        };
        let checks = [
            (
                "shown_lifetimes",
                "lifetimes of 60 s to 365000 days",
                shown.all(|shown| shown.span().is_none_or(is_lifetime)),
            ),
            ("default_lifetime", LIFETIME, default_lifetime.is_none_or(is_lifetime)),
            ("longest_lifetime", LIFETIME, policy.longest_lifetime.is_none_or(is_lifetime)),
            ("live_tokens_per_owner", "1 or more", policy.live_tokens_per_owner != Some(0)),
            (
                "idle_limit_days",
                "1 to 365000 days",
                policy.idle_limit_days.is_none_or(|limit| (1..=MAX_DAYS).contains(&limit)),
            ),
            (
                "longest_overlap",
                "0 to 365000 days",
                longest_overlap.is_none_or(|overlap| overlap <= days(MAX_DAYS)),
            ),
            ("reuse", window.1, (window.0..=MAX_DAYS).contains(&policy.reuse_window_days)),
        ];
        match checks.into_iter().find(|(_, _, fits)| !fits) {
            Some((setting, bounds, _)) => Err(PolicyError::OutOfBounds { setting, bounds }),
            None => Ok(()),
        }
    }

    fn check_contradictions(&self) -> Result<(), PolicyError> {
        let Self { policy, shown_lifetimes, default_lifetime, never_allowed, longest_overlap } =
            self;
        let exceeds_longest =
            |span: Duration| policy.longest_lifetime.is_some_and(|most| span > most);
        let is_shown =
            |is_meant: &dyn Fn(&Lifetime) -> bool| shown_lifetimes.iter().flatten().any(is_meant);
        let shows_never = is_shown(&|shown| *shown == Lifetime::Never);
        let revokes_within =
            (policy.reuse == ReuseSignal::RevokeFamily).then(|| days(policy.reuse_window_days));
        let idle_limit = policy.idle_limit_days.map(days);
        let contradictions = [
            (
                "never_allowed",
                "longest_lifetime",
                "leave out one of the two, because a token that never expires exceeds every \
                 lifetime",
                *never_allowed == Some(true) && policy.longest_lifetime.is_some(),
            ),
            (
                "default_lifetime",
                "longest_lifetime",
                "set a default lifetime that is not above the longest",
                default_lifetime.is_some_and(exceeds_longest),
            ),
            (
                "shown_lifetimes",
                "longest_lifetime",
                "show no lifetime that is above the longest",
                is_shown(&|shown| shown.span().is_some_and(exceeds_longest))
                    || (shows_never && policy.longest_lifetime.is_some()),
            ),
            (
                "shown_lifetimes",
                "never_allowed",
                "show no lifetime without an expiry, or allow tokens that never expire",
                shows_never && *never_allowed == Some(false),
            ),
            (
                "longest_overlap",
                "longest_lifetime",
                "set an overlap that is not above the longest lifetime, because no token lives \
                 longer",
                longest_overlap.is_some_and(exceeds_longest),
            ),
            (
                "reuse",
                "longest_overlap",
                "set a window that is longer than the overlap, because reuse counts only after it",
                longest_overlap
                    .zip(revokes_within)
                    .is_some_and(|(overlap, window)| overlap >= window),
            ),
            (
                "idle_limit_days",
                "last_used_granularity",
                "set a granularity that is not above the idle limit, because otherwise a token in \
                 use would count as idle",
                idle_limit.is_some_and(|limit| policy.last_used_granularity > limit),
            ),
        ];
        match contradictions.into_iter().find(|(_, _, _, is_so)| *is_so) {
            Some((setting, other, cure, _)) => {
                Err(PolicyError::Contradiction { setting, other, cure })
            }
            None => Ok(()),
        }
    }
}

pub(crate) fn days(days: u32) -> Duration {
    Duration::from_secs(u64::from(days).saturating_mul(SECONDS_PER_DAY))
}

/// Returns how many whole days a time span has.
#[cfg(feature = "api")]
pub(crate) const fn whole_days(span: Duration) -> u64 {
    span.as_secs() / SECONDS_PER_DAY
}

fn after(now: DateTime<Utc>, span: Duration) -> Result<DateTime<Utc>, LifetimeError> {
    let span = TimeDelta::from_std(span).map_err(|_| LifetimeError::Overflow)?;
    now.checked_add_signed(span).map(cut).ok_or(LifetimeError::Overflow)
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
            (build().default_lifetime_days(0), "default_lifetime"),
            (build().default_lifetime_days(365_001), "default_lifetime"),
            (build().default_lifetime(Duration::from_micros(59_999_999)), "default_lifetime"),
            (build().longest_lifetime_days(0), "longest_lifetime"),
            (build().longest_lifetime_days(u32::MAX), "longest_lifetime"),
            (build().longest_lifetime(Duration::from_secs(59)), "longest_lifetime"),
            (build().longest_lifetime(Duration::MAX), "longest_lifetime"),
            (build().live_tokens_per_owner(0), "live_tokens_per_owner"),
            (build().idle_limit_days(0), "idle_limit_days"),
            (build().longest_overlap(century), "longest_overlap"),
            (build().longest_overlap(Duration::MAX), "longest_overlap"),
            (build().reuse(ReuseSignal::Alert, 365_001), "reuse"),
            (build().reuse(ReuseSignal::RevokeFamily, 0), "reuse"),
            (build().shown_lifetimes([Lifetime::Days(0)]), "shown_lifetimes"),
            (build().shown_lifetimes([Lifetime::Seconds(59)]), "shown_lifetimes"),
            (build().shown_lifetimes([Lifetime::Seconds(u64::MAX)]), "shown_lifetimes"),
        ];
        for (builder, setting) in table {
            let error = builder.build().unwrap_err();
            assert!(matches!(error, PolicyError::OutOfBounds { .. }), "{error}");
            assert_eq!(error.setting(), setting);
        }
        assert_eq!(build().build(), Ok(TokenPolicy::default()));
        assert!(
            build()
                .longest_overlap(Duration::ZERO)
                .last_used_granularity(Duration::ZERO)
                .build()
                .is_ok()
                && build().last_used_granularity(Duration::MAX).build().is_ok()
                && build().reuse(ReuseSignal::Off, 0).build().is_ok()
        );
    }

    /// Tests each pair of settings in both orders, just beyond the bound and at it.
    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        use Lifetime::{Days, Never, Seconds};
        type Set = fn(TokenPolicyBuilder) -> TokenPolicyBuilder;
        const DAY: Duration = Duration::from_secs(86_400);
        const MORE: Duration = Duration::from_secs(86_401);
        let table: [(&str, &str, Set, Set, Set); 10] = [
            (
                "never_allowed",
                "longest_lifetime",
                |b| b.longest_lifetime(DAY),
                |b| b.never_allowed(true),
                |b| b.never_allowed(false),
            ),
            (
                "default_lifetime",
                "longest_lifetime",
                |b| b.longest_lifetime(DAY),
                |b| b.default_lifetime(MORE),
                |b| b.default_lifetime(DAY),
            ),
            (
                "default_lifetime",
                "longest_lifetime",
                |b| b.longest_lifetime_days(30),
                |b| b.default_lifetime_days(31),
                |b| b.default_lifetime_days(30),
            ),
            (
                "shown_lifetimes",
                "longest_lifetime",
                |b| b.longest_lifetime(DAY),
                |b| b.shown_lifetimes([Days(1), Seconds(86_401)]),
                |b| b.shown_lifetimes([Days(1), Seconds(86_400)]),
            ),
            (
                "shown_lifetimes",
                "longest_lifetime",
                |b| b.longest_lifetime(DAY),
                |b| b.shown_lifetimes([Never]),
                |b| b.shown_lifetimes([]),
            ),
            (
                "shown_lifetimes",
                "never_allowed",
                |b| b.never_allowed(false),
                |b| b.shown_lifetimes([Days(1), Never]),
                |b| b.shown_lifetimes([Days(1)]),
            ),
            (
                "longest_overlap",
                "longest_lifetime",
                |b| b.longest_lifetime(DAY),
                |b| b.longest_overlap(MORE),
                |b| b.longest_overlap(DAY),
            ),
            (
                "reuse",
                "longest_overlap",
                |b| b.longest_overlap(DAY),
                |b| b.reuse(ReuseSignal::RevokeFamily, 1),
                |b| b.reuse(ReuseSignal::RevokeFamily, 2),
            ),
            (
                "reuse",
                "longest_overlap",
                |b| b.longest_overlap(DAY),
                |b| b.reuse(ReuseSignal::RevokeFamily, 1),
                |b| b.reuse(ReuseSignal::Alert, 1),
            ),
            (
                "idle_limit_days",
                "last_used_granularity",
                |b| b.idle_limit_days(1),
                |b| b.last_used_granularity(MORE),
                |b| b.last_used_granularity(DAY),
            ),
        ];
        for (setting, other, one, contradiction, fits) in table {
            let build = TokenPolicy::builder;
            for error in [contradiction(one(build())), one(contradiction(build()))]
                .map(TokenPolicyBuilder::build)
            {
                let error = error.unwrap_err();
                let PolicyError::Contradiction { setting: found, other: against, cure } = error
                else {
                    panic!("{setting}: {error}");
                };
                assert_eq!((found, against), (setting, other));
                let text = error.to_string();
                assert!([setting, other, cure].iter().all(|part| text.contains(part)), "{text}");
            }
            for each in [one, contradiction, fits] {
                assert!(each(build()).build().is_ok(), "{setting} alone");
            }
            for both in [fits(one(build())), one(fits(build()))] {
                assert!(both.build().is_ok(), "{setting} beside {other}");
            }
        }
    }

    #[test]
    fn a_default_gives_way_to_what_the_host_sets() {
        let hour =
            TokenPolicy::builder().longest_lifetime(Duration::from_secs(3_600)).build().unwrap();
        assert_eq!(hour.default_lifetime(), Duration::from_secs(3_600));
        assert_eq!(hour.longest_overlap(), Duration::from_secs(3_600));
        assert_eq!(hour.shown_lifetimes(), []);
        assert!(!hour.is_never_allowed());
        let quarter = TokenPolicy::builder().longest_lifetime_days(90).build().unwrap();
        assert_eq!(quarter.default_lifetime(), days(90));
        assert_eq!(quarter.longest_overlap(), days(7));
        assert_eq!(quarter.shown_lifetimes(), [30, 60, 90].map(Lifetime::Days));
        let ending = TokenPolicy::builder().never_allowed(false).build().unwrap();
        assert_eq!(ending.shown_lifetimes(), [30, 60, 90, 365].map(Lifetime::Days));
    }

    #[test]
    fn lifetimes_of_any_number_are_a_lifetime_or_an_error() {
        let too_long = LifetimeError::TooLong { most: days(MAX_DAYS) };
        assert_eq!(Lifetime::days(1), Ok(Lifetime::Days(1)));
        assert_eq!(Lifetime::days(365_000), Ok(Lifetime::Days(365_000)));
        for few in [0, -1, i64::MIN] {
            assert_eq!(Lifetime::days(few), Err(LifetimeError::TooShort));
            assert_eq!(Lifetime::seconds(few), Err(LifetimeError::TooShort));
        }
        for many in [365_001, 1_000_000_000_000_000_000, i64::MAX] {
            assert_eq!(Lifetime::days(many), Err(too_long));
        }
        assert_eq!(Lifetime::seconds(59), Err(LifetimeError::TooShort));
        assert_eq!(Lifetime::seconds(60), Ok(Lifetime::Seconds(60)));
        assert_eq!(Lifetime::seconds(86_400 * 365_000), Ok(Lifetime::Seconds(86_400 * 365_000)));
        for many in [86_400 * 365_000 + 1, 1_000_000_000_000_000_000, i64::MAX] {
            assert_eq!(Lifetime::seconds(many), Err(too_long));
        }
        for (most, text) in [
            (days(1), "1 day"),
            (days(30), "30 days"),
            (Duration::from_secs(90_000), "90000 s"),
            (Duration::from_secs(60), "60 s"),
        ] {
            let shown = LifetimeError::TooLong { most }.to_string();
            assert_eq!(shown, format!("the lifetime is too long; ask for {text} at most"));
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
            (&open, Lifetime::Days(u32::MAX), None, Err(E::TooLong { most: days(MAX_DAYS) })),
            (&open, Lifetime::Seconds(59), None, Err(E::TooShort)),
            (&open, Lifetime::Seconds(60), None, Ok(Some(now() + TimeDelta::seconds(60)))),
            (&open, Lifetime::Seconds(u64::MAX), None, Err(E::TooLong { most: days(MAX_DAYS) })),
            (&open, Lifetime::Seconds(864_000), soon, Ok(Some(in_days(10)))),
            (&open, Lifetime::Seconds(864_001), soon, Err(E::OutlivesCreator)),
            (&month, Lifetime::Seconds(2_592_000), None, Ok(Some(in_days(30)))),
            (&month, Lifetime::Seconds(2_592_001), None, Err(E::TooLong { most: days(30) })),
            (&open, Lifetime::Never, None, Ok(None)),
            (&open, Lifetime::Never, Some(None), Ok(None)),
            (&open, Lifetime::Default, soon, Ok(Some(in_days(10)))),
            (&open, Lifetime::Days(10), soon, Ok(Some(in_days(10)))),
            (&open, Lifetime::Days(11), soon, Err(E::OutlivesCreator)),
            (&open, Lifetime::Never, soon, Err(E::OutlivesCreator)),
            (&month, Lifetime::Default, None, Ok(Some(in_days(30)))),
            (&month, Lifetime::Days(30), None, Ok(Some(in_days(30)))),
            (&month, Lifetime::Days(31), None, Err(E::TooLong { most: days(30) })),
            (&month, Lifetime::Never, None, Err(E::NeverNotAllowed)),
            (&ending, Lifetime::Never, None, Err(E::NeverNotAllowed)),
        ];
        for (policy, lifetime, through, expected) in table {
            assert_eq!(
                policy.expiry(lifetime, now(), through),
                expected,
                "{lifetime:?} {through:?}"
            );
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
            (&month, Lifetime::Seconds(u64::MAX), Some(30)),
            (&open, Lifetime::Seconds(86_400), Some(1)),
            (&ending, Lifetime::Never, Some(90)),
        ];
        for (policy, lifetime, expected) in table {
            assert_eq!(
                policy.renewed_expiry(lifetime, now()),
                Ok(expected.map(in_days)),
                "{lifetime:?}"
            );
        }
    }
}
