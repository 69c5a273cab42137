//! Creates and manages tokens, and checks what each actor may do.

use super::TokenService;
use super::actor::{Acting, Actor, Operation, Relation, check_owner, is_former};
use super::commit::{Commit, Tries};
use super::error::{Attenuation, ManageError};
use super::family::removal;
use super::request::{CheckedToken, NewToken, TokenEdit};
use super::system::host_event;
use crate::audit::{AuditAction, AuditEvent};
use crate::lifecycle;
use crate::owner::{Directory, Owner, OwnerId};
use crate::permission::{SERVICE_TOKENS_MANAGE, TOKENS_MANAGE};
use crate::policy::UnknownScopes;
use crate::store::{
    Change, ChangeBatch, CorruptRecord, ListBy, ListQuery, MAX_PAGE, Page, TokenStore,
};
use crate::token::digest::Message;
use crate::token::id::IdSource;
use crate::token::{
    Facts, OwnerAnswer, PlaintextToken, Reason, StoredDigest, Token, TokenId, TokenKind,
    TokenState, TokenView,
};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

/// A new token with its text, which is never available again.
#[derive(Debug)]
#[non_exhaustive]
pub struct IssuedToken {
    /// The view of the token.
    pub token: TokenView,
    /// The text that the owner uses as the credential. Show it once.
    pub plaintext: PlaintextToken,
}

/// One page of a list, newest first.
#[derive(Debug)]
#[non_exhaustive]
pub struct TokenPage {
    /// The tokens.
    pub items: Vec<TokenView>,
    /// The id to pass as `after` for the next page, or `None` on the last page. It grants no
    /// access.
    pub next: Option<TokenId>,
    /// The records of this page that could not be read. Report them to the operator.
    pub corrupt: Vec<CorruptRecord>,
}

/// The number of tokens in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct StateCounts {
    /// Active tokens, without the `ended` ones.
    pub active: u64,
    /// Revoked tokens.
    pub revoked: u64,
    /// Expired tokens.
    pub expired: u64,
    /// Active tokens that the owner's *valid after* has ended ([`TokenView::is_ended`]).
    ///
    /// They are counted only for an owner's own tokens. For the host itself they count as active,
    /// because the service would have to look up every owner in the directory.
    pub ended: u64,
}

impl<S: TokenStore, D: Directory> TokenService<S, D> {
    /// Creates a personal token of the actor or, with [`NewToken::for_service`], a service token.
    ///
    /// The host itself can create only service tokens, such as the first one of an installation.
    ///
    /// If the actor acts through a token, the new token is no wider than that token. Its scope and
    /// its networks must lie within those of that token, and it must not expire later. A token for
    /// another owner must list its scope, not inherit it.
    ///
    /// # Errors
    /// [`ManageError`]: the actor lacks a permission, an input is out of bounds, the name is taken,
    /// the owner has the maximum number of tokens, or the operation failed.
    pub async fn generate(&self, actor: &Actor, new: NewToken) -> Result<IssuedToken, ManageError> {
        let mut former = None;
        let mut tries = Tries::of_change();
        loop {
            tries.start()?;
            let acting = self.acting(actor).await?;
            let kind = match new.service_owner {
                None => TokenKind::Personal,
                Some(_) => TokenKind::Service,
            };
            match kind {
                TokenKind::Personal if acting.is_system() => return Err(ManageError::NotForHost),
                TokenKind::Personal => acting.demand(TOKENS_MANAGE)?,
                TokenKind::Service if acting.is_system() => {}
                TokenKind::Service => acting.demand(SERVICE_TOKENS_MANAGE)?,
            }
            let checked = new.checked()?;
            let owner = match &new.service_owner {
                None => acting.owner.clone(),
                Some(owner) => self.owner(&acting.realm, owner).await?,
            };
            check_owner(owner.as_deref(), kind)?;
            let Some(owner) = owner else {
                return Err(ManageError::NotFound);
            };
            acting.demand_scim(&checked.scope)?;
            if self.policy.unknown_scopes() == UnknownScopes::Refused {
                new.demand_known_scope(&self.catalog, &owner.permissions(&self.catalog))?;
            }

            let (token, plaintext) = self.make(&acting, kind, &owner, checked)?;
            acting.demand_attenuated(&token)?;
            self.demand_room(&acting, &token, &OwnerAnswer::Known(owner.clone())).await?;
            let token = Arc::new(token);
            let batch = displacing(&self.ids, former.take(), &acting)
                .change(Change::Insert(token.clone()))
                .event(acting.event(AuditAction::Generated, &token));
            match self.try_commit(with_creator(batch, &acting, None), token.id).await? {
                Commit::Done => {
                    let token = TokenView::new(&token, Some(owner), acting.now);
                    return Ok(IssuedToken { token, plaintext });
                }
                Commit::Outdated => {}
                Commit::NameTaken => {
                    let owner = OwnerAnswer::Known(owner);
                    former = Some(self.former_of_name(&acting, &token, &owner).await?);
                }
            }
        }
    }

