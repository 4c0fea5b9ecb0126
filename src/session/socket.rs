//! The WebSocket as a session sees it, whoever implements it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::{Sink, Stream};
use tokio::task::coop;

use crate::broker::Direct;
use crate::wire::Close;
#[cfg(doc)]
use crate::wire::json::HEAD_AT;

/// What the client sent.
#[derive(Debug)]
pub enum Inbound<T> {
    /// A text frame.
    Text(T),
    /// A binary frame.
    Binary,
    /// A ping: a sign of life. It is answered below, and the answer waits there to be written.
    Ping,
    /// A pong: a sign of life.
    Pong,
    /// A Close frame. It is answered below.
    Close,
}

/// What the session sends.
#[derive(Debug, PartialEq)]
pub enum Outbound {
    /// A text frame.
    Text(String),
    /// The text frame of a delivery: what is the session's own of it, to be put in at [`HEAD_AT`], and what all share.
    Delivery {
        /// Empty where nothing is.
        head: Vec<u8>,
        /// A whole frame.
        text: Bytes,
    },
    /// The rest of frames whose writing has begun; ahead of all else.
    Frames(Bytes),
    /// A ping.
    Ping,
    /// A Close frame.
    Close(Close),
}

impl Outbound {
    /// What it takes in memory, roughly.
    fn size(&self) -> usize {
        let text = match self {
            Outbound::Text(text) => text.capacity(),
            Outbound::Delivery { head, text } => head.capacity() + text.len(),
            Outbound::Frames(bytes) => bytes.len(),
            Outbound::Ping | Outbound::Close(_) => 0,
        };
        size_of::<Outbound>() + text
    }
}

/// A WebSocket. Its errors are ends of the session.
pub trait Socket:
    Stream<Item = Result<Inbound<Self::Text>, Close>> + Sink<Outbound, Error = Close> + Unpin + Send
{
    /// A text frame, checked to be UTF-8.
    type Text: AsRef<str> + Send;

    /// How others may write to it while the session writes nothing, if they can.
    fn direct(&self) -> Option<Arc<dyn Direct>>;

    /// Bytes that the network has taken so far.
    fn written(&self) -> u64;

    /// Bytes that wait here for the network, answers to pings among them.
    fn unwritten(&self) -> usize;
}

/// What a socket did.
#[derive(Debug)]
pub enum Turn<T> {
    /// All that was queued has been written, and it was more than a ping or not.
    Flushed {
        /// A frame was among it.
        frames: bool,
    },
    /// The client sent something; nothing means that the connection is gone.
    Read(Option<Result<Inbound<T>, Close>>),
}

/// Bytes that may wait before a client that asks for more is read no further.
const MAX_WAITING: usize = 1 << 20;

/// What waits to be written to a socket.
#[derive(Debug, Default)]
pub struct Writing {
    queue: std::collections::VecDeque<Outbound>,
    bytes: usize,
    /// Bytes that the socket has and the network has not.
    below: usize,
    /// More than pings was queued since the last flush: a ping of ours is no sign of the client's life.
    has_frames: bool,
    /// The last turn was a write.
    has_flushed: bool,
}

impl Writing {
    /// Queues a frame.
    pub fn push(&mut self, frame: Outbound) {
        self.has_frames = true;
        self.bytes += frame.size();
        self.queue.push_back(frame);
    }

    /// Queues the rest of what was begun.
    pub fn push_rest(&mut self, rest: Bytes) {
        if !rest.is_empty() {
            let rest = Outbound::Frames(rest);
            self.has_frames = true;
            self.bytes += rest.size();
            self.queue.push_front(rest);
        }
    }

    /// Queues a ping ahead of all else.
    pub fn push_ping(&mut self) {
        self.bytes += Outbound::Ping.size();
        self.queue.push_front(Outbound::Ping);
    }

    /// So much waits that nothing should be read that might add to it: a client may ask without reading the answers.
    pub fn is_full(&self) -> bool {
        self.bytes() > MAX_WAITING
    }

