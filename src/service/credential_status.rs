//! Which keys are revoked (X1): our own domain's list, for whoever asks and for the hubs that deliver to our users; and the lists
//! of the domains whose leaves are in our groups, which lead to Removes (S12).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::directory::not_understood;
use super::{Failure, Service};
use crate::base::limits::{
    CLIENT_REQUEST_TIMEOUT, CREDENTIAL_STATUS_BYTES_MAX, CREDENTIAL_STATUS_INTERVAL, CREDENTIAL_STATUS_LIFETIME,
    CREDENTIAL_STATUS_RETRY, CREDENTIAL_STATUS_STALE_MAX, PEER_REQUEST_TIMEOUT,
};
use crate::base::rule::on;
use crate::base::{Domain, Fault, UnixMillis};
use crate::identity::RevokedKeys;
use crate::storage::groups::LeavesBy;
use crate::storage::status::{KeepStatus, StatusApplied, StatusPushed, StoredStatus};
use crate::wire::peer::{CredentialStatus, CredentialStatusRequest, PeerRequest, PeerResponse};
use crate::wire::{ErrorCode, Opaque, decode, encode};

/// Tells the worker that there is something to do.
#[derive(Default)]
pub(super) struct StatusWork {
    due: Notify,
    /// Whether a list may have revocations that have not reached our groups.
    unapplied: AtomicBool,
    /// When that became so, in milliseconds since 1970.
    changed_at_ms: AtomicU64,
    /// Whether a hub may lack the newest version of our own list.
    unpushed: AtomicBool,
}

impl StatusWork {
    /// Work as it is found at a start: whatever was left undone.
    pub(super) fn at_start() -> Self {
        let work = Self::default();
        work.unpushed.store(true, Ordering::Release);
        work.list_changed();
        work
    }

    /// There is something to do at once.
    pub(super) fn wake(&self) {
        self.due.notify_one();
    }

    /// A list has revocations that our groups do not know of.
    fn list_changed(&self) {
        self.changed_at_ms.store(UnixMillis::now().0, Ordering::Release);
        self.unapplied.store(true, Ordering::Release);
        self.due.notify_one();
    }
}

/// The hashes of a list; `None` when one has the wrong size.
fn hashes(status: &CredentialStatus) -> Option<Vec<[u8; 32]>> {
    status.revoked.iter().map(|hash| hash[..].try_into().ok()).collect()
}

/// What a stored or received list says.
pub(super) fn revoked_keys(status: &CredentialStatus) -> Result<RevokedKeys, Fault> {
    let hashes = hashes(status).ok_or_else(|| Fault::new("a credential status has a hash of the wrong size"))?;
    Ok(RevokedKeys::new(hashes, UnixMillis(status.next_update_ms)))
}

impl Service {
    /// Our own list, signed now.
    pub(super) async fn own_status(&self) -> Result<CredentialStatus, Fault> {
        let (version, revoked) = self.storage.revoked_keys().await?;
        let status = CredentialStatus {
            domain: self.domain.as_bytes().into(),
            version,
            next_update_ms: UnixMillis::now().plus(CREDENTIAL_STATUS_LIFETIME).0,
            revoked: revoked.iter().map(|hash| Opaque::from(hash.as_slice())).collect(),
            signature: Opaque::default(),
        };
        Ok(status.sign(self.own_roots().issuer().key()))
    }

    /// Our own list has changed: our decisions know it from now on, and the worker tells our groups and the hubs.
    pub(super) async fn own_status_changed(&self) -> Result<(), Fault> {
        let status = self.own_status().await?;
        let keys = revoked_keys(&status)?.good_for(UnixMillis(u64::MAX));
        self.directory.know_status(&self.domain, status.version, keys);
        self.storage.write(KeepStatus { domain: self.domain.clone(), version: status.version, status: encode(&status) }).await?;
        self.status_work.unpushed.store(true, Ordering::Release);
        self.status_work.list_changed();
        Ok(())
    }

    /// Takes the list that `domain`, the authenticated peer, says is its own.
    pub(super) async fn take_status(&self, domain: &Domain, status: &CredentialStatus) -> Result<(), Failure> {
        // DS-201 (X1): a list of revoked keys is of the authenticated domain itself.
        if on("DS-201") && status.domain[..] != *domain.as_bytes() {
            return Err(ErrorCode::WrongOrigin.into());
        }
        self.fetch_roots(domain).await?;
        let is_signed = || {
            let roots = self.directory.roots();
            roots.get(domain).is_some_and(|roots| roots.public_keys().any(|key| status.is_signed_by(key)))
        };
        // By a root that it has introduced since, perhaps (X2).
        let is_signed = is_signed() || self.refresh_roots(domain).await && is_signed();
        // DS-202 (X1): it is signed with the key of one of the domain's AS roots.
        if on("DS-202") && !is_signed {
            self.directory.want_roots(domain);
            return Err(ErrorCode::BadSignature.into());
        }
        let now = UnixMillis::now();
        let keys = revoked_keys(status).map_err(|_| ErrorCode::Malformed)?;
        // However long the list says it is good for, a domain is asked again within our own time; and however short, what it has
        // said just now can be decided on.
        let (soonest, latest) = (now.plus(CREDENTIAL_STATUS_RETRY), now.plus(CREDENTIAL_STATUS_LIFETIME));
        let keys = keys.good_for(UnixMillis(status.next_update_ms).clamp(soonest, latest));
        let kept = KeepStatus { domain: domain.clone(), version: status.version, status: encode(status) };
        let is_new = self.storage.write(kept).await?;
        self.directory.know_status(domain, status.version, keys);
        if is_new {
            tracing::info!(%domain, version = status.version, revoked = status.revoked.len(), "a domain's revoked keys changed");
            self.status_work.list_changed();
        }
        Ok(())
    }

