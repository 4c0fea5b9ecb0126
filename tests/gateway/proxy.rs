//! The faults that other scenes rest on, each shown on a connection to a server that sends back what it gets.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use crate::support::{Kind, PATIENCE, Proxy, Way};

/// How long nothing is expected.
const A_WHILE: Duration = Duration::from_millis(150);

/// MQTT packets, as the proxy counts them.
const PINGREQ: [u8; 2] = [0xC0, 0];
const PUBLISH: [u8; 2] = [0x30, 0];
const PUBACK: [u8; 4] = [0x40, 2, 0, 1];
const PUBREL: [u8; 4] = [0x62, 2, 0, 1];

/// A server that sends back what it gets, and a proxy before it.
async fn echo() -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.write_all(b"end").await;
            });
        }
    });
    Proxy::before(port).await
}

struct Client(TcpStream);

impl Client {
    async fn connect(proxy: &Proxy) -> Client {
        Client(TcpStream::connect(("127.0.0.1", proxy.port)).await.expect("taken"))
    }

    /// A connection that works.
    async fn before(proxy: &Proxy) -> Client {
        let mut client = Client::connect(proxy).await;
        client.says(&PINGREQ).await;
        client.hears(&PINGREQ).await;
        client
    }

    async fn says(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("written");
    }

    async fn hears(&mut self, bytes: &[u8]) {
        let mut heard = vec![0; bytes.len()];
        timeout(PATIENCE, self.0.read_exact(&mut heard)).await.expect("in time").expect("bytes");
        assert_eq!(heard, bytes);
    }

    async fn hears_nothing(&mut self) {
        if let Ok(heard) = timeout(A_WHILE, self.0.read_u8()).await {
            panic!("nothing was expected, not {heard:?}");
        }
    }

    /// How the connection ends: closed, or with an error.
    async fn end(&mut self) -> Result<(), io::ErrorKind> {
        match timeout(PATIENCE, self.0.read(&mut [0])).await.expect("in time") {
            Ok(0) => Ok(()),
            Ok(_) => panic!("no byte was expected"),
            Err(error) => Err(error.kind()),
        }
    }
}

#[tokio::test]
async fn a_whole_line_passes_everything_on_and_the_end_too() {
    let proxy = echo().await;
    let mut client = Client::before(&proxy).await;
    let much = vec![7; 300_000];
    let (mut from, mut to) = client.0.split();
    let mut heard = vec![0; much.len()];
    let both = async { tokio::join!(to.write_all(&much), from.read_exact(&mut heard)) };
    let (said, _) = timeout(PATIENCE, both).await.expect("in time");
    said.expect("written");
    assert_eq!(heard, much);
    client.0.shutdown().await.expect("open");
    client.hears(b"end").await;
    assert_eq!(client.end().await, Ok(()));
}

#[tokio::test]
async fn a_delay_holds_back_both_ways_and_what_is_on_the_line_when_it_is_cut_is_lost() {
    let proxy = echo().await;
    proxy.delay(Duration::from_millis(100));
    let began = Instant::now();
    let mut client = Client::before(&proxy).await;
    assert!(began.elapsed() >= Duration::from_millis(200));
    proxy.delay(Duration::from_secs(3600));
    client.says(b"lost").await;
    client.hears_nothing().await;
    proxy.cut();
    assert!(client.end().await.is_ok());
}

#[tokio::test]
async fn a_throttled_line_carries_so_many_bytes_a_second() {
    let proxy = echo().await;
    proxy.throttle(2000);
    let mut client = Client::connect(&proxy).await;
    let began = Instant::now();
    client.says(&[7; 1000]).await;
    client.hears(&[7; 1000]).await;
    assert!(began.elapsed() >= Duration::from_millis(400), "{:?}", began.elapsed());
    proxy.throttle(20);
    client.says(&[7; 3000]).await;
    proxy.resume();
    client.hears(&[7; 3000]).await;
}

#[tokio::test]
async fn a_cut_closes_all_connections_and_each_new_one_until_it_is_mended() {
    let proxy = echo().await;
    let mut before = Client::before(&proxy).await;
    proxy.cut();
    assert_eq!(before.end().await, Ok(()));
    assert_eq!(Client::connect(&proxy).await.end().await, Ok(()));
    proxy.resume();
    let mut after = Client::before(&proxy).await;
    proxy.cut();
    proxy.resume();
    assert_eq!(after.end().await, Ok(()), "however short it was");
    Client::before(&proxy).await;
}

