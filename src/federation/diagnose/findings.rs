//! [`Findings`]: what a diagnosis found. The names of the fields are those of `mimi-node doctor --json`, and stay.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Depth, rank};
use crate::base::Domain;
use crate::wire::peer::ProtocolVersion;
use crate::wire::probe::{Standing, Trouble};

/// Everything that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// The peer.
    pub domain: Domain,
    /// Who looks.
    pub own: Domain,
    /// How far.
    pub depth: Depth,
    /// When, in milliseconds since 1970, by this node's clock.
    pub at_ms: u64,
    /// What this node has decided about the peer, and has come to with it.
    pub here: HereFinding,
    /// This node's own certificate.
    pub own_certificate: OwnCertificateFinding,
    /// `None`: not asked.
    pub dns: Option<DnsFinding>,
    /// In the order in which they would be tried.
    pub addresses: Vec<AddressFinding>,
    /// `None`: the peer was not asked to connect back.
    pub back: Option<BackFinding>,
}

impl Findings {
    /// The address that says most: one where a connection came about, else the one whose trouble is nearest to it.
    pub fn best(&self) -> Option<&AddressFinding> {
        // The first of the best, which is the one to be tried first.
        self.addresses.iter().rev().max_by_key(|address| rank(address.trouble))
    }
}

/// The peer as this node has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HereFinding {
    /// By an operator.
    pub standing: Standing,
    /// Who has said so, where and why: the configuration, or an operator at run time. `None`: allowed.
    pub policy: Option<String>,
    /// The gate: `up`, `probing`, `backing off`, `held`, `denied`.
    pub state: String,
    /// Why the last attempt failed, if none has succeeded since.
    pub last_failure: Option<String>,
    /// Where the connection leads that is up.
    pub connected: Option<SocketAddr>,
}

/// The certificate that this node shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnCertificateFinding {
    /// Its last second, or that of what it sends along, in milliseconds since 1970.
    pub not_after_ms: u64,
    /// Whole days; negative once it is over.
    pub days_left: i64,
}

/// What DNS says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsFinding {
    /// The SRV name; `None`: addresses are configured.
    pub name: Option<String>,
    /// Why there is no address.
    pub trouble: Option<Trouble>,
    /// The same in a sentence.
    pub detail: Option<String>,
    /// Of the SRV answer.
    pub ttl_seconds: Option<u64>,
    /// In the order in which they would be tried.
    pub records: Vec<RecordFinding>,
    /// Records that would not be used, because there are too many.
    pub left_out: usize,
}

/// One SRV record and its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordFinding {
    /// Of the record.
    pub priority: u16,
    /// Of the record.
    pub weight: u16,
    /// Of the record.
    pub port: u16,
    /// Without its final dot.
    pub target: String,
    /// Why the host has no address.
    pub trouble: Option<Trouble>,
    /// The same in a sentence.
    pub detail: Option<String>,
    /// Of the addresses.
    pub ttl_seconds: Option<u64>,
    /// Those that would be used.
    pub addresses: Vec<SocketAddr>,
}

/// What UDP does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UdpFinding {
    /// QUIC answers.
    Answered,
    /// Nothing listens there (ICMP).
    Refused,
    /// There is no way (ICMP, or this machine has no route).
    Unreachable,
    /// Nothing came back.
    Silent,
}

/// One address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AddressFinding {
    /// The SRV target.
    pub host: String,
    /// Where.
    pub address: SocketAddr,
    /// `None`: `hello` was exchanged there.
    pub trouble: Option<Trouble>,
    /// The trouble in a sentence.
    pub detail: Option<String>,
    /// `None`: nothing was sent.
    pub udp: Option<UdpFinding>,
    /// How long the look took.
    pub took_ms: u64,
    /// What was presented there.
    pub certificate: Option<CertificateFinding>,
    /// What was agreed there.
    pub connection: Option<ConnectionFinding>,
}

/// A certificate that a peer presented.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateFinding {
    /// `None`: it is accepted. Of several faults the first in the order in which they are looked for.
    pub trouble: Option<Trouble>,
    /// The refusal in TLS's words.
    pub detail: Option<String>,
    /// The domain that it must name.
    pub expected: String,
    /// The names in it: dNSNames and SRVNames.
    pub names: Vec<String>,
    /// Whether it names the domain.
    pub names_domain: bool,
    /// By name or OID; empty: any use.
    pub extended_key_usages: Vec<String>,
    /// Whether that covers TLS.
    pub is_for_tls: bool,
    /// Its first second, in milliseconds since 1970.
    pub not_before_ms: u64,
    /// Its last.
    pub not_after_ms: u64,
    /// Whole days; negative once it is over.
    pub days_left: i64,
    /// The subjects from the leaf on, and the last one's issuer.
    pub chain: Vec<String>,
    /// SHA-256 of the leaf's SubjectPublicKeyInfo, hexadecimal: what a pin is.
    pub spki_hash: String,
    /// Whether a key in the chain is pinned; `None`: this node has no pin for the peer.
    pub pinned: Option<bool>,
    /// `none`, `current` or `overdue`: the revocation list that concerns it.
    pub revocation_list: String,
}

/// A connection on which `hello` was exchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionFinding {
    /// The protocol that TLS agreed on.
    pub alpn: String,
    /// The version of the connection.
    pub version: ProtocolVersion,
    /// Those that the peer speaks, in its order.
    pub versions: Vec<ProtocolVersion>,
    /// QUIC's estimate.
    pub round_trip_us: u64,
    /// How far the peer's clock is ahead of this node's; negative: behind. Right to half a round trip.
    pub clock_difference_ms: i64,
}

/// What the peer says of the way back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackFinding {
    /// `None`: it reaches this node. Else `cannot_reach_us` or `back_unknown`.
    pub trouble: Option<Trouble>,
    /// In a sentence.
    pub detail: Option<String>,
    /// What the peer's operator has decided about this domain; `None`: not told.
    pub standing: Option<Standing>,
    /// The number of what was in the peer's way; 0: nothing.
    pub outcome: Option<u16>,
    /// Its name, if this version knows it.
    pub outcome_name: Option<String>,
    /// Where the peer tried to reach this node.
    pub addresses: Vec<BackAddress>,
    /// The days that the certificate which it saw there has left.
    pub days_left: Option<i64>,
    /// The version of the peer's connection.
    pub version: Option<ProtocolVersion>,
    /// The peer's estimate.
    pub round_trip_us: Option<u64>,
}

/// One address of this node, as the peer saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackAddress {
    /// As text.
    pub address: String,
    /// 0: reached.
    pub outcome: u16,
    /// The outcome's name, if this version knows it.
    pub outcome_name: Option<String>,
    /// How long it took.
    pub took_ms: u32,
}
