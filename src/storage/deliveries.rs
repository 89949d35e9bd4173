//! Tables `bodies`, `queue_entries` and `lane_frames` as far as a delivery writes them: the body once, a small row per
//! recipient here, one lane frame per remote domain.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, Row as _};

use super::{Connection, ROWS_PER_STATEMENT, integer, list, rows, unsigned};
use crate::base::ids::{Incarnation, QueueId};
use crate::base::{Context as _, Domain, Fault, UnixMillis, crypto::random};

/// A delivery with its recipients already told apart: here, and per remote domain.
#[derive(Clone, Debug)]
pub struct DeliveryWrite {
    /// The authenticated hub.
    pub hub: Domain,
    /// The group's URI.
    pub group_id: String,
    /// Epoch beside the message.
    pub epoch: u64,
    /// Encoded `wire::qs::Delivery`.
    pub delivery: Vec<u8>,
    /// When it was taken.
    pub now: UnixMillis,
    /// Queues of this domain.
    pub local: Vec<LocalRecipient>,
    /// Per remote domain: its encoded recipients.
    pub remote: Vec<(Domain, Vec<u8>)>,
}

/// A queue of this domain, out of an opened queue information.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRecipient {
    /// The queue.
    pub queue_id: QueueId,
    /// The generation that the information was sealed in (X3).
    pub generation: u32,
}

/// 16 octets that sort by time, so that rows made together lie together.
fn new_body_id(now: UnixMillis) -> [u8; 16] {
    let mut id = random::<16>();
    let [_, _, time @ ..] = now.0.to_be_bytes();
    id[..6].copy_from_slice(&time);
    id
}

