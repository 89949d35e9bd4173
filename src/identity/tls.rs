//! Certificates of node-to-node and client-to-node TLS (C3): a small CA for domains that use no public one, and the names that a
//! node's certificate must carry. Keys made here are ECDSA P-256; certificates from elsewhere may have any key.

use std::fmt;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData as _,
};

use super::pem::{certificate_to_pem, certificates_from_pem};
use super::x509;
use crate::base::crypto::sha256;
use crate::base::secret::Secret;
use crate::base::{Context as _, Domain, Fault, UnixMillis, limits};

/// id-ce-subjectAltName (RFC 5280 §4.2.1.6).
const OID_SUBJECT_ALT_NAME: &[u64] = &[2, 5, 29, 17];

/// id-on-dnsSRV (RFC 4985) as DER.
const OID_SRV_NAME_DER: &[u8] = &[0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x08, 0x07];

/// Which extended key usages (RFC 5280 §4.2.1.12) a TLS certificate carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExtendedKeyUsage {
    /// serverAuth and clientAuth.
    #[default]
    Both,
    /// serverAuth, as public CAs issue them.
    ServerOnly,
    /// clientAuth.
    ClientOnly,
    /// No such extension: any use.
    None,
    /// Only codeSigning: a certificate that TLS must refuse.
    Other,
}

/// What [`TlsCa::issue`] puts into a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsCertificateOptions {
    /// The dNSNames. A wildcard is written as it stands here.
    pub dns_names: Vec<String>,
    /// One SRVName (RFC 4985), such as `_mimi-fed.a.test`.
    pub srv_name: Option<String>,
    /// The extended key usages.
    pub extended_key_usage: ExtendedKeyUsage,
    /// How long the certificate is valid, counted from `now` or else from `not_before`; it does not outlive the CA.
    pub lifetime: Duration,
    /// When validity begins; `None`: [`limits::CERTIFICATE_BACKDATE`] before `now`.
    pub not_before: Option<UnixMillis>,
}

impl TlsCertificateOptions {
    /// The usual certificate of a node of `domain`: dNSName and federation SRVName, both usages.
    pub fn for_domain(domain: &Domain) -> Self {
        Self {
            dns_names: vec![domain.to_string()],
            srv_name: Some(federation_srv_name(domain)),
            extended_key_usage: ExtendedKeyUsage::Both,
            lifetime: limits::TLS_CERTIFICATE_LIFETIME,
            not_before: None,
        }
    }
}

/// A TLS certificate and its key.
#[derive(Clone, Debug)]
pub struct TlsCertificate {
    /// The certificate and then the CA's, PEM.
    pub chain_pem: String,
    /// The private key, PKCS#8 PEM text.
    pub key_pem: Secret,
}

/// A certification authority for TLS certificates.
pub struct TlsCa {
    key: KeyPair,
    certificate: Vec<u8>,
}

impl fmt::Debug for TlsCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsCa(spki {})", crate::base::bytes::hex(&self.spki_hash()))
    }
}

impl TlsCa {
    /// A new self-signed CA, called `name`, valid for [`limits::ROOT_LIFETIME`].
    pub fn create(name: &str, now: UnixMillis) -> Result<Self, Fault> {
        let key = generate()?;
        let (not_before, not_after) = (now.minus(limits::CERTIFICATE_BACKDATE), now.plus(limits::ROOT_LIFETIME));
        let mut parameters = x509::parameters(name, not_before, not_after)?;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = parameters.self_signed(&key).context("could not sign the TLS CA")?.der().to_vec();
        Ok(Self { key, certificate })
    }

