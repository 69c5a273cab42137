//! The service within a transaction of the host's own.

use super::TokenService;
use super::rotate::ReuseMemory;
use crate::audit::AuditEvent;
use crate::owner::Directory;
use crate::store::{Change, ChangeBatch, TokenStore};
use crate::token::TokenId;
use std::sync::{Mutex, PoisonError};

/// What was put into a transaction of the host's, which may still be rolled back. From
/// [`TokenService::into_uncommitted`].
#[derive(Debug, Default)]
#[must_use = "after the commit, hand it to `TokenService::committed`"]
pub struct Uncommitted {
    batches: Vec<ChangeBatch>,
}

impl Uncommitted {
    /// The audit events, which are stored with the host's commit.
    pub fn events(&self) -> impl Iterator<Item = &AuditEvent> {
        self.batches.iter().flat_map(|batch| &batch.events)
    }

    /// The records that change with the host's commit: what a cache is to forget after it.
    pub fn ids(&self) -> impl Iterator<Item = TokenId> {
        self.batches.iter().flat_map(|batch| &batch.changes).map(Change::id)
    }
}

impl<S: TokenStore, D: Directory> TokenService<S, D> {
    /// This service on another store, such as a `SqlStoreWithin` that works within a transaction of the
    /// host's: a token and a row of the host's own are then there together or not at all. All rules are this
    /// service's: policy, keyring, roles, directory, clock.
    ///
    /// What is different until the host has committed:
    ///
    /// * The **audit sink** is not told, since the change may still be rolled back.
    ///   [`into_uncommitted`](Self::into_uncommitted) gives what there is to tell, and
    ///   [`committed`](Self::committed) tells it after the commit. After a rollback it is dropped.
    /// * A **cache** in front of the store knows nothing of it. After the commit it is to forget
    ///   [`Uncommitted::ids`] (`CachedStore::invalidate`); until then, and without it, it shows what was
    ///   there before, for its lifetime at most. Nodes that follow the changes hear of it with the commit.
    /// * **Last uses** that are noted through it are its own: its [`flush`](Self::flush) writes them within
    ///   the transaction, or they are gone with it. Those of this service are not touched.
    /// * A change that **conflicts** is tried again within the transaction, as it is outside.
    ///
    /// The text of a token that was made is good after the commit alone: show it then.
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
            // Its own, since the host may roll back what was done about reuse.
            reuse: ReuseMemory::default(),
            flush_interval: self.flush_interval,
            uncommitted: Some(Mutex::default()),
        }
    }

    /// Ends a service that was made by [`within`](Self::within), so that its host can commit, and gives what
    /// is to be told then. Of any other service that is nothing.
    pub fn into_uncommitted(self) -> Uncommitted {
        let uncommitted = self.uncommitted.unwrap_or_default();
        uncommitted.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host has committed what was put into its transaction: tells the audit sink.
    pub fn committed(&self, uncommitted: &Uncommitted) {
        for batch in &uncommitted.batches {
            if let Some((realm, owner)) = &batch.erase {
                self.usage.erase(realm, owner);
            }
            self.tell(&batch.events);
        }
    }
}

/// Keeps a batch until the host has committed.
pub(super) fn hold(uncommitted: &Mutex<Uncommitted>, batch: ChangeBatch) {
    uncommitted.lock().unwrap_or_else(PoisonError::into_inner).batches.push(batch);
}
