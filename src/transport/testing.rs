//! Certificates and endpoints for tests: a CA makes leaves of every good and bad kind; everything runs over loopback UDP.

use std::net::SocketAddr;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use super::endpoint::{self, EndpointSecret};
use super::tls::NodeTls;
use crate::base::Domain;
use crate::base::secret::Secret;

pub(crate) fn domain(text: &str) -> Domain {
    text.parse().expect("a domain")
}

pub(crate) fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A loopback address that only the test with this number (from 2) binds to, so that a port of it that is freed for a while,
/// as in a restart, cannot be taken by another test meanwhile.
pub(crate) fn own_loopback(number: u8) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, number], 0))
}

/// An endpoint on a free port.
pub(crate) fn bind(server: Option<quinn::ServerConfig>) -> quinn::Endpoint {
    endpoint::bind(loopback(), server, &EndpointSecret::generate()).expect("an endpoint")
}

pub(crate) fn local(endpoint: &quinn::Endpoint) -> SocketAddr {
    endpoint.local_addr().expect("a bound endpoint has an address")
}

/// A certificate authority.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
    pub(crate) der: Vec<u8>,
}

/// What is unusual about a leaf; the default is a good one.
#[derive(Clone, Default)]
pub(crate) struct Odd {
    pub(crate) expired: bool,
    pub(crate) purposes: Vec<ExtendedKeyUsagePurpose>,
    /// An SRVName instead of dNSNames.
    pub(crate) srv_name: Option<String>,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        Self::with_key(name, KeyPair::generate().expect("a key"), None)
    }

    /// An Ed25519 CA, as an AS root is.
    pub(crate) fn new_ed25519(name: &str) -> Self {
        Self::with_key(name, KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key"), None)
    }

    /// An intermediate Ed25519 CA, as a user certificate is.
    pub(crate) fn user(&self, name: &str) -> Self {
        Self::with_key(name, KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key"), Some(self))
    }

    fn with_key(name: &str, key: KeyPair, parent: Option<&Self>) -> Self {
        let mut params = CertificateParams::new(vec![]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = match parent {
            Some(parent) => params.signed_by(&key, &parent.issuer),
            None => params.self_signed(&key),
        };
        let certificate = certificate.expect("a CA");
        Self { pem: certificate.pem(), der: certificate.der().to_vec(), issuer: Issuer::new(params, key) }
    }

    /// A leaf for `names`: its PEM chain (with this CA), and its key in PEM.
    pub(crate) fn leaf(&self, names: &[&str], odd: &Odd) -> (String, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let (pem, _) = self.leaf_for(&key, names, odd);
        (pem + &self.pem, key)
    }

    /// A leaf with an Ed25519 key: DER and PKCS#8, as a client certificate is.
    pub(crate) fn client(&self) -> (Vec<u8>, Secret) {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let (_, der) = self.leaf_for(&key, &[], &Odd::default());
        (der, Secret::new(key.serialize_der()))
    }

    fn leaf_for(&self, key: &KeyPair, names: &[&str], odd: &Odd) -> (String, Vec<u8>) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.extended_key_usages = odd.purposes.clone();
        let now = OffsetDateTime::now_utc();
        params.not_before = now - Duration::days(30);
        params.not_after = if odd.expired { now - Duration::days(1) } else { now + Duration::days(30) };
        if let Some(name) = &odd.srv_name {
            params.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 17], srv_name_extension(name)));
        }
        let certificate = params.signed_by(key, &self.issuer).expect("a leaf");
        (certificate.pem(), certificate.der().to_vec())
    }

    /// A node of `name` that trusts this CA.
    pub(crate) fn node(&self, name: &str) -> NodeTls {
        self.odd_node(&[name], name, &Odd::default())
    }

    /// A node of `name` whose certificate has `names` and is odd.
    pub(crate) fn odd_node(&self, names: &[&str], name: &str, odd: &Odd) -> NodeTls {
        let (chain, key) = self.leaf(names, odd);
        NodeTls::from_pem(&domain(name), &chain, &pem_key(&key), &self.pem).expect("a TLS identity")
    }
}

pub(crate) fn pem_key(key: &KeyPair) -> Secret {
    Secret::new(key.serialize_pem().into_bytes())
}

/// SubjectAltName with one otherName id-on-dnsSRV (1.3.6.1.5.5.7.8.7), which rcgen cannot write.
fn srv_name_extension(name: &str) -> Vec<u8> {
    let tlv = |tag: u8, content: Vec<u8>| [vec![tag, u8::try_from(content.len()).expect("a short name")], content].concat();
    let oid = vec![0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x08, 0x07];
    let value = tlv(0xa0, tlv(0x16, name.as_bytes().to_vec()));
    tlv(0x30, tlv(0xa0, [oid, value].concat()))
}
