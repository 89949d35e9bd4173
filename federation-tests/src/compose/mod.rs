//! The federation of `docker-compose.yml`: the image that its containers run from, and what they run beside nodes and clients.
//!
//! | file | is |
//! |---|---|
//! | [`image`] | `cargo image`: one static binary, `FROM scratch` |
//! | `setup` | before anything runs: CA, nodes, invitations |
//! | `people` | once the nodes answer: one user of each domain, and a group of them |
//! | `talk` | the scripted conversation of these users |
//! | `healthy` | whether a node answers |
//!
//! All of it can be run again at any time: what is there stays as it is.

mod healthy;
pub mod image;
mod people;
mod setup;
mod talk;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use mimi_node::base::{Context as _, Domain, Fault, UserUri};
use mimi_node::transport::Network;
use tokio::signal::unix::{SignalKind, signal};

use crate::dns::{DnsServer, SrvRecord, Zones};
pub use talk::{ConversationArguments, run as converse};

/// The ports of every node.
const FEDERATION_PORT: u16 = 7443;
const CLIENT_PORT: u16 = 7444;

/// The lifetime of DNS answers: short, so that what a person changes is soon seen.
const DNS_TTL: Duration = Duration::from_secs(10);

/// What a container of the federation runs, if neither node nor client.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum ComposeCommand {
    /// Make CA, nodes and invitations, as far as they are not there.
    Setup(SetupArguments),
    /// Serve the zones of the domains.
    Dns(DnsArguments),
    /// Enrol the invited users and put them into a group, as far as they are not.
    People(PeopleArguments),
    /// Do nothing until told to end: a container for commands.
    Wait,
    /// Ask a node through its client port; the exit code says whether it answers.
    Healthy {
        /// The configuration file.
        #[arg(long, default_value = "node.toml")]
        config: PathBuf,
    },
}

/// `compose setup`.
#[derive(Clone, Debug, clap::Args)]
pub struct SetupArguments {
    /// Where the volumes are: `ca`, `people`, and each node's under its domain.
    #[arg(long, default_value = "/setup")]
    dir: PathBuf,
    /// The name server of the nodes.
    #[arg(long)]
    dns: SocketAddr,
    /// The network in which the nodes find each other, which is none that a node would dial otherwise.
    #[arg(long)]
    exempt: Network,
    /// The users, such as alice@a.test; their domains are those that are set up.
    #[arg(required = true)]
    users: Vec<Address>,
}

/// `compose dns`.
#[derive(Clone, Debug, clap::Args)]
pub struct DnsArguments {
    /// Where to answer, over UDP and TCP.
    #[arg(long)]
    listen: SocketAddr,
    /// Where the node of each domain is, such as a.test=192.0.2.10.
    #[arg(required = true)]
    hosts: Vec<Host>,
}

/// `compose people`.
#[derive(Clone, Debug, clap::Args)]
pub struct PeopleArguments {
    /// Where their state directories and invitations are.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// The name server that they ask.
    #[arg(long)]
    resolver: SocketAddr,
    /// Their names; the first one makes the group.
    #[arg(required = true)]
    names: Vec<String>,
}

/// `alice@a.test`
#[derive(Clone, Debug)]
struct Address(UserUri);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let user = text.split_once('@').and_then(|(name, domain)| UserUri::new(&domain.parse().ok()?, name).ok());
        user.map(Self).ok_or_else(|| format!("{text:?} is no user: want alice@a.test"))
    }
}

/// `a.test=192.0.2.10`
#[derive(Clone, Debug)]
struct Host {
    domain: Domain,
    address: Ipv4Addr,
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let host = text
            .split_once('=')
            .and_then(|(domain, address)| Some(Self { domain: domain.parse().ok()?, address: address.parse().ok()? }));
        host.ok_or_else(|| format!("{text:?} is no host: want a.test=192.0.2.10"))
    }
}

/// Runs it.
pub fn run(command: &ComposeCommand) -> ExitCode {
    on_runtime("compose", async {
        match command {
            ComposeCommand::Setup(arguments) => setup::run(arguments).await,
            ComposeCommand::Dns(arguments) => serve_dns(arguments).await,
            ComposeCommand::People(arguments) => people::run(arguments).await,
            ComposeCommand::Wait => told_to_end().await,
            ComposeCommand::Healthy { config } => healthy::run(config).await,
        }
        .map(|()| true)
    })
}

/// Runs `work` to its end, which says whether all is well; says in a sentence why it failed.
fn on_runtime(program: &str, work: impl Future<Output = Result<bool, Fault>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.context("cannot start the runtime").and_then(|runtime| runtime.block_on(work)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(fault) => {
            eprintln!("{program}: {fault}");
            ExitCode::FAILURE
        }
    }
}

/// The first process of a container gets no signal that it does not ask for.
async fn told_to_end() -> Result<(), Fault> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        done = tokio::signal::ctrl_c() => done.context("cannot listen for Ctrl-C"),
    }
}

async fn serve_dns(arguments: &DnsArguments) -> Result<(), Fault> {
    let zones = Zones { ttl: DNS_TTL, ..Zones::new(arguments.hosts.iter().map(|host| host.domain.to_string())) };
    let server = DnsServer::start(arguments.listen, zones).await.context("cannot start the DNS server")?;
    for Host { domain, address } in &arguments.hosts {
        let (target, failed) = (format!("node.{domain}"), "a name cannot be served");
        server.set_a(&target, vec![(*address).into()]).context(failed)?;
        for (service, port) in [("_mimi-fed", FEDERATION_PORT), ("_mimi-client", CLIENT_PORT)] {
            let record = SrvRecord { priority: 0, weight: 0, port, target: target.clone() };
            server.set_srv(domain.as_str(), service, vec![record]).context(failed)?;
        }
    }
    println!("serving {} zones on {}", arguments.hosts.len(), server.local_addr());
    told_to_end().await?;
    server.stop().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_hosts_are_written_in_short() {
        let address = "alice@a.test".parse::<Address>().expect("a user").0;
        assert_eq!(address.to_string(), "mimi://a.test/u/alice");
        let host = "a.test=10.0.0.1".parse::<Host>().expect("a host");
        assert_eq!((host.domain.as_str(), host.address), ("a.test", Ipv4Addr::new(10, 0, 0, 1)));
        for wrong in ["alice", "@a.test", "Alice@a.test", ""] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
        for wrong in ["a.test", "a.test=", "=10.0.0.1", "a.test=::1"] {
            assert!(wrong.parse::<Host>().is_err(), "{wrong}");
        }
    }
}
