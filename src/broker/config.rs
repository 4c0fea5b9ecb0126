//! The `[broker]` section.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;
use std::thread::available_parallelism;
use std::time::Duration;

use secrecy::SecretString;
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use url::{Host, Url};

use crate::access::Template;
use crate::units;

/// Which broker stands behind the gateway, and how its links are kept.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the broker is.
    pub url: BrokerUrl,
    /// Whether each session has an MQTT client of its own.
    pub upstream: Upstream,
    /// With a shared upstream, the connections that the sessions are spread over; one for every two processors where none is given.
    #[serde(deserialize_with = "units::some_count")]
    pub connections: Option<NonZeroUsize>,
    /// The name the gateway gives to the broker.
    pub username: Option<String>,
    /// The password the gateway gives to the broker, from here or from `password_file`.
    #[serde(with = "units::secret")]
    pub password: Option<SecretString>,
    /// The file that `password` was read from.
    pub password_file: Option<PathBuf>,
    /// The client identifier of a session at the broker, once clients are known by a credential.
    pub client_id: Template,
    /// The name that a session whose client is known shows to the broker, in place of the gateway's.
    pub session_username: Option<Template>,
    /// The password that goes with it.
    pub session_password: Option<Template>,
    /// The certificates, in PEM, that vouch for an `mqtts://` broker in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// The certificate chain, in PEM, that the gateway shows to an `mqtts://` broker.
    pub client_certificate_file: Option<PathBuf>,
    /// The key to that certificate, in PEM, from here or from `client_key_file`.
    #[serde(with = "units::secret")]
    pub client_key: Option<SecretString>,
    /// The file that `client_key` was read from.
    pub client_key_file: Option<PathBuf>,
    /// How long a link may be silent before it is probed: MQTT's keep alive, so whole seconds.
    #[serde(
        serialize_with = "units::seconds::serialize",
        deserialize_with = "whole_seconds::<{ u16::MAX as u64 }, _>"
    )]
    pub keep_alive: Duration,
    /// How long a connection to the broker may take, from the first packet to CONNACK.
    #[serde(with = "units::seconds")]
    pub connect_timeout: Duration,
    /// How long a publish, subscribe or unsubscribe waits for the broker's answer.
    #[serde(with = "units::seconds")]
    pub request_timeout: Duration,
    /// How long the broker keeps the session and the will of a link that was lost, in whole seconds.
    #[serde(
        serialize_with = "units::seconds::serialize",
        deserialize_with = "whole_seconds::<{ u32::MAX as u64 }, _>"
    )]
    pub grace: Duration,
    /// The largest packet taken from the broker, in bytes.
    #[serde(deserialize_with = "units::count")]
    pub max_packet: NonZeroU32,
    /// The most messages of qos 1 and 2 that the broker may send a session before they are confirmed.
    #[serde(deserialize_with = "units::count")]
    pub receive_maximum: NonZeroU16,
    /// The most publishes of a session that wait for a broker that is down, and the most subscribes and unsubscribes.
    #[serde(deserialize_with = "units::count")]
    pub max_waiting: NonZeroUsize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: BrokerUrl::default(),
            upstream: Upstream::PerSession,
            connections: None,
            username: None,
            password: None,
            password_file: None,
            client_id: Template::parse("{user}:{clientId}").expect("it is one"),
            session_username: None,
            session_password: None,
            ca_file: None,
            client_certificate_file: None,
            client_key: None,
            client_key_file: None,
            keep_alive: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(20),
            grace: Duration::from_secs(60),
            // A payload of 1 MiB, with room for the longest topic.
            max_packet: const { NonZeroU32::new((1 << 20) + (64 << 10)).unwrap() },
            // As many as may wait for a browser: a broker may reorder what it holds back over a full window.
            receive_maximum: const { NonZeroU16::new(1000).unwrap() },
            max_waiting: const { NonZeroUsize::new(1000).unwrap() },
        }
    }
}

impl Config {
    /// The connections that share the sessions. One task serves each, and the kernel works for its writes on other processors too.
    pub fn connections(&self) -> usize {
        let processors = || available_parallelism().map_or(1, NonZeroUsize::get);
        self.connections.map_or_else(|| processors().div_ceil(2), NonZeroUsize::get)
    }

