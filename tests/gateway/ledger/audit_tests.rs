//! The audit finds what is planted in a history, and nothing in one that is right.

use super::super::history::{Answer, Attempt, Client, History, Key, Lane, Seen, Time};
use super::{Audit, Kind, is_settled};

const LANE: Lane = Lane { publisher: 0, topic: 0, qos: 2 };

fn s(seconds: u64) -> Time {
    Time::from_secs(seconds)
}

fn key(number: u32) -> Key {
    Key { lane: LANE, number }
}

fn at_qos(qos: u8, number: u32) -> Key {
    Key { lane: Lane { qos, ..LANE }, number }
}

fn acked(sent: u64) -> Vec<Attempt> {
    vec![Attempt { sent: s(sent), answer: Answer::Acked(s(sent)) }]
}

/// A publisher, and a reader that was there from the beginning and acks.
fn history() -> History {
    let opened = vec![(s(0), Seen::Opened { session_present: false })];
    let publisher = Client { name: "publisher".to_owned(), seen: opened.clone(), ..Client::default() };
    let reader = Client {
        name: "reader".to_owned(),
        subscriptions: vec![("house/#".to_owned(), 2)],
        is_kept: true,
        is_manual: true,
        seen: opened,
    };
    let topics = vec!["house/attic".to_owned()];
    History { topics, clients: vec![publisher, reader], end: s(1000), ..History::default() }
}

impl History {
    fn publishes(mut self, key: Key, attempts: Vec<Attempt>) -> History {
        self.published.insert(key, attempts);
        self
    }

    fn sees(mut self, at: u64, seen: Seen) -> History {
        self.clients[1].seen.push((s(at), seen));
        self
    }

    fn gets(self, at: u64, key: Key, dup: bool) -> History {
        let msgid = format!("{key} {dup}");
        self.sees(at, Seen::Delivered { key, qos: key.lane.qos, dup, msgid })
    }

    fn handles(self, at: u64, key: Key) -> History {
        self.gets(at, key, false).sees(at, Seen::Handled(key))
    }

    fn ends(self, at: u64) -> History {
        self.sees(at, Seen::Ended(None))
    }

    fn opens(self, at: u64, session_present: bool) -> History {
        self.sees(at, Seen::Opened { session_present })
    }

    fn reader(mut self, is_kept: bool, is_manual: bool) -> History {
        (self.clients[1].is_kept, self.clients[1].is_manual) = (is_kept, is_manual);
        self
    }

    fn kinds(&self) -> Vec<Kind> {
        Audit::of(self).findings.into_iter().map(|finding| finding.kind).collect()
    }
}

#[test]
fn a_history_that_is_right_has_no_findings() {
    let history = (1..5).fold(history(), |history, number| {
        history.publishes(key(number), acked(number.into())).handles(number.into(), key(number))
    });
    assert_eq!(history.kinds(), []);
    assert_eq!(Audit::of(&history).accounted, 4);
    assert!(is_settled(&history));
}

#[test]
fn a_message_that_was_acknowledged_and_never_came_is_lost() {
    let three = |missing| {
        [1, 2, 3].into_iter().fold(history(), |history, number| {
            let history = history.publishes(key(number), acked(number.into()));
            if number == missing { history } else { history.handles(number.into(), key(number)) }
        })
    };
    for missing in 1..=3 {
        assert_eq!(three(missing).kinds(), [Kind::Lost], "{missing}");
        assert_eq!(three(missing).ends(9).opens(10, true).kinds(), [Kind::Lost], "{missing}, whatever breaks");
    }
    assert!(!is_settled(&three(3)));
}

#[test]
fn a_message_that_came_and_was_never_handled_is_lost() {
    assert_eq!(history().publishes(key(1), acked(1)).gets(1, key(1), false).kinds(), [Kind::Lost]);
}

