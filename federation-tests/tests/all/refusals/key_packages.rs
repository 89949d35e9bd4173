//! KeyPackages: which may be published, and who may claim them.

use federation_tests::people::{Person, key_package};
use federation_tests::stage::Stage;
use federation_tests::synth::{Capabilities, Extension, KeyPackage};
use mimi_node::base::ids::InviteId;
use mimi_node::base::limits::Limits;
use mimi_node::base::{Fault, UnixMillis};
use mimi_node::wire::keys::{ClaimKeyPackages, KeysRequest, PublishKeyPackages};
use mimi_node::wire::qs::{Invite, QueueBinding};
use mimi_node::wire::{ClientRequest, ErrorCode, Opaque, Reply, encode};

const EXTENSION_LAST_RESORT: u16 = 10;

fn publish(packages: &[Vec<u8>], last_resort: Option<Vec<u8>>) -> KeysRequest {
    let key_packages = packages.iter().map(|message| Opaque::from(message.as_slice())).collect();
    KeysRequest::Publish(PublishKeyPackages { key_packages, last_resort: last_resort.map(Opaque::from) })
}

fn claim(of: &Person) -> KeysRequest {
    KeysRequest::Claim(ClaimKeyPackages { user: of.user.to_bytes().into(), ciphersuite: 1 })
}

