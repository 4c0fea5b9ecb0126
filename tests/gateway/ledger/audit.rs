//! Accounts for every message of a history, and names each that is not as PROTOCOL promises. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use super::history::{Answer, Attempt, Client, History, Key, Lane, Seen, Time};

/// A broken connection has been noticed by then, on whichever side, and what is on one that holds has arrived: four seconds of silence,
/// a stall of four more just before they are up, and four again.
pub const NOTICED: Duration = Duration::from_secs(13);
/// An older session of the same client may take deliveries so long after the newer one has opened: its gateway comes back to the
/// broker and gives way only when it has been cut off twice.
pub const FIGHT: Duration = Duration::from_secs(8);
/// A link that came back and is lost so soon again had come back earlier, and its client was told late.
const LATE: Duration = Duration::from_secs(1);
/// A publish is answered by then in a session that goes on.
pub const ANSWERED: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It was acknowledged, and a reader that should have it does not.
    Lost,
    /// It came, or was handled, more often than it was published.
    Doubled,
    /// It came after a later one.
    Reordered,
    /// It came and was not published, or not so.
    Invented,
    /// A publish has no answer, and its session goes on.
    Unanswered,
    /// The broker kept the session, and the client was told otherwise.
    Forgotten,
    /// What nobody should ever see.
    Surprise,
}

#[derive(Debug, PartialEq)]
pub struct Finding {
    pub kind: Kind,
    pub what: String,
}

/// What was found, and what is excused.
#[derive(Debug, Default)]
pub struct Audit {
    pub findings: Vec<Finding>,
    /// Deliveries that were due and came.
    pub accounted: usize,
    /// Deliveries of qos 1 and 2 that were confirmed when they were written to a connection that then broke.
    pub lost_on_the_wire: usize,
    /// Deliveries of qos 2 that the broker had taken when it forgot the publisher's session: acknowledged, and not sent again.
    pub lost_with_the_publisher: usize,
    /// Deliveries of qos 1 and 2 that the broker took with it when it was killed.
    pub lost_with_the_broker: usize,
    /// Those of them that the control lost too.
    pub lost_by_the_control_too: usize,
}

impl Audit {
    pub fn of(history: &History) -> Audit {
        let mut audit = Audit::default();
        for surprise in &history.surprises {
            audit.find(Kind::Surprise, surprise.clone());
        }
        for (key, attempts) in &history.published {
            audit.answers(*key, attempts, history);
        }
        for client in &history.clients {
            audit.client(client, history);
        }
        audit
    }

    fn find(&mut self, kind: Kind, what: String) {
        self.findings.push(Finding { kind, what });
    }

    fn answers(&mut self, key: Key, attempts: &[Attempt], history: &History) {
        for Attempt { sent, answer } in attempts {
            match answer {
                Answer::None => self.find(Kind::Unanswered, format!("{key}, sent at {sent:?}")),
                Answer::Acked(at) | Answer::Refused(at) | Answer::Unknown(at) if *at > *sent + ANSWERED => {
                    self.find(Kind::Unanswered, format!("{key}, sent at {sent:?}, until {at:?}"));
                }
                Answer::Acked(_) | Answer::Refused(_) | Answer::Unknown(_) | Answer::Ended(_) => {}
            }
        }
        debug_assert!(usize::from(key.lane.topic) < history.topics.len());
    }

    fn client(&mut self, client: &Client, history: &History) {
        let view = View::of(client, history);
        self.inventions(&view);
        self.doubles(&view);
        self.order(&view);
        self.losses(&view);
        let mut opened = client.seen.iter().filter_map(|(at, seen)| match seen {
            Seen::Opened { session_present } => Some((at, session_present)),
            _ => None,
        });
        let first = opened.next();
        if client.is_kept && history.kills.is_empty() && first.is_some() {
            for (at, _) in opened.filter(|(_, present)| !**present) {
                self.find(Kind::Forgotten, format!("the session of {} at {at:?}", client.name));
            }
        }
    }

    fn inventions(&mut self, view: &View) {
        for arrival in &view.arrivals {
            let Arrival { key, qos, at, .. } = arrival;
            let published = view.history.published.get(key).filter(|attempts| attempts[0].sent <= *at);
            let is_refused =
                |attempts: &Vec<Attempt>| attempts.iter().all(|attempt| matches!(attempt.answer, Answer::Refused(_)));
            let what = match published {
                None => "was not published",
                Some(attempts) if is_refused(attempts) => "was refused",
                Some(_) if view.qos_of(key.lane) != Some(*qos) => "was not subscribed, or not at this qos",
                Some(_) => continue,
            };
            self.find(Kind::Invented, format!("{key} came to {} at qos {qos} at {at:?} and {what}", view.client.name));
        }
    }

