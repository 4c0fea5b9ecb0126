//! What one session may do, by the roles of its identity, and why not.

use std::sync::Arc;

use super::identity::Identity;
use super::policy::{Action, Allowance, Policy, Rule, Verdict, Wish};
use crate::mqtt::{Message, Qos, Topic, TopicFilter};
use crate::wire::{Code, Refusal};

/// The rights of a session, until its token is renewed or the configuration changes.
#[derive(Debug)]
pub struct Rights {
    policy: Arc<Policy>,
    identity: Identity,
    client_id: Box<str>,
}

/// How a subscription is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscribing {
    /// The highest qos that is allowed, and no higher than was asked.
    pub qos: Qos,
    /// Only some of its messages are allowed, so each is to be judged.
    pub is_narrowed: bool,
}

impl Rights {
    /// Of this identity, whose client calls itself so.
    pub fn new(policy: Arc<Policy>, identity: Identity, client_id: &str) -> Rights {
        Rights { policy, identity, client_id: client_id.into() }
    }

    /// Who has them.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What the client calls itself.
    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    /// What the same client may do when this holds.
    pub fn under(&self, policy: Arc<Policy>) -> Rights {
        Rights { policy, identity: self.identity.clone(), client_id: self.client_id.clone() }
    }

    /// What the same client may do as this identity.
    pub fn renewed(&self, identity: Identity) -> Rights {
        Rights { policy: self.policy.clone(), identity, client_id: self.client_id.clone() }
    }

    /// How much it may do.
    pub fn allowance(&self) -> Allowance {
        self.policy.allowance(&self.identity)
    }

    /// Whether it may publish this.
    pub fn publish(&self, message: &Message) -> Result<(), Refusal> {
        let Message { topic, qos, retain, .. } = message;
        let judged = self.judge_publish(topic, *qos, *retain);
        judged.map(drop).map_err(|denied| self.refusal(Action::Publish, topic.as_str(), denied.as_ref()))
    }

    /// Whether it may subscribe to this, and with which qos at most. A member of a group takes what others then don't get: that has
    /// to be allowed as a whole.
    pub fn subscribe(&self, filter: &TopicFilter, qos: Qos) -> Result<Subscribing, Refusal> {
        match self.judge_subscribe(filter, qos) {
            Ok((subscribing, _)) => Ok(subscribing),
            Err(denied) => Err(self.refusal(Action::Subscribe, filter.as_str(), denied.as_ref())),
        }
    }

    /// The grant that allows it, or else the one that denies it, if there is one.
    fn judge_publish(&self, topic: &Topic, qos: Qos, retain: bool) -> Result<Rule, Option<Rule>> {
        match self.policy.judge(&self.identity, &self.client_id, Wish::Publish { topic, qos, retain }) {
            Verdict::Allowed(rule) => Ok(rule),
            Verdict::Denied(rule) => Err(Some(rule)),
            Verdict::Narrowed(_) | Verdict::Unheard => Err(None),
        }
    }

    /// The same of a subscription.
    fn judge_subscribe(&self, filter: &TopicFilter, qos: Qos) -> Result<(Subscribing, Rule), Option<Rule>> {
        let mut denied = None;
        for qos in [Qos::ExactlyOnce, Qos::AtLeastOnce, Qos::AtMostOnce].into_iter().filter(|lower| *lower <= qos) {
            match self.policy.judge(&self.identity, &self.client_id, Wish::Subscribe { filter, qos }) {
                Verdict::Allowed(rule) => return Ok((Subscribing { qos, is_narrowed: false }, rule)),
                Verdict::Narrowed(rule) if !filter.is_shared() => {
                    return Ok((Subscribing { qos, is_narrowed: true }, rule));
                }
                Verdict::Denied(rule) => denied = denied.or(Some(rule)),
                Verdict::Narrowed(_) | Verdict::Unheard => {}
            }
        }
        Err(denied)
    }

    /// Whether only some of the messages of a subscription are allowed, so that each is to be judged.
    pub fn narrows(&self, filter: &TopicFilter, qos: Qos) -> bool {
        self.subscribe(filter, qos).is_ok_and(|granted| granted.is_narrowed)
    }

    /// Whether it may have a message that comes without a subscription that was judged, or by one that was allowed in part.
    pub fn receive(&self, topic: &Topic) -> bool {
        // With some qos it could have subscribed to that topic alone.
        [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce].into_iter().any(|qos| {
            let verdict = self.policy.judge(&self.identity, &self.client_id, Wish::Receive { topic, qos });
            matches!(verdict, Verdict::Allowed(_))
        })
    }

    fn refusal(&self, action: Action, topic: &str, denied: Option<&Rule>) -> Refusal {
        let (action, because) = (action.name(), self.because(action, denied));
        Refusal::new(Code::NotAuthorized, format!("You may not {action} to {}: {because}.", shortened(topic)))
    }

    fn because(&self, action: Action, denied: Option<&Rule>) -> String {
        let action = action.name();
        match (denied, &*self.identity.roles) {
            (Some(Rule { role, number, pattern }), _) => {
                format!("grant {number} of the role {role} denies `{action}` on {pattern}")
            }
            (None, []) => "the session has no role".to_owned(),
            (None, [role]) => format!("no grant of the role {role} allows it"),
            (None, roles) => format!("no grant of the roles {} allows it", roles.join(", ")),
        }
    }

    /// Why it may publish so, or not.
    pub fn explain_publish(&self, topic: &Topic, qos: Qos, retain: bool) -> Explanation {
        match self.judge_publish(topic, qos, retain) {
            Ok(rule) => Explanation { qos: Some(qos), why: allows(Action::Publish, &rule) },
            Err(denied) => Explanation { qos: None, why: self.because(Action::Publish, denied.as_ref()) },
        }
    }

