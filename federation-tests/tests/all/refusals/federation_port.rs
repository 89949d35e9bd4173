//! The federation port: who is let in as which domain, and what a peer may not send.

use std::time::Duration;

use federation_tests::people::Room;
use federation_tests::raw::{Ended, Raw, hello, peer_config};
use federation_tests::stage::Stage;
use mimi_node::base::ids::{Incarnation, RequestId};
use mimi_node::base::limits::{FRAME_BYTES_MAX, HELLO_BYTES_MAX, LANE_BATCH_FRAMES_MAX, QUEUE_INFORMATION_BYTES_MAX};
use mimi_node::base::{Domain, Fault, GroupUri, UnixMillis};
use mimi_node::identity::{ExtendedKeyUsage, TlsCa, TlsCertificateOptions};
use mimi_node::transport::CloseCode;
use mimi_node::wire::info::InfoRequest;
use mimi_node::wire::keys::{ClaimKeyPackages, KeysRequest};
use mimi_node::wire::peer::{
    FrameAnswer, Hello, LaneBatch, LaneFrame, LaneResult, PEER_REQUEST_TYPES, PeerRequest, PeerResponse, ProtocolVersion,
};
use mimi_node::wire::qs::{DeliveredMessage, Delivery, QsRequest, QueueingServiceResponse};
use mimi_node::wire::{ClientRequest, Content, ErrorCode, Opaque, Rejection, Reply, Response, Service, decode, encode};
use rand::Rng as _;

use super::{BOB, Trio};

/// TLS alerts (RFC 8446 §6).
const UNSUPPORTED_CERTIFICATE: u8 = 43;
const CERTIFICATE_EXPIRED: u8 = 45;
const UNKNOWN_CA: u8 = 48;
const DECRYPT_ERROR: u8 = 51;
const CERTIFICATE_REQUIRED: u8 = 116;

/// A peer with the certificate of a domain, as its node has it.
async fn peer(stage: &Stage, index: usize) -> Result<Raw, Fault> {
    let (ca, own, to) = (stage.ca()?, stage.domain(index), stage.world.site(0));
    let config = peer_config(&ca, Some((&ca, &TlsCertificateOptions::for_domain(&own))))?;
    Raw::peer(config, to.federation, &to.domain, &own).await.map_err(|ended| Fault::new(format!("no peer: {ended:?}")))
}

/// How the node ends a connection that presents this certificate and, if it gets that far, says this `hello`.
async fn ended(stage: &Stage, certificate: Option<(&TlsCa, &TlsCertificateOptions)>, own: &Domain) -> Result<Ended, Fault> {
    let to = stage.world.site(0);
    let config = peer_config(&stage.ca()?, certificate)?;
    match Raw::dial(config, to.federation, &to.domain).await {
        Err(ended) => Ok(ended),
        Ok(raw) => {
            let answer = raw.exchange(&encode(&PeerRequest::Hello(hello(own)))).await;
            assert!(answer.is_err(), "hello was answered: {answer:?}");
            Ok(raw.closed().await)
        }
    }
}