    /// Lists the actor's own personal tokens, newest first.
    ///
    /// Returns a page of up to `limit` tokens (at most [`MAX_PAGE`]) after `after`. For the host
    /// itself, which has no tokens, lists all tokens of the realm.
    ///
    /// If the directory cannot answer for a token's owner, this list and the others still contain
    /// the token ([`TokenView::owner_unavailable`]).
    ///
    /// # Errors
    /// [`ManageError`]: forbidden without `tokens:manage`, or the operation failed.
    pub async fn list(
        &self,
        actor: &Actor,
        after: Option<TokenId>,
        limit: usize,
    ) -> Result<TokenPage, ManageError> {
        let acting = self.acting(actor).await?;
        let Some(owner) = &acting.owner else {
            return self.page_of_realm(&acting, after, limit).await;
        };
        acting.demand(TOKENS_MANAGE)?;
        let by = ListBy::Owner {
            realm: acting.realm.clone(),
            owner: owner.id().clone(),
            kind: Some(TokenKind::Personal),
        };
        if owner.id_held_since().is_some() {
            return self.page_of_own(&acting, by, after, limit).await;
        }
        self.page(&acting, by, after, limit).await
    }

    /// Lists the personal tokens of another owner, if the policy allows any oversight.
    ///
    /// For the host itself, lists all tokens of the owner, of either kind.
    ///
    /// # Errors
    /// [`ManageError`]: forbidden without `tokens:oversee`, forbidden by a policy that hides
    /// tokens, or the operation failed.
    pub async fn list_overseen(
        &self,
        actor: &Actor,
        owner: &OwnerId,
        after: Option<TokenId>,
        limit: usize,
    ) -> Result<TokenPage, ManageError> {
        let acting = self.acting(actor).await?;
        let kind = if acting.is_system() {
            None
        } else {
            acting.demand_oversight()?;
            Some(TokenKind::Personal)
        };
        let by = ListBy::Owner { realm: acting.realm.clone(), owner: owner.clone(), kind };
        self.page(&acting, by, after, limit).await
    }

    /// Lists all service tokens of the realm, newest first.
    ///
    /// Returns a page of up to `limit` tokens (at most [`MAX_PAGE`]) after `after`.
    ///
    /// # Errors
    /// [`ManageError`]: forbidden without `service-tokens:manage`, or the operation failed.
    pub async fn list_service(
        &self,
        actor: &Actor,
        after: Option<TokenId>,
        limit: usize,
    ) -> Result<TokenPage, ManageError> {
        let acting = self.acting(actor).await?;
        if !acting.is_system() {
            acting.demand(SERVICE_TOKENS_MANAGE)?;
        }
        let by = ListBy::Kind { realm: acting.realm.clone(), kind: TokenKind::Service };
        self.page(&acting, by, after, limit).await
    }

