//! What is still in a client's queue when a run ends: logged as `queued`, so that the checker can tell "not yet" from "lost".

use std::io::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use mimi_node::base::bytes::hex;
use mimi_node::base::crypto::sha256;
use mimi_node::base::ids::RequestId;
use mimi_node::base::{Context as _, Fault, UnixMillis};
use mimi_node::client::Client;
use mimi_node::wire::qs::{Delivery, FetchEntries, QsMessage, QsRequest, QsSender};
use mimi_node::wire::{Content, Reply, Service};

/// The most entries asked for at once; the node may send fewer.
const PAGE: u32 = 256;

/// Appends a `queued` line to `log` for every entry that the client has not taken yet, without taking any. Returns how many.
pub async fn log_queued(client: &Client, log: &Path) -> Result<usize, Fault> {
    let state = client.queue_state().await.context("the queue's state cannot be read")?;
    let mut file =
        std::fs::OpenOptions::new().append(true).open(log).with_context(|| format!("cannot write {}", log.display()))?;
    let (mut from, mut logged) = (state.next, 0);
    loop {
        let request = QsRequest::Fetch(FetchEntries { from, max: PAGE });
        let service = Service::Qs(QsMessage { sender: QsSender::Owner(state.queue), request });
        let content = Content::new(client.uri().domain(), RequestId::random(), UnixMillis::now(), service);
        let response = client.raw_request(&content.sign(client.owner_key())).await.context("the queue cannot be read")?;
        let Ok(Reply::Entries(entries)) = response.into_result() else {
            return Err(Fault::new("a fetch was answered with something else"));
        };
        let Some(last) = entries.last() else { return Ok(logged) };
        from = last.sequence + 1;
        for entry in &entries {
            let (kind, message) = match &entry.delivery {
                Delivery::Message(delivered) => (kind_of(&delivered.message), hex(&sha256(&delivered.message))),
                Delivery::MessagesLost | Delivery::Reset => ("lost", String::new()),
            };
            let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
            let line = serde_json::json!({
                "at_us": u64::try_from(at).unwrap_or(u64::MAX),
                "client": client.uri().to_string(),
                "event": "queued",
                "queue": hex(&state.queue.0),
                "sequence": entry.sequence,
                "group": String::from_utf8_lossy(&entry.group_id),
                "epoch": entry.epoch,
                "kind": kind,
                "message": message,
            });
            file.write_all(format!("{line}\n").as_bytes()).with_context(|| format!("cannot write {}", log.display()))?;
            logged += 1;
        }
    }
}

/// What an MLSMessage is, by its wire format (RFC 9420 §6): enough to tell what the checker expects of it.
fn kind_of(message: &[u8]) -> &'static str {
    match message.get(2..4) {
        Some([0, 2]) => "application",
        Some([0, 3]) => "welcome",
        _ => "commit",
    }
}
