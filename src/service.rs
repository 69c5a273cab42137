//! The service that a host calls, which enforces all rules.
//!
//! * Creating and managing tokens for an [`Actor`]: [`TokenService::generate`] and similar methods.
//! * Verifying tokens: [`TokenService::verify`].
//! * Operations of the host itself: [`TokenService::revoke_all`], [`TokenService::sweep_idle`],
//!   [`TokenService::flush`].

mod actor;
mod check;
mod commit;
mod credential;
mod error;
mod family;
mod host_transaction;
mod manage;
mod request;
mod rotate;
mod system;
mod usage;
mod verified;
mod verify;

#[cfg(feature = "api")]
pub(crate) use actor::ActorCredential;
pub use actor::{Actor, Standing};
pub use check::{CheckError, KeyReport};
pub use credential::Credential;
pub use error::{
    Attenuation, InvalidInput, ManageError, PolicyRule, RejectReason, Rejected, Unavailable,
    VerifyError,
};
pub use host_transaction::Uncommitted;
pub use manage::{IssuedToken, StateCounts, TokenPage};
pub use request::{NewToken, TokenEdit};
pub use usage::UsageStats;
pub use verified::{PermissionDenied, Verified};
#[cfg(feature = "testkit")]
pub(crate) use verify::Peer;

use crate::audit::AuditSink;
use crate::clock::{Clock, SystemClock, cut};
use crate::owner::{Directory, Owner, OwnerId, Realm};
use crate::policy::TokenPolicy;
use crate::random::{SecureRandom, SystemRandom};
use crate::role::{RoleCatalog, UnknownName};
use crate::store::TokenStore;
use crate::token::id::IdSource;
use crate::token::{Brand, BrandError, Keyring, TokenFormat, TokenFormatError};
use chrono::{DateTime, TimeDelta, Utc};
use rotate::ReuseMemory;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use usage::Usage;

/// Creates, manages and verifies the tokens of a host.
///
/// The service keeps no token in memory, so that any number of services may share one store: each
/// sees what the others commit. Share it in an `Arc`.
///
/// If the future of an operation on one token is dropped, the operation is done completely or not
/// at all. An operation on several tokens (a family, all tokens of an owner, a sweep) may stop
/// between two of them, but changes each one completely. Calling it again continues it.
pub struct TokenService<S, D> {
    store: S,
    directory: D,
    format: TokenFormat,
    // Shared with the services that `within` makes.
    keyring: Arc<Keyring>,
    catalog: Arc<RoleCatalog>,
    policy: TokenPolicy,
    clock: Arc<dyn Clock>,
    random: Arc<dyn SecureRandom>,
    /// Shared with the services that `within` makes, so that all ids increase.
    ids: Arc<IdSource>,
    sink: Option<Arc<dyn AuditSink>>,
    usage: Usage,
    /// Predecessors whose reuse needs no more work for now.
    reuse: ReuseMemory,
    flush_interval: Duration,
    /// The changes to report after the host's commit, if this service works within a transaction of
    /// the host.
    uncommitted: Option<Mutex<Uncommitted>>,
}

impl TokenService<(), ()> {
    /// Returns a builder of a service on a store and a directory.
    pub fn builder<S: TokenStore, D: Directory>(
        store: S,
        directory: D,
    ) -> TokenServiceBuilder<S, D> {
        TokenServiceBuilder {
            store,
            directory,
            brand: None,
            former_brands: Vec::new(),
            keyring: None,
            catalog: None,
            policy: TokenPolicy::default(),
            clock: Arc::new(SystemClock::new()),
            random: Arc::new(SystemRandom::new()),
            sink: None,
            refusals_audited: 0,
            flush_interval: Duration::from_secs(10),
            pending_cap: 100_000,
        }
    }
}

impl<S: TokenStore, D: Directory> TokenService<S, D> {
    /// Returns the store.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Returns the directory.
    pub fn directory(&self) -> &D {
        &self.directory
    }

