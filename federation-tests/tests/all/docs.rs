//! The documentation does what it says: what it tells people to type is typed here.
//!
//! The info string of every fenced block says what it is: `run` and `run-as-root` are executed here, `run-compose` in
//! [`crate::compose`], `illustration` is not. The two commands of the block `run set-up` are this very test suite and the testbed; that `.ci/run` runs them is all that is checked.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::process::{PATIENCE, PROGRAM};
use crate::tools::skip;

const SET_UP: [&str; 2] = ["cargo testbed", "cargo test --workspace"];

/// What a block's info string makes of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Run,
    RunAsRoot,
    SetUp,
    /// Beside the federation of `docker-compose.yml`.
    Compose,
    /// The same, and typed into: successive ones run at once.
    Chat,
    Illustration,
}

#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) line: usize,
    pub(crate) kind: Kind,
    pub(crate) text: String,
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// The fenced blocks of a document; an error names the line.
fn blocks(text: &str) -> Result<Vec<Block>, String> {
    let mut found: Vec<Block> = Vec::new();
    let mut open = false;
    for (number, line) in text.lines().enumerate() {
        let line_number = number + 1;
        if let Some(info) = line.trim_start().strip_prefix("```") {
            open = !open;
            if !open {
                continue;
            }
            let words: Vec<&str> = info.split_whitespace().collect();
            let kind = match words[..] {
                [_, "run"] => Kind::Run,
                [_, "run-as-root"] => Kind::RunAsRoot,
                ["sh", "run", "set-up"] => Kind::SetUp,
                [_, "run-compose"] => Kind::Compose,
                [_, "run-compose", "chat"] => Kind::Chat,
                [_, "illustration"] => Kind::Illustration,
                _ => return Err(format!("line {line_number}: ```{info} says neither run nor illustration")),
            };
            if kind != Kind::Illustration && words[0] != "sh" {
                return Err(format!("line {line_number}: only sh can be run"));
            }
            found.push(Block { line: line_number, kind, text: String::new() });
        } else if open && let Some(block) = found.last_mut() {
            let _ = writeln!(block.text, "{line}");
        }
    }
    if open { Err("a block has no end".to_owned()) } else { Ok(found) }
}

