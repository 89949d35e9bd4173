//! Who is believed to be which domain: every kind of certificate in both directions, revocation, renewal.

use std::path::{Path, PathBuf};
use std::time::Duration;

use federation_tests::conversation::{Cast, Scene, Script, demand_complete, report};
use federation_tests::raw::{Ended, Raw, accepting_config, dialling_config, hello};
use federation_tests::world::{NodeProcess, World};
use mimi_node::base::{Domain, Fault, UnixMillis};
use mimi_node::federation::{PeerError, Why, answer_hello};
use mimi_node::identity::pem::certificates_from_pem;
use mimi_node::identity::tls::crl::serial;
use mimi_node::identity::{Crl, ExtendedKeyUsage, Revoked, TlsCa, TlsCertificate, TlsCertificateOptions};
use mimi_node::node::Node;
use mimi_node::node::config::{replace_public, write_secret};
use mimi_node::transport::accept::peer_chain;
use mimi_node::transport::frame::{read_frame, write_frame};
use mimi_node::transport::{CloseCode, EndpointSecret, Pin, endpoint};
use mimi_node::wire::peer::{PeerRequest, PeerResponse};
use mimi_node::wire::{ErrorCode, encode};
use quinn::{Connection, Endpoint};
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::Instant;

use crate::process::{PROGRAM, run};

/// TLS alerts (RFC 8446 §6).
const BAD_CERTIFICATE: u8 = 42;
const UNSUPPORTED_CERTIFICATE: u8 = 43;
const CERTIFICATE_REVOKED: u8 = 44;
const CERTIFICATE_EXPIRED: u8 = 45;
const UNKNOWN_CA: u8 = 48;

const DAY: Duration = Duration::from_secs(86_400);

/// A changed file is to be in force after two looks, a second apart; the rest is for a slow machine.
const TAKEN_UP_MAX: Duration = Duration::from_secs(15);

/// A node that is told to dial does so at once; the rest is for a slow machine.
const DIALLED_MAX: Duration = Duration::from_secs(30);

/// Who vouches for a certificate, or why nobody should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vouched {
    OwnCa,
    OtherCa,
    Expired,
    Revoked,
    /// By a CA that is not trusted, but whose key is pinned for the domain.
    Pinned,
}

/// What a certificate names, in the place of `b.test`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Right,
    Wrong,
    SrvName,
    /// Only the host that the domain's SRV record points at.
    Target,
}

/// Who dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    /// The odd peer; the node judges as a TLS server.
    Inbound,
    /// The node; it judges as a TLS client.
    Outbound,
}

const NAMES: [Named; 4] = [Named::Right, Named::Wrong, Named::SrvName, Named::Target];

const USAGES: [ExtendedKeyUsage; 5] = [
    ExtendedKeyUsage::Both,
    ExtendedKeyUsage::ServerOnly,
    ExtendedKeyUsage::ClientOnly,
    ExtendedKeyUsage::None,
    ExtendedKeyUsage::Other,
];

/// How a connection went, as the peer with the odd certificate saw it; `None`: both said `hello`.
type Answer = Option<Ended>;

/// What the answer must be. Of several faults the first in this order is named: its time, its purpose, who vouches for it, its
/// name.
fn expected(vouched: Vouched, named: Named, usage: ExtendedKeyUsage, direction: Direction) -> Answer {
    let alert = |alert| Some(Ended::Alert(alert));
    if vouched == Vouched::Expired {
        return alert(CERTIFICATE_EXPIRED);
    }
    if usage == ExtendedKeyUsage::Other {
        return alert(UNSUPPORTED_CERTIFICATE);
    }
    let misnamed = matches!(named, Named::Wrong | Named::Target);
    match (vouched, direction) {
        (Vouched::OtherCa, _) => alert(UNKNOWN_CA),
        (Vouched::Revoked, _) => alert(CERTIFICATE_REVOKED),
        // The pin counts for its own domain only: for whom else, the CA is a stranger.
        (Vouched::Pinned, Direction::Inbound) if misnamed => alert(UNKNOWN_CA),
        (_, Direction::Outbound) if misnamed => alert(BAD_CERTIFICATE),
        // Which name is the right one, the accepting side learns from `hello` only.
        (_, Direction::Inbound) if misnamed => Some(Ended::Closed(CloseCode::WrongDomain)),
        _ => None,
    }
}

/// A node of `a.test`, and what is needed to be a peer that says it is `b.test`.
struct Pair {
    world: World,
    node: Node,
    ca: TlsCa,
    peer: Endpoint,
}

