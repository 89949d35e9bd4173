//! Application messages, queue information and past states: what a hub refuses of members, and of those who are none.

use federation_tests::people::{Person, Room};
use federation_tests::synth::{CONTENT_TYPE_APPLICATION, CONTENT_TYPE_COMMIT, CONTENT_TYPE_PROPOSAL};
use mimi_node::base::Fault;
use mimi_node::base::crypto::sha256;
use mimi_node::base::limits::{APPLICATION_MESSAGE_BYTES_MAX, APPLICATION_PAST_EPOCHS_MAX};
use mimi_node::wire::ds::{ClientQueueConfig, DsRequest, DsSenderId, UpdateQueueInfo, WelcomeInfo};
use mimi_node::wire::error::{ErrorCode, WrongEpoch};
use mimi_node::wire::reply::MessageAccepted;
use mimi_node::wire::{ClientRequest, Opaque, Reply, encode};

use super::{ALICE, BOB, CAROL, Trio};

fn by(room: &Room, leaf: u32, person: &Person, message: Vec<u8>) -> ClientRequest {
    room.request(leaf, &person.device.key, room.message_body(message))
}

// Shows: only a PrivateMessage of content type application is sent on, and only in its own group (R1, R2). Failure: another code, no
// answer (a crash while reading), or any change, such as an entry in a queue.
// covers DS-060, DS-061, DS-062
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_private_and_of_this_group() -> Result<(), Fault> {
    let Trio { mut stage, alice, mut room, .. } = Trio::new(51).await?;
    let (mut other, create) = Room::forge(&alice, &mut stage.rng)?;
    assert_eq!(alice.ask(&create).await?, Ok(Reply::Done));
    let update = room.group.clone().update(ALICE).expect("alice is a member");
    let good = room.group.private_message(CONTENT_TYPE_APPLICATION);
    let bad = [
        ("a commit as PrivateMessage", room.group.private_message(CONTENT_TYPE_COMMIT)),
        ("a proposal as PrivateMessage", room.group.private_message(CONTENT_TYPE_PROPOSAL)),
        ("no content type", room.group.private_message(0)),
        ("an application message as PublicMessage", {
            let content = encode(&Opaque::from(b"hello".as_slice()));
            room.group.public_message(ALICE, CONTENT_TYPE_APPLICATION, &content).expect("alice is a member")
        }),
        ("a proposal", room.group.public_message(ALICE, CONTENT_TYPE_PROPOSAL, &[0, 3, 0, 0, 0, 1]).expect("a member")),
        ("a commit", update.commit),
        ("a GroupInfo", update.group_info),
        ("a KeyPackage", alice.key_package(&mut stage.rng)?.message()),
        ("of another group", other.group.private_message_of(1, CONTENT_TYPE_APPLICATION)),
        ("one octet more", [&good[..], &[0]].concat()),
        ("garbage", vec![0xff; 100]),
    ];
    for (what, message) in bad {
        stage.refuses(what, &alice, &by(&room, ALICE, &alice, message), ErrorCode::InvalidMessage).await?;
    }
    let before = stage.contents().await?;
    for end in 0..good.len() {
        let answer = alice.ask(&by(&room, ALICE, &alice, good[..end].to_vec())).await?;
        assert_eq!(answer.expect_err("refused").code, ErrorCode::InvalidMessage, "{end} octets");
    }
    stage.expect_unchanged(&before, "truncated messages").await?;
    let large = vec![0; APPLICATION_MESSAGE_BYTES_MAX + 1];
    stage.refuses("too large", &alice, &by(&room, ALICE, &alice, large), ErrorCode::TooLarge).await?;
    let large = vec![0; APPLICATION_MESSAGE_BYTES_MAX];
    stage.refuses("not too large, but zeros", &alice, &by(&room, ALICE, &alice, large), ErrorCode::InvalidMessage).await?;
    let accepted = alice.ask(&by(&room, ALICE, &alice, good)).await?;
    assert!(matches!(accepted, Ok(Reply::MessageAccepted(MessageAccepted { epoch: 1, .. }))), "the control: {accepted:?}");
    Ok(())
}