// Shows: who has no certificate of a trusted CA does not get past TLS. Failure: an answered hello, or another end than the alert
// for that very reason. Not a failure: that the dialling side learns it only after its own handshake is done, as TLS 1.3 has it.
// covers C3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_without_a_good_certificate_is_refused() -> Result<(), Fault> {
    let stage = Stage::open(2, 1).await?;
    let (ca, b) = (stage.ca()?, stage.domain(1));
    let good = TlsCertificateOptions::for_domain(&b);
    assert_eq!(ended(&stage, None, &b).await?, Ended::Alert(CERTIFICATE_REQUIRED));
    let other = TlsCa::create("another CA", UnixMillis::now())?;
    assert_eq!(ended(&stage, Some((&other, &good)), &b).await?, Ended::Alert(UNKNOWN_CA));
    let namesake = TlsCa::create("testbed TLS CA", UnixMillis::now())?;
    assert_eq!(ended(&stage, Some((&namesake, &good)), &b).await?, Ended::Alert(DECRYPT_ERROR), "a CA of the same name");
    let day = Duration::from_secs(86_400);
    let not_before = Some(UnixMillis::now().minus(2 * day));
    let expired = TlsCertificateOptions { not_before, lifetime: day, ..good.clone() };
    assert_eq!(ended(&stage, Some((&ca, &expired)), &b).await?, Ended::Alert(CERTIFICATE_EXPIRED));
    let future = TlsCertificateOptions { not_before: Some(UnixMillis::now().plus(day)), ..good.clone() };
    assert_eq!(ended(&stage, Some((&ca, &future)), &b).await?, Ended::Alert(CERTIFICATE_EXPIRED), "not valid yet");
    let code_signing = TlsCertificateOptions { extended_key_usage: ExtendedKeyUsage::Other, ..good };
    assert_eq!(ended(&stage, Some((&ca, &code_signing)), &b).await?, Ended::Alert(UNSUPPORTED_CERTIFICATE), "of another use");
    // The control: with a good one the same words are answered.
    peer(&stage, 1).await?;
    Ok(())
}

// Shows: a connection is of the domain that its certificate names, and `hello` cannot make it another. Failure: an answered hello,
// or another close code. Not a failure: the words of the reason.
// covers X7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hello_cannot_name_another_domain_than_the_certificate() -> Result<(), Fault> {
    let stage = Stage::open(3, 2).await?;
    let (ca, a, b, c) = (stage.ca()?, stage.domain(0), stage.domain(1), stage.domain(2));
    let wrong = Ended::Closed(CloseCode::WrongDomain);
    let of = TlsCertificateOptions::for_domain;
    assert_eq!(ended(&stage, Some((&ca, &of(&b))), &c).await?, wrong, "another domain");
    assert_eq!(ended(&stage, Some((&ca, &of(&a))), &a).await?, wrong, "the node's own domain");
    let nameless = TlsCertificateOptions { dns_names: vec![], srv_name: None, ..of(&b) };
    assert_eq!(ended(&stage, Some((&ca, &nameless)), &b).await?, wrong, "no name");
    let wildcard = TlsCertificateOptions { dns_names: vec!["*.test".into()], srv_name: None, ..of(&b) };
    assert_eq!(ended(&stage, Some((&ca, &wildcard)), &b).await?, wrong, "a wildcard");
    let client_srv = TlsCertificateOptions { dns_names: vec![], srv_name: Some("_mimi-client.b.test".into()), ..of(&b) };
    assert_eq!(ended(&stage, Some((&ca, &client_srv)), &b).await?, wrong, "the SRVName of another service");
    // The controls: a certificate of several domains is good for each, one connection each; so is one with the SRVName alone.
    let several = TlsCertificateOptions { dns_names: vec![b.to_string(), c.to_string()], srv_name: None, ..of(&b) };
    let srv_only = TlsCertificateOptions { dns_names: vec![], ..of(&c) };
    for (options, own) in [(&several, &b), (&several, &c), (&srv_only, &c)] {
        let config = peer_config(&ca, Some((&ca, options)))?;
        let to = stage.world.site(0);
        Raw::peer(config, to.federation, &to.domain, own).await.expect("this certificate names the domain");
    }
    Ok(())
}

