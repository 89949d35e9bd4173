use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::super::pem::key_from_pem;
use super::*;

const NOW: UnixMillis = UnixMillis(1_900_000_000_000);

fn text(secret: &Secret) -> &str {
    std::str::from_utf8(secret.expose()).expect("PEM is text")
}

fn domain(name: &str) -> Domain {
    name.parse().expect("a domain")
}

fn ca() -> TlsCa {
    TlsCa::create("Test CA", NOW).expect("a CA")
}

/// The leaf (DER) with these names, by a CA of its own.
fn leaf(dns_names: &[&str], srv_name: Option<&str>) -> Vec<u8> {
    let options = TlsCertificateOptions {
        dns_names: dns_names.iter().map(ToString::to_string).collect(),
        srv_name: srv_name.map(str::to_owned),
        ..TlsCertificateOptions::for_domain(&domain("a.test"))
    };
    let issued = ca().issue(&options, NOW).expect("a certificate");
    certificates_from_pem(&issued.chain_pem).expect("a chain").swap_remove(0)
}

fn verify(ca: &TlsCa, options: &TlsCertificateOptions, usage: KeyUsage, now: UnixMillis) -> Result<(), webpki::Error> {
    let issued = ca.issue(options, NOW).expect("a certificate");
    let chain: Vec<CertificateDer<'_>> =
        certificates_from_pem(&issued.chain_pem).expect("a chain").into_iter().map(Into::into).collect();
    assert_eq!(chain.len(), 2);
    let anchors = [webpki::anchor_from_trusted_cert(&chain[1])?];
    let leaf = EndEntityCert::try_from(&chain[0])?;
    let time = UnixTime::since_unix_epoch(Duration::from_millis(now.0));
    leaf.verify_for_usage(&[webpki::ring::ECDSA_P256_SHA256], &anchors, &[], time, usage, None, None)?;
    leaf.verify_is_valid_for_subject_name(&ServerName::try_from("a.test").expect("a name"))
}

#[test]
fn an_issued_certificate_verifies_and_has_its_key() {
    let ca = ca();
    let options = TlsCertificateOptions::for_domain(&domain("a.test"));
    verify(&ca, &options, KeyUsage::server_auth(), NOW).expect("a server");
    verify(&ca, &options, KeyUsage::client_auth(), NOW).expect("a client");

    let issued = ca.issue(&options, NOW).expect("a certificate");
    let key = key_from_pem(text(&issued.key_pem)).expect("a key");
    let key = KeyPair::try_from(key.secret_der()).expect("a key");
    let chain = certificates_from_pem(&issued.chain_pem).expect("a chain");
    assert_eq!(sha256(&key.subject_public_key_info()), spki_hash(&chain[0]).expect("a hash"));
    assert_eq!(chain[1], ca.certificate_der());
    assert!(!format!("{issued:?}").contains("PRIVATE"), "a key does not show in Debug");
}

#[test]
fn extended_key_usages_are_those_asked_for() {
    let ca = ca();
    let matrix = [
        (ExtendedKeyUsage::Both, true, true),
        (ExtendedKeyUsage::ServerOnly, true, false),
        (ExtendedKeyUsage::ClientOnly, false, true),
        (ExtendedKeyUsage::Other, false, false),
    ];
    let base = TlsCertificateOptions::for_domain(&domain("a.test"));
    for (extended_key_usage, server, client) in matrix {
        let options = TlsCertificateOptions { extended_key_usage, ..base.clone() };
        let refused = |usage| match verify(&ca, &options, usage, NOW) {
            Ok(()) => false,
            Err(webpki::Error::RequiredEkuNotFoundContext(_)) => true,
            Err(other) => unreachable!("refused for another reason: {other}"),
        };
        assert_eq!(
            (refused(KeyUsage::server_auth()), refused(KeyUsage::client_auth())),
            (!server, !client),
            "{extended_key_usage:?}"
        );
    }
    let options = TlsCertificateOptions { extended_key_usage: ExtendedKeyUsage::None, ..base };
    let issued = ca.issue(&options, NOW).expect("a certificate");
    let chain = certificates_from_pem(&issued.chain_pem).expect("a chain");
    assert!(x509::parse(&chain[0]).expect("a certificate").extended_key_usage().expect("well-formed").is_none());
}

