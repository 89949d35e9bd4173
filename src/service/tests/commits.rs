//! Commits of members: what is not committed.

use crate::base::UnixMillis;
use crate::identity::AsRoot;
use crate::service::testing::{TestNode, Via};
use crate::synth::{CONTENT_TYPE_PROPOSAL, Capabilities, Change, Forged, Identity, KeyPackage};
use crate::tests::forged::{Device, Room, external_senders};
use crate::wire::ds::*;
use crate::wire::{ClientRequest, ErrorCode, Opaque};

const ALICE: u32 = 0;
const BOB: u32 = 1;

/// A node with a group of alice and carol, who are its own, and bob.
struct Trio {
    node: TestNode,
    room: Room,
}

impl Trio {
    async fn new() -> Self {
        Self::with_limits(crate::base::limits::Limits::default()).await
    }

    async fn with_limits(limits: crate::base::limits::Limits) -> Self {
        let node = TestNode::with_limits(limits).await;
        let room = node.room(&["alice@a.test", "bob@b.test", "carol@a.test"]).await;
        Self { node, room }
    }

    async fn refuses(&self, rule: &str, request: &ClientRequest, code: ErrorCode) {
        self.node.refuses(rule, Via::Home(&self.room.devices[&ALICE]), request, code).await;
    }

    /// A Commit of alice's as update_client.
    fn update(&self, forged: &Forged) -> ClientRequest {
        self.room.request(ALICE, DsRequest::UpdateClient(self.room.commit_body(forged)))
    }

    /// A Commit of alice's as add_users.
    fn add(&self, forged: &Forged) -> ClientRequest {
        self.room.request(ALICE, DsRequest::AddUsers(self.room.add_body(forged)))
    }

    /// A Commit of alice's as remove_users.
    fn remove(&self, forged: &Forged) -> ClientRequest {
        self.room.request(ALICE, DsRequest::RemoveUsers(self.room.commit_body(forged)))
    }

    fn commit(&self, change: Change) -> Forged {
        self.room.try_commit(ALICE, change)
    }

    /// An add_users of alice's that adds these.
    fn adds(&self, packages: Vec<KeyPackage>) -> ClientRequest {
        self.add(&self.commit(Change { add: packages, ..Change::default() }))
    }
}

// covers DS-040, DS-041, DS-042, DS-055
#[tokio::test]
async fn a_commit_is_its_senders_of_this_group_and_epoch() {
    let mut trio = Trio::new().await;
    let forged = trio.commit(Change::default());
    let bob = trio.room.devices[&BOB].clone();
    let as_bob = trio.room.request(BOB, DsRequest::UpdateClient(trio.room.commit_body(&forged)));
    trio.node.refuses("DS-041", Via::Home(&bob), &as_bob, ErrorCode::NotAuthorized).await;
    let other = trio.node.room(&["dora@a.test"]).await;
    let of_other = other.update(ALICE).0;
    trio.refuses("DS-040", &trio.update(&of_other), ErrorCode::InvalidCommit).await;
    let mut ahead = trio.room.clone();
    ahead.group.update(ALICE).expect("alice is there");
    let early = ahead.group.update(ALICE).expect("alice is there");
    trio.refuses("DS-040", &trio.update(&early), ErrorCode::WrongEpoch).await;
    let proposal = trio.room.group.public_message(ALICE, CONTENT_TYPE_PROPOSAL, &[0, 3, 0, 0, 0, 1]).expect("a member");
    let proposal = Forged { commit: proposal, ..forged.clone() };
    trio.refuses("DS-055", &trio.update(&proposal), ErrorCode::InvalidCommit).await;
    // Within the signature of the new leaf.
    let mut spoilt = forged.clone();
    let at = spoilt.commit.len() - 200;
    spoilt.commit[at] ^= 1;
    trio.refuses("DS-042", &trio.update(&spoilt), ErrorCode::InvalidCommit).await;
}

