//! The users of the federation: enrolled with the invitations that `setup` left, and in a group, so that people can chat at once.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mimi_node::base::{Context as _, Fault, GroupUri, UserUri};
use mimi_node::client::{Client, ClientSettings};
use mimi_node::node::config::replace_public;
use mimi_node::wire::Invitation;
use tokio::time::Instant;

use super::PeopleArguments;
use crate::conversation::REQUEST_DEADLINE;

/// What everybody calls the group.
const GROUP: &str = "lounge";

/// How long an invitation to the group may be on its way.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(60);

/// How often it is looked for.
const ARRIVAL_INTERVAL: Duration = Duration::from_millis(100);

/// A file that is there once everybody is: what people do afterwards is theirs.
const DONE: &str = "gathered";

/// Where a user's invitation waits until it is used.
pub(super) fn invitation_path(people: &Path, name: &str) -> PathBuf {
    people.join("invitations").join(name)
}

/// Where a user's client keeps its state.
pub(super) fn client_dir(people: &Path, name: &str) -> PathBuf {
    people.join(name)
}

/// Whether a user's enrolment has at least begun.
pub(super) fn is_enrolled(people: &Path, name: &str) -> bool {
    client_dir(people, name).exists()
}

pub(super) async fn run(arguments: &PeopleArguments) -> Result<(), Fault> {
    let done = arguments.dir.join(DONE);
    if done.exists() {
        return Ok(());
    }
    let settings =
        ClientSettings { resolver: vec![arguments.resolver], request_deadline: REQUEST_DEADLINE, ..ClientSettings::default() };
    let mut clients = Vec::new();
    for name in &arguments.names {
        let client = arrive(&arguments.dir, name, settings.clone()).await;
        clients.push(client.with_context(|| format!("{name} cannot be had"))?);
    }
    let gathered = gather(&clients).await;
    for client in clients {
        client.close().await;
    }
    gathered?;
    replace_public(&done, "")
}

/// A user's client; enrolled, if it is not yet.
async fn arrive(people: &Path, name: &str, settings: ClientSettings) -> Result<Client, Fault> {
    let (dir, path) = (client_dir(people, name), invitation_path(people, name));
    let invitation = match std::fs::read_to_string(&path) {
        Ok(invitation) => invitation,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Client::open(&dir, settings).await.context("its state directory cannot be opened");
        }
        Err(error) => return Err(Fault::because(format!("cannot read {}", path.display()), error)),
    };
    let invitation: Invitation = invitation.parse().with_context(|| path.display().to_string())?;
    // One that was enrolled a moment before this was interrupted can be opened.
    let client = match Client::open(&dir, settings.clone()).await {
        Ok(client) => client,
        Err(_) => Client::enrol(&dir, &invitation, "phone", settings).await.context("the invitation was of no use")?,
    };
    std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    println!("{name} is enrolled as {}", client.uri());
    Ok(client)
}

/// Puts everyone into one group, which everyone calls [`GROUP`].
async fn gather(clients: &[Client]) -> Result<(), Fault> {
    let (first, others) = clients.split_first().context("there are no people")?;
    let named = async |client: &Client| {
        let groups = client.groups().await.context("the groups cannot be listed")?;
        Ok::<_, Fault>(groups.into_iter().find(|group| group.name.as_deref() == Some(GROUP)).map(|group| group.group))
    };
    let group = match named(first).await? {
        Some(group) => group,
        None => first.create_group(Some(GROUP)).await.context("the group cannot be made")?,
    };
    first.sync().await.context("the group's maker cannot receive")?;
    for other in others {
        if named(other).await?.is_some() {
            continue;
        }
        let user = other.uri().user();
        let (_, members) = first.members(&group).await.context("the group has no members")?;
        if !members.iter().any(|member| member.user() == user) {
            let users: &[UserUri] = std::slice::from_ref(user);
            first.add_users(&group, users).await.with_context(|| format!("{user} cannot be added"))?;
        }
        join(other, &group).await?;
        println!("{user} is in the group {GROUP:?}, {group}");
    }
    Ok(())
}

async fn join(client: &Client, group: &GroupUri) -> Result<(), Fault> {
    let deadline = Instant::now() + ARRIVAL_TIMEOUT;
    while client.members(group).await.is_err() {
        if Instant::now() > deadline {
            return Err(Fault::new(format!("{} was added to {group} and did not hear of it", client.uri())));
        }
        client.sync().await.with_context(|| format!("{} cannot receive", client.uri()))?;
        tokio::time::sleep(ARRIVAL_INTERVAL).await;
    }
    client.name_group(group, Some(GROUP)).await.context("the group cannot be named")
}
