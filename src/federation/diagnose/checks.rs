//! What findings mean: a line for each check, with a verdict, what was seen and what to do. Pure.

use serde::{Deserialize, Serialize};

use super::Depth;
use super::findings::{AddressFinding, BackFinding, CertificateFinding, ConnectionFinding, DnsFinding, Findings, UdpFinding};
use crate::base::limits;
use crate::wire::probe::{Standing, Trouble};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and somebody should look.
    Warn,
    /// It does not work.
    Fail,
    /// Not looked at, because something before it fails or it was not asked for.
    Skipped,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Which, such as `dns`. There may be several `address`.
    pub name: String,
    /// The verdict.
    pub verdict: Verdict,
    /// What was seen, in one sentence.
    pub seen: String,
    /// What may be done; `None` when there is nothing to do.
    pub advice: Option<String>,
    /// What it is that fails or is to be looked at.
    pub trouble: Option<Trouble>,
}

impl Check {
    fn new(name: &str, verdict: Verdict, seen: impl Into<String>) -> Self {
        Self { name: name.to_owned(), verdict, seen: seen.into(), advice: None, trouble: None }
    }

    fn ok(name: &str, seen: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, seen)
    }

    fn skipped(name: &str, seen: impl Into<String>) -> Self {
        Self::new(name, Verdict::Skipped, seen)
    }

    fn warn(name: &str, seen: impl Into<String>, advice: &str) -> Self {
        Self { advice: Some(advice.to_owned()), ..Self::new(name, Verdict::Warn, seen) }
    }

    fn fail(name: &str, trouble: Trouble, seen: impl Into<String>) -> Self {
        Self { advice: Some(trouble.advice().to_owned()), trouble: Some(trouble), ..Self::new(name, Verdict::Fail, seen) }
    }
}

/// All checks, each in its place in the order in which a connection comes about: the first that fails is the cause.
pub fn checks(findings: &Findings) -> Vec<Check> {
    let mut checks = vec![policy_here(findings), own_certificate(findings)];
    let Some(dns) = &findings.dns else { return checks };
    checks.push(discovery(dns));
    let best = findings.best();
    let reached = best.is_some_and(|best| best.trouble.is_none());
    checks.extend(findings.addresses.iter().map(|address| place(address, reached, best.is_some_and(|best| best == address))));
    let Some(best) = best else { return checks };
    checks.extend(best.certificate.as_ref().map(certificate));
    match (&best.connection, best.trouble) {
        (Some(connection), _) => {
            checks.push(protocol(connection));
            checks.push(clock(connection));
            checks.push(Check::ok("round_trip", format!("{:.1} ms", connection.round_trip_us as f64 / 1_000.0)));
        }
        (None, Some(trouble)) => checks.extend(after_the_certificate(best, trouble)),
        (None, None) => {}
    }
    checks.extend(way_back(findings));
    checks
}

fn policy_here(findings: &Findings) -> Check {
    let (name, here) = ("policy_here", &findings.here);
    if findings.domain == findings.own {
        return Check::fail(name, Trouble::Local, "this is the node's own domain: give another one");
    }
    match here.standing {
        Standing::Denied => {
            let why = here.policy.as_deref().unwrap_or("denied");
            Check::fail(name, Trouble::DeniedHere, format!("this node denies the peer, so nothing was sent to it ({why})"))
        }
        Standing::Held => {
            let why = here.policy.as_deref().unwrap_or("held");
            Check::fail(name, Trouble::HeldHere, format!("this node holds the peer: what is for it waits ({why})"))
        }
        Standing::Allowed => match &here.last_failure {
            // What was the matter then may be over: the rest of the checks tells.
            Some(failure) => {
                Check::warn(name, format!("allowed; {} after: {failure}", here.state), "see below whether that is over")
            }
            None => Check::ok(name, format!("allowed; {}", here.state)),
        },
    }
}

fn days(days: i64) -> String {
    match days {
        1 => "has 1 day left".to_owned(),
        0.. => format!("has {days} days left"),
        _ => "has expired".to_owned(),
    }
}

