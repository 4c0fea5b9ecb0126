use std::collections::HashSet;
use std::sync::LazyLock;
use std::time::Duration;

use proptest::prelude::*;

use super::super::Topic;
use super::Confirmation::{Puback, Pubrec};
use super::*;

const NOTHING: [&str; 0] = [];
const DONE: Outcome = Outcome::Answered(Reason::SUCCESS);

fn id(number: u16) -> PacketId {
    PacketId::new(number).expect("not 0")
}

/// A moment, in seconds from the start of all scenes.
fn at(seconds: u64) -> Instant {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    *START + Duration::from_secs(seconds)
}

fn publish(qos: Qos, topic: &str) -> Request {
    let topic = Topic::parse(topic).expect("a topic");
    Request::Publish(Message { topic, payload: "21.5".into(), qos, retain: false, properties: None })
}

fn qos1(topic: &str) -> Request {
    publish(Qos::AtLeastOnce, topic)
}

fn qos2(topic: &str) -> Request {
    publish(Qos::ExactlyOnce, topic)
}

fn subscribe(filter: &str) -> Request {
    let options =
        SubscribeOptions { qos: Qos::AtLeastOnce, no_local: false, retain_as_published: false, retain_handling: 0 };
    Request::Subscribe { filter: TopicFilter::parse(filter).expect("a filter"), options, subscription_id: 1 }
}

fn unsubscribe(filter: &str) -> Request {
    Request::Unsubscribe(TopicFilter::parse(filter).expect("a filter"))
}

/// Requests numbered from 1 whose deadlines are 20 seconds off, in a client whose packet identifiers start at 1.
fn asking(requests: impl IntoIterator<Item = Request>) -> Outgoing {
    let mut outgoing = Outgoing::new(id(1));
    for (request, number) in requests.into_iter().zip(1..) {
        outgoing.make(number, request, at(20));
    }
    outgoing
}

/// The same, each written at once on a new connection: request and packet identifier have the same number.
fn asked(requests: impl IntoIterator<Item = Request>) -> Outgoing {
    let mut outgoing = Outgoing::new(id(1));
    assert_eq!(outgoing.on_link_up(false, 100), []);
    for (request, number) in requests.into_iter().zip(1..) {
        outgoing.make(number, request, at(20));
        assert_eq!(written(&mut outgoing).len(), 1);
    }
    outgoing
}

/// The connection is lost, and a new one made.
fn relink(outgoing: &mut Outgoing, session_present: bool) -> Vec<(RequestId, Outcome)> {
    outgoing.on_link_down();
    outgoing.on_link_up(session_present, 100)
}

/// All that is due, in MQTT's words.
fn written(outgoing: &mut Outgoing) -> Vec<String> {
    let mut packets = Vec::new();
    while let Some(due) = outgoing.due() {
        packets.push(match due {
            Due::Request(id, Request::Publish(message), dup) => {
                format!("PUBLISH {id} {}{}", message.topic.as_ref(), if dup { " dup" } else { "" })
            }
            Due::Request(id, Request::Subscribe { filter, .. }, false) => format!("SUBSCRIBE {id} {}", filter.as_ref()),
            Due::Request(id, Request::Unsubscribe(filter), false) => format!("UNSUBSCRIBE {id} {}", filter.as_ref()),
            Due::Request(.., true) => panic!("only a PUBLISH has a dup flag"),
            Due::Pubrel(id) => format!("PUBREL {id}"),
        });
    }
    packets
}

#[test]
fn a_qos_1_publish_ends_with_its_puback() {
    let mut outgoing = asked([qos1("a")]);
    assert_eq!(outgoing.on_puback(id(1), Reason::SUCCESS), Some((1, DONE)));
    assert!(outgoing.is_empty());
}

#[test]
fn a_qos_2_publish_ends_with_its_pubcomp() {
    let mut outgoing = asked([qos2("a")]);
    assert_eq!(outgoing.on_pubrec(id(1), Reason::SUCCESS), Ok(()));
    assert!(!outgoing.is_empty());
    assert_eq!(outgoing.on_pubcomp(id(1)), Some((1, DONE)));
    assert!(outgoing.is_empty());
}

#[test]
fn however_much_is_asked_subscriptions_leave_packet_identifiers_free() {
    let mut outgoing = asking((0..70_000).map(|_| unsubscribe("a")).chain([qos1("b")]));
    assert_eq!(outgoing.on_link_up(false, u16::MAX), []);
    let packets = written(&mut outgoing);
    assert_eq!((packets.len(), packets.last().map(String::as_str)), (1001, Some("PUBLISH 1001 b")));
    assert_eq!((outgoing.waiting_subscriptions(), outgoing.waiting()), (69_000, 0));
    assert!(outgoing.on_suback(id(7)).is_some());
    assert_eq!(written(&mut outgoing), ["UNSUBSCRIBE 1002 a"], "one is answered, the next leaves");
    assert_eq!(relink(&mut outgoing, true), []);
    assert_eq!(written(&mut outgoing).len(), 1001, "those that the broker may have leave first");
}

#[test]
fn a_subscription_ends_with_its_suback() {
    let mut outgoing = asked([subscribe("a/#"), unsubscribe("b/#")]);
    assert_eq!(outgoing.on_suback(id(2)), Some((2, unsubscribe("b/#"), false)));
    assert_eq!(outgoing.on_suback(id(1)), Some((1, subscribe("a/#"), false)));
    assert!(outgoing.is_empty());
}

#[test]
fn the_reason_of_a_publish_is_the_brokers() {
    for reason in [Reason::NOT_AUTHORIZED, Reason::QUOTA_EXCEEDED, Reason(0x80)] {
        let answer = Some((1, Outcome::Answered(reason)));
        assert_eq!(asked([qos1("a")]).on_puback(id(1), reason), answer);
        assert_eq!(asked([qos2("a")]).on_pubrec(id(1), reason), Err(answer));
    }
    let nobody_reads = Reason::NO_MATCHING_SUBSCRIBERS;
    assert_eq!(asked([qos1("a")]).on_puback(id(1), nobody_reads), Some((1, Outcome::Answered(nobody_reads))));
    assert_eq!(asked([qos2("a")]).on_pubrec(id(1), nobody_reads), Ok(()), "a PUBREL follows");
}

