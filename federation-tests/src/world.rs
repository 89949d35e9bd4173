//! A federation on this machine: domains with their certificates, configurations and databases, each on its own loopback
//! address, and the DNS server that knows them. The nodes run in this process or as processes of their own.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use mimi_node::base::{Context as _, Domain, Fault, UnixMillis, UserUri};
use mimi_node::identity::TlsCa;
use mimi_node::node::Node;
use mimi_node::node::config::{Config, Listen, write_public, write_secret};
use mimi_node::node::init::NewNode;
use mimi_node::service::accounts::invite;
use mimi_node::storage::Storage;
use mimi_node::wire::Invitation;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::dns::{DnsServer, SrvRecord, Zones};

/// How long a node process may take until both its ports answer. A debug build on a busy machine needs a few seconds at most.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long after its delivery a frame may still be on its sender's disk: the answer may have been lost with a connection, and
/// the frame is then sent again after a back-off.
const LANES_TIMEOUT: Duration = Duration::from_secs(20);

/// One domain's place on disk and on the network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Site {
    /// The domain.
    pub domain: Domain,
    /// Where other nodes reach its node.
    pub federation: SocketAddr,
    /// Where its clients reach it.
    pub client: SocketAddr,
}

/// What a directory remembers of its world, so that it can be started again.
#[derive(Serialize, Deserialize)]
struct Plan {
    dns: SocketAddr,
    sites: Vec<Site>,
}

/// The domains, their directory and their DNS.
pub struct World {
    dir: PathBuf,
    /// The DNS server that all nodes and clients ask.
    pub dns: DnsServer,
    /// The domains, in order.
    pub sites: Vec<Site>,
    tls_ca_spki_hash: [u8; 32],
}

impl World {
    /// Opens the world in `dir`, or makes one with `domains` domains (`a.test`, `b.test`, …) when there is none. Its loopback
    /// addresses and ports were free when it was made.
    pub async fn open(dir: &Path, domains: usize) -> Result<Self, Fault> {
        let plan_path = dir.join("world.json");
        let plan = match std::fs::read(&plan_path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| format!("{} is damaged", plan_path.display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
                let plan = make_plan(domains)?;
                make_domains(dir, &plan).await?;
                // Written last: a directory without it was never a whole world.
                write_public(&plan_path, &serde_json::to_string_pretty(&plan).context("cannot write JSON")?)?;
                plan
            }
            Err(error) => return Err(Fault::because(format!("cannot read {}", plan_path.display()), error)),
        };
        let ca = load_ca(dir)?;
        let dns = DnsServer::start(plan.dns, Zones::new(["test"])).await.context("cannot start the DNS server")?;
        let world = Self { dir: dir.to_owned(), dns, sites: plan.sites, tls_ca_spki_hash: ca.spki_hash() };
        for site in &world.sites {
            world.set_federation_address(&site.domain, site.federation)?;
            world.publish(&site.domain, "_mimi-client", "clients", site.client)?;
        }
        Ok(world)
    }

    /// Points a domain's federation SRV record at `address`, such as a fault proxy's.
    pub fn set_federation_address(&self, domain: &Domain, address: SocketAddr) -> Result<(), Fault> {
        self.publish(domain, "_mimi-fed", "node", address)
    }

    fn publish(&self, domain: &Domain, service: &str, host: &str, address: SocketAddr) -> Result<(), Fault> {
        let target = format!("{host}.{domain}");
        let failed = "a name of the testbed is not valid";
        self.dns.set_a(&target, vec![address.ip()]).context(failed)?;
        let record = SrvRecord { priority: 0, weight: 0, port: address.port(), target };
        self.dns.set_srv(domain.as_str(), service, vec![record]).context(failed)
    }

    /// The directory of it all.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a client's state directory is.
    pub fn client_dir(&self, name: &str) -> PathBuf {
        self.dir.join("clients").join(name)
    }

    /// Where a client's event log is.
    pub fn log_path(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.jsonl"))
    }

    /// A domain's directory.
    pub fn site_dir(&self, index: usize) -> PathBuf {
        site_dir(&self.dir, &self.site(index).domain)
    }

