//! What the model says of a request: which faults it has, by the protocol's rules and without a look at the hub.

use std::collections::{BTreeMap, BTreeSet};

use super::{JoinKind, Kind, People};
use crate::base::UserUri;
use crate::base::limits::APPLICATION_PAST_EPOCHS_MAX;
use crate::ds::Cause;
use crate::wire::ErrorCode;

/// What is known of a group.
#[derive(Clone, Default)]
pub(super) struct Group {
    /// Which device is at which leaf.
    pub(super) devices: BTreeMap<u32, usize>,
    /// The epoch in which each leaf became a member.
    pub(super) joined: BTreeMap<u32, u64>,
    /// Where the messages of each leaf go.
    pub(super) information: BTreeMap<u32, Vec<u8>>,
    pub(super) epoch: u64,
    /// The leaves that the DS wants removed.
    pub(super) wanted: BTreeMap<u32, Cause>,
    /// The Removes of the epoch that are not withdrawn, and those that are.
    pub(super) pending: BTreeSet<u32>,
    pub(super) withdrawn: BTreeSet<u32>,
    /// Who has proposed an Update in this epoch.
    pub(super) proposers: BTreeSet<u32>,
    pub(super) open: bool,
    pub(super) closed: bool,
}

/// The faults of a request, each with its code where the code is told by the protocol. None: it must be accepted.
pub(super) type Faults = Vec<Option<ErrorCode>>;

/// A member's Commit.
pub(super) struct Commit<'a> {
    pub(super) by: u32,
    pub(super) kind: Kind,
    pub(super) adds: &'a [usize],
    pub(super) removes: &'a BTreeSet<u32>,
    pub(super) policy: Option<bool>,
    /// The Removes of the DS that it covers.
    pub(super) covers: &'a BTreeSet<u32>,
}

