//! The clients that make the load: WebSocket sessions with as little code between socket and
//! ledger as possible, and publishers.

use crate::bare;
use crate::{Result, fail};
use bytes::{Buf, BytesMut};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::ChildStdin;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// One WebSocket.
pub struct Session {
    frames: Frames,
    write: OwnedWriteHalf,
}

impl Session {
    /// Opens a WebSocket, and nothing more.
    pub async fn connect(server: SocketAddr) -> Result<Self> {
        let mut stream = connect(server).await?;
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: {server}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGlkZWdhdGUgbG9hZCBydQ==\r\n\
             Sec-WebSocket-Protocol: tidegate.v1.json\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut input = BytesMut::with_capacity(1024);
        let end = loop {
            if stream.read_buf(&mut input).await? == 0 {
                return fail("the server closed the connection during the handshake");
            }
            if let Some(at) = input.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
        };
        if !input.starts_with(b"HTTP/1.1 101 ") {
            return fail(format!("no WebSocket: {}", String::from_utf8_lossy(&input)));
        }
        let (read, write) = stream.into_split();
        Ok(Self { frames: Frames { read, input, taken: end }, write })
    }

    /// Opens a session: up to its `welcome`.
    pub async fn open(gateway: SocketAddr) -> Result<Self> {
        Ok(Self::open_with(gateway, &json!({"type": "auth"})).await?.0)
    }

    /// Opens a session with this `auth`; gives its `welcome` too.
    pub async fn open_with(gateway: SocketAddr, auth: &Value) -> Result<(Self, Value)> {
        let mut session = Self::connect(gateway).await?;
        session.send(auth).await?;
        session.expect("auth_response").await?;
        let welcome = session.expect("welcome").await?;
        Ok((session, welcome))
    }

    /// Subscribes, and makes sure that the subscription was granted as asked.
    pub async fn subscribe(&mut self, filter: &str, qos: u8) -> Result<()> {
        self.send(&json!({"type": "subscribe", "topic": filter, "qos": qos})).await?;
        let answer = self.expect("subscribed").await?;
        if answer["topics"][0]["qos"] != qos {
            return fail(format!("{filter} at qos {qos} was not granted: {answer}"));
        }
        Ok(())
    }

    /// The next text frame. Pings are answered on the way; the end of the session is an error.
    pub async fn next(&mut self) -> Result<&[u8]> {
        loop {
            match self.frames.advance().await? {
                PING => self.write.write_all(&masked(PONG, self.frames.current())).await?,
                CLOSE => return fail(close_reason(self.frames.current())),
                _ => return Ok(self.frames.current()),
            }
        }
    }

    pub async fn send(&mut self, frame: &Value) -> Result<()> {
        Ok(self.write.write_all(&masked(TEXT, frame.to_string().as_bytes())).await?)
    }

    /// Leaves with a Close frame, and waits until the server has answered it.
    pub async fn close(mut self) -> Result<()> {
        self.write.write_all(&masked(CLOSE, &1000_u16.to_be_bytes())).await?;
        while self.frames.advance().await? != CLOSE {}
        Ok(())
    }

    async fn expect(&mut self, kind: &str) -> Result<Value> {
        let frame: Value = serde_json::from_slice(self.next().await?)?;
        if frame["type"] != kind {
            return fail(format!("{kind} was expected, and {frame} came"));
        }
        Ok(frame)
    }
}

async fn connect(server: SocketAddr) -> Result<TcpStream> {
    match TcpStream::connect(server).await {
        Ok(stream) => {
            stream.set_nodelay(true)?;
            Ok(stream)
        }
        Err(error) => fail(format!("{server} takes no connection: {error}")),
    }
}

/// A server's side of a WebSocket, frame by frame, read in place.
struct Frames {
    read: OwnedReadHalf,
    input: BytesMut,
    /// Bytes at the start of `input` that are done with at the next step.
    taken: usize,
}

