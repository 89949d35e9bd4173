//! Taking queue entries into the state. An entry is applied, put aside until something it needs is there, or passed over with
//! an event; it never stops the queue.

use openmls::prelude::{
    ContentType, KeyPackageRef, LeafNodeIndex, MlsMessageBodyIn, ProcessedMessageContent, Proposal, ProtocolMessage, Sender,
    StagedCommit,
};
use openmls_traits::OpenMlsProvider as _;
use serde_json::json;

use super::core::{Core, Result};
use super::error::ClientError;
use super::event::Event;
use super::mls::{self, LeafClaim};
use super::state::{Blob, Group, GroupStatus, Purpose};
use crate::base::bytes::hex;
use crate::base::crypto::sha256;
use crate::base::{ClientUri, Domain, Fault, GroupUri, UnixMillis, limits};
use crate::wire::qs::{DeliveredMessage, Delivery, QueueEntry};
use crate::wire::reply::GroupState;
use crate::wire::{decode, encode};

/// What an entry waits for.
#[derive(Clone, Debug)]
pub(super) enum Need {
    /// What a domain publishes.
    Domain(Domain),
    /// The tree for a Welcome.
    Tree(WaitingWelcome),
    /// The answer to the own pending Commit.
    OwnCommit,
}

/// A Welcome whose tree is not there yet.
#[derive(Clone, Debug)]
pub(super) struct WaitingWelcome {
    /// The entry's place in the queue.
    pub(super) sequence: u64,
    /// The KeyPackage that it is to.
    pub(super) reference: KeyPackageRef,
    /// The epoch that it begins.
    pub(super) epoch: u64,
    /// When it came, in milliseconds since 1970.
    pub(super) arrived_at_ms: u64,
}

/// What came of an entry.
pub(super) struct Seen {
    kind: &'static str,
    sender: Option<ClientUri>,
    text_hash: Option<String>,
    outcome: &'static str,
}

impl Seen {
    pub(super) fn new(kind: &'static str, outcome: &'static str) -> Self {
        Self { kind, sender: None, text_hash: None, outcome }
    }

    pub(super) fn by(mut self, sender: Option<ClientUri>) -> Self {
        self.sender = sender;
        self
    }
}

/// Why an entry was not applied.
pub(super) enum Unapplied {
    /// Not now.
    Waits(Need),
    /// Never.
    Bad { seen: Box<Seen>, why: String },
    /// Our side failed.
    Fault(Fault),
}

impl From<Fault> for Unapplied {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

fn kind_of_content(message: &ProtocolMessage) -> &'static str {
    match message.content_type() {
        ContentType::Application => "application",
        ContentType::Proposal => "proposal",
        ContentType::Commit => "commit",
    }
}

/// What an entry is, as far as can be told without its group. The log knows five kinds: what is none of them counts as an
/// application message that could not be read.
fn kind_of(entry: &QueueEntry) -> &'static str {
    let Delivery::Message(delivered) = &entry.delivery else { return "lost" };
    match mls::read_message(&delivered.message) {
        Ok(MlsMessageBodyIn::Welcome(_)) => "welcome",
        Ok(MlsMessageBodyIn::PublicMessage(message)) => kind_of_content(&message.into()),
        _ => "application",
    }
}

pub(super) fn bad<T>(kind: &'static str, outcome: &'static str, why: impl Into<String>) -> std::result::Result<T, Unapplied> {
    Err(Unapplied::Bad { seen: Box::new(Seen::new(kind, outcome)), why: why.into() })
}

impl Core {
    /// Takes a batch from the queue and writes the state once. Entries taken before are passed over; one that comes before its
    /// time is an error, after those before it are taken.
    pub(super) fn take_batch(&mut self, entries: Vec<QueueEntry>) -> Result<()> {
        let mut gap = None;
        let first = self.queue()?.next;
        let mut next = first;
        for entry in entries {
            if entry.sequence < next {
                continue;
            }
            if entry.sequence > next {
                // Taking it would hide what is missing.
                gap = Some(entry.sequence);
                break;
            }
            next += 1;
            self.take(entry)?;
        }
        if next != first {
            if let Some(queue) = &mut self.state.queue {
                queue.next = next;
            }
            self.save()?;
        }
        match gap {
            Some(got) => Err(ClientError::Untrusted(format!("the queue has a gap: entry {got} came where {next} was due"))),
            None => Ok(()),
        }
    }

