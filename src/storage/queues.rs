//! Tables `queues`, `queue_entries`, `queue_markers` and `deleted_queues`: what clients make, fetch and acknowledge.

use std::collections::BTreeMap;

use sqlx::Row as _;

use super::answers::{self, Known, RequestKey};
use super::clients::note_client;
use super::deliveries::release_bodies;
use super::{Connection, Storage, Transaction, integer, invites, last_within, unsigned};
use crate::base::fault::{Context as _, Fault};
use crate::base::ids::QueueId;
use crate::base::limits::{FETCH_BYTES_MAX, Limits};
use crate::base::{ClientUri, UnixMillis, UserUri};
use crate::qs::owner::{QueueOwner, has_room_for_queue};
use crate::wire::qs::{Delivery, QueueEntry};
use crate::wire::{decode, encode};

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
    /// The hash of the client's key (`identity::revoked::key_hash`): what is revoked with the client.
    pub client_key_hash: [u8; 32],
    /// Its first generation (X3).
    pub generation: u32,
    /// The node's limits.
    pub limits: Limits,
    /// The time now.
    pub now: UnixMillis,
}

/// What came of a [`CreateQueue`].
#[derive(Debug, PartialEq, Eq)]
pub enum Created {
    /// The queue is on disk.
    Done,
    /// The request id is known already.
    Known(Known),
    /// The client has as many queues as it may.
    OverLimit,
}

impl Transaction for CreateQueue {
    const NAME: &'static str = "create_queue";
    type Answer = Created;

