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

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, TrustAnchor, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};

use super::codes::CloseCode;
use super::endpoint;
use super::inspect::Inspection;
use super::sessions::{Cut, Session, Sessions};
use super::trust::{PeerTrust, Source, Trust, TrustSources, certificates};
use super::verify::{ClientVerifier, PeerVerifier, PinnedVerifier};
use crate::base::secret::Secret;
use crate::base::{Context as _, Domain, Fault, UnixMillis, limits};
use crate::identity::tls::{names, names_domain, validity};

/// ALPN of the federation port: it stands for the major version of the protocol between nodes.
pub const ALPN_FEDERATION: &[u8] = b"mimi-fed/1";

/// What is offered and accepted between nodes, best first. A later major version goes before this one, as long as both are spoken.
pub const ALPNS_FEDERATION: &[&[u8]] = &[ALPN_FEDERATION];

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

/// This node's certificate and key, whom it trusts as peers, and the connections that it has accepted by that. Clones share it
/// all, so that [`NodeTls::renew`] and [`NodeTls::set_trust`] reach every configuration made from any of them.
#[derive(Clone, Debug)]
pub struct NodeTls {
    domain: Domain,
    identity: Arc<Identity>,
    trust: Arc<ArcSwap<Trust>>,
    sessions: Arc<Sessions>,
}

impl NodeTls {
    /// Reads PEM texts: the node's certificate with its chain (leaf first; the CA last where clients pin it) and its private key.
    /// Fails with one sentence when one cannot be read, the key is not the certificate's, or the certificate does not stand for
    /// `domain` (C3): a dNSName `<domain>` or an SRVName `_mimi-fed.<domain>`, no wildcard. That the certificate has expired is no
    /// reason to fail: a node that runs takes up its renewal by itself.
    pub fn new(domain: &Domain, chain: &str, key: &Secret, trust: Trust) -> Result<Self, Fault> {
        let identity = read(domain, chain, key)?;
        Ok(Self {
            domain: domain.clone(),
            identity: Arc::new(Identity(ArcSwap::from_pointee(identity))),
            trust: Arc::new(ArcSwap::from_pointee(trust)),
            sessions: Arc::default(),
        })
    }

    /// As [`NodeTls::new`], trusting the CAs in the PEM text `authorities`.
    pub fn from_pem(domain: &Domain, chain: &str, key: &Secret, authorities: &str) -> Result<Self, Fault> {
        let name = "the bundle of CAs trusted for peers".to_owned();
        let authorities = vec![Source { name, octets: authorities.as_bytes().to_vec() }];
        Self::new(domain, chain, key, Trust::read(&TrustSources { authorities, ..TrustSources::default() })?)
    }

    /// Replaces certificate and key for every handshake from now on, after the checks of [`NodeTls::new`] and when the new
    /// certificate is valid `now`; on failure the old ones stay. Connections that are up stay up.
    pub fn renew(&self, chain: &str, key: &Secret, now: UnixMillis) -> Result<(), Fault> {
        let identity = read(&self.domain, chain, key)?;
        let times = identity.cert.first().and_then(|leaf| validity(leaf));
        let (not_before, not_after) = times.context("the node's certificate cannot be read")?;
        if now < not_before {
            return Err(Fault::new("the node's certificate is not valid yet: compare the clocks of this machine and of its CA"));
        }
        if now > not_after {
            return Err(Fault::new("the node's certificate has expired already"));
        }
        self.identity.0.store(Arc::new(identity));
        Ok(())
    }

    /// Replaces whom this node trusts, for every handshake from now on, and closes the connections of peers whose certificates
    /// would not be accepted any more. Returns these.
    pub fn set_trust(&self, trust: Trust) -> Vec<Cut> {
        self.trust.store(Arc::new(trust));
        self.cut_untrusted()
    }

    /// As [`NodeTls::set_trust`], of CAs and revocation lists only: what is different for single peers stays.
    pub fn set_authorities(&self, trust: &Trust) -> Vec<Cut> {
        self.trust.rcu(|current| trust.with_peers(current.peers().clone()));
        self.cut_untrusted()
    }

    /// As [`NodeTls::set_trust`], of what is different for single peers only.
    pub fn set_peer_trust(&self, peers: BTreeMap<Domain, PeerTrust>) -> Vec<Cut> {
        let peers = Arc::new(peers);
        self.trust.rcu(|current| current.with_peers(peers.clone()));
        self.cut_untrusted()
    }

