//! Commits that the hub refuses. They are forged, so that one thing is wrong with each and all else is right.

use federation_tests::people::{Device, Person, Room, accepted, external_senders, forge_client_certificate, key_package};
use federation_tests::synth::{
    CONTENT_TYPE_APPLICATION, CONTENT_TYPE_COMMIT, CONTENT_TYPE_PROPOSAL, Capabilities, Change, Extension, Forged, Identity,
    KeyPackage,
};
use mimi_node::base::crypto::{SigningKey, sha256};
use mimi_node::base::limits::Limits;
use mimi_node::base::{Domain, Fault, GroupUri, UnixMillis, UserUri};
use mimi_node::identity::AsRoot;
use mimi_node::identity::issue::user_csr;
use mimi_node::wire::ds::{DsRequest, DsSenderId};
use mimi_node::wire::error::{ErrorCode, WrongEpoch};
use mimi_node::wire::qs::QueueBinding;
use mimi_node::wire::{ClientRequest, Content, Opaque, Reply, encode};
use rand::Rng as _;

use super::{ALICE, BOB, CAROL, Trio};

const EXTENSION_EXTERNAL_PUB: u16 = 4;
const EXTENSION_REQUIRED_CAPABILITIES: u16 = 3;

impl Trio {
    /// An update commit by alice, as request.
    fn alices(&self, forged: &Forged) -> ClientRequest {
        self.room.request(ALICE, &self.alice.device.key, self.room.update_body(forged))
    }

    async fn refuses(&mut self, what: &str, request: &ClientRequest, code: ErrorCode) -> Result<(), Fault> {
        self.stage.refuses(what, &self.alice, request, code).await.map(drop)
    }

    /// That an update commit of alice's is accepted: the refused ones before it have left nothing behind.
    async fn goes_on(mut self) -> Result<(), Fault> {
        self.room.update((&self.alice, ALICE)).await.map(drop)
    }
}

/// `forged` with something in its place.
fn with_commit(forged: &Forged, commit: Vec<u8>) -> Forged {
    Forged { commit, ..forged.clone() }
}

fn with_group_info(forged: &Forged, group_info: Vec<u8>) -> Forged {
    Forged { group_info, ..forged.clone() }
}

// Shows: who may commit: a member, for itself, with its own signature, in this group and its present epoch. Failure: another code
// for any of these, or any change. A wrong epoch is told with the present one and the hash of what was accepted instead.
// covers DS-010, DS-011, DS-013, DS-040, DS-041
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_is_its_senders_of_this_group_and_epoch() -> Result<(), Fault> {
    let mut trio = Trio::new(21).await?;
    let forged = trio.room.try_commit(ALICE, Change::default()).expect("alice is a member");
    let body = trio.room.update_body(&forged);
    let room = trio.room.clone();
    let (alice, bob) = (trio.alice.device.key.clone(), trio.bob.device.key.clone());

    let as_bob = room.request(BOB, &bob, body.clone());
    let rejection = trio.stage.refuses("alice's commit in bob's name", &trio.bob, &as_bob, ErrorCode::NotAuthorized).await?;
    assert!(rejection.detail.is_empty());
    trio.refuses("signed by bob", &room.request(ALICE, &bob, body.clone()), ErrorCode::BadSignature).await?;
    let mut spoilt = room.request(ALICE, &alice, body.clone());
    spoilt.content.issued_at_ms += 1;
    trio.refuses("another time than was signed", &spoilt, ErrorCode::BadSignature).await?;
    trio.refuses("no such leaf", &room.request(3, &alice, body.clone()), ErrorCode::NotAuthorized).await?;
    trio.refuses("no leaf at all", &room.request(u32::MAX, &alice, body.clone()), ErrorCode::NotAuthorized).await?;
    let reference = DsSenderId::KeyPackageRef(vec![1; 32].into());
    trio.refuses("no such KeyPackage", &room.request_by(reference, &alice, body.clone()), ErrorCode::NotAuthorized).await?;
    let user = DsSenderId::UserKeyHash(vec![1; 32].into());
    trio.refuses("a user", &room.request_by(user, &alice, body.clone()), ErrorCode::InvalidCredential).await?;

    // Of another group of alice's: the commit is good there.
    let (mut other, create) = Room::forge(&trio.alice, &mut trio.stage.rng)?;
    let of_other = other.group.update(ALICE).expect("alice is a member");
    trio.refuses("a group that is none", &other.request(ALICE, &alice, other.update_body(&of_other)), ErrorCode::UnknownGroup)
        .await?;
    assert_eq!(trio.alice.ask(&create).await?, Ok(Reply::Done));
    trio.refuses("a commit of another group", &trio.alices(&of_other), ErrorCode::InvalidCommit).await?;
    let elsewhere = Room { uri: GroupUri::new(&trio.stage.domain(1), &[7; 16]), group: room.group.clone() };
    let misdirected = elsewhere.request(ALICE, &alice, elsewhere.update_body(&forged));
    let misdirected = Content { destination: trio.stage.domain(0).as_bytes().into(), ..misdirected.content }.sign(&alice);
    trio.refuses("a group of another hub", &misdirected, ErrorCode::UnknownGroup).await?;
    let deletion = DsRequest::DeleteGroup(mimi_node::wire::ds::GroupCommit {
        group_id: room.uri.to_bytes().into(),
        group_update: federation_tests::people::update_of(&forged),
    });
    trio.refuses("an update as delete_group", &room.request(ALICE, &alice, deletion), ErrorCode::InvalidCommit).await?;

    // The epoch goes on; the commit made before is told what won.
    let won = trio.room.update((&trio.carol, CAROL)).await?;
    let late = trio.alices(&forged);
    let rejection = trio.stage.refuses("late", &trio.alice, &late, ErrorCode::WrongEpoch).await?;
    let detail = WrongEpoch { current_epoch: 2, accepted_commit_hash: Some(sha256(&won.commit)) };
    assert_eq!(rejection.as_wrong_epoch(), Some(detail));
    let mut ahead = trio.room.clone();
    ahead.group.update(ALICE).expect("alice is a member");
    let early = ahead.group.update(ALICE).expect("alice is a member");
    let rejection = trio.stage.refuses("early", &trio.alice, &trio.alices(&early), ErrorCode::WrongEpoch).await?;
    assert_eq!(rejection.as_wrong_epoch(), Some(WrongEpoch { current_epoch: 2, accepted_commit_hash: None }));
    trio.goes_on().await
}

