//! What the broker is told of a session: texts in which placeholders stand for what is known of it.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::identity::Identity;

/// A text with placeholders: `{user}`, `{clientId}`, `{claim.NAME}`, and for a password `{token}`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    User,
    ClientId,
    Claim(String),
    Token,
}

/// Why a text is no template.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum TemplateError {
    #[error(
        "`{{{0}}}` is no placeholder: there are {{user}}, {{clientId}}, {{claim.NAME}} and, for a password, {{token}}"
    )]
    Placeholder(String),
    #[error("a `{{` without its `}}`: placeholders are written {{user}}")]
    Brace,
}

impl Template {
    /// Reads what stands in a configuration.
    pub fn parse(text: &str) -> Result<Template, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or(TemplateError::Brace)?;
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(match name {
                "user" => Part::User,
                "clientId" => Part::ClientId,
                "token" => Part::Token,
                _ => match name.split_once('.') {
                    Some(("claim", claim)) if !claim.is_empty() => Part::Claim(claim.to_owned()),
                    _ => return Err(TemplateError::Placeholder(name.chars().take(40).collect())),
                },
            });
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Template { text: text.to_owned(), parts })
    }

    /// For the client identifier at the broker: it must tell any two users apart, whatever they and their clients are called.
    pub fn check_client_id(&self) -> Result<(), &'static str> {
        if !self.parts.contains(&Part::User) || !self.parts.contains(&Part::ClientId) {
            return Err("it must hold {user} and {clientId}: else one user could take over the sessions of another");
        }
        if self.parts.contains(&Part::Token) {
            return Err("a token must not stand in a client identifier: brokers show them");
        }
        // What stands for a name is escaped, so that it never holds what is between two.
        let are_apart = self.parts.windows(2).all(|pair| matches!(pair, [Part::Text(_), _] | [_, Part::Text(_)]));
        let stands_in_names = |char| is_kept(char) || char == '%';
        let divides = |part: &Part| !matches!(part, Part::Text(text) if text.chars().all(stands_in_names));
        if !are_apart
            || !self.parts.iter().enumerate().all(|(at, part)| at == 0 || at + 1 == self.parts.len() || divides(part))
        {
            return Err(
                "between two placeholders it must hold one of : ; , ! * = @ or the like, which names don't: {user}:{clientId}",
            );
        }
        Ok(())
    }

    /// The text for this session, with names escaped as in URLs, so that no two sessions come to the same.
    pub fn client_id(&self, identity: &Identity, client_id: &str) -> String {
        let mut id = String::with_capacity(self.text.len() + client_id.len());
        for part in &self.parts {
            match part {
                Part::Text(text) => id.push_str(text),
                Part::User => escape(identity.user.as_deref().unwrap_or_default(), &mut id),
                Part::ClientId => escape(client_id, &mut id),
                Part::Claim(claim) => {
                    escape(identity.claims.get(claim).first().map_or("", |value| value.as_ref()), &mut id);
                }
                Part::Token => {}
            }
        }
        id
    }

    /// The text for this session, as it is; the error names what the session lacks.
    pub fn fill(
        &self,
        identity: &Identity,
        client_id: &str,
        token: Option<&SecretString>,
    ) -> Result<SecretString, String> {
        let mut text = String::with_capacity(self.text.len());
        for part in &self.parts {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::User => text.push_str(identity.user.as_deref().ok_or("user")?),
                Part::ClientId => text.push_str(client_id),
                Part::Claim(claim) => {
                    text.push_str(identity.claims.get(claim).first().ok_or_else(|| format!("claim {claim}"))?);
                }
                Part::Token => text.push_str(token.ok_or("token")?.expose_secret()),
            }
        }
        Ok(text.into())
    }
}

/// What stands for itself in an escaped name: what RFC 3986 section 2.3 calls unreserved, but for the tilde.
fn is_kept(char: char) -> bool {
    char.is_ascii_alphanumeric() || matches!(char, '-' | '.' | '_')
}

/// Percent-encoding, as RFC 3986 section 2.1 has it.
fn escape(name: &str, into: &mut String) {
    for byte in name.bytes() {
        match char::from(byte) {
            char if is_kept(char) => into.push(char),
            _ => into.push_str(&format!("%{byte:02X}")),
        }
    }
}

impl TryFrom<String> for Template {
    type Error = TemplateError;

    fn try_from(text: String) -> Result<Template, TemplateError> {
        Template::parse(&text)
    }
}

impl From<Template> for String {
    fn from(template: Template) -> String {
        template.text
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::access::identity::Claims;

    fn template(text: &str) -> Template {
        Template::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn identity(user: Option<&str>) -> Identity {
        let claims = json!({"site": ["north", "south"]});
        let claims = Claims::of(claims.as_object().expect("an object"));
        Identity { user: user.map(Into::into), claims, ..Identity::anonymous(&[]) }
    }

    #[test]
    fn a_template_is_filled_with_what_is_known() {
        let anna = identity(Some("anna@x/y"));
        let token = SecretString::from("t0ken");
        for (text, expected) in [
            ("gateway", Ok("gateway")),
            ("{user}", Ok("anna@x/y")),
            ("{claim.site}-{clientId}", Ok("north-c 1")),
            ("Bearer {token}", Ok("Bearer t0ken")),
            ("{claim.line}", Err("claim line".to_owned())),
        ] {
            let filled = template(text).fill(&anna, "c 1", Some(&token));
            assert_eq!(
                filled.as_ref().map(ExposeSecret::expose_secret),
                expected.as_ref().map(|text| &**text),
                "{text}"
            );
        }
        assert_eq!(template("{user}").fill(&identity(None), "c", None).err().as_deref(), Some("user"));
        assert_eq!(template("{token}").fill(&anna, "c", None).err().as_deref(), Some("token"));
        assert_eq!(template("x:{user}:{clientId}").client_id(&anna, "c 1"), "x:anna%40x%2Fy:c%201");
        assert_eq!(template("{user}:{clientId}").client_id(&identity(None), "anna:c"), ":anna%3Ac");
    }

    #[test]
    fn a_client_identifier_must_tell_users_apart() {
        for text in
            ["{user}:{clientId}", "tg/{clientId}@{user}", "{claim.site}!{user}!{clientId}!x", "a{user}:{clientId}b"]
        {
            assert_eq!(template(text).check_client_id(), Ok(()), "{text}");
        }
        for text in [
            "{clientId}",
            "{user}",
            "{user}{clientId}",
            "{user}-{clientId}",
            // `a` with `25%` would come to the same as `a%` with `25`.
            "{user}%{clientId}",
            "{user}-%2d{clientId}",
            "{user}:{clientId}:{token}",
            "x",
        ] {
            assert!(template(text).check_client_id().is_err(), "{text}");
        }
    }

    #[test]
    fn a_slip_in_a_template_is_told() {
        assert!(Template::parse("{usr}").is_err_and(|error| error.to_string().contains("`{usr}` is no placeholder")));
        assert_eq!(Template::parse("a{user"), Err(TemplateError::Brace));
    }

    proptest! {
        #[test]
        fn no_two_clients_come_to_the_same_identifier(
            one in (proptest::option::of("[a:%/é]{1,4}"), "[a:%/é]{1,4}"),
            other in (proptest::option::of("[a:%/é]{1,4}"), "[a:%/é]{1,4}"),
        ) {
            let id = |(user, client): &(Option<String>, String)| {
                template("{user}:{clientId}").client_id(&identity(user.as_deref()), client)
            };
            prop_assert_eq!(id(&one) == id(&other), one == other);
        }
    }
}
