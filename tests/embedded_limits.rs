//! What rumqttd, the embedded broker, does otherwise than MQTT 5 or Mosquitto says: each row of the
//! README's table is a test here that fails when a later rumqttd behaves differently. The packets
//! are raw, so that nothing of ours stands between the claim and the broker.

#![cfg(feature = "embedded-broker")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use rumqttc::v5::mqttbytes::{
    Error, QoS,
    v5::{
        ConnAck, Connect, ConnectProperties, ConnectReturnCode, Disconnect, DisconnectReasonCode, Filter, LastWill,
        LastWillProperties, Packet, PingReq, PubAck, PubAckReason, PubComp, PubRec, PubRel, Publish, PublishProperties,
        RetainForwardRule, Subscribe, SubscribeProperties, SubscribeReasonCode, Unsubscribe,
    },
};
use tidegate::broker::embedded::{Embedded, MAX_PACKET, MAX_RETAINED};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};

/// Longer than any answer on loopback takes.
const LONG: Duration = Duration::from_secs(10);

/// Long enough to believe that nothing comes.
const QUIET: Duration = Duration::from_millis(300);

// ---- What kills it, so that a gateway never sends it -------------------------------------------

#[tokio::test]
async fn a_publish_whose_topic_starts_with_a_non_ascii_character_kills_rumqttd() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    alice.publish("Öfen/1", "hot").await;
    broker.probe().await.expect("no filter, no harm");

    alice.subscribe("attic/#", QoS::AtMostOnce).await;
    alice.send(publish("Öfen/2", QoS::AtMostOnce, "hot")).await;
    assert_dead(&broker).await;
}

#[tokio::test]
async fn a_will_whose_topic_starts_with_a_non_ascii_character_kills_rumqttd() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    alice.subscribe("attic/#", QoS::AtMostOnce).await;
    let bob = Session::named("bob").will("Öfen/1", "gone", 0);
    bob.open(&broker).await.leave().await;
    assert_dead(&broker).await;
}

#[tokio::test]
async fn a_subscribe_kills_rumqttd_when_such_a_topic_is_retained() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    alice.retain("Öfen/1", "hot").await;
    broker.probe().await.expect("no filter, no harm");
    alice.send(subscribe("attic/#", QoS::AtMostOnce)).await;
    assert_dead(&broker).await;
}

#[tokio::test]
async fn a_filter_and_later_levels_may_start_with_a_non_ascii_character() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    alice.subscribe("Öfen/+", QoS::AtMostOnce).await;
    alice.subscribe("haus/Öfen/+", QoS::AtMostOnce).await;
    alice.send(publish("haus/Öfen/1", QoS::AtMostOnce, "hot")).await;
    assert_eq!(alice.delivery().await.topic, "haus/Öfen/1");
    broker.probe().await.expect("alive");
}

#[tokio::test]
async fn a_disconnect_behind_199_queued_deliveries_kills_rumqttd() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    // Whether the router or the connection is faster is a race: about every second try wins it.
    for _ in 0..60 {
        let lasting = Session::named("bob").lasting();
        let mut bob = lasting.open(&broker).await;
        bob.subscribe("attic/#", QoS::AtMostOnce).await;
        bob.leave().await;
        for _ in 0..300 {
            alice.send(publish("attic/1", QoS::AtMostOnce, "21")).await;
        }
        alice.ping().await;
        let mut bob = dial(broker.link_address()).await;
        bob.send_all(&[lasting.packet(), Packet::Disconnect(normal_disconnect())]).await;
        bob.read_to_end().await;
        if broker.probe().await.is_err() {
            return;
        }
    }
    panic!("it lived");
}

#[tokio::test]
async fn closing_the_connection_with_deliveries_queued_does_no_harm() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    for _ in 0..20 {
        let mut bob = join(&broker, "bob").await;
        bob.subscribe("attic/#", QoS::AtMostOnce).await;
        for _ in 0..300 {
            alice.send(publish("attic/1", QoS::AtMostOnce, "21")).await;
        }
        bob.leave().await;
    }
    broker.probe().await.expect("alive");
}

#[tokio::test]
async fn the_last_lasting_member_of_a_group_kills_rumqttd_by_leaving_with_a_delivery_unconfirmed() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    let mut bob = Session::named("bob").lasting().open(&broker).await;
    bob.subscribe("$share/group/attic", QoS::AtLeastOnce).await;
    alice.publish("attic", "21").await;
    bob.delivery().await;
    bob.leave().await;
    assert_dead(&broker).await;
}

#[tokio::test]
async fn a_client_id_with_a_slash_plus_hash_or_dollar_kills_rumqttd_when_it_comes_twice() {
    for id in ["a/b", "a+b", "a#b", "a$b"] {
        let broker = start();
        for _ in 0..2 {
            let mut odd = dial(broker.link_address()).await;
            odd.send(Session::named(id).packet()).await;
            odd.expect_end().await;
        }
        assert_dead(&broker).await;
    }
}

#[tokio::test]
async fn a_client_that_sends_connack_and_comes_again_kills_rumqttd() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    alice
        .send(Packet::ConnAck(ConnAck { session_present: false, code: ConnectReturnCode::Success, properties: None }))
        .await;
    alice.expect_end().await;
    broker.probe().await.expect("alive until alice is back");
    dial(broker.link_address()).await.send(Session::named("alice").packet()).await;
    assert_dead(&broker).await;
}

#[tokio::test]
async fn a_connection_reset_before_connack_kills_rumqttd_when_the_client_comes_again() {
    let broker = start();
    for _ in 0..1000 {
        let mut bob = dial(broker.link_address()).await;
        bob.send(Session::named("bob").packet()).await;
        bob.stream.set_zero_linger().expect("a socket option");
        drop(bob);
        if broker.probe().await.is_err() {
            return;
        }
    }
    panic!("it lived");
}

#[tokio::test]
async fn closing_before_connack_does_no_harm() {
    let broker = start();
    for _ in 0..300 {
        let mut bob = dial(broker.link_address()).await;
        bob.send(Session::named("bob").packet()).await;
    }
    broker.probe().await.expect("alive");
}

