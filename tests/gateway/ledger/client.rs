//! A client that keeps to PROTOCOL: it comes back, takes its session up, sends again what was not answered, and tells a repetition from
//! a new message.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::history::{Answer, Attempt, History, Key, Lane, Seen};
use crate::support::Proxy;

/// A gateway that says nothing for so long, not even a ping, is gone.
const SILENCE: Duration = Duration::from_secs(4);
/// How long opening may take.
const OPENING: Duration = Duration::from_secs(4);
/// A publish is sent again when it has had no answer for so long.
const AGAIN: Duration = Duration::from_millis(1500);
/// So many publishes are unanswered at a time: the broker's receive window must stay wide.
const MAX_UNANSWERED: usize = 6;

/// What all clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Publish, while anything may break.
    Storm,
    /// Publish no more, and wait for what is unanswered.
    Calm,
    /// One last message on each lane.
    Last,
    /// Stop.
    Over,
}

/// What a client is like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Habits {
    /// It takes its session up again.
    pub is_kept: bool,
    pub ack: Ack,
    /// A qos 2 publish whose session ended before the answer is sent again in the next.
    pub insists: bool,
    /// Now and then it does not read for a while.
    pub stalls: bool,
    /// Now and then it goes without a word and comes back at once, as a page does that is loaded again.
    pub reloads: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ack {
    #[default]
    Auto,
    /// As soon as a delivery comes.
    AtOnce,
    /// After a time of up to so many milliseconds, all that is in hand together. What is in hand when the session ends is not handled.
    Later(u64),
}

/// What the clients of a ledger share.
pub struct Ground {
    pub history: Mutex<History>,
    /// Where the gateways listen.
    pub houses: Mutex<Vec<u16>>,
    pub began: Instant,
    pub phase: watch::Receiver<Phase>,
    pub counts: Counts,
}

#[derive(Default)]
pub struct Counts(Mutex<std::collections::BTreeMap<String, usize>>);

impl Counts {
    pub fn add(&self, what: impl Into<String>) {
        *self.0.lock().expect("nobody panics").entry(what.into()).or_default() += 1;
    }

    pub fn all(&self) -> Vec<(String, usize)> {
        self.0.lock().expect("nobody panics").iter().map(|(what, count)| (what.clone(), *count)).collect()
    }
}

impl Ground {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }
}

pub struct Client {
    ground: Arc<Ground>,
    /// Its number in the history, and as a publisher.
    number: u8,
    name: String,
    habits: Habits,
    pub line: Arc<Proxy>,
    rng: StdRng,
    lanes: HashMap<Lane, u32>,
    /// Published and not answered, in order.
    unanswered: VecDeque<Pending>,
    /// The msgids that it acked and has not since seen without `dup`.
    acked: HashSet<String>,
    /// Deliveries that it has not handled.
    in_hand: Vec<(Key, String)>,
    is_last_said: bool,
}

struct Pending {
    key: Key,
    /// Its attempt in this session.
    attempt: usize,
    said: Instant,
    /// It was said again in this session: that may yet be on its way, and be taken for new, when an answer to the first is here.
    is_repeated: bool,
    payload: usize,
}

/// Why a session is over.
struct Gone(Option<u16>);

type Socket = WebSocketStream<TcpStream>;

impl Client {
    pub fn new(
        ground: Arc<Ground>,
        number: u8,
        habits: Habits,
        lanes: Vec<Lane>,
        line: Arc<Proxy>,
        seed: u64,
    ) -> Client {
        let name = ground.history.lock().expect("nobody panics").clients[usize::from(number)].name.clone();
        Client {
            ground,
            number,
            name,
            habits,
            line,
            rng: StdRng::seed_from_u64(seed),
            lanes: lanes.into_iter().map(|lane| (lane, 0)).collect(),
            unanswered: VecDeque::new(),
            acked: HashSet::new(),
            in_hand: Vec::new(),
            is_last_said: false,
        }
    }

