//! What has to be there before a node can start: the CA, each node's directory, and an invitation for one user of each domain.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use mimi_node::base::{Context as _, Domain, Fault, UnixMillis, UserUri};
use mimi_node::identity::TlsCa;
use mimi_node::node::config::{Config, Listen, replace_public, write_public, write_secret};
use mimi_node::node::init::NewNode;
use mimi_node::service::accounts::invite;
use mimi_node::storage::Storage;

use super::people::{invitation_path, is_enrolled};
use super::{CLIENT_PORT, FEDERATION_PORT, SetupArguments};

pub(super) async fn run(arguments: &SetupArguments) -> Result<(), Fault> {
    let dir = &arguments.dir;
    let ca = open_ca(&dir.join("ca"))?;
    let domains: BTreeSet<&Domain> = arguments.users.iter().map(|user| user.0.domain()).collect();
    for domain in domains {
        set_up(&dir.join(domain.as_str()), domain, arguments, &ca).await?;
    }
    let people = dir.join("people");
    for user in &arguments.users {
        invite_user(&people, &dir.join(user.0.domain().as_str()), &user.0, ca.spki_hash()).await?;
    }
    Ok(())
}

/// The CA in `dir`; made when there is none.
fn open_ca(dir: &Path) -> Result<TlsCa, Fault> {
    let (certificate, key) = (dir.join("ca.pem"), dir.join("ca.key"));
    if !certificate.exists() {
        let ca = TlsCa::create("CA of a federation to try", UnixMillis::now())?;
        // Left over from a start that was interrupted: without its certificate, nobody has trusted it yet.
        let _ = std::fs::remove_file(&key);
        write_secret(&key, &ca.key_pem())?;
        write_public(&certificate, &ca.certificate_pem())?;
        println!("a CA for all domains is made");
    }
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    TlsCa::load(&read(&certificate)?, &read(&key)?)
}

/// Makes a domain's node when there is none, and tells it where its surroundings are.
async fn set_up(dir: &Path, domain: &Domain, arguments: &SetupArguments, ca: &TlsCa) -> Result<(), Fault> {
    let path = dir.join("node.toml");
    if !path.exists() {
        let listen = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let listen = Listen { federation: listen(FEDERATION_PORT), client: listen(CLIENT_PORT) };
        let node = NewNode { domain, directory: dir, listen, dns: vec![arguments.dns], ca };
        node.set_up().await.with_context(|| format!("the node of {domain} cannot be set up (`down -v` begins anew)"))?;
        println!("the node of {domain} is set up");
    }
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    // Not loaded: paths stay relative, as the volume is mounted elsewhere for the node.
    let there = Config::parse(&text).with_context(|| path.display().to_string())?;
    let mut wanted = there.clone();
    wanted.dns.servers = vec![arguments.dns];
    wanted.dial.exempt = vec![arguments.exempt];
    if wanted != there {
        replace_public(&path, &wanted.to_toml()?)?;
    }
    Ok(())
}

/// Leaves an invitation for a user who is neither enrolled nor invited.
async fn invite_user(people: &Path, node: &Path, user: &UserUri, tls_ca_spki_hash: [u8; 32]) -> Result<(), Fault> {
    let path = invitation_path(people, user.name());
    if is_enrolled(people, user.name()) || path.exists() {
        return Ok(());
    }
    let directory = path.parent().context("an invitation is in a directory")?;
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let storage = Storage::open_beside(&node.join("data")).await?;
    let invitation = invite(&storage, user, tls_ca_spki_hash).await?;
    storage.close().await;
    replace_public(&path, &invitation.to_string())
}
