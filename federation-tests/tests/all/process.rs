//! The programs as real processes, as people run them.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use federation_tests::dns::{DnsServer, SrvRecord, Zones};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// The binary with the subcommands `testbed`, `node` and `client`.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_federation-tests");

/// Far longer than anything here takes, also in a debug build on a busy machine: who waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// What a process that has ended said.
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// Its standard output, if it ended well.
    pub(crate) fn ok(self) -> String {
        assert!(self.status.success(), "{}: {}{}", self.status, self.stdout, self.stderr);
        self.stdout
    }

    /// Its lines of standard output as JSON, if it ended well.
    pub(crate) fn json(self) -> Vec<Value> {
        self.ok().lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
    }

    /// The one plain sentence that it failed with.
    pub(crate) fn sentence(self) -> String {
        let Self { status, stdout, stderr } = self;
        assert_eq!(status.code(), Some(1), "{stdout}{stderr}");
        let (program, sentence) = stderr.trim_end().split_once(": ").expect("the program's name and a sentence");
        assert!(["mimi-node", "mimi-client", "testbed"].contains(&program), "{stderr}");
        assert!(!sentence.contains('\n') && !sentence.ends_with('.'), "not one plain sentence: {stderr}");
        for internal in ["Error", "Err(", "{ ", "panicked", "::", "Os "] {
            assert!(!sentence.contains(internal), "{internal:?} is not for people: {stderr}");
        }
        sentence.to_owned()
    }
}

fn command<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs the program to its end.
pub(crate) async fn run<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    let output = tokio::time::timeout(PATIENCE, command(arguments).output()).await.expect("it ends in time").expect("it runs");
    Output {
        status: output.status,
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}

/// A process that goes on.
pub(crate) struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Running {
    /// Starts the program; its standard error goes to the test's.
    pub(crate) fn start<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Self {
        let mut child = command(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { stdin: child.stdin.take(), child, stdout }
    }

    /// The next line of its standard output that contains `wanted`.
    pub(crate) async fn line_with(&mut self, wanted: &str) -> String {
        let found = async {
            while let Some(line) = self.stdout.next_line().await.expect("text") {
                if line.contains(wanted) {
                    return line;
                }
            }
            panic!("it ended without saying {wanted:?}")
        };
        tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("it never said {wanted:?}"))
    }

    /// Types a line.
    pub(crate) async fn type_line(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("it is open");
        stdin.write_all(format!("{line}\n").as_bytes()).await.expect("it reads");
        stdin.flush().await.expect("it reads");
    }

    /// Sends a signal, such as `TERM`.
    pub(crate) async fn signal(&self, signal: &str) {
        let id = self.child.id().expect("it has not ended");
        let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {id}")]).status().await.expect("a shell");
        assert!(sent.success());
    }

    /// Closes its standard input and waits for its end; returns what it said since.
    pub(crate) async fn end(mut self) -> (ExitStatus, String) {
        drop(self.stdin.take());
        let ended = async {
            let mut rest = String::new();
            while let Some(line) = self.stdout.next_line().await.expect("text") {
                rest.push_str(&line);
                rest.push('\n');
            }
            (self.child.wait().await.expect("it ends"), rest)
        };
        tokio::time::timeout(PATIENCE, ended).await.expect("it ends in time")
    }
}

/// A name server of the test.
pub(crate) async fn name_server() -> DnsServer {
    DnsServer::start("127.0.0.1:0".parse().expect("an address"), Zones::new(["test"])).await.expect("a name server")
}

/// A node that `node init` made, in a directory of its own.
pub(crate) struct NodeDirectory {
    /// The directory of `node.toml`.
    pub(crate) path: PathBuf,
    domain: String,
}

impl NodeDirectory {
    /// Sets a node up. Its ports are free ones of each start.
    pub(crate) async fn init(path: &Path, domain: &str, dns: &DnsServer) -> Self {
        let dir = path.to_str().expect("a UTF-8 path");
        let resolver = dns.local_addr().to_string();
        let ports = ["--federation", "127.0.0.1:0", "--client", "127.0.0.1:0"];
        run([&["node", "init", "--domain", domain, "--dir", dir, "--dns", &resolver][..], &ports].concat()).await.ok();
        Self { path: path.to_owned(), domain: domain.to_owned() }
    }

    /// Its configuration file.
    pub(crate) fn config(&self) -> String {
        self.path.join("node.toml").to_str().expect("a UTF-8 path").to_owned()
    }

    /// Runs the node until it is ready, and tells `dns` where it is.
    pub(crate) async fn serve(&self, dns: &DnsServer) -> Running {
        let mut node = Running::start(["node", "serve", "--config", &self.config()]);
        let ready = node.line_with(&format!("mimi-node {}: federation ", self.domain)).await;
        let address = |before: &str| {
            let text = ready.split_once(before).expect("an address").1.split(',').next().expect("a word");
            text.parse::<std::net::SocketAddr>().expect("an address")
        };
        for (service, address) in [("_mimi-fed", address("federation ")), ("_mimi-client", address("clients "))] {
            let target = format!("node.{}", self.domain);
            dns.set_a(&target, vec![address.ip()]).expect("a name");
            let record = SrvRecord { priority: 0, weight: 0, port: address.port(), target };
            dns.set_srv(&self.domain, service, vec![record]).expect("a name");
        }
        node
    }

    /// Invites a user beside the running node.
    pub(crate) async fn invite(&self, name: &str) -> String {
        run(["node", "users", "invite", name, "--config", &self.config()]).await.ok().trim_end().to_owned()
    }
}

/// A client's directory.
pub(crate) struct ClientDirectory(pub(crate) PathBuf);

impl ClientDirectory {
    /// `client --dir … <arguments> --json`
    pub(crate) fn arguments<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        let dir = self.0.to_str().expect("a UTF-8 path");
        [&["client", "--json", "--dir", dir], arguments].concat()
    }

    /// Runs one command.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Output {
        run(self.arguments(arguments)).await
    }

    /// Enrols it.
    pub(crate) async fn enrol(&self, invitation: &str, dns: &DnsServer) -> Vec<Value> {
        let resolver = dns.local_addr().to_string();
        self.run(&["enrol", invitation, "--device", "phone", "--resolver", &resolver]).await.json()
    }
}
