use proptest::prelude::*;

use super::*;

fn one(bytes: &[u8]) -> Result<Option<Packet>, Malformed> {
    read(&mut BytesMut::from(bytes), 1 << 20)
}

fn id(number: u16) -> PacketId {
    PacketId::new(number).expect("not 0")
}

#[test]
fn what_brokers_send_is_read() {
    let cases: [(&str, &[u8], Packet); 9] = [
        ("a PUBACK without a reason", &[0x40, 2, 0, 7], Packet::Puback(id(7), Reason::SUCCESS)),
        ("a PUBACK without properties", &[0x40, 3, 0, 7, 0x95], Packet::Puback(id(7), Reason::PACKET_TOO_LARGE)),
        (
            "a PUBREC with properties",
            &[0x50, 8, 0, 7, 0x97, 4, 0x1F, 0, 1, b'x'],
            Packet::Pubrec(id(7), Reason::QUOTA_EXCEEDED),
        ),
        ("a PUBREL", &[0x62, 2, 1, 0], Packet::Pubrel(id(256), Reason::SUCCESS)),
        ("a SUBACK", &[0x90, 5, 0, 1, 0, 2, 0x87], Packet::Suback(id(1), vec![Reason(2), Reason::NOT_AUTHORIZED])),
        ("an UNSUBACK", &[0xB0, 4, 0, 1, 0, 0x11], Packet::Unsuback(id(1), vec![Reason::NO_SUBSCRIPTION])),
        ("a PINGRESP", &[0xD0, 0], Packet::Pingresp),
        ("a DISCONNECT of two bytes", &[0xE0, 0], Packet::Disconnect(Reason::SUCCESS)),
        ("a DISCONNECT without properties", &[0xE0, 1, 0x8E], Packet::Disconnect(Reason::SESSION_TAKEN_OVER)),
    ];
    for (name, bytes, packet) in cases {
        assert_eq!(one(bytes), Ok(Some(packet)), "{name}");
    }
}

#[test]
fn what_no_broker_may_send_is_refused() {
    let cases: [(&str, &[u8], Malformed); 8] = [
        ("a SUBSCRIBE", &[0x82, 2, 0, 1], Malformed::PacketType(0x82)),
        ("a PUBREL with wrong flags", &[0x60, 2, 0, 1], Malformed::PacketType(0x60)),
        ("QoS 3", &[0x36, 3, 0, 1, b'a'], Malformed::PacketType(0x36)),
        ("the packet identifier 0", &[0x40, 2, 0, 0], Malformed::PacketId),
        ("an endless length", &[0x30, 0xFF, 0xFF, 0xFF, 0xFF, 1], Malformed::VariableInteger),
        ("a topic alias for a topic", &[0x30, 6, 0, 0, 3, 0x23, 0, 1], Malformed::Topic),
        ("a topic longer than the packet", &[0x30, 3, 0, 9, b'a'], Malformed::Truncated),
        ("a CONNACK of MQTT 3.1.1", &[0x20, 2, 0, 1], Malformed::OldProtocol),
    ];
    for (name, bytes, refused) in cases {
        assert_eq!(one(bytes), Err(refused), "{name}");
    }
}

#[test]
fn a_packet_over_the_limit_is_refused_before_it_is_there() {
    let mut buffer = BytesMut::from(&[0x30, 0x80, 0x01][..]);
    assert_eq!(read(&mut buffer, 130), Err(Malformed::TooLarge { size: 131, max: 130 }));
    assert_eq!(read(&mut buffer, 131), Ok(None));
}

/// Some libraries miscount these and take what follows for the payload.
#[test]
fn many_subscription_identifiers_leave_the_payload_whole() {
    let mut body = vec![0, 1, b'a', 0];
    for _ in 0..7 {
        body.extend([0x0B, 0xFF, 0xFF, 0xFF, 0x7F]);
    }
    body.extend([0x01, 1]);
    body[3] = (body.len() - 4) as u8;
    body.extend(b"payload");
    let mut bytes = vec![0x30, body.len() as u8];
    bytes.extend(body);
    let Ok(Some(Packet::Publish(publish))) = one(&bytes) else { panic!("not read") };
    assert_eq!(publish.subscription_ids.as_slice(), [MAX_VARIABLE_INTEGER as u32; 7]);
    assert_eq!(publish.message.payload, &b"payload"[..]);
}

