//! `history.jsonl`: the messages a client has read and sent, for people. One JSON object a line, appended, never changed.
//!
//! The newest lines are also in the state until they are surely on disk here, so that a crash between the two files loses and
//! doubles nothing.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::base::{Context as _, Fault, limits};

/// The file's name in the state directory.
const FILE: &str = "history.jsonl";

/// One message of the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryLine {
    /// 1, 2, 3, … without gaps.
    pub line: u64,
    /// The sequence of its queue entry; `None` for one's own.
    pub sequence: Option<u64>,
    /// When the own QS took it, or the hub accepted one's own, in milliseconds since 1970.
    pub at_ms: u64,
    /// The group's URI.
    pub group: String,
    /// The client that sent it.
    pub sender: String,
    /// What it said.
    pub text: String,
}

/// The open file.
#[derive(Debug)]
pub(super) struct History {
    file: File,
    path: PathBuf,
}

impl History {
    /// Opens the history in `dir`, cuts off a line that a crash left unfinished, and appends those of `kept` that are missing.
    pub(super) fn open(dir: &Path, kept: &[HistoryLine]) -> Result<Self, Fault> {
        let path = dir.join(FILE);
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("could not open {}", path.display()))?;
        let last = last_line(&mut file).with_context(|| format!("could not read {}", path.display()))?;
        let mut history = Self { file, path };
        history.append(kept.iter().filter(|line| line.line > last))?;
        Ok(history)
    }

    /// Appends `lines` with one write.
    pub(super) fn append<'a>(&mut self, lines: impl Iterator<Item = &'a HistoryLine>) -> Result<(), Fault> {
        let mut octets = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut octets, line).context("could not write a message as JSON")?;
            octets.push(b'\n');
        }
        if octets.is_empty() {
            return Ok(());
        }
        self.file.write_all(&octets).with_context(|| format!("could not write {}", self.path.display()))
    }

    /// Makes sure that what was appended survives a crash of the machine.
    pub(super) fn sync(&self) -> Result<(), Fault> {
        self.file.sync_data().with_context(|| format!("could not sync {}", self.path.display()))
    }
}

/// The number of the last whole line, 0 when there is none; what follows it is cut off.
fn last_line(file: &mut File) -> std::io::Result<u64> {
    let length = file.metadata()?.len();
    let start = length.saturating_sub(limits::CLIENT_HISTORY_TAIL_BYTES_MAX);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let whole = tail.iter().rposition(|octet| *octet == b'\n').map_or(0, |at| at + 1);
    if whole < tail.len() {
        file.set_len(start + whole as u64)?;
    }
    let lines = tail.get(..whole.saturating_sub(1)).unwrap_or_default();
    let last = lines.rsplit(|octet| *octet == b'\n').next().unwrap_or_default();
    Ok(serde_json::from_slice::<HistoryLine>(last).map_or(0, |line| line.line))
}

/// The whole history in `dir`, oldest first, only of `group` if one is given. Lines that are no messages are passed over.
pub fn read_history(dir: &Path, group: Option<&str>) -> Result<Vec<HistoryLine>, Fault> {
    let path = dir.join(FILE);
    let file = File::open(&path).with_context(|| format!("could not open {}", path.display()))?;
    let mut lines = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        let line = line.with_context(|| format!("could not read {}", path.display()))?;
        if let Ok(line) = serde_json::from_slice::<HistoryLine>(&line)
            && group.is_none_or(|group| group == line.group)
        {
            lines.push(line);
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(line: u64) -> HistoryLine {
        let (group, sender) = ("mimi://a.test/g/00".to_owned(), "mimi://a.test/d/alice/phone".to_owned());
        HistoryLine { line, sequence: Some(line + 10), at_ms: 1, group, sender, text: format!("text {line}") }
    }

    #[test]
    fn lines_lost_in_a_crash_come_back_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut history = History::open(dir.path(), &[]).expect("opens");
        history.append([line(1), line(2)].iter()).expect("appends");
        drop(history);
        // The crash came in the middle of writing line 3.
        let half = &serde_json::to_vec(&line(3)).expect("JSON")[..20];
        OpenOptions::new().append(true).open(dir.path().join(FILE)).expect("opens").write_all(half).expect("writes");
        for _ in 0..2 {
            History::open(dir.path(), &[line(2), line(3), line(4)]).expect("opens");
            let all = read_history(dir.path(), None).expect("reads");
            assert_eq!(all, [line(1), line(2), line(3), line(4)]);
        }
        assert!(read_history(dir.path(), Some("mimi://a.test/g/01")).expect("reads").is_empty());
    }
}
