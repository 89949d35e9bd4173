//! Properties of the codec: what is encoded decodes to itself, a value has one encoding, and no octets make it panic.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestCaseError};
use tls_codec::{DeserializeBytes, Serialize, Size};

use super::accounts::{AccountsMessage, AccountsRequest, BlockedName, Enrol, Enrolled, RevokeClient};
use super::codec::{List, Opaque, decode, encode};
use super::ds::{
    ClientQueueConfig, CreateGroup, DsMessage, DsRequest, DsSenderId, GroupAdd, GroupCommit, GroupJoin, GroupOnly, GroupUpdate,
    Propose, SendMessage, UpdateQueueInfo, WelcomeInfo,
};
use super::error::{ErrorCode, Rejection, Retry};
use super::info::{DomainInfo, InfoRequest, QsKey};
use super::keys::{ClaimKeyPackages, ClaimedKeyPackage, KeyPackageCount, KeysMessage, KeysRequest, PublishKeyPackages};
use super::peer::{
    CredentialStatus, CredentialStatusRequest, FrameAnswer, Hello, HelloExtension, LaneAnswer, LaneBatch, LaneFrame, LaneResult,
    PeerLimits, PeerRequest, PeerResponse, ProtocolVersion,
};
use super::probe::{ProbeReport, ProbedAddress, ProbedCertificate, ProbedConnection, Standing};
use super::qs::{
    AckEntries, CreateQueue, DeliveredMessage, Delivery, FetchEntries, Invite, QsMessage, QsRequest, QsSender, QueueBinding,
    QueueEntry, QueueInformation, QueueingServiceResponse, RetireGeneration, SealedQueueInformation, UserOfQueue,
};
use super::receipt::{Receipt, ReceiptContent};
use super::reply::{GroupState, MessageAccepted, Outcome, QueueCreated, Reply, Response};
use super::request::{ClientRequest, Content, Service};
use super::samples::{self, Signer, signing_key};
use crate::base::ids::{Incarnation, InviteId, QueueId, RequestId};

/// Octets that values are made of. When they run out, the rest is zero, so that a shorter source makes a smaller value: that is
/// how proptest shrinks.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn octet(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }
}

/// Any value of a type, made from octets.
trait Arbitrary: Sized {
    fn arbitrary(source: &mut Source<'_>) -> Self;
}

macro_rules! integers {
    ($($type:ty),+) => {$(
        impl Arbitrary for $type {
            fn arbitrary(source: &mut Source<'_>) -> Self {
                Self::from_be_bytes(std::array::from_fn(|_| source.octet()))
            }
        }
    )+};
}

integers!(u8, u16, u32, u64);

impl<const N: usize> Arbitrary for [u8; N] {
    fn arbitrary(source: &mut Source<'_>) -> Self {
        std::array::from_fn(|_| source.octet())
    }
}

impl<T: Arbitrary> Arbitrary for Option<T> {
    fn arbitrary(source: &mut Source<'_>) -> Self {
        (source.octet() & 1 == 1).then(|| T::arbitrary(source))
    }
}

impl<T: Arbitrary> Arbitrary for List<T> {
    fn arbitrary(source: &mut Source<'_>) -> Self {
        (0..source.octet() % 4).map(|_| T::arbitrary(source)).collect()
    }
}

impl Arbitrary for Opaque {
    fn arbitrary(source: &mut Source<'_>) -> Self {
        // Mostly short; at times on either side of where the length takes more octets.
        let length = match source.octet() {
            0xff => 16_384,
            0xfe => 16_383,
            0xfd => 64,
            0xfc => 63,
            short => usize::from(short % 12),
        };
        (0..length).map(|_| source.octet()).collect::<Vec<_>>().into()
    }
}

/// A struct literal has to name every field, so that a new field cannot be forgotten here.
macro_rules! structs {
    ($($type:ident { $($field:ident),+ })+) => {$(
        impl Arbitrary for $type {
            fn arbitrary(source: &mut Source<'_>) -> Self {
                Self { $($field: Arbitrary::arbitrary(source)),+ }
            }
        }
    )+};
}

/// The match without a wildcard does not compile when a variant is forgotten here.
macro_rules! enums {
    ($($type:ident { $($variant:ident $(($payload:ident))?),+ })+) => {$(
        impl Arbitrary for $type {
            fn arbitrary(source: &mut Source<'_>) -> Self {
                let makers: &[fn(&mut Source<'_>) -> Self] = &[$(|_source| {
                    Self::$variant $(({
                        let $payload = Arbitrary::arbitrary(_source);
                        $payload
                    }))?
                }),+];
                let value = makers[usize::from(source.octet()) % makers.len()](source);
                match value { $(Self::$variant { .. } => value,)+ }
            }
        }
    )+};
}