    /// Judges the settings together; the error is a sentence that says what would be right.
    pub fn check(&self) -> Result<(), String> {
        self.client_id.check_client_id().map_err(|why| format!("broker.client_id is \"{}\": {why}", self.client_id))?;
        if self.session_password.is_some() && self.session_username.is_none() {
            return Err("broker.session_password needs a name: set broker.session_username".to_owned());
        }
        if self.upstream == Upstream::Shared && self.session_username.is_some() {
            return Err("broker.session_username has no use where sessions share connections: leave it out, or set \
                        broker.upstream to \"per-session\""
                .to_owned());
        }
        let shown = self.client_certificate_file.is_some();
        if shown && self.client_key.is_none() {
            return Err("broker.client_certificate_file needs its key: set broker.client_key_file".to_owned());
        }
        if !shown && self.client_key.is_some() {
            return Err("broker.client_key needs its certificate: set broker.client_certificate_file".to_owned());
        }
        // The embedded broker is asked for none of this. To a broker elsewhere, whoever names certificates means TLS.
        match self.url {
            BrokerUrl::Mqtt { tls: false, .. } | BrokerUrl::Unix { .. } if shown || self.ca_file.is_some() => {
                let setting = if shown { "client_certificate_file" } else { "ca_file" };
                Err(format!("broker.{setting} has no use without TLS: write broker.url as mqtts://…"))
            }
            BrokerUrl::Mqtt { .. } | BrokerUrl::Unix { .. } | BrokerUrl::Embedded { .. } => Ok(()),
        }
    }
}

fn whole_seconds<'de, const MAX: u64, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let duration = units::seconds::deserialize(from)?;
    if duration.subsec_nanos() == 0 && duration.as_secs() <= MAX {
        return Ok(duration);
    }
    Err(D::Error::custom(format!(
        "invalid value: {} seconds, expected whole seconds, from 1 to {MAX}",
        duration.as_secs_f64()
    )))
}

/// How sessions reach the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Upstream {
    /// Each by an MQTT client of its own: for sessions that come back to what waited for them, and brokers that judge each client.
    #[default]
    PerSession,
    /// All by a few connections: for streams that thousands of pages read.
    Shared,
}

/// Where the broker is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum BrokerUrl {
    /// In this process: `embedded`, `embedded://127.0.0.1:1884`.
    Embedded {
        /// A loopback address. Port 0 stands for any that is free.
        address: SocketAddr,
        /// Whether another free port will do when that one is taken.
        fall_back: bool,
    },
    /// Elsewhere: `mqtt://broker.example`, `mqtts://broker.example:8883`.
    Mqtt {
        /// A name or an IP address, as one resolves it: an IPv6 address has no brackets.
        host: String,
        /// The port, 1883 or with TLS 8883 where none was given.
        port: u16,
        /// Whether the link is encrypted.
        tls: bool,
    },
    /// On this machine: `unix:///run/mosquitto/mqtt.sock`.
    Unix {
        /// Of its socket, from the root on.
        path: PathBuf,
    },
}

/// Bytes that the path of a Unix socket may have, without the NUL behind it (unix(7), `sun_path`).
const MAX_SOCKET_PATH: usize = 107;

/// Why a text is no [`BrokerUrl`]. Never repeats the text, which may hold a password.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum BrokerUrlError {
    /// There is no `://`, or an unknown word before it.
    #[error(
        "no broker is reached this way: use `mqtt://HOST[:PORT]`, `mqtts://HOST[:PORT]` (TLS), `unix:///PATH`, \
         `embedded`, or `embedded://127.0.0.1:PORT`"
    )]
    UnknownScheme,
    /// `user:password@` before the host.
    #[error("a user name and password don't belong in the URL: set `username` and `password_file` of [broker] instead")]
    Credentials,
    /// What follows the scheme is no host and port.
    #[error("this is not a host with a port ({0}): use `mqtt://HOST[:PORT]`")]
    Address(#[from] url::ParseError),
    /// A path, query or fragment.
    #[error("a broker's URL ends after the port: leave out the path")]
    Path,
    /// Port 0 of a broker elsewhere.
    #[error("a broker has no port 0: leave the port out for 1883, or with TLS 8883")]
    PortZero,
    /// No path from the root on, or one that is too long.
    #[error(
        "a Unix socket has a path of up to {MAX_SOCKET_PATH} bytes, from the root on: use `unix:///run/mosquitto/mqtt.sock`"
    )]
    SocketPath,
    /// The embedded broker, where others could reach it.
    #[error("the embedded broker lets everybody in, so it listens on loopback only: use `embedded://127.0.0.1:PORT`")]
    NotLoopback,
}