/// README.md, docs/ and whatever else is written for people, by path within the repository.
pub(crate) fn documents() -> Vec<(String, Vec<Block>)> {
    let mut paths = Vec::new();
    for directory in ["", "docs", "docs/decisions", "certs"] {
        for entry in std::fs::read_dir(root().join(directory)).expect("a readable directory") {
            let path = entry.expect("a directory entry").path();
            if path.extension().is_some_and(|extension| extension == "md") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(root()).expect("it was found there").display().to_string();
            let text = std::fs::read_to_string(&path).expect("a readable document");
            let blocks = blocks(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
            (name, blocks)
        })
        .collect()
}

/// A directory with a `cargo` that knows the three aliases and nothing else.
fn shim(directory: &Path) {
    let script = format!(
        "#!/bin/sh\ncase \"$1\" in\n  testbed|client|node) exec '{PROGRAM}' \"$@\" ;;\n  \
         *) echo \"cargo $1 is no alias of this repository\" >&2; exit 1 ;;\nesac\n"
    );
    std::fs::create_dir_all(directory).expect("a directory");
    let cargo = directory.join("cargo");
    std::fs::write(&cargo, script).expect("a file");
    std::fs::set_permissions(&cargo, std::fs::Permissions::from_mode(0o755)).expect("chmod");
}

async fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().await.expect("id");
    id.stdout.trim_ascii() == b"0"
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_documents_say_to_run_runs() {
    let (mut ran, root_user) = (0, is_root().await);
    for (name, blocks) in documents() {
        // The blocks of a document follow each other in one directory, as a reader would run them.
        let dir = tempfile::tempdir().expect("a directory");
        let bin = dir.path().join("bin");
        shim(&bin);
        let path =
            std::env::join_paths(std::iter::once(bin).chain(std::env::split_paths(&std::env::var_os("PATH").expect("a PATH"))))
                .expect("a PATH");
        let work = dir.path().join("work");
        std::fs::create_dir(&work).expect("a directory");
        for block in blocks {
            match block.kind {
                Kind::Run => {}
                Kind::RunAsRoot if root_user => {}
                Kind::RunAsRoot => {
                    skip("root", &format!("{name}:{}", block.line));
                    continue;
                }
                Kind::Compose | Kind::Chat => {
                    assert_eq!(name, "README.md", "line {}: only README.md's blocks beside containers are run", block.line);
                    continue;
                }
                Kind::SetUp | Kind::Illustration => continue,
            }
            let mut shell = Command::new("sh");
            shell.args(["-eu", "-c", &block.text]).current_dir(&work).env("PATH", &path).env("HOME", dir.path());
            shell.stdin(Stdio::null()).kill_on_drop(true);
            let output = tokio::time::timeout(PATIENCE, shell.output()).await;
            let output = output.unwrap_or_else(|_| panic!("{name}:{} does not end", block.line)).expect("a shell");
            let said = [output.stdout, output.stderr].concat();
            assert!(output.status.success(), "{name}:{}: {}\n{}", block.line, output.status, String::from_utf8_lossy(&said));
            ran += 1;
        }
    }
    assert!(ran >= 5, "{ran} blocks were run");
}

#[test]
fn two_commands_set_everything_up_and_ci_runs_them() {
    let set_up: Vec<(String, String)> = documents()
        .into_iter()
        .flat_map(|(name, blocks)| {
            blocks.into_iter().filter(|block| block.kind == Kind::SetUp).map(move |block| (name.clone(), block.text))
        })
        .collect();
    assert_eq!(set_up, [("README.md".to_owned(), format!("{}\n{}\n", SET_UP[0], SET_UP[1]))]);

    // CI reads them out of README.md itself, so that it cannot run others.
    let ci = std::fs::read_to_string(root().join(".ci/run")).expect("a script");
    for (function, line) in [("readme_testbed", "2p"), ("readme_test", "3p")] {
        let body = ci.split_once(&format!("{function}() {{")).expect("a function").1.split_once("\n}").expect("its end").0;
        assert!(body.contains("run set-up$") && body.contains(line), "{function}: {body}");
        assert!(ci.lines().any(|called| called.starts_with("phase ") && called.ends_with(function)), "{function} is called");
    }
    let mode = std::fs::metadata(root().join(".ci/run")).expect("a script").permissions().mode();
    assert_eq!(mode & 0o111, 0o111, ".ci/run is executable");
}

/// Links between documents lead somewhere.
#[test]
fn links_within_the_repository_lead_to_files_and_headings() {
    let text_of = |path: &Path| std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut seen = 0;
    for (name, _) in documents() {
        let document = root().join(&name);
        for (_, rest) in text_of(&document).match_indices("](").map(|(at, found)| (at, at + found.len())) {
            let text = text_of(&document);
            let target = text[rest..].split(')').next().unwrap_or_default();
            if target.contains("://") {
                continue;
            }
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = if path.is_empty() { document.clone() } else { document.parent().expect("a directory").join(path) };
            assert!(path.exists(), "{name}: there is no {target}");
            if !heading.is_empty() {
                let there = text_of(&path).lines().filter(|line| line.starts_with('#')).any(|line| anchor(line) == heading);
                assert!(there, "{name}: there is no heading {target}");
            }
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen} links");
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_')).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn a_block_without_a_mark_is_found() {
    assert!(blocks("```sh\nls\n```\n").is_err());
    assert!(blocks("```sh runs\nls\n```\n").is_err());
    assert!(blocks("```text run\nls\n```\n").is_err());
    assert!(blocks("```sh run\nls\n").is_err());
    let found = blocks("a\n```sh run\nls\n```\n```text illustration\nb\n```\n").expect("two blocks");
    assert_eq!(
        found.iter().map(|block| (block.line, &block.kind)).collect::<Vec<_>>(),
        [(2, &Kind::Run), (5, &Kind::Illustration)]
    );
    assert_eq!(found[0].text, "ls\n");
    assert_eq!(anchor("## Deviations from the draft"), "deviations-from-the-draft");
}