#[tokio::test]
async fn a_client_that_comes_again_before_rumqttd_saw_it_go_may_be_cut_off() {
    let broker = start();
    for _ in 0..5000 {
        let mut bob = join(&broker, "bob").await;
        bob.send(Packet::PingReq(PingReq)).await;
        if timeout(LONG, bob.receive()).await.expect("in time").is_none() {
            return;
        }
    }
    panic!("it never was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_disconnects_and_closes_at_once_may_cut_off_another() {
    let broker = Arc::new(start());
    let cut = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for name in 0..8 {
        let (broker, cut) = (broker.clone(), cut.clone());
        clients.spawn(async move {
            for turn in 0..2500 {
                let mut client = join(&broker, &format!("{name}.{turn}")).await;
                client.send(Packet::PingReq(PingReq)).await;
                match timeout(LONG, client.receive()).await.expect("in time") {
                    Some(_) if cut.load(Ordering::Relaxed) => return,
                    Some(_) => client.send(Packet::Disconnect(normal_disconnect())).await,
                    None => return cut.store(true, Ordering::Relaxed),
                }
            }
        });
    }
    clients.join_all().await;
    assert!(cut.load(Ordering::Relaxed), "nobody was");
}

#[tokio::test]
async fn clients_that_close_and_wait_for_the_end_may_come_again_at_once() {
    let broker = start();
    for _ in 0..1000 {
        let mut bob = join(&broker, "bob").await;
        bob.ping().await;
        bob.leave().await;
    }
    broker.probe().await.expect("alive");
}

// ---- Connections -------------------------------------------------------------------------------

#[tokio::test]
async fn rumqttd_tells_no_limits_but_its_topic_alias_maximum() {
    let broker = start();
    let (_, connack) = Session::named("alice").connect(&broker).await;
    let mut told = connack.properties.expect("properties");
    assert_eq!(told.topic_alias_max.take(), Some(4096));
    // What is left is what the smallest of all CONNACKs says.
    let mut nothing = BytesMut::from(&b"\x20\x05\0\0\x02\x24\x01"[..]);
    let Ok(Packet::ConnAck(nothing)) = Packet::read(&mut nothing, None) else {
        panic!("a CONNACK that says maximum qos 1");
    };
    told.max_qos = Some(1);
    assert_eq!(Some(told), nothing.properties);
}

#[tokio::test]
async fn rumqttd_gives_an_id_to_a_client_without_one() {
    let broker = start();
    let (_, connack) = Session::named("").connect(&broker).await;
    let id = connack.properties.and_then(|told| told.assigned_client_identifier);
    assert!(id.expect("an id").starts_with("rumqtt-"));
}

#[tokio::test]
async fn rumqttd_refuses_a_lasting_session_without_a_client_id() {
    let broker = start();
    let (_, connack) = Session::named("").lasting().connect(&broker).await;
    assert_eq!(connack.code, ConnectReturnCode::ClientIdentifierNotValid);
}

#[tokio::test]
async fn rumqttd_cuts_off_a_client_without_keep_alive() {
    let broker = start();
    let mut session = Session::named("alice");
    session.connect.keep_alive = 0;
    let mut alice = dial(broker.link_address()).await;
    alice.send(session.packet()).await;
    alice.expect_end().await;
}

#[tokio::test]
async fn rumqttd_admits_everybody() {
    let broker = start();
    let mut stream = dial(broker.link_address()).await;
    let session = Session::named("alice");
    let login = rumqttc::v5::mqttbytes::v5::Login::new("nobody", "wrong");
    stream.send(Packet::Connect(session.connect, None, Some(login))).await;
    assert_eq!(stream.connack().await.code, ConnectReturnCode::Success);
}

#[tokio::test]
async fn rumqttd_cuts_off_a_client_that_sends_too_large_a_packet() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    alice.subscribe("large", QoS::AtMostOnce).await;
    let overhead = 2 + "large".len() + 1;
    let largest = "x".repeat(MAX_PACKET - overhead);
    alice.send(publish("large", QoS::AtMostOnce, largest.clone())).await;
    assert_eq!(alice.delivery().await.payload.len(), largest.len());

    // The head alone: of what follows, the end may come before it is written.
    let mut bytes = BytesMut::new();
    publish("large", QoS::AtMostOnce, largest + "x").write(&mut bytes, None).expect("well formed");
    alice.send_bytes(&bytes[..10]).await;
    alice.expect_end().await;
}

#[tokio::test]
async fn rumqttd_says_nothing_to_a_client_that_is_taken_over() {
    let broker = start();
    let mut first = join(&broker, "alice").await;
    let _second = join(&broker, "alice").await;
    first.expect_end().await;
}

#[tokio::test]
async fn a_takeover_of_a_client_that_does_not_read_cuts_off_the_new_one_too() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    let mut first = join(&broker, "bob").await;
    first.subscribe("attic/#", QoS::AtMostOnce).await;
    for _ in 0..400 {
        let payload = "x".repeat(60_000);
        alice.send(publish("attic/1", QoS::AtMostOnce, payload)).await;
    }
    alice.ping().await;
    let mut second = join(&broker, "bob").await;
    second.ping().await;
    drop(first);
    second.expect_end().await;
}

// ---- Sessions ----------------------------------------------------------------------------------

#[tokio::test]
async fn rumqttd_ends_a_session_begun_with_clean_start_whatever_its_expiry() {
    let broker = start();
    Session::named("alice").expiry(3600).open(&broker).await.leave().await;
    let back = Session::named("alice").lasting().expiry(3600);
    assert!(!back.connect(&broker).await.1.session_present);
}

#[tokio::test]
async fn rumqttd_keeps_a_session_begun_without_clean_start_whatever_its_expiry() {
    let broker = start();
    let lasting = Session::named("alice").lasting().expiry(0);
    lasting.open(&broker).await.leave().await;
    sleep(Duration::from_millis(1200)).await;
    assert!(lasting.connect(&broker).await.1.session_present);
}

