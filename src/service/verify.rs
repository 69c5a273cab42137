//! From the text of a request to a [`Verified`], or a refusal.
//!
//! The order is part of the design: the text alone first (no store, no hash), then one look-up, then one digest, whatever
//! was found, then the comparison; only the holder of the right secret gets further, to the state, the owner and the
//! address.

use super::TokenService;
use super::error::{RejectReason, Rejected, Unavailable, VerifyError};
use crate::bearer::{self, BearerError};
use crate::clock::{at_micros, micros};
use crate::owner::{Directory, Owner, Realm};
use crate::permission::{Permission, PermissionSet};
use crate::role::RoleCatalog;
use crate::snapshot::Snapshot;
use crate::store::{Found, TokenStore};
use crate::token::digest::same;
use crate::token::id::{from_words, words};
use crate::token::secret::Secret;
use crate::token::{KeyedDigest, Presented, Token, TokenState, TokenView, Unreadable};
use chrono::{DateTime, Utc};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Proof that a credential was verified: the token, its owner, and what both together allow. Only verification makes one
/// (and, for tests of hosts, the `testkit` feature).
///
/// It tells how things were when it was made. For a stream or a socket that lives on, ask [`TokenService::recheck`] now
/// and then.
#[derive(Clone)]
pub struct Verified {
    token: TokenView,
    /// The owner's permissions, where the owner does not hold them itself.
    permissions: Option<Arc<PermissionSet>>,
    peer: Peer,
    /// In microseconds since 1970.
    at: i64,
}

/// The address of a client, if there is one, as words: a verification moves it several times, and a byte at its front would
/// have each move wait until the stores of the one before are through.
#[derive(Clone, Copy)]
pub(crate) struct Peer([u64; 3]);

impl Peer {
    pub(crate) fn new(address: Option<IpAddr>) -> Self {
        match address {
            None => Self([0, 0, 0]),
            Some(IpAddr::V4(address)) => Self([4, 0, address.to_bits().into()]),
            Some(IpAddr::V6(address)) => {
                let [high, low] = words(address.to_bits());
                Self([6, high, low])
            }
        }
    }

    fn address(self) -> Option<IpAddr> {
        match self.0 {
            [4, _, bits] => u32::try_from(bits).ok().map(|bits| Ipv4Addr::from_bits(bits).into()),
            [6, high, low] => Some(Ipv6Addr::from_bits(from_words([high, low])).into()),
            _ => None,
        }
    }
}

/// The token does not allow this. The text of this error names the permission.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the permission {permission:?} is not granted")]
#[non_exhaustive]
pub struct PermissionDenied {
    /// What was asked for.
    pub permission: String,
}

