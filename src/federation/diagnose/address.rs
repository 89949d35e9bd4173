//! One address: is it dialled, does UDP get there, does TLS come about, does `hello` fit?

use std::net::SocketAddr;

use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, ConnectionError};
use tokio::time::{Instant, timeout_at};

use super::Depth;
use super::findings::{AddressFinding, CertificateFinding, ConnectionFinding, UdpFinding};
use crate::base::{Domain, UnixMillis, limits};
use crate::federation::dial::Dialer;
use crate::federation::error::{PeerError, Why, connection_failure};
use crate::federation::hello::{self, Greeting};
use crate::identity::summary::summarise;
use crate::identity::tls::{days_left, names, stands_for};
use crate::transport::knock::{self, Knock};
use crate::transport::{CertificateFault, CloseCode, Inspection, NodeTls, Presented};
use crate::wire::probe::Trouble;

/// What was found at an address, and the connection if one came about: whoever has it closes it.
pub(super) struct Look {
    pub(super) finding: AddressFinding,
    pub(super) connection: Option<Connection>,
}

/// How near to a connection a trouble is: the nearest one of several addresses says most.
pub(super) fn rank(trouble: Option<Trouble>) -> u8 {
    match trouble {
        None => 9,
        Some(Trouble::ForbiddenAddress) => 0,
        Some(Trouble::LeftAlone | Trouble::Local) => 1,
        Some(Trouble::HostUnreachable) => 2,
        Some(Trouble::UdpSilent) => 3,
        Some(Trouble::UdpRefused) => 4,
        Some(Trouble::TurnedAway) => 5,
        Some(Trouble::Broken) => 6,
        Some(_) => 7,
    }
}

/// Looks at one address, by the rules by which it would be dialled.
pub(super) async fn look(dialer: &Dialer, tls: &NodeTls, peer: &Domain, host: &str, address: SocketAddr, depth: Depth) -> Look {
    let begun = Instant::now();
    let mut finding = AddressFinding {
        host: host.to_owned(),
        address,
        trouble: None,
        detail: None,
        udp: None,
        took_ms: 0,
        certificate: None,
        connection: None,
    };
    let outcome = match dialer.admit(peer, address) {
        Ok(()) => reach(dialer, tls, peer, address, depth, &mut finding).await,
        Err(error) if error.why == Why::ForbiddenAddress => Err((Trouble::ForbiddenAddress, error.detail)),
        Err(error) => Err((Trouble::LeftAlone, error.detail)),
    };
    finding.took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let connection = match outcome {
        Ok(connection) => {
            dialer.found(address);
            Some(connection)
        }
        Err((trouble, detail)) => {
            (finding.trouble, finding.detail) = (Some(trouble), Some(detail));
            None
        }
    };
    Look { finding, connection }
}

/// Why an address did not lead to a connection, in one sentence.
type Refusal = (Trouble, String);

