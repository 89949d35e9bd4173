//! What a certificate must be to be accepted, by role, and which domain it stands for (C3, X7; RFC 9525, RFC 4985).
//!
//! | verifier | checks |
//! |---|---|
//! | `PeerVerifier` | a peer node, in either TLS role, by [`Trust`]: who vouches for it, EKU; as a server also its domain |
//! | `ClientVerifier` | one of the domain's own clients: client certificate ← user certificate ← AS root |
//! | `PinnedVerifier` | the node, as its client sees it: chain to the CA whose key the client has pinned, and its domain |

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, KeyUsage};

use super::trust::Trust;
use crate::base::{Domain, limits};
use crate::identity::tls::{names, names_domain, spki_hash};

/// serverAuth, clientAuth, both or none: public CAs no longer issue clientAuth, so either will do in either role.
pub(super) struct PeerPurposes;

impl ExtendedKeyUsageValidator for PeerPurposes {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let (mut none, mut accepted, mut present) = (true, false, Vec::new());
        for purpose in purposes {
            let oid = purpose?.to_decoded_oid();
            none = false;
            accepted |= oid == KeyUsage::SERVER_AUTH_REPR || oid == KeyUsage::CLIENT_AUTH_REPR;
            present.push(oid);
        }
        if none || accepted {
            return Ok(());
        }
        let required = KeyUsage::server_auth();
        Err(webpki::Error::RequiredEkuNotFoundContext(webpki::RequiredEkuNotFoundContext { required, present }))
    }
}

/// MLS client certificates have no purpose that TLS knows; being issued under the AS root is what counts.
struct AnyPurpose;

impl ExtendedKeyUsageValidator for AnyPurpose {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

/// webpki's errors in the terms that rustls turns into TLS alerts, so that the other side learns what was wrong.
pub(super) fn refused(error: webpki::Error) -> Error {
    use webpki::Error as E;
    Error::InvalidCertificate(match error {
        E::BadDer | E::BadDerTime | E::TrailingData(_) => CertificateError::BadEncoding,
        E::CertExpired { .. } | E::InvalidCertValidity => CertificateError::Expired,
        E::CertNotValidYet { .. } => CertificateError::NotValidYet,
        E::UnknownIssuer => CertificateError::UnknownIssuer,
        E::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        E::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        E::CertRevoked => CertificateError::Revoked,
        E::CrlExpired { .. } => CertificateError::ExpiredRevocationList,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    })
}

/// A refusal with no fitting word in rustls; the alert is `certificate_unknown`.
fn refused_because(text: &'static str) -> Error {
    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Because(&'static str);
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(Because(text)))))
}

fn check_chain(
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    roots: &[TrustAnchor<'_>],
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
    purposes: impl ExtendedKeyUsageValidator,
) -> Result<(), Error> {
    let certificate = EndEntityCert::try_from(leaf).map_err(refused)?;
    certificate.verify_for_usage(algorithms, roots, intermediates, now, purposes, None, None).map_err(refused)?;
    Ok(())
}

/// The name dialled must be a domain, and the certificate must stand for exactly it.
fn check_domain(leaf: &CertificateDer<'_>, server_name: &ServerName<'_>) -> Result<(), Error> {
    let domain: Option<Domain> = server_name.to_str().parse().ok();
    match domain {
        Some(domain) if names_domain(leaf, &domain) => Ok(()),
        _ => Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext {
            expected: server_name.to_owned(),
            presented: names(leaf),
        })),
    }
}

/// What every verifier does with the handshake itself: TLS 1.3 only, and the signature is really checked.
macro_rules! check_handshakes {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls13RequiredForQuic))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

/// Accepts peer nodes (C3, X7). As a server's verifier it leaves the domain to `hello`, which says which one is meant; as a
/// client's it requires the domain that was looked up, never an SRV target.
#[derive(Debug)]
pub(super) struct PeerVerifier {
    /// Replaced as a whole when a node reads it anew.
    pub(super) trust: Arc<ArcSwap<Trust>>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for PeerVerifier {
    /// None: with a public root store the hints would cost 12 KB a handshake.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.trust.load().check_unnamed(leaf, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    check_handshakes!();
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // Only domains are dialled.
        let domain: Domain = server_name.to_str().parse().map_err(|_| CertificateError::NotValidForName)?;
        self.trust.load().check(&domain, leaf, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    check_handshakes!();
}

/// Accepts the domain's own clients, and anyone without a certificate (who then may only ask for `info` and `enrol`).
#[derive(Debug)]
pub(super) struct ClientVerifier {
    pub(super) roots: Vec<TrustAnchor<'static>>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if intermediates.len() + 1 != limits::CHAIN_CERTIFICATES_MAX {
            return Err(refused_because("a client's chain is its client certificate and its user certificate"));
        }
        check_chain(&[webpki::ring::ED25519], &self.roots, leaf, intermediates, now, AnyPurpose)?;
        Ok(ClientCertVerified::assertion())
    }

    check_handshakes!();
}

/// Accepts the node of a domain by the pinned key of the domain's TLS CA, whose certificate the node sends along.
#[derive(Debug)]
pub(super) struct PinnedVerifier {
    /// SHA-256 of the SubjectPublicKeyInfo of each CA that may vouch for the node.
    pub(super) pins: Vec<[u8; 32]>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(authority) =
            intermediates.iter().find(|certificate| spki_hash(certificate).is_ok_and(|hash| self.pins.contains(&hash)))
        else {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        };
        let root = webpki::anchor_from_trusted_cert(authority).map_err(refused)?;
        check_chain(self.algorithms.all, &[root], leaf, intermediates, now, PeerPurposes)?;
        check_domain(leaf, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    check_handshakes!();
}
