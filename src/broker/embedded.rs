//! The broker inside the process: rumqttd on a loopback address, for when no other is configured.
//!
//! Devices reach it on one port in MQTT 3.1.1 and 5; rumqttd itself has a port for each, and the gateway's links go to the second.
//! When rumqttd has died, another takes its place behind the same port.
//!
//! It is a broker to try things with. What it can't do, and what it must never be sent, is held by
//! `tests/embedded_limits.rs`.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use super::{front, transport::Target};
use rumqttd::protocol::{Protocol, v4::V4, v5::V5};
use rumqttd::{ConnectionSettings, LinkType, Router, RouterConfig, Server, ServerSettings};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::{Builder, Runtime},
    time::timeout,
    try_join,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

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
/// Dropping it closes its ports and its connections.
#[derive(Debug)]
pub struct Embedded {
    address: SocketAddr,
    running: Arc<Mutex<Rumqttd>>,
    probes: AtomicU8,
    probe_timeout: Duration,
    _front: AbortOnDropHandle<()>,
}

/// One life of the broker.
///
/// Dropping it ends its connections, also where it has wedged. A router that has not died can't be told to end: its thread stays
/// asleep, with what it stored, until the process does.
#[derive(Debug)]
struct Rumqttd {
    ports: Ports,
    runtime: Option<Runtime>,
}

/// Where rumqttd takes which MQTT, until its life is over.
#[derive(Clone, Debug)]
pub struct Ports {
    /// MQTT 3.1.1.
    pub v4: SocketAddr,
    /// MQTT 5.
    pub v5: SocketAddr,
    /// Cancelled at the end: whatever still is connected has lost its connection.
    pub end: CancellationToken,
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

/// Why a probe failed.
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
    #[error("the embedded broker at {address} gave no answer within {after:?}")]
    Silent {
        /// Where it was asked.
        address: SocketAddr,
        /// How long it was waited for.
        after: Duration,
    },
}

impl Embedded {
    /// Starts the broker; on return it accepts connections. With `fall_back`, or port 0, a port
    /// that is taken is replaced by a free one of the same IP address: [`Embedded::address`] tells.
    ///
    /// # Panics
    /// Outside of a tokio runtime, which serves the port for devices.
    pub fn start(address: SocketAddr, fall_back: bool) -> Result<Embedded, EmbeddedError> {
        if !address.ip().is_loopback() {
            return Err(EmbeddedError::NotLoopback(address));
        }
        let unavailable = |source| EmbeddedError::Unavailable { address, source };
        let door = bind(address, fall_back).and_then(tokio::net::TcpListener::from_std).map_err(unavailable)?;
        let address = door.local_addr().map_err(unavailable)?;
        Ok(Embedded::before(door, address, Rumqttd::start(address)?))
    }

    fn before(door: tokio::net::TcpListener, address: SocketAddr, rumqttd: Rumqttd) -> Embedded {
        let running = Arc::new(Mutex::new(rumqttd));
        let behind = running.clone();
        let front = tokio::spawn(front::serve(door, move || lock(&behind).ports.clone()));
        Embedded {
            address,
            running,
            probes: AtomicU8::new(0),
            probe_timeout: PROBE_TIMEOUT,
            _front: AbortOnDropHandle::new(front),
        }
    }

    /// Where devices find it, over all its lives.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where rumqttd itself takes MQTT 5 in this life.
    pub fn link_address(&self) -> SocketAddr {
        self.ports().v5
    }

    /// The same, for links; they end when this life does.
    pub(super) fn target(&self) -> Target {
        let Ports { v5, end, .. } = self.ports();
        Target::plain(v5.ip().to_string(), v5.port()).until(end)
    }

    /// Puts a new rumqttd, which knows nothing, in the place of this one, and ends all connections to this one. The port for
    /// devices stays.
    pub fn restart(&self) -> Result<(), EmbeddedError> {
        let next = Rumqttd::start(self.address)?;
        let last = std::mem::replace(&mut *lock(&self.running), next);
        drop(last);
        Ok(())
    }

    /// Tells whether the broker works, by a publish in each version of MQTT, within two seconds. A router or a listener that
    /// panicked shows nowhere else.
    pub async fn probe(&self) -> Result<(), ProbeError> {
        let Ports { v4, v5, .. } = self.ports();
        let number = self.probes.fetch_add(1, Ordering::Relaxed);
        let publishes = async { try_join!(publish(v5, Version::V5, number), publish(v4, Version::V4, number)) };
        match timeout(self.probe_timeout, publishes).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(source)) => Err(ProbeError::Broken { address: v5, source }),
            Err(_) => Err(ProbeError::Silent { address: v5, after: self.probe_timeout }),
        }
    }

    fn ports(&self) -> Ports {
        lock(&self.running).ports.clone()
    }
}

