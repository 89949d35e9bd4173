//! One value for each vector of `vectors.txt`: every request, answer and federation frame, and every variant of every enum.
//!
//! MLS objects, certificates and HPKE outputs are short placeholder texts, which the wire layer carries as they are. The
//! signatures are real: Ed25519 is deterministic, so that an implementer can check label and signed content against them.

use tls_codec::{DeserializeBytes, Serialize};

use super::accounts::{AccountsMessage, AccountsRequest, BlockedName, Enrol, Enrolled, RevokeClient};
use super::codec::{List, Opaque, decode, encode};
use super::ds::{
    ClientQueueConfig, CreateGroup, DsMessage, DsRequest, DsSenderId, GroupAdd, GroupCommit, GroupJoin, GroupOnly, GroupUpdate,
    Propose, SendMessage, UpdateQueueInfo, WelcomeInfo,
};
use super::error::{
    CurrentEpoch, ErrorCode, PendingProposals, Rejection, RetryAfter, Sent, ServerTime, UnreachableDomain, UnreachableReason,
    WrongEpoch,
};
use super::info::{DomainInfo, InfoRequest, QsKey};
use super::keys::{ClaimKeyPackages, ClaimedKeyPackage, KeyPackageCount, KeysMessage, KeysRequest, PublishKeyPackages};
use super::peer::{
    CredentialStatus, CredentialStatusRequest, FrameAnswer, Hello, HelloExtension, LaneAnswer, LaneBatch, LaneFrame, LaneResult,
    PeerLimits, PeerRequest, PeerResponse, ProtocolVersion,
};
use super::probe::{ProbeReport, ProbedAddress, ProbedCertificate, ProbedConnection, Standing, Trouble};
use super::qs::{
    AckEntries, CreateQueue, DeliveredMessage, Delivery, FetchEntries, Invite, QsMessage, QsRequest, QsSender, QueueBinding,
    QueueEntry, QueueInformation, QueueingServiceResponse, RetireGeneration, SealedQueueInformation, UserOfQueue,
};
use super::receipt::{Receipt, ReceiptContent};
use super::reply::{GroupState, MessageAccepted, Outcome, QueueCreated, Reply, Response};
use super::request::{ClientRequest, Content, Service};
use crate::base::UnixMillis;
use crate::base::crypto::{SigningKey, sha256};
use crate::base::ids::{Incarnation, InviteId, QueueId, RequestId};

/// Says which vector shows a variant. The matches are exhaustive, so that a new variant does not compile without a vector's name,
/// and the names are listed, so that a name without a vector fails a test.
macro_rules! variants {
    ($($enum:ident { $($variant:ident: $vector:literal,)+ })+) => {
        /// A value of an enum, which the vector called so shows.
        trait Variant {
            fn vector(&self) -> &'static str;
        }

        $(impl Variant for $enum {
            fn vector(&self) -> &'static str {
                match self { $(Self::$variant { .. } => $vector,)+ }
            }
        })+

        /// Every enum of the wire layer but ErrorCode, with the names of its variants' vectors.
        pub(super) const VARIANTS: &[(&str, &[&str])] = &[$((stringify!($enum), &[$($vector),+])),+];
    };
}

