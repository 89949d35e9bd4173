//! What domains publish: ours, and others' as pinned at first sight (*Credentials* in `docs/protocol.md`).

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;

use super::credential_status::known_at_start;
use super::roots::{OwnRoots, check_first_sight, to_pin};
use super::{Failure, NodeKeys, Service};
use crate::base::limits::{
    AS_ROOTS_INTERVAL, AS_ROOTS_MAX, AS_ROOTS_WAIT, DOMAIN_INFO_BYTES_MAX, PEER_REQUEST_TIMEOUT, UNKNOWN_DOMAINS_MAX,
};
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
    own: ArcSwap<Own>,
    /// Our DS's encoded ExternalSender: what groups have agreed on stays when AS roots change.
    external_sender: Vec<u8>,
    own_changed: watch::Sender<u64>,
    infos: Mutex<HashMap<Domain, DomainInfo>>,
    roots: ArcSwap<HashMap<Domain, Arc<AsRoots>>>,
    revoked: ArcSwap<HashMap<Domain, Arc<RevokedKeys>>>,
    statuses: Mutex<HashMap<Domain, KnownStatus>>,
    /// Domains that gave a sign that their roots may have changed.
    roots_wanted: Mutex<HashSet<Domain>>,
    /// When an operator last approved roots, as far as it is known here; in milliseconds since 1970.
    approved_at_ms: AtomicU64,
}

/// Our own domain.
struct Own {
    roots: Arc<OwnRoots>,
    info: DomainInfo,
}

impl Own {
    fn new(info: DomainInfo, roots: OwnRoots) -> Self {
        let as_roots = roots.certificates().into_iter().map(Opaque::from).collect();
        let root_statements = roots.statements().to_vec().into();
        Self { roots: Arc::new(roots), info: DomainInfo { as_roots, root_statements, ..info } }
    }
}

impl Directory {
    /// Our own information, and what was pinned before.
    pub(super) async fn load(domain: &Domain, keys: &NodeKeys, storage: &Storage) -> Result<Self, Fault> {
        let external_sender = encode_external_sender(keys.ds.public(), &keys.ds_chain)?;
        let info = DomainInfo {
            domain: domain.as_bytes().into(),
            as_roots: List::default(),
            qs_keys: keys.qs.iter().map(|key| key.published()).collect(),
            external_sender: external_sender.as_slice().into(),
            server_time_ms: 0,
            root_statements: List::default(),
        };
        let own = Own::new(info, keys.as_roots.clone());
        let (infos, mut roots) = pins(storage).await?;
        roots.insert(domain.clone(), Arc::new(pins_of(domain, &own.info)?));
        let (_, approved_at) = storage.roots_version().await?;
        let (mut revoked, mut statuses) = (HashMap::new(), HashMap::new());
        for (of, version, keys) in known_at_start(storage.statuses().await?)? {
            statuses.insert(of.clone(), KnownStatus { version, good_until: keys.good_until() });
            revoked.insert(of, Arc::new(keys));
        }
        let (_, own_revoked) = storage.revoked_keys().await?;
        revoked.insert(domain.clone(), Arc::new(RevokedKeys::new(own_revoked, UnixMillis(u64::MAX))));
        Ok(Self {
            own_changed: watch::Sender::new(own.roots.version()),
            own: ArcSwap::from_pointee(own),
            external_sender,
            infos: Mutex::new(infos),
            roots: ArcSwap::from_pointee(roots),
            revoked: ArcSwap::from_pointee(revoked),
            statuses: Mutex::new(statuses),
            roots_wanted: Mutex::default(),
            approved_at_ms: AtomicU64::new(approved_at.0),
        })
    }

    /// Our own roots.
    pub(super) fn own_roots(&self) -> Arc<OwnRoots> {
        self.own.load().roots.clone()
    }

    /// Told when they have changed.
    pub(super) fn own_roots_changed(&self) -> watch::Receiver<u64> {
        self.own_changed.subscribe()
    }

    /// From now on these are our own roots: what is published, issued and accepted.
    pub(super) fn set_own_roots(&self, domain: &Domain, roots: OwnRoots) -> Result<(), Fault> {
        let own = Own::new(self.own.load().info.clone(), roots);
        let (version, as_roots) = (own.roots.version(), pins_of(domain, &own.info)?);
        self.own.store(Arc::new(own));
        self.set_roots(domain, as_roots);
        self.own_changed.send_replace(version);
        Ok(())
    }

    /// When an operator last approved roots, as far as it is known here.
    pub(super) fn approved_at(&self) -> UnixMillis {
        UnixMillis(self.approved_at_ms.load(Ordering::Acquire))
    }

    /// Reads anew what is pinned: an operator has approved roots.
    pub(super) async fn reload_pins(&self, storage: &Storage, approved_at: UnixMillis) -> Result<(), Fault> {
        let (infos, roots) = pins(storage).await?;
        let mut known = self.infos.lock().unwrap_or_else(PoisonError::into_inner);
        for (domain, info) in infos {
            if known.get(&domain) != Some(&info)
                && let Some(roots) = roots.get(&domain)
            {
                self.set_roots(&domain, AsRoots::clone(roots));
                known.insert(domain, info);
            }
        }
        self.approved_at_ms.store(approved_at.0, Ordering::Release);
        Ok(())
    }