macro_rules! ids {
    ($($type:ident),+) => {$(
        impl Arbitrary for $type {
            fn arbitrary(source: &mut Source<'_>) -> Self {
                Self(Arbitrary::arbitrary(source))
            }
        }
    )+};
}

ids!(RequestId, QueueId, Incarnation, InviteId);

structs! {
    AccountsMessage { certificates, request }
    Enrol { token, certificate_request }
    RevokeClient { client }
    BlockedName { name }
    Enrolled { user, certificate }
    DsMessage { sender_id, certificates, request }
    ClientQueueConfig { qs_domain, client_queue_information }
    CreateGroup { group_id, key_package, client_queue_config, group_info }
    GroupUpdate { commit, group_info }
    GroupCommit { group_id, group_update }
    GroupAdd { group_id, group_update, welcomes }
    GroupJoin { group_id, group_update, client_queue_config }
    GroupOnly { group_id }
    UpdateQueueInfo { group_id, client_queue_config }
    WelcomeInfo { group_id, epoch }
    Propose { group_id, proposals }
    SendMessage { group_id, message }
    Rejection { code, detail }
    InfoRequest { domain }
    DomainInfo { domain, as_roots, qs_keys, external_sender, server_time_ms }
    QsKey { key_id, public_key }
    KeysMessage { certificates, request }
    PublishKeyPackages { key_packages, last_resort }
    ClaimKeyPackages { user, ciphersuite }
    ClaimedKeyPackage { client, key_package }
    KeyPackageCount { available, last_resort }
    Hello { domain, versions, limits, server_time_ms, extensions }
    ProtocolVersion { major, minor }
    HelloExtension { extension_type, data }
    ProbeReport { server_time_ms, standing, outcome, discovery, addresses, certificate, connection }
    ProbedAddress { address, outcome, took_ms }
    ProbedCertificate { not_after_ms, outcome }
    ProbedConnection { version, round_trip_us }
    PeerLimits { frame_bytes_max, lane_frames_max }
    LaneBatch { group_id, incarnation, frames }
    LaneFrame { lane_sequence, epoch, recipients, delivery }
    LaneAnswer { group_id, incarnation, result }
    FrameAnswer { lane_sequence, responses }
    CredentialStatusRequest { known_version }
    CredentialStatus { domain, version, next_update_ms, revoked, signature }
    UserOfQueue { certificates, queue_id }
    QsMessage { sender, request }
    CreateQueue { owner_key }
    FetchEntries { from, max }
    AckEntries { up_to }
    RetireGeneration { generation }
    QueueEntry { sequence, arrived_at_ms, hub, group_id, epoch, delivery }
    DeliveredMessage { message, receipt }
    QueueInformation { queue_id, generation, binding }
    Invite { invite_id, last_resort, expires_at_ms }
    SealedQueueInformation { key_id, kem_output, ciphertext }
    Receipt { content, signature }
    ReceiptContent { group_id, epoch, commit_hash }
    Response { version, outcome }
    MessageAccepted { epoch, accepted_at_ms }
    GroupState { epoch, ratchet_tree, group_info, proposals }
    QueueCreated { queue_id, generation }
    ClientRequest { content, signature }
    Content { version, destination, request_id, issued_at_ms, service }
}

enums! {
    AccountsRequest { Enrol(body), RevokeClient(body), DeleteUser, Block(body), Unblock(body), Hubs }
    DsSenderId { LeafIndex(body), KeyPackageRef(body), UserKeyHash(body) }
    DsRequest {
        CreateGroup(body), DeleteGroup(body), UpdateQueueInfo(body), WelcomeInfo(body), ExternalCommitInfo(body), AddUsers(body),
        RemoveUsers(body), AddClients(body), RemoveClients(body), UpdateClient(body), JoinGroup(body), JoinClient(body),
        ResyncClient(body), Propose(body), LeaveGroup(body), SendMessage(body), UpdateGroup(body), ListGroups
    }
    KeysRequest { Publish(body), Count, Claim(body) }
    PeerRequest { Hello(body), Proxy(body), Lanes(body), DomainInfo, CredentialStatus(body), ProbeBack, CredentialStatusPush(body) }
    PeerResponse { Hello(body), Proxy(body), Lanes(body), DomainInfo(body), CredentialStatus(body), ProbeBack(body), Error(body), Done }
    Standing { Allowed, Held, Denied }
    LaneResult { Accepted(body), Gap(body), Refused(body) }
    QsSender { Client(body), Owner(body), User(body) }
    QsRequest { Create(body), Fetch(body), Subscribe(body), Ack(body), Delete, NewGeneration, RetireGeneration(body) }
    Delivery { Message(body), MessagesLost, Reset }
    QueueingServiceResponse { Ok, InvalidClientQueueInformation }
    QueueBinding { Hub(body), Invite(body) }
    Outcome { Ok(body), Error(body) }
    Reply {
        Done, CommitAccepted(body), MessageAccepted(body), GroupState(body), Groups(body), QueueCreated(body), Entries(body),
        KeyPackageCount(body), KeyPackages(body), Enrolled(body), Hubs(body), DomainInfo(body), Generation(body)
    }
    Service { Ds(body), Qs(body), Keys(body), Accounts(body), Info(body) }
}

