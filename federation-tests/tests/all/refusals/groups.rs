//! create_group: what is not made a group.

use federation_tests::people::{Device, Room, create_request, external_senders, key_package};
use federation_tests::stage::Stage;
use federation_tests::synth::{Capabilities, Extension, KeyPackage, SynthGroup};
use mimi_node::base::{Fault, GroupUri, UnixMillis};
use mimi_node::wire::ds::{ClientQueueConfig, CreateGroup, DsMessage, DsRequest, DsSenderId};
use mimi_node::wire::{ClientRequest, Content, ErrorCode, Reply, Service};
use rand::Rng as _;

/// A create_group with one thing changed, signed anew by `key`.
fn changed(request: &ClientRequest, key: &Device, change: impl FnOnce(&mut DsMessage, &mut CreateGroup)) -> ClientRequest {
    let Service::Ds(message) = &request.content.service else { panic!("not a DS request") };
    let mut message = message.clone();
    let DsRequest::CreateGroup(body) = &message.request else { panic!("not a create_group") };
    let mut body = body.clone();
    change(&mut message, &mut body);
    message.request = DsRequest::CreateGroup(body);
    Content { service: Service::Ds(message), ..request.content.clone() }.sign(&key.key)
}

// Shows: a group begins with one leaf, that of the KeyPackage whose holder asks, under an unused name of this domain, with the DS
// among its external senders (S5, S6). Failure: another code than the one for the reason, or any change. The control: with nothing
// changed the same request is accepted.
// covers DS-012, DS-020, DS-022, DS-030, DS-031, DS-032, DS-033, DS-034, DS-035, DS-036, DS-046
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_begins_with_its_creator_alone() -> Result<(), Fault> {
    let mut stage = Stage::open(2, 41).await?;
    let alice = stage.person(0, "alice").await?;
    let carol = stage.person(0, "carol").await?;
    let bob = stage.person(1, "bob").await?;
    let mut rng = stage.rng.clone();
    let (a, b) = (stage.domain(0), stage.domain(1));
    let (room, good) = Room::forge(&alice, &mut rng)?;
    let (_, other) = Room::forge(&alice, &mut rng)?;
    let Service::Ds(DsMessage { request: DsRequest::CreateGroup(other), .. }) = &other.content.service else {
        return Err(Fault::new("not a create_group"));
    };
    let device = alice.device.clone();
    let of_b = GroupUri::new(&b, &rng.random());
    let mut cases: Vec<(&str, ClientRequest, ErrorCode)> = Vec::new();
    let names: [(&str, Vec<u8>); 5] = [
        ("a name of another domain", of_b.to_bytes()),
        ("an empty name", vec![]),
        ("a user's name", alice.user.to_bytes()),
        ("a name that is none", vec![0xff; 30]),
        ("a long name", format!("mimi://a.test/g/{}", "x".repeat(65)).into_bytes()),
    ];
    for (what, name) in names {
        cases.push((what, changed(&good, &device, |_, body| body.group_id = name.into()), ErrorCode::InvalidGroupId));
    }
    let renamed = changed(&good, &device, |_, body| body.group_id = other.group_id.clone());
    cases.push(("the GroupInfo of another group", renamed, ErrorCode::InvalidGroupInfo));
    let swapped = changed(&good, &device, |_, body| body.group_info = other.group_info.clone());
    cases.push(("another group's GroupInfo", swapped, ErrorCode::InvalidGroupInfo));
    let swapped = changed(&good, &device, |_, body| body.key_package = other.key_package.clone());
    cases.push(("another KeyPackage than was named", swapped, ErrorCode::NotAuthorized));
    let by_leaf = changed(&good, &device, |message, _| message.sender_id = DsSenderId::LeafIndex(0));
    cases.push(("in the name of a leaf", by_leaf, ErrorCode::NotAuthorized));
    cases.push(("signed by another", changed(&good, &carol.device, |_, _| {}), ErrorCode::BadSignature));
    for (what, octets) in [("nothing", vec![]), ("garbage", vec![0xff; 60]), ("a GroupInfo", other.group_info.to_vec())] {
        let request = changed(&good, &device, |_, body| body.key_package = octets.into());
        cases.push((what, request, ErrorCode::InvalidKeyPackage));
    }
    for (what, octets) in [("nothing", vec![]), ("garbage", vec![0xff; 60]), ("a KeyPackage", other.key_package.to_vec())] {
        let request = changed(&good, &device, |_, body| body.group_info = octets.into());
        cases.push((what, request, ErrorCode::InvalidGroupInfo));
    }
    let config = |domain: &[u8], length: usize| ClientQueueConfig {
        qs_domain: domain.into(),
        client_queue_information: vec![7; length].into(),
    };
    for (what, config) in [
        ("a queue elsewhere", config(b.as_bytes(), 100)),
        ("a queue nowhere", config(b"A.test", 100)),
        ("no queue", config(a.as_bytes(), 0)),
        ("too much of a queue", config(a.as_bytes(), 513)),
    ] {
        let request = changed(&good, &device, |_, body| body.client_queue_config = config);
        cases.push((what, request, ErrorCode::InvalidQueueConfig));
    }

    // Of what the GroupInfo is made.
    let package = alice.key_package(&mut rng)?;
    let senders = external_senders(&alice.info);
    let mut forge = |creator: &KeyPackage, extensions: &[Extension], change: &dyn Fn(&mut SynthGroup) -> Vec<u8>| {
        let uri = GroupUri::new(&a, &rng.random());
        let mut group = SynthGroup::create(&uri.to_bytes(), creator, extensions, rng.random());
        let group_info = change(&mut group);
        create_request(&alice, &uri, &package, group_info)
    };
    let whole = |group: &mut SynthGroup| group.group_info_with_tree(0).expect("leaf 0 is there");
    cases.push(("no external_senders", forge(&package, &[], &whole)?, ErrorCode::InvalidGroupInfo));
    let of_b = external_senders(&bob.info);
    cases.push(("another DS's external_senders", forge(&package, &[of_b], &whole)?, ErrorCode::InvalidGroupInfo));
    let others = carol.key_package(&mut stage.rng)?;
    cases.push(("another client's leaf", forge(&others, std::slice::from_ref(&senders), &whole)?, ErrorCode::InvalidGroupInfo));
    let new_key = alice.device("phone", stage.rng.random())?;
    let new_key = key_package(new_key.identity(), Some(&alice.queue_for(&a)?), &mut stage.rng);
    cases.push((
        "a leaf with another key",
        forge(&new_key, std::slice::from_ref(&senders), &whole)?,
        ErrorCode::InvalidGroupInfo,
    ));
    let two = |group: &mut SynthGroup| {
        group.add(0, vec![others.clone()]).expect("leaf 0 is there");
        group.group_info_with_tree(0).expect("leaf 0 is there")
    };
    cases.push(("two leaves, epoch 1", forge(&package, std::slice::from_ref(&senders), &two)?, ErrorCode::InvalidGroupInfo));
    let updated = |group: &mut SynthGroup| {
        group.update(0).expect("leaf 0 is there");
        group.group_info_with_tree(0).expect("leaf 0 is there")
    };
    cases.push(("epoch 1", forge(&package, std::slice::from_ref(&senders), &updated)?, ErrorCode::InvalidGroupInfo));
    let two_in_epoch_0 = |group: &mut SynthGroup| {
        let before = group.group_info_parts(0);
        group.add(0, vec![others.clone()]).expect("leaf 0 is there");
        let mut parts = before;
        // The context of epoch 0 with the tree of two.
        parts.context = group.context_without_history();
        parts.extensions.push(group.ratchet_tree_extension());
        parts.sign(group.identity(0).expect("leaf 0 is there"))
    };
    cases.push((
        "two leaves, epoch 0",
        forge(&package, std::slice::from_ref(&senders), &two_in_epoch_0)?,
        ErrorCode::InvalidGroupInfo,
    ));
    let without_tree = |group: &mut SynthGroup| {
        let parts = group.group_info_parts(0);
        parts.sign(group.identity(0).expect("leaf 0 is there"))
    };
    cases.push(("no tree", forge(&package, std::slice::from_ref(&senders), &without_tree)?, ErrorCode::InvalidGroupInfo));
    let without_external_pub = |group: &mut SynthGroup| {
        let mut parts = group.group_info_parts(0);
        parts.extensions = vec![group.ratchet_tree_extension()];
        parts.sign(group.identity(0).expect("leaf 0 is there"))
    };
    let request = forge(&package, std::slice::from_ref(&senders), &without_external_pub)?;
    cases.push(("no external_pub", request, ErrorCode::InvalidGroupInfo));
    let carols = carol.device.identity();
    let signed_by_other = |group: &mut SynthGroup| {
        let mut parts = group.group_info_parts(0);
        parts.extensions.push(group.ratchet_tree_extension());
        parts.sign(&carols)
    };
    let request = forge(&package, std::slice::from_ref(&senders), &signed_by_other)?;
    cases.push(("signed by another key", request, ErrorCode::InvalidGroupInfo));
    // The tree's leaf is the KeyPackage's in name and key, but lists default types, which other libraries refuse.
    let listing = Capabilities { extensions: vec![4, 5], ..Capabilities::default() };
    let now_s = UnixMillis::now().seconds();
    let listing = KeyPackage::new(alice.device.identity(), listing, &[], now_s, &mut stage.rng);
    let request = forge(&listing, std::slice::from_ref(&senders), &whole)?;
    cases.push(("a leaf that lists default types", request, ErrorCode::InvalidGroupInfo));

    // Of whom the KeyPackage is.
    let unproven = Device { chain: vec![vec![1, 2, 3], vec![4]], ..alice.device.clone() };
    for (what, device, code) in [
        ("garbage certificates", unproven, ErrorCode::InvalidCredential),
        ("bob at alice's node", bob.device.clone(), ErrorCode::WrongOrigin),
    ] {
        let package = key_package(device.identity(), None, &mut stage.rng);
        let uri = GroupUri::new(&a, &stage.rng.random());
        let mut group = SynthGroup::create(&uri.to_bytes(), &package, std::slice::from_ref(&senders), 1);
        let request = create_request(&alice, &uri, &package, whole(&mut group))?;
        cases.push((what, changed(&request, &device, |_, _| {}), code));
    }
    let long_ago = now_s - 200 * 86_400;
    let expired = KeyPackage::new(alice.device.identity(), Capabilities::default(), &[], long_ago, &mut stage.rng);
    let uri = GroupUri::new(&a, &stage.rng.random());
    let mut group = SynthGroup::create(&uri.to_bytes(), &expired, std::slice::from_ref(&senders), 1);
    cases.push(("expired", create_request(&alice, &uri, &expired, whole(&mut group))?, ErrorCode::InvalidKeyPackage));
    for (what, request, code) in &cases {
        stage.refuses(what, &alice, request, *code).await?;
    }

    assert_eq!(alice.ask(&good).await?, Ok(Reply::Done), "the control");
    let again = Content { request_id: mimi_node::base::ids::RequestId::random(), ..good.content.clone() }.sign(&device.key);
    stage.refuses("a name that is taken", &alice, &again, ErrorCode::InvalidGroupId).await?;
    let mut carols = SynthGroup::create(&room.uri.to_bytes(), &others, &[senders], 9);
    let carols = create_request(&carol, &room.uri, &others, whole(&mut carols))?;
    stage.refuses("a name that another took", &carol, &carols, ErrorCode::InvalidGroupId).await?;
    Ok(())
}

