//! UDP sockets and QUIC endpoints, with every limit set: quinn's defaults are wide open.
//!
//! A node that is killed and started again on the same port answers packets of connections it no longer knows with a valid
//! stateless reset (RFC 9000 §10.3), because its reset key and its connection ids come from [`EndpointSecret`], which is kept on
//! disk. Its peers then reconnect within a round trip instead of an idle time-out (X7).

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{
    Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TokioRuntime, TransportConfig, ValidationTokenConfig, VarInt,
};
use quinn_proto::HashedConnectionIdGenerator;
use ring::{hkdf, hmac};

use super::codes::CloseCode;
use crate::base::secret::Secret;
use crate::base::{Fault, crypto, limits};

/// QUIC version 1 (RFC 9000 §15).
const QUIC_VERSION: u32 = 1;

/// The persistent 32 octets that an endpoint's stateless resets, connection ids and Retry tokens are derived from. One for each
/// endpoint: two that share one could reset each other's connections.
#[derive(Clone, Debug)]
pub struct EndpointSecret(Secret);

impl EndpointSecret {
    /// A fresh secret, for an endpoint's first start; store it.
    pub fn generate() -> Self {
        Self::from_bytes(crypto::random())
    }

    /// The secret stored earlier.
    pub fn from_bytes(octets: [u8; 32]) -> Self {
        Self(Secret::new(octets.to_vec()))
    }

    /// The octets to store.
    pub fn expose(&self) -> &[u8] {
        self.0.expose()
    }

    /// Independent octets for one `use_`.
    fn derive(&self, use_: &str) -> [u8; 32] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.expose());
        let tag = hmac::sign(&key, use_.as_bytes());
        tag.as_ref().try_into().expect("HMAC-SHA256 gives 32 octets")
    }
}

/// Opens a QUIC endpoint on `address` (port 0: any free one). With `server` it also accepts; without it only dials. Must be
/// called within a tokio runtime. Fails with a sentence naming the address, as when it is in use.
pub fn bind(address: SocketAddr, server: Option<quinn::ServerConfig>, secret: &EndpointSecret) -> Result<Endpoint, Fault> {
    let cannot = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => Fault::new(format!(
            "cannot listen on {address}: address in use; stop the process that uses this UDP port, or configure another port"
        )),
        io::ErrorKind::AddrNotAvailable => {
            Fault::new(format!("cannot listen on {address}: this machine has no such address; configure one that it has"))
        }
        io::ErrorKind::PermissionDenied => Fault::new(format!(
            "cannot listen on {address}: permission denied; ports below 1024 need CAP_NET_BIND_SERVICE, or configure another port"
        )),
        _ => Fault::because(format!("cannot listen on {address}"), error),
    };
    let socket = udp_socket(address).map_err(cannot)?;

    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &secret.derive("stateless reset"))));
    let [a, b, c, d, e, f, g, h, ..] = secret.derive("connection id");
    let connection_ids = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    config
        // QUIC version 1 (RFC 9000) alone: the drafts before it are of no use to anyone here.
        .supported_versions(vec![QUIC_VERSION])
        .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(connection_ids)))
        .min_reset_interval(limits::STATELESS_RESET_INTERVAL);

    let server = server.map(|mut server| {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]);
        server.token_key(Arc::new(salt.extract(&secret.derive("retry token"))));
        server
    });
    Endpoint::new(config, server, socket, Arc::new(TokioRuntime)).map_err(cannot)
}

/// Ends an endpoint that is no longer needed: tells every connection that this node is shutting down, and waits until they
/// know or [`limits::HELLO_TIMEOUT`] has passed.
pub async fn close(endpoint: &Endpoint) {
    endpoint.close(CloseCode::ShuttingDown.number(), CloseCode::ShuttingDown.text().as_bytes());
    // A peer that does not answer is not waited for.
    let _ = tokio::time::timeout(limits::HELLO_TIMEOUT, endpoint.wait_idle()).await;
}

