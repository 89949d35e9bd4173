//! Finishing what the outbox holds: what an earlier run left, or an operation that gave up waiting.

use std::collections::BTreeMap;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Client;
use super::core::Result;
use super::error::ClientError;
use super::groups::{Settled, is_settled};
use super::state::Purpose;
use crate::base::ids::RequestId;
use crate::base::{Context as _, Fault, GroupUri};

impl Client {
    /// Sends what an earlier run, or an operation that gave up waiting, left in the outbox. What another operation is sending
    /// is left to it.
    pub async fn resume(&self) -> Result<()> {
        self.resume_by(self.deadline()).await
    }

    /// As [`Client::resume`]. A destination that does not answer holds up no other one: each has its own task, which gives up at
    /// the first request that is not answered.
    pub(super) async fn resume_by(&self, deadline: Instant) -> Result<()> {
        let left: BTreeMap<String, Vec<RequestId>> = self
            .transact(|core| {
                let mut left: BTreeMap<_, Vec<_>> = BTreeMap::new();
                for outgoing in &core.state.outbox {
                    left.entry(outgoing.destination.clone()).or_default().push(outgoing.request);
                }
                Ok(left)
            })
            .await?;
        let mut tasks = JoinSet::new();
        for requests in left.into_values() {
            let client = self.clone();
            tasks.spawn(async move { client.resume_all(requests, deadline).await });
        }
        let mut done = Ok(());
        while let Some(ended) = tasks.join_next().await {
            match ended.context("sending what was left was interrupted")? {
                Ok(()) => {}
                Err(error @ ClientError::Fault(_)) => return Err(error),
                Err(error) => done = Err(error),
            }
        }
        done
    }

    async fn resume_all(&self, requests: Vec<RequestId>, deadline: Instant) -> Result<()> {
        let mut done = Ok(());
        for request in requests {
            match self.resume_one(request, deadline).await {
                Ok(()) => {}
                // It was logged, and nobody waits for it any more.
                Err(error) if is_settled(&error) => tracing::warn!(%request, %error, "what was left is given up"),
                // Its next request would fare no better, and those of one group have an order.
                Err(error @ (ClientError::NotConfirmed(_) | ClientError::NotReached(_) | ClientError::Fault(_))) => {
                    return Err(error);
                }
                Err(error) => done = Err(error),
            }
        }
        done
    }

    /// Sends one request of the outbox, unless it is gone or another operation has it.
    pub(super) async fn resume_one(&self, request: RequestId, deadline: Instant) -> Result<()> {
        let parse =
            |group: &String| group.parse::<GroupUri>().map_err(|error| Fault::because("the outbox names no group", error));
        let busy = self.shared.busy.clone();
        let held = self
            .transact(move |core| {
                let kept = core.state.outbox.iter().find(|kept| kept.request == request).cloned();
                Ok(kept.and_then(|kept| busy.take(kept)))
            })
            .await?;
        let Some(held) = held else { return Ok(()) };
        match held.outgoing.purpose.clone() {
            Purpose::KeyPackages | Purpose::CreateGroup { .. } | Purpose::Decline { .. } => {
                self.settle_other(held, deadline).await
            }
            Purpose::Join { group, .. } => {
                let group = parse(&group)?;
                let lock = self.shared.group_lock(&group);
                let Ok(_one) = lock.try_lock() else { return Ok(()) };
                self.settle_left_over_join(&group, held, deadline).await.map(drop)
            }
            Purpose::Commit { group, .. } => {
                let group = parse(&group)?;
                let lock = self.shared.group_lock(&group);
                // Who has it settles what is left over first.
                let Ok(_one) = lock.try_lock() else { return Ok(()) };
                self.settle_left_over(&group, held, deadline).await.map(drop)
            }
            Purpose::Message { group, text, .. } => {
                let stale = if held.outgoing.stale {
                    held
                } else {
                    match self.settle_message(held, deadline).await? {
                        Settled::Sent(_) => return Ok(()),
                        Settled::Stale(stale) => stale,
                    }
                };
                self.send_on(&parse(&group)?, &text, Some(stale), deadline).await.map(drop)
            }
        }
    }
}
