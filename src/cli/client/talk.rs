//! Listening and chatting.

use std::io;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;

use super::Done;
use super::show::{say, say_event};
use crate::base::GroupUri;
use crate::client::{Client, Event};

pub(super) async fn listen(client: &Client, json: bool, seconds: Option<u64>, count: Option<u64>) -> Done {
    let mut listener = client.listen();
    let mut left = count.unwrap_or(u64::MAX);
    let until = async {
        match seconds {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(until);
    while left > 0 {
        tokio::select! {
            () = &mut until => break,
            event = listener.next() => {
                let event = event?;
                say_event(json, &event)?;
                left -= u64::from(matches!(event, Event::Message { .. }));
            }
        }
    }
    Ok(())
}

pub(super) async fn chat(client: &Client, json: bool, group: &GroupUri) -> Done {
    if !json {
        let greeting = format!("in {group} as {}: each line is a message, Ctrl-D ends", client.uri());
        say(json, &Value::Null, || greeting)?;
    }
    let mut lines = stdin_lines();
    let mut listener = client.listen();
    loop {
        tokio::select! {
            line = lines.recv() => match line {
                Some(text) if text.trim().is_empty() => {}
                Some(text) => {
                    client.send(group, &text).await?;
                }
                None => return Ok(()),
            },
            event = listener.next() => {
                // Also of other groups: nobody will be told again.
                say_event(json, &event?)?;
            }
        }
    }
}

/// The lines of standard input. They are read on a thread of their own, which ends with the process: a read of a terminal
/// cannot be called off.
fn stdin_lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in io::stdin().lines() {
            let Ok(line) = line else { return };
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