impl Verified {
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "measured, as in the table")]
    pub(crate) fn new(
        token: Snapshot<Token>,
        owner: Snapshot<Owner>,
        catalog: &Arc<RoleCatalog>,
        peer: Peer,
        at: i64,
    ) -> Self {
        let permissions = match owner.resolved_by(catalog) {
            Some(_) => None,
            None => Some(Arc::new(owner.permissions(catalog))),
        };
        Self { token: TokenView::active(token, owner), permissions, peer, at }
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

    /// The address that the request came from, if the host said.
    pub fn peer(&self) -> Option<IpAddr> {
        self.peer.address()
    }

    /// When it was verified.
    pub fn verified_at(&self) -> DateTime<Utc> {
        at_micros(self.at)
    }

    /// Whether both the owner and the token's scope allow this. It allocates nothing.
    pub fn allows(&self, permission: &Permission) -> bool {
        self.granted().is_some_and(|granted| granted.allows(permission))
            && self.token.scope().allows(permission)
    }

    /// Demands a permission given as text, such as `datastores:read`. Text that is no concrete permission is denied.
    ///
    /// # Errors
    /// [`PermissionDenied`] when the owner or the token's scope does not allow it.
    pub fn require(&self, permission: &str) -> Result<(), PermissionDenied> {
        let granted = self.granted().is_some_and(|granted| granted.allows_str(permission) == Ok(true));
        if granted && self.token.scope().allows_str(permission) == Ok(true) {
            Ok(())
        } else {
            Err(PermissionDenied { permission: permission.to_owned() })
        }
    }

    /// All that it allows: what the owner has and the scope lets through.
    pub fn effective_permissions(&self) -> PermissionSet {
        let granted = self.granted().cloned().unwrap_or_else(PermissionSet::empty);
        self.token.scope().as_set().map_or_else(|| granted.clone(), |scope| granted.intersection(scope))
    }

    /// What the owner may do.
    fn granted(&self) -> Option<&PermissionSet> {
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

impl<S: TokenStore, D: Directory> TokenService<S, D> {
    /// Verifies the value of an `Authorization` header; `None` where the request has none. `peer` is the address that the
    /// request came from.
    ///
    /// # Errors
    /// [`VerifyError`]: rejected with a reason for the operator, or unavailable.
    // Not an `async fn`, like its neighbours: one future less for the result to be copied out of.
    pub fn verify_header(
        &self,
        header: Option<&str>,
        peer: Option<IpAddr>,
    ) -> impl Future<Output = Result<Verified, VerifyError>> + Send {
        self.authenticate(None, move || self.read_header(header), peer)
    }

    /// Verifies all `Authorization` headers of a request, from their values as they came: more than one is malformed.
    ///
    /// # Errors
    /// [`VerifyError`]: rejected with a reason for the operator, or unavailable.
    pub fn verify_headers<'a>(
        &self,
        headers: impl IntoIterator<Item = &'a [u8]>,
        peer: Option<IpAddr>,
    ) -> impl Future<Output = Result<Verified, VerifyError>> + Send {
        let header = bearer::only(headers).map_err(|_| RejectReason::InvalidRequest);
        self.authenticate(None, move || header.and_then(|header| self.read_header(header)), peer)
    }

    /// Verifies the value of an `Authorization` header for one realm: a token of another one is unknown.
    ///
    /// # Errors
    /// [`VerifyError`]: rejected with a reason for the operator, or unavailable.
    pub fn verify_header_in(
        &self,
        realm: &Realm,
        header: Option<&str>,
        peer: Option<IpAddr>,
    ) -> impl Future<Output = Result<Verified, VerifyError>> + Send {
        self.authenticate(Some(realm), move || self.read_header(header), peer)
    }

    /// Verifies a token's text.
    ///
    /// # Errors
    /// [`VerifyError`]: rejected with a reason for the operator, or unavailable.
    pub fn verify(
        &self,
        text: &str,
        peer: Option<IpAddr>,
    ) -> impl Future<Output = Result<Verified, VerifyError>> + Send {
        self.authenticate(None, move || self.read(text), peer)
    }

    /// Verifies a token's text for one realm: a token of another one is unknown.
    ///
    /// # Errors
    /// [`VerifyError`]: rejected with a reason for the operator, or unavailable.
    pub fn verify_in(
        &self,
        realm: &Realm,
        text: &str,
        peer: Option<IpAddr>,
    ) -> impl Future<Output = Result<Verified, VerifyError>> + Send {
        self.authenticate(Some(realm), move || self.read(text), peer)
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
        admit_state(&found, now).map_err(rejected)?;
        let owner = self.owner(found.realm(), found.owner()).await?;
        let owner = admit_owner(&found, owner, verified.peer()).map_err(rejected)?;
        self.usage.record(id, found.access().last_used_at(), verified.peer(), now);
        Ok(Verified::new(found.into_token(), owner, &self.catalog, verified.peer, now))
    }

    fn read_header<'a>(&self, header: Option<&'a str>) -> Result<Presented<'a>, RejectReason> {
        match header.ok_or(BearerError::Missing).and_then(bearer::after_scheme) {
            Err(BearerError::Missing) => Err(RejectReason::NoCredential),
            Err(BearerError::Malformed) => Err(RejectReason::InvalidRequest),
            Ok(text) => self.format.parse(text).map_err(|why| match why {
                Unreadable::Form if !bearer::is_token68(text) => RejectReason::InvalidRequest,
                Unreadable::Form | Unreadable::Content => RejectReason::Malformed,
            }),
        }
    }

    fn read<'a>(&self, text: &'a str) -> Result<Presented<'a>, RejectReason> {
        self.format.parse(text).map_err(|_| RejectReason::Malformed)
    }

    /// What is presented is read in here and not handed in: each move of it costs as much as reading the number of a digit.
    #[allow(clippy::manual_async_fn, reason = "an `async fn` would move its arguments once more")]
    fn authenticate<'a>(
        &self,
        realm: Option<&Realm>,
        read: impl FnOnce() -> Result<Presented<'a>, RejectReason> + Send,
        peer: Option<IpAddr>,
    ) -> impl Future<Output = Result<Verified, VerifyError>> + Send {
        let peer = Peer::new(peer);
        async move {
            let presented = read().map_err(|reason| Rejected { reason, token: None })?;
            let rejected = |reason| VerifyError::Rejected(Rejected { reason, token: Some(presented.id) });
            let (finding, now, computed);
            {
                let mut secret = Secret::room();
                if !presented.read_secret(&mut secret) {
                    return Err(Rejected { reason: RejectReason::Malformed, token: None }.into());
                }
                // A look-up in memory is under way while the clock is read and the digest is computed, which depend on nothing
                // that is found.
                finding = self.store.find(presented.id);
                // Read on every path, so that no refusal is told from another by it; a token that expires while the store is asked
                // was there when its request came.
                now = self.clock.now_micros();
                computed = self.keyring.digest(presented.kind, presented.id, &secret);
            }
            let found = finding.await.map_err(Unavailable::Store)?;
            // A token of another realm is no token at all, before anything of it is looked at.
            let is_here = |found: &&Found<'_>| realm.is_none_or(|realm| found.realm() == realm);
            let known = found.as_ref().filter(is_here);
            let is_proven = self.is_proven(&presented, &computed, known)?;
            let Some(known) = known else {
                return Err(rejected(RejectReason::Unknown));
            };
            if !is_proven {
                self.audit_refusal(known, RejectReason::WrongSecret, peer.address(), now);
                return Err(rejected(RejectReason::WrongSecret));
            }
            if let Err(reason) = admit_state(known, now) {
                self.audit_refusal(known, reason, peer.address(), now);
                // The refusal stands whether or not reuse could be told; untold, the next presentation tells it. In a box of its
                // own, or every verification would carry room for it.
                Box::pin(self.signal_reuse(Arc::new(Token::clone(known)), peer.address(), at_micros(now)))
                    .await
                    .unwrap_or_default();
                return Err(rejected(reason));
            }
            let owner = self.directory.find(known.realm(), known.owner()).await;
            let owner = Self::right_owner(known.realm(), known.owner(), owner)?;
            match admit_owner(known, owner, peer.address()) {
                Ok(owner) => {
                    self.usage.record(presented.id, known.access().last_used_at(), peer.address(), now);
                    self.redigest(&presented, &computed, known);
                    match found {
                        Some(found) => Ok(Verified::new(found.into_token(), owner, &self.catalog, peer, now)),
                        None => Err(rejected(RejectReason::Unknown)),
                    }
                }
                Err(reason) => {
                    self.audit_refusal(known, reason, peer.address(), now);
                    Err(rejected(reason))
                }
            }
        }
    }

    /// Whether the presented secret is the token's, by one comparison, whatever was found. `computed` is its digest under the
    /// primary key; a record under another key costs a second digest.
    ///
    /// # Errors
    /// Unavailable when the keyring has no such key as the token's digest was made with.
    #[inline]
    fn is_proven(
        &self,
        presented: &Presented<'_>,
        computed: &KeyedDigest,
        found: Option<&Found<'_>>,
    ) -> Result<bool, Unavailable> {
        let stored = found.and_then(|found| Some((found.access().key(presented.kind)?, found.access())));
        let under_its_key = match stored.map(|(key, _)| key).filter(|key| *key != computed.key()) {
            None => None,
            Some(key) => {
                let mut secret = Secret::room();
                if !presented.read_secret(&mut secret) {
                    return Ok(false);
                }
                let digest = self.keyring.digest_under(key, presented.kind, presented.id, &secret);
                Some(digest.ok_or(Unavailable::KeyMissing(key))?)
            }
        };
        let computed = under_its_key.as_ref().unwrap_or(computed);
        let is_same = same(computed.words(), stored.map_or([0; 4], |(_, access)| access.digest()));
        Ok(bool::from(is_same) && stored.is_some())
    }

    /// Leaves the digest under the primary key behind for the next flush, where the token's is under another.
    fn redigest(&self, presented: &Presented<'_>, primary: &KeyedDigest, found: &Found<'_>) {
        if found.access().key(presented.kind) != Some(primary.key()) {
            self.usage.redigest(presented.id, found.version, *primary);
        }
    }
}