// Shows: a commit is a PublicMessage of content type commit and every octet of it that OpenMLS or the GroupInfo vouches for counts.
// Failure: acceptance, no answer (a crash while reading), another code, or any change. Not a failure: that a changed membership tag
// is not noticed; no server can check one.
// covers DS-042, DS-055
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoilt_commit_is_refused() -> Result<(), Fault> {
    let mut trio = Trio::new(22).await?;
    let forged = trio.room.try_commit(ALICE, Change::default()).expect("alice is a member");
    let mut group = trio.room.group.clone();
    let private = with_commit(&forged, group.private_message(CONTENT_TYPE_COMMIT));
    trio.refuses("a commit as PrivateMessage", &trio.alices(&private), ErrorCode::InvalidCommit).await?;
    let application = group.public_message(ALICE, CONTENT_TYPE_APPLICATION, &[2, 7, 7]).expect("alice is a member");
    let application = with_commit(&forged, application);
    trio.refuses("an application message", &trio.alices(&application), ErrorCode::InvalidCommit).await?;
    let proposal = group.public_message(ALICE, CONTENT_TYPE_PROPOSAL, &[0, 3, 0, 0, 0, 1]).expect("alice is a member");
    trio.refuses("a proposal", &trio.alices(&with_commit(&forged, proposal)), ErrorCode::InvalidCommit).await?;
    for (what, octets) in [("a GroupInfo", &forged.group_info), ("nothing", &vec![]), ("garbage", &vec![0xff; 100])] {
        trio.refuses(what, &trio.alices(&with_commit(&forged, octets.clone())), ErrorCode::InvalidCommit).await?;
    }

    // All of these against one look at the tables: a change by any of them would show at the end.
    let before = trio.stage.contents().await?;
    let rejected = async |forged: &Forged, what: String| -> Result<ErrorCode, Fault> {
        match trio.alice.ask(&trio.alices(forged)).await {
            Ok(Err(rejection)) => Ok(rejection.code),
            Ok(Ok(_)) => Err(Fault::new(format!("{what} was accepted"))),
            Err(fault) => Err(Fault::because(what, fault)),
        }
    };
    let mut rng = trio.stage.rng.clone();
    for end in (0..forged.commit.len()).step_by(7).chain(forged.commit.len() - 40..forged.commit.len()) {
        let spoilt = with_commit(&forged, forged.commit[..end].to_vec());
        assert_eq!(rejected(&spoilt, format!("{end} octets of a commit")).await?, ErrorCode::InvalidCommit);
    }
    let tag_begins = forged.commit.len() - 33;
    for _ in 0..400 {
        let (at, bit) = (rng.random_range(0..tag_begins), rng.random_range(0..8));
        let mut commit = forged.commit.clone();
        commit[at] ^= 1 << bit;
        let code = rejected(&with_commit(&forged, commit), format!("bit {bit} of octet {at} of a commit")).await?;
        // Group id, epoch and sender are looked at first; a changed tag makes it another GroupInfo's commit.
        use ErrorCode::{InvalidCommit, InvalidCredential, InvalidGroupInfo, NotAuthorized, WrongEpoch};
        assert!(
            [InvalidCommit, InvalidCredential, InvalidGroupInfo, NotAuthorized, WrongEpoch].contains(&code),
            "octet {at}: {code:?}"
        );
    }
    for end in (0..forged.group_info.len()).step_by(7) {
        let spoilt = with_group_info(&forged, forged.group_info[..end].to_vec());
        assert_eq!(rejected(&spoilt, format!("{end} octets of a GroupInfo")).await?, ErrorCode::InvalidGroupInfo);
    }
    for _ in 0..400 {
        let (at, bit) = (rng.random_range(0..forged.group_info.len()), rng.random_range(0..8));
        let mut group_info = forged.group_info.clone();
        group_info[at] ^= 1 << bit;
        let what = format!("bit {bit} of octet {at} of a GroupInfo");
        assert_eq!(rejected(&with_group_info(&forged, group_info), what).await?, ErrorCode::InvalidGroupInfo, "{at} {bit}");
    }
    trio.stage.expect_unchanged(&before, "spoilt commits").await?;
    trio.goes_on().await
}

