//! What each role may do, and how a request is judged by it.
//!
//! A role is a list of grants, of which the last that decides counts. A topic is decided by the last grant that matches it. A
//! subscription is decided by the last grant that denies some of it or allows all of it: what allows only some of it is passed over.
//! Where nothing decides, the role does not allow it. Of several roles any one that allows is enough.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};

use serde::{Deserialize, Serialize};

use super::identity::Identity;
use super::pattern::{Bearer, Pattern, Placeholder, Unknown};
use crate::mqtt::{Qos, Topic, TopicFilter, topic};
use crate::units;

/// The roles and the groups of a configuration.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    roles: BTreeMap<String, Role>,
    groups: BTreeMap<String, Group>,
    /// A subscription that is allowed in part is made, and brings that part.
    narrows: bool,
}

/// A role: `[roles.NAME]`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Role {
    /// What it allows and denies; the last that decides counts.
    pub grants: Vec<Grant>,
    /// The most publishes a second of one user.
    #[serde(deserialize_with = "units::some_count")]
    pub max_publishes_per_second: Option<NonZeroU32>,
    /// The most bytes of payload that one user publishes a second.
    #[serde(deserialize_with = "units::some_count")]
    pub max_bytes_per_second: Option<NonZeroU32>,
    /// The most subscriptions of one session.
    #[serde(deserialize_with = "units::some_count")]
    pub max_subscriptions: Option<NonZeroUsize>,
    /// The most sessions of one user.
    #[serde(deserialize_with = "units::some_count")]
    pub max_connections: Option<NonZeroUsize>,
}

/// Devices that belong together: `[groups.NAME]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Group {
    /// Their names, for `{group.NAME}` in the topics of a grant.
    pub devices: Vec<Box<str>>,
}

/// One thing that a role allows or denies.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Grant {
    effect: Effect,
    actions: Vec<Action>,
    topics: Vec<Pattern>,
    /// The qos that it speaks of; none stands for all.
    qos: Vec<u8>,
    /// Whether it speaks of publishes to be stored or of the others alone.
    retain: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Allow,
    Deny,
}

/// What one may want of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// To send messages to it.
    Publish,
    /// To get those that are sent.
    Subscribe,
}

impl Action {
    /// As it is written in a grant.
    pub fn name(self) -> &'static str {
        match self {
            Action::Publish => "publish",
            Action::Subscribe => "subscribe",
        }
    }
}

/// A grant as it stands in the file.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    allow: Option<Vec<Action>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deny: Option<Vec<Action>>,
    topics: Vec<Pattern>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    qos: Vec<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retain: Option<bool>,
}

impl TryFrom<Written> for Grant {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Grant, &'static str> {
        let Written { allow, deny, topics, qos, retain } = written;
        let (effect, actions) = match (allow, deny) {
            (Some(actions), None) => (Effect::Allow, actions),
            (None, Some(actions)) => (Effect::Deny, actions),
            (None, None) | (Some(_), Some(_)) => return Err("a grant has either `allow` or `deny`"),
        };
        if actions.is_empty() {
            return Err("a grant names what it speaks of: [\"publish\"], [\"subscribe\"] or both");
        }
        if topics.is_empty() {
            return Err("a grant names its topics, such as [\"plant/#\"]");
        }
        if qos.iter().any(|qos| *qos > 2) {
            return Err("qos is 0, 1 or 2");
        }
        if retain.is_some() && actions.contains(&Action::Subscribe) {
            return Err("`retain` tells publishes apart: a grant with it speaks of [\"publish\"] alone");
        }
        Ok(Grant { effect, actions, topics, qos, retain })
    }
}

impl From<Grant> for Written {
    fn from(grant: Grant) -> Written {
        let Grant { effect, actions, topics, qos, retain } = grant;
        let (allow, deny) = match effect {
            Effect::Allow => (Some(actions), None),
            Effect::Deny => (None, Some(actions)),
        };
        Written { allow, deny, topics, qos, retain }
    }
}

/// What somebody asks for.
#[derive(Clone, Copy, Debug)]
pub enum Wish<'a> {
    /// To publish a message.
    Publish {
        /// Where to.
        topic: &'a Topic,
        /// How.
        qos: Qos,
        /// It is to be stored.
        retain: bool,
    },
    /// To subscribe.
    Subscribe {
        /// What to.
        filter: &'a TopicFilter,
        /// The highest that deliveries may have.
        qos: Qos,
    },
    /// To be delivered a message that comes without a subscription that was judged, or by one that was allowed in part.
    Receive {
        /// Where it was published.
        topic: &'a Topic,
        /// The highest that its subscription could have.
        qos: Qos,
    },
}

/// What became of a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is allowed, and by what.
    Allowed(Rule),
    /// Part of a subscription is allowed, so each message is to be judged.
    Narrowed(Rule),
    /// It is denied by a grant.
    Denied(Rule),
    /// None of the session's roles allows it.
    Unheard,
}

/// The grant that decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The name of the role.
    pub role: Box<str>,
    /// Which of its grants, counted from 1.
    pub number: usize,
    /// The topics as they are written there.
    pub pattern: Box<str>,
}

impl Policy {
    /// The error names a role and says what to mend.
    pub fn new(
        roles: BTreeMap<String, Role>,
        groups: BTreeMap<String, Group>,
        narrows: bool,
    ) -> Result<Policy, String> {
        for (name, role) in &roles {
            let patterns = role.grants.iter().flat_map(|grant| &grant.topics);
            for placeholder in patterns.flat_map(Pattern::placeholders) {
                match placeholder {
                    Placeholder::Group(group) if !groups.contains_key(&**group) => {
                        return Err(format!("roles.{name}: there is no [groups.{group}]"));
                    }
                    Placeholder::Group(_) | Placeholder::User | Placeholder::ClientId | Placeholder::Claim(_) => {}
                }
            }
        }
        Ok(Policy { roles, groups, narrows })
    }

