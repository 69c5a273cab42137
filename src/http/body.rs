//! The bodies of the management API's requests and answers, as types that also make the `OpenAPI`
//! document.

use super::json_fields::{Fields, Refused};
use super::{FieldError, Problem};
use crate::OwnerId;
use crate::permission::{Grant, MAX_SCOPE_ENTRIES, ScopeError};
use crate::policy::{LifetimeError, whole_days};
use crate::service::{InvalidInput, NewToken, TokenEdit};
use crate::token::{
    Description, MAX_NETWORKS, NameError, Network, NetworkError, NetworksError, Reason, TokenId,
    TokenName, TokenView,
};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// The longest lifetime that can be requested over HTTP, in days.
const MAX_DAYS: i64 = 365;

/// A request for a new token.
#[derive(Debug, Clone, Default, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
#[allow(clippy::exhaustive_structs, reason = "a request that a client makes")]
pub struct NewTokenBody {
    /// The name of the token: 1 to 255 characters. No other live token of the owner may have it.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 255))]
    pub name: String,
    /// The description of the token, up to 1,000 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_length = 1000, nullable = false))]
    pub description: Option<String>,
    /// The lifetime in days. If null, the token never expires. If absent, the policy's default
    /// applies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<i64>, minimum = 1, maximum = 365))]
    pub expires_in_days: Option<Option<i64>>,
    /// Whether the token is only for SCIM endpoints, which is a scope of `scim:*`. Not allowed
    /// together with `scopes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub scim_endpoints_only: Option<bool>,
    /// The scopes of the token, such as `datastores:read` or `datastores:*`. If absent or null, the
    /// token may do all that its owner may do. If empty, it may do nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_items = 64))]
    pub scopes: Option<Vec<String>>,
    /// The networks from which the token works, such as `10.0.0.0/8`. If absent, it works from
    /// anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(min_items = 1, max_items = 32, nullable = false))]
    pub allowed_networks: Option<Vec<String>>,
    /// The service user that owns the token. If absent, the token is a personal token of the
    /// caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 255, nullable = false))]
    pub user_id: Option<String>,
}

/// A change of a token. At least one of `active`, `name` and `description` is required.
#[derive(Debug, Clone, Default, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
#[allow(clippy::exhaustive_structs, reason = "a request that a client makes")]
pub struct EditBody {
    /// `false` revokes the token and `true` restores it. Nothing changes if the token is already in
    /// that state. To revoke a token in the state `ended`, send `false` with a reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub active: Option<bool>,
    /// The reason for the revocation: `compromised`, or the actor's own reason (`owner` or
    /// `admin`), which is the default. Allowed only with `active: false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(nullable = false, pattern = "^(owner|admin|compromised)$")
    )]
    pub reason: Option<String>,
    /// The new name: 1 to 255 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 255, nullable = false))]
    pub name: Option<String>,
    /// The new description, up to 1,000 characters. An empty description removes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_length = 1000, nullable = false))]
    pub description: Option<String>,
}

/// A request to rotate a token.
#[derive(Debug, Clone, Default, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
#[allow(clippy::exhaustive_structs, reason = "a request that a client makes")]
pub struct RotateBody {
    /// The number of seconds for which the old token still works beside its successor, 0 by
    /// default. The policy sets the maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub overlap_seconds: Option<u32>,
}

