//! What domains publish: ours, and others' as pinned at first sight (*Credentials* in `docs/protocol.md`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::credential_status::known_at_start;
use super::{Failure, NodeKeys, Service};
use crate::base::limits::{AS_ROOTS_MAX, DOMAIN_INFO_BYTES_MAX, PEER_REQUEST_TIMEOUT, UNKNOWN_DOMAINS_MAX};
use crate::base::{Context as _, Domain, Fault, UnixMillis};
use crate::identity::{AsRoots, RevokedKeys};
use crate::mls::external_sender::encode_external_sender;
use crate::storage::Storage;
use crate::storage::accounts::PinDomain;
use crate::wire::error::{Sent, UnreachableReason};
use crate::wire::info::{DomainInfo, InfoRequest};
use crate::wire::peer::{PeerRequest, PeerResponse};
use crate::wire::{ErrorCode, List, Opaque, Rejection, Reply, decode, encode};

/// What is known of domains.
pub(super) struct Directory {
    own: DomainInfo,
    infos: Mutex<HashMap<Domain, DomainInfo>>,
    roots: ArcSwap<HashMap<Domain, Arc<AsRoots>>>,
    revoked: ArcSwap<HashMap<Domain, Arc<RevokedKeys>>>,
    statuses: Mutex<HashMap<Domain, KnownStatus>>,
}

impl Directory {
    /// Our own information, and what was pinned before.
    pub(super) async fn load(domain: &Domain, keys: &NodeKeys, storage: &Storage) -> Result<Self, Fault> {
        let own = DomainInfo {
            domain: domain.as_bytes().into(),
            as_roots: vec![Opaque::from(keys.as_root.certificate())].into(),
            qs_keys: keys.qs.iter().map(|key| key.published()).collect(),
            external_sender: encode_external_sender(keys.ds.public(), &keys.ds_chain)?.into(),
            server_time_ms: 0,
        };
        let mut infos = HashMap::new();
        let mut roots = HashMap::from([(domain.clone(), Arc::new(as_roots(domain, &own)?))]);
        for (pinned, info) in storage.pinned_domains().await? {
            let info: DomainInfo = decode(&info).with_context(|| format!("what is pinned of {pinned} is not readable"))?;
            roots.insert(pinned.clone(), Arc::new(as_roots(&pinned, &info)?));
            infos.insert(pinned, info);
        }
        let (mut revoked, mut statuses) = (HashMap::new(), HashMap::new());
        for (of, version, keys) in known_at_start(storage.statuses().await?)? {
            statuses.insert(of.clone(), KnownStatus { version, good_until: keys.good_until() });
            revoked.insert(of, Arc::new(keys));
        }
        let (_, own_revoked) = storage.revoked_keys().await?;
        revoked.insert(domain.clone(), Arc::new(RevokedKeys::new(own_revoked, UnixMillis(u64::MAX))));
        Ok(Self {
            own,
            infos: Mutex::new(infos),
            roots: ArcSwap::from_pointee(roots),
            revoked: ArcSwap::from_pointee(revoked),
            statuses: Mutex::new(statuses),
        })
    }

    /// The AS roots that are pinned so far.
    pub(super) fn roots(&self) -> Arc<HashMap<Domain, Arc<AsRoots>>> {
        self.roots.load_full()
    }

    /// The keys that are known to be revoked (X1).
    pub(super) fn revoked(&self) -> Arc<HashMap<Domain, Arc<RevokedKeys>>> {
        self.revoked.load_full()
    }

    /// Which list of a domain's is known.
    pub(super) fn known_status(&self, domain: &Domain) -> Option<KnownStatus> {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner).get(domain).copied()
    }

    /// From now on decisions know this list of `domain`'s, unless a newer one is known.
    pub(super) fn know_status(&self, domain: &Domain, version: u64, keys: RevokedKeys) {
        let mut statuses = self.statuses.lock().unwrap_or_else(PoisonError::into_inner);
        if statuses.get(domain).is_some_and(|known| known.version > version) {
            return;
        }
        statuses.insert(domain.clone(), KnownStatus { version, good_until: keys.good_until() });
        self.set_revoked(domain, keys);
    }

    /// The list of `domain` that is known is used for longer than it is good for.
    pub(super) fn use_stale_status(&self, domain: &Domain, until: UnixMillis) {
        let _statuses = self.statuses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = self.revoked().get(domain) {
            self.set_revoked(domain, known.good_for(until));
        }
    }

    fn set_revoked(&self, domain: &Domain, keys: RevokedKeys) {
        let keys = Arc::new(keys);
        self.revoked.rcu(|known| {
            let mut known = HashMap::clone(known);
            known.insert(domain.clone(), keys.clone());
            known
        });
    }

    /// Our own information, with the time.
    pub(super) fn own(&self, now: UnixMillis) -> DomainInfo {
        DomainInfo { server_time_ms: now.0, ..self.own.clone() }
    }

    /// Our DS's encoded ExternalSender.
    pub(super) fn external_sender(&self) -> &[u8] {
        &self.own.external_sender
    }

    fn pinned(&self, domain: &Domain) -> Option<DomainInfo> {
        self.infos.lock().unwrap_or_else(PoisonError::into_inner).get(domain).cloned()
    }

    fn pin(&self, domain: &Domain, info: DomainInfo, roots: AsRoots) {
        self.infos.lock().unwrap_or_else(PoisonError::into_inner).entry(domain.clone()).or_insert(info);
        let roots = Arc::new(roots);
        self.roots.rcu(|known| {
            let mut known = HashMap::clone(known);
            known.entry(domain.clone()).or_insert_with(|| roots.clone());
            known
        });
    }
}

