//! `mimi-client`: see `mimi_node::cli::client`.

fn main() -> std::process::ExitCode {
    mimi_node::cli::client::main(std::env::args_os())
}
