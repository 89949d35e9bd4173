//! Seeds for the corpus: out of the databases of nodes that have run, the wire format's vectors, and scripts for the machine.
//!
//! `cargo testbed --once --data DIR`, then `federation-tests seeds --from DIR --into fuzz/corpus`. No private key gets in: the table
//! that holds them is not read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use mimi_node::base::crypto::{SigningKey, sha256};
use mimi_node::base::{Context as _, Domain, Fault, UnixMillis};
use mimi_node::ds::removal::{self, Cause};
use mimi_node::identity::pem::certificate_to_pem;
use mimi_node::mls::key_package::validate_key_package;
use mimi_node::mls::message::{application_frame, framed_commit};
use mimi_node::wire::ds::{DsMessage, DsRequest, DsSenderId, GroupAdd, GroupCommit, GroupUpdate, Propose, SendMessage};
use mimi_node::wire::info::DomainInfo;
use mimi_node::wire::peer::{PeerRequest, PeerResponse};
use mimi_node::wire::qs::Delivery;
use mimi_node::wire::{ClientRequest, Content, List, Opaque, Receipt, Response, Service, decode, encode};
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Row as _};

use crate::hub::{Device, Realm};
use crate::people::update_of;
use crate::synth::{CONTENT_TYPE_APPLICATION, Capabilities};

/// The examples of the wire format.
const VECTORS: &str = include_str!("../../../src/wire/vectors.txt");
const CONFIGURATION: &str = include_str!("../../../configs/loopback.toml");

/// From each source, the seeds that are kept for a target: the smallest ones, each of another size.
const PER_SOURCE_MAX: usize = 4;

