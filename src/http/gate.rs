//! Who may do what operators do: whoever shows the token or, where there is none, whoever is on this machine and is no page.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use aws_lc_rs::{constant_time, digest};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use secrecy::ExposeSecret;
use tracing::warn;

use super::AdminConfig;
use super::api::Problem;
use super::serving::Peer;
use crate::audit::{Event, Request as Wanted};
use crate::log::Seldom;
use crate::session::Context;

/// The gate before everything on the admin listener but metrics and health.
pub struct Gate {
    listen: SocketAddr,
    token: ArcSwapOption<digest::Digest>,
}

/// Why somebody may not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Barred {
    /// Anybody could come, and there is no token to know operators by.
    NoToken,
    /// A page in an operator's browser can reach what the operator can.
    Browser,
    /// A page that is served under a name that leads here is no page of another origin.
    Host,
    /// There is a token, and it was not shown.
    Unauthorized,
}

impl Barred {
    fn problem(self) -> Problem {
        match self {
            Barred::NoToken => Problem::new(
                StatusCode::FORBIDDEN,
                "This listener can be reached from other machines, and there is no token to know operators by: set admin.token_file.",
            ),
            Barred::Browser => {
                Problem::new(StatusCode::FORBIDDEN, "Browsers may not do this: ask with a program such as curl.")
            }
            Barred::Host => Problem::new(
                StatusCode::FORBIDDEN,
                "Ask by an address of this machine: the Host header names another, and there is no admin.token_file.",
            ),
            Barred::Unauthorized => {
                Problem::new(StatusCode::UNAUTHORIZED, "Show the admin token: Authorization: Bearer TOKEN.")
            }
        }
    }
}

impl Gate {
    /// Of the listener at this address.
    pub fn new(listen: SocketAddr, config: &AdminConfig) -> Arc<Gate> {
        let gate = Gate { listen, token: ArcSwapOption::empty() };
        gate.set_token(config);
        Arc::new(gate)
    }

    /// From now on this token opens it.
    pub fn set_token(&self, config: &AdminConfig) {
        let hash = config.token.as_ref().map(|token| hash(token.expose_secret().as_bytes()));
        self.token.store(hash.map(Arc::new));
    }

    /// Whether nobody can pass: there is no token, and other machines can reach the listener.
    pub fn is_shut(&self) -> bool {
        self.token.load().is_none() && !self.is_on_loopback()
    }

    fn judge(&self, headers: &HeaderMap) -> Result<(), Barred> {
        if let Some(token) = &*self.token.load() {
            let is_right = bearer(headers).is_some_and(|shown| is_same(token, &hash(shown)));
            return if is_right { Ok(()) } else { Err(Barred::Unauthorized) };
        }
        if !self.is_on_loopback() {
            return Err(Barred::NoToken);
        }
        if headers.contains_key(header::ORIGIN) || headers.contains_key("sec-fetch-site") {
            return Err(Barred::Browser);
        }
        if !self.is_meant(headers) {
            return Err(Barred::Host);
        }
        Ok(())
    }

    fn is_on_loopback(&self) -> bool {
        is_loopback(self.listen.ip())
    }

    /// Whether the request is for an address of this machine by its own account, on whatever port: a tunnel may have another.
    fn is_meant(&self, headers: &HeaderMap) -> bool {
        let mut hosts = headers.get_all(header::HOST).iter();
        let (Some(Ok(host)), None) = (hosts.next().map(|host| host.to_str()), hosts.next()) else { return false };
        let has_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
        let name = match host.rsplit_once(':') {
            Some((name, port)) if has_port(port) && (!name.contains(':') || name.ends_with(']')) => name,
            Some(_) | None => host,
        };
        let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        name.eq_ignore_ascii_case("localhost")
            || name.parse::<IpAddr>().is_ok_and(|address| is_loopback(address) || address == self.listen.ip())
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// The token that is shown; none of several.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?.as_bytes(), values.next()) else { return None };
    let (scheme, token) = value.split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

fn hash(token: &[u8]) -> digest::Digest {
    digest::digest(&digest::SHA256, token)
}

/// Takes the same time wherever they differ.
fn is_same(one: &digest::Digest, other: &digest::Digest) -> bool {
    constant_time::verify_slices_are_equal(one.as_ref(), other.as_ref()).is_ok()
}

/// Lets through whoever may pass; the others are counted and noted.
pub async fn guard(State((gate, context)): State<(Arc<Gate>, Arc<Context>)>, request: Request, next: Next) -> Response {
    match gate.judge(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(barred) => {
            let address = request.extensions().get::<Peer>().map(|peer| peer.address);
            note(barred, &context, address);
            barred.problem().into_response()
        }
    }
}

/// In the log at most once a second, and each time in the audit log.
fn note(barred: Barred, context: &Context, address: Option<IpAddr>) {
    static LINES: Seldom = Seldom::new();
    let problem = barred.problem();
    let why = problem.detail();
    if let Some(unsaid) = LINES.pass(std::time::Instant::now()) {
        let address = address.map(tracing::field::display);
        warn!(why, address, unsaid, "an operator's request was turned away");
    }
    let (session, user, request, topic) = (None, None, Wanted::Administer, None);
    context.audit.record(&Event::Refused { session, user, address, request, topic, why });
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "a token of sixteen letters or more";

    fn gate(listen: &str, token: Option<&str>) -> Arc<Gate> {
        let config = AdminConfig { token: token.map(Into::into), ..AdminConfig::default() };
        Gate::new(listen.parse().expect("an address"), &config)
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().expect("a value"));
        }
        headers
    }

