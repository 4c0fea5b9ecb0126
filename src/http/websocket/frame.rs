//! Frames of RFC 6455, read and written. Pure: bytes come from a buffer and go to one.

use std::mem;
use std::str;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::wire::Close;

/// A payload up to this size is copied out of the buffer, so that it holds none; a larger one takes the buffer along.
const COPIED: usize = 2048;

/// What a whole message or control frame of a client is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A text message.
    Text(Text),
    /// A binary message.
    Binary(Bytes),
    /// A ping, and what its pong has to say.
    Ping(Bytes),
    /// A pong.
    Pong,
    /// A Close frame, and its code if it has one.
    Close(Option<u16>),
}

/// Bytes that were found to be UTF-8 as they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(Bytes);

impl AsRef<str> for Text {
    fn as_ref(&self) -> &str {
        simdutf8::basic::from_utf8(&self.0).expect("it was judged as it came")
    }
}

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// More of the message before.
    Continuation = 0x0,
    /// Text begins.
    Text = 0x1,
    /// Bytes begin.
    Binary = 0x2,
    /// The end.
    Close = 0x8,
    /// A question for a sign of life.
    Ping = 0x9,
    /// The answer to it.
    Pong = 0xA,
}

impl Opcode {
    fn of(first: u8) -> Option<Opcode> {
        use Opcode::{Binary, Close, Continuation, Ping, Pong, Text};
        [Continuation, Text, Binary, Close, Ping, Pong].into_iter().find(|opcode| *opcode as u8 == first & 0x0F)
    }

    fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// Reads what a client sends, in pieces of any size. After an error there is nothing more to read.
#[derive(Debug)]
pub struct Decoder {
    max_frame: usize,
    frame: Option<Frame>,
    message: Option<Message>,
}

/// A frame whose payload is coming.
#[derive(Clone, Copy, Debug)]
struct Frame {
    opcode: Opcode,
    is_last: bool,
    mask: [u8; 4],
    length: usize,
    /// Bytes of the payload that are unmasked and judged.
    read: usize,
}

/// A message that has begun.
#[derive(Debug)]
struct Message {
    is_text: bool,
    /// Of the frames that are whole.
    bytes: BytesMut,
    utf8: Utf8,
}

impl Decoder {
    /// Of a connection on which no frame and no message may have more than so many bytes.
    pub fn new(max_frame: usize) -> Decoder {
        Decoder { max_frame, frame: None, message: None }
    }

    /// Takes what comes next out of the buffer; nothing if it has not come yet. What breaks the rules is told as soon as it can be
    /// seen, and what is too large before it has come.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Event>, Close> {
        loop {
            let Some(mut frame) = self.frame.take().map_or_else(|| self.head(buffer), |frame| Ok(Some(frame)))? else {
                return Ok(None);
            };
            let come = buffer.len().min(frame.length);
            let news = &mut buffer[frame.read..come];
            unmask(news, frame.mask, frame.read);
            if let Some(message) = &mut self.message
                && message.is_text
                && !frame.opcode.is_control()
            {
                message.utf8.judge(news)?;
            }
            frame.read = come;
            if come < frame.length {
                self.frame = Some(frame);
                return Ok(None);
            }
            if let Some(event) = self.finish(frame, buffer)? {
                return Ok(Some(event));
            }
        }
    }

    /// Bytes of the frame that has begun which are not in the buffer yet; none before its head is whole.
    pub fn missing(&self, buffer: &BytesMut) -> usize {
        self.frame.map_or(0, |frame| frame.length.saturating_sub(buffer.len()))
    }

    /// Bytes that are held beside the buffer for a message that is not whole.
    pub fn held(&self) -> usize {
        self.message.as_ref().map_or(0, |message| message.bytes.len())
    }

