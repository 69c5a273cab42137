//! The requests to create and to edit a token.

use super::error::InvalidInput;
use crate::owner::OwnerId;
use crate::permission::{Grant, PermissionSet, Scope, ScopeError, UnknownEntry};
use crate::policy::LifetimeError;
use crate::role::RoleCatalog;
use crate::token::{Description, Lifetime, Networks, Reason, TokenName};

/// A request to create a token.
///
/// If a field is out of bounds, [`TokenService::generate`](super::TokenService::generate) errors
/// and names the field.
///
/// ```
/// # use patkit::service::NewToken;
/// let nightly = NewToken::named("nightly").expires_in_days(30).scope(["datastores:read"]).networks(["10.0.0.0/8"]);
/// ```
#[derive(Debug, Clone)]
pub struct NewToken {
    name: String,
    description: Option<String>,
    lifetime: Result<Lifetime, LifetimeError>,
    scope: Option<Vec<String>>,
    networks: Option<Vec<String>>,
    pub(super) service_owner: Option<OwnerId>,
}

/// The maximum number of unknown scope entries of a request for which a suggestion is looked up,
/// because each costs a pass over the catalogue.
const MAX_GUESSES: usize = 4;

/// A request whose fields are within their bounds.
pub(super) struct CheckedToken {
    pub(super) name: TokenName,
    pub(super) description: Option<Description>,
    pub(super) lifetime: Lifetime,
    pub(super) scope: Scope,
    pub(super) networks: Option<Networks>,
}

impl NewToken {
    /// Creates a request for a personal token of the actor with this name.
    ///
    /// Defaults to the default lifetime, all permissions of its owner, and any address.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            description: None,
            lifetime: Ok(Lifetime::Default),
            scope: None,
            networks: None,
            service_owner: None,
        }
    }

    /// Sets the description.
    pub fn description(mut self, description: &str) -> Self {
        self.description = Some(description.into());
        self
    }

    /// Sets the lifetime in whole days.
    pub fn expires_in_days(mut self, days: i64) -> Self {
        self.lifetime = Lifetime::days(days);
        self
    }

    /// Sets the lifetime in seconds. Must be 60 or more.
    pub fn expires_in_seconds(mut self, seconds: i64) -> Self {
        self.lifetime = Lifetime::seconds(seconds);
        self
    }

    /// Sets an unlimited lifetime.
    pub fn never_expires(mut self) -> Self {
        self.lifetime = Ok(Lifetime::Never);
        self
    }

    /// Limits the token to these grants. An empty list allows nothing.
    pub fn scope<T: Into<String>>(mut self, grants: impl IntoIterator<Item = T>) -> Self {
        self.scope = Some(grants.into_iter().map(Into::into).collect());
        self
    }

    /// Limits the token to the permissions under `scim:`.
    pub fn scim_only(self) -> Self {
        self.scope(["scim:*"])
    }

    /// Limits the use of the token to these networks, such as `10.0.0.0/8`. Must not be empty.
    pub fn networks<T: Into<String>>(mut self, networks: impl IntoIterator<Item = T>) -> Self {
        self.networks = Some(networks.into_iter().map(Into::into).collect());
        self
    }

    /// Requests a service token of this service user instead of a personal token of the actor.
    pub fn for_service(mut self, owner: OwnerId) -> Self {
        self.service_owner = Some(owner);
        self
    }

    /// Errors if an entry covers no permission that the catalogue knows or the owner holds.
    pub(super) fn demand_known_scope(
        &self,
        catalog: &RoleCatalog,
        held: &PermissionSet,
    ) -> Result<(), InvalidInput> {
        let mut entries = Vec::new();
        for (index, text) in self.scope.iter().flatten().enumerate() {
            let entry = Grant::parse(text)
                .map_err(|source| InvalidInput::Scope(ScopeError::BadEntry { index, source }))?;
            if !catalog.knows_entry(&entry, held) {
                let is_guessed = entries.len() < MAX_GUESSES;
                let likely = is_guessed.then(|| catalog.likely_entry(&entry, held)).flatten();
                entries.push(UnknownEntry::new(index, entry, likely));
            }
        }
        if entries.is_empty() {
            Ok(())
        } else {
            Err(InvalidInput::Scope(ScopeError::Unknown { entries }))
        }
    }

    pub(super) fn checked(&self) -> Result<CheckedToken, InvalidInput> {
        let scope = match &self.scope {
            None => Scope::inherit(),
            Some(grants) => {
                Scope::only(grants.iter().map(String::as_str)).map_err(InvalidInput::Scope)?
            }
        };
        let networks = match &self.networks {
            None => None,
            Some(list) => Some(
                Networks::parse(list.iter().map(String::as_str)).map_err(InvalidInput::Networks)?,
            ),
        };
        Ok(CheckedToken {
            name: TokenName::new(&self.name).map_err(InvalidInput::Name)?,
            description: checked_description(self.description.as_deref().unwrap_or_default())?,
            lifetime: self.lifetime.map_err(InvalidInput::Lifetime)?,
            scope,
            networks,
        })
    }
}

