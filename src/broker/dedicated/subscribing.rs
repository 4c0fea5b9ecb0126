//! The subscriptions of a link: asked for, granted, restored, taken back.

use std::sync::Arc;
use std::time::Instant;

use super::{Dedicated, Origin};
use crate::access::Rights;
use crate::broker::connection::Connection;
use crate::broker::link::{Event, Owner};
use crate::broker::rules;
use crate::delivery::{Delivery, subscription_id};
use crate::metrics;
use crate::mqtt::inflight::{Request, RequestId};
use crate::mqtt::packet::{self, PacketId, SubscribeOptions};
use crate::mqtt::{Qos, Reason, TopicFilter};
use crate::wire::{Refusal, Subscription};

impl Dedicated {
    /// A resumed session's deliveries may come at once, so its subscriptions are in force before the broker has confirmed them.
    pub(super) fn subscribe_opening(&mut self, session_present: bool) {
        for (index, mut subscription) in self.opening.subscriptions.clone().into_iter().enumerate() {
            match self.judge_filter(&mut subscription) {
                Err(refusal) => self.opened[index] = Some(Err(refusal)),
                Ok(()) => {
                    if session_present {
                        let granted = subscription.options.qos;
                        self.insert(subscription.clone(), granted);
                        if self.setup.is_embedded() {
                            // rumqttd grants what is asked, and holds SUBACK back until enough of what waits is confirmed.
                            self.opened[index] = Some(Ok(granted));
                        }
                    }
                    self.ask_subscribe(Instant::now(), Origin::Opening(index, Box::new(subscription)));
                }
            }
        }
    }

    pub(super) fn restore(&mut self) {
        let all: Vec<_> = self.subscriptions.iter().cloned().collect();
        for mut subscription in all {
            if let Err(refusal) = self.judge_filter(&mut subscription) {
                self.lose_subscription(subscription.filter, refusal);
                continue;
            }
            // A request for the filter that waits for its answer is made again by itself, and goes before what was.
            if !self.origins.values().any(|origin| origin.filter() == Some(&subscription.filter)) {
                self.ask_subscribe(Instant::now(), Origin::Restore(Box::new(subscription)));
            }
        }
    }

    /// One subscription less is to be restored on this connection.
    pub(super) fn on_restored(&mut self) {
        if self.restoring > 0 {
            self.restoring -= 1;
            if self.restoring == 0 {
                self.tell_up();
            }
        }
    }

    pub(super) fn lose_subscription(&mut self, filter: TopicFilter, refusal: Refusal) {
        self.remove(&filter);
        self.downlink.tell(Event::SubscriptionLost(filter, refusal));
    }

    pub(super) fn insert(&mut self, subscription: Subscription, granted: Qos) {
        let before = self.subscriptions.len();
        let is_narrowed = self.is_narrowed(&subscription);
        self.subscriptions.insert(subscription, granted, is_narrowed);
        self.count_subscriptions(before, self.subscriptions.len());
    }

    /// The gateway's own, for many browsers, count there.
    pub(super) fn count_subscriptions(&self, before: usize, after: usize) {
        if self.opening.owner == Owner::Browser {
            metrics::subscriptions_changed(before, after);
        }
    }

    pub(super) fn remove(&mut self, filter: &TopicFilter) {
        let before = self.subscriptions.len();
        self.subscriptions.remove(filter);
        self.count_subscriptions(before, self.subscriptions.len());
        for receipt in self.downlink.purge(filter) {
            self.incoming.confirm(receipt);
        }
    }

    pub(super) fn ask_subscribe(&mut self, made: Instant, origin: Origin) {
        let (Origin::Subscribe(_, subscription) | Origin::Opening(_, subscription) | Origin::Restore(subscription)) =
            &origin
        else {
            unreachable!("only these subscribe")
        };
        let filter = subscription.filter.clone();
        let mut options = subscription.options;
        if filter.is_shared() {
            // Not every broker knows that these get no stored messages (MQTT 5 section 4.8.2); Mosquitto 2.0.11 doesn't.
            options.retain_handling = 2;
        }
        if matches!(origin, Origin::Restore(_)) && !self.is_session_lost {
            // Where the broker has it still, its stored messages came already.
            options.retain_handling = options.retain_handling.max(1);
        }
        let request = Request::Subscribe { subscription_id: subscription_id(&filter), options, filter };
        self.ask_since(made, request, origin);
    }

