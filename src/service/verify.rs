//! From the text of a request to a [`Verified`], or a refusal.
//!
//! The order is part of the design: the text alone first (no store, no hash), then one look-up, then one digest, whatever
//! was found, then the comparison; only the holder of the right secret gets further, to the state, the owner and the
//! address.

#![allow(
    clippy::inline_always,
    reason = "measured, as in the table: what is moved between functions is a tenth"
)]

use super::TokenService;
use super::error::{RejectReason, Rejected, Unavailable, VerifyError};
use crate::bearer::{self, BearerError};
use crate::clock::at_micros;
use crate::owner::{Directory, DirectoryError, Owner, Realm};
use crate::permission::{Permission, PermissionError, PermissionSet};
use crate::role::{RoleCatalog, UnknownName, beginning};
use crate::snapshot::Snapshot;
use crate::store::{Found, StoreError, TokenStore};
use crate::token::access::Access;
use crate::token::digest::{Message, same};
use crate::token::id::{from_words, words};
use crate::token::{KeyId, KeyedDigest, Presented, TokenState, TokenView, Unreadable, is_allowed};
use chrono::{DateTime, Utc};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Proof that a credential was verified: the token, its owner, and what both together allow. Only verification makes one
/// (and, for tests of hosts, the `testkit` feature).
///
/// It tells how things were when it was made. For a stream or a socket that lives on, ask [`TokenService::recheck`] now
/// and then.
#[derive(Clone)]
pub struct Verified {
    token: TokenView,
    /// The owner's permissions, and the catalogue that they are of, where the owner does not hold them itself.
    permissions: Option<Arc<(Arc<RoleCatalog>, PermissionSet)>>,
    peer: Peer,
    /// In microseconds since 1970.
    at: i64,
}

/// The address of a client, if there is one, as words: a verification moves it several times, and a byte at its front would
/// have each move wait until the stores of the one before are through.
///
/// An IPv4-mapped IPv6 address becomes the IPv4 address in it, so that everything after this reads the latter.
#[derive(Clone, Copy)]
pub(crate) struct Peer([u64; 3]);

impl Peer {
    pub(crate) fn new(address: Option<IpAddr>) -> Self {
        match address.map(|address| address.to_canonical()) {
            None => Self([0, 0, 0]),
            Some(IpAddr::V4(address)) => Self([4, 0, address.to_bits().into()]),
            Some(IpAddr::V6(address)) => {
                let [high, low] = words(address.to_bits());
                Self([6, high, low])
            }
        }
    }

    pub(super) fn address(self) -> Option<IpAddr> {
        match self.0 {
            [4, _, bits] => u32::try_from(bits).ok().map(|bits| Ipv4Addr::from_bits(bits).into()),
            [6, high, low] => Some(Ipv6Addr::from_bits(from_words([high, low])).into()),
            _ => None,
        }
    }
}

/// The token does not allow this. The text of this error names the permission.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PermissionDenied {
    /// The owner does not hold the permission, or the token's scope does not let it through.
    #[error("the token does not have the permission {permission}")]
    NotGranted {
        /// What was asked for.
        permission: String,
    },
    /// The text is not a concrete permission, and so nobody ever has it: an error in the host's code.
    #[error("the text {text:?}, which a route demands, is not a permission")]
    NotAPermission {
        /// What was asked for.
        text: String,
        /// What is wrong with it.
        source: PermissionError,
    },
}

impl Verified {
    #[inline(always)]
    pub(crate) fn new(
        found: Found<'_>,
        owner: Snapshot<Owner>,
        catalog: &Arc<RoleCatalog>,
        peer: Peer,
        at: i64,
    ) -> Self {
        let permissions = match owner.resolved_by(catalog) {
            Some(_) => None,
            None => Some(Arc::new((catalog.clone(), owner.permissions(catalog)))),
        };
        let (id, terms) = (found.id(), found.access().terms());
        let token = TokenView::active(id, terms, found.into_details(), owner);
        Self { token, permissions, peer, at }
    }

    /// What is shown of the token.
    pub fn token(&self) -> &TokenView {
        &self.token
    }