    /// Takes a frame's head, once it is whole.
    fn head(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, Close> {
        let [first, second, ref more @ ..] = buffer[..] else { return Ok(None) };
        let (is_last, is_masked) = (first & 0x80 != 0, second & 0x80 != 0);
        let opcode = Opcode::of(first).filter(|_| first & 0x70 == 0 && is_masked).ok_or(Close::ProtocolError)?;
        let is_allowed = match opcode {
            Opcode::Continuation => self.message.is_some(),
            Opcode::Text | Opcode::Binary => self.message.is_none(),
            Opcode::Close | Opcode::Ping | Opcode::Pong => is_last && second & 0x7F < 126,
        };
        if !is_allowed {
            return Err(Close::ProtocolError);
        }
        let (size, length) = match second & 0x7F {
            126 => (2, more.first_chunk().map(|length| u64::from(u16::from_be_bytes(*length)))),
            127 => (8, more.first_chunk().map(|length| u64::from_be_bytes(*length))),
            short => (0, Some(u64::from(short))),
        };
        let Some(length) = length else { return Ok(None) };
        if length >> 63 != 0 {
            return Err(Close::ProtocolError);
        }
        let room = if opcode.is_control() { usize::MAX } else { self.max_frame - self.held() };
        let length = usize::try_from(length).ok().filter(|length| *length <= room).ok_or(Close::FrameTooLarge)?;
        let Some(mask) = more[size..].first_chunk().copied() else { return Ok(None) };
        buffer.advance(2 + size + 4);
        if matches!(opcode, Opcode::Text | Opcode::Binary) {
            let is_text = opcode == Opcode::Text;
            self.message = Some(Message { is_text, bytes: BytesMut::new(), utf8: Utf8::default() });
        }
        Ok(Some(Frame { opcode, is_last, mask, length, read: 0 }))
    }

    /// The payload is whole, and at the beginning of the buffer.
    fn finish(&mut self, frame: Frame, buffer: &mut BytesMut) -> Result<Option<Event>, Close> {
        if frame.opcode.is_control() {
            let payload = Bytes::copy_from_slice(&buffer[..frame.length]);
            buffer.advance(frame.length);
            return match frame.opcode {
                Opcode::Close => code(&payload).map(|code| Some(Event::Close(code))),
                Opcode::Ping => Ok(Some(Event::Ping(payload))),
                _ => Ok(Some(Event::Pong)),
            };
        }
        let Some(mut message) = self.message.take() else { return Ok(None) };
        message.add(buffer, frame.length);
        if !frame.is_last {
            self.message = Some(message);
            return Ok(None);
        }
        let bytes = message.bytes.freeze();
        match (message.is_text, message.utf8.is_whole()) {
            (true, true) => Ok(Some(Event::Text(Text(bytes)))),
            (true, false) => Err(Close::InvalidUtf8),
            (false, _) => Ok(Some(Event::Binary(bytes))),
        }
    }
}

impl Message {
    /// Moves so many bytes here. What stays in the buffer is never in the memory of a large payload.
    fn add(&mut self, buffer: &mut BytesMut, length: usize) {
        if length <= COPIED {
            self.bytes.extend_from_slice(&buffer[..length]);
            buffer.advance(length);
            return;
        }
        let rest = BytesMut::from(&buffer[length..]);
        let mut payload = mem::replace(buffer, rest);
        payload.truncate(length);
        if self.bytes.is_empty() {
            self.bytes = payload;
        } else {
            self.bytes.extend_from_slice(&payload);
        }
    }
}

/// Text in pieces, which may end within a character.
#[derive(Debug, Default)]
struct Utf8 {
    /// The character that has begun.
    begun: [u8; 4],
    length: usize,
}

impl Utf8 {
    /// The next piece; an error if nothing that follows could make text of it.
    fn judge(&mut self, mut bytes: &[u8]) -> Result<(), Close> {
        while self.length > 0
            && let Some((first, rest)) = bytes.split_first()
        {
            bytes = rest;
            self.begun[self.length] = *first;
            self.length += 1;
            match str::from_utf8(&self.begun[..self.length]) {
                Ok(_) => self.length = 0,
                Err(error) if error.error_len().is_none() => {}
                Err(_) => return Err(Close::InvalidUtf8),
            }
        }
        let Err(error) = simdutf8::compat::from_utf8(bytes) else { return Ok(()) };
        if error.error_len().is_some() {
            return Err(Close::InvalidUtf8);
        }
        let begun = &bytes[error.valid_up_to()..];
        self.begun[..begun.len()].copy_from_slice(begun);
        self.length = begun.len();
        Ok(())
    }

    fn is_whole(&self) -> bool {
        self.length == 0
    }
}

/// The code in a Close frame (RFC 6455 section 7.4, and what IANA has added since).
fn code(payload: &[u8]) -> Result<Option<u16>, Close> {
    let [high, low, ref reason @ ..] = *payload else {
        return if payload.is_empty() { Ok(None) } else { Err(Close::ProtocolError) };
    };
    let code = u16::from_be_bytes([high, low]);
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(Close::ProtocolError);
    }
    str::from_utf8(reason).map(|_| Some(code)).map_err(|_| Close::InvalidUtf8)
}

/// Applies the mask to bytes that stand so far from the beginning of their payload.
fn unmask(bytes: &mut [u8], mut mask: [u8; 4], offset: usize) {
    mask.rotate_left(offset % 4);
    let half = u64::from(u32::from_ne_bytes(mask));
    let word = half << 32 | half;
    let (words, rest) = bytes.as_chunks_mut();
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= mask;
    }
}

/// Writes a whole frame, as a server has it. Its payload is these parts, one behind the other.
pub fn write(out: &mut BytesMut, opcode: Opcode, payload: &[&[u8]]) {
    let length = payload.iter().map(|part| part.len()).sum();
    out.reserve(10 + length);
    out.put_u8(0x80 | opcode as u8);
    match length {
        length @ 0..126 => out.put_u8(length as u8),
        length @ 126..65_536 => {
            out.put_u8(126);
            out.put_u16(length as u16);
        }
        length => {
            out.put_u8(127);
            out.put_u64(length as u64);
        }
    }
    payload.iter().for_each(|part| out.put_slice(part));
}

/// Writes a Close frame.
pub fn write_close(out: &mut BytesMut, code: u16, reason: &str) {
    debug_assert!(reason.len() <= 123, "it fits a control frame");
    write(out, Opcode::Close, &[&code.to_be_bytes(), reason.as_bytes()]);
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
