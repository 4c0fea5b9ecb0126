//! What a request shows to say who sends it. Of several the first of this list counts:
//!
//! 1. `Authorization: Bearer TOKEN` (RFC 6750 section 2.1) or `Authorization: Basic …` (RFC 7617);
//! 2. an offered subprotocol `bearer.TOKEN`, for pages, which can't set headers.

use axum::http::{HeaderMap, header};
use base64_simd::STANDARD;
use secrecy::SecretString;

use crate::access::Credential;
use crate::session::Presented;

/// The credential that counts, if there is any.
pub fn presented(headers: &HeaderMap, bearer: Option<SecretString>) -> Option<Presented> {
    let credential = authorization(headers).or_else(|| bearer.map(Credential::Token))?;
    Some(Presented { credential, is_ambient: false })
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

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn the_header_goes_before_the_subprotocol() {
        let shown = |authorization: Option<&str>, bearer: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(value) = authorization {
                headers.insert(header::AUTHORIZATION, value.parse().expect("a header"));
            }
            match presented(&headers, bearer.map(SecretString::from)).map(|presented| presented.credential) {
                Some(Credential::Token(token)) => format!("token {}", token.expose_secret()),
                Some(Credential::Password { user, password }) => format!("{user} {}", password.expose_secret()),
                Some(Credential::Certificate(_)) => unreachable!("headers show none"),
                None => "nothing".to_owned(),
            }
        };
        for (authorization, bearer, expected) in [
            (None, None, "nothing"),
            (Some("Bearer a"), None, "token a"),
            (Some("bearer  a "), None, "token a"),
            (None, Some("b"), "token b"),
            (Some("Bearer"), None, "token "),
            (Some("Bearer a"), Some("b"), "token a"),
            (Some("Basic YW5uYTpwOnE="), Some("b"), "anna p:q"),
            (Some("Basic ???"), None, " "),
            (Some("Digest x"), Some("b"), "token b"),
        ] {
            assert_eq!(shown(authorization, bearer), expected, "{authorization:?} {bearer:?}");
        }
    }
}