#[test]
fn publishes_wait_for_room_in_the_window_of_the_broker() {
    let mut outgoing = asking([qos2("a"), qos2("b"), qos1("c"), qos1("d"), qos1("e"), qos1("f")]);
    outgoing.on_link_up(false, 2);
    assert_eq!(written(&mut outgoing), ["PUBLISH 1 a", "PUBLISH 2 b"]);
    assert_eq!(outgoing.waiting(), 4);
    assert_eq!(outgoing.on_pubrec(id(1), Reason::SUCCESS), Ok(()));
    assert_eq!(written(&mut outgoing), NOTHING, "PUBREC makes no room");
    outgoing.on_pubcomp(id(1)).expect("complete");
    assert_eq!(written(&mut outgoing), ["PUBLISH 3 c"], "PUBCOMP does");
    outgoing.on_pubrec(id(2), Reason::NOT_AUTHORIZED).expect_err("refused");
    assert_eq!(written(&mut outgoing), ["PUBLISH 4 d"], "a refused PUBREC does");
    outgoing.on_puback(id(3), Reason::SUCCESS).expect("complete");
    assert_eq!(written(&mut outgoing), ["PUBLISH 5 e"], "PUBACK does");
    outgoing.on_puback(id(4), Reason::NOT_AUTHORIZED).expect("refused");
    assert_eq!(written(&mut outgoing), ["PUBLISH 6 f"], "a refused PUBACK does");
    outgoing.on_puback(id(4), Reason::SUCCESS);
    outgoing.make(7, qos1("g"), at(20));
    assert_eq!(written(&mut outgoing), NOTHING, "an answer without a publish does not");
}

#[test]
fn subscriptions_do_not_wait_for_publishes() {
    let mut outgoing = asking([qos1("a"), qos1("b"), subscribe("c/#"), unsubscribe("d/#"), qos1("e")]);
    outgoing.on_link_up(false, 1);
    assert_eq!(written(&mut outgoing), ["SUBSCRIBE 1 c/#", "UNSUBSCRIBE 2 d/#", "PUBLISH 3 a"]);
    outgoing.on_suback(id(1)).expect("subscribed");
    assert_eq!(written(&mut outgoing), NOTHING, "their answers are none for a publish");
    outgoing.make(6, subscribe("f"), at(20));
    assert_eq!(written(&mut outgoing), ["SUBSCRIBE 4 f"]);
    outgoing.on_puback(id(3), Reason::SUCCESS).expect("taken");
    assert_eq!(written(&mut outgoing), ["PUBLISH 5 b"]);
}

/// Whoever publishes and waits for an answer hears it, also where the session was lost and its subscriptions are asked for again.
#[test]
fn requests_leave_in_the_order_in_which_they_were_made_but_subscriptions_first() {
    let mut outgoing = asking([qos1("a"), subscribe("b/#"), qos2("c"), unsubscribe("b/#")]);
    outgoing.on_link_up(false, 100);
    assert_eq!(written(&mut outgoing), ["SUBSCRIBE 1 b/#", "UNSUBSCRIBE 2 b/#", "PUBLISH 3 a", "PUBLISH 4 c"]);
}

#[test]
fn nothing_is_due_without_a_connection() {
    let mut outgoing = asking([subscribe("a/#"), qos1("b")]);
    assert_eq!(written(&mut outgoing), NOTHING, "before the first");
    outgoing.on_link_up(false, 100);
    assert_eq!(written(&mut outgoing), ["SUBSCRIBE 1 a/#", "PUBLISH 2 b"]);
    outgoing.on_link_down();
    outgoing.make(3, subscribe("c/#"), at(20));
    assert_eq!(written(&mut outgoing), NOTHING, "between two");
}

#[test]
fn packet_identifiers_go_up_from_the_first_past_zero_and_those_in_use() {
    let mut outgoing = Outgoing::new(id(65_534));
    outgoing.on_link_up(false, 100);
    for number in 1..=4 {
        outgoing.make(number, qos1("a"), at(20));
    }
    assert_eq!(written(&mut outgoing), ["PUBLISH 65534 a", "PUBLISH 65535 a", "PUBLISH 1 a", "PUBLISH 2 a"]);
    outgoing.on_puback(id(65_535), Reason::SUCCESS).expect("taken");
    for number in 3..=65_533 {
        outgoing.make(2 + RequestId::from(number), subscribe("b"), at(20));
        assert!(outgoing.due().is_some());
        outgoing.on_suback(id(number)).expect("its identifier follows that of the one before");
    }
    outgoing.make(70_000, qos2("c"), at(20));
    outgoing.make(70_001, subscribe("d"), at(20));
    assert_eq!(written(&mut outgoing), ["SUBSCRIBE 65535 d", "PUBLISH 3 c"]);
}

#[test]
fn a_resumed_session_gets_again_what_it_may_have_missed_in_the_original_order() {
    let mut outgoing = asked([qos1("a"), qos2("b"), subscribe("c/#"), qos2("d"), qos1("e"), unsubscribe("f")]);
    outgoing.on_pubrec(id(4), Reason::SUCCESS).expect("taken");
    outgoing.on_puback(id(5), Reason::SUCCESS).expect("taken");
    outgoing.make(7, qos1("g"), at(20));
    let again = ["SUBSCRIBE 3 c/#", "UNSUBSCRIBE 6 f", "PUBLISH 1 a dup", "PUBLISH 2 b dup", "PUBREL 4"];
    for first_free in ["PUBLISH 7 g", "PUBLISH 7 g dup"] {
        assert_eq!(relink(&mut outgoing, true), []);
        assert_eq!(written(&mut outgoing), [&again[..], &[first_free]].concat());
    }
    assert_eq!(outgoing.on_puback(id(1), Reason::SUCCESS), Some((1, DONE)));
    assert_eq!(outgoing.on_pubrec(id(2), Reason::SUCCESS), Ok(()));
    assert_eq!(outgoing.on_pubcomp(id(2)), Some((2, DONE)));
    assert_eq!(outgoing.on_suback(id(3)), Some((3, subscribe("c/#"), false)));
    assert_eq!(outgoing.on_pubcomp(id(4)), Some((4, DONE)));
    assert_eq!(outgoing.on_suback(id(6)), Some((6, unsubscribe("f"), false)));
    assert_eq!(outgoing.on_puback(id(7), Reason::SUCCESS), Some((7, DONE)));
    assert!(outgoing.is_empty());
}

#[test]
fn what_is_sent_again_respects_the_window_of_the_new_connection() {
    let mut outgoing = asked([qos2("a"), qos1("b"), qos1("c")]);
    outgoing.on_pubrec(id(1), Reason::SUCCESS).expect("taken");
    outgoing.on_link_down();
    outgoing.on_link_up(true, 1);
    assert_eq!(written(&mut outgoing), ["PUBREL 1"]);
    outgoing.on_pubcomp(id(1)).expect("complete");
    assert_eq!(written(&mut outgoing), ["PUBLISH 2 b dup"]);
    outgoing.on_link_down();
    outgoing.on_link_up(true, 2);
    assert_eq!(
        written(&mut outgoing),
        ["PUBLISH 2 b dup", "PUBLISH 3 c dup"],
        "what waited is known to have been sent before"
    );
}

