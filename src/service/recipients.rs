//! From a fan-out to what storage writes: which local queue each sealed information means, and which domain gets a frame.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::Service;
use super::removals::Rejected;
use crate::base::crypto::sha256;
use crate::base::limits::OPENED_QUEUE_INFORMATION_MAX;
use crate::base::{Domain, UnixMillis};
use crate::ds::{FanOut, Recipient};
use crate::qs::queue::QueueLimits;
use crate::qs::sealed;
use crate::storage::deliveries::{DeliveryWrite, Invite, LocalRecipient};
use crate::wire::qs::{Delivery, QueueBinding, QueueInformation};
use crate::wire::{List, Opaque, encode};

/// A recipient as a lane frame keeps it: the leaf, so that newer queue information can be looked up when the frame is sent.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub(super) struct StoredRecipient {
    /// The member's leaf when the message was accepted.
    pub(super) leaf_index: u32,
    /// Its sealed queue information then.
    pub(super) information: Opaque,
}

/// Opened queue informations by the digest of their sealed octets: opening one costs an HPKE decapsulation. Two generations of
/// a bounded map: when the younger is full it becomes the older one, and what is still used is copied over.
#[derive(Default)]
pub(super) struct OpenedInformations(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashMap<[u8; 32], QueueInformation>,
    old: HashMap<[u8; 32], QueueInformation>,
}

impl OpenedInformations {
    fn look_up(&self, digest: &[u8; 32]) -> Option<QueueInformation> {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = generations.young.get(digest) {
            return Some(known.clone());
        }
        let known = generations.old.remove(digest)?;
        generations.insert(*digest, known.clone());
        Some(known)
    }

    fn keep(&self, digest: [u8; 32], information: QueueInformation) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, information);
    }
}

impl Generations {
    fn insert(&mut self, digest: [u8; 32], information: QueueInformation) {
        if self.young.len() >= OPENED_QUEUE_INFORMATION_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(digest, information);
    }
}

impl Service {
    /// By QS-001 and QS-002, the queue that a sealed information means for messages of the authenticated `hub`; `None` when it cannot
    /// be opened or is not for that hub now.
    pub(super) fn open_recipient(&self, information: &[u8], hub: &Domain, now: UnixMillis) -> Option<LocalRecipient> {
        let opened = self.open_information(information)?;
        if !sealed::may_be_used_by(&opened, hub, now) {
            return None;
        }
        let invite = match &opened.binding {
            QueueBinding::Hub(_) => None,
            QueueBinding::Invite(invite) => Some(Invite {
                invite_id: invite.invite_id,
                last_resort: invite.last_resort != 0,
                expires_at: UnixMillis(invite.expires_at_ms),
            }),
        };
        Some(LocalRecipient { queue_id: opened.queue_id, generation: opened.generation, invite })
    }

    /// What a sealed information opens to, if it does (QS-001). Only successes are kept, so that garbage takes no room.
    pub(super) fn open_information(&self, information: &[u8]) -> Option<QueueInformation> {
        let digest = sha256(information);
        if let Some(known) = self.opened.look_up(&digest) {
            return Some(known);
        }
        let opened = sealed::open(&self.keys.qs, information)?;
        self.opened.keep(digest, opened.clone());
        Some(opened)
    }

    /// Up to where queues here take messages (X4).
    pub(super) fn queue_limits(&self) -> QueueLimits {
        QueueLimits { entries_max: self.limits.queue_entries_max, octets_max: self.limits.queue_bytes_max }
    }

    /// What storage writes for the fan-outs of our own DS, and which leaf each local recipient is.
    pub(super) fn deliveries(&self, fan_outs: &[FanOut], now: UnixMillis) -> (Vec<DeliveryWrite>, Addressed) {
        let (writes, addressed) = fan_outs.iter().map(|fan_out| self.delivery(fan_out, now)).unzip();
        (writes, Addressed(addressed))
    }

    fn delivery(&self, fan_out: &FanOut, now: UnixMillis) -> (DeliveryWrite, LocalLeaves) {
        let mut local = Vec::new();
        let mut leaves = LocalLeaves::default();
        let mut remote: BTreeMap<&Domain, Vec<StoredRecipient>> = BTreeMap::new();
        for Recipient { leaf_index, queue } in &fan_out.recipients {
            if queue.domain == self.domain {
                let leaf =
                    Rejected { group: fan_out.group.clone(), leaf_index: *leaf_index, information: queue.information.clone() };
                match self.open_recipient(&queue.information, &self.domain, now) {
                    Some(recipient) => {
                        local.push(recipient);
                        leaves.opened.push(leaf);
                    }
                    // The draft's invalid_client_queue_information (S14).
                    None => leaves.unopened.push(leaf),
                }
            } else {
                let information = queue.information.as_slice().into();
                remote.entry(&queue.domain).or_default().push(StoredRecipient { leaf_index: *leaf_index, information });
            }
        }
        let write = DeliveryWrite {
            hub: self.domain.clone(),
            group_id: fan_out.group.to_string(),
            epoch: fan_out.epoch,
            delivery: encode(&fan_out.delivery),
            tells_loss: matches!(fan_out.delivery, Delivery::MessagesLost | Delivery::Reset),
            now,
            local,
            limits: self.queue_limits(),
            remote: remote.into_iter().map(|(domain, recipients)| (domain.clone(), encode(&List::from(recipients)))).collect(),
        };
        (write, leaves)
    }

    /// Wakes whoever waits for what was just written.
    pub(super) fn wake_recipients(self: &std::sync::Arc<Self>, deliveries: &[Wake]) {
        for delivery in deliveries {
            self.waiters.wake(delivery.queues.iter().copied());
            for domain in &delivery.domains {
                self.wake_lane(domain);
            }
        }
    }
}

/// The leaves that the local recipients of some deliveries are, for what their queues say to it.
pub(super) struct Addressed(Vec<LocalLeaves>);

#[derive(Default)]
struct LocalLeaves {
    /// In the order of the delivery's local recipients.
    opened: Vec<Rejected>,
    /// Those whose information cannot be opened, or is not for us.
    unopened: Vec<Rejected>,
}

impl Addressed {
    /// The leaves whose queues did not take their delivery (S12): `taken` is what storage says, per delivery and local recipient.
    pub(super) fn rejected(self, taken: &[Vec<bool>]) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        for (leaves, taken) in self.0.into_iter().zip(taken) {
            rejected.extend(leaves.unopened);
            rejected.extend(leaves.opened.into_iter().zip(taken).filter(|(_, taken)| !**taken).map(|(leaf, _)| leaf));
        }
        rejected
    }
}

/// Whom one delivery wakes.
pub(super) struct Wake {
    queues: Vec<crate::base::ids::QueueId>,
    domains: Vec<Domain>,
}

impl Wake {
    /// Whom `delivery` will wake once it is on disk.
    pub(super) fn of(delivery: &DeliveryWrite) -> Self {
        Self {
            queues: delivery.local.iter().map(|recipient| recipient.queue_id).collect(),
            domains: delivery.remote.iter().map(|(domain, _)| domain.clone()).collect(),
        }
    }
}
