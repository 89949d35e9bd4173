//! What an operator says of peers while the node runs: who may federate, who is held, where a peer is, by what it is known, how
//! much it may ask for. On disk before it is in force, and in force before the operator has an answer.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, PoisonError};

use super::Service;
use crate::base::limits::{PEER_OVERRIDES_MAX, PEER_REFUSED_FOR, RATE_KEYS_MAX, REASON_BYTES_MAX};
use crate::base::{Domain, Fault, UnixMillis};
use crate::federation::policy::{Access, decode_override, encode_override};
use crate::federation::{EffectivePolicy, PeerOverride, PeerPolicies};
use crate::storage::Storage;
use crate::storage::peers::KeepPeerOverride;
use crate::transport::CloseCode;

/// Why what an operator has said of a peer does not hold. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It is about this node's own domain.
    #[error("{0} is the domain that this node serves, and no peer")]
    OwnDomain(Domain),
    /// It could not work.
    #[error("{domain} cannot have {why}")]
    Invalid {
        /// Which peer.
        domain: Domain,
        /// What it cannot have.
        why: String,
    },
    /// Something was said of too many peers already.
    #[error("something was said of {PEER_OVERRIDES_MAX} peers already: forget some, or name them in the configuration")]
    TooMany,
    /// This node failed.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// What was said of peers while the node ran, as the database has it.
pub async fn stored_overrides(storage: &Storage) -> Result<BTreeMap<Domain, PeerOverride>, Fault> {
    let stored = storage.peer_overrides().await?;
    stored.into_iter().map(|(domain, said)| Ok((domain.clone(), decode_override(&domain, &said)?))).collect()
}

/// What goes with changing the policies.
#[derive(Default)]
pub(super) struct PolicyWork {
    /// One change at a time: what is read, written and put in force belongs together.
    changing: tokio::sync::Mutex<()>,
    /// The peers of which the log has said that they are turned away.
    told: Mutex<HashSet<Domain>>,
}

impl PolicyWork {
    /// Whether the log has not said yet that `peer` is turned away.
    fn is_new(&self, peer: &Domain) -> bool {
        let mut told = self.told();
        if told.len() >= RATE_KEYS_MAX {
            told.clear();
        }
        told.insert(peer.clone())
    }

    fn forget(&self, peer: &Domain) {
        self.told().remove(peer);
    }

    fn told(&self) -> std::sync::MutexGuard<'_, HashSet<Domain>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service {
    /// Has nothing sent to a peer until [`Service::release_peer`]. What waits for it stays; what it sends is taken.
    pub async fn hold_peer(&self, domain: &Domain, reason: &str) -> Result<(), PolicyError> {
        self.change_policy(domain, |said, _| PeerOverride { hold: Some(true), reason: given(reason), ..said }).await
    }

    /// Ends [`Service::hold_peer`], or a hold of the configuration.
    pub async fn release_peer(&self, domain: &Domain) -> Result<(), PolicyError> {
        self.change_policy(domain, |said, policies| {
            let free = PeerOverride { hold: None, ..said };
            let held = policies.with_override(domain, free.clone()).of(domain).held;
            PeerOverride { hold: held.then_some(false), ..free }
        })
        .await
    }

    /// Does not federate with a peer until [`Service::allow_peer`]: its connections close at once, in both directions, and no
    /// others are made or taken. What waits for it stays.
    pub async fn deny_peer(&self, domain: &Domain, reason: &str) -> Result<(), PolicyError> {
        self.change_policy(domain, |said, _| PeerOverride { access: Some(Access::Deny), reason: given(reason), ..said }).await
    }

    /// Federates with a peer, whatever the configuration says of it. Where only those on a list may, it is on it from now on.
    pub async fn allow_peer(&self, domain: &Domain) -> Result<(), PolicyError> {
        self.change_policy(domain, |said, policies| {
            let free = PeerOverride { access: None, ..said };
            let denied = policies.with_override(domain, free.clone()).denied(domain);
            PeerOverride { access: denied.map(|_| Access::Allow), ..free }
        })
        .await
    }

    /// Replaces all that was said of a peer at run time.
    pub async fn override_peer(&self, domain: &Domain, said: PeerOverride) -> Result<(), PolicyError> {
        self.change_policy(domain, |_, _| said).await
    }

    /// Forgets all that was said of a peer at run time: what the configuration says holds.
    pub async fn forget_override(&self, domain: &Domain) -> Result<(), PolicyError> {
        self.override_peer(domain, PeerOverride::default()).await
    }