impl Arbitrary for ErrorCode {
    fn arbitrary(source: &mut Source<'_>) -> Self {
        Self::ALL[usize::from(source.octet()) % Self::ALL.len()]
    }
}

/// The same cases in every run, and no file that remembers failures: a failure names its octets.
fn config() -> ProptestConfig {
    ProptestConfig { cases: 512, failure_persistence: None, rng_seed: RngSeed::Fixed(0x6d69_6d69), ..ProptestConfig::default() }
}

/// Decodes octets that may be anything: no panic, and what decodes is encoded by these very octets.
fn check_octets<T: DeserializeBytes + Serialize>(octets: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(value) = decode::<T>(octets) {
        prop_assert_eq!(encode(&value), octets, "a second encoding of a {}", std::any::type_name::<T>());
    }
    Ok(())
}

/// What an attacker does to an encoding.
#[derive(Clone, Debug)]
enum Mutation {
    /// Flips one bit.
    Flip(prop::sample::Index, u8),
    /// Cuts the end off.
    Truncate(prop::sample::Index),
    /// Appends octets.
    Extend(Vec<u8>),
    /// Puts in octets, so that lengths no longer fit.
    Insert(prop::sample::Index, Vec<u8>),
    /// Writes an octet in the two-octet form of a length: where a short length was, the same one in more octets than it needs.
    Lengthen(prop::sample::Index),
    /// Writes a length of 2^30 - 1 over what is there.
    HugeLength(prop::sample::Index),
}

impl Mutation {
    fn any() -> impl Strategy<Value = Self> {
        let place = any::<prop::sample::Index>;
        prop_oneof![
            4 => (place(), 0..8u8).prop_map(|(at, bit)| Self::Flip(at, bit)),
            1 => place().prop_map(Self::Truncate),
            1 => vec(any::<u8>(), 1..9).prop_map(Self::Extend),
            1 => (place(), vec(any::<u8>(), 1..9)).prop_map(|(at, octets)| Self::Insert(at, octets)),
            2 => place().prop_map(Self::Lengthen),
            1 => place().prop_map(Self::HugeLength),
        ]
    }

    fn apply(&self, octets: &mut Vec<u8>) {
        match self {
            // An earlier truncation may have left nothing.
            Self::Flip(..) | Self::Lengthen(_) | Self::HugeLength(_) if octets.is_empty() => {}
            Self::Flip(at, bit) => {
                let at = at.index(octets.len());
                octets[at] ^= 1 << bit;
            }
            Self::Truncate(at) => octets.truncate(at.index(octets.len() + 1)),
            Self::Extend(more) => octets.extend(more),
            Self::Insert(at, more) => {
                let at = at.index(octets.len() + 1);
                octets.splice(at..at, more.iter().copied());
            }
            Self::Lengthen(at) => octets.insert(at.index(octets.len()), 0x40),
            Self::HugeLength(at) => {
                let at = at.index(octets.len());
                for (octet, huge) in octets.iter_mut().skip(at).zip([0xbf, 0xff, 0xff, 0xff]) {
                    *octet = huge;
                }
            }
        }
    }
}

fn check_value<T>(source: &[u8], mutations: &[Mutation]) -> Result<(), TestCaseError>
where
    T: Arbitrary + DeserializeBytes + Serialize + Size + PartialEq + std::fmt::Debug,
{
    let value = T::arbitrary(&mut Source(source));
    let mut octets = encode(&value);
    prop_assert_eq!(octets.len(), value.tls_serialized_len());
    prop_assert_eq!(decode::<T>(&octets), Ok(value));
    for mutation in mutations {
        mutation.apply(&mut octets);
        check_octets::<T>(&octets)?;
    }
    Ok(())
}

macro_rules! properties {
    ($($name:ident: $type:ident;)+) => {$(
        mod $name {
            use super::*;

            proptest! {
                #![proptest_config(config())]

                #[test]
                fn values_round_trip_and_mutations_have_no_second_encoding(
                    source in vec(any::<u8>(), 0..400), mutations in vec(Mutation::any(), 0..8),
                ) {
                    check_value::<$type>(&source, &mutations)?;
                }

                #[test]
                fn arbitrary_octets_have_no_second_encoding(octets in vec(any::<u8>(), 0..300)) {
                    check_octets::<$type>(&octets)?;
                }
            }
        }
    )+};
}