/// A token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct TokenBody {
    /// The public id, 22 characters.
    pub id: String,
    /// The name that the owner gave the token.
    pub name: String,
    /// The description that the owner gave the token.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub description: Option<String>,
    /// `personal` or `service`.
    pub kind: String,
    /// `active`, `revoked`, `expired` or `ended`. A token is `ended`, and no longer accepted, if
    /// all tokens of its owner from before some instant were ended, for example by signing out
    /// everywhere.
    pub state: String,
    /// Whether the state is `active`.
    pub active: bool,
    /// When the token was created (RFC 3339, UTC).
    pub created: String,
    /// When the token expires (RFC 3339, UTC). Null if it never expires.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub expiration: Option<String>,
    /// When the token was last used (RFC 3339, UTC), to the granularity of the policy. Null if it
    /// was never used.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub last_used: Option<String>,
    /// The address from which the token was last used, if it is known.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub last_used_address: Option<String>,
    /// Who revoked the token, and why. Null if the token was not revoked.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub revoked: Option<RevokedBody>,
    /// The scopes of the token. If null, the token may do all that its owner may do.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub scopes: Option<Vec<String>>,
    /// The networks from which the token works. If null, it works from anywhere.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub allowed_networks: Option<Vec<String>>,
    /// The id of the token that replaced this one by rotation.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub successor: Option<String>,
    /// The user that the token acts as.
    pub user: UserBody,
}

/// The revocation of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct RevokedBody {
    /// When the token was revoked (RFC 3339, UTC).
    pub at: String,
    /// Who revoked the token.
    pub by: RevokedByBody,
    /// The reason: `owner`, `admin`, `system`, `offboarding`, `idle`, `rotated`, `reuse`,
    /// `suspected` or `compromised`.
    pub reason: String,
}

/// The actor who revoked a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct RevokedByBody {
    /// `system`, `owner`, `token`, `erased` or `unproven`.
    pub kind: String,
    /// The id of the owner, if the actor is an owner.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub owner: Option<String>,
    /// The id of the token that the actor used, if there is one.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub token: Option<String>,
}

/// The user that a token acts as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct UserBody {
    /// The id.
    pub id: String,
    /// The current name in the directory.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub name: Option<String>,
    /// `human`, `service` or `internal`.
    pub kind: String,
    /// True if the directory could not answer for the owner, so that the name is unknown. Absent
    /// otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[cfg_attr(feature = "openapi", schema(required = false))]
    pub unavailable: bool,
}

/// One page of a list, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct PageBody {
    /// The tokens.
    pub items: Vec<TokenBody>,
    /// The `cursor` of the next page. Null on the last page.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub next: Option<String>,
}

/// A new token. This is the only answer with the token's text.
#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct IssuedBody {
    /// The token's text. It is never shown again.
    pub bearer_token: String,
    /// The token without its text.
    #[serde(flatten)]
    pub token: TokenBody,
}

/// An [`IssuedBody`] for writing. The text is borrowed, so that no copy of it has to be wiped.
#[derive(Serialize)]
pub(super) struct IssuedAnswer<'a> {
    pub(super) bearer_token: &'a str,
    #[serde(flatten)]
    pub(super) token: &'a TokenView,
}

/// A [`PageBody`] for writing.
#[derive(Serialize)]
pub(super) struct PageAnswer<'a> {
    pub(super) items: &'a [TokenView],
    pub(super) next: Option<TokenId>,
}

/// The answer to a refused or failed request (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ProblemBody {
    /// Always `about:blank`, because the title is that of the status.
    pub r#type: String,
    /// The name of the status.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The problem, for humans.
    pub detail: String,
    /// The problem, for programs, such as `invalid_token`, `name_taken` or `state`.
    pub code: String,
    /// Every refused field of the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldErrorBody>,
}

/// A refused field of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct FieldErrorBody {
    /// The JSON pointer (RFC 6901) of the field, such as `/scopes/0`. A field of the query is named
    /// as if the query were an object.
    pub pointer: String,
    /// The problem with the field, for the user who filled it in.
    pub detail: String,
}

/// Omits the token's text.
impl fmt::Debug for IssuedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedBody").field("token", &self.token).finish_non_exhaustive()
    }
}

