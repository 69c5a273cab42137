//! The permission of a handler as a type, for the extractors of all frameworks.

use super::Problem;
use super::layer::{permitted, without_layer};
use crate::permission::Permission;
use crate::service::Verified;
use http::Extensions;
use std::marker::PhantomData;
use std::ops::Deref;

/// A permission that a handler needs, as a type.
///
/// ```
/// use patkit::http::{Permitted, RequiredPermission};
///
/// struct ReadDatastores;
///
/// impl RequiredPermission for ReadDatastores {
///     const PERMISSION: &'static str = "datastores:read";
/// }
///
/// // Who does not have the permission does not get here.
/// async fn list(token: Permitted<ReadDatastores>) -> String {
///     format!("the datastores of {}", token.owner().id())
/// }
/// ```
pub trait RequiredPermission {
    /// The permission, such as `datastores:read`.
    ///
    /// A text that is not a concrete permission does not compile where it is used:
    ///
    /// ```compile_fail
    /// use patkit::http::{Permitted, RequiredPermission};
    ///
    /// struct Everything;
    ///
    /// impl RequiredPermission for Everything {
    ///     const PERMISSION: &'static str = "datastores:*";
    /// }
    ///
    /// let app: axum::Router = axum::Router::new().route("/", axum::routing::get(async |_: Permitted<Everything>| "hello"));
    /// ```
    const PERMISSION: &'static str;
}

/// The token that the layer has verified, if it has the permission `P`. It derefs to [`Verified`].
///
/// Otherwise the handler does not run, and the client learns which permission it lacks.
pub struct Permitted<P> {
    verified: Verified,
    permission: PhantomData<fn() -> P>,
}

impl<P: RequiredPermission> Permitted<P> {
    /// Returns the token that a layer has verified, if it has the permission.
    pub(super) fn of(extensions: &Extensions) -> Result<Self, Problem> {
        const {
            assert!(
                Permission::is_concrete(P::PERMISSION),
                "RequiredPermission::PERMISSION must be a concrete permission such as `datastores:read`, without `*`"
            );
        }
        // The assertion has the grammar of the parser, so the parser never fails here.
        let permission = Permission::parse(P::PERMISSION).map_err(|_| without_layer())?;
        let verified = permitted(extensions, &permission)?.clone();
        Ok(Self { verified, permission: PhantomData })
    }
}

impl<P> Permitted<P> {
    /// Returns the token.
    pub fn into_verified(self) -> Verified {
        self.verified
    }
}

impl<P> Deref for Permitted<P> {
    type Target = Verified;

    fn deref(&self) -> &Verified {
        &self.verified
    }
}

impl<P> std::fmt::Debug for Permitted<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Permitted").field(&self.verified).finish()
    }
}