    /// Why it may subscribe, or not.
    pub fn explain_subscribe(&self, filter: &TopicFilter, qos: Qos) -> Explanation {
        match self.judge_subscribe(filter, qos) {
            Ok((Subscribing { qos, is_narrowed }, rule)) => {
                let narrowed = if is_narrowed { ", so part of the messages will come (auth.narrow)" } else { "" };
                Explanation { qos: Some(qos), why: allows(Action::Subscribe, &rule) + narrowed }
            }
            Err(denied) => Explanation { qos: None, why: self.because(Action::Subscribe, denied.as_ref()) },
        }
    }
}

/// What becomes of a request, and by which rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The qos that is granted; nothing if it is denied.
    pub qos: Option<Qos>,
    /// The rule, for people.
    pub why: String,
}

fn allows(action: Action, Rule { role, number, pattern }: &Rule) -> String {
    format!("grant {number} of the role {role} allows `{}` on {pattern}", action.name())
}

/// A topic may be as long as 65,535 bytes; an error need not.
fn shortened(topic: &str) -> String {
    const MOST: usize = 200;
    match topic.char_indices().nth(MOST) {
        None => topic.to_owned(),
        Some((end, _)) => format!("{}…", &topic[..end]),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::access::RoleConfig;
    use crate::access::identity::names;

    /// The rights of somebody with two roles, of which each allows and denies something.
    fn rights(narrows: bool) -> Rights {
        let role = |text: &str| toml::from_str::<RoleConfig>(text).expect("a role");
        let operator = "grants = [{ allow = [\"subscribe\", \"publish\"], topics = [\"plant/#\"] }, \
                        { deny = [\"publish\"], topics = [\"plant/+/safety/#\"] }, \
                        { deny = [\"publish\"], topics = [\"plant/log\"], retain = true }]";
        let viewer = "grants = [{ allow = [\"subscribe\"], topics = [\"user/{user}/#\"], qos = [0] }]";
        let roles = [("operator", role(operator)), ("viewer", role(viewer))];
        let roles: BTreeMap<_, _> = roles.into_iter().map(|(name, role)| (name.to_owned(), role)).collect();
        let policy = Policy::new(roles, BTreeMap::new(), narrows).expect("sound");
        let roles = names(&["operator", "viewer"]);
        let identity = Identity { user: Some("anna".into()), roles, ..Identity::anonymous(&[]) };
        Rights::new(Arc::new(policy), identity, "c1")
    }

    fn qos(number: u64) -> Qos {
        Qos::from_number(number).expect("0, 1 or 2")
    }

    /// The refusal, if there is one, has the words of the explanation.
    fn is_told(refusal: Option<Refusal>, explanation: &Explanation) -> bool {
        let said = format!(": {}.", explanation.why);
        refusal.is_none_or(|refusal| refusal.message.ends_with(&said))
    }

    const LEVELS: &str = "(plant|user|anna|safety|log|x)(/(plant|user|anna|safety|log|x)){0,3}";
    const FILTERS: &str = "([$]share/g/)?(plant|user|[+]|x)(/(anna|safety|[+]|x)){0,2}(/#)?";

    proptest! {
        #[test]
        fn what_is_explained_is_what_a_session_is_told(
            topic in LEVELS, filter in FILTERS, number in 0..3u64, retain: bool, narrows: bool
        ) {
            let (rights, qos) = (rights(narrows), qos(number));
            let topic = Topic::parse(&topic).expect("a topic");
            let message = Message { topic, payload: Default::default(), qos, retain, properties: None };
            let explanation = rights.explain_publish(&message.topic, qos, retain);
            let judged = rights.publish(&message);
            prop_assert_eq!(explanation.qos.is_some(), judged.is_ok());
            prop_assert!(is_told(judged.err(), &explanation));

            let filter = TopicFilter::parse(&filter).expect("a filter");
            let explanation = rights.explain_subscribe(&filter, qos);
            let judged = rights.subscribe(&filter, qos);
            prop_assert_eq!(explanation.qos, judged.as_ref().ok().map(|granted| granted.qos));
            prop_assert!(is_told(judged.err(), &explanation));
        }
    }

    #[test]
    fn an_explanation_names_the_rule_that_decides() {
        let topic = |text| Topic::parse(text).expect("a topic");
        let filter = |text| TopicFilter::parse(text).expect("a filter");
        let (rights, narrowing) = (rights(false), rights(true));
        for (explanation, granted, why) in [
            (
                rights.explain_publish(&topic("plant/a"), qos(1), false),
                Some(qos(1)),
                "grant 1 of the role operator allows `publish` on plant/#",
            ),
            (
                rights.explain_publish(&topic("plant/a/safety/b"), qos(1), false),
                None,
                "grant 2 of the role operator denies `publish` on plant/+/safety/#",
            ),
            (
                rights.explain_publish(&topic("plant/log"), qos(0), true),
                None,
                "grant 3 of the role operator denies `publish` on plant/log",
            ),
            (
                rights.explain_publish(&topic("other"), qos(0), false),
                None,
                "no grant of the roles operator, viewer allows it",
            ),
            (
                rights.explain_subscribe(&filter("user/anna/#"), qos(2)),
                Some(qos(0)),
                "grant 1 of the role viewer allows `subscribe` on user/{user}/#",
            ),
            (rights.explain_subscribe(&filter("#"), qos(0)), None, "no grant of the roles operator, viewer allows it"),
            (
                narrowing.explain_subscribe(&filter("#"), qos(1)),
                Some(qos(1)),
                "grant 1 of the role operator allows `subscribe` on plant/#, so part of the messages will come (auth.narrow)",
            ),
        ] {
            assert_eq!(explanation, Explanation { qos: granted, why: why.to_owned() });
        }
    }
}
