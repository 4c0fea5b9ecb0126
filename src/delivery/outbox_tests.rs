use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::delivery::Config;
use crate::delivery::latest::{Latest, Newest};
use crate::mqtt::{Message, Qos, Topic};
use crate::wire::{Batch, Format, Rate};

fn rendition(payload: Bytes, qos: Qos, retain: bool) -> Arc<Rendition> {
    let message = Message { topic: Topic::parse("t").expect("a topic"), payload, qos, retain, properties: None };
    Arc::new(Rendition::new(message, Format::Text, 0, Instant::now()))
}

fn delivery(payload: &'static str, qos: Qos) -> Delivery {
    Delivery {
        rendition: rendition(Bytes::from_static(payload.as_bytes()), qos, false),
        contract: Contract::default(),
        readers: SmallVec::from_iter([Reader { id: 1, sid: None, is_shared: false }]),
        msgid: None,
        dup: false,
        receipt: (qos > Qos::AtMostOnce).then_some(7),
        skipped: 0,
    }
}

fn at_most(count: usize) -> Bound {
    Bound { count, bytes: 1 << 20, free: 1 << 20, topics: 10 }
}

fn stored(payload: &'static str) -> Delivery {
    let rendition = rendition(Bytes::from_static(payload.as_bytes()), Qos::AtMostOnce, true);
    Delivery { rendition, ..delivery(payload, Qos::AtMostOnce) }
}

fn with(priority: Priority, mut delivery: Delivery) -> Delivery {
    delivery.contract.priority = priority;
    delivery
}

fn payloads(outbox: &mut Outbox) -> Vec<Bytes> {
    outbox
        .take(usize::MAX, Instant::now())
        .into_iter()
        .map(|delivery| delivery.rendition.message.payload.clone())
        .collect()
}

#[test]
fn deliveries_leave_in_the_order_in_which_they_came() {
    let mut outbox = Outbox::default();
    for payload in ["1", "2", "3"] {
        outbox.offer(delivery(payload, Qos::AtMostOnce), Excess::Hold, &at_most(10));
    }
    assert_eq!(outbox.take(1, Instant::now()).len(), 1, "at least one, whatever its size");
    assert_eq!(payloads(&mut outbox), ["2", "3"]);
    assert_eq!((outbox.len(), outbox.bytes()), (0, 0));
}

#[test]
fn while_the_browser_reads_nothing_is_dropped_and_fullness_is_told() {
    let mut outbox = Outbox::default();
    let bound = at_most(2);
    outbox.offer(delivery("1", Qos::AtMostOnce), Excess::Hold, &bound);
    assert!(!outbox.is_full(&bound));
    outbox.offer(delivery("2", Qos::AtMostOnce), Excess::Hold, &bound);
    assert!(outbox.is_full(&bound));
    assert_eq!(outbox.offer(delivery("3", Qos::AtMostOnce), Excess::Hold, &bound).dropped, 0);
    assert_eq!(payloads(&mut outbox), ["1", "2", "3"]);
}

#[test]
fn bytes_fill_the_outbox_too() {
    let mut outbox = Outbox::default();
    let bound = Bound { bytes: delivery("small", Qos::AtMostOnce).size() + 100, ..at_most(10) };
    outbox.offer(delivery("small", Qos::AtMostOnce), Excess::Hold, &bound);
    assert!(!outbox.is_full(&bound));
    outbox.offer(delivery("small", Qos::AtMostOnce), Excess::Hold, &bound);
    assert!(outbox.is_full(&bound));
}

#[test]
fn past_the_bound_the_oldest_of_qos_0_goes_first_and_stored_messages_stay() {
    let mut outbox = Outbox::default();
    let bound = at_most(3);
    outbox.offer(stored("stored"), Excess::Drop, &bound);
    outbox.offer(delivery("sure", Qos::AtLeastOnce), Excess::Drop, &bound);
    for (payload, dropped) in [("1", 0), ("2", 1), ("3", 1)] {
        assert_eq!(
            outbox.offer(delivery(payload, Qos::AtMostOnce), Excess::Drop, &bound).dropped,
            dropped,
            "{payload}"
        );
    }
    assert!(outbox.has_room(Excess::Drop, &bound));
    for payload in ["sure 2", "sure 3"] {
        outbox.offer(delivery(payload, Qos::AtLeastOnce), Excess::Drop, &bound);
    }
    assert!(!outbox.has_room(Excess::Drop, &bound), "the broker holds stored messages as long as the browser may");
    assert_eq!(outbox.take_dropped(), 3);
    assert_eq!(payloads(&mut outbox), ["stored", "sure", "sure 2", "sure 3"]);
}