    fn take(&mut self, entry: QueueEntry) -> Result<()> {
        let group = match GroupUri::from_bytes(&entry.group_id) {
            Ok(group) if group.hub().as_bytes() == &*entry.hub => group,
            _ => {
                self.pass_over(&entry, Seen::new(kind_of(&entry), "refused"), "the entry's group is not its hub's".into());
                return Ok(());
            }
        };
        let name = group.to_string();
        // Whatever comes after an entry that waits, waits too: order matters within a group.
        if let Some(waiting) = self.state.backlog.get_mut(&name) {
            if waiting.len() < limits::CLIENT_BACKLOG_ENTRIES_MAX {
                waiting.push(Blob(encode(&entry)));
            } else {
                self.pass_over(&entry, Seen::new(kind_of(&entry), "refused"), "too much waits for this group".into());
            }
            return Ok(());
        }
        if self.try_entry(&group, &entry, None)?.is_some() {
            self.state.backlog.insert(name, vec![Blob(encode(&entry))]);
        }
        Ok(())
    }

    /// Applies what waits for `group`, as far as it goes; the tree is for the Welcome of the entry with that sequence. Says what
    /// the rest needs. Writes the state when something changed.
    pub(super) fn take_backlog(&mut self, group: &GroupUri, tree: Option<(u64, &GroupState)>) -> Result<Option<Need>> {
        let before = self.state.backlog.get(&group.to_string()).map_or(0, Vec::len);
        let need = self.drain_backlog(group, tree)?;
        let after = self.state.backlog.get(&group.to_string()).map_or(0, Vec::len);
        if after != before {
            self.save()?;
        }
        Ok(need)
    }

    /// As [`Core::take_backlog`], leaving the state write to the caller.
    pub(super) fn drain_backlog(&mut self, group: &GroupUri, tree: Option<(u64, &GroupState)>) -> Result<Option<Need>> {
        let name = group.to_string();
        let waiting = self.state.backlog.remove(&name).unwrap_or_default();
        for (at, octets) in waiting.iter().enumerate() {
            let Ok(entry) = decode::<QueueEntry>(&octets.0) else { continue };
            let tree = tree.filter(|(sequence, _)| *sequence == entry.sequence).map(|(_, tree)| tree);
            if let Some(need) = self.try_entry(group, &entry, tree)? {
                let rest = waiting.get(at..).unwrap_or_default().to_vec();
                self.state.backlog.insert(name, rest);
                return Ok(Some(need));
            }
        }
        Ok(None)
    }

    /// Gives up the entry with `sequence`, if it is the first that waits for `group`, and applies the rest as far as it goes.
    pub(super) fn skip_backlog(&mut self, group: &GroupUri, sequence: u64, why: String) -> Result<()> {
        let Some(waiting) = self.state.backlog.get_mut(&group.to_string()) else { return Ok(()) };
        let first = waiting.first().and_then(|first| decode::<QueueEntry>(&first.0).ok());
        let Some(entry) = first.filter(|entry| entry.sequence == sequence) else { return Ok(()) };
        waiting.remove(0);
        self.pass_over(&entry, Seen::new(kind_of(&entry), "refused"), why);
        self.drain_backlog(group, None)?;
        self.save()
    }

    /// Applies one entry or passes it over; or says what it needs and changes nothing.
    fn try_entry(&mut self, group: &GroupUri, entry: &QueueEntry, tree: Option<&GroupState>) -> Result<Option<Need>> {
        let applied = match &entry.delivery {
            Delivery::MessagesLost | Delivery::Reset => {
                self.note_loss(group);
                self.new_events.push(Event::MessagesLost { group: group.clone() });
                Ok(Seen::new("lost", "ok"))
            }
            Delivery::Message(message) => self.apply(group, entry, message, tree),
        };
        match applied {
            Ok(seen) => self.record_received(entry, &seen),
            Err(Unapplied::Waits(need)) => return Ok(Some(need)),
            Err(Unapplied::Bad { seen, why }) => self.pass_over(entry, *seen, why),
            Err(Unapplied::Fault(fault)) => {
                let why = fault.to_string();
                self.pass_over(entry, Seen::new(kind_of(entry), "fault"), why);
            }
        }
        Ok(None)
    }

