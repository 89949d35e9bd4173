//! `[dns]`, `[dial]`, `[federation]` and `[peers]`: how other domains are found and reached, and which may federate.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Config;
use crate::base::limits::{self, PeerLimitsOverride};
use crate::base::{Domain, Fault};
use crate::federation::policy::{Access, Mode};
use crate::federation::{Backoff, DialSettings, PeerOverride, PeerPolicies};
use crate::transport::{AddressPolicy, Network, PeerTrust, Pin, ResolverSettings};

/// `[dns]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dns {
    /// Name servers; empty uses the system's.
    pub servers: Vec<SocketAddr>,
    /// The most SRV records used of one answer.
    pub srv_records_max: usize,
    /// The most addresses used of one SRV target.
    pub target_addresses_max: usize,
    /// Answers are kept for their TTL, but at least for so long, in seconds.
    pub ttl_seconds_min: u64,
    /// And at most for so long, in seconds.
    pub ttl_seconds_max: u64,
    /// How long after its TTL an answer serves while the name servers fail or are silent, in seconds.
    pub stale_seconds_max: u64,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            srv_records_max: limits::SRV_RECORDS_MAX,
            target_addresses_max: limits::TARGET_ADDRESSES_MAX,
            ttl_seconds_min: limits::DNS_TTL_MIN.as_secs(),
            ttl_seconds_max: limits::DNS_TTL_MAX.as_secs(),
            stale_seconds_max: limits::DNS_STALE_MAX.as_secs(),
        }
    }
}

impl Dns {
    /// The settings without the servers are the defaults.
    pub fn asking(servers: Vec<SocketAddr>) -> Self {
        Self { servers, ..Self::default() }
    }

    /// What the resolver is told.
    pub fn resolver_settings(&self) -> ResolverSettings {
        ResolverSettings {
            servers: self.servers.clone(),
            srv_records_max: self.srv_records_max,
            target_addresses_max: self.target_addresses_max,
            ttl_min: Duration::from_secs(self.ttl_seconds_min),
            ttl_max: Duration::from_secs(self.ttl_seconds_max),
            stale_max: Duration::from_secs(self.stale_seconds_max),
            seed: None,
        }
    }
}

/// `[federation]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Federation {
    /// What holds for a peer of which nothing is said: `open`, `allow-list` or `deny-list`.
    pub mode: Mode,
}

/// `[dial]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dial {
    /// Networks that are dialled for every peer although they are not for the public internet.
    pub exempt: Vec<Network>,
    /// No wait for the next try of a peer that fails is longer, in seconds.
    pub retry_seconds_max: u64,
}

impl Default for Dial {
    fn default() -> Self {
        Self { exempt: Vec::new(), retry_seconds_max: limits::BACKOFF_MAX.as_secs() }
    }
}

impl Dial {
    /// What a node needs that listens for others on `address`: one that can be reached from its own machine only can only have
    /// peers there.
    pub fn for_node_at(address: IpAddr) -> Self {
        let exempt = if address.is_loopback() { Network::LOOPBACK.to_vec() } else { Vec::new() };
        Self { exempt, ..Self::default() }
    }
}

/// `[peers."b.example"]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Peer {
    /// Where its nodes are, in the order in which to try them, instead of what DNS says. The certificate is still checked for the
    /// domain. These very addresses are dialled whatever they are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<SocketAddr>,
    /// Networks that are dialled for this peer although they are not for the public internet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exempt: Vec<Network>,
    /// Keys, each of a CA or of the node itself: with at least one, nothing else vouches for this peer. Hexadecimal SHA-256 of the
    /// SubjectPublicKeyInfo.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<Pin>,
    /// Whether a certificate for `*.<rest>` will do, when the peer's domain is `<label>.<rest>`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub wildcard: bool,
    /// Whether it may federate, whatever the mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// Whether nothing is sent to it for now; what waits for it stays.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub hold: bool,
    /// How much it may ask for, where that differs from `[limits]`.
    #[serde(skip_serializing_if = "PeerLimitsOverride::is_empty")]
    pub limits: PeerLimitsOverride,
}

