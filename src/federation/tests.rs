//! Peers over real loopback UDP and real mutual TLS: who is refused and why, and when connections are reused, made anew or
//! awaited.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rcgen::ExtendedKeyUsagePurpose as Purpose;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;
use crate::base::{Domain, UnixMillis, limits};
use crate::identity::tls::names_domain;
use crate::transport::frame::{next_frame, write_frame};
use crate::transport::testing::{Ca, Odd, bind, domain, local, loopback, own_loopback};
use crate::transport::{
    Accepted, AddressPolicy, CloseCode, ConnectionHandler, EndpointSecret, Holder, Network, NodeTls, Pin, PortCounts, PortLimits,
    Resolver, ResolverSettings, Service, accept, endpoint,
};
use crate::wire::peer::PROTOCOL_VERSIONS;

mod closed;

/// A `hello` that is a domain's name, and is judged by a word that both sides must share.
struct TestHello {
    own: Domain,
    version: &'static str,
}

impl TestHello {
    fn read(&self, octets: &[u8]) -> Result<Domain, String> {
        let text = String::from_utf8_lossy(octets).into_owned();
        match text.split_once(' ') {
            Some((version, name)) if version == self.version => name.parse().map_err(|_| "no domain".to_owned()),
            _ => Err(format!("we speak {} only", self.version)),
        }
    }
}

impl Hello for TestHello {
    fn ours(&self) -> Vec<u8> {
        format!("{} {}", self.version, self.own).into_bytes()
    }

    fn check(&self, peer: &Domain, theirs: &[u8]) -> Result<Greeting, (CloseCode, String)> {
        let refused = |reason| (CloseCode::HelloRefused, reason);
        let name = self.read(theirs).map_err(refused)?;
        let version = PROTOCOL_VERSIONS[0];
        let greeting = Greeting { version, versions: vec![version], server_time: UnixMillis::now() };
        if name == *peer { Ok(greeting) } else { Err(refused(format!("this is {name}"))) }
    }
}

/// How a node treats requests: it echoes them, except for those that begin with these words.
const HOLD: &[u8] = b"hold";
const UNTOUCHED: &[u8] = b"untouched";
const HANG_UP: &[u8] = b"hang up";

/// The accepting side of a node.
struct Echo {
    hello: TestHello,
    /// Connections whose `hello` was good, and requests seen.
    greeted: AtomicUsize,
    requests: AtomicUsize,
    /// Lets held requests go on.
    release: Notify,
    peers: watch::Sender<Vec<Domain>>,
    counts: PortCounts,
}

impl ConnectionHandler for Echo {
    fn counts(&self) -> &PortCounts {
        &self.counts
    }

    async fn connection(self: Arc<Self>, accepted: Accepted) {
        let connection = accepted.connection.clone();
        let check = |theirs: &[u8]| {
            let peer = self.hello.read(theirs).map_err(|reason| (CloseCode::HelloRefused, reason))?;
            if names_domain(&accepted.peer_chain[0], &peer) {
                Ok(peer)
            } else {
                Err((CloseCode::WrongDomain, "not your certificate".into()))
            }
        };
        let Ok(peer) = answer_hello(&connection, || self.hello.ours(), check).await else { return };
        let _tenancy = accepted.settle(Holder::Peer(peer.clone()));
        self.greeted.fetch_add(1, Ordering::SeqCst);
        self.peers.send_modify(|peers| peers.push(peer));
        let mut streams = tokio::task::JoinSet::new();
        while let Ok((mut send, mut recv)) = connection.accept_bi().await {
            let (this, connection) = (self.clone(), connection.clone());
            streams.spawn(async move {
                loop {
                    match next_frame(&mut recv, 100_000).await {
                        Ok(Some(frame)) => {
                            this.requests.fetch_add(1, Ordering::SeqCst);
                            match frame.as_slice() {
                                HOLD => this.release.notified().await,
                                UNTOUCHED => return drop(send.reset(CloseCode::NotProcessed.number())),
                                HANG_UP => return CloseCode::Internal.close(&connection, "hanging up"),
                                _ => {}
                            }
                            if write_frame(&mut send, &frame).await.is_err() {
                                return;
                            }
                        }
                        Ok(None) => return,
                        Err(error) => {
                            let _ = recv.stop(error.code().number());
                            return drop(send.reset(error.code().number()));
                        }
                    }
                }
            });
        }
    }
}

