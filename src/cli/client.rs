//! `mimi-client`: one person's client of their domain's node, on the command line.

mod devices;
mod pick;
mod show;
mod talk;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use serde_json::json;

use self::devices::{DeviceCommand, OutboxCommand};
use self::pick::{find_group, parse_clients, parse_users};
use self::show::{group_line, group_object, history_line, indented, say, say_epoch, say_event};
use self::talk::{chat, listen};
use crate::base::GroupUri;
use crate::client::{Client, ClientError, ClientSettings, Event};
use crate::wire::error::UnreachableReason;
use crate::wire::{ErrorCode, Invitation, Rejection};

/// Sends and reads messages of one client of a MIMI domain.
#[derive(Debug, Parser)]
#[command(name = "mimi-client", version, propagate_version = true)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Options {
    /// The client's state directory [default: $MIMI_CLIENT_DIR, else ~/.mimi-client]
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Name server to ask instead of the system's; repeatable, remembered when given to enrol
    #[arg(long, global = true, value_name = "ADDR:PORT")]
    resolver: Vec<SocketAddr>,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    json: bool,
    /// How long to try before giving up
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 60)]
    deadline: u64,
    /// Append what the client does and sees to this file, as JSON lines
    #[arg(long, global = true, value_name = "FILE")]
    log: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Become a client of the domain that invited you
    Enrol {
        /// The whole line that `mimi-node users invite` printed
        invitation: String,
        /// A name for this device: a-z, 0-9, '-', '_' and '.'
        #[arg(long, value_name = "NAME")]
        device: String,
    },
    /// Add, list and remove your devices
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Write your user key to a file, with which `recover` can bring you back
    Backup {
        /// The new file; whoever has it is you
        file: PathBuf,
    },
    /// Come back with a backup of your user key, after a state directory was lost
    Recover {
        /// The file that `backup` wrote
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// The device's name; that of the lost one to take its place
        #[arg(long, value_name = "NAME")]
        device: String,
    },
    /// Show who this client is and where it is in its queue
    Whoami,
    /// Create a group with your devices as its only members
    Create {
        /// A name for the group, which only this client knows
        #[arg(long)]
        name: Option<String>,
    },
    /// Give a group a name, which only this client knows
    Name {
        /// The group's URI, its name so far, or the beginning of its id
        group: String,
        /// The new name
        name: String,
    },
    /// Add all clients of users to a group
    Add {
        /// The group's URI, its local name, or the beginning of its id
        group: String,
        /// mimi://a.test/u/alice or alice@a.test
        #[arg(required = true, value_name = "USER")]
        users: Vec<String>,
    },
    /// Remove all clients of users from a group
    Remove {
        /// The group's URI, its local name, or the beginning of its id
        group: String,
        /// mimi://a.test/u/alice or alice@a.test
        #[arg(required = true, value_name = "USER")]
        users: Vec<String>,
    },
    /// Add those devices of members to a group that are not in it
    AddDevices {
        /// The group's URI, its local name, or the beginning of its id
        group: String,
        /// mimi://a.test/u/alice or alice@a.test
        #[arg(required = true, value_name = "USER")]
        users: Vec<String>,
    },
    /// Remove single devices from a group whose users stay
    RemoveDevices {
        /// The group's URI, its local name, or the beginning of its id
        group: String,
        /// mimi://a.test/d/alice/phone or alice/phone@a.test
        #[arg(required = true, value_name = "CLIENT")]
        clients: Vec<String>,
    },
    /// Leave a group, with all your devices
    Leave {
        /// The group's URI, its local name, or the beginning of its id
        group: String,
    },
    /// Remove everybody from a group and delete it
    Delete {
        /// The group's URI, its local name, or the beginning of its id
        group: String,
    },
    /// List invitations that wait
    Invitations {
        /// Whether invitations wait for `join` or `decline` from now on
        #[arg(long, value_name = "yes|no", value_parser = clap::builder::BoolishValueParser::new())]
        hold: Option<bool>,
    },
    /// Decline an invitation that waits
    Decline {
        /// The group's URI
        group: GroupUri,
    },
    /// Join a group: one that you are invited to, an open one, or one that another device of yours is in
    Join {
        /// The group's URI
        group: GroupUri,
    },
    /// Join all groups of yours that this device is not in
    Rejoin,
    /// Let users join a group by themselves
    Open {
        /// The group's URI, its local name, or the beginning of its id
        group: String,
    },
    /// Let users into a group only when a member adds them
    Close {
        /// The group's URI, its local name, or the beginning of its id
        group: String,
    },
    /// Enter a group anew that this device cannot follow; it does so by itself, too
    Resync {
        /// The group's URI, its local name, or the beginning of its id
        group: String,
    },
    /// Take nothing more from a user or a domain: no invitations, no claims
    Block {
        /// A user (alice@a.test) or a domain
        name: String,
    },
    /// Take a block back
    Unblock {
        /// A user (alice@a.test) or a domain
        name: String,
    },
    /// List the domains whose groups deliver to you
    Hubs,
    /// Give hubs and invitations new addresses of this device's queue; the old ones stop working
    RenewQueue,
    /// Requests that are not answered yet
    #[command(subcommand)]
    Outbox(OutboxCommand),
    /// Renew this client's keys in a group
    Update {
        /// The group's URI, its local name, or the beginning of its id
        group: String,
        /// Only propose them: the next Commit of another member takes them in
        #[arg(long)]
        propose: bool,
    },
    /// Send a message
    Send {
        /// The group's URI, its local name, or the beginning of its id
        group: String,
        /// What to say
        text: String,
    },
    /// Take in what has arrived, and finish what was interrupted
    Sync,
    /// Print what arrives, as it arrives
    Listen {
        /// Stop after this long
        #[arg(long = "for", value_name = "SECONDS")]
        seconds: Option<u64>,
        /// Stop after this many messages
        #[arg(long, value_name = "N")]
        count: Option<u64>,
    },
    /// Send lines of standard input to a group, and print what arrives
    Chat {
        /// The group's URI, its local name, or the beginning of its id
        group: String,
    },
    /// List this client's groups
    Groups,
    /// List the members of a group
    Members {
        /// The group's URI, its local name, or the beginning of its id
        group: String,
    },
    /// Show the messages read and sent so far
    History {
        /// The group's URI, its local name, or the beginning of its id; without it, all groups
        group: Option<String>,
    },
}

