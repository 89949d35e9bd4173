//! What an operator sees of a running node and can tell it: the admin interface, the commands that ask there, and the metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use federation_tests::conversation::seed;
use federation_tests::people::{Person, Room};
use federation_tests::world::World;
use mimi_node::identity::TlsCa;
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::process::{Output, PATIENCE, PROGRAM, run};

const METRICS_DOCUMENTATION: &str = include_str!("../../../docs/metrics.md");

/// Runs a command of `mimi-node` that asks the node of a domain.
async fn command(world: &World, index: usize, arguments: &[&str]) -> Output {
    let config = world.site_dir(index).join("node.toml");
    let config = config.to_str().expect("a UTF-8 path");
    run([&["node"], arguments, &["--config", config]].concat()).await
}

/// Its answer as JSON.
async fn told(world: &World, index: usize, arguments: &[&str]) -> Value {
    let text = command(world, index, &[arguments, &["--json"]].concat()).await.ok();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Asks until the answer is as wanted; panics with the last one when it never is.
async fn until(world: &World, index: usize, arguments: &[&str], wanted: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let asking = async {
        loop {
            last = told(world, index, arguments).await;
            if wanted(&last) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, asking).await.is_ok();
    assert!(in_time, "{arguments:?} never was as wanted: {last}\n{}", world.log_tails(20));
    last
}

/// Has a member of a group send messages, which its hub must accept.
async fn send(room: &Room, by: &Person, leaf: u32, count: usize) {
    for _ in 0..count {
        let message = room.message_body(room.group.clone().private_message(1));
        let answer = by.ask(&room.request(leaf, &by.device.key, message)).await.expect("an answer");
        assert!(answer.is_ok(), "{answer:?}");
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

// Shows: each command of an operator, as a table and as JSON: what is up and what was delivered; a peer that is down, with its last
// error, what waits for it and how old that is, rising; a hold that keeps it, over a restart of the node; a release after which all
// of it arrives; a denial; what is said of a peer; flushes; health by its exit code. And that metrics say the same.
// Fails if: anything shown is not so, a table lacks a row, a frame is lost, a held frame is delivered.
// Is no failure: how long anything takes; that frames are sent more than once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_sees_a_peer_go_and_come_back_and_decides_about_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), 2).await.expect("a world");
    let a = world.spawn(0, PROGRAM.as_ref(), None).await.expect("a node");
    let b = world.spawn(1, PROGRAM.as_ref(), None).await.expect("a node");
    let mut rng = ChaCha20Rng::seed_from_u64(seed(41));
    let mut alice = Person::enrol(&world, 0, "alice", &mut rng).await.expect("a user");
    let bob = Person::enrol(&world, 1, "bob", &mut rng).await.expect("a user");
    assert_eq!(told(&world, 0, &["peers", "list"]).await, json!([]), "nobody yet");

    let mut room = Room::create(&alice, &mut rng).await.expect("a group");
    room.add((&alice, 0), &[&bob], &mut rng).await.expect("a member");
    send(&room, &alice, 0, 2).await;
    let show = &["peers", "show", "b.test"];
    let peer = until(&world, 0, show, |peer| {
        peer["state"] == "up" && peer["queued"]["frames"] == 0 && peer["counts"]["frames_delivered"].as_u64() >= Some(3)
    })
    .await;
    assert_eq!(peer["connected"], json!(world.site(1).federation.to_string()), "{peer}");
    assert!(number(&peer["certificate_days_left"]) >= 88 && peer["last_error"].is_null(), "{peer}");
    assert!(peer["since"].as_str().is_some_and(|since| since.len() == "2026-01-01T00:00:00.000Z".len()), "{peer}");
    let delivered = number(&peer["counts"]["frames_delivered"]);
    until(&world, 1, &["peers", "show", "a.test"], |peer| number(&peer["counts"]["frames_received"]) >= delivered).await;

    // The same for people.
    let table = command(&world, 0, &["peers", "list"]).await.ok();
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("PEER") && lines.len() == 2, "{table}");
    assert!(lines[1].starts_with("b.test  up") && lines[1].contains(&world.site(1).federation.to_string()), "{table}");
    let details = command(&world, 0, show).await.ok();
    assert!(
        details.lines().any(|line| line.starts_with("frames delivered") && line.ends_with(&delivered.to_string())),
        "{details}"
    );
    assert!(command(&world, 0, &["lanes"]).await.ok().starts_with("PEER"));
    assert!(command(&world, 0, &["dead-letters"]).await.ok().starts_with("DIED AT"));
    assert_eq!(told(&world, 0, &["dead-letters", "b.test"]).await, json!([]));
    assert!(command(&world, 0, &["health"]).await.ok().contains("a.test is ready"));

    // It goes.
    b.kill().await.expect("killed");
    send(&room, &alice, 0, 3).await;
    let peer = until(&world, 0, show, |peer| peer["failures"].as_u64() >= Some(1) && peer["state"] == "backing_off").await;
    assert!(peer["queued"]["frames"] == 3 && peer["queued"]["lanes"] == 1 && peer["connected"].is_null(), "{peer}");
    assert!(peer["retry_at"].as_str() > peer["since"].as_str(), "{peer}");
    assert!(peer["last_error"]["kind"].is_string() && peer["last_error"]["detail"].as_str() > Some(""), "{peer}");
    let age = number(&peer["queued"]["oldest_age_seconds"]);
    until(&world, 0, show, |peer| number(&peer["queued"]["oldest_age_seconds"]) > age).await;
    let lanes = told(&world, 0, &["lanes", "b.test"]).await;
    assert!(
        lanes[0]["frames"] == 3 && lanes[0]["group"] == room.uri.to_string() && lanes.as_array().map(Vec::len) == Some(1),
        "{lanes}"
    );
    assert!(command(&world, 0, &["lanes"]).await.ok().contains(&room.uri.to_string()));

    // It is held, over a restart of the node, and comes back: nothing is sent.
    let peer = told(&world, 0, &["peers", "hold", "b.test", "--reason", "they move house"]).await;
    assert_eq!((&peer["state"], &peer["policy"]["reason"]), (&json!("held"), &json!("they move house")), "{peer}");
    a.kill().await.expect("killed");
    assert!(command(&world, 0, &["peers", "list"]).await.sentence().contains("no node is running"));
    assert_eq!(command(&world, 0, &["health"]).await.status.code(), Some(1));
    let a = world.spawn(0, PROGRAM.as_ref(), None).await.expect("a node");
    let b = world.spawn(1, PROGRAM.as_ref(), None).await.expect("a node");
    assert!(command(&world, 0, &["peers", "retry", "b.test"]).await.ok().contains("held"), "a retry does not end a hold");
    let peer = told(&world, 0, show).await;
    assert!(peer["state"] == "held" && peer["queued"]["frames"] == 3 && peer["counts"]["frames_sent"] == 0, "{peer}");

    // It is released: all of it arrives.
    assert_ne!(told(&world, 0, &["peers", "release", "b.test"]).await["state"], "held");
    let peer = until(&world, 0, show, |peer| peer["state"] == "up" && peer["queued"]["frames"] == 0).await;
    assert_eq!((&peer["counts"]["frames_delivered"], &peer["failures"]), (&json!(3), &json!(0)), "{peer}");
    assert_eq!(number(&told(&world, 1, &["peers", "show", "a.test"]).await["counts"]["frames_received"]), 3);

    // It is denied, and allowed.
    let read = |name: &str| std::fs::read_to_string(world.dir().join(name)).expect("the world's CA");
    let ca = TlsCa::load(&read("ca/ca.pem"), &read("ca/ca.key")).expect("the world's CA");
    alice.reconnect(&world, 0, ca.spki_hash()).await.expect("her node is another process now");
    assert!(command(&world, 0, &["peers", "deny", "b.test", "--reason", "spam"]).await.ok().contains("denied"));
    let peer = told(&world, 0, show).await;
    assert_eq!((&peer["connected"], &peer["policy"]["denied"]), (&Value::Null, &json!("operator")), "{peer}");
    send(&room, &alice, 0, 1).await;
    assert_eq!(told(&world, 0, show).await["queued"]["frames"], 1, "kept");
    assert!(command(&world, 0, &["peers", "allow", "b.test"]).await.ok().contains("b.test"));
    until(&world, 0, show, |peer| peer["state"] == "up" && peer["queued"]["frames"] == 0).await;

    // What is said of it is kept apart from the rest, and forgotten.
    let address = world.site(1).federation.to_string();
    told(&world, 0, &["peers", "set", "b.test", "--address", &address]).await;
    let peer = told(&world, 0, &["peers", "set", "b.test", "--limit", "streams_max=7"]).await;
    let said = json!({ "addresses": [address], "limits": { "streams_max": 7 } });
    assert_eq!((&peer["policy"]["override"], &peer["policy"]["limits"]["streams_max"]), (&said, &json!(7)), "{peer}");
    let refused = command(&world, 0, &["peers", "set", "b.test", "--limit", "colour=7"]).await.sentence();
    assert!(refused.contains("colour"), "{refused}");
    assert_eq!(told(&world, 0, &["peers", "set", "b.test", "--forget"]).await["policy"]["override"], Value::Null);
    assert_eq!(told(&world, 0, &["peers", "flush", "b.test"]).await, json!({ "flushed": "b.test" }));
    assert!(command(&world, 0, &["peers", "flush"]).await.ok().contains("forgotten"));
    assert!(command(&world, 0, &["peers", "hold", "a.test"]).await.sentence().contains("the domain that this node serves"));
    a.kill().await.expect("killed");
    b.kill().await.expect("killed");
}

/// A TCP port of loopback that is free now.
async fn free_port() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    listener.local_addr().expect("an address")
}

/// Sends octets as they are and reads until the other side ends; status and body.
async fn http(address: SocketAddr, request: &str) -> (u16, String) {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        // The answer may come, and the connection end, before everything is written.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).expect("text")
    };
    let answer = tokio::time::timeout(PATIENCE, exchange).await.expect("it ends");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no status: {head}")), body.to_owned())
}

