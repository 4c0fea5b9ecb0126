//! Writes frames of a session that has nothing else to write, from where the frames are made: without waking its task.

use std::io;

use bytes::BytesMut;
use rustix::net::{SendFlags, send};

use super::frame::{self, Opcode};
use crate::broker::Direct;
use crate::http::connection::Wire;

/// For a wire over which frames go as they are.
impl Direct for Wire {
    fn frame(&self, out: &mut BytesMut, text: &[&[u8]]) {
        frame::write(out, Opcode::Text, text);
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        // The event loop is not asked whether there is room: what it knows lies elsewhere in memory, and the socket knows too.
        let written = send(self.tcp(), bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        self.add_written(written);
        Ok(written)
    }
}
