//! A client is killed, again and again, while it sends, reads and commits.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use federation_tests::checker::{Event, Line, read_log};
use federation_tests::conversation::{Cast, NAMES, demand_complete, report, seed};
use federation_tests::world::World;
use mimi_node::base::GroupUri;
use mimi_node::client::Client;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Child;
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::{Instant, timeout};

const PROGRAM: &str = env!("CARGO_BIN_EXE_federation-tests");

/// Kills.
const KILLS: usize = 20;

/// The client that is killed: the second domain's.
const VICTIM: usize = 1;

/// How long a process may take for one step before the test has failed.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// How often the victim's log is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

// Shows: a client process that is killed at any moment, while it sends, reads and commits, sends everything it was told to send
// exactly once and reads everything exactly once, when it is started again on the same directory.
// Fails if: the checker finds anything (a message lost though acknowledged, an entry taken twice, a reused ratchet key that others
// cannot decrypt, …); a text that the client had taken is never accepted, or is accepted twice; its or another's history lacks a
// text or has one twice; most of the kills were of an idle client.
// Is no failure: that a line still in the pipe to the killed process is lost there; the test writes it to the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_killed_twenty_times_sends_and_reads_everything_once() {
    let seed = seed(4);
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), 3).await.expect("a world");
    if let Err(why) = run(&world, seed).await {
        panic!("seed {seed}: {why}");
    }
}

async fn run(world: &World, seed: u64) -> Result<(), String> {
    let tell = |fault: mimi_node::base::Fault| format!("{fault}\n{}", report(world));
    let mut nodes = Vec::new();
    for index in 0..world.sites.len() {
        nodes.push(world.spawn(index, Path::new(PROGRAM), None).await.map_err(tell)?);
    }
    let (scenes, _seen) = unbounded_channel();
    let cast = Cast::assemble(world, &scenes).await.map_err(tell)?;
    let group = cast.make_group("lounge", &scenes).await.map_err(tell)?;
    cast.await_membership(&group).await.map_err(tell)?;
    cast.settle().await.map_err(tell)?;
    cast.clients[VICTIM].clone().close().await;

    let mut victim = Victim {
        world,
        group: group.to_string(),
        rng: ChaCha8Rng::seed_from_u64(seed),
        lines: Vec::new(),
        kills: Vec::new(),
        refusals: 0,
    };
    let mut others = Others { cast: &cast, group, said: BTreeMap::new() };
    for number in 0..KILLS {
        let talk = (victim.rng.random_range(0..=2), victim.rng.random_range(0..=3));
        // Every sixth life is one Commit, not a chat.
        let life = async { if number % 6 == 5 { victim.commit_and_die().await } else { victim.chat_and_die().await } };
        let (lived, said) = tokio::join!(life, others.talk(number, talk));
        lived?;
        said?;
        if number % 5 == 2 {
            // What it was sending is outdated when it is started again, and has to be encrypted anew.
            others.move_on().await?;
            victim.chat_until_refused().await?;
        }
    }
    victim.chat_to_the_end(&others).await?;
    eprintln!("seed {seed}: kills (log lines of that life, texts whose answer was not known): {:?}", victim.kills);
    eprintln!("seed {seed}: killed {} times when a message had come too late", victim.refusals);
    let busy = victim.kills.iter().filter(|kill| kill.logged > 0).count();
    if busy < KILLS / 2 {
        return Err(format!("only {busy} kills were of a busy client: {:?}", victim.kills));
    }

    // Everyone reads to the end: all texts, and the last Commit.
    let deadline = Instant::now() + STEP_TIMEOUT;
    loop {
        let mut states = vec![victim.whereabouts().await?];
        for index in [0, 2] {
            let client = &cast.clients[index];
            client.sync().await.map_err(|error| error.to_string())?;
            let texts = client.history(None).await.map_err(|error| error.to_string())?.len();
            let (epoch, _) = client.members(&others.group).await.map_err(|error| error.to_string())?;
            states.push((epoch, texts));
        }
        if states.iter().all(|state| *state == (states[0].0, others.count() + victim.lines.len())) {
            break;
        }
        if Instant::now() > deadline {
            return Err(format!("not everyone is up to date (epoch, texts): {states:?}\n{}", report(world)));
        }
    }
    let all: BTreeSet<&str> = others.said.values().flatten().chain(&victim.lines).map(String::as_str).collect();
    for index in [0, 2] {
        let history = cast.clients[index].history(None).await.map_err(|error| error.to_string())?;
        same_texts(NAMES[index], history.iter().map(|line| line.text.as_str()), &all)?;
    }
    let history = victim.output(&["history"]).await?;
    let texts: Vec<String> = history.lines().filter_map(text_of).collect();
    same_texts(NAMES[VICTIM], texts.iter().map(String::as_str), &all)?;
    for index in [0, 2] {
        cast.clients[index].clone().close().await;
    }
    accepted_once(world, &all)?;
    let verdict = demand_complete(world, all.len()).await?;
    eprintln!("{verdict}");
    Ok(())
}