    /// Counts the tokens that [`list`](Self::list) lists, by state.
    ///
    /// These are the actor's own personal tokens or, for the host itself, all tokens of the realm.
    /// Records that cannot be read are not counted.
    ///
    /// Reads all of these tokens, page by page.
    ///
    /// # Errors
    /// Same as [`list`](Self::list).
    pub async fn count(&self, actor: &Actor) -> Result<StateCounts, ManageError> {
        let acting = self.acting(actor).await?;
        let lists = match &acting.owner {
            None => [TokenKind::Personal, TokenKind::Service]
                .map(|kind| ListBy::Kind { realm: acting.realm.clone(), kind })
                .to_vec(),
            Some(owner) => {
                acting.demand(TOKENS_MANAGE)?;
                let (realm, owner) = (acting.realm.clone(), owner.id().clone());
                vec![ListBy::Owner { realm, owner, kind: Some(TokenKind::Personal) }]
            }
        };
        let owner = OwnerAnswer::from(acting.owner.clone());
        let mut counts = StateCounts::default();
        for by in lists {
            let mut query = ListQuery::new(by);
            loop {
                let page = self.store.list(&query).await.map_err(super::Unavailable::Store)?;
                for token in page.tokens {
                    if acting.owner.is_some() && !acting.owns(&token) {
                        continue;
                    }
                    let is_ended = owner.has_ended(&token, acting.now);
                    let count = match token.state(acting.now) {
                        TokenState::Active if is_ended => &mut counts.ended,
                        TokenState::Active => &mut counts.active,
                        TokenState::Revoked => &mut counts.revoked,
                        TokenState::Expired => &mut counts.expired,
                    };
                    *count = count.saturating_add(1);
                }
                match page.next {
                    Some(next) => query = query.after(Some(next)),
                    None => break,
                }
            }
        }
        Ok(counts)
    }

    /// Returns one token.
    ///
    /// A token may always get itself.
    ///
    /// # Errors
    /// [`ManageError`]: forbidden, not found, or the operation failed.
    pub async fn get(&self, actor: &Actor, id: TokenId) -> Result<TokenView, ManageError> {
        let acting = self.acting(actor).await?;
        let (token, _) = self.target(&acting, Operation::Get, id).await?;
        self.view(&acting, token).await
    }

    /// Renames a token.
    ///
    /// # Errors
    /// Same as [`edit`](Self::edit).
    pub async fn rename(
        &self,
        actor: &Actor,
        id: TokenId,
        name: &str,
    ) -> Result<TokenView, ManageError> {
        self.edit(actor, id, TokenEdit::new().name(name)).await
    }

    /// Revokes a token.
    ///
    /// The reason must be the actor's own (owner, admin or system) or compromised. The host itself
    /// may give every reason except rotated, reuse and suspected. A token that is already revoked
    /// does not change unless the reason is compromised.
    ///
    /// If the token is compromised, its family is revoked after it. The family is every token that
    /// was made or restored through the token, directly or through other members. A member of
    /// another owner, over which the actor has no authority, is revoked as suspected instead of
    /// compromised, so that an admin may restore it. If the revocation of the family fails half
    /// way, call this again to continue.
    ///
    /// A token may always revoke itself.
    ///
    /// # Errors
    /// Same as [`edit`](Self::edit). Also errors if the token is expired, unless the reason is
    /// compromised.
    pub async fn revoke(
        &self,
        actor: &Actor,
        id: TokenId,
        reason: Reason,
    ) -> Result<TokenView, ManageError> {
        self.change(actor, id, &TokenEdit::new().active(false).reason(reason), true).await
    }

    /// Restores a revoked token.
    ///
    /// # Errors
    /// Same as [`edit`](Self::edit). Also errors if the token is not revoked.
    pub async fn restore(&self, actor: &Actor, id: TokenId) -> Result<TokenView, ManageError> {
        self.change(actor, id, &TokenEdit::new().active(true), true).await
    }

