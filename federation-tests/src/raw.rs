//! Peers and clients that say whatever a test wants: bare QUIC connections, with any certificate or none, to a node's two ports.

use std::net::SocketAddr;
use std::sync::Arc;

use mimi_node::base::limits::FRAME_BYTES_MAX;
use mimi_node::base::{Context as _, Domain, Fault, UnixMillis};
use mimi_node::identity::pem::{certificates_from_pem, key_from_pem};
use mimi_node::identity::{TlsCa, TlsCertificate, TlsCertificateOptions};
use mimi_node::transport::frame::{read_frame, write_frame};
use mimi_node::transport::{CloseCode, EndpointSecret, FrameError, endpoint, tls};
use mimi_node::wire::peer::{Hello, PROTOCOL_VERSIONS, PeerLimits, PeerRequest, PeerResponse};
use mimi_node::wire::{decode, encode};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, ConnectionError, Endpoint, ReadError};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// How a connection or stream was ended by the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The connection, with this code of the node's table.
    Closed(CloseCode),
    /// The connection, with this TLS alert (RFC 8446 §6).
    Alert(u8),
    /// The stream, with this code.
    Reset(CloseCode),
    /// The stream, without an answer.
    Finished,
    /// In some other way.
    Other(String),
}

impl Ended {
    /// Why a connection is no more.
    pub fn of_connection(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => match CloseCode::from_number(close.error_code.into_inner()) {
                Some(code) => Self::Closed(code),
                None => Self::Other(error.to_string()),
            },
            // RFC 9001 §4.8: CRYPTO_ERROR is 0x100 and the alert.
            ConnectionError::ConnectionClosed(close) => match u64::from(close.error_code).checked_sub(0x100) {
                Some(alert) => u8::try_from(alert).map_or_else(|_| Self::Other(error.to_string()), Self::Alert),
                None => Self::Other(error.to_string()),
            },
            _ => Self::Other(error.to_string()),
        }
    }

    fn of_frame(error: &FrameError) -> Self {
        match error {
            FrameError::Read(ReadError::Reset(code)) => match CloseCode::from_number(code.into_inner()) {
                Some(code) => Self::Reset(code),
                None => Self::Other(error.to_string()),
            },
            FrameError::Read(ReadError::ConnectionLost(lost)) => Self::of_connection(lost),
            _ => Self::Other(error.to_string()),
        }
    }
}

/// A connection to one port of a node, and the endpoint it lives on.
#[derive(Clone, Debug)]
pub struct Raw {
    /// The connection.
    pub connection: Connection,
    _endpoint: Endpoint,
}

impl Raw {
    /// Connects to `address` as if it had been looked up for `domain`. An error is the handshake's; a certificate that the node
    /// refuses shows only later, with the first stream.
    pub async fn dial(config: quinn::ClientConfig, address: SocketAddr, domain: &Domain) -> Result<Self, Ended> {
        let other = |error: &dyn std::fmt::Display| Ended::Other(error.to_string());
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let endpoint = endpoint::bind(any, None, &EndpointSecret::generate()).map_err(|error| other(&error))?;
        let connecting = endpoint.connect_with(config, address, domain.as_str()).map_err(|error| other(&error))?;
        let connection = connecting.await.map_err(|error| Ended::of_connection(&error))?;
        Ok(Self { connection, _endpoint: endpoint })
    }

    /// Connects to a domain's client port. `pin`: of the TLS CA. Without `identity` as a stranger.
    pub async fn client(
        address: SocketAddr,
        domain: &Domain,
        pin: [u8; 32],
        identity: Option<&tls::ClientIdentity>,
    ) -> Result<Self, Ended> {
        let config = tls::client_config(pin, identity).map_err(|fault| Ended::Other(fault.to_string()))?;
        Self::dial(config, address, domain).await
    }

    /// Connects to a domain's federation port and says the `hello` of `own`.
    pub async fn peer(config: quinn::ClientConfig, address: SocketAddr, domain: &Domain, own: &Domain) -> Result<Self, Ended> {
        let raw = Self::dial(config, address, domain).await?;
        let answer = raw.exchange(&encode(&PeerRequest::Hello(hello(own)))).await?;
        match decode(&answer) {
            Ok(PeerResponse::Hello(_)) => Ok(raw),
            other => Err(Ended::Other(format!("{other:?}"))),
        }
    }

