//! What a host calls: one service that knows all rules.
//!
//! * making and managing tokens, for an [`Actor`]: [`TokenService::generate`] and its like;
//! * verifying them: [`TokenService::verify_header`];
//! * what the host itself does: [`TokenService::revoke_all`], [`TokenService::sweep_idle`], [`TokenService::flush`].

mod actor;
mod check;
mod error;
mod family;
mod manage;
mod request;
mod rotate;
mod system;
mod usage;
mod verified;
mod verify;
mod within;

#[cfg(feature = "axum")]
pub(crate) use actor::ActorCredential;
pub use actor::{Actor, Standing};
pub use check::{CheckError, KeyReport};
pub use error::{
    Attenuation, InvalidInput, ManageError, PolicyRule, RejectReason, Rejected, Unavailable, VerifyError,
};
pub use manage::{IssuedToken, StateCounts, TokenPage};
pub use request::{NewToken, TokenEdit};
pub use usage::UsageStats;
pub use verified::{PermissionDenied, Verified};
#[cfg(feature = "testkit")]
pub(crate) use verify::Peer;
pub use within::Uncommitted;

use crate::audit::{AuditEvent, AuditSink};
use crate::clock::{Clock, SystemClock, cut};
use crate::owner::{Directory, Owner, OwnerId, Realm};
use crate::policy::TokenPolicy;
use crate::random::{SecureRandom, SystemRandom};
use crate::role::{RoleCatalog, RoleError, UnknownName};
use crate::store::{Change, ChangeBatch, StoreError, TokenStore};
use crate::token::id::IdSource;
use crate::token::{Brand, BrandError, Keyring, Token, TokenFormat, TokenFormatError};
use chrono::{DateTime, TimeDelta, Utc};
use rotate::ReuseMemory;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use usage::Usage;

/// The permissions that the rules of this crate ask for.
pub mod permissions {
    /// Manage one's own personal tokens.
    pub const TOKENS_MANAGE: &str = "tokens:manage";
    /// Manage all service tokens of the realm.
    pub const SERVICE_TOKENS_MANAGE: &str = "service-tokens:manage";
    /// Put permissions under `scim:` into a token's scope.
    pub const TOKENS_SCIM: &str = "tokens:scim";
    /// List and revoke personal tokens of others, where the policy allows any oversight.
    pub const TOKENS_OVERSEE: &str = "tokens:oversee";
}

/// How often a change is tried again when others change the same record at the same time.
const MAX_TRIES: usize = 64;
/// The same for a revocation: who wants to keep a token alive may be changing it all the time.
const MAX_REVOKE_TRIES: usize = 2_048;

/// Makes, manages and verifies the tokens of a host.
///
/// It keeps no token in memory, so that any number of them may work on one store: what one of them commits is what
/// the others see. Share it in an `Arc`.
///
/// Dropping the future of an operation on one token leaves all of it done or nothing. What goes on to others (a family, all of an
/// owner's, a sweep) may stop between two of them, each of which is changed whole; calling it again goes on.
pub struct TokenService<S, D> {
    store: S,
    directory: D,
    format: TokenFormat,
    // Shared with those that work within a transaction of the host's.
    keyring: Arc<Keyring>,
    catalog: Arc<RoleCatalog>,
    policy: TokenPolicy,
    clock: Arc<dyn Clock>,
    random: Arc<dyn SecureRandom>,
    /// Shared with those that work within a transaction of the host's, so that all ids increase.
    ids: Arc<IdSource>,
    sink: Option<Arc<dyn AuditSink>>,
    usage: Usage,
    /// Reuse that needs nothing more to be done for now.
    reuse: ReuseMemory,
    flush_interval: Duration,
    /// Where it works within a transaction of the host's: what it put there, to be told after the host's commit.
    uncommitted: Option<Mutex<Uncommitted>>,
}

