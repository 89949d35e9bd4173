//! Queues: what nobody may do with another's.

use std::time::Duration;

use crate::base::UnixMillis;
use crate::base::ids::Incarnation;
use crate::base::limits::Limits;
use crate::service::testing::{TestNode, TestQueue, Via};
use crate::tests::forged::{Device, content};
use crate::wire::accounts::AccountsRequest;
use crate::wire::keys::KeysRequest;
use crate::wire::peer::{LaneBatch, LaneFrame, LaneResult};
use crate::wire::qs::*;
use crate::wire::{ClientRequest, Content, ErrorCode, Reply, Service};

/// A request about a queue by its owner key, not signed yet.
fn of(node: &TestNode, queue: &TestQueue, request: &QsRequest) -> Content {
    content(node.service.domain(), Service::Qs(QsMessage { sender: QsSender::Owner(queue.id), request: request.clone() }))
}

fn create(node: &TestNode, by: &Device, owner_key: &[u8]) -> Content {
    let request = QsRequest::Create(CreateQueue { owner_key: owner_key.into() });
    content(node.service.domain(), Service::Qs(QsMessage { sender: QsSender::Client(by.certificates()), request }))
}

// covers QS-020, QS-021, QS-022, QS-023, QS-024, QS-025, QS-026
#[tokio::test]
async fn a_queue_is_its_clients_alone() {
    let limits = Limits { queues_per_client_max: 1, ..Limits::default() };
    let node = TestNode::with_limits(limits).await;
    let (alice, anna) = (node.device("alice@a.test").await, node.device("anna@a.test").await);
    let queue = node.queue(&alice).await;
    let fetch = QsRequest::Fetch(FetchEntries { from: 1, max: 1 });
    for request in [&fetch, &QsRequest::Ack(AckEntries { up_to: 1 }), &QsRequest::Delete] {
        let stolen: ClientRequest = of(&node, &queue, request).sign(&queue.owner);
        node.refuses("QS-022", Via::Home(&anna), &stolen, ErrorCode::UnknownQueue).await;
        let by_device = of(&node, &queue, request).sign(&alice.key);
        node.refuses("QS-022", Via::Home(&alice), &by_device, ErrorCode::BadSignature).await;
    }
    let of_anna = create(&node, &anna, &[7; 32]).sign(&anna.key);
    node.refuses("QS-020", Via::Home(&alice), &of_anna, ErrorCode::NotAuthorized).await;
    let unsigned = create(&node, &alice, &[7; 32]).sign(&anna.key);
    node.refuses("QS-020", Via::Home(&alice), &unsigned, ErrorCode::BadSignature).await;
    let short = create(&node, &alice, &[7; 31]).sign(&alice.key);
    node.refuses("QS-021", Via::Home(&alice), &short, ErrorCode::Malformed).await;
    let second = create(&node, &alice, &[7; 32]).sign(&alice.key);
    node.refuses("QS-023", Via::Home(&alice), &second, ErrorCode::TooLarge).await;
    for generation in [1, 2] {
        let retire = QsRequest::RetireGeneration(RetireGeneration { generation });
        let current = of(&node, &queue, &retire).sign(&queue.owner);
        node.refuses("QS-024", Via::Home(&alice), &current, ErrorCode::NotAuthorized).await;
    }
    node.enrol(&anna).await;
    let by_anna = by_user(&node, &anna, &queue, QsRequest::Delete).sign(&anna.user_key);
    node.refuses("QS-025", Via::Home(&anna), &by_anna, ErrorCode::UnknownQueue).await;
    node.enrol(&alice).await;
    let fetched = by_user(&node, &alice, &queue, fetch).sign(&alice.user_key);
    node.refuses("QS-026", Via::Home(&alice), &fetched, ErrorCode::NotAuthorized).await;
}

/// A request about a queue by the user's key, not signed yet.
fn by_user(node: &TestNode, user: &Device, queue: &TestQueue, request: QsRequest) -> Content {
    let sender = QsSender::User(UserOfQueue { certificates: user.user_certificates(), queue_id: queue.id });
    content(node.service.domain(), Service::Qs(QsMessage { sender, request }))
}

const GROUP: &str = "mimi://b.test/g/0123456789abcdef";

