//! `probe_back` (X10): what a node tells that was asked to connect back; and [`Trouble`], the one table of what can be wrong
//! between two nodes, whose numbers are in that report and are the exit codes of `mimi-node doctor`.

use std::fmt;

use serde::{Deserialize, Serialize};
use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::codec::{List, Opaque};
use super::peer::ProtocolVersion;

/// What came of connecting to the domain that asked: codes and times, nothing of what is inside the node that tells.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ProbeReport {
    /// The teller's clock, in milliseconds since 1970.
    pub server_time_ms: u64,
    /// What the teller's operator has decided about the asker.
    pub standing: Standing,
    /// 0: a connection came about and `hello` was exchanged. Else the [`Trouble`] that was in the way.
    pub outcome: u16,
    /// 0: DNS (or the teller's configuration) has addresses. Else the [`Trouble`].
    pub discovery: u16,
    /// The addresses, in the order in which they would be tried.
    pub addresses: List<ProbedAddress>,
    /// What was presented at the address that says most.
    pub certificate: Option<ProbedCertificate>,
    /// The connection, if one came about.
    pub connection: Option<ProbedConnection>,
}

/// What an operator has decided about a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Standing {
    /// Nothing against it.
    Allowed = 0,
    /// Nothing is sent to it for now; what waits is kept.
    Held = 1,
    /// There is no federation with it.
    Denied = 2,
}

/// One address that was tried.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ProbedAddress {
    /// As text, such as `192.0.2.1:7443` or `[2001:db8::1]:7443`.
    pub address: Opaque,
    /// 0: a connection came about there. Else the [`Trouble`].
    pub outcome: u16,
    /// How long it took to find that out, in milliseconds.
    pub took_ms: u32,
}

/// The certificate that the asker's node presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ProbedCertificate {
    /// Its last second, in milliseconds since 1970.
    pub not_after_ms: u64,
    /// 0: it is accepted. Else the [`Trouble`]: its name, purpose (extended key usage), time, or who vouches for it.
    pub outcome: u16,
}

/// A connection that came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ProbedConnection {
    /// The version that it has.
    pub version: ProtocolVersion,
    /// QUIC's estimate, in microseconds.
    pub round_trip_us: u32,
}

macro_rules! troubles {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal, $do:literal;)*) => {
        /// What can be wrong between two nodes, each another thing to do for an operator. Further ones may come with a minor
        /// version, so that a report carries them as numbers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[repr(u8)]
        pub enum Trouble {
            $($(#[$doc])* $name = $value,)*
        }

        impl Trouble {
            /// Every one, in the order of the numbers.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name, as it stands in JSON and in the documentation.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What whoever sees it may do about it, a clause without an end.
            pub fn advice(self) -> &'static str {
                match self { $(Self::$name => $do,)* }
            }
        }
    };
}

