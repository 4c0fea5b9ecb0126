//! How an open session judges frames and events: each scene is a few texts and what follows from them.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use bytes::Bytes;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::*;
use crate::delivery::Rendition;
use crate::mqtt::{Outcome, Reason, Topic};
use crate::session::Config;
use crate::wire::{Contract, Format, json as wire_json};

const LIMITS: Limits = Limits {
    max_frame: 4096,
    max_payload: 16,
    max_subscriptions: 3,
    max_inflight: 8,
    max_qos: 2,
    retain: true,
    shared: true,
};
const MAX_LEVELS: usize = 4;

/// A session, and short words for what happens to it.
struct Scene {
    state: State,
    now: Instant,
}

impl Scene {
    fn new() -> Scene {
        Scene::with_filters(&[])
    }

    fn with_filters(filters: &[&str]) -> Scene {
        Scene::with(Config::default(), filters)
    }

    fn with(config: Config, filters: &[&str]) -> Scene {
        let filters = filters.iter().map(|text| filter(text));
        Scene {
            state: State::new(LIMITS, MAX_LEVELS, Rates::new(&config), None, Arc::default(), filters),
            now: Instant::now(),
        }
    }

    fn text(&mut self, text: &str) -> Told {
        Told(self.state.on_text(text, self.now))
    }

    fn send(&mut self, frame: Value) -> Told {
        self.text(&frame.to_string())
    }

    fn event(&mut self, event: Event) -> Told {
        Told(self.state.on_event(event, self.now))
    }

    /// A publish that the broker is asked for, under this number.
    fn publish(&mut self, msgid: impl Into<Value>) -> RequestId {
        self.send(publish(msgid)).asked_one()
    }

    fn answer(&mut self, request: RequestId, result: Result<(), Refusal>) -> Told {
        self.event(Event::Answered(request, result))
    }

    /// A subscribe whose entries all reach the broker.
    fn subscribe(&mut self, topics: &[&str]) -> Vec<RequestId> {
        self.send(json!({"type": "subscribe", "topics": topics})).asked()
    }
}

/// What is to be done.
#[derive(Debug)]
struct Told(Vec<Effect>);

impl Told {
    /// What the client hears, as JSON without messages for people.
    fn said(&self) -> Vec<Value> {
        let replies = self.0.iter().filter_map(|effect| match effect {
            Effect::Reply(reply) => Some(reply),
            _ => None,
        });
        let mut frames: Vec<Value> =
            replies.map(|reply| serde_json::from_str(&wire_json::reply(reply)).expect("replies are JSON")).collect();
        frames.iter_mut().for_each(forget_messages);
        frames
    }

    fn asked(&self) -> Vec<RequestId> {
        let commands = self.0.iter().filter_map(|effect| match effect {
            Effect::Ask(command) => Some(command),
            _ => None,
        });
        let requests = commands.map(|command| match command.as_ref() {
            Command::Publish(request, _)
            | Command::Subscribe(request, _)
            | Command::Unsubscribe(request, _)
            | Command::Fence(request) => *request,
        });
        requests.collect()
    }

    fn asked_one(&self) -> RequestId {
        let [request] = self.asked()[..] else { panic!("one request was expected, not {self:?}") };
        request
    }

    fn confirmed(&self) -> Vec<Receipt> {
        let receipts = self.0.iter().filter_map(|effect| match effect {
            Effect::Confirm(receipt) => Some(*receipt),
            _ => None,
        });
        receipts.collect()
    }

    fn closes(&self) -> Option<Close> {
        self.0.iter().find_map(|effect| match effect {
            Effect::Close(close) => Some(*close),
            _ => None,
        })
    }

    fn is_nothing(&self) -> bool {
        self.0.is_empty()
    }
}

fn forget_messages(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(message) = fields.remove("message") {
                assert!(message.as_str().is_some_and(|message| message.ends_with('.')), "a sentence: {message}");
            }
            fields.values_mut().for_each(forget_messages);
        }
        Value::Array(values) => values.iter_mut().for_each(forget_messages),
        _ => {}
    }
}

fn filter(text: &str) -> TopicFilter {
    TopicFilter::parse(text).expect("a filter")
}

fn publish(msgid: impl Into<Value>) -> Value {
    json!({"type": "publish", "topic": "a", "payload": "x", "qos": 1, "msgid": msgid.into()})
}

