//! Why?: what somebody may do and by which rule, without doing it.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::run::generated_client_id;
use super::state::judge_levels;
use crate::access::{Credential, Explanation, Identity, Policy, Rights};
use crate::auth::{Judge, Visitor};
use crate::mqtt::{Qos, Topic, TopicFilter};

/// What is asked.
pub struct Question {
    /// Of whom.
    pub who: Who,
    /// What the client calls itself; something nobody could guess, where it does not say.
    pub client_id: Option<String>,
    /// What it wants.
    pub wanted: Wanted,
}

/// Of whom it is asked.
pub enum Who {
    /// Whoever shows this.
    Shows(Credential),
    /// Whoever comes without a credential.
    Anonymous,
    /// Somebody of whom a token would say this.
    Is(Identity),
}

/// What somebody wants.
pub enum Wanted {
    /// To publish.
    Publish {
        /// Where to.
        topic: Topic,
        /// How.
        qos: Qos,
        /// It is to be stored.
        retain: bool,
    },
    /// To subscribe.
    Subscribe {
        /// To what.
        filter: TopicFilter,
        /// The highest that deliveries may have.
        qos: Qos,
    },
}

/// What a session would hear.
#[derive(Debug)]
pub struct Answer {
    /// Who it is; nobody, where that could not be told or does not matter.
    pub identity: Option<Identity>,
    /// The qos that it would be granted; nothing if it is denied.
    pub qos: Option<Qos>,
    /// The rule that decides, for people.
    pub why: String,
}

/// For people.
impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Identity { user, source, roles, groups, claims: _, token_id, expires }) = &self.identity {
            writeln!(f, "user: {}", user.as_deref().unwrap_or("none"))?;
            writeln!(f, "known by: {}", source.name())?;
            writeln!(f, "roles: {}", list(roles))?;
            writeln!(f, "groups: {}", list(groups))?;
            if let Some(id) = token_id {
                writeln!(f, "token: {id}")?;
            }
            if let Some(expires) = expires {
                writeln!(f, "until: {expires} (Unix time)")?;
            }
        }
        match self.qos {
            Some(qos) => write!(f, "allowed, with qos {}: {}", qos.number(), self.why),
            None => write!(f, "denied: {}", self.why),
        }
    }
}

fn list(names: &[Box<str>]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

impl Answer {
    fn denied(why: impl Into<String>) -> Answer {
        Answer { identity: None, qos: None, why: why.into() }
    }
}

/// Answers by this judge and this policy, as a session would be answered that opens now from this address.
pub async fn explain(
    judge: &Judge,
    policy: &Arc<Policy>,
    max_topic_levels: usize,
    address: IpAddr,
    question: Question,
) -> Answer {
    let Question { who, client_id, wanted } = question;
    if !judge.is_on() {
        let Explanation { qos, why } = judge_form(&wanted, max_topic_levels).unwrap_or_else(|| {
            let why = "there is no access control ([auth]), so everybody may do everything";
            Explanation { qos: Some(wanted.qos()), why: why.to_owned() }
        });
        return Answer { identity: None, qos, why };
    }
    let identity = match who {
        Who::Shows(credential) => {
            let visitor = Visitor { address, client_id: client_id.clone() };
            match judge.check(&credential, &visitor).await {
                Ok(identity) => identity,
                Err(failure) => return Answer::denied(format!("not authenticated: {failure}")),
            }
        }
        Who::Anonymous => match judge.anonymous() {
            Some(identity) => identity,
            None => return Answer::denied("nobody comes in without a credential (auth.anonymous)"),
        },
        Who::Is(identity) => identity,
    };
    let client_id = client_id.unwrap_or_else(generated_client_id);
    if judge.has_revoked(&identity, &client_id) {
        return Answer { identity: Some(identity), ..Answer::denied("not authenticated: revoked for now") };
    }
    let rights = Rights::new(policy.clone(), identity, &client_id);
    let Explanation { qos, why } = judge_form(&wanted, max_topic_levels).unwrap_or_else(|| match &wanted {
        Wanted::Publish { topic, qos, retain } => rights.explain_publish(topic, *qos, *retain),
        Wanted::Subscribe { filter, qos } => rights.explain_subscribe(filter, *qos),
    });
    Answer { identity: Some(rights.identity().clone()), qos, why }
}

/// What is denied whoever asks for it.
fn judge_form(wanted: &Wanted, max_topic_levels: usize) -> Option<Explanation> {
    let topic = match wanted {
        Wanted::Publish { topic, .. } => topic.as_ref(),
        Wanted::Subscribe { filter, .. } => filter.as_str(),
    };
    let refusal = judge_levels(topic, max_topic_levels).err()?;
    Some(Explanation { qos: None, why: refusal.message.trim_end_matches('.').to_owned() })
}

impl Wanted {
    fn qos(&self) -> Qos {
        match self {
            Wanted::Publish { qos, .. } | Wanted::Subscribe { qos, .. } => *qos,
        }
    }
}
