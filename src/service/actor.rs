//! Actors, and what an actor may do to which token.

use super::error::{Attenuation, ManageError, PolicyRule, RejectReason, Rejected, Unavailable};
use super::verified::Verified;
use super::{InvalidInput, TokenService};
use crate::audit::{AuditAction, AuditEvent, EventId};
use crate::owner::{Directory, Owner, OwnerId, Realm};
use crate::permission::{
    Grant, PermissionSet, SERVICE_TOKENS_MANAGE, Scope, TOKENS_MANAGE, TOKENS_OVERSEE, TOKENS_SCIM,
};
use crate::policy::{Oversight, TokenManagement};
use crate::store::TokenStore;
use crate::token::id::IdSource;
use crate::token::{
    ActorRef, Authority, Reason, Revocation, Token, TokenId, TokenKind, TokenState,
};
use chrono::{DateTime, Utc};
use std::net::IpAddr;
use std::sync::Arc;

/// The actor of a management operation.
///
/// Each operation looks up again what the actor may do.
#[derive(Debug, Clone)]
pub struct Actor {
    who: Who,
    address: Option<IpAddr>,
    is_proven_by_header: bool,
}

/// The credential that an actor proved itself with.
///
/// Limits are counted for each credential.
#[cfg(feature = "api")]
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum ActorCredential {
    Session { realm: Realm, owner: OwnerId },
    Token(TokenId),
    System { realm: Realm },
}

#[derive(Debug, Clone)]
enum Who {
    Session { realm: Realm, owner: OwnerId },
    Token { realm: Realm, owner: OwnerId, id: TokenId },
    System { realm: Realm },
}

impl Actor {
    /// Creates the actor for an owner that the host has signed in, in the default realm.
    pub fn signed_in(owner: OwnerId) -> Self {
        Self::signed_in_to(Realm::default(), owner)
    }

    /// Creates the actor for an owner that the host has signed in, in this realm.
    pub fn signed_in_to(realm: Realm, owner: OwnerId) -> Self {
        Self { who: Who::Session { realm, owner }, address: None, is_proven_by_header: false }
    }

    /// Creates the actor for an owner that acts through one of its tokens.
    pub fn token(verified: &Verified) -> Self {
        let token = verified.token();
        let who = Who::Token {
            realm: token.realm().clone(),
            owner: token.owner_id().clone(),
            id: token.id(),
        };
        Self { who, address: verified.address(), is_proven_by_header: false }
    }

    /// Creates the actor for the host itself, in the default realm.
    ///
    /// The host may list, count, get, revoke and restore every token of the realm, and generate
    /// service tokens. It has no token of its own.
    pub fn system() -> Self {
        Self::system_in(Realm::default())
    }

    /// Creates the actor for the host itself, in this realm.
    pub fn system_in(realm: Realm) -> Self {
        Self { who: Who::System { realm }, address: None, is_proven_by_header: false }
    }

    /// Declares that the host identified this session by a header that no browser sends by itself.
    ///
    /// An example is a JWT in `Authorization`. A page of another site cannot forge such a request,
    /// so the HTTP API does not check its origin.
    ///
    /// Do not declare this for a session that is identified by a cookie, a client certificate or
    /// HTTP Basic.
    pub fn proven_by_header(mut self) -> Self {
        self.is_proven_by_header = true;
        self
    }

    #[cfg(feature = "api")]
    pub(crate) fn is_proven_by_header(&self) -> bool {
        self.is_proven_by_header
    }

    #[cfg(feature = "api")]
    pub(crate) fn is_token(&self) -> bool {
        matches!(self.who, Who::Token { .. })
    }

    /// Returns the realm and the owner that the actor acts for, without an owner for the host
    /// itself.
    #[cfg(feature = "api")]
    pub(crate) fn counts_as(&self) -> (&Realm, Option<&OwnerId>) {
        match &self.who {
            Who::Session { realm, owner } | Who::Token { realm, owner, .. } => (realm, Some(owner)),
            Who::System { realm } => (realm, None),
        }
    }