// Shows: a message is of an epoch shortly past at most, in which its sender was a member that has joined; others can neither send
// nor pretend to. Failure: another code or detail, or any change.
// covers DS-010, DS-011, DS-063, DS-064
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_by_a_member_of_its_epoch() -> Result<(), Fault> {
    let Trio { mut stage, alice, bob, carol, mut room } = Trio::new(52).await?;
    let dora = stage.person(1, "dora").await?;
    let eve = stage.person(0, "eve").await?;
    let package = dora.key_package(&mut stage.rng)?;
    let forged = room.group.add(ALICE, vec![package.clone()]).expect("alice is a member");
    let add = room.request(ALICE, &alice.device.key, room.add_body(&forged));
    federation_tests::people::accepted(alice.ask(&add).await?, &forged)?;
    let (doras_leaf, joined) = (3, room.group.epoch());

    let of = |room: &Room, epoch: u64| room.group.clone().private_message_of(epoch, CONTENT_TYPE_APPLICATION);
    // Who was just added speaks as a member from the first message on, and not as the holder of a KeyPackage.
    let reference = DsSenderId::KeyPackageRef(package.reference().as_slice().into());
    let as_joiner = room.request_by(reference.clone(), &dora.device.key, room.message_body(of(&room, joined)));
    stage.refuses("by a KeyPackage", &dora, &as_joiner, ErrorCode::NotAuthorized).await?;
    let update = room.group.clone().update(doras_leaf).expect("dora is a member");
    let as_joiner = room.request_by(reference.clone(), &dora.device.key, room.update_body(&update));
    stage.refuses("a commit by a KeyPackage", &dora, &as_joiner, ErrorCode::NotAuthorized).await?;
    let queue = DsRequest::UpdateQueueInfo(UpdateQueueInfo {
        group_id: room.uri.to_bytes().into(),
        client_queue_config: dora.queue_for(&stage.domain(0))?,
    });
    let as_joiner = room.request_by(reference, &dora.device.key, queue);
    stage.refuses("a queue by a KeyPackage", &dora, &as_joiner, ErrorCode::NotAuthorized).await?;
    let earlier = by(&room, doras_leaf, &dora, of(&room, joined - 1));
    stage.refuses("of an epoch before she joined", &dora, &earlier, ErrorCode::NotAuthorized).await?;

    for (what, leaf, person) in
        [("a stranger", 9, &eve), ("another member's leaf", BOB, &carol), ("a member's leaf", CAROL, &eve)]
    {
        let code = if leaf == 9 { ErrorCode::NotAuthorized } else { ErrorCode::BadSignature };
        stage.refuses(what, person, &by(&room, leaf, person, of(&room, joined)), code).await?;
    }

    let mut last = Vec::new();
    for _ in 0..=APPLICATION_PAST_EPOCHS_MAX {
        last = room.update((&carol, CAROL)).await?.commit;
    }
    let now = room.group.epoch();
    let rejection =
        stage.refuses("too old", &alice, &by(&room, ALICE, &alice, of(&room, now - 5)), ErrorCode::WrongEpoch).await?;
    let detail = rejection.as_wrong_epoch().expect("a detail");
    assert!(detail.current_epoch == now && detail.accepted_commit_hash.is_some_and(|hash| hash != sha256(&last)));
    for (what, epoch) in [("of the next epoch", now + 1), ("of the last epoch there can be", u64::MAX)] {
        let rejection = stage.refuses(what, &alice, &by(&room, ALICE, &alice, of(&room, epoch)), ErrorCode::WrongEpoch).await?;
        assert_eq!(rejection.as_wrong_epoch(), Some(WrongEpoch { current_epoch: now, accepted_commit_hash: None }));
    }
    let oldest = alice.ask(&by(&room, ALICE, &alice, of(&room, now - APPLICATION_PAST_EPOCHS_MAX))).await?;
    assert!(matches!(oldest, Ok(Reply::MessageAccepted(_))), "the oldest that may be: {oldest:?}");

    let before_removal = by(&room, BOB, &bob, of(&room, now));
    room.remove((&alice, ALICE), &[BOB]).await?;
    stage.refuses("by one who was removed", &bob, &before_removal, ErrorCode::NotAuthorized).await?;
    let eves = room.add((&alice, ALICE), &[&eve], &mut stage.rng).await?;
    assert_eq!(eves, [BOB], "the leaf is given again");
    stage.refuses("from a leaf given again", &bob, &before_removal, ErrorCode::BadSignature).await?;
    // What is sent now of an epoch before eve came is not for her.
    let count = eve.entries().await?.len();
    let old = alice.ask(&by(&room, ALICE, &alice, of(&room, now))).await?;
    assert!(matches!(old, Ok(Reply::MessageAccepted(_))), "{old:?}");
    stage.contents().await?;
    assert_eq!(eve.entries().await?.len(), count);
    Ok(())
}

