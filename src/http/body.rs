//! The bodies of the management API: what is read and what is answered, as types that also make the `OpenAPI` document.

use super::Problem;
use crate::OwnerId;
use crate::service::{NewToken, TokenEdit, TokenPage};
use crate::token::{ActorRef, Reason, Rfc3339, TokenView};
use http::StatusCode;
use serde::de::{Deserializer, IgnoredAny};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// The longest lifetime that is asked for over HTTP, in days.
const MAX_DAYS: i64 = 365;

/// A token to be made.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
#[allow(clippy::exhaustive_structs, reason = "a request that a client makes")]
pub struct NewTokenBody {
    /// What its owner calls it: 1 to 255 characters, no other live token of the owner has it.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 255))]
    pub name: String,
    /// What it is for: up to 1,000 characters.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_length = 1000, nullable = false))]
    pub description: Option<String>,
    /// How many days it lives; null: it never expires; absent: the default of the policy.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<i64>, minimum = 1, maximum = 365))]
    pub expires_in_days: Option<Option<i64>>,
    /// Whether it is for SCIM endpoints alone: a scope of `scim:*`. Not together with `scopes`.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub scim_endpoints_only: Option<bool>,
    /// What it is narrowed to, such as `datastores:read` or `datastores:*`; absent: all that its owner may do; empty: nothing.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_items = 64, nullable = false))]
    pub scopes: Option<Vec<String>>,
    /// The networks that it works from, such as `10.0.0.0/8`; absent: everywhere.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(min_items = 1, max_items = 32, nullable = false))]
    pub allowed_networks: Option<Vec<String>>,
    /// The service user that it is for; absent: a personal token of whoever asks.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 255, nullable = false))]
    pub user_id: Option<String>,
}

/// A change of a token; at least one of `active`, `name` and `description`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
#[allow(clippy::exhaustive_structs, reason = "a request that a client makes")]
pub struct EditBody {
    /// `false` revokes it, `true` restores it; where it is so already, nothing changes.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub active: Option<bool>,
    /// Why it is revoked: `compromised`, or the actor's own (`owner`, `admin`), which is the default. With `active: false` alone.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false, pattern = "^(owner|admin|compromised)$"))]
    pub reason: Option<String>,
    /// Its new name: 1 to 255 characters.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 255, nullable = false))]
    pub name: Option<String>,
    /// Its new description, up to 1,000 characters; an empty one takes it away.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_length = 1000, nullable = false))]
    pub description: Option<String>,
}

/// A rotation.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
#[allow(clippy::exhaustive_structs, reason = "a request that a client makes")]
pub struct RotateBody {
    /// For how many seconds the old token goes on working beside its successor, 0 by default; the policy bounds it.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub overlap_seconds: Option<u32>,
}

/// A token as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct TokenBody {
    /// The public id, 22 characters.
    pub id: String,
    /// What its owner calls it.
    pub name: String,
    /// What it is for.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub description: Option<String>,
    /// `personal` or `service`.
    pub kind: String,
    /// `active`, `revoked` or `expired`.
    pub state: String,
    /// Whether the state is `active`.
    pub active: bool,
    /// When it was made (RFC 3339, UTC).
    pub created: String,
    /// When it expires (RFC 3339, UTC); null: never.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub expiration: Option<String>,
    /// When it was last used (RFC 3339, UTC), to the granularity of the policy; null: not yet.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub last_used: Option<String>,
    /// The address that it was last used from, where it is known.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub last_used_address: Option<String>,
    /// By whom it was revoked, and why; null where it was not.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub revoked: Option<RevokedBody>,
    /// What it is narrowed to; null: all that its owner may do.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub scopes: Option<Vec<String>>,
    /// The networks that it works from; null: everywhere.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub allowed_networks: Option<Vec<String>>,
    /// The id of the token that took its place by rotation.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub successor: Option<String>,
    /// Who it acts as.
    pub user: UserBody,
}

