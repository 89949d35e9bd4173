//! Who is not dialled, and who is dialled again: gates, addresses and budgets, over real sockets.

use super::*;

/// A UDP port at which nobody answers.
fn silent() -> std::net::UdpSocket {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    socket.set_nonblocking(true).expect("a socket");
    socket
}

/// A pool of a.test that reaches each domain at its addresses, and dials where `settings` allow.
fn pool_of(ca: &Ca, addresses: HashMap<Domain, Vec<SocketAddr>>, settings: DialSettings) -> PeerPool {
    let servers = ResolverSettings { servers: vec![loopback()], ..ResolverSettings::default() };
    let resolver = Resolver::new(&servers).expect("a resolver").with_static(Service::Federation, addresses);
    let (tls, own) = (ca.node("a.test"), domain("a.test"));
    let hello = Arc::new(TestHello { own: own.clone(), version: "1" });
    PeerPool::new(bind(None), &tls, resolver, own, hello, settings).expect("a pool")
}

#[tokio::test]
async fn contact_from_a_peer_probes_it_once_even_if_nothing_waits() {
    let ca = Ca::new("ca");
    let b = ca.node("b.test");
    let node = Node::start_at(own_loopback(6), &b, "2", &EndpointSecret::generate());
    let address = node.address();
    let pool = pool_at(&ca.node("a.test"), "1", vec![address]);
    let peer = domain("b.test");
    pool.inbound_contact(&peer);
    assert_eq!(pool.status(&peer), None, "who was never asked for is not probed");
    assert_eq!(ask(&pool, b"x").await.expect_err("another version").why, Why::HelloRefused);
    let failed = pool.status(&peer).expect("known").gate;
    assert_eq!((failed.failures, failed.last_failure.map(|(why, _)| why)), (1, Some(Why::HelloRefused)));

    // The probe fails like the request before it; the back-off is as it was.
    pool.inbound_contact(&peer);
    assert_eq!(pool.status(&peer).expect("known").gate.state, GateState::Probing);
    pool.wait_until_ready(&peer).await;
    let again = pool.status(&peer).expect("known").gate;
    assert!(matches!(again.state, GateState::Probing | GateState::BackingOff { .. }), "{again:?}");
    node.stop().await;

    // A node of the right version is found with nothing but its contact.
    let node = Node::start_at(address, &b, "1", &EndpointSecret::generate());
    let found = async {
        while pool.status(&peer).is_none_or(|status| status.connected.is_none()) {
            pool.inbound_contact(&peer);
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), found).await.expect("found");
    let status = pool.status(&peer).expect("known");
    assert_eq!((status.gate.state, status.gate.failures, status.connected), (GateState::Up, 0, Some(address)));
    node.stop().await;
}

fn held() -> PeerOverride {
    PeerOverride { hold: Some(true), reason: Some("maintenance".to_owned()), ..PeerOverride::default() }
}

fn denied() -> PeerOverride {
    PeerOverride { access: Some(policy::Access::Deny), ..PeerOverride::default() }
}

/// Has something else said of a peer from now on.
fn say(pool: &PeerPool, peer: &Domain, said: PeerOverride) {
    pool.set_policies(pool.policies().with_override(peer, said));
}

