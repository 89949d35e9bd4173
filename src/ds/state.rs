//! What a DS keeps of a group besides its tree: enough to accept an application message without loading the tree (S11).

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::base::fault::{Context as _, Fault};
use crate::base::{ClientUri, Domain, GroupUri, UnixMillis, UserUri};
use crate::identity::key_hash;
use crate::mls::JoinPolicy;
use crate::wire::{List, Opaque};

/// The format of member and head records; every record begins with it.
const RECORD_FORMAT: u8 = 2;

/// A group's small record, in memory.
#[derive(Clone, Debug)]
pub struct GroupState {
    /// The group.
    pub uri: GroupUri,
    /// Counts every change; a write that was decided on an older one does not happen.
    pub revision: u64,
    /// Epoch, joiners, recent Commits.
    pub head: Head,
    /// By leaf index.
    pub members: BTreeMap<u32, Member>,
}

/// The part of the small record that is not members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The current epoch.
    pub epoch: u64,
    /// Who was added and has not been heard of since.
    pub joiners: Vec<Joiner>,
    /// The last accepted Commits, oldest first.
    pub recent_commits: VecDeque<RecentCommit>,
    /// The last keys that Commits removed or replaced, oldest first.
    pub former_keys: VecDeque<FormerKey>,
    /// Who may come in by an external Commit: what the GroupContext says.
    pub join_policy: JoinPolicy,
    /// The place of this DS among the GroupContext's external_senders (S12).
    pub external_sender_index: u32,
    /// The leaves that the DS wants removed; they outlive the epoch until a Commit removes the leaf (S12).
    pub removals: Vec<Removal>,
    /// The proposals that were fanned out in the current epoch, in order (S11).
    pub proposals: Vec<PendingProposal>,
    /// When the group was deleted or closed, in milliseconds since 1970; it then answers `group_deleted` (S7).
    pub closed_at_ms: Option<u64>,
}

/// A leaf that the DS wants removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// The leaf.
    pub leaf_index: u32,
    /// Why.
    pub cause: Cause,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
}

/// Why the DS wants a leaf removed (S12). The order of the variants is that of their numbers in records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// Its user leaves.
    Left,
    /// It was invited and declined.
    Declined,
    /// Its key is revoked.
    ClientRevoked,
    /// Its user's key is revoked, or the user deleted.
    UserDeleted,
    /// It was silent for too long.
    Inactive,
    /// Its QS rejected its current queue information.
    QueueRejected,
    /// The same client joined anew, with another leaf (X6).
    Replaced,
    /// Its credential or the lifetime of its leaf ended.
    Expired,
    /// Its domain has taken nothing of the group for too long.
    Undeliverable,
}

impl Cause {
    /// Whether the Remove is taken back when the client shows up with what was missed.
    pub fn ends_on_return(self) -> bool {
        matches!(self, Self::Inactive | Self::QueueRejected | Self::Undeliverable)
    }

    /// How final it is: a cause gives way to one that is more so.
    pub(super) fn finality(self) -> u8 {
        2 - u8::from(self.ends_on_return()) - u8::from(self.admits_resync())
    }

    /// Whether the leaf's client may come back by an external Commit that takes the leaf out.
    pub fn admits_resync(self) -> bool {
        matches!(self, Self::Inactive | Self::QueueRejected | Self::Replaced | Self::Expired | Self::Undeliverable)
    }
}

/// A proposal of the current epoch that was fanned out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingProposal {
    /// Its MLSMessage.
    pub message: Vec<u8>,
    /// Whose it is.
    pub by: ProposedBy,
}

/// Who proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProposedBy {
    /// This DS proposed to remove a leaf.
    Ds {
        /// The leaf.
        target: u32,
        /// It need no longer be committed, but still may be.
        withdrawn: bool,
    },
    /// A member proposed an Update of its leaf.
    Member {
        /// The leaf.
        leaf_index: u32,
    },
}

/// A key that a leaf had before a Commit removed the leaf or replaced the key. Who signed with it may not have learned yet what
/// came of that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerKey {
    /// The leaf.
    pub leaf_index: u32,
    /// Ed25519, 32 octets.
    pub key: Vec<u8>,
    /// Whose leaf it was.
    pub client: ClientUri,
}

/// An accepted Commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentCommit {
    /// The epoch it was made in.
    pub from_epoch: u64,
    /// SHA-256 of its MLSMessage.
    pub hash: [u8; 32],
}

/// A member that was added by a Welcome and may still need the past state of the epoch it was added in (S11).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joiner {
    /// KeyPackageRef that it was added with.
    pub key_package_ref: Vec<u8>,
    /// The epoch that its Welcome begins.
    pub epoch: u64,
    /// Its leaf.
    pub leaf_index: u32,
    /// The end of its KeyPackage's lifetime: its past state is kept no longer (S11).
    pub not_after_ms: u64,
}

/// One leaf of the group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The leaf's signature key (Ed25519, 32 octets).
    pub signature_key: Vec<u8>,
    /// Whose leaf it is; never changes while the leaf stays (R8).
    pub client: ClientUri,
    /// Where its messages go.
    pub queue: QueueAddress,
    /// The epoch in which it became a member.
    pub joined_epoch: u64,
    /// The key of its user, as [`key_hash`] names it.
    pub user_key_hash: [u8; 32],
    /// When an accepted request of it came last, in milliseconds since 1970; coarse, see [`Member::heard`].
    pub heard_at_ms: u64,
    /// The end of its credential and of its leaf's lifetime, in milliseconds since 1970. Then comes a Remove.
    pub not_after_ms: u64,
}