    /// Changes any of a token's name, description and activity in one atomic change.
    ///
    /// A field that already has the requested value changes nothing and is never a reason to
    /// refuse. [`TokenEdit`] says for each field what counts as the same value.
    ///
    /// # Errors
    /// [`ManageError`]: forbidden, not found, refused because of the token's state, the name is
    /// taken, an input is out of bounds, or the operation failed.
    pub async fn edit(
        &self,
        actor: &Actor,
        id: TokenId,
        edit: TokenEdit,
    ) -> Result<TokenView, ManageError> {
        self.change(actor, id, &edit, false).await
    }

    /// Deletes the record of a revoked or expired token.
    ///
    /// The tokens that the deleted token made then count as made by the maker of the deleted token.
    ///
    /// An actor that acts through a token cannot delete a token through which others were made or
    /// restored, a token with a successor, or a token that replaced another one. Otherwise the
    /// descendants of a stolen token could remove its traces.
    ///
    /// # Errors
    /// [`ManageError`]: forbidden, not found, refused because the token is active, or the operation
    /// failed.
    pub async fn delete(&self, actor: &Actor, id: TokenId) -> Result<(), ManageError> {
        let mut tries = Tries::of_change();
        loop {
            tries.start()?;
            let acting = self.acting(actor).await?;
            let (token, _) = self.target(&acting, Operation::Delete, id).await?;
            lifecycle::may_delete(&token.facts, acting.now)?;
            let kin = self.kin(&token).await?.complete()?;
            // A thief could otherwise hide the tokens that came from a stolen one.
            if acting.via.is_some() && (token.facts.succession.is_some() || !kin.is_empty()) {
                return Err(ManageError::Attenuation(Attenuation::Family));
            }
            let event = acting.event(AuditAction::Deleted, &token);
            let gone = HashMap::from([(id, token)]);
            let restorers = self.restorers(&gone).await?;
            let batch = removal(&self.ids, &gone, kin, &restorers, acting.now).event(event);
            if self.try_commit(batch, id).await? == Commit::Done {
                return Ok(());
            }
        }
    }

    /// Changes one token, and retries after a conflict with a concurrent change.
    ///
    /// If `strict`, errors on restoring an active token and on revoking an expired one.
    async fn change(
        &self,
        actor: &Actor,
        id: TokenId,
        edit: &TokenEdit,
        strict: bool,
    ) -> Result<TokenView, ManageError> {
        let mut former = None;
        let mut tries = match edit.active {
            Some(false) => Tries::of_revocation(),
            Some(true) | None => Tries::of_change(),
        };
        loop {
            tries.start()?;
            let acting = self.acting(actor).await?;
            let (token, relation) = self.find_editable(&acting, id, edit).await?;
            let edited = self.edited(&acting, relation, &token, edit, strict).await?;
            let mut shown = token;
            let mut batch = ChangeBatch::new();
            if let Some((after, events)) = edited {
                shown = Arc::new(after);
                batch = displacing(&self.ids, former.take(), &acting)
                    .change(Change::Update(shown.clone()));
                batch.events.extend(events);
            }
            let is_restored =
                batch.events.iter().any(|event| event.action == AuditAction::Restored);
            if is_restored {
                batch = with_creator(batch, &acting, None);
            }
            let commit = if batch.changes.is_empty() {
                Commit::Done
            } else {
                self.try_commit(batch, id).await?
            };
            match commit {
                Commit::Done => {
                    if is_restored {
                        self.reuse.forget();
                    }
                    if edit.active == Some(false)
                        && reason_of(edit, relation) == Reason::Compromised
                    {
                        let revocation =
                            |member: &Token| acting.revocation_of_descendant(relation, member);
                        self.revoke_descendants(&shown, false, revocation, acting.address).await?;
                    }
                    return self.view(&acting, shown).await;
                }
                Commit::Outdated => {}
                Commit::NameTaken => {
                    let owner = self.owner_answer(&acting, &shown.owner).await;
                    former = Some(self.former_of_name(&acting, &shown, &owner).await?);
                }
            }
        }
    }

