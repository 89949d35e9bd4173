//! Groups held in memory: one lock per group, so that its requests are decided one after the other, and a budget for all of them.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedMutexGuard;

use crate::base::limits::HEAVY_GROUP_LEAVES;
use crate::base::{Fault, GroupUri};
use crate::ds::GroupState;
use crate::mls::Tree;
use crate::storage::Storage;

/// A group as far as it is loaded. What is in here is on disk; after a failed write it is dropped and read anew.
#[derive(Default)]
pub(super) struct HotGroup {
    /// The small record.
    pub(super) state: Option<GroupState>,
    /// The tree, once a Commit needed it.
    pub(super) tree: Option<HotTree>,
}

/// A tree in memory.
pub(super) struct HotTree {
    /// In the current epoch.
    pub(super) tree: Tree,
    /// Log records since the last snapshot.
    pub(super) log_records: u64,
}

impl HotGroup {
    /// Loads the small record if it is not there; `None` when there is no such group.
    pub(super) async fn state(&mut self, storage: &Storage, uri: &GroupUri) -> Result<Option<&mut GroupState>, Fault> {
        if self.state.is_none() {
            self.state = storage.group_state(uri).await?;
        }
        Ok(self.state.as_mut())
    }

    /// Loads the tree of the current epoch if it is not there.
    pub(super) async fn load_tree(&mut self, storage: &Storage, uri: &GroupUri) -> Result<(), Fault> {
        if let (None, Some(state)) = (&self.tree, &self.state) {
            let (tree, log_records) = storage.group_tree(uri, state.head.epoch).await?;
            self.tree = Some(HotTree { tree, log_records });
        }
        Ok(())
    }

    /// Forgets what is in memory: the disk knows better.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// How many leaves it has, as far as it is loaded.
    pub(super) fn leaves(&self) -> usize {
        self.state.as_ref().map_or(0, |state| state.members.len())
    }

    /// About how much memory it takes, in octets. Costs nothing to ask, whatever the group's size.
    fn octets(&self) -> usize {
        let state = self.state.as_ref().map_or(0, GroupState::octets);
        let tree = self.tree.as_ref().map_or(0, |hot| hot.tree.octets());
        PLACE_OCTETS + state + tree
    }
}

/// What a group's place in memory takes, with nothing in it: its name three times, a lock, entries of two maps.
const PLACE_OCTETS: usize = 1_024;

/// Does MLS work that takes time in proportion to a group of so many leaves. In a large one that is milliseconds, in which other
/// requests must not wait for this thread: the runtime's other tasks go on elsewhere meanwhile.
pub(super) fn off_the_runtime<T>(leaves: usize, work: impl FnOnce() -> T) -> T {
    let runtime = tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor());
    match runtime {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) if leaves >= HEAVY_GROUP_LEAVES => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// The groups in memory. They take about as much as the budget says, and what is in use at the moment on top; the least recently
/// used ones go first. A group that is gone from here is read from the database when it is asked for again.
pub(super) struct HotGroups(Arc<Mutex<Cache>>);

struct Cache {
    octets_max: usize,
    octets: usize,
    groups: HashMap<GroupUri, Place>,
    /// By the time of the last use.
    by_use: BTreeMap<u64, GroupUri>,
    clock: u64,
}

struct Place {
    group: Arc<tokio::sync::Mutex<HotGroup>>,
    /// As of the last use.
    octets: usize,
    used: u64,
}

/// A group's place in memory, perhaps empty yet. It is not given up while somebody has it.
pub(super) struct Slot {
    cache: Arc<Mutex<Cache>>,
    uri: GroupUri,
    group: Arc<tokio::sync::Mutex<HotGroup>>,
}

/// A group that nobody else has now. When it is given back, the cache learns how large it has become.
pub(super) struct HeldGroup {
    // In the order in which they are dropped: the lock goes first.
    guard: Option<OwnedMutexGuard<HotGroup>>,
    slot: Slot,
}

impl HotGroups {
    /// No groups yet; `octets_max` is the budget for those to come.
    pub(super) fn new(octets_max: usize) -> Self {
        let cache = Cache { octets_max, octets: 0, groups: HashMap::new(), by_use: BTreeMap::new(), clock: 0 };
        Self(Arc::new(Mutex::new(cache)))
    }