impl Default for BrokerUrl {
    fn default() -> Self {
        Self::Embedded { address: (Ipv4Addr::LOCALHOST, 1883).into(), fall_back: true }
    }
}

impl FromStr for BrokerUrl {
    type Err = BrokerUrlError;

    fn from_str(text: &str) -> Result<Self, BrokerUrlError> {
        if text == "embedded" {
            return Ok(Self::default());
        }
        let (scheme, rest) = text.split_once("://").ok_or(BrokerUrlError::UnknownScheme)?;
        if scheme.eq_ignore_ascii_case("unix") {
            // As it is: a path may hold what has a meaning in other URLs.
            let is_path = rest.starts_with('/') && !rest.ends_with('/') && !rest.contains('\0');
            return if is_path && rest.len() <= MAX_SOCKET_PATH {
                Ok(Self::Unix { path: rest.into() })
            } else {
                Err(BrokerUrlError::SocketPath)
            };
        }
        if rest.contains('@') {
            return Err(BrokerUrlError::Credentials);
        }
        match scheme.to_ascii_lowercase().as_str() {
            "embedded" => {
                let (host, port) = host_and_port(text)?;
                let ip = match host {
                    Host::Domain(name) if name == "localhost" => Ipv4Addr::LOCALHOST.into(),
                    Host::Domain(_) => return Err(BrokerUrlError::NotLoopback),
                    Host::Ipv4(ip) => IpAddr::V4(ip),
                    Host::Ipv6(ip) => IpAddr::V6(ip),
                };
                if !ip.is_loopback() {
                    return Err(BrokerUrlError::NotLoopback);
                }
                Ok(Self::Embedded { address: (ip, port.unwrap_or(1883)).into(), fall_back: false })
            }
            "mqtt" => Self::elsewhere(host_and_port(text)?, 1883, false),
            "mqtts" => Self::elsewhere(host_and_port(text)?, 8883, true),
            _ => Err(BrokerUrlError::UnknownScheme),
        }
    }
}

impl BrokerUrl {
    fn elsewhere((host, port): (Host, Option<u16>), default_port: u16, tls: bool) -> Result<Self, BrokerUrlError> {
        let host = match host {
            Host::Domain(name) => name,
            Host::Ipv4(ip) => ip.to_string(),
            Host::Ipv6(ip) => ip.to_string(),
        };
        match port.unwrap_or(default_port) {
            0 => Err(BrokerUrlError::PortZero),
            port => Ok(Self::Mqtt { host, port, tls }),
        }
    }
}

fn host_and_port(text: &str) -> Result<(Host, Option<u16>), BrokerUrlError> {
    let url = Url::parse(text)?;
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err(BrokerUrlError::Path);
    }
    // The URL standard looks closely at the hosts of its own schemes only, and `mqtt` is none of them.
    let host = Host::parse(url.host_str().unwrap_or_default())?;
    Ok((host, url.port()))
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Embedded { fall_back: true, .. } => f.write_str("embedded"),
            Self::Embedded { address, fall_back: false } => write!(f, "embedded://{address}"),
            Self::Unix { path } => write!(f, "unix://{}", path.display()),
            Self::Mqtt { host, port, tls } => {
                let scheme = if *tls { "mqtts" } else { "mqtt" };
                match host.contains(':') {
                    true => write!(f, "{scheme}://[{host}]:{port}"),
                    false => write!(f, "{scheme}://{host}:{port}"),
                }
            }
        }
    }
}

impl TryFrom<String> for BrokerUrl {
    type Error = BrokerUrlError;

    fn try_from(text: String) -> Result<Self, BrokerUrlError> {
        text.parse()
    }
}

