//! What README.md tells people to type beside the federation, on a terminal.

use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use super::federation::{Federation, finish};
use crate::docs::{Block, Kind, documents};
use crate::process::PATIENCE;

/// What stands in README.md for the network and its addresses; a test has others.
const NETWORK: &str = "mimi-federation";
const SUBNET: &str = "10.117.43";

/// What the prompt of `chat` says once it reads.
const GREETING: &str = "each line is a message";

/// What a terminal sends when Ctrl-D is pressed.
const CONTROL_D: &str = "\u{4}";

// Shows: a newcomer who types what README.md says gets what it says: a federation, a conversation between two domains by hand, a
// new user, a look at peers, a node that is stopped and one that is cut off, each of which catches up.
// Fails if: a command fails or does not end; a line typed in one chat does not appear in the other; what was said while a node was
// away is not read afterwards.
pub(super) async fn what_it_says_of_separate_hosts_is_so() {
    let blocks = documents().into_iter().find(|(name, _)| name == "README.md").expect("it is there").1;
    let blocks: Vec<Block> = blocks.into_iter().filter(|block| matches!(block.kind, Kind::Compose | Kind::Chat)).collect();
    assert!(blocks.iter().filter(|block| block.kind == Kind::Chat).count() == 2 && blocks.len() >= 6, "{blocks:?}");
    let Some(federation) = Federation::prepare("readme").await else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let mut blocks = blocks.iter().peekable();
    while let Some(block) = blocks.next() {
        match block.kind {
            Kind::Chat => {
                let mut terminals = vec![Terminal::start(&federation, block, dir.path())];
                while let Some(block) = blocks.next_if(|block| block.kind == Kind::Chat) {
                    terminals.push(Terminal::start(&federation, block, dir.path()));
                }
                chat(terminals).await;
            }
            _ => run(&federation, block, dir.path()).await,
        }
    }
}

/// A command that runs a block on a terminal of its own, as a person would: `docker-compose exec` wants one.
fn on_terminal(federation: &Federation, block: &Block, dir: &Path) -> tokio::process::Command {
    let text = block.text.replace(NETWORK, &federation.network).replace(SUBNET, &federation.subnet);
    let path = dir.join(format!("line-{}", block.line));
    std::fs::write(&path, text).expect("a file");
    federation.command("script", &["-qec", &format!("sh -eu '{}'", path.display()), "/dev/null"])
}

async fn run(federation: &Federation, block: &Block, dir: &Path) {
    let output = finish(on_terminal(federation, block, dir)).await;
    let said = output.stdout;
    eprintln!("README.md:{}:\n{said}", block.line);
    if !output.status.success() {
        panic!("README.md:{}: {}\n{said}\n{}", block.line, output.status, federation.logs().await);
    }
    // What alice says to somebody who is away stands in the block twice: typed, and read by the other one.
    for (_, rest) in block.text.match_indices(" send lounge \"") {
        let text = rest.trim_start_matches(" send lounge \"").split('"').next().expect("the text");
        assert!(said.contains(&format!(": {text}")), "README.md:{}: {text:?} was not read\n{said}", block.line);
    }
}

/// Types a line in each terminal, which all others must show, and ends them.
async fn chat(mut terminals: Vec<Terminal>) {
    for terminal in &mut terminals {
        terminal.line_with(GREETING).await;
    }
    for index in 0..terminals.len() {
        let line = format!("hello, this is terminal {index}");
        terminals[index].type_text(&format!("{line}\n")).await;
        for (other, terminal) in terminals.iter_mut().enumerate() {
            if other != index {
                // Not what was typed, which a terminal shows as well.
                terminal.line_with(&format!("/phone: {line}")).await;
            }
        }
    }
    for mut terminal in terminals {
        terminal.type_text(CONTROL_D).await;
        let ended = tokio::time::timeout(PATIENCE, terminal.child.wait()).await.expect("Ctrl-D ends it");
        assert!(ended.expect("it ends").success());
    }
}

/// A chat.
struct Terminal {
    child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Terminal {
    fn start(federation: &Federation, block: &Block, dir: &Path) -> Self {
        let mut command = on_terminal(federation, block, dir);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let (input, output) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
        Self { child, input, lines: BufReader::new(output).lines() }
    }

    async fn line_with(&mut self, wanted: &str) {
        let found = async {
            while let Some(line) = self.lines.next_line().await.expect("text") {
                if line.contains(wanted) {
                    return;
                }
            }
            panic!("it ended without showing {wanted:?}")
        };
        tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("it never showed {wanted:?}"));
    }

    async fn type_text(&mut self, text: &str) {
        self.input.write_all(text.as_bytes()).await.expect("it reads");
        self.input.flush().await.expect("it reads");
    }
}