#[test]
fn where_the_shared_memory_ends_stored_messages_are_dropped_last() {
    let mut outbox = Outbox::default();
    let some = [stored("old"), delivery("1", Qos::AtMostOnce), delivery("sure", Qos::AtLeastOnce), stored("new")];
    let size = some[0].size();
    for delivery in some {
        outbox.offer(delivery, Excess::Hold, &at_most(10));
    }
    let left = |free: usize| Bound { bytes: free, free, ..at_most(10) };
    assert_eq!(outbox.drop_excess(&left(3 * size + 10)), 1);
    assert_eq!(outbox.drop_excess(&left(2 * size + 10)), 1);
    assert_eq!(payloads(&mut outbox), ["sure", "new"]);
    outbox.offer(delivery("sure", Qos::AtLeastOnce), Excess::Drop, &left(0));
    outbox.offer(stored("last"), Excess::Drop, &left(0));
    assert_eq!(payloads(&mut outbox), ["sure"]);
}

#[test]
fn what_has_a_higher_priority_goes_first_in_the_order_in_which_it_came() {
    use Priority::{High, Low, Normal};
    let mut outbox = Outbox::default();
    for (payload, priority) in [("1", Low), ("2", Normal), ("3", High), ("4", Normal), ("5", High), ("6", Low)] {
        outbox.offer(with(priority, delivery(payload, Qos::AtMostOnce)), Excess::Hold, &at_most(10));
    }
    let one = delivery("1", Qos::AtMostOnce).size();
    let taken = |outbox: &mut Outbox, bytes| {
        outbox
            .take(bytes, Instant::now())
            .into_iter()
            .map(|delivery| delivery.rendition.message.payload.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(taken(&mut outbox, 3 * one), ["3", "5", "2"], "on into the next lane");
    outbox.offer(with(High, delivery("7", Qos::AtMostOnce)), Excess::Hold, &at_most(10));
    assert_eq!(taken(&mut outbox, 1), ["7"], "what came meanwhile goes first too");
    assert_eq!(taken(&mut outbox, usize::MAX), ["4", "1", "6"]);
    assert_eq!((outbox.len(), outbox.bytes()), (0, 0));
}

#[test]
fn what_has_a_lower_priority_is_dropped_first() {
    use Priority::{High, Low, Normal};
    let mut outbox = Outbox::default();
    for (payload, priority) in [("h1", High), ("h2", High), ("n1", Normal), ("n2", Normal), ("l1", Low), ("l2", Low)] {
        outbox.offer(with(priority, delivery(payload, Qos::AtMostOnce)), Excess::Hold, &at_most(10));
    }
    outbox.offer(with(Low, stored("stored")), Excess::Hold, &at_most(10));
    for (count, left) in [
        (6, vec!["h1", "h2", "n1", "n2", "l2", "stored"]),
        (4, vec!["h1", "h2", "n2", "stored"]),
        (2, vec!["h2", "stored"]),
        (1, vec!["stored"]),
    ] {
        outbox.drop_excess(&at_most(count));
        let all = outbox.take(usize::MAX, Instant::now());
        assert_eq!(
            all.iter().map(|delivery| &delivery.rendition.message.payload).collect::<Vec<_>>(),
            left,
            "at most {count}"
        );
        for delivery in all {
            outbox.offer(delivery, Excess::Hold, &at_most(10));
        }
    }
}

#[test]
fn what_waits_for_another_read_holds_no_more_memory_than_is_counted() {
    let mut outbox = Outbox::default();
    let read = Bytes::from(vec![b'x'; 64 * 1024]);
    for priority in [Priority::High, Priority::Low, Priority::Low, Priority::Low] {
        let mut small = with(priority, delivery("", Qos::AtMostOnce));
        small.rendition = rendition(read.slice(100..110), Qos::AtMostOnce, false);
        outbox.offer(small, Excess::Hold, &at_most(10));
    }
    outbox.drop_excess(&at_most(3));
    assert!(!read.is_unique());
    outbox.detach();
    assert!(read.is_unique());
    assert!(
        outbox
            .take(usize::MAX, Instant::now())
            .iter()
            .all(|delivery| delivery.rendition.message.payload == [b'x'; 10][..])
    );
}

#[test]
fn slow_browsers_share_what_is_left_fairly_and_leave_one_part() {
    let size = delivery("x", Qos::AtMostOnce).size();
    let config = Config { max_queued: const { NonZeroUsize::new(1 << 20).unwrap() }, ..Config::default() };
    let total = 1000 * size;
    for slow in [1, 4, 9] {
        let mut outboxes: Vec<_> = (0..slow).map(|_| Outbox::default()).collect();
        for _ in 0..2000 {
            for index in 0..slow {
                let used: usize = outboxes.iter().map(Outbox::bytes).sum();
                let bound = config.bound(total.saturating_sub(used));
                outboxes[index].offer(delivery("x", Qos::AtMostOnce), Excess::Drop, &bound);
            }
        }
        let part = 1000 / (slow + 1);
        for outbox in &outboxes {
            assert!(outbox.len().abs_diff(part) <= 2, "{} of {part}, {slow} slow", outbox.len());
        }
    }
    let bound = config.bound(0);
    let mut fast = Outbox::default();
    assert!(fast.has_room(Excess::Hold, &bound), "a fast one goes on when the memory is gone");
    fast.offer(delivery("x", Qos::AtMostOnce), Excess::Hold, &bound);
    assert!(!fast.has_room(Excess::Hold, &bound));
}

#[test]
fn what_must_not_be_dropped_holds_the_broker_even_while_the_browser_reads_nothing() {
    let mut outbox = Outbox::default();
    let bound = at_most(2);
    outbox.offer(delivery("sure", Qos::AtLeastOnce), Excess::Drop, &bound);
    outbox.offer(delivery("maybe", Qos::AtMostOnce), Excess::Drop, &bound);
    assert!(outbox.has_room(Excess::Drop, &bound));
    assert!(!outbox.has_room(Excess::Hold, &bound));
    outbox.offer(delivery("sure", Qos::AtLeastOnce), Excess::Drop, &bound);
    assert!(!outbox.has_room(Excess::Drop, &bound));
    outbox.take(usize::MAX, Instant::now());
    assert!(outbox.has_room(Excess::Hold, &bound));
}

#[test]
fn what_waits_for_an_ended_subscription_leaves_and_is_confirmed() {
    let mut outbox = Outbox::default();
    let bound = at_most(10);
    outbox.offer(delivery("alone", Qos::AtLeastOnce), Excess::Hold, &bound);
    let mut both = delivery("both", Qos::AtLeastOnce);
    both.readers.push(Reader { id: 2, sid: Some(5), is_shared: false });
    outbox.offer(both, Excess::Hold, &bound);
    let mut nobody = delivery("no subscription known", Qos::AtMostOnce);
    nobody.readers.clear();
    outbox.offer(nobody, Excess::Hold, &bound);
    assert_eq!(outbox.purge(1), [7]);
    let left = outbox.take(usize::MAX, Instant::now());
    assert_eq!(left.iter().map(|delivery| delivery.head().sids).collect::<Vec<_>>(), [vec![5], vec![]]);
}

/// A moment so many milliseconds after another.
fn after(start: Instant, millis: u64) -> Instant {
    start + Duration::from_millis(millis)
}

/// A delivery of this topic and contract, received at that moment, for subscription 1.
fn of(topic: &str, payload: &str, contract: Contract, received: Instant) -> Delivery {
    let message = Message {
        topic: Topic::parse(topic).expect("a topic"),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        qos: Qos::AtMostOnce,
        retain: false,
        properties: None,
    };
    let rendition = Arc::new(Rendition::new(message, Format::Text, 0, received));
    Delivery { rendition, contract, ..delivery("", Qos::AtMostOnce) }
}

fn per_second(rate: f64) -> Contract {
    Contract { max_rate: Rate::per_second(rate), ..Contract::default() }
}

fn in_batches(max_messages: u16, max_delay: u32) -> Contract {
    let max_messages = max_messages.try_into().expect("not 0");
    Contract { batch: Some(Batch { max_messages, max_delay }), ..Contract::default() }
}

fn hold(outbox: &mut Outbox, delivery: Delivery) -> Offer {
    outbox.offer(delivery, Excess::Hold, &at_most(10))
}

fn taken(outbox: &mut Outbox, now: Instant) -> Vec<Bytes> {
    let taken = outbox.take(usize::MAX, now);
    taken.into_iter().map(|delivery| delivery.rendition.message.payload.clone()).collect()
}

#[test]
fn of_a_topic_with_a_rate_the_newest_waits_for_its_time_and_the_last_arrives() {
    let (mut outbox, start) = (Outbox::default(), Instant::now());
    let two = per_second(2.0);
    let offer = |outbox: &mut Outbox, payload, millis| {
        let offer = hold(outbox, of("a", payload, two, after(start, millis)));
        (offer.conflated, offer.has_news, offer.due)
    };
    assert_eq!(offer(&mut outbox, "1", 0), (0, true, None));
    assert_eq!(taken(&mut outbox, start), ["1"]);
    assert_eq!(offer(&mut outbox, "2", 100), (0, false, Some(after(start, 500))));
    assert_eq!(offer(&mut outbox, "3", 200), (1, false, None), "nobody is woken for what only takes a place");
    assert_eq!(offer(&mut outbox, "4", 300), (1, false, None));
    assert_eq!((taken(&mut outbox, after(start, 499)), outbox.len()), (vec![], 1));
    assert_eq!(outbox.next_due(), Some(after(start, 500)));
    let last = outbox.take(usize::MAX, after(start, 510));
    assert_eq!((&last[0].rendition.message.payload[..], last[0].skipped, last[0].head().skipped), (&b"4"[..], 2, 2));
    assert_eq!(offer(&mut outbox, "5", 1009), (0, false, Some(after(start, 1010))), "from when it was taken");
    assert_eq!(taken(&mut outbox, after(start, 1010)), ["5"]);
    assert_eq!((outbox.len(), outbox.bytes(), outbox.next_due()), (0, 0, None));
    assert!(outbox.kept() > 0);
    assert_eq!(taken(&mut outbox, after(start, 1510)), Vec::<Bytes>::new());
    assert_eq!(outbox.kept(), 0, "what rests is forgotten when its interval is over");
    assert_eq!(offer(&mut outbox, "6", 1600), (0, true, None));
}

#[test]
fn a_session_that_takes_late_gets_what_is_newest_by_then() {
    let (mut outbox, start) = (Outbox::default(), Instant::now());
    for number in 0..1000 {
        let delivery = of("a", &number.to_string(), per_second(1000.0), after(start, number));
        hold(&mut outbox, delivery);
    }
    assert_eq!(outbox.len(), 1);
    assert_eq!(taken(&mut outbox, after(start, 1000)), ["999"]);
}

#[test]
fn each_topic_and_each_contract_has_a_slot_of_its_own() {
    let (mut outbox, start) = (Outbox::default(), Instant::now());
    let json = Contract { format: Format::Json, ..per_second(1.0) };
    let for_another = |mut delivery: Delivery| {
        delivery.readers[0].id = 2;
        delivery
    };
    for payload in ["1", "2"] {
        for topic in ["a", "b"] {
            hold(&mut outbox, of(topic, payload, per_second(1.0), start));
            hold(&mut outbox, for_another(of(topic, payload, json, start)));
        }
        hold(&mut outbox, of("c", payload, Contract::default(), start));
    }
    assert_eq!(taken(&mut outbox, start), ["2", "2", "2", "2", "1", "2"]);
}

#[test]
fn a_shared_subscription_is_never_merged_with_others() {
    let (mut outbox, start) = (Outbox::default(), Instant::now());
    let mut shared = of("a", "shared", per_second(1.0), start);
    shared.readers[0] = Reader { id: 2, sid: None, is_shared: true };
    hold(&mut outbox, of("a", "1", per_second(1.0), start));
    assert_eq!(hold(&mut outbox, shared).conflated, 0);
    assert_eq!(hold(&mut outbox, of("a", "2", per_second(1.0), start)).conflated, 1);
    assert_eq!(taken(&mut outbox, start), ["2", "shared"]);
}

#[test]
fn a_slot_goes_in_the_place_of_what_came_for_it_first() {
    let (mut outbox, start) = (Outbox::default(), Instant::now());
    let plain = Contract::default();
    for (topic, payload, contract) in [
        ("p", "1", plain),
        ("a", "old", per_second(1.0)),
        ("p", "2", plain),
        ("a", "new", per_second(1.0)),
        ("p", "3", plain),
    ] {
        hold(&mut outbox, of(topic, payload, contract, start));
    }
    assert_eq!(taken(&mut outbox, start), ["1", "new", "2", "3"]);
}

#[test]
fn what_is_conflated_away_is_confirmed_once() {
    let (mut outbox, start) = (Outbox::default(), Instant::now());
    for receipt in 1..=4 {
        let rendition = rendition(Bytes::from_static(b"x"), Qos::AtLeastOnce, false);
        let delivery = Delivery { rendition, receipt: Some(receipt), ..of("t", "", per_second(1.0), start) };
        hold(&mut outbox, delivery);
    }
    assert_eq!((outbox.take_confirmed(), outbox.take_confirmed()), (vec![1, 2, 3], vec![]));
    assert_eq!(outbox.purge(1), [4]);
    assert_eq!((outbox.len(), outbox.bytes(), outbox.kept()), (0, 0, 0));
}

#[test]
fn past_the_bound_a_new_topic_comes_unconflated_and_keeps_its_order() {
    let (mut outbox, start) = (Outbox::default(), Instant::now());
    let bound = Bound { topics: 2, ..at_most(100) };
    let offer = |outbox: &mut Outbox, topic, payload, millis| {
        let delivery = of(topic, payload, per_second(10.0), after(start, millis));
        outbox.offer(delivery, Excess::Hold, &bound).conflated
    };
    let seen = ["a", "b", "c", "a", "b", "c"].map(|topic| offer(&mut outbox, topic, topic, 0));
    assert_eq!(seen, [0, 0, 0, 1, 1, 0]);
    assert_eq!(taken(&mut outbox, start), ["a", "b", "c", "c"]);
    assert_eq!(offer(&mut outbox, "c", "1", 50), 0);
    assert_eq!(offer(&mut outbox, "c", "2", 100), 0, "there is room again, and it stays behind what came before");
    assert_eq!(taken(&mut outbox, after(start, 100)), ["1", "2"]);
}

#[test]
fn subscribing_again_changes_how_often_and_what_is_older_never_comes_later() {
    let (mut outbox, start) = (Outbox::default(), Instant::now());
    let mut other = of("a", "for another", per_second(1.0), start);
    other.readers.push(Reader { id: 2, sid: None, is_shared: false });
    hold(&mut outbox, of("a", "1", per_second(1.0), start));
    taken(&mut outbox, start);
    hold(&mut outbox, of("a", "2", per_second(1.0), after(start, 100)));
    let offer = hold(&mut outbox, of("a", "3", Contract::default(), after(start, 200)));
    assert_eq!((offer.conflated, offer.has_news), (1, true));
    assert_eq!(taken(&mut outbox, after(start, 200)), ["3"]);
    assert_eq!((outbox.len(), outbox.kept()), (0, 0));
    hold(&mut outbox, other);
    let offer = hold(&mut outbox, of("a", "5", per_second(5.0), after(start, 300)));
    assert_eq!(offer.conflated, 0, "the other subscription has it still to come");
    let ids = |delivery: &Delivery| delivery.readers.iter().map(|reader| reader.id).collect::<Vec<_>>();
    let all = outbox.take(usize::MAX, after(start, 300));
    assert_eq!(all.iter().map(ids).collect::<Vec<_>>(), [vec![2], vec![1]]);
    hold(&mut outbox, of("b", "in a batch", in_batches(9, 1000), start));
    hold(&mut outbox, of("b", "alone", Contract::default(), start));
    assert_eq!(taken(&mut outbox, start), ["in a batch", "alone"]);
}

#[test]
fn whoever_shared_a_value_that_was_conflated_away_gets_what_took_its_place() {
    let (mut outbox, start) = (Outbox::default(), Instant::now());
    let mut both = of("a", "live", per_second(1.0), start);
    both.readers.push(Reader { id: 2, sid: Some(2), is_shared: false });
    hold(&mut outbox, both);
    hold(&mut outbox, of("a", "stored", per_second(1.0), start));
    let all = outbox.take(usize::MAX, start);
    assert_eq!((all.len(), all[0].readers.len()), (1, 2));
}

#[test]
fn what_follows_a_stream_is_taken_as_its_newest_and_counted_as_that() {
    let start = Instant::now();
    for batch in [None, in_batches(9, 100).batch] {
        let contract = Contract { batch, ..per_second(1.0) };
        let new = |payload| of("t", payload, contract, start);
        let newest = |payload| Newest { rendition: new(payload).rendition, msgid: None, dup: false };
        let mut outbox = Outbox::default();
        let seen = |outbox: &mut Outbox, millis| -> Vec<(Bytes, u32)> {
            let mut taken = outbox.take(usize::MAX, after(start, millis));
            // Where it joins a batch it waits for that.
            taken.extend(outbox.take(usize::MAX, after(start, millis + 100)));
            assert_eq!((outbox.len(), outbox.bytes()), (0, 0));
            taken.into_iter().map(|delivery| (delivery.rendition.message.payload.clone(), delivery.skipped)).collect()
        };
        let follow = |outbox: &mut Outbox, latest: &Arc<Latest>, payload| {
            outbox.offer_from(Some((latest, 0)), new(payload), Excess::Hold, &at_most(10))
        };

        let latest = Latest::new(newest("1"));
        follow(&mut outbox, &latest, "1");
        for payload in ["22", "333"] {
            assert_eq!(latest.put(newest(payload)).map(|followers| followers.count()), Some(1));
        }
        assert_eq!(seen(&mut outbox, 0), [(Bytes::from("333"), 2)]);
        assert!(latest.is_unfollowed());

        let latest = Latest::new(newest("4"));
        follow(&mut outbox, &latest, "4");
        assert!(latest.put(newest("5")).is_some());
        assert_eq!(hold(&mut outbox, new("6")).conflated, 1, "4 was counted when 5 came");
        assert!(latest.is_unfollowed(), "what came another way is newer");
        assert_eq!(seen(&mut outbox, 2000), [(Bytes::from("6"), 2)]);

        follow(&mut outbox, &latest, "7");
        assert!(!latest.is_unfollowed());
        assert_eq!(outbox.drop_excess(&Bound { bytes: 0, ..at_most(10) }), 1);
        assert!(latest.is_unfollowed() && outbox.is_empty(), "it was dropped, and what comes next is offered");
        follow(&mut outbox, &latest, "8");
        outbox.purge(1);
        assert!(latest.is_unfollowed() && outbox.is_empty(), "its subscription has ended");
    }
}

#[test]
fn a_batch_goes_when_it_is_full_or_its_first_has_waited() {
    let (mut outbox, start) = (Outbox::default(), Instant::now());
    let three = in_batches(3, 100);
    assert_eq!(hold(&mut outbox, of("a", "1", three, start)).due, Some(after(start, 100)));
    assert_eq!(hold(&mut outbox, of("b", "2", three, after(start, 50))).due, Some(after(start, 100)));
    assert_eq!((taken(&mut outbox, after(start, 99)), outbox.len()), (vec![], 2));
    assert_eq!(taken(&mut outbox, after(start, 100)), ["1", "2"]);
    for payload in ["3", "4"] {
        assert!(!hold(&mut outbox, of("a", payload, three, start)).has_news);
    }
    assert!(hold(&mut outbox, of("a", "5", three, start)).has_news);
    hold(&mut outbox, of("a", "6", three, after(start, 10)));
    assert_eq!(taken(&mut outbox, after(start, 10)), ["3", "4", "5"]);
    assert_eq!(outbox.next_due(), Some(after(start, 110)));
    outbox.relieve(&at_most(1));
    assert_eq!(taken(&mut outbox, after(start, 10)), ["6"]);
    assert_eq!((outbox.len(), outbox.bytes(), outbox.next_due()), (0, 0, None));
}

#[test]
fn high_priority_waits_for_no_batch_and_a_delay_of_0_for_nobody() {
    let (mut outbox, start) = (Outbox::default(), Instant::now());
    let high = Contract { priority: Priority::High, ..in_batches(3, 100) };
    assert!(hold(&mut outbox, of("a", "1", high, start)).has_news);
    hold(&mut outbox, of("b", "2", in_batches(3, 0), start));
    hold(&mut outbox, of("c", "3", Contract { batch: high.batch, ..per_second(1.0) }, start));
    hold(&mut outbox, of("d", "4", Contract { batch: in_batches(3, 0).batch, ..per_second(1.0) }, start));
    assert_eq!(taken(&mut outbox, start), ["1", "2", "4"]);
    assert_eq!(taken(&mut outbox, after(start, 100)), ["3"]);
}

#[test]
fn before_the_end_nothing_waits_for_its_time() {
    let (mut outbox, start) = (Outbox::default(), Instant::now());
    for payload in ["1", "2"] {
        hold(&mut outbox, of("a", payload, per_second(1.0), start));
        outbox.take(usize::MAX, start);
    }
    hold(&mut outbox, of("b", "3", in_batches(3, 100), start));
    outbox.release_all();
    assert_eq!(taken(&mut outbox, start), ["2", "3"]);
    assert!(outbox.is_empty());
}

#[test]
fn what_waits_for_its_time_is_dropped_and_counted_like_all_else() {
    let (mut outbox, start) = (Outbox::default(), Instant::now());
    let delta = |contract| Contract { delta: true, ..contract };
    let size = of("a", "1", Contract::default(), start).size();
    let all = [
        of("a", "slot", delta(per_second(1.0)), start),
        of("b", "batch", in_batches(9, 100), start),
        of("c", "lane", Contract::default(), start),
        of("d", "slot 2", per_second(1.0), start),
    ];
    for delivery in all {
        hold(&mut outbox, delivery);
    }
    assert!(outbox.len() == 4 && outbox.bytes() >= 4 * size);
    assert!(!outbox.is_full(&at_most(3)), "what waits in slots takes nobody's place");
    assert!(outbox.is_full(&at_most(2)));
    let left = |count: usize| Bound { bytes: count * (size + 10), ..at_most(10) };
    assert!(outbox.has_room(Excess::Drop, &left(0)));
    assert_eq!(outbox.drop_excess(&left(2)), 2);
    assert_eq!(
        outbox.iter().map(|delivery| &delivery.rendition.message.payload).collect::<Vec<_>>(),
        ["slot", "slot 2"]
    );
    assert_eq!(outbox.drop_excess(&left(0)), 2);
    assert_eq!((outbox.len(), outbox.bytes(), outbox.take_dropped()), (0, 0, 4));
    assert!(!outbox.has_room(Excess::Drop, &left(0)) || outbox.is_empty());
    let mut gaps = Gaps::default();
    gaps.add(Topic::parse("a").expect("a topic"), delta(per_second(1.0)), 10);
    assert_eq!(outbox.take_gaps(), gaps);
}

#[test]
fn too_many_in_line_cost_no_value_that_waits_for_its_time() {
    let (mut outbox, start) = (Outbox::default(), Instant::now());
    let low = Contract { priority: Priority::Low, ..per_second(1.0) };
    hold(&mut outbox, of("a", "slot", low, start));
    for payload in ["1", "2", "3"] {
        hold(&mut outbox, of("b", payload, Contract::default(), start));
    }
    assert_eq!(outbox.drop_excess(&at_most(1)), 2);
    assert_eq!(taken(&mut outbox, start), ["3", "slot"]);
    hold(&mut outbox, of("a", "slot", low, start));
    hold(&mut outbox, delivery("sure", Qos::AtLeastOnce));
    assert!(!outbox.has_room(Excess::Drop, &at_most(1)), "nothing in line can be dropped");
}

#[test]
fn values_that_fill_the_memory_go_before_their_time_and_hold_nothing_up() {
    let (mut outbox, start) = (Outbox::default(), Instant::now());
    for round in 0..2 {
        for topic in ["a", "b", "c"] {
            hold(&mut outbox, of(topic, topic, per_second(0.001), after(start, round)));
        }
        if round == 0 {
            assert_eq!(taken(&mut outbox, start), ["a", "b", "c"]);
        }
    }
    let bound = Bound { bytes: outbox.bytes() - 10, ..at_most(10) };
    outbox.relieve(&at_most(10));
    assert_eq!(taken(&mut outbox, after(start, 2)), Vec::<Bytes>::new(), "while there is room they wait");
    outbox.relieve(&bound);
    assert_eq!(taken(&mut outbox, after(start, 2)), ["a"]);
    assert!(!outbox.is_full(&bound));
}

#[test]
fn a_waiting_value_holds_no_more_memory_than_is_counted() {
    let (mut outbox, start) = (Outbox::default(), Instant::now());
    let read = Bytes::from(vec![b'x'; 64 * 1024]);
    for contract in [per_second(1.0), in_batches(9, 100)] {
        for topic in ["a", "a", "b"] {
            let mut small = of(topic, "", contract, start);
            let message = Message { payload: read.slice(..10), ..small.rendition.message.clone() };
            small.rendition = Arc::new(Rendition::new(message, Format::Text, 0, start));
            small.readers[0].id = if contract.batch.is_some() { 2 } else { 1 };
            hold(&mut outbox, small);
        }
    }
    assert!(!read.is_unique());
    outbox.detach();
    assert!(read.is_unique());
}

mod chance {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Offer { topic: usize, contract: usize, sure: bool },
        Take(usize),
        Pass(u64),
        Drop(usize),
        Purge(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        prop::collection::vec(
            prop_oneof![
                8 => (0..3usize, 0..6usize, any::<bool>()).prop_map(|(topic, contract, sure)| Step::Offer { topic, contract, sure }),
                3 => prop_oneof![Just(1), Just(2000), Just(usize::MAX)].prop_map(Step::Take),
                2 => (0..700u64).prop_map(Step::Pass),
                1 => (0..4usize).prop_map(Step::Drop),
                1 => (0..6u32).prop_map(Step::Purge),
            ],
            0..80,
        )
    }

    proptest! {
        #[test]
        fn the_books_are_right_order_holds_and_nothing_vanishes(steps in steps()) {
            let start = Instant::now();
            let contracts = [
                Contract::default(),
                per_second(2.0),
                in_batches(3, 200),
                Contract { batch: in_batches(2, 100).batch, ..per_second(4.0) },
                Contract { priority: Priority::Low, ..per_second(2.0) },
                Contract { priority: Priority::High, ..in_batches(3, 200) },
            ];
            let (mut outbox, mut now, mut number) = (Outbox::default(), start, 0u64);
            let (mut offered, mut conflated, mut dropped, mut seen, mut purged) = (0usize, 0, 0, Vec::new(), 0);
            let (mut sure, mut confirmed) = (Vec::new(), Vec::new());
            let (mut last_taken, mut taken_at) = (HashMap::new(), HashMap::new());
            for step in steps.into_iter().chain([Step::Pass(60_000), Step::Take(usize::MAX), Step::Pass(60_000), Step::Take(usize::MAX)]) {
                match step {
                    Step::Offer { topic, contract, sure: is_sure } => {
                        number += 1;
                        let mut delivery = of(["a", "b", "c"][topic], &number.to_string(), contracts[contract], now);
                        delivery.readers[0].id = contract as u32;
                        if contract == 1 && number % 2 == 0 {
                            delivery.readers.push(Reader { id: 7, sid: None, is_shared: false });
                        }
                        if is_sure {
                            let message = Message { qos: Qos::AtLeastOnce, ..delivery.rendition.message.clone() };
                            delivery.rendition = Arc::new(Rendition::new(message, Format::Text, 0, now));
                            delivery.receipt = Some(number);
                            sure.push(number);
                        }
                        offered += 1;
                        let offer = outbox.offer(delivery, Excess::Hold, &Bound { topics: 20, ..at_most(10) });
                        conflated += offer.conflated;
                        confirmed.extend(outbox.take_confirmed());
                    }
                    Step::Take(bytes) => {
                        for delivery in outbox.take(bytes, now) {
                            let payload = &delivery.rendition.message.payload;
                            let number: u64 = std::str::from_utf8(payload).unwrap().parse().unwrap();
                            let key = (delivery.rendition.message.topic.clone(), delivery.contract);
                            if let Some(before) = last_taken.insert(key.clone(), number) {
                                prop_assert!(before < number, "{before} before {number}");
                            }
                            let is_alone = delivery.contract.batch.is_none();
                            if let Some(rate) = delivery.contract.max_rate.filter(|_| is_alone)
                                && let Some(at) = taken_at.insert(key, now)
                            {
                                prop_assert!(now - at >= rate.interval(), "{number} came too early");
                            }
                            confirmed.extend(delivery.receipt);
                            seen.push(number);
                        }
                    }
                    Step::Pass(millis) => now = after(now, millis),
                    Step::Drop(count) => dropped += outbox.drop_excess(&Bound { bytes: count * 1000, ..at_most(count) }),
                    Step::Purge(id) => {
                        let before = outbox.len();
                        confirmed.extend(outbox.purge(id));
                        purged += before - outbox.len();
                        // A subscription that is made anew begins anew.
                        taken_at.clear();
                    }
                }
                prop_assert_eq!(outbox.bytes(), outbox.iter().map(Delivery::size).sum::<usize>());
                prop_assert_eq!(outbox.len(), outbox.iter().count());
                prop_assert_eq!(offered, seen.len() + conflated + dropped + purged + outbox.len());
                let is_live = |delivery: &Delivery| delivery.kind() == Some(Kind::Live);
                prop_assert_eq!(outbox.holds(Kind::Live, true), outbox.iter().any(is_live));
            }
            prop_assert!(outbox.is_empty());
            confirmed.sort_unstable();
            prop_assert_eq!(confirmed, sure, "each receipt comes back once");
        }
    }
}
