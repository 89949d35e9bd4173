//! The scripted conversation: one client per domain, one group on the first domain's hub, everyone writes at once while epochs
//! change, and everyone must have read everything.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mimi_node::base::{Context as _, Fault, GroupUri, UserUri};
use mimi_node::client::{Client, ClientError, ClientSettings, Event};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::checker::{self, Verdict};
use crate::world::World;

/// The users of the scripted conversation, one per domain.
pub const NAMES: [&str; 26] = [
    "alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy", "kim", "leo", "mia", "nina", "oscar",
    "peggy", "quinn", "rupert", "sybil", "trent", "uma", "victor", "wendy", "xavier", "yara", "zoe",
];

/// How long after the last message everything may take to arrive. Far more than it needs: a run that needs it all has failed.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(180);

/// How long after a run a client may take for what is left: its acknowledgements, above all.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a client of the conversation tries: nobody gives up while a node is away for a while.
pub(crate) const REQUEST_DEADLINE: Duration = Duration::from_secs(150);

/// How often it is asked whether it is done.
const SETTLE_INTERVAL: Duration = Duration::from_millis(100);

/// The seed of a random test: the environment's `MIMI_TEST_SEED`, so that a failure can be repeated, or `default`. It is
/// printed.
pub fn seed(default: u64) -> u64 {
    let seed = std::env::var("MIMI_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    eprintln!("seed {seed}");
    seed
}

/// How much is said.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    /// Application messages of all users together.
    pub messages: usize,
    /// The length of each, in octets; short ones are filled up.
    pub size: usize,
    /// Every user commits an update after this many of its own messages; 0 for never.
    pub update_every: usize,
}

/// What happens, for whoever shows it. As JSON, an object whose `scene` is the variant.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "scene", rename_all = "lowercase")]
pub enum Scene {
    /// A user was enrolled.
    Enrolled {
        /// Who.
        user: String,
    },
    /// The group was made.
    Created {
        /// Its URI.
        group: String,
    },
    /// A user was told that its message was accepted.
    Sent {
        /// Who.
        from: String,
        /// The text.
        text: String,
    },
    /// A user read a message.
    Received {
        /// Who.
        by: String,
        /// Whose message.
        from: String,
        /// When it was sent to when it was read is for the checker; this is the text.
        text: String,
    },
    /// A user committed a change; the epoch that began.
    Committed {
        /// Who.
        by: String,
        /// What, in a word.
        what: String,
        /// The new epoch.
        epoch: u64,
    },
}

/// Where scenes go. Dropped when nobody looks.
pub type Scenes = mpsc::UnboundedSender<Scene>;

/// One client per domain, in order.
pub struct Cast {
    /// The clients.
    pub clients: Vec<Client>,
    names: Vec<String>,
}

/// `alice@a.test`.
fn short(client: &Client) -> String {
    let user = client.uri().user();
    format!("{}@{}", user.name(), user.domain())
}

/// What a client needs to know of its surroundings.
pub fn settings(world: &World, name: &str) -> ClientSettings {
    let resolver: Vec<SocketAddr> = vec![world.dns.local_addr()];
    ClientSettings { resolver, log: Some(world.log_path(name)), request_deadline: REQUEST_DEADLINE, ..ClientSettings::default() }
}

impl Cast {
    /// Enrols one client per domain, or opens those that are there.
    pub async fn assemble(world: &World, scenes: &Scenes) -> Result<Self, Fault> {
        let mut joining = JoinSet::new();
        for (index, name) in NAMES.iter().enumerate().take(world.sites.len()) {
            let (dir, settings) = (world.client_dir(name), settings(world, name));
            let is_there = dir.exists();
            let invitation = if is_there { None } else { Some(world.invite(index, name).await?) };
            joining.spawn(async move {
                let client = match invitation {
                    None => Client::open(&dir, settings).await,
                    Some(invitation) => Client::enrol(&dir, &invitation, "phone", settings).await,
                };
                (index, client)
            });
        }
        let mut clients = Vec::new();
        while let Some(joined) = joining.join_next().await {
            let (index, client) = joined.context("enrolling was interrupted")?;
            let client = client.with_context(|| format!("{} could not enrol", NAMES[index]))?;
            let _ = scenes.send(Scene::Enrolled { user: short(&client) });
            clients.push((index, client));
        }
        clients.sort_by_key(|(index, _)| *index);
        Ok(Self::of(clients.into_iter().map(|(_, client)| client).collect()))
    }