    /// Returns the token that an edit is for, and the actor's relation to it.
    ///
    /// # Errors
    /// Forbidden, before the token is read. Not found, or the error of an invalid field. A token
    /// that the actor may not see gives the same error as a missing one.
    async fn find_editable(
        &self,
        acting: &Acting,
        id: TokenId,
        edit: &TokenEdit,
    ) -> Result<(Arc<Token>, Relation), ManageError> {
        let operations = operations_of(edit);
        for operation in operations.iter().flatten() {
            acting.demand_any(*operation, id)?;
        }
        if edit.is_empty() {
            return Err(super::InvalidInput::NothingToChange.into());
        }
        let unseen = |error| edit.judged().err().map_or(error, ManageError::from);
        let Some(token) = self.find_current(id).await? else {
            return Err(unseen(ManageError::NotFound));
        };
        let mut relation = None;
        for operation in operations.iter().flatten() {
            relation = Some(acting.relation(*operation, &token).map_err(unseen)?);
        }
        let Some(relation) = relation else {
            return Err(ManageError::NotFound);
        };
        if !edit.is_for_version(token.version) {
            return Err(ManageError::Outdated);
        }
        Ok((token, relation))
    }

    /// Returns the record after an edit and the events of the edit, or `None` if the edit changes
    /// nothing.
    ///
    /// # Errors
    /// A refusal of the token's state, a reason that the actor may not give, or an invalid field.
    async fn edited(
        &self,
        acting: &Acting,
        relation: Relation,
        token: &Token,
        edit: &TokenEdit,
        strict: bool,
    ) -> Result<Option<(Token, Vec<AuditEvent>)>, ManageError> {
        let mut events = Vec::new();
        let mut after = token.clone();
        match edit.active {
            Some(false) => {
                let reason = reason_of(edit, relation);
                let present = token.facts.revocation.as_ref().map(|revocation| revocation.reason);
                if !relation.may_give(reason) && present != Some(reason) {
                    return Err(ManageError::ReasonNotAllowed(reason));
                }
                let is_so = !strict && self.is_not_active(acting, edit, token).await;
                let facts = if is_so {
                    None
                } else {
                    let revocation = acting.revocation(relation, reason);
                    lifecycle::revoke(&token.facts, revocation, acting.now)?
                };
                if let Some(facts) = facts {
                    after.facts = facts;
                    events.push(acting.event(AuditAction::Revoked, token).because(reason));
                }
            }
            Some(true) if strict || token.state(acting.now) != TokenState::Active => {
                after.facts = self.restored(acting, relation, token).await?;
                after.idle_from = acting.now;
                after.restored_by = acting.via.as_ref().map(|via| via.id);
                events.push(acting.event(AuditAction::Restored, token));
            }
            Some(true) | None => {}
        }
        let renamed = edit.new_name(&token.name)?;
        let described = edit.new_description(token.description.as_ref())?;
        if renamed.is_some() || described.is_some() {
            events.push(acting.event(AuditAction::Renamed, token));
        }
        if let Some(name) = renamed {
            after.rename(name);
        }
        after.description = described.unwrap_or(after.description);
        after.version = after.version.saturating_add(1);
        Ok((!events.is_empty()).then_some((after, events)))
    }

    /// Returns whether a token is already shown as not active, so that `active: false` changes
    /// nothing.
    ///
    /// An edit with a reason still changes the token, unless the token is expired. A compromise is
    /// recorded even for an expired token.
    async fn is_not_active(&self, acting: &Acting, edit: &TokenEdit, token: &Token) -> bool {
        match token.state(acting.now) {
            TokenState::Expired => edit.reason != Some(Reason::Compromised),
            TokenState::Active if edit.reason.is_none() => {
                self.owner_answer(acting, &token.owner).await.has_ended(token, acting.now)
            }
            TokenState::Active | TokenState::Revoked => false,
        }
    }

