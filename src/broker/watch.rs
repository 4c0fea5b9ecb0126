//! One connection that does nothing but know whether the broker can be reached.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::Rng;
use tokio::select;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Setup;
use super::connection::{Connection, Lost};
use super::embedded::Embedded;
use crate::metrics;
use crate::mqtt::packet::{self, Connect, Packet};

/// How often a reachable broker is asked, and an unreachable one is tried again.
const INTERVAL: Duration = Duration::from_secs(2);

/// Whether the broker can be reached, as of a moment ago.
#[derive(Clone, Debug, Default)]
pub struct Reach(Arc<AtomicBool>);

impl Reach {
    /// Whether a session that opens now would find the broker.
    pub fn is_reachable(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, reachable: bool) {
        self.0.store(reachable, Ordering::Relaxed);
        metrics::broker_reachable(reachable);
    }
}

/// Watches until `closing`.
pub(super) async fn run(setup: Arc<Setup>, reach: Reach, closing: CancellationToken) {
    let client_id = format!("tidegate-watch-{:016x}", rand::rng().random::<u64>());
    reach.set(false);
    let mut told = None;
    while !closing.is_cancelled() {
        let lost = select! {
            lost = watch(&setup, &client_id, &reach) => lost,
            () = closing.cancelled() => break,
        };
        reach.set(false);
        let text = lost.to_string();
        if told.as_ref() != Some(&text) {
            warn!(broker = %setup.target, %lost, "the broker cannot be reached");
            told = Some(text);
        }
        select! {
            () = sleep(INTERVAL / 2) => {}
            () = closing.cancelled() => {}
        }
    }
}

/// Reaches the broker, and keeps asking until it does not answer.
async fn watch(setup: &Setup, client_id: &str, reach: &Reach) -> Lost {
    if let Some(embedded) = &setup.embedded {
        return probe(embedded, reach).await;
    }
    let connect = Connect { client_id, ..setup.connect() };
    let opening = Connection::open(&setup.target, &connect);
    let mut connection = match timeout(setup.config.connect_timeout, opening).await {
        Ok(Ok((connection, _))) => connection,
        Ok(Err(lost)) => return lost,
        Err(_) => return Lost::TimedOut,
    };
    info!(broker = %setup.target, "the broker is reached");
    reach.set(true);
    loop {
        packet::write_pingreq(&mut connection.outbound);
        match timeout(setup.config.connect_timeout, answer(&mut connection)).await {
            Ok(Ok(())) => sleep(INTERVAL).await,
            Ok(Err(lost)) => return lost,
            Err(_) => return Lost::TimedOut,
        }
    }
}

/// A router that has died shows only to a publish that goes through it.
async fn probe(embedded: &Embedded, reach: &Reach) -> Lost {
    loop {
        if let Err(error) = embedded.probe().await {
            return Lost::Io(io::Error::other(error.to_string()));
        }
        reach.set(true);
        sleep(INTERVAL).await;
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
