//! The places of a request in which a token may be sent, beside `Authorization: Bearer`.

use crate::authorization::{self, BearerError, MAX_HEADER_BYTES};
use crate::service::{Credential, RejectReason};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use zeroize::Zeroizing;

/// The most bytes of a user name of HTTP Basic that a host may name.
const MOST_USER_BYTES: usize = 255;

/// Headers with another meaning for clients, servers or proxies, which cannot carry a token.
const TAKEN: [&str; 20] = [
    "accept",
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "forwarded",
    "host",
    "if-match",
    "origin",
    "proxy-authorization",
    "referer",
    "sec-fetch-site",
    "set-cookie",
    "te",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "x-forwarded-for",
    "x-forwarded-host",
];

/// The settings of HTTP Basic (RFC 7617) as a carrier of tokens, for
/// [`Authenticator::accept_basic`](super::Authenticator::accept_basic).
///
/// The password is the token.
#[derive(Debug, Clone)]
pub struct BasicCarrier {
    /// The accepted user names, or `None` if the user name is ignored.
    users: Option<Vec<String>>,
    is_only_challenge: bool,
}

/// The error for a carrier that no client could use, or that would hide another part of a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CarrierError {
    /// The text is not the name of a header that may carry a token.
    #[error(
        "the header {name:?} cannot carry a token; use a name with 1 to 64 letters, digits and hyphens that HTTP gives no other \
         meaning, such as X-API-Key"
    )]
    Header {
        /// The first 64 characters of the name.
        name: String,
    },
    /// A client cannot send this user name.
    #[error(
        "the user name {name:?} cannot be sent by HTTP Basic; use 1 to 255 bytes without a colon and without control characters"
    )]
    User {
        /// The first 64 characters of the name.
        name: String,
    },
    /// No user name would be accepted.
    #[error("the list of user names is empty; add one, or accept any with BasicCarrier::any_user")]
    NoUsers,
}

impl BasicCarrier {
    /// Ignores the user name, which may be empty.
    pub const fn any_user() -> Self {
        Self { users: None, is_only_challenge: false }
    }

    /// Accepts only these user names, such as `__token__`. A token that comes with another one is
    /// refused.
    ///
    /// User names are compared byte for byte. They are not secret.
    ///
    /// # Errors
    /// [`CarrierError`] if the list is empty or a name is not 1 to 255 bytes without a colon and
    /// control characters.
    pub fn of_users<U: AsRef<str>>(
        users: impl IntoIterator<Item = U>,
    ) -> Result<Self, CarrierError> {
        let named = |user: U| {
            let name = user.as_ref();
            let fits = (1..=MOST_USER_BYTES).contains(&name.len())
                && !name.chars().any(|letter| letter == ':' || letter.is_control());
            if fits { Ok(name.to_owned()) } else { Err(CarrierError::User { name: shown(name) }) }
        };
        let users: Vec<String> = users.into_iter().map(named).collect::<Result<_, _>>()?;
        if users.is_empty() {
            return Err(CarrierError::NoUsers);
        }
        Ok(Self { users: Some(users), is_only_challenge: false })
    }

    /// Answers a request without a valid token with the challenge of HTTP Basic alone.
    ///
    /// Otherwise the answer has two challenges. Docker takes the `realm` of a `Bearer` challenge for
    /// the address of a token server, so a container registry needs this. A bearer token is accepted
    /// in any case.
    pub fn only_challenge(mut self) -> Self {
        self.is_only_challenge = true;
        self
    }

    pub(super) fn is_only_challenge(&self) -> bool {
        self.is_only_challenge
    }

    fn accepts(&self, user: &[u8]) -> bool {
        let is_one = |users: &Vec<String>| users.iter().any(|name| name.as_bytes() == user);
        self.users.as_ref().is_none_or(is_one)
    }
}

/// The carriers that a host has added.
#[derive(Debug, Clone, Default)]
pub(super) struct Carriers {
    pub(super) basic: Option<BasicCarrier>,
    pub(super) is_bare_accepted: bool,
    headers: Vec<HeaderName>,
}

/// The only credential of a request.
pub(super) enum Carried<'a> {
    /// The text of a token.
    Text(&'a [u8]),
    /// The user name and the password of HTTP Basic, decoded.
    Basic(Pair),
    /// A credential that is refused without a look at the token.
    Refused(RejectReason),
}

/// The decoded text of HTTP Basic, which is wiped when it is dropped.
pub(super) struct Pair {
    text: Zeroizing<Vec<u8>>,
    colon: usize,
}

