//! This node's TLS identity, and the four TLS configurations of the two ports (C2, C3, X7; *Transport* in
//! `docs/protocol.md`).
//!
//! | who | configuration | other side's certificate |
//! |---|---|---|
//! | node, accepting peers | [`NodeTls::federation_server`] | required |
//! | node, dialling peers | [`NodeTls::federation_client`] | for the domain looked up |
//! | node, accepting clients | [`NodeTls::client_server`] | optional: a client chain under the AS roots |
//! | client, dialling its node | [`client_config`] | under the pinned CA, for the domain |
//!
//! All of them: TLS 1.3 only, no tickets and no resumption (a resumed session would skip the certificate checks), no 0-RTT
//! (it could be replayed).

use std::sync::Arc;

use arc_swap::ArcSwap;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, TrustAnchor};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};

use super::endpoint;
use super::verify::{self, ClientVerifier, PeerVerifier, PinnedVerifier, Roots};
use crate::base::secret::Secret;
use crate::base::{Context as _, Domain, Fault, limits};

/// ALPN of the federation port.
pub const ALPN_FEDERATION: &[u8] = b"mimi-fed/1";

/// ALPN of the client port.
pub const ALPN_CLIENT: &[u8] = b"mimi-client/1";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The certificate in use, replaced while running; one for both TLS roles.
#[derive(Debug)]
struct Identity(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// This node's certificate and key, and the CAs it trusts for peers. Clones share both, so that [`NodeTls::reload`] reaches
/// every configuration made from any of them.
#[derive(Clone, Debug)]
pub struct NodeTls {
    domain: Domain,
    identity: Arc<Identity>,
    roots: Roots,
}

impl NodeTls {
    /// Reads PEM texts: the node's certificate with its chain (leaf first; the CA last where clients pin it), its private key,
    /// and the CAs trusted for peers. Fails with one sentence when one cannot be read, the key is not the certificate's, or
    /// the certificate does not stand for `domain` (C3): a dNSName `<domain>` or an SRVName `_mimi-fed.<domain>`, no wildcard.
    pub fn from_pem(domain: &Domain, chain: &str, key: &Secret, authorities: &str) -> Result<Self, Fault> {
        let (identity, roots) = read(domain, chain, key, authorities)?;
        Ok(Self {
            domain: domain.clone(),
            identity: Arc::new(Identity(ArcSwap::from_pointee(identity))),
            roots: Arc::new(ArcSwap::from_pointee(roots)),
        })
    }

    /// Replaces certificate, key and trusted CAs for every handshake from now on, after the checks of [`NodeTls::from_pem`];
    /// on failure the old ones stay. Connections that are up stay up: close those that should be judged anew.
    pub fn reload(&self, chain: &str, key: &Secret, authorities: &str) -> Result<(), Fault> {
        let (identity, roots) = read(&self.domain, chain, key, authorities)?;
        self.identity.0.store(Arc::new(identity));
        self.roots.store(Arc::new(roots));
        Ok(())
    }

    /// The domain that the certificate stands for.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The certificates in use, DER, leaf first.
    pub fn chain(&self) -> Vec<Vec<u8>> {
        self.identity.0.load().cert.iter().map(|certificate| certificate.to_vec()).collect()
    }

    /// For accepting peers: ALPN `mimi-fed/1`, client certificate required. Which domain it stands for is checked against the
    /// peer's `hello` by the handler ([`verify::names_domain`]).
    pub fn federation_server(&self) -> Result<quinn::ServerConfig, Fault> {
        self.server(self.peer_verifier(), ALPN_FEDERATION, limits::PEER_STREAMS_MAX)
    }

    /// For dialling peers: ALPN `mimi-fed/1`, own certificate presented. The server name given to `connect` is the domain
    /// that was looked up, and the peer's certificate must stand for it.
    pub fn federation_client(&self) -> Result<quinn::ClientConfig, Fault> {
        let mut config = client_builder()?
            .dangerous()
            .with_custom_certificate_verifier(self.peer_verifier())
            .with_client_cert_resolver(self.identity.clone());
        config.alpn_protocols = vec![ALPN_FEDERATION.to_vec()];
        quic_client(config)
    }

    /// For accepting the domain's clients: ALPN `mimi-client/1`, client certificate optional; one that is presented must be
    /// [client, user] under one of `as_roots` (DER, Ed25519). That the two name the same user is left to the handler. When
    /// the roots change, make a new configuration and set it on the endpoint.
    pub fn client_server(&self, as_roots: &[Vec<u8>]) -> Result<quinn::ServerConfig, Fault> {
        let roots = as_roots.iter().map(|der| anchor(der).context("an AS root is no certificate")).collect::<Result<_, _>>()?;
        let verifier = ClientVerifier { roots, algorithms: provider().signature_verification_algorithms };
        self.server(Arc::new(verifier), ALPN_CLIENT, limits::CLIENT_STREAMS_MAX)
    }

    fn peer_verifier(&self) -> Arc<PeerVerifier> {
        Arc::new(PeerVerifier { roots: self.roots.clone(), algorithms: provider().signature_verification_algorithms })
    }

    fn server(&self, verifier: Arc<dyn ClientCertVerifier>, alpn: &[u8], streams: u32) -> Result<quinn::ServerConfig, Fault> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .context("TLS cannot be set up")?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.identity.clone());
        config.alpn_protocols = vec![alpn.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        let crypto = QuicServerConfig::try_from(config).context("TLS cannot be set up for QUIC")?;
        Ok(endpoint::server_config(Arc::new(crypto), streams))
    }
}

