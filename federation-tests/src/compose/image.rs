//! `cargo image`: builds this program as one static binary, and from it an image that contains nothing else.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use mimi_node::base::{Context as _, Fault};

/// Links every library in; and random numbers come from the system call, as there is no /dev in the image to be sure of.
const RUSTFLAGS: &str = "-C target-feature=+crt-static --cfg getrandom_backend=\"linux_getrandom\"";

/// The programs that the binary is, by the name that it is called by.
const NAMES: [&str; 2] = ["mimi-node", "mimi-client"];

/// Where volumes are mounted, see `docker-compose.yml`.
const VOLUMES: [&str; 6] = ["data", "setup/ca", "setup/people", "setup/a.test", "setup/b.test", "setup/c.test"];

/// `image`: build the container image.
#[derive(Clone, Debug, clap::Args)]
pub struct ImageArguments {
    /// The image's name.
    #[arg(long, default_value = "mimi-node")]
    tag: String,
}

/// Builds it.
pub fn run(arguments: &ImageArguments) -> ExitCode {
    match build(&arguments.tag) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("image: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn build(tag: &str) -> Result<(), Fault> {
    let kit = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = kit.parent().context("the kit is a member of the workspace")?;
    let target_dir = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    // Of its own: what cargo builds with other flags and another profile shares nothing with it.
    let target_dir = workspace.join(target_dir).join("image");
    let binary = build_binary(workspace, &target_dir)?;
    let context = target_dir.join("context");
    lay_out(&binary, &context).with_context(|| format!("cannot lay out {}", context.display()))?;
    let mut docker = Command::new("docker");
    docker.args(["build", "--tag", tag, "--file"]).arg(kit.join("image/Dockerfile")).arg(&context);
    demand(docker.status(), "docker build")?;
    println!("The image {tag} is built. Next: docker-compose up -d");
    Ok(())
}

/// Builds the static binary and returns its path.
fn build_binary(workspace: &Path, target_dir: &Path) -> Result<PathBuf, Fault> {
    let host = host()?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace).args(["build", "--profile", "image", "--package", "federation-tests"]);
    // With a target named, even if it is the host: else the flags would hold for procedural macros, which cannot be static.
    cargo.args(["--bin", "federation-tests", "--target", &host, "--target-dir"]).arg(target_dir);
    // Of the two variables the encoded one would win.
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", RUSTFLAGS).env("CARGO_INCREMENTAL", "0");
    demand(cargo.status(), "cargo build")?;
    Ok(target_dir.join(host).join("image").join("federation-tests"))
}

/// The target that programs of this machine are built for.
fn host() -> Result<String, Fault> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().context("cannot run rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc does not say what it builds for")?;
    if !host.contains("-linux-") {
        return Err(Fault::new(format!("the image needs a binary for Linux, and this machine builds for {host}")));
    }
    Ok(host.to_owned())
}

/// What the Dockerfile copies: `bin` and `volumes`.
fn lay_out(binary: &Path, context: &Path) -> std::io::Result<()> {
    if context.exists() {
        std::fs::remove_dir_all(context)?;
    }
    let bin = context.join("bin");
    std::fs::create_dir_all(&bin)?;
    std::fs::copy(binary, bin.join("federation-tests"))?;
    for name in NAMES {
        symlink("federation-tests", bin.join(name))?;
    }
    VOLUMES.iter().try_for_each(|volume| std::fs::create_dir_all(context.join("volumes").join(volume)))
}

fn demand(status: std::io::Result<std::process::ExitStatus>, what: &str) -> Result<(), Fault> {
    let status = status.with_context(|| format!("cannot run {what}"))?;
    if status.success() { Ok(()) } else { Err(Fault::new(format!("{what} failed: {status}"))) }
}
