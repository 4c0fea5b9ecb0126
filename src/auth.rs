//! Who a session is: the judge of what it shows.
//!
//! Each way in is a source: static tokens, JSON Web Tokens, passwords, TLS client certificates, and an endpoint that is asked. The source that
//! recognises a credential judges it, and no other is asked then: a token that one has found bad is not tried with the next.

pub mod certificate;
pub mod client;
pub mod config;
pub mod endpoint;
pub mod hook;
pub mod jwt;
pub mod passwords;
mod revoked;
mod roles;
mod standing;
pub mod tokens;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;

pub use self::config::Config;
use self::hook::{Hook, Question};
use self::jwt::{Jwt, Token};
use self::passwords::Passwords;
pub use self::revoked::Revoked;
use self::tokens::Tokens;
use crate::access::{Credential, Failure, Identity, Source};
use crate::metrics;

/// Says who a session is. Cheap to clone.
#[derive(Clone)]
pub struct Judge(Arc<Sources>);

struct Sources {
    is_on: bool,
    anonymous: Option<Identity>,
    max_token: usize,
    tokens: Tokens,
    jwt: Option<Jwt>,
    passwords: Option<Passwords>,
    certificate: Option<config::Certificate>,
    hook: Option<Hook>,
    revoked: Arc<Revoked>,
}

/// Whoever shows a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visitor {
    /// Where it comes from.
    pub address: IpAddr,
    /// The client identifier that it asks for.
    pub client_id: Option<String>,
}

/// Why nobody could be judged; the message names the setting.
#[derive(Debug, Error)]
pub enum StartError {
    /// A file can't be used.
    #[error("{setting}: {} {why}", path.display())]
    File {
        /// The setting that names it.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it, after its name.
        why: String,
    },
    /// There is no TLS to ask others with.
    #[error("[auth]: servers can't be asked over TLS: {0}")]
    Tls(String),
}

impl Judge {
    /// Reads the files that a checked configuration names. Asks nobody yet: see [`Judge::watch`].
    pub fn new(config: &Config, revoked: Arc<Revoked>) -> Result<Judge, StartError> {
        Judge::build(config, revoked, None)
    }

    /// The judge by a configuration that was read again. What was fetched, or is remembered, of places that are the same is kept.
    pub fn renewed(&self, config: &Config) -> Result<Judge, StartError> {
        Judge::build(config, self.0.revoked.clone(), Some(&self.0))
    }

    fn build(config: &Config, revoked: Arc<Revoked>, old: Option<&Sources>) -> Result<Judge, StartError> {
        let jwt = config.jwt.as_ref().map(|jwt| Jwt::new(jwt, old.and_then(|old| old.jwt.as_ref())));
        let hook = config.hook.as_ref().map(|hook| Hook::new(hook, old.and_then(|old| old.hook.as_ref())));
        Ok(Judge(Arc::new(Sources {
            is_on: config.has_sources() || !config.lets_anonymous_in(),
            anonymous: config.lets_anonymous_in().then(|| Identity::anonymous(&config.anonymous_roles)),
            max_token: config.max_token.get(),
            tokens: Tokens::new(&config.tokens),
            jwt: jwt.transpose()?,
            passwords: Passwords::new(&config.users, config.max_password_checks),
            certificate: config.certificate.clone(),
            hook: hook.transpose()?.flatten(),
            revoked,
        })))
    }

    /// Whether a credential can make a difference.
    pub fn is_on(&self) -> bool {
        self.0.is_on
    }

    /// Who comes without a credential, where that is allowed.
    pub fn anonymous(&self) -> Option<Identity> {
        self.0.anonymous.clone()
    }

