//! Making and managing tokens, by the table of who may do what.

use super::actor::{Acting, Actor, Operation, Relation, check_owner, is_former};
use super::error::{Attenuation, ManageError, store_error};
use super::family::removal;
use super::permissions::{SERVICE_TOKENS_MANAGE, TOKENS_MANAGE};
use super::request::{CheckedToken, NewToken, TokenEdit};
use super::system::host_event;
use super::{MAX_REVOKE_TRIES, MAX_TRIES, TokenService};
use crate::audit::AuditAction;
use crate::lifecycle;
use crate::owner::{Directory, Owner, OwnerId};
use crate::policy::UnknownScopes;
use crate::store::{
    Change, ChangeBatch, Conflict, CorruptRecord, ListBy, ListQuery, MAX_PAGE, Page, StoreError, TokenStore,
};
use crate::token::digest::Message;
use crate::token::id::IdSource;
use crate::token::{
    Credential, Facts, OwnerAnswer, PlaintextToken, Reason, Token, TokenId, TokenKind, TokenState, TokenView,
};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

/// A token just made, with its text: the only time that it is there.
#[derive(Debug)]
#[non_exhaustive]
pub struct IssuedToken {
    /// What is shown of it.
    pub token: TokenView,
    /// What its owner puts into a script. Show it once.
    pub plaintext: PlaintextToken,
}

/// One page of a list, newest first.
#[derive(Debug)]
#[non_exhaustive]
pub struct TokenPage {
    /// The tokens.
    pub items: Vec<TokenView>,
    /// Where the next page begins; none on the last one. It is an id, and it gives nobody access to anything.
    pub next: Option<TokenId>,
    /// Records of this page that could not be read; report them.
    pub corrupt: Vec<CorruptRecord>,
}

/// How many tokens are in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct StateCounts {
    /// Active ones.
    pub active: u64,
    /// Revoked ones.
    pub revoked: u64,
    /// Expired ones.
    pub expired: u64,
    /// Active ones that the owner's *valid after* has ended ([`TokenView::is_ended`]); they are not among the active ones here. Of
    /// an owner's own tokens alone: for the host, which would have to ask the directory for every owner, they count as active.
    pub ended: u64,
}

impl<S: TokenStore, D: Directory> TokenService<S, D> {
    /// Makes a token: a personal one of the actor or, with [`NewToken::for_service`], a service token. The host itself makes
    /// service tokens alone, such as the first one of an installation.
    ///
    /// Through a token, what is made is no wider than that token: its scope and its networks lie within that token's, its
    /// expiry is not later, and for another owner it has a scope of its own.
    ///
    /// # Errors
    /// [`ManageError`]: what the actor lacks, what is out of bounds, that the name is taken, that the owner has as many tokens
    /// as it may, or that it could not be done.
    pub async fn generate(&self, actor: &Actor, new: NewToken) -> Result<IssuedToken, ManageError> {
        let mut former = None;
        for _ in 0..MAX_TRIES {
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
            match self.commit(with_creator(batch, &acting, None)).await {
                Ok(()) => {
                    let token = TokenView::new(&token, Some(owner), acting.now);
                    return Ok(IssuedToken { token, plaintext });
                }
                Err(StoreError::Conflict(Conflict::Id(_) | Conflict::Version(_))) => {}
                Err(StoreError::Conflict(Conflict::Name(_))) => {
                    let owner = OwnerAnswer::Known(owner);
                    former = Some(self.former_of_name(&acting, &token, &owner).await?);
                }
                Err(error) => return Err(store_error(error, token.id)),
            }
        }
        Err(ManageError::Contended)
    }

    /// The actor's own personal tokens, newest first: a page of up to `limit` (at most [`MAX_PAGE`]) after `after`. For the host
    /// itself, which has none, all tokens of the realm.
    ///
    /// A token whose owner the directory cannot answer for is listed all the same ([`TokenView::owner_unavailable`]), here and
    /// in the other lists.
    ///
    /// # Errors
    /// [`ManageError`]: forbidden without `tokens:manage`, or it could not be done.
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

    /// The personal tokens of another owner, for an overseer where the policy allows any oversight. For the host itself, all tokens
    /// of an owner, of either kind.
    ///
    /// # Errors
    /// [`ManageError`]: forbidden without `tokens:oversee`, forbidden by the policy where tokens are hidden, or it could not be
    /// done.
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

    /// All service tokens of the realm, newest first: a page of up to `limit` (at most [`MAX_PAGE`]) after `after`.
    ///
    /// # Errors
    /// [`ManageError`]: forbidden without `service-tokens:manage`, or it could not be done.
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

