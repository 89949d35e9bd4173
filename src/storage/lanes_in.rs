//! Tables `lanes_in`, `lane_answers`: how far each lane of another domain has come here (S14, X8).

use std::collections::BTreeMap;

use sqlx::Row as _;

use super::deliveries::{self, DeliveryWrite};
use super::{Connection, Transaction, integer, unsigned};
use crate::base::Domain;
use crate::base::fault::{Context as _, Fault};
use crate::base::ids::Incarnation;
use crate::base::limits::LANE_ANSWERS_KEPT;
use crate::qs::lanes::{FrameHead, LaneDecision, LaneState, decide, next_sequence};

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
    /// What its lane has to know of it.
    pub head: FrameHead,
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
    /// They are not the frames that they ought to be. Nothing was written.
    Conflict,
}

/// Digest and responses of frames that were taken, by sequence.
type KeptAnswers = BTreeMap<u64, ([u8; 32], Vec<bool>)>;

impl Transaction for TakeFrames {
    const NAME: &'static str = "take_frames";
    type Answer = Taken;

    async fn apply(&self, connection: &mut Connection) -> Result<Taken, Fault> {
        let lane = self.lane(connection).await?;
        let heads: Vec<FrameHead> = self.frames.iter().map(|frame| frame.head).collect();
        let expected = next_sequence(lane.as_ref(), self.incarnation);
        let kept = self.kept_answers(connection, &heads, expected).await?;
        let digests = kept.iter().map(|(sequence, (digest, _))| (*sequence, *digest)).collect();
        // All frames are looked at before anything is written: a refused batch changes nothing.
        let (mut next, begins) = match decide(lane.as_ref(), self.incarnation, &heads, &digests) {
            LaneDecision::Take { next, begins } => (next, begins),
            LaneDecision::Gap(expected) => return Ok(Taken::Gap(expected)),
            LaneDecision::Conflict => return Ok(Taken::Conflict),
        };
        let mut answers = Vec::with_capacity(self.frames.len());
        let began_at = next;
        for frame in &self.frames {
            if frame.head.lane_sequence < next {
                let known = kept.get(&frame.head.lane_sequence).map(|(_, taken)| taken.clone());
                answers.push(known.unwrap_or_else(|| vec![true; frame.opened.len()]));
                continue;
            }
            if begins && next == began_at {
                self.forget_answers(connection, u64::MAX).await?;
            }
            let taken = deliveries::write(connection, &frame.delivery).await?;
            let mut taken = taken.into_iter();
            let responses: Vec<bool> = frame.opened.iter().map(|opened| *opened && taken.next().unwrap_or(false)).collect();
            self.keep_answer(connection, &frame.head, &responses).await?;
            answers.push(responses);
            next = frame.head.lane_sequence + 1;
        }
        if next != began_at {
            self.advance(connection, next).await?;
        }
        Ok(Taken::All(answers))
    }
}

impl TakeFrames {
    /// How far the lane has come; `None` before its first frame.
    async fn lane(&self, connection: &mut Connection) -> Result<Option<LaneState>, Fault> {
        let failed = "could not read how far a lane has come";
        let row = sqlx::query("SELECT incarnation, next_sequence FROM lanes_in WHERE hub = $1 AND group_id = $2")
            .bind(self.hub.as_str())
            .bind(self.group_id.as_str())
            .fetch_optional(connection)
            .await
            .context(failed)?;
        let Some(row) = row else { return Ok(None) };
        let incarnation: Vec<u8> = row.try_get("incarnation").context(failed)?;
        Ok(Some(LaneState {
            incarnation: Incarnation::from_bytes(&incarnation).context(failed)?,
            next_sequence: unsigned(row.try_get("next_sequence").context(failed)?),
        }))
    }

    /// What was answered to those of these frames that come before `expected`, as far as it is kept.
    async fn kept_answers(&self, connection: &mut Connection, heads: &[FrameHead], expected: u64) -> Result<KeptAnswers, Fault> {
        let failed = "could not read a lane's answers";
        let mut kept = KeptAnswers::new();
        let Some(first) = heads.first().map(|head| head.lane_sequence).filter(|first| *first < expected) else { return Ok(kept) };
        let last = heads.last().map_or(first, |head| head.lane_sequence).min(expected - 1);
        let rows = sqlx::query(
            "SELECT lane_sequence, digest, responses FROM lane_answers \
             WHERE hub = $1 AND group_id = $2 AND lane_sequence >= $3 AND lane_sequence <= $4",
        )
        .bind(self.hub.as_str())
        .bind(self.group_id.as_str())
        .bind(integer(first))
        .bind(integer(last))
        .fetch_all(connection)
        .await
        .context(failed)?;
        for row in rows {
            let digest: Vec<u8> = row.try_get("digest").context(failed)?;
            let digest = digest.try_into().map_err(|_| Fault::new("a lane's answer has no digest"))?;
            let responses: Vec<u8> = row.try_get("responses").context(failed)?;
            let taken = responses.into_iter().map(|response| response == 1).collect();
            kept.insert(unsigned(row.try_get("lane_sequence").context(failed)?), (digest, taken));
        }
        Ok(kept)
    }

    async fn keep_answer(&self, connection: &mut Connection, head: &FrameHead, taken: &[bool]) -> Result<(), Fault> {
        let responses: Vec<u8> = taken.iter().map(|taken| u8::from(*taken)).collect();
        sqlx::query(
            "INSERT INTO lane_answers (hub, group_id, lane_sequence, digest, responses) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (hub, group_id, lane_sequence) \
             DO UPDATE SET digest = excluded.digest, responses = excluded.responses",
        )
        .bind(self.hub.as_str())
        .bind(self.group_id.as_str())
        .bind(integer(head.lane_sequence))
        .bind(head.digest.as_slice())
        .bind(responses)
        .execute(connection)
        .await
        .context("could not keep a lane's answer")?;
        Ok(())
    }

    async fn advance(&self, connection: &mut Connection, next: u64) -> Result<(), Fault> {
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
        .context("could not advance a lane")?;
        self.forget_answers(connection, next.saturating_sub(LANE_ANSWERS_KEPT)).await
    }

    /// Forgets the answers to frames before this sequence.
    async fn forget_answers(&self, connection: &mut Connection, before: u64) -> Result<(), Fault> {
        sqlx::query("DELETE FROM lane_answers WHERE hub = $1 AND group_id = $2 AND lane_sequence < $3")
            .bind(self.hub.as_str())
            .bind(self.group_id.as_str())
            .bind(integer(before))
            .execute(connection)
            .await
            .context("could not forget a lane's answers")?;
        Ok(())
    }
}
