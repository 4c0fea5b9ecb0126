//! A session's way to the broker: requests go up as commands, answers and deliveries come down through the [`Downlink`].
//!
//! A session never learns whether the connection behind is its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use secrecy::SecretString;

use super::downlink::{Downlink, Handle};
use super::{orders, shared};
use crate::access::Rights;
use crate::mqtt::inflight::RequestId;
use crate::mqtt::{Message, Qos, Reason, TopicFilter, packet};
use crate::wire::{Ack, Close, Refusal, Subscription, Will};

/// What a session wants of the broker before anything else.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The MQTT client identifier.
    pub client_id: String,
    /// Forget what the broker knows, and let nothing be kept.
    pub clean: bool,
    /// Seconds that the broker keeps the session after its end.
    pub session_expiry: u32,
    /// What is published if the session ends without goodbye.
    pub will: Option<Will>,
    /// In force before the first delivery.
    pub subscriptions: Vec<Subscription>,
    /// How deliveries are confirmed that match no subscription of this connection.
    pub ack: Ack,
    /// QoS 1 and 2 publishes that may be unanswered at one time; the broker may want fewer.
    pub max_inflight: u16,
    /// Whose session it is at the broker.
    pub owner: Owner,
    /// The client chose the identifier, so the broker may know it already.
    pub is_named: bool,
    /// What the session may do; nothing stands for everything.
    pub rights: Option<Arc<Rights>>,
    /// What the session shows to the broker in place of what the gateway does.
    pub credentials: Option<Arc<Credentials>>,
}

/// What a session may do from now on.
#[derive(Clone, Debug)]
pub struct Renewal {
    /// Its rights; nothing stands for everything.
    pub rights: Option<Arc<Rights>>,
    /// What it shows to the broker when it connects the next time.
    pub credentials: Option<Arc<Credentials>>,
}

/// A name and a password for the broker, which may change while the session is open.
#[derive(Debug, Default)]
pub struct Credentials {
    /// The name, if the broker is told any.
    pub username: Option<String>,
    /// The password, if the broker is told any.
    pub password: Option<SecretString>,
}

impl Opening {
    /// Whether the broker must know this session by itself, also where sessions share connections: it keeps something of it, or
    /// treats its own messages apart.
    pub fn needs_own_client(&self) -> bool {
        !self.clean
            || self.will.is_some()
            || self.subscriptions.iter().any(|subscription| needs_own_client(subscription, self.rights.as_deref()))
    }
}

#[cfg(test)]
impl Opening {
    /// A browser's that wants nothing of its own.
    pub fn plain(client_id: &str) -> Opening {
        Opening {
            client_id: client_id.to_owned(),
            clean: true,
            session_expiry: 0,
            will: None,
            subscriptions: Vec::new(),
            ack: Ack::Auto,
            max_inflight: 1,
            owner: Owner::Browser,
            is_named: false,
            rights: None,
            credentials: None,
        }
    }
}

/// Whether the broker must know the session by itself, so that each message for this subscription is judged, or it needs one anyway.
pub fn needs_own_client(subscription: &Subscription, rights: Option<&Rights>) -> bool {
    let Subscription { filter, options, .. } = subscription;
    subscription.needs_own_client() || rights.is_some_and(|rights| rights.narrows(filter, options.qos))
}

/// Whose session it is at the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A browser's: another connection with its client identifier takes it over.
    Browser,
    /// The gateway's, for many browsers, under a client identifier that nobody else has.
    Gateway,
}

/// A request of the session. Each is answered by an event that bears its number, numbers going up.
#[derive(Debug)]
pub enum Command {
    /// A message for the broker.
    Publish(RequestId, Message),
    /// One subscription.
    Subscribe(RequestId, Subscription),
    /// One filter.
    Unsubscribe(RequestId, TopicFilter),
    /// Answered when all that the broker had sent before it knew of this has come; also by the loss of the connection.
    Fence(RequestId),
}

impl Command {
    /// Its number.
    pub fn request(&self) -> RequestId {
        match self {
            Command::Publish(request, _)
            | Command::Subscribe(request, _)
            | Command::Unsubscribe(request, _)
            | Command::Fence(request) => *request,
        }
    }
}

/// A command on its way to a link.
#[derive(Debug)]
pub struct Order {
    /// When it was made: from then on its time runs.
    pub made: Instant,
    /// What is asked.
    pub command: Box<Command>,
    /// Who is answered, where that is not the link's own session.
    pub from: Option<Arc<Downlink>>,
}

/// The commands of a session that wait for room.
pub type Queue = VecDeque<(Instant, Box<Command>)>;

/// Where a session's commands go.
#[derive(Clone, Debug)]
pub enum Commands {
    /// To a link of its own.
    Own(orders::Sender),
    /// To connections that it shares with others.
    Shared(shared::Commands),
}

