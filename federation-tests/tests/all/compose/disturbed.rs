//! Each node is stopped, killed and cut off while people talk.

use std::process::Stdio;
use std::time::Duration;

use federation_tests::conversation::Scene;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::Instant;

use super::federation::{Federation, docker};
use crate::process::PATIENCE;

/// Services, their users, and what each node is called by its peers.
const NODES: [(&str, &str, &str); 3] =
    [("a", "alice@a.test", "a.test"), ("b", "bob@b.test", "b.test"), ("c", "carol@c.test", "c.test")];

/// The address of each node within the network.
const HOSTS: [u8; 3] = [11, 12, 13];

/// Messages that may be written while a disturbance comes about, and more of them once it has.
const BEFORE: usize = 50;
const DURING: usize = 20;

/// And once it is over.
const AGAIN: usize = 4;

/// The pace of the former: one such handful at a time.
const HANDFUL: usize = 2;
const PACE: Duration = Duration::from_millis(100);

/// Messages that are left for the end, so that nobody has written all of its share before.
const AFTER: usize = 60;

const MESSAGES: usize = NODES.len() * Disturbance::ALL.len() * (BEFORE + DURING + AGAIN) + AFTER;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disturbance {
    /// SIGTERM, then started again.
    Stopped,
    /// SIGKILL, then started again.
    Killed,
    /// Taken out of the network until the others have given it up, then put back.
    CutOff,
}

impl Disturbance {
    const ALL: [Self; 3] = [Self::Stopped, Self::Killed, Self::CutOff];
}