impl Frames {
    /// Goes on to the next text, ping or Close frame and says which it is.
    async fn advance(&mut self) -> Result<u8> {
        loop {
            self.input.advance(std::mem::take(&mut self.taken));
            let Some((header, length)) = frame_size(&self.input) else {
                more(&mut self.read, &mut self.input, 2048).await?;
                continue;
            };
            while self.input.len() < header + length {
                let rest = header + length - self.input.len();
                more(&mut self.read, &mut self.input, rest).await?;
            }
            let kind = self.input[0];
            self.input.advance(header);
            self.taken = length;
            match kind {
                0x81 => return Ok(TEXT),
                0x89 => return Ok(PING),
                0x88 => return Ok(CLOSE),
                0x8A => {}
                other => return fail(format!("a WebSocket frame that starts with {other:#04x}")),
            }
        }
    }

    fn current(&self) -> &[u8] {
        &self.input[..self.taken]
    }
}

/// Lengths of the header and of the content of the frame at the start of `input`, once they are known.
fn frame_size(input: &[u8]) -> Option<(usize, usize)> {
    match *input.get(1)? {
        126 => Some((4, u16::from_be_bytes(input.get(2..4)?.try_into().ok()?).into())),
        127 => Some((10, u64::from_be_bytes(input.get(2..10)?.try_into().ok()?) as usize)),
        length => Some((2, length.into())),
    }
}

fn close_reason(content: &[u8]) -> String {
    match content {
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            format!("the server closed with {code} {}", String::from_utf8_lossy(reason))
        }
        _ => "the server closed".into(),
    }
}

/// Reads what is there, into room for `room` bytes at least.
async fn more(read: &mut OwnedReadHalf, input: &mut BytesMut, room: usize) -> Result<()> {
    input.reserve(room);
    match read.read_buf(input).await? {
        0 => fail("the connection was cut"),
        _ => Ok(()),
    }
}

/// A client's frame. Its mask is zero: the server unmasks all the same, and we need not.
fn masked(opcode: u8, content: &[u8]) -> Vec<u8> {
    frame(opcode, 0x80, &[0; 4], content)
}

/// A server's text frame.
pub fn unmasked(content: &[u8]) -> Vec<u8> {
    frame(TEXT, 0, &[], content)
}

