//! A node without a network: real services over a real database, asked as its two ports ask them.
//!
//! It serves `a.test`. The AS roots of `b.test` are pinned, so that users of both can ask: those of `a.test` at the client port,
//! the others through their domain. No worker runs: frames for `b.test` stay in their lanes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use hpke_rs::{Hpke, HpkePublicKey, Mode};
use hpke_rs_crypto::types::{AeadAlgorithm, KdfAlgorithm, KemAlgorithm};
use hpke_rs_rust_crypto::HpkeRustCrypto;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection as _, Row as _};
use tokio::sync::{Mutex, watch};

use super::hello::OwnHello;
use super::route::Connected;
use super::{NodeKeys, Service};
use crate::base::crypto::SigningKey;
use crate::base::ids::{InviteId, QueueId, RequestId};
use crate::base::limits::Limits;
use crate::base::{Domain, UnixMillis};
use crate::federation::{DialSettings, PeerPool};
use crate::identity::chain::{AsRoots, validate_client_chain};
use crate::identity::{AsRoot, ClientIdentity};
use crate::qs::sealed::QsKeyPair;
use crate::storage::accounts::{EnrolUser, Enrolment, Invite, PinDomain};
use crate::storage::answers::RequestKey;
use crate::storage::status::KeepStatus;
use crate::storage::{DATABASE_FILE, Storage};
use crate::tests::forged::{Device, Room, content};
use crate::transport::testing::{Ca, bind};
use crate::transport::{Resolver, ResolverSettings};
use crate::wire::ds::{ClientQueueConfig, DsRequest, DsSenderId};
use crate::wire::info::DomainInfo;
use crate::wire::peer::{CredentialStatus, LaneBatch, LaneResult, PeerRequest, PeerResponse};
use crate::wire::qs::{
    CreateQueue, Invite as WireInvite, QsMessage, QsRequest, QsSender, QueueBinding, QueueInformation, SealedQueueInformation,
};
use crate::wire::{ClientRequest, ErrorCode, List, Opaque, Rejection, Reply, Response, Service as Body, decode, encode};

/// The node, its database, and what its users' certificates are made with.
pub(crate) struct TestNode {
    pub(crate) service: Arc<Service>,
    pub(crate) as_roots: HashMap<Domain, AsRoot>,
    tables: Mutex<SqliteConnection>,
    // Last: the directory goes when nobody uses it any more.
    _directory: tempfile::TempDir,
}

