//! The topics that a grant means: a filter in which placeholders stand for what is known of a session.

use std::fmt;
use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::identity::Identity;
use crate::mqtt::{TopicError, TopicFilter};

/// Values of one list that are looked at; of longer ones the rest counts as what can't stand in a topic.
const MAX_VALUES: usize = 256;
/// Filters that one pattern may come to, where lists meet in it.
const MAX_FILTERS: usize = 4096;

/// A topic filter with placeholders: `plant/{claim.site}/#`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    text: Box<str>,
    /// In order, no two alike; a pattern without any is a filter.
    placeholders: Box<[Placeholder]>,
}

/// What a placeholder stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placeholder {
    /// The user; an anonymous session has none.
    User,
    /// The client identifier that the client gave.
    ClientId,
    /// A claim of the token; of a list, each of its values.
    Claim(Box<str>),
    /// Each device of a group.
    Group(Box<str>),
}

/// Of whom placeholders speak.
#[derive(Clone, Copy)]
pub struct Bearer<'a> {
    /// Who it is.
    pub identity: &'a Identity,
    /// What the client calls itself.
    pub client_id: &'a str,
    /// The devices of a group, by its name.
    pub devices: &'a dyn Fn(&str) -> &'a [Box<str>],
}

/// What becomes of a pattern whose placeholder can't be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// It means no topic: nothing may be had by what is not known.
    LeavesOut,
    /// Any name may stand there: nothing may escape by what is not known.
    StandsForAny,
}

/// Why a text is no pattern.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum PatternError {
    #[error("`{{{0}}}` is no placeholder: there are {{user}}, {{clientId}}, {{claim.NAME}} and {{group.NAME}}")]
    Placeholder(String),
    #[error("a `{{` or `}}` without its other half: placeholders are written {{user}}")]
    Brace,
    #[error("grants speak of the topics themselves: leave out `$share/GROUP/`")]
    Share,
    #[error(transparent)]
    Filter(#[from] TopicError),
}

impl Pattern {
    /// Reads what stands in a configuration.
    pub fn parse(text: &str) -> Result<Pattern, PatternError> {
        let mut placeholders = Vec::new();
        let mut example = String::with_capacity(text.len());
        for part in Parts(text) {
            match part? {
                Part::Text(text) => example.push_str(text),
                Part::Placeholder(name) => {
                    let placeholder = Placeholder::parse(name)?;
                    if !placeholders.contains(&placeholder) {
                        placeholders.push(placeholder);
                    }
                    example.push('x');
                }
            }
        }
        if TopicFilter::parse(&example)?.is_shared() {
            return Err(PatternError::Share);
        }
        Ok(Pattern { text: text.into(), placeholders: placeholders.into() })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What it has in place of names.
    pub fn placeholders(&self) -> &[Placeholder] {
        &self.placeholders
    }

    /// Whether one of the filters that it comes to for this bearer is as asked.
    pub fn any(&self, bearer: &Bearer, unknown: Unknown, mut is_asked: impl FnMut(&str) -> bool) -> bool {
        if self.placeholders.is_empty() {
            return is_asked(&self.text);
        }
        let choices: Vec<Vec<Option<&str>>> =
            self.placeholders.iter().map(|placeholder| placeholder.values(bearer, unknown)).collect();
        let all = choices.iter().try_fold(1_usize, |all, values| all.checked_mul(values.len()));
        if all.is_none_or(|all| all > MAX_FILTERS) {
            return match unknown {
                Unknown::LeavesOut => false,
                Unknown::StandsForAny => is_asked(&self.filter(&vec![None; choices.len()])),
            };
        }
        let mut chosen = Vec::with_capacity(choices.len());
        self.choose(&choices, &mut chosen, &mut is_asked).is_break()
    }

    fn choose<'a>(
        &self,
        choices: &[Vec<Option<&'a str>>],
        chosen: &mut Vec<Option<&'a str>>,
        is_asked: &mut impl FnMut(&str) -> bool,
    ) -> ControlFlow<()> {
        let Some((values, rest)) = choices.split_first() else {
            return if is_asked(&self.filter(chosen)) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        };
        for value in values {
            chosen.push(*value);
            let found = self.choose(rest, chosen, is_asked);
            chosen.pop();
            found?;
        }
        ControlFlow::Continue(())
    }

    /// The filter with these values in the places of its placeholders; a level with one that has none is `+`.
    fn filter(&self, chosen: &[Option<&str>]) -> String {
        let mut filter = String::with_capacity(self.text.len() + 16);
        for (index, level) in self.text.split('/').enumerate() {
            if index > 0 {
                filter.push('/');
            }
            let begins = filter.len();
            for part in Parts(level) {
                match part.expect("what was parsed has whole placeholders") {
                    Part::Text(text) => filter.push_str(text),
                    Part::Placeholder(name) => {
                        let value = self.placeholders.iter().position(|known| known.is_written(name));
                        match value.and_then(|index| chosen[index]) {
                            Some(value) => filter.push_str(value),
                            None => {
                                filter.truncate(begins);
                                filter.push('+');
                                break;
                            }
                        }
                    }
                }
            }
        }
        filter
    }
}

impl Placeholder {
    fn parse(name: &str) -> Result<Placeholder, PatternError> {
        match name {
            "user" => Ok(Placeholder::User),
            "clientId" => Ok(Placeholder::ClientId),
            _ => match name.split_once('.') {
                Some(("claim", claim)) if !claim.is_empty() => Ok(Placeholder::Claim(claim.into())),
                Some(("group", group)) if !group.is_empty() => Ok(Placeholder::Group(group.into())),
                _ => Err(PatternError::Placeholder(name.chars().take(40).collect())),
            },
        }
    }