#[test]
fn with_the_session_lost_only_what_may_be_repeated_is_made_anew() {
    let mut outgoing = asked([qos1("a"), qos2("b"), qos2("c"), subscribe("d/#"), qos1("e")]);
    outgoing.on_pubrec(id(3), Reason::SUCCESS).expect("taken");
    outgoing.on_puback(id(5), Reason::SUCCESS).expect("taken");
    assert_eq!(relink(&mut outgoing, false), [(2, Outcome::Unknown), (3, DONE)]);
    assert_eq!(outgoing.on_pubrec(id(2), Reason::SUCCESS), Err(None), "identifiers end with their session");
    assert_eq!(written(&mut outgoing), ["SUBSCRIBE 6 d/#", "PUBLISH 7 a"]);
    assert_eq!(outgoing.on_puback(id(7), Reason::SUCCESS), Some((1, DONE)));
    assert_eq!(outgoing.on_suback(id(6)), Some((4, subscribe("d/#"), false)));
    assert!(outgoing.is_empty());
}

#[test]
fn what_was_never_written_just_goes_out_later() {
    for session_present in [true, false] {
        let mut outgoing = asking([qos1("a"), qos2("b"), subscribe("c/#")]);
        assert_eq!(relink(&mut outgoing, session_present), []);
        assert_eq!(written(&mut outgoing), ["SUBSCRIBE 1 c/#", "PUBLISH 2 a", "PUBLISH 3 b"]);
    }
    let mut outgoing = asking([qos1("a"), qos2("b")]);
    outgoing.on_link_up(false, 1);
    assert_eq!(written(&mut outgoing), ["PUBLISH 1 a"]);
    assert_eq!(relink(&mut outgoing, false), [], "b waited for room, and is not at risk");
    assert_eq!(written(&mut outgoing), ["PUBLISH 2 a", "PUBLISH 3 b"]);
}

#[test]
fn what_was_never_written_in_time_is_forgotten() {
    let mut outgoing = asking([qos1("a"), qos2("b"), subscribe("c/#")]);
    outgoing.make(4, qos1("d"), at(30));
    assert_eq!(outgoing.next_deadline(), Some(at(20)));
    assert_eq!(outgoing.on_time(at(19)), []);
    assert_eq!(outgoing.on_time(at(20)), [1, 2, 3].map(|request| (request, Outcome::TimedOut)));
    assert_eq!(outgoing.on_time(at(29)), [], "once is enough");
    assert_eq!(outgoing.next_deadline(), Some(at(30)));
    assert_eq!(outgoing.waiting(), 1);
    outgoing.on_link_up(false, 100);
    assert_eq!(written(&mut outgoing), ["PUBLISH 1 d"]);
}

#[test]
fn what_was_written_stays_in_flight_past_its_deadline() {
    let mut outgoing = asking([subscribe("a/#"), qos1("b"), qos2("c"), qos2("d"), qos1("e")]);
    outgoing.on_link_up(false, 3);
    written(&mut outgoing);
    outgoing.on_pubrec(id(4), Reason::SUCCESS).expect("taken");
    let told = outgoing.on_time(at(20));
    let [again, unknown] = [Outcome::TimedOut, Outcome::Unknown];
    assert_eq!(told, [(1, again), (2, again), (3, unknown), (4, unknown), (5, again)]);
    assert_eq!([1, 2, 3, 4, 5].map(|request| outgoing.is_in_flight(request)), [true, true, true, true, false]);
    assert_eq!(outgoing.next_deadline(), None);

    outgoing.make(6, qos1("f"), at(40));
    assert_eq!(written(&mut outgoing), NOTHING, "the broker still counts them");
    assert_eq!(outgoing.on_suback(id(1)), Some((1, subscribe("a/#"), true)), "a late SUBACK says so");
    assert_eq!(outgoing.on_puback(id(2), Reason::QUOTA_EXCEEDED), Some((2, Outcome::Answered(Reason::QUOTA_EXCEEDED))));
    assert_eq!(outgoing.on_pubrec(id(3), Reason::SUCCESS), Ok(()));
    assert_eq!(outgoing.on_pubcomp(id(3)), Some((3, DONE)));
    assert_eq!(outgoing.on_pubcomp(id(4)), Some((4, DONE)));
    assert_eq!(written(&mut outgoing), ["PUBLISH 5 f"]);
}

#[test]
fn what_is_late_is_sent_again_to_the_session_that_may_have_it() {
    let mut outgoing = asked([qos1("a"), qos2("b")]);
    assert_eq!(outgoing.on_time(at(20)).len(), 2);
    assert_eq!(relink(&mut outgoing, true), []);
    assert_eq!(outgoing.on_time(at(21)), []);
    assert_eq!(written(&mut outgoing), ["PUBLISH 1 a dup", "PUBLISH 2 b dup"]);
    assert_eq!(outgoing.on_puback(id(1), Reason::SUCCESS), Some((1, DONE)));
}

#[test]
fn what_is_late_when_the_session_is_lost_still_has_a_last_word() {
    let mut outgoing = asked([qos1("a"), qos2("b"), qos2("c"), subscribe("d/#")]);
    outgoing.on_pubrec(id(3), Reason::SUCCESS).expect("taken");
    assert_eq!(outgoing.on_time(at(20)).len(), 4);
    assert!((1..=4).all(|request| outgoing.is_in_flight(request)));
    assert_eq!(relink(&mut outgoing, false), [(2, Outcome::Unknown), (3, DONE)]);
    assert_eq!(outgoing.on_time(at(21)), []);
    assert_eq!(written(&mut outgoing), ["SUBSCRIBE 5 d/#", "PUBLISH 6 a"]);
    assert_eq!(outgoing.on_puback(id(6), Reason::SUCCESS), Some((1, DONE)));
    assert_eq!(outgoing.on_suback(id(5)), Some((4, subscribe("d/#"), true)));
    assert!(outgoing.is_empty());
}

