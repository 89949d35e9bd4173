//! Tables `lanes`, `lane_frames`, `lanes_in`, `lane_answers`: frames on their way to other domains, and how far each lane of
//! another domain has come here (S14, X8).

use sqlx::Row as _;

use super::deliveries::{self, DeliveryWrite, release_bodies};
use super::{Connection, Storage, Transaction, integer, unsigned};
use crate::base::Domain;
use crate::base::fault::{Context as _, Fault};
use crate::base::ids::Incarnation;
use crate::base::limits::LANE_ANSWERS_KEPT;

/// A frame that waits for its remote domain.
#[derive(Clone, Debug)]
pub struct WaitingFrame {
    /// The group's URI.
    pub group_id: String,
    /// The lane's life.
    pub incarnation: Incarnation,
    /// Its place in the lane.
    pub lane_sequence: u64,
    /// Epoch beside the message.
    pub epoch: u64,
    /// Encoded recipients, as the Delivery Service wrote them.
    pub recipients: Vec<u8>,
    /// Encoded `wire::qs::Delivery`.
    pub delivery: Vec<u8>,
}

impl Storage {
    /// The domains that frames wait for.
    pub async fn domains_with_frames(&self) -> Result<Vec<Domain>, Fault> {
        let failed = "could not read which domains have frames waiting";
        let rows = sqlx::query("SELECT DISTINCT domain FROM lane_frames").fetch_all(self.readers()).await.context(failed)?;
        rows.into_iter().map(|row| row.try_get::<String, _>("domain").context(failed)?.parse().context(failed)).collect()
    }

    /// The groups that have frames waiting for `domain`, in order of name, after `after` (empty: from the first on).
    pub async fn waiting_lanes(&self, domain: &Domain, after: &str, limit: usize) -> Result<Vec<String>, Fault> {
        let failed = "could not read which lanes have frames waiting";
        // One probe of the index per lane instead of a walk over all its frames, of which there may be very many.
        let rows = sqlx::query(
            "SELECT group_id FROM lanes WHERE domain = $1 AND group_id > $2 AND EXISTS \
             (SELECT 1 FROM lane_frames f WHERE f.domain = lanes.domain AND f.group_id = lanes.group_id) \
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

    /// The first frames that wait in one lane from `from` on, in order.
    pub async fn waiting_frames(
        &self,
        domain: &Domain,
        group_id: &str,
        from: u64,
        limit: usize,
    ) -> Result<Vec<WaitingFrame>, Fault> {
        let failed = "could not read waiting frames";
        let rows = sqlx::query(
            "SELECT f.lane_sequence, f.recipients, l.incarnation, b.epoch, b.delivery FROM lane_frames f \
             JOIN lanes l ON l.domain = f.domain AND l.group_id = f.group_id JOIN bodies b ON b.body_id = f.body_id \
             WHERE f.domain = $1 AND f.group_id = $2 AND f.lane_sequence >= $3 ORDER BY f.lane_sequence LIMIT $4",
        )
        .bind(domain.as_str())
        .bind(group_id)
        .bind(integer(from))
        .bind(integer(limit as u64))
        .fetch_all(self.readers())
        .await
        .context(failed)?;
        rows.into_iter()
            .map(|row| {
                let incarnation: Vec<u8> = row.try_get("incarnation").context(failed)?;
                Ok(WaitingFrame {
                    group_id: group_id.to_owned(),
                    incarnation: Incarnation::from_bytes(&incarnation).context(failed)?,
                    lane_sequence: unsigned(row.try_get("lane_sequence").context(failed)?),
                    epoch: unsigned(row.try_get("epoch").context(failed)?),
                    recipients: row.try_get("recipients").context(failed)?,
                    delivery: row.try_get("delivery").context(failed)?,
                })
            })
            .collect()
    }
}

/// Drops frames that the remote domain holds durably, per lane up to and including a sequence. A repeat changes nothing.
pub struct DropFrames {
    /// The remote domain.
    pub domain: Domain,
    /// Group and last sequence, per lane.
    pub lanes: Vec<(String, u64)>,
}

impl Transaction for DropFrames {
    const NAME: &'static str = "drop_frames";
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Fault> {
        let failed = "could not drop delivered frames";
        for (group_id, up_to) in &self.lanes {
            let dropped = sqlx::query(
                "DELETE FROM lane_frames WHERE domain = $1 AND group_id = $2 AND lane_sequence <= $3 RETURNING body_id",
            )
            .bind(self.domain.as_str())
            .bind(group_id.as_str())
            .bind(integer(*up_to))
            .fetch_all(&mut *connection)
            .await
            .context(failed)?;
            let body_ids: Vec<Vec<u8>> =
                dropped.iter().map(|row| row.try_get("body_id")).collect::<Result<_, _>>().context(failed)?;
            release_bodies(connection, &body_ids).await?;
        }
        Ok(())
    }
}

/// Takes frames of one lane of another domain: each is delivered or recognised as a repeat.
pub struct TakeFrames {
    /// The authenticated hub.
    pub hub: Domain,
    /// The group's URI; of the hub's domain.
    pub group_id: String,
    /// The lane's life.
    pub incarnation: Incarnation,
    /// The frames, in order.
    pub frames: Vec<ArrivedFrame>,
}

/// A frame of another domain with its recipients opened.
pub struct ArrivedFrame {
    /// Its place in the lane.
    pub lane_sequence: u64,
    /// SHA-256 of the encoded frame.
    pub digest: [u8; 32],
    /// Per recipient, whether its information was opened and accepted; if so, it is the next of the delivery's `local`.
    pub opened: Vec<bool>,
    /// The delivery with the opened recipients.
    pub delivery: DeliveryWrite,
}

/// What came of a [`TakeFrames`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// All frames are on disk; for each, whether each recipient's queue took it.
    All(Vec<Vec<bool>>),
    /// A frame is missing before these: the lane is at this sequence. Nothing was written.
    Gap(u64),
    /// A repeated sequence has other content. Nothing was written.
    Conflict,
}

impl Transaction for TakeFrames {
    const NAME: &'static str = "take_frames";
    type Answer = Taken;

