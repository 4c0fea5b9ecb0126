//! Who sends the messages: at the broker, or at the server that is measured.

use crate::bare;
use crate::client::{BINARY, CLOSE, Server, Session, Speech, TEXT, close_reason, connect, masked, unmasked};
use crate::packets::{self, Packets};
use crate::{Result, fail};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::process::ChildStdin;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Who sends the messages. At most [`Publisher::WINDOW`] of them wait for their acknowledgement.
pub struct Publisher {
    /// Dropped first: that the connection ends with the publisher is no news.
    acks: Option<Acks>,
    door: Door,
    qos: u8,
    sent: u64,
}

enum Door {
    /// A session's `publish`, with a msgid, so that each is answered at any qos.
    Frames(OwnedWriteHalf),
    /// MQTT 3.1.1 over a WebSocket.
    Packets(OwnedWriteHalf),
    /// MQTT 5, straight to the broker.
    Broker(OwnedWriteHalf),
    /// A POST to the path that names the topic; each is answered.
    Post(OwnedWriteHalf),
    /// The bare program, which gets the frame that a gateway would have made: what stands before
    /// the payload, and what behind it.
    Bare { input: ChildStdin, before: Vec<u8>, behind: Vec<u8> },
}

impl Publisher {
    /// Below 20, the receive maximum that Mosquitto grants.
    const WINDOW: usize = 16;

    /// Publishes as a session does at the server.
    pub async fn session(server: Server, qos: u8) -> Result<Self> {
        match server.speech {
            Speech::Frames => Self::frames(server, qos).await,
            Speech::Packets => Self::packets(server, qos).await,
            Speech::Path => Self::post(server.address).await,
            Speech::Silence => fail("a bare program takes no sessions that publish"),
        }
    }

    async fn frames(server: Server, qos: u8) -> Result<Self> {
        let (mut input, write) = Session::enter(server, "").await?.split();
        let acks = Acks::count(async move |acks| {
            loop {
                let kind = input.advance().await?;
                match input.current() {
                    reason if kind == CLOSE => return fail(close_reason(reason)),
                    frame if holds(frame, br#""type":"ack""#) => acks.add(),
                    frame if holds(frame, br#""type":"error""#) => {
                        return fail(String::from_utf8_lossy(frame).into_owned());
                    }
                    _ => {}
                }
            }
        });
        Ok(Self { acks: Some(acks), door: Door::Frames(write), qos, sent: 0 })
    }

    async fn packets(server: Server, qos: u8) -> Result<Self> {
        let (mut input, write) = Session::enter(server, "").await?.split();
        let acks = Acks::count(async move |acks| {
            loop {
                if input.packet().await?.first() == Some(&packets::PUBACK) {
                    acks.add();
                }
            }
        });
        Ok(Self { acks: Some(acks), door: Door::Packets(write), qos, sent: 0 })
    }

    pub async fn mqtt(broker: SocketAddr, qos: u8) -> Result<Self> {
        let mut stream = connect(broker).await?;
        let client = format!("load-{}", stream.local_addr()?.port());
        stream.write_all(&packets::connect_5(&client)).await?;
        let (mut read, write) = stream.into_split();
        let mut input = Packets::default();
        packets::next(&mut read, &mut input).await?;
        if !matches!(input.current(), [packets::CONNACK, _, _, 0, ..]) {
            return fail(format!("the broker did not accept the publisher: {:02x?}", input.current()));
        }
        let acks = Acks::count(async move |acks| {
            loop {
                packets::next(&mut read, &mut input).await?;
                match input.current() {
                    [packets::PUBACK, _, _, _, reason, ..] if *reason >= 0x80 => {
                        return fail(format!("the broker refused a message: {reason:#04x}"));
                    }
                    [packets::PUBACK, ..] => acks.add(),
                    [packets::DISCONNECT, ..] => return fail("the broker disconnected the publisher"),
                    _ => {}
                }
            }
        });
        Ok(Self { acks: Some(acks), door: Door::Broker(write), qos, sent: 0 })
    }

    async fn post(server: SocketAddr) -> Result<Self> {
        let (read, write) = connect(server).await?.into_split();
        let mut read = BufReader::new(read);
        let acks = Acks::count(async move |acks| {
            let mut line = String::new();
            loop {
                line.clear();
                if read.read_line(&mut line).await? == 0 {
                    return fail("the server closed the publisher's connection");
                }
                if !line.starts_with("HTTP/1.1 20") {
                    return fail(format!("the server refused a message: {line}"));
                }
                let mut length = 0;
                while !line.trim_end().is_empty() {
                    line.clear();
                    read.read_line(&mut line).await?;
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse()?;
                    }
                }
                read.read_exact(&mut vec![0; length]).await?;
                acks.add();
            }
        });
        Ok(Self { acks: Some(acks), door: Door::Post(write), qos: 0, sent: 0 })
    }

