//! [`AddressPolicy`]: which addresses this node dials for other domains (*Transport* in `docs/protocol.md`). Pure.
//!
//! Whoever runs a domain writes its DNS records, and anyone can name a domain to a node. Without a policy, records that point at
//! 127.0.0.1 or 10.0.0.1 would make the node knock on doors inside its own network. So every address is compared at the moment of
//! dialling, wherever it came from, and whatever is not for the public internet is refused unless the operator has exempted it:
//!
//! - `[dial] exempt`: networks that may be dialled for every peer;
//! - `[peers."b.example"] exempt`: for that peer only. Addresses written down for a peer are exempt for it.
//!
//! A client's dials to its own node are not subject to it: the user chose that domain, its certificate is pinned, and a home node
//! in a private network is nothing unusual.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::base::Domain;

/// A range of addresses: an address and how many of its leading bits are fixed, as in `10.0.0.0/8`. A lone address is a network
/// of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// The text is no [`Network`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a network: {why}")]
pub struct InvalidNetwork {
    text: String,
    why: &'static str,
}

impl Network {
    const fn v4(octets: [u8; 4], prefix: u8) -> Self {
        let [a, b, c, d] = octets;
        Self { address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix }
    }

    /// By its first four groups; the others are zero.
    const fn v6(groups: [u16; 4], prefix: u8) -> Self {
        let [a, b, c, d] = groups;
        Self { address: IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0)), prefix }
    }

    /// The IPv4 and IPv6 addresses by which a machine reaches itself.
    pub const LOOPBACK: [Self; 2] = [Self::v4([127, 0, 0, 0], 8), Self { address: IpAddr::V6(Ipv6Addr::LOCALHOST), prefix: 128 }];

    /// Whether `address` is of this network. An IPv4 address is of no IPv6 network, nor the other way around.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                same_start(network.to_bits().into(), address.to_bits().into(), 32 - u32::from(self.prefix))
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                same_start(network.to_bits(), address.to_bits(), 128 - u32::from(self.prefix))
            }
            _ => false,
        }
    }
}

/// What counts as one machine where addresses are counted: an IPv4 address, or an IPv6 network of 64 bits, within which one machine
/// may have any number. An IPv4 address in IPv6 form is the IPv4 address.
pub fn machine(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

/// Whether two addresses differ only in their last `free` bits.
fn same_start(a: u128, b: u128, free: u32) -> bool {
    (a ^ b).checked_shr(free).unwrap_or(0) == 0
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Self { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let invalid = |why| InvalidNetwork { text: text.to_owned(), why };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| invalid("want an address and a prefix length, such as 10.0.0.0/8"))?;
        let all = Self::from(address);
        let Some(prefix) = prefix else { return Ok(all) };
        let prefix: u8 = prefix.parse().map_err(|_| invalid("its prefix length is not a number"))?;
        if prefix > all.prefix {
            return Err(invalid("its prefix is longer than an address"));
        }
        // Bits beyond the prefix are most often a slip, and a wider network than was meant.
        let first = match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        let free = u32::from(all.prefix - prefix);
        if first & !u128::MAX.checked_shl(free).unwrap_or(0) != 0 {
            return Err(invalid("the address has bits set beyond the prefix"));
        }
        Ok(Self { address, prefix })
    }
}

impl TryFrom<String> for Network {
    type Error = InvalidNetwork;

