//! What is recorded: the events, and the fields that each has.

use std::net::IpAddr;
use std::time::SystemTime;

use super::fields::Fields;
use super::line::{Hash, Timestamp};
use crate::access::identity::{Failure, Identity, Source};
use crate::mqtt::Message;
use crate::wire::Close;

/// Something that is recorded. Borrows all it tells, so that it costs nothing where nothing is recorded.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The gateway has started.
    Started {
        /// The gateway's version.
        version: &'a str,
    },
    /// The gateway stops in good order; no other event follows.
    Stopped,
    /// A session was opened.
    Connected {
        /// The session.
        session: &'a str,
        /// Who it is, and how that was shown.
        identity: &'a Identity,
        /// Whence it comes.
        address: IpAddr,
        /// Its MQTT client identifier.
        client_id: &'a str,
    },
    /// A session has ended.
    Disconnected {
        /// The session.
        session: &'a str,
        /// Who it was.
        user: Option<&'a str>,
        /// How it ended.
        close: Close,
    },
    /// A credential was not taken.
    AuthenticationFailed {
        /// Whence it came.
        address: IpAddr,
        /// What it was, if that could be told.
        source: Option<Source>,
        /// Who it claimed to be.
        user: Option<&'a str>,
        /// Why it was not taken.
        failure: &'a Failure,
    },
    /// Somebody may not do what was asked for.
    Refused {
        /// The session that asked; none for a request to the operators' listener.
        session: Option<&'a str>,
        /// Who asked.
        user: Option<&'a str>,
        /// Whence, where there is no session that tells it.
        address: Option<IpAddr>,
        /// What was asked for.
        request: Request,
        /// The topic or filter that it was about.
        topic: Option<&'a str>,
        /// The rule that says so.
        why: &'a str,
    },
    /// A session published to a topic that is audited. The payload is told by its size and its SHA-256.
    Published {
        /// The session.
        session: &'a str,
        /// Who it is.
        user: Option<&'a str>,
        /// What was published.
        message: &'a Message,
    },
    /// A session showed another credential, and goes on with it.
    Renewed {
        /// The session.
        session: &'a str,
        /// Who it is from now on.
        identity: &'a Identity,
    },
    /// A user, a token or a session is not let in any more.
    Revoked {
        /// Who said so.
        by: &'a str,
        /// What was revoked.
        what: &'a str,
        /// Unix seconds until when.
        until: Option<u64>,
        /// The sessions that were ended by it.
        sessions: usize,
    },
    /// A setting is not as it was.
    ConfigurationChanged {
        /// Who said so.
        by: &'a str,
        /// Section and key.
        setting: &'a str,
        /// What it was. Secrets are masked by whoever tells this.
        from: &'a str,
        /// What it is to be.
        to: &'a str,
        /// It is in force from the next start on.
        needs_restart: bool,
    },
    /// A configuration was read that can't be used; the old one stays in force.
    ConfigurationRefused {
        /// Who wanted it read.
        by: &'a str,
        /// What is wrong with it.
        why: &'a str,
    },
    /// An operator did something that is none of the others.
    Administered {
        /// Who did it.
        by: &'a str,
        /// Whence.
        address: IpAddr,
        /// What was done.
        what: &'a str,
    },
    /// Told by the log itself: events are missing, because the queue was full.
    Dropped {
        /// So many.
        count: u64,
        /// When the first of them was.
        since: SystemTime,
    },
    /// Told by the log itself: the bytes between this line and the one it follows are of a write that was cut off.
    Recovered {
        /// So many bytes.
        bytes: u64,
        /// Their hash.
        torn: Hash,
    },
}

/// What somebody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// To open a session.
    Open,
    /// To publish.
    Publish,
    /// To subscribe.
    Subscribe,
    /// To have a will published.
    Will,
    /// To go on with another credential.
    Renew,
    /// To do what operators do.
    Administer,
}

impl Request {
    /// As it stands in a line.
    pub fn name(self) -> &'static str {
        match self {
            Request::Open => "open",
            Request::Publish => "publish",
            Request::Subscribe => "subscribe",
            Request::Will => "will",
            Request::Renew => "renew",
            Request::Administer => "administer",
        }
    }
}

/// The kinds of [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is said of its event")]
pub enum Kind {
    Started,
    Stopped,
    Connected,
    Disconnected,
    AuthenticationFailed,
    Refused,
    Published,
    Renewed,
    Revoked,
    ConfigurationChanged,
    ConfigurationRefused,
    Administered,
    Dropped,
    Recovered,
}

