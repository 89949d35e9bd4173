//! What waits, for whoever looks at a node: sums over the tables of lanes and queues, and whether the disk can be written.

use sqlx::Row as _;

use super::{Connection, Storage, Transaction, integer, unsigned};
use crate::base::fault::{Context as _, Fault};
use crate::base::{Domain, UnixMillis};

/// The frames that wait for one domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Which domain.
    pub domain: Domain,
    /// How many frames.
    pub frames: u64,
    /// How many lanes they are in.
    pub lanes: u64,
    /// When the oldest was written.
    pub oldest: UnixMillis,
}

impl Storage {
    /// What waits for each domain, in the order of their names; at most `limit` domains.
    pub async fn backlogs(&self, limit: usize) -> Result<Vec<Backlog>, Fault> {
        let failed = "could not read what waits for other domains";
        // A lane has no gaps, so its first frame and its next number tell how many there are: one probe for each lane, however
        // many frames wait.
        let rows = sqlx::query(
            "SELECT l.domain, COUNT(*) AS lanes, SUM(l.next_sequence - f.lane_sequence) AS frames, \
             MIN(b.arrived_at_ms) AS oldest FROM lanes l \
             JOIN lane_frames f ON f.domain = l.domain AND f.group_id = l.group_id AND f.lane_sequence = \
             (SELECT MIN(x.lane_sequence) FROM lane_frames x WHERE x.domain = l.domain AND x.group_id = l.group_id) \
             JOIN bodies b ON b.body_id = f.body_id GROUP BY l.domain ORDER BY l.domain LIMIT $1",
        )
        .bind(integer(limit as u64))
        .fetch_all(self.readers())
        .await
        .context(failed)?;
        rows.iter()
            .map(|row| {
                Ok(Backlog {
                    domain: row.try_get::<String, _>("domain").context(failed)?.parse().context(failed)?,
                    frames: unsigned(row.try_get("frames").context(failed)?),
                    lanes: unsigned(row.try_get("lanes").context(failed)?),
                    oldest: UnixMillis(unsigned(row.try_get("oldest").context(failed)?)),
                })
            })
            .collect()
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
}

/// Notes when it was tried, and nothing else: it shows that there is room, and a disk. What is written differs each time, because
/// SQLite leaves a page alone that would stay as it is.
pub struct TryWriting {
    /// When.
    pub now: UnixMillis,
}

impl Transaction for TryWriting {
    const NAME: &'static str = "try_writing";
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Fault> {
        sqlx::query(
            "INSERT INTO settings (name, value) VALUES ('tried_writing_at_ms', $1) \
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )
        .bind(self.now.0.to_be_bytes().as_slice())
        .execute(connection)
        .await
        .context("could not write to the database")?;
        Ok(())
    }
}
