//! MQTT 5 packets as a client sees them: what a broker sends is read in place, what a client sends is written (MQTT 5 sections 2 and 3).

use std::num::NonZeroU16;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

use super::{Message, Properties, Qos, Reason, Topic};

/// The number that ties an acknowledgement to its request (MQTT 5 section 2.2.1).
pub type PacketId = NonZeroU16;

/// The largest subscription identifier, and the largest packet (MQTT 5 section 1.5.5).
pub const MAX_VARIABLE_INTEGER: usize = 268_435_455;

/// Takes one packet off the front of `buffer`, or nothing while it is incomplete.
///
/// Payloads share the memory of `buffer`. A packet larger than `max` bytes is refused as soon as its length is known.
pub fn read(buffer: &mut BytesMut, max: usize) -> Result<Option<Packet>, Malformed> {
    let Some((&first, rest)) = buffer.split_first() else { return Ok(None) };
    let Some((length, length_size)) = variable_integer(rest)? else { return Ok(None) };
    let size = 1 + length_size + length;
    if size > max {
        return Err(Malformed::TooLarge { size, max });
    }
    if buffer.len() < size {
        return Ok(None);
    }
    let mut body = buffer.split_to(size).freeze();
    body.advance(1 + length_size);
    Packet::parse(first, body).map(Some)
}

/// What a broker sends.
#[derive(Clone, Debug, PartialEq)]
pub enum Packet {
    /// The answer to CONNECT.
    Connack(Connack),
    /// A message for one of our subscriptions.
    Publish(Publish),
    /// A QoS 1 publish of ours was taken, or refused.
    Puback(PacketId, Reason),
    /// A QoS 2 publish of ours was taken, or refused.
    Pubrec(PacketId, Reason),
    /// The broker knows that we have its QoS 2 message.
    Pubrel(PacketId, Reason),
    /// A QoS 2 publish of ours is complete.
    Pubcomp(PacketId, Reason),
    /// One reason for each filter of a SUBSCRIBE.
    Suback(PacketId, Vec<Reason>),
    /// One reason for each filter of an UNSUBSCRIBE.
    Unsuback(PacketId, Vec<Reason>),
    /// The broker is alive.
    Pingresp,
    /// The broker ends the connection.
    Disconnect(Reason),
}

/// A PUBLISH (MQTT 5 section 3.3).
#[derive(Clone, Debug, PartialEq)]
pub struct Publish {
    /// The packet identifier, exactly when the QoS is above 0.
    pub id: Option<PacketId>,
    /// It may have been sent before.
    pub dup: bool,
    /// The message itself.
    pub message: Message,
    /// The subscriptions that it is sent for, as far as the broker tells.
    pub subscription_ids: SmallVec<[u32; 2]>,
}

/// The answer to CONNECT and what the broker can do (MQTT 5 section 3.2); the defaults are those of the standard.
#[derive(Clone, Debug, PartialEq)]
pub struct Connack {
    /// The broker had a session for this client identifier.
    pub session_present: bool,
    /// Whether the client is let in, and if not, why.
    pub reason: Reason,
    /// QoS 1 and 2 publishes that may be unacknowledged at one time.
    pub receive_maximum: u16,
    /// The highest QoS the broker takes.
    pub maximum_qos: Qos,
    /// Whether retained messages are stored.
    pub retain_available: bool,
    /// The largest packet the broker takes, in bytes.
    pub maximum_packet_size: usize,
    /// The identifier that the broker chose for a client that gave none.
    pub assigned_client_id: Option<String>,
    /// The broker's words about the reason.
    pub reason_string: Option<String>,
    /// Whether filters may hold wildcards.
    pub wildcards_available: bool,
    /// Whether deliveries tell their subscription.
    pub subscription_ids_available: bool,
    /// Whether `$share` works.
    pub shared_available: bool,
    /// The keep alive that the broker wants, in seconds.
    pub server_keep_alive: Option<u16>,
}