    async fn apply(&self, connection: &mut Connection) -> Result<Taken, Fault> {
        let mut next = self.next_sequence(connection).await?;
        let began_at = next;
        if let Some(refused) = self.check(connection, next).await? {
            return Ok(refused);
        }
        let mut answers = Vec::with_capacity(self.frames.len());
        for frame in &self.frames {
            if frame.lane_sequence < next {
                answers
                    .push(self.stored_answer(connection, frame.lane_sequence).await?.map_or_else(Vec::new, |(_, taken)| taken));
                continue;
            }
            let taken = deliveries::write(connection, &frame.delivery).await?;
            let mut taken = taken.into_iter();
            let responses: Vec<bool> = frame.opened.iter().map(|opened| *opened && taken.next().unwrap_or(false)).collect();
            self.keep_answer(connection, frame, &responses).await?;
            answers.push(responses);
            next += 1;
        }
        if next != began_at {
            self.advance(connection, next).await?;
        }
        Ok(Taken::All(answers))
    }
}

impl TakeFrames {
    /// The sequence that this incarnation of the lane expects. A new incarnation begins at 1 again (X8).
    async fn next_sequence(&self, connection: &mut Connection) -> Result<u64, Fault> {
        let failed = "could not read how far a lane has come";
        let row = sqlx::query("SELECT incarnation, next_sequence FROM lanes_in WHERE hub = $1 AND group_id = $2")
            .bind(self.hub.as_str())
            .bind(self.group_id.as_str())
            .fetch_optional(&mut *connection)
            .await
            .context(failed)?;
        let Some(row) = row else { return Ok(1) };
        let incarnation: Vec<u8> = row.try_get("incarnation").context(failed)?;
        if incarnation == self.incarnation.0 {
            return Ok(unsigned(row.try_get("next_sequence").context(failed)?));
        }
        Ok(1)
    }

    /// Looks at all frames before anything is written: a refused batch changes nothing.
    async fn check(&self, connection: &mut Connection, next: u64) -> Result<Option<Taken>, Fault> {
        let mut expected = next;
        for frame in &self.frames {
            if frame.lane_sequence > expected {
                return Ok(Some(Taken::Gap(expected)));
            }
            if frame.lane_sequence == expected {
                expected += 1;
                continue;
            }
            // A repeat. One so old that its answer is gone was acknowledged long ago by every honest sender's count.
            let known = self.stored_answer(connection, frame.lane_sequence).await?;
            if known.is_none_or(|(digest, _)| digest != frame.digest) {
                return Ok(Some(Taken::Conflict));
            }
        }
        Ok(None)
    }

    async fn stored_answer(&self, connection: &mut Connection, sequence: u64) -> Result<Option<(Vec<u8>, Vec<bool>)>, Fault> {
        let failed = "could not read a lane's answer";
        let row =
            sqlx::query("SELECT digest, responses FROM lane_answers WHERE hub = $1 AND group_id = $2 AND lane_sequence = $3")
                .bind(self.hub.as_str())
                .bind(self.group_id.as_str())
                .bind(integer(sequence))
                .fetch_optional(&mut *connection)
                .await
                .context(failed)?;
        let Some(row) = row else { return Ok(None) };
        let responses: Vec<u8> = row.try_get("responses").context(failed)?;
        let taken = responses.into_iter().map(|response| response == 1).collect();
        Ok(Some((row.try_get("digest").context(failed)?, taken)))
    }

    async fn keep_answer(&self, connection: &mut Connection, frame: &ArrivedFrame, taken: &[bool]) -> Result<(), Fault> {
        let responses: Vec<u8> = taken.iter().map(|taken| u8::from(*taken)).collect();
        sqlx::query(
            "INSERT INTO lane_answers (hub, group_id, lane_sequence, digest, responses) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (hub, group_id, lane_sequence) \
             DO UPDATE SET digest = excluded.digest, responses = excluded.responses",
        )
        .bind(self.hub.as_str())
        .bind(self.group_id.as_str())
        .bind(integer(frame.lane_sequence))
        .bind(frame.digest.as_slice())
        .bind(responses)
        .execute(connection)
        .await
        .context("could not keep a lane's answer")?;
        Ok(())
    }

    async fn advance(&self, connection: &mut Connection, next: u64) -> Result<(), Fault> {
        let failed = "could not advance a lane";
        sqlx::query(
            "INSERT INTO lanes_in (hub, group_id, incarnation, next_sequence) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (hub, group_id) \
             DO UPDATE SET incarnation = excluded.incarnation, next_sequence = excluded.next_sequence",
        )
        .bind(self.hub.as_str())
        .bind(self.group_id.as_str())
        .bind(self.incarnation.0.as_slice())
        .bind(integer(next))
        .execute(&mut *connection)
        .await
        .context(failed)?;
        let forgotten = "DELETE FROM lane_answers WHERE hub = $1 AND group_id = $2 AND lane_sequence < $3";
        sqlx::query(forgotten)
            .bind(self.hub.as_str())
            .bind(self.group_id.as_str())
            .bind(integer(next.saturating_sub(LANE_ANSWERS_KEPT)))
            .execute(connection)
            .await
            .context(failed)?;
        Ok(())
    }
}
