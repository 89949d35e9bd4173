//! A domain's nodes: SRV records in the order of RFC 2782, then their addresses (C2; *Transport* in `docs/protocol.md`).
//!
//! | file | is |
//! |---|---|
//! | [`srv`] | the order of records and addresses |
//! | [`cache`] | what was answered before, and for how long it counts |
//! | [`question`] | one question to the name servers |
//! | [`examine`] | everything that DNS says of a domain, for a diagnosis |
//!
//! Whether an address may be dialled is not decided here but when it is dialled: [`super::addresses`].

mod cache;
mod examine;
mod question;
mod srv;

use std::collections::HashMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::task::JoinSet;

pub use cache::Origin;
use cache::{Cache, Failure, Lifetimes, Outcome};
pub use examine::{Examination, ExaminedHost, ExaminedRecord};
use srv::SrvRecord;

use crate::base::count::{Counter, Counts, labels};
use crate::base::{Context as _, Domain, Fault, limits};

/// Which of a domain's two ports is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// Nodes of other domains: `_mimi-fed._udp.<domain>`.
    Federation,
    /// The domain's own clients: `_mimi-client._udp.<domain>`.
    Client,
}

impl Service {
    /// The SRV name looked up for `domain`, absolute.
    pub fn srv_name(self, domain: &Domain) -> String {
        match self {
            Self::Federation => format!("_mimi-fed._udp.{domain}."),
            Self::Client => format!("_mimi-client._udp.{domain}."),
        }
    }
}

/// One node of a domain, to be tried at its addresses in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The SRV target's host name, or the address itself where configured. Only for messages: the certificate is checked for
    /// the domain.
    pub host: String,
    /// The UDP port.
    pub port: u16,
    /// The SRV record's priority: one of a higher number is for when all of a lower one fail.
    pub priority: u16,
    /// Where to connect: [`Target::port`] at each of the host's addresses; at least one.
    pub addresses: Vec<SocketAddr>,
}

/// Why no target is known. Each kind is another thing to do for whoever reads it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    /// The answer was NXDOMAIN.
    #[error("{name} does not exist in DNS (NXDOMAIN)")]
    NoSuchDomain {
        /// What was looked up.
        name: String,
    },
    /// The name exists without the records needed.
    #[error("{name} has no {records} record in DNS")]
    NoRecords {
        /// What was looked up.
        name: String,
        /// The kind of record.
        records: &'static str,
    },
    /// The only SRV target is ".": the domain says that it does not offer this (RFC 2782).
    #[error("{name} has the target \".\": this domain does not federate")]
    RefusesFederation {
        /// What was looked up.
        name: String,
    },
    /// SERVFAIL, REFUSED, or no name server could be reached.
    #[error("looking up {name} failed: {detail}")]
    ServerFailure {
        /// What was looked up.
        name: String,
        /// What went wrong.
        detail: String,
    },
    /// No answer within [`limits::DNS_TIMEOUT`].
    #[error("looking up {name} timed out")]
    TimedOut {
        /// What was looked up.
        name: String,
    },
}

/// How names are resolved.
#[derive(Clone, Debug)]
pub struct ResolverSettings {
    /// The name servers to ask, over UDP and TCP; empty means those of the system.
    pub servers: Vec<SocketAddr>,
    /// The most SRV records used of one answer; the first ones in the order of RFC 2782.
    pub srv_records_max: usize,
    /// The most addresses used of one SRV target.
    pub target_addresses_max: usize,
    /// Answers are kept for their TTL, but at least for this long.
    pub ttl_min: Duration,
    /// And at most for this long.
    pub ttl_max: Duration,
    /// How long after its TTL an answer serves while the name servers fail or are silent.
    pub stale_max: Duration,
    /// What the order of records of equal priority is drawn from; `None`: chance.
    pub seed: Option<u64>,
}

impl Default for ResolverSettings {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            srv_records_max: limits::SRV_RECORDS_MAX,
            target_addresses_max: limits::TARGET_ADDRESSES_MAX,
            ttl_min: limits::DNS_TTL_MIN,
            ttl_max: limits::DNS_TTL_MAX,
            stale_max: limits::DNS_STALE_MAX,
            seed: None,
        }
    }
}

/// Where a domain's nodes are, and how sure that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    /// In the order in which to try them; at least one, each with at least one address.
    pub targets: Vec<Target>,
    /// The least sure of the answers that went into it.
    pub origin: Origin,
}

