//! External Commits, and users as senders: who does not come in.

use super::contexts::open;
use crate::base::UnixMillis;
use crate::identity::AsRoot;
use crate::identity::revoked::key_hash;
use crate::service::testing::{TestNode, Via, changed};
use crate::synth::{Capabilities, Change, Forged};
use crate::tests::forged::{Device, Room};
use crate::wire::ds::*;
use crate::wire::peer::CredentialStatus;
use crate::wire::{ClientRequest, ErrorCode};

const ALICE: u32 = 0;
const BOB: u32 = 1;
const CAROL: u32 = 2;

/// A node with a group of alice and carol, who are its own, and bob.
struct Trio {
    node: TestNode,
    room: Room,
}

impl Trio {
    async fn new() -> Self {
        let node = TestNode::new().await;
        let room = node.room(&["alice@a.test", "bob@b.test", "carol@a.test"]).await;
        Self { node, room }
    }

    fn root(&self, device: &Device) -> &AsRoot {
        &self.node.as_roots[device.domain()]
    }

    /// A request of a device's user.
    fn by_user(&self, device: &Device, body: DsRequest) -> ClientRequest {
        self.room.request_by_user(device, self.root(device), body)
    }

    /// What the user of a device needs for an external Commit.
    fn looks(&self, device: &Device) -> ClientRequest {
        self.by_user(device, DsRequest::ExternalCommitInfo(GroupOnly { group_id: self.room.id() }))
    }

    /// An external Commit of a device that takes a leaf out.
    fn join(&self, device: &Device, remove: Option<u32>) -> Forged {
        let joined = self.room.group.clone().join(&device.identity(), &Capabilities::default(), remove);
        joined.expect("a Commit").1
    }

    fn body(&self, device: &Device, remove: Option<u32>) -> GroupJoin {
        self.room.join_body(&self.join(device, remove), device.opaque_queue())
    }
}

// covers DS-014, DS-015, DS-016, DS-018, DS-019
#[tokio::test]
async fn a_user_proves_itself_with_a_certificate_that_is_good_now() {
    let trio = Trio::new().await;
    let (node, bob) = (&trio.node, trio.room.devices[&BOB].clone());
    let good = trio.looks(&bob);
    let other_hash = changed(&bob.user_key, &good, |sender, _| *sender = DsSenderId::UserKeyHash(vec![7; 32].into()));
    node.refuses("DS-014", Via::Home(&bob), &other_hash, ErrorCode::NotAuthorized).await;
    let root = AsRoot::create(bob.domain(), UnixMillis::now()).expect("a root");
    let self_made = Device::new(&root, bob.uri.user().name());
    let request =
        trio.room.request_by_user(&self_made, &root, DsRequest::ExternalCommitInfo(GroupOnly { group_id: trio.room.id() }));
    node.refuses("DS-015", Via::Home(&bob), &request, ErrorCode::InvalidCredential).await;
    let as_user = trio.by_user(&bob, DsRequest::LeaveGroup(GroupOnly { group_id: trio.room.id() }));
    node.refuses("DS-018", Via::Home(&bob), &as_user, ErrorCode::NotAuthorized).await;
    node.accepts(Via::Home(&bob), &good).await;

    let dora = node.device("dora@b.test").await;
    let revoked = [key_hash(bob.user_key.public()), key_hash(dora.key.public())];
    let status = CredentialStatus {
        domain: b"b.test".as_slice().into(),
        version: 9,
        next_update_ms: UnixMillis::now().0 + 60_000,
        revoked: revoked.iter().map(|hash| crate::wire::Opaque::from(hash.as_slice())).collect(),
        signature: crate::wire::Opaque::default(),
    };
    // Before bob's leaf is to be removed: a Commit would have to carry that.
    let package = dora.key_package(Some(&dora.opaque_queue()));
    let empty = node.room(&["alice@a.test"]).await;
    node.takes_status("b.test", &status.sign(trio.root(&bob).key())).await;
    node.refuses("DS-016", Via::Home(&bob), &trio.looks(&bob), ErrorCode::InvalidCredential).await;
    let forged = empty.try_commit(ALICE, Change { add: vec![package], ..Change::default() });
    let add = empty.request(ALICE, DsRequest::AddUsers(empty.add_body(&forged)));
    node.refuses("DS-019", Via::Home(&empty.devices[&ALICE]), &add, ErrorCode::InvalidCredential).await;
}

