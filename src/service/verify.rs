//! Verifies the credential of a request: returns a [`Verified`] or a rejection.
//!
//! A verification has four steps, and their order is part of the design:
//!
//! 1. *Read* the text, without the store and without a hash.
//! 2. *Find* the record, and compute one digest whether or not there is a record.
//! 3. *Prove* that the secret is the token's, in constant time.
//! 4. *Admit* the token: its state, its owner and the client's address. Only a caller with the
//!    right secret gets here.
//!
//! Two files beside this one make verifications fast: [`at_once`] answers without waiting if
//! nothing must be waited for, and [`peer`] packs the address.

#![allow(
    clippy::inline_always,
    reason = "measured, as in the table: what is moved between functions is a tenth"
)]

mod at_once;
mod peer;
mod proof;
#[cfg(test)]
mod tests;

pub(crate) use peer::Peer;

use super::TokenService;
use super::credential::{Credential, Offered};
use super::error::{RejectReason, Rejected, VerifyError};
use super::verified::Verified;
use crate::authorization::{self, BearerError};
use crate::owner::{Directory, Owner, Realm};
use crate::snapshot::Snapshot;
use crate::store::{StoredToken, TokenStore};
use crate::token::access::Access;
use crate::token::digest::Message;
use crate::token::{KeyedDigest, Presented, TokenState, Unreadable, is_allowed};
use at_once::Verification;
use std::sync::Arc;

/// The outcome of a verification.
type Decision = Result<Verified, VerifyError>;

/// A presented token with everything that is known before the lookup.
struct Claim<'a> {
    presented: Presented<'a>,
    realm: Option<&'a Realm>,
    peer: Peer,
    now: i64,
    /// The digest under the primary key.
    computed: KeyedDigest,
}

impl Claim<'_> {
    #[cold]
    fn rejected(&self, reason: RejectReason) -> VerifyError {
        Rejected { reason, token: Some(self.presented.id) }.into()
    }
}