/// A client's own certificates and key, presented when it connects to its node.
#[derive(Clone, Debug)]
pub struct ClientIdentity {
    /// DER: the client certificate, then the user certificate.
    pub chain: Vec<Vec<u8>>,
    /// The client certificate's Ed25519 key, PKCS#8 DER.
    pub key: Secret,
}

/// For a client dialling its node: ALPN `mimi-client/1`. `pin` is the SHA-256 of the SubjectPublicKeyInfo of the domain's TLS
/// CA, as the invitation carries it: the CA certificate that the node sends along is found by it and vouches for the node's
/// certificate, which must stand for the domain given to `connect`. Without `identity` only `info` and `enrol` are answered.
pub fn client_config(pin: [u8; 32], identity: Option<&ClientIdentity>) -> Result<quinn::ClientConfig, Fault> {
    let verifier = PinnedVerifier { pin, algorithms: provider().signature_verification_algorithms };
    let builder = client_builder()?.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let chain = identity.chain.iter().cloned().map(CertificateDer::from).collect();
            let key = PrivatePkcs8KeyDer::from(identity.key.expose().to_vec());
            builder.with_client_auth_cert(chain, key.into()).context("this client's certificate and key do not go together")?
        }
    };
    config.alpn_protocols = vec![ALPN_CLIENT.to_vec()];
    quic_client(config)
}

fn client_builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, Fault> {
    ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]).context("TLS cannot be set up")
}

fn quic_client(mut config: ClientConfig) -> Result<quinn::ClientConfig, Fault> {
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    let crypto = QuicClientConfig::try_from(config).context("TLS cannot be set up for QUIC")?;
    Ok(endpoint::client_config(Arc::new(crypto)))
}

fn anchor(der: &[u8]) -> Result<TrustAnchor<'static>, webpki::Error> {
    webpki::anchor_from_trusted_cert(&CertificateDer::from(der)).map(|anchor| anchor.to_owned())
}

/// Reads and checks what makes a node's TLS identity.
fn read(
    domain: &Domain,
    chain: &str,
    key: &Secret,
    authorities: &str,
) -> Result<(CertifiedKey, Vec<TrustAnchor<'static>>), Fault> {
    let chain = certificates(chain, "the node's certificate")?;
    let leaf = chain.first().expect("certificates() returns at least one").clone();
    let key = PrivateKeyDer::from_pem_slice(key.expose())
        .context("the node's TLS key is not a private key in PEM (BEGIN PRIVATE KEY)")?;
    let identity = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            Fault::new(format!("the TLS key is not that of the certificate for {}: give the pair that was issued together", domain))
        }
        other => Fault::because("the node's certificate and TLS key cannot be used", other),
    })?;
    if !verify::names_domain(&leaf, domain) {
        let names = verify::names(&leaf);
        let names = if names.is_empty() { "no domain at all".to_owned() } else { names.join(", ") };
        return Err(Fault::new(format!(
            "the node's certificate stands for {names}, but this node serves {domain}: issue one with the dNSName {domain}"
        )));
    }
    let authorities = certificates(authorities, "the bundle of CAs trusted for peers")?;
    let roots = authorities
        .iter()
        .map(|der| anchor(der).context("a certificate in the bundle of CAs trusted for peers cannot be used"))
        .collect::<Result<_, _>>()?;
    Ok((identity, roots))
}

/// The certificates in a PEM text, at least one.
fn certificates(pem: &str, what: &str) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("{what} is not valid PEM"))?;
    if certificates.is_empty() {
        return Err(Fault::new(format!("{what} holds no certificate (BEGIN CERTIFICATE)")));
    }
    Ok(certificates)
}
