//! What a node does when somebody who knows QUIC, and none of this project's code, wants to use it up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use federation_tests::conversation::{Cast, demand_complete, report, seed};
use federation_tests::raw::{Raw, dialling_config, hello};
use federation_tests::world::{NodeProcess, World};
use mimi_node::base::limits::FRAME_BYTES_MAX;
use mimi_node::base::{Domain, Fault, GroupUri, UnixMillis};
use mimi_node::client::Client;
use mimi_node::identity::{TlsCa, TlsCertificateOptions};
use mimi_node::node::config::{write_public, write_secret};
use mimi_node::transport::tls::{ALPN_CLIENT, ALPN_FEDERATION};
use mimi_node::wire::encode;
use mimi_node::wire::peer::PeerRequest;
use quinn::ReadError;
use serde::Deserialize;
use tokio::process::Command;
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::process::PROGRAM;
use crate::tools::skip;

/// Of the node that is attacked: little, so that it is used up soon.
const HELD_BYTES_MAX: usize = 16 * 1024 * 1024;
const UNVALIDATED_HANDSHAKES_MAX: usize = 16;

/// So much may the memory of the node grow over what it was after the same conversation without any abuse, in KiB: what may be held
/// of frames, twice, for what is decoded of them, and what connections and the allocator keep.
const GROWTH_KIB_MAX: u64 = 48 * 1024;

/// The one kind that the Python client is too slow for.
const AT_FULL_SPEED: &str = "half at full speed";

/// Messages sent one after the other before any abuse, to compare with.
const CONTROL_MESSAGES: usize = 60;

/// And at least during each kind of it, or after it, if that is over too soon.
const MESSAGES_MIN: usize = 10;

/// During abuse half of the messages take at most so many times as long as without it, on a machine that the abuser uses, too …
const SLOWER_MAX: u32 = 20;

/// … or at most this. The slowest ones are no measure: a busy machine stands still for seconds.
const SLOW_MAX: Duration = Duration::from_secs(3);

/// How often the other one looks what has come.
const READ_INTERVAL: Duration = Duration::from_millis(200);

/// A run that takes longer has failed.
const RUN_TIMEOUT: Duration = Duration::from_secs(420);

/// What `python/abuse.py` says in the end.
#[derive(Debug, Deserialize)]
struct Outcome {
    endings: BTreeMap<String, u64>,
    figures: BTreeMap<String, u64>,
}

impl Outcome {
    fn of(&self, ending: &str) -> u64 {
        self.endings.get(ending).copied().unwrap_or(0)
    }

    fn figure(&self, name: &str) -> u64 {
        self.figures.get(name).copied().unwrap_or(0)
    }

    fn total(&self) -> u64 {
        self.endings.values().sum()
    }

    /// Whether everything that was tried ended in one of these ways.
    fn only(&self, endings: &[&str]) -> bool {
        self.total() > 0 && self.endings.keys().all(|ending| endings.iter().any(|allowed| ending.starts_with(allowed)))
    }
}

#[derive(Clone, Copy)]
enum Port {
    Federation,
    Client,
}

