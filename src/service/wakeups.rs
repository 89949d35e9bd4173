//! Who waits for which queue: a subscription is woken as soon as an entry is on disk.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Notify;

use crate::base::ids::QueueId;

/// The queues that have subscribers now.
#[derive(Default)]
pub(super) struct QueueWaiters(Mutex<HashMap<QueueId, Weak<Notify>>>);

impl QueueWaiters {
    /// What wakes the subscribers of a queue. Forgotten when the last of them drops it.
    pub(super) fn subscribe(&self, queue_id: QueueId) -> Arc<Notify> {
        let mut waiters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(notify) = waiters.get(&queue_id).and_then(Weak::upgrade) {
            return notify;
        }
        waiters.retain(|_, waiter| waiter.strong_count() > 0);
        let notify = Arc::new(Notify::new());
        waiters.insert(queue_id, Arc::downgrade(&notify));
        notify
    }

    /// Wakes whoever waits for any queue.
    pub(super) fn wake_all(&self) {
        let waiters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for notify in waiters.values().filter_map(Weak::upgrade) {
            notify.notify_waiters();
        }
    }

    /// Wakes whoever waits for one of these queues.
    pub(super) fn wake(&self, queues: impl IntoIterator<Item = QueueId>) {
        let waiters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for queue_id in queues {
            if let Some(notify) = waiters.get(&queue_id).and_then(Weak::upgrade) {
                notify.notify_waiters();
            }
        }
    }
}