// Shows: the GroupInfo is of the epoch that the commit begins, confirmed with its tag, signed by its maker after it, good for
// joining, and without the tree (R5). Failure: another code than invalid_group_info, or any change.
// covers DS-045
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_info_is_the_commits_own() -> Result<(), Fault> {
    let mut trio = Trio::new(23).await?;
    let mut after = trio.room.group.clone();
    let forged = after.update(ALICE).expect("alice is a member");
    let (alice, bob) = (trio.alice.device.identity(), trio.bob.device.identity());
    let good = after.group_info_parts(ALICE);
    let mut other = trio.room.group.clone();
    other.update(BOB).expect("bob is a member");
    let mut of_other_context = good.clone();
    of_other_context.context = other.context();
    let mut of_old_context = good.clone();
    of_old_context.context = trio.room.group.context();
    let mut of_other_tag = good.clone();
    of_other_tag.confirmation_tag = vec![7; 32];
    let mut of_other_signer = good.clone();
    of_other_signer.signer = BOB;
    let mut without_external_pub = good.clone();
    without_external_pub.extensions.retain(|extension| extension.kind != EXTENSION_EXTERNAL_PUB);
    let mut with_tree = good.clone();
    with_tree.extensions.push(after.ratchet_tree_extension());
    let bad = [
        ("another commit's context", of_other_context.sign(&alice)),
        ("the context before", of_old_context.sign(&alice)),
        ("another confirmation tag", of_other_tag.sign(&alice)),
        ("another signer, alice's key", of_other_signer.sign(&alice)),
        ("another signer, its key", of_other_signer.sign(&bob)),
        ("signed by another key", good.sign(&bob)),
        ("no external_pub", without_external_pub.sign(&alice)),
        ("with the tree", with_tree.sign(&alice)),
        ("the commit", forged.commit.clone()),
        ("nothing", vec![]),
    ];
    for (what, group_info) in bad {
        trio.refuses(what, &trio.alices(&with_group_info(&forged, group_info)), ErrorCode::InvalidGroupInfo).await?;
    }
    // The control: remade from the same parts it is accepted.
    let control = with_group_info(&forged, good.sign(&alice));
    accepted(trio.alice.ask(&trio.alices(&control)).await?, &control)?;
    trio.room.group = after;
    trio.goes_on().await
}

