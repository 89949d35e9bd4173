//! What a DS keeps of a group besides its tree: enough to accept an application message without loading the tree (S11).

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::base::fault::{Context as _, Fault};
use crate::base::{ClientUri, Domain, GroupUri, UserUri};

/// The format of member and head records; every record begins with it.
const RECORD_FORMAT: u8 = 1;

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
    /// is as large as it may be. Costs nothing to ask.
    pub fn octets(&self) -> usize {
        const MEMBER: usize = 1_024;
        const JOINER: usize = 128;
        const HEAD: usize = 24 * 1_024;
        HEAD.min(1_024 + 256 * (self.head.recent_commits.len() + self.head.former_keys.len()))
            + self.head.joiners.len() * JOINER
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