    fn is_written(&self, name: &str) -> bool {
        match self {
            Placeholder::User => name == "user",
            Placeholder::ClientId => name == "clientId",
            Placeholder::Claim(claim) => name.strip_prefix("claim.") == Some(claim),
            Placeholder::Group(group) => name.strip_prefix("group.") == Some(group),
        }
    }

    /// Its values, as far as they can stand in a topic; nothing for one that can't, where that stands for any.
    fn values<'a>(&self, bearer: &Bearer<'a>, unknown: Unknown) -> Vec<Option<&'a str>> {
        let mut values: Vec<Option<&str>> = Vec::new();
        let mut is_all_known = true;
        let mut add = |value: Option<&'a str>| match value.filter(|value| expands(value)) {
            Some(value) if values.len() < MAX_VALUES => values.push(Some(value)),
            Some(_) | None => is_all_known = false,
        };
        match self {
            Placeholder::User => add(bearer.identity.user.as_deref()),
            Placeholder::ClientId => add(Some(bearer.client_id)),
            Placeholder::Claim(claim) => match bearer.identity.claims.get(claim) {
                [] => add(None),
                all => all.iter().for_each(|value| add(Some(value))),
            },
            Placeholder::Group(group) => (bearer.devices)(group).iter().for_each(|device| add(Some(device))),
        }
        if !is_all_known && unknown == Unknown::StandsForAny {
            values.push(None);
        }
        values
    }
}

/// Whether a value may stand in a topic as one level of it, or a part of one: it brings no level, wildcard or `$` of its own.
pub fn expands(value: &str) -> bool {
    !value.is_empty() && !value.contains(['+', '#', '/', '$', '\0'])
}

/// A text in parts: what is between braces, and what is not.
struct Parts<'a>(&'a str);