fn frame(opcode: u8, mask_bit: u8, mask: &[u8], content: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match content.len() {
        length @ ..126 => frame.push(mask_bit | length as u8),
        length @ ..65_536 => {
            frame.push(mask_bit | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(mask_bit | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(content);
    frame
}

/// Who sends the messages. At most [`Publisher::WINDOW`] of them wait for their acknowledgement.
pub struct Publisher {
    /// Dropped first: that the connection ends with the publisher is no news.
    acks: Option<Acks>,
    door: Door,
    sent: u64,
}

enum Door {
    /// A session's `publish`, with a msgid, so that each is answered at any qos.
    Session { write: OwnedWriteHalf, qos: u8 },
    /// MQTT 5, straight to the broker.
    Mqtt { write: OwnedWriteHalf, qos: u8 },
    /// The bare program, which gets the frame that a gateway would have made: what stands before
    /// the payload, and what behind it.
    Bare { input: ChildStdin, before: Vec<u8>, behind: Vec<u8> },
}

/// The acknowledgements of one publisher, counted by a task of their own.
struct Acks {
    window: Arc<Semaphore>,
    count: Arc<AtomicU64>,
    _task: JoinSet<()>,
}

impl Publisher {
    /// Below 20, the receive maximum that Mosquitto grants.
    const WINDOW: usize = 16;

    pub async fn session(gateway: SocketAddr, qos: u8) -> Result<Self> {
        let Session { mut frames, write } = Session::open(gateway).await?;
        let acks = Acks::count(async move |acks| {
            loop {
                let kind = frames.advance().await?;
                match frames.current() {
                    reason if kind == CLOSE => return fail(close_reason(reason)),
                    frame if holds(frame, br#""type":"ack""#) => acks.add(),
                    frame if holds(frame, br#""type":"error""#) => {
                        return fail(String::from_utf8_lossy(frame).into_owned());
                    }
                    _ => {}
                }
            }
        });
        Ok(Self { door: Door::Session { write, qos }, sent: 0, acks: Some(acks) })
    }

    pub async fn mqtt(broker: SocketAddr, qos: u8) -> Result<Self> {
        let mut stream = connect(broker).await?;
        // Clean start, keep alive of 600 seconds (longer than any run), no properties.
        let mut connect = b"\0\x04MQTT\x05\x02\x02\x58\0".to_vec();
        connect.extend(sized(format!("load-{}", stream.local_addr()?.port()).as_bytes()));
        stream.write_all(&packet(0x10, &connect)).await?;
        let (mut read, write) = stream.into_split();
        match next_packet(&mut read).await?.as_slice() {
            [0x20, _, 0, ..] => {}
            other => {
                return fail(format!("the broker did not accept the publisher: {other:02x?}"));
            }
        }
        let acks = Acks::count(async move |acks| {
            loop {
                match next_packet(&mut read).await?.as_slice() {
                    [0x40, _, _, reason, ..] if *reason >= 0x80 => {
                        return fail(format!("the broker refused a message: {reason:#04x}"));
                    }
                    [0x40, ..] => acks.add(),
                    [0xE0, ..] => return fail("the broker disconnected the publisher"),
                    _ => {}
                }
            }
        });
        Ok(Self { door: Door::Mqtt { write, qos }, sent: 0, acks: Some(acks) })
    }

    /// `delivery` is a gateway's own text frame around `payload`.
    pub fn bare(input: ChildStdin, delivery: &[u8], payload: &str) -> Result<Self> {
        let frame = unmasked(delivery);
        let Some(at) = frame.windows(payload.len()).position(|part| part == payload.as_bytes()) else {
            return fail("the gateway's frame does not hold the payload as it was sent");
        };
        let behind = frame[at + payload.len()..].to_vec();
        let door = Door::Bare { input, before: frame[..at].to_vec(), behind };
        Ok(Self { door, sent: 0, acks: None })
    }

    /// Waits where too many messages are unanswered. Fails if an answer was a refusal.
    pub async fn publish(&mut self, topic: &str, payload: &str) -> Result<()> {
        self.sent += 1;
        match &mut self.door {
            Door::Session { write, qos } => {
                self.acks.as_ref().expect("sessions are answered").wait().await?;
                let frame = format!(
                    r#"{{"type":"publish","msgid":{},"topic":"{topic}","payload":"{payload}","qos":{qos}}}"#,
                    self.sent
                );
                write.write_all(&masked(TEXT, frame.as_bytes())).await?;
            }
            Door::Mqtt { write, qos } => {
                let mut body = sized(topic.as_bytes());
                if *qos > 0 {
                    self.acks.as_ref().expect("qos 1 is answered").wait().await?;
                    body.extend((self.sent % 0xFFFF + 1).to_be_bytes()[6..].iter());
                }
                body.push(0); // no properties
                body.extend(payload.as_bytes());
                write.write_all(&packet(0x30 | *qos << 1, &body)).await?;
            }
            Door::Bare { input, before, behind } => {
                let frame = [before, payload.as_bytes(), behind].concat();
                input.write_all(&bare::enclose(&frame)).await?;
                input.flush().await?;
            }
        }
        Ok(())
    }

    /// Messages acknowledged so far.
    pub fn acks(&self) -> u64 {
        self.acks.as_ref().map_or(0, |acks| acks.count.load(Relaxed))
    }
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

fn packet(head: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![head];
    let mut length = body.len();
    while length > 127 {
        packet.push(length as u8 | 0x80);
        length >>= 7;
    }
    packet.push(length as u8);
    packet.extend(body);
    packet
}

fn sized(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text].concat()
}

/// The next packet: its first byte, then what follows the length.
async fn next_packet(read: &mut OwnedReadHalf) -> Result<Vec<u8>> {
    let mut packet = vec![read.read_u8().await?];
    let mut length = 0;
    for shift in [0, 7, 14, 21] {
        let digit = read.read_u8().await?;
        length |= usize::from(digit & 0x7F) << shift;
        if digit < 0x80 {
            break;
        }
    }
    packet.resize(1 + length, 0);
    read.read_exact(&mut packet[1..]).await?;
    Ok(packet)
}