fn domain(name: &str) -> Domain {
    name.parse().expect("a domain")
}

fn load_ca(world: &World) -> TlsCa {
    let read = |name: &str| std::fs::read_to_string(world.dir().join(name)).expect("the testbed's CA");
    TlsCa::load(&read("ca/ca.pem"), &read("ca/ca.key")).expect("a CA")
}

fn leaf(certificate: &TlsCertificate) -> Vec<u8> {
    certificates_from_pem(&certificate.chain_pem).expect("a chain").swap_remove(0)
}

/// Writes the revocation list of `ca`.
fn revoke(path: &Path, ca: &TlsCa, certificates: &[Vec<u8>]) {
    let at = UnixMillis::now();
    let revoked: Vec<Revoked> =
        certificates.iter().map(|certificate| Revoked { serial: serial(certificate).expect("a serial"), at }).collect();
    replace_public(path, &ca.revocation_list(&revoked, at, DAY).expect("a list")).expect("written");
}

fn issue(ca: &TlsCa, vouched: Vouched, named: Named, usage: ExtendedKeyUsage) -> TlsCertificate {
    let mut options = TlsCertificateOptions::for_domain(&domain("b.test"));
    options.extended_key_usage = usage;
    (options.dns_names, options.srv_name) = match named {
        Named::Right => (vec!["b.test".to_owned()], None),
        Named::Wrong => (vec!["c.test".to_owned()], Some("_mimi-fed.c.test".to_owned())),
        Named::SrvName => (vec![], Some("_mimi-fed.b.test".to_owned())),
        Named::Target => (vec!["node.b.test".to_owned()], None),
    };
    if vouched == Vouched::Expired {
        options.not_before = Some(UnixMillis::now().minus(DAY * 2));
        options.lifetime = DAY;
    }
    ca.issue(&options, UnixMillis::now()).expect("a certificate")
}

/// The odd peer dials the node and says `hello`.
async fn inbound(pair: &Pair, certificate: &TlsCertificate) -> Answer {
    let (config, a) = (dialling_config(&pair.ca, Some(certificate)).expect("a configuration"), pair.world.site(0));
    Raw::peer(config, a.federation, &a.domain, &domain("b.test")).await.err()
}

/// The odd peer accepts one connection, says `hello` and answers one request.
async fn answer_one(peer: &Endpoint) -> Answer {
    let incoming = peer.accept().await.expect("an open endpoint");
    let connection = match incoming.await {
        Ok(connection) => connection,
        Err(error) => return Some(Ended::of_connection(&error)),
    };
    let ours = || encode(&PeerResponse::Hello(hello(&domain("b.test"))));
    if answer_hello(&connection, ours, |_| Ok(())).await.is_err() {
        return Some(Ended::of_connection(&connection.closed().await));
    }
    let (mut send, mut recv) = connection.accept_bi().await.expect("a request");
    read_frame(&mut recv, 1_000_000).await.expect("a frame");
    write_frame(&mut send, &encode(&PeerResponse::Error(ErrorCode::Unsupported.into()))).await.expect("an answer");
    let _ = send.finish();
    let _ = send.stopped().await;
    None
}

async fn ask(node: &Node, peer: &Domain) -> Result<Vec<u8>, PeerError> {
    let deadline = Instant::now() + Duration::from_secs(10);
    // Whatever failed before, this is to be tried.
    node.service().peers().wake(peer);
    node.service().peers().request(peer, &encode(&PeerRequest::DomainInfo), 1_000_000, deadline).await
}

/// From now on the odd peer shows this certificate to who dials it. A connection is answered by the one that was shown when its
/// first packet came, and a node dials as soon as the peer has said `hello` to it: so this comes before either direction.
fn show(pair: &Pair, certificate: &TlsCertificate) {
    pair.peer.set_server_config(Some(accepting_config(&pair.ca, certificate).expect("a configuration")));
}

/// The node dials the odd peer.
async fn outbound(pair: &Pair) -> Answer {
    let b = domain("b.test");
    let answering = tokio::time::timeout(DIALLED_MAX, answer_one(&pair.peer));
    let (asked, answer) = tokio::join!(ask(&pair.node, &b), answering);
    let answer = answer.unwrap_or_else(|_| panic!("nobody dialled: {asked:?}"));
    match (&asked, &answer) {
        (Ok(_), None) => {}
        (Err(error), Some(_)) => assert_eq!(error.why, Why::Certificate, "{error}"),
        _ => panic!("the two sides do not agree: {asked:?}, {answer:?}"),
    }
    pair.node.service().peers().close(&b, CloseCode::Done);
    answer
}

