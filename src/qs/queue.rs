//! Queues with bounds (X3, X4): what an arrival does to one.

use crate::base::limits::QUEUE_MARKERS_PER_HUB_MAX;
use crate::base::rule::on;

/// Up to where a queue takes messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// The most entries, markers included.
    pub entries_max: u64,
    /// The most octets of deliveries.
    pub octets_max: u64,
}

/// What a queue holds that its client has not acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueState {
    /// The generation that queue informations are sealed in now.
    pub generation: u32,
    /// The newest generation that no longer works.
    pub retired_generation: u32,
    /// Its entries, markers included.
    pub entries: u64,
    /// The octets of their deliveries; markers count nothing.
    pub octets: u64,
}

/// What becomes of an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It is the queue's next entry.
    Entry,
    /// A `messages_lost` of its group is, in its place.
    Marker,
    /// Nothing: the last that the queue holds of its group is such a marker, and covers it.
    Covered,
    /// The hub is told that the queue information is not valid.
    Refused,
}

/// Whether a queue takes what comes by an information of `generation`. `queue`: `None` when it is gone.
pub fn takes_generation(queue: Option<&QueueState>, generation: u32) -> bool {
    // QS-004 (S14): the queue is there.
    let Some(queue) = queue else { return !on("QS-004") };
    // QS-003 (X3): the generation is one that the queue has had, and not retired.
    !on("QS-003") || (generation > queue.retired_generation && generation <= queue.generation)
}

/// QS-007 (X4): a queue takes messages up to its limits of entries and octets; what is over them is lost, which a marker says.
/// `octets`: of the delivery.
pub fn has_room(queue: &QueueState, limits: &QueueLimits, octets: u64) -> bool {
    !on("QS-007") || (queue.entries < limits.entries_max && queue.octets.saturating_add(octets) <= limits.octets_max)
}

/// How a loss is told. `marked`: the last un-acknowledged entry of the group is a marker. `markers_of_hub`: the groups of this
/// hub that this is so of.
pub fn tell_loss(marked: bool, markers_of_hub: u64) -> Arrival {
    if marked {
        return Arrival::Covered;
    }
    // QS-008 (X4): a hub has at most so many groups with a marker in a queue; no honest one has more groups with one user.
    if on("QS-008") && markers_of_hub >= QUEUE_MARKERS_PER_HUB_MAX {
        return Arrival::Refused;
    }
    Arrival::Marker
}

/// What an arrival does to a queue that takes it. `message_octets`: `None` for an arrival that is itself the news of a loss.
pub fn arrive(
    queue: &QueueState,
    limits: &QueueLimits,
    message_octets: Option<u64>,
    marked: bool,
    markers_of_hub: u64,
) -> Arrival {
    match message_octets {
        Some(octets) if has_room(queue, limits, octets) => Arrival::Entry,
        _ => tell_loss(marked, markers_of_hub),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: QueueLimits = QueueLimits { entries_max: 3, octets_max: 100 };

    fn queue(entries: u64, octets: u64) -> QueueState {
        QueueState { generation: 4, retired_generation: 1, entries, octets }
    }

    // covers QS-003, QS-004
    #[test]
    fn a_queue_that_is_there_takes_the_generations_it_has_had_and_not_retired() {
        let taken: Vec<u32> = (0..=6).filter(|generation| takes_generation(Some(&queue(0, 0)), *generation)).collect();
        assert_eq!(taken, [2, 3, 4]);
        assert!(!takes_generation(None, 2));
    }

    // covers QS-007, QS-008
    #[test]
    fn over_its_limits_a_queue_takes_one_marker_for_each_group() {
        assert_eq!(arrive(&queue(2, 90), &LIMITS, Some(10), true, 7), Arrival::Entry, "up to both limits");
        for (full, octets) in
            [(queue(3, 0), 1), (queue(9, 0), 1), (queue(0, 91), 10), (queue(0, 0), 101), (queue(0, 1), u64::MAX)]
        {
            assert_eq!(arrive(&full, &LIMITS, Some(octets), false, 7), Arrival::Marker, "{full:?}");
            assert_eq!(arrive(&full, &LIMITS, Some(octets), true, 7), Arrival::Covered, "{full:?}");
            let most = QUEUE_MARKERS_PER_HUB_MAX;
            assert_eq!(arrive(&full, &LIMITS, Some(octets), false, most - 1), Arrival::Marker);
            assert_eq!(arrive(&full, &LIMITS, Some(octets), false, most), Arrival::Refused);
            assert_eq!(arrive(&full, &LIMITS, Some(octets), true, most), Arrival::Covered, "which costs nothing");
        }
        assert_eq!(arrive(&queue(0, 0), &LIMITS, None, false, 0), Arrival::Marker, "the news of a loss is a marker");
        assert_eq!(arrive(&queue(0, 0), &LIMITS, None, true, 0), Arrival::Covered);
    }
}
