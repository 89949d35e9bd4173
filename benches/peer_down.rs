//! What a peer that is down costs, and how it catches up: `cargo benches --bench peer_down`.
//!
//! Three nodes with databases on disk and real sockets, in this process, on loopback: a hub; a peer that goes down and comes
//! back; another peer. In each round the hub is offered the same messages for the first peer twice: while it is up, the control, and
//! while it is down. Meanwhile a user of the other peer reads messages that are sent at a steady pace, and how long each took
//! is noted. Then the peer comes back and catches up, and the next round begins. In the end so many frames wait as are asked for
//! (`MIMI_BENCH_FRAMES`), and the peer catches up with all of them at once.
//!
//! What the machine does besides concerns both windows of a round alike; medians over the rounds count. Each bound has a line with a
//! verdict; the exit code is 1 when one is missed. Not a test: a busy machine must not fail anybody's change.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod verdicts;

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use federation_tests::conversation::settings;
use federation_tests::people::{Person, Room};
use federation_tests::synth::CONTENT_TYPE_APPLICATION;
use federation_tests::world::World;
use mimi_node::base::Domain;
use mimi_node::client::{Client, Event};
use mimi_node::node::Node;
use mimi_node::wire::qs::Delivery;
use mimi_node::wire::{ClientRequest, decode};
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use tokio::task::JoinSet;

use verdicts::Verdicts;

/// Rounds; the median of what they give counts.
const ROUNDS: usize = 5;

/// The messages that are offered in each window of a round, and how long it lasts at most: a window must not be so long that the
/// machine is another one in the next.
const MESSAGES: usize = 2_000;
const WINDOW: Duration = Duration::from_secs(3);

/// Messages that are on their way to the hub at once.
const AT_ONCE: usize = 16;

/// The pace at which the other peer's user is written to.
const PACE: Duration = Duration::from_millis(25);

/// While the peer is down, the hub accepts at least this part of what it accepts while the peer is up.
const ACCEPTED_MIN: f64 = 0.9;

/// Frames that wait in the end, and how long they may take once the peer is back.
const FRAMES: usize = 10_000;
const DRAINED_MAX: Duration = Duration::from_secs(60);

/// The 99th percentile of what the other peer's user waits, as a multiple of what it is in the control.
const WAIT_RATIO_MAX: f64 = 2.0;

fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// A user of the hub's who writes to one of the other peer at a steady pace, and how long each message took.
struct Steady {
    waits: Arc<Mutex<Vec<Duration>>>,
    _tasks: JoinSet<()>,
}

impl Steady {
    async fn begin(world: &World) -> Self {
        let enrol = async |index: usize, name: &str| {
            let invitation = world.invite(index, name).await.unwrap();
            Client::enrol(&world.client_dir(name), &invitation, "phone", settings(world, name)).await.unwrap()
        };
        let (writer, reader) = (enrol(0, "dave").await, enrol(2, "carol").await);
        let group = writer.create_group(None).await.unwrap();
        writer.add_users(&group, &[reader.uri().user().clone()]).await.unwrap();
        let (sent, waits) = (Arc::new(Mutex::new(Vec::<Instant>::new())), Arc::<Mutex<Vec<Duration>>>::default());
        let (of_reader, noted) = (sent.clone(), waits.clone());
        let mut tasks = JoinSet::new();
        let mut listener = reader.listen();
        tasks.spawn(async move {
            let _reader = reader;
            while let Ok(event) = listener.next().await {
                if let Event::Message { text, .. } = event {
                    let number: usize = text.parse().unwrap();
                    noted.lock().unwrap().push(of_reader.lock().unwrap()[number].elapsed());
                }
            }
        });
        tasks.spawn(async move {
            let mut pace = tokio::time::interval(PACE);
            pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            for number in 0.. {
                pace.tick().await;
                sent.lock().unwrap().push(Instant::now());
                writer.send(&group, &format!("{number}")).await.unwrap();
            }
        });
        Self { waits, _tasks: tasks }
    }

