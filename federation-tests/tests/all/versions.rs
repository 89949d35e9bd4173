//! Nodes of different versions: what works between them, and what is said when nothing can.

use std::path::Path;
use std::time::Duration;

use federation_tests::raw::{Ended, Raw, accepting_config_with, dialling_config_with};
use federation_tests::world::World;
use mimi_node::base::{Domain, UnixMillis};
use mimi_node::federation::{PeerError, Why};
use mimi_node::identity::{TlsCa, TlsCertificateOptions};
use mimi_node::node::Node;
use mimi_node::service::hello::OwnHello;
use mimi_node::transport::{EndpointSecret, endpoint};
use mimi_node::wire::peer::{HelloExtension, PEER_REQUEST_TYPES, PeerRequest, PeerResponse, ProtocolVersion};
use mimi_node::wire::probe::Trouble;
use mimi_node::wire::{ErrorCode, decode, encode};
use tokio::time::Instant;

use crate::process::{PATIENCE, PROGRAM, run};

fn version(major: u8, minor: u8) -> ProtocolVersion {
    ProtocolVersion { major, minor }
}

/// A node of a domain of `world` that says these versions, and an extension that nobody knows.
async fn speaking(world: &World, index: usize, versions: &[ProtocolVersion]) -> Node {
    let config = world.config(index).expect("a configuration");
    let extension = HelloExtension { extension_type: 0xff07, data: b"of a later version".as_slice().into() };
    let hello = OwnHello::speaking(config.domain.clone(), versions.to_vec(), vec![extension]);
    Node::start_greeting(&config, hello).await.expect("a node")
}

async fn ask(node: &Node, peer: &Domain, frame: &[u8]) -> Result<PeerResponse, PeerError> {
    let answer = node.service().peers().request(peer, frame, 1_000_000, Instant::now() + Duration::from_secs(60)).await?;
    Ok(decode(&answer).expect("a response"))
}

/// The version of a node's connection to a peer.
fn agreed(node: &Node, peer: &Domain) -> Option<ProtocolVersion> {
    node.service().peers().status(peer).and_then(|status| status.greeting).map(|greeting| greeting.version)
}

// Shows: a node of this version and two of a later minor, which say more in `hello`, work together in every direction; each
// connection has the highest version of both; a request of the later version is answered with `unsupported`, and the connection goes
// on.
// Fails if: a request fails, a connection has another version, or the unknown request ends the connection or is called malformed.
// covers X7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_different_minor_versions_work_together() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), 3).await.expect("a world");
    let a = world.start(0).await.expect("a node");
    let b = speaking(&world, 1, &[version(1, 1), version(1, 0)]).await;
    let c = speaking(&world, 2, &[version(1, 2), version(1, 1), version(1, 0)]).await;
    let info = encode(&PeerRequest::DomainInfo);
    for (from, to, common) in [(&a, &b, 0), (&b, &a, 0), (&b, &c, 1), (&c, &b, 1), (&c, &a, 0), (&a, &c, 0)] {
        let answer = ask(from, to.domain(), &info).await.expect("an answer");
        assert!(matches!(answer, PeerResponse::DomainInfo(_)), "{answer:?}");
        assert_eq!(agreed(from, to.domain()), Some(version(1, common)), "{} {}", from.domain(), to.domain());
    }
    let unsupported = PeerResponse::Error(ErrorCode::Unsupported.into());
    assert_eq!(ask(&b, a.domain(), &[PEER_REQUEST_TYPES, 1, 2, 3]).await, Ok(unsupported));
    assert!(matches!(ask(&b, a.domain(), &info).await, Ok(PeerResponse::DomainInfo(_))), "the connection goes on");
    let diagnosis = a.service().diagnose(b.domain()).await;
    assert_eq!(diagnosis.trouble, None, "{diagnosis:#?}");
    for node in [a, b, c] {
        node.stop().await.expect("it stops");
    }
}