fn admit_state(found: &Found<'_>, now: i64) -> Result<(), RejectReason> {
    match found.access().state(now) {
        TokenState::Active => Ok(()),
        TokenState::Revoked => Err(RejectReason::Revoked),
        TokenState::Expired => Err(RejectReason::Expired),
    }
}

/// The owner, if it is one whose tokens work, and the address is one that this token works from.
fn admit_owner(
    found: &Found<'_>,
    owner: Option<Snapshot<Owner>>,
    peer: Option<IpAddr>,
) -> Result<Snapshot<Owner>, RejectReason> {
    let access = found.access();
    let owner = owner.ok_or(RejectReason::OwnerUnknown)?;
    if !owner.is_enabled() {
        Err(RejectReason::OwnerDisabled)
    } else if owner.kind() != access.kind().owner_kind() {
        Err(RejectReason::OwnerKind)
    } else if owner.tokens_valid_after().is_some_and(|after| access.created_at() < micros(after)) {
        Err(RejectReason::BeforeValidAfter)
    } else if access.has_networks() && !found.is_allowed_from(peer) {
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
    use crate::token::Credential;
    use crate::token::digest::COUNT;
    use crate::token::secret::Secret;
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
        let mut record = Token::clone(&ready(ours.store.find(id)).unwrap().unwrap());
        record.credential = Credential::Foreign(ForeignDigest::new("sha256", &[0; 32]));
        record.version += 1;
        ready(ours.store.commit(&ChangeBatch::new().change(Change::Update(Arc::new(record))))).unwrap();
        let elsewhere = Realm::new("elsewhere").unwrap();
        let (kind, known) = ours.format.check(&text).unwrap();
        let wrong = ours.format.print(kind, known, &Secret::new([1, 2, 3, 4]));
        let count = |realm: Option<&Realm>, text: &str| {
            COUNT.set(0);
            let presented = ours.read(text);
            let result = ready(ours.authenticate(realm, || presented, None));
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
