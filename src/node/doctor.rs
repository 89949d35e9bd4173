//! A diagnosis without a running node: the outward half, from a process of its own with the node's files.

use std::net::SocketAddr;
use std::sync::Arc;

use super::config::Config;
use super::reload::Reloader;
use crate::base::{Domain, Fault};
use crate::federation::{Depth, Diagnosis, PeerPool};
use crate::service::hello::OwnHello;
use crate::service::peer_policy::stored_overrides;
use crate::storage::Storage;
use crate::transport::{EndpointSecret, Resolver, endpoint};

/// Looks at everything between the node that `config` describes and `domain`, from a free port of the address on which that node
/// would listen, and by what its operators have said.
pub async fn outward(config: &Config, domain: &Domain) -> Result<Diagnosis, Fault> {
    let reloader = Reloader::load(config)?;
    let address = SocketAddr::new(config.listen.federation.ip(), 0);
    let endpoint = endpoint::bind(address, None, &EndpointSecret::generate())?;
    let resolver = Resolver::new(&config.dns.resolver_settings())?;
    let mut settings = config.dial_settings();
    // What operators have said at run time holds here, too.
    let storage = Storage::open_beside(&config.data).await?;
    let overrides = stored_overrides(&storage).await;
    storage.close().await;
    settings.policies = settings.policies.with_overrides(overrides?);
    let (own, hello) = (config.domain.clone(), Arc::new(OwnHello::new(config.domain.clone())));
    let peers = PeerPool::new(endpoint.clone(), reloader.tls(), resolver, own, hello, settings)?;
    let diagnosis = peers.diagnose(domain, Depth::Outward).await;
    endpoint::close(&endpoint).await;
    Ok(diagnosis)
}