    fn doubles(&mut self, view: &View) {
        for (key, attempts) in &view.history.published {
            let Some(qos) = view.qos_of(key.lane) else { continue };
            // A broker that was killed may have forgotten what it had sent.
            let is_excused = view.history.kills.iter().any(|kill| *kill >= attempts[0].sent);
            if is_excused {
                continue;
            }
            let most = view.copies(*key, attempts);
            let new = view.arrivals_of(*key).filter(|arrival| !arrival.dup).count();
            if most.is_some_and(|most| new > most) {
                self.find(Kind::Doubled, format!("{key} came to {} as new {new} times", view.client.name));
            }
            let handled = view.handled.get(key).map_or(0, Vec::len);
            if qos == 2 && view.client.is_manual && most.is_some_and(|most| handled > most) {
                self.find(Kind::Doubled, format!("{key} was handled by {} {handled} times", view.client.name));
            }
        }
        // What is on a connection is not sent again on it while the broker has the session.
        let mut seen = HashSet::new();
        for (at, event) in &view.client.seen {
            match event {
                Seen::Delivered { key, qos: 2, msgid, .. } if !seen.insert(msgid) => {
                    self.find(Kind::Doubled, format!("{key} came to {} on one connection at {at:?}", view.client.name));
                }
                Seen::Opened { .. } | Seen::Up { session_present: false } => seen.clear(),
                _ => {}
            }
        }
    }

    fn order(&mut self, view: &View) {
        let mut last: HashMap<Lane, u32> = HashMap::new();
        let mut known = HashSet::new();
        for Arrival { key, dup, at, .. } in &view.arrivals {
            let Some(attempts) = view.history.published.get(key) else { continue };
            // A publish that was never answered may have waited anywhere on its way.
            if acked(attempts).is_none() {
                continue;
            }
            let last = last.entry(key.lane).or_insert(0);
            let is_first = known.insert(*key) && !dup && view.hears_first(*key, attempts);
            let is_behind = is_first && key.number < *last;
            if is_behind && !view.is_of_an_earlier_client(*key, attempts, *last) {
                self.find(Kind::Reordered, format!("{key} came to {} at {at:?} after {last}", view.client.name));
            }
            *last = key.number.max(*last);
        }
    }

    fn losses(&mut self, view: &View) {
        let control = view.history.control.as_ref().map(|control| View::of(control, view.history));
        for (key, attempts) in &view.history.published {
            let (Some(qos), Some(acked)) = (view.qos_of(key.lane), acked(attempts)) else { continue };
            if view.handled.contains_key(key) {
                self.accounted += 1;
                continue;
            }
            let sent = attempts.last().map_or(acked, |attempt| attempt.sent);
            let is_due = if qos > 0 && view.client.is_kept {
                view.opened.first().is_some_and(|opened| *opened < attempts[0].sent)
            } else {
                view.is_due(*key, qos, attempts[0].sent, sent, acked)
            };
            if !is_due {
                continue;
            }
            if key.lane.qos == 2 && view.publisher(*key).is_some_and(|publisher| is_forgotten(publisher, sent, acked)) {
                self.lost_with_the_publisher += 1;
                continue;
            }
            let next = view.next_handled(*key);
            let falls_into = |(from, until): &(Time, Time)| *from < next && attempts[0].sent < *until;
            if qos > 0 && view.kills.iter().any(falls_into) {
                self.lost_with_the_broker += 1;
                if control.as_ref().is_some_and(|control| !control.handled.contains_key(key)) {
                    self.lost_by_the_control_too += 1;
                }
                continue;
            }
            if qos > 0 && view.client.is_kept && !view.client.is_manual && view.ends.iter().any(falls_into) {
                self.lost_on_the_wire += 1;
                continue;
            }
            if control.as_ref().is_some_and(|control| !control.handled.contains_key(key)) {
                self.lost_with_the_broker += 1;
                self.lost_by_the_control_too += 1;
                continue;
            }
            let came = view.arrivals_of(*key).count();
            let what =
                format!("{key}, sent at {sent:?}, acked at {acked:?}, came to {} {came} times", view.client.name);
            self.find(Kind::Lost, what);
        }
    }
}

/// When the first answer said that the broker had it.
fn acked(attempts: &[Attempt]) -> Option<Time> {
    attempts.iter().find_map(|attempt| match attempt.answer {
        Answer::Acked(at) => Some(at),
        _ => None,
    })
}

struct Arrival {
    at: Time,
    key: Key,
    qos: u8,
    dup: bool,
}

