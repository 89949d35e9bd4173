//! `mimi-node roots`: the domain's own AS roots and those of other domains, beside a running node (X2).

use std::path::PathBuf;

use clap::Subcommand;

use super::node::tls_ca_spki_hash;
use super::users::open;
use crate::base::bytes::{hex, unhex};
use crate::base::fault::{Context as _, Fault};
use crate::base::{Domain, UnixMillis};
use crate::identity::pem::certificates_from_pem;
use crate::identity::rollover::fingerprint;
use crate::identity::summary::summarise;
use crate::identity::tls::spki_hash;
use crate::node::Config;
use crate::service::roots::{OwnRoot, PendingRoots, approve, own, pending, retire, roll, vouch};
use crate::storage::Storage;

/// `mimi-node roots …`.
#[derive(Subcommand)]
pub(super) enum RootsCommand {
    /// List the domain's own AS roots, and the roots of other domains that wait for approval.
    List {
        /// The configuration file.
        #[arg(long, default_value = "node.toml")]
        config: PathBuf,
        /// One JSON object instead of lines.
        #[arg(long)]
        json: bool,
    },
    /// Make a new AS root, which the one before vouches for and which issues from now on. A running node takes it up within
    /// seconds; clients renew their certificates by themselves.
    Roll {
        /// The configuration file.
        #[arg(long, default_value = "node.toml")]
        config: PathBuf,
    },
    /// Retire an AS root that issues no more: what it issued is no longer accepted anywhere.
    Retire {
        /// Its fingerprint, as `roots list` shows it.
        fingerprint: String,
        /// Also while users have certificates of it: they are cut off.
        #[arg(long)]
        force: bool,
        /// The configuration file.
        #[arg(long, default_value = "node.toml")]
        config: PathBuf,
    },
    /// Tell the domain's clients that other TLS CAs may vouch for the node from now on, beside the one in use.
    Vouch {
        /// PEM files, each with one CA.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// The configuration file.
        #[arg(long, default_value = "node.toml")]
        config: PathBuf,
    },
    /// Accept the AS roots that another domain publishes and that none of those known before vouches for.
    Approve {
        /// The domain.
        domain: Domain,
        /// The fingerprint of each new root, as its operator told you over another way.
        #[arg(required = true)]
        fingerprints: Vec<String>,
        /// The configuration file.
        #[arg(long, default_value = "node.toml")]
        config: PathBuf,
    },
}

pub(super) async fn run(command: RootsCommand) -> Result<(), Fault> {
    let config = match &command {
        RootsCommand::List { config, .. }
        | RootsCommand::Roll { config }
        | RootsCommand::Retire { config, .. }
        | RootsCommand::Vouch { config, .. }
        | RootsCommand::Approve { config, .. } => Config::load(config)?,
    };
    let storage = open(&config).await?;
    let done = run_on(command, &config, &storage).await;
    storage.close().await;
    done
}

async fn run_on(command: RootsCommand, config: &Config, storage: &Storage) -> Result<(), Fault> {
    let (domain, now) = (&config.domain, UnixMillis::now());
    match command {
        RootsCommand::List { json, .. } => {
            let (own, pending) = (own(storage, domain).await?, pending(storage).await?);
            if json {
                println!("{}", as_json(&own, &pending)?);
                return Ok(());
            }
            for root in &own {
                println!("{}  {domain}  {}, {} users", hex(&root.fingerprint), use_of(root), root.users.len());
            }
            for domain in &pending {
                let known = domain.missing.iter().map(|root| (root, "no longer published"));
                for (root, state) in domain.unknown.iter().map(|root| (root, "waits for approval")).chain(known) {
                    println!("{}  {}  {state}", hex(&fingerprint(root)), domain.domain);
                }
            }
            Ok(())
        }
        RootsCommand::Roll { .. } => {
            let new = roll(storage, domain, now).await?;
            println!("{}", hex(&new));
            Ok(())
        }
        RootsCommand::Retire { fingerprint, force, .. } => retire(storage, domain, parse(&fingerprint)?, force, now).await,
        RootsCommand::Vouch { files, .. } => {
            let mut hashes = vec![tls_ca_spki_hash(config)?];
            for file in files {
                let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
                for certificate in certificates_from_pem(&text)? {
                    let hash = spki_hash(&certificate)?;
                    if !hashes.contains(&hash) {
                        hashes.push(hash);
                    }
                }
            }
            vouch(storage, domain, hashes, now).await
        }
        RootsCommand::Approve { domain, fingerprints, .. } => {
            let fingerprints = fingerprints.iter().map(|text| parse(text)).collect::<Result<Vec<_>, _>>()?;
            approve(storage, &domain, &fingerprints, now).await
        }
    }
}

fn parse(text: &str) -> Result<[u8; 32], Fault> {
    let octets = unhex(text).and_then(|octets| octets.try_into().ok());
    octets.with_context(|| format!("{text:?} is no fingerprint: 64 hexadecimal digits, as `roots list` shows them"))
}

fn use_of(root: &OwnRoot) -> &'static str {
    if root.issues { "issues" } else { "is still good" }
}

fn as_json(own: &[OwnRoot], pending: &[PendingRoots]) -> Result<serde_json::Value, Fault> {
    let describe = |certificate: &Vec<u8>| {
        let summary = summarise(certificate)?;
        Ok::<_, Fault>(serde_json::json!({
            "fingerprint": hex(&fingerprint(certificate)),
            "not_before_ms": summary.not_before.0,
            "not_after_ms": summary.not_after.0,
        }))
    };
    let mut roots = Vec::new();
    for root in own {
        let mut described = describe(&root.certificate)?;
        described["issues"] = root.issues.into();
        described["since_ms"] = root.since.0.into();
        described["users"] = root.users.iter().map(ToString::to_string).collect::<Vec<_>>().into();
        roots.push(described);
    }
    let mut waiting = Vec::new();
    for domain in pending {
        waiting.push(serde_json::json!({
            "domain": domain.domain.to_string(),
            "seen_at_ms": domain.seen_at.0,
            "unknown": domain.unknown.iter().map(describe).collect::<Result<Vec<_>, _>>()?,
            "no_longer_published": domain.missing.iter().map(describe).collect::<Result<Vec<_>, _>>()?,
        }));
    }
    Ok(serde_json::json!({ "own": roots, "pending": waiting }))
}