impl Member {
    /// The hash of the leaf's signature key, as `credential_status` names keys (X1).
    pub fn client_key_hash(&self) -> [u8; 32] {
        key_hash(&self.signature_key)
    }

    /// The member, heard of now. `None` when that is hardly news: a time is written anew only when a sixteenth of the inactivity
    /// that is allowed has passed, so that a message as a rule changes no state.
    pub fn heard(&self, now: UnixMillis, inactive_seconds_max: u64) -> Option<Self> {
        let step_ms = inactive_seconds_max.saturating_mul(1000) / 16;
        if now.0.saturating_sub(self.heard_at_ms) <= step_ms {
            return None;
        }
        Some(Self { heard_at_ms: now.0, ..self.clone() })
    }
}

/// A member's ClientQueueConfig (S15).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct QueueAddress {
    /// The domain of the QS.
    pub domain: Domain,
    /// Sealed client queue information.
    pub information: Vec<u8>,
}

impl GroupState {
    /// The hash of the Commit that ended `epoch`, if it is still remembered.
    pub fn commit_hash(&self, epoch: u64) -> Option<[u8; 32]> {
        self.head.recent_commits.iter().find(|commit| commit.from_epoch == epoch).map(|commit| commit.hash)
    }

    /// Whether any leaf is of `user`.
    pub fn has_user(&self, user: &UserUri) -> bool {
        self.members.values().any(|member| member.client.user() == user)
    }

    /// Whether the DS wants this leaf removed.
    pub fn is_target(&self, leaf_index: u32) -> bool {
        self.head.removal(leaf_index).is_some()
    }

    /// The head after `leaf_index` has been heard of as a member: it needs no past state any more. `None` when that is no news.
    pub fn head_without_joiner(&self, leaf_index: u32) -> Option<Head> {
        if !self.head.joiners.iter().any(|joiner| joiner.leaf_index == leaf_index) {
            return None;
        }
        let mut head = self.head.clone();
        head.joiners.retain(|joiner| joiner.leaf_index != leaf_index);
        Some(head)
    }

    /// About how much memory the record takes, in octets: a little more than measured for members whose sealed queue information
    /// is as large as it may be. Costs next to nothing to ask.
    pub fn octets(&self) -> usize {
        const MEMBER: usize = 1_024;
        const JOINER: usize = 128;
        const HEAD: usize = 24 * 1_024;
        HEAD.min(1_024 + 256 * (self.head.recent_commits.len() + self.head.former_keys.len()))
            + self.head.joiners.len() * JOINER
            + self.head.proposals.iter().map(|proposal| 128 + proposal.message.len()).sum::<usize>()
            + self.members.len() * MEMBER
    }

    /// Applies a change that is on disk.
    pub fn apply(&mut self, change: super::StateChange) {
        for leaf_index in &change.removed {
            self.members.remove(leaf_index);
        }
        self.members.extend(change.set);
        self.head = change.head;
        self.revision += 1;
    }
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Fault> {
    let mut record = vec![RECORD_FORMAT];
    record.extend(postcard::to_stdvec(value).context("could not encode a group record")?);
    Ok(record)
}

fn decode<'a, T: Deserialize<'a>>(record: &'a [u8]) -> Result<T, Fault> {
    match record.split_first() {
        Some((&RECORD_FORMAT, rest)) => postcard::from_bytes(rest).context("a group record cannot be read"),
        Some((format, _)) => Err(Fault::new(format!(
            "a group record has format {format}, this version reads format {RECORD_FORMAT}: run the version that wrote it"
        ))),
        None => Err(Fault::new("a group record is empty")),
    }
}

impl Head {
    /// The wanted removal of this leaf.
    pub fn removal(&self, leaf_index: u32) -> Option<&Removal> {
        self.removals.iter().find(|removal| removal.leaf_index == leaf_index)
    }

    /// The DS's Removes that a Commit has to cover, by leaf (S13).
    pub fn pending_removes(&self) -> impl Iterator<Item = (u32, &[u8])> {
        self.proposals.iter().filter_map(|proposal| match proposal.by {
            ProposedBy::Ds { target, withdrawn: false } => Some((target, proposal.message.as_slice())),
            _ => None,
        })
    }

    /// All proposals of the epoch, as they were sent.
    pub fn proposal_messages(&self) -> List<Opaque> {
        self.proposals.iter().map(|proposal| Opaque::from(proposal.message.as_slice())).collect()
    }

    /// As a record for storage, opaque to it (S17).
    pub fn to_record(&self) -> Result<Vec<u8>, Fault> {
        encode(self)
    }

    /// Reads a record back.
    pub fn from_record(record: &[u8]) -> Result<Self, Fault> {
        decode(record)
    }
}

impl Member {
    /// As a record for storage, opaque to it (S17).
    pub fn to_record(&self) -> Result<Vec<u8>, Fault> {
        encode(self)
    }

    /// Reads a record back.
    pub fn from_record(record: &[u8]) -> Result<Self, Fault> {
        decode(record)
    }
}