/// A running node.
struct Node {
    endpoint: quinn::Endpoint,
    echo: Arc<Echo>,
    stop: watch::Sender<bool>,
    run: JoinHandle<()>,
}

impl Node {
    fn start(tls: &NodeTls, version: &'static str) -> Self {
        Self::start_at(loopback(), tls, version, &EndpointSecret::generate())
    }

    fn start_at(address: SocketAddr, tls: &NodeTls, version: &'static str, secret: &EndpointSecret) -> Self {
        let server = tls.federation_server().expect("a server");
        let endpoint = endpoint::bind(address, Some(server), secret).expect("an endpoint");
        let echo = Arc::new(Echo {
            hello: TestHello { own: tls.domain().clone(), version },
            greeted: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            release: Notify::new(),
            peers: watch::channel(vec![]).0,
            counts: PortCounts::default(),
        });
        let (stop, stopped) = watch::channel(false);
        let run = tokio::spawn(accept::run(endpoint.clone(), echo.clone(), stopped, PortLimits::default()));
        Self { endpoint, echo, stop, run }
    }

    fn address(&self) -> SocketAddr {
        local(&self.endpoint)
    }

    fn greeted(&self) -> usize {
        self.echo.greeted.load(Ordering::SeqCst)
    }

    /// Waits until a peer's `hello` was answered.
    async fn until_greeted(&self) {
        self.echo.peers.subscribe().wait_for(|peers| !peers.is_empty()).await.expect("the node runs");
    }

    /// Stops the node and waits until its port is free again.
    async fn stop(self) {
        let address = self.address();
        let _ = self.stop.send(true);
        endpoint::close(&self.endpoint).await;
        self.run.await.expect("the accept loop ends");
        drop(self.endpoint);
        let freed = async {
            while std::net::UdpSocket::bind(address).is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), freed).await.expect("the port is free");
    }
}

fn pool_at(tls: &NodeTls, version: &'static str, addresses: Vec<SocketAddr>) -> PeerPool {
    let resolver = Resolver::new(&ResolverSettings { servers: vec![loopback()], ..ResolverSettings::default() })
        .expect("a resolver")
        .with_static(Service::Federation, HashMap::from([(domain("b.test"), addresses)]));
    let own = tls.domain().clone();
    let hello = Arc::new(TestHello { own: own.clone(), version });
    PeerPool::new(bind(None), tls, resolver, own, hello, on_loopback()).expect("a pool")
}

/// Everything here is on this machine.
fn on_loopback() -> DialSettings {
    DialSettings { addresses: AddressPolicy::exempting(Network::LOOPBACK), ..DialSettings::default() }
}

fn soon() -> Instant {
    Instant::now() + limits::PEER_REQUEST_TIMEOUT
}

async fn ask(pool: &PeerPool, frame: &[u8]) -> Result<Vec<u8>, PeerError> {
    pool.request(&domain("b.test"), frame, 100_000, soon()).await
}

/// The error of a first request, when both nodes use `version`s and TLS identities as given.
async fn refusal(dialling: (&NodeTls, &'static str), accepting: (&NodeTls, &'static str)) -> PeerError {
    let node = Node::start(accepting.0, accepting.1);
    let pool = pool_at(dialling.0, dialling.1, vec![node.address()]);
    let error = ask(&pool, b"x").await.expect_err("must be refused");
    assert_eq!(error.sent, Sent::NotSent, "{error}");
    assert_eq!(node.echo.requests.load(Ordering::SeqCst), 0);
    // Not stopped in good order: that would wait for the failed handshakes to drain.
    node.run.abort();
    error
}

#[tokio::test]
async fn a_good_peer_is_connected_once_and_the_connection_shared() {
    let ca = Ca::new("ca");
    let node = Node::start(&ca.node("b.test"), "1");
    let pool = pool_at(&ca.node("a.test"), "1", vec![node.address()]);
    // The first ones at once, while the dial is under way; spawned, so that their futures are seen to be Send.
    let first: Vec<_> = (0..10u8)
        .map(|index| {
            let pool = pool.clone();
            tokio::spawn(async move { ask(&pool, &[index]).await })
        })
        .collect();
    for (index, answer) in first.into_iter().enumerate() {
        assert_eq!(answer.await.expect("no panic"), Ok(vec![index as u8]));
    }
    for index in 10..100u8 {
        assert_eq!(ask(&pool, &[index]).await, Ok(vec![index]));
    }
    assert_eq!(node.greeted(), 1, "one handshake for 100 requests");
    assert_eq!(*node.echo.peers.borrow(), [domain("a.test")]);
    assert!(pool.is_up(&domain("b.test")));
    pool.close_all(CloseCode::ShuttingDown);
    assert!(!pool.is_up(&domain("b.test")));
    assert_eq!(ask(&pool, b"again").await, Ok(b"again".to_vec()), "closed connections are made anew");
    node.stop().await;
}

