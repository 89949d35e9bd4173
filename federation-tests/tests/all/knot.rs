//! Discovery against a name server that is not ours: Knot DNS, with signed zones and answers that are rarer in ours.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use mimi_node::base::{Domain, limits};
use mimi_node::transport::{Discovered, DiscoveryError, Origin, Resolver, ResolverSettings, Service};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::discovery::until;
use crate::tools::{skip, tool};

/// Where Debian puts it is in no user's path.
const PROGRAM: &str = "/usr/sbin/knotd";

/// A name server with the zones `plain.test`, `signed.test` and, without any content, `broken.test`.
struct Knot {
    dir: TempDir,
    address: SocketAddr,
    process: Child,
}

impl Knot {
    /// Starts one whose zone `plain.test` has `records`; `None`, and why, where there is no such program.
    async fn start(records: &str) -> Result<Self, String> {
        tool(PROGRAM, &["--version"]).await?;
        let dir = tempfile::tempdir().expect("a directory");
        let address = free_address();
        for place in ["zones", "keys", "run"] {
            std::fs::create_dir(dir.path().join(place)).expect("a directory");
        }
        let mut process = Command::new(PROGRAM);
        process.arg("--config").arg(dir.path().join("knot.conf")).stdin(Stdio::null()).kill_on_drop(true);
        let log = std::fs::File::create(dir.path().join("log")).expect("a log");
        process.stdout(log.try_clone().expect("a log")).stderr(log);
        configure(dir.path(), address, &["plain.test", "signed.test", "broken.test"]);
        write_zone(dir.path(), "plain.test", 1, records);
        write_zone(dir.path(), "signed.test", 1, "$TTL 3600\n_mimi-fed._udp SRV 1 0 7001 n\nn A 192.0.2.7\n");
        let knot = Self { process: process.spawn().expect("it starts"), dir, address };
        knot.says("server started").await;
        Ok(knot)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    async fn says(&self, words: &str) {
        until(&format!("{words:?} in\n{}", self.log()), async || self.log().contains(words).then_some(())).await;
    }

    /// Has it read its configuration and its zones again.
    fn reload(&self) {
        let id = self.process.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw).expect("it runs");
        kill_process(id, Signal::HUP).expect("it takes a signal");
    }

    fn resolver(&self) -> Resolver {
        Resolver::new(&ResolverSettings {
            servers: vec![self.address],
            ttl_min: Duration::from_secs(1),
            ..ResolverSettings::default()
        })
        .expect("a resolver")
    }
}