#[tokio::test]
async fn rumqttd_queues_qos_0_1_and_2_for_a_session_that_is_away() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    for (filter, qos) in [("zero", 0), ("one", 1), ("two", 2)] {
        let lasting = Session::named(filter).lasting();
        let mut bob = lasting.open(&broker).await;
        bob.subscribe(filter, quality(qos)).await;
        bob.leave().await;
        alice.publish(filter, "while away").await;
        let mut bob = lasting.open(&broker).await;
        assert_eq!(bob.delivery().await.payload, "while away");
    }
}

#[tokio::test]
async fn rumqttd_redelivers_without_dup_and_under_new_packet_ids() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    let lasting = Session::named("bob").lasting();
    let mut bob = lasting.open(&broker).await;
    bob.subscribe("attic", QoS::AtLeastOnce).await;
    for payload in ["a", "b", "c"] {
        alice.publish("attic", payload).await;
    }
    let first = bob.delivery().await;
    bob.send(puback(first.pkid)).await;
    let second = bob.delivery().await;
    assert_eq!((second.payload.as_ref(), second.pkid), (&b"b"[..], 2));
    bob.ping().await;
    bob.leave().await;

    let mut bob = lasting.open(&broker).await;
    let again = bob.delivery().await;
    assert_eq!((again.payload.as_ref(), again.pkid, again.dup), (&b"b"[..], 1, false));
}

#[tokio::test]
async fn rumqttd_holds_pubrel_back_after_a_resume_until_it_has_something_else_to_say() {
    let broker = start();
    let lasting = Session::named("bob").lasting();
    let pkid = leave_before_pubcomp(&broker, &lasting).await;
    let mut bob = lasting.open(&broker).await;
    bob.expect_nothing().await;
    bob.send(Packet::PingReq(PingReq)).await;
    let Packet::PubRel(pubrel) = bob.next().await else {
        panic!("no PUBREL");
    };
    assert_eq!(pubrel.pkid, pkid);
    assert!(matches!(bob.next().await, Packet::PingResp(_)));
}

#[tokio::test]
async fn rumqttd_gives_a_packet_id_that_awaits_pubcomp_to_another_message_after_a_resume() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    let lasting = Session::named("bob").lasting();
    let pkid = leave_before_pubcomp(&broker, &lasting).await;
    let mut bob = lasting.open(&broker).await;
    alice.publish_exactly_once("attic", "b").await;
    assert!(matches!(bob.next().await, Packet::PubRel(_)));
    let second = bob.delivery().await;
    assert_eq!((second.pkid, &second.payload[..]), (pkid, &b"b"[..]));
}

#[tokio::test]
async fn rumqttd_forgets_a_qos_2_publish_between_pubrec_and_pubrel_when_the_link_is_lost() {
    let broker = start();
    let mut watcher = join(&broker, "watcher").await;
    watcher.subscribe("attic", QoS::AtMostOnce).await;
    let lasting = Session::named("alice").lasting();
    let mut alice = lasting.open(&broker).await;
    alice.send(publish("attic", QoS::ExactlyOnce, "a")).await;
    assert!(matches!(alice.next().await, Packet::PubRec(_)));
    alice.leave().await;

    let (mut alice, connack) = lasting.connect(&broker).await;
    assert!(connack.session_present);
    alice.send(pubrel(PKID)).await;
    alice.expect_end().await;
    watcher.expect_nothing().await;
}

#[tokio::test]
async fn rumqttd_delivers_a_qos_2_publish_twice_when_it_comes_twice() {
    let broker = start();
    let mut watcher = join(&broker, "watcher").await;
    watcher.subscribe("attic", QoS::AtMostOnce).await;
    let lasting = Session::named("alice").lasting();
    let mut alice = lasting.open(&broker).await;
    alice.send(publish("attic", QoS::ExactlyOnce, "a")).await;
    assert!(matches!(alice.next().await, Packet::PubRec(_)));
    alice.send(publish("attic", QoS::ExactlyOnce, "a")).await;
    assert!(matches!(alice.next().await, Packet::PubRec(_)));
    for _ in 0..2 {
        alice.send(pubrel(PKID)).await;
        assert!(matches!(alice.next().await, Packet::PubComp(_)));
        assert_eq!(watcher.delivery().await.payload, "a");
    }
}

#[tokio::test]
async fn rumqttd_releases_qos_2_publishes_in_their_order_whichever_pubrel_names() {
    let broker = start();
    let mut watcher = join(&broker, "watcher").await;
    watcher.subscribe("attic", QoS::AtMostOnce).await;
    let mut alice = join(&broker, "alice").await;
    for (pkid, payload) in [(1, "first"), (2, "second")] {
        let mut message = Publish::new("attic", QoS::ExactlyOnce, payload, None);
        message.pkid = pkid;
        alice.send(Packet::Publish(message)).await;
        assert!(matches!(alice.next().await, Packet::PubRec(_)));
    }
    alice.send(pubrel(2)).await;
    assert_eq!(watcher.delivery().await.payload, "first");
}

#[tokio::test]
async fn rumqttd_drops_the_oldest_of_more_than_16_mib_that_wait_for_a_session() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    let lasting = Session::named("bob").lasting();
    let mut bob = lasting.open(&broker).await;
    bob.subscribe("attic", QoS::AtLeastOnce).await;
    bob.leave().await;
    for number in 0..20 {
        let payload = format!("{number:04}").repeat(1 << 18);
        alice.publish("attic", payload).await;
    }
    let mut bob = lasting.open(&broker).await;
    let oldest = bob.delivery().await;
    assert_eq!(&oldest.payload[..4], b"0004");
}

#[tokio::test]
async fn rumqttd_forgets_subscription_identifiers_when_a_session_is_resumed() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    let lasting = Session::named("bob").lasting();
    let mut bob = lasting.open(&broker).await;
    bob.send(identified("attic", 7)).await;
    bob.suback().await;
    alice.publish("attic", "a").await;
    assert_eq!(bob.delivery().await.identifiers, [7]);
    bob.leave().await;

    let mut bob = lasting.open(&broker).await;
    alice.publish("attic", "b").await;
    assert!(bob.delivery().await.identifiers.is_empty());
    bob.send(identified("attic", 7)).await;
    bob.suback().await;
    alice.publish("attic", "c").await;
    assert_eq!(bob.delivery().await.identifiers, [7]);
}

