//! AS roots of other domains and our own (X2): what is followed, what waits, and what a forged one gets.

use crate::base::{Domain, UnixMillis};
use crate::identity::AsRoot;
use crate::identity::rollover::fingerprint;
use crate::service::roots::{own, retire, roll};
use crate::service::testing::{TestNode, Via};
use crate::tests::forged::Device;
use crate::wire::accounts::AccountsRequest;
use crate::wire::info::{DomainInfo, RootStatement};
use crate::wire::keys::{ClaimKeyPackages, KeysRequest};
use crate::wire::{ErrorCode, Opaque, Reply, encode};

fn b_test() -> Domain {
    "b.test".parse().expect("a domain")
}

fn root() -> AsRoot {
    AsRoot::create(&b_test(), UnixMillis::now()).expect("a root")
}

fn statement(version: u64, roots: &[&AsRoot], signer: &AsRoot) -> RootStatement {
    let statement = RootStatement {
        domain: b"b.test".as_slice().into(),
        version,
        as_roots: roots.iter().map(|root| Opaque::from(root.certificate())).collect(),
        tls_ca_hashes: crate::wire::List::default(),
        signature: Opaque::default(),
    };
    statement.sign(signer.key())
}

/// What b.test publishes.
fn published(roots: &[&AsRoot], statements: Vec<RootStatement>) -> DomainInfo {
    DomainInfo {
        domain: b"b.test".as_slice().into(),
        as_roots: roots.iter().map(|root| Opaque::from(root.certificate())).collect(),
        qs_keys: crate::wire::List::default(),
        external_sender: Opaque::default(),
        server_time_ms: 0,
        root_statements: statements.into(),
    }
}

async fn moves(node: &TestNode, info: DomainInfo) -> bool {
    node.service.follow_roots(&b_test(), info).await.expect("no fault")
}

/// The answer to a claim by a new user of b.test under `root`.
async fn claims_as(node: &TestNode, root: &AsRoot) -> ErrorCode {
    let asker = Device::new(root, "bob");
    let body = ClaimKeyPackages { user: b"mimi://a.test/u/alice".as_slice().into(), ciphersuite: 1 };
    let request = asker.keys_request(node.service.domain(), KeysRequest::Claim(body));
    node.ask(Via::Peer("b.test"), &request).await.expect_err("there is no alice").code
}

#[tokio::test]
async fn a_forged_root_is_never_used() {
    let node = TestNode::new().await;
    let (first, forged) = (node.as_roots[&b_test()].clone(), root());
    for (what, info) in [
        ("alone", published(&[&forged], vec![])),
        ("beside", published(&[&first, &forged], vec![])),
        ("by itself", published(&[&first, &forged], vec![statement(1, &[&first, &forged], &forged)])),
        ("of another domain", {
            let signed = statement(1, &[&first, &forged], &first);
            let other = RootStatement { domain: b"c.test".as_slice().into(), ..signed };
            published(&[&first, &forged], vec![other])
        }),
        ("with other roots than were signed", {
            let signed = statement(1, &[&first], &first);
            let as_roots = [&first, &forged].iter().map(|root| Opaque::from(root.certificate())).collect();
            published(&[&first, &forged], vec![RootStatement { as_roots, ..signed }])
        }),
    ] {
        let pinned = async || node.service.storage().pinned_domains().await.expect("pins");
        let before = pinned().await;
        assert!(!moves(&node, info).await, "{what}");
        assert_eq!(pinned().await, before, "{what}");
        let pending = node.service.pending_roots().await.expect("a list");
        assert_eq!(pending.iter().map(|pending| pending.unknown.clone()).collect::<Vec<_>>(), [[forged.certificate()]], "{what}");
        assert_eq!(claims_as(&node, &forged).await, ErrorCode::InvalidCredential, "{what}");
        assert_eq!(claims_as(&node, &first).await, ErrorCode::UnknownUser, "{what}: the control");
    }
    // The domain has come to its senses: nothing waits any more.
    assert!(!moves(&node, published(&[&first], vec![])).await);
    assert!(node.service.pending_roots().await.expect("a list").is_empty());
}

