//! What waits for a browser: which of its subscriptions a message is for, and the queue it waits in. Free of sockets and clocks.

mod batching;
mod config;
mod conflation;
pub mod delta;
pub mod latest;
pub mod merge_patch;
pub mod outbox;
mod queue;
pub mod rendition;
pub mod subscriptions;

pub use config::{Bound, Config, Overflow};
pub use delta::{Bases, Form, Gaps};
pub use outbox::{Delivery, Outbox};
pub use rendition::Rendition;
pub use subscriptions::{Route, Subscriptions, Target, subscription_id};
