//! `mimi-node`: set up, serve, certificates, users; and what a running node is asked: peers, health.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use super::certs::{self, CertsCommand};
use super::doctor::{self, DoctorArguments};
use super::lanes::{self, LanesArguments};
use super::peers::{self, HealthArguments, PeersCommand};
use super::users::{self, UsersCommand};
use crate::base::fault::{Context as _, Fault};
use crate::base::{Domain, UnixMillis};
use crate::identity::TlsCa;
use crate::node::Node;
use crate::node::config::{Config, Listen, LogLevel, read_secret};
use crate::node::init::NewNode;

/// A federated messaging node: the MLS Delivery Service and Queueing Service of one domain.
#[derive(Parser)]
#[command(name = "mimi-node", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Set up a new node: directory, configuration, keys and TLS certificate.
    Init(InitArguments),
    /// Run the node until it is told to stop (SIGTERM or Ctrl-C). SIGHUP makes it read its TLS files again.
    Serve {
        /// The configuration file.
        #[arg(long, default_value = "node.toml")]
        config: PathBuf,
    },
    /// Make and look at TLS certificates.
    #[command(subcommand)]
    Certs(CertsCommand),
    /// Invite and list users.
    #[command(subcommand)]
    Users(UsersCommand),
    /// See other domains as the running node does, and decide about them.
    #[command(subcommand)]
    Peers(PeersCommand),
    /// Look at everything between this node and another domain's, and back: DNS, addresses, UDP, certificates, versions, clocks,
    /// policy. The exit code tells the kind of trouble.
    Doctor(DoctorArguments),
    /// List the lanes in which frames wait for other domains.
    Lanes(LanesArguments),
    /// List what was given up: lanes that ended before all their frames were delivered, and why.
    DeadLetters(LanesArguments),
    /// Ask the running node whether it does its work: exit code 0 if so.
    Health(HealthArguments),
}

#[derive(clap::Args)]
struct InitArguments {
    /// The domain to serve, such as a.example.
    #[arg(long)]
    domain: Domain,
    /// Where to put the node: made if it is not there.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// UDP address for other nodes.
    #[arg(long, default_value = "0.0.0.0:7443")]
    federation: SocketAddr,
    /// UDP address for the domain's clients.
    #[arg(long, default_value = "0.0.0.0:7444")]
    client: SocketAddr,
    /// The directory of a TLS CA made by `certs ca`; without it the node gets one of its own, which peers must be given.
    #[arg(long)]
    ca: Option<PathBuf>,
    /// A name server as ADDRESS:PORT; repeatable. None uses the system's.
    #[arg(long = "dns")]
    dns: Vec<SocketAddr>,
}

/// Runs `mimi-node` with these arguments (the first is the program's name).
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors; clap knows where each goes.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    let done = match arguments.command {
        Command::Init(arguments) => on_runtime(initialise(arguments)),
        Command::Serve { config } => serve(&config),
        Command::Certs(command) => certs::run(command),
        Command::Users(command) => on_runtime(users::run(command)),
        Command::Peers(command) => on_runtime(peers::run(command)),
        Command::Doctor(arguments) => match on_runtime(doctor::run(arguments)) {
            Ok(0) => Ok(()),
            Ok(trouble) => return ExitCode::from(trouble),
            Err(fault) => Err(fault),
        },
        Command::Lanes(arguments) => on_runtime(lanes::list(arguments)),
        Command::DeadLetters(arguments) => on_runtime(lanes::dead_letters(arguments)),
        Command::Health(arguments) => on_runtime(peers::health(arguments)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("mimi-node: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn on_runtime<T>(work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?.block_on(work)
}

async fn initialise(arguments: InitArguments) -> Result<(), Fault> {
    let directory = &arguments.dir;
    let tls = directory.join("tls");
    let config_path = directory.join("node.toml");
    if config_path.exists() {
        return Err(Fault::new(format!("{} is already there: this directory holds a node", config_path.display())));
    }
    let ca = match &arguments.ca {
        Some(ca) => certs::load_ca(ca)?,
        None => {
            let ca = TlsCa::create(&format!("TLS CA of {}", arguments.domain), UnixMillis::now())?;
            certs::write_ca(&ca, &tls.join("ca"))?;
            ca
        }
    };
    let node = NewNode {
        domain: &arguments.domain,
        directory,
        listen: Listen { federation: arguments.federation, client: arguments.client },
        dns: arguments.dns,
        ca: &ca,
    };
    node.set_up().await?;
    println!("The node of {} is set up in {}.", arguments.domain, directory.display());
    println!("Peers' CAs go into {}.", tls.join("authorities.pem").display());
    println!(
        "In DNS: _mimi-fed._udp.{0} SRV to port {1}, _mimi-client._udp.{0} SRV to port {2}.",
        arguments.domain,
        arguments.federation.port(),
        arguments.client.port()
    );
    println!("Next: mimi-node serve --config {}", config_path.display());
    Ok(())
}

fn serve(path: &Path) -> Result<(), Fault> {
    let config = Config::load(path)?;
    init_logging(config.log);
    on_runtime(async move {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut hang_up = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
        let node = Node::start(&config).await?;
        // One line for whoever started it: from now on both ports answer.
        println!("mimi-node {}: federation {}, clients {}", node.domain(), node.federation_address()?, node.client_address()?);
        loop {
            tokio::select! {
                // What cannot be used is in the log.
                Some(()) = hang_up.recv() => drop(node.reload_tls().await),
                _ = terminate.recv() => break,
                done = tokio::signal::ctrl_c() => {
                    done.context("cannot listen for Ctrl-C")?;
                    break;
                }
            }
        }
        node.stop().await
    })
}

/// Logs to standard error. A second call in one process changes nothing.
pub fn init_logging(level: LogLevel) {
    let level = match level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
    };
    let subscriber = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_ansi(false);
    let _ = subscriber.try_init();
}

/// The SPKI hash of the CA that issued the configured certificate: what invitations carry.
pub(super) fn tls_ca_spki_hash(config: &Config) -> Result<[u8; 32], Fault> {
    let path = &config.tls.certificate;
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let chain = crate::identity::pem::certificates_from_pem(&text)?;
    let ca = chain
        .last()
        .filter(|_| chain.len() > 1)
        .with_context(|| format!("{} has no CA after the node's certificate: append the CA that issued it", path.display()))?;
    // The key is read as well, so that an invitation is never handed out by a node that cannot serve.
    read_secret(&config.tls.key)?;
    crate::identity::tls::spki_hash(ca)
}
