//! Checking the credential chains of users and clients (R8): AS root → user → client.
//!
//! Signatures, validity and CA rules of a client chain are rustls-webpki's. What it leaves to us is checked here: that the user
//! who issued the client is the client's user, that both belong to the roots' domain, the exact length, one name each, key types.

use std::time::Duration;

use ring::signature::{ED25519, UnparsedPublicKey};
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter};
use x509_parser::certificate::X509Certificate;

use super::x509;
use crate::base::crypto::sha256;
use crate::base::{ClientUri, Domain, UnixMillis, UserUri, limits};

/// Why a chain, or a root, is refused (R8).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The chain has the wrong number of certificates; the root is never sent along.
    #[error("the chain has {found} certificates instead of {wanted}")]
    Length {
        /// How many there are.
        found: usize,
        /// How many there must be.
        wanted: usize,
    },
    /// A certificate is larger than [`limits::CERTIFICATE_BYTES_MAX`].
    #[error("a certificate of {0} octets is too large")]
    TooLarge(usize),
    /// The same certificate is there twice.
    #[error("the chain has the same certificate twice")]
    Duplicate,
    /// Not an X.509 v3 certificate in DER, or one with a malformed or repeated extension.
    #[error("not a well-formed certificate")]
    Garbage,
    /// A critical extension that we do not know.
    #[error("a certificate has a critical extension that is not supported")]
    CriticalExtension,
    /// Name constraints on an AS certificate, which we do not evaluate.
    #[error("name constraints on an AS root or user certificate are not supported")]
    NameConstraints,
    /// A key of the hierarchy is not Ed25519.
    #[error("a certificate's key is not an Ed25519 key")]
    KeyType,
    /// The root or the user certificate may not sign certificates.
    #[error("a certificate that should be a CA is none")]
    NotACa,
    /// A user certificate's path length is not 0, or a root's does not admit user certificates.
    #[error("a CA certificate has the wrong path length")]
    PathLength,
    /// The client certificate may sign certificates.
    #[error("the client certificate is a CA")]
    LeafIsCa,
    /// No SAN URI.
    #[error("a certificate has no URI among its names")]
    NoUri,
    /// More than one SAN URI.
    #[error("a certificate has more than one URI among its names")]
    SeveralUris,
    /// The SAN URI is not a client's or user's name where there must be one.
    #[error("a certificate's URI is not a {0} name")]
    WrongUriKind(&'static str),
    /// The user certificate belongs to another user than the client.
    #[error("the client is of {client_user} but its certificate was issued by {user}")]
    WrongUser {
        /// The user in the client's name.
        client_user: UserUri,
        /// The user of the issuing certificate.
        user: UserUri,
    },
    /// The name, or a root, belongs to another domain than the roots are pinned for.
    #[error("the name is of {found}, the roots of {wanted}")]
    WrongDomain {
        /// The domain in the certificate.
        found: String,
        /// The domain whose roots these are.
        wanted: Domain,
    },
    /// A root names no domain, or several.
    #[error("the AS root does not name exactly one domain")]
    NoDomain,
    /// There are no roots to check against.
    #[error("no AS root is known for this domain")]
    NoRoots,
    /// No pinned root has the issuer's name.
    #[error("no known AS root issued this chain")]
    UnknownIssuer,
    /// The client certificate was issued by a root, passing over the user certificate.
    #[error("the client certificate was not issued by the user certificate")]
    NotIssuedByUser,
    /// A signature is not by the issuer's key, or of another algorithm than Ed25519.
    #[error("a certificate's signature is not by its issuer")]
    BadSignature,
    /// A certificate, or the root, is no longer valid.
    #[error("a certificate expired at {} ms", not_after.0)]
    Expired {
        /// The last second of its validity.
        not_after: UnixMillis,
    },
    /// A certificate, or the root, is not valid yet.
    #[error("a certificate is not valid before {} ms", not_before.0)]
    NotYetValid {
        /// When its validity begins.
        not_before: UnixMillis,
    },
    /// Anything else that path validation refuses.
    #[error("the chain is refused: {0}")]
    Refused(webpki::Error),
}

