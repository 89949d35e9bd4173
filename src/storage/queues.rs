//! Tables `queues` and `queue_entries`: what clients make, fetch and acknowledge.

use sqlx::Row as _;

use super::answers::{self, Known, RequestKey};
use super::deliveries::release_bodies;
use super::{Connection, Storage, Transaction, integer, last_within, unsigned};
use crate::base::fault::{Context as _, Fault};
use crate::base::ids::QueueId;
use crate::base::limits::FETCH_BYTES_MAX;
use crate::base::{ClientUri, UnixMillis};
use crate::wire::decode;
use crate::wire::qs::QueueEntry;

/// Makes a queue, and stores the answer.
pub struct CreateQueue {
    /// Names the request.
    pub key: RequestKey,
    /// Encoded Response.
    pub response: Vec<u8>,
    /// Until when the answer is kept.
    pub answer_expires_at: UnixMillis,
    /// The new queue.
    pub queue_id: QueueId,
    /// Ed25519 public key.
    pub owner_key: Vec<u8>,
    /// Whose queue.
    pub client: ClientUri,
    /// Its first generation (X3).
    pub generation: u32,
}

impl Transaction for CreateQueue {
    const NAME: &'static str = "create_queue";
    type Answer = Option<Known>;

    /// Answers what was known of the request; `None` when the queue was made.
    async fn apply(&self, connection: &mut Connection) -> Result<Option<Known>, Fault> {
        if let Some(known) = answers::look_up(connection, &self.key).await? {
            return Ok(Some(known));
        }
        sqlx::query(
            "INSERT INTO queues (queue_id, owner_key, client, generation, retired_generation, next_sequence) \
             VALUES ($1, $2, $3, $4, 0, 1)",
        )
        .bind(self.queue_id.0.as_slice())
        .bind(self.owner_key.as_slice())
        .bind(self.client.to_string())
        .bind(i64::from(self.generation))
        .execute(&mut *connection)
        .await
        .context("could not make a queue")?;
        answers::keep(connection, &self.key, &self.response, self.answer_expires_at).await?;
        Ok(None)
    }
}

/// Drops entries that the client holds durably. A repeat changes nothing.
pub struct AckEntries {
    /// The queue.
    pub queue_id: QueueId,
    /// The last sequence to drop.
    pub up_to: u64,
}

impl Transaction for AckEntries {
    const NAME: &'static str = "ack_entries";
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Fault> {
        drop_entries(connection, self.queue_id, integer(self.up_to)).await
    }
}

/// Drops a queue and all it holds. A repeat changes nothing.
pub struct DeleteQueue(pub QueueId);

impl Transaction for DeleteQueue {
    const NAME: &'static str = "delete_queue";
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Fault> {
        drop_entries(connection, self.0, i64::MAX).await?;
        sqlx::query("DELETE FROM queues WHERE queue_id = $1")
            .bind(self.0.0.as_slice())
            .execute(connection)
            .await
            .context("could not delete a queue")?;
        Ok(())
    }
}

async fn drop_entries(connection: &mut Connection, queue_id: QueueId, up_to: i64) -> Result<(), Fault> {
    let failed = "could not drop queue entries";
    let dropped = sqlx::query("DELETE FROM queue_entries WHERE queue_id = $1 AND sequence <= $2 RETURNING body_id")
        .bind(queue_id.0.as_slice())
        .bind(up_to)
        .fetch_all(&mut *connection)
        .await
        .context(failed)?;
    let body_ids: Vec<Vec<u8>> = dropped.iter().map(|row| row.try_get("body_id")).collect::<Result<_, _>>().context(failed)?;
    release_bodies(connection, &body_ids).await
}

/// A queue as its Queueing Service knows it.
#[derive(Clone, Debug)]
pub struct Queue {
    /// Ed25519 public key that signs requests about it.
    pub owner_key: Vec<u8>,
    /// Whose queue.
    pub client: ClientUri,
    /// The sequence that its next entry will get.
    pub next_sequence: u64,
}

impl Storage {
    /// A queue; `None` when there is none of that name.
    pub async fn queue(&self, queue_id: QueueId) -> Result<Option<Queue>, Fault> {
        let failed = "could not read a queue";
        let row = sqlx::query("SELECT owner_key, client, next_sequence FROM queues WHERE queue_id = $1")
            .bind(queue_id.0.as_slice())
            .fetch_optional(self.readers())
            .await
            .context(failed)?;
        let Some(row) = row else { return Ok(None) };
        let client: String = row.try_get("client").context(failed)?;
        Ok(Some(Queue {
            owner_key: row.try_get("owner_key").context(failed)?,
            client: client.parse().context(failed)?,
            next_sequence: unsigned(row.try_get("next_sequence").context(failed)?),
        }))
    }

    /// Entries from sequence `from` on: at most `max`, and at most [`FETCH_BYTES_MAX`] octets beyond the first.
    pub async fn entries(&self, queue_id: QueueId, from: u64, max: u32) -> Result<Vec<QueueEntry>, Fault> {
        let failed = "could not read queue entries";
        // Sizes first: bodies that do not fit are not read at all.
        let sizes = sqlx::query(
            "SELECT e.sequence AS n, LENGTH(b.delivery) AS octets FROM queue_entries e JOIN bodies b ON b.body_id = e.body_id \
             WHERE e.queue_id = $1 AND e.sequence >= $2 ORDER BY e.sequence LIMIT $3",
        )
        .bind(queue_id.0.as_slice())
        .bind(integer(from))
        .bind(i64::from(max))
        .fetch_all(self.readers())
        .await
        .context(failed)?;
        let Some(last) = last_within(&sizes, FETCH_BYTES_MAX).context(failed)? else { return Ok(Vec::new()) };
        let found = sqlx::query(
            "SELECT e.sequence, b.hub, b.group_id, b.epoch, b.delivery, b.arrived_at_ms \
             FROM queue_entries e JOIN bodies b ON b.body_id = e.body_id \
             WHERE e.queue_id = $1 AND e.sequence >= $2 AND e.sequence <= $3 ORDER BY e.sequence",
        )
        .bind(queue_id.0.as_slice())
        .bind(integer(from))
        .bind(last)
        .fetch_all(self.readers())
        .await
        .context(failed)?;
        let mut entries = Vec::with_capacity(found.len());
        for row in found {
            let delivery: Vec<u8> = row.try_get("delivery").context(failed)?;
            let hub: String = row.try_get("hub").context(failed)?;
            let group_id: String = row.try_get("group_id").context(failed)?;
            entries.push(QueueEntry {
                sequence: unsigned(row.try_get("sequence").context(failed)?),
                arrived_at_ms: unsigned(row.try_get("arrived_at_ms").context(failed)?),
                hub: hub.into_bytes().into(),
                group_id: group_id.into_bytes().into(),
                epoch: unsigned(row.try_get("epoch").context(failed)?),
                delivery: decode(&delivery).context("a stored delivery is not readable")?,
            });
        }
        Ok(entries)
    }
}
