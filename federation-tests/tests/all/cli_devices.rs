//! The commands about devices and leaving, as people type them: each a process of its own, so that nothing is done by a listener.
//!
//! What counts as failure: a step of `docs/clients.md` that does not do what it says there, or an error that is not one plain
//! sentence.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::process::{ClientDirectory, NodeDirectory, name_server};

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} in {value}"))
}

async fn members(client: &ClientDirectory, group: &str) -> Vec<String> {
    client.run(&["sync"]).await.json();
    let shown = client.run(&["members", group]).await.json();
    let members = shown.last().and_then(|shown| shown["members"].as_array()).expect("members");
    members.iter().map(|member| member.as_str().expect("a name").rsplit("/d/").next().expect("a part").to_owned()).collect()
}

// covers S9 S12 S19 X1 X6
#[tokio::test(flavor = "multi_thread")]
async fn a_second_device_a_lost_one_and_a_wiped_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let dns = name_server().await;
    let resolver = dns.local_addr().to_string();
    let site = NodeDirectory::init(&dir.path().join("a"), "a.test", &dns).await;
    let node = site.serve(&dns).await;
    let [alice, bob, laptop] = ["alice", "bob", "laptop"].map(|name| ClientDirectory(dir.path().join(name)));
    alice.enrol(&site.invite("alice").await, &dns).await;
    bob.enrol(&site.invite("bob").await, &dns).await;
    let group = text(&alice.run(&["create"]).await.json()[0], "group").to_owned();
    alice.run(&["add", &group, "bob@a.test"]).await.ok();
    assert_eq!(members(&bob, &group).await, ["alice/phone", "bob/phone"]);

    // A second device.
    let misplaced = bob.run(&["device", "request", "laptop"]).await.sentence();
    assert!(misplaced.contains("already holds"), "{misplaced}");
    let asked = laptop.run(&["device", "request", "laptop", "--resolver", &resolver]).await.json();
    let again = laptop.run(&["device", "request", "laptop"]).await.json();
    assert_eq!(text(&asked[0], "request"), text(&again[0], "request"), "a repeat asks the same");
    let nonsense = bob.run(&["device", "add", "mimi-pair:00"]).await.sentence();
    assert!(nonsense.contains("device request"), "{nonsense}");
    let answer = bob.run(&["device", "add", text(&asked[0], "request")]).await.json();
    assert_eq!(text(&answer[0], "code"), text(&asked[0], "code"));
    let early = laptop.run(&["device", "accept", "mimi-paired:00"]).await.sentence();
    assert!(early.contains("device add"), "{early}");
    let accepted = laptop.run(&["device", "accept", text(&answer[0], "answer")]).await.json();
    assert_eq!((text(&accepted[0], "client"), &accepted[0]["groups"]), ("mimi://a.test/d/bob/laptop", &1.into()));
    let three = ["alice/phone", "bob/phone", "bob/laptop"];
    for client in [&alice, &bob, &laptop] {
        assert_eq!(members(client, &group).await, three);
    }
    laptop.run(&["send", &group, "from the laptop"]).await.ok();
    let devices = bob.run(&["device", "list"]).await.json();
    let devices: Vec<_> = devices.iter().map(|device| (text(device, "client"), &device["groups"])).collect();
    assert_eq!(devices, [("mimi://a.test/d/bob/laptop", &1.into()), ("mimi://a.test/d/bob/phone", &1.into())]);

    // A lost one: nobody names a group.
    let own = bob.run(&["device", "remove", "phone"]).await.sentence();
    assert!(own.contains("the device itself"), "{own}");
    bob.run(&["device", "remove", "laptop"]).await.ok();
    for client in [&alice, &bob] {
        assert_eq!(members(client, &group).await, ["alice/phone", "bob/phone"]);
    }
    bob.run(&["send", &group, "without the laptop"]).await.ok();
    let refused = laptop.run(&["send", &group, "from the thief", "--deadline", "3"]).await.sentence();
    assert!(refused.contains("not authorized") || refused.contains("revoked"), "{refused}");

    // A wiped one.
    let backup = dir.path().join("backup");
    let backup = backup.to_str().expect("a path");
    bob.run(&["backup", backup]).await.ok();
    let mode = std::fs::metadata(backup).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let twice = bob.run(&["backup", backup]).await.sentence();
    assert!(twice.contains("exists"), "{twice}");
    std::fs::remove_dir_all(&bob.0).expect("is deleted");
    let recovered = bob.run(&["recover", "--from", backup, "--device", "phone", "--resolver", &resolver]).await.json();
    assert_eq!((text(&recovered[0], "client"), &recovered[0]["groups"]), ("mimi://a.test/d/bob/phone", &1.into()));
    assert_eq!(members(&alice, &group).await, ["alice/phone", "bob/phone"], "the old leaf is gone");
    bob.run(&["send", &group, "back again"]).await.ok();
    alice.run(&["sync"]).await.ok();
    let said = alice.run(&["history"]).await.json();
    let said: Vec<&str> = said.iter().map(|line| text(line, "text")).collect();
    assert_eq!(said, ["from the laptop", "without the laptop", "back again"]);
    // Who invites the recovered one reaches it.
    let another = text(&alice.run(&["create"]).await.json()[0], "group").to_owned();
    alice.run(&["add", &another, "bob@a.test"]).await.ok();
    assert_eq!(members(&bob, &another).await, ["alice/phone", "bob/phone"]);

    // Blocked, left, deleted.
    bob.run(&["block", "alice@a.test"]).await.ok();
    let third = text(&alice.run(&["create"]).await.json()[0], "group").to_owned();
    alice.run(&["add", &third, "bob@a.test"]).await.sentence();
    bob.run(&["unblock", "alice@a.test"]).await.ok();
    alice.run(&["add", &third, "bob@a.test"]).await.ok();
    assert_eq!(members(&bob, &third).await.len(), 2);
    bob.run(&["leave", &third]).await.ok();
    let leaving = bob.run(&["send", &third, "one more thing"]).await.sentence();
    assert!(leaving.contains("leaving"), "{leaving}");
    assert_eq!(members(&alice, &third).await, ["alice/phone"]);
    alice.run(&["delete", &another]).await.ok();
    let deleted = alice.run(&["send", &another, "hello?"]).await.sentence();
    assert!(deleted.contains("was deleted"), "{deleted}");
    let events = bob.run(&["sync"]).await.json();
    assert_eq!(events.iter().filter(|event| text(event, "event") == "left").count(), 2, "{events:?}");
    assert!(bob.run(&["outbox", "list"]).await.json().is_empty());
    assert_eq!(text(&bob.run(&["hubs"]).await.json()[0], "hub"), "a.test");
    bob.run(&["renew-queue"]).await.ok();
    alice.run(&["send", &group, "to the new address"]).await.ok();
    let events = bob.run(&["sync"]).await.json();
    assert!(events.iter().any(|event| event["text"] == "to the new address"), "{events:?}");
    node.signal("INT").await;
    assert!(node.end().await.0.success());
}
