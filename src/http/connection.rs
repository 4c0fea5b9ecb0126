//! One TCP connection: what it has written, how long it may be unable to, and how it ends.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::task::TaskTracker;

/// How long the end of a connection waits for the peer to have read what was sent.
const LINGER: Duration = Duration::from_secs(2);
/// Bytes of a peer that are read and forgotten at the end of a connection.
const LINGER_BYTES: u64 = 16 * 1024 * 1024;

/// What a connection and those who use it know of each other.
#[derive(Debug, Default)]
pub struct Wire {
    written: AtomicU64,
    /// A [`Phase`].
    phase: AtomicU8,
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

/// A TCP stream that more than one may write to, each a whole frame at a time.
struct Stream(Arc<TcpStream>);

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(drop)),
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_with(context, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_with(context, |stream| stream.try_write_vectored(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.0).shutdown(Shutdown::Write))
    }
}

impl Stream {
    fn poll_with(
        &self,
        context: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match write(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

/// A TCP connection.
pub struct Connection {
    /// There until the drop.
    stream: Option<Stream>,
    wire: Arc<Wire>,
    write_timeout: Duration,
    /// Ends when the network has taken nothing of a response for too long.
    stuck: Option<Pin<Box<Sleep>>>,
    lingering: TaskTracker,
}

impl Connection {
    /// Takes over a stream. A response of which the peer reads nothing for `write_timeout` is an error; its end is among the `lingering`.
    pub fn new(stream: TcpStream, write_timeout: Duration, lingering: TaskTracker) -> Connection {
        let stream = Some(Stream(Arc::new(stream)));
        Connection { stream, wire: Arc::default(), write_timeout, stuck: None, lingering }
    }

    /// What others may know of it.
    pub fn wire(&self) -> Arc<Wire> {
        self.wire.clone()
    }

    /// The stream itself, for whoever writes to it between two writes of this.
    pub fn shared(&self) -> Arc<TcpStream> {
        self.stream.as_ref().expect("taken only by the drop").0.clone()
    }

    fn stream(self: Pin<&mut Self>) -> Pin<&mut Stream> {
        Pin::new(self.get_mut().stream.as_mut().expect("taken only by the drop"))
    }

    /// Counts what was written, and minds the time in which nothing was.
    fn wrote(&mut self, written: Poll<io::Result<usize>>, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => {
                self.wire.add_written(bytes);
                self.stuck = None;
            }
            Poll::Pending if !self.wire.is(Phase::Session) => {
                let write_timeout = self.write_timeout;
                ready!(self.stuck.get_or_insert_with(|| Box::pin(sleep(write_timeout))).as_mut().poll(context));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            Poll::Pending => self.stuck = None,
            Poll::Ready(Err(_)) => {}
        }
        written
    }
}

/// Closing a socket with unread data in it makes the kernel throw away what the peer has not read yet, a Close frame say.
impl Drop for Connection {
    fn drop(&mut self) {
        let (Some(stream), Ok(runtime)) = (self.stream.take(), tokio::runtime::Handle::try_current()) else { return };
        if self.wire.is(Phase::Cut) || self.wire.written() == 0 {
            return;
        }
        let end = timeout(LINGER, async move {
            let mut stream = stream;
            if stream.shutdown().await.is_ok() {
                let _ = tokio::io::copy(&mut stream.take(LINGER_BYTES), &mut tokio::io::sink()).await;
            }
        });
        self.lingering.spawn_on(end, &runtime);
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
        self.wrote(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.as_mut().stream().poll_write_vectored(context, bytes);
        self.wrote(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(context)
    }
}
