//! Against a name server of a few lines, over UDP.

use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

use super::*;
use crate::transport::testing::domain;

const TTL_SECONDS: u32 = 300;

/// What the server says to a question: records, or a code. `None`: it is silent.
fn answer(name: &str, kind: RecordType) -> Option<(ResponseCode, Vec<RData>)> {
    let srv = |priority, port, target: &str| RData::SRV(SRV::new(priority, 1, port, Name::from_ascii(target).expect("a name")));
    let found = |records| Some((ResponseCode::NoError, records));
    match (name, kind) {
        ("_mimi-fed._udp.good.test.", RecordType::SRV) => {
            found(vec![srv(20, 7002, "n2.good.test."), srv(10, 7001, "n1.good.test."), srv(15, 7003, "gone.good.test.")])
        }
        ("n1.good.test.", RecordType::A) => found(vec![RData::A(A(Ipv4Addr::new(127, 0, 0, 1)))]),
        ("n2.good.test.", RecordType::A) => {
            found(vec![RData::A(A(Ipv4Addr::new(127, 0, 0, 2))), RData::A(A(Ipv4Addr::new(127, 0, 0, 3)))])
        }
        ("_mimi-fed._udp.refuses.test.", RecordType::SRV) => found(vec![srv(0, 0, ".")]),
        ("_mimi-fed._udp.homeless.test.", RecordType::SRV) => found(vec![srv(0, 1, "gone.good.test.")]),
        ("_mimi-fed._udp.fails.test.", _) => Some((ResponseCode::ServFail, vec![])),
        ("_mimi-fed._udp.empty.test." | "n1.good.test." | "n2.good.test.", _) => found(vec![]),
        ("_mimi-fed._udp.half.test.", RecordType::SRV) => found(vec![srv(0, 7004, "n.half.test.")]),
        ("n.half.test.", RecordType::A) => found(vec![RData::A(A(Ipv4Addr::new(127, 0, 0, 4)))]),
        ("n.half.test.", _) => None,
        ("_mimi-fed._udp.silent.test.", _) => None,
        _ => Some((ResponseCode::NXDomain, vec![])),
    }
}

/// A resolver that asks a server running in this test's runtime, and how many questions that was asked.
async fn resolver() -> (Resolver, Arc<AtomicUsize>) {
    let socket = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let server = socket.local_addr().expect("an address");
    let questions = Arc::new(AtomicUsize::new(0));
    let counted = questions.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let question = Message::from_vec(&buffer[..length]).expect("a question");
            let query = question.queries[0].clone();
            counted.fetch_add(1, Ordering::SeqCst);
            let name = query.name().to_ascii().to_lowercase();
            let Some((code, records)) = answer(&name, query.query_type()) else { continue };
            let mut response = Message::response(question.metadata.id, question.metadata.op_code);
            response.metadata.message_type = MessageType::Response;
            response.metadata.response_code = code;
            response.metadata.recursion_available = true;
            response.queries.push(query.clone());
            let record = |data| Record::from_rdata(query.name().clone(), TTL_SECONDS, data);
            response.answers.extend(records.into_iter().map(record));
            let octets = response.to_vec().expect("an answer");
            socket.send_to(&octets, from).await.expect("sent");
        }
    });
    (Resolver::new(&ResolverSettings { servers: vec![server], ..ResolverSettings::default() }).expect("a resolver"), questions)
}

#[tokio::test]
async fn targets_come_in_order_with_their_addresses_and_are_cached_until_flushed() {
    let (resolver, questions) = resolver().await;
    let good = domain("good.test");
    let targets = resolver.resolve(Service::Federation, &good).await.expect("targets");
    let all: Vec<_> = targets.iter().map(|target| (target.host.as_str(), target.addresses.clone())).collect();
    let at = |last, port| SocketAddr::from(([127, 0, 0, last], port));
    assert_eq!(all.len(), 2, "a host without address is left out: {all:?}");
    assert_eq!(all[0], ("n1.good.test.", vec![at(1, 7001)]));
    assert_eq!((all[1].0, all[1].1.len(), targets[1].port), ("n2.good.test.", 2, 7002));
    assert!(all[1].1.contains(&at(2, 7002)) && all[1].1.contains(&at(3, 7002)));

    let asked = questions.load(Ordering::SeqCst);
    let _ = resolver.resolve(Service::Federation, &good).await.expect("targets");
    // Only what does not exist is asked again: these answers carry no SOA, hence no negative TTL.
    assert!(questions.load(Ordering::SeqCst) < 2 * asked, "SRV and A are cached");
    let cached = questions.load(Ordering::SeqCst);
    resolver.flush();
    let _ = resolver.resolve(Service::Federation, &good).await.expect("targets");
    assert!(questions.load(Ordering::SeqCst) >= cached + asked - 1);
}

#[tokio::test]
async fn kinds_of_failure_are_kept_apart() {
    let (resolver, _) = resolver().await;
    let failure = async |name| resolver.resolve(Service::Federation, &domain(name)).await.expect_err("no targets");
    assert!(matches!(failure("nowhere.test").await, DiscoveryError::NoSuchDomain { .. }));
    assert!(matches!(failure("empty.test").await, DiscoveryError::NoRecords { records: "SRV", .. }));
    assert!(matches!(failure("homeless.test").await, DiscoveryError::NoRecords { records: "address", .. }));
    assert!(matches!(failure("refuses.test").await, DiscoveryError::RefusesFederation { .. }));
    let failed = failure("fails.test").await;
    assert!(matches!(failed, DiscoveryError::ServerFailure { .. }), "{failed}");
    assert!(matches!(failure("silent.test").await, DiscoveryError::TimedOut { .. }));
    // Configured addresses need no DNS, and only for their service.
    let address = SocketAddr::from(([127, 0, 0, 9], 9));
    let fixed = HashMap::from([(domain("silent.test"), vec![address])]);
    let resolver = resolver.clone().with_static(Service::Federation, fixed);
    let targets = resolver.resolve(Service::Federation, &domain("silent.test")).await.expect("configured");
    assert_eq!(targets[0].addresses, [address]);
    let other = resolver.resolve(Service::Client, &domain("silent.test")).await;
    assert!(matches!(other, Err(DiscoveryError::NoSuchDomain { .. })), "{other:?}");
}

#[tokio::test]
async fn a_family_that_is_silent_is_not_waited_for() {
    let (resolver, _) = resolver().await;
    let begun = tokio::time::Instant::now();
    let targets = resolver.resolve(Service::Federation, &domain("half.test")).await.expect("targets");
    assert_eq!(targets[0].addresses, [SocketAddr::from(([127, 0, 0, 4], 7004))]);
    assert!(begun.elapsed() < limits::DNS_TIMEOUT, "{:?}", begun.elapsed());
}