// Shows: the first frame of a connection is a hello with a version in common, and small. Failure: anything but a connection
// closed with the code for the reason.
// covers X7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_frame_is_a_hello() -> Result<(), Fault> {
    let stage = Stage::open(2, 3).await?;
    let (ca, b, to) = (stage.ca()?, stage.domain(1), stage.world.site(0));
    let config = peer_config(&ca, Some((&ca, &TlsCertificateOptions::for_domain(&b))))?;
    let version = |major, minor| ProtocolVersion { major, minor };
    let other_version = Hello { versions: vec![version(2, 0), version(1, 77)].into(), ..hello(&b) };
    let frames = [
        (encode(&PeerRequest::DomainInfo), CloseCode::ProtocolViolation),
        (vec![0xff; 40], CloseCode::ProtocolViolation),
        (vec![], CloseCode::ProtocolViolation),
        ([encode(&PeerRequest::Hello(hello(&b))), vec![0]].concat(), CloseCode::ProtocolViolation),
        (vec![0; HELLO_BYTES_MAX + 1], CloseCode::TooLarge),
        (encode(&PeerRequest::Hello(other_version)), CloseCode::NoVersion),
        (encode(&PeerRequest::Hello(Hello { domain: b"B.test".as_slice().into(), ..hello(&b) })), CloseCode::WrongDomain),
    ];
    for (frame, code) in frames {
        let raw = Raw::dial(config.clone(), to.federation, &to.domain).await.expect("the certificate is good");
        let answer = raw.exchange(&frame).await;
        assert!(answer.is_err(), "{code}: was answered with {answer:?}");
        assert_eq!(raw.closed().await, Ended::Closed(code), "{} octets", frame.len());
    }
    // A first frame that never ends, and none at all.
    let raw = Raw::dial(config.clone(), to.federation, &to.domain).await.expect("the certificate is good");
    let (mut send, _recv) = raw.connection.open_bi().await.expect("a stream");
    send.write_all(&[0, 0, 0, 9, 1]).await.expect("is taken");
    assert_eq!(raw.closed().await, Ended::Closed(CloseCode::TimedOut));
    Ok(())
}

// Shows: once in, a peer's frames are bounded and must be requests; a bad stream ends alone and the connection goes on. Failure: an
// answer of another kind, or a lost connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_frame_of_a_peer_ends_its_stream_only() -> Result<(), Fault> {
    let mut stage = Stage::open(2, 4).await?;
    let before = stage.contents().await?;
    let raw = peer(&stage, 1).await?;
    let malformed = PeerResponse::Error(Rejection::new(ErrorCode::Malformed));
    let too_long = (FRAME_BYTES_MAX as u32 + 1).to_be_bytes();
    assert_eq!(raw.exchange_octets(&too_long).await, Err(Ended::Reset(CloseCode::TooLarge)));
    assert_eq!(raw.exchange_octets(&[0, 0, 0, 5, 1]).await, Err(Ended::Reset(CloseCode::ProtocolViolation)), "a truncated frame");
    assert_eq!(raw.exchange_octets(&[]).await, Err(Ended::Finished), "nothing asked, nothing answered");
    for garbage in [vec![], vec![3, 0], vec![1, 0xc0]] {
        let answer = raw.exchange(&garbage).await.expect("an answer");
        assert_eq!(decode::<PeerResponse>(&answer), Ok(malformed.clone()), "{garbage:?}");
    }
    assert_eq!(raw.ask_peer(&PeerRequest::Hello(hello(&stage.domain(1)))).await, Ok(malformed), "a second hello");
    // Of a type that a later version may have.
    let unsupported = PeerResponse::Error(Rejection::new(ErrorCode::Unsupported));
    for later in [vec![PEER_REQUEST_TYPES], vec![0xff; 100]] {
        let answer = raw.exchange(&later).await.expect("an answer");
        assert_eq!(decode::<PeerResponse>(&answer), Ok(unsupported.clone()), "{later:?}");
    }
    assert!(matches!(raw.ask_peer(&PeerRequest::DomainInfo).await, Ok(PeerResponse::DomainInfo(_))), "the connection goes on");
    // Octets chosen at random: answered or refused, never a crash of what serves the stream.
    for _ in 0..300 {
        let length = stage.rng.random_range(0..200);
        let mut octets: Vec<u8> = (0..length).map(|_| stage.rng.random()).collect();
        if let Some(first) = octets.first_mut() {
            *first %= 7;
        }
        // A lone 5 is no garbage: the node would do what it asks.
        if octets == [5] {
            continue;
        }
        let answer = raw.exchange(&octets).await.expect("an answer");
        decode::<PeerResponse>(&answer).expect("a response");
    }
    stage.expect_unchanged(&before, "garbage").await
}

