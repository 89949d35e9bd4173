//! Tables `bodies`, `queue_entries`, `queue_markers` and `lane_frames` as far as a delivery writes them: the body once, a small
//! row per recipient here, one lane frame per remote domain. What a queue does with an arrival is `qs::queue`'s to decide.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{AssertSqlSafe, Row as _};

use super::{Connection, ROWS_PER_STATEMENT, integer, invites, list, rows, unsigned};
use crate::base::ids::{Incarnation, InviteId, QueueId};
use crate::base::{ClientUri, Context as _, Domain, Fault, UnixMillis, crypto::random};
use crate::qs::queue::{Arrival, QueueLimits, QueueState, has_room, takes_generation, tell_loss};
use crate::wire::encode;
use crate::wire::qs::Delivery;

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
    /// Whether that is the news that messages were lost: queues take it as a marker (X4, X8).
    pub tells_loss: bool,
    /// When it was taken.
    pub now: UnixMillis,
    /// Queues of this domain.
    pub local: Vec<LocalRecipient>,
    /// Up to where these take messages.
    pub limits: QueueLimits,
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
    /// The invite that it is, if it is not bound to a hub (X3).
    pub invite: Option<Invite>,
}

/// An invite that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invite {
    /// Its name.
    pub invite_id: InviteId,
    /// Whether it stands in a KeyPackage of last resort.
    pub last_resort: bool,
    /// Until when it is good.
    pub expires_at: UnixMillis,
}

/// 16 octets that sort by time, so that rows made together lie together.
pub(super) fn new_body_id(now: UnixMillis) -> [u8; 16] {
    let mut id = random::<16>();
    let [_, _, time @ ..] = now.0.to_be_bytes();
    id[..6].copy_from_slice(&time);
    id
}

/// Writes one delivery. Returns, for each local recipient in order, whether its queue took it.
pub(super) async fn write(connection: &mut Connection, delivery: &DeliveryWrite) -> Result<Vec<bool>, Fault> {
    let queues = queues(connection, &delivery.local).await?;
    let mut taken = accepted(connection, delivery, &queues).await?;
    let addressed: BTreeSet<QueueId> =
        delivery.local.iter().zip(&taken).filter(|(_, taken)| **taken).map(|(recipient, _)| recipient.queue_id).collect();
    // In id order, so that two writers lock queues in the same order.
    let (mut entries, mut markers) = (Vec::new(), Vec::new());
    for queue_id in addressed {
        let Some(queue) = queues.get(&queue_id) else { continue };
        match arrival(connection, delivery, queue_id, queue).await? {
            Arrival::Entry => entries.push(queue_id),
            Arrival::Marker => markers.push(queue_id),
            Arrival::Covered => {}
            Arrival::Refused => {
                for (taken, _) in taken.iter_mut().zip(&delivery.local).filter(|(_, to)| to.queue_id == queue_id) {
                    *taken = false;
                }
            }
        }
    }
    let marked: BTreeSet<QueueId> =
        entries.iter().copied().filter(|queue_id| queues.get(queue_id).is_some_and(|queue| queue.markers > 0)).collect();
    unmark(connection, delivery, &marked).await?;
    let uses = entries.len() + delivery.remote.len();
    if uses > 0 {
        let body_id = write_body(connection, delivery, &delivery.delivery, uses).await?;
        append_to_queues(connection, delivery, &entries, &body_id, Some(delivery.delivery.len())).await?;
        for (domain, recipients) in &delivery.remote {
            append_to_lane(connection, domain, delivery, &body_id, recipients).await?;
        }
    }
    if !markers.is_empty() {
        let body_id = write_body(connection, delivery, &encode(&Delivery::MessagesLost), markers.len()).await?;
        append_to_queues(connection, delivery, &markers, &body_id, None).await?;
    }
    let users = entries.iter().chain(&markers).filter_map(|queue_id| queues.get(queue_id));
    note_hub(connection, delivery, users.map(|queue| queue.client.user().to_string()).collect()).await?;
    Ok(taken)
}

/// A queue as a delivery finds it.
struct Found {
    state: QueueState,
    client: ClientUri,
    /// The groups of which its last entry is a marker.
    markers: u64,
}