fn error(code: &str, msgid: impl Into<Value>, retryable: bool) -> Value {
    json!({"type": "error", "code": code, "msgid": msgid.into(), "retryable": retryable})
}

fn ack(msgid: impl Into<Value>) -> Value {
    json!({"type": "ack", "msgid": msgid.into()})
}

fn delivery(msgid: &str, receipt: Receipt, ack: Ack) -> Delivery {
    let message = Message {
        topic: Topic::parse("a").expect("a topic"),
        payload: Bytes::new(),
        qos: Qos::AtLeastOnce,
        retain: false,
        properties: None,
    };
    Delivery {
        rendition: Arc::new(Rendition::new(message, Format::Text, 0, Instant::now())),
        contract: Contract { ack, ..Contract::default() },
        readers: Default::default(),
        msgid: Some(msgid.into()),
        dup: false,
        receipt: Some(receipt),
        skipped: 0,
    }
}

fn overdue() -> Refusal {
    Refusal::from_outcome(Outcome::TimedOut).expect("no success")
}

#[test]
fn a_publish_is_acked_under_its_msgid_whatever_type_that_has() {
    let mut scene = Scene::new();
    for msgid in [json!("p1"), json!(""), json!(0), json!(-9_007_199_254_740_991_i64), json!("0")] {
        let request = scene.publish(msgid.clone());
        assert_eq!(scene.answer(request, Ok(())).said(), [ack(msgid)]);
    }
}

#[test]
fn a_publish_without_a_msgid_is_answered_only_if_it_fails() {
    let mut scene = Scene::new();
    let plain = json!({"type": "publish", "topic": "a", "payload": "x"});
    let request = scene.send(plain.clone()).asked_one();
    assert_eq!(scene.answer(request, Ok(())).said(), Vec::<Value>::new());
    let request = scene.send(plain).asked_one();
    let said = scene.answer(request, Err(Refusal::from_reason(Reason::NOT_AUTHORIZED))).said();
    assert_eq!(said, [json!({"type": "error", "code": "not_authorized", "retryable": false})]);
}

#[test]
fn a_confirmed_publish_tells_how_long_it_took() {
    let mut scene = Scene::new();
    let request = scene.publish(1);
    scene.now += Duration::from_millis(30);
    let Told(effects) = scene.answer(request, Ok(()));
    let took =
        |effect: &Effect| matches!(effect, Effect::Published(Qos::AtLeastOnce, after) if after.as_millis() == 30);
    assert!(effects.iter().any(took), "{effects:?}");
}

#[test]
fn a_publish_that_comes_again_before_its_answer_is_made_once_and_answered_each_time() {
    let mut scene = Scene::new();
    let request = scene.publish("p");
    assert!(scene.send(publish("p")).is_nothing());
    assert!(scene.send(publish("p")).is_nothing());
    assert_eq!(scene.answer(request, Ok(())).said(), [ack("p"), ack("p"), ack("p")]);
}

#[test]
fn a_publish_that_comes_again_after_its_answer_is_answered_again_and_not_made() {
    let mut scene = Scene::new();
    let request = scene.publish("p");
    scene.answer(request, Ok(()));
    for _ in 0..3 {
        let told = scene.send(publish("p"));
        assert_eq!((told.said(), told.asked()), (vec![ack("p")], vec![]));
    }
    scene.publish(json!(1));
    scene.publish(json!("1"));
}

#[test]
fn the_last_256_answers_are_remembered() {
    let mut scene = Scene::new();
    for number in 0..=REMEMBERED_ANSWERS {
        let request = scene.publish(number);
        scene.answer(request, Ok(()));
    }
    assert_eq!(scene.send(publish(1)).said(), [ack(1)], "256 answers ago");
    assert_eq!(scene.send(publish(0)).asked().len(), 1, "257 answers ago");
}

#[test]
fn a_publish_that_was_refused_may_be_mended_and_sent_again() {
    let refusals = [
        Refusal::from_reason(Reason::NOT_AUTHORIZED),
        Refusal::from_reason(Reason::QUOTA_EXCEEDED),
        Refusal::broker_unavailable(),
        overdue(),
    ];
    for refusal in refusals {
        let mut scene = Scene::new();
        let request = scene.publish("p");
        let said = scene.answer(request, Err(refusal.clone())).said();
        assert_eq!(said, [error(refusal.code.name(), "p", refusal.retryable)]);
        let again = scene.publish("p");
        assert_eq!(scene.answer(again, Ok(())).said(), [ack("p")], "after {refusal:?}");
    }
    let mut scene = Scene::new();
    let large = json!({"type": "publish", "topic": "a", "payload": "x".repeat(17), "msgid": "p"});
    assert_eq!(scene.send(large).said(), [error("payload_too_large", "p", false)]);
    scene.publish("p");
}

