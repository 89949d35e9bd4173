//! An authoritative DNS server for tests, on loopback, whose records change while it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::str::FromStr as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::proto::op::{Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode};
use hickory_server::proto::rr::rdata::{A, AAAA, SOA, SRV};
use hickory_server::proto::rr::{LowerName, Name, RData, Record, RecordType};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::net::{TcpListener, UdpSocket};

/// How long an idle TCP connection is kept.
const TCP_IDLE_MAX: Duration = Duration::from_secs(5);

/// Answers that may wait on one TCP connection.
const TCP_ANSWERS_MAX: usize = 32;

/// How often to look for a port that is free for both UDP and TCP.
const PORT_ATTEMPTS_MAX: usize = 32;

/// One SRV record (RFC 2782).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SrvRecord {
    /// Lower ones are tried first.
    pub priority: u16,
    /// The share among those of one priority.
    pub weight: u16,
    /// The port of the service.
    pub port: u16,
    /// The host, or `.` for "not served here".
    pub target: String,
}

/// What the server answers for.
#[derive(Clone, Debug)]
pub struct Zones {
    /// The apex of each zone, such as `test`. What lies outside is refused.
    pub names: Vec<String>,
    /// The lifetime of answers, also of negative ones.
    pub ttl: Duration,
}

impl Zones {
    /// Zones with a lifetime of one second.
    pub fn new<N: Into<String>>(names: impl IntoIterator<Item = N>) -> Self {
        Self { names: names.into_iter().map(Into::into).collect(), ttl: Duration::from_secs(1) }
    }
}

/// What a name can suffer from instead of being answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// SERVFAIL.
    Failure,
    /// REFUSED.
    Refusal,
    /// No answer at all.
    Silence,
}

/// Why a name cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no DNS name")]
pub struct InvalidName(String);

/// A running server. Dropping it ends its tasks.
pub struct DnsServer {
    records: Arc<Records>,
    server: Server<Handler>,
    local_addr: SocketAddr,
}

impl DnsServer {
    /// Serves `zones` on the UDP and the TCP port of `addr` (0: any that is free for both).
    pub async fn start(addr: SocketAddr, zones: Zones) -> io::Result<Self> {
        let invalid = |error: InvalidName| io::Error::new(io::ErrorKind::InvalidInput, error);
        let names = zones.names.iter().map(|name| parse(name)).collect::<Result<_, _>>().map_err(invalid)?;
        let ttl_s = u32::try_from(zones.ttl.as_secs()).unwrap_or(u32::MAX);
        let (udp, tcp) = bind(addr).await?;
        let local_addr = udp.local_addr()?;
        let records = Arc::new(Records { zones: names, ttl_s: ttl_s.into(), by_name: Mutex::default() });
        let mut server = Server::new(Handler { records: Arc::clone(&records) });
        server.register_socket(udp);
        server.register_listener(tcp, TCP_IDLE_MAX, TCP_ANSWERS_MAX);
        Ok(Self { records, server, local_addr })
    }

    /// Where it answers, over UDP and TCP.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Replaces the SRV records of `service` (such as `_mimi-fed`) over UDP at `domain`. Without records, the name goes.
    pub fn set_srv(&self, domain: &str, service: &str, records: Vec<SrvRecord>) -> Result<(), InvalidName> {
        let data = records.into_iter().map(|record| {
            let target = parse(&record.target)?.into();
            Ok(RData::SRV(SRV::new(record.priority, record.weight, record.port, target)))
        });
        let data = data.collect::<Result<Vec<_>, _>>()?;
        let name = parse(&format!("{service}._udp.{domain}"))?;
        self.records.replace(name, &[RecordType::SRV], data);
        Ok(())
    }