    /// Clients that are there already, each of another domain; groups are made on the first one's.
    pub fn of(clients: Vec<Client>) -> Self {
        Self { names: clients.iter().map(short).collect(), clients }
    }

    /// Makes a group on the first domain and adds everyone else, one after the other.
    pub async fn make_group(&self, name: &str, scenes: &Scenes) -> Result<GroupUri, Fault> {
        let (first, others) = self.clients.split_first().context("nobody is there")?;
        let group = first.create_group(Some(name)).await.context("the group could not be made")?;
        let _ = scenes.send(Scene::Created { group: group.to_string() });
        for other in others {
            let user: UserUri = other.uri().user().clone();
            let epoch = first
                .add_users(&group, std::slice::from_ref(&user))
                .await
                .with_context(|| format!("{user} could not be added"))?;
            let _ = scenes.send(Scene::Committed { by: short(first), what: "add".to_owned(), epoch });
        }
        Ok(group)
    }

    /// Plays the script: everyone listens, waits to be a member, and writes its share. Returns when everyone has read what
    /// everyone wrote, or the time for that is over.
    pub async fn play(&self, group: &GroupUri, script: Script, scenes: &Scenes) -> Result<(), Fault> {
        self.play_in_step(group, script, usize::MAX, scenes).await
    }

    /// As [`Cast::play`], but nobody writes while somebody has `window` messages of others to read: the conversation stops
    /// while one is out of reach, and does not end without it.
    pub async fn play_in_step(&self, group: &GroupUri, script: Script, window: usize, scenes: &Scenes) -> Result<(), Fault> {
        let behind = Mutex::new(vec![0; self.clients.len()]);
        self.play_with(group, script, Step { window, permits: None, behind, changed: Notify::new() }, scenes).await
    }

    /// As [`Cast::play`], but each message takes one of `permits` first, whoever writes it. When they are closed, the play has
    /// failed.
    pub async fn play_by_permit(
        &self,
        group: &GroupUri,
        script: Script,
        permits: Arc<Semaphore>,
        scenes: &Scenes,
    ) -> Result<(), Fault> {
        let behind = Mutex::new(vec![0; self.clients.len()]);
        let step = Step { window: usize::MAX, permits: Some(permits), behind, changed: Notify::new() };
        self.play_with(group, script, step, scenes).await
    }

    async fn play_with(&self, group: &GroupUri, script: Script, step: Step, scenes: &Scenes) -> Result<(), Fault> {
        let step = Arc::new(step);
        let total = script.messages;
        let count = self.clients.len();
        let mut tasks = JoinSet::new();
        for (index, client) in self.clients.iter().enumerate() {
            // The first writers take what does not divide.
            let share = total / count + usize::from(index < total % count);
            let player = Player {
                client: client.clone(),
                group: group.clone(),
                scenes: scenes.clone(),
                name: self.names[index].clone(),
                cast: count,
                index,
                step: step.clone(),
            };
            tasks.spawn(player.play(share, total - share, script));
        }
        while let Some(played) = tasks.join_next().await {
            played.context("a player was interrupted")??;
        }
        Ok(())
    }

    /// Waits until all clients are members of `group` and know each other as such: what is sent before is not for everyone.
    pub async fn await_membership(&self, group: &GroupUri) -> Result<(), Fault> {
        for (client, name) in self.clients.iter().zip(&self.names) {
            let deadline = Instant::now() + SETTLE_TIMEOUT;
            while !client.members(group).await.is_ok_and(|(_, members)| members.len() == self.clients.len()) {
                if Instant::now() > deadline {
                    return Err(Fault::new(format!("{name} did not become a member, or knows of no others")));
                }
                client.sync().await.with_context(|| format!("{name} cannot receive"))?;
            }
        }
        Ok(())
    }

