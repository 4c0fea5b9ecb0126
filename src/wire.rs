//! The frame protocol between a web client and the gateway, free of sockets and clocks (docs/protocol.md).

mod config;
pub mod frame;
pub mod json;
pub mod negotiate;
pub mod refusal;

pub use config::Config;
pub use frame::{
    Ack, Asked, Auth, Batch, ClientFrame, Contract, Format, Head, Limits, Login, MsgId, Priority, Rate, Reply, Secret,
    Subscription, TopicResult, Undecoded, Will,
};
pub use refusal::{Close, Code, Refusal};
