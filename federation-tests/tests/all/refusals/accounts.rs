//! Accounts: what a user may ask about its own and nobody else's, and what is over when a client or user is.

use std::time::Duration;

use federation_tests::people::{Person, Room, ask, stranger};
use federation_tests::raw::{Ended, Raw};
use federation_tests::stage::Stage;
use mimi_node::base::limits::FRAME_BYTES_MAX;
use mimi_node::base::{Context as _, Fault};
use mimi_node::transport::CloseCode;
use mimi_node::transport::frame::{read_frame, write_frame};
use mimi_node::wire::accounts::{AccountsRequest, BlockedName, RevokeClient};
use mimi_node::wire::keys::{ClaimKeyPackages, KeysRequest, PublishKeyPackages};
use mimi_node::wire::qs::{FetchEntries, QsRequest};
use mimi_node::wire::{ErrorCode, Opaque, Rejection, Reply, Response, decode, encode};

use super::ALICE;

fn revoke(client: &str) -> AccountsRequest {
    AccountsRequest::RevokeClient(RevokeClient { client: client.as_bytes().into() })
}

fn block(name: &str) -> AccountsRequest {
    AccountsRequest::Block(BlockedName { name: name.as_bytes().into() })
}

fn claim(by: &Person, of: &Person) -> mimi_node::wire::ClientRequest {
    let body = ClaimKeyPackages { user: of.user.to_bytes().into(), ciphersuite: 1 };
    by.keys_request(of.domain(), KeysRequest::Claim(body))
}

async fn publish(person: &Person, stage: &mut Stage, count: usize) -> Result<(), Fault> {
    let mut key_packages = Vec::new();
    for _ in 0..count {
        key_packages.push(Opaque::from(person.key_package(&mut stage.rng)?.message()));
    }
    let publish = KeysRequest::Publish(PublishKeyPackages { key_packages: key_packages.into(), last_resort: None });
    assert_eq!(person.ask(&person.keys_request(person.domain(), publish)).await?, Ok(Reply::Done));
    Ok(())
}

// Shows: an account obeys the key that its user is enrolled with, and nobody else's. Failure: another code, or any change.
// covers AS-004, AS-005, AS-006, AS-009, AS-010, AS-011
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_obeys_its_users_key() -> Result<(), Fault> {
    let mut stage = Stage::open(2, 31).await?;
    let alice = stage.person(0, "alice").await?;
    let anna = stage.person(0, "anna").await?;
    let bob = stage.person(1, "bob").await?;
    let by_other = alice.account_request(AccountsRequest::DeleteUser).content.sign(&anna.user_key);
    stage.refuses("alice's account, by anna", &anna, &by_other, ErrorCode::BadSignature).await?;
    let by_device = alice.account_request(AccountsRequest::DeleteUser).content.sign(&alice.device.key);
    stage.refuses("by the device's key", &alice, &by_device, ErrorCode::BadSignature).await?;
    let mut of_bob = bob.account_request(AccountsRequest::DeleteUser).content;
    of_bob.destination = alice.domain().as_bytes().into();
    stage.refuses("a user of b.test", &alice, &of_bob.sign(&bob.user_key), ErrorCode::InvalidCredential).await?;
    for (what, request, code) in [
        ("anna's client", revoke("mimi://a.test/d/anna/phone"), ErrorCode::NotAuthorized),
        ("a client of b.test", revoke("mimi://b.test/d/alice/phone"), ErrorCode::NotAuthorized),
        ("a client that has shown no key", revoke("mimi://a.test/d/alice/watch"), ErrorCode::UnknownUser),
        ("no client", revoke("phone"), ErrorCode::Malformed),
        ("oneself", block("mimi://a.test/u/alice"), ErrorCode::Malformed),
        ("nobody", block("somebody"), ErrorCode::Malformed),
    ] {
        stage.refuses(what, &alice, &alice.account_request(request), code).await?;
    }
    Ok(())
}

