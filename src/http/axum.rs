//! The adapter for axum: extractors for handlers behind an [`AuthLayer`](super::AuthLayer), and what
//! axum says of a request. The layers and services need no adapter.

use super::layer::{passed, verified};
use super::{Challenge, Permitted, Problem, RequiredPermission};
use crate::service::Verified;
use axum::body::Body;
use axum::extract::{ConnectInfo, FromRequestParts, OptionalFromRequestParts};
use axum::response::{IntoResponse, Response};
use http::Extensions;
use http::request::Parts;
use std::net::{IpAddr, SocketAddr};

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        self.to_response().map(Body::from)
    }
}

/// Extracts the token that the layer has verified.
///
/// Without a token, the handler does not run, and the client learns that it needs one.
impl<S: Sync> FromRequestParts<S> for Verified {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        verified(&parts.extensions).cloned()
    }
}

/// Extracts the token that the layer has verified, or `None` if an optional layer passed a request
/// without a bearer credential.
///
/// The layer has already answered a request with a refused credential.
impl<S: Sync> OptionalFromRequestParts<S> for Verified {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Problem> {
        passed(&parts.extensions).map(|(verified, _)| verified.cloned())
    }
}

/// Extracts the challenge of the layer.
impl<S: Sync> FromRequestParts<S> for Challenge {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        passed(&parts.extensions).map(|(_, challenge)| challenge.clone())
    }
}

/// Extracts the token that the layer has verified, if it has the permission `P`.
impl<P: RequiredPermission, S: Sync> FromRequestParts<S> for Permitted<P> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::of(&parts.extensions)
    }
}

/// Returns the address of the connection, which
/// `into_make_service_with_connect_info::<SocketAddr>()` puts into the extensions.
pub(super) fn connection(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get().map(|ConnectInfo::<SocketAddr>(address)| address.ip())
}

/// Returns the path of a request before `nest` or `nest_service` removed a part of it.
#[cfg(feature = "console")]
pub(super) fn original_path(extensions: &Extensions) -> Option<&str> {
    extensions.get().map(|axum::extract::OriginalUri(uri)| uri.path())
}