    /// Reads a CA back from its first certificate and its PKCS#8 key, both PEM. Fails unless they belong together and it is a CA.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, Fault> {
        let key = KeyPair::from_pem(key_pem).context("could not read the TLS CA's key")?;
        let certificate = certificates_from_pem(certificate_pem)?.swap_remove(0);
        let parsed = x509::parse(&certificate).context("the TLS CA's certificate is not a certificate")?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(Fault::new("the TLS CA's certificate is not of the TLS CA's key"));
        }
        if !parsed.is_ca() {
            return Err(Fault::new("the TLS CA's certificate is not a CA's"));
        }
        Ok(Self { key, certificate })
    }

    /// The CA's certificate, PEM.
    pub fn certificate_pem(&self) -> String {
        certificate_to_pem(&self.certificate)
    }

    /// The CA's private key, PKCS#8 PEM text.
    pub fn key_pem(&self) -> Secret {
        Secret::new(self.key.serialize_pem().into_bytes())
    }

    /// The CA's certificate, DER.
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate
    }

    /// SHA-256 of the CA's SubjectPublicKeyInfo: what an invitation line carries.
    pub fn spki_hash(&self) -> [u8; 32] {
        sha256(&self.key.subject_public_key_info())
    }

    /// Makes a key and its end-entity certificate.
    pub fn issue(&self, options: &TlsCertificateOptions, now: UnixMillis) -> Result<TlsCertificate, Fault> {
        let ca = x509::parse(&self.certificate).expect("a CA's certificate is parsed when it is made or loaded");
        let not_before = options.not_before.unwrap_or_else(|| now.minus(limits::CERTIFICATE_BACKDATE));
        let not_after = options.not_before.unwrap_or(now).plus(options.lifetime).min(x509::not_after(&ca));
        let common_name = options.dns_names.first().or(options.srv_name.as_ref()).map_or("no name", String::as_str);
        let mut parameters = x509::parameters(common_name, not_before, not_after)?;
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.use_authority_key_identifier_extension = true;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = match options.extended_key_usage {
            ExtendedKeyUsage::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            ExtendedKeyUsage::ServerOnly => vec![ExtendedKeyUsagePurpose::ServerAuth],
            ExtendedKeyUsage::ClientOnly => vec![ExtendedKeyUsagePurpose::ClientAuth],
            ExtendedKeyUsage::None => vec![],
            ExtendedKeyUsage::Other => vec![ExtendedKeyUsagePurpose::CodeSigning],
        };
        parameters.custom_extensions = alternative_names(options)?.into_iter().collect();
        let key = generate()?;
        let certificate = x509::sign(&parameters, &key, &self.certificate, &self.key)?;
        Ok(TlsCertificate {
            chain_pem: certificate_to_pem(&certificate) + &self.certificate_pem(),
            key_pem: Secret::new(key.serialize_pem().into_bytes()),
        })
    }
}

fn generate() -> Result<KeyPair, Fault> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("could not make a key")
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo (DER), as RFC 7469 pins it. `certificate_der` is not authenticated by this.
pub fn spki_hash(certificate_der: &[u8]) -> Result<[u8; 32], Fault> {
    let certificate = x509::parse(certificate_der).context("this is not a certificate")?;
    Ok(sha256(certificate.public_key().raw))
}

/// Whether a certificate (DER, validated elsewhere) names `domain` (C3): a dNSName equal to it (RFC 9525), or the SRVName
/// `_mimi-fed.<domain>` (RFC 4985), compared without regard to ASCII case. No wildcard counts, and never the common name.
#[must_use]
pub fn names_domain(certificate_der: &[u8], domain: &Domain) -> bool {
    stands_for(certificate_der, domain, false)
}

/// As [`names_domain`]; with `wildcard` also a dNSName `*.<rest>` in which the asterisk stands for the whole first label of
/// `domain` (RFC 9525 §6.3). An SRVName has no wildcard.
#[must_use]
pub fn stands_for(certificate_der: &[u8], domain: &Domain, wildcard: bool) -> bool {
    let Some(certificate) = x509::parse(certificate_der) else { return false };
    let Some(names) = x509::alternative_names(&certificate) else { return false };
    let srv_name = federation_srv_name(domain);
    let pattern = domain.as_str().split_once('.').filter(|_| wildcard).map(|(_, rest)| format!("*.{rest}"));
    let matches = |name: &str| {
        name.eq_ignore_ascii_case(domain.as_str()) || pattern.as_ref().is_some_and(|pattern| name.eq_ignore_ascii_case(pattern))
    };
    x509::dns_names(names).any(matches) || x509::srv_names(names).any(|name| name.eq_ignore_ascii_case(&srv_name))
}

