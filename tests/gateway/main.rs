//! Scenes through real sockets, real brokers and the real program.

mod support;

mod bridge;
