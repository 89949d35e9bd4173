//! Who may federate, and how much: nodes that deny, hold and limit each other, over real sockets.

use std::time::Duration;

use federation_tests::people::Person;
use federation_tests::raw::{Ended, Raw, peer_config};
use federation_tests::stage::Stage;
use federation_tests::world::World;
use mimi_node::base::limits::{Limits, PeerLimitsOverride};
use mimi_node::base::{Context as _, Domain, Fault};
use mimi_node::client::Event;
use mimi_node::federation::policy::{Access, Denial, Mode};
use mimi_node::federation::{GateState, PeerError, Why};
use mimi_node::identity::TlsCertificateOptions;
use mimi_node::node::Node;
use mimi_node::node::config::Peer;
use mimi_node::transport::CloseCode;
use mimi_node::wire::error::{Sent, UnreachableReason};
use mimi_node::wire::keys::{ClaimKeyPackages, KeysRequest};
use mimi_node::wire::peer::{PeerRequest, PeerResponse};
use mimi_node::wire::{ErrorCode, Rejection, encode};
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use tokio::time::Instant;

use crate::gathering::{Gathering, Listening};
use crate::process::{PATIENCE, PROGRAM};

fn domain(name: &str) -> Domain {
    name.parse().expect("a domain")
}

/// Waits until it is so.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let all = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// What is said to a user who claims a KeyPackage of nobody at a domain.
async fn claim(by: &Person, of: &str) -> Rejection {
    let user = format!("mimi://{of}/u/nobody");
    let claim = KeysRequest::Claim(ClaimKeyPackages { user: user.as_bytes().into(), ciphersuite: 1 });
    by.ask(&by.keys_request(&domain(of), claim)).await.expect("an answer").expect_err("there is nobody")
}

/// Asks another domain for what it publishes, whatever the back-off.
async fn ask(node: &Node, other: &Domain) -> Result<(), PeerError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        node.service().retry_peer(other);
        let asked = node.service().peers().request(other, &encode(&PeerRequest::DomainInfo), 100_000, deadline).await;
        match asked {
            // Somebody else's try has failed just now.
            Err(PeerError { why: Why::BackingOff { .. }, .. }) if Instant::now() < deadline => {}
            asked => return asked.map(drop),
        }
    }
}

/// Whether frames wait for a domain.
async fn waits_for(node: &Node, other: &Domain) -> bool {
    node.service().storage().domains_with_frames().await.expect("readable").contains(other)
}

/// The texts that a client has read, in order.
fn texts(listening: &Listening) -> Vec<String> {
    let text = |event| if let Event::Message { text, .. } = event { Some(text) } else { None };
    listening.events().into_iter().filter_map(text).collect()
}

// Shows: a node with an allow-list neither asks nor answers a domain that is not on it, and both sides' users learn that it is
// denied; the one on the list is served; the log says once that the other is turned away, however often it comes.
// Fails if: a request passes, either way; another reason is told; the log has a line for each attempt.
// Is no failure: that the denied side backs off in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_allow_list_refuses_who_is_not_on_it_in_both_directions() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), 3).await.expect("a world");
    let listed = Peer { access: Some(Access::Allow), ..Peer::default() };
    let allow_list = |config: &mut mimi_node::node::Config| {
        config.federation.mode = Mode::AllowList;
        config.peers.insert(domain("b.test"), listed);
    };
    world.change_config(0, allow_list).expect("written");
    let a = world.spawn(0, PROGRAM.as_ref(), None).await.expect("a node");
    let (b, c) = (world.start(1).await.expect("a node"), world.start(2).await.expect("a node"));
    let mut rng = ChaCha20Rng::seed_from_u64(21);
    let mut people = Vec::new();
    for (index, name) in ["alice", "bob", "carol"].into_iter().enumerate() {
        people.push(Person::enrol(&world, index, name, &mut rng).await.expect("a user"));
    }
    let [alice, bob, carol] = &people[..] else { unreachable!("three") };

    assert_eq!(claim(bob, "a.test").await.code, ErrorCode::UnknownUser, "b is on the list");
    assert_eq!(claim(alice, "b.test").await.code, ErrorCode::UnknownUser);
    assert_eq!(claim(carol, "b.test").await.code, ErrorCode::UnknownUser, "b has no list");
    let denied = |rejection: Rejection| rejection.as_unreachable().map(|detail| (detail.why, detail.sent));
    assert_eq!(denied(claim(alice, "c.test").await), Some((UnreachableReason::Denied, Sent::NotSent)));
    assert_eq!(denied(claim(carol, "a.test").await), Some((UnreachableReason::Denied, Sent::NotSent)));
    for _ in 0..5 {
        assert_eq!(ask(&c, &domain("a.test")).await.expect_err("denied").why, Why::Denied);
        claim(alice, "c.test").await;
    }
    let status = c.service().peers().status(&domain("a.test")).expect("known");
    let (why, detail) = status.gate.last_failure.expect("it failed");
    assert!(why == Why::Denied && detail.contains("a.test does not federate with c.test"), "{detail}");
    let log = std::fs::read_to_string(world.node_log(0)).expect("a log");
    let lines = |text: &str| log.lines().filter(|line| line.contains(text) && line.contains("c.test")).count();
    assert_eq!((lines("is turned away"), lines("peer state")), (1, 1), "{log}");
    a.kill().await.expect("ended");
    b.stop().await.expect("stopped");
    c.stop().await.expect("stopped");
}