impl Peer {
    /// The same as the policies have it; what is not written down is not said.
    fn said(&self) -> PeerOverride {
        let written = |flag: bool| flag.then_some(true);
        PeerOverride {
            access: self.access,
            hold: written(self.hold),
            reason: None,
            addresses: Some(self.addresses.clone()).filter(|addresses| !addresses.is_empty()),
            exempt: Some(self.exempt.clone()).filter(|exempt| !exempt.is_empty()),
            pins: Some(self.pins.clone()).filter(|pins| !pins.is_empty()),
            wildcard: written(self.wildcard),
            limits: Some(self.limits).filter(|limits| !limits.is_empty()),
        }
    }
}

impl Config {
    /// Refuses what could not work in `[dns]`, `[dial]` and `[peers]`.
    pub(super) fn check_peers(&self) -> Result<(), Fault> {
        let (records, addresses) = (self.dns.srv_records_max, self.dns.target_addresses_max);
        if records == 0 || addresses == 0 {
            return Err(Fault::new("dns: srv_records_max or target_addresses_max is 0, so that nobody would be found"));
        }
        let most = limits::DIAL_ADDRESSES_MAX;
        if records.saturating_mul(addresses) > most {
            return Err(Fault::new(format!(
                "dns: srv_records_max times target_addresses_max is more than the {most} addresses that are tried at most"
            )));
        }
        if self.dns.ttl_seconds_min > self.dns.ttl_seconds_max {
            return Err(Fault::new("dns: ttl_seconds_min is more than ttl_seconds_max"));
        }
        let longest = limits::CONFIGURED_SECONDS_MAX;
        if self.dns.ttl_seconds_max.max(self.dns.stale_seconds_max).max(self.dial.retry_seconds_max) > longest {
            return Err(Fault::new(format!("dns, dial: a time is longer than the {longest} seconds that make sense")));
        }
        if self.dial.retry_seconds_max == 0 {
            return Err(Fault::new("dial: retry_seconds_max is 0, so that a peer that is down would be tried all the time"));
        }
        for (domain, peer) in &self.peers {
            if *domain == self.domain {
                return Err(Fault::new(format!("peers: {domain} is the domain that this node serves")));
            }
            peer.said().check().map_err(|why| Fault::new(format!("peers: {domain} has {why}")))?;
        }
        Ok(())
    }

    /// Who may federate, and what is different for single peers.
    pub fn peer_policies(&self) -> PeerPolicies {
        let said = self.peers.iter().map(|(domain, peer)| (domain.clone(), peer.said()));
        PeerPolicies::new(self.federation.mode, self.limits.per_peer(), said.collect())
    }

    /// What is different for the certificates of single peers.
    pub fn peer_trust(&self) -> BTreeMap<Domain, PeerTrust> {
        self.peer_policies().trust()
    }

