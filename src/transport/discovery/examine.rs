//! [`Resolver::examine`]: everything that DNS says now of a domain's nodes, with TTLs and the outcome of each question. It reads no
//! answer from the cache and writes none there, so that looking changes nothing.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::task::JoinSet;

use super::cache::Failure;
use super::{DiscoveryError, Resolver, Service, question, srv, told};
use crate::base::Domain;

/// What DNS, or the configuration, says of a domain's nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examination {
    /// The SRV name that was asked for; `None`: addresses are configured, and DNS was not asked.
    pub name: Option<String>,
    /// How long the SRV answer may be kept.
    pub ttl: Option<Duration>,
    /// Those that a node would use, in the order in which it would try them.
    pub records: Vec<ExaminedRecord>,
    /// How many records there are beyond those.
    pub left_out: usize,
    /// Why there is no address at all.
    pub failure: Option<DiscoveryError>,
}

/// One SRV record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExaminedRecord {
    /// Lower ones are tried first.
    pub priority: u16,
    /// Its share among those of one priority.
    pub weight: u16,
    /// The UDP port.
    pub port: u16,
    /// The host, absolute; or an address where configured.
    pub target: String,
    /// What DNS says of the host.
    pub host: ExaminedHost,
}

/// The addresses of one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExaminedHost {
    /// Those that a node would use, with the record's port.
    pub addresses: Vec<SocketAddr>,
    /// How long they may be kept.
    pub ttl: Option<Duration>,
    /// Why there is none.
    pub failure: Option<DiscoveryError>,
}

impl Examination {
    fn failed(name: String, failure: DiscoveryError) -> Self {
        Self { name: Some(name), ttl: None, records: Vec::new(), left_out: 0, failure: Some(failure) }
    }
}

impl Resolver {
    /// Asks for everything anew. See the module.
    pub async fn examine(&self, service: Service, domain: &Domain) -> Examination {
        if let Some(addresses) = self.configured(service, domain) {
            let record = |address: &SocketAddr| ExaminedRecord {
                priority: 0,
                weight: 0,
                port: address.port(),
                target: address.ip().to_string(),
                host: ExaminedHost { addresses: vec![*address], ttl: None, failure: None },
            };
            let records = addresses.iter().map(record).collect();
            return Examination { name: None, ttl: None, records, left_out: 0, failure: None };
        }
        let name = service.srv_name(domain);
        let (answered, ttl) = match question::services(&self.dns, &name).await {
            Ok(answer) => answer,
            Err((failure, _)) => return Examination::failed(name.clone(), told(failure, &name, "SRV")),
        };
        let usable = srv::usable(&answered, self.settings.srv_records_max, &mut self.shared().rng);
        let Ok(usable) = usable else {
            let failure = DiscoveryError::RefusesFederation { name: name.clone() };
            return Examination { ttl: Some(ttl), ..Examination::failed(name, failure) };
        };
        let mut lookups = JoinSet::new();
        for (index, record) in usable.iter().enumerate() {
            let (this, host, port) = (self.clone(), record.target.clone(), record.port);
            lookups.spawn(async move { (index, this.examine_host(&host, port).await) });
        }
        let mut hosts = BTreeMap::new();
        while let Some(Ok((index, host))) = lookups.join_next().await {
            hosts.insert(index, host);
        }
        let left_out = answered.len() - usable.len();
        let records: Vec<ExaminedRecord> = usable
            .into_iter()
            .zip(hosts.into_values())
            .map(|(record, host)| {
                let srv::SrvRecord { priority, weight, port, target } = record;
                ExaminedRecord { priority, weight, port, target, host }
            })
            .collect();
        let failure = records.iter().all(|record| record.host.addresses.is_empty()).then(|| {
            let first = records.iter().find_map(|record| record.host.failure.clone());
            match first {
                // The domain has records; it is a host that is not there.
                Some(DiscoveryError::NoSuchDomain { name }) => DiscoveryError::NoRecords { name, records: "address" },
                Some(failure) => failure,
                None => DiscoveryError::NoRecords { name: name.clone(), records: "address" },
            }
        });
        Examination { name: Some(name), ttl: Some(ttl), records, left_out, failure }
    }

    async fn examine_host(&self, host: &str, port: u16) -> ExaminedHost {
        let (v6, v4) = tokio::join!(question::v6(&self.dns, host), question::v4(&self.dns, host));
        let ttl = match (&v6, &v4) {
            (Ok((_, six)), Ok((_, four))) => Some(*six.min(four)),
            (Ok((_, ttl)), Err(_)) | (Err(_), Ok((_, ttl))) => Some(*ttl),
            (Err(_), Err(_)) => None,
        };
        let failure = match (&v6, &v4) {
            // "There is none of this family" tells less than what befell the other.
            (Err((Failure::NoSuchName | Failure::NoRecords, _)), Err((four, _))) => Some(four.clone()),
            (Err((six, _)), Err(_)) => Some(six.clone()),
            _ => None,
        };
        let v6 = v6.map(|(addresses, _)| addresses).unwrap_or_default();
        let v4 = v4.map(|(addresses, _)| addresses).unwrap_or_default();
        let addresses: Vec<IpAddr> = srv::in_turn(&v6, &v4, self.settings.target_addresses_max);
        ExaminedHost {
            addresses: addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect(),
            ttl,
            failure: failure.map(|failure| told(failure, host, "address")),
        }
    }
}
