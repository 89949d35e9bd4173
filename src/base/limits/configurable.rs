//! The limits that an operator may set, in the configuration's `[limits]`.

use serde::{Deserialize, Serialize};

use super::{APPLICATION_MESSAGE_BYTES_MAX, CLIENT_FRAME_BYTES_MAX, GROUP_LEAVES_MAX, PeerLimits};
use crate::base::Fault;

/// What an operator may set; [`Limits::default`] states the defaults. Whoever is over one is told so and pays for it, not the
/// node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The largest frame accepted from a client, in octets.
    pub client_frame_bytes_max: usize,
    /// The largest Commit (MLSMessage), in octets.
    pub commit_bytes_max: usize,
    /// The largest application message (MLSMessage), in octets.
    pub message_bytes_max: usize,
    /// The most leaves in a group.
    pub group_leaves_max: usize,
    /// The most leaves of one user in a group.
    pub user_leaves_max: usize,
    /// The most proposals in one Commit.
    pub commit_proposals_max: usize,
    /// The largest GroupContext extensions, in octets.
    pub context_extensions_bytes_max: usize,
    /// The most proposals of members that wait for the next Commit of a group.
    pub pending_proposals_max: usize,
    /// The most Removes that the DS proposes in one epoch, so that a Commit that covers them always fits (S12).
    pub removals_at_once_max: usize,
    /// The most Welcome joiners of a group whose past state is kept (S11).
    pub pending_joiners_max: usize,
    /// The most epochs back that a Welcome joiner's past state is kept (S11).
    pub past_states_max: u64,
    /// The most groups of this hub that one user may be in.
    pub groups_per_user_max: usize,
    /// The most external Commits of one user to one group in an hour.
    pub external_commits_per_hour_max: u32,
    /// Requests by one key of a client: a second, in the long run; ten times as many at once.
    pub requests_per_client_per_second_max: u32,
    /// Requests about one group: a second, in the long run; ten times as many at once.
    pub requests_per_group_per_second_max: u32,
    /// A leaf that was not heard of for so long, in seconds, is removed (S12).
    pub inactive_leaf_seconds_max: u64,
    /// How long a deleted group answers `group_deleted` before it is gone, in seconds.
    pub deleted_group_kept_seconds: u64,
    /// The groups held in memory, in octets.
    pub hot_groups_bytes_max: usize,
    /// The KeyPackages a client may have published at once, the last-resort one not counted.
    pub key_packages_per_client_max: usize,
    /// The most KeyPackage claims of one asking user in an hour.
    pub claims_per_hour_max: u32,
    /// The most KeyPackage claims of one other domain's users together in an hour.
    pub claims_per_domain_per_hour_max: u32,
    /// Requests of one other domain: a second, in the long run; ten times as many at once.
    pub peer_requests_per_second_max: u32,
    /// Octets of the requests of one other domain: a second, in the long run; ten times as many at once.
    pub peer_bytes_per_second_max: u32,
    /// Streams of one other domain at once, on all its connections together.
    pub peer_streams_max: u32,
    /// Connections that one other domain opens in a minute.
    pub peer_handshakes_per_minute_max: u32,
    /// The queues that a client may have at once.
    pub queues_per_client_max: usize,
    /// The most entries in a queue (X4).
    pub queue_entries_max: u64,
    /// The most octets of deliveries in a queue (X4).
    pub queue_bytes_max: u64,
    /// The age, in seconds, from which an entry of a queue may be dropped for a marker (X4).
    pub queue_entry_age_seconds_max: u64,
    /// How long, in seconds, a frame waits for another domain before its lane begins anew without it (X8).
    pub lane_age_seconds_max: u64,
    /// The most frames that wait in one lane (X8).
    pub lane_frames_max: u64,
    /// The most octets of messages and recipients that wait in one lane (X8).
    pub lane_bytes_max: u64,
    /// A domain to which a group's lane has delivered nothing for so long, in seconds, loses its leaves there (S12).
    pub lane_undelivered_seconds_max: u64,
    /// And so does one that has answered for so long, in seconds, that it takes nothing of the group (S12).
    pub lane_refused_seconds_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            client_frame_bytes_max: CLIENT_FRAME_BYTES_MAX,
            commit_bytes_max: 2 * 1024 * 1024,
            message_bytes_max: APPLICATION_MESSAGE_BYTES_MAX,
            group_leaves_max: GROUP_LEAVES_MAX,
            user_leaves_max: 32,
            commit_proposals_max: 1_000,
            context_extensions_bytes_max: 16 * 1024,
            pending_proposals_max: 256,
            removals_at_once_max: 64,
            pending_joiners_max: 1_000,
            past_states_max: 4_096,
            groups_per_user_max: 10_000,
            external_commits_per_hour_max: 60,
            requests_per_client_per_second_max: 200,
            requests_per_group_per_second_max: 2_000,
            inactive_leaf_seconds_max: 60 * DAY,
            deleted_group_kept_seconds: 30 * DAY,
            hot_groups_bytes_max: 256 * 1024 * 1024,
            key_packages_per_client_max: 200,
            claims_per_hour_max: 1_000,
            claims_per_domain_per_hour_max: 20_000,
            peer_requests_per_second_max: 2_000,
            peer_bytes_per_second_max: 32 * 1024 * 1024,
            peer_streams_max: 512,
            peer_handshakes_per_minute_max: 120,
            queues_per_client_max: 8,
            queue_entries_max: 100_000,
            queue_bytes_max: 256 * 1024 * 1024,
            queue_entry_age_seconds_max: 30 * DAY,
            lane_age_seconds_max: 14 * DAY,
            lane_frames_max: 100_000,
            lane_bytes_max: 256 * 1024 * 1024,
            lane_undelivered_seconds_max: 30 * DAY,
            lane_refused_seconds_max: DAY,
        }
    }
}

