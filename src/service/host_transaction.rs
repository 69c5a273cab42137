//! The service within a transaction of the host.

use super::TokenService;
use super::rotate::ReuseMemory;
use crate::audit::AuditEvent;
use crate::owner::Directory;
use crate::store::{Change, ChangeBatch, TokenStore};
use crate::token::TokenId;
use std::sync::{Mutex, PoisonError};

/// The changes that a service wrote to a transaction of the host.
///
/// The host may still roll them back. [`TokenService::into_uncommitted`] returns them.
#[derive(Debug, Default)]
#[must_use = "after the commit, pass it to `TokenService::after_commit`"]
pub struct Uncommitted {
    batches: Vec<ChangeBatch>,
}

impl Uncommitted {
    /// Returns the audit events, which are stored with the host's commit.
    pub fn events(&self) -> impl Iterator<Item = &AuditEvent> {
        self.batches.iter().flat_map(|batch| &batch.events)
    }

    /// Returns the ids of the records that change with the host's commit.
    ///
    /// [`TokenService::after_commit`] invalidates them in the service's own cache.
    pub fn ids(&self) -> impl Iterator<Item = TokenId> {
        self.batches.iter().flat_map(|batch| &batch.changes).map(Change::id)
    }
}

impl<S: TokenStore, D: Directory> TokenService<S, D> {
    /// Returns this service on another store, such as a `SqlStoreWithin` in a transaction of the
    /// host.
    ///
    /// A token and a row of the host are then committed together or not at all. The rules are those
    /// of this service: policy, keyring, roles, directory, clock.
    ///
    /// Until the host commits, the service differs as follows:
    ///
    /// * The **audit sink** is not notified, because the change may still be rolled back.
    ///   [`into_uncommitted`](Self::into_uncommitted) returns the events, and
    ///   [`after_commit`](Self::after_commit) notifies the sink. After a rollback, drop them.
    /// * A **cache** in front of the store does not see the changes until
    ///   [`after_commit`](Self::after_commit) invalidates them. Nodes that follow the changes are
    ///   notified by the commit.
    /// * **Last uses** that are recorded through the returned service are its own. Its
    ///   [`flush`](Self::flush) writes them within the transaction; without a flush they are lost.
    ///   The last uses of this service are not affected.
    /// * A change that **conflicts** is retried within the transaction, as it is outside.
    ///
    /// The text of a new token is valid only after the commit, so show it then.
    pub fn within<V: TokenStore>(&self, store: V) -> TokenService<V, &D> {
        TokenService {
            store,
            directory: &self.directory,
            format: self.format.clone(),
            keyring: self.keyring.clone(),
            catalog: self.catalog.clone(),
            policy: self.policy.clone(),
            clock: self.clock.clone(),
            random: self.random.clone(),
            ids: self.ids.clone(),
            sink: self.sink.clone(),
            usage: self.usage.anew(),
            // Not shared, because the host may roll back the revocations and reports of reuse.
            reuse: ReuseMemory::default(),
            flush_interval: self.flush_interval,
            uncommitted: Some(Mutex::default()),
        }
    }

    /// Ends a service made by [`within`](Self::within), so that the host can commit.
    ///
    /// Returns the changes to report after the commit. For any other service, these are empty.
    pub fn into_uncommitted(self) -> Uncommitted {
        let uncommitted = self.uncommitted.unwrap_or_default();
        uncommitted.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completes changes that the host has committed: invalidates them in the service's cache, and
    /// notifies the audit sink.
    ///
    /// Call it on the service that [`within`](Self::within) was called on. The cache is found if the
    /// service's store is a `CachedStore`, or a pointer to one. If a store of the host's wraps a
    /// `CachedStore`, the host must invalidate [`Uncommitted::ids`] in it. Until then, the cache
    /// returns the old records, at most for its lifetime.
    pub fn after_commit(&self, uncommitted: &Uncommitted) {
        self.store.shortcut().invalidate(uncommitted.ids());
        for batch in &uncommitted.batches {
            if let Some((realm, owner)) = &batch.erase {
                self.usage.erase(realm, owner);
            }
            self.tell(&batch.events);
        }
    }
}

/// Keeps a batch until the host commits.
pub(super) fn hold(uncommitted: &Mutex<Uncommitted>, batch: ChangeBatch) {
    uncommitted.lock().unwrap_or_else(PoisonError::into_inner).batches.push(batch);
}