fn udp_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // One socket for both families, whatever the system's default.
        socket.set_only_v6(false)?;
    }
    // The buffers are a wish: the system caps them silently.
    let (wanted, _) = (limits::UDP_BUFFER_BYTES, socket.set_recv_buffer_size(limits::UDP_BUFFER_BYTES));
    let _ = socket.set_send_buffer_size(wanted);
    let (receive, send) = (socket.recv_buffer_size()?, socket.send_buffer_size()?);
    if receive.min(send) < wanted {
        tracing::warn!(
            %address, receive, send, wanted,
            "the system caps UDP buffers; packets may be lost under load: raise net.core.rmem_max and net.core.wmem_max"
        );
    }
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// QUIC for an accepting port. Every connection begins with little; the port gives more when it knows whose it is
/// ([`Accepted::settle`](super::Accepted::settle)).
pub(super) fn server_config(crypto: Arc<dyn quinn::crypto::ServerConfig>) -> quinn::ServerConfig {
    let mut config = quinn::ServerConfig::with_crypto(crypto);
    let mut tokens = ValidationTokenConfig::default();
    // A token of an earlier connection would spare an address its Retry; there are none, as there are no TLS tickets.
    tokens.sent(0);
    config
        .transport_config(Arc::new(transport_config(limits::UNSETTLED_STREAMS_MAX, limits::UNSETTLED_WINDOW_BYTES)))
        .validation_token_config(tokens)
        // Neither nodes nor their clients move while connected without reconnecting.
        .migration(false)
        .max_incoming(limits::INCOMING_PENDING_MAX)
        .incoming_buffer_size(limits::INCOMING_BUFFER_BYTES)
        .incoming_buffer_size_total(limits::INCOMING_BUFFERS_BYTES)
        .retry_token_lifetime(limits::RETRY_TOKEN_LIFETIME);
    config
}

/// QUIC for dialling. The dialled side never opens streams: each direction has a connection of its own. Nor does it keep the
/// connection alive: whoever dialled wants it. A packet every `keep_alive` is also how soon a request that was taken by a node
/// which then died learns of its death, for that node, started again, answers only what reaches it.
pub(super) fn client_config(crypto: Arc<dyn quinn::crypto::ClientConfig>, keep_alive: Duration) -> quinn::ClientConfig {
    let mut config = quinn::ClientConfig::new(crypto);
    let mut transport = transport_config(0, limits::CONNECTION_WINDOW_BYTES);
    transport.keep_alive_interval(Some(keep_alive));
    config.transport_config(Arc::new(transport)).version(QUIC_VERSION);
    config
}

/// What both roles share. `streams`: how many bidirectional streams the other side may have open. `window`: octets in flight on
/// the connection, each way: so much of either side's memory the other one can hold.
fn transport_config(streams: u32, window: u32) -> TransportConfig {
    let idle = IdleTimeout::try_from(limits::CONNECTION_IDLE_TIMEOUT).expect("the idle time-out fits QUIC's 2^62 ms");
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        // Nothing here is said on unidirectional streams or in datagrams.
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0)
        .stream_receive_window(VarInt::from_u32(limits::STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(window))
        .send_window(window.into())
        // Streams of one connection take turns: a large answer does not delay the small ones.
        .send_fairness(true)
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(None)
        .crypto_buffer_size(limits::CRYPTO_BUFFER_BYTES)
        // The extension would let the other side say how seldom it is to be acknowledged.
        .ack_frequency_config(None)
        // One bit that tells an observer the round-trip time.
        .allow_spin(false)
        // RFC 9000 §14: what every path carries at first, and what its discovery may find.
        .initial_mtu(1_200)
        .min_mtu(1_200)
        .mtu_discovery_config(Some(MtuDiscoveryConfig::default()))
        .pad_to_mtu(false)
        .enable_segmentation_offload(true)
        // RFC 9002 §6.1, §6.2.2 and §7.6: loss as the standard has it; congestion control is CUBIC (RFC 9438).
        .packet_threshold(3)
        .time_threshold(9.0 / 8.0)
        .initial_rtt(Duration::from_millis(333))
        .persistent_congestion_threshold(3)
        .congestion_controller_factory(Arc::new(CubicConfig::default()));
    config
}