variants! {
    Service {
        Ds: "ds/create_group",
        Qs: "qs/create",
        Keys: "keys/publish",
        Accounts: "accounts/enrol",
        Info: "info",
    }
    DsSenderId {
        LeafIndex: "ds_sender_id/leaf_index",
        KeyPackageRef: "ds_sender_id/key_package_ref",
        UserKeyHash: "ds_sender_id/user_key_hash",
    }
    DsRequest {
        CreateGroup: "ds/create_group",
        DeleteGroup: "ds/delete_group",
        UpdateQueueInfo: "ds/update_queue_info",
        WelcomeInfo: "ds/welcome_info",
        ExternalCommitInfo: "ds/external_commit_info",
        AddUsers: "ds/add_users",
        RemoveUsers: "ds/remove_users",
        AddClients: "ds/add_clients",
        RemoveClients: "ds/remove_clients",
        UpdateClient: "ds/update_client",
        JoinGroup: "ds/join_group",
        JoinClient: "ds/join_client",
        ResyncClient: "ds/resync_client",
        Propose: "ds/propose",
        LeaveGroup: "ds/leave_group",
        SendMessage: "ds/send_message",
        UpdateGroup: "ds/update_group",
        ListGroups: "ds/list_groups",
    }
    QsSender {
        Client: "qs_sender/client",
        Owner: "qs_sender/owner",
        User: "qs_sender/user",
    }
    QsRequest {
        Create: "qs/create",
        Fetch: "qs/fetch",
        Subscribe: "qs/subscribe",
        Ack: "qs/ack",
        Delete: "qs/delete",
        NewGeneration: "qs/new_generation",
        RetireGeneration: "qs/retire_generation",
    }
    KeysRequest {
        Publish: "keys/publish",
        Count: "keys/count",
        Claim: "keys/claim",
    }
    AccountsRequest {
        Enrol: "accounts/enrol",
        RevokeClient: "accounts/revoke_client",
        DeleteUser: "accounts/delete_user",
        Block: "accounts/block",
        Unblock: "accounts/unblock",
        Hubs: "accounts/hubs",
    }
    Outcome {
        Ok: "response/ok",
        Error: "response/error",
    }
    Reply {
        Done: "reply/done",
        CommitAccepted: "reply/commit_accepted",
        MessageAccepted: "reply/message_accepted",
        GroupState: "reply/group_state",
        Groups: "reply/groups",
        QueueCreated: "reply/queue_created",
        Entries: "reply/entries",
        KeyPackageCount: "reply/key_package_count",
        KeyPackages: "reply/key_packages",
        Enrolled: "reply/enrolled",
        Hubs: "reply/hubs",
        DomainInfo: "reply/domain_info",
        Generation: "reply/generation",
    }
    UnreachableReason {
        NoSuchDomain: "unreachable_reason/no_such_domain",
        DoesNotFederate: "unreachable_reason/does_not_federate",
        DnsFailure: "unreachable_reason/dns_failure",
        Refused: "unreachable_reason/refused",
        TimedOut: "unreachable_reason/timed_out",
        Certificate: "unreachable_reason/certificate",
        Denied: "unreachable_reason/denied",
        BackingOff: "unreachable_reason/backing_off",
        Held: "unreachable_reason/held",
        ForbiddenAddress: "unreachable_reason/forbidden_address",
        RefusesFederation: "unreachable_reason/refuses_federation",
        OverLimits: "unreachable_reason/over_limits",
    }
    Sent {
        NotSent: "sent/not_sent",
        OutcomeUnknown: "sent/outcome_unknown",
    }
    PeerRequest {
        Hello: "peer_request/hello",
        Proxy: "peer_request/proxy",
        Lanes: "peer_request/lanes",
        DomainInfo: "peer_request/domain_info",
        CredentialStatus: "peer_request/credential_status",
        ProbeBack: "peer_request/probe_back",
        CredentialStatusPush: "peer_request/credential_status_push",
    }
    PeerResponse {
        Hello: "peer_response/hello",
        Proxy: "peer_response/proxy",
        Lanes: "peer_response/lanes",
        DomainInfo: "peer_response/domain_info",
        CredentialStatus: "peer_response/credential_status",
        ProbeBack: "peer_response/probe_back",
        Error: "peer_response/error",
        Done: "peer_response/done",
    }
    Standing {
        Allowed: "standing/allowed",
        Held: "standing/held",
        Denied: "standing/denied",
    }
    LaneResult {
        Accepted: "lane_result/accepted",
        Gap: "lane_result/gap",
        Refused: "lane_result/refused",
    }
    Delivery {
        Message: "delivery/message",
        MessagesLost: "delivery/messages_lost",
        Reset: "delivery/reset",
    }
    QueueingServiceResponse {
        Ok: "queueing_service_response/ok",
        InvalidClientQueueInformation: "queueing_service_response/invalid_client_queue_information",
    }
    QueueBinding {
        Hub: "queue_information/hub",
        Invite: "queue_information/invite",
    }
}