    /// How many tokens are in each state, of those that [`list`](Self::list) gives: the actor's own personal ones; for the host
    /// itself, all of the realm. Records that could not be read are not counted.
    ///
    /// It reads all of them, page by page.
    ///
    /// # Errors
    /// As [`list`](Self::list).
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

    /// One token. A token may always look at itself.
    ///
    /// # Errors
    /// [`ManageError`]: forbidden, not found, or it could not be done.
    pub async fn get(&self, actor: &Actor, id: TokenId) -> Result<TokenView, ManageError> {
        let acting = self.acting(actor).await?;
        let (token, _) = self.target(&acting, Operation::Get, id).await?;
        self.view(&acting, token).await
    }

    /// Renames a token.
    ///
    /// # Errors
    /// As [`edit`](Self::edit).
    pub async fn rename(&self, actor: &Actor, id: TokenId, name: &str) -> Result<TokenView, ManageError> {
        self.edit(actor, id, TokenEdit::new().name(name)).await
    }

    /// Revokes a token: for the actor's own reason (owner, admin or system), or because it is compromised; the host itself may
    /// give all reasons but rotated, reuse and suspected. A token that is revoked already stays as it is, unless it turns out to be
    /// compromised. With a compromised token its family is revoked, after it: all tokens that were made or restored through it,
    /// and through them. Members of another owner, over which the actor has no authority, are revoked as suspected instead of
    /// compromised, so that an admin may restore them. If it fails half way, calling it again goes on.
    ///
    /// A token may always revoke itself.
    ///
    /// # Errors
    /// As [`edit`](Self::edit); an expired token is refused too, unless the reason is compromised.
    pub async fn revoke(&self, actor: &Actor, id: TokenId, reason: Reason) -> Result<TokenView, ManageError> {
        self.change(actor, id, &TokenEdit::new().active(false).reason(reason), true).await
    }

    /// Restores a revoked token.
    ///
    /// # Errors
    /// As [`edit`](Self::edit); a token that is not revoked is refused, too.
    pub async fn restore(&self, actor: &Actor, id: TokenId) -> Result<TokenView, ManageError> {
        self.change(actor, id, &TokenEdit::new().active(true), true).await
    }

    /// Changes any of a token's name, description and activity as one atomic change. A field that already has the value asked for
    /// changes nothing and is never a reason to refuse; [`TokenEdit`] says what that is for each field.
    ///
    /// # Errors
    /// [`ManageError`]: forbidden, not found, refused by the token's state, the name is taken, an input is out of bounds, or it
    /// could not be done.
    pub async fn edit(&self, actor: &Actor, id: TokenId, edit: TokenEdit) -> Result<TokenView, ManageError> {
        self.change(actor, id, &edit, false).await
    }

    /// Deletes the record of a token that is revoked or expired. The tokens that it made count as made by its own maker from
    /// then on.
    ///
    /// Through a token, this refuses to delete a token that others came of, by being made or restored through it or by rotation,
    /// or that took another token's place, so that what came of a stolen token cannot remove its traces.
    ///
    /// # Errors
    /// [`ManageError`]: forbidden, not found, refused while it is active, or it could not be done.
    pub async fn delete(&self, actor: &Actor, id: TokenId) -> Result<(), ManageError> {
        for _ in 0..MAX_TRIES {
            let acting = self.acting(actor).await?;
            let (token, _) = self.target(&acting, Operation::Delete, id).await?;
            lifecycle::may_delete(&token.facts, acting.now)?;
            let kin = self.kin(&token).await?.complete()?;
            // A thief would hide by it what came of the token that he stole.
            if acting.via.is_some() && (token.facts.succession.is_some() || !kin.is_empty()) {
                return Err(ManageError::Attenuation(Attenuation::Family));
            }
            let event = acting.event(AuditAction::Deleted, &token);
            let gone = HashMap::from([(id, token)]);
            let restorers = self.restorers(&gone).await?;
            let batch = removal(&self.ids, &gone, kin, &restorers, acting.now).event(event);
            match self.commit(batch).await {
                Err(StoreError::Conflict(Conflict::Version(_))) => {}
                result => return result.map_err(|error| store_error(error, id)),
            }
        }
        Err(ManageError::Contended)
    }

