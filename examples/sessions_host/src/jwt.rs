//! The host's own JWTs, as an app sends them in `Authorization: Bearer`.

use crate::hs256;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use jsonwebtoken::errors::Result;
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode, get_current_timestamp,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The lifetime of a JWT, in seconds.
const LIFETIME: u64 = 3600;

/// The claims of a JWT that the layer has accepted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) sub: String,
    exp: u64,
}

/// Makes and checks JWTs.
pub(crate) struct Jwts {
    signing: EncodingKey,
    checking: DecodingKey,
    validation: Validation,
}

impl Jwts {
    pub(crate) fn new(secret: &[u8]) -> Result<Self> {
        // Fails only if a provider is installed already, which is then this one.
        hs256::PROVIDER.install_default().unwrap_or_default();
        // Accepts no other algorithm, and requires `exp`.
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = 0;
        let (signing, checking) =
            (EncodingKey::from_secret(secret)?, DecodingKey::from_secret(secret)?);
        Ok(Self { signing, checking, validation })
    }

    pub(crate) fn issue(&self, user: &str) -> Result<String> {
        let claims = Claims { sub: user.to_owned(), exp: get_current_timestamp() + LIFETIME };
        encode(&Header::new(Algorithm::HS256), &claims, &self.signing)
    }
}

/// Puts the [`Claims`] of a valid JWT into the extensions, and refuses every other bearer
/// credential that is not a token.
///
/// Requests without a bearer credential pass. So do requests with a token or with two credentials,
/// because the layer for tokens and the API decide those.
pub(crate) async fn accept_jwt(
    State(jwts): State<Arc<Jwts>>,
    mut request: Request,
    next: Next,
) -> Response {
    let mut values = request.headers().get_all(AUTHORIZATION).iter();
    if let (Some(value), None) = (values.next(), values.next())
        && let Some(text) = bearer(value).filter(|text| !text.starts_with(b"acme_"))
    {
        match decode::<Claims>(text, &jwts.checking, &jwts.validation) {
            Ok(jwt) => request.extensions_mut().insert(jwt.claims),
            Err(_) => return refused(),
        };
    }
    next.run(request).await
}

/// Returns the text after the scheme `Bearer`, which is written in upper or lower case.
fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, text) = value.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(text.trim_ascii())
}

fn refused() -> Response {
    let challenge = [(WWW_AUTHENTICATE, r#"Bearer realm="acme", error="invalid_token""#)];
    (StatusCode::UNAUTHORIZED, challenge, "the JWT is refused\n").into_response()
}