    pub(super) fn on_unsubscribe_command(&mut self, (id, made): (RequestId, Instant), filter: TopicFilter) {
        let size = packet::unsubscribe_size(filter.as_str());
        if let Some(reason) = self.ready.as_ref().and_then(|ready| ready.abilities.refuse_size(size)) {
            return self.downlink.tell(Event::Answered(id, Err(Refusal::from_reason(reason))));
        }
        // rumqttd answers only for filters that were subscribed on this connection.
        if self.setup.is_embedded() && !self.subscriptions.contains(&filter) {
            if self.ready.as_ref().is_none_or(|ready| !ready.session_present) || rules::judge_filter(&filter).is_err() {
                return self.downlink.tell(Event::Answered(id, Ok(())));
            }
            let options = SubscribeOptions { retain_handling: 2, ..SubscribeOptions::default() };
            let subscription_id = subscription_id(&filter);
            self.ask(Request::Subscribe { filter: filter.clone(), options, subscription_id }, Origin::Own);
        }
        self.ask_since(made, Request::Unsubscribe(filter.clone()), Origin::Unsubscribe(id, filter));
    }

    /// While the broker is away, a browser that goes on asking must not fill the memory.
    pub(super) fn judge_wait(&self, connection: Option<&Connection>) -> Result<(), Refusal> {
        let is_full = self.outgoing.waiting_subscriptions() >= self.setup.config.max_waiting.get();
        if connection.is_none() && is_full { Err(Refusal::broker_unavailable()) } else { Ok(()) }
    }

    /// Whether it may be asked for, with as high a qos as the session may have.
    pub(super) fn judge_filter(&self, subscription: &mut Subscription) -> Result<(), Refusal> {
        let filter = &subscription.filter;
        if let Some(rights) = &self.opening.rights {
            subscription.options.qos = rights.subscribe(filter, subscription.options.qos)?.qos;
        }
        if self.setup.is_embedded() {
            rules::judge_filter(filter)?;
        }
        let reason = self.ready.as_ref().and_then(|ready| ready.abilities.refuse_filter(filter));
        reason.map_or(Ok(()), |reason| Err(Refusal::from_reason(reason)))
    }

    fn is_narrowed(&self, subscription: &Subscription) -> bool {
        let Subscription { filter, options, .. } = subscription;
        self.opening.rights.as_ref().is_some_and(|rights| rights.narrows(filter, options.qos))
    }

    /// Ends what the session may not read any more, at once: what waits for it leaves, and what still comes of it is dropped.
    pub(super) fn judge_anew(&mut self, rights: Option<Arc<Rights>>) {
        self.opening.rights.clone_from(&rights);
        let mut ended = Vec::new();
        let Some(rights) = rights else {
            // Nothing ends, and nothing is left out or void any more.
            self.is_will_void = false;
            for filter in self.subscriptions.iter().map(|subscription| subscription.filter.clone()).collect::<Vec<_>>()
            {
                self.subscriptions.set_narrowed(&filter, false);
            }
            return;
        };
        self.is_will_void = self.opening.will.as_ref().is_some_and(|will| rights.publish(&will.message).is_err());
        for subscription in self.subscriptions.iter().cloned().collect::<Vec<_>>() {
            let Subscription { filter, options, .. } = &subscription;
            match rights.subscribe(filter, options.qos) {
                Ok(granted) => self.subscriptions.set_narrowed(filter, granted.is_narrowed),
                Err(_) => {
                    self.remove(filter);
                    self.ask(Request::Unsubscribe(filter.clone()), Origin::Own);
                    ended.push(subscription.filter);
                }
            }
        }
        self.judge_asked(&rights);
        // What was judged by its topic is judged by it again.
        let is_judged = |delivery: &Delivery| delivery.readers.is_empty() || self.subscriptions.has_narrowed();
        self.downlink.retain(|delivery| !is_judged(delivery) || rights.receive(&delivery.rendition.message.topic));
        self.downlink.tell(Event::Judged(ended));
    }

