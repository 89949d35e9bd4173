//! What nodes refuse, with which code, and that a refusal changes nothing: no group, log, queue, lane, answer or user.
//!
//! Peers and clients here are bare QUIC connections with keys of the test's own, because no honest client sends such things.

mod accounts;
mod client_port;
mod commits;
mod federation_port;
mod forgeries;
mod groups;
mod key_packages;
mod messages;
mod queues;

use federation_tests::people::{Person, Room};
use federation_tests::stage::Stage;
use mimi_node::base::Fault;

/// A group at a.test of alice (leaf 0, a.test), bob (leaf 1, b.test) and carol (leaf 2, a.test), in epoch 1.
struct Trio {
    stage: Stage,
    alice: Person,
    bob: Person,
    carol: Person,
    room: Room,
}

const ALICE: u32 = 0;
const BOB: u32 = 1;
const CAROL: u32 = 2;

impl Trio {
    async fn new(seed: u64) -> Result<Self, Fault> {
        let mut stage = Stage::open(3, seed).await?;
        let alice = stage.person(0, "alice").await?;
        let bob = stage.person(1, "bob").await?;
        let carol = stage.person(0, "carol").await?;
        let mut room = Room::create(&alice, &mut stage.rng).await?;
        let leaves = room.add((&alice, ALICE), &[&bob, &carol], &mut stage.rng).await?;
        assert_eq!(leaves, [BOB, CAROL]);
        Ok(Self { stage, alice, bob, carol, room })
    }
}
