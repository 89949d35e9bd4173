//! The commands, as people type them: each a process of its own.
//!
//! What counts as failure: an exit code that tells a lie; an error that is not one plain sentence; a node that does not end when
//! it is told to; anything that a newcomer is told to type and that does not work as it stands.

use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::Value;

use crate::process::{ClientDirectory, NodeDirectory, PATIENCE, Running, name_server, run};

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} in {value}"))
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

// Shows: an operator deletes a user beside the running node, which then no longer serves it. Failure: it is still served, still
// listed, or a user that is none can be deleted.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_deletes_a_user() {
    let dir = tempfile::tempdir().expect("a directory");
    let dns = name_server().await;
    let site = NodeDirectory::init(&dir.path().join("a"), "a.test", &dns).await;
    let node = site.serve(&dns).await;
    let bob = ClientDirectory(dir.path().join("bob"));
    bob.enrol(&site.invite("bob").await, &dns).await;
    bob.run(&["create", "--name", "us"]).await.ok();
    let nobody = run(["node", "users", "delete", "zoe", "--config", &site.config()]).await.sentence();
    assert!(nobody.contains("no user"), "{nobody}");
    run(["node", "users", "delete", "bob", "--config", &site.config()]).await.ok();
    let users = run(["node", "users", "list", "--json", "--config", &site.config()]).await.json();
    assert_eq!(users[0].as_array().map(Vec::len), Some(0));
    let cut_off = async { while bob.run(&["create", "--deadline", "2"]).await.status.success() {} };
    tokio::time::timeout(PATIENCE, cut_off).await.expect("the running node notices");
    node.signal("TERM").await;
    assert!(node.end().await.0.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_is_set_up_and_talks() {
    let dir = tempfile::tempdir().expect("a directory");
    let dns = name_server().await;
    let site = NodeDirectory::init(&dir.path().join("a"), "a.test", &dns).await;
    let again = run(["node", "init", "--domain", "a.test", "--dir", utf8(&site.path)]).await.sentence();
    assert!(again.contains("already"), "{again}");
    let node = site.serve(&dns).await;

    let [alice, bob] = ["alice", "bob"].map(|name| ClientDirectory(dir.path().join(name)));
    let invitation = site.invite("alice").await;
    let enrolled = alice.enrol(&invitation, &dns).await;
    assert_eq!(text(&enrolled[0], "client"), "mimi://a.test/d/alice/phone");
    bob.enrol(&site.invite("bob").await, &dns).await;
    let users = run(["node", "users", "list", "--json", "--config", &site.config()]).await.json();
    let users: Vec<&str> = users[0].as_array().expect("an array").iter().map(|user| text(user, "user")).collect();
    assert_eq!(users, ["mimi://a.test/u/alice", "mimi://a.test/u/bob"]);

    // An invitation is good once, for one directory.
    let resolver = dns.local_addr().to_string();
    let thief = ClientDirectory(dir.path().join("thief"));
    let used = thief.run(&["enrol", &invitation, "--device", "phone", "--resolver", &resolver]).await.sentence();
    assert!(used.contains("invitation"), "{used}");
    let there = alice.run(&["enrol", &invitation, "--device", "phone"]).await.sentence();
    assert!(there.contains("already holds"), "{there}");
    let nonsense = thief.run(&["enrol", "mimi-invite:a.test", "--device", "phone"]).await.sentence();
    assert!(nonsense.contains("not an invitation"), "{nonsense}");

    let group = text(&alice.run(&["create", "--name", "us"]).await.json()[0], "group").to_owned();
    let nobody = alice.run(&["add", "us", "nobody@a.test"]).await.sentence();
    assert!(nobody.contains("no such user"), "{nobody}");
    let malformed = alice.run(&["add", "us", "Nobody"]).await.sentence();
    assert!(malformed.contains("alice@a.test"), "{malformed}");
    let unknown = alice.run(&["send", "them", "hello"]).await.sentence();
    assert!(unknown.contains("\"them\""), "{unknown}");
    assert_eq!(alice.run(&["add", "us", "bob@a.test"]).await.json()[0]["epoch"], 1);
    assert_eq!(alice.run(&["send", "us", "hello bob"]).await.json()[0]["epoch"], 1);
    let events = bob.run(&["sync"]).await.json();
    assert_eq!(events.iter().map(|event| text(event, "event")).collect::<Vec<_>>(), ["joined", "message"]);
    assert_eq!(text(&events[1], "text"), "hello bob");
    let members = bob.run(&["members", &group]).await.json();
    assert_eq!(members[0]["members"].as_array().map(Vec::len), Some(2));

    // One client, one process.
    let mut listener = Running::start(bob.arguments(&["listen"]));
    assert_eq!(alice.run(&["send", "us", "are you there"]).await.json()[0]["epoch"], 1);
    listener.line_with("are you there").await;
    let second = bob.run(&["whoami"]).await.sentence();
    assert!(second.contains("another mimi-client is running"), "{second}");

    // Told to stop while somebody listens, the node ends in peace (when it had to cut work off after its deadline, its exit code
    // says so); nothing that was said is gone afterwards.
    node.signal("TERM").await;
    let (status, rest) = node.end().await;
    assert!(status.success(), "{status}: {rest}");
    listener.signal("INT").await;
    assert!(listener.end().await.0.success());
    let unreachable = alice.run(&["send", "us", "is anybody there", "--deadline", "2"]).await.sentence();
    assert!(unreachable.contains("tried again"), "{unreachable}");

    let node = site.serve(&dns).await;
    let waiting = async {
        while alice.run(&["whoami"]).await.json()[0]["outgoing"] != 0 {
            alice.run(&["sync"]).await.ok();
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("what was not confirmed is sent again");
    let mut listener = Running::start(bob.arguments(&["listen", "--count", "1"]));
    listener.line_with("is anybody there").await;
    assert!(listener.end().await.0.success());
    // A name of a group is its giver's alone.
    let unknown = bob.run(&["history", "us"]).await.sentence();
    assert!(unknown.contains("\"us\""), "{unknown}");
    assert_eq!(bob.run(&["name", &group, "ours"]).await.json()[0]["group"], group.as_str());
    let said = bob.run(&["history", "ours"]).await.json();
    assert_eq!(
        said.iter().map(|line| text(line, "text")).collect::<Vec<_>>(),
        ["hello bob", "are you there", "is anybody there"]
    );
    node.signal("INT").await;
    assert!(node.end().await.0.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_serve_says_why_in_one_sentence() {
    let dir = tempfile::tempdir().expect("a directory");
    let dns = name_server().await;
    let site = NodeDirectory::init(&dir.path().join("a"), "a.test", &dns).await;
    let config = std::fs::read_to_string(site.config()).expect("a configuration");
    let serve = async |changed: &str| {
        let path = site.path.join("changed.toml");
        std::fs::write(&path, changed).expect("a file");
        run(["node", "serve", "--config", utf8(&path)]).await.sentence()
    };
    let replaced = |from: &str, to: &str| {
        assert!(config.contains(from), "{from} in {config}");
        config.replace(from, to)
    };

    let said = serve(&replaced("federation = ", "federatoin = ")).await;
    assert!(said.contains("federatoin") && said.contains("line "), "{said}");

    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let taken = socket.local_addr().expect("an address");
    let said = serve(&replaced("federation = \"127.0.0.1:0\"", &format!("federation = \"{taken}\""))).await;
    assert!(said.contains(&taken.to_string()) && said.contains("in use"), "{said}");
    drop(socket);

    let (ca, other) = (site.path.join("other-ca"), site.path.join("other"));
    run(["node", "certs", "ca", "--dir", utf8(&ca)]).await.ok();
    run(["node", "certs", "issue", "--ca", utf8(&ca), "--domain", "b.test", "--dir", utf8(&other)]).await.ok();
    let others = replaced("tls/node.", "other/node.");
    let said = serve(&others).await;
    assert!(said.contains("b.test") && said.contains("a.test"), "{said}");

    let said = serve(&others.replace("\"a.test\"", "\"b.test\"")).await;
    assert!(said.contains("belongs to the domain a.test"), "{said}");

    let said = serve(&replaced("data = \"data\"", "data = \"nowhere\"")).await;
    assert!(said.contains("nowhere") && said.contains("init"), "{said}");

    let key = site.path.join("tls/node.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    let said = serve(&config).await;
    assert!(said.contains("can be read by others") && said.contains("chmod 600"), "{said}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("chmod");

    let said = run(["node", "serve", "--config", utf8(&dir.path().join("none.toml"))]).await.sentence();
    assert!(said.contains("none.toml"), "{said}");
    let said = run(["node", "users", "invite", "Alice Smith", "--config", &site.config()]).await.sentence();
    assert!(said.contains("Alice Smith"), "{said}");

    let node = site.serve(&dns).await;
    let said = serve(&config).await;
    assert!(said.contains("in use by another mimi-node"), "{said}");
    node.signal("TERM").await;
    assert!(node.end().await.0.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_made_and_shown() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ca, node) = (dir.path().join("ca"), dir.path().join("node"));
    run(["node", "certs", "ca", "--dir", utf8(&ca), "--name", "Example CA"]).await.ok();
    let issue = ["node", "certs", "issue", "--ca", utf8(&ca), "--domain", "a.example", "--dir", utf8(&node)];
    run(issue).await.ok();
    for key in [ca.join("ca.key"), node.join("node.key")] {
        let mode = std::fs::metadata(&key).expect("a key").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", key.display());
    }
    // A key is never written over.
    assert!(run(issue).await.sentence().contains("node.pem"));

    let pem = node.join("node.pem");
    let shown = run(["node", "certs", "inspect", utf8(&pem)]).await.ok();
    assert!(shown.contains("a.example") && shown.contains("Example CA") && shown.contains("expires in 89 days"), "{shown}");
    let json = run(["node", "certs", "inspect", "--json", utf8(&pem)]).await.json();
    let [leaf, issuer] = &json[0].as_array().expect("an array")[..] else { panic!("two certificates in {json:?}") };
    assert_eq!(leaf["dns_names"], serde_json::json!(["a.example"]));
    assert_eq!((&leaf["is_ca"], &issuer["is_ca"]), (&false.into(), &true.into()));
    let days = (leaf["not_after_ms"].as_u64().expect("a time") - leaf["not_before_ms"].as_u64().expect("a time")) / 86_400_000;
    assert_eq!(days, 90);
    assert_eq!((&leaf["days_left"], issuer["days_left"].as_i64() > Some(3_000)), (&89.into(), true));
    let said = run(["node", "certs", "inspect", utf8(&node.join("node.key"))]).await.sentence();
    assert!(said.contains("certificate"), "{said}");
}

/// The commands that the testbed prints, without their `cargo`.
fn printed_command(line: &str) -> Vec<String> {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    assert_eq!(words[0], "cargo", "{line}");
    words[1..].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_joins_the_testbed_with_what_it_prints() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("testbed");
    let mut testbed = Running::start(["testbed", "--data", utf8(&data), "--messages", "9"]);
    let enrol = printed_command(&testbed.line_with("cargo client").await);
    let add = printed_command(&testbed.line_with("cargo client").await);
    let chat = printed_command(&testbed.line_with("cargo client").await);
    let answer = printed_command(&testbed.line_with("cargo client").await);
    testbed.line_with("Ctrl-C").await;

    assert!(run(&enrol).await.ok().contains("mimi://c.test/d/newcomer/laptop"));
    run(&add).await.ok();
    let mut newcomer = Running::start(&chat);
    newcomer.line_with("joined").await;
    newcomer.line_with("Ctrl-D").await;
    let mut alice = Running::start(&answer);
    newcomer.type_line("good evening").await;
    assert!(alice.line_with("good evening").await.contains("newcomer"));
    alice.type_line("welcome").await;
    assert!(newcomer.line_with("welcome").await.contains("alice"));
    assert!(newcomer.end().await.0.success());
    assert!(alice.end().await.0.success());

    // Not only while both chat.
    let (newcomer, id) = (&chat[..chat.len() - 2], &chat[chat.len() - 1]);
    let (alice, name) = (&answer[..answer.len() - 2], &answer[answer.len() - 1]);
    let as_client = |client: &[String], arguments: &[&str]| {
        client.iter().map(String::as_str).chain(arguments.iter().copied()).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut listener = Running::start(as_client(newcomer, &["listen", "--count", "1"]));
    run(as_client(alice, &["send", name, "one more thing"])).await.ok();
    listener.line_with("one more thing").await;
    assert!(listener.end().await.0.success());
    run(as_client(newcomer, &["send", id, "good night"])).await.ok();
    let heard = run(as_client(alice, &["listen", "--count", "1"])).await.ok();
    assert!(heard.contains("good night"), "{heard}");

    testbed.signal("INT").await;
    assert!(testbed.end().await.0.success());

    // What a newcomer left behind does not disturb the next run in the same place.
    report(&run(["testbed", "--once", "--json", "--messages", "6", "--data", utf8(&data)]).await.ok(), 6);
}

/// Checks the last line of `testbed --json`.
fn report(stdout: &str, messages: u64) {
    let report: Value = serde_json::from_str(stdout.lines().last().expect("a line")).expect("JSON");
    let number = |key: &str| report[key].as_u64().unwrap_or_else(|| panic!("{key} in {report}"));
    assert_eq!(report["ok"], true, "{report}");
    assert_eq!((number("domains"), number("sent"), number("delivered")), (3, messages, 2 * messages), "{report}");
    assert_eq!((number("lost"), number("duplicated"), number("out_of_order")), (0, 0, 0), "{report}");
    // Two others were added, and of three writers two are not of the hub's domain.
    assert!(number("epochs") >= 2 && number("proxied") >= 2 * (messages / 3), "{report}");
    let milliseconds = |key: &str| report[key].as_f64().unwrap_or_else(|| panic!("{key} in {report}"));
    assert!(milliseconds("p50_ms") > 0.0 && milliseconds("p99_ms") >= milliseconds("p50_ms"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_testbed_reports_and_can_be_run_again_in_its_place() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("testbed");
    for _ in 0..2 {
        report(&run(["testbed", "--once", "--json", "--messages", "30", "--data", utf8(&data)]).await.ok(), 30);
    }
}
