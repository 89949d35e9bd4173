#![allow(clippy::unwrap_used)]

use super::*;

const LOCALHOST: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn milliseconds(range: Range<u64>) -> Range<Duration> {
    Duration::from_millis(range.start)..Duration::from_millis(range.end)
}

fn rough() -> FaultPlan {
    FaultPlan { loss: 0.1, duplicate: 0.05, reorder: 0.2, delay: milliseconds(0..1), reorder_delay: Duration::from_millis(3) }
}

/// Waits until `condition` holds, at most half a minute.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The counters that `fate` alone predicts for the first `count` datagrams to the target.
fn predicted(seed: u64, plan: &FaultPlan, count: u64) -> Counters {
    let mut counters = Counters::default();
    for number in 0..count {
        let copies = fate(seed, Direction::ToTarget, number, plan).copies;
        counters.dropped += u64::from(copies.is_empty());
        counters.forwarded += u64::from(!copies.is_empty());
        counters.duplicated += u64::from(copies.len() == 2);
        counters.delayed += copies.iter().filter(|delay| !delay.is_zero()).count() as u64;
    }
    counters
}

#[test]
fn a_fate_depends_on_seed_direction_and_number_only() {
    let fates = |seed, direction| (0..500).map(|number| fate(seed, direction, number, &rough())).collect::<Vec<_>>();
    let forward = fates(1, Direction::ToTarget);
    assert_eq!(forward, fates(1, Direction::ToTarget));
    assert_ne!(forward, fates(2, Direction::ToTarget));
    assert_ne!(forward, fates(1, Direction::ToClient));
    // Asked in another order, the answers are the same.
    let backwards: Vec<Fate> = (0..500).rev().map(|number| fate(1, Direction::ToTarget, number, &rough())).collect();
    assert_eq!(forward, backwards.into_iter().rev().collect::<Vec<_>>());
    // More loss loses more and leaves the rest alone.
    let lossy = FaultPlan { loss: 0.5, ..rough() };
    for (number, before) in forward.iter().enumerate() {
        let after = fate(1, Direction::ToTarget, number as u64, &lossy);
        assert!(after.copies.is_empty() || after == *before);
    }
}

#[test]
fn fates_are_as_frequent_as_the_plan_says() {
    let plan = FaultPlan { delay: milliseconds(10..20), reorder_delay: Duration::from_millis(100), ..rough() };
    let fates: Vec<Fate> = (0..10_000).map(|number| fate(3, Direction::ToTarget, number, &plan)).collect();
    let copies = || fates.iter().flat_map(|fate| &fate.copies);
    let near = |count: usize, of: usize, probability: f64| {
        let (share, deviation) = (count as f64 / of as f64, (probability * (1.0 - probability) / of as f64).sqrt());
        assert!((share - probability).abs() < 4.0 * deviation, "{share} is not near {probability}");
    };
    let lost = fates.iter().filter(|fate| fate.copies.is_empty()).count();
    near(lost, fates.len(), 0.1);
    near(fates.iter().filter(|fate| fate.copies.len() == 2).count(), fates.len() - lost, 0.05);
    near(copies().filter(|delay| **delay >= Duration::from_millis(100)).count(), copies().count(), 0.2);
    near(copies().filter(|delay| delay.as_millis() % 100 < 15).count(), copies().count(), 0.5);
    for delay in copies() {
        let base = if delay.as_millis() >= 100 { *delay - Duration::from_millis(100) } else { *delay };
        assert!((10..20).contains(&base.as_millis()), "{delay:?}");
    }
    assert!((0..1000).all(|number| fate(3, Direction::ToClient, number, &FaultPlan::none()).copies == [Duration::ZERO]));
}