fn lock(running: &Mutex<Rumqttd>) -> MutexGuard<'_, Rumqttd> {
    running.lock().expect("nobody panics while holding it")
}

impl Rumqttd {
    /// Starts one for the front at this address, on free ports beside it.
    fn start(front: SocketAddr) -> Result<Rumqttd, EmbeddedError> {
        let unavailable = |source| EmbeddedError::Unavailable { address: front, source };
        let runtime = start_runtime().map_err(EmbeddedError::Threads)?;
        let router = Router::new(0, router()).spawn();
        let private = SocketAddr::new(front.ip(), 0);
        let v4 = serve(&runtime, private, |settings| Server::new(settings, router.clone(), V4)).map_err(unavailable)?;
        let v5 = serve(&runtime, private, |settings| Server::new(settings, router.clone(), V5)).map_err(unavailable)?;
        Ok(Rumqttd { ports: Ports { v4, v5, end: CancellationToken::new() }, runtime: Some(runtime) })
    }
}

impl Drop for Rumqttd {
    fn drop(&mut self) {
        self.ports.end.cancel();
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

/// What a probe speaks.
#[derive(Clone, Copy)]
enum Version {
    V4,
    V5,
}

/// CONNECT and PUBLISH, CONNACK and PUBACK. Both answers come from the router, and no filter matches
/// a `$` topic, so nobody sees the message. The client has one of 256 names: a single one could be
/// back before its last connection has ended, and the router remembers each name for ever.
async fn publish(broker: SocketAddr, version: Version, number: u8) -> io::Result<()> {
    const SUCCESS: u8 = 0;
    let (connect, publish): (&[u8], &[u8]) = match version {
        Version::V4 => {
            (b"\x10\x20\0\x04MQTT\x04\x02\0\x0a\0\x14tidegate.probe.v4.", b"\x32\x13\0\x0f$tidegate/probe\0\x01")
        }
        Version::V5 => {
            (b"\x10\x21\0\x04MQTT\x05\x02\0\x0a\0\0\x14tidegate.probe.v5.", b"\x32\x14\0\x0f$tidegate/probe\0\x01\0")
        }
    };
    let name = format!("{number:02x}");
    let mut stream = TcpStream::connect(broker).await?;
    stream.write_all(&[connect, name.as_bytes(), publish].concat()).await?;
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
pub(super) mod tests {
    use super::*;

    const ANY: &str = "127.0.0.1:0";

    fn start(address: &str, fall_back: bool) -> Result<Embedded, EmbeddedError> {
        Embedded::start(address.parse().expect("an address"), fall_back)
    }

    #[tokio::test]
    async fn a_public_address_is_refused() {
        for address in ["0.0.0.0:1883", "192.0.2.1:1883", "[::]:1883"] {
            let error = start(address, true).expect_err(address).to_string();
            assert!(error.contains(address), "{error}");
            assert!(error.contains("loopback"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error_that_names_the_address() {
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

    /// What a broker is that has wedged: it takes connections, and says nothing.
    pub(in crate::broker) fn wedged(probe_timeout: Duration) -> (Embedded, tokio::net::TcpListener) {
        let listener = || bind(ANY.parse().expect("an address"), false).and_then(tokio::net::TcpListener::from_std);
        let mute = listener().expect("a free port");
        let address = mute.local_addr().expect("bound");
        let ports = Ports { v4: address, v5: address, end: CancellationToken::new() };
        let door = listener().expect("a free port");
        let address = door.local_addr().expect("bound");
        let embedded = Embedded::before(door, address, Rumqttd { ports, runtime: None });
        (Embedded { probe_timeout, ..embedded }, mute)
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_does_not_wait_for_ever() {
        let (broker, _mute) = wedged(PROBE_TIMEOUT);
        let error = broker.probe().await.expect_err("it says nothing");
        assert!(matches!(error, ProbeError::Silent { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_restart_keeps_the_front_and_ends_what_was_connected_to_a_wedged_broker() {
        let (broker, mute) = wedged(PROBE_TIMEOUT);
        let front = broker.address();
        let mut device = TcpStream::connect(front).await.expect("the front listens");
        device.write_all(b"\x10\x0d\0\x04MQTT\x04\x02\0\x0a\0\x01a").await.expect("written");
        let _held = mute.accept().await.expect("the front passes on");
        let mut link = broker.target().connect().await.expect("it listens");
        broker.restart().expect("another rumqttd");
        let mut byte = [0];
        link.read_exact(&mut byte).await.expect_err("its broker is gone");
        device.read_exact(&mut byte).await.expect_err("its broker is gone");
        assert_eq!(broker.address(), front);
        broker.probe().await.expect("alive");
        publish(front, Version::V4, 7).await.expect("the front leads to the new one");
    }
}
