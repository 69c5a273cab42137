//! The errors of the service.

use crate::lifecycle::Refusal;
use crate::named_enum::named_enum;
use crate::owner::{DirectoryError, OwnerKind};
use crate::permission::ScopeError;
use crate::policy::LifetimeError;
use crate::random::RandomError;
use crate::store::{Conflict, StoreError};
use crate::token::{KeyId, NameError, NetworksError, Reason, TokenId};
use std::fmt;
use std::time::Duration;

/// Why a token was not verified.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The credential was rejected. All clients get the same answer for every reason.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The verification failed, so access is denied.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl VerifyError {
    /// Returns why the credential was rejected, or `None` if it was not.
    ///
    /// The reason is for the host's logs, not for the client.
    pub fn reject_reason(&self) -> Option<RejectReason> {
        match self {
            Self::Rejected(rejected) => Some(rejected.reason),
            Self::Unavailable(_) => None,
        }
    }
}

/// A credential was rejected.
///
/// The text of this error says no more than a client may know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the credential was rejected")]
#[non_exhaustive]
pub struct Rejected {
    /// The reason, for the host's logs and not for the client.
    pub reason: RejectReason,
    /// The id of the token, if the text has one. The token may not exist.
    pub token: Option<TokenId>,
}

named_enum! {
    /// Why a credential was rejected.
    pub enum RejectReason {
        /// The header has no bearer credential.
        NoCredential = "no_credential",
        /// The header is malformed (RFC 6750 section 3.1, `invalid_request`).
        InvalidRequest = "invalid_request",
        /// The text is not a token of this host.
        Malformed = "malformed",
        /// There is no such token.
        Unknown = "unknown",
        /// The secret is not the token's.
        WrongSecret = "wrong_secret",
        /// The token is revoked.
        Revoked = "revoked",
        /// The token is expired.
        Expired = "expired",
        /// The owner is disabled.
        OwnerDisabled = "owner_disabled",
        /// The directory does not know the owner.
        OwnerUnknown = "owner_unknown",
        /// The owner's kind has no tokens of this kind.
        OwnerKind = "owner_kind",
        /// The token was made before the owner's *valid after*.
        BeforeValidAfter = "before_valid_after",
        /// The address is not in the token's networks, or is unknown.
        AddressNotAllowed = "address_not_allowed",
    }
}

/// The store, the directory or a key is unavailable; try again later.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// The store did not answer.
    #[error("the token store did not answer; try again")]
    Store(#[source] StoreError),
    /// The directory of owners did not answer.
    #[error("the directory of owners did not answer; try again")]
    Directory(#[source] DirectoryError),
    /// The key that a token's digest was made with is not in the keyring.
    #[error("the keyring has no key {0}, which a token needs; add key {0} to the keyring")]
    KeyMissing(KeyId),
    /// This key of the keyring differs from the key that the store knows under its id, as found by
    /// the last [`check`](super::TokenService::check).
    #[error(
        "key {0} of the keyring is not the key that this store knows as key {0}; restore its secret, or give the new secret an \
         id that was never used"
    )]
    WrongKey(KeyId),
}

/// Why a management operation failed.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ManageError {
    /// The actor may not act, or may no longer act, because it is unknown or disabled, or because
    /// its token was revoked meanwhile.
    #[error("the actor was rejected, because the owner or the token no longer works")]
    ActorRejected(#[source] Rejected),
    /// The actor lacks the permission.
    #[error(
        "the operation needs the permission {permission}, which the actor lacks; grant it to a \
         role of the owner, or use a token whose scope has it"
    )]
    Forbidden {
        /// The missing permission.
        permission: &'static str,
    },
    /// The policy forbids the operation, regardless of the actor's permissions.
    #[error("the policy forbids the operation: {0}")]
    ForbiddenByPolicy(PolicyRule),
    /// The operation is for owners, and the actor is the host itself.
    #[error("the host itself cannot do this to a token; act as an owner, with Actor::signed_in")]
    NotForHost,
    /// There is no such token that the actor may see.
    #[error("the token does not exist, or the actor may not see it; check the id of the token")]
    NotFound,
    /// The token's state does not allow the operation.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The actor may not revoke for this reason.
    #[error(
        "the actor cannot revoke for the reason {0}; leave the reason out, or give another one"
    )]
    ReasonNotAllowed(Reason),
    /// The owner has another token with this name.
    #[error("another token of the owner has this name; choose another name")]
    NameTaken,
    /// The owner has the maximum number of active tokens that the policy allows.
    #[error(
        "the owner has {most} active tokens, the most that are allowed; revoke one of them first"
    )]
    TooManyTokens {
        /// The maximum.
        most: u32,
    },
    /// A field of the request is out of bounds.
    #[error(transparent)]
    Invalid(InvalidInput),
    /// The token made, restored or removed through a token exceeds what that token may do.
    #[error("{0}")]
    Attenuation(Attenuation),
    /// The token has none of the versions of
    /// [`TokenEdit::only_versions`](super::TokenEdit::only_versions).
    #[error("the token has changed in the meantime; read the token again")]
    Outdated,
    /// Concurrent changes of the token outlasted the retries.
    #[error("the token is changed too often at the moment; try again")]
    Contended,
    /// The store cannot tell whether the change was committed, and the record did not show it
    /// either.
    #[error(
        "the store did not say whether the change of the token {token} was stored; read the token to find out"
    )]
    OutcomeUnknown {
        /// The token to read to find out.
        token: TokenId,
        /// The store's error.
        source: StoreError,
    },
    /// The store, the directory or a key was unavailable.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The generator of secrets failed; no token was made.
    #[error("the random generator gave no secret, so that no token was made; try again")]
    Random(#[from] RandomError),
}

