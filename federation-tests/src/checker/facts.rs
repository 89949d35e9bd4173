//! [`Facts`]: what a run's lines say, indexed for the rules.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::finding::Place;
use super::log::{Event, Kind, Line};

/// A message or commit within its group.
pub(super) type Key<'a> = (&'a str, &'a str);

/// An application message that a client set out to send.
pub(super) struct Sent<'a> {
    pub(super) client: &'a str,
    pub(super) epoch: u64,
    pub(super) at_us: u64,
    pub(super) text_hash: &'a str,
}

/// An application message that a hub accepted.
pub(super) struct Accepted<'a> {
    pub(super) client: &'a str,
    pub(super) epoch: u64,
}

/// A commit, as far as anyone logged it.
#[derive(Default)]
pub(super) struct Commit<'a> {
    /// Who made it, if that was logged.
    pub(super) committer: Option<&'a str>,
    /// The epoch it leaves.
    pub(super) from: Option<u64>,
    /// Its committer was told that it was accepted.
    pub(super) accepted: bool,
    /// It is in somebody's queue, so a hub accepted it, whatever its committer was told.
    pub(super) seen: bool,
}

/// One client's view of one epoch.
pub(super) struct View<'a> {
    pub(super) client: &'a str,
    pub(super) members: BTreeSet<&'a str>,
    pub(super) authenticator: &'a str,
}

/// An entry that a client processed, or that was still queued.
pub(super) struct Entry<'a> {
    pub(super) client: &'a str,
    pub(super) at_us: u64,
    pub(super) queue: &'a str,
    pub(super) sequence: u64,
    pub(super) group: &'a str,
    pub(super) epoch: u64,
    pub(super) kind: Kind,
    pub(super) message: Option<&'a str>,
    pub(super) sender: Option<&'a str>,
    pub(super) text_hash: Option<&'a str>,
    /// What came of it; none while it is still queued.
    pub(super) outcome: Option<&'a str>,
    /// What the client had acknowledged when it received this, if that covers it.
    pub(super) acked: Option<u64>,
}

impl<'a> Entry<'a> {
    pub(super) fn place(&self) -> Place {
        Place { queue: self.queue.to_owned(), sequence: self.sequence }
    }

    /// The message within its group; a `lost` marker stands for none.
    pub(super) fn key(&self) -> Option<Key<'a>> {
        if self.kind == Kind::Lost { None } else { self.message.map(|message| (self.group, message)) }
    }
}

/// A run's lines, indexed.
#[derive(Default)]
pub(super) struct Facts<'a> {
    pub(super) clients: BTreeSet<&'a str>,
    pub(super) groups: BTreeSet<&'a str>,
    pub(super) sent: HashMap<Key<'a>, Sent<'a>>,
    pub(super) accepted: BTreeMap<Key<'a>, Accepted<'a>>,
    pub(super) commits: BTreeMap<Key<'a>, Commit<'a>>,
    /// Views by group and epoch, in the order logged.
    pub(super) views: BTreeMap<(&'a str, u64), Vec<View<'a>>>,
    /// First epochs of memberships, by group and client.
    pub(super) joined: HashMap<Key<'a>, BTreeSet<u64>>,
    /// Epochs that a client says began without it, by group and client.
    pub(super) left: HashMap<Key<'a>, BTreeSet<u64>>,
    /// Received and queued entries, in the order logged.
    pub(super) entries: Vec<Entry<'a>>,
    /// (client, group) of queues that hold a `lost` marker.
    pub(super) lost_markers: HashSet<Key<'a>>,
}

impl<'a> Facts<'a> {
    /// Indexes `lines`.
    pub(super) fn of(lines: &'a [Line]) -> Self {
        let mut facts = Self::default();
        let mut acked: HashMap<&str, u64> = HashMap::new();
        for line in lines {
            facts.clients.insert(&line.client);
            facts.add(line, &mut acked);
        }
        for entry in &facts.entries {
            facts.groups.insert(entry.group);
            if entry.kind == Kind::Commit
                && let Some(commit) = entry.key().and_then(|key| facts.commits.get_mut(&key))
            {
                commit.seen = true;
            }
        }
        facts
    }

