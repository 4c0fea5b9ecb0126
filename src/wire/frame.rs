//! The frames as values: what a client may ask, and what the gateway answers.

use std::num::{NonZeroU16, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::Number;

use super::Refusal;
use crate::mqtt::packet::SubscribeOptions;
use crate::mqtt::{Message, Qos, TopicFilter};

/// The one correlation field: a string of at most 64 characters, or an integer that JavaScript holds exactly.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
pub enum MsgId {
    /// Answered as a string.
    Text(Box<str>),
    /// Answered as a number.
    Number(i64),
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientFrame {
    /// Who the client is and how its session shall be.
    Auth(Box<Auth>),
    /// One result for each, in order.
    Subscribe(Vec<Asked<Subscription>>),
    /// One result for each, in order.
    Unsubscribe(Vec<Asked<TopicFilter>>),
    /// A message for the broker.
    Publish(Message),
    /// Deliveries that the client has dealt with.
    Ack(Vec<MsgId>),
    /// Is anybody there?
    Ping,
}

/// One entry of a list that is served entry by entry.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked<T> {
    /// It can be served.
    Valid(T),
    /// It can't; the others are served all the same.
    Invalid {
        /// The filter as the client wrote it.
        topic: String,
        /// Why not.
        refusal: Refusal,
    },
}

/// The first frame of a client that has something to say about its session.
#[derive(Clone, Debug, PartialEq)]
pub struct Auth {
    /// Who the client is, to be judged by whoever can.
    pub token: Option<Secret>,
    /// The same as a name and a password.
    pub login: Option<Login>,
    /// The MQTT client identifier; one is made up where it is absent.
    pub client_id: Option<String>,
    /// Start anew, and let nothing be kept.
    pub clean: bool,
    /// Seconds that the broker keeps the session after the connection.
    pub session_expiry: u32,
    /// What is published when the session ends without goodbye.
    pub will: Option<Will>,
    /// In force before the first delivery.
    pub subscriptions: Vec<Subscription>,
    /// How deliveries are confirmed that match no subscription of this connection.
    pub ack: Ack,
}

impl Default for Auth {
    fn default() -> Auth {
        Auth {
            token: None,
            login: None,
            client_id: None,
            clean: true,
            session_expiry: 0,
            will: None,
            subscriptions: Vec::new(),
            ack: Ack::Auto,
        }
    }
}

impl Auth {
    /// It says who the client is, and not only how its session shall be.
    pub fn has_credential(&self) -> bool {
        self.token.is_some() || self.login.is_some()
    }
}

/// A user and a password.
#[derive(Clone, Debug, PartialEq)]
pub struct Login {
    /// Who the client says that it is.
    pub username: String,
    /// What only that user knows.
    pub password: Secret,
}

/// A text that a client sent and nobody is shown.
#[derive(Clone, Debug)]
pub struct Secret(pub SecretString);

/// For frames as values. Whether a secret is right is judged elsewhere, in constant time.
impl PartialEq for Secret {
    fn eq(&self, other: &Secret) -> bool {
        self.0.expose_secret() == other.0.expose_secret()
    }
}

/// What is published when a session ends without goodbye.
#[derive(Clone, Debug, PartialEq)]
pub struct Will {
    /// The message.
    pub message: Message,
    /// Seconds between the end and the publishing.
    pub delay: u32,
}

/// One subscription and its options.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscription {
    /// What is subscribed.
    pub filter: TopicFilter,
    /// What the broker is asked for.
    pub options: SubscribeOptions,
    /// A number of the client's that comes back in `sids`.
    pub sid: Option<i64>,
    /// How deliveries come.
    pub contract: Contract,
}

impl Subscription {
    /// Whether the broker must know the session by itself: it confirms when its client does, its own messages are told apart, or it
    /// is a member of a group.
    pub fn needs_own_client(&self) -> bool {
        self.contract.ack == Ack::Manual || self.options.no_local || self.filter.is_shared()
    }
}

/// How deliveries of a subscription come. A message comes once for each distinct contract among the subscriptions that it matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Contract {
    /// How they are confirmed.
    pub ack: Ack,
    /// How payloads are shown.
    pub format: Format,
    /// What goes first, and what is dropped last, when the client is slow.
    pub priority: Priority,
    /// How many may come in a second for each topic, at most; the newest is kept.
    pub max_rate: Option<Rate>,
    /// What has changed comes in place of the whole, where that is shorter.
    pub delta: bool,
    /// Several come in one frame.
    pub batch: Option<Batch>,
}