async fn get(address: SocketAddr, path: &str, headers: &str) -> (u16, String) {
    http(address, &format!("GET {path} HTTP/1.1\r\n{headers}\r\n")).await
}

/// Metrics as the OpenMetrics text says them: each family's type, and each sample's value by name and labels.
#[derive(Default)]
struct Metrics {
    types: BTreeMap<String, String>,
    samples: BTreeMap<String, f64>,
}

impl Metrics {
    /// Reads the text and is strict about it: families in one piece, each with help and type before its samples, which have the
    /// suffixes of the type; no sample twice; histograms that rise and end with all; `# EOF` last, and once.
    fn parse(text: &str) -> Result<Self, String> {
        let mut metrics = Self::default();
        let mut family = String::new();
        let (mut helped, mut ended) = (BTreeSet::new(), false);
        for line in text.lines() {
            let wrong = |why: &str| Err(format!("{why}: {line}"));
            if ended {
                return wrong("something after the end");
            }
            if line == "# EOF" {
                ended = true;
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                let Some((name, help)) = rest.split_once(' ') else { return wrong("no help") };
                if help.is_empty() || !helped.insert(name.to_owned()) {
                    return wrong("a family twice, or without a text");
                }
                family = name.to_owned();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                match rest.split_once(' ') {
                    Some((name, kind)) if name == family && ["counter", "gauge", "histogram", "info"].contains(&kind) => {
                        metrics.types.insert(family.clone(), kind.to_owned());
                    }
                    _ => return wrong("not the type of the family before"),
                }
            } else if let Some(rest) = line.strip_prefix("# UNIT ") {
                match rest.split_once(' ') {
                    Some((name, unit)) if name == family && name.ends_with(&format!("_{unit}")) => {}
                    _ => return wrong("not the unit in the family's name"),
                }
            } else {
                let (series, value) = line.rsplit_once(' ').ok_or(format!("no value: {line}"))?;
                let (name, labels) = series.split_once('{').map_or((series, None), |(name, rest)| (name, Some(rest)));
                let suffix = name.strip_prefix(&family).ok_or(format!("not of the family {family}: {line}"))?;
                let suffixes: &[&str] = match metrics.types.get(&family).map(String::as_str) {
                    Some("counter") => &["_total"],
                    Some("gauge") => &[""],
                    Some("info") => &["_info"],
                    Some("histogram") => &["_bucket", "_count", "_sum"],
                    _ => return wrong("no type before it"),
                };
                if !suffixes.contains(&suffix) {
                    return wrong("not a suffix of its type");
                }
                if let Some(labels) = labels {
                    check_labels(labels).map_err(|why| format!("{why}: {line}"))?;
                }
                let value: f64 = value.parse().map_err(|_| format!("not a number: {line}"))?;
                if metrics.samples.insert(series.to_owned(), value).is_some() {
                    return wrong("a sample twice");
                }
            }
        }
        if !ended {
            return Err("it does not end".to_owned());
        }
        metrics.check_histograms(text).map(|()| metrics)
    }