    fn try_from(text: String) -> Result<Self, InvalidNetwork> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// What is not dialled unless exempted, the narrower before the wider: the special-purpose registries of IANA (RFC 6890) as far as
/// they are not for the public internet, and IPv6 transition formats, behind which an IPv4 address hides. IPv6 outside 2000::/3 is
/// refused as a whole, see [`refused_as`].
const DENIED: &[(Network, &str)] = &[
    (Network::v4([0, 0, 0, 0], 8), "unspecified"),
    (Network::v4([10, 0, 0, 0], 8), "private"),
    (Network::v4([100, 64, 0, 0], 10), "shared by a carrier's customers (CGNAT)"),
    (Network::v4([127, 0, 0, 0], 8), "loopback"),
    (Network::v4([169, 254, 0, 0], 16), "link-local"),
    (Network::v4([172, 16, 0, 0], 12), "private"),
    (Network::v4([192, 0, 0, 0], 24), "for protocols of the IETF"),
    (Network::v4([192, 0, 2, 0], 24), "for documentation"),
    (Network::v4([192, 88, 99, 0], 24), "a 6to4 relay"),
    (Network::v4([192, 168, 0, 0], 16), "private"),
    (Network::v4([198, 18, 0, 0], 15), "for benchmarking"),
    (Network::v4([198, 51, 100, 0], 24), "for documentation"),
    (Network::v4([203, 0, 113, 0], 24), "for documentation"),
    (Network::v4([224, 0, 0, 0], 4), "multicast"),
    (Network::v4([255, 255, 255, 255], 32), "broadcast"),
    (Network::v4([240, 0, 0, 0], 4), "reserved"),
    (Network { address: IpAddr::V6(Ipv6Addr::UNSPECIFIED), prefix: 128 }, "unspecified"),
    (Network { address: IpAddr::V6(Ipv6Addr::LOCALHOST), prefix: 128 }, "loopback"),
    (V4_MAPPED, "IPv4-mapped"),
    (V4_COMPATIBLE, "IPv4-compatible"),
    (NAT64, "NAT64"),
    (Network::v6([0x64, 0xff9b, 1, 0], 48), "NAT64 of a local network"),
    (Network::v6([0x100, 0, 0, 0], 64), "discard-only"),
    (Network::v6([0x2001, 0, 0, 0], 32), "Teredo"),
    (Network::v6([0x2001, 2, 0, 0], 48), "for benchmarking"),
    (Network::v6([0x2001, 0, 0, 0], 23), "for protocols of the IETF"),
    (Network::v6([0x2001, 0xdb8, 0, 0], 32), "for documentation"),
    (SIX_TO_FOUR, "6to4"),
    (Network::v6([0x3fff, 0, 0, 0], 20), "for documentation"),
    (Network::v6([0x5f00, 0, 0, 0], 16), "for segment routing"),
    (Network::v6([0xfc00, 0, 0, 0], 7), "unique-local"),
    (Network::v6([0xfe80, 0, 0, 0], 10), "link-local"),
    (Network::v6([0xfec0, 0, 0, 0], 10), "site-local"),
    (Network::v6([0xff00, 0, 0, 0], 8), "multicast"),
];

const V4_MAPPED: Network = Network { address: IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0)), prefix: 96 };
const V4_COMPATIBLE: Network = Network::v6([0, 0, 0, 0], 96);
const NAT64: Network = Network::v6([0x64, 0xff9b, 0, 0], 96);
const SIX_TO_FOUR: Network = Network::v6([0x2002, 0, 0, 0], 16);
const GLOBAL_UNICAST_V6: Network = Network::v6([0x2000, 0, 0, 0], 3);

/// Why `address` is not for the public internet, in words that follow "is"; `None` when it is.
pub fn refused_as(address: IpAddr) -> Option<&'static str> {
    let denied = DENIED.iter().find(|(network, _)| network.contains(address)).map(|(_, kind)| *kind);
    // Whatever IANA assigns next, it is not to be dialled before somebody has looked at it.
    denied.or((address.is_ipv6() && !GLOBAL_UNICAST_V6.contains(address)).then_some("not global unicast"))
}

/// The IPv4 address to which packets for an IPv6 address of a transition format go in the end.
fn carried_ipv4(address: IpAddr) -> Option<Ipv4Addr> {
    // `::` and `::1` look like wrappings of 0.0.0.0 and 0.0.0.1 and are none.
    let IpAddr::V6(v6) = address else { return None };
    if v6.is_unspecified() || v6.is_loopback() {
        return None;
    }
    let [.., w, x, y, z] = v6.octets();
    if [V4_MAPPED, V4_COMPATIBLE, NAT64].iter().any(|network| network.contains(address)) {
        Some(Ipv4Addr::new(w, x, y, z))
    } else if SIX_TO_FOUR.contains(address) {
        let [_, _, w, x, y, z, ..] = v6.octets();
        Some(Ipv4Addr::new(w, x, y, z))
    } else {
        None
    }
}

/// An address that is not dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{address} is {kind}, and this node does not dial such addresses")]
pub struct ForbiddenAddress {
    /// The address.
    pub address: IpAddr,
    /// What it is, as in "loopback".
    pub kind: &'static str,
}

/// Which addresses are dialled for which peer. The default has no exemption.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressPolicy {
    exempt: Vec<Network>,
    exempt_for: HashMap<Domain, Vec<Network>>,
}

impl AddressPolicy {
    /// A policy that exempts these networks for every peer.
    pub fn exempting(networks: impl IntoIterator<Item = Network>) -> Self {
        Self { exempt: networks.into_iter().collect(), exempt_for: HashMap::new() }
    }

    /// The same with networks exempted for one peer, beside those it has.
    #[must_use]
    pub fn and_for(mut self, peer: &Domain, networks: impl IntoIterator<Item = Network>) -> Self {
        self.exempt_for.entry(peer.clone()).or_default().extend(networks);
        self
    }