fn own_certificate(findings: &Findings) -> Check {
    let (name, left) = ("own_certificate", findings.own_certificate.days_left);
    match left {
        ..0 => Check::fail(name, Trouble::OwnCertificate, "this node's own certificate has expired"),
        _ if left < i64::from(limits::TLS_WARN_DAYS) => {
            Check::warn(name, format!("this node's own certificate {}", days(left)), "renew it")
        }
        _ => Check::ok(name, format!("this node's own certificate {}", days(left))),
    }
}

fn discovery(dns: &DnsFinding) -> Check {
    let check = "dns";
    if let Some(trouble) = dns.trouble {
        return Check::fail(check, trouble, dns.detail.clone().unwrap_or_default());
    }
    let targets: Vec<String> = dns
        .records
        .iter()
        .map(|record| {
            let addresses: Vec<String> = record.addresses.iter().map(|address| address.ip().to_string()).collect();
            let at = if addresses.is_empty() { record.detail.clone().unwrap_or_default() } else { addresses.join(" ") };
            format!("{} {} {}:{} ({at})", record.priority, record.weight, record.target, record.port)
        })
        .collect();
    let Some(name) = &dns.name else { return Check::ok(check, format!("configured, not asked for: {}", targets.join(", "))) };
    let ttl = dns.ttl_seconds.map_or_else(String::new, |ttl| format!(", TTL {ttl} s"));
    let seen = format!("{} SRV{ttl}: {}", name.trim_end_matches('.'), targets.join(", "));
    if let Some(record) = dns.records.iter().find(|record| record.addresses.is_empty()) {
        let advice =
            format!("its operator corrects the record of {} ({})", record.target, record.detail.clone().unwrap_or_default());
        return Check::warn(check, seen, &advice);
    }
    if dns.left_out > 0 {
        return Check::warn(
            check,
            format!("{seen}; {} more are not used", dns.left_out),
            "raise srv_records_max in [dns], if they matter",
        );
    }
    Check::ok(check, seen)
}

/// One address. Where another one works, a fault here is a warning. What comes after UDP has a line of its own.
fn place(address: &AddressFinding, reached: bool, is_best: bool) -> Check {
    let name = "address";
    let at = format!("{} ({})", address.address, address.host);
    let Some(trouble) = address.trouble else {
        return Check::ok(name, format!("{at}: reached in {} ms", address.took_ms));
    };
    let detail = address.detail.clone().unwrap_or_default();
    if reached {
        return Check { trouble: Some(trouble), ..Check::warn(name, format!("{at}: {detail}"), trouble.advice()) };
    }
    if is_best && has_own_line(trouble) {
        return Check::ok(name, format!("{at}: QUIC answers over UDP"));
    }
    if address.udp == Some(UdpFinding::Answered) || is_best {
        return Check::fail(name, trouble, format!("{at}: {detail}"));
    }
    Check { verdict: Verdict::Warn, ..Check::fail(name, trouble, format!("{at}: {detail}")) }
}

/// Troubles that are told in the line of the certificate, the protocol or the policy.
fn has_own_line(trouble: Trouble) -> bool {
    matches!(trouble.number(), 30..=42 | 60..=61)
}

fn certificate(certificate: &CertificateFinding) -> Check {
    let check = "certificate";
    let named = if certificate.names.is_empty() { "no domain".to_owned() } else { certificate.names.join(", ") };
    let usages =
        if certificate.extended_key_usages.is_empty() { "any use".to_owned() } else { certificate.extended_key_usages.join(" ") };
    let pin = match certificate.pinned {
        None => "",
        Some(true) => "; a pinned key",
        Some(false) => "; none of the pinned keys",
    };
    let list = if certificate.revocation_list == "none" { "no" } else { certificate.revocation_list.as_str() };
    let chain = certificate.chain.join(" < ");
    let about =
        format!("names {named}; {}; for {usages}; chain {chain}{pin}; {list} revocation list", days(certificate.days_left));
    if let Some(trouble) = certificate.trouble {
        let cause = match trouble {
            Trouble::WrongName => format!("does not name {}", certificate.expected),
            Trouble::ExpiredCertificate => "has expired".to_owned(),
            Trouble::CertificateNotYetValid => "is not valid yet".to_owned(),
            Trouble::WrongPurpose => "is not for TLS".to_owned(),
            Trouble::RevokedCertificate => "is revoked".to_owned(),
            Trouble::UntrustedCertificate => "is vouched for by nobody whom this node trusts".to_owned(),
            _ => format!("cannot be used: {}", certificate.detail.clone().unwrap_or_default()),
        };
        return Check::fail(check, trouble, format!("the peer's certificate {cause} ({about})"));
    }
    if certificate.days_left < i64::from(limits::TLS_WARN_DAYS) {
        return Check::warn(check, about, "its operator renews it");
    }
    if certificate.revocation_list == "overdue" {
        return Check::warn(check, about, "fetch the CA's revocation list again");
    }
    Check::ok(check, about)
}

