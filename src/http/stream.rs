//! What a connection reads and writes: TCP, bare or under TLS.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::connection::Wire;

/// Bytes of a peer that are read and forgotten at the end of a connection.
const LINGER_BYTES: u64 = 16 * 1024 * 1024;
/// Bytes that TLS may hold of what the network has not taken: one record's worth.
pub const TLS_BUFFER: usize = 16 * 1024;

/// A stream of bytes to a peer.
pub enum Stream {
    /// TCP itself, so that more than one may write to it, each a whole frame at a time.
    Plain(Tcp),
    /// TLS over it.
    Tls(Box<TlsStream<Tcp>>),
}

/// TCP that counts what the network takes.
pub struct Tcp(Arc<Wire>);

impl Stream {
    /// What others may know of it.
    pub fn wire(&self) -> &Arc<Wire> {
        match self {
            Stream::Plain(tcp) => &tcp.0,
            Stream::Tls(tls) => &tls.get_ref().0.0,
        }
    }

    /// Bytes that were taken here and not by the network, at the most: nothing brings them on their way but a flush.
    pub fn unflushed(&self) -> usize {
        match self {
            Stream::Tls(tls) if tls.get_ref().1.wants_write() => TLS_BUFFER,
            Stream::Plain(_) | Stream::Tls(_) => 0,
        }
    }

    /// Says that no more will come, and reads until the peer has said so too: closing a socket with unread data in it makes the kernel
    /// throw away what the peer has not read yet.
    pub async fn linger(mut self) {
        if self.shutdown().await.is_ok() {
            let tcp = match self {
                Stream::Plain(tcp) => tcp,
                Stream::Tls(tls) => tls.into_inner().0,
            };
            tcp.forget_rest().await;
        }
    }
}

impl Tcp {
    /// Takes over a connection; nothing has been written to it.
    pub fn new(stream: TcpStream) -> Tcp {
        Tcp(Arc::new(Wire::new(stream)))
    }

    /// As [`Stream::linger`], for a connection that did not come to more.
    pub async fn linger(mut self) {
        if self.0.written() > 0 && self.shutdown().await.is_ok() {
            self.forget_rest().await;
        }
    }

    async fn forget_rest(self) {
        let _ = tokio::io::copy(&mut self.take(LINGER_BYTES), &mut tokio::io::sink()).await;
    }

    fn poll_with(
        &self,
        context: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.tcp().poll_write_ready(context))?;
            match write(self.0.tcp()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    if let Ok(bytes) = written {
                        self.0.add_written(bytes);
                    }
                    return Poll::Ready(written);
                }
            }
        }
    }
}

impl AsyncRead for Tcp {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.tcp().poll_read_ready(context))?;
            match self.0.tcp().try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(drop)),
            }
        }
    }
}

impl AsyncWrite for Tcp {
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
        Poll::Ready(SockRef::from(self.0.tcp()).shutdown(Shutdown::Write))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Stream::Tls(tls) => Pin::new(tls).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write(context, bytes),
            Stream::Tls(tls) => Pin::new(tls).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write_vectored(context, bytes),
            Stream::Tls(tls) => Pin::new(tls).poll_write_vectored(context, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_flush(context),
            Stream::Tls(tls) => Pin::new(tls).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_shutdown(context),
            Stream::Tls(tls) => Pin::new(tls).poll_shutdown(context),
        }
    }
}