impl ChainError {
    /// Whether a root that is not known yet could make the chain good.
    pub fn may_be_of_an_unknown_root(&self) -> bool {
        // A root that takes another's place has its name as a rule, so that the signature is what does not fit.
        matches!(self, Self::UnknownIssuer | Self::BadSignature)
    }
}

impl From<webpki::Error> for ChainError {
    fn from(error: webpki::Error) -> Self {
        use webpki::Error;
        let millis = |time: UnixTime| UnixMillis(time.as_secs().saturating_mul(1000));
        match error {
            Error::CertExpired { not_after, .. } => Self::Expired { not_after: millis(not_after) },
            Error::CertNotValidYet { not_before, .. } => Self::NotYetValid { not_before: millis(not_before) },
            Error::UnknownIssuer => Self::UnknownIssuer,
            Error::InvalidSignatureForPublicKey
            | Error::UnsupportedSignatureAlgorithmContext(_)
            | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => Self::BadSignature,
            Error::PathLenConstraintViolated => Self::PathLength,
            Error::CaUsedAsEndEntity => Self::LeafIsCa,
            Error::EndEntityUsedAsCa => Self::NotACa,
            Error::UnsupportedCriticalExtension => Self::CriticalExtension,
            other => Self::Refused(other),
        }
    }
}

/// The pinned AS root certificates of one domain. At least one, each a CA with an Ed25519 key.
#[derive(Clone, Debug)]
pub struct AsRoots {
    domain: Domain,
    roots: Vec<Root>,
    /// When the domain was asked for them last; [`UnixMillis`]'s end where there is nobody to ask.
    asked_at: UnixMillis,
}

#[derive(Clone, Debug)]
struct Root {
    certificate: Vec<u8>,
    anchor: TrustAnchor<'static>,
    /// The subject as DER, with its SEQUENCE header.
    subject: Vec<u8>,
    public_key: [u8; 32],
    not_before: UnixMillis,
    not_after: UnixMillis,
}

impl AsRoots {
    /// The roots (DER) of `domain`. Each must be a CA with an Ed25519 key that admits user certificates; one that carries
    /// dNSNames must name the domain, one that carries none is bound to it only by being pinned. Validity is checked with each
    /// chain.
    pub fn new(domain: Domain, certificates: Vec<Vec<u8>>) -> Result<Self, ChainError> {
        if certificates.is_empty() {
            return Err(ChainError::NoRoots);
        }
        let roots = certificates.into_iter().map(|der| Root::read(&domain, der)).collect::<Result<_, _>>()?;
        Ok(Self { domain, roots, asked_at: UnixMillis(u64::MAX) })
    }

    /// The same roots, as the domain was asked for them at `asked_at`.
    #[must_use]
    pub fn asked_at(self, asked_at: UnixMillis) -> Self {
        Self { asked_at, ..self }
    }

    /// Whether the domain may be asked whether it has other roots by now, because a chain leads to none of these (X2).
    pub fn may_be_outdated(&self, now: UnixMillis) -> bool {
        self.asked_at.plus(limits::AS_ROOTS_RETRY) < now
    }

    /// Whether the domain was asked for them last before `time`.
    pub fn were_asked_before(&self, time: UnixMillis) -> bool {
        self.asked_at < time
    }

    /// Whether none of these roots vouches for a client's chain that was good when it came in, be it out of time by now.
    pub fn vouched_for_none_of(&self, chain: &[Vec<u8>], now: UnixMillis) -> bool {
        let at = claimed_validity_end(chain).map_or(now, |end| end.min(now));
        matches!(validate_client_chain(chain, self, at), Err(error) if error.may_be_of_an_unknown_root())
    }

