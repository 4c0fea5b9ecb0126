//! From a PUBLISH to the deliveries that it makes for the browser.

use std::sync::Arc;

use super::Dedicated;
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
        deliveries: &mut Vec<Delivery>,
    ) {
        if self.end.is_some() {
            // Whoever resumes the session gets it.
            return;
        }
        let Publish { id, dup, message, subscription_ids } = publish;
        let mut route = self.subscriptions.route(&message, &subscription_ids);
        if route == Route::Withhold && self.brings_early(&subscription_ids) {
            route = self.subscriptions.route(&message, &subscription_ids);
        }
        let targets = match route {
            Route::Deliver(targets) => targets,
            Route::Drop => Default::default(),
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
            });
        }
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
    format!("{id}-{digest:016x}-{ack}{format}{priority}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Contract;

    #[test]
    fn each_contract_of_a_message_has_a_msgid_that_is_fixed_for_all_versions_of_the_gateway() {
        let id = PacketId::new(7).expect("not 0");
        let msgid = |index, ack, format, priority| {
            let contract = Contract { ack, format, priority };
            msgid(id, 0xABC, index, &Target { contract, qos: Qos::AtLeastOnce, readers: Default::default() })
        };
        for (expected, seen) in [
            ("7-0000000000000abc", msgid(0, Ack::Auto, Format::Json, Priority::High)),
            ("7-0000000000000abc-at", msgid(1, Ack::Auto, Format::Text, Priority::Normal)),
            ("7-0000000000000abc-ath", msgid(1, Ack::Auto, Format::Text, Priority::High)),
            ("7-0000000000000abc-mtl", msgid(1, Ack::Manual, Format::Text, Priority::Low)),
            ("7-0000000000000abc-aj", msgid(1, Ack::Auto, Format::Json, Priority::Normal)),
        ] {
            assert_eq!(seen, expected);
        }
    }
}