/// A decoder of some type, compared with a value of it.
type Decodes = Box<dyn Fn(&[u8]) -> Option<bool>>;

/// A value under its vector's name.
pub(super) struct Sample {
    /// The vector's name.
    pub(super) name: String,
    /// The value's encoding.
    pub(super) octets: Vec<u8>,
    /// The value as `{:#?}` prints it: a line per field, in order.
    pub(super) debug: String,
    /// Whether octets decode, and if so, whether to this very value.
    pub(super) decodes: Decodes,
}

fn sample<T>(name: impl Into<String>, value: T) -> Sample
where
    T: Serialize + DeserializeBytes + PartialEq + std::fmt::Debug + 'static,
{
    Sample {
        name: name.into(),
        octets: encode(&value),
        debug: format!("{value:#?}"),
        decodes: Box::new(move |octets| decode::<T>(octets).ok().map(|decoded| decoded == value)),
    }
}

/// All samples, in the order of `vectors.txt`.
pub(super) fn all() -> Vec<Sample> {
    let mut all = Vec::new();
    all.extend(ds_requests().into_iter().map(|(name, request)| sample(name, request)));
    all.extend(ds_sender_ids().into_iter().map(|value| sample(value.vector(), value)));
    all.extend(qs_requests().into_iter().map(|(name, request)| sample(name, request)));
    all.extend(qs_senders().into_iter().map(|value| sample(value.vector(), value)));
    all.extend(keys_requests().into_iter().map(|(name, request)| sample(name, request)));
    all.extend(accounts_requests().into_iter().map(|(name, request)| sample(name, request)));
    let info = Service::Info(InfoRequest { domain: text("b.test") });
    all.push(sample(info.vector(), content("a.test", info).unsigned()));

    for response in [Response::new(Ok(Reply::Done)), Response::new(Err(ErrorCode::UnknownGroup.into()))] {
        all.push(sample(response.outcome.vector(), response));
    }
    all.extend(replies().into_iter().map(|reply| sample(reply.vector(), Response::new(Ok(reply)))));
    all.push(sample("reply/group_state_for_welcome", Response::new(Ok(Reply::GroupState(welcome_state())))));

    all.extend(ErrorCode::ALL.iter().map(|code| sample(format!("rejection/{}", code.name()), rejection(*code))));
    all.push(sample("detail/current_epoch", CurrentEpoch { epoch: 7 }));
    all.push(sample("detail/server_time", ServerTime { server_time_ms: TIME.0 }));
    all.push(sample("detail/wrong_epoch", WRONG_EPOCH));
    all.push(sample("detail/wrong_epoch_without_hash", WrongEpoch { accepted_commit_hash: None, ..WRONG_EPOCH }));
    all.push(sample("detail/pending_proposals", pending_proposals()));
    all.push(sample("detail/retry_after", RetryAfter { retry_after_ms: 1500 }));
    all.push(sample("detail/unreachable_domain", UNREACHABLE));
    all.extend(UNREACHABLE_REASONS.map(|value| sample(value.vector(), value)));
    all.extend([Sent::NotSent, Sent::OutcomeUnknown].map(|value| sample(value.vector(), value)));

    all.extend(peer_requests().into_iter().map(|value| sample(value.vector(), value)));
    all.extend(peer_responses().into_iter().map(|value| sample(value.vector(), value)));
    all.push(sample("probe_report/not_tried", not_tried()));
    all.extend([Standing::Allowed, Standing::Held, Standing::Denied].map(|value| sample(value.vector(), value)));
    all.push(sample("lane_batch", lane_batch()));
    all.extend(lane_results().into_iter().map(|value| sample(value.vector(), value)));
    all.push(sample("receipt", receipt()));
    all.push(sample("credential_status", credential_status()));
    all.push(sample("queue_entry", queue_entry(1, commit())));
    all.extend(deliveries().into_iter().map(|value| sample(value.vector(), value)));
    all.push(sample("delivery/commit_with_receipt", commit()));
    let responses = [QueueingServiceResponse::Ok, QueueingServiceResponse::InvalidClientQueueInformation];
    all.extend(responses.map(|value| sample(value.vector(), value)));
    all.extend(queue_bindings().into_iter().map(|binding| sample(binding.vector(), queue_information(binding))));
    all.push(sample("sealed_queue_information", sealed_queue_information()));
    all
}

