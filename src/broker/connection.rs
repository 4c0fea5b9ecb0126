//! One MQTT connection: packets in and out of a stream, and its opening.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::transport::{Stream, Target};
use crate::mqtt::Reason;
use crate::mqtt::packet::{self, Connack, Connect, Malformed, Packet};

/// Bytes that a read makes room for at first; it grows while reads fill it.
const FIRST_READ: usize = 512;
const LARGEST_READ: usize = 64 * 1024;
/// A connection that is not read, or has nothing to read for now, holds no more than this.
const IDLE_CAPACITY: usize = 2048;

/// A connection that the broker has accepted.
pub struct Connection {
    stream: Box<dyn Stream>,
    inbound: BytesMut,
    read_size: usize,
    max_packet: usize,
    /// Why nothing can be written any more; the broker's last words may still be there to read.
    broken: Option<io::Error>,
    /// Packets that wait to be written: [`turn`](Self::turn) writes them.
    pub outbound: BytesMut,
}

/// What a connection did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The stream took some or all of what waited to be written.
    Wrote,
    /// There may be packets to take.
    Read,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The network.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The broker closed the stream.
    #[error("the broker closed the connection")]
    Closed,
    /// The broker said why.
    #[error("the broker ended the connection: {0}")]
    Disconnected(Reason),
    /// What came is not MQTT 5.
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// No answer in time.
    #[error("the broker did not answer in time")]
    TimedOut,
    /// CONNACK says no.
    #[error("the broker refused the connection: {reason}{}", text.as_deref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        /// The code.
        reason: Reason,
        /// The words of the broker.
        text: Option<String>,
    },
}

impl Lost {
    /// Another connection has the session now.
    pub fn is_takeover(&self) -> bool {
        matches!(self, Lost::Disconnected(Reason::SESSION_TAKEN_OVER))
    }

    /// Trying again won't help: the broker doesn't want this client, or doesn't speak MQTT 5.
    pub fn is_final(&self) -> bool {
        match self {
            // Server unavailable, busy, quota exceeded, use another server, connection rate exceeded: these may pass.
            Lost::Refused { reason, .. } => !matches!(reason.0, 0x80 | 0x83 | 0x88 | 0x89 | 0x97 | 0x9C | 0x9F),
            Lost::Malformed(malformed) => *malformed == Malformed::OldProtocol,
            Lost::Io(_) | Lost::Closed | Lost::Disconnected(_) | Lost::TimedOut => false,
        }
    }
}

impl Connection {
    fn new(stream: Box<dyn Stream>, max_packet: usize) -> Connection {
        Connection {
            stream,
            inbound: BytesMut::new(),
            read_size: FIRST_READ,
            max_packet,
            broken: None,
            outbound: BytesMut::new(),
        }
    }

    /// Connects and introduces the client. Has no deadline of its own.
    pub async fn open(target: &Target, connect: &Connect<'_>) -> Result<(Connection, Connack), Lost> {
        Connection::over(target.connect().await?, connect).await
    }

    /// Introduces the client over a stream that is there.
    pub async fn over(stream: Box<dyn Stream>, connect: &Connect<'_>) -> Result<(Connection, Connack), Lost> {
        let max_packet = connect.maximum_packet_size as usize;
        let mut connection = Connection::new(stream, max_packet);
        connect.write(&mut connection.outbound);
        loop {
            connection.turn(true).await?;
            match connection.next_packet()? {
                None => {}
                Some(Packet::Connack(connack)) if connack.reason.is_success() => return Ok((connection, connack)),
                Some(Packet::Connack(connack)) => {
                    return Err(Lost::Refused { reason: connack.reason, text: connack.reason_string });
                }
                Some(Packet::Disconnect(reason)) => return Err(Lost::Refused { reason, text: None }),
                Some(_) => return Err(Lost::Malformed(Malformed::PacketType(0))),
            }
        }
    }

    /// Writes what waits and, if `reading`, reads. Safe to drop half-way: nothing is lost.
    pub async fn turn(&mut self, reading: bool) -> Result<Turn, Lost> {
        poll_fn(|context| self.poll_turn(context, reading)).await
    }

