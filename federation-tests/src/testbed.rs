//! `cargo testbed`: a federation on this machine that talks, to look at and to join.

pub(crate) mod picture;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mimi_node::base::{Context as _, Fault, GroupUri};
use mimi_node::client::Client;
use mimi_node::node::Node;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::checker::{Figures, Finding, Line, Verdict, check};
use crate::conversation::{Cast, NAMES, Scene, Script, read_logs};
use crate::leftovers::log_queued;
use crate::world::World;
use picture::Picture;

/// `testbed`: start domains on loopback, hold a conversation across them, and stay up to be joined.
#[derive(Clone, Debug, clap::Args)]
pub struct TestbedArguments {
    /// End after the conversation; the exit code tells whether all is well.
    #[arg(long)]
    pub once: bool,
    /// How many domains, each with a node and a user.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=26))]
    pub domains: u8,
    /// How many messages all users send together.
    #[arg(long, default_value_t = 60)]
    pub messages: usize,
    /// The length of each message, in octets.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub size: u32,
    /// Where everything is kept; a directory that holds a testbed is started again, with the domains it has. Default: a
    /// temporary one.
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// No picture; the last line is one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// The testbed's last word, as `--json` prints it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether the checker found nothing wrong and everything arrived.
    pub ok: bool,
    /// Figures of the checker, and how many requests were proxied.
    #[serde(flatten)]
    pub figures: Figures,
    /// Messages and Commits accepted from clients of other domains than the hub.
    pub proxied: usize,
    /// What the checker found, a line each.
    pub findings: Vec<String>,
}

impl Report {
    /// Also that something is still under way is not well.
    pub(crate) fn of(verdict: &Verdict, proxied: usize) -> Self {
        let figures = verdict.figures.clone();
        let complete = figures.delivered == figures.expected && figures.still_queued == 0;
        Self {
            ok: verdict.ok && complete,
            proxied,
            findings: verdict.findings.iter().map(ToString::to_string).collect(),
            figures,
        }
    }
}

/// Runs the testbed.
pub fn run(arguments: &TestbedArguments) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("testbed: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(act(arguments)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(fault) => {
            eprintln!("testbed: {fault}");
            ExitCode::FAILURE
        }
    }
}

async fn act(arguments: &TestbedArguments) -> Result<bool, Fault> {
    let temporary;
    let dir = match &arguments.data {
        Some(dir) => dir.clone(),
        None => {
            temporary = tempfile::Builder::new().prefix("mimi-testbed-").tempdir().context("cannot make a directory")?;
            temporary.path().to_owned()
        }
    };
    let world = World::open(&dir, usize::from(arguments.domains)).await?;
    let mut nodes = Vec::new();
    for index in 0..world.sites.len() {
        nodes.push(world.start(index).await?);
    }
    let (report, group) = tokio::select! {
        report = converse(arguments, &world) => report?,
        done = tokio::signal::ctrl_c() => {
            done.context("cannot listen for Ctrl-C")?;
            stop(nodes).await;
            return Ok(true);
        }
    };
    if !arguments.once {
        invite_newcomer(&world, &group).await?;
        tokio::signal::ctrl_c().await.context("cannot listen for Ctrl-C")?;
    }
    stop(nodes).await;
    if arguments.json {
        println!("{}", serde_json::to_string(&report).context("cannot write JSON")?);
    }
    Ok(report.ok)
}

/// What to say to the newcomer: the group's local name at alice, and its URI.
struct Lounge {
    name: String,
    uri: GroupUri,
}