    /// The waits since this was asked last. None of them is older than `work`.
    async fn during<T>(&self, work: impl Future<Output = T>) -> (T, Vec<Duration>) {
        self.waits.lock().unwrap().clear();
        let done = work.await;
        (done, std::mem::take(&mut *self.waits.lock().unwrap()))
    }
}

/// The first peer's user, and the group in which it is written to.
struct Load {
    alice: Arc<Person>,
    bob: Person,
    room: Room,
}

impl Load {
    async fn prepare(world: &World) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let alice = Person::enrol(world, 0, "alice", &mut rng).await.unwrap();
        let bob = Person::enrol(world, 1, "bob", &mut rng).await.unwrap();
        let mut room = Room::create(&alice, &mut rng).await.unwrap();
        room.add((&alice, 0), &[&bob], &mut rng).await.unwrap();
        Self { alice: Arc::new(alice), bob, room }
    }

    /// Offers so many messages, for at most so long; returns how many a second were accepted. They are signed beforehand.
    async fn offer(&mut self, count: usize, limit: Duration) -> f64 {
        let requests: Vec<ClientRequest> = (0..count)
            .map(|_| {
                let message = self.room.group.private_message(CONTENT_TYPE_APPLICATION);
                self.room.request(0, &self.alice.device.key, self.room.message_body(message))
            })
            .collect();
        let (requests, next) = (Arc::new(requests), Arc::new(AtomicUsize::new(0)));
        let begun = Instant::now();
        let mut senders = JoinSet::new();
        for _ in 0..AT_ONCE {
            let (alice, requests, next) = (self.alice.clone(), requests.clone(), next.clone());
            senders.spawn(async move {
                let mut accepted = 0;
                while begun.elapsed() < limit
                    && let Some(request) = requests.get(next.fetch_add(1, Ordering::SeqCst))
                {
                    alice.ask(request).await.unwrap().unwrap();
                    accepted += 1;
                }
                accepted
            });
        }
        let accepted: usize = senders.join_all().await.into_iter().sum();
        accepted as f64 / begun.elapsed().as_secs_f64()
    }
}

/// Waits until nothing waits for a domain.
async fn drained(hub: &Node, domain: &Domain) -> Duration {
    let begun = Instant::now();
    while hub.service().storage().lane_totals().await.unwrap().iter().any(|totals| totals.domain == *domain) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    begun.elapsed()
}