// Shows: of the five ways to be vouched for, four ways to be named and five extended key usages, in both directions, exactly
// those are let in that may be, and every other one learns by its own answer what is wrong: 200 handshakes over real sockets.
// Fails if: any answer is another one, or the node lets in or refuses what it must not.
// Is no failure: how long a handshake takes.
// covers C3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_certificate_gets_its_answer_in_both_directions() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), 2).await.expect("a world");
    let (ca, other) = (load_ca(&world), TlsCa::create("another CA", UnixMillis::now()).expect("a CA"));
    let certificates = |vouched: Vouched| {
        let issuer = if matches!(vouched, Vouched::OtherCa | Vouched::Pinned) { &other } else { &ca };
        let kinds = NAMES.iter().flat_map(|named| USAGES.iter().map(move |usage| (*named, *usage)));
        kinds.map(|(named, usage)| (vouched, named, usage, issue(issuer, vouched, named, usage))).collect::<Vec<_>>()
    };
    let groups = [Vouched::OwnCa, Vouched::OtherCa, Vouched::Expired, Vouched::Revoked, Vouched::Pinned].map(certificates);
    let list = dir.path().join("crl.pem");
    revoke(&list, &ca, &groups[3].iter().map(|(_, _, _, certificate)| leaf(certificate)).collect::<Vec<_>>());

    let mut config = world.config(0).expect("a configuration");
    config.tls.crls = vec![list];
    let node = Node::start(&config).await.expect("a node");
    let peer = endpoint::bind(world.site(1).federation, None, &EndpointSecret::generate()).expect("an endpoint");
    let mut pair = Pair { world, node, ca, peer };
    let (mut wrong, mut welcome, mut handshakes) = (Vec::new(), 0, 0);
    for cells in &groups {
        for (vouched, named, usage, certificate) in cells {
            show(&pair, certificate);
            for direction in [Direction::Inbound, Direction::Outbound] {
                let answer = match direction {
                    Direction::Inbound => inbound(&pair, certificate).await,
                    Direction::Outbound => outbound(&pair).await,
                };
                let expected = expected(*vouched, *named, *usage, direction);
                handshakes += 1;
                welcome += usize::from(answer.is_none());
                if answer != expected {
                    wrong.push(format!("{vouched:?} {named:?} {usage:?} {direction:?}: {answer:?}, not {expected:?}"));
                }
            }
        }
        // A node of its own for each group: one node leaves an address alone at which it has found no peer too often. The last
        // group has a pin, with which nothing else counts for the domain.
        pair.node.stop().await.expect("it stops");
        if cells.iter().any(|(vouched, ..)| *vouched == Vouched::Revoked) {
            config.peers.entry(domain("b.test")).or_default().pins.push(Pin(other.spki_hash()));
        }
        pair.node = Node::start(&config).await.expect("a node");
    }
    pair.node.stop().await.expect("it stops");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Two kinds of vouching, two of names, four usages, both directions.
    assert_eq!((handshakes, welcome), (200, 2 * 2 * 4 * 2));
}

// Shows: neither side of a peer connection resumes an earlier TLS session, even with a peer that would: the certificate is judged
// every time. Failure: a second connection without the peer's certificate being asked for and judged.
// covers C3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_session_is_resumed_in_either_direction() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), 2).await.expect("a world");
    let (ca, list) = (load_ca(&world), dir.path().join("crl.pem"));
    revoke(&list, &ca, &[]);
    let mut config = world.config(0).expect("a configuration");
    config.tls.crls = vec![list.clone()];
    let node = Node::start(&config).await.expect("a node");
    let peer = endpoint::bind(world.site(1).federation, None, &EndpointSecret::generate()).expect("an endpoint");
    let pair = Pair { world, node, ca, peer };
    let certificate = issue(&pair.ca, Vouched::OwnCa, Named::Right, ExtendedKeyUsage::Both);
    // One configuration for all dials, with rustls' usual memory of sessions: what a resuming client would have.
    let (dialling, a) = (dialling_config(&pair.ca, Some(&certificate)).expect("a configuration"), pair.world.site(0));
    let b = domain("b.test");
    let dial = || Raw::peer(dialling.clone(), a.federation, &a.domain, &b);
    pair.peer.set_server_config(Some(accepting_config(&pair.ca, &certificate).expect("a configuration")));
    for _ in 0..2 {
        dial().await.expect("let in");
        let (asked, answer) = tokio::join!(ask(&pair.node, &b), answer_one(&pair.peer));
        assert_eq!((asked.map(drop), answer), (Ok(()), None));
        pair.node.service().peers().close(&b, CloseCode::Done);
    }
    // Revoked since: a resumed session would not notice.
    revoke(&list, &pair.ca, &[leaf(&certificate)]);
    pair.node.reload_tls().await.expect("a good list");
    assert_eq!(dial().await.err(), Some(Ended::Alert(CERTIFICATE_REVOKED)));
    let (asked, answer) = tokio::join!(ask(&pair.node, &b), answer_one(&pair.peer));
    assert_eq!(asked.expect_err("revoked").why, Why::Certificate);
    assert_eq!(answer, Some(Ended::Alert(CERTIFICATE_REVOKED)));
    pair.node.stop().await.expect("it stops");
}

