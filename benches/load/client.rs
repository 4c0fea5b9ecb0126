//! The sessions that make the load: WebSockets with as little code between socket and ledger as possible.

use crate::packets::{self, Packets};
use crate::{Result, fail, guarded};
use bytes::{Buf, BytesMut};
use clap::ValueEnum;
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// A server of WebSockets, and how it is spoken to.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    pub address: SocketAddr,
    pub speech: Speech,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Speech {
    /// The gateway's frames.
    Frames,
    /// MQTT 3.1.1 in binary frames.
    Packets,
    /// None: the path names the topic, and each text frame is a payload.
    Path,
    /// None: whoever connects gets every message, in the gateway's frames.
    Silence,
}

/// What a reader asks for.
#[derive(Clone, Debug)]
pub struct Reading {
    pub filter: String,
    pub qos: u8,
    /// At most so many deliveries a second of each topic.
    pub max_rate: Option<u32>,
}

/// One WebSocket.
pub struct Session {
    speech: Speech,
    input: Input,
    write: OwnedWriteHalf,
}

impl Session {
    /// Opens a session at any server, up to `welcome` or CONNACK where there is one. Only a path needs the filter.
    pub async fn enter(server: Server, filter: &str) -> Result<Self> {
        match server.speech {
            Speech::Frames => Self::open(server.address).await,
            Speech::Packets => {
                let mut session = Self::connect(server, "mqtt", Some("mqtt")).await?;
                session.write.write_all(&masked(BINARY, &packets::connect())).await?;
                match session.input.packet().await? {
                    [packets::CONNACK, _, _, 0] => Ok(session),
                    other => fail(format!("the broker did not accept a session: {other:02x?}")),
                }
            }
            Speech::Path => Self::connect(server, &format!("sub/{filter}"), None).await,
            Speech::Silence => Self::connect(server, "ws", None).await,
        }
    }

    /// Subscribes where the server is told so, and makes sure that the subscription was granted as asked.
    pub async fn read(&mut self, Reading { filter, qos, max_rate }: &Reading) -> Result<()> {
        let answer = match self.speech {
            Speech::Frames => {
                let mut frame = json!({"type": "subscribe", "topic": filter, "qos": qos});
                if let Some(max_rate) = max_rate {
                    frame["maxRate"] = json!(max_rate);
                }
                self.send(&frame).await?;
                let answer = self.expect("subscribed").await?;
                if answer["topics"][0]["qos"] == *qos {
                    return Ok(());
                }
                answer.to_string()
            }
            Speech::Packets => {
                self.write.write_all(&masked(BINARY, &packets::subscribe(filter, *qos))).await?;
                match self.input.packet().await? {
                    [packets::SUBACK, _, _, _, granted] if granted == qos => return Ok(()),
                    other => format!("{other:02x?}"),
                }
            }
            Speech::Path | Speech::Silence => return Ok(()),
        };
        fail(format!("{filter} at qos {qos} was not granted: {answer}"))
    }

    /// Opens a session of the gateway: up to its `welcome`.
    pub async fn open(gateway: SocketAddr) -> Result<Self> {
        Ok(Self::open_with(gateway, &guarded::auth()).await?.0)
    }

    /// Opens a session of the gateway with this `auth`; gives its `welcome` too.
    pub async fn open_with(gateway: SocketAddr, auth: &Value) -> Result<(Self, Value)> {
        let server = Server { address: gateway, speech: Speech::Frames };
        let mut session = Self::connect(server, "ws", Some("tidegate.v1.json")).await?;
        session.send(auth).await?;
        session.expect("auth_response").await?;
        let welcome = session.expect("welcome").await?;
        Ok((session, welcome))
    }

    /// Subscribes without options.
    pub async fn subscribe(&mut self, filter: &str, qos: u8) -> Result<()> {
        self.read(&Reading { filter: filter.to_owned(), qos, max_rate: None }).await
    }

