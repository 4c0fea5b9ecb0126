//! Writes frames of a session that has nothing else to write, from where the frames are made: without waking its task.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::BytesMut;
use rustix::net::{SendFlags, send};
use tokio::net::TcpStream;

use super::frame::{self, Opcode};
use crate::broker::Direct;

/// The socket under a WebSocket.
#[derive(Debug)]
pub struct Socket {
    stream: Arc<TcpStream>,
    written: AtomicU64,
}

impl Socket {
    pub(super) fn new(stream: Arc<TcpStream>) -> Socket {
        Socket { stream, written: AtomicU64::new(0) }
    }

    /// Bytes that the network has taken from here.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

impl Direct for Socket {
    fn frame(&self, out: &mut BytesMut, text: &[&[u8]]) {
        frame::write(out, Opcode::Text, text);
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        // The event loop is not asked whether there is room: what it knows lies elsewhere in memory, and the socket knows too.
        let written = send(&*self.stream, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        self.written.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }
}