    async fn apply(&self, connection: &mut Connection) -> Result<Created, Fault> {
        let failed = "could not make a queue";
        if let Some(known) = answers::look_up(connection, &self.key).await? {
            return Ok(Created::Known(known));
        }
        let row = sqlx::query("SELECT COUNT(*) AS n FROM queues WHERE client = $1")
            .bind(self.client.to_string())
            .fetch_one(&mut *connection)
            .await
            .context(failed)?;
        if !has_room_for_queue(unsigned(row.try_get("n").context(failed)?), &self.limits) {
            return Ok(Created::OverLimit);
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
        .context(failed)?;
        note_client(connection, &self.client, &self.client_key_hash, self.now).await?;
        answers::keep(connection, &self.key, &self.response, self.answer_expires_at).await?;
        Ok(Created::Done)
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

/// Deletes a queue and all it holds, and stores the answer.
pub struct DeleteQueue {
    /// Names the request.
    pub key: RequestKey,
    /// Encoded Response.
    pub response: Vec<u8>,
    /// Until when the answer is kept.
    pub answer_expires_at: UnixMillis,
    /// The queue.
    pub queue_id: QueueId,
}

impl Transaction for DeleteQueue {
    const NAME: &'static str = "delete_queue";
    type Answer = Option<Known>;

    /// Answers what was known of the request; `None` when the queue is gone by it.
    async fn apply(&self, connection: &mut Connection) -> Result<Option<Known>, Fault> {
        if let Some(known) = answers::look_up(connection, &self.key).await? {
            return Ok(Some(known));
        }
        // Kept as long as the answer: a repeat proves itself by the owner key.
        sqlx::query(
            "INSERT INTO deleted_queues (queue_id, owner_key, client, expires_at_ms) \
             SELECT queue_id, owner_key, client, $2 FROM queues WHERE queue_id = $1",
        )
        .bind(self.queue_id.0.as_slice())
        .bind(integer(self.answer_expires_at.0))
        .execute(&mut *connection)
        .await
        .context("could not note that a queue is deleted")?;
        drop_queue(connection, self.queue_id).await?;
        answers::keep(connection, &self.key, &self.response, self.answer_expires_at).await?;
        Ok(None)
    }
}

/// Within a transaction: a queue, its entries and its invites are gone.
pub(super) async fn drop_queue(connection: &mut Connection, queue_id: QueueId) -> Result<(), Fault> {
    drop_entries(connection, queue_id, i64::MAX).await?;
    invites::forget_queue(connection, queue_id).await?;
    for statement in ["DELETE FROM queue_markers WHERE queue_id = $1", "DELETE FROM queues WHERE queue_id = $1"] {
        sqlx::query(statement).bind(queue_id.0.as_slice()).execute(&mut *connection).await.context("could not delete a queue")?;
    }
    Ok(())
}

async fn drop_entries(connection: &mut Connection, queue_id: QueueId, up_to: i64) -> Result<(), Fault> {
    let failed = "could not drop queue entries";
    let dropped = sqlx::query("DELETE FROM queue_entries WHERE queue_id = $1 AND sequence <= $2 RETURNING body_id, octets")
        .bind(queue_id.0.as_slice())
        .bind(up_to)
        .fetch_all(&mut *connection)
        .await
        .context(failed)?;
    if dropped.is_empty() {
        return Ok(());
    }
    let body_ids: Vec<Vec<u8>> = dropped.iter().map(|row| row.try_get("body_id")).collect::<Result<_, _>>().context(failed)?;
    let octets: i64 = dropped.iter().map(|row| row.try_get::<i64, _>("octets")).sum::<Result<_, _>>().context(failed)?;
    release_bodies(connection, &body_ids).await?;
    let left =
        sqlx::query("UPDATE queues SET entries = entries - $2, octets = octets - $3 WHERE queue_id = $1 RETURNING markers")
            .bind(queue_id.0.as_slice())
            .bind(integer(body_ids.len() as u64))
            .bind(octets)
            .fetch_all(&mut *connection)
            .await
            .context(failed)?;
    let markers = left.first().map(|row| row.try_get::<i64, _>("markers")).transpose().context(failed)?;
    if markers.is_some_and(|markers| markers > 0) {
        let known = sqlx::query("DELETE FROM queue_markers WHERE queue_id = $1 AND sequence <= $2")
            .bind(queue_id.0.as_slice())
            .bind(up_to)
            .execute(&mut *connection)
            .await
            .context(failed)?;
        sqlx::query("UPDATE queues SET markers = markers - $2 WHERE queue_id = $1")
            .bind(queue_id.0.as_slice())
            .bind(integer(known.rows_affected()))
            .execute(connection)
            .await
            .context(failed)?;
    }
    Ok(())
}

/// Begins or retires generations of a queue (X3), and stores the answer.
pub struct ChangeGeneration {
    /// Names the request.
    pub key: RequestKey,
    /// Encoded Response.
    pub response: Vec<u8>,
    /// Until when the answer is kept.
    pub answer_expires_at: UnixMillis,
    /// The queue.
    pub queue_id: QueueId,
    /// The generation that the decision saw.
    pub seen: u32,
    /// What is done.
    pub change: Generation,
}

/// A change of a queue's generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// Queue informations are sealed with this one from now on.
    Begin(u32),
    /// This one and those before it no longer work.
    Retire(u32),
}

/// What came of a [`ChangeGeneration`].
#[derive(Debug, PartialEq, Eq)]
pub enum GenerationChanged {
    /// It is on disk.
    Done,
    /// The request id is known already.
    Known(Known),
    /// The queue is not what the decision saw; nothing was written.
    Conflict,
}

impl Transaction for ChangeGeneration {
    const NAME: &'static str = "change_generation";
    type Answer = GenerationChanged;

    async fn apply(&self, connection: &mut Connection) -> Result<GenerationChanged, Fault> {
        if let Some(known) = answers::look_up(connection, &self.key).await? {
            return Ok(GenerationChanged::Known(known));
        }
        let (statement, generation) = match self.change {
            Generation::Begin(generation) => {
                ("UPDATE queues SET generation = $3 WHERE queue_id = $1 AND generation = $2", generation)
            }
            Generation::Retire(generation) => (
                "UPDATE queues SET retired_generation = MAX(retired_generation, $3) WHERE queue_id = $1 AND generation = $2",
                generation,
            ),
        };
        let changed = sqlx::query(statement)
            .bind(self.queue_id.0.as_slice())
            .bind(i64::from(self.seen))
            .bind(i64::from(generation))
            .execute(&mut *connection)
            .await
            .context("could not change a queue's generations")?;
        if changed.rows_affected() != 1 {
            return Ok(GenerationChanged::Conflict);
        }
        if let Generation::Retire(generation) = self.change {
            // Whoever were handed one could not be answered (X3).
            sqlx::query("DELETE FROM key_packages WHERE queue_id = $1 AND generation <= $2")
                .bind(self.queue_id.0.as_slice())
                .bind(i64::from(generation))
                .execute(&mut *connection)
                .await
                .context("could not forget the KeyPackages of a generation")?;
        }
        answers::keep(connection, &self.key, &self.response, self.answer_expires_at).await?;
        Ok(GenerationChanged::Done)
    }
}

/// Entries of a queue that arrived before a time become markers, each in its place: sequences stay as they are (X4). Answers how
/// many did.
pub struct AgeEntries {
    /// The queue.
    pub queue_id: QueueId,
    /// Entries that arrived before this are old.
    pub before: UnixMillis,
    /// The most entries; when fewer became markers, no old ones are left.
    pub limit: u64,
}

/// Old entries of one group, and what their marker says.
#[derive(Default)]
struct OldEntries {
    sequences: Vec<i64>,
    body_ids: Vec<Vec<u8>>,
    octets: i64,
    epoch: i64,
    arrived_at_ms: i64,
}

impl Transaction for AgeEntries {
    const NAME: &'static str = "age_entries";
    type Answer = u64;

    async fn apply(&self, connection: &mut Connection) -> Result<u64, Fault> {
        let failed = "could not turn old entries into markers";
        let marker = encode(&Delivery::MessagesLost);
        let found = sqlx::query(
            "SELECT e.sequence, e.octets, e.body_id, b.hub, b.group_id, b.epoch, b.arrived_at_ms FROM queue_entries e \
             JOIN bodies b ON b.body_id = e.body_id \
             WHERE e.queue_id = $1 AND e.octets > 0 AND b.arrived_at_ms < $2 ORDER BY e.sequence LIMIT $3",
        )
        .bind(self.queue_id.0.as_slice())
        .bind(integer(self.before.0))
        .bind(integer(self.limit))
        .fetch_all(&mut *connection)
        .await
        .context(failed)?;
        let mut groups: BTreeMap<(String, String), OldEntries> = BTreeMap::new();
        for row in &found {
            let name = (row.try_get("hub").context(failed)?, row.try_get("group_id").context(failed)?);
            let old = groups.entry(name).or_default();
            old.sequences.push(row.try_get("sequence").context(failed)?);
            old.body_ids.push(row.try_get("body_id").context(failed)?);
            old.octets += row.try_get::<i64, _>("octets").context(failed)?;
            old.epoch = row.try_get("epoch").context(failed)?;
            old.arrived_at_ms = row.try_get("arrived_at_ms").context(failed)?;
        }
        for ((hub, group_id), old) in &groups {
            let body_id = crate::base::crypto::random::<16>();
            sqlx::query(
                "INSERT INTO bodies (body_id, hub, group_id, epoch, delivery, arrived_at_ms, uses) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7)",
            )
            .bind(body_id.as_slice())
            .bind(hub.as_str())
            .bind(group_id.as_str())
            .bind(old.epoch)
            .bind(marker.as_slice())
            .bind(old.arrived_at_ms)
            .bind(integer(old.sequences.len() as u64))
            .execute(&mut *connection)
            .await
            .context(failed)?;
            for sequence in &old.sequences {
                sqlx::query("UPDATE queue_entries SET body_id = $3, octets = 0 WHERE queue_id = $1 AND sequence = $2")
                    .bind(self.queue_id.0.as_slice())
                    .bind(sequence)
                    .bind(body_id.as_slice())
                    .execute(&mut *connection)
                    .await
                    .context(failed)?;
            }
            release_bodies(connection, &old.body_ids).await?;
        }
        let octets: i64 = groups.values().map(|old| old.octets).sum();
        sqlx::query("UPDATE queues SET octets = octets - $2 WHERE queue_id = $1")
            .bind(self.queue_id.0.as_slice())
            .bind(octets)
            .execute(connection)
            .await
            .context(failed)?;
        Ok(found.len() as u64)
    }
}

/// A queue as its Queueing Service knows it.
#[derive(Clone, Debug)]
pub struct Queue {
    /// Whose it is.
    pub owner: QueueOwner,
    /// The generation that queue informations are sealed in now (X3).
    pub generation: u32,
    /// The sequence that its next entry will get.
    pub next_sequence: u64,
}

impl AsRef<QueueOwner> for Queue {
    fn as_ref(&self) -> &QueueOwner {
        &self.owner
    }
}

/// How many queues there are and what is in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueTotals {
    /// Queues.
    pub queues: u64,
    /// Entries in them, markers of losses included.
    pub entries: u64,
    /// Octets of deliveries in them.
    pub octets: u64,
}

impl Storage {
    /// What all queues hold together. Looks at each queue, though not at its entries: nothing to ask many times a second.
    pub async fn queue_totals(&self) -> Result<QueueTotals, Fault> {
        let failed = "could not read what the queues hold";
        let row = sqlx::query(
            "SELECT COUNT(*) AS queues, COALESCE(SUM(entries), 0) AS entries, COALESCE(SUM(octets), 0) AS octets FROM queues",
        )
        .fetch_one(self.readers())
        .await
        .context(failed)?;
        Ok(QueueTotals {
            queues: unsigned(row.try_get("queues").context(failed)?),
            entries: unsigned(row.try_get("entries").context(failed)?),
            octets: unsigned(row.try_get("octets").context(failed)?),
        })
    }