#[test]
fn validity_is_backdated_overridden_and_within_the_ca_s() {
    let times = |options: &TlsCertificateOptions, now| {
        let issued = ca().issue(options, now).expect("a certificate");
        let chain = certificates_from_pem(&issued.chain_pem).expect("a chain");
        let certificate = x509::parse(&chain[0]).expect("a certificate");
        (x509::not_before(&certificate), x509::not_after(&certificate))
    };
    let day = Duration::from_secs(24 * 60 * 60);
    let mut options = TlsCertificateOptions { lifetime: day, ..TlsCertificateOptions::for_domain(&domain("a.test")) };
    assert_eq!(times(&options, NOW), (NOW.minus(limits::CERTIFICATE_BACKDATE), NOW.plus(day)));
    options.not_before = Some(NOW.minus(day * 3));
    assert_eq!(times(&options, NOW), (NOW.minus(day * 3), NOW.minus(day * 2)));
    assert!(matches!(verify(&ca(), &options, KeyUsage::server_auth(), NOW), Err(webpki::Error::CertExpired { .. })));
    options.not_before = None;
    options.lifetime = limits::ROOT_LIFETIME * 2;
    assert_eq!(times(&options, NOW).1, NOW.plus(limits::ROOT_LIFETIME));
}

#[test]
fn a_certificate_names_the_domain_by_dns_name_or_srv_name_only() {
    let matrix: &[(&[&str], Option<&str>, bool)] = &[
        (&["a.test"], None, true),
        (&["A.Test"], None, true),
        (&["b.test", "a.test"], None, true),
        (&[], Some("_mimi-fed.a.test"), true),
        (&[], Some("_MIMI-fed.A.test"), true),
        (&["b.test"], Some("_mimi-fed.a.test"), true),
        (&["b.test"], None, false),
        (&["*.test"], None, false),
        (&["*.a.test"], None, false),
        (&["x.a.test"], None, false),
        (&["xa.test"], None, false),
        (&["a.test."], None, false),
        (&["_mimi-fed.a.test"], None, false),
        (&[], Some("a.test"), false),
        (&[], Some("_mimi-fed.b.test"), false),
        (&[], Some("_mimi-client.a.test"), false),
        (&[], Some("_mimi-fed._udp.a.test"), false),
        (&[], None, false),
    ];
    for (dns_names, srv_name, expected) in matrix {
        let der = leaf(dns_names, *srv_name);
        assert_eq!(names_domain(&der, &domain("a.test")), *expected, "{dns_names:?} {srv_name:?}");
    }
    assert!(!names_domain(b"garbage", &domain("a.test")));
}

#[test]
fn a_wildcard_stands_for_one_label_and_only_where_it_may() {
    let matrix: &[(&[&str], Option<&str>, bool)] = &[
        (&["*.test"], None, true),
        (&["*.TEST"], None, true),
        (&["a.test"], None, true),
        (&["*.a.test"], None, false),
        (&["*"], None, false),
        (&["*.*"], None, false),
        (&["a*.test"], None, false),
        (&["*.b.test"], None, false),
        (&[], Some("_mimi-fed.*.test"), false),
        (&[], Some("*.test"), false),
    ];
    for (dns_names, srv_name, expected) in matrix {
        let der = leaf(dns_names, *srv_name);
        assert_eq!(stands_for(&der, &domain("a.test"), true), *expected, "{dns_names:?} {srv_name:?}");
    }
    assert!(!stands_for(&leaf(&["*.test"], None), &domain("b.a.test"), true), "one label, not two");
    assert!(!stands_for(&leaf(&["*.test"], None), &domain("a.test"), false));
}

#[test]
fn days_are_counted_whole_and_below_zero() {
    let day = Duration::from_secs(24 * 60 * 60);
    assert_eq!(days_left(NOW.plus(day * 3), NOW), 3);
    assert_eq!(days_left(NOW.plus(day * 3).minus(Duration::from_secs(1)), NOW), 2);
    assert_eq!(days_left(NOW, NOW), 0);
    assert_eq!(days_left(NOW.minus(Duration::from_secs(1)), NOW), -1);
    assert_eq!(validity(&leaf(&["a.test"], None)).map(|(from, to)| from < to), Some(true));
    assert_eq!(validity(b"garbage"), None);
}

#[test]
fn the_common_name_never_names_the_domain() {
    let parameters = x509::parameters("a.test", NOW, NOW.plus(limits::TLS_CERTIFICATE_LIFETIME)).expect("parameters");
    let certificate = parameters.self_signed(&generate().expect("a key")).expect("a certificate");
    assert!(!names_domain(certificate.der(), &domain("a.test")));
    // Nor does a URI.
    let mut parameters = parameters;
    parameters.subject_alt_names = vec![rcgen::SanType::URI("a.test".try_into().expect("ASCII"))];
    let certificate = parameters.self_signed(&generate().expect("a key")).expect("a certificate");
    assert!(!names_domain(certificate.der(), &domain("a.test")));
}