/// The first and the last second in which a certificate (DER) is valid; `None` when it is no certificate.
pub fn validity(certificate_der: &[u8]) -> Option<(UnixMillis, UnixMillis)> {
    x509::parse(certificate_der).map(|certificate| (x509::not_before(&certificate), x509::not_after(&certificate)))
}

/// Whole days from `now` until `not_after`; negative once that has passed.
pub fn days_left(not_after: UnixMillis, now: UnixMillis) -> i64 {
    const DAY_MS: i64 = 24 * 60 * 60 * 1000;
    let ms = |time: UnixMillis| i64::try_from(time.0).unwrap_or(i64::MAX);
    ms(not_after).saturating_sub(ms(now)).div_euclid(DAY_MS)
}

/// A certificate's subject (DER) and key (SubjectPublicKeyInfo, DER); `None` when it is no certificate.
pub fn subject_and_key(certificate_der: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    x509::parse(certificate_der)
        .map(|certificate| (certificate.subject().as_raw().to_vec(), certificate.public_key().raw.to_vec()))
}

/// The dNSNames and SRVNames of a certificate (DER), for messages; none when it is no certificate.
pub fn names(certificate_der: &[u8]) -> Vec<String> {
    let Some(certificate) = x509::parse(certificate_der) else { return Vec::new() };
    let Some(names) = x509::alternative_names(&certificate) else { return Vec::new() };
    x509::dns_names(names).chain(x509::srv_names(names)).map(str::to_owned).collect()
}

/// The SRVName (RFC 4985) of a domain's federation service. It names no transport, unlike the DNS record's owner.
pub fn federation_srv_name(domain: &Domain) -> String {
    format!("_mimi-fed.{domain}")
}

/// The subject alternative names, written here because rcgen would write an SRVName as UTF8String (RFC 4985: IA5String).
fn alternative_names(options: &TlsCertificateOptions) -> Result<Option<CustomExtension>, Fault> {
    const SEQUENCE: u8 = 0x30;
    const IA5_STRING: u8 = 0x16;
    const OTHER_NAME: u8 = 0xa0;
    const EXPLICIT_0: u8 = 0xa0;
    const DNS_NAME: u8 = 0x82;

    let mut names = Vec::new();
    for name in &options.dns_names {
        names.extend(element(DNS_NAME, ascii(name)?)?);
    }
    if let Some(name) = &options.srv_name {
        let value = element(EXPLICIT_0, &element(IA5_STRING, ascii(name)?)?)?;
        names.extend(element(OTHER_NAME, &[OID_SRV_NAME_DER, &value].concat())?);
    }
    if names.is_empty() {
        return Ok(None);
    }
    Ok(Some(CustomExtension::from_oid_content(OID_SUBJECT_ALT_NAME, element(SEQUENCE, &names)?)))
}

fn ascii(name: &str) -> Result<&[u8], Fault> {
    if name.is_ascii() && !name.is_empty() { Ok(name.as_bytes()) } else { Err(Fault::new("a name in a certificate is ASCII")) }
}

/// One DER element: tag, shortest definite length, content.
fn element(tag: u8, content: &[u8]) -> Result<Vec<u8>, Fault> {
    let length = u16::try_from(content.len()).context("a certificate's names are too long")?;
    let mut der = vec![tag];
    match length {
        0..0x80 => der.push(length as u8),
        0x80..0x100 => der.extend([0x81, length as u8]),
        _ => {
            der.push(0x82);
            der.extend(length.to_be_bytes());
        }
    }
    der.extend_from_slice(content);
    Ok(der)
}

pub mod crl;

#[cfg(test)]
mod tests;