    /// The next text frame or, where MQTT is spoken, the next payload. Pings are answered on the way, and messages of
    /// qos 1; the end of the session is an error.
    pub async fn next(&mut self) -> Result<&[u8]> {
        if self.speech == Speech::Packets {
            return self.next_payload().await;
        }
        loop {
            match self.input.advance().await? {
                PING => self.write.write_all(&masked(PONG, self.input.current())).await?,
                CLOSE => return fail(close_reason(self.input.current())),
                _ => return Ok(self.input.current()),
            }
        }
    }

    async fn next_payload(&mut self) -> Result<&[u8]> {
        let payload = loop {
            let packet = self.input.packet().await?;
            if let Some((payload, id)) = packets::message(packet) {
                if let Some(id) = id {
                    self.write.write_all(&masked(BINARY, &packets::puback(id))).await?;
                }
                break payload;
            }
        };
        Ok(&self.input.packets.current()[payload..])
    }

    pub async fn send(&mut self, frame: &Value) -> Result<()> {
        Ok(self.write.write_all(&masked(TEXT, frame.to_string().as_bytes())).await?)
    }

    /// Leaves with a Close frame, and waits until the server has answered it.
    pub async fn close(mut self) -> Result<()> {
        self.write.write_all(&masked(CLOSE, &1000_u16.to_be_bytes())).await?;
        while self.input.advance().await? != CLOSE {}
        Ok(())
    }

    /// What comes and what goes, each for a task of its own.
    pub fn split(self) -> (Input, OwnedWriteHalf) {
        (self.input, self.write)
    }

    /// Opens a WebSocket, and nothing more.
    async fn connect(server: Server, path: &str, subprotocol: Option<&str>) -> Result<Self> {
        let mut stream = connect(server.address).await?;
        let offer = subprotocol.map_or(String::new(), |name| format!("Sec-WebSocket-Protocol: {name}\r\n"));
        let request = format!(
            "GET /{path} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGlkZWdhdGUgbG9hZCBydQ==\r\n{offer}\r\n",
            server.address
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
        let input = Input { read, input, taken: end, packets: Packets::default() };
        Ok(Self { speech: server.speech, input, write })
    }

    async fn expect(&mut self, kind: &str) -> Result<Value> {
        let frame: Value = serde_json::from_slice(self.next().await?)?;
        if frame["type"] != kind {
            return fail(format!("{kind} was expected, and {frame} came"));
        }
        Ok(frame)
    }
}

pub async fn connect(server: SocketAddr) -> Result<TcpStream> {
    match TcpStream::connect(server).await {
        Ok(stream) => {
            stream.set_nodelay(true)?;
            Ok(stream)
        }
        Err(error) => fail(format!("{server} takes no connection: {error}")),
    }
}

/// A server's side of a WebSocket, frame by frame, read in place.
pub struct Input {
    read: OwnedReadHalf,
    input: BytesMut,
    /// Bytes at the start of `input` that are done with at the next step.
    taken: usize,
    packets: Packets,
}

impl Input {
    /// Goes on to the next text, binary, ping or Close frame and says which it is.
    pub async fn advance(&mut self) -> Result<u8> {
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
                // Whole, the first part, one between, the last: packets keep no frame's bounds.
                0x82 | 0x02 | 0x00 | 0x80 => return Ok(BINARY),
                0x89 => return Ok(PING),
                0x88 => return Ok(CLOSE),
                0x8A => {}
                other => return fail(format!("a WebSocket frame that starts with {other:#04x}")),
            }
        }
    }

    pub fn current(&self) -> &[u8] {
        &self.input[..self.taken]
    }

    /// The next packet of MQTT.
    pub async fn packet(&mut self) -> Result<&[u8]> {
        while !self.packets.advance() {
            match self.advance().await? {
                BINARY => self.packets.take(&self.input[..self.taken]),
                CLOSE => return fail(close_reason(self.current())),
                _ => {}
            }
        }
        Ok(self.packets.current())
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

pub fn close_reason(content: &[u8]) -> String {
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
pub fn masked(opcode: u8, content: &[u8]) -> Vec<u8> {
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
