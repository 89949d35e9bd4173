//! What issuing and checking share: reading certificates, and the one way of signing them.

use rcgen::{CertificateParams, DnType, Issuer, PublicKeyData, SerialNumber};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::asn1_rs::{Any, Error as Asn1Error, FromDer as _, Tag, TaggedExplicit};
use x509_parser::extensions::GeneralName;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::base::crypto::{SigningKey, random};
use crate::base::{Context as _, Fault, UnixMillis};

/// The longest common name RFC 5280 allows (ub-common-name), in characters.
const COMMON_NAME_LENGTH_MAX: usize = 64;

/// id-Ed25519 (RFC 8410), for keys and signatures.
pub(super) const OID_ED25519: &str = "1.3.101.112";

/// id-on-dnsSRV (RFC 4985).
pub(super) const OID_SRV_NAME: &str = "1.3.6.1.5.5.7.8.7";

/// Reads one DER certificate with nothing after it.
pub(super) fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Some(certificate),
        _ => None,
    }
}

/// notBefore, or 1970 when it is earlier.
pub(super) fn not_before(certificate: &X509Certificate<'_>) -> UnixMillis {
    from_seconds(certificate.validity().not_before.timestamp())
}

/// notAfter: the last second in which the certificate is valid.
pub(super) fn not_after(certificate: &X509Certificate<'_>) -> UnixMillis {
    from_seconds(certificate.validity().not_after.timestamp())
}

fn from_seconds(seconds: i64) -> UnixMillis {
    UnixMillis(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000))
}

/// The raw key when it is an Ed25519 key exactly as RFC 8410 writes it: no parameters, 32 octets.
pub(super) fn ed25519_key(spki: &SubjectPublicKeyInfo<'_>) -> Option<[u8; 32]> {
    let right_algorithm = spki.algorithm.algorithm.to_id_string() == OID_ED25519 && spki.algorithm.parameters.is_none();
    let key = &spki.subject_public_key;
    if right_algorithm && key.unused_bits == 0 { key.data.as_ref().try_into().ok() } else { None }
}

/// The subject alternative names; empty without that extension, `None` when it is malformed or there twice.
pub(super) fn alternative_names<'a, 'c>(certificate: &'c X509Certificate<'a>) -> Option<&'c [GeneralName<'a>]> {
    match certificate.subject_alternative_name() {
        Ok(Some(extension)) => {
            let names = extension.value.general_names.as_slice();
            (!names.iter().any(|name| matches!(name, GeneralName::Invalid(..)))).then_some(names)
        }
        Ok(None) => Some(&[]),
        Err(_) => None,
    }
}

/// The dNSNames among `names`.
pub(super) fn dns_names<'a>(names: &'a [GeneralName<'a>]) -> impl Iterator<Item = &'a str> {
    names.iter().filter_map(|name| if let GeneralName::DNSName(text) = name { Some(*text) } else { None })
}

/// The URIs among `names`.
pub(super) fn uri_names<'a>(names: &'a [GeneralName<'a>]) -> impl Iterator<Item = &'a str> {
    names.iter().filter_map(|name| if let GeneralName::URI(text) = name { Some(*text) } else { None })
}

/// The SRVNames (RFC 4985) among `names`.
pub(super) fn srv_names<'a>(names: &'a [GeneralName<'a>]) -> impl Iterator<Item = &'a str> {
    names.iter().filter_map(|name| match name {
        GeneralName::OtherName(oid, value) if oid.to_id_string() == OID_SRV_NAME => {
            let (rest, value) = TaggedExplicit::<Any<'a>, Asn1Error, 0>::from_der(value).ok()?;
            let value = value.into_inner();
            // RFC 4985 says IA5String; some tools can only write a UTF8String, which cannot be mistaken for another name.
            let is_text = matches!(value.tag(), Tag::Ia5String | Tag::Utf8String);
            if rest.is_empty() && is_text { std::str::from_utf8(value.data).ok() } else { None }
        }
        _ => None,
    })
}

/// A time as rcgen takes it.
pub(super) fn date(time: UnixMillis) -> Result<OffsetDateTime, Fault> {
    let seconds = i64::try_from(time.seconds()).context("a certificate cannot carry this time")?;
    OffsetDateTime::from_unix_timestamp(seconds).context("a certificate cannot carry this time")
}

/// Parameters every certificate starts from: a readable subject, the two times, a random serial number.
pub(super) fn parameters(common_name: &str, not_before: UnixMillis, not_after: UnixMillis) -> Result<CertificateParams, Fault> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    let common_name: String = common_name.chars().take(COMMON_NAME_LENGTH_MAX).collect();
    parameters.distinguished_name.push(DnType::CommonName, common_name);
    parameters.not_before = date(not_before)?;
    parameters.not_after = date(not_after)?;
    // Positive and of full length: RFC 5280 §4.1.2.2. A certificate renewed for the same key gets another number.
    let mut serial: [u8; 16] = random();
    serial[0] = serial[0] & 0x7f | 0x40;
    parameters.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(parameters)
}

/// Signs a certificate for `public_key` with the key of `issuer_certificate`, whose subject becomes the issuer.
pub(super) fn sign(
    parameters: &CertificateParams,
    public_key: &impl PublicKeyData,
    issuer_certificate: &[u8],
    issuer_key: impl rcgen::SigningKey,
) -> Result<Vec<u8>, Fault> {
    let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(issuer_certificate), issuer_key)
        .context("could not use the issuing certificate")?;
    let certificate = parameters.signed_by(public_key, &issuer).context("could not sign the certificate")?.der().to_vec();
    let names_issuer = match (parse(&certificate), parse(issuer_certificate)) {
        (Some(issued), Some(issuer)) => issued.issuer().as_raw() == issuer.subject().as_raw(),
        _ => false,
    };
    // rcgen rebuilds the name from its parts; a subject it cannot rebuild would give a chain that nobody accepts.
    if names_issuer { Ok(certificate) } else { Err(Fault::new("the issuing certificate's subject is of an unsupported form")) }
}

/// A [`SigningKey`] as rcgen takes it.
pub(super) struct Signer<'a>(pub(super) &'a SigningKey);

impl PublicKeyData for Signer<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.public()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for Signer<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.0.sign(message))
    }
}

/// A bare Ed25519 public key as rcgen takes it.
pub(super) struct PublicKey(pub(super) [u8; 32]);

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}
