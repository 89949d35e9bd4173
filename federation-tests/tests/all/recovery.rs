//! Clients that lost something: their state, or messages; and those that see to it in time that they lose nothing.

use std::time::Duration;

use mimi_node::base::limits::Limits;
use mimi_node::base::{Context as _, Fault};
use mimi_node::client::{Client, ClientSettings, Event, Upkeep};

use crate::gathering::{Gathering, Listening};

// Shows: with a backup of the user key, a client whose directory was deleted comes back under the same name into all groups, on
// any hub; its old leaf is removed by itself. Failure: a group that it is not in, two leaves of one name that stay.
// covers X6 S12
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_client_comes_back() -> Result<(), Fault> {
    let gathering = Gathering::start(2, &Limits::default()).await?;
    let (alice, bob) = (gathering.enrol(0, "alice").await?, gathering.enrol(1, "bob").await?);
    let groups = [gathering.group(&alice, &[&bob]).await?, gathering.group(&bob, &[&alice]).await?];
    let (alice, old) = (Listening::new(&alice), Listening::new(&bob));
    for group in &groups {
        for listening in [&alice, &old] {
            listening.sees(group, &[alice.client.uri(), old.client.uri()]).await?;
        }
    }
    let backup = bob.backup().await.context("no backup")?;
    drop(old);
    bob.close().await;
    let dir = gathering.world.client_dir("bob");
    std::fs::remove_dir_all(&dir).context("cannot delete")?;
    let bob = Client::recover(&dir, &backup, "phone", gathering.settings("bob-again")).await.context("cannot recover")?;
    let bob = Listening::new(&bob);
    for (number, group) in groups.iter().enumerate() {
        for listening in [&alice, &bob] {
            listening.sees(group, &[alice.client.uri(), bob.client.uri()]).await?;
        }
        bob.says(group, &format!("back in {number}"), &[&alice]).await?;
        alice.says(group, &format!("welcome back to {number}"), &[&bob]).await?;
    }
    gathering.stop().await
}

// Shows: a queue that ran over says so, and its client is back in the group by itself (X4). Failure: a client that reads nothing
// more, or loses messages without being told.
// covers X4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_queue_ran_over_resyncs_by_itself() -> Result<(), Fault> {
    let gathering = Gathering::start(2, &Limits { queue_entries_max: 10, ..Limits::default() }).await?;
    let (alice, bob) = (gathering.enrol(0, "alice").await?, gathering.enrol(1, "bob").await?);
    let group = gathering.group(&alice, &[&bob]).await?;
    Listening::new(&bob).sees(&group, &[alice.uri(), bob.uri()]).await?;
    let listening = Listening::new(&alice);
    for number in 0..30 {
        alice.send(&group, &format!("unread {number}")).await.context("cannot send")?;
        if number % 10 == 9 {
            alice.update(&group).await.context("cannot update")?;
        }
    }
    let bob = Listening::new(&bob);
    let resynced = async |this: &Listening| {
        let events = this.events();
        let lost = events.iter().any(|event| matches!(event, Event::MessagesLost { .. }));
        lost && events.iter().any(|event| matches!(event, Event::Resynced { .. }))
    };
    bob.until("resyncing", resynced).await?;
    listening.says(&group, "are you there?", &[&bob]).await?;
    bob.says(&group, "again", &[&listening]).await?;
    gathering.stop().await
}

// Shows: keys that are old are renewed, KeyPackages that end soon are replaced, and after a new generation of queue information
// its hubs deliver by the new one and nobody by the old (X3, S12). Failure: a member who is not reached any more.
// covers X3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_run_out_is_renewed_in_time() -> Result<(), Fault> {
    let gathering = Gathering::start(2, &Limits::default()).await?;
    let (alice, bob) = (gathering.enrol(0, "alice").await?, gathering.enrol(1, "bob").await?);
    let group = gathering.group(&alice, &[&bob]).await?;
    Listening::new(&bob).sees(&group, &[alice.uri(), bob.uri()]).await?;
    let (before, _) = bob.members(&group).await.context("no members")?;
    let generation = bob.renew_queue().await.context("no new generation")?;
    assert_eq!(bob.queue_state().await.context("no queue")?.generation, generation);
    bob.close().await;
    // A client for which every key is old as soon as it is made, but KeyPackages are not.
    let upkeep = Upkeep { leaf_age_max: Duration::ZERO, ..Upkeep::default() };
    let settings = ClientSettings { upkeep, ..gathering.settings("bob") };
    let bob = Client::open(&gathering.world.client_dir("bob"), settings).await.context("cannot open")?;
    bob.sync().await.context("cannot sync")?;
    let (after, _) = bob.members(&group).await.context("no members")?;
    assert_eq!(after, before + 1, "one Commit renewed the leaf");
    bob.close().await;
    let bob = Client::open(&gathering.world.client_dir("bob"), gathering.settings("bob")).await.context("cannot open")?;
    let (alice, bob) = (Listening::new(&alice), Listening::new(&bob));
    alice.says(&group, "still there?", &[&bob]).await?;
    bob.says(&group, "as ever", &[&alice]).await?;
    // The new KeyPackages work, too.
    let another = gathering.group(&alice.client, &[&bob.client]).await?;
    bob.sees(&another, &[alice.client.uri(), bob.client.uri()]).await?;
    alice.says(&another, "and here", &[&bob]).await?;
    gathering.stop().await
}