/// The time of every sample: 2025-01-01T00:00:00Z.
const TIME: UnixMillis = UnixMillis(1_735_689_600_000);

const UNREACHABLE: UnreachableDomain = UnreachableDomain { why: UnreachableReason::TimedOut, sent: Sent::OutcomeUnknown };

const WRONG_EPOCH: WrongEpoch = WrongEpoch { current_epoch: 8, accepted_commit_hash: Some([0xc7; 32]) };

const UNREACHABLE_REASONS: [UnreachableReason; 12] = [
    UnreachableReason::NoSuchDomain,
    UnreachableReason::DoesNotFederate,
    UnreachableReason::DnsFailure,
    UnreachableReason::Refused,
    UnreachableReason::TimedOut,
    UnreachableReason::Certificate,
    UnreachableReason::Denied,
    UnreachableReason::BackingOff,
    UnreachableReason::Held,
    UnreachableReason::ForbiddenAddress,
    UnreachableReason::RefusesFederation,
    UnreachableReason::OverLimits,
];

const QUEUE: QueueId = QueueId([0x51; 16]);
const LANE: Incarnation = Incarnation([0x1a; 16]);

/// The signers of `vectors.txt`, each an Ed25519 key whose 32-octet seed repeats one octet.
#[derive(Clone, Copy)]
pub(super) enum Signer {
    /// A client (a leaf's or KeyPackage's key).
    Client = 1,
    /// A user.
    User = 2,
    /// The owner of a queue.
    QueueOwner = 3,
    /// A DS's ExternalSender.
    DeliveryService = 4,
    /// A domain's AS root.
    AuthenticationService = 5,
}

/// The key of `signer`.
pub(super) fn signing_key(signer: Signer) -> SigningKey {
    // RFC 8410 §7: an Ed25519 private key in PKCS#8 is this and the seed.
    let mut pkcs8 = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    pkcs8.extend([signer as u8; 32]);
    SigningKey::from_pkcs8(&pkcs8).expect("a key in PKCS#8")
}

fn text(text: &str) -> Opaque {
    text.as_bytes().into()
}

fn texts(values: &[&str]) -> List<Opaque> {
    values.iter().map(|value| text(value)).collect()
}

fn group_id() -> Opaque {
    text("mimi://a.test/g/1")
}

/// The content of a request to `destination`.
pub(super) fn content(destination: &str, service: Service) -> Content {
    let destination = destination.parse().expect("a domain");
    Content::new(&destination, RequestId([0x1d; 16]), TIME, service)
}

fn client_queue_config() -> ClientQueueConfig {
    ClientQueueConfig { qs_domain: text("b.test"), client_queue_information: text("sealed") }
}

fn group_update() -> GroupUpdate {
    GroupUpdate { commit: text("commit"), group_info: text("group info") }
}

fn group_commit() -> GroupCommit {
    GroupCommit { group_id: group_id(), group_update: group_update() }
}

fn group_add() -> GroupAdd {
    GroupAdd { group_id: group_id(), group_update: group_update(), welcomes: texts(&["welcome"]) }
}

fn group_join() -> GroupJoin {
    GroupJoin { group_id: group_id(), group_update: group_update(), client_queue_config: client_queue_config() }
}

fn ds_sender_ids() -> Vec<DsSenderId> {
    vec![
        DsSenderId::LeafIndex(3),
        DsSenderId::KeyPackageRef([0x4b; 32][..].into()),
        DsSenderId::UserKeyHash([0x55; 32][..].into()),
    ]
}

