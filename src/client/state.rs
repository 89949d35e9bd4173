//! What a client keeps on disk: one state file, replaced as a whole, so that ratchet state, outgoing requests and processed
//! queue entries can never disagree.
//!
//! | file in the state directory | is |
//! |---|---|
//! | `state` | [`State`] and OpenMLS's storage; mode 0600; written to `state.new`, synced, renamed |
//! | `history.jsonl` | messages for people (see [`super::history`]) |
//! | `lock` | held while a client runs on the directory |

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::history::HistoryLine;
use crate::base::ids::{QueueId, RequestId};
use crate::base::{Context as _, Fault};

/// First octets of a state file.
const MAGIC: &[u8; 8] = b"mimiclnt";

/// The format this code writes, and the only one it reads. postcard does not describe itself: any change of [`State`] is a new
/// version.
const VERSION: u32 = 3;

/// Magic, version, length of the state.
const HEADER_BYTES: usize = 8 + 4 + 8;

/// Octets that serde writes and reads as one piece.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Blob(pub(super) Vec<u8>);

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Many of them are keys.
        write!(f, "{} octets", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Octets;
        impl Visitor<'_> for Octets {
            type Value = Blob;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("octets")
            }

            fn visit_bytes<E: de::Error>(self, octets: &[u8]) -> Result<Blob, E> {
                Ok(Blob(octets.to_vec()))
            }

            fn visit_byte_buf<E: de::Error>(self, octets: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(octets))
            }
        }
        deserializer.deserialize_byte_buf(Octets)
    }
}

/// Everything but OpenMLS's own storage.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) account: Account,
    /// The client's queue at its own QS, once it is made.
    pub(super) queue: Option<Queue>,
    /// The KeyPackages whose private keys are here.
    pub(super) key_packages: Vec<KeptKeyPackage>,
    /// The user's devices that this client knows of, by name.
    pub(super) devices: BTreeSet<String>,
    /// Encoded DomainInfo by domain: pinned at first sight.
    pub(super) domains: BTreeMap<String, Blob>,
    /// Groups by URI.
    pub(super) groups: BTreeMap<String, Group>,
    /// Requests whose answer is not known yet, in the order they were made.
    pub(super) outbox: Vec<Outgoing>,
    /// Encoded queue entries by group that wait for something to be fetched or answered before they can be processed.
    pub(super) backlog: BTreeMap<String, Vec<Blob>>,
    /// The newest lines of the history, which may not be in its file yet.
    pub(super) history: Vec<HistoryLine>,
    /// How many lines the history has had.
    pub(super) history_count: u64,
    /// Lines of the event log that belong to this state and may not be in its file yet.
    pub(super) unlogged: Vec<String>,
    /// How many state lines the event log has had.
    pub(super) log_count: u64,
    /// What to add to the system clock to agree with the node's, in milliseconds.
    pub(super) clock_offset_ms: i64,
}

/// Who this client is. All keys are made, and kept, before the node hears of any.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Account {
    pub(super) domain: String,
    pub(super) device: String,
    /// How the user key comes here.
    pub(super) origin: Origin,
    pub(super) tls_ca_spki_hash: [u8; 32],
    pub(super) resolver: Vec<SocketAddr>,
    pub(super) queue_request: RequestId,
    /// PKCS#8; empty until another device has handed it over, if that is its origin.
    pub(super) user_key: Blob,
    /// PKCS#8.
    pub(super) client_key: Blob,
    /// PKCS#8.
    pub(super) owner_key: Blob,
    /// DER; empty until the AS has issued it.
    pub(super) user_certificate: Blob,
    /// DER; empty until the user certificate is there.
    pub(super) client_certificate: Blob,
    /// The client's URI; empty until enrolled.
    pub(super) client: String,
    /// How many KeyPackages to keep published.
    pub(super) key_packages: u32,
    /// Whether the queue is made and KeyPackages are published.
    pub(super) complete: bool,
    /// Whether the user's groups are still to be looked for (X6).
    pub(super) rejoin: bool,
    /// Whether invitations wait for the user's word.
    pub(super) hold_invitations: bool,
}