// Shows: denying a domain while the node runs closes its connections in both directions at once, and nothing of its gets in;
// others are served as before; what is for it waits, over a restart of the node, which still denies it; once it is allowed, all
// of it arrives, in order.
// Fails if: a connection stays; a message is lost, reordered or delivered while the domain is denied; others are disturbed.
// Is no failure: how the denied node paces its tries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_domain_is_cut_off_and_gets_what_waited_once_it_is_allowed() -> Result<(), Fault> {
    let mut gathering = Gathering::start(3, &Limits::default()).await?;
    let (a, b) = (domain("a.test"), domain("b.test"));
    let (alice, bob, carol) =
        (gathering.enrol(0, "alice").await?, gathering.enrol(1, "bob").await?, gathering.enrol(2, "carol").await?);
    let group = gathering.group(&alice, &[&bob, &carol]).await?;
    let (alice, bob, carol) = (Listening::new(&alice), Listening::new(&bob), Listening::new(&carol));
    for listening in [&alice, &bob, &carol] {
        listening.sees(&group, &[alice.client.uri(), bob.client.uri(), carol.client.uri()]).await?;
    }
    alice.says(&group, "before", &[&bob, &carol]).await?;
    bob.says(&group, "here, too", &[&alice, &carol]).await?;

    let hub = gathering.node(0);
    hub.service().deny_peer(&b, "spam").await.context("not denied")?;
    assert!(!hub.service().peers().is_up(&b), "closed at once");
    until("b's connection is closed", async || !gathering.node(1).service().peers().is_up(&a)).await;
    assert_eq!(ask(gathering.node(1), &a).await.expect_err("denied").why, Why::Denied);
    assert_eq!(ask(hub, &b).await.expect_err("denied").why, Why::DeniedHere);
    let waiting: Vec<String> = (0..5).map(|number| format!("while denied {number}")).collect();
    for text in &waiting {
        alice.says(&group, text, &[&carol]).await?;
    }
    assert!(waits_for(hub, &b).await);

    gathering.restart(0).await?;
    let hub = gathering.node(0);
    assert_eq!(hub.service().peer_policy(&b).denied, Some(Denial::Operator), "kept");
    alice.says(&group, "after the restart", &[&carol]).await?;
    assert_eq!(ask(gathering.node(1), &a).await.expect_err("still").why, Why::Denied);
    assert!(waits_for(hub, &b).await);
    assert!(!texts(&bob).iter().any(|text| text.contains("while denied")), "nothing got through");

    hub.service().allow_peer(&b).await.context("not allowed")?;
    bob.reads("after the restart").await?;
    let mut wanted = vec!["before".to_owned()];
    wanted.extend(waiting);
    wanted.push("after the restart".to_owned());
    assert_eq!(texts(&bob), wanted, "all of it, in order, once");
    // The other direction was closed by the other side, so that one finds out for itself.
    until("b reaches a", async || ask(gathering.node(1), &a).await.is_ok()).await;
    bob.says(&group, "back", &[&alice, &carol]).await?;
    gathering.stop().await
}