    #[cfg(feature = "api")]
    pub(crate) fn credential(&self) -> ActorCredential {
        match &self.who {
            Who::Session { realm, owner } => {
                ActorCredential::Session { realm: realm.clone(), owner: owner.clone() }
            }
            Who::Token { id, .. } => ActorCredential::Token(*id),
            Who::System { realm } => ActorCredential::System { realm: realm.clone() },
        }
    }

    /// Sets the address that the request came from, for the audit events.
    ///
    /// An IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2) counts as the IPv4 address in it.
    pub fn from_address(mut self, address: IpAddr) -> Self {
        self.address = Some(address.to_canonical());
        self
    }
}

/// The owner and the permissions of an actor, at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Standing {
    /// The owner who acts, or `None` for the host itself.
    pub owner: Option<Arc<Owner>>,
    /// The actor's permissions. If it acts through a token, only those in the token's scope.
    pub permissions: PermissionSet,
    /// Whether the actor may manage its own personal tokens.
    pub manages_tokens: bool,
    /// Whether the actor may manage the service tokens of the realm.
    pub manages_service_tokens: bool,
    /// Whether the actor may put permissions under `scim:` into a scope.
    pub grants_scim: bool,
}

/// An actor after the lookup.
pub(super) struct Acting {
    pub(super) realm: Realm,
    pub(super) actor: ActorRef,
    pub(super) address: Option<IpAddr>,
    pub(super) now: DateTime<Utc>,
    /// The owner who acts, or `None` for the host itself.
    pub(super) owner: Option<Arc<Owner>>,
    /// The token that the actor acts through.
    pub(super) via: Option<Arc<Token>>,
    permissions: PermissionSet,
    management: TokenManagement,
    oversight: Oversight,
    ids: Arc<IdSource>,
}

/// The relation of an actor to a token that it may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    /// The host itself.
    System,
    /// The token itself, without the permission to manage tokens.
    Itself,
    /// The owner of the token, or the token itself with the permission.
    Owner,
    /// An actor that manages service tokens.
    Admin,
    /// An actor that oversees personal tokens.
    Overseer,
}

/// An operation on one token. Each has its own permission rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Get,
    Revoke,
    Restore,
    Rotate,
    Rename,
    Delete,
}

impl<S: TokenStore, D: Directory> TokenService<S, D> {
    /// Looks up the actor: the current state of its owner and of the token that it acts through.
    pub(super) async fn acting(&self, actor: &Actor) -> Result<Acting, ManageError> {
        let now = self.now();
        let (realm, owner, id) = match &actor.who {
            Who::System { realm } => (realm, None, None),
            Who::Session { realm, owner } => (realm, Some(owner), None),
            Who::Token { realm, owner, id } => (realm, Some(owner), Some(*id)),
        };
        let rejected = |reason| Err(ManageError::ActorRejected(Rejected { reason, token: id }));
        let via = match id {
            None => None,
            Some(id) => match self.find_current(id).await? {
                None => return rejected(RejectReason::Unknown),
                Some(token) => match token.state(now) {
                    TokenState::Active => Some(token),
                    TokenState::Revoked => return rejected(RejectReason::Revoked),
                    TokenState::Expired => return rejected(RejectReason::Expired),
                },
            },
        };
        let owner = match owner {
            None => None,
            Some(owner) => match self.owner(realm, owner).await? {
                None => return rejected(RejectReason::OwnerUnknown),
                Some(owner) if !owner.is_enabled() => return rejected(RejectReason::OwnerDisabled),
                Some(owner) => Some(owner),
            },
        };
        if let (Some(via), Some(owner)) = (&via, &owner) {
            if owner.kind() != via.kind.owner_kind() {
                return rejected(RejectReason::OwnerKind);
            }
            if owner.tokens_valid_after().is_some_and(|after| via.is_older_than(after, now)) {
                return rejected(RejectReason::BeforeValidAfter);
            }
        }
        let actor_ref = match &actor.who {
            Who::System { .. } => ActorRef::System,
            Who::Session { owner, .. } => ActorRef::Owner(owner.clone()),
            Who::Token { owner, id, .. } => ActorRef::Token { owner: owner.clone(), id: *id },
        };
        Ok(Acting {
            realm: realm.clone(),
            actor: actor_ref,
            address: actor.address,
            now,
            permissions: owner
                .as_ref()
                .map_or_else(PermissionSet::empty, |owner| owner.permissions(&self.catalog)),
            owner,
            via,
            management: self.policy.tokens_managing_tokens(),
            oversight: self.policy.oversight(),
            ids: self.ids.clone(),
        })
    }