fn protocol(connection: &ConnectionFinding) -> Check {
    let versions: Vec<String> = connection.versions.iter().map(ToString::to_string).collect();
    let seen = format!("{}, version {}; the peer speaks {}", connection.alpn, connection.version, versions.join(" "));
    Check::ok("protocol", seen)
}

fn clock(connection: &ConnectionFinding) -> Check {
    let name = "clock";
    let ms = connection.clock_difference_ms;
    let size = ms.unsigned_abs();
    let seconds = size as f64 / 1_000.0;
    let seen = match ms {
        0.. => format!("the peer's clock is {seconds:.1} s ahead of this node's"),
        _ => format!("the peer's clock is {seconds:.1} s behind this node's"),
    };
    if u128::from(size) > limits::REQUEST_TIME_WINDOW.as_millis() {
        Check::fail(name, Trouble::ClockDifference, format!("{seen}, so that requests are refused as too old or too new"))
    } else if u128::from(size) > limits::CLOCK_DIFFERENCE_WARN.as_millis() {
        Check { trouble: Some(Trouble::ClockDifference), ..Check::warn(name, seen, Trouble::ClockDifference.advice()) }
    } else {
        Check::ok(name, seen)
    }
}

/// No connection came about although the certificate is good, or none was presented.
fn after_the_certificate(best: &AddressFinding, trouble: Trouble) -> Option<Check> {
    let detail = best.detail.clone().unwrap_or_default();
    match trouble {
        Trouble::OwnCertificate => Some(Check::fail("own_certificate_there", trouble, detail)),
        Trouble::NoProtocol | Trouble::NoVersion | Trouble::HelloRefused => Some(Check::fail("protocol", trouble, detail)),
        Trouble::DeniedThere | Trouble::HeldThere => Some(Check::fail("policy_there", trouble, detail)),
        _ => None,
    }
}

fn way_back(findings: &Findings) -> Vec<Check> {
    let name = "way_back";
    if findings.depth == Depth::Outward {
        return vec![Check::skipped(name, "no node of this domain is running here, so the peer was not asked to connect back")];
    }
    let Some(back) = &findings.back else { return Vec::new() };
    let mut checks = Vec::new();
    match back.standing {
        Some(Standing::Allowed) => checks.push(Check::ok("policy_there", "the peer allows us")),
        Some(Standing::Held) => {
            checks.push(Check::fail("policy_there", Trouble::HeldThere, "the peer holds us: what it has for us waits there"))
        }
        Some(Standing::Denied) => checks.push(Check::fail("policy_there", Trouble::DeniedThere, "the peer denies us")),
        None => {}
    }
    checks.push(back_check(name, back));
    checks
}

