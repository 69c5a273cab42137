//! The address of a request's client, as far as the host can vouch for it.

use crate::token::Networks;
use http::header::FORWARDED;
use http::{Extensions, HeaderMap, HeaderName};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU8;

/// The address of a request's connection, which the host puts into the request's extensions.
///
/// With actix-web (feature `actix`), and with axum's
/// `into_make_service_with_connect_info::<SocketAddr>()` (feature `axum`), the host need not do so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a value that the host makes")]
pub struct Connection(pub IpAddr);

/// The source of a client's address. A token that is bound to networks works only from a known
/// address.
#[derive(Debug, Clone)]
pub struct ClientAddress {
    source: Source,
    /// The addresses from which a header counts, or `None` for all.
    proxies: Option<Networks>,
}

#[derive(Debug, Clone)]
enum Source {
    Unknown,
    Connection,
    Header { name: HeaderName, proxies: NonZeroU8 },
}

impl ClientAddress {
    /// Knows no address.
    pub const fn unknown() -> Self {
        Self { source: Source::Unknown, proxies: None }
    }

    /// Uses the address of the connection.
    ///
    /// This is right if clients connect to the host directly, or through a balancer that keeps
    /// their address. The address is a [`Connection`] in the extensions or, with the feature
    /// `axum`, axum's `ConnectInfo<SocketAddr>`.
    pub const fn connection() -> Self {
        Self { source: Source::Connection, proxies: None }
    }

    /// Uses the address that the host's own proxies write into this header.
    ///
    /// The header is `Forwarded` (RFC 7239), or a list of addresses such as `X-Forwarded-For`.
    /// `proxies` is the number of proxies that a request passes. Each proxy appends the address
    /// that called it, so the client's address is that many entries from the end, regardless of
    /// what the client wrote before it.
    ///
    /// The address is unknown if a request has fewer entries, or has no address in that entry. Use
    /// this only if nobody can reach the host except through these proxies, because everybody else
    /// can write the header.
    pub const fn forwarded(header: HeaderName, proxies: NonZeroU8) -> Self {
        Self { source: Source::Header { name: header, proxies }, proxies: None }
    }

    /// Believes a [`forwarded`](Self::forwarded) header only on connections from these networks, such
    /// as `10.0.0.0/8`. The client of every other connection is its peer.
    ///
    /// This is for a host that clients can also reach without the proxies. With several proxies,
    /// only the last one connects to the host.
    pub fn only_through(mut self, proxies: Networks) -> Self {
        self.proxies = Some(proxies);
        self
    }

    /// Returns the address of the client. An IPv4-mapped IPv6 address, as a dual-stack socket
    /// reports it, becomes the IPv4 address in it.
    pub(super) fn of(&self, headers: &HeaderMap, extensions: &Extensions) -> Option<IpAddr> {
        self.as_sent(headers, extensions).map(|address| address.to_canonical())
    }

    fn as_sent(&self, headers: &HeaderMap, extensions: &Extensions) -> Option<IpAddr> {
        if let Some(proxies) = &self.proxies {
            let peer = of_connection(extensions)?.to_canonical();
            if !proxies.contains(peer) {
                return Some(peer);
            }
        }
        match &self.source {
            Source::Unknown => None,
            Source::Connection => of_connection(extensions),
            Source::Header { name, proxies } => {
                let is_forwarded = *name == FORWARDED;
                // Reads from the end, because a client can make the part before it as long as it
                // likes.
                let mut places = headers
                    .get_all(name)
                    .iter()
                    .rev()
                    .flat_map(|value| from_end(value.as_bytes(), b','));
                let place = places.nth(usize::from(proxies.get()).saturating_sub(1))?;
                if is_forwarded {
                    of_forwarded(place)
                } else {
                    of_text(str::from_utf8(place).ok()?.trim())
                }
            }
        }
    }
}

fn of_connection(extensions: &Extensions) -> Option<IpAddr> {
    let connection = extensions.get().map(|Connection(address)| *address);
    #[cfg(feature = "axum")]
    let connection = connection.or_else(|| super::axum::connection(extensions));
    connection
}

/// Splits the text at the separators, from the end.
///
/// A separator in quotes does not split (RFC 9110 section 5.6.4), because a proxy may quote text
/// from the client, such as the `Host` of its request.
fn from_end(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let mut is_quoted = false;
        let parts_here = |(at, byte): &(usize, &u8)| {
            if **byte == b'"' && !is_escaped(text, *at) {
                is_quoted = !is_quoted;
            }
            **byte == separator && !is_quoted
        };
        let at = text.iter().enumerate().rev().find(parts_here).map(|(at, _)| at);
        rest = at.and_then(|at| text.get(..at));
        text.get(at.map_or(0, |at| at.saturating_add(1))..)
    })
}

/// Returns whether an odd number of backslashes precedes this place.
fn is_escaped(text: &[u8], at: usize) -> bool {
    let before = text.iter().take(at).rev().take_while(|byte| **byte == b'\\');
    before.fold(false, |is_odd, _| !is_odd)
}

/// Parses a `Forwarded` element (RFC 7239 section 4): `for=…`, exactly once, among pairs that `;`
/// separates.
fn of_forwarded(element: &[u8]) -> Option<IpAddr> {
    let mut nodes = from_end(element, b';').filter_map(|pair| {
        let (name, node) = str::from_utf8(pair).ok()?.trim().split_once('=')?;
        name.eq_ignore_ascii_case("for").then_some(node)
    });
    let node = nodes.next()?;
    if nodes.next().is_some() {
        return None;
    }
    let quoted = node.strip_prefix('"').and_then(|node| node.strip_suffix('"'));
    of_text(quoted.unwrap_or(node))
}