impl Contract {
    /// Deliveries may wait here though their client would take them: for their time, or for others.
    pub fn waits(&self) -> bool {
        self.max_rate.is_some() || self.batch.is_some()
    }
}

/// How often something may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate {
    /// Whole microseconds from one to the next: kept so, as contracts are compared.
    micros: NonZeroU64,
}

impl Rate {
    /// The lowest rate: once in 28 hours.
    pub const LEAST: f64 = 0.00001;
    /// The highest rate.
    pub const MOST: f64 = 1_000_000.0;

    /// So many a second; nothing for what is out of range.
    pub fn per_second(rate: f64) -> Option<Rate> {
        if !(Rate::LEAST..=Rate::MOST).contains(&rate) {
            return None;
        }
        // Rounded up: never more often than was asked.
        NonZeroU64::new((1e6 / rate).ceil() as u64).map(|micros| Rate { micros })
    }

    /// The time from one to the next, at least.
    pub fn interval(self) -> Duration {
        Duration::from_micros(self.micros.get())
    }
}

/// When the deliveries of a subscription come together in one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Batch {
    /// As soon as there are so many; there are never more in one.
    pub max_messages: NonZeroU16,
    /// So many milliseconds after the first of them came.
    pub max_delay: u32,
}

impl Batch {
    /// The most messages that may be asked for.
    pub const MOST_MESSAGES: u16 = 10_000;
    /// The longest delay that may be asked for: an hour.
    pub const LONGEST_DELAY: u32 = 3_600_000;

    /// How long the first may wait for others.
    pub fn delay(self) -> Duration {
        Duration::from_millis(self.max_delay.into())
    }
}

impl Contract {
    /// Whether a delivery may be written as soon as it comes: nothing of it is held back, and the client has nothing to confirm.
    pub fn goes_at_once(&self) -> bool {
        self.ack == Ack::Auto && !self.waits() && !self.delta
    }
}

/// How deliveries of QoS 1 and 2 are confirmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ack {
    /// When the client's `ack` arrives.
    Manual,
    /// When they are written to the socket.
    #[default]
    Auto,
}

/// How payloads are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// UTF-8 as a string, all else as base64.
    #[default]
    Text,
    /// Valid JSON as the value it is, all else as with `Text`.
    Json,
}

/// What goes first, and what is dropped last, when the client is slow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Before all else.
    High,
    /// As it comes.
    #[default]
    Normal,
    /// When nothing else waits.
    Low,
}

/// What the gateway says, deliveries aside.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Reply {
    /// The client is known.
    AuthResponse {
        /// Always "success".
        status: &'static str,
        /// Unix milliseconds.
        timestamp: u64,
        /// Seconds until the token ends.
        #[serde(rename = "expiresIn", skip_serializing_if = "Option::is_none")]
        expires_in: Option<u64>,
        /// As in the frame that is answered.
        #[serde(skip_serializing_if = "Option::is_none")]
        msgid: Option<MsgId>,
    },
    /// The session is up.
    #[serde(rename_all = "camelCase")]
    Welcome {
        /// Names this connection in logs.
        session_id: String,
        /// The MQTT client identifier.
        client_id: String,
        /// 1.
        protocol: u8,
        /// The broker had a session for this client identifier.
        session_present: bool,
        /// Seconds between pings.
        heartbeat: Number,
        /// Seconds until the token ends.
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_in: Option<u64>,
        /// What became of the subscriptions in `auth`.
        #[serde(skip_serializing_if = "Option::is_none")]
        subscriptions: Option<Vec<TopicResult>>,
        /// What the session may do.
        limits: Limits,
        /// As in the frame that is answered.
        #[serde(skip_serializing_if = "Option::is_none")]
        msgid: Option<MsgId>,
    },
    /// Answers `subscribe`.
    Subscribed {
        /// One for each entry, in order.
        topics: Vec<TopicResult>,
        /// As in the frame that is answered.
        #[serde(skip_serializing_if = "Option::is_none")]
        msgid: Option<MsgId>,
    },
    /// Answers `unsubscribe`.
    Unsubscribed {
        /// One for each entry, in order.
        topics: Vec<TopicResult>,
        /// As in the frame that is answered.
        #[serde(skip_serializing_if = "Option::is_none")]
        msgid: Option<MsgId>,
    },
    /// A publish was taken.
    Ack {
        /// As in the frame that is answered.
        msgid: MsgId,
    },
    /// A frame failed, or deliveries were dropped.
    Error {
        /// What kind of thing went wrong.
        code: super::Code,
        /// What to mend.
        message: String,
        /// As in the frame that is answered.
        #[serde(skip_serializing_if = "Option::is_none")]
        msgid: Option<MsgId>,
        /// Whether the same frame may work later.
        retryable: bool,
        /// Deliveries that were dropped.
        #[serde(skip_serializing_if = "Option::is_none")]
        count: Option<u64>,
    },
    /// The session's broker link was lost, or is back.
    #[serde(rename_all = "camelCase")]
    Broker {
        /// "down" or "up".
        status: &'static str,
        /// With "up": the broker still had the session.
        #[serde(skip_serializing_if = "Option::is_none")]
        session_present: Option<bool>,
    },
    /// All places are taken: the session waits for one.
    Queued {
        /// How many are to come in until it has.
        position: usize,
    },
    /// The token ends: a new one is wanted.
    Expiring {
        /// In so many seconds.
        #[serde(rename = "in")]
        seconds: u64,
    },
    /// The gateway is about to close.
    #[serde(rename_all = "camelCase")]
    Bye {
        /// Why.
        reason: &'static str,
        /// Milliseconds.
        reconnect_after: u64,
    },
    /// Answers `ping`.
    Pong {
        /// As in the frame that is answered.
        #[serde(skip_serializing_if = "Option::is_none")]
        msgid: Option<MsgId>,
    },
}