// Shows: a client publishes its own valid KeyPackages, each once and not too many, and a batch with a bad one is refused whole.
// Failure: another code, or any change.
// covers QS-010, QS-011, QS-012, QS-013, QS-014, QS-015, QS-016, QS-017, QS-018, QS-030, QS-031
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_publishes_its_own_key_packages() -> Result<(), Fault> {
    let mut stage = Stage::open(2, 61).await?;
    let alice = stage.person(0, "alice").await?;
    let carol = stage.person(0, "carol").await?;
    let bob = stage.person(1, "bob").await?;
    let (a, b) = (stage.domain(0), stage.domain(1));
    let mut rng = stage.rng.clone();
    let invite = |last_resort: u8| {
        let expires_at_ms = UnixMillis::now().plus(std::time::Duration::from_secs(80 * 86_400)).0;
        QueueBinding::Invite(Invite { invite_id: InviteId::random(), last_resort, expires_at_ms })
    };
    let config = alice.queue_config(invite(0))?;
    let often = Extension { kind: 0xF0C0, data: encode(&alice.queue_config(invite(1))?) };
    let for_hub = Extension { kind: 0xF0C0, data: encode(&alice.queue_for(&b)?) };
    let of_carol = Extension { kind: 0xF0C0, data: encode(&carol.queue_config(invite(0))?) };
    let with_queue = Extension { kind: 0xF0C0, data: encode(&config) };
    let last_resort = Extension { kind: EXTENSION_LAST_RESORT, data: vec![] };
    let capable = Capabilities { extensions: vec![0xF0C0, EXTENSION_LAST_RESORT], ..Capabilities::default() };
    let now_s = UnixMillis::now().seconds();
    let mut make = |capabilities: &Capabilities, extensions: &[Extension], now_s: u64| {
        KeyPackage::new(alice.device.identity(), capabilities.clone(), extensions, now_s, &mut rng).message()
    };
    let good = make(&capable, std::slice::from_ref(&with_queue), now_s);
    let another = make(&capable, std::slice::from_ref(&with_queue), now_s);
    let of_last_resort = make(&capable, &[often.clone(), last_resort], now_s);
    let good_often = make(&capable, &[often], now_s);
    let for_hub = make(&capable, &[for_hub], now_s);
    let to_carol = make(&capable, &[of_carol], now_s);
    let without_queue = make(&capable, &[], now_s);
    let expired = make(&capable, std::slice::from_ref(&with_queue), now_s - 100 * 86_400);
    // KeyPackages of this test live 80 days; this one has half an hour left.
    let nearly = make(&capable, std::slice::from_ref(&with_queue), now_s - 80 * 86_400 + 1_800);
    let default_types = Capabilities { extensions: vec![1], ..capable.clone() };
    let listing = make(&default_types, &[with_queue], now_s);
    let mut spoilt = good.clone();
    *spoilt.last_mut().expect("not empty") ^= 1;
    let of_carol = carol.key_package(&mut stage.rng)?.message();
    let of_bob = bob.key_package(&mut stage.rng)?.message();
    let laptop = alice.device("laptop", [9; 32])?;
    let of_laptop = key_package(laptop.identity(), Some(&config), &mut stage.rng).message();
    let elsewhere = key_package(alice.device.identity(), Some(&bob.queue_for(&a)?), &mut stage.rng).message();
    let cases = [
        ("spoilt", publish(&[spoilt], None), ErrorCode::InvalidKeyPackage),
        ("empty", publish(&[vec![]], None), ErrorCode::InvalidKeyPackage),
        ("expired", publish(&[expired], None), ErrorCode::InvalidKeyPackage),
        ("nearly expired", publish(&[nearly], None), ErrorCode::InvalidKeyPackage),
        ("listing default types", publish(&[listing], None), ErrorCode::InvalidKeyPackage),
        ("of last resort, unmarked", publish(&[], Some(good.clone())), ErrorCode::InvalidKeyPackage),
        ("marked, not of last resort", publish(std::slice::from_ref(&of_last_resort), None), ErrorCode::InvalidKeyPackage),
        ("one twice", publish(&[good.clone(), good.clone()], None), ErrorCode::InvalidKeyPackage),
        ("carol's", publish(&[of_carol], None), ErrorCode::InvalidCredential),
        ("bob's", publish(&[of_bob], None), ErrorCode::InvalidCredential),
        ("another device's", publish(&[of_laptop], None), ErrorCode::InvalidCredential),
        ("without a queue", publish(&[without_queue], None), ErrorCode::InvalidQueueConfig),
        ("with a queue elsewhere", publish(std::slice::from_ref(&elsewhere), None), ErrorCode::InvalidQueueConfig),
        ("with an invite that is good for many", publish(&[good_often], None), ErrorCode::InvalidQueueConfig),
        ("with what is bound to a hub", publish(&[for_hub], None), ErrorCode::InvalidQueueConfig),
        ("with carol's queue", publish(&[to_carol], None), ErrorCode::InvalidQueueConfig),
        ("a good one beside a bad one", publish(&[good.clone(), elsewhere], None), ErrorCode::InvalidQueueConfig),
    ];
    for (what, request, code) in cases {
        stage.refuses(what, &alice, &alice.keys_request(&a, request), code).await?;
    }
    let many: Vec<Vec<u8>> = vec![vec![0]; Limits::default().key_packages_per_client_max + 1];
    stage.refuses("too many", &alice, &alice.keys_request(&a, publish(&many, None)), ErrorCode::TooLarge).await?;
    let by_carol = alice.keys_request(&a, publish(std::slice::from_ref(&good), None)).content.sign(&carol.device.key);
    stage.refuses("signed by another", &alice, &by_carol, ErrorCode::BadSignature).await?;
    let elsewhere = alice.keys_request(&b, publish(std::slice::from_ref(&good), None));
    stage.refuses("at another node", &alice, &elsewhere, ErrorCode::NotAuthorized).await?;
    let chain_of_bob = bob.keys_request(&a, publish(std::slice::from_ref(&good), None));
    stage.refuses("with bob's chain at alice's node", &alice, &chain_of_bob, ErrorCode::WrongOrigin).await?;

    let both = publish(std::slice::from_ref(&good), Some(of_last_resort));
    assert_eq!(alice.ask(&alice.keys_request(&a, both)).await?, Ok(Reply::Done));
    let again = alice.keys_request(&a, publish(&[another.clone(), good], None));
    stage.refuses("published before", &alice, &again, ErrorCode::InvalidKeyPackage).await?;
    let rest: Vec<Vec<u8>> = (0..Limits::default().key_packages_per_client_max)
        .map(|_| key_package(alice.device.identity(), Some(&config), &mut stage.rng).message())
        .collect();
    let request = alice.keys_request(&a, publish(&rest, None));
    stage.refuses("too many with those before", &alice, &request, ErrorCode::TooLarge).await?;
    Ok(())
}

