//! The scripted conversation of users who are there already, with the checker's verdict.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use mimi_node::base::bytes::hex;
use mimi_node::base::{Context as _, Fault, GroupUri};
use mimi_node::client::{Client, ClientSettings};
use tokio::sync::{Semaphore, mpsc};

use super::on_runtime;
use super::people::client_dir;
use crate::checker::{Finding, Line, Verdict, check};
use crate::conversation::{Cast, REQUEST_DEADLINE, Scene, Script, read_logs};
use crate::leftovers::log_queued;
use crate::testbed::picture::Picture;
use crate::testbed::{Report, free_name, judge};

/// Hold a conversation between users who are there, and judge it.
#[derive(Clone, Debug, clap::Args)]
pub struct ConversationArguments {
    /// Where their state directories are; logs are written to `logs` in it.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// How many messages all users send together.
    #[arg(long, default_value_t = 60)]
    messages: usize,
    /// Each line of standard input is a number: so many more messages may be written.
    #[arg(long)]
    paced: bool,
    /// A line of JSON for all that happens, and last the verdict.
    #[arg(long)]
    json: bool,
    /// The users; the group is made on the first one's domain.
    #[arg(default_values_t = ["alice", "bob", "carol"].map(str::to_owned))]
    names: Vec<String>,
}

/// Runs it; the exit code says whether all is well.
pub fn run(arguments: &ConversationArguments) -> ExitCode {
    on_runtime("conversation", talk(arguments))
}

async fn talk(arguments: &ConversationArguments) -> Result<bool, Fault> {
    let logs = arguments.dir.join("logs");
    std::fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
    let logs: Vec<PathBuf> = arguments.names.iter().map(|name| logs.join(format!("{name}.jsonl"))).collect();
    let mut clients = Vec::new();
    for (name, log) in arguments.names.iter().zip(&logs) {
        clients.push(open(&client_dir(&arguments.dir, name), log).await.with_context(|| format!("{name} cannot take part"))?);
    }
    let hub = clients.first().context("nobody takes part")?.uri().domain().clone();
    let begun = Begun::now(&clients).await?;
    let cast = Cast::of(clients);
    let (scenes, seen) = mpsc::unbounded_channel();
    let shown = tokio::spawn(show(seen, Picture::new(&hub, !arguments.json), arguments.json));
    let name = free_name(&cast.clients[0], "conversation").await?;
    let group = cast.make_group(&name, &scenes).await?;
    let script = Script { messages: arguments.messages, size: 64, update_every: 25 };
    if arguments.paced {
        cast.play_by_permit(&group, script, permits_from_input(), &scenes).await?;
    } else {
        cast.play(&group, script, &scenes).await?;
    }
    for (client, log) in cast.clients.iter().zip(&logs) {
        log_queued(client, log).await?;
    }
    cast.settle().await?;
    cast.close().await;
    drop(scenes);
    let proxied = shown.await.context("what was to be shown was interrupted")??;
    let verdict = begun.judge(&read_logs(logs)?, &group);
    let report = Report::of(&verdict, proxied);
    if arguments.json {
        println!("{}", serde_json::to_string(&report).context("cannot write JSON")?);
    } else {
        println!("\n{verdict}");
    }
    Ok(report.ok)
}

async fn open(dir: &Path, log: &Path) -> Result<Client, Fault> {
    let settings = ClientSettings { log: Some(log.to_owned()), request_deadline: REQUEST_DEADLINE, ..ClientSettings::default() };
    let client = Client::open(dir, settings).await.with_context(|| format!("cannot open {}", dir.display()))?;
    // What came before is no part of it.
    client.sync().await.context("its node does not answer")?;
    Ok(client)
}

/// Permits for messages, as many as standard input says; closed when it ends.
fn permits_from_input() -> Arc<Semaphore> {
    let permits = Arc::new(Semaphore::new(0));
    let given = permits.clone();
    // A thread of its own, which ends with the process: a read of standard input cannot be called off.
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let Some(more) = line.ok().and_then(|line| line.trim().parse().ok()) else { break };
            given.add_permits(more);
        }
        given.close();
    });
    permits
}

/// Shows what happens; returns how many requests were proxied, which the picture counts.
async fn show(mut seen: mpsc::UnboundedReceiver<Scene>, picture: Picture, json: bool) -> Result<usize, Fault> {
    let (to_picture, shown) = mpsc::unbounded_channel();
    let picture = tokio::spawn(picture.show(shown));
    while let Some(scene) = seen.recv().await {
        if json {
            println!("{}", serde_json::to_string(&scene).context("cannot write JSON")?);
        }
        let _ = to_picture.send(scene);
    }
    drop(to_picture);
    picture.await.context("the picture was interrupted")
}

/// Where each queue was when the conversation began: what was in it before was taken without a log.
struct Begun(BTreeMap<String, u64>);

impl Begun {
    async fn now(clients: &[Client]) -> Result<Self, Fault> {
        let mut next = BTreeMap::new();
        for client in clients {
            let queue = client.queue_state().await.with_context(|| format!("{} has no queue", client.uri()))?;
            next.insert(hex(&queue.queue.0), queue.next);
        }
        Ok(Self(next))
    }

    /// Judges what the logs say of `group`, and whether its queues have gaps since.
    fn judge(&self, lines: &[Line], group: &GroupUri) -> Verdict {
        let mut verdict = judge(lines, group);
        verdict.findings.retain(|finding| !matches!(finding, Finding::Gap { .. }));
        // Of all groups together: what other groups had in between is no gap.
        let gaps = check(lines).findings.into_iter().filter(|finding| match finding {
            Finding::Gap { queue, to, .. } => self.0.get(queue).is_none_or(|next| to >= next),
            _ => false,
        });
        verdict.findings.extend(gaps);
        verdict.ok = verdict.findings.is_empty();
        verdict
    }
}