fn ds_requests() -> Vec<(&'static str, ClientRequest)> {
    let [leaf, key_package, user] = <[DsSenderId; 3]>::try_from(ds_sender_ids()).expect("three senders");
    let create_group = CreateGroup {
        group_id: group_id(),
        key_package: text("key package"),
        client_queue_config: client_queue_config(),
        group_info: text("group info"),
    };
    let update_queue_info = UpdateQueueInfo { group_id: group_id(), client_queue_config: client_queue_config() };
    [
        (&key_package, DsRequest::CreateGroup(create_group)),
        (&leaf, DsRequest::DeleteGroup(group_commit())),
        (&leaf, DsRequest::UpdateQueueInfo(update_queue_info)),
        (&key_package, DsRequest::WelcomeInfo(WelcomeInfo { group_id: group_id(), epoch: 7 })),
        (&user, DsRequest::ExternalCommitInfo(GroupOnly { group_id: group_id() })),
        (&leaf, DsRequest::AddUsers(group_add())),
        (&leaf, DsRequest::RemoveUsers(group_commit())),
        (&leaf, DsRequest::AddClients(group_add())),
        (&leaf, DsRequest::RemoveClients(group_commit())),
        (&leaf, DsRequest::UpdateClient(group_commit())),
        (&user, DsRequest::JoinGroup(group_join())),
        (&user, DsRequest::JoinClient(group_join())),
        (&leaf, DsRequest::ResyncClient(group_join())),
        (&leaf, DsRequest::Propose(Propose { group_id: group_id(), proposals: texts(&["proposal", "another proposal"]) })),
        (&leaf, DsRequest::LeaveGroup(GroupOnly { group_id: group_id() })),
        (&leaf, DsRequest::SendMessage(SendMessage { group_id: group_id(), message: text("private message") })),
        (&leaf, DsRequest::UpdateGroup(group_commit())),
        (&user, DsRequest::ListGroups),
    ]
    .into_iter()
    .map(|(sender, request)| {
        let name = request.vector();
        let (certificates, signer) = match sender {
            DsSenderId::UserKeyHash(_) => (texts(&["user certificate"]), Signer::User),
            DsSenderId::LeafIndex(_) | DsSenderId::KeyPackageRef(_) => (List::default(), Signer::Client),
        };
        let message = DsMessage { sender_id: sender.clone(), certificates, request };
        (name, content("a.test", Service::Ds(message)).sign(&signing_key(signer)))
    })
    .collect()
}

fn client_chain() -> List<Opaque> {
    texts(&["client certificate", "user certificate"])
}

fn qs_senders() -> Vec<QsSender> {
    let user = UserOfQueue { certificates: texts(&["user certificate"]), queue_id: QUEUE };
    vec![QsSender::Client(client_chain()), QsSender::Owner(QUEUE), QsSender::User(user)]
}

fn qs_requests() -> Vec<(&'static str, ClientRequest)> {
    let [client, owner, user] = <[QsSender; 3]>::try_from(qs_senders()).expect("three senders");
    let owner_key = signing_key(Signer::QueueOwner).public().into();
    [
        (&client, Signer::Client, QsRequest::Create(CreateQueue { owner_key })),
        (&owner, Signer::QueueOwner, QsRequest::Fetch(FetchEntries { from: 1, max: 256 })),
        (&owner, Signer::QueueOwner, QsRequest::Subscribe(FetchEntries { from: 5, max: 16 })),
        (&owner, Signer::QueueOwner, QsRequest::Ack(AckEntries { up_to: 4 })),
        (&user, Signer::User, QsRequest::Delete),
        (&owner, Signer::QueueOwner, QsRequest::NewGeneration),
        (&owner, Signer::QueueOwner, QsRequest::RetireGeneration(RetireGeneration { generation: 2 })),
    ]
    .into_iter()
    .map(|(sender, signer, request)| {
        let message = QsMessage { sender: sender.clone(), request };
        (message.request.vector(), content("b.test", Service::Qs(message)).sign(&signing_key(signer)))
    })
    .collect()
}

