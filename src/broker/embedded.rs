//! The broker inside the process: rumqttd on a loopback address, for when no other is configured.
//!
//! Devices reach it on one port in MQTT 3.1.1 and 5; rumqttd itself has a port for each, and the gateway's links go to the second.
//!
//! It is a broker to try things with. What it can't do, and what it must never be sent, is held by
//! `tests/embedded_limits.rs`.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::atomic::{AtomicU8, Ordering},
    task::{Context, Poll, Waker},
    time::Duration,
};

use super::front;
use rumqttd::protocol::{Protocol, v4::V4, v5::V5};
use rumqttd::{ConnectionSettings, LinkType, Router, RouterConfig, Server, ServerSettings};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::{Builder, Runtime},
    time::timeout,
};

/// The largest packet that the broker takes; a larger one costs its sender the connection.
pub const MAX_PACKET: usize = 1_114_112;

/// How many stored messages a wildcard subscription of qos 0 gets; the rest is left out.
pub const MAX_RETAINED: usize = 1_000;

/// How long a probe waits for its answers.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// How many ports are tried: another process may take a free one before we do.
const ATTEMPTS: usize = 8;

/// A running rumqttd, reached by MQTT over TCP and nothing else.
///
/// Dropping it closes its ports and its connections. The router's thread can't be told to end: it
/// stays asleep, with what it stored, until the process does.
#[derive(Debug)]
pub struct Embedded {
    address: SocketAddr,
    link_address: SocketAddr,
    runtime: Option<Runtime>,
    probes: AtomicU8,
}

/// Why the broker did not start.
#[derive(Debug, Error)]
pub enum EmbeddedError {
    /// It knows no users and no rights, so nothing from outside may reach it.
    #[error("the embedded broker can't listen on {0}: it admits everybody, so it is loopback only")]
    NotLoopback(SocketAddr),
    /// The port is taken, or the address is none of this machine's.
    #[error("the embedded broker can't listen on {address}: {source}")]
    Unavailable {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The threads that it runs on could not be started.
    #[error("the embedded broker got no threads to run on: {0}")]
    Threads(io::Error),
}

/// Why the broker counts as dead.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// The listener is gone, or the router behind it, which cuts the connection.
    #[error("the embedded broker at {address} is broken: {source}")]
    Broken {
        /// Where it was asked.
        address: SocketAddr,
        /// What became of the connection.
        source: io::Error,
    },
    /// It holds the connection and says nothing.
    #[error("the embedded broker at {0} gave no answer within {PROBE_TIMEOUT:?}")]
    Silent(SocketAddr),
}

impl Embedded {
    /// Starts the broker; on return it accepts connections. With `fall_back`, or port 0, a port
    /// that is taken is replaced by a free one of the same IP address: [`Embedded::address`] tells.
    pub fn start(address: SocketAddr, fall_back: bool) -> Result<Embedded, EmbeddedError> {
        if !address.ip().is_loopback() {
            return Err(EmbeddedError::NotLoopback(address));
        }
        let unavailable = |source| EmbeddedError::Unavailable { address, source };
        let door = bind(address, fall_back).map_err(unavailable)?;
        let runtime = start_runtime().map_err(EmbeddedError::Threads)?;
        let router = Router::new(0, router()).spawn();
        let private = SocketAddr::new(address.ip(), 0);
        let v4 = serve(&runtime, private, |settings| Server::new(settings, router.clone(), V4)).map_err(unavailable)?;
        let v5 = serve(&runtime, private, |settings| Server::new(settings, router.clone(), V5)).map_err(unavailable)?;
        let address = door.local_addr().map_err(unavailable)?;
        let door = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(door).map_err(unavailable)?
        };
        runtime.spawn(front::serve(door, v4, v5));
        Ok(Embedded { address, link_address: v5, runtime: Some(runtime), probes: AtomicU8::new(0) })
    }

    /// Where devices find it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where rumqttd itself takes MQTT 5.
    pub fn link_address(&self) -> SocketAddr {
        self.link_address
    }

    /// Tells whether the broker works, by a publish of a client of its own, within two seconds. A
    /// router or a listener that panicked shows nowhere else.
    pub async fn probe(&self) -> Result<(), ProbeError> {
        let address = self.link_address;
        let number = self.probes.fetch_add(1, Ordering::Relaxed);
        match timeout(PROBE_TIMEOUT, publish(address, number)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(ProbeError::Broken { address, source }),
            Err(_) => Err(ProbeError::Silent(address)),
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A runtime of its own, since rumqttd blocks its worker while the router admits a client. One
/// worker: with two, a client that comes again can be admitted between the end of its old
/// connection and the news of it, and then its third connection breaks the listener.
fn start_runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(1).thread_name("embedded-broker").enable_all().build()
}

/// The wanted port, or where that will do, a free one.
fn bind(wanted: SocketAddr, fall_back: bool) -> io::Result<TcpListener> {
    let listener = match TcpListener::bind(wanted) {
        Err(error) if fall_back && error.kind() == io::ErrorKind::AddrInUse => TcpListener::bind((wanted.ip(), 0)),
        bound => bound,
    }?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Starts a listener of rumqttd's on a free port; which one it took is not told, so one is found and tried.
fn serve<P: Protocol + Clone + Send + Sync + 'static>(
    runtime: &Runtime,
    private: SocketAddr,
    server: impl Fn(ServerSettings) -> Server<P>,
) -> io::Result<SocketAddr> {
    for attempt in 1.. {
        let address = bind(private, false)?.local_addr()?;
        let mut server = server(listener(address));
        let mut serving = Box::pin(async move { server.start(LinkType::Remote).await });
        let _inside = runtime.enter();
        // The first poll binds the port: the server listens when it comes back pending.
        match serving.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => {
                runtime.spawn(serving);
                return Ok(address);
            }
            Poll::Ready(Err(error)) if attempt == ATTEMPTS => return Err(io::Error::other(error.to_string())),
            Poll::Ready(_) => {}
        }
    }
    unreachable!("the last attempt returns")
}