impl Kind {
    /// All of them, in the order of the enum.
    pub const ALL: [Kind; 14] = [
        Kind::Started,
        Kind::Stopped,
        Kind::Connected,
        Kind::Disconnected,
        Kind::AuthenticationFailed,
        Kind::Refused,
        Kind::Published,
        Kind::Renewed,
        Kind::Revoked,
        Kind::ConfigurationChanged,
        Kind::ConfigurationRefused,
        Kind::Administered,
        Kind::Dropped,
        Kind::Recovered,
    ];

    /// As it stands in a line, as `event`, and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Started => "started",
            Kind::Stopped => "stopped",
            Kind::Connected => "connected",
            Kind::Disconnected => "disconnected",
            Kind::AuthenticationFailed => "authentication_failed",
            Kind::Refused => "refused",
            Kind::Published => "published",
            Kind::Renewed => "renewed",
            Kind::Revoked => "revoked",
            Kind::ConfigurationChanged => "configuration_changed",
            Kind::ConfigurationRefused => "configuration_refused",
            Kind::Administered => "administered",
            Kind::Dropped => "dropped",
            Kind::Recovered => "recovered",
        }
    }
}

impl Event<'_> {
    /// Which it is.
    pub fn kind(&self) -> Kind {
        match self {
            Event::Started { .. } => Kind::Started,
            Event::Stopped => Kind::Stopped,
            Event::Connected { .. } => Kind::Connected,
            Event::Disconnected { .. } => Kind::Disconnected,
            Event::AuthenticationFailed { .. } => Kind::AuthenticationFailed,
            Event::Refused { .. } => Kind::Refused,
            Event::Published { .. } => Kind::Published,
            Event::Renewed { .. } => Kind::Renewed,
            Event::Revoked { .. } => Kind::Revoked,
            Event::ConfigurationChanged { .. } => Kind::ConfigurationChanged,
            Event::ConfigurationRefused { .. } => Kind::ConfigurationRefused,
            Event::Administered { .. } => Kind::Administered,
            Event::Dropped { .. } => Kind::Dropped,
            Event::Recovered { .. } => Kind::Recovered,
        }
    }

    /// What it tells, as it is written.
    pub(super) fn fields(&self) -> Box<str> {
        let mut fields = Fields::default();
        match *self {
            Event::Started { version } => fields.text("version", version),
            Event::Stopped => &mut fields,
            Event::Connected { session, identity, address, client_id } => {
                who(fields.text("session", session), identity)
                    .text("address", &address.to_string())
                    .text("client_id", client_id)
            }
            Event::Disconnected { session, user, close } => fields
                .text("session", session)
                .some_text("user", user)
                .number("code", close.code())
                .text("why", close.reason()),
            Event::AuthenticationFailed { address, source, user, failure } => fields
                .text("address", &address.to_string())
                .some_text("source", source.map(Source::name))
                .some_text("user", user)
                .text("failure", failure.name())
                .text("why", &failure.to_string()),
            Event::Refused { session, user, address, request, topic, why } => fields
                .some_text("session", session)
                .some_text("user", user)
                .some_text("address", address.map(|address| address.to_string()).as_deref())
                .text("request", request.name())
                .some_text("topic", topic)
                .text("why", why),
            Event::Published { session, user, message } => fields
                .text("session", session)
                .some_text("user", user)
                .text("topic", message.topic.as_str())
                .number("qos", message.qos.number())
                .flag("retain", message.retain)
                .number("bytes", message.payload.len() as u64)
                .text("sha256", &Hash::of(&message.payload).to_string()),
            Event::Renewed { session, identity } => who(fields.text("session", session), identity),
            Event::Revoked { by, what, until, sessions } => {
                let fields = fields.text("by", by).text("what", what);
                if let Some(until) = until {
                    fields.number("until", until);
                }
                fields.number("sessions", sessions as u64)
            }
            Event::ConfigurationChanged { by, setting, from, to, needs_restart } => fields
                .text("by", by)
                .text("setting", setting)
                .text("from", from)
                .text("to", to)
                .flag("needs_restart", needs_restart),
            Event::ConfigurationRefused { by, why } => fields.text("by", by).text("why", why),
            Event::Administered { by, address, what } => {
                fields.text("by", by).text("address", &address.to_string()).text("what", what)
            }
            Event::Dropped { count, since } => {
                fields.number("count", count).text("since", &Timestamp(since).to_string())
            }
            Event::Recovered { bytes, torn } => fields.number("bytes", bytes).text("torn", &torn.to_string()),
        };
        fields.finish()
    }
}

