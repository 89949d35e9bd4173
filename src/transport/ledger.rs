//! [`Ledger`]: who holds how many octets of a port's memory for frames. Pure.
//!
//! Octets are taken for a whole frame when its length is known and given back when they are not needed any more, so that every
//! frame that begins can end. There is so much for each holder and so much for all; while all of it is held, nobody who holds
//! little waits for somebody who holds much: of the one that holds most, the frame that has waited longest *for the other side* is
//! cut. That is a slow sender's or a slow reader's. A frame that is being served is never cut.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tokio::sync::Notify;

use super::room::Holder;
use crate::base::limits;

/// Octets that are held: for which frame, and how its holder learns that it is cut.
#[derive(Debug)]
struct Entry {
    holder: Holder,
    octets: usize,
    cut: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Account {
    octets: usize,
    /// Frames that wait for the other side, oldest first.
    waiting: BTreeSet<u64>,
}

/// The octets of one port.
#[derive(Debug)]
pub(super) struct Ledger {
    total_max: usize,
    holder_max: usize,
    total: usize,
    /// Of the total, in frames that are cut and not yet given back.
    leaving: usize,
    accounts: HashMap<Holder, Account>,
    entries: BTreeMap<u64, Entry>,
    next: u64,
}

impl Ledger {
    /// `total_max`: octets for all holders; each may hold a part of it, but always a whole frame.
    pub(super) fn new(total_max: usize) -> Self {
        Self {
            total_max,
            holder_max: (total_max / limits::HELD_HOLDER_PART).max(limits::FRAME_BYTES_MAX),
            total: 0,
            leaving: 0,
            accounts: HashMap::new(),
            entries: BTreeMap::new(),
            next: 0,
        }
    }

    /// Takes `octets` for a frame that will be read. `None`: there is no room now; room may have been made.
    pub(super) fn take(&mut self, holder: &Holder, octets: usize) -> Option<(u64, Arc<Notify>)> {
        let charge = octets.max(limits::HELD_FRAME_BYTES_MIN);
        let held = self.held(holder);
        if held + charge > self.holder_max {
            return None;
        }
        if self.total + charge > self.total_max {
            self.make_room(held, charge);
            return None;
        }
        Some(self.enter(holder, charge))
    }

    /// Takes `octets` for an answer, which is in memory already: at once, or it is given up (`None`). A holder may have twice as much
    /// with answers as without. What somebody else holds may be cut for it; until that is given back, the total is exceeded.
    pub(super) fn hold(&mut self, holder: &Holder, octets: usize) -> Option<(u64, Arc<Notify>)> {
        let charge = octets.max(limits::HELD_FRAME_BYTES_MIN);
        let held = self.held(holder);
        if held + charge > self.holder_max.saturating_mul(2) {
            return None;
        }
        if self.total + charge > self.total_max && !self.make_room(held, charge) {
            return None;
        }
        Some(self.enter(holder, charge))
    }

    /// The frame is there: from now on this node works on it, and it is not cut. `false`: it was cut before.
    pub(super) fn serve(&mut self, id: u64) -> bool {
        let Some(entry) = self.entries.get(&id) else { return false };
        self.accounts.get_mut(&entry.holder).is_some_and(|account| account.waiting.remove(&id))
    }

    /// The frame's octets are no longer needed.
    pub(super) fn give_back(&mut self, id: u64, is_served: bool) {
        let Some(entry) = self.entries.remove(&id) else { return };
        self.total -= entry.octets;
        if let Some(account) = self.accounts.get_mut(&entry.holder) {
            account.octets -= entry.octets;
            let was_waiting = account.waiting.remove(&id);
            if !was_waiting && !is_served {
                self.leaving -= entry.octets;
            }
            if account.octets == 0 {
                self.accounts.remove(&entry.holder);
            }
        }
    }

    fn held(&self, holder: &Holder) -> usize {
        self.accounts.get(holder).map_or(0, |account| account.octets)
    }

    fn enter(&mut self, holder: &Holder, octets: usize) -> (u64, Arc<Notify>) {
        let (id, cut) = (self.next, Arc::new(Notify::new()));
        self.next += 1;
        self.total += octets;
        let account = self.accounts.entry(holder.clone()).or_default();
        account.octets += octets;
        account.waiting.insert(id);
        self.entries.insert(id, Entry { holder: holder.clone(), octets, cut: cut.clone() });
        (id, cut)
    }

    /// Cuts frames until `charge` octets more fit, for somebody who holds `held`; only of holders that have more than these
    /// together. Returns whether there will be room.
    fn make_room(&mut self, held: usize, charge: usize) -> bool {
        while self.total - self.leaving + charge > self.total_max {
            let most =
                self.accounts.values_mut().filter(|account| !account.waiting.is_empty()).max_by_key(|account| account.octets);
            let Some(account) = most.filter(|account| account.octets > held + charge) else { return false };
            let Some(entry) = account.waiting.pop_first().and_then(|id| self.entries.get(&id)) else { return false };
            self.leaving += entry.octets;
            entry.cut.notify_one();
        }
        true
    }