#[test]
fn acknowledgements_that_nothing_waits_for_are_ignored() {
    type Ignored = fn(&mut Outgoing) -> bool;
    let cases: [(&str, Ignored); 14] = [
        ("PUBACK of nothing", |outgoing| outgoing.on_puback(id(9), Reason::SUCCESS).is_none()),
        ("PUBREC of nothing", |outgoing| outgoing.on_pubrec(id(9), Reason::SUCCESS) == Err(None)),
        ("refused PUBREC of nothing", |outgoing| outgoing.on_pubrec(id(9), Reason::QUOTA_EXCEEDED) == Err(None)),
        ("PUBCOMP of nothing", |outgoing| outgoing.on_pubcomp(id(9)).is_none()),
        ("SUBACK of nothing", |outgoing| outgoing.on_suback(id(9)).is_none()),
        ("PUBREC of QoS 1", |outgoing| outgoing.on_pubrec(id(1), Reason::SUCCESS) == Err(None)),
        ("refused PUBREC of QoS 1", |outgoing| outgoing.on_pubrec(id(1), Reason::QUOTA_EXCEEDED) == Err(None)),
        ("PUBCOMP of QoS 1", |outgoing| outgoing.on_pubcomp(id(1)).is_none()),
        ("PUBACK of QoS 2", |outgoing| outgoing.on_puback(id(2), Reason::SUCCESS).is_none()),
        ("PUBCOMP before PUBREC", |outgoing| outgoing.on_pubcomp(id(2)).is_none()),
        ("refused PUBREC after PUBREC", |outgoing| outgoing.on_pubrec(id(3), Reason::QUOTA_EXCEEDED) == Err(None)),
        ("SUBACK of a publish", |outgoing| outgoing.on_suback(id(1)).is_none()),
        ("PUBACK of a subscription", |outgoing| outgoing.on_puback(id(4), Reason::SUCCESS).is_none()),
        ("PUBREC of a subscription", |outgoing| outgoing.on_pubrec(id(4), Reason::SUCCESS) == Err(None)),
    ];
    let mut outgoing = asked([qos1("a"), qos2("b"), qos2("c"), subscribe("d/#")]);
    outgoing.on_pubrec(id(3), Reason::SUCCESS).expect("taken");
    for (name, ignored) in cases {
        assert!(ignored(&mut outgoing), "{name}");
    }
    assert_eq!(outgoing.on_puback(id(1), Reason::SUCCESS), Some((1, DONE)));
    assert_eq!(outgoing.on_pubrec(id(2), Reason::SUCCESS), Ok(()));
    assert_eq!(outgoing.on_pubcomp(id(2)), Some((2, DONE)));
    assert_eq!(outgoing.on_pubcomp(id(3)), Some((3, DONE)));
    assert_eq!(outgoing.on_suback(id(4)), Some((4, subscribe("d/#"), false)));
    assert_eq!(outgoing.on_puback(id(1), Reason::SUCCESS), None, "PUBACK twice");
    assert_eq!(outgoing.on_pubcomp(id(3)), None, "PUBCOMP twice");
    assert_eq!(outgoing.on_suback(id(4)), None, "SUBACK twice");
}

/// Every PUBREC gets its PUBREL (MQTT 5 section 4.3.3).
#[test]
fn a_second_pubrec_changes_nothing() {
    let mut outgoing = asked([qos2("a")]);
    assert_eq!(outgoing.on_pubrec(id(1), Reason::SUCCESS), Ok(()));
    assert_eq!(outgoing.on_pubrec(id(1), Reason::SUCCESS), Ok(()));
    assert_eq!(outgoing.on_pubcomp(id(1)), Some((1, DONE)));
    assert_eq!(outgoing.on_pubrec(id(1), Reason::SUCCESS), Err(None));
}

/// The end of the connection cuts what waits for it short: no answer of the old one counts on the new one before it is asked again.
#[test]
fn an_acknowledgement_counts_only_on_the_connection_that_asked() {
    let mut outgoing = asked([qos1("a"), qos2("b"), subscribe("c/#")]);
    outgoing.on_link_down();
    assert_eq!(outgoing.on_puback(id(1), Reason::SUCCESS), None);
    assert_eq!(outgoing.on_pubrec(id(2), Reason::SUCCESS), Err(None));
    assert_eq!(outgoing.on_suback(id(3)), None);
    outgoing.on_link_up(true, 100);
    assert_eq!(written(&mut outgoing), ["SUBSCRIBE 3 c/#", "PUBLISH 1 a dup", "PUBLISH 2 b dup"]);
}

fn refuse_publishes(outgoing: &mut Outgoing) -> Vec<(RequestId, Outcome)> {
    outgoing.refuse(|request| matches!(request, Request::Publish(_)).then_some(Reason::PACKET_TOO_LARGE))
}

#[test]
fn what_the_broker_of_a_new_connection_would_not_take_is_refused_and_not_sent() {
    let refused = Outcome::Answered(Reason::PACKET_TOO_LARGE);
    let mut outgoing = asked([qos1("a"), subscribe("b/#")]);
    outgoing.make(3, qos2("c"), at(20));
    assert!(outgoing.is_in_flight(1));
    assert_eq!(relink(&mut outgoing, true), []);
    assert_eq!(refuse_publishes(&mut outgoing), [(1, refused), (3, refused)]);
    assert!(!outgoing.is_in_flight(1));
    assert_eq!(written(&mut outgoing), ["SUBSCRIBE 2 b/#"]);
    assert_eq!(outgoing.on_puback(id(1), Reason::SUCCESS), None);
}

#[test]
fn what_the_broker_has_taken_is_not_refused_any_more() {
    let mut outgoing = asked([qos2("a")]);
    outgoing.on_pubrec(id(1), Reason::SUCCESS).expect("taken");
    assert_eq!(relink(&mut outgoing, true), []);
    assert_eq!(refuse_publishes(&mut outgoing), []);
    assert_eq!(written(&mut outgoing), ["PUBREL 1"]);
    assert_eq!(outgoing.on_pubcomp(id(1)), Some((1, DONE)));
}

const Q1: Qos = Qos::AtLeastOnce;
const Q2: Qos = Qos::ExactlyOnce;

/// A message that was not seen before becomes one frame.
fn arrives(incoming: &mut Incoming, number: u16, qos: Qos, digest: u64) -> Receipt {
    let Arrival::New(receipt) = incoming.on_publish(id(number), qos, false, digest) else { panic!("{number} is new") };
    incoming.opened(receipt, 1);
    receipt
}

/// The broker sends again what it knows no confirmation of.
fn comes_again(incoming: &mut Incoming, number: u16, qos: Qos, digest: u64) -> Arrival {
    incoming.on_publish(id(number), qos, true, digest)
}

fn confirmed(incoming: &mut Incoming) -> Vec<Confirmation> {
    std::iter::from_fn(|| incoming.due()).collect()
}

#[test]
fn confirmations_leave_in_the_order_of_arrival() {
    let mut incoming = Incoming::default();
    let [first, second, third] =
        [(5, Q1), (3, Q2), (4, Q1)].map(|(number, qos)| arrives(&mut incoming, number, qos, 1));
    incoming.confirm(third);
    incoming.confirm(second);
    assert_eq!(confirmed(&mut incoming), []);
    assert_eq!(incoming.unconfirmed(), 3);
    incoming.confirm(first);
    assert_eq!(confirmed(&mut incoming), [Puback(id(5)), Pubrec(id(3)), Puback(id(4))]);
    assert_eq!(incoming.unconfirmed(), 0);
}

#[test]
fn a_message_is_confirmed_when_all_its_frames_are() {
    let mut incoming = Incoming::default();
    let receipt = arrives(&mut incoming, 1, Q1, 1);
    incoming.opened(receipt, 3);
    for _ in 0..2 {
        incoming.confirm(receipt);
        assert_eq!(confirmed(&mut incoming), []);
    }
    incoming.confirm(receipt);
    assert_eq!(confirmed(&mut incoming), [Puback(id(1))]);
    incoming.confirm(receipt);
    assert_eq!(confirmed(&mut incoming), [], "once is enough");
}

