//! A domain's nodes: SRV records in the order of RFC 2782, then their addresses (X7; *Transport* in `docs/protocol.md`).

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::{DnsError, NetError, runtime::TokioRuntimeProvider};
use hickory_resolver::proto::rr::{RData, RecordType, rdata::SRV};
use rand::Rng;
use tokio::task::JoinSet;

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
#[derive(Clone, Debug, Default)]
pub struct ResolverSettings {
    /// The name servers to ask, over UDP and TCP; empty means those of the system.
    pub servers: Vec<SocketAddr>,
}

/// The SRV resolver, with its cache. Clones share the cache.
#[derive(Clone)]
pub struct Resolver {
    dns: TokioResolver,
    fixed: Arc<HashMap<(Service, Domain), Vec<SocketAddr>>>,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("fixed", &self.fixed).finish_non_exhaustive()
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
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.cache_size = limits::DNS_CACHE_ENTRIES_MAX;
        options.attempts = limits::DNS_ATTEMPTS;
        // The whole question is bounded below; this leaves room for the repeats in it.
        options.timeout = limits::DNS_TIMEOUT / u32::try_from(limits::DNS_ATTEMPTS + 1).expect("a handful of attempts");
        let dns = builder.build().context("the DNS resolver cannot be set up")?;
        Ok(Self { dns, fixed: Arc::default() })
    }

    /// The same resolver with `addresses` configured for domains, which are then not looked up for `service` at all. The
    /// certificate is still checked for the domain.
    #[must_use]
    pub fn with_static(mut self, service: Service, addresses: HashMap<Domain, Vec<SocketAddr>>) -> Self {
        let fixed = Arc::make_mut(&mut self.fixed);
        fixed.extend(addresses.into_iter().map(|(domain, addresses)| ((service, domain), addresses)));
        self
    }

    /// Forgets every answer, so that the next question asks the name servers again.
    pub fn flush(&self) {
        self.dns.clear_cache();
    }

    /// The nodes of `domain`, in the order in which to try them; at least one, each with at least one address. Answers are
    /// cached for as long as their TTL says.
    pub async fn resolve(&self, service: Service, domain: &Domain) -> Result<Vec<Target>, DiscoveryError> {
        if let Some(addresses) = self.fixed.get(&(service, domain.clone())).filter(|addresses| !addresses.is_empty()) {
            let target =
                |address: &SocketAddr| Target { host: address.ip().to_string(), port: address.port(), addresses: vec![*address] };
            return Ok(addresses.iter().map(target).collect());
        }
        let name = service.srv_name(domain);
        let records = within(limits::DNS_TIMEOUT, &name, "SRV", self.dns.lookup(name.as_str(), RecordType::SRV)).await?;
        let records = records.answers().iter().filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(SrvRecord::from(srv)),
            _ => None,
        });
        let ordered = usable(records.collect(), &name, &mut rand::rng())?;

        // All hosts at once: a name server that is slow for one does not add up.
        let mut lookups = JoinSet::new();
        for (index, record) in ordered.iter().enumerate() {
            let (dns, host) = (self.dns.clone(), record.target.clone());
            lookups.spawn(async move {
                let found = within(limits::DNS_TIMEOUT, &host, "address", dns.lookup_ip(host.as_str())).await;
                (index, found.map(|found| found.iter().take(limits::TARGET_ADDRESSES_MAX).collect::<Vec<IpAddr>>()))
            });
        }
        let mut found: Vec<Option<Result<Vec<IpAddr>, DiscoveryError>>> = ordered.iter().map(|_| None).collect();
        while let Some(Ok((index, addresses))) = lookups.join_next().await {
            found[index] = Some(addresses);
        }
        let mut targets = Vec::new();
        let mut failure = None;
        for (record, found) in ordered.into_iter().zip(found) {
            match found {
                Some(Ok(addresses)) if !addresses.is_empty() => targets.push(Target {
                    addresses: addresses.into_iter().map(|address| SocketAddr::new(address, record.port)).collect(),
                    host: record.target,
                    port: record.port,
                }),
                // A failure that may pass tells more than "no such record".
                Some(Err(error)) if failure.as_ref().is_none_or(|known| !may_pass(known)) => failure = Some(error),
                _ => {}
            }
        }
        match (targets.is_empty(), failure) {
            (false, _) => Ok(targets),
            // The *domain* exists and has targets, so a missing host is missing records of ours to complain about.
            (true, Some(DiscoveryError::NoSuchDomain { name })) => Err(DiscoveryError::NoRecords { name, records: "address" }),
            (true, Some(error)) => Err(error),
            (true, None) => Err(DiscoveryError::NoRecords { name, records: "address" }),
        }
    }
}

