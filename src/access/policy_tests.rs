//! Tables of grants and what follows from them, and the promise that nothing outside of them is ever had.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use super::*;
use crate::access::identity::Claims;
use crate::access::{Rights, Subscribing};
use crate::mqtt::Message;
use crate::wire::Code;

/// The configuration that the documentation shows.
fn plant() -> &'static str {
    let documentation = include_str!("../../docs/access.md");
    let (_, example) = documentation.split_once("```toml\n").expect("an example");
    example.split_once("```").expect("its end").0
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    roles: BTreeMap<String, Role>,
    #[serde(default)]
    groups: BTreeMap<String, Group>,
}

fn policy(text: &str, narrows: bool) -> Policy {
    let File { roles, groups } = toml::from_str(text).unwrap_or_else(|error| panic!("{error}"));
    Policy::new(roles, groups, narrows).unwrap_or_else(|error| panic!("{error}"))
}

fn identity(roles: &[&str], claims: Value) -> Identity {
    let roles: Vec<String> = roles.iter().map(|&role| role.to_owned()).collect();
    let claims = Claims::of(claims.as_object().expect("an object"));
    Identity { user: Some("anna".into()), claims, ..Identity::anonymous(&roles) }
}

fn rights(text: &str, narrows: bool, roles: &[&str], claims: Value) -> Rights {
    Rights::new(Arc::new(policy(text, narrows)), identity(roles, claims), "c1")
}