// Shows: on separate hosts, too, nothing is lost when nodes come and go. While one user of each domain writes into one group, each
// node, the hub's among them, is stopped, killed, and cut off from the network, and brought back each time; then everybody has
// everything, once and in order. Whoever is still there goes on meanwhile.
// Fails if: a message is lost, doubled, reordered or unreadable for anyone, or still queued or on its way in the end; a client or a
// lane gives up; a node that was stopped did not end well, or does not become healthy again; its user hears nothing afterwards; the others wait
// for a node that is not the hub; a container was restarted by anybody but this test.
// Is no failure: how long requests take meanwhile.
pub(super) async fn nodes_come_and_go_while_people_talk() {
    let Some(federation) = Federation::prepare("disturbed").await else { return };
    let begun = Instant::now();
    federation.up().await;
    let mut talk = Talk::start(&federation);
    for disturbance in Disturbance::ALL {
        for (index, (_, _, domain)) in NODES.iter().enumerate() {
            let took = disturb(&federation, &mut talk, index, disturbance).await;
            eprintln!("{domain} {disturbance:?}: back after {} ms", took.as_millis());
        }
    }
    let report = talk.end(&federation).await;
    eprintln!("{report}; {} s with starting and stopping", begun.elapsed().as_secs());
    let complete = report["ok"] == true
        && report["sent"] == MESSAGES
        && report["expected"] == MESSAGES * (NODES.len() - 1)
        && report["delivered"] == report["expected"]
        && report["still_queued"] == 0;
    assert!(complete, "{report}\n{}", federation.logs().await);
    for (service, ..) in NODES {
        let container = federation.container(service).await;
        federation.until(&container, "{{.State.Health.Status}} {{.RestartCount}}", "healthy 0").await;
        let given_up = federation.compose(&["exec", "-T", service, "mimi-node", "dead-letters", "--json"]).await.json();
        assert_eq!(given_up, [Value::Array(Vec::new())], "{service}");
        // A frame whose answer was lost is sent again, and stays until then.
        let delivered = async {
            let lanes = ["exec", "-T", service, "mimi-node", "lanes", "--json"];
            while federation.compose(&lanes).await.json() != [Value::Array(Vec::new())] {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, delivered).await.is_err() {
            panic!("{service} still has frames for others\n{}", federation.logs().await);
        }
    }
}

/// Disturbs one node during traffic and brings it back. Returns how long its user then heard nothing.
async fn disturb(federation: &Federation, talk: &mut Talk, index: usize, disturbance: Disturbance) -> Duration {
    let (service, user, domain) = NODES[index];
    let container = federation.container(service).await;
    let exit = "{{.State.Running}} {{.State.ExitCode}}";
    let given_up = given_up(federation, service, domain).await;
    talk.during(BEFORE, async {
        match disturbance {
            Disturbance::Stopped => {
                federation.compose(&["stop", service]).await.ok();
                federation.until(&container, exit, "false 0").await;
            }
            Disturbance::Killed => {
                federation.compose(&["kill", service]).await.ok();
                federation.until(&container, exit, "false 137").await;
            }
            Disturbance::CutOff => {
                docker(&["network", "disconnect", &federation.network, &container]).await.ok();
            }
        }
    })
    .await;
    talk.drain();
    talk.permit(DURING).await;
    if service != "a" {
        // Two may have been accepted a moment before. Of a hub that is away, nobody can expect anything.
        let others = |scene: &Scene| matches!(scene, Scene::Sent { from, .. } if from != user);
        talk.until(federation, 4, others).await;
    }
    match disturbance {
        Disturbance::Stopped | Disturbance::Killed => {
            federation.compose(&["start", service]).await.ok();
        }
        Disturbance::CutOff => {
            let noticed = async {
                while self::given_up(federation, service, domain).await <= given_up {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            };
            if tokio::time::timeout(PATIENCE, noticed).await.is_err() {
                panic!("nobody noticed that {domain} was cut off\n{}", federation.logs().await);
            }
            let address = format!("{}.{}", federation.subnet, HOSTS[index]);
            docker(&["network", "connect", "--ip", &address, &federation.network, &container]).await.ok();
        }
    }
    let back = Instant::now();
    talk.drain();
    // A node that is back at once may have brought its user everything before anybody looked: something more is to come.
    talk.permit(AGAIN).await;
    let of_user = |scene: &Scene| match scene {
        Scene::Sent { from, .. } => from == user,
        Scene::Received { by, .. } => by == user,
        _ => false,
    };
    talk.until(federation, 1, of_user).await;
    let took = back.elapsed();
    federation.until(&container, "{{.State.Health.Status}}", "healthy").await;
    took
}

/// How often the others have given a domain up so far, as their logs say.
async fn given_up(federation: &Federation, service: &str, domain: &str) -> usize {
    let others: Vec<&str> = NODES.iter().map(|(other, ..)| *other).filter(|other| *other != service).collect();
    let logs = federation.compose(&[&["logs", "--no-color"][..], &others].concat()).await.ok();
    let peer = format!(" peer={domain} ");
    logs.lines().filter(|line| line.contains(&peer) && line.contains(" to=backing off ")).count()
}

/// The conversation in the client container, which this test lets go on.
struct Talk {
    _child: Child,
    input: ChildStdin,
    /// What it prints, read as it comes.
    lines: UnboundedReceiver<String>,
    permitted: usize,
}

impl Talk {
    fn start(federation: &Federation) -> Self {
        let messages = MESSAGES.to_string();
        let talk = ["federation-tests", "conversation", "--json", "--paced", "--messages", &messages];
        let mut command = federation.command("docker-compose", &[&["exec", "-T", "client"][..], &talk].concat());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let (input, output) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
        let (read, lines) = unbounded_channel();
        tokio::spawn(async move {
            let mut output = BufReader::new(output).lines();
            while let Ok(Some(line)) = output.next_line().await {
                // That nobody wants it any more is the end of the test.
                let _ = read.send(line);
            }
        });
        Self { _child: child, input, lines, permitted: 0 }
    }

    /// Lets people write so many more messages.
    async fn permit(&mut self, messages: usize) {
        self.permitted += messages;
        self.input.write_all(format!("{messages}\n").as_bytes()).await.expect("it reads");
        self.input.flush().await.expect("it reads");
    }

    /// Lets people write `messages` while `work` is done, a few at a time; what is left of them once it is done.
    async fn during(&mut self, messages: usize, work: impl Future<Output = ()>) {
        let mut left = messages;
        let mut pace = tokio::time::interval(PACE);
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                () = &mut work => break,
                _ = pace.tick(), if left > 0 => {
                    let handful = left.min(HANDFUL);
                    self.permit(handful).await;
                    left -= handful;
                }
            }
        }
        if left > 0 {
            self.permit(left).await;
        }
    }

    /// Forgets what was said so far.
    fn drain(&mut self) {
        while self.lines.try_recv().is_ok() {}
    }

    /// Waits for so many scenes that are `wanted`.
    async fn until(&mut self, federation: &Federation, mut count: usize, wanted: impl Fn(&Scene) -> bool) {
        let found = async {
            while count > 0 {
                let line = self.lines.recv().await.expect("the conversation has ended before its time");
                let scene: Scene = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                count -= usize::from(wanted(&scene));
            }
        };
        if tokio::time::timeout(PATIENCE, found).await.is_err() {
            panic!("the conversation stands still\n{}", federation.logs().await);
        }
    }

    /// Lets it come to its end; returns its verdict.
    async fn end(mut self, federation: &Federation) -> Value {
        self.permit(MESSAGES - self.permitted).await;
        let report = async {
            let mut last = String::new();
            while let Some(line) = self.lines.recv().await {
                last = line;
            }
            last
        };
        match tokio::time::timeout(PATIENCE, report).await {
            Ok(last) => serde_json::from_str(&last).unwrap_or_else(|error| panic!("{error}: {last}")),
            Err(_) => panic!("the conversation does not end\n{}", federation.logs().await),
        }
    }
}