/// Where a client's user key and certificates are from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Origin {
    /// An invitation: this client made the user key and the AS issued its certificate.
    Invitation {
        /// The invitation's token, to recognise it when enrolment is taken up again.
        token: [u8; 16],
        request: RequestId,
        certificate_request: Blob,
    },
    /// Another device of the user, which answers the pairing request.
    Device {
        /// Encoded PairingRequest.
        request: Blob,
        /// What the answer is sealed to (X25519, as HPKE has it); empty once it is opened.
        private_key: Blob,
    },
    /// A backup of the user key.
    Backup,
}

/// A KeyPackage of ours that may be used yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptKeyPackage {
    /// KeyPackageRef.
    pub(super) reference: Blob,
    pub(super) last_resort: bool,
    pub(super) expires_at_ms: u64,
    /// The generation of its queue information (X3).
    pub(super) generation: u32,
}

/// The client's own queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Queue {
    pub(super) id: QueueId,
    /// The generation of queue information sealed from now on (X3).
    pub(super) generation: u32,
    /// The generation up to which queue information stops working once nobody needs it any more.
    pub(super) retiring: Option<u32>,
    /// The sequence of the next entry to take.
    pub(super) next: u64,
    /// The last sequence that the node has been told it may forget.
    pub(super) acked: u64,
}

/// What a client knows of a group beside its MLS state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Group {
    pub(super) status: GroupStatus,
    /// The name the user gave it, here only.
    pub(super) name: Option<String>,
    /// The generation of the queue config that the hub has and that is bound to it; `None` while it has an invitation's.
    pub(super) queue_generation: Option<u32>,
    /// When this client's leaf last got new keys, by the node's clock in milliseconds since 1970.
    pub(super) leaf_renewed_ms: u64,
    /// Whether messages of the group were lost, and perhaps Commits: the client has to resync (X4).
    pub(super) lost: bool,
}

/// Where a client stands in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupStatus {
    /// Asked for, not confirmed by the hub.
    Creating,
    /// A member.
    Member,
    /// A Commit is missing or could not be applied: nothing more can be read until the client resyncs, which it does by itself.
    Stuck,
    /// A member that asked to leave; another member's Commit makes it true.
    Leaving,
    /// No longer a member.
    Left,
    /// The group is no more.
    Deleted,
}

/// A request whose answer is not known yet: sent again with the same id until it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Outgoing {
    pub(super) request: RequestId,
    pub(super) destination: String,
    /// Encoded `wire::request::Service`.
    pub(super) service: Blob,
    pub(super) purpose: Purpose,
    /// When it was made, by the node's clock in milliseconds since 1970: shortly before it was first tried.
    pub(super) made_at_ms: u64,
    /// Whether it was refused as it is and waits here to be made anew, so that a crash in between loses nothing.
    pub(super) stale: bool,
}

/// What an [`Outgoing`] is for, and what its answer will need.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Purpose {
    KeyPackages,
    CreateGroup {
        group: String,
    },
    Commit {
        group: String,
        epoch: u64,
        hash: [u8; 32],
        plan: Plan,
    },
    /// An external Commit. What OpenMLS stored for the group as it will be stays apart until the hub has accepted it.
    Join {
        group: String,
        epoch: u64,
        hash: [u8; 32],
        how: JoinHow,
        values: Vec<(Blob, Blob)>,
    },
    Message {
        group: String,
        epoch: u64,
        hash: [u8; 32],
        text: String,
    },
    /// An invitation that cannot be used: the leaf that it made is to go.
    Decline {
        group: String,
    },
}

/// What a Commit does, so that it can be made anew when another one came first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Plan {
    Update,
    /// Commit the proposals that wait, if any do.
    Cover,
    /// Users' URIs.
    Add(Vec<String>),
    /// Users' URIs.
    Remove(Vec<String>),
    /// Users' URIs, who are members: those of their clients that are not.
    AddClients(Vec<String>),
    /// Clients' URIs.
    RemoveClients(Vec<String>),
    /// Whether users may join by themselves.
    Policy {
        open: bool,
    },
    /// Remove everybody else, and then there is no group any more (S7).
    Delete,
}

/// By what right an external Commit joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum JoinHow {
    /// It replaces this client's own leaf.
    Resync,
    /// The user is a member.
    Client,
    /// The group is open.
    Open,
}

