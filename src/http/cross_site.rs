//! Checks whether a request comes from a page of the host's own site, because a page of another site
//! can make the browser send a session's cookie, or a password that it has stored.

use http::header::{HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue};

/// The most characters of a header that an error repeats.
const MOST_SHOWN: usize = 256;

/// The reason why a state-changing call of a session, or a token by HTTP Basic, was refused. The text
/// says what the host must set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CrossSiteError {
    /// The browser reports that a page of another site sent the request.
    #[error(
        "Sec-Fetch-Site is not same-origin, so a page of another site sent the request; if that page is yours, allow its origin with \
         ManagementApiBuilder::allow_origin for a session, and let the page send a token as Bearer instead of Basic"
    )]
    OtherSite {
        /// The value of `Sec-Fetch-Site`.
        site: String,
        /// The value of `Origin`, if the request has one.
        origin: Option<String>,
    },
    /// `Origin` names another host or port than those to which the request was sent.
    #[error(
        "Origin is not the Host that the request was sent to; if the page is yours, let the proxy pass the Host header on as it came, \
         or allow the page's origin with ManagementApiBuilder::allow_origin for a session, and let the page send a token as Bearer \
         instead of Basic"
    )]
    OtherOrigin {
        /// The value of `Origin`.
        origin: String,
        /// The host and the port to which the request was sent, if the request names one.
        host: Option<String>,
    },
    /// Nothing shows which page sent the request.
    #[error(
        "the request has neither Sec-Fetch-Site nor Origin; a script needs a bearer token, a proxy has to pass both headers on, and a \
         session that no browser sends by itself is declared with Actor::proven_by_header"
    )]
    NoOrigin,
    /// `Sec-Fetch-Site`, `Origin` or `Host` is in the request more than once.
    #[error(
        "Sec-Fetch-Site, Origin or Host is in the request twice; a proxy has to pass each on once, as it came"
    )]
    Repeated,
}

/// Checks that a page of this site, or of one of the listed origins, sent the request.
///
/// Browsers set `Sec-Fetch-Site` and `Origin`, and no page can set them (Fetch standard, forbidden
/// request-headers). Browsers send `Sec-Fetch-Site` only to hosts that are potentially trustworthy:
/// https, or the machine itself.
///
/// `authority` is that of the request's target, if the target has one.
pub(super) fn check(
    headers: &HeaderMap,
    authority: Option<&Authority>,
    allowed: &[HeaderValue],
) -> Result<(), CrossSiteError> {
    let site = only(headers, "sec-fetch-site")?;
    if site.is_some_and(|site| site == "same-origin") {
        return Ok(());
    }
    let origin = only(headers, ORIGIN.as_str())?;
    if origin.is_some_and(|origin| allowed.contains(origin)) {
        return Ok(());
    }
    let host = match authority {
        // HTTP/2, or the absolute form, which has precedence over the field (RFC 9112
        // section 3.2.2).
        Some(authority) => Some(authority.as_str()),
        None => only(headers, HOST.as_str())?.and_then(|host| host.to_str().ok()),
    };
    match (site, origin) {
        (Some(site), origin) => {
            Err(CrossSiteError::OtherSite { site: shown(site), origin: origin.map(shown) })
        }
        (None, None) => Err(CrossSiteError::NoOrigin),
        (None, Some(origin)) if is_of_host(origin, host) => Ok(()),
        (None, Some(origin)) => Err(CrossSiteError::OtherOrigin {
            origin: shown(origin),
            host: host.map(|host| host.chars().take(MOST_SHOWN).collect()),
        }),
    }
}

fn only<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a HeaderValue>, CrossSiteError> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() { Err(CrossSiteError::Repeated) } else { Ok(first) }
}

fn shown(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).chars().take(MOST_SHOWN).collect()
}

/// Returns whether an origin has the host and the port to which a request was sent.
///
/// A missing port is the port of the origin's scheme, because a host behind a proxy does not know
/// its own scheme.
fn is_of_host(origin: &HeaderValue, host: Option<&str>) -> bool {
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    let (Some((scheme, origin)), Some(host)) = (origin, host) else { return false };
    let default = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return false,
    };
    let with_port = |text| host_and_port(text).map(|(host, port)| (host, port.unwrap_or(default)));
    match (with_port(origin), with_port(host)) {
        (Some((origin, origin_port)), Some((host, port))) => {
            origin.eq_ignore_ascii_case(host) && origin_port == port
        }
        _ => false,
    }
}

