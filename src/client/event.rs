//! [`Event`]: what a client tells its user.

use crate::base::{ClientUri, GroupUri};

/// Something that came through the client's queue, or that one of its own Commits did. Each is handed out once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// This client became a member.
    Joined {
        /// The group.
        group: GroupUri,
        /// Its epoch.
        epoch: u64,
    },
    /// This client was removed.
    Left {
        /// The group.
        group: GroupUri,
        /// The epoch that began without it.
        epoch: u64,
    },
    /// The group is no more.
    Deleted {
        /// The group.
        group: GroupUri,
    },
    /// This client could not follow the group any more and entered it anew. What was sent in between is lost to it.
    Resynced {
        /// The group.
        group: GroupUri,
        /// The epoch that began with it.
        epoch: u64,
    },
    /// A message for people.
    Message {
        /// The group.
        group: GroupUri,
        /// The epoch it was encrypted in.
        epoch: u64,
        /// Its place in the queue.
        sequence: u64,
        /// Who sent it.
        sender: ClientUri,
        /// What it says.
        text: String,
        /// When the own QS took it, in milliseconds since 1970.
        at_ms: u64,
    },
    /// A Commit was applied.
    EpochChanged {
        /// The group.
        group: GroupUri,
        /// The epoch that began.
        epoch: u64,
        /// The committer.
        by: ClientUri,
        /// Clients that came.
        added: Vec<ClientUri>,
        /// Clients that went.
        removed: Vec<ClientUri>,
    },
    /// A proposal waits for a Commit (S13). Some member's client commits it soon, this one's included.
    Proposed {
        /// The group.
        group: GroupUri,
        /// Its epoch.
        epoch: u64,
    },
    /// Messages of the group were dropped on the way (X4). The client resyncs by itself.
    MessagesLost {
        /// The group.
        group: GroupUri,
    },
    /// An entry that could not be used. It was passed over.
    Unprocessable {
        /// The group as the entry names it, which may be no group's name at all.
        group: String,
        /// The entry's place in the queue.
        sequence: u64,
        /// What is wrong with it.
        why: String,
    },
}

impl Event {
    /// The group that this is about; `None` when the entry named none.
    pub fn group(&self) -> Option<&GroupUri> {
        match self {
            Self::Joined { group, .. } | Self::Left { group, .. } | Self::Message { group, .. } => Some(group),
            Self::Deleted { group } | Self::Resynced { group, .. } => Some(group),
            Self::EpochChanged { group, .. } | Self::Proposed { group, .. } | Self::MessagesLost { group } => Some(group),
            Self::Unprocessable { .. } => None,
        }
    }
}