    /// All that holds for a peer.
    pub fn peer_policy(&self, domain: &Domain) -> EffectivePolicy {
        self.peers.policies().of(domain)
    }

    /// All that holds for the peers of which the configuration or an operator has said anything, in the order of their names.
    pub fn peer_policies(&self) -> Vec<(Domain, EffectivePolicy)> {
        let policies = self.peers.policies();
        policies.named().into_iter().map(|domain| (domain.clone(), policies.of(domain))).collect()
    }

    /// Forgets what DNS said of one peer, or of all of them, and has the next request find it anew.
    pub fn flush_peers(&self, domain: Option<&Domain>) {
        self.peers.flush(domain);
    }

    /// Has a peer tried at once, whatever its back-off. Whether it was backed off from.
    pub fn retry_peer(&self, domain: &Domain) -> bool {
        self.peers.wake(domain)
    }

    /// Makes, from what was said of a peer at run time, what is said from now on.
    async fn change_policy(
        &self,
        domain: &Domain,
        change: impl FnOnce(PeerOverride, &PeerPolicies) -> PeerOverride,
    ) -> Result<(), PolicyError> {
        if *domain == self.domain {
            return Err(PolicyError::OwnDomain(domain.clone()));
        }
        let _changing = self.policy_work.changing.lock().await;
        let policies = self.peers.policies();
        let before = policies.override_of(domain);
        let mut said = change(before.clone(), &policies);
        if said.access != Some(Access::Deny) && said.hold != Some(true) {
            // It gave the reason of what no longer is.
            said.reason = said.reason.filter(|reason| before.reason.as_ref() != Some(reason));
        }
        said.check().map_err(|why| PolicyError::Invalid { domain: domain.clone(), why })?;
        if said == before {
            return Ok(());
        }
        let next = policies.with_override(domain, said.clone());
        if next.overrides() > PEER_OVERRIDES_MAX {
            return Err(PolicyError::TooMany);
        }
        let text = if said.is_empty() { None } else { Some(encode_override(&said)?) };
        let keep = KeepPeerOverride { domain: domain.clone(), said: text.clone(), now: UnixMillis::now() };
        self.storage.write(keep).await?;
        tracing::info!(peer = %domain, said = text.as_deref().unwrap_or("nothing"), "what is said of a peer has changed");
        self.policy_work.forget(domain);
        let limits_changed = policies.limits(domain) != next.limits(domain);
        self.peers.set_policies(next);
        if limits_changed {
            self.peer_rates.forget(domain);
            self.claims.forget_domain(domain);
        }
        Ok(())
    }

    /// Whether a peer that has said `hello` is let in. Asked when its connection is watched already, so that one that is denied
    /// just then is closed by whoever denies it. An error is what its connection is closed with; the log has it, once for each
    /// peer.
    pub(super) fn let_in(&self, peer: &Domain) -> Result<(), (CloseCode, String)> {
        let policies = self.peers.policies();
        if let Some(denial) = policies.denied(peer) {
            if self.policy_work.is_new(peer) {
                tracing::info!(%peer, "a peer is turned away: {denial}");
            }
            return Err((CloseCode::Denied, format!("{} does not federate with {peer}", self.domain)));
        }
        self.peer_rates.connection(peer, &policies.limits(peer), UnixMillis::now()).map_err(|over| {
            let seconds = over.wait().as_secs() + 1;
            if over.is_refused() {
                self.refuse(peer);
            }
            (CloseCode::OverLimits, format!("too many requests or connections: come back in {seconds} s"))
        })
    }

    /// A peer has gone on although it was told to wait.
    pub(super) fn refuse(&self, peer: &Domain) {
        let reason = "it went on asking although it was told to wait";
        let cut = self.peers.tls().cut_inbound(peer, CloseCode::OverLimits, reason);
        if self.peer_rates.is_newly_refused(peer) {
            let seconds = PEER_REFUSED_FOR.as_secs();
            tracing::warn!(%peer, seconds, connections = cut, "a peer is over its limits and is refused for a while: {reason}");
        }
    }
}

/// An operator's words, cut to what is kept of them; none when there are none.
fn given(reason: &str) -> Option<String> {
    let end = reason.floor_char_boundary(REASON_BYTES_MAX);
    Some(reason[..end].to_owned()).filter(|reason| !reason.is_empty())
}
