//! A run that never happened: a model of hubs, queues and clients that keeps every rule, and from which logs are written.
//! Tests break it in one place and expect the checker to notice.

use std::collections::BTreeSet;

use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::log::{Event, Kind, Line};

/// What a client logs after it processed an entry.
#[derive(Clone)]
pub(super) enum After {
    Nothing,
    /// It entered an epoch.
    View {
        joined: bool,
        epoch: u64,
        members: Vec<String>,
        authenticator: String,
    },
    /// It was removed.
    Left {
        epoch: u64,
    },
}

/// One entry of a queue; its sequence number is its position.
#[derive(Clone)]
pub(super) struct Slot {
    pub(super) at_us: u64,
    pub(super) group: usize,
    pub(super) epoch: u64,
    pub(super) kind: Kind,
    pub(super) message: String,
    pub(super) sender: usize,
    pub(super) text_hash: Option<String>,
    pub(super) outcome: String,
    /// The hub told the sender that it took this, so every other member must get it.
    pub(super) owed: bool,
    pub(super) after: After,
    /// Sequence numbers left out before this entry.
    pub(super) gap_before: u64,
}

/// The model. Tests change `queues` and `lines`, then [`Run::render`].
pub(super) struct Run {
    pub(super) rng: ChaCha8Rng,
    pub(super) clients: Vec<String>,
    pub(super) groups: Vec<String>,
    /// One queue a client.
    pub(super) queues: Vec<Vec<Slot>>,
    /// How many entries of each queue stay unprocessed.
    unprocessed: Vec<usize>,
    /// What clients log of their own accord, with the time.
    pub(super) lines: Vec<Line>,
    /// What is logged after everything else, by client and position in its queue.
    pub(super) replays: Vec<(usize, usize)>,
    state: Vec<Group>,
    now_us: u64,
    own_copies: bool,
}

struct Group {
    /// Members by epoch.
    members: Vec<BTreeSet<usize>>,
}

impl Run {
    /// A correct run of `steps` sends and commits.
    pub(super) fn new(seed: u64, clients: usize, groups: usize, steps: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let own_copies = rng.random_bool(0.5);
        let mut run = Self {
            clients: (0..clients).map(|n| format!("mimi://{}.test/d/user{n}/phone", ["a", "b", "c"][n % 3])).collect(),
            groups: (0..groups).map(|n| format!("mimi://a.test/g/{n:032x}")).collect(),
            queues: vec![Vec::new(); clients],
            unprocessed: Vec::new(),
            lines: Vec::new(),
            replays: Vec::new(),
            state: Vec::new(),
            now_us: 1_700_000_000_000_000,
            own_copies,
            rng,
        };
        for group in 0..groups {
            let creator = run.rng.random_range(0..clients);
            run.state.push(Group { members: vec![BTreeSet::from([creator])] });
            let view = run.view(group, true);
            run.log_after(creator, group, &view);
            run.commit(group, creator, &BTreeSet::from_iter((0..4).map(|n| (creator + n) % clients)));
        }
        for step in 0..steps {
            let group = run.rng.random_range(0..groups);
            match run.rng.random_range(0..10) {
                0 | 1 => run.random_commit(group),
                _ => run.send(group),
            }
            // Some client is removed and misses something, whatever the dice say.
            if step == steps / 2 {
                let members = run.members(0).clone();
                let keep: BTreeSet<usize> = members.iter().copied().skip(1).collect();
                if let (true, Some(committer)) = (keep.len() > 1, keep.last().copied()) {
                    run.commit(0, committer, &keep);
                    run.send(0);
                }
            }
        }
        run.unprocessed = (0..clients).map(|n| if n % 2 == 0 { 0 } else { run.rng.random_range(0..4) }).collect();
        run
    }

    pub(super) fn hash(&mut self) -> String {
        format!("{:064x}", self.rng.random::<u128>())
    }

    fn members(&self, group: usize) -> &BTreeSet<usize> {
        self.state[group].members.last().expect("a group has an epoch 0")
    }

    fn epoch(&self, group: usize) -> u64 {
        self.state[group].members.len() as u64 - 1
    }

