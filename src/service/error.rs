//! What the service answers when it does not do what it was asked for.

use crate::lifecycle::Refusal;
use crate::owner::{DirectoryError, OwnerKind};
use crate::permission::ScopeError;
use crate::policy::LifetimeError;
use crate::random::RandomError;
use crate::store::{Conflict, StoreError};
use crate::token::{KeyId, NameError, NetworksError, Reason, TokenId};
use chrono::TimeDelta;
use std::fmt;

/// Why a token was not verified: two kinds that are never mixed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The credential is no good. All clients get the same answer, whatever the reason.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// It could not be found out; nobody gets in.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl VerifyError {
    /// Why the credential was rejected, if it was: for the host's logs, not for the client.
    pub fn reject_reason(&self) -> Option<RejectReason> {
        match self {
            Self::Rejected(rejected) => Some(rejected.reason),
            Self::Unavailable(_) => None,
        }
    }
}

/// A credential was rejected. The text of this error says no more than a client may know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the credential was rejected")]
#[non_exhaustive]
pub struct Rejected {
    /// Why: for the host's logs, not for the client.
    pub reason: RejectReason,
    /// Which token was meant, where the text named one; it may not exist.
    pub token: Option<TokenId>,
}

/// Why a credential was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
// As wide as the words of a `Verified`, which it stands in the place of: were it a byte, the compiler would store a word there in
// pieces, and whoever reads that word would wait for them.
#[repr(u64)]
pub enum RejectReason {
    /// The header has no bearer credential.
    NoCredential,
    /// The header is malformed (RFC 6750 section 3.1, `invalid_request`).
    InvalidRequest,
    /// The text is no token of this host.
    Malformed,
    /// There is no such token.
    Unknown,
    /// The secret is not the token's.
    WrongSecret,
    /// The token is revoked.
    Revoked,
    /// The token is expired.
    Expired,
    /// The owner is disabled.
    OwnerDisabled,
    /// The directory does not know the owner.
    OwnerUnknown,
    /// The owner is not of the kind that has such tokens.
    OwnerKind,
    /// The token was made before its owner's tokens became valid.
    BeforeValidAfter,
    /// The address is not in the token's networks, or is not known.
    AddressNotAllowed,
}

impl RejectReason {
    /// All reasons.
    pub const ALL: [Self; 12] = [
        Self::NoCredential,
        Self::InvalidRequest,
        Self::Malformed,
        Self::Unknown,
        Self::WrongSecret,
        Self::Revoked,
        Self::Expired,
        Self::OwnerDisabled,
        Self::OwnerUnknown,
        Self::OwnerKind,
        Self::BeforeValidAfter,
        Self::AddressNotAllowed,
    ];

    /// The reason's name, such as `wrong_secret`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoCredential => "no_credential",
            Self::InvalidRequest => "invalid_request",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::WrongSecret => "wrong_secret",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::OwnerDisabled => "owner_disabled",
            Self::OwnerUnknown => "owner_unknown",
            Self::OwnerKind => "owner_kind",
            Self::BeforeValidAfter => "before_valid_after",
            Self::AddressNotAllowed => "address_not_allowed",
        }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Something that the answer depends on did not answer: try again later.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// The store.
    #[error("the token store did not answer; try again")]
    Store(#[source] StoreError),
    /// The directory of owners.
    #[error("the directory of owners did not answer; try again")]
    Directory(#[source] DirectoryError),
    /// The key that a token's digest was made with is not in the keyring.
    #[error("the keyring has no key {0}, which a token needs; add key {0} to the keyring")]
    KeyMissing(KeyId),
    /// The last [`check`](super::TokenService::check) found that this key of the keyring is not the key which the store knows
    /// under its id.
    #[error(
        "key {0} of the keyring is not the key that this store knows as key {0}; restore its secret, or give the new secret an \
         id that was never used"
    )]
    WrongKey(KeyId),
}