    /// How many groups there are, and about how many octets they take.
    pub(super) fn totals(&self) -> (usize, usize) {
        let cache = lock(&self.0);
        (cache.groups.len(), cache.octets)
    }

    /// The group's place, made if it is not there.
    pub(super) fn slot(&self, uri: &GroupUri) -> Slot {
        let group = lock(&self.0).place(uri);
        Slot { cache: self.0.clone(), uri: uri.clone(), group }
    }
}

impl Slot {
    /// Waits until nobody else has the group.
    pub(super) async fn lock(self) -> HeldGroup {
        let guard = self.group.clone().lock_owned().await;
        HeldGroup { guard: Some(guard), slot: self }
    }
}

impl Deref for HeldGroup {
    type Target = HotGroup;

    fn deref(&self) -> &HotGroup {
        self.guard.as_ref().expect("the guard is there until the drop")
    }
}

impl DerefMut for HeldGroup {
    fn deref_mut(&mut self) -> &mut HotGroup {
        self.guard.as_mut().expect("the guard is there until the drop")
    }
}

impl Drop for HeldGroup {
    fn drop(&mut self) {
        let octets = self.octets();
        let loaded = self.state.is_some();
        // Before the cache is told: whoever waits for the group has its place, too, so that it stays.
        self.guard = None;
        lock(&self.slot.cache).given_back(&self.slot, octets, loaded);
    }
}

