//! Requests of a client that its node carries to another domain, and gets no answer to (S16, C4).

use std::time::Duration;

use federation_tests::people::Person;
use federation_tests::raw::{accepting_config, hello};
use federation_tests::stage::Stage;
use federation_tests::world::World;
use mimi_node::base::limits::{CLIENT_REQUEST_TIMEOUT, FRAME_BYTES_MAX};
use mimi_node::base::{Context as _, Domain, Fault, UnixMillis};
use mimi_node::federation::policy::Access;
use mimi_node::identity::{TlsCa, TlsCertificateOptions};
use mimi_node::node::config::Peer;
use mimi_node::transport::frame::{read_frame, write_frame};
use mimi_node::transport::{EndpointSecret, endpoint};
use mimi_node::wire::error::{Sent, UnreachableDomain, UnreachableReason};
use mimi_node::wire::keys::{ClaimKeyPackages, KeysRequest};
use mimi_node::wire::peer::{PeerRequest, PeerResponse};
use mimi_node::wire::{ClientRequest, ErrorCode, decode, encode};
use quinn::Endpoint;
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use tokio::time::Instant;

/// MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519.
const CIPHERSUITE: u16 = 1;

/// A request that `domain` would have to answer.
fn claim(by: &Person, domain: &Domain) -> ClientRequest {
    let user = format!("mimi://{domain}/u/nobody");
    by.keys_request(domain, KeysRequest::Claim(ClaimKeyPackages { user: user.as_bytes().into(), ciphersuite: CIPHERSUITE }))
}

/// What is said to `request`, which got no answer from its destination; and how long that took.
async fn told(by: &Person, request: &ClientRequest) -> Result<(UnreachableDomain, Duration), Fault> {
    let begun = Instant::now();
    let rejection = by.ask(request).await?.err().context("it was carried there and answered")?;
    let told = rejection.as_unreachable().with_context(|| format!("it was refused otherwise: {rejection}"))?;
    Ok((told, begun.elapsed()))
}

/// Somebody in the place of a domain's node, with a certificate of `ca`, who answers to `hello` and to nothing else.
fn mute(world: &World, index: usize, ca: &TlsCa) -> Result<Endpoint, Fault> {
    let site = world.site(index);
    let certificate = ca.issue(&TlsCertificateOptions::for_domain(&site.domain), UnixMillis::now())?;
    let endpoint = endpoint::bind(site.federation, Some(accepting_config(ca, &certificate)?), &EndpointSecret::generate())?;
    let (accepting, domain) = (endpoint.clone(), site.domain.clone());
    tokio::spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            let domain = domain.clone();
            tokio::spawn(async move {
                let Ok(connection) = incoming.await else { return };
                let mut open = Vec::new();
                while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                    let frame = read_frame(&mut recv, FRAME_BYTES_MAX).await;
                    if matches!(frame, Ok(Some(frame)) if matches!(decode(&frame), Ok(PeerRequest::Hello(_)))) {
                        let _ = write_frame(&mut send, &encode(&PeerResponse::Hello(hello(&domain)))).await;
                    }
                    open.push((send, recv));
                }
            });
        }
    });
    Ok(endpoint)
}

// Shows: a client is told why a domain gave no answer, and whether its request may have had an effect there, and is told so within
// its request's deadline, also when the other node is there and silent; the same request, repeated, is answered when the domain is
// back, and once it was tried and failed, others wait for the next try.
// Fails if: a reason or its second half is another; an answer comes after the deadline, or none; the repeat is taken for a replay.
// Is no failure: how long a try takes, within the deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_told_why_a_domain_gave_no_answer() -> Result<(), Fault> {
    let dir = tempfile::tempdir().context("no directory")?;
    let world = World::open(dir.path(), 4).await?;
    let a = world.start(0).await?;
    let alice = Person::enrol(&world, 0, "alice", &mut ChaCha20Rng::seed_from_u64(31)).await?;
    let [b, c, d] = [1, 2, 3].map(|index| world.site(index).domain.clone());
    let read = |name: &str| std::fs::read_to_string(world.dir().join(name)).context("the CA cannot be read");
    let known = TlsCa::load(&read("ca/ca.pem")?, &read("ca/ca.key")?)?;
    let unknown = TlsCa::create("somebody else's CA", UnixMillis::now())?;

    let nowhere: Domain = "nowhere.test".parse().context("a domain")?;
    let (nobody, _) = told(&alice, &claim(&alice, &nowhere)).await?;
    assert_eq!(nobody, UnreachableDomain { why: UnreachableReason::NoSuchDomain, sent: Sent::NotSent });
    let (again, _) = told(&alice, &claim(&alice, &nowhere)).await?;
    assert_eq!(again, UnreachableDomain { why: UnreachableReason::BackingOff, sent: Sent::NotSent });

    // Nothing listens there.
    let (down, took) = told(&alice, &claim(&alice, &d)).await?;
    assert_eq!(down, UnreachableDomain { why: UnreachableReason::Refused, sent: Sent::NotSent });
    assert!(took < CLIENT_REQUEST_TIMEOUT, "{took:?}");

    let false_ = mute(&world, 1, &unknown)?;
    let (false_one, _) = told(&alice, &claim(&alice, &b)).await?;
    assert_eq!(false_one, UnreachableDomain { why: UnreachableReason::Certificate, sent: Sent::NotSent });
    drop(false_);

    let silent = mute(&world, 2, &known)?;
    let request = claim(&alice, &c);
    let (unanswered, took) = told(&alice, &request).await?;
    assert_eq!(unanswered, UnreachableDomain { why: UnreachableReason::TimedOut, sent: Sent::OutcomeUnknown });
    assert!(took < CLIENT_REQUEST_TIMEOUT, "{took:?}");
    eprintln!("the silent one: after {took:?} of {CLIENT_REQUEST_TIMEOUT:?}");
    silent.close(0u8.into(), b"");
    silent.wait_idle().await;
    drop(silent);

    // The real node comes into its place: the very same request is answered, by it.
    let back = loop {
        match world.start(2).await {
            Ok(node) => break node,
            // The port is free once the last task of the other has ended.
            Err(fault) if fault.to_string().contains("in use") => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(fault) => return Err(fault),
        }
    };
    a.service().retry_peer(&c);
    let answered = loop {
        let rejection = alice.ask(&request).await?.err().context("nobody has KeyPackages")?;
        if rejection.code != ErrorCode::UnreachableDomain {
            break rejection;
        }
        a.service().retry_peer(&c);
    };
    assert_eq!(answered.code, ErrorCode::UnknownUser);
    back.stop().await?;
    a.stop().await
}

// Shows: who is denied there is told so, at once and not after a time-out.
// Fails if: the reason is another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_told_that_its_domain_is_denied() -> Result<(), Fault> {
    let mut stage = Stage::open(2, 32).await?;
    let alice = stage.person(0, "alice").await?;
    let own = stage.domain(0);
    stage.world.change_config(1, |config| {
        let denied = Peer { access: Some(Access::Deny), ..Default::default() };
        config.peers.insert(own, denied);
    })?;
    stage.restart(1).await?;
    let (denied, _) = told(&alice, &claim(&alice, &stage.domain(1))).await?;
    assert_eq!(denied, UnreachableDomain { why: UnreachableReason::Denied, sent: Sent::NotSent });
    stage.stop().await
}
