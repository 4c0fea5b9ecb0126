//! The `[tls]` section.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::de::{Deserializer, Error, Unexpected, Visitor};
use serde::{Deserialize, Serialize};

use crate::units;

/// Whether browsers come by TLS, and who has to show a certificate. There is TLS where there is a certificate.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The gateway's certificate chain, in PEM, its own certificate first.
    pub certificate_file: Option<PathBuf>,
    /// The key to that certificate, in PEM, from here or from `key_file`.
    #[serde(with = "units::secret")]
    pub key: Option<SecretString>,
    /// The file that `key` was read from.
    pub key_file: Option<PathBuf>,
    /// Whether clients are asked for a certificate.
    pub client_certificates: ClientCertificates,
    /// The certificates, in PEM, that vouch for those of clients.
    pub client_ca_file: Option<PathBuf>,
    /// Lists of revoked certificates, in PEM: one of each authority in a client's chain, and none of them out of date.
    pub crl_file: Option<PathBuf>,
    /// What becomes of clients that come without TLS.
    pub plain_http: PlainHttp,
    /// How long a client may take from the connection to the end of the handshake.
    #[serde(with = "units::seconds")]
    pub handshake_timeout: Duration,
    /// For how many seconds browsers remember that they may come by TLS alone (`Strict-Transport-Security`); with 0 they forget it.
    #[serde(deserialize_with = "whole_seconds")]
    pub hsts_max_age: u32,
    /// Whether operators come by TLS too.
    pub admin: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            certificate_file: None,
            key: None,
            key_file: None,
            client_certificates: ClientCertificates::None,
            client_ca_file: None,
            crl_file: None,
            plain_http: PlainHttp::Redirect,
            handshake_timeout: Duration::from_secs(10),
            // A year.
            hsts_max_age: 365 * 24 * 60 * 60,
            admin: false,
        }
    }
}

impl Config {
    /// Whether clients are asked for certificates.
    pub fn asks_for_certificates(&self) -> bool {
        self.client_certificates != ClientCertificates::None
    }

    /// Whether there is TLS at all.
    pub fn is_on(&self) -> bool {
        self.certificate_file.is_some()
    }

    /// Judges the settings together; the error is a sentence that says what would be right.
    pub fn check(&self) -> Result<(), String> {
        match (self.is_on(), self.key.is_some()) {
            (true, false) => return Err("tls.certificate_file needs its key: set tls.key_file".to_owned()),
            (false, true) => return Err("tls.key needs its certificate: set tls.certificate_file".to_owned()),
            (true, true) | (false, false) => {}
        }
        let asks = self.asks_for_certificates();
        let of_clients = [("client_ca_file", self.client_ca_file.is_some()), ("crl_file", self.crl_file.is_some())];
        let of_tls = of_clients.into_iter().chain([("client_certificates", asks), ("admin", self.admin)]);
        if let Some(setting) = first_given(of_tls).filter(|_| !self.is_on()) {
            return Err(format!("tls.{setting} has no use without TLS: set tls.certificate_file and tls.key_file"));
        }
        if asks && self.client_ca_file.is_none() {
            return Err("tls.client_certificates needs whom to believe: set tls.client_ca_file".to_owned());
        }
        if let Some(setting) = first_given(of_clients).filter(|_| !asks) {
            return Err(format!(
                "tls.{setting} has no use while no client is asked for a certificate: \
                 set tls.client_certificates to \"optional\" or \"required\""
            ));
        }
        Ok(())
    }

    /// What is in force after `new` was read, as far as a running gateway can change: a listener keeps speaking TLS, or none.
    pub fn replaced_by(&self, new: Config) -> Config {
        if self.is_on() == new.is_on() { Config { admin: self.admin, ..new } } else { self.clone() }
    }

    /// Every file that is watched.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.certificate_file, &self.key_file, &self.client_ca_file, &self.crl_file].into_iter().flatten()
    }
}

/// Whether clients are asked for a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientCertificates {
    /// They are not.
    #[default]
    None,
    /// They are, and come in without one too: for pages and machines at one address.
    Optional,
    /// They are, and don't come in without one.
    Required,
}