#[tokio::test]
async fn who_is_held_or_denied_is_left_alone_until_told() {
    let ca = Ca::new("ca");
    let node = Node::start(&ca.node("b.test"), "1");
    let pool = pool_at(&ca.node("a.test"), "1", vec![node.address()]);
    let peer = domain("b.test");
    assert_eq!(ask(&pool, b"x").await, Ok(b"x".to_vec()));
    say(&pool, &peer, held());
    assert!(!pool.is_up(&peer), "its connection is closed");
    let error = ask(&pool, b"x").await.expect_err("held");
    assert_eq!((error.why, error.sent), (Why::Held, Sent::NotSent));
    pool.inbound_contact(&peer);
    pool.flush(Some(&peer));
    assert_eq!(pool.status(&peer).expect("known").gate.state, GateState::Held);

    let waiting = tokio::spawn({
        let (pool, peer) = (pool.clone(), peer.clone());
        async move { pool.wait_until_ready(&peer).await }
    });
    say(&pool, &peer, PeerOverride::default());
    waiting.await.expect("told");
    assert_eq!(ask(&pool, b"x").await, Ok(b"x".to_vec()));

    // One that is dialled while the operator decides is hung up on.
    pool.close_all(CloseCode::Done);
    let (outcome, ()) = tokio::join!(ask(&pool, b"x"), async {
        while pool.status(&peer).is_none_or(|status| status.connected.is_some()) {
            tokio::task::yield_now().await;
        }
        say(&pool, &peer, denied());
    });
    let error = outcome.expect_err("denied");
    assert!(matches!(error.why, Why::DeniedHere | Why::Closed), "{error}");
    assert!(!pool.is_up(&peer));
    assert_eq!(ask(&pool, b"x").await.expect_err("denied").why, Why::DeniedHere);
    node.stop().await;
}

#[tokio::test]
async fn policies_close_gates_before_anything_is_asked() {
    let ca = Ca::new("ca");
    let node = Node::start(&ca.node("b.test"), "1");
    let places = HashMap::from([(domain("b.test"), vec![node.address()])]);
    let listed =
        |mode, said| PeerPolicies::new(mode, limits::Limits::default().per_peer(), BTreeMap::from([(domain("b.test"), said)]));
    for (mode, said, why) in [
        (policy::Mode::AllowList, PeerOverride { wildcard: Some(true), ..PeerOverride::default() }, Some(Why::DeniedHere)),
        (policy::Mode::AllowList, PeerOverride { access: Some(policy::Access::Allow), ..PeerOverride::default() }, None),
        (policy::Mode::DenyList, denied(), Some(Why::DeniedHere)),
        (policy::Mode::Open, held(), Some(Why::Held)),
    ] {
        let pool = pool_of(&ca, places.clone(), DialSettings { policies: listed(mode, said), ..on_loopback() });
        let error = ask(&pool, b"x").await.err();
        assert_eq!(error.as_ref().map(|error| (&error.why, error.sent)), why.as_ref().map(|why| (why, Sent::NotSent)));
    }
    assert_eq!(node.echo.greeted.load(Ordering::SeqCst), 1, "only who may was greeted");
    node.stop().await;
}

#[tokio::test]
async fn a_flush_finds_a_peer_elsewhere_and_loses_no_request_under_way() {
    let ca = Ca::new("ca");
    let tls = ca.node("b.test");
    let (old, peer) = (Node::start(&tls, "1"), domain("b.test"));
    let pool = pool_of(&ca, HashMap::new(), on_loopback());
    let at = |address| PeerOverride { addresses: Some(vec![address]), ..PeerOverride::default() };
    say(&pool, &peer, at(old.address()));
    let mut stream = pool.open_stream(&peer, soon()).await.expect("connected");
    stream.sender.write(b"one", soon()).await.expect("sent");
    assert_eq!(stream.receiver.read(9, soon()).await, Ok(b"one".to_vec()));
    let under_way = tokio::spawn({
        let pool = pool.clone();
        async move { ask(&pool, HOLD).await }
    });
    while old.echo.requests.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }

    // It has moved; the old node still answers, as one that was restored elsewhere would.
    let new = Node::start_at(own_loopback(8), &tls, "1", &EndpointSecret::generate());
    let here = new.address();
    say(&pool, &peer, at(here));
    assert_eq!(pool.status(&peer).expect("known").connected, None);
    let error = stream.sender.write(b"two", soon()).await.expect_err("another connection is used");
    assert_eq!((error.why, error.sent), (Why::Closed, Sent::NotSent));
    assert_eq!(ask(&pool, b"x").await, Ok(b"x".to_vec()));
    assert_eq!(pool.status(&peer).expect("known").connected, Some(here), "found at once");
    assert!(!under_way.is_finished());
    old.echo.release.notify_one();
    assert_eq!(under_way.await.expect("no panic"), Ok(HOLD.to_vec()), "what was under way is answered");
    drop(stream);

    // The same by hand, with nothing changed: the next one dials, and the connection before it ends.
    pool.flush(None);
    assert_eq!(ask(&pool, b"x").await, Ok(b"x".to_vec()));
    assert_eq!(new.echo.greeted.load(Ordering::SeqCst), 2);
    let drained = async {
        while new.endpoint.open_connections() > 1 || old.endpoint.open_connections() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), drained).await.expect("nobody keeps what is replaced");
    old.stop().await;
    new.stop().await;
}

