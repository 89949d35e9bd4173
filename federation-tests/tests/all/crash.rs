//! A node is killed, again and again, while people talk.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::Duration;

use federation_tests::conversation::{Cast, Scene, Script, demand_complete, report, seed};
use federation_tests::world::{NodeProcess, World};
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::Instant;

const PROGRAM: &str = env!("CARGO_BIN_EXE_federation-tests");

const SCRIPT: Script = Script { messages: 300, size: 64, update_every: 25 };

const KILLS: usize = 10;

/// How many of the kills are at the fault point, with the node standing still between its database's commit and its answer.
const HELD_KILLS: usize = 3;

/// A run that takes longer has failed.
const RUN_TIMEOUT: Duration = Duration::from_secs(240);

/// How long people may hear nothing through a node because of one kill. Two or three seconds are what it takes: until somebody
/// who waits for an answer sends a packet and learns that the connection is gone, and one back-off. The rest is for a slow
/// machine.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Who is killed, and where between commit and answer.
struct Victim {
    index: usize,
    /// The write that the fault point is about.
    write: &'static str,
    /// How many scenes that the victim had a part in pass between two kills.
    gap: std::ops::RangeInclusive<u64>,
    /// How many batches of such writes pass before the node stands still.
    batches: std::ops::RangeInclusive<u64>,
    /// See [`Cast::play_in_step`].
    window: usize,
}

/// When a node was killed.
struct Kill {
    held: bool,
    /// Messages accepted so far.
    accepted: usize,
    /// Scenes that the victim had a part in so far.
    of_victim: u64,
    /// From when the node was up again to the next scene that it had a part in.
    recovery_ms: u128,
}

// Shows: a hub that is killed at any moment loses nothing that it accepted, does nothing twice, and keeps its order; clients and
// other nodes find it again by themselves. Three of ten kills are between the database's commit and the answer, where a repeated
// request must get the answer that was lost.
// Fails if: a message is lost, doubled, reordered or unreadable for anyone; anything is still queued in the end; a client gives
// up; the kills were not during the conversation; the conversation stands still long after the node is back.
// Is no failure: that requests take longer or are sent again, that commits have to be made anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_killed_ten_times_loses_and_doubles_nothing() {
    let victim = Victim { index: 0, write: "accept_request", gap: 12..=28, batches: 4..=12, window: usize::MAX };
    kill_again_and_again(seed(1), victim).await;
}

// As above, for a node that has no group of its own: its clients' requests are proxied to the hub, the hub's frames go into its
// queues. Three kills are between the commit of frames and the answer to the hub, which then sends them again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guests_node_killed_ten_times_loses_and_doubles_nothing() {
    let seed = seed(2);
    let index = if seed.is_multiple_of(2) { 1 } else { 2 };
    // In step, or the others would have finished by the time that the node is up again.
    let victim = Victim { index, write: "take_frames", gap: 12..=28, batches: 2..=6, window: 8 };
    kill_again_and_again(seed, victim).await;
}

async fn kill_again_and_again(seed: u64, victim: Victim) {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), 3).await.expect("a world");
    let outcome = tokio::time::timeout(RUN_TIMEOUT, run(&world, seed, &victim)).await;
    let (kills, silence) = match outcome {
        Ok(Ok(done)) => done,
        Ok(Err(why)) => panic!("seed {seed}: {why}"),
        Err(_) => panic!("seed {seed}: not done after {RUN_TIMEOUT:?}\n{}", report(&world)),
    };
    let times: Vec<_> = kills.iter().map(|kill| (kill.accepted, kill.held, kill.recovery_ms)).collect();
    eprintln!("seed {seed}: kills (accepted so far, held at the fault point, ms until traffic flowed again): {times:?}");
    eprintln!("seed {seed}: longest silence {silence:?}");

    assert_eq!(kills.len(), KILLS, "seed {seed}");
    assert_eq!(kills.iter().filter(|kill| kill.held).count(), HELD_KILLS, "seed {seed}");
    // Traffic flowed before the first, between any two, and after the last.
    assert!(kills[0].accepted > 0 && kills[KILLS - 1].accepted < SCRIPT.messages, "seed {seed}: {times:?}");
    assert!(kills.windows(2).all(|two| two[0].of_victim < two[1].of_victim), "seed {seed}: {times:?}");
    assert!(silence < SILENCE_MAX, "seed {seed}: {silence:?}: {times:?}\n{}", report(&world));
}

async fn run(world: &World, seed: u64, victim: &Victim) -> Result<(Vec<Kill>, Duration), String> {
    let program = Path::new(PROGRAM);
    let mut nodes = Vec::new();
    for index in 0..world.sites.len() {
        nodes.push(Some(world.spawn(index, program, None).await.map_err(|fault| fault.to_string())?));
    }
    let (scenes, seen) = unbounded_channel();
    let cast = Cast::assemble(world, &scenes).await.map_err(|fault| fault.to_string())?;
    let group = cast.make_group("lounge", &scenes).await.map_err(|fault| fault.to_string())?;
    let name = short_name(world, victim.index);
    let talk = async {
        let played = cast.play_in_step(&group, SCRIPT, victim.window, &scenes).await;
        // Ends the killer as well.
        drop(scenes);
        played.map_err(|fault| format!("{fault}\n{}", report(world)))
    };
    let mut killer = Killer {
        world,
        victim,
        name,
        seen,
        accepted: 0,
        of_victim: 0,
        last: Instant::now(),
        longest_silence: Duration::ZERO,
        rng: ChaCha8Rng::seed_from_u64(seed),
    };
    let (talked, kills) = tokio::join!(talk, killer.run(&mut nodes[victim.index]));
    talked?;
    let kills = kills?;
    cast.settle().await.map_err(|fault| format!("{fault}\n{}", report(world)))?;
    cast.close().await;
    let verdict = demand_complete(world, SCRIPT.messages).await?;
    eprintln!("{verdict}");
    Ok((kills, killer.longest_silence))
}

