//! A WebSocket over a connection. Its buffers are as large as what is in them, and gone when nothing is.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use futures_util::{Sink, Stream};
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;

use super::frame::{self, Decoder, Event, Opcode, Text};
use crate::broker::Direct;
use crate::http::connection::{Connection, Wire};
use crate::http::unfinished::Share;
use crate::session::{Inbound, Outbound, Socket};
use crate::wire::Close;
use crate::wire::json::HEAD_AT;

/// What is read at a time, unless the rest of a larger frame is awaited.
const READ_BUFFER: usize = 2048;
/// Less room than this is not worth a read, unless no more is missing.
const LEAST_READ: usize = 512;
/// Bytes that are written together, before more is taken.
const WRITE_BUFFER: usize = 64 * 1024;

/// A WebSocket. Pings and Close frames of the client are answered here, once it is flushed.
pub struct WebSocket {
    connection: Connection,
    wire: Arc<Wire>,
    decoder: Decoder,
    /// What has come and is not taken yet.
    inbound: BytesMut,
    /// What is encoded and not written yet.
    outbound: BytesMut,
    share: Share,
    /// The client has said its last: nothing more is read.
    is_over: bool,
    /// A Close frame is among what was sent: nothing may follow it.
    is_closed: bool,
}

impl WebSocket {
    /// Over a connection that has had a handshake and, behind it, these bytes.
    pub fn new(connection: Connection, inbound: BytesMut, max_frame: usize, share: Share) -> WebSocket {
        WebSocket {
            wire: connection.wire(),
            connection,
            decoder: Decoder::new(max_frame),
            inbound,
            outbound: BytesMut::new(),
            share,
            is_over: false,
            is_closed: false,
        }
    }

    /// What the client says next, its pings and Close frame answered; nothing when it is gone. After its Close frame, or an error,
    /// nothing more is read.
    pub fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Event, Close>>> {
        while !self.is_over {
            match self.decoder.next(&mut self.inbound) {
                Ok(Some(event)) => {
                    self.answer(&event);
                    return Poll::Ready(Some(Ok(event)));
                }
                Ok(None) => {}
                Err(close) => {
                    self.is_over = true;
                    return Poll::Ready(Some(Err(close)));
                }
            }
            self.make_room();
            match poll_read_buf(Pin::new(&mut self.connection), context, &mut self.inbound) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0) | Err(_)) => self.is_over = true,
                Poll::Pending => {
                    if self.inbound.is_empty() {
                        self.inbound = BytesMut::new();
                    }
                    let unfinished = self.inbound.len() + self.decoder.held();
                    return match self.share.hold(unfinished as u64, context.waker()) {
                        Ok(()) => Poll::Pending,
                        Err(close) => Poll::Ready(Some(Err(close))),
                    };
                }
            }
        }
        Poll::Ready(None)
    }

    fn answer(&mut self, event: &Event) {
        match event {
            Event::Text(_) | Event::Binary(_) => self.share.release(),
            Event::Ping(payload) => self.send(Opcode::Pong, &[payload]),
            Event::Pong => {}
            Event::Close(code) => {
                self.is_over = true;
                let code = code.map(u16::to_be_bytes);
                self.send(Opcode::Close, &[code.as_ref().map_or(&[], |code| code)]);
                self.is_closed = true;
            }
        }
    }

    /// Makes room for what is awaited and not much more: a buffer that waits for the rest of a large frame grows as it comes, and
    /// ends where the frame does.
    fn make_room(&mut self) {
        let (come, missing) = (self.inbound.len(), self.decoder.missing(&self.inbound));
        let room = self.inbound.capacity() - come;
        if room >= LEAST_READ || (missing > 0 && room >= missing) {
            return;
        }
        let size = READ_BUFFER.max(come + missing.min(come));
        if !self.inbound.try_reclaim(size - come) {
            let mut larger = BytesMut::with_capacity(size);
            larger.extend_from_slice(&self.inbound);
            self.inbound = larger;
        }
    }

    /// Queues a frame whose payload is these parts, unless it would follow a Close frame.
    pub fn send(&mut self, opcode: Opcode, payload: &[&[u8]]) {
        if !self.is_closed {
            frame::write(&mut self.outbound, opcode, payload);
        }
    }

    /// Queues a Close frame, the last of all.
    pub fn send_close(&mut self, close: Close) {
        if !self.is_closed {
            frame::write_close(&mut self.outbound, close.code(), close.reason());
            self.is_closed = true;
        }
    }

    /// Writes all that is queued.
    pub fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Close>> {
        while !self.outbound.is_empty() {
            match ready!(Pin::new(&mut self.connection).poll_write(context, &self.outbound)) {
                Ok(written @ 1..) => self.outbound.advance(written),
                Ok(0) | Err(_) => return Poll::Ready(Err(Close::Lost)),
            }
        }
        self.outbound = BytesMut::new();
        Pin::new(&mut self.connection).poll_flush(context).map_err(|_| Close::Lost)
    }
}

impl Socket for WebSocket {
    type Text = Text;

    fn direct(&self) -> Option<Arc<dyn Direct>> {
        // Not under TLS: only the connection itself can seal what is written.
        self.connection.is_plain().then(|| self.wire.clone() as Arc<dyn Direct>)
    }

    fn written(&self) -> u64 {
        self.wire.written()
    }

    fn unwritten(&self) -> usize {
        self.outbound.len() + self.connection.unflushed()
    }
}

impl Stream for WebSocket {
    type Item = Result<Inbound<Text>, Close>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_event(context).map(|read| {
            read.map(|read| {
                read.map(|event| match event {
                    Event::Text(text) => Inbound::Text(text),
                    Event::Binary(_) => Inbound::Binary,
                    Event::Ping(_) => Inbound::Ping,
                    Event::Pong => Inbound::Pong,
                    Event::Close(_) => Inbound::Close,
                })
            })
        })
    }
}

impl Sink<Outbound> for WebSocket {
    type Error = Close;

    fn poll_ready(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Close>> {
        if self.outbound.len() < WRITE_BUFFER { Poll::Ready(Ok(())) } else { self.poll_write(context) }
    }

    fn start_send(mut self: Pin<&mut Self>, frame: Outbound) -> Result<(), Close> {
        match frame {
            Outbound::Text(text) => self.send(Opcode::Text, &[text.as_bytes()]),
            Outbound::Delivery { head, text } => {
                let (begun, rest) = text.split_at(HEAD_AT);
                self.send(Opcode::Text, &[begun, &head, rest]);
            }
            // They are frames already.
            Outbound::Frames(bytes) if !self.is_closed => self.outbound.extend_from_slice(&bytes),
            Outbound::Frames(_) => {}
            Outbound::Ping => self.send(Opcode::Ping, &[]),
            Outbound::Close(close) => self.send_close(close),
        }
        Ok(())
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Close>> {
        self.poll_write(context)
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Close>> {
        self.poll_flush(context)
    }
}