impl Pair {
    /// Decodes the token68 of HTTP Basic (RFC 7617 section 2): base64 of a user name without a colon,
    /// a colon and a password, without control characters.
    fn decode(encoded: &[u8]) -> Option<Self> {
        // The decoder's estimate of the length is exact or too large, so the buffer does not grow
        // and leave a copy behind.
        let mut text =
            Zeroizing::new(Vec::with_capacity(base64::decoded_len_estimate(encoded.len())));
        STANDARD.decode_vec(encoded, &mut text).ok()?;
        let colon = text.iter().position(|byte| *byte == b':')?;
        let is_plain = !text.iter().any(u8::is_ascii_control);
        is_plain.then_some(Self { text, colon })
    }

    fn user(&self) -> &[u8] {
        self.text.get(..self.colon).expect("the colon is in the text")
    }

    fn password(&self) -> &[u8] {
        let rest = self.text.get(self.colon..).expect("the colon is in the text");
        rest.strip_prefix(b":").expect("the rest begins with the colon")
    }
}

impl Carried<'_> {
    fn text(&self) -> Option<&[u8]> {
        match self {
            Self::Text(text) => Some(text),
            Self::Basic(pair) => Some(pair.password()),
            Self::Refused(_) => None,
        }
    }

    /// Returns all that the client sent, in which a token of ours may stand in the wrong place.
    fn whole(&self) -> Option<&[u8]> {
        match self {
            Self::Text(text) => Some(text),
            Self::Basic(pair) => Some(pair.text.as_slice()),
            Self::Refused(_) => None,
        }
    }

    /// Returns the credential to verify.
    ///
    /// # Errors
    /// The reason for which it is refused without verification.
    pub(super) fn credential(&self) -> Result<Credential<'_>, RejectReason> {
        match self {
            Self::Refused(reason) => Err(*reason),
            carried => {
                let fits = |text: &&[u8]| {
                    text.len() <= MAX_HEADER_BYTES && authorization::is_token68(text)
                };
                Ok(Credential::carried(carried.text().filter(fits)))
            }
        }
    }
}

impl Carriers {
    /// Adds a header that carries a token.
    pub(super) fn add_header(&mut self, name: &str) -> Result<(), CarrierError> {
        let refused = || CarrierError::Header { name: shown(name) };
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| refused())?;
        let is_taken = TAKEN.iter().any(|taken| header == *taken);
        if is_taken || name.len() > 64 || !name.bytes().all(is_plain) {
            return Err(refused());
        }
        if !self.headers.contains(&header) {
            self.headers.push(header);
        }
        Ok(())
    }

    /// Returns the headers that may carry a token, beside `Authorization`.
    pub(super) fn headers(&self) -> &[HeaderName] {
        &self.headers
    }

    /// Returns the only credential of a request, or `None` without one.
    ///
    /// A credential whose text is foreign counts as none.
    pub(super) fn find<'a>(
        &self,
        headers: &'a HeaderMap,
        is_foreign: impl Fn(&[u8]) -> bool,
    ) -> Option<Carried<'a>> {
        const INVALID: Carried<'_> = Carried::Refused(RejectReason::InvalidRequest);
        let values = headers.get_all(AUTHORIZATION).iter().map(HeaderValue::as_bytes);
        let from_authorization = match authorization::only(values) {
            Ok(None) => None,
            Ok(Some(header)) => self.read(header).unwrap_or(Some(INVALID)),
            Err(BearerError::Missing | BearerError::Malformed) => return Some(INVALID),
        };
        let named = self.headers.iter().flat_map(|name| headers.get_all(name));
        let named = named.map(|value| Carried::Text(value.as_bytes()));
        let is_ours = |carried: &Carried<'_>| carried.whole().is_none_or(|text| !is_foreign(text));
        let mut found = from_authorization.into_iter().chain(named).filter(is_ours);
        match (found.next(), found.next()) {
            (_, Some(_)) => Some(INVALID),
            (Some(Carried::Basic(pair)), None) if !self.accepts_user(&pair) => {
                Some(Carried::Refused(RejectReason::Malformed))
            }
            (carried, None) => carried,
        }
    }

    /// Reads an `Authorization` header. `None` if it has a scheme that is not accepted.
    fn read<'a>(&self, header: &'a [u8]) -> Result<Option<Carried<'a>>, BearerError> {
        if let Some(text) = authorization::token68(header, b"bearer")? {
            return Ok(Some(Carried::Text(text)));
        }
        if self.basic.is_some()
            && let Some(encoded) = authorization::token68(header, b"basic")?
        {
            let pair = Pair::decode(encoded).ok_or(BearerError::Malformed)?;
            return Ok(Some(Carried::Basic(pair)));
        }
        let is_bare = self.is_bare_accepted && !header.is_empty() && !header.contains(&b' ');
        Ok(is_bare.then_some(Carried::Text(header)))
    }

    fn accepts_user(&self, pair: &Pair) -> bool {
        self.basic.as_ref().is_some_and(|basic| basic.accepts(pair.user()))
    }
}

fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}
