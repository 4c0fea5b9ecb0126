//! Before the greeting: a WebSocket gets its place, waits for it in the queue, or is turned away.

use std::sync::Arc;
use std::time::Duration;

use tokio::select;
use tokio::time::{Instant, interval, sleep_until};

use super::entrance::{Pass, turned_away};
use super::run::{Arrival, Context, Peer};
use super::socket::{Inbound, Socket, Turn};
use crate::access::Reason;
use crate::wire::{Close, Reply};

/// Between two looks at its position.
const LOOK: Duration = Duration::from_secs(1);
/// What is kept of what a client says while it waits. Over either it is read no further until it comes in.
const MAX_EARLY_BYTES: usize = 16 * 1024;
const MAX_EARLY_FRAMES: usize = 64;

/// Waits for a place. What the client says meanwhile is left to be served.
pub async fn enter<S: Socket>(peer: &mut Peer<S>, context: &Context, arrival: &mut Arrival) -> Result<(), Close> {
    let pass = arrival.pass.as_mut().map_err(|reason| peer.turn_away(*reason))?;
    if pass.position().is_none() {
        return Ok(());
    }
    arrival.newcomer = None;
    let until = Instant::now() + pass.patience();
    select! {
        biased;
        entered = queue(peer, pass) => entered?,
        () = sleep_until(until) => {
            turned_away(Reason::QueueTimeout, Some(arrival.client));
            return Err(peer.turn_away(Reason::QueueTimeout));
        }
        () = context.closing.cancelled() => return Err(Close::Drain),
    }
    if peer.early.is_empty() {
        arrival.newcomer = Some(Arc::new(context.lobby.enter(arrival.client)));
    }
    Ok(())
}

/// Tells the client its position until it is in. Dropped half-way, nothing is lost.
async fn queue<S: Socket>(peer: &mut Peer<S>, pass: &mut Pass) -> Result<(), Close> {
    let (mut told, mut bytes) = (None, 0);
    let mut look = interval(LOOK);
    loop {
        let may_read = bytes < MAX_EARLY_BYTES && peer.early.len() < MAX_EARLY_FRAMES;
        select! {
            biased;
            () = pass.turn() => return Ok(()),
            _ = look.tick() => {
                let position = pass.position();
                if let Some(position) = position.filter(|now| told != Some(*now) && !peer.writing.is_pending()) {
                    peer.reply(Reply::Queued { position });
                    told = Some(position);
                }
            }
            turn = peer.socket_turn(may_read) => match turn? {
                Turn::Flushed { .. } => {}
                Turn::Read(None) => return Err(Close::Lost),
                Turn::Read(Some(read)) => match read? {
                    Inbound::Text(text) => {
                        bytes += text.as_ref().len();
                        peer.early.push_back(text);
                    }
                    Inbound::Binary => return Err(Close::WrongKind),
                    Inbound::Ping | Inbound::Pong => {}
                    Inbound::Close => return Err(Close::ByClient),
                },
            }
        }
    }
}
