//! From the text that a client sent to the frame it means, or to a refusal that says what to mend.

use std::num::NonZeroU16;

use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::fields::{Fields, duplicate, fits_packet, is_plain, must_be};
use super::{Flaw, MAX_DEPTH, flaw};
use crate::mqtt::packet::SubscribeOptions;
use crate::mqtt::{Message, Properties, Qos, Topic, TopicFilter};
use crate::wire::frame::{
    Ack, Asked, Auth, Batch, ClientFrame, Contract, Format, Login, MsgId, Priority, Rate, Secret, Subscription,
    Undecoded, Will,
};
use crate::wire::{Code, Refusal};

/// The largest integer that JavaScript holds exactly.
const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;
const PRIORITIES: &str = "\"high\", \"normal\" or \"low\"";
/// The fields of a message.
const MESSAGE: [&str; 6] = ["topic", "payload", "encoding", "qos", "retain", "properties"];
const MAX_MSGID_CHARS: usize = 64;
const MAX_CLIENT_ID_BYTES: usize = 256;
/// Seconds that a session is kept where the client wants it kept and does not say how long.
const DEFAULT_SESSION_EXPIRY: u32 = 3600;

/// Reads one text frame and the msgid that it is answered with. Never panics, whatever the text holds.
pub fn decode(text: &str) -> Result<(ClientFrame, Option<MsgId>), Undecoded> {
    let fields = object(text, "frame").map_err(|refusal| Undecoded { refusal, msgid: None, is_auth: false })?;
    let is_auth = fields
        .raw("type")
        .is_some_and(|kind| serde_json::from_str::<String>(kind.get()).is_ok_and(|kind| kind == "auth"));
    if let Some(name) = fields.duplicate() {
        let msgid = if name == "msgid" { None } else { msgid(&fields).unwrap_or_default() };
        return Err(Undecoded { refusal: duplicate(name), msgid, is_auth });
    }
    let msgid = msgid(&fields).map_err(|refusal| Undecoded { refusal, msgid: None, is_auth })?;
    match frame(&fields) {
        Ok(frame) => Ok((frame, msgid)),
        Err(refusal) => Err(Undecoded { refusal, msgid, is_auth }),
    }
}

/// Reads a message that comes without a frame around it: the fields of `publish`, and no others.
pub fn decode_message(text: &str) -> Result<Message, Refusal> {
    let fields = object(text, "message")?;
    if let Some(name) = fields.duplicate() {
        return Err(duplicate(name));
    }
    if let Some(name) = fields.unknown(&MESSAGE) {
        let name: String = name.chars().take(40).collect();
        let known = MESSAGE.join(", ");
        return Err(Refusal::invalid_frame(format!("A message has no `{}`; it has {known}.", name.escape_debug())));
    }
    message(&fields)
}

/// Reads the topic of a message.
pub fn topic(text: &str) -> Result<Topic, Refusal> {
    let topic = Topic::parse(text).map_err(|error| Refusal::new(Code::InvalidTopic, sentence(&error)))?;
    plain(text).map(|()| topic)
}

/// The fields of a text that is one JSON object, called so in what is wrong with it.
fn object<'a>(text: &'a str, what: &str) -> Result<Fields<'a>, Refusal> {
    match flaw(text.as_bytes()) {
        None => {}
        Some(Flaw::TooDeep) => {
            let message = format!("JSON may be nested {MAX_DEPTH} levels deep; send a flatter {what}.");
            return Err(Refusal::new(Code::InvalidJson, message));
        }
        Some(Flaw::LoneSurrogate) => {
            let message = "A string holds half of a surrogate pair; send whole characters.";
            return Err(Refusal::new(Code::InvalidJson, message));
        }
    }
    serde_json::from_str(text).map_err(|error| {
        // What is no object is not read to its end.
        let flaw = if error.is_data() { serde_json::from_str::<IgnoredAny>(text).err() } else { Some(error) };
        match flaw {
            None => Refusal::invalid_frame(format!("A {what} is one JSON object.")),
            Some(error) => Refusal::new(Code::InvalidJson, format!("The {what} is no JSON: {error}.")),
        }
    })
}

