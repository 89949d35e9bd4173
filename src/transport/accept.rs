//! The accept loop of both ports. It never waits for a handshake, so that one slow peer delays nobody, and it bounds how many
//! connections and unproven addresses there are at once.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, ConnectionError, Endpoint, Incoming};
use rustls::pki_types::CertificateDer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use super::codes::CloseCode;
use crate::base::count::{Counter, Counts, Held, Level, labels};
use crate::base::limits;

/// A connection whose handshake is done and whose certificate, if any, the port's verifier has accepted.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The connection. It is closed when its handler returns.
    pub connection: Connection,
    /// The certificates presented (DER, leaf first); empty where a certificate is optional and none was presented.
    pub peer_chain: Vec<Vec<u8>>,
    /// Where the other side is, an IPv4 address as IPv4 even on a socket for both families.
    pub remote: SocketAddr,
}

labels! {
    /// Why a connection from outside did not come to be.
    pub enum Turned {
        /// As many as allowed are open.
        Full = "full",
        /// Many handshakes from addresses that may be forged were under way: this one was asked to show that it receives what we
        /// send. An honest one is back at once, and counts again as what becomes of it.
        Retry = "retry",
        /// It did not begin well: no version or protocol in common, or not QUIC at all.
        Malformed = "malformed",
        /// A certificate was refused, ours by the other side or the other side's by us, or none was presented where one must be.
        Certificate = "certificate",
        /// No protocol (ALPN) in common.
        Alpn = "alpn",
        /// It was not complete in time.
        TimedOut = "timed_out",
        /// The other side gave up, or the connection was lost.
        Closed = "closed",
        /// The `hello` was missing, malformed, late, or has no version in common with ours.
        Hello = "hello",
        /// The other side says that it is a domain for which its certificate does not stand.
        WrongDomain = "wrong_domain",
        /// Our policy does not let it in.
        Denied = "denied",
        /// The peer is over its limits.
        OverLimits = "over_limits",
    }
}

/// What has come to one port since the start.
#[derive(Debug, Default)]
pub struct PortCounts {
    /// Connections whose handshake was done and whose certificate, if any, was accepted.
    pub accepted: Counter,
    /// Those that did not come to be, or ended with their `hello`, and why.
    pub turned: Counts<Turned>,
    /// Connections that are open.
    pub open: Level,
}

/// What is done with the connections of one port.
pub trait ConnectionHandler: Send + Sync + 'static {
    /// Serves one connection until it ends. Tasks of its own must end with it (a `JoinSet` does that). It may be dropped at any
    /// await when the node stops and [`limits::SHUTDOWN_TIMEOUT`] has passed; to stop earlier, it watches the node's shutdown.
    fn connection(self: Arc<Self>, accepted: Accepted) -> impl Future<Output = ()> + Send;

    /// Where what comes to the port is counted.
    fn counts(&self) -> &PortCounts;
}

/// Accepts connections on `endpoint` until `shutdown` becomes true (or its sender is gone), each served by `handler` in a task
/// of its own. Then refuses new ones, gives the handlers [`limits::SHUTDOWN_TIMEOUT`] to return, and ends those that have not.
/// No task is left when it returns; dropping it ends all of them at once. The endpoint stays open, for it may also dial.
pub async fn run<H: ConnectionHandler>(endpoint: Endpoint, handler: Arc<H>, shutdown: watch::Receiver<bool>) {
    run_bounded(endpoint, handler, shutdown, limits::CONNECTIONS_MAX, limits::HANDSHAKES_UNVALIDATED_MAX).await;
}

async fn run_bounded<H: ConnectionHandler>(
    endpoint: Endpoint,
    handler: Arc<H>,
    mut shutdown: watch::Receiver<bool>,
    connections_max: usize,
    unvalidated_max: usize,
) {
    let connections = Arc::new(Semaphore::new(connections_max));
    let unvalidated = Arc::new(Semaphore::new(unvalidated_max));
    let others = Arc::new(Others::default());
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            // In this order: once told to stop, nobody more is let in.
            biased;
            _ = shutdown.wait_for(|stop| *stop) => break,
            Some(ended) = tasks.join_next() => log_panic(ended),
            incoming = endpoint.accept() => match incoming {
                None => break,
                Some(incoming) => {
                    if let Some(admitted) = admit(incoming, &connections, &unvalidated, handler.counts()) {
                        tasks.spawn(serve(admitted, handler.clone(), others.clone()));
                    }
                }
            }
        }
    }
    let drain = async {
        loop {
            tokio::select! {
                ended = tasks.join_next() => match ended {
                    Some(ended) => log_panic(ended),
                    None => break,
                },
                Some(incoming) = endpoint.accept() => incoming.refuse(),
            }
        }
    };
    if tokio::time::timeout(limits::SHUTDOWN_TIMEOUT, drain).await.is_err() {
        tracing::warn!(connections = tasks.len(), "connections were still busy at shutdown and are cut off");
    }
    tasks.shutdown().await;
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection's handler failed");
    }
}

