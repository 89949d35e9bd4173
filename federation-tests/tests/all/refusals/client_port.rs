//! The client port: who is answered at all, and whose queue, token or name one may use.

use federation_tests::people::{Device, Person, Room, ask, enrol_request, key_of_seed, stranger};
use federation_tests::raw::{Ended, Raw};
use federation_tests::stage::Stage;
use mimi_node::base::ids::{QueueId, RequestId};
use mimi_node::base::limits::{CLIENT_FRAME_BYTES_MAX, STRANGER_FRAME_BYTES_MAX};
use mimi_node::base::{Domain, Fault, UnixMillis};
use mimi_node::transport::CloseCode;
use mimi_node::wire::accounts::{AccountsMessage, AccountsRequest, Enrol};
use mimi_node::wire::info::InfoRequest;
use mimi_node::wire::keys::{ClaimKeyPackages, KeysRequest};
use mimi_node::wire::qs::{AckEntries, CreateQueue, FetchEntries, QsMessage, QsRequest, QsSender};
use mimi_node::wire::{ClientRequest, Content, ErrorCode, Invitation, List, Rejection, Reply, Response, Service, decode, encode};
use rand::Rng as _;

const UNKNOWN_CA: u8 = 48;

fn now_for(destination: &Domain, service: Service) -> Content {
    Content::new(destination, RequestId::random(), UnixMillis::now(), service)
}

fn info_of(destination: &Domain, about: &Domain) -> ClientRequest {
    now_for(destination, Service::Info(InfoRequest { domain: about.as_bytes().into() })).unsigned()
}

fn refused(code: ErrorCode) -> Result<Reply, Rejection> {
    Err(Rejection::new(code))
}

/// What the port answers to these octets as a frame.
async fn answer(raw: &Raw, frame: &[u8]) -> Result<Result<Reply, Rejection>, Fault> {
    let answer = raw.exchange(frame).await.map_err(|ended| Fault::new(format!("no answer: {ended:?}")))?;
    Ok(decode::<Response>(&answer).expect("a response").into_result())
}

// Shows: without a certificate only `info` about the node's own domain and requests about accounts are answered, which prove
// themselves. Failure: another code than
// not_authorized for anything else, however rightly signed, or any change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_may_ask_and_enrol_and_nothing_else() -> Result<(), Fault> {
    let mut stage = Stage::open(2, 11).await?;
    let alice = stage.person(0, "alice").await?;
    let room = Room::create(&alice, &mut stage.rng).await?;
    let invitation = stage.world.invite(0, "zoe").await?;
    let raw = stranger(&stage.world, 0, &invitation).await?;
    let (a, b) = (stage.domain(0), stage.domain(1));
    let before = stage.contents().await?;
    let mut group = room.group.clone();
    let message = room.request(0, &alice.device.key, room.message_body(group.private_message(1)));
    let claim = KeysRequest::Claim(ClaimKeyPackages { user: alice.user.to_bytes().into(), ciphersuite: 1 });
    let (_, create) = Room::forge(&alice, &mut stage.rng)?;
    let fetch = FetchEntries { from: 1, max: 1 };
    let requests = [
        ("message", message),
        ("create", create),
        ("count", alice.keys_request(&a, KeysRequest::Count)),
        ("claim", alice.keys_request(&a, claim.clone())),
        ("claim elsewhere", alice.keys_request(&b, claim)),
        ("fetch", alice.queue_request(QsRequest::Fetch(fetch.clone()))),
        ("subscribe", alice.queue_request(QsRequest::Subscribe(fetch))),
        ("delete", alice.queue_request(QsRequest::Delete)),
        ("info of another domain", info_of(&a, &b)),
        ("info to another domain", info_of(&b, &b)),
    ];
    for (what, request) in &requests {
        assert_eq!(ask(&raw, request).await?, refused(ErrorCode::NotAuthorized), "{what}");
    }
    stage.expect_unchanged(&before, "a stranger").await?;
    assert!(matches!(ask(&raw, &info_of(&a, &a)).await?, Ok(Reply::DomainInfo(_))));
    Ok(())
}

