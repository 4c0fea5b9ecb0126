//! Knows whether the broker can be reached: by one connection that does nothing else, or, of the embedded broker, by probes. One that
//! has died is started anew.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::select;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info, warn};

use super::connection::{Connection, Lost};
use super::embedded::{Embedded, ProbeError};
use super::transport::Target;
use super::{Place, Setup};
use crate::metrics;
use crate::mqtt::packet::{self, Connect, Packet};

/// How often a reachable broker is asked.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long after a failure it is asked again.
const RETRY: Duration = Duration::from_millis(500);

/// Whether a session that opens now would find the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// It can't be reached.
    #[default]
    Down,
    /// The embedded broker has died, and another takes its place.
    Restarting,
    /// It answers.
    Up,
}

impl Standing {
    /// As `/readyz` says it.
    pub fn name(self) -> &'static str {
        match self {
            Standing::Down => "down",
            Standing::Restarting => "restarting",
            Standing::Up => "up",
        }
    }
}

/// Whether the broker can be reached, as of a moment ago.
#[derive(Clone, Debug, Default)]
pub struct Reach(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    seen: watch::Sender<Seen>,
    asked: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    standing: Standing,
    /// How often it came and went.
    turns: u64,
    /// How often it has answered.
    answers: u64,
}

impl Reach {
    /// Whether a session that opens now would find the broker.
    pub fn standing(&self) -> Standing {
        self.0.seen.borrow().standing
    }

    /// How often the broker came and went: not for one connection, but for the one that watches it.
    pub(super) fn turns(&self) -> u64 {
        self.0.seen.borrow().turns
    }

    /// Whether the broker has been there for others all the time since that many turns, as it shows when it is asked now. Where the
    /// watch has never reached it, nobody can tell, and this says yes.
    pub(super) async fn is_there_since(&self, turns: u64) -> bool {
        let mut seen = self.0.seen.subscribe();
        let answers = seen.borrow().answers;
        loop {
            let now = *seen.borrow_and_update();
            if now.turns != turns || now.standing != Standing::Up {
                return now.turns == 0;
            }
            // The first answer may be on its way since before the question.
            if now.answers >= answers + 2 {
                return true;
            }
            self.ask();
            if seen.changed().await.is_err() {
                return false;
            }
        }
    }

    /// Somebody knows better, or wants to know: the broker is to be asked now.
    pub(super) fn ask(&self) {
        self.0.asked.notify_one();
    }

    fn set(&self, standing: Standing) {
        self.0.seen.send_modify(|seen| {
            seen.turns += if (seen.standing == Standing::Up) != (standing == Standing::Up) { 1 } else { 0 };
            seen.answers += if standing == Standing::Up { 1 } else { 0 };
            seen.standing = standing;
        });
        metrics::broker_reachable(standing == Standing::Up);
    }

    /// Until it is time to ask again.
    async fn pause(&self, time: Duration) {
        select! {
            () = sleep(time) => {}
            () = self.0.asked.notified() => {}
        }
    }
}

/// Watches for ever.
pub(super) async fn run(setup: &Setup) {
    setup.reach.set(Standing::Down);
    match &setup.place {
        Place::Elsewhere(target) => watch(setup, target).await,
        Place::Inside(embedded) => tend(embedded, &setup.reach).await,
    }
}

async fn watch(setup: &Setup, target: &Target) {
    let client_id = format!("tidegate-watch-{:016x}", rand::rng().random::<u64>());
    let mut told = None;
    loop {
        let lost = connected(setup, target, &client_id).await;
        setup.reach.set(Standing::Down);
        let text = lost.to_string();
        if told.as_ref() != Some(&text) {
            warn!(broker = %target, %lost, "the broker cannot be reached");
            told = Some(text);
        }
        setup.reach.pause(INTERVAL / 2).await;
    }
}