enum Part<'a> {
    Text(&'a str),
    Placeholder(&'a str),
}

impl<'a> Iterator for Parts<'a> {
    type Item = Result<Part<'a>, PatternError>;

    fn next(&mut self) -> Option<Self::Item> {
        let text = self.0;
        if text.is_empty() {
            return None;
        }
        let (part, rest) = match text.find(['{', '}']) {
            None => (Ok(Part::Text(text)), ""),
            Some(0) => match text.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
                Some((name, rest)) if !name.contains('{') => (Ok(Part::Placeholder(name)), rest),
                Some(_) | None => (Err(PatternError::Brace), ""),
            },
            Some(at) => (Ok(Part::Text(&text[..at])), &text[at..]),
        };
        self.0 = rest;
        Some(part)
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Pattern, PatternError> {
        Pattern::parse(&text)
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> String {
        pattern.text.into()
    }
}

impl fmt::Display for Pattern {
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

    fn filters(pattern: &str, unknown: Unknown, identity: &Identity, client_id: &str) -> Vec<String> {
        let devices: Vec<Box<str>> = vec!["p1".into(), "p2".into()];
        let none = Vec::new();
        let of_group = |name: &str| if name == "pumps" { devices.as_slice() } else { none.as_slice() };
        let bearer = Bearer { identity, client_id, devices: &of_group };
        let mut seen = Vec::new();
        let pattern = Pattern::parse(pattern).expect("a pattern");
        pattern.any(&bearer, unknown, |filter| {
            seen.push(filter.to_owned());
            false
        });
        seen
    }

    fn anna(claims: serde_json::Value) -> Identity {
        let claims = Claims::of(claims.as_object().expect("an object"));
        Identity { user: Some("anna".into()), claims, ..Identity::anonymous(&[]) }
    }

    #[test]
    fn placeholders_are_replaced_by_what_is_known() {
        let identity = anna(json!({"site": "north", "line": 7, "sites": ["a", "b"], "zones": ["x", "y"]}));
        for (pattern, expected) in [
            ("a/+/#", vec!["a/+/#"]),
            ("user/{user}/#", vec!["user/anna/#"]),
            ("c-{clientId}-x/{user}", vec!["c-c1-x/anna"]),
            ("{claim.site}/{claim.line}", vec!["north/7"]),
            ("plant/{claim.sites}/#", vec!["plant/a/#", "plant/b/#"]),
            ("{claim.sites}/{claim.zones}", vec!["a/x", "a/y", "b/x", "b/y"]),
            ("{claim.sites}/to/{claim.sites}", vec!["a/to/a", "b/to/b"]),
            ("devices/{group.pumps}/status", vec!["devices/p1/status", "devices/p2/status"]),
        ] {
            assert_eq!(filters(pattern, Unknown::LeavesOut, &identity, "c1"), expected, "{pattern}");
        }
    }

    #[test]
    fn what_can_not_stand_in_a_topic_never_expands_where_something_is_allowed_and_is_any_level_where_denied() {
        let anonymous = Identity::anonymous(&[]);
        for value in ["", "+", "#", "a/b", "$SYS", "a\0b", "a+", "no#"] {
            let identity = Identity { user: Some(value.into()), ..anna(json!({"site": ["ok", value]})) };
            let allowed = |pattern| filters(pattern, Unknown::LeavesOut, &identity, value);
            let denied = |pattern| filters(pattern, Unknown::StandsForAny, &identity, value);
            assert_eq!(allowed("u/{user}/#"), [""; 0], "{value:?}");
            assert_eq!(allowed("u/{clientId}/#"), [""; 0], "{value:?}");
            assert_eq!(allowed("u/x-{claim.site}/#"), ["u/x-ok/#"], "{value:?}");
            assert_eq!(denied("u/{user}/#"), ["u/+/#"], "{value:?}");
            assert_eq!(denied("u/x-{claim.site}/#"), ["u/x-ok/#", "u/+/#"], "{value:?}");
        }
        assert_eq!(filters("u/{user}", Unknown::LeavesOut, &anonymous, "c"), [""; 0]);
        assert_eq!(filters("u/{user}", Unknown::StandsForAny, &anonymous, "c"), ["u/+"]);
        assert_eq!(filters("u/{claim.none}", Unknown::LeavesOut, &anonymous, "c"), [""; 0]);
        assert_eq!(filters("u/{group.none}", Unknown::LeavesOut, &anonymous, "c"), [""; 0]);
    }

    #[test]
    fn lists_that_are_too_long_allow_no_more_and_deny_no_less() {
        let long: Vec<String> = (0..300).map(|number| format!("n{number}")).collect();
        let identity = anna(json!({"long": long, "other": long}));
        assert_eq!(filters("{claim.long}", Unknown::LeavesOut, &identity, "c").len(), MAX_VALUES);
        let denied = filters("{claim.long}", Unknown::StandsForAny, &identity, "c");
        assert_eq!((denied.len(), denied.last().map(String::as_str)), (MAX_VALUES + 1, Some("+")));
        assert_eq!(filters("{claim.long}/{claim.other}", Unknown::LeavesOut, &identity, "c"), [""; 0]);
        assert_eq!(filters("{claim.long}/{claim.other}", Unknown::StandsForAny, &identity, "c"), ["+/+"]);
    }

    #[test]
    fn a_slip_in_a_pattern_is_told() {
        for (text, expected) in [
            ("a/{usr}", "`{usr}` is no placeholder: there are {user}"),
            ("a/{claim.}", "no placeholder"),
            ("a/{user", "without its other half"),
            ("a/user}", "without its other half"),
            ("a/{{user}}", "without its other half"),
            ("a/#/b", "`#` only as its last level"),
            ("a/{user}#", "only as whole levels"),
            ("", "at least one character"),
            ("$share/g/a", "leave out `$share/GROUP/`"),
        ] {
            let error = Pattern::parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    proptest! {
        /// Whatever a token says, it brings nothing but one level into a topic.
        #[test]
        fn what_expands_is_a_filter_of_as_many_levels(user in ".{0,8}", site in "[a-c+#/$\\x00]{0,3}", client_id in ".{1,5}") {
            let identity = Identity { user: Some(user.into()), ..anna(json!({"site": site})) };
            let pattern = "a/{user}/{clientId}/x{claim.site}/#";
            for unknown in [Unknown::LeavesOut, Unknown::StandsForAny] {
                for filter in filters(pattern, unknown, &identity, &client_id) {
                    prop_assert!(TopicFilter::parse(&filter).is_ok(), "{}", filter);
                    prop_assert_eq!(filter.split('/').count(), 5);
                }
            }
        }
    }
}
