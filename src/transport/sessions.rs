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