impl Connack {
    fn new(session_present: bool, reason: Reason) -> Connack {
        Connack {
            session_present,
            reason,
            receive_maximum: u16::MAX,
            maximum_qos: Qos::ExactlyOnce,
            retain_available: true,
            maximum_packet_size: MAX_VARIABLE_INTEGER + 5,
            assigned_client_id: None,
            reason_string: None,
            wildcards_available: true,
            subscription_ids_available: true,
            shared_available: true,
            server_keep_alive: None,
        }
    }
}

/// What a broker sent is no MQTT 5, or more than we take: the connection can't go on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Malformed {
    /// The packet ends inside a field.
    #[error("a packet of the broker ends in the middle of a field")]
    Truncated,
    /// A length or a subscription identifier of more than four bytes.
    #[error("a variable byte integer of the broker is longer than 4 bytes")]
    VariableInteger,
    /// A string that is not UTF-8, or holds NUL.
    #[error("a string of the broker is not valid UTF-8")]
    Utf8,
    /// A topic that no publisher may use.
    #[error("the broker delivered a message without a valid topic")]
    Topic,
    /// A packet of a type or with flags that a broker does not send.
    #[error("the broker sent a packet that starts with 0x{0:02X}")]
    PacketType(u8),
    /// A property that the standard does not allow here.
    #[error("the broker sent the property 0x{0:02X} where it has no place")]
    Property(u8),
    /// The packet identifier 0.
    #[error("the broker sent the packet identifier 0")]
    PacketId,
    /// More than the limit.
    #[error("the broker sent a packet of {size} bytes, over the limit of {max}")]
    TooLarge {
        /// Bytes of the whole packet.
        size: usize,
        /// What we announced.
        max: usize,
    },
    /// A CONNACK of MQTT 3.1.1.
    #[error("the broker answers in MQTT 3.1.1, and only MQTT 5 is spoken here")]
    OldProtocol,
}

impl Packet {
    fn parse(first: u8, mut body: Bytes) -> Result<Packet, Malformed> {
        match (first >> 4, first & 0x0F) {
            (2, 0) => connack(body).map(Packet::Connack),
            (3, flags) => publish(flags, body).map(Packet::Publish),
            (4, 0) => ack(body).map(|(id, reason)| Packet::Puback(id, reason)),
            (5, 0) => ack(body).map(|(id, reason)| Packet::Pubrec(id, reason)),
            (6, 2) => ack(body).map(|(id, reason)| Packet::Pubrel(id, reason)),
            (7, 0) => ack(body).map(|(id, reason)| Packet::Pubcomp(id, reason)),
            (9, 0) => reasons(body).map(|(id, reasons)| Packet::Suback(id, reasons)),
            (11, 0) => reasons(body).map(|(id, reasons)| Packet::Unsuback(id, reasons)),
            (13, 0) => Ok(Packet::Pingresp),
            (14, 0) => Ok(Packet::Disconnect(if body.is_empty() { Reason::SUCCESS } else { Reason(byte(&mut body)?) })),
            _ => Err(Malformed::PacketType(first)),
        }
    }
}