/// Which certificate is shown.
#[derive(Clone, Copy)]
enum Shown {
    Nothing,
    /// Of a CA that the node does not know.
    Foreign,
    /// A good one, of a domain of this name: whoever it is says `hello` first.
    Peer(&'static str),
}

/// One kind of abuse, and what has to come of it.
struct Abuse {
    kind: &'static str,
    port: Port,
    shown: Shown,
    arguments: &'static [(&'static str, &'static str)],
    is_right: fn(&Outcome) -> bool,
}

const ABUSES: [Abuse; 14] = [
    Abuse {
        kind: "identity",
        port: Port::Federation,
        shown: Shown::Nothing,
        arguments: &[("--count", "20")],
        // certificate_required
        is_right: |outcome| outcome.only(&["alert 116"]),
    },
    Abuse {
        kind: "identity",
        port: Port::Federation,
        shown: Shown::Foreign,
        arguments: &[("--count", "20")],
        // unknown_ca
        is_right: |outcome| outcome.only(&["alert 48"]),
    },
    Abuse {
        kind: "identity",
        port: Port::Client,
        shown: Shown::Foreign,
        arguments: &[("--count", "20")],
        is_right: |outcome| outcome.only(&["alert "]),
    },
    // Strangers may ask a little: they are answered that this is nothing that can be read.
    Abuse {
        kind: "garbage",
        port: Port::Client,
        shown: Shown::Nothing,
        arguments: &[("--count", "150")],
        is_right: |outcome| {
            outcome.only(&["whole: answer ", "cut: reset 2", "huge: answer "]) && outcome.of("cut: reset 2") == 50
        },
    },
    Abuse {
        kind: "garbage",
        port: Port::Federation,
        shown: Shown::Peer("garbage.test"),
        arguments: &[("--count", "300")],
        is_right: |outcome| {
            outcome.only(&["whole: answer ", "cut: reset 2", "huge: reset 3"]) && outcome.of("huge: reset 3") == 100
        },
    },
    Abuse {
        kind: "half",
        port: Port::Federation,
        shown: Shown::Peer("half.test"),
        arguments: &[("--count", "250"), ("--connections", "2"), ("--octets", "262144")],
        is_right: |outcome| outcome.only(&["reset 4", "reset 12"]) && outcome.total() == 500,
    },
    // As fast as a client in Rust is: what a node without bounds would keep of this is several times GROWTH_KIB_MAX.
    Abuse {
        kind: AT_FULL_SPEED,
        port: Port::Federation,
        shown: Shown::Peer("fast.test"),
        arguments: &[],
        is_right: |outcome| outcome.only(&["reset 4", "reset 12"]) && outcome.total() == 500,
    },
    Abuse {
        kind: "half",
        port: Port::Client,
        shown: Shown::Nothing,
        arguments: &[("--count", "4"), ("--connections", "30"), ("--octets", "30000"), ("--announce", "32768")],
        is_right: |outcome| outcome.only(&["reset 4", "reset 12"]) && outcome.total() == 120,
    },
    Abuse {
        kind: "second",
        port: Port::Federation,
        shown: Shown::Peer("second.test"),
        arguments: &[("--count", "12")],
        is_right: |outcome| outcome.only(&["reset 4"]) && outcome.total() == 12,
    },
    Abuse {
        kind: "trickle",
        port: Port::Federation,
        shown: Shown::Peer("trickle.test"),
        arguments: &[("--count", "100")],
        is_right: |outcome| outcome.only(&["reset 4"]) && outcome.total() == 100,
    },
    Abuse {
        kind: "slow_reader",
        port: Port::Federation,
        shown: Shown::Peer("slow.test"),
        arguments: &[("--count", "200"), ("--octets", "100")],
        is_right: |outcome| outcome.only(&["reset 4"]) && outcome.total() == 200,
    },
    // One machine gets 32 of them; who comes later takes the place of who came first.
    Abuse {
        kind: "hold",
        port: Port::Client,
        shown: Shown::Nothing,
        arguments: &[("--count", "100")],
        is_right: |outcome| {
            // On a slow machine the time of a stranger is over for some.
            outcome.only(&["close 11", "close 0", "still open"]) && outcome.of("still open") <= 32 && outcome.of("close 11") > 0
        },
    },
    // Those who cannot prove their addresses get no further than a Retry, but for the few that are not asked to; and nobody is sent
    // three times as much as was sent in their name.
    Abuse {
        kind: "flood",
        port: Port::Federation,
        shown: Shown::Nothing,
        arguments: &[("--count", "2000")],
        is_right: |outcome| {
            let rounds = 1 + outcome.figure("took_ms") / 5_000;
            let begun = outcome.of("handshake");
            outcome.of("retry") > 0
                && (1..=UNVALIDATED_HANDSHAKES_MAX as u64 * rounds).contains(&begun)
                && outcome.figure("octets_received") <= 3 * outcome.figure("octets_sent")
        },
    },
    Abuse {
        kind: "noise",
        port: Port::Federation,
        shown: Shown::Nothing,
        arguments: &[("--count", "5000")],
        is_right: |outcome| outcome.figure("octets_received") <= outcome.figure("octets_sent"),
    },
];

/// The certificates of abusers.
struct Wardrobe {
    dir: PathBuf,
    known: TlsCa,
    foreign: TlsCa,
}

impl Wardrobe {
    fn open(world: &World) -> Result<Self, Fault> {
        let read = |name: &str| std::fs::read_to_string(world.dir().join(name)).expect("the world's CA");
        let dir = world.dir().join("abusers");
        std::fs::create_dir_all(&dir).expect("a directory");
        let known = TlsCa::load(&read("ca/ca.pem"), &read("ca/ca.key"))?;
        Ok(Self { dir, known, foreign: TlsCa::create("nobody's CA", UnixMillis::now())? })
    }

