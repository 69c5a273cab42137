//! Verifications that wait for nothing.
//!
//! The crate's own memory store, caches and memory directory can answer at once. If store and
//! directory both answer at once, the first poll decides in one plain function and allocates
//! nothing. Otherwise the remaining steps run in a boxed future.
//!
//! The future is written by hand because a hand-written future writes its result to where the
//! caller wants it, while an `async` block moves the result there. The page
//! [Performance](crate::docs::performance) says what each of these gains.

use super::{Claim, Credential, Decision, Peer, unread};
use crate::owner::{Directory, Owner, Realm};
#[cfg(feature = "tower")]
use crate::service::VerifyError;
use crate::service::{TokenService, Unavailable, Verified};
use crate::snapshot::Snapshot;
use crate::store::{StoredToken, TokenStore};
use crate::token::digest::Message;
use crate::token::{Presented, TokenId, TokenState};
use std::pin::Pin;
use std::task::{Context, Poll};

/// Decides at the first poll, unless the store or the directory must be waited for.
pub(super) struct Verification<'a, S, D> {
    pub(super) service: &'a TokenService<S, D>,
    pub(super) credential: Credential<'a>,
    /// The rest of a verification that waits. The box keeps the size of this future out of all
    /// other verifications.
    pub(super) waiting: Option<Pin<Box<dyn Future<Output = Decision> + Send + 'a>>>,
}

impl<S: TokenStore, D: Directory> Future for Verification<'_, S, D> {
    type Output = Decision;

    // If the compiler inlined this into its caller, it would copy the future there word by word.
    #[inline(never)]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Decision> {
        let Self { service, credential: Credential { offered, realm, peer }, waiting } = &mut *self;
        if let Some(waiting) = waiting {
            return waiting.as_mut().poll(context);
        }
        let mut message = Message::room();
        match service.read(*offered, &mut message) {
            Err(reason) => Poll::Ready(Err(unread(reason))),
            Ok(presented) => service.decide_now(&presented, &message, *realm, peer, |claim| {
                waiting.insert(Box::pin(service.decide(claim))).as_mut().poll(context)
            }),
        }
    }
}

impl<S: TokenStore, D: Directory> TokenService<S, D> {
    /// Verifies a credential at the first attempt. Returns `None` if that must wait for the store or
    /// the directory; then nothing has been recorded.
    #[cfg(feature = "tower")]
    pub(crate) fn verify_at_once(
        &self,
        credential: &Credential<'_>,
    ) -> Option<Result<Verified, VerifyError>> {
        let mut message = Message::room();
        let decision = match self.read(credential.offered, &mut message) {
            Err(reason) => Poll::Ready(Err(unread(reason))),
            Ok(presented) => {
                let (realm, peer) = (credential.realm, &credential.peer);
                self.decide_now(&presented, &message, realm, peer, |_| Poll::Pending)
            }
        };
        match decision {
            Poll::Ready(decision) => Some(decision),
            Poll::Pending => None,
        }
    }

    /// Decides at once if the store and the directory can answer at once; otherwise calls `later`.
    #[inline(never)]
    fn decide_now<'a>(
        &self,
        presented: &Presented<'a>,
        message: &Message,
        realm: Option<&'a Realm>,
        peer: &Peer,
        later: impl FnOnce(Claim<'a>) -> Poll<Decision>,
    ) -> Poll<Decision> {
        let store = self.store.shortcut();
        let place = store.prefetch(presented.id);
        let claim = self.claim(presented, message, realm, peer);
        let Some(found) = store.find(presented.id, place) else { return later(claim) };
        let known = match self.prove(&claim, found) {
            Ok(known) => known,
            Err(error) => return Poll::Ready(Err(error)),
        };
        // The rejection of a known token may have to signal reuse, which waits for the store.
        if known.access().state(claim.now) != TokenState::Active {
            return later(claim);
        }
        match self.directory.shortcut().find(known.realm(), known.owner()) {
            Some(owner) => Poll::Ready(self.admit(&claim, &known, owner).map(|owner| {
                self.record_use(&claim, &known);
                Verified::new(known, owner, &self.catalog, claim.peer, claim.now)
            })),
            None => later(claim),
        }
    }

    /// Looks up a record, and waits for the store only if it cannot answer at once.
    pub(super) async fn find_stored(
        &self,
        id: TokenId,
    ) -> Result<Option<StoredToken<'_>>, Unavailable> {
        if let Some(found) = self.store.shortcut().find(id, None) {
            return Ok(found);
        }
        let found = self.store.find(id).await.map_err(Unavailable::Store)?;
        Ok(found.as_deref().map(StoredToken::from))
    }

    /// Looks up the owner of a token, and waits for the directory only if it cannot answer at once.
    pub(super) async fn find_owner(
        &self,
        token: &StoredToken<'_>,
    ) -> Result<Option<Snapshot<Owner>>, Unavailable> {
        let (realm, id) = (token.realm(), token.owner());
        if let Some(owner) = self.directory.shortcut().find(realm, id) {
            Ok(owner)
        } else {
            let owner = self.directory.find(realm, id).await.map_err(Unavailable::Directory)?;
            Ok(owner.map(Snapshot::from))
        }
    }
}