fn keys_requests() -> Vec<(&'static str, ClientRequest)> {
    let publish = |key_packages, last_resort| KeysRequest::Publish(PublishKeyPackages { key_packages, last_resort });
    let full = publish(texts(&["key package 1", "key package 2"]), Some(text("last resort")));
    let claim = KeysRequest::Claim(ClaimKeyPackages { user: text("mimi://b.test/u/bob"), ciphersuite: 1 });
    [
        (full.vector(), full),
        ("keys/publish_without_last_resort", publish(texts(&["key package"]), None)),
        (KeysRequest::Count.vector(), KeysRequest::Count),
        (claim.vector(), claim),
    ]
    .into_iter()
    .map(|(name, request)| {
        let message = KeysMessage { certificates: client_chain(), request };
        (name, content("b.test", Service::Keys(message)).sign(&signing_key(Signer::Client)))
    })
    .collect()
}

fn accounts_requests() -> Vec<(&'static str, ClientRequest)> {
    [
        AccountsRequest::Enrol(Enrol { token: [0x70; 16][..].into(), certificate_request: text("certificate request") }),
        AccountsRequest::RevokeClient(RevokeClient { client: text("mimi://a.test/d/alice/phone") }),
        AccountsRequest::DeleteUser,
        AccountsRequest::Block(BlockedName { name: text("mimi://b.test/u/bob") }),
        AccountsRequest::Unblock(BlockedName { name: text("b.test") }),
        AccountsRequest::Hubs,
    ]
    .into_iter()
    .map(|request| {
        let enrols = matches!(request, AccountsRequest::Enrol(_));
        let certificates = if enrols { List::default() } else { texts(&["user certificate"]) };
        let name = request.vector();
        let message = AccountsMessage { certificates, request };
        (name, content("a.test", Service::Accounts(message)).sign(&signing_key(Signer::User)))
    })
    .collect()
}

/// A receipt for the Commit of these samples.
pub(super) fn receipt() -> Receipt {
    ReceiptContent { group_id: group_id(), epoch: 7, commit_hash: sha256(b"commit") }.sign(&signing_key(Signer::DeliveryService))
}

fn commit() -> Delivery {
    Delivery::Message(DeliveredMessage { message: text("commit"), receipt: Some(receipt()) })
}

fn deliveries() -> Vec<Delivery> {
    let message = DeliveredMessage { message: text("private message"), receipt: None };
    vec![Delivery::Message(message), Delivery::MessagesLost, Delivery::Reset]
}

fn queue_entry(sequence: u64, delivery: Delivery) -> QueueEntry {
    QueueEntry { sequence, arrived_at_ms: TIME.0, hub: text("a.test"), group_id: group_id(), epoch: 7, delivery }
}

fn domain_info() -> DomainInfo {
    let qs_key = |key_id, octet| QsKey { key_id, public_key: [octet; 32][..].into() };
    DomainInfo {
        domain: text("b.test"),
        as_roots: texts(&["as root"]),
        qs_keys: vec![qs_key(2, 0xe2), qs_key(1, 0xe1)].into(),
        external_sender: text("external sender"),
        server_time_ms: TIME.0,
    }
}

fn replies() -> Vec<Reply> {
    let state = GroupState { group_info: text("group info"), proposals: texts(&["remove proposal"]), ..welcome_state() };
    let claimed = ClaimedKeyPackage { client: text("mimi://b.test/d/bob/phone"), key_package: text("key package") };
    let enrolled = Enrolled { user: text("mimi://a.test/u/alice"), certificate: text("user certificate") };
    let mut entries = vec![queue_entry(1, commit())];
    entries.extend((2..).zip(deliveries()).map(|(sequence, delivery)| queue_entry(sequence, delivery)));
    vec![
        Reply::Done,
        Reply::CommitAccepted(receipt()),
        Reply::MessageAccepted(MessageAccepted { epoch: 7, accepted_at_ms: TIME.0 }),
        Reply::GroupState(state),
        Reply::Groups(texts(&["mimi://a.test/g/1", "mimi://a.test/g/2"])),
        Reply::QueueCreated(QueueCreated { queue_id: QUEUE, generation: 1 }),
        Reply::Entries(entries.into()),
        Reply::KeyPackageCount(KeyPackageCount { available: 99, last_resort: 1 }),
        Reply::KeyPackages(vec![claimed].into()),
        Reply::Enrolled(enrolled),
        Reply::Hubs(texts(&["a.test", "b.test"])),
        Reply::DomainInfo(domain_info()),
        Reply::Generation(3),
    ]
}