#[tokio::test]
async fn rumqttd_does_not_unsubscribe_a_filter_of_a_resumed_session_before_it_is_subscribed_again() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    let lasting = Session::named("bob").lasting();
    let mut bob = lasting.open(&broker).await;
    bob.subscribe("attic", QoS::AtMostOnce).await;
    bob.leave().await;

    let mut bob = lasting.open(&broker).await;
    bob.send(unsubscribe(&["attic"])).await;
    bob.expect_nothing().await;
    alice.publish("attic", "still").await;
    assert_eq!(bob.delivery().await.payload, "still");

    bob.subscribe("attic", QoS::AtMostOnce).await;
    bob.send(unsubscribe(&["attic"])).await;
    assert!(matches!(bob.next().await, Packet::UnsubAck(_)));
    alice.publish("attic", "no more").await;
    bob.expect_nothing().await;
}

// ---- Subscriptions -----------------------------------------------------------------------------

#[tokio::test]
async fn rumqttd_ignores_no_local() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    let mut filter = Filter::new("attic", QoS::AtMostOnce);
    filter.nolocal = true;
    alice.subscribe_to(filter).await;
    alice.send(publish("attic", QoS::AtMostOnce, "own")).await;
    assert_eq!(alice.delivery().await.payload, "own");
}

#[tokio::test]
async fn rumqttd_sends_retained_messages_although_retain_handling_is_2() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    alice.retain("attic", "21").await;
    let mut filter = Filter::new("attic", QoS::AtMostOnce);
    filter.retain_forward_rule = RetainForwardRule::Never;
    alice.subscribe_to(filter).await;
    assert_eq!(alice.delivery().await.payload, "21");
}

#[tokio::test]
async fn rumqttd_sends_no_retained_messages_when_a_filter_is_subscribed_again() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    alice.retain("attic", "21").await;
    alice.subscribe("attic", QoS::AtMostOnce).await;
    assert_eq!(alice.delivery().await.payload, "21");
    alice.subscribe("attic", QoS::AtMostOnce).await;
    alice.expect_nothing().await;
}

#[tokio::test]
async fn rumqttd_ignores_retain_as_published() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    let mut filter = Filter::new("attic", QoS::AtMostOnce);
    filter.preserve_retain = true;
    alice.subscribe_to(filter).await;
    alice.retain("attic", "21").await;
    assert!(!alice.delivery().await.retain);
}

#[tokio::test]
async fn rumqttd_raises_the_qos_of_a_message_to_that_of_the_subscription() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    alice.subscribe("attic", QoS::ExactlyOnce).await;
    alice.send(publish("attic", QoS::AtMostOnce, "21")).await;
    assert_eq!(alice.delivery().await.qos, QoS::ExactlyOnce);
}

#[tokio::test]
async fn rumqttd_lowers_the_qos_of_a_message_to_that_of_the_subscription() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    let mut bob = join(&broker, "bob").await;
    bob.subscribe("attic", QoS::AtLeastOnce).await;
    alice.publish_exactly_once("attic", "21").await;
    assert_eq!(bob.delivery().await.qos, QoS::AtLeastOnce);
}

#[tokio::test]
async fn rumqttd_keeps_the_first_qos_of_a_filter_that_is_subscribed_again() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    alice.subscribe("attic", QoS::AtMostOnce).await;
    let granted = alice.subscribe("attic", QoS::AtLeastOnce).await;
    assert_eq!(granted, [SubscribeReasonCode::Success(QoS::AtLeastOnce)]);
    alice.publish("attic", "21").await;
    assert_eq!(alice.delivery().await.qos, QoS::AtMostOnce);
}

#[tokio::test]
async fn rumqttd_delivers_a_copy_for_each_overlapping_subscription_with_its_identifier() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    for (filter, identifier) in [("attic/#", 7), ("attic/+", 8)] {
        alice.send(identified(filter, identifier)).await;
        alice.suback().await;
    }
    alice.send(publish("attic/1", QoS::AtMostOnce, "21")).await;
    let mut copies = [alice.delivery().await, alice.delivery().await].map(|copy| copy.identifiers);
    copies.sort();
    assert_eq!(copies, [[7], [8]]);
    alice.expect_nothing().await;
}

#[tokio::test]
async fn rumqttd_cuts_off_a_client_that_subscribes_to_a_dollar_filter() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    alice.send(subscribe("$SYS/#", QoS::AtMostOnce)).await;
    alice.expect_end().await;
}

#[tokio::test]
async fn rumqttd_takes_a_publish_to_a_dollar_topic_and_delivers_it_to_nobody() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    alice.subscribe("#", QoS::AtMostOnce).await;
    alice.subscribe("+/house", QoS::AtMostOnce).await;
    alice.publish("$SYS/house", "21").await;
    alice.expect_nothing().await;
}

#[tokio::test]
async fn rumqttd_never_answers_the_unsubscribe_of_a_filter_that_is_not_there() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    alice.send(unsubscribe(&["attic"])).await;
    alice.expect_nothing().await;
}

#[tokio::test]
async fn rumqttd_answers_an_unsubscribe_once_for_each_filter() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    alice.subscribe("a", QoS::AtMostOnce).await;
    alice.subscribe("b", QoS::AtMostOnce).await;
    alice.send(unsubscribe(&["a", "unknown", "b"])).await;
    for _ in 0..2 {
        let Packet::UnsubAck(unsuback) = alice.next().await else {
            panic!("no UNSUBACK");
        };
        assert_eq!((unsuback.pkid, unsuback.reasons.len()), (PKID, 1));
    }
    alice.expect_nothing().await;
}

// ---- Shared subscriptions ----------------------------------------------------------------------

