//! A world with its nodes running in this process, and the means to see that a refused request changed nothing.

use mimi_node::base::{Context as _, Domain, Fault};
use mimi_node::identity::TlsCa;
use mimi_node::node::Node;
use mimi_node::wire::error::ErrorCode;
use mimi_node::wire::{ClientRequest, Rejection};
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use tempfile::TempDir;

use crate::people::Person;
use crate::tables::{Contents, Tables};
use crate::world::World;

/// Domains with running nodes, in a directory that goes with it.
pub struct Stage {
    /// The domains.
    pub world: World,
    /// Whatever a test chooses at random, it takes from here.
    pub rng: ChaCha20Rng,
    nodes: Vec<Option<Node>>,
    tables: Vec<Tables>,
    _dir: TempDir,
}

impl Stage {
    /// Starts the nodes of `domains` domains. What the test chooses depends on `seed`; keys of the nodes and ports do not.
    pub async fn open(domains: usize, seed: u64) -> Result<Self, Fault> {
        println!("seed {seed}");
        let dir = tempfile::tempdir().context("no directory")?;
        let world = World::open(dir.path(), domains).await?;
        let (mut nodes, mut tables) = (Vec::new(), Vec::new());
        for index in 0..domains {
            nodes.push(Some(world.start(index).await?));
            tables.push(Tables::open(&world.config(index)?.data).await?);
        }
        Ok(Self { world, rng: ChaCha20Rng::seed_from_u64(seed), nodes, tables, _dir: dir })
    }

    /// Enrols a user.
    pub async fn person(&mut self, index: usize, name: &str) -> Result<Person, Fault> {
        Person::enrol(&self.world, index, name, &mut self.rng).await
    }

    /// A domain.
    pub fn domain(&self, index: usize) -> Domain {
        self.world.site(index).domain.clone()
    }

    /// The CA that issued the nodes' TLS certificates.
    pub fn ca(&self) -> Result<TlsCa, Fault> {
        let read = |name: &str| std::fs::read_to_string(self.world.dir().join(name)).context("the CA cannot be read");
        TlsCa::load(&read("ca/ca.pem")?, &read("ca/ca.key")?)
    }

    /// Stops a node and starts it again.
    pub async fn restart(&mut self, index: usize) -> Result<(), Fault> {
        let place = self.nodes.get_mut(index).context("no such node")?;
        if let Some(node) = place.take() {
            node.stop().await?;
        }
        *place = Some(self.world.start(index).await?);
        Ok(())
    }

    /// Stops all nodes, so that everything is on disk and nothing changes any more.
    pub async fn stop(&mut self) -> Result<(), Fault> {
        for node in self.nodes.iter_mut().filter_map(Option::take) {
            node.stop().await?;
        }
        Ok(())
    }

    /// What is in all databases, once nothing is on its way between them.
    pub async fn contents(&mut self) -> Result<Vec<Contents>, Fault> {
        for tables in &mut self.tables {
            tables.quiet().await?;
        }
        let mut contents = Vec::new();
        for tables in &mut self.tables {
            contents.push(tables.contents().await?);
        }
        Ok(contents)
    }

    /// Fails when anything is other than `before`.
    pub async fn expect_unchanged(&mut self, before: &[Contents], what: &str) -> Result<(), Fault> {
        let now = self.contents().await?;
        for (index, (now, before)) in now.iter().zip(before).enumerate() {
            let changes = now.changes_since(before);
            if !changes.is_empty() {
                return Err(Fault::new(format!("{what}: {} has changed: {}", self.domain(index), changes.join(", "))));
            }
        }
        Ok(())
    }

    /// Sends a request that must be refused with exactly this code, and change nothing anywhere.
    pub async fn refuses(
        &mut self,
        what: &str,
        by: &Person,
        request: &ClientRequest,
        code: ErrorCode,
    ) -> Result<Rejection, Fault> {
        let before = self.contents().await?;
        let answer = by.ask(request).await.with_context(|| what.to_owned())?;
        let Err(rejection) = answer else { return Err(Fault::new(format!("{what}: was accepted"))) };
        if rejection.code != code {
            return Err(Fault::new(format!("{what}: was refused with {rejection}, want {}", code.name())));
        }
        self.expect_unchanged(&before, what).await?;
        Ok(rejection)
    }
}