    fn pass_over(&mut self, entry: &QueueEntry, seen: Seen, why: String) {
        self.record_received(entry, &seen);
        let group = String::from_utf8_lossy(&entry.group_id).into_owned();
        tracing::debug!(group, entry.sequence, why, "passed over a queue entry");
        self.new_events.push(Event::Unprocessable { group, sequence: entry.sequence, why });
    }

    fn record_received(&mut self, entry: &QueueEntry, seen: &Seen) {
        let message = match &entry.delivery {
            Delivery::Message(message) => Some(hex(&sha256(&message.message))),
            _ => None,
        };
        let fields = json!({
            "queue": self.state.queue.as_ref().map(|queue| queue.id.to_string()),
            "sequence": entry.sequence,
            "group": String::from_utf8_lossy(&entry.group_id),
            "epoch": entry.epoch,
            "kind": seen.kind,
            "message": message,
            "sender": seen.sender.as_ref().map(ClientUri::to_string),
            "text_hash": seen.text_hash,
            "outcome": seen.outcome,
        });
        self.record("received", fields);
    }

    fn apply(
        &mut self,
        group: &GroupUri,
        entry: &QueueEntry,
        delivered: &DeliveredMessage,
        tree: Option<&GroupState>,
    ) -> std::result::Result<Seen, Unapplied> {
        let message: ProtocolMessage = match mls::read_message(&delivered.message) {
            Ok(MlsMessageBodyIn::Welcome(welcome)) => return self.apply_welcome(group, entry, welcome, tree),
            Ok(MlsMessageBodyIn::PublicMessage(message)) => message.into(),
            Ok(MlsMessageBodyIn::PrivateMessage(message)) => message.into(),
            Ok(_) => return bad(kind_of(entry), "refused", "a kind of MLSMessage that is not delivered"),
            Err(why) => return bad(kind_of(entry), "refused", why),
        };
        let kind = kind_of_content(&message);
        if self.waits_for_join(group, message.epoch().as_u64()) {
            return Err(Unapplied::Waits(Need::OwnCommit));
        }
        let Some(mls) = self.groups.get(group).filter(|mls| mls.is_active()) else {
            return bad(kind, "unknown_group", "not a member of the group");
        };
        if message.group_id().as_slice() != group.to_bytes() {
            return bad(kind, "refused", "the message is of another group than its entry says");
        }
        let (now, its) = (mls.epoch().as_u64(), message.epoch().as_u64());
        if its > now && mls.pending_commit().is_some() {
            return Err(Unapplied::Waits(Need::OwnCommit));
        }
        if its > now {
            return self.stuck(group, kind, format!("a {kind} of epoch {its} came in epoch {now}"));
        }
        if kind == "application" {
            return self.apply_application(group, entry, message, its);
        }
        if its < now {
            // Ours, or one that a Commit has overtaken.
            return Ok(Seen::new(kind, "old"));
        }
        if kind == "proposal" { self.apply_proposal(group, message) } else { self.apply_commit(group, entry, delivered, message) }
    }

    /// Something of the group is missing (X4). The client resyncs; until then it reads what it can.
    fn note_loss(&mut self, group: &GroupUri) {
        match self.group_mut(group) {
            Some(kept) => kept.lost = true,
            // The Welcome may be what was lost.
            None => {
                let kept =
                    Group { status: GroupStatus::Stuck, name: None, queue_generation: None, leaf_renewed_ms: 0, lost: true };
                self.state.groups.insert(group.to_string(), kept);
            }
        }
    }

    /// A Commit that everyone else may apply cannot be, or is missing: what follows it is lost to this client.
    fn stuck<T>(&mut self, group: &GroupUri, kind: &'static str, why: String) -> std::result::Result<T, Unapplied> {
        if let Some(kept) = self.group_mut(group) {
            kept.status = GroupStatus::Stuck;
        }
        bad(kind, "undecryptable", why)
    }