/// Runs the command that `args` (the program's name first) say. Prints one sentence on standard error when it fails.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked { ExitCode::SUCCESS } else { ExitCode::from(2) };
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("could not start: {error}")),
    };
    match runtime.block_on(run(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(why)) => fail(&why),
    }
}

fn fail(why: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "mimi-client: {why}");
    ExitCode::FAILURE
}

/// Why a command failed, as one sentence.
struct Failure(String);

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self(match &error {
            ClientError::Refused(rejection) => match meaning(rejection) {
                Some(meaning) => format!("refused: {meaning} ({})", rejection.code.name()),
                None => error.to_string(),
            },
            _ => error.to_string(),
        })
    }
}

/// What people are told of a refusal that they can do something about; of the others the name has to do.
fn meaning(rejection: &Rejection) -> Option<&'static str> {
    if let Some(detail) = rejection.as_unreachable() {
        return Some(match detail.why {
            UnreachableReason::NoSuchDomain => "there is no such domain",
            UnreachableReason::DoesNotFederate => "that domain publishes no node to federate with",
            UnreachableReason::DnsFailure => "that domain could not be looked up in DNS",
            UnreachableReason::Refused => "no node of that domain can be connected to",
            UnreachableReason::TimedOut => "the node of that domain did not answer in time",
            UnreachableReason::Certificate => "one of the two nodes does not accept the other's certificate",
            UnreachableReason::Denied => "that domain and ours are not to talk to each other",
            UnreachableReason::BackingOff => "the node of that domain could not be reached a moment ago",
            UnreachableReason::Held => "our node's operator has it send nothing to that domain for now",
            UnreachableReason::ForbiddenAddress => "that domain is at an address that our node does not connect to",
            UnreachableReason::RefusesFederation => "that domain says that it does not federate",
            UnreachableReason::OverLimits => "our node has asked too much of that domain and is refused for a while",
        });
    }
    Some(match rejection.code {
        ErrorCode::InvalidToken => {
            "the invitation is used, has expired, or is not of this domain: ask for a new one and enrol in a new directory (--dir)"
        }
        ErrorCode::UnknownQueue => "this device has no queue any more: it was removed, or its user deleted",
        ErrorCode::UnknownUser => "there is no such user, or none of its clients can be added now",
        ErrorCode::UnknownGroup => "the hub has no such group",
        ErrorCode::GroupDeleted => "the group was deleted",
        ErrorCode::InvalidCredential => "this client's or its user's key is revoked or has expired",
        ErrorCode::RateLimited => "that was too often: try again later",
        ErrorCode::NotAuthorized => "that is not this client's to do",
        ErrorCode::ReplayedOrStale => "the clocks of client and node are too far apart",
        ErrorCode::TooLarge => "that is over a limit",
        ErrorCode::Internal => "the node failed; its operator's log says why",
        ErrorCode::Unsupported => "the node does not offer that yet",
        ErrorCode::ShuttingDown => "the node is stopping",
        _ => return None,
    })
}