/// Gives a domain's node another certificate, as an operator does: the files are replaced one after the other.
fn rotate(world: &World, index: usize, ca: &TlsCa) -> Vec<u8> {
    let issued = ca.issue(&TlsCertificateOptions::for_domain(&world.site(index).domain), UnixMillis::now()).expect("one");
    let tls: PathBuf = world.site_dir(index).join("tls");
    let key = tls.join("new.key");
    write_secret(&key, &issued.key_pem).expect("written");
    std::fs::rename(&key, tls.join("node.key")).expect("renamed");
    replace_public(&tls.join("node.pem"), &issued.chain_pem).expect("written");
    leaf(&issued)
}

/// Waits until `done`; false when that takes longer than a change of files may.
async fn within(longest: Duration, mut done: impl AsyncFnMut() -> bool) -> bool {
    let deadline = Instant::now() + longest;
    while !done().await {
        if Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

// Shows: when the certificate of a connected peer is revoked, a node notices the new list by itself and closes that peer's
// connections in both directions at once, and no other peer's; until the peer has another certificate, nothing connects.
// Fails if: a connection stays, another one goes, the revoked certificate is accepted afterwards, or the new one is not.
// Is no failure: that requests on the closed connections end with them.
// covers C3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_revoked_is_cut_off_at_once_and_back_with_a_new_certificate() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), 3).await.expect("a world");
    let (ca, list) = (load_ca(&world), dir.path().join("crl.pem"));
    revoke(&list, &ca, &[]);
    let mut config = world.config(0).expect("a configuration");
    config.tls.crls = vec![list.clone()];
    let a = Node::start(&config).await.expect("a node");
    let (b, c) = (world.start(1).await.expect("a node"), world.start(2).await.expect("a node"));
    let up = |from: &Node, to: &Node| from.service().peers().is_up(to.domain());
    for (from, to) in [(&a, &b), (&b, &a), (&a, &c), (&c, &a)] {
        ask(from, to.domain()).await.expect("an answer");
        assert!(up(from, to));
    }
    let ends = a.service().peers().tls().peers_not_after();
    assert_eq!(ends.keys().map(Domain::as_str).collect::<Vec<_>>(), ["b.test", "c.test"], "whose days can be told");

    let chain = std::fs::read_to_string(world.site_dir(1).join("tls/node.pem")).expect("b's certificate");
    let revoked = certificates_from_pem(&chain).expect("a chain").swap_remove(0);
    revoke(&list, &ca, &[revoked]);
    let begun = Instant::now();
    assert!(within(TAKEN_UP_MAX, async || !up(&a, &b) && !up(&b, &a)).await, "{} {}", up(&a, &b), up(&b, &a));
    eprintln!("cut off {:?} after the list was written", begun.elapsed());
    assert!(up(&a, &c) && up(&c, &a), "c has nothing to do with it");
    for (from, to) in [(&a, &b), (&b, &a)] {
        let error = ask(from, to.domain()).await.expect_err("revoked");
        assert_eq!(error.why, Why::Certificate, "{error}");
    }
    rotate(&world, 1, &ca);
    b.reload_tls().await.expect("a good pair");
    for (from, to) in [(&a, &b), (&b, &a)] {
        ask(from, to.domain()).await.expect("an answer");
    }
    for node in [a, b, c] {
        node.stop().await.expect("it stops");
    }
}

/// Messages in one round of the conversation; it goes on in rounds until all rotations are done.
const ROUND: Script = Script { messages: 60, size: 64, update_every: 15 };

const ROTATIONS: usize = 10;

/// A run that takes longer has failed.
const RUN_TIMEOUT: Duration = Duration::from_secs(300);

/// The certificate with which a node answers now.
async fn presented(config: &quinn::ClientConfig, world: &World, index: usize) -> Result<Vec<u8>, String> {
    let site = world.site(index);
    let raw = Raw::dial(config.clone(), site.federation, &site.domain).await.map_err(|ended| format!("{ended:?}"))?;
    let connection: &Connection = &raw.connection;
    peer_chain(connection).into_iter().next().ok_or_else(|| "no certificate".to_owned())
}

/// What happened during one rotation of all nodes.
#[derive(Debug)]
struct Rotation {
    by_signal: bool,
    took: Duration,
    /// Messages accepted before and during it.
    accepted: (usize, usize),
}

// Shows: the certificates of three nodes are replaced ten times while people talk across them, five times noticed by the nodes
// and five times by SIGHUP, in the order in which an operator's script would (key first, so that the pair does not fit for a
// moment). New connections get the new certificate, and nobody's message fails, is lost or doubled.
// Fails if: a new certificate is not in use in time; a client gives up; the checker finds anything; nobody talked meanwhile; a
// connection between the nodes had to be made anew.
// Is no failure: how long a message takes; that a node looks just when the pair does not fit, and says so.
// covers C3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_rotate_ten_times_and_nothing_fails() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), 3).await.expect("a world");
    let rotations = match tokio::time::timeout(RUN_TIMEOUT, talk_and_rotate(&world)).await {
        Ok(Ok(rotations)) => rotations,
        Ok(Err(why)) => panic!("{why}"),
        Err(_) => panic!("not done after {RUN_TIMEOUT:?}\n{}", report(&world)),
    };
    for Rotation { by_signal, took, accepted } in &rotations {
        let how = if *by_signal { "by SIGHUP" } else { "noticed" };
        eprintln!("{how}: in use everywhere after {took:?}, messages accepted meanwhile: {}", accepted.1 - accepted.0);
    }
    assert_eq!(rotations.len(), ROTATIONS);
    let during: usize = rotations.iter().map(|rotation| rotation.accepted.1 - rotation.accepted.0).sum();
    assert!(during >= ROTATIONS, "nobody talked meanwhile: {rotations:?}");
    assert!(rotations.windows(2).all(|two| two[0].accepted.1 < two[1].accepted.1), "{rotations:?}");
    for index in 0..world.sites.len() {
        let log = std::fs::read_to_string(world.node_log(index)).expect("a log");
        let count = |text: &str| log.lines().filter(|line| line.contains(text)).count();
        assert_eq!(count("a new TLS certificate is in use"), ROTATIONS, "{log}");
        assert_eq!(count("a connection is closed"), 0, "{log}");
        // Whatever was said on a connection that was up stays on it.
        for peer in world.sites.iter().filter(|site| site.domain != world.site(index).domain) {
            assert!(count(&format!("peer connected peer={}", peer.domain)) <= 1, "{log}");
        }
    }
}