    fn tick(&mut self) -> u64 {
        self.now_us += self.rng.random_range(100..5_000);
        self.now_us
    }

    pub(super) fn log(&mut self, client: usize, at_us: u64, event: Event) {
        self.lines.push(Line { at_us, client: self.clients[client].clone(), event });
    }

    fn view(&self, group: usize, joined: bool) -> After {
        let epoch = self.epoch(group);
        let members = self.members(group).iter().map(|member| self.clients[*member].clone()).collect();
        After::View { joined, epoch, members, authenticator: format!("{group:04x}{epoch:060x}") }
    }

    fn log_after(&mut self, client: usize, group: usize, after: &After) {
        let at_us = self.tick();
        for event in events_after(after, &self.groups[group]) {
            self.log(client, at_us, event);
        }
    }

    /// An application message: accepted mostly, at times from the epoch before, refused, or with the answer lost.
    fn send(&mut self, group: usize) {
        let epoch = self.epoch(group);
        let members = self.members(group).clone();
        let sender = *members.iter().collect::<Vec<_>>().choose(&mut self.rng).expect("a group has members");
        let sender = *sender;
        let before = epoch.checked_sub(1).map(|epoch| self.state[group].members[epoch as usize].clone());
        let late = before.filter(|before| before.contains(&sender) && self.rng.random_bool(0.2));
        let sent_epoch = if late.is_some() { epoch - 1 } else { epoch };
        let recipients: Vec<usize> = match &late {
            Some(before) => members.intersection(before).copied().collect(),
            None => members.iter().copied().collect(),
        };
        let (request, message, text_hash) = (self.hash(), self.hash(), self.hash());
        let named = (self.groups[group].clone(), request, message.clone());
        let at_us = self.tick();
        let (of, request, sent) = named.clone();
        let sending = Event::Sending { group: of, request, message: sent, epoch: sent_epoch, text_hash: text_hash.clone() };
        self.log(sender, at_us, sending);
        let at_us = self.tick();
        let (of, request, sent) = named;
        let fate = self.rng.random_range(0..20);
        if fate == 0 {
            let code = "rate_limited".to_owned();
            return self.log(sender, at_us, Event::Refused { group: of, request, message: sent, code });
        }
        let owed = fate != 1;
        if owed {
            self.log(sender, at_us, Event::Accepted { group: of, request, message: sent, epoch });
        }
        for recipient in recipients.into_iter().filter(|recipient| self.own_copies || *recipient != sender) {
            let slot = Slot {
                at_us,
                group,
                epoch: sent_epoch,
                kind: Kind::Application,
                message: message.clone(),
                sender,
                text_hash: Some(text_hash.clone()),
                outcome: if recipient == sender { "own" } else { "ok" }.to_owned(),
                owed: owed && recipient != sender,
                after: After::Nothing,
                gap_before: 0,
            };
            self.queues[recipient].push(slot);
        }
    }

    fn random_commit(&mut self, group: usize) {
        let mut next = self.members(group).clone();
        let members: Vec<usize> = next.iter().copied().collect();
        let committer = *members.choose(&mut self.rng).expect("a group has members");
        match self.rng.random_range(0..3) {
            0 => {}
            1 => {
                next.insert(self.rng.random_range(0..self.clients.len()));
            }
            _ => {
                let removed = *members.choose(&mut self.rng).expect("a group has members");
                if removed != committer && next.len() > 2 {
                    next.remove(&removed);
                }
            }
        }
        self.commit(group, committer, &next);
    }