/// That a token was revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct RevokedBody {
    /// When (RFC 3339, UTC).
    pub at: String,
    /// By whom.
    pub by: RevokedByBody,
    /// Why: `owner`, `admin`, `system`, `offboarding`, `idle`, `rotated`, `reuse` or `compromised`.
    pub reason: String,
}

/// By whom a token was revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct RevokedByBody {
    /// `system`, `owner`, `token`, `erased` or `unproven`.
    pub kind: String,
    /// The owner's id, where it was one.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub owner: Option<String>,
    /// The id of the token that it was done through.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub token: Option<String>,
}

/// Who a token acts as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct UserBody {
    /// The id.
    pub id: String,
    /// What the directory calls the owner now.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub name: Option<String>,
    /// `human`, `service` or `internal`.
    pub kind: String,
    /// True if the directory could not say who the owner is now: the name is not known then. Absent otherwise.
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
    /// The `cursor` of the next page; null on the last one.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub next: Option<String>,
}

/// A token that was just made: the one answer that holds its text.
#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct IssuedBody {
    /// The token's text. It is never shown again.
    pub bearer_token: String,
    /// What is shown of it.
    #[serde(flatten)]
    pub token: TokenBody,
}

/// What a client is told instead of an answer (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ProblemBody {
    /// `about:blank`: the title is the status's.
    pub r#type: String,
    /// What the status is called.
    pub title: String,
    /// The status.
    pub status: u16,
    /// What went wrong, for humans.
    pub detail: String,
    /// What went wrong, for programs: such as `invalid_token`, `name_taken` or `state`.
    pub code: String,
    /// The field of the request that is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub field: Option<String>,
}

/// Without the token's text.
impl fmt::Debug for IssuedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedBody").field("token", &self.token).finish_non_exhaustive()
    }
}

/// A field that is there: `null` is a value like any other, and not the same as absence.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A field of a body that is not as it should be.
fn invalid(field: &'static str, detail: &str) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail.to_owned()).of_field(field)
}

impl NewTokenBody {
    /// What it asks for.
    ///
    /// # Errors
    /// [`Problem`], which names the field, where what is asked for over HTTP is out of bounds.
    pub fn to_new(&self) -> Result<NewToken, Problem> {
        let mut new = NewToken::named(&self.name);
        if let Some(description) = &self.description {
            new = new.description(description);
        }
        new = match self.expires_in_days {
            None => new,
            Some(None) => new.never_expires(),
            Some(Some(days)) if (1..=MAX_DAYS).contains(&days) => new.expires_in_days(days),
            Some(Some(_)) => {
                return Err(invalid("expires_in_days", "a lifetime is 1 to 365 days, or null for no end"));
            }
        };
        new = match (&self.scopes, self.scim_endpoints_only) {
            (Some(_), Some(true)) => {
                return Err(invalid("scim_endpoints_only", "it is a scope of its own: leave scopes out"));
            }
            (None, Some(true)) => new.scim_only(),
            (Some(scopes), _) => new.scope(scopes),
            (None, _) => new,
        };
        if let Some(networks) = &self.allowed_networks {
            new = new.networks(networks);
        }
        match self.user_id.as_deref().map(OwnerId::new) {
            None => Ok(new),
            Some(Ok(owner)) => Ok(new.for_service(owner)),
            Some(Err(error)) => Err(invalid("user_id", &error.to_string())),
        }
    }
}

impl EditBody {
    /// What it asks for.
    ///
    /// # Errors
    /// [`Problem`], which names the field, where it is out of bounds.
    pub fn to_edit(&self) -> Result<TokenEdit, Problem> {
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
        let Some(reason) = &self.reason else { return Ok(edit) };
        let reason = Reason::from_name(reason);
        match (self.active, reason) {
            (Some(false), Some(reason)) => Ok(edit.reason(reason)),
            (Some(false), None) => Err(invalid("reason", "there is no such reason to revoke a token")),
            (_, _) => Err(invalid("reason", "a reason goes with active: false alone")),
        }
    }
}