// Shows: of several who create one group at once, one does. Failure: two Done, or a refusal of another kind.
// covers DS-036
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_given_once() -> Result<(), Fault> {
    let mut stage = Stage::open(1, 42).await?;
    let alice = stage.person(0, "alice").await?;
    let uri = GroupUri::new(&stage.domain(0), &stage.rng.random());
    let mut requests = Vec::new();
    for seed in 0..8 {
        let package = alice.key_package(&mut stage.rng)?;
        let mut group = SynthGroup::create(&uri.to_bytes(), &package, &[external_senders(&alice.info)], seed);
        let group_info = group.group_info_with_tree(0).expect("leaf 0 is there");
        requests.push(create_request(&alice, &uri, &package, group_info)?);
    }
    let mut racing = tokio::task::JoinSet::new();
    for request in requests {
        let home = alice.home.clone();
        racing.spawn(async move { federation_tests::people::ask(&home, &request).await });
    }
    let mut done = 0;
    while let Some(answer) = racing.join_next().await {
        match answer.expect("a task ends well")? {
            Ok(Reply::Done) => done += 1,
            other => assert_eq!(other.expect_err("refused").code, ErrorCode::InvalidGroupId),
        }
    }
    assert_eq!(done, 1);
    let contents = stage.contents().await?;
    assert_eq!(
        (contents[0].rows("groups"), contents[0].rows("group_members"), contents[0].rows("answers")),
        (1, 1, 3),
        "enrol, queue, group"
    );
    Ok(())
}