type Done<T = ()> = Result<T, Failure>;

async fn run(arguments: Arguments) -> Done {
    let Arguments { options, command } = arguments;
    let dir = match &options.dir {
        Some(dir) => dir.clone(),
        None => default_dir()?,
    };
    let settings = ClientSettings {
        resolver: options.resolver.clone(),
        request_deadline: Duration::from_secs(options.deadline),
        log: options.log.clone(),
        ..ClientSettings::default()
    };
    let json = options.json;
    let client = match &command {
        Command::Enrol { invitation, device } => {
            let invitation: Invitation = invitation.parse().map_err(|error| Failure(format!("{error}")))?;
            Client::enrol(&dir, &invitation, device, settings).await?
        }
        Command::Device(DeviceCommand::Request { device }) => return devices::request(&dir, device, &settings, json),
        Command::Device(DeviceCommand::Accept { line }) => Client::accept_pairing(&dir, line, settings).await?,
        Command::Recover { from, device } => {
            let backup = devices::read_backup(from)?;
            Client::recover(&dir, &backup, device, settings).await?
        }
        _ => Client::open(&dir, settings).await?,
    };
    let creates = matches!(command, Command::Create { .. } | Command::Join { .. });
    let deletes = matches!(command, Command::Delete { .. });
    let endless = matches!(command, Command::Listen { .. } | Command::Chat { .. });
    let done = tokio::select! {
        done = perform(&client, &dir, command, json) => done,
        _ = tokio::signal::ctrl_c() => {
            // That is how listening ends.
            if endless { Ok(()) } else { Err(Failure("interrupted: what was begun is finished by `sync`".into())) }
        }
    };
    // Taken out of the queue along the way, so nobody will be told again. What the command itself did it has said already.
    let own = |event: &Event| match event {
        Event::EpochChanged { by, .. } => by == client.uri(),
        Event::Joined { .. } => creates,
        Event::Deleted { .. } => deletes,
        _ => false,
    };
    let told = client.take_events().iter().filter(|event| !own(event)).try_for_each(|event| say_event(json, event));
    client.close().await;
    done.and(told)
}

fn default_dir() -> Done<PathBuf> {
    if let Some(dir) = std::env::var_os("MIMI_CLIENT_DIR").filter(|dir| !dir.is_empty()) {
        return Ok(dir.into());
    }
    let home = std::env::home_dir().ok_or_else(|| Failure("there is no home directory: give --dir".into()))?;
    Ok(home.join(".mimi-client"))
}