// covers DS-091, DS-092, DS-093
#[tokio::test]
async fn who_may_come_in_depends_on_who_is_there() {
    let mut trio = Trio::new().await;
    let bob = trio.room.devices[&BOB].clone();
    let (dora, laptop) = (trio.node.device("dora@b.test").await, bob.sibling("laptop"));
    trio.node.refuses("DS-091", Via::Home(&dora), &trio.looks(&dora), ErrorCode::NotAuthorized).await;
    let join = trio.by_user(&dora, DsRequest::JoinGroup(trio.body(&dora, None)));
    trio.node.refuses("DS-091", Via::Home(&dora), &join, ErrorCode::NotAuthorized).await;
    let join = trio.by_user(&dora, DsRequest::JoinClient(trio.body(&dora, None)));
    trio.node.refuses("DS-093", Via::Home(&dora), &join, ErrorCode::NotAuthorized).await;
    open(&trio.node, &mut trio.room).await;
    let join = trio.by_user(&laptop, DsRequest::JoinGroup(trio.body(&laptop, None)));
    trio.node.refuses("DS-092", Via::Home(&laptop), &join, ErrorCode::NotAuthorized).await;
    let join = trio.by_user(&dora, DsRequest::JoinGroup(trio.body(&dora, None)));
    trio.node.accepts(Via::Home(&dora), &join).await;
}

// covers DS-078, DS-079, DS-095, DS-096
#[tokio::test]
async fn an_external_commit_brings_the_askers_client_and_takes_out_no_other() {
    let trio = Trio::new().await;
    let bob = trio.room.devices[&BOB].clone();
    let (laptop, renewed) = (bob.sibling("laptop"), bob.sibling("phone"));
    let of_member = trio.room.join_body(&trio.room.update(BOB).0, bob.opaque_queue());
    let request = trio.by_user(&bob, DsRequest::JoinClient(of_member));
    trio.node.refuses("DS-078", Via::Home(&bob), &request, ErrorCode::InvalidCommit).await;
    let request = trio.by_user(&laptop, DsRequest::JoinClient(trio.body(&laptop, Some(CAROL))));
    trio.node.refuses("DS-079", Via::Home(&laptop), &request, ErrorCode::InvalidCommit).await;
    let of_carol = trio.room.devices[&CAROL].sibling("laptop");
    let request = trio.by_user(&bob, DsRequest::JoinClient(trio.body(&of_carol, None)));
    trio.node.refuses("DS-095", Via::Home(&bob), &request, ErrorCode::InvalidCredential).await;
    let request = trio.room.request(BOB, DsRequest::ResyncClient(trio.body(&renewed, None)));
    trio.node.refuses("DS-096", Via::Home(&bob), &request, ErrorCode::InvalidCommit).await;
    let request = trio.room.request(BOB, DsRequest::ResyncClient(trio.body(&renewed, Some(BOB))));
    trio.node.accepts(Via::Home(&bob), &request).await;
}

// covers DS-094
#[tokio::test]
async fn who_leaves_does_not_come_in_by_another_door() {
    let trio = Trio::new().await;
    let bob = trio.room.devices[&BOB].clone();
    let leave = trio.room.request(BOB, DsRequest::LeaveGroup(GroupOnly { group_id: trio.room.id() }));
    trio.node.accepts(Via::Home(&bob), &leave).await;
    let laptop = bob.sibling("laptop");
    let request = trio.by_user(&laptop, DsRequest::JoinClient(trio.body(&laptop, None)));
    trio.node.refuses("DS-094", Via::Home(&laptop), &request, ErrorCode::NotAuthorized).await;
    let request = trio.room.request(BOB, DsRequest::ResyncClient(trio.body(&bob, Some(BOB))));
    trio.node.refuses("DS-094", Via::Home(&bob), &request, ErrorCode::NotAuthorized).await;
}
