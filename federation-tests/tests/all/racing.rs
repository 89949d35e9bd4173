//! Many committers, one hub: exactly one Commit per epoch.

use std::sync::Arc;
use std::time::Duration;

use federation_tests::people::{Person, Room};
use federation_tests::stage::Stage;
use federation_tests::synth::{Forged, SynthGroup};
use mimi_node::base::Fault;
use mimi_node::base::crypto::sha256;
use mimi_node::wire::error::WrongEpoch;
use mimi_node::wire::qs::{Delivery, QueueEntry};
use mimi_node::wire::{Reply, Response, decode};
use rand::Rng as _;
use rand::seq::SliceRandom as _;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

/// A number from the environment, or the default.
fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A committer: its leaf, and the group as if its commit won.
struct Entry {
    leaf: u32,
    forged: Forged,
    group: SynthGroup,
}

// Shows: of 64 commits that are in flight at once for the same epoch, from members of two domains (the guests' through their own
// node), exactly one is accepted, and all others are told the hash of the one that was; 25 epochs long. At the end every member's
// queue has each accepted Commit of the others once, in order, with its receipt, and nothing else. Failure: two receipts or none in
// an epoch, a refusal of any other kind, a queue that lacks, repeats or reorders. Not a failure: who wins.
// MIMI_TEST_RACERS and MIMI_TEST_EPOCHS make it larger: 200 epochs take some minutes.
// covers DS-040
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_commit_per_epoch_is_accepted() -> Result<(), Fault> {
    let (racers, epochs) = (number("MIMI_TEST_RACERS", 64), number("MIMI_TEST_EPOCHS", 25));
    let mut stage = Stage::open(2, 31).await?;
    let mut people = Vec::new();
    for racer in 0..racers {
        people.push(stage.person(racer % 2, &format!("racer{racer}")).await?);
    }
    let mut room = Room::create(&people[0], &mut stage.rng).await?;
    let others: Vec<&Person> = people[1..].iter().collect();
    room.add((&people[0], 0), &others, &mut stage.rng).await?;
    let people: Vec<Arc<Person>> = people.into_iter().map(Arc::new).collect();
    let start = room.group.epoch();

    let mut winners: Vec<(usize, [u8; 32])> = Vec::new();
    for epoch in 0..epochs {
        let mut leaves: Vec<u32> = room.group.leaves();
        leaves.shuffle(&mut stage.rng);
        let barrier = Arc::new(Barrier::new(racers));
        let mut racing = JoinSet::new();
        for leaf in leaves {
            let mut group = room.group.clone();
            // Each clone continues the same random numbers, and still no two commits are alike: they are of different leaves.
            let forged = group.update(leaf).expect("every racer is a member");
            let person = people[leaf as usize].clone();
            let request = room.request(leaf, &person.device.key, room.update_body(&forged));
            let barrier = barrier.clone();
            // Guests have further to go; a head start lets them win at times. Whether they do is not judged.
            let pause = Duration::from_millis(if leaf % 2 == 0 { stage.rng.random_range(0..12) } else { 0 });
            racing.spawn(async move {
                barrier.wait().await;
                tokio::time::sleep(pause).await;
                let answer = person.ask_octets(&request).await;
                (Entry { leaf, forged, group }, answer)
            });
        }
        let (mut accepted, mut refused) = (Vec::new(), Vec::new());
        while let Some(ended) = racing.join_next().await {
            let (entry, answer) = ended.expect("a racer's task ends well");
            match decode::<Response>(&answer?).expect("a response").into_result() {
                Ok(Reply::CommitAccepted(receipt)) => {
                    assert_eq!(receipt.content.commit_hash, sha256(&entry.forged.commit));
                    assert_eq!(receipt.content.epoch, room.group.epoch() + 1);
                    accepted.push(entry);
                }
                Ok(other) => return Err(Fault::new(format!("epoch {epoch}: {other:?}"))),
                Err(rejection) => refused.push((entry.leaf, rejection)),
            }
        }
        assert_eq!(accepted.len(), 1, "epoch {epoch}: {refused:?}");
        let winner = accepted.remove(0);
        let hash = sha256(&winner.forged.commit);
        room.group = winner.group;
        let told = WrongEpoch { current_epoch: room.group.epoch(), accepted_commit_hash: Some(hash) };
        for (leaf, rejection) in refused {
            assert_eq!(rejection.as_wrong_epoch(), Some(told), "epoch {epoch}, leaf {leaf}: {rejection}");
        }
        winners.push((winner.leaf as usize, hash));
    }
    assert_eq!(room.group.epoch(), start + epochs as u64);
    let mut by_winner = vec![0; racers];
    winners.iter().for_each(|(leaf, _)| by_winner[*leaf] += 1);
    println!("wins by leaf: {by_winner:?}");

    // What was accepted is on its way; once no frame waits it has arrived.
    let contents = stage.contents().await?;
    assert_eq!(contents[0].rows("group_log"), epochs + 1, "each epoch's commit, and the Add");
    for (leaf, person) in people.iter().enumerate() {
        let mut expected: Vec<(u64, [u8; 32])> = Vec::new();
        for (index, (winner, hash)) in winners.iter().enumerate() {
            if *winner != leaf {
                expected.push((start + index as u64 + 1, *hash));
            }
        }
        let entries = person.entries().await?;
        let sequences: Vec<u64> = entries.iter().map(|entry| entry.sequence).collect();
        assert_eq!(sequences, (1..=entries.len() as u64).collect::<Vec<_>>(), "{}", person.user);
        // The first racer made the group; all others begin with their Welcome.
        let welcomes = usize::from(leaf > 0);
        let commits: Vec<(u64, [u8; 32])> = entries[welcomes..].iter().map(commit_of).collect::<Result<_, _>>()?;
        assert_eq!(commits, expected, "{}", person.user);
    }
    Ok(())
}

/// Epoch and hash of a Commit in a queue, its receipt checked to be for it.
fn commit_of(entry: &QueueEntry) -> Result<(u64, [u8; 32]), Fault> {
    let Delivery::Message(message) = &entry.delivery else { return Err(Fault::new(format!("{entry:?}"))) };
    let hash = sha256(&message.message);
    match &message.receipt {
        Some(receipt) if receipt.content.commit_hash == hash && receipt.content.epoch == entry.epoch => Ok((entry.epoch, hash)),
        other => Err(Fault::new(format!("entry {} has the receipt {other:?}", entry.sequence))),
    }
}