impl Commands {
    /// Whether the next command of the session may go before others of it are answered, the one by which it moves among them.
    pub fn takes(&self, queue: &Queue, is_changing_subscriptions: bool, mover: Option<RequestId>) -> bool {
        let Some((_, next)) = queue.front() else { return false };
        match (self, &**next) {
            (Commands::Own(_), _) => true,
            // It takes another way than the subscriptions, and must not overtake them.
            (Commands::Shared(_), Command::Publish(..)) => !is_changing_subscriptions,
            // What comes behind it goes over the link that it brings: nobody would be here to answer.
            (Commands::Shared(_), next) => mover.is_none_or(|mover| next.request() <= mover),
        }
    }

    /// Hands over the next command when there is room; the error says that the link is gone. Safe to drop half-way.
    pub async fn hand_over(&self, queue: &mut Queue) -> Result<(), ()> {
        let handed = match self {
            Commands::Own(link) => {
                let next = || queue.pop_front().map(|(made, command)| Order { made, command, from: None });
                link.send_with(next).await
            }
            Commands::Shared(shared) => shared.hand_over(queue).await,
        };
        if queue.is_empty() {
            queue.shrink_to_fit();
        }
        handed
    }
}

/// What the broker's side tells the session.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// The broker has accepted the session.
    Ready(Ready),
    /// A publish or an unsubscribe was carried out, or not.
    Answered(RequestId, Result<(), Refusal>),
    /// The time of a publish is up, but the broker may have it: it may be answered yet.
    Overdue(RequestId, Refusal),
    /// A subscribe was carried out, or not.
    Subscribed(RequestId, Result<Qos, Refusal>),
    /// The link is lost; it is being restored.
    Down,
    /// The broker has lost the session: what it delivered before this can't be confirmed.
    SessionLost,
    /// The link is back and the subscriptions with it.
    Up {
        /// The broker had the session all the time.
        session_present: bool,
    },
    /// The broker did not give a subscription back after it had lost the session.
    SubscriptionLost(TopicFilter, Refusal),
    /// New rights hold, and these subscriptions have ended by them.
    Judged(Vec<TopicFilter>),
    /// The broker's side gives the session up.
    Ended(Close, Option<Refusal>),
    /// When all that waits here is taken, the session goes on over another link.
    Moved(Box<Link>),
}

/// The broker's answer to [`Opening`].
#[derive(Clone, Debug, PartialEq)]
pub struct Ready {
    /// The identifier that the session has at the broker.
    pub client_id: String,
    /// The broker had a session for it.
    pub session_present: bool,
    /// One for each subscription of the opening.
    pub subscriptions: Vec<Result<Qos, Refusal>>,
    /// What the broker can do.
    pub abilities: Abilities,
}

/// What the broker can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// QoS 1 and 2 publishes that may be unanswered at one time.
    pub receive_maximum: u16,
    /// The highest QoS.
    pub maximum_qos: Qos,
    /// The largest PUBLISH, in bytes.
    pub maximum_packet_size: usize,
    /// Whether messages are stored.
    pub retain: bool,
    /// Whether `$share` works.
    pub shared: bool,
    /// Whether filters may hold wildcards.
    pub wildcards: bool,
    /// Whether deliveries tell their subscription.
    pub subscription_ids: bool,
}

impl Abilities {
    /// Why the broker would not take a message: sent all the same, it might end the connection.
    pub fn refuse_message(&self, message: &Message) -> Option<Reason> {
        if message.qos > self.maximum_qos {
            return Some(Reason::QOS_NOT_SUPPORTED);
        }
        if message.retain && !self.retain {
            return Some(Reason::RETAIN_NOT_SUPPORTED);
        }
        self.refuse_size(packet::publish_size(message))
    }

    /// The same for a filter.
    pub fn refuse_filter(&self, filter: &TopicFilter) -> Option<Reason> {
        if filter.is_shared() && !self.shared {
            return Some(Reason::SHARED_SUBSCRIPTIONS_NOT_SUPPORTED);
        }
        if filter.as_str().contains(['+', '#']) && !self.wildcards {
            return Some(Reason::WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED);
        }
        self.refuse_size(packet::subscribe_size(filter.as_str()))
    }

    /// The same for a packet of so many bytes.
    pub fn refuse_size(&self, bytes: usize) -> Option<Reason> {
        (bytes > self.maximum_packet_size).then_some(Reason::PACKET_TOO_LARGE)
    }
}

/// A session's end of its link.
#[derive(Debug)]
pub struct Link {
    /// Waits while the broker's side is behind, so that a browser is read no faster than the broker takes.
    pub commands: Commands,
    /// What comes down.
    pub downlink: Arc<Downlink>,
}

/// The same link, not one that is alike.
impl PartialEq for Link {
    fn eq(&self, other: &Link) -> bool {
        Arc::ptr_eq(&self.downlink, &other.downlink)
    }
}

impl Link {
    /// A handle for those who may have to end the link from outside.
    pub fn handle(&self) -> Handle {
        Handle::of(self.downlink.clone())
    }
}