fn publish(flags: u8, mut body: Bytes) -> Result<Publish, Malformed> {
    let qos = Qos::from_number(u64::from(flags >> 1 & 3)).ok_or(Malformed::PacketType(0x30 | flags))?;
    let topic = binary(&mut body)?;
    let topic = Topic::parse(utf8(&topic)?).map_err(|_| Malformed::Topic)?;
    let id = if qos == Qos::AtMostOnce { None } else { Some(packet_id(&mut body)?) };
    let mut properties = Properties::default();
    let mut subscription_ids = SmallVec::new();
    let mut given = false;
    properties_of(&mut body, |property, value| {
        match property {
            0x01 => properties.payload_format_indicator = Some(byte(value)?),
            0x02 => properties.message_expiry_interval = Some(four_bytes(value)?),
            0x03 => properties.content_type = Some(string(value)?),
            0x08 => properties.response_topic = Some(string(value)?),
            // A copy: unlike the payload it is small, and would keep the whole buffer alive.
            0x09 => properties.correlation_data = Some(Bytes::copy_from_slice(&binary(value)?)),
            0x0B => {
                let (id, size) = variable_integer(value)?.ok_or(Malformed::Truncated)?;
                value.advance(size);
                subscription_ids.push(id as u32);
                return Ok(());
            }
            0x26 => properties.user_properties.push((string(value)?, string(value)?)),
            _ => return Err(Malformed::Property(property)),
        }
        given = true;
        Ok(())
    })?;
    Ok(Publish {
        id,
        dup: flags & 8 != 0,
        message: Message {
            topic,
            payload: body,
            qos,
            retain: flags & 1 != 0,
            properties: given.then(|| Box::new(properties)),
        },
        subscription_ids,
    })
}

fn connack(mut body: Bytes) -> Result<Connack, Malformed> {
    let flags = byte(&mut body)?;
    let reason = Reason(byte(&mut body)?);
    if body.is_empty() {
        return Err(Malformed::OldProtocol);
    }
    let mut connack = Connack::new(flags & 1 != 0, reason);
    properties_of(&mut body, |property, value| {
        match property {
            0x11 => drop(four_bytes(value)?),
            0x12 => connack.assigned_client_id = Some(string(value)?),
            0x13 => connack.server_keep_alive = Some(two_bytes(value)?),
            0x15 | 0x1A | 0x1C => drop(string(value)?),
            0x16 => drop(binary(value)?),
            0x1F => connack.reason_string = Some(string(value)?),
            0x21 => connack.receive_maximum = two_bytes(value)?.max(1),
            0x22 => drop(two_bytes(value)?),
            0x24 => connack.maximum_qos = Qos::from_number(byte(value)?.into()).unwrap_or(Qos::ExactlyOnce),
            0x25 => connack.retain_available = byte(value)? != 0,
            0x26 => drop((string(value)?, string(value)?)),
            0x27 => connack.maximum_packet_size = four_bytes(value)? as usize,
            0x28 => connack.wildcards_available = byte(value)? != 0,
            0x29 => connack.subscription_ids_available = byte(value)? != 0,
            0x2A => connack.shared_available = byte(value)? != 0,
            _ => return Err(Malformed::Property(property)),
        }
        Ok(())
    })?;
    Ok(connack)
}

/// PUBACK, PUBREC, PUBREL, PUBCOMP: the reason and the properties may be left out.
fn ack(mut body: Bytes) -> Result<(PacketId, Reason), Malformed> {
    let id = packet_id(&mut body)?;
    let reason = if body.is_empty() { Reason::SUCCESS } else { Reason(byte(&mut body)?) };
    Ok((id, reason))
}

fn reasons(mut body: Bytes) -> Result<(PacketId, Vec<Reason>), Malformed> {
    let id = packet_id(&mut body)?;
    properties_of(&mut body, |property, value| {
        match property {
            0x1F => drop(string(value)?),
            0x26 => drop((string(value)?, string(value)?)),
            _ => return Err(Malformed::Property(property)),
        }
        Ok(())
    })?;
    Ok((id, body.iter().copied().map(Reason).collect()))
}

/// Reads the property length, then hands each property's number to `each`, which takes its value.
fn properties_of(
    body: &mut Bytes,
    mut each: impl FnMut(u8, &mut Bytes) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let (length, size) = variable_integer(body)?.ok_or(Malformed::Truncated)?;
    body.advance(size);
    let mut properties = take(body, length)?;
    while properties.has_remaining() {
        let property = properties.get_u8();
        each(property, &mut properties)?;
    }
    Ok(())
}