    /// What waits takes so much memory, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes + self.below
    }

    /// Something was queued that is not written yet.
    pub fn is_pending(&self) -> bool {
        self.below > 0 || !self.queue.is_empty()
    }

    /// Writes what is queued and, if `reading`, reads. Safe to poll anew at any time.
    ///
    /// After a write the client has its turn: else a flood of deliveries would never let it say that it has enough.
    pub fn poll_turn<S: Socket>(
        &mut self,
        socket: &mut S,
        reading: bool,
        context: &mut Context<'_>,
    ) -> Poll<Result<Turn<S::Text>, Close>> {
        if reading
            && std::mem::take(&mut self.has_flushed)
            && let Poll::Ready(read) = self.poll_read(socket, context)
        {
            return Poll::Ready(Ok(Turn::Read(read)));
        }
        if self.is_pending()
            && let Poll::Ready(result) = self.poll_flush(socket, context)
        {
            let frames = std::mem::take(&mut self.has_frames);
            self.has_flushed = true;
            return Poll::Ready(result.map(|()| Turn::Flushed { frames }));
        }
        if reading { self.poll_read(socket, context).map(|read| Ok(Turn::Read(read))) } else { Poll::Pending }
    }

    /// A client that always has more to say lets the other tasks have their turn, however little it says at a time.
    fn poll_read<S: Socket>(
        &mut self,
        socket: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Inbound<S::Text>, Close>>> {
        let budget = ready!(coop::poll_proceed(context));
        let read = ready!(Pin::new(&mut *socket).poll_next(context));
        budget.made_progress();
        self.below = socket.unwritten();
        Poll::Ready(read)
    }

    /// Writes what is queued here and below.
    pub fn poll_flush<S: Socket>(&mut self, socket: &mut S, context: &mut Context<'_>) -> Poll<Result<(), Close>> {
        let written = self.poll_write(socket, context);
        self.below = socket.unwritten();
        written
    }

    fn poll_write<S: Socket>(&mut self, socket: &mut S, context: &mut Context<'_>) -> Poll<Result<(), Close>> {
        while !self.queue.is_empty() {
            ready!(Pin::new(&mut *socket).poll_ready(context))?;
            if let Some(frame) = self.queue.pop_front() {
                self.bytes -= frame.size();
                Pin::new(&mut *socket).start_send(frame)?;
            }
        }
        self.queue.shrink_to_fit();
        Pin::new(socket).poll_flush(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// What a pong of 125 bytes takes.
    const PONG: usize = 127;

    /// Takes everything at once, and always has a ping of the client to read. It counts the bytes of the pongs.
    #[derive(Default)]
    struct Eager(usize);

    impl Stream for Eager {
        type Item = Result<Inbound<String>, Close>;
        fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            self.0 += PONG;
            Poll::Ready(Some(Ok(Inbound::Ping)))
        }
    }

    impl Sink<Outbound> for Eager {
        type Error = Close;
        fn poll_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Close>> {
            Poll::Ready(Ok(()))
        }
        fn start_send(self: Pin<&mut Self>, _: Outbound) -> Result<(), Close> {
            Ok(())
        }
        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Close>> {
            self.0 = 0;
            Poll::Ready(Ok(()))
        }
        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Close>> {
            Poll::Ready(Ok(()))
        }
    }

    impl Socket for Eager {
        type Text = String;
        fn direct(&self) -> Option<Arc<dyn Direct>> {
            None
        }
        fn written(&self) -> u64 {
            0
        }
        fn unwritten(&self) -> usize {
            self.0
        }
    }

    #[tokio::test]
    async fn a_client_is_heard_while_there_is_always_more_to_write() {
        let (mut writing, mut socket, mut reads, mut writes) = (Writing::default(), Eager::default(), 0, 0);
        for _ in 0..10 {
            writing.push(Outbound::Text("x".to_owned()));
            match poll_fn(|context| writing.poll_turn(&mut socket, true, context)).await {
                Ok(Turn::Read(_)) => reads += 1,
                Ok(Turn::Flushed { .. }) => writes += 1,
                Err(close) => panic!("{close}"),
            }
        }
        assert_eq!((reads, writes), (5, 5));
    }

    #[tokio::test]
    async fn pongs_that_wait_below_count_among_what_is_not_read() {
        let (mut writing, mut socket) = (Writing::default(), Eager::default());
        let mut pings = 0;
        while !writing.is_full() {
            let read = poll_fn(|context| writing.poll_read(&mut socket, context)).await;
            assert!(matches!(read, Some(Ok(Inbound::Ping))) && writing.is_pending());
            pings += 1;
        }
        assert_eq!(pings, MAX_WAITING / PONG + 1);
        poll_fn(|context| writing.poll_flush(&mut socket, context)).await.expect("it takes everything");
        assert!(!writing.is_full() && !writing.is_pending());
    }

    #[tokio::test]
    async fn a_client_that_always_has_more_to_say_lets_others_have_their_turn() {
        let (mut writing, mut socket) = (Writing::default(), Eager::default());
        let mut said = 0;
        let flood = poll_fn(|context| {
            while writing.poll_read(&mut socket, context).is_ready() {
                said += 1;
            }
            Poll::<()>::Pending
        });
        // Polled first, it comes to an end of its turn only by the budget of the task.
        tokio::select! {
            biased;
            () = flood => unreachable!("a flood has no end"),
            () = std::future::ready(()) => {}
        }
        assert!(said >= 64, "a turn is long enough: {said}");
    }
}