// Shows: update_client renews a path and does nothing else, and nothing but membership can be committed at all. Failure: another
// code than invalid_commit, or any change.
// covers DS-044, DS-047, DS-050
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn update_client_brings_a_path_and_nothing_else() -> Result<(), Fault> {
    let mut trio = Trio::new(24).await?;
    let dora = trio.stage.person(1, "dora").await?;
    let package = dora.key_package(&mut trio.stage.rng)?;
    let mine = external_senders(&trio.alice.info);
    let of_bob = external_senders(&trio.bob.info);
    let required = Extension { kind: EXTENSION_REQUIRED_CAPABILITIES, data: vec![0, 0, 0] };
    let re_init = [&[0, 5][..], &encode(&Opaque::from(b"new".as_slice())), &[0, 1, 0, 1, 0]].concat();
    let psk = [&[0, 4, 1][..], &encode(&Opaque::from(b"psk".as_slice())), &encode(&Opaque::from(vec![1; 32]))].concat();
    let changes = [
        ("a Remove", Change { remove: vec![BOB], ..Change::default() }),
        ("an Add", Change { add: vec![package.clone()], ..Change::default() }),
        ("an Add without a path", Change { add: vec![package], without_path: true, ..Change::default() }),
        ("no path", Change { without_path: true, ..Change::default() }),
        ("no external_senders", Change { extensions: Some(vec![]), ..Change::default() }),
        ("another DS in external_senders", Change { extensions: Some(vec![of_bob]), ..Change::default() }),
        ("GroupContextExtensions that keep them", Change { extensions: Some(vec![mine.clone()]), ..Change::default() }),
        ("required_capabilities", Change { extensions: Some(vec![mine, required]), ..Change::default() }),
        ("ReInit", Change { other: vec![re_init], without_path: true, ..Change::default() }),
        ("PreSharedKey", Change { other: vec![psk], ..Change::default() }),
        ("a Remove of its own maker", Change { other: vec![vec![0, 3, 0, 0, 0, 0]], ..Change::default() }),
        ("a proposal type that is none", Change { other: vec![vec![0xfa, 0xfa]], ..Change::default() }),
    ];
    for (what, change) in changes {
        let forged = trio.room.try_commit(ALICE, change).expect("alice is a member");
        for body in [trio.room.update_body(&forged), trio.room.remove_body(&forged), trio.room.add_body(&forged)] {
            // A Remove and an Add are good where they belong.
            let fits = matches!((what, &body), ("a Remove", DsRequest::RemoveUsers(_)))
                || matches!(&body, DsRequest::AddUsers(_) if what.starts_with("an Add"));
            if !fits {
                let request = trio.room.request(ALICE, &trio.alice.device.key, body);
                trio.refuses(what, &request, ErrorCode::InvalidCommit).await?;
            }
        }
    }
    // An empty commit with a path is no add_users and no remove_users either.
    let forged = trio.room.try_commit(ALICE, Change::default()).expect("alice is a member");
    for body in [trio.room.remove_body(&forged), trio.room.add_body(&forged)] {
        let request = trio.room.request(ALICE, &trio.alice.device.key, body);
        trio.refuses("an update as another type", &request, ErrorCode::InvalidCommit).await?;
    }
    trio.goes_on().await
}

