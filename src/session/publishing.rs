//! Publishes without a session: judged and counted as those of one.

use std::net::IpAddr;
use std::time::Instant;

use super::Context;
use super::state::judge_levels;
use crate::access::Rights;
use crate::audit::{Event, Request};
use crate::broker::Publishing;
use crate::mqtt::Message;
use crate::wire::{Code, Refusal};

/// What the audit log has in the place of a session.
const NO_SESSION: &str = "http";

impl Context {
    /// Publishes for somebody with these rights, or who may do everything, and waits until the broker has taken the message.
    pub async fn publish(
        &self,
        place: Publishing,
        rights: Option<&Rights>,
        address: IpAddr,
        message: Message,
    ) -> Result<(), Refusal> {
        let user = rights.and_then(|rights| rights.identity().user.as_deref());
        if let Err(refusal) = self.judge_publish(rights, &message) {
            if refusal.code == Code::NotAuthorized {
                self.audit.record(&Event::Refused {
                    session: None,
                    user,
                    address: Some(address),
                    request: Request::Publish,
                    topic: Some(message.topic.as_ref()),
                    why: &refusal.message,
                });
            }
            return Err(refusal);
        }
        if self.audit.covers(&message.topic) {
            self.audit.record(&Event::Published { session: NO_SESSION, user, message: &message });
        }
        place.publish(message).await
    }

    fn judge_publish(&self, rights: Option<&Rights>, message: &Message) -> Result<(), Refusal> {
        let settings = self.settings.load();
        let (max, bytes) = (settings.wire.max_payload.get(), message.payload.len());
        if bytes > max {
            let message = format!("The payload may have {max} bytes (wire.max_payload).");
            return Err(Refusal::new(Code::PayloadTooLarge, message));
        }
        judge_levels(message.topic.as_ref(), settings.wire.max_topic_levels.get())?;
        let Some(rights) = rights else { return Ok(()) };
        rights.publish(message)?;
        match rights.identity().user.as_deref() {
            Some(user) => self.quotas.publish(user, &rights.allowance(), bytes, Instant::now()),
            None => Ok(()),
        }
    }
}