// covers DS-045
#[tokio::test]
async fn a_group_info_is_the_commits_own() {
    let trio = Trio::new().await;
    let mut after = trio.room.group.clone();
    let forged = after.update(ALICE).expect("alice is there");
    let (alice, bob) = (trio.room.devices[&ALICE].identity(), trio.room.devices[&BOB].identity());
    let good = after.group_info_parts(ALICE);
    let mut of_old_context = good.clone();
    of_old_context.context = trio.room.group.context();
    let mut of_other_tag = good.clone();
    of_other_tag.confirmation_tag = vec![7; 32];
    let mut without_external_pub = good.clone();
    without_external_pub.extensions.clear();
    let mut with_tree = good.clone();
    with_tree.extensions.push(after.ratchet_tree_extension());
    for group_info in [
        of_old_context.sign(&alice),
        of_other_tag.sign(&alice),
        without_external_pub.sign(&alice),
        with_tree.sign(&alice),
        good.sign(&bob),
        Vec::new(),
    ] {
        let request = trio.update(&Forged { group_info, ..forged.clone() });
        trio.refuses("DS-045", &request, ErrorCode::InvalidGroupInfo).await;
    }
}

// covers DS-025, DS-043, DS-046
#[tokio::test]
async fn an_updated_leaf_stays_its_clients() {
    let trio = Trio::new().await;
    let alice = &trio.room.devices[&ALICE];
    let with = |identity: Identity| trio.update(&trio.commit(Change { identity: Some(identity), ..Change::default() }));
    let bobs_key = Identity::new(&trio.room.devices[&BOB].seed, &alice.chain);
    trio.refuses("DS-043", &with(bobs_key), ErrorCode::InvalidCommit).await;
    trio.refuses("DS-025", &with(alice.sibling("laptop").identity()), ErrorCode::InvalidCredential).await;
    let default_types = Capabilities { extensions: vec![5, 0xF0C0], ..Capabilities::default() };
    let listing = trio.commit(Change { capabilities: Some(default_types), ..Change::default() });
    trio.refuses("DS-046", &trio.update(&listing), ErrorCode::InvalidCommit).await;
}

// covers DS-044, DS-047, DS-048, DS-050
#[tokio::test]
async fn a_commit_does_what_its_request_says() {
    let trio = Trio::new().await;
    let dora = trio.node.device("dora@b.test").await.key_package(None);
    let other_ds = external_senders(b"another DS");
    let without_ds = trio.commit(Change { extensions: Some(vec![]), ..Change::default() });
    let as_update_group = |forged: &Forged| trio.room.request(ALICE, DsRequest::UpdateGroup(trio.room.commit_body(forged)));
    trio.refuses("DS-044", &as_update_group(&without_ds), ErrorCode::InvalidCommit).await;
    let other = trio.commit(Change { extensions: Some(vec![other_ds]), ..Change::default() });
    trio.refuses("DS-044", &as_update_group(&other), ErrorCode::InvalidCommit).await;
    let psk = [&[0, 4, 1, 3][..], b"psk", &[32], &[1; 32]].concat();
    let psk = trio.commit(Change { remove: vec![BOB], other: vec![psk], ..Change::default() });
    trio.refuses("DS-047", &trio.remove(&psk), ErrorCode::InvalidCommit).await;
    let removal = trio.commit(Change { remove: vec![BOB], ..Change::default() });
    trio.refuses("DS-048", &trio.add(&trio.commit(Change::default())), ErrorCode::InvalidCommit).await;
    trio.refuses("DS-050", &trio.update(&removal), ErrorCode::InvalidCommit).await;
    let add = trio.commit(Change { add: vec![dora], without_path: true, ..Change::default() });
    trio.refuses("DS-050", &trio.update(&add), ErrorCode::InvalidCommit).await;
}

