//! A diagnosis without a running node: the outward half, from a process of its own with the node's files.

use std::net::SocketAddr;
use std::sync::Arc;

use super::config::Config;
use super::reload::Reloader;
use crate::base::{Domain, Fault};
use crate::federation::{Depth, Diagnosis, PeerPool};
use crate::service::hello::OwnHello;
use crate::transport::{EndpointSecret, Resolver, discovery, endpoint};

/// Looks at everything between the node that `config` describes and `domain`, from a free port of the address on which that node
/// would listen. The database is not needed and not opened.
pub async fn outward(config: &Config, domain: &Domain) -> Result<Diagnosis, Fault> {
    let reloader = Reloader::load(config)?;
    let address = SocketAddr::new(config.listen.federation.ip(), 0);
    let endpoint = endpoint::bind(address, None, &EndpointSecret::generate())?;
    let resolver = Resolver::new(&config.dns.resolver_settings())?;
    let resolver = resolver.with_static(discovery::Service::Federation, config.static_addresses());
    let (own, hello) = (config.domain.clone(), Arc::new(OwnHello::new(config.domain.clone())));
    let peers = PeerPool::new(endpoint.clone(), reloader.tls(), resolver, own, hello, config.dial_settings())?;
    let diagnosis = peers.diagnose(domain, Depth::Outward).await;
    endpoint::close(&endpoint).await;
    Ok(diagnosis)
}
