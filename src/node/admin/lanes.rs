//! Lanes in which frames wait, and what became of those that ended.

use super::peers::age_seconds;
use super::router::Admin;
use super::view::{DeadLetterView, LaneView};
use crate::base::bytes::hex;
use crate::base::limits::ADMIN_ROWS_MAX;
use crate::base::{Domain, Fault, UnixMillis};

impl Admin {
    /// The lanes to `domain`, or to all, in which frames wait; those that have waited longest first.
    pub(super) async fn lanes(&self, domain: Option<&Domain>) -> Result<Vec<LaneView>, Fault> {
        let now = UnixMillis::now();
        let lanes = self.service.storage().lane_statuses(domain, ADMIN_ROWS_MAX).await?;
        let views = lanes.into_iter().map(|lane| LaneView {
            domain: lane.domain,
            group: lane.group_id,
            incarnation: hex(&lane.incarnation.0),
            first_sequence: lane.first_sequence,
            frames: lane.frames,
            bytes: lane.octets,
            undelivered_since: lane.undelivered_since.to_rfc3339(),
            oldest_age_seconds: age_seconds(lane.undelivered_since, now),
            refused_since: lane.refused_since.map(UnixMillis::to_rfc3339),
        });
        Ok(views.collect())
    }

    /// The dead letters of `domain`, or of all, the newest first.
    pub(super) async fn dead_letters(&self, domain: Option<&Domain>) -> Result<Vec<DeadLetterView>, Fault> {
        let letters = self.service.storage().dead_letters(domain, ADMIN_ROWS_MAX).await?;
        let views = letters.into_iter().map(|letter| DeadLetterView {
            domain: letter.domain,
            group: letter.group_id,
            incarnation: hex(&letter.incarnation.0),
            first_sequence: letter.lane_sequence,
            frames: letter.frames,
            bytes: letter.octets,
            epoch: letter.epoch,
            recipients: letter.recipients,
            digest: letter.digest.map(|digest| hex(&digest)),
            reason: letter.reason.name().to_owned(),
            detail: letter.detail,
            died_at: letter.died_at.to_rfc3339(),
        });
        Ok(views.collect())
    }
}
