//! Stored messages for those who have just subscribed: asked for on a connection that ends when they have come, as an answer on the
//! connection that all share would go to all.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rand::Rng;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tracing::debug;
use xxhash_rust::xxh3::xxh3_64;

use crate::broker::Setup;
use crate::broker::connection::{Connection, Lost};
use crate::broker::dedicated::back_off;
use crate::broker::downlink::Downlink;
use crate::delivery::{Delivery, Rendition};
use crate::mqtt::packet::{self, Connect, Packet, PacketId, Publish, SubscribeOptions};
use crate::mqtt::{Qos, Topic, TopicFilter};
use crate::wire::{Contract, Format};

/// Messages and bytes that are held at one time, before they are given out.
const CHUNK: usize = 256;
const CHUNK_BYTES: usize = 256 * 1024;
/// How long a browser that reads slowly may keep the others of a fetch waiting, at each chunk.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Between two tries, at most.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(15);
/// rumqttd answers a ping before it has sent all that it stores: it is asked again until nothing has come for so long.
const QUIET_INSIDE: Duration = Duration::from_millis(20);
/// Topics of a filter whose news are remembered while stored messages are fetched. With more, a stored message may follow a newer one.
const MAX_NEWS: usize = 65_536;

/// The sessions that wait for the stored messages of a filter, and what was published on its topics since they came.
#[derive(Default)]
pub struct Seekers {
    /// Who is served by the fetch under way, and at which count of messages each of them came.
    served: Vec<(u64, u64)>,
    /// Who waits for the next.
    waiting: Vec<(u64, u64)>,
    count: u64,
    news: HashMap<u64, u64>,
}

impl Seekers {
    /// One more, who is served by the next fetch.
    pub fn add(&mut self, number: u64) {
        self.waiting.retain(|(other, _)| *other != number);
        self.waiting.push((number, self.count));
    }

    /// A fetch begins for all who wait.
    pub fn begin(&mut self) {
        self.served.append(&mut self.waiting);
    }

    /// Something was published there.
    pub fn note(&mut self, topic: &Topic) {
        self.count += 1;
        if self.news.len() < MAX_NEWS {
            self.news.insert(hash(topic), self.count);
        }
    }

    /// Those who are served now.
    pub fn served(&self) -> impl Iterator<Item = &u64> {
        self.served.iter().map(|(number, _)| number)
    }

    /// Those of them who have seen nothing newer on the topic than what is stored.
    pub fn without_news(&self, topic: &Topic) -> impl Iterator<Item = u64> {
        let latest = self.news.get(&hash(topic)).copied().unwrap_or(0);
        self.served.iter().filter(move |(_, since)| latest <= *since).map(|(number, _)| *number)
    }

    /// The fetch is over. Whether nobody waits for another.
    pub fn end(&mut self) -> bool {
        self.served.clear();
        self.waiting.is_empty()
    }
}

fn hash(topic: &Topic) -> u64 {
    xxh3_64(topic.as_str().as_bytes())
}

/// What a fetch has to say.
pub struct Answer {
    /// Which.
    pub fetch: u64,
    /// Nothing when it is over.
    pub found: Option<Found>,
}

/// Stored messages, each with the place of its filter among those that were wanted.
pub struct Found {
    pub messages: Vec<(usize, Delivery)>,
    /// The fetch waits for this: who got them.
    pub go_on: oneshot::Sender<Vec<Arc<Downlink>>>,
}

/// Fetches what is stored for these filters, however long the broker is away.
pub async fn fetch(setup: Arc<Setup>, number: u64, wanted: Vec<(TopicFilter, Qos)>, answers: mpsc::Sender<Answer>) {
    let mut fetch = Fetch { setup, number, wanted, answers, seen: HashSet::new() };
    let mut attempts = 0;
    while let Err(lost) = fetch.attempt().await {
        debug!(%lost, "stored messages could not be fetched");
        attempts += 1;
        let part = rand::rng().random();
        sleep(back_off(attempts, LONGEST_BACK_OFF, part)).await;
    }
    let _ = fetch.answers.send(Answer { fetch: number, found: None }).await;
}

struct Fetch {
    setup: Arc<Setup>,
    number: u64,
    wanted: Vec<(TopicFilter, Qos)>,
    answers: mpsc::Sender<Answer>,
    /// What an earlier attempt has brought already.
    seen: HashSet<(usize, u64)>,
}