#[test]
fn a_message_that_became_no_frame_is_confirmed_at_once() {
    let mut incoming = Incoming::default();
    for (number, qos, confirmation) in [(1, Q1, Puback(id(1))), (2, Q2, Pubrec(id(2)))] {
        let receipt = arrives(&mut incoming, number, qos, 1);
        incoming.opened(receipt, 0);
        assert_eq!(confirmed(&mut incoming), [confirmation]);
    }
}

#[test]
fn a_qos_2_message_is_delivered_once_until_its_pubrel() {
    let mut incoming = Incoming::default();
    let receipt = arrives(&mut incoming, 1, Q2, 7);
    incoming.confirm(receipt);
    assert_eq!(confirmed(&mut incoming), [Pubrec(id(1))]);
    for _ in 0..2 {
        assert_eq!(comes_again(&mut incoming, 1, Q2, 7), Arrival::Known);
        assert_eq!(confirmed(&mut incoming), [Pubrec(id(1))]);
    }
    assert_eq!(incoming.on_pubrel(id(1)), Reason::SUCCESS);
    assert_ne!(arrives(&mut incoming, 1, Q2, 7), receipt, "the next message may look the same");
}

#[test]
fn a_pubrel_of_nothing_is_answered_so() {
    let mut incoming = Incoming::default();
    assert_eq!(incoming.on_pubrel(id(1)), Reason::PACKET_IDENTIFIER_NOT_FOUND);
    let receipt = arrives(&mut incoming, 1, Q2, 7);
    assert_eq!(incoming.on_pubrel(id(1)), Reason::PACKET_IDENTIFIER_NOT_FOUND, "nothing was received for good yet");
    incoming.confirm(receipt);
    assert_eq!(confirmed(&mut incoming), [Pubrec(id(1))]);
    assert_eq!(incoming.on_pubrel(id(1)), Reason::SUCCESS);
    assert_eq!(incoming.on_pubrel(id(1)), Reason::PACKET_IDENTIFIER_NOT_FOUND, "the PUBCOMP was lost");
}

#[test]
fn what_is_with_its_readers_is_confirmed_on_the_connection_that_brings_it_again() {
    let mut incoming = Incoming::default();
    let before = arrives(&mut incoming, 1, Q1, 10);
    let meanwhile = arrives(&mut incoming, 2, Q2, 20);
    let after = arrives(&mut incoming, 3, Q1, 30);
    incoming.confirm(meanwhile);
    incoming.on_link_down();
    incoming.confirm(before);
    assert_eq!(confirmed(&mut incoming), [], "nobody is there to hear it");
    incoming.on_link_up(true);
    assert_eq!(confirmed(&mut incoming), [], "the new connection has not brought it yet");
    for (number, qos, digest) in [(3, Q1, 30), (2, Q2, 20), (1, Q1, 10)] {
        assert_eq!(comes_again(&mut incoming, number, qos, digest), Arrival::Known);
    }
    assert_eq!(confirmed(&mut incoming), []);
    incoming.confirm(after);
    assert_eq!(
        confirmed(&mut incoming),
        [Puback(id(3)), Pubrec(id(2)), Puback(id(1))],
        "in the order of this connection"
    );
    assert_eq!(incoming.unconfirmed(), 0);
}

#[test]
fn a_reader_may_take_more_than_one_connection_to_confirm() {
    let mut incoming = Incoming::default();
    let receipt = arrives(&mut incoming, 1, Q2, 10);
    incoming.on_link_down();
    incoming.on_link_up(true);
    incoming.on_link_down();
    incoming.on_link_up(true);
    assert_eq!(
        comes_again(&mut incoming, 1, Q2, 10),
        Arrival::Known,
        "one connection ended before it brought anything"
    );
    incoming.on_link_down();
    incoming.on_link_up(true);
    assert_eq!(comes_again(&mut incoming, 1, Q2, 10), Arrival::Known);
    incoming.confirm(receipt);
    assert_eq!(confirmed(&mut incoming), [Pubrec(id(1))]);
}

#[test]
fn another_message_under_a_known_identifier_is_new() {
    let cases = [("another digest", true, 11), ("sent for the first time", false, 10)];
    for (name, dup, digest) in cases {
        for qos in [Q1, Q2] {
            let mut incoming = Incoming::default();
            let old = arrives(&mut incoming, 1, qos, 10);
            incoming.on_link_down();
            incoming.on_link_up(true);
            let Arrival::New(new) = incoming.on_publish(id(1), qos, dup, digest) else { panic!("{name}, {qos:?}") };
            incoming.opened(new, 1);
            incoming.confirm(old);
            assert_eq!(confirmed(&mut incoming), [], "{name}, {qos:?}: the old receipt is void");
            incoming.confirm(new);
            assert_eq!(confirmed(&mut incoming).len(), 1, "{name}, {qos:?}");
            assert_eq!(incoming.unconfirmed(), 0, "{name}, {qos:?}");
        }
    }
}

#[test]
fn another_message_under_a_confirmed_identifier_is_new() {
    let cases = [("another digest", true, 11), ("sent for the first time", false, 10)];
    for (name, dup, digest) in cases {
        for qos in [Q1, Q2] {
            let mut incoming = Incoming::default();
            let old = arrives(&mut incoming, 1, qos, 10);
            incoming.confirm(old);
            assert_eq!(confirmed(&mut incoming).len(), 1);
            let Arrival::New(new) = incoming.on_publish(id(1), qos, dup, digest) else { panic!("{name}, {qos:?}") };
            assert_ne!(new, old);
            assert_eq!(confirmed(&mut incoming), [], "{name}, {qos:?}");
        }
    }
}

/// A broker may give the identifier of a confirmed message to an equal one, so nothing but a delivery is safe.
#[test]
fn a_message_that_was_confirmed_at_qos_1_is_new_when_it_comes_again() {
    let mut incoming = Incoming::default();
    let receipt = arrives(&mut incoming, 1, Q1, 10);
    incoming.confirm(receipt);
    assert_eq!(confirmed(&mut incoming), [Puback(id(1))]);
    incoming.on_link_down();
    incoming.on_link_up(true);
    assert!(matches!(comes_again(&mut incoming, 1, Q1, 10), Arrival::New(_)));
}

#[test]
fn a_pubrec_that_was_lost_is_written_again_without_a_delivery() {
    let mut incoming = Incoming::default();
    let receipt = arrives(&mut incoming, 1, Q2, 10);
    incoming.confirm(receipt);
    assert_eq!(confirmed(&mut incoming), [Pubrec(id(1))]);
    incoming.on_link_down();
    incoming.on_link_up(true);
    assert_eq!(comes_again(&mut incoming, 1, Q2, 10), Arrival::Known);
    assert_eq!(confirmed(&mut incoming), [Pubrec(id(1))]);
    assert_eq!(incoming.on_pubrel(id(1)), Reason::SUCCESS);
}