fn lock(cache: &Mutex<Cache>) -> MutexGuard<'_, Cache> {
    cache.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cache {
    fn place(&mut self, uri: &GroupUri) -> Arc<tokio::sync::Mutex<HotGroup>> {
        self.clock += 1;
        if let Some(place) = self.groups.get_mut(uri) {
            self.by_use.remove(&place.used);
            place.used = self.clock;
            self.by_use.insert(self.clock, uri.clone());
            return place.group.clone();
        }
        let group = Arc::<tokio::sync::Mutex<HotGroup>>::default();
        self.groups.insert(uri.clone(), Place { group: group.clone(), octets: PLACE_OCTETS, used: self.clock });
        self.by_use.insert(self.clock, uri.clone());
        self.octets += PLACE_OCTETS;
        group
    }

    /// Takes note of a group's size; gives up an empty place, and what is over the budget.
    fn given_back(&mut self, slot: &Slot, octets: usize, loaded: bool) {
        // A place that was given up and made again belongs to others.
        let Some(place) = self.groups.get_mut(&slot.uri).filter(|place| Arc::ptr_eq(&place.group, &slot.group)) else { return };
        self.octets = self.octets - place.octets + octets;
        place.octets = octets;
        // One is the cache's own, one the slot's that is being dropped.
        if !loaded && Arc::strong_count(&place.group) == 2 {
            self.give_up(&slot.uri);
        }
        self.make_room(&slot.uri);
    }

    /// Gives up places that nobody has, the least recently used ones first, until the budget is kept. `released`: the place whose
    /// slot is being dropped, which counts as one that nobody has if nobody else does.
    fn make_room(&mut self, released: &GroupUri) {
        while self.octets > self.octets_max {
            let idle = self.by_use.values().find(|uri| {
                let holders = 1 + usize::from(*uri == released);
                self.groups.get(*uri).is_some_and(|place| Arc::strong_count(&place.group) <= holders)
            });
            let Some(uri) = idle.cloned() else { return };
            self.give_up(&uri);
        }
    }

    fn give_up(&mut self, uri: &GroupUri) {
        if let Some(place) = self.groups.remove(uri) {
            self.by_use.remove(&place.used);
            self.octets -= place.octets;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{ClientUri, Domain};
    use crate::ds::state::{Head, Member, QueueAddress};

    fn uri(number: u8) -> GroupUri {
        GroupUri::new(&"a.test".parse().expect("a domain"), &[number; 16])
    }

    /// A group's small record.
    fn state(uri: &GroupUri, members: u32) -> GroupState {
        let domain: Domain = "a.test".parse().expect("a domain");
        let member = |leaf: u32| Member {
            signature_key: vec![0; 32],
            client: format!("mimi://a.test/d/user{leaf}/phone").parse::<ClientUri>().expect("a client"),
            queue: QueueAddress { domain: domain.clone(), information: vec![0; 150] },
            joined_epoch: 0,
            user_key_hash: [0; 32],
            heard_at_ms: 0,
            not_after_ms: 0,
        };
        let members = (0..members).map(|leaf| (leaf, member(leaf))).collect();
        GroupState { uri: uri.clone(), revision: 0, head: Head::default(), members }
    }

    impl HotGroups {
        fn sizes(&self) -> (usize, usize) {
            let cache = lock(&self.0);
            assert_eq!(cache.groups.len(), cache.by_use.len());
            assert_eq!(cache.groups.values().map(|place| place.octets).sum::<usize>(), cache.octets);
            (cache.groups.len(), cache.octets)
        }
    }

    async fn fill(groups: &HotGroups, number: u8, members: u32) {
        let uri = uri(number);
        groups.slot(&uri).lock().await.state = Some(state(&uri, members));
    }

    #[tokio::test]
    async fn the_budget_is_kept_and_the_least_recently_used_group_goes_first() {
        let large = PLACE_OCTETS + state(&uri(0), 100).octets();
        let groups = HotGroups::new(3 * large);
        for number in 1..=3 {
            fill(&groups, number, 100).await;
        }
        assert_eq!(groups.sizes(), (3, 3 * large));
        // The first one is used again, so the second goes for the fourth; the fourth is small, so that a fifth fits, too.
        assert!(groups.slot(&uri(1)).lock().await.state.is_some());
        fill(&groups, 4, 1).await;
        fill(&groups, 5, 1).await;
        assert_eq!(groups.sizes().0, 4);
        assert!(groups.slot(&uri(1)).lock().await.state.is_some());
        assert!(groups.slot(&uri(2)).lock().await.state.is_none(), "gone");
        assert!(groups.slot(&uri(3)).lock().await.state.is_some());
        // What grows makes others go.
        fill(&groups, 4, 250).await;
        let (count, octets) = groups.sizes();
        assert!(octets <= 3 * large && count < 4, "{count} groups, {octets} octets");
        assert!(groups.slot(&uri(4)).lock().await.state.is_some(), "itself last of all");
    }

    #[tokio::test]
    async fn a_group_in_use_stays_and_one_that_is_too_large_does_not_outlast_its_use() {
        let groups = HotGroups::new(4 * PLACE_OCTETS);
        let mut first = groups.slot(&uri(1)).lock().await;
        first.state = Some(state(&uri(1), 1_000));
        let waiting = tokio::spawn(groups.slot(&uri(1)).lock());
        fill(&groups, 2, 1_000).await;
        drop(first);
        let first = waiting.await.expect("its turn comes");
        assert!(first.state.is_some(), "the same group, for whoever waited");
        assert_eq!(groups.sizes().0, 1);
        drop(first);
        assert_eq!(groups.sizes(), (0, 0), "over the budget all by itself");
        assert!(groups.slot(&uri(1)).lock().await.state.is_none());
    }

    #[tokio::test]
    async fn a_group_that_does_not_exist_takes_no_memory() {
        let groups = HotGroups::new(usize::MAX);
        for number in 0..=255 {
            drop(groups.slot(&uri(number)).lock().await);
        }
        assert_eq!(groups.sizes(), (0, 0));
        // A slot that is dropped before its turn comes leaves a place behind at most until the next use.
        drop(groups.slot(&uri(1)));
        assert_eq!(groups.sizes().0, 1);
        drop(groups.slot(&uri(1)).lock().await);
        assert_eq!(groups.sizes(), (0, 0));
    }

    // Shows: on a runtime of one worker, another task goes on while a large group's work lasts; without that it would never end.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn the_work_of_a_large_group_holds_nobody_up() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let work = tokio::spawn(async move {
            tokio::spawn(async move { sender.send(7).expect("somebody listens") });
            off_the_runtime(HEAVY_GROUP_LEAVES, || receiver.recv_timeout(std::time::Duration::from_secs(60)).ok())
        });
        assert_eq!(work.await.expect("it ends"), Some(7));
        assert_eq!(off_the_runtime(1, || 8), 8);
    }

    #[tokio::test]
    async fn one_at_a_time_even_while_places_come_and_go() {
        let groups = Arc::new(HotGroups::new(0));
        let inside = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let (groups, inside) = (groups.clone(), inside.clone());
            tasks.spawn(async move {
                let mut held = groups.slot(&uri(1)).lock().await;
                assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                tokio::task::yield_now().await;
                held.state = Some(state(&uri(1), 3));
                inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.expect("alone");
        }
        assert_eq!(groups.sizes(), (0, 0));
    }
}
