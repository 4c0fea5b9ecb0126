//! WebSockets as RFC 6455 has them: the server's side, without extensions. Nothing is kept of a frame that is done with.

mod direct;
pub mod frame;
mod handshake;
mod stream;

pub use handshake::Handshake;
pub use stream::WebSocket;