/// A client's record, looked at from several sides.
struct View<'a> {
    client: &'a Client,
    history: &'a History,
    arrivals: Vec<Arrival>,
    by_key: HashMap<Key, Vec<usize>>,
    handled: HashMap<Key, Vec<Time>>,
    /// For each lane, its messages that were handled, and when first.
    lanes: HashMap<Lane, BTreeMap<u32, Time>>,
    opened: Vec<Time>,
    /// From the end of a session until nobody but the next one can get deliveries.
    ends: Vec<(Time, Time)>,
    /// From each kill of the broker until the client's subscriptions were back.
    kills: Vec<(Time, Time)>,
    /// Times in which the session's link was whole, as far as the client saw.
    whole: Vec<(Time, Time)>,
    /// The same, but links that came back with the broker's session do not interrupt them.
    served: Vec<(Time, Time)>,
    dropped: Vec<Time>,
}

impl<'a> View<'a> {
    fn of(client: &'a Client, history: &'a History) -> View<'a> {
        let mut view = View {
            client,
            history,
            arrivals: Vec::new(),
            by_key: HashMap::new(),
            handled: HashMap::new(),
            lanes: HashMap::new(),
            opened: Vec::new(),
            ends: Vec::new(),
            kills: Vec::new(),
            whole: intervals(client, history.end, false),
            served: intervals(client, history.end, true),
            dropped: Vec::new(),
        };
        for (at, seen) in &client.seen {
            let at = *at;
            match seen {
                Seen::Delivered { key, qos, dup, .. } => {
                    view.by_key.entry(*key).or_default().push(view.arrivals.len());
                    view.arrivals.push(Arrival { at, key: *key, qos: *qos, dup: *dup });
                }
                Seen::Handled(key) => {
                    view.handled.entry(*key).or_default().push(at);
                    view.lanes.entry(key.lane).or_default().entry(key.number).or_insert(at);
                }
                Seen::Opened { .. } => view.opened.push(at),
                Seen::Ended(_) => view.ends.push((at, Time::MAX)),
                Seen::Dropped => view.dropped.push(at),
                Seen::Down | Seen::Up { .. } => {}
            }
        }
        for (ended, until) in &mut view.ends {
            let next = view.opened.iter().find(|opened| *opened > ended);
            *until = next.map_or(Time::MAX, |next| *next + FIGHT);
        }
        let restored = |kill: &Time| {
            let after = client.seen.partition_point(|(at, _)| at <= kill);
            let back = client.seen[after..].iter().find(|(at, seen)| {
                matches!(seen, Seen::Opened { .. } | Seen::Up { .. }) && !is_down_within(client, *at, LATE)
            });
            (*kill, back.map_or(Time::MAX, |(at, _)| *at))
        };
        view.kills = history.kills.iter().map(restored).collect();
        view
    }

    fn qos_of(&self, lane: Lane) -> Option<u8> {
        self.client.qos_of(self.history.topics.get(usize::from(lane.topic))?, lane.qos)
    }

    fn arrivals_of(&self, key: Key) -> impl Iterator<Item = &Arrival> {
        self.by_key.get(&key).into_iter().flatten().map(|index| &self.arrivals[*index])
    }

    /// How often a message may come as new: at qos 1 nobody can say once its way to the broker was disturbed.
    fn copies(&self, key: Key, attempts: &[Attempt]) -> Option<usize> {
        let published = attempts.iter().filter(|attempt| !matches!(attempt.answer, Answer::Refused(_))).count();
        let is_disturbed = || match attempts {
            [Attempt { sent, answer: Answer::Acked(at) }] => {
                self.publisher(key).is_some_and(|publisher| is_disturbed(publisher, *sent, *at))
            }
            _ => true,
        };
        if key.lane.qos == 1 && is_disturbed() { None } else { Some(published) }
    }

    /// What comes first is what was published first, and no later copy.
    fn hears_first(&self, key: Key, attempts: &[Attempt]) -> bool {
        let is_owed_all = self.client.is_kept && self.client.is_manual && self.qos_of(key.lane) > Some(0);
        let misses_nothing = is_owed_all && self.history.kills.is_empty();
        let was_there = self.opened.first().is_some_and(|opened| *opened < attempts[0].sent);
        misses_nothing && was_there || self.copies(key, attempts) == Some(1)
    }

    /// At qos 0 the ack tells that a message is on its way to the broker. What is held there while its publisher comes back, as a new
    /// client, is read beside what the new one sends.
    fn is_of_an_earlier_client(&self, key: Key, attempts: &[Attempt], later: u32) -> bool {
        let Some(publisher) = self.publisher(key).filter(|publisher| key.lane.qos == 0 && !publisher.is_kept) else {
            return false;
        };
        let later = self.history.published.get(&Key { number: later, ..key }).and_then(|attempts| attempts.first());
        let Some((earlier, later)) = attempts.first().zip(later) else { return false };
        let came_back =
            |(at, seen): &(Time, Seen)| matches!(seen, Seen::Opened { .. }) && (earlier.sent..=later.sent).contains(at);
        publisher.seen.iter().any(came_back)
    }

    fn publisher(&self, key: Key) -> Option<&Client> {
        self.history.clients.get(usize::from(key.lane.publisher))
    }

    /// When the first later message of the lane was handled: had this one been there, it would have come before.
    fn next_handled(&self, key: Key) -> Time {
        let later = self.lanes.get(&key.lane).map(|lane| lane.range(key.number + 1..).map(|(_, at)| *at));
        later.and_then(Iterator::min).unwrap_or(Time::MAX)
    }

    /// A message that nothing keeps for the client is due if all links were whole until a later one of its lane was handled.
    fn is_due(&self, key: Key, qos: u8, first_sent: Time, sent: Time, acked: Time) -> bool {
        let intervals = if qos == 0 { &self.whole } else { &self.served };
        let Some((_, end)) = intervals.iter().find(|(begin, end)| *begin < first_sent && acked < *end) else {
            return false;
        };
        // No time says that it is lost, on lines that may hold it back: a later one that came does, or the end, when all is quiet.
        let until = self.next_handled(key).min(self.history.end);
        if until > *end {
            return false;
        }
        let is_told = self.dropped.iter().any(|at| *at >= sent && *at <= until + NOTICED);
        // At qos 0 an `ack` says only that it was written to a connection.
        let is_excused = key.lane.qos == 0
            && self.publisher(key).is_none_or(|publisher| is_disturbed(publisher, sent, sent + NOTICED));
        !(qos == 0 && is_told || is_excused)
    }
}