/// Waits until a node's log has a line with all of these words.
async fn logged(world: &World, index: usize, words: &[&str]) {
    let found = async {
        loop {
            let log = std::fs::read_to_string(world.node_log(index)).unwrap_or_default();
            if log.lines().any(|line| words.iter().all(|word| line.contains(word))) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, found).await;
    in_time.unwrap_or_else(|_| panic!("never in the log: {words:?}\n{}", world.log_tails(100)));
}

// Shows: without a version in common, in `hello` or by ALPN, both operators can read why: in the peer's state, in the log of either
// side, and by `doctor`, with both sides' versions.
// Fails if: a request passes; the reason is not there, on either side and in either direction.
// covers X7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_version_in_common_is_said_on_both_sides() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), 2).await.expect("a world");
    let process = world.spawn(0, Path::new(PROGRAM), None).await.expect("a node");
    let b = speaking(&world, 1, &[version(2, 0), version(1, 9)]).await;
    let a: &Domain = &world.site(0).domain;
    const SENTENCE: &str = "no protocol version in common: a.test speaks 1.0, b.test speaks 2.0, 1.9";

    let error = ask(&b, a, &encode(&PeerRequest::DomainInfo)).await.expect_err("nothing in common");
    assert_eq!(error.why, Why::Protocol, "{error}");
    assert!(error.detail.contains(SENTENCE), "{error}");
    let (why, detail) = b.service().peers().status(a).and_then(|status| status.gate.last_failure).expect("a failure");
    assert!(why == Why::Protocol && detail.contains(SENTENCE), "{why}: {detail}");
    logged(&world, 0, &["INFO", "a peer connection was refused", SENTENCE]).await;
    let diagnosis = b.service().diagnose(a).await;
    assert_eq!(diagnosis.trouble, Some(Trouble::NoVersion), "{diagnosis:#?}");

    // From the other side, where `doctor` is a command of the running node.
    let config = world.site_dir(0).join("node.toml");
    let doctor = ["node", "doctor", "b.test", "--config", config.to_str().expect("text")];
    let said = run(doctor).await;
    assert_eq!(said.status.code(), Some(i32::from(Trouble::NoVersion.number())), "{}", said.stdout);
    assert!(said.stdout.contains("no protocol version in common: ") && said.stdout.contains("2.0, 1.9"), "{}", said.stdout);
    b.stop().await.expect("it stops");

    // Another major version is another ALPN, and TLS says no.
    let read = |name: &str| std::fs::read_to_string(world.dir().join(name)).expect("the testbed's CA");
    let ca = TlsCa::load(&read("ca/ca.pem"), &read("ca/ca.key")).expect("a CA");
    let options = TlsCertificateOptions::for_domain(&world.site(1).domain);
    let certificate = ca.issue(&options, UnixMillis::now()).expect("a certificate");
    let alpns: &[&[u8]] = &[b"mimi-fed/2"];
    let dialling = dialling_config_with(&ca, Some(&certificate), alpns).expect("a configuration");
    let refused = Raw::dial(dialling, world.site(0).federation, a).await.err();
    assert_eq!(refused, Some(Ended::Alert(120)));
    logged(&world, 0, &["INFO", "offers no protocol (ALPN) that this port speaks"]).await;
    let accepting = accepting_config_with(&ca, &certificate, alpns).expect("a configuration");
    let later = endpoint::bind(world.site(1).federation, Some(accepting), &EndpointSecret::generate()).expect("an endpoint");
    let accept = async {
        while let Some(incoming) = later.accept().await {
            assert!(incoming.await.is_err(), "nothing in common");
        }
    };
    let said = tokio::select! {
        said = run(doctor) => said,
        () = accept => panic!("the endpoint closed"),
    };
    assert_eq!(said.status.code(), Some(i32::from(Trouble::NoProtocol.number())), "{}", said.stdout);
    // A later node that still speaks this version offers both, and the one in common is taken.
    let both: &[&[u8]] = &[b"mimi-fed/2", b"mimi-fed/1"];
    let dialling = dialling_config_with(&ca, Some(&certificate), both).expect("a configuration");
    Raw::peer(dialling, world.site(0).federation, a, &world.site(1).domain).await.expect("mimi-fed/1 is in common");
    process.kill().await.expect("killed");
}
