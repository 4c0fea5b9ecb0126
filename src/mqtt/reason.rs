//! Reason codes: why a broker took a request, or why not (MQTT 5 section 2.4).

/// The code of a CONNACK, PUBACK, PUBREC, PUBCOMP, SUBACK, UNSUBACK or DISCONNECT.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reason(pub u8);

impl Reason {
    /// Done; for a SUBACK, granted at QoS 0.
    pub const SUCCESS: Reason = Reason(0x00);
    /// A client leaves and wants its will published.
    pub const DISCONNECT_WITH_WILL: Reason = Reason(0x04);
    /// The message was taken, and nobody reads its topic.
    pub const NO_MATCHING_SUBSCRIBERS: Reason = Reason(0x10);
    /// What was to be unsubscribed is not subscribed.
    pub const NO_SUBSCRIPTION: Reason = Reason(0x11);
    /// The client may not do this.
    pub const NOT_AUTHORIZED: Reason = Reason(0x87);
    /// The filter is not one.
    pub const TOPIC_FILTER_INVALID: Reason = Reason(0x8F);
    /// Another connection uses the same client identifier.
    pub const SESSION_TAKEN_OVER: Reason = Reason(0x8E);
    /// The topic is not accepted.
    pub const TOPIC_NAME_INVALID: Reason = Reason(0x90);
    /// No such packet identifier is in use.
    pub const PACKET_IDENTIFIER_NOT_FOUND: Reason = Reason(0x92);
    /// The packet is larger than the receiver takes.
    pub const PACKET_TOO_LARGE: Reason = Reason(0x95);
    /// A limit of the implementation or the administrator.
    pub const QUOTA_EXCEEDED: Reason = Reason(0x97);
    /// The server does not store messages.
    pub const RETAIN_NOT_SUPPORTED: Reason = Reason(0x9A);
    /// The server does not take this quality of service.
    pub const QOS_NOT_SUPPORTED: Reason = Reason(0x9B);
    /// The server has no shared subscriptions.
    pub const SHARED_SUBSCRIPTIONS_NOT_SUPPORTED: Reason = Reason(0x9E);
    /// The server has no wildcards.
    pub const WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED: Reason = Reason(0xA2);

    /// Codes below 0x80 say that the request was carried out.
    pub fn is_success(self) -> bool {
        self.0 < 0x80
    }

    /// The name that the standard gives to the code.
    pub fn name(self) -> &'static str {
        match self.0 {
            0x00 => "success",
            0x01 => "granted QoS 1",
            0x02 => "granted QoS 2",
            0x04 => "disconnect with will message",
            0x10 => "no matching subscribers",
            0x11 => "no subscription existed",
            0x80 => "unspecified error",
            0x81 => "malformed packet",
            0x82 => "protocol error",
            0x83 => "implementation specific error",
            0x84 => "unsupported protocol version",
            0x85 => "client identifier not valid",
            0x86 => "bad user name or password",
            0x87 => "not authorized",
            0x88 => "server unavailable",
            0x89 => "server busy",
            0x8A => "banned",
            0x8B => "server shutting down",
            0x8C => "bad authentication method",
            0x8D => "keep alive timeout",
            0x8E => "session taken over",
            0x8F => "topic filter invalid",
            0x90 => "topic name invalid",
            0x91 => "packet identifier in use",
            0x92 => "packet identifier not found",
            0x93 => "receive maximum exceeded",
            0x94 => "topic alias invalid",
            0x95 => "packet too large",
            0x96 => "message rate too high",
            0x97 => "quota exceeded",
            0x98 => "administrative action",
            0x99 => "payload format invalid",
            0x9A => "retain not supported",
            0x9B => "QoS not supported",
            0x9C => "use another server",
            0x9D => "server moved",
            0x9E => "shared subscriptions not supported",
            0x9F => "connection rate exceeded",
            0xA0 => "maximum connect time",
            0xA1 => "subscription identifiers not supported",
            0xA2 => "wildcard subscriptions not supported",
            _ => "unknown reason",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (0x{:02X})", self.name(), self.0)
    }
}

impl std::fmt::Debug for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}
