//! Bad links between all nodes, and one domain cut off.

use std::path::Path;
use std::time::Duration;

use federation_tests::conversation::{Cast, NAMES, Scene, Script, demand_complete, seed};
use federation_tests::fault_proxy::FaultPlan;
use federation_tests::links::Links;
use federation_tests::world::World;
use mimi_node::base::ids::RequestId;
use mimi_node::base::{Domain, UnixMillis};
use mimi_node::client::Client;
use mimi_node::wire::keys::{ClaimKeyPackages, KeysMessage, KeysRequest};
use mimi_node::wire::request::Service;
use mimi_node::wire::{Content, ErrorCode};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::Instant;

const PROGRAM: &str = env!("CARGO_BIN_EXE_federation-tests");

const SCRIPT: Script = Script { messages: 300, size: 64, update_every: 25 };

/// How long the domain is cut off: as long as QUIC's idle time-out, so that connections end during it or just after.
const CUT: Duration = Duration::from_secs(20);

/// A run that takes longer has failed.
const RUN_TIMEOUT: Duration = Duration::from_secs(240);

/// How long after the cut the domain may take until its user hears something again. A back-off of the fourth or fifth failure
/// may have begun just before the end of the cut.
const RECOVERY_MAX: Duration = Duration::from_secs(30);

/// MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519.
const CIPHERSUITE: u16 = 1;

/// What was seen of the cut.
#[derive(Debug)]
struct Cut {
    /// Messages accepted before it.
    before: usize,
    /// Messages of others accepted during it.
    by_others: usize,
    /// Messages of the cut-off user accepted during it.
    by_victim: usize,
    /// Messages sent during it that the cut-off user read during it.
    through: Vec<String>,
    /// What the cut-off user's node said to a request for the hub.
    refused: Option<ErrorCode>,
    /// From its end to the next message that the cut-off user read.
    recovery: Duration,
}

// Shows: over links that lose a tenth of all datagrams, double and reorder others, and with one domain cut off from all others
// for 20 seconds in the middle, everything that was accepted reaches everyone once and in order. Meanwhile the others go on
// undisturbed, and the domain's own client is told that the hub cannot be reached.
// Fails if: a message is lost, doubled, reordered or unreadable for anyone; anything is still queued in the end; a client gives
// up; the faults did not happen; something passed the cut; the others waited for the domain; it is not found again soon.
// Is no failure: how long requests take meanwhile, or that they have to be sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_arrives_over_bad_links_and_after_a_cut() {
    let seed = seed(3);
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), 3).await.expect("a world");
    let plan =
        FaultPlan { loss: 0.10, duplicate: 0.05, reorder: 0.10, reorder_delay: Duration::from_millis(15), ..FaultPlan::none() };
    let links = Links::lay(&world, &plan, seed).await.expect("the links");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (victim, cut_after) = (rng.random_range(1..world.sites.len()), rng.random_range(40..=100));
    let cut = match tokio::time::timeout(RUN_TIMEOUT, run(&world, &links, victim, cut_after)).await {
        Ok(Ok(cut)) => cut,
        Ok(Err(why)) => panic!("seed {seed}: {why}"),
        Err(_) => panic!("seed {seed}: not done after {RUN_TIMEOUT:?}\n{}", world.log_tails(60)),
    };
    eprintln!("seed {seed}: {} was cut off: {cut:?}", world.site(victim).domain);

    assert!(cut.before >= cut_after && cut.before < SCRIPT.messages, "seed {seed}: {cut:?}");
    assert!(cut.by_others >= 10, "seed {seed}: the others waited: {cut:?}");
    // One answer may have been on its way to the client already.
    assert!(cut.by_victim <= 1 && cut.through.is_empty(), "seed {seed}: something passed the cut: {cut:?}");
    assert_eq!(cut.refused, Some(ErrorCode::UnreachableDomain), "seed {seed}: {cut:?}");
    assert!(cut.recovery < RECOVERY_MAX, "seed {seed}: {cut:?}\n{}", world.log_tails(60));
    for (link, counters) in links.counters() {
        eprintln!("seed {seed}: link {link:?}: {counters:?}");
        // Only links with the hub carry much; b and c fetch each other's keys and KeyPackages at most.
        if link.0 == 0 || link.1 == 0 {
            let all = [counters.forwarded, counters.dropped, counters.duplicated, counters.delayed];
            assert!(all.iter().all(|count| *count >= 10), "seed {seed}: {link:?}: {counters:?}");
        }
    }
}

