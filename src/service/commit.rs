//! Commits, and the loop of compare-and-set: a change reads, decides and commits, and starts again
//! if another change came between its reading and its commit.
//!
//! Each operation writes the loop out instead of passing a closure to one function, because the
//! compiler cannot tell that the future of such a function is `Send`.

use super::error::{ManageError, store_error};
use super::{TokenService, host_transaction};
use crate::audit::AuditEvent;
use crate::owner::Directory;
use crate::store::{Change, ChangeBatch, Conflict, StoreError, TokenStore};
use crate::token::{Token, TokenId};

/// The number of tries that an operation has left.
#[derive(Debug)]
pub(super) struct Tries(usize);

/// The outcome of a commit that decides whether an operation starts again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Commit {
    /// The batch is stored.
    Done,
    /// Another change of one of the records came first, so the operation must decide again.
    Outdated,
    /// Another token of the owner has the name.
    NameTaken,
}

impl Tries {
    /// Returns the tries of a change: 64.
    pub(super) const fn of_change() -> Self {
        Self(64)
    }

    /// Returns the tries of a revocation: 2,048, because somebody may keep changing a token to keep
    /// it alive.
    pub(super) const fn of_revocation() -> Self {
        Self(2_048)
    }

    /// Starts the next try.
    ///
    /// # Errors
    /// [`ManageError::Contended`] if no try is left.
    pub(super) fn start(&mut self) -> Result<(), ManageError> {
        self.0 = self.0.checked_sub(1).ok_or(ManageError::Contended)?;
        Ok(())
    }
}

impl<S: TokenStore, D: Directory> TokenService<S, D> {
    /// Commits the batch of one try, and notifies the sink.
    ///
    /// # Errors
    /// Any error but a conflict. `witness` is the record by which the host can find out whether a
    /// commit happened if its outcome is unknown.
    pub(super) async fn try_commit(
        &self,
        batch: ChangeBatch,
        witness: TokenId,
    ) -> Result<Commit, ManageError> {
        match self.commit(batch).await {
            Ok(()) => Ok(Commit::Done),
            Err(StoreError::Conflict(Conflict::Id(_) | Conflict::Version(_))) => {
                Ok(Commit::Outdated)
            }
            Err(StoreError::Conflict(Conflict::Name(_))) => Ok(Commit::NameTaken),
            Err(error) => Err(store_error(error, witness)),
        }
    }

    /// Commits a batch and notifies the sink.
    ///
    /// If the store does not know the outcome, this looks the outcome up in the record of the
    /// batch's first insert or, without an insert, of its first change.
    pub(super) async fn commit(&self, batch: ChangeBatch) -> Result<(), StoreError> {
        match self.store.commit(&batch).await {
            Err(StoreError::OutcomeUnknown(cause)) if !self.is_committed(&batch).await => {
                return Err(StoreError::OutcomeUnknown(cause));
            }
            Ok(()) | Err(StoreError::OutcomeUnknown(_)) => {}
            Err(error) => return Err(error),
        }
        match &self.uncommitted {
            Some(uncommitted) => host_transaction::hold(uncommitted, batch),
            None => self.tell(&batch.events),
        }
        Ok(())
    }

    async fn is_committed(&self, batch: &ChangeBatch) -> bool {
        let inserted = batch.changes.iter().find(|change| matches!(change, Change::Insert(_)));
        match inserted.or(batch.changes.first()) {
            Some(Change::Insert(token) | Change::Update(token)) => {
                // The last use may have moved since, and only the store sets the seal.
                let is_ours = |found: &Token| {
                    let found = Token {
                        last_used: token.last_used,
                        seal: token.seal,
                        ..Token::clone(found)
                    };
                    found == **token && found.name.as_str() == token.name.as_str()
                };
                let found = self.store.find_current(token.id).await;
                found.is_ok_and(|found| found.is_some_and(|found| is_ours(&found)))
            }
            Some(Change::Remove { id, .. }) => {
                matches!(self.store.find_current(*id).await, Ok(None))
            }
            None => false,
        }
    }

    /// Notifies the audit sink.
    pub(super) fn tell(&self, events: &[AuditEvent]) {
        if let Some(sink) = &self.sink {
            for event in events {
                sink.record(event);
            }
        }
    }
}