impl RotateBody {
    /// How long the old token goes on working.
    pub fn overlap(&self) -> Duration {
        Duration::from_secs(self.overlap_seconds.unwrap_or(0).into())
    }
}

impl From<&TokenView> for TokenBody {
    fn from(token: &TokenView) -> Self {
        let owner = token.owner();
        let last_used = token.last_used();
        let grants = |set: &crate::PermissionSet| set.iter().map(ToString::to_string).collect();
        Self {
            id: token.id().to_string(),
            name: token.name().to_string(),
            description: token.description().map(ToString::to_string),
            kind: token.kind().as_str().to_owned(),
            state: token.state().as_str().to_owned(),
            active: token.state() == crate::TokenState::Active,
            created: Rfc3339(token.created_at()).to_string(),
            expiration: token.expires_at().map(|at| Rfc3339(at).to_string()),
            last_used: last_used.map(|used| Rfc3339(used.at).to_string()),
            last_used_address: last_used.and_then(|used| used.address).map(|address| address.to_string()),
            revoked: token.revocation().map(|revocation| RevokedBody {
                at: Rfc3339(revocation.at).to_string(),
                by: RevokedByBody::from(&revocation.by),
                reason: revocation.reason.as_str().to_owned(),
            }),
            scopes: token.scope().as_set().map(grants),
            allowed_networks: token
                .networks()
                .map(|networks| networks.iter().map(ToString::to_string).collect()),
            successor: token.successor().map(|id| id.to_string()),
            user: UserBody {
                id: token.owner_id().as_str().to_owned(),
                name: owner.and_then(|owner| owner.name()).map(ToOwned::to_owned),
                kind: owner.map_or(token.kind().owner_kind(), crate::Owner::kind).as_str().to_owned(),
                unavailable: token.owner_unavailable(),
            },
        }
    }
}

impl From<&ActorRef> for RevokedByBody {
    fn from(actor: &ActorRef) -> Self {
        Self {
            kind: actor.kind().to_owned(),
            owner: actor.owner().map(|owner| owner.as_str().to_owned()),
            token: actor.token().map(|id| id.to_string()),
        }
    }
}

impl From<&TokenPage> for PageBody {
    fn from(page: &TokenPage) -> Self {
        Self {
            items: page.items.iter().map(TokenBody::from).collect(),
            next: page.next.map(|id| id.to_string()),
        }
    }
}

/// Reads a body as one of these types.
///
/// # Errors
/// [`Problem`]: 400 where it is no JSON, 422 where a field is unknown, missing, given twice or of another type; it names the field.
pub(super) fn read<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Problem> {
    // An array would be taken for the fields in their order.
    if body.trim_ascii_start().starts_with(b"[") {
        let json = serde_json::from_slice::<IgnoredAny>(body);
        let detail = "the body is not an object";
        let other = || Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail);
        return Err(json.map_or_else(|error| of_json(&error, "."), |_| other()));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        of_json(error.inner(), &path)
    })?;
    json.end().map_err(|error| of_json(&error, "."))?;
    Ok(read)
}

fn of_json(error: &serde_json::Error, path: &str) -> Problem {
    if !error.is_data() {
        return Problem::new(StatusCode::BAD_REQUEST, "invalid_json", "the body is not well-formed JSON");
    }
    // What was sent is not repeated but for the field's name, and that not without end.
    let text = error.to_string();
    let named = || text.split('`').nth(1).unwrap_or_default();
    let (detail, field) = if text.starts_with("unknown field") {
        ("there is no such field", named())
    } else if text.starts_with("missing field") {
        ("the field is missing", named())
    } else if text.starts_with("duplicate field") {
        ("the field is given twice", named())
    } else {
        ("the value is not of the right type", path)
    };
    let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail);
    if field.is_empty() || field == "." {
        return problem;
    }
    problem.of_field(field.chars().take(64).collect::<String>())
}