/// A handshake about to begin, with the permits it holds.
struct Admitted {
    incoming: Incoming,
    connection: OwnedSemaphorePermit,
    /// Held during the handshake by an address that has not proven itself.
    unvalidated: Option<OwnedSemaphorePermit>,
}

fn admit(
    incoming: Incoming,
    connections: &Arc<Semaphore>,
    unvalidated: &Arc<Semaphore>,
    counts: &PortCounts,
) -> Option<Admitted> {
    let remote = incoming.remote_address();
    let unvalidated = if incoming.remote_address_validated() {
        None
    } else if let Ok(permit) = unvalidated.clone().try_acquire_owned() {
        Some(permit)
    } else {
        // Many handshakes from addresses that may be forged: this one shows first that it receives what we send.
        counts.turned.one(Turned::Retry);
        if let Err(error) = incoming.retry() {
            error.into_incoming().refuse();
        }
        return None;
    };
    let Ok(connection) = connections.clone().try_acquire_owned() else {
        tracing::warn!(%remote, "connection refused: as many as allowed are open");
        counts.turned.one(Turned::Full);
        incoming.refuse();
        return None;
    };
    Some(Admitted { incoming, connection, unvalidated })
}

/// Closes a connection when its task ends, however it ends.
struct Closing {
    connection: Connection,
    code: CloseCode,
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.code.close(&self.connection, self.code.text());
    }
}

/// When the log last said that somebody came with another protocol.
type Others = Mutex<Option<Instant>>;

/// A handshake that came to nothing is the other side's affair, so no more than a debug line. That it speaks another protocol is
/// worth more: two nodes of different major versions would never learn of each other. Once in a while, for anybody can come.
fn log_refused(remote: SocketAddr, error: &ConnectionError, others: &Others) {
    if turned(error) == Turned::Alpn {
        let mut last = others.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() > limits::OTHER_PROTOCOL_LOG_INTERVAL) {
            *last = Some(Instant::now());
            return tracing::info!(%remote, "a connection was refused: it offers no protocol (ALPN) that this port speaks");
        }
    }
    tracing::debug!(%remote, %error, "handshake failed");
}

async fn serve<H: ConnectionHandler>(admitted: Admitted, handler: Arc<H>, others: Arc<Others>) {
    let Admitted { incoming, connection: _permit, unvalidated } = admitted;
    let remote = incoming.remote_address();
    let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
    // accept() fails at once for instance when no ALPN is shared.
    let counts = handler.counts();
    let connecting = match incoming.accept() {
        Ok(connecting) => connecting,
        Err(error) => {
            counts.turned.one(turned(&error));
            return log_refused(remote, &error, &others);
        }
    };
    let connection = match tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            counts.turned.one(turned(&error));
            return log_refused(remote, &error, &others);
        }
        Err(_) => {
            counts.turned.one(Turned::TimedOut);
            return tracing::debug!(%remote, "handshake timed out");
        }
    };
    drop(unvalidated);
    let handshake = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    if handshake.is_none_or(|data| data.protocol.is_none()) {
        counts.turned.one(Turned::Alpn);
        return CloseCode::NoAlpn.close(&connection, CloseCode::NoAlpn.text());
    }
    // An abort on shutdown drops this before it says "done".
    let mut closing = Closing { connection: connection.clone(), code: CloseCode::ShuttingDown };
    let peer_chain = peer_chain(&connection);
    counts.accepted.one();
    let _open = Held::new(&counts.open, 1);
    handler.clone().connection(Accepted { connection, peer_chain, remote }).await;
    closing.code = CloseCode::Done;
}

/// As what a handshake that failed is counted. TLS alerts travel as QUIC error 0x100 + alert (RFC 9001 §4.8), ours as well as the
/// other side's.
fn turned(error: &ConnectionError) -> Turned {
    let by_code = |code: u64| match code.checked_sub(0x100) {
        Some(42..=49 | 51 | 113 | 116) => Turned::Certificate,
        Some(120) => Turned::Alpn,
        _ => Turned::Malformed,
    };
    match error {
        ConnectionError::TransportError(error) => by_code(u64::from(error.code)),
        ConnectionError::ConnectionClosed(close) => match by_code(u64::from(close.error_code)) {
            // What the other side says of us, but for our certificate, is its own reason to leave.
            Turned::Malformed => Turned::Closed,
            turned => turned,
        },
        ConnectionError::VersionMismatch => Turned::Malformed,
        ConnectionError::TimedOut => Turned::TimedOut,
        _ => Turned::Closed,
    }
}

