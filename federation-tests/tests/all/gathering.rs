//! What several tests of members need: nodes in this process, clients that are enrolled, and clients that listen all the time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use federation_tests::conversation::settings;
use federation_tests::world::World;
use mimi_node::base::limits::Limits;
use mimi_node::base::{ClientUri, Context as _, Fault, GroupUri, UserUri};
use mimi_node::client::{Client, ClientSettings, Event};
use mimi_node::node::Node;
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

/// How long what has to happen by itself may take. Far more than it needs on a machine that does nothing else.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(90);

/// Domains whose nodes run.
pub(crate) struct Gathering {
    pub(crate) world: World,
    nodes: Vec<Option<Node>>,
    _dir: TempDir,
}

impl Gathering {
    /// Starts `domains` domains, `a.test` and so on, with these limits.
    pub(crate) async fn start(domains: usize, limits: &Limits) -> Result<Self, Fault> {
        let dir = tempfile::tempdir().context("no directory")?;
        let world = World::open(dir.path(), domains).await?;
        let mut nodes = Vec::new();
        for index in 0..domains {
            let path = world.site_dir(index).join("node.toml");
            let mut config = world.config(index)?;
            config.limits = limits.clone();
            std::fs::write(&path, config.to_toml()?).context("cannot write a configuration")?;
            nodes.push(Some(world.start(index).await?));
        }
        Ok(Self { world, nodes, _dir: dir })
    }

    pub(crate) fn settings(&self, name: &str) -> ClientSettings {
        settings(&self.world, name)
    }

    /// Enrols the device `phone` of `name` at the domain with this index.
    pub(crate) async fn enrol(&self, index: usize, name: &str) -> Result<Client, Fault> {
        let invitation = self.world.invite(index, name).await?;
        let client = Client::enrol(&self.world.client_dir(name), &invitation, "phone", self.settings(name)).await;
        client.with_context(|| format!("{name} could not enrol"))
    }

    /// Makes a further device of the user of `client`, kept under the name `place`.
    pub(crate) async fn pair(&self, client: &Client, device: &str, place: &str) -> Result<Client, Fault> {
        let dir = self.world.client_dir(place);
        let asked = Client::request_pairing(&dir, device, &self.settings(place)).context("no pairing request")?;
        let answer = client.answer_pairing(&asked.line).await.context("no answer to a pairing request")?;
        assert_eq!(asked.code, answer.code, "both show the same code");
        Client::accept_pairing(&dir, &answer.line, self.settings(place)).await.context("the new device did not accept")
    }

    /// A group of `creator` with all clients of `others`.
    pub(crate) async fn group(&self, creator: &Client, others: &[&Client]) -> Result<GroupUri, Fault> {
        let group = creator.create_group(None).await.context("no group")?;
        let users: Vec<UserUri> = others.iter().map(|client| client.uri().user().clone()).collect();
        if !users.is_empty() {
            creator.add_users(&group, &users).await.context("not added")?;
        }
        Ok(group)
    }

    /// Stops a node and starts it again.
    pub(crate) async fn restart(&mut self, index: usize) -> Result<(), Fault> {
        self.down(index).await?;
        self.up(index).await
    }

    pub(crate) async fn stop(self) -> Result<(), Fault> {
        for node in self.nodes.into_iter().flatten() {
            node.stop().await?;
        }
        Ok(())
    }

    /// A node that runs.
    pub(crate) fn node(&self, index: usize) -> &Node {
        self.nodes[index].as_ref().expect("it runs")
    }

    /// Stops one node.
    pub(crate) async fn down(&mut self, index: usize) -> Result<(), Fault> {
        self.nodes[index].take().context("it does not run")?.stop().await
    }

    /// Starts it again.
    pub(crate) async fn up(&mut self, index: usize) -> Result<(), Fault> {
        self.nodes[index] = Some(self.world.start(index).await?);
        Ok(())
    }
}

/// A client that listens until this is dropped.
pub(crate) struct Listening {
    pub(crate) client: Client,
    heard: Arc<Heard>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Heard {
    events: Mutex<Vec<Event>>,
    more: Notify,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listening {
    pub(crate) fn new(client: &Client) -> Self {
        let heard = Arc::<Heard>::default();
        let (mut listener, to) = (client.listen(), heard.clone());
        let task = tokio::spawn(async move {
            while let Ok(event) = listener.next().await {
                to.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
                to.more.notify_waiters();
            }
        });
        Self { client: client.clone(), heard, task }
    }

    /// What was heard so far.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.heard.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until `done`, which is asked anew whenever something was heard.
    pub(crate) async fn until(&self, what: &str, done: impl AsyncFn(&Self) -> bool) -> Result<(), Fault> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let more = self.heard.more.notified();
            if done(self).await {
                return Ok(());
            }
            // What a client does by itself is not always heard of.
            let soon = deadline.min(Instant::now() + Duration::from_millis(500));
            let _ = timeout_at(soon, more).await;
            if Instant::now() >= deadline {
                let (uri, events) = (self.client.uri(), self.events());
                return Err(Fault::new(format!("{uri}: {what} did not happen. It heard {events:?}")));
            }
        }
    }

    /// Waits until a message with this text has come.
    pub(crate) async fn reads(&self, wanted: &str) -> Result<(), Fault> {
        let has =
            async |this: &Self| this.events().iter().any(|event| matches!(event, Event::Message { text, .. } if text == wanted));
        self.until(&format!("reading {wanted:?}"), has).await
    }

    /// Waits until exactly `clients` are in the group as this client sees it.
    pub(crate) async fn sees(&self, group: &GroupUri, clients: &[&ClientUri]) -> Result<(), Fault> {
        let mut wanted: Vec<ClientUri> = clients.iter().copied().cloned().collect();
        wanted.sort();
        let is_so = async |this: &Self| {
            let Ok((_, mut members)) = this.client.members(group).await else { return false };
            members.sort();
            members == wanted
        };
        self.until(&format!("the group of {wanted:?}"), is_so).await
    }

    /// Sends, and waits until the others have read it.
    pub(crate) async fn says(&self, group: &GroupUri, text: &str, readers: &[&Listening]) -> Result<(), Fault> {
        self.client.send(group, text).await.with_context(|| format!("{} cannot send {text:?}", self.client.uri()))?;
        for reader in readers {
            reader.reads(text).await?;
        }
        Ok(())
    }
}
