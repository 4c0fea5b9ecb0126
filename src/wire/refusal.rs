//! What goes wrong: a request that is turned down, and the end of a session.

use std::borrow::Cow;
use std::fmt;

use crate::mqtt::{Outcome, Reason};

/// A request that was turned down; the session goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of thing went wrong, for programs.
    pub code: Code,
    /// A sentence that says what to mend, for people. Never holds a secret.
    pub message: Cow<'static, str>,
    /// Whether the same frame may work later.
    pub retryable: bool,
}

impl Refusal {
    /// A refusal that stays one however often the frame is sent.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Refusal {
        Refusal { code, message: message.into(), retryable: false }
    }

    /// A refusal that may be none later.
    pub fn for_now(code: Code, message: impl Into<Cow<'static, str>>) -> Refusal {
        Refusal { code, message: message.into(), retryable: true }
    }

    /// The frame is not one of the protocol.
    pub fn invalid_frame(message: impl Into<Cow<'static, str>>) -> Refusal {
        Refusal::new(Code::InvalidFrame, message)
    }

    /// The broker cannot be reached now.
    pub fn broker_unavailable() -> Refusal {
        Refusal::for_now(Code::BrokerUnavailable, "The broker cannot be reached now; send the frame again later.")
    }

    /// What the outcome of a request to the broker means for the one who asked, or nothing if it went well.
    pub fn from_outcome(outcome: Outcome) -> Option<Refusal> {
        match outcome {
            Outcome::Answered(reason) if reason.is_success() => None,
            Outcome::Answered(reason) => Some(Refusal::from_reason(reason)),
            Outcome::TimedOut => {
                Some(Refusal::for_now(Code::Timeout, "The broker did not answer in time; send the frame again later."))
            }
            Outcome::Unknown => Some(Refusal::new(
                Code::Timeout,
                "The broker did not confirm the message: outcome unknown, it may have been published or not.",
            )),
        }
    }

    /// A reason code of the broker that is no success.
    pub fn from_reason(reason: Reason) -> Refusal {
        let code = match reason {
            Reason::NOT_AUTHORIZED => Code::NotAuthorized,
            Reason::TOPIC_FILTER_INVALID | Reason::TOPIC_NAME_INVALID => Code::InvalidTopic,
            Reason::PACKET_TOO_LARGE => Code::PayloadTooLarge,
            Reason::QUOTA_EXCEEDED => Code::QuotaExceeded,
            _ => Code::BrokerRejected,
        };
        Refusal {
            code,
            message: format!("The broker refused: {reason}.").into(),
            retryable: code == Code::QuotaExceeded,
        }
    }
}

/// The `code` of an `error` frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "docs/protocol.md says what each means")]
pub enum Code {
    InvalidJson,
    InvalidFrame,
    UnknownType,
    InvalidTopic,
    InvalidPayload,
    PayloadTooLarge,
    NotAuthenticated,
    NotAuthorized,
    QuotaExceeded,
    RateLimited,
    BrokerUnavailable,
    BrokerRejected,
    Timeout,
    Dropped,
    Replayed,
    BadSignature,
    UnknownDevice,
    UnknownScene,
    Internal,
}

impl Code {
    /// All of them.
    pub const ALL: [Code; 19] = [
        Code::InvalidJson,
        Code::InvalidFrame,
        Code::UnknownType,
        Code::InvalidTopic,
        Code::InvalidPayload,
        Code::PayloadTooLarge,
        Code::NotAuthenticated,
        Code::NotAuthorized,
        Code::QuotaExceeded,
        Code::RateLimited,
        Code::BrokerUnavailable,
        Code::BrokerRejected,
        Code::Timeout,
        Code::Dropped,
        Code::Replayed,
        Code::BadSignature,
        Code::UnknownDevice,
        Code::UnknownScene,
        Code::Internal,
    ];

