//! The end of a session at the broker: its last requests, its will, its goodbye.

use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use tracing::warn;

use super::{
    Connecting, Dedicated, GOODBYE, LAST_REQUESTS, LAST_REQUESTS_OF_DRAINED, LAST_REQUESTS_OF_PREDECESSOR, Origin,
    attempt,
};
use crate::broker::connection::{Connection, Lost};
use crate::mqtt::Qos;
use crate::mqtt::inflight::Request;
use crate::mqtt::packet;
use crate::wire::Close;

/// How far an ended session has got.
pub(super) struct End {
    pub(super) close: Close,
    pub(super) stage: Stage,
    pub(super) until: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// What was asked before is being answered.
    Requests,
    /// The will's delay passes.
    WillDelay,
    /// The will is being published.
    Will,
}

impl Dedicated {
    /// The will is to be published, if there is one.
    pub(super) fn fires_will(&self, end: &End) -> bool {
        end.close.fires_will() && !self.is_will_void
    }

    /// The broker would publish the will of this session, and must be told not to.
    pub(super) fn owes_goodbye(&self, end: &End) -> bool {
        self.opening.will.is_some()
            && !self.setup.is_embedded()
            && (!self.fires_will(end) || !self.is_ready || end.stage == Stage::Will)
    }

    /// `is_asking`: CONNECT may be on its way, and nobody knows whether the broker takes it.
    pub(super) fn is_done_offline(&self, is_asking: bool) -> bool {
        if self.is_abandoned {
            return true;
        }
        let Some(end) = &self.end else { return false };
        if Instant::now() >= end.until {
            return true;
        }
        if !self.is_connected_once() {
            // A broker that has taken it would publish the will of a session that never was.
            return !is_asking;
        }
        self.is_idle() && !self.owes_goodbye(end)
    }

    /// All that was asked is answered.
    fn is_idle(&self) -> bool {
        self.is_hung_up && self.outgoing.is_empty()
    }

    pub(super) fn begin_end(&mut self, close: Close, is_online: bool) {
        let patience = match close {
            Close::TakenOver => LAST_REQUESTS_OF_PREDECESSOR,
            Close::Drain if is_online => LAST_REQUESTS_OF_DRAINED,
            _ if is_online => LAST_REQUESTS,
            _ if !self.is_connected_once() => self.setup.config.connect_timeout,
            // There may be a will to withdraw, which takes as long as the broker holds it.
            _ => self.setup.config.grace,
        };
        self.end = Some(End { close, stage: Stage::Requests, until: Instant::now() + patience });
    }

    /// With a connection again: the goodbye must not wait for requests as long as it waited for the connection.
    pub(super) fn hasten_end(&mut self) {
        if let Some(end) = &mut self.end
            && end.stage != Stage::WillDelay
        {
            let patience = if end.close == Close::Drain { LAST_REQUESTS_OF_DRAINED } else { LAST_REQUESTS };
            end.until = end.until.min(Instant::now() + patience);
        }
    }

    /// Moves an ended session on; says whether it is time to leave the broker.
    pub(super) fn is_leaving(&mut self, connection: &mut Connection) -> bool {
        if self.end.is_some() && !self.is_ready {
            // It was never open, so it has no last requests and no will.
            return true;
        }
        loop {
            let idle = self.is_idle();
            let is_void = self.is_will_void;
            let Some(end) = &mut self.end else { return false };
            let fires_will = end.close.fires_will() && !is_void;
            let now = Instant::now();
            let passed = now >= end.until;
            match (end.stage, &self.opening.will) {
                (Stage::Requests, _) if !idle && !passed => return false,
                // The broker waits for that long anyway: it has the will.
                (Stage::Requests, Some(will)) if fires_will && self.setup.holds(will) => return true,
                (Stage::Requests, Some(will)) if fires_will => {
                    end.stage = Stage::WillDelay;
                    end.until = now + Duration::from_secs(will.delay.into());
                }
                (Stage::WillDelay, Some(will)) if passed => {
                    let message = will.message.clone();
                    end.stage = Stage::Will;
                    end.until = now + LAST_REQUESTS;
                    if self.judge(&message).is_err() {
                        warn!("the broker does not take the will of a session");
                    } else if message.qos == Qos::AtMostOnce {
                        packet::write_publish(&mut connection.outbound, &message, None, false);
                    } else {
                        self.ask(Request::Publish(message), Origin::Own);
                        self.write_due(connection);
                    }
                }
                (Stage::WillDelay, _) => return false,
                (Stage::Will, _) if !self.outgoing.is_empty() && !passed => return false,
                (Stage::Requests | Stage::Will, _) => return true,
            }
        }
    }

    /// Whoever lost the right to the session leaves nothing at the broker: no subscription, and nothing that waits.
    pub(super) async fn forget(&mut self) {
        let until = Instant::now() + self.setup.config.request_timeout;
        while Instant::now() < until {
            let connecting = Connecting { clean_start: true, session_expiry: 0, will: None, ..self.connecting() };
            let wait = self.back_off();
            match timeout_at(until, attempt(self.setup.clone(), connecting, wait, None)).await {
                Ok(Ok((mut connection, _))) => {
                    let _ = self.leave(&mut connection).await;
                    let _ = timeout(GOODBYE, connection.finish()).await;
                    return;
                }
                Ok(Err(lost)) if lost.is_final() => break,
                Ok(Err(_)) => self.attempts = self.attempts.saturating_add(1),
                Err(_) => break,
            }
        }
        warn!("the broker could not be told that a session was revoked: it may keep what it has of it");
    }

    /// Says goodbye, and what becomes of the session.
    pub(super) async fn leave(&mut self, connection: &mut Connection) -> Result<(), Lost> {
        let is_revoked = self.end.as_ref().is_some_and(|end| end.close == Close::Revoked);
        let expiry = if self.opening.clean || is_revoked { 0 } else { self.opening.session_expiry };
        let left_to_broker = match (&self.end, &self.opening.will) {
            (Some(end @ End { stage: Stage::Requests, .. }), Some(will))
                if self.fires_will(end) && self.is_ready && self.setup.holds(will) =>
            {
                Some(will)
            }
            _ => None,
        };
        match left_to_broker {
            // rumqttd may stop over a DISCONNECT: it gets the end of the stream instead.
            _ if self.setup.is_embedded() => {}
            Some(will) => packet::write_disconnect_with_will(&mut connection.outbound, expiry.max(will.delay)),
            None => packet::write_disconnect(&mut connection.outbound, expiry),
        }
        let flush = async { while !connection.outbound.is_empty() && connection.turn(false).await.is_ok() {} };
        let _ = timeout(GOODBYE, flush).await;
        Ok(())
    }
}
