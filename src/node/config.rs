//! The configuration file: TOML, every key known, every path relative to the file.

mod admin;
mod peers;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use admin::AdminSettings;
pub use peers::{Dial, Dns, Federation, Peer};
use serde::{Deserialize, Serialize};

use crate::base::Domain;
use crate::base::fault::{Context as _, Fault};
use crate::base::limits::{Limits, TLS_WARN_DAYS};
use crate::base::secret::Secret;

/// A node's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The domain that is served.
    pub domain: Domain,
    /// The data directory: database and lock.
    pub data: PathBuf,
    /// How much is logged to standard error.
    #[serde(default)]
    pub log: LogLevel,
    /// Where to listen.
    pub listen: Listen,
    /// The node's TLS identity, and whom it trusts.
    pub tls: Tls,
    /// Where names are looked up.
    #[serde(default)]
    pub dns: Dns,
    /// How other nodes are dialled.
    #[serde(default)]
    pub dial: Dial,
    /// Who may federate.
    #[serde(default)]
    pub federation: Federation,
    /// What clients, groups and peers may use up.
    #[serde(default, skip_serializing_if = "Limits::is_default")]
    pub limits: Limits,
    /// Where operators' commands and Prometheus ask.
    #[serde(default, skip_serializing_if = "AdminSettings::is_default")]
    pub admin: AdminSettings,
    /// What is different for single peers, by domain.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub peers: BTreeMap<Domain, Peer>,
}

/// `log`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Faults only.
    Error,
    /// And what an operator should look at.
    Warn,
    /// And what happens seldom: start, stop, peers, users.
    #[default]
    Info,
    /// And refused connections.
    Debug,
}

/// `[listen]`: UDP addresses; port 0 takes a free one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// For other nodes, ALPN `mimi-fed/1`.
    pub federation: SocketAddr,
    /// For the domain's own clients, ALPN `mimi-client/1`.
    pub client: SocketAddr,
}

/// `[tls]`: files, read again whenever they change. PEM, revocation lists also DER.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The node's certificate, then the CA that issued it.
    pub certificate: PathBuf,
    /// Its private key, readable by the node's user only.
    pub key: PathBuf,
    /// The CAs that peers' certificates are checked against.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorities: Option<PathBuf>,
    /// Whether the CAs that the web trusts are trusted for peers too, and from where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub web_roots: Option<WebRoots>,
    /// Certificate revocation lists of the CAs, fetched by the operator's own means.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub crls: Vec<PathBuf>,
    /// Refuses every certificate of a CA whose revocation list is overdue. Without it, such a list still counts for what it says.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refuse_stale_crls: bool,
    /// From how many days left on the log warns of a certificate.
    #[serde(default = "warn_days", skip_serializing_if = "is_warn_days")]
    pub warn_days: u32,
}

impl Tls {
    /// A certificate with its key, and a bundle of CAs; nothing else.
    pub fn new(certificate: impl Into<PathBuf>, key: impl Into<PathBuf>, authorities: impl Into<PathBuf>) -> Self {
        Self {
            certificate: certificate.into(),
            key: key.into(),
            authorities: Some(authorities.into()),
            web_roots: None,
            crls: Vec::new(),
            refuse_stale_crls: false,
            warn_days: TLS_WARN_DAYS,
        }
    }

    fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let web_roots = self.web_roots.iter_mut().filter_map(|roots| match roots {
            WebRoots::File(path) => Some(path),
            WebRoots::System => None,
        });
        [&mut self.certificate, &mut self.key].into_iter().chain(&mut self.authorities).chain(&mut self.crls).chain(web_roots)
    }
}

/// `tls.web_roots`: where the CAs that the web trusts are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PathBuf", into = "PathBuf")]
pub enum WebRoots {
    /// `"system"`: where the operating system keeps them.
    System,
    /// In this file.
    File(PathBuf),
}

impl From<PathBuf> for WebRoots {
    fn from(path: PathBuf) -> Self {
        if path.as_os_str() == "system" { Self::System } else { Self::File(path) }
    }
}

impl From<WebRoots> for PathBuf {
    fn from(roots: WebRoots) -> Self {
        match roots {
            WebRoots::System => "system".into(),
            WebRoots::File(path) => path,
        }
    }
}

