//! One connection: what it has written, how long it may be unable to, and how it ends.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::task::TaskTracker;

use super::stream::Stream;

/// How long the end of a connection waits for the peer to have read what was sent.
pub const LINGER: Duration = Duration::from_secs(2);

/// A peer's TCP, and what those who use it know of each other. In one place, as whoever writes one frame each to thousands of peers
/// gets each of them from far away in memory.
#[derive(Debug)]
#[repr(C)]
pub struct Wire {
    written: AtomicU64,
    /// A [`Phase`].
    phase: AtomicU8,
    tcp: TcpStream,
}

/// Whose a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// No request has come yet.
    New,
    /// It has served a request.
    Http,
    /// A session has it, and watches over its writes.
    Session,
    /// Nobody's: nothing is waited for at its end.
    Cut,
}

impl Wire {
    /// Over a connection to which nothing has been written.
    pub fn new(tcp: TcpStream) -> Wire {
        Wire { written: AtomicU64::new(0), phase: AtomicU8::new(Phase::New as u8), tcp }
    }

    /// The connection.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Bytes that the network has taken: it tells a slow browser from one that reads nothing.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// It has taken so many more.
    pub fn add_written(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Whose it is from now on.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Whether this is whose it is.
    pub fn is(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Relaxed) == phase as u8
    }
}

/// A connection to a peer.
pub struct Connection {
    /// There until the drop.
    stream: Option<Stream>,
    wire: Arc<Wire>,
    write_timeout: Duration,
    /// Ends when the network has taken nothing of a response for too long, since it had taken so many bytes.
    stuck: Option<(Pin<Box<Sleep>>, u64)>,
    lingering: TaskTracker,
}

impl Connection {
    /// Takes over a stream. A response of which the peer reads nothing for `write_timeout` is an error; its end is among the `lingering`.
    pub fn new(stream: Stream, write_timeout: Duration, lingering: TaskTracker) -> Connection {
        let wire = stream.wire().clone();
        Connection { stream: Some(stream), wire, write_timeout, stuck: None, lingering }
    }

    /// What others may know of it.
    pub fn wire(&self) -> Arc<Wire> {
        self.wire.clone()
    }

    /// What is written needs no more than to be written, so that others may write to the wire between two writes of this.
    pub fn is_plain(&self) -> bool {
        matches!(self.stream, Some(Stream::Plain(_)))
    }

    /// Bytes that were written and still wait here for a flush, at the most.
    pub fn unflushed(&self) -> usize {
        self.stream.as_ref().expect("taken only by the drop").unflushed()
    }

    fn stream(self: Pin<&mut Self>) -> Pin<&mut Stream> {
        Pin::new(self.get_mut().stream.as_mut().expect("taken only by the drop"))
    }

    /// Minds the time in which the network takes nothing of a response.
    fn minded<T>(&mut self, done: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        match done {
            Poll::Pending if !self.wire.is(Phase::Session) => {
                let (written, write_timeout) = (self.wire.written(), self.write_timeout);
                // Under TLS a part may have gone.
                self.stuck.take_if(|(_, since)| *since != written);
                let (sleep, _) = self.stuck.get_or_insert_with(|| (Box::pin(sleep(write_timeout)), written));
                ready!(sleep.as_mut().poll(context));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            Poll::Ready(Ok(_)) | Poll::Pending => self.stuck = None,
            Poll::Ready(Err(_)) => {}
        }
        done
    }
}

/// What the peer has not read yet, a Close frame say, it may read still.
impl Drop for Connection {
    fn drop(&mut self) {
        let (Some(stream), Ok(runtime)) = (self.stream.take(), tokio::runtime::Handle::try_current()) else { return };
        if self.wire.is(Phase::Cut) || self.wire.written() == 0 {
            return;
        }
        self.lingering.spawn_on(timeout(LINGER, stream.linger()), &runtime);
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.as_mut().stream().poll_write(context, bytes);
        self.minded(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.as_mut().stream().poll_write_vectored(context, bytes);
        self.minded(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.as_mut().stream().poll_flush(context);
        self.minded(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = self.as_mut().stream().poll_shutdown(context);
        self.minded(shut, context)
    }
}
