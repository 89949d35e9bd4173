//! What a decision of the Delivery Service costs, compared with bare OpenMLS in the same run: `cargo benches`.
//!
//! Both sides get the same octets. Ours: a request's frame is decoded, its sender authenticated, the Commit decided, its answer
//! encoded, the state changed and the tree merged. Theirs: the Commit's MLSMessage is decoded, processed and merged by a
//! PublicGroup with OpenMLS's own provider. Storage is excluded on both sides: nothing is written, and OpenMLS merges into a store
//! that forgets. (Our record for the log is made, because a decision makes it.)
//!
//! Times are CPU times of the thread, medians of several windows. Each bound has a line with a verdict; the exit code is 1 when one
//! is missed. Not a test: a busy machine, a debug build or an unlucky processor must not fail anybody's change.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod null_store;
mod verdicts;
mod world;

use std::process::ExitCode;
use std::time::Duration;

use mimi_node::base::crypto::{SigningKey, verify_with_label};
use mimi_node::mls::Tree;
use rustix::time::{ClockId, clock_gettime};

use verdicts::Verdicts;
use world::World;

/// Windows of each measurement; their median counts.
const WINDOWS: usize = 9;

/// At 100 and 1000 members: our CPU time for a Commit, as a multiple of bare OpenMLS's.
const COMMIT_RATIO_MAX: f64 = 1.5;

/// At 2 members: what we may take longer than bare OpenMLS, besides [`VERIFICATIONS`].
const COMMIT_EXTRA_MAX: Duration = Duration::from_micros(50);
const VERIFICATIONS: u32 = 3;

/// With the same recipients, a message to a group of ten times the members costs at most this many times as much: there are
/// ten times as many members to pass over.
const MESSAGE_RATIO_MAX: f64 = 1.2;

/// What one more recipient costs where there are many, as a multiple of what it costs where there are few: more of
/// them fit no cache. Were the cost to grow with the square, it would be 3.
const RECIPIENT_RATIO_MAX: f64 = 2.0;

/// What a budget in octets means: memory per octet that `Tree::octets` and `GroupState::octets` tell.
const MEMORY_RATIO_MAX: f64 = 1.25;

/// The CPU time that this thread has used.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The CPU time of `work`.
fn timed(work: impl FnOnce()) -> Duration {
    let before = cpu_time();
    work();
    cpu_time() - before
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// The median over the windows of the mean CPU time of `work`.
fn measure(per_window: u32, mut work: impl FnMut()) -> Duration {
    let window = |_| timed(|| (0..per_window).for_each(|_| work())) / per_window;
    median((0..WINDOWS).map(window).collect())
}

fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1_000.0
}

/// A member's update of its path, in turn by every member. Returns ours and theirs; who goes first alternates.
fn commits(world: &mut World, per_window: u32) -> (Duration, Duration) {
    let mut windows = Vec::new();
    for window in 0..=WINDOWS {
        let (mut ours, mut theirs) = (Duration::ZERO, Duration::ZERO);
        for round in 0..per_window {
            let commit = world.next_update();
            if round % 2 == 0 {
                ours += timed(|| drop(world.decide(&commit.frame, false)));
            }
            theirs += timed(|| world.follow_bare(&commit.octets));
            if round % 2 == 1 {
                ours += timed(|| drop(world.decide(&commit.frame, false)));
            }
        }
        // The first one warms up.
        if window > 0 {
            windows.push((ours / per_window, theirs / per_window));
        }
    }
    let (ours, theirs) = windows.into_iter().unzip();
    (median(ours), median(theirs))
}

/// A message of leaf 0 in `epoch`: what it costs, and its recipients.
fn messages(world: &mut World, epoch: u64) -> (Duration, usize) {
    let frame = world.message(epoch);
    let (recipients, _) = world.decide(&frame, false);
    let cost = measure(200, || {
        world.decide(&frame, false);
    });
    (cost, recipients)
}

/// Resident memory of this process, in octets.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}

/// Memory taken by copies of the group, per octet that they say they take.
fn memory(world: &mut World) -> (f64, f64) {
    let (id, snapshot) = world.snapshot();
    let copies = (64 * 1024 * 1024 / snapshot.len()).clamp(16, 20_000);
    let before = resident();
    let trees: Vec<Tree> = (0..copies).map(|_| Tree::restore(&id, &snapshot, []).unwrap()).collect();
    let trees_take = (resident() - before) as f64 / trees.iter().map(Tree::octets).sum::<usize>() as f64;
    let before = resident();
    let states: Vec<_> = (0..copies).map(|_| world.state().clone()).collect();
    let states_take = (resident() - before) as f64 / states.iter().map(|state| state.octets()).sum::<usize>() as f64;
    (trees_take, states_take)
}

fn main() -> ExitCode {
    let mut verdicts = Verdicts::default();

    let key = SigningKey::generate().unwrap();
    let signature = key.sign_with_label("bench", &[7; 500]);
    let verification = measure(500, || assert!(verify_with_label(key.public(), "bench", &[7; 500], &signature)));
    println!("one Ed25519 verification: {:.1} µs", micros(verification));

    println!("\nA Commit (path update), decided and merged:");
    for (size, per_window) in [(2, 200), (100, 60), (1000, 15)] {
        let mut world = World::new(size);
        let (ours, theirs) = commits(&mut world, per_window);
        let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
        println!("        {size} members: {:.1} µs, bare OpenMLS {:.1} µs, ratio {ratio:.2}", micros(ours), micros(theirs));
        if size == 2 {
            let most = theirs + VERIFICATIONS * verification + COMMIT_EXTRA_MAX;
            verdicts.bound("a Commit at 2 members", micros(ours), micros(most), " µs");
        } else {
            verdicts.bound(&format!("a Commit at {size} members, times bare OpenMLS"), ratio, COMMIT_RATIO_MAX, "");
        }
    }

    println!("\nAn application message, decided:");
    let mut costs = Vec::new();
    for size in [2, 100, 500, 1000] {
        let mut world = World::new(size);
        let epoch = world.epoch();
        let (cost, recipients) = messages(&mut world, epoch);
        println!("        {size} members, {recipients} recipients: {:.1} µs", micros(cost));
        costs.push((cost, recipients));
        if size == 100 {
            // Whoever is added after the message's epoch is a member and no recipient.
            world.add(1000);
            let (same, few) = messages(&mut world, epoch);
            println!("        1000 members, {few} recipients: {:.1} µs", micros(same));
            assert_eq!(recipients, few, "the comparison is of equal recipients");
            let ratio = same.as_secs_f64() / cost.as_secs_f64();
            verdicts.bound("ten times the members, the same recipients: times the cost", ratio, MESSAGE_RATIO_MAX, "");
        }
    }
    let per_recipient =
        |less: (Duration, usize), more: (Duration, usize)| more.0.saturating_sub(less.0).as_secs_f64() / (more.1 - less.1) as f64;
    let ratio = per_recipient(costs[2], costs[3]) / per_recipient(costs[0], costs[2]);
    verdicts.bound("the second 500 recipients, times the first 500", ratio, RECIPIENT_RATIO_MAX, "");

    println!("\nMemory of groups, as told to the budget:");
    for size in [2, 100, 1000] {
        let mut world = World::new(size);
        let (trees, states) = memory(&mut world);
        verdicts.bound(&format!("trees of {size} members, times what they say"), trees, MEMORY_RATIO_MAX, "");
        verdicts.bound(&format!("records of {size} members, times what they say"), states, MEMORY_RATIO_MAX, "");
    }

    verdicts.exit_code()
}
