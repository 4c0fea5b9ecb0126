//! Where somebody else is asked over HTTP.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// The URL of a server that is asked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint(Url);

impl Endpoint {
    /// What is said goes over TLS.
    pub fn is_encrypted(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// Nobody on the way can read or change what is said: it goes over TLS, or stays on this machine.
    pub fn is_private(&self) -> bool {
        self.is_encrypted()
            || match self.0.host() {
                Some(Host::Domain(name)) => name == "localhost",
                Some(Host::Ipv4(address)) => address.is_loopback(),
                Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
                None => false,
            }
    }

    /// The URL as it is asked for.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for Endpoint {
    type Err = String;

    /// A refusal never repeats the text, which may hold a password.
    fn from_str(text: &str) -> Result<Endpoint, String> {
        let url =
            Url::parse(text).map_err(|error| format!("this is no URL such as `https://id.example/path` ({error})"))?;
        if !matches!(url.scheme(), "https" | "http") {
            return Err("a server is asked over HTTP: use `https://HOST[:PORT]/PATH`".to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a user name and password don't belong in a URL, which is no secret".to_owned());
        }
        if url.fragment().is_some() {
            return Err("a server never sees what follows `#`: leave it out of the URL".to_owned());
        }
        Ok(Endpoint(url))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl TryFrom<String> for Endpoint {
    type Error = String;

    fn try_from(text: String) -> Result<Endpoint, String> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(Endpoint(url): Endpoint) -> String {
        url.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_on_the_machine_or_goes_over_tls_is_private() {
        for (text, is_private) in [
            ("https://id.example/keys", true),
            ("HTTPS://ID.example", true),
            ("http://127.0.0.1:9000/auth", true),
            ("http://127.9.9.9/", true),
            ("http://[::1]:9000/", true),
            ("http://[::ffff:127.0.0.1]/", true),
            ("http://localhost:9000/", true),
            ("http://auth:9000/", false),
            ("http://10.0.0.1/", false),
            ("http://localhost.example/", false),
            ("http://127.0.0.1.example/", false),
            ("http://0.0.0.0/", false),
        ] {
            let endpoint = text.parse::<Endpoint>().expect(text);
            assert_eq!(endpoint.is_private(), is_private, "{text}");
            assert_eq!(String::from(endpoint.clone()).parse(), Ok(endpoint), "{text}, written and read again");
        }
    }

    #[test]
    fn a_url_that_cannot_be_asked_is_refused_and_not_repeated() {
        for (text, excerpt) in [
            ("", "such as `https://id.example/path`"),
            ("id.example/hunter2", "such as `https://id.example/path`"),
            ("https://", "such as `https://id.example/path`"),
            ("ftp://id.example/hunter2", "over HTTP"),
            ("file:///hunter2", "over HTTP"),
            ("https://ann:hunter2@id.example/", "don't belong in a URL"),
            ("https://hunter2@id.example/", "don't belong in a URL"),
            ("https://id.example/#hunter2", "leave it out"),
        ] {
            let refusal = text.parse::<Endpoint>().expect_err(text);
            assert!(refusal.contains(excerpt), "{text}: {refusal}");
            assert!(!refusal.contains("hunter"), "{text}: {refusal}");
        }
    }
}
