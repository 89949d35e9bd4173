//! AS roots that come and go (X2), between real nodes and their clients.

use std::time::Duration;

use mimi_node::base::limits::Limits;
use mimi_node::base::{Context as _, Domain, Fault, GroupUri, UnixMillis, UserUri};
use mimi_node::client::{Client, ClientError};
use mimi_node::identity::rollover::fingerprint;
use mimi_node::identity::{TlsCa, TlsCertificateOptions};
use mimi_node::node::init::NewNode;
use mimi_node::service::roots::{approve, own, pending, retire, roll, vouch};
use mimi_node::storage::Storage;
use mimi_node::wire::decode;
use mimi_node::wire::info::DomainInfo;
use tokio::time::Instant;

use super::gathering::{Gathering, Listening, TIMEOUT};

/// Waits until `done`, asking now and then.
async fn until(what: &str, mut done: impl AsyncFnMut() -> Result<bool, Fault>) -> Result<(), Fault> {
    let deadline = Instant::now() + TIMEOUT;
    while !done().await? {
        if Instant::now() > deadline {
            return Err(Fault::new(format!("in vain: {what}")));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn database(of: &Gathering, index: usize) -> Result<Storage, Fault> {
    Storage::open_beside(&of.world.config(index)?.data).await
}

/// The fingerprints of what a domain's node has pinned of another one.
async fn pinned(storage: &Storage, domain: &Domain) -> Result<Vec<[u8; 32]>, Fault> {
    let Some((_, info)) = storage.pinned_domains().await?.into_iter().find(|(pinned, _)| pinned == domain) else {
        return Ok(Vec::new());
    };
    let info: DomainInfo = decode(&info).context("what is pinned is damaged")?;
    Ok(info.as_roots.iter().map(|root| fingerprint(root)).collect())
}

/// Who is in a group, as one of its members sees it.
async fn members(client: &Client, group: &GroupUri) -> Result<Vec<String>, Fault> {
    let mut members: Vec<String> = client.members(group).await.context("no members")?.1.iter().map(ToString::to_string).collect();
    members.sort();
    Ok(members)
}

fn untrusted<T: std::fmt::Debug>(done: Result<T, ClientError>, what: &str) {
    match done {
        Err(ClientError::Untrusted(_)) => {}
        other => panic!("{what}: {other:?}"),
    }
}

// Shows: b.test gets a new AS root while a group of both domains talks, and loses the old one later. The nodes go on running; a.test
// and its clients follow by themselves; users of b.test come in under the new root at once, those who were there renew; when the
// old root is retired a client that did not renew is removed and everybody else goes on. Failure: a message or a member that does
// not arrive, a root that is followed without a signature or not followed with one, a leaf under the retired root that stays. Not a
// failure: that a member has to resync on the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roots_are_rolled_and_retired_under_traffic() -> Result<(), Fault> {
    let of = Gathering::start(2, &Limits::default()).await?;
    let (alice, bob, dave) = (of.enrol(0, "alice").await?, of.enrol(1, "bob").await?, of.enrol(1, "dave").await?);
    let group = of.group(&alice, &[&bob, &dave]).await?;
    let dave_uri = dave.uri().to_string();
    dave.sync().await.context("dave")?;
    dave.close().await;
    let (alice, bob) = (Listening::new(&alice), Listening::new(&bob));
    bob.until("bob is in", async |bob| members(&bob.client, &group).await.is_ok()).await?;
    let (a, b) = (database(&of, 0).await?, database(&of, 1).await?);
    let b_test = of.world.site(1).domain.clone();
    let old = own(&b, &b_test).await?.remove(0).fingerprint;

    let new = roll(&b, &b_test, UnixMillis::now()).await?;
    until("b.test issues with its new root", async || Ok(of.node(1).service().own_roots().version() == 1)).await?;
    until("a.test follows by itself", async || Ok(pinned(&a, &b_test).await? == [old, new])).await?;
    let carol = of.enrol(1, "carol").await?;
    let issued: Vec<bool> =
        own(&b, &b_test).await?.iter().map(|root| root.users.iter().any(|user| user == carol.uri().user())).collect();
    assert_eq!(issued, [false, true], "whoever comes now is under the new root");
    let user: UserUri = carol.uri().user().clone();
    alice.client.add_users(&group, std::slice::from_ref(&user)).await.context("carol is not added")?;
    let carol = Listening::new(&carol);
    carol.until("carol is in", async |carol| members(&carol.client, &group).await.is_ok()).await?;
    carol.client.send(&group, "under the new root").await.context("carol cannot send")?;
    bob.client.send(&group, "under the old one").await.context("bob cannot send")?;
    for (listening, text) in [(&alice, "under the new root"), (&alice, "under the old one"), (&bob, "under the new root")] {
        let heard = async |listening: &Listening| {
            let history = listening.client.history(Some(&group)).await.unwrap_or_default();
            history.iter().any(|line| line.text == text)
        };
        listening.until(text, heard).await?;
    }

    assert!(retire(&b, &b_test, old, false, UnixMillis::now()).await.is_err(), "while somebody has a certificate of it");
    assert!(retire(&b, &b_test, new, true, UnixMillis::now()).await.is_err(), "it issues");
    // Perhaps it has done so by itself.
    bob.client.renew_certificates().await.context("bob cannot renew")?;
    assert!(!bob.client.renew_certificates().await.context("bob cannot ask again")?, "once is enough");
    let users: Vec<usize> = own(&b, &b_test).await?.iter().map(|root| root.users.len()).collect();
    assert_eq!(users, [1, 2], "dave, who is not there, under the old root; bob and carol under the new one");
    // His leaf is renewed with the round of upkeep that follows; what he sends then is as good as before.
    bob.client.update(&group).await.context("bob's leaf")?;
    retire(&b, &b_test, old, true, UnixMillis::now()).await?;
    until("a.test has followed again", async || Ok(pinned(&a, &b_test).await? == [new])).await?;
    let without_dave = async |listening: &Listening| {
        members(&listening.client, &group).await.is_ok_and(|members| members.len() == 3 && !members.contains(&dave_uri))
    };
    for listening in [&alice, &bob, &carol] {
        listening.until("dave is removed and nobody else", without_dave).await?;
    }
    bob.client.send(&group, "after it all").await.context("bob cannot send any more")?;
    let heard = async |listening: &Listening| {
        let history = listening.client.history(Some(&group)).await.unwrap_or_default();
        history.iter().any(|line| line.text == "after it all")
    };
    alice.until("after it all", heard).await?;
    // A new connection of a client under the new root, to a node that knows no other.
    let eve = of.enrol(1, "eve").await?;
    eve.create_group(None).await.context("eve")?;
    a.close().await;
    b.close().await;
    drop((alice, bob, carol));
    of.stop().await
}

// Shows: a domain whose Authentication Service is another one all of a sudden, with a good TLS certificate but without a signature by a
// root that is pinned, is not believed: neither by the other domain's node nor by a client. The operator sees it, and only after its
// approval the new root is used. Failure: a pin that moves before, a user under the new root that comes in, a pending root that is not
// shown, an approval of another fingerprint that is taken. Not a failure: that a client which had pinned the old root goes on refusing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_that_nobody_vouches_for_waits_for_the_operator() -> Result<(), Fault> {
    let mut of = Gathering::start(2, &Limits::default()).await?;
    let (alice, bob) = (of.enrol(0, "alice").await?, of.enrol(1, "bob").await?);
    of.group(&alice, &[&bob]).await?;
    bob.close().await;
    let a = database(&of, 0).await?;
    let b_test = of.world.site(1).domain.clone();
    let old = pinned(&a, &b_test).await?;

    let again = tempfile::tempdir().context("no directory")?;
    let elsewhere = again.path().to_owned();
    of.restart_changed(1, async |world| {
        let read = |name: &str| std::fs::read_to_string(world.dir().join(name)).context("the CA cannot be read");
        let ca = TlsCa::load(&read("ca/ca.pem")?, &read("ca/ca.key")?)?;
        let config = world.config(1)?;
        let node =
            NewNode { domain: &config.domain, directory: &elsewhere, listen: config.listen.clone(), dns: Vec::new(), ca: &ca };
        node.set_up().await?;
        world.change_config(1, |config| config.data = elsewhere.join("data"))
    })
    .await?;
    let mallory = of.enrol(1, "mallory").await?;
    let group = alice.create_group(None).await.context("no group")?;
    let user = mallory.uri().user().clone();
    untrusted(alice.add_users(&group, std::slice::from_ref(&user)).await, "a client that knows the old root");
    let zoe = of.enrol(0, "zoe").await?;
    let her_group = zoe.create_group(None).await.context("no group")?;
    untrusted(zoe.add_users(&her_group, std::slice::from_ref(&user)).await, "one that never saw b.test asks its node");
    // Not asked twice within a few seconds.
    until("the operator sees it", async || {
        untrusted(alice.add_users(&group, std::slice::from_ref(&user)).await, "again");
        Ok(!pending(&a).await?.is_empty())
    })
    .await?;
    assert_eq!(pinned(&a, &b_test).await?, old, "nothing moves");

    let waiting = pending(&a).await?;
    let [waiting] = &waiting[..] else { return Err(Fault::new(format!("{waiting:?}"))) };
    assert_eq!((&waiting.domain, waiting.unknown.len(), waiting.missing.len()), (&b_test, 1, 1));
    let new = fingerprint(&waiting.unknown[0]);
    assert!(approve(&a, &b_test, &[[7; 32]], UnixMillis::now()).await.is_err(), "another fingerprint");
    assert!(approve(&a, &of.world.site(0).domain.clone(), &[new], UnixMillis::now()).await.is_err(), "another domain");
    assert_eq!(pinned(&a, &b_test).await?, old);
    of.node(0).service().approve_roots(&b_test, &[new]).await?;
    assert!(pending(&a).await?.is_empty());
    let yan = of.enrol(0, "yan").await?;
    let his_group = yan.create_group(None).await.context("no group")?;
    yan.add_users(&his_group, std::slice::from_ref(&user)).await.context("a user under the approved root")?;
    untrusted(alice.add_users(&group, std::slice::from_ref(&user)).await, "alice has pinned the old root, and no word of it");
    a.close().await;
    of.stop().await
}

// Shows: the TLS CA of a node is exchanged for another one without a client that has to be enrolled anew: the domain vouches for both
// first, clients hear of it, then the certificate changes. Failure: a client that heard of it and cannot connect, or one that trusts a CA that
// nobody vouched for. Not a failure: that a client which was never there in between has to be enrolled anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_follow_their_domain_to_another_tls_ca() -> Result<(), Fault> {
    let mut of = Gathering::start(1, &Limits::default()).await?;
    let (alice, late) = (of.enrol(0, "alice").await?, of.enrol(0, "late").await?);
    late.close().await;
    let domain = of.world.site(0).domain.clone();
    let storage = database(&of, 0).await?;
    let other = TlsCa::create("the next TLS CA", UnixMillis::now())?;
    let read = |name: &str| std::fs::read_to_string(of.world.dir().join(name)).context("the CA cannot be read");
    let first = TlsCa::load(&read("ca/ca.pem")?, &read("ca/ca.key")?)?;
    vouch(&storage, &domain, vec![first.spki_hash(), other.spki_hash()], UnixMillis::now()).await?;
    storage.close().await;
    until("the domain says so", async || Ok(of.node(0).service().own_roots().version() == 1)).await?;
    assert!(!alice.renew_certificates().await.context("alice cannot ask")?, "the same root issues");
    of.restart_changed(0, async |world| {
        let directory = world.site_dir(0).join("tls");
        let certificate = other.issue(&TlsCertificateOptions::for_domain(&world.site(0).domain), UnixMillis::now())?;
        let failed = "cannot write a certificate";
        std::fs::write(directory.join("node.pem"), &certificate.chain_pem).context(failed)?;
        std::fs::write(directory.join("node.key"), certificate.key_pem.expose()).context(failed)
    })
    .await?;
    alice.create_group(None).await.context("alice does not follow")?;
    alice.close().await;
    let alice = Client::open(&of.world.client_dir("alice"), of.settings("alice")).await.context("alice cannot be opened")?;
    alice.create_group(None).await.context("alice has forgotten")?;
    let hurried = mimi_node::client::ClientSettings { request_deadline: Duration::from_secs(3), ..of.settings("late") };
    let late = Client::open(&of.world.client_dir("late"), hurried).await.context("late cannot be opened")?;
    let refused = late.renew_certificates().await;
    assert!(matches!(refused, Err(ClientError::NotReached(_) | ClientError::NotConfirmed(_))), "{refused:?}");
    of.stop().await
}