/// Parses `host[:port]`. `None` if the text is anything else, such as one with a user name or a
/// path.
fn host_and_port(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.rsplit_once(':') {
        // The last colon is inside an IPv6 address, so there is no port.
        Some((_, after)) if after.ends_with(']') => (text, None),
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            (host, Some(port.parse().ok()?))
        }
        Some(_) => return None,
        None => (text, None),
    };
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte);
    let is_host = match inner {
        Some(address) => address.bytes().all(|byte| byte == b':' || is_plain(byte)),
        None => host.bytes().all(is_plain),
    };
    (is_host && !inner.unwrap_or(host).is_empty()).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use http::request::Parts;

    fn check(parts: &Parts, allowed: &[HeaderValue]) -> Result<(), CrossSiteError> {
        super::check(&parts.headers, parts.uri.authority(), allowed)
    }

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let request = headers
            .iter()
            .fold(Request::post(uri), |request, (name, value)| request.header(*name, *value));
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn an_origin_is_of_the_host_if_host_and_port_are_the_same() {
        let table = [
            ("http://nas.local", "nas.local", true),
            ("http://nas.local", "NAS.local", true),
            ("http://nas.local", "nas.local:80", true),
            ("http://nas.local:80", "nas.local", true),
            ("http://nas.local:8080", "nas.local:8080", true),
            ("https://nas.local", "nas.local:443", true),
            ("https://nas.local", "nas.local", true),
            ("http://[fd00::1]:8080", "[fd00::1]:8080", true),
            ("http://[fd00::1]", "[fd00::1]:80", true),
            ("http://192.0.2.1:3000", "192.0.2.1:3000", true),
            ("http://nas.local", "nas.local:443", false),
            ("https://nas.local", "nas.local:80", false),
            ("http://nas.local", "nas.local:8080", false),
            ("http://nas.local:8080", "nas.local", false),
            ("http://nas.local:8081", "nas.local:8080", false),
            ("http://evil.local", "nas.local", false),
            ("http://nas.local.evil.com", "nas.local", false),
            ("http://a.nas.local", "nas.local", false),
            ("http://nas", "nas.local", false),
            ("http://[fd00::2]", "[fd00::1]", false),
            ("http://[fd00::1]", "fd00::1", false),
            ("null", "nas.local", false),
            ("", "", false),
            ("http://", "", false),
            ("http://:80", ":80", false),
            ("nas.local", "nas.local", false),
            ("ftp://nas.local", "nas.local", false),
            ("chrome-extension://nas.local", "nas.local", false),
            ("http://user@nas.local", "user@nas.local", false),
            ("http://nas.local/", "nas.local/", false),
            ("http://nas.local:+80", "nas.local:80", false),
            ("http://nas.local:99999", "nas.local:99999", false),
            ("http://nas.local:", "nas.local", false),
            ("http://nas.local http://nas.local", "nas.local", false),
        ];
        for (origin, host, passes) in table {
            let found = check(&parts("/", &[("origin", origin), ("host", host)]), &[]);
            assert_eq!(found.is_ok(), passes, "{origin} {host} {found:?}");
            // HTTP/2 names the host in the request's target.
            let uri = format!("http://{host}/");
            if passes && uri.parse::<http::Uri>().is_ok() {
                assert_eq!(
                    check(&parts(&uri, &[("origin", origin)]), &[]),
                    Ok(()),
                    "{origin} {host}"
                );
                let other =
                    check(&parts("http://evil.local/", &[("origin", origin), ("host", host)]), &[]);
                assert!(other.is_err(), "{origin} {host}");
            }
        }
    }

    #[test]
    fn a_refusal_names_the_check_that_failed() {
        let listed = [HeaderValue::from_static("https://app.example.com")];
        let of = |headers: &[(&str, &str)]| check(&parts("/", headers), &listed);
        let host = ("host", "nas.local");
        let own = ("origin", "http://nas.local");
        let site = |value| ("sec-fetch-site", value);
        assert_eq!(of(&[host, site("same-origin")]), Ok(()));
        assert_eq!(of(&[host, own]), Ok(()));
        assert_eq!(of(&[host, site("cross-site"), ("origin", "https://app.example.com")]), Ok(()));
        assert_eq!(of(&[host]), Err(CrossSiteError::NoOrigin));
        // The browser's report has precedence over the comparison, which knows no scheme.
        for value in ["cross-site", "same-site", "none", "Same-Origin", ""] {
            let refused = of(&[host, own, site(value)]);
            assert!(
                matches!(refused, Err(CrossSiteError::OtherSite { .. })),
                "{value} {refused:?}"
            );
        }
        let refused = of(&[own]);
        assert!(
            matches!(refused, Err(CrossSiteError::OtherOrigin { host: None, .. })),
            "{refused:?}"
        );
        for twice in [host, own, site("same-origin")] {
            assert_eq!(of(&[host, own, twice, twice]), Err(CrossSiteError::Repeated), "{twice:?}");
        }
        let long = "x".repeat(10_000);
        let shown = of(&[host, ("origin", &long)]).unwrap_err();
        assert!(format!("{shown:?}").len() < 2 * MOST_SHOWN);
        for error in [CrossSiteError::NoOrigin, CrossSiteError::Repeated, shown] {
            assert!(error.to_string().contains("proxy"), "{error}");
        }
    }
}