fn frame(fields: &Fields) -> Result<ClientFrame, Refusal> {
    let kind: String = fields.get("type", "a string")?.ok_or_else(|| must_be("type", "there: it names the frame"))?;
    match kind.as_str() {
        "auth" => auth(fields).map(Box::new).map(ClientFrame::Auth),
        "subscribe" => subscribe(fields).map(ClientFrame::Subscribe),
        "unsubscribe" => unsubscribe(fields).map(ClientFrame::Unsubscribe),
        "publish" => message(fields).map(ClientFrame::Publish),
        "ack" => acked(fields).map(ClientFrame::Ack),
        "ping" => Ok(ClientFrame::Ping),
        _ => {
            let kind: String = kind.chars().take(40).collect();
            let known = "auth, subscribe, unsubscribe, publish, ack or ping";
            Err(Refusal::new(
                Code::UnknownType,
                format!("No frame has the type `{}`; send {known}.", kind.escape_debug()),
            ))
        }
    }
}

fn msgid(fields: &Fields) -> Result<Option<MsgId>, Refusal> {
    fields.raw("msgid").map(msgid_of).transpose()
}

fn msgid_of(raw: &RawValue) -> Result<MsgId, Refusal> {
    let must = "a string of at most 64 characters or an integer within ±(2^53−1)";
    let id = if raw.get().starts_with('"') {
        serde_json::from_str::<String>(raw.get())
            .ok()
            .filter(|text| text.chars().count() <= MAX_MSGID_CHARS)
            .map(|text| MsgId::Text(text.into()))
    } else {
        serde_json::from_str::<i64>(raw.get()).ok().filter(is_safe).map(MsgId::Number)
    };
    id.ok_or_else(|| must_be("msgid", must))
}

/// JavaScript holds it exactly.
fn is_safe(number: &i64) -> bool {
    number.unsigned_abs() <= MAX_SAFE_INTEGER
}

fn auth(fields: &Fields) -> Result<Auth, Refusal> {
    let token: Option<String> = fields.get("token", "a string")?;
    let username = fields.text("username")?;
    let password: Option<String> = fields.get("password", "a string")?;
    let login = match (username, password) {
        (Some(username), Some(password)) => Some(Login { username, password: Secret(password.into()) }),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            return Err(Refusal::invalid_frame("`username` and `password` belong together; give both or neither."));
        }
    };
    if token.is_some() && login.is_some() {
        return Err(Refusal::invalid_frame("Give either a `token` or a `username` and `password`, not both."));
    }
    if fields.raw("deviceId").is_some() {
        return Err(Refusal::invalid_frame("Device sessions are not supported yet; leave `deviceId` out."));
    }
    let client_id = fields.text("clientId")?;
    if client_id.as_ref().is_some_and(|id| id.is_empty() || id.len() > MAX_CLIENT_ID_BYTES) {
        return Err(must_be("clientId", "1 to 256 bytes without control characters"));
    }
    let clean = fields.get("clean", "true or false")?.unwrap_or(true);
    let session_expiry = fields.get("sessionExpiry", "a number of seconds from 0 to 4294967295")?;
    let will = fields.raw("will").map(will).transpose()?;
    let subscriptions = match fields.raw("subscriptions") {
        None => Vec::new(),
        Some(raw) => list(raw, "subscriptions")?
            .into_iter()
            .map(|raw| match subscription(entry(raw)?, Options::default())? {
                Asked::Valid(subscription) => Ok(subscription),
                Asked::Invalid { refusal, .. } => Err(refusal),
            })
            .collect::<Result<_, _>>()?,
    };
    Ok(Auth {
        token: token.map(|token| Secret(token.into())),
        login,
        client_id,
        clean,
        session_expiry: if clean { 0 } else { session_expiry.unwrap_or(DEFAULT_SESSION_EXPIRY) },
        will,
        subscriptions,
        ack: ack_option(fields)?.unwrap_or_default(),
    })
}

fn will(raw: &RawValue) -> Result<Will, Refusal> {
    let fields = Fields::of(raw, "`will`")?;
    let message = message(&fields)?;
    if message.payload.len() > usize::from(u16::MAX) {
        return Err(Refusal::new(
            Code::PayloadTooLarge,
            "The payload of a will may have 65,535 bytes (MQTT 5 section 3.1.3.4).",
        ));
    }
    Ok(Will { message, delay: fields.get("delay", "a number of seconds from 0 to 4294967295")?.unwrap_or(0) })
}