    fn check_histograms(&self, text: &str) -> Result<(), String> {
        for (name, _) in self.types.iter().filter(|(_, kind)| *kind == "histogram") {
            let bucket = format!("{name}_bucket{{");
            // In the order of the text.
            let counts: Vec<f64> = text
                .lines()
                .filter(|line| line.starts_with(&bucket))
                .filter_map(|line| line.rsplit_once(' ')?.1.parse().ok())
                .collect();
            let all = self.value(&format!("{name}_count"));
            let last = self.value(&format!("{name}_bucket{{le=\"+Inf\"}}"));
            if !counts.is_sorted() || last != all || counts.last().copied() != last || last.is_none() {
                return Err(format!("{name} is no histogram: {counts:?}, {last:?} of {all:?}"));
            }
        }
        Ok(())
    }

    fn value(&self, series: &str) -> Option<f64> {
        self.samples.get(series).copied()
    }
}

/// `key="value",…}`
fn check_labels(text: &str) -> Result<(), &'static str> {
    let mut rest = text.strip_suffix('}').ok_or("labels without an end")?;
    let mut keys = BTreeSet::new();
    loop {
        let (key, after) = rest.split_once("=\"").ok_or("a label without a value")?;
        let (value, after) = after.split_once('"').ok_or("a value without an end")?;
        let is_word = |c: char| c.is_ascii_lowercase() || c == '_';
        if key.is_empty() || !key.chars().all(is_word) || !keys.insert(key) || value.contains(['\\', '\n']) {
            return Err("not a label");
        }
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(()),
            None => return Err("something after a value"),
        }
    }
}

