//! The challenge of RFC 6750, and the refusals that carry it.

use super::Problem;
#[cfg(feature = "api")]
use super::body::refused_by_service;
#[cfg(feature = "api")]
use crate::service::{Actor, ManageError};
use crate::service::{PermissionDenied, RejectReason, VerifyError};
use crate::token::Brand;
use http::header::WWW_AUTHENTICATE;
use http::{Extensions, HeaderValue, StatusCode};
use std::borrow::Cow;
use std::sync::Arc;

/// The challenge of one protection space (RFC 9110 section 11.5), which makes the answers for
/// refused clients.
///
/// Each answer is equal to that of the layer or the management API, byte for byte. A handler gets
/// the challenge of its layer by [`Challenge::of`] or, in axum and actix-web, as an extractor:
///
/// ```
/// # use patkit::Verified;
/// # use patkit::http::{Challenge, Problem};
/// # let _: axum::Router = axum::Router::new().route("/{project}", axum::routing::get(show));
/// use axum::extract::Path;
///
/// async fn show(
///     token: Verified,
///     challenge: Challenge,
///     Path(project): Path<String>,
/// ) -> Result<String, Problem> {
///     let permission = format!("projects:{project}:read");
///     token.require(&permission).map_err(|denied| challenge.denied(&denied))?;
///     Ok(format!("the project {project}"))
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Challenge(Arc<Schemes>);

/// The challenges of all schemes that the host accepts.
#[derive(Debug, Clone)]
struct Schemes {
    /// The challenge of `Bearer`, which may have parameters added. `None` if clients must not get
    /// it.
    bearer: Option<HeaderValue>,
    basic: Option<HeaderValue>,
}

/// The mark in the extensions of a request that a layer let through, with the challenge for later
/// refusals.
#[derive(Debug, Clone)]
pub(super) struct Passed(pub(super) Challenge);

/// The error for a `realm` that no challenge can have.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the realm of a challenge is refused; use 1 to 128 visible ASCII characters or spaces, such as \
     \"acme\""
)]
#[non_exhaustive]
pub struct RealmError;

impl Challenge {
    /// Returns the challenge of the layer that a request has passed. `None` if it has passed none.
    pub fn of(extensions: &Extensions) -> Option<&Self> {
        extensions.get().map(|Passed(challenge)| challenge)
    }

    /// Returns the answer for a client without a credential: 401.
    pub fn no_credential(&self) -> Problem {
        let detail =
            "the request has no bearer credential; send the header `Authorization: Bearer <token>`";
        Problem::new(StatusCode::UNAUTHORIZED, "no_credential", detail)
            .with_headers(&WWW_AUTHENTICATE, self.0.bearer.clone())
            .with_headers(&WWW_AUTHENTICATE, self.0.basic.clone())
    }

    /// Returns the answer for a credential that could not be verified: 401 for each token that is
    /// refused, whatever the reason, 400 if the request does not have exactly one well-formed
    /// credential, and 503 if a backend did not answer.
    pub fn refused(&self, error: &VerifyError) -> Problem {
        match error.reject_reason() {
            None => Problem::unavailable(),
            Some(RejectReason::NoCredential) => self.no_credential(),
            Some(RejectReason::InvalidRequest) => self.invalid_request(),
            Some(_) => self.invalid_token(),
        }
    }

    /// Returns the answer for a token without a permission: 403, with the permission as its `scope`.
    ///
    /// A text that is not a permission is not repeated.
    pub fn denied(&self, denied: &PermissionDenied) -> Problem {
        match denied {
            PermissionDenied::NotGranted { permission } => {
                self.insufficient_scope(Some(permission))
            }
            PermissionDenied::NotAPermission { .. } => self.insufficient_scope(None),
        }
    }