#[test]
fn a_publish_of_unknown_outcome_is_remembered_as_that() {
    let mut scene = Scene::new();
    let request = scene.publish("p");
    let unknown = Refusal::from_outcome(Outcome::Unknown).expect("no success");
    let said = [error("timeout", "p", false)];
    assert_eq!(scene.answer(request, Err(unknown)).said(), said);
    let again = scene.send(publish("p"));
    assert_eq!((again.said(), again.asked()), (said.to_vec(), vec![]), "it may have been published");
}

#[test]
fn an_overdue_publish_is_answered_once_and_its_late_answer_counts_for_the_next_time() {
    let late_answers = [(Ok(()), true), (Err(Refusal::from_reason(Reason::NOT_AUTHORIZED)), false)];
    for (result, is_published) in late_answers {
        let mut scene = Scene::new();
        let request = scene.publish("p");
        assert!(scene.send(publish("p")).is_nothing());
        let said = scene.event(Event::Overdue(request, overdue())).said();
        assert_eq!(said, [error("timeout", "p", true), error("timeout", "p", true)], "one for each time it came");
        let while_open = scene.send(publish("p"));
        assert_eq!((while_open.said(), while_open.asked()), (vec![error("timeout", "p", true)], vec![]));
        assert_eq!(scene.answer(request, result).said(), Vec::<Value>::new(), "it was answered");
        let afterwards = scene.send(publish("p"));
        match is_published {
            true => assert_eq!((afterwards.said(), afterwards.asked()), (vec![ack("p")], vec![])),
            false => assert_eq!((afterwards.said(), afterwards.asked().len()), (vec![], 1)),
        }
    }
}

#[test]
fn an_overdue_publish_without_a_msgid_is_refused_once() {
    for result in [Ok(()), Err(overdue())] {
        let mut scene = Scene::new();
        let request = scene.send(json!({"type": "publish", "topic": "a", "payload": "x", "qos": 2})).asked_one();
        let said = scene.event(Event::Overdue(request, overdue())).said();
        assert_eq!(said, [json!({"type": "error", "code": "timeout", "retryable": true})]);
        assert_eq!(scene.answer(request, result).said(), Vec::<Value>::new());
    }
}

#[test]
fn a_publish_is_held_to_the_limits() {
    let publish =
        |topic: &str, payload: &str| json!({"type": "publish", "topic": topic, "payload": payload, "msgid": 1});
    let bytes =
        |payload: &str| json!({"type": "publish", "topic": "a", "payload": payload, "encoding": "base64", "msgid": 1});
    let cases = [
        (publish("a", &"x".repeat(16)), None),
        (publish("a", &"x".repeat(17)), Some("payload_too_large")),
        (publish("a", &"é".repeat(8)), None),
        (publish("a", &"é".repeat(9)), Some("payload_too_large")),
        (bytes("AAAAAAAAAAAAAAAAAAAAAA=="), None),
        (bytes("AAAAAAAAAAAAAAAAAAAAAAA="), Some("payload_too_large")),
        (publish("a/b/c/d", "x"), None),
        (publish("a/b/c/d/", "x"), Some("invalid_topic")),
    ];
    for (frame, refused) in cases {
        let told = Scene::new().send(frame.clone());
        match refused {
            None => assert_eq!((told.asked().len(), told.said().len()), (1, 0), "{frame}"),
            Some(code) => assert_eq!((told.asked(), told.said()), (vec![], vec![error(code, 1, false)]), "{frame}"),
        }
    }
}