    /// One change of one token, tried again until no other one comes between. `strict`: restoring an active token and revoking an
    /// expired one are refused.
    async fn change(
        &self,
        actor: &Actor,
        id: TokenId,
        edit: &TokenEdit,
        strict: bool,
    ) -> Result<TokenView, ManageError> {
        let tries = if edit.active == Some(false) { MAX_REVOKE_TRIES } else { MAX_TRIES };
        let mut former = None;
        for _ in 0..tries {
            let acting = self.acting(actor).await?;
            let operations = operations_of(edit);
            for operation in operations.iter().flatten() {
                acting.demand_any(*operation, id)?;
            }
            if edit.is_empty() {
                return Err(super::InvalidInput::NothingToChange.into());
            }
            // Fields out of bounds are named for a token that the actor may not see as for one that is not there.
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

            let mut events = Vec::new();
            let mut after = Token::clone(&token);
            let (mut compromised, mut restores) = (false, false);
            match edit.active {
                Some(false) => {
                    let reason = edit.reason.unwrap_or(relation.reason());
                    let present = token.facts.revocation.as_ref().map(|revocation| revocation.reason);
                    if !relation.may_give(reason) && present != Some(reason) {
                        return Err(ManageError::ReasonNotAllowed(reason));
                    }
                    compromised = reason == Reason::Compromised;
                    let is_so = !strict && self.is_not_active(&acting, edit, &token).await;
                    let revocation = acting.revocation(relation, reason);
                    let facts =
                        if is_so { None } else { lifecycle::revoke(&token.facts, revocation, acting.now)? };
                    if let Some(facts) = facts {
                        after.facts = facts;
                        events.push(acting.event(AuditAction::Revoked, &token).because(reason));
                    }
                }
                Some(true) if strict || token.state(acting.now) != TokenState::Active => {
                    after.facts = self.restored(&acting, relation, &token).await?;
                    after.idle_from = acting.now;
                    after.restored_by = acting.via.as_ref().map(|via| via.id);
                    restores = true;
                    events.push(acting.event(AuditAction::Restored, &token));
                }
                Some(true) | None => {}
            }
            let renamed = edit.new_name(&token.name)?;
            let described = edit.new_description(token.description.as_ref())?;
            if renamed.is_some() || described.is_some() {
                events.push(acting.event(AuditAction::Renamed, &token));
            }
            if let Some(name) = renamed {
                after.rename(name);
            }
            after.description = described.unwrap_or(after.description);

            let mut batch = ChangeBatch::new();
            let displaced: Option<Arc<Token>> = former.take();
            let mut shown = token.clone();
            if !events.is_empty() {
                after.version = after.version.saturating_add(1);
                shown = Arc::new(after);
                batch = displacing(&self.ids, displaced, &acting).change(Change::Update(shown.clone()));
            }
            batch.events.extend(events);
            if restores {
                batch = with_creator(batch, &acting, None);
            }
            let committed = if batch.changes.is_empty() { Ok(()) } else { self.commit(batch).await };
            match committed {
                Ok(()) => {
                    if restores {
                        self.reuse.forget();
                    }
                    if compromised {
                        let revocation = |member: &Token| acting.revocation_of_descendant(relation, member);
                        self.revoke_descendants(&shown, false, revocation, acting.address).await?;
                    }
                    return self.view(&acting, shown).await;
                }
                Err(StoreError::Conflict(Conflict::Version(_))) => {}
                Err(StoreError::Conflict(Conflict::Name(_))) => {
                    let owner = self.owner_answer(&acting, &shown.owner).await;
                    former = Some(self.former_of_name(&acting, &shown, &owner).await?);
                }
                Err(error) => return Err(store_error(error, id)),
            }
        }
        Err(ManageError::Contended)
    }

    /// Whether a token is shown as not active already, so that `active: false` asks for no change. An edit with a reason asks for
    /// one all the same, unless the token is expired; a compromise is recorded even then.
    async fn is_not_active(&self, acting: &Acting, edit: &TokenEdit, token: &Token) -> bool {
        match token.state(acting.now) {
            TokenState::Expired => edit.reason != Some(Reason::Compromised),
            TokenState::Active if edit.reason.is_none() => {
                self.owner_answer(acting, &token.owner).await.has_ended(token, acting.now)
            }
            TokenState::Active | TokenState::Revoked => false,
        }
    }

    /// The token of a former bearer of the owner's id that has the name of `token`.
    ///
    /// # Errors
    /// The name is taken if the present bearer has it.
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
        let mut former = listed.filter(|other| is_former(owner, other, acting.now) && other.id != token.id);
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

    /// Reads the token that an operation is about, after the actor's permission was checked and before it is told anything.
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

