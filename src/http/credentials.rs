//! What a request shows to say who sends it. Of several the first of this list counts, and the others are not looked at:
//!
//! 1. `Authorization: Bearer TOKEN` (RFC 6750 section 2.1) or `Authorization: Basic …` (RFC 7617);
//! 2. an offered subprotocol `bearer.TOKEN`, for pages, which can't set headers;
//! 3. `?token=TOKEN`, where `auth.query_token` says so;
//! 4. the cookie that `auth.cookie` names, where the page is trusted;
//! 5. a TLS client certificate, where `[auth.certificate]` is there, and no page that is foreign asks.
//!
//! The last two a browser shows by itself, whichever page asks: without a look at the page any other could ask as its user.

use axum::http::{HeaderMap, header};
use base64_simd::STANDARD;
use secrecy::SecretString;
use url::form_urlencoded;

use super::tls::PeerCertificate;
use crate::access::{Credential, Page};
use crate::session::{Doors, Presented};

/// What came with a request.
pub struct Shown<'a> {
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// The token of an offered subprotocol.
    pub bearer: Option<SecretString>,
    /// What stands behind the path.
    pub query: Option<&'a str>,
    /// The certificate of the connection.
    pub certificate: Option<&'a PeerCertificate>,
    /// Whose page asks.
    pub page: Page,
}

impl Shown<'_> {
    /// The credential that counts, if there is any.
    pub fn credential(self, doors: &Doors) -> Option<Presented> {
        let explicit = authorization(self.headers)
            .or_else(|| self.bearer.clone().map(Credential::Token))
            .or_else(|| query_token(self.query.filter(|_| doors.query_token)?).map(Credential::Token));
        if let Some(credential) = explicit {
            return Some(Presented { credential, is_ambient: false });
        }
        let ambient = self.cookie(doors).map(Credential::Token).or_else(|| self.certificate(doors))?;
        Some(Presented { credential: ambient, is_ambient: true })
    }

    fn cookie(&self, doors: &Doors) -> Option<SecretString> {
        let name = doors.cookie.as_deref().filter(|_| self.page.is_trusted())?;
        cookie(self.headers, name)
    }

    fn certificate(&self, doors: &Doors) -> Option<Credential> {
        let is_asked = doors.certificate && self.page != Page::Foreign;
        let certificate = self.certificate.filter(|_| is_asked)?;
        Some(Credential::Certificate(certificate.own().to_vec()))
    }
}

/// What the `Authorization` header shows. One that can't be read is a credential too: a bad one.
fn authorization(headers: &HeaderMap) -> Option<Credential> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, rest) = value.split_at(value.iter().position(|byte| *byte == b' ').unwrap_or(value.len()));
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(Credential::Token(String::from_utf8_lossy(rest).into_owned().into()));
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let decoded = STANDARD.decode_to_vec(rest).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    let (user, password) = decoded.split_once(':').unwrap_or((&decoded, ""));
    Some(Credential::Password { user: user.to_owned(), password: password.into() })
}

/// The first `token` of a query.
fn query_token(query: &str) -> Option<SecretString> {
    form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == "token")
        .map(|(_, value)| value.into_owned().into())
}

/// The value of a cookie (RFC 6265 section 5.4): the first of that name.
fn cookie(headers: &HeaderMap, name: &str) -> Option<SecretString> {
    let values = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = values.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.find(|(other, _)| *other == name)?;
    let bare = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    Some(bare.into())
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn doors() -> Doors {
        Doors { cookie: Some("sid".to_owned()), query_token: true, ..Doors::default() }
    }

    /// What counts of these headers, this subprotocol and this query.
    fn shown(headers: &[(&str, &str)], bearer: Option<&str>, query: Option<&str>, page: Page, doors: &Doors) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = axum::http::HeaderName::try_from(*name).expect("a name");
            map.append(name, value.parse().expect("a value"));
        }
        let shown = Shown { headers: &map, bearer: bearer.map(SecretString::from), query, certificate: None, page };
        match shown.credential(doors) {
            Some(Presented { credential: Credential::Token(token), is_ambient }) => {
                format!("{}{}", if is_ambient { "ambient " } else { "" }, token.expose_secret())
            }
            Some(Presented { credential: Credential::Password { user, password }, .. }) => {
                format!("{user} {}", password.expose_secret())
            }
            Some(Presented { credential: Credential::Certificate(_), .. }) => unreachable!("none is shown"),
            None => "nothing".to_owned(),
        }
    }

    #[test]
    fn of_several_credentials_the_first_of_the_list_counts() {
        let [header, cookie] = [("authorization", "Bearer a"), ("cookie", "sid=d")];
        for (headers, bearer, query, expected) in [
            (&[][..], None, None, "nothing"),
            (&[header, cookie], Some("b"), Some("token=c"), "a"),
            (&[cookie], Some("b"), Some("token=c"), "b"),
            (&[cookie], None, Some("token=c"), "c"),
            (&[cookie], None, Some("other=c"), "ambient d"),
            (&[("authorization", "bearer  a ")], None, None, "a"),
            (&[("authorization", "Bearer")], Some("b"), None, ""),
            (&[("authorization", "Basic YW5uYTpwOnE=")], Some("b"), None, "anna p:q"),
            (&[("authorization", "Basic ???")], Some("b"), None, " "),
            (&[("authorization", "Digest x")], Some("b"), None, "b"),
        ] {
            assert_eq!(
                shown(headers, bearer, query, Page::Own, &doors()),
                expected,
                "{headers:?} {bearer:?} {query:?}"
            );
        }
    }

    #[test]
    fn a_cookie_counts_for_pages_that_are_trusted_and_by_its_whole_name() {
        for (cookies, expected) in [
            (&["sid=x"][..], "ambient x"),
            (&["a=1; sid=x; sid=y"], "ambient x"),
            (&["a=1", "sid=x"], "ambient x"),
            (&["sid=\"x\""], "ambient x"),
            (&["sid=x=y"], "ambient x=y"),
            (&["xsid=x; sid2=y; SID=z"], "nothing"),
            (&["sid"], "nothing"),
        ] {
            let headers: Vec<_> = cookies.iter().map(|value| ("cookie", *value)).collect();
            for page in [Page::Own, Page::Listed] {
                assert_eq!(shown(&headers, None, None, page, &doors()), expected, "{cookies:?}");
            }
            for page in [Page::Foreign, Page::None] {
                assert_eq!(shown(&headers, None, None, page, &doors()), "nothing", "{cookies:?} {page:?}");
            }
            assert_eq!(shown(&headers, None, None, Page::Own, &Doors::default()), "nothing", "no cookie is asked for");
        }
    }

    #[test]
    fn a_token_in_the_query_counts_where_that_is_wanted() {
        for (query, expected) in [
            ("token=a%2Eb", "a.b"),
            ("x=1&token=t&token=u", "t"),
            ("token=", ""),
            ("xtoken=t", "nothing"),
            ("", "nothing"),
        ] {
            assert_eq!(shown(&[], None, Some(query), Page::Foreign, &doors()), expected, "{query}");
            assert_eq!(shown(&[], None, Some(query), Page::Own, &Doors::default()), "nothing", "{query}");
        }
    }
}