async fn reach(
    dialer: &Dialer,
    tls: &NodeTls,
    peer: &Domain,
    address: SocketAddr,
    depth: Depth,
    finding: &mut AddressFinding,
) -> Result<Connection, Refusal> {
    let (config, inspection) = tls.inspecting_client().map_err(|fault| (Trouble::Local, fault.to_string()))?;
    let deadline = Instant::now() + limits::DIAGNOSIS_ADDRESS_TIMEOUT;
    let connecting = dialer
        .endpoint
        .connect_with(config, address, peer.as_str())
        .map_err(|error| (Trouble::Local, format!("this node's socket cannot dial it: {error}")))?;
    let mut shaking = std::pin::pin!(timeout_at(deadline, connecting));
    let mut knocking = std::pin::pin!(knock::udp(address, deadline));
    // Both at once: ICMP ends the wait of a handshake, which does not hear it.
    let mut knocked = None;
    let shaken = loop {
        tokio::select! {
            biased;
            shaken = &mut shaking => break shaken,
            knock = &mut knocking, if knocked.is_none() => {
                if let Some(refusal) = refused(&knock, address) {
                    finding.udp = Some(if refusal.0 == Trouble::UdpRefused { UdpFinding::Refused } else { UdpFinding::Unreachable });
                    return Err(refusal);
                }
                knocked = Some(knock);
            }
        }
    };
    finding.certificate = inspection.presented().map(|presented| certificate(tls, peer, &presented));
    let connection = match shaken {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            finding.udp = Some(UdpFinding::Answered);
            return Err(unshaken(&inspection, &error));
        }
        Err(_) => return Err(silence(address, depth, knocked, finding).await),
    };
    finding.udp = Some(UdpFinding::Answered);
    let begun = Instant::now();
    let greeting = hello::offer(&connection, peer, &*dialer.hello).await;
    let now = UnixMillis::now();
    match greeting {
        Ok(greeting) => {
            finding.connection = Some(agreed(&connection, &greeting, begun.elapsed().min(connection.rtt() * 2), now));
            Ok(connection)
        }
        Err(error) => Err(ungreeted(&connection, &error)),
    }
}

fn refused(knock: &Knock, address: SocketAddr) -> Option<Refusal> {
    match knock {
        Knock::Refused => {
            Some((Trouble::UdpRefused, format!("nothing listens on UDP port {} of {}", address.port(), address.ip())))
        }
        Knock::Unreachable(why) => Some((Trouble::HostUnreachable, format!("{} cannot be reached: {why}", address.ip()))),
        Knock::Answered | Knock::Silent => None,
    }
}

/// The handshake came to nothing in its time: nobody answers, or something does and gets no further.
async fn silence(address: SocketAddr, depth: Depth, knocked: Option<Knock>, finding: &mut AddressFinding) -> Refusal {
    if knocked == Some(Knock::Answered) {
        finding.udp = Some(UdpFinding::Answered);
        return (Trouble::Broken, format!("QUIC at {address} answers, but no handshake comes about"));
    }
    finding.udp = Some(UdpFinding::Silent);
    // On behalf of a peer, no more is sent than a lane would send.
    if depth == Depth::OnBehalf {
        return (Trouble::UdpSilent, format!("no answer from {address} over UDP"));
    }
    if knock::tcp(address).await {
        return (
            Trouble::UdpSilent,
            format!("no answer from {address} over UDP, although the machine is there (it answers TCP)"),
        );
    }
    (Trouble::HostUnreachable, format!("nothing at all comes back from {}, neither over UDP nor over TCP", address.ip()))
}

/// A handshake that ended badly.
fn unshaken(inspection: &Inspection, error: &ConnectionError) -> Refusal {
    if let Some((fault, text)) = inspection.presented().and_then(|presented| presented.refused) {
        return (certificate_trouble(fault), text);
    }
    let (why, detail) = connection_failure(error);
    let trouble = match why {
        Why::Certificate => Trouble::OwnCertificate,
        Why::Protocol => Trouble::NoProtocol,
        Why::Refused => Trouble::TurnedAway,
        Why::Local => Trouble::Local,
        _ => Trouble::Broken,
    };
    (trouble, detail)
}

fn certificate_trouble(fault: CertificateFault) -> Trouble {
    match fault {
        CertificateFault::Untrusted => Trouble::UntrustedCertificate,
        CertificateFault::Name => Trouble::WrongName,
        CertificateFault::Expired => Trouble::ExpiredCertificate,
        CertificateFault::NotYetValid => Trouble::CertificateNotYetValid,
        CertificateFault::Purpose => Trouble::WrongPurpose,
        CertificateFault::Revoked => Trouble::RevokedCertificate,
        CertificateFault::Other => Trouble::BadCertificate,
    }
}