troubles! {
    /// The SRV name does not exist (NXDOMAIN).
    NoSuchDomain = 10, "no_such_domain", "check the spelling; its operator publishes _mimi-fed._udp SRV records";
    /// There is no SRV record, or no target has an address.
    NoRecords = 11, "no_records", "its operator publishes _mimi-fed._udp SRV records whose targets have addresses";
    /// The only target is `.`.
    RefusesFederation = 12, "refuses_federation", "nothing: this domain says that it does not federate";
    /// SERVFAIL, REFUSED, or no name server could be reached.
    DnsFailure = 13, "dns_failure", "look at the name servers, ours and theirs";
    /// The name servers are silent.
    DnsTimedOut = 14, "dns_timed_out", "look at the name servers, ours and theirs, and at the firewall between";
    /// Every address is one that is not dialled.
    ForbiddenAddress = 15, "forbidden_address", "exempt it in [dial] or [peers], if the federation is in a private network";
    /// UDP gets no answer, although the machine is there.
    UdpSilent = 20, "udp_silent", "a firewall drops UDP to this port, or what listens there is no node";
    /// The machine says that nothing listens on the port (ICMP).
    UdpRefused = 21, "udp_refused", "the node is not running, or the SRV record has another port than it";
    /// Nothing at all comes back, or a router says that there is no such machine or network.
    HostUnreachable = 22, "host_unreachable", "the machine is down, the address is not its own, or a firewall drops everything";
    /// The address was dialled too often lately without finding a peer.
    LeftAlone = 23, "left_alone", "wait a minute";
    /// The node answers that it takes no connection now.
    TurnedAway = 24, "turned_away", "the node is stopping, has too many connections, or has had too much of us: try again in a while";
    /// Nobody who is trusted vouches for the certificate.
    UntrustedCertificate = 30, "untrusted_certificate", "give each side the other's CA, or correct the pin";
    /// The certificate does not stand for the domain.
    WrongName = 31, "wrong_name", "issue a certificate that names the domain, not the host";
    /// The certificate's time is over.
    ExpiredCertificate = 32, "expired_certificate", "renew the certificate, or compare the clocks";
    /// The certificate's time has not begun.
    CertificateNotYetValid = 33, "certificate_not_yet_valid", "compare the clocks of the node and of its CA";
    /// The certificate is not for TLS (extended key usage).
    WrongPurpose = 34, "wrong_purpose", "issue a certificate with serverAuth and clientAuth, or without key usages";
    /// The certificate is on a revocation list.
    RevokedCertificate = 35, "revoked_certificate", "issue another certificate";
    /// The certificate cannot be used for another reason.
    BadCertificate = 36, "bad_certificate", "look at it with `certs inspect`";
    /// The other side refuses the certificate of the side that dials.
    OwnCertificate = 37, "own_certificate", "look at our certificate with `certs inspect`; the peer needs our CA";
    /// No ALPN in common: the two speak protocols of different major versions.
    NoProtocol = 40, "no_protocol", "update the older of the two nodes";
    /// No version in common in `hello`.
    NoVersion = 41, "no_version", "update the older of the two nodes";
    /// The `hello`s do not fit in another way.
    HelloRefused = 42, "hello_refused", "the logs of both nodes say why";
    /// The connection began and then broke off or went silent.
    Broken = 43, "broken", "look at the peer's log; large UDP packets may be lost on the way";
    /// The clocks are so far apart that requests are refused.
    ClockDifference = 50, "clock_difference", "set both clocks by NTP";
    /// The other side's operator does not federate with us.
    DeniedThere = 60, "denied_there", "ask the peer's operator";
    /// The other side's operator has put us on hold.
    HeldThere = 61, "held_there", "ask the peer's operator; what waits there is kept";
    /// This side's operator does not federate with the peer.
    DeniedHere = 62, "denied_here", "allow the peer, if that was not meant";
    /// This side's operator has put the peer on hold.
    HeldHere = 63, "held_here", "release the peer, if that was not meant; what waits is kept";
    /// The other side cannot connect to us.
    CannotReachUs = 70, "cannot_reach_us", "look at what the peer saw, at our SRV records and at our firewall";
    /// The other side did not tell whether it can connect to us.
    BackUnknown = 71, "back_unknown", "try again in a while";
    /// The node that should connect is not able to.
    Local = 79, "local", "look at the log of this node";
}

impl Trouble {
    /// Its number, in a report and as an exit code.
    pub fn number(self) -> u16 {
        self as u16
    }

    /// The one with this number, if this version knows it.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.iter().copied().find(|trouble| trouble.number() == number)
    }

    /// What a report writes for an outcome: 0 for none.
    pub fn number_of(outcome: Option<Self>) -> u16 {
        outcome.map_or(0, Self::number)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_distinct_and_read_back() {
        assert!(Trouble::ALL.windows(2).all(|two| two[0].number() < two[1].number()));
        for trouble in Trouble::ALL {
            assert_eq!(Trouble::from_number(trouble.number()), Some(*trouble));
            let json = serde_json::to_string(trouble).expect("JSON");
            assert_eq!(json, format!("\"{}\"", trouble.name()));
        }
        // 0 is "none", 1 and 2 are how commands fail in general, and shells use those from 126 on.
        assert!(Trouble::ALL.iter().all(|trouble| (10..126).contains(&trouble.number())));
        assert_eq!(Trouble::from_number(0), None);
    }

    #[test]
    fn the_documented_troubles_are_the_troubles() {
        let (_, table) =
            include_str!("../../docs/operating.md").split_once("| exit code | name |").expect("the table of troubles");
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|')).map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned());
            (cells.next().expect("a number"), cells.next().expect("a name"))
        });
        let documented: Vec<_> = rows.filter(|(number, _)| number.len() > 1).collect();
        let coded: Vec<_> =
            Trouble::ALL.iter().map(|trouble| (trouble.number().to_string(), trouble.name().to_owned())).collect();
        assert_eq!(documented, coded);
    }
}
