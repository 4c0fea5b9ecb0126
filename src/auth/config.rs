//! The `[auth]` section: who may come in, and how that is shown.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::endpoint::Endpoint;
use super::jwt::Algorithm;
use super::{passwords, tokens};
use crate::access::identity::{MAX_NAME, is_name};
use crate::units;

/// Who may open a session, and how that is shown. What is not set up is no way in.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether a session may come without a credential; where nothing is given, exactly while there is no other way in.
    pub anonymous: Option<bool>,
    /// The roles of anonymous sessions.
    pub anonymous_roles: Vec<String>,
    /// The name of a cookie that may hold a token.
    pub cookie: Option<String>,
    /// Whether a token is taken from the query of the WebSocket's URL.
    pub query_token: bool,
    /// Whether a subscription that is allowed in part is made, and brings that part.
    pub narrow: bool,
    /// The longest token, and the longest password, in bytes; a longer one is refused unread.
    #[serde(deserialize_with = "units::count")]
    pub max_token: NonZeroUsize,
    /// The most passwords that are checked at a time; as many as there are processors where none is given.
    #[serde(deserialize_with = "units::some_count")]
    pub max_password_checks: Option<NonZeroUsize>,
    /// Where revocations are kept over a restart; in memory only where none is given.
    pub revocations: Option<PathBuf>,
    /// JSON Web Tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<Jwt>,
    /// TLS client certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
    /// An endpoint that is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook: Option<Hook>,
    /// Static tokens, each by its name, which is its token id.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tokens: BTreeMap<String, Token>,
    /// Users with a password, each by its name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub users: BTreeMap<String, User>,
}

/// JSON Web Tokens (RFC 7519), and whom to believe them.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Jwt {
    /// The algorithms that tokens are signed with. What a token says of itself never adds one.
    pub algorithms: Vec<Algorithm>,
    /// The secret that HS256, HS384 and HS512 share with the issuer, from here or from `secret_file`.
    #[serde(with = "units::secret")]
    pub secret: Option<SecretString>,
    /// The file that `secret` was read from.
    pub secret_file: Option<PathBuf>,
    /// The public keys of the issuer, in PEM: as such, or in certificates.
    pub public_key_file: Option<PathBuf>,
    /// Where the issuer publishes its keys, as a JSON Web Key Set (RFC 7517).
    pub jwks_url: Option<Endpoint>,
    /// Whether keys may come over http:// from another machine.
    pub jwks_insecure: bool,
    /// The certificates, in PEM, that vouch for that server in place of the system's.
    pub jwks_ca_file: Option<PathBuf>,
    /// How often the keys are fetched.
    #[serde(with = "units::seconds")]
    pub jwks_refresh: Duration,
    /// The least time between two fetches, however many tokens name a key that is not known.
    #[serde(with = "units::seconds")]
    pub jwks_min_interval: Duration,
    /// How long a fetch may take.
    #[serde(with = "units::seconds")]
    pub jwks_timeout: Duration,
    /// Whom a token is to be for: one of these.
    #[serde(deserialize_with = "texts")]
    pub audience: Vec<String>,
    /// Who is to have issued a token: one of these, or anybody with the keys.
    #[serde(deserialize_with = "texts")]
    pub issuer: Vec<String>,
    /// The claim that names the user.
    pub user_claim: String,
    /// The claim that lists roles.
    pub role_claim: String,
    /// The claim that lists groups.
    pub group_claim: String,
    /// How far the issuer's clock may be off.
    #[serde(with = "seconds_or_none")]
    pub leeway: Duration,
    /// How long a token may still be good.
    #[serde(with = "units::some_seconds")]
    pub max_lifetime: Option<Duration>,
    /// Whether a token without `exp` is refused.
    pub require_expiry: bool,
}

/// A static token: whoever shows it is that user.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Token {
    /// The hash of the token, as `tidegate hash token` prints it.
    #[serde(with = "units::secret")]
    pub hash: Option<SecretString>,
    /// The user; the token's name where none is given.
    pub user: Option<String>,
    /// The roles of that user.
    pub roles: Vec<String>,
    /// The groups of that user.
    pub groups: Vec<String>,
    /// Unix seconds when the token ends.
    pub expires: Option<u64>,
    /// What else is known of that user.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<String, Value>,
}

