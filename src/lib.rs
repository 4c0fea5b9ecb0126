//! Tidegate: MQTT for web apps.
//!
//! A browser opens a WebSocket and speaks JSON frames; behind it stands an MQTT client of its own at a real broker. Two walks lead
//! through the crate:
//!
//! - **Downlink**: [`broker`] reads a packet → [`delivery::Subscriptions`] finds whom it is for → [`delivery::Outbox`] queues it
//!   (never waits) → [`session::run`] takes all that waits → [`wire::json`] encodes → one write.
//! - **Uplink**: [`http`] upgrades → [`session::run`] reads → [`wire::json`] decodes → the session's state judges → `session::run`
//!   carries out → [`broker::Link`] publishes (and waits when the broker is behind, so the browser is read no faster).
//!
//! Imports point down only; `tests/layers.rs` holds the list, and ARCHITECTURE.md says why.

pub mod access;
pub mod app;
pub mod audit;
pub mod auth;
pub mod broker;
pub mod cli;
pub mod config;
pub mod delivery;
pub mod http;
pub mod log;
pub mod metrics;
pub mod mqtt;
pub mod overload;
pub mod runtime;
pub mod session;
pub mod shutdown;
pub mod systemd;
pub mod units;
pub mod wire;