// Shows: a leaf's new key is nobody else's in the tree, is the one that its certificate names, and its client stays the same.
// Failure: another code, or any change. The controls: a renewed certificate, and a new key with a certificate for it, are accepted.
// covers DS-020, DS-025, DS-026, DS-043, DS-046
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_updated_leaf_stays_its_clients() -> Result<(), Fault> {
    let mut trio = Trio::new(25).await?;
    let bobs = trio.bob.device.identity();
    let bobs_key_alices_chain = Identity::new(&trio.bob.device.seed, &trio.alice.device.chain);
    let laptop = trio.alice.device("laptop", trio.stage.rng.random())?;
    let new_key_old_chain = Identity::new(&trio.stage.rng.random(), &trio.alice.device.chain);
    let garbage = Identity::new(&trio.alice.device.seed, &[b"garbage".to_vec(), b"more".to_vec()]);
    let empty = Identity::new(&trio.alice.device.seed, &[]);
    let alone = Identity::new(&trio.alice.device.seed, &trio.alice.device.chain[..1]);
    let twice = Identity::new(&trio.alice.device.seed, &[&trio.alice.device.chain[..], &trio.alice.device.chain[1..]].concat());
    let cases = [
        ("bob's key and chain", bobs, ErrorCode::InvalidCommit),
        ("bob's key, alice's chain", bobs_key_alices_chain, ErrorCode::InvalidCommit),
        ("another client of alice", laptop.identity(), ErrorCode::InvalidCredential),
        ("another key than the certificate's", new_key_old_chain, ErrorCode::InvalidCredential),
        ("garbage certificates", garbage, ErrorCode::InvalidCredential),
        ("no certificates", empty, ErrorCode::InvalidCredential),
        ("no user certificate", alone, ErrorCode::InvalidCredential),
        ("one certificate more", twice, ErrorCode::InvalidCredential),
    ];
    for (what, identity, code) in cases {
        let change = Change { identity: Some(identity), ..Change::default() };
        let forged = trio.room.try_commit(ALICE, change).expect("alice is a member");
        trio.refuses(what, &trio.alices(&forged), code).await?;
    }
    let default_types = Capabilities { extensions: vec![5, 0xF0C0], ..Capabilities::default() };
    let change = Change { capabilities: Some(default_types), ..Change::default() };
    let forged = trio.room.try_commit(ALICE, change).expect("alice is a member");
    trio.refuses("capabilities that list default types", &trio.alices(&forged), ErrorCode::InvalidCommit).await?;

    let renewed = trio.alice.device("phone", trio.alice.device.seed)?;
    let rotated = trio.alice.device("phone", trio.stage.rng.random())?;
    let mut key = trio.alice.device.key.clone();
    for device in [renewed, rotated] {
        let change = Change { identity: Some(device.identity()), ..Change::default() };
        let forged = trio.room.group.commit(ALICE, change).expect("alice is a member");
        let request = trio.room.request(ALICE, &key, trio.room.update_body(&forged));
        accepted(trio.alice.ask(&request).await?, &forged)?;
        key = device.key;
    }
    // The key before is good for repeating that commit, which `idempotency` shows, and for nothing else.
    let forged = trio.room.try_commit(ALICE, Change::default()).expect("alice is a member");
    trio.refuses("signed with the key before", &trio.alices(&forged), ErrorCode::BadSignature).await?;
    let message = trio.room.group.private_message(1);
    let message = trio.room.request(ALICE, &trio.alice.device.key, trio.room.message_body(message));
    trio.refuses("a message signed with the key before", &message, ErrorCode::BadSignature).await?;
    trio.alice.device.key = key;
    trio.goes_on().await
}

/// A user of `domain` whose certificates come from a root of the test's own.
fn impostor(domain: &Domain, name: &str, rng: &mut rand_chacha::ChaCha20Rng) -> Result<Device, Fault> {
    let user: UserUri = UserUri::new(domain, name).expect("a name");
    let root = AsRoot::create(domain, UnixMillis::now())?;
    let key = SigningKey::generate()?;
    let certificate = root.issue_user(&user_csr(&key, &user)?, &user, UnixMillis::now()).expect("a certificate");
    federation_tests::people::device_of(&user, &key, &certificate, "phone", rng.random())
}

impl Trio {
    /// An add_users of alice's that adds these.
    fn adds(&self, packages: Vec<KeyPackage>) -> ClientRequest {
        let change = Change { add: packages, ..Change::default() };
        let forged = self.room.try_commit(ALICE, change).expect("alice is a member");
        self.room.request(ALICE, &self.alice.device.key, self.room.add_body(&forged))
    }
}

