//! The vocabulary of MQTT, free of sockets and clocks: messages, topics, filters and the state of what is in flight.

pub mod inflight;
pub mod message;
pub mod packet;
pub mod reason;
pub mod topic;
pub mod trie;

pub use inflight::Outcome;
pub use message::{Message, Properties, Qos};
pub use reason::Reason;
pub use topic::{Topic, TopicError, TopicFilter};
pub use trie::Trie;