#[tokio::test]
async fn the_counters_of_a_link_are_those_of_its_decisions() {
    let (seed, count) = (11, 4_000);
    println!("seed {seed}");
    let target = UdpSocket::bind(LOCALHOST).await.unwrap();
    let proxy = FaultProxy::start(LOCALHOST, target.local_addr().unwrap(), rough(), seed).await.unwrap();
    let client = UdpSocket::bind(LOCALHOST).await.unwrap();
    let expected = predicted(seed, &rough(), count);
    let sending = async {
        for number in 0..count {
            client.send_to(&number.to_be_bytes(), proxy.local_addr()).await.unwrap();
            // In small windows, so that no socket buffer overflows: loopback must lose nothing of its own.
            if number % 64 == 63 {
                let settled = || proxy.counters().forwarded + proxy.counters().dropped == number + 1;
                eventually("every datagram has met its fate", settled).await;
            }
        }
        eventually("all copies are out", || proxy.counters() == expected).await;
    };
    let receiving = async {
        let mut numbers = Vec::new();
        let mut buffer = [0; 8];
        while (numbers.len() as u64) < expected.forwarded + expected.duplicated {
            target.recv_from(&mut buffer).await.unwrap();
            numbers.push(u64::from_be_bytes(buffer));
        }
        numbers
    };
    let ((), mut numbers) = tokio::join!(sending, receiving);
    assert!(numbers.windows(2).any(|pair| pair[0] > pair[1]), "nothing was overtaken");
    numbers.sort_unstable();
    let wanted: Vec<u64> =
        (0..count).flat_map(|number| vec![number; fate(seed, Direction::ToTarget, number, &rough()).copies.len()]).collect();
    assert_eq!(numbers, wanted);
}

/// Answers every datagram with its own content and the sender's address.
async fn echo(socket: UdpSocket) {
    let mut buffer = [0; 100];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        let answer = [&buffer[..length], from.to_string().as_bytes()].concat();
        if socket.send_to(&answer, from).await.is_err() {
            return;
        }
    }
}

