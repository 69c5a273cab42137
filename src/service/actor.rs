//! Who performs an operation, and what they may do to which token.

use super::error::{Attenuation, ManageError, PolicyRule, RejectReason, Rejected, Unavailable};
use super::permissions::{SERVICE_TOKENS_MANAGE, TOKENS_MANAGE, TOKENS_OVERSEE, TOKENS_SCIM};
use super::verified::Verified;
use super::{InvalidInput, TokenService};
use crate::audit::{AuditAction, AuditEvent, EventId};
use crate::owner::{Directory, Owner, OwnerId, Realm};
use crate::permission::{Grant, PermissionSet, Scope};
use crate::policy::{Oversight, TokenManagement};
use crate::store::TokenStore;
use crate::token::id::IdSource;
use crate::token::{ActorRef, Authority, Reason, Revocation, Token, TokenId, TokenKind, TokenState};
use chrono::{DateTime, Utc};
use std::net::IpAddr;
use std::sync::Arc;

/// Who performs a management operation. What they may do is looked up anew in each operation.
#[derive(Debug, Clone)]
pub struct Actor {
    who: Who,
    address: Option<IpAddr>,
    is_proven_by_header: bool,
}

/// What an actor proved itself with. Limits are counted for each of these.
#[cfg(feature = "axum")]
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
    /// An owner that the host has signed in, in the default realm.
    pub fn session(owner: OwnerId) -> Self {
        Self::session_in(Realm::default(), owner)
    }

    /// An owner that the host has signed in, in this realm.
    pub fn session_in(realm: Realm, owner: OwnerId) -> Self {
        Self { who: Who::Session { realm, owner }, address: None, is_proven_by_header: false }
    }

    /// An owner through one of its tokens.
    pub fn token(verified: &Verified) -> Self {
        let token = verified.token();
        let who =
            Who::Token { realm: token.realm().clone(), owner: token.owner_id().clone(), id: token.id() };
        Self { who, address: verified.peer(), is_proven_by_header: false }
    }

    /// The host itself, in the default realm. It may list, count, get, revoke and restore every token of the realm, and generate
    /// service tokens. It has no token of its own.
    pub fn system() -> Self {
        Self::system_in(Realm::default())
    }

    /// The host itself, in this realm.
    pub fn system_in(realm: Realm) -> Self {
        Self { who: Who::System { realm }, address: None, is_proven_by_header: false }
    }

    /// Declares that the host knows this session by a header that no browser sends by itself, such as a JWT in `Authorization`. A
    /// page of another site cannot forge such a request, so the HTTP API does not ask where it comes from.
    ///
    /// Do not declare it for a session that is known by a cookie, a client certificate or HTTP Basic.
    pub fn proven_by_header(mut self) -> Self {
        self.is_proven_by_header = true;
        self
    }

    #[cfg(feature = "axum")]
    pub(crate) fn is_proven_by_header(&self) -> bool {
        self.is_proven_by_header
    }

    /// Realm and owner that the actor acts for; no owner for the host itself.
    #[cfg(feature = "axum")]
    pub(crate) fn counts_as(&self) -> (&Realm, Option<&OwnerId>) {
        match &self.who {
            Who::Session { realm, owner } | Who::Token { realm, owner, .. } => (realm, Some(owner)),
            Who::System { realm } => (realm, None),
        }
    }

    #[cfg(feature = "axum")]
    pub(crate) fn credential(&self) -> ActorCredential {
        match &self.who {
            Who::Session { realm, owner } => {
                ActorCredential::Session { realm: realm.clone(), owner: owner.clone() }
            }
            Who::Token { id, .. } => ActorCredential::Token(*id),
            Who::System { realm } => ActorCredential::System { realm: realm.clone() },
        }
    }

    /// Sets the address that the request came from, for the audit. An IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2)
    /// counts as the IPv4 address in it.
    pub fn from_address(mut self, address: IpAddr) -> Self {
        self.address = Some(address.to_canonical());
        self
    }
}

/// Who an actor is and what it may do, at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Standing {
    /// The owner; none for the host itself.
    pub owner: Option<Arc<Owner>>,
    /// All that the actor may do; through a token, what its scope lets through.
    pub permissions: PermissionSet,
    /// Whether it may manage its own personal tokens.
    pub manages_tokens: bool,
    /// Whether it may manage the service tokens of the realm.
    pub manages_service_tokens: bool,
    /// Whether it may put permissions under `scim:` into a scope.
    pub grants_scim: bool,
}

