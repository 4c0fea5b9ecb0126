//! The keys that an issuer publishes (RFC 7517), fetched and kept. What was fetched is good until something newer is, however long that takes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::algorithm::Algorithm;
use super::key::{Key, MAX_KEYS, Verdict, verify};
use super::token::Token;
use crate::access::Failure;
use crate::auth::client::Client;
use crate::auth::endpoint::Endpoint;
use crate::auth::{StartError, config};
use crate::metrics;

/// The largest set that is read. A hundred keys with their certificates take a tenth of it.
const MAX_BODY: usize = 1 << 20;

/// The keys of an issuer.
#[derive(Clone)]
pub struct Jwks(Arc<Shared>);

struct Shared {
    client: Client,
    url: Endpoint,
    algorithms: Vec<Algorithm>,
    refresh: Duration,
    min_interval: Duration,
    timeout: Duration,
    /// What was fetched: empty until it was for the first time.
    keys: Arc<ArcSwap<Vec<Key>>>,
    /// Whoever holds it fetches.
    turn: Arc<Mutex<Turn>>,
}

/// How the last fetch went.
#[derive(Default)]
struct Turn {
    begun: Option<Instant>,
    has_failed: bool,
}

/// A set of keys. One that is not understood is left out, and the others are used (RFC 7517, section 5).
#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

impl Jwks {
    /// Nothing is fetched yet. What `old` has from the same place, for the same algorithms, is kept.
    pub fn new(config: &config::Jwt, url: Endpoint, old: Option<&Jwks>) -> Result<Jwks, StartError> {
        let ca = config.jwks_ca_file.as_deref().map(|path| ("auth.jwt.jwks_ca_file", path));
        let old = old.filter(|Jwks(old)| old.url == url && old.algorithms == config.algorithms);
        let (keys, turn) = match old {
            Some(Jwks(old)) => (old.keys.clone(), old.turn.clone()),
            None => (Arc::default(), Arc::default()),
        };
        Ok(Jwks(Arc::new(Shared {
            client: Client::new(ca)?,
            url,
            algorithms: config.algorithms.clone(),
            refresh: config.jwks_refresh,
            min_interval: config.jwks_min_interval,
            timeout: config.jwks_timeout,
            keys,
            turn,
        })))
    }

    /// Whether one of the keys has signed the token. If it may be signed with one that is not here, they are fetched first, though not more
    /// often than the minimum interval has it.
    pub(super) async fn verify(&self, token: &Token<'_>, now: Instant) -> Result<Verdict, Failure> {
        let Jwks(shared) = self;
        let keys = shared.keys.load_full();
        let verdict = verify(&keys, token);
        if verdict != Verdict::UnknownKey {
            return Ok(verdict);
        }
        let is_up_to_date = shared.refresh_after(&keys, now).await;
        match verify(&shared.keys.load(), token) {
            Verdict::UnknownKey if !is_up_to_date => Err(Failure::Unavailable(
                "the issuer's keys can't be fetched (auth.jwt.jwks_url); try again".to_owned(),
            )),
            verdict => Ok(verdict),
        }
    }

    /// Fetches the keys again and again, for ever. After a failure sooner, at first.
    pub async fn watch(&self) {
        let Jwks(shared) = self;
        let mut patience = shared.min_interval;
        loop {
            let turn = shared.turn.clone().lock_owned().await;
            let has_succeeded = fetch(shared.clone(), turn).await;
            let wait = if has_succeeded { shared.refresh } else { patience.min(shared.refresh) };
            patience = if has_succeeded { shared.min_interval } else { wait * 2 };
            sleep(wait).await;
        }
    }
}

impl Shared {
    /// Fetches what is newer than these keys, unless that was done, or tried a moment ago. Says whether the last fetch went well.
    async fn refresh_after(self: &Arc<Self>, keys: &Arc<Vec<Key>>, now: Instant) -> bool {
        let turn = self.turn.clone().lock_owned().await;
        let is_newer = !Arc::ptr_eq(keys, &self.keys.load());
        let is_too_soon = turn.begun.is_some_and(|begun| now.saturating_duration_since(begun) < self.min_interval);
        if is_newer || is_too_soon {
            return !turn.has_failed && !self.keys.load().is_empty();
        }
        // In a task of its own: a client that goes meanwhile, or many of them, must not keep the keys from coming.
        tokio::spawn(fetch(self.clone(), turn)).await.unwrap_or(false)
    }

    async fn keys(&self) -> Result<Vec<Key>, String> {
        let answer = timeout(self.timeout, self.client.get(&self.url, MAX_BODY));
        let answer = answer.await.map_err(|_| "no answer in time (auth.jwt.jwks_timeout)")??;
        if answer.status != 200 {
            return Err(format!("the answer is HTTP {}", answer.status));
        }
        let set: Set = serde_json::from_slice(&answer.body).map_err(|_| "the answer is no JSON Web Key Set")?;
        let keys: Vec<_> =
            set.keys.iter().filter_map(|jwk| Key::of_jwk(jwk, &self.algorithms)).take(MAX_KEYS).collect();
        // Nobody could come in any more. That is more likely a mishap than meant, and can wait for a restart if it was.
        if keys.is_empty() {
            return Err("the answer has no key for auth.jwt.algorithms".to_owned());
        }
        Ok(keys)
    }
}

/// Fetches the keys, and keeps those that there are if it fails.
async fn fetch(shared: Arc<Shared>, mut turn: OwnedMutexGuard<Turn>) -> bool {
    turn.begun = Some(Instant::now());
    let fetched = shared.keys().await;
    metrics::jwks_refreshed(fetched.is_ok());
    let had_failed = std::mem::replace(&mut turn.has_failed, fetched.is_err());
    match fetched {
        Ok(keys) => {
            if had_failed || shared.keys.load().is_empty() {
                info!(url = %shared.url, keys = keys.len(), "the issuer's keys were fetched");
            }
            shared.keys.store(Arc::new(keys));
            true
        }
        Err(why) => {
            // Once for each outage.
            if !had_failed {
                let kept = shared.keys.load().len();
                warn!(url = %shared.url, why, kept, "the issuer's keys can't be fetched: those that are here stay in use");
            }
            false
        }
    }
}

#[cfg(test)]
#[path = "jwks_tests.rs"]
mod tests;