// Shows: to a domain that is held nothing is sent, over a restart too, and what it sends is taken; Commits and messages that
// waited arrive in order once it is released.
// Fails if: a frame leaves while the domain is held, or one is lost or out of order afterwards; its own messages are refused.
// Is no failure: how fast they arrive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_domain_gets_its_frames_in_order_after_a_restart_and_its_release() -> Result<(), Fault> {
    let mut gathering = Gathering::start(2, &Limits::default()).await?;
    let b = domain("b.test");
    let (alice, bob) = (gathering.enrol(0, "alice").await?, gathering.enrol(1, "bob").await?);
    let group = gathering.group(&alice, &[&bob]).await?;
    let (alice, bob) = (Listening::new(&alice), Listening::new(&bob));
    for listening in [&alice, &bob] {
        listening.sees(&group, &[alice.client.uri(), bob.client.uri()]).await?;
    }
    alice.says(&group, "before", &[&bob]).await?;

    gathering.node(0).service().hold_peer(&b, "their disk is full").await.context("not held")?;
    gathering.node(0).service().hold_peer(&b, "their disk is full").await.context("not held")?;
    bob.says(&group, "I can still write", &[&alice]).await?;
    let mut wanted = vec!["before".to_owned()];
    for number in 0..3 {
        wanted.push(format!("held {number}"));
        alice.client.send(&group, &wanted[number + 1]).await.context("not sent")?;
        alice.client.update(&group).await.context("not updated")?;
    }
    gathering.restart(0).await?;
    let hub = gathering.node(0);
    assert!(hub.service().peer_policy(&b).held && waits_for(hub, &b).await, "kept");
    wanted.push("held still".to_owned());
    alice.client.send(&group, "held still").await.context("not sent")?;
    assert_eq!(ask(hub, &b).await.expect_err("held").why, Why::Held);
    assert_eq!(hub.service().peers().status(&b).map(|status| status.gate.state), Some(GateState::Held));
    assert_eq!(texts(&bob), ["before"], "nothing got through");

    hub.service().release_peer(&b).await.context("not released")?;
    bob.reads("held still").await?;
    assert_eq!(texts(&bob), wanted, "all of it, in order, once");
    gathering.stop().await
}