    /// The same.
    pub fn poll_turn(&mut self, context: &mut Context<'_>, reading: bool) -> Poll<Result<Turn, Lost>> {
        let mut wrote = false;
        while !self.outbound.is_empty() {
            match Pin::new(&mut self.stream).poll_write(context, &self.outbound) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(Lost::Closed)),
                Poll::Ready(Ok(count)) => {
                    self.outbound.advance(count);
                    wrote = true;
                }
                Poll::Ready(Err(error)) => {
                    self.broken.get_or_insert(error);
                    self.outbound.clear();
                }
                Poll::Pending => break,
            }
        }
        if wrote && self.outbound.is_empty() {
            self.outbound = BytesMut::new();
        }
        // Over TLS this pushes out what the last write left in its buffers; over TCP it is nothing.
        if let Poll::Ready(Err(error)) = Pin::new(&mut self.stream).poll_flush(context) {
            self.broken.get_or_insert(error);
        }
        if reading {
            match self.poll_read(context)? {
                Poll::Ready(0) => return Poll::Ready(Err(self.broken.take().map_or(Lost::Closed, Lost::Io))),
                Poll::Ready(count) if count >= self.read_size => {
                    self.read_size = (self.read_size * 4).min(LARGEST_READ);
                    return Poll::Ready(Ok(Turn::Read));
                }
                Poll::Ready(count) => {
                    if count < self.read_size / 8 {
                        self.read_size = (self.read_size / 2).max(FIRST_READ);
                    }
                    return Poll::Ready(Ok(Turn::Read));
                }
                Poll::Pending if self.inbound.is_empty() => self.inbound = BytesMut::new(),
                Poll::Pending => {}
            }
        }
        // Whoever reads comes to the end of what there is; a broker that is silent still ends by the keep-alive.
        if let Some(error) = self.broken.take_if(|_| !reading) {
            return Poll::Ready(Err(Lost::Io(error)));
        }
        if wrote { Poll::Ready(Ok(Turn::Wrote)) } else { Poll::Pending }
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.inbound.is_empty() && self.read_size == FIRST_READ {
            // Most reads bring one small packet, and most connections wait for it: a buffer is made when something has come.
            let mut space = [MaybeUninit::uninit(); FIRST_READ];
            let mut space = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut space))?;
            self.inbound = BytesMut::from(space.filled());
            return Poll::Ready(Ok(space.filled().len()));
        }
        if self.inbound.is_empty() && self.inbound.capacity() < self.read_size {
            // One that is reclaimed would double each time, and whoever waits with a payload in it would hold all of it.
            self.inbound = BytesMut::with_capacity(self.read_size);
        }
        self.inbound.reserve(self.read_size);
        poll_read_buf(Pin::new(&mut self.stream), context, &mut self.inbound)
    }

    /// Ends the stream and waits until the broker has ended it too.
    pub async fn finish(mut self) {
        if self.stream.shutdown().await.is_ok() {
            let _ = tokio::io::copy(&mut self.stream, &mut tokio::io::sink()).await;
        }
    }

    /// Bytes that are held for a packet that has not come whole.
    pub fn buffered(&self) -> usize {
        self.inbound.capacity()
    }

    /// The next packet of those that were read.
    pub fn next_packet(&mut self) -> Result<Option<Packet>, Malformed> {
        let packet = packet::read(&mut self.inbound, self.max_packet)?;
        if self.inbound.is_empty() && self.inbound.capacity() > IDLE_CAPACITY {
            self.inbound = BytesMut::new();
        }
        Ok(packet)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt;
    use tokio::io::duplex;
    use tokio::net::UnixStream;

    use super::*;
    use crate::mqtt::{Message, Qos, Topic};

    #[tokio::test]
    async fn the_last_words_of_a_broker_are_read_though_nothing_can_be_written() {
        let (stream, mut broker) = UnixStream::pair().expect("a pair");
        let mut connection = Connection::new(Box::new(stream), 1 << 20);
        broker.write_all(&[0xE0, 0x01, 0x8E]).await.expect("there is room");
        drop(broker);
        packet::write_pingreq(&mut connection.outbound);
        assert_eq!(connection.turn(true).await.expect("there is something to read"), Turn::Read);
        assert_eq!(connection.next_packet(), Ok(Some(Packet::Disconnect(Reason::SESSION_TAKEN_OVER))));
        packet::write_pingreq(&mut connection.outbound);
        assert!(matches!(connection.turn(true).await, Err(Lost::Io(_))));
    }

    #[tokio::test]
    async fn a_connection_that_has_nothing_to_read_holds_nothing_and_one_that_is_not_read_little() {
        let (stream, mut broker) = duplex(1 << 20);
        let mut connection = Connection::new(Box::new(stream), 1 << 20);
        for size in [10, 100, 10_000, 300_000, 10] {
            let topic = Topic::parse("t").expect("a topic");
            let payload = Bytes::from(vec![b'x'; size]);
            let message = Message { topic, payload, qos: Qos::AtMostOnce, retain: false, properties: None };
            let mut bytes = BytesMut::new();
            for _ in 0..3 {
                packet::write_publish(&mut bytes, &message, None, false);
            }
            broker.write_all(&bytes).await.expect("there is room");
            let mut come = 0;
            while come < 3 {
                assert_eq!(connection.turn(true).await.expect("it stands"), Turn::Read);
                while let Some(packet) = connection.next_packet().expect("it is well formed") {
                    assert!(matches!(packet, Packet::Publish(publish) if publish.message == message));
                    come += 1;
                }
            }
            assert!(connection.buffered() <= IDLE_CAPACITY, "{} bytes are held", connection.buffered());
            assert!(connection.turn(true).now_or_never().is_none());
            assert_eq!(connection.buffered(), 0);
        }
    }
}
