//! A web client that nobody of the project helped: a WebSocket and JSON.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::{Duplex, PATIENCE, dial};

pub struct Browser {
    pub socket: WebSocketStream<Box<dyn Duplex>>,
    /// The subprotocol that the gateway chose.
    pub subprotocol: Option<String>,
    /// Deliveries that came before the ack of what was published meanwhile: the two have no order.
    early: VecDeque<Value>,
}

impl Browser {
    /// Opens a WebSocket that offers these subprotocols.
    pub async fn connect(address: &str, subprotocols: &[&str]) -> Browser {
        let offer = subprotocols.join(", ");
        let headers: &[(&str, &str)] = if offer.is_empty() { &[] } else { &[("sec-websocket-protocol", &offer)] };
        Browser::connect_with(address, "/ws", headers).await.expect("the upgrade is made")
    }

    /// Opens a WebSocket from that address, with these headers.
    pub async fn connect_from(from: [u8; 4], address: &str, headers: &[(&str, &str)]) -> Browser {
        Browser::over(Box::new(dial(from, address).await), address, "/ws", headers).await.expect("the upgrade is made")
    }

    /// Opens a WebSocket with these headers; the error is the HTTP status and the body.
    pub async fn connect_with(address: &str, path: &str, headers: &[(&str, &str)]) -> Result<Browser, (u16, String)> {
        let stream = TcpStream::connect(address).await.expect("it listens");
        Browser::over(Box::new(stream), address, path, headers).await
    }

    /// Opens a WebSocket over this connection.
    pub async fn over(
        stream: Box<dyn Duplex>,
        address: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Browser, (u16, String)> {
        match timeout(PATIENCE, client_async(request(address, path, headers), stream)).await.expect("in time") {
            Ok((socket, response)) => {
                let chosen = response.headers().get("sec-websocket-protocol");
                let subprotocol = chosen.map(|value| value.to_str().expect("text").to_owned());
                Ok(Browser { socket, subprotocol, early: VecDeque::new() })
            }
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
                let body = response.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                Err((response.status().as_u16(), body.into_owned()))
            }
            Err(error) => panic!("no answer: {error}"),
        }
    }

    /// Sends a frame.
    pub async fn send(&mut self, frame: Value) {
        self.send_text(&frame.to_string()).await;
    }

    /// Sends a text as it is.
    pub async fn send_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.expect("sent");
    }

    /// The next frame, whatever it is.
    pub async fn next(&mut self) -> Value {
        match self.early.pop_front() {
            Some(frame) => frame,
            None => self.read().await,
        }
    }

    async fn read(&mut self) -> Value {
        match self.next_message().await {
            Message::Text(text) => serde_json::from_str(&text).expect("frames are JSON"),
            other => panic!("a frame was expected, not {other:?}"),
        }
    }

    /// The next frame, which has this type.
    pub async fn expect(&mut self, kind: &str) -> Value {
        let frame = self.next().await;
        assert_eq!(frame["type"], kind, "{frame}");
        frame
    }

    /// The close code that ends the session; frames before it are skipped.
    pub async fn closed(&mut self) -> u16 {
        loop {
            if let Message::Close(frame) = self.next_message().await {
                return frame.map_or(1005, |frame| frame.code.into());
            }
        }
    }

    /// Pings aside, what comes next.
    async fn next_message(&mut self) -> Message {
        loop {
            let message = timeout(PATIENCE, self.socket.next()).await.expect("something comes in time");
            match message.expect("the connection is open").expect("it is a WebSocket") {
                Message::Ping(_) | Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    /// Nothing comes for so long.
    pub async fn hears_nothing_for(&mut self, time: Duration) {
        assert!(self.early.is_empty(), "nothing was expected, not {:?}", self.early);
        if let Ok(message) = timeout(time, self.next_message()).await {
            panic!("nothing was expected, not {message:?}");
        }
    }

    /// Subscribes at QoS 0, and waits until it is granted.
    pub async fn subscribe(&mut self, filter: &str) {
        self.subscribe_with(json!({"topic": filter})).await;
    }

    /// Subscribes with these options, and waits until it is granted.
    pub async fn subscribe_with(&mut self, mut frame: Value) -> Value {
        frame["type"] = json!("subscribe");
        self.send(frame).await;
        let answer = self.expect("subscribed").await;
        assert_eq!(answer["topics"][0].get("error"), None, "{answer}");
        answer
    }

    /// Publishes, and waits for the ack.
    pub async fn publish(&mut self, topic: &str, payload: &str, qos: u8) {
        let msgid = format!("{topic} {payload}");
        self.send(json!({"type": "publish", "topic": topic, "payload": payload, "qos": qos, "msgid": msgid})).await;
        loop {
            let frame = self.read().await;
            if frame["type"] != "mqtt" {
                assert_eq!((&frame["type"], &frame["msgid"]), (&json!("ack"), &json!(msgid)), "{frame}");
                break;
            }
            self.early.push_back(frame);
        }
    }

    /// Sends a frame, and gives back what comes next.
    pub async fn ask(&mut self, frame: Value) -> Value {
        self.send(frame).await;
        self.next().await
    }

    /// The next deliveries, with no other frame between them.
    pub async fn deliveries(&mut self, count: usize) -> Vec<Value> {
        let mut deliveries = Vec::with_capacity(count);
        for _ in 0..count {
            deliveries.push(self.expect("mqtt").await);
        }
        deliveries
    }

    /// The payloads of the next deliveries.
    pub async fn payloads(&mut self, count: usize) -> Vec<Value> {
        self.deliveries(count).await.into_iter().map(|frame| frame["payload"].clone()).collect()
    }

    /// Topic and payload of the next delivery.
    pub async fn next_delivery(&mut self) -> (String, String) {
        let frame = self.expect("mqtt").await;
        let text = |name: &str| frame[name].as_str().unwrap_or_else(|| panic!("{name} of {frame}")).to_owned();
        (text("topic"), text("payload"))
    }

    /// Leaves with a Close frame.
    pub async fn leave(mut self) {
        let _ = self.socket.close(None).await;
        while let Ok(Some(Ok(_))) = timeout(PATIENCE, self.socket.next()).await {}
    }

    /// The connection breaks.
    pub fn vanish(self) {
        drop(self);
    }
}

fn request(address: &str, path: &str, headers: &[(&str, &str)]) -> Request {
    let mut request = format!("ws://{address}{path}").into_client_request().expect("a URL");
    for (name, value) in headers {
        let name = HeaderName::try_from(*name).expect("a header");
        request.headers_mut().append(name, HeaderValue::try_from(*value).expect("a value"));
    }
    request
}
