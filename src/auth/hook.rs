//! An endpoint of the operator's own that says who somebody is. It is asked by HTTP, and what it said is remembered for a while.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::timeout;
use tracing::warn;

use super::client::{Answer, Client};
use super::config;
use super::endpoint::Endpoint;
use super::{StartError, Visitor};
use crate::access::identity::{Claims, is_name, names};
use crate::access::{Failure, Identity, Source};
use crate::log::Seldom;
use crate::metrics;

/// The largest answer that is read.
const MAX_BODY: usize = 64 << 10;
/// How long a no is remembered, at most: long enough for a page that tries again and again, too short for somebody who was let in meanwhile
/// to notice.
const REFUSAL_KEPT: Duration = Duration::from_secs(3);
/// The most questions that are on their way; more of them wait, within the time that an answer may take.
const MAX_ASKED: usize = 64;

/// Who asks the endpoint.
pub struct Hook {
    client: Client,
    url: Endpoint,
    secret: Option<SecretString>,
    timeout: Duration,
    cache: Duration,
    asked: Semaphore,
    answers: Arc<Mutex<Answers>>,
    seldom: Seldom,
}

/// What is asked about.
#[derive(Clone, Copy)]
pub enum Question<'c> {
    /// Whom a token stands for.
    Token(&'c SecretString),
    /// Whether this is the password of that user.
    Password(&'c str, &'c SecretString),
}

impl Hook {
    /// Asks nobody yet. What `old` remembers of the same endpoint is kept.
    pub fn new(config: &config::Hook, old: Option<&Hook>) -> Result<Option<Hook>, StartError> {
        let Some(url) = config.url.clone() else { return Ok(None) };
        let old = old.filter(|old| old.url == url && is_same(old.secret.as_ref(), config.secret.as_ref()));
        let answers = old.map_or_else(Default::default, |old| old.answers.clone());
        answers.lock().expect("nobody panics while holding it").max = config.max_cached.get();
        Ok(Some(Hook {
            client: Client::new(config.ca_file.as_deref().map(|path| ("auth.hook.ca_file", path)))?,
            url,
            secret: config.secret.clone(),
            timeout: config.timeout,
            cache: config.cache,
            asked: Semaphore::new(MAX_ASKED),
            answers,
            seldom: Seldom::new(),
        }))
    }

    /// Whom the credential stands for, at this time in Unix seconds. Of many that ask the same at a time, one asks the endpoint.
    pub async fn check(&self, question: Question<'_>, visitor: &Visitor, now: u64) -> Result<Identity, Failure> {
        let cell =
            self.answers.lock().expect("nobody panics while holding it").cell(key(question, visitor), Instant::now());
        // Where whoever asks goes away, the next one that waits asks instead.
        let remembered = cell.get_or_init(|| self.remember(question, visitor, now)).await;
        match &remembered.answer {
            Ok(identity) if identity.expires.is_some_and(|expires| expires <= now) => Err(Failure::Expired),
            answer => answer.clone(),
        }
    }

    async fn remember(&self, question: Question<'_>, visitor: &Visitor, now: u64) -> Remembered {
        let begun = Instant::now();
        let asked = timeout(self.timeout, self.ask(question, visitor)).await;
        metrics::hook_asked(begun.elapsed());
        let asked = asked.unwrap_or_else(|_| Err("no answer in time (auth.hook.timeout)".to_owned()));
        let answer = match asked.and_then(|answer| judge(&answer, now)) {
            Ok(judged) => judged,
            Err(why) => {
                if let Some(others) = self.seldom.pass(Instant::now()) {
                    warn!(url = %self.url, why, others, "the hook gives no judgement");
                }
                Err(Failure::Unavailable("who you are can't be checked now (auth.hook.url); try again".to_owned()))
            }
        };
        let kept = match &answer {
            Ok(_) => self.cache,
            Err(Failure::Refused(_)) => self.cache.min(REFUSAL_KEPT),
            Err(Failure::Expired | Failure::NotYetValid | Failure::Unavailable(_)) => Duration::ZERO,
        };
        Remembered { answer, until: Instant::now() + kept }
    }