fn subscribe(fields: &Fields) -> Result<Vec<Asked<Subscription>>, Refusal> {
    let defaults = Options::default().with(fields)?;
    entries(fields)?.into_iter().map(|entry| subscription(entry, defaults)).collect()
}

fn unsubscribe(fields: &Fields) -> Result<Vec<Asked<TopicFilter>>, Refusal> {
    let asked = |Entry { topic, .. }| match filter(&topic) {
        Ok(filter) => Asked::Valid(filter),
        Err(refusal) => Asked::Invalid { topic, refusal },
    };
    Ok(entries(fields)?.into_iter().map(asked).collect())
}

/// A filter as the client wrote it, and the fields that stand beside it.
struct Entry<'a> {
    topic: String,
    fields: Fields<'a>,
}

/// `topic` or `topics`: one filter, or a list of filters and of objects with a filter and options.
fn entries<'a>(fields: &Fields<'a>) -> Result<Vec<Entry<'a>>, Refusal> {
    match (fields.get("topic", "a string")?, fields.raw("topics")) {
        (Some(topic), None) => Ok(vec![Entry { topic, fields: Fields::default() }]),
        (None, Some(raw)) => match list(raw, "topics")? {
            raws if raws.is_empty() => Err(must_be("topics", "a list of at least one filter")),
            raws => raws.into_iter().map(entry).collect(),
        },
        (Some(_), Some(_)) => Err(Refusal::invalid_frame("Send `topic` or `topics`, not both.")),
        (None, None) => Err(Refusal::invalid_frame("Send the filter as `topic`, or several as `topics`.")),
    }
}

fn entry(raw: &RawValue) -> Result<Entry<'_>, Refusal> {
    if raw.get().starts_with('"') {
        let topic = serde_json::from_str(raw.get()).map_err(|_| must_be("topics", "a list of strings or objects"))?;
        return Ok(Entry { topic, fields: Fields::default() });
    }
    let fields = Fields::of(raw, "An entry of a list of topics, unless it is a string,")?;
    let topic = fields.get("topic", "a string")?.ok_or_else(|| must_be("topic", "there: it is the filter"))?;
    Ok(Entry { topic, fields })
}

/// The outer refusal is the frame's, the inner one the entry's.
fn subscription(entry: Entry, defaults: Options) -> Result<Asked<Subscription>, Refusal> {
    let options = defaults.with(&entry.fields)?;
    judge_contract(&options.contract)?;
    Ok(match filter(&entry.topic).and_then(|filter| options.of(filter)) {
        Ok(subscription) => Asked::Valid(subscription),
        Err(refusal) => Asked::Invalid { topic: entry.topic, refusal },
    })
}

/// Reads the filter of a subscription.
pub fn filter(topic: &str) -> Result<TopicFilter, Refusal> {
    let filter = TopicFilter::parse(topic).map_err(|error| Refusal::new(Code::InvalidTopic, sentence(&error)))?;
    plain(topic).map(|()| filter)
}

/// Brokers may end the connection over a topic with a control character or a non-character (MQTT 5 section 1.5.4).
fn plain(topic: &str) -> Result<(), Refusal> {
    if topic.chars().all(is_plain) {
        return Ok(());
    }
    let message = "A topic may hold no control characters and no Unicode non-characters (MQTT 5 section 1.5.4).";
    Err(Refusal::new(Code::InvalidTopic, message))
}

/// What a subscription is, apart from its filter.
#[derive(Clone, Copy, Default)]
struct Options {
    broker: SubscribeOptions,
    sid: Option<i64>,
    contract: Contract,
}

