//! Makes a [`Verified`] without a store or a secret, for tests of hosts. Has its own feature.
//!
//! Enable the feature only in `[dev-dependencies]`, because in a release build a caller of this
//! module could impersonate anyone. Features are unified, so any crate of the build can enable it
//! for all of them. A build without debug assertions, such as `cargo build --release`, therefore
//! does not compile with it. To run tests or benches in such a profile, set
//! `PATKIT_TESTKIT_IN_RELEASE` for that one command:
//! `PATKIT_TESTKIT_IN_RELEASE=1 cargo test --release`.

use crate::clock::micros;
use crate::owner::Owner;
use crate::permission::Scope;
use crate::role::RoleCatalog;
use crate::service::{Peer, Verified};
use crate::store::StoredToken;
use crate::token::{
    ActorRef, Facts, KeyId, KeyedDigest, Lifetime, NameError, Networks, StoredDigest, Token,
    TokenId, TokenKind, TokenName,
};
use chrono::{DateTime, Utc};
use std::net::IpAddr;
use std::sync::Arc;

const _: () = assert!(
    cfg!(debug_assertions) || option_env!("PATKIT_TESTKIT_IN_RELEASE").is_some(),
    "the feature `testkit` of patkit lets anybody be anybody and is on in a build without debug assertions; turn it on in \
     [dev-dependencies] alone, or, to run tests, set PATKIT_TESTKIT_IN_RELEASE=1 for that command"
);

/// Changes a request as an [`AuthLayer`](crate::http::AuthLayer) does that accepts this token.
///
/// Extractors and [`RequirePermission`](crate::http::RequirePermission) then find the token. `None`
/// is a request without a credential behind an optional layer.
#[cfg(feature = "tower")]
pub fn let_through(extensions: &mut http::Extensions, verified: Option<Verified>) {
    crate::http::let_through(extensions, verified);
}

/// A builder of a [`Verified`] for tests.
///
/// ```
/// use patkit::testkit::FakeToken;
/// use patkit::{Owner, OwnerId, OwnerKind, RoleCatalog, Scope};
///
/// let ada = Owner::new(OwnerId::new("ada")?, OwnerKind::Human).with_role("member");
/// let catalog = RoleCatalog::standard_builder().grant("member", ["datastores:read"]).build()?;
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

/// The error if a [`Verified`] cannot be made.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FakeTokenError {
    /// The owner is internal, and internal owners have no tokens.
    #[error("the owner is internal and has no tokens; use a human or a service user")]
    OwnerKind,
    /// The name is refused.
    #[error("the name is refused: {0}")]
    Name(NameError),
}

impl FakeToken {
    /// Creates a token of this owner, with the owner's kind of token and the scope *inherit*.
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

    /// Sets the name.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// Sets the scope.
    pub fn scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    /// Sets the networks, which are not checked against the address.
    pub fn networks(mut self, networks: Networks) -> Self {
        self.networks = Some(networks);
        self
    }

    /// Sets the expiry.
    pub fn expires_at(mut self, instant: DateTime<Utc>) -> Self {
        self.expires_at = Some(instant);
        self
    }

    /// Sets the address from which the token is used.
    pub fn from_address(mut self, address: IpAddr) -> Self {
        self.peer = Some(address);
        self
    }

    /// Sets the instant of creation and verification. Defaults to the beginning of 1970.
    pub fn at(mut self, now: DateTime<Utc>) -> Self {
        self.now = now;
        self
    }

    /// Returns the [`Verified`], with the permissions of the owner's roles in this catalogue.
    ///
    /// # Errors
    /// [`FakeTokenError`] if the owner is internal or the name is refused.
    pub fn verified(self, catalog: RoleCatalog) -> Result<Verified, FakeTokenError> {
        let kind = TokenKind::for_owner(self.owner.kind()).ok_or(FakeTokenError::OwnerKind)?;
        let now = crate::clock::cut(self.now);
        // Instants before 1970 count as 1970.
        let millis = now.timestamp_millis().max(0).unsigned_abs();
        let id = TokenId::from_words([(millis << 16) | 0x7000, 1 << 63]);
        let name = TokenName::new(&self.name).map_err(FakeTokenError::Name)?;
        let token = Token {
            id: id.expect("the words have the version and the variant of a UUIDv7"),
            realm: self.owner.realm().clone(),
            kind,
            owner: self.owner.id().clone(),
            owner_kind: self.owner.kind(),
            name_key: Some(name.key()),
            name,
            description: None,
            scope: self.scope,
            networks: self.networks,
            digest: StoredDigest::Keyed(KeyedDigest::new(KeyId::new(0), [0; 32])),
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
