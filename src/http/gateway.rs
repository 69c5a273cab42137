//! The gateways, through which services in other languages use the tokens: forward auth,
//! introspection and revocation.

mod forward_auth;
mod introspection;
mod revocation;

pub use forward_auth::{ForwardAuth, ForwardAuthBuilder, IdentityField, IdentityHeaderError};
pub use introspection::Introspection;
pub use revocation::Revocation;

use super::Problem;
use super::request::limited;
use super::service::RequestBody;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use percent_encoding::percent_decode;
use zeroize::Zeroizing;

/// The text of a field in a form, which may be a token and is wiped when it is dropped.
type Field = Zeroizing<Vec<u8>>;

/// The body of a request of type `application/x-www-form-urlencoded`.
struct Form(Zeroizing<Vec<u8>>);

impl Form {
    async fn read(parts: &Parts, body: RequestBody) -> Result<Self, Problem> {
        if is_form(&parts.headers) { limited(parts, body).await.map(Self) } else { Err(not_form()) }
    }

    /// Returns the field of this name.
    ///
    /// # Errors
    /// [`Problem`] with 400 `invalid_request` if the field is there twice (RFC 6749 section 3.2).
    fn field(&self, name: &str) -> Result<Option<Field>, Problem> {
        let pairs = self.0.split(|byte| *byte == b'&').map(|pair| {
            let mut parts = pair.splitn(2, |byte| *byte == b'=');
            (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
        });
        let mut found = pairs.filter(|(key, _)| decoded(key).as_slice() == name.as_bytes());
        let first = found.next().map(|(_, value)| decoded(value));
        if found.next().is_none() {
            return Ok(first);
        }
        let detail = format!("the form has the field {name} twice; send it once");
        Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_request", detail))
    }

    /// Returns the field `token`.
    ///
    /// # Errors
    /// [`Problem`] with 400 `invalid_request` unless the form has the field once.
    fn token(&self) -> Result<Field, Problem> {
        let detail = "the form has no field token; send the token's text in it";
        let missing = || Problem::new(StatusCode::BAD_REQUEST, "invalid_request", detail);
        self.field("token")?.filter(|text| !text.is_empty()).ok_or_else(missing)
    }
}

/// Decodes a name or a value of a form (URL standard, application/x-www-form-urlencoded).
fn decoded(text: &[u8]) -> Field {
    let spaced = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte });
    let spaced = Zeroizing::new(spaced.collect::<Vec<u8>>());
    // The decoded text is never longer, so the buffer does not grow and leave a copy behind.
    let mut decoded = Zeroizing::new(Vec::with_capacity(spaced.len()));
    decoded.extend(percent_decode(&spaced));
    decoded
}

fn is_form(headers: &HeaderMap) -> bool {
    let declared = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = declared.map(|value| value.split(';').next().unwrap_or_default().trim());
    essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/x-www-form-urlencoded"))
}

fn not_form() -> Problem {
    let detail = "the body is not declared as a form; send `Content-Type: application/x-www-form-urlencoded`";
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_has_each_field_once() {
        let form = |text: &str| Form(Zeroizing::new(text.as_bytes().to_vec()));
        let token = |text| form(text).token().map(|field| field.to_vec());
        for (text, expected) in [
            ("token=abc", "abc"),
            ("a=b&token=abc&c", "abc"),
            ("token=a%62c", "abc"),
            ("tok%65n=abc", "abc"),
            ("token=a+b%2Bc", "a b+c"),
            ("token=a=b", "a=b"),
            ("token=%zz", "%zz"),
            ("&&token=abc&&", "abc"),
        ] {
            assert_eq!(token(text).unwrap(), expected.as_bytes(), "{text}");
        }
        for text in
            ["", "token", "token=", "Token=abc", "token=a&token=a", "token=a&tok%65n=b", "a=token"]
        {
            let problem = token(text).unwrap_err();
            assert_eq!((problem.status().as_u16(), problem.code()), (400, "invalid_request"));
        }
    }
}