/// Parses an address with or without a port (RFC 7239 section 6). `None` for an obfuscated or
/// unknown node.
fn of_text(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(address.ip());
    }
    let bracketed = text.strip_prefix('[')?.strip_suffix(']')?;
    bracketed.parse().ok().map(IpAddr::V6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn of(header: &HeaderName, proxies: u8, lines: &[&str]) -> Option<String> {
        let source = ClientAddress::forwarded(header.clone(), NonZeroU8::new(proxies).unwrap());
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header, HeaderValue::from_str(line).unwrap());
        }
        source.of(&headers, &Extensions::new()).map(|address| address.to_string())
    }

    #[test]
    fn a_header_is_read_from_the_end_by_the_number_of_proxies() {
        let header = HeaderName::from_static("x-forwarded-for");
        for (proxies, lines, expected) in [
            (1, &["192.0.2.1"][..], Some("192.0.2.1")),
            (1, &["10.0.0.1, 192.0.2.1"], Some("192.0.2.1")),
            (2, &["6.6.6.6, 10.0.0.1, 192.0.2.1"], Some("10.0.0.1")),
            (2, &["6.6.6.6", "10.0.0.1", "192.0.2.1"], Some("10.0.0.1")),
            (2, &["192.0.2.1"], None),
            (1, &[], None),
            (1, &["192.0.2.1, unknown"], None),
            (1, &["192.0.2.1,"], None),
            (1, &["192.0.2.1:4711"], Some("192.0.2.1")),
            (1, &["2001:db8::1"], Some("2001:db8::1")),
            (1, &["[2001:db8::1]"], Some("2001:db8::1")),
            (1, &["[2001:db8::1]:4711"], Some("2001:db8::1")),
            (1, &["[192.0.2.1]"], None),
            (1, &["192.0.2.1\t"], Some("192.0.2.1")),
            (1, &["::ffff:192.0.2.1"], Some("192.0.2.1")),
            (1, &["[::ffff:c000:201]:4711"], Some("192.0.2.1")),
            (255, &["192.0.2.1"], None),
        ] {
            assert_eq!(of(&header, proxies, lines).as_deref(), expected, "{proxies} {lines:?}");
        }
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_writes_it() {
        for (lines, expected) in [
            (&["for=192.0.2.1"][..], Some("192.0.2.1")),
            (&["proto=https; For=\"[2001:db8::1]:4711\";by=203.0.113.43"], Some("2001:db8::1")),
            (&["for=6.6.6.6, for=192.0.2.1"], Some("192.0.2.1")),
            (&["for=6.6.6.6", "for=192.0.2.1"], Some("192.0.2.1")),
            (&["for=6.6.6.6", "for=10.0.0.1, for=192.0.2.1"], Some("192.0.2.1")),
            (&["for=192.0.2.1", "for=unknown"], None),
            (&["for=192.0.2.1, for=unknown"], None),
            (&["for=192.0.2.1, for=_hidden"], None),
            (&["for=192.0.2.1, by=192.0.2.2"], None),
            (&["192.0.2.1"], None),
            (&["for=\"192.0.2.1"], None),
            (&["for=10.0.0.1;for=192.0.2.1"], None),
            // Text from the client that a proxy quotes, such as its `Host`, is not a part of the
            // list.
            (&["for=192.0.2.1;host=\"x,for=10.0.0.1;a=b\";proto=https"], Some("192.0.2.1")),
            (&["host=\"x;for=10.0.0.1;a=b\";for=192.0.2.1"], Some("192.0.2.1")),
            (&["host=\"x\\\",for=10.0.0.1;a=\\\"b\\\\\";for=192.0.2.1"], Some("192.0.2.1")),
            (&["for=10.0.0.1;a=\", for=192.0.2.1"], Some("192.0.2.1")),
        ] {
            assert_eq!(of(&FORWARDED, 1, lines).as_deref(), expected, "{lines:?}");
        }
        for (lines, expected) in [
            (&["for=192.0.2.1", "for=10.0.0.1"][..], Some("192.0.2.1")),
            (&["for=6.6.6.6", "for=192.0.2.1", "for=10.0.0.1"], Some("192.0.2.1")),
            (&["for=6.6.6.6, for=192.0.2.1", "for=10.0.0.1"], Some("192.0.2.1")),
            (&["for=6.6.6.6", "for=192.0.2.1, for=10.0.0.1"], Some("192.0.2.1")),
            (&["for=10.0.0.1"], None),
        ] {
            assert_eq!(of(&FORWARDED, 2, lines).as_deref(), expected, "{lines:?}");
        }
    }

    #[test]
    fn no_header_counts_unless_it_is_named() {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", HeaderValue::from_static("192.0.2.1"));
        let mut extensions = Extensions::new();
        assert_eq!(ClientAddress::connection().of(&headers, &extensions), None);
        let peer = IpAddr::from([203, 0, 113, 7]);
        extensions.insert(Connection(peer));
        assert_eq!(ClientAddress::connection().of(&headers, &extensions), Some(peer));
        assert_eq!(ClientAddress::unknown().of(&headers, &extensions), None);
    }
}
