//! `TRUSTED_PROXIES`: the proxies whose `X-Forwarded-For` is trusted.

use std::{net::IpAddr, str::FromStr};

use ipnet::IpNet;

/// Addresses and networks of the proxies in front of the gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

/// A text that is neither an address nor a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither an address nor a network like 10.0.0.0/8")]
pub struct InvalidNetwork(String);

impl TrustedProxies {
    /// Whether `address` belongs to a proxy.
    pub fn contain(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

impl FromStr for TrustedProxies {
    type Err = InvalidNetwork;

    /// Comma-separated; empty for none.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let networks = text
            .split(',')
            .map(str::trim)
            .filter(|text| !text.is_empty());
        let parse = |text: &str| {
            let network = text
                .parse()
                .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            network.map_err(|_| InvalidNetwork(text.to_owned()))
        };
        networks.map(parse).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_addresses_are_understood_and_nothing_else() {
        let proxies: TrustedProxies = "10.0.0.0/8, 192.168.1.1,fd00::/8,".parse().unwrap();
        for (address, expected) in [
            ("10.1.2.3", true),
            ("192.168.1.1", true),
            ("192.168.1.2", false),
            ("fd12::1", true),
            ("2001:db8::1", false),
        ] {
            assert_eq!(
                proxies.contain(address.parse().unwrap()),
                expected,
                "{address}"
            );
        }
        assert_eq!("".parse(), Ok(TrustedProxies::default()));
        for wrong in ["proxy", "10.0.0.0/33", "*", "10.0.0"] {
            assert!(wrong.parse::<TrustedProxies>().is_err(), "{wrong}");
        }
    }
}
