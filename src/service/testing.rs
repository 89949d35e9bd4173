//! A node without a network: real services over a real database, asked as its two ports ask them.
//!
//! It serves `a.test`. The AS roots of `b.test` are pinned, so that users of both can ask: those of `a.test` at the client port,
//! the others through their domain. No worker runs: frames for `b.test` stay in their lanes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use hpke_rs::{Hpke, HpkePublicKey, Mode};
use hpke_rs_crypto::types::{AeadAlgorithm, KdfAlgorithm, KemAlgorithm};
use hpke_rs_rust_crypto::HpkeRustCrypto;
use openmls::prelude::{KeyPackage, OpenMlsProvider as _};
use openmls_rust_crypto::OpenMlsRustCrypto;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection as _, Row as _};
use tokio::sync::{Mutex, watch};

use super::ports::OwnHello;
use super::route::Connected;
use super::{NodeKeys, Service};
use crate::base::crypto::SigningKey;
use crate::base::ids::{QueueId, RequestId};
use crate::base::limits::Limits;
use crate::base::{Domain, UnixMillis};
use crate::federation::PeerPool;
use crate::identity::chain::{AsRoots, validate_client_chain};
use crate::identity::{AsRoot, ClientIdentity};
use crate::mls::testing::TestClient;
use crate::qs::sealed::QsKeyPair;
use crate::storage::accounts::PinDomain;
use crate::storage::{DATABASE_FILE, Storage};
use crate::transport::testing::{Ca, bind};
use crate::transport::{Resolver, ResolverSettings};
use crate::wire::ds::{ClientQueueConfig, CreateGroup, DsRequest, DsSenderId, GroupAdd, WelcomeInfo};
use crate::wire::info::DomainInfo;
use crate::wire::peer::{LaneBatch, LaneResult, PeerRequest, PeerResponse};
use crate::wire::qs::{CreateQueue, QsMessage, QsRequest, QsSender, QueueBinding, QueueInformation, SealedQueueInformation};
use crate::wire::{ClientRequest, Content, ErrorCode, List, Opaque, Rejection, Reply, Response, Service as Body, decode, encode};

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
    Home(&'a TestClient),
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

        let as_root = as_roots[&own].clone();
        let ds = SigningKey::generate().expect("a key");
        let public: [u8; 32] = ds.public().try_into().expect("32 octets");
        let ds_chain = vec![as_root.issue_service("mimi://a.test/ds", &public, now).expect("a certificate")];
        let keys = NodeKeys { as_root, ds, ds_chain, qs: vec![QsKeyPair::generate(1).expect("a key")] };
        // A name server that is not there: nobody is found.
        let resolver = Resolver::new(&ResolverSettings { servers: vec![([127, 0, 0, 1], 9).into()] }).expect("a resolver");
        let hello = Arc::new(OwnHello::new(own.clone()));
        let tls = Ca::new("test CA").node("a.test");
        let peers = PeerPool::new(bind(None), &tls, resolver, own.clone(), hello).expect("a pool");
        // Stopping from the start: no worker begins, and what is accepted stays where it was written.
        let (_, stopping) = watch::channel(true);
        let service = Service::new(own, storage, peers, keys, limits, stopping).await.expect("services");
        let options = SqliteConnectOptions::new().filename(directory.path().join(DATABASE_FILE)).read_only(true);
        let tables = SqliteConnection::connect_with(&options).await.expect("the same database");
        Self { service, as_roots, tables: Mutex::new(tables), _directory: directory }
    }

    /// A user `name@domain` with one device, which has a queue where its domain is the node's own.
    pub(crate) async fn client(&self, name: &str) -> TestClient {
        let (user, of) = name.split_once('@').expect("user@domain");
        TestClient::new(&self.as_roots[&domain(of)], user)
    }

    /// Who a client is, as its certificates say.
    pub(crate) fn identity(&self, client: &TestClient) -> ClientIdentity {
        let of = client.uri.domain();
        let roots = AsRoots::new(of.clone(), vec![self.as_roots[of].certificate().to_vec()]).expect("roots");
        validate_client_chain(&client.chain, &roots, UnixMillis::now()).expect("a valid chain")
    }

    /// Makes a queue for a client of `a.test`.
    pub(crate) async fn queue(&self, client: &TestClient) -> TestQueue {
        let owner = SigningKey::generate().expect("a key");
        let chain = client.chain.iter().map(|der| Opaque::from(der.as_slice())).collect();
        let body = CreateQueue { owner_key: owner.public().into() };
        let message = QsMessage { sender: QsSender::Client(chain), request: QsRequest::Create(body) };
        let request = self.content(Body::Qs(message)).sign(&client.key);
        let Reply::QueueCreated(made) = self.accepts(Via::Home(client), &request).await else { unreachable!("a queue") };
        TestQueue { id: made.queue_id, generation: made.generation, owner }
    }

    /// The content of a request to the node.
    pub(crate) fn content(&self, body: Body) -> Content {
        Content::new(self.service.domain(), RequestId::random(), UnixMillis::now(), body)
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
    pub(crate) async fn queue_config(&self, client: &TestClient) -> ClientQueueConfig {
        if *client.uri.domain() != *self.service.domain() {
            return client.queue();
        }
        let queue = self.queue(client).await;
        self.seal(&queue.information("a.test"))
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

    async fn expect_unchanged(&self, rule: &str, before: &Tables) {
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

    /// A create_group that would be accepted.
    pub(crate) async fn creation(&self, creator: &mut TestClient) -> ClientRequest {
        let request = creator.create(self.service.directory.external_sender());
        let config = self.queue_config(creator).await;
        changed(creator, &request, |_, body| {
            if let DsRequest::CreateGroup(CreateGroup { client_queue_config, .. }) = body {
                *client_queue_config = config.clone();
            }
        })
    }

    /// The group of `creator` with these further members, all of whom have joined.
    pub(crate) async fn group(&self, names: &[&str]) -> Vec<TestClient> {
        let (first, others) = names.split_first().expect("somebody");
        let mut creator = self.client(first).await;
        let request = self.creation(&mut creator).await;
        self.accepts(Via::Home(&creator), &request).await;
        let mut members = vec![creator];
        for name in others {
            let new = self.client(name).await;
            self.add(&mut members, new).await;
        }
        members
    }

    /// The first member adds a client; everyone follows.
    pub(crate) async fn add(&self, members: &mut Vec<TestClient>, mut new: TestClient) {
        let config = self.queue_config(&new).await;
        let key_package = new.key_package(Some(&config));
        let reference = reference(&key_package);
        let request = members[0].add(&[key_package]);
        self.accepts(Via::Home(&members[0]), &request).await;
        let Body::Ds(message) = &request.content.service else { unreachable!("a DS request") };
        let DsRequest::AddUsers(GroupAdd { group_update, welcomes, .. }) = &message.request else { unreachable!("an add") };
        members[0].merge();
        for member in &mut members[1..] {
            member.receive(&group_update.commit);
        }
        let epoch = members[0].group().epoch().as_u64();
        let body = WelcomeInfo { group_id: members[0].group_id(), epoch };
        let wanted = new.request(DsSenderId::KeyPackageRef(reference), DsRequest::WelcomeInfo(body));
        let Reply::GroupState(state) = self.accepts(Via::Home(&new), &wanted).await else { unreachable!("a tree") };
        new.join(&welcomes[0], &state.ratchet_tree);
        members.push(new);
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
}

/// The KeyPackageRef (RFC 9420 §5.2).
pub(crate) fn reference(key_package: &KeyPackage) -> Opaque {
    key_package.hash_ref(OpenMlsRustCrypto::default().crypto()).expect("a reference").as_slice().into()
}

/// A DS request as `client` would have made it with something changed, under an id of its own.
pub(crate) fn changed(
    client: &TestClient,
    request: &ClientRequest,
    change: impl FnOnce(&mut DsSenderId, &mut DsRequest),
) -> ClientRequest {
    let Body::Ds(message) = &request.content.service else { unreachable!("a DS request") };
    let (mut sender, mut body) = (message.sender_id.clone(), message.request.clone());
    change(&mut sender, &mut body);
    client.request(sender, body)
}