fn back_check(name: &str, back: &BackFinding) -> Check {
    let tried: Vec<String> = back
        .addresses
        .iter()
        .map(|address| match (&address.outcome_name, address.outcome) {
            (_, 0) => format!("{} in {} ms", address.address, address.took_ms),
            (Some(name), _) => format!("{} {name}", address.address),
            (None, number) => format!("{} (number {number})", address.address),
        })
        .collect();
    let tried = if tried.is_empty() { String::new() } else { format!(" [{}]", tried.join(", ")) };
    match back.trouble {
        None => Check::ok(name, format!("the peer reaches us{tried}")),
        Some(trouble) => Check::fail(name, trouble, format!("{}{tried}", back.detail.clone().unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Diagnosis;
    use super::super::findings::{HereFinding, OwnCertificateFinding, RecordFinding};
    use super::*;
    use crate::wire::peer::PROTOCOL_VERSIONS;

    /// Two nodes between which all is well; the peer has two addresses.
    fn healthy() -> Findings {
        let address = |last: u8| AddressFinding {
            host: "n.b.test".to_owned(),
            address: ([192, 0, 2, last], 7443).into(),
            trouble: None,
            detail: None,
            udp: Some(UdpFinding::Answered),
            took_ms: 3,
            certificate: Some(CertificateFinding {
                trouble: None,
                detail: None,
                expected: "b.test".to_owned(),
                names: vec!["b.test".to_owned()],
                names_domain: true,
                extended_key_usages: vec![],
                is_for_tls: true,
                not_before_ms: 0,
                not_after_ms: u64::MAX,
                days_left: 60,
                chain: vec!["CN=b.test".to_owned(), "CN=CA".to_owned()],
                spki_hash: String::new(),
                pinned: None,
                revocation_list: "none".to_owned(),
            }),
            connection: Some(ConnectionFinding {
                alpn: "mimi-fed/1".to_owned(),
                version: PROTOCOL_VERSIONS[0],
                versions: PROTOCOL_VERSIONS.to_vec(),
                round_trip_us: 900,
                clock_difference_ms: -20,
            }),
        };
        let addresses = vec![address(1), address(2)];
        let record = RecordFinding {
            priority: 0,
            weight: 0,
            port: 7443,
            target: "n.b.test".to_owned(),
            trouble: None,
            detail: None,
            ttl_seconds: Some(60),
            addresses: addresses.iter().map(|address| address.address).collect(),
        };
        Findings {
            domain: "b.test".parse().expect("a domain"),
            own: "a.test".parse().expect("a domain"),
            depth: Depth::BothWays,
            at_ms: 1_900_000_000_000,
            here: HereFinding {
                standing: Standing::Allowed,
                policy: None,
                state: "up".to_owned(),
                last_failure: None,
                connected: None,
            },
            own_certificate: OwnCertificateFinding { not_after_ms: u64::MAX, days_left: 60 },
            dns: Some(DnsFinding {
                name: Some("_mimi-fed._udp.b.test.".to_owned()),
                trouble: None,
                detail: None,
                ttl_seconds: Some(60),
                records: vec![record],
                left_out: 0,
            }),
            addresses,
            back: Some(BackFinding {
                trouble: None,
                detail: None,
                standing: Some(Standing::Allowed),
                outcome: Some(0),
                outcome_name: None,
                addresses: vec![],
                days_left: Some(60),
                version: None,
                round_trip_us: None,
            }),
        }
    }

    fn of(change: impl FnOnce(&mut Findings)) -> Diagnosis {
        let mut findings = healthy();
        change(&mut findings);
        Diagnosis::of(findings)
    }

    fn fails_at(address: &mut AddressFinding, trouble: Trouble) {
        (address.trouble, address.detail, address.connection) = (Some(trouble), Some("what happened".to_owned()), None);
        if trouble.number() < 30 {
            (address.udp, address.certificate) = (Some(UdpFinding::Silent), None);
        }
    }

    fn verdict(diagnosis: &Diagnosis, name: &str) -> Option<Verdict> {
        diagnosis.checks.iter().find(|check| check.name == name).map(|check| check.verdict)
    }

    #[test]
    fn all_is_well_when_everything_is() {
        let diagnosis = of(|_| {});
        assert_eq!((diagnosis.trouble, diagnosis.exit_code), (None, 0));
        assert!(diagnosis.checks.iter().all(|check| check.verdict == Verdict::Ok), "{:#?}", diagnosis.checks);
        // What is read back is what was written.
        let json = serde_json::to_string(&diagnosis).expect("JSON");
        assert_eq!(serde_json::from_str::<Diagnosis>(&json).expect("a diagnosis"), diagnosis);
    }

    #[test]
    fn an_address_that_fails_beside_one_that_works_is_a_warning() {
        for trouble in Trouble::ALL.iter().copied().filter(|trouble| (15..50).contains(&trouble.number())) {
            let one = of(|findings| fails_at(&mut findings.addresses[0], trouble));
            assert_eq!((one.trouble, verdict(&one, "address")), (None, Some(Verdict::Warn)), "{trouble}");
            let both = of(|findings| {
                findings.addresses.iter_mut().for_each(|address| fails_at(address, trouble));
                findings.back = None;
            });
            assert_eq!((both.trouble, both.exit_code), (Some(trouble), trouble as u8), "{trouble}");
        }
    }

    #[test]
    fn of_several_addresses_the_one_nearest_to_a_connection_tells_the_trouble() {
        let diagnosis = of(|findings| {
            fails_at(&mut findings.addresses[0], Trouble::UdpSilent);
            fails_at(&mut findings.addresses[1], Trouble::NoVersion);
            findings.back = None;
        });
        assert_eq!(diagnosis.trouble, Some(Trouble::NoVersion), "{:#?}", diagnosis.checks);
    }

    #[test]
    fn the_first_check_that_fails_is_the_trouble() {
        let diagnosis = of(|findings| {
            findings.here.standing = Standing::Held;
            findings.back = None;
            findings.addresses.clear();
            let dns = findings.dns.as_mut().expect("asked");
            (dns.trouble, dns.detail) = (Some(Trouble::DnsFailure), Some("looking it up failed".to_owned()));
        });
        assert_eq!(diagnosis.trouble, Some(Trouble::HeldHere));
        assert_eq!(verdict(&diagnosis, "dns"), Some(Verdict::Fail));
    }

    #[test]
    fn clocks_and_days_are_judged_by_how_far_they_are() {
        let clock = |ms: i64| {
            let diagnosis = of(|findings| {
                findings.addresses[0].connection.as_mut().expect("one").clock_difference_ms = ms;
            });
            (diagnosis.trouble, verdict(&diagnosis, "clock"))
        };
        assert_eq!(clock(30_000), (None, Some(Verdict::Ok)));
        assert_eq!(clock(-30_001), (None, Some(Verdict::Warn)));
        assert_eq!(clock(300_000), (None, Some(Verdict::Warn)));
        assert_eq!(clock(-300_001), (Some(Trouble::ClockDifference), Some(Verdict::Fail)));
        for (days, here, there) in [(14, Verdict::Ok, Verdict::Ok), (13, Verdict::Warn, Verdict::Warn)] {
            let diagnosis = of(|findings| {
                findings.own_certificate.days_left = days;
                findings.addresses[0].certificate.as_mut().expect("one").days_left = days;
            });
            let judged = (verdict(&diagnosis, "own_certificate"), verdict(&diagnosis, "certificate"));
            assert_eq!((judged, diagnosis.trouble), ((Some(here), Some(there)), None), "{days}");
        }
        assert_eq!(of(|findings| findings.own_certificate.days_left = -1).trouble, Some(Trouble::OwnCertificate));
    }

    #[test]
    fn what_the_peer_says_of_us_counts() {
        let standing = |standing| of(|findings| findings.back.as_mut().expect("told").standing = Some(standing)).trouble;
        assert_eq!(standing(Standing::Held), Some(Trouble::HeldThere));
        assert_eq!(standing(Standing::Denied), Some(Trouble::DeniedThere));
        for trouble in [Trouble::CannotReachUs, Trouble::BackUnknown] {
            let diagnosis = of(|findings| findings.back.as_mut().expect("told").trouble = Some(trouble));
            assert_eq!((diagnosis.trouble, verdict(&diagnosis, "way_back")), (Some(trouble), Some(Verdict::Fail)));
        }
        let outward = of(|findings| (findings.back, findings.depth) = (None, Depth::Outward));
        assert_eq!((outward.trouble, verdict(&outward, "way_back")), (None, Some(Verdict::Skipped)));
    }
}