async fn run(world: &World, links: &Links, victim: usize, cut_after: usize) -> Result<Cut, String> {
    let tell = |fault: mimi_node::base::Fault| format!("{fault}\n{}", world.log_tails(60));
    let mut nodes = Vec::new();
    for index in 0..world.sites.len() {
        nodes.push(world.spawn(index, Path::new(PROGRAM), None).await.map_err(tell)?);
    }
    let (scenes, seen) = unbounded_channel();
    let cast = Cast::assemble(world, &scenes).await.map_err(tell)?;
    let group = cast.make_group("lounge", &scenes).await.map_err(tell)?;
    let talk = async {
        let played = cast.play(&group, SCRIPT, &scenes).await;
        // Ends the watcher as well.
        drop(scenes);
        played.map_err(tell)
    };
    let name = format!("{}@{}", NAMES[victim], world.site(victim).domain);
    let hub = &world.site(0).domain;
    let (talked, cut) = tokio::join!(talk, watch(links, seen, victim, &name, &cast.clients[victim], hub, cut_after));
    talked?;
    let cut = cut?;
    cast.settle().await.map_err(tell)?;
    cast.close().await;
    let verdict = demand_complete(world, SCRIPT.messages).await?;
    eprintln!("{verdict}");
    Ok(cut)
}

/// Cuts the victim off after so many accepted messages, watches what happens, and reconnects it.
async fn watch(
    links: &Links,
    mut seen: UnboundedReceiver<Scene>,
    victim: usize,
    name: &str,
    client: &Client,
    hub: &Domain,
    cut_after: usize,
) -> Result<Cut, String> {
    let mut cut = Cut { before: 0, by_others: 0, by_victim: 0, through: Vec::new(), refused: None, recovery: Duration::ZERO };
    while cut.before < cut_after {
        let scene = seen.recv().await.ok_or("the conversation ended before the cut")?;
        cut.before += usize::from(matches!(scene, Scene::Sent { .. }));
    }
    links.cut_off(victim);
    while let Ok(scene) = seen.try_recv() {
        cut.before += usize::from(matches!(scene, Scene::Sent { .. }));
    }
    let mut refused = std::pin::pin!(refusal(client, hub));
    let mut end = std::pin::pin!(tokio::time::sleep(CUT));
    // The first message of each sender may have been accepted just before the cut; those after it were certainly made during it.
    let mut first_of: Vec<String> = Vec::new();
    let mut during: Vec<String> = Vec::new();
    loop {
        tokio::select! {
            () = &mut end => break,
            code = &mut refused, if cut.refused.is_none() => cut.refused = code,
            scene = seen.recv() => match scene.ok_or("the conversation ended during the cut")? {
                Scene::Sent { from, .. } if from == name => cut.by_victim += 1,
                Scene::Sent { from, text } => {
                    cut.by_others += 1;
                    if first_of.contains(&from) { during.push(text) } else { first_of.push(from) }
                }
                Scene::Received { by, text, .. } if by == name && during.contains(&text) => cut.through.push(text),
                _ => {}
            }
        }
    }
    links.reconnect(victim);
    let restored = Instant::now();
    while let Some(scene) = seen.recv().await {
        if matches!(&scene, Scene::Received { by, .. } if by == name) && cut.recovery.is_zero() {
            cut.recovery = restored.elapsed();
        }
    }
    Ok(cut)
}

/// What a client's own node says to one request for the hub.
async fn refusal(client: &Client, hub: &Domain) -> Option<ErrorCode> {
    let certificates = client.chain().iter().map(|der| der.as_slice().into()).collect();
    let user = format!("mimi://{hub}/u/{}", NAMES[0]);
    let request = KeysRequest::Claim(ClaimKeyPackages { user: user.as_bytes().into(), ciphersuite: CIPHERSUITE });
    let service = Service::Keys(KeysMessage { certificates, request });
    let request = Content::new(hub, RequestId::random(), UnixMillis::now(), service).sign(client.leaf_key());
    let response = client.raw_request(&request).await.ok()?;
    response.into_result().err().map(|rejection| rejection.code)
}