    /// Returns the owner and the current permissions of the actor.
    ///
    /// Use it for a page that only shows what the actor may do.
    ///
    /// # Errors
    /// [`ManageError`]: the actor is rejected, or the lookup failed.
    pub async fn standing(&self, actor: &Actor) -> Result<Standing, ManageError> {
        let acting = self.acting(actor).await?;
        let scope = acting.via.as_ref().and_then(|via| via.scope.as_set());
        let permissions = scope.map_or_else(
            || acting.permissions.clone(),
            |scope| acting.permissions.intersection(scope),
        );
        Ok(Standing {
            manages_tokens: acting.may(TOKENS_MANAGE),
            manages_service_tokens: acting.may(SERVICE_TOKENS_MANAGE),
            grants_scim: acting.may(TOKENS_SCIM),
            owner: acting.owner,
            permissions,
        })
    }

    pub(super) async fn find_current(
        &self,
        id: TokenId,
    ) -> Result<Option<Arc<Token>>, Unavailable> {
        self.store.find_current(id).await.map_err(Unavailable::Store)
    }
}

impl Acting {
    /// Returns whether the actor holds a permission of this crate and, through a token, may use it.
    pub(super) fn may(&self, permission: &str) -> bool {
        self.holds(permission) && self.policy_lets(permission)
    }

    /// Returns whether the owner has the permission and, through a token, the token's scope covers
    /// it.
    fn holds(&self, permission: &str) -> bool {
        let in_scope = |via: &Arc<Token>| via.scope.allows_str(permission) == Ok(true);
        self.permissions.allows_str(permission) == Ok(true)
            && self.via.as_ref().is_none_or(in_scope)
    }

    /// Returns whether the policy lets the actor use a permission of this crate that it holds.
    fn policy_lets(&self, permission: &str) -> bool {
        let Some(via) = &self.via else { return true };
        match self.management {
            TokenManagement::Attenuated => true,
            TokenManagement::Named => {
                let grant = Grant::parse(permission).expect("this crate's permissions are grants");
                via.scope.as_set().is_some_and(|scope| scope.names(&grant))
            }
            TokenManagement::Forbidden => false,
        }
    }

    /// Checks that the actor may use a permission.
    ///
    /// # Errors
    /// Forbidden without the permission. Forbidden by the policy if the actor holds the permission
    /// but the policy does not let it use the permission.
    pub(super) fn demand(&self, permission: &'static str) -> Result<(), ManageError> {
        if self.may(permission) { Ok(()) } else { Err(self.lacks(permission)) }
    }

    /// Returns the error for a permission that the actor may not use.
    fn lacks(&self, permission: &'static str) -> ManageError {
        if self.holds(permission) {
            ManageError::ForbiddenByPolicy(PolicyRule::TokensManagingTokens)
        } else {
            ManageError::Forbidden { permission }
        }
    }

    pub(super) fn is_system(&self) -> bool {
        self.actor == ActorRef::System
    }

    /// Errors if there is no token on which the actor could perform the operation.
    ///
    /// Called before the token is read.
    pub(super) fn demand_any(&self, operation: Operation, id: TokenId) -> Result<(), ManageError> {
        let itself = self.via.as_ref().is_some_and(|via| via.id == id);
        let may = match operation {
            Operation::Get | Operation::Revoke | Operation::Restore if self.is_system() => true,
            _ if self.is_system() => return Err(ManageError::NotForHost),
            Operation::Get | Operation::Revoke if itself => true,
            Operation::Rotate if itself && self.management != TokenManagement::Forbidden => true,
            Operation::Revoke if self.oversees() => true,
            _ => self.may(TOKENS_MANAGE) || self.may(SERVICE_TOKENS_MANAGE),
        };
        if may {
            Ok(())
        } else if operation == Operation::Revoke && self.may(TOKENS_OVERSEE) {
            Err(ManageError::ForbiddenByPolicy(PolicyRule::OversightHidden))
        } else if operation == Operation::Rotate && itself {
            Err(ManageError::ForbiddenByPolicy(PolicyRule::TokensManagingTokens))
        } else if self.holds(SERVICE_TOKENS_MANAGE) {
            Err(self.lacks(SERVICE_TOKENS_MANAGE))
        } else {
            Err(self.lacks(TOKENS_MANAGE))
        }
    }