#[cfg(test)]
mod tests {
    use quinn::ConnectionError;
    use tokio::runtime::{Builder, Runtime};

    use super::*;
    use crate::transport::testing::{Ca, bind as bind_any, local, own_loopback};

    fn runtime() -> Runtime {
        Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
    }

    #[tokio::test]
    async fn a_port_in_use_is_said_so() {
        let first = bind_any(None);
        let error = bind(local(&first), None, &EndpointSecret::generate()).expect_err("the port is taken").to_string();
        assert!(error.starts_with(&format!("cannot listen on {}: address in use", local(&first))), "{error}");
    }

    /// Kills a node that has a connection, starts it again with `second`, and tells why and how soon its peer's connection
    /// ended. The node has a runtime of its own; dropping that is the nearest to SIGKILL within one process: the socket closes
    /// and nothing more is sent.
    fn killed_and_restarted(first: &EndpointSecret, second: &EndpointSecret) -> Option<ConnectionError> {
        let ca = Ca::new("ca");
        let server = || ca.node("b.test").federation_server().expect("a server");
        let node = runtime();
        let endpoint = node.block_on(async { bind(own_loopback(2), Some(server()), first).expect("an endpoint") });
        let address = local(&endpoint);
        let accepting = endpoint.clone();
        node.spawn(async move {
            let connection = accepting.accept().await.expect("an open endpoint").await.expect("a handshake");
            while let Ok((mut send, _recv)) = connection.accept_bi().await {
                send.write_all(b"hi").await.expect("room");
            }
        });

        let peer = runtime();
        let (client, connection) = peer.block_on(async {
            let client = bind_any(None);
            let config = ca.node("a.test").federation_client().expect("a client");
            let connection = client.connect_with(config, address, "b.test").expect("a dial").await.expect("a connection");
            // A whole exchange: the handshake is confirmed and the server's connection ids are in use.
            let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
            send.write_all(b"x").await.expect("room");
            recv.read_exact(&mut [0; 2]).await.expect("an answer");
            (client, connection)
        });

        drop(node);
        drop(endpoint);
        let node = runtime();
        let endpoint = node.block_on(async { bind(address, Some(server()), second).expect("the port is free again") });
        let reason = peer.block_on(async {
            // Any packet will do; a request is what a node would send. One of QUIC's own may have been there before.
            let mut stream = connection.open_bi().await.ok();
            if let Some((send, _)) = &mut stream {
                let _ = send.write_all(&[0; 64]).await;
            }
            // Far below the idle time-out; the reset itself needs one round trip.
            tokio::time::timeout(limits::CONNECTION_IDLE_TIMEOUT / 10, connection.closed()).await.ok()
        });
        drop((client, endpoint));
        reason
    }

    #[test]
    fn a_killed_node_resets_old_connections_after_its_restart() {
        let secret = EndpointSecret::generate();
        let stored = EndpointSecret::from_bytes(secret.expose().try_into().expect("32 octets"));
        assert_eq!(killed_and_restarted(&secret, &stored), Some(ConnectionError::Reset));
        // Not so without the stored secret: this is what makes the difference.
        assert_eq!(killed_and_restarted(&secret, &EndpointSecret::generate()), None);
    }

    #[tokio::test]
    async fn closing_tells_the_other_side_why() {
        let ca = Ca::new("ca");
        let server = bind_any(Some(ca.node("b.test").federation_server().expect("a server")));
        let client = bind_any(None);
        let config = ca.node("a.test").federation_client().expect("a client");
        let dial = async { client.connect_with(config, local(&server), "b.test").expect("a dial").await.expect("a connection") };
        let accept = async { server.accept().await.expect("an open endpoint").await.expect("a handshake") };
        let (connection, _held) = tokio::join!(dial, accept);
        let (reason, ()) = tokio::join!(connection.closed(), close(&server));
        let ConnectionError::ApplicationClosed(reason) = reason else { unreachable!("{reason}") };
        assert_eq!(reason.error_code, CloseCode::ShuttingDown.number());
    }
}