    /// How many octets are held.
    #[cfg(test)]
    pub(super) fn total(&self) -> usize {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    const MIB: usize = 1024 * 1024;

    fn who(name: &str) -> Holder {
        Holder::Peer(name.parse().expect("a domain"))
    }

    type Taken = (u64, Arc<Notify>);

    /// A ledger of 32 MiB, 8 for each, and the frames of 4 MiB that each of these is given at once.
    fn filled(holders: &[&str]) -> (Ledger, Vec<Vec<Taken>>) {
        let mut ledger = Ledger::new(32 * MIB);
        let taken = holders.iter().map(|name| std::iter::from_fn(|| ledger.take(&who(name), 4 * MIB)).collect()).collect();
        (ledger, taken)
    }

    fn is_cut(taken: &Taken) -> bool {
        std::pin::pin!(taken.1.notified()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn one_holder_has_its_part_and_no_more() {
        let (mut ledger, taken) = filled(&["a.test"]);
        assert_eq!(taken[0].len(), 2);
        assert_eq!(ledger.total(), 8 * MIB);
        assert!(ledger.take(&who("a.test"), 1).is_none(), "it waits, and nobody is cut for it");
        assert!(!taken[0].iter().any(is_cut));
        assert!(ledger.take(&who("b.test"), 4 * MIB).is_some());
        let (id, _) = &taken[0][0];
        ledger.give_back(*id, false);
        assert!(ledger.take(&who("a.test"), 4 * MIB).is_some());
    }

    #[test]
    fn when_all_is_held_the_oldest_frame_of_whoever_holds_most_gives_way() {
        let (mut ledger, taken) = filled(&["a.test", "b.test", "c.test", "d.test"]);
        assert_eq!(ledger.total(), 32 * MIB);
        // What is being served is not cut.
        assert!(ledger.serve(taken[3][0].0) && ledger.serve(taken[3][1].0));
        assert!(ledger.take(&who("e.test"), MIB).is_none(), "not before it is given back");
        let cut: Vec<(usize, usize)> = (0..4)
            .flat_map(|who| (0..2).map(move |frame| (who, frame)))
            .filter(|(who, frame)| is_cut(&taken[*who][*frame]))
            .collect();
        assert_eq!(cut.len(), 1, "one was enough: {cut:?}");
        let (victim, frame) = cut[0];
        assert_eq!((frame, victim == 3), (0, false));
        assert!(ledger.take(&who("f.test"), MIB).is_none());
        assert_eq!(taken.iter().flatten().filter(|taken| is_cut(taken)).count(), 0, "what is leaving is enough for two");
        assert!(!ledger.serve(taken[victim][frame].0), "it is too late for it");
        ledger.give_back(taken[victim][frame].0, false);
        assert!(ledger.take(&who("e.test"), MIB).is_some() && ledger.take(&who("f.test"), MIB).is_some());
        assert_eq!((ledger.total(), ledger.leaving), (30 * MIB, 0));
    }

    #[test]
    fn nobody_who_holds_as_much_is_preferred() {
        let (mut ledger, taken) = filled(&["a.test", "b.test", "c.test", "d.test"]);
        let (id, _) = &taken[0][0];
        ledger.give_back(*id, false);
        assert!(ledger.take(&who("e.test"), 4 * MIB).is_some());
        // e.test would hold 8 MiB, as everyone else.
        assert!(ledger.take(&who("e.test"), 4 * MIB).is_none());
        assert!(!taken.iter().flatten().any(is_cut));
    }

    #[test]
    fn an_answer_has_room_at_once_or_is_given_up() {
        let (mut ledger, taken) = filled(&["a.test", "b.test", "c.test"]);
        assert!(ledger.take(&who("a.test"), 1).is_none());
        let answers: Vec<_> = std::iter::from_fn(|| ledger.hold(&who("a.test"), 4 * MIB)).collect();
        assert_eq!(answers.len(), 2, "a holder has twice its part with answers");
        // All is held now.
        let answer = ledger.hold(&who("d.test"), MIB).expect("somebody gives way");
        assert!(is_cut(&taken[0][0]), "whoever holds most");
        assert_eq!(ledger.total(), 33 * MIB);
        ledger.give_back(taken[0][0].0, false);
        ledger.give_back(answer.0, false);
        for taken in taken.iter().flatten().skip(1).chain(&answers) {
            ledger.give_back(taken.0, false);
        }
        assert_eq!((ledger.total(), ledger.leaving, ledger.accounts.len()), (0, 0, 0));
    }

    #[test]
    fn a_frame_of_nothing_costs_something() {
        let mut ledger = Ledger::new(32 * MIB);
        let taken = std::iter::from_fn(|| ledger.take(&who("a.test"), 0)).count();
        assert_eq!(taken, 8 * MIB / limits::HELD_FRAME_BYTES_MIN);
    }
}