fn warn_days() -> u32 {
    TLS_WARN_DAYS
}

fn is_warn_days(days: &u32) -> bool {
    *days == TLS_WARN_DAYS
}

impl Config {
    /// Reads a configuration file. Relative paths in it are relative to the file's directory.
    pub fn load(path: &Path) -> Result<Self, Fault> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the configuration {}", path.display()))?;
        let in_file = |fault| Fault::new(format!("{}: {fault}", path.display()));
        let mut config = Self::parse(&text).map_err(in_file)?;
        config.limits.check().map_err(in_file)?;
        config.check_peers().map_err(in_file)?;
        config.admin.check().map_err(in_file)?;
        let directory = path.parent().unwrap_or(Path::new("."));
        for path in config.tls.paths_mut().chain([&mut config.data]).chain(&mut config.admin.socket) {
            *path = directory.join(&*path);
        }
        Ok(config)
    }

    /// The configuration as the text of a file.
    pub fn to_toml(&self) -> Result<String, Fault> {
        toml::to_string(self).context("cannot write the configuration")
    }

    /// Parses the text of a configuration; paths stay as they are.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        toml::from_str(text).map_err(|error| {
            // toml's own text spans lines and shows the place; one plain sentence is wanted here.
            let line = error.span().map(|span| text.get(..span.start).unwrap_or_default().matches('\n').count() + 1);
            let place = line.map_or_else(String::new, |line| format!("line {line}: "));
            Fault::new(format!("{place}{}", error.message().replace('\n', " ")))
        })
    }
}

/// Reads a file with a private key, which nobody but its owner may be able to read.
pub fn read_secret(path: &Path) -> Result<Secret, Fault> {
    use std::os::unix::fs::PermissionsExt as _;
    let cannot = || format!("cannot read the private key {}", path.display());
    let mode = std::fs::metadata(path).with_context(cannot)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(Fault::new(format!(
            "the private key {} can be read by others (mode {:03o}): run `chmod 600` on it",
            path.display(),
            mode & 0o777
        )));
    }
    Ok(Secret::new(std::fs::read(path).with_context(cannot)?))
}

/// Writes a file that nobody but its owner may read; never over an existing one.
pub fn write_secret(path: &Path, secret: &Secret) -> Result<(), Fault> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let cannot = || format!("cannot write {}", path.display());
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).with_context(cannot)?;
    file.write_all(secret.expose()).and_then(|()| file.sync_all()).with_context(cannot)
}

/// Writes a file that others may read; never over an existing one.
pub fn write_public(path: &Path, text: &str) -> Result<(), Fault> {
    use std::io::Write as _;
    let cannot = || format!("cannot write {}", path.display());
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(path).with_context(cannot)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(cannot)
}