/// An actor after it was looked up.
pub(super) struct Acting {
    pub(super) realm: Realm,
    pub(super) actor: ActorRef,
    pub(super) address: Option<IpAddr>,
    pub(super) now: DateTime<Utc>,
    /// The owner, unless it is the host itself.
    pub(super) owner: Option<Arc<Owner>>,
    /// The token that it acts through.
    pub(super) via: Option<Arc<Token>>,
    permissions: PermissionSet,
    management: TokenManagement,
    oversight: Oversight,
    ids: Arc<IdSource>,
}

/// What an actor is to a token that it may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    /// The host itself.
    System,
    /// The token itself, without the permission to manage tokens.
    Itself,
    /// Its owner, or the token itself with the permission.
    Owner,
    /// An actor that manages service tokens.
    Admin,
    /// One that oversees personal tokens.
    Overseer,
}

/// What is done to one token; each has its own rule of who may.
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
    /// Looks the actor up: its owner as it is now and, through a token, that token.
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

    /// Who the actor is and what it may do now: for a page that shows no more than that.
    ///
    /// # Errors
    /// [`ManageError`]: the actor is rejected, or it could not be found out.
    pub async fn standing(&self, actor: &Actor) -> Result<Standing, ManageError> {
        let acting = self.acting(actor).await?;
        let scope = acting.via.as_ref().and_then(|via| via.scope.as_set());
        let permissions =
            scope.map_or_else(|| acting.permissions.clone(), |scope| acting.permissions.intersection(scope));
        Ok(Standing {
            manages_tokens: acting.may(TOKENS_MANAGE),
            manages_service_tokens: acting.may(SERVICE_TOKENS_MANAGE),
            grants_scim: acting.may(TOKENS_SCIM),
            owner: acting.owner,
            permissions,
        })
    }

    pub(super) async fn find_current(&self, id: TokenId) -> Result<Option<Arc<Token>>, Unavailable> {
        self.store.find_current(id).await.map_err(Unavailable::Store)
    }
}

impl Acting {
    /// Whether the actor holds a permission of this crate; through a token, whether that token may use it.
    pub(super) fn may(&self, permission: &str) -> bool {
        self.holds(permission) && self.policy_lets(permission)
    }

    /// Whether the owner has the permission and, through a token, the token's scope covers it.
    fn holds(&self, permission: &str) -> bool {
        let in_scope = |via: &Arc<Token>| via.scope.allows_str(permission).unwrap_or(false);
        self.permissions.allows_str(permission).unwrap_or(false) && self.via.as_ref().is_none_or(in_scope)
    }

    /// Whether the policy lets the actor use a permission of this crate that it holds.
    fn policy_lets(&self, permission: &str) -> bool {
        let Some(via) = &self.via else { return true };
        match self.management {
            TokenManagement::Attenuated => true,
            TokenManagement::Named => {
                let grant = Grant::parse(permission).ok();
                via.scope.as_set().zip(grant).is_some_and(|(scope, grant)| scope.names(&grant))
            }
            TokenManagement::Forbidden => false,
        }
    }

    /// # Errors
    /// Forbidden without the permission; forbidden by the policy if the policy alone keeps the actor from using it.
    pub(super) fn demand(&self, permission: &'static str) -> Result<(), ManageError> {
        if self.may(permission) { Ok(()) } else { Err(self.lacks(permission)) }
    }

    /// Why the actor may not use a permission.
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

    /// Before the token is read: whether there is any token that the actor could do this to.
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

    /// # Errors
    /// Forbidden without `tokens:oversee`; forbidden by the policy where tokens are hidden.
    pub(super) fn demand_oversight(&self) -> Result<(), ManageError> {
        self.demand(TOKENS_OVERSEE)?;
        match self.oversight {
            Oversight::Hidden => Err(ManageError::ForbiddenByPolicy(PolicyRule::OversightHidden)),
            Oversight::RevokeOnly => Ok(()),
        }
    }