    /// Returns the token named like `token` that belongs to a former holder of the owner's id.
    ///
    /// # Errors
    /// [`ManageError::NameTaken`] if the current holder has the name.
    async fn former_of_name(
        &self,
        acting: &Acting,
        token: &Token,
        owner: &OwnerAnswer,
    ) -> Result<Arc<Token>, ManageError> {
        let OwnerAnswer::Known(owner) = owner else { return Err(ManageError::NameTaken) };
        if owner.id_held_since().is_none() {
            return Err(ManageError::NameTaken);
        }
        let (realm, id) = (token.realm.clone(), token.owner.clone());
        let by = ListBy::Owner { realm, owner: id, kind: Some(token.kind) };
        let listed = self.all(ListQuery::new(by)).await?.tokens.into_iter();
        let mut former =
            listed.filter(|other| is_former(owner, other, acting.now) && other.id != token.id);
        former.find(|other| other.name_key == token.name_key).ok_or(ManageError::NameTaken)
    }

    async fn restored(
        &self,
        acting: &Acting,
        relation: Relation,
        token: &Token,
    ) -> Result<Facts, ManageError> {
        let facts = lifecycle::restore(&token.facts, relation.authority(), acting.now)?;
        acting.demand_scim(&token.scope)?;
        acting.demand_attenuated(token)?;
        if self.policy.live_tokens_per_owner().is_some() {
            self.demand_room(acting, token, &self.owner_answer(acting, &token.owner).await).await?;
        }
        Ok(facts)
    }

    /// Reads the token of an operation.
    ///
    /// Checks the actor's permission before the lookup, so that the answer reveals nothing to an
    /// actor without it.
    pub(super) async fn target(
        &self,
        acting: &Acting,
        operation: Operation,
        id: TokenId,
    ) -> Result<(Arc<Token>, Relation), ManageError> {
        acting.demand_any(operation, id)?;
        let token = self.find_current(id).await?.ok_or(ManageError::NotFound)?;
        let relation = acting.relation(operation, &token)?;
        Ok((token, relation))
    }

    /// Creates a token of this owner, with its text.
    fn make(
        &self,
        acting: &Acting,
        kind: TokenKind,
        owner: &Owner,
        checked: CheckedToken,
    ) -> Result<(Token, PlaintextToken), ManageError> {
        let now = acting.now;
        let through = acting.via.as_ref().map(|via| via.facts.expires_at);
        let expires_at = self
            .policy
            .expiry(checked.lifetime, now, through)
            .map_err(super::InvalidInput::Lifetime)?;
        let (id, digest, plaintext) = self.new_secret(kind, now)?;
        let token = Token {
            id,
            realm: acting.realm.clone(),
            kind,
            owner: owner.id().clone(),
            owner_kind: owner.kind(),
            name_key: Some(checked.name.key()),
            name: checked.name,
            description: checked.description,
            scope: checked.scope,
            networks: checked.networks,
            digest,
            created_at: now,
            created_by: acting.actor.clone(),
            restored_by: None,
            ancestor: None,
            predecessor: None,
            lifetime: checked.lifetime,
            facts: Facts { expires_at, ..Facts::default() },
            idle_from: now,
            reuse_reported_at: None,
            notified_days: None,
            last_used: None,
            seal: None,
            version: 1,
        };
        Ok((token, plaintext))
    }