impl TokenService<(), ()> {
    /// Begins a service on a store and a directory.
    pub fn builder<S: TokenStore, D: Directory>(store: S, directory: D) -> TokenServiceBuilder<S, D> {
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
    /// The store.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The directory.
    pub fn directory(&self) -> &D {
        &self.directory
    }

    /// The policy.
    pub fn policy(&self) -> &TokenPolicy {
        &self.policy
    }

    /// The roles, and the permissions that the host knows.
    pub fn roles(&self) -> &RoleCatalog {
        &self.catalog
    }

    /// The format of the tokens' text: for secret scanners and for checking a text without the store.
    pub fn format(&self) -> &TokenFormat {
        &self.format
    }

    fn now(&self) -> DateTime<Utc> {
        cut(self.clock.now())
    }

    /// The time since some fixed moment.
    #[cfg(feature = "axum")]
    pub(crate) fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    /// The owner, if the directory knows it.
    async fn owner(&self, realm: &Realm, id: &OwnerId) -> Result<Option<Arc<Owner>>, Unavailable> {
        let found = self.directory.find(realm, id).await.map_err(Unavailable::Directory)?;
        // A directory that answers for another id or realm, `bot` when asked for `BOT`, has not found the owner.
        Ok(found.filter(|owner| owner.is(realm, id)))
    }

    /// Commits a batch, tells the sink, and finds out what happened where the store does not know: by the record of the
    /// batch's first insert or update.
    async fn commit(&self, batch: ChangeBatch) -> Result<(), StoreError> {
        match self.store.commit(&batch).await {
            Err(StoreError::OutcomeUnknown(cause)) if !self.is_committed(&batch).await => {
                return Err(StoreError::OutcomeUnknown(cause));
            }
            Ok(()) | Err(StoreError::OutcomeUnknown(_)) => {}
            Err(error) => return Err(error),
        }
        match &self.uncommitted {
            Some(uncommitted) => within::hold(uncommitted, batch),
            None => self.tell(&batch.events),
        }
        Ok(())
    }

    async fn is_committed(&self, batch: &ChangeBatch) -> bool {
        let inserted = batch.changes.iter().find(|change| matches!(change, Change::Insert(_)));
        match inserted.or(batch.changes.first()) {
            Some(Change::Insert(token) | Change::Update(token)) => {
                // Its last use may have moved since, and a seal is the store's own.
                let is_ours = |found: &Token| {
                    let found = Token { last_used: token.last_used, seal: token.seal, ..Token::clone(found) };
                    found == **token && found.name.as_str() == token.name.as_str()
                };
                let found = self.store.find_current(token.id).await;
                found.is_ok_and(|found| found.is_some_and(|found| is_ours(&found)))
            }
            Some(Change::Remove { id, .. }) => matches!(self.store.find_current(*id).await, Ok(None)),
            None => false,
        }
    }

    fn tell(&self, events: &[AuditEvent]) {
        if let Some(sink) = &self.sink {
            for event in events {
                sink.record(event);
            }
        }
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

/// Makes a [`TokenService`].
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

/// Why a service was not built.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No brand was given.
    #[error("the service has no brand; call `.brand(\"acme\")` on the builder")]
    NoBrand,
    /// A brand is out of bounds.
    #[error("the brand {0:?} is refused: {1}")]
    Brand(String, BrandError),
    /// The brands do not go together.
    #[error(transparent)]
    Format(TokenFormatError),
    /// No keyring was given.
    #[error(
        "the service has no keyring; call `.keyring(Keyring::from_env(\"ACME_TOKEN_KEYS\")?)` on the builder"
    )]
    NoKeyring,
    /// The standard role catalogue is broken; give one.
    #[error("the role catalogue is refused: {0}")]
    Roles(RoleError),
    /// The flush interval is not from 1 ms to 1 hour.
    #[error("the flush interval must be 1 ms to 1 hour; set it by `.flush_interval(…)` on the builder")]
    FlushInterval,
    /// The cap of pending uses is zero.
    #[error("the cap of pending uses must be 1 or more; set it by `.pending_cap(…)` on the builder")]
    PendingCap,
}