    /// What was asked and is not answered must not come into force.
    fn judge_asked(&mut self, rights: &Rights) {
        let refusal =
            |subscription: &Subscription| rights.subscribe(&subscription.filter, subscription.options.qos).err();
        let refused: Vec<_> = self
            .origins
            .iter()
            .filter_map(|(id, origin)| match origin {
                Origin::Subscribe(_, asked) | Origin::Opening(_, asked) | Origin::Restore(asked) => {
                    Some((*id, refusal(asked)?))
                }
                Origin::Publish(..) | Origin::Unsubscribe(..) | Origin::Revoked(..) | Origin::Own => None,
            })
            .collect();
        for (id, refusal) in refused {
            match self.origins.insert(id, Origin::Own) {
                Some(Origin::Subscribe(request, asked)) => {
                    self.origins.insert(id, Origin::Revoked(request, asked.filter, refusal));
                }
                Some(Origin::Opening(index, asked)) => {
                    self.remove(&asked.filter);
                    self.ask(Request::Unsubscribe(asked.filter), Origin::Own);
                    if let Some(opened) = self.opened.get_mut(index) {
                        *opened = Some(Err(refusal));
                    }
                    self.tell_if_ready();
                }
                // It is among those that have ended.
                Some(Origin::Restore(_)) => self.on_restored(),
                Some(Origin::Publish(..) | Origin::Unsubscribe(..) | Origin::Revoked(..) | Origin::Own) | None => {}
            }
        }
    }

    /// A broker may deliver before it has granted (MQTT 5 section 3.8.4): then the subscription is in force already.
    pub(super) fn brings_early(&mut self, ids: &[u32]) -> bool {
        let asked = self.origins.values().find_map(|origin| match origin {
            Origin::Subscribe(_, asked) | Origin::Opening(_, asked)
                if ids.contains(&subscription_id(&asked.filter)) =>
            {
                Some(asked)
            }
            _ => None,
        });
        let Some(asked) = asked.map(|asked| Subscription::clone(asked)) else { return false };
        let qos = asked.options.qos;
        self.insert(asked, qos);
        true
    }

    pub(super) fn on_subscription_answer(&mut self, id: PacketId, reason: Reason) {
        let Some((request, _, late)) = self.outgoing.on_suback(id) else { return };
        let refusal = (!reason.is_success()).then(|| Refusal::from_reason(reason));
        let granted = Qos::from_number(reason.0.into()).unwrap_or_default();
        match self.origins.remove(&request) {
            Some(Origin::Subscribe(id, subscription)) => match refusal {
                // The session was told that it failed, so it must not be in force.
                None if late => self.take_back(subscription.filter),
                None => {
                    self.insert(*subscription, granted);
                    self.downlink.tell(Event::Subscribed(id, Ok(granted)));
                }
                Some(_) if late => {}
                Some(refusal) => self.downlink.tell(Event::Subscribed(id, Err(refusal))),
            },
            Some(Origin::Revoked(id, filter, refusal)) => {
                self.take_back(filter);
                if !late {
                    self.downlink.tell(Event::Subscribed(id, Err(refusal)));
                }
            }
            Some(Origin::Opening(index, subscription)) => {
                let result = match refusal {
                    None => {
                        self.insert(*subscription, granted);
                        Ok(granted)
                    }
                    Some(refusal) => {
                        self.remove(&subscription.filter);
                        Err(refusal)
                    }
                };
                if let Some(opened) = self.opened.get_mut(index) {
                    *opened = Some(result);
                }
                self.tell_if_ready();
            }
            Some(Origin::Restore(subscription)) => {
                match refusal {
                    None => self.insert(*subscription, granted),
                    Some(refusal) => self.lose_subscription(subscription.filter, refusal),
                }
                self.on_restored();
            }
            Some(Origin::Unsubscribe(id, filter)) => {
                if refusal.is_none() {
                    self.remove(&filter);
                }
                if !late {
                    self.downlink.tell(Event::Answered(id, refusal.map_or(Ok(()), Err)));
                }
            }
            Some(Origin::Publish(..) | Origin::Own) | None => {}
        }
    }

    /// Puts the broker back to what the session knows of a filter: its earlier subscription, or none.
    pub(super) fn take_back(&mut self, filter: TopicFilter) {
        if self.origins.values().any(|origin| origin.filter() == Some(&filter)) {
            // The session has asked for it again, or for its end: that is behind this at the broker, and holds.
            return;
        }
        let earlier = self.subscriptions.iter().find(|earlier| earlier.filter == filter);
        let request = match earlier.map(|earlier| earlier.options) {
            Some(options) => Request::Subscribe {
                subscription_id: subscription_id(&filter),
                options: SubscribeOptions { retain_handling: 2, ..options },
                filter,
            },
            None => {
                // What it brought meanwhile is nobody's, and is to be confirmed.
                self.remove(&filter);
                Request::Unsubscribe(filter)
            }
        };
        self.ask(request, Origin::Own);
    }
}