async fn ask(client: &UdpSocket, proxy: &FaultProxy, question: &[u8]) -> String {
    let mut buffer = [0; 100];
    client.send_to(question, proxy.local_addr()).await.unwrap();
    let (length, from) = client.recv_from(&mut buffer).await.unwrap();
    assert_eq!(from, proxy.local_addr());
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

#[tokio::test]
async fn the_target_sees_each_client_at_an_address_of_its_own() {
    let target = UdpSocket::bind(LOCALHOST).await.unwrap();
    let proxy = FaultProxy::start(LOCALHOST, target.local_addr().unwrap(), FaultPlan::none(), 1).await.unwrap();
    let echo = tokio::spawn(echo(target));
    let (first, second) = (UdpSocket::bind(LOCALHOST).await.unwrap(), UdpSocket::bind(LOCALHOST).await.unwrap());
    let (as_first, as_second) = (ask(&first, &proxy, b"x").await, ask(&second, &proxy, b"x").await);
    assert_ne!(as_first, as_second);
    assert_eq!(as_first, ask(&first, &proxy, b"x").await, "an address is kept");
    assert_eq!(proxy.counters(), Counters { forwarded: 6, ..Counters::default() });
    echo.abort();
}

#[tokio::test]
async fn more_clients_than_it_has_room_for_are_served_in_turn() {
    let target = UdpSocket::bind(LOCALHOST).await.unwrap();
    let proxy = FaultProxy::start(LOCALHOST, target.local_addr().unwrap(), FaultPlan::none(), 1).await.unwrap();
    let echo = tokio::spawn(echo(target));
    let first = UdpSocket::bind(LOCALHOST).await.unwrap();
    ask(&first, &proxy, b"x").await;
    for _ in 0..PEERS_MAX {
        ask(&UdpSocket::bind(LOCALHOST).await.unwrap(), &proxy, b"x").await;
    }
    ask(&first, &proxy, b"x").await;
    echo.abort();
}

#[tokio::test]
async fn a_cut_link_loses_everything_until_it_is_restored() {
    let target = UdpSocket::bind(LOCALHOST).await.unwrap();
    let proxy = FaultProxy::start(LOCALHOST, target.local_addr().unwrap(), FaultPlan::none(), 1).await.unwrap();
    let echo = tokio::spawn(echo(target));
    let client = UdpSocket::bind(LOCALHOST).await.unwrap();
    ask(&client, &proxy, b"a").await;
    proxy.cut();
    client.send_to(b"b", proxy.local_addr()).await.unwrap();
    eventually("what was sent is lost", || proxy.counters().dropped == 1).await;
    proxy.restore();
    assert!(ask(&client, &proxy, b"c").await.starts_with('c'));
    proxy.set_plan(FaultPlan { loss: 1.0, ..FaultPlan::none() });
    client.send_to(b"d", proxy.local_addr()).await.unwrap();
    eventually("the new plan counts", || proxy.counters().dropped == 2).await;
    assert_eq!(proxy.counters().forwarded, 4);
    echo.abort();
}

/// A socket on a port that the system gives to nobody who asks for any, so that no other test takes it once it is free.
async fn on_a_reserved_port() -> UdpSocket {
    loop {
        if let Ok(socket) = UdpSocket::bind((LOCALHOST.ip(), rand::random_range(10_000..30_000))).await {
            return socket;
        }
    }
}

#[tokio::test]
async fn what_waits_while_the_link_is_cut_never_arrives() {
    let target = UdpSocket::bind(LOCALHOST).await.unwrap();
    let slow = FaultPlan { delay: milliseconds(100..101), ..FaultPlan::none() };
    let proxy = FaultProxy::start(LOCALHOST, target.local_addr().unwrap(), slow, 1).await.unwrap();
    let client = UdpSocket::bind(LOCALHOST).await.unwrap();
    client.send_to(b"x", proxy.local_addr()).await.unwrap();
    eventually("it waits", || proxy.counters().delayed == 1).await;
    proxy.cut();
    proxy.cut();
    proxy.restore();
    client.send_to(b"y", proxy.local_addr()).await.unwrap();
    eventually("only the second passes", || proxy.counters().forwarded == 1).await;
    assert_eq!(proxy.counters().dropped, 1);
    let mut buffer = [0; 1];
    target.recv_from(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"y");
}

#[tokio::test]
async fn an_absent_target_does_not_stop_the_link() {
    let target = on_a_reserved_port().await;
    let address = target.local_addr().unwrap();
    drop(target);
    let proxy = FaultProxy::start(LOCALHOST, address, FaultPlan::none(), 1).await.unwrap();
    let client = UdpSocket::bind(LOCALHOST).await.unwrap();
    for number in 1..=3 {
        client.send_to(b"x", proxy.local_addr()).await.unwrap();
        eventually("it was passed on", || proxy.counters().forwarded == number).await;
    }
    let echo = tokio::spawn(echo(UdpSocket::bind(address).await.unwrap()));
    // The first may still meet the error that the last one left behind.
    let mut buffer = [0; 100];
    let answered = async {
        loop {
            client.send_to(b"x", proxy.local_addr()).await.unwrap();
            let answer = tokio::time::timeout(Duration::from_millis(200), client.recv_from(&mut buffer));
            if answer.await.is_ok() {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), answered).await.unwrap();
    echo.abort();
}

#[tokio::test]
async fn nothing_outlives_the_handle() {
    let target = UdpSocket::bind(LOCALHOST).await.unwrap();
    let address = on_a_reserved_port().await.local_addr().unwrap();
    let proxy = FaultProxy::start(address, target.local_addr().unwrap(), FaultPlan::none(), 1).await.unwrap();
    let client = UdpSocket::bind(LOCALHOST).await.unwrap();
    client.send_to(b"x", address).await.unwrap();
    eventually("it was passed on", || proxy.counters().forwarded == 1).await;
    proxy.stop().await;
    UdpSocket::bind(address).await.expect("the port is free at once");

    let proxy = FaultProxy::start(address, target.local_addr().unwrap(), FaultPlan::none(), 1).await.unwrap();
    let tasks = tokio::runtime::Handle::current().metrics();
    drop(proxy);
    eventually("no task is left", || tasks.num_alive_tasks() == 0).await;
}
