//! The connections of peers whose certificates were accepted, in both directions: to close those that would not be any more, and
//! to tell when certificates end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use quinn::Connection;
use rustls::pki_types::CertificateDer;

use super::accept::peer_chain;
use super::codes::CloseCode;
use crate::base::{Domain, UnixMillis};
use crate::identity::tls::validity;

/// A connection to or from a peer that is watched as long as this is held. Dropping it does not close the connection.
#[derive(Debug)]
pub struct Session {
    domain: Domain,
    chain: Vec<CertificateDer<'static>>,
    not_after: UnixMillis,
    connection: Connection,
}

impl Session {
    /// Whose it is.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The last second in which the peer's certificate is valid.
    pub fn not_after(&self) -> UnixMillis {
        self.not_after
    }

    /// Whether the peer has made it.
    pub(super) fn is_inbound(&self) -> bool {
        self.connection.side().is_server()
    }

    /// What the peer presented, leaf first.
    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }
}

/// A connection that was closed because its peer's certificate is not accepted any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Whose it was.
    pub domain: Domain,
    /// Why, in a sentence that the peer was told too.
    pub reason: String,
}

/// All sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<Vec<Weak<Session>>>);

impl Sessions {
    /// Begins to watch a connection.
    pub(super) fn watch(&self, domain: &Domain, connection: &Connection) -> Arc<Session> {
        let chain: Vec<CertificateDer<'static>> = peer_chain(connection).into_iter().map(CertificateDer::from).collect();
        let not_after = chain.first().and_then(|leaf| validity(leaf)).map_or(UnixMillis(0), |(_, not_after)| not_after);
        let session = Arc::new(Session { domain: domain.clone(), chain, not_after, connection: connection.clone() });
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Forgotten where memory would have to grow, so that each costs a constant share.
        if all.len() == all.capacity() {
            all.retain(|session| session.strong_count() > 0);
        }
        all.push(Arc::downgrade(&session));
        session
    }

    /// Those that are open now.
    fn open(&self) -> Vec<Arc<Session>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(Weak::upgrade).filter(|session| session.connection.close_reason().is_none()).collect()
    }

    /// Closes those for which `refusal` has a reason, and returns them.
    pub(super) fn cut(&self, refusal: impl Fn(&Session) -> Option<(CloseCode, String)>) -> Vec<Cut> {
        let mut cut = Vec::new();
        for session in self.open() {
            if let Some((code, reason)) = refusal(&session) {
                code.close(&session.connection, &reason);
                cut.push(Cut { domain: session.domain.clone(), reason });
            }
        }
        cut
    }

    /// The earliest end of the certificates of each peer.
    pub(super) fn not_after(&self) -> BTreeMap<Domain, UnixMillis> {
        let mut ends = BTreeMap::new();
        for session in self.open() {
            let end = ends.entry(session.domain.clone()).or_insert(session.not_after);
            *end = session.not_after.min(*end);
        }
        ends
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use quinn::Endpoint;

    use super::*;
    use crate::transport::NodeTls;
    use crate::transport::testing::{Ca, bind, domain, local};

    /// A connection from `a.test` to the node `b`: both ends, and the endpoints that carry them.
    async fn connected(ca: &Ca, b: &NodeTls) -> (Connection, Connection, [Endpoint; 2]) {
        let (server, client) = (bind(Some(b.federation_server().expect("a server"))), bind(None));
        let config = ca.node("a.test").federation_client().expect("a client");
        let dial = async { client.connect_with(config, local(&server), "b.test").expect("a dial").await.expect("a connection") };
        let accept = async { server.accept().await.expect("an open endpoint").await.expect("a handshake") };
        let (dialled, accepted) = tokio::join!(dial, accept);
        (dialled, accepted, [server, client])
    }

    fn code(error: &quinn::ConnectionError) -> Option<CloseCode> {
        match error {
            quinn::ConnectionError::ApplicationClosed(close) => CloseCode::from_number(close.error_code.into_inner()),
            _ => None,
        }
    }

    #[tokio::test]
    async fn a_connection_ends_with_its_certificate_and_its_peer_is_told_why() {
        let ca = Ca::new("ca");
        let b = ca.node("b.test");
        let (dialled, accepted, _endpoints) = connected(&ca, &b).await;
        let session = b.admit(&domain("a.test"), &accepted).expect("a good certificate");
        // The tests' certificates are good for thirty days from now.
        let day = Duration::from_secs(24 * 60 * 60);
        assert_eq!(b.peers_not_after(), BTreeMap::from([(domain("a.test"), session.not_after())]));
        assert_eq!(b.cut_expired(UnixMillis::now().plus(day * 29)), []);
        let reason = "the certificate has expired".to_owned();
        assert_eq!(b.cut_expired(UnixMillis::now().plus(day * 31)), [Cut { domain: domain("a.test"), reason }]);
        assert_eq!(code(&dialled.closed().await), Some(CloseCode::NotAuthorized));
        assert!(b.peers_not_after().is_empty(), "a closed connection has no days left");
        assert_eq!(b.cut_expired(UnixMillis::now().plus(day * 31)), [], "once is enough");
    }

    #[tokio::test]
    async fn one_peer_is_cut_and_no_other_and_nobody_once_the_session_is_gone() {
        let ca = Ca::new("ca");
        let b = ca.node("b.test");
        let (dialled, accepted, _endpoints) = connected(&ca, &b).await;
        let session = b.admit(&domain("a.test"), &accepted).expect("a good certificate");
        assert_eq!(b.cut_peer(&domain("c.test"), CloseCode::Denied, "denied"), 0);
        drop(session);
        assert_eq!(b.cut_peer(&domain("a.test"), CloseCode::Denied, "denied"), 0);
        assert_eq!((accepted.close_reason(), dialled.close_reason()), (None, None), "letting go of a session closes nothing");
        let _session = b.admit(&domain("a.test"), &accepted).expect("a good certificate");
        assert_eq!(b.cut_peer(&domain("a.test"), CloseCode::Denied, "denied"), 1);
        assert_eq!(code(&dialled.closed().await), Some(CloseCode::Denied));
    }

    #[tokio::test]
    async fn a_connection_is_admitted_as_its_certificate_s_domain_only() {
        let ca = Ca::new("ca");
        let b = ca.node("b.test");
        let (_dialled, accepted, _endpoints) = connected(&ca, &b).await;
        let (code, reason) = b.admit(&domain("c.test"), &accepted).expect_err("another domain");
        assert_eq!((code, reason.as_str()), (CloseCode::WrongDomain, "the certificate does not name c.test"));
    }
}
