//! Lanes of other domains (S14, X8): which batches are looked at, and which frames of a lane are taken.

use std::collections::BTreeMap;

use tls_codec::Size as _;

use crate::base::crypto::sha256;
use crate::base::ids::Incarnation;
use crate::base::limits::{
    CLIENT_FRAME_BYTES_MAX, LANE_ANSWERS_KEPT, LANE_BATCH_FRAMES_MAX, LANE_BATCH_RECIPIENTS_MAX, LANES_PER_BATCH_MAX,
    QUEUE_INFORMATION_BYTES_MAX,
};
use crate::base::rule::{answer, on};
use crate::base::{Domain, GroupUri};
use crate::wire::peer::{LaneBatch, LaneFrame};
use crate::wire::qs::Delivery;
use crate::wire::{ErrorCode, Rejection, encode};

/// Whether a `lanes` request is looked at.
pub fn check_request(batches: &[LaneBatch]) -> Result<(), Rejection> {
    let frames = || batches.iter().flat_map(|batch| &batch.frames);
    let recipients = frames().map(|frame| frame.recipients.len()).sum::<usize>();
    // QS-040: at most so many lanes, frames and recipients come at once.
    let too_many =
        batches.len() > LANES_PER_BATCH_MAX || frames().count() > LANE_BATCH_FRAMES_MAX || recipients > LANE_BATCH_RECIPIENTS_MAX;
    if on("QS-040") && too_many { Err(ErrorCode::TooLarge.into()) } else { Ok(()) }
}

/// Whether a batch of `hub` is one of a lane; its group.
pub fn check_batch(hub: &Domain, batch: &LaneBatch) -> Result<GroupUri, Rejection> {
    let group = GroupUri::from_bytes(&batch.group_id).map_err(|_| ErrorCode::Malformed)?;
    // QS-041: a hub sends for its own groups only.
    if on("QS-041") && group.hub() != hub {
        return Err(ErrorCode::WrongHub.into());
    }
    // QS-042: frames are in strict order, and sequences begin at 1.
    let mut previous: Option<u64> = None;
    for LaneFrame { lane_sequence, .. } in &batch.frames {
        let follows = previous.is_none_or(|previous| previous.checked_add(1) == Some(*lane_sequence));
        if on("QS-042") && (*lane_sequence == 0 || !follows) {
            return Err(ErrorCode::Malformed.into());
        }
        previous = Some(*lane_sequence);
    }
    if previous.is_none() {
        return Err(answer("QS-042", ErrorCode::Malformed, ErrorCode::Internal).into());
    }
    for frame in &batch.frames {
        check_frame(frame)?;
    }
    Ok(group)
}

fn check_frame(frame: &LaneFrame) -> Result<(), Rejection> {
    // QS-043: no sealed information is larger than one can be; what is, is not looked at.
    if on("QS-043") && frame.recipients.iter().any(|information| information.len() > QUEUE_INFORMATION_BYTES_MAX) {
        return Err(ErrorCode::TooLarge.into());
    }
    // QS-046: an entry fits the frame in which its client will fetch it, or nothing behind it would ever arrive.
    if on("QS-046") && frame.delivery.tls_serialized_len() > CLIENT_FRAME_BYTES_MAX {
        return Err(ErrorCode::TooLarge.into());
    }
    // QS-047 (X8): a reset is the first frame of its incarnation.
    if on("QS-047") && frame.delivery == Delivery::Reset && frame.lane_sequence != 1 {
        return Err(ErrorCode::Malformed.into());
    }
    Ok(())
}

/// What makes a repeated frame the same frame. The recipients' informations are not part of it: they are looked up anew when a
/// frame is sent again, and may have been renewed in between.
pub fn frame_digest(frame: &LaneFrame) -> [u8; 32] {
    let recipients = (frame.recipients.len() as u64).to_be_bytes();
    sha256(&[&frame.epoch.to_be_bytes()[..], &recipients[..], &encode(&frame.delivery)].concat())
}

/// How far a lane has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneState {
    /// Its life.
    pub incarnation: Incarnation,
    /// The sequence that it expects.
    pub next_sequence: u64,
}

/// A frame as far as its lane is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// Its place in the lane.
    pub lane_sequence: u64,
    /// Its [`frame_digest`].
    pub digest: [u8; 32],
    /// Whether it begins a new incarnation.
    pub is_reset: bool,
}

/// What becomes of frames of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneDecision {
    /// Those from `next` on are delivered; those before it were, and are answered as before. `begins`: they begin a life of the
    /// lane, and whatever is known of another one is forgotten.
    Take {
        /// The first sequence that is new.
        next: u64,
        /// Whether a life begins.
        begins: bool,
    },
    /// A frame is missing before these: the lane is at this sequence.
    Gap(u64),
    /// They are not the frames that they ought to be.
    Conflict,
}