#[test]
fn a_lost_session_makes_confirmations_void() {
    let mut incoming = Incoming::default();
    let [acked, received, open] =
        [(1, Q1), (2, Q2), (3, Q1)].map(|(number, qos)| arrives(&mut incoming, number, qos, 10));
    incoming.confirm(acked);
    incoming.confirm(received);
    assert_eq!(confirmed(&mut incoming), [Puback(id(1)), Pubrec(id(2))]);
    incoming.on_link_down();
    incoming.on_link_up(false);
    assert_eq!(incoming.unconfirmed(), 0);
    assert_eq!(incoming.on_pubrel(id(2)), Reason::PACKET_IDENTIFIER_NOT_FOUND);

    for (number, qos) in [(1, Q1), (2, Q2), (3, Q1)] {
        let Arrival::New(receipt) = comes_again(&mut incoming, number, qos, 10) else {
            panic!("{number} is not of this session")
        };
        assert!(receipt > open, "no receipt of the lost session comes back");
        incoming.opened(receipt, 1);
    }
    incoming.confirm(open);
    assert_eq!(confirmed(&mut incoming), []);
    assert_eq!(incoming.unconfirmed(), 3);
}

/// What happens to a client, its readers, its broker and what is between them.
#[derive(Clone, Debug)]
enum Step {
    Publish {
        qos: Qos,
        refused: bool,
    },
    Subscribe,
    /// Somebody publishes what the client is subscribed to.
    Deliver {
        qos: Qos,
        frames: usize,
    },
    /// A reader confirms one of the frames that it has.
    Confirm(usize),
    BrokerReads(usize),
    ClientReads(usize),
    /// The connection is cut after so many packets either way; the others are lost.
    Cut {
        broker_reads: usize,
        client_reads: usize,
    },
    Connect {
        session_lost: bool,
        receive_maximum: u16,
    },
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let qos = || prop_oneof![Just(Q1), Just(Q2)];
    let step = prop_oneof![
        3 => (0..25u64).prop_map(Step::Wait),
        6 => (qos(), proptest::bool::weighted(0.2)).prop_map(|(qos, refused)| Step::Publish { qos, refused }),
        2 => Just(Step::Subscribe),
        5 => (qos(), 0..3usize).prop_map(|(qos, frames)| Step::Deliver { qos, frames }),
        6 => (0..9usize).prop_map(Step::Confirm),
        6 => (1..4usize).prop_map(Step::BrokerReads),
        6 => (1..4usize).prop_map(Step::ClientReads),
        3 => (0..4usize, 0..4usize).prop_map(|(broker_reads, client_reads)| Step::Cut { broker_reads, client_reads }),
        6 => (proptest::bool::weighted(0.2), 1..4u16)
            .prop_map(|(session_lost, receive_maximum)| Step::Connect { session_lost, receive_maximum }),
    ];
    proptest::collection::vec(step, 1..150)
}

proptest! {
    /// The promises of both sides, whatever happens between a client and a broker that follows the standard: the model checks
    /// each packet and answer as it comes, and here what has become of all in the end.
    #[test]
    fn every_message_arrives_as_its_qos_promises(steps in steps(), first_id in 1..=u16::MAX, ids_rise: bool) {
        let mut model = Model::new(id(first_id), ids_rise);
        for step in steps {
            model.run(step);
        }
        model.settle();
        for asked in &model.asked {
            asked.check();
        }
        for (number, delivery) in model.deliveries.iter().enumerate() {
            let least = if delivery.lost_with_session { 0 } else { 1 };
            let most = if delivery.qos == Q2 { 1 } else { usize::MAX };
            let came = delivery.delivered;
            prop_assert!((least..=most).contains(&came), "delivery {} came {} times", number, came);
        }
    }
}

#[derive(Debug)]
enum ToBroker {
    Publish(PacketId, RequestId),
    Pubrel(PacketId),
    Subscribe(PacketId),
    Puback(PacketId),
    Pubrec(PacketId),
    Pubcomp(PacketId),
}

#[derive(Debug)]
enum ToClient {
    /// The packet identifier, the number of the delivery, and the dup flag.
    Publish(PacketId, usize, bool),
    Pubrel(PacketId),
    Puback(PacketId, Reason),
    Pubrec(PacketId, Reason),
    Pubcomp(PacketId),
    Suback(PacketId),
}

/// A request and all that became of it.
#[derive(Debug)]
struct Asked {
    request: Request,
    deadline: Instant,
    /// The broker refuses it whenever it comes.
    refused: bool,
    /// How many times the broker published it.
    published: usize,
    /// What its asker was told: that it took too long, perhaps, and how it ended.
    outcomes: Vec<Outcome>,
    is_over: bool,
}

impl Asked {
    fn check(&self) {
        let Asked { refused, published, .. } = *self;
        match self.outcomes[..] {
            [_] | [Outcome::TimedOut, Outcome::Answered(_)] => {}
            [Outcome::Unknown, Outcome::Answered(_) | Outcome::Unknown] => {}
            _ => panic!("not told as promised: {self:?}"),
        }
        assert!(self.is_over, "nobody knows that it ended: {self:?}");
        let at_most_once = is_publish(&self.request, Q2);
        assert!(!at_most_once || published <= 1, "published twice: {self:?}");
        assert!(!refused || published == 0, "published though refused: {self:?}");
        for outcome in &self.outcomes {
            match outcome {
                Outcome::Answered(reason) if reason.is_success() => {
                    assert!(published > 0 || !matches!(self.request, Request::Publish(_)), "never published: {self:?}");
                }
                Outcome::Answered(_) => assert!(refused, "not refused: {self:?}"),
                Outcome::TimedOut => assert!(!at_most_once || published == 0, "may be made again: {self:?}"),
                Outcome::Unknown => assert!(at_most_once, "may be made again: {self:?}"),
            }
        }
    }
}

/// A message for the client and all that became of it.
#[derive(Debug)]
struct Delivery {
    qos: Qos,
    frames: usize,
    digest: u64,
    stage: DeliveryStage,
    lost_with_session: bool,
    /// How many times the client took it for new.
    delivered: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum DeliveryStage {
    Queued,
    Sent(PacketId),
    Released(PacketId),
    Over,
}

struct Model {
    now: Instant,
    up: bool,
    to_broker: VecDeque<ToBroker>,
    to_client: VecDeque<ToClient>,

    outgoing: Outgoing,
    incoming: Incoming,
    asked: Vec<Asked>,
    /// What the identifiers of the client mean in this session.
    in_use: HashMap<PacketId, RequestId>,
    /// What this connection counts against the receive maximum.
    window: HashSet<PacketId>,
    receive_maximum: usize,
    last_publish: Option<RequestId>,
    /// With the readers: the receipt and the number of the delivery.
    frames: Vec<(Receipt, usize)>,