    /// Returns the policy.
    pub fn policy(&self) -> &TokenPolicy {
        &self.policy
    }

    /// Returns the roles and the permissions that the host knows.
    pub fn roles(&self) -> &RoleCatalog {
        &self.catalog
    }

    /// Returns the format of the tokens' text.
    ///
    /// Use it for secret scanners, and to check a text without the store.
    pub fn format(&self) -> &TokenFormat {
        &self.format
    }

    fn now(&self) -> DateTime<Utc> {
        cut(self.clock.now())
    }

    /// Returns the time since a fixed moment.
    #[cfg(feature = "api")]
    pub(crate) fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    /// Looks up an owner. Returns `None` if the directory does not know it.
    async fn owner(&self, realm: &Realm, id: &OwnerId) -> Result<Option<Arc<Owner>>, Unavailable> {
        let found = self.directory.find(realm, id).await.map_err(Unavailable::Directory)?;
        // A directory that answers for another id or realm, such as `bot` for `BOT`, has not found
        // the owner.
        Ok(found.filter(|owner| owner.is(realm, id)))
    }
}

impl<S, D> fmt::Debug for TokenService<S, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenService")
            .field("brand", self.format.brand())
            .field("keyring", &self.keyring)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

/// Builds a [`TokenService`].
pub struct TokenServiceBuilder<S, D> {
    store: S,
    directory: D,
    brand: Option<String>,
    former_brands: Vec<String>,
    keyring: Option<Keyring>,
    catalog: Option<RoleCatalog>,
    policy: TokenPolicy,
    clock: Arc<dyn Clock>,
    random: Arc<dyn SecureRandom>,
    sink: Option<Arc<dyn AuditSink>>,
    refusals_audited: u32,
    flush_interval: Duration,
    pending_cap: usize,
}

/// Why a service could not be built.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No brand was given.
    #[error("the service has no brand; call `.brand(\"acme\")` on the builder")]
    NoBrand,
    /// A brand is invalid.
    #[error("the brand {0:?} is refused: {1}")]
    Brand(String, BrandError),
    /// The brands cannot be combined.
    #[error(transparent)]
    Format(TokenFormatError),
    /// No keyring was given.
    #[error(
        "the service has no keyring; call `.keyring(Keyring::from_env(\"ACME_TOKEN_KEYS\")?)` on the builder"
    )]
    NoKeyring,
    /// The flush interval is not 1 ms to 1 hour.
    #[error(
        "the flush interval must be 1 ms to 1 hour; set it by `.flush_interval(…)` on the builder"
    )]
    FlushInterval,
    /// The cap of pending uses is zero.
    #[error(
        "the cap of pending uses must be 1 or more; set it by `.pending_cap(…)` on the builder"
    )]
    PendingCap,
}

impl<S: TokenStore, D: Directory> TokenServiceBuilder<S, D> {
    /// Sets the first part of every token's text.
    ///
    /// Must match `[a-z][a-z0-9]{1,15}`. Required.
    pub fn brand(mut self, brand: &str) -> Self {
        self.brand = Some(brand.into());
        self
    }

    /// Adds a former brand, whose tokens are still accepted.
    ///
    /// At most eight.
    pub fn former_brand(mut self, brand: &str) -> Self {
        self.former_brands.push(brand.into());
        self
    }

    /// Sets the keys. Required.
    pub fn keyring(mut self, keyring: Keyring) -> Self {
        self.keyring = Some(keyring);
        self
    }

    /// Sets the roles. Defaults to [`RoleCatalog::standard`].
    pub fn roles(mut self, catalog: RoleCatalog) -> Self {
        self.catalog = Some(catalog);
        self
    }

