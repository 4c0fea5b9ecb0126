//! What travels: a topic, a payload, and what MQTT 5 lets a publisher say about them.

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use super::Topic;

/// A message on its way from a publisher to its readers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where it was published.
    pub topic: Topic,
    /// The bytes that were published, shared by all who deliver them.
    pub payload: Bytes,
    /// How hard the broker and its peers try to deliver it.
    pub qos: Qos,
    /// Uplink: the broker shall store it. Downlink: the broker delivers it as stored.
    pub retain: bool,
    /// What the publisher said about it; most messages say nothing.
    pub properties: Option<Box<Properties>>,
}

impl Message {
    /// What it takes in memory beyond itself, roughly.
    pub fn size(&self) -> usize {
        self.topic.as_str().len() + self.payload.len() + self.properties.as_ref().map_or(0, |given| given.size())
    }

    /// A number that stays the same when a broker delivers this message again, to this process or to another.
    ///
    /// It leaves out what may differ between deliveries of one message: the retain flag, and the message expiry interval, which
    /// counts down while the message waits (MQTT 5 section 3.3.2.3.3).
    pub fn digest(&self) -> u64 {
        let mut hash = Xxh3::new();
        for part in [self.topic.as_ref().as_bytes(), &self.payload, &[self.qos as u8]] {
            hash_part(&mut hash, part);
        }
        if let Some(properties) = &self.properties {
            properties.hash(&mut hash);
        }
        hash.digest()
    }
}

/// With its length, so that what belongs to one part is never taken for the beginning of the next.
fn hash_part(hash: &mut Xxh3, bytes: &[u8]) {
    hash.update(&(bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

/// The properties of a PUBLISH that travel from end to end (MQTT 5 section 3.3.2.3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// A MIME type or whatever the two ends agree on.
    pub content_type: Option<String>,
    /// Where an answer is expected.
    pub response_topic: Option<String>,
    /// What the answer shall carry so that the asker knows it.
    pub correlation_data: Option<Bytes>,
    /// Seconds after which the broker forgets the message.
    pub message_expiry_interval: Option<u32>,
    /// 0: bytes; 1: UTF-8 text.
    pub payload_format_indicator: Option<u8>,
    /// Names and values, in order, repeats allowed.
    pub user_properties: Vec<(String, String)>,
}

impl Properties {
    /// The same for all that say the same to a reader; as for a message, the expiry interval is left out.
    pub fn digest(&self) -> u64 {
        let mut hash = Xxh3::new();
        self.hash(&mut hash);
        hash.digest()
    }

    fn hash(&self, hash: &mut Xxh3) {
        hash_part(hash, self.content_type.as_deref().unwrap_or("").as_bytes());
        hash_part(hash, self.response_topic.as_deref().unwrap_or("").as_bytes());
        hash_part(hash, self.correlation_data.as_deref().unwrap_or(b""));
        for (name, value) in &self.user_properties {
            hash_part(hash, name.as_bytes());
            hash_part(hash, value.as_bytes());
        }
    }

    fn size(&self) -> usize {
        let texts = [&self.content_type, &self.response_topic].into_iter().flatten().map(String::capacity);
        let pairs = self.user_properties.iter().map(|(name, value)| name.capacity() + value.capacity());
        size_of::<Properties>()
            + texts.chain(pairs).sum::<usize>()
            + self.correlation_data.as_ref().map_or(0, Bytes::len)
            + self.user_properties.capacity() * size_of::<(String, String)>()
    }
}

/// Quality of service (MQTT 5 section 4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qos {
    /// At most once: nothing is confirmed.
    #[default]
    AtMostOnce = 0,
    /// At least once: PUBACK confirms.
    AtLeastOnce = 1,
    /// Exactly once: PUBREC, PUBREL, PUBCOMP.
    ExactlyOnce = 2,
}

impl Qos {
    /// The level with this number.
    pub fn from_number(number: u64) -> Option<Qos> {
        match number {
            0 => Some(Qos::AtMostOnce),
            1 => Some(Qos::AtLeastOnce),
            2 => Some(Qos::ExactlyOnce),
            _ => None,
        }
    }

    /// The number of this level, as metrics and frames show it.
    pub fn number(self) -> u8 {
        self as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        Message {
            topic: Topic::parse("attic/temp").expect("a topic"),
            payload: Bytes::from_static(b"21.5"),
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: None,
        }
    }

    #[test]
    fn a_digest_is_the_same_for_a_message_that_comes_again() {
        let first = Message {
            properties: Some(Box::new(Properties { message_expiry_interval: Some(60), ..Properties::default() })),
            ..message()
        };
        let again = Message {
            retain: true,
            properties: Some(Box::new(Properties { message_expiry_interval: Some(12), ..Properties::default() })),
            ..message()
        };
        assert_eq!(first.digest(), again.digest());
    }

    #[test]
    fn a_digest_tells_messages_apart() {
        let plain = message().digest();
        let named = |name: &str, value: &str| {
            let user_properties = vec![(name.to_owned(), value.to_owned())];
            Message { properties: Some(Box::new(Properties { user_properties, ..Properties::default() })), ..message() }
        };
        let others = [
            Message {
                topic: Topic::parse("attic/tem").expect("a topic"),
                payload: Bytes::from_static(b"p21.5"),
                ..message()
            },
            Message { payload: Bytes::from_static(b"21.6"), ..message() },
            Message { qos: Qos::ExactlyOnce, ..message() },
            named("a", "b"),
        ];
        for other in others {
            assert_ne!(plain, other.digest(), "{other:?}");
        }
        assert_ne!(named("ab", "c").digest(), named("a", "bc").digest());
    }

    #[test]
    fn a_digest_is_fixed_for_all_versions_of_the_gateway() {
        assert_eq!(message().digest(), 0xbecd7fb00787671f);
    }
}