impl NewTokenBody {
    /// Reads a body.
    ///
    /// # Errors
    /// [`Problem`]: 400 if the body is not JSON, 422 with every field that is unknown, missing,
    /// repeated, of another type or out of bounds.
    pub(super) fn read(body: &[u8]) -> Result<Self, Problem> {
        let mut fields = Fields::new(body)?;
        let name = fields.text("name");
        let is_missing = name.is_none() && !fields.refused.has("name");
        let new = Self {
            name: name.unwrap_or_default(),
            description: fields.text("description"),
            expires_in_days: fields.nullable("expires_in_days", Fields::integer),
            scim_endpoints_only: fields.flag("scim_endpoints_only"),
            scopes: fields.nullable("scopes", Fields::texts).flatten(),
            allowed_networks: fields.texts("allowed_networks"),
            user_id: fields.text("user_id"),
        };
        let mut refused = fields.finish();
        if is_missing {
            refused.refuse(&["name"], "the name is missing; send 1 to 255 characters");
        }
        new.check(&mut refused);
        refused.finish().map(|()| new)
    }

    /// Returns the token that the body requests.
    ///
    /// # Errors
    /// [`Problem`], 422 with every field that is out of bounds.
    pub fn to_new(&self) -> Result<NewToken, Problem> {
        let mut refused = Refused::default();
        self.check(&mut refused);
        refused.finish()?;
        let mut new = NewToken::named(&self.name);
        if let Some(description) = &self.description {
            new = new.description(description);
        }
        new = match self.expires_in_days {
            None => new,
            Some(None) => new.never_expires(),
            Some(Some(days)) => new.expires_in_days(days),
        };
        new = match (&self.scopes, self.scim_endpoints_only) {
            (None, Some(true)) => new.scim_only(),
            (Some(scopes), _) => new.scope(scopes),
            (None, _) => new,
        };
        if let Some(networks) = &self.allowed_networks {
            new = new.networks(networks);
        }
        match self.user_id.as_deref().map(OwnerId::new) {
            Some(Ok(owner)) => Ok(new.for_service(owner)),
            None | Some(Err(_)) => Ok(new),
        }
    }

    /// Checks each field that had the right type.
    fn check(&self, refused: &mut Refused) {
        check_name(&self.name, refused);
        check_description(self.description.as_deref(), refused);
        if self.expires_in_days.flatten().is_some_and(|days| !(1..=MAX_DAYS).contains(&days)) {
            refused.refuse(
                &["expires_in_days"],
                "the lifetime is out of bounds; choose 1 to 365 days, or null for a token that \
                 never expires",
            );
        }
        if self.scopes.is_some() && self.scim_endpoints_only == Some(true) {
            let detail = "scim_endpoints_only sets the scope to scim:*; leave scopes out";
            refused.refuse(&["scim_endpoints_only"], detail);
        }
        let scopes = self.scopes.as_deref().unwrap_or_default();
        if scopes.len() > MAX_SCOPE_ENTRIES {
            refused.refuse(&["scopes"], too_many("permissions", MAX_SCOPE_ENTRIES));
        } else if !refused.has("scopes") {
            for (place, _) in
                scopes.iter().enumerate().filter(|(_, text)| Grant::parse(text).is_err())
            {
                refused.refuse(&["scopes", &place.to_string()], NO_GRANT);
            }
        }
        match self.allowed_networks.as_deref() {
            None => {}
            Some(_) if refused.has("allowed_networks") => {}
            Some([]) => refused.refuse(&["allowed_networks"], NO_NETWORKS),
            Some(networks) if networks.len() > MAX_NETWORKS => {
                refused.refuse(&["allowed_networks"], too_many("networks", MAX_NETWORKS));
            }
            Some(networks) => {
                for (place, text) in networks.iter().enumerate() {
                    if let Err(error) = text.parse::<Network>() {
                        refused
                            .refuse(&["allowed_networks", &place.to_string()], of_network(error));
                    }
                }
            }
        }
        if self.user_id.as_deref().is_some_and(|user| OwnerId::new(user).is_err()) {
            refused.refuse(
                &["user_id"],
                "the id of the user is malformed; send 1 to 255 bytes without control characters",
            );
        }
    }
}

