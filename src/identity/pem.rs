//! PEM text (RFC 7468) to DER and back.

use data_encoding::BASE64;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::base::secret::Secret;
use crate::base::{Context as _, Fault};

/// The characters of one line (RFC 7468 §2).
const LINE_LENGTH: usize = 64;

/// Every certificate in `text`, DER, in order. Sections of other kinds are passed over; none at all is an error.
pub fn certificates_from_pem(text: &str) -> Result<Vec<Vec<u8>>, Fault> {
    let certificates = CertificateDer::pem_slice_iter(text.as_bytes())
        .map(|certificate| certificate.map(|der| der.to_vec()))
        .collect::<Result<Vec<_>, _>>()
        .context("this is not PEM text")?;
    if certificates.is_empty() { Err(Fault::new("there is no certificate in this PEM text")) } else { Ok(certificates) }
}

/// The first private key in `text`: PKCS#8, SEC 1 or PKCS#1.
pub fn key_from_pem(text: &str) -> Result<PrivateKeyDer<'static>, Fault> {
    PrivateKeyDer::from_pem_slice(text.as_bytes()).context("there is no private key in this PEM text")
}

/// A certificate (DER) as PEM text.
pub fn certificate_to_pem(der: &[u8]) -> String {
    section("CERTIFICATE", der)
}

/// A private key (PKCS#8 DER) as PEM text.
pub fn key_to_pem(pkcs8: &Secret) -> Secret {
    Secret::new(section("PRIVATE KEY", pkcs8.expose()).into_bytes())
}

/// One PEM section.
pub(super) fn section(label: &str, der: &[u8]) -> String {
    let base64 = BASE64.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in base64.as_bytes().chunks(LINE_LENGTH) {
        text.extend(line.iter().map(|&character| char::from(character)));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::crypto::SigningKey;

    #[test]
    fn certificates_and_keys_round_trip() {
        let (first, second) = (vec![1; 100], vec![2; 48]);
        let text = format!("a comment\n{}{}", certificate_to_pem(&first), certificate_to_pem(&second));
        assert_eq!(certificates_from_pem(&text).expect("two certificates"), [first, second]);
        assert!(text.lines().all(|line| line.len() <= LINE_LENGTH));

        let key = SigningKey::generate().expect("a key");
        let pem = key_to_pem(key.pkcs8());
        let text = std::str::from_utf8(pem.expose()).expect("text");
        assert_eq!(key_from_pem(text).expect("a key").secret_der(), key.pkcs8().expose());
    }

    #[test]
    fn text_without_the_wanted_section_is_an_error() {
        let key = SigningKey::generate().expect("a key");
        let key_pem = key_to_pem(key.pkcs8());
        let key_text = std::str::from_utf8(key_pem.expose()).expect("text");
        for bad in ["", "hello", key_text, "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n"] {
            assert!(certificates_from_pem(bad).is_err(), "{bad}");
        }
        for bad in ["", "hello", &certificate_to_pem(&[1, 2, 3])] {
            assert!(key_from_pem(bad).is_err(), "{bad}");
        }
    }
}