    /// Checks that the actor may oversee other owners' personal tokens.
    ///
    /// # Errors
    /// Forbidden without `tokens:oversee`. Forbidden by the policy if it hides tokens.
    pub(super) fn demand_oversight(&self) -> Result<(), ManageError> {
        self.demand(TOKENS_OVERSEE)?;
        match self.oversight {
            Oversight::Hidden => Err(ManageError::ForbiddenByPolicy(PolicyRule::OversightHidden)),
            Oversight::RevokeOnly => Ok(()),
        }
    }

    /// Returns the actor's relation to a token if the actor may perform the operation on it.
    ///
    /// # Errors
    /// Not found if the actor may not see the token. Forbidden if the actor may see the token but
    /// not perform the operation.
    pub(super) fn relation(
        &self,
        operation: Operation,
        token: &Token,
    ) -> Result<Relation, ManageError> {
        let relation = self.sees(token).ok_or(ManageError::NotFound)?;
        match (relation, operation) {
            (Relation::Owner | Relation::Admin, _)
            | (Relation::System, Operation::Get | Operation::Revoke | Operation::Restore)
            | (Relation::Itself, Operation::Get | Operation::Revoke)
            | (Relation::Overseer, Operation::Revoke) => Ok(relation),
            (Relation::Itself, Operation::Rotate)
                if self.management != TokenManagement::Forbidden =>
            {
                Ok(relation)
            }
            (Relation::System, _) => Err(ManageError::NotForHost),
            (Relation::Itself, Operation::Rotate) => {
                Err(ManageError::ForbiddenByPolicy(PolicyRule::TokensManagingTokens))
            }
            (Relation::Itself, _) => Err(self.lacks(match token.kind {
                TokenKind::Personal => TOKENS_MANAGE,
                TokenKind::Service => SERVICE_TOKENS_MANAGE,
            })),
            (Relation::Overseer, _) => {
                Err(ManageError::ForbiddenByPolicy(PolicyRule::OversightRevokeOnly))
            }
        }
    }

    fn sees(&self, token: &Token) -> Option<Relation> {
        if token.realm != self.realm {
            return None;
        }
        if self.is_system() {
            return Some(Relation::System);
        }
        let itself = self.via.as_ref().is_some_and(|via| via.id == token.id);
        let managed = match token.kind {
            TokenKind::Personal if self.owns(token) && self.may(TOKENS_MANAGE) => {
                Some(Relation::Owner)
            }
            TokenKind::Personal if self.oversees() => Some(Relation::Overseer),
            TokenKind::Service if self.may(SERVICE_TOKENS_MANAGE) => Some(Relation::Admin),
            TokenKind::Personal | TokenKind::Service => None,
        };
        match managed {
            None | Some(Relation::Overseer) if itself => Some(Relation::Itself),
            Some(_) if itself => Some(Relation::Owner),
            managed => managed,
        }
    }

    /// Returns whether the actor owns a token.
    ///
    /// A token of a former holder of the actor's id belongs to somebody else.
    pub(super) fn owns(&self, token: &Token) -> bool {
        let owner = self.owner.as_ref().filter(|owner| *owner.id() == token.owner);
        owner.is_some_and(|owner| !is_former(owner, token, self.now))
    }

    pub(super) fn oversees(&self) -> bool {
        self.oversight == Oversight::RevokeOnly && self.may(TOKENS_OVERSEE)
    }

    /// Checks that a token with this scope may be made or restored.
    ///
    /// # Errors
    /// Forbidden if the scope covers permissions under `scim:` and the actor lacks the permission
    /// for it.
    pub(super) fn demand_scim(&self, scope: &Scope) -> Result<(), ManageError> {
        if scope.covers_scim() && !self.is_system() { self.demand(TOKENS_SCIM) } else { Ok(()) }
    }

