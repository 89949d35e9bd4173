//! The event log: what a client did and saw, as JSON lines, for a checker that compares the logs of many clients.
//!
//! Lines about the state carry `n`, a count, and are kept in the state until the next state write, so that those lost in a
//! crash between state write and log are written when the client is opened again, and none twice. A line that a crash cut short
//! stays where it is, ended by a line feed: others may have appended since, so nothing is ever taken out of the file.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use crate::base::{Context as _, Fault};

/// The open log. Several clients may append to one file: a line is one write, which only a kill can cut short.
#[derive(Debug)]
pub(super) struct EventLog {
    file: File,
    path: PathBuf,
    client: String,
}

impl EventLog {
    /// Opens the log at `path` for `client`, ends a line that was cut short, and appends those of the state's lines `kept` that
    /// are missing.
    pub(super) fn open(path: &Path, client: &str, kept: &[String]) -> Result<Self, Fault> {
        let opened = OpenOptions::new().read(true).append(true).create(true).open(path);
        let file = opened.with_context(|| format!("could not open the event log {}", path.display()))?;
        let mut log = Self { file, path: path.to_owned(), client: client.to_owned() };
        log.end_line().with_context(|| format!("could not mend the event log {}", path.display()))?;
        if !kept.is_empty() {
            let last = log.last_count()?;
            for line in kept.iter().filter(|line| count(line).is_some_and(|n| n > last)) {
                log.append(line)?;
            }
        }
        Ok(log)
    }

    fn end_line(&mut self) -> std::io::Result<()> {
        if self.file.metadata()?.len() == 0 {
            return Ok(());
        }
        let mut last = [0];
        self.file.seek(SeekFrom::End(-1))?;
        self.file.read_exact(&mut last)?;
        if last == *b"\n" { Ok(()) } else { self.file.write_all(b"\n") }
    }

    /// The highest `n` among this client's whole lines.
    fn last_count(&self) -> Result<u64, Fault> {
        let file = File::open(&self.path).with_context(|| format!("could not read the event log {}", self.path.display()))?;
        let mut last = 0;
        for line in BufReader::new(file).split(b'\n') {
            let line = line.with_context(|| format!("could not read the event log {}", self.path.display()))?;
            let Ok(line) = serde_json::from_slice::<Value>(&line) else { continue };
            if line.get("client").and_then(Value::as_str) == Some(&self.client) {
                last = last.max(line.get("n").and_then(Value::as_u64).unwrap_or(0));
            }
        }
        Ok(last)
    }

    /// Appends one line.
    pub(super) fn append(&mut self, line: &str) -> Result<(), Fault> {
        let line = format!("{line}\n");
        self.file.write_all(line.as_bytes()).with_context(|| format!("could not write the event log {}", self.path.display()))
    }
}

fn count(line: &str) -> Option<u64> {
    serde_json::from_str::<Value>(line).ok()?.get("n")?.as_u64()
}

/// One line: the common fields, `n` for lines about the state, and `fields` (a JSON object).
pub(super) fn line(client: &str, event: &str, n: Option<u64>, fields: Value) -> String {
    let at_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let mut object = Map::new();
    object.insert("at_us".into(), u64::try_from(at_us).unwrap_or(u64::MAX).into());
    object.insert("client".into(), client.into());
    object.insert("event".into(), event.into());
    if let Some(n) = n {
        object.insert("n".into(), n.into());
    }
    if let Value::Object(fields) = fields {
        object.extend(fields);
    }
    Value::Object(object).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_lost_in_a_crash_are_logged_once_by_whom_they_belong_to() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let (alice, bob) = ("mimi://a.test/d/alice/phone", "mimi://a.test/d/bob/phone");
        let first = line(alice, "joined", Some(1), json!({"epoch": 0}));
        EventLog::open(&path, alice, &[]).expect("opens").append(&first).expect("appends");
        EventLog::open(&path, bob, &[]).expect("opens").append(&line(bob, "joined", Some(7), json!({}))).expect("appends");
        let kept = [first, line(alice, "accepted", Some(2), json!({"request": "00"}))];
        for _ in 0..2 {
            EventLog::open(&path, alice, &kept).expect("opens");
            let text = std::fs::read_to_string(&path).expect("reads");
            let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
            assert_eq!(lines.len(), 3);
            assert_eq!((&lines[2]["event"], &lines[2]["n"], &lines[2]["request"]), (&json!("accepted"), &json!(2), &json!("00")));
            assert!(lines[2]["at_us"].as_u64().is_some_and(|at| at > 1_500_000_000_000_000));
        }
    }

    #[test]
    fn a_line_that_a_kill_cut_short_is_ended_and_written_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let alice = "mimi://a.test/d/alice/phone";
        let lines = [line(alice, "joined", Some(1), json!({})), line(alice, "accepted", Some(2), json!({}))];
        std::fs::write(&path, format!("{}\n{}", lines[0], &lines[1][..20])).expect("writes");
        EventLog::open(&path, alice, &lines).expect("opens").append("last").expect("appends");
        let text = std::fs::read_to_string(&path).expect("reads");
        assert_eq!(text.lines().collect::<Vec<_>>(), [&lines[0], &lines[1][..20], &lines[1], "last"]);
    }
}