#[tokio::test]
async fn either_purpose_or_an_srv_name_will_do() {
    let ca = Ca::new("ca");
    let with = |purpose| Odd { purposes: vec![purpose], ..Odd::default() };
    let srv_name = Odd { srv_name: Some("_mimi-fed.b.test".into()), ..Odd::default() };
    for (ours, theirs) in [
        (with(Purpose::ServerAuth), with(Purpose::ClientAuth)),
        (with(Purpose::ClientAuth), with(Purpose::ServerAuth)),
        (Odd::default(), srv_name),
    ] {
        let names: &[&str] = if theirs.srv_name.is_some() { &[] } else { &["b.test"] };
        let node = Node::start(&ca.odd_node(names, "b.test", &theirs), "1");
        let pool = pool_at(&ca.odd_node(&["a.test"], "a.test", &ours), "1", vec![node.address()]);
        assert_eq!(ask(&pool, b"x").await, Ok(b"x".to_vec()));
        node.stop().await;
    }
}

#[tokio::test]
async fn bad_certificates_are_refused_in_both_directions() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let (a, b) = (ca.node("a.test"), ca.node("b.test"));
    let odd = |name, odd: &Odd| ca.odd_node(&[name], name, odd);
    let expired = Odd { expired: true, ..Odd::default() };
    let code_signing = Odd { purposes: vec![Purpose::CodeSigning], ..Odd::default() };
    // A node of another CA that itself trusts ours.
    let stranger = |name: &str| {
        let (chain, key) = other.leaf(&[name], &Odd::default());
        NodeTls::from_pem(&domain(name), &chain, &crate::transport::testing::pem_key(&key), &ca.pem).expect("an identity")
    };
    for (what, dialling, accepting) in [
        ("dialling with another CA", &stranger("a.test"), &b),
        ("dialling, expired", &odd("a.test", &expired), &b),
        ("dialling for code signing", &odd("a.test", &code_signing), &b),
        ("accepting with another CA", &a, &stranger("b.test")),
        ("accepting, expired", &a, &odd("b.test", &expired)),
        ("accepting for code signing", &a, &odd("b.test", &code_signing)),
        ("accepting as another domain", &a, &ca.node("c.test")),
        ("accepting with a wildcard", &a, &ca.odd_node(&["*.test", "c.test"], "c.test", &Odd::default())),
    ] {
        let error = refusal((dialling, "1"), (accepting, "1")).await;
        assert_eq!(error.why, Why::Certificate, "{what}: {error}");
    }
}

#[tokio::test]
async fn no_certificate_or_another_protocol_is_refused() {
    let ca = Ca::new("ca");
    let node = Node::start(&ca.node("b.test"), "1");
    // A client of the other port, which presents no certificate and another ALPN.
    let pin = crate::identity::tls::spki_hash(&ca.der).expect("a certificate");
    let config = crate::transport::tls::client_config(&[pin], None).expect("a client");
    let client = bind(None);
    let error = client.connect_with(config, node.address(), "b.test").expect("a dial").await.expect_err("another ALPN");
    assert_eq!(error::connection_failure(&error).0, Why::Protocol, "{error}");

    let mut bare = crate::transport::tls::bare_federation_client(&ca.der).expect("a client");
    bare.transport_config(Arc::default());
    let connection = client.connect_with(bare, node.address(), "b.test").expect("a dial").await;
    let error = match connection {
        // The refusal of a certificate shows only after the dialling side is done.
        Ok(connection) => connection.closed().await,
        Err(error) => error,
    };
    assert_eq!(error::connection_failure(&error).0, Why::Certificate, "{error}");
    assert_eq!(node.greeted(), 0);
    node.stop().await;
}