    /// Who it acts as.
    pub fn owner(&self) -> &Owner {
        self.token.owner().unwrap_or_else(|| Owner::nobody())
    }

    /// The tenant.
    pub fn realm(&self) -> &Realm {
        self.token.realm()
    }

    /// The address that the request came from, if the host passed one. An IPv4-mapped IPv6 address is given as the IPv4
    /// address in it.
    pub fn peer(&self) -> Option<IpAddr> {
        self.peer.address()
    }

    /// When it was verified.
    pub fn verified_at(&self) -> DateTime<Utc> {
        at_micros(self.at)
    }

    /// Whether both the owner and the token's scope allow this. It allocates nothing.
    pub fn allows(&self, permission: &Permission) -> bool {
        let Some((catalog, granted)) = self.granted() else { return false };
        let is_allowed = granted.allows(permission) && self.token.scope().allows(permission);
        // Whoever holds everything would not notice a typing error.
        if (!is_allowed || granted.is_everything()) && !catalog.knows(permission) {
            catalog.report(UnknownName::Permission(permission.as_str()));
        }
        is_allowed
    }

    /// Demands a permission given as text, such as `datastores:read`.
    ///
    /// # Errors
    /// [`PermissionDenied`] when the owner or the token's scope does not allow it, or the text is not a concrete permission.
    pub fn require(&self, permission: &str) -> Result<(), PermissionDenied> {
        let denied = || PermissionDenied::NotGranted { permission: permission.to_owned() };
        let (catalog, granted) = self.granted().ok_or_else(denied)?;
        let allowed = granted.allows_str(permission);
        let allowed = allowed.and_then(|held| Ok(held && self.token.scope().allows_str(permission)?));
        if (allowed != Ok(true) || granted.is_everything()) && !catalog.knows_text(permission) {
            catalog.report(UnknownName::Permission(permission));
        }
        match allowed {
            Ok(true) => Ok(()),
            Ok(false) => Err(denied()),
            Err(source) => {
                Err(PermissionDenied::NotAPermission { text: beginning(permission).to_owned(), source })
            }
        }
    }

    /// All that it allows: what the owner has and the scope lets through.
    pub fn effective_permissions(&self) -> PermissionSet {
        let granted = self.granted().map_or_else(PermissionSet::empty, |(_, granted)| granted.clone());
        self.token.scope().as_set().map_or_else(|| granted.clone(), |scope| granted.intersection(scope))
    }

    /// What the owner may do, and the catalogue that says so.
    fn granted(&self) -> Option<&(Arc<RoleCatalog>, PermissionSet)> {
        self.permissions.as_deref().or_else(|| self.owner().resolved())
    }
}

impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verified")
            .field("token", &self.token)
            .field("owner", self.owner())
            .field("peer", &self.peer())
            .field("at", &self.verified_at())
            .finish_non_exhaustive()
    }
}

/// What comes of a verification.
type Decision = Result<Verified, VerifyError>;

/// What a host hands in.
#[derive(Clone, Copy)]
enum Offered<'a> {
    /// The only `Authorization` header of a request, or none.
    Header(Result<Option<&'a str>, BearerError>),
    /// A token's text.
    Text(&'a str),
}

/// A verification: decided when it is polled for the first time, unless the store or the directory has to be waited for.
///
/// A future of its own and not an `async` block, since what it gives is written to where it is wanted and not moved there.
struct Verification<'a, S, D> {
    service: &'a TokenService<S, D>,
    offered: Offered<'a>,
    realm: Option<&'a Realm>,
    peer: Peer,
    /// In a box, or every verification would carry room for what few need.
    later: Option<Pin<Box<dyn Future<Output = Decision> + Send + 'a>>>,
}

impl<S: TokenStore, D: Directory> Future for Verification<'_, S, D> {
    type Output = Decision;

    // In place of its caller's code it would have the future moved there, word by word.
    #[inline(never)]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Decision> {
        let Self { service, offered, realm, peer, later } = &mut *self;
        if let Some(later) = later {
            return later.as_mut().poll(context);
        }
        let mut message = Message::room();
        match service.read(*offered, &mut message) {
            Err(reason) => Poll::Ready(Err(unread(reason))),
            Ok(presented) => service.decide_now(&presented, &message, *realm, peer, |claim| {
                later.insert(Box::pin(service.decide(claim))).as_mut().poll(context)
            }),
        }
    }
}

