//! In place of `processors`: this system is not asked where threads run.

use std::io;

/// There are none to be named, so nothing below is ever reached.
pub enum Processors {}

impl Processors {
    /// Always an error.
    pub fn available() -> io::Result<Processors> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Keeps this thread on one processor.
    pub fn pin(&self, _worker: usize) -> io::Result<()> {
        match *self {}
    }

    /// Lets this thread run on any of them.
    pub fn unpin(&self) -> io::Result<()> {
        match *self {}
    }
}
