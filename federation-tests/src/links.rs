//! Faulty links between all nodes: each node has a name server of its own, in whose view every other node is behind a proxy for
//! this pair and direction. So one domain can be cut off from all others while those still reach each other.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use mimi_node::base::{Context as _, Fault};

use crate::dns::{DnsServer, SrvRecord, Zones};
use crate::fault_proxy::{Counters, FaultPlan, FaultProxy};
use crate::world::World;

/// The links of a world. Dropping them ends the proxies and name servers.
pub struct Links {
    /// By who dials and who is dialled.
    proxies: BTreeMap<(usize, usize), FaultProxy>,
    _views: Vec<DnsServer>,
}

impl Links {
    /// Puts a proxy with `plan` into every link of `world`, whose nodes must not run yet.
    pub async fn lay(world: &World, plan: &FaultPlan, seed: u64) -> Result<Self, Fault> {
        let mut proxies = BTreeMap::new();
        let mut views = Vec::new();
        for (from, site) in world.sites.iter().enumerate() {
            let any = |address: SocketAddr| SocketAddr::new(address.ip(), 0);
            let view = DnsServer::start(any(world.dns.local_addr()), Zones::new(["test"]));
            let view = view.await.context("cannot start a name server")?;
            for (to, other) in world.sites.iter().enumerate().filter(|(to, _)| *to != from) {
                let seed = seed.wrapping_mul(1_000).wrapping_add((from * world.sites.len() + to) as u64);
                // On the dialler's address: what the proxy stands for is at the other end.
                let proxy = FaultProxy::start(any(site.federation), other.federation, plan.clone(), seed);
                let proxy = proxy.await.context("cannot start a proxy")?;
                let (address, target) = (proxy.local_addr(), format!("node.{}", other.domain));
                let failed = "a name of the testbed is not valid";
                view.set_a(&target, vec![address.ip()]).context(failed)?;
                let record = SrvRecord { priority: 0, weight: 0, port: address.port(), target };
                view.set_srv(other.domain.as_str(), "_mimi-fed", vec![record]).context(failed)?;
                proxies.insert((from, to), proxy);
            }
            world.set_name_server(from, view.local_addr())?;
            views.push(view);
        }
        Ok(Self { proxies, _views: views })
    }

    fn of(&self, index: usize) -> impl Iterator<Item = &FaultProxy> {
        self.proxies.iter().filter(move |((from, to), _)| *from == index || *to == index).map(|(_, proxy)| proxy)
    }

    /// Cuts a domain off from all others, in both directions.
    pub fn cut_off(&self, index: usize) {
        self.of(index).for_each(FaultProxy::cut);
    }

    /// Ends a [`Links::cut_off`].
    pub fn reconnect(&self, index: usize) {
        self.of(index).for_each(FaultProxy::restore);
    }

    /// What happened so far, link by link.
    pub fn counters(&self) -> impl Iterator<Item = ((usize, usize), Counters)> {
        self.proxies.iter().map(|(link, proxy)| (*link, proxy.counters()))
    }
}