// Shows: a chain that does not lead to this domain's AS root is refused by TLS; one that leads there but is not [client, user] by
// the rules is refused after it. Failure: any answer to a request on such a connection.
// covers R8
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_another_domain_is_refused() -> Result<(), Fault> {
    let mut stage = Stage::open(2, 12).await?;
    let alice = stage.person(0, "alice").await?;
    let anna = stage.person(0, "anna").await?;
    let bob = stage.person(1, "bob").await?;
    let invitation = stage.world.invite(0, "zoe").await?;
    let site = stage.world.site(0).clone();
    let dial =
        async |device: &Device| match Raw::client(site.client, &site.domain, invitation.tls_ca_spki_hash, Some(&device.tls()))
            .await
        {
            Err(ended) => ended,
            Ok(raw) => {
                let answer = raw.exchange(&encode(&info_of(&site.domain, &site.domain))).await;
                assert!(answer.is_err(), "was answered");
                raw.closed().await
            }
        };
    assert_eq!(dial(&bob.device).await, Ended::Alert(UNKNOWN_CA), "a user of b.test");
    let mixed = Device { chain: vec![bob.device.chain[0].clone(), alice.user_certificate.clone()], ..bob.device.clone() };
    assert!(matches!(dial(&mixed).await, Ended::Alert(_)), "bob's client under alice's certificate");
    // A user may issue what it likes under its own key: anna issues a certificate for alice's phone.
    let seed = stage.rng.random();
    let key = key_of_seed(&seed)?;
    let stolen = stolen_chain(&anna, &alice, &key)?;
    let stolen = Device { uri: alice.device.uri.clone(), seed, key, chain: stolen };
    assert_eq!(dial(&stolen).await, Ended::Closed(CloseCode::NotAuthorized), "anna issues alice's client");
    Ok(())
}

/// A chain in which `thief` issues a client certificate in the name of `victim`'s device.
fn stolen_chain(thief: &Person, victim: &Person, key: &mimi_node::base::crypto::SigningKey) -> Result<Vec<Vec<u8>>, Fault> {
    let certificate =
        federation_tests::people::forge_client_certificate(&thief.user_key, &thief.user_certificate, &victim.device.uri, key)?;
    Ok(vec![certificate, thief.user_certificate.clone()])
}

// Shows: a queue is its client's alone, whoever holds its owner key, and is created by the client of the connection only. Failure:
// another code, entries told, or any change.
// covers QS-020, QS-021, QS-022
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_is_its_clients_alone() -> Result<(), Fault> {
    let mut stage = Stage::open(1, 13).await?;
    let alice = stage.person(0, "alice").await?;
    let anna = stage.person(0, "anna").await?;
    let a = stage.domain(0);
    let of = |queue: QueueId, request: &QsRequest| {
        now_for(&a, Service::Qs(QsMessage { sender: QsSender::Owner(queue), request: request.clone() }))
    };
    let fetch = FetchEntries { from: 1, max: 1 };
    let requests = [
        QsRequest::Fetch(fetch.clone()),
        QsRequest::Subscribe(fetch),
        QsRequest::Ack(AckEntries { up_to: 1 }),
        QsRequest::Delete,
    ];
    for request in &requests {
        let stolen = of(alice.queue, request).sign(&alice.owner_key);
        stage.refuses("with the stolen owner key", &anna, &stolen, ErrorCode::UnknownQueue).await?;
        let unknown = of(QueueId::random(), request).sign(&alice.owner_key);
        stage.refuses("a queue that is none", &alice, &unknown, ErrorCode::UnknownQueue).await?;
        for key in [&anna.owner_key, &alice.device.key, &alice.user_key] {
            let other_key = of(alice.queue, request).sign(key);
            stage.refuses("by another key", &alice, &other_key, ErrorCode::BadSignature).await?;
        }
        let old = Content { issued_at_ms: UnixMillis::now().0 - 600_000, ..of(alice.queue, request) };
        let code = ErrorCode::ReplayedOrStale;
        let rejection = stage.refuses("old", &alice, &old.sign(&alice.owner_key), code).await?;
        assert!(rejection.as_replayed_or_stale().is_some());
    }
    let create = |by: &Person, owner_key: &[u8]| {
        let request = QsRequest::Create(CreateQueue { owner_key: owner_key.into() });
        now_for(&a, Service::Qs(QsMessage { sender: QsSender::Client(by.device.certificates()), request }))
    };
    let of_anna = create(&anna, &[7; 32]).sign(&anna.device.key);
    stage.refuses("for another client", &alice, &of_anna, ErrorCode::NotAuthorized).await?;
    let unsigned = create(&alice, &[7; 32]).sign(&anna.device.key);
    stage.refuses("signed by another", &alice, &unsigned, ErrorCode::BadSignature).await?;
    let short = create(&alice, &[7; 31]).sign(&alice.device.key);
    stage.refuses("a key that is none", &alice, &short, ErrorCode::Malformed).await?;
    let request = QsRequest::Create(CreateQueue { owner_key: vec![7; 32].into() });
    let by_owner = of(alice.queue, &request).sign(&alice.owner_key);
    stage.refuses("created by an owner key", &alice, &by_owner, ErrorCode::NotAuthorized).await?;
    let sender = QsSender::Client(alice.device.certificates());
    let delete = now_for(&a, Service::Qs(QsMessage { sender, request: QsRequest::Delete })).sign(&alice.device.key);
    stage.refuses("deleted by the client key", &alice, &delete, ErrorCode::NotAuthorized).await?;
    Ok(())
}