/// The queues of these recipients that are there.
async fn queues(connection: &mut Connection, recipients: &[LocalRecipient]) -> Result<BTreeMap<QueueId, Found>, Fault> {
    let failed = "could not look up queues";
    let mut queues = BTreeMap::new();
    for chunk in recipients.chunks(ROWS_PER_STATEMENT) {
        let statement = format!(
            "SELECT queue_id, client, generation, retired_generation, entries, octets, markers FROM queues \
             WHERE queue_id IN ({})",
            list(1, chunk.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(statement));
        for recipient in chunk {
            query = query.bind(recipient.queue_id.0.as_slice());
        }
        for row in query.fetch_all(&mut *connection).await.context(failed)? {
            let queue_id: Vec<u8> = row.try_get("queue_id").context(failed)?;
            let client: String = row.try_get("client").context(failed)?;
            let state = QueueState {
                generation: generation(row.try_get("generation").context(failed)?)?,
                retired_generation: generation(row.try_get("retired_generation").context(failed)?)?,
                entries: unsigned(row.try_get("entries").context(failed)?),
                octets: unsigned(row.try_get("octets").context(failed)?),
            };
            let markers = unsigned(row.try_get("markers").context(failed)?);
            let found = Found { state, client: client.parse().context(failed)?, markers };
            queues.insert(QueueId::from_bytes(&queue_id).context(failed)?, found);
        }
    }
    Ok(queues)
}

fn generation(stored: i64) -> Result<u32, Fault> {
    u32::try_from(stored).context("a queue's generation is not readable")
}

/// For each recipient, whether its queue takes anything by this information. Invites are bound to the group with this.
async fn accepted(
    connection: &mut Connection,
    delivery: &DeliveryWrite,
    queues: &BTreeMap<QueueId, Found>,
) -> Result<Vec<bool>, Fault> {
    let mut accepted = Vec::with_capacity(delivery.local.len());
    for recipient in &delivery.local {
        let queue = queues.get(&recipient.queue_id);
        let mut takes = takes_generation(queue.map(|queue| &queue.state), recipient.generation);
        if let (true, Some(queue), Some(invite)) = (takes, queue, &recipient.invite) {
            takes = invites::use_invite(connection, delivery, recipient.queue_id, queue.client.user(), invite).await?;
        }
        accepted.push(takes);
    }
    Ok(accepted)
}

/// What the delivery does to one queue.
async fn arrival(
    connection: &mut Connection,
    delivery: &DeliveryWrite,
    queue_id: QueueId,
    queue: &Found,
) -> Result<Arrival, Fault> {
    if !delivery.tells_loss && has_room(&queue.state, &delivery.limits, delivery.delivery.len() as u64) {
        return Ok(Arrival::Entry);
    }
    let failed = "could not read the markers of a queue";
    let row = sqlx::query(
        "SELECT COUNT(*) AS n, COALESCE(SUM(group_id = $3), 0) AS marked FROM queue_markers WHERE queue_id = $1 AND hub = $2",
    )
    .bind(queue_id.0.as_slice())
    .bind(delivery.hub.as_str())
    .bind(delivery.group_id.as_str())
    .fetch_one(connection)
    .await
    .context(failed)?;
    let marked: i64 = row.try_get("marked").context(failed)?;
    Ok(tell_loss(marked != 0, unsigned(row.try_get("n").context(failed)?)))
}

/// The group's last entry in these queues is no longer a marker: the next loss is told anew.
async fn unmark(connection: &mut Connection, delivery: &DeliveryWrite, queues: &BTreeSet<QueueId>) -> Result<(), Fault> {
    let failed = "could not take a marker back";
    for queue_id in queues {
        let taken_back = sqlx::query("DELETE FROM queue_markers WHERE queue_id = $1 AND hub = $2 AND group_id = $3")
            .bind(queue_id.0.as_slice())
            .bind(delivery.hub.as_str())
            .bind(delivery.group_id.as_str())
            .execute(&mut *connection)
            .await
            .context(failed)?;
        if taken_back.rows_affected() > 0 {
            sqlx::query("UPDATE queues SET markers = markers - 1 WHERE queue_id = $1")
                .bind(queue_id.0.as_slice())
                .execute(&mut *connection)
                .await
                .context(failed)?;
        }
    }
    Ok(())
}

async fn write_body(
    connection: &mut Connection,
    delivery: &DeliveryWrite,
    octets: &[u8],
    uses: usize,
) -> Result<[u8; 16], Fault> {
    let body_id = new_body_id(delivery.now);
    sqlx::query(
        "INSERT INTO bodies (body_id, hub, group_id, epoch, delivery, arrived_at_ms, uses) VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(body_id.as_slice())
    .bind(delivery.hub.as_str())
    .bind(delivery.group_id.as_str())
    .bind(integer(delivery.epoch))
    .bind(octets)
    .bind(integer(delivery.now.0))
    .bind(integer(uses as u64))
    .execute(connection)
    .await
    .context("could not write a message body")?;
    Ok(body_id)
}

/// The next entry of each of these queues. `octets`: of the delivery; `None` for a marker.
async fn append_to_queues(
    connection: &mut Connection,
    delivery: &DeliveryWrite,
    queues: &[QueueId],
    body_id: &[u8; 16],
    octets: Option<usize>,
) -> Result<(), Fault> {
    let size = integer(octets.unwrap_or(0) as u64);
    for chunk in queues.chunks(ROWS_PER_STATEMENT) {
        let statement = format!(
            "UPDATE queues SET next_sequence = next_sequence + 1, entries = entries + 1, octets = octets + $1, \
             markers = markers + $2 WHERE queue_id IN ({}) RETURNING queue_id, next_sequence",
            list(3, chunk.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(statement)).bind(size).bind(i64::from(octets.is_none()));
        for queue_id in chunk {
            query = query.bind(queue_id.0.as_slice());
        }
        let mut numbered: Vec<(Vec<u8>, i64)> = Vec::with_capacity(chunk.len());
        for row in query.fetch_all(&mut *connection).await.context("could not number queue entries")? {
            let next: i64 = row.try_get("next_sequence").context("a queue's sequence is not readable")?;
            numbered.push((row.try_get("queue_id").context("a queue id is not readable")?, next - 1));
        }
        let values = rows(numbered.len(), 4);
        let statement = format!("INSERT INTO queue_entries (queue_id, sequence, body_id, octets) VALUES {values}");
        let mut insert = sqlx::query(AssertSqlSafe(statement));
        for (queue_id, sequence) in &numbered {
            insert = insert.bind(queue_id.as_slice()).bind(sequence).bind(body_id.as_slice()).bind(size);
        }
        insert.execute(&mut *connection).await.context("could not write queue entries")?;
        if octets.is_none() {
            let statement = format!("INSERT INTO queue_markers (queue_id, hub, group_id, sequence) VALUES {values}");
            let mut insert = sqlx::query(AssertSqlSafe(statement));
            for (queue_id, sequence) in &numbered {
                let group = (delivery.hub.as_str(), delivery.group_id.as_str());
                insert = insert.bind(queue_id.as_slice()).bind(group.0).bind(group.1).bind(sequence);
            }
            insert.execute(&mut *connection).await.context("could not note the markers of queues")?;
        }
    }
    Ok(())
}

/// Remembers that the hub delivers to these users (X6).
async fn note_hub(connection: &mut Connection, delivery: &DeliveryWrite, users: BTreeSet<String>) -> Result<(), Fault> {
    let users: Vec<String> = users.into_iter().collect();
    for chunk in users.chunks(ROWS_PER_STATEMENT) {
        let statement = format!(
            "INSERT INTO user_hubs (user_uri, hub, since_ms) VALUES {} ON CONFLICT (user_uri, hub) DO NOTHING",
            rows(chunk.len(), 3)
        );
        let mut insert = sqlx::query(AssertSqlSafe(statement));
        for user in chunk {
            insert = insert.bind(user.as_str()).bind(delivery.hub.as_str()).bind(integer(delivery.now.0));
        }
        insert.execute(&mut *connection).await.context("could not note who delivers to a user")?;
    }
    Ok(())
}

async fn append_to_lane(
    connection: &mut Connection,
    domain: &Domain,
    delivery: &DeliveryWrite,
    body_id: &[u8; 16],
    recipients: &[u8],
) -> Result<(), Fault> {
    let octets = integer((delivery.delivery.len() + recipients.len()) as u64);
    // A lane begins with its first frame; its incarnation is fixed then (X8).
    let row = sqlx::query(
        "INSERT INTO lanes (domain, group_id, incarnation, next_sequence, frames, octets, undelivered_since_ms) \
         VALUES ($1, $2, $3, 2, 1, $4, $5) \
         ON CONFLICT (domain, group_id) DO UPDATE SET next_sequence = lanes.next_sequence + 1, frames = lanes.frames + 1, \
         octets = lanes.octets + excluded.octets, \
         undelivered_since_ms = COALESCE(lanes.undelivered_since_ms, excluded.undelivered_since_ms) RETURNING next_sequence",
    )
    .bind(domain.as_str())
    .bind(delivery.group_id.as_str())
    .bind(Incarnation::random().0.as_slice())
    .bind(octets)
    .bind(integer(delivery.now.0))
    .fetch_all(&mut *connection)
    .await
    .context("could not number a lane frame")?;
    let next: i64 =
        row.first().context("a lane has no sequence")?.try_get("next_sequence").context("a lane's sequence is not readable")?;
    sqlx::query(
        "INSERT INTO lane_frames (domain, group_id, lane_sequence, body_id, recipients, octets, accepted_at_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(domain.as_str())
    .bind(delivery.group_id.as_str())
    .bind(next - 1)
    .bind(body_id.as_slice())
    .bind(recipients)
    .bind(octets)
    .bind(integer(delivery.now.0))
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
