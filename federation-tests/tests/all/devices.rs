//! A user's devices: a second one, and one that is lost.

use std::time::Instant;

use mimi_node::base::limits::Limits;
use mimi_node::base::{Context as _, Fault};
use mimi_node::client::Event;

use crate::gathering::{Gathering, Listening};

// Shows: a device that was paired is in all groups of its user, on any hub, reads and writes there, and can answer a pairing
// itself. Failure: a group that it is not in, a message that one of the devices does not get.
// covers S9 S19 X6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_device_is_in_all_groups_of_its_user() -> Result<(), Fault> {
    let gathering = Gathering::start(2, &Limits::default()).await?;
    let (alice, bob) = (gathering.enrol(0, "alice").await?, gathering.enrol(1, "bob").await?);
    let (at_a, at_b) = (gathering.group(&alice, &[&bob]).await?, gathering.group(&bob, &[&alice]).await?);
    let (alice, phone) = (Listening::new(&alice), Listening::new(&bob));
    phone.sees(&at_a, &[alice.client.uri(), phone.client.uri()]).await?;
    alice.sees(&at_b, &[alice.client.uri(), phone.client.uri()]).await?;
    let laptop = Listening::new(&gathering.pair(&phone.client, "laptop", "bob-laptop").await?);
    for (group, text) in [(&at_a, "at a"), (&at_b, "at b")] {
        let all = [alice.client.uri(), phone.client.uri(), laptop.client.uri()];
        for listening in [&alice, &phone, &laptop] {
            listening.sees(group, &all).await?;
        }
        laptop.says(group, &format!("laptop {text}"), &[&alice, &phone]).await?;
        alice.says(group, &format!("alice {text}"), &[&phone, &laptop]).await?;
    }
    let tablet = Listening::new(&gathering.pair(&laptop.client, "tablet", "bob-tablet").await?);
    tablet.says(&at_a, "from the tablet", &[&alice, &phone, &laptop]).await?;
    let devices = tablet.client.devices().await.context("no devices")?;
    let names: Vec<_> = devices.iter().map(|device| (device.client.device(), device.groups)).collect();
    assert_eq!(names, [("laptop", 2), ("phone", 2), ("tablet", 2)]);
    gathering.stop().await
}

// Shows: when a user revokes a device, it is removed from every group, on its own domain and others, without anybody naming a
// group, and the groups go on: somebody's client commits it within seconds (S12, S13, X1). The device can do nothing any more.
// Failure: a group that the device is still in, that cannot be written to, or a message that comes twice or not at all.
// covers S12 S13 X1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_device_is_removed_from_every_group() -> Result<(), Fault> {
    let gathering = Gathering::start(2, &Limits::default()).await?;
    let (alice, bob) = (gathering.enrol(0, "alice").await?, gathering.enrol(1, "bob").await?);
    let laptop = gathering.pair(&bob, "laptop", "bob-laptop").await?;
    let groups = [gathering.group(&alice, &[&bob]).await?, gathering.group(&bob, &[&alice]).await?];
    let (alice, phone, laptop) = (Listening::new(&alice), Listening::new(&bob), Listening::new(&laptop));
    for group in &groups {
        for listening in [&alice, &phone, &laptop] {
            listening.sees(group, &[alice.client.uri(), phone.client.uri(), laptop.client.uri()]).await?;
        }
    }
    let began = Instant::now();
    phone.client.remove_device("laptop").await.context("not removed")?;
    for group in &groups {
        for listening in [&alice, &phone] {
            listening.sees(group, &[alice.client.uri(), phone.client.uri()]).await?;
        }
        alice.says(group, &format!("without the laptop in {group}"), &[&phone]).await?;
    }
    println!("{} groups went on after {:?}", groups.len(), began.elapsed());
    assert!(laptop.client.send(&groups[0], "from the thief").await.is_err());
    let said = |listening: &Listening, text: &str| {
        listening.events().iter().filter(|event| matches!(event, Event::Message { text: its, .. } if its == text)).count()
    };
    assert_eq!(said(&alice, "from the thief") + said(&phone, "from the thief"), 0);
    for group in &groups {
        assert_eq!(said(&phone, &format!("without the laptop in {group}")), 1);
    }
    gathering.stop().await
}

// Shows: of many members who all learn of a removal, about one commits it: one epoch, and few Commits in vain (S13). Failure: a
// group that needs several epochs, or in which most members make a Commit.
// covers S13
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_members_about_one_commits_a_removal() -> Result<(), Fault> {
    const OTHERS: usize = 12;
    let gathering = Gathering::start(1, &Limits::default()).await?;
    let alice = gathering.enrol(0, "alice").await?;
    let laptop = gathering.pair(&alice, "laptop", "alice-laptop").await?;
    let mut others = Vec::new();
    for number in 0..OTHERS {
        others.push(gathering.enrol(0, &format!("member-{number}")).await?);
    }
    let group = gathering.group(&alice, &others.iter().collect::<Vec<_>>()).await?;
    let mut all: Vec<Listening> = others.iter().map(Listening::new).collect();
    all.push(Listening::new(&alice));
    all.push(Listening::new(&laptop));
    let everyone: Vec<_> = all.iter().map(|listening| listening.client.uri().clone()).collect();
    for listening in &all {
        listening.sees(&group, &everyone.iter().collect::<Vec<_>>()).await?;
    }
    let (before, _) = alice.members(&group).await.context("no members")?;
    alice.remove_device("laptop").await.context("not removed")?;
    let (_gone, stay) = all.split_last().context("they are there")?;
    let left: Vec<_> = stay.iter().map(|listening| listening.client.uri()).collect();
    for listening in stay {
        listening.sees(&group, &left).await?;
    }
    let (after, _) = alice.members(&group).await.context("no members")?;
    assert_eq!(after, before + 1);
    let names = (0..OTHERS).map(|number| format!("member-{number}")).chain(["alice".to_owned()]);
    let in_vain = names
        .map(|name| std::fs::read_to_string(gathering.world.log_path(&name)).context("no log"))
        .collect::<Result<Vec<_>, Fault>>()?
        .iter()
        .map(|log| log.matches("\"commit_refused\"").count())
        .sum::<usize>();
    println!("{in_vain} Commits of {} members were in vain", OTHERS + 1);
    assert!(in_vain <= OTHERS * 2 / 3, "{in_vain} Commits in vain");
    gathering.stop().await
}