#[tokio::test]
async fn a_hello_that_does_not_fit_is_refused_by_either_side() {
    let ca = Ca::new("ca");
    let (a, b) = (ca.node("a.test"), ca.node("b.test"));
    let error = refusal((&a, "1"), (&b, "2")).await;
    assert_eq!(error.why, Why::HelloRefused, "{error}");
    assert!(error.detail.contains("we speak 2 only"), "{error}");

    // The dialling side is asked too: this node accepts anyone's hello and answers with a wrong one.
    let server = bind(Some(b.federation_server().expect("a server")));
    let pool = pool_at(&a, "1", vec![local(&server)]);
    let accept = async {
        let connection = server.accept().await.expect("an open endpoint").await.expect("a handshake");
        answer_hello(&connection, || b"1 c.test".to_vec(), |_| Ok(())).await.expect("an accepted hello");
        connection.closed().await
    };
    let (error, closed) = tokio::join!(ask(&pool, b"x"), accept);
    let error = error.expect_err("the wrong domain");
    assert_eq!((error.why, error.sent), (Why::HelloRefused, Sent::NotSent));
    assert!(closed.to_string().contains("this is c.test"), "{closed}");

    // A hello under a certificate of another domain.
    let node = Node::start(&b, "1");
    let liar = Arc::new(TestHello { own: domain("c.test"), version: "1" });
    let resolver = Resolver::new(&ResolverSettings { servers: vec![loopback()], ..ResolverSettings::default() })
        .expect("a resolver")
        .with_static(Service::Federation, HashMap::from([(domain("b.test"), vec![node.address()])]));
    let pool = PeerPool::new(bind(None), &a, resolver, domain("a.test"), liar, on_loopback()).expect("a pool");
    assert_eq!(ask(&pool, b"x").await.expect_err("a lie").why, Why::HelloRefused);
    node.stop().await;
}

#[tokio::test]
async fn frames_over_the_limit_are_refused_on_either_side() {
    let ca = Ca::new("ca");
    let node = Node::start(&ca.node("b.test"), "1");
    let pool = pool_at(&ca.node("a.test"), "1", vec![node.address()]);
    let error = ask(&pool, &vec![0; 100_001]).await.expect_err("too large for the peer");
    assert_eq!(error.why, Why::TooLarge, "{error}");
    let error = pool.request(&domain("b.test"), b"12345", 4, soon()).await.expect_err("too large an answer");
    assert_eq!((error.why, error.sent), (Why::TooLarge, Sent::OutcomeUnknown));
    let error = ask(&pool, &vec![0; limits::FRAME_BYTES_MAX + 1]).await.expect_err("too large for anyone");
    assert_eq!((error.why, error.sent), (Why::TooLarge, Sent::NotSent));
    assert_eq!(ask(&pool, b"x").await, Ok(b"x".to_vec()), "the connection has survived all that");
    assert_eq!(node.greeted(), 1);
    node.stop().await;
}

#[tokio::test]
async fn a_peer_that_is_down_is_backed_off_from_and_found_again_after_its_restart() {
    let ca = Ca::new("ca");
    let b = ca.node("b.test");
    let secret = EndpointSecret::generate();
    let node = Node::start_at(own_loopback(3), &b, "1", &secret);
    let address = node.address();
    let pool = pool_at(&ca.node("a.test"), "1", vec![address]);
    assert_eq!(ask(&pool, b"x").await, Ok(b"x".to_vec()));
    node.stop().await;

    // Nobody answers now. The address is left without a socket, so the dial ends by its time-out.
    let error = ask(&pool, b"x").await.expect_err("nobody is there");
    assert_eq!((error.why, error.sent), (Why::Unreachable, Sent::NotSent));
    let error = ask(&pool, b"x").await.expect_err("backing off");
    assert!(matches!(&error.why, Why::BackingOff { cause, .. } if **cause == Why::Unreachable), "{error}");

    let node = Node::start_at(address, &b, "1", &secret);
    pool.wait_until_ready(&domain("b.test")).await;
    assert_eq!(ask(&pool, b"x").await, Ok(b"x".to_vec()));
    node.stop().await;
}

#[tokio::test]
async fn a_peer_that_restarts_quickly_costs_no_request() {
    let ca = Ca::new("ca");
    let (b, secret) = (ca.node("b.test"), EndpointSecret::generate());
    let node = Node::start_at(own_loopback(4), &b, "1", &secret);
    let address = node.address();
    let pool = pool_at(&ca.node("a.test"), "1", vec![address]);
    assert_eq!(ask(&pool, b"x").await, Ok(b"x".to_vec()));
    node.stop().await;
    let node = Node::start_at(address, &b, "1", &secret);
    assert_eq!(ask(&pool, b"x").await, Ok(b"x".to_vec()), "the lost connection is replaced at once");
    node.stop().await;
}

