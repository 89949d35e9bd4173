//! Certificate revocation lists (RFC 5280 §5): reading those that an operator has been given, and making a [`TlsCa`]'s own.

use std::fmt;
use std::time::Duration;

use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, RevokedCertParams, SerialNumber};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::{TlsCa, x509};
use crate::base::{Context as _, Fault, UnixMillis};
use crate::identity::pem::section;

/// One certificate that its CA has revoked.
#[derive(Clone, PartialEq, Eq)]
pub struct Revoked {
    /// The certificate's serial number, as its DER INTEGER has it.
    pub serial: Vec<u8>,
    /// When it was revoked.
    pub at: UnixMillis,
}

impl fmt::Debug for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Revoked({} at {})", crate::base::bytes::hex(&self.serial), self.at.0)
    }
}

/// A certificate revocation list and what there is to know of it. Nothing of it is authenticated until
/// [`Crl::is_signed_by`] says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crl {
    /// The list, DER.
    pub der: Vec<u8>,
    /// The issuer's distinguished name, for people.
    pub issuer: String,
    issuer_der: Vec<u8>,
    authority_key: Option<Vec<u8>>,
    /// When it was made.
    pub this_update: UnixMillis,
    /// By when the next one is due; 1970 when it does not say.
    pub next_update: UnixMillis,
    /// What it revokes.
    pub revoked: Vec<Revoked>,
}

impl Crl {
    /// The lists in a file: PEM (`BEGIN X509 CRL`, one or more) or one in DER.
    pub fn read(octets: &[u8]) -> Result<Vec<Self>, Fault> {
        const SEQUENCE: u8 = 0x30;
        let lists: Vec<Vec<u8>> = if octets.first() == Some(&SEQUENCE) {
            vec![octets.to_vec()]
        } else {
            CertificateRevocationListDer::pem_slice_iter(octets)
                .map(|list| list.map(|list| list.to_vec()))
                .collect::<Result<_, _>>()
                .context("this is not valid PEM")?
        };
        if lists.is_empty() {
            return Err(Fault::new("there is no revocation list in it (BEGIN X509 CRL)"));
        }
        lists.into_iter().map(Self::parse).collect()
    }

    fn parse(der: Vec<u8>) -> Result<Self, Fault> {
        let Ok(([], list)) = CertificateRevocationList::from_der(&der) else {
            return Err(Fault::new("there is something in it that is no revocation list"));
        };
        let millis = |seconds: i64| UnixMillis(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000));
        let revoked = list.iter_revoked_certificates();
        let revoked =
            revoked.map(|one| Revoked { serial: one.raw_serial().to_vec(), at: millis(one.revocation_date.timestamp()) });
        Ok(Self {
            issuer: list.issuer().to_string(),
            issuer_der: list.issuer().as_raw().to_vec(),
            authority_key: authority_key(list.extensions()),
            this_update: millis(list.last_update().timestamp()),
            next_update: list.next_update().map_or(UnixMillis(0), |time| millis(time.timestamp())),
            revoked: revoked.collect(),
            der: der.clone(),
        })
    }

    /// Whether the list may speak of a certificate (DER): the same issuer's name, and not another key of it as far as both say.
    /// So the list of a CA's former key does not stand in the way of what its new key signs.
    #[must_use]
    pub fn concerns(&self, certificate_der: &[u8]) -> bool {
        let Some(certificate) = x509::parse(certificate_der) else { return false };
        let is_self_signed = certificate.issuer().as_raw() == certificate.subject().as_raw();
        // Who signed itself need not say by which key.
        let own_key = || if is_self_signed { subject_key(certificate.extensions()) } else { None };
        let same_key = match (&self.authority_key, authority_key(certificate.extensions()).or_else(own_key)) {
            (Some(ours), Some(theirs)) => *ours == theirs,
            _ => true,
        };
        same_key && certificate.issuer().as_raw() == self.issuer_der
    }

    /// Whether this is a list of a CA with this name (DER).
    #[must_use]
    pub fn is_of(&self, subject_der: &[u8]) -> bool {
        self.issuer_der == subject_der
    }

    /// Whether it is signed by this key (SubjectPublicKeyInfo, DER).
    #[must_use]
    pub fn is_signed_by(&self, spki_der: &[u8]) -> bool {
        let list = CertificateRevocationList::from_der(&self.der);
        let key = SubjectPublicKeyInfo::from_der(spki_der);
        matches!((list, key), (Ok((_, list)), Ok((_, key))) if list.verify_signature(&key).is_ok())
    }
}

/// The key identifier of an authority key identifier extension, where there is one.
fn authority_key(extensions: &[x509_parser::extensions::X509Extension<'_>]) -> Option<Vec<u8>> {
    extensions.iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(authority) => authority.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    })
}

/// The subject key identifier, where there is one.
fn subject_key(extensions: &[x509_parser::extensions::X509Extension<'_>]) -> Option<Vec<u8>> {
    extensions.iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    })
}

/// The serial number of a certificate (DER), as its INTEGER has it.
pub fn serial(certificate_der: &[u8]) -> Result<Vec<u8>, Fault> {
    let certificate = x509::parse(certificate_der).context("this is not a certificate")?;
    Ok(certificate.raw_serial().to_vec())
}

