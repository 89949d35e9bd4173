//! What an operator says of peers while the node runs: on disk before it is in force, kept, and taken back.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::base::limits::{Limits, PeerLimitsOverride};
use crate::base::{Domain, UnixMillis};
use crate::federation::policy::{Access, Denial, Mode};
use crate::federation::{PeerOverride, PeerPolicies};
use crate::service::peer_policy::{PolicyError, stored_overrides};
use crate::service::testing::{TestNode, Via};
use crate::transport::CloseCode;
use crate::wire::error::{Sent, UnreachableReason};
use crate::wire::keys::{ClaimKeyPackages, KeysRequest};
use crate::wire::{ErrorCode, Rejection};

fn domain(name: &str) -> Domain {
    name.parse().expect("a domain")
}

/// What the node says to a client of its own that asks something of `destination`.
async fn asked(node: &TestNode, destination: &Domain) -> Rejection {
    let alice = node.device("alice@a.test").await;
    let user = format!("mimi://{destination}/u/nobody");
    let claim = KeysRequest::Claim(ClaimKeyPackages { user: user.as_bytes().into(), ciphersuite: 1 });
    node.ask(Via::Home(&alice), &alice.keys_request(destination, claim)).await.expect_err("nobody is there")
}

#[tokio::test]
async fn what_an_operator_says_is_kept_in_force_and_taken_back() {
    let (node, c) = (TestNode::new().await, domain("c.test"));
    let service = &node.service;
    let rows = async || node.tables().await.rows("peer_overrides").len();
    let reason = async || asked(&node, &c).await.as_unreachable().map(|detail| (detail.why, detail.sent));
    assert_eq!((service.peer_policies(), rows().await), (vec![], 0));

    service.deny_peer(&c, "spam").await.expect("denied");
    service.deny_peer(&c, "spam").await.expect("the same again");
    let policy = service.peer_policy(&c);
    assert_eq!((policy.denied, policy.reason.as_deref(), rows().await), (Some(Denial::Operator), Some("spam"), 1));
    assert_eq!(reason().await, Some((UnreachableReason::Denied, Sent::NotSent)));
    let turned_away = service.let_in(&c).expect_err("denied");
    assert_eq!(turned_away.0, CloseCode::Denied);
    assert!(!turned_away.1.contains("spam"), "an operator's words are not for the peer: {}", turned_away.1);
    service.let_in(&domain("d.test")).expect("nothing is said of this one");

    service.hold_peer(&c, "maintenance").await.expect("held");
    assert_eq!(reason().await, Some((UnreachableReason::Denied, Sent::NotSent)), "it is denied, too");
    service.allow_peer(&c).await.expect("allowed");
    assert_eq!(reason().await, Some((UnreachableReason::Held, Sent::NotSent)));
    service.let_in(&c).expect("who is held may still send to us");
    assert_eq!(service.peer_policies(), [(c.clone(), service.peer_policy(&c))]);
    let stored = stored_overrides(service.storage()).await.expect("readable");
    assert_eq!(stored, BTreeMap::from([(c.clone(), service.peers().policies().override_of(&c))]), "as at the next start");

    service.release_peer(&c).await.expect("released");
    service.release_peer(&c).await.expect("the same again");
    assert_eq!((service.peer_policies(), rows().await), (vec![], 0), "nothing is left of what was taken back");
    assert_ne!(reason().await.map(|(why, _)| why), Some(UnreachableReason::Held));
}

