//! From a PUBLISH to the deliveries that it makes for the browser.

use std::sync::Arc;

use super::{Dedicated, Deliveries};
use crate::delivery::{Delivery, Rendition, Route, Target};
use crate::metrics;
use crate::mqtt::inflight::Arrival;
use crate::mqtt::packet::{PacketId, Publish};
use crate::mqtt::{Message, Qos};
use crate::wire::{Ack, Format, Priority};

impl Dedicated {
    pub(super) fn on_publish(
        &mut self,
        publish: Publish,
        (timestamp, received): (u64, std::time::Instant),
        deliveries: &mut Deliveries,
    ) {
        if self.end.is_some() {
            // Whoever resumes the session gets it.
            return;
        }
        let Publish { id, dup, message, subscription_ids } = publish;
        let mut route = self.route(&message, &subscription_ids);
        if route == Route::Withhold && self.brings_early(&subscription_ids) {
            route = self.route(&message, &subscription_ids);
        }
        let targets = match route {
            Route::Deliver(targets) => targets,
            Route::Drop => Default::default(),
            Route::Refuse => {
                metrics::delivery_refused();
                Default::default()
            }
            Route::Withhold => return metrics::delivery_withheld(),
        };
        let mut known_by = None;
        if let Some(id) = id {
            let digest = message.digest();
            match self.incoming.on_publish(id, message.qos, dup, digest) {
                Arrival::Known => return,
                Arrival::New(receipt) => {
                    self.incoming.opened(receipt, targets.iter().filter(|target| target.qos > Qos::AtMostOnce).count());
                    known_by = Some((receipt, id, digest));
                }
            }
        }
        for (index, target) in targets.into_iter().enumerate() {
            let known_by = known_by.filter(|_| target.qos > Qos::AtMostOnce);
            deliveries.push(Delivery {
                msgid: known_by.map(|(_, id, digest)| msgid(id, digest, index, &target).into()),
                receipt: known_by.map(|(receipt, ..)| receipt),
                rendition: Arc::new(Rendition::new(
                    Message { qos: target.qos, ..message.clone() },
                    target.contract.format,
                    timestamp,
                    received,
                )),
                contract: target.contract,
                readers: target.readers,
                dup,
                skipped: 0,
            });
        }
    }
}

impl Dedicated {
    fn route(&self, message: &Message, subscription_ids: &[u32]) -> Route {
        let rights = self.opening.rights.as_deref();
        let may_receive = |message: &Message| rights.is_none_or(|rights| rights.receive(&message.topic));
        self.subscriptions.route(message, subscription_ids, may_receive)
    }
}

/// Derived from what a broker sends again, so that every gateway process gives a delivery the same one.
fn msgid(id: PacketId, digest: u64, index: usize, target: &Target) -> String {
    if index == 0 {
        return format!("{id}-{digest:016x}");
    }
    let ack = match target.contract.ack {
        Ack::Auto => 'a',
        Ack::Manual => 'm',
    };
    let format = match target.contract.format {
        Format::Text => 't',
        Format::Json => 'j',
    };
    let priority = match target.contract.priority {
        Priority::High => "h",
        Priority::Normal => "",
        Priority::Low => "l",
    };
    let mut msgid = format!("{id}-{digest:016x}-{ack}{format}{priority}");
    if let Some(rate) = target.contract.max_rate {
        msgid.push_str(&format!("r{}", rate.interval().as_micros()));
    }
    if target.contract.delta {
        msgid.push('d');
    }
    if let Some(batch) = target.contract.batch {
        msgid.push_str(&format!("b{}.{}", batch.max_messages, batch.max_delay));
    }
    msgid
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::wire::{Batch, Contract, Rate};

    #[test]
    fn each_contract_of_a_message_has_a_msgid_that_is_fixed_for_all_versions_of_the_gateway() {
        let id = PacketId::new(7).expect("not 0");
        let known_by = |index, contract: Contract| {
            msgid(id, 0xABC, index, &Target { contract, qos: Qos::AtLeastOnce, readers: Default::default() })
        };
        let msgid =
            |index, ack, format, priority| known_by(index, Contract { ack, format, priority, ..Contract::default() });
        let max_rate = Rate::per_second(2.0);
        let batch = Some(Batch { max_messages: NonZeroU16::MIN, max_delay: 50 });
        for (expected, seen) in [
            ("7-0000000000000abc", msgid(0, Ack::Auto, Format::Json, Priority::High)),
            ("7-0000000000000abc-at", msgid(1, Ack::Auto, Format::Text, Priority::Normal)),
            ("7-0000000000000abc-ath", msgid(1, Ack::Auto, Format::Text, Priority::High)),
            ("7-0000000000000abc-mtl", msgid(1, Ack::Manual, Format::Text, Priority::Low)),
            ("7-0000000000000abc-aj", msgid(1, Ack::Auto, Format::Json, Priority::Normal)),
            ("7-0000000000000abc-atr500000", known_by(1, Contract { max_rate, ..Contract::default() })),
            ("7-0000000000000abc-atd", known_by(1, Contract { delta: true, ..Contract::default() })),
            ("7-0000000000000abc-atb1.50", known_by(1, Contract { batch, ..Contract::default() })),
            (
                "7-0000000000000abc-atr500000db1.50",
                known_by(1, Contract { max_rate, delta: true, batch, ..Contract::default() }),
            ),
        ] {
            assert_eq!(seen, expected);
        }
    }
}