labels! {
    /// What a name server said to one question.
    pub enum Lookup {
        /// Records.
        Found = "found",
        /// The name does not exist (NXDOMAIN).
        NoSuchName = "no_such_name",
        /// The name has no such records.
        NoRecords = "no_records",
        /// It failed: SERVFAIL, REFUSED, or no name server could be reached.
        Failed = "failed",
        /// Nothing in time.
        TimedOut = "timed_out",
    }
}

/// What was asked since the start.
#[derive(Debug, Default)]
pub struct LookupCounts {
    /// Questions to name servers, by what came of them.
    pub asked: Counts<Lookup>,
    /// Questions that the cache answered.
    pub cached: Counter,
    /// Questions that an answer beyond its TTL answered, because the name servers failed.
    pub stale: Counter,
}

/// The SRV resolver, with its cache. Clones share the cache.
#[derive(Clone)]
pub struct Resolver {
    dns: TokioResolver,
    settings: Arc<ResolverSettings>,
    fixed: Arc<HashMap<(Service, Domain), Vec<SocketAddr>>>,
    shared: Arc<Mutex<Shared>>,
    counts: Arc<LookupCounts>,
}

/// What was answered before, and the dice.
struct Shared {
    services: Cache<String, Vec<SrvRecord>>,
    v4: Cache<String, Vec<Ipv4Addr>>,
    v6: Cache<String, Vec<Ipv6Addr>>,
    /// Where domains are that are not looked up, as an operator has said last; before what was configured.
    fixed: HashMap<(Service, Domain), Vec<SocketAddr>>,
    /// Counts flushes: what was asked before the last one is not kept.
    flushes: u64,
    rng: StdRng,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("settings", &self.settings).field("fixed", &self.fixed).finish_non_exhaustive()
    }
}

impl Resolver {
    /// A resolver with an empty cache. Fails when the system's configuration is asked for and cannot be read.
    pub fn new(settings: &ResolverSettings) -> Result<Self, Fault> {
        let mut builder = if settings.servers.is_empty() {
            TokioResolver::builder_tokio().context("the system's DNS configuration cannot be read; configure name servers")?
        } else {
            let servers = settings.servers.iter().map(|server| {
                let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
                (udp.port, tcp.port) = (server.port(), server.port());
                NameServerConfig::new(server.ip(), true, vec![udp, tcp])
            });
            let config = ResolverConfig::from_name_servers(servers.collect());
            let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            builder.options_mut().use_hosts_file = ResolveHosts::Never;
            builder
        };
        let options = builder.options_mut();
        // The cache is ours: this one would know nothing of stale answers and failures.
        options.cache_size = 0;
        options.attempts = limits::DNS_ATTEMPTS;
        // The whole question is bounded by its own limit; this leaves room for the repeats in it.
        options.timeout = limits::DNS_TIMEOUT / u32::try_from(limits::DNS_ATTEMPTS + 1).expect("a handful of attempts");
        let dns = builder.build().context("the DNS resolver cannot be set up")?;
        let lifetimes = Lifetimes {
            ttl_min: settings.ttl_min,
            ttl_max: settings.ttl_max.max(settings.ttl_min),
            stale_max: settings.stale_max,
        };
        let shared = Shared {
            services: Cache::new(limits::DNS_CACHE_ENTRIES_MAX, lifetimes),
            v4: Cache::new(limits::DNS_CACHE_ENTRIES_MAX, lifetimes),
            v6: Cache::new(limits::DNS_CACHE_ENTRIES_MAX, lifetimes),
            fixed: HashMap::new(),
            flushes: 0,
            rng: settings.seed.map_or_else(StdRng::from_os_rng, StdRng::seed_from_u64),
        };
        let (settings, shared) = (Arc::new(settings.clone()), Arc::new(Mutex::new(shared)));
        Ok(Self { dns, settings, fixed: Arc::default(), shared, counts: Arc::default() })
    }

    /// The same resolver with `addresses` configured for domains, which are then not looked up for `service` at all. The
    /// certificate is still checked for the domain.
    #[must_use]
    pub fn with_static(mut self, service: Service, addresses: HashMap<Domain, Vec<SocketAddr>>) -> Self {
        let fixed = Arc::make_mut(&mut self.fixed);
        fixed.extend(addresses.into_iter().map(|(domain, addresses)| ((service, domain), addresses)));
        self
    }

    /// What was asked since the start, by this resolver and its clones.
    pub fn counts(&self) -> &LookupCounts {
        &self.counts
    }