/// A loopback address of our own with a port that is free for UDP and TCP.
fn free_address() -> SocketAddr {
    loop {
        let ip = Ipv4Addr::new(127, rand::random_range(1..=254), rand::random_range(1..=254), 1);
        let udp = UdpSocket::bind((ip, 0)).expect("a port");
        let address = udp.local_addr().expect("an address");
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

fn configure(dir: &Path, address: SocketAddr, zones: &[&str]) {
    let at = |place: &str| dir.join(place).display().to_string();
    let mut text = format!(
        "server:\n    rundir: \"{}\"\n    listen: [ {}@{} ]\n    udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1\n\
         log:\n  - target: stderr\n    any: info\n\
         database:\n    storage: \"{}\"\n\
         template:\n  - id: default\n    storage: \"{}\"\n    zonefile-sync: -1\nzone:\n",
        at("run"),
        address.ip(),
        address.port(),
        at("keys"),
        at("zones"),
    );
    for zone in zones {
        text.push_str(&format!("  - domain: {zone}\n"));
        if zone.starts_with("signed") {
            text.push_str("    dnssec-signing: on\n");
        }
    }
    std::fs::write(dir.join("knot.conf"), text).expect("written");
}

fn write_zone(dir: &Path, zone: &str, serial: u32, records: &str) {
    let head = format!("$ORIGIN {zone}.\n@ 60 SOA ns admin {serial} 3600 600 86400 1\n@ 60 NS ns\nns 60 A 127.0.0.1\n");
    let path: PathBuf = dir.join("zones").join(format!("{zone}.zone"));
    std::fs::write(path, head + records).expect("written");
}

fn domain(text: &str) -> Domain {
    text.parse().expect("a domain")
}

/// Each target's host and port, and its addresses.
fn places(discovered: &Discovered) -> Vec<(String, u16, Vec<IpAddr>)> {
    let place = |target: &mimi_node::transport::Target| {
        let port = target.addresses.first().map_or(0, SocketAddr::port);
        (target.host.clone(), port, target.addresses.iter().map(SocketAddr::ip).collect())
    };
    discovered.targets.iter().map(place).collect()
}

/// The records of `plain.test`, with `b` at 192.0.2.`last`.
fn records(last: u8) -> String {
    let mut text = format!(
        "$TTL 2\n\
         _mimi-fed._udp.b SRV 20 0 7003 second.b\n_mimi-fed._udp.b SRV 5 0 7001 first.b\n\
         first.b A 192.0.2.{last}\nfirst.b AAAA 2001:db8::{last}\nsecond.b A 192.0.2.99\n\
         _mimi-fed._udp.off SRV 0 0 0 .\n\
         _mimi-fed._udp.alias CNAME more.alias\nmore.alias CNAME _mimi-fed._udp.b\n\
         _mimi-fed._udp.nodata TXT \"something else\"\n\
         _mimi-fed._udp.homeless SRV 0 0 7001 nowhere.b\n\
         *.wild SRV 3 0 7005 second.b\n\
         $TTL 3600\n"
    );
    for n in 0..40 {
        let host = format!("a-rather-long-name-of-a-host-{n:02}.many");
        text.push_str(&format!("_mimi-fed._udp.many SRV {n} 0 7001 {host}\n{host} A 192.0.2.{}\n", n + 1));
    }
    text
}

// Shows: what Knot DNS serves is understood: targets in the order of their priorities, a target ".", aliases, a wildcard, an answer
// that only TCP can carry, a signed zone; the ways of having no answer are told apart; a peer that moved is found within its TTL, and
// at once after a flush; an old answer serves while the server refuses to answer.
// Fails if: an answer is misread, two ways of failing look alike, an old address outlives its TTL by more than a slow machine explains.
// Is no failure: how long the server takes to read a changed zone.
#[tokio::test]
async fn knots_answers_are_understood() {
    let knot = match Knot::start(&records(1)).await {
        Ok(knot) => knot,
        Err(why) => return skip("knot", &why),
    };
    let resolver = knot.resolver();
    let ask = async |name: &str| resolver.discover(Service::Federation, &domain(name)).await;
    let b = |last: u8| {
        let first = [IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)]), IpAddr::from([192, 0, 2, last])];
        vec![
            ("first.b.plain.test.".to_owned(), 7001, first.to_vec()),
            ("second.b.plain.test.".to_owned(), 7003, vec![[192, 0, 2, 99].into()]),
        ]
    };

    let found = ask("b.plain.test").await.expect("targets");
    // The last octet reads the same in hexadecimal as long as it has one digit.
    assert_eq!((places(&found), found.origin), (b(1), Origin::Asked));
    assert_eq!(places(&ask("alias.plain.test").await.expect("through two aliases")), b(1));
    // Refused by whoever owns the name, in three ways.
    let refused = ask("off.plain.test").await;
    assert!(matches!(refused, Err(DiscoveryError::RefusesFederation { .. })), "{refused:?}");
    let refused = ask("nodata.plain.test").await;
    assert!(matches!(refused, Err(DiscoveryError::NoRecords { .. })), "{refused:?}");
    let refused = ask("nobody.plain.test").await;
    assert!(matches!(refused, Err(DiscoveryError::NoSuchDomain { .. })), "{refused:?}");
    let refused = ask("homeless.plain.test").await;
    assert!(matches!(refused, Err(DiscoveryError::NoRecords { .. })), "{refused:?}");
    // A zone that the server cannot serve, and one that it does not have.
    for name in ["broken.test", "elsewhere.example"] {
        let failed = ask(name).await;
        assert!(matches!(failed, Err(DiscoveryError::ServerFailure { .. })), "{name}: {failed:?}");
    }
    // `*.wild` covers every name below, so the underscored one as well.
    let wild = ask("any.wild.plain.test").await.expect("by the wildcard");
    assert_eq!(places(&wild), [("second.b.plain.test.".to_owned(), 7005, vec![[192, 0, 2, 99].into()])]);
    // 40 records of 50 octets and more do not fit into a datagram.
    let many = ask("many.plain.test").await.expect("by TCP");
    assert_eq!(many.targets.len(), limits::SRV_RECORDS_MAX);
    assert_eq!(many.targets[0].host, "a-rather-long-name-of-a-host-00.many.plain.test.");
    // Signatures are among a signed zone's records.
    let signed = ask("signed.test").await.expect("of a signed zone");
    assert_eq!(places(&signed), [("n.signed.test.".to_owned(), 7001, vec![[192, 0, 2, 7].into()])]);

    // It moves, and the answer is two seconds old at most.
    write_zone(knot.dir.path(), "plain.test", 2, &records(2));
    knot.reload();
    knot.says("serial 1 -> 2").await;
    until("moved", async || Some(places(&ask("b.plain.test").await.expect("targets"))).filter(|places| *places == b(2))).await;
    // And again, with an answer that would be good for an hour.
    write_zone(knot.dir.path(), "plain.test", 3, &records(3).replace("$TTL 2\n", "$TTL 3600\n"));
    knot.reload();
    knot.says("serial 2 -> 3").await;
    until("moved", async || Some(places(&ask("b.plain.test").await.expect("targets"))).filter(|places| *places == b(3))).await;
    write_zone(knot.dir.path(), "plain.test", 4, &records(4));
    knot.reload();
    knot.says("serial 3 -> 4").await;
    let kept = ask("b.plain.test").await.expect("targets");
    assert_eq!((places(&kept), kept.origin), (b(3), Origin::Cached));
    resolver.flush_domain(&domain("b.plain.test"));
    assert_eq!(places(&ask("b.plain.test").await.expect("targets")), b(4), "at once");

    // It does not serve the zone any more: what it said last stands, and a name that was never asked for has failed.
    configure(knot.dir.path(), knot.address, &["signed.test", "broken.test"]);
    knot.reload();
    until("stale", async || Some(ask("b.plain.test").await.expect("old targets")).filter(|found| found.origin == Origin::Stale))
        .await;
    assert_eq!(places(&ask("b.plain.test").await.expect("old targets")), b(4));
    let failed = ask("never-asked.plain.test").await;
    assert!(matches!(failed, Err(DiscoveryError::ServerFailure { .. })), "{failed:?}");
}
