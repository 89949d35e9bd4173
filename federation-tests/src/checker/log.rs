//! The log that a client writes while a run lasts: JSON, one object a line.
//!
//! These types are the checker's own on purpose: were they shared with the client library, one mistake there could hide from both.

use std::io::BufRead;

use serde::{Deserialize, Serialize};

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Line {
    /// When it was written, in microseconds since 1970.
    pub at_us: u64,
    /// The client that wrote it, as URI; for [`Event::Queued`] the client whose queue it is.
    pub client: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What a line tells. Hashes are the hex SHA-256 of MLSMessage octets.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the fields are those of the log format; each variant says what is special")]
pub enum Event {
    /// The client is about to send an application message, in its `epoch`.
    Sending { group: String, request: String, message: String, epoch: u64, text_hash: String },
    /// The hub answered ok; `epoch` is the hub's when it accepted.
    Accepted { group: String, request: String, message: String, epoch: u64 },
    /// The hub answered with an error and the client gives this message up.
    Refused { group: String, request: String, message: String, code: String },
    /// The client is about to send a commit that leaves `epoch`.
    Committing { group: String, request: String, commit: String, epoch: u64 },
    /// The hub accepted the commit, which made `epoch`.
    CommitAccepted { group: String, request: String, commit: String, epoch: u64 },
    /// The hub refused the commit.
    CommitRefused { group: String, request: String, commit: String, code: String },
    /// The client became a member; `epoch` is its first.
    Joined { group: String, epoch: u64 },
    /// The commit that made `epoch` removed this client.
    Left { group: String, epoch: u64 },
    /// The client's view after entering `epoch`.
    Epoch { group: String, epoch: u64, members: Vec<String>, authenticator: String },
    /// A queue entry was processed and durably kept. `message` may be absent from a `lost` marker.
    Received {
        queue: String,
        sequence: u64,
        group: String,
        epoch: u64,
        kind: Kind,
        #[serde(default)]
        message: Option<String>,
        #[serde(default)]
        sender: Option<String>,
        #[serde(default)]
        text_hash: Option<String>,
        outcome: String,
    },
    /// Entries up to and including `up_to` were acknowledged.
    Acked { queue: String, up_to: u64 },
    /// This entry was still in the queue when the run ended.
    Queued {
        queue: String,
        sequence: u64,
        group: String,
        epoch: u64,
        kind: Kind,
        #[serde(default)]
        message: Option<String>,
    },
}

impl Event {
    /// The group that it is about; an acknowledgement is about a queue.
    pub fn group(&self) -> Option<&str> {
        match self {
            Self::Sending { group, .. }
            | Self::Accepted { group, .. }
            | Self::Refused { group, .. }
            | Self::Committing { group, .. }
            | Self::CommitAccepted { group, .. }
            | Self::CommitRefused { group, .. }
            | Self::Joined { group, .. }
            | Self::Left { group, .. }
            | Self::Epoch { group, .. }
            | Self::Received { group, .. }
            | Self::Queued { group, .. } => Some(group),
            Self::Acked { .. } => None,
        }
    }
}

/// What a queue entry carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An application message.
    Application,
    /// A commit.
    Commit,
    /// A proposal.
    Proposal,
    /// A Welcome.
    Welcome,
    /// A marker in place of messages that the queue could not take.
    Lost,
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Reading failed.
    #[error("line {line}: cannot be read")]
    Read {
        /// Which line, from 1.
        line: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line is not what the format says.
    #[error("line {line}: {source}: {text}")]
    Malformed {
        /// Which line, from 1.
        line: usize,
        /// The start of the line.
        text: String,
        /// What the parser said.
        source: serde_json::Error,
    },
}

/// Reads one log. Unknown fields are ignored, unknown events are errors; empty lines are skipped.
pub fn read_log(reader: impl BufRead) -> Result<Vec<Line>, LogError> {
    let mut lines = Vec::new();
    for (index, text) in reader.lines().enumerate() {
        let text = text.map_err(|source| LogError::Read { line: index + 1, source })?;
        if text.trim().is_empty() {
            continue;
        }
        let line = serde_json::from_str(&text).map_err(|source| LogError::Malformed {
            line: index + 1,
            text: text.chars().take(200).collect(),
            source,
        })?;
        lines.push(line);
    }
    Ok(lines)
}
