//! Groups that people leave, decline, delete, and join by themselves.

use mimi_node::base::limits::Limits;
use mimi_node::base::{Context as _, Fault};
use mimi_node::client::{Event, GroupStatus};
use mimi_node::wire::ErrorCode;

use crate::gathering::{Gathering, Listening};

// Shows: who asks to leave is out as soon as somebody else's client has committed it, with all devices; the others go on.
// Failure: a member that stays, a group that stands still.
// covers S9 S13
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_leaves_with_all_devices() -> Result<(), Fault> {
    let gathering = Gathering::start(2, &Limits::default()).await?;
    let (alice, bob, carol) =
        (gathering.enrol(0, "alice").await?, gathering.enrol(1, "bob").await?, gathering.enrol(1, "carol").await?);
    let laptop = gathering.pair(&bob, "laptop", "bob-laptop").await?;
    let group = gathering.group(&alice, &[&bob, &carol]).await?;
    let (alice, bob, carol, laptop) =
        (Listening::new(&alice), Listening::new(&bob), Listening::new(&carol), Listening::new(&laptop));
    for listening in [&alice, &bob, &carol, &laptop] {
        listening.sees(&group, &[alice.client.uri(), bob.client.uri(), carol.client.uri(), laptop.client.uri()]).await?;
    }
    bob.client.leave(&group).await.context("cannot leave")?;
    assert!(bob.client.send(&group, "one more thing").await.is_err());
    for listening in [&alice, &carol] {
        listening.sees(&group, &[alice.client.uri(), carol.client.uri()]).await?;
    }
    for gone in [&bob, &laptop] {
        let told = async |this: &Listening| this.events().iter().any(|event| matches!(event, Event::Left { .. }));
        gone.until("learning that it is out", told).await?;
    }
    alice.says(&group, "they are gone", &[&carol]).await?;
    gathering.stop().await
}

// Shows: a deleted group is gone for its members, who learn it by a Commit, and answers `group_deleted` to whoever comes later.
// covers S7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_group_is_gone() -> Result<(), Fault> {
    let gathering = Gathering::start(2, &Limits::default()).await?;
    let (alice, bob) = (gathering.enrol(0, "alice").await?, gathering.enrol(1, "bob").await?);
    let group = gathering.group(&alice, &[&bob]).await?;
    let bob = Listening::new(&bob);
    bob.sees(&group, &[alice.uri(), bob.client.uri()]).await?;
    alice.delete_group(&group).await.context("cannot delete")?;
    let told = async |this: &Listening| this.events().iter().any(|event| matches!(event, Event::Left { .. }));
    bob.until("learning that the group is gone", told).await?;
    let refused = bob.client.join(&group).await.expect_err("there is no group");
    assert_eq!(refused.code(), Some(ErrorCode::GroupDeleted), "{refused}");
    assert_eq!(alice.groups().await.context("no groups")?[0].status, GroupStatus::Deleted);
    gathering.stop().await
}

// Shows: users join an open group by themselves, from another domain, too, and no longer once it is closed. Failure: somebody who
// comes into a closed group, or a member who cannot be read.
// covers S9 S19
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_join_an_open_group_by_themselves() -> Result<(), Fault> {
    let gathering = Gathering::start(2, &Limits::default()).await?;
    let (alice, bob, carol) =
        (gathering.enrol(0, "alice").await?, gathering.enrol(1, "bob").await?, gathering.enrol(1, "carol").await?);
    let group = gathering.group(&alice, &[]).await?;
    let (alice, bob) = (Listening::new(&alice), Listening::new(&bob));
    let refused = bob.client.join(&group).await.expect_err("it is closed");
    assert_eq!(refused.code(), Some(ErrorCode::NotAuthorized), "{refused}");
    alice.client.set_open(&group, true).await.context("cannot be opened")?;
    bob.client.join(&group).await.context("cannot join")?;
    for listening in [&alice, &bob] {
        listening.sees(&group, &[alice.client.uri(), bob.client.uri()]).await?;
    }
    bob.says(&group, "may I?", &[&alice]).await?;
    alice.says(&group, "come in", &[&bob]).await?;
    bob.client.set_open(&group, false).await.context("cannot be closed")?;
    let refused = carol.join(&group).await.expect_err("it is closed again");
    assert_eq!(refused.code(), Some(ErrorCode::NotAuthorized), "{refused}");
    gathering.stop().await
}

// Shows: an invitation can wait for its user's word. Declined, the leaf that it made goes; accepted, the user is in.
// covers S9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invitation_waits_and_is_declined_or_accepted() -> Result<(), Fault> {
    let gathering = Gathering::start(2, &Limits::default()).await?;
    let (alice, bob) = (gathering.enrol(0, "alice").await?, gathering.enrol(1, "bob").await?);
    bob.hold_invitations(true).await.context("cannot hold")?;
    let (unwanted, wanted) = (gathering.group(&alice, &[&bob]).await?, gathering.group(&alice, &[&bob]).await?);
    let (alice, bob) = (Listening::new(&alice), Listening::new(&bob));
    let both = async |this: &Listening| this.client.invitations().await.is_ok_and(|waiting| waiting.len() == 2);
    bob.until("being invited", both).await?;
    bob.client.decline(&unwanted).await.context("cannot decline")?;
    alice.sees(&unwanted, &[alice.client.uri()]).await?;
    bob.client.join(&wanted).await.context("cannot accept")?;
    bob.says(&wanted, "thank you", &[&alice]).await?;
    gathering.stop().await
}