impl Options {
    /// These, but for those that the fields give.
    fn with(self, fields: &Fields) -> Result<Options, Refusal> {
        let format = match fields.get::<String>("format", "\"text\" or \"json\"")?.as_deref() {
            None => self.contract.format,
            Some("text") => Format::Text,
            Some("json") => Format::Json,
            Some(_) => return Err(must_be("format", "\"text\" or \"json\"")),
        };
        let priority = match fields.get::<String>("priority", PRIORITIES)?.as_deref() {
            None => self.contract.priority,
            Some("high") => Priority::High,
            Some("normal") => Priority::Normal,
            Some("low") => Priority::Low,
            Some(_) => return Err(must_be("priority", PRIORITIES)),
        };
        let retain_handling = fields.get("retainHandling", "0, 1 or 2")?.unwrap_or(self.broker.retain_handling);
        if retain_handling > 2 {
            return Err(must_be("retainHandling", "0, 1 or 2"));
        }
        let sid = fields.get("sid", "an integer")?.or(self.sid);
        if !sid.as_ref().is_none_or(is_safe) {
            return Err(must_be("sid", "an integer within ±(2^53−1)"));
        }
        let broker = SubscribeOptions {
            qos: qos(fields)?.unwrap_or(self.broker.qos),
            no_local: fields.get("noLocal", "true or false")?.unwrap_or(self.broker.no_local),
            retain_as_published: fields
                .get("retainAsPublished", "true or false")?
                .unwrap_or(self.broker.retain_as_published),
            retain_handling,
        };
        Ok(Options {
            broker,
            sid,
            contract: Contract {
                ack: ack_option(fields)?.unwrap_or(self.contract.ack),
                format,
                priority,
                max_rate: max_rate(fields)?.or(self.contract.max_rate),
                delta: fields.get("delta", "true or false")?.unwrap_or(self.contract.delta),
                batch: fields.raw("batch").map(batch).transpose()?.or(self.contract.batch),
            },
        })
    }

    fn of(self, filter: TopicFilter) -> Result<Subscription, Refusal> {
        if self.broker.no_local && filter.is_shared() {
            let message = "A shared subscription can't have noLocal (MQTT 5 section 3.8.3.1); leave one of them out.";
            return Err(Refusal::invalid_frame(message));
        }
        Ok(Subscription { filter, options: self.broker, sid: self.sid, contract: self.contract })
    }
}

/// What a browser has not acked yet can't be left out.
fn judge_contract(contract: &Contract) -> Result<(), Refusal> {
    let leaves_out = contract.max_rate.map(|_| "maxRate").or(contract.delta.then_some("delta"));
    match (contract.ack, leaves_out) {
        (Ack::Manual, Some(option)) => Err(Refusal::invalid_frame(format!(
            "`{option}` can't be had with `ack` \"manual\"; leave one of them out."
        ))),
        (Ack::Manual, None) | (Ack::Auto, _) => Ok(()),
    }
}

fn max_rate(fields: &Fields) -> Result<Option<Rate>, Refusal> {
    const MUST: &str = "a number of deliveries a second from 0.00001 to 1000000";
    let rate = fields.get::<f64>("maxRate", MUST)?;
    rate.map(|rate| Rate::per_second(rate).ok_or_else(|| must_be("maxRate", MUST))).transpose()
}

fn batch(raw: &RawValue) -> Result<Batch, Refusal> {
    const MESSAGES: &str = "a number from 1 to 10000";
    const DELAY: &str = "a number of milliseconds from 0 to 3600000";
    let fields = Fields::of(raw, "`batch`")?;
    let needed = |name, must| move || must_be(name, must);
    let max_messages: NonZeroU16 =
        fields.get("maxMessages", MESSAGES)?.ok_or_else(needed("maxMessages", "there, in `batch`"))?;
    let max_delay = fields.get("maxDelay", DELAY)?.ok_or_else(needed("maxDelay", "there, in `batch`"))?;
    if max_messages.get() > Batch::MOST_MESSAGES {
        return Err(must_be("maxMessages", MESSAGES));
    }
    if max_delay > Batch::LONGEST_DELAY {
        return Err(must_be("maxDelay", DELAY));
    }
    Ok(Batch { max_messages, max_delay })
}

fn ack_option(fields: &Fields) -> Result<Option<Ack>, Refusal> {
    match fields.get::<String>("ack", "\"auto\" or \"manual\"")?.as_deref() {
        None => Ok(None),
        Some("auto") => Ok(Some(Ack::Auto)),
        Some("manual") => Ok(Some(Ack::Manual)),
        Some(_) => Err(must_be("ack", "\"auto\" or \"manual\"")),
    }
}

fn qos(fields: &Fields) -> Result<Option<Qos>, Refusal> {
    let number = fields.get::<u64>("qos", "0, 1 or 2")?;
    number.map(|number| Qos::from_number(number).ok_or_else(|| must_be("qos", "0, 1 or 2"))).transpose()
}

