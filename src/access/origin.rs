//! Whose page asks: what the `Origin` header of a WebSocket (RFC 6454 section 7) says against the gateway's own host and a list.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use url::{Origin as UrlOrigin, Url};

/// An origin: scheme, host and port, as a browser writes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Origin(String);

/// Why a text is no origin. Never repeats the text, which may hold a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no origin: write scheme and host, and the port where it is not the usual one, as in \"https://app.example\""
)]
pub struct OriginError;

/// What is known of the page that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// There is none: a program that is no browser asks.
    None,
    /// It came from the gateway itself.
    Own,
    /// Its origin is in the list.
    Listed,
    /// Any other, and whatever can't be read.
    Foreign,
}

impl Page {
    /// Which it is, by the `Origin` headers of a request to this `Host`, and whether that came by TLS.
    pub fn of<'a>(
        origins: impl IntoIterator<Item = &'a [u8]>,
        host: Option<&str>,
        is_secure: bool,
        listed: &[Origin],
    ) -> Page {
        let mut origins = origins.into_iter();
        let origin = match (origins.next(), origins.next()) {
            (None, _) => return Page::None,
            (Some(origin), None) => origin,
            // Browsers send one.
            (Some(_), Some(_)) => return Page::Foreign,
        };
        let Some(origin) = std::str::from_utf8(origin).ok().and_then(|text| text.parse::<Origin>().ok()) else {
            return Page::Foreign;
        };
        if listed.contains(&origin) {
            Page::Listed
        } else if host.is_some_and(|host| origin.is_at(host, is_secure)) {
            Page::Own
        } else {
            Page::Foreign
        }
    }

    /// What a browser shows by itself counts: its user asked for this page, and not only some page.
    pub fn is_trusted(self) -> bool {
        match self {
            Page::Own | Page::Listed => true,
            Page::None | Page::Foreign => false,
        }
    }
}

impl Origin {
    /// Whether a page of this origin came from that host. Where the gateway speaks TLS it sends no page without: such a one is
    /// whoever's stands on the way. Where it speaks none, a proxy may do so for it.
    fn is_at(&self, host: &str, is_secure: bool) -> bool {
        let schemes: &[&str] = if is_secure { &["https"] } else { &["http", "https"] };
        schemes.iter().any(|scheme| format!("{scheme}://{host}").parse::<Origin>().is_ok_and(|own| own == *self))
    }
}

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Origin, OriginError> {
        let url = Url::parse(text).map_err(|_| OriginError)?;
        let is_bare = url.username().is_empty()
            && url.password().is_none()
            && url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && !text.ends_with('/');
        match (url.scheme(), url.origin()) {
            ("http" | "https", origin @ UrlOrigin::Tuple(..)) if is_bare => Ok(Origin(origin.ascii_serialization())),
            _ => Err(OriginError),
        }
    }
}

impl TryFrom<String> for Origin {
    type Error = OriginError;

    fn try_from(text: String) -> Result<Origin, OriginError> {
        text.parse()
    }
}

impl From<Origin> for String {
    fn from(origin: Origin) -> String {
        origin.0
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_known_by_its_origin() {
        let listed = ["https://app.example", "http://127.0.0.1:3000"].map(|text| text.parse().expect("an origin"));
        for (origins, host, expected) in [
            (&[][..], "gw.example", Page::None),
            (&["https://app.example"], "gw.example", Page::Listed),
            (&["HTTPS://APP.EXAMPLE"], "gw.example", Page::Listed),
            (&["https://app.example:443"], "gw.example", Page::Listed),
            (&["http://app.example"], "gw.example", Page::Foreign),
            (&["https://app.example:8443"], "gw.example", Page::Foreign),
            (&["https://app.example.evil.example"], "gw.example", Page::Foreign),
            (&["https://evil-app.example"], "gw.example", Page::Foreign),
            (&["https://gw.example"], "gw.example", Page::Own),
            (&["http://gw.example"], "gw.example", Page::Own),
            (&["http://gw.example:8080"], "gw.example:8080", Page::Own),
            (&["http://gw.example:8080"], "gw.example", Page::Foreign),
            (&["http://127.0.0.1:8080"], "127.0.0.1:8080", Page::Own),
            (&["http://localhost:8080"], "127.0.0.1:8080", Page::Foreign),
            (&["http://127.0.0.1:3000"], "127.0.0.1:8080", Page::Listed),
            (&["http://[::1]:8080"], "[::1]:8080", Page::Own),
            (&["null"], "gw.example", Page::Foreign),
            (&[""], "gw.example", Page::Foreign),
            (&["https://gw.example/"], "gw.example", Page::Foreign),
            (&["https://gw.example@evil.example"], "gw.example", Page::Foreign),
            (&["file://"], "gw.example", Page::Foreign),
            (&["https://app.example", "https://app.example"], "gw.example", Page::Foreign),
            (&["https://app.example https://evil.example"], "gw.example", Page::Foreign),
        ] {
            let origins = origins.iter().map(|origin| origin.as_bytes());
            let page = Page::of(origins.collect::<Vec<_>>(), Some(host), false, &listed);
            assert_eq!(page, expected, "at {host}");
        }
        let own = || ["http://gw.example".as_bytes()];
        assert_eq!(Page::of(own(), None, false, &listed), Page::Foreign, "without a Host nothing is the gateway's own");
        assert_eq!(Page::of([&b"\xff\xfe"[..]], Some("gw.example"), false, &[]), Page::Foreign);
        for (page, expected) in [(Page::None, false), (Page::Own, true), (Page::Listed, true), (Page::Foreign, false)] {
            assert_eq!(page.is_trusted(), expected, "{page:?}");
        }
    }

    #[test]
    fn a_gateway_that_speaks_tls_has_no_pages_without() {
        let listed = ["http://app.example".parse().expect("an origin")];
        for (origin, host, expected) in [
            ("https://gw.example", "gw.example", Page::Own),
            ("https://gw.example:8443", "gw.example:8443", Page::Own),
            ("http://gw.example", "gw.example", Page::Foreign),
            ("http://gw.example:8443", "gw.example:8443", Page::Foreign),
            ("http://gw.example:443", "gw.example", Page::Foreign),
            ("http://app.example", "gw.example", Page::Listed),
        ] {
            assert_eq!(Page::of([origin.as_bytes()], Some(host), true, &listed), expected, "{origin} at {host}");
        }
    }

    #[test]
    fn a_slip_in_a_list_of_origins_is_told() {
        for slip in [
            "app.example",
            "*",
            "null",
            "https://app.example/",
            "https://app.example/path",
            "ws://app.example",
            "https://",
            "",
        ] {
            let error = slip.parse::<Origin>().expect_err(slip).to_string();
            assert!(error.contains("as in \"https://app.example\""), "{slip}: {error}");
        }
    }
}