    fn apply_application(
        &mut self,
        group: &GroupUri,
        entry: &QueueEntry,
        message: ProtocolMessage,
        epoch: u64,
    ) -> std::result::Result<Seen, Unapplied> {
        let Self { groups, provider, .. } = self;
        let mls = groups.get_mut(group).ok_or_else(|| Fault::new("a group that was just there is gone"))?;
        let processed = match mls.process_message(provider, message) {
            Ok(processed) => processed,
            Err(error) => return bad("application", "undecryptable", error.to_string()),
        };
        let sender = mls::client_of(processed.credential()).ok();
        let text = match processed.into_content() {
            ProcessedMessageContent::ApplicationMessage(content) => content.into_bytes(),
            ProcessedMessageContent::OwnPrivateMessage => {
                return Ok(Seen::new("application", "own").by(Some(self.me.clone())));
            }
            _ => return bad("application", "refused", "an encrypted handshake message"),
        };
        let hash = hex(&sha256(&text));
        let mut seen = Seen::new("application", "ok").by(sender.clone());
        seen.text_hash = Some(hash);
        let (Some(sender), Ok(text)) = (sender, String::from_utf8(text)) else {
            seen.outcome = "not_text";
            return Err(Unapplied::Bad { seen: Box::new(seen), why: "the message is not UTF-8 text".into() });
        };
        self.remember(Some(entry.sequence), entry.arrived_at_ms, group, &sender, &text);
        let (group, sequence, at_ms) = (group.clone(), entry.sequence, entry.arrived_at_ms);
        self.new_events.push(Event::Message { group, epoch, sequence, sender, text, at_ms });
        Ok(seen)
    }

    fn apply_proposal(&mut self, group: &GroupUri, message: ProtocolMessage) -> std::result::Result<Seen, Unapplied> {
        let Self { groups, provider, .. } = self;
        let mls = groups.get_mut(group).ok_or_else(|| Fault::new("a group that was just there is gone"))?;
        let processed = match mls.process_message(provider, message) {
            Ok(processed) => processed,
            Err(error) => return bad("proposal", "undecryptable", error.to_string()),
        };
        let sender = match processed.sender() {
            Sender::Member(_) => mls::client_of(processed.credential()).ok(),
            _ => None,
        };
        let ProcessedMessageContent::ProposalMessage(proposal) = processed.into_content() else {
            return bad("proposal", "refused", "a proposal of a kind that is not used");
        };
        // What else there is in MLS is nobody's to propose in version 1: the hub removes, members renew their keys. A proposal
        // that is kept goes into this client's next Commit, whatever it is.
        match (&sender, proposal.proposal()) {
            (None, Proposal::Remove(_)) | (Some(_), Proposal::Update(_)) => {}
            _ => return bad("proposal", "refused", "a proposal of a kind that is not used"),
        }
        mls.store_pending_proposal(provider.storage(), *proposal)
            .map_err(|error| Fault::new(format!("could not keep a proposal: {error}")))?;
        let epoch = mls.epoch().as_u64();
        self.new_events.push(Event::Proposed { group: group.clone(), epoch });
        Ok(Seen::new("proposal", "ok").by(sender))
    }

    /// Keeps proposals (MLSMessages) that the hub says are pending (S13). Those that are known or useless do no harm.
    pub(super) fn keep_proposals(&mut self, group: &GroupUri, proposals: &[Vec<u8>]) {
        for octets in proposals {
            let message: ProtocolMessage = match mls::read_message(octets) {
                Ok(MlsMessageBodyIn::PublicMessage(message)) => message.into(),
                _ => continue,
            };
            let current = self.groups.get(group).is_some_and(|mls| mls.epoch() == message.epoch());
            if current && message.content_type() == ContentType::Proposal && self.apply_proposal(group, message).is_err() {
                tracing::debug!(%group, "a pending proposal of the hub could not be read");
            }
        }
    }