fn may_pass(error: &DiscoveryError) -> bool {
    matches!(error, DiscoveryError::ServerFailure { .. } | DiscoveryError::TimedOut { .. })
}

/// Bounds one question and sorts its failure. hickory's own time-out applies per attempt and server, so it adds up.
async fn within<T>(
    limit: Duration,
    name: &str,
    records: &'static str,
    question: impl Future<Output = Result<T, NetError>>,
) -> Result<T, DiscoveryError> {
    let name = || name.to_owned();
    match tokio::time::timeout(limit, question).await {
        Ok(Ok(answer)) => Ok(answer),
        Err(_) | Ok(Err(NetError::Timeout)) => Err(DiscoveryError::TimedOut { name: name() }),
        Ok(Err(error)) if error.is_nx_domain() => Err(DiscoveryError::NoSuchDomain { name: name() }),
        Ok(Err(error)) if error.is_no_records_found() => Err(DiscoveryError::NoRecords { name: name(), records }),
        Ok(Err(NetError::Dns(DnsError::ResponseCode(code)))) => {
            Err(DiscoveryError::ServerFailure { name: name(), detail: format!("the name server answered {code}") })
        }
        Ok(Err(error)) => Err(DiscoveryError::ServerFailure { name: name(), detail: error.to_string() }),
    }
}

/// The parts of an SRV record that ordering needs (RFC 2782).
#[derive(Clone, Debug, PartialEq, Eq)]
struct SrvRecord {
    priority: u16,
    weight: u16,
    port: u16,
    /// Absolute, with its final dot; "." alone means that the service is not offered.
    target: String,
}

impl From<&SRV> for SrvRecord {
    fn from(srv: &SRV) -> Self {
        let mut target = srv.target.to_ascii();
        if !target.ends_with('.') {
            target.push('.');
        }
        Self { priority: srv.priority, weight: srv.weight, port: srv.port, target }
    }
}

/// The records to try, in order, at most [`limits::SRV_RECORDS_MAX`].
fn usable(records: Vec<SrvRecord>, name: &str, rng: &mut impl Rng) -> Result<Vec<SrvRecord>, DiscoveryError> {
    let any = !records.is_empty();
    let offered: Vec<_> = records.into_iter().filter(|record| record.target != ".").collect();
    match (any, offered.is_empty()) {
        (false, _) => Err(DiscoveryError::NoRecords { name: name.to_owned(), records: "SRV" }),
        (true, true) => Err(DiscoveryError::RefusesFederation { name: name.to_owned() }),
        (true, false) => {
            let mut ordered = order(offered, rng);
            ordered.truncate(limits::SRV_RECORDS_MAX);
            Ok(ordered)
        }
    }
}

