//! Queues: what nobody may do with another's.

use crate::service::testing::{TestNode, TestQueue, Via};
use crate::tests::forged::{Device, content};
use crate::wire::qs::{AckEntries, CreateQueue, FetchEntries, QsMessage, QsRequest, QsSender};
use crate::wire::{ClientRequest, Content, ErrorCode, Service};

/// A request about a queue by its owner key, not signed yet.
fn of(node: &TestNode, queue: &TestQueue, request: &QsRequest) -> Content {
    content(node.service.domain(), Service::Qs(QsMessage { sender: QsSender::Owner(queue.id), request: request.clone() }))
}

fn create(node: &TestNode, by: &Device, owner_key: &[u8]) -> Content {
    let request = QsRequest::Create(CreateQueue { owner_key: owner_key.into() });
    content(node.service.domain(), Service::Qs(QsMessage { sender: QsSender::Client(by.certificates()), request }))
}

// covers QS-020, QS-021, QS-022
#[tokio::test]
async fn a_queue_is_its_clients_alone() {
    let node = TestNode::new().await;
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
}
