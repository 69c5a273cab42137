//! The credential of a request, in the form that a verification takes.

use super::verify::Peer;
use crate::owner::Realm;
use std::fmt;
use std::net::IpAddr;

/// A credential to verify: the text of a token or the headers of a request, and who presents it.
///
/// Pass all `Authorization` headers of the request, so that a request with two of them is rejected
/// instead of being judged by one of the two (RFC 9110 section 11.6.2 allows one).
///
/// ```
/// use patkit::Credential;
/// # let address = std::net::IpAddr::from([192, 0, 2, 1]);
/// // With the crate `http`, `request.headers().get_all("authorization")` returns these.
/// let headers = ["Bearer acme_pat_…"];
/// let credential = Credential::headers(headers).from_address(address);
/// ```
#[derive(Clone, Copy)]
pub struct Credential<'a> {
    pub(super) offered: Offered<'a>,
    pub(super) realm: Option<&'a Realm>,
    pub(super) peer: Peer,
}

/// What the client sent.
#[derive(Clone, Copy)]
pub(super) enum Offered<'a> {
    /// The only `Authorization` header, or `None` without one.
    Header(Option<&'a [u8]>),
    /// Something other than exactly one well-formed credential, such as two `Authorization` headers.
    Invalid,
    /// A token's text.
    Text(&'a [u8]),
}

impl<'a> Credential<'a> {
    /// Creates the credential from the values of all `Authorization` headers of a request.
    ///
    /// Expects the scheme `Bearer` (RFC 6750 section 2.1) and one token68 (RFC 9110 section 11.2).
    /// The verification rejects
    ///
    /// - no header, or one of another scheme, as
    ///   [`NoCredential`](super::RejectReason::NoCredential), so that the host may look for another
    ///   credential;
    /// - more than one header, a bearer header of more than 8 KiB, or one that is not well-formed,
    ///   as [`InvalidRequest`](super::RejectReason::InvalidRequest).
    pub fn headers<V: AsRef<[u8]> + ?Sized + 'a>(values: impl IntoIterator<Item = &'a V>) -> Self {
        let mut values = values.into_iter();
        Self::new(match values.next() {
            Some(_) if values.next().is_some() => Offered::Invalid,
            header => Offered::Header(header.map(AsRef::as_ref)),
        })
    }

    /// Creates the credential from the text of a token, such as a field of a form or a message.
    pub fn text(text: &'a str) -> Self {
        Self::new(Offered::Text(text.as_bytes()))
    }

    /// Creates the credential from a token that a request carries in another place than its
    /// `Authorization` headers. `None` is rejected as an invalid request.
    #[cfg(feature = "tower")]
    pub(crate) fn carried(text: Option<&'a [u8]>) -> Self {
        Self::new(text.map_or(Offered::Invalid, Offered::Text))
    }

    fn new(offered: Offered<'a>) -> Self {
        Self { offered, realm: None, peer: Peer::new(None) }
    }

    /// Sets the address that the request came from. Defaults to none.
    ///
    /// A token that is bound to networks is rejected without an address. An IPv4-mapped IPv6
    /// address (RFC 4291 section 2.5.5.2) counts as the IPv4 address in it.
    pub fn from_address(mut self, address: impl Into<Option<IpAddr>>) -> Self {
        self.peer = Peer::new(address.into());
        self
    }

    /// Accepts only tokens of this realm. Without this, tokens of all realms are accepted.
    ///
    /// A token of another realm is rejected as [`Unknown`](super::RejectReason::Unknown).
    pub fn in_realm(mut self, realm: &'a Realm) -> Self {
        self.realm = Some(realm);
        self
    }
}

/// Shows no part of the headers or the text.
impl fmt::Debug for Credential<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("realm", &self.realm)
            .field("address", &self.peer.address())
            .finish_non_exhaustive()
    }
}