impl From<BrokerUrl> for String {
    fn from(url: BrokerUrl) -> Self {
        url.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_url_says_where_and_how() {
        let embedded = |address: &str, fall_back| BrokerUrl::Embedded { address: address.parse().unwrap(), fall_back };
        let mqtt = |host: &str, port, tls| BrokerUrl::Mqtt { host: host.to_owned(), port, tls };
        let unix = |path: &str| BrokerUrl::Unix { path: path.into() };
        for (text, expected) in [
            ("embedded", embedded("127.0.0.1:1883", true)),
            ("embedded://127.0.0.1:1884", embedded("127.0.0.1:1884", false)),
            ("embedded://localhost:1884", embedded("127.0.0.1:1884", false)),
            ("embedded://127.0.0.1", embedded("127.0.0.1:1883", false)),
            ("embedded://127.0.0.1:0", embedded("127.0.0.1:0", false)),
            ("embedded://[::1]:1884", embedded("[::1]:1884", false)),
            ("mqtt://mosquitto", mqtt("mosquitto", 1883, false)),
            ("mqtt://my_broker:1884/", mqtt("my_broker", 1884, false)),
            ("MQTTS://Broker.Example", mqtt("broker.example", 8883, true)),
            ("mqtts://10.0.0.7:443", mqtt("10.0.0.7", 443, true)),
            ("mqtt://[fd00::7]", mqtt("fd00::7", 1883, false)),
            ("mqtt://bücher.example", mqtt("xn--bcher-kva.example", 1883, false)),
            ("unix:///run/mosquitto/mqtt.sock", unix("/run/mosquitto/mqtt.sock")),
            ("UNIX:///srv/a b?c@d%20/é", unix("/srv/a b?c@d%20/é")),
            (&format!("unix:///{}", "x".repeat(106)), unix(&format!("/{}", "x".repeat(106)))),
        ] {
            let url = text.parse::<BrokerUrl>();
            assert_eq!(url.as_ref(), Ok(&expected), "{text}");
            assert_eq!(url.unwrap().to_string().parse(), Ok(expected), "{text}, written and read again");
        }
    }

    #[test]
    fn a_wrong_broker_url_is_told_what_would_be_right() {
        for (text, excerpt) in [
            ("", "use `mqtt://HOST[:PORT]`"),
            ("mosquitto:1883", "use `mqtt://HOST[:PORT]`"),
            ("ws://mosquitto:9001", "use `mqtt://HOST[:PORT]`"),
            ("tcp://mosquitto:1883", "use `mqtt://HOST[:PORT]`"),
            ("mqtt://", "host"),
            ("mqtt://:1883", "host"),
            ("mqtt://two words", "host"),
            ("mqtt://mosquitto:65536", "port"),
            ("mqtt://mosquitto:0", "no port 0"),
            ("mqtt://mosquitto/site", "leave out the path"),
            ("mqtt://mosquitto?v=5", "leave out the path"),
            ("mqtt://ann:hunter2@mosquitto", "`username` and `password_file`"),
            ("mqtt://ann:hunter/2@mosquitto", "`username` and `password_file`"),
            ("unix://mqtt.sock", "from the root on"),
            ("unix:mqtt.sock", "use `mqtt://HOST[:PORT]`"),
            ("unix:///", "from the root on"),
            ("unix:///run/", "from the root on"),
            (&format!("unix:///{}", "x".repeat(107)), "up to 107 bytes"),
            ("embedded://0.0.0.0:1883", "loopback only"),
            ("embedded://192.168.0.7:1883", "loopback only"),
            ("embedded://example.com:1883", "loopback only"),
        ] {
            let refusal = text.parse::<BrokerUrl>().expect_err(text).to_string();
            assert!(refusal.contains(excerpt), "{text}: {refusal}");
            assert!(!refusal.contains("hunter"), "{text}: {refusal}");
        }
    }

    #[test]
    fn a_client_certificate_and_its_key_come_together_and_over_tls() {
        let certificate = || Some(PathBuf::from("client.pem"));
        let key = || Some(SecretString::from("a key"));
        let config = |url: &str, client_certificate_file, client_key| Config {
            url: url.parse().unwrap(),
            client_certificate_file,
            client_key,
            ..Config::default()
        };
        for (config, excerpt) in [
            (config("mqtts://b", certificate(), None), "set broker.client_key_file"),
            (config("mqtts://b", None, key()), "set broker.client_certificate_file"),
            (config("mqtt://b", certificate(), key()), "mqtts://"),
            (Config { ca_file: certificate(), ..config("mqtt://b", None, None) }, "broker.ca_file"),
            (Config { ca_file: certificate(), ..config("unix:///b", None, None) }, "broker.ca_file"),
        ] {
            let refusal = config.check().expect_err(excerpt);
            assert!(refusal.contains(excerpt), "{refusal}");
        }
        assert_eq!(config("mqtts://b", certificate(), key()).check(), Ok(()));
        assert_eq!(config("embedded", certificate(), key()).check(), Ok(()));
    }
}
