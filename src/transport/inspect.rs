//! [`Inspection`]: a certificate that a diagnosis wants to look at, also when it is refused. Nothing is accepted here that an
//! ordinary connection would refuse: the verdict is that of the ordinary verifier, and is only written down beside what it is about.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use super::trust::Trust;
use crate::base::{Domain, UnixMillis};
use crate::identity::tls::spki_hash;

/// What a peer presented in one handshake, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presented {
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// Why it was refused; `None`: it was accepted.
    pub refused: Option<(CertificateFault, String)>,
}

/// Why a certificate is refused: what an operator has to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateFault {
    /// Nobody who is trusted for this peer vouches for it.
    Untrusted,
    /// It does not stand for the domain.
    Name,
    /// Its time is over.
    Expired,
    /// Its time has not begun.
    NotYetValid,
    /// It is not for TLS (extended key usage).
    Purpose,
    /// It is revoked.
    Revoked,
    /// Anything else.
    Other,
}

impl CertificateFault {
    fn of(error: &Error) -> Self {
        use CertificateError as E;
        let Error::InvalidCertificate(error) = error else { return Self::Other };
        match error {
            E::UnknownIssuer | E::BadSignature => Self::Untrusted,
            E::NotValidForName | E::NotValidForNameContext { .. } => Self::Name,
            E::Expired | E::ExpiredContext { .. } => Self::Expired,
            E::NotValidYet | E::NotValidYetContext { .. } => Self::NotYetValid,
            E::InvalidPurpose | E::InvalidPurposeContext { .. } => Self::Purpose,
            E::Revoked => Self::Revoked,
            _ => Self::Other,
        }
    }
}

/// Where what the peer presents is written down.
#[derive(Clone, Debug, Default)]
pub struct Inspection(Arc<Mutex<Option<Presented>>>);

impl Inspection {
    /// `verifier`, watched.
    pub(super) fn of(verifier: Arc<dyn ServerCertVerifier>) -> (Arc<dyn ServerCertVerifier>, Self) {
        let inspection = Self::default();
        (Arc::new(Watched { verifier, inspection: inspection.clone() }), inspection)
    }

    /// What was presented; `None` when the handshake did not come so far.
    pub fn presented(&self) -> Option<Presented> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Debug)]
struct Watched {
    verifier: Arc<dyn ServerCertVerifier>,
    inspection: Inspection,
}

impl ServerCertVerifier for Watched {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verdict = self.verifier.verify_server_cert(leaf, intermediates, server_name, ocsp_response, now);
        let chain = std::iter::once(leaf).chain(intermediates).map(|certificate| certificate.to_vec()).collect();
        let refused = verdict.as_ref().err().map(|error| (CertificateFault::of(error), error.to_string()));
        *self.inspection.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Presented { chain, refused });
        verdict
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// What this node's trust has to do with a certificate, beside the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Involved {
    /// Whether keys are pinned for the peer, and if so, whether one of the chain's is among them.
    pub pin: Option<bool>,
    /// By when the newest revocation list that concerns the chain is to be replaced; `None`: there is none.
    pub crl_next_update: Option<UnixMillis>,
    /// Whether a wildcard would do for the peer.
    pub wildcard: bool,
}

impl Trust {
    /// What pins and revocation lists there are for a `chain` (DER, leaf first) that `domain` presents.
    pub fn involved(&self, domain: &Domain, chain: &[Vec<u8>]) -> Involved {
        let special = self.special(domain);
        let is_pinned = |der: &Vec<u8>| {
            spki_hash(der).is_ok_and(|key| special.is_some_and(|special| special.pins.iter().any(|pin| pin.0 == key)))
        };
        let pin = special.filter(|special| !special.pins.is_empty()).map(|_| chain.iter().any(is_pinned));
        let concerning = self.crls().find(|list| chain.iter().any(|der| list.concerns(der)));
        Involved {
            pin,
            crl_next_update: concerning.map(|list| list.next_update),
            wildcard: special.is_some_and(|special| special.wildcard),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tls::names;
    use crate::transport::NodeTls;
    use crate::transport::testing::{Ca, Odd, bind, domain, local, pem_key};

    /// What a look at a node with such a certificate finds, and whether the handshake came to an end.
    async fn look(ca: &Ca, names: &[&str], odd: &Odd) -> (Presented, bool) {
        let (chain, key) = ca.leaf(names, odd);
        let named: Domain = domain(names[0]);
        // The node must be given a pair it would serve with; that it names another domain than is dialled is the fault.
        let node = NodeTls::from_pem(&named, &chain, &pem_key(&key), &ca.pem).expect("a node");
        let server = bind(Some(node.federation_server().expect("a server")));
        let client = bind(None);
        let (config, inspection) = ca.node("a.test").inspecting_client().expect("a client");
        let dial = async { client.connect_with(config, local(&server), "b.test").expect("a dial").await.is_ok() };
        let accept = async { server.accept().await.expect("an open endpoint").await.is_ok() };
        let (dialled, _) = tokio::join!(dial, accept);
        (inspection.presented().expect("a certificate came"), dialled)
    }

    #[tokio::test]
    async fn a_refused_certificate_is_seen_and_stays_refused() {
        let ca = Ca::new("ca");
        let (good, connected) = look(&ca, &["b.test"], &Odd::default()).await;
        assert_eq!((good.refused, connected, good.chain.len()), (None, true, 2));
        let expired = Odd { expired: true, ..Odd::default() };
        let code_signing = Odd { purposes: vec![rcgen::ExtendedKeyUsagePurpose::CodeSigning], ..Odd::default() };
        for (odd, domains, fault) in [
            (Odd::default(), ["c.test"], CertificateFault::Name),
            (expired, ["b.test"], CertificateFault::Expired),
            (code_signing, ["b.test"], CertificateFault::Purpose),
        ] {
            let (seen, connected) = look(&ca, &domains, &odd).await;
            assert_eq!(seen.refused.map(|(fault, _)| fault), Some(fault));
            assert!(!connected, "{fault:?}: it is refused as ever");
            assert_eq!(names(&seen.chain[0]), domains);
        }
    }
}