#[tokio::test]
async fn rumqttd_deals_messages_to_a_group_in_turn() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    let mut members = [join(&broker, "bob").await, join(&broker, "carol").await];
    for member in &mut members {
        member.subscribe("$share/group/attic", QoS::AtMostOnce).await;
    }
    for _ in 0..10 {
        alice.publish("attic", "21").await;
    }
    for member in &mut members {
        for _ in 0..5 {
            member.delivery().await;
        }
        member.expect_nothing().await;
    }
}

#[tokio::test]
async fn rumqttd_stalls_a_group_when_one_member_stops_confirming() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    let mut bob = join(&broker, "bob").await;
    let mut carol = join(&broker, "carol").await;
    for member in [&mut bob, &mut carol] {
        member.subscribe("$share/group/attic", QoS::AtLeastOnce).await;
    }
    for _ in 0..300 {
        alice.publish("attic", "21").await;
    }
    // Carol confirms all that she gets, bob nothing: his 100 are hers too, and then it is over.
    let mut got = 0;
    while let Some(packet) = carol.within(QUIET).await {
        if let Packet::Publish(publish) = packet {
            carol.send(puback(publish.pkid)).await;
            got += 1;
        }
    }
    assert!((99..=101).contains(&got), "{got}");
}

#[tokio::test]
async fn rumqttd_goes_on_delivering_a_shared_subscription_that_was_unsubscribed() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    let mut bob = join(&broker, "bob").await;
    bob.subscribe("$share/group/attic", QoS::AtMostOnce).await;
    bob.send(unsubscribe(&["$share/group/attic"])).await;
    assert!(matches!(bob.next().await, Packet::UnsubAck(_)));
    alice.publish("attic", "21").await;
    assert_eq!(bob.delivery().await.payload, "21");
}

#[tokio::test]
async fn rumqttd_gives_groups_of_one_name_one_position_whatever_their_filters() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    let mut bob = join(&broker, "bob").await;
    bob.subscribe("$share/group/attic", QoS::AtMostOnce).await;
    bob.subscribe("$share/group/cellar", QoS::AtMostOnce).await;
    for _ in 0..3 {
        alice.publish("attic", "21").await;
        bob.delivery().await;
    }
    alice.publish("cellar", "lost").await;
    bob.expect_nothing().await;
}

// ---- Retained messages -------------------------------------------------------------------------

#[tokio::test]
async fn rumqttd_sends_at_most_100_retained_messages_to_a_qos_1_subscription() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    for number in 0..150 {
        alice.retain(&format!("attic/{number}"), "21").await;
    }
    alice.send(subscribe("attic/#", QoS::AtLeastOnce)).await;
    assert_eq!(alice.count_and_confirm().await, 100);
}

#[tokio::test]
async fn rumqttd_sends_at_most_so_many_retained_messages_to_a_qos_0_subscription() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    for number in 0..MAX_RETAINED + 50 {
        alice.retain(&format!("attic/{number}"), "21").await;
    }
    alice.send(subscribe("attic/#", QoS::AtMostOnce)).await;
    assert_eq!(alice.count_and_confirm().await, MAX_RETAINED);
}

#[tokio::test]
async fn rumqttd_clears_a_retained_message_by_an_empty_payload_without_retain() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    alice.retain("attic", "21").await;
    alice.publish("attic", "").await;
    alice.subscribe("attic", QoS::AtMostOnce).await;
    alice.expect_nothing().await;
}

#[tokio::test]
async fn rumqttd_lets_retained_messages_expire_too_early_when_they_are_read_often() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    let Packet::Publish(mut message) = publish("attic", QoS::AtLeastOnce, "21") else {
        unreachable!("publish() makes one");
    };
    message.retain = true;
    message.properties = Some(PublishProperties { message_expiry_interval: Some(6), ..PublishProperties::default() });
    alice.send(Packet::Publish(message)).await;
    assert!(matches!(alice.next().await, Packet::PubAck(_)));
    // Each read takes the whole age off again: 6, then 6 - 1, then 5 - 2, then 3 - 3.
    let mut left = Vec::new();
    for second in 0..4 {
        if second > 0 {
            sleep(Duration::from_millis(1010)).await;
        }
        let mut reader = join(&broker, "reader").await;
        reader.send(subscribe("attic", QoS::AtMostOnce)).await;
        reader.suback().await;
        if let Some(Packet::Publish(publish)) = reader.within(Duration::from_millis(100)).await {
            left.extend(publish.properties.expect("properties").message_expiry_interval);
        }
        reader.leave().await;
    }
    assert_eq!(left, [6, 5, 3]);
}

// ---- Messages ----------------------------------------------------------------------------------

#[tokio::test]
async fn rumqttd_passes_properties_on() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    alice.subscribe("attic", QoS::AtMostOnce).await;
    let properties = PublishProperties {
        payload_format_indicator: Some(1),
        message_expiry_interval: Some(60),
        topic_alias: None,
        response_topic: Some("answers".into()),
        correlation_data: Some(Bytes::from_static(b"\0\xff")),
        user_properties: vec![("b".into(), "1".into()), ("a".into(), "2".into()), ("b".into(), "3".into())],
        subscription_identifiers: vec![],
        content_type: Some("text/plain".into()),
    };
    let mut message = Publish::new("attic", QoS::AtMostOnce, "21", Some(properties.clone()));
    message.retain = false;
    alice.send(Packet::Publish(message)).await;
    let Packet::Publish(delivered) = alice.next().await else {
        panic!("no PUBLISH");
    };
    assert_eq!(delivered.properties, Some(properties));
}

#[tokio::test]
async fn rumqttd_does_not_deliver_a_message_that_has_expired() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    let lasting = Session::named("bob").lasting();
    let mut bob = lasting.open(&broker).await;
    bob.subscribe("attic", QoS::AtLeastOnce).await;
    bob.leave().await;
    for seconds in [1, 60] {
        let properties = PublishProperties { message_expiry_interval: Some(seconds), ..PublishProperties::default() };
        let payload = seconds.to_string();
        let mut message = Publish::new("attic", QoS::AtLeastOnce, payload, Some(properties));
        message.pkid = PKID;
        alice.send(Packet::Publish(message)).await;
        assert!(matches!(alice.next().await, Packet::PubAck(_)));
    }
    sleep(Duration::from_millis(2500)).await;
    let mut bob = lasting.open(&broker).await;
    assert_eq!(bob.delivery().await.payload, "60");
    bob.expect_nothing().await;
}