    /// Has everyone take in and acknowledge what there still is, and finish what was left undone. Fails when something remains.
    pub async fn settle(&self) -> Result<(), Fault> {
        for (client, name) in self.clients.iter().zip(&self.names) {
            let deadline = Instant::now() + SETTLE_TIMEOUT;
            loop {
                let synced = client.sync().await;
                let queue = client.queue_state().await.with_context(|| format!("{name} has no queue"))?;
                if synced.is_ok() && queue.acked + 1 == queue.next && queue.waiting == 0 && queue.outgoing == 0 {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(Fault::new(format!("{name} is not done: {queue:?}, {synced:?}")));
                }
                tokio::time::sleep(SETTLE_INTERVAL).await;
            }
        }
        Ok(())
    }

    /// Closes the clients, so that others may open their directories.
    pub async fn close(self) {
        for client in self.clients {
            client.close().await;
        }
    }
}

struct Player {
    client: Client,
    group: GroupUri,
    scenes: Scenes,
    name: String,
    /// How many members the group has once everyone is there.
    cast: usize,
    /// Which of them this one is.
    index: usize,
    step: Arc<Step>,
}

/// Keeps the writers from running away from the readers.
struct Step {
    window: usize,
    /// How many more messages may be written, if somebody counts.
    permits: Option<Arc<Semaphore>>,
    /// How many accepted messages of others each player has not read; less than nothing when it reads one before its sender
    /// knows that it was accepted.
    behind: Mutex<Vec<i64>>,
    changed: Notify,
}

impl Step {
    fn change(&self, change: impl FnOnce(&mut Vec<i64>)) {
        change(&mut self.behind.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_waiters();
    }

    /// Waits until nobody is too far behind, and one more message may be written.
    async fn wait(&self) -> Result<(), Fault> {
        if let Some(permits) = &self.permits {
            permits.acquire().await.context("nobody lets the conversation go on")?.forget();
        }
        loop {
            let changed = self.changed.notified();
            let window = i64::try_from(self.window).unwrap_or(i64::MAX);
            if self.behind.lock().unwrap_or_else(PoisonError::into_inner).iter().all(|behind| *behind < window) {
                return Ok(());
            }
            changed.await;
        }
    }
}

impl Player {
    async fn play(self, share: usize, awaited: usize, script: Script) -> Result<(), Fault> {
        let (joined, is_member) = tokio::sync::oneshot::channel();
        let player = Arc::new(self);
        // A set, so that the reader ends with this player however that ends.
        let mut reader = JoinSet::new();
        reader.spawn(player.clone().read(awaited, joined));
        if is_member.await.is_err() {
            let ended = reader.join_next().await.context("a reader is gone")?.context("a reader was interrupted")?;
            return ended.and_then(|()| Err(Fault::new(format!("{} never became a member", player.name))));
        }
        player.write(share, script).await?;
        let deadline = Instant::now() + ARRIVAL_TIMEOUT;
        match tokio::time::timeout_at(deadline, reader.join_next()).await {
            Ok(read) => read.context("a reader is gone")?.context("a reader was interrupted")?,
            // Not an error here: the checker says what is missing.
            Err(_) => Ok(()),
        }
    }

    async fn write(&self, share: usize, script: Script) -> Result<(), Fault> {
        for number in 0..share {
            let mut text = format!("{} says: this is my message {} of {share}", self.name, number + 1);
            while text.len() < script.size {
                text.push('.');
            }
            self.step.wait().await?;
            self.client.send(&self.group, &text).await.with_context(|| format!("{} could not send", self.name))?;
            let _ = self.scenes.send(Scene::Sent { from: self.name.clone(), text });
            self.step.change(|behind| {
                behind.iter_mut().enumerate().filter(|(index, _)| *index != self.index).for_each(|(_, behind)| *behind += 1);
            });
            // Spread over the run, so that Commits meet messages of every other sender.
            if script.update_every > 0 && (number + self.index) % script.update_every == script.update_every - 1 {
                let epoch = self.client.update(&self.group).await.with_context(|| format!("{} could not update", self.name))?;
                let _ = self.scenes.send(Scene::Committed { by: self.name.clone(), what: "update".to_owned(), epoch });
            }
        }
        Ok(())
    }