    /// Checks that a token made or restored through another token is no wider than that token.
    ///
    /// # Errors
    /// [`Attenuation`], which names the field that is wider.
    pub(super) fn demand_attenuated(&self, token: &Token) -> Result<(), ManageError> {
        let Some(via) = &self.via else { return Ok(()) };
        let for_another = token.owner != via.owner || token.kind != via.kind;
        if !token.scope.is_within(&via.scope) || (for_another && token.scope.is_inherit()) {
            return Err(ManageError::Attenuation(Attenuation::Scope));
        }
        let within = match (&via.networks, &token.networks) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(outer), Some(inner)) => inner.is_within(outer),
        };
        if !within {
            return Err(ManageError::Attenuation(Attenuation::Networks));
        }
        match (via.facts.expires_at, token.facts.expires_at) {
            (None, _) => Ok(()),
            (Some(outer), Some(inner)) if inner <= outer => Ok(()),
            (Some(_), _) => Err(ManageError::Attenuation(Attenuation::Expiry)),
        }
    }

    /// Returns a revocation by the actor at the current time.
    pub(super) fn revocation(&self, relation: Relation, reason: Reason) -> Revocation {
        Revocation { at: self.now, by: self.actor.clone(), authority: relation.authority(), reason }
    }

    /// Returns the revocation for a descendant of a token that the actor reported as compromised.
    ///
    /// A token of another owner, over which the actor has no authority, is only suspected. It stops
    /// working at once, and an admin may restore it.
    pub(super) fn revocation_of_descendant(&self, relation: Relation, token: &Token) -> Revocation {
        if self.owns(token) || self.relation(Operation::Revoke, token).is_ok() {
            return self.revocation(relation, Reason::Compromised);
        }
        Revocation { authority: Authority::Admin, ..self.revocation(relation, Reason::Suspected) }
    }

    /// Returns the audit event for an action of the actor.
    pub(super) fn event(&self, action: AuditAction, token: &Token) -> AuditEvent {
        AuditEvent {
            id: EventId::generate(&self.ids, self.now),
            at: self.now,
            realm: token.realm.clone(),
            action,
            actor: self.actor.clone(),
            token: token.id,
            owner: Some(token.owner.clone()),
            reason: None,
            address: self.address,
        }
    }
}

impl Relation {
    /// Returns the authority with which the actor revokes and restores.
    pub(super) const fn authority(self) -> Authority {
        match self {
            Self::System => Authority::System,
            Self::Itself | Self::Owner => Authority::Owner,
            Self::Admin | Self::Overseer => Authority::Admin,
        }
    }

    /// Returns the reason of a revocation for which none is given.
    pub(super) const fn reason(self) -> Reason {
        match self {
            Self::System => Reason::System,
            Self::Itself | Self::Owner => Reason::Owner,
            Self::Admin | Self::Overseer => Reason::Admin,
        }
    }

    /// Returns whether the actor may revoke for this reason.
    pub(super) fn may_give(self, reason: Reason) -> bool {
        match self {
            Self::System => !matches!(reason, Reason::Rotated | Reason::Reuse | Reason::Suspected),
            Self::Itself | Self::Owner | Self::Admin | Self::Overseer => {
                reason == self.reason() || reason == Reason::Compromised
            }
        }
    }
}

/// Returns whether a token of this owner's id was made for a former holder of the id.
pub(super) fn is_former(owner: &Owner, token: &Token, now: DateTime<Utc>) -> bool {
    owner.id_held_since().is_some_and(|since| token.is_older_than(since, now))
}

/// Errors if no token of this kind may be made for the owner now.
pub(super) fn check_owner(owner: Option<&Owner>, kind: TokenKind) -> Result<(), InvalidInput> {
    match owner {
        None => Err(InvalidInput::OwnerUnknown),
        Some(owner) if owner.kind() != kind.owner_kind() => {
            Err(InvalidInput::OwnerKind(owner.kind()))
        }
        Some(owner) if !owner.is_enabled() => Err(InvalidInput::OwnerDisabled),
        Some(_) => Ok(()),
    }
}