    /// A new token of this owner and its text.
    fn make(
        &self,
        acting: &Acting,
        kind: TokenKind,
        owner: &Owner,
        checked: CheckedToken,
    ) -> Result<(Token, PlaintextToken), ManageError> {
        let now = acting.now;
        let through = acting.via.as_ref().map(|via| via.facts.expires_at);
        let expires_at =
            self.policy.expiry(checked.lifetime, now, through).map_err(super::InvalidInput::Lifetime)?;
        let (id, credential, plaintext) = self.new_secret(kind, now)?;
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
            credential,
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

    /// A new id with its secret: the digest to keep and the text to show.
    pub(super) fn new_secret(
        &self,
        kind: TokenKind,
        now: chrono::DateTime<chrono::Utc>,
    ) -> Result<(TokenId, Credential, PlaintextToken), ManageError> {
        let key = self.keyring.primary();
        if self.keyring.is_wrong(key) {
            return Err(super::Unavailable::WrongKey(key).into());
        }
        let id = self.ids.generate(now, &*self.random)?;
        let message = Message::generate(kind, id, &*self.random)?;
        let digest = self.keyring.digest(&message);
        Ok((id, Credential::Keyed(digest), self.format.print(kind, id, &message)))
    }

    /// Whether the owner may have one more active token. Tokens of both kinds count, since an owner whose kind the host changed
    /// has both; a token with a successor does not, nor does one of a former bearer of the id.
    async fn demand_room(
        &self,
        acting: &Acting,
        token: &Token,
        owner: &OwnerAnswer,
    ) -> Result<(), ManageError> {
        let Some(most) = self.policy.live_tokens_per_owner() else {
            return Ok(());
        };
        let by = ListBy::Owner { realm: token.realm.clone(), owner: token.owner.clone(), kind: None };
        let live = self.all(ListQuery::new(by).active_at(acting.now)).await?;
        let is_former = |token: &Token| match owner {
            OwnerAnswer::Known(owner) => is_former(owner, token, acting.now),
            OwnerAnswer::Unknown | OwnerAnswer::Unavailable => false,
        };
        let counts = |token: &&Arc<Token>| token.facts.succession.is_none() && !is_former(token);
        let count = live.tokens.iter().filter(counts).count();
        if u32::try_from(count).unwrap_or(u32::MAX) < most {
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

    /// As [`page`](Self::page), of the tokens that the actor owns alone. Neither the length of the page nor where the next one begins
    /// tells of tokens of a former bearer of the actor's id.
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

    /// All tokens of the realm: the lists of the two kinds in one order.
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
            // Below the greater of the two, one list has not been read yet.
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

    /// A page with what the directory says of the owners, asked once for each. One that it cannot answer for does not fail the
    /// page.
    pub(super) async fn shown(&self, acting: &Acting, Page { tokens, corrupt, next }: Page) -> TokenPage {
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

    pub(super) async fn view(&self, acting: &Acting, token: Arc<Token>) -> Result<TokenView, ManageError> {
        let owner = self.owner_answer(acting, &token.owner).await;
        Ok(TokenView::new(&token, owner, acting.now))
    }

    /// What the directory says of a token's owner. The actor was looked up already.
    async fn owner_answer(&self, acting: &Acting, owner: &OwnerId) -> OwnerAnswer {
        match &acting.owner {
            Some(actor) if actor.id() == owner => OwnerAnswer::Known(actor.clone()),
            _ => self.owner(&acting.realm, owner).await.map_or(OwnerAnswer::Unavailable, OwnerAnswer::from),
        }
    }
}

/// A batch that frees the name of a former bearer's token, if there is one, for another token to take.
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

/// What an edit does to the token, for the rules of who may.
fn operations_of(edit: &TokenEdit) -> [Option<Operation>; 2] {
    let active = match edit.active {
        Some(true) => Some(Operation::Restore),
        Some(false) => Some(Operation::Revoke),
        None => None,
    };
    let renames = edit.renames() || active.is_none();
    [renames.then_some(Operation::Rename), active]
}

/// The record after a change, with its next version.
pub(super) fn changed(token: &Token, change: impl FnOnce(&mut Token)) -> Arc<Token> {
    let mut after = token.clone();
    change(&mut after);
    after.version = token.version.saturating_add(1);
    Arc::new(after)
}

/// Making or restoring a token through another one moves the version of the latter, so that a revocation of its family and a
/// new member of it never pass each other by. `changed_already`: the token whose record the batch changes anyway.
pub(super) fn with_creator(
    batch: ChangeBatch,
    acting: &Acting,
    changed_already: Option<TokenId>,
) -> ChangeBatch {
    match &acting.via {
        Some(via) if changed_already != Some(via.id) => batch.change(Change::Update(changed(via, |_| {}))),
        _ => batch,
    }
}
