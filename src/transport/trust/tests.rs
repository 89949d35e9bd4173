use std::time::Duration;

use super::*;
use crate::identity::pem::certificates_from_pem;
use crate::identity::tls::crl::serial;
use crate::identity::{Revoked, TlsCa, TlsCertificateOptions};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn domain(name: &str) -> Domain {
    name.parse().expect("a domain")
}

fn ca(name: &str) -> TlsCa {
    TlsCa::create(name, UnixMillis::now()).expect("a CA")
}

/// The usual chain of `b.test`, leaf first.
fn chain(ca: &TlsCa) -> Vec<CertificateDer<'static>> {
    chain_of(ca, &TlsCertificateOptions::for_domain(&domain("b.test")))
}

fn chain_of(ca: &TlsCa, options: &TlsCertificateOptions) -> Vec<CertificateDer<'static>> {
    let issued = ca.issue(options, UnixMillis::now()).expect("a certificate");
    certificates_from_pem(&issued.chain_pem).expect("a chain").into_iter().map(CertificateDer::from).collect()
}

fn source(text: String) -> Source {
    Source { name: "a file".to_owned(), octets: text.into_bytes() }
}

fn trusting(authorities: &[&TlsCa]) -> TrustSources {
    let authorities = authorities.iter().map(|ca| source(ca.certificate_pem())).collect();
    TrustSources { authorities, ..TrustSources::default() }
}

