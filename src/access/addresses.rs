//! Whom a connection comes from, and who counts as one.

use core::net::{IpAddr, Ipv6Addr};
use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// What counts as one address: an IPv4 address, also one written in IPv6; or an IPv6 network of 64 bits, which is the least that a
/// provider gives to one household.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address(IpAddr);

impl Address {
    /// The address that this one counts for.
    pub fn of(address: IpAddr) -> Address {
        Address(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
            v4 => v4,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => address.fmt(f),
            IpAddr::V6(network) => write!(f, "{network}/64"),
        }
    }
}

/// An address, or a network of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network(IpNet);

impl Network {
    /// Whether the address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let network =
            text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(|it| IpNet::from(it.to_canonical())));
        network.map(Network).map_err(|_| {
            format!(r#""{text}" is no IP address and no network, such as "10.0.0.7", "10.0.0.0/8" or "fd00::/8""#)
        })
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Network, String> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> String {
        let Network(network) = network;
        if network.prefix_len() == network.max_prefix_len() { network.addr().to_string() } else { network.to_string() }
    }
}

/// Whom a request comes from: the peer of its connection or, if that is a trusted proxy, the first address that is none.
///
/// `forwarded` holds the values of `X-Forwarded-For` from the right, where each proxy added the address that it saw. Only what a trusted proxy
/// wrote counts; anything that is no address ends the search with the proxy that let it pass.
pub fn client<'a>(peer: IpAddr, forwarded: impl IntoIterator<Item = &'a str>, trusted: &[Network]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = peer.to_canonical();
    for written in forwarded {
        if !is_trusted(client) {
            break;
        }
        let Some(address) = read(written) else { break };
        client = address;
    }
    client
}

/// An address as proxies write it: alone, with a port, or in brackets.
fn read(written: &str) -> Option<IpAddr> {
    let written = written.trim_matches([' ', '\t']);
    let bracketed = || written.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::from);
    let with_port = || written.parse::<core::net::SocketAddr>().ok().map(|address| address.ip());
    written.parse().ok().or_else(with_port).or_else(bracketed).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn networks(texts: &[&str]) -> Vec<Network> {
        texts.iter().map(|text| text.parse().expect("a network")).collect()
    }

    #[test]
    fn who_counts_as_one_address() {
        for (one, other, same) in [
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("10.0.0.1", "::ffff:10.0.0.1", true),
            ("10.0.0.1", "::ffff:10.0.0.2", false),
            ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true),
            ("2001:db8:0:0::1", "2001:db8:0:1::1", false),
            ("::1", "127.0.0.1", false),
        ] {
            assert_eq!(Address::of(address(one)) == Address::of(address(other)), same, "{one} {other}");
        }
        assert_eq!(Address::of(address("::ffff:10.0.0.1")).to_string(), "10.0.0.1");
        assert_eq!(Address::of(address("2001:db8:1:2:3:4:5:6")).to_string(), "2001:db8:1:2::/64");
    }

    #[test]
    fn the_client_is_the_first_from_the_right_that_is_no_trusted_proxy() {
        let trusted = networks(&["10.0.0.0/8", "192.0.2.7", "fd00::/8"]);
        for (case, peer, forwarded, client_is) in [
            ("no proxy says anything", "10.0.0.1", "", "10.0.0.1"),
            ("one proxy", "10.0.0.1", "203.0.113.5", "203.0.113.5"),
            ("what the client made up is left of it", "10.0.0.1", "1.2.3.4, 203.0.113.5", "203.0.113.5"),
            ("two proxies", "10.0.0.1", "203.0.113.5, 192.0.2.7", "203.0.113.5"),
            ("three, one over IPv6", "10.0.0.1", "203.0.113.5,fd00::1 ,\t10.9.9.9", "203.0.113.5"),
            ("a peer that is not trusted", "203.0.113.9", "203.0.113.5", "203.0.113.9"),
            ("a neighbour of a trusted address", "192.0.2.8", "203.0.113.5", "192.0.2.8"),
            ("a trusted peer in IPv6 form", "::ffff:10.0.0.1", "203.0.113.5", "203.0.113.5"),
            ("a client in IPv6 form", "10.0.0.1", "::ffff:203.0.113.5", "203.0.113.5"),
            ("only proxies", "10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
            ("with a port", "10.0.0.1", "203.0.113.5:4711", "203.0.113.5"),
            ("IPv6 with a port", "10.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
            ("IPv6 in brackets", "10.0.0.1", "[2001:db8::1]", "2001:db8::1"),
            ("no address", "10.0.0.1", "203.0.113.5, unknown", "10.0.0.1"),
            ("nothing between commas", "10.0.0.1", "203.0.113.5, , 10.0.0.2", "10.0.0.2"),
            ("a network", "10.0.0.1", "203.0.113.0/24", "10.0.0.1"),
            ("a name", "10.0.0.1", "localhost", "10.0.0.1"),
        ] {
            let forwarded = forwarded.rsplit(',').filter(|_| !forwarded.is_empty());
            assert_eq!(client(address(peer), forwarded, &trusted), address(client_is), "{case}");
        }
    }

    #[test]
    fn a_network_is_an_address_or_has_a_prefix() {
        for (text, shown) in
            [("10.0.0.7", "10.0.0.7"), ("10.0.0.0/8", "10.0.0.0/8"), ("::1", "::1"), ("fd00::/8", "fd00::/8")]
        {
            assert_eq!(text.parse::<Network>().map(String::from), Ok(shown.to_owned()));
        }
        for text in ["", "10.0.0.0/33", "10.0.0", "proxy", "10.0.0.1:80", "::/129"] {
            assert!(text.parse::<Network>().unwrap_err().contains("10.0.0.0/8"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn whoever_is_not_behind_a_trusted_proxy_is_who_it_is(peer: [u8; 4], forwarded in "\\PC{0,60}") {
            let peer = IpAddr::from(peer);
            let trusted = networks(&["127.0.0.1"]);
            prop_assume!(peer != address("127.0.0.1"));
            prop_assert_eq!(client(peer, forwarded.rsplit(','), &trusted), peer);
        }

        #[test]
        fn what_stands_left_of_the_client_changes_nothing(forged in "\\PC{0,60}", seen: [u8; 4]) {
            let trusted = networks(&["127.0.0.0/8"]);
            let seen = IpAddr::from(seen);
            prop_assume!(!trusted[0].contains(seen));
            let header = format!("{forged},{seen}, 127.0.0.2");
            prop_assert_eq!(client(address("127.0.0.1"), header.rsplit(','), &trusted), seen);
        }
    }
}