/// The value and its size in bytes, or nothing while it is incomplete.
fn variable_integer(bytes: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let mut value = 0;
    for (index, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((value, index + 1)));
        }
    }
    if bytes.len() < 4 { Ok(None) } else { Err(Malformed::VariableInteger) }
}

fn take(body: &mut Bytes, length: usize) -> Result<Bytes, Malformed> {
    if body.len() < length { Err(Malformed::Truncated) } else { Ok(body.split_to(length)) }
}

fn byte(body: &mut Bytes) -> Result<u8, Malformed> {
    body.try_get_u8().map_err(|_| Malformed::Truncated)
}

fn two_bytes(body: &mut Bytes) -> Result<u16, Malformed> {
    body.try_get_u16().map_err(|_| Malformed::Truncated)
}

fn four_bytes(body: &mut Bytes) -> Result<u32, Malformed> {
    body.try_get_u32().map_err(|_| Malformed::Truncated)
}

fn packet_id(body: &mut Bytes) -> Result<PacketId, Malformed> {
    PacketId::new(two_bytes(body)?).ok_or(Malformed::PacketId)
}

fn binary(body: &mut Bytes) -> Result<Bytes, Malformed> {
    let length = two_bytes(body)?;
    take(body, length.into())
}

fn string(body: &mut Bytes) -> Result<String, Malformed> {
    let bytes = binary(body)?;
    utf8(&bytes).map(str::to_owned)
}

fn utf8(bytes: &[u8]) -> Result<&str, Malformed> {
    simdutf8::basic::from_utf8(bytes).map_err(|_| Malformed::Utf8)
}

/// A CONNECT (MQTT 5 section 3.1).
#[derive(Clone, Debug)]
pub struct Connect<'a> {
    /// Empty asks the broker to choose one.
    pub client_id: &'a str,
    /// Forget what the broker knows of this client.
    pub clean_start: bool,
    /// Seconds without a packet after which the broker gives the client up.
    pub keep_alive: u16,
    /// Seconds that the broker keeps the session after the connection.
    pub session_expiry: u32,
    /// QoS 1 and 2 deliveries that the client takes without confirming one.
    pub receive_maximum: u16,
    /// The largest packet that the client takes, in bytes.
    pub maximum_packet_size: u32,
    /// User name and password.
    pub username: Option<&'a str>,
    /// A password may come without a user name (MQTT 5 section 3.1.2.9).
    pub password: Option<&'a str>,
    /// What the broker publishes if the client vanishes.
    pub will: Option<Will<'a>>,
}

/// A will and the seconds that the broker waits with it (MQTT 5 section 3.1.3.2).
#[derive(Clone, Debug)]
pub struct Will<'a> {
    /// What is published.
    pub message: &'a Message,
    /// Seconds between the loss of the connection and the publishing.
    pub delay: u32,
}

impl Connect<'_> {
    /// Appends the packet.
    pub fn write(&self, out: &mut BytesMut) {
        let mut body = BytesMut::new();
        put_string(&mut body, "MQTT");
        body.put_u8(5);
        let mut flags = flag(self.clean_start, 0x02);
        if let Some(will) = &self.will {
            flags |= 0x04 | will.message.qos.number() << 3 | flag(will.message.retain, 0x20);
        }
        flags |= flag(self.password.is_some(), 0x40) | flag(self.username.is_some(), 0x80);
        body.put_u8(flags);
        body.put_u16(self.keep_alive);
        let mut properties = BytesMut::new();
        properties.put_u8(0x11);
        properties.put_u32(self.session_expiry);
        properties.put_u8(0x21);
        properties.put_u16(self.receive_maximum);
        properties.put_u8(0x27);
        properties.put_u32(self.maximum_packet_size);
        put_block(&mut body, &properties);
        put_string(&mut body, self.client_id);
        if let Some(will) = &self.will {
            let mut properties = BytesMut::new();
            properties.put_u8(0x18);
            properties.put_u32(will.delay);
            put_properties(&mut properties, will.message.properties.as_deref());
            put_block(&mut body, &properties);
            put_string(&mut body, will.message.topic.as_ref());
            put_binary(&mut body, &will.message.payload);
        }
        for secret in [self.username, self.password].into_iter().flatten() {
            put_string(&mut body, secret);
        }
        out.put_u8(0x10);
        put_block(out, &body);
    }
}