fn topic(text: &str) -> Topic {
    Topic::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn filter(text: &str) -> TopicFilter {
    TopicFilter::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn publishes(rights: &Rights, to: &str, qos: Qos, retain: bool) -> bool {
    let message = Message { topic: topic(to), payload: Default::default(), qos, retain, properties: None };
    rights.publish(&message).is_ok()
}

fn subscribes(rights: &Rights, to: &str, qos: Qos) -> Option<(u8, bool)> {
    rights.subscribe(&filter(to), qos).ok().map(|granted| (granted.qos.number(), granted.is_narrowed))
}

#[test]
fn the_configuration_of_the_documentation_is_understood_as_written() {
    let operator = rights(plant(), false, &["operator"], json!({"site": "north"}));
    let viewer = rights(plant(), false, &["viewer"], json!({"site": "north"}));
    let both = rights(plant(), false, &["viewer", "operator"], json!({"site": "north"}));
    let of_two_sites = rights(plant(), false, &["viewer"], json!({"site": ["north", "south"]}));
    let of_none = rights(plant(), false, &["operator", "viewer"], json!({}));
    for (who, action, on, expected) in [
        (&operator, "publish", "plant/north/pump/1", true),
        (&operator, "publish", "plant/north", true),
        (&operator, "publish", "plant/south/pump/1", false),
        (&operator, "publish", "plant/north/safety/stop", false),
        (&operator, "publish", "plant/north/safety", false),
        (&operator, "subscribe", "plant/north/safety/#", true),
        (&operator, "subscribe", "plant/north/#", true),
        (&operator, "subscribe", "plant/+/#", false),
        (&operator, "subscribe", "plant/#", false),
        (&operator, "subscribe", "#", false),
        (&operator, "subscribe", "user/anna/x", false),
        (&viewer, "subscribe", "plant/north/pump/status", true),
        (&viewer, "subscribe", "plant/north/+/status", true),
        (&viewer, "subscribe", "plant/north/#", false),
        (&viewer, "subscribe", "plant/north/+/+", false),
        (&viewer, "subscribe", "plant/+/+/status", false),
        (&viewer, "subscribe", "$share/g/plant/north/+/status", true),
        (&viewer, "subscribe", "$share/g/plant/#", false),
        (&viewer, "subscribe", "user/anna/#", true),
        (&viewer, "subscribe", "user/bob/#", false),
        (&viewer, "subscribe", "user/+/#", false),
        (&viewer, "publish", "plant/north/pump/status", false),
        (&viewer, "publish", "user/anna/x", false),
        (&both, "publish", "plant/north/pump/1", true),
        (&both, "subscribe", "user/anna/#", true),
        (&both, "publish", "plant/north/safety/stop", false),
        (&of_two_sites, "subscribe", "plant/south/pump/status", true),
        (&of_two_sites, "subscribe", "plant/north/pump/status", true),
        (&of_two_sites, "subscribe", "plant/+/pump/status", false),
        (&of_none, "publish", "plant/north/x", false),
        (&of_none, "subscribe", "plant/north/x/status", false),
        (&of_none, "subscribe", "user/anna/x", true),
    ] {
        let seen = match action {
            "publish" => publishes(who, on, Qos::AtMostOnce, false),
            _ => subscribes(who, on, Qos::ExactlyOnce).is_some(),
        };
        assert_eq!(seen, expected, "{:?} {action} {on}", who.identity().roles);
    }
}

#[test]
fn grants_are_scanned_from_the_last() {
    let case = |grants: &str| rights(&format!("[roles.r]\ngrants = [{grants}]"), false, &["r"], json!({}));
    let allow = r#"{ allow = ["subscribe", "publish"], topics = ["a/#"] }"#;
    let deny = r#"{ deny = ["subscribe", "publish"], topics = ["a/b"] }"#;
    let again = r#"{ allow = ["subscribe", "publish"], topics = ["a/b", "a/c"] }"#;
    for (grants, publish_b, subscribe_b, subscribe_all, subscribe_c) in [
        ([allow, deny].join(","), false, false, false, true),
        ([deny, allow].join(","), true, true, true, true),
        ([allow, deny, again].join(","), true, true, false, true),
        (deny.to_owned(), false, false, false, false),
    ] {
        let rights = case(&grants);
        let seen = (
            publishes(&rights, "a/b", Qos::AtMostOnce, false),
            subscribes(&rights, "a/b", Qos::AtMostOnce).is_some(),
            subscribes(&rights, "a/#", Qos::AtMostOnce).is_some(),
            subscribes(&rights, "a/c", Qos::AtMostOnce).is_some(),
        );
        assert_eq!(seen, (publish_b, subscribe_b, subscribe_all, subscribe_c), "{grants}");
    }
}

#[test]
fn a_grant_may_speak_of_some_qos_and_of_stored_messages_alone() {
    let text = r#"
        [roles.r]
        grants = [
          { allow = ["publish", "subscribe"], topics = ["a/#"] },
          { deny = ["publish"], topics = ["a/#"], retain = true },
          { deny = ["publish", "subscribe"], topics = ["a/low/#"], qos = [1, 2] },
        ]
    "#;
    let rights = rights(text, false, &["r"], json!({}));
    assert!(publishes(&rights, "a/x", Qos::ExactlyOnce, false) && !publishes(&rights, "a/x", Qos::AtMostOnce, true));
    assert!(publishes(&rights, "a/low/x", Qos::AtMostOnce, false));
    assert!(!publishes(&rights, "a/low/x", Qos::AtLeastOnce, false));
    assert_eq!(subscribes(&rights, "a/low/x", Qos::ExactlyOnce), Some((0, false)), "as much as is allowed");
    assert_eq!(subscribes(&rights, "a/x", Qos::ExactlyOnce), Some((2, false)));
    assert_eq!(subscribes(&rights, "a/x", Qos::AtLeastOnce), Some((1, false)), "no more than was asked");
    assert_eq!(subscribes(&rights, "a/#", Qos::ExactlyOnce), Some((0, false)));
}

#[test]
fn system_topics_are_closed_unless_they_are_named() {
    let all = rights(
        r##"[roles.r]
        grants = [{ allow = ["subscribe", "publish"], topics = ["#", "+/+"] }]"##,
        true,
        &["r"],
        json!({}),
    );
    for closed in ["$SYS/#", "$SYS/broker/uptime", "$share/g/$SYS/#", "$other/x"] {
        assert_eq!(subscribes(&all, closed, Qos::AtMostOnce), None, "{closed}");
    }
    assert!(!all.receive(&topic("$SYS/broker/uptime")) && !publishes(&all, "$SYS/x", Qos::AtMostOnce, false));
    let named = rights(
        r#"[roles.r]
        grants = [{ allow = ["subscribe"], topics = ["$SYS/broker/#"] }]"#,
        false,
        &["r"],
        json!({}),
    );
    assert!(subscribes(&named, "$SYS/broker/uptime", Qos::AtMostOnce).is_some());
    assert_eq!(subscribes(&named, "$SYS/#", Qos::AtMostOnce), None);
}

#[test]
fn where_subscriptions_are_narrowed_a_part_is_enough_and_each_message_is_judged() {
    let rights = rights(plant(), true, &["operator", "viewer"], json!({"site": "north"}));
    assert_eq!(subscribes(&rights, "plant/north/#", Qos::AtMostOnce), Some((0, false)), "allowed as a whole");
    assert_eq!(subscribes(&rights, "#", Qos::AtLeastOnce), Some((1, true)));
    assert_eq!(subscribes(&rights, "plant/+/pump/status", Qos::AtMostOnce), Some((0, true)));
    assert_eq!(subscribes(&rights, "other/#", Qos::AtMostOnce), None);
    assert_eq!(subscribes(&rights, "$share/g/#", Qos::AtMostOnce), None, "a group would lose what is left out");
    for (on, expected) in [("plant/north/x", true), ("plant/south/x", false), ("user/anna/x", true), ("other", false)] {
        assert_eq!(rights.receive(&topic(on)), expected, "{on}");
    }
    let text = r##"[roles.r]
        grants = [{ allow = ["subscribe"], topics = ["#"] }, { deny = ["subscribe"], topics = ["a/#"] }]"##;
    let denied = self::rights(text, true, &["r"], json!({}));
    assert_eq!(subscribes(&denied, "a/b", Qos::AtMostOnce), None, "all of it is denied");
    assert_eq!(subscribes(&denied, "+/b", Qos::AtMostOnce), Some((0, true)));
    assert!(!denied.receive(&topic("a/b")) && denied.receive(&topic("b/b")));
}

#[test]
fn a_refusal_names_the_rule() {
    let operator = rights(plant(), false, &["operator"], json!({"site": "north"}));
    let message = |to: &str| Message {
        topic: topic(to),
        payload: Default::default(),
        qos: Qos::AtMostOnce,
        retain: false,
        properties: None,
    };
    let refusal = operator.publish(&message("plant/north/safety/stop")).expect_err("denied");
    assert_eq!(refusal.code, Code::NotAuthorized);
    assert_eq!(
        refusal.message,
        "You may not publish to plant/north/safety/stop: grant 2 of the role operator denies `publish` on plant/+/safety/#."
    );
    let refusal = operator.publish(&message("other")).expect_err("not allowed");
    assert_eq!(refusal.message, "You may not publish to other: no grant of the role operator allows it.");
    let refusal = rights(plant(), false, &[], json!({})).subscribe(&filter("a"), Qos::AtMostOnce).expect_err("no role");
    assert_eq!(refusal.message, "You may not subscribe to a: the session has no role.");
    let refusal = rights(plant(), false, &["gone", "viewer"], json!({})).publish(&message(&"x".repeat(60_000)));
    assert!(refusal.expect_err("not allowed").message.len() < 1000);
}

#[test]
fn a_slip_in_a_grant_is_told() {
    for (grant, expected) in [
        (r#"{ topics = ["a"] }"#, "a grant has either `allow` or `deny`"),
        (r#"{ allow = ["publish"], deny = ["publish"], topics = ["a"] }"#, "a grant has either `allow` or `deny`"),
        (r#"{ allow = [], topics = ["a"] }"#, "names what it speaks of"),
        (r#"{ allow = ["publish"], topics = [] }"#, "names its topics"),
        (r#"{ allow = ["publish"] }"#, "missing field `topics`"),
        (r#"{ allow = ["read"], topics = ["a"] }"#, "expected `publish` or `subscribe`"),
        (r#"{ allow = ["publish"], topics = ["a"], qos = [3] }"#, "qos is 0, 1 or 2"),
        (r#"{ allow = ["subscribe"], topics = ["a"], retain = true }"#, "speaks of [\"publish\"] alone"),
        (r#"{ allow = ["publish"], topics = ["a/{usr}"] }"#, "is no placeholder"),
        (r#"{ allow = ["publish"], topic = ["a"] }"#, "unknown field `topic`"),
    ] {
        let error = toml::from_str::<File>(&format!("[roles.r]\ngrants = [{grant}]")).err().expect(grant).to_string();
        assert!(error.contains(expected), "{grant}: {error}");
    }
    let text = "[roles.r]\ngrants = [{ allow = [\"publish\"], topics = [\"{group.pumps}/x\"] }]";
    let File { roles, groups } = toml::from_str(text).expect("TOML");
    assert_eq!(Policy::new(roles, groups, false).err().as_deref(), Some("roles.r: there is no [groups.pumps]"));
}

#[test]
fn of_several_roles_the_most_generous_limit_counts() {
    let policy = policy(
        "[roles.a]\nmax_publishes_per_second = 5\nmax_connections = 2\n[roles.b]\nmax_publishes_per_second = 7\n[roles.c]",
        false,
    );
    let of = |roles: &[&str]| policy.allowance(&identity(roles, json!({})));
    let allowance = of(&["a", "b", "c"]);
    assert_eq!(allowance.publishes_per_second.map(NonZeroU32::get), Some(7));
    assert_eq!(allowance.connections.map(NonZeroUsize::get), Some(2));
    assert_eq!(of(&["c", "none"]), Allowance::default());
}

/// Grants of few words, so that they often meet.
fn any_grants() -> impl Strategy<Value = Vec<Grant>> {
    let level = select(vec!["a", "b", "+", "{user}", "{claim.site}", "x{claim.list}", "", "$SYS"]);
    let pattern = (vec(level, 1..4), any::<bool>()).prop_filter_map("a pattern", |(levels, rest)| {
        Pattern::parse(&format!("{}{}", levels.join("/"), if rest { "/#" } else { "" })).ok()
    });
    let grant = (any::<bool>(), vec(pattern, 1..3), any::<bool>()).prop_map(|(allows, topics, both)| Grant {
        effect: if allows { Effect::Allow } else { Effect::Deny },
        actions: if both { vec![Action::Subscribe, Action::Publish] } else { vec![Action::Subscribe] },
        topics,
        qos: Vec::new(),
        retain: None,
    });
    vec(grant, 0..6)
}

/// The rule for a topic, written once more and as plainly as can be: every placeholder spelt out, every grant looked at.
fn may(grants: &[Grant], action: Action, topic: &str) -> bool {
    let values = |placeholder: &Placeholder| -> Vec<&str> {
        match placeholder {
            Placeholder::User => vec!["anna"],
            Placeholder::ClientId => vec!["c1"],
            Placeholder::Claim(name) if **name == *"site" => vec!["a"],
            Placeholder::Claim(_) => vec!["a", "b"],
            Placeholder::Group(_) => vec![],
        }
    };
    for grant in grants.iter().rev().filter(|grant| grant.actions.contains(&action)) {
        for pattern in &grant.topics {
            let mut filters = vec![pattern.as_str().to_owned()];
            for placeholder in pattern.placeholders() {
                let name = match placeholder {
                    Placeholder::User => "{user}".to_owned(),
                    Placeholder::ClientId => "{clientId}".to_owned(),
                    Placeholder::Claim(claim) => format!("{{claim.{claim}}}"),
                    Placeholder::Group(group) => format!("{{group.{group}}}"),
                };
                filters = filters
                    .iter()
                    .flat_map(|filter| values(placeholder).into_iter().map(|value| filter.replace(&name, value)))
                    .collect();
            }
            let topic = Topic::parse(topic).expect("a topic");
            if filters.iter().any(|text| TopicFilter::parse(text).expect("a filter").matches(&topic)) {
                return grant.effect == Effect::Allow;
            }
        }
    }
    false
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn nothing_outside_of_the_grants_is_published_or_delivered(
        grants in vec(any_grants(), 1..3),
        asked in crate::mqtt::topic::tests::any_pattern(),
        words in vec(select(vec!["a", "b", "anna", "xa", "xb", "", "$SYS", "c"]), 1..5),
        narrows: bool,
    ) {
        let names = ["r0", "r1"];
        let roles = names.iter().zip(&grants).map(|(name, grants)| {
            ((*name).to_owned(), Role { grants: grants.clone(), ..Role::default() })
        });
        let policy = Policy::new(roles.collect(), BTreeMap::new(), narrows).expect("a policy");
        let identity = identity(&names, json!({"site": "a", "list": ["a", "b"]}));
        let rights = Rights::new(Arc::new(policy), identity, "c1");
        let Ok(topic) = Topic::parse(&words.join("/")) else { return Ok(()) };
        let is_granted = |action| grants.iter().any(|grants| may(grants, action, topic.as_str()));
        prop_assert_eq!(
            publishes(&rights, topic.as_str(), Qos::AtMostOnce, false), is_granted(Action::Publish), "{:?}", grants
        );
        prop_assert_eq!(rights.receive(&topic), is_granted(Action::Subscribe), "{:?}", grants);
        // A subscription is as broad as the topics that it brings.
        let Ok(asked) = TopicFilter::parse(&asked) else { return Ok(()) };
        match rights.subscribe(&asked, Qos::AtMostOnce) {
            Ok(Subscribing { is_narrowed: false, .. }) if asked.matches(&topic) => {
                prop_assert!(is_granted(Action::Subscribe), "{} brings {} by {:?}", asked, topic, grants);
            }
            Ok(granted) => prop_assert!(narrows || !granted.is_narrowed),
            Err(_) => {}
        }
        // Of a topic alone, a subscription is judged as its deliveries are.
        if let Ok(filter) = TopicFilter::parse(topic.as_str()) {
            let granted = rights.subscribe(&filter, Qos::AtMostOnce).is_ok();
            prop_assert_eq!(granted, is_granted(Action::Subscribe), "{} by {:?}", topic, grants);
        }
    }
}