    /// The code as it stands in frames and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Code::InvalidJson => "invalid_json",
            Code::InvalidFrame => "invalid_frame",
            Code::UnknownType => "unknown_type",
            Code::InvalidTopic => "invalid_topic",
            Code::InvalidPayload => "invalid_payload",
            Code::PayloadTooLarge => "payload_too_large",
            Code::NotAuthenticated => "not_authenticated",
            Code::NotAuthorized => "not_authorized",
            Code::QuotaExceeded => "quota_exceeded",
            Code::RateLimited => "rate_limited",
            Code::BrokerUnavailable => "broker_unavailable",
            Code::BrokerRejected => "broker_rejected",
            Code::Timeout => "timeout",
            Code::Dropped => "dropped",
            Code::Replayed => "replayed",
            Code::BadSignature => "bad_signature",
            Code::UnknownDevice => "unknown_device",
            Code::UnknownScene => "unknown_scene",
            Code::Internal => "internal",
        }
    }

    /// The client does not speak the protocol; too many of these in a row end the session.
    pub fn is_invalid_frame(self) -> bool {
        matches!(self, Code::InvalidJson | Code::InvalidFrame | Code::UnknownType)
    }
}

/// How a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Close {
    /// The client sent a Close frame.
    ByClient,
    /// The connection ended without a Close frame.
    Lost,
    /// The gateway drains.
    Drain,
    /// An operator ended the session; its client may come again.
    Kicked,
    /// The client broke RFC 6455.
    ProtocolError,
    /// A binary frame on a text session, or the reverse.
    WrongKind,
    /// A text frame that is not UTF-8.
    InvalidUtf8,
    /// A frame over the size limit.
    FrameTooLarge,
    /// A fault of the gateway.
    Fault,
    /// Three pings without life.
    Heartbeat,
    /// The client takes nothing.
    SlowConsumer,
    /// The same clientId connected elsewhere.
    TakenOver,
    /// Too many invalid frames in a row.
    InvalidFrames,
    /// Not authenticated in time.
    NotAuthenticated,
    /// Authentication failed.
    AuthenticationFailed,
    /// The token is over, or was not good yet.
    TokenExpired,
    /// The session's right to be there was taken away.
    Revoked,
    /// Over a limit of connections, rate or memory.
    OverLimit,
    /// No broker within the time-out, or it refuses the gateway.
    NoBroker,
}

impl Close {
    /// All of them.
    pub const ALL: [Close; 19] = [
        Close::ByClient,
        Close::Lost,
        Close::Drain,
        Close::Kicked,
        Close::ProtocolError,
        Close::WrongKind,
        Close::InvalidUtf8,
        Close::FrameTooLarge,
        Close::Fault,
        Close::Heartbeat,
        Close::SlowConsumer,
        Close::TakenOver,
        Close::InvalidFrames,
        Close::NotAuthenticated,
        Close::AuthenticationFailed,
        Close::TokenExpired,
        Close::Revoked,
        Close::OverLimit,
        Close::NoBroker,
    ];

    /// The WebSocket close code (RFC 6455 section 7.4); 1005 and 1006 are never sent.
    pub fn code(self) -> u16 {
        match self {
            Close::ByClient => 1000,
            Close::Drain => 1001,
            Close::ProtocolError => 1002,
            Close::WrongKind => 1003,
            Close::Lost => 1006,
            Close::InvalidUtf8 => 1007,
            Close::FrameTooLarge => 1009,
            Close::Fault => 1011,
            Close::Kicked => 1012,
            Close::Heartbeat => 4001,
            Close::SlowConsumer => 4008,
            Close::TakenOver => 4009,
            Close::InvalidFrames => 4400,
            Close::NotAuthenticated | Close::TokenExpired => 4401,
            Close::AuthenticationFailed | Close::Revoked => 4403,
            Close::OverLimit => 4429,
            Close::NoBroker => 4503,
        }
    }