/// Appends a PUBLISH.
pub fn write_publish(out: &mut BytesMut, message: &Message, id: Option<PacketId>, dup: bool) {
    let properties = message_properties(message);
    let length = publish_length(message, id.is_some(), properties.len());
    out.reserve(length + 5);
    out.put_u8(0x30 | flag(dup, 0x08) | message.qos.number() << 1 | flag(message.retain, 0x01));
    put_variable_integer(out, length);
    put_string(out, message.topic.as_ref());
    if let Some(id) = id {
        out.put_u16(id.get());
    }
    put_block(out, &properties);
    out.put_slice(&message.payload);
}

/// The bytes of the PUBLISH that carries `message`: what a broker's maximum packet size is compared with.
pub fn publish_size(message: &Message) -> usize {
    let length = publish_length(message, message.qos != Qos::AtMostOnce, message_properties(message).len());
    1 + variable_integer_size(length) + length
}

fn publish_length(message: &Message, has_id: bool, properties: usize) -> usize {
    2 + message.topic.as_ref().len()
        + if has_id { 2 } else { 0 }
        + variable_integer_size(properties)
        + properties
        + message.payload.len()
}

fn message_properties(message: &Message) -> BytesMut {
    let mut properties = BytesMut::new();
    put_properties(&mut properties, message.properties.as_deref());
    properties
}

/// A filter and what is asked for it (MQTT 5 section 3.8.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// The highest QoS of deliveries.
    pub qos: Qos,
    /// Leave out what this client published.
    pub no_local: bool,
    /// Keep the retain flag as it was published.
    pub retain_as_published: bool,
    /// 0: send stored messages; 1: only for a new subscription; 2: never.
    pub retain_handling: u8,
}

/// Appends a SUBSCRIBE for one filter, with its identifier where the broker takes one.
pub fn write_subscribe(
    out: &mut BytesMut,
    id: PacketId,
    subscription_id: Option<u32>,
    filter: &str,
    options: SubscribeOptions,
) {
    let mut body = BytesMut::new();
    body.put_u16(id.get());
    let mut properties = BytesMut::new();
    if let Some(subscription_id) = subscription_id {
        properties.put_u8(0x0B);
        put_variable_integer(&mut properties, subscription_id as usize);
    }
    put_block(&mut body, &properties);
    put_string(&mut body, filter);
    body.put_u8(
        options.qos.number()
            | flag(options.no_local, 0x04)
            | flag(options.retain_as_published, 0x08)
            | options.retain_handling << 4,
    );
    out.put_u8(0x82);
    put_block(out, &body);
}

/// The most bytes that a SUBSCRIBE for `filter` takes.
pub fn subscribe_size(filter: &str) -> usize {
    let length = 2 + 1 + 5 + 2 + filter.len() + 1;
    1 + variable_integer_size(length) + length
}

/// The bytes of an UNSUBSCRIBE for `filter`.
pub fn unsubscribe_size(filter: &str) -> usize {
    let length = 2 + 1 + 2 + filter.len();
    1 + variable_integer_size(length) + length
}

/// Appends an UNSUBSCRIBE for one filter.
pub fn write_unsubscribe(out: &mut BytesMut, id: PacketId, filter: &str) {
    let mut body = BytesMut::new();
    body.put_u16(id.get());
    body.put_u8(0);
    put_string(&mut body, filter);
    out.put_u8(0xA2);
    put_block(out, &body);
}