#[test]
fn what_was_published_before_the_subscription_or_never_acknowledged_may_be_missing() {
    assert_eq!(history().publishes(key(1), acked(0)).kinds(), []);
    for answer in [Answer::Ended(s(2)), Answer::Unknown(s(2)), Answer::Refused(s(2))] {
        assert_eq!(history().publishes(key(1), vec![Attempt { sent: s(1), answer }]).kinds(), [], "{answer:?}");
    }
}

#[test]
fn a_second_copy_is_a_double_unless_it_was_sent_in_two_sessions() {
    let twice =
        |attempts| history().publishes(key(1), attempts).handles(1, key(1)).ends(2).opens(3, true).handles(4, key(1));
    assert_eq!(twice(acked(1)).kinds(), [Kind::Doubled, Kind::Doubled], "it came and was handled twice");
    let again = [&[Attempt { sent: s(1), answer: Answer::Ended(s(1)) }], &acked(1)[..]].concat();
    assert_eq!(twice(again.clone()).kinds(), []);
    assert_eq!(
        twice(again).handles(5, key(1)).kinds().len(),
        3,
        "thrice for two sessions, once more on one connection"
    );
}

#[test]
fn a_redelivery_that_was_handled_again_is_a_double() {
    let again = history().publishes(key(1), acked(1)).handles(1, key(1)).ends(2).opens(3, true).gets(4, key(1), true);
    assert_eq!(again.kinds(), [], "it may come");
    assert_eq!(again.sees(4, Seen::Handled(key(1))).kinds(), [Kind::Doubled], "and is not to be taken for new");
}

#[test]
fn at_qos_1_a_second_copy_needs_a_disturbance_of_the_publisher() {
    let one = at_qos(1, 1);
    let twice = history().publishes(one, acked(1)).handles(1, one).handles(2, one);
    assert_eq!(twice.kinds(), [Kind::Doubled]);
    let mut disturbed = twice;
    disturbed.clients[0].seen.push((s(1), Seen::Down));
    assert_eq!(disturbed.kinds(), []);
}

#[test]
fn at_qos_2_nothing_comes_twice_on_a_connection_unless_the_broker_forgot_it() {
    let once = || history().publishes(key(1), acked(1)).handles(1, key(1)).gets(1, key(1), true);
    assert_eq!(once().gets(2, key(1), true).kinds(), [Kind::Doubled]);
    assert_eq!(once().sees(2, Seen::Up { session_present: true }).gets(2, key(1), true).kinds(), [Kind::Doubled]);
    assert_eq!(once().sees(2, Seen::Up { session_present: false }).gets(2, key(1), true).kinds(), []);
}

#[test]
fn at_qos_0_an_earlier_client_of_a_publisher_may_be_heard_after_a_later_one() {
    let published = |qos, is_kept, came_back| {
        let mut history = history().publishes(at_qos(qos, 1), acked(1)).publishes(at_qos(qos, 2), acked(5));
        history.clients[0].is_kept = is_kept;
        history.clients[0].seen.push((s(came_back), Seen::Opened { session_present: is_kept }));
        history.handles(6, at_qos(qos, 2)).handles(7, at_qos(qos, 1)).kinds()
    };
    assert_eq!(published(0, false, 3), []);
    assert_eq!(published(0, false, 6), [Kind::Reordered], "both are of one client");
    assert_eq!(published(0, true, 3), [Kind::Reordered], "a new connection of a client ends the one before");
    assert_eq!(published(1, false, 3), [Kind::Reordered], "the broker had taken it before");
}

