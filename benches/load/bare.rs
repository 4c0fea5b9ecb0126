//! The yardstick: a program that does nothing but write a ready frame to each of its WebSockets.
//!
//! One thread, blocking sockets, one write for each message and socket: no gateway that sends every
//! delivery by itself can do with less. It runs as a child of the load tool, which hands it the
//! frames over standard input, paced as the gateway's messages were.

use crate::Result;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Tells its port, takes that many WebSockets, and writes them what it reads until the input ends.
pub fn serve(sessions: u32) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("{}", listener.local_addr()?);
    let mut sockets = (0..sessions).map(|_| accept(&listener)).collect::<io::Result<Vec<TcpStream>>>()?;
    let mut input = io::stdin().lock();
    let mut frame = Vec::new();
    while next_frame(&mut input, &mut frame)? {
        for socket in &mut sockets {
            socket.write_all(&frame)?;
        }
    }
    Ok(())
}

/// A frame as it stands in the input: its length in four bytes, then the frame.
pub fn enclose(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_le_bytes(), frame].concat()
}

fn next_frame(input: &mut impl Read, frame: &mut Vec<u8>) -> io::Result<bool> {
    let mut length = [0; 4];
    match input.read_exact(&mut length) {
        Err(end) if end.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        other => other?,
    }
    frame.resize(u32::from_le_bytes(length) as usize, 0);
    input.read_exact(frame)?;
    Ok(true)
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
