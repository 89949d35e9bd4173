//! Tables `lanes`, `lane_frames`: frames on their way to other domains, in order, until they are delivered or their lane's
//! incarnation ends (S14, X8).
//!
//! A frame's place in its lane never changes. On the wire frames are numbered from `lanes.begins_after` on, so that an incarnation
//! that ends costs the same however many frames wait: the place of its last lost frame becomes that of the `reset` which begins
//! the next one. What lies before `begins_after` is dead, and swept away later, a few rows at a time.

use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::dead_letters::{self, DeadLetter};
use super::deliveries::{new_body_id, release_bodies};
use super::{Connection, Storage, Transaction, integer, last_within, unsigned};
use crate::base::fault::{Context as _, Fault};
use crate::base::ids::Incarnation;
use crate::base::{Domain, UnixMillis};

/// A frame that waits for its remote domain.
#[derive(Clone, Debug)]
pub struct WaitingFrame {
    /// The group's URI.
    pub group_id: String,
    /// The lane's life.
    pub incarnation: Incarnation,
    /// Its place in that life, from 1 on.
    pub lane_sequence: u64,
    /// Epoch beside the message.
    pub epoch: u64,
    /// Encoded recipients, as the Delivery Service wrote them.
    pub recipients: Vec<u8>,
    /// Encoded `wire::qs::Delivery`.
    pub delivery: Vec<u8>,
}

/// A lane in which frames wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneStatus {
    /// The remote domain.
    pub domain: Domain,
    /// The group's URI.
    pub group_id: String,
    /// The lane's life.
    pub incarnation: Incarnation,
    /// The sequence of the first frame that waits.
    pub first_sequence: u64,
    /// The sequence that the next frame to be accepted gets.
    pub next_sequence: u64,
    /// The frames that wait, a `reset` included.
    pub frames: u64,
    /// Their octets: messages and recipients, each frame counted for itself.
    pub octets: u64,
    /// When the oldest frame was accepted that has not been delivered, those included that have died since.
    pub undelivered_since: UnixMillis,
    /// Since when the other side has refused even a `reset`.
    pub refused_since: Option<UnixMillis>,
}

/// What waits for one domain, over all its lanes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneTotals {
    /// The remote domain.
    pub domain: Domain,
    /// Lanes in which frames wait.
    pub lanes: u64,
    /// The frames that wait.
    pub frames: u64,
    /// Their octets.
    pub octets: u64,
    /// The oldest [`LaneStatus::undelivered_since`].
    pub undelivered_since: UnixMillis,
}

/// A frame that waits, as far as a lane's bounds are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameSize {
    /// Its place in the lane's life.
    pub lane_sequence: u64,
    /// Its octets.
    pub octets: u64,
    /// When it was accepted.
    pub accepted_at: UnixMillis,
    /// Whether it is the `reset` that the lane's life begins with.
    pub is_reset: bool,
}

/// The frames that wait in a lane before a certain one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LanePrefix {
    /// How many.
    pub frames: u64,
    /// Their octets.
    pub octets: u64,
    /// How many of them are a `reset`: none or one.
    pub resets: u64,
}

/// Which lanes are looked for, see [`Storage::lanes_over`].
#[derive(Clone, Copy, Debug)]
pub struct LaneBounds {
    /// More frames than this wait.
    pub frames_max: u64,
    /// More octets than this wait.
    pub octets_max: u64,
    /// The first message was accepted before this.
    pub accepted_before: UnixMillis,
}

impl Storage {
    /// The domains that frames wait for.
    pub async fn domains_with_frames(&self) -> Result<Vec<Domain>, Fault> {
        let failed = "could not read which domains have frames waiting";
        let rows = sqlx::query("SELECT DISTINCT domain FROM lanes WHERE undelivered_since_ms IS NOT NULL")
            .fetch_all(self.readers())
            .await
            .context(failed)?;
        rows.iter().map(|row| domain(row).context(failed)).collect()
    }