impl EditBody {
    /// Reads a body.
    ///
    /// # Errors
    /// The same as for [`NewTokenBody`].
    pub(super) fn read(body: &[u8]) -> Result<Self, Problem> {
        let mut fields = Fields::new(body)?;
        let edit = Self {
            active: fields.flag("active"),
            reason: fields.text("reason"),
            name: fields.text("name"),
            description: fields.text("description"),
        };
        let mut refused = fields.finish();
        edit.check(&mut refused);
        refused.finish().map(|()| edit)
    }

    /// Returns the change that the body requests.
    ///
    /// # Errors
    /// [`Problem`], 422 with every field that is out of bounds.
    pub fn to_edit(&self) -> Result<TokenEdit, Problem> {
        let mut refused = Refused::default();
        self.check(&mut refused);
        refused.finish()?;
        let mut edit = TokenEdit::new();
        if let Some(active) = self.active {
            edit = edit.active(active);
        }
        if let Some(name) = &self.name {
            edit = edit.name(name);
        }
        if let Some(description) = &self.description {
            edit = edit.description(description);
        }
        if let Some(reason) = self.reason.as_deref().and_then(Reason::from_name) {
            edit = edit.reason(reason);
        }
        Ok(edit)
    }

    fn check(&self, refused: &mut Refused) {
        if let Some(name) = &self.name {
            check_name(name, refused);
        }
        check_description(self.description.as_deref(), refused);
        if let Some(reason) = &self.reason
            && !refused.has("active")
        {
            if self.active != Some(false) {
                let detail = "a reason is only for active: false; send both, or neither";
                refused.refuse(&["reason"], detail);
            } else if Reason::from_name(reason).is_none() {
                let detail = "the reason is unknown; choose owner, admin or compromised";
                refused.refuse(&["reason"], detail);
            }
        }
    }
}

impl RotateBody {
    /// Reads a body.
    ///
    /// # Errors
    /// The same as for [`NewTokenBody`].
    pub(super) fn read(body: &[u8]) -> Result<Self, Problem> {
        let mut fields = Fields::new(body)?;
        let seconds = fields.integer("overlap_seconds");
        let overlap_seconds = seconds.and_then(|seconds| u32::try_from(seconds).ok());
        let mut refused = fields.finish();
        if seconds.is_some() && overlap_seconds.is_none() {
            let detail = format!("the overlap is out of bounds; choose 0 to {} s", u32::MAX);
            refused.refuse(&["overlap_seconds"], detail);
        }
        refused.finish().map(|()| Self { overlap_seconds })
    }

    /// Returns how long the old token still works.
    pub fn overlap(&self) -> Duration {
        Duration::from_secs(self.overlap_seconds.unwrap_or(0).into())
    }
}

const NO_GRANT: &str = "the permission is malformed; write small letters, digits, - and _ between \
                        colons, such as datastores:read or datastores:*";
const NO_NETWORKS: &str = "the list of networks is empty; name at least one network, or leave the \
                           field out for a token that works from everywhere";

fn too_many(what: &str, most: usize) -> String {
    format!("there are more than {most} {what}; choose {most} at most")
}

fn check_name(name: &str, refused: &mut Refused) {
    if !refused.has("name")
        && let Err(error) = TokenName::new(name)
    {
        refused.refuse(&["name"], of_text(error, "name"));
    }
}

fn check_description(description: Option<&str>, refused: &mut Refused) {
    if let Some(Err(error)) = description.map(Description::new) {
        refused.refuse(&["description"], of_text(error, "description"));
    }
}

fn of_text(error: NameError, what: &str) -> String {
    match error {
        NameError::Empty => {
            format!("the {what} shows nothing; write at least one visible character")
        }
        NameError::TooLong { most } => {
            format!("the {what} is too long; write {most} characters at most")
        }
        NameError::Character(character) => format!(
            "the {what} has the character U+{:04X}, which is not allowed; leave the character out",
            u32::from(character)
        ),
    }
}

