//! The live picture: who sends what where. On a terminal a panel that is drawn anew; elsewhere a line per scene.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::MissedTickBehavior;

use mimi_node::base::Domain;

use super::Scene;

/// How often the panel is drawn.
const FRAME_INTERVAL: Duration = Duration::from_millis(100);

/// How many of the last scenes the panel shows.
const SCENES_SHOWN: usize = 8;

/// How much of a text is shown, in characters.
const TEXT_SHOWN: usize = 48;

#[derive(Default)]
struct Row {
    sent: usize,
    received: usize,
    commits: usize,
}

/// Draws what happens.
pub(crate) struct Picture {
    shown: bool,
    panel: bool,
    hub: String,
    rows: BTreeMap<String, Row>,
    last: Vec<String>,
    epoch: u64,
    proxied: usize,
    drawn_lines: usize,
}

impl Picture {
    pub(crate) fn new(hub: &Domain, shown: bool) -> Self {
        Self {
            shown,
            panel: shown && std::io::stdout().is_terminal(),
            hub: hub.to_string(),
            rows: BTreeMap::new(),
            last: Vec::new(),
            epoch: 0,
            proxied: 0,
            drawn_lines: 0,
        }
    }

    /// Shows scenes until there are no more; returns how many accepted requests came from clients of other domains than the
    /// hub, which their nodes proxied.
    pub(crate) async fn show(mut self, mut scenes: UnboundedReceiver<Scene>) -> usize {
        let mut frames = tokio::time::interval(FRAME_INTERVAL);
        frames.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                scene = scenes.recv() => match scene {
                    Some(scene) => self.take(scene),
                    None => break,
                },
                _ = frames.tick(), if self.panel => self.draw(),
            }
        }
        if self.panel {
            self.draw();
        }
        self.proxied
    }

    fn take(&mut self, scene: Scene) {
        let hub = self.hub.clone();
        let way = |from: &str| if from.ends_with(&format!("@{hub}")) { String::new() } else { "its node ──▶ ".to_owned() };
        let line = match scene {
            Scene::Enrolled { user } => {
                self.rows.entry(user.clone()).or_default();
                format!("{user} has enrolled")
            }
            Scene::Created { group } => format!("the group {group} is made on the hub {hub}"),
            Scene::Sent { from, text } => {
                let way = way(&from);
                self.count_proxied(&way);
                self.rows.entry(from.clone()).or_default().sent += 1;
                format!("{from} ──▶ {way}hub {hub}: {}", shorten(&text))
            }
            Scene::Received { by, from, text } => {
                self.rows.entry(by.clone()).or_default().received += 1;
                format!("{by} ◀── {from}: {}", shorten(&text))
            }
            Scene::Committed { by, what, epoch } => {
                let way = way(&by);
                self.count_proxied(&way);
                self.epoch = self.epoch.max(epoch);
                self.rows.entry(by.clone()).or_default().commits += 1;
                format!("{by} ──▶ {way}hub {hub}: Commit ({what}), epoch {epoch}")
            }
        };
        if self.shown && !self.panel {
            println!("{line}");
        }
        self.last.push(line);
        if self.last.len() > SCENES_SHOWN {
            self.last.remove(0);
        }
    }

    fn count_proxied(&mut self, way: &str) {
        self.proxied += usize::from(!way.is_empty());
    }

    fn draw(&mut self) {
        let mut lines = vec![format!("hub {}   epoch {}   proxied {}", self.hub, self.epoch, self.proxied), String::new()];
        lines.push(format!("{:<24} {:>8} {:>10} {:>8}", "user", "sent", "received", "commits"));
        for (user, row) in &self.rows {
            lines.push(format!("{user:<24} {:>8} {:>10} {:>8}", row.sent, row.received, row.commits));
        }
        lines.push(String::new());
        lines.extend(self.last.iter().cloned());
        // Long lines are cut off, not wrapped, as long as it is drawn: it has to know its own height.
        let mut text = "\x1b[?7l".to_owned();
        if self.drawn_lines > 0 {
            // Back to the panel's first line.
            text.push_str(&format!("\x1b[{}A", self.drawn_lines));
        }
        for line in &lines {
            text.push_str(&format!("\x1b[2K{line}\n"));
        }
        text.push_str("\x1b[?7h");
        self.drawn_lines = lines.len();
        let mut out = std::io::stdout().lock();
        // A picture that cannot be drawn disturbs nothing.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(TEXT_SHOWN).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
