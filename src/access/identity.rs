//! Who a session is, and how that was shown.

use std::collections::HashSet;
use std::fmt;

use secrecy::SecretString;
use serde_json::Value;

/// The longest name of a user, a role, a group, a token or a device, in bytes: as long as a client identifier may be.
pub const MAX_NAME: usize = 256;

/// Whether this can be such a name: not empty, no longer than [`MAX_NAME`], and without control characters.
pub fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len()) && !text.contains(char::is_control)
}

/// What a client shows to be let in.
#[derive(Clone, Debug)]
pub enum Credential {
    /// A token: a static one or a JSON Web Token (RFC 7519), or what the hook makes of it.
    Token(SecretString),
    /// A user and a password.
    Password {
        /// Who it claims to be.
        user: String,
        /// What only that user knows.
        password: SecretString,
    },
    /// A TLS client certificate that a trusted authority has signed, in DER; checked by the handshake already.
    Certificate(Vec<u8>),
}

/// Which of the configured ways let a session in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// None: whoever comes may open a session.
    Anonymous,
    /// A static token.
    Token,
    /// A JSON Web Token.
    Jwt,
    /// A user and a password.
    Password,
    /// A TLS client certificate.
    Certificate,
    /// The HTTP hook.
    Hook,
}

impl Source {
    /// All of them.
    pub const ALL: [Source; 6] =
        [Source::Anonymous, Source::Token, Source::Jwt, Source::Password, Source::Certificate, Source::Hook];

    /// As it stands in metrics, logs and the audit.
    pub fn name(self) -> &'static str {
        match self {
            Source::Anonymous => "anonymous",
            Source::Token => "token",
            Source::Jwt => "jwt",
            Source::Password => "password",
            Source::Certificate => "certificate",
            Source::Hook => "hook",
        }
    }
}

/// Who a session is. Kept as long as the session, so it is small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user; an anonymous session has none. Never empty.
    pub user: Option<Box<str>>,
    /// How that was shown.
    pub source: Source,
    /// What it may do is what these roles grant.
    pub roles: Box<[Box<str>]>,
    /// The groups that it belongs to.
    pub groups: Box<[Box<str>]>,
    /// What else was said of it, for the placeholders of grants.
    pub claims: Claims,
    /// The name of the token, by which it can be revoked: `jti`, or the name of a static token.
    pub token_id: Option<Box<str>>,
    /// Unix seconds when it ends.
    pub expires: Option<u64>,
}

impl Identity {
    /// Somebody of whom nothing is known.
    pub fn anonymous(roles: &[String]) -> Identity {
        Identity {
            user: None,
            source: Source::Anonymous,
            roles: names(roles),
            groups: Box::default(),
            claims: Claims::default(),
            token_id: None,
            expires: None,
        }
    }
}

/// A list of names as an identity keeps it: each once, as every request looks through all of them.
pub fn names<N: AsRef<str>>(names: &[N]) -> Box<[Box<str>]> {
    let mut kept = HashSet::new();
    names.iter().map(AsRef::as_ref).filter(|name| kept.insert(*name)).map(Into::into).collect()
}

/// What a token says of its bearer, as far as a placeholder could take it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims(Box<[(Box<str>, Values)]>);

/// The values of one claim.
type Values = Box<[Box<str>]>;

impl Claims {
    /// Takes those that are a string, an integer, or a list of such: no other can stand in a topic. Names are as they were written.
    pub fn of<'a>(claims: impl IntoIterator<Item = (&'a String, &'a Value)>) -> Claims {
        let all = claims.into_iter().filter_map(|(name, value)| {
            let values: Values = match value {
                Value::Array(entries) => entries.iter().filter_map(scalar).collect(),
                scalar_value => scalar(scalar_value).into_iter().collect(),
            };
            (!values.is_empty()).then(|| (name.as_str().into(), values))
        });
        Claims(all.collect())
    }

    /// The values of a claim: none, one, or those of its list.
    pub fn get(&self, name: &str) -> &[Box<str>] {
        self.0.iter().find(|(claim, _)| **claim == *name).map_or(&[], |(_, values)| values)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[Box<str>])> {
        self.0.iter().map(|(name, values)| (name.as_ref(), values.as_ref()))
    }
}

fn scalar(value: &Value) -> Option<Box<str>> {
    match value {
        Value::String(text) => Some(text.as_str().into()),
        Value::Number(number) if !number.is_f64() => Some(number.to_string().into()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Why a credential was not taken. The text is for people, and holds nothing of the credential but names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It was good until some time.
    Expired,
    /// It will be good from some time on.
    NotYetValid,
    /// It is none that is taken here.
    Refused(String),
    /// Whoever could judge it can't be reached.
    Unavailable(String),
}

impl Failure {
    /// The names of all of them.
    pub const NAMES: [&str; 4] = ["expired", "not_yet_valid", "refused", "unavailable"];

    /// A short word for metrics and the audit.
    pub fn name(&self) -> &'static str {
        match self {
            Failure::Expired => "expired",
            Failure::NotYetValid => "not_yet_valid",
            Failure::Refused(_) => "refused",
            Failure::Unavailable(_) => "unavailable",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Expired => f.write_str("the token has expired; get a new one"),
            Failure::NotYetValid => f.write_str("the token is not valid yet; is a clock wrong?"),
            Failure::Refused(why) | Failure::Unavailable(why) => f.write_str(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_is_short_and_can_be_shown() {
        let longest = "n".repeat(MAX_NAME);
        for (text, is_one) in [
            ("anna", true),
            ("Anna Ä. +#/", true),
            (&longest, true),
            (&format!("{longest}n"), false),
            ("", false),
            ("an\0na", false),
            ("anna\n", false),
            ("\u{85}", false),
        ] {
            assert_eq!(is_name(text), is_one, "{text:?}");
        }
    }

    #[test]
    fn a_name_is_kept_once_and_in_its_place() {
        assert_eq!(*names(&["b", "a", "b", "c", "a"]), ["b", "a", "c"].map(Into::into));
    }

    #[test]
    fn every_failure_has_its_name_among_all() {
        let text = String::new;
        let all = [Failure::Expired, Failure::NotYetValid, Failure::Refused(text()), Failure::Unavailable(text())];
        assert_eq!(all.map(|failure| failure.name()), Failure::NAMES);
    }

    #[test]
    fn only_what_could_stand_in_a_topic_is_kept_of_the_claims() {
        let claims = json!({
            "site": "north", "line": 7, "sites": ["a", 1, true, {"b": 1}, 1.5], "admin": true, "at": 1.5, "none": null,
            "of": {"a": "b"}, "empty": [],
        });
        let claims = Claims::of(claims.as_object().expect("an object"));
        let get = |name| claims.get(name).iter().map(|value| value.as_ref()).collect::<Vec<_>>();
        assert_eq!((get("site"), get("line"), get("sites")), (vec!["north"], vec!["7"], vec!["a", "1"]));
        for name in ["admin", "at", "none", "of", "empty", "other"] {
            assert!(claims.get(name).is_empty(), "{name}");
        }
    }
}