/// A user with a password.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct User {
    /// The hash of the password, as `tidegate hash password` prints it: a PHC string of Argon2.
    #[serde(with = "units::secret")]
    pub hash: Option<SecretString>,
    /// The roles of the user.
    pub roles: Vec<String>,
    /// The groups of the user.
    pub groups: Vec<String>,
    /// What else is known of the user.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<String, Value>,
}

/// TLS client certificates, which the handshake has checked.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Certificate {
    /// Which of its names is the user.
    pub user: UserName,
    /// The roles of all who come with a certificate.
    pub roles: Vec<String>,
    /// The groups of all who come with a certificate.
    pub groups: Vec<String>,
}

/// Which name of a certificate is the user. There must be exactly one of the kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UserName {
    /// The common name of its subject.
    #[default]
    Cn,
    /// A DNS name.
    SanDns,
    /// An e-mail address.
    SanEmail,
    /// A URI, such as a SPIFFE ID.
    SanUri,
}

/// An endpoint of your own that says who somebody is.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hook {
    /// Where credentials are posted to.
    pub url: Option<Endpoint>,
    /// Whether credentials may go over http:// to another machine.
    pub insecure: bool,
    /// The certificates, in PEM, that vouch for that server in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// What the gateway shows to the endpoint, as a bearer token, from here or from `secret_file`.
    #[serde(with = "units::secret")]
    pub secret: Option<SecretString>,
    /// The file that `secret` was read from.
    pub secret_file: Option<PathBuf>,
    /// How long an answer may take.
    #[serde(with = "units::seconds")]
    pub timeout: Duration,
    /// How long a yes is remembered; a no is for three seconds of it at most.
    #[serde(with = "seconds_or_none")]
    pub cache: Duration,
    /// The most answers that are remembered.
    #[serde(deserialize_with = "units::count")]
    pub max_cached: NonZeroUsize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            anonymous: None,
            anonymous_roles: Vec::new(),
            cookie: None,
            query_token: false,
            narrow: false,
            max_token: const { NonZeroUsize::new(8192).unwrap() },
            max_password_checks: None,
            revocations: None,
            jwt: None,
            certificate: None,
            hook: None,
            tokens: BTreeMap::new(),
            users: BTreeMap::new(),
        }
    }
}

impl Default for Jwt {
    fn default() -> Self {
        Self {
            algorithms: Vec::new(),
            secret: None,
            secret_file: None,
            public_key_file: None,
            jwks_url: None,
            jwks_insecure: false,
            jwks_ca_file: None,
            jwks_refresh: Duration::from_secs(300),
            jwks_min_interval: Duration::from_secs(10),
            jwks_timeout: Duration::from_secs(5),
            audience: Vec::new(),
            issuer: Vec::new(),
            user_claim: "sub".to_owned(),
            role_claim: "roles".to_owned(),
            group_claim: "groups".to_owned(),
            leeway: Duration::from_secs(5),
            max_lifetime: None,
            require_expiry: true,
        }
    }
}

impl Default for Hook {
    fn default() -> Self {
        Self {
            url: None,
            insecure: false,
            ca_file: None,
            secret: None,
            secret_file: None,
            timeout: Duration::from_secs(2),
            cache: Duration::from_secs(60),
            max_cached: const { NonZeroUsize::new(10_000).unwrap() },
        }
    }
}

impl Config {
    /// Some way in is set up, besides coming without a credential.
    pub fn has_sources(&self) -> bool {
        let Config { jwt, certificate, hook, tokens, users, .. } = self;
        jwt.is_some() || certificate.is_some() || hook.is_some() || !tokens.is_empty() || !users.is_empty()
    }

    /// Whether a session may come without a credential.
    pub fn lets_anonymous_in(&self) -> bool {
        self.anonymous.unwrap_or(!self.has_sources())
    }