/// Why a management operation was not done.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ManageError {
    /// The actor is not, or no longer, somebody who may act: unknown, disabled, or a token that was revoked meanwhile.
    #[error("the actor was rejected, because the owner or the token no longer works")]
    ActorRejected(#[source] Rejected),
    /// The actor lacks the permission.
    #[error("the operation needs the permission {permission}, which the actor lacks")]
    Forbidden {
        /// The missing permission.
        permission: &'static str,
    },
    /// The policy does not allow the operation, whatever permissions the actor has.
    #[error("the policy forbids the operation: {0}")]
    ForbiddenByPolicy(PolicyRule),
    /// The operation is for owners, and the actor is the host itself.
    #[error("the host itself cannot do this to a token; act as an owner, with Actor::session")]
    NotForHost,
    /// There is no such token that the actor may see.
    #[error("there is no such token")]
    NotFound,
    /// The token's state does not allow it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The reason is not one that the actor may revoke for.
    #[error("the actor cannot revoke for the reason {0}; leave the reason out, or give another one")]
    ReasonNotAllowed(Reason),
    /// The owner has another token with this name.
    #[error("another token of the owner has this name; choose another name")]
    NameTaken,
    /// The owner has as many active tokens as the policy allows.
    #[error("the owner has {most} active tokens, the most that are allowed; revoke one of them first")]
    TooManyTokens {
        /// The most.
        most: u32,
    },
    /// Something in the request is out of bounds.
    #[error(transparent)]
    Invalid(InvalidInput),
    /// What is made, restored or removed through a token would be more than that token may.
    #[error("{0}")]
    Attenuation(Attenuation),
    /// The token is not of a version that the edit was bound to by [`TokenEdit::only_versions`](super::TokenEdit::only_versions).
    #[error("the token has changed in the meantime; read the token again")]
    Outdated,
    /// Others changed the token again and again at the same time.
    #[error("the token is changed too often at the moment; try again")]
    Contended,
    /// The store did not say whether the change happened, nor could it be found out.
    #[error(
        "the store did not say whether the change of the token {token} was stored; read the token to find out"
    )]
    OutcomeUnknown {
        /// The token that would tell.
        token: TokenId,
        /// What the store said.
        source: StoreError,
    },
    /// It could not be done.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The generator of secrets failed; no token was made.
    #[error("the random generator gave no secret, so that no token was made; try again")]
    Random(#[from] RandomError),
}

/// One sentence with all causes. Of a rejected actor it has the reason, which `Display` keeps from clients.
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
    /// Whether the change conflicts with what is there: a taken name, too many tokens, a state that does not allow the change,
    /// or others who change the token at the same time.
    pub const fn is_conflict(&self) -> bool {
        matches!(self, Self::NameTaken | Self::TooManyTokens { .. } | Self::Refused(_) | Self::Contended)
    }
}

/// The rule of the policy that forbids an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PolicyRule {
    /// [`Oversight::Hidden`](crate::policy::Oversight::Hidden): personal tokens are hidden from everybody but their owner.
    OversightHidden,
    /// [`Oversight::RevokeOnly`](crate::policy::Oversight::RevokeOnly): an overseer lists and revokes personal tokens, and
    /// does nothing else to them.
    OversightRevokeOnly,
    /// [`TokenManagement`](crate::policy::TokenManagement): tokens manage no tokens, or only those whose scope names the
    /// permission.
    TokensManagingTokens,
}

impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OversightHidden => "personal tokens are hidden from everybody but their owner",
            Self::OversightRevokeOnly => {
                "an overseer may list and revoke the personal tokens of others, and nothing else"
            }
            Self::TokensManagingTokens => {
                "a token manages tokens only if the policy allows it and, where it says so, the token's scope names the permission"
            }
        })
    }
}

/// What is wider than the token through which it would be made or restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Attenuation {
    /// The scope.
    Scope,
    /// The networks.
    Networks,
    /// The expiry.
    Expiry,
    /// What it would remove: a token with a family.
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
                "a token that made or replaced others is not deleted through a token; delete the token as a signed-in owner"
            }
        })
    }
}

/// What was refused in a request.
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
    /// The overlap is over the policy's.
    #[error("the overlap is too long; ask for {} s at most", most.num_seconds())]
    Overlap {
        /// The longest.
        most: TimeDelta,
    },
    /// The directory does not know the owner.
    #[error("the directory knows no owner with this id; check the id of the owner")]
    OwnerUnknown,
    /// The owner is disabled.
    #[error("the owner is disabled; enable the owner in the directory first")]
    OwnerDisabled,
    /// The owner has no tokens of this kind.
    #[error(
        "the owner is of the kind {0}; personal tokens are for human owners, and service tokens for service users"
    )]
    OwnerKind(OwnerKind),
    /// An edit has nothing to change.
    #[error("the edit has no field; give a name, a description or whether the token is active")]
    NothingToChange,
}

impl InvalidInput {
    /// The field that was refused.
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

/// A store's error of an operation on `token`; conflicts that can be tried again are the caller's to catch before.
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