/// What becomes of clients that come without TLS, where there is TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlainHttp {
    /// They are told the same address with `https`: for people, who type no scheme.
    #[default]
    Redirect,
    /// They are refused: for programs, whose mistake is found sooner.
    Refuse,
}

fn first_given(settings: impl IntoIterator<Item = (&'static str, bool)>) -> Option<&'static str> {
    settings.into_iter().find(|(_, is_given)| *is_given).map(|(setting, _)| setting)
}

fn whole_seconds<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    from.deserialize_any(WholeSeconds)
}

struct WholeSeconds;

impl Visitor<'_> for WholeSeconds {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "whole seconds, from 0 to {}", u32::MAX)
    }

    fn visit_i64<E: Error>(self, seconds: i64) -> Result<u32, E> {
        u32::try_from(seconds).map_err(|_| E::invalid_value(Unexpected::Signed(seconds), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(change: impl FnOnce(&mut Config)) -> Config {
        let mut config = Config {
            certificate_file: Some(PathBuf::from("certificate.pem")),
            key: Some(SecretString::from("a key")),
            ..Config::default()
        };
        change(&mut config);
        config
    }

    #[test]
    fn settings_that_need_each_other_come_together() {
        let file = || Some(PathBuf::from("file.pem"));
        for (config, excerpt) in [
            (config(|it| it.key = None), "set tls.key_file"),
            (config(|it| it.certificate_file = None), "set tls.certificate_file"),
            (Config { client_ca_file: file(), ..Config::default() }, "tls.client_ca_file has no use without TLS"),
            (Config { crl_file: file(), ..Config::default() }, "tls.crl_file has no use without TLS"),
            (Config { admin: true, ..Config::default() }, "tls.admin has no use without TLS"),
            (
                Config { client_certificates: ClientCertificates::Optional, ..Config::default() },
                "tls.client_certificates has no use without TLS",
            ),
            (config(|it| it.client_certificates = ClientCertificates::Required), "set tls.client_ca_file"),
            (config(|it| it.client_certificates = ClientCertificates::Optional), "set tls.client_ca_file"),
            (config(|it| it.client_ca_file = file()), "set tls.client_certificates"),
            (config(|it| it.crl_file = file()), "tls.crl_file has no use while no client"),
        ] {
            let refusal = config.check().expect_err(excerpt);
            assert!(refusal.contains(excerpt), "{refusal}");
        }
        let with_clients = config(|it| {
            it.client_certificates = ClientCertificates::Optional;
            it.client_ca_file = file();
            it.crl_file = file();
        });
        for config in [Config::default(), config(|_| {}), config(|it| it.admin = true), with_clients] {
            assert_eq!(config.check(), Ok(()), "{config:?}");
        }
    }

    #[test]
    fn browsers_remember_tls_for_whole_seconds() {
        let read = |value: &str| whole_seconds(value.parse::<toml::Value>().expect("TOML"));
        for (written, expected) in [("0", 0), ("31_536_000", 31_536_000), ("4294967295", u32::MAX)] {
            assert_eq!(read(written), Ok(expected));
        }
        for wrong in ["-1", "4294967296", "1.5", "\"a year\""] {
            let refusal = read(wrong).expect_err(wrong).to_string();
            assert!(refusal.contains("whole seconds, from 0 to 4294967295"), "{refusal}");
        }
    }

    #[test]
    fn a_running_gateway_takes_up_all_but_whether_there_is_tls() {
        let on = config(|_| {});
        let other = config(|it| {
            it.certificate_file = Some(PathBuf::from("other.pem"));
            it.handshake_timeout = Duration::from_secs(3);
            it.admin = true;
        });
        let next = on.replaced_by(other.clone());
        assert_eq!(
            (next.certificate_file.clone(), next.handshake_timeout),
            (other.certificate_file.clone(), Duration::from_secs(3))
        );
        assert!(!next.admin);
        assert!(on.replaced_by(Config::default()).is_on());
        assert!(!Config::default().replaced_by(other).is_on());
    }
}