/// Each filter that was ever subscribed keeps a log of its own: 16 MiB of topics and payloads is
/// how far a reader may lag, or be away, before it loses the oldest.
fn router() -> RouterConfig {
    RouterConfig {
        // Out of reach: a loopback address has fewer client ports than that, and a client that is
        // turned away for want of room and comes again breaks the listener.
        max_connections: 32_768,
        max_outgoing_packet_count: MAX_RETAINED as u64,
        max_segment_size: 2 << 20,
        max_segment_count: 8,
        ..RouterConfig::default()
    }
}

fn listener(listen: SocketAddr) -> ServerSettings {
    ServerSettings {
        name: "embedded".to_owned(),
        listen,
        tls: None,
        next_connection_delay_ms: 0,
        connections: ConnectionSettings {
            connection_timeout_ms: 10_000,
            max_payload_size: MAX_PACKET,
            // Packets of one connection that the router takes in one go, not a receive window.
            max_inflight_count: 100,
            auth: None,
            external_auth: None,
            dynamic_filters: false,
        },
    }
}

/// CONNECT and PUBLISH, CONNACK and PUBACK. Both answers come from the router, and no filter matches
/// a `$` topic, so nobody sees the message. The client has one of 256 names: a single one could be
/// back before its last connection has ended, and the router remembers each name for ever.
async fn publish(broker: SocketAddr, number: u8) -> io::Result<()> {
    const CONNECT: &[u8] = b"\x10\x1e\0\x04MQTT\x05\x02\0\x0a\0\0\x11tidegate.probe.";
    const PUBLISH: &[u8] = b"\x32\x14\0\x0f$tidegate/probe\0\x01\0";
    const SUCCESS: u8 = 0;

    let name = format!("{number:02x}");
    let mut stream = TcpStream::connect(broker).await?;
    stream.write_all(&[CONNECT, name.as_bytes(), PUBLISH].concat()).await?;
    match read_packet(&mut stream).await?.as_slice() {
        [0x20, _flags, SUCCESS, ..] => {}
        other => return Err(unexpected("CONNACK", other)),
    }
    match read_packet(&mut stream).await?.as_slice() {
        [0x40, 0, 1, ..] => Ok(()),
        other => Err(unexpected("PUBACK", other)),
    }
}

/// The packet's first byte, then its body.
async fn read_packet(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut packet = vec![stream.read_u8().await?];
    let length = stream.read_u8().await?;
    packet.resize(1 + usize::from(length), 0);
    stream.read_exact(&mut packet[1..]).await?;
    Ok(packet)
}

fn unexpected(wanted: &str, got: &[u8]) -> io::Error {
    io::Error::other(format!("wanted {wanted}, got {got:02x?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: &str = "127.0.0.1:0";

    fn start(address: &str, fall_back: bool) -> Result<Embedded, EmbeddedError> {
        Embedded::start(address.parse().expect("an address"), fall_back)
    }

    #[test]
    fn a_public_address_is_refused() {
        for address in ["0.0.0.0:1883", "192.0.2.1:1883", "[::]:1883"] {
            let error = start(address, true).expect_err(address).to_string();
            assert!(error.contains(address), "{error}");
            assert!(error.contains("loopback"), "{error}");
        }
    }

    #[test]
    fn a_taken_port_is_an_error_that_names_the_address() {
        let first = start(ANY, false).expect("a free port");
        let address = first.address().to_string();
        let error = start(&address, false).expect_err("taken").to_string();
        assert!(error.contains(&address), "{error}");
    }

    #[tokio::test]
    async fn a_taken_port_is_replaced_where_that_is_wanted() {
        let first = start(ANY, false).expect("a free port");
        let second = start(&first.address().to_string(), true).expect("another port");
        assert_eq!(second.address().ip(), first.address().ip());
        assert_ne!(second.address().port(), first.address().port());
        second.probe().await.expect("alive");
        first.probe().await.expect("alive");
    }

    #[tokio::test]
    async fn a_healthy_broker_passes_probes_side_by_side_and_in_a_row() {
        let broker = start(ANY, false).expect("a free port");
        for _ in 0..300 {
            tokio::try_join!(broker.probe(), broker.probe()).expect("alive");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_does_not_wait_for_ever() {
        let mute = TcpListener::bind(ANY).expect("a free port");
        let address = mute.local_addr().expect("bound");
        let broker = Embedded { address, link_address: address, runtime: None, probes: AtomicU8::new(0) };
        let error = broker.probe().await.expect_err("it says nothing");
        assert!(matches!(error, ProbeError::Silent(_)), "{error}");
    }
}