/// The certificates that the other side of `connection` presented (DER, leaf first); empty when there were none.
pub fn peer_chain(connection: &Connection) -> Vec<Vec<u8>> {
    let chain = connection.peer_identity().and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    chain.map(|chain| chain.iter().map(|certificate| certificate.to_vec()).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use super::*;
    use crate::transport::testing::{Ca, bind, local};

    /// Keeps every connection until told or until the other side ends it.
    #[derive(Default)]
    struct Keep {
        begun: Notify,
        end: Notify,
        counts: PortCounts,
    }

    impl ConnectionHandler for Keep {
        async fn connection(self: Arc<Self>, accepted: Accepted) {
            assert_eq!(accepted.peer_chain.len(), 2, "leaf and CA");
            self.begun.notify_one();
            tokio::select! {
                _ = accepted.connection.closed() => {}
                () = self.end.notified() => {}
            }
        }

        fn counts(&self) -> &PortCounts {
            &self.counts
        }
    }

    struct Port {
        ca: Ca,
        server: Endpoint,
        client: Endpoint,
        keep: Arc<Keep>,
        stop: watch::Sender<bool>,
        run: tokio::task::JoinHandle<()>,
    }

    fn port(connections_max: usize, unvalidated_max: usize) -> Port {
        let ca = Ca::new("ca");
        let server = bind(Some(ca.node("b.test").federation_server().expect("a server")));
        let (keep, (stop, stopped)) = (Arc::new(Keep::default()), watch::channel(false));
        let run = tokio::spawn(run_bounded(server.clone(), keep.clone(), stopped, connections_max, unvalidated_max));
        Port { ca, server, client: bind(None), keep, stop, run }
    }

    impl Port {
        async fn dial(&self) -> Result<Connection, ConnectionError> {
            let config = self.ca.node("a.test").federation_client().expect("a client");
            self.client.connect_with(config, local(&self.server), "b.test").expect("a dial").await
        }
    }

    #[tokio::test]
    async fn an_unproven_address_is_asked_to_prove_itself_when_there_are_many() {
        let port = port(9, 0);
        // No permit at all for unproven addresses: the only way in is a token from a Retry.
        let connection = port.dial().await.expect("let in after a Retry");
        assert_eq!(connection.close_reason(), None);
        assert_eq!(port.keep.counts.turned.value(Turned::Retry), 1);
    }

    #[tokio::test]
    async fn what_comes_to_the_port_is_counted_by_what_becomes_of_it() {
        let port = port(9, 9);
        let first = port.dial().await.expect("let in");
        port.keep.begun.notified().await;
        let counts = &port.keep.counts;
        assert_eq!((counts.accepted.value(), counts.open.value()), (1, 1));
        let strange = Ca::new("another ca").node("a.test").federation_client().expect("a client");
        let strange = port.client.connect_with(strange, local(&port.server), "b.test").expect("a dial").await;
        assert!(strange.is_err(), "we do not trust each other");
        while counts.turned.value(Turned::Certificate) == 0 {
            tokio::task::yield_now().await;
        }
        drop(first);
        port.keep.end.notify_one();
        while counts.open.value() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(counts.accepted.value(), 1);
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_are_refused_until_one_ends() {
        let port = port(1, 9);
        let first = port.dial().await.expect("let in");
        let error = port.dial().await.expect_err("one too many");
        let ConnectionError::ConnectionClosed(close) = &error else { unreachable!("{error}") };
        assert_eq!(close.error_code, quinn::TransportErrorCode::CONNECTION_REFUSED);
        assert_eq!(port.keep.counts.turned.value(Turned::Full), 1);
        port.keep.end.notify_one();
        let ConnectionError::ApplicationClosed(close) = first.closed().await else { unreachable!("the handler returned") };
        assert_eq!(close.error_code, CloseCode::Done.number());
        // The permit is given back just after the close is sent.
        while port.dial().await.is_err() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn dropping_the_loop_ends_its_connections() {
        let port = port(9, 9);
        let connection = port.dial().await.expect("let in");
        port.keep.begun.notified().await;
        port.run.abort();
        let ConnectionError::ApplicationClosed(close) = connection.closed().await else { unreachable!("told so") };
        assert_eq!(close.error_code, CloseCode::ShuttingDown.number());
        drop(port.stop);
    }
}