/// The link was lost so soon again. On a slow line that is news of an earlier link, told together.
fn is_down_within(client: &Client, from: Time, time: Duration) -> bool {
    client.seen.iter().any(|(at, seen)| *seen == Seen::Down && *at >= from && *at <= from + time)
}

fn is_disturbed(client: &Client, from: Time, until: Time) -> bool {
    let range = client.seen.partition_point(|(at, _)| *at < from)..client.seen.partition_point(|(at, _)| *at <= until);
    client.seen[range].iter().any(|(_, seen)| matches!(seen, Seen::Down | Seen::Ended(_)))
}

/// The link was lost before that answer, and came back to a broker that had lost the session.
fn is_forgotten(client: &Client, sent: Time, acked: Time) -> bool {
    let mut down = Time::MAX;
    client.seen.iter().any(|(at, seen)| {
        if *seen == Seen::Down {
            down = *at;
        }
        matches!(seen, Seen::Up { session_present: false }) && down <= acked && sent <= *at
    })
}

/// From each opening of the session, or return of its link, to the next loss.
fn intervals(client: &Client, end: Time, joins: bool) -> Vec<(Time, Time)> {
    let mut intervals: Vec<(Time, Time)> = Vec::new();
    let mut since = None;
    for (at, seen) in &client.seen {
        match seen {
            Seen::Opened { .. } => since = Some(*at),
            Seen::Up { session_present: true } if joins => {
                since = intervals.pop().map(|(begin, _)| begin).or(Some(*at));
            }
            Seen::Up { .. } => since = Some(*at),
            Seen::Down | Seen::Ended(_) => intervals.extend(since.take().map(|since| (since, *at))),
            Seen::Delivered { .. } | Seen::Handled(_) | Seen::Dropped => {}
        }
    }
    intervals.extend(since.map(|since| (since, end)));
    intervals
}

/// Whether the last message of each lane that was acked has come to everybody: nothing more is under way.
pub fn is_settled(history: &History) -> bool {
    let mut last = BTreeMap::new();
    for (key, attempts) in &history.published {
        if acked(attempts).is_some() {
            last.insert(key.lane, *key);
        }
        if attempts.iter().any(|attempt| attempt.answer == Answer::None) {
            return false;
        }
    }
    history.clients.iter().chain(&history.control).all(|client| {
        let handled: BTreeSet<Key> = client
            .seen
            .iter()
            .rev()
            .filter_map(|(_, seen)| if let Seen::Handled(key) = seen { Some(*key) } else { None })
            .take(500)
            .collect();
        last.values().all(|key| {
            let is_subscribed = client.qos_of(&history.topics[usize::from(key.lane.topic)], key.lane.qos).is_some();
            !is_subscribed || handled.contains(key)
        })
    })
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