#[tokio::test]
async fn rumqttd_does_not_say_that_nobody_subscribes() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    alice.send(publish("attic", QoS::AtLeastOnce, "21")).await;
    let Packet::PubAck(puback) = alice.next().await else {
        panic!("no PUBACK");
    };
    assert_eq!(puback.reason, PubAckReason::Success);
}

#[tokio::test]
async fn rumqttd_sends_100_unconfirmed_messages_whatever_the_receive_maximum() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    let mut session = Session::named("bob");
    session.properties.receive_maximum = Some(2);
    let mut bob = session.open(&broker).await;
    bob.subscribe("attic", QoS::AtLeastOnce).await;
    for _ in 0..150 {
        alice.publish("attic", "21").await;
    }
    for _ in 0..100 {
        bob.delivery().await;
    }
    bob.expect_nothing().await;
}

#[tokio::test]
async fn rumqttd_ignores_the_maximum_packet_size_of_a_client() {
    let broker = start();
    let mut session = Session::named("alice");
    session.properties.max_packet_size = Some(100);
    let mut alice = session.open(&broker).await;
    alice.subscribe("attic", QoS::AtMostOnce).await;
    alice.send(publish("attic", QoS::AtMostOnce, "x".repeat(1000))).await;
    assert_eq!(alice.delivery().await.payload.len(), 1000);
}

#[tokio::test]
async fn rumqttd_cuts_off_a_client_that_confirms_out_of_order() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    let mut bob = join(&broker, "bob").await;
    bob.subscribe("attic", QoS::AtLeastOnce).await;
    alice.publish("attic", "a").await;
    alice.publish("attic", "b").await;
    bob.delivery().await;
    let second = bob.delivery().await;
    bob.send(puback(second.pkid)).await;
    bob.expect_end().await;
}

#[tokio::test]
async fn rumqttd_delivers_qos_2_with_its_whole_handshake() {
    let broker = start();
    let mut alice = join(&broker, "alice").await;
    let mut bob = join(&broker, "bob").await;
    bob.subscribe("attic", QoS::ExactlyOnce).await;
    alice.send(publish("attic", QoS::ExactlyOnce, "21")).await;
    assert!(matches!(alice.next().await, Packet::PubRec(_)));
    bob.expect_nothing().await;
    alice.send(pubrel(PKID)).await;
    assert!(matches!(alice.next().await, Packet::PubComp(_)));
    let delivery = bob.delivery().await;
    assert_eq!(delivery.qos, QoS::ExactlyOnce);
    bob.send(pubrec(delivery.pkid)).await;
    assert!(matches!(bob.next().await, Packet::PubRel(_)));
    bob.send(pubcomp(delivery.pkid)).await;
    bob.ping().await;
}

// ---- Wills -------------------------------------------------------------------------------------

#[tokio::test]
async fn rumqttd_publishes_the_will_of_a_client_that_closes_and_of_none_that_disconnects() {
    let broker = start();
    let mut watcher = join(&broker, "watcher").await;
    watcher.subscribe("wills/#", QoS::AtMostOnce).await;
    let dropped = Session::named("bob").will("wills/bob", "gone", 0);
    dropped.open(&broker).await.leave().await;
    assert_eq!(watcher.delivery().await.topic, "wills/bob");

    let polite = Session::named("carol").will("wills/carol", "gone", 0);
    let mut carol = polite.open(&broker).await;
    carol.send(Packet::Disconnect(normal_disconnect())).await;
    carol.expect_end().await;
    watcher.expect_nothing().await;
}

#[tokio::test]
async fn rumqttd_publishes_no_will_after_a_disconnect_that_asks_for_it() {
    let broker = start();
    let mut watcher = join(&broker, "watcher").await;
    watcher.subscribe("wills/#", QoS::AtMostOnce).await;
    let session = Session::named("bob").will("wills/bob", "gone", 0);
    let mut bob = session.open(&broker).await;
    bob.send_bytes(b"\xe0\x02\x04\0").await;
    bob.expect_end().await;
    watcher.expect_nothing().await;
}

#[tokio::test]
async fn rumqttd_overlooks_a_disconnect_that_is_a_reason_without_properties() {
    let broker = start();
    let mut bob = join(&broker, "bob").await;
    bob.send_bytes(b"\xe0\x01\x04").await;
    bob.ping().await;
}

#[tokio::test]
async fn rumqttd_waits_for_the_will_delay_and_a_resume_cancels_it() {
    let broker = start();
    let mut watcher = join(&broker, "watcher").await;
    watcher.subscribe("wills/#", QoS::AtMostOnce).await;
    let session = Session::named("bob").lasting().expiry(60).will("wills/bob", "gone", 1);
    session.open(&broker).await.leave().await;
    watcher.expect_nothing().await;
    assert_eq!(watcher.delivery().await.payload, "gone");

    session.open(&broker).await.leave().await;
    let _bob = session.open(&broker).await;
    sleep(Duration::from_millis(1300)).await;
    watcher.expect_nothing().await;
}

#[tokio::test]
async fn rumqttd_keeps_a_cancelled_will_for_the_end_of_a_connection_that_has_none() {
    let broker = start();
    let mut watcher = join(&broker, "watcher").await;
    watcher.subscribe("wills/#", QoS::AtMostOnce).await;
    let plain = Session::named("bob").lasting().expiry(60);
    let willed = plain.clone().will("wills/bob", "stale", 60);
    willed.open(&broker).await.leave().await;
    plain.open(&broker).await.leave().await;
    assert_eq!(watcher.delivery().await.payload, "stale");
}