#[test]
fn the_parser_is_strict() {
    let good = "# HELP x_y Text.\n# TYPE x_y counter\nx_y_total{a=\"b\",c=\"d.e\"} 3\nx_y_total 1\n# EOF\n";
    assert_eq!(Metrics::parse(good).expect("good").value("x_y_total"), Some(1.0));
    for (from, to) in [
        ("# EOF\n", ""),
        ("# EOF\n", "# EOF\n# EOF\n"),
        ("# TYPE x_y counter\n", ""),
        ("counter", "number"),
        ("x_y_total 1", "x_y 1"),
        ("x_y_total 1", "z_total 1"),
        ("x_y_total 1", "x_y_total one"),
        ("x_y_total 1", "x_y_total{a=\"b\",c=\"d.e\"} 4"),
        ("a=\"b\",", "a=\"b\""),
        ("a=\"b\"", "a=b"),
        ("c=\"d.e\"", "a=\"d.e\""),
        ("\"}", "\""),
        ("# HELP x_y Text.\n", "# HELP x_y Text.\n# HELP x_y Text.\n"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert!(bad != good && Metrics::parse(&bad).is_err(), "{bad}");
    }
}

// Shows: metrics are text that a strict reader takes, and each documented one is there, with its type; what has happened shows in
// them. On loopback TCP only programs of this machine are answered: no web page, no other host. Who sends little and slowly, or too
// much, is cut off, and keeps nobody at the socket from being answered.
// Fails if: a documented metric is missing or of another type; a request with a bad Host or an Origin is answered; a slow client
// stays, or has others at the socket wait for it.
// Is no failure: that others on TCP wait while slow ones have their time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_reads_every_documented_metric_and_nobody_else_gets_in() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), 2).await.expect("a world");
    let tcp = free_port().await;
    world.change_config(0, |config| config.admin.listen = Some(tcp)).expect("written");
    let a = world.spawn(0, PROGRAM.as_ref(), None).await.expect("a node");
    let b = world.spawn(1, PROGRAM.as_ref(), None).await.expect("a node");
    let mut rng = ChaCha20Rng::seed_from_u64(seed(42));
    let alice = Person::enrol(&world, 0, "alice", &mut rng).await.expect("a user");
    let bob = Person::enrol(&world, 1, "bob", &mut rng).await.expect("a user");
    let mut room = Room::create(&alice, &mut rng).await.expect("a group");
    room.add((&alice, 0), &[&bob], &mut rng).await.expect("a member");
    send(&room, &alice, 0, 2).await;
    send(&room, &bob, 1, 1).await;
    until(&world, 0, &["peers", "show", "b.test"], |peer| peer["queued"]["frames"] == 0 && peer["state"] == "up").await;

    let host = format!("Host: {tcp}\r\n");
    let (status, text) = get(tcp, "/metrics", &host).await;
    assert_eq!(status, 200, "{text}");
    let metrics = Metrics::parse(&text).unwrap_or_else(|why| panic!("{why}\n{text}"));
    let mut documented = 0;
    for line in METRICS_DOCUMENTATION.lines().filter(|line| line.starts_with("| `mimi_") && line.matches('|').count() == 5) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let family = cells[1].trim_matches('`').trim_end_matches("_total").trim_end_matches("_info");
        assert_eq!(metrics.types.get(family).map(String::as_str), Some(cells[2]), "{line}");
        documented += 1;
    }
    assert_eq!(documented, metrics.types.len(), "each is documented, once");
    for (series, least) in [
        ("mimi_peer_state{peer=\"b.test\",state=\"up\"}", 1.0),
        ("mimi_peer_connected{peer=\"b.test\"}", 1.0),
        ("mimi_peer_frames_delivered_total{peer=\"b.test\"}", 3.0),
        ("mimi_peer_requests_received_total{peer=\"b.test\"}", 1.0),
        ("mimi_peer_certificate_left_days{peer=\"b.test\"}", 80.0),
        ("mimi_certificate_left_days", 80.0),
        ("mimi_dials_total{outcome=\"connected\"}", 1.0),
        ("mimi_connections_accepted_total{port=\"client\"}", 1.0),
        ("mimi_connections_accepted_total{port=\"federation\"}", 1.0),
        ("mimi_requests_total{from=\"clients\",service=\"ds\",outcome=\"ok\"}", 4.0),
        ("mimi_requests_total{from=\"peers\",service=\"ds\",outcome=\"ok\"}", 1.0),
        ("mimi_commits_accepted_total", 1.0),
        ("mimi_messages_accepted_total", 3.0),
        ("mimi_storage_writes_total{transaction=\"accept_request\"}", 4.0),
        ("mimi_storage_commit_seconds_count", 4.0),
        ("mimi_dns_questions_total{outcome=\"found\"}", 2.0),
        ("mimi_groups_hot", 1.0),
        ("mimi_queues", 1.0),
        ("mimi_start_time_seconds", 1_600_000_000.0),
    ] {
        assert!(metrics.value(series) >= Some(least), "{series} is {:?}\n{text}", metrics.value(series));
    }

    for headers in [
        "Host: evil.example\r\n".to_owned(),
        format!("Host: evil.example:{}\r\n", tcp.port()),
        format!("{host}Origin: http://{tcp}\r\n"),
        format!("{host}Origin: https://evil.example\r\n"),
        format!("{host}Host: evil.example\r\n"),
    ] {
        let (status, text) = get(tcp, "/peers", &headers).await;
        assert!(status == 403 && text.contains("\"error\":\"forbidden\""), "{headers}: {status} {text}");
    }
    let held = format!("POST /peers/b.test/hold HTTP/1.1\r\n{host}Origin: https://evil.example\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(http(tcp, &held).await.0, 403);
    assert_eq!(told(&world, 0, &["peers", "show", "b.test"]).await["state"], "up", "nothing was done");

    // Too much is refused before it is taken.
    let body = "x".repeat(70_000);
    let large = format!("POST /flush HTTP/1.1\r\n{host}Content-Length: {}\r\n\r\n{body}", body.len());
    assert_eq!(http(tcp, &large).await.0, 413);
    let (status, _) = get(tcp, "/peers", &format!("{host}X: {}\r\n", "x".repeat(20_000))).await;
    assert_eq!(status, 431);
    let many: String = (0..40).map(|number| format!("X{number}: x\r\n")).collect();
    assert_eq!(get(tcp, "/peers", &format!("{host}{many}")).await.0, 431);

    // As many as are served at once, and more, which begin and say no more.
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(tcp).await.expect("a connection");
        stream.write_all(b"GET /peers HTTP/1.1\r\nHost: local").await.expect("room");
        slow.push(stream);
    }
    command(&world, 0, &["health"]).await.ok();
    let ended = async {
        for stream in &mut slow {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("none of them stays");
    assert_eq!(get(tcp, "/health", &host).await.0, 200, "others are answered again");
    a.kill().await.expect("killed");
    b.kill().await.expect("killed");
}

// Shows: only the node's own user may open the socket; two nodes cannot share one; what a killed node left is taken over; a node
// that stops takes its socket along; a TCP address that others can reach is refused by the configuration.
// Fails if: a second node starts, or takes the socket from the first; a node cannot start after it was killed.
// Is no failure: the file of the lock, which stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_belongs_to_one_node() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), 2).await.expect("a world");
    let socket = world.config(0).expect("a configuration").admin_socket();
    world.change_config(1, |config| config.admin.socket = Some(socket.clone())).expect("written");
    let a = world.spawn(0, PROGRAM.as_ref(), None).await.expect("a node");
    assert_eq!(std::fs::metadata(&socket).expect("a socket").permissions().mode() & 0o777, 0o600);
    let refused = command(&world, 1, &["serve"]).await.sentence();
    assert!(refused.contains("admin.sock is in use by another process"), "{refused}");
    assert_eq!(told(&world, 0, &["health"]).await["domain"], "a.test", "the first one goes on");

    a.kill().await.expect("killed");
    assert!(socket.exists(), "nobody could take it away");
    let refused = command(&world, 0, &["peers", "list"]).await.sentence();
    assert!(refused.contains("no node is running"), "{refused}");
    let b = world.start(1).await.expect("it is taken over");
    assert_eq!(told(&world, 1, &["health"]).await["domain"], "b.test");
    b.stop().await.expect("stopped");
    assert!(!socket.exists());
    let refused = command(&world, 0, &["lanes"]).await.sentence();
    assert!(refused.contains("no node is running"), "{refused}");

    world.change_config(0, |config| config.admin.listen = Some(([0, 0, 0, 0], 9464).into())).expect("written");
    let refused = command(&world, 0, &["serve"]).await.sentence();
    assert!(refused.contains("0.0.0.0:9464, which is not a loopback address"), "{refused}");
}
