//! `mimi-node users`: invitations, the list of users and their deletion, beside a running node.

use std::path::PathBuf;

use clap::Subcommand;

use super::node::tls_ca_spki_hash;
use crate::base::fault::{Context as _, Fault};
use crate::base::{Domain, UserUri};
use crate::node::Config;
use crate::node::init::stored_domain;
use crate::service::accounts::{delete, invite};
use crate::storage::Storage;

/// `mimi-node users …`.
#[derive(Subcommand)]
pub(super) enum UsersCommand {
    /// Print an invitation: one line to hand to the user, good once and for a week.
    Invite {
        /// The user's name within the domain, such as alice.
        name: String,
        /// The configuration file.
        #[arg(long, default_value = "node.toml")]
        config: PathBuf,
        /// One JSON object instead of the line.
        #[arg(long)]
        json: bool,
    },
    /// List the enrolled users.
    List {
        /// The configuration file.
        #[arg(long, default_value = "node.toml")]
        config: PathBuf,
        /// One JSON array instead of lines.
        #[arg(long)]
        json: bool,
    },
    /// Delete a user: its key and its clients are revoked, its queues and KeyPackages are gone. A running node acts on it within
    /// seconds. The name can be invited again.
    Delete {
        /// The user's name within the domain, such as alice.
        name: String,
        /// The configuration file.
        #[arg(long, default_value = "node.toml")]
        config: PathBuf,
    },
}

pub(super) async fn run(command: UsersCommand) -> Result<(), Fault> {
    match command {
        UsersCommand::Invite { name, config, json } => {
            let config = Config::load(&config)?;
            let user = UserUri::new(&config.domain, &name).with_context(|| format!("{name:?} cannot be a user's name"))?;
            let storage = open(&config).await?;
            let invitation = invite(&storage, &user, tls_ca_spki_hash(&config)?).await?;
            storage.close().await;
            if json {
                println!("{}", serde_json::json!({ "user": user.to_string(), "invitation": invitation.to_string() }));
            } else {
                println!("{invitation}");
            }
            Ok(())
        }
        UsersCommand::Delete { name, config } => {
            let config = Config::load(&config)?;
            let user = UserUri::new(&config.domain, &name).with_context(|| format!("{name:?} cannot be a user's name"))?;
            let storage = open(&config).await?;
            let deleted = delete(&storage, &user).await?;
            storage.close().await;
            if deleted { Ok(()) } else { Err(Fault::new(format!("there is no user {user}"))) }
        }
        UsersCommand::List { config, json } => {
            let storage = open(&Config::load(&config)?).await?;
            let users = storage.users().await?;
            storage.close().await;
            if json {
                let users: Vec<_> = users
                    .iter()
                    .map(|user| serde_json::json!({ "user": user.uri.to_string(), "enrolled_at_ms": user.enrolled_at.0 }))
                    .collect();
                println!("{}", serde_json::Value::from(users));
            } else {
                for user in users {
                    println!("{}", user.uri);
                }
            }
            Ok(())
        }
    }
}

pub(super) async fn open(config: &Config) -> Result<Storage, Fault> {
    let storage = Storage::open_beside(&config.data).await?;
    let there = stored_domain(&storage).await?;
    let domain: Option<Domain> = there.as_deref().and_then(|there| there.parse().ok());
    if domain.as_ref() != Some(&config.domain) {
        let there = there.unwrap_or_else(|| "no domain yet".to_owned());
        return Err(Fault::new(format!(
            "the database in {} belongs to {there}, but the configuration says {}",
            config.data.display(),
            config.domain
        )));
    }
    Ok(storage)
}
