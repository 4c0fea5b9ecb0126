//! A session that comes to need an MQTT client of its own gets one while it goes on: nothing is lost on the way, and nothing comes twice.
//!
//! Its own connection subscribes to all that it reads, and what that brings is held. When all that the shared connection had for it
//! has come too, it leaves; what both brought is dropped from what is held, and the rest comes over the new link.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use xxhash_rust::xxh3::xxh3_64;

use crate::broker::dedicated;
use crate::broker::downlink::{Downlink, Handle};
use crate::broker::link::{Command, Commands, Event, Link, Opening, Order, Queue, Ready, Renewal};
use crate::broker::signal::Raise;
use crate::broker::{COMMANDS, Setup, orders};
use crate::delivery::Delivery;
use crate::mqtt::inflight::RequestId;
use crate::mqtt::{Message, Topic};
use crate::wire::{Close, Contract, Refusal};

/// What its fences and the like are called on the new link, far from what the session calls its own.
const OWN: RequestId = RequestId::MAX;

/// What the hub keeps of a session that is moving.
#[derive(Default)]
pub struct Moving {
    /// What it asked meanwhile, for the new link.
    pub held: Queue,
    /// What came for it by the old way, in order.
    pub seen: Vec<Seen>,
    /// Its own connection is being made; until then it waits for answers that the hub owes it.
    pub has_begun: bool,
    /// Where the hub says that it has left.
    pub left: Option<oneshot::Sender<Moving>>,
    /// What it may do now.
    pub renewal: Option<Renewal>,
}

/// A session whose own connection stands.
pub struct Arrived {
    /// Whose.
    pub number: u64,
    /// Nothing if it could not be had: it stays.
    pub left: Option<oneshot::Sender<Moving>>,
}

/// Who moves, and why.
pub struct Mover {
    pub number: u64,
    /// The last of its subscriptions is the one that needs the client.
    pub opening: Opening,
    /// The `subscribe` that asked for it.
    pub request: RequestId,
    /// Where the session listens until it has moved.
    pub old: Arc<Downlink>,
}

/// A message as both ways bring it, whatever its QoS there.
pub type Seen = (Topic, u64);

/// As it is remembered.
pub fn seen(message: &Message) -> Seen {
    (message.topic.clone(), name(message))
}

fn name(message: &Message) -> u64 {
    xxh3_64(&message.payload)
}

/// Moves a session; the hub hears when its connection stands, or that it stays.
pub async fn run(setup: Arc<Setup>, mover: Mover, hub: mpsc::UnboundedSender<Arrived>) {
    let Mover { number, opening, request, old } = mover;
    let downlink = old.like(Raise::default());
    let (orders, receiver) = orders::channel(COMMANDS);
    let filters: Vec<_> = opening.subscriptions.iter().map(|subscription| subscription.filter.clone()).collect();
    let until = Instant::now() + setup.config.request_timeout;
    let link = dedicated::run(setup, opening, downlink.clone(), receiver, None);
    let driven = tokio::spawn(link);
    let handle = Handle::of(downlink.clone());
    let result = match timeout_at(until, ready(&downlink)).await {
        Ok(Ok(ready)) => match ready.subscriptions.last() {
            Some(Err(refusal)) => Err(refusal.clone()),
            Some(Ok(_)) | None => Ok(ready),
        },
        Ok(Err(refusal)) => Err(refusal),
        Err(_) => Err(Refusal::broker_unavailable()),
    };
    let ready = match result {
        Ok(ready) => ready,
        Err(refusal) => {
            old.tell(Event::Subscribed(request, Err(refusal)));
            let _ = hub.send(Arrived { number, left: None });
            handle.end(Close::ByClient);
            drop(orders);
            let _ = driven.await;
            return;
        }
    };
    let (left, has_left) = oneshot::channel();
    let _ = hub.send(Arrived { number, left: Some(left) });
    let Ok(Moving { held, seen, renewal, .. }) = has_left.await else {
        // The session has ended meanwhile.
        handle.end(old.ended_by().unwrap_or(Close::Fault));
        drop(orders);
        let _ = driven.await;
        return;
    };
    // All that was published before it left has come by both ways once this is answered.
    let _ = orders.send(order(Command::Fence(OWN), None)).await;
    let _ = timeout_at(until, fenced(&downlink)).await;
    let mut left_out = downlink.look(|outbox| repeated(outbox.iter(), &seen));
    downlink.retain(|delivery| {
        let key = (delivery.rendition.message.topic.clone(), delivery.contract);
        left_out.get_mut(&key).and_then(|count| count.checked_sub(1).map(|less| *count = less)).is_none()
    });
    let mut results = filters.into_iter().zip(ready.subscriptions);
    let asked = results.next_back().map(|(_, result)| Event::Subscribed(request, result));
    let lost = results.filter_map(|(filter, result)| Some(Event::SubscriptionLost(filter, result.err()?)));
    let last = lost.chain(asked).collect();
    for (made, command) in held {
        // Answered where the session listens as long as it waits for answers.
        let _ = orders.send(Order { made, command, from: Some(old.clone()) }).await;
    }
    if let Some(renewal) = renewal {
        downlink.renew(renewal);
    }
    old.move_to(Link { commands: Commands::Own(orders), downlink }, last);
    let _ = driven.await;
}

