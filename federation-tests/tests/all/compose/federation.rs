//! One federation of containers, taken down whatever becomes of the test.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use mimi_node::base::crypto::sha256;
use tempfile::TempDir;
use tokio::process::Command;

use crate::docs::root;
use crate::process::{Output, PATIENCE, PROGRAM};
use crate::tools::skip;

/// How long building the image may take when nobody has built it before: a compiler run of its own.
const BUILD_PATIENCE: Duration = Duration::from_secs(3600);

/// How often it is looked whether a container has become what it is to be.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// The image, when it has been built already; `.ci/run` does.
const IMAGE_VARIABLE: &str = "MIMI_TEST_IMAGE";

/// The containers of a test, in a project and a network of their own.
pub(super) struct Federation {
    project: String,
    image: String,
    /// Of the network, as `docker` knows it.
    pub(super) network: String,
    /// The first three octets of its addresses, as text.
    pub(super) subnet: String,
    /// `bin` in it comes first in the PATH of what is run.
    dir: TempDir,
    /// Held while the containers are there: two federations at a time are too much for a small machine, and would have to agree
    /// on their networks.
    _alone: File,
}

impl Federation {
    /// A federation that is not up yet, with an image to bring it up from. `None` without the tools, which are then named.
    pub(super) async fn prepare(name: &str) -> Option<Self> {
        if let Err(why) = tools().await {
            skip("a Docker engine and Compose", why);
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let (image, is_built) = match std::env::var(IMAGE_VARIABLE) {
            Ok(image) => (image, true),
            Err(_) => ("mimi-node:test".to_owned(), false),
        };
        shims(&dir.path().join("bin"), &image, is_built).await;
        let lock = File::create(std::env::temp_dir().join("mimi-test-compose.lock")).expect("a lock file");
        let alone = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await.expect("a thread").expect("a lock");
        // The same for each run of this test in this directory, so that what a killed run has left is found.
        let checkout = &sha256(root().as_os_str().as_encoded_bytes())[..4];
        let project = format!("mimi-test-{}-{name}", checkout.iter().map(|octet| format!("{octet:02x}")).collect::<String>());
        let mut federation =
            Self { network: format!("{project}-net"), project, image, subnet: String::new(), dir, _alone: alone };
        // Any will do for taking down what was left.
        federation.subnet = "10.64.0".to_owned();
        federation.compose(&["down", "--volumes", "--remove-orphans", "--timeout", "1"]).await.ok();
        federation.subnet = free_subnet(u32::from(checkout[0])).await;
        if !is_built {
            let mut build = federation.command("cargo", &["image"]);
            build.stdout(Stdio::inherit()).stderr(Stdio::inherit());
            let built = tokio::time::timeout(BUILD_PATIENCE, build.status()).await.expect("it is built in time");
            assert!(built.expect("it runs").success(), "the image is not built");
        }
        Some(federation)
    }

    /// Brings everything up, as the README does.
    pub(super) async fn up(&self) {
        self.compose(&["up", "-d"]).await.ok();
    }

    /// `docker-compose …` for this federation.
    pub(super) async fn compose(&self, arguments: &[&str]) -> Output {
        finish(self.command("docker-compose", arguments)).await
    }

    /// A program that sees this federation, in the directory of `docker-compose.yml`.
    pub(super) fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        let path = std::env::var_os("PATH").expect("a PATH");
        let path = std::iter::once(self.dir.path().join("bin")).chain(std::env::split_paths(&path));
        command.args(arguments).current_dir(root()).env("PATH", std::env::join_paths(path).expect("a PATH"));
        command.env("COMPOSE_PROJECT_NAME", &self.project).env("MIMI_IMAGE", &self.image);
        command.env("MIMI_NETWORK", &self.network).env("MIMI_SUBNET", &self.subnet);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// The id of a service's container.
    pub(super) async fn container(&self, service: &str) -> String {
        let id = self.compose(&["ps", "-q", service]).await.ok().trim().to_owned();
        assert!(!id.is_empty() && !id.contains('\n'), "{service} has one container: {id:?}");
        id
    }

    /// Waits until a container's state is one that is `wanted`, such as `{{.State.Health.Status}}` being `healthy`.
    pub(super) async fn until(&self, container: &str, what: &str, wanted: &str) {
        let look = async {
            while docker(&["inspect", "--format", what, container]).await.ok().trim() != wanted {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        };
        if tokio::time::timeout(PATIENCE, look).await.is_err() {
            panic!("{what} of {container} never was {wanted}\n{}", self.logs().await);
        }
    }

    /// What the containers have said.
    pub(super) async fn logs(&self) -> String {
        self.compose(&["logs", "--no-color", "--tail", "80"]).await.stdout
    }
}

impl Drop for Federation {
    fn drop(&mut self) {
        let down = ["down", "--volumes", "--remove-orphans", "--timeout", "1"];
        let done = self.command("docker-compose", &down).into_std().stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !done.is_ok_and(|status| status.success()) {
            eprintln!("the containers of {} are left: the next run removes them", self.project);
        }
    }
}

/// Runs a program to its end.
pub(super) async fn finish(mut command: Command) -> Output {
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends in time").expect("it runs");
    let text = |octets: Vec<u8>| String::from_utf8_lossy(&octets).into_owned();
    Output { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// `docker …`
pub(super) async fn docker(arguments: &[&str]) -> Output {
    let mut command = Command::new("docker");
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    finish(command).await
}

async fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().await.is_ok_and(|status| status.success())
}

async fn tools() -> Result<(), &'static str> {
    if !succeeds("docker", &["info"]).await {
        return Err("`docker info` fails");
    }
    if !succeeds("docker-compose", &["version"]).await && !succeeds("docker", &["compose", "version"]).await {
        return Err("there is neither docker-compose nor docker compose");
    }
    Ok(())
}

/// Programs that stand for others: a `cargo` that builds this image and nothing else, and a `docker-compose` where there is only
/// `docker compose`.
async fn shims(bin: &Path, image: &str, is_built: bool) {
    std::fs::create_dir_all(bin).expect("a directory");
    let build = if is_built { "exit 0".to_owned() } else { format!("exec '{PROGRAM}' image --tag '{image}'") };
    write_program(&bin.join("cargo"), &format!("[ \"$*\" = image ] || exit 1\n{build}\n"));
    if !succeeds("docker-compose", &["version"]).await {
        write_program(&bin.join("docker-compose"), "exec docker compose \"$@\"\n");
    }
}

fn write_program(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, format!("#!/bin/sh\n{text}")).expect("a file");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
}

/// A /24 of 10.64.0.0/10 that neither a network of the engine nor a route of this machine overlaps.
async fn free_subnet(start: u32) -> String {
    let ids = docker(&["network", "ls", "-q"]).await.ok();
    let mut inspect = vec!["network", "inspect", "--format", "{{range .IPAM.Config}}{{.Subnet}} {{end}}"];
    inspect.extend(ids.lines());
    let networks = docker(&inspect).await.ok();
    let mut taken: BTreeSet<(u32, u32)> = networks.split_whitespace().filter_map(range_of).collect();
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    taken.extend(routes.lines().skip(1).filter_map(route_of));
    let candidates = (0..0x4000_u32).map(|number| 0x0a40_0000 + ((((start << 6) + number) % 0x4000) << 8));
    let free = candidates.into_iter().find(|first| taken.iter().all(|(from, to)| *from > first + 0xff || to < first));
    let [a, b, c, _] = Ipv4Addr::from(free.expect("a free network")).octets();
    format!("{a}.{b}.{c}")
}

/// The first and the last address of `192.0.2.0/24`; none for IPv6.
fn range_of(network: &str) -> Option<(u32, u32)> {
    let (address, prefix) = network.split_once('/')?;
    let address: Ipv4Addr = address.parse().ok()?;
    let free = u32::MAX.checked_shr(prefix.parse().ok()?).unwrap_or(0);
    Some((u32::from(address) & !free, u32::from(address) | free))
}

/// A line of /proc/net/route, whose numbers are hexadecimal in this machine's order of octets; none for the default route.
fn route_of(line: &str) -> Option<(u32, u32)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let number = |index: usize| Some(u32::from_be(u32::from_str_radix(fields.get(index)?, 16).ok()?));
    let (destination, mask) = (number(1)?, number(7)?);
    (mask != 0).then_some((destination, destination | !mask))
}

#[test]
fn networks_and_routes_are_ranges() {
    assert_eq!(range_of("10.0.1.0/24"), Some((0x0a00_0100, 0x0a00_01ff)));
    assert_eq!(range_of("0.0.0.0/0"), Some((0, u32::MAX)));
    assert_eq!(range_of("10.0.0.1/32"), Some((0x0a00_0001, 0x0a00_0001)));
    assert_eq!(range_of("fd00::/64"), None);
    let [destination, mask] = [0x0a00_0100_u32, 0xffff_ff00].map(|number| format!("{:08X}", number.to_be()));
    assert_eq!(route_of(&format!("eth0 {destination} 0 1 0 0 0 {mask} 0 0 0")), Some((0x0a00_0100, 0x0a00_01ff)));
    assert_eq!(route_of("eth0 00000000 0102000A 3 0 0 0 00000000 0 0 0"), None);
}