    fn apply_commit(
        &mut self,
        group: &GroupUri,
        entry: &QueueEntry,
        delivered: &DeliveredMessage,
        message: ProtocolMessage,
    ) -> std::result::Result<Seen, Unapplied> {
        let hash = sha256(&delivered.message);
        let epoch = message.epoch().as_u64();
        if self.is_own_commit(group, &hash) {
            // Its answer says the same, and is what counts.
            return Ok(Seen::new("commit", "own").by(Some(self.me.clone())));
        }
        // A Commit without the hub's word is not applied: it might be one of several for this epoch (X9).
        match &delivered.receipt {
            Some(receipt) if self.receipt_is_good(group, epoch + 1, &hash, receipt) => {}
            _ => return bad("commit", "no_receipt", "a Commit without the hub's receipt"),
        }
        let processed = {
            let Self { groups, provider, .. } = self;
            let mls = groups.get_mut(group).ok_or_else(|| Fault::new("a group that was just there is gone"))?;
            mls.process_message(provider, message)
        };
        let processed = match processed {
            Ok(processed) => processed,
            Err(error) => return self.stuck(group, "commit", error.to_string()),
        };
        let committer = match processed.sender() {
            Sender::Member(index) => Some(*index),
            _ => None,
        };
        let ProcessedMessageContent::StagedCommitMessage(staged) = processed.into_content() else {
            return self.stuck(group, "commit", "a Commit of a kind that is not used".into());
        };
        let by = match self.check_entering(group, &staged, committer, UnixMillis(entry.arrived_at_ms)) {
            Ok(by) => by,
            Err(Unapplied::Bad { why, .. }) => return self.stuck(group, "commit", why),
            Err(other) => return Err(other),
        };
        if committer.is_none()
            && let Some(removed) = self.removes_another(group, &staged, &by)
        {
            return self.stuck(group, "commit", format!("{by} joined in the place of {removed}"));
        }
        let before = self.members_now(group);
        self.merge(group, Some(*staged))?;
        let left = self.entered_epoch(group, before, &by)?;
        Ok(Seen::new("commit", if left { "left" } else { "ok" }).by(Some(by)))
    }

    fn is_own_commit(&self, group: &GroupUri, hash: &[u8; 32]) -> bool {
        let name = group.to_string();
        self.state.outbox.iter().any(|outgoing| match &outgoing.purpose {
            Purpose::Commit { group, hash: own, .. } | Purpose::Join { group, hash: own, .. } => {
                !outgoing.stale && *group == name && own == hash
            }
            _ => false,
        })
    }

    /// Checks every credential that `staged` brings in (R8) and says who the committer is.
    fn check_entering(
        &mut self,
        group: &GroupUri,
        staged: &StagedCommit,
        committer: Option<LeafNodeIndex>,
        now: UnixMillis,
    ) -> std::result::Result<ClientUri, Unapplied> {
        let wrong = |why: String| Unapplied::Bad { seen: Box::new(Seen::new("commit", "undecryptable")), why };
        let entering = mls::entering_leaves(staged, committer).map_err(wrong)?;
        self.check_leaves(group, entering, committer, now)
    }

    /// Checks what the own pending Commit brings in, as everyone else will: members' proposals are in it, too.
    pub(super) fn check_own_commit(&mut self, group: &GroupUri) -> Result<()> {
        let Some(mls) = self.groups.get(group) else { return Ok(()) };
        let Some(staged) = mls.pending_commit() else { return Ok(()) };
        let committer = Some(mls.own_leaf_index());
        let entering = mls::entering_leaves(staged, committer).map_err(ClientError::Untrusted)?;
        match self.check_leaves(group, entering, committer, self.now()) {
            Ok(_) => Ok(()),
            Err(Unapplied::Bad { why, .. }) => Err(ClientError::Untrusted(why)),
            Err(Unapplied::Waits(_)) => Err(ClientError::Untrusted("a leaf of a domain that is not known".into())),
            Err(Unapplied::Fault(fault)) => Err(fault.into()),
        }
    }

    fn check_leaves(
        &mut self,
        group: &GroupUri,
        entering: Vec<(LeafClaim, Option<LeafNodeIndex>)>,
        committer: Option<LeafNodeIndex>,
        now: UnixMillis,
    ) -> std::result::Result<ClientUri, Unapplied> {
        let wrong = |why: String| Unapplied::Bad { seen: Box::new(Seen::new("commit", "undecryptable")), why };
        let mut joiner = None;
        for (claim, replaces) in entering {
            let domain = claim.domain().map_err(wrong)?;
            let roots = self.roots_for(&domain, &claim.chain, now).ok_or(Unapplied::Waits(Need::Domain(domain)))?;
            let client = claim.check(&roots, now).map_err(wrong)?;
            match replaces {
                Some(index) if self.client_at(group, index).as_ref() != Some(&client) => {
                    return Err(wrong(format!("the leaf of another client was replaced by {client}'s")));
                }
                Some(_) => {}
                None => joiner = Some(client),
            }
        }
        match committer {
            Some(index) => self.client_at(group, index).ok_or_else(|| wrong("the committer has no name".into())),
            // An external Commit's path is the only leaf it brings.
            None => joiner.ok_or_else(|| wrong("an external Commit without a path".into())),
        }
    }