properties! {
    client_request: ClientRequest;
    response: Response;
    peer_request: PeerRequest;
    peer_response: PeerResponse;
    lane_batch: LaneBatch;
    queue_entry: QueueEntry;
    receipt: Receipt;
    credential_status: CredentialStatus;
    queue_information: QueueInformation;
    sealed_queue_information: SealedQueueInformation;
}

/// Every value that can be reached from the content of a sample by one change.
fn changed(content: &Content) -> Vec<(&'static str, Content)> {
    // Names every field, so that a new one has to be changed here too.
    let Content { version, destination, request_id, issued_at_ms, service } = content.clone();
    let other = Service::Info(InfoRequest { domain: b"c.test"[..].into() });
    let mut sender = service.clone();
    let mut body = service.clone();
    if let (Service::Ds(by), Service::Ds(of)) = (&mut sender, &mut body) {
        by.sender_id = DsSenderId::LeafIndex(4);
        of.request = DsRequest::ListGroups;
    }
    assert!(sender != service && body != service, "a request to the DS");
    vec![
        ("version", Content { version: version + 1, ..content.clone() }),
        ("destination", Content { destination: [&destination[..], b"x"].concat().into(), ..content.clone() }),
        ("request_id", Content { request_id: RequestId(request_id.0.map(|octet| octet ^ 1)), ..content.clone() }),
        ("issued_at_ms", Content { issued_at_ms: issued_at_ms + 1, ..content.clone() }),
        ("service", Content { service: other, ..content.clone() }),
        ("sender", Content { service: sender, ..content.clone() }),
        ("body", Content { service: body, ..content.clone() }),
    ]
}

fn message() -> Content {
    let request = DsRequest::SendMessage(SendMessage { group_id: b"group"[..].into(), message: b"message"[..].into() });
    let message = DsMessage { sender_id: DsSenderId::LeafIndex(3), certificates: List::default(), request };
    samples::content("a.test", Service::Ds(message))
}

#[test]
fn a_signature_binds_every_field_of_the_content() {
    let (client, user) = (signing_key(Signer::Client), signing_key(Signer::User));
    let signed = message().sign(&client);
    assert!(signed.is_signed_by(client.public()));
    assert!(!signed.is_signed_by(user.public()), "another key");
    for (field, content) in changed(&signed.content) {
        let request = ClientRequest { content, signature: signed.signature.clone() };
        assert!(!request.is_signed_by(client.public()), "{field} is not bound");
    }
    assert!(!message().unsigned().is_signed_by(client.public()), "no signature");
}

#[test]
fn the_digest_ignores_only_issued_at() {
    let content = message();
    for (field, changed) in changed(&content) {
        assert_eq!(changed.digest() == content.digest(), field == "issued_at_ms", "{field}");
    }
}

#[test]
fn a_receipt_binds_every_field() {
    let (hub, other) = (signing_key(Signer::DeliveryService), signing_key(Signer::AuthenticationService));
    let Receipt { content, signature } = samples::receipt();
    let ReceiptContent { group_id, epoch, commit_hash } = content.clone();
    let signed = |content| Receipt { content, signature: signature.clone() };
    assert!(signed(content.clone()).is_signed_by(hub.public()));
    assert!(!signed(content.clone()).is_signed_by(other.public()), "another key");
    for content in [
        ReceiptContent { group_id: [&group_id[..], b"x"].concat().into(), ..content.clone() },
        ReceiptContent { epoch: epoch + 1, ..content.clone() },
        ReceiptContent { commit_hash: commit_hash.map(|octet| octet ^ 1), ..content.clone() },
    ] {
        assert!(!signed(content).is_signed_by(hub.public()));
    }
}

/// The rows of the error-code table of `docs/protocol.md`: code, name, detail, retry.
fn documented_codes() -> Vec<[&'static str; 4]> {
    let text = include_str!("../../docs/protocol.md");
    let (_, table) = text.split_once("| code | name | detail | retry | meaning |").expect("the table's head");
    let cells = |row: &'static str| {
        let mut cells = row.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`'));
        std::array::from_fn(|_| cells.next().expect("five columns"))
    };
    table.lines().skip(2).take_while(|line| line.starts_with('|')).map(cells).collect()
}

#[test]
fn the_documented_error_codes_are_the_codes() {
    let coded: Vec<_> = ErrorCode::ALL
        .iter()
        .map(|code| {
            let retry = match code.retry() {
                Retry::Never => "never",
                Retry::AfterChange => "after a change",
                Retry::Later => "later",
            };
            ((*code as u16).to_string(), code.name(), !samples::rejection(*code).detail.is_empty(), retry)
        })
        .collect();
    let documented: Vec<_> =
        documented_codes().into_iter().map(|[code, name, detail, retry]| (code.to_owned(), name, detail != "–", retry)).collect();
    assert_eq!(documented, coded);
}