    /// What the actor is to a token, and whether it may do this to it.
    ///
    /// # Errors
    /// Not found for what the actor may not see, forbidden for what it may see and not do.
    pub(super) fn relation(&self, operation: Operation, token: &Token) -> Result<Relation, ManageError> {
        let relation = self.sees(token).ok_or(ManageError::NotFound)?;
        match (relation, operation) {
            (Relation::Owner | Relation::Admin, _)
            | (Relation::System, Operation::Get | Operation::Revoke | Operation::Restore)
            | (Relation::Itself, Operation::Get | Operation::Revoke)
            | (Relation::Overseer, Operation::Revoke) => Ok(relation),
            (Relation::Itself, Operation::Rotate) if self.management != TokenManagement::Forbidden => {
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
            (Relation::Overseer, _) => Err(ManageError::ForbiddenByPolicy(PolicyRule::OversightRevokeOnly)),
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
            TokenKind::Personal if self.owns(token) && self.may(TOKENS_MANAGE) => Some(Relation::Owner),
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

    /// Whether the actor owns a token. Tokens of a former bearer of its id are somebody else's.
    pub(super) fn owns(&self, token: &Token) -> bool {
        let owner = self.owner.as_ref().filter(|owner| *owner.id() == token.owner);
        owner.is_some_and(|owner| !is_former(owner, token, self.now))
    }

    pub(super) fn oversees(&self) -> bool {
        self.oversight == Oversight::RevokeOnly && self.may(TOKENS_OVERSEE)
    }

    /// Whether what is made or restored may have this scope.
    ///
    /// # Errors
    /// Forbidden for a scope under `scim:` without the permission for it.
    pub(super) fn demand_scim(&self, scope: &Scope) -> Result<(), ManageError> {
        if scope.covers_scim() && !self.is_system() { self.demand(TOKENS_SCIM) } else { Ok(()) }
    }

    /// Whether what is made or restored through a token is no wider than that token.
    ///
    /// # Errors
    /// What is wider.
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

    /// That the actor revokes, now.
    pub(super) fn revocation(&self, relation: Relation, reason: Reason) -> Revocation {
        Revocation { at: self.now, by: self.actor.clone(), authority: relation.authority(), reason }
    }

    /// How a descendant of a token is revoked that the actor reported as compromised. A token of another owner, over which the
    /// actor has no authority, is only suspected: it stops working at once, and an admin may restore it.
    pub(super) fn revocation_of_descendant(&self, relation: Relation, token: &Token) -> Revocation {
        if self.owns(token) || self.relation(Operation::Revoke, token).is_ok() {
            return self.revocation(relation, Reason::Compromised);
        }
        Revocation { authority: Authority::Admin, ..self.revocation(relation, Reason::Suspected) }
    }

    /// The event that tells of what the actor did.
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
    /// With what weight the actor revokes and restores.
    pub(super) const fn authority(self) -> Authority {
        match self {
            Self::System => Authority::System,
            Self::Itself | Self::Owner => Authority::Owner,
            Self::Admin | Self::Overseer => Authority::Admin,
        }
    }

    /// The reason that a revocation gets when none is given.
    pub(super) const fn reason(self) -> Reason {
        match self {
            Self::System => Reason::System,
            Self::Itself | Self::Owner => Reason::Owner,
            Self::Admin | Self::Overseer => Reason::Admin,
        }
    }

    /// Whether a revocation by this actor may have this reason.
    pub(super) fn may_give(self, reason: Reason) -> bool {
        match self {
            Self::System => !matches!(reason, Reason::Rotated | Reason::Reuse | Reason::Suspected),
            Self::Itself | Self::Owner | Self::Admin | Self::Overseer => {
                reason == self.reason() || reason == Reason::Compromised
            }
        }
    }
}

/// Whether a token of this owner's id was made for somebody who held the id before.
pub(super) fn is_former(owner: &Owner, token: &Token, now: DateTime<Utc>) -> bool {
    owner.id_held_since().is_some_and(|since| token.is_older_than(since, now))
}

/// Whether an owner may have tokens of this kind made now.
pub(super) fn check_owner(owner: Option<&Owner>, kind: TokenKind) -> Result<(), InvalidInput> {
    match owner {
        None => Err(InvalidInput::OwnerUnknown),
        Some(owner) if owner.kind() != kind.owner_kind() => Err(InvalidInput::OwnerKind(owner.kind())),
        Some(owner) if !owner.is_enabled() => Err(InvalidInput::OwnerDisabled),
        Some(_) => Ok(()),
    }
}
