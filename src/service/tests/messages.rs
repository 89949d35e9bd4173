//! Application messages and queue information.

use crate::service::testing::{TestNode, Via, changed};
use crate::wire::ErrorCode;
use crate::wire::ds::{DsRequest, DsSenderId};

// covers DS-010, DS-011, DS-012
#[tokio::test]
async fn a_request_is_by_a_member_signed_by_its_leaf_and_through_its_own_domain() {
    let node = TestNode::new().await;
    let mut members = node.group(&["alice@a.test", "bob@b.test"]).await;
    let request = members[0].message("hello");
    let (alice, bob) = (&members[0], &members[1]);
    node.refuses("DS-012", Via::Peer("b.test"), &request, ErrorCode::NotAuthorized).await;
    let forged = changed(bob, &request, |_, _| ());
    node.refuses("DS-011", Via::Home(alice), &forged, ErrorCode::BadSignature).await;
    let nobody = changed(alice, &request, |sender, _| *sender = DsSenderId::LeafIndex(7));
    node.refuses("DS-010", Via::Home(alice), &nobody, ErrorCode::NotAuthorized).await;
    let before = node.tables().await;
    node.accepts(Via::Home(alice), &request).await;
    let after = node.tables().await;
    assert_eq!(after.rows("lane_frames").len(), before.rows("lane_frames").len() + 1, "one for bob");
    let garbage = changed(alice, &request, |_, body| {
        if let DsRequest::SendMessage(body) = body {
            body.message = vec![0, 1].into();
        }
    });
    node.refuses("DS-061", Via::Home(alice), &garbage, ErrorCode::InvalidMessage).await;
}