// Shows: who is added is who its certificates say, down to a root of its own domain, and has a queue there. Failure: another code,
// or any change.
// covers DS-020, DS-021, DS-022, DS-023, DS-026, DS-046
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_added_client_proves_who_it_is_and_where_its_queue_is() -> Result<(), Fault> {
    let mut trio = Trio::new(26).await?;
    let dora = trio.stage.person(1, "dora").await?;
    let emil = trio.stage.person(1, "emil").await?;
    let (a, b) = (trio.stage.domain(0), trio.stage.domain(1));
    let config = dora.queue_for(&a)?;
    let mut rng = trio.stage.rng.clone();

    let self_made = impostor(&b, "dora", &mut rng)?;
    let other_key = Device { seed: rng.random(), ..dora.device.clone() };
    let emils_phone_by_dora = {
        let seed = rng.random();
        let key = federation_tests::people::key_of_seed(&seed)?;
        let certificate = forge_client_certificate(&dora.user_key, &dora.user_certificate, &emil.device.uri, &key)?;
        Device { uri: emil.device.uri.clone(), seed, key, chain: vec![certificate, dora.user_certificate.clone()] }
    };
    let under_emil = Device { chain: vec![dora.device.chain[0].clone(), emil.user_certificate.clone()], ..dora.device.clone() };
    let reversed = Device { chain: dora.device.chain.iter().rev().cloned().collect(), ..dora.device.clone() };
    let alone = Device { chain: dora.device.chain[..1].to_vec(), ..dora.device.clone() };
    let garbage = Device { chain: vec![vec![0x30; 60], vec![1, 2, 3]], ..dora.device.clone() };
    let large = Device { chain: vec![vec![0x30; 9_000], dora.user_certificate.clone()], ..dora.device.clone() };
    let none = Device { chain: vec![], ..dora.device.clone() };
    for (what, device) in [
        ("a root of its own", self_made),
        ("a chain for another key", other_key),
        ("a client of emil that dora issued", emils_phone_by_dora),
        ("dora's client under emil's certificate", under_emil),
        ("the chain reversed", reversed),
        ("no user certificate", alone),
        ("garbage", garbage),
        ("a certificate that is too large", large),
        ("no certificate", none),
    ] {
        let package = key_package(device.identity(), Some(&config), &mut rng);
        let request = trio.adds(vec![package]);
        trio.refuses(what, &request, ErrorCode::InvalidCredential).await?;
        // Not even beside one who is good.
        let both =
            vec![emil.key_package(&mut rng)?, key_package(impostor(&b, "finn", &mut rng)?.identity(), Some(&config), &mut rng)];
        let request = trio.adds(both);
        trio.refuses(what, &request, ErrorCode::InvalidCredential).await?;
    }
    let nowhere: Domain = "nowhere.test".parse().expect("a domain");
    let package = key_package(impostor(&nowhere, "dora", &mut rng)?.identity(), Some(&config), &mut rng);
    let request = trio.adds(vec![package]);
    trio.refuses("a domain that is none", &request, ErrorCode::UnreachableDomain).await?;

    let package = key_package(dora.device.identity(), None, &mut rng);
    let request = trio.adds(vec![package]);
    trio.refuses("no queue config", &request, ErrorCode::InvalidQueueConfig).await?;
    for (what, config) in [
        ("the hub's domain", trio.alice.queue_for(&a)?),
        ("no domain", mimi_node::wire::ds::ClientQueueConfig { qs_domain: b"B.test".as_slice().into(), ..config.clone() }),
        (
            "no information",
            mimi_node::wire::ds::ClientQueueConfig { client_queue_information: Opaque::default(), ..config.clone() },
        ),
        ("too much", mimi_node::wire::ds::ClientQueueConfig { client_queue_information: vec![0; 513].into(), ..config.clone() }),
    ] {
        let package = key_package(dora.device.identity(), Some(&config), &mut rng);
        let request = trio.adds(vec![package]);
        trio.refuses(what, &request, ErrorCode::InvalidQueueConfig).await?;
    }
    let extension = Extension { kind: 0xF0C0, data: vec![9; 3] };
    let now_s = UnixMillis::now().seconds();
    let package = KeyPackage::new(dora.device.identity(), Capabilities::default(), &[extension], now_s, &mut rng);
    let request = trio.adds(vec![package]);
    trio.refuses("a queue config that is none", &request, ErrorCode::InvalidKeyPackage).await?;
    let capabilities = Capabilities { proposals: vec![3], ..Capabilities::default() };
    let extension = Extension { kind: 0xF0C0, data: encode(&config) };
    let package = KeyPackage::new(dora.device.identity(), capabilities, &[extension], now_s, &mut rng);
    let request = trio.adds(vec![package]);
    trio.refuses("capabilities that list default types", &request, ErrorCode::InvalidKeyPackage).await?;

    // The control: dora herself.
    let dora_is_good = trio.room.add((&trio.alice, ALICE), &[&dora], &mut rng).await?;
    assert_eq!(dora_is_good, [3]);
    trio.goes_on().await
}