    async fn read(self: Arc<Self>, mut awaited: usize, joined: tokio::sync::oneshot::Sender<()>) -> Result<(), Fault> {
        let mut joined = Some(joined);
        let mut listener = self.client.listen();
        loop {
            // A message of an epoch in which somebody is missing is not meant for that one.
            let complete = self.client.members(&self.group).await.is_ok_and(|(_, members)| members.len() == self.cast);
            if complete && let Some(joined) = joined.take() {
                let _ = joined.send(());
            }
            if awaited == 0 && joined.is_none() {
                return Ok(());
            }
            match listener.next().await {
                Ok(Event::Message { group, sender, text, .. }) if group == self.group => {
                    awaited = awaited.saturating_sub(1);
                    self.step.change(|behind| behind.iter_mut().skip(self.index).take(1).for_each(|behind| *behind -= 1));
                    let from = format!("{}@{}", sender.user().name(), sender.domain());
                    let _ = self.scenes.send(Scene::Received { by: self.name.clone(), from, text });
                }
                Ok(_) => {}
                Err(error @ ClientError::NotReached(_)) => tracing_note(&self.name, &error),
                Err(error) => return Err(Fault::because(format!("{} cannot receive", self.name), error)),
            }
        }
    }
}

fn tracing_note(name: &str, error: &ClientError) {
    eprintln!("{name}: {error}");
}

/// Reads the logs of these clients and judges the run.
pub fn judge(logs: impl IntoIterator<Item = PathBuf>) -> Result<Verdict, Fault> {
    Ok(checker::check(&read_logs(logs)?))
}

/// Reads the logs of these clients.
pub fn read_logs(logs: impl IntoIterator<Item = PathBuf>) -> Result<Vec<checker::Line>, Fault> {
    let mut lines = Vec::new();
    for path in logs {
        let file = std::fs::File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        lines.extend(
            checker::read_log(std::io::BufReader::new(file)).with_context(|| format!("{} is not a log", path.display()))?,
        );
    }
    Ok(lines)
}

/// What a person needs who looks for why a run failed: what the checker makes of it so far, and the ends of the nodes' logs.
pub fn report(world: &World) -> String {
    /// Enough to see the last minute of a node.
    const LOG_LINES: usize = 60;
    let verdict = match judge_cast(world) {
        Ok(verdict) => verdict.to_string(),
        Err(fault) => fault.to_string(),
    };
    format!("{verdict}\n{}", world.log_tails(LOG_LINES))
}

fn judge_cast(world: &World) -> Result<Verdict, Fault> {
    judge(NAMES.iter().take(world.sites.len()).map(|name| world.log_path(name)))
}

/// Judges a run of this world's cast that must have been complete: `sent` messages accepted, each delivered to everyone once
/// and in order, nothing left in a queue or on its way. The error is for a person, see [`report`].
pub async fn demand_complete(world: &World, sent: usize) -> Result<Verdict, String> {
    let fail = |what: String| Err(format!("{what}: {}", report(world)));
    let verdict = match judge_cast(world) {
        Ok(verdict) => verdict,
        Err(fault) => return fail(fault.to_string()),
    };
    let figures = &verdict.figures;
    let complete = figures.sent == sent
        && figures.expected == sent * (world.sites.len() - 1)
        && figures.delivered == figures.expected
        && figures.still_queued == 0;
    if !verdict.ok || !complete {
        return fail(format!("{sent} messages were not delivered as they must be"));
    }
    for index in 0..world.sites.len() {
        match world.undelivered(index).await {
            Ok(domains) if domains.is_empty() => {}
            Ok(domains) => return fail(format!("{} still has frames for {domains:?}", world.site(index).domain)),
            Err(fault) => return fail(fault.to_string()),
        }
    }
    Ok(verdict)
}