    async fn ask(&self, question: Question<'_>, visitor: &Visitor) -> Result<Answer, String> {
        let _place = self.asked.acquire().await.map_err(|_| "the gateway stops")?;
        self.client.post(&self.url, written(question, visitor), self.secret.as_ref(), MAX_BODY).await
    }
}

fn is_same(one: Option<&SecretString>, other: Option<&SecretString>) -> bool {
    one.map(SecretString::expose_secret) == other.map(SecretString::expose_secret)
}

/// What is posted.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Posted<'c> {
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'c str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<&'c str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<&'c str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<&'c str>,
    address: IpAddr,
}

fn written(question: Question<'_>, visitor: &Visitor) -> Vec<u8> {
    let (token, username, password) = match question {
        Question::Token(token) => (Some(token.expose_secret()), None, None),
        Question::Password(user, password) => (None, Some(user), Some(password.expose_secret())),
    };
    let Visitor { address, client_id } = visitor;
    let posted = Posted { token, username, password, client_id: client_id.as_deref(), address: *address };
    serde_json::to_vec(&posted).expect("texts are JSON")
}

/// What a yes says.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Yes {
    user: String,
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    claims: Map<String, Value>,
    /// Seconds from now.
    expires_in: Option<u64>,
    token_id: Option<String>,
}

/// What the endpoint has judged; an error if it has not.
fn judge(answer: &Answer, now: u64) -> Result<Result<Identity, Failure>, String> {
    match answer.status {
        200 => {}
        401 | 403 => return Ok(Err(Failure::Refused("the credential was refused (auth.hook.url)".to_owned()))),
        status => return Err(format!("the answer is HTTP {status}")),
    }
    // Where, and not what, as it may not be for a log.
    let yes: Yes = serde_json::from_slice(&answer.body).map_err(|error| {
        format!("the answer is not as it should be at line {}, column {}", error.line(), error.column())
    })?;
    let are_names =
        yes.roles.iter().chain(&yes.groups).chain(&yes.token_id).chain([&yes.user]).all(|name| is_name(name));
    if !are_names {
        return Err("the answer has a user, role, group or tokenId that is no name".to_owned());
    }
    Ok(Ok(Identity {
        user: Some(yes.user.into()),
        source: Source::Hook,
        roles: names(&yes.roles),
        groups: names(&yes.groups),
        claims: Claims::of(&yes.claims),
        token_id: yes.token_id.map(Into::into),
        expires: yes.expires_in.map(|seconds| now.saturating_add(seconds)),
    }))
}

/// Everything that the endpoint is told: whoever asks the same gets the same answer.
type Key = [u8; digest::SHA256_OUTPUT_LEN];

fn key(question: Question<'_>, visitor: &Visitor) -> Key {
    let hash = digest::digest(&digest::SHA256, &written(question, visitor));
    hash.as_ref().try_into().expect("a hash of SHA-256 has its length")
}

/// An answer, and how long it is good.
struct Remembered {
    answer: Result<Identity, Failure>,
    until: Instant,
}

/// Answers that are remembered, and those that are on their way.
struct Answers {
    max: usize,
    cells: HashMap<Key, (u64, Arc<OnceCell<Remembered>>)>,
    /// In the order of their numbers. It may name cells that others have taken the place of.
    order: VecDeque<(u64, Key)>,
    next: u64,
}

impl Default for Answers {
    fn default() -> Self {
        Answers { max: 1, cells: HashMap::new(), order: VecDeque::new(), next: 0 }
    }
}

impl Answers {
    /// Where the answer to a question is, or will be. There are never more than `max`: the oldest make room.
    fn cell(&mut self, key: Key, now: Instant) -> Arc<OnceCell<Remembered>> {
        if let Some((_, cell)) = self.cells.get(&key)
            && cell.get().is_none_or(|remembered| now < remembered.until)
        {
            return cell.clone();
        }
        let cell = Arc::<OnceCell<_>>::default();
        self.cells.insert(key, (self.next, cell.clone()));
        self.order.push_back((self.next, key));
        self.next += 1;
        while self.order.len() > self.max {
            let (number, key) = self.order.pop_front().expect("it is not empty");
            if self.cells.get(&key).is_some_and(|(of_the_cell, _)| *of_the_cell == number) {
                self.cells.remove(&key);
            }
        }
        cell
    }
}

#[cfg(test)]
#[path = "hook_tests.rs"]
mod tests;
