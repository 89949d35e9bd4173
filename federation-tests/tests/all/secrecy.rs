//! What a node can see of a conversation: nothing of what is said.

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use federation_tests::conversation::Cast;
use federation_tests::world::World;
use mimi_node::base::{Context as _, Fault};
use mimi_node::client::Client;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha20Rng;
use tokio::sync::mpsc;

/// How long the next message may take. Far more than it needs.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(60);

/// Every file below `dir`.
fn files(dir: &Path) -> Result<Vec<PathBuf>, Fault> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry.context("cannot list")?;
        let (kind, path) = (entry.file_type().context("cannot list")?, entry.path());
        // A socket holds nothing.
        if kind.is_socket() {
            continue;
        }
        if kind.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

/// The files below `dir` that hold `marker`, and how many were looked at.
fn holders(dir: &Path, marker: &[u8]) -> Result<(Vec<PathBuf>, usize), Fault> {
    let mut holders = Vec::new();
    let all = files(dir)?;
    for path in &all {
        let octets = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        if octets.windows(marker.len()).any(|window| window == marker) {
            holders.push(path.clone());
        }
    }
    Ok((holders, all.len()))
}

/// Lets a client receive until `done`.
async fn until(client: &Client, done: impl AsyncFn() -> bool) -> Result<(), Fault> {
    let mut listener = client.listen();
    while !done().await {
        let received = tokio::time::timeout(ARRIVAL_TIMEOUT, listener.next()).await;
        received.context("nothing arrives")?.context("cannot receive")?;
    }
    Ok(())
}

// Shows: no node on a message's way, hub, sender's or reader's, has its text in any file: database, write-ahead log, node log, at any
// time of the conversation, as text or hexadecimal. Failure: one occurrence. The controls: every client's directory holds the
// text, and the group's name in the hub's database is found by the same search.
// covers R10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_node_has_what_was_said() -> Result<(), Fault> {
    let seed = 81;
    println!("seed {seed}");
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let dir = tempfile::tempdir().context("no directory")?;
    let world = World::open(dir.path(), 3).await?;
    let program = Path::new(env!("CARGO_BIN_EXE_federation-tests"));
    // Processes of their own, so that what they print to their logs is searched, too.
    let mut nodes = Vec::new();
    for index in 0..3 {
        nodes.push(world.spawn(index, program, None).await?);
    }
    let (scenes, _) = mpsc::unbounded_channel();
    let cast = Cast::assemble(&world, &scenes).await?;
    let group = cast.make_group("a conversation", &scenes).await?;
    let markers: Vec<String> = cast.clients.iter().map(|_| (0..40).map(|_| rng.random_range('a'..='z')).collect()).collect();
    for (index, client) in cast.clients.iter().enumerate() {
        // Each is encrypted for everyone, so everyone must be there.
        until(client, async || client.members(&group).await.is_ok_and(|(_, members)| members.len() == markers.len())).await?;
        client.send(&group, &format!("said by {index}: {}", markers[index])).await.context("cannot send")?;
    }
    for client in &cast.clients {
        let has_all = async || {
            let history = client.history(Some(&group)).await.unwrap_or_default();
            markers.iter().all(|marker| history.iter().any(|line| line.text.contains(marker)))
        };
        until(client, has_all).await?;
    }
    let domains = world.dir().join("domains");
    let search = |when: &str| -> Result<(), Fault> {
        for marker in &markers {
            let hex: String = marker.bytes().map(|octet| format!("{octet:02x}")).collect();
            for form in [marker.as_bytes(), hex.as_bytes()] {
                let (found, count) = holders(&domains, form)?;
                assert!(found.is_empty(), "{when}: {found:?}");
                assert!(count >= 3 * 5, "only {count} files were looked at");
            }
        }
        let (found, _) = holders(&domains, group.to_string().as_bytes())?;
        assert!(found.iter().any(|path| path.to_string_lossy().contains("node.sqlite")), "{when}: the search finds nothing");
        Ok(())
    };
    search("while the nodes run")?;
    cast.close().await;
    for marker in &markers {
        let (found, _) = holders(&world.dir().join("clients"), marker.as_bytes())?;
        for name in ["alice", "bob", "carol"] {
            assert!(found.iter().any(|path| path.starts_with(world.client_dir(name))), "{name} has not read {marker}");
        }
    }
    for node in nodes {
        node.kill().await?;
    }
    search("after the nodes were killed")?;
    Ok(())
}