    /// Whether these are the roots of `certificates` (DER), in whatever order.
    pub fn is_exactly(&self, certificates: &[Vec<u8>]) -> bool {
        let has = |der: &[u8]| certificates.iter().any(|certificate| certificate == der);
        self.certificates().all(has)
            && certificates.iter().all(|certificate| self.certificates().any(|own| own == certificate.as_slice()))
    }

    /// The raw Ed25519 keys of the roots that are valid `now`.
    pub fn keys_valid(&self, now: UnixMillis) -> impl Iterator<Item = &[u8; 32]> {
        let valid = move |root: &&Root| check_times(root.not_before, root.not_after, now).is_ok();
        self.roots.iter().filter(valid).map(|root| &root.public_key)
    }

    /// Whether the user certificate (DER) is by the root that issues now, the last of the set.
    pub fn issuer_is_current(&self, user_certificate: &[u8], now: UnixMillis) -> bool {
        let Some(newest) = self.roots.last() else { return false };
        let alone = Self { domain: self.domain.clone(), roots: vec![newest.clone()], asked_at: self.asked_at };
        validate_user_chain(&[user_certificate.to_vec()], &alone, now).is_ok()
    }

    /// The domain whose users these roots vouch for.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The root certificates, DER.
    pub fn certificates(&self) -> impl Iterator<Item = &[u8]> {
        self.roots.iter().map(|root| root.certificate.as_slice())
    }

    /// The roots' raw Ed25519 keys.
    pub fn public_keys(&self) -> impl Iterator<Item = &[u8; 32]> {
        self.roots.iter().map(|root| &root.public_key)
    }

    /// When the longest-lived root of this name and key ends; an error unless one is valid `now`.
    fn validity_of(&self, subject: &[u8], public_key: &[u8], now: UnixMillis) -> Result<UnixMillis, ChainError> {
        let same = self.roots.iter().filter(|root| root.subject == subject && root.public_key == public_key);
        // A root renewed with the same key counts as long as one of its certificates is valid.
        let mut latest = None;
        let mut refusal = ChainError::UnknownIssuer;
        for root in same {
            match check_times(root.not_before, root.not_after, now) {
                Ok(()) => latest = latest.max(Some(root.not_after)),
                Err(error) => refusal = error,
            }
        }
        latest.ok_or(refusal)
    }
}

impl Root {
    fn read(domain: &Domain, der: Vec<u8>) -> Result<Self, ChainError> {
        let certificate = parse(&der)?;
        let path_length = path_length_of_ca(&certificate)?;
        if path_length == Some(0) {
            return Err(ChainError::PathLength);
        }
        let names = x509::alternative_names(&certificate).ok_or(ChainError::Garbage)?;
        let mut dns_names = x509::dns_names(names).peekable();
        if let Some(first) = dns_names.peek().copied()
            && !dns_names.any(|name| name.eq_ignore_ascii_case(domain.as_str()))
        {
            return Err(ChainError::WrongDomain { found: first.to_owned(), wanted: domain.clone() });
        }
        let anchor = webpki::anchor_from_trusted_cert(&CertificateDer::from(der.as_slice()))?.to_owned();
        Ok(Self {
            anchor,
            subject: certificate.subject().as_raw().to_vec(),
            public_key: x509::ed25519_key(certificate.public_key()).ok_or(ChainError::KeyType)?,
            not_before: x509::not_before(&certificate),
            not_after: x509::not_after(&certificate),
            certificate: der.clone(),
        })
    }
}

/// A client whose chain is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientIdentity {
    /// The client's name.
    pub client: ClientUri,
    /// Its user, who issued its certificate.
    pub user: UserUri,
    /// The client's raw Ed25519 key (32 octets): the MLS leaf's signature key.
    pub public_key: Vec<u8>,
    /// The user's raw Ed25519 key (32 octets).
    pub user_public_key: Vec<u8>,
    /// SHA-256 of the user certificate's SubjectPublicKeyInfo (DER): the `user_key_hash` of S2.
    pub user_key_hash: [u8; 32],
    /// The earliest end of validity in the chain, root included.
    pub not_after: UnixMillis,
}