#[tokio::test]
async fn a_delayed_will_is_replaced_by_that_of_the_next_connection() {
    let broker = start();
    let mut watcher = join(&broker, "watcher").await;
    watcher.subscribe("#", QoS::AtMostOnce).await;
    let plain = Session::named("bob").lasting().expiry(60);
    let willed = plain.clone().will("wills/bob", "stale", 1);
    willed.open(&broker).await.leave().await;
    plain.will("$void", "", 0).open(&broker).await.leave().await;
    sleep(Duration::from_millis(1300)).await;
    watcher.expect_nothing().await;
}

#[tokio::test]
async fn a_delayed_will_is_published_when_the_client_comes_again_with_clean_start() {
    let broker = start();
    let mut watcher = join(&broker, "watcher").await;
    watcher.subscribe("wills/#", QoS::AtMostOnce).await;
    let plain = Session::named("bob").expiry(60);
    let willed = plain.clone().will("wills/bob", "gone", 60);
    willed.open(&broker).await.leave().await;
    watcher.expect_nothing().await;
    plain.open(&broker).await.leave().await;
    assert_eq!(watcher.delivery().await.payload, "gone");
}

#[tokio::test]
async fn rumqttd_publishes_the_will_of_the_new_client_at_a_takeover_with_clean_start() {
    let broker = start();
    let mut watcher = join(&broker, "watcher").await;
    watcher.subscribe("wills/#", QoS::AtMostOnce).await;
    let first = Session::named("bob").will("wills/first", "gone", 0);
    let second = Session::named("bob").will("wills/second", "gone", 0);
    let _first = first.open(&broker).await;
    let _second = second.open(&broker).await;
    assert_eq!(watcher.delivery().await.topic, "wills/second");
}

#[tokio::test]
async fn rumqttd_keeps_nothing_across_a_restart() {
    let broker = start();
    let lasting = Session::named("alice").lasting();
    let mut alice = lasting.open(&broker).await;
    alice.retain("attic", "21").await;
    alice.leave().await;
    drop(broker);

    let broker = start();
    let (mut alice, connack) = lasting.connect(&broker).await;
    assert!(!connack.session_present);
    alice.subscribe("attic", QoS::AtMostOnce).await;
    alice.expect_nothing().await;
}

// ---- The hands of these tests ------------------------------------------------------------------

/// The packet id of all that the tests send.
const PKID: u16 = 77;

fn start() -> Embedded {
    Embedded::start(SocketAddr::from(([127, 0, 0, 1], 0)), false).expect("a free port")
}

