//! The router without a socket, over the real services of a node without a network.

use std::sync::Mutex;

use hyper::Request;
use serde_json::{Value, json};

use super::*;
use crate::base::limits::Limits;
use crate::federation::PeerPolicies;
use crate::federation::policy::Mode;
use crate::node::reload::ReloadCounts;
use crate::service::testing::TestNode;

const DOCUMENTATION: &str = include_str!("../../../../docs/admin.md");

struct Interface {
    admin: Admin,
    /// What reloading says next.
    reloading: Arc<Mutex<Result<(), &'static str>>>,
    node: TestNode,
}

impl Interface {
    async fn new() -> Self {
        let node = TestNode::new().await;
        let reloading = Arc::new(Mutex::new(Ok(())));
        let reload: Reload = {
            let reloading = reloading.clone();
            Arc::new(move || reloading.lock().expect("not poisoned").map_err(Fault::new))
        };
        let configured =
            ("configured.test".parse().expect("a domain"), PeerOverride { wildcard: Some(true), ..PeerOverride::default() });
        let policies = PeerPolicies::new(Mode::Open, Limits::default().per_peer(), [configured].into());
        node.service.peers().set_policies(policies);
        let admin = Admin {
            service: node.service.clone(),
            calendar: Calendar::now(),
            metrics: Metrics::new(Arc::<ReloadCounts>::default()),
            reload,
        };
        Self { admin, reloading, node }
    }

    async fn at(&self, door: Door, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Answer) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let answer = self.admin.answer(door, &head, body.as_bytes()).await;
        (answer.status.as_u16(), answer)
    }

    /// Asks at the socket.
    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (status, answer) = self.at(Door::Socket, method, path, &[], body).await;
        assert_eq!(answer.content_type, "application/json");
        (status, serde_json::from_slice(&answer.body).expect("JSON"))
    }

    async fn ok(&self, method: &str, path: &str, body: &str) -> Value {
        let (status, answer) = self.ask(method, path, body).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    async fn error(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let (status, answer) = self.ask(method, path, body).await;
        assert!(!answer["message"].as_str().expect("a sentence").is_empty());
        (status, answer["error"].as_str().expect("a word").to_owned())
    }
}

#[test]
fn the_documentation_has_each_route_and_no_other() {
    // Rows ``| `GET` | `/peers/DOMAIN` | … |``.
    let rows = DOCUMENTATION.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let code = |cell: &str| cell.strip_prefix('`')?.strip_suffix('`').map(str::to_owned);
        Some((code(cells.get(1)?)?, code(cells.get(2)?)?)).filter(|(_, path)| path.starts_with('/'))
    });
    let mut documented: Vec<(String, String)> =
        rows.map(|(method, path)| (method, path.split('?').next().unwrap_or_default().to_owned())).collect();
    let mut routes: Vec<_> = ROUTES.iter().map(|(method, path, _)| (method.to_string(), (*path).to_owned())).collect();
    documented.sort();
    routes.sort();
    assert_eq!(documented, routes);
}

#[test]
fn a_path_is_one_route_and_its_domain() {
    let named = |method: Method, path| route(&method, path).map_err(|refusal| refusal.status.as_u16());
    assert_eq!(named(Method::GET, "/peers"), Ok((Route::Peers, "")));
    assert_eq!(named(Method::GET, "/peers/b.test"), Ok((Route::Peer, "b.test")));
    assert_eq!(named(Method::POST, "/peers/b.test/hold"), Ok((Route::Hold, "b.test")));
    for (method, path, status) in [
        (Method::GET, "/", 404),
        (Method::GET, "", 404),
        (Method::GET, "/peers/b.test/hold/x", 404),
        (Method::GET, "/peers/b.test/", 404),
        (Method::GET, "//peers", 404),
        (Method::POST, "/peers/b.test/forget", 404),
        (Method::GET, "/peers/b.test/hold", 405),
        (Method::DELETE, "/peers", 405),
        (Method::HEAD, "/health", 405),
    ] {
        assert_eq!(named(method, path), Err(status), "{path}");
    }
}

#[tokio::test]
async fn what_cannot_be_answered_is_refused_with_a_word_and_a_sentence() {
    let interface = Interface::new().await;
    for (method, path, body, status, error) in [
        ("GET", "/nowhere", "", 404, "not_found"),
        ("GET", "/peers/B.TEST", "", 400, "bad_request"),
        ("GET", "/peers/b..test", "", 400, "bad_request"),
        ("PUT", "/peers/b.test/override", "", 400, "bad_request"),
        ("PUT", "/peers/b.test/override", "{\"port\":1}", 400, "bad_request"),
        ("PUT", "/peers/b.test/override", "{\"limits\":{\"streams_max\":0}}", 400, "bad_request"),
        ("POST", "/peers/b.test/hold", "{", 400, "bad_request"),
        ("POST", "/peers/b.test/hold", "{\"why\":\"\"}", 400, "bad_request"),
        ("POST", "/peers/a.test/hold", "", 409, "refused"),
        ("GET", "/lanes?domain=", "", 400, "bad_request"),
        ("GET", "/lanes?group=x", "", 400, "bad_request"),
        ("PATCH", "/peers", "", 405, "method_not_allowed"),
    ] {
        assert_eq!(interface.error(method, path, body).await, (status, error.to_owned()), "{method} {path}");
    }
    let (_, answer) = interface.at(Door::Socket, "PUT", "/peers/b.test/hold", &[], "").await;
    assert_eq!(answer.allow.as_deref(), Some("POST"));
}