    /// Generates an id and a secret, and returns the digest to store and the text to show.
    pub(super) fn new_secret(
        &self,
        kind: TokenKind,
        now: chrono::DateTime<chrono::Utc>,
    ) -> Result<(TokenId, StoredDigest, PlaintextToken), ManageError> {
        let key = self.keyring.primary();
        if self.keyring.is_wrong(key) {
            return Err(super::Unavailable::WrongKey(key).into());
        }
        let id = self.ids.generate(now, &*self.random)?;
        let message = Message::generate(kind, id, &*self.random)?;
        let digest = self.keyring.digest(&message);
        Ok((id, StoredDigest::Keyed(digest), self.format.print(kind, id, &message)))
    }

    /// Errors if the owner already has the maximum number of active tokens.
    ///
    /// Tokens of both kinds count, because an owner whose kind the host changed has both. A token
    /// with a successor does not count, nor does a token of a former holder of the id.
    async fn demand_room(
        &self,
        acting: &Acting,
        token: &Token,
        owner: &OwnerAnswer,
    ) -> Result<(), ManageError> {
        let Some(most) = self.policy.live_tokens_per_owner() else {
            return Ok(());
        };
        let by =
            ListBy::Owner { realm: token.realm.clone(), owner: token.owner.clone(), kind: None };
        let live = self.all(ListQuery::new(by).active_at(acting.now)).await?;
        let is_former = |token: &Token| match owner {
            OwnerAnswer::Known(owner) => is_former(owner, token, acting.now),
            OwnerAnswer::Unknown | OwnerAnswer::Unavailable => false,
        };
        let counts = |token: &&Arc<Token>| token.facts.succession.is_none() && !is_former(token);
        let count = live.tokens.iter().filter(counts).count();
        if count < usize::try_from(most).expect("a usize has at least 32 bits") {
            Ok(())
        } else {
            Err(ManageError::TooManyTokens { most })
        }
    }

    async fn page(
        &self,
        acting: &Acting,
        by: ListBy,
        after: Option<TokenId>,
        limit: usize,
    ) -> Result<TokenPage, ManageError> {
        let query = ListQuery::new(by).after(after).limit(limit);
        let page = self.store.list(&query).await.map_err(super::Unavailable::Store)?;
        Ok(self.shown(acting, page).await)
    }

    /// Lists like [`page`](Self::page), but only the tokens that the actor owns.
    ///
    /// Neither the length of the page nor the start of the next one reveals tokens of a former
    /// holder of the actor's id.
    async fn page_of_own(
        &self,
        acting: &Acting,
        by: ListBy,
        after: Option<TokenId>,
        limit: usize,
    ) -> Result<TokenPage, ManageError> {
        let limit = limit.clamp(1, MAX_PAGE);
        let mut own = Page::default();
        let mut query = ListQuery::new(by).after(after).limit(limit);
        loop {
            let page = self.store.list(&query).await.map_err(super::Unavailable::Store)?;
            own.tokens.extend(page.tokens.into_iter().filter(|token| acting.owns(token)));
            own.corrupt.extend(page.corrupt);
            if own.tokens.len() > limit {
                own.tokens.truncate(limit);
                own.next = own.tokens.last().map(|token| token.id);
                break;
            }
            match page.next {
                Some(next) => query = query.after(Some(next)),
                None => break,
            }
        }
        Ok(self.shown(acting, own).await)
    }

    /// Lists all tokens of the realm, merged from the lists of the two kinds.
    async fn page_of_realm(
        &self,
        acting: &Acting,
        after: Option<TokenId>,
        limit: usize,
    ) -> Result<TokenPage, ManageError> {
        let mut merged = Page::default();
        for kind in [TokenKind::Personal, TokenKind::Service] {
            let by = ListBy::Kind { realm: acting.realm.clone(), kind };
            let query = ListQuery::new(by).after(after).limit(limit);
            let page = self.store.list(&query).await.map_err(super::Unavailable::Store)?;
            merged.tokens.extend(page.tokens);
            merged.corrupt.extend(page.corrupt);
            // The page ends at the greater of the two cursors, because below it one list was not
            // read yet.
            merged.next = merged.next.max(page.next);
        }
        merged.tokens.sort_unstable_by_key(|token| Reverse(token.id));
        merged.tokens.retain(|token| merged.next.is_none_or(|next| token.id >= next));
        let limit = limit.clamp(1, MAX_PAGE);
        if merged.tokens.len() > limit {
            merged.tokens.truncate(limit);
            merged.next = merged.tokens.last().map(|token| token.id);
        }
        Ok(self.shown(acting, merged).await)
    }