async fn talk_and_rotate(world: &World) -> Result<Vec<Rotation>, String> {
    let tell = |fault: Fault| format!("{fault}\n{}", report(world));
    let mut nodes = Vec::new();
    for index in 0..world.sites.len() {
        nodes.push(world.spawn(index, Path::new(PROGRAM), None).await.map_err(tell)?);
    }
    let (scenes, mut seen) = unbounded_channel();
    let cast = Cast::assemble(world, &scenes).await.map_err(tell)?;
    let group = cast.make_group("lounge", &scenes).await.map_err(tell)?;
    let (accepted, counted) = tokio::sync::watch::channel(0);
    let counting = tokio::spawn(async move {
        while let Some(scene) = seen.recv().await {
            if matches!(scene, Scene::Sent { .. }) {
                accepted.send_modify(|accepted| *accepted += 1);
            }
        }
    });
    let (done, is_done) = tokio::sync::watch::channel(false);
    let talk = async {
        let mut rounds = 0;
        while !*is_done.borrow() {
            cast.play(&group, ROUND, &scenes).await.map_err(tell)?;
            rounds += 1;
        }
        Ok::<_, String>(rounds)
    };
    let rotating = async {
        let outcome = rotate_all(world, &nodes, counted).await;
        let _ = done.send(true);
        outcome
    };
    let (rounds, rotations) = tokio::join!(talk, rotating);
    let (rounds, rotations): (usize, Vec<Rotation>) = (rounds?, rotations?);
    drop(scenes);
    counting.await.map_err(|error| error.to_string())?;
    cast.settle().await.map_err(tell)?;
    cast.close().await;
    let verdict = demand_complete(world, rounds * ROUND.messages).await?;
    eprintln!("{verdict}");
    Ok(rotations)
}