    /// Whether `address` may be dialled for `peer`. Ask with the very address that is dialled next: what was allowed in an
    /// earlier answer of DNS says nothing about this one. Where an IPv6 address carries an IPv4 one, both must be allowed, so
    /// that exempting NAT64 does not open what lies behind the translator.
    pub fn check(&self, peer: &Domain, address: IpAddr) -> Result<(), ForbiddenAddress> {
        if let Some(kind) = refused_as(address)
            && !self.exempts(peer, address)
        {
            return Err(ForbiddenAddress { address, kind });
        }
        match carried_ipv4(address) {
            Some(carried) => self.check(peer, carried.into()),
            None => Ok(()),
        }
    }

    fn exempts(&self, peer: &Domain, address: IpAddr) -> bool {
        let of_peer = self.exempt_for.get(peer).into_iter().flatten();
        self.exempt.iter().chain(of_peer).any(|network| network.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::transport::testing::domain;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn network(text: &str) -> Network {
        text.parse().expect("a network")
    }

    /// What is refused without an exemption, and as what.
    fn kind(text: &str) -> Option<&'static str> {
        AddressPolicy::default().check(&domain("b.test"), ip(text)).err().map(|forbidden| forbidden.kind)
    }

    #[test]
    fn what_is_not_for_the_public_internet_is_refused_by_name() {
        for (address, expected) in [
            ("0.0.0.0", "unspecified"),
            ("0.1.2.3", "unspecified"),
            ("10.0.0.1", "private"),
            ("100.64.0.1", "shared by a carrier's customers (CGNAT)"),
            ("100.127.255.255", "shared by a carrier's customers (CGNAT)"),
            ("127.0.0.1", "loopback"),
            ("127.255.255.255", "loopback"),
            ("169.254.169.254", "link-local"),
            ("172.16.0.1", "private"),
            ("172.31.255.255", "private"),
            ("192.0.0.8", "for protocols of the IETF"),
            ("192.0.2.1", "for documentation"),
            ("192.88.99.1", "a 6to4 relay"),
            ("192.168.1.1", "private"),
            ("198.18.0.1", "for benchmarking"),
            ("198.19.255.255", "for benchmarking"),
            ("198.51.100.1", "for documentation"),
            ("203.0.113.1", "for documentation"),
            ("224.0.0.1", "multicast"),
            ("239.255.255.255", "multicast"),
            ("240.0.0.1", "reserved"),
            ("255.255.255.255", "broadcast"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("::2", "IPv4-compatible"),
            ("::127.0.0.1", "IPv4-compatible"),
            ("::ffff:127.0.0.1", "IPv4-mapped"),
            ("::ffff:8.8.8.8", "IPv4-mapped"),
            ("64:ff9b::8.8.8.8", "NAT64"),
            ("64:ff9b:1::1", "NAT64 of a local network"),
            ("100::1", "discard-only"),
            ("2001::1", "Teredo"),
            ("2001:2::1", "for benchmarking"),
            ("2001:10::1", "for protocols of the IETF"),
            ("2001:db8::1", "for documentation"),
            ("2002:808:808::1", "6to4"),
            ("3fff::1", "for documentation"),
            ("5f00::1", "for segment routing"),
            ("fc00::1", "unique-local"),
            ("fd12:3456::1", "unique-local"),
            ("fe80::1", "link-local"),
            ("febf::1", "link-local"),
            ("fec0::1", "site-local"),
            ("ff02::1", "multicast"),
            ("4000::1", "not global unicast"),
            ("8000::1", "not global unicast"),
        ] {
            assert_eq!(kind(address), Some(expected), "{address}");
        }
        // The neighbours just outside.
        for address in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2001:200::1",
            "2001:db7:ffff::1",
            "2001:db9::1",
            "2003::1",
            "2606:4700::1111",
            "3ffe::1",
        ] {
            assert_eq!(kind(address), None, "{address}");
        }
    }

    #[test]
    fn exemptions_are_for_a_network_or_for_a_peer() {
        let (b, c) = (domain("b.test"), domain("c.test"));
        let policy = AddressPolicy::exempting([network("10.1.0.0/16")]).and_for(&b, [network("127.0.0.5"), network("fd00::/8")]);
        for peer in [&b, &c] {
            assert_eq!(policy.check(peer, ip("10.1.2.3")), Ok(()));
            assert!(policy.check(peer, ip("10.2.2.3")).is_err());
            assert!(policy.check(peer, ip("127.0.0.6")).is_err());
        }
        for address in ["127.0.0.5", "fd00::5"] {
            assert_eq!(policy.check(&b, ip(address)), Ok(()));
            assert!(policy.check(&c, ip(address)).is_err(), "{address} is another peer's");
        }
    }

    #[test]
    fn an_exempted_wrapping_does_not_open_what_it_carries() {
        let peer = domain("b.test");
        let policy = AddressPolicy::exempting(["64:ff9b::/96", "::ffff:0:0/96", "2002::/16"].map(network));
        for wrapped in ["64:ff9b::8.8.8.8", "::ffff:8.8.8.8", "2002:808:808::1"] {
            assert_eq!(policy.check(&peer, ip(wrapped)), Ok(()), "{wrapped}");
        }
        for (wrapped, kind) in [
            ("64:ff9b::127.0.0.1", "loopback"),
            ("64:ff9b::10.0.0.1", "private"),
            ("::ffff:169.254.169.254", "link-local"),
            ("2002:a00:1::1", "private"),
        ] {
            assert_eq!(policy.check(&peer, ip(wrapped)).map_err(|forbidden| forbidden.kind), Err(kind), "{wrapped}");
        }
        // Nor does the exemption of what it carries open the wrapping.
        let inner = AddressPolicy::exempting(Network::LOOPBACK);
        assert!(inner.check(&peer, ip("::ffff:127.0.0.1")).is_err());
        assert_eq!(inner.check(&peer, ip("127.0.0.1")), Ok(()));
        assert_eq!(inner.check(&peer, ip("::1")), Ok(()), "which wraps nothing");
    }

    #[test]
    fn networks_are_read_and_written() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "192.0.2.1/32", "::/0", "fe80::/10", "::1/128"] {
            assert_eq!(network(text).to_string(), text);
        }
        assert_eq!(network("127.0.0.1").to_string(), "127.0.0.1/32");
        assert_eq!(network("::1"), Network::LOOPBACK[1]);
        for (text, why) in [
            ("", "an address and a prefix"),
            ("b.example", "an address and a prefix"),
            ("10.0.0.0/", "not a number"),
            ("10.0.0.0/33", "longer than an address"),
            ("fe80::/129", "longer than an address"),
            ("10.0.0.1/8", "beyond the prefix"),
            ("fe80::1/64", "beyond the prefix"),
            ("1.0.0.0/0", "beyond the prefix"),
        ] {
            let error = text.parse::<Network>().expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    proptest! {
        /// Membership is what the first bits say, computed another way.
        #[test]
        fn membership_is_equality_of_the_first_bits(a: u128, b: u128, prefix in 0u8..=128, same in 0u8..=128) {
            // `b` agrees with `a` in its first `same` bits at least.
            let keep = u128::MAX.checked_shl(128 - u32::from(same)).unwrap_or(0);
            let b = (a & keep) | (b & !keep);
            let first = (0..prefix).fold(0, |mask, bit| mask | 1u128 << (127 - bit));
            let network = Network { address: Ipv6Addr::from_bits(a & first).into(), prefix };
            prop_assert_eq!(network.contains(Ipv6Addr::from_bits(b).into()), a & first == b & first);
            prop_assert_eq!(network.to_string().parse::<Network>(), Ok(network));
        }

        /// Whatever the standard library calls by one of the names on the list is refused, and nothing is dialled for one peer
        /// because another has an exemption.
        #[test]
        fn no_special_address_passes(bits: u128, v4: u32, shape in 0usize..4) {
            let address: IpAddr = match shape {
                0 => Ipv4Addr::from_bits(v4).into(),
                1 => Ipv6Addr::from_bits(bits).into(),
                2 => Ipv4Addr::from_bits(v4).to_ipv6_mapped().into(),
                _ => Ipv6Addr::from_bits((0x2001 << 112) | (bits >> 16)).into(),
            };
            let policy = AddressPolicy::default().and_for(&domain("c.test"), [network("0.0.0.0/0"), network("::/0")]);
            let passes = policy.check(&domain("b.test"), address).is_ok();
            let special = match address {
                IpAddr::V4(v4) => {
                    v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_broadcast()
                        || v4.is_documentation() || v4.is_unspecified()
                }
                IpAddr::V6(v6) => {
                    v6.is_loopback() || v6.is_multicast() || v6.is_unique_local() || v6.is_unicast_link_local()
                        || v6.is_unspecified() || v6.to_ipv4().is_some()
                }
            };
            prop_assert!(!(special && passes), "{}", address);
            prop_assert_eq!(policy.check(&domain("c.test"), address), Ok(()));
        }
    }
}