    /// Where peers may be dialled, and how long to wait for those that fail.
    pub fn dial_settings(&self) -> DialSettings {
        let addresses = AddressPolicy::exempting(self.dial.exempt.clone());
        let backoff = Backoff { max: Duration::from_secs(self.dial.retry_seconds_max), ..Backoff::default() };
        DialSettings { addresses, policies: self.peer_policies(), backoff }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::federation::policy::Denial;

    const SAMPLE: &str = include_str!("../../../configs/node.toml");

    fn with(more: &str) -> Result<Config, Fault> {
        let config = Config::parse(&SAMPLE.replace("servers = []", &format!("servers = []\n{more}")))?;
        config.check_peers().map(|()| config)
    }

    #[test]
    fn a_peer_has_addresses_and_exemptions_of_its_own() {
        let config = with(
            "[dial]\nexempt = [\"10.1.0.0/16\"]\n[peers.\"b.example\"]\naddresses = [\"192.168.7.7:7443\"]\nexempt = [\"fd00::/8\"]",
        )
        .expect("valid");
        let (b, c): (Domain, Domain) = ("b.example".parse().expect("a domain"), "c.example".parse().expect("a domain"));
        let settings = config.dial_settings();
        assert_eq!(settings.policies.addresses(&b), ["192.168.7.7:7443".parse().expect("an address")]);
        let policy = settings.policies.address_policy(&settings.addresses);
        for (address, of_b, of_c) in [
            ("10.1.0.1", true, true),
            ("192.168.7.7", true, false),
            ("192.168.7.8", false, false),
            ("fd00::1", true, false),
            ("127.0.0.1", false, false),
            ("8.8.8.8", true, true),
        ] {
            let ip: IpAddr = address.parse().expect("an address");
            assert_eq!((policy.check(&b, ip).is_ok(), policy.check(&c, ip).is_ok()), (of_b, of_c), "{address}");
        }
    }

    #[test]
    fn who_may_federate_is_read_and_written_back() {
        let said = "[peers.\"b.example\"]\naccess = \"allow\"\nhold = true\nlimits = { streams_max = 9 }\nwildcard = true\n\
                    [peers.\"c.example\"]\nwildcard = true";
        let config = with(said).expect("valid");
        let (b, c): (Domain, Domain) = ("b.example".parse().expect("a domain"), "c.example".parse().expect("a domain"));
        assert_eq!(config.federation.mode, Mode::Open, "as the sample has it");
        for (mode, of_c) in [(Mode::Open, None), (Mode::DenyList, None), (Mode::AllowList, Some(Denial::NotListed))] {
            let config = Config { federation: Federation { mode }, ..config.clone() };
            let policies = config.peer_policies();
            assert_eq!((policies.denied(&b), policies.denied(&c)), (None, of_c), "an entry alone allows nobody");
            assert_eq!((policies.of(&b).held, policies.limits(&b).streams_max, policies.of(&c).held), (true, 9, false));
            assert_eq!(Config::parse(&config.to_toml().expect("it can be written")).expect("and read back"), config);
        }
        assert!(with(said).expect("valid").peer_trust()[&c].wildcard);
        let typo = Config::parse(&SAMPLE.replace("mode = \"open\"", "mode = \"closed\"")).expect_err("no such mode").to_string();
        assert!(typo.contains("closed") && typo.contains("allow-list"), "{typo}");
    }

    #[test]
    fn what_could_not_work_is_refused_in_a_sentence() {
        for (more, says) in [
            ("srv_records_max = 0", "nobody would be found"),
            ("srv_records_max = 32", "more than the 64"),
            ("ttl_seconds_min = 7200", "ttl_seconds_min"),
            ("stale_seconds_max = 999999999999", "longer than"),
            ("[dial]\nretry_seconds_max = 0", "tried all the time"),
            ("[dial]\nexempt = [\"10.0.0.1/8\"]", "beyond the prefix"),
            ("[dial]\nexempted = []", "unknown field"),
            ("[peers.\"a.example\"]\naddresses = []", "the domain that this node serves"),
            ("[peers.b]\naddresses = []", "not a domain"),
            ("[peers.\"b.example\"]\nlimits = { requests_per_second_max = 0 }", "b.example has a requests_per_second_max of 0"),
            ("[peers.\"b.example\"]\nlimits = { requests_max = 1 }", "unknown field"),
            ("[peers.\"b.example\"]\naccess = \"denied\"", "unknown variant"),
            ("[peers.\"b.example\"]\naddress = []", "unknown field"),
        ] {
            let fault = with(more).expect_err(more).to_string();
            assert!(fault.contains(says), "{more}: {fault}");
        }
    }

    #[test]
    fn only_a_node_on_loopback_gets_an_exemption_by_itself() {
        assert_eq!(Dial::for_node_at([127, 0, 0, 9].into()).exempt, Network::LOOPBACK);
        for address in ["0.0.0.0", "::", "10.0.0.1", "8.8.8.8"] {
            assert_eq!(Dial::for_node_at(address.parse().expect("an address")), Dial::default(), "{address}");
        }
    }
}
