//! Before a session is open: what the first frame, or silence, means. Nothing can be published from here.

use crate::wire::{Auth, ClientFrame, Close, Code, MsgId, Refusal, Reply, Undecoded, json};

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
    /// The `auth` is refused, and the client may send another.
    Again(Refusal, Option<MsgId>),
    /// The session ends before it began, and this says why.
    Refused(Reply, Close),
}

/// Judges the first frame; nothing means that none came in time.
pub fn greet(text: Option<&str>) -> Greeted {
    let defaults = |serve| Greeted::Open { auth: Box::default(), answer: None, serve };
    let Some(text) = text else { return defaults(false) };
    match json::decode(text) {
        Ok((ClientFrame::Auth(auth), msgid)) if auth.has_credential() => {
            Greeted::Refused(Reply::refused(no_access_control(), msgid), Close::AuthenticationFailed)
        }
        Ok((ClientFrame::Auth(auth), msgid)) => Greeted::Open { auth, answer: Some(msgid), serve: false },
        Err(Undecoded { refusal, msgid, is_auth: true }) => Greeted::Again(refusal, msgid),
        Ok(_) | Err(_) => defaults(true),
    }
}

/// A credential was given, and nobody here can check it: taking it for good would be a lie.
pub fn no_access_control() -> Refusal {
    let message = "This gateway has no access control configured, so a token can't be checked; connect without one.";
    Refusal::new(Code::NotAuthenticated, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_frame_decides_how_a_session_opens() {
        assert_eq!(greet(None), Greeted::Open { auth: Box::default(), answer: None, serve: false }, "silence");
        for other in [r#"{"type":"ping"}"#, r#"{"type":"subscribe","topic":"a"}"#, r#"{"type":"what"}"#, "no JSON"] {
            assert_eq!(
                greet(Some(other)),
                Greeted::Open { auth: Box::default(), answer: None, serve: true },
                "{other}"
            );
        }
        let Greeted::Open { auth, answer, serve: false } =
            greet(Some(r#"{"type":"auth","clientId":"anna","msgid":7}"#))
        else {
            panic!()
        };
        assert_eq!((auth.client_id.as_deref(), answer), (Some("anna"), Some(Some(MsgId::Number(7)))));
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
        ] {
            assert!(matches!(greet(Some(malformed)), Greeted::Again(..)), "{malformed}");
        }
    }

    #[test]
    fn a_token_is_refused_while_nobody_can_check_it() {
        let Greeted::Refused(Reply::Error { code, .. }, close) = greet(Some(r#"{"type":"auth","token":"secret"}"#))
        else {
            panic!()
        };
        assert_eq!((code, close), (Code::NotAuthenticated, Close::AuthenticationFailed));
    }

    #[test]
    fn subscriptions_come_with_the_auth() {
        let text = r#"{"type":"auth","clean":false,"subscriptions":[{"topic":"a","qos":1},"b"]}"#;
        let Greeted::Open { auth, .. } = greet(Some(text)) else { panic!() };
        let qos: Vec<_> = auth.subscriptions.iter().map(|subscription| subscription.options.qos.number()).collect();
        assert_eq!((qos, auth.session_expiry), (vec![1, 0], 3600));
    }
}
