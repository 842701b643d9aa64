//! Which address a client counts for.
//!
//! Invariant: a header that a client can write is believed only where a trusted proxy
//! has written to it. Pure.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::http::HeaderMap;

use crate::config::TrustedProxies;

/// The address that a client counts for, or the network of an IPv6 subscriber.
pub fn client_network(peer: SocketAddr, headers: &HeaderMap, proxies: &TrustedProxies) -> IpAddr {
    network(client_address(peer.ip(), headers, proxies))
}

/// The address of whoever connects: the peer's, or, if the peer is a trusted proxy, the
/// one that the proxy names in `X-Forwarded-For`. Anybody may send that header, and each
/// proxy adds to its end. So it is read from the end, as far as the proxies are trusted.
pub(super) fn client_address(
    peer: IpAddr,
    headers: &HeaderMap,
    proxies: &TrustedProxies,
) -> IpAddr {
    let values = headers.get_all("x-forwarded-for").iter();
    let values: Vec<&str> = values.filter_map(|value| value.to_str().ok()).collect();
    let named = values.iter().rev().flat_map(|value| value.rsplit(','));
    let mut address = peer.to_canonical();
    for named in named {
        if !proxies.contain(address) {
            break;
        }
        let Some(named) = parse_address(named.trim()) else {
            break;
        };
        address = named;
    }
    address
}

/// Reads an address with or without a port.
fn parse_address(text: &str) -> Option<IpAddr> {
    let address = text
        .parse()
        .or_else(|_| text.parse().map(|address: SocketAddr| address.ip()));
    address.ok().map(|address: IpAddr| address.to_canonical())
}

/// The addresses that count as one client: an IPv6 subscriber has a whole /64.
pub fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("x-forwarded-for", value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_client_is_whom_the_last_untrusted_hop_names() {
        let proxies: TrustedProxies = "10.0.0.0/8, 192.168.1.1, fd00::/8".parse().unwrap();
        for (peer, values, expected) in [
            ("1.1.1.1", &["2.2.2.2"][..], "1.1.1.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["2.2.2.2"], "2.2.2.2"),
            // The client's text comes first.
            ("10.0.0.1", &["9.9.9.9, 2.2.2.2"], "2.2.2.2"),
            ("10.0.0.1", &["9.9.9.9", "2.2.2.2, 192.168.1.1"], "2.2.2.2"),
            ("10.0.0.1", &["nonsense, 10.9.9.9"], "10.9.9.9"),
            ("::ffff:10.0.0.1", &["2.2.2.2:4711"], "2.2.2.2"),
            ("fd00::1", &["[2001:db8::7]:80"], "2001:db8::7"),
        ] {
            let address = client_address(peer.parse().unwrap(), &headers(values), &proxies);
            assert_eq!(
                address,
                expected.parse::<IpAddr>().unwrap(),
                "{peer} {values:?}"
            );
        }
    }
}