    /// A queue; `None` when there is none of that name.
    pub async fn queue(&self, queue_id: QueueId) -> Result<Option<Queue>, Fault> {
        let failed = "could not read a queue";
        let row = sqlx::query("SELECT owner_key, client, generation, next_sequence FROM queues WHERE queue_id = $1")
            .bind(queue_id.0.as_slice())
            .fetch_optional(self.readers())
            .await
            .context(failed)?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(Queue {
            owner: owner(&row).context(failed)?,
            generation: u32::try_from(row.try_get::<i64, _>("generation").context(failed)?).context(failed)?,
            next_sequence: unsigned(row.try_get("next_sequence").context(failed)?),
        }))
    }

    /// Whose a queue was that was deleted lately.
    pub async fn deleted_queue(&self, queue_id: QueueId) -> Result<Option<QueueOwner>, Fault> {
        let failed = "could not read a deleted queue";
        let row = sqlx::query("SELECT owner_key, client FROM deleted_queues WHERE queue_id = $1")
            .bind(queue_id.0.as_slice())
            .fetch_optional(self.readers())
            .await
            .context(failed)?;
        row.map(|row| owner(&row)).transpose().context(failed)
    }

    /// Whose each of these queues is, of those that are there.
    pub async fn queue_clients(&self, queue_ids: &[QueueId]) -> Result<BTreeMap<QueueId, ClientUri>, Fault> {
        let mut clients = BTreeMap::new();
        for queue_id in queue_ids {
            if !clients.contains_key(queue_id)
                && let Some(queue) = self.queue(*queue_id).await?
            {
                clients.insert(*queue_id, queue.owner.client);
            }
        }
        Ok(clients)
    }

