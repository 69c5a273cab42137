//! The marker of the user whom an answer is for, so that a page never mixes two users.
//!
//! A browser has one session for all of its tabs, so a page that one user opened may send its next
//! request in another user's session. Each answer names its user by an opaque marker in the
//! [`USER`] header. A request that sends a marker back is refused unless it is the marker of the
//! request's caller. A client need not send a marker.

use super::Problem;
use crate::service::Actor;
use http::request::Parts;
use http::{HeaderName, HeaderValue, StatusCode};
use sha2::{Digest, Sha256};

/// The header with the marker of the user whom an answer is for, or whom a request expects.
pub(super) const USER: HeaderName = HeaderName::from_static("patkit-user");

/// Returns the caller's marker for the answer, unless the request's page belongs to another user.
///
/// # Errors
/// [`Problem`] with 412 `user_changed` if the request's marker is not the caller's. RFC 9110
/// section 15.5.13 defines 412 for a false condition in the header fields of the request.
pub(super) fn check(parts: &Parts, actor: &Actor) -> Result<Option<HeaderValue>, Problem> {
    let marker = marker(actor);
    if parts.headers.get_all(USER).iter().all(|expected| marker.as_ref() == Some(expected)) {
        return Ok(marker);
    }
    let detail = "the request expects another user than the one who is signed in; reload the page";
    let problem = Problem::new(StatusCode::PRECONDITION_FAILED, "user_changed", detail);
    Err(marker.into_iter().fold(problem, |problem, marker| problem.with_header(USER, marker)))
}

/// Returns a marker that is equal for all sessions and tokens of one owner, on all nodes. `None`
/// for the host itself.
///
/// It is a digest, because a header has no room for every character of an owner id. It is not a
/// secret, because an answer names the owner by id as well.
fn marker(actor: &Actor) -> Option<HeaderValue> {
    let (realm, owner) = actor.counts_as();
    let mut digest = Sha256::new();
    // Neither text has a control character, so the separators are unambiguous.
    for part in ["patkit-user", realm.as_str(), owner?.as_str()] {
        digest.update(part);
        digest.update([0]);
    }
    let digest = digest.finalize();
    let half = digest.first_chunk().expect("a SHA-256 digest has 32 bytes");
    let text = format!("{:032x}", u128::from_be_bytes(*half));
    Some(HeaderValue::try_from(text).expect("hexadecimal digits are valid in a header value"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owner::{OwnerId, Realm};

    #[test]
    fn markers_differ_by_owner_and_realm_alone() {
        let of = |realm: &str, owner: &str| {
            let realm =
                if realm.is_empty() { Realm::default() } else { Realm::new(realm).unwrap() };
            marker(&Actor::signed_in_to(realm, OwnerId::new(owner).unwrap())).unwrap()
        };
        let all = [
            ("", "mel"),
            ("", "Mel"),
            ("", "ada"),
            ("a", "mel"),
            ("am", "el"),
            ("", "m\u{e9}l"),
            ("mel", "a"),
        ];
        for (index, one) in all.iter().enumerate() {
            for (other_index, other) in all.iter().enumerate() {
                assert_eq!(
                    of(one.0, one.1) == of(other.0, other.1),
                    index == other_index,
                    "{one:?} {other:?}"
                );
            }
        }
        let address =
            Actor::signed_in(OwnerId::new("mel").unwrap()).from_address([127, 0, 0, 1].into());
        assert_eq!(marker(&address).unwrap(), of("", "mel"));
        assert_eq!(marker(&Actor::system()), None);
    }
}