    /// A domain. Panics when there are not that many, which is a fault of the test.
    pub fn site(&self, index: usize) -> &Site {
        self.sites.get(index).expect("the world has that many domains")
    }

    /// A domain's configuration.
    pub fn config(&self, index: usize) -> Result<Config, Fault> {
        Config::load(&self.site_dir(index).join("node.toml"))
    }

    /// Makes a domain's node ask another name server from its next start on: its own view of where the others are.
    pub fn set_name_server(&self, index: usize, server: SocketAddr) -> Result<(), Fault> {
        self.change_config(index, |config| config.dns.servers = vec![server])
    }

    /// Changes a domain's configuration from its node's next start on.
    pub fn change_config(&self, index: usize, change: impl FnOnce(&mut Config)) -> Result<(), Fault> {
        let path = self.site_dir(index).join("node.toml");
        let mut config = self.config(index)?;
        change(&mut config);
        std::fs::write(&path, config.to_toml()?).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Runs a domain's node in this process.
    pub async fn start(&self, index: usize) -> Result<Node, Fault> {
        Node::start(&self.config(index)?).await
    }

    /// Where a domain's node, as a process, logs.
    pub fn node_log(&self, index: usize) -> PathBuf {
        self.site_dir(index).join("node.log")
    }

    /// The last `lines` lines of each node's log, for a person who looks for what went wrong.
    pub fn log_tails(&self, lines: usize) -> String {
        let mut tails = String::new();
        for (index, site) in self.sites.iter().enumerate() {
            let text = std::fs::read_to_string(self.node_log(index)).unwrap_or_default();
            let skipped = text.lines().count().saturating_sub(lines);
            tails.push_str(&format!("--- the node of {}\n", site.domain));
            text.lines().skip(skipped).for_each(|line| tails.extend([line, "\n"]));
        }
        tails
    }

    /// A client's process: `program` with the hidden subcommand `client`, on the state directory and the log of the client
    /// `name`. The caller adds its arguments, spawns it and, if it likes, kills it.
    pub fn client_command(&self, program: &Path, name: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("client").arg("--json").arg("--dir").arg(self.client_dir(name)).arg("--log").arg(self.log_path(name));
        command.arg("--resolver").arg(self.dns.local_addr().to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Runs a domain's node as a process: `program` with the hidden subcommand `node`. `fault_point`: see
    /// `mimi_node::base::fault_points`.
    pub async fn spawn(&self, index: usize, program: &Path, fault_point: Option<&str>) -> Result<NodeProcess, Fault> {
        let environment: Vec<(&str, &str)> =
            fault_point.map(|fault_point| ("MIMI_FAULT_POINT", fault_point)).into_iter().collect();
        self.spawn_with(index, program, &environment).await
    }

    /// As [`World::spawn`], with variables of `mimi_node::base::fault_points`.
    pub async fn spawn_with(&self, index: usize, program: &Path, environment: &[(&str, &str)]) -> Result<NodeProcess, Fault> {
        let log = self.node_log(index);
        let log =
            File::options().create(true).append(true).open(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(program);
        command.args(["node", "serve", "--config"]).arg(self.site_dir(index).join("node.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::from(log)).kill_on_drop(true);
        command.envs(environment.iter().copied());
        let mut child = command.spawn().context("cannot start a node process")?;
        let output = BufReader::new(child.stdout.take().context("a node process has no output")?).lines();
        let mut process = NodeProcess { child, output };
        let ready = tokio::time::timeout(START_TIMEOUT, process.output.next_line()).await;
        match ready {
            Ok(Ok(Some(_))) => Ok(process),
            _ => Err(Fault::new(format!("the node of {} did not start: see its node.log", self.site(index).domain))),
        }
    }

    /// The domains for which frames wait in a domain's database, read beside its node. Those that were only just delivered are
    /// waited for.
    pub async fn undelivered(&self, index: usize) -> Result<Vec<Domain>, Fault> {
        let storage = Storage::open_beside(&self.config(index)?.data).await?;
        let deadline = tokio::time::Instant::now() + LANES_TIMEOUT;
        let domains = loop {
            let domains = storage.domains_with_frames().await?;
            if domains.is_empty() || tokio::time::Instant::now() > deadline {
                break domains;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        storage.close().await;
        Ok(domains)
    }

    /// Invites a user of a domain, beside its node.
    pub async fn invite(&self, index: usize, name: &str) -> Result<Invitation, Fault> {
        let user = UserUri::new(&self.site(index).domain, name).context("not a user's name")?;
        let storage = Storage::open_beside(&self.config(index)?.data).await?;
        let invitation = invite(&storage, &user, self.tls_ca_spki_hash).await?;
        storage.close().await;
        Ok(invitation)
    }
}

/// A node that runs as a process of its own.
pub struct NodeProcess {
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
}

impl NodeProcess {
    /// Ends it at once (SIGKILL) and waits until it is gone.
    pub async fn kill(mut self) -> Result<(), Fault> {
        self.child.kill().await.context("cannot kill a node process")
    }

    /// The process id; `None` when it has ended.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until it ends by itself.
    pub async fn wait(&mut self) -> Result<std::process::ExitStatus, Fault> {
        self.child.wait().await.context("cannot wait for a node process")
    }
}

fn site_dir(dir: &Path, domain: &Domain) -> PathBuf {
    dir.join("domains").join(domain.as_str())
}

fn make_plan(domains: usize) -> Result<Plan, Fault> {
    if !(1..=26).contains(&domains) {
        return Err(Fault::new(format!("{domains} domains are not possible: 1 to 26 are")));
    }
    // A network of its own within loopback, so that two worlds at once do not meet.
    let network: [u8; 2] = [rand::random_range(16..=250), rand::random()];
    let address = |host: u8| IpAddr::V4(Ipv4Addr::new(127, network[0], network[1], host));
    let mut sites = Vec::new();
    for (letter, host) in (b'a'..=b'z').zip(2..).take(domains) {
        let [federation, client] = free_ports(address(host))?;
        let domain = format!("{}.test", char::from(letter)).parse().context("a testbed domain is valid")?;
        sites.push(Site { domain, federation, client });
    }
    let [dns] = free_ports(address(1))?;
    Ok(Plan { dns, sites })
}

/// UDP ports of `address` that are free now, all different.
fn free_ports<const N: usize>(address: IpAddr) -> Result<[SocketAddr; N], Fault> {
    let failed = "cannot find a free port";
    // Held together until all are known: one given back could be given out again.
    let sockets: Vec<UdpSocket> = (0..N).map(|_| UdpSocket::bind((address, 0))).collect::<Result<_, _>>().context(failed)?;
    let ports: Vec<SocketAddr> = sockets.iter().map(UdpSocket::local_addr).collect::<Result<_, _>>().context(failed)?;
    ports.try_into().ok().context(failed)
}

async fn make_domains(dir: &Path, plan: &Plan) -> Result<(), Fault> {
    let now = UnixMillis::now();
    let ca = TlsCa::create("testbed TLS CA", now)?;
    for sub in ["ca", "domains", "clients", "logs"] {
        let sub = dir.join(sub);
        std::fs::create_dir_all(&sub).with_context(|| format!("cannot make {}", sub.display()))?;
    }
    write_public(&dir.join("ca/ca.pem"), &ca.certificate_pem())?;
    write_secret(&dir.join("ca/ca.key"), &ca.key_pem())?;
    for site in &plan.sites {
        let node = NewNode {
            domain: &site.domain,
            directory: &site_dir(dir, &site.domain),
            listen: Listen { federation: site.federation, client: site.client },
            dns: vec![plan.dns],
            ca: &ca,
        };
        node.set_up().await?;
    }
    Ok(())
}

fn load_ca(dir: &Path) -> Result<TlsCa, Fault> {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).with_context(|| format!("cannot read {name} of the testbed"));
    TlsCa::load(&read("ca/ca.pem")?, &read("ca/ca.key")?)
}
