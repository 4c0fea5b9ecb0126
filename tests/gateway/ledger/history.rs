//! What was published and what each reader saw: all that the audit knows.

use std::collections::BTreeMap;
use std::time::Duration;

/// Since the ledger began.
pub type Time = Duration;

/// The messages that have an order: those of one publisher on one topic at one qos.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    pub publisher: u8,
    /// Its place in the list of topics.
    pub topic: u8,
    pub qos: u8,
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub lane: Lane,
    pub number: u32,
}

/// A message was sent in a session; within it, however often, it is one attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attempt {
    pub sent: Time,
    pub answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Answer {
    /// None yet, and the session is open.
    None,
    /// `ack`.
    Acked(Time),
    /// An error that says that it was not published.
    Refused(Time),
    /// An error that leaves open whether it was published.
    Unknown(Time),
    /// The session ended first.
    Ended(Time),
}

/// What happened to a client.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    /// Its session is open, its subscriptions are in force.
    Opened { session_present: bool },
    /// A message came.
    Delivered { key: Key, qos: u8, dup: bool, msgid: String },
    /// The client took a delivery for a new message, and is done with it.
    Handled(Key),
    /// qos 0 was dropped.
    Dropped,
    /// The session's link to the broker was lost.
    Down,
    /// It is back.
    Up { session_present: bool },
    /// The session ended, with this close code if there was one.
    Ended(Option<u16>),
}

#[derive(Clone, Debug, Default)]
pub struct Client {
    pub name: String,
    /// Filters and their qos.
    pub subscriptions: Vec<(String, u8)>,
    /// It takes its session up again when it comes back.
    pub is_kept: bool,
    /// It acks what it has handled.
    pub is_manual: bool,
    pub seen: Vec<(Time, Seen)>,
}

#[derive(Debug, Default)]
pub struct History {
    pub topics: Vec<String>,
    pub published: BTreeMap<Key, Vec<Attempt>>,
    /// By number, publishers first.
    pub clients: Vec<Client>,
    /// A plain MQTT client with a session of its own, if there was one.
    pub control: Option<Client>,
    /// When the broker was killed.
    pub kills: Vec<Time>,
    /// When the last look was taken.
    pub end: Time,
    /// What nobody should ever see.
    pub surprises: Vec<String>,
}

impl Client {
    /// The qos at which messages of a topic and qos come, if they do.
    pub fn qos_of(&self, topic: &str, qos: u8) -> Option<u8> {
        let granted = self.subscriptions.iter().filter(|(filter, _)| rumqttc::matches(topic, filter));
        granted.map(|(_, granted)| qos.min(*granted)).max()
    }

    pub fn is_up(&self) -> bool {
        let mut states = self.seen.iter().rev().filter_map(|(_, seen)| match seen {
            Seen::Opened { .. } | Seen::Up { .. } => Some(true),
            Seen::Down | Seen::Ended(_) => Some(false),
            Seen::Delivered { .. } | Seen::Handled(_) | Seen::Dropped => None,
        });
        states.next().unwrap_or(false)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Lane { publisher, topic, qos } = self.lane;
        write!(out, "message {} of publisher {publisher} on topic {topic} at qos {qos}", self.number)
    }
}