/// Writes one delivery. Returns, for each local recipient in order, whether its queue took it.
pub(super) async fn write(connection: &mut Connection, delivery: &DeliveryWrite) -> Result<Vec<bool>, Fault> {
    let usable = usable_queues(connection, &delivery.local).await?;
    let taken: Vec<bool> = delivery.local.iter().map(|recipient| usable.binary_search(&recipient.queue_id).is_ok()).collect();
    let uses = usable.len() + delivery.remote.len();
    if uses == 0 {
        return Ok(taken);
    }
    let body_id = new_body_id(delivery.now);
    sqlx::query(
        "INSERT INTO bodies (body_id, hub, group_id, epoch, delivery, arrived_at_ms, uses) VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(body_id.as_slice())
    .bind(delivery.hub.as_str())
    .bind(delivery.group_id.as_str())
    .bind(integer(delivery.epoch))
    .bind(delivery.delivery.as_slice())
    .bind(integer(delivery.now.0))
    .bind(integer(uses as u64))
    .execute(&mut *connection)
    .await
    .context("could not write a message body")?;
    append_to_queues(connection, &usable, &body_id).await?;
    for (domain, recipients) in &delivery.remote {
        append_to_lane(connection, domain, &delivery.group_id, &body_id, recipients).await?;
    }
    Ok(taken)
}

/// The distinct queues that are there and take messages by the given generation, in id order, so that two writers lock them in
/// the same order.
async fn usable_queues(connection: &mut Connection, recipients: &[LocalRecipient]) -> Result<Vec<QueueId>, Fault> {
    let mut usable = Vec::new();
    for chunk in recipients.chunks(ROWS_PER_STATEMENT) {
        let statement = format!("SELECT queue_id, retired_generation FROM queues WHERE queue_id IN ({})", list(1, chunk.len()));
        let mut query = sqlx::query(AssertSqlSafe(statement));
        for recipient in chunk {
            query = query.bind(recipient.queue_id.0.as_slice());
        }
        let found = query.fetch_all(&mut *connection).await.context("could not look up queues")?;
        let mut retired = HashMap::new();
        for row in found {
            let queue_id: Vec<u8> = row.try_get("queue_id").context("a queue id is not readable")?;
            let generation: i64 = row.try_get("retired_generation").context("a queue's generation is not readable")?;
            retired.insert(queue_id, unsigned(generation));
        }
        let takes = |recipient: &&LocalRecipient| {
            retired.get(recipient.queue_id.0.as_slice()).is_some_and(|retired| u64::from(recipient.generation) > *retired)
        };
        usable.extend(chunk.iter().filter(takes).map(|recipient| recipient.queue_id));
    }
    usable.sort();
    usable.dedup();
    Ok(usable)
}

async fn append_to_queues(connection: &mut Connection, queues: &[QueueId], body_id: &[u8; 16]) -> Result<(), Fault> {
    for chunk in queues.chunks(ROWS_PER_STATEMENT) {
        let statement = format!(
            "UPDATE queues SET next_sequence = next_sequence + 1 WHERE queue_id IN ({}) RETURNING queue_id, next_sequence",
            list(1, chunk.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(statement));
        for queue_id in chunk {
            query = query.bind(queue_id.0.as_slice());
        }
        let numbered = query.fetch_all(&mut *connection).await.context("could not number queue entries")?;
        let statement = format!("INSERT INTO queue_entries (queue_id, sequence, body_id) VALUES {}", rows(numbered.len(), 3));
        let mut insert = sqlx::query(AssertSqlSafe(statement));
        for row in &numbered {
            let queue_id: Vec<u8> = row.try_get("queue_id").context("a queue id is not readable")?;
            let next: i64 = row.try_get("next_sequence").context("a queue's sequence is not readable")?;
            insert = insert.bind(queue_id).bind(next - 1).bind(body_id.as_slice());
        }
        insert.execute(&mut *connection).await.context("could not write queue entries")?;
    }
    Ok(())
}

async fn append_to_lane(
    connection: &mut Connection,
    domain: &Domain,
    group_id: &str,
    body_id: &[u8; 16],
    recipients: &[u8],
) -> Result<(), Fault> {
    // A lane begins with its first frame; its incarnation is fixed then (X8).
    let row = sqlx::query(
        "INSERT INTO lanes (domain, group_id, incarnation, next_sequence) VALUES ($1, $2, $3, 2) \
         ON CONFLICT (domain, group_id) DO UPDATE SET next_sequence = lanes.next_sequence + 1 RETURNING next_sequence",
    )
    .bind(domain.as_str())
    .bind(group_id)
    .bind(Incarnation::random().0.as_slice())
    .fetch_all(&mut *connection)
    .await
    .context("could not number a lane frame")?;
    let next: i64 =
        row.first().context("a lane has no sequence")?.try_get("next_sequence").context("a lane's sequence is not readable")?;
    sqlx::query("INSERT INTO lane_frames (domain, group_id, lane_sequence, body_id, recipients) VALUES ($1, $2, $3, $4, $5)")
        .bind(domain.as_str())
        .bind(group_id)
        .bind(next - 1)
        .bind(body_id.as_slice())
        .bind(recipients)
        .execute(&mut *connection)
        .await
        .context("could not write a lane frame")?;
    Ok(())
}

/// Takes one use of each body back and drops those that nothing refers to any more.
pub(super) async fn release_bodies(connection: &mut Connection, body_ids: &[Vec<u8>]) -> Result<(), Fault> {
    for chunk in body_ids.chunks(ROWS_PER_STATEMENT * 4) {
        for statement in [
            format!("UPDATE bodies SET uses = uses - 1 WHERE body_id IN ({})", list(1, chunk.len())),
            format!("DELETE FROM bodies WHERE uses <= 0 AND body_id IN ({})", list(1, chunk.len())),
        ] {
            let mut query = sqlx::query(AssertSqlSafe(statement));
            for body_id in chunk {
                query = query.bind(body_id.as_slice());
            }
            query.execute(&mut *connection).await.context("could not release message bodies")?;
        }
    }
    Ok(())
}