/// Writes a file that others may read, at once and as a whole, in the place of whatever is there.
pub fn replace_public(path: &Path, text: &str) -> Result<(), Fault> {
    let cannot = || format!("cannot write {}", path.display());
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // Left over from a try that was interrupted.
    let _ = std::fs::remove_file(&beside);
    write_public(&beside, text)?;
    std::fs::rename(&beside, path).with_context(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = include_str!("../../configs/node.toml");

    #[test]
    fn the_sample_is_read_and_a_wrong_key_is_one_plain_sentence() {
        let config = Config::parse(SAMPLE).expect("the sample is valid");
        assert_eq!(config.domain.as_str(), "a.example");
        let wrong = SAMPLE.replace("federation =", "federatoin =");
        let fault = Config::parse(&wrong).expect_err("an unknown key").to_string();
        assert!(fault.contains("federatoin") && fault.starts_with("line ") && !fault.contains('\n'), "{fault}");
        assert!(Config::parse(&SAMPLE.replace("a.example", "A.example")).is_err());
    }

    #[test]
    fn the_sample_shows_every_limit_with_its_default() {
        let (before, limits) = SAMPLE.split_once("# [limits]\n").expect("the sample shows the limits");
        let uncommented: Vec<&str> = limits.lines().map(|line| line.strip_prefix("# ").expect("a commented line")).collect();
        let text = format!("{before}[limits]\n{}\n", uncommented.join("\n"));
        assert_eq!(Config::parse(&text).expect("valid without the comment signs").limits, Limits::default());
        let shown: Vec<&str> = uncommented.iter().filter_map(|line| Some(line.split_once(" = ")?.0)).collect();
        let all = toml::Value::try_from(Limits::default()).expect("a table");
        let all: std::collections::BTreeSet<&str> = all.as_table().expect("a table").keys().map(String::as_str).collect();
        assert_eq!(shown.iter().copied().collect::<std::collections::BTreeSet<_>>(), all);
        assert_eq!(shown.len(), all.len(), "none twice");
    }

    #[test]
    fn a_limit_that_cannot_work_is_a_sentence_with_the_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("node.toml");
        std::fs::write(&path, format!("{SAMPLE}\n[limits]\nrequests_per_group_per_second_max = 0\n")).expect("written");
        let fault = Config::load(&path).expect_err("refused").to_string();
        assert!(fault.contains("node.toml") && fault.contains("requests_per_group_per_second_max is 0"), "{fault}");
    }

    #[test]
    fn every_sample_is_read_and_written_back() {
        let samples = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/configs")).expect("the samples");
        let mut seen = 0;
        for sample in samples {
            let path = sample.expect("a directory entry").path();
            let config = Config::load(&path).unwrap_or_else(|fault| panic!("{fault}"));
            let text = config.to_toml().expect("it can be written");
            assert_eq!(Config::parse(&text).expect("it can be read back"), config, "{}", path.display());
            seen += 1;
        }
        assert!(seen >= 2, "{seen} samples");
    }

    #[test]
    fn tls_trust_is_read_and_its_paths_are_relative_to_the_file() {
        let pin = "5f".repeat(32);
        let more = format!(
            "authorities = \"tls/authorities.pem\"\nweb_roots = \"roots.pem\"\ncrls = [\"tls/crl.pem\", \"/crl.der\"]\n\
             refuse_stale_crls = true\nwarn_days = 30\n[peers.\"b.example\"]\npins = [\"{pin}\"]\nwildcard = true\n"
        );
        let text = SAMPLE.replace("authorities = \"tls/authorities.pem\"\n", &more);
        assert_ne!(text, SAMPLE);
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("node.toml");
        std::fs::write(&path, &text).expect("written");
        let config = Config::load(&path).expect("it is valid");
        let (trust, tls) = (config.peer_trust(), config.tls);
        assert_eq!(tls.web_roots, Some(WebRoots::File(directory.path().join("roots.pem"))));
        assert_eq!(tls.crls, [directory.path().join("tls/crl.pem"), "/crl.der".into()]);
        assert_eq!(tls.authorities, Some(directory.path().join("tls/authorities.pem")));
        assert!(tls.refuse_stale_crls && tls.warn_days == 30);
        let peer = trust.get(&"b.example".parse::<Domain>().expect("a domain")).expect("the peer");
        assert!(peer.wildcard && peer.pins == [crate::transport::Pin([0x5f; 32])]);
        let config = Config::parse(&text.replace("\"roots.pem\"", "\"system\"")).expect("it is valid");
        assert_eq!(config.tls.web_roots, Some(WebRoots::System));
        assert_eq!(Config::parse(&config.to_toml().expect("it can be written")).expect("and read back"), config);
        let fault = Config::parse(&text.replace(&pin, "5f5f")).expect_err("no pin").to_string();
        assert!(fault.contains("64 hexadecimal digits"), "{fault}");
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("crl.pem");
        for text in ["one", "two"] {
            replace_public(&path, text).expect("written");
            assert_eq!(std::fs::read_to_string(&path).expect("there"), text);
        }
        assert_eq!(std::fs::read_dir(directory.path()).expect("readable").count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key.pem");
        write_secret(&path, &Secret::new(b"key".to_vec())).expect("written");
        assert_eq!(read_secret(&path).expect("readable by us").expose(), b"key");
        assert!(write_secret(&path, &Secret::new(Vec::new())).is_err(), "never over an existing file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("chmod");
        assert!(read_secret(&path).expect_err("refused").to_string().contains("chmod 600"));
    }
}
