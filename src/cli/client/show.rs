//! What `mimi-client` prints: a line for people, or an object for programs.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use serde_json::{Value, json};

use super::pick::id;
use super::{Done, Failure};
use crate::base::GroupUri;
use crate::client::{Event, GroupStatus, GroupSummary, HistoryLine};

/// Prints `object`, or the text for people.
pub(super) fn say(json: bool, object: &Value, text: impl FnOnce() -> String) -> Done {
    let line = if json { object.to_string() } else { printable(&text()) };
    match writeln!(io::stdout(), "{line}") {
        Ok(()) => Ok(()),
        // Whoever read this has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure(format!("could not print: {error}"))),
    }
}

/// `text` without characters that a terminal would act upon: messages come from others.
pub(super) fn printable(text: &str) -> String {
    // Beside control characters: separators that some take for the end of a line, and what reorders a line.
    let acts = |c: char| {
        c.is_control() && c != '\n' && c != '\t'
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if acts(c) { '\u{fffd}' } else { c }).collect()
}

/// `text` with all lines but the first indented: what begins at the left margin is this program's, not a message's.
pub(super) fn indented(text: &str) -> String {
    text.replace('\n', "\n    ")
}

pub(super) fn say_epoch(json: bool, group: &GroupUri, epoch: u64) -> Done {
    say(json, &json!({ "group": group.to_string(), "epoch": epoch }), || format!("{group} is in epoch {epoch}"))
}

pub(super) fn say_event(json: bool, event: &Event) -> Done {
    say(json, &event_object(event), || indented(&event_line(event)))
}

fn event_object(event: &Event) -> Value {
    let names = |clients: &[crate::base::ClientUri]| clients.iter().map(ToString::to_string).collect::<Vec<_>>();
    match event {
        Event::Joined { group, epoch } => json!({ "event": "joined", "group": group.to_string(), "epoch": epoch }),
        Event::Left { group, epoch } => json!({ "event": "left", "group": group.to_string(), "epoch": epoch }),
        Event::Deleted { group } => json!({ "event": "deleted", "group": group.to_string() }),
        Event::Resynced { group, epoch } => json!({ "event": "resynced", "group": group.to_string(), "epoch": epoch }),
        Event::Message { group, epoch, sequence, sender, text, at_ms } => json!({
            "event": "message", "group": group.to_string(), "epoch": epoch, "sequence": sequence,
            "sender": sender.to_string(), "text": text, "at_ms": at_ms,
        }),
        Event::EpochChanged { group, epoch, by, added, removed } => json!({
            "event": "epoch", "group": group.to_string(), "epoch": epoch, "by": by.to_string(),
            "added": names(added), "removed": names(removed),
        }),
        Event::Proposed { group, epoch } => json!({ "event": "proposed", "group": group.to_string(), "epoch": epoch }),
        Event::MessagesLost { group } => json!({ "event": "messages_lost", "group": group.to_string() }),
        Event::Unprocessable { group, sequence, why } => {
            json!({ "event": "unprocessable", "group": group, "sequence": sequence, "why": why })
        }
    }
}

fn event_line(event: &Event) -> String {
    match event {
        Event::Joined { group, epoch } => format!("joined {group} in epoch {epoch}"),
        Event::Left { group, epoch } => format!("no longer in {group} since epoch {epoch}"),
        Event::Deleted { group } => format!("{group} was deleted"),
        Event::Resynced { group, epoch } => format!("back in {group} since epoch {epoch}; what was sent meanwhile is lost here"),
        Event::Message { group, sender, text, .. } => format!("[{}] {sender}: {text}", short(group)),
        Event::EpochChanged { group, epoch, by, added, removed } => {
            let mut line = format!("[{}] epoch {epoch} by {by}", short(group));
            for client in added {
                let _ = write!(line, ", added {client}");
            }
            for client in removed {
                let _ = write!(line, ", removed {client}");
            }
            line
        }
        Event::Proposed { group, .. } => format!("[{}] a proposal waits to be committed", short(group)),
        Event::MessagesLost { group } => format!("[{}] messages were lost on the way", short(group)),
        Event::Unprocessable { group, sequence, why } => format!("entry {sequence} of {group} could not be used: {why}"),
    }
}

/// The first characters of a group's id, enough to tell a few groups apart.
pub(super) fn short(group: &GroupUri) -> String {
    id(group).chars().take(8).collect()
}

fn status(group: &GroupSummary) -> &'static str {
    match group.status {
        GroupStatus::Creating => "not confirmed yet",
        GroupStatus::Member => "member",
        GroupStatus::Stuck => "stuck",
        GroupStatus::Leaving => "leaving",
        GroupStatus::Left => "left",
        GroupStatus::Deleted => "deleted",
    }
}

pub(super) fn group_object(group: &GroupSummary) -> Value {
    json!({
        "group": group.group.to_string(), "name": group.name, "status": status(group), "epoch": group.epoch,
        "members": group.members,
    })
}

pub(super) fn group_line(group: &GroupSummary) -> String {
    let name = group.name.as_deref().map(|name| format!(" {name:?}")).unwrap_or_default();
    let epoch = group.epoch.map(|epoch| format!(", epoch {epoch}")).unwrap_or_default();
    format!("{}{name}: {}{epoch}, {} clients", group.group, status(group), group.members)
}

pub(super) fn history_line(line: &HistoryLine) -> String {
    let group = line.group.parse::<GroupUri>().map_or_else(|_| line.group.clone(), |group| short(&group));
    format!("[{group}] {}: {}", line.sender, line.text)
}
