//! Making the certificates of the Authentication Service (S20): AS root, user, client, and the DS's own.

use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyUsagePurpose, SanType};
use ring::signature::{ED25519, UnparsedPublicKey};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use super::chain::domain_of_root;
use super::x509::{self, PublicKey, Signer};
use crate::base::crypto::SigningKey;
use crate::base::{ClientUri, Context as _, Domain, Fault, UnixMillis, UserUri, limits};

/// Why the AS does not issue a certificate.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The octets are no PKCS#10 request (RFC 2986), or too many.
    #[error("not a certificate request (PKCS#10, at most {} octets)", limits::CERTIFICATE_BYTES_MAX)]
    NotARequest,
    /// The key is not Ed25519.
    #[error("the key is not an Ed25519 key")]
    KeyType,
    /// The request is not signed by the key it names.
    #[error("the certificate request is not signed by its own key")]
    NoPossession,
    /// The name belongs to another domain.
    #[error("{name} is not of this AS's domain {domain}")]
    WrongDomain {
        /// The name asked for.
        name: String,
        /// The domain of the root.
        domain: Domain,
    },
    /// The root is not valid at the time of issuing.
    #[error("the AS root is not valid now")]
    RootNotValid,
    /// Our side failed.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// A domain's AS root: the key that vouches for its users (S20).
#[derive(Clone, Debug)]
pub struct AsRoot {
    key: SigningKey,
    certificate: Vec<u8>,
    domain: Domain,
}

impl AsRoot {
    /// A new self-signed root of `domain` (SAN dNSName), valid for [`limits::ROOT_LIFETIME`].
    pub fn create(domain: &Domain, now: UnixMillis) -> Result<Self, Fault> {
        let key = SigningKey::generate()?;
        let name = format!("MIMI AS root of {domain}");
        let mut parameters = x509::parameters(&name, now.minus(limits::CERTIFICATE_BACKDATE), now.plus(limits::ROOT_LIFETIME))?;
        let dns_name = domain.as_str().try_into().context("a domain name is ASCII")?;
        parameters.subject_alt_names = vec![SanType::DnsName(dns_name)];
        make_ca(&mut parameters, 1);
        let certificate = parameters.self_signed(&Signer(&key)).context("could not sign the AS root")?.der().to_vec();
        Ok(Self { key, certificate, domain: domain.clone() })
    }

    /// Reads a root back: `key_pkcs8` is its Ed25519 key (PKCS#8 DER). Fails unless the certificate is a CA for that key that
    /// names one domain (see [`domain_of_root`]).
    pub fn load(key_pkcs8: &[u8], certificate_der: &[u8]) -> Result<Self, Fault> {
        let key = SigningKey::from_pkcs8(key_pkcs8)?;
        let domain = domain_of_root(certificate_der).context("could not use this AS root")?;
        let certificate = x509::parse(certificate_der).context("the AS root is not a certificate")?;
        if x509::ed25519_key(certificate.public_key()).is_none_or(|public| public != key.public()) {
            return Err(Fault::new("the AS root's certificate is not of the AS root's key"));
        }
        Ok(Self { key, certificate: certificate_der.to_vec(), domain })
    }

    /// The root's key.
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// The root certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The domain for whose users the root vouches.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Issues the certificate (DER) of `user`: a CA of path length 0, so that the user issues its own clients. `csr_der` is a
    /// PKCS#10 request signed by the user's key; nothing else of it is used, least of all its names. The caller has decided
    /// that this key is `user`'s.
    pub fn issue_user(&self, csr_der: &[u8], user: &UserUri, now: UnixMillis) -> Result<Vec<u8>, IssueError> {
        self.issue_user_again(&key_of_request(csr_der)?, user, now)
    }

    /// As [`AsRoot::issue_user`], for a raw Ed25519 key whose holder has proved itself in another way.
    pub fn issue_user_again(&self, public_key: &[u8; 32], user: &UserUri, now: UnixMillis) -> Result<Vec<u8>, IssueError> {
        if user.domain() != &self.domain {
            return Err(IssueError::WrongDomain { name: user.to_string(), domain: self.domain.clone() });
        }
        let mut parameters = self.parameters(&user.to_string(), limits::USER_CERTIFICATE_LIFETIME, now)?;
        make_ca(&mut parameters, 0);
        Ok(x509::sign(&parameters, &PublicKey(*public_key), &self.certificate, Signer(&self.key))?)
    }