/// Reaches the broker, and keeps asking until it does not answer.
async fn connected(setup: &Setup, target: &Target, client_id: &str) -> Lost {
    let connect = Connect { client_id, ..setup.connect() };
    let opening = Connection::open(target, &connect);
    let mut connection = match timeout(setup.config.connect_timeout, opening).await {
        Ok(Ok((connection, _))) => connection,
        Ok(Err(lost)) => return lost,
        Err(_) => return Lost::TimedOut,
    };
    info!(broker = %target, "the broker is reached");
    setup.reach.set(Standing::Up);
    loop {
        packet::write_pingreq(&mut connection.outbound);
        match timeout(setup.config.connect_timeout, answer(&mut connection)).await {
            Ok(Ok(())) => setup.reach.set(Standing::Up),
            Ok(Err(lost)) => return lost,
            Err(_) => return Lost::TimedOut,
        }
        select! {
            () = setup.reach.pause(INTERVAL) => {}
            lost = end(&mut connection) => return lost,
        }
    }
}

async fn answer(connection: &mut Connection) -> Result<(), Lost> {
    loop {
        match connection.next_packet()? {
            Some(Packet::Pingresp) => return Ok(()),
            Some(Packet::Disconnect(reason)) => return Err(Lost::Disconnected(reason)),
            Some(_) => {}
            None => drop(connection.turn(true).await?),
        }
    }
}

/// Nothing is asked: waits for the broker to end the connection. Safe to drop half-way.
async fn end(connection: &mut Connection) -> Lost {
    loop {
        if let Err(lost) = answer(connection).await {
            return lost;
        }
    }
}

/// Probes the embedded broker, and starts it anew when it has died.
async fn tend(embedded: &Embedded, reach: &Reach) {
    let mut restarts = Restarts::default();
    loop {
        let born = Instant::now();
        let error = death(embedded, reach).await;
        let wait = restarts.wait(born.elapsed());
        reach.set(Standing::Restarting);
        error!(%error, ?wait, "the embedded broker has died: it is started anew, and what it stored is lost");
        sleep(wait).await;
        match embedded.restart() {
            Ok(()) => metrics::embedded_restarted(),
            Err(error) => error!(%error, "the embedded broker can't be started anew"),
        }
    }
}

/// Until the broker is dead.
async fn death(embedded: &Embedded, reach: &Reach) -> ProbeError {
    let mut failures = Failures::default();
    loop {
        match embedded.probe().await {
            Ok(()) => {
                if reach.standing() != Standing::Up {
                    info!(broker = %embedded.address(), "the embedded broker works");
                }
                failures = Failures::default();
                reach.set(Standing::Up);
                reach.pause(INTERVAL).await;
            }
            Err(error) if failures.are_death(&error) => return error,
            Err(error) => {
                if reach.standing() == Standing::Up {
                    warn!(%error, "the embedded broker gave no answer");
                    reach.set(Standing::Down);
                }
                sleep(RETRY).await;
            }
        }
    }
}

/// Probes that failed since one succeeded.
///
/// A restart loses what is stored, so it needs proof: a healthy broker may cut a connection off by mistake, and one on a busy machine
/// may be late.
#[derive(Debug, Default)]
struct Failures {
    broken: u32,
    silent: u32,
}

impl Failures {
    fn are_death(&mut self, error: &ProbeError) -> bool {
        match error {
            ProbeError::Broken { .. } => self.broken += 1,
            ProbeError::Silent { .. } => self.silent += 1,
        }
        self.broken >= 3 || self.silent >= 5
    }
}

/// How long a broker that has died stays dead: what kills it may come again, and not all that it held may be freed.
#[derive(Debug, Default)]
struct Restarts {
    wait: Duration,
}

impl Restarts {
    const FIRST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(60);
    /// Who has lived so long is forgiven.
    const GOOD_WHILE: Duration = Duration::from_secs(600);