    /// Whom an external Commit of `by` removes beside itself, which it must not (R4).
    fn removes_another(&self, group: &GroupUri, staged: &StagedCommit, by: &ClientUri) -> Option<ClientUri> {
        let removed = staged.remove_proposals().filter_map(|remove| self.client_at(group, remove.remove_proposal().removed()));
        removed.into_iter().find(|client| client != by)
    }

    fn client_at(&self, group: &GroupUri, index: LeafNodeIndex) -> Option<ClientUri> {
        mls::client_of(self.groups.get(group)?.member(index)?).ok()
    }

    pub(super) fn members_now(&self, group: &GroupUri) -> Vec<ClientUri> {
        let members = self.groups.get(group).map(mls::members).unwrap_or_default();
        members.into_iter().map(|(_, client)| client).collect()
    }

    /// Merges a Commit: another member's, or the own pending one.
    pub(super) fn merge(&mut self, group: &GroupUri, staged: Option<StagedCommit>) -> std::result::Result<(), Fault> {
        let Self { groups, provider, .. } = self;
        let mls = groups.get_mut(group).ok_or_else(|| Fault::new("a group that was just there is gone"))?;
        match staged {
            Some(staged) => mls.merge_staged_commit(provider, staged).map_err(|error| error.to_string()),
            None => mls.merge_pending_commit(provider).map_err(|error| error.to_string()),
        }
        .map_err(|error| Fault::new(format!("could not apply a Commit: {error}")))
    }

    /// What follows from a merge: events, log lines, and leaving when we were removed (then true).
    pub(super) fn entered_epoch(
        &mut self,
        group: &GroupUri,
        before: Vec<ClientUri>,
        by: &ClientUri,
    ) -> std::result::Result<bool, Fault> {
        let Some(mls) = self.groups.get(group) else { return Ok(false) };
        let (epoch, active) = (mls.epoch().as_u64(), mls.is_active());
        if !active {
            if let Some(mut mls) = self.groups.remove(group) {
                mls.delete(self.provider.storage()).map_err(|error| Fault::new(format!("could not forget a group: {error}")))?;
            }
            if let Some(kept) = self.group_mut(group) {
                kept.status = GroupStatus::Left;
            }
            self.record("left", json!({ "group": group.to_string(), "epoch": epoch }));
            self.new_events.push(Event::Left { group: group.clone(), epoch });
            return Ok(true);
        }
        let after = self.members_now(group);
        self.record_epoch(group);
        let added = after.iter().filter(|client| !before.contains(client)).cloned().collect();
        let removed = before.into_iter().filter(|client| !after.contains(client)).collect();
        self.new_events.push(Event::EpochChanged { group: group.clone(), epoch, by: by.clone(), added, removed });
        Ok(false)
    }

    /// The last sequence up to which everything is processed and in the state, if the node has not been told of it. What waits
    /// in the backlog is safe, too, but not processed: should it never be, the queue still has it.
    pub(super) fn unacked(&self) -> Option<u64> {
        let queue = self.state.queue.as_ref()?;
        let waiting = self.state.backlog.values().filter_map(|entries| decode::<QueueEntry>(&entries.first()?.0).ok());
        let next = waiting.map(|entry| entry.sequence).fold(queue.next, u64::min);
        let last = next.checked_sub(1)?;
        (last > queue.acked).then_some(last)
    }

    /// The node knows that it may forget entries up to `up_to`. Written with the next state.
    pub(super) fn acked(&mut self, up_to: u64) -> Result<()> {
        let Some(queue) = &mut self.state.queue else { return Ok(()) };
        queue.acked = queue.acked.max(up_to);
        let fields = json!({ "queue": queue.id.to_string(), "up_to": up_to });
        self.note("acked", fields)
    }
}

impl From<ClientError> for Unapplied {
    fn from(error: ClientError) -> Self {
        Self::Fault(Fault::because("could not take a queue entry", error))
    }
}