/// What a peer is answered to a proxied request.
async fn proxied(raw: &Raw, request: &ClientRequest) -> Result<Result<Reply, Rejection>, Fault> {
    match raw.ask_peer(&PeerRequest::Proxy(encode(request).into())).await {
        Ok(PeerResponse::Proxy(response)) => Ok(decode::<Response>(&response).expect("a response").into_result()),
        other => Err(Fault::new(format!("not answered: {other:?}"))),
    }
}

// Shows: a domain speaks for its own users only, though every one of these requests is rightly signed (S16). Failure: another code
// than not_authorized, or any change. The control at the end proves that it was the peer that was wrong: through b.test the very
// same octets are accepted.
// covers DS-012, QS-032
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_cannot_speak_for_another_domains_user() -> Result<(), Fault> {
    let Trio { mut stage, alice, bob, mut room, .. } = Trio::new(5).await?;
    let (through_b, through_c) = (peer(&stage, 1).await?, peer(&stage, 2).await?);
    let before = stage.contents().await?;
    let message = room.group.private_message(1);
    let message = room.request(BOB, &bob.device.key, room.message_body(message));
    let update = room.group.clone().update(BOB).expect("bob is a member");
    let update = room.request(BOB, &bob.device.key, room.update_body(&update));
    let claim = KeysRequest::Claim(ClaimKeyPackages { user: alice.user.to_bytes().into(), ciphersuite: 1 });
    let claim = bob.keys_request(&stage.domain(0), claim);
    let mut of_alice = room.clone();
    let of_alice = of_alice.group.private_message(1);
    let of_alice = room.request(super::ALICE, &alice.device.key, room.message_body(of_alice));
    let (_, create) = Room::forge(&alice, &mut stage.rng)?;
    for (what, request) in
        [("message", &message), ("update", &update), ("claim", &claim), ("hub's user", &of_alice), ("create", &create)]
    {
        let answer = proxied(&through_c, request).await?;
        assert_eq!(answer, Err(Rejection::new(ErrorCode::NotAuthorized)), "{what}");
    }
    stage.expect_unchanged(&before, "another domain's users").await?;
    for request in [&message, &update] {
        assert!(proxied(&through_b, request).await?.is_ok());
    }
    // What was accepted through b.test is no more told to c.test than it was done for it.
    let before = stage.contents().await?;
    for request in [&message, &update] {
        assert_eq!(proxied(&through_c, request).await?, Err(Rejection::new(ErrorCode::NotAuthorized)));
    }
    stage.expect_unchanged(&before, "a repeat through another domain").await
}

// Shows: what a peer proxies is answered here or refused; it is never sent on, and only what clients ask of other domains is
// answered. Failure: another code, a connection from a.test to c.test on account of it, or any change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxied_request_is_never_proxied_again() -> Result<(), Fault> {
    let Trio { mut stage, bob, room, .. } = Trio::new(6).await?;
    let raw = peer(&stage, 1).await?;
    let before = stage.contents().await?;
    let refused = Err(Rejection::new(ErrorCode::NotAuthorized));
    let user = bob.user.to_bytes().into();
    let elsewhere = bob.keys_request(&stage.domain(2), KeysRequest::Claim(ClaimKeyPackages { user, ciphersuite: 1 }));
    assert_eq!(proxied(&raw, &elsewhere).await?, refused, "for a third domain");
    let mut group = room.group.clone();
    let message = room.request(BOB, &bob.device.key, room.message_body(group.private_message(1)));
    let message = Content { destination: stage.domain(1).as_bytes().into(), ..message.content }.sign(&bob.device.key);
    assert_eq!(proxied(&raw, &message).await?, refused, "for the peer itself");
    let here = stage.domain(0);
    let to_here = |service| Content::new(&here, RequestId::random(), UnixMillis::now(), service);
    let info = to_here(Service::Info(InfoRequest { domain: stage.domain(2).as_bytes().into() })).unsigned();
    assert_eq!(proxied(&raw, &info).await?, refused, "info");
    let fetch = bob.queue_request(QsRequest::Delete);
    let fetch = Content { destination: here.as_bytes().into(), ..fetch.content }.sign(&bob.owner_key);
    assert_eq!(proxied(&raw, &fetch).await?, refused, "a queue request");
    assert_eq!(proxied(&raw, &bob.keys_request(&here, KeysRequest::Count)).await?, refused, "keys.count");
    let garbage = raw.ask_peer(&PeerRequest::Proxy(vec![0, 1, 9].into())).await.expect("an answer");
    let PeerResponse::Proxy(garbage) = garbage else { return Err(Fault::new(format!("{garbage:?}"))) };
    let garbage = decode::<Response>(&garbage).expect("a response").into_result();
    assert_eq!(garbage, Err(Rejection::new(ErrorCode::Malformed)));
    stage.expect_unchanged(&before, "proxied requests").await
}

