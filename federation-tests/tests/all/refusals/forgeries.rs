//! What a dishonest node may try with a good certificate of its own domain: each forgery has its own error.

use std::collections::BTreeSet;

use mimi_node::base::ids::Incarnation;
use mimi_node::base::{Fault, GroupUri, UnixMillis};
use mimi_node::identity::key_hash;
use mimi_node::wire::keys::{ClaimKeyPackages, KeysRequest};
use mimi_node::wire::peer::{CredentialStatus, LaneResult, PeerRequest, PeerResponse};
use mimi_node::wire::qs::QueueingServiceResponse;
use mimi_node::wire::{Content, ErrorCode, Opaque, Rejection};
use rand::Rng as _;

use super::federation_port::{Lane, frame, peer, proxied, taken};
use super::{BOB, Trio};

// Shows: a forged origin, a replayed frame with other content, a frame for another hub's group, a queue information bound to another
// hub and a second proxy hop are refused, each with its own error, next to the same thing done rightly, which is accepted. Failure:
// two that cannot be told apart, any table other than before; but a frame with a queue information that is not its hub's is taken for
// its other recipients, so that its lane moves on: that, and nothing else, may change. Not a failure: that the forged origin has the
// same error as a request, as a claim and as a list of revoked keys.
// covers DS-012, DS-201, QS-002, QS-032, QS-041, QS-044
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_forgery_has_its_own_error() -> Result<(), Fault> {
    use QueueingServiceResponse::{InvalidClientQueueInformation as Invalid, Ok as Good};
    let Trio { mut stage, alice, bob, mut room, .. } = Trio::new(8).await?;
    let (a, b, c) = (stage.domain(0), stage.domain(1), stage.domain(2));
    let (through_b, through_c) = (peer(&stage, 1).await?, peer(&stage, 2).await?);
    let good = alice.queue_for(&b)?.client_queue_information;
    let lane = Lane { raw: through_b.clone(), group: GroupUri::new(&b, &stage.rng.random()), incarnation: Incarnation::random() };
    let first = frame(1, &[&good], "one");
    let accepted = LaneResult::Accepted(vec![taken(1, &[Good])].into());
    assert_eq!(lane.send(vec![first.clone()]).await?, accepted, "the control of frames");
    let mut errors = BTreeSet::new();

    let message = room.group.private_message(1);
    let message = room.request(BOB, &bob.device.key, room.message_body(message));
    let claim = KeysRequest::Claim(ClaimKeyPackages { user: alice.user.to_bytes().into(), ciphersuite: 1 });
    let claim = bob.keys_request(&a, claim);
    let before = stage.contents().await?;
    let wrong_origin = Rejection::new(ErrorCode::WrongOrigin);
    for request in [&message, &claim] {
        assert_eq!(proxied(&through_c, request).await?, Err(wrong_origin.clone()), "bob's, through c.test");
    }
    let list = CredentialStatus {
        domain: b.as_bytes().into(),
        version: 9,
        next_update_ms: UnixMillis::now().0 + 60_000,
        revoked: vec![Opaque::from(key_hash(bob.device.key.public()).as_slice())].into(),
        signature: Opaque::default(),
    };
    let pushed = through_c.ask_peer(&PeerRequest::CredentialStatusPush(list)).await;
    assert_eq!(pushed, Ok(PeerResponse::Error(wrong_origin.clone())), "b.test's list, from c.test");
    stage.expect_unchanged(&before, "a forged origin").await?;
    errors.insert(wrong_origin.code.name());
    assert!(proxied(&through_b, &message).await?.is_ok(), "the control of origins");

    let before = stage.contents().await?;
    let conflict = Rejection::new(ErrorCode::LaneConflict);
    assert_eq!(lane.send(vec![frame(1, &[&good], "uno")]).await?, LaneResult::Refused(conflict.clone()));
    assert_eq!(lane.send(vec![first]).await?, accepted, "the control of replays");
    stage.expect_unchanged(&before, "a replayed frame").await?;
    errors.insert(conflict.code.name());

    let wrong_hub = Rejection::new(ErrorCode::WrongHub);
    for hub in [&a, &c] {
        let group = GroupUri::new(hub, &stage.rng.random());
        let of_other = Lane { raw: through_b.clone(), group, incarnation: Incarnation::random() };
        assert_eq!(of_other.send(vec![frame(1, &[&good], "one")]).await?, LaneResult::Refused(wrong_hub.clone()), "{hub}");
    }
    stage.expect_unchanged(&before, "a frame for another hub's group").await?;
    errors.insert(wrong_hub.code.name());

    let of_other_hub = alice.queue_for(&c)?.client_queue_information;
    let entries = alice.entries().await?.len();
    let answer = lane.send(vec![frame(2, &[&of_other_hub], "two")]).await?;
    assert_eq!(answer, LaneResult::Accepted(vec![taken(2, &[Invalid])].into()));
    assert_eq!(alice.entries().await?.len(), entries, "nothing arrives");
    for (now, before) in stage.contents().await?.iter().zip(&before) {
        let changes = now.changes_since(before);
        let of_lane = |change: &String| change.starts_with("lanes_in:") || change.starts_with("lane_answers:");
        assert!(changes.iter().all(of_lane), "{changes:?}");
    }
    errors.insert("invalid_client_queue_information");

    let before = stage.contents().await?;
    let second_hop = Rejection::new(ErrorCode::SecondHop);
    let onwards = Content { destination: c.as_bytes().into(), ..claim.content.clone() }.sign(&bob.device.key);
    assert_eq!(proxied(&through_b, &onwards).await?, Err(second_hop.clone()), "from a.test on to c.test");
    stage.expect_unchanged(&before, "a second hop").await?;
    errors.insert(second_hop.code.name());
    // The control: the same claim to a.test itself gets as far as looking for alice's KeyPackages, of which there are none.
    assert_eq!(proxied(&through_b, &claim).await?, Err(Rejection::new(ErrorCode::UnknownUser)));

    assert_eq!(errors.len(), 5, "{errors:?}");
    Ok(())
}
