//! Random faults, drawn from a seed: the same seed plans the same faults, though not at the same instruction.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::time::sleep;

use super::client::{Ground, Phase};
use crate::support::{Gateway, Kind, Mosquitto, Proxy, Way};

#[derive(Clone, Copy, Debug)]
enum Fault {
    Cut,
    Reset,
    Hold,
    HoldOneWay(Way),
    Swallow,
    CutOneWay(Way),
    Throttle,
    Delay,
    Refuse,
    /// At a packet, before a broker alone.
    CutAt(Way, Kind),
}

const FAULTS: [Fault; 11] = [
    Fault::Cut,
    Fault::Reset,
    Fault::Hold,
    Fault::HoldOneWay(Way::To),
    Fault::HoldOneWay(Way::Back),
    Fault::Swallow,
    Fault::CutOneWay(Way::To),
    Fault::CutOneWay(Way::Back),
    Fault::Throttle,
    Fault::Delay,
    Fault::Refuse,
];

const PACKETS: [(Way, Kind); 10] = [
    (Way::To, Kind::Publish),
    (Way::To, Kind::Puback),
    (Way::To, Kind::Pubrec),
    (Way::To, Kind::Pubrel),
    (Way::To, Kind::Pubcomp),
    (Way::Back, Kind::Publish),
    (Way::Back, Kind::Puback),
    (Way::Back, Kind::Pubrec),
    (Way::Back, Kind::Pubrel),
    (Way::Back, Kind::Pubcomp),
];

/// How the broker dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// SIGTERM: it writes what it has.
    Stopped,
    /// SIGKILL: it loses what it has not written.
    Killed,
}

/// Breaks one line after another, with pauses of so many seconds, until the storm is over.
pub async fn spoil(ground: Arc<Ground>, line: Arc<Proxy>, name: &'static str, pauses: (f64, f64), seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    while pause(&ground, rng.random_range(pauses.0..pauses.1)).await {
        let mut fault = *FAULTS.choose(&mut rng).expect("there are some");
        if name == "broker" && rng.random_bool(0.4) {
            let (way, kind) = *PACKETS.choose(&mut rng).expect("there are some");
            fault = Fault::CutAt(way, kind);
        }
        let short = rng.random_range(0.05..0.6);
        let long = rng.random_range(0.3..4.0);
        let time = match fault {
            Fault::Cut => {
                line.cut();
                short
            }
            Fault::Reset => {
                line.reset();
                short
            }
            Fault::Hold => {
                line.hold();
                long
            }
            Fault::HoldOneWay(way) => {
                line.hold_way(way);
                long
            }
            Fault::Swallow => {
                line.swallow();
                0.0
            }
            Fault::CutOneWay(way) => {
                line.cut_way(way);
                0.0
            }
            Fault::Throttle => {
                line.throttle(rng.random_range(500..5000));
                long
            }
            Fault::Delay => {
                line.delay(Duration::from_millis(rng.random_range(5..200)));
                long
            }
            Fault::Refuse => {
                line.refuse();
                line.cut_way(Way::Back);
                long
            }
            Fault::CutAt(way, kind) => {
                line.cut_at(way, kind);
                0.0
            }
        };
        let word = match fault {
            Fault::HoldOneWay(_) => "held one way".to_owned(),
            Fault::CutOneWay(_) => "cut one way".to_owned(),
            Fault::CutAt(..) => "cut at a packet".to_owned(),
            Fault::Hold => "half-open".to_owned(),
            Fault::Swallow => "black hole".to_owned(),
            fault => format!("{fault:?}").to_lowercase(),
        };
        ground.counts.add(format!("fault: {name} line {word}"));
        sleep(Duration::from_secs_f64(time)).await;
        line.resume();
        line.delay(Duration::ZERO);
    }
}

/// Ends the broker or a gateway now and then, and starts it again. Gives them back, all running.
pub async fn strike(
    ground: &Ground,
    mut mosquitto: Mosquitto,
    mut houses: Vec<Gateway>,
    start: impl AsyncFn(usize) -> Gateway,
    death: Death,
    seed: u64,
) -> (Mosquitto, Vec<Gateway>) {
    let mut rng = StdRng::seed_from_u64(seed);
    while pause(ground, rng.random_range(1.5..9.0)).await {
        let down = Duration::from_secs_f64(rng.random_range(0.0..1.5));
        if rng.random_bool(if death == Death::Killed { 0.7 } else { 0.5 }) {
            match death {
                Death::Stopped => mosquitto.stop().await,
                Death::Killed => {
                    let at = ground.began.elapsed();
                    ground.history.lock().expect("nobody panics").kills.push(at);
                    mosquitto.kill().await;
                }
            }
            ground.counts.add(format!("fault: broker {}", format!("{death:?}").to_lowercase()));
            sleep(down).await;
            mosquitto.restart().await;
        } else {
            let which = rng.random_range(0..houses.len());
            houses[which].kill().await;
            ground.counts.add("fault: gateway killed");
            sleep(down).await;
            houses[which] = start(which).await;
            ground.houses.lock().expect("nobody panics")[which] = houses[which].port();
        }
    }
    (mosquitto, houses)
}

/// Waits so many seconds; says whether the storm still blows.
async fn pause(ground: &Ground, seconds: f64) -> bool {
    let mut phase: watch::Receiver<Phase> = ground.phase.clone();
    tokio::select! {
        () = sleep(Duration::from_secs_f64(seconds)) => true,
        _ = phase.wait_for(|phase| *phase > Phase::Storm) => false,
    }
}