    pub async fn live(mut self) {
        while self.phase() < Phase::Over {
            let gone = match timeout(OPENING, self.open()).await {
                Ok(Ok((socket, session_present))) => {
                    self.sees(Seen::Opened { session_present });
                    self.ground.counts.add("sessions opened");
                    let Gone(code) = self.serve(socket).await;
                    self.sees(Seen::Ended(code));
                    code
                }
                Ok(Err(Gone(code))) => code,
                Err(_) => None,
            };
            self.ground.counts.add(gone.map_or("ends without a code".to_owned(), |code| format!("ends with {code}")));
            self.on_end();
            let pause = Duration::from_millis(self.rng.random_range(20..300));
            sleep(pause).await;
        }
    }

    async fn open(&mut self) -> Result<(Socket, bool), Gone> {
        let houses = self.ground.houses.lock().expect("nobody panics").clone();
        self.line.lead_to(*houses.choose(&mut self.rng).expect("there are some"));
        let stream = TcpStream::connect(("127.0.0.1", self.line.port)).await.map_err(|_| Gone(None))?;
        let _ = stream.set_nodelay(true);
        let mut request = "ws://localhost/ws".into_client_request().expect("a URL");
        request.headers_mut().insert("sec-websocket-protocol", "tidegate.v1.json".parse().expect("a value"));
        let (mut socket, _) = client_async(request, stream).await.map_err(|_| Gone(None))?;
        let ack = if self.habits.ack == Ack::Auto { "auto" } else { "manual" };
        let subscriptions = self.ground.history.lock().expect("nobody panics").clients[usize::from(self.number)]
            .subscriptions
            .iter()
            .map(|(filter, qos)| json!({"topic": filter, "qos": qos, "ack": ack}))
            .collect::<Vec<_>>();
        let mut auth =
            json!({"type": "auth", "clean": !self.habits.is_kept, "ack": ack, "subscriptions": subscriptions});
        if self.habits.is_kept {
            auth["clientId"] = json!(self.name);
        }
        send(&mut socket, auth).await?;
        loop {
            let frame = next(&mut socket).await?;
            match frame["type"].as_str() {
                Some("welcome") => {
                    let granted = frame["subscriptions"].as_array().into_iter().flatten();
                    if granted.into_iter().any(|entry| entry.get("error").is_some()) {
                        return Err(Gone(None));
                    }
                    return Ok((socket, frame["sessionPresent"] == true));
                }
                Some("auth_response" | "error") => {}
                _ => self.surprise(&frame),
            }
        }
    }

    async fn serve(&mut self, mut socket: Socket) -> Gone {
        match self.converse(&mut socket).await {
            Err(gone) => gone,
            Ok(()) => {
                let _ = socket.close(None).await;
                Gone(None)
            }
        }
    }

    /// Until the ledger is over, or the session is.
    async fn converse(&mut self, socket: &mut Socket) -> Result<(), Gone> {
        self.say_unanswered(socket).await?;
        let mut phase = self.ground.phase.clone();
        let mut publish_at = Instant::now() + self.pause();
        let mut handle_at = Instant::now() + self.patience();
        let mut stall_at = Instant::now() + Duration::from_secs_f64(self.rng.random_range(5.0..20.0));
        let mut heard = Instant::now();
        let mut reload_at = None;
        loop {
            let now = *phase.borrow_and_update();
            if now == Phase::Last && !self.is_last_said {
                self.say_last(socket).await?;
            }
            let publishes = now == Phase::Storm && !self.lanes.is_empty() && self.unanswered.len() < MAX_UNANSWERED;
            tokio::select! {
                _ = phase.changed() => if *phase.borrow() == Phase::Over { return Ok(()) },
                message = socket.next() => {
                    heard = Instant::now();
                    match message {
                        Some(Ok(Message::Text(text))) => {
                            let frame = serde_json::from_str(&text).expect("frames are JSON");
                            self.on_frame(socket, frame).await?;
                        }
                        Some(Ok(Message::Close(close))) => return Err(Gone(close.map(|close| close.code.into()))),
                        Some(Ok(_)) => {}
                        Some(Err(_)) | None => return Err(Gone(None)),
                    }
                }
                () = sleep_until(publish_at), if publishes => {
                    publish_at = Instant::now() + self.pause();
                    self.publish(socket).await?;
                }
                () = sleep_until(handle_at), if !self.in_hand.is_empty() => {
                    handle_at = Instant::now() + self.patience();
                    self.handle_all(socket).await?;
                    if self.habits.reloads && now == Phase::Storm && self.rng.random_bool(0.3) {
                        reload_at = Some(Instant::now() + Duration::from_millis(self.rng.random_range(50..1500)));
                    }
                }
                () = sleep_until(reload_at.unwrap_or(heard)), if reload_at.is_some() => {
                    self.ground.counts.add("fault: page loaded again");
                    return Err(Gone(None));
                }
                () = self.next_again(), if !self.unanswered.is_empty() => self.say_again(socket).await?,
                () = sleep_until(stall_at), if self.habits.stalls && now == Phase::Storm => {
                    self.ground.counts.add("fault: browser stalled");
                    sleep(Duration::from_secs_f64(self.rng.random_range(0.5..4.0))).await;
                    heard = Instant::now();
                    stall_at = heard + Duration::from_secs_f64(self.rng.random_range(5.0..20.0));
                }
                () = sleep_until(heard + SILENCE) => return Err(Gone(None)),
            }
        }
    }