// Shows: whoever proves to be a client of its domain may claim, each KeyPackage goes out once, and nobody else gets any. Failure:
// another code, or any change by a refusal.
// covers QS-030, QS-032, QS-033, QS-034
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_package_is_claimed_once_by_somebody_known() -> Result<(), Fault> {
    let mut stage = Stage::open(2, 62).await?;
    let alice = stage.person(0, "alice").await?;
    let bob = stage.person(1, "bob").await?;
    let (a, b) = (stage.domain(0), stage.domain(1));
    let packages = [alice.key_package(&mut stage.rng)?.message(), alice.key_package(&mut stage.rng)?.message()];
    assert_eq!(alice.ask(&alice.keys_request(&a, publish(&packages, None))).await?, Ok(Reply::Done));

    let ask = |user: &[u8], ciphersuite: u16| {
        bob.keys_request(&a, KeysRequest::Claim(ClaimKeyPackages { user: user.into(), ciphersuite }))
    };
    let alices = alice.user.to_bytes();
    let unsigned: ClientRequest = ask(&alices, 1).content.sign(&bob.user_key);
    let claims_of_alice = alice.keys_request(&a, claim(&alice));
    for (what, request, code) in [
        ("another ciphersuite", ask(&alices, 2), ErrorCode::Unsupported),
        ("a user that is none", ask(b"mimi://a.test/u/zoe", 1), ErrorCode::UnknownUser),
        ("a user of another domain", ask(&bob.user.to_bytes(), 1), ErrorCode::UnknownUser),
        ("no user", ask(b"alice", 1), ErrorCode::UnknownUser),
        ("signed by the user key", unsigned, ErrorCode::BadSignature),
        ("alice's own claim, through b.test", claims_of_alice, ErrorCode::WrongOrigin),
    ] {
        stage.refuses(what, &bob, &request, code).await?;
    }
    let mut garbled = ask(&alices, 1);
    if let mimi_node::wire::Service::Keys(message) = &mut garbled.content.service {
        message.certificates = vec![Opaque::from(vec![0x30; 40])].into();
    }
    let garbled = garbled.content.sign(&bob.device.key);
    stage.refuses("garbage certificates", &bob, &garbled, ErrorCode::InvalidCredential).await?;
    let mut swapped = ask(&alices, 1);
    if let mimi_node::wire::Service::Keys(message) = &mut swapped.content.service {
        message.certificates =
            vec![Opaque::from(bob.device.chain[0].as_slice()), Opaque::from(alice.user_certificate.as_slice())].into();
    }
    let swapped = swapped.content.sign(&bob.device.key);
    stage.refuses("bob's client under alice's certificate", &bob, &swapped, ErrorCode::InvalidCredential).await?;
    stage.refuses("at b.test", &bob, &bob.keys_request(&b, claim(&bob)), ErrorCode::UnknownUser).await?;

    let mut claimed = Vec::new();
    for _ in 0..2 {
        match bob.ask(&ask(&alices, 1)).await? {
            Ok(Reply::KeyPackages(packages)) => claimed.extend(packages.into_iter().map(|one| one.key_package.into_vec())),
            other => return Err(Fault::new(format!("{other:?}"))),
        }
    }
    claimed.sort();
    let mut published = packages.to_vec();
    published.sort();
    assert_eq!(claimed, published);
    stage.refuses("all are gone", &bob, &ask(&alices, 1), ErrorCode::UnknownUser).await?;
    Ok(())
}
