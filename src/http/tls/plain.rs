//! What clients get that come without TLS where there is TLS.

use std::future::ready;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::header::{self, HeaderValue};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use super::Tls;
use super::config::PlainHttp;

/// The routes, all of which say the same. The connection ends with the answer.
pub fn unencrypted(tls: Arc<Tls>) -> Router {
    Router::new().fallback(move |request: Request| {
        let mut response = answer(tls.in_force.load().plain_http, request.uri(), request.headers());
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        ready(response)
    })
}

fn answer(policy: PlainHttp, uri: &Uri, headers: &HeaderMap) -> Response {
    let refused = |text: &'static str| (StatusCode::BAD_REQUEST, text).into_response();
    match policy {
        PlainHttp::Refuse => refused("This port speaks TLS: use https:// or wss://.\n"),
        PlainHttp::Redirect => match location(uri, headers) {
            Some(location) => (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, location)]).into_response(),
            None => {
                refused("This port speaks TLS, and the request does not say at which host: use https:// or wss://.\n")
            }
        },
    }
}

/// The same address with `https`, the port included: it is this one, or the one that leads here.
fn location(uri: &Uri, headers: &HeaderMap) -> Option<HeaderValue> {
    let host = host(uri, headers).filter(is_plain)?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    if path.starts_with('/') { HeaderValue::try_from(format!("https://{host}{path}")).ok() } else { None }
}

/// The host that is asked for: of the request's target where it has one, else of the one `Host` (RFC 9112 section 3.2).
fn host(uri: &Uri, headers: &HeaderMap) -> Option<Authority> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (uri.authority(), hosts.next(), hosts.next()) {
        (Some(target), _, None) => Some(target.clone()),
        (None, Some(host), None) => Authority::try_from(host.as_bytes()).ok(),
        (_, _, _) => None,
    }
}

/// Nothing but a name or an IP address, and perhaps a port: whatever reads the answer finds this host in it and no other.
fn is_plain(authority: &Authority) -> bool {
    let is_of_a_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    let (host, port) = (authority.host(), authority.port_u16());
    let is_whole = match port {
        Some(port) => authority.as_str() == format!("{host}:{port}"),
        None => authority.as_str() == host,
    };
    is_whole && !host.is_empty() && host.bytes().all(is_of_a_host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location_of(target: &str, hosts: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, HeaderValue::from_bytes(host.as_bytes()).expect("a header's value"));
        }
        let location = location(&target.parse().expect("a target"), &headers);
        location.map(|location| location.to_str().expect("text").to_owned())
    }

    #[test]
    fn a_redirect_leads_to_the_same_address_with_https() {
        for (target, host, expected) in [
            ("/", "gateway.example", "https://gateway.example/"),
            ("/ws?a=1&b=%20", "gateway.example:8080", "https://gateway.example:8080/ws?a=1&b=%20"),
            ("/", "127.0.0.1:1", "https://127.0.0.1:1/"),
            ("/", "[::1]:8080", "https://[::1]:8080/"),
            ("/", "[fd00::7]", "https://[fd00::7]/"),
            ("/", "under_score", "https://under_score/"),
            ("//elsewhere.example/", "gateway.example", "https://gateway.example//elsewhere.example/"),
            ("http://gateway.example:1/a", "other.example", "https://gateway.example:1/a"),
        ] {
            assert_eq!(location_of(target, &[host]).as_deref(), Some(expected), "{target} of {host}");
        }
    }

    #[test]
    fn what_names_no_host_is_not_redirected() {
        for hosts in [
            &[][..],
            &[""],
            &["a", "b"],
            &["a", "a"],
            &["ann@a"],
            &["ann:secret@a"],
            &["a/b"],
            &["a\\b"],
            &["a b"],
            &["a,b"],
            &["a?b"],
            &["a#b"],
            &["a%2fb"],
            &["a:port"],
            &["a:65536"],
            &["a:"],
            &["a:1:2"],
            &[":80"],
            &["[::1"],
            &["b\u{fc}cher.example"],
            &["a\tb"],
        ] {
            assert_eq!(location_of("/", hosts), None, "{hosts:?}");
        }
        assert_eq!(location_of("*", &["a.example"]), None, "no path");
    }
}
