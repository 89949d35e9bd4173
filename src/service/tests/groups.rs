//! create_group: what is not made a group.

use crate::base::UnixMillis;
use crate::base::limits::KEY_PACKAGE_BYTES_MAX;
use crate::service::testing::{TestNode, Via, changed};
use crate::synth::{Capabilities, KeyPackage, SynthGroup};
use crate::tests::forged::{Device, Room, external_senders};
use crate::wire::ErrorCode;
use crate::wire::ds::*;

/// A node, a user of it, and the group that it would make.
struct Founding {
    node: TestNode,
    alice: Device,
    room: Room,
    good: crate::wire::ClientRequest,
}

impl Founding {
    async fn new() -> Self {
        let node = TestNode::new().await;
        let alice = node.device("alice@a.test").await;
        let (room, good) = node.creation(&alice).await;
        Self { node, alice, room, good }
    }

    async fn refuses(&self, rule: &str, code: ErrorCode, change: impl FnOnce(&mut DsSenderId, &mut CreateGroup)) {
        let request = changed(&self.alice.key, &self.good, |sender, body| {
            if let DsRequest::CreateGroup(body) = body {
                change(sender, body);
            }
        });
        self.node.refuses(rule, Via::Home(&self.alice), &request, code).await;
    }

    /// A create_group by alice with a group of this KeyPackage.
    async fn refuses_group_of(&self, rule: &str, code: ErrorCode, package: &KeyPackage, of: &KeyPackage) {
        let senders = [external_senders(self.node.service.directory.external_sender())];
        let mut group = SynthGroup::create(&self.room.uri.to_bytes(), of, &senders, 1);
        let group_info = group.group_info_with_tree(0).expect("leaf 0 is there");
        let request = self.room.creation(package, self.alice.opaque_queue(), group_info);
        self.node.refuses(rule, Via::Home(&self.alice), &request, code).await;
    }
}

// covers DS-012, DS-022, DS-030, DS-031, DS-032, DS-033, DS-034, DS-035, DS-036
#[tokio::test]
async fn a_group_is_made_by_its_only_member_under_an_unused_name() {
    let founding = Founding::new().await;
    let Founding { node, alice, room, good } = &founding;
    let bob = node.device("bob@b.test").await;
    node.refuses("DS-012", Via::Peer("b.test"), good, ErrorCode::WrongOrigin).await;
    let elsewhere = bob.opaque_queue();
    founding.refuses("DS-022", ErrorCode::InvalidQueueConfig, |_, body| body.client_queue_config = elsewhere).await;
    let mut spoilt = alice.key_package(None).message();
    *spoilt.last_mut().expect("octets") ^= 1;
    founding.refuses("DS-030", ErrorCode::InvalidKeyPackage, |_, body| body.key_package = spoilt.into()).await;
    founding.refuses("DS-030", ErrorCode::InvalidKeyPackage, |_, body| body.key_package = vec![1].into()).await;
    founding.refuses("DS-031", ErrorCode::NotAuthorized, |sender, _| *sender = DsSenderId::LeafIndex(0)).await;
    let of_b = b"mimi://b.test/g/1".as_slice();
    founding.refuses("DS-032", ErrorCode::InvalidGroupId, |_, body| body.group_id = of_b.into()).await;
    let by_bob = changed(&bob.key, good, |_, _| ());
    node.refuses("DS-033", Via::Home(alice), &by_bob, ErrorCode::BadSignature).await;
    let garbage = vec![0xff; 60];
    founding.refuses("DS-034", ErrorCode::InvalidGroupInfo, |_, body| body.group_info = garbage.into()).await;
    let other = b"mimi://a.test/g/2".as_slice();
    founding.refuses("DS-034", ErrorCode::InvalidGroupInfo, |_, body| body.group_id = other.into()).await;
    let laptop = alice.sibling("laptop").key_package(None);
    let package = alice.key_package(None);
    founding.refuses_group_of("DS-035", ErrorCode::InvalidGroupInfo, &package, &laptop).await;

    node.accepts(Via::Home(alice), good).await;
    let again = changed(&alice.key, good, |_, _| ());
    node.refuses("DS-036", Via::Home(alice), &again, ErrorCode::InvalidGroupId).await;
    let carol = node.device("carol@a.test").await;
    let package = carol.key_package(None);
    let senders = [external_senders(node.service.directory.external_sender())];
    let mut group = SynthGroup::create(&room.uri.to_bytes(), &package, &senders, 2);
    let info = group.group_info_with_tree(0).expect("leaf 0 is there");
    let room = Room { devices: [(0, carol.clone())].into(), ..room.clone() };
    let taken = room.creation(&package, node.queue_config(&carol).await, info);
    node.refuses("DS-036", Via::Home(&carol), &taken, ErrorCode::InvalidGroupId).await;
}

// covers DS-020, DS-026, DS-027, DS-028, DS-029, DS-030, DS-046, DS-058
#[tokio::test]
async fn a_creators_key_package_is_what_others_accept() {
    let founding = Founding::new().await;
    let alice = &founding.alice;
    let unproven = Device { chain: vec![vec![1, 2, 3], vec![4]], ..alice.clone() }.key_package(None);
    founding.refuses_group_of("DS-020", ErrorCode::InvalidCredential, &unproven, &unproven).await;
    let chain = [&alice.chain[..], &alice.chain[1..]].concat();
    let longer = Device { chain, ..alice.clone() }.key_package(None);
    founding.refuses_group_of("DS-026", ErrorCode::InvalidCredential, &longer, &longer).await;
    let large = vec![0; KEY_PACKAGE_BYTES_MAX + 1];
    founding.refuses("DS-027", ErrorCode::TooLarge, |_, body| body.key_package = large.into()).await;
    let large = vec![0; 1024 * 1024];
    founding.refuses("DS-058", ErrorCode::TooLarge, |_, body| body.group_info = large.into()).await;
    let chain = vec![vec![0x30; crate::base::limits::LEAF_NODE_BYTES_MAX]];
    let fat = Device { chain, ..alice.clone() }.key_package(None);
    founding.refuses_group_of("DS-028", ErrorCode::TooLarge, &fat, &fat).await;
    let immortal = alice.key_package_living(std::time::Duration::from_secs(400 * 86_400));
    founding.refuses_group_of("DS-029", ErrorCode::InvalidKeyPackage, &immortal, &immortal).await;
    // Made so long ago that its lifetime is over.
    let long_ago = UnixMillis::now().minus(std::time::Duration::from_secs(200 * 86_400));
    let expired = alice.key_package_of(None, Capabilities::default(), long_ago, &[]);
    founding.refuses_group_of("DS-030", ErrorCode::InvalidKeyPackage, &expired, &expired).await;
    let default_types = Capabilities { extensions: vec![5, 0xF0C0], ..Capabilities::default() };
    let listing = alice.key_package_with(None, default_types);
    founding.refuses_group_of("DS-046", ErrorCode::InvalidKeyPackage, &listing, &listing).await;
    let package = alice.key_package(None);
    founding.refuses_group_of("DS-046", ErrorCode::InvalidGroupInfo, &package, &listing).await;
}