/// What is presented, and all that depends on nothing that is looked up.
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
    /// Verifies the value of an `Authorization` header; `None` where the request has none. `peer` is the address that the
    /// request came from.
    ///
    /// # Errors
    /// [`VerifyError`]: rejected with a reason for the operator, or unavailable.
    // Not an `async fn`, like its neighbours: one future less for the result to be copied out of.
    pub fn verify_header<'a>(
        &'a self,
        header: Option<&'a str>,
        peer: Option<IpAddr>,
    ) -> impl Future<Output = Result<Verified, VerifyError>> + Send {
        self.authenticate(None, Offered::Header(Ok(header)), peer)
    }

    /// Verifies all `Authorization` headers of a request, from their values as they came: more than one is malformed.
    ///
    /// # Errors
    /// [`VerifyError`]: rejected with a reason for the operator, or unavailable.
    pub fn verify_headers<'a>(
        &'a self,
        headers: impl IntoIterator<Item = &'a [u8]>,
        peer: Option<IpAddr>,
    ) -> impl Future<Output = Result<Verified, VerifyError>> + Send {
        self.authenticate(None, Offered::Header(bearer::only(headers)), peer)
    }

    /// [`verify_headers`](Self::verify_headers) for one realm: a token of another one is unknown.
    ///
    /// # Errors
    /// [`VerifyError`]: rejected with a reason for the operator, or unavailable.
    pub fn verify_headers_in<'a>(
        &'a self,
        realm: &'a Realm,
        headers: impl IntoIterator<Item = &'a [u8]>,
        peer: Option<IpAddr>,
    ) -> impl Future<Output = Result<Verified, VerifyError>> + Send {
        self.authenticate(Some(realm), Offered::Header(bearer::only(headers)), peer)
    }

    /// Verifies the value of an `Authorization` header for one realm: a token of another one is unknown.
    ///
    /// # Errors
    /// [`VerifyError`]: rejected with a reason for the operator, or unavailable.
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
    /// [`VerifyError`]: rejected with a reason for the operator, or unavailable.
    pub fn verify<'a>(
        &'a self,
        text: &'a str,
        peer: Option<IpAddr>,
    ) -> impl Future<Output = Result<Verified, VerifyError>> + Send {
        self.authenticate(None, Offered::Text(text), peer)
    }

    /// Verifies a token's text for one realm: a token of another one is unknown.
    ///
    /// # Errors
    /// [`VerifyError`]: rejected with a reason for the operator, or unavailable.
    pub fn verify_in<'a>(
        &'a self,
        realm: &'a Realm,
        text: &'a str,
        peer: Option<IpAddr>,
    ) -> impl Future<Output = Result<Verified, VerifyError>> + Send {
        self.authenticate(Some(realm), Offered::Text(text), peer)
    }

    /// Verifies once more what was verified before, without its secret: whether the token is still there and active, and its
    /// owner still enabled, with the permissions of now. It counts as a use.
    ///
    /// # Errors
    /// [`VerifyError`]: rejected with a reason for the operator, or unavailable.
    pub async fn recheck(&self, verified: &Verified) -> Result<Verified, VerifyError> {
        let id = verified.token().id();
        let rejected = |reason| Rejected { reason, token: Some(id) };
        let found = self.store.find(id).await.map_err(Unavailable::Store)?;
        let found = found.filter(|found| found.realm() == verified.realm());
        let found = found.ok_or(rejected(RejectReason::Unknown))?;
        let now = self.clock.now_micros();
        admit_state(found.access(), now).map_err(rejected)?;
        let owner = self.owner(found.realm(), found.owner()).await?;
        let owner = admit_owner(&found, owner, verified.peer, now).map_err(rejected)?;
        self.usage.record(id, found.access().last_used_at(), verified.peer, now);
        Ok(Verified::new(found, owner, &self.catalog, verified.peer, now))
    }

    #[inline(always)]
    fn read<'a>(&self, offered: Offered<'a>, message: &mut Message) -> Result<Presented<'a>, RejectReason> {
        let text = match offered {
            Offered::Text(text) => Ok(text),
            Offered::Header(header) => {
                header.and_then(|header| header.ok_or(BearerError::Missing)).and_then(bearer::after_scheme)
            }
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
        Verification { service: self, offered, realm, peer: Peer::new(peer), later: None }
    }

    /// The decision, where the store and the directory have everything at hand; otherwise what becomes of the claim later.
    #[inline(never)]
    fn decide_now<'a>(
        &self,
        presented: &Presented<'a>,
        message: &Message,
        realm: Option<&'a Realm>,
        peer: &Peer,
        later: impl FnOnce(Claim<'a>) -> Poll<Decision>,
    ) -> Poll<Decision> {
        let ahead = self.store.prefetch(presented.id);
        let claim = self.claim(presented, message, realm, peer);
        let Some(found) = self.store.find_now(presented.id, ahead) else { return later(claim) };
        let known = match self.prove(&claim, found) {
            Ok(known) => known,
            Err(error) => return Poll::Ready(Err(error)),
        };
        // A refusal of a known token may have to be told of, which has to be waited for.
        if known.access().state(claim.now) != TokenState::Active {
            return later(claim);
        }
        match self.directory.find_now(known.realm(), known.owner()) {
            Some(owner) => Poll::Ready(self.admit(&claim, known, owner)),
            None => later(claim),
        }
    }

    /// The same, waiting for both.
    async fn decide(&self, claim: Claim<'_>) -> Decision {
        let known = self.prove(&claim, self.store.find(claim.presented.id).await)?;
        if let Err(reason) = admit_state(known.access(), claim.now) {
            self.audit_refusal(&known, reason, claim.peer.address(), claim.now);
            // The refusal stands whether or not reuse could be told; untold, the next presentation tells it. By the clock that
            // the rotation was made by, which may be finer than that of verifications.
            let token = known.into_token().into_arc();
            // In a box of its own, or whatever waits for the store would carry room for it.
            let told = Box::pin(self.signal_reuse(token, claim.peer.address(), self.now())).await;
            told.unwrap_or_default();
            return Err(claim.rejected(reason));
        }
        let owner = self.directory.find(known.realm(), known.owner()).await;
        self.admit(&claim, known, owner)
    }

    /// What is presented, with the instant and the digest.
    #[inline(always)]
    fn claim<'a>(
        &self,
        presented: &Presented<'a>,
        message: &Message,
        realm: Option<&'a Realm>,
        peer: &Peer,
    ) -> Claim<'a> {
        // Read on every path, so that no refusal is told from another by it; a token that expires while the store is asked
        // was there when its request came.
        let now = self.clock.now_micros();
        let computed = self.keyring.digest(message);
        Claim { presented: *presented, realm, peer: *peer, now, computed }
    }

    /// The record that the presented secret is the one of.
    #[inline(always)]
    fn prove<'s>(
        &self,
        claim: &Claim<'_>,
        found: Result<Option<Found<'s>>, StoreError>,
    ) -> Result<Found<'s>, VerifyError> {
        let found = found.map_err(Unavailable::Store)?;
        // A token of another realm is no token at all, before anything of it is looked at.
        let is_here = |found: &Found<'_>| claim.realm.is_none_or(|realm| found.realm() == realm);
        let known = found.filter(is_here);
        let is_proven = self.is_proven(claim, known.as_ref().map(Found::access))?;
        let Some(known) = known else {
            return Err(claim.rejected(RejectReason::Unknown));
        };
        if !is_proven {
            self.audit_refusal(&known, RejectReason::WrongSecret, claim.peer.address(), claim.now);
            return Err(claim.rejected(RejectReason::WrongSecret));
        }
        Ok(known)
    }

    /// The token's owner and address are looked at; then it is in use.
    #[inline(always)]
    fn admit(
        &self,
        claim: &Claim<'_>,
        known: Found<'_>,
        owner: Result<Option<Snapshot<Owner>>, DirectoryError>,
    ) -> Result<Verified, VerifyError> {
        let owner = Self::right_owner(known.realm(), known.owner(), owner)?;
        let owner = match admit_owner(&known, owner, claim.peer, claim.now) {
            Ok(owner) => owner,
            Err(reason) => {
                self.audit_refusal(&known, reason, claim.peer.address(), claim.now);
                return Err(claim.rejected(reason));
            }
        };
        let access = known.access();
        self.usage.record(claim.presented.id, access.last_used_at(), claim.peer, claim.now);
        // Only to a greater id: nodes that disagree about the primary key during a deploy would move a record to and fro.
        if access.key(claim.presented.kind) < Some(claim.computed.key()) {
            // Left behind for the next flush, which moves it to the primary key.
            self.usage.redigest(claim.presented.id, known.details().version(), claim.computed);
        }
        Ok(Verified::new(known, owner, &self.catalog, claim.peer, claim.now))
    }

    /// Whether the presented secret is the token's, by one comparison, whatever was found. A record under another key than the
    /// primary costs a second digest.
    ///
    /// # Errors
    /// Unavailable when the keyring has no such key as the token's digest was made with, or another one under its id.
    #[inline(always)]
    fn is_proven(&self, claim: &Claim<'_>, access: Option<&Access>) -> Result<bool, Unavailable> {
        let stored = access.and_then(|access| Some((access.key(claim.presented.kind)?, access.digest())));
        // Also if the digests are equal: what one node accepts, another one with the right key would reject.
        if let Some((key, _)) = stored
            && self.keyring.is_wrong(key)
        {
            return Err(Unavailable::WrongKey(key));
        }
        let under_its_key = match stored {
            Some((key, _)) if key != claim.computed.key() => Some(self.digest_under(key, &claim.presented)?),
            _ => None,
        };
        let computed = under_its_key.as_ref().unwrap_or(&claim.computed);
        let is_same = same(computed.words(), stored.map_or([0; 4], |(_, digest)| digest));
        Ok(bool::from(is_same) && stored.is_some())
    }

    #[cold]
    fn digest_under(&self, key: KeyId, presented: &Presented<'_>) -> Result<KeyedDigest, Unavailable> {
        let mut message = Message::room();
        presented.read(&mut message);
        let digest = self.keyring.digest_under(key, &message);
        digest.ok_or(Unavailable::KeyMissing(key))
    }
}