/// A user whose certificate is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserIdentity {
    /// The user's name.
    pub user: UserUri,
    /// The user's raw Ed25519 key (32 octets).
    pub public_key: Vec<u8>,
    /// SHA-256 of the certificate's SubjectPublicKeyInfo (DER): the `user_key_hash` of S2.
    pub user_key_hash: [u8; 32],
    /// The earliest end of validity, root included.
    pub not_after: UnixMillis,
}

/// Checks a client's chain, leaf first: exactly client and user (R8).
pub fn validate_client_chain(chain: &[Vec<u8>], roots: &AsRoots, now: UnixMillis) -> Result<ClientIdentity, ChainError> {
    let [leaf_der, user_der] = chain else {
        return Err(ChainError::Length { found: chain.len(), wanted: limits::CHAIN_CERTIFICATES_MAX });
    };
    check_size(leaf_der)?;
    check_size(user_der)?;
    if leaf_der == user_der {
        return Err(ChainError::Duplicate);
    }
    let user_certificate = UserCertificate::read(user_der, &roots.domain)?;
    let leaf = parse(leaf_der)?;
    let client = client_of(&leaf)?;
    if client.user() != &user_certificate.user {
        return Err(ChainError::WrongUser { client_user: client.user().clone(), user: user_certificate.user });
    }
    let public_key = x509::ed25519_key(leaf.public_key()).ok_or(ChainError::KeyType)?.to_vec();

    // Signatures, times, and that the leaf is no CA.
    let anchors: Vec<_> = roots.roots.iter().map(|root| root.anchor.clone()).collect();
    let intermediates = [CertificateDer::from(user_der.as_slice())];
    let leaf_certificate = CertificateDer::from(leaf_der.as_slice());
    let end_entity = EndEntityCert::try_from(&leaf_certificate).map_err(of_malformed)?;
    let time = UnixTime::since_unix_epoch(Duration::from_millis(now.0));
    let algorithms = [webpki::ring::ED25519];
    let path = end_entity.verify_for_usage(&algorithms, &anchors, &intermediates, time, AnyKeyUsage, None, None)?;
    // A leaf that a root itself issued would be accepted with any user certificate beside it.
    if path.intermediate_certificates().count() != 1 {
        return Err(ChainError::NotIssuedByUser);
    }
    // webpki looks at no root's validity. Here the user certificate's signature chooses the root once more.
    let root_not_after = user_certificate.root_not_after(roots, now)?;

    Ok(ClientIdentity {
        client,
        public_key,
        user_public_key: user_certificate.public_key.to_vec(),
        user_key_hash: user_certificate.key_hash(),
        not_after: x509::not_after(&leaf).min(x509::not_after(&user_certificate.certificate)).min(root_not_after),
        user: user_certificate.user,
    })
}

/// Checks a user's chain: exactly the user certificate, issued by one of the roots (S20, R8).
pub fn validate_user_chain(chain: &[Vec<u8>], roots: &AsRoots, now: UnixMillis) -> Result<UserIdentity, ChainError> {
    let [user_der] = chain else {
        return Err(ChainError::Length { found: chain.len(), wanted: 1 });
    };
    let user_certificate = UserCertificate::read(user_der, &roots.domain)?;
    let certificate = &user_certificate.certificate;
    check_times(x509::not_before(certificate), x509::not_after(certificate), now)?;
    let root_not_after = user_certificate.root_not_after(roots, now)?;
    Ok(UserIdentity {
        public_key: user_certificate.public_key.to_vec(),
        user_key_hash: user_certificate.key_hash(),
        not_after: x509::not_after(certificate).min(root_not_after),
        user: user_certificate.user,
    })
}

