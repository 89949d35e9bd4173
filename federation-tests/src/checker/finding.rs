//! [`Finding`]: one violation, with its evidence.

use std::fmt;

use serde::Serialize;

use super::log::Kind;

/// A place in a queue.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// The queue.
    pub queue: String,
    /// The entry's sequence number.
    pub sequence: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.queue, self.sequence)
    }
}

/// One violation. Its number ([`Finding::rule`]) is that of the rule in the table of [`super`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
#[allow(missing_docs, reason = "evidence fields carry the names of the log format")]
pub enum Finding {
    /// 1: an accepted message neither arrived at a member nor waits for it. `lost_marker`: the member's queue says that it dropped some.
    NotDelivered { group: String, kind: Kind, message: String, sender: String, recipient: String, epoch: u64, lost_marker: bool },
    /// 1: nobody logged who the members were, so that deliveries cannot be judged.
    MembersUnknown { group: String, epoch: u64, message: String },
    /// 2: one message came to a client twice.
    ReceivedTwice { client: String, message: String, first: Place, second: Place },
    /// 2: an entry came although the client had acknowledged it.
    ReceivedAfterAck { client: String, place: Place, acked: u64 },
    /// 3: this queue has `earlier` before `later`; `other` has it the other way (no queue: the epochs of acceptance say so).
    OutOfOrder { group: String, queue: String, earlier: String, later: String, other: Option<String> },
    /// 4: two commits made one epoch.
    TwoCommits { group: String, epoch: u64, first: String, second: String },
    /// 4: two clients derived different secrets for one epoch.
    AuthenticatorsDiffer { group: String, epoch: u64, first: String, second: String },
    /// 4: two clients see different members in one epoch.
    MembersDiffer { group: String, epoch: u64, first: String, second: String },
    /// 5: a queue lacks these sequence numbers.
    Gap { queue: String, from: u64, to: u64 },
    /// 5: one sequence number carried two entries.
    SequenceReused { place: Place, first: String, second: String },
    /// 6: nobody sent this.
    NeverSent { group: String, kind: Kind, message: String, client: String, place: Option<Place> },
    /// 6: what arrived is not what was sent.
    ContentDiffers { group: String, message: String, client: String, field: &'static str, sent: String, received: String },
    /// 7: an application message that its recipient could not read.
    Undecryptable { group: String, message: String, client: String, place: Place, outcome: String },
    /// 8: an entry of an epoch in which its recipient was no member any more.
    AfterRemoval { group: String, client: String, place: Place, removed_by_epoch: u64, epoch: u64 },
}

impl Finding {
    /// The number of the rule that was broken.
    pub fn rule(&self) -> u8 {
        match self {
            Self::NotDelivered { .. } | Self::MembersUnknown { .. } => 1,
            Self::ReceivedTwice { .. } | Self::ReceivedAfterAck { .. } => 2,
            Self::OutOfOrder { .. } => 3,
            Self::TwoCommits { .. } | Self::AuthenticatorsDiffer { .. } | Self::MembersDiffer { .. } => 4,
            Self::Gap { .. } | Self::SequenceReused { .. } => 5,
            Self::NeverSent { .. } | Self::ContentDiffers { .. } => 6,
            Self::Undecryptable { .. } => 7,
            Self::AfterRemoval { .. } => 8,
        }
    }

    /// The violation's name, as it stands in the JSON form.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotDelivered { .. } => "not_delivered",
            Self::MembersUnknown { .. } => "members_unknown",
            Self::ReceivedTwice { .. } => "received_twice",
            Self::ReceivedAfterAck { .. } => "received_after_ack",
            Self::OutOfOrder { .. } => "out_of_order",
            Self::TwoCommits { .. } => "two_commits",
            Self::AuthenticatorsDiffer { .. } => "authenticators_differ",
            Self::MembersDiffer { .. } => "members_differ",
            Self::Gap { .. } => "gap",
            Self::SequenceReused { .. } => "sequence_reused",
            Self::NeverSent { .. } => "never_sent",
            Self::ContentDiffers { .. } => "content_differs",
            Self::Undecryptable { .. } => "undecryptable",
            Self::AfterRemoval { .. } => "after_removal",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] ", self.rule())?;
        match self {
            Self::NotDelivered { group, kind, message, sender, recipient, epoch, lost_marker } => {
                write!(f, "{kind:?} {message} of {sender}, accepted in epoch {epoch} of {group}, never reached {recipient}")?;
                if *lost_marker { write!(f, " (whose queue has a marker of lost messages)") } else { Ok(()) }
            }
            Self::MembersUnknown { group, epoch, message } => {
                write!(f, "nobody logged the members of epoch {epoch} of {group}, so {message} cannot be judged")
            }
            Self::ReceivedTwice { client, message, first, second } => {
                write!(f, "{client} got {message} twice: {first} and {second}")
            }
            Self::ReceivedAfterAck { client, place, acked } => {
                write!(f, "{client} got {place} after it had acknowledged up to {acked}")
            }
            Self::OutOfOrder { group, queue, earlier, later, other } => {
                write!(f, "{queue} has {earlier} before {later} of {group}; ")?;
                match other {
                    Some(other) => write!(f, "{other} has them the other way round"),
                    None => write!(f, "the epochs of their acceptance, or other queues together, say otherwise"),
                }
            }
            Self::TwoCommits { group, epoch, first, second } => {
                write!(f, "epoch {epoch} of {group} was made by two commits: {first} and {second}")
            }
            Self::AuthenticatorsDiffer { group, epoch, first, second } => {
                write!(f, "{first} and {second} have different authenticators for epoch {epoch} of {group}")
            }
            Self::MembersDiffer { group, epoch, first, second } => {
                write!(f, "{first} and {second} see different members in epoch {epoch} of {group}")
            }
            Self::Gap { queue, from, to } => write!(f, "{queue} has no entries {from} to {to}"),
            Self::SequenceReused { place, first, second } => {
                write!(f, "{place} carried {first} and then {second}")
            }
            Self::NeverSent { group, kind, message, client, place } => {
                write!(f, "{client} was given {kind:?} {message} of {group}, which nobody sent")?;
                place.as_ref().map_or(Ok(()), |place| write!(f, " ({place})"))
            }
            Self::ContentDiffers { group, message, client, field, sent, received } => {
                write!(f, "{client} read {field} {received} in {message} of {group}, sent was {sent}")
            }
            Self::Undecryptable { group, message, client, place, outcome } => {
                write!(f, "{client} could not read {message} of {group} ({place}): {outcome}")
            }
            Self::AfterRemoval { group, client, place, removed_by_epoch, epoch } => {
                write!(f, "{client}, removed from {group} by epoch {removed_by_epoch}, was given {place} of epoch {epoch}")
            }
        }
    }
}