/// RFC 2782: lower priority first; within one priority repeatedly a record at random, in proportion to its weight, those of
/// weight 0 with a small chance.
fn order(mut records: Vec<SrvRecord>, rng: &mut impl Rng) -> Vec<SrvRecord> {
    // Zero weights first within a priority, as the RFC's running sum wants them.
    records.sort_by_key(|record| (record.priority, record.weight));
    let mut ordered = Vec::with_capacity(records.len());
    while let Some(first) = records.first() {
        let priority = first.priority;
        let same = records.iter().take_while(|record| record.priority == priority);
        let total: u64 = same.map(|record| u64::from(record.weight)).sum();
        let mut draw = rng.random_range(0..=total);
        let chosen = records.iter().position(|record| {
            let weight = u64::from(record.weight);
            let here = draw <= weight;
            draw = draw.saturating_sub(weight);
            here
        });
        ordered.push(records.remove(chosen.expect("the draw is at most the sum of the weights of this priority")));
    }
    ordered
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    fn record(priority: u16, weight: u16, target: &str) -> SrvRecord {
        SrvRecord { priority, weight, port: 1, target: target.to_owned() }
    }

    #[test]
    fn priorities_come_in_order_and_weights_in_proportion() {
        let mut rng = StdRng::seed_from_u64(7);
        let records = vec![record(20, 0, "last."), record(10, 1, "light."), record(10, 3, "heavy."), record(5, 0, "first.")];
        let mut heavy_first = 0;
        for _ in 0..4_000 {
            let ordered = order(records.clone(), &mut rng);
            let targets: Vec<_> = ordered.iter().map(|record| record.target.as_str()).collect();
            assert_eq!((targets[0], targets[3]), ("first.", "last."));
            heavy_first += u32::from(targets[1] == "heavy.");
        }
        // The RFC's draw is from 0 to the sum inclusive: light has 2 of 5, heavy 3 of 5.
        assert!((2_250..2_550).contains(&heavy_first), "{heavy_first} of 4000");
    }

    #[test]
    fn every_record_is_used_once_and_weight_zero_has_a_chance() {
        let mut rng = StdRng::seed_from_u64(8);
        let mut zero_first = 0;
        for _ in 0..2_000 {
            let ordered = order(vec![record(1, 0, "zero."), record(1, 9, "nine.")], &mut rng);
            assert_eq!(ordered.len(), 2);
            zero_first += u32::from(ordered[0].target == "zero.");
        }
        assert!((100..350).contains(&zero_first), "{zero_first} of 2000");
    }

    #[test]
    fn the_root_as_target_refuses_and_many_records_are_cut() {
        let mut rng = StdRng::seed_from_u64(9);
        let name = "_mimi-fed._udp.b.test.";
        assert!(matches!(usable(vec![record(0, 0, ".")], name, &mut rng), Err(DiscoveryError::RefusesFederation { .. })));
        assert!(matches!(usable(vec![], name, &mut rng), Err(DiscoveryError::NoRecords { .. })));
        let one = usable(vec![record(0, 0, "."), record(1, 0, "n.")], name, &mut rng);
        assert_eq!(one.map(|records| records.len()), Ok(1));
        let many = usable(vec![record(0, 1, "n."); 40], name, &mut rng);
        assert_eq!(many.map(|records| records.len()), Ok(limits::SRV_RECORDS_MAX));
    }
}

/// Against a name server of a few lines, over UDP.
#[cfg(test)]
mod lookups {
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
    use hickory_resolver::proto::rr::rdata::A;
    use hickory_resolver::proto::rr::{Name, Record};

    use super::*;
    use crate::transport::testing::domain;

    const TTL_SECONDS: u32 = 300;

    /// What the server says to a question: records, or a code. `None`: it is silent.
    fn answer(name: &str, kind: RecordType) -> Option<(ResponseCode, Vec<RData>)> {
        let srv =
            |priority, port, target: &str| RData::SRV(SRV::new(priority, 1, port, Name::from_ascii(target).expect("a name")));
        let found = |records| Some((ResponseCode::NoError, records));
        match (name, kind) {
            ("_mimi-fed._udp.good.test.", RecordType::SRV) => {
                found(vec![srv(20, 7002, "n2.good.test."), srv(10, 7001, "n1.good.test."), srv(15, 7003, "gone.good.test.")])
            }
            ("n1.good.test.", RecordType::A) => found(vec![RData::A(A(Ipv4Addr::new(127, 0, 0, 1)))]),
            ("n2.good.test.", RecordType::A) => {
                found(vec![RData::A(A(Ipv4Addr::new(127, 0, 0, 2))), RData::A(A(Ipv4Addr::new(127, 0, 0, 3)))])
            }
            ("_mimi-fed._udp.refuses.test.", RecordType::SRV) => found(vec![srv(0, 0, ".")]),
            ("_mimi-fed._udp.homeless.test.", RecordType::SRV) => found(vec![srv(0, 1, "gone.good.test.")]),
            ("_mimi-fed._udp.fails.test.", _) => Some((ResponseCode::ServFail, vec![])),
            ("_mimi-fed._udp.empty.test." | "n1.good.test." | "n2.good.test.", _) => found(vec![]),
            ("_mimi-fed._udp.silent.test.", _) => None,
            _ => Some((ResponseCode::NXDomain, vec![])),
        }
    }