// Shows: a revoked client is cut off at once: its subscription, its requests, its next connection; a repeat of the request that did
// it is answered. Failure: anything that goes on, or another answer.
// covers AS-008
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_client_is_cut_off() -> Result<(), Fault> {
    let mut stage = Stage::open(1, 32).await?;
    let alice = stage.person(0, "alice").await?;
    let invitation = stage.world.invite(0, "unused").await?;
    let (mut send, mut recv) = alice.home.connection.open_bi().await.context("no stream")?;
    let subscribe = alice.queue_request(QsRequest::Subscribe(FetchEntries { from: 1, max: 10 }));
    write_frame(&mut send, &encode(&subscribe)).await.context("not written")?;
    let revoke = alice.account_request(revoke(&alice.device.uri.to_string()));
    assert_eq!(alice.ask(&revoke).await?, Ok(Reply::Done));
    let refused = Err(Rejection::new(ErrorCode::InvalidCredential));
    let ended = read_frame(&mut recv, FRAME_BYTES_MAX).await.context("no answer")?.context("it just ended")?;
    assert_eq!(decode::<Response>(&ended).context("malformed")?.into_result(), refused, "the subscription");
    let count = alice.keys_request(alice.domain(), KeysRequest::Count);
    assert_eq!(alice.ask(&count).await?, refused, "a request");
    assert_eq!(alice.ask(&revoke).await?, Ok(Reply::Done), "a repeat");
    let site = stage.world.site(0);
    let pin = invitation.tls_ca_spki_hash;
    let again = Raw::client(site.client, &site.domain, pin, Some(&alice.device.tls())).await;
    let again = again.map_err(|ended| Fault::new(format!("not connected: {ended:?}")))?;
    let closed = tokio::time::timeout(Duration::from_secs(10), again.closed()).await.context("it stays open")?;
    assert_eq!(closed, Ended::Closed(CloseCode::NotAuthorized), "a connection");
    assert_eq!(ask(&stranger(&stage.world, 0, &invitation).await?, &revoke).await?, Ok(Reply::Done), "a repeat from anywhere");
    stage.restart(0).await?;
    let after = stranger(&stage.world, 0, &invitation).await?;
    assert_eq!(ask(&after, &revoke).await?, Ok(Reply::Done), "and after a restart");
    Ok(())
}

// Shows: the hubs that deliver to a user are told, and a block keeps a user and a domain from starting anything new, while what is
// there goes on. Failure: a KeyPackage for somebody blocked, a Welcome from there, or a group that falls silent.
// covers QS-006, QS-037
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_blocked_starts_nothing_new() -> Result<(), Fault> {
    let mut stage = Stage::open(2, 33).await?;
    let alice = stage.person(0, "alice").await?;
    let bob = stage.person(1, "bob").await?;
    let hubs = bob.account_request(AccountsRequest::Hubs);
    assert_eq!(bob.ask(&hubs).await?, Ok(Reply::Hubs(vec![].into())));
    publish(&bob, &mut stage, 3).await?;
    let mut rng = stage.rng.clone();
    let mut room = Room::create(&alice, &mut rng).await?;
    room.add((&alice, ALICE), &[&bob], &mut rng).await?;
    stage.contents().await?;
    assert_eq!(bob.ask(&hubs).await?, Ok(Reply::Hubs(vec![Opaque::from(&b"a.test"[..])].into())));

    assert!(matches!(alice.ask(&claim(&alice, &bob)).await?, Ok(Reply::KeyPackages(_))));
    for name in ["mimi://a.test/u/alice", "a.test"] {
        assert_eq!(bob.ask(&bob.account_request(block(name))).await?, Ok(Reply::Done));
        stage.refuses("a claim", &alice, &claim(&alice, &bob), ErrorCode::UnknownUser).await?;
        let unblock = AccountsRequest::Unblock(BlockedName { name: name.as_bytes().into() });
        assert_eq!(bob.ask(&bob.account_request(unblock)).await?, Ok(Reply::Done));
    }
    assert!(matches!(alice.ask(&claim(&alice, &bob)).await?, Ok(Reply::KeyPackages(_))));
    assert_eq!(bob.ask(&bob.account_request(block("a.test"))).await?, Ok(Reply::Done));

    let before = bob.entries().await?.len();
    room.update((&alice, ALICE)).await?;
    stage.contents().await?;
    assert_eq!(bob.entries().await?.len(), before + 1, "the group that is there goes on");
    let mut new = Room::create(&alice, &mut rng).await?;
    let forged = new.group.add(ALICE, vec![bob.key_package(&mut rng)?]).context("cannot forge an Add")?;
    let request = new.request(ALICE, &alice.device.key, new.add_body(&forged));
    federation_tests::people::accepted(alice.ask(&request).await?, &forged)?;
    stage.contents().await?;
    assert_eq!(bob.entries().await?.len(), before + 1, "a new one brings nothing");
    Ok(())
}