/// Delivers as the node of `b.test`, in a lane of its own, and says whether the queue took it.
async fn deliver(node: &TestNode, group: &str, information: &QueueInformation) -> bool {
    let delivery = Delivery::Message(DeliveredMessage { message: b"x".as_slice().into(), receipt: None });
    let recipients = vec![node.seal(information).client_queue_information].into();
    let frame = LaneFrame { lane_sequence: 1, epoch: 7, recipients, delivery };
    let begun = Incarnation::random();
    let batch = LaneBatch { group_id: group.as_bytes().into(), incarnation: begun, frames: vec![frame].into() };
    match node.lane("b.test", &batch).await {
        LaneResult::Accepted(answers) => answers[0].responses[0] == QueueingServiceResponse::Ok,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn informations_of_a_retired_generation_no_longer_work() {
    let node = TestNode::new().await;
    let alice = node.device("alice@a.test").await;
    let queue = node.queue(&alice).await;
    let old = queue.information("b.test");
    let new = QueueInformation { generation: 2, ..old.clone() };
    assert!(deliver(&node, &format!("{GROUP}1"), &old).await);
    assert!(!deliver(&node, &format!("{GROUP}2"), &new).await, "it is not begun");
    let begin = of(&node, &queue, &QsRequest::NewGeneration).sign(&queue.owner);
    for _ in 0..2 {
        assert_eq!(node.accepts(Via::Home(&alice), &begin).await, Reply::Generation(2), "a repeat begins no other");
    }
    assert!(deliver(&node, &format!("{GROUP}3"), &old).await);
    assert!(deliver(&node, &format!("{GROUP}4"), &new).await);
    let retire = QsRequest::RetireGeneration(RetireGeneration { generation: 1 });
    let retire = of(&node, &queue, &retire).sign(&queue.owner);
    assert_eq!(node.accepts(Via::Home(&alice), &retire).await, Reply::Done);
    assert!(!deliver(&node, &format!("{GROUP}5"), &old).await);
    assert!(deliver(&node, &format!("{GROUP}6"), &new).await);
}

// covers QS-003, QS-004, QS-005
#[tokio::test]
async fn an_invite_or_a_queue_that_is_gone_brings_nothing_in() {
    let node = TestNode::new().await;
    let alice = node.device("alice@a.test").await;
    let queue = node.queue(&alice).await;
    let invite = queue.invite(false);
    assert!(deliver(&node, &format!("{GROUP}1"), &invite).await);
    assert!(!deliver(&node, &format!("{GROUP}2"), &invite).await, "QS-005");
    let often = queue.invite(true);
    for group in 3..6 {
        assert!(deliver(&node, &format!("{GROUP}{group}"), &often).await, "of last resort");
    }
    let later = QueueInformation { generation: 2, ..queue.information("b.test") };
    assert!(!deliver(&node, &format!("{GROUP}6"), &later).await, "QS-003");
    let delete = of(&node, &queue, &QsRequest::Delete).sign(&queue.owner);
    node.accepts(Via::Home(&alice), &delete).await;
    let before = node.tables().await;
    for table in ["queues", "queue_entries", "bodies", "invite_bindings"] {
        assert!(before.rows(table).is_empty(), "{table}");
    }
    assert_eq!(node.accepts(Via::Home(&alice), &delete).await, Reply::Done, "a repeat is answered as before");
    let again = of(&node, &queue, &QsRequest::Delete).sign(&queue.owner);
    node.refuses("a queue that is gone", Via::Home(&alice), &again, ErrorCode::UnknownQueue).await;
    assert!(!deliver(&node, &format!("{GROUP}7"), &queue.information("b.test")).await, "QS-004");
}

// covers AS-005
#[tokio::test]
async fn a_user_deletes_a_queue_of_its_client() {
    let node = TestNode::new().await;
    let alice = node.device("alice@a.test").await;
    let laptop = alice.sibling("laptop");
    let queue = node.queue(&alice).await;
    node.enrol(&alice).await;
    let delete = by_user(&node, &alice, &queue, QsRequest::Delete);
    let by_laptop = delete.clone().sign(&laptop.key);
    node.refuses("AS-005", Via::Home(&laptop), &by_laptop, ErrorCode::BadSignature).await;
    let delete = delete.sign(&alice.user_key);
    for _ in 0..2 {
        assert_eq!(node.accepts(Via::Home(&laptop), &delete).await, Reply::Done);
    }
    assert!(node.tables().await.rows("queues").is_empty());
}

#[tokio::test]
async fn a_full_queue_says_what_it_lost() {
    let limits = Limits { queue_entries_max: 2, ..Limits::default() };
    let node = TestNode::with_limits(limits).await;
    let alice = node.device("alice@a.test").await;
    let queue = node.queue(&alice).await;
    for group in [1, 2, 3, 4] {
        assert!(deliver(&node, &format!("{GROUP}{group}"), &queue.information("b.test")).await, "the hub is told ok");
    }
    let entries = async |from| {
        let fetch = QsRequest::Fetch(FetchEntries { from, max: 100 });
        let fetch = of(&node, &queue, &fetch).sign(&queue.owner);
        let Reply::Entries(entries) = node.accepts(Via::Home(&alice), &fetch).await else { panic!("no entries") };
        let told =
            |entry: &QueueEntry| (entry.sequence, entry.delivery == Delivery::MessagesLost, entry.group_id.last().copied());
        entries.iter().map(told).collect::<Vec<_>>()
    };
    let all = [(1, false, Some(b'1')), (2, false, Some(b'2')), (3, true, Some(b'3')), (4, true, Some(b'4'))];
    assert_eq!(entries(1).await, all);
    let ack = of(&node, &queue, &QsRequest::Ack(AckEntries { up_to: 4 })).sign(&queue.owner);
    node.accepts(Via::Home(&alice), &ack).await;
    assert!(deliver(&node, &format!("{GROUP}5"), &queue.information("b.test")).await);
    assert_eq!(entries(5).await, [(5, false, Some(b'5'))]);
    assert_eq!(node.tables().await.rows("bodies").len(), 1);
}

// covers QS-027
#[tokio::test]
async fn a_client_asks_so_often_and_no_more() {
    let limits = Limits { requests_per_client_per_second_max: 1, ..Limits::default() };
    let node = TestNode::with_limits(limits).await;
    let alice = node.device("alice@a.test").await;
    let queue = node.queue(&alice).await;
    node.enrol(&alice).await;
    let fetch = || of(&node, &queue, &QsRequest::Fetch(FetchEntries { from: 1, max: 1 })).sign(&queue.owner);
    let count = || alice.keys_request(alice.domain(), KeysRequest::Count);
    let hubs = || alice.accounts_request(AccountsRequest::Hubs);
    for request in [&fetch as &dyn Fn() -> ClientRequest, &count, &hubs] {
        let mut limited = false;
        // Ten at once, one a second: not all of twice as many, however slow this machine is.
        for _ in 0..20 {
            let before = node.tables().await;
            if let Err(rejection) = node.ask(Via::Home(&alice), &request()).await {
                assert_eq!(rejection.code, ErrorCode::RateLimited);
                node.expect_unchanged("QS-027", &before).await;
                limited = true;
                break;
            }
        }
        assert!(limited, "all were accepted");
    }
}

#[tokio::test]
async fn what_is_too_old_becomes_a_marker() {
    let limits = Limits { queue_entry_age_seconds_max: 60, ..Limits::default() };
    let node = TestNode::with_limits(limits).await;
    let alice = node.device("alice@a.test").await;
    let queue = node.queue(&alice).await;
    assert!(deliver(&node, GROUP, &queue.information("b.test")).await);
    let before = node.tables().await;
    node.service.keep_queues(UnixMillis::now()).await.expect("kept");
    node.expect_unchanged("young", &before).await;
    node.service.keep_queues(UnixMillis::now().plus(Duration::from_secs(61))).await.expect("kept");
    let fetch = of(&node, &queue, &QsRequest::Fetch(FetchEntries { from: 1, max: 100 })).sign(&queue.owner);
    let Reply::Entries(entries) = node.accepts(Via::Home(&alice), &fetch).await else { panic!("no entries") };
    assert_eq!(
        entries.iter().map(|entry| (entry.sequence, entry.delivery.clone())).collect::<Vec<_>>(),
        [(1, Delivery::MessagesLost)]
    );
}