async fn converse(arguments: &TestbedArguments, world: &World) -> Result<(Report, Lounge), Fault> {
    let (scenes, seen) = mpsc::unbounded_channel();
    let picture = Picture::new(&world.site(0).domain, !arguments.json);
    let shown = tokio::spawn(picture.show(seen));
    let cast = Cast::assemble(world, &scenes).await?;
    let name = free_name(&cast.clients[0], "lounge").await?;
    let group = cast.make_group(&name, &scenes).await?;
    let script = Script { messages: arguments.messages, size: arguments.size as usize, update_every: 25 };
    cast.play(&group, script, &scenes).await?;
    let logs: Vec<PathBuf> = NAMES.iter().take(world.sites.len()).map(|name| world.log_path(name)).collect();
    for (client, log) in cast.clients.iter().zip(&logs) {
        log_queued(client, log).await?;
    }
    cast.close().await;
    drop(scenes);
    let proxied = shown.await.context("the picture was interrupted")?;
    let verdict = judge(&read_logs(logs)?, &group);
    if !arguments.json {
        println!("\n{verdict}");
    }
    Ok((Report::of(&verdict, proxied), Lounge { name, uri: group }))
}

/// `name`, or `name-2` and so on when the client already calls a group so: names of groups are the client's own.
pub(crate) async fn free_name(client: &Client, name: &str) -> Result<String, Fault> {
    let groups = client.groups().await.context("the groups cannot be listed")?;
    let taken: BTreeSet<String> = groups.into_iter().filter_map(|group| group.name).collect();
    Ok(first_free(name, |name| taken.contains(name)))
}

fn first_free(name: &str, taken: impl Fn(&str) -> bool) -> String {
    if !taken(name) {
        return name.to_owned();
    }
    (2_u64..).map(|number| format!("{name}-{number}")).find(|name| !taken(name)).unwrap_or_default()
}

/// Judges what the logs say of this run's group. Logs of a directory that is started again hold earlier groups, too, whose
/// members may have gone on without a log: of these nothing can be said, and neither can where their entries left the queues.
pub(crate) fn judge(lines: &[Line], group: &GroupUri) -> Verdict {
    let group = group.to_string();
    let of_group: Vec<Line> = lines.iter().filter(|line| line.event.group().is_none_or(|of| of == group)).cloned().collect();
    let mut verdict = check(&of_group);
    if of_group.len() < lines.len() {
        verdict.findings.retain(|finding| !matches!(finding, Finding::Gap { .. }));
        verdict.ok = verdict.findings.is_empty();
    }
    verdict
}

async fn stop(nodes: Vec<Node>) {
    for node in nodes {
        let domain = node.domain().clone();
        if let Err(fault) = node.stop().await {
            eprintln!("testbed: the node of {domain}: {fault}");
        }
    }
}

/// Prints what a newcomer types in another terminal.
async fn invite_newcomer(world: &World, lounge: &Lounge) -> Result<(), Fault> {
    let guest = world.sites.len() - 1;
    let domain = &world.site(guest).domain;
    let user = first_free("newcomer", |name| world.client_dir(name).exists());
    let invitation = world.invite(guest, &user).await?;
    let newcomer = quoted(&world.client_dir(&user));
    let alice = quoted(&world.client_dir(NAMES[0]));
    let (resolver, name) = (world.dns.local_addr(), &lounge.name);
    // The newcomer does not know alice's name for the group; the beginning of its id is enough.
    let uri = lounge.uri.to_string();
    let id: String = uri.rsplit('/').next().unwrap_or(&uri).chars().take(8).collect();
    println!(
        "The testbed is up. In another terminal, in this directory, join it as a new user of {domain}:\n\n  \
         cargo client --dir {newcomer} --resolver {resolver} enrol {invitation} --device laptop\n  \
         cargo client --dir {alice} add {name} {user}@{domain}\n  \
         cargo client --dir {newcomer} chat {id}\n\n\
         and in a third one, answer as alice:\n\n  \
         cargo client --dir {alice} chat {name}\n\n\
         Ctrl-C ends the testbed.",
    );
    Ok(())
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    let plain = path.chars().all(|c| c.is_alphanumeric() || "/._-+".contains(c));
    if plain { path } else { format!("'{}'", path.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_taken_get_a_number_and_paths_survive_a_shell() {
        assert_eq!(first_free("a", |_| false), "a");
        assert_eq!(first_free("a", |name| ["a", "a-2"].contains(&name)), "a-3");
        assert_eq!(quoted(Path::new("/tmp/x-1")), "/tmp/x-1");
        assert_eq!(quoted(Path::new("/tmp/it's")), "'/tmp/it'\\''s'");
    }
}