#[tokio::test]
async fn what_was_being_dialled_before_a_flush_serves_who_waited_and_nobody_after() {
    let ca = Ca::new("ca");
    let (node, first) = (Node::start(&ca.node("b.test"), "1"), silent());
    let first = tokio::net::UdpSocket::from_std(first).expect("a socket");
    let places = vec![first.local_addr().expect("an address"), node.address()];
    let pool = pool_of(&ca, HashMap::from([(domain("b.test"), places)]), on_loopback());
    let flush = async {
        first.readable().await.expect("a first packet");
        pool.flush(None);
    };
    let (outcome, ()) = tokio::join!(ask(&pool, b"x"), flush);
    assert_eq!(outcome, Ok(b"x".to_vec()));
    assert_eq!(pool.status(&domain("b.test")).expect("known").connected, None, "it leads to where b was before");
    assert_eq!(ask(&pool, b"x").await, Ok(b"x".to_vec()));
    assert_eq!(node.echo.greeted.load(Ordering::SeqCst), 2);
    node.stop().await;
}

#[tokio::test]
async fn what_is_on_the_deny_list_gets_no_packet_unless_exempted() {
    let ca = Ca::new("ca");
    let socket = silent();
    let address = socket.local_addr().expect("an address");
    let places = HashMap::from(["b.test", "c.test"].map(|name| (domain(name), vec![address])));
    let addresses = AddressPolicy::default().and_for(&domain("c.test"), Network::LOOPBACK);
    let pool = pool_of(&ca, places, DialSettings { addresses, ..DialSettings::default() });
    let error = pool.request(&domain("b.test"), b"x", 9, soon()).await.expect_err("forbidden");
    assert_eq!((error.why.clone(), error.sent), (Why::ForbiddenAddress, Sent::NotSent), "{error}");
    assert!(error.detail.contains("127.0.0.1 is loopback"), "{error}");
    assert_eq!(socket.recv(&mut [0; 9]).expect_err("nothing came").kind(), std::io::ErrorKind::WouldBlock);
    let error = pool.request(&domain("c.test"), b"x", 9, soon()).await.expect_err("nobody answers");
    assert_eq!(error.why, Why::Unreachable, "{error}");
    assert!(socket.recv(&mut [0; 2_048]).is_ok(), "the control");
}

#[tokio::test]
async fn many_domains_at_one_address_share_its_budget() {
    let ca = Ca::new("ca");
    let socket = silent();
    let address = socket.local_addr().expect("an address");
    let domains: Vec<Domain> = (0..3 * limits::DIAL_BUDGET).map(|number| domain(&format!("d{number}.test"))).collect();
    let places = domains.iter().map(|name| (name.clone(), vec![address])).collect();
    let pool = pool_of(&ca, places, on_loopback());
    let asked: Vec<_> = domains
        .into_iter()
        .map(|name| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.request(&name, b"x", 9, soon()).await.expect_err("nobody answers") })
        })
        .collect();
    let mut spared = 0;
    for asked in asked {
        let error = asked.await.expect("no panic");
        assert_eq!(error.why, Why::Unreachable, "{error}");
        spared += u32::from(error.detail.contains("too often"));
    }
    // While they are asked, some seconds' worth is earned back.
    assert!((limits::DIAL_BUDGET..=2 * limits::DIAL_BUDGET).contains(&spared), "{spared}");
}