    /// None for the first, then one that doubles up to a bound.
    fn wait(&mut self, lived: Duration) -> Duration {
        let wait = if lived >= Self::GOOD_WHILE { Duration::ZERO } else { self.wait };
        self.wait = (wait * 2).clamp(Self::FIRST, Self::LONGEST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlived(reach: &Reach, turns: u64) -> tokio::task::JoinHandle<bool> {
        let reach = reach.clone();
        tokio::spawn(async move { reach.is_there_since(turns).await })
    }

    #[tokio::test]
    async fn a_broker_is_there_for_others_once_it_has_answered_what_was_asked_after_the_question() {
        let reach = Reach::default();
        reach.set(Standing::Up);
        let turns = reach.turns();
        let asked = outlived(&reach, turns);
        tokio::task::yield_now().await;
        reach.set(Standing::Up);
        tokio::task::yield_now().await;
        assert!(!asked.is_finished(), "that answer may be older than the question");
        reach.set(Standing::Up);
        assert!(asked.await.expect("it ends"));

        let asked = outlived(&reach, turns);
        tokio::task::yield_now().await;
        reach.set(Standing::Down);
        assert!(!asked.await.expect("it ends"), "it went away for all");
        reach.set(Standing::Up);
        assert!(!outlived(&reach, turns).await.expect("it ends"), "it was away in between");
        reach.set(Standing::Down);
        assert!(!outlived(&reach, reach.turns()).await.expect("it ends"), "it is away for the watch");
    }

    #[tokio::test]
    async fn of_a_broker_that_the_watch_never_reached_nothing_can_be_told() {
        let reach = Reach::default();
        assert!(reach.is_there_since(reach.turns()).await);
    }

    #[test]
    fn a_restart_waits_longer_each_time_until_one_has_lived_for_a_good_while() {
        let mut restarts = Restarts::default();
        let mut wait = |lived| restarts.wait(Duration::from_secs(lived)).as_secs();
        assert_eq!([0; 9].map(&mut wait), [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(wait(599), 60);
        assert_eq!([600, 0, 0].map(&mut wait), [0, 1, 2]);
    }

    #[cfg(feature = "embedded-broker")]
    mod embedded {
        use std::io;

        use super::super::super::embedded::tests::wedged;
        use super::*;

        #[test]
        fn a_broker_counts_as_dead_after_proof() {
            let address = "127.0.0.1:1883".parse().expect("an address");
            let broken = || ProbeError::Broken { address, source: io::ErrorKind::ConnectionReset.into() };
            let silent = || ProbeError::Silent { address, after: INTERVAL };
            let mut failures = Failures::default();
            assert_eq!([broken(), broken(), broken()].map(|error| failures.are_death(&error)), [false, false, true]);
            let mut failures = Failures::default();
            let verdicts = [silent(), broken(), silent(), silent(), broken(), silent(), silent()];
            assert_eq!(
                verdicts.map(|error| failures.are_death(&error)),
                [false, false, false, false, false, false, true]
            );
        }

        #[tokio::test]
        async fn a_broker_that_wedges_is_found_told_and_replaced() {
            let (embedded, _mute) = wedged(Duration::from_millis(300));
            let reach = Reach::default();
            reach.set(Standing::Up);
            let tending = async {
                let error = death(&embedded, &reach).await;
                assert!(matches!(error, ProbeError::Silent { .. }), "{error}");
                assert_eq!((reach.standing(), reach.turns()), (Standing::Down, 2));
                embedded.restart().expect("another rumqttd");
                let before = embedded.link_address();
                let mut seen = reach.0.seen.subscribe();
                select! {
                    () = tend(&embedded, &reach) => {}
                    _ = seen.wait_for(|seen| seen.standing == Standing::Up) => {}
                }
                assert_eq!(embedded.link_address(), before, "it lives");
            };
            timeout(Duration::from_secs(20), tending).await.expect("within seconds");
        }
    }
}
