//! `mimi-node`: see `mimi_node::cli::node`.

use std::process::ExitCode;

fn main() -> ExitCode {
    mimi_node::cli::node::main(std::env::args_os())
}