impl Fetch {
    async fn attempt(&mut self) -> Result<(), Lost> {
        let patience = self.setup.config.connect_timeout;
        let client_id = format!("tidegate-stored-{:016x}", rand::rng().random::<u64>());
        let connect = Connect { client_id: &client_id, ..self.setup.connect() };
        let target = self.setup.target();
        let opening = timeout(patience, Connection::open(&target, &connect));
        let (mut connection, connack) = opening.await.unwrap_or(Err(Lost::TimedOut))?;
        for (place, (filter, qos)) in self.wanted.iter().enumerate() {
            let id = u16::try_from(place + 1).ok().and_then(PacketId::new).expect("a fetch is for few filters");
            let options = SubscribeOptions { qos: *qos, ..SubscribeOptions::default() };
            let subscription_id = connack.subscription_ids_available.then_some(u32::from(id.get()));
            packet::write_subscribe(&mut connection.outbound, id, subscription_id, filter.as_str(), options);
        }
        packet::write_pingreq(&mut connection.outbound);
        let mut answered = 0;
        // Whether anything stored has come since the last ping: what a full window held back comes when that is confirmed.
        let mut has_news = false;
        let mut found = Vec::new();
        loop {
            let is_over = loop {
                let mut is_over = false;
                while let Some(packet) = connection.next_packet()? {
                    match packet {
                        Packet::Publish(publish) => {
                            has_news |= publish.message.retain;
                            match (publish.id, publish.message.qos) {
                                (Some(id), Qos::AtLeastOnce) => packet::write_puback(&mut connection.outbound, id),
                                (Some(id), _) => packet::write_pubrec(&mut connection.outbound, id),
                                (None, _) => {}
                            }
                            self.take(publish, &mut found);
                        }
                        Packet::Pubrel(id, _) => {
                            packet::write_pubcomp(&mut connection.outbound, id, crate::mqtt::Reason::SUCCESS);
                        }
                        Packet::Suback(..) => answered += 1,
                        Packet::Pingresp => {
                            is_over = !std::mem::take(&mut has_news) && answered == self.wanted.len();
                            if self.setup.is_embedded() {
                                sleep(QUIET_INSIDE).await;
                            }
                            packet::write_pingreq(&mut connection.outbound);
                        }
                        Packet::Disconnect(reason) => return Err(Lost::Disconnected(reason)),
                        _ => {}
                    }
                }
                let bytes: usize = found.iter().map(|(_, delivery): &(usize, Delivery)| delivery.size()).sum();
                if is_over || found.len() >= CHUNK || bytes >= CHUNK_BYTES {
                    break is_over;
                }
                timeout(patience, connection.turn(true)).await.unwrap_or(Err(Lost::TimedOut))?;
            };
            self.give_out(std::mem::take(&mut found)).await;
            if is_over {
                break;
            }
        }
        if !self.setup.is_embedded() {
            packet::write_disconnect(&mut connection.outbound, 0);
        }
        let flush = async { while !connection.outbound.is_empty() && connection.turn(false).await.is_ok() {} };
        let _ = timeout(patience, flush).await;
        Ok(())
    }

    /// What comes unflagged was published meanwhile, and comes to all who read it by the way that they share.
    fn take(&mut self, publish: Publish, found: &mut Vec<(usize, Delivery)>) {
        let Publish { id, mut message, subscription_ids, .. } = publish;
        if !message.retain {
            return;
        }
        let topic = hash(&message.topic);
        let mut places: Vec<usize> = subscription_ids.iter().map(|id| *id as usize - 1).collect();
        if places.is_empty() {
            // The broker does not say, and sends one for all.
            let matching = self.wanted.iter().enumerate().filter(|(_, (filter, _))| filter.matches(&message.topic));
            places.extend(matching.map(|(place, _)| place));
        }
        let msgid = id.map(|id| format!("{id}-{:016x}-s", message.digest()).into());
        message.payload = bytes::Bytes::copy_from_slice(&message.payload);
        let timestamp =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let rendition = Arc::new(Rendition::new(message, Format::Text, timestamp, Instant::now()));
        for place in places {
            if self.seen.insert((place, topic)) {
                found.push((
                    place,
                    Delivery {
                        rendition: rendition.clone(),
                        contract: Contract::default(),
                        readers: Default::default(),
                        msgid: msgid.clone(),
                        dup: false,
                        receipt: None,
                        skipped: 0,
                    },
                ));
            }
        }
    }

    /// Hands over what was found, and waits until those who got it have room for more.
    async fn give_out(&self, messages: Vec<(usize, Delivery)>) {
        if messages.is_empty() {
            return;
        }
        let (go_on, gone_on) = oneshot::channel();
        let found = Some(Found { messages, go_on });
        if self.answers.send(Answer { fetch: self.number, found }).await.is_err() {
            return;
        }
        let Ok(receivers) = gone_on.await else { return };
        let _ = timeout(PATIENCE, async {
            for receiver in receivers {
                while !receiver.has_room_for_stored() {
                    sleep(LOOK_AGAIN).await;
                }
            }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_seen_something_newer_gets_nothing_stored_and_who_came_after_it_does() {
        let topic = |name: &str| Topic::parse(name).expect("a topic");
        let mut seekers = Seekers::default();
        seekers.add(1);
        seekers.note(&topic("a"));
        seekers.add(2);
        seekers.begin();
        seekers.note(&topic("b"));
        seekers.add(3);
        let without_news = |name| seekers.without_news(&topic(name)).collect::<Vec<_>>();
        assert_eq!(without_news("a"), [2], "the first one has seen it");
        assert_eq!(without_news("b"), Vec::<u64>::new(), "both have");
        assert_eq!(without_news("c"), [1, 2], "and who came since is served by the next");
        assert!(!seekers.end(), "there is one more");
        seekers.begin();
        assert_eq!(seekers.served().collect::<Vec<_>>(), [&3]);
        assert!(seekers.end());
    }
}
