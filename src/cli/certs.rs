//! `mimi-node certs`: a TLS CA for a testbed or a company, certificates from it, and a look at any certificate.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;

use crate::base::fault::{Context as _, Fault};
use crate::base::limits::CRL_LIFETIME;
use crate::base::{Domain, UnixMillis};
use crate::identity::pem::certificates_from_pem;
use crate::identity::summary::{CertificateSummary, summarise};
use crate::identity::tls::crl::serial;
use crate::identity::tls::days_left;
use crate::identity::{Crl, Revoked, TlsCa, TlsCertificateOptions};
use crate::node::config::{read_secret, replace_public, write_public, write_secret};

/// `mimi-node certs …`.
#[derive(Subcommand)]
pub(super) enum CertsCommand {
    /// Make a TLS CA: DIR/ca.pem and DIR/ca.key.
    Ca {
        /// Where to put it: made if it is not there.
        #[arg(long)]
        dir: PathBuf,
        /// The CA's name, for people.
        #[arg(long, default_value = "mimi-node TLS CA")]
        name: String,
    },
    /// Issue a node's TLS certificate: DIR/node.pem (with the CA behind it) and DIR/node.key.
    Issue {
        /// The directory of a CA made by `certs ca`.
        #[arg(long)]
        ca: PathBuf,
        /// The domain that the certificate names.
        #[arg(long)]
        domain: Domain,
        /// Where to put it: made if it is not there.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Revoke certificates of a CA: writes its revocation list anew, DIR/crl.pem. With none, the list is renewed as it is.
    Revoke {
        /// The directory of a CA made by `certs ca`.
        #[arg(long)]
        ca: PathBuf,
        /// PEM files; the first certificate of each is revoked.
        files: Vec<PathBuf>,
    },
    /// Show the certificates of a PEM file.
    Inspect {
        /// The PEM file.
        file: PathBuf,
        /// One JSON array instead of tables.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(command: CertsCommand) -> Result<(), Fault> {
    match command {
        CertsCommand::Ca { dir, name } => {
            let ca = TlsCa::create(&name, UnixMillis::now())?;
            write_ca(&ca, &dir)?;
            println!("The CA is in {}; give peers {}.", dir.display(), dir.join("ca.pem").display());
            Ok(())
        }
        CertsCommand::Issue { ca, domain, dir } => {
            let certificate = load_ca(&ca)?.issue(&TlsCertificateOptions::for_domain(&domain), UnixMillis::now())?;
            std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
            write_public(&dir.join("node.pem"), &certificate.chain_pem)?;
            write_secret(&dir.join("node.key"), &certificate.key_pem)?;
            println!("The certificate of {domain} is in {}.", dir.display());
            Ok(())
        }
        CertsCommand::Revoke { ca, files } => revoke(&ca, &files),
        CertsCommand::Inspect { file, json } => inspect(&file, json),
    }
}

fn revoke(directory: &Path, files: &[PathBuf]) -> Result<(), Fault> {
    let (ca, path, now) = (load_ca(directory)?, directory.join("crl.pem"), UnixMillis::now());
    let mut revoked = match std::fs::read(&path) {
        Ok(list) => Crl::read(&list).with_context(|| format!("cannot read {}", path.display()))?.swap_remove(0).revoked,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(Fault::because(format!("cannot read {}", path.display()), error)),
    };
    for file in files {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let certificate = certificates_from_pem(&text)?.swap_remove(0);
        if !ca.is_issuer_of(&certificate) {
            return Err(Fault::new(format!("{} is not a certificate of the CA in {}", file.display(), directory.display())));
        }
        let serial = serial(&certificate)?;
        if revoked.iter().all(|one| one.serial != serial) {
            revoked.push(Revoked { serial, at: now });
        }
    }
    replace_public(&path, &ca.revocation_list(&revoked, now, CRL_LIFETIME)?)?;
    println!("{} revoked certificates are in {}; give it to peers.", revoked.len(), path.display());
    Ok(())
}

fn inspect(file: &Path, json: bool) -> Result<(), Fault> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let certificates = certificates_from_pem(&text)?;
    let summaries = certificates.iter().map(|der| summarise(der)).collect::<Result<Vec<_>, _>>()?;
    let now = UnixMillis::now();
    if json {
        let shown: Vec<Shown<'_>> =
            summaries.iter().map(|summary| Shown { summary, days_left: days_left(summary.not_after, now) }).collect();
        println!("{}", serde_json::to_string(&shown).context("cannot write JSON")?);
    } else {
        for summary in summaries {
            let days = days_left(summary.not_after, now);
            let left = if days < 0 { "expired".to_owned() } else { format!("expires in {days} days") };
            println!("{summary}{left}\n");
        }
    }
    Ok(())
}

/// A certificate as `--json` shows it.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    summary: &'a CertificateSummary,
    /// Whole days until it expires; negative once it has.
    days_left: i64,
}

/// Writes a CA into a directory.
pub(super) fn write_ca(ca: &TlsCa, directory: &Path) -> Result<(), Fault> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    write_public(&directory.join("ca.pem"), &ca.certificate_pem())?;
    write_secret(&directory.join("ca.key"), &ca.key_pem())
}

/// Reads a CA back from its directory.
pub(super) fn load_ca(directory: &Path) -> Result<TlsCa, Fault> {
    let certificate = directory.join("ca.pem");
    let certificate_pem =
        std::fs::read_to_string(&certificate).with_context(|| format!("cannot read {}", certificate.display()))?;
    let key = read_secret(&directory.join("ca.key"))?;
    let key_pem = std::str::from_utf8(key.expose()).context("the CA's key is not PEM")?;
    TlsCa::load(&certificate_pem, key_pem)
}