    /// Who this visitor is, by what it shows.
    pub async fn check(&self, credential: &Credential, visitor: &Visitor) -> Result<Identity, Failure> {
        let Judge(sources) = self;
        let now = unix_now();
        let (source, judged) = match credential {
            Credential::Token(token) => sources.judge_token(token, visitor, now).await,
            Credential::Password { user, password } => sources.judge_password(user, password, visitor, now).await,
            Credential::Certificate(der) => (Source::Certificate, sources.judge_certificate(der, now)),
        };
        // Also of what was remembered: a revocation holds at once.
        let judged = judged.and_then(|identity| match sources.revoked.judge(&identity, visitor.client_id.as_deref()) {
            None => Ok(identity),
            Some(revocation) => Err(refused(format!("revoked until {} (Unix time)", revocation.until))),
        });
        metrics::authenticated(source, judged.as_ref().err());
        judged
    }

    /// Keeps what is fetched from elsewhere fresh, for ever. A judge is to have one such task, from the start on.
    pub async fn watch(&self) {
        match &self.0.jwt {
            Some(jwt) => jwt.watch().await,
            None => std::future::pending().await,
        }
    }
}

impl Sources {
    /// A static token is known by its hash. What has the form of a JSON Web Token is judged as one, if those are taken; all else the hook judges,
    /// if there is one.
    async fn judge_token(
        &self,
        token: &SecretString,
        visitor: &Visitor,
        now: u64,
    ) -> (Source, Result<Identity, Failure>) {
        let text = token.expose_secret();
        if let Err(failure) = self.judge_length(text) {
            return (Source::Token, Err(failure));
        }
        if let Some(judged) = self.tokens.find(token, now) {
            return (Source::Token, judged);
        }
        match (&self.jwt, &self.hook) {
            (Some(jwt), _) if Token::is_meant(text) => (Source::Jwt, jwt.check(text, now).await),
            (_, Some(hook)) => (Source::Hook, hook.check(Question::Token(token), visitor, now).await),
            (_, None) => (Source::Token, Err(refused("the token is none that is taken here"))),
        }
    }

    /// Whoever is a user of the configuration is judged by that alone. All others the hook judges, if there is one.
    async fn judge_password(
        &self,
        user: &str,
        password: &SecretString,
        visitor: &Visitor,
        now: u64,
    ) -> (Source, Result<Identity, Failure>) {
        if let Err(failure) = self.judge_length(password.expose_secret()).and_then(|()| self.judge_length(user)) {
            return (Source::Password, Err(failure));
        }
        match (&self.passwords, &self.hook) {
            (Some(passwords), hook) if hook.is_none() || passwords.know(user) => {
                (Source::Password, passwords.check(user, password).await)
            }
            (_, Some(hook)) => (Source::Hook, hook.check(Question::Password(user, password), visitor, now).await),
            (_, None) => (Source::Password, Err(refused("passwords are not taken here"))),
        }
    }

    fn judge_certificate(&self, der: &[u8], now: u64) -> Result<Identity, Failure> {
        match &self.certificate {
            Some(config) => certificate::judge(config, der, now),
            None => Err(refused("client certificates say nothing here of who somebody is ([auth.certificate])")),
        }
    }

    fn judge_length(&self, text: &str) -> Result<(), Failure> {
        match text.len() {
            0 => Err(refused("the credential is empty")),
            length if length > self.max_token => Err(refused("the credential is too long (auth.max_token)")),
            _ => Ok(()),
        }
    }
}

/// The hash of a static token, as the configuration takes it. The error says what would be right.
pub fn hash_token(token: &SecretString) -> Result<String, String> {
    if token.expose_secret().len() < tokens::MIN_TOKEN {
        return Err(format!(
            "a token of less than {} bytes can be guessed: make a longer one, as `openssl rand -hex 32` does",
            tokens::MIN_TOKEN
        ));
    }
    Ok(tokens::Hash::of(token).text())
}

/// The hash of a password, as the configuration takes it. The error says what would be right.
pub fn hash_password(password: &SecretString) -> Result<String, String> {
    if password.expose_secret().is_empty() {
        return Err("the password is empty".to_owned());
    }
    passwords::Hash::of(password)
}

fn refused(why: impl Into<String>) -> Failure {
    Failure::Refused(why.into())
}

/// Seconds since 1970.
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
#[path = "auth/auth_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "auth/support_tests.rs"]
mod support;