/// `alice@a.test`, as scenes have it.
fn short_name(world: &World, index: usize) -> String {
    format!("{}@{}", federation_tests::conversation::NAMES[index], world.site(index).domain)
}

struct Killer<'a> {
    world: &'a World,
    victim: &'a Victim,
    /// The victim's user.
    name: String,
    seen: UnboundedReceiver<Scene>,
    accepted: usize,
    of_victim: u64,
    /// When the victim last had a part in a scene, and the longest time that it had none.
    last: Instant,
    longest_silence: Duration,
    rng: ChaCha8Rng,
}

impl Killer<'_> {
    /// Kills the victim [`KILLS`] times and watches until nobody talks any more.
    async fn run(&mut self, node: &mut Option<NodeProcess>) -> Result<Vec<Kill>, String> {
        let mut plan: Vec<bool> = (1..KILLS).map(|kill| kill <= HELD_KILLS).collect();
        plan.shuffle(&mut self.rng);
        // The first life began without a fault point.
        plan.insert(0, false);
        let mut kills: Vec<Kill> = Vec::new();
        let mut log_end = 0;
        for (number, held) in plan.iter().copied().enumerate() {
            if held {
                self.until_held(log_end).await?;
            } else {
                let gap = self.rng.random_range(self.victim.gap.clone());
                self.until(self.of_victim + gap).await?;
                // Anywhere within a request: the moment is the seed's choice, nothing is waited for.
                tokio::time::sleep(Duration::from_micros(self.rng.random_range(0..20_000))).await;
            }
            node.take().ok_or("there is no node to kill")?.kill().await.map_err(|fault| fault.to_string())?;
            self.drain();
            let (accepted, of_victim) = (self.accepted, self.of_victim);

            log_end = self.log_length();
            let batches = self.rng.random_range(self.victim.batches.clone());
            let fault_point = format!("committed:{}:{batches}", self.victim.write);
            let armed = plan.get(number + 1).copied().unwrap_or(false).then_some(fault_point.as_str());
            let started = self.world.spawn(self.victim.index, Path::new(PROGRAM), armed).await;
            *node = Some(started.map_err(|fault| fault.to_string())?);
            let up = Instant::now();
            self.drain();
            self.until(self.of_victim + 1).await?;
            kills.push(Kill { held, accepted, of_victim, recovery_ms: up.elapsed().as_millis() });
        }
        while let Some(scene) = self.seen.recv().await {
            self.count(&scene);
        }
        Ok(kills)
    }

    fn count(&mut self, scene: &Scene) {
        let is_hub = self.victim.index == 0;
        let before = self.of_victim;
        match scene {
            Scene::Sent { from, .. } => {
                self.accepted += 1;
                self.of_victim += u64::from(is_hub || *from == self.name);
            }
            Scene::Committed { by, .. } => self.of_victim += u64::from(is_hub || *by == self.name),
            // What others read may have left the hub before it was killed.
            Scene::Received { by, .. } => self.of_victim += u64::from(!is_hub && *by == self.name),
            Scene::Enrolled { .. } | Scene::Created { .. } => {}
        }
        if self.of_victim > before {
            // Before the first message, people are still joining.
            if self.accepted > 1 {
                self.longest_silence = self.longest_silence.max(self.last.elapsed());
            }
            self.last = Instant::now();
        }
    }

    fn drain(&mut self) {
        while let Ok(scene) = self.seen.try_recv() {
            self.count(&scene);
        }
    }

    /// Waits until the victim has had a part in so many scenes.
    async fn until(&mut self, of_victim: u64) -> Result<(), String> {
        while self.of_victim < of_victim {
            let scene = self.seen.recv().await.ok_or("the conversation ended before the last kill")?;
            self.count(&scene);
        }
        Ok(())
    }

    /// Waits until the victim stands still at its fault point.
    async fn until_held(&mut self, log_end: u64) -> Result<(), String> {
        let mut look = tokio::time::interval(Duration::from_millis(5));
        loop {
            tokio::select! {
                scene = self.seen.recv() => {
                    let scene = scene.ok_or("the conversation ended before the fault point was reached")?;
                    self.count(&scene);
                }
                _ = look.tick() => if self.log_from(log_end).contains("fault point reached") {
                    return Ok(());
                },
            }
        }
    }

    fn log_length(&self) -> u64 {
        std::fs::metadata(self.world.node_log(self.victim.index)).map_or(0, |log| log.len())
    }

    fn log_from(&self, start: u64) -> String {
        let mut text = Vec::new();
        if let Ok(mut log) = std::fs::File::open(self.world.node_log(self.victim.index))
            && log.seek(SeekFrom::Start(start)).is_ok()
        {
            // What cannot be read now is read by the next look.
            let _ = log.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}