    fn add(&mut self, line: &'a Line, acked: &mut HashMap<&'a str, u64>) {
        let client = line.client.as_str();
        match &line.event {
            Event::Sending { group, message, epoch, text_hash, .. } => {
                self.groups.insert(group);
                self.sent.entry((group, message)).or_insert(Sent { client, epoch: *epoch, at_us: line.at_us, text_hash });
            }
            Event::Accepted { group, message, epoch, .. } => {
                self.accepted.entry((group, message)).or_insert(Accepted { client, epoch: *epoch });
            }
            Event::Committing { group, commit, epoch, .. } => {
                let commit = self.commits.entry((group, commit)).or_default();
                commit.committer.get_or_insert(client);
                commit.from = Some(*epoch);
            }
            Event::CommitAccepted { group, commit, epoch, .. } => {
                let commit = self.commits.entry((group, commit)).or_default();
                commit.accepted = true;
                commit.from.get_or_insert(epoch.saturating_sub(1));
            }
            Event::Joined { group, epoch } => {
                self.joined.entry((group, client)).or_default().insert(*epoch);
            }
            Event::Left { group, epoch } => {
                self.left.entry((group, client)).or_default().insert(*epoch);
            }
            Event::Epoch { group, epoch, members, authenticator } => {
                self.groups.insert(group);
                let members = members.iter().map(String::as_str).collect();
                self.views.entry((group, *epoch)).or_default().push(View { client, members, authenticator });
            }
            Event::Received { queue, sequence, group, epoch, kind, message, sender, text_hash, outcome } => {
                let acked = acked.get(queue.as_str()).copied().filter(|up_to| sequence <= up_to);
                if *kind == Kind::Lost {
                    self.lost_markers.insert((client, group));
                }
                self.entries.push(Entry {
                    client,
                    at_us: line.at_us,
                    queue,
                    sequence: *sequence,
                    group,
                    epoch: *epoch,
                    kind: *kind,
                    message: message.as_deref(),
                    sender: sender.as_deref(),
                    text_hash: text_hash.as_deref(),
                    outcome: Some(outcome),
                    acked,
                });
            }
            Event::Queued { queue, sequence, group, epoch, kind, message } => {
                if *kind == Kind::Lost {
                    self.lost_markers.insert((client, group));
                }
                self.entries.push(Entry {
                    client,
                    at_us: line.at_us,
                    queue,
                    sequence: *sequence,
                    group,
                    epoch: *epoch,
                    kind: *kind,
                    message: message.as_deref(),
                    sender: None,
                    text_hash: None,
                    outcome: None,
                    acked: None,
                });
            }
            Event::Acked { queue, up_to } => {
                let acked = acked.entry(queue).or_default();
                *acked = (*acked).max(*up_to);
            }
            Event::Refused { .. } | Event::CommitRefused { .. } => {}
        }
    }

    /// Who was a member in `epoch`. Epoch 0 has one member, whoever commits out of it, even if nobody logged it.
    pub(super) fn members(&self, group: &'a str, epoch: u64) -> Option<BTreeSet<&'a str>> {
        if let Some(view) = self.views.get(&(group, epoch)).and_then(|views| views.first()) {
            return Some(view.members.clone());
        }
        let made_epoch_1 = |commit: &&Commit<'a>| commit.from == Some(0) && (commit.accepted || commit.seen);
        (epoch == 0)
            .then(|| self.commits_of(group).map(|(_, commit)| commit).find(made_epoch_1)?.committer)
            .flatten()
            .map(|creator| BTreeSet::from([creator]))
    }

    /// The commits of `group`.
    pub(super) fn commits_of(&self, group: &'a str) -> impl Iterator<Item = (&'a str, &Commit<'a>)> {
        self.commits.range((group, "")..).take_while(move |((of, _), _)| *of == group).map(|((_, hash), commit)| (*hash, commit))
    }

    /// The group's epoch when its hub took in what `entry` carries: a commit's is the one it leaves. Queue entries state an epoch as
    /// well, but their senders and the hub know better.
    pub(super) fn epoch_of(&self, entry: &Entry<'a>) -> u64 {
        let known = entry.key().and_then(|key| match entry.kind {
            Kind::Application => self.accepted.get(&key).map(|accepted| accepted.epoch),
            Kind::Commit => self.commits.get(&key).and_then(|commit| commit.from),
            Kind::Proposal | Kind::Welcome | Kind::Lost => None,
        });
        known.unwrap_or(entry.epoch)
    }
}