// Shows: a peer that asks more than it may is told to wait, and for how long; when it goes on, it is hung up on and its next
// connection is refused, both with the code for that; a domain with a larger limit of its own is served all the while.
// Fails if: the greedy one is answered on and on, or gets another code; an honest request is refused.
// Is no failure: how many requests pass before, beyond the burst, for a bucket fills while one asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_greedy_peer_is_told_to_wait_and_then_refused_while_others_are_served() -> Result<(), Fault> {
    let mut stage = Stage::open(3, 22).await?;
    let ours = PeerLimitsOverride { requests_per_second_max: Some(1_000), ..PeerLimitsOverride::default() };
    let frugal = |config: &mut mimi_node::node::Config| {
        config.limits.peer_requests_per_second_max = 1;
        config.peers.insert(domain("c.test"), Peer { limits: ours, ..Peer::default() });
    };
    stage.world.change_config(0, frugal)?;
    stage.restart(0).await?;
    let carol = stage.person(2, "carol").await?;
    let (ca, own, to) = (stage.ca()?, stage.domain(1), stage.world.site(0).clone());
    let config = peer_config(&ca, Some((&ca, &TlsCertificateOptions::for_domain(&own))))?;
    let dial = async || Raw::peer(config.clone(), to.federation, &to.domain, &own).await;
    let greedy = dial().await.map_err(|ended| Fault::new(format!("no peer: {ended:?}")))?;
    let (mut answered, mut told, mut ended) = (0, 0, None);
    while ended.is_none() {
        // Several at once, so that it asks far more than three times as much as it may on a slow machine, too.
        let asked: Vec<_> = (0..8)
            .map(|_| {
                let greedy = greedy.clone();
                tokio::spawn(async move { greedy.ask_peer(&PeerRequest::DomainInfo).await })
            })
            .collect();
        for asked in asked {
            match asked.await.expect("no panic") {
                Ok(PeerResponse::DomainInfo(_)) => answered += 1,
                Ok(PeerResponse::Error(rejection)) => {
                    let wait = rejection.as_rate_limited().context("another refusal")?.retry_after_ms;
                    assert!((1..=1_000).contains(&wait), "{wait} ms at one request a second");
                    told += 1;
                }
                Ok(other) => panic!("answered with {other:?}"),
                Err(end) => ended = ended.or(Some(end)),
            }
        }
        assert!(answered + told < 10_000, "it is never refused");
        assert_eq!(claim(&carol, "a.test").await.code, ErrorCode::UnknownUser, "c has done nothing");
    }
    let ended = ended.context("it was not refused")?;
    eprintln!("{answered} answered, {told} told to wait, then {ended:?}");
    // The burst is ten; what was still on its way when the connection was closed is lost with it.
    assert!(answered >= 8 && told >= 1, "{answered} {told}");
    assert!(matches!(ended, Ended::Closed(CloseCode::OverLimits) | Ended::Reset(CloseCode::OverLimits)), "{ended:?}");
    assert_eq!(greedy.closed().await, Ended::Closed(CloseCode::OverLimits));
    assert_eq!(dial().await.err(), Some(Ended::Closed(CloseCode::OverLimits)), "nor a new connection");
    assert_eq!(claim(&carol, "a.test").await.code, ErrorCode::UnknownUser, "c has done nothing");
    stage.stop().await
}

// Shows: a peer has so many streams and connections as it may, and no more: a further stream is told to wait, without its request
// being read; a further connection is refused; when a stream ends, another one is answered.
// Fails if: more are served at once, or fewer; the refusals have other codes.
// Is no failure: that a stream which has ended counts for a moment more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_and_connections_of_a_peer_are_counted() -> Result<(), Fault> {
    let mut stage = Stage::open(2, 23).await?;
    let few = PeerLimitsOverride { streams_max: Some(2), handshakes_per_minute_max: Some(2), ..PeerLimitsOverride::default() };
    let frugal = |config: &mut mimi_node::node::Config| {
        config.peers.insert(domain("b.test"), Peer { limits: few, ..Peer::default() });
    };
    stage.world.change_config(0, frugal)?;
    stage.restart(0).await?;
    let (ca, own, to) = (stage.ca()?, stage.domain(1), stage.world.site(0).clone());
    let config = peer_config(&ca, Some((&ca, &TlsCertificateOptions::for_domain(&own))))?;
    let dial = async || Raw::peer(config.clone(), to.federation, &to.domain, &own).await;
    let (first, second) = (dial().await, dial().await);
    let (Ok(first), Ok(second)) = (first, second) else { panic!("two may connect") };
    assert_eq!(dial().await.err(), Some(Ended::Closed(CloseCode::OverLimits)), "one too many");

    let wait = |answer: Result<PeerResponse, Ended>| match answer {
        Ok(PeerResponse::Error(rejection)) => rejection.as_rate_limited().map(|told| told.retry_after_ms),
        _ => None,
    };
    // Begun and not finished, one on each: they are of the same peer. Begun anew as long as the question was faster than one of them,
    // which then is the one too many.
    let mut begun = Vec::new();
    until("both are seen", async || {
        begun.clear();
        for raw in [&first, &second] {
            let (mut send, recv) = raw.connection.open_bi().await.expect("a stream");
            send.write_all(&[0, 0]).await.expect("room");
            begun.push((send, recv));
        }
        wait(first.ask_peer(&PeerRequest::DomainInfo).await) == Some(1_000)
            && wait(second.ask_peer(&PeerRequest::DomainInfo).await) == Some(1_000)
    })
    .await;
    begun.pop();
    until("one has ended", async || matches!(first.ask_peer(&PeerRequest::DomainInfo).await, Ok(PeerResponse::DomainInfo(_))))
        .await;
    stage.stop().await
}
