//! A message in the one form in which some of its readers get it: encoded once, however many they are.

use std::hash::{BuildHasher, RandomState};
use std::sync::{LazyLock, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::mqtt::{Message, Qos, Topic};
use crate::wire::{Format, json};

/// A message at one QoS, with one retain flag and in one format. Its text holds nothing of a session's own.
#[derive(Debug)]
pub struct Rendition {
    /// What is delivered; its QoS and its retain flag are those of the delivery.
    pub message: Message,
    /// How its payload is shown.
    pub format: Format,
    /// Unix milliseconds at which the gateway received it.
    pub timestamp: u64,
    /// The same moment on the clock that measures how late it is.
    pub received: Instant,
    topic_hash: u64,
    text: OnceLock<Bytes>,
}

impl Rendition {
    /// Not encoded yet: what is never written never is.
    pub fn new(message: Message, format: Format, timestamp: u64, received: Instant) -> Rendition {
        let topic_hash = topic_hash(&message.topic);
        Rendition { message, format, timestamp, received, topic_hash, text: OnceLock::new() }
    }

    /// A hash of the topic, made once for all readers: that of equal topics in this process, and nobody can guess it.
    pub fn topic_hash(&self) -> u64 {
        self.topic_hash
    }

    /// The frame, as it is where its head says nothing.
    pub fn text(&self) -> &Bytes {
        self.text.get_or_init(|| json::delivery(&self.message, self.format, self.timestamp).into())
    }

    /// What may be done with it while its browser reads nothing; nothing, above QoS 0.
    pub fn kind(&self) -> Option<Kind> {
        match (self.message.qos, self.message.retain) {
            (Qos::AtMostOnce, false) => Some(Kind::Live),
            (Qos::AtMostOnce, true) => Some(Kind::Stored),
            (Qos::AtLeastOnce | Qos::ExactlyOnce, _) => None,
        }
    }
}

fn topic_hash(topic: &Topic) -> u64 {
    static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0));
    xxh3_64_with_seed(topic.as_str().as_bytes(), *SEED)
}

/// What may be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It came as it was published.
    Live,
    /// The broker had stored it.
    Stored,
}