    /// `delivery` is a gateway's own text frame around `payload`.
    pub fn bare(input: ChildStdin, delivery: &[u8], payload: &str) -> Result<Self> {
        let frame = unmasked(delivery);
        let Some(at) = frame.windows(payload.len()).position(|part| part == payload.as_bytes()) else {
            return fail("the gateway's frame does not hold the payload as it was sent");
        };
        let behind = frame[at + payload.len()..].to_vec();
        let door = Door::Bare { input, before: frame[..at].to_vec(), behind };
        Ok(Self { acks: None, door, qos: 0, sent: 0 })
    }

    /// Waits where too many messages are unanswered. Fails if an answer was a refusal.
    pub async fn publish(&mut self, topic: &str, payload: &str) -> Result<()> {
        self.sent += 1;
        if self.is_answered() {
            self.acks.as_ref().expect("whoever answers is listened to").wait().await?;
        }
        let Self { qos, sent, .. } = *self;
        match &mut self.door {
            Door::Frames(write) => {
                let frame = format!(
                    r#"{{"type":"publish","msgid":{sent},"topic":"{topic}","payload":"{payload}","qos":{qos}}}"#
                );
                write.write_all(&masked(TEXT, frame.as_bytes())).await?;
            }
            Door::Packets(write) => {
                write.write_all(&masked(BINARY, &packets::publish(topic, qos, sent, &[], payload))).await?;
            }
            Door::Broker(write) => write.write_all(&packets::publish(topic, qos, sent, &[0], payload)).await?,
            Door::Post(write) => {
                let length = payload.len();
                let request =
                    format!("POST /pub/{topic} HTTP/1.1\r\nHost: load\r\nContent-Length: {length}\r\n\r\n{payload}");
                write.write_all(request.as_bytes()).await?;
            }
            Door::Bare { input, before, behind } => {
                let frame = [before, payload.as_bytes(), behind].concat();
                input.write_all(&bare::enclose(&frame)).await?;
                input.flush().await?;
            }
        }
        Ok(())
    }

    /// Whether each message is acknowledged.
    pub fn is_answered(&self) -> bool {
        match self.door {
            Door::Frames(_) | Door::Post(_) => true,
            Door::Packets(_) | Door::Broker(_) => self.qos > 0,
            Door::Bare { .. } => false,
        }
    }

    /// Messages acknowledged so far.
    pub fn acks(&self) -> u64 {
        self.acks.as_ref().map_or(0, |acks| acks.count.load(Relaxed))
    }
}

/// The acknowledgements of one publisher, counted by a task of their own.
struct Acks {
    window: Arc<Semaphore>,
    count: Arc<AtomicU64>,
    _task: JoinSet<()>,
}

/// The counting end of [`Acks`].
struct Counter {
    window: Arc<Semaphore>,
    count: Arc<AtomicU64>,
}

impl Counter {
    fn add(&self) {
        self.count.fetch_add(1, Relaxed);
        self.window.add_permits(1);
    }
}

impl Acks {
    /// Runs `read`, which reads acknowledgements until it fails; publishing fails from then on.
    fn count<F>(read: impl FnOnce(Arc<Counter>) -> F) -> Self
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let window = Arc::new(Semaphore::new(Publisher::WINDOW));
        let count = Arc::new(AtomicU64::new(0));
        let counter = Arc::new(Counter { window: window.clone(), count: count.clone() });
        let reading = read(counter);
        let closing = window.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            if let Err(error) = reading.await {
                eprintln!("a publisher stopped: {error}");
            }
            closing.close();
        });
        Self { window, count, _task: task }
    }

    async fn wait(&self) -> Result<()> {
        match self.window.acquire().await {
            Ok(permit) => permit.forget(),
            Err(_) => return fail("the publisher's connection is gone"),
        }
        Ok(())
    }
}

fn holds(frame: &[u8], part: &[u8]) -> bool {
    frame.windows(part.len()).any(|window| window == part)
}