    /// Judges the settings together; the error is a sentence that says what would be right.
    pub fn check(&self) -> Result<(), String> {
        if !self.has_sources() && !self.lets_anonymous_in() {
            return Err("auth.anonymous is false, and nobody could come in: set up [auth.jwt], [auth.tokens.NAME], \
                        [auth.users.NAME], [auth.certificate] or [auth.hook]"
                .to_owned());
        }
        if let Some(cookie) = self.cookie.as_ref().filter(|cookie| !is_cookie_name(cookie)) {
            return Err(format!("auth.cookie is {cookie:?}: a cookie's name has letters, digits, `_` and `-`"));
        }
        check_names("auth.anonymous_roles", &self.anonymous_roles)?;
        self.check_tokens()?;
        self.check_users()?;
        if let Some(certificate) = &self.certificate {
            check_names("auth.certificate.roles", &certificate.roles)?;
            check_names("auth.certificate.groups", &certificate.groups)?;
        }
        self.jwt.as_ref().map_or(Ok(()), Jwt::check)?;
        self.hook.as_ref().map_or(Ok(()), Hook::check)
    }

    fn check_tokens(&self) -> Result<(), String> {
        let mut hashes = BTreeSet::new();
        for (name, token) in &self.tokens {
            let setting = format!("auth.tokens.{name}");
            check_names(&setting, [name])?;
            check_names(&format!("{setting}.user"), &token.user)?;
            check_names(&format!("{setting}.roles"), &token.roles)?;
            check_names(&format!("{setting}.groups"), &token.groups)?;
            check_claims(&setting, &token.claims)?;
            let hash = tokens::Hash::parse(given(&setting, token.hash.as_ref(), "token")?)
                .map_err(|why| format!("{setting}.hash {why}"))?;
            if !hashes.insert(hash) {
                return Err(format!("{setting}.hash is that of another token too: give each token a hash of its own"));
            }
        }
        Ok(())
    }

    fn check_users(&self) -> Result<(), String> {
        for (name, user) in &self.users {
            let setting = format!("auth.users.{name}");
            check_names(&setting, [name])?;
            check_names(&format!("{setting}.roles"), &user.roles)?;
            check_names(&format!("{setting}.groups"), &user.groups)?;
            check_claims(&setting, &user.claims)?;
            passwords::Hash::parse(given(&setting, user.hash.as_ref(), "password")?)
                .map_err(|why| format!("{setting}.hash {why}"))?;
        }
        Ok(())
    }
}

impl Jwt {
    fn check(&self) -> Result<(), String> {
        let Jwt { secret, public_key_file, jwks_url, .. } = self;
        let ways = [secret.is_some(), public_key_file.is_some(), jwks_url.is_some()];
        if ways.into_iter().filter(|is_given| *is_given).count() != 1 {
            return Err("[auth.jwt] takes its keys from one place: set either auth.jwt.secret_file (or secret), \
                        auth.jwt.public_key_file or auth.jwt.jwks_url"
                .to_owned());
        }
        if self.algorithms.is_empty() {
            return Err("auth.jwt.algorithms is empty: name those that tokens are signed with, such as [\"RS256\"]; \
                        what a token says of itself is not believed"
                .to_owned());
        }
        self.algorithms.iter().try_for_each(|algorithm| match (secret, algorithm.min_secret()) {
            (None, Some(_)) => Err(format!(
                "auth.jwt.algorithms has {}, which needs auth.jwt.secret_file: with a public key in place of the secret, \
                 whoever knows the key could make tokens",
                algorithm.name()
            )),
            (Some(_), None) => Err(format!(
                "auth.jwt.algorithms has {}, which needs a public key: set auth.jwt.public_key_file or auth.jwt.jwks_url \
                 in place of the secret, or use HS256",
                algorithm.name()
            )),
            (Some(_), Some(_)) | (None, None) => Ok(()),
        })?;
        if let Some(url) = jwks_url.as_ref().filter(|url| !url.is_private() && !self.jwks_insecure) {
            return Err(format!(
                "auth.jwt.jwks_url is {url}: keys could be exchanged on the way, so write it as https://…, \
                 or set auth.jwt.jwks_insecure if nobody can get between"
            ));
        }
        if self.jwks_ca_file.is_some() && !jwks_url.as_ref().is_some_and(Endpoint::is_encrypted) {
            return Err("auth.jwt.jwks_ca_file has no use without auth.jwt.jwks_url with https://…".to_owned());
        }
        if self.jwks_min_interval > self.jwks_refresh {
            return Err("auth.jwt.jwks_min_interval is longer than auth.jwt.jwks_refresh: make it shorter".to_owned());
        }
        for (setting, claim) in
            [("user_claim", &self.user_claim), ("role_claim", &self.role_claim), ("group_claim", &self.group_claim)]
        {
            check_names(&format!("auth.jwt.{setting}"), [claim])?;
        }
        Ok(())
    }
}