/// What runs of the machine begin with. See `machine`: what is asked, who asks, and what the request wants to know.
const SCRIPTS: &[(&str, &[u8])] = &[
    ("updates", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ("add_update_message", &[2, 0, 0x3e, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 9, 2, 0, 0, 9, 4, 3, 0]),
    ("add_remove_add", &[2, 0, 0x1e, 0, 0, 0, 0, 0, 5, 0, 0x06, 0, 0, 0, 0, 2, 0, 0x02, 1, 0, 0, 0, 0]),
    ("open_and_join", &[8, 0, 0, 1, 0, 0, 0, 0, 21, 0, 2, 4, 0, 0, 0, 21, 0, 6, 4, 0, 0, 0, 22, 1, 0, 1, 0, 0, 0]),
    ("tablets", &[4, 0, 0x40, 0, 0, 0, 0, 0, 6, 0, 0x02, 0, 0, 0, 0]),
    ("leaves", &[2, 0, 0x0e, 0, 0, 0, 0, 0, 11, 1, 250, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]),
    ("wanted", &[2, 0, 0x1e, 0, 0, 0, 0, 0, 18, 0x06, 2, 0, 0, 1, 0, 0, 0, 19, 1, 1, 0, 0, 0, 0, 0, 0]),
    ("all_go", &[2, 0, 0x06, 0, 0, 0, 0, 0, 18, 0xff, 1, 9, 0, 0, 0]),
    ("time", &[2, 0, 0x0e, 0, 0, 0, 0, 0, 17, 255, 0, 1, 0, 0, 0, 0, 17, 255]),
    ("queues", &[13, 0, 2, 50, 0, 13, 0, 1, 50, 0, 19, 0, 0, 15, 0, 250]),
    ("joiners", &[2, 0, 0x3e, 0, 0, 0, 0, 0, 14, 0, 1, 240, 15, 1, 0]),
    ("proposals", &[2, 0, 0x06, 0, 0, 0, 0, 0, 20, 1, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 1, 2, 0, 0, 0]),
    ("spoilt", &[0, 0, 0, 0, 130, 0, 90, 0, 0, 0, 0, 0, 180, 0, 40, 0, 2, 0, 6, 0, 0, 0, 220, 0, 9, 0]),
    ("strangers", &[0, 0, 0, 0, 0, 205, 0, 0, 0, 0, 0, 220, 7, 0, 0, 0, 0, 0, 230, 9, 0, 0, 248]),
    ("raw", &[16, 0, 5, 0, 1, 0, 2, 9, 0, 0, 16, 0, 3, 0, 1, 0, 1, 0]),
    ("deleted", &[2, 0, 6, 0, 0, 0, 0, 0, 7, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
];

/// Seeds by target.
#[derive(Default)]
struct Seeds(BTreeMap<&'static str, BTreeMap<String, Vec<u8>>>);

impl Seeds {
    fn put(&mut self, target: &'static str, octets: Vec<u8>) {
        let name: String = sha256(&octets).iter().take(8).map(|octet| format!("{octet:02x}")).collect();
        self.put_named(target, name, octets);
    }

    fn put_named(&mut self, target: &'static str, name: String, octets: Vec<u8>) {
        self.0.entry(target).or_default().insert(name, octets);
    }
}

/// Writes seeds into a folder for each target below `into`. `from`: a directory with the databases of nodes, at any depth.
pub async fn write(from: &Path, into: &Path) -> Result<(), Fault> {
    let mut seeds = Seeds::default();
    let mut vectors = vectors()?;
    vectors.retain(|octets| !octets.is_empty());
    vectors.iter().for_each(|octets| of_wire(&mut seeds, octets));
    SCRIPTS.iter().for_each(|(name, script)| seeds.put_named("delivery_service", (*name).to_owned(), script.to_vec()));
    for line in ["mimi://a.test/u/alice", "mimi://a.test/d/alice/phone", "mimi://a.test/g/AAAA", "a.test", CONFIGURATION] {
        seeds.put("text", line.as_bytes().to_vec());
    }
    let invitation = format!("mimi-invite:a.test:{}:{}", "07".repeat(16), "09".repeat(32));
    seeds.put("text", invitation.into_bytes());
    forged(&mut seeds)?;
    for database in databases(from)? {
        of_database(&mut seeds, &database).await?;
    }
    for (target, seeds) in &seeds.0 {
        let directory = into.join(target);
        std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        for (name, octets) in seeds {
            std::fs::write(directory.join(name), octets).with_context(|| format!("cannot write {name}"))?;
        }
    }
    Ok(())
}

/// What is gone from a database once it is delivered, and what a database never has: the requests themselves.
fn forged(seeds: &mut Seeds) -> Result<(), Fault> {
    let (now, mut rng) = (UnixMillis::now(), ChaCha20Rng::seed_from_u64(3));
    let realm = Realm::new(&["a.test", "b.test"], now)?;
    let alice = realm.device(0, "alice", "phone", &mut rng)?;
    let bob = realm.device(1, "bob", "phone", &mut rng)?;
    let (mut group, mut local) = realm.group(&alice, now, &mut rng)?;
    let uri = local.state.uri.clone();
    let group_id = || Opaque::from(uri.to_bytes());
    let impossible = "the group cannot do this";
    seeds.put("group_info", group.group_info_with_tree(0).context(impossible)?);
    let package = bob.key_package(now, &mut rng);
    seeds.put("key_package", package.message());
    seeds.put("mls_message", package.message());
    let frame = |leaf: u32, device: &Device, request: DsRequest| {
        let request = realm.request(now, DsSenderId::LeafIndex(leaf), List::default(), &device.key, request);
        encode(&request)
    };
    let add = group.add(0, vec![package]).context(impossible)?;
    let welcomes = vec![Opaque::from(add.welcome.as_slice())].into();
    let body = GroupAdd { group_id: group_id(), group_update: update_of(&add), welcomes };
    let frames = vec![frame(0, &alice, DsRequest::AddUsers(body))];
    let (proposal, _) = group.propose_update(1).context(impossible)?;
    let propose = Propose { group_id: group_id(), proposals: vec![Opaque::from(proposal.as_slice())].into() };
    let message = group.private_message(CONTENT_TYPE_APPLICATION);
    let send = SendMessage { group_id: group_id(), message: message.as_slice().into() };
    let update = group.update(1).context(impossible)?;
    let body = GroupCommit { group_id: group_id(), group_update: update_of(&update) };
    let frames = frames.into_iter().chain([
        frame(1, &bob, DsRequest::Propose(propose)),
        frame(1, &bob, DsRequest::SendMessage(send)),
        frame(1, &bob, DsRequest::UpdateClient(body)),
    ]);
    frames.for_each(|frame| seeds.put("client_request", frame));
    let (_, join) = group.join(&alice.identity, &Capabilities::default(), Some(0)).context(impossible)?;
    for octets in [proposal, message, add.commit, add.welcome, add.group_info, update.commit, join.commit, join.group_info] {
        seeds.put("mls_message", octets);
    }
    // Removes of the DS, as it sends them.
    let wanted = [(0, Cause::Inactive)];
    let issued = removal::issue(&realm.hub(now), &local.state, &wanted);
    local.follow_outcome(&mut issued.context("a leaf that is there can be wanted")?);
    local.state.head.proposals.iter().for_each(|proposal| seeds.put("mls_message", proposal.message.clone()));
    Ok(())
}

/// The octets of each vector.
fn vectors() -> Result<Vec<Vec<u8>>, Fault> {
    let mut vectors: Vec<Vec<u8>> = Vec::new();
    for line in VECTORS.lines() {
        if line.starts_with('[') {
            vectors.push(Vec::new());
        } else if let (Some(vector), Some(digits)) = (vectors.last_mut(), line.split('#').next()) {
            let digits: Vec<u8> = digits.bytes().filter(|octet| !octet.is_ascii_whitespace()).collect();
            for pair in digits.chunks(2) {
                let pair = std::str::from_utf8(pair).context("a vector is not hexadecimal")?;
                vector.push(u8::from_str_radix(pair, 16).context("a vector is not hexadecimal")?);
            }
        }
    }
    Ok(vectors)
}

/// Puts an encoded struct where it is decoded.
fn of_wire(seeds: &mut Seeds, octets: &[u8]) {
    let target = if decode::<ClientRequest>(octets).is_ok() {
        "client_request"
    } else if decode::<PeerRequest>(octets).is_ok() || decode::<PeerResponse>(octets).is_ok() {
        "peer"
    } else if decode::<Response>(octets).is_ok() || decode::<DomainInfo>(octets).is_ok() || decode::<Receipt>(octets).is_ok() {
        "answer"
    } else {
        "details"
    };
    seeds.put(target, octets.to_vec());
}

fn databases(from: &Path) -> Result<Vec<PathBuf>, Fault> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let path = entry.context("cannot read a directory")?.path();
        if path.is_dir() {
            found.extend(databases(&path)?);
        } else if path.file_name().is_some_and(|name| name == "node.sqlite") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

async fn of_database(seeds: &mut Seeds, path: &Path) -> Result<(), Fault> {
    let unreadable = || format!("cannot read {}", path.display());
    let mut connection = SqliteConnectOptions::new().filename(path).connect().await.with_context(unreadable)?;
    let sources = [
        ("bodies", "delivery"),
        ("answers", "response"),
        ("domains", "info"),
        ("groups", "group_info"),
        ("key_packages", "key_package"),
        ("users", "certificate"),
        ("groups", "head"),
        ("group_members", "record"),
        ("group_snapshots", "record"),
    ];
    for (table, column) in sources {
        let statement = format!("SELECT {column} AS value FROM {table} ORDER BY length({column})");
        let rows = sqlx::query(AssertSqlSafe(statement)).fetch_all(&mut connection).await.with_context(unreadable)?;
        let mut sizes = BTreeSet::new();
        for row in rows {
            let octets: Vec<u8> = row.try_get("value").with_context(unreadable)?;
            if sizes.len() < PER_SOURCE_MAX && sizes.insert(octets.len()) {
                of_column(seeds, table, column, octets)?;
            }
        }
    }
    Ok(())
}

fn of_column(seeds: &mut Seeds, table: &str, column: &str, octets: Vec<u8>) -> Result<(), Fault> {
    let record = |kind: u8| [&[kind], octets.as_slice()].concat();
    match (table, column) {
        ("bodies", _) => {
            if let Ok(Delivery::Message(message)) = decode::<Delivery>(&octets) {
                seeds.put("mls_message", message.message.to_vec());
                seeds.put("client_request", encode(&request_with(message.message.to_vec())?));
            }
            seeds.put("details", octets);
        }
        ("answers" | "domains", _) => seeds.put("answer", octets),
        ("groups", "group_info") => seeds.put("group_info", octets),
        ("key_packages", _) => {
            if let Ok(key_package) = validate_key_package(&octets) {
                key_package.claim.chain.into_iter().for_each(|certificate| seeds.put("certificate", certificate));
            }
            seeds.put("key_package", octets);
        }
        ("users", _) => {
            seeds.put("text", certificate_to_pem(&octets).into_bytes());
            seeds.put("certificate", octets);
        }
        ("groups", _) => seeds.put("record", record(0)),
        ("group_members", _) => seeds.put("record", record(1)),
        _ => seeds.put("record", record(3)),
    }
    Ok(())
}

/// A request that carries an MLSMessage as its sender's node got it.
fn request_with(message: Vec<u8>) -> Result<ClientRequest, Fault> {
    let hub: Domain = "a.test".parse().context("a domain")?;
    let group_id = application_frame(&message).map(|frame| frame.group_id).unwrap_or_default().into();
    let request = if framed_commit(&message).is_ok() {
        let group_update = GroupUpdate { commit: message.into(), group_info: Vec::new().into() };
        DsRequest::UpdateClient(GroupCommit { group_id, group_update })
    } else {
        DsRequest::SendMessage(SendMessage { group_id, message: message.into() })
    };
    let message = DsMessage { sender_id: DsSenderId::LeafIndex(0), certificates: List::default(), request };
    let key = SigningKey::generate()?;
    let id = mimi_node::base::ids::RequestId([1; 16]);
    Ok(Content::new(&hub, id, UnixMillis::now(), Service::Ds(message)).sign(&key))
}