    fn phase(&self) -> Phase {
        *self.ground.phase.borrow()
    }

    fn pause(&mut self) -> Duration {
        Duration::from_millis(self.rng.random_range(40..160))
    }

    fn patience(&mut self) -> Duration {
        let most = if let Ack::Later(most) = self.habits.ack { most } else { 1000 };
        Duration::from_millis(self.rng.random_range(200..most))
    }

    async fn on_frame(&mut self, socket: &mut Socket, frame: Value) -> Result<(), Gone> {
        match frame["type"].as_str().expect("a type") {
            "mqtt" => return self.on_delivery(socket, frame).await,
            "ack" => {
                let at = self.ground.now();
                self.on_answer(&frame, Answer::Acked(at));
            }
            "error" => self.on_error(&frame),
            "broker" if frame["status"] == "down" => self.sees(Seen::Down),
            "broker" => self.sees(Seen::Up { session_present: frame["sessionPresent"] == true }),
            "bye" => {}
            // A subscription that the broker did not give back.
            "unsubscribed" => return Err(Gone(None)),
            _ => self.surprise(&frame),
        }
        Ok(())
    }

    fn on_error(&mut self, frame: &Value) {
        let at = self.ground.now();
        let pending =
            frame["msgid"].as_str().and_then(|msgid| self.unanswered.iter().find(|it| msgid_of(it.key) == msgid));
        let qos = pending.map(|pending| pending.key.lane.qos);
        let is_repeated = pending.is_some_and(|pending| pending.is_repeated);
        match (frame["code"].as_str().expect("a code"), qos) {
            ("dropped", _) => {
                self.sees(Seen::Dropped);
                for _ in 0..frame["count"].as_u64().unwrap_or_default() {
                    self.ground.counts.add("dropped and told");
                }
            }
            ("broker_unavailable" | "timeout", Some(_)) if is_repeated => self.on_answer(frame, Answer::Unknown(at)),
            ("broker_unavailable", Some(_)) => self.on_answer(frame, Answer::Refused(at)),
            ("timeout", Some(2)) if frame["retryable"] == true => self.on_answer(frame, Answer::Refused(at)),
            ("timeout", Some(_)) => self.on_answer(frame, Answer::Unknown(at)),
            // Each sending of a publish has an answer of its own.
            ("timeout" | "broker_unavailable", None) => {}
            _ => self.surprise(frame),
        }
    }

    fn on_answer(&mut self, frame: &Value, answer: Answer) {
        let Some(place) = self.unanswered.iter().position(|pending| frame["msgid"] == msgid_of(pending.key)) else {
            return;
        };
        let pending = self.unanswered.remove(place).expect("it was found");
        self.answered(&pending, answer);
    }

