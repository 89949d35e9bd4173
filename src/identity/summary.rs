//! [`CertificateSummary`]: what a person wants to see of a certificate.

use std::fmt;

use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::x509;
use crate::base::bytes::hex;
use crate::base::crypto::sha256;
use crate::base::{Context as _, Fault, UnixMillis};

/// The readable parts of a certificate, for the `inspect` command. Nothing of it is authenticated. Times serialise as
/// milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CertificateSummary {
    /// The subject's distinguished name.
    pub subject: String,
    /// The issuer's distinguished name.
    pub issuer: String,
    /// The dNSNames.
    pub dns_names: Vec<String>,
    /// The URIs.
    pub uri_names: Vec<String>,
    /// The SRVNames (RFC 4985).
    pub srv_names: Vec<String>,
    /// The first second of validity.
    #[serde(rename = "not_before_ms", serialize_with = "millis")]
    pub not_before: UnixMillis,
    /// The last second of validity.
    #[serde(rename = "not_after_ms", serialize_with = "millis")]
    pub not_after: UnixMillis,
    /// Whether it may sign certificates.
    pub is_ca: bool,
    /// How many CAs may follow below it.
    pub path_length: Option<u32>,
    /// The extended key usages by name, or by OID when the name is not known here; empty for any usage.
    pub extended_key_usages: Vec<String>,
    /// SHA-256 of the SubjectPublicKeyInfo, hexadecimal.
    pub spki_hash: String,
}

fn millis<S: Serializer>(time: &UnixMillis, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(time.0)
}

/// Reads a certificate (DER). Fails when it is none, or when one of the extensions shown is malformed.
pub fn summarise(der: &[u8]) -> Result<CertificateSummary, Fault> {
    let certificate = x509::parse(der).context("this is not a certificate")?;
    let names = x509::alternative_names(&certificate).context("the certificate's alternative names are malformed")?;
    let constraints = certificate.basic_constraints().context("the certificate's basic constraints are malformed")?;
    let usages = certificate.extended_key_usage().context("the certificate's extended key usages are malformed")?;
    let owned = |names: &mut dyn Iterator<Item = &str>| names.map(str::to_owned).collect::<Vec<_>>();
    let extended_key_usages = usages.map_or_else(Vec::new, |usages| {
        let usage = usages.value;
        let known = [
            (usage.any, "any"),
            (usage.server_auth, "serverAuth"),
            (usage.client_auth, "clientAuth"),
            (usage.code_signing, "codeSigning"),
            (usage.email_protection, "emailProtection"),
            (usage.time_stamping, "timeStamping"),
            (usage.ocsp_signing, "OCSPSigning"),
        ];
        let known = known.into_iter().filter(|(present, _)| *present).map(|(_, name)| name.to_owned());
        known.chain(usage.other.iter().map(|oid| oid.to_id_string())).collect()
    });
    Ok(CertificateSummary {
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        dns_names: owned(&mut x509::dns_names(names)),
        uri_names: owned(&mut x509::uri_names(names)),
        srv_names: owned(&mut x509::srv_names(names)),
        not_before: x509::not_before(&certificate),
        not_after: x509::not_after(&certificate),
        is_ca: certificate.is_ca(),
        path_length: constraints.and_then(|constraints| constraints.value.path_len_constraint),
        extended_key_usages,
        spki_hash: hex(&sha256(certificate.public_key().raw)),
    })
}

impl fmt::Display for CertificateSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: &str| if value.is_empty() { Ok(()) } else { writeln!(f, "{name:<13}{value}") };
        row("subject", &printable(&self.subject))?;
        row("issuer", &printable(&self.issuer))?;
        row("DNS names", &printable(&self.dns_names.join(" ")))?;
        row("URIs", &printable(&self.uri_names.join(" ")))?;
        row("SRV names", &printable(&self.srv_names.join(" ")))?;
        row("not before", &date(self.not_before))?;
        row("not after", &date(self.not_after))?;
        row(
            "CA",
            &match (self.is_ca, self.path_length) {
                (false, _) => "no".to_owned(),
                (true, None) => "yes".to_owned(),
                (true, Some(length)) => format!("yes, path length {length}"),
            },
        )?;
        row("key usages", if self.extended_key_usages.is_empty() { "any" } else { "" })?;
        row("key usages", &self.extended_key_usages.join(" "))?;
        row("SPKI SHA-256", &self.spki_hash)
    }
}

/// `text` without characters that a terminal would act upon: certificates to inspect come from anywhere.
fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

fn date(time: UnixMillis) -> String {
    let date = i64::try_from(time.seconds()).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    date.and_then(|date| date.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{} ms", time.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Domain;
    use crate::identity::pem::certificates_from_pem;
    use crate::identity::{TlsCa, TlsCertificateOptions};

    const NOW: UnixMillis = UnixMillis(1_900_000_000_000);

    #[test]
    fn shows_what_a_certificate_says() {
        let ca = TlsCa::create("Test CA", NOW).expect("a CA");
        let domain: Domain = "a.test".parse().expect("a domain");
        let issued = ca.issue(&TlsCertificateOptions::for_domain(&domain), NOW).expect("a certificate");
        let chain = certificates_from_pem(&issued.chain_pem).expect("a chain");
        let summary = summarise(&chain[0]).expect("a summary");
        assert_eq!((summary.subject.as_str(), summary.issuer.as_str()), ("CN=a.test", "CN=Test CA"));
        assert_eq!((summary.dns_names.as_slice(), summary.uri_names.as_slice()), (&["a.test".to_owned()][..], &[][..]));
        assert_eq!(summary.srv_names, ["_mimi-fed.a.test"]);
        assert_eq!(summary.extended_key_usages, ["serverAuth", "clientAuth"]);
        assert_eq!((summary.is_ca, summary.path_length), (false, None));
        assert_eq!(summary.not_before, UnixMillis(1_899_996_400_000));
        assert_eq!(summary.not_after, UnixMillis(1_907_776_000_000));
        let text = summary.to_string();
        assert!(text.contains("not after    2030-06-15T17:46:40Z\n"), "{text}");
        assert!(text.contains("DNS names    a.test\n") && !text.contains("URIs"), "{text}");
        let json = serde_json::to_value(&summary).expect("JSON");
        assert_eq!((&json["not_after_ms"], &json["spki_hash"]), (&1_907_776_000_000_u64.into(), &summary.spki_hash.into()));

        let ca = summarise(ca.certificate_der()).expect("a summary");
        assert_eq!((ca.is_ca, ca.path_length), (true, Some(0)));
        assert!(ca.to_string().contains("CA           yes, path length 0\n") && ca.to_string().contains("key usages   any\n"));
    }

    #[test]
    fn refuses_garbage_and_shows_no_control_characters() {
        assert!(summarise(b"garbage").is_err());
        let ca = TlsCa::create("evil\u{1b}[2J", NOW).expect("a CA");
        assert!(!summarise(ca.certificate_der()).expect("a summary").to_string().contains('\u{1b}'));
    }
}