/// As whom a request reaches the node.
#[derive(Clone, Copy)]
pub(crate) enum Via<'a> {
    /// Of this client: at the client port with its certificate, or through its own domain.
    Home(&'a Device),
    /// Through another node, of this domain.
    Peer(&'a str),
    /// At the client port, without a certificate.
    Stranger,
}

/// The rows of each table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tables(BTreeMap<String, Vec<String>>);

impl Tables {
    /// The rows of one table.
    pub(crate) fn rows(&self, table: &str) -> &[String] {
        self.0.get(table).expect("a table")
    }

    /// The tables that differ from `before`, with what they have gained and lost.
    fn changes_since(&self, before: &Self) -> Vec<String> {
        let missing = |table: &str, from: &Self, to: &Self| -> Vec<String> {
            from.rows(table)
                .iter()
                .filter(|row| !to.rows(table).contains(row))
                .map(|row| row.chars().take(200).collect())
                .collect()
        };
        let differ = self.0.keys().filter(|table| self.rows(table) != before.rows(table));
        differ
            .map(|table| format!("{table}: {:?} is now {:?}", missing(table, before, self), missing(table, self, before)))
            .collect()
    }
}

fn domain(name: &str) -> Domain {
    name.parse().expect("a domain")
}

impl TestNode {
    /// The node of `a.test`, with no groups and no users.
    pub(crate) async fn new() -> Self {
        Self::with_limits(Limits::default()).await
    }

    pub(crate) async fn with_limits(limits: Limits) -> Self {
        let now = UnixMillis::now();
        let own = domain("a.test");
        let as_roots: HashMap<Domain, AsRoot> = ["a.test", "b.test"]
            .map(|name| (domain(name), AsRoot::create(&domain(name), now).expect("a root")))
            .into_iter()
            .collect();
        let directory = tempfile::tempdir().expect("a directory");
        let storage = Storage::open(directory.path()).await.expect("a database");
        let info = DomainInfo {
            domain: b"b.test".as_slice().into(),
            as_roots: vec![as_roots[&domain("b.test")].certificate().into()].into(),
            qs_keys: List::default(),
            external_sender: Opaque::default(),
            server_time_ms: 0,
        };
        storage.write(PinDomain { domain: domain("b.test"), info: encode(&info), now }).await.expect("pinned");
        // Nothing is revoked, and nobody can be asked again.
        let status = CredentialStatus {
            domain: b"b.test".as_slice().into(),
            version: 1,
            next_update_ms: u64::MAX,
            revoked: List::default(),
            signature: Opaque::default(),
        };
        let kept = KeepStatus { domain: domain("b.test"), version: 1, status: encode(&status) };
        storage.write(kept).await.expect("kept");

        let as_root = as_roots[&own].clone();
        let ds = SigningKey::generate().expect("a key");
        let public: [u8; 32] = ds.public().try_into().expect("32 octets");
        let ds_chain = vec![as_root.issue_service("mimi://a.test/ds", &public, now).expect("a certificate")];
        let keys = NodeKeys { as_root, ds, ds_chain, qs: vec![QsKeyPair::generate(1).expect("a key")] };
        // A name server that is not there: nobody is found.
        let resolver =
            Resolver::new(&ResolverSettings { servers: vec![([127, 0, 0, 1], 9).into()], ..ResolverSettings::default() })
                .expect("a resolver");
        let hello = Arc::new(OwnHello::new(own.clone()));
        let tls = Ca::new("test CA").node("a.test");
        let peers = PeerPool::new(bind(None), &tls, resolver, own.clone(), hello, DialSettings::default()).expect("a pool");
        // Stopping from the start: no worker begins, and what is accepted stays where it was written.
        let (_, stopping) = watch::channel(true);
        let service = Service::new(own, storage, peers, keys, limits, stopping).await.expect("services");
        let options = SqliteConnectOptions::new().filename(directory.path().join(DATABASE_FILE)).read_only(true);
        let tables = SqliteConnection::connect_with(&options).await.expect("the same database");
        Self { service, as_roots, tables: Mutex::new(tables), _directory: directory }
    }

    /// A new user `name@domain` with one device.
    pub(crate) async fn device(&self, name: &str) -> Device {
        let (user, of) = name.split_once('@').expect("user@domain");
        Device::new(&self.as_roots[&domain(of)], user)
    }

    /// Who a client is, as its certificates say.
    pub(crate) fn identity(&self, client: &Device) -> ClientIdentity {
        let of = client.uri.domain();
        let roots = AsRoots::new(of.clone(), vec![self.as_roots[of].certificate().to_vec()]).expect("roots");
        validate_client_chain(&client.chain, &roots, UnixMillis::now()).expect("a valid chain")
    }

    /// Makes a queue for a client of `a.test`.
    pub(crate) async fn queue(&self, client: &Device) -> TestQueue {
        let owner = SigningKey::generate().expect("a key");
        let body = CreateQueue { owner_key: owner.public().into() };
        let message = QsMessage { sender: QsSender::Client(client.certificates()), request: QsRequest::Create(body) };
        let request = content(self.service.domain(), Body::Qs(message)).sign(&client.key);
        let Reply::QueueCreated(made) = self.accepts(Via::Home(client), &request).await else { unreachable!("a queue") };
        TestQueue { id: made.queue_id, generation: made.generation, owner }
    }

    /// A queue config with this information, sealed to the node's own QS.
    pub(crate) fn seal(&self, information: &QueueInformation) -> ClientQueueConfig {
        let key = &self.service.keys.qs[0];
        let mut hpke =
            Hpke::<HpkeRustCrypto>::new(Mode::Base, KemAlgorithm::DhKem25519, KdfAlgorithm::HkdfSha256, AeadAlgorithm::Aes128Gcm);
        let to = HpkePublicKey::new(key.public_key.clone());
        let (kem_output, ciphertext) =
            hpke.seal(&to, b"MIMI queue info", b"", &encode(information), None, None, None).expect("seals");
        let sealed = SealedQueueInformation { key_id: key.key_id, kem_output: kem_output.into(), ciphertext: ciphertext.into() };
        ClientQueueConfig { qs_domain: b"a.test".as_slice().into(), client_queue_information: encode(&sealed).into() }
    }

    /// Where a client's messages go: to a new queue of this node for its own clients, else elsewhere.
    pub(crate) async fn queue_config(&self, client: &Device) -> ClientQueueConfig {
        if *client.uri.domain() != *self.service.domain() {
            return client.opaque_queue();
        }
        let queue = self.queue(client).await;
        self.seal(&queue.information("a.test"))
    }

    /// What a client of this node puts into KeyPackages: an invite to a new queue.
    pub(crate) async fn invite_config(&self, client: &Device, last_resort: bool) -> ClientQueueConfig {
        let queue = self.queue(client).await;
        self.seal(&queue.invite(last_resort))
    }

    /// Enrols the user of a device.
    pub(crate) async fn enrol(&self, device: &Device) {
        let (now, user) = (UnixMillis::now(), device.uri.user().clone());
        let token_hash = crate::base::crypto::random();
        let storage = self.service.storage();
        let expires_at = now.plus(std::time::Duration::from_secs(60));
        storage.write(Invite { token_hash, user: user.clone(), expires_at }).await.expect("invited");
        let enrol = EnrolUser {
            key: RequestKey::new(&token_hash, RequestId::random(), [0; 32]),
            response: Vec::new(),
            answer_expires_at: now,
            token_hash,
            user,
            certificate: device.user_certificate.clone(),
            now,
        };
        assert!(matches!(storage.write(enrol).await.expect("enrolled"), Enrolment::Done(_)));
    }

    /// Sends a request and returns its answer.
    pub(crate) async fn ask(&self, via: Via<'_>, request: &ClientRequest) -> Result<Reply, Rejection> {
        let frame = encode(request);
        let answer = match via {
            Via::Home(client) if *client.uri.domain() == *self.service.domain() => {
                self.service.answer_client(&frame, &Connected::Client(Box::new(self.identity(client)))).await
            }
            Via::Home(client) => self.service.answer_proxied(&frame, client.uri.domain()).await,
            Via::Peer(name) => self.service.answer_proxied(&frame, &domain(name)).await,
            Via::Stranger => self.service.answer_client(&frame, &Connected::Stranger).await,
        };
        decode::<Response>(&answer).expect("a response").into_result()
    }

    /// Sends a request that must be accepted.
    pub(crate) async fn accepts(&self, via: Via<'_>, request: &ClientRequest) -> Reply {
        self.ask(via, request).await.expect("accepted")
    }

    /// Sends a request that `rule` must refuse with exactly this code, and that must leave every table as it was.
    pub(crate) async fn refuses(&self, rule: &str, via: Via<'_>, request: &ClientRequest, code: ErrorCode) -> Rejection {
        let before = self.tables().await;
        let rejection = match self.ask(via, request).await {
            Ok(reply) => panic!("{rule}: was accepted: {reply:?}"),
            Err(rejection) => rejection,
        };
        assert_eq!(rejection.code, code, "{rule}");
        self.expect_unchanged(rule, &before).await;
        rejection
    }

    /// Sends requests one after the other, one of which `rule` must refuse with exactly this code, leaving every table as it was.
    pub(crate) async fn refuses_one_of(
        &self,
        rule: &str,
        via: Via<'_>,
        requests: &[ClientRequest],
        code: ErrorCode,
    ) -> Rejection {
        for request in requests {
            let before = self.tables().await;
            if let Err(rejection) = self.ask(via, request).await {
                assert_eq!(rejection.code, code, "{rule}");
                self.expect_unchanged(rule, &before).await;
                return rejection;
            }
        }
        panic!("{rule}: all {} were accepted", requests.len());
    }

    /// Sends one lane batch as the node of `hub`.
    pub(crate) async fn lane(&self, hub: &str, batch: &LaneBatch) -> LaneResult {
        let request = PeerRequest::Lanes(vec![batch.clone()].into());
        match self.service.peer_request(&encode(&request), &domain(hub)).await {
            PeerResponse::Lanes(answers) => answers.first().expect("one answer").result.clone(),
            PeerResponse::Error(rejection) => LaneResult::Refused(rejection),
            other => panic!("lanes were answered with {other:?}"),
        }
    }

    /// Sends one lane batch that `rule` must refuse with exactly this code, and that must leave every table as it was.
    pub(crate) async fn refuses_lane(&self, rule: &str, hub: &str, batch: &LaneBatch, code: ErrorCode) {
        let before = self.tables().await;
        match self.lane(hub, batch).await {
            LaneResult::Refused(rejection) => assert_eq!(rejection.code, code, "{rule}"),
            other => panic!("{rule}: was answered with {other:?}"),
        }
        self.expect_unchanged(rule, &before).await;
    }

    /// Pushes a list of revoked keys as the node of `from`, which `rule` must refuse with exactly this code, and which must leave
    /// every table as it was.
    pub(crate) async fn refuses_status(&self, rule: &str, from: &str, status: &CredentialStatus, code: ErrorCode) {
        let before = self.tables().await;
        match self.push_status(from, status).await {
            PeerResponse::Error(rejection) => assert_eq!(rejection.code, code, "{rule}"),
            other => panic!("{rule}: was answered with {other:?}"),
        }
        self.expect_unchanged(rule, &before).await;
    }

    /// Pushes a list of revoked keys that must be taken.
    pub(crate) async fn takes_status(&self, from: &str, status: &CredentialStatus) {
        assert_eq!(self.push_status(from, status).await, PeerResponse::Done);
    }

    async fn push_status(&self, from: &str, status: &CredentialStatus) -> PeerResponse {
        let request = PeerRequest::CredentialStatusPush(status.clone());
        self.service.peer_request(&encode(&request), &domain(from)).await
    }

    pub(crate) async fn expect_unchanged(&self, rule: &str, before: &Tables) {
        let changes = self.tables().await.changes_since(before);
        assert!(changes.is_empty(), "{rule}: was refused and yet changed\n{}", changes.join("\n"));
    }

    /// What is in all tables but `domains`: what another domain publishes is pinned whenever its credentials are first looked
    /// at, whatever becomes of the request that brought them.
    pub(crate) async fn tables(&self) -> Tables {
        let mut connection = self.tables.lock().await;
        // One transaction, hence one state of the database.
        let mut transaction = connection.begin().await.expect("a transaction");
        let names = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT IN ('domains', '_sqlx_migrations')";
        let names: Vec<String> = sqlx::query_scalar(names).fetch_all(&mut *transaction).await.expect("the tables");
        let mut tables = BTreeMap::new();
        for name in names {
            let columns = sqlx::query_scalar("SELECT name FROM pragma_table_info($1)").bind(&name);
            let columns: Vec<String> = columns.fetch_all(&mut *transaction).await.expect("the columns");
            let quoted: Vec<String> = columns.iter().map(|column| format!("quote(\"{column}\")")).collect();
            let statement = format!("SELECT {} AS line FROM \"{name}\" ORDER BY line", quoted.join(" || ', ' || "));
            let rows = sqlx::query(AssertSqlSafe(statement)).fetch_all(&mut *transaction).await.expect("the rows");
            tables.insert(name, rows.iter().map(|row| row.try_get("line").expect("a text")).collect());
        }
        transaction.rollback().await.expect("it ends");
        Tables(tables)
    }

    /// A group of `a.test` with these members, the first of whom made it.
    pub(crate) async fn room(&self, names: &[&str]) -> Room {
        let (first, others) = names.split_first().expect("somebody");
        let creator = self.device(first).await;
        let (mut room, request) = self.creation(&creator).await;
        self.accepts(Via::Home(&creator), &request).await;
        for name in others {
            let new = self.device(name).await;
            self.add(&mut room, &new).await;
        }
        room
    }

    /// A group that `creator` forges, and a create_group that would be accepted.
    pub(crate) async fn creation(&self, creator: &Device) -> (Room, ClientRequest) {
        let queue = self.queue_config(creator).await;
        Room::forge(self.service.domain(), self.service.directory.external_sender(), creator, queue)
    }

    /// Leaf 0 adds a device. Says at which leaf it is.
    pub(crate) async fn add(&self, room: &mut Room, new: &Device) -> u32 {
        let package = new.key_package(Some(&self.queue_config(new).await));
        let before = room.group.leaves();
        let forged = room.group.add(0, vec![package]).expect("leaf 0 is there");
        let user_is_there = room.devices.values().any(|device| device.uri.user() == new.uri.user());
        let body = room.add_body(&forged);
        let body = if user_is_there { DsRequest::AddClients(body) } else { DsRequest::AddUsers(body) };
        self.accepts(Via::Home(&room.devices[&0]), &room.request(0, body)).await;
        let leaf = room.group.leaves().into_iter().find(|leaf| !before.contains(leaf)).expect("a new leaf");
        room.devices.insert(leaf, new.clone());
        leaf
    }
}

/// A queue of the node, and its owner's key.
pub(crate) struct TestQueue {
    pub(crate) id: QueueId,
    pub(crate) generation: u32,
    pub(crate) owner: SigningKey,
}

impl TestQueue {
    /// What is sealed for messages from the hub of a domain.
    pub(crate) fn information(&self, hub: &str) -> QueueInformation {
        let binding = QueueBinding::Hub(hub.as_bytes().into());
        QueueInformation { queue_id: self.id, generation: self.generation, binding }
    }

    /// An invite, good for as long as a KeyPackage is.
    pub(crate) fn invite(&self, last_resort: bool) -> QueueInformation {
        let expires_at_ms = UnixMillis::now().plus(std::time::Duration::from_secs(80 * 86_400)).0;
        let invite = WireInvite { invite_id: InviteId::random(), last_resort: u8::from(last_resort), expires_at_ms };
        QueueInformation { queue_id: self.id, generation: self.generation, binding: QueueBinding::Invite(invite) }
    }
}

/// A DS request with something changed, signed by `key` under an id of its own.
pub(crate) fn changed(
    key: &SigningKey,
    request: &ClientRequest,
    change: impl FnOnce(&mut DsSenderId, &mut DsRequest),
) -> ClientRequest {
    let Body::Ds(message) = &request.content.service else { unreachable!("a DS request") };
    let mut message = message.clone();
    change(&mut message.sender_id, &mut message.request);
    let destination = Domain::from_bytes(&request.content.destination).expect("a domain");
    content(&destination, Body::Ds(message)).sign(key)
}