fn of_network(error: NetworkError) -> String {
    match error {
        NetworkError::NotANetwork => {
            "the network is malformed; write an address, alone or with a prefix length, such as \
             10.0.0.0/8"
                .to_owned()
        }
        NetworkError::PrefixTooLong { most } => {
            format!("the prefix length of the network is too large; write {most} at most")
        }
        NetworkError::HostBitsSet => {
            "the network has digits after its prefix length; write 10.0.0.0/8, not 10.0.0.1/8"
                .to_owned()
        }
    }
}

/// Returns the fields that the service refused, and the reason in a user's words. There are no
/// fields if the whole request was refused.
pub(super) fn refused_by_service(input: &InvalidInput) -> (Vec<FieldError>, String) {
    let of = |path: &[&str], detail: String| (vec![FieldError::new(path, detail.clone())], detail);
    match input {
        InvalidInput::Name(error) => of(&["name"], of_text(*error, "name")),
        InvalidInput::Description(error) => of(&["description"], of_text(*error, "description")),
        InvalidInput::Lifetime(error) => of(&["expires_in_days"], of_lifetime(*error)),
        InvalidInput::Scope(ScopeError::TooManyEntries) => {
            of(&["scopes"], too_many("permissions", MAX_SCOPE_ENTRIES))
        }
        InvalidInput::Scope(ScopeError::BadEntry { index, .. }) => {
            of(&["scopes", &index.to_string()], NO_GRANT.to_owned())
        }
        InvalidInput::Scope(ScopeError::Unknown { entries }) => {
            let errors = entries.iter().map(|unknown| {
                let detail = match &unknown.likely {
                    Some(likely) => {
                        format!(
                            "there is no permission {}; write {likely} if that was meant",
                            unknown.entry
                        )
                    }
                    None => format!(
                        "there is no permission {}; correct the permission or leave it out",
                        unknown.entry
                    ),
                };
                FieldError::new(&["scopes", &unknown.index.to_string()], detail)
            });
            (errors.collect(), "the scopes name unknown permissions; correct them".to_owned())
        }
        InvalidInput::Networks(NetworksError::Empty) => {
            of(&["allowed_networks"], NO_NETWORKS.to_owned())
        }
        InvalidInput::Networks(NetworksError::TooMany) => {
            of(&["allowed_networks"], too_many("networks", MAX_NETWORKS))
        }
        InvalidInput::Networks(NetworksError::Entry { place, source }) => {
            of(&["allowed_networks", &place.to_string()], of_network(*source))
        }
        InvalidInput::Overlap { most } => {
            let detail = format!("the overlap is too long; choose {} s at most", most.as_secs());
            of(&["overlap_seconds"], detail)
        }
        InvalidInput::OwnerUnknown => {
            of(&["user_id"], "there is no user with this id; check the id".to_owned())
        }
        InvalidInput::OwnerDisabled => {
            of(&["user_id"], "the user is disabled; enable the user first".to_owned())
        }
        InvalidInput::OwnerKind(_) => {
            let detail = "the user cannot have a token of this kind; service tokens are for \
                          service users, and personal tokens for people";
            of(&["user_id"], detail.to_owned())
        }
        InvalidInput::NothingToChange => {
            (Vec::new(), "the request changes nothing; send active, name or description".to_owned())
        }
    }
}

fn of_lifetime(error: LifetimeError) -> String {
    match error {
        LifetimeError::TooShort => "the lifetime is too short; choose 1 day or more".to_owned(),
        LifetimeError::TooLong { most } if whole_days(most) == 0 => {
            "no token may live for a whole day; leave expires_in_days out".to_owned()
        }
        LifetimeError::TooLong { most } => {
            format!("the lifetime is too long; choose {} days at most", whole_days(most))
        }
        LifetimeError::NeverNotAllowed => {
            "a token that never expires is not allowed; choose a number of days".to_owned()
        }
        LifetimeError::OutlivesCreator => {
            "the token would outlive the token that makes it; choose fewer days".to_owned()
        }
        LifetimeError::Overflow => {
            "the lifetime ends after the last possible date; choose fewer days".to_owned()
        }
    }
}