    fn cut_untrusted(&self) -> Vec<Cut> {
        let (trust, now) = (self.trust.load_full(), UnixTime::now());
        self.sessions.cut(|session| judge(&trust, session, now).err())
    }

    /// Closes the connections of peers whose certificates have expired since they connected. Returns these.
    pub fn cut_expired(&self, now: UnixMillis) -> Vec<Cut> {
        let expired = || (CloseCode::NotAuthorized, "the certificate has expired".to_owned());
        self.sessions.cut(|session| (session.not_after() < now).then(expired))
    }

    /// Closes all connections of one peer, in both directions, as when the policy no longer accepts it. Returns how many.
    pub fn cut_peer(&self, domain: &Domain, code: CloseCode, reason: &str) -> usize {
        self.sessions.cut(|session| (session.domain() == domain).then(|| (code, reason.to_owned()))).len()
    }

    /// Closes the connections that one peer has made to this node. Returns how many.
    pub fn cut_inbound(&self, domain: &Domain, code: CloseCode, reason: &str) -> usize {
        let is_meant = |session: &Session| session.domain() == domain && session.is_inbound();
        self.sessions.cut(|session| is_meant(session).then(|| (code, reason.to_owned()))).len()
    }

    /// The peers that are connected, in either direction, each once.
    pub fn connected(&self) -> std::collections::BTreeSet<Domain> {
        self.peers_not_after().into_keys().collect()
    }

    /// Judges the certificate that the other side of `connection` has presented as that of `domain`, which it says it is or was
    /// dialled as: the judgement that counts, by what is trusted now. The session is watched as long as it is held: when the
    /// peer's certificate is revoked, the connection is closed. An error is a code and a sentence to close the connection with.
    pub fn admit(&self, domain: &Domain, connection: &quinn::Connection) -> Result<Arc<Session>, (CloseCode, String)> {
        // Watched before it is judged, so that a revocation in between is not missed.
        let session = self.sessions.watch(domain, connection);
        judge(&self.trust.load(), &session, UnixTime::now())?;
        Ok(session)
    }

    /// Whom this node trusts now.
    pub fn trust(&self) -> Arc<Trust> {
        self.trust.load_full()
    }

    /// The last second in which this node's certificate, and whatever it sends along, is valid.
    pub fn not_after(&self) -> UnixMillis {
        let identity = self.identity.0.load();
        let times = identity.cert.iter().filter_map(|certificate| validity(certificate));
        times.map(|(_, not_after)| not_after).min().unwrap_or_default()
    }

    /// The peers that are connected, in either direction, each with the last second in which its certificate is valid; of
    /// several certificates, the earliest.
    pub fn peers_not_after(&self) -> BTreeMap<Domain, UnixMillis> {
        self.sessions.not_after()
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
    /// peer's `hello` by the handler ([`names_domain`]).
    pub fn federation_server(&self) -> Result<quinn::ServerConfig, Fault> {
        self.server(self.peer_verifier(), ALPNS_FEDERATION, limits::PEER_STREAMS_MAX)
    }

    /// For dialling peers: ALPN `mimi-fed/1`, own certificate presented. The server name given to `connect` is the domain
    /// that was looked up, and the peer's certificate must stand for it.
    pub fn federation_client(&self) -> Result<quinn::ClientConfig, Fault> {
        self.dialling(self.peer_verifier())
    }

    /// As [`NodeTls::federation_client`], for one look at one peer: what it presents is written down, and accepted or refused as it
    /// always is.
    pub fn inspecting_client(&self) -> Result<(quinn::ClientConfig, Inspection), Fault> {
        let (verifier, inspection) = Inspection::of(self.peer_verifier());
        Ok((self.dialling(verifier)?, inspection))
    }

    fn dialling(&self, verifier: Arc<dyn ServerCertVerifier>) -> Result<quinn::ClientConfig, Fault> {
        let mut config = client_builder()?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(self.identity.clone());
        config.alpn_protocols = owned(ALPNS_FEDERATION);
        quic_client(config, limits::PEER_KEEP_ALIVE)
    }

    /// For accepting the domain's clients: ALPN `mimi-client/1`, client certificate optional; one that is presented must be
    /// [client, user] under one of `as_roots` (DER, Ed25519). That the two name the same user is left to the handler. When
    /// the roots change, make a new configuration and set it on the endpoint.
    pub fn client_server(&self, as_roots: &[Vec<u8>]) -> Result<quinn::ServerConfig, Fault> {
        let roots = as_roots.iter().map(|der| anchor(der).context("an AS root is no certificate")).collect::<Result<_, _>>()?;
        let verifier = ClientVerifier { roots, algorithms: provider().signature_verification_algorithms };
        self.server(Arc::new(verifier), &[ALPN_CLIENT], limits::CLIENT_STREAMS_MAX)
    }

    fn peer_verifier(&self) -> Arc<PeerVerifier> {
        Arc::new(PeerVerifier { trust: self.trust.clone(), algorithms: *self.trust.load().algorithms() })
    }

    fn server(&self, verifier: Arc<dyn ClientCertVerifier>, alpns: &[&[u8]], streams: u32) -> Result<quinn::ServerConfig, Fault> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .context("TLS cannot be set up")?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.identity.clone());
        config.alpn_protocols = owned(alpns);
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
    quic_client(config, limits::CLIENT_KEEP_ALIVE)
}