#[test]
fn a_subscribe_is_answered_when_all_its_entries_are_and_in_their_order() {
    let mut scene = Scene::new();
    let topics =
        json!(["a", "a/#/b", {"topic": "b", "qos": 2}, {"topic": "$share/g/a", "noLocal": true}, "1/2/3/4/5", "c"]);
    let told = scene.send(json!({"type": "subscribe", "topics": topics, "msgid": "s"}));
    let [a, b, c] = told.asked()[..] else { panic!("{told:?}") };
    assert_eq!(told.said(), Vec::<Value>::new());
    assert!(scene.event(Event::Subscribed(c, Ok(Qos::AtMostOnce))).is_nothing());
    let denied = scene.event(Event::Subscribed(a, Err(Refusal::from_reason(Reason::NOT_AUTHORIZED))));
    assert!(
        matches!(&denied.0[..], [Effect::Denied { request: Request::Subscribe, topic, .. }] if **topic == *"a"),
        "{denied:?}"
    );
    let said = scene.event(Event::Subscribed(b, Ok(Qos::AtLeastOnce))).said();
    let results = json!([
        {"topic": "a", "error": "not_authorized"},
        {"topic": "a/#/b", "error": "invalid_topic"},
        {"topic": "b", "qos": 1},
        {"topic": "$share/g/a", "error": "invalid_frame"},
        {"topic": "1/2/3/4/5", "error": "invalid_topic"},
        {"topic": "c", "qos": 0},
    ]);
    assert_eq!(said, [json!({"type": "subscribed", "topics": results, "msgid": "s"})]);
}

#[test]
fn a_list_of_invalid_filters_is_answered_at_once() {
    for kind in ["subscribe", "unsubscribe"] {
        let told = Scene::new().send(json!({"type": kind, "topic": "#/a", "msgid": 1}));
        let results = json!([{"topic": "#/a", "error": "invalid_topic"}]);
        let said = json!({"type": format!("{kind}d"), "topics": results, "msgid": 1});
        assert_eq!((told.said(), told.asked()), (vec![said], vec![]));
    }
}

#[test]
fn lists_of_several_frames_are_answered_apart() {
    let mut scene = Scene::new();
    let first = scene.send(json!({"type": "subscribe", "topic": "a", "msgid": 1})).asked_one();
    let second = scene.send(json!({"type": "unsubscribe", "topic": "a", "msgid": 1})).asked_one();
    let said = scene.answer(second, Ok(())).said();
    assert_eq!(said, [json!({"type": "unsubscribed", "topics": [{"topic": "a"}], "msgid": 1})]);
    let said = scene.event(Event::Subscribed(first, Ok(Qos::AtMostOnce))).said();
    assert_eq!(said, [json!({"type": "subscribed", "topics": [{"topic": "a", "qos": 0}], "msgid": 1})]);
}

#[test]
fn a_frame_that_names_more_topics_than_any_session_needs_is_refused_whole() {
    for kind in ["subscribe", "unsubscribe"] {
        let mut scene = Scene::new();
        let frame = |count| json!({"type": kind, "topics": vec!["a"; count], "msgid": 1});
        let refused = scene.send(frame(1001));
        let error = json!({"type": "error", "code": "quota_exceeded", "retryable": false, "msgid": 1});
        assert_eq!((refused.said(), refused.asked().len()), (vec![error], 0), "{kind}");
        assert_eq!(scene.send(frame(1000)).asked().len(), 1000, "{kind}");
    }
}

#[test]
fn one_subscription_too_many_is_refused_until_another_ends() {
    let quota = json!([{"topic": "d", "error": "quota_exceeded"}]);
    let too_many = [json!({"type": "subscribed", "topics": quota})];
    let mut scene = Scene::with_filters(&["a"]);
    for request in scene.subscribe(&["b", "c"]) {
        scene.event(Event::Subscribed(request, Ok(Qos::AtMostOnce)));
    }
    assert_eq!(scene.send(json!({"type": "subscribe", "topic": "d"})).said(), too_many);
    assert_eq!(scene.subscribe(&["a", "c"]).len(), 2, "those that are there may be changed");
    let request = scene.send(json!({"type": "unsubscribe", "topic": "b"})).asked_one();
    assert_eq!(scene.send(json!({"type": "subscribe", "topic": "d"})).said(), too_many, "it has not ended yet");
    scene.answer(request, Ok(()));
    assert_eq!(scene.subscribe(&["d"]).len(), 1);
}