// covers DS-049
#[tokio::test]
async fn remove_users_removes_whole_users() {
    let mut trio = Trio::new().await;
    let phone = trio.node.device("dora@b.test").await;
    let both = [phone.clone(), phone.sibling("laptop")].map(|device| device.key_package(Some(&phone.opaque_queue())));
    let forged = trio.room.group.add(ALICE, both.to_vec()).expect("alice is there");
    trio.node.accepts(Via::Home(&trio.room.devices[&ALICE]), &trio.add(&forged)).await;
    let (phone, laptop) = (3, 4);
    for leaves in [vec![phone], vec![laptop], vec![laptop, BOB]] {
        let forged = trio.commit(Change { remove: leaves, ..Change::default() });
        trio.refuses("DS-049", &trio.remove(&forged), ErrorCode::InvalidCommit).await;
    }
    trio.refuses("DS-049", &trio.remove(&trio.commit(Change::default())), ErrorCode::InvalidCommit).await;
}

// covers DS-020, DS-022, DS-023, DS-024, DS-051, DS-052
#[tokio::test]
async fn an_added_client_proves_who_it_is_and_where_its_queue_is() {
    let trio = Trio::new().await;
    let dora = trio.node.device("dora@b.test").await;
    let queue = dora.opaque_queue();
    let good = || dora.key_package(Some(&queue));
    // The same names under a root of its own.
    let root = AsRoot::create(dora.domain(), UnixMillis::now()).expect("a root");
    let self_made = Device::new(&root, "dora").key_package(Some(&queue));
    trio.refuses("DS-020", &trio.adds(vec![self_made]), ErrorCode::InvalidCredential).await;
    let other_key = Device { seed: [9; 32], ..dora.clone() }.key_package(Some(&queue));
    trio.refuses("DS-020", &trio.adds(vec![other_key.clone()]), ErrorCode::InvalidCredential).await;
    trio.refuses("DS-020", &trio.adds(vec![good(), other_key]), ErrorCode::InvalidCredential).await;
    let elsewhere = ClientQueueConfig { qs_domain: b"a.test".as_slice().into(), ..queue.clone() };
    trio.refuses("DS-022", &trio.adds(vec![dora.key_package(Some(&elsewhere))]), ErrorCode::InvalidQueueConfig).await;
    trio.refuses("DS-023", &trio.adds(vec![dora.key_package(None)]), ErrorCode::InvalidQueueConfig).await;
    let twice = vec![good(), dora.sibling("phone").key_package(Some(&queue))];
    trio.refuses("DS-024", &trio.adds(twice), ErrorCode::InvalidCommit).await;
    let bobs = &trio.room.devices[&BOB];
    let laptop = bobs.sibling("laptop").key_package(Some(&bobs.opaque_queue()));
    trio.refuses("DS-051", &trio.adds(vec![laptop]), ErrorCode::InvalidCommit).await;
    let forged = trio.commit(Change { add: vec![good()], ..Change::default() });
    for welcomes in [vec![], vec![forged.welcome.clone(), forged.welcome.clone()], vec![vec![1]]] {
        let welcomes: Vec<Opaque> = welcomes.into_iter().map(Opaque::from).collect();
        let body = GroupAdd { welcomes: welcomes.into(), ..trio.room.add_body(&forged) };
        let request = trio.room.request(ALICE, DsRequest::AddUsers(body));
        trio.refuses("DS-052", &request, ErrorCode::InvalidWelcome).await;
    }
}

// covers DS-054, DS-058
#[tokio::test]
async fn a_commit_and_its_group_info_are_of_bounded_size() {
    let trio = Trio::new().await;
    let limits = crate::base::limits::Limits::default();
    let forged = trio.commit(Change::default());
    let large = Forged { commit: vec![0; limits.commit_bytes_max + 1], ..forged.clone() };
    trio.refuses("DS-054", &trio.update(&large), ErrorCode::TooLarge).await;
    let most = limits.context_extensions_bytes_max + crate::base::limits::GROUP_INFO_OVERHEAD_BYTES_MAX;
    let large = Forged { group_info: vec![0; most + 1], ..forged };
    trio.refuses("DS-058", &trio.update(&large), ErrorCode::TooLarge).await;
}