    /// Whether there is a role of this name.
    pub fn has_role(&self, name: &str) -> bool {
        self.roles.contains_key(name)
    }

    /// Whether there is any role.
    pub fn is_empty(&self) -> bool {
        self.roles.is_empty()
    }

    /// The most generous of each limit among the roles of an identity; nothing where no role sets one.
    pub fn allowance(&self, identity: &Identity) -> Allowance {
        let roles = || identity.roles.iter().filter_map(|name| self.roles.get(&**name));
        Allowance {
            publishes_per_second: roles().filter_map(|role| role.max_publishes_per_second).max(),
            bytes_per_second: roles().filter_map(|role| role.max_bytes_per_second).max(),
            subscriptions: roles().filter_map(|role| role.max_subscriptions).max(),
            connections: roles().filter_map(|role| role.max_connections).max(),
        }
    }

    /// Judges a wish of an identity whose client calls itself so.
    pub fn judge(&self, identity: &Identity, client_id: &str, wish: Wish) -> Verdict {
        let devices = |group: &str| self.groups.get(group).map_or(&[][..], |group| &group.devices);
        let bearer = Bearer { identity, client_id, devices: &devices };
        let mut others = Judged::default();
        for name in &identity.roles {
            let Some(role) = self.roles.get(&**name) else { continue };
            let judged = role.judge(name, &bearer, wish);
            if let Some(rule) = judged.allowed {
                return Verdict::Allowed(rule);
            }
            others.allowed_in_part = others.allowed_in_part.or(judged.allowed_in_part);
            others.denied = others.denied.or(judged.denied);
        }
        match (others.allowed_in_part.filter(|_| self.narrows), others.denied) {
            (Some(rule), _) => Verdict::Narrowed(rule),
            (None, Some(rule)) => Verdict::Denied(rule),
            (None, None) => Verdict::Unheard,
        }
    }
}

/// How much an identity may do; nothing stands for what the gateway's own limits say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// Publishes a second.
    pub publishes_per_second: Option<NonZeroU32>,
    /// Bytes of payload a second.
    pub bytes_per_second: Option<NonZeroU32>,
    /// Subscriptions of a session.
    pub subscriptions: Option<NonZeroUsize>,
    /// Sessions at one time.
    pub connections: Option<NonZeroUsize>,
}

/// What one role says of a wish.
#[derive(Default)]
struct Judged {
    allowed: Option<Rule>,
    allowed_in_part: Option<Rule>,
    denied: Option<Rule>,
}

impl Role {
    fn judge(&self, name: &str, bearer: &Bearer, wish: Wish) -> Judged {
        let mut judged = Judged::default();
        for (index, grant) in self.grants.iter().enumerate().rev().filter(|(_, grant)| grant.speaks_of(wish)) {
            let find = |is_asked: &dyn Fn(&str) -> bool| {
                let pattern = grant.find(bearer, is_asked)?;
                Some(Rule { role: name.into(), number: index + 1, pattern: pattern.as_str().into() })
            };
            match (wish, grant.effect) {
                (Wish::Publish { topic, .. } | Wish::Receive { topic, .. }, effect) => {
                    let Some(rule) = find(&|granted| topic::matches(granted, topic.as_str())) else { continue };
                    match effect {
                        Effect::Allow => judged.allowed = Some(rule),
                        Effect::Deny => judged.denied = Some(rule),
                    }
                    return judged;
                }
                (Wish::Subscribe { filter, .. }, Effect::Allow) => {
                    if let Some(rule) = find(&|granted| topic::covers(granted, filter.pattern())) {
                        match judged.denied {
                            None => judged.allowed = Some(rule),
                            Some(_) => judged.allowed_in_part = judged.allowed_in_part.or(Some(rule)),
                        }
                        return judged;
                    }
                    if judged.allowed_in_part.is_none() {
                        judged.allowed_in_part = find(&|granted| topic::intersects(granted, filter.pattern()));
                    }
                }
                (Wish::Subscribe { filter, .. }, Effect::Deny) => {
                    if judged.denied.is_none() {
                        judged.denied = find(&|denied| topic::intersects(denied, filter.pattern()));
                    }
                    // What stands before it has nothing left to allow.
                    if find(&|denied| topic::covers(denied, filter.pattern())).is_some() {
                        return judged;
                    }
                }
            }
        }
        judged
    }
}

impl Grant {
    fn speaks_of(&self, wish: Wish) -> bool {
        let (action, qos, retain) = match wish {
            Wish::Publish { qos, retain, .. } => (Action::Publish, qos, Some(retain)),
            Wish::Subscribe { qos, .. } | Wish::Receive { qos, .. } => (Action::Subscribe, qos, None),
        };
        self.actions.contains(&action)
            && (self.qos.is_empty() || self.qos.contains(&qos.number()))
            && self.retain.is_none_or(|wanted| retain == Some(wanted))
    }

    /// The first of its patterns that comes to a filter as asked.
    fn find(&self, bearer: &Bearer, is_asked: &dyn Fn(&str) -> bool) -> Option<&Pattern> {
        let unknown = match self.effect {
            Effect::Allow => Unknown::LeavesOut,
            Effect::Deny => Unknown::StandsForAny,
        };
        self.topics.iter().find(|pattern| pattern.any(bearer, unknown, is_asked))
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