    /// Where a certificate for `domain`, which is made the first time, and its key are.
    fn issue(&self, ca: &TlsCa, domain: &Domain) -> Result<(PathBuf, PathBuf), Fault> {
        let (chain, key) = (self.dir.join(format!("{domain}.pem")), self.dir.join(format!("{domain}.key")));
        if chain.exists() {
            return Ok((chain, key));
        }
        let certificate = ca.issue(&TlsCertificateOptions::for_domain(domain), UnixMillis::now())?;
        write_public(&chain, &certificate.chain_pem)?;
        write_secret(&key, &certificate.key_pem)?;
        Ok((chain, key))
    }
}

/// A Python that has aioquic; says why when there is none.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("MIMI_TEST_AIOQUIC").map(PathBuf::from);
    if python.is_none() {
        skip("aioquic", "MIMI_TEST_AIOQUIC names a Python that has it (python/requirements.txt)");
    }
    python
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

impl Abuse {
    /// Does it to the first domain's node.
    async fn run(&self, python: &Path, world: &World, wardrobe: &Wardrobe, seed: u64) -> Result<Outcome, String> {
        match self.shown {
            Shown::Peer(name) if self.kind == AT_FULL_SPEED => half_at_full_speed(world, wardrobe, name).await,
            _ => self.run_python(python, world, wardrobe, seed).await,
        }
    }

    async fn run_python(&self, python: &Path, world: &World, wardrobe: &Wardrobe, seed: u64) -> Result<Outcome, String> {
        let site = world.site(0);
        let (address, alpn) = match self.port {
            Port::Federation => (site.federation, ALPN_FEDERATION),
            Port::Client => (site.client, ALPN_CLIENT),
        };
        let mut command = Command::new(python);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("python/abuse.py")).arg(self.kind);
        command.args(["--host", &address.ip().to_string(), "--port", &address.port().to_string()]);
        command.args(["--name", site.domain.as_str(), "--alpn", &String::from_utf8_lossy(alpn)]);
        command.args(["--seed", &seed.to_string(), "--request", &hex(&encode(&PeerRequest::DomainInfo))]);
        command.args(self.arguments.iter().flat_map(|(option, value)| [option, value]));
        let tell = |fault: Fault| fault.to_string();
        let shown = match self.shown {
            Shown::Nothing => None,
            Shown::Foreign => Some((&wardrobe.foreign, "foreign.test")),
            Shown::Peer(name) => Some((&wardrobe.known, name)),
        };
        if let Some((ca, name)) = shown {
            let domain: Domain = name.parse().expect("a domain");
            let (chain, key) = wardrobe.issue(ca, &domain).map_err(tell)?;
            command.arg("--certificate").arg(chain).arg("--key").arg(key);
            if let Shown::Peer(_) = self.shown {
                command.args(["--hello", &hex(&encode(&PeerRequest::Hello(hello(&domain))))]);
            }
        }
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(said.lines().last().unwrap_or_default())
            .map_err(|error| format!("{}: {error}: {said}{}", self.kind, String::from_utf8_lossy(&output.stderr)))
    }

    fn name(&self) -> String {
        let port = match self.port {
            Port::Federation => "federation",
            Port::Client => "client",
        };
        let who = match self.shown {
            Shown::Nothing => "nobody",
            Shown::Foreign => "foreign",
            Shown::Peer(_) => "a peer",
        };
        format!("{} by {who} at {port}", self.kind)
    }
}