const DAY: u64 = 24 * 60 * 60;

impl Limits {
    /// Whether nothing differs from the defaults.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What one peer may use up of which nothing else is said.
    pub fn per_peer(&self) -> PeerLimits {
        PeerLimits {
            requests_per_second_max: self.peer_requests_per_second_max,
            bytes_per_second_max: self.peer_bytes_per_second_max,
            streams_max: self.peer_streams_max,
            handshakes_per_minute_max: self.peer_handshakes_per_minute_max,
            claims_per_hour_max: self.claims_per_domain_per_hour_max,
        }
    }

    /// Refuses what could not work: sizes over what a frame can carry, and limits that would forbid everything.
    pub fn check(&self) -> Result<(), Fault> {
        let at_most = [
            ("client_frame_bytes_max", self.client_frame_bytes_max, CLIENT_FRAME_BYTES_MAX),
            ("commit_bytes_max", self.commit_bytes_max, CLIENT_FRAME_BYTES_MAX),
            ("message_bytes_max", self.message_bytes_max, APPLICATION_MESSAGE_BYTES_MAX),
            ("group_leaves_max", self.group_leaves_max, GROUP_LEAVES_MAX),
        ];
        for (name, value, most) in at_most {
            if value > most {
                return Err(Fault::new(format!("limits: {name} is {value}, which is more than the {most} that can be carried")));
            }
        }
        let at_least_one = [
            ("user_leaves_max", self.user_leaves_max),
            ("commit_proposals_max", self.commit_proposals_max),
            ("removals_at_once_max", self.removals_at_once_max),
            ("group_leaves_max", self.group_leaves_max),
            ("queues_per_client_max", self.queues_per_client_max),
            ("requests_per_client_per_second_max", self.requests_per_client_per_second_max as usize),
            ("requests_per_group_per_second_max", self.requests_per_group_per_second_max as usize),
            ("peer_requests_per_second_max", self.peer_requests_per_second_max as usize),
            ("peer_bytes_per_second_max", self.peer_bytes_per_second_max as usize),
            ("peer_streams_max", self.peer_streams_max as usize),
            ("peer_handshakes_per_minute_max", self.peer_handshakes_per_minute_max as usize),
        ];
        match at_least_one.into_iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(Fault::new(format!("limits: {name} is 0, which forbids everything"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows ``| `key` | default | unit | text |`` of the operator's documentation.
    fn documented() -> Vec<(String, u64, String)> {
        let text = include_str!("../../../docs/operating.md");
        let (_, section) = text.split_once("\n## Limits\n").expect("a section about limits");
        let section = section.split("\n## ").next().unwrap_or(section);
        let rows = section.lines().filter_map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let key = cells.first()?.strip_prefix('`')?.strip_suffix('`')?;
            let number = cells.get(1)?.parse().expect("a default is a number");
            Some((key.to_owned(), number, (*cells.get(2)?).to_owned()))
        });
        rows.collect()
    }

    #[test]
    fn the_documentation_has_each_limit_with_its_default_and_unit() {
        let defaults = serde_json::to_value(Limits::default()).expect("encodes");
        let defaults = defaults.as_object().expect("a struct");
        let documented = documented();
        for (key, number, unit) in &documented {
            assert_eq!(defaults.get(key).and_then(serde_json::Value::as_u64), Some(*number), "{key}");
            // The unit in the name, where there is one, is the unit in the table.
            for (part, word) in [("bytes", "octets"), ("seconds", "seconds"), ("per_second", "a second"), ("per_hour", "an hour")]
            {
                assert!(!key.contains(part) || unit.contains(word), "{key} is in {unit}");
            }
            assert!(!unit.is_empty(), "{key}");
        }
        let keys: std::collections::BTreeSet<&String> = documented.iter().map(|(key, ..)| key).collect();
        assert_eq!(keys.len(), documented.len(), "none twice");
        let missing: Vec<&String> = defaults.keys().filter(|key| !keys.contains(key)).collect();
        assert!(missing.is_empty(), "not documented: {missing:?}");
    }

    #[test]
    fn the_defaults_work_and_what_cannot_be_carried_is_refused() {
        Limits::default().check().expect("the defaults work");
        let large = Limits { message_bytes_max: APPLICATION_MESSAGE_BYTES_MAX + 1, ..Limits::default() };
        assert!(large.check().expect_err("refused").to_string().contains("message_bytes_max"));
        let none = Limits { removals_at_once_max: 0, ..Limits::default() };
        assert!(none.check().expect_err("refused").to_string().contains("removals_at_once_max"));
    }
}
