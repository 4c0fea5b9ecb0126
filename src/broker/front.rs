//! The port at which devices find the embedded broker: it looks which MQTT they speak, and passes their bytes on.

use std::io;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::embedded::Ports;

/// How long a client may take to say which protocol it speaks.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at a CONNECT that comes in pieces.
const PAUSE: Duration = Duration::from_millis(10);

/// Serves for ever; each new client goes where `ports` says at that time.
pub async fn serve(listener: TcpListener, ports: impl Fn() -> Ports) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let ports = ports();
                let end = ports.end.clone();
                drop(tokio::spawn(end.run_until_cancelled_owned(pass_on(client, ports))));
            }
            // No descriptors are left: others must end first.
            Err(_) => sleep(PATIENCE / 100).await,
        }
    }
}

async fn pass_on(mut client: TcpStream, ports: Ports) -> io::Result<()> {
    let version = timeout(PATIENCE, version(&client)).await??;
    let mut broker = TcpStream::connect(if version == 5 { ports.v5 } else { ports.v4 }).await?;
    client.set_nodelay(true)?;
    broker.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut broker).await?;
    Ok(())
}

/// The protocol version in a CONNECT (MQTT 5 section 3.1.2.2), which stays to be read.
async fn version(client: &TcpStream) -> io::Result<u8> {
    let mut head = [0; 16];
    let mut seen = 0;
    loop {
        let length = client.peek(&mut head).await?;
        if let Some(version) = version_in(&head[..length]) {
            return Ok(version);
        }
        if length == 0 || length == head.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if length == seen {
            sleep(PAUSE).await;
        }
        seen = length;
    }
}

fn version_in(head: &[u8]) -> Option<u8> {
    let name = head.windows(2).position(|pair| pair == b"MQ").filter(|_| head.first() == Some(&0x10))?;
    let length = usize::from(*head.get(name.checked_sub(1)?)?);
    head.get(name + length).copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_version_is_where_the_standard_has_it(
            length in prop::collection::vec(0x80..=0xFFu8, 0..3), last in 0..0x80u8, is_old: bool, version: u8, cut in 0..16usize
        ) {
            let name: &[u8] = if is_old { b"\0\x06MQIsdp" } else { b"\0\x04MQTT" };
            let head = [&[0x10], &length[..], &[last], name, &[version]].concat();
            prop_assert_eq!(version_in(&head), Some(version));
            prop_assert_eq!(version_in(&head[..cut.min(head.len() - 1)]), None);
        }

        #[test]
        fn any_head_may_be_looked_at(head: [u8; 16], name in 0..15usize) {
            version_in(&head);
            let mut named = head;
            named[0] = 0x10;
            named[name..name + 2].copy_from_slice(b"MQ");
            version_in(&named);
        }
    }

    #[test]
    fn the_version_is_found_however_long_the_packet_is() {
        let cases: [(&[u8], Option<u8>); 7] = [
            (b"\x10\x1e\0\x04MQTT\x05\x02", Some(5)),
            (b"\x10\x1e\0\x04MQTT\x04\x02", Some(4)),
            (b"\x10\x9e\x81\x01\0\x04MQTT\x05\x02", Some(5)),
            (b"\x10\x1e\0\x06MQIsdp\x03\x02", Some(3)),
            (b"\x10\x1e\0\x04MQTT", None),
            (b"\x30\x1e\0\x04MQTT\x05", None),
            (b"", None),
        ];
        for (head, version) in cases {
            assert_eq!(version_in(head), version, "{head:02x?}");
        }
    }
}