// Shows: an invitation makes one user, for whoever proves possession of the new key. Failure: another code, a second certificate,
// or a token that a refusal has used up.
// covers AS-001, AS-002, AS-003
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_enrols_once() -> Result<(), Fault> {
    let mut stage = Stage::open(1, 14).await?;
    let invitation = stage.world.invite(0, "zoe").await?;
    let raw = stranger(&stage.world, 0, &invitation).await?;
    let (key, other) = (key_of_seed(&stage.rng.random())?, key_of_seed(&stage.rng.random())?);
    let before = stage.contents().await?;
    let unknown = Invitation { token: [9; 16], ..invitation.clone() };
    assert_eq!(ask(&raw, &enrol_request(&unknown, &key)?).await?, refused(ErrorCode::InvalidToken), "AS-001");
    let good = enrol_request(&invitation, &key)?;
    assert_eq!(ask(&raw, &good.content.clone().sign(&other)).await?, refused(ErrorCode::BadSignature), "AS-003");
    let with_request = |csr: Vec<u8>| {
        let enrol = Enrol { token: invitation.token.as_slice().into(), certificate_request: csr.into() };
        let message = AccountsMessage { certificates: List::default(), request: AccountsRequest::Enrol(enrol) };
        now_for(&invitation.domain, Service::Accounts(message)).sign(&key)
    };
    let Service::Accounts(message) = &good.content.service else { return Err(Fault::new("not an enrol")) };
    let AccountsRequest::Enrol(enrol) = &message.request else { return Err(Fault::new("not an enrol")) };
    let mut spoilt = enrol.certificate_request.to_vec();
    *spoilt.last_mut().expect("not empty") ^= 1;
    for csr in [spoilt, vec![], vec![0x30; 50], vec![0; 10_000]] {
        assert_eq!(ask(&raw, &with_request(csr)).await?, refused(ErrorCode::InvalidCredential), "AS-002");
    }
    let stale = Content { issued_at_ms: 5, ..good.content.clone() }.sign(&key);
    assert_eq!(ask(&raw, &stale).await?.expect_err("old").code, ErrorCode::ReplayedOrStale);
    stage.expect_unchanged(&before, "refused enrolments").await?;

    assert!(matches!(ask(&raw, &good).await?, Ok(Reply::Enrolled(_))));
    let before = stage.contents().await?;
    assert_eq!(ask(&raw, &enrol_request(&invitation, &key)?).await?, refused(ErrorCode::InvalidToken), "used, same key");
    assert_eq!(ask(&raw, &enrol_request(&invitation, &other)?).await?, refused(ErrorCode::InvalidToken), "used, other key");
    // Who knows token and request id and nothing else is told nothing.
    let replay = good.content.clone().sign(&other);
    assert_eq!(ask(&raw, &replay).await?, refused(ErrorCode::BadSignature), "a repeat that is not signed");
    for request in [AccountsRequest::Hubs, AccountsRequest::DeleteUser] {
        let message = AccountsMessage { certificates: List::default(), request };
        let request = now_for(&invitation.domain, Service::Accounts(message)).sign(&key);
        assert_eq!(ask(&raw, &request).await?, refused(ErrorCode::InvalidCredential), "without a certificate");
    }
    stage.expect_unchanged(&before, "refused repeats").await
}