    /// Replaces the addresses (A and AAAA) of `name`. Without addresses, the name goes unless it has other records.
    pub fn set_a(&self, name: &str, addresses: Vec<IpAddr>) -> Result<(), InvalidName> {
        let data = addresses.into_iter().map(|address| match address {
            IpAddr::V4(address) => RData::A(A(address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(address)),
        });
        self.records.replace(parse(name)?, &[RecordType::A, RecordType::AAAA], data.collect());
        Ok(())
    }

    /// Changes the lifetime of answers from now on, also of negative ones.
    pub fn set_ttl(&self, ttl: Duration) {
        self.records.ttl_s.store(u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// Makes questions for `name` and everything below it end in `trouble`, or no longer.
    pub fn set_trouble(&self, name: &str, trouble: Option<Trouble>) -> Result<(), InvalidName> {
        let name = parse(name)?;
        let mut state = self.records.state();
        match trouble {
            Some(trouble) => state.troubles.insert(name, trouble),
            None => state.troubles.remove(&name),
        };
        Ok(())
    }

    /// How many questions for `name` came in, of any type.
    pub fn questions(&self, name: &str) -> Result<u64, InvalidName> {
        Ok(self.records.state().questions.get(&parse(name)?).copied().unwrap_or(0))
    }

    /// Ends the server and waits for its tasks.
    pub async fn stop(mut self) {
        // It tells of tasks that ended with an error; that the sockets are closed is all that matters here.
        let _ = self.server.shutdown_gracefully().await;
    }
}

impl std::fmt::Debug for DnsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DnsServer({})", self.local_addr)
    }
}

/// A UDP and a TCP socket with one port.
async fn bind(addr: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut attempt = 1;
    loop {
        let udp = UdpSocket::bind(addr).await?;
        match TcpListener::bind(udp.local_addr()?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            // The system chose a port that something else has over TCP.
            Err(_) if addr.port() == 0 && attempt < PORT_ATTEMPTS_MAX => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

fn parse(name: &str) -> Result<LowerName, InvalidName> {
    let mut name = Name::from_str(name).map_err(|_| InvalidName(name.to_owned()))?;
    name.set_fqdn(true);
    Ok(name.into())
}

/// What the handler and [`DnsServer`] share.
struct Records {
    zones: BTreeSet<LowerName>,
    ttl_s: AtomicU32,
    by_name: Mutex<State>,
}

#[derive(Default)]
struct State {
    data: BTreeMap<LowerName, Vec<RData>>,
    troubles: BTreeMap<LowerName, Trouble>,
    questions: BTreeMap<LowerName, u64>,
}

/// What a question gets.
enum Answer {
    Records(Vec<Record>),
    /// NODATA or NXDOMAIN, with the zone's SOA.
    Negative(ResponseCode, Box<Record>),
    Code(ResponseCode),
    Silence,
}

impl Records {
    fn ttl_s(&self) -> u32 {
        self.ttl_s.load(Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace(&self, name: LowerName, types: &[RecordType], data: Vec<RData>) {
        let mut state = self.state();
        let of_name = state.data.entry(name.clone()).or_default();
        of_name.retain(|data| !types.contains(&data.record_type()));
        of_name.extend(data);
        if of_name.is_empty() {
            state.data.remove(&name);
        }
    }

    fn answer(&self, name: &LowerName, wanted: RecordType) -> Answer {
        let mut state = self.state();
        *state.questions.entry(name.clone()).or_default() += 1;
        if let Some(trouble) = state.troubles.iter().find(|(of, _)| of.zone_of(name)).map(|(_, trouble)| *trouble) {
            return match trouble {
                Trouble::Failure => Answer::Code(ResponseCode::ServFail),
                Trouble::Refusal => Answer::Code(ResponseCode::Refused),
                Trouble::Silence => Answer::Silence,
            };
        }
        let Some(zone) = self.zones.iter().find(|zone| zone.zone_of(name)) else {
            return Answer::Code(ResponseCode::Refused);
        };
        let soa = Box::new(self.soa(zone));
        let data = state.data.get(name);
        let wanted_data = data.into_iter().flatten().filter(|data| data.record_type() == wanted || wanted == RecordType::ANY);
        let mut records: Vec<Record> =
            wanted_data.map(|data| Record::from_rdata(name.into(), self.ttl_s(), data.clone())).collect();
        if name == zone && wanted == RecordType::SOA {
            records.push((*soa).clone());
        }
        // A name also exists if something lies below it (RFC 8020).
        let exists = || name == zone || data.is_some() || state.data.keys().any(|other| name.zone_of(other));
        match (records.is_empty(), exists()) {
            (false, _) => Answer::Records(records),
            (true, true) => Answer::Negative(ResponseCode::NoError, soa),
            (true, false) => Answer::Negative(ResponseCode::NXDomain, soa),
        }
    }

    /// The zone's SOA, whose minimum is how long resolvers keep a negative answer (RFC 2308).
    fn soa(&self, zone: &LowerName) -> Record {
        let zone = Name::from(zone);
        let soa = SOA::new(zone.clone(), zone.clone(), 1, 3600, 600, 86_400, self.ttl_s());
        Record::from_rdata(zone, self.ttl_s(), RData::SOA(soa))
    }
}

/// Answers every question from [`Records`].
struct Handler {
    records: Arc<Records>,
}

impl Handler {
    async fn handle<R: ResponseHandler>(&self, request: &Request, mut response: R) -> ResponseInfo {
        let metadata = Metadata::response_from_request(&request.metadata);
        let answer = match request.request_info() {
            Ok(info) if request.metadata.op_code == OpCode::Query => {
                self.records.answer(info.query.name(), info.query.query_type())
            }
            Ok(_) => Answer::Code(ResponseCode::NotImp),
            Err(_) => Answer::Code(ResponseCode::FormErr),
        };
        let (code, answers, soa) = match answer {
            Answer::Silence => return silent(request),
            Answer::Code(code) => (code, Vec::new(), None),
            Answer::Records(records) => (ResponseCode::NoError, records, None),
            Answer::Negative(code, soa) => (code, Vec::new(), Some(*soa)),
        };
        let mut metadata = metadata;
        metadata.response_code = code;
        metadata.authoritative = matches!(code, ResponseCode::NoError | ResponseCode::NXDomain);
        let message = MessageResponseBuilder::from_message_request(request).build(metadata, &answers, [], &soa, []);
        // A client that went away does not concern a test server.
        response.send_response(message).await.unwrap_or_else(|_| silent(request))
    }
}

/// What the server's log is told of a question without an answer.
fn silent(request: &Request) -> ResponseInfo {
    let metadata = Metadata::new(request.metadata.id, MessageType::Response, request.metadata.op_code);
    Header { metadata, counts: HeaderCounts::default() }.into()
}

impl RequestHandler for Handler {
    // Written out as the `async_trait` attribute would: it is not worth a dependency.
    fn handle_request<'life0, 'life1, 'async_trait, R, T>(
        &'life0 self,
        request: &'life1 Request,
        response_handle: R,
    ) -> Pin<Box<dyn Future<Output = ResponseInfo> + Send + 'async_trait>>
    where
        R: ResponseHandler + 'async_trait,
        T: Time + 'async_trait,
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(self.handle(request, response_handle))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use hickory_resolver::TokioResolver;
    use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
    use hickory_resolver::net::NetError;
    use hickory_resolver::net::runtime::TokioRuntimeProvider;

    use super::*;

    const LOCALHOST: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    /// A resolver that asks `server` over `connection` and caches nothing.
    fn resolver(server: &DnsServer, connection: ConnectionConfig) -> TokioResolver {
        resolver_with_timeout(server, connection, Duration::from_secs(20))
    }

    fn resolver_with_timeout(server: &DnsServer, mut connection: ConnectionConfig, timeout: Duration) -> TokioResolver {
        connection.port = server.local_addr().port();
        let name_server = NameServerConfig::new(server.local_addr().ip(), true, vec![connection]);
        let config = ResolverConfig::from_name_servers(vec![name_server]);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        (options.cache_size, options.timeout, options.attempts) = (0, timeout, 1);
        builder.build().unwrap()
    }

    async fn server() -> DnsServer {
        DnsServer::start(LOCALHOST, Zones::new(["test"])).await.unwrap()
    }

    fn srv(priority: u16, target: &str) -> SrvRecord {
        SrvRecord { priority, weight: 1, port: 4433, target: target.to_owned() }
    }

    /// What a lookup told, in short.
    async fn lookup(resolver: &TokioResolver, name: &str, wanted: RecordType) -> Result<Vec<String>, ResponseCode> {
        match resolver.lookup(name, wanted).await {
            Ok(found) => {
                let mut texts: Vec<String> = found.answers().iter().map(|record| record.data.to_string()).collect();
                texts.sort();
                Ok(texts)
            }
            Err(error) => Err(code_of(&error)),
        }
    }

    fn code_of(error: &NetError) -> ResponseCode {
        use hickory_resolver::net::DnsError;
        match error {
            NetError::Dns(DnsError::NoRecordsFound(no_records)) => no_records.response_code,
            NetError::Dns(DnsError::ResponseCode(code)) => *code,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn records_are_served_over_both_protocols_and_change_while_it_runs() {
        let server = server().await;
        server.set_srv("a.test", "_mimi-fed", vec![srv(10, "one.a.test"), srv(20, "two.a.test")]).unwrap();
        server.set_srv("b.test", "_mimi-client", vec![srv(0, ".")]).unwrap();
        server.set_a("one.a.test", vec![[127, 0, 0, 2].into(), "::1".parse().unwrap()]).unwrap();
        for connection in [ConnectionConfig::udp(), ConnectionConfig::tcp()] {
            let resolver = resolver(&server, connection);
            let found = lookup(&resolver, "_mimi-fed._udp.a.test.", RecordType::SRV).await;
            assert_eq!(found, Ok(vec!["10 1 4433 one.a.test.".to_owned(), "20 1 4433 two.a.test.".to_owned()]));
            assert_eq!(lookup(&resolver, "_MIMI-client._udp.b.test.", RecordType::SRV).await, Ok(vec!["0 1 4433 .".to_owned()]));
            assert_eq!(lookup(&resolver, "one.a.test.", RecordType::A).await, Ok(vec!["127.0.0.2".to_owned()]));
            assert_eq!(lookup(&resolver, "one.a.test.", RecordType::AAAA).await, Ok(vec!["::1".to_owned()]));
        }
        let resolver = resolver(&server, ConnectionConfig::udp());
        server.set_srv("a.test", "_mimi-fed", vec![srv(5, "three.a.test")]).unwrap();
        let found = lookup(&resolver, "_mimi-fed._udp.a.test.", RecordType::SRV).await;
        assert_eq!(found, Ok(vec!["5 1 4433 three.a.test.".to_owned()]));
        assert_eq!(server.questions("_mimi-fed._udp.a.test"), Ok(3));
        server.stop().await;
    }

    #[tokio::test]
    async fn answers_carry_the_lifetime_of_their_zone() {
        let zones = Zones { ttl: Duration::from_secs(77), ..Zones::new(["test"]) };
        let server = DnsServer::start(LOCALHOST, zones).await.unwrap();
        server.set_a("a.test", vec![[127, 0, 0, 1].into()]).unwrap();
        let resolver = resolver(&server, ConnectionConfig::udp());
        let found = resolver.lookup("a.test.", RecordType::A).await.unwrap();
        assert!(found.answers().iter().all(|record| record.ttl == 77));
        server.set_ttl(Duration::from_secs(5));
        let found = resolver.lookup("a.test.", RecordType::A).await.unwrap();
        assert!(found.answers().iter().all(|record| record.ttl == 5));
        server.set_ttl(Duration::from_secs(77));
        let Err(NetError::Dns(hickory_resolver::net::DnsError::NoRecordsFound(none))) =
            resolver.lookup("b.test.", RecordType::A).await
        else {
            panic!("there is no b.test")
        };
        assert_eq!(none.negative_ttl, Some(77));
    }

    #[tokio::test]
    async fn absence_is_told_apart() {
        let server = server().await;
        let resolver = resolver(&server, ConnectionConfig::udp());
        server.set_srv("a.test", "_mimi-fed", vec![srv(10, "one.a.test")]).unwrap();
        // No such name; a name without such records; a name that only has others below it; a name of nobody's here.
        for (name, code) in [
            ("_mimi-client._udp.a.test.", ResponseCode::NXDomain),
            ("_mimi-fed._udp.nowhere.test.", ResponseCode::NXDomain),
            ("_mimi-fed._udp.a.test.", ResponseCode::NoError),
            ("_udp.a.test.", ResponseCode::NoError),
            ("a.test.", ResponseCode::NoError),
            ("test.", ResponseCode::NoError),
            ("a.example.", ResponseCode::Refused),
        ] {
            assert_eq!(lookup(&resolver, name, RecordType::A).await, Err(code), "{name}");
        }
        server.set_srv("a.test", "_mimi-fed", Vec::new()).unwrap();
        assert_eq!(lookup(&resolver, "_mimi-fed._udp.a.test.", RecordType::SRV).await, Err(ResponseCode::NXDomain));
    }

    #[tokio::test]
    async fn trouble_is_a_failure_or_a_silence() {
        let server = server().await;
        let resolver = resolver(&server, ConnectionConfig::udp());
        server.set_a("one.a.test", vec![[127, 0, 0, 2].into()]).unwrap();
        server.set_trouble("a.test", Some(Trouble::Failure)).unwrap();
        assert_eq!(lookup(&resolver, "one.a.test.", RecordType::A).await, Err(ResponseCode::ServFail));
        server.set_trouble("a.test", Some(Trouble::Refusal)).unwrap();
        assert_eq!(lookup(&resolver, "one.a.test.", RecordType::A).await, Err(ResponseCode::Refused));
        server.set_trouble("a.test", Some(Trouble::Silence)).unwrap();
        let impatient = resolver_with_timeout(&server, ConnectionConfig::udp(), Duration::from_millis(50));
        let error = impatient.lookup("one.a.test.", RecordType::A).await.unwrap_err();
        assert!(matches!(error, NetError::Timeout), "{error:?}");
        server.set_trouble("a.test", None).unwrap();
        assert_eq!(lookup(&resolver, "one.a.test.", RecordType::A).await, Ok(vec!["127.0.0.2".to_owned()]));
    }

    #[tokio::test]
    async fn the_port_is_free_again_once_it_has_stopped() {
        // A port that the system gives to nobody who asks for any, so that no other test takes it in between.
        let start =
            async || DnsServer::start((LOCALHOST.ip(), rand::random_range(10_000..30_000)).into(), Zones::new(["test"])).await;
        let server = loop {
            if let Ok(server) = start().await {
                break server;
            }
        };
        let address = server.local_addr();
        server.stop().await;
        let again = DnsServer::start(address, Zones::new(["test"])).await.unwrap();
        assert_eq!(again.local_addr(), address);
        assert!(matches!(again.set_a("a..test", Vec::new()), Err(InvalidName(_))));
    }
}