    /// A resolver that asks a server running in this test's runtime, and how many questions that was asked.
    async fn resolver() -> (Resolver, Arc<AtomicUsize>) {
        let socket = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
        let server = socket.local_addr().expect("an address");
        let questions = Arc::new(AtomicUsize::new(0));
        let counted = questions.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let question = Message::from_vec(&buffer[..length]).expect("a question");
                let query = question.queries[0].clone();
                counted.fetch_add(1, Ordering::SeqCst);
                let name = query.name().to_ascii().to_lowercase();
                let Some((code, records)) = answer(&name, query.query_type()) else { continue };
                let mut response = Message::response(question.metadata.id, question.metadata.op_code);
                response.metadata.message_type = MessageType::Response;
                response.metadata.response_code = code;
                response.metadata.recursion_available = true;
                response.queries.push(query.clone());
                let record = |data| Record::from_rdata(query.name().clone(), TTL_SECONDS, data);
                response.answers.extend(records.into_iter().map(record));
                let octets = response.to_vec().expect("an answer");
                socket.send_to(&octets, from).await.expect("sent");
            }
        });
        (Resolver::new(&ResolverSettings { servers: vec![server] }).expect("a resolver"), questions)
    }

    #[tokio::test]
    async fn targets_come_in_order_with_their_addresses_and_are_cached_until_flushed() {
        let (resolver, questions) = resolver().await;
        let good = domain("good.test");
        let targets = resolver.resolve(Service::Federation, &good).await.expect("targets");
        let all: Vec<_> = targets.iter().map(|target| (target.host.as_str(), target.addresses.clone())).collect();
        let at = |last, port| SocketAddr::from(([127, 0, 0, last], port));
        assert_eq!(all.len(), 2, "a host without address is left out: {all:?}");
        assert_eq!(all[0], ("n1.good.test.", vec![at(1, 7001)]));
        assert_eq!((all[1].0, all[1].1.len(), targets[1].port), ("n2.good.test.", 2, 7002));
        assert!(all[1].1.contains(&at(2, 7002)) && all[1].1.contains(&at(3, 7002)));

        let asked = questions.load(Ordering::SeqCst);
        let _ = resolver.resolve(Service::Federation, &good).await.expect("targets");
        // Only what does not exist is asked again: these answers carry no SOA, hence no negative TTL.
        assert!(questions.load(Ordering::SeqCst) < 2 * asked, "SRV and A are cached");
        let cached = questions.load(Ordering::SeqCst);
        resolver.flush();
        let _ = resolver.resolve(Service::Federation, &good).await.expect("targets");
        assert!(questions.load(Ordering::SeqCst) >= cached + asked - 1);
    }

    #[tokio::test]
    async fn kinds_of_failure_are_kept_apart() {
        let (resolver, _) = resolver().await;
        let failure = async |name| resolver.resolve(Service::Federation, &domain(name)).await.expect_err("no targets");
        assert!(matches!(failure("nowhere.test").await, DiscoveryError::NoSuchDomain { .. }));
        assert!(matches!(failure("empty.test").await, DiscoveryError::NoRecords { records: "SRV", .. }));
        assert!(matches!(failure("homeless.test").await, DiscoveryError::NoRecords { records: "address", .. }));
        assert!(matches!(failure("refuses.test").await, DiscoveryError::RefusesFederation { .. }));
        let failed = failure("fails.test").await;
        assert!(matches!(failed, DiscoveryError::ServerFailure { .. }), "{failed}");
        assert!(matches!(failure("silent.test").await, DiscoveryError::TimedOut { .. }));
        // Configured addresses need no DNS, and only for their service.
        let address = SocketAddr::from(([127, 0, 0, 9], 9));
        let fixed = HashMap::from([(domain("silent.test"), vec![address])]);
        let resolver = resolver.clone().with_static(Service::Federation, fixed);
        let targets = resolver.resolve(Service::Federation, &domain("silent.test")).await.expect("configured");
        assert_eq!(targets[0].addresses, [address]);
        let other = resolver.resolve(Service::Client, &domain("silent.test")).await;
        assert!(matches!(other, Err(DiscoveryError::NoSuchDomain { .. })), "{other:?}");
    }
}