    /// Makes sure that the list of `domain` is fresh enough to let one of its leaves enter. A domain that does not answer is
    /// taken at the word that it gave last, for a while.
    pub(super) async fn fetch_status(&self, domain: &Domain) -> Result<(), Failure> {
        let now = UnixMillis::now();
        if *domain == self.domain || self.directory.revoked().get(domain).is_some_and(|known| known.is_fresh(now)) {
            return Ok(());
        }
        let known = self.directory.known_status(domain);
        let known_version = known.map_or(0, |known| known.version);
        let request = encode(&PeerRequest::CredentialStatus(CredentialStatusRequest { known_version }));
        let deadline = Instant::now() + PEER_REQUEST_TIMEOUT;
        let failure = match self.peers.request(domain, &request, CREDENTIAL_STATUS_BYTES_MAX, deadline).await {
            Ok(answer) => match decode(&answer) {
                Ok(PeerResponse::CredentialStatus(status)) => {
                    self.take_status(domain, &status).await?;
                    if self.directory.revoked().get(domain).is_some_and(|known| known.is_fresh(now)) {
                        return Ok(());
                    }
                    not_understood(domain, "its list of revoked keys is older than one that it gave before")
                }
                // A domain that never had such a list revokes nothing that we could know of.
                Ok(PeerResponse::Error(rejection)) if rejection.code == ErrorCode::Unsupported && known_version == 0 => {
                    let keys = RevokedKeys::new([], now.plus(CREDENTIAL_STATUS_LIFETIME));
                    self.directory.know_status(domain, known_version, keys);
                    return Ok(());
                }
                _ => not_understood(domain, "it answered credential_status with something else"),
            },
            Err(error) => super::route::unreachable(&error).into(),
        };
        match known {
            Some(known) if now < known.good_until.plus(CREDENTIAL_STATUS_STALE_MAX) => {
                tracing::warn!(%domain, "the list of a domain's revoked keys is stale and could not be renewed; it is used on");
                self.directory.use_stale_status(domain, now.plus(CREDENTIAL_STATUS_RETRY));
                Ok(())
            }
            _ => Err(failure),
        }
    }