    /// Returns the answer for an operation of the [`TokenService`](crate::TokenService) that this
    /// actor could not do, as the management API gives it.
    #[cfg(feature = "api")]
    pub fn not_done(&self, error: &ManageError, actor: &Actor) -> Problem {
        let is_token = actor.is_token();
        let problem = |status, code| Problem::new(status, code, error.to_string());
        match error {
            ManageError::ActorRejected(_) if is_token => self.invalid_token(),
            ManageError::ActorRejected(_) => self.no_credential(),
            ManageError::Forbidden { permission } if is_token => {
                self.insufficient_scope(Some(permission))
            }
            ManageError::Attenuation(_) if is_token => self.insufficient_scope(None),
            ManageError::Forbidden { .. }
            | ManageError::Attenuation(_)
            | ManageError::NotForHost => problem(StatusCode::FORBIDDEN, "forbidden"),
            ManageError::ForbiddenByPolicy(_) => {
                problem(StatusCode::FORBIDDEN, "forbidden_by_policy")
            }
            ManageError::NotFound => problem(StatusCode::NOT_FOUND, "not_found"),
            ManageError::Refused(_) => problem(StatusCode::CONFLICT, "state"),
            ManageError::NameTaken => problem(StatusCode::CONFLICT, "name_taken").of_field("name"),
            ManageError::TooManyTokens { .. } => problem(StatusCode::CONFLICT, "too_many_tokens"),
            ManageError::Contended => problem(StatusCode::CONFLICT, "contended"),
            ManageError::Outdated => problem(StatusCode::PRECONDITION_FAILED, "outdated"),
            ManageError::ReasonNotAllowed(_) => {
                problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid").of_field("reason")
            }
            ManageError::Invalid(input) => match refused_by_service(input) {
                (errors, detail) if errors.is_empty() => {
                    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail)
                }
                (errors, _) => Problem::invalid(errors),
            },
            ManageError::OutcomeUnknown { .. } => {
                problem(StatusCode::SERVICE_UNAVAILABLE, "outcome_unknown").retried()
            }
            ManageError::Unavailable(_) | ManageError::Random(_) => Problem::unavailable(),
        }
    }

    pub(super) fn invalid_request(&self) -> Problem {
        let detail = "the request does not have exactly one well-formed bearer credential; \
                      send the header `Authorization: Bearer <token>` once";
        let code = "invalid_request";
        Problem::new(StatusCode::BAD_REQUEST, code, detail)
            .with_headers(&WWW_AUTHENTICATE, self.bearer(&format!(", error=\"{code}\"")))
    }

    pub(super) fn invalid_token(&self) -> Problem {
        let (code, detail) = (
            "invalid_token",
            "the token is refused; send the whole text of a token that is active",
        );
        Problem::new(StatusCode::UNAUTHORIZED, code, detail)
            .with_headers(&WWW_AUTHENTICATE, self.bearer(&format!(", error=\"{code}\"")))
            .with_headers(&WWW_AUTHENTICATE, self.0.basic.clone())
    }

    /// Returns a refusal for a missing permission. The permission is `None` if the client must not
    /// learn it.
    pub(super) fn insufficient_scope(&self, permission: Option<&str>) -> Problem {
        let detail: Cow<'static, str> = match permission {
            Some(permission) => format!(
                "the token does not have the permission {permission}; use a token that has it"
            )
            .into(),
            None => "the token may not do this; use a token that may do more, or sign in".into(),
        };
        Problem::new(StatusCode::FORBIDDEN, "insufficient_scope", detail)
            .with_headers(&WWW_AUTHENTICATE, self.insufficient(permission))
    }

    pub(super) fn new(realm: &str) -> Result<Self, RealmError> {
        let fits = (1..=128).contains(&realm.len())
            && realm.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        let escaped = realm.replace('\\', "\\\\").replace('"', "\\\"");
        let bearer =
            HeaderValue::try_from(format!("Bearer realm=\"{escaped}\"")).map_err(|_| RealmError)?;
        let schemes = Schemes { bearer: Some(bearer), basic: None };
        if fits { Ok(Self(Arc::new(schemes))) } else { Err(RealmError) }
    }

    /// Creates the challenge whose realm is the brand.
    pub(super) fn of_brand(brand: &Brand) -> Self {
        Self::new(brand.as_str()).expect("a brand has 2 to 16 letters and digits")
    }

    /// Returns a challenge of no service, for tests of hosts.
    #[cfg(feature = "testkit")]
    pub(super) fn of_nobody() -> Self {
        Self::new("test").expect("four letters")
    }

    /// Adds the challenge of HTTP Basic (RFC 7617 section 2), with the realm of the other one.
    pub(super) fn with_basic(self, is_only_challenge: bool) -> Self {
        let Some(bearer) = &self.0.bearer else { return self };
        let parameters = bearer.as_bytes().strip_prefix(b"Bearer").unwrap_or_default();
        let basic = [b"Basic", parameters, b", charset=\"UTF-8\""].concat();
        let basic = HeaderValue::from_bytes(&basic).expect("the realm is visible ASCII");
        let bearer = Some(bearer.clone()).filter(|_| !is_only_challenge);
        Self(Arc::new(Schemes { bearer, basic: Some(basic) }))
    }

    /// Builds the challenge for a missing permission. The permission needs no escaping, because all
    /// of its characters are allowed in a scope token (RFC 6749 section 3.3).
    fn insufficient(&self, permission: Option<&str>) -> Option<HeaderValue> {
        let scope =
            permission.map(|permission| format!(", scope=\"{permission}\"")).unwrap_or_default();
        self.bearer(&format!(", error=\"insufficient_scope\"{scope}"))
    }

    /// Returns the challenge of `Bearer` with more parameters.
    fn bearer(&self, parameters: &str) -> Option<HeaderValue> {
        let bearer = self.0.bearer.as_ref()?;
        let value = [bearer.as_bytes(), parameters.as_bytes()].concat();
        Some(
            HeaderValue::from_bytes(&value)
                .expect("the realm and the parameters are visible ASCII"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_realm_is_quoted() {
        let challenge = Challenge::new(r#"say "hi" \o/"#).unwrap();
        assert_eq!(challenge.0.bearer.as_ref().unwrap(), r#"Bearer realm="say \"hi\" \\o/""#);
        let expected = r#"Bearer realm="say \"hi\" \\o/", error="insufficient_scope", scope="a:b""#;
        assert_eq!(challenge.insufficient(Some("a:b")).unwrap(), expected);
        for bad in ["", "a\r\nSet-Cookie: b", "caf\u{e9}", "\0", &"a".repeat(129)] {
            assert_eq!(Challenge::new(bad).unwrap_err(), RealmError, "{bad:?}");
        }
    }
}
