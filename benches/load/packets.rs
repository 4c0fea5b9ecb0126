//! The few packets of MQTT that the load needs.

use crate::Result;
use bytes::{Buf, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::tcp::OwnedReadHalf;

pub const CONNACK: u8 = 0x20;
pub const PUBACK: u8 = 0x40;
pub const SUBACK: u8 = 0x90;
pub const DISCONNECT: u8 = 0xE0;
const PUBLISH: u8 = 0x30;

/// Seconds, longer than any run.
const KEEP_ALIVE: u16 = 3600;

/// MQTT 3.1.1, a clean session whose name the broker may choose.
pub fn connect() -> Vec<u8> {
    packet(0x10, &[b"\0\x04MQTT\x04\x02", &KEEP_ALIVE.to_be_bytes()[..], &sized("")].concat())
}

/// MQTT 5, a clean start, no properties.
pub fn connect_5(client: &str) -> Vec<u8> {
    packet(0x10, &[b"\0\x04MQTT\x05\x02", &KEEP_ALIVE.to_be_bytes()[..], &[0], &sized(client)].concat())
}

/// In 3.1.1.
pub fn subscribe(filter: &str, qos: u8) -> Vec<u8> {
    packet(0x82, &[&[0, 1][..], &sized(filter), &[qos]].concat())
}

/// `id` counts only above qos 0; `properties` are what MQTT 5 has between the topic and the payload.
pub fn publish(topic: &str, qos: u8, id: u64, properties: &[u8], payload: &str) -> Vec<u8> {
    let id = ((id % 0xFFFF) as u16 + 1).to_be_bytes();
    let id = if qos > 0 { &id[..] } else { &[] };
    packet(PUBLISH | qos << 1, &[&sized(topic), id, properties, payload.as_bytes()].concat())
}

pub fn puback(id: [u8; 2]) -> Vec<u8> {
    packet(PUBACK, &id)
}

/// Where in a packet of 3.1.1 the payload begins, and the identifier to acknowledge it by; `None` for what is no message.
pub fn message(packet: &[u8]) -> Option<(usize, Option<[u8; 2]>)> {
    let head = *packet.first()?;
    if head & 0xF0 != PUBLISH {
        return None;
    }
    let (topic, _) = size(packet)?;
    let length = u16::from_be_bytes(packet.get(topic..topic + 2)?.try_into().ok()?);
    let behind = topic + 2 + usize::from(length);
    match head & 0x06 {
        0 => Some((behind, None)),
        _ => Some((behind + 2, Some(packet.get(behind..behind + 2)?.try_into().ok()?))),
    }
}

/// A stream of packets, read in place.
#[derive(Default)]
pub struct Packets {
    input: BytesMut,
    /// Bytes at the start of `input` that are done with at the next step.
    taken: usize,
}

impl Packets {
    pub fn take(&mut self, part: &[u8]) {
        self.input.extend_from_slice(part);
    }

    /// Goes on to the next packet; false if it is not there as a whole.
    pub fn advance(&mut self) -> bool {
        self.input.advance(std::mem::take(&mut self.taken));
        match size(&self.input) {
            Some((header, length)) if self.input.len() >= header + length => {
                self.taken = header + length;
                true
            }
            _ => false,
        }
    }

    pub fn current(&self) -> &[u8] {
        &self.input[..self.taken]
    }
}

/// The next packet of a connection, as a whole.
pub async fn next(read: &mut OwnedReadHalf, packets: &mut Packets) -> Result<()> {
    while !packets.advance() {
        if read.read_buf(&mut packets.input).await? == 0 {
            return crate::fail("the broker cut the connection");
        }
    }
    Ok(())
}

/// Lengths of the header and of what follows in the packet at the start of `input`, once they are known.
fn size(input: &[u8]) -> Option<(usize, usize)> {
    let mut length = 0;
    for (place, &digit) in input.iter().enumerate().skip(1).take(4) {
        length |= usize::from(digit & 0x7F) << (7 * (place - 1));
        if digit < 0x80 {
            return Some((place + 1, length));
        }
    }
    None
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

fn sized(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}