    fn answered(&self, pending: &Pending, answer: Answer) {
        let mut history = self.ground.history.lock().expect("nobody panics");
        history.published.get_mut(&pending.key).expect("it was published")[pending.attempt].answer = answer;
    }

    async fn on_delivery(&mut self, socket: &mut Socket, frame: Value) -> Result<(), Gone> {
        let Some(key) = self.key_of(&frame) else {
            self.surprise(&frame);
            return Ok(());
        };
        let msgid = frame["msgid"].as_str().unwrap_or_default().to_owned();
        let dup = frame["dup"] == true;
        let qos = frame["qos"].as_u64().expect("a number") as u8;
        self.sees(Seen::Delivered { key, qos, dup, msgid: msgid.clone() });
        if qos == 0 {
            self.sees(Seen::Handled(key));
            return Ok(());
        }
        let is_repetition = dup && self.acked.contains(&msgid);
        if !dup {
            self.acked.remove(&msgid);
        }
        match self.habits.ack {
            _ if is_repetition && self.habits.ack != Ack::Auto => send_ack(socket, &[msgid]).await?,
            _ if is_repetition => {}
            Ack::Auto => {
                self.acked.insert(msgid);
                self.sees(Seen::Handled(key));
            }
            Ack::AtOnce => {
                self.in_hand.push((key, msgid));
                self.handle_all(socket).await?;
            }
            Ack::Later(_) => self.in_hand.push((key, msgid)),
        }
        Ok(())
    }

    async fn handle_all(&mut self, socket: &mut Socket) -> Result<(), Gone> {
        let mut msgids = Vec::new();
        for (key, msgid) in std::mem::take(&mut self.in_hand) {
            self.sees(Seen::Handled(key));
            self.acked.insert(msgid.clone());
            msgids.push(msgid);
        }
        if self.rng.random_bool(0.5) {
            msgids.reverse();
        }
        send_ack(socket, &msgids).await
    }

    /// Topic and payload name the same message, or it is none of ours.
    fn key_of(&self, frame: &Value) -> Option<Key> {
        let mut words = frame["payload"].as_str()?.split(' ').map(|word| word.parse::<u32>().ok());
        let [publisher, topic, qos, number] = std::array::from_fn(|_| words.next().flatten());
        let lane = Lane { publisher: publisher? as u8, topic: topic? as u8, qos: qos? as u8 };
        let history = self.ground.history.lock().expect("nobody panics");
        let is_there = history.topics.get(usize::from(lane.topic)).is_some_and(|topic| frame["topic"] == *topic);
        is_there.then_some(Key { lane, number: number? })
    }

    async fn publish(&mut self, socket: &mut Socket) -> Result<(), Gone> {
        let mut lanes: Vec<_> = self.lanes.keys().copied().collect();
        lanes.sort_unstable();
        let lane = *lanes.choose(&mut self.rng).expect("it has lanes");
        self.publish_on(socket, lane).await
    }

    async fn publish_on(&mut self, socket: &mut Socket, lane: Lane) -> Result<(), Gone> {
        let number = self.lanes.get_mut(&lane).expect("one of its lanes");
        *number += 1;
        let key = Key { lane, number: *number };
        // Now and then a large one, so that lines and queues fill.
        let payload = if self.rng.random_bool(0.1) { self.rng.random_range(2000..12_000) } else { 20 };
        self.unanswered.push_back(Pending { key, attempt: 0, said: Instant::now(), is_repeated: false, payload });
        self.attempt(key);
        self.ground.counts.add(format!("published at qos {}", lane.qos));
        let frame = self.frame(self.unanswered.back().expect("it was pushed"));
        send(socket, frame).await
    }

    /// One more on each lane, until one of each is acknowledged.
    async fn say_last(&mut self, socket: &mut Socket) -> Result<(), Gone> {
        if !self.unanswered.is_empty() {
            return Ok(());
        }
        self.is_last_said = true;
        let mut lanes: Vec<_> = self.lanes.keys().copied().collect();
        lanes.sort_unstable();
        for lane in lanes {
            self.publish_on(socket, lane).await?;
        }
        Ok(())
    }