#[tokio::test]
async fn inbound_contact_and_wake_shorten_a_back_off() {
    let ca = Ca::new("ca");
    let b = ca.node("b.test");
    // Many failures, so that the back-off is far longer than the test.
    let node = Node::start_at(own_loopback(5), &b, "2", &EndpointSecret::generate());
    let address = node.address();
    let pool = pool_at(&ca.node("a.test"), "1", vec![address]);
    let peer = domain("b.test");
    let mut until = None;
    for _ in 0..6 {
        assert_eq!(ask(&pool, b"x").await.expect_err("another version").why, Why::HelloRefused);
        let Why::BackingOff { until: closed, .. } = ask(&pool, b"x").await.expect_err("backing off").why else {
            unreachable!("nobody tries twice")
        };
        assert!(Some(closed) > until);
        until = Some(closed);
        pool.wake(&peer);
    }
    assert_eq!(ask(&pool, b"x").await.expect_err("another version").why, Why::HelloRefused);
    node.stop().await;
    let _node = Node::start_at(address, &b, "1", &EndpointSecret::generate());

    let waiting = tokio::spawn({
        let (pool, peer) = (pool.clone(), peer.clone());
        async move { pool.wait_until_ready(&peer).await }
    });
    assert!(matches!(ask(&pool, b"x").await.expect_err("backing off").why, Why::BackingOff { .. }));
    pool.inbound_contact(&peer);
    tokio::time::timeout(Duration::from_secs(5), waiting).await.expect("told at once").expect("no panic");
    assert_eq!(ask(&pool, b"x").await, Ok(b"x".to_vec()));
}

#[tokio::test]
async fn a_timed_out_request_makes_its_connection_suspect_unless_others_are_answered() {
    let ca = Ca::new("ca");
    let node = Node::start(&ca.node("b.test"), "1");
    let pool = pool_at(&ca.node("a.test"), "1", vec![node.address()]);
    let peer = domain("b.test");
    assert_eq!(ask(&pool, b"x").await, Ok(b"x".to_vec()));
    let short = || Instant::now() + Duration::from_secs(1);

    let (held, other) = tokio::join!(pool.request(&peer, HOLD, 9, short()), ask(&pool, b"y"));
    let held = held.expect_err("held");
    assert_eq!((held.why, held.sent), (Why::TimedOut, Sent::OutcomeUnknown));
    assert_eq!(other, Ok(b"y".to_vec()));
    assert!(pool.is_up(&peer), "the peer answers others");

    let held = pool.request(&peer, HOLD, 9, short()).await.expect_err("held");
    assert_eq!(held.sent, Sent::OutcomeUnknown);
    assert!(!pool.is_up(&peer));
    assert_eq!(ask(&pool, b"z").await, Ok(b"z".to_vec()));
    assert_eq!(node.greeted(), 2);
    node.echo.release.notify_waiters();
    node.stop().await;
}

#[tokio::test]
async fn what_was_sent_is_told() {
    let ca = Ca::new("ca");
    let node = Node::start(&ca.node("b.test"), "1");
    let pool = pool_at(&ca.node("a.test"), "1", vec![node.address()]);
    let error = ask(&pool, UNTOUCHED).await.expect_err("not processed");
    assert_eq!((error.why, error.sent), (Why::Closed, Sent::NotSent));
    assert_eq!(ask(&pool, b"x").await, Ok(b"x".to_vec()));
    let error = ask(&pool, HANG_UP).await.expect_err("hung up");
    assert_eq!((error.why, error.sent), (Why::Closed, Sent::OutcomeUnknown));
    assert_eq!(ask(&pool, b"x").await, Ok(b"x".to_vec()), "a connection that was of use is replaced at once");
    // One that was lost before its first answer is a failed attempt: nobody dials in a loop.
    pool.close_all(CloseCode::Done);
    let error = ask(&pool, HANG_UP).await.expect_err("hung up");
    assert_eq!(error.sent, Sent::OutcomeUnknown);
    assert!(matches!(ask(&pool, b"x").await.expect_err("backing off").why, Why::BackingOff { .. }));
    node.stop().await;
}

