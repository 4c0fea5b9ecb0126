//! What can happen to a network: a TCP proxy between a gateway and its broker that knows where MQTT packets begin and end.

use std::io;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The way of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToBroker,
    ToGateway,
}

/// The types of packets, by the number in their first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Publish = 3,
    Puback = 4,
    Pubrec = 5,
    Pubrel = 6,
    Pubcomp = 7,
    Subscribe = 8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Open,
    Held,
    Cut,
}

pub struct Proxy {
    pub port: u16,
    mode: watch::Sender<Mode>,
    traffic: Arc<Traffic>,
}

#[derive(Default)]
struct Traffic {
    forwarded: Mutex<Vec<(Way, u8)>>,
    trap: Mutex<Option<(Way, u8)>>,
}

impl Proxy {
    /// Stands before the broker at this port.
    pub async fn before(broker: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let (mode, changes) = watch::channel(Mode::Open);
        let traffic = Arc::<Traffic>::default();
        let shared = traffic.clone();
        tokio::spawn(async move {
            while let Ok((gateway, _)) = listener.accept().await {
                tokio::spawn(connect(gateway, broker, changes.clone(), shared.clone()));
            }
        });
        Proxy { port, mode, traffic }
    }

    /// The setting that leads a gateway here.
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// Ends all connections, and each new one, until [`resume`](Self::resume).
    pub fn cut(&self) {
        self.mode.send_replace(Mode::Cut);
    }

    /// Forwards nothing more, and ends nothing.
    pub fn hold(&self) {
        self.mode.send_replace(Mode::Held);
    }

    /// Forwards again, what was held included.
    pub fn resume(&self) {
        self.mode.send_replace(Mode::Open);
    }

    /// Ends the connection on which the next packet of this type comes, in place of forwarding it. New connections are served.
    pub fn cut_at(&self, way: Way, kind: Kind) {
        *self.traffic.trap.lock().expect("nobody panics") = Some((way, kind as u8));
    }

    /// Packets of this type that were forwarded.
    pub fn forwarded(&self, way: Way, kind: Kind) -> usize {
        let forwarded = self.traffic.forwarded.lock().expect("nobody panics");
        forwarded.iter().filter(|packet| **packet == (way, kind as u8)).count()
    }
}

async fn connect(
    gateway: TcpStream,
    broker: u16,
    mut mode: watch::Receiver<Mode>,
    traffic: Arc<Traffic>,
) -> io::Result<()> {
    if *mode.borrow() == Mode::Cut {
        return Ok(());
    }
    let (from_gateway, to_gateway) = gateway.into_split();
    let (from_broker, to_broker) = TcpStream::connect(("127.0.0.1", broker)).await?.into_split();
    let gate = mode.clone();
    tokio::select! {
        result = carry(Way::ToBroker, from_gateway, to_broker, gate.clone(), &traffic) => result,
        result = carry(Way::ToGateway, from_broker, to_gateway, gate, &traffic) => result,
        _ = mode.wait_for(|mode| *mode == Mode::Cut) => Ok(()),
    }
}

async fn carry(
    way: Way,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut gate: watch::Receiver<Mode>,
    traffic: &Traffic,
) -> io::Result<()> {
    loop {
        let packet = read_packet(&mut from).await?;
        let _ = gate.wait_for(|mode| *mode == Mode::Open).await;
        let seen = (way, packet[0] >> 4);
        let is_trapped = traffic.trap.lock().expect("nobody panics").take_if(|trap| *trap == seen).is_some();
        if is_trapped {
            return Ok(());
        }
        to.write_all(&packet).await?;
        traffic.forwarded.lock().expect("nobody panics").push(seen);
    }
}

async fn read_packet(from: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let mut packet = vec![from.read_u8().await?];
    let mut length = 0;
    for shift in (0..28).step_by(7) {
        let byte = from.read_u8().await?;
        packet.push(byte);
        length |= usize::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            break;
        }
    }
    let head = packet.len();
    packet.resize(head + length, 0);
    from.read_exact(&mut packet[head..]).await?;
    Ok(packet)
}