    /// The groups that have frames waiting for `domain`, in order of name, after `after` (empty: from the first on).
    pub async fn waiting_lanes(&self, domain: &Domain, after: &str, limit: usize) -> Result<Vec<String>, Fault> {
        let failed = "could not read which lanes have frames waiting";
        let rows = sqlx::query(
            "SELECT group_id FROM lanes WHERE domain = $1 AND group_id > $2 AND undelivered_since_ms IS NOT NULL \
             ORDER BY group_id LIMIT $3",
        )
        .bind(domain.as_str())
        .bind(after)
        .bind(integer(limit as u64))
        .fetch_all(self.readers())
        .await
        .context(failed)?;
        rows.into_iter().map(|row| row.try_get("group_id").context(failed)).collect()
    }

    /// The first frames that wait in one lane from `from` on, in order: at most `limit`, and at most `octets_max` octets of
    /// messages and recipients beyond the first.
    pub async fn waiting_frames(
        &self,
        domain: &Domain,
        group_id: &str,
        from: u64,
        limit: usize,
        octets_max: usize,
    ) -> Result<Vec<WaitingFrame>, Fault> {
        let failed = "could not read waiting frames";
        // Sizes first: bodies that do not fit are not read at all.
        let sizes = sqlx::query(
            "SELECT f.lane_sequence AS n, f.octets AS octets FROM lanes l JOIN lane_frames f \
             ON f.domain = l.domain AND f.group_id = l.group_id AND f.lane_sequence >= l.begins_after + $3 \
             WHERE l.domain = $1 AND l.group_id = $2 ORDER BY f.lane_sequence LIMIT $4",
        )
        .bind(domain.as_str())
        .bind(group_id)
        .bind(integer(from.max(1)))
        .bind(integer(limit as u64))
        .fetch_all(self.readers())
        .await
        .context(failed)?;
        let Some(last) = last_within(&sizes, octets_max).context(failed)? else { return Ok(Vec::new()) };
        let rows = sqlx::query(
            "SELECT f.lane_sequence - l.begins_after AS n, f.recipients, l.incarnation, b.epoch, b.delivery \
             FROM lanes l JOIN lane_frames f \
             ON f.domain = l.domain AND f.group_id = l.group_id AND f.lane_sequence >= l.begins_after + $3 \
             JOIN bodies b ON b.body_id = f.body_id \
             WHERE l.domain = $1 AND l.group_id = $2 AND f.lane_sequence <= $4 ORDER BY f.lane_sequence",
        )
        .bind(domain.as_str())
        .bind(group_id)
        .bind(integer(from.max(1)))
        .bind(last)
        .fetch_all(self.readers())
        .await
        .context(failed)?;
        rows.into_iter()
            .map(|row| {
                Ok(WaitingFrame {
                    group_id: group_id.to_owned(),
                    incarnation: incarnation(&row).context(failed)?,
                    lane_sequence: number(&row, "n").context(failed)?,
                    epoch: number(&row, "epoch").context(failed)?,
                    recipients: row.try_get("recipients").context(failed)?,
                    delivery: row.try_get("delivery").context(failed)?,
                })
            })
            .collect()
    }

    /// The lanes in which frames wait, to `domain` or to all, those that have waited longest first.
    pub async fn lane_statuses(&self, domain: Option<&Domain>, limit: usize) -> Result<Vec<LaneStatus>, Fault> {
        let failed = "could not read the lanes in which frames wait";
        let rows = sqlx::query(
            "SELECT domain, group_id, incarnation, next_sequence - begins_after AS next, frames, octets, undelivered_since_ms, \
             refused_since_ms, (SELECT MIN(f.lane_sequence) FROM lane_frames f WHERE f.domain = lanes.domain \
             AND f.group_id = lanes.group_id AND f.lane_sequence > begins_after) - begins_after AS first \
             FROM lanes WHERE undelivered_since_ms IS NOT NULL AND ($1 IS NULL OR domain = $1) \
             ORDER BY undelivered_since_ms, domain, group_id LIMIT $2",
        )
        .bind(domain.map(Domain::as_str))
        .bind(integer(limit as u64))
        .fetch_all(self.readers())
        .await
        .context(failed)?;
        rows.iter().map(|row| lane_status(row).context(failed)).collect()
    }