/// On each of 250 streams of two connections, all at once: the length of the largest frame, and as much of it as gets through,
/// up to a quarter MiB.
async fn half_at_full_speed(world: &World, wardrobe: &Wardrobe, name: &str) -> Result<Outcome, String> {
    let domain: Domain = name.parse().expect("a domain");
    let options = TlsCertificateOptions::for_domain(&domain);
    let certificate = wardrobe.known.issue(&options, UnixMillis::now()).map_err(|fault| fault.to_string())?;
    let site = world.site(0);
    let mut streams = JoinSet::new();
    let begun = Instant::now();
    for _ in 0..2 {
        let config = dialling_config(&wardrobe.known, Some(&certificate)).map_err(|fault| fault.to_string())?;
        let raw = Raw::peer(config, site.federation, &site.domain, &domain).await.map_err(|ended| format!("{ended:?}"))?;
        for _ in 0..250 {
            let raw = raw.clone();
            streams.spawn(async move {
                let (mut send, mut recv) = raw.connection.open_bi().await.map_err(|error| error.to_string())?;
                let mut sent = 0;
                // The node stops the stream when it has had enough.
                let mut octets = [&(FRAME_BYTES_MAX as u32).to_be_bytes()[..], &[0; 1020]].concat();
                while sent < 256 * 1024 && send.write_all(&octets).await.is_ok() {
                    sent += octets.len() as u64;
                    octets.fill(0);
                }
                let how = match recv.read_chunk(1, true).await {
                    Err(ReadError::Reset(code)) => format!("reset {code}"),
                    other => format!("{other:?}"),
                };
                Ok::<_, String>((how, sent))
            });
        }
    }
    let mut outcome = Outcome { endings: BTreeMap::new(), figures: BTreeMap::new() };
    while let Some(ended) = streams.join_next().await {
        let (how, sent) = ended.map_err(|error| error.to_string())??;
        *outcome.endings.entry(how).or_default() += 1;
        *outcome.figures.entry("octets".to_owned()).or_default() += sent;
    }
    outcome.figures.insert("took_ms".to_owned(), u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX));
    Ok(outcome)
}

/// One figure of a process, in KiB.
fn memory(node: &NodeProcess, name: &str) -> u64 {
    let id = node.id().expect("the node runs");
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect("a figure of it");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

/// How long each of some messages took from the wish to the hub's answer.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn of_100(&mut self, part: usize) -> Duration {
        self.0.sort_unstable();
        self.0[(self.0.len() * part).div_ceil(100).saturating_sub(1)]
    }
}

/// Sends one message after the other until `done`, and at least so many.
async fn talk(client: &Client, group: &GroupUri, what: &str, least: usize, done: &AtomicBool) -> Result<Times, String> {
    let mut times = Times::default();
    while times.0.len() < least || !done.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let number = times.0.len();
        client.send(group, &format!("{what} {number}")).await.map_err(|error| format!("during {what}: {error}"))?;
        times.0.push(begun.elapsed());
    }
    Ok(times)
}

/// Reads what comes until `done`.
async fn read(client: &Client, done: &AtomicBool) -> Result<(), String> {
    while !done.load(Ordering::Relaxed) {
        client.sync().await.map_err(|error| format!("nothing can be read: {error}"))?;
        tokio::time::sleep(READ_INTERVAL).await;
    }
    Ok(())
}