async fn perform(client: &Client, dir: &Path, command: Command, json: bool) -> Done {
    match command {
        Command::Enrol { .. } => {
            let uri = client.uri().to_string();
            say(json, &json!({ "client": uri, "dir": dir }), || {
                format!(
                    "enrolled as {uri}, kept in {}\nA lost device without another one is lost for good, unless there is a backup: mimi-client backup FILE",
                    dir.display()
                )
            })
        }
        Command::Device(command) => devices::perform(client, dir, command, json).await,
        Command::Backup { file } => devices::backup(client, &file, json).await,
        Command::Recover { .. } => devices::arrived(client, dir, json).await,
        Command::Rejoin => devices::rejoin(client, json).await,
        Command::Outbox(command) => devices::outbox(client, command, json).await,
        Command::AddDevices { group, users } => {
            let group = find_group(client, json, &group).await?;
            let epoch = client.add_clients(&group, &parse_users(&users)?).await?;
            say_epoch(json, &group, epoch)
        }
        Command::RemoveDevices { group, clients } => {
            let group = find_group(client, json, &group).await?;
            let epoch = client.remove_clients(&group, &parse_clients(&clients)?).await?;
            say_epoch(json, &group, epoch)
        }
        Command::Leave { group } => {
            let group = find_group(client, json, &group).await?;
            client.leave(&group).await?;
            say(json, &json!({ "group": group.to_string() }), || {
                format!("leaving {group}: it is done when another member's client has committed it")
            })
        }
        Command::Delete { group } => {
            let group = find_group(client, json, &group).await?;
            client.delete_group(&group).await?;
            say(json, &json!({ "group": group.to_string() }), || format!("{group} is deleted"))
        }
        Command::Invitations { hold } => {
            if let Some(hold) = hold {
                client.hold_invitations(hold).await?;
            }
            for event in client.sync().await? {
                say_event(json, &event)?;
            }
            for group in client.invitations().await? {
                say(json, &json!({ "invitation": group.to_string() }), || format!("invited to {group}"))?;
            }
            Ok(())
        }
        Command::Decline { group } => {
            client.decline(&group).await?;
            say(json, &json!({ "declined": group.to_string() }), || format!("declined {group}"))
        }
        Command::Join { group } => {
            let epoch = client.join(&group).await?;
            say_epoch(json, &group, epoch)
        }
        Command::Open { group } => {
            let group = find_group(client, json, &group).await?;
            let epoch = client.set_open(&group, true).await?;
            say_epoch(json, &group, epoch)
        }
        Command::Close { group } => {
            let group = find_group(client, json, &group).await?;
            let epoch = client.set_open(&group, false).await?;
            say_epoch(json, &group, epoch)
        }
        Command::Resync { group } => {
            let group = find_group(client, json, &group).await?;
            let epoch = client.resync(&group).await?;
            say_epoch(json, &group, epoch)
        }
        Command::Block { name } => {
            let name = devices::blocked_name(&name)?;
            client.block(&name).await?;
            say(json, &json!({ "blocked": name }), || format!("{name} is blocked"))
        }
        Command::Unblock { name } => {
            let name = devices::blocked_name(&name)?;
            client.unblock(&name).await?;
            say(json, &json!({ "unblocked": name }), || format!("{name} is no longer blocked"))
        }
        Command::Hubs => {
            for hub in client.hubs().await? {
                say(json, &json!({ "hub": hub.to_string() }), || hub.to_string())?;
            }
            Ok(())
        }
        Command::RenewQueue => {
            let generation = client.renew_queue().await?;
            say(json, &json!({ "generation": generation }), || {
                format!(
                    "the queue's addresses are of generation {generation} now; older ones end when every hub has one of these"
                )
            })
        }
        Command::Whoami => {
            let (uri, queue) = (client.uri(), client.queue_state().await?);
            let object = json!({
                "client": uri.to_string(), "user": uri.user().to_string(), "queue": queue.queue.to_string(),
                "next": queue.next, "acked": queue.acked, "waiting": queue.waiting, "outgoing": queue.outgoing,
            });
            say(json, &object, || {
                format!("{uri}\nqueue {}: next entry {}, {} unanswered requests", queue.queue, queue.next, queue.outgoing)
            })
        }
        Command::Create { name } => {
            let group = client.create_group(name.as_deref()).await?;
            say(json, &json!({ "group": group.to_string(), "name": name }), || group.to_string())
        }
        Command::Name { group, name } => {
            let group = find_group(client, json, &group).await?;
            client.name_group(&group, Some(&name)).await?;
            say(json, &json!({ "group": group.to_string(), "name": name }), || format!("{group} is called {name:?} here"))
        }
        Command::Add { group, users } => {
            let group = find_group(client, json, &group).await?;
            let epoch = client.add_users(&group, &parse_users(&users)?).await?;
            say_epoch(json, &group, epoch)
        }
        Command::Remove { group, users } => {
            let group = find_group(client, json, &group).await?;
            let epoch = client.remove_users(&group, &parse_users(&users)?).await?;
            say_epoch(json, &group, epoch)
        }
        Command::Update { group, propose: true } => {
            let group = find_group(client, json, &group).await?;
            client.propose_update(&group).await?;
            say(json, &json!({ "group": group.to_string(), "proposed": true }), || format!("proposed to {group}"))
        }
        Command::Update { group, propose: false } => {
            let group = find_group(client, json, &group).await?;
            let epoch = client.update(&group).await?;
            say_epoch(json, &group, epoch)
        }
        Command::Send { group, text } => {
            let group = find_group(client, json, &group).await?;
            let sent = client.send(&group, &text).await?;
            let object = json!({
                "group": group.to_string(), "request": sent.request.to_string(), "epoch": sent.epoch,
                "accepted_at_ms": sent.accepted_at_ms,
            });
            say(json, &object, || format!("sent in epoch {}", sent.epoch))
        }
        Command::Sync => {
            for event in client.sync().await? {
                say_event(json, &event)?;
            }
            Ok(())
        }
        Command::Listen { seconds, count } => listen(client, json, seconds, count).await,
        Command::Chat { group } => {
            let group = find_group(client, json, &group).await?;
            chat(client, json, &group).await
        }
        Command::Groups => {
            for group in client.groups().await? {
                say(json, &group_object(&group), || group_line(&group))?;
            }
            Ok(())
        }
        Command::Members { group } => {
            let group = find_group(client, json, &group).await?;
            let (epoch, members) = client.members(&group).await?;
            let members: Vec<String> = members.iter().map(ToString::to_string).collect();
            let object = json!({ "group": group.to_string(), "epoch": epoch, "members": members });
            say(json, &object, || format!("epoch {epoch}\n{}", members.join("\n")))
        }
        Command::History { group } => {
            let group = match group {
                Some(group) => Some(find_group(client, json, &group).await?),
                None => None,
            };
            for line in client.history(group.as_ref()).await? {
                let object = serde_json::to_value(&line).map_err(|error| Failure(error.to_string()))?;
                say(json, &object, || indented(&history_line(&line)))?;
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::pick::{NotPicked, id, parse_client, parse_user, pick_group};
    use super::show::printable;
    use super::*;
    use crate::client::{GroupStatus, GroupSummary};

    fn group(id: &str, name: Option<&str>) -> GroupSummary {
        let group = format!("mimi://a.test/g/{id}").parse().expect("a group");
        GroupSummary { group, name: name.map(str::to_owned), status: GroupStatus::Member, epoch: Some(1), members: 2 }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
        let parsed = Arguments::try_parse_from(["mimi-client", "send", "us", "hello", "--json", "--resolver", "127.0.0.1:53"]);
        let parsed = parsed.expect("parses");
        assert!(parsed.options.json && parsed.options.resolver.len() == 1);
        assert!(Arguments::try_parse_from(["mimi-client", "add", "us"]).is_err(), "whom?");
    }

    #[test]
    fn groups_and_users_have_short_names() {
        let groups = [group("00ff", Some("us")), group("00aa", None), group("bb", None)];
        let pick = |text: &str| pick_group(&groups, text).map(|group| id(&group));
        assert_eq!(pick("us"), Ok("00ff".into()));
        assert_eq!(pick("00a"), Ok("00aa".into()));
        assert_eq!(pick("mimi://b.test/g/cc"), Ok("cc".into()));
        assert_eq!(pick("00"), Err(NotPicked::Ambiguous));
        assert_eq!((pick(""), pick("zz")), (Err(NotPicked::Unknown), Err(NotPicked::Unknown)));
        assert!(NotPicked::Unknown.said_of("zz").0.contains("\"zz\""));
        let user = |text: &str| parse_user(text).map(|user| user.to_string()).map_err(|Failure(why)| why);
        assert_eq!(user("alice@a.test"), Ok("mimi://a.test/u/alice".into()));
        assert_eq!(user("mimi://a.test/u/alice"), Ok("mimi://a.test/u/alice".into()));
        let client = |text: &str| parse_client(text).map(|client| client.to_string()).map_err(|Failure(why)| why);
        assert_eq!(client("alice/phone@a.test"), Ok("mimi://a.test/d/alice/phone".into()));
        assert!(client("alice@a.test").is_err() && client("mimi://a.test/u/alice").is_err());
        assert!(user("alice").is_err() && user("Alice@a.test").is_err() && user("@a.test").is_err());
    }

    #[test]
    fn a_refusal_says_what_it_means_and_keeps_its_name() {
        let said = |rejection: Rejection| Failure::from(ClientError::Refused(rejection)).0;
        assert!(said(ErrorCode::InvalidToken.into()).ends_with("(invalid_token)"));
        let detail = Rejection::unreachable(UnreachableReason::DoesNotFederate, crate::wire::error::Sent::NotSent);
        assert_eq!(said(detail), "refused: that domain publishes no node to federate with (unreachable_domain)");
        assert_eq!(said(ErrorCode::InvalidCommit.into()), "refused: invalid_commit");
    }

    #[test]
    fn what_others_wrote_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\nc"), "a\u{fffd}[2Jb\nc");
        assert_eq!(printable("a\u{2028}b\u{202e}c\rd"), "a\u{fffd}b\u{fffd}c\u{fffd}d");
        // Nor look like another one's message.
        assert_eq!(indented("[00] alice: hi\n[00] bob: no"), "[00] alice: hi\n    [00] bob: no");
    }
}