impl Group {
    fn user<'a>(&self, people: &'a People, leaf: u32) -> &'a UserUri {
        people.devices[self.devices[&leaf]].uri.user()
    }

    pub(super) fn leaves_of<'a>(&'a self, people: &'a People, user: &'a UserUri) -> impl Iterator<Item = u32> + 'a {
        self.devices.iter().filter(move |(_, device)| people.devices[**device].uri.user() == user).map(|(leaf, _)| *leaf)
    }

    /// Wants a leaf removed; returns whether that is news: whether it was not wanted, or for a less final cause.
    pub(super) fn want(&mut self, leaf: u32, cause: Cause) -> bool {
        let finality = |cause: Cause| match cause {
            Cause::Inactive | Cause::QueueRejected | Cause::Undeliverable => 0,
            Cause::Expired | Cause::Replaced => 1,
            Cause::Left | Cause::Declined | Cause::ClientRevoked | Cause::UserDeleted => 2,
        };
        match self.wanted.get(&leaf) {
            Some(known) if finality(*known) >= finality(cause) => false,
            _ => {
                self.wanted.insert(leaf, cause);
                true
            }
        }
    }

    pub(super) fn judge_commit(&self, people: &People, limit: usize, commit: &Commit<'_>) -> Faults {
        let Commit { by, kind, adds, removes, policy, covers } = commit;
        let mut faults = Faults::new();
        let invalid = Some(ErrorCode::InvalidCommit);
        if self.closed {
            faults.push(Some(ErrorCode::GroupDeleted));
        }
        if self.wanted.contains_key(by) {
            faults.push(Some(ErrorCode::NotAuthorized));
        }
        if !self.pending.is_subset(covers) {
            faults.push(Some(ErrorCode::PendingProposals));
        }
        let gone: BTreeSet<u32> = removes.union(covers).copied().collect();
        let staying: Vec<u32> = self.devices.keys().filter(|leaf| !gone.contains(leaf)).copied().collect();
        let users_of = |leaves: &BTreeSet<u32>| leaves.iter().map(|leaf| self.user(people, *leaf)).collect::<BTreeSet<_>>();
        let there: BTreeSet<&UserUri> = staying.iter().map(|leaf| self.user(people, *leaf)).collect();
        let added: BTreeSet<&UserUri> = adds.iter().map(|device| people.devices[*device].uri.user()).collect();
        let removed = users_of(removes);
        let mut clients: BTreeSet<String> =
            staying.iter().map(|leaf| people.devices[self.devices[leaf]].uri.to_string()).collect();
        if adds.iter().any(|device| !clients.insert(people.devices[*device].uri.to_string())) {
            faults.push(invalid);
        }
        let does = (!adds.is_empty(), !removes.is_empty(), policy.is_some());
        let fits = match kind {
            Kind::AddUsers => does == (true, false, false) && added.is_disjoint(&there),
            Kind::AddClients => does == (true, false, false) && added.is_subset(&there),
            Kind::RemoveUsers => {
                let whole = removed.iter().all(|user| self.leaves_of(people, user).all(|leaf| gone.contains(&leaf)));
                does == (false, true, false) && whole && !removed.contains(self.user(people, *by))
            }
            Kind::RemoveClients => does == (false, true, false) && removed.is_subset(&there),
            Kind::UpdateClient => does == (false, false, false),
            Kind::UpdateGroup => does == (false, false, true),
            Kind::DeleteGroup => !does.0 && !does.2 && staying == [*by],
        };
        if !fits {
            faults.push(invalid);
        }
        if !adds.is_empty() && staying.len() + adds.len() > limit {
            faults.push(Some(ErrorCode::TooLarge));
        }
        faults
    }

    pub(super) fn judge_join(&self, people: &People, limit: usize, device: usize, old: Option<u32>, kind: JoinKind) -> Faults {
        let mut faults = Faults::new();
        let not_authorized = Some(ErrorCode::NotAuthorized);
        if self.closed {
            faults.push(Some(ErrorCode::GroupDeleted));
        }
        let user = people.devices[device].uri.user();
        let is_member = self.leaves_of(people, user).next().is_some();
        match kind {
            JoinKind::Group if is_member || !self.open => faults.push(not_authorized),
            JoinKind::Client if !is_member => faults.push(not_authorized),
            _ => {}
        }
        let barred = self.leaves_of(people, user).any(|leaf| match (self.wanted.get(&leaf), old) {
            (Some(Cause::Left), _) | (Some(Cause::UserDeleted), None) => true,
            (Some(Cause::Declined | Cause::ClientRevoked | Cause::UserDeleted), Some(old)) => leaf == old,
            _ => false,
        });
        if barred {
            faults.push(not_authorized);
        }
        if self.devices.iter().any(|(leaf, there)| *there == device && Some(*leaf) != old) {
            // One key, two leaves.
            faults.push(Some(ErrorCode::InvalidCommit));
        }
        if self.devices.len() - usize::from(old.is_some()) + 1 > limit {
            faults.push(Some(ErrorCode::TooLarge));
        }
        faults
    }

    pub(super) fn judge_message(&self, by: u32, epoch: u64) -> Faults {
        let mut faults = Faults::new();
        if self.closed {
            faults.push(Some(ErrorCode::GroupDeleted));
        }
        if !self.pending.is_empty() {
            faults.push(Some(ErrorCode::PendingProposals));
        }
        if self.epoch - epoch > APPLICATION_PAST_EPOCHS_MAX {
            faults.push(Some(ErrorCode::WrongEpoch));
        } else if self.joined.get(&by).is_some_and(|joined| epoch < *joined) {
            faults.push(Some(ErrorCode::NotAuthorized));
        }
        faults
    }

    pub(super) fn judge_proposal(&self, by: u32) -> Faults {
        let mut faults = Faults::new();
        if self.closed {
            faults.push(Some(ErrorCode::GroupDeleted));
        }
        if self.wanted.contains_key(&by) {
            faults.push(Some(ErrorCode::NotAuthorized));
        }
        if self.proposers.contains(&by) {
            faults.push(Some(ErrorCode::InvalidProposal));
        }
        faults
    }

    /// A request that any member may make as long as the group is there.
    pub(super) fn judge_open(&self) -> Faults {
        if self.closed { vec![Some(ErrorCode::GroupDeleted)] } else { Faults::new() }
    }
}