    fn attempt(&self, key: Key) -> usize {
        let attempt = Attempt { sent: self.ground.now(), answer: Answer::None };
        let mut history = self.ground.history.lock().expect("nobody panics");
        let attempts = history.published.entry(key).or_default();
        attempts.push(attempt);
        attempts.len() - 1
    }

    fn frame(&self, pending: &Pending) -> Value {
        let Key { lane: Lane { publisher, topic, qos }, number } = pending.key;
        let payload = format!("{publisher} {topic} {qos} {number} {}", ".".repeat(pending.payload));
        let topic = &self.ground.history.lock().expect("nobody panics").topics[usize::from(topic)];
        json!({"type": "publish", "topic": topic, "payload": payload, "qos": qos, "msgid": msgid_of(pending.key)})
    }

    /// What the last session left unanswered goes first, in order.
    async fn say_unanswered(&mut self, socket: &mut Socket) -> Result<(), Gone> {
        for place in 0..self.unanswered.len() {
            let attempt = self.attempt(self.unanswered[place].key);
            self.unanswered[place].attempt = attempt;
            self.unanswered[place].said = Instant::now();
            self.unanswered[place].is_repeated = false;
        }
        for place in 0..self.unanswered.len() {
            let frame = self.frame(&self.unanswered[place]);
            self.ground.counts.add("sent again in the next session");
            send(socket, frame).await?;
        }
        Ok(())
    }

    async fn next_again(&self) {
        let oldest = self.unanswered.iter().map(|pending| pending.said).min().expect("there are some");
        sleep_until(oldest + AGAIN).await;
    }

    /// The same frames once more, on the same session.
    async fn say_again(&mut self, socket: &mut Socket) -> Result<(), Gone> {
        let now = Instant::now();
        for place in 0..self.unanswered.len() {
            if now >= self.unanswered[place].said + AGAIN {
                self.unanswered[place].said = now;
                self.unanswered[place].is_repeated = true;
                let frame = self.frame(&self.unanswered[place]);
                self.ground.counts.add("sent again in the same session");
                send(socket, frame).await?;
            }
        }
        Ok(())
    }

    fn on_end(&mut self) {
        self.in_hand.clear();
        let at = self.ground.now();
        for pending in &self.unanswered {
            self.answered(pending, Answer::Ended(at));
        }
        let insists = self.habits.insists;
        self.unanswered.retain(|pending| pending.key.lane.qos == 1 || (pending.key.lane.qos == 2 && insists));
        // What is left was the last on its lane, and needs an answer.
        self.is_last_said = false;
    }

    fn sees(&self, seen: Seen) {
        match &seen {
            Seen::Delivered { qos, dup, .. } => {
                self.ground.counts.add(format!("delivered at qos {qos}"));
                if *dup {
                    self.ground.counts.add("delivered with dup");
                }
            }
            Seen::Down => self.ground.counts.add("broker down told"),
            _ => {}
        }
        let at = self.ground.now();
        self.ground.history.lock().expect("nobody panics").clients[usize::from(self.number)].seen.push((at, seen));
    }

    fn surprise(&self, frame: &Value) {
        let mut text = format!("{} got {frame}", self.name);
        text.truncate(300);
        self.ground.history.lock().expect("nobody panics").surprises.push(text);
    }
}

fn msgid_of(Key { lane: Lane { publisher, topic, qos }, number }: Key) -> String {
    format!("{publisher}/{topic}/{qos}/{number}")
}

async fn send(socket: &mut Socket, frame: Value) -> Result<(), Gone> {
    match timeout(SILENCE, socket.send(Message::text(frame.to_string()))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Gone(None)),
    }
}

async fn send_ack(socket: &mut Socket, msgids: &[String]) -> Result<(), Gone> {
    send(socket, json!({"type": "ack", "msgids": msgids})).await
}

async fn next(socket: &mut Socket) -> Result<Value, Gone> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).expect("frames are JSON")),
            Some(Ok(Message::Close(close))) => return Err(Gone(close.map(|close| close.code.into()))),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Err(Gone(None)),
        }
    }
}