    /// Sends a frame on a stream of its own and returns the answer.
    pub async fn exchange(&self, frame: &[u8]) -> Result<Vec<u8>, Ended> {
        let (mut send, mut recv) = self.connection.open_bi().await.map_err(|error| Ended::of_connection(&error))?;
        // That the other side no longer listens is told by what it answers.
        let _ = write_frame(&mut send, frame).await;
        let _ = send.finish();
        match read_frame(&mut recv, FRAME_BYTES_MAX).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(Ended::Finished),
            Err(error) => Err(Ended::of_frame(&error)),
        }
    }

    /// As [`Raw::exchange`], of octets that need not be a frame.
    pub async fn exchange_octets(&self, octets: &[u8]) -> Result<Vec<u8>, Ended> {
        let (mut send, mut recv) = self.connection.open_bi().await.map_err(|error| Ended::of_connection(&error))?;
        let _ = send.write_all(octets).await;
        let _ = send.finish();
        match read_frame(&mut recv, FRAME_BYTES_MAX).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(Ended::Finished),
            Err(error) => Err(Ended::of_frame(&error)),
        }
    }

    /// A request to a peer.
    pub async fn ask_peer(&self, request: &PeerRequest) -> Result<PeerResponse, Ended> {
        let answer = self.exchange(&encode(request)).await?;
        decode(&answer).map_err(|error| Ended::Other(error.to_string()))
    }

    /// Waits until the other side has ended the connection.
    pub async fn closed(&self) -> Ended {
        Ended::of_connection(&self.connection.closed().await)
    }
}

/// A `hello` as a node of `domain` says it.
pub fn hello(domain: &Domain) -> Hello {
    Hello {
        domain: domain.as_bytes().into(),
        versions: PROTOCOL_VERSIONS.to_vec().into(),
        limits: PeerLimits { frame_bytes_max: FRAME_BYTES_MAX as u32, lane_frames_max: 256 },
        server_time_ms: UnixMillis::now().0,
        extensions: vec![].into(),
    }
}

/// How a peer dials whose certificate may be of any kind: it trusts `trusted`, and presents what `issuer` makes of `options`, or
/// nothing.
pub fn peer_config(trusted: &TlsCa, presented: Option<(&TlsCa, &TlsCertificateOptions)>) -> Result<quinn::ClientConfig, Fault> {
    let certificate = presented.map(|(issuer, options)| issuer.issue(options, UnixMillis::now())).transpose()?;
    dialling_config(trusted, certificate.as_ref())
}

/// As [`peer_config`], with a certificate that is there already.
pub fn dialling_config(trusted: &TlsCa, presented: Option<&TlsCertificate>) -> Result<quinn::ClientConfig, Fault> {
    dialling_config_with(trusted, presented, tls::ALPNS_FEDERATION)
}

/// As [`dialling_config`], offering these protocols, best first.
pub fn dialling_config_with(
    trusted: &TlsCa,
    presented: Option<&TlsCertificate>,
    alpns: &[&[u8]],
) -> Result<quinn::ClientConfig, Fault> {
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("TLS cannot be set up")?
        .with_root_certificates(roots(trusted)?);
    let mut config = match presented {
        None => builder.with_no_client_auth(),
        Some(certificate) => {
            let (chain, key) = der(certificate)?;
            builder.with_client_auth_cert(chain, key).context("the certificate and key do not go together")?
        }
    };
    config.alpn_protocols = alpns.iter().map(|alpn| alpn.to_vec()).collect();
    let crypto = QuicClientConfig::try_from(config).context("TLS cannot be set up for QUIC")?;
    Ok(quinn::ClientConfig::new(Arc::new(crypto)))
}

/// How a peer accepts whose certificate may be of any kind: it asks for a certificate under `trusted`, and offers tickets to
/// resume by, as no node does.
pub fn accepting_config(trusted: &TlsCa, presented: &TlsCertificate) -> Result<quinn::ServerConfig, Fault> {
    accepting_config_with(trusted, presented, tls::ALPNS_FEDERATION)
}

/// As [`accepting_config`], accepting these protocols.
pub fn accepting_config_with(trusted: &TlsCa, presented: &TlsCertificate, alpns: &[&[u8]]) -> Result<quinn::ServerConfig, Fault> {
    let (chain, key) = der(presented)?;
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots(trusted)?), provider())
        .build()
        .context("the CA cannot be trusted")?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("TLS cannot be set up")?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .context("the certificate and key do not go together")?;
    config.alpn_protocols = alpns.iter().map(|alpn| alpn.to_vec()).collect();
    let crypto = QuicServerConfig::try_from(config).context("TLS cannot be set up for QUIC")?;
    Ok(quinn::ServerConfig::with_crypto(Arc::new(crypto)))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(trusted: &TlsCa) -> Result<rustls::RootCertStore, Fault> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(trusted.certificate_der().to_vec())).context("the CA cannot be trusted")?;
    Ok(roots)
}

fn der(certificate: &TlsCertificate) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Fault> {
    let chain = certificates_from_pem(&certificate.chain_pem)?.into_iter().map(CertificateDer::from).collect();
    Ok((chain, key_from_pem(&String::from_utf8_lossy(certificate.key_pem.expose()))?))
}