// Shows: a client made with another QUIC implementation that shows no certificate, a foreign one, or a good one and then sends
// garbage, half requests, a stream a second, an octet a second, takes no answers, holds connections, or floods the port with first
// packets and noise, is refused each time in the way that the protocol says; the memory of the node stays bounded; and a conversation
// of two domains through the same node goes on meanwhile.
// Fails if: something is not refused, or otherwise; the node's resident memory was ever more than GROWTH_KIB_MAX over what it was
// before; a message of the conversation fails, is lost or doubled; half of the messages are not accepted within SLOWER_MAX times the
// time without abuse, or SLOW_MAX.
// Is no failure: how many messages were sent; that some take longer, on the same few cores.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abusers_are_refused_at_bounded_cost_and_others_go_on() {
    let Some(python) = python() else { return };
    let seed = seed(5);
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), 2).await.expect("a world");
    let run = tokio::time::timeout(RUN_TIMEOUT, abuse(&python, &world, seed)).await;
    let sent = match run {
        Ok(Ok(sent)) => sent,
        Ok(Err(why)) => panic!("seed {seed}: {why}"),
        Err(_) => panic!("seed {seed}: not done after {RUN_TIMEOUT:?}\n{}", report(&world)),
    };
    let verdict = demand_complete(&world, sent).await.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    eprintln!("{verdict}");
}

async fn abuse(python: &Path, world: &World, seed: u64) -> Result<usize, String> {
    let tell = |fault: Fault| format!("{fault}\n{}", report(world));
    let change = world.change_config(0, |config| {
        config.limits.held_bytes_max = HELD_BYTES_MAX;
        config.limits.unvalidated_handshakes_max = UNVALIDATED_HANDSHAKES_MAX;
    });
    change.map_err(tell)?;
    let wardrobe = Wardrobe::open(world).map_err(tell)?;
    let mut nodes = Vec::new();
    for index in 0..world.sites.len() {
        nodes.push(world.spawn(index, Path::new(PROGRAM), None).await.map_err(tell)?);
    }
    let (scenes, _) = unbounded_channel();
    let cast = Cast::assemble(world, &scenes).await.map_err(tell)?;
    let group = cast.make_group("lounge", &scenes).await.map_err(tell)?;
    cast.await_membership(&group).await.map_err(tell)?;
    // Of the other domain: its messages go through the federation port of the node that is attacked.
    let bob = &cast.clients[1];
    let mut control = talk(bob, &group, "control", CONTROL_MESSAGES, &AtomicBool::new(true)).await?;
    let mut sent = control.0.len();
    let before = memory(&nodes[0], "VmRSS");
    let (median, slow) = (control.of_100(50), control.of_100(99));
    let bound = (median * SLOWER_MAX).max(SLOW_MAX);
    eprintln!(
        "control: {sent} messages, median {median:?}, p99 {slow:?}; resident {before} KiB, of it at most {GROWTH_KIB_MAX} more"
    );

    let mut wrong = Vec::new();
    for abuse in &ABUSES {
        let done = AtomicBool::new(false);
        let attack = async {
            let outcome = abuse.run(python, world, &wardrobe, seed).await;
            done.store(true, Ordering::Relaxed);
            outcome
        };
        let name = abuse.name();
        let talking = talk(bob, &group, &name, MESSAGES_MIN, &done);
        let (outcome, times, read) = tokio::join!(attack, talking, read(&cast.clients[0], &done));
        read?;
        let (outcome, mut times) = (outcome.map_err(|why| format!("{why}\n{}", report(world)))?, times?);
        sent += times.0.len();
        let (resident, peak) = (memory(&nodes[0], "VmRSS"), memory(&nodes[0], "VmHWM"));
        let (median, slow) = (times.of_100(50), times.of_100(99));
        eprintln!(
            "{name}: {:?} {:?}; {} messages, median {median:?}, p99 {slow:?}; resident {resident} KiB, peak so far {peak}",
            outcome.endings,
            outcome.figures,
            times.0.len()
        );
        if !(abuse.is_right)(&outcome) {
            wrong.push(format!("{name} ended otherwise: {outcome:?}"));
        }
        if median > bound {
            wrong.push(format!("during {name} messages took {median:?}, more than {bound:?}"));
        }
        if peak > before + GROWTH_KIB_MAX {
            wrong.push(format!("with {name} the node has had {peak} KiB resident, more than {GROWTH_KIB_MAX} over {before}"));
        }
    }
    if !wrong.is_empty() {
        return Err(format!("{}\n{}", wrong.join("\n"), report(world)));
    }
    cast.settle().await.map_err(tell)?;
    cast.close().await;
    Ok(sent)
}