// Shows: a frame that is no request is told so, with the code for what is wrong with it, and the connection goes on. Failure: no
// answer, another code, or any change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_frame_of_a_client_is_answered() -> Result<(), Fault> {
    let mut stage = Stage::open(1, 15).await?;
    let alice = stage.person(0, "alice").await?;
    let invitation = stage.world.invite(0, "zoe").await?;
    let raw = stranger(&stage.world, 0, &invitation).await?;
    let a = stage.domain(0);
    let before = stage.contents().await?;
    let good = encode(&info_of(&a, &a));
    for (raw, limit) in [(&raw, STRANGER_FRAME_BYTES_MAX), (&alice.home, CLIENT_FRAME_BYTES_MAX)] {
        assert_eq!(answer(raw, &vec![0; limit + 1]).await?, refused(ErrorCode::TooLarge));
        assert_eq!(answer(raw, &vec![1; limit]).await?, refused(ErrorCode::UnsupportedVersion), "large, and not too large");
        for version in [0_u16, 2, 0x0100, u16::MAX] {
            let other = [&version.to_be_bytes()[..], &good[2..]].concat();
            assert_eq!(answer(raw, &other).await?, refused(ErrorCode::UnsupportedVersion), "{version}");
        }
        for end in 0..good.len() {
            assert_eq!(answer(raw, &good[..end]).await?, refused(ErrorCode::Malformed), "{end} octets");
        }
        assert_eq!(answer(raw, &[&good[..], &[0]].concat()).await?, refused(ErrorCode::Malformed), "one octet more");
        let mut upper = info_of(&a, &a);
        upper.content.destination = b"A.test".as_slice().into();
        assert_eq!(answer(raw, &encode(&upper)).await?, refused(ErrorCode::Malformed), "a name that is none");
        assert_eq!(raw.exchange_octets(&[0, 0, 0, 5, 1]).await, Err(Ended::Reset(CloseCode::ProtocolViolation)), "truncated");
        assert!(answer(raw, &good).await?.is_ok(), "the connection goes on");
    }
    for _ in 0..300 {
        let length = stage.rng.random_range(0..200);
        let mut octets: Vec<u8> = (0..length).map(|_| stage.rng.random()).collect();
        octets.splice(0..0, [0, 1, 6].into_iter().chain(*b"a.test"));
        let answer = answer(&alice.home, &octets).await?;
        assert!(answer.is_err(), "{octets:?} was accepted");
    }
    stage.expect_unchanged(&before, "bad frames").await
}

// Shows: what a client may ask another domain is DS requests and claims; its queue, keys and account are its own node's business.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_concerns_others_is_proxied() -> Result<(), Fault> {
    let mut stage = Stage::open(2, 16).await?;
    let alice = stage.person(0, "alice").await?;
    let b = stage.domain(1);
    let fetch = alice.queue_request(QsRequest::Fetch(FetchEntries { from: 1, max: 1 }));
    let fetch = Content { destination: b.as_bytes().into(), ..fetch.content }.sign(&alice.owner_key);
    stage.refuses("a queue request", &alice, &fetch, ErrorCode::NotAuthorized).await?;
    let count = alice.keys_request(&b, KeysRequest::Count);
    stage.refuses("keys.count", &alice, &count, ErrorCode::NotAuthorized).await?;
    let info = info_of(&b, &b);
    stage.refuses("info", &alice, &info, ErrorCode::NotAuthorized).await?;
    Ok(())
}