#[tokio::test]
async fn a_reset_is_no_orderly_end() {
    let proxy = echo().await;
    let mut before = Client::before(&proxy).await;
    proxy.reset();
    assert_eq!(before.end().await, Err(io::ErrorKind::ConnectionReset));
    assert_eq!(Client::connect(&proxy).await.end().await, Err(io::ErrorKind::ConnectionReset));
    proxy.resume();
    Client::before(&proxy).await;
}

#[tokio::test]
async fn a_held_line_is_open_and_silent_and_forwards_later() {
    let proxy = echo().await;
    let mut before = Client::before(&proxy).await;
    proxy.hold();
    before.says(b"later").await;
    let mut new = Client::connect(&proxy).await;
    new.says(b"new").await;
    before.hears_nothing().await;
    new.hears_nothing().await;
    proxy.resume();
    before.hears(b"later").await;
    new.hears(b"new").await;
}

#[tokio::test]
async fn one_way_can_be_held_alone() {
    for way in [Way::To, Way::Back] {
        let proxy = echo().await;
        let mut client = Client::before(&proxy).await;
        proxy.hold_way(way);
        let before = proxy.forwarded(Way::To, Kind::Publish);
        client.says(&PUBLISH).await;
        client.hears_nothing().await;
        let passed = proxy.forwarded(Way::To, Kind::Publish) - before;
        assert_eq!(passed, if way == Way::Back { 1 } else { 0 });
        proxy.resume();
        client.hears(&PUBLISH).await;
    }
}

#[tokio::test]
async fn a_black_hole_swallows_what_is_there_for_good_and_serves_what_is_new() {
    let proxy = echo().await;
    let mut before = Client::before(&proxy).await;
    proxy.swallow();
    before.says(b"lost").await;
    before.hears_nothing().await;
    Client::before(&proxy).await;
    proxy.resume();
    before.hears_nothing().await;
    proxy.cut();
    assert!(before.end().await.is_ok(), "a cut ends it all the same");
}

#[tokio::test]
async fn a_cut_of_one_way_ends_that_way_alone() {
    let proxy = echo().await;
    let mut client = Client::before(&proxy).await;
    proxy.cut_way(Way::To);
    client.hears(b"end").await;
    assert_eq!(client.end().await, Ok(()), "the server heard the end, and ended");

    let mut client = Client::before(&proxy).await;
    proxy.cut_way(Way::Back);
    assert_eq!(client.end().await, Ok(()));
    let before = proxy.forwarded(Way::To, Kind::Publish);
    client.says(&PUBLISH).await;
    crate::support::eventually("it goes on", async || proxy.forwarded(Way::To, Kind::Publish) > before).await;
}

#[tokio::test]
async fn new_connections_can_be_refused_while_the_others_go_on() {
    let proxy = echo().await;
    let mut before = Client::before(&proxy).await;
    proxy.refuse();
    let refused = async || match TcpStream::connect(("127.0.0.1", proxy.port)).await {
        Ok(_) => false,
        Err(error) => error.kind() == io::ErrorKind::ConnectionRefused,
    };
    crate::support::eventually("refused", refused).await;
    before.says(b"still here").await;
    before.hears(b"still here").await;
    proxy.resume();
    crate::support::eventually("taken again", async || !refused().await).await;
    Client::before(&proxy).await;
}

#[tokio::test]
async fn new_connections_can_be_led_elsewhere() {
    let (here, there) = (echo().await, echo().await);
    let proxy = Proxy::before(here.port).await;
    let mut before = Client::before(&proxy).await;
    proxy.lead_to(there.port);
    here.refuse();
    Client::before(&proxy).await;
    before.says(b"here").await;
    before.hears(b"here").await;
}

#[tokio::test]
async fn the_line_is_cut_at_a_packet_and_what_went_before_it_was_forwarded() {
    let proxy = echo().await;
    let mut client = Client::connect(&proxy).await;
    proxy.cut_at(Way::To, Kind::Pubrel);
    // A PUBLISH whose length takes two bytes and whose body looks like PUBRELs.
    let publish = [&[0x30, 0xC8, 0x01][..], &[0x62; 200]].concat();
    for packet in [&publish[..], &PUBACK] {
        client.says(packet).await;
        client.hears(packet).await;
    }
    client.says(&[&PUBLISH[..], &PUBREL].concat()).await;
    assert!(client.end().await.is_ok());
    assert_eq!([Kind::Publish, Kind::Puback, Kind::Pubrel].map(|kind| proxy.forwarded(Way::To, kind)), [2, 1, 0]);
    let mut next = Client::connect(&proxy).await;
    next.says(&PUBREL).await;
    next.hears(&PUBREL).await;
}