#[tokio::test]
async fn a_lane_stream_carries_many_frames_in_order() {
    let ca = Ca::new("ca");
    let node = Node::start(&ca.node("b.test"), "1");
    let pool = pool_at(&ca.node("a.test"), "1", vec![node.address()]);
    let PeerStream { mut sender, mut receiver } = pool.open_stream(&domain("b.test"), soon()).await.expect("a stream");
    let write = async {
        for index in 0..50u8 {
            sender.write(&[index; 1000], soon()).await.expect("room");
        }
        sender.finish();
    };
    let read = async {
        for index in 0..50u8 {
            assert_eq!(receiver.read(9_999, soon()).await, Ok(vec![index; 1000]));
        }
        assert_eq!(receiver.read(9_999, soon()).await.expect_err("the end").why, Why::Closed);
    };
    tokio::join!(write, read);
    node.stop().await;
}

#[tokio::test]
async fn a_silent_address_does_not_hide_the_next_one() {
    let ca = Ca::new("ca");
    let node = Node::start(&ca.node("b.test"), "1");
    // Bound and never read: packets vanish.
    let silent = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    let addresses = vec![silent.local_addr().expect("an address"), node.address()];
    let pool = pool_at(&ca.node("a.test"), "1", addresses);
    let begun = Instant::now();
    assert_eq!(ask(&pool, b"x").await, Ok(b"x".to_vec()));
    assert!(begun.elapsed() < limits::DIAL_ADDRESS_TIMEOUT, "the second was tried beside the first");
    node.stop().await;
}

#[tokio::test]
async fn the_own_domain_is_no_peer_and_a_dead_name_server_is_not_waited_for() {
    let ca = Ca::new("ca");
    let silent = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    let resolver = Resolver::new(&ResolverSettings {
        servers: vec![silent.local_addr().expect("an address")],
        ..ResolverSettings::default()
    })
    .expect("one");
    let (tls, own) = (ca.node("a.test"), domain("a.test"));
    let hello = Arc::new(TestHello { own: own.clone(), version: "1" });
    let pool = PeerPool::new(bind(None), &tls, resolver, own.clone(), hello, on_loopback()).expect("a pool");
    assert_eq!(pool.request(&own, b"x", 9, soon()).await.expect_err("not a peer").why, Why::Local);
    let begun = Instant::now();
    let error = pool.request(&domain("b.test"), b"x", 9, soon()).await.expect_err("no DNS");
    assert_eq!((error.why.clone(), error.sent), (Why::DnsTimedOut, Sent::NotSent), "{error}");
    assert!(begun.elapsed() < limits::DNS_TIMEOUT * 2);
}

#[tokio::test]
async fn stopping_lets_handlers_finish_and_tells_peers() {
    let ca = Ca::new("ca");
    let node = Node::start(&ca.node("b.test"), "1");
    let pool = pool_at(&ca.node("a.test"), "1", vec![node.address()]);
    let held = tokio::spawn({
        let pool = pool.clone();
        async move { ask(&pool, HOLD).await }
    });
    node.until_greeted().await;
    let _ = node.stop.send(true);
    // While draining, nobody new is let in, and the one inside is still served.
    let late = pool_at(&ca.node("c.test"), "1", vec![node.address()]);
    assert_eq!(ask(&late, b"x").await.expect_err("stopping").why, Why::Refused);
    node.echo.release.notify_one();
    assert_eq!(held.await.expect("no panic"), Ok(HOLD.to_vec()));
    pool.close_all(CloseCode::Done);
    tokio::time::timeout(limits::SHUTDOWN_TIMEOUT / 2, node.run).await.expect("drained").expect("no panic");
}

#[tokio::test]
async fn a_dial_that_is_called_off_is_made_anew_by_the_next_request() {
    let ca = Ca::new("ca");
    let node = Node::start(&ca.node("b.test"), "1");
    let silent = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    silent.set_nonblocking(true).expect("a socket");
    let silent = tokio::net::UdpSocket::from_std(silent).expect("a socket");
    let addresses = vec![silent.local_addr().expect("an address"), node.address()];
    let pool = pool_at(&ca.node("a.test"), "1", addresses);
    let call_off = async {
        silent.readable().await.expect("a first packet");
        pool.close_all(CloseCode::Done);
    };
    let (outcome, ()) = tokio::join!(ask(&pool, b"x"), call_off);
    let error = outcome.expect_err("called off");
    assert_eq!((error.why, error.sent), (Why::Closed, Sent::NotSent));
    assert_eq!(ask(&pool, b"x").await, Ok(b"x".to_vec()));
    node.stop().await;
}
