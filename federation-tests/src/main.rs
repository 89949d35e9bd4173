//! The testbed's program. Its hidden subcommands are the node and the client, so that tests run them as real processes without
//! building anything else.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
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
    /// What `mimi-node` does.
    #[command(hide = true, disable_help_flag = true)]
    Node(Forwarded),
    /// What `mimi-client` does.
    #[command(hide = true, disable_help_flag = true)]
    Client(Forwarded),
}

#[derive(clap::Args)]
struct Forwarded {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

fn main() -> ExitCode {
    let forward = |name: &str, forwarded: Forwarded| std::iter::once(OsString::from(name)).chain(forwarded.arguments);
    match Arguments::parse().command {
        Command::Testbed(arguments) => testbed::run(&arguments),
        Command::Node(forwarded) => mimi_node::cli::node::main(forward("mimi-node", forwarded)),
        Command::Client(forwarded) => mimi_node::cli::client::main(forward("mimi-client", forwarded)),
    }
}