impl<S: TokenStore, D: Directory> TokenService<S, D> {
    /// Verifies the credential of a request.
    ///
    /// Dropping the future before it is ready verifies nothing and records no use.
    ///
    /// # Errors
    /// [`VerifyError`]: rejected, with a reason for the operator, or unavailable.
    // This is not an `async fn`, because that would add a future that copies the result.
    pub fn verify<'a>(
        &'a self,
        credential: Credential<'a>,
    ) -> impl Future<Output = Result<Verified, VerifyError>> + Send {
        Verification { service: self, credential, waiting: None }
    }

    /// Verifies a credential without recording a use of the token. Everything else is as in
    /// [`verify`](Self::verify): a refusal of a known token is an audit event.
    ///
    /// This is for a service that asks about a token on behalf of another one.
    ///
    /// # Errors
    /// [`VerifyError`]: rejected, with a reason for the operator, or unavailable.
    pub async fn inspect(&self, credential: Credential<'_>) -> Result<Verified, VerifyError> {
        let claim = {
            let mut message = Message::room();
            let presented = self.read(credential.offered, &mut message).map_err(unread)?;
            self.claim(&presented, &message, credential.realm, &credential.peer)
        };
        let (known, owner) = self.find_admitted(&claim).await?;
        Ok(Verified::new(known, owner, &self.catalog, claim.peer, claim.now))
    }

    /// Verifies a token again, without its secret.
    ///
    /// Checks that the token still exists and is active and that its owner is still enabled. The
    /// result has the current permissions. A recheck counts as a use of the token.
    ///
    /// # Errors
    /// [`VerifyError`]: rejected, with a reason for the operator, or unavailable.
    pub async fn recheck(&self, verified: &Verified) -> Result<Verified, VerifyError> {
        let id = verified.token().id();
        let rejected = |reason| Rejected { reason, token: Some(id) };
        let found = self.find_stored(id).await?;
        let found = found.filter(|found| found.realm() == verified.realm());
        let found = found.ok_or(rejected(RejectReason::Unknown))?;
        let now = self.clock.now_micros();
        admit_state(found.access(), now).map_err(rejected)?;
        let owner = self.find_owner(&found).await?;
        let owner = admit_owner(&found, owner, verified.peer, now).map_err(rejected)?;
        self.usage.record(id, found.access().last_used_at(), verified.peer, now);
        Ok(Verified::new(found, owner, &self.catalog, verified.peer, now))
    }

    /// Takes the steps after the reading, and waits for the store and the directory if necessary.
    async fn decide(&self, claim: Claim<'_>) -> Decision {
        let (known, owner) = self.find_admitted(&claim).await?;
        self.record_use(&claim, &known);
        Ok(Verified::new(known, owner, &self.catalog, claim.peer, claim.now))
    }

    /// Finds the token of a claim and its owner, and admits them.
    async fn find_admitted(
        &self,
        claim: &Claim<'_>,
    ) -> Result<(StoredToken<'_>, Snapshot<Owner>), VerifyError> {
        let found = self.find_stored(claim.presented.id).await?;
        let known = self.prove(claim, found)?;
        if let Err(reason) = admit_state(known.access(), claim.now) {
            self.audit_refusal(&known, reason, claim.peer.address(), claim.now);
            // The rejection does not depend on the reuse signal. If the signal fails, the next
            // presentation sends it. `self.now()` is the clock that stamped the rotation; it may be
            // finer than the clock of verifications.
            let token = Arc::new(known.into_token());
            // The box keeps the size of this future out of every verification that waits for the
            // store.
            let _ = Box::pin(self.signal_reuse(token, claim.peer.address(), self.now())).await;
            return Err(claim.rejected(reason));
        }
        let owner = self.find_owner(&known).await?;
        let owner = self.admit(claim, &known, owner)?;
        Ok((known, owner))
    }

    /// Reads a credential: the scheme, the form of the text and its checksum.
    // If the compiler inlined this, it would leave a word of the secret on the caller's stack, as
    // the tests of `secrets` found.
    #[inline(never)]
    fn read<'a>(
        &self,
        offered: Offered<'a>,
        message: &mut Message,
    ) -> Result<Presented<'a>, RejectReason> {
        let text = match offered {
            Offered::Text(text) => text,
            Offered::Header(None) => return Err(RejectReason::NoCredential),
            Offered::Invalid => return Err(RejectReason::InvalidRequest),
            Offered::Header(Some(header)) => {
                authorization::after_scheme(header).map_err(|error| match error {
                    BearerError::Missing => RejectReason::NoCredential,
                    BearerError::Malformed => RejectReason::InvalidRequest,
                })?
            }
        };
        self.format.parse(text, message).map_err(|error| match (offered, error) {
            (Offered::Header(_), Unreadable::Form) if !authorization::is_token68(text) => {
                RejectReason::InvalidRequest
            }
            _ => RejectReason::Malformed,
        })
    }

    /// Returns the claim of a presented token, with the current time and the digest.
    #[inline(always)]
    fn claim<'a>(
        &self,
        presented: &Presented<'a>,
        message: &Message,
        realm: Option<&'a Realm>,
        peer: &Peer,
    ) -> Claim<'a> {
        // The clock is read on every path, so that its cost does not distinguish rejections. It is
        // read before the lookup, so that a token which expires during the lookup still counts as
        // active.
        let now = self.clock.now_micros();
        let computed = self.keyring.digest(message);
        Claim { presented: *presented, realm, peer: *peer, now, computed }
    }

    /// Returns the record if the presented secret is the token's.
    #[inline(always)]
    fn prove<'s>(
        &self,
        claim: &Claim<'_>,
        found: Option<StoredToken<'s>>,
    ) -> Result<StoredToken<'s>, VerifyError> {
        // The realm is checked first, so that a token of another realm behaves like a missing one.
        let is_here =
            |found: &StoredToken<'_>| claim.realm.is_none_or(|realm| found.realm() == realm);
        let known = found.filter(is_here);
        let is_proven = self.is_proven(claim, known.as_ref().map(StoredToken::access))?;
        let Some(known) = known else {
            return Err(claim.rejected(RejectReason::Unknown));
        };
        if !is_proven {
            self.audit_refusal(&known, RejectReason::WrongSecret, claim.peer.address(), claim.now);
            return Err(claim.rejected(RejectReason::WrongSecret));
        }
        Ok(known)
    }

    /// Checks the token's owner and address.
    #[inline(always)]
    fn admit(
        &self,
        claim: &Claim<'_>,
        known: &StoredToken<'_>,
        owner: Option<Snapshot<Owner>>,
    ) -> Result<Snapshot<Owner>, VerifyError> {
        admit_owner(known, owner, claim.peer, claim.now).map_err(|reason| {
            self.audit_refusal(known, reason, claim.peer.address(), claim.now);
            claim.rejected(reason)
        })
    }

    /// Records the use of an admitted token.
    #[inline(always)]
    fn record_use(&self, claim: &Claim<'_>, known: &StoredToken<'_>) {
        let access = known.access();
        self.usage.record(claim.presented.id, access.last_used_at(), claim.peer, claim.now);
        // Moves only to a key of a greater id, because nodes that disagree about the primary key
        // during a deploy would otherwise move a record back and forth.
        if access.key(claim.presented.kind) < Some(claim.computed.key()) {
            // The next flush moves the record to the primary key.
            self.usage.redigest(claim.presented.id, known.details().version(), claim.computed);
        }
    }
}
/// Returns the rejection of a text that names no token.
#[cold]
fn unread(reason: RejectReason) -> VerifyError {
    Rejected { reason, token: None }.into()
}

fn admit_state(access: &Access, now: i64) -> Result<(), RejectReason> {
    match access.state(now) {
        TokenState::Active => Ok(()),
        TokenState::Revoked => Err(RejectReason::Revoked),
        TokenState::Expired => Err(RejectReason::Expired),
    }
}

/// Returns the owner if the owner's tokens work and this token works from the address.
#[inline(always)]
fn admit_owner(
    found: &StoredToken<'_>,
    owner: Option<Snapshot<Owner>>,
    peer: Peer,
    now: i64,
) -> Result<Snapshot<Owner>, RejectReason> {
    let access = found.access();
    // A directory that answers for another id or realm, such as `bot` for `BOT`, has not found the
    // owner.
    let owner = owner.filter(|owner| owner.is(found.realm(), found.owner()));
    let owner = owner.ok_or(RejectReason::OwnerUnknown)?;
    if !owner.is_enabled() {
        Err(RejectReason::OwnerDisabled)
    } else if owner.kind() != access.kind().owner_kind() {
        Err(RejectReason::OwnerKind)
    } else if owner.tokens_valid_after().is_some_and(|after| access.is_older_than(after, now)) {
        Err(RejectReason::BeforeValidAfter)
    } else if access.has_networks() && !is_allowed(found.details().networks(), peer.address()) {
        Err(RejectReason::AddressNotAllowed)
    } else {
        Ok(owner)
    }
}
