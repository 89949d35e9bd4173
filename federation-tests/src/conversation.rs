//! The scripted conversation: one client per domain, one group on the first domain's hub, everyone writes at once while epochs
//! change, and everyone must have read everything.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mimi_node::base::{Context as _, Fault, GroupUri, UserUri};
use mimi_node::client::{Client, ClientError, ClientSettings, Event};
use tokio::sync::mpsc;
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

/// What happens, for whoever shows it.
#[derive(Clone, Debug)]
pub enum Scene {
    /// A user was enrolled.
    Enrolled(String),
    /// The group was made.
    Created(GroupUri),
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
        what: &'static str,
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
    ClientSettings {
        resolver,
        log: Some(world.log_path(name)),
        request_deadline: Duration::from_secs(150),
        ..ClientSettings::default()
    }
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
            let _ = scenes.send(Scene::Enrolled(short(&client)));
            clients.push((index, client));
        }
        clients.sort_by_key(|(index, _)| *index);
        let clients: Vec<Client> = clients.into_iter().map(|(_, client)| client).collect();
        Ok(Self { names: clients.iter().map(short).collect(), clients })
    }

    /// Makes a group on the first domain and adds everyone else, one after the other.
    pub async fn make_group(&self, name: &str, scenes: &Scenes) -> Result<GroupUri, Fault> {
        let (first, others) = self.clients.split_first().context("nobody is there")?;
        let group = first.create_group(Some(name)).await.context("the group could not be made")?;
        let _ = scenes.send(Scene::Created(group.clone()));
        for other in others {
            let user: UserUri = other.uri().user().clone();
            let epoch = first
                .add_users(&group, std::slice::from_ref(&user))
                .await
                .with_context(|| format!("{user} could not be added"))?;
            let _ = scenes.send(Scene::Committed { by: short(first), what: "add", epoch });
        }
        Ok(group)
    }

    /// Plays the script: everyone listens, waits to be a member, and writes its share. Returns when everyone has read what
    /// everyone wrote, or the time for that is over.
    pub async fn play(&self, group: &GroupUri, script: Script, scenes: &Scenes) -> Result<(), Fault> {
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
            };
            tasks.spawn(player.play(index, share, total - share, script));
        }
        while let Some(played) = tasks.join_next().await {
            played.context("a player was interrupted")??;
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
}

impl Player {
    async fn play(self, index: usize, share: usize, awaited: usize, script: Script) -> Result<(), Fault> {
        let (joined, is_member) = tokio::sync::oneshot::channel();
        let player = Arc::new(self);
        let reader = tokio::spawn(player.clone().read(awaited, joined));
        is_member.await.with_context(|| format!("{} never became a member", player.name))?;
        player.write(index, share, script).await?;
        let deadline = Instant::now() + ARRIVAL_TIMEOUT;
        match tokio::time::timeout_at(deadline, reader).await {
            Ok(read) => read.context("a reader was interrupted")?,
            // Not an error here: the checker says what is missing.
            Err(_) => Ok(()),
        }
    }

    async fn write(&self, index: usize, share: usize, script: Script) -> Result<(), Fault> {
        for number in 0..share {
            let mut text = format!("{} says: this is my message {} of {share}", self.name, number + 1);
            while text.len() < script.size {
                text.push('.');
            }
            self.client.send(&self.group, &text).await.with_context(|| format!("{} could not send", self.name))?;
            let _ = self.scenes.send(Scene::Sent { from: self.name.clone(), text });
            // Spread over the run, so that Commits meet messages of every other sender.
            if script.update_every > 0 && (number + index) % script.update_every == script.update_every - 1 {
                let epoch = self.client.update(&self.group).await.with_context(|| format!("{} could not update", self.name))?;
                let _ = self.scenes.send(Scene::Committed { by: self.name.clone(), what: "update", epoch });
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