#[test]
fn a_message_after_a_later_one_is_reordered_unless_it_comes_again() {
    let published = || history().publishes(key(1), acked(1)).publishes(key(2), acked(2));
    assert_eq!(published().handles(3, key(2)).handles(4, key(1)).kinds(), [Kind::Reordered]);
    let redelivered = published().handles(3, key(2)).gets(4, key(1), true).sees(4, Seen::Handled(key(1)));
    assert_eq!(redelivered.kinds(), []);
    let again =
        vec![Attempt { sent: s(1), answer: Answer::Ended(s(1)) }, Attempt { sent: s(4), answer: Answer::Acked(s(4)) }];
    let twice = |kills| {
        let history = history().publishes(at_qos(1, 1), again.clone()).publishes(at_qos(1, 2), acked(2));
        History { kills, ..history.handles(3, at_qos(1, 2)).handles(4, at_qos(1, 1)) }
    };
    assert_eq!(twice(vec![]).kinds(), [Kind::Reordered], "its first copy should have come before");
    assert_eq!(twice(vec![s(1)]).kinds(), [], "the killed broker took that, and the second came");
    let other_lane = history().publishes(key(2), acked(1)).publishes(at_qos(1, 1), acked(2));
    assert_eq!(other_lane.handles(3, key(2)).handles(4, at_qos(1, 1)).kinds(), [], "lanes are apart");
}

#[test]
fn what_nobody_published_or_was_refused_or_comes_otherwise_is_invented() {
    assert_eq!(history().handles(1, key(1)).kinds(), [Kind::Invented]);
    assert_eq!(
        history().publishes(key(1), acked(5)).handles(1, key(1)).kinds(),
        [Kind::Invented],
        "before it was sent"
    );
    let refused = vec![Attempt { sent: s(1), answer: Answer::Refused(s(1)) }];
    assert!(history().publishes(key(1), refused).handles(1, key(1)).kinds().contains(&Kind::Invented));
    let mut deaf = history().publishes(key(1), acked(1)).handles(1, key(1));
    deaf.clients[1].subscriptions = vec![("garden/#".to_owned(), 2)];
    assert_eq!(deaf.kinds(), [Kind::Invented], "not subscribed");
    let mut lower = history().publishes(key(1), acked(1)).handles(1, key(1));
    lower.clients[1].subscriptions = vec![("house/+".to_owned(), 1)];
    assert_eq!(lower.kinds(), [Kind::Invented], "at a higher qos than was subscribed");
}

#[test]
fn a_publish_without_an_answer_is_found_and_a_late_answer_too() {
    for answer in [Answer::None, Answer::Acked(s(60)), Answer::Unknown(s(60))] {
        let history = history().publishes(key(1), vec![Attempt { sent: s(1), answer }]).handles(1, key(1));
        assert_eq!(history.kinds(), [Kind::Unanswered], "{answer:?}");
    }
    let ended = vec![Attempt { sent: s(1), answer: Answer::Ended(s(60)) }];
    assert_eq!(history().publishes(key(1), ended).kinds(), [], "its session ended");
}

#[test]
fn a_kept_session_that_is_new_again_was_forgotten_unless_the_broker_was_killed() {
    let mut history = history().ends(1).opens(2, false);
    assert_eq!(history.kinds(), [Kind::Forgotten]);
    history.kills = vec![s(1)];
    assert_eq!(history.kinds(), []);
}

#[test]
fn what_was_confirmed_as_written_is_lost_with_its_connection_and_only_so() {
    let auto = || history().reader(true, false).publishes(key(1), acked(3)).publishes(key(2), acked(5));
    assert_eq!(auto().handles(6, key(2)).kinds(), [Kind::Lost], "the connection held");
    assert_eq!(auto().ends(4).opens(5, true).handles(6, key(2)).kinds(), [], "it was on the wire");
    assert_eq!(auto().handles(6, key(2)).ends(7).kinds(), [Kind::Lost], "a later one had come");
    let late = history().reader(true, false).ends(1).opens(2, true).publishes(key(1), acked(20));
    assert_eq!(late.kinds(), [Kind::Lost], "the broken connection was long gone");
}