    /// QoS 2 publishes that the broker has and whose PUBREL it has not.
    taken: HashMap<PacketId, RequestId>,
    deliveries: Vec<Delivery>,
    /// Sent on this connection and not confirmed.
    unconfirmed: VecDeque<PacketId>,
    /// Whether the broker goes through all identifiers before one comes again, or uses the lowest that is free. In the first
    /// case all deliveries look the same.
    ids_rise: bool,
    last_id: u16,
}

impl Model {
    /// Deliveries that the client takes without confirming one.
    const RECEIVE_MAXIMUM: usize = 4;

    fn new(first_id: PacketId, ids_rise: bool) -> Model {
        Model {
            now: at(0),
            up: false,
            to_broker: VecDeque::new(),
            to_client: VecDeque::new(),
            outgoing: Outgoing::new(first_id),
            incoming: Incoming::default(),
            asked: Vec::new(),
            in_use: HashMap::new(),
            window: HashSet::new(),
            receive_maximum: 0,
            last_publish: None,
            frames: Vec::new(),
            taken: HashMap::new(),
            deliveries: Vec::new(),
            unconfirmed: VecDeque::new(),
            ids_rise,
            last_id: 0,
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Publish { qos, refused } => self.ask(publish(qos, &self.asked.len().to_string()), refused),
            Step::Subscribe => self.ask(subscribe(&self.asked.len().to_string()), false),
            Step::Deliver { qos, frames } => {
                let digest = if self.ids_rise { 0 } else { self.deliveries.len() as u64 };
                let stage = DeliveryStage::Queued;
                self.deliveries.push(Delivery { qos, frames, digest, stage, lost_with_session: false, delivered: 0 });
            }
            Step::Confirm(which) if !self.frames.is_empty() => {
                let (receipt, _) = self.frames.remove(which % self.frames.len());
                self.incoming.confirm(receipt);
            }
            Step::Confirm(_) => {}
            Step::BrokerReads(packets) => (0..packets).for_each(|_| self.broker_reads()),
            Step::ClientReads(packets) => (0..packets).for_each(|_| self.client_reads()),
            Step::Cut { broker_reads, client_reads } if self.up => {
                (0..broker_reads).for_each(|_| self.broker_reads());
                (0..client_reads).for_each(|_| self.client_reads());
                self.cut();
            }
            Step::Connect { session_lost, receive_maximum } if !self.up => self.connect(session_lost, receive_maximum),
            Step::Cut { .. } | Step::Connect { .. } => {}
            Step::Wait(seconds) => self.wait(seconds),
        }
        self.client_writes();
        self.broker_writes();
    }

    /// With the session, and all going well, everything comes to its end.
    fn settle(&mut self) {
        self.run(Step::Connect { session_lost: false, receive_maximum: 2 });
        while !(self.to_broker.is_empty() && self.to_client.is_empty() && self.frames.is_empty()) {
            self.run(Step::BrokerReads(1));
            self.run(Step::ClientReads(1));
            self.run(Step::Confirm(usize::MAX));
        }
        assert!(self.outgoing.is_empty(), "{:?}", self.outgoing);
        assert_eq!(self.outgoing.waiting(), 0);
        assert_eq!(self.incoming.unconfirmed(), 0);
        assert!(self.in_use.is_empty() && self.window.is_empty() && self.taken.is_empty());
        assert!(self.deliveries.iter().all(|delivery| delivery.stage == DeliveryStage::Over), "{:?}", self.deliveries);
    }

    fn ask(&mut self, request: Request, refused: bool) {
        let deadline = self.now + Duration::from_secs(20);
        self.outgoing.make(self.asked.len() as RequestId, request.clone(), deadline);
        self.asked.push(Asked { request, deadline, refused, published: 0, outcomes: Vec::new(), is_over: false });
    }

    fn told(&mut self, (request, outcome): (RequestId, Outcome)) {
        let asked = &mut self.asked[request as usize];
        assert!(!asked.is_over, "told {outcome:?} after its end: {asked:?}");
        asked.outcomes.push(outcome);
        asked.is_over = !self.outgoing.is_in_flight(request);
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        for (request, outcome) in self.outgoing.on_time(self.now) {
            let asked = &self.asked[request as usize];
            assert!(asked.deadline <= self.now, "told too early");
            let at_risk = is_publish(&asked.request, Q2) && self.in_use.values().any(|used| *used == request);
            assert_eq!(outcome, if at_risk { Outcome::Unknown } else { Outcome::TimedOut });
            self.told((request, outcome));
        }
        assert!(self.outgoing.next_deadline().is_none_or(|deadline| deadline > self.now));
    }

    fn connect(&mut self, session_lost: bool, receive_maximum: u16) {
        self.up = true;
        self.receive_maximum = receive_maximum.into();
        let ended = self.outgoing.on_link_up(!session_lost, receive_maximum);
        assert!(session_lost || ended.is_empty(), "a session that is kept ends nothing: {ended:?}");
        ended.into_iter().for_each(|end| self.told(end));
        self.incoming.on_link_up(!session_lost);
        if session_lost {
            self.in_use.clear();
            self.taken.clear();
            for delivery in self.deliveries.iter_mut().filter(|delivery| delivery.stage != DeliveryStage::Over) {
                delivery.stage = DeliveryStage::Over;
                delivery.lost_with_session = true;
            }
        }
        for (number, delivery) in self.deliveries.iter().enumerate() {
            match delivery.stage {
                DeliveryStage::Sent(id) => {
                    self.to_client.push_back(ToClient::Publish(id, number, true));
                    self.unconfirmed.push_back(id);
                }
                DeliveryStage::Released(id) => self.to_client.push_back(ToClient::Pubrel(id)),
                DeliveryStage::Queued | DeliveryStage::Over => {}
            }
        }
    }

    fn cut(&mut self) {
        self.up = false;
        self.to_broker.clear();
        self.to_client.clear();
        self.window.clear();
        self.last_publish = None;
        self.unconfirmed.clear();
        self.outgoing.on_link_down();
        self.incoming.on_link_down();
    }

