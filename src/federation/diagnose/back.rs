//! The way back: the peer is asked to connect to us and tells what it saw.

use quinn::Connection;
use tokio::time::{Instant, timeout_at};

use super::findings::{BackAddress, BackFinding};
use crate::base::{UnixMillis, limits};
use crate::identity::tls::days_left;
use crate::transport::FrameError;
use crate::transport::frame::{read_frame, write_frame};
use crate::wire::peer::{PeerRequest, PeerResponse};
use crate::wire::probe::{ProbeReport, Trouble};
use crate::wire::{ErrorCode, decode, encode};

/// Asks on a connection on which `hello` has been exchanged, and waits until the peer has tried.
pub(super) async fn ask(connection: &Connection) -> BackFinding {
    let deadline = Instant::now() + limits::PROBE_BACK_TIMEOUT;
    let exchange = async {
        let (mut send, mut recv) = connection.open_bi().await.map_err(|error| FrameError::Read(error.into()))?;
        write_frame(&mut send, &encode(&PeerRequest::ProbeBack)).await?;
        let _ = send.finish();
        read_frame(&mut recv, limits::PROBE_REPORT_BYTES_MAX).await
    };
    let answer = match timeout_at(deadline, exchange).await {
        Ok(Ok(Some(answer))) => answer,
        Ok(Ok(None)) => return unknown("the peer ended the stream without an answer".to_owned()),
        Ok(Err(error)) => return unknown(format!("the peer gave no answer: {error}")),
        Err(_) => return unknown("the peer did not tell in time".to_owned()),
    };
    match decode(&answer) {
        Ok(PeerResponse::ProbeBack(report)) => told(&report, UnixMillis::now()),
        Ok(PeerResponse::Error(rejection)) if rejection.code == ErrorCode::Unsupported => {
            unknown("the peer's node does not offer probe_back".to_owned())
        }
        Ok(PeerResponse::Error(rejection)) => unknown(format!("the peer refused to connect back: {rejection}")),
        _ => unknown("the peer's answer is no report".to_owned()),
    }
}

fn unknown(detail: String) -> BackFinding {
    BackFinding {
        trouble: Some(Trouble::BackUnknown),
        detail: Some(detail),
        standing: None,
        outcome: None,
        outcome_name: None,
        addresses: Vec::new(),
        days_left: None,
        version: None,
        round_trip_us: None,
    }
}

fn name_of(outcome: u16) -> Option<String> {
    Trouble::from_number(outcome).map(|trouble| trouble.name().to_owned())
}

/// What a report says.
fn told(report: &ProbeReport, now: UnixMillis) -> BackFinding {
    let trouble = Trouble::from_number(report.outcome);
    let (trouble, detail) = match trouble {
        None if report.outcome == 0 => (None, None),
        // It did not try: its policy says what there is to say.
        Some(Trouble::DeniedHere) => {
            (Some(Trouble::BackUnknown), Some("the peer does not connect to us: it denies us".to_owned()))
        }
        Some(known) => (Some(Trouble::CannotReachUs), Some(format!("the peer cannot connect to us: {}", sentence(known)))),
        None => {
            let detail = format!("the peer cannot connect to us, for a reason with the number {}", report.outcome);
            (Some(Trouble::CannotReachUs), Some(detail))
        }
    };
    let addresses = report.addresses.iter().map(|address| BackAddress {
        address: printable(&address.address),
        outcome: address.outcome,
        outcome_name: name_of(address.outcome),
        took_ms: address.took_ms,
    });
    BackFinding {
        trouble,
        detail,
        standing: Some(report.standing),
        outcome: Some(report.outcome),
        outcome_name: name_of(report.outcome),
        addresses: addresses.collect(),
        days_left: report.certificate.map(|certificate| days_left(UnixMillis(certificate.not_after_ms), now)),
        version: report.connection.map(|connection| connection.version),
        round_trip_us: report.connection.map(|connection| connection.round_trip_us.into()),
    }
}

/// What the peer found wrong on its way to us, as seen from here.
fn sentence(trouble: Trouble) -> &'static str {
    match trouble {
        Trouble::NoSuchDomain => "our SRV name does not exist for it (NXDOMAIN)",
        Trouble::NoRecords => "it finds no SRV record of ours, or no address",
        Trouble::RefusesFederation => "our SRV record says that we do not federate",
        Trouble::DnsFailure => "looking us up in DNS failed",
        Trouble::DnsTimedOut => "looking us up in DNS timed out",
        Trouble::ForbiddenAddress => "our addresses are not for the public internet, and it does not dial such",
        Trouble::UdpSilent => "our address does not answer it over UDP",
        Trouble::UdpRefused => "nothing listens on the UDP port in our SRV record",
        Trouble::HostUnreachable => "our address cannot be reached from there",
        Trouble::LeftAlone => "it has dialled our address too often lately",
        Trouble::TurnedAway => "our node takes no connection now",
        Trouble::UntrustedCertificate => "it does not trust the CA of our certificate",
        Trouble::WrongName => "our certificate does not name our domain",
        Trouble::ExpiredCertificate => "our certificate has expired, as it sees it",
        Trouble::CertificateNotYetValid => "our certificate is not valid yet, as it sees it",
        Trouble::WrongPurpose => "our certificate is for another purpose (extended key usage)",
        Trouble::RevokedCertificate => "our certificate is revoked, as it sees it",
        Trouble::BadCertificate => "our certificate cannot be used",
        Trouble::OwnCertificate => "we refuse its certificate",
        Trouble::NoProtocol => "no protocol in common (ALPN) with what answers at our address",
        Trouble::NoVersion => "no protocol version in common with what answers at our address",
        Trouble::HelloRefused => "the hellos do not fit",
        Trouble::DeniedThere => "our node denies it",
        _ => "the connection broke off",
    }
}

/// `text` of a peer, for people.
fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars().take(limits::ADDRESS_TEXT_MAX).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