// Shows: add_users adds users who are not there yet, each client once, not too many at once. Failure: another code than the one
// for the reason, or any change.
// covers DS-024, DS-043, DS-047, DS-048, DS-051
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn add_users_adds_users_who_are_not_there() -> Result<(), Fault> {
    let mut trio = Trio::new(27).await?;
    let dora = trio.stage.person(1, "dora").await?;
    let mut rng = trio.stage.rng.clone();
    let again = trio.bob.key_package(&mut rng)?;
    let request = trio.adds(vec![again]);
    trio.refuses("bob again, with the same key", &request, ErrorCode::InvalidCommit).await?;
    let config = trio.bob.queue_for(&trio.stage.domain(0))?;
    let renewed = trio.bob.device("phone", rng.random())?;
    let request = trio.adds(vec![key_package(renewed.identity(), Some(&config), &mut rng)]);
    trio.refuses("bob's phone again, with another key", &request, ErrorCode::InvalidCommit).await?;
    let laptop = trio.bob.device("laptop", rng.random())?;
    let request = trio.adds(vec![key_package(laptop.identity(), Some(&config), &mut rng)]);
    trio.refuses("another client of bob", &request, ErrorCode::InvalidCommit).await?;
    let laptop = trio.alice.device("laptop", rng.random())?;
    let config = trio.alice.queue_for(&trio.stage.domain(0))?;
    let request = trio.adds(vec![key_package(laptop.identity(), Some(&config), &mut rng)]);
    trio.refuses("another client of alice", &request, ErrorCode::InvalidCommit).await?;

    let config = dora.queue_for(&trio.stage.domain(0))?;
    let (one, other) = (dora.device("phone", rng.random())?, dora.device("phone", rng.random())?);
    let both = [one, other].map(|device| key_package(device.identity(), Some(&config), &mut rng));
    let request = trio.adds(both.to_vec());
    trio.refuses("one client twice", &request, ErrorCode::InvalidCommit).await?;
    let (one, other) = (dora.key_package(&mut rng)?, dora.key_package(&mut rng)?);
    let request = trio.adds(vec![one, other]);
    trio.refuses("one key twice", &request, ErrorCode::InvalidCommit).await?;
    let change = Change { add: vec![dora.key_package(&mut rng)?], remove: vec![BOB], ..Change::default() };
    let forged = trio.room.try_commit(ALICE, change).expect("alice is a member");
    for body in [trio.room.add_body(&forged), trio.room.remove_body(&forged)] {
        let request = trio.room.request(ALICE, &trio.alice.device.key, body);
        trio.refuses("an Add and a Remove", &request, ErrorCode::InvalidCommit).await?;
    }

    // Nobody is who it says, which is looked at only when there are not too many.
    let mut many = |count: usize| -> Vec<KeyPackage> {
        let identity = |rng: &mut rand_chacha::ChaCha20Rng| Identity::new(&rng.random(), &[b"x".to_vec(), b"y".to_vec()]);
        (0..count).map(|_| key_package(identity(&mut rng), Some(&config), &mut rng)).collect()
    };
    let request = trio.adds(many(Limits::default().commit_proposals_max));
    trio.refuses("as many as may be", &request, ErrorCode::InvalidCredential).await?;
    let request = trio.adds(many(Limits::default().commit_proposals_max + 1));
    trio.refuses("one more", &request, ErrorCode::InvalidCommit).await?;

    // A user comes with all its clients at once.
    let devices = [dora.device("phone", rng.random())?, dora.device("laptop", rng.random())?];
    let packages = devices.map(|device| key_package(device.identity(), Some(&config), &mut rng));
    let request = trio.adds(packages.to_vec());
    assert!(matches!(trio.alice.ask(&request).await?, Ok(Reply::CommitAccepted(_))));
    Ok(())
}