    /// Queues whose first entry that is no marker arrived before `before`, in order of id, after `after`.
    pub async fn aged_queues(&self, before: UnixMillis, after: Option<QueueId>, limit: usize) -> Result<Vec<QueueId>, Fault> {
        let failed = "could not look for old queue entries";
        // Entries come in the order of their arrival: the first tells whether any is old.
        let rows = sqlx::query(
            "SELECT q.queue_id FROM queues q WHERE q.queue_id > $1 AND q.octets > 0 AND \
             (SELECT b.arrived_at_ms FROM queue_entries e JOIN bodies b ON b.body_id = e.body_id \
              WHERE e.queue_id = q.queue_id AND e.octets > 0 ORDER BY e.sequence LIMIT 1) < $2 \
             ORDER BY q.queue_id LIMIT $3",
        )
        .bind(after.map_or_else(Vec::new, |after| after.0.to_vec()))
        .bind(integer(before.0))
        .bind(integer(limit as u64))
        .fetch_all(self.readers())
        .await
        .context(failed)?;
        rows.iter()
            .map(|row| {
                let queue_id: Vec<u8> = row.try_get("queue_id").context(failed)?;
                QueueId::from_bytes(&queue_id).context(failed)
            })
            .collect()
    }

    /// Entries from sequence `from` on: at most `max`, and at most [`FETCH_BYTES_MAX`] octets beyond the first.
    pub async fn entries(&self, queue_id: QueueId, from: u64, max: u32) -> Result<Vec<QueueEntry>, Fault> {
        let failed = "could not read queue entries";
        // One snapshot of the database for both statements: an entry may become a marker in between.
        let mut transaction = self.readers().begin().await.context(failed)?;
        // Sizes first: bodies that do not fit are not read at all.
        let sizes = sqlx::query(
            "SELECT sequence AS n, octets FROM queue_entries WHERE queue_id = $1 AND sequence >= $2 ORDER BY sequence LIMIT $3",
        )
        .bind(queue_id.0.as_slice())
        .bind(integer(from))
        .bind(i64::from(max))
        .fetch_all(&mut *transaction)
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
        .fetch_all(&mut *transaction)
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

fn owner(row: &sqlx::sqlite::SqliteRow) -> Result<QueueOwner, Fault> {
    let failed = "the owner of a queue is not readable";
    let client: String = row.try_get("client").context(failed)?;
    Ok(QueueOwner { owner_key: row.try_get("owner_key").context(failed)?, client: client.parse().context(failed)? })
}

/// Within a transaction: the queues of all clients of a user.
pub(super) async fn queues_of_user(connection: &mut Connection, user: &UserUri) -> Result<Vec<QueueId>, Fault> {
    let failed = "could not read the queues of a user";
    // The clients of a user are the names that begin with its own and a slash; '0' follows '/'.
    let client = format!("mimi://{}/d/{}", user.domain(), user.name());
    let rows = sqlx::query("SELECT queue_id FROM queues WHERE client >= $1 AND client < $2")
        .bind(format!("{client}/"))
        .bind(format!("{client}0"))
        .fetch_all(connection)
        .await
        .context(failed)?;
    ids(&rows).context(failed)
}

/// Within a transaction: the queues of a client.
pub(super) async fn queues_of_client(connection: &mut Connection, client: &ClientUri) -> Result<Vec<QueueId>, Fault> {
    let failed = "could not read the queues of a client";
    let rows = sqlx::query("SELECT queue_id FROM queues WHERE client = $1")
        .bind(client.to_string())
        .fetch_all(connection)
        .await
        .context(failed)?;
    ids(&rows).context(failed)
}

fn ids(rows: &[sqlx::sqlite::SqliteRow]) -> Result<Vec<QueueId>, Fault> {
    let failed = "a queue id is not readable";
    rows.iter()
        .map(|row| {
            let queue_id: Vec<u8> = row.try_get("queue_id").context(failed)?;
            QueueId::from_bytes(&queue_id).context(failed)
        })
        .collect()
}