    /// Sets the policy. Defaults to `TokenPolicy::default()`.
    pub fn policy(mut self, policy: TokenPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets the clock. Defaults to the system's.
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Sets the generator of secrets. Defaults to the operating system's.
    pub fn random(mut self, random: impl SecureRandom + 'static) -> Self {
        self.random = Arc::new(random);
        self
    }

    /// Sets the sink that is notified of every audit event after the event is stored.
    pub fn audit_sink(mut self, sink: impl AuditSink + 'static) -> Self {
        self.sink = Some(Arc::new(sink));
        self
    }

    /// Audits one in `one_in` rejections of a known token, chosen at random.
    ///
    /// 1 audits each rejection and 0 none. Defaults to 0. The events are stored with the next
    /// flush.
    pub fn audit_refusals(mut self, one_in: u32) -> Self {
        self.refusals_audited = one_in;
        self
    }

    /// Sets how often [`TokenService::run_flusher`] writes last uses.
    ///
    /// Must be 1 ms to 1 hour. Defaults to 10 s. A crash loses the uses since the last flush.
    pub fn flush_interval(mut self, interval: Duration) -> Self {
        self.flush_interval = interval;
        self
    }

    /// Sets for how many tokens a last use may wait to be written.
    ///
    /// Must be 1 or more. Defaults to 100,000. While the store is down, uses beyond the cap are
    /// dropped and counted.
    pub fn pending_cap(mut self, cap: usize) -> Self {
        self.pending_cap = cap;
        self
    }

    /// Builds the service.
    ///
    /// # Errors
    /// [`BuildError`], which names the missing or invalid part.
    pub fn build(self) -> Result<TokenService<S, D>, BuildError> {
        let brand =
            |text: String| Brand::new(&text).map_err(|error| BuildError::Brand(text, error));
        let former = self.former_brands.into_iter().map(brand).collect::<Result<Vec<_>, _>>()?;
        let current = brand(self.brand.ok_or(BuildError::NoBrand)?)?;
        let format = TokenFormat::new(current, &former).map_err(BuildError::Format)?;
        let keyring = self.keyring.ok_or(BuildError::NoKeyring)?;
        let catalog = match self.catalog {
            Some(catalog) => catalog,
            None => RoleCatalog::standard(),
        };
        if !(Duration::from_millis(1)..=Duration::from_secs(3_600)).contains(&self.flush_interval) {
            return Err(BuildError::FlushInterval);
        }
        if self.pending_cap == 0 {
            return Err(BuildError::PendingCap);
        }
        let usage = Usage::new(
            self.policy.last_used_granularity(),
            self.pending_cap,
            self.refusals_audited,
        );
        Ok(TokenService {
            store: self.store,
            directory: self.directory,
            format,
            keyring: Arc::new(keyring),
            catalog: Arc::new(catalog.reporting_to(reporter(self.sink.clone()))),
            policy: self.policy,
            clock: self.clock,
            random: self.random,
            ids: Arc::new(IdSource::new()),
            sink: self.sink,
            usage,
            reuse: ReuseMemory::default(),
            flush_interval: self.flush_interval,
            uncommitted: None,
        })
    }
}

impl<S, D> fmt::Debug for TokenServiceBuilder<S, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenServiceBuilder").field("brand", &self.brand).finish_non_exhaustive()
    }
}

/// Returns a callback that reports the names that the role catalogue does not know.
fn reporter(sink: Option<Arc<dyn AuditSink>>) -> impl Fn(UnknownName<'_>) + Send + Sync + 'static {
    move |name| {
        #[cfg(feature = "tracing")]
        tracing::warn!(target: "patkit::role", name = ?name.as_str(), "{name}");
        if let Some(sink) = &sink {
            sink.unknown_name(name);
        }
    }
}

/// Locks a mutex and ignores poisoning.
///
/// The data stays valid, because nothing panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Converts a std duration to chrono's.
///
/// A duration that chrono cannot hold becomes the maximum, which is longer than any limit here.
fn to_delta(duration: Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX)
}