/// Writes one sentence with all causes.
///
/// Includes the reason for which an actor was rejected, which `Display` keeps from clients.
impl fmt::Debug for ManageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::sentence::write(self, f)?;
        match self {
            Self::ActorRejected(rejected) => write!(f, ": {}", rejected.reason),
            _ => Ok(()),
        }
    }
}

impl ManageError {
    /// Returns whether the change conflicts with the stored state.
    ///
    /// This is a taken name, too many tokens, a state that does not allow the change, or concurrent
    /// changes of the token.
    pub const fn is_conflict(&self) -> bool {
        matches!(
            self,
            Self::NameTaken | Self::TooManyTokens { .. } | Self::Refused(_) | Self::Contended
        )
    }
}

/// The rule of the policy that forbids an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PolicyRule {
    /// [`Oversight::Hidden`](crate::policy::Oversight::Hidden): personal tokens are hidden from
    /// everybody but their owner.
    OversightHidden,
    /// [`Oversight::RevokeOnly`](crate::policy::Oversight::RevokeOnly): an overseer lists and
    /// revokes personal tokens, and does nothing else to them.
    OversightRevokeOnly,
    /// [`TokenManagement`](crate::policy::TokenManagement): tokens manage no tokens, or only those
    /// whose scope names the permission.
    TokensManagingTokens,
}

impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OversightHidden => {
                "personal tokens are hidden from everybody but their owner; set `.oversight(…)` on \
                 the policy to show them"
            }
            Self::OversightRevokeOnly => {
                "an overseer may only list and revoke the personal tokens of others; set \
                 `.oversight(…)` on the policy to allow more"
            }
            Self::TokensManagingTokens => {
                "no token may manage tokens, or only a token whose scope names the permission; \
                 sign in, or set `.tokens_managing_tokens(…)` on the policy to allow more"
            }
        })
    }
}

/// The field that is wider than the token through which the operation is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Attenuation {
    /// The scope.
    Scope,
    /// The networks.
    Networks,
    /// The expiry.
    Expiry,
    /// The family of the token that would be removed.
    Family,
}

impl fmt::Display for Attenuation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scope => {
                "the scope is wider than that of the token through which the operation is done; choose a narrower scope"
            }
            Self::Networks => {
                "the networks are wider than those of the token through which the operation is done; name networks within those"
            }
            Self::Expiry => {
                "the expiry is later than that of the token through which the operation is done; choose an earlier expiry"
            }
            Self::Family => {
                "a token that made or replaced others cannot be deleted through a token; delete \
                 the token as a signed-in owner"
            }
        })
    }
}

/// The invalid field of a request.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum InvalidInput {
    /// The name.
    #[error("the name is refused: {0}")]
    Name(NameError),
    /// The description.
    #[error("the description is refused: {0}")]
    Description(NameError),
    /// The lifetime.
    #[error(transparent)]
    Lifetime(LifetimeError),
    /// The scope.
    #[error(transparent)]
    Scope(ScopeError),
    /// The networks.
    #[error(transparent)]
    Networks(NetworksError),
    /// The overlap is longer than the policy allows.
    #[error("the overlap is too long; ask for {} s at most", most.as_secs())]
    Overlap {
        /// The longest overlap.
        most: Duration,
    },
    /// The directory does not know the owner.
    #[error("the directory knows no owner with this id; check the id of the owner")]
    OwnerUnknown,
    /// The owner is disabled.
    #[error("the owner is disabled; enable the owner in the directory first")]
    OwnerDisabled,
    /// The owner's kind has no tokens of this kind.
    #[error(
        "the owner is of the kind {0}; personal tokens are for human owners, and service tokens for service users"
    )]
    OwnerKind(OwnerKind),
    /// The edit has no field.
    #[error("the edit has no field; give a name, a description or whether the token is active")]
    NothingToChange,
}

impl InvalidInput {
    /// Returns the name of the invalid field.
    pub const fn field(&self) -> &'static str {
        match self {
            Self::Name(_) => "name",
            Self::Description(_) => "description",
            Self::Lifetime(_) => "lifetime",
            Self::Scope(_) => "scope",
            Self::Networks(_) => "networks",
            Self::Overlap { .. } => "overlap",
            Self::OwnerUnknown | Self::OwnerDisabled | Self::OwnerKind(_) => "owner",
            Self::NothingToChange => "edit",
        }
    }
}

impl From<InvalidInput> for ManageError {
    fn from(input: InvalidInput) -> Self {
        Self::Invalid(input)
    }
}

/// Converts a store's error of an operation on `token`.
///
/// The caller must handle the conflicts that it retries before this.
pub(super) fn store_error(error: StoreError, token: TokenId) -> ManageError {
    match error {
        StoreError::Conflict(Conflict::Name(_)) => ManageError::NameTaken,
        StoreError::Conflict(_) => ManageError::Contended,
        StoreError::OutcomeUnknown(_) => ManageError::OutcomeUnknown { token, source: error },
        StoreError::Unavailable(_) | StoreError::Corrupt(_) | StoreError::Cursor(_) => {
            ManageError::Unavailable(Unavailable::Store(error))
        }
    }
}
