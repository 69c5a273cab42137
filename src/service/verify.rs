//! Verifies the text of a request: returns a [`Verified`] or a rejection.
//!
//! The order of the steps is part of the design. The text is parsed first, without the store and
//! without a hash. Then follow one lookup, one digest whether or not the lookup found a record, and
//! the comparison. Only a caller with the right secret reaches the checks of the state, the owner
//! and the address.

#![allow(
    clippy::inline_always,
    reason = "measured, as in the table: what is moved between functions is a tenth"
)]

mod future;
mod peer;

pub(crate) use peer::Peer;

use super::TokenService;
use super::error::{RejectReason, Rejected, Unavailable, VerifyError};
use super::verified::Verified;
use crate::bearer::{self, BearerError};
use crate::owner::{Directory, Owner, Realm};
use crate::snapshot::Snapshot;
use crate::store::{StoredToken, TokenStore};
use crate::token::access::Access;
use crate::token::digest::{Message, same};
use crate::token::{KeyId, KeyedDigest, Presented, TokenId, TokenState, Unreadable, is_allowed};
use future::Verification;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::Poll;

/// The outcome of a verification.
type Decision = Result<Verified, VerifyError>;

/// The credential as the host passed it.
#[derive(Clone, Copy)]
enum Offered<'a> {
    /// The only `Authorization` header of a request, or `None` without one.
    Header(Result<Option<&'a str>, BearerError>),
    /// A token's text.
    Text(&'a str),
}

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
    /// Verifies the value of an `Authorization` header.
    ///
    /// Pass `None` as `header` if the request has no such header. `peer` is the address that the
    /// request came from.
    ///
    /// # Errors
    /// [`VerifyError`]: rejected, with a reason for the operator, or unavailable.
    // Like the methods below, this is not an `async fn`, because that would add a future that
    // copies the result.
    pub fn verify_header<'a>(
        &'a self,
        header: Option<&'a str>,
        peer: Option<IpAddr>,
    ) -> impl Future<Output = Result<Verified, VerifyError>> + Send {
        self.authenticate(None, Offered::Header(Ok(header)), peer)
    }

    /// Verifies the raw values of all `Authorization` headers of a request.
    ///
    /// More than one header is malformed.
    ///
    /// # Errors
    /// [`VerifyError`]: rejected, with a reason for the operator, or unavailable.
    pub fn verify_headers<'a>(
        &'a self,
        headers: impl IntoIterator<Item = &'a [u8]>,
        peer: Option<IpAddr>,
    ) -> impl Future<Output = Result<Verified, VerifyError>> + Send {
        self.authenticate(None, Offered::Header(bearer::only(headers)), peer)
    }

    /// Verifies like [`verify_headers`](Self::verify_headers), for one realm.
    ///
    /// A token of another realm is unknown.
    ///
    /// # Errors
    /// [`VerifyError`]: rejected, with a reason for the operator, or unavailable.
    pub fn verify_headers_in<'a>(
        &'a self,
        realm: &'a Realm,
        headers: impl IntoIterator<Item = &'a [u8]>,
        peer: Option<IpAddr>,
    ) -> impl Future<Output = Result<Verified, VerifyError>> + Send {
        self.authenticate(Some(realm), Offered::Header(bearer::only(headers)), peer)
    }

    /// Verifies the value of an `Authorization` header for one realm.
    ///
    /// A token of another realm is unknown.
    ///
    /// # Errors
    /// [`VerifyError`]: rejected, with a reason for the operator, or unavailable.
    pub fn verify_header_in<'a>(
        &'a self,
        realm: &'a Realm,
        header: Option<&'a str>,
        peer: Option<IpAddr>,
    ) -> impl Future<Output = Result<Verified, VerifyError>> + Send {
        self.authenticate(Some(realm), Offered::Header(Ok(header)), peer)
    }

    /// Verifies a token's text.
    ///
    /// # Errors
    /// [`VerifyError`]: rejected, with a reason for the operator, or unavailable.
    pub fn verify<'a>(
        &'a self,
        text: &'a str,
        peer: Option<IpAddr>,
    ) -> impl Future<Output = Result<Verified, VerifyError>> + Send {
        self.authenticate(None, Offered::Text(text), peer)
    }

    /// Verifies a token's text for one realm.
    ///
    /// A token of another realm is unknown.
    ///
    /// # Errors
    /// [`VerifyError`]: rejected, with a reason for the operator, or unavailable.
    pub fn verify_in<'a>(
        &'a self,
        realm: &'a Realm,
        text: &'a str,
        peer: Option<IpAddr>,
    ) -> impl Future<Output = Result<Verified, VerifyError>> + Send {
        self.authenticate(Some(realm), Offered::Text(text), peer)
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

    #[inline(always)]
    fn read<'a>(
        &self,
        offered: Offered<'a>,
        message: &mut Message,
    ) -> Result<Presented<'a>, RejectReason> {
        let text = match offered {
            Offered::Text(text) => Ok(text),
            Offered::Header(header) => header
                .and_then(|header| header.ok_or(BearerError::Missing))
                .and_then(bearer::after_scheme),
        };
        let text = text.map_err(|why| match why {
            BearerError::Missing => RejectReason::NoCredential,
            BearerError::Malformed => RejectReason::InvalidRequest,
        })?;
        self.format.parse(text, message).map_err(|why| match (offered, why) {
            (Offered::Header(_), Unreadable::Form) if !bearer::is_token68(text) => {
                RejectReason::InvalidRequest
            }
            _ => RejectReason::Malformed,
        })
    }

    fn authenticate<'a>(
        &'a self,
        realm: Option<&'a Realm>,
        offered: Offered<'a>,
        peer: Option<IpAddr>,
    ) -> Verification<'a, S, D> {
        Verification { service: self, offered, realm, peer: Peer::new(peer), waiting: None }
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
            Some(owner) => Poll::Ready(self.admit(&claim, known, owner)),
            None => later(claim),
        }
    }

    /// Decides, and waits for the store and the directory if necessary.
    async fn decide(&self, claim: Claim<'_>) -> Decision {
        let found = self.find_stored(claim.presented.id).await?;
        let known = self.prove(&claim, found)?;
        if let Err(reason) = admit_state(known.access(), claim.now) {
            self.audit_refusal(&known, reason, claim.peer.address(), claim.now);
            // The rejection does not depend on the reuse signal. If the signal fails, the next
            // presentation sends it. `self.now()` is the clock that stamped the rotation; it may be
            // finer than the clock of verifications.
            let token = Arc::new(known.into_token());
            // The box keeps the size of this future out of every verification that waits for the
            // store.
            let told = Box::pin(self.signal_reuse(token, claim.peer.address(), self.now())).await;
            told.unwrap_or_default();
            return Err(claim.rejected(reason));
        }
        let owner = self.find_owner(&known).await?;
        self.admit(&claim, known, owner)
    }

    /// Looks up a record, and waits for the store only if it cannot answer at once.
    async fn find_stored(&self, id: TokenId) -> Result<Option<StoredToken<'_>>, Unavailable> {
        if let Some(found) = self.store.shortcut().find(id, None) {
            return Ok(found);
        }
        let found = self.store.find(id).await.map_err(Unavailable::Store)?;
        Ok(found.as_deref().map(StoredToken::from))
    }

    /// Looks up the owner of a token, and waits for the directory only if it cannot answer at once.
    async fn find_owner(
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

    /// Checks the token's owner and address, and records the use.
    #[inline(always)]
    fn admit(
        &self,
        claim: &Claim<'_>,
        known: StoredToken<'_>,
        owner: Option<Snapshot<Owner>>,
    ) -> Result<Verified, VerifyError> {
        let owner = match admit_owner(&known, owner, claim.peer, claim.now) {
            Ok(owner) => owner,
            Err(reason) => {
                self.audit_refusal(&known, reason, claim.peer.address(), claim.now);
                return Err(claim.rejected(reason));
            }
        };
        let access = known.access();
        self.usage.record(claim.presented.id, access.last_used_at(), claim.peer, claim.now);
        // Only to a greater id, because nodes that disagree about the primary key during a deploy
        // would otherwise move a record back and forth.
        if access.key(claim.presented.kind) < Some(claim.computed.key()) {
            // The next flush moves the record to the primary key.
            self.usage.redigest(claim.presented.id, known.details().version(), claim.computed);
        }
        Ok(Verified::new(known, owner, &self.catalog, claim.peer, claim.now))
    }

    /// Returns whether the presented secret is the token's.
    ///
    /// Makes one comparison whether or not a record was found. A record under another key than the
    /// primary costs a second digest.
    ///
    /// # Errors
    /// Unavailable if the keyring lacks the key of the token's digest, or has another key under its
    /// id.
    #[inline(always)]
    fn is_proven(&self, claim: &Claim<'_>, access: Option<&Access>) -> Result<bool, Unavailable> {
        let stored =
            access.and_then(|access| Some((access.key(claim.presented.kind)?, access.digest())));
        // Errors even if the digests are equal, because another node with the right key would
        // reject the token.
        if let Some((key, _)) = stored
            && self.keyring.is_wrong(key)
        {
            return Err(Unavailable::WrongKey(key));
        }
        let under_its_key = match stored {
            Some((key, _)) if key != claim.computed.key() => {
                Some(self.digest_under(key, &claim.presented)?)
            }
            _ => None,
        };
        let computed = under_its_key.as_ref().unwrap_or(&claim.computed);
        let is_same = same(computed.words(), stored.map_or([0; 4], |(_, digest)| digest));
        Ok(bool::from(is_same) && stored.is_some())
    }

    #[cold]
    fn digest_under(
        &self,
        key: KeyId,
        presented: &Presented<'_>,
    ) -> Result<KeyedDigest, Unavailable> {
        let mut message = Message::room();
        presented.read(&mut message);
        let digest = self.keyring.digest_under(key, &message);
        digest.ok_or(Unavailable::KeyMissing(key))
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

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::string_slice, reason = "tests")]
mod tests {
    use super::*;
    use crate::owner::{MemoryDirectory, OwnerId, OwnerKind};
    use crate::service::{Actor, NewToken};
    use crate::store::{Change, ChangeBatch, MemoryStore};
    use crate::token::digest::COUNT;
    use crate::token::{ForeignDigest, Keyring};
    use crate::token::{StoredDigest, Token};
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn ready<F: Future>(future: F) -> F::Output {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => output,
            Poll::Pending => panic!("the memory store waited"),
        }
    }

    fn service() -> TokenService<MemoryStore, MemoryDirectory> {
        let ada = Owner::new(OwnerId::new("ada").unwrap(), OwnerKind::Human).role("member");
        let builder = TokenService::builder(MemoryStore::new(), MemoryDirectory::from_iter([ada]))
            .brand("acme");
        builder.keyring(Keyring::ephemeral().unwrap()).build().unwrap()
    }

    fn issue(service: &TokenService<MemoryStore, MemoryDirectory>, name: &str) -> String {
        let actor = Actor::session(OwnerId::new("ada").unwrap());
        ready(service.generate(&actor, NewToken::named(name)))
            .unwrap()
            .plaintext
            .expose_secret()
            .to_owned()
    }

    #[test]
    fn every_well_formed_text_costs_one_digest_whatever_is_found() {
        let (ours, theirs) = (service(), service());
        let (text, foreign) = (issue(&ours, "one"), issue(&ours, "foreign"));
        let unknown = issue(&theirs, "one");
        let (_, id) = ours.format.check(&foreign).unwrap();
        let mut record = Token::clone(&ready(ours.store.find(id)).unwrap().unwrap());
        record.digest = StoredDigest::Foreign(ForeignDigest::new("sha256", &[0; 32]));
        record.version += 1;
        ready(ours.store.commit(&ChangeBatch::new().change(Change::Update(Arc::new(record)))))
            .unwrap();
        let elsewhere = Realm::new("elsewhere").unwrap();
        let (kind, known) = ours.format.check(&text).unwrap();
        let wrong = ours.format.print(kind, known, &Message::new(kind, known, [1, 2, 3, 4]));
        let count = |realm: Option<&Realm>, text: &str| {
            COUNT.set(0);
            let result = ready(ours.authenticate(realm, Offered::Text(text), None));
            (result.err().and_then(|error| error.reject_reason()), COUNT.get())
        };
        for (realm, text, expected) in [
            (None, text.as_str(), None),
            (None, wrong.expose_secret(), Some(RejectReason::WrongSecret)),
            (None, &unknown, Some(RejectReason::Unknown)),
            (None, &foreign, Some(RejectReason::WrongSecret)),
            (Some(&elsewhere), &text, Some(RejectReason::Unknown)),
        ] {
            assert_eq!(count(realm, text), (expected, 1), "{expected:?}");
        }
        assert_eq!(count(None, &text[1..]), (Some(RejectReason::Malformed), 0));
    }
}