/// Appends a PUBACK.
pub fn write_puback(out: &mut BytesMut, id: PacketId) {
    put_ack(out, 0x40, id, Reason::SUCCESS);
}

/// Appends a PUBREC.
pub fn write_pubrec(out: &mut BytesMut, id: PacketId) {
    put_ack(out, 0x50, id, Reason::SUCCESS);
}

/// Appends a PUBREL.
pub fn write_pubrel(out: &mut BytesMut, id: PacketId) {
    put_ack(out, 0x62, id, Reason::SUCCESS);
}

/// Appends a PUBCOMP.
pub fn write_pubcomp(out: &mut BytesMut, id: PacketId, reason: Reason) {
    put_ack(out, 0x70, id, reason);
}

/// Appends a PINGREQ.
pub fn write_pingreq(out: &mut BytesMut) {
    out.put_slice(&[0xC0, 0]);
}

/// Appends a normal DISCONNECT, which also makes the broker forget the will; `session_expiry` changes what CONNECT asked for.
pub fn write_disconnect(out: &mut BytesMut, session_expiry: u32) {
    put_disconnect(out, Reason::SUCCESS, session_expiry);
}

/// Appends a DISCONNECT after which the broker publishes the will, when its delay has passed.
pub fn write_disconnect_with_will(out: &mut BytesMut, session_expiry: u32) {
    put_disconnect(out, Reason::DISCONNECT_WITH_WILL, session_expiry);
}

fn put_disconnect(out: &mut BytesMut, reason: Reason, session_expiry: u32) {
    out.put_slice(&[0xE0, 7, reason.0, 5, 0x11]);
    out.put_u32(session_expiry);
}

/// Written as a choice, not as arithmetic on a bool, which rustc 1.95 gets wrong when it optimises (rust-lang/rust#158206).
fn flag(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

fn put_ack(out: &mut BytesMut, first: u8, id: PacketId, reason: Reason) {
    out.put_u8(first);
    out.put_u8(if reason == Reason::SUCCESS { 2 } else { 3 });
    out.put_u16(id.get());
    if reason != Reason::SUCCESS {
        out.put_u8(reason.0);
    }
}

fn put_properties(out: &mut BytesMut, properties: Option<&Properties>) {
    let Some(properties) = properties else { return };
    if let Some(indicator) = properties.payload_format_indicator {
        out.put_slice(&[0x01, indicator]);
    }
    if let Some(seconds) = properties.message_expiry_interval {
        out.put_u8(0x02);
        out.put_u32(seconds);
    }
    if let Some(content_type) = &properties.content_type {
        out.put_u8(0x03);
        put_string(out, content_type);
    }
    if let Some(topic) = &properties.response_topic {
        out.put_u8(0x08);
        put_string(out, topic);
    }
    if let Some(data) = &properties.correlation_data {
        out.put_u8(0x09);
        put_binary(out, data);
    }
    for (name, value) in &properties.user_properties {
        out.put_u8(0x26);
        put_string(out, name);
        put_string(out, value);
    }
}

fn put_block(out: &mut BytesMut, block: &[u8]) {
    put_variable_integer(out, block.len());
    out.put_slice(block);
}

fn put_string(out: &mut BytesMut, string: &str) {
    put_binary(out, string.as_bytes());
}

fn put_binary(out: &mut BytesMut, bytes: &[u8]) {
    let length =
        u16::try_from(bytes.len()).expect("what becomes a field of a packet was checked to be at most 65,535 bytes");
    out.put_u16(length);
    out.put_slice(bytes);
}

fn put_variable_integer(out: &mut BytesMut, mut value: usize) {
    loop {
        let low = (value & 0x7F) as u8;
        value >>= 7;
        if value == 0 {
            return out.put_u8(low);
        }
        out.put_u8(low | 0x80);
    }
}

fn variable_integer_size(value: usize) -> usize {
    match value {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}

#[cfg(test)]
#[path = "packet_tests.rs"]
mod tests;