async fn run() -> ExitCode {
    let frames = std::env::var("MIMI_BENCH_FRAMES").ok().map_or(FRAMES, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let world = World::open(dir.path(), 3).await.unwrap();
    for index in 0..3 {
        // As much as comes: what is measured is not what a limit allows.
        let change = |config: &mut mimi_node::node::config::Config| {
            config.limits.requests_per_client_per_second_max = 1_000_000;
            config.limits.requests_per_group_per_second_max = 1_000_000;
            config.limits.peer_requests_per_second_max = 1_000_000;
            config.limits.lane_frames_max = 1_000_000;
            config.limits.queue_entries_max = 1_000_000;
        };
        world.change_config(index, change).unwrap();
    }
    let hub = world.start(0).await.unwrap();
    let mut peer = Some(world.start(1).await.unwrap());
    let other = world.start(2).await.unwrap();
    let down: Domain = world.site(1).domain.clone();
    let mut load = Load::prepare(&world).await;
    let steady = Steady::begin(&world).await;
    load.offer(MESSAGES, WINDOW).await;
    drained(&hub, &down).await;

    println!("        accepted a second: up, down, ratio; p99 of the other peer's waits in ms: up, down, catching up");
    let (mut rates, mut waits_up, mut waits_down, mut waits_after) = (vec![], vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        let (up, while_up) = steady.during(load.offer(MESSAGES, WINDOW)).await;
        drained(&hub, &down).await;
        peer.take().unwrap().stop().await.unwrap();
        let (without, while_down) = steady.during(load.offer(MESSAGES, WINDOW)).await;
        peer = Some(world.start(1).await.unwrap());
        hub.service().peers().wake(&down);
        let (_, after) = steady.during(drained(&hub, &down)).await;
        let [up_ms, down_ms, after_ms] = [&while_up, &while_down, &after].map(|waits| millis(percentile(waits, 99)));
        println!(
            "        round {}: {up:.0}, {without:.0}, {:.2}; {up_ms:.1} ({} samples), {down_ms:.1} ({}), {after_ms:.1} ({})",
            round + 1,
            without / up,
            while_up.len(),
            while_down.len(),
            after.len()
        );
        rates.push(without / up);
        waits_up.push(up_ms);
        waits_down.push(down_ms);
        waits_after.push(after_ms);
    }

    peer.take().unwrap().stop().await.unwrap();
    let before = drained_so_far(&load, &world).await;
    load.offer(frames, Duration::MAX).await;
    let waiting = hub.service().storage().lane_totals().await.unwrap();
    let waiting = waiting.iter().find(|totals| totals.domain == down).map_or(0, |totals| totals.frames);
    let wanted = hub.service().storage().waiting_frames(&down, &load.room.uri.to_string(), 1, frames + 1, usize::MAX).await;
    let wanted: Vec<Delivery> = wanted.unwrap().iter().map(|frame| decode(&frame.delivery).unwrap()).collect();
    peer = Some(world.start(1).await.unwrap());
    hub.service().peers().wake(&down);
    let (took, while_draining) = steady.during(drained(&hub, &down)).await;
    let arrived = arrived(peer.as_ref().unwrap(), &load, before).await;
    let draining_ms = millis(percentile(&while_draining, 99));
    println!(
        "        {waiting} frames waited and took {:.2} s; the other peer's p99 meanwhile {draining_ms:.1} ms ({} samples)\n",
        took.as_secs_f64(),
        while_draining.len()
    );

    let mut verdicts = Verdicts::default();
    verdicts.at_least("accepted while the peer is down, times the control", median(&rates), ACCEPTED_MIN, "");
    let ratio = |waits: &[f64]| median(waits) / median(&waits_up);
    verdicts.bound("p99 of the other peer's waits while it is down, times the control", ratio(&waits_down), WAIT_RATIO_MAX, "");
    verdicts.bound("and while it catches up with a round", ratio(&waits_after), WAIT_RATIO_MAX, "");
    verdicts.bound("and while it catches up in the end", draining_ms / median(&waits_up), WAIT_RATIO_MAX, "");
    verdicts.holds(&format!("{frames} frames waited"), waiting as usize == frames);
    verdicts.bound("they took", took.as_secs_f64(), DRAINED_MAX.as_secs_f64(), " s");
    verdicts.holds("they arrived in order, each once", arrived == wanted);
    for node in [Some(hub), peer, Some(other)].into_iter().flatten() {
        node.stop().await.unwrap();
    }
    verdicts.exit_code()
}

/// The last sequence of the peer's user's queue while its node does not run.
async fn drained_so_far(load: &Load, world: &World) -> u64 {
    let storage = mimi_node::storage::Storage::open_beside(&world.config(1).unwrap().data).await.unwrap();
    let last = entries(&storage, load, 1).await.last().map_or(0, |(sequence, _)| *sequence);
    storage.close().await;
    last
}

/// What is in the queue of the peer's user behind an entry.
async fn arrived(peer: &Node, load: &Load, behind: u64) -> Vec<Delivery> {
    let entries = entries(peer.service().storage(), load, behind + 1).await;
    entries.into_iter().map(|(_, delivery)| delivery).collect()
}

async fn entries(storage: &mimi_node::storage::Storage, load: &Load, mut from: u64) -> Vec<(u64, Delivery)> {
    let mut all = Vec::new();
    loop {
        let more = storage.entries(load.bob.queue, from, 1_000).await.unwrap();
        let Some(last) = more.last() else { return all };
        from = last.sequence + 1;
        all.extend(more.into_iter().map(|entry| (entry.sequence, entry.delivery)));
    }
}

fn main() -> ExitCode {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(run())
}
