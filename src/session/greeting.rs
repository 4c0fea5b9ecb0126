//! Before a session is open: what the first frame, or silence, means. Nothing can be published from here.

use crate::wire::{Auth, ClientFrame, Close, Code, MsgId, Refusal, Reply, Undecoded, json};

/// Who may come in, as far as is known before the first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Everybody: nobody here could check a credential.
    Unguarded,
    /// Everybody, and who shows a good credential is somebody.
    Open,
    /// This one: a good credential came with the handshake.
    Known,
    /// Nobody without a good credential.
    Closed,
}

/// What follows from a first frame.
#[derive(Debug, PartialEq)]
pub enum Greeted {
    /// The session opens.
    Open {
        /// How.
        auth: Box<Auth>,
        /// An `auth` was sent, so it is answered, with this msgid.
        answer: Option<Option<MsgId>>,
        /// The frame is to be served after the welcome.
        serve: bool,
    },
    /// It does if the credential of this `auth` is good.
    Judge(Box<Auth>, Option<MsgId>),
    /// The `auth` is refused, and the client may send another.
    Again(Refusal, Option<MsgId>),
    /// The session ends before it began, and this says why.
    Refused(Reply, Close),
}

/// Judges the first frame; nothing means that none came in time.
pub fn greet(text: Option<&str>, door: Door) -> Greeted {
    let defaults = |serve, msgid| match door {
        Door::Unguarded | Door::Open | Door::Known => Greeted::Open { auth: Box::default(), answer: None, serve },
        Door::Closed => Greeted::Refused(Reply::refused(who_are_you(), msgid), Close::NotAuthenticated),
    };
    let Some(text) = text else { return defaults(false, None) };
    match json::decode(text) {
        Ok((ClientFrame::Auth(auth), msgid)) => match (auth.has_credential(), door) {
            (true, Door::Unguarded) => {
                Greeted::Refused(Reply::refused(no_access_control(), msgid), Close::AuthenticationFailed)
            }
            (true, Door::Open | Door::Known | Door::Closed) => Greeted::Judge(auth, msgid),
            (false, Door::Closed) => Greeted::Refused(Reply::refused(who_are_you(), msgid), Close::NotAuthenticated),
            (false, Door::Unguarded | Door::Open | Door::Known) => {
                Greeted::Open { auth, answer: Some(msgid), serve: false }
            }
        },
        Err(Undecoded { refusal, msgid, is_auth: true }) => Greeted::Again(refusal, msgid),
        Ok((_, msgid)) | Err(Undecoded { msgid, .. }) => defaults(true, msgid),
    }
}

/// A credential was given, and nobody here can check it: taking it for good would be a lie.
pub fn no_access_control() -> Refusal {
    let message = "This gateway has no access control configured, so a token can't be checked; connect without one.";
    Refusal::new(Code::NotAuthenticated, message)
}

/// No credential was given, and one is wanted.
fn who_are_you() -> Refusal {
    Refusal::new(Code::NotAuthenticated, "Say who you are: the first frame must be an `auth` with a token.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_frame_decides_how_a_session_opens() {
        for door in [Door::Unguarded, Door::Open, Door::Known] {
            let defaults = |serve| Greeted::Open { auth: Box::default(), answer: None, serve };
            assert_eq!(greet(None, door), defaults(false), "silence");
            for other in [r#"{"type":"ping"}"#, r#"{"type":"subscribe","topic":"a"}"#, r#"{"type":"what"}"#, "no JSON"]
            {
                assert_eq!(greet(Some(other), door), defaults(true), "{other}");
            }
            let Greeted::Open { auth, answer, serve: false } =
                greet(Some(r#"{"type":"auth","clientId":"anna","msgid":7}"#), door)
            else {
                panic!()
            };
            assert_eq!((auth.client_id.as_deref(), answer), (Some("anna"), Some(Some(MsgId::Number(7)))));
        }
    }

    #[test]
    fn where_a_credential_is_wanted_nothing_but_an_auth_with_one_is_served() {
        for (text, msgid) in [
            (None, None),
            (Some(r#"{"type":"ping","msgid":7}"#), Some(MsgId::Number(7))),
            (Some(r#"{"type":"publish","topic":"a","payload":1}"#), None),
            (Some(r#"{"type":"auth","clientId":"anna","msgid":7}"#), Some(MsgId::Number(7))),
            (Some("no JSON"), None),
        ] {
            let Greeted::Refused(Reply::Error { code, msgid: answered, .. }, close) = greet(text, Door::Closed) else {
                panic!("{text:?}")
            };
            assert_eq!((code, close), (Code::NotAuthenticated, Close::NotAuthenticated), "{text:?}");
            assert_eq!(answered, msgid, "{text:?}");
        }
        for credential in [r#""token":"t""#, r#""username":"anna","password":"p""#] {
            let text = format!(r#"{{"type":"auth",{credential}}}"#);
            for door in [Door::Open, Door::Known, Door::Closed] {
                assert!(matches!(greet(Some(&text), door), Greeted::Judge(..)), "{text}");
            }
        }
    }

    #[test]
    fn an_auth_is_judged_whole_and_may_be_mended() {
        for malformed in [
            r#"{"type":"auth","clean":"yes"}"#,
            r#"{"type":"auth","clientId":""}"#,
            r#"{"type":"auth","will":{"topic":"a/#","payload":1}}"#,
            r#"{"type":"auth","subscriptions":[{"topic":"a/#/b"}]}"#,
            r#"{"type":"auth","subscriptions":[{"topic":"a","maxRate":0}]}"#,
            r#"{"type":"auth","type":"auth"}"#,
            r#"{"type":"auth","username":"anna"}"#,
            r#"{"type":"auth","token":"t","username":"anna","password":"p"}"#,
        ] {
            for door in [Door::Unguarded, Door::Open, Door::Known, Door::Closed] {
                assert!(matches!(greet(Some(malformed), door), Greeted::Again(..)), "{malformed}");
            }
        }
    }

    #[test]
    fn a_token_is_refused_while_nobody_can_check_it() {
        let Greeted::Refused(Reply::Error { code, .. }, close) =
            greet(Some(r#"{"type":"auth","token":"secret"}"#), Door::Unguarded)
        else {
            panic!()
        };
        assert_eq!((code, close), (Code::NotAuthenticated, Close::AuthenticationFailed));
    }

    #[test]
    fn subscriptions_come_with_the_auth() {
        let text = r#"{"type":"auth","clean":false,"subscriptions":[{"topic":"a","qos":1},"b"]}"#;
        let Greeted::Open { auth, .. } = greet(Some(text), Door::Unguarded) else { panic!() };
        let qos: Vec<_> = auth.subscriptions.iter().map(|subscription| subscription.options.qos.number()).collect();
        assert_eq!((qos, auth.session_expiry), (vec![1, 0], 3600));
    }
}