/// **Unauthenticated.** The client that the first certificate of `chain` *claims* to be, read without checking a signature,
/// a time or an issuer: good for one thing, to learn whose roots to fetch before [`validate_client_chain`].
pub fn claimed_client(chain: &[Vec<u8>]) -> Result<ClientUri, ChainError> {
    let leaf = chain.first().ok_or(ChainError::Length { found: 0, wanted: limits::CHAIN_CERTIFICATES_MAX })?;
    client_of(&parse(leaf)?)
}

/// **Unauthenticated.** The user that the last certificate of `chain` (a user's or a client's) *claims* to be, read without
/// checking a signature, a time or an issuer: good for one thing, to learn whose roots to fetch before [`validate_user_chain`].
pub fn claimed_user(chain: &[Vec<u8>]) -> Result<UserUri, ChainError> {
    user_of(&parse(chain.last().ok_or(ChainError::Length { found: 0, wanted: 1 })?)?)
}

/// **Unauthenticated.** The earliest end of validity that the certificates of `chain` *claim*, read without checking a
/// signature. For chains that were validated when they came in, or for showing to a person.
pub fn claimed_validity_end(chain: &[Vec<u8>]) -> Result<UnixMillis, ChainError> {
    let (found, wanted) = (chain.len(), limits::CHAIN_CERTIFICATES_MAX);
    if found > wanted {
        return Err(ChainError::Length { found, wanted });
    }
    let mut earliest = None;
    for der in chain {
        let end = x509::not_after(&parse(der)?);
        earliest = Some(earliest.map_or(end, |earliest: UnixMillis| earliest.min(end)));
    }
    earliest.ok_or(ChainError::Length { found, wanted })
}

/// The one domain that a root certificate (DER) names in its dNSName. The certificate is not authenticated by this.
pub fn domain_of_root(der: &[u8]) -> Result<Domain, ChainError> {
    let certificate = parse(der)?;
    path_length_of_ca(&certificate)?;
    let names = x509::alternative_names(&certificate).ok_or(ChainError::Garbage)?;
    let mut dns_names = x509::dns_names(names);
    match (dns_names.next(), dns_names.next()) {
        (Some(name), None) => name.to_ascii_lowercase().parse().map_err(|_| ChainError::NoDomain),
        _ => Err(ChainError::NoDomain),
    }
}

/// A user certificate whose form is right. Who issued it, and when it is valid, is not checked yet.
struct UserCertificate<'a> {
    certificate: X509Certificate<'a>,
    user: UserUri,
    public_key: [u8; 32],
}

impl<'a> UserCertificate<'a> {
    fn read(der: &'a [u8], domain: &Domain) -> Result<Self, ChainError> {
        let certificate = parse(der)?;
        if path_length_of_ca(&certificate)? != Some(0) {
            return Err(ChainError::PathLength);
        }
        let user = user_of(&certificate)?;
        if user.domain() != domain {
            return Err(ChainError::WrongDomain { found: user.domain().to_string(), wanted: domain.clone() });
        }
        let public_key = x509::ed25519_key(certificate.public_key()).ok_or(ChainError::KeyType)?;
        Ok(Self { certificate, user, public_key })
    }

    /// The end of validity of the root that signed this certificate. webpki validates no path that ends in a CA, so this
    /// signature is checked here: name chaining (RFC 5280 §6.1.3), Ed25519 (RFC 8410), the root's own times.
    fn root_not_after(&self, roots: &AsRoots, now: UnixMillis) -> Result<UnixMillis, ChainError> {
        let issuer = self.certificate.issuer().as_raw();
        let mut candidates = roots.roots.iter().filter(|root| root.subject == issuer).peekable();
        candidates.peek().ok_or(ChainError::UnknownIssuer)?;
        if self.certificate.signature_algorithm.algorithm.to_id_string() != x509::OID_ED25519 {
            return Err(ChainError::BadSignature);
        }
        let signed_by = |root: &&Root| {
            let signature = &self.certificate.signature_value.data;
            UnparsedPublicKey::new(&ED25519, root.public_key).verify(self.certificate.tbs_certificate.as_ref(), signature).is_ok()
        };
        let root = candidates.find(signed_by).ok_or(ChainError::BadSignature)?;
        roots.validity_of(issuer, &root.public_key, now)
    }