/// Adds who somebody is. Claims may hold anything, and are left out.
fn who<'a>(fields: &'a mut Fields, identity: &Identity) -> &'a mut Fields {
    fields
        .some_text("user", identity.user.as_deref())
        .text("source", identity.source.name())
        .texts("roles", &identity.roles)
        .texts("groups", &identity.groups)
        .some_text("token", identity.token_id.as_deref());
    if let Some(expires) = identity.expires {
        fields.number("expires", expires);
    }
    fields
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::*;
    use crate::access::identity::{Claims, names};
    use crate::mqtt::{Qos, Topic};

    const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn each_event_tells_what_it_is_about() {
        let ann = Identity {
            user: Some("ann".into()),
            source: Source::Jwt,
            roles: names(&["operator", "reader"]),
            groups: names(&["north"]),
            claims: Claims::of([(&"pin".to_owned(), &json!("1234"))]),
            token_id: Some("t-1".into()),
            expires: Some(1_767_225_600),
        };
        let nobody = Identity::anonymous(&[]);
        let message = Message {
            topic: Topic::parse("valves/7/set").expect("a topic"),
            payload: Bytes::from_static(b"open"),
            qos: Qos::AtLeastOnce,
            retain: true,
            properties: None,
        };
        let since = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        let torn = Hash::of(b"{\"se");
        let events = [
            (Event::Started { version: "1.2.3" }, json!({"version": "1.2.3"})),
            (Event::Stopped, json!({})),
            (
                Event::Connected { session: "s1", identity: &ann, address: HOME, client_id: "c1" },
                json!({"session": "s1", "user": "ann", "source": "jwt", "roles": ["operator", "reader"], "groups": ["north"],
                       "token": "t-1", "expires": 1_767_225_600, "address": "127.0.0.1", "client_id": "c1"}),
            ),
            (
                Event::Connected { session: "s1", identity: &nobody, address: HOME, client_id: "c1" },
                json!({"session": "s1", "source": "anonymous", "address": "127.0.0.1", "client_id": "c1"}),
            ),
            (
                Event::Disconnected { session: "s1", user: Some("ann"), close: Close::Heartbeat },
                json!({"session": "s1", "user": "ann", "code": 4001, "why": Close::Heartbeat.reason()}),
            ),
            (
                Event::AuthenticationFailed {
                    address: HOME,
                    source: Some(Source::Password),
                    user: Some("ann"),
                    failure: &Failure::Refused("no such user".to_owned()),
                },
                json!({"address": "127.0.0.1", "source": "password", "user": "ann", "failure": "refused", "why": "no such user"}),
            ),
            (
                Event::Refused {
                    session: Some("s1"),
                    user: None,
                    address: None,
                    request: Request::Subscribe,
                    topic: Some("valves/#"),
                    why: "no rule allows it",
                },
                json!({"session": "s1", "request": "subscribe", "topic": "valves/#", "why": "no rule allows it"}),
            ),
            (
                Event::Published { session: "s1", user: Some("ann"), message: &message },
                json!({"session": "s1", "user": "ann", "topic": "valves/7/set", "qos": 1, "retain": true, "bytes": 4,
                       "sha256": Hash::of(b"open").to_string()}),
            ),
            (Event::Renewed { session: "s1", identity: &nobody }, json!({"session": "s1", "source": "anonymous"})),
            (
                Event::Revoked { by: "root", what: "user ann", until: Some(7), sessions: 2 },
                json!({"by": "root", "what": "user ann", "until": 7, "sessions": 2}),
            ),
            (
                Event::ConfigurationChanged {
                    by: "SIGHUP",
                    setting: "log.level",
                    from: "a",
                    to: "b",
                    needs_restart: false,
                },
                json!({"by": "SIGHUP", "setting": "log.level", "from": "a", "to": "b", "needs_restart": false}),
            ),
            (Event::ConfigurationRefused { by: "SIGHUP", why: "x" }, json!({"by": "SIGHUP", "why": "x"})),
            (
                Event::Administered { by: "root", address: HOME, what: "drain" },
                json!({"by": "root", "address": "127.0.0.1", "what": "drain"}),
            ),
            (Event::Dropped { count: 3, since }, json!({"count": 3, "since": "1970-01-01T00:00:01.500Z"})),
            (Event::Recovered { bytes: 4, torn }, json!({"bytes": 4, "torn": torn.to_string()})),
        ];
        for (event, expected) in &events {
            let fields = event.fields();
            let object: Value = serde_json::from_str(&format!("{{{}}}", fields.trim_start_matches(','))).expect("JSON");
            assert_eq!(object, *expected, "{event:?}");
        }
        let kinds: HashSet<_> = events.iter().map(|(event, _)| event.kind().name()).collect();
        assert_eq!(kinds, Kind::ALL.iter().map(|kind| kind.name()).collect());
    }

    #[test]
    fn the_kinds_are_in_the_order_of_their_list() {
        assert!(Kind::ALL.iter().enumerate().all(|(index, kind)| *kind as usize == index));
    }
}