    /// What is pinned of `domain` from now on.
    pub(super) fn set_pin(&self, domain: &Domain, info: DomainInfo, roots: AsRoots) {
        let mut infos = self.infos.lock().unwrap_or_else(PoisonError::into_inner);
        infos.insert(domain.clone(), info);
        self.set_roots(domain, roots);
    }

    fn set_roots(&self, domain: &Domain, roots: AsRoots) {
        let roots = Arc::new(roots);
        self.roots.rcu(|known| {
            let mut known = HashMap::clone(known);
            known.insert(domain.clone(), roots.clone());
            known
        });
    }

    /// Whether `domain` may be asked now whether it has other roots than those pinned. Who is told so asks: it counts as asked.
    pub(super) fn may_ask_for_roots(&self, domain: &Domain, now: UnixMillis) -> bool {
        // Held so that of several who want to ask at the same time one does.
        let _infos = self.infos.lock().unwrap_or_else(PoisonError::into_inner);
        match self.roots().get(domain) {
            Some(known) if known.may_be_outdated(now) => {
                self.roots_wanted.lock().unwrap_or_else(PoisonError::into_inner).remove(domain);
                self.set_roots(domain, AsRoots::clone(known).asked_at(now));
                true
            }
            _ => false,
        }
    }

    /// `domain` is to be asked soon: something it said is by a root that is new, or it has just said something.
    pub(super) fn want_roots(&self, domain: &Domain) {
        self.roots_wanted.lock().unwrap_or_else(PoisonError::into_inner).insert(domain.clone());
    }

    /// The domains that are to be asked for their roots now.
    pub(super) fn roots_due(&self, now: UnixMillis) -> Vec<Domain> {
        let wanted = self.roots_wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let roots = self.roots();
        let is_due = |domain: &Domain, roots: &AsRoots| {
            roots.may_be_outdated(now) && (wanted.contains(domain) || roots.were_asked_before(now.minus(AS_ROOTS_INTERVAL)))
        };
        roots.iter().filter(|(domain, roots)| is_due(domain, roots)).map(|(domain, _)| domain.clone()).collect()
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
        DomainInfo { server_time_ms: now.0, ..self.own.load().info.clone() }
    }

    /// Our DS's encoded ExternalSender.
    pub(super) fn external_sender(&self) -> &[u8] {
        &self.external_sender
    }

    /// What is pinned of `domain`.
    pub(super) fn pinned(&self, domain: &Domain) -> Option<DomainInfo> {
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

/// What is pinned of each domain. Nobody was asked since the start.
async fn pins(storage: &Storage) -> Result<(HashMap<Domain, DomainInfo>, HashMap<Domain, Arc<AsRoots>>), Fault> {
    let (mut infos, mut roots) = (HashMap::new(), HashMap::new());
    for (pinned, info) in storage.pinned_domains().await? {
        let info: DomainInfo = decode(&info).with_context(|| format!("what is pinned of {pinned} is not readable"))?;
        roots.insert(pinned.clone(), Arc::new(pins_of(&pinned, &info)?.asked_at(UnixMillis(0))));
        infos.insert(pinned, info);
    }
    Ok((infos, roots))
}

/// The roots in a domain's information.
pub(super) fn pins_of(domain: &Domain, info: &DomainInfo) -> Result<AsRoots, Fault> {
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
        // Whoever asks about a domain that is pinned doubts that its roots are still those. What is pinned is answered in any case.
        let _ = tokio::time::timeout(AS_ROOTS_WAIT, self.refresh_roots(&domain)).await;
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
        // Asked for although everything is known: what was to be decided leads to a root that is not.
        let is_known = self.directory.revoked().get(domain).is_some_and(|known| known.is_fresh(UnixMillis::now()))
            && self.directory.roots().contains_key(domain);
        if is_known {
            self.refresh_roots(domain).await;
        }
        self.fetch_roots(domain).await?;
        self.fetch_status(domain).await
    }

    /// As [`Service::fetch_domains`], for what is not known or no longer fresh only.
    pub(super) async fn know_domain(&self, domain: &Domain) -> Result<(), Failure> {
        self.fetch_roots(domain).await?;
        self.fetch_status(domain).await
    }

    /// Makes sure that the AS roots of `domain` are pinned.
    pub(super) async fn fetch_roots(&self, domain: &Domain) -> Result<(), Failure> {
        if *domain == self.domain || self.directory.roots().contains_key(domain) {
            return Ok(());
        }
        let info = self.ask_for_info(domain).await?;
        let now = UnixMillis::now();
        let roots = pins_of(domain, &info).map_err(|fault| not_understood(domain, &fault.to_string()))?.asked_at(now);
        check_first_sight(domain, &info)?;
        let info = to_pin(info);
        self.storage.write(PinDomain { domain: domain.clone(), info: encode(&info), now }).await?;
        tracing::info!(%domain, "pinned the AS roots of a domain at first sight");
        self.directory.pin(domain, info, roots);
        Ok(())
    }

    /// What `domain` publishes now, as its own node says.
    pub(super) async fn ask_for_info(&self, domain: &Domain) -> Result<DomainInfo, Failure> {
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
        Ok(info)
    }
}