impl TlsCa {
    /// Whether this CA has issued a certificate (DER): by its name and its signature, for other CAs may have the same name.
    #[must_use]
    pub fn is_issuer_of(&self, certificate_der: &[u8]) -> bool {
        match (x509::parse(certificate_der), x509::parse(&self.certificate)) {
            (Some(certificate), Some(ca)) => {
                certificate.issuer().as_raw() == ca.subject().as_raw()
                    && certificate.verify_signature(Some(ca.public_key())).is_ok()
            }
            _ => false,
        }
    }

    /// The CA's revocation list (PEM) of exactly `revoked`, due again after `lifetime`. Its number is the time in seconds, so
    /// that a later list has a higher one.
    pub fn revocation_list(&self, revoked: &[Revoked], now: UnixMillis, lifetime: Duration) -> Result<String, Fault> {
        let ca = x509::parse(&self.certificate).context("the CA's certificate is not a certificate")?;
        let key_id = subject_key(ca.extensions()).map(KeyIdMethod::PreSpecified);
        let revoked_certs = revoked
            .iter()
            .map(|revoked| {
                Ok(RevokedCertParams {
                    serial_number: SerialNumber::from_slice(&revoked.serial),
                    revocation_time: x509::date(revoked.at)?,
                    reason_code: None,
                    invalidity_date: None,
                })
            })
            .collect::<Result<_, Fault>>()?;
        let parameters = CertificateRevocationListParams {
            this_update: x509::date(now)?,
            next_update: x509::date(now.plus(lifetime))?,
            crl_number: SerialNumber::from(now.seconds()),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: key_id.unwrap_or(KeyIdMethod::Sha256),
        };
        let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(self.certificate.as_slice()), &self.key)
            .context("could not use the CA's certificate")?;
        let list = parameters.signed_by(&issuer).context("could not sign the revocation list")?;
        Ok(section("X509 CRL", list.der()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Domain;
    use crate::identity::TlsCertificateOptions;
    use crate::identity::pem::certificates_from_pem;

    const NOW: UnixMillis = UnixMillis(1_900_000_000_000);
    const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);

    fn leaf(ca: &TlsCa) -> Vec<u8> {
        let domain: Domain = "a.test".parse().expect("a domain");
        let issued = ca.issue(&TlsCertificateOptions::for_domain(&domain), NOW).expect("a certificate");
        certificates_from_pem(&issued.chain_pem).expect("a chain").swap_remove(0)
    }

    #[test]
    fn a_list_is_read_back_as_it_was_made_in_pem_and_der() {
        let ca = TlsCa::create("Test CA", NOW).expect("a CA");
        let revoked: Vec<Revoked> =
            (0..3).map(|_| Revoked { serial: serial(&leaf(&ca)).expect("a serial"), at: NOW.minus(WEEK) }).collect();
        let pem = ca.revocation_list(&revoked, NOW, WEEK).expect("a list");
        let lists = Crl::read(pem.as_bytes()).expect("a list");
        let [list] = lists.as_slice() else { unreachable!("one list") };
        assert_eq!((&list.revoked, list.issuer.as_str()), (&revoked, "CN=Test CA"));
        assert_eq!((list.this_update, list.next_update), (NOW, NOW.plus(WEEK)));
        assert_eq!(Crl::read(&list.der).expect("DER"), lists);
        let none = ca.revocation_list(&[], NOW, WEEK).expect("an empty list");
        let both = Crl::read((pem + &none).as_bytes()).expect("two lists");
        assert_eq!(both.iter().map(|list| list.revoked.len()).collect::<Vec<_>>(), [3, 0]);
    }

    #[test]
    fn a_list_concerns_what_its_key_signed() {
        let ca = TlsCa::create("Test CA", NOW).expect("a CA");
        // The same name with another key, as after a CA's roll-over.
        let (successor, other) = (TlsCa::create("Test CA", NOW).expect("a CA"), TlsCa::create("Other", NOW).expect("a CA"));
        let list = Crl::read(ca.revocation_list(&[], NOW, WEEK).expect("a list").as_bytes()).expect("a list").swap_remove(0);
        assert!(list.concerns(&leaf(&ca)));
        assert!(list.concerns(ca.certificate_der()) && !list.concerns(successor.certificate_der()));
        assert!(!list.concerns(&leaf(&successor)) && !list.concerns(&leaf(&other)) && !list.concerns(b"garbage"));
        assert!(ca.is_issuer_of(&leaf(&ca)) && !ca.is_issuer_of(&leaf(&successor)));
        assert!(!ca.is_issuer_of(&leaf(&other)) && !ca.is_issuer_of(b"garbage"));
        let spki = |ca: &TlsCa| x509::parse(ca.certificate_der()).expect("a certificate").public_key().raw.to_vec();
        assert!(list.is_signed_by(&spki(&ca)));
        assert!(!list.is_signed_by(&spki(&successor)) && !list.is_signed_by(b"garbage"));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let ca = TlsCa::create("Test CA", NOW).expect("a CA");
        for bad in [&b""[..], b"hello", b"\x30\x03\x02\x01\x01", ca.certificate_der(), ca.certificate_pem().as_bytes()] {
            assert!(Crl::read(bad).is_err());
        }
    }
}