    /// The lane to `domain` of one group, if frames wait in it.
    pub async fn lane_status(&self, domain: &Domain, group_id: &str) -> Result<Option<LaneStatus>, Fault> {
        let failed = "could not read a lane";
        let row = sqlx::query(
            "SELECT domain, group_id, incarnation, next_sequence - begins_after AS next, frames, octets, undelivered_since_ms, \
             refused_since_ms, (SELECT MIN(f.lane_sequence) FROM lane_frames f WHERE f.domain = lanes.domain \
             AND f.group_id = lanes.group_id AND f.lane_sequence > begins_after) - begins_after AS first \
             FROM lanes WHERE undelivered_since_ms IS NOT NULL AND domain = $1 AND group_id = $2",
        )
        .bind(domain.as_str())
        .bind(group_id)
        .fetch_optional(self.readers())
        .await
        .context(failed)?;
        row.as_ref().map(lane_status).transpose().context(failed)
    }

    /// What waits for each domain. Costs a look at each lane in which frames wait, none at their frames.
    pub async fn lane_totals(&self) -> Result<Vec<LaneTotals>, Fault> {
        let failed = "could not count the frames that wait";
        let rows = sqlx::query(
            "SELECT domain, COUNT(*) AS lanes, SUM(frames) AS frames, SUM(octets) AS octets, \
             MIN(undelivered_since_ms) AS undelivered_since_ms \
             FROM lanes WHERE undelivered_since_ms IS NOT NULL GROUP BY domain",
        )
        .fetch_all(self.readers())
        .await
        .context(failed)?;
        let totals = rows.iter().map(|row| {
            Ok::<_, sqlx::Error>(LaneTotals {
                domain: domain(row)?,
                lanes: number(row, "lanes")?,
                frames: number(row, "frames")?,
                octets: number(row, "octets")?,
                undelivered_since: UnixMillis(number(row, "undelivered_since_ms")?),
            })
        });
        totals.collect::<Result<_, _>>().context(failed)
    }

    /// The lanes that are over one of `bounds`: remote domain and group.
    pub async fn lanes_over(&self, bounds: &LaneBounds) -> Result<Vec<(Domain, String)>, Fault> {
        let failed = "could not look for lanes that are over their bounds";
        let rows = sqlx::query(
            "SELECT domain, group_id FROM lanes WHERE undelivered_since_ms IS NOT NULL AND (frames > $1 OR octets > $2 \
             OR (undelivered_since_ms < $3 AND (SELECT f.accepted_at_ms FROM lane_frames f WHERE f.domain = lanes.domain \
             AND f.group_id = lanes.group_id AND f.lane_sequence > begins_after AND f.is_reset = 0 \
             ORDER BY f.lane_sequence LIMIT 1) < $3))",
        )
        .bind(integer(bounds.frames_max))
        .bind(integer(bounds.octets_max))
        .bind(integer(bounds.accepted_before.0))
        .fetch_all(self.readers())
        .await
        .context(failed)?;
        let lanes = rows.iter().map(|row| Ok::<_, sqlx::Error>((domain(row)?, row.try_get("group_id")?)));
        lanes.collect::<Result<_, _>>().context(failed)
    }

    /// The lanes of which nothing was delivered since `undelivered_before`, or of which even a reset has been refused since
    /// `refused_before`: remote domain and group.
    pub async fn hopeless_lanes(
        &self,
        undelivered_before: UnixMillis,
        refused_before: UnixMillis,
    ) -> Result<Vec<(Domain, String)>, Fault> {
        let failed = "could not look for lanes that deliver nothing";
        let rows = sqlx::query(
            "SELECT domain, group_id FROM lanes WHERE undelivered_since_ms IS NOT NULL \
             AND (undelivered_since_ms < $1 OR refused_since_ms < $2)",
        )
        .bind(integer(undelivered_before.0))
        .bind(integer(refused_before.0))
        .fetch_all(self.readers())
        .await
        .context(failed)?;
        let lanes = rows.iter().map(|row| Ok::<_, sqlx::Error>((domain(row)?, row.try_get("group_id")?)));
        lanes.collect::<Result<_, _>>().context(failed)
    }