fn order(command: Command, from: Option<Arc<Downlink>>) -> Order {
    Order { made: std::time::Instant::now(), command: Box::new(command), from }
}

/// Waits until the broker has accepted the session.
async fn ready(downlink: &Downlink) -> Result<Ready, Refusal> {
    loop {
        match downlink.take_event(|event| matches!(event, Event::Ready(_) | Event::Ended(..))) {
            Some(Event::Ready(ready)) => return Ok(ready),
            Some(Event::Ended(_, refusal)) => return Err(refusal.unwrap_or_else(Refusal::broker_unavailable)),
            _ => downlink.to_session.raised().await,
        }
    }
}

/// Waits until the fence is answered. The connection may have come and gone meanwhile: then what it brought may be anything.
async fn fenced(downlink: &Downlink) {
    while downlink.take_event(|event| matches!(event, Event::Answered(OWN, _))).is_none() {
        downlink.to_session.raised().await;
    }
}

/// What is left to deliver of `held`, which begins somewhere within what was seen: of each topic and contract, what was seen last is
/// left out where it comes first.
fn repeated<'a>(held: impl Iterator<Item = &'a Delivery>, seen: &[Seen]) -> HashMap<(Topic, Contract), usize> {
    let mut names: HashMap<_, Vec<u64>> = HashMap::new();
    for delivery in held {
        let message = &delivery.rendition.message;
        names.entry((message.topic.clone(), delivery.contract)).or_default().push(name(message));
    }
    let overlap = |topic: &Topic, names: &[u64]| {
        let seen: Vec<u64> = seen.iter().filter(|(other, _)| other == topic).map(|(_, name)| *name).collect();
        (0..=seen.len().min(names.len())).rev().find(|count| seen.ends_with(&names[..*count])).unwrap_or(0)
    };
    names
        .into_iter()
        .map(|((topic, contract), names)| (overlap(&topic, &names), (topic, contract)))
        .map(|(count, key)| (key, count))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::Qos;

    fn message(topic: &str, payload: &str) -> Message {
        let topic = Topic::parse(topic).expect("a topic");
        Message { topic, payload: payload.to_owned().into(), qos: Qos::AtMostOnce, retain: false, properties: None }
    }

    #[test]
    fn what_came_last_by_the_old_way_is_left_out_where_it_comes_first_by_the_new() {
        let seen: Vec<Seen> =
            [("a", "1"), ("b", "x"), ("a", "2"), ("a", "3")].map(|(topic, text)| seen(&message(topic, text))).into();
        for (held, expected) in [
            (vec![("a", "2"), ("a", "3"), ("a", "4")], [2, 0]),
            (vec![("a", "4")], [0, 0]),
            (vec![("b", "x"), ("b", "x"), ("a", "3")], [1, 1]),
            (vec![("a", "1"), ("a", "2"), ("a", "3")], [3, 0]),
        ] {
            let held: Vec<_> = held.into_iter().map(|(topic, text)| Delivery::plain(message(topic, text))).collect();
            let repeated = repeated(held.iter(), &seen);
            let count = |topic| {
                let key = (Topic::parse(topic).expect("a topic"), Contract::default());
                repeated.get(&key).copied().unwrap_or(0)
            };
            assert_eq!([count("a"), count("b")], expected, "{held:?}");
        }
    }
}