#[tokio::test]
async fn a_signed_root_is_followed_and_a_retired_one_dropped() {
    let node = TestNode::new().await;
    let (first, second) = (node.as_roots[&b_test()].clone(), root());
    let rolled = statement(1, &[&first, &second], &first);
    assert_eq!(claims_as(&node, &second).await, ErrorCode::InvalidCredential);
    assert!(moves(&node, published(&[&first, &second], vec![rolled.clone()])).await);
    for known in [&first, &second] {
        assert_eq!(claims_as(&node, known).await, ErrorCode::UnknownUser);
    }
    // A further statement that nobody known signed changes nothing, and does not become what is known.
    let forged = statement(7, &[&first, &second], &root());
    assert!(!moves(&node, published(&[&first, &second], vec![rolled.clone(), forged])).await);
    let retired = statement(2, &[&second], &second);
    assert!(moves(&node, published(&[&second], vec![rolled.clone(), retired.clone()])).await);
    assert_eq!(claims_as(&node, &first).await, ErrorCode::InvalidCredential, "retired");
    assert_eq!(claims_as(&node, &second).await, ErrorCode::UnknownUser);
    assert!(!moves(&node, published(&[&first, &second], vec![rolled])).await, "no way back");
    assert_eq!(claims_as(&node, &first).await, ErrorCode::InvalidCredential);
    assert_eq!(node.service.storage().root_sweeps().await.expect("a list").len(), 1, "its leaves are looked for");
}

#[tokio::test]
async fn leaves_under_a_retired_root_are_removed_and_others_stay() {
    let node = TestNode::new().await;
    let (first, second) = (node.as_roots[&b_test()].clone(), root());
    let mut room = node.room(&["alice@a.test", "bob@b.test"]).await;
    let rolled = statement(1, &[&first, &second], &first);
    assert!(moves(&node, published(&[&first, &second], vec![rolled.clone()])).await);
    let carol = Device::new(&second, "carol");
    let carols = node.add(&mut room, &carol).await;
    node.service.sweep_roots().await.expect("nothing to do");
    let group = room.uri.clone();
    let removals = async || {
        let state = node.service.storage().group_state(&group).await.expect("a group").expect("is there");
        state.head.removals.iter().map(|removal| removal.leaf_index).collect::<Vec<_>>()
    };
    assert_eq!(removals().await, Vec::<u32>::new());
    let retired = statement(2, &[&second], &second);
    assert!(moves(&node, published(&[&second], vec![rolled, retired])).await);
    node.service.sweep_roots().await.expect("swept");
    assert_eq!(removals().await, [1], "bob, and not carol at {carols}");
}

#[tokio::test]
async fn our_own_roots_are_rolled_and_retired_while_the_node_runs() {
    let node = TestNode::new().await;
    let (storage, domain, now) = (node.service.storage(), node.service.domain().clone(), UnixMillis::now());
    let first = node.as_roots[&domain].clone();
    let stored = crate::storage::settings::InitialSettings {
        settings: vec![],
        as_root: (first.certificate().to_vec(), first.key().pkcs8().clone()),
        now,
    };
    storage.write(stored).await.expect("written");
    let alice = node.device("alice@a.test").await;
    node.enrol(&alice).await;
    let new = roll(storage, &domain, now).await.expect("rolled");
    node.service.notice_roots().await.expect("noticed");
    let issuer = node.service.own_roots().issuer().clone();
    assert_eq!(fingerprint(issuer.certificate()), new);
    let Reply::Enrolled(renewed) = node.accepts(Via::Home(&alice), &alice.accounts_request(AccountsRequest::Renew)).await else {
        panic!("a certificate");
    };
    let only_new = crate::identity::AsRoots::new(domain.clone(), vec![issuer.certificate().to_vec()]).expect("roots");
    let renewed = crate::identity::chain::validate_user_chain(&[renewed.certificate.to_vec()], &only_new, now).expect("valid");
    assert_eq!((renewed.user, renewed.public_key.as_slice()), (alice.uri.user().clone(), alice.user_key.public()));
    let old = fingerprint(first.certificate());
    assert!(own(storage, &domain).await.expect("a list")[0].users.is_empty(), "alice has renewed");
    retire(storage, &domain, old, false, now).await.expect("retired");
    node.service.notice_roots().await.expect("noticed");
    assert_eq!(node.service.own_roots().certificates(), [issuer.certificate()]);
    let hubs = alice.accounts_request(AccountsRequest::Hubs);
    node.refuses("the old certificate", Via::Home(&alice), &hubs, ErrorCode::InvalidCredential).await;
    let status = node.service.own_status().await.expect("a list");
    assert!(status.is_signed_by(issuer.key().public()) && !status.is_signed_by(first.key().public()));
    // Whoever knew the first root only can follow what is published.
    let info = node.service.own_info();
    assert_eq!(info.root_statements.len(), 2);
    assert!(info.root_statements[0].is_signed_by(first.key().public()));
    assert!(info.root_statements[1].is_signed_by(issuer.key().public()));
    assert!(!encode(&info).is_empty());
}
