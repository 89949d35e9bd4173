//! Which group and which user a person means.

use super::show::say_event;
use super::{Done, Failure};
use crate::base::{ClientUri, GroupUri, UserUri};
use crate::client::{Client, GroupSummary};

/// The group that `text` means: a URI, a local name, or the beginning of exactly one id. One that is not known yet may be one
/// that this client was just added to: what has arrived is taken in first.
pub(super) async fn find_group(client: &Client, json: bool, text: &str) -> Done<GroupUri> {
    let groups = client.groups().await?;
    match pick_group(&groups, text) {
        Ok(found) if groups.iter().any(|group| group.group == found) => return Ok(found),
        Err(NotPicked::Ambiguous) => return Err(NotPicked::Ambiguous.said_of(text)),
        Ok(_) | Err(NotPicked::Unknown) => {}
    }
    for event in client.sync().await? {
        say_event(json, &event)?;
    }
    pick_group(&client.groups().await?, text).map_err(|why| why.said_of(text))
}

/// Why a text does not mean a group.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotPicked {
    Unknown,
    Ambiguous,
}

impl NotPicked {
    pub(super) fn said_of(&self, text: &str) -> Failure {
        Failure(match self {
            Self::Unknown => format!("no group is called {text:?}, and no group's id begins so: `groups` lists those there are"),
            Self::Ambiguous => format!("{text:?} means several groups: give more of the id, or the whole URI"),
        })
    }
}

pub(super) fn pick_group(groups: &[GroupSummary], text: &str) -> Result<GroupUri, NotPicked> {
    if let Ok(group) = text.parse::<GroupUri>() {
        return Ok(group);
    }
    let named: Vec<_> = groups.iter().filter(|group| group.name.as_deref() == Some(text)).collect();
    let found = if named.is_empty() && !text.is_empty() {
        groups.iter().filter(|group| id(&group.group).starts_with(text)).collect()
    } else {
        named
    };
    match found[..] {
        [group] => Ok(group.group.clone()),
        [] => Err(NotPicked::Unknown),
        _ => Err(NotPicked::Ambiguous),
    }
}

pub(super) fn id(group: &GroupUri) -> String {
    group.to_string().rsplit('/').next().unwrap_or_default().to_owned()
}

pub(super) fn parse_users(users: &[String]) -> Done<Vec<UserUri>> {
    users.iter().map(|user| parse_user(user)).collect()
}

pub(super) fn parse_user(text: &str) -> Done<UserUri> {
    if let Ok(user) = text.parse() {
        return Ok(user);
    }
    let short = text.split_once('@').and_then(|(name, domain)| UserUri::new(&domain.parse().ok()?, name).ok());
    short.ok_or_else(|| Failure(format!("{text:?} is no user: want mimi://a.test/u/alice or alice@a.test")))
}

pub(super) fn parse_clients(clients: &[String]) -> Done<Vec<ClientUri>> {
    clients.iter().map(|client| parse_client(client)).collect()
}

pub(super) fn parse_client(text: &str) -> Done<ClientUri> {
    if let Ok(client) = text.parse() {
        return Ok(client);
    }
    let short = text.split_once('@').and_then(|(name, domain)| {
        let (user, device) = name.split_once('/')?;
        UserUri::new(&domain.parse().ok()?, user).ok()?.client(device).ok()
    });
    short.ok_or_else(|| Failure(format!("{text:?} is no client: want mimi://a.test/d/alice/phone or alice/phone@a.test")))
}