    /// The sizes of the frames that wait in a lane from `from` on, in order, at most `limit`.
    pub async fn frame_sizes(&self, domain: &Domain, group_id: &str, from: u64, limit: usize) -> Result<Vec<FrameSize>, Fault> {
        let failed = "could not read the sizes of waiting frames";
        let rows = sqlx::query(
            "SELECT f.lane_sequence - l.begins_after AS n, f.octets, f.accepted_at_ms, f.is_reset FROM lanes l \
             JOIN lane_frames f ON f.domain = l.domain AND f.group_id = l.group_id AND f.lane_sequence >= l.begins_after + $3 \
             WHERE l.domain = $1 AND l.group_id = $2 ORDER BY f.lane_sequence LIMIT $4",
        )
        .bind(domain.as_str())
        .bind(group_id)
        .bind(integer(from.max(1)))
        .bind(integer(limit as u64))
        .fetch_all(self.readers())
        .await
        .context(failed)?;
        let sizes = rows.iter().map(|row| {
            Ok::<_, sqlx::Error>(FrameSize {
                lane_sequence: number(row, "n")?,
                octets: number(row, "octets")?,
                accepted_at: UnixMillis(number(row, "accepted_at_ms")?),
                is_reset: number(row, "is_reset")? != 0,
            })
        });
        sizes.collect::<Result<_, _>>().context(failed)
    }

    /// The frames before `before` that wait in a lane.
    pub async fn frames_before(&self, domain: &Domain, group_id: &str, before: u64) -> Result<LanePrefix, Fault> {
        let failed = "could not count waiting frames";
        let row = sqlx::query(
            "SELECT COUNT(*) AS frames, COALESCE(SUM(f.octets), 0) AS octets, COALESCE(SUM(f.is_reset), 0) AS resets \
             FROM lanes l JOIN lane_frames f ON f.domain = l.domain AND f.group_id = l.group_id \
             AND f.lane_sequence > l.begins_after AND f.lane_sequence < l.begins_after + $3 \
             WHERE l.domain = $1 AND l.group_id = $2",
        )
        .bind(domain.as_str())
        .bind(group_id)
        .bind(integer(before))
        .fetch_one(self.readers())
        .await
        .context(failed)?;
        let prefix = || {
            Ok::<_, sqlx::Error>(LanePrefix {
                frames: number(&row, "frames")?,
                octets: number(&row, "octets")?,
                resets: number(&row, "resets")?,
            })
        };
        prefix().context(failed)
    }

    /// The different sets of recipients, encoded, of the frames before `before` that wait in a lane: at most `limit`.
    pub async fn recipients_before(
        &self,
        domain: &Domain,
        group_id: &str,
        before: u64,
        limit: usize,
    ) -> Result<Vec<Vec<u8>>, Fault> {
        let failed = "could not read whom waiting frames are for";
        let rows = sqlx::query(
            "SELECT DISTINCT f.recipients FROM lanes l JOIN lane_frames f ON f.domain = l.domain AND f.group_id = l.group_id \
             AND f.lane_sequence > l.begins_after AND f.lane_sequence < l.begins_after + $3 \
             WHERE l.domain = $1 AND l.group_id = $2 LIMIT $4",
        )
        .bind(domain.as_str())
        .bind(group_id)
        .bind(integer(before))
        .bind(integer(limit as u64))
        .fetch_all(self.readers())
        .await
        .context(failed)?;
        rows.iter().map(|row| row.try_get("recipients").context(failed)).collect()
    }

    /// A lane with dead frames that are not swept away yet.
    pub async fn unswept_lane(&self) -> Result<Option<(Domain, String)>, Fault> {
        let failed = "could not look for dead frames";
        let row = sqlx::query("SELECT domain, group_id FROM lanes WHERE dead_frames > 0 LIMIT 1")
            .fetch_optional(self.readers())
            .await
            .context(failed)?;
        row.map(|row| Ok::<_, sqlx::Error>((domain(&row)?, row.try_get("group_id")?))).transpose().context(failed)
    }
}