/// The `text` of a JSON line.
fn text_of(line: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    value.get("text")?.as_str().map(str::to_owned)
}

fn same_texts<'a>(who: &str, texts: impl Iterator<Item = &'a str>, all: &BTreeSet<&str>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for text in texts {
        if !seen.insert(text) {
            return Err(format!("{who} has {text:?} twice in its history"));
        }
    }
    let missing: Vec<_> = all.difference(&seen).collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("{who} has not in its history: {missing:?}")) }
}

/// Of each text exactly one message was accepted: what was encrypted anew must not have been accepted before. The checker
/// cannot see this, for those are different messages.
fn accepted_once(world: &World, all: &BTreeSet<&str>) -> Result<(), String> {
    let mut accepted: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for name in NAMES.iter().take(world.sites.len()) {
        let lines = log(&world.log_path(name));
        let done: BTreeSet<&str> = lines
            .iter()
            .filter_map(|line| match &line.event {
                Event::Accepted { message, .. } => Some(message.as_str()),
                _ => None,
            })
            .collect();
        for line in &lines {
            if let Event::Sending { message, text_hash, .. } = &line.event
                && done.contains(message.as_str())
            {
                accepted.entry(text_hash.clone()).or_default().insert(message.clone());
            }
        }
    }
    for text in all {
        let count = accepted.get(&hash(text)).map_or(0, BTreeSet::len);
        if count != 1 {
            return Err(format!("{text:?} was accepted {count} times"));
        }
    }
    Ok(())
}

fn hash(text: &str) -> String {
    Sha256::digest(text).iter().map(|octet| format!("{octet:02x}")).collect()
}

/// The whole lines of a log that may be written just now.
fn log(path: &PathBuf) -> Vec<Line> {
    let mut octets = std::fs::read(path).unwrap_or_default();
    octets.truncate(octets.iter().rposition(|octet| *octet == b'\n').map_or(0, |end| end + 1));
    read_log(BufReader::new(octets.as_slice())).expect("the log is in its format")
}

/// The clients that are not killed.
struct Others<'a> {
    cast: &'a Cast,
    group: GroupUri,
    /// What each has said.
    said: BTreeMap<usize, Vec<String>>,
}

impl Others<'_> {
    fn count(&self) -> usize {
        self.said.values().map(Vec::len).sum()
    }

    /// Each says something while the victim lives its `number`th life, and one commits now and then.
    async fn talk(&mut self, number: usize, (first, second): (usize, usize)) -> Result<(), String> {
        for (index, count) in [(0, first), (2, second)] {
            let client: &Client = &self.cast.clients[index];
            for part in 0..count {
                let text = format!("{} says in round {number}: {part}", NAMES[index]);
                client.send(&self.group, &text).await.map_err(|error| format!("{}: {error}", NAMES[index]))?;
                self.said.entry(index).or_default().push(text);
            }
            client.sync().await.map_err(|error| format!("{}: {error}", NAMES[index]))?;
        }
        if number % 4 == 3 {
            self.cast.clients[0].update(&self.group).await.map_err(|error| format!("an update: {error}"))?;
        }
        Ok(())
    }

    /// Commits so often that what was encrypted before comes too late.
    async fn move_on(&mut self) -> Result<(), String> {
        for _ in 0..COMMITS {
            self.cast.clients[2].sync().await.map_err(|error| format!("{}: {error}", NAMES[2]))?;
            self.cast.clients[2].update(&self.group).await.map_err(|error| format!("an update: {error}"))?;
        }
        Ok(())
    }
}