/// TLS came about for this side, and then `hello` did not: which side refused, and what?
fn ungreeted(connection: &Connection, error: &PeerError) -> Refusal {
    let trouble = match connection.close_reason() {
        Some(ConnectionError::ApplicationClosed(close)) => match CloseCode::from_number(close.error_code.into_inner()) {
            Some(CloseCode::Denied) => Trouble::DeniedThere,
            // It has read our `hello` and our certificate together.
            Some(CloseCode::NotAuthorized | CloseCode::WrongDomain) => Trouble::OwnCertificate,
            Some(CloseCode::NoVersion) => Trouble::NoVersion,
            Some(CloseCode::NoAlpn) => Trouble::NoProtocol,
            Some(CloseCode::HelloRefused) => Trouble::HelloRefused,
            Some(CloseCode::ShuttingDown | CloseCode::OverLimits) => Trouble::TurnedAway,
            _ => Trouble::Broken,
        },
        // What this side found.
        _ => match error.why {
            Why::Certificate => Trouble::OwnCertificate,
            Why::Protocol => Trouble::NoVersion,
            Why::HelloRefused => Trouble::HelloRefused,
            Why::Denied => Trouble::DeniedThere,
            Why::Refused | Why::OverLimits => Trouble::TurnedAway,
            _ => Trouble::Broken,
        },
    };
    (trouble, error.detail.clone())
}

fn agreed(connection: &Connection, greeting: &Greeting, exchange: std::time::Duration, now: UnixMillis) -> ConnectionFinding {
    let alpn = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok()).and_then(|data| data.protocol);
    let half_ms = i64::try_from(exchange.as_millis() / 2).unwrap_or_default();
    let ms = |time: UnixMillis| i64::try_from(time.0).unwrap_or(i64::MAX);
    ConnectionFinding {
        alpn: alpn.map(|alpn| String::from_utf8_lossy(&alpn).into_owned()).unwrap_or_default(),
        version: greeting.version,
        versions: greeting.versions.iter().take(limits::VERSIONS_SHOWN_MAX).copied().collect(),
        round_trip_us: u64::try_from(connection.rtt().as_micros()).unwrap_or(u64::MAX),
        clock_difference_ms: ms(greeting.server_time).saturating_add(half_ms).saturating_sub(ms(now)),
    }
}

/// What there is to know of what was presented.
fn certificate(tls: &NodeTls, peer: &Domain, presented: &Presented) -> CertificateFinding {
    let now = UnixMillis::now();
    let leaf = presented.chain.first().map(Vec::as_slice).unwrap_or_default();
    let summaries: Vec<_> = presented.chain.iter().filter_map(|der| summarise(der).ok()).collect();
    let involved = tls.trust().involved(peer, &presented.chain);
    let first = summaries.first();
    let usages = first.map(|first| first.extended_key_usages.clone()).unwrap_or_default();
    let not_after = first.map_or(UnixMillis(0), |first| first.not_after);
    let mut chain: Vec<String> = summaries.iter().map(|summary| summary.subject.clone()).collect();
    chain.extend(summaries.last().filter(|last| last.issuer != last.subject).map(|last| last.issuer.clone()));
    CertificateFinding {
        trouble: presented.refused.as_ref().map(|(fault, _)| certificate_trouble(*fault)),
        detail: presented.refused.as_ref().map(|(_, text)| text.clone()),
        expected: peer.to_string(),
        names: names(leaf),
        names_domain: stands_for(leaf, peer, involved.wildcard),
        is_for_tls: usages.is_empty() || usages.iter().any(|usage| usage == "serverAuth" || usage == "clientAuth"),
        extended_key_usages: usages,
        not_before_ms: first.map_or(0, |first| first.not_before.0),
        not_after_ms: not_after.0,
        days_left: days_left(not_after, now),
        chain,
        spki_hash: first.map(|first| first.spki_hash.clone()).unwrap_or_default(),
        pinned: involved.pin,
        revocation_list: match involved.crl_next_update {
            None => "none",
            Some(next) if next <= now => "overdue",
            Some(_) => "current",
        }
        .to_owned(),
    }
}