#[test]
fn only_subscriptions_that_are_granted_count() {
    let mut scene = Scene::new();
    let denied = || Err(Refusal::from_reason(Reason::NOT_AUTHORIZED));
    for request in scene.subscribe(&["a", "b", "c"]) {
        scene.event(Event::Subscribed(request, denied()));
    }
    let requests = scene.subscribe(&["d", "e", "e"]);
    for (request, result) in requests.into_iter().zip([Ok(Qos::AtMostOnce), denied(), Ok(Qos::AtMostOnce)]) {
        scene.event(Event::Subscribed(request, result));
    }
    scene.event(Event::SubscriptionLost(filter("d"), Refusal::from_reason(Reason::QUOTA_EXCEEDED)));
    assert_eq!(scene.subscribe(&["f", "g"]).len(), 2);
    let told = scene.send(json!({"type": "subscribe", "topic": "h"}));
    assert_eq!(told.asked(), Vec::<RequestId>::new(), "e, f and g are three");
}

#[test]
fn an_unsubscribe_succeeds_also_where_nothing_was_subscribed() {
    let mut scene = Scene::new();
    let told = scene.send(json!({"type": "unsubscribe", "topics": ["a", "b/#/c", "b"], "msgid": 9}));
    let [a, b] = told.asked()[..] else { panic!("{told:?}") };
    assert!(scene.answer(a, Ok(())).is_nothing());
    let said = scene.answer(b, Err(overdue())).said();
    let results =
        json!([{"topic": "a"}, {"topic": "b/#/c", "error": "invalid_topic"}, {"topic": "b", "error": "timeout"}]);
    assert_eq!(said, [json!({"type": "unsubscribed", "topics": results, "msgid": 9})]);
}

