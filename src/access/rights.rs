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
        let wish = Wish::Publish { topic, qos: *qos, retain: *retain };
        match self.policy.judge(&self.identity, &self.client_id, wish) {
            Verdict::Allowed(_) => Ok(()),
            Verdict::Denied(rule) => Err(self.refusal(Action::Publish, topic.as_str(), Some(&rule))),
            Verdict::Narrowed(_) | Verdict::Unheard => Err(self.refusal(Action::Publish, topic.as_str(), None)),
        }
    }

    /// Whether it may subscribe to this, and with which qos at most. A member of a group takes what others then don't get: that has
    /// to be allowed as a whole.
    pub fn subscribe(&self, filter: &TopicFilter, qos: Qos) -> Result<Subscribing, Refusal> {
        let mut denied = None;
        for qos in [Qos::ExactlyOnce, Qos::AtLeastOnce, Qos::AtMostOnce].into_iter().filter(|lower| *lower <= qos) {
            match self.policy.judge(&self.identity, &self.client_id, Wish::Subscribe { filter, qos }) {
                Verdict::Allowed(_) => return Ok(Subscribing { qos, is_narrowed: false }),
                Verdict::Narrowed(_) if !filter.is_shared() => return Ok(Subscribing { qos, is_narrowed: true }),
                Verdict::Denied(rule) => denied = denied.or(Some(rule)),
                Verdict::Narrowed(_) | Verdict::Unheard => {}
            }
        }
        Err(self.refusal(Action::Subscribe, filter.as_str(), denied.as_ref()))
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

    /// Why a wish is granted or not, for people.
    pub fn explain(&self, wish: Wish) -> (bool, String) {
        let (action, denied) = match wish {
            Wish::Publish { .. } => (Action::Publish, "publish"),
            Wish::Subscribe { .. } | Wish::Receive { .. } => (Action::Subscribe, "subscribe"),
        };
        match self.policy.judge(&self.identity, &self.client_id, wish) {
            Verdict::Allowed(Rule { role, number, pattern }) => {
                (true, format!("grant {number} of the role {role} allows `{denied}` on {pattern}"))
            }
            Verdict::Narrowed(Rule { role, number, pattern }) => (
                true,
                format!(
                    "grant {number} of the role {role} allows `{denied}` on {pattern}, so part of the messages will come \
                     (auth.narrow)"
                ),
            ),
            Verdict::Denied(rule) => (false, self.because(action, Some(&rule))),
            Verdict::Unheard => (false, self.because(action, None)),
        }
    }
}

/// A topic may be as long as 65,535 bytes; an error need not.
fn shortened(topic: &str) -> String {
    const MOST: usize = 200;
    match topic.char_indices().nth(MOST) {
        None => topic.to_owned(),
        Some((end, _)) => format!("{}…", &topic[..end]),
    }
}