/// A change of a token's name, its description, whether it is active, or several of these.
///
/// The change is atomic.
///
/// A field that already has the requested value changes nothing and is never refused, so that a
/// client may send back the values that it read. The actor still needs the permission for each
/// field that it sends.
#[derive(Debug, Clone, Default)]
pub struct TokenEdit {
    name: Option<String>,
    description: Option<String>,
    pub(super) active: Option<bool>,
    pub(super) reason: Option<Reason>,
    versions: Option<Vec<u64>>,
}

/// A new description. `None` removes it.
pub(super) type NewDescription = Option<Description>;

impl TokenEdit {
    /// Creates an edit without any field.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the name.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the description. An empty one removes it.
    pub fn description(mut self, description: &str) -> Self {
        self.description = Some(description.into());
        self
    }

    /// Revokes the token (`false`) or restores it (`true`).
    ///
    /// A revoked or expired token is already not active, so `false` does not change it, unless the
    /// reason is [`Reason::Compromised`], which is recorded.
    pub fn active(mut self, active: bool) -> Self {
        self.active = Some(active);
        self
    }

    /// Sets the reason of the revocation. Defaults to the actor's own.
    ///
    /// A reason that the actor may not give is refused, unless the token is already revoked for it.
    pub fn reason(mut self, reason: Reason) -> Self {
        self.reason = Some(reason);
        self
    }

    /// Edits the token only if its [version](crate::TokenView::version) is one of these.
    ///
    /// Otherwise the edit errors with [`ManageError::Outdated`](super::ManageError::Outdated) and
    /// changes nothing.
    pub fn only_versions(mut self, versions: impl IntoIterator<Item = u64>) -> Self {
        self.versions = Some(versions.into_iter().collect());
        self
    }

    pub(super) fn is_for_version(&self, version: u64) -> bool {
        self.versions.as_ref().is_none_or(|versions| versions.contains(&version))
    }

    pub(super) fn renames(&self) -> bool {
        self.name.is_some() || self.description.is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.name.is_none() && self.description.is_none() && self.active.is_none()
    }

    /// Errors if a field is out of bounds.
    pub(super) fn judged(&self) -> Result<(), InvalidInput> {
        self.name.as_deref().map(TokenName::new).transpose().map_err(InvalidInput::Name)?;
        self.description.as_deref().map(checked_description).transpose()?;
        Ok(())
    }

    /// Returns the new name if it differs from `now`. The present name is not validated again.
    pub(super) fn new_name(&self, now: &TokenName) -> Result<Option<TokenName>, InvalidInput> {
        let asked = self.name.as_deref().filter(|name| *name != now.as_str());
        let name = asked.map(TokenName::new).transpose().map_err(InvalidInput::Name)?;
        Ok(name.filter(|name| name.as_str() != now.as_str()))
    }

    /// Returns the new description if it differs from `now`. The present one is not validated
    /// again.
    pub(super) fn new_description(
        &self,
        now: Option<&Description>,
    ) -> Result<Option<NewDescription>, InvalidInput> {
        let present = now.map(Description::as_str).unwrap_or_default();
        let asked = self.description.as_deref().filter(|description| *description != present);
        let description = asked.map(checked_description).transpose()?;
        Ok(description.filter(|description| description.as_ref() != now))
    }
}

fn checked_description(text: &str) -> Result<Option<Description>, InvalidInput> {
    Description::new(text).map_err(InvalidInput::Description)
}