/// Which list of revoked keys a domain gave last.
#[derive(Clone, Copy, Debug)]
pub(super) struct KnownStatus {
    /// Its version.
    pub(super) version: u64,
    /// How long it was good for.
    pub(super) good_until: UnixMillis,
}

/// The other domain's fault: our client learns that it cannot be dealt with, our operator why.
pub(super) fn not_understood(domain: &Domain, why: &str) -> Failure {
    tracing::warn!(%domain, "a domain's information is of no use: {why}");
    Rejection::unreachable(UnreachableReason::Denied, Sent::NotSent).into()
}

fn as_roots(domain: &Domain, info: &DomainInfo) -> Result<AsRoots, Fault> {
    if info.as_roots.len() > AS_ROOTS_MAX {
        return Err(Fault::new(format!("{domain} publishes more than {AS_ROOTS_MAX} AS roots")));
    }
    let certificates = info.as_roots.iter().map(|root| root.to_vec()).collect();
    AsRoots::new(domain.clone(), certificates).with_context(|| format!("the AS roots of {domain} are not usable"))
}

impl Service {
    /// `info`: our own, or what is pinned or fetched now of another domain.
    pub(super) async fn info(&self, request: &InfoRequest) -> Result<Reply, Failure> {
        let domain = Domain::from_bytes(&request.domain).map_err(|_| ErrorCode::Malformed)?;
        let now = UnixMillis::now();
        if domain == self.domain {
            return Ok(Reply::DomainInfo(self.directory.own(now)));
        }
        self.fetch_roots(&domain).await?;
        let info = self.directory.pinned(&domain).context("a domain that was just pinned is not there")?;
        Ok(Reply::DomainInfo(DomainInfo { server_time_ms: now.0, ..info }))
    }

    /// The answer to a peer's `domain_info`.
    pub(super) fn own_info(&self) -> DomainInfo {
        self.directory.own(UnixMillis::now())
    }

    /// Makes sure that the AS roots of these domains are pinned and that it is known which of their keys are revoked, asking the
    /// domains themselves.
    pub(super) async fn fetch_domains(&self, domains: &[Domain]) -> Result<(), Failure> {
        if domains.len() > UNKNOWN_DOMAINS_MAX {
            return Err(ErrorCode::TooLarge.into());
        }
        // All at once: a request waits for the slowest of them, not for their sum.
        let mut fetching: Vec<_> = domains.iter().map(|domain| Box::pin(self.fetch_domain(domain))).collect();
        std::future::poll_fn(|context| {
            let mut index = 0;
            while let Some(fetch) = fetching.get_mut(index) {
                match fetch.as_mut().poll(context) {
                    std::task::Poll::Ready(Ok(())) => drop(fetching.swap_remove(index)),
                    std::task::Poll::Ready(Err(failure)) => return std::task::Poll::Ready(Err(failure)),
                    std::task::Poll::Pending => index += 1,
                }
            }
            if fetching.is_empty() { std::task::Poll::Ready(Ok(())) } else { std::task::Poll::Pending }
        })
        .await
    }

    /// As [`Service::fetch_domains`], for one.
    async fn fetch_domain(&self, domain: &Domain) -> Result<(), Failure> {
        self.fetch_roots(domain).await?;
        self.fetch_status(domain).await
    }

    /// Makes sure that the AS roots of `domain` are pinned.
    pub(super) async fn fetch_roots(&self, domain: &Domain) -> Result<(), Failure> {
        if *domain == self.domain || self.directory.roots().contains_key(domain) {
            return Ok(());
        }
        let request = encode(&PeerRequest::DomainInfo);
        let deadline = Instant::now() + PEER_REQUEST_TIMEOUT;
        let answer = self
            .peers
            .request(domain, &request, DOMAIN_INFO_BYTES_MAX, deadline)
            .await
            .map_err(|error| super::route::unreachable(&error))?;
        let Ok(PeerResponse::DomainInfo(info)) = decode(&answer) else {
            return Err(not_understood(domain, "it answered domain_info with something else"));
        };
        if info.domain[..] != *domain.as_bytes() {
            return Err(not_understood(domain, "it answered domain_info for another domain"));
        }
        let roots = as_roots(domain, &info).map_err(|fault| not_understood(domain, &fault.to_string()))?;
        let info = DomainInfo { server_time_ms: 0, qs_keys: List::default(), ..info };
        self.storage.write(PinDomain { domain: domain.clone(), info: encode(&info), now: UnixMillis::now() }).await?;
        tracing::info!(%domain, "pinned the AS roots of a domain at first sight");
        self.directory.pin(domain, info, roots);
        Ok(())
    }
}