fn owned(alpns: &[&[u8]]) -> Vec<Vec<u8>> {
    alpns.iter().map(|alpn| alpn.to_vec()).collect()
}

fn client_builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, Fault> {
    ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]).context("TLS cannot be set up")
}

fn quic_client(mut config: ClientConfig, keep_alive: Duration) -> Result<quinn::ClientConfig, Fault> {
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    let crypto = QuicClientConfig::try_from(config).context("TLS cannot be set up for QUIC")?;
    Ok(endpoint::client_config(Arc::new(crypto), keep_alive))
}

fn anchor(der: &[u8]) -> Result<TrustAnchor<'static>, webpki::Error> {
    webpki::anchor_from_trusted_cert(&CertificateDer::from(der)).map(|anchor| anchor.to_owned())
}

/// Judges the certificate of a session by `trust`.
fn judge(trust: &Trust, session: &Session, now: UnixTime) -> Result<(), (CloseCode, String)> {
    let Some((leaf, intermediates)) = session.chain().split_first() else {
        return Err((CloseCode::NotAuthorized, "no certificate was presented".to_owned()));
    };
    trust.check(session.domain(), leaf, intermediates, now).map_err(|error| match error {
        rustls::Error::InvalidCertificate(
            rustls::CertificateError::NotValidForNameContext { .. } | rustls::CertificateError::NotValidForName,
        ) => (CloseCode::WrongDomain, format!("the certificate does not name {}", session.domain())),
        error => (CloseCode::NotAuthorized, format!("the certificate is not accepted: {error}")),
    })
}

/// Reads and checks what makes a node's TLS identity.
fn read(domain: &Domain, chain: &str, key: &Secret) -> Result<CertifiedKey, Fault> {
    let chain = certificates(chain.as_bytes(), "the node's certificate")?;
    let leaf = chain.first().expect("certificates() returns at least one").clone();
    let key = PrivateKeyDer::from_pem_slice(key.expose())
        .context("the node's TLS key is not a private key in PEM (BEGIN PRIVATE KEY)")?;
    let identity = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => Fault::new(format!(
            "the TLS key is not that of the certificate for {}: give the pair that was issued together",
            domain
        )),
        other => Fault::because("the node's certificate and TLS key cannot be used", other),
    })?;
    if !names_domain(&leaf, domain) {
        let names = names(&leaf);
        let names = if names.is_empty() { "no domain at all".to_owned() } else { names.join(", ") };
        return Err(Fault::new(format!(
            "the node's certificate stands for {names}, but this node serves {domain}: issue one with the dNSName {domain}"
        )));
    }
    Ok(identity)
}

