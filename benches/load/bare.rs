//! The yardsticks: programs that do nothing but write ready frames to each of their WebSockets.
//!
//! One thread and blocking sockets. The bare one makes one write for each message and socket: no server that sends
//! every delivery by itself can do with less. The coalescing one takes all messages that wait and makes one write of
//! them for each socket: no server at all can do with much less. It runs as a child of the load tool, which hands it
//! the frames over standard input, paced as the gateway's messages were.

use crate::Result;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Tells its port, takes that many WebSockets, and writes them what it reads until the input ends.
pub fn serve(sessions: u32, is_coalescing: bool) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("{}", listener.local_addr()?);
    let mut sockets = (0..sessions).map(|_| accept(&listener)).collect::<io::Result<Vec<TcpStream>>>()?;
    // Without the buffer of `Stdin`, which would hold back what waits.
    let mut input = Input { pipe: File::from(io::stdin().as_fd().try_clone_to_owned()?), bytes: Vec::new() };
    while let Some(frames) = input.waiting()? {
        let writes = if is_coalescing { vec![frames.concat()] } else { frames };
        for bytes in &writes {
            for socket in &mut sockets {
                socket.write_all(bytes)?;
            }
        }
    }
    Ok(())
}

/// A frame as it stands in the input: its length in four bytes, then the frame.
pub fn enclose(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_le_bytes(), frame].concat()
}

/// Frames from a pipe.
struct Input {
    pipe: File,
    /// What was read and is no whole frame yet.
    bytes: Vec<u8>,
}

impl Input {
    /// All frames that wait, one at least; `None` at the end.
    fn waiting(&mut self) -> io::Result<Option<Vec<Vec<u8>>>> {
        /// As much as a pipe holds.
        const ROOM: usize = 65_536;
        loop {
            let known = self.bytes.len();
            self.bytes.resize(known + ROOM, 0);
            let length = self.pipe.read(&mut self.bytes[known..])?;
            self.bytes.truncate(known + length);
            if length == 0 {
                return Ok(None);
            }
            let mut frames = Vec::new();
            while let Some(frame) = self.next_frame() {
                frames.push(frame);
            }
            if !frames.is_empty() {
                return Ok(Some(frames));
            }
        }
    }

    fn next_frame(&mut self) -> Option<Vec<u8>> {
        let (length, rest) = self.bytes.split_first_chunk()?;
        let frame = rest.get(..u32::from_le_bytes(*length) as usize)?.to_vec();
        self.bytes.drain(..length.len() + frame.len());
        Some(frame)
    }
}

fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let (mut socket, _) = listener.accept()?;
    socket.set_nodelay(true)?;
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while !request.ends_with(b"\r\n\r\n") {
        match socket.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => request.extend_from_slice(&chunk[..length]),
        }
    }
    let request = String::from_utf8_lossy(&request);
    let key =
        request.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).ok_or(io::ErrorKind::InvalidData)?;
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        derive_accept_key(key.as_bytes())
    );
    socket.write_all(answer.as_bytes())?;
    Ok(socket)
}
