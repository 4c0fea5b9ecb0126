//! JSON Web Tokens (RFC 7519), signed (RFC 7515): whether to believe one, and whom it stands for.
//!
//! The configuration says which algorithms there are, and each key which of them it is for; a token only names one of them. The signature is
//! judged first, and what a token says not before it is good.

mod algorithm;
mod claims;
pub mod jwks;
mod key;
mod token;

use std::fs;
use std::time::Instant;

use secrecy::ExposeSecret;
use tracing::warn;

pub use self::algorithm::Algorithm;
use self::claims::Rules;
use self::jwks::Jwks;
use self::key::{Key, Verdict};
pub use self::token::Token;
use super::StartError;
use super::config;
use crate::access::{Failure, Identity};

/// Who judges them.
pub struct Jwt {
    algorithms: Vec<Algorithm>,
    rules: Rules,
    keys: Keys,
}

enum Keys {
    /// From the configuration.
    Fixed(Vec<Key>),
    /// From the issuer.
    Fetched(Jwks),
}

/// The least length of a secret for these algorithms, in bytes, if it is shorter.
fn too_short(secret: &[u8], algorithms: &[Algorithm]) -> Option<usize> {
    algorithms.iter().filter_map(|algorithm| algorithm.min_secret()).max().filter(|least| secret.len() < *least)
}

impl Jwt {
    /// Reads the keys; those of the issuer are not fetched yet. What `old` has fetched from the same place is kept.
    pub fn new(config: &config::Jwt, old: Option<&Jwt>) -> Result<Jwt, StartError> {
        let keys = match (&config.secret, &config.public_key_file, &config.jwks_url) {
            (Some(secret), _, _) => {
                let bytes = secret.expose_secret().as_bytes().to_vec();
                if let Some(least) = too_short(&bytes, &config.algorithms) {
                    warn!(
                        least,
                        "auth.jwt.secret is so short that it could be guessed (RFC 7518 section 3.2): use a longer one"
                    );
                }
                Keys::Fixed(vec![Key::secret(bytes.into(), &config.algorithms)])
            }
            (None, Some(path), _) => {
                let told =
                    |why: String| StartError::File { setting: "auth.jwt.public_key_file", path: path.clone(), why };
                let pem = fs::read(path).map_err(|error| told(format!("can't be read: {error}")))?;
                Keys::Fixed(Key::of_pem(&pem, &config.algorithms).map_err(told)?)
            }
            (None, None, Some(url)) => {
                let old = old.and_then(|old| match &old.keys {
                    Keys::Fetched(jwks) => Some(jwks),
                    Keys::Fixed(_) => None,
                });
                Keys::Fetched(Jwks::new(config, url.clone(), old)?)
            }
            (None, None, None) => Keys::Fixed(Vec::new()),
        };
        Ok(Jwt { algorithms: config.algorithms.clone(), rules: Rules::new(config), keys })
    }

    /// Whom a token stands for, at this time in Unix seconds.
    pub async fn check(&self, token: &str, now: u64) -> Result<Identity, Failure> {
        let token = Token::parse(token)?;
        self.verify(&token).await?;
        self.rules.judge(&token.claims()?, now)
    }

    /// Keeps fetched keys fresh, for ever; the first at once.
    pub async fn watch(&self) {
        match &self.keys {
            Keys::Fetched(jwks) => jwks.watch().await,
            Keys::Fixed(_) => std::future::pending().await,
        }
    }

    async fn verify(&self, token: &Token<'_>) -> Result<(), Failure> {
        // Each key has its algorithms too. Whoever names another need not be told that no key is here.
        if !self.algorithms.contains(&token.algorithm) {
            return Err(token::not_taken());
        }
        let verdict = match &self.keys {
            Keys::Fixed(keys) => key::verify(keys, token),
            Keys::Fetched(jwks) => jwks.verify(token, Instant::now()).await?,
        };
        match verdict {
            Verdict::Signed => Ok(()),
            Verdict::Forged => Err(refused("the signature of the token is wrong")),
            Verdict::UnknownKey => {
                Err(refused("the signature of the token is wrong, or of a key that is not known here"))
            }
        }
    }
}

fn refused(why: impl Into<String>) -> Failure {
    Failure::Refused(why.into())
}

#[cfg(test)]
#[path = "jwt_tests.rs"]
mod tests;