    /// The close code as a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Close::ByClient => "1000",
            Close::Drain => "1001",
            Close::ProtocolError => "1002",
            Close::WrongKind => "1003",
            Close::Lost => "1006",
            Close::InvalidUtf8 => "1007",
            Close::FrameTooLarge => "1009",
            Close::Fault => "1011",
            Close::Kicked => "1012",
            Close::Heartbeat => "4001",
            Close::SlowConsumer => "4008",
            Close::TakenOver => "4009",
            Close::InvalidFrames => "4400",
            Close::NotAuthenticated | Close::TokenExpired => "4401",
            Close::AuthenticationFailed | Close::Revoked => "4403",
            Close::OverLimit => "4429",
            Close::NoBroker => "4503",
        }
    }

    /// The reason in the Close frame: at most 123 bytes (RFC 6455 section 5.5).
    pub fn reason(self) -> &'static str {
        match self {
            Close::ByClient => "closed by the client",
            Close::Lost => "the connection was lost",
            Close::Drain => "the gateway is going away",
            Close::Kicked => "ended by an operator; connect again",
            Close::ProtocolError => "WebSocket protocol error",
            Close::WrongKind => "this session speaks text frames only",
            Close::InvalidUtf8 => "a text frame was not UTF-8",
            Close::FrameTooLarge => "a frame was over the size limit",
            Close::Fault => "a fault of the gateway",
            Close::Heartbeat => "no sign of life for three heartbeats",
            Close::SlowConsumer => "the client took no data in time",
            Close::TakenOver => "the same clientId connected elsewhere",
            Close::InvalidFrames => "too many invalid frames in a row",
            Close::NotAuthenticated => "not authenticated in time",
            Close::AuthenticationFailed => "authentication failed",
            Close::TokenExpired => "the token has expired or is not valid yet",
            Close::Revoked => "the session was revoked",
            Close::OverLimit => "over a limit of the gateway",
            Close::NoBroker => "the broker cannot be reached or refuses the gateway",
        }
    }

    /// Whether the session's will is published (docs/protocol.md).
    pub fn fires_will(self) -> bool {
        !matches!(self, Close::ByClient | Close::Drain | Close::Kicked | Close::TakenOver)
    }

    /// Whether the client hears of it by a Close frame of ours.
    pub fn is_told(self) -> bool {
        !matches!(self, Close::ByClient | Close::Lost)
    }
}

impl fmt::Display for Close {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code(), self.reason())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_is_labelled_by_its_code_and_its_reason_fits_the_frame() {
        for close in Close::ALL {
            assert_eq!(close.label(), close.code().to_string());
            assert!(close.reason().len() <= 123, "{close}");
        }
    }

    #[test]
    fn a_session_that_was_left_drained_kicked_or_taken_over_has_no_will() {
        let without = [Close::ByClient, Close::Drain, Close::Kicked, Close::TakenOver];
        for close in Close::ALL {
            assert_eq!(close.fires_will(), !without.contains(&close), "{close}");
        }
    }

    #[test]
    fn the_reasons_of_a_broker_become_codes() {
        let cases = [
            (0x87, Code::NotAuthorized, false),
            (0x8F, Code::InvalidTopic, false),
            (0x90, Code::InvalidTopic, false),
            (0x95, Code::PayloadTooLarge, false),
            (0x97, Code::QuotaExceeded, true),
            (0x80, Code::BrokerRejected, false),
            (0x9E, Code::BrokerRejected, false),
            (0xFF, Code::BrokerRejected, false),
        ];
        for (reason, code, retryable) in cases {
            let refusal = Refusal::from_reason(Reason(reason));
            assert_eq!((refusal.code, refusal.retryable), (code, retryable), "0x{reason:02X}");
        }
        for success in [0x00, 0x10] {
            assert_eq!(Refusal::from_outcome(Outcome::Answered(Reason(success))), None, "0x{success:02X}");
        }
    }

    #[test]
    fn a_code_is_named_alike_in_frames_and_metrics() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_value(code).expect("a string"), code.name());
        }
    }
}