/// A refusal of what names no token.
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

/// The owner, if it is one whose tokens work, and the address is one that this token works from.
#[inline(always)]
fn admit_owner(
    found: &Found<'_>,
    owner: Option<Snapshot<Owner>>,
    peer: Peer,
    now: i64,
) -> Result<Snapshot<Owner>, RejectReason> {
    let access = found.access();
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
    use crate::token::{Credential, Token};
    use crate::token::{ForeignDigest, Keyring};
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
        let builder =
            TokenService::builder(MemoryStore::new(), MemoryDirectory::from_iter([ada])).brand("acme");
        builder.keyring(Keyring::ephemeral().unwrap()).build().unwrap()
    }

    fn issue(service: &TokenService<MemoryStore, MemoryDirectory>, name: &str) -> String {
        let actor = Actor::session(OwnerId::new("ada").unwrap());
        ready(service.generate(&actor, NewToken::named(name))).unwrap().plaintext.expose_secret().to_owned()
    }

    #[test]
    fn every_well_formed_text_costs_one_digest_whatever_is_found() {
        let (ours, theirs) = (service(), service());
        let (text, foreign) = (issue(&ours, "one"), issue(&ours, "foreign"));
        let unknown = issue(&theirs, "one");
        let (_, id) = ours.format.check(&foreign).unwrap();
        let mut record = Token::clone(&ready(ours.store.find(id)).unwrap().unwrap().into_token());
        record.credential = Credential::Foreign(ForeignDigest::new("sha256", &[0; 32]));
        record.version += 1;
        ready(ours.store.commit(&ChangeBatch::new().change(Change::Update(Arc::new(record))))).unwrap();
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
