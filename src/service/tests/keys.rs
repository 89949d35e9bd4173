//! KeyPackages: what is neither published nor handed out.

use crate::base::UnixMillis;
use crate::service::testing::{TestNode, Via};
use crate::synth::{Capabilities, Extension};
use crate::tests::forged::Device;
use crate::wire::accounts::{AccountsRequest, BlockedName};
use crate::wire::keys::{ClaimKeyPackages, KeysRequest, PublishKeyPackages};
use crate::wire::{ErrorCode, Opaque};

const EXTENSION_LAST_RESORT: u16 = 10;

fn publish(packages: &[Vec<u8>], last_resort: Option<Vec<u8>>) -> KeysRequest {
    let key_packages = packages.iter().map(|message| Opaque::from(message.as_slice())).collect();
    KeysRequest::Publish(PublishKeyPackages { key_packages, last_resort: last_resort.map(Opaque::from) })
}

// covers QS-010, QS-011, QS-012, QS-013, QS-014, QS-015, QS-016, QS-017, QS-018, QS-030
#[tokio::test]
async fn a_client_publishes_its_own_key_packages() {
    let limits = crate::base::limits::Limits { key_packages_per_client_max: 2, ..Default::default() };
    let node = TestNode::with_limits(limits).await;
    let (alice, carol) = (node.device("alice@a.test").await, node.device("carol@a.test").await);
    let bob = node.device("bob@b.test").await;
    let config = node.invite_config(&alice, false).await;
    let often = node.invite_config(&alice, true).await;
    let (bound, unsealed) = (node.queue_config(&alice).await, alice.opaque_queue());
    let of_carol = node.invite_config(&carol, false).await;
    let elsewhere = bob.opaque_queue();
    let make = |config, extensions: &[Extension], now| {
        let extensions_known = vec![0xF0C0, EXTENSION_LAST_RESORT];
        let capabilities = Capabilities { extensions: extensions_known, ..Capabilities::default() };
        alice.key_package_of(config, capabilities, now, extensions).message()
    };
    let now = UnixMillis::now();
    let good = || make(Some(&config), &[], now);
    let last_resort = make(Some(&often), &[Extension { kind: EXTENSION_LAST_RESORT, data: Vec::new() }], now);
    // They live 80 days; this one has half an hour left.
    let nearly = now.minus(std::time::Duration::from_secs(80 * 86_400 - 1_800));
    let mut spoilt = good();
    *spoilt.last_mut().expect("octets") ^= 1;
    let of_bob = bob.key_package(Some(&bob.opaque_queue())).message();
    let refuses = async |rule: &str, body: KeysRequest, code| {
        node.refuses(rule, Via::Home(&alice), &alice.keys_request(alice.domain(), body), code).await;
    };
    refuses("QS-010", publish(&[good(), good(), good()], None), ErrorCode::TooLarge).await;
    refuses("QS-011", publish(&[spoilt], None), ErrorCode::InvalidKeyPackage).await;
    refuses("QS-012", publish(&[of_bob], None), ErrorCode::InvalidCredential).await;
    let of_laptop = alice.sibling("laptop").key_package(Some(&config)).message();
    refuses("QS-012", publish(&[of_laptop], None), ErrorCode::InvalidCredential).await;
    refuses("QS-013", publish(std::slice::from_ref(&last_resort), None), ErrorCode::InvalidKeyPackage).await;
    refuses("QS-013", publish(&[], Some(good())), ErrorCode::InvalidKeyPackage).await;
    refuses("QS-014", publish(&[make(Some(&config), &[], nearly)], None), ErrorCode::InvalidKeyPackage).await;
    refuses("QS-015", publish(&[make(None, &[], now)], None), ErrorCode::InvalidQueueConfig).await;
    refuses("QS-015", publish(&[make(Some(&elsewhere), &[], now)], None), ErrorCode::InvalidQueueConfig).await;
    for unfit in [&often, &bound, &unsealed] {
        refuses("QS-017", publish(&[make(Some(unfit), &[], now)], None), ErrorCode::InvalidQueueConfig).await;
    }
    refuses("QS-018", publish(&[make(Some(&of_carol), &[], now)], None), ErrorCode::InvalidQueueConfig).await;
    let first = good();
    let request = alice.keys_request(alice.domain(), publish(std::slice::from_ref(&first), Some(last_resort)));
    node.accepts(Via::Home(&alice), &request).await;
    refuses("QS-016", publish(&[first], None), ErrorCode::InvalidKeyPackage).await;
    refuses("QS-010", publish(&[good(), good()], None), ErrorCode::TooLarge).await;

    let by_carol = alice.keys_request(alice.domain(), publish(&[good()], None)).content.sign(&carol.key);
    node.refuses("QS-030", Via::Home(&alice), &by_carol, ErrorCode::BadSignature).await;
    let elsewhere = bob.keys_request(alice.domain(), publish(&[good()], None));
    node.refuses("at another node", Via::Home(&bob), &elsewhere, ErrorCode::NotAuthorized).await;
}