    /// Issues the end-entity certificate (DER) of a service of the domain, such as `mimi://a.test/ds`, for a bare Ed25519 key.
    pub fn issue_service(&self, uri: &str, public_key: &[u8; 32], now: UnixMillis) -> Result<Vec<u8>, IssueError> {
        let path = uri.strip_prefix("mimi://").and_then(|rest| rest.strip_prefix(self.domain.as_str()));
        if !path.is_some_and(|path| path.len() > 1 && path.starts_with('/')) {
            return Err(IssueError::WrongDomain { name: uri.to_owned(), domain: self.domain.clone() });
        }
        let mut parameters = self.parameters(uri, limits::ROOT_LIFETIME, now)?;
        make_end_entity(&mut parameters);
        Ok(x509::sign(&parameters, &PublicKey(*public_key), &self.certificate, Signer(&self.key))?)
    }

    /// Parameters for a certificate named `uri` that does not outlive the root.
    fn parameters(&self, uri: &str, lifetime: Duration, now: UnixMillis) -> Result<CertificateParams, IssueError> {
        let root = x509::parse(&self.certificate).expect("a root is parsed when it is made or loaded");
        named_parameters(uri, lifetime, &root, now)?.ok_or(IssueError::RootNotValid)
    }
}

/// A PKCS#10 request (DER) for `key`: the proof, for [`AsRoot::issue_user`], that the sender holds it. It names `user` for a
/// person who looks at it; the AS takes the name from the account.
pub fn user_csr(key: &SigningKey, user: &UserUri) -> Result<Vec<u8>, Fault> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.subject_alt_names = vec![uri_name(&user.to_string())?];
    let request = parameters.serialize_request(&Signer(key)).context("could not sign the certificate request")?;
    Ok(request.der().to_vec())
}

/// Issues the certificate (DER) of `client`, for its raw Ed25519 public key, under the user's certificate, which it does not
/// outlive. Fails when `user_key` is not the certificate's, the client is not the user's, or the certificate is not valid `now`.
pub fn issue_client(
    user_key: &SigningKey,
    user_certificate: &[u8],
    client: &ClientUri,
    client_public_key: &[u8],
    now: UnixMillis,
) -> Result<Vec<u8>, Fault> {
    let public_key = client_public_key.try_into().context("an Ed25519 public key has 32 octets")?;
    let issuer = x509::parse(user_certificate).context("the user certificate is not a certificate")?;
    if x509::ed25519_key(issuer.public_key()).is_none_or(|public| public != user_key.public()) {
        return Err(Fault::new("the user certificate is not of the user's key"));
    }
    let user = client.user().to_string();
    if !x509::uri_names(x509::alternative_names(&issuer).unwrap_or_default()).eq([user.as_str()]) {
        return Err(Fault::new(format!("the user certificate is not of {user}, whose client this is")));
    }
    let mut parameters = named_parameters(&client.to_string(), limits::USER_CERTIFICATE_LIFETIME, &issuer, now)?
        .context("the user certificate is not valid now")?;
    make_end_entity(&mut parameters);
    x509::sign(&parameters, &PublicKey(public_key), user_certificate, Signer(user_key))
}

/// Parameters with SAN URI `uri`, valid from a little before `now`, not outliving `issuer`; `None` when that is not valid `now`.
fn named_parameters(
    uri: &str,
    lifetime: Duration,
    issuer: &x509_parser::certificate::X509Certificate<'_>,
    now: UnixMillis,
) -> Result<Option<CertificateParams>, Fault> {
    let issuer_not_after = x509::not_after(issuer);
    if now < x509::not_before(issuer) || now.seconds() > issuer_not_after.seconds() {
        return Ok(None);
    }
    let not_before = now.minus(limits::CERTIFICATE_BACKDATE);
    let mut parameters = x509::parameters(uri, not_before, now.plus(lifetime).min(issuer_not_after))?;
    parameters.subject_alt_names = vec![uri_name(uri)?];
    parameters.use_authority_key_identifier_extension = true;
    Ok(Some(parameters))
}

fn uri_name(uri: &str) -> Result<SanType, Fault> {
    Ok(SanType::URI(uri.try_into().context("a URI in a certificate is ASCII")?))
}

fn make_ca(parameters: &mut CertificateParams, path_length: u8) {
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
}

fn make_end_entity(parameters: &mut CertificateParams) {
    parameters.is_ca = IsCa::ExplicitNoCa;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
}

/// The Ed25519 key of a PKCS#10 request, once the request's signature by that key is checked.
pub fn key_of_request(csr_der: &[u8]) -> Result<[u8; 32], IssueError> {
    if csr_der.len() > limits::CERTIFICATE_BYTES_MAX {
        return Err(IssueError::NotARequest);
    }
    let Ok(([], request)) = X509CertificationRequest::from_der(csr_der) else {
        return Err(IssueError::NotARequest);
    };
    let information = &request.certification_request_info;
    let key = x509::ed25519_key(&information.subject_pki).ok_or(IssueError::KeyType)?;
    let algorithm_is_right = request.signature_algorithm.algorithm.to_id_string() == x509::OID_ED25519;
    let signed = UnparsedPublicKey::new(&ED25519, key).verify(information.raw, &request.signature_value.data).is_ok();
    if algorithm_is_right && signed { Ok(key) } else { Err(IssueError::NoPossession) }
}