    #[test]
    fn with_a_token_whoever_shows_it_may_pass_from_anywhere() {
        for listen in ["127.0.0.1:9464", "0.0.0.0:9464", "[::]:9464", "10.0.0.1:9464"] {
            let gate = gate(listen, Some(TOKEN));
            assert!(!gate.is_shut());
            let right = format!("Bearer {TOKEN}");
            for (lines, expected) in [
                (vec![("authorization", right.as_str())], Ok(())),
                (vec![("authorization", &right.replace("Bearer", "bearer"))], Ok(())),
                (vec![("authorization", &right), ("host", "admin.example"), ("origin", "https://a.example")], Ok(())),
                (vec![("host", "127.0.0.1:9464")], Err(Barred::Unauthorized)),
                (vec![("authorization", TOKEN)], Err(Barred::Unauthorized)),
                (vec![("authorization", "Bearer")], Err(Barred::Unauthorized)),
                (vec![("authorization", "Bearer ")], Err(Barred::Unauthorized)),
                (vec![("authorization", &right[..right.len() - 1])], Err(Barred::Unauthorized)),
                (vec![("authorization", &format!("{right}x"))], Err(Barred::Unauthorized)),
                (vec![("authorization", &right.replace("Bearer", "Basic"))], Err(Barred::Unauthorized)),
                (vec![("authorization", &right), ("authorization", &right)], Err(Barred::Unauthorized)),
            ] {
                assert_eq!(gate.judge(&headers(&lines)), expected, "{listen} {lines:?}");
            }
        }
    }

    #[test]
    fn without_a_token_only_programs_on_this_machine_may_pass() {
        for (listen, lines, expected) in [
            ("127.0.0.1:9464", vec![("host", "127.0.0.1:9464")], Ok(())),
            ("127.0.0.1:9464", vec![("host", "localhost")], Ok(())),
            ("127.0.0.1:9464", vec![("host", "LOCALHOST:1")], Ok(())),
            ("127.0.0.1:9464", vec![("host", "127.9.9.9:9464")], Ok(())),
            ("[::1]:9464", vec![("host", "[::1]:9464")], Ok(())),
            ("[::1]:9464", vec![("host", "[::1]")], Ok(())),
            ("[::ffff:127.0.0.1]:9464", vec![("host", "127.0.0.1:9464")], Ok(())),
            ("127.0.0.1:9464", vec![], Err(Barred::Host)),
            ("127.0.0.1:9464", vec![("host", "attic.example:9464")], Err(Barred::Host)),
            ("127.0.0.1:9464", vec![("host", "localhost.attic.example")], Err(Barred::Host)),
            ("127.0.0.1:9464", vec![("host", "127.0.0.1.attic.example")], Err(Barred::Host)),
            ("127.0.0.1:9464", vec![("host", "127.0.0.1"), ("host", "127.0.0.1")], Err(Barred::Host)),
            ("127.0.0.1:9464", vec![("host", "10.0.0.1:9464")], Err(Barred::Host)),
            ("127.0.0.1:9464", vec![("host", "127.0.0.1:x")], Err(Barred::Host)),
            ("127.0.0.1:9464", vec![("host", "127.0.0.1"), ("origin", "null")], Err(Barred::Browser)),
            ("127.0.0.1:9464", vec![("host", "127.0.0.1"), ("sec-fetch-site", "none")], Err(Barred::Browser)),
            ("0.0.0.0:9464", vec![("host", "127.0.0.1:9464")], Err(Barred::NoToken)),
            ("[::]:9464", vec![("host", "[::1]:9464")], Err(Barred::NoToken)),
            ("10.0.0.1:9464", vec![("host", "10.0.0.1:9464")], Err(Barred::NoToken)),
        ] {
            let gate = gate(listen, None);
            assert_eq!(gate.judge(&headers(&lines)), expected, "{listen} {lines:?}");
            assert_eq!(gate.is_shut(), expected == Err(Barred::NoToken), "{listen}");
        }
    }

    #[test]
    fn a_token_can_be_changed_and_taken_away() {
        let gate = gate("127.0.0.1:1", Some(TOKEN));
        let old = headers(&[("authorization", &format!("Bearer {TOKEN}")), ("host", "localhost")]);
        assert_eq!(gate.judge(&old), Ok(()));
        let another = AdminConfig { token: Some("another token, long enough".into()), ..AdminConfig::default() };
        gate.set_token(&another);
        assert_eq!(gate.judge(&old), Err(Barred::Unauthorized));
        gate.set_token(&AdminConfig::default());
        assert_eq!(gate.judge(&old), Ok(()), "as without a token from the start");
    }
}