fn lane_status(row: &SqliteRow) -> Result<LaneStatus, sqlx::Error> {
    Ok(LaneStatus {
        domain: domain(row)?,
        group_id: row.try_get("group_id")?,
        incarnation: incarnation(row)?,
        first_sequence: number(row, "first")?,
        next_sequence: number(row, "next")?,
        frames: number(row, "frames")?,
        octets: number(row, "octets")?,
        undelivered_since: UnixMillis(number(row, "undelivered_since_ms")?),
        refused_since: row.try_get::<Option<i64>, _>("refused_since_ms")?.map(|at| UnixMillis(unsigned(at))),
    })
}

pub(super) fn number(row: &SqliteRow, column: &str) -> Result<u64, sqlx::Error> {
    row.try_get(column).map(unsigned)
}

pub(super) fn domain(row: &SqliteRow) -> Result<Domain, sqlx::Error> {
    row.try_get::<String, _>("domain")?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

pub(super) fn incarnation(row: &SqliteRow) -> Result<Incarnation, sqlx::Error> {
    let octets: Vec<u8> = row.try_get("incarnation")?;
    Incarnation::from_bytes(&octets).ok_or_else(|| sqlx::Error::Decode("a lane's incarnation is not 16 octets".into()))
}

/// Frames of one lane that the remote domain holds durably.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// The group's URI.
    pub group_id: String,
    /// The lane's life. When another has begun since, nothing is dropped.
    pub incarnation: Incarnation,
    /// All frames up to this one, it included.
    pub up_to: u64,
}

/// Drops delivered frames. A repeat changes nothing.
pub struct DropFrames {
    /// The remote domain.
    pub domain: Domain,
    /// Per lane, what was delivered.
    pub lanes: Vec<Delivered>,
}

impl Transaction for DropFrames {
    const NAME: &'static str = "drop_frames";
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Fault> {
        for lane in &self.lanes {
            self.drop_from(connection, lane).await?;
        }
        Ok(())
    }
}

impl DropFrames {
    async fn drop_from(&self, connection: &mut Connection, lane: &Delivered) -> Result<(), Fault> {
        let failed = "could not drop delivered frames";
        let Some(place) = Place::of(connection, &self.domain, &lane.group_id, lane.incarnation).await? else { return Ok(()) };
        let dropped = sqlx::query(
            "DELETE FROM lane_frames WHERE domain = $1 AND group_id = $2 AND lane_sequence > $3 AND lane_sequence <= $4 \
             RETURNING body_id, octets",
        )
        .bind(self.domain.as_str())
        .bind(lane.group_id.as_str())
        .bind(place.begins_after)
        .bind(place.begins_after.saturating_add(integer(lane.up_to)))
        .fetch_all(&mut *connection)
        .await
        .context(failed)?;
        let body_ids = body_ids(&dropped).context(failed)?;
        release_bodies(connection, &body_ids).await?;
        let octets = dropped.iter().map(|row| number(row, "octets")).sum::<Result<u64, _>>().context(failed)?;
        // What is left has waited since its first frame was accepted: progress was made, whatever died before.
        sqlx::query(
            "UPDATE lanes SET frames = frames - $3, octets = octets - $4, refused_since_ms = NULL, undelivered_since_ms = \
             (SELECT f.accepted_at_ms FROM lane_frames f WHERE f.domain = $1 AND f.group_id = $2 \
             AND f.lane_sequence > lanes.begins_after ORDER BY f.lane_sequence LIMIT 1) WHERE domain = $1 AND group_id = $2",
        )
        .bind(self.domain.as_str())
        .bind(lane.group_id.as_str())
        .bind(integer(dropped.len() as u64))
        .bind(integer(octets))
        .execute(&mut *connection)
        .await
        .context(failed)?;
        Ok(())
    }
}

fn body_ids(rows: &[SqliteRow]) -> Result<Vec<Vec<u8>>, sqlx::Error> {
    rows.iter().map(|row| row.try_get("body_id")).collect()
}