fn message(fields: &Fields) -> Result<Message, Refusal> {
    let name: String =
        fields.get("topic", "a string")?.ok_or_else(|| must_be("topic", "there: it says where to publish"))?;
    let topic = topic(&name)?;
    let raw = fields.raw("payload").ok_or_else(|| must_be("payload", "there: any JSON value"))?;
    Ok(Message {
        topic,
        payload: payload(raw, fields.get::<String>("encoding", "\"text\", \"json\" or \"base64\"")?.as_deref())?,
        qos: qos(fields)?.unwrap_or_default(),
        retain: fields.get("retain", "true or false")?.unwrap_or(false),
        properties: fields.raw("properties").map(properties).transpose()?.flatten(),
    })
}

fn payload(raw: &RawValue, encoding: Option<&str>) -> Result<Bytes, Refusal> {
    let is_string = raw.get().starts_with('"');
    let string = || serde_json::from_str::<String>(raw.get()).map_err(|_| must_be("payload", "valid JSON"));
    match encoding {
        None | Some("text") if is_string => Ok(string()?.into()),
        None | Some("text" | "json") => Ok(Bytes::copy_from_slice(raw.get().as_bytes())),
        Some("base64") if is_string => {
            let message = "`payload` must be base64 as RFC 4648 section 4 has it, with padding.";
            base64(&string()?).ok_or_else(|| Refusal::new(Code::InvalidPayload, message))
        }
        Some("base64") => {
            Err(Refusal::new(Code::InvalidPayload, "With the encoding base64 the payload must be a string."))
        }
        Some(_) => Err(must_be("encoding", "\"text\", \"json\" or \"base64\"")),
    }
}

fn base64(text: &str) -> Option<Bytes> {
    base64_simd::STANDARD.decode_to_vec(text).ok().map(Bytes::from)
}

fn properties(raw: &RawValue) -> Result<Option<Box<Properties>>, Refusal> {
    let fields = Fields::of(raw, "`properties`")?;
    let response_topic = fields.text("responseTopic")?;
    if let Some(topic) = &response_topic {
        Topic::parse(topic)
            .map_err(|error| Refusal::new(Code::InvalidTopic, format!("As responseTopic: {}", sentence(&error))))?;
    }
    let correlation_data = match fields.get::<String>("correlationData", "a base64 string")? {
        None => None,
        Some(text) => match base64(&text) {
            Some(data) if data.len() <= usize::from(u16::MAX) => Some(data),
            _ => return Err(must_be("correlationData", "base64 (RFC 4648 section 4) of at most 65,535 bytes")),
        },
    };
    let format = fields.get::<u8>("payloadFormatIndicator", "0 or 1")?;
    if format.is_some_and(|format| format > 1) {
        return Err(must_be("payloadFormatIndicator", "0 or 1"));
    }
    let pairs = fields.get::<Vec<(String, String)>>("userProperties", "a list of [name, value]")?.unwrap_or_default();
    if !pairs.iter().all(|(name, value)| fits_packet(name) && fits_packet(value)) {
        return Err(must_be("userProperties", "a list of strings of at most 65,535 bytes without control characters"));
    }
    let properties = Properties {
        content_type: fields.text("contentType")?,
        response_topic,
        correlation_data,
        message_expiry_interval: fields.get("messageExpiryInterval", "a number of seconds from 0 to 4294967295")?,
        payload_format_indicator: format,
        user_properties: pairs,
    };
    Ok((properties != Properties::default()).then(|| Box::new(properties)))
}

fn acked(fields: &Fields) -> Result<Vec<MsgId>, Refusal> {
    match (fields.raw("msgid"), fields.raw("msgids")) {
        (Some(raw), None) => Ok(vec![msgid_of(raw)?]),
        (None, Some(raw)) => list(raw, "msgids")?.into_iter().map(msgid_of).collect(),
        (Some(_), Some(_)) => Err(Refusal::invalid_frame("Send `msgid` or `msgids`, not both.")),
        (None, None) => Err(Refusal::invalid_frame("Send the delivery's `msgid`, or several as `msgids`.")),
    }
}

fn list<'a>(raw: &'a RawValue, name: &str) -> Result<Vec<&'a RawValue>, Refusal> {
    serde_json::from_str(raw.get()).map_err(|_| must_be(name, "a list"))
}

/// An error's text as a sentence of its own.
fn sentence(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    let mut chars = text.chars();
    let first: String = chars.next().into_iter().flat_map(char::to_uppercase).collect();
    format!("{first}{}.", chars.as_str().trim_end_matches('.'))
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