    fn commit(&mut self, group: usize, committer: usize, next: &BTreeSet<usize>) {
        let from = self.epoch(group);
        let members = self.members(group).clone();
        let (request, commit) = (self.hash(), self.hash());
        let of = self.groups[group].clone();
        let at_us = self.tick();
        let committing = Event::Committing { group: of.clone(), request: request.clone(), commit: commit.clone(), epoch: from };
        self.log(committer, at_us, committing);
        let at_us = self.tick();
        self.log(committer, at_us, Event::CommitAccepted { group: of, request, commit: commit.clone(), epoch: from + 1 });
        self.state[group].members.push(next.clone());
        let view = self.view(group, false);
        self.log_after(committer, group, &view);
        let slot = Slot {
            at_us: self.now_us,
            group,
            epoch: from,
            kind: Kind::Commit,
            message: commit,
            sender: committer,
            text_hash: None,
            outcome: "ok".to_owned(),
            owed: true,
            after: view,
            gap_before: 0,
        };
        for recipient in members.iter().copied().filter(|recipient| self.own_copies || *recipient != committer) {
            let mut slot = slot.clone();
            if recipient == committer {
                (slot.outcome, slot.owed, slot.after) = ("own".to_owned(), false, After::Nothing);
            } else if !next.contains(&recipient) {
                slot.after = After::Left { epoch: from + 1 };
            }
            self.queues[recipient].push(slot);
        }
        let welcome = self.hash();
        for added in next.difference(&members).copied().collect::<Vec<_>>() {
            let mut slot = slot.clone();
            (slot.kind, slot.message, slot.epoch, slot.after) =
                (Kind::Welcome, welcome.clone(), from + 1, self.view(group, true));
            self.queues[added].push(slot);
        }
    }

    /// Queue positions that `wanted` likes.
    pub(super) fn positions(&self, wanted: impl Fn(usize, usize, &Slot) -> bool) -> Vec<(usize, usize)> {
        let slots = self
            .queues
            .iter()
            .enumerate()
            .flat_map(|(client, queue)| queue.iter().enumerate().map(move |(position, slot)| (client, position, slot)));
        slots
            .filter(|(client, position, slot)| wanted(*client, *position, slot))
            .map(|(client, position, _)| (client, position))
            .collect()
    }

    /// How many entries of `client`'s queue it processes.
    pub(super) fn processed(&self, client: usize) -> usize {
        self.queues[client].len().saturating_sub(self.unprocessed[client])
    }

    /// The logs, mixed by time.
    pub(super) fn render(mut self) -> Vec<Line> {
        let queues = std::mem::take(&mut self.queues);
        for (client, queue) in queues.into_iter().enumerate() {
            let name = format!("queue-{client}");
            let processed = queue.len().saturating_sub(self.unprocessed[client]);
            let (mut now_us, mut sequence, mut sequences) = (0, 0, Vec::new());
            let mut again = Vec::new();
            for (position, slot) in queue.into_iter().enumerate() {
                sequence += 1 + slot.gap_before;
                sequences.push(sequence);
                let of = self.groups[slot.group].clone();
                let message = Some(slot.message.clone());
                if position >= processed {
                    let queued =
                        Event::Queued { queue: name.clone(), sequence, group: of, epoch: slot.epoch, kind: slot.kind, message };
                    self.log(client, u64::MAX, queued);
                    continue;
                }
                now_us = now_us.max(slot.at_us) + self.rng.random_range(50..20_000);
                let received = Event::Received {
                    queue: name.clone(),
                    sequence,
                    group: of.clone(),
                    epoch: slot.epoch,
                    kind: slot.kind,
                    message,
                    sender: Some(self.clients[slot.sender].clone()),
                    text_hash: slot.text_hash.clone(),
                    outcome: slot.outcome.clone(),
                };
                if self.replays.contains(&(client, position)) {
                    again.push(received.clone());
                }
                self.log(client, now_us, received);
                for event in events_after(&slot.after, &of) {
                    self.log(client, now_us, event);
                }
                if position + 1 == processed || self.rng.random_bool(0.3) {
                    self.log(client, now_us, Event::Acked { queue: name.clone(), up_to: sequence });
                }
            }
            for event in again {
                self.log(client, now_us + 1, event);
            }
        }
        // Stable: what a client logged in one microsecond stays in its order.
        self.lines.sort_by_key(|line| line.at_us);
        self.lines
    }
}

fn events_after(after: &After, group: &str) -> Vec<Event> {
    let group = group.to_owned();
    match after.clone() {
        After::Nothing => Vec::new(),
        After::Left { epoch } => vec![Event::Left { group, epoch }],
        After::View { joined, epoch, members, authenticator } => {
            let view = Event::Epoch { group: group.clone(), epoch, members, authenticator };
            if joined { vec![Event::Joined { group, epoch }, view] } else { vec![view] }
        }
    }
}