/// An answer to `welcome_info`: no GroupInfo, no proposals.
fn welcome_state() -> GroupState {
    GroupState { epoch: 7, ratchet_tree: text("ratchet tree"), group_info: Opaque::default(), proposals: List::default() }
}

fn pending_proposals() -> PendingProposals {
    PendingProposals { proposals: texts(&["remove proposal"]) }
}

/// A rejection as it is told with `code`: with the code's detail, if it has one.
pub(super) fn rejection(code: ErrorCode) -> Rejection {
    let detail = match code {
        ErrorCode::GroupFrozen => encode(&CurrentEpoch { epoch: 7 }),
        ErrorCode::ReplayedOrStale => encode(&ServerTime { server_time_ms: TIME.0 }),
        ErrorCode::WrongEpoch => encode(&WRONG_EPOCH),
        ErrorCode::PendingProposals => encode(&pending_proposals()),
        ErrorCode::RateLimited => encode(&RetryAfter { retry_after_ms: 1500 }),
        ErrorCode::UnreachableDomain => encode(&UNREACHABLE),
        ErrorCode::InvalidGroupId | ErrorCode::InvalidKeyPackage | ErrorCode::InvalidGroupInfo => Vec::new(),
        ErrorCode::Malformed | ErrorCode::UnsupportedVersion | ErrorCode::UnknownGroup | ErrorCode::GroupDeleted => Vec::new(),
        ErrorCode::NotAuthorized | ErrorCode::BadSignature | ErrorCode::InvalidCommit | ErrorCode::InvalidWelcome => Vec::new(),
        ErrorCode::InvalidProposal | ErrorCode::InvalidCredential | ErrorCode::InvalidQueueConfig => Vec::new(),
        ErrorCode::TooLarge | ErrorCode::Internal | ErrorCode::Unsupported | ErrorCode::UnknownQueue => Vec::new(),
        ErrorCode::UnknownUser | ErrorCode::InvalidToken | ErrorCode::LaneConflict | ErrorCode::InvalidMessage => Vec::new(),
        ErrorCode::ShuttingDown => Vec::new(),
    };
    Rejection { code, detail: detail.into() }
}

fn hello(domain: &str) -> Hello {
    let limits = PeerLimits { frame_bytes_max: 4 * 1024 * 1024, lane_frames_max: 256 };
    Hello {
        domain: text(domain),
        versions: vec![VERSION].into(),
        limits,
        server_time_ms: TIME.0,
        extensions: vec![HelloExtension { extension_type: 0xff07, data: text("later") }].into(),
    }
}

const VERSION: ProtocolVersion = ProtocolVersion { major: 1, minor: 0 };

/// One address refused, the other was reached.
fn probe_report() -> ProbeReport {
    let address = |address, outcome, took_ms| ProbedAddress { address: text(address), outcome, took_ms };
    let addresses = vec![address("192.0.2.1:7443", Trouble::UdpRefused.number(), 3), address("192.0.2.2:7443", 0, 12)];
    ProbeReport {
        server_time_ms: TIME.0,
        standing: Standing::Allowed,
        outcome: 0,
        discovery: 0,
        addresses: addresses.into(),
        certificate: Some(ProbedCertificate { not_after_ms: TIME.0 + 30 * 86_400_000, outcome: 0 }),
        connection: Some(ProbedConnection { version: VERSION, round_trip_us: 850 }),
    }
}