/// How far a message's epoch may be behind: one Commit more, and it is refused.
const COMMITS: usize = 5;

/// How one life ended.
#[derive(Debug)]
struct Kill {
    /// Lines that this life had logged.
    logged: usize,
    /// Texts being sent whose answer was not known.
    #[allow(dead_code, reason = "shown by Debug")]
    unanswered: usize,
}

/// The client that is killed.
struct Victim<'a> {
    world: &'a World,
    group: String,
    rng: ChaCha8Rng,
    /// What it is to say, in order; what of it is in its log was taken.
    lines: Vec<String>,
    kills: Vec<Kill>,
    /// How often it was killed just when a message was refused for coming too late.
    refusals: usize,
}

impl Victim<'_> {
    fn log(&self) -> Vec<Line> {
        log(&self.world.log_path(NAMES[VICTIM]))
    }

    /// What its log says it has taken to send and what was accepted, by hash of the text.
    fn taken(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let (mut taken, mut accepted, mut texts) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
        for line in self.log() {
            match line.event {
                Event::Sending { message, text_hash, .. } => {
                    taken.insert(text_hash.clone());
                    texts.insert(message, text_hash);
                }
                Event::Accepted { message, .. } => accepted.extend(texts.get(&message).cloned()),
                _ => {}
            }
        }
        (taken, accepted)
    }

    fn start(&self, arguments: &[&str]) -> Result<Child, String> {
        let mut command = self.world.client_command(Path::new(PROGRAM), NAMES[VICTIM]);
        // Nobody reads its events while it lives; a full pipe would hold it up.
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::inherit());
        command.spawn().map_err(|error| format!("cannot start a client: {error}"))
    }

    /// Runs a command to its end.
    async fn output(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = self.world.client_command(Path::new(PROGRAM), NAMES[VICTIM]);
        command.args(arguments);
        let output = timeout(STEP_TIMEOUT, command.output()).await.map_err(|_| format!("{arguments:?} does not end"))?;
        let output = output.map_err(|error| format!("cannot run a client: {error}"))?;
        if !output.status.success() {
            return Err(format!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Its epoch and how many texts its history has, after it has taken in what there is.
    async fn whereabouts(&self) -> Result<(u64, usize), String> {
        self.output(&["sync"]).await?;
        let members = self.output(&["members", &self.group]).await?;
        let members: serde_json::Value = serde_json::from_str(&members).map_err(|error| error.to_string())?;
        let epoch = members.get("epoch").and_then(serde_json::Value::as_u64).ok_or("members tells no epoch")?;
        Ok((epoch, self.output(&["history"]).await?.lines().count()))
    }

    /// The lines that no life has taken so far, after the log has been brought up to the state by a process that only opens it.
    async fn untaken(&self) -> Result<Vec<String>, String> {
        self.output(&["whoami"]).await?;
        let (taken, _) = self.taken();
        Ok(self.lines.iter().filter(|line| !taken.contains(&hash(line))).cloned().collect())
    }

    /// Chats until the seed's moment, then is killed: after so many lines of its log, or after some time, which also hits what
    /// leaves no line.
    async fn chat_and_die(&mut self) -> Result<(), String> {
        for _ in 0..self.rng.random_range(1..=5) {
            self.lines.push(format!("{} says: this is line {}", NAMES[VICTIM], self.lines.len() + 1));
        }
        let untaken = self.untaken().await?;
        let group = self.group.clone();
        let mut child = self.start(&["chat", &group])?;
        let mut stdin = child.stdin.take().ok_or("a client has no input")?;
        stdin
            .write_all((untaken.join("\n") + "\n").as_bytes())
            .await
            .map_err(|error| format!("a client reads nothing: {error}"))?;
        self.die(child, untaken.len() * 2).await
    }

    /// If it has something unanswered, which now comes too late: is started, and killed as soon as that is refused.
    async fn chat_until_refused(&mut self) -> Result<(), String> {
        let refusals = |log: &[Line]| log.iter().filter(|line| matches!(line.event, Event::Refused { .. })).count();
        self.untaken().await?;
        let (taken, accepted) = self.taken();
        if taken.len() == accepted.len() {
            return Ok(());
        }
        let before = self.log();
        let group = self.group.clone();
        let mut child = self.start(&["chat", &group])?;
        let deadline = Instant::now() + STEP_TIMEOUT;
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        // It may have been accepted in time, the answer alone being lost.
        while refusals(&self.log()) == refusals(&before) && self.taken().1.len() < taken.len() {
            look.tick().await;
            if Instant::now() > deadline {
                return Err(format!("an old message is neither refused nor accepted\n{}", report(self.world)));
            }
        }
        child.kill().await.map_err(|error| format!("cannot kill a client: {error}"))?;
        self.refusals += refusals(&self.log()) - refusals(&before);
        Ok(())
    }

    /// Makes a Commit, and is killed meanwhile.
    async fn commit_and_die(&mut self) -> Result<(), String> {
        self.untaken().await?;
        let group = self.group.clone();
        let child = self.start(&["update", &group])?;
        self.die(child, 3).await
    }

    /// Kills a process within its first `lines` log lines.
    async fn die(&mut self, mut child: Child, lines: usize) -> Result<(), String> {
        let before = self.log().len();
        if self.rng.random_ratio(1, 3) {
            let most_us = 400_000;
            tokio::time::sleep(Duration::from_micros(self.rng.random_range(0..most_us))).await;
        } else {
            let wanted = before + self.rng.random_range(1..=lines.max(1));
            let mut look = tokio::time::interval(LOOK_INTERVAL);
            let deadline = Instant::now() + STEP_TIMEOUT;
            // It may have had nothing more to log, and a Commit may have ended.
            while self.log().len() < wanted && child.try_wait().map_err(|error| error.to_string())?.is_none() {
                look.tick().await;
                if Instant::now() > deadline {
                    return Err(format!("a client does nothing\n{}", report(self.world)));
                }
            }
        }
        child.kill().await.map_err(|error| format!("cannot kill a client: {error}"))?;
        let (taken, accepted) = self.taken();
        self.kills.push(Kill { logged: self.log().len() - before, unanswered: taken.len() - accepted.len() });
        Ok(())
    }

    /// A last life, in which everything left is sent and read.
    async fn chat_to_the_end(&mut self, others: &Others<'_>) -> Result<(), String> {
        let untaken = self.untaken().await?;
        let group = self.group.clone();
        let mut child = self.start(&["chat", &group])?;
        let mut stdin = child.stdin.take().ok_or("a client has no input")?;
        for line in untaken {
            stdin.write_all((line + "\n").as_bytes()).await.map_err(|error| format!("a client reads nothing: {error}"))?;
        }
        let deadline = Instant::now() + STEP_TIMEOUT;
        let mut look = tokio::time::interval(LOOK_INTERVAL * 25);
        loop {
            let (_, accepted) = self.taken();
            let read = self.log().iter().filter(|line| matches!(&line.event, Event::Received { text_hash: Some(_), .. })).count();
            if accepted.len() == self.lines.len() && read == others.count() {
                break;
            }
            if Instant::now() > deadline {
                let figures = format!("{} of {} accepted, {read} of {} read", accepted.len(), self.lines.len(), others.count());
                return Err(format!("the last life does not end: {figures}\n{}", report(self.world)));
            }
            look.tick().await;
        }
        // The end of its input ends it.
        drop(stdin);
        let ended = timeout(STEP_TIMEOUT, child.wait()).await.map_err(|_| "a client does not end")?;
        let ended = ended.map_err(|error| error.to_string())?;
        if ended.success() { Ok(()) } else { Err(format!("a client ended badly: {ended}")) }
    }
}
