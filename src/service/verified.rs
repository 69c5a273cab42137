//! What a verification proves, and what it allows.

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

/// Proof that a credential was verified: the token, its owner, and what both together allow. Only verification makes one
/// (and, for tests of hosts, the `testkit` feature).
///
/// It tells how things were when it was made. For a stream or a socket that lives on, ask
/// [`TokenService::recheck`](super::TokenService::recheck) now
/// and then.
#[derive(Clone)]
pub struct Verified {
    token: TokenView,
    /// The owner's permissions, and the catalogue that they are of, where the owner does not hold them itself.
    permissions: Option<Arc<(Arc<RoleCatalog>, PermissionSet)>>,
    pub(super) peer: Peer,
    /// In microseconds since 1970.
    at: i64,
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
