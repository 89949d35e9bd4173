//! The testbed's program. Its hidden subcommands are the node and the client, so that tests run them as real processes without
//! building anything else.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use federation_tests::compose::image::{self, ImageArguments};
use federation_tests::compose::{self, ComposeCommand, ConversationArguments};
use federation_tests::fuzzing::seeds;
use federation_tests::testbed::{self, TestbedArguments};

/// Testbed of mimi-node: domains on loopback that talk to each other.
#[derive(Parser)]
#[command(name = "federation-tests", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start domains, hold a conversation across them, stay up to be joined.
    Testbed(TestbedArguments),
    /// Build the container image of `docker-compose.yml`.
    Image(ImageArguments),
    /// Hold a conversation between users who are there, and judge it.
    Conversation(ConversationArguments),
    /// What the containers of `docker-compose.yml` run.
    #[command(subcommand, hide = true)]
    Compose(ComposeCommand),
    /// What `mimi-node` does.
    #[command(hide = true, disable_help_flag = true)]
    Node(Forwarded),
    /// Write the seeds of the fuzzers' corpus.
    #[command(hide = true)]
    Seeds(SeedsArguments),
    /// What `mimi-client` does.
    #[command(hide = true, disable_help_flag = true)]
    Client(Forwarded),
}

#[derive(clap::Args)]
struct SeedsArguments {
    /// A directory with the databases of nodes that have run, such as `cargo testbed --once --data DIR` leaves.
    #[arg(long)]
    from: PathBuf,
    /// The corpus: `fuzz/corpus`.
    #[arg(long)]
    into: PathBuf,
}

#[derive(clap::Args)]
struct Forwarded {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

fn main() -> ExitCode {
    // In the image, the binary is called by the name of the program that it is to be.
    let called = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    match called.file_name().and_then(OsStr::to_str) {
        Some("mimi-node") => return mimi_node::cli::node::main(std::env::args_os()),
        Some("mimi-client") => return mimi_node::cli::client::main(std::env::args_os()),
        _ => {}
    }
    let forward = |name: &str, forwarded: Forwarded| std::iter::once(OsString::from(name)).chain(forwarded.arguments);
    match Arguments::parse().command {
        Command::Testbed(arguments) => testbed::run(&arguments),
        Command::Image(arguments) => image::run(&arguments),
        Command::Conversation(arguments) => compose::converse(&arguments),
        Command::Compose(command) => compose::run(&command),
        Command::Seeds(SeedsArguments { from, into }) => write_seeds(&from, &into),
        Command::Node(forwarded) => mimi_node::cli::node::main(forward("mimi-node", forwarded)),
        Command::Client(forwarded) => mimi_node::cli::client::main(forward("mimi-client", forwarded)),
    }
}

fn write_seeds(from: &Path, into: &Path) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let written = runtime.map_err(|error| error.to_string()).and_then(|runtime| {
        let written = runtime.block_on(seeds::write(from, into));
        written.map_err(|fault| fault.to_string())
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("seeds: {sentence}");
            ExitCode::FAILURE
        }
    }
}