#[cfg(test)]
mod tests {
    use super::super::chain::{AsRoots, validate_client_chain, validate_user_chain};
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_900_000_000_000);

    fn root() -> AsRoot {
        AsRoot::create(&"a.test".parse().expect("a domain"), NOW).expect("a root")
    }

    fn alice() -> UserUri {
        "mimi://a.test/u/alice".parse().expect("a user")
    }

    fn key() -> SigningKey {
        SigningKey::generate().expect("a key")
    }

    #[test]
    fn a_root_round_trips_and_what_it_issues_then_verifies_under_the_first() {
        let root = root();
        let loaded = AsRoot::load(root.key().pkcs8().expose(), root.certificate()).expect("a root");
        assert_eq!((loaded.domain(), loaded.certificate()), (root.domain(), root.certificate()));
        let user_key = key();
        let csr = user_csr(&user_key, &alice()).expect("a request");
        let certificate = loaded.issue_user(&csr, &alice(), NOW).expect("a certificate");
        let roots = AsRoots::new(root.domain().clone(), vec![root.certificate().to_vec()]).expect("roots");
        let identity = validate_user_chain(&[certificate], &roots, NOW).expect("a valid chain");
        assert_eq!((identity.user, identity.public_key.as_slice()), (alice(), user_key.public()));
    }

    #[test]
    fn a_root_is_not_loaded_with_another_key_or_certificate() {
        let (root, other) = (root(), root());
        let refused = AsRoot::load(other.key().pkcs8().expose(), root.certificate()).expect_err("another key");
        assert_eq!(refused.to_string(), "the AS root's certificate is not of the AS root's key");
        assert!(AsRoot::load(root.key().pkcs8().expose(), b"garbage").is_err());
        assert!(AsRoot::load(b"garbage", root.certificate()).is_err());
        let service = root.issue_service("mimi://a.test/ds", &[7; 32], NOW).expect("a certificate");
        assert!(AsRoot::load(root.key().pkcs8().expose(), &service).is_err());
    }

    #[test]
    fn the_name_in_a_request_is_ignored() {
        let (root, user_key) = (root(), key());
        let csr = user_csr(&user_key, &"mimi://b.test/u/mallory".parse().expect("a user")).expect("a request");
        let certificate = root.issue_user(&csr, &alice(), NOW).expect("a certificate");
        assert_eq!(super::super::chain::claimed_user(&[certificate]), Ok(alice()));
    }

    #[test]
    fn a_request_without_proof_of_possession_is_refused() {
        let root = root();
        let csr = user_csr(&key(), &alice()).expect("a request");
        let mut changed = csr.clone();
        *changed.last_mut().expect("octets") ^= 1;
        assert!(matches!(root.issue_user(&changed, &alice(), NOW), Err(IssueError::NoPossession)));
        // Another's public key, put into one's own request.
        let (mine, theirs) = (key(), key());
        let csr = user_csr(&mine, &alice()).expect("a request");
        let at = csr.windows(32).position(|window| window == mine.public()).expect("the key is in the request");
        let mut stolen = csr;
        stolen[at..at + 32].copy_from_slice(theirs.public());
        assert!(matches!(root.issue_user(&stolen, &alice(), NOW), Err(IssueError::NoPossession)));
    }

    #[test]
    fn requests_of_another_form_key_or_domain_are_refused() {
        let root = root();
        let csr = user_csr(&key(), &alice()).expect("a request");
        let trailing = [csr.as_slice(), &[0]].concat();
        for bad in [&[][..], b"garbage", &trailing, root.certificate(), &vec![0; limits::CERTIFICATE_BYTES_MAX + 1]] {
            assert!(matches!(root.issue_user(bad, &alice(), NOW), Err(IssueError::NotARequest)));
        }
        let ecdsa = rcgen::KeyPair::generate().expect("a P-256 key");
        let request = CertificateParams::default().serialize_request(&ecdsa).expect("a request");
        assert!(matches!(root.issue_user(request.der(), &alice(), NOW), Err(IssueError::KeyType)));
        let foreign: UserUri = "mimi://b.test/u/alice".parse().expect("a user");
        assert!(matches!(root.issue_user(&csr, &foreign, NOW), Err(IssueError::WrongDomain { .. })));
        let late = NOW.plus(limits::ROOT_LIFETIME).plus(Duration::from_secs(1));
        assert!(matches!(root.issue_user(&csr, &alice(), late), Err(IssueError::RootNotValid)));
        let early = NOW.minus(limits::CERTIFICATE_BACKDATE).minus(Duration::from_secs(1));
        assert!(matches!(root.issue_user(&csr, &alice(), early), Err(IssueError::RootNotValid)));
    }

    #[test]
    fn a_service_certificate_is_of_the_domain_and_no_client_s() {
        let root = root();
        let service_key = key();
        let public: [u8; 32] = service_key.public().try_into().expect("32 octets");
        let der = root.issue_service("mimi://a.test/ds", &public, NOW).expect("a certificate");
        let certificate = x509::parse(&der).expect("a certificate");
        assert!(!certificate.is_ca());
        let names = x509::alternative_names(&certificate).expect("names");
        assert!(x509::uri_names(names).eq(["mimi://a.test/ds"]));
        assert_eq!(x509::ed25519_key(certificate.public_key()), Some(public));
        for bad in ["mimi://b.test/ds", "mimi://a.test", "mimi://a.test/", "mimi://a.test.b.test/ds", "https://a.test/ds", ""] {
            assert!(matches!(root.issue_service(bad, &public, NOW), Err(IssueError::WrongDomain { .. })), "{bad}");
        }
    }

    #[test]
    fn a_client_certificate_does_not_outlive_the_user_s() {
        let (root, user_key, client_key) = (root(), key(), key());
        let csr = user_csr(&user_key, &alice()).expect("a request");
        let user = root.issue_user(&csr, &alice(), NOW).expect("a certificate");
        let client = alice().client("phone").expect("a client");
        let later = NOW.plus(limits::USER_CERTIFICATE_LIFETIME / 2);
        let issue = |now| issue_client(&user_key, &user, &client, client_key.public(), now);
        let leaf = issue(later).expect("a certificate");
        let end = super::super::chain::claimed_validity_end(std::slice::from_ref(&leaf));
        assert_eq!(end, Ok(NOW.plus(limits::USER_CERTIFICATE_LIFETIME)));
        let roots = AsRoots::new(root.domain().clone(), vec![root.certificate().to_vec()]).expect("roots");
        assert!(validate_client_chain(&[leaf, user.clone()], &roots, later).is_ok());
        let refused = issue(NOW.plus(limits::USER_CERTIFICATE_LIFETIME).plus(Duration::from_secs(1))).expect_err("expired");
        assert_eq!(refused.to_string(), "the user certificate is not valid now");
        let refused = issue_client(&client_key, &user, &client, client_key.public(), NOW).expect_err("another key");
        assert_eq!(refused.to_string(), "the user certificate is not of the user's key");
        assert!(issue_client(&user_key, &user, &client, &[1; 31], NOW).is_err());
        assert!(issue_client(&user_key, b"garbage", &client, client_key.public(), NOW).is_err());
    }

    #[test]
    fn serial_numbers_differ_for_the_same_key_and_name() {
        let (root, user_key) = (root(), key());
        let csr = user_csr(&user_key, &alice()).expect("a request");
        let serial = || {
            let der = root.issue_user(&csr, &alice(), NOW).expect("a certificate");
            x509::parse(&der).expect("a certificate").raw_serial().to_vec()
        };
        assert_ne!(serial(), serial());
    }

    #[test]
    fn an_issuer_of_an_elaborate_name_can_issue() {
        // An external root with a name of several parts, as other tools make them.
        let key = key();
        let mut parameters = x509::parameters("Example AS", NOW, NOW.plus(limits::ROOT_LIFETIME)).expect("parameters");
        parameters.distinguished_name.push(rcgen::DnType::OrganizationName, "Example Ltd");
        let country = rcgen::DnValue::PrintableString("DE".try_into().expect("printable"));
        parameters.distinguished_name.push(rcgen::DnType::CountryName, country);
        parameters.subject_alt_names = vec![SanType::DnsName("a.test".try_into().expect("ASCII"))];
        make_ca(&mut parameters, 1);
        let certificate = parameters.self_signed(&Signer(&key)).expect("a certificate").der().to_vec();
        let root = AsRoot::load(key.pkcs8().expose(), &certificate).expect("a root");
        let csr = user_csr(&key, &alice()).expect("a request");
        let user = root.issue_user(&csr, &alice(), NOW).expect("a certificate");
        let roots = AsRoots::new(root.domain().clone(), vec![certificate]).expect("roots");
        assert!(validate_user_chain(&[user], &roots, NOW).is_ok());
    }
}