// Shows: the Welcomes are for exactly those who are added (R6). Failure: another code than invalid_welcome, or any change.
// covers DS-052
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn welcomes_are_for_those_who_are_added() -> Result<(), Fault> {
    let mut trio = Trio::new(28).await?;
    let dora = trio.stage.person(1, "dora").await?;
    let emil = trio.stage.person(0, "emil").await?;
    let mut rng = trio.stage.rng.clone();
    let (for_dora, for_emil) = (dora.key_package(&mut rng)?, emil.key_package(&mut rng)?);
    let adds = |packages: Vec<KeyPackage>| {
        let change = Change { add: packages, ..Change::default() };
        trio.room.try_commit(ALICE, change).expect("alice is a member")
    };
    let dora_alone = adds(vec![for_dora.clone()]);
    let emil_alone = adds(vec![for_emil.clone()]);
    let both = adds(vec![for_dora, for_emil]);
    let with = |welcomes: &[&[u8]]| {
        let DsRequest::AddUsers(mut body) = trio.room.add_body(&dora_alone) else { panic!("not an add") };
        body.welcomes = welcomes.iter().map(|welcome| Opaque::from(*welcome)).collect();
        trio.room.request(ALICE, &trio.alice.device.key, DsRequest::AddUsers(body))
    };
    let (dora_welcome, emil_welcome) = (dora_alone.welcome.as_slice(), emil_alone.welcome.as_slice());
    let cases = [
        ("none", with(&[])),
        ("for someone else", with(&[emil_welcome])),
        ("for someone else too", with(&[dora_welcome, emil_welcome])),
        ("for two in one", with(&[&both.welcome])),
        ("twice", with(&[dora_welcome, dora_welcome])),
        ("a commit", with(&[&dora_alone.commit])),
        ("garbage", with(&[&[0xff; 50]])),
        ("empty", with(&[&[]])),
        ("one octet less", with(&[&dora_welcome[..dora_welcome.len() - 1]])),
        ("for nobody too", with(&[dora_welcome, &empty_welcome()])),
    ];
    for (what, request) in &cases {
        trio.refuses(what, request, ErrorCode::InvalidWelcome).await?;
    }
    let control = trio.room.request(ALICE, &trio.alice.device.key, trio.room.add_body(&both));
    accepted(trio.alice.ask(&control).await?, &both)?;
    for person in [&dora, &emil] {
        trio.stage.contents().await?;
        let entries = person.entries().await?;
        assert_eq!(entries.len(), 1, "{}: the Welcome and not the commit", person.user);
    }
    Ok(())
}

/// A Welcome with no recipients.
fn empty_welcome() -> Vec<u8> {
    [&[0, 1, 0, 3, 0, 1, 0][..], &encode(&Opaque::from(vec![7; 40]))].concat()
}

// Shows: remove_users removes all of a user, and never the committer's own. Failure: another code than invalid_commit, or any
// change. The removed one's commit is refused as not a member's.
// covers DS-010, DS-049
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn remove_users_removes_whole_users() -> Result<(), Fault> {
    let mut trio = Trio::new(29).await?;
    let dora = trio.stage.person(1, "dora").await?;
    let mut rng = trio.stage.rng.clone();
    let config = dora.queue_config(QueueBinding::Hub(trio.stage.domain(0).as_bytes().into()))?;
    let devices = [dora.device("phone", dora.device.seed)?, dora.device("laptop", rng.random())?];
    let packages = devices.each_ref().map(|device| key_package(device.identity(), Some(&config), &mut rng));
    let forged = trio.room.group.add(ALICE, packages.to_vec()).expect("alice is a member");
    let request = trio.room.request(ALICE, &trio.alice.device.key, trio.room.add_body(&forged));
    accepted(trio.alice.ask(&request).await?, &forged)?;
    let (phone, laptop) = (3, 4);

    for (what, by, key, leaves) in [
        ("one of dora's two", ALICE, trio.alice.device.key.clone(), vec![phone]),
        ("the other, and bob", ALICE, trio.alice.device.key.clone(), vec![laptop, BOB]),
        ("her own user's other", phone, devices[0].key.clone(), vec![laptop]),
        ("her own user's other, and bob", phone, devices[0].key.clone(), vec![laptop, BOB]),
    ] {
        let change = Change { remove: leaves, ..Change::default() };
        let forged = trio.room.try_commit(by, change).expect("members");
        let request = trio.room.request(by, &key, trio.room.remove_body(&forged));
        let sender: &Person = if by == ALICE { &trio.alice } else { &dora };
        trio.stage.refuses(what, sender, &request, ErrorCode::InvalidCommit).await?;
    }
    trio.room.remove((&trio.alice, ALICE), &[phone, laptop, BOB]).await?;
    for (person, leaf) in [(&dora, phone), (&trio.bob, BOB)] {
        let forged = trio.room.try_commit(ALICE, Change::default()).expect("alice is a member");
        let request = trio.room.request(leaf, &person.device.key, trio.room.update_body(&forged));
        trio.stage.refuses("by one who was removed", person, &request, ErrorCode::NotAuthorized).await?;
    }
    // Who is added next lands where bob was, and bob is not that one.
    let emil = trio.stage.person(0, "emil").await?;
    assert_eq!(trio.room.add((&trio.alice, ALICE), &[&emil], &mut rng).await?, [BOB]);
    let message = trio.room.group.private_message(1);
    let request = trio.room.request(BOB, &trio.bob.device.key, trio.room.message_body(message));
    trio.stage.refuses("in the place of one who was removed", &trio.bob, &request, ErrorCode::BadSignature).await?;
    trio.goes_on().await
}