/// The sequence that the life `incarnation` of a lane expects.
pub fn next_sequence(lane: Option<&LaneState>, incarnation: Incarnation) -> u64 {
    lane.filter(|lane| lane.incarnation == incarnation).map_or(1, |lane| lane.next_sequence)
}

/// Decides about the frames of a batch, which follow one another. `kept`: the digests of earlier frames of this incarnation, as
/// far as they are kept: of the last [`LANE_ANSWERS_KEPT`].
pub fn decide(
    lane: Option<&LaneState>,
    incarnation: Incarnation,
    frames: &[FrameHead],
    kept: &BTreeMap<u64, [u8; 32]>,
) -> LaneDecision {
    let begins = lane.is_none_or(|lane| lane.incarnation != incarnation);
    let next = next_sequence(lane, incarnation);
    for frame in frames.iter().filter(|frame| frame.lane_sequence < next) {
        // Of one so old that its answer is forgotten, all that is left to say is that it was taken.
        if frame.lane_sequence < next.saturating_sub(LANE_ANSWERS_KEPT) {
            continue;
        }
        // QS-044 (X8): a frame that comes again has the same content.
        if on("QS-044") && kept.get(&frame.lane_sequence) != Some(&frame.digest) {
            return LaneDecision::Conflict;
        }
    }
    let Some(first_new) = frames.iter().find(|frame| frame.lane_sequence >= next) else {
        return LaneDecision::Take { next, begins };
    };
    // QS-045 (X8): no frame is left out; the answer names the one that is wanted.
    if on("QS-045") && first_new.lane_sequence > next {
        return LaneDecision::Gap(next);
    }
    // QS-048 (X8): a life of a lane after the first begins with a reset.
    if on("QS-048") && begins && lane.is_some() && !first_new.is_reset {
        return LaneDecision::Conflict;
    }
    LaneDecision::Take { next, begins }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::qs::DeliveredMessage;

    fn frame(lane_sequence: u64) -> LaneFrame {
        LaneFrame { lane_sequence, epoch: 1, recipients: vec![vec![1].into()].into(), delivery: Delivery::MessagesLost }
    }

    fn batch(frames: Vec<LaneFrame>) -> LaneBatch {
        LaneBatch { group_id: b"mimi://a.test/g/1".as_slice().into(), incarnation: Incarnation([1; 16]), frames: frames.into() }
    }

    fn refused(batch: &LaneBatch) -> ErrorCode {
        check_batch(&"a.test".parse().expect("a domain"), batch).expect_err("refused").code
    }

    // covers QS-040
    #[test]
    fn a_request_has_a_bounded_number_of_lanes_frames_and_recipients() {
        let wide = LaneFrame { recipients: vec![vec![1].into(); LANE_BATCH_RECIPIENTS_MAX].into(), ..frame(1) };
        for most in [
            vec![batch(vec![frame(1)]); LANES_PER_BATCH_MAX],
            vec![batch(vec![frame(1); LANE_BATCH_FRAMES_MAX])],
            vec![batch(vec![wide.clone()])],
        ] {
            assert!(check_request(&most).is_ok());
        }
        for too_many in [
            vec![batch(vec![frame(1)]); LANES_PER_BATCH_MAX + 1],
            vec![batch(vec![frame(1); LANE_BATCH_FRAMES_MAX / 2]), batch(vec![frame(1); LANE_BATCH_FRAMES_MAX / 2 + 1])],
            vec![batch(vec![wide]), batch(vec![frame(1)])],
        ] {
            assert_eq!(check_request(&too_many), Err(ErrorCode::TooLarge.into()));
        }
    }

    // covers QS-041, QS-042, QS-047
    #[test]
    fn a_batch_is_of_the_hubs_own_group_and_in_order() {
        let a: Domain = "a.test".parse().expect("a domain");
        let good = batch(vec![frame(7), frame(8), frame(9)]);
        assert_eq!(check_batch(&a, &good).expect("accepted").to_string(), "mimi://a.test/g/1");
        let elsewhere = LaneBatch { group_id: b"mimi://b.test/g/1".as_slice().into(), ..good.clone() };
        assert_eq!(refused(&elsewhere), ErrorCode::WrongHub);
        assert_eq!(refused(&LaneBatch { group_id: b"1".as_slice().into(), ..good }), ErrorCode::Malformed);
        let last = u64::MAX;
        for sequences in [vec![], vec![0], vec![0, 1], vec![1, 1], vec![2, 1], vec![1, 3], vec![last, 0], vec![last, last]] {
            let frames = sequences.iter().map(|sequence| frame(*sequence)).collect();
            assert_eq!(refused(&batch(frames)), ErrorCode::Malformed, "{sequences:?}");
        }
        let reset = |sequence| LaneFrame { delivery: Delivery::Reset, ..frame(sequence) };
        assert!(check_batch(&a, &batch(vec![reset(1), frame(2)])).is_ok());
        assert_eq!(refused(&batch(vec![frame(1), reset(2)])), ErrorCode::Malformed);
    }

    // covers QS-043, QS-046
    #[test]
    fn nothing_in_a_frame_is_larger_than_it_can_be() {
        let a: Domain = "a.test".parse().expect("a domain");
        let with = |octets: usize| LaneFrame { recipients: vec![vec![1].into(), vec![1; octets].into()].into(), ..frame(1) };
        assert!(check_batch(&a, &batch(vec![with(QUEUE_INFORMATION_BYTES_MAX)])).is_ok());
        assert_eq!(refused(&batch(vec![with(QUEUE_INFORMATION_BYTES_MAX + 1)])), ErrorCode::TooLarge);
        let message = |octets: usize| {
            let message = DeliveredMessage { message: vec![0; octets].into(), receipt: None };
            batch(vec![frame(1), LaneFrame { delivery: Delivery::Message(message), ..frame(2) }])
        };
        // Its length takes four octets, the receipt and the kind of delivery one each.
        assert!(check_batch(&a, &message(CLIENT_FRAME_BYTES_MAX - 6)).is_ok());
        assert_eq!(refused(&message(CLIENT_FRAME_BYTES_MAX - 5)), ErrorCode::TooLarge);
    }

    fn heads(frames: &[(u64, u8)]) -> Vec<FrameHead> {
        let head =
            |(sequence, digest): &(u64, u8)| FrameHead { lane_sequence: *sequence, digest: [*digest; 32], is_reset: false };
        frames.iter().map(head).collect()
    }

    const LIFE: Incarnation = Incarnation([1; 16]);

    // covers QS-044, QS-045
    #[test]
    fn a_lane_is_taken_once_in_order_and_without_gaps() {
        let lane = LaneState { incarnation: LIFE, next_sequence: 3 };
        let kept = BTreeMap::from([(1, [1; 32]), (2, [2; 32])]);
        let decided = |frames: &[(u64, u8)]| decide(Some(&lane), LIFE, &heads(frames), &kept);
        assert_eq!(decided(&[(3, 3), (4, 4)]), LaneDecision::Take { next: 3, begins: false });
        assert_eq!(decided(&[(2, 2), (3, 3)]), LaneDecision::Take { next: 3, begins: false });
        assert_eq!(decided(&[(1, 1), (2, 2)]), LaneDecision::Take { next: 3, begins: false }, "repeats only");
        assert_eq!(decided(&[(1, 1), (2, 9), (3, 3)]), LaneDecision::Conflict);
        assert_eq!(decided(&[(4, 4)]), LaneDecision::Gap(3));
        let first = decide(None, LIFE, &heads(&[(1, 1)]), &BTreeMap::new());
        assert_eq!(first, LaneDecision::Take { next: 1, begins: true }, "the first life begins without a reset");
        assert_eq!(decide(None, LIFE, &heads(&[(2, 1)]), &BTreeMap::new()), LaneDecision::Gap(1));
        let far = LaneState { next_sequence: LANE_ANSWERS_KEPT + 10, ..lane };
        let old = decide(Some(&far), LIFE, &heads(&[(9, 1)]), &BTreeMap::new());
        assert_eq!(old, LaneDecision::Take { next: far.next_sequence, begins: false }, "its answer is forgotten");
        assert_eq!(decide(Some(&far), LIFE, &heads(&[(10, 1)]), &BTreeMap::new()), LaneDecision::Conflict);
    }

    // covers QS-048
    #[test]
    fn another_life_begins_with_a_reset() {
        let lane = LaneState { incarnation: LIFE, next_sequence: 3 };
        let other = Incarnation([2; 16]);
        let mut frames = heads(&[(1, 1), (2, 2)]);
        assert_eq!(decide(Some(&lane), other, &frames, &BTreeMap::new()), LaneDecision::Conflict);
        frames[0].is_reset = true;
        assert_eq!(decide(Some(&lane), other, &frames, &BTreeMap::new()), LaneDecision::Take { next: 1, begins: true });
        assert_eq!(decide(Some(&lane), other, &frames[1..], &BTreeMap::new()), LaneDecision::Gap(1));
    }

    #[test]
    fn a_frame_is_the_same_by_epoch_recipients_and_delivery() {
        let digest = frame_digest(&frame(1));
        let renewed = LaneFrame { recipients: vec![vec![2].into()].into(), lane_sequence: 9, ..frame(1) };
        assert_eq!(frame_digest(&renewed), digest);
        for other in [
            LaneFrame { epoch: 2, ..frame(1) },
            LaneFrame { recipients: vec![vec![1].into(); 2].into(), ..frame(1) },
            LaneFrame { delivery: Delivery::Reset, ..frame(1) },
        ] {
            assert_ne!(frame_digest(&other), digest);
        }
    }
}