/// A peer that presents no certificate, which no configuration of a node does.
#[cfg(test)]
pub(crate) fn bare_federation_client(authority: &[u8]) -> Result<quinn::ClientConfig, Fault> {
    let authorities = crate::identity::pem::certificate_to_pem(authority).into_bytes();
    let authorities = vec![Source { name: "a test's CA".to_owned(), octets: authorities }];
    let trust = Trust::read(&TrustSources { authorities, ..TrustSources::default() })?;
    let algorithms = *trust.algorithms();
    let verifier = PeerVerifier { trust: Arc::new(ArcSwap::from_pointee(trust)), algorithms };
    let mut config = client_builder()?.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth();
    config.alpn_protocols = vec![ALPN_FEDERATION.to_vec()];
    quic_client(config, limits::PEER_KEEP_ALIVE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tls::spki_hash;
    use crate::transport::accept::peer_chain;
    use crate::transport::testing::{Ca, Odd, bind, domain, local, pem_key};

    fn refusal(outcome: Result<NodeTls, Fault>) -> String {
        outcome.expect_err("must be refused").to_string()
    }

    #[test]
    fn an_identity_that_cannot_serve_is_refused_in_one_sentence() {
        let ca = Ca::new("ca");
        let (chain, key) = ca.leaf(&["b.test"], &Odd::default());
        let (_, other_key) = ca.leaf(&["b.test"], &Odd::default());
        let (b, key, other_key) = (domain("b.test"), pem_key(&key), pem_key(&other_key));
        assert!(NodeTls::from_pem(&b, &chain, &key, &ca.pem).is_ok());
        let error = refusal(NodeTls::from_pem(&b, &chain, &other_key, &ca.pem));
        assert!(error.contains("the TLS key is not that of the certificate for b.test"), "{error}");
        let error = refusal(NodeTls::from_pem(&domain("c.test"), &chain, &key, &ca.pem));
        assert!(error.contains("stands for b.test, but this node serves c.test"), "{error}");
        let error = refusal(NodeTls::from_pem(&b, "", &key, &ca.pem));
        assert!(error.contains("the node's certificate holds no certificate"), "{error}");
        let error = refusal(NodeTls::from_pem(&b, &chain, &Secret::new(chain.clone().into_bytes()), &ca.pem));
        assert!(error.contains("not a private key in PEM"), "{error}");
        let error = refusal(NodeTls::from_pem(&b, &chain, &key, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"));
        assert!(error.contains("bundle of CAs"), "{error}");
        let (wildcard, key) = ca.leaf(&["*.test"], &Odd::default());
        let error = refusal(NodeTls::from_pem(&b, &wildcard, &pem_key(&key), &ca.pem));
        assert!(error.contains("stands for *.test"), "{error}");
    }

    #[test]
    fn names_are_compared_exactly() {
        let ca = Ca::new("ca");
        let names = |odd: Odd, names: &[&str]| {
            let tls = ca.leaf(names, &odd).0;
            CertificateDer::from_pem_slice(tls.as_bytes()).expect("a certificate").to_vec()
        };
        let srv = |name: &str| names(Odd { srv_name: Some(name.to_owned()), ..Odd::default() }, &[]);
        let b = domain("b.test");
        assert!(names_domain(&names(Odd::default(), &["c.test", "B.test"]), &b));
        assert!(names_domain(&srv("_mimi-fed.b.test"), &b));
        for no in [
            names(Odd::default(), &["a.b.test", "*.test"]),
            srv("_mimi-fed.c.test"),
            srv("_xmpp.b.test"),
            srv("b.test"),
            ca.der.clone(),
            b"no certificate".to_vec(),
        ] {
            assert!(!names_domain(&no, &b));
        }
    }

    /// Connects a client to a node's client port; what the node sees of its certificates, or the error either side shows.
    async fn connect(
        node: &NodeTls,
        as_roots: &[Vec<u8>],
        pin: [u8; 32],
        identity: Option<&ClientIdentity>,
    ) -> Result<Vec<Vec<u8>>, String> {
        let server = bind(Some(node.client_server(as_roots).expect("a server")));
        let client = bind(None);
        let config = client_config(pin, identity).expect("a client");
        let dial = async {
            let dialled = client.connect_with(config, local(&server), "b.test").expect("a dial").await;
            match dialled {
                // A refused client certificate shows only now.
                Ok(connection) => connection.closed().await.to_string(),
                Err(error) => error.to_string(),
            }
        };
        let accept = async {
            let connection = server.accept().await.expect("an open endpoint").await.map_err(|error| error.to_string())?;
            Ok(peer_chain(&connection))
        };
        let (dialled, accepted): (_, Result<_, String>) = tokio::join!(dial, accept);
        accepted.map_err(|error| format!("{error} | {dialled}"))
    }

    #[tokio::test]
    async fn a_client_pins_its_domains_ca_and_shows_its_chain_or_none() {
        let (tls_ca, other_ca) = (Ca::new("tls"), Ca::new("other"));
        let (root, other_root) = (Ca::new_ed25519("as"), Ca::new_ed25519("other as"));
        let node = tls_ca.node("b.test");
        let pin = spki_hash(&tls_ca.der).expect("a certificate");
        let as_roots = [other_root.der.clone(), root.der.clone()];
        let user = root.user("alice");
        let (certificate, key) = user.client();
        let alice = ClientIdentity { chain: vec![certificate, user.der.clone()], key };

        assert_eq!(connect(&node, &as_roots, pin, None).await, Ok(vec![]));
        assert_eq!(connect(&node, &as_roots, pin, Some(&alice)).await, Ok(alice.chain.clone()));
        let outcome = connect(&node, &as_roots[..1], pin, Some(&alice)).await;
        assert!(outcome.as_ref().is_err_and(|error| error.contains("UnknownIssuer")), "under another AS root: {outcome:?}");

        let (certificate, key) = root.client();
        let short = ClientIdentity { chain: vec![certificate], key };
        let outcome = connect(&node, &as_roots, pin, Some(&short)).await;
        assert!(outcome.as_ref().is_err_and(|error| error.contains("client certificate and its user")), "{outcome:?}");

        let wrong_pin = spki_hash(&other_ca.der).expect("a certificate");
        let outcome = connect(&node, &as_roots, wrong_pin, Some(&alice)).await;
        assert!(outcome.as_ref().is_err_and(|error| error.contains("UnknownIssuer")), "another CA: {outcome:?}");
        let outcome = connect(&tls_ca.node("c.test"), &as_roots, pin, None).await;
        assert!(outcome.as_ref().is_err_and(|error| error.contains("not valid for name")), "another domain: {outcome:?}");
    }

    #[tokio::test]
    async fn a_pinned_ca_must_have_issued_the_certificate() {
        let (tls_ca, other_ca) = (Ca::new("tls"), Ca::new("other"));
        // A certificate of another CA, with the pinned CA merely sent along.
        let (chain, key) = other_ca.leaf(&["b.test"], &Odd::default());
        let forged = NodeTls::from_pem(&domain("b.test"), &(chain + &tls_ca.pem), &pem_key(&key), &tls_ca.pem).expect("one");
        let pin = spki_hash(&tls_ca.der).expect("a certificate");
        assert!(connect(&forged, &[], pin, None).await.is_err());
    }

    #[tokio::test]
    async fn a_reloaded_certificate_is_used_from_the_next_handshake_on() {
        let ca = Ca::new("ca");
        let node = ca.node("b.test");
        let before = node.chain();
        let (chain, key) = ca.leaf(&["b.test"], &Odd::default());
        let (wrong, wrong_key) = ca.leaf(&["c.test"], &Odd::default());
        assert!(node.renew(&wrong, &pem_key(&wrong_key), UnixMillis::now()).is_err());
        let (expired, expired_key) = ca.leaf(&["b.test"], &Odd { expired: true, ..Odd::default() });
        let error = node.renew(&expired, &pem_key(&expired_key), UnixMillis::now()).expect_err("too late").to_string();
        assert!(error.contains("expired already"), "{error}");
        let early = UnixMillis::now().minus(Duration::from_secs(31 * 24 * 60 * 60));
        let error = node.renew(&chain, &pem_key(&key), early).expect_err("too early").to_string();
        assert!(error.contains("not valid yet"), "{error}");
        assert_eq!(node.chain(), before);
        let server = bind(Some(node.federation_server().expect("a server")));
        node.renew(&chain, &pem_key(&key), UnixMillis::now()).expect("a good identity");
        let client = bind(None);
        let config = ca.node("a.test").federation_client().expect("a client");
        let dial = async { client.connect_with(config, local(&server), "b.test").expect("a dial").await.expect("a connection") };
        let accept = async { server.accept().await.expect("an open endpoint").await.expect("a handshake") };
        let (dialled, _held) = tokio::join!(dial, accept);
        assert_eq!(peer_chain(&dialled), node.chain());
        assert_ne!(node.chain(), before);
    }
}