/// A hub that a test plays: lane frames from b.test to a.test for one group.
struct Lane {
    raw: Raw,
    group: GroupUri,
    incarnation: Incarnation,
}

fn frame(lane_sequence: u64, recipients: &[&Opaque], text: &str) -> LaneFrame {
    let message = DeliveredMessage { message: text.as_bytes().into(), receipt: None };
    let recipients = recipients.iter().map(|information| (*information).clone()).collect();
    LaneFrame { lane_sequence, epoch: 7, recipients, delivery: Delivery::Message(message) }
}

impl Lane {
    async fn send(&self, frames: Vec<LaneFrame>) -> Result<LaneResult, Fault> {
        let batch = LaneBatch { group_id: self.group.to_bytes().into(), incarnation: self.incarnation, frames: frames.into() };
        match self.raw.ask_peer(&PeerRequest::Lanes(vec![batch].into())).await {
            Ok(PeerResponse::Lanes(answers)) => match &answers[..] {
                [answer] => Ok(answer.result.clone()),
                other => Err(Fault::new(format!("{other:?}"))),
            },
            Ok(PeerResponse::Error(rejection)) => Ok(LaneResult::Refused(rejection)),
            other => Err(Fault::new(format!("{other:?}"))),
        }
    }
}

fn taken(sequence: u64, responses: &[QueueingServiceResponse]) -> FrameAnswer {
    FrameAnswer { lane_sequence: sequence, responses: responses.to_vec().into() }
}