#[test]
fn a_connack_tells_what_the_broker_can_do() {
    let properties = [
        &[0x21, 0, 20, 0x24, 1, 0x25, 0][..],
        &[0x27, 0, 1, 0, 0, 0x28, 0, 0x29, 0],
        &[0x2A, 0, 0x13, 0, 60, 0x12, 0, 1, b'x'],
    ]
    .concat();
    let bytes = [&[0x20, properties.len() as u8 + 3, 1, 0, properties.len() as u8][..], &properties].concat();
    let Ok(Some(Packet::Connack(connack))) = one(&bytes) else { panic!("{:?}", one(&bytes)) };
    assert_eq!(
        connack,
        Connack {
            session_present: true,
            reason: Reason::SUCCESS,
            receive_maximum: 20,
            maximum_qos: Qos::AtLeastOnce,
            retain_available: false,
            maximum_packet_size: 65536,
            assigned_client_id: Some("x".to_owned()),
            reason_string: None,
            wildcards_available: false,
            subscription_ids_available: false,
            shared_available: false,
            server_keep_alive: Some(60),
        }
    );
}

/// A CONNACK or a SUBACK from a client stops some brokers for good.
#[test]
fn a_client_writes_nothing_that_only_brokers_send() {
    let message = Message {
        topic: Topic::parse("a").expect("a topic"),
        payload: Bytes::new(),
        qos: Qos::AtLeastOnce,
        retain: true,
        properties: None,
    };
    let connect = Connect {
        client_id: "a",
        clean_start: true,
        keep_alive: 1,
        session_expiry: 0,
        receive_maximum: 1,
        maximum_packet_size: 1,
        username: None,
        password: None,
        will: None,
    };
    let writers: [&dyn Fn(&mut BytesMut); 10] = [
        &|out| connect.write(out),
        &|out| write_publish(out, &message, Some(id(1)), true),
        &|out| write_subscribe(out, id(1), None, "a", SubscribeOptions::default()),
        &|out| write_unsubscribe(out, id(1), "a"),
        &|out| write_puback(out, id(1)),
        &|out| write_pubrec(out, id(1)),
        &|out| write_pubrel(out, id(1)),
        &|out| write_pubcomp(out, id(1), Reason::SUCCESS),
        &|out| write_pingreq(out),
        &|out| write_disconnect(out, 0),
    ];
    let types = writers.map(|write| {
        let mut out = BytesMut::new();
        write(&mut out);
        out[0] >> 4
    });
    assert_eq!(types, [1, 3, 8, 10, 4, 5, 6, 7, 12, 14]);
}

fn messages() -> impl Strategy<Value = Message> {
    let text = "[a-zé]{0,9}";
    let properties = (
        proptest::option::of(text),
        proptest::option::of(any::<u32>()),
        proptest::option::of(0..2u8),
        proptest::collection::vec((text, text), 0..4),
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300)),
    )
        .prop_map(|(text, expiry, format, pairs, data)| Properties {
            content_type: text.clone(),
            response_topic: text,
            correlation_data: data.map(Bytes::from),
            message_expiry_interval: expiry,
            payload_format_indicator: format,
            user_properties: pairs,
        });
    (
        "[a-z/é]{1,200}",
        proptest::collection::vec(any::<u8>(), 0..20_000),
        0..3u64,
        any::<bool>(),
        proptest::option::of(properties),
    )
        .prop_map(|(topic, payload, qos, retain, properties)| Message {
            topic: Topic::parse(&topic).expect("a topic"),
            payload: payload.into(),
            qos: Qos::from_number(qos).expect("a level"),
            retain,
            properties: properties.filter(|given| *given != Properties::default()).map(Box::new),
        })
}

