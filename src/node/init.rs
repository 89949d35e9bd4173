//! Setting a node up for the first time: its keys, in its database.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::config::{AdminSettings, Config, Dial, Dns, Federation, Listen, LogLevel, Tls, write_public, write_secret};
use crate::base::crypto::SigningKey;
use crate::base::fault::{Context as _, Fault};
use crate::base::limits::Limits;
use crate::base::{Domain, UnixMillis};
use crate::identity::{AsRoot, TlsCa, TlsCertificateOptions};
use crate::qs::sealed::QsKeyPair;
use crate::service::NodeKeys;
use crate::storage::Storage;
use crate::storage::settings::InitialSettings;
use crate::transport::EndpointSecret;

const DOMAIN: &str = "domain";
const AS_ROOT_KEY: &str = "as_root_key";
const AS_ROOT_CERTIFICATE: &str = "as_root_certificate";
const DS_KEY: &str = "ds_key";
const DS_CERTIFICATE: &str = "ds_certificate";
const QS_KEY: &str = "qs_key";
const FEDERATION_SECRET: &str = "federation_endpoint_secret";
const CLIENT_SECRET: &str = "client_endpoint_secret";

/// What a new node is to be.
pub struct NewNode<'a> {
    /// The domain that it serves.
    pub domain: &'a Domain,
    /// Where it is put: made if it is not there.
    pub directory: &'a Path,
    /// UDP addresses to listen on.
    pub listen: Listen,
    /// Name servers; none uses the system's.
    pub dns: Vec<SocketAddr>,
    /// Issues its TLS certificate; the first CA that it trusts.
    pub ca: &'a TlsCa,
}

impl NewNode<'_> {
    /// Sets the node up: TLS certificate, keys, database, and last the configuration `node.toml`, without which there is no node.
    /// Returns the configuration's path. Nothing that is there is written over.
    pub async fn set_up(self) -> Result<PathBuf, Fault> {
        let tls = self.directory.join("tls");
        std::fs::create_dir_all(&tls).with_context(|| format!("cannot make {}", tls.display()))?;
        let certificate = self.ca.issue(&TlsCertificateOptions::for_domain(self.domain), UnixMillis::now())?;
        write_public(&tls.join("node.pem"), &certificate.chain_pem)?;
        write_secret(&tls.join("node.key"), &certificate.key_pem)?;
        write_public(&tls.join("authorities.pem"), &self.ca.certificate_pem())?;
        initialise(&self.directory.join("data"), self.domain).await?;
        let dial = Dial::for_node_at(self.listen.federation.ip());
        let config = Config {
            domain: self.domain.clone(),
            data: "data".into(),
            log: LogLevel::Info,
            listen: self.listen,
            tls: Tls::new("tls/node.pem", "tls/node.key", "tls/authorities.pem"),
            dns: Dns::asking(self.dns),
            dial,
            federation: Federation::default(),
            limits: Limits::default(),
            admin: AdminSettings::default(),
            peers: BTreeMap::new(),
        };
        let path = self.directory.join("node.toml");
        write_public(&path, &config.to_toml()?)?;
        Ok(path)
    }
}

/// Makes the data directory and the database in it, with fresh keys for `domain`.
async fn initialise(data: &Path, domain: &Domain) -> Result<(), Fault> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data)
        .with_context(|| format!("cannot make the data directory {}", data.display()))?;
    let storage = Storage::open(data).await?;
    if let Some(there) = storage.setting(DOMAIN).await? {
        let there = String::from_utf8_lossy(&there).into_owned();
        return Err(Fault::new(format!("{} already holds the node of {there}", data.display())));
    }
    let now = UnixMillis::now();
    let as_root = AsRoot::create(domain, now)?;
    let ds_key = SigningKey::generate()?;
    let ds_public: [u8; 32] = ds_key.public().try_into().context("an Ed25519 key has 32 octets")?;
    let ds_certificate = as_root
        .issue_service(&format!("mimi://{domain}/ds"), &ds_public, now)
        .context("could not issue the Delivery Service's certificate")?;
    let settings = vec![
        (DOMAIN, domain.as_bytes().to_vec()),
        (AS_ROOT_KEY, as_root.key().pkcs8().expose().to_vec()),
        (AS_ROOT_CERTIFICATE, as_root.certificate().to_vec()),
        (DS_KEY, ds_key.pkcs8().expose().to_vec()),
        (DS_CERTIFICATE, ds_certificate),
        (QS_KEY, QsKeyPair::generate(1)?.to_record().expose().to_vec()),
        (FEDERATION_SECRET, EndpointSecret::generate().expose().to_vec()),
        (CLIENT_SECRET, EndpointSecret::generate().expose().to_vec()),
    ];
    storage.write(InitialSettings(settings)).await?;
    storage.close().await;
    Ok(())
}

/// A node's keys and endpoint secrets, as [`initialise`] wrote them.
pub(super) struct Settings {
    pub(super) keys: NodeKeys,
    pub(super) federation_secret: EndpointSecret,
    pub(super) client_secret: EndpointSecret,
}

/// The domain that a database was made for; `None` in an empty one.
pub async fn stored_domain(storage: &Storage) -> Result<Option<String>, Fault> {
    Ok(storage.setting(DOMAIN).await?.map(|domain| String::from_utf8_lossy(&domain).into_owned()))
}

/// Reads the settings of a database that must be `domain`'s.
pub(super) async fn load(storage: &Storage, domain: &Domain, data: &Path) -> Result<Settings, Fault> {
    match stored_domain(storage).await? {
        Some(there) if there == domain.as_str() => {}
        Some(there) => {
            return Err(Fault::new(format!(
                "the database in {} belongs to the domain {there}, but the configuration says {domain}",
                data.display()
            )));
        }
        None => {
            return Err(Fault::new(format!("the database in {} is empty: run `mimi-node init` first", data.display())));
        }
    }
    let read = async |name: &str| storage.setting(name).await?.with_context(|| format!("the setting {name} is missing"));
    let secret = async |name: &str| {
        let octets: [u8; 32] = read(name).await?.try_into().ok().with_context(|| format!("the setting {name} is damaged"))?;
        Ok::<_, Fault>(EndpointSecret::from_bytes(octets))
    };
    Ok(Settings {
        keys: NodeKeys {
            as_root: AsRoot::load(&read(AS_ROOT_KEY).await?, &read(AS_ROOT_CERTIFICATE).await?)?,
            ds: SigningKey::from_pkcs8(&read(DS_KEY).await?)?,
            ds_chain: vec![read(DS_CERTIFICATE).await?],
            qs: vec![QsKeyPair::from_record(&read(QS_KEY).await?)?],
        },
        federation_secret: secret(FEDERATION_SECRET).await?,
        client_secret: secret(CLIENT_SECRET).await?,
    })
}