    /// As [`Resolver::with_static`], for all clones and from now on; replaces what was set so before, and goes before what was
    /// configured.
    pub fn set_static(&self, service: Service, addresses: impl IntoIterator<Item = (Domain, Vec<SocketAddr>)>) {
        let mut shared = self.shared();
        shared.fixed.retain(|(of, _), _| *of != service);
        shared.fixed.extend(addresses.into_iter().map(|(domain, addresses)| ((service, domain), addresses)));
    }

    /// Where a domain is that is not looked up.
    fn configured(&self, service: Service, domain: &Domain) -> Option<Vec<SocketAddr>> {
        let key = (service, domain.clone());
        let said = self.shared().fixed.get(&key).cloned();
        said.or_else(|| self.fixed.get(&key).cloned()).filter(|addresses| !addresses.is_empty())
    }

    /// Forgets every answer, stale ones and failures included, so that the next question asks the name servers again.
    pub fn flush(&self) {
        let mut shared = self.shared();
        shared.flushes += 1;
        shared.services.clear();
        shared.v4.clear();
        shared.v6.clear();
    }

    /// Forgets every answer about one domain's nodes, those about its targets' addresses included.
    pub fn flush_domain(&self, domain: &Domain) {
        let mut shared = self.shared();
        shared.flushes += 1;
        for service in [Service::Federation, Service::Client] {
            let name = service.srv_name(domain);
            for host in shared.hosts(&name) {
                shared.v4.forget(&host);
                shared.v6.forget(&host);
            }
            shared.services.forget(&name);
        }
    }

    /// Nobody was found where the answers point, so they may be out of date: the next question asks the name servers again. Should
    /// these fail, the old answers still serve.
    pub fn doubt(&self, service: Service, domain: &Domain) {
        let (mut shared, now) = (self.shared(), now());
        let name = service.srv_name(domain);
        for host in shared.hosts(&name) {
            shared.v4.doubt(&host, now);
            shared.v6.doubt(&host, now);
        }
        shared.services.doubt(&name, now);
    }

    /// The nodes of `domain`, in the order in which to try them; at least one, each with at least one address.
    pub async fn resolve(&self, service: Service, domain: &Domain) -> Result<Vec<Target>, DiscoveryError> {
        self.discover(service, domain).await.map(|discovered| discovered.targets)
    }

    /// As [`Resolver::resolve`], and how sure that is. The order among records of equal priority is drawn anew each time.
    pub async fn discover(&self, service: Service, domain: &Domain) -> Result<Discovered, DiscoveryError> {
        if let Some(addresses) = self.configured(service, domain) {
            let target = |address: &SocketAddr| Target {
                host: address.ip().to_string(),
                port: address.port(),
                priority: 0,
                addresses: vec![*address],
            };
            return Ok(Discovered { targets: addresses.iter().map(target).collect(), origin: Origin::Configured });
        }
        let name = service.srv_name(domain);
        let asked = self.ask(&name, |shared| &mut shared.services, question::services).await;
        let (records, mut origin) = asked.map_err(|failure| told(failure, &name, "SRV"))?;
        let ordered = srv::usable(&records, self.settings.srv_records_max, &mut self.shared().rng);
        let ordered = ordered.map_err(|srv::NotOffered| DiscoveryError::RefusesFederation { name: name.clone() })?;

        // All hosts at once: a name server that is slow for one does not add up.
        let mut lookups = JoinSet::new();
        for (index, record) in ordered.iter().enumerate() {
            let (this, host) = (self.clone(), record.target.clone());
            lookups.spawn(async move { (index, this.addresses(&host).await) });
        }
        let mut found: Vec<_> = ordered.iter().map(|_| None).collect();
        while let Some(Ok((index, addresses))) = lookups.join_next().await {
            found[index] = Some(addresses);
        }
        let mut targets = Vec::new();
        let mut failure = None;
        for (record, found) in ordered.into_iter().zip(found) {
            match found {
                Some(Ok((addresses, sure))) => {
                    origin = origin.max(sure);
                    targets.push(Target {
                        addresses: addresses.into_iter().map(|address| SocketAddr::new(address, record.port)).collect(),
                        host: record.target,
                        port: record.port,
                        priority: record.priority,
                    });
                }
                // A failure that may pass tells more than "no such record".
                Some(Err(error)) if failure.as_ref().is_none_or(|known| !may_pass(known)) => {
                    failure = Some(told(error, &record.target, "address"));
                }
                _ => {}
            }
        }
        match (targets.is_empty(), failure) {
            (false, _) => Ok(Discovered { targets, origin }),
            // The *domain* exists and has targets, so a missing host is missing records of ours to complain about.
            (true, Some(DiscoveryError::NoSuchDomain { name })) => Err(DiscoveryError::NoRecords { name, records: "address" }),
            (true, Some(error)) => Err(error),
            (true, None) => Err(DiscoveryError::NoRecords { name, records: "address" }),
        }
    }