proptest! {
    #[test]
    fn a_published_message_is_read_back_as_it_was(message in messages(), dup: bool) {
        let id = (message.qos != Qos::AtMostOnce).then(|| id(9));
        let mut bytes = BytesMut::new();
        write_publish(&mut bytes, &message, id, dup);
        prop_assert_eq!(bytes.len(), publish_size(&message));
        let expected = Publish { id, dup, message, subscription_ids: SmallVec::new() };
        prop_assert_eq!(read(&mut bytes, 1 << 20), Ok(Some(Packet::Publish(expected))));
        prop_assert!(bytes.is_empty());
    }

    #[test]
    fn a_subscription_takes_the_room_that_was_told(filter in "[a-z]{1,300}", is_numbered: bool) {
        let options = SubscribeOptions { qos: Qos::AtMostOnce, no_local: false, retain_as_published: false, retain_handling: 0 };
        let mut bytes = BytesMut::new();
        write_subscribe(&mut bytes, PacketId::MIN, is_numbered.then_some(MAX_VARIABLE_INTEGER as u32), &filter, options);
        prop_assert!(bytes.len() <= subscribe_size(&filter));
        prop_assert!(!is_numbered || bytes.len() == subscribe_size(&filter));
        bytes.clear();
        write_unsubscribe(&mut bytes, PacketId::MIN, &filter);
        prop_assert_eq!(bytes.len(), unsubscribe_size(&filter));
    }

    /// An independent implementation reads what we write.
    #[test]
    fn rumqttc_reads_what_is_written(message in messages(), expiry: u32, clean_start: bool) {
        use rumqttc::v5::mqttbytes::v5::Packet as Theirs;
        let mut bytes = BytesMut::new();
        let will = Message { payload: message.payload.slice(..message.payload.len().min(65_535)), ..message.clone() };
        Connect {
            client_id: "café", clean_start, keep_alive: 30, session_expiry: expiry, receive_maximum: 64, maximum_packet_size: 70_000,
            username: Some("anna"), password: Some("secret"), will: Some(Will { message: &will, delay: 60 }),
        }.write(&mut bytes);
        let Theirs::Connect(connect, Some(last_will), Some(login)) = Theirs::read(&mut bytes, None).expect("read") else { panic!() };
        prop_assert_eq!(connect.client_id, "café");
        prop_assert_eq!(connect.clean_start, clean_start);
        prop_assert_eq!(connect.keep_alive, 30);
        let properties = connect.properties.expect("properties");
        prop_assert_eq!(properties.session_expiry_interval, Some(expiry));
        prop_assert_eq!(properties.receive_maximum, Some(64));
        prop_assert_eq!(properties.max_packet_size, Some(70_000));
        prop_assert_eq!((login.username.as_str(), login.password.as_str()), ("anna", "secret"));
        prop_assert_eq!(&last_will.topic[..], will.topic.as_ref().as_bytes());
        prop_assert_eq!(&last_will.message, &will.payload);
        prop_assert_eq!(last_will.retain, will.retain);
        prop_assert_eq!(last_will.properties.expect("properties").delay_interval, Some(60));

        let id = (message.qos != Qos::AtMostOnce).then(|| id(9));
        write_publish(&mut bytes, &message, id, false);
        write_subscribe(&mut bytes, PacketId::MIN, Some(expiry.clamp(1, MAX_VARIABLE_INTEGER as u32)), "a/+", SubscribeOptions {
            qos: message.qos, no_local: clean_start, retain_as_published: !clean_start, retain_handling: 2,
        });
        write_unsubscribe(&mut bytes, PacketId::MAX, "a/#");
        write_pubcomp(&mut bytes, PacketId::MAX, Reason::PACKET_IDENTIFIER_NOT_FOUND);
        write_pubrel(&mut bytes, PacketId::MAX);
        write_disconnect(&mut bytes, expiry);
        let Theirs::Publish(publish) = Theirs::read(&mut bytes, None).expect("read") else { panic!() };
        prop_assert_eq!(publish.payload, message.payload);
        let properties = publish.properties.unwrap_or_default();
        let ours = message.properties.map(|given| *given).unwrap_or_default();
        prop_assert_eq!(properties.user_properties, ours.user_properties);
        prop_assert_eq!(properties.correlation_data, ours.correlation_data);
        prop_assert_eq!(properties.message_expiry_interval, ours.message_expiry_interval);
        let Theirs::Subscribe(subscribe) = Theirs::read(&mut bytes, None).expect("read") else { panic!() };
        prop_assert_eq!(&subscribe.filters[0].path, "a/+");
        prop_assert_eq!(subscribe.filters[0].nolocal, clean_start);
        prop_assert_eq!(subscribe.filters[0].preserve_retain, !clean_start);
        let Theirs::Unsubscribe(unsubscribe) = Theirs::read(&mut bytes, None).expect("read") else { panic!() };
        prop_assert_eq!(unsubscribe.filters, ["a/#"]);
        let Theirs::PubComp(pubcomp) = Theirs::read(&mut bytes, None).expect("read") else { panic!() };
        prop_assert_eq!(pubcomp.pkid, u16::MAX);
        let Theirs::PubRel(pubrel) = Theirs::read(&mut bytes, None).expect("read") else { panic!() };
        prop_assert_eq!(pubrel.pkid, u16::MAX);
        let Theirs::Disconnect(disconnect) = Theirs::read(&mut bytes, None).expect("read") else { panic!() };
        prop_assert_eq!(disconnect.properties.expect("properties").session_expiry_interval, Some(expiry));
    }

    /// An independent implementation writes what we read.
    #[test]
    fn what_rumqttc_answers_is_read(number in 1..=u16::MAX, codes in proptest::collection::vec(0..3u8, 1..20), present: bool, maximum in 1..=u16::MAX) {
        use rumqttc::v5::mqttbytes::{QoS, v5 as theirs};
        let qos = |code: &u8| [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(*code)];
        let properties = theirs::ConnAckProperties {
            session_expiry_interval: None,
            receive_max: Some(maximum),
            max_qos: None,
            retain_available: None,
            max_packet_size: Some(70_000),
            assigned_client_identifier: Some("café".to_owned()),
            topic_alias_max: None,
            reason_string: None,
            user_properties: vec![("a".to_owned(), "b".to_owned())],
            wildcard_subscription_available: None,
            subscription_identifiers_available: Some(0),
            shared_subscription_available: None,
            server_keep_alive: Some(maximum),
            response_information: None,
            server_reference: None,
            authentication_method: None,
            authentication_data: None,
        };
        let mut bytes = BytesMut::new();
        let code = theirs::ConnectReturnCode::Success;
        theirs::ConnAck { session_present: present, code, properties: Some(properties) }.write(&mut bytes).expect("written");
        let granted = codes.iter().map(|code| theirs::SubscribeReasonCode::Success(qos(code))).collect();
        theirs::SubAck { pkid: number, return_codes: granted, properties: None }.write(&mut bytes).expect("written");
        theirs::PubAck { pkid: number, reason: theirs::PubAckReason::QuotaExceeded, properties: None }.write(&mut bytes).expect("written");
        theirs::PubRec { pkid: number, reason: theirs::PubRecReason::Success, properties: None }.write(&mut bytes).expect("written");
        theirs::PubComp { pkid: number, reason: theirs::PubCompReason::Success, properties: None }.write(&mut bytes).expect("written");

        let mut packets = Vec::new();
        while let Some(packet) = read(&mut bytes, 1 << 20).expect("read") {
            packets.push(packet);
        }
        let number = id(number);
        let mut connack = Connack::new(present, Reason::SUCCESS);
        connack.receive_maximum = maximum;
        connack.assigned_client_id = Some("café".to_owned());
        connack.server_keep_alive = Some(maximum);
        connack.maximum_packet_size = 70_000;
        connack.subscription_ids_available = false;
        prop_assert_eq!(packets, [
            Packet::Connack(connack),
            Packet::Suback(number, codes.into_iter().map(Reason).collect()),
            Packet::Puback(number, Reason::QUOTA_EXCEEDED),
            Packet::Pubrec(number, Reason::SUCCESS),
            Packet::Pubcomp(number, Reason::SUCCESS),
        ]);
        prop_assert!(bytes.is_empty());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>, first in 0x20..0xF0u8) {
        let mut buffer = BytesMut::from(&[first, bytes.len().min(127) as u8][..]);
        buffer.extend_from_slice(&bytes);
        while let Ok(Some(_)) = read(&mut buffer, 1 << 20) {}
    }
}
