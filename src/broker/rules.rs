//! How the embedded rumqttd must be treated so that it lives: what it is never sent, and what it can't be trusted with.
//!
//! Each rule answers something that stops its router or its listener for good, or loses messages; `tests/embedded_limits.rs` shows
//! each on a bare rumqttd.

use crate::mqtt::{Topic, TopicFilter};
use crate::wire::{Code, Refusal};

use super::link::Abilities;

/// It takes the first byte of a topic for a character: any other stops the router, at a publish, a retained message or a will.
pub fn judge_topic(topic: &Topic) -> Result<(), Refusal> {
    if topic.as_ref().starts_with(|first: char| !first.is_ascii()) {
        let message = "The embedded broker takes no topic that starts with a non-ASCII character; start it with another, \
                       or use Mosquitto.";
        return Err(Refusal::new(Code::InvalidTopic, message));
    }
    Ok(())
}

/// It cuts the connection over a filter that starts with `$`, without an answer.
pub fn judge_filter(filter: &TopicFilter) -> Result<(), Refusal> {
    if filter.pattern().starts_with('$') {
        let message = "The embedded broker has no `$` topics; subscribe to others, or use Mosquitto.";
        return Err(Refusal::new(Code::BrokerRejected, message));
    }
    Ok(())
}

/// A client identifier with one of `+ $ # /` stops the listener when it comes a second time.
pub fn client_id(id: &str) -> String {
    let mut escaped = String::with_capacity(id.len());
    // The probe's names are its own.
    let id = id.strip_prefix("tidegate.").map_or(id, |rest| {
        escaped.push_str("tidegate%2E");
        rest
    });
    for char in id.chars() {
        match char {
            '%' => escaped.push_str("%25"),
            '+' => escaped.push_str("%2B"),
            '$' => escaped.push_str("%24"),
            '#' => escaped.push_str("%23"),
            '/' => escaped.push_str("%2F"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// Its CONNACK keeps silent about the largest packet, and its shared subscriptions lose messages, or stop the router.
pub fn correct(abilities: Abilities) -> Abilities {
    Abilities {
        shared: false,
        maximum_packet_size: abilities.maximum_packet_size.min(super::embedded::MAX_PACKET),
        ..abilities
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_that_stop_the_router_are_refused_for_good() {
        for (topic, taken) in [("a/é", true), ("é", false), ("/é", true), ("$a", true), ("\u{1F600}/a", false)] {
            let refusal = judge_topic(&Topic::parse(topic).expect("a topic")).err();
            assert_eq!(refusal.is_none(), taken, "{topic}");
            if let Some(refusal) = refusal {
                assert_eq!((refusal.code, refusal.retryable), (Code::InvalidTopic, false));
                assert!(refusal.message.contains("embedded broker"));
            }
        }
    }

    #[test]
    fn filters_that_cut_the_connection_are_refused() {
        for (filter, taken) in
            [("#", true), ("é/#", true), ("$SYS/#", false), ("$x", false), ("$share/g/$SYS/#", false)]
        {
            assert_eq!(judge_filter(&TopicFilter::parse(filter).expect("a filter")).is_ok(), taken, "{filter}");
        }
    }

    #[test]
    fn client_identifiers_stay_distinct_and_plain() {
        let ids = ["a/b", "a%2Fb", "a+b", "a$b", "a#b", "ab", "é", "tidegate.probe.00", "tidegate%2Eprobe.00"];
        let escaped: Vec<_> = ids.map(client_id).into();
        for (index, id) in escaped.iter().enumerate() {
            assert!(!id.contains(['+', '$', '#', '/']) && !id.starts_with("tidegate."), "{id}");
            assert!(!escaped[..index].contains(id), "{id}");
        }
    }
}
