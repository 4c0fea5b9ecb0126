//! Writes frames of a session that has nothing else to write, from where the frames are made: without waking its task.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::net::TcpStream;

use super::frame::{self, Opcode};
use crate::broker::Direct;
use crate::http::connection::Wire;

/// The socket under a WebSocket.
#[derive(Debug)]
pub struct Socket {
    pub(super) stream: Arc<TcpStream>,
    pub(super) wire: Arc<Wire>,
}

impl Direct for Socket {
    fn frame(&self, out: &mut BytesMut, text: &[&[u8]]) {
        frame::write(out, Opcode::Text, text);
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.stream.try_write(bytes)?;
        self.wire.add_written(written);
        Ok(written)
    }
}