    /// Adds the owners from the directory to a page, with one lookup for each owner.
    ///
    /// An owner that the directory cannot answer for does not fail the page.
    pub(super) async fn shown(
        &self,
        acting: &Acting,
        Page { tokens, corrupt, next }: Page,
    ) -> TokenPage {
        let mut owners: HashMap<OwnerId, OwnerAnswer> = HashMap::new();
        let mut items = Vec::with_capacity(tokens.len());
        for token in tokens {
            let known = owners.get(&token.owner).cloned();
            let owner = match known {
                Some(owner) => owner,
                None => self.owner_answer(acting, &token.owner).await,
            };
            owners.insert(token.owner.clone(), owner.clone());
            items.push(TokenView::new(&token, owner, acting.now));
        }
        TokenPage { items, next, corrupt }
    }

    pub(super) async fn view(
        &self,
        acting: &Acting,
        token: Arc<Token>,
    ) -> Result<TokenView, ManageError> {
        let owner = self.owner_answer(acting, &token.owner).await;
        Ok(TokenView::new(&token, owner, acting.now))
    }

    /// Looks up a token's owner, without a second lookup if the owner is the actor.
    async fn owner_answer(&self, acting: &Acting, owner: &OwnerId) -> OwnerAnswer {
        match &acting.owner {
            Some(actor) if actor.id() == owner => OwnerAnswer::Known(actor.clone()),
            _ => self
                .owner(&acting.realm, owner)
                .await
                .map_or(OwnerAnswer::Unavailable, OwnerAnswer::from),
        }
    }
}

/// Starts a batch that renames a former holder's token, if there is one, to free its name.
fn displacing(ids: &IdSource, former: Option<Arc<Token>>, acting: &Acting) -> ChangeBatch {
    let Some(former) = former else { return ChangeBatch::new() };
    let renamed = changed(&former, |token| token.rename(token.name.with_id(token.id)));
    ChangeBatch::new().change(Change::Update(renamed)).event(host_event(
        ids,
        AuditAction::Renamed,
        &former,
        acting.now,
    ))
}

/// Returns the reason of a revocation: that of the edit, or else that of the actor's relation.
fn reason_of(edit: &TokenEdit, relation: Relation) -> Reason {
    edit.reason.unwrap_or(relation.reason())
}

/// Returns the operations that an edit performs, for the permission checks.
fn operations_of(edit: &TokenEdit) -> [Option<Operation>; 2] {
    let active = match edit.active {
        Some(true) => Some(Operation::Restore),
        Some(false) => Some(Operation::Revoke),
        None => None,
    };
    let renames = edit.renames() || active.is_none();
    [renames.then_some(Operation::Rename), active]
}

/// Returns the changed record with the next version.
pub(super) fn changed(token: &Token, change: impl FnOnce(&mut Token)) -> Arc<Token> {
    let mut after = token.clone();
    change(&mut after);
    after.version = token.version.saturating_add(1);
    Arc::new(after)
}

/// Increments the version of the token through which the actor makes or restores a token.
///
/// A concurrent revocation of the family then conflicts with the new member instead of missing it.
/// `changed_already` is the token whose record the batch changes anyway.
pub(super) fn with_creator(
    batch: ChangeBatch,
    acting: &Acting,
    changed_already: Option<TokenId>,
) -> ChangeBatch {
    match &acting.via {
        Some(via) if changed_already != Some(via.id) => {
            batch.change(Change::Update(changed(via, |_| {})))
        }
        _ => batch,
    }
}