/// OpenMLS's storage.
pub(super) type Values = HashMap<Vec<u8>, Vec<u8>>;

/// An open state directory. The lock is held for as long as this lives.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    _lock: File,
}

impl Store {
    /// Opens `dir`, making it (0700) if it is not there. Fails when another client runs on it.
    pub(super) fn open(dir: &Path) -> Result<Self, Fault> {
        let shown = dir.display();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(|| format!("could not make {shown}"))?;
        let lock = options().write(true).create(true).truncate(false).open(dir.join("lock"));
        let lock = lock.with_context(|| format!("could not open the lock file in {shown}"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { dir: dir.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                Err(Fault::new(format!("another mimi-client is running on {shown}: stop it, or use another directory")))
            }
            Err(TryLockError::Error(error)) => Err(Fault::because(format!("could not lock {shown}"), error)),
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads the state; `None` when there is none yet. A half-written new state beside it is ignored: it was never used.
    pub(super) fn load(&self) -> Result<Option<(State, Values)>, Fault> {
        let path = self.dir.join("state");
        let octets = match fs::read(&path) {
            Ok(octets) => octets,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Fault::because(format!("could not read {}", path.display()), error)),
        };
        decode(&octets).map(Some).with_context(|| format!("could not use {}", path.display()))
    }

    /// Replaces the state. When this returns, the new one survives a crash of the machine; before, the old one does.
    pub(super) fn save(&self, state: &State, values: &Values) -> Result<(), Fault> {
        let octets = encode(state, values)?;
        let (new, path) = (self.dir.join("state.new"), self.dir.join("state"));
        let written = (|| {
            let mut file = options().write(true).create(true).truncate(true).open(&new)?;
            file.write_all(&octets)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        })();
        written.with_context(|| format!("could not write {}", path.display()))
    }
}

/// Files with keys in them are for their owner only.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

fn encode(state: &State, values: &Values) -> Result<Vec<u8>, Fault> {
    let size: usize = values.iter().map(|(key, value)| key.len() + value.len() + 16).sum();
    let mut octets = Vec::with_capacity(HEADER_BYTES + size + 64 * 1024);
    octets.extend_from_slice(MAGIC);
    octets.extend_from_slice(&VERSION.to_be_bytes());
    let head = postcard::to_stdvec(state).context("could not encode the client's state")?;
    push(&mut octets, &head);
    // By hand: as a serde map every octet would be an element of its own.
    octets.extend_from_slice(&(values.len() as u64).to_be_bytes());
    for (key, value) in values {
        push(&mut octets, key);
        push(&mut octets, value);
    }
    Ok(octets)
}

fn push(octets: &mut Vec<u8>, piece: &[u8]) {
    octets.extend_from_slice(&(piece.len() as u64).to_be_bytes());
    octets.extend_from_slice(piece);
}

fn decode(octets: &[u8]) -> Result<(State, Values), Fault> {
    let Some(rest) = octets.strip_prefix(MAGIC) else { return Err(Fault::new("it is not a mimi-client state file")) };
    let (version, mut rest) = rest.split_first_chunk().context("it is cut short")?;
    let version = u32::from_be_bytes(*version);
    if version != VERSION {
        return Err(Fault::new(format!("its format is version {version}, this mimi-client knows only version {VERSION}")));
    }
    let state = postcard::from_bytes(pull(&mut rest)?).context("its content is damaged")?;
    let (count, mut rest) = rest.split_first_chunk().context("it is cut short")?;
    let mut values = HashMap::new();
    for _ in 0..u64::from_be_bytes(*count) {
        let key = pull(&mut rest)?.to_vec();
        values.insert(key, pull(&mut rest)?.to_vec());
    }
    if rest.is_empty() { Ok((state, values)) } else { Err(Fault::new("it has octets after its end")) }
}

fn pull<'a>(octets: &mut &'a [u8]) -> Result<&'a [u8], Fault> {
    let (length, rest) = octets.split_first_chunk().context("it is cut short")?;
    let length = usize::try_from(u64::from_be_bytes(*length)).context("it is damaged")?;
    let (piece, rest) = rest.split_at_checked(length).context("it is cut short")?;
    *octets = rest;
    Ok(piece)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::client) fn sample() -> State {
        State {
            account: Account {
                domain: "a.test".into(),
                device: "phone".into(),
                origin: Origin::Invitation {
                    token: [1; 16],
                    request: RequestId([3; 16]),
                    certificate_request: Blob(vec![4; 300]),
                },
                tls_ca_spki_hash: [2; 32],
                resolver: vec!["127.0.0.1:53".parse().expect("an address")],
                queue_request: RequestId([5; 16]),
                user_key: Blob(vec![6]),
                client_key: Blob(vec![7]),
                owner_key: Blob(vec![8]),
                user_certificate: Blob::default(),
                client_certificate: Blob::default(),
                client: String::new(),
                key_packages: 20,
                complete: false,
                rejoin: false,
                hold_invitations: false,
            },
            queue: Some(Queue { id: QueueId([9; 16]), generation: 1, retiring: None, next: 5, acked: 4 }),
            key_packages: vec![KeptKeyPackage {
                reference: Blob(vec![15; 32]),
                last_resort: true,
                expires_at_ms: 9,
                generation: 1,
            }],
            devices: BTreeSet::from(["phone".into()]),
            domains: BTreeMap::from([("b.test".into(), Blob(vec![10, 11]))]),
            groups: BTreeMap::from([(
                "mimi://a.test/g/00".into(),
                Group {
                    status: GroupStatus::Member,
                    name: Some("us".into()),
                    queue_generation: Some(1),
                    leaf_renewed_ms: 7,
                    lost: false,
                },
            )]),
            outbox: vec![Outgoing {
                request: RequestId([12; 16]),
                destination: "a.test".into(),
                service: Blob(vec![13; 70]),
                purpose: Purpose::Commit {
                    group: "mimi://a.test/g/00".into(),
                    epoch: 3,
                    hash: [14; 32],
                    plan: Plan::Add(vec!["mimi://b.test/u/bob".into()]),
                },
                made_at_ms: 1,
                stale: false,
            }],
            backlog: BTreeMap::new(),
            history: Vec::new(),
            history_count: 0,
            unlogged: vec!["{}".into()],
            log_count: 1,
            clock_offset_ms: -5,
        }
    }

    fn values() -> Values {
        HashMap::from([(b"key".to_vec(), vec![1; 1000]), (Vec::new(), Vec::new())])
    }

    #[test]
    fn a_state_survives_the_disk_and_a_cut_short_successor_does_not_matter() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("opens");
        assert!(store.load().expect("reads").is_none());
        store.save(&sample(), &values()).expect("saves");
        // What a crash in the middle of the next save leaves behind.
        fs::write(dir.path().join("state.new"), &encode(&sample(), &values()).expect("encodes")[..100]).expect("writes");
        let (state, kept) = store.load().expect("reads").expect("is there");
        assert_eq!(format!("{state:?}"), format!("{:?}", sample()));
        assert_eq!(kept, values());
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(dir.path().join("state")).expect("is there").permissions());
        assert_eq!(mode & 0o777, 0o600);
        store.save(&state, &kept).expect("saves over the leftover");
        assert!(!dir.path().join("state.new").exists());
    }

    #[test]
    fn damage_and_other_versions_are_told_plainly() {
        let octets = encode(&sample(), &values()).expect("encodes");
        for length in 0..octets.len() {
            assert!(decode(&octets[..length]).is_err(), "cut to {length}");
        }
        let mut newer = octets.clone();
        newer[11] = 9;
        assert!(decode(&newer).expect_err("another version").to_string().contains("version 9"));
        assert!(decode(&[octets, vec![0]].concat()).is_err(), "trailing octet");
        assert!(decode(b"something else").expect_err("no state").to_string().contains("not a mimi-client state file"));
    }

    #[test]
    fn a_second_client_is_kept_out_until_the_first_is_gone() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = Store::open(dir.path()).expect("opens");
        let error = Store::open(dir.path()).expect_err("is locked").to_string();
        assert!(error.contains("another mimi-client is running"), "{error}");
        drop(first);
        Store::open(dir.path()).expect("opens");
    }
}