    fn client_writes(&mut self) {
        while let Some(due) = self.outgoing.due() {
            let (id, packet, is_publish) = match due {
                Due::Pubrel(id) => (id, ToBroker::Pubrel(id), true),
                Due::Request(id, request, dup) => {
                    let number = self.asked.iter().position(|asked| asked.request == *request).expect("it was asked")
                        as RequestId;
                    let before = self.in_use.insert(id, number);
                    assert!(before.is_none_or(|before| before == number), "{id} means two requests");
                    let is_publish = matches!(request, Request::Publish(_));
                    assert_eq!(
                        dup,
                        is_publish && before.is_some(),
                        "the dup flag tells whether {number} was sent before"
                    );
                    (id, if is_publish { ToBroker::Publish(id, number) } else { ToBroker::Subscribe(id) }, is_publish)
                }
            };
            assert!(self.up, "{packet:?} is due without a connection");
            if is_publish {
                let number = self.in_use[&id];
                assert!(self.last_publish < Some(number), "{number} leaves after {:?}", self.last_publish);
                self.last_publish = Some(number);
                self.window.insert(id);
                assert!(
                    self.window.len() <= self.receive_maximum,
                    "the broker takes {} at a time",
                    self.receive_maximum
                );
            }
            self.to_broker.push_back(packet);
        }
        while let Some(confirmation) = self.incoming.due() {
            assert!(self.up, "{confirmation:?} is due without a connection");
            self.to_broker.push_back(match confirmation {
                Confirmation::Puback(id) => ToBroker::Puback(id),
                Confirmation::Pubrec(id) => ToBroker::Pubrec(id),
            });
        }
    }

    fn client_reads(&mut self) {
        let Some(packet) = self.to_client.pop_front() else { return };
        match packet {
            ToClient::Publish(id, number, dup) => self.client_receives(id, number, dup),
            ToClient::Pubrel(id) => {
                self.incoming.on_pubrel(id);
                self.to_broker.push_back(ToBroker::Pubcomp(id));
            }
            ToClient::Puback(id, reason) => {
                let end = self.outgoing.on_puback(id, reason);
                self.ends(id, end);
            }
            ToClient::Pubrec(id, reason) => match self.outgoing.on_pubrec(id, reason) {
                Ok(()) => self.to_broker.push_back(ToBroker::Pubrel(id)),
                Err(end) => self.ends(id, end),
            },
            ToClient::Pubcomp(id) => {
                let end = self.outgoing.on_pubcomp(id);
                self.ends(id, end);
            }
            ToClient::Suback(id) => {
                let (number, request, late) = self.outgoing.on_suback(id).expect("the broker was asked");
                let asked = &self.asked[number as usize];
                assert_eq!(asked.request, request);
                assert_eq!(late, !asked.outcomes.is_empty());
                self.ends(id, Some((number, DONE)));
            }
        }
        self.client_writes();
    }

    fn client_receives(&mut self, id: PacketId, number: usize, dup: bool) {
        let delivery = &mut self.deliveries[number];
        match self.incoming.on_publish(id, delivery.qos, dup, delivery.digest) {
            Arrival::New(receipt) => {
                delivery.delivered += 1;
                self.incoming.opened(receipt, delivery.frames);
                self.frames.extend((0..delivery.frames).map(|_| (receipt, number)));
            }
            Arrival::Known => {}
        }
    }

    /// The broker's answer ends a request of the client, and makes its identifier free.
    fn ends(&mut self, id: PacketId, end: Option<(RequestId, Outcome)>) {
        let end = end.expect("the broker only answers what it was asked");
        assert_eq!(self.in_use.remove(&id), Some(end.0));
        self.window.remove(&id);
        self.told(end);
    }

    fn broker_writes(&mut self) {
        let in_flight =
            |delivery: &&Delivery| matches!(delivery.stage, DeliveryStage::Sent(_) | DeliveryStage::Released(_));
        while self.up && self.deliveries.iter().filter(in_flight).count() < Model::RECEIVE_MAXIMUM {
            let Some(number) = self.deliveries.iter().position(|delivery| delivery.stage == DeliveryStage::Queued)
            else {
                return;
            };
            let id = self.free_id();
            self.deliveries[number].stage = DeliveryStage::Sent(id);
            self.to_client.push_back(ToClient::Publish(id, number, false));
            self.unconfirmed.push_back(id);
        }
    }

    fn free_id(&mut self) -> PacketId {
        if self.ids_rise {
            self.last_id += 1;
            return id(self.last_id);
        }
        (1..).map(id).find(|id| self.in_flight(*id).is_none()).expect("few are in use")
    }

    fn in_flight(&mut self, id: PacketId) -> Option<&mut Delivery> {
        let stages = [DeliveryStage::Sent(id), DeliveryStage::Released(id)];
        self.deliveries.iter_mut().find(|delivery| stages.contains(&delivery.stage))
    }

    fn broker_reads(&mut self) {
        let Some(packet) = self.to_broker.pop_front() else { return };
        match packet {
            ToBroker::Publish(id, number) => self.broker_receives(id, number),
            ToBroker::Pubrel(id) => {
                self.taken.remove(&id);
                self.to_client.push_back(ToClient::Pubcomp(id));
            }
            ToBroker::Subscribe(id) => self.to_client.push_back(ToClient::Suback(id)),
            ToBroker::Puback(id) => self.broker_hears_of(id, Q1, DeliveryStage::Over),
            ToBroker::Pubrec(id) => {
                self.broker_hears_of(id, Q2, DeliveryStage::Released(id));
                self.to_client.push_back(ToClient::Pubrel(id));
            }
            ToBroker::Pubcomp(id) => {
                let delivery = self.in_flight(id).expect("a PUBREL was sent");
                assert_eq!(delivery.stage, DeliveryStage::Released(id));
                delivery.stage = DeliveryStage::Over;
            }
        }
        self.broker_writes();
    }

    fn broker_receives(&mut self, id: PacketId, number: RequestId) {
        let asked = &mut self.asked[number as usize];
        let reason = if asked.refused { Reason::NOT_AUTHORIZED } else { Reason::SUCCESS };
        let Request::Publish(message) = &asked.request else { unreachable!("it came in a PUBLISH") };
        let repeated = self
            .taken
            .get(&id)
            .inspect(|taken| assert_eq!(**taken, number, "the broker knows {id} as another"))
            .is_some();
        asked.published += usize::from(!asked.refused && !repeated);
        if message.qos == Q1 {
            return self.to_client.push_back(ToClient::Puback(id, reason));
        }
        if !asked.refused {
            self.taken.insert(id, number);
        }
        self.to_client.push_back(ToClient::Pubrec(id, reason));
    }

    /// A delivery is confirmed: in the order of sending, and not before its readers have confirmed it.
    fn broker_hears_of(&mut self, id: PacketId, qos: Qos, next: DeliveryStage) {
        assert_eq!(self.unconfirmed.pop_front(), Some(id), "confirmations come in the order of what they confirm");
        let number =
            self.deliveries.iter().position(|delivery| delivery.stage == DeliveryStage::Sent(id)).expect("it was sent");
        let delivery = &mut self.deliveries[number];
        assert_eq!(delivery.qos, qos);
        assert!(
            delivery.delivered > 0 && self.frames.iter().all(|(_, frame)| *frame != number),
            "a reader has not confirmed {number}"
        );
        delivery.stage = next;
    }
}
