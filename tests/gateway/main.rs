//! Scenes through real sockets, real brokers and the real program.

mod support;

mod bridge;
#[cfg(feature = "embedded-broker")]
mod embedded;
mod real_input;
mod start;
