//! Queues: what is refused about one's own, and what invites, generations and a deletion do to messages.

use federation_tests::people::{Person, Room};
use federation_tests::stage::Stage;
use mimi_node::base::ids::RequestId;
use mimi_node::base::limits::{FRAME_BYTES_MAX, Limits};
use mimi_node::base::{Context as _, Fault, UnixMillis};
use mimi_node::transport::frame::{read_frame, write_frame};
use mimi_node::wire::qs::{
    AckEntries, CreateQueue, Delivery, FetchEntries, QsMessage, QsRequest, QsSender, RetireGeneration, UserOfQueue,
};
use mimi_node::wire::{ClientRequest, Content, ErrorCode, Rejection, Reply, Response, Service, decode, encode};

use super::ALICE;

fn signed_by_user(person: &Person, of: &Person, request: QsRequest) -> ClientRequest {
    let certificates = vec![mimi_node::wire::Opaque::from(person.user_certificate.as_slice())].into();
    let sender = QsSender::User(UserOfQueue { certificates, queue_id: of.queue });
    let service = Service::Qs(QsMessage { sender, request });
    Content::new(person.domain(), RequestId::random(), UnixMillis::now(), service).sign(&person.user_key)
}

fn create(person: &Person) -> ClientRequest {
    let request = QsRequest::Create(CreateQueue { owner_key: vec![7; 32].into() });
    let service = Service::Qs(QsMessage { sender: QsSender::Client(person.device.certificates()), request });
    Content::new(person.domain(), RequestId::random(), UnixMillis::now(), service).sign(&person.device.key)
}

// Shows: a client has so many queues and no more, retires no generation that is in use, and a user deletes its own clients' queues
// only. Failure: another code, or any change.
// covers QS-023, QS-024, QS-025, QS-026
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_are_few_and_ones_own() -> Result<(), Fault> {
    let mut stage = Stage::open(1, 21).await?;
    let alice = stage.person(0, "alice").await?;
    let anna = stage.person(0, "anna").await?;
    for _ in 1..Limits::default().queues_per_client_max {
        assert!(matches!(alice.ask(&create(&alice)).await?, Ok(Reply::QueueCreated(_))));
    }
    stage.refuses("one queue more", &alice, &create(&alice), ErrorCode::TooLarge).await?;
    for generation in [1, 2, u32::MAX] {
        let retire = alice.queue_request(QsRequest::RetireGeneration(RetireGeneration { generation }));
        stage.refuses("the current generation", &alice, &retire, ErrorCode::NotAuthorized).await?;
    }
    let delete = signed_by_user(&anna, &alice, QsRequest::Delete);
    stage.refuses("alice's queue, by anna", &anna, &delete, ErrorCode::UnknownQueue).await?;
    for request in [QsRequest::Ack(AckEntries { up_to: 1 }), QsRequest::NewGeneration] {
        let by_user = signed_by_user(&alice, &alice, request);
        stage.refuses("by the user key", &alice, &by_user, ErrorCode::NotAuthorized).await?;
    }
    Ok(())
}

// Shows: generations and deletions are idempotent changes, across a restart. Failure: another answer to a repeat, or any change by
// one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_of_a_change_of_a_queue_changes_nothing() -> Result<(), Fault> {
    let mut stage = Stage::open(1, 22).await?;
    let mut alice = stage.person(0, "alice").await?;
    let pin = stage.world.invite(0, "unused").await?.tls_ca_spki_hash;
    let changes = [
        (alice.queue_request(QsRequest::NewGeneration), Reply::Generation(2)),
        (alice.queue_request(QsRequest::RetireGeneration(RetireGeneration { generation: 1 })), Reply::Done),
        (alice.queue_request(QsRequest::Delete), Reply::Done),
    ];
    for (request, answer) in &changes {
        assert_eq!(alice.ask(request).await?.as_ref(), Ok(answer));
    }
    let before = stage.contents().await?;
    for round in 0..2 {
        for (request, answer) in &changes {
            assert_eq!(alice.ask(request).await?.as_ref(), Ok(answer));
        }
        stage.expect_unchanged(&before, "repeats").await?;
        if round == 0 {
            stage.restart(0).await?;
            alice.reconnect(&stage.world, 0, pin).await?;
        }
    }
    Ok(())
}

// Shows: a subscription ends when its queue is deleted, and says so. Failure: it stays open, or ends without an answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_ends_with_its_queue() -> Result<(), Fault> {
    let mut stage = Stage::open(1, 23).await?;
    let alice = stage.person(0, "alice").await?;
    let (mut send, mut recv) = alice.home.connection.open_bi().await.context("no stream")?;
    let subscribe = alice.queue_request(QsRequest::Subscribe(FetchEntries { from: 1, max: 10 }));
    write_frame(&mut send, &encode(&subscribe)).await.context("not written")?;
    assert_eq!(alice.ask(&alice.queue_request(QsRequest::Delete)).await?, Ok(Reply::Done));
    let answer = read_frame(&mut recv, FRAME_BYTES_MAX).await.context("no answer")?.context("it just ended")?;
    let answer = decode::<Response>(&answer).context("malformed")?.into_result();
    assert_eq!(answer, Err(Rejection::new(ErrorCode::UnknownQueue)));
    Ok(())
}

// Shows: an invite brings its client into the group that used it first, and into no other. Failure: an entry of another group in the
// queue, or none of the first.
// covers QS-005
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invite_is_for_one_group() -> Result<(), Fault> {
    let mut stage = Stage::open(2, 24).await?;
    let alice = stage.person(0, "alice").await?;
    let bob = stage.person(1, "bob").await?;
    let mut rng = stage.rng.clone();
    let package = bob.key_package(&mut rng)?;
    let mut rooms = Vec::new();
    for _ in 0..2 {
        let mut room = Room::create(&alice, &mut rng).await?;
        let forged = room.group.add(ALICE, vec![package.clone()]).context("cannot forge an Add")?;
        let request = room.request(ALICE, &alice.device.key, room.add_body(&forged));
        federation_tests::people::accepted(alice.ask(&request).await?, &forged)?;
        rooms.push(room);
        stage.contents().await?;
    }
    let entries = bob.entries().await?;
    assert!(!entries.is_empty(), "the Welcome is there");
    let first = rooms[0].uri.to_bytes();
    assert!(entries.iter().all(|entry| entry.group_id[..] == first[..]), "and nothing of the second group");
    assert!(entries.iter().all(|entry| matches!(entry.delivery, Delivery::Message(_))));
    Ok(())
}