// Shows: a member sets its own queue, in its own domain, and nobody else's; the past state that a Welcome needs is given to the one
// it was meant for, until that one has been heard of. Failure: another code, a tree for anyone else, or any change.
// covers DS-018, DS-022, DS-080
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queue_information_and_past_states_are_ones_own() -> Result<(), Fault> {
    let Trio { mut stage, alice, bob, carol, mut room } = Trio::new(53).await?;
    let dora = stage.person(1, "dora").await?;
    let (a, b) = (stage.domain(0), stage.domain(1));
    let queue = |config: ClientQueueConfig| {
        DsRequest::UpdateQueueInfo(UpdateQueueInfo { group_id: room.uri.to_bytes().into(), client_queue_config: config })
    };
    let good = bob.queue_for(&a)?;
    stage
        .refuses("bob's by carol", &carol, &room.request(BOB, &carol.device.key, queue(good.clone())), ErrorCode::BadSignature)
        .await?;
    for (what, config) in [
        ("at the hub", ClientQueueConfig { qs_domain: a.as_bytes().into(), ..good.clone() }),
        ("nowhere", ClientQueueConfig { qs_domain: b"".as_slice().into(), ..good.clone() }),
        ("nothing", ClientQueueConfig { client_queue_information: Opaque::default(), ..good.clone() }),
        ("too much", ClientQueueConfig { client_queue_information: vec![1; 513].into(), ..good.clone() }),
    ] {
        let request = room.request(BOB, &bob.device.key, queue(config));
        stage.refuses(what, &bob, &request, ErrorCode::InvalidQueueConfig).await?;
    }
    assert_eq!(bob.ask(&room.request(BOB, &bob.device.key, queue(good))).await?, Ok(Reply::Done));

    let package = dora.key_package(&mut stage.rng)?;
    let forged = room.group.add(ALICE, vec![package.clone()]).expect("alice is a member");
    let add = room.request(ALICE, &alice.device.key, room.add_body(&forged));
    federation_tests::people::accepted(alice.ask(&add).await?, &forged)?;
    let (doras_leaf, epoch, tree) = (3, room.group.epoch(), room.group.ratchet_tree());
    room.update((&alice, ALICE)).await?;
    let info = |epoch| DsRequest::WelcomeInfo(WelcomeInfo { group_id: room.uri.to_bytes().into(), epoch });
    let reference = DsSenderId::KeyPackageRef(package.reference().as_slice().into());
    let ask = |epoch, person: &Person| room.request_by(reference.clone(), &person.device.key, info(epoch));
    stage.refuses("another's KeyPackage", &bob, &ask(epoch, &bob), ErrorCode::BadSignature).await?;
    stage.refuses("the epoch after", &dora, &ask(epoch + 1, &dora), ErrorCode::NotAuthorized).await?;
    stage.refuses("the epoch before", &dora, &ask(epoch - 1, &dora), ErrorCode::NotAuthorized).await?;
    for (leaf, person) in [(ALICE, &alice), (doras_leaf, &dora)] {
        let as_member = room.request(leaf, &person.device.key, info(epoch));
        stage.refuses("by a leaf", person, &as_member, ErrorCode::NotAuthorized).await?;
    }
    let mut through_hub = ask(epoch, &dora);
    through_hub.content.destination = b.as_bytes().into();
    let through_hub = through_hub.content.sign(&dora.device.key);
    stage.refuses("at another hub", &dora, &through_hub, ErrorCode::UnknownGroup).await?;
    match dora.ask(&ask(epoch, &dora)).await? {
        Ok(Reply::GroupState(state)) => assert_eq!((state.epoch, state.ratchet_tree.into_vec()), (epoch, tree)),
        other => return Err(Fault::new(format!("{other:?}"))),
    }
    // Once she has spoken as a member she needs no past state any more.
    let message = room.group.clone().private_message(CONTENT_TYPE_APPLICATION);
    let message = by(&room, doras_leaf, &dora, message);
    assert!(matches!(dora.ask(&message).await?, Ok(Reply::MessageAccepted(_))));
    stage.refuses("once more", &dora, &ask(epoch, &dora), ErrorCode::NotAuthorized).await?;
    Ok(())
}
