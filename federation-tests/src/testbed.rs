//! `cargo testbed`: a federation on this machine that talks, to look at and to join.

mod picture;

use std::path::PathBuf;
use std::process::ExitCode;

use mimi_node::base::{Context as _, Fault};
use mimi_node::node::Node;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::checker::Figures;
use crate::conversation::{Cast, NAMES, Scene, Script, judge};
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
    /// Where everything is kept; a directory that holds a testbed is started again. Default: a temporary one.
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
    let report = tokio::select! {
        report = converse(arguments, &world) => report?,
        done = tokio::signal::ctrl_c() => {
            done.context("cannot listen for Ctrl-C")?;
            stop(nodes).await;
            return Ok(true);
        }
    };
    if !arguments.once {
        invite_newcomer(&world).await?;
        tokio::signal::ctrl_c().await.context("cannot listen for Ctrl-C")?;
    }
    stop(nodes).await;
    if arguments.json {
        println!("{}", serde_json::to_string(&report).context("cannot write JSON")?);
    }
    Ok(report.ok)
}

async fn converse(arguments: &TestbedArguments, world: &World) -> Result<Report, Fault> {
    let (scenes, seen) = mpsc::unbounded_channel();
    let picture = Picture::new(world, !arguments.json);
    let shown = tokio::spawn(picture.show(seen));
    let cast = Cast::assemble(world, &scenes).await?;
    let group = cast.make_group("lounge", &scenes).await?;
    let script = Script { messages: arguments.messages, size: arguments.size as usize, update_every: 25 };
    cast.play(&group, script, &scenes).await?;
    for (client, name) in cast.clients.iter().zip(NAMES) {
        log_queued(client, &world.log_path(name)).await?;
    }
    cast.close().await;
    drop(scenes);
    let proxied = shown.await.context("the picture was interrupted")?;
    let logs = NAMES.iter().take(world.sites.len()).map(|name| world.log_path(name));
    let verdict = judge(logs)?;
    let figures = verdict.figures.clone();
    let complete = figures.delivered == figures.expected && figures.still_queued == 0;
    let report = Report {
        ok: verdict.ok && complete,
        proxied,
        findings: verdict.findings.iter().map(ToString::to_string).collect(),
        figures,
    };
    if !arguments.json {
        println!("\n{verdict}");
    }
    Ok(report)
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
async fn invite_newcomer(world: &World) -> Result<(), Fault> {
    let guest = world.sites.len() - 1;
    let domain = &world.site(guest).domain;
    let invitation = world.invite(guest, "newcomer").await?;
    let newcomer = world.client_dir("newcomer");
    let alice = world.client_dir(NAMES[0]);
    println!(
        "The testbed is up. In another terminal, in this directory, join it as a new user of {domain}:\n\n  \
         cargo client --dir {0} --resolver {1} enrol {invitation} --device laptop\n  \
         cargo client --dir {2} add lounge newcomer@{domain}\n  \
         cargo client --dir {0} chat lounge\n\n\
         and in a third one, answer as alice:\n\n  \
         cargo client --dir {2} chat lounge\n\n\
         Ctrl-C ends the testbed.",
        newcomer.display(),
        world.dns.local_addr(),
        alice.display(),
    );
    Ok(())
}