    fn key_hash(&self) -> [u8; 32] {
        sha256(self.certificate.public_key().raw)
    }
}

/// Any extended key usage will do: the AS hierarchy is told apart by its roots, not by usage.
struct AnyKeyUsage;

impl ExtendedKeyUsageValidator for AnyKeyUsage {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

fn check_size(der: &[u8]) -> Result<(), ChainError> {
    if der.len() > limits::CERTIFICATE_BYTES_MAX { Err(ChainError::TooLarge(der.len())) } else { Ok(()) }
}

/// Reads a certificate with both parsers: webpki is strict about DER, repeated and unknown critical extensions; x509-parser
/// shows what webpki hides.
fn parse(der: &[u8]) -> Result<X509Certificate<'_>, ChainError> {
    check_size(der)?;
    EndEntityCert::try_from(&CertificateDer::from(der)).map_err(of_malformed)?;
    x509::parse(der).ok_or(ChainError::Garbage)
}

fn of_malformed(error: webpki::Error) -> ChainError {
    match error {
        webpki::Error::UnsupportedCriticalExtension => ChainError::CriticalExtension,
        _ => ChainError::Garbage,
    }
}

fn is_ca(certificate: &X509Certificate<'_>) -> Result<bool, ChainError> {
    let constraints = certificate.basic_constraints().map_err(|_| ChainError::Garbage)?;
    Ok(constraints.is_some_and(|constraints| constraints.value.ca))
}

/// The path length of a certificate that may sign others (RFC 5280 §4.2.1.3, §4.2.1.9) and has no name constraints.
fn path_length_of_ca(certificate: &X509Certificate<'_>) -> Result<Option<u32>, ChainError> {
    let key_usage = certificate.key_usage().map_err(|_| ChainError::Garbage)?;
    if !is_ca(certificate)? || key_usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(ChainError::NotACa);
    }
    if certificate.name_constraints().map_err(|_| ChainError::Garbage)?.is_some() {
        return Err(ChainError::NameConstraints);
    }
    let constraints = certificate.basic_constraints().map_err(|_| ChainError::Garbage)?;
    Ok(constraints.and_then(|constraints| constraints.value.path_len_constraint))
}

/// The only URI among a certificate's names.
fn uri_of<T: std::str::FromStr>(certificate: &X509Certificate<'_>, kind: &'static str) -> Result<T, ChainError> {
    let names = x509::alternative_names(certificate).ok_or(ChainError::Garbage)?;
    let mut uris = x509::uri_names(names);
    match (uris.next(), uris.next()) {
        (None, _) => Err(ChainError::NoUri),
        (Some(uri), None) => uri.parse().map_err(|_| ChainError::WrongUriKind(kind)),
        (Some(_), Some(_)) => Err(ChainError::SeveralUris),
    }
}

fn client_of(certificate: &X509Certificate<'_>) -> Result<ClientUri, ChainError> {
    uri_of(certificate, "client")
}

fn user_of(certificate: &X509Certificate<'_>) -> Result<UserUri, ChainError> {
    uri_of(certificate, "user")
}

/// Whole seconds, both ends included (RFC 5280 §4.1.2.5).
fn check_times(not_before: UnixMillis, not_after: UnixMillis, now: UnixMillis) -> Result<(), ChainError> {
    if now.seconds() < not_before.seconds() {
        Err(ChainError::NotYetValid { not_before })
    } else if now.seconds() > not_after.seconds() {
        Err(ChainError::Expired { not_after })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
