//! The commands about a user's devices, account and outbox.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use clap::Subcommand;
use serde_json::json;

use super::pick::parse_user;
use super::show::say;
use super::{Done, Failure};
use crate::base::Domain;
use crate::client::{Client, ClientSettings, Waiting};

#[derive(Debug, Subcommand)]
pub(super) enum DeviceCommand {
    /// On the new device: begin to make it yours. Prints a line for `device add` on a device that is yours already
    Request {
        /// A name for the new device: a-z, 0-9, '-', '_' and '.'
        #[arg(value_name = "NAME")]
        device: String,
    },
    /// On a device of yours: make a new one yours, too. Prints a line for `device accept` on the new one
    Add {
        /// The whole line that `device request` printed
        line: String,
    },
    /// On the new device: become yours, and join your groups
    Accept {
        /// The whole line that `device add` printed
        line: String,
    },
    /// List your devices, as far as this one knows
    List,
    /// Revoke a device that you lost; it is removed from all groups
    Remove {
        /// The device's name
        #[arg(value_name = "NAME")]
        device: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum OutboxCommand {
    /// List them
    List,
    /// Give one up: a domain that is gone for good never answers
    Drop {
        /// The request's id, or its beginning
        request: String,
    },
}

/// `device request`: there is no client yet.
pub(super) fn request(dir: &Path, device: &str, settings: &ClientSettings, json: bool) -> Done {
    let pairing = Client::request_pairing(dir, device, settings)?;
    say(json, &json!({ "request": pairing.line, "code": pairing.code }), || {
        format!(
            "{}\nGive this line to `device add` on a device of yours. It must show the code {}. Then give the line that it prints to `device accept` here.",
            pairing.line, pairing.code
        )
    })
}

pub(super) async fn perform(client: &Client, dir: &Path, command: DeviceCommand, json: bool) -> Done {
    match command {
        DeviceCommand::Request { .. } => Err(Failure("this directory holds a client already: use another one (--dir)".into())),
        DeviceCommand::Add { line } => {
            let answer = client.answer_pairing(&line).await?;
            let object = json!({ "answer": answer.line, "code": answer.code, "client": answer.client.to_string() });
            say(json, &object, || {
                format!(
                    "{}\nThis makes {} yours. Does the new device show the code {}? Only then give this line to `device accept` there.",
                    answer.line, answer.client, answer.code
                )
            })
        }
        DeviceCommand::Accept { .. } => arrived(client, dir, json).await,
        DeviceCommand::List => {
            for device in client.devices().await? {
                let own = &device.client == client.uri();
                let object = json!({ "client": device.client.to_string(), "groups": device.groups, "this": own });
                say(json, &object, || {
                    let this = if own { ", this one" } else { "" };
                    format!("{}: in {} groups of this device{this}", device.client, device.groups)
                })?;
            }
            Ok(())
        }
        DeviceCommand::Remove { device } => {
            client.remove_device(&device).await?;
            let gone = client.uri().user().client(&device).map_err(|error| Failure(error.to_string()))?;
            say(json, &json!({ "revoked": gone.to_string() }), || {
                format!("{gone} is revoked; the hubs of your groups have it removed")
            })
        }
    }
}

/// What a device says that has just become its user's.
pub(super) async fn arrived(client: &Client, dir: &Path, json: bool) -> Done {
    let groups = client.groups().await?.len();
    let object = json!({ "client": client.uri().to_string(), "dir": dir, "groups": groups });
    say(json, &object, || format!("this is {} now, kept in {}, in {groups} groups", client.uri(), dir.display()))
}

pub(super) async fn rejoin(client: &Client, json: bool) -> Done {
    let rejoined = client.rejoin().await?;
    for group in &rejoined.joined {
        say(json, &json!({ "joined": group.to_string() }), || format!("joined {group}"))?;
    }
    for (what, error) in &rejoined.failed {
        say(json, &json!({ "failed": what, "why": error.to_string() }), || format!("not joined, {what}: {error}"))?;
    }
    if rejoined.joined.is_empty() && rejoined.failed.is_empty() {
        say(json, &json!({ "joined": null }), || "this device is in all your groups".into())?;
    }
    Ok(())
}

/// Writes the backup to a new file for its owner only.
pub(super) async fn backup(client: &Client, file: &Path, json: bool) -> Done {
    let line = client.backup().await?;
    let failed = |error: std::io::Error| Failure(format!("could not write {}: {error}", file.display()));
    let mut opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map_err(failed)?;
    opened.write_all(format!("{line}\n").as_bytes()).and_then(|()| opened.sync_all()).map_err(failed)?;
    say(json, &json!({ "file": file, "user": client.uri().user().to_string() }), || {
        format!(
            "the user key of {} is in {}: whoever has this file is you. Keep it where the device's loss does not reach it.",
            client.uri().user(),
            file.display()
        )
    })
}

/// Reads a backup. A file that others may read is refused.
pub(super) fn read_backup(file: &Path) -> Done<String> {
    let failed = |error: std::io::Error| Failure(format!("could not read {}: {error}", file.display()));
    if fs::metadata(file).map_err(failed)?.mode() & 0o077 != 0 {
        return Err(Failure(format!("{} may be read by others: chmod 600 it first", file.display())));
    }
    fs::read_to_string(file).map_err(failed)
}

/// A user's URI, or a domain.
pub(super) fn blocked_name(text: &str) -> Done<String> {
    if let Ok(domain) = text.parse::<Domain>() {
        return Ok(domain.to_string());
    }
    parse_user(text).map(|user| user.to_string()).map_err(|_| Failure(format!("{text:?} is neither a user nor a domain")))
}

pub(super) async fn outbox(client: &Client, command: OutboxCommand, json: bool) -> Done {
    match command {
        OutboxCommand::List => {
            for waiting in client.outbox().await? {
                let object = json!({
                    "request": waiting.request.to_string(), "destination": waiting.destination, "what": waiting.what,
                    "group": waiting.group, "made_at_ms": waiting.made_at_ms,
                });
                say(json, &object, || {
                    let group = waiting.group.as_deref().map(|group| format!(" of {group}")).unwrap_or_default();
                    format!("{}: {}{group}, for {}", waiting.request, waiting.what, waiting.destination)
                })?;
            }
            Ok(())
        }
        OutboxCommand::Drop { request } => {
            let all = client.outbox().await?;
            let meant: Vec<_> = all.iter().filter(|waiting| waiting.request.to_string().starts_with(&request)).collect();
            let one = only(&meant)?;
            client.drop_outgoing(one.request).await?;
            say(json, &json!({ "dropped": one.request.to_string() }), || format!("{} is given up", one.request))
        }
    }
}

fn only<'a>(meant: &[&'a Waiting]) -> Done<&'a Waiting> {
    match meant {
        [one] => Ok(one),
        [] => Err(Failure("no request begins so: `outbox list` lists them".into())),
        _ => Err(Failure("several requests begin so: give more of the id".into())),
    }
}
