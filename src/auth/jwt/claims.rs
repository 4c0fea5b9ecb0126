//! What a token says, once its signature was found good: for how long and for whom it is, and who bears it.

use std::time::Duration;

use serde_json::{Map, Value};

use super::refused;
use crate::access::identity::{Claims, MAX_NAME, is_name, names};
use crate::access::{Failure, Identity, Source};
use crate::auth::config;

/// Claims about the token itself, and not about who bears it.
const OF_THE_TOKEN: [&str; 4] = ["exp", "nbf", "iat", "aud"];

/// What the configuration asks of a token.
pub(super) struct Rules {
    audience: Vec<String>,
    issuer: Vec<String>,
    user_claim: String,
    role_claim: String,
    group_claim: String,
    leeway: f64,
    max_lifetime: Option<Duration>,
    require_expiry: bool,
}

impl Rules {
    pub(super) fn new(config: &config::Jwt) -> Rules {
        Rules {
            audience: config.audience.clone(),
            issuer: config.issuer.clone(),
            user_claim: config.user_claim.clone(),
            role_claim: config.role_claim.clone(),
            group_claim: config.group_claim.clone(),
            leeway: config.leeway.as_secs_f64(),
            max_lifetime: config.max_lifetime,
            require_expiry: config.require_expiry,
        }
    }

    /// Whom these claims stand for, at this time in Unix seconds.
    pub(super) fn judge(&self, claims: &Map<String, Value>, now: u64) -> Result<Identity, Failure> {
        let expires = self.judge_times(claims, now)?;
        self.judge_audience(claims)?;
        self.judge_issuer(claims)?;
        let token_id = match claims.get("jti") {
            None | Some(Value::Null) => None,
            Some(Value::String(id)) if is_name(id) => Some(id.as_str().into()),
            Some(_) => return Err(refused(format!("the `jti` of the token is no text of 1 to {MAX_NAME} bytes"))),
        };
        let about_the_bearer = claims.iter().filter(|(name, _)| !OF_THE_TOKEN.contains(&name.as_str()));
        Ok(Identity {
            user: Some(self.user(claims)?),
            source: Source::Jwt,
            roles: listed("auth.jwt.role_claim", find(claims, &self.role_claim))?,
            groups: listed("auth.jwt.group_claim", find(claims, &self.group_claim))?,
            claims: Claims::of(about_the_bearer),
            token_id,
            expires,
        })
    }

    /// The Unix second when the token ends.
    fn judge_times(&self, claims: &Map<String, Value>, now: u64) -> Result<Option<u64>, Failure> {
        let now = now as f64;
        for name in ["nbf", "iat"] {
            if time(claims, name)?.is_some_and(|time| now + self.leeway < time) {
                return Err(Failure::NotYetValid);
            }
        }
        let Some(expires) = time(claims, "exp")? else {
            return match (self.require_expiry, self.max_lifetime) {
                (true, _) => Err(refused("the token never ends: it has no `exp` (auth.jwt.require_expiry)")),
                (false, Some(_)) => Err(refused("the token never ends: it has no `exp` (auth.jwt.max_lifetime)")),
                (false, None) => Ok(None),
            };
        };
        if expires + self.leeway <= now {
            return Err(Failure::Expired);
        }
        if self.max_lifetime.is_some_and(|longest| expires > now + longest.as_secs_f64() + self.leeway) {
            return Err(refused("the token is good for too long (auth.jwt.max_lifetime)"));
        }
        // What is good for a part of a second is not good for all of it. What is beyond all numbers is at the largest.
        Ok(Some(expires as u64))
    }

    /// RFC 7519, section 4.1.3: who is not among those a token is for must refuse it; also who has no name to be among them.
    fn judge_audience(&self, claims: &Map<String, Value>) -> Result<(), Failure> {
        let told = claims.get("aud").filter(|told| !told.is_null());
        match told {
            None if self.audience.is_empty() => Ok(()),
            None => Err(refused("the token is for nobody in particular: it has no `aud` (auth.jwt.audience)")),
            Some(told) if texts(told).is_some_and(|told| told.iter().any(|one| is_among(one, &self.audience))) => {
                Ok(())
            }
            Some(_) => Err(refused("the audience of the token is not this gateway (auth.jwt.audience)")),
        }
    }

    fn judge_issuer(&self, claims: &Map<String, Value>) -> Result<(), Failure> {
        let is_known =
            || claims.get("iss").and_then(Value::as_str).is_some_and(|issuer| is_among(issuer, &self.issuer));
        if self.issuer.is_empty() || is_known() {
            return Ok(());
        }
        Err(refused("the issuer of the token is not believed here (auth.jwt.issuer)"))
    }

    fn user(&self, claims: &Map<String, Value>) -> Result<Box<str>, Failure> {
        let user = find(claims, &self.user_claim).and_then(Value::as_str).filter(|user| is_name(user));
        user.map(Into::into).ok_or_else(|| {
            refused(format!(
                "the token names no user: its claim is to be a text of 1 to {MAX_NAME} bytes, without control characters \
                 (auth.jwt.user_claim)"
            ))
        })
    }
}

fn is_among(one: &str, all: &[String]) -> bool {
    all.iter().any(|other| other == one)
}

/// A claim by its name or, where there is none of that name, by its path: `realm_access.roles`.
fn find<'c>(claims: &'c Map<String, Value>, name: &str) -> Option<&'c Value> {
    claims.get(name).or_else(|| {
        let (first, rest) = name.split_once('.')?;
        find(claims.get(first)?.as_object()?, rest)
    })
}

/// A time in Unix seconds, whole or not (RFC 7519, section 2).
fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<f64>, Failure> {
    match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => Ok(number.as_f64()),
        Some(_) => Err(refused(format!("the `{name}` of the token is no number"))),
    }
}

/// A text, or a list of nothing but texts.
fn texts(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(text) => Some(vec![text]),
        Value::Array(values) => values.iter().map(Value::as_str).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

/// Roles or groups. Whoever has none has no such claim; what is something else than that was not meant so.
fn listed(setting: &str, claim: Option<&Value>) -> Result<Box<[Box<str>]>, Failure> {
    let Some(claim) = claim.filter(|claim| !claim.is_null()) else {
        return Ok(Box::default());
    };
    match texts(claim) {
        Some(all) if all.iter().all(|name| is_name(name)) => Ok(names(&all)),
        _ => Err(refused(format!("a claim of the token is no name and no list of names ({setting})"))),
    }
}