#[test]
fn twenty_invalid_frames_in_a_row_end_the_session() {
    let invalid =
        ["no JSON", "[]", r#"{"type":"teleport"}"#, r#"{"type":"ping","msgid":null}"#, r#"{"type":"auth","clean":1}"#];
    let mut scene = Scene::new();
    for (number, text) in (1..MAX_INVALID_FRAMES).zip(invalid.iter().cycle()) {
        let told = scene.text(text);
        assert_eq!((told.said().len(), told.closes()), (1, None), "{number}: {text}");
    }
    let last = scene.text("no JSON");
    assert_eq!((last.said().len(), last.closes()), (1, Some(Close::InvalidFrames)), "it is answered, too");
}

#[test]
fn a_frame_that_is_understood_begins_the_count_anew() {
    let understood = [
        r#"{"type":"ping"}"#,
        r#"{"type":"ack","msgid":"nobody's"}"#,
        r#"{"type":"publish","topic":"a/#","payload":1}"#,
        r#"{"type":"publish","topic":"a","payload":1,"encoding":"base64"}"#,
        r#"{"type":"subscribe","topic":"a/#/b"}"#,
        r#"{"type":"auth","token":"T"}"#,
    ];
    for between in understood {
        let mut scene = Scene::new();
        for _ in 0..3 {
            for _ in 1..MAX_INVALID_FRAMES {
                assert_eq!(scene.text("no JSON").closes(), None, "{between}");
            }
            assert_eq!(scene.text(between).closes(), None, "{between}");
        }
    }
}

#[test]
fn an_ack_confirms_what_it_names_once() {
    let mut scene = Scene::new();
    for (msgid, receipt) in [("d1", 1), ("d2", 2), ("d3", 3), ("4", 4)] {
        assert_eq!(scene.state.on_delivery(&delivery(msgid, receipt, Ack::Manual)), None);
    }
    assert_eq!(scene.send(json!({"type": "ack", "msgid": "d2"})).confirmed(), [2]);
    assert!(scene.send(json!({"type": "ack", "msgid": "d2"})).is_nothing(), "it is confirmed");
    assert!(scene.send(json!({"type": "ack", "msgid": 4})).is_nothing(), "a number is no string");
    let several = json!({"type": "ack", "msgids": ["d3", "unknown", "d1", "d1", 7]});
    assert_eq!(scene.send(several).confirmed(), [3, 1]);
    assert!(scene.send(json!({"type": "ack", "msgids": []})).is_nothing());
}

#[test]
fn a_delivery_is_confirmed_by_its_writing_unless_the_client_does_it() {
    let mut scene = Scene::new();
    assert_eq!(scene.state.on_delivery(&delivery("d", 1, Ack::Auto)), Some(1));
    assert!(scene.send(ack("d")).is_nothing(), "nothing is left to confirm");
    let unconfirmed = Delivery { msgid: None, receipt: None, ..delivery("d", 1, Ack::Manual) };
    assert_eq!(scene.state.on_delivery(&unconfirmed), None, "qos 0");
}

#[test]
fn acks_are_void_when_the_broker_has_lost_the_session() {
    for session_present in [true, false] {
        let mut scene = Scene::new();
        scene.state.on_delivery(&delivery("d", 1, Ack::Manual));
        assert_eq!(scene.event(Event::Down).said(), [json!({"type": "broker", "status": "down"})]);
        if !session_present {
            assert_eq!(scene.event(Event::SessionLost).said(), Vec::<Value>::new());
        }
        scene.state.on_delivery(&delivery("restored", 2, Ack::Manual));
        let up = json!({"type": "broker", "status": "up", "sessionPresent": session_present});
        assert_eq!(scene.event(Event::Up { session_present }).said(), [up]);
        assert_eq!(scene.send(ack("d")).confirmed().len() == 1, session_present);
        assert_eq!(scene.send(ack("restored")).confirmed().len(), 1, "the new session brought it");
    }
}

#[test]
fn a_later_auth_is_a_renewal_and_changes_nothing_else() {
    let mut scene = Scene::new();
    let renewal = json!({
        "type": "auth", "clientId": "other", "clean": false, "subscriptions": [{"topic": "a"}],
        "will": {"topic": "a", "payload": ""}, "msgid": 3,
    });
    let told = scene.send(renewal);
    assert!(matches!(&told.0[..], [Effect::Renew(None, Some(MsgId::Number(3)))]), "{told:?}");
    assert_eq!(told.asked(), Vec::<RequestId>::new());
}

#[test]
fn the_token_of_a_later_auth_is_to_be_judged_and_is_not_said_again() {
    let mut scene = Scene::new();
    let told = scene.send(json!({"type": "auth", "token": "secret", "msgid": 3}));
    let Told(effects) = &told;
    let [Effect::Renew(Some(Credential::Token(token)), Some(MsgId::Number(3)))] = &effects[..] else {
        panic!("{told:?}")
    };
    assert_eq!(token.expose_secret(), "secret");
    assert!(!format!("{effects:?}").contains("secret"), "a secret is not said again");
}

#[test]
fn a_session_that_the_broker_s_side_gives_up_ends_with_the_reason() {
    let ended = |refusal| Scene::new().event(Event::Ended(Close::TakenOver, refusal));
    assert_eq!((ended(None).said().len(), ended(None).closes()), (0, Some(Close::TakenOver)));
    let told = ended(Some(Refusal::from_reason(Reason::NOT_AUTHORIZED)));
    assert_eq!((told.said().len(), told.closes()), (1, Some(Close::TakenOver)));
    assert!(matches!(told.0.last(), Some(Effect::Close(_))), "the reason comes first");
}

#[test]
fn a_ping_is_answered_with_its_msgid() {
    let cases = [
        (r#"{"type":"ping"}"#, json!({"type": "pong"})),
        (r#"{"type":"ping","msgid":"é"}"#, json!({"type": "pong", "msgid": "é"})),
    ];
    for (text, pong) in cases {
        assert_eq!(Scene::new().text(text).said(), [pong]);
    }
}

/// A session that may send so many frames, or so many publishes, in a second.
fn with_rates(frames: Option<u32>, publishes: Option<u32>) -> Scene {
    let config = Config {
        max_frames_per_second: frames.and_then(NonZeroU32::new),
        max_publishes_per_second: publishes.and_then(NonZeroU32::new),
        ..Config::default()
    };
    Scene::with(config, &[])
}

#[test]
fn frames_up_to_the_rate_are_served_and_one_over_it_is_refused_with_its_msgid() {
    let mut scene = with_rates(Some(3), None);
    let ping = |number: u32| json!({"type": "ping", "msgid": number});
    let pong = |number: u32| json!({"type": "pong", "msgid": number});
    for number in 0..3 {
        assert_eq!(scene.send(ping(number)).said(), [pong(number)]);
    }
    assert_eq!(scene.send(ping(3)).said(), [error("rate_limited", 3, true)]);
    scene.now += Duration::from_millis(334);
    assert_eq!(scene.send(ping(4)).said(), [pong(4)]);
    assert_eq!(scene.send(ping(5)).said(), [error("rate_limited", 5, true)]);
    scene.now += Duration::from_secs(60);
    for number in 6..9 {
        assert_eq!(scene.send(ping(number)).said(), [pong(number)], "a second's worth, however long it was silent");
    }
    assert_eq!(scene.send(ping(9)).said(), [error("rate_limited", 9, true)]);
}

#[test]
fn a_refusal_for_a_rate_names_the_setting() {
    let refusal = |mut scene: Scene| {
        scene.send(publish(1));
        let Told(effects) = scene.send(publish(2));
        match &effects[..] {
            [Effect::Reply(Reply::Error { message, .. })] => message.clone(),
            other => panic!("{other:?}"),
        }
    };
    let frames = refusal(with_rates(Some(1), None));
    assert!(frames.contains("1 frames a second (session.max_frames_per_second)"), "{frames}");
    let publishes = refusal(with_rates(None, Some(1)));
    assert!(publishes.contains("1 publishes a second (session.max_publishes_per_second)"), "{publishes}");
}

#[test]
fn publishes_have_a_rate_of_their_own() {
    let mut scene = with_rates(None, Some(2));
    scene.publish(1);
    scene.publish(2);
    assert_eq!(scene.send(publish(3)).said(), [error("rate_limited", 3, true)]);
    assert_eq!(scene.send(json!({"type": "ping"})).said(), [json!({"type": "pong"})], "no publish");
    assert_eq!(scene.subscribe(&["a"]).len(), 1);
}

#[test]
fn a_publish_over_the_rate_was_never_sent_and_may_come_again_under_its_msgid() {
    let mut scene = with_rates(None, Some(1));
    scene.publish(1);
    let told = scene.send(publish(2));
    assert_eq!((told.said(), told.asked()), (vec![error("rate_limited", 2, true)], vec![]));
    scene.now += Duration::from_secs(1);
    let request = scene.publish(2);
    assert_eq!(scene.answer(request, Ok(())).said(), [ack(2)]);
}

#[test]
fn what_is_no_frame_counts_as_one_and_what_comes_too_early_is_not_judged() {
    let mut scene = with_rates(Some(1), None);
    assert_eq!(scene.text("{").said()[0]["code"], "invalid_json");
    for _ in 0..20 {
        let told = scene.text(r#"{"type":"what","msgid":"x"}"#);
        assert_eq!((told.said(), told.closes()), (vec![error("rate_limited", "x", true)], None));
    }
}

#[test]
fn more_refusals_than_a_second_s_worth_in_ten_seconds_end_the_session() {
    for (rate, borne) in [(1, 20), (20, 20), (50, 50)] {
        let mut scene = with_rates(Some(rate), None);
        for number in 0..rate + borne {
            assert_eq!(scene.send(json!({"type": "ping"})).closes(), None, "frame {number} at {rate} a second");
        }
        let told = scene.send(json!({"type": "ping", "msgid": 1}));
        assert_eq!((told.said(), told.closes()), (vec![error("rate_limited", 1, true)], Some(Close::OverLimit)));
    }
}

#[test]
fn a_client_that_is_a_little_too_fast_is_refused_and_never_let_go() {
    let mut scene = with_rates(Some(20), None);
    let mut refused = 0;
    for number in 0..20_000 {
        scene.now += Duration::from_micros(1_000_000 / 22);
        let told = scene.send(json!({"type": "ping"}));
        assert_eq!(told.closes(), None, "frame {number}");
        if told.said()[0]["type"] == "error" {
            refused += 1;
        }
    }
    assert!((1700..2000).contains(&refused), "one in eleven: {refused}");
}

#[test]
fn websocket_pings_count_as_frames_and_get_no_error() {
    let mut scene = with_rates(Some(2), None);
    assert_eq!(scene.state.on_life(scene.now), Ok(()));
    assert_eq!(scene.state.on_life(scene.now), Ok(()));
    assert_eq!(scene.send(json!({"type": "ping", "msgid": 1})).said(), [error("rate_limited", 1, true)]);
    for _ in 0..19 {
        assert_eq!(scene.state.on_life(scene.now), Ok(()));
    }
    assert_eq!(scene.state.on_life(scene.now), Err(Close::OverLimit));
    let mut free = Scene::new();
    assert!((0..10_000).all(|_| free.state.on_life(free.now).is_ok()), "without a rate nothing is counted");
}