#[tokio::test]
async fn over_tcp_only_programs_of_this_machine_are_answered() {
    let interface = Interface::new().await;
    let status = async |headers: &[(&str, &str)]| interface.at(Door::Tcp, "GET", "/peers", headers, "").await.0;
    for host in ["127.0.0.1", "127.0.0.1:9464", "127.9.9.9:1", "localhost", "LocalHost:9464", "[::1]:9464", "[::1]"] {
        assert_eq!(status(&[("host", host)]).await, 200, "{host}");
    }
    for host in [
        "evil.example",
        "evil.example:9464",
        "localhost.evil.example",
        "192.0.2.1",
        "127.0.0.1.evil.example",
        "0.0.0.0",
        "[::]",
        "",
    ] {
        assert_eq!(status(&[("host", host)]).await, 403, "{host}");
    }
    assert_eq!(status(&[]).await, 403, "no host");
    assert_eq!(status(&[("host", "localhost"), ("host", "evil.example")]).await, 403, "two hosts");
    for origin in ["http://localhost:9464", "https://evil.example", "null"] {
        assert_eq!(status(&[("host", "localhost"), ("origin", origin)]).await, 403, "{origin}");
    }
    // Only the node's user can open the socket: a browser cannot.
    let (at_socket, _) = interface.at(Door::Socket, "GET", "/peers", &[("host", "evil.example")], "").await;
    assert_eq!(at_socket, 200);
}

