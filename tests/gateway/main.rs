//! Scenes through real sockets, real brokers and the real program.

mod support;

mod access;
mod admin;
mod attacks;
mod audit;
mod bad_input;
mod bridge;
mod broken_brokers;
mod contracts;
mod delivery;
mod drain;
#[cfg(feature = "embedded-broker")]
mod embedded;
mod floods;
mod footprint;
mod frames;
mod http;
mod ledger;
mod limits;
mod origins;
mod outage;
mod overload;
mod proxy;
mod real_input;
mod reload;
mod resume;
mod runtime;
mod scripted_broker;
mod second_implementation;
mod secrets;
mod service;
mod shared;
mod slow;
mod start;
mod subscriptions;
mod takeover;
mod tls;
mod tls_listener;
mod unix_socket;
mod wills;