    /// A host's addresses, at least one. When one family is there, the other is waited for only a moment more: there are name
    /// servers that are silent when asked for AAAA.
    async fn addresses(&self, host: &str) -> Result<(Vec<std::net::IpAddr>, Origin), Failure> {
        let mut v6 = std::pin::pin!(self.ask(host, |shared| &mut shared.v6, question::v6));
        let mut v4 = std::pin::pin!(self.ask(host, |shared| &mut shared.v4, question::v4));
        let patience = || tokio::time::sleep(limits::DNS_OTHER_FAMILY_WAIT);
        let (v6, v4) = tokio::select! {
            six = &mut v6 => match &six {
                Ok(_) => tokio::select! { four = &mut v4 => (six, four), () = patience() => (six, Err(Failure::TimedOut)) },
                Err(_) => (six, v4.await),
            },
            four = &mut v4 => match &four {
                Ok(_) => tokio::select! { six = &mut v6 => (six, four), () = patience() => (Err(Failure::TimedOut), four) },
                Err(_) => (v6.await, four),
            },
        };
        match (v6, v4) {
            // "There is none of this family" tells less than what befell the other.
            (Err(six), Err(four)) => Err(if matches!(six, Failure::NoSuchName | Failure::NoRecords) { four } else { six }),
            (v6, v4) => {
                let (v6, sure6) = v6.unwrap_or((Vec::new(), Origin::Configured));
                let (v4, sure4) = v4.unwrap_or((Vec::new(), Origin::Configured));
                Ok((srv::in_turn(&v6, &v4, self.settings.target_addresses_max), sure6.max(sure4)))
            }
        }
    }

    /// The answer to one question, from the cache or from the name servers.
    async fn ask<V: Clone>(
        &self,
        name: &str,
        cache: fn(&mut Shared) -> &mut Cache<String, V>,
        question: impl AsyncFnOnce(&TokioResolver, &str) -> Outcome<V>,
    ) -> Result<(V, Origin), Failure> {
        let flushes = {
            let mut shared = self.shared();
            if let Some(known) = cache(&mut shared).known(&name.to_owned(), now()) {
                match &known {
                    Ok((_, Origin::Stale)) => self.counts.stale.one(),
                    _ => self.counts.cached.one(),
                }
                return known;
            }
            shared.flushes
        };
        let outcome = question(&self.dns, name).await;
        self.counts.asked.one(match &outcome {
            Ok(_) => Lookup::Found,
            Err((Failure::NoSuchName, _)) => Lookup::NoSuchName,
            Err((Failure::NoRecords, _)) => Lookup::NoRecords,
            Err((Failure::Server(_), _)) => Lookup::Failed,
            Err((Failure::TimedOut, _)) => Lookup::TimedOut,
        });
        let mut shared = self.shared();
        if shared.flushes != flushes {
            // Asked before the flush: good enough for whoever asked, but nothing to keep.
            return outcome.map(|(records, _)| (records, Origin::Asked)).map_err(|(failure, _)| failure);
        }
        let failed = outcome.as_ref().err().map(|(failure, _)| failure.clone());
        let answer = cache(&mut shared).learn(name.to_owned(), outcome, now());
        if let (Ok((_, Origin::Stale)), Some(failure)) = (&answer, failed) {
            self.counts.stale.one();
            tracing::info!(name, ?failure, "DNS fails; its last answer serves beyond its TTL");
        }
        answer
    }

    /// A lock whose holder panicked is still good: every change under it is complete at any point.
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// The targets that the SRV records of `name` were last known to have.
    fn hosts(&self, name: &str) -> Vec<String> {
        let records = self.services.last_records(&name.to_owned());
        records.into_iter().flatten().map(|record| record.target.clone()).collect()
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn told(failure: Failure, name: &str, records: &'static str) -> DiscoveryError {
    let name = name.to_owned();
    match failure {
        Failure::NoSuchName => DiscoveryError::NoSuchDomain { name },
        Failure::NoRecords => DiscoveryError::NoRecords { name, records },
        Failure::Server(detail) => DiscoveryError::ServerFailure { name, detail },
        Failure::TimedOut => DiscoveryError::TimedOut { name },
    }
}

fn may_pass(error: &DiscoveryError) -> bool {
    matches!(error, DiscoveryError::ServerFailure { .. } | DiscoveryError::TimedOut { .. })
}

#[cfg(test)]
mod tests;