/// Where a lane's life begins.
struct Place {
    begins_after: i64,
}

impl Place {
    /// `None` when the lane is in another life.
    async fn of(
        connection: &mut Connection,
        domain: &Domain,
        group_id: &str,
        incarnation: Incarnation,
    ) -> Result<Option<Self>, Fault> {
        let failed = "could not read where a lane begins";
        let row = sqlx::query("SELECT begins_after FROM lanes WHERE domain = $1 AND group_id = $2 AND incarnation = $3")
            .bind(domain.as_str())
            .bind(group_id)
            .bind(incarnation.0.as_slice())
            .fetch_optional(connection)
            .await
            .context(failed)?;
        row.map(|row| Ok(Self { begins_after: row.try_get("begins_after").context(failed)? })).transpose()
    }
}

/// The frame that begins a further life of a lane (X8).
#[derive(Clone, Debug)]
pub struct ResetFrame {
    /// The group's epoch.
    pub epoch: u64,
    /// Encoded recipients: whoever may have lost something.
    pub recipients: Vec<u8>,
    /// Encoded `wire::qs::Delivery::Reset`.
    pub delivery: Vec<u8>,
}

/// Ends a lane's incarnation: the frames before `keep_from` are lost and told as a dead letter, the next incarnation begins with a
/// `reset`, and what is left follows it in order. A repeat changes nothing.
pub struct EndIncarnation {
    /// What is lost, and why; its lane and the incarnation that ends.
    pub letter: DeadLetter,
    /// The first sequence that is not lost; whatever of these is on disk follows the reset.
    pub keep_from: u64,
    /// The frames on disk before it, the `reset` of the incarnation that ends included.
    pub frames: u64,
    /// And their octets.
    pub octets: u64,
    /// The next incarnation.
    pub next: Incarnation,
    /// Its first frame.
    pub reset: ResetFrame,
    /// The domain that this node serves: whose group it is.
    pub hub: Domain,
}

impl Transaction for EndIncarnation {
    const NAME: &'static str = "end_incarnation";
    /// Whether it was the lane's incarnation and ended now.
    type Answer = bool;

    async fn apply(&self, connection: &mut Connection) -> Result<bool, Fault> {
        let failed = "could not end a lane's incarnation";
        let DeadLetter { domain, group_id, incarnation, died_at, .. } = &self.letter;
        let Some(place) = Place::of(connection, domain, group_id, *incarnation).await? else { return Ok(false) };
        // Of a frame that is lost or was delivered, or the place before a lane's first frame: free in either case.
        let reset_at = place.begins_after.saturating_add(integer(self.keep_from)) - 1;
        let replaced =
            sqlx::query("DELETE FROM lane_frames WHERE domain = $1 AND group_id = $2 AND lane_sequence = $3 RETURNING body_id")
                .bind(domain.as_str())
                .bind(group_id.as_str())
                .bind(reset_at)
                .fetch_all(&mut *connection)
                .await
                .context(failed)?;
        release_bodies(connection, &body_ids(&replaced).context(failed)?).await?;
        let octets = integer((self.reset.delivery.len() + self.reset.recipients.len()) as u64);
        let body_id = new_body_id(*died_at);
        sqlx::query(
            "INSERT INTO bodies (body_id, hub, group_id, epoch, delivery, arrived_at_ms, uses) VALUES ($1, $2, $3, $4, $5, $6, 1)",
        )
        .bind(body_id.as_slice())
        .bind(self.hub.as_str())
        .bind(group_id.as_str())
        .bind(integer(self.reset.epoch))
        .bind(self.reset.delivery.as_slice())
        .bind(integer(died_at.0))
        .execute(&mut *connection)
        .await
        .context(failed)?;
        // The reset is as old as the frame behind it, or it would hide that frame's age.
        sqlx::query(
            "INSERT INTO lane_frames (domain, group_id, lane_sequence, body_id, recipients, octets, is_reset, accepted_at_ms) \
             VALUES ($1, $2, $3, $4, $5, $6, 1, COALESCE((SELECT f.accepted_at_ms FROM lane_frames f WHERE f.domain = $1 \
             AND f.group_id = $2 AND f.lane_sequence > $3 ORDER BY f.lane_sequence LIMIT 1), $7))",
        )
        .bind(domain.as_str())
        .bind(group_id.as_str())
        .bind(reset_at)
        .bind(body_id.as_slice())
        .bind(self.reset.recipients.as_slice())
        .bind(octets)
        .bind(integer(died_at.0))
        .execute(&mut *connection)
        .await
        .context(failed)?;
        // A row that was in the way was one of the lost, or a dead one of an earlier life.
        let dead = integer(self.frames) - integer(replaced.len() as u64);
        sqlx::query(
            "UPDATE lanes SET incarnation = $3, begins_after = $4, frames = frames - $5 + 1, octets = octets - $6 + $7, \
             dead_frames = CASE WHEN dead_frames + $8 > 0 THEN dead_frames + $8 ELSE 0 END, \
             undelivered_since_ms = COALESCE(undelivered_since_ms, $9) \
             WHERE domain = $1 AND group_id = $2",
        )
        .bind(domain.as_str())
        .bind(group_id.as_str())
        .bind(self.next.0.as_slice())
        .bind(reset_at - 1)
        .bind(integer(self.frames))
        .bind(integer(self.octets))
        .bind(octets)
        .bind(dead)
        .bind(integer(died_at.0))
        .execute(&mut *connection)
        .await
        .context(failed)?;
        dead_letters::write(connection, &self.letter).await?;
        Ok(true)
    }
}