#[tokio::test]
async fn peers_are_those_of_the_configuration_and_those_that_something_is_known_of() {
    let interface = Interface::new().await;
    let names = async || {
        let peers = interface.ok("GET", "/peers", "").await;
        let names = peers.as_array().expect("a list").iter().map(|peer| peer["domain"].as_str().expect("a name").to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names().await, ["configured.test"]);
    let configured = interface.ok("GET", "/peers/configured.test", "").await;
    assert_eq!((&configured["state"], &configured["since"]), (&json!("untried"), &Value::Null));
    assert_eq!(configured["policy"]["configured"], true);
    let unheard_of = interface.ok("GET", "/peers/unheard-of.test", "").await;
    assert_eq!((&unheard_of["state"], &unheard_of["policy"]["configured"]), (&json!("untried"), &json!(false)));
    assert_eq!(names().await, ["configured.test"], "asking makes nobody known");

    // Frames for a domain that nobody has dialled: no worker runs here.
    let bob = interface.node.device("bob@b.test").await;
    let alice = interface.node.device("alice@a.test").await;
    let (room, creation) = interface.node.creation(&alice).await;
    let mut room = room;
    interface.node.accepts(crate::service::testing::Via::Home(&alice), &creation).await;
    interface.node.add(&mut room, &bob).await;
    assert_eq!(names().await, ["b.test", "configured.test"]);
    let b = interface.ok("GET", "/peers/b.test", "").await;
    assert_eq!((&b["state"], &b["queued"]["lanes"]), (&json!("untried"), &json!(1)), "{b}");
    assert!(b["queued"]["frames"].as_u64() > Some(0) && b["queued"]["oldest_age_seconds"].is_u64(), "{b}");
    let lanes = interface.ok("GET", "/lanes?domain=b.test", "").await;
    assert_eq!(lanes.as_array().map(Vec::len), Some(1), "{lanes}");
    assert_eq!((&lanes[0]["frames"], &lanes[0]["group"]), (&b["queued"]["frames"], &json!(room.uri.to_string())), "{lanes}");
    assert_eq!(interface.ok("GET", "/lanes?domain=c.test", "").await, json!([]));
    assert_eq!(interface.ok("GET", "/dead-letters", "").await, json!([]));
}

#[tokio::test]
async fn an_operator_holds_denies_and_opens_again() {
    let interface = Interface::new().await;
    let after = async |action: &str, body: &str| {
        let peer = interface.ok("POST", &format!("/peers/b.test/{action}"), body).await;
        (peer["state"].as_str().expect("a state").to_owned(), peer["policy"].clone())
    };
    let (state, policy) = after("hold", "{\"reason\":\"moving house\"}").await;
    assert_eq!((state.as_str(), &policy["held"], &policy["reason"]), ("held", &json!(true), &json!("moving house")));
    assert_eq!(policy["override"], json!({ "hold": true, "reason": "moving house" }));
    assert_eq!(interface.ok("GET", "/peers", "").await[0]["state"], "held", "it is listed, though nobody has dialled it");
    let (state, policy) = after("release", "").await;
    assert_eq!((state.as_str(), &policy["held"], &policy["override"]), ("untried", &json!(false), &Value::Null));
    let (state, policy) = after("deny", "{\"reason\":\"spam\"}").await;
    assert_eq!((state.as_str(), &policy["denied"], &policy["reason"]), ("denied", &json!("operator"), &json!("spam")));
    assert_eq!(after("allow", "").await.1["denied"], Value::Null);
    assert_eq!(after("retry", "").await.0, "untried");
    assert_eq!(interface.ok("POST", "/peers/b.test/flush", "").await, json!({ "flushed": "b.test" }));
    assert_eq!(interface.ok("POST", "/flush", "").await, json!({ "flushed": null }));
}

#[tokio::test]
async fn what_is_said_of_a_peer_is_replaced_as_a_whole_and_forgotten() {
    let interface = Interface::new().await;
    let said = json!({ "addresses": ["192.0.2.7:7443"], "limits": { "streams_max": 3 } });
    let peer = interface.ok("PUT", "/peers/b.test/override", &said.to_string()).await;
    assert_eq!((&peer["policy"]["override"], &peer["policy"]["limits"]["streams_max"]), (&said, &json!(3)), "{peer}");
    let peer = interface.ok("PUT", "/peers/b.test/override", "{\"access\":\"deny\"}").await;
    assert_eq!((&peer["policy"]["override"], &peer["state"]), (&json!({ "access": "deny" }), &json!("denied")), "{peer}");
    let peer = interface.ok("DELETE", "/peers/b.test/override", "").await;
    assert_eq!((&peer["policy"]["override"], &peer["state"]), (&Value::Null, &json!("untried")), "{peer}");
}

#[tokio::test]
async fn what_failed_last_is_told_with_the_time_of_the_next_try() {
    let interface = Interface::new().await;
    let peers = interface.node.service.peers();
    let b: Domain = "b.test".parse().expect("a domain");
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    // The name server of this node is not there.
    peers.request(&b, b"x", 10, deadline).await.expect_err("nobody is found");
    let peer = interface.ok("GET", "/peers/b.test", "").await;
    assert_eq!((&peer["state"], &peer["failures"]), (&json!("backing_off"), &json!(1)), "{peer}");
    assert!(["dns_failure", "dns_timed_out"].contains(&peer["last_error"]["kind"].as_str().expect("a word")), "{peer}");
    let (since, retry) = (peer["since"].as_str().expect("a time"), peer["retry_at"].as_str().expect("a time"));
    assert!(since < retry, "{since} {retry}");
    assert_eq!(interface.ok("GET", "/peers/b.test", "").await["since"], since, "the same however often it is asked");
    assert_eq!((&peer["counts"]["requests_sent"], &peer["counts"]["requests_failed"]), (&json!(1), &json!(1)), "{peer}");
    assert_eq!(peer["in_flight"]["requests"], 0);
}

#[tokio::test]
async fn files_are_read_again_and_what_is_wrong_is_told() {
    let interface = Interface::new().await;
    assert_eq!(interface.ok("POST", "/reload", "").await, json!({ "reloaded": true }));
    *interface.reloading.lock().expect("not poisoned") = Err("there is no revocation list in it");
    let (status, answer) = interface.ask("POST", "/reload", "").await;
    assert_eq!((status, answer), (409, json!({ "error": "not_used", "message": "there is no revocation list in it" })));
}

#[tokio::test]
async fn health_needs_a_disk_and_a_node_that_goes_on() {
    let interface = Interface::new().await;
    // This node has been told to stop from the start.
    let (status, health) = interface.ask("GET", "/health", "").await;
    assert_eq!(status, 503);
    assert_eq!(
        (&health["ready"], &health["listening"], &health["storage_writable"]),
        (&json!(false), &json!(false), &json!(true))
    );
    assert_eq!((&health["domain"], &health["storage_error"]), (&json!("a.test"), &Value::Null));
    interface.node.service.storage().close().await;
    let (status, health) = interface.ask("GET", "/health", "").await;
    assert_eq!((status, &health["storage_writable"]), (503, &json!(false)));
    assert!(health["storage_error"].as_str().is_some_and(|error| error.contains("closed")), "{health}");
}

#[tokio::test]
async fn metrics_are_text_for_prometheus() {
    let interface = Interface::new().await;
    let (status, answer) = interface.at(Door::Socket, "GET", "/metrics", &[], "").await;
    assert_eq!((status, answer.content_type), (200, metrics::CONTENT_TYPE));
    let text = String::from_utf8(answer.body).expect("text");
    assert!(
        text.ends_with("# EOF\n") && text.contains("mimi_peer_state{peer=\"configured.test\",state=\"untried\"} 1"),
        "{text}"
    );
}
