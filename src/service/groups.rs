//! Groups held in memory: one lock per group, so that its requests are decided one after the other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::base::limits::HOT_GROUPS_MAX;
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
}

type Shared = Arc<tokio::sync::Mutex<HotGroup>>;

/// The groups in memory, at most [`HOT_GROUPS_MAX`] of them.
#[derive(Default)]
pub(super) struct HotGroups(Mutex<Cache>);

#[derive(Default)]
struct Cache {
    groups: HashMap<GroupUri, (Shared, u64)>,
    clock: u64,
}

impl HotGroups {
    /// The group's place in memory, perhaps empty yet. The least recently used one that nobody holds makes room.
    pub(super) fn slot(&self, uri: &GroupUri) -> Shared {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cache.clock += 1;
        let clock = cache.clock;
        if let Some((group, used)) = cache.groups.get_mut(uri) {
            *used = clock;
            return group.clone();
        }
        if cache.groups.len() >= HOT_GROUPS_MAX {
            let idle = cache.groups.iter().filter(|(_, (group, _))| Arc::strong_count(group) == 1);
            if let Some(oldest) = idle.min_by_key(|(_, (_, used))| *used).map(|(uri, _)| uri.clone()) {
                cache.groups.remove(&oldest);
            }
        }
        let group = Shared::default();
        cache.groups.insert(uri.clone(), (group.clone(), clock));
        group
    }

    /// Gives the place of a group that does not exist back.
    pub(super) fn release(&self, uri: &GroupUri) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).groups.remove(uri);
    }
}