/// Sweeps dead frames of a lane away, a bounded number.
pub struct SweepFrames {
    /// The remote domain.
    pub domain: Domain,
    /// The group's URI.
    pub group_id: String,
    /// At most so many.
    pub limit: u64,
}

impl Transaction for SweepFrames {
    const NAME: &'static str = "sweep_frames";
    /// How many went; when fewer than the limit, none are left.
    type Answer = u64;

    async fn apply(&self, connection: &mut Connection) -> Result<u64, Fault> {
        let failed = "could not sweep dead frames away";
        let swept = sqlx::query(
            "DELETE FROM lane_frames WHERE domain = $1 AND group_id = $2 AND lane_sequence IN \
             (SELECT f.lane_sequence FROM lane_frames f JOIN lanes l ON l.domain = f.domain AND l.group_id = f.group_id \
             WHERE f.domain = $1 AND f.group_id = $2 AND f.lane_sequence <= l.begins_after ORDER BY f.lane_sequence LIMIT $3) \
             RETURNING body_id",
        )
        .bind(self.domain.as_str())
        .bind(self.group_id.as_str())
        .bind(integer(self.limit))
        .fetch_all(&mut *connection)
        .await
        .context(failed)?;
        let count = swept.len() as u64;
        release_bodies(connection, &body_ids(&swept).context(failed)?).await?;
        // Short of the limit nothing dead is left, whatever was counted; else there is another look.
        sqlx::query("UPDATE lanes SET dead_frames = $3 WHERE domain = $1 AND group_id = $2")
            .bind(self.domain.as_str())
            .bind(self.group_id.as_str())
            .bind(i64::from(count >= self.limit))
            .execute(&mut *connection)
            .await
            .context(failed)?;
        Ok(count)
    }
}

/// Notes since when the other side has refused even the `reset` of a lane; a time that is noted already stays.
pub struct NoteRefused {
    /// The remote domain.
    pub domain: Domain,
    /// The group's URI.
    pub group_id: String,
    /// Now.
    pub since: UnixMillis,
}

impl Transaction for NoteRefused {
    const NAME: &'static str = "note_refused";
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Fault> {
        sqlx::query("UPDATE lanes SET refused_since_ms = COALESCE(refused_since_ms, $3) WHERE domain = $1 AND group_id = $2")
            .bind(self.domain.as_str())
            .bind(self.group_id.as_str())
            .bind(integer(self.since.0))
            .execute(connection)
            .await
            .context("could not note that a lane is refused")?;
        Ok(())
    }
}
