//! A WebSocket client that writes and leaves out what it likes.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::PATIENCE;

/// The first byte of a whole text frame.
pub const TEXT: u8 = 0x81;
/// The first byte of a whole binary frame.
pub const BINARY: u8 = 0x82;
/// The first byte of a ping.
pub const PING: u8 = 0x89;
const CLOSE: u8 = 0x88;
const MASK: [u8; 4] = [0x11, 0x22, 0x33, 0x44];

pub struct Raw<S = TcpStream> {
    pub stream: S,
}

/// A connection for a client that does not read: the kernel keeps little for it.
pub async fn narrow(address: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("set");
    socket.connect(address.parse().expect("an address")).await.expect("it listens")
}

impl Raw {
    /// Opens a WebSocket. The kernel keeps little for a client that does not read.
    pub async fn connect(address: &str) -> Raw {
        Raw::over(narrow(address).await, address).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    /// Opens a WebSocket over this connection.
    pub async fn over(mut stream: S, address: &str) -> Raw<S> {
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(timeout(PATIENCE, stream.read_u8()).await.expect("in time").expect("a byte"));
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        Raw { stream }
    }

    /// Writes these bytes as they are.
    pub async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("written");
    }

    /// Sends a masked frame.
    pub async fn send(&mut self, first: u8, payload: &[u8]) {
        self.write(&masked(first, payload)).await;
    }

    /// Sends a text frame.
    pub async fn text(&mut self, text: &str) {
        self.send(TEXT, text.as_bytes()).await;
    }

    /// The next frame: its first byte and its payload.
    pub async fn frame(&mut self) -> (u8, Vec<u8>) {
        timeout(PATIENCE, self.read_frame()).await.expect("in time").expect("a whole frame")
    }

    /// The next text frame as JSON.
    pub async fn next(&mut self) -> serde_json::Value {
        loop {
            match self.frame().await {
                (TEXT, payload) => return serde_json::from_slice(&payload).expect("frames are JSON"),
                (PING, _) => {}
                (other, payload) => panic!("{other:#x} {}", String::from_utf8_lossy(&payload)),
            }
        }
    }

    /// The code of the Close frame that ends the session; what comes before it is skipped.
    pub async fn closed(&mut self) -> u16 {
        loop {
            if let (CLOSE, payload) = self.frame().await {
                return u16::from_be_bytes([payload[0], payload[1]]);
            }
        }
    }

    async fn read_frame(&mut self) -> std::io::Result<(u8, Vec<u8>)> {
        let first = self.stream.read_u8().await?;
        let length = match self.stream.read_u8().await? {
            126 => self.stream.read_u16().await?.into(),
            127 => self.stream.read_u64().await?,
            short => short.into(),
        };
        let mut payload = vec![0; usize::try_from(length).expect("it fits the memory")];
        self.stream.read_exact(&mut payload).await?;
        Ok((first, payload))
    }
}

/// A masked frame, as clients send them (RFC 6455 section 5.3).
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = head(first, payload.len() as u64);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The head of a masked frame of that many bytes.
pub fn head(first: u8, length: u64) -> Vec<u8> {
    let mut head = vec![first];
    match length {
        0..126 => head.push(0x80 | length as u8),
        126..65_536 => {
            head.push(0x80 | 126);
            head.extend((length as u16).to_be_bytes());
        }
        _ => {
            head.push(0x80 | 127);
            head.extend(length.to_be_bytes());
        }
    }
    head.extend(MASK);
    head
}