#[test]
fn a_clean_session_is_owed_what_came_while_it_was_whole() {
    let clean = || history().reader(false, true).publishes(key(1), acked(3));
    assert_eq!(clean().kinds(), [Kind::Lost]);
    assert_eq!(clean().ends(20).kinds(), [], "it may have been held back until the end");
    assert_eq!(
        clean().publishes(key(2), acked(3)).handles(3, key(2)).ends(4).kinds(),
        [Kind::Lost],
        "a later one came"
    );
    assert_eq!(clean().ends(2).opens(4, false).kinds(), [], "it was away");
    let down = |present| clean().sees(2, Seen::Down).sees(4, Seen::Up { session_present: present });
    assert_eq!(down(true).kinds(), [Kind::Lost], "the broker kept it meanwhile");
    assert_eq!(down(false).kinds(), [], "the broker had nothing to keep");
    let mute = history().reader(false, true).sees(2, Seen::Down).sees(3, Seen::Up { session_present: false });
    assert_eq!(mute.publishes(key(1), acked(5)).kinds(), [Kind::Lost], "what is told as restored is in force");
}

#[test]
fn qos_0_is_lost_only_over_broken_links_or_where_a_drop_was_told() {
    let zero = at_qos(0, 1);
    let missing = || history().publishes(zero, acked(3));
    assert_eq!(missing().kinds(), [Kind::Lost]);
    assert_eq!(missing().sees(4, Seen::Dropped).kinds(), []);
    assert_eq!(missing().sees(2, Seen::Dropped).kinds(), [Kind::Lost], "told before");
    assert_eq!(missing().sees(2, Seen::Down).sees(4, Seen::Up { session_present: true }).kinds(), []);
    let mut publisher = missing();
    publisher.clients[0].seen.push((s(4), Seen::Down));
    assert_eq!(publisher.kinds(), []);
}

#[test]
fn a_killed_broker_takes_what_was_under_way_and_nothing_else() {
    let killed = |seen: fn(History) -> History| {
        let mut history = seen(history().publishes(key(1), acked(3)).publishes(key(2), acked(8)));
        history.kills = vec![s(4)];
        let audit = Audit::of(&history);
        (audit.findings.len(), audit.lost_with_the_broker)
    };
    let back = |history: History| history.sees(5, Seen::Up { session_present: false });
    assert_eq!(killed(|history| history.sees(5, Seen::Up { session_present: false }).handles(9, key(2))), (0, 1));
    assert_eq!(killed(|history| history.sees(5, Seen::Up { session_present: false })), (1, 1), "the second came after");
    assert_eq!(killed(|history| history.sees(10, Seen::Up { session_present: false })), (0, 2), "nobody was there");
    let late = |history: History| {
        let history = history.sees(5, Seen::Up { session_present: true }).sees(6, Seen::Down);
        history.sees(9, Seen::Up { session_present: false })
    };
    assert_eq!(killed(late), (0, 2), "told late of the link before the kill");
    let mut passed = back(history().publishes(key(1), acked(1)).publishes(key(2), acked(2)).handles(3, key(2)));
    passed.kills = vec![s(4)];
    assert_eq!(passed.kinds(), [Kind::Lost], "a later one had come before the broker was killed");
}

#[test]
fn a_broker_that_forgot_the_publisher_takes_what_it_had_taken_at_qos_2() {
    let missing = |key, present| {
        let mut history = history().publishes(key, acked(3));
        let link = [(s(2), Seen::Down), (s(4), Seen::Up { session_present: present })];
        history.clients[0].seen.extend(link);
        history.kinds()
    };
    assert_eq!(missing(key(1), false), []);
    assert_eq!(missing(key(1), true), [Kind::Lost]);
    assert_eq!(missing(at_qos(1, 1), false), [Kind::Lost]);
}

#[test]
fn surprises_are_findings() {
    let mut history = history();
    history.surprises.push("a frame that nobody knows".to_owned());
    assert_eq!(history.kinds(), [Kind::Surprise]);
}
