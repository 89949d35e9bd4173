//! Frames of other hubs: what is not taken.

use crate::base::ids::Incarnation;
use crate::base::limits::{CLIENT_FRAME_BYTES_MAX, LANE_BATCH_FRAMES_MAX, QUEUE_INFORMATION_BYTES_MAX};
use crate::service::testing::TestNode;
use crate::wire::peer::{LaneBatch, LaneFrame, LaneResult};
use crate::wire::qs::{DeliveredMessage, Delivery, QueueingServiceResponse};
use crate::wire::{ErrorCode, Opaque};

fn frame(lane_sequence: u64, recipients: &[&Opaque], message: &[u8]) -> LaneFrame {
    let recipients = recipients.iter().map(|information| (*information).clone()).collect();
    let delivery = Delivery::Message(DeliveredMessage { message: message.into(), receipt: None });
    LaneFrame { lane_sequence, epoch: 7, recipients, delivery }
}

// covers QS-002, QS-040, QS-041, QS-042, QS-043, QS-044, QS-045, QS-046, QS-047, QS-048
#[tokio::test]
async fn lane_frames_are_taken_in_order_and_once() {
    let node = TestNode::new().await;
    let alice = node.device("alice@a.test").await;
    let queue = node.queue(&alice).await;
    let good = node.seal(&queue.information("b.test")).client_queue_information;
    let of_other_hub = node.seal(&queue.information("c.test")).client_queue_information;
    let mut spoilt = good.to_vec();
    spoilt[40] ^= 1;
    let spoilt = Opaque::from(spoilt);
    let incarnation = Incarnation::random();
    let batch =
        |group: &str, frames: Vec<LaneFrame>| LaneBatch { group_id: group.as_bytes().into(), incarnation, frames: frames.into() };
    let group = "mimi://b.test/g/0123456789abcdef";
    let LaneResult::Accepted(answers) =
        node.lane("b.test", &batch(group, vec![frame(1, &[&good, &of_other_hub, &spoilt], b"one")])).await
    else {
        panic!("the first frame was not taken")
    };
    use QueueingServiceResponse::{InvalidClientQueueInformation as Invalid, Ok as Good};
    // Not a refusal of the frame: QS-001 and QS-002 answer for their recipient, and nothing is in its queue.
    assert_eq!(answers[0].responses[..], [Good, Invalid, Invalid]);
    assert_eq!(node.tables().await.rows("queue_entries").len(), 1);

    let refuses = async |rule: &str, frames: Vec<LaneFrame>, code| {
        node.refuses_lane(rule, "b.test", &batch(group, frames), code).await;
    };
    let many = (2..).take(LANE_BATCH_FRAMES_MAX + 1).map(|sequence| frame(sequence, &[], b"")).collect();
    refuses("QS-040", many, ErrorCode::TooLarge).await;
    let of_own = batch("mimi://a.test/g/0123456789abcdef", vec![frame(1, &[&good], b"one")]);
    node.refuses_lane("QS-041", "b.test", &of_own, ErrorCode::WrongHub).await;
    refuses("QS-042", vec![frame(0, &[&good], b"zero")], ErrorCode::Malformed).await;
    refuses("QS-042", vec![frame(2, &[&good], b"two"), frame(4, &[&good], b"four")], ErrorCode::Malformed).await;
    let large = Opaque::from(vec![0; QUEUE_INFORMATION_BYTES_MAX + 1]);
    refuses("QS-043", vec![frame(2, &[&good, &large], b"two")], ErrorCode::TooLarge).await;
    refuses("QS-044", vec![frame(1, &[&good, &of_other_hub, &spoilt], b"uno")], ErrorCode::LaneConflict).await;
    refuses("QS-046", vec![frame(2, &[&good], &vec![0; CLIENT_FRAME_BYTES_MAX])], ErrorCode::TooLarge).await;
    let reset = |lane_sequence| LaneFrame { delivery: Delivery::Reset, ..frame(lane_sequence, &[&good], b"") };
    refuses("QS-047", vec![reset(2)], ErrorCode::Malformed).await;
    let next_life = LaneBatch { incarnation: Incarnation::random(), ..batch(group, vec![frame(1, &[&good], b"new")]) };
    node.refuses_lane("QS-048", "b.test", &next_life, ErrorCode::LaneConflict).await;
    let before = node.tables().await;
    assert_eq!(node.lane("b.test", &batch(group, vec![frame(3, &[&good], b"three")])).await, LaneResult::Gap(2));
    assert_eq!(node.tables().await, before, "QS-045");
}
