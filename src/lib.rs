#![cfg_attr(docsrs, feature(doc_cfg))]
// `tests/hosts` compiles the code of the README, because it has the dependencies that the code
// needs.
#![cfg_attr(not(doctest), doc = include_str!("../README.md"))]
//!
//! # Where to find what
//!
//! | to | look at |
//! |---|---|
//! | make and verify tokens | [`TokenService`], [`Actor`], [`NewToken`], [`Credential`], [`Verified`] |
//! | describe your users | [`Directory`], [`Owner`], [`OwnerCache`] |
//! | define roles, permissions and limits | [`RoleCatalog`], [`Scope`], [`TokenPolicy`] |
//! | keep tokens | [`TokenStore`], [`MemoryStore`], [`store`] |
//! | hear of what happens | [`AuditSink`], [`AuditLog`] |
//! | do one job | [`docs::guides`](docs) |
//! | know how it is built, what it withstands, what it costs | [`docs::design`], [`docs::threat_model`], [`docs::performance`] |

pub mod audit;
mod authorization;
pub mod clock;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod docs;
mod errors;
#[cfg(feature = "tower")]
pub mod http;
pub mod lifecycle;
mod likely;
mod named_enum;
pub mod owner;
pub mod permission;
pub mod policy;
pub mod random;
pub mod role;
mod sentence;
pub mod service;
mod shard;
mod snapshot;
pub mod store;
mod table;
#[cfg(feature = "testkit")]
pub mod testkit;
pub mod token;

/// A boxed future, which the methods of the dyn-compatible traits return.
pub type BoxedFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

pub use audit::{AuditAction, AuditEvent, AuditSink, EventId};
pub use clock::{Clock, ManualClock, SystemClock};
pub use owner::cache::OwnerCache;
pub use owner::{Directory, DirectoryError, MemoryDirectory, Owner, OwnerId, OwnerKind, Realm};
pub use permission::{Grant, Permission, PermissionSet, Scope};
pub use policy::TokenPolicy;
pub use role::{DeclaredPermission, RoleCatalog};
pub use service::{
    Actor, Credential, InvalidInput, IssuedToken, ManageError, NewToken, PermissionDenied,
    RejectReason, Rejected, TokenEdit, TokenPage, TokenService, Unavailable, Verified, VerifyError,
};
#[cfg(feature = "cache")]
pub use store::CachedStore;
#[cfg(feature = "sql")]
pub use store::SqlStore;
pub use store::{AuditLog, KeyChecks, MemoryStore, StoreError, TokenStore};
pub use token::{
    Keyring, PlaintextToken, Reason, Token, TokenId, TokenKind, TokenState, TokenView,
};