impl Reply {
    /// What was turned down: the frame, or entries of it.
    pub fn refusals(&self) -> impl Iterator<Item = super::Code> {
        let (frame, entries) = match self {
            Reply::Error { code, .. } => (Some(*code), [].as_slice()),
            Reply::Subscribed { topics, .. } | Reply::Unsubscribed { topics, .. } => (None, topics.as_slice()),
            Reply::Welcome { subscriptions, .. } => (None, subscriptions.as_deref().unwrap_or_default()),
            Reply::AuthResponse { .. }
            | Reply::Ack { .. }
            | Reply::Broker { .. }
            | Reply::Queued { .. }
            | Reply::Expiring { .. }
            | Reply::Bye { .. }
            | Reply::Pong { .. } => (None, [].as_slice()),
        };
        frame.into_iter().chain(entries.iter().filter_map(|entry| entry.error))
    }

    /// The answer to a frame that failed.
    pub fn refused(refusal: Refusal, msgid: Option<MsgId>) -> Reply {
        Reply::Error {
            code: refusal.code,
            message: refusal.message.into_owned(),
            msgid,
            retryable: refusal.retryable,
            count: None,
        }
    }
}

/// What became of one entry of a `subscribe`, `unsubscribe`, or `auth`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TopicResult {
    /// The filter as the client wrote it.
    pub topic: String,
    /// The QoS as granted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qos: Option<u8>,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<super::Code>,
    /// What to mend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl TopicResult {
    /// It was subscribed.
    pub fn granted(topic: &str, qos: Qos) -> TopicResult {
        TopicResult { topic: topic.to_owned(), qos: Some(qos.number()), error: None, message: None }
    }

    /// It was unsubscribed.
    pub fn ended(topic: &str) -> TopicResult {
        TopicResult { topic: topic.to_owned(), qos: None, error: None, message: None }
    }

    /// It was not.
    pub fn refused(topic: &str, refusal: Refusal) -> TopicResult {
        let message = Some(refusal.message.into_owned());
        TopicResult { topic: topic.to_owned(), qos: None, error: Some(refusal.code), message }
    }
}

/// What a session may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Bytes of a frame; over it the session is closed with 1009.
    pub max_frame: usize,
    /// Bytes of a decoded payload; over it a publish is `payload_too_large`.
    pub max_payload: usize,
    /// Subscriptions at one time; over it an entry is `quota_exceeded`.
    pub max_subscriptions: usize,
    /// Publishes of QoS 1 and 2 that the broker has not answered; over it they wait.
    pub max_inflight: usize,
    /// The highest QoS that the broker takes.
    pub max_qos: u8,
    /// Whether the broker stores retained messages.
    pub retain: bool,
    /// Whether `$share` works.
    pub shared: bool,
}

/// A text that is no frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Undecoded {
    /// What to mend.
    pub refusal: Refusal,
    /// What the refusal is answered with, as far as it could be read.
    pub msgid: Option<MsgId>,
    /// It was meant to be an `auth`.
    pub is_auth: bool,
}

/// What a delivery says about itself that is its session's own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Head {
    /// The client's numbers of the subscriptions that it comes for.
    pub sids: Vec<i64>,
    /// Given exactly when the QoS is above 0.
    pub msgid: Option<Arc<str>>,
    /// The broker delivered it before.
    pub dup: bool,
    /// How many for its topic it took the place of.
    pub skipped: u32,
}