async fn assert_dead(broker: &Embedded) {
    for _ in 0..100 {
        if broker.probe().await.is_err() {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("it lives");
}

/// A client with defaults, connected.
async fn join(broker: &Embedded, id: &str) -> Client {
    Session::named(id).open(broker).await
}

/// Opens the session, confirms a message of qos 2 up to PUBREL, and closes; gives the packet id.
async fn leave_before_pubcomp(broker: &Embedded, session: &Session) -> u16 {
    let mut client = session.open(broker).await;
    client.subscribe("attic", QoS::ExactlyOnce).await;
    let mut alice = join(broker, "alice.once").await;
    alice.publish_exactly_once("attic", "a").await;
    let received = client.delivery().await;
    client.send(pubrec(received.pkid)).await;
    assert!(matches!(client.next().await, Packet::PubRel(_)));
    client.leave().await;
    received.pkid
}

/// What a CONNECT says.
#[derive(Clone)]
struct Session {
    connect: Connect,
    properties: ConnectProperties,
    will: Option<LastWill>,
}

impl Session {
    fn named(id: &str) -> Session {
        Session {
            connect: Connect { keep_alive: 60, client_id: id.to_owned(), clean_start: true, properties: None },
            properties: ConnectProperties::new(),
            will: None,
        }
    }

    fn lasting(mut self) -> Session {
        self.connect.clean_start = false;
        self.expiry(3600)
    }

    fn expiry(mut self, seconds: u32) -> Session {
        self.properties.session_expiry_interval = Some(seconds);
        self
    }

    fn will(mut self, topic: &str, payload: &'static str, delay: u32) -> Session {
        self.will = Some(LastWill {
            topic: topic.to_owned().into(),
            message: payload.into(),
            qos: QoS::AtMostOnce,
            retain: false,
            properties: Some(LastWillProperties {
                delay_interval: Some(delay),
                payload_format_indicator: None,
                message_expiry_interval: None,
                content_type: None,
                response_topic: None,
                correlation_data: None,
                user_properties: vec![],
            }),
        });
        self
    }

    fn packet(&self) -> Packet {
        let connect = Connect { properties: Some(self.properties.clone()), ..self.connect.clone() };
        Packet::Connect(connect, self.will.clone(), None)
    }

    async fn connect(&self, broker: &Embedded) -> (Client, ConnAck) {
        let mut client = dial(broker.link_address()).await;
        client.send(self.packet()).await;
        let connack = client.connack().await;
        (client, connack)
    }

    async fn open(&self, broker: &Embedded) -> Client {
        let (client, connack) = self.connect(broker).await;
        assert_eq!(connack.code, ConnectReturnCode::Success);
        client
    }
}

/// One TCP connection that reads and writes packets.
struct Client {
    stream: TcpStream,
    read: BytesMut,
}

async fn dial(address: SocketAddr) -> Client {
    Client { stream: TcpStream::connect(address).await.expect("a listener"), read: BytesMut::new() }
}

/// A message as it arrived.
struct Delivery {
    topic: String,
    payload: Bytes,
    qos: QoS,
    retain: bool,
    dup: bool,
    pkid: u16,
    identifiers: Vec<usize>,
}

impl Client {
    async fn send(&mut self, packet: Packet) {
        self.send_all(&[packet]).await;
    }

    /// All in one write.
    async fn send_all(&mut self, packets: &[Packet]) {
        let mut bytes = BytesMut::new();
        for packet in packets {
            packet.write(&mut bytes, None).expect("well formed");
        }
        self.send_bytes(&bytes).await;
    }

    async fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("connected");
    }

    /// The next packet; none when the broker closed the connection.
    async fn receive(&mut self) -> Option<Packet> {
        loop {
            match Packet::read(&mut self.read, None) {
                Ok(packet) => return Some(packet),
                Err(Error::InsufficientBytes(_)) => {}
                Err(error) => panic!("malformed: {error}"),
            }
            match self.stream.read_buf(&mut self.read).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next packet, if one comes in that time.
    async fn within(&mut self, time: Duration) -> Option<Packet> {
        let packet = timeout(time, self.receive()).await.ok()?;
        Some(packet.expect("connected"))
    }

    async fn next(&mut self) -> Packet {
        self.within(LONG).await.expect("a packet in time")
    }

    async fn connack(&mut self) -> ConnAck {
        match self.next().await {
            Packet::ConnAck(connack) => connack,
            other => panic!("no CONNACK: {other:?}"),
        }
    }

    async fn suback(&mut self) -> Vec<SubscribeReasonCode> {
        match self.next().await {
            Packet::SubAck(suback) => suback.return_codes,
            other => panic!("no SUBACK: {other:?}"),
        }
    }

    async fn delivery(&mut self) -> Delivery {
        let Packet::Publish(publish) = self.next().await else {
            panic!("no PUBLISH");
        };
        Delivery {
            topic: String::from_utf8(publish.topic.to_vec()).expect("UTF-8"),
            payload: publish.payload,
            qos: publish.qos,
            retain: publish.retain,
            dup: publish.dup,
            pkid: publish.pkid,
            identifiers: publish.properties.map(|properties| properties.subscription_identifiers).unwrap_or_default(),
        }
    }

    /// How many deliveries come before it is quiet.
    async fn count_and_confirm(&mut self) -> usize {
        let mut count = 0;
        while let Some(packet) = self.within(QUIET).await {
            if let Packet::Publish(publish) = packet {
                count += 1;
                if publish.qos == QoS::AtLeastOnce {
                    self.send(puback(publish.pkid)).await;
                }
            }
        }
        count
    }

    async fn subscribe(&mut self, filter: &str, qos: QoS) -> Vec<SubscribeReasonCode> {
        self.subscribe_to(Filter::new(filter, qos)).await
    }

    async fn subscribe_to(&mut self, filter: Filter) -> Vec<SubscribeReasonCode> {
        self.send(subscribe_packet(filter, None)).await;
        self.suback().await
    }

    /// Publishes at qos 1 and waits for PUBACK.
    async fn publish(&mut self, topic: &str, payload: impl Into<Bytes>) {
        self.send(publish(topic, QoS::AtLeastOnce, payload)).await;
        assert!(matches!(self.next().await, Packet::PubAck(_)));
    }

    async fn publish_exactly_once(&mut self, topic: &str, payload: &'static str) {
        self.send(publish(topic, QoS::ExactlyOnce, payload)).await;
        assert!(matches!(self.next().await, Packet::PubRec(_)));
        self.send(pubrel(PKID)).await;
        assert!(matches!(self.next().await, Packet::PubComp(_)));
    }

    async fn retain(&mut self, topic: &str, payload: &'static str) {
        let mut message = Publish::new(topic, QoS::AtLeastOnce, payload, None);
        message.pkid = PKID;
        message.retain = true;
        self.send(Packet::Publish(message)).await;
        while !matches!(self.next().await, Packet::PubAck(_)) {}
    }

    /// Returns once the broker has worked off all that was sent.
    async fn ping(&mut self) {
        self.send(Packet::PingReq(PingReq)).await;
        while !matches!(self.next().await, Packet::PingResp(_)) {}
    }

    async fn expect_nothing(&mut self) {
        let packet = self.within(QUIET).await;
        assert!(packet.is_none(), "{packet:?}");
    }

    /// The broker closes the connection and says nothing before.
    async fn expect_end(&mut self) {
        let packet = timeout(LONG, self.receive()).await.expect("an end in time");
        assert!(packet.is_none(), "{packet:?}");
    }

    /// Closes without DISCONNECT, and returns when the broker has taken note of it.
    async fn leave(mut self) {
        self.stream.shutdown().await.expect("connected");
        self.read_to_end().await;
    }

    async fn read_to_end(&mut self) {
        let rest = async { while self.receive().await.is_some() {} };
        timeout(LONG, rest).await.expect("an end in time");
    }
}

fn quality(qos: u8) -> QoS {
    rumqttc::v5::mqttbytes::qos(qos).expect("0, 1 or 2")
}

fn publish(topic: &str, qos: QoS, payload: impl Into<Bytes>) -> Packet {
    let mut message = Publish::new(topic, qos, payload, None);
    message.pkid = PKID;
    Packet::Publish(message)
}

fn subscribe(filter: &str, qos: QoS) -> Packet {
    subscribe_packet(Filter::new(filter, qos), None)
}

fn identified(filter: &str, identifier: usize) -> Packet {
    let properties = SubscribeProperties { id: Some(identifier), user_properties: vec![] };
    subscribe_packet(Filter::new(filter, QoS::AtMostOnce), Some(properties))
}

fn subscribe_packet(filter: Filter, properties: Option<SubscribeProperties>) -> Packet {
    Packet::Subscribe(Subscribe { pkid: PKID, filters: vec![filter], properties })
}

fn unsubscribe(filters: &[&str]) -> Packet {
    Packet::Unsubscribe(Unsubscribe {
        pkid: PKID,
        filters: filters.iter().map(|filter| filter.to_string()).collect(),
        properties: None,
    })
}

fn puback(pkid: u16) -> Packet {
    Packet::PubAck(PubAck::new(pkid, None))
}

fn pubrec(pkid: u16) -> Packet {
    Packet::PubRec(PubRec::new(pkid, None))
}

fn pubrel(pkid: u16) -> Packet {
    Packet::PubRel(PubRel::new(pkid, None))
}

fn pubcomp(pkid: u16) -> Packet {
    Packet::PubComp(PubComp::new(pkid, None))
}

fn normal_disconnect() -> Disconnect {
    Disconnect::new(DisconnectReasonCode::NormalDisconnection)
}