#[tokio::test]
async fn domains_that_nobody_has_reached_keep_no_known_one_from_being_dialled() {
    let ca = Ca::new("ca");
    let node = Node::start(&ca.node("b.test"), "1");
    // Each at an address of its own, for an address has a budget.
    let traps: Vec<_> = (0..2 * limits::DIALS_AT_ONCE_MAX)
        .map(|number| {
            let last = u8::try_from(number % 200 + 10).expect("small");
            let socket = std::net::UdpSocket::bind((Ipv4Addr::new(127, 9, u8::try_from(number / 200).expect("small"), last), 0));
            let socket = socket.expect("a socket");
            socket.set_nonblocking(true).expect("a socket");
            socket
        })
        .collect();
    let name = |number: usize| domain(&format!("d{number}.test"));
    let places = traps.iter().enumerate().map(|(number, trap)| (name(number), vec![trap.local_addr().expect("an address")]));
    let mut places: HashMap<_, _> = places.collect();
    places.insert(domain("b.test"), vec![node.address()]);
    let pool = pool_of(&ca, places, on_loopback());
    assert_eq!(ask(&pool, b"x").await, Ok(b"x".to_vec()));
    pool.close(&domain("b.test"), CloseCode::Done);

    let begun = Instant::now();
    let asked: Vec<_> = (0..traps.len())
        .map(|number| {
            let (pool, name) = (pool.clone(), name(number));
            tokio::spawn(async move { pool.request(&name, b"x", 9, soon()).await.expect_err("nobody answers") })
        })
        .collect();
    let dialled = || traps.iter().filter(|trap| trap.peek_from(&mut [0; 1]).is_ok()).count();
    while dialled() < limits::DIALS_AT_ONCE_MAX && begun.elapsed() < limits::DIAL_ADDRESS_TIMEOUT {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(ask(&pool, b"x").await, Ok(b"x".to_vec()), "whatever others there are");
    let dialled = dialled();
    if begun.elapsed() < limits::DIAL_ADDRESS_TIMEOUT {
        assert_eq!(dialled, limits::DIALS_AT_ONCE_MAX, "the others wait");
    }
    // In the end each has its turn, or is given up by whoever asked.
    for asked in asked {
        let error = asked.await.expect("no panic");
        assert!(matches!(error.why, Why::Unreachable | Why::TimedOut) && error.sent == Sent::NotSent, "{error}");
    }
    node.stop().await;
}

#[tokio::test]
async fn a_family_that_does_not_work_does_not_hide_the_other() {
    let Ok(silent6) = std::net::UdpSocket::bind("[::1]:0") else {
        assert!(std::env::var_os("MIMI_TEST_TOOLS").is_none_or(|tools| tools != "required"), "needs IPv6");
        eprintln!("skipped: needs IPv6");
        return;
    };
    silent6.set_nonblocking(true).expect("a socket");
    let ca = Ca::new("ca");
    let node = Node::start(&ca.node("b.test"), "1");
    let places = vec![silent6.local_addr().expect("an address"), node.address()];
    // From a socket for both families, IPv6 is tried and silent; from one for IPv4 it cannot even be tried.
    for (from, came) in [("[::]:0", true), ("127.0.0.1:0", false)] {
        let dialling = endpoint::bind(from.parse().expect("an address"), None, &EndpointSecret::generate()).expect("an endpoint");
        let servers = ResolverSettings { servers: vec![loopback()], ..ResolverSettings::default() };
        let resolver = Resolver::new(&servers)
            .expect("a resolver")
            .with_static(Service::Federation, HashMap::from([(domain("b.test"), places.clone())]));
        let (tls, own) = (ca.node("a.test"), domain("a.test"));
        let hello = Arc::new(TestHello { own: own.clone(), version: "1" });
        let pool = PeerPool::new(dialling, &tls, resolver, own, hello, on_loopback()).expect("a pool");
        let begun = Instant::now();
        assert_eq!(ask(&pool, b"x").await, Ok(b"x".to_vec()), "{from}");
        assert!(begun.elapsed() < limits::DIAL_ADDRESS_TIMEOUT, "{from}: beside the other, not after it");
        assert_eq!(silent6.recv(&mut [0; 2_048]).is_ok(), came, "{from}");
        while silent6.recv(&mut [0; 2_048]).is_ok() {}
    }
    node.stop().await;
}