// Shows: lane frames are taken in strict order and once: a repeat gets the same answer and changes nothing, a gap and a conflict
// change nothing at all, not even for the good frames beside them; a hub sends for its own groups only. Failure: any other answer,
// an entry too many or too few in the queue. A new incarnation begins with a reset, or is refused.
// covers QS-001, QS-002, QS-040, QS-041, QS-042, QS-043, QS-044, QS-045, QS-047, QS-048
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lane_frames_are_taken_in_order_and_once() -> Result<(), Fault> {
    use QueueingServiceResponse::{InvalidClientQueueInformation as Invalid, Ok as Good};
    let mut stage = Stage::open(3, 7).await?;
    let alice = stage.person(0, "alice").await?;
    let (a, b, c) = (stage.domain(0), stage.domain(1), stage.domain(2));
    let group = GroupUri::new(&b, &stage.rng.random());
    let lane = Lane { raw: peer(&stage, 1).await?, group, incarnation: Incarnation::random() };
    let good = alice.queue_for(&b)?.client_queue_information;
    let of_other_hub = alice.queue_for(&c)?.client_queue_information;
    let mut spoilt = good.to_vec();
    spoilt[40] ^= 1;
    let spoilt = Opaque::from(spoilt);

    let first = frame(1, &[&good, &of_other_hub, &spoilt], "one");
    let answer = LaneResult::Accepted(vec![taken(1, &[Good, Invalid, Invalid])].into());
    assert_eq!(lane.send(vec![first.clone()]).await?, answer, "QS-001, QS-002");
    let before = stage.contents().await?;
    assert_eq!(lane.send(vec![first.clone()]).await?, answer, "a repeat");
    stage.expect_unchanged(&before, "a repeat").await?;

    // A repeat may carry renewed queue information, which is looked up anew whenever a frame is sent.
    let renewed = alice.queue_for(&b)?.client_queue_information;
    assert_eq!(lane.send(vec![frame(1, &[&renewed, &of_other_hub, &spoilt], "one")]).await?, answer);
    let conflict = LaneResult::Refused(Rejection::new(ErrorCode::LaneConflict));
    let two = frame(2, &[&good], "two");
    assert_eq!(lane.send(vec![frame(1, &[&good, &of_other_hub, &spoilt], "uno")]).await?, conflict);
    assert_eq!(lane.send(vec![LaneFrame { epoch: 8, ..first.clone() }]).await?, conflict, "another epoch");
    assert_eq!(lane.send(vec![frame(1, &[&good], "one")]).await?, conflict, "fewer recipients");
    assert_eq!(
        lane.send(vec![frame(1, &[&good, &of_other_hub, &spoilt], "uno"), two.clone()]).await?,
        conflict,
        "and a good one"
    );
    assert_eq!(lane.send(vec![frame(3, &[&good], "three")]).await?, LaneResult::Gap(2));
    assert_eq!(lane.send(vec![frame(u64::MAX, &[&good], "last")]).await?, LaneResult::Gap(2));
    let malformed = LaneResult::Refused(Rejection::new(ErrorCode::Malformed));
    let of_zero = frame(0, &[&good], "zero");
    assert_eq!(lane.send(vec![of_zero]).await?, malformed, "sequences begin at 1");
    assert_eq!(lane.send(vec![two.clone(), frame(4, &[&good], "four")]).await?, malformed, "a gap within a batch");
    assert_eq!(lane.send(vec![two.clone(), two.clone()]).await?, malformed, "a repeat within a batch");
    let large = Opaque::from(vec![0; QUEUE_INFORMATION_BYTES_MAX + 1]);
    let too_large = LaneResult::Refused(Rejection::new(ErrorCode::TooLarge));
    assert_eq!(lane.send(vec![frame(2, &[&good, &large], "two")]).await?, too_large, "QS-043");
    let many = (2..).take(LANE_BATCH_FRAMES_MAX + 1).map(|sequence| frame(sequence, &[], "")).collect();
    assert_eq!(lane.send(many).await?, too_large, "QS-040");

    let refused = LaneResult::Refused(Rejection::new(ErrorCode::NotAuthorized));
    for hub in [&a, &c] {
        let group = GroupUri::new(hub, &stage.rng.random());
        let of_other = Lane { raw: lane.raw.clone(), group, incarnation: Incarnation::random() };
        assert_eq!(of_other.send(vec![frame(1, &[&good], "one")]).await?, refused, "a group of {hub}");
    }
    let reset = |sequence| LaneFrame { delivery: Delivery::Reset, ..frame(sequence, &[&good], "") };
    assert_eq!(lane.send(vec![reset(2)]).await?, malformed, "QS-047");
    let next = Lane { raw: lane.raw.clone(), group: lane.group.clone(), incarnation: Incarnation::random() };
    assert_eq!(next.send(vec![first.clone()]).await?, conflict, "QS-048");
    stage.expect_unchanged(&before, "refused frames").await?;

    assert_eq!(
        lane.send(vec![first, two]).await?,
        LaneResult::Accepted(vec![taken(1, &[Good, Invalid, Invalid]), taken(2, &[Good])].into())
    );
    let texts: Vec<String> = alice
        .entries()
        .await?
        .into_iter()
        .map(|entry| match entry.delivery {
            Delivery::Message(message) => String::from_utf8_lossy(&message.message).into_owned(),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(texts, ["one", "two"]);

    let begun = next.send(vec![reset(1), frame(2, &[&good], "after")]).await?;
    assert_eq!(begun, LaneResult::Accepted(vec![taken(1, &[Good]), taken(2, &[Good])].into()));
    let entries = alice.entries().await?;
    assert_eq!(entries[2].delivery, Delivery::MessagesLost, "what the lane had not delivered is lost");
    assert!(matches!(entries[3].delivery, Delivery::Message(_)) && entries.len() == 4);
    Ok(())
}