#[tokio::test]
async fn what_an_operator_says_goes_before_the_configuration() {
    let (node, b, c) = (TestNode::new().await, domain("b.test"), domain("c.test"));
    let service = &node.service;
    let file = PeerOverride { access: Some(Access::Allow), hold: Some(true), ..PeerOverride::default() };
    let limits = Limits::default().per_peer();
    service.peers().set_policies(PeerPolicies::new(Mode::AllowList, limits, BTreeMap::from([(b.clone(), file)])));
    assert_eq!(service.let_in(&c).expect_err("not listed").0, CloseCode::Denied);

    service.allow_peer(&c).await.expect("on the list now");
    service.let_in(&c).expect("allowed");
    service.release_peer(&b).await.expect("released");
    assert!(!service.peer_policy(&b).held);
    let said = PeerOverride {
        addresses: Some(vec!["10.0.0.1:7443".parse().expect("an address")]),
        limits: Some(PeerLimitsOverride { claims_per_hour_max: Some(1), ..Default::default() }),
        ..PeerOverride::default()
    };
    service.override_peer(&b, said).await.expect("said");
    let policy = service.peer_policy(&b);
    assert_eq!((policy.held, policy.addresses.len(), policy.limits.claims_per_hour_max), (true, 1, 1), "all was replaced");
    service.forget_override(&b).await.expect("forgotten");
    service.forget_override(&c).await.expect("forgotten");
    assert_eq!(service.let_in(&c).expect_err("not listed").0, CloseCode::Denied);
    assert_eq!(service.peer_policy(&b).limits, limits);
}

#[tokio::test]
async fn what_could_not_work_is_refused_and_changes_nothing() {
    let (node, c) = (TestNode::new().await, domain("c.test"));
    let before = node.tables().await;
    let own = node.service.hold_peer(&domain("a.test"), "").await.expect_err("no peer");
    assert!(matches!(own, PolicyError::OwnDomain(_)), "{own}");
    let none = PeerLimitsOverride { streams_max: Some(0), ..Default::default() };
    let said = PeerOverride { limits: Some(none), ..PeerOverride::default() };
    let invalid = node.service.override_peer(&c, said).await.expect_err("nothing would be allowed");
    assert_eq!(invalid.to_string(), "c.test cannot have a streams_max of 0, which forbids everything: deny it instead");
    node.expect_unchanged("an override", &before).await;
    assert_eq!(node.service.peer_policies(), []);
}

// covers QS-035
#[tokio::test]
async fn claims_of_a_domain_may_have_a_limit_of_their_own() {
    let node = TestNode::new().await;
    let (bob, b) = (node.device("bob@b.test").await, domain("b.test"));
    let limits = PeerLimitsOverride { claims_per_hour_max: Some(2), ..Default::default() };
    let said = PeerOverride { limits: Some(limits), ..PeerOverride::default() };
    node.service.override_peer(&b, said).await.expect("said");
    let claim = async || {
        let claim = KeysRequest::Claim(ClaimKeyPackages { user: b"mimi://a.test/u/nobody".as_slice().into(), ciphersuite: 1 });
        node.ask(Via::Home(&bob), &bob.keys_request(&domain("a.test"), claim)).await.expect_err("nobody").code
    };
    let unknown = ErrorCode::UnknownUser;
    assert_eq!([claim().await, claim().await, claim().await], [unknown, unknown, ErrorCode::RateLimited]);
    node.service.forget_override(&b).await.expect("forgotten");
    assert_eq!(claim().await, unknown, "the new limit holds at once");
}

#[tokio::test]
async fn a_peer_that_told_us_to_wait_is_not_asked_before() {
    let (node, c) = (TestNode::new().await, domain("c.test"));
    node.service.heed(&c, &ErrorCode::NotAuthorized.into());
    assert_eq!(asked(&node, &c).await.code, ErrorCode::UnreachableDomain);
    node.service.heed(&c, &Rejection::rate_limited(Duration::from_secs(30)));
    let told = asked(&node, &c).await.as_rate_limited().expect("told to wait, by us").retry_after_ms;
    assert!((1..=30_000).contains(&told), "{told}");
    assert_eq!(asked(&node, &domain("d.test")).await.code, ErrorCode::UnreachableDomain, "others are asked");
    assert_eq!(node.service.peer_rates().must_wait(&c, UnixMillis::now().plus(Duration::from_secs(31))), None);
}