impl Hook {
    fn check(&self) -> Result<(), String> {
        let Some(url) = &self.url else {
            return Err("[auth.hook] asks nobody: set auth.hook.url".to_owned());
        };
        if !url.is_private() && !self.insecure {
            return Err(format!(
                "auth.hook.url is {url}: passwords and tokens could be read on the way, so write it as https://…, \
                 or set auth.hook.insecure if nobody can get between"
            ));
        }
        if self.ca_file.is_some() && !url.is_encrypted() {
            return Err("auth.hook.ca_file has no use without TLS: write auth.hook.url as https://…".to_owned());
        }
        if self
            .secret
            .as_ref()
            .is_some_and(|secret| !secret.expose_secret().bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err("auth.hook.secret goes into a header of HTTP: it has letters, digits and signs of ASCII, \
                        and no spaces"
                .to_owned());
        }
        Ok(())
    }
}

fn given<'c>(setting: &str, hash: Option<&'c SecretString>, what: &str) -> Result<&'c SecretString, String> {
    hash.ok_or_else(|| format!("{setting} has no hash: `tidegate hash {what}` makes one"))
}

fn check_names<'n>(setting: &str, names: impl IntoIterator<Item = &'n String>) -> Result<(), String> {
    match names.into_iter().find(|name| !is_name(name)) {
        Some(name) => {
            Err(format!("{setting}: {name:?} is no name: one has 1 to {MAX_NAME} bytes, and no control characters"))
        }
        None => Ok(()),
    }
}

/// Of a claim that could never stand in a topic, its author expects something else than to have it left out.
fn check_claims(setting: &str, claims: &BTreeMap<String, Value>) -> Result<(), String> {
    let is_one = |value: &Value| value.is_string() || value.is_i64() || value.is_u64();
    let is_claim = |value: &Value| match value {
        Value::Array(values) => !values.is_empty() && values.iter().all(is_one),
        value => is_one(value),
    };
    match claims.iter().find(|(_, value)| !is_claim(value)) {
        Some((claim, _)) => {
            Err(format!("{setting}.claims: {claim:?} is to be a text, a whole number, or a list of these"))
        }
        None => Ok(()),
    }
}

fn is_cookie_name(name: &str) -> bool {
    is_name(name) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

/// Reads one text, or a list of them.
fn texts<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    struct Texts;

    impl<'de> serde::de::Visitor<'de> for Texts {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str("a text, or a list of texts")
        }

        fn visit_str<E>(self, text: &str) -> Result<Vec<String>, E> {
            Ok(vec![text.to_owned()])
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Vec<String>, A::Error> {
            let mut texts = Vec::new();
            while let Some(text) = list.next_element()? {
                texts.push(text);
            }
            Ok(texts)
        }
    }

    from.deserialize_any(Texts)
}

/// [`units::seconds`], or 0 for none at all.
mod seconds_or_none {
    use std::fmt;
    use std::time::Duration;

    use serde::de::{Deserializer, Error, IntoDeserializer, Visitor};

    pub(super) use crate::units::seconds::serialize;

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        from.deserialize_any(SecondsOrNone)
    }

    struct SecondsOrNone;

    impl Visitor<'_> for SecondsOrNone {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("0, or a number of seconds, from 0.001 to 31536000 (a year)")
        }

        fn visit_i64<E: Error>(self, seconds: i64) -> Result<Duration, E> {
            match seconds {
                0 => Ok(Duration::ZERO),
                some => crate::units::seconds::deserialize(some.into_deserializer()),
            }
        }

        fn visit_f64<E: Error>(self, seconds: f64) -> Result<Duration, E> {
            match seconds {
                0.0 => Ok(Duration::ZERO),
                some => crate::units::seconds::deserialize(some.into_deserializer()),
            }
        }
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