// covers QS-032, QS-033, QS-034, QS-035, QS-036, QS-037, QS-039
#[tokio::test]
async fn a_key_package_is_claimed_by_somebody_known() {
    let limits = crate::base::limits::Limits { claims_per_hour_max: 3, ..Default::default() };
    let node = TestNode::with_limits(limits).await;
    let (alice, bob) = (node.device("alice@a.test").await, node.device("bob@b.test").await);
    let package = alice.key_package(Some(&node.invite_config(&alice, false).await)).message();
    node.accepts(Via::Home(&alice), &alice.keys_request(alice.domain(), publish(&[package], None))).await;
    let claim = |by: &Device, user: &[u8], ciphersuite| {
        by.keys_request(alice.domain(), KeysRequest::Claim(ClaimKeyPackages { user: user.into(), ciphersuite }))
    };
    let alices = alice.uri.user().to_bytes();
    node.refuses("QS-032", Via::Peer("b.test"), &claim(&alice, &alices, 1), ErrorCode::WrongOrigin).await;
    let chain = vec![bob.chain[0].clone(), alice.user_certificate.clone()];
    let swapped = Device { chain, ..bob.clone() };
    node.refuses("QS-039", Via::Peer("b.test"), &claim(&swapped, &alices, 1), ErrorCode::InvalidCredential).await;
    node.refuses("QS-033", Via::Home(&bob), &claim(&bob, &alices, 2), ErrorCode::Unsupported).await;
    node.refuses("QS-034", Via::Home(&bob), &claim(&bob, b"mimi://a.test/u/zoe", 1), ErrorCode::UnknownUser).await;
    node.refuses("QS-036", Via::Home(&bob), &claim(&bob, b"mimi://b.test/u/zoe", 1), ErrorCode::UnknownUser).await;

    // Blocked, bob gets nothing, however much there is; and is not blocked any more.
    node.enrol(&alice).await;
    let ben = node.device("ben@b.test").await;
    let block = |name: &str| AccountsRequest::Block(BlockedName { name: name.as_bytes().into() });
    let unblock = |name: &str| AccountsRequest::Unblock(BlockedName { name: name.as_bytes().into() });
    node.accepts(Via::Home(&alice), &alice.accounts_request(block("mimi://b.test/u/ben"))).await;
    node.refuses("QS-037", Via::Home(&ben), &claim(&ben, &alices, 1), ErrorCode::UnknownUser).await;
    node.accepts(Via::Home(&alice), &alice.accounts_request(unblock("mimi://b.test/u/ben"))).await;
    node.accepts(Via::Home(&alice), &alice.accounts_request(block("b.test"))).await;
    node.refuses("QS-037", Via::Home(&ben), &claim(&ben, &alices, 1), ErrorCode::UnknownUser).await;
    node.accepts(Via::Home(&alice), &alice.accounts_request(unblock("b.test"))).await;

    let request = claim(&bob, &alices, 1);
    let first = node.accepts(Via::Home(&bob), &request).await;
    node.refuses("QS-034", Via::Home(&bob), &claim(&bob, &alices, 1), ErrorCode::UnknownUser).await;
    let limited = node.refuses("QS-035", Via::Home(&bob), &claim(&bob, &alices, 1), ErrorCode::RateLimited).await;
    assert!(limited.as_rate_limited().is_some_and(|detail| detail.retry_after_ms > 0), "it says when");
    assert_eq!(node.accepts(Via::Home(&bob), &request).await, first, "a repeat does not count");
}
