//! What can happen to a network: a TCP proxy before a broker or before a gateway, as bad as it is told to be.

use std::future::pending;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::free_port;

/// What the kernel keeps for one side: little, so that a line that is held or slow is felt at once.
const KERNEL_BUFFER: u32 = 16 * 1024;
/// What is forwarded at a time.
const PIECE: usize = 4096;

/// The way of bytes through a proxy: to whom it stands before, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    To,
    Back,
}

/// The types of MQTT packets, by the number in their first byte.
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

pub struct Proxy {
    pub port: u16,
    line: watch::Sender<Line>,
    packets: Arc<Packets>,
    accepting: JoinHandle<()>,
}

/// How the line is. Connections are numbered as they come, so that a fault can end those that are there and spare the next.
#[derive(Clone, Copy, Default)]
struct Line {
    /// The port that new connections are led to.
    target: u16,
    opened: u64,
    delay: Duration,
    /// Bytes a second.
    rate: Option<u32>,
    held: Option<Held>,
    /// New connections are refused, as if nobody listened.
    refuses: bool,
    /// New connections are ended at once.
    is_cut: bool,
    /// Connections before this one are ended, and how.
    ended: (u64, Ending),
    /// Connections before this one forward nothing any more.
    silent: u64,
    /// Connections before this one have reached their end in one way.
    half_closed: (u64, Option<Way>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Both,
    Only(Way),
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Ending {
    #[default]
    Close,
    Reset,
}

impl Proxy {
    /// Stands before whoever listens at this port.
    pub async fn before(target: u16) -> Proxy {
        let port = free_port();
        let (line, state) = watch::channel(Line { target, ..Line::default() });
        let packets = Arc::<Packets>::default();
        let listener = listen(port);
        let accepting = tokio::spawn(accept(port, listener, line.clone(), state, packets.clone()));
        Proxy { port, line, packets, accepting }
    }

    /// The setting that leads a gateway here.
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// Leads new connections to another port.
    pub fn lead_to(&self, target: u16) {
        self.line.send_modify(|line| line.target = target);
    }

    /// Everything takes so long on its way, from now on; what is on it when the line is cut is lost.
    pub fn delay(&self, delay: Duration) {
        self.line.send_modify(|line| line.delay = delay);
    }

    /// Forwards no more than so many bytes a second, each way.
    pub fn throttle(&self, bytes: u32) {
        self.line.send_modify(|line| line.rate = Some(bytes.max(20)));
    }

    /// Half-open: takes connections, forwards nothing, and ends nothing.
    pub fn hold(&self) {
        self.line.send_modify(|line| line.held = Some(Held::Both));
    }

    /// The same one way only.
    pub fn hold_way(&self, way: Way) {
        self.line.send_modify(|line| line.held = Some(Held::Only(way)));
    }

    /// A black hole: the connections that are there forward nothing any more, for good, and are not ended. New ones are served.
    pub fn swallow(&self) {
        self.line.send_modify(|line| line.silent = line.opened);
    }

    /// Closes all connections, and each new one, until [`resume`](Self::resume).
    pub fn cut(&self) {
        self.end(Ending::Close);
    }

    /// The same with RST, so that what was not read is lost.
    pub fn reset(&self) {
        self.end(Ending::Reset);
    }

    /// The connections that are there end in one way, and go on in the other.
    pub fn cut_way(&self, way: Way) {
        self.line.send_modify(|line| line.half_closed = (line.opened, Some(way)));
    }

    /// New connections are refused, as if nobody listened; those that are there go on.
    pub fn refuse(&self) {
        self.line.send_modify(|line| line.refuses = true);
    }

    /// The line is whole again; what was held is forwarded.
    pub fn resume(&self) {
        self.line.send_modify(|line| {
            line.rate = None;
            line.held = None;
            line.refuses = false;
            line.is_cut = false;
        });
    }

    /// Ends the connection on which the next MQTT packet of this type comes, in place of forwarding it. New connections are served.
    pub fn cut_at(&self, way: Way, kind: Kind) {
        *self.packets.trap.lock().expect("nobody panics") = Some((way, kind as u8));
    }

    /// MQTT packets of this type that were forwarded.
    pub fn forwarded(&self, way: Way, kind: Kind) -> usize {
        self.packets.forwarded.lock().expect("nobody panics")[way as usize][kind as usize]
    }

    fn end(&self, ending: Ending) {
        self.line.send_modify(|line| {
            line.is_cut = true;
            line.ended = (line.opened, ending);
        });
    }
}

impl Drop for Proxy {
    /// Ends everything: the connections end with the last that could tell them something.
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn listen(port: u16) -> TcpListener {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("set");
    socket.set_recv_buffer_size(KERNEL_BUFFER).expect("set");
    socket.bind(([127, 0, 0, 1], port).into()).expect("a port of its own");
    socket.listen(1024).expect("listening")
}

/// Takes connections; the listener is closed while they are refused.
async fn accept(
    port: u16,
    first: TcpListener,
    line: watch::Sender<Line>,
    mut state: watch::Receiver<Line>,
    packets: Arc<Packets>,
) {
    let mut listener = Some(first);
    loop {
        let refuses = state.borrow_and_update().refuses;
        if refuses == listener.is_some() {
            listener = if refuses { None } else { Some(listen(port)) };
        }
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => pending().await,
            }
        };
        tokio::select! {
            accepted = accepted => if let Ok((client, _)) = accepted {
                let mut number = 0;
                line.send_modify(|line| {
                    number = line.opened;
                    line.opened += 1;
                });
                tokio::spawn(connect(client, number, state.clone(), packets.clone()));
            },
            _ = state.changed() => {}
        }
    }
}

async fn connect(mut client: TcpStream, number: u64, line: watch::Receiver<Line>, packets: Arc<Packets>) {
    let Line { is_cut, ended, target, .. } = *line.borrow();
    if is_cut {
        if ended.1 == Ending::Reset {
            let _ = client.set_zero_linger();
        }
        return;
    }
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(KERNEL_BUFFER).expect("set");
    let Ok(mut server) = socket.connect(([127, 0, 0, 1], target).into()).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
    let mut end = line.clone();
    let ending = tokio::select! {
        _ = async { tokio::try_join!(
            carry(Way::To, from_client, to_server, number, line.clone(), &packets),
            carry(Way::Back, from_server, to_client, number, line, &packets),
        ) } => Ending::Close,
        ended = end.wait_for(|line| number < line.ended.0) => ended.map_or(Ending::Close, |line| line.ended.1),
    };
    if ending == Ending::Reset {
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

/// Forwards in one way until its end, which is passed on; an error ends both ways.
async fn carry(
    way: Way,
    from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    number: u64,
    mut line: watch::Receiver<Line>,
    packets: &Packets,
) -> io::Result<()> {
    let flow = forward(way, from, &mut to, number, line.clone(), packets);
    tokio::select! {
        result = flow => result?,
        _ = line.wait_for(|line| number < line.half_closed.0 && line.half_closed.1 == Some(way)) => {}
    }
    to.shutdown().await
}

async fn forward(
    way: Way,
    mut from: ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
    number: u64,
    mut line: watch::Receiver<Line>,
    packets: &Packets,
) -> io::Result<()> {
    let mut buffer = [0; PIECE];
    let mut stream = Stream::default();
    loop {
        // A slow line takes small pieces, so that it is soon fast again when it is told.
        let rate = line.borrow().rate;
        let piece = rate.map_or(PIECE, |rate| PIECE.min(rate as usize / 20));
        let count = from.read(&mut buffer[..piece]).await?;
        let _ = line.wait_for(|line| line.forwards(way, number)).await;
        let delay = line.borrow().delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        if count == 0 {
            return Ok(());
        }
        let trapped = packets.pass(way, &mut stream, &buffer[..count]);
        to.write_all(&buffer[..trapped.unwrap_or(count)]).await?;
        if trapped.is_some() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if let Some(rate) = rate {
            sleep(Duration::from_secs_f64(count as f64 / f64::from(rate))).await;
        }
    }
}

impl Line {
    fn forwards(&self, way: Way, number: u64) -> bool {
        number >= self.silent && self.held != Some(Held::Both) && self.held != Some(Held::Only(way))
    }
}

/// The MQTT packets that went by. What is no MQTT is counted as if it were, and nobody asks.
#[derive(Default)]
struct Packets {
    forwarded: Mutex<[[usize; 16]; 2]>,
    trap: Mutex<Option<(Way, u8)>>,
}

impl Packets {
    /// Counts the packets that begin in these bytes, up to one that is trapped: where that begins.
    fn pass(&self, way: Way, stream: &mut Stream, bytes: &[u8]) -> Option<usize> {
        let mut forwarded = self.forwarded.lock().expect("nobody panics");
        let mut trap = self.trap.lock().expect("nobody panics");
        for (at, byte) in bytes.iter().enumerate() {
            if let Some(kind) = stream.take(*byte) {
                if trap.take_if(|trap| *trap == (way, kind)).is_some() {
                    return Some(at);
                }
                forwarded[way as usize][usize::from(kind)] += 1;
            }
        }
        None
    }
}

/// Where in a packet a stream of MQTT is.
#[derive(Default)]
enum Stream {
    #[default]
    Between,
    /// In the length: what it comes to so far, and the place of its next seven bits.
    Length(usize, u32),
    Body(usize),
}

impl Stream {
    /// Takes a byte; gives back the type of the packet that begins with it.
    fn take(&mut self, byte: u8) -> Option<u8> {
        let left = match *self {
            Stream::Between => {
                *self = Stream::Length(0, 0);
                return Some(byte >> 4);
            }
            Stream::Length(length, shift) => {
                let length = length | usize::from(byte & 0x7F) << shift;
                if byte >= 0x80 && shift < 21 {
                    *self = Stream::Length(length, shift + 7);
                    return None;
                }
                length
            }
            Stream::Body(left) => left - 1,
        };
        *self = if left == 0 { Stream::Between } else { Stream::Body(left) };
        None
    }
}