async fn rotate_all(
    world: &World,
    nodes: &[NodeProcess],
    mut accepted: tokio::sync::watch::Receiver<usize>,
) -> Result<Vec<Rotation>, String> {
    let ca = load_ca(world);
    let stranger = ca.issue(&TlsCertificateOptions::for_domain(&domain("z.test")), UnixMillis::now()).expect("a certificate");
    let config = dialling_config(&ca, Some(&stranger)).map_err(|fault| fault.to_string())?;
    let mut rotations = Vec::new();
    for number in 0..ROTATIONS {
        let by_signal = number % 2 == 1;
        // People talk before, between, and therefore after.
        let before = *accepted.borrow();
        accepted.wait_for(|now| *now >= before + 5).await.map_err(|_| "the conversation ended".to_owned())?;
        let (begun, before) = (Instant::now(), *accepted.borrow());
        let wanted: Vec<Vec<u8>> = (0..nodes.len()).map(|index| rotate(world, index, &ca)).collect();
        for node in nodes.iter().filter(|_| by_signal) {
            let id = node.id().ok_or("a node has ended")?.to_string();
            let sent = tokio::process::Command::new("sh").args(["-c", &format!("kill -HUP {id}")]).status().await;
            if !sent.is_ok_and(|status| status.success()) {
                return Err("SIGHUP could not be sent".to_owned());
            }
        }
        for (index, wanted) in wanted.iter().enumerate() {
            let taken_up = within(TAKEN_UP_MAX, async || presented(&config, world, index).await.as_ref() == Ok(wanted)).await;
            if !taken_up {
                let now = presented(&config, world, index).await.map(|_| "another certificate");
                return Err(format!("rotation {number}: {} presents {now:?}\n{}", world.site(index).domain, report(world)));
            }
        }
        // Somebody is heard after all have changed.
        let during = *accepted.borrow();
        accepted.wait_for(|now| *now > during).await.map_err(|_| "the conversation ended".to_owned())?;
        rotations.push(Rotation { by_signal, took: begun.elapsed(), accepted: (before, *accepted.borrow()) });
    }
    Ok(rotations)
}

// Shows: `certs revoke` adds to the CA's list, keeps what was on it, names each certificate once, and takes no other CA's.
// Failure: a list with other serial numbers than those.
#[tokio::test]
async fn a_ca_revokes_one_certificate_after_the_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
    let certs = async |arguments: &[&str]| run(["node", "certs"].iter().chain(arguments)).await;
    for ca in ["ca", "other"] {
        certs(&["ca", "--dir", &path(ca)]).await.ok();
    }
    for (ca, name) in [("ca", "a"), ("ca", "b"), ("other", "c")] {
        certs(&["issue", "--ca", &path(ca), "--domain", &format!("{name}.test"), "--dir", &path(name)]).await.ok();
    }
    let serial_of = |name: &str| {
        let text = std::fs::read_to_string(path(&format!("{name}/node.pem"))).expect("a certificate");
        serial(&certificates_from_pem(&text).expect("a chain")[0]).expect("a serial")
    };
    let listed = || {
        let lists = Crl::read(&std::fs::read(path("ca/crl.pem")).expect("a list")).expect("a list");
        lists[0].revoked.iter().map(|revoked| revoked.serial.clone()).collect::<Vec<_>>()
    };
    let (a, b, c) = (path("a/node.pem"), path("b/node.pem"), path("c/node.pem"));
    certs(&["revoke", "--ca", &path("ca")]).await.ok();
    assert_eq!(listed(), Vec::<Vec<u8>>::new());
    certs(&["revoke", "--ca", &path("ca"), &a]).await.ok();
    assert_eq!(listed(), [serial_of("a")]);
    certs(&["revoke", "--ca", &path("ca"), &b, &a]).await.ok();
    assert_eq!(listed(), [serial_of("a"), serial_of("b")]);
    let sentence = certs(&["revoke", "--ca", &path("ca"), &c]).await.sentence();
    assert!(sentence.contains("is not a certificate of the CA"), "{sentence}");
    assert_eq!(listed(), [serial_of("a"), serial_of("b")]);
}
