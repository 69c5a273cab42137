//! Makes a [`Verified`] without a store and a secret: for tests of hosts, behind its own feature.
//!
//! Put the feature into `[dev-dependencies]` and nowhere else: in a release build, a caller of this module can be anybody. Features are
//! unified, so any crate of the build can turn this one on for all of them. A build without debug assertions, such as
//! `cargo build --release`, therefore does not compile with it. To run tests or benches in such a profile, set
//! `PATKIT_TESTKIT_IN_RELEASE` for that one command: `PATKIT_TESTKIT_IN_RELEASE=1 cargo test --release`.

use crate::clock::micros;
use crate::owner::Owner;
use crate::permission::Scope;
use crate::role::RoleCatalog;
use crate::service::{Peer, Verified};
use crate::store::StoredToken;
use crate::token::{
    ActorRef, Credential, Facts, KeyId, KeyedDigest, Lifetime, NameError, Networks, Token, TokenId,
    TokenKind, TokenName,
};
use chrono::{DateTime, Utc};
use std::net::IpAddr;
use std::sync::Arc;

const _: () = assert!(
    cfg!(debug_assertions) || option_env!("PATKIT_TESTKIT_IN_RELEASE").is_some(),
    "the feature `testkit` of patkit lets anybody be anybody and is on in a build without debug assertions; turn it on in \
     [dev-dependencies] alone, or, to run tests, set PATKIT_TESTKIT_IN_RELEASE=1 for that command"
);

/// Does to a request what an [`AuthLayer`](crate::http::AuthLayer) does that lets this token through: extractors and
/// [`RequirePermission`](crate::http::RequirePermission) then find the token. `None` is a request without a credential, behind an
/// optional layer.
#[cfg(feature = "tower")]
pub fn let_through(extensions: &mut http::Extensions, verified: Option<Verified>) {
    crate::http::let_through(extensions, verified);
}

/// A verified token to be made up.
///
/// ```
/// use patkit::testkit::FakeToken;
/// use patkit::{Owner, OwnerId, OwnerKind, RoleCatalog, Scope};
///
/// let ada = Owner::new(OwnerId::new("ada")?, OwnerKind::Human).role("member");
/// let catalog = RoleCatalog::standard().grant("member", ["datastores:read"]).build()?;
/// let verified = FakeToken::of(ada).scope(Scope::only(["datastores:read"])?).verified(catalog)?;
/// assert!(verified.require("datastores:read").is_ok());
/// assert!(verified.require("tokens:manage").is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct FakeToken {
    owner: Owner,
    name: String,
    scope: Scope,
    networks: Option<Networks>,
    expires_at: Option<DateTime<Utc>>,
    peer: Option<IpAddr>,
    now: DateTime<Utc>,
}

/// Why a verified token was not made up.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FakeTokenError {
    /// An internal owner has no tokens.
    #[error("the owner is internal and has no tokens; use a human or a service user")]
    OwnerKind,
    /// The name is refused.
    #[error("the name is refused: {0}")]
    Name(NameError),
}

impl FakeToken {
    /// A token of this owner: its kind is the one that such an owner has; it inherits all that its owner may do.
    pub fn of(owner: Owner) -> Self {
        Self {
            owner,
            name: "test".into(),
            scope: Scope::inherit(),
            networks: None,
            expires_at: None,
            peer: None,
            now: DateTime::UNIX_EPOCH,
        }
    }

    /// With this name.
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// Narrowed to this.
    pub fn scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    /// With these networks; they are not checked against the address.
    pub fn networks(mut self, networks: Networks) -> Self {
        self.networks = Some(networks);
        self
    }

    /// That ends then.
    pub fn expires_at(mut self, instant: DateTime<Utc>) -> Self {
        self.expires_at = Some(instant);
        self
    }

    /// Used from this address.
    pub fn peer(mut self, address: IpAddr) -> Self {
        self.peer = Some(address);
        self
    }

    /// Made and verified at `now`, instead of at the beginning of 1970.
    pub fn at(mut self, now: DateTime<Utc>) -> Self {
        self.now = now;
        self
    }

    /// The proof that nobody gave, with the permissions that the owner's roles have in this catalogue.
    ///
    /// # Errors
    /// [`FakeTokenError`] for an internal owner, or a name that is refused.
    pub fn verified(self, catalog: RoleCatalog) -> Result<Verified, FakeTokenError> {
        let kind = TokenKind::for_owner(self.owner.kind()).ok_or(FakeTokenError::OwnerKind)?;
        let now = crate::clock::cut(self.now);
        let millis = u64::try_from(now.timestamp_millis()).unwrap_or(0);
        // The form of a UUIDv7, which `from_words` checks; the fallback is never taken.
        let id = TokenId::from_words([(millis << 16) | 0x7000, 1 << 63]);
        let name = TokenName::new(&self.name).map_err(FakeTokenError::Name)?;
        let token = Token {
            id: id.ok_or(FakeTokenError::OwnerKind)?,
            realm: self.owner.realm().clone(),
            kind,
            owner: self.owner.id().clone(),
            owner_kind: self.owner.kind(),
            name_key: Some(name.key()),
            name,
            description: None,
            scope: self.scope,
            networks: self.networks,
            credential: Credential::Keyed(KeyedDigest::new(KeyId::new(0), [0; 32])),
            created_at: now,
            created_by: ActorRef::Owner(self.owner.id().clone()),
            restored_by: None,
            predecessor: None,
            ancestor: None,
            lifetime: Lifetime::Never,
            facts: Facts { expires_at: self.expires_at.map(crate::clock::cut), ..Facts::default() },
            idle_from: now,
            reuse_reported_at: None,
            notified_days: None,
            last_used: None,
            seal: None,
            version: 1,
        };
        let peer = Peer::new(self.peer);
        Ok(Verified::new(
            StoredToken::from(&token),
            Arc::new(self.owner).into(),
            &Arc::new(catalog),
            peer,
            micros(now),
        ))
    }
}
