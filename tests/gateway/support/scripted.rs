//! A broker that does what the scene says, packet by packet: what real brokers can't be made to do.

use std::net::SocketAddr;

use bytes::{BufMut, BytesMut};
pub use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::mqttbytes::v5::{Connect, Publish, Subscribe};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Duration, timeout};

use super::{Browser, Gateway, PATIENCE};

/// Listens as a broker would, and hands each session's connection to the scene.
pub struct ScriptedBroker {
    pub address: SocketAddr,
    links: mpsc::UnboundedReceiver<Link>,
    opened: usize,
}

impl ScriptedBroker {
    pub async fn start() -> ScriptedBroker {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (sender, links) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(introduce(stream, sender.clone()));
            }
        });
        ScriptedBroker { address, links, opened: 0 }
    }

    /// With a gateway before it, whose broker settings are these.
    pub async fn with_gateway(settings: &str) -> (ScriptedBroker, Gateway) {
        let broker = ScriptedBroker::start().await;
        let configuration = format!("[broker]\n{settings}\n");
        let house = Gateway::start(&format!("mqtt://{}", broker.address), &configuration).await;
        (broker, house)
    }

    /// The next connection of a session, which has said CONNECT and waits for CONNACK.
    pub async fn next_link(&mut self) -> Link {
        timeout(PATIENCE, self.links.recv()).await.expect("a connection comes in time").expect("the broker runs")
    }

    /// The next connection, let in as the session that is there already.
    pub async fn resumed(&mut self) -> Link {
        let mut link = self.next_link().await;
        link.let_in(true, &[]).await;
        link
    }

    /// Connections that came and that the scene has not taken.
    pub fn count_links(&mut self) -> usize {
        std::iter::from_fn(|| self.links.try_recv().ok()).count()
    }

    /// A browser with an open session, the link behind it, and the welcome; CONNACK bears these properties.
    pub async fn open(&mut self, house: &Gateway, properties: &[u8]) -> (Browser, Link, Value) {
        let client_id = format!("browser-{}", self.opened);
        self.opened += 1;
        let mut browser = house.connect().await;
        browser.send(json!({"type": "auth", "clientId": client_id})).await;
        // Sessions of the scene that have just ended may still come back to say goodbye.
        let mut link = loop {
            let link = self.next_link().await;
            if link.connect().client_id == client_id {
                break link;
            }
        };
        link.let_in(false, properties).await;
        browser.expect("auth_response").await;
        let welcome = browser.expect("welcome").await;
        (browser, link, welcome)
    }
}

/// Reads CONNECT. The gateway's own watch is served at once and for good; sessions are for the scene.
async fn introduce(stream: TcpStream, links: mpsc::UnboundedSender<Link>) {
    let mut link = Link { stream, buffer: BytesMut::new(), connect: None };
    let Some(Packet::Connect(connect, ..)) = link.read().await else { return };
    if !connect.client_id.starts_with("tidegate-watch-") {
        link.connect = Some(connect);
        let _ = links.send(link);
        return;
    }
    link.let_in(false, &[]).await;
    while let Some(Packet::PingReq(_)) = link.read().await {
        link.send(0xD0, &[]).await;
    }
}

/// One connection of a session.
pub struct Link {
    pub stream: TcpStream,
    buffer: BytesMut,
    connect: Option<Connect>,
}

impl Link {
    pub fn connect(&self) -> &Connect {
        self.connect.as_ref().expect("a session's connection has said CONNECT")
    }

    /// The next packet, whatever it is.
    pub async fn next(&mut self) -> Packet {
        timeout(PATIENCE, self.read()).await.expect("a packet comes in time").expect("the connection is open")
    }

    pub async fn next_publish(&mut self) -> Publish {
        match self.next().await {
            Packet::Publish(publish) => publish,
            other => panic!("a PUBLISH was expected, not {other:?}"),
        }
    }

    pub async fn next_subscribe(&mut self) -> Subscribe {
        match self.next().await {
            Packet::Subscribe(subscribe) => subscribe,
            other => panic!("a SUBSCRIBE was expected, not {other:?}"),
        }
    }

    /// Takes a SUBSCRIBE and grants what it asks for; returns its subscription identifier.
    pub async fn grant(&mut self) -> Option<usize> {
        let subscribe = self.next_subscribe().await;
        self.answer(0x90, subscribe.pkid, subscribe.filters[0].qos as u8).await;
        subscribe.properties.and_then(|properties| properties.id)
    }

    /// No packet comes for a while.
    pub async fn hears_nothing(&mut self) {
        if let Ok(packet) = timeout(Duration::from_millis(150), self.read()).await {
            panic!("nothing was expected, not {packet:?}");
        }
    }

    /// The gateway closes the connection; what it sends before is skipped.
    pub async fn closed(&mut self) {
        let end = async { while self.read().await.is_some() {} };
        timeout(PATIENCE, end).await.expect("it is closed in time");
    }

    /// CONNACK: success, with these properties.
    pub async fn let_in(&mut self, session_present: bool, properties: &[u8]) {
        let flags = if session_present { 1 } else { 0 };
        self.send(0x20, &[&[flags, 0, properties.len() as u8][..], properties].concat()).await;
    }

    /// CONNACK: a refusal.
    pub async fn turn_away(&mut self, reason: u8) {
        self.send(0x20, &[0, reason, 0]).await;
    }

    /// SUBACK or UNSUBACK of one filter.
    pub async fn answer(&mut self, first: u8, id: u16, reason: u8) {
        let [high, low] = id.to_be_bytes();
        self.send(first, &[high, low, 0, reason]).await;
    }

    /// PUBACK, PUBREC, PUBREL or PUBCOMP.
    pub async fn ack(&mut self, first: u8, id: u16, reason: u8) {
        let [high, low] = id.to_be_bytes();
        self.send(first, &[high, low, reason]).await;
    }

    /// PUBLISH, with an identifier where `flags` say a QoS above 0, and the identifiers of subscriptions.
    pub async fn publish(&mut self, flags: u8, id: u16, topic: &str, payload: &str, subscriptions: &[usize]) {
        let mut body = BytesMut::new();
        body.put_u16(topic.len() as u16);
        body.put_slice(topic.as_bytes());
        if flags & 0x06 != 0 {
            body.put_u16(id);
        }
        let mut properties = BytesMut::new();
        for subscription in subscriptions {
            properties.put_u8(0x0B);
            put_length(&mut properties, *subscription);
        }
        put_length(&mut body, properties.len());
        body.put_slice(&properties);
        body.put_slice(payload.as_bytes());
        self.send(0x30 | flags, &body).await;
    }

    /// A packet of this first byte and body.
    pub async fn send(&mut self, first: u8, body: &[u8]) {
        let mut packet = BytesMut::new();
        packet.put_u8(first);
        put_length(&mut packet, body.len());
        packet.put_slice(body);
        self.send_bytes(&packet).await;
    }

    /// Bytes as they are. The gateway may have closed the connection: the scene will see.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    async fn read(&mut self) -> Option<Packet> {
        use rumqttc::v5::mqttbytes::Error;
        loop {
            match Packet::read(&mut self.buffer, None) {
                Ok(packet) => return Some(packet),
                Err(Error::InsufficientBytes(_)) => {}
                Err(error) => panic!("the gateway sent no MQTT 5: {error}"),
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }
}

fn put_length(out: &mut BytesMut, mut value: usize) {
    while value > 0x7F {
        out.put_u8((value & 0x7F) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}