#[test]
fn an_srv_name_is_an_ia5_string_of_rfc_4985() {
    let der = leaf(&[], Some("_mimi-fed.a.test"));
    // SEQUENCE { otherName [0] { id-on-dnsSRV, [0] { IA5String "_mimi-fed.a.test" } } }
    let wanted = [&[0x30, 0x20, 0xa0, 0x1e][..], OID_SRV_NAME_DER, &[0xa0, 0x12, 0x16, 0x10], b"_mimi-fed.a.test"].concat();
    assert!(der.windows(wanted.len()).any(|window| window == wanted));
    // Long names take the long form of the length.
    let long = format!("{}.test", ["a"; 120].join("."));
    let more = format!("b.{long}");
    for names in [vec![long.as_str()], vec![long.as_str(), more.as_str()]] {
        let der = leaf(&names, None);
        assert!(names.iter().all(|name| names_domain(&der, &domain(name))));
    }
    // As other tools write it.
    let mut parameters = x509::parameters("x", NOW, NOW.plus(limits::TLS_CERTIFICATE_LIFETIME)).expect("parameters");
    let oid = vec![1, 3, 6, 1, 5, 5, 7, 8, 7];
    parameters.subject_alt_names = vec![rcgen::SanType::OtherName((oid, "_mimi-fed.a.test".into()))];
    let certificate = parameters.self_signed(&generate().expect("a key")).expect("a certificate");
    assert!(names_domain(certificate.der(), &domain("a.test")));
    // Another kind of otherName.
    parameters.subject_alt_names = vec![rcgen::SanType::OtherName((vec![1, 2, 3], "_mimi-fed.a.test".into()))];
    let certificate = parameters.self_signed(&generate().expect("a key")).expect("a certificate");
    assert!(!names_domain(certificate.der(), &domain("a.test")));
}

#[test]
fn names_that_are_not_ascii_are_not_issued() {
    for name in ["ä.test", ""] {
        let options =
            TlsCertificateOptions { dns_names: vec![name.to_owned()], ..TlsCertificateOptions::for_domain(&domain("a.test")) };
        assert!(ca().issue(&options, NOW).is_err(), "{name:?}");
    }
}

#[test]
fn a_ca_round_trips_and_keeps_its_spki_hash() {
    let ca = ca();
    let loaded = TlsCa::load(&ca.certificate_pem(), text(&ca.key_pem())).expect("a CA");
    assert_eq!(loaded.certificate_der(), ca.certificate_der());
    assert_eq!(loaded.spki_hash(), ca.spki_hash());
    assert_eq!(spki_hash(ca.certificate_der()).expect("a hash"), ca.spki_hash());
    // What the loaded one issues verifies under the first one's certificate.
    let options = TlsCertificateOptions::for_domain(&domain("a.test"));
    verify(&loaded, &options, KeyUsage::server_auth(), NOW).expect("a server");
    assert_ne!(TlsCa::create("Test CA", NOW).expect("a CA").spki_hash(), ca.spki_hash());
    assert!(spki_hash(b"garbage").is_err());
}

#[test]
fn the_spki_hash_is_that_of_the_key_and_not_of_the_certificate() {
    // RFC 5480 P-256 SubjectPublicKeyInfo: a fixed header, then the uncompressed point.
    let ca = ca();
    let renewed = {
        let parameters = x509::parameters("another", NOW, NOW.plus(limits::ROOT_LIFETIME)).expect("parameters");
        parameters.self_signed(&ca.key).expect("a certificate").der().to_vec()
    };
    assert_eq!(spki_hash(&renewed).expect("a hash"), ca.spki_hash());
    let header = [
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d,
        0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
    ];
    assert_eq!(ca.spki_hash(), sha256(&[&header[..], ca.key.public_key_raw()].concat()));
}

#[test]
fn a_ca_is_not_loaded_with_another_key_or_without_the_ca_bit() {
    let (ca, other) = (ca(), ca());
    let refused = TlsCa::load(&ca.certificate_pem(), text(&other.key_pem())).expect_err("another key");
    assert_eq!(refused.to_string(), "the TLS CA's certificate is not of the TLS CA's key");
    let issued = ca.issue(&TlsCertificateOptions::for_domain(&domain("a.test")), NOW).expect("a certificate");
    let refused = TlsCa::load(&issued.chain_pem, text(&issued.key_pem)).expect_err("no CA");
    assert_eq!(refused.to_string(), "the TLS CA's certificate is not a CA's");
    assert!(TlsCa::load("", text(&ca.key_pem())).is_err());
    assert!(TlsCa::load(&ca.certificate_pem(), "").is_err());
}