impl<S: TokenStore, D: Directory> TokenServiceBuilder<S, D> {
    /// The first part of every token's text: `[a-z][a-z0-9]{1,15}`. There is no default.
    pub fn brand(mut self, brand: &str) -> Self {
        self.brand = Some(brand.into());
        self
    }

    /// A brand that tokens had before and that is still accepted; up to eight.
    pub fn former_brand(mut self, brand: &str) -> Self {
        self.former_brands.push(brand.into());
        self
    }

    /// The keys. There is no default.
    pub fn keyring(mut self, keyring: Keyring) -> Self {
        self.keyring = Some(keyring);
        self
    }

    /// The roles; [`RoleCatalog::standard`] where none are given.
    pub fn roles(mut self, catalog: RoleCatalog) -> Self {
        self.catalog = Some(catalog);
        self
    }

    /// The policy, instead of the default one.
    pub fn policy(mut self, policy: TokenPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// The clock, instead of the system's.
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// The generator of secrets, instead of the operating system's.
    pub fn random(mut self, random: impl SecureRandom + 'static) -> Self {
        self.random = Arc::new(random);
        self
    }

    /// Who is told of every audit event after it was stored.
    pub fn audit_sink(mut self, sink: impl AuditSink + 'static) -> Self {
        self.sink = Some(Arc::new(sink));
        self
    }

    /// Audits one in `one_in` refusals of a known token, chosen at random: 1 audits each, 0 none. Defaults to 0. The events are
    /// stored with the next flush.
    pub fn audit_refusals(mut self, one_in: u32) -> Self {
        self.refusals_audited = one_in;
        self
    }

    /// How often [`TokenService::run_flusher`] writes last uses: from 1 ms to 1 hour, 10 s by default. A crash loses what was
    /// used within it.
    pub fn flush_interval(mut self, interval: Duration) -> Self {
        self.flush_interval = interval;
        self
    }

    /// For how many tokens a last use may wait for being written, 100,000 by default; what comes beyond while the store is
    /// down is dropped and counted.
    pub fn pending_cap(mut self, cap: usize) -> Self {
        self.pending_cap = cap;
        self
    }

    /// The service.
    ///
    /// # Errors
    /// [`BuildError`], which names what is missing or refused.
    pub fn build(self) -> Result<TokenService<S, D>, BuildError> {
        let brand = |text: String| Brand::new(&text).map_err(|error| BuildError::Brand(text, error));
        let former = self.former_brands.into_iter().map(brand).collect::<Result<Vec<_>, _>>()?;
        let current = brand(self.brand.ok_or(BuildError::NoBrand)?)?;
        let format = TokenFormat::new(current, &former).map_err(BuildError::Format)?;
        let keyring = self.keyring.ok_or(BuildError::NoKeyring)?;
        let catalog = match self.catalog {
            Some(catalog) => catalog,
            None => RoleCatalog::standard().build().map_err(BuildError::Roles)?,
        };
        if !(Duration::from_millis(1)..=Duration::from_secs(3_600)).contains(&self.flush_interval) {
            return Err(BuildError::FlushInterval);
        }
        if self.pending_cap == 0 {
            return Err(BuildError::PendingCap);
        }
        let usage = Usage::new(self.policy.last_used_granularity(), self.pending_cap, self.refusals_audited);
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

/// Tells the operator of names that the role catalogue does not know.
fn reporter(sink: Option<Arc<dyn AuditSink>>) -> impl Fn(UnknownName<'_>) + Send + Sync + 'static {
    move |name| {
        #[cfg(feature = "tracing")]
        tracing::warn!(target: "patkit::role", name = ?name.as_str(), "{name}");
        if let Some(sink) = &sink {
            sink.unknown_name(name);
        }
    }
}

/// A panic elsewhere leaves what the service keeps in memory whole: nothing panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A span of chrono's for one of std's; what chrono cannot hold is longer than anything here.
fn to_delta(duration: Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX)
}
