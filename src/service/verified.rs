//! The result of a verification, and the permissions that it grants.

#![allow(
    clippy::inline_always,
    reason = "measured, as in the table: what is moved between functions is a tenth"
)]

use super::verify::Peer;
use crate::clock::at_micros;
use crate::owner::{Owner, Realm};
use crate::permission::{Permission, PermissionError, PermissionSet};
use crate::role::{RoleCatalog, UnknownName, beginning};
use crate::snapshot::Snapshot;
use crate::store::StoredToken;
use crate::token::TokenView;
use chrono::{DateTime, Utc};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Proof that a credential was verified: the token, its owner and the permissions of both.
///
/// Only a verification creates one, or the `testkit` feature in a host's tests.
///
/// It describes the moment of the verification. For a long-lived stream or socket, call
/// [`TokenService::recheck`](super::TokenService::recheck) from time to time.
#[derive(Clone)]
pub struct Verified {
    token: TokenView,
    /// The owner's permissions and the catalogue that resolved them. `None` if the owner holds its
    /// resolved permissions itself.
    permissions: Option<Arc<(Arc<RoleCatalog>, PermissionSet)>>,
    pub(super) peer: Peer,
    /// The time of the verification, in microseconds since 1970.
    at: i64,
}

/// The token does not have a permission.
///
/// The text of this error names the permission.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PermissionDenied {
    /// The owner lacks the permission, or the token's scope does not include it.
    #[error(
        "the token does not have the permission {permission}; use a token whose scope and whose \
         owner have it"
    )]
    NotGranted {
        /// The requested permission.
        permission: String,
    },
    /// The text is not a concrete permission, so nobody ever has it. This is an error in the host's
    /// code.
    #[error(
        "the text {text:?}, which a route demands, is not a permission; write one such as \
         datastores:read"
    )]
    NotAPermission {
        /// The requested text.
        text: String,
        /// Why the text is not a permission.
        source: PermissionError,
    },
}

impl Verified {
    #[inline(always)]
    pub(crate) fn new(
        found: StoredToken<'_>,
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

    /// Returns the view of the token.
    pub fn token(&self) -> &TokenView {
        &self.token
    }

    /// Returns the owner that the token acts as.
    pub fn owner(&self) -> &Owner {
        self.token.owner().expect("a verified token has an owner")
    }

    /// Returns the realm, which is the tenant.
    pub fn realm(&self) -> &Realm {
        self.token.realm()
    }

    /// Returns the address that the request came from, or `None` if the host passed none.
    ///
    /// An IPv4-mapped IPv6 address is returned as the IPv4 address in it.
    pub fn address(&self) -> Option<IpAddr> {
        self.peer.address()
    }

    /// Returns when the token was verified.
    pub fn verified_at(&self) -> DateTime<Utc> {
        at_micros(self.at)
    }

    /// Returns whether the owner and the token's scope both allow this permission.
    ///
    /// Does not allocate.
    pub fn allows(&self, permission: &Permission) -> bool {
        let (catalog, granted) = self.granted();
        let is_allowed = granted.allows(permission) && self.token.scope().allows(permission);
        // Checks the name even if everything is granted, because an owner with all permissions
        // would not notice a misspelt one.
        if (!is_allowed || granted.is_everything()) && !catalog.knows(permission) {
            catalog.report(UnknownName::Permission(permission.as_str()));
        }
        is_allowed
    }

    /// Requires a permission given as text, such as `datastores:read`.
    ///
    /// # Errors
    /// [`PermissionDenied`] if the owner or the token's scope does not allow the permission, or if
    /// the text is not a concrete permission.
    pub fn require(&self, permission: &str) -> Result<(), PermissionDenied> {
        let denied = || PermissionDenied::NotGranted { permission: permission.to_owned() };
        let (catalog, granted) = self.granted();
        let allowed = granted.allows_str(permission);
        let allowed =
            allowed.and_then(|held| Ok(held && self.token.scope().allows_str(permission)?));
        if (allowed != Ok(true) || granted.is_everything()) && !catalog.knows_text(permission) {
            catalog.report(UnknownName::Permission(permission));
        }
        match allowed {
            Ok(true) => Ok(()),
            Ok(false) => Err(denied()),
            Err(source) => Err(PermissionDenied::NotAPermission {
                text: beginning(permission).to_owned(),
                source,
            }),
        }
    }

    /// Returns all permissions that the owner has and the scope includes.
    pub fn effective_permissions(&self) -> PermissionSet {
        let (_, granted) = self.granted();
        self.token
            .scope()
            .as_set()
            .map_or_else(|| granted.clone(), |scope| granted.intersection(scope))
    }

    /// Returns the owner's permissions and the catalogue that resolved them.
    fn granted(&self) -> &(Arc<RoleCatalog>, PermissionSet) {
        if let Some(permissions) = &self.permissions {
            permissions
        } else {
            let resolved = self.token.owner().and_then(Owner::resolved);
            resolved.expect("a verified token has an owner with resolved permissions")
        }
    }
}

impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verified")
            .field("token", &self.token)
            .field("owner", self.owner())
            .field("address", &self.address())
            .field("at", &self.verified_at())
            .finish_non_exhaustive()
    }
}