fn not_tried() -> ProbeReport {
    ProbeReport {
        standing: Standing::Denied,
        outcome: Trouble::DeniedHere.number(),
        addresses: List::default(),
        certificate: None,
        connection: None,
        ..probe_report()
    }
}

fn lane_batch() -> LaneBatch {
    let frame = |lane_sequence, recipients: &[&str], delivery| LaneFrame {
        lane_sequence,
        epoch: 7,
        recipients: texts(recipients),
        delivery,
    };
    let mut frames = vec![frame(1, &["sealed 1", "sealed 2"], Delivery::Reset), frame(2, &["sealed 1", "sealed 2"], commit())];
    frames.extend((3..).zip(deliveries()).take(1).map(|(sequence, delivery)| frame(sequence, &["sealed 1"], delivery)));
    LaneBatch { group_id: group_id(), incarnation: LANE, frames: frames.into() }
}

fn lane_results() -> Vec<LaneResult> {
    let answer = |lane_sequence, responses: &[_]| FrameAnswer { lane_sequence, responses: responses.to_vec().into() };
    let (ok, invalid) = (QueueingServiceResponse::Ok, QueueingServiceResponse::InvalidClientQueueInformation);
    let accepted = vec![answer(1, &[ok, ok]), answer(2, &[ok, invalid]), answer(3, &[ok])];
    vec![LaneResult::Accepted(accepted.into()), LaneResult::Gap(1), LaneResult::Refused(ErrorCode::LaneConflict.into())]
}

fn peer_requests() -> Vec<PeerRequest> {
    vec![
        PeerRequest::Hello(hello("a.test")),
        PeerRequest::Proxy(text("encoded ClientRequest")),
        PeerRequest::Lanes(vec![lane_batch()].into()),
        PeerRequest::DomainInfo,
        PeerRequest::CredentialStatus(CredentialStatusRequest { known_version: 4 }),
        PeerRequest::ProbeBack,
        PeerRequest::CredentialStatusPush(credential_status()),
    ]
}

fn peer_responses() -> Vec<PeerResponse> {
    let answers = lane_results().into_iter().map(|result| LaneAnswer { group_id: group_id(), incarnation: LANE, result });
    vec![
        PeerResponse::Hello(hello("b.test")),
        PeerResponse::Proxy(text("encoded Response")),
        PeerResponse::Lanes(answers.collect()),
        PeerResponse::DomainInfo(domain_info()),
        PeerResponse::CredentialStatus(credential_status()),
        PeerResponse::ProbeBack(probe_report()),
        PeerResponse::Error(rejection(ErrorCode::RateLimited)),
        PeerResponse::Done,
    ]
}

fn credential_status() -> CredentialStatus {
    let mut status = CredentialStatus {
        domain: text("b.test"),
        version: 5,
        next_update_ms: TIME.0 + 3_600_000,
        revoked: vec![Opaque::from([0xde; 32].as_slice())].into(),
        signature: Opaque::default(),
    };
    // What is signed ends where the signature begins; an empty one is a single octet.
    let octets = encode(&status);
    let signed = octets.strip_suffix(&[0]).expect("an empty signature");
    let key = signing_key(Signer::AuthenticationService);
    status.signature = key.sign_with_label("MIMI credential status", signed).into();
    status
}

fn queue_bindings() -> Vec<QueueBinding> {
    let invite = Invite { invite_id: InviteId([0x17; 16]), last_resort: 0, expires_at_ms: TIME.0 + 86_400_000 };
    vec![QueueBinding::Hub(text("a.test")), QueueBinding::Invite(invite)]
}

fn queue_information(binding: QueueBinding) -> QueueInformation {
    QueueInformation { queue_id: QUEUE, generation: 1, binding }
}

fn sealed_queue_information() -> SealedQueueInformation {
    SealedQueueInformation { key_id: 2, kem_output: [0xec; 32][..].into(), ciphertext: text("ciphertext") }
}
