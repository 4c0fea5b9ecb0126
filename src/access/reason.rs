//! Why a connection is turned away.

use std::borrow::Cow;

use crate::wire::{Code, Refusal};

/// Why a connection is turned away, by the setting that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its address has too many WebSockets.
    MaxPerAddress,
    /// Its address opened too many WebSockets in a short time.
    MaxNewPerSecond,
    /// All places are taken, and so are those to wait in.
    MaxQueued,
    /// No place became free in time.
    QueueTimeout,
    /// Of too many that had said nothing, it was there longest.
    MaxUnauthenticated,
    /// No whole head of a request came in time.
    HeaderTimeout,
    /// It did not come to the end of its TLS handshake in time.
    HandshakeTimeout,
    /// The head of its request was too large.
    MaxHeader,
    /// It read nothing of a response.
    WriteTimeout,
    /// A page asks that is not one of those that may.
    AllowedOrigins,
    /// The event loop does not keep up.
    MaxStall,
    /// The audit log can't be written, and nobody is to be let in unrecorded.
    WhenFull,
    /// The system gave no connection: it has no descriptors left, say.
    Accept,
}

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 13] = [
        Reason::MaxPerAddress,
        Reason::MaxNewPerSecond,
        Reason::MaxQueued,
        Reason::QueueTimeout,
        Reason::MaxUnauthenticated,
        Reason::HeaderTimeout,
        Reason::HandshakeTimeout,
        Reason::MaxHeader,
        Reason::WriteTimeout,
        Reason::AllowedOrigins,
        Reason::MaxStall,
        Reason::WhenFull,
        Reason::Accept,
    ];

    /// The reason as a metric label: the setting's name, where there is one.
    pub fn label(self) -> &'static str {
        match self {
            Reason::MaxPerAddress => "max_per_address",
            Reason::MaxNewPerSecond => "max_new_per_second",
            Reason::MaxQueued => "max_queued",
            Reason::QueueTimeout => "queue_timeout",
            Reason::MaxUnauthenticated => "max_unauthenticated",
            Reason::HeaderTimeout => "header_timeout",
            Reason::HandshakeTimeout => "handshake_timeout",
            Reason::MaxHeader => "max_header",
            Reason::WriteTimeout => "write_timeout",
            Reason::AllowedOrigins => "allowed_origins",
            Reason::MaxStall => "max_stall",
            Reason::WhenFull => "when_full",
            Reason::Accept => "accept",
        }
    }

    /// What happened, and the setting behind it.
    pub fn sentence(self) -> &'static str {
        match self {
            Reason::MaxPerAddress => {
                "The address has as many connections as one may have (connections.max_per_address)."
            }
            Reason::MaxNewPerSecond => {
                "The address opens connections faster than one may (connections.max_new_per_second)."
            }
            Reason::MaxQueued => {
                "All places are taken (connections.max), and so are those to wait in (connections.max_queued)."
            }
            Reason::QueueTimeout => {
                "All places are taken (connections.max), and none became free in time (connections.queue_timeout)."
            }
            Reason::MaxUnauthenticated => {
                "Too many connections have said nothing yet, and this one was the oldest (connections.max_unauthenticated)."
            }
            Reason::HeaderTimeout => "No request came in time (http.header_timeout).",
            Reason::HandshakeTimeout => "No TLS handshake came to its end in time (tls.handshake_timeout).",
            Reason::MaxHeader => "The head of a request was too large (http.max_header).",
            Reason::WriteTimeout => "Nothing of a response was read in time (session.write_timeout).",
            Reason::AllowedOrigins => "Pages of this origin may not connect (http.allowed_origins).",
            Reason::MaxStall => "The gateway is too busy to take one more (connections.max_stall).",
            Reason::WhenFull => "The audit log can't be written (audit.when_full).",
            Reason::Accept => "The system gives no more connections; a session takes two descriptors (ulimit -n).",
        }
    }

    /// What a browser is told before the close.
    pub fn refusal(self) -> Refusal {
        let sentence = self.sentence().trim_end_matches('.');
        Refusal::for_now(Code::RateLimited, Cow::from(format!("{sentence}; connect again later.")))
    }
}