    /// Applies, passes on and asks for lists until the node stops.
    pub(super) async fn look_after_statuses(self: Arc<Self>) {
        let mut shutdown = self.shutdown.clone();
        let mut interval = tokio::time::interval(CREDENTIAL_STATUS_INTERVAL);
        // What was revoked right before a crash is on disk and nobody was told.
        if let Err(fault) = self.own_status_changed().await {
            tracing::error!("our own revoked keys could not be looked after: {fault}");
        }
        loop {
            tokio::select! {
                _ = interval.tick() => {}
                () = self.status_work.due.notified() => {}
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
            let round = async {
                if let Err(fault) = self.notice_roots().await {
                    tracing::error!("what has become of AS roots could not be read: {fault}");
                }
                if let Err(fault) = self.notice_revocations().await {
                    tracing::error!("our own revoked keys could not be read: {fault}");
                }
                if let Err(fault) = self.apply_statuses().await {
                    self.status_work.unapplied.store(true, Ordering::Release);
                    tracing::error!("revoked keys could not be applied to the groups here: {fault}");
                }
                if let Err(fault) = self.push_status().await {
                    self.status_work.unpushed.store(true, Ordering::Release);
                    tracing::error!("our revoked keys could not be passed on: {fault}");
                }
                self.poll_statuses().await;
                self.poll_roots().await;
                if let Err(fault) = self.sweep_roots().await {
                    tracing::error!("leaves under retired AS roots could not be removed: {fault}");
                }
            };
            tokio::select! {
                () = round => {}
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Issues Removes of the leaves whose keys are revoked (S12). Again and again for as long as a request that was decided
    /// before the list was known may bring such a leaf in.
    async fn apply_statuses(self: &Arc<Self>) -> Result<(), Fault> {
        if !self.status_work.unapplied.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let changed_at = UnixMillis(self.status_work.changed_at_ms.load(Ordering::Acquire));
        let is_last_round = changed_at.plus(CLIENT_REQUEST_TIMEOUT) < UnixMillis::now();
        for stored in self.storage.statuses().await?.into_iter().filter(|stored| !stored.applied) {
            let status: CredentialStatus = decode(&stored.status)
                .map_err(|error| Fault::new(format!("the credential status of {} is not readable: {error}", stored.domain)))?;
            for hash in hashes(&status).unwrap_or_default() {
                self.remove_leaves_by(LeavesBy::ClientKey(&hash)).await?;
                self.remove_leaves_by(LeavesBy::UserKey(&hash)).await?;
            }
            if is_last_round {
                self.storage.write(StatusApplied { domain: stored.domain, version: stored.version }).await?;
            } else {
                self.status_work.unapplied.store(true, Ordering::Release);
            }
        }
        Ok(())
    }

    /// Tells the hubs that deliver to our users, all at once, until each has taken the newest version.
    async fn push_status(self: &Arc<Self>) -> Result<(), Fault> {
        if !self.status_work.unpushed.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let status = self.own_status().await?;
        let known: std::collections::HashMap<Domain, u64> = self.storage.status_pushes().await?.into_iter().collect();
        // A hub that was told nothing yet has nothing to be told, unless our roots have changed: the list is signed with a new one.
        let nothing = self.own_roots().version() == 0;
        let is_behind = |hub: &Domain| known.get(hub).map_or(!nothing || status.version > 0, |known| *known < status.version);
        let behind = |hub: &Domain| *hub != self.domain && is_behind(hub);
        let mut pushes = JoinSet::new();
        for hub in self.storage.hubs().await?.into_iter().filter(behind) {
            let (service, status) = (self.clone(), status.clone());
            pushes.spawn(async move { service.push_to(&hub, status).await });
        }
        while let Some(pushed) = pushes.join_next().await {
            if !matches!(pushed, Ok(true)) {
                self.status_work.unpushed.store(true, Ordering::Release);
            }
        }
        Ok(())
    }

    /// Whether `hub` has taken the list.
    async fn push_to(&self, hub: &Domain, status: CredentialStatus) -> bool {
        let version = status.version;
        let request = encode(&PeerRequest::CredentialStatusPush(status));
        let deadline = Instant::now() + PEER_REQUEST_TIMEOUT;
        let answer = match self.peers.request(hub, &request, CREDENTIAL_STATUS_BYTES_MAX, deadline).await {
            Ok(answer) => decode(&answer),
            Err(error) => {
                tracing::debug!(%hub, "our revoked keys could not be passed on yet: {error}");
                return false;
            }
        };
        match answer {
            Ok(PeerResponse::Done) => {}
            // It will not take them at the next try either; it asks when it needs them.
            Ok(PeerResponse::Error(rejection)) if rejection.code != ErrorCode::Internal => {
                tracing::warn!(%hub, "a hub refuses our revoked keys: {rejection}");
            }
            _ => return false,
        }
        match self.storage.write(StatusPushed { hub: hub.clone(), version }).await {
            Ok(()) => true,
            Err(fault) => {
                tracing::error!(%hub, "what a hub knows could not be noted: {fault}");
                false
            }
        }
    }

    /// Asks for the lists that are no longer fresh.
    async fn poll_statuses(self: &Arc<Self>) {
        let now = UnixMillis::now();
        let mut polls = JoinSet::new();
        for (domain, known) in self.directory.revoked().iter() {
            if *domain != self.domain && !known.is_fresh(now) {
                let (service, domain) = (self.clone(), domain.clone());
                polls.spawn(async move {
                    // A failure is in the log already, and the next round tries again.
                    drop(service.fetch_status(&domain).await);
                });
            }
        }
        while polls.join_next().await.is_some() {}
    }

    /// Answers a peer that asks for our list.
    pub(super) async fn answer_status(&self) -> PeerResponse {
        match self.own_status().await {
            Ok(status) => PeerResponse::CredentialStatus(status),
            Err(fault) => PeerResponse::Error(Failure::from(fault).into_rejection()),
        }
    }

    /// Answers a peer that tells us its list.
    pub(super) async fn answer_status_push(&self, domain: &Domain, status: &CredentialStatus) -> PeerResponse {
        match self.take_status(domain, status).await {
            Ok(()) => {
                // It pushes when its roots have changed, too.
                self.directory.want_roots(domain);
                self.status_work.wake();
                PeerResponse::Done
            }
            Err(failure) => PeerResponse::Error(failure.into_rejection()),
        }
    }
}

/// What is known of other domains' lists at a start.
pub(super) fn known_at_start(stored: Vec<StoredStatus>) -> Result<Vec<(Domain, u64, RevokedKeys)>, Fault> {
    stored
        .into_iter()
        .map(|stored| {
            let status: CredentialStatus = decode(&stored.status)
                .map_err(|error| Fault::new(format!("the credential status of {} is not readable: {error}", stored.domain)))?;
            Ok((stored.domain, stored.version, revoked_keys(&status)?))
        })
        .collect()
}
