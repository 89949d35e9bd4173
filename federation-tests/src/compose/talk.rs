//! The scripted conversation of users who are there already, with the checker's verdict.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mimi_node::base::{Context as _, Fault};
use mimi_node::client::{Client, ClientSettings};
use tokio::sync::mpsc;

use super::on_runtime;
use super::people::client_dir;
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
    /// Nobody writes while somebody has so many messages to read: the conversation waits for who is out of reach.
    #[arg(long, default_value_t = 100)]
    window: usize,
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
    let cast = Cast::of(clients);
    let (scenes, seen) = mpsc::unbounded_channel();
    let shown = tokio::spawn(show(seen, Picture::new(&hub, true), arguments.json));
    let name = free_name(&cast.clients[0], "conversation").await?;
    let group = cast.make_group(&name, &scenes).await?;
    let script = Script { messages: arguments.messages, size: 64, update_every: 25 };
    cast.play_in_step(&group, script, arguments.window, &scenes).await?;
    for (client, log) in cast.clients.iter().zip(&logs) {
        log_queued(client, log).await?;
    }
    cast.settle().await?;
    cast.close().await;
    drop(scenes);
    let proxied = shown.await.context("what was to be shown was interrupted")?;
    let verdict = judge(&read_logs(logs)?, &group);
    let report = Report::of(&verdict, proxied);
    if arguments.json {
        println!("{}", serde_json::to_string(&report).context("cannot write JSON")?);
    } else {
        println!("\n{verdict}");
    }
    Ok(report.ok)
}

async fn open(dir: &Path, log: &Path) -> Result<Client, Fault> {
    let settings =
        ClientSettings { log: Some(log.to_owned()), request_deadline: REQUEST_DEADLINE, ..ClientSettings::default() };
    let client = Client::open(dir, settings).await.with_context(|| format!("cannot open {}", dir.display()))?;
    // What came before is no part of it.
    client.sync().await.context("its node does not answer")?;
    Ok(client)
}

/// Shows what happens; returns how many requests were proxied, which only the picture counts.
async fn show(mut seen: mpsc::UnboundedReceiver<Scene>, picture: Picture, json: bool) -> usize {
    if !json {
        return picture.show(seen).await;
    }
    while let Some(scene) = seen.recv().await {
        if let Ok(line) = serde_json::to_string(&scene) {
            println!("{line}");
        }
    }
    0
}
