//! What the admin interface answers, as JSON (`docs/admin.md`). Fields are added and never change their meaning; times are RFC 3339 in
//! UTC with milliseconds, and whatever has a unit has it last in its name.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::base::Domain;
use crate::base::limits::PeerLimits;
use crate::federation::PeerOverride;
use crate::federation::policy::Denial;

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorView {
    /// One word, for programs.
    pub error: String,
    /// A sentence, for people.
    pub message: String,
}

/// `GET /health`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HealthView {
    /// Whether the node does its work: it listens, and its database can be written.
    pub ready: bool,
    /// The domain that it serves.
    pub domain: Domain,
    /// Whether it takes connections on both ports.
    pub listening: bool,
    /// Whether a write reached the disk just now.
    pub storage_writable: bool,
    /// What is wrong with the database, if anything.
    pub storage_error: Option<String>,
    /// How long its TLS certificate is valid still, in whole days; negative when it has expired.
    pub certificate_days_left: i64,
    /// The program's version.
    pub version: String,
    /// When it started.
    pub started_at: String,
}

/// A peer, in `GET /peers` and in the answer of what changes one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerView {
    /// Which.
    pub domain: Domain,
    /// `up`, `probing`, `backing_off`, `held`, `denied`; or `untried`: nobody has had a reason to dial it since the node started.
    pub state: String,
    /// Since when; `None` for one that nobody has had a reason to dial.
    pub since: Option<String>,
    /// When it may be tried again, while it is backing off.
    pub retry_at: Option<String>,
    /// Failures in a row.
    pub failures: u32,
    /// What failed last; `None` when nothing has since the last success.
    pub last_error: Option<LastErrorView>,
    /// Where our connection to it leads, if it is up.
    pub connected: Option<SocketAddr>,
    /// How long its certificate is valid still, in whole days, if it is connected in either direction.
    pub certificate_days_left: Option<i64>,
    /// What holds for it.
    pub policy: PolicyView,
    /// What waits for it on disk.
    pub queued: QueuedView,
    /// Incarnations of lanes to it that ended before all their frames were delivered, as far as they are kept.
    pub dead_letters: u64,
    /// What is on its way to it.
    pub in_flight: InFlightView,
    /// What went to and came from it since the node started.
    pub counts: CountsView,
}

/// Who has decided what about a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyView {
    /// Why it may not federate: `not_listed`, `configuration`, `operator`; `None`: it may.
    pub denied: Option<Denial>,
    /// Whether nothing is sent to it.
    pub held: bool,
    /// Why, in an operator's words.
    pub reason: Option<String>,
    /// Whether the configuration file names it.
    pub configured: bool,
    /// How much it may ask for.
    pub limits: PeerLimits,
    /// What operators have said of it while the node ran; kept over a restart.
    #[serde(rename = "override")]
    pub said: Option<PeerOverride>,
}

/// Why a peer could not be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastErrorView {
    /// One word, such as `unreachable`.
    pub kind: String,
    /// What happened, in a sentence.
    pub detail: String,
}

/// What waits for a peer on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedView {
    /// Frames.
    pub frames: u64,
    /// Their octets.
    pub bytes: u64,
    /// Lanes, one for each group.
    pub lanes: u64,
    /// Those of them that were refused or got no answer, and are not tried again before their own time.
    pub lanes_held: u64,
    /// How long the oldest undelivered frame has waited; `None` when nothing waits.
    pub oldest_age_seconds: Option<u64>,
}

/// What is on its way to a peer and not answered yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlightView {
    /// Lane frames.
    pub frames: u64,
    /// Other requests.
    pub requests: u64,
}

/// What went to and came from a peer since the node started. Each is described at `federation::PeerTraffic`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountsView {
    /// Lane frames sent to it, repeats included.
    pub frames_sent: u64,
    /// Lane frames that it has taken.
    pub frames_delivered: u64,
    /// Lane frames of it that we have taken.
    pub frames_received: u64,
    /// Other requests to it.
    pub requests_sent: u64,
    /// Those of them that got no answer.
    pub requests_failed: u64,
    /// Other requests of it.
    pub requests_received: u64,
    /// Its requests and lanes that we refused.
    pub refused: u64,
    /// Its requests and streams that were over its limits.
    pub over_limits: u64,
}

/// `POST /flush` and `POST /peers/DOMAIN/flush`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlushedView {
    /// Whose answers of DNS were forgotten; `None`: everybody's.
    pub flushed: Option<Domain>,
}

/// `POST /reload`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadedView {
    /// The TLS files were read, and what they hold is in use.
    pub reloaded: bool,
}

/// A lane in which frames wait, in `GET /lanes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneView {
    /// The domain that the frames are for.
    pub domain: Domain,
    /// The group that they are of.
    pub group: String,
    /// The lane's incarnation, hexadecimal.
    pub incarnation: String,
    /// The sequence of the first frame that waits.
    pub first_sequence: u64,
    /// Frames that wait.
    pub frames: u64,
    /// Their octets.
    pub bytes: u64,
    /// When the oldest undelivered frame was accepted.
    pub undelivered_since: String,
    /// How long ago that is.
    pub oldest_age_seconds: u64,
    /// Since when the other side has refused even that the lane begins anew.
    pub refused_since: Option<String>,
}

/// A lane's incarnation that ended before all its frames were delivered, in `GET /dead-letters`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterView {
    /// The domain that the frames were for.
    pub domain: Domain,
    /// The group that they were of.
    pub group: String,
    /// The incarnation, hexadecimal.
    pub incarnation: String,
    /// The first sequence that is lost.
    pub first_sequence: u64,
    /// Frames that are lost.
    pub frames: u64,
    /// Their octets, as far as they were still here.
    pub bytes: u64,
    /// The epoch of the first one.
    pub epoch: u64,
    /// The leaves that are told of the loss.
    pub recipients: u64,
    /// SHA-256 of the first one's message, hexadecimal, if it was still here.
    pub digest: Option<String>,
    /// Why, in a word.
    pub reason: String,
    /// Why, in a sentence.
    pub detail: String,
    /// When.
    pub died_at: String,
}