// covers DS-059, DS-071, DS-075, DS-076, DS-077
#[tokio::test]
async fn each_kind_of_request_has_its_kind_of_commit() {
    let limits = crate::base::limits::Limits { user_leaves_max: 1, ..Default::default() };
    let trio = Trio::with_limits(limits).await;
    let room = &trio.room;
    let dora = trio.node.device("dora@b.test").await;
    let adds = |device: &Device| {
        let add = vec![device.key_package(Some(&device.opaque_queue()))];
        let forged = trio.commit(Change { add, ..Change::default() });
        room.request(ALICE, DsRequest::AddClients(room.add_body(&forged)))
    };
    trio.refuses("DS-075", &adds(&dora), ErrorCode::InvalidCommit).await;
    trio.refuses("DS-059", &adds(&room.devices[&BOB].sibling("laptop")), ErrorCode::TooLarge).await;
    let removal = trio.commit(Change { remove: vec![BOB], ..Change::default() });
    let of_one = room.request(ALICE, DsRequest::RemoveClients(room.commit_body(&removal)));
    trio.refuses("DS-076", &of_one, ErrorCode::InvalidCommit).await;
    let of_all = room.request(ALICE, DsRequest::DeleteGroup(room.commit_body(&removal)));
    trio.refuses("DS-071", &of_all, ErrorCode::InvalidCommit).await;
    let update = trio.commit(Change::default());
    let of_context = room.request(ALICE, DsRequest::UpdateGroup(room.commit_body(&update)));
    trio.refuses("DS-077", &of_context, ErrorCode::InvalidCommit).await;
}

// covers DS-097
#[tokio::test]
async fn no_proposal_is_carried_twice() {
    let trio = Trio::new().await;
    let remove = vec![0, 3, 0, 0, 0, 1];
    let twice = trio.commit(Change { remove: vec![BOB], other: vec![remove], ..Change::default() });
    trio.refuses("DS-097", &trio.remove(&twice), ErrorCode::InvalidCommit).await;
}

// covers DS-098
#[tokio::test]
async fn the_leaves_of_a_group_fit_a_frame_together() {
    let mut trio = Trio::new().await;
    let root = trio.node.as_roots[&"b.test".parse().expect("a domain")].clone();
    // Leaf nodes that are nearly as large as one may be, by extension types that nobody knows.
    let each = crate::base::limits::LEAF_NODE_BYTES_MAX - 2048;
    let capabilities = || {
        let kinds = (0..each / 2).map(|kind| 0xF0C0 | kind as u16).collect();
        Capabilities { extensions: kinds, ..Capabilities::default() }
    };
    let most = crate::base::limits::LEAF_NODES_BYTES_MAX / each;
    for round in 0..=most / 40 {
        let packages = (0..40).map(|number| {
            let device = Device::new(&root, &format!("user{round}-{number}"));
            device.key_package_with(Some(&device.opaque_queue()), capabilities())
        });
        let change = Change { add: packages.collect(), without_path: true, ..Change::default() };
        let mut after = trio.room.group.clone();
        let forged = after.commit(ALICE, change).expect("a Commit");
        if round < most / 40 {
            trio.node.accepts(Via::Home(&trio.room.devices[&ALICE]), &trio.add(&forged)).await;
            trio.room.group = after;
        } else {
            trio.refuses("DS-098", &trio.add(&forged), ErrorCode::TooLarge).await;
        }
    }
}

// covers DS-053
#[tokio::test]
async fn a_group_stays_within_its_limit_of_leaves() {
    let limits = crate::base::limits::Limits { group_leaves_max: 3, ..Default::default() };
    let trio = Trio::with_limits(limits).await;
    let dora = trio.node.device("dora@b.test").await;
    let request = trio.adds(vec![dora.key_package(Some(&dora.opaque_queue()))]);
    trio.refuses("DS-053", &request, ErrorCode::TooLarge).await;
}