/// A list of `ca`, made `age` ago and good for a day.
fn list(ca: &TlsCa, revoked: &[&CertificateDer<'_>], age: Duration) -> Source {
    let at = UnixMillis::now().minus(age);
    let revoked: Vec<Revoked> =
        revoked.iter().map(|certificate| Revoked { serial: serial(certificate).expect("a serial"), at }).collect();
    source(ca.revocation_list(&revoked, at, DAY).expect("a list"))
}

fn pinned(keys: &[[u8; 32]]) -> BTreeMap<Domain, PeerTrust> {
    BTreeMap::from([(domain("b.test"), PeerTrust { pins: keys.iter().copied().map(Pin).collect(), wildcard: false })])
}

/// What is wrong with `b.test`'s chain, before and after its `hello`.
fn judge(sources: &TrustSources, chain: &[CertificateDer<'_>]) -> (Option<CertificateError>, Option<CertificateError>) {
    let trust = Trust::read(sources).expect("good sources");
    let (leaf, intermediates) = chain.split_first().expect("a chain");
    let error = |outcome: Result<(), Error>| match outcome {
        Ok(()) => None,
        Err(Error::InvalidCertificate(error)) => Some(error),
        Err(other) => unreachable!("{other}"),
    };
    let now = UnixTime::now();
    (error(trust.check_unnamed(leaf, intermediates, now)), error(trust.check(&domain("b.test"), leaf, intermediates, now)))
}

const FINE: (Option<CertificateError>, Option<CertificateError>) = (None, None);

fn both(error: CertificateError) -> (Option<CertificateError>, Option<CertificateError>) {
    (Some(error.clone()), Some(error))
}

#[test]
fn a_revoked_certificate_is_refused_and_no_other() {
    let ca = ca("ca");
    let (revoked, other) = (chain(&ca), chain(&ca));
    let sources = TrustSources { crls: vec![list(&ca, &[&revoked[0]], Duration::ZERO)], ..trusting(&[&ca]) };
    assert_eq!(judge(&sources, &revoked), both(CertificateError::Revoked));
    assert_eq!(judge(&sources, &other), FINE);
    assert_eq!(judge(&trusting(&[&ca]), &revoked), FINE, "the control: without the list");
    // A CA without a list beside one with a list.
    let second = super::tests::ca("second");
    let sources = TrustSources { crls: sources.crls, ..trusting(&[&ca, &second]) };
    assert_eq!(judge(&sources, &chain(&second)), FINE);
    assert_eq!(judge(&sources, &revoked), both(CertificateError::Revoked));
}

#[test]
fn of_two_lists_the_newer_one_speaks_whatever_their_order() {
    let ca = ca("ca");
    let chain = chain(&ca);
    let (old, new) = (list(&ca, &[], Duration::from_secs(60)), list(&ca, &[&chain[0]], Duration::ZERO));
    for crls in [vec![old.clone(), new.clone()], vec![new, old]] {
        assert_eq!(judge(&TrustSources { crls, ..trusting(&[&ca]) }, &chain), both(CertificateError::Revoked));
    }
}

#[test]
fn an_overdue_list_still_counts_for_what_it_says_unless_it_must_be_current() {
    let ca = ca("ca");
    let (revoked, other) = (chain(&ca), chain(&ca));
    let crls = vec![list(&ca, &[&revoked[0]], DAY * 3)];
    let lenient = TrustSources { crls: crls.clone(), ..trusting(&[&ca]) };
    assert_eq!(judge(&lenient, &revoked), both(CertificateError::Revoked));
    assert_eq!(judge(&lenient, &other), FINE);
    let trust = Trust::read(&lenient).expect("good sources");
    assert_eq!(trust.stale_crls(UnixMillis::now()).count(), 1);
    let strict = TrustSources { refuse_stale_crls: true, ..lenient };
    assert_eq!(judge(&strict, &other), both(CertificateError::ExpiredRevocationList));
    let current = TrustSources { crls: vec![list(&ca, &[], Duration::ZERO)], ..strict };
    assert_eq!(judge(&current, &other), FINE);
}

#[test]
fn the_list_of_a_ca_s_former_key_does_not_stand_in_the_way_of_its_new_one() {
    let (former, new) = (ca("Example CA"), ca("Example CA"));
    let revoked = chain(&former);
    let crls = vec![list(&former, &[&revoked[0]], Duration::ZERO)];
    let sources = TrustSources { crls, ..trusting(&[&former, &new]) };
    assert_eq!(judge(&sources, &chain(&new)), FINE);
    assert_eq!(judge(&sources, &chain(&former)), FINE);
    assert_eq!(judge(&sources, &revoked), both(CertificateError::Revoked));
}

#[test]
fn a_list_that_is_forged_or_of_no_use_is_refused() {
    let (ca, namesake) = (ca("ca"), ca("ca"));
    let with = |crl: Source| TrustSources { crls: vec![crl], ..trusting(&[&ca]) };
    let error = Trust::read(&with(list(&namesake, &[], Duration::ZERO))).expect_err("another key").to_string();
    assert!(error.contains("is not signed by the trusted CA that it names, CN=ca"), "{error}");
    let error = Trust::read(&with(source("nothing".to_owned()))).expect_err("no list").to_string();
    assert!(error.contains("cannot use a file"), "{error}");
    // Of a CA that is not known here: of no consequence yet, for it may be that of a pinned or an intermediate one.
    Trust::read(&with(list(&super::tests::ca("unknown"), &[], Duration::ZERO))).expect("it may be of use");
}

#[test]
fn a_pin_of_a_ca_stands_alone_for_its_peer_and_for_nobody_else() {
    let (ours, theirs) = (ca("ours"), ca("theirs"));
    let sources = TrustSources { peers: pinned(&[theirs.spki_hash()]), ..trusting(&[&ours]) };
    assert_eq!(judge(&sources, &chain(&theirs)), FINE);
    // Its own CA's word is not enough any more: let in for the other names it may have, refused as b.test.
    assert_eq!(judge(&sources, &chain(&ours)), (None, Some(CertificateError::UnknownIssuer)));
    let c = TlsCertificateOptions::for_domain(&domain("c.test"));
    assert_eq!(judge(&sources, &chain_of(&theirs, &c)).0, Some(CertificateError::UnknownIssuer));
    // Without any CA, and when the pinned CA is known here but not sent along.
    let alone = TrustSources { peers: pinned(&[theirs.spki_hash()]), ..TrustSources::default() };
    assert_eq!(judge(&alone, &chain(&theirs)), FINE);
    let known = TrustSources { peers: pinned(&[theirs.spki_hash()]), ..trusting(&[&ours, &theirs]) };
    assert_eq!(judge(&known, &chain(&theirs)[..1]), FINE);
    assert_eq!(judge(&alone, &chain(&theirs)[..1]), both(CertificateError::UnknownIssuer));
    // The pinned CA merely sent along by another.
    let forged = vec![chain(&ours).swap_remove(0), CertificateDer::from(theirs.certificate_der().to_vec())];
    assert_eq!(judge(&alone, &forged), both(CertificateError::UnknownIssuer));
    // A pinned CA revokes like any other.
    let revoked = chain(&theirs);
    let sources = TrustSources { crls: vec![list(&theirs, &[&revoked[0]], Duration::ZERO)], ..alone };
    assert_eq!(judge(&sources, &revoked), both(CertificateError::Revoked));
    assert_eq!(judge(&sources, &chain(&theirs)), FINE);
}

#[test]
fn a_pinned_node_needs_nobody_to_vouch_for_it_but_must_be_in_its_time_for_tls_and_not_revoked() {
    let theirs = ca("theirs");
    let pin = |chain: &[CertificateDer<'_>]| pinned(&[[0; 32], spki_hash(&chain[0]).expect("a key")]);
    let alone = |chain: &[CertificateDer<'_>]| TrustSources { peers: pin(chain), ..TrustSources::default() };
    let good = chain(&theirs);
    assert_eq!(judge(&alone(&good), &good), FINE);
    assert_eq!(judge(&alone(&good), &good[..1]), FINE, "no CA need be sent");
    assert_eq!(judge(&alone(&good), &chain(&theirs)), both(CertificateError::UnknownIssuer), "another key of the same CA");

    let usual = TlsCertificateOptions::for_domain(&domain("b.test"));
    let not_before = Some(UnixMillis::now().minus(DAY * 2));
    let expired = chain_of(&theirs, &TlsCertificateOptions { not_before, lifetime: DAY, ..usual.clone() });
    assert_eq!(judge(&alone(&expired), &expired), both(CertificateError::Expired));
    let extended_key_usage = crate::identity::ExtendedKeyUsage::Other;
    let other_use = chain_of(&theirs, &TlsCertificateOptions { extended_key_usage, ..usual });
    assert_eq!(judge(&alone(&other_use), &other_use), both(CertificateError::InvalidPurpose));

    let crls = vec![list(&theirs, &[&good[0]], Duration::ZERO)];
    let sources = TrustSources { peers: pin(&good), crls, ..trusting(&[&theirs]) };
    assert_eq!(judge(&sources, &good).1, Some(CertificateError::Revoked), "by a CA that is trusted");
}

#[test]
fn a_wildcard_counts_for_the_peer_that_may_have_one() {
    let ca = ca("ca");
    let dns_names = vec!["*.test".to_owned()];
    let options = TlsCertificateOptions { dns_names, srv_name: None, ..TlsCertificateOptions::for_domain(&domain("b.test")) };
    let wildcard = chain_of(&ca, &options);
    let may = |peer: &str| {
        let peers = BTreeMap::from([(domain(peer), PeerTrust { pins: Vec::new(), wildcard: true })]);
        TrustSources { peers, ..trusting(&[&ca]) }
    };
    assert_eq!(judge(&may("b.test"), &wildcard), FINE);
    let refused = judge(&may("c.test"), &wildcard).1;
    assert!(matches!(refused, Some(CertificateError::NotValidForNameContext { .. })), "{refused:?}");
}

#[test]
fn a_pin_is_64_hexadecimal_digits() {
    let pin: Pin = "ab".repeat(32).parse().expect("a pin");
    assert_eq!((pin, String::from(pin)), (Pin([0xab; 32]), "ab".repeat(32)));
    for bad in [String::new(), "ab".repeat(31), "ab".repeat(33), "xy".repeat(32)] {
        assert!(bad.parse::<Pin>().is_err(), "{bad:?}");
    }
}

#[test]
fn nobody_to_trust_is_an_error() {
    let error = Trust::read(&TrustSources::default()).expect_err("nobody").to_string();
    assert!(error.contains("no peer can be trusted"), "{error}");
    let peers = BTreeMap::from([(domain("b.test"), PeerTrust { pins: Vec::new(), wildcard: true })]);
    assert!(Trust::read(&TrustSources { peers, ..TrustSources::default() }).is_err(), "a wildcard vouches for nobody");
}
