//! Decoders: octets in, a value or an error out, and the value has one encoding.

use std::fmt::Debug;
use std::str::FromStr;
use std::sync::LazyLock;

use mimi_node::base::crypto::SigningKey;
use mimi_node::base::{ClientUri, Domain, GroupUri, UnixMillis, UserUri};
use mimi_node::ds::state::{Head, Member};
use mimi_node::identity::chain::{
    AsRoots, claimed_client, claimed_user, claimed_validity_end, domain_of_root, validate_client_chain, validate_user_chain,
};
use mimi_node::identity::pem::{certificates_from_pem, key_from_pem};
use mimi_node::identity::{AsRoot, CertificateSummary, issue, summary};
use mimi_node::mls::Tree;
use mimi_node::mls::external_sender::encode_external_sender;
use mimi_node::mls::key_package::validate_key_package;
use mimi_node::mls::message::{application_frame, framed_commit, welcome_recipients};
use mimi_node::mls::policy::ContextRules;
use mimi_node::mls::proposal::framed_proposal;
use mimi_node::node::config::Config;
use mimi_node::qs::sealed::{self, QsKeyPair};
use mimi_node::wire::ds::{ClientQueueConfig, DsMessage, DsRequest, GroupUpdate};
use mimi_node::wire::error::{CurrentEpoch, PendingProposals, RetryAfter, ServerTime, UnreachableDomain, WrongEpoch};
use mimi_node::wire::info::DomainInfo;
use mimi_node::wire::keys::KeysRequest;
use mimi_node::wire::peer::{Hello, LaneFrame, PeerRequest, PeerResponse};
use mimi_node::wire::probe::ProbeReport;
use mimi_node::wire::qs::{Delivery, QueueEntry, QueueInformation, QueueingServiceResponse, SealedQueueInformation};
use mimi_node::wire::{ClientRequest, Invitation, Receipt, Rejection, Response, Service, codec, decode, encode};

/// The time of every decision here: what does not depend on the clock can be repeated.
const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

/// Decodes, and compares the encoding of what came out with what went in.
fn canonical<T: tls_codec::DeserializeBytes + tls_codec::Serialize + Debug>(octets: &[u8]) -> Option<T> {
    let value: T = codec::decode(octets).ok()?;
    assert_eq!(encode(&value), octets, "{value:?} has a second encoding");
    Some(value)
}

/// A frame of a client, and all that its fields lead to.
pub(super) fn client_request(octets: &[u8]) {
    let Some(request) = canonical::<ClientRequest>(octets) else { return };
    let _ = request.is_signed_by(&[7; 32]);
    let _ = request.content.digest();
    let _ = Domain::from_bytes(&request.content.destination);
    match &request.content.service {
        Service::Ds(message) => ds_message(message),
        Service::Keys(message) => {
            if let KeysRequest::Publish(body) = &message.request {
                body.key_packages.iter().for_each(|octets| drop(validate_key_package(octets)));
            }
        }
        Service::Qs(_) | Service::Accounts(_) | Service::Info(_) => {}
    }
}

fn ds_message(message: &DsMessage) {
    let group_update = |update: &GroupUpdate| {
        drop(framed_commit(&update.commit));
        group_info(&update.group_info);
    };
    if let Some(group_id) = message.request.group_id() {
        drop(GroupUri::from_bytes(group_id));
    }
    match &message.request {
        DsRequest::CreateGroup(body) => {
            drop(validate_key_package(&body.key_package));
            group_info(&body.group_info);
        }
        DsRequest::AddUsers(body) | DsRequest::AddClients(body) => {
            group_update(&body.group_update);
            body.welcomes.iter().for_each(|octets| drop(welcome_recipients(octets)));
        }
        DsRequest::RemoveUsers(body) | DsRequest::RemoveClients(body) | DsRequest::UpdateClient(body) => {
            group_update(&body.group_update);
        }
        DsRequest::SendMessage(body) => drop(application_frame(&body.message)),
        _ => {}
    }
}

/// What a client reads from its node.
pub(super) fn answer(octets: &[u8]) {
    canonical::<Response>(octets);
    canonical::<QueueEntry>(octets);
    canonical::<Receipt>(octets);
    canonical::<DomainInfo>(octets);
}

/// What one node reads from another.
pub(super) fn peer(octets: &[u8]) {
    match canonical::<PeerRequest>(octets) {
        Some(PeerRequest::Proxy(request)) => client_request(&request),
        Some(PeerRequest::Lanes(batches)) => {
            let recipients = batches.iter().flat_map(|batch| batch.frames.iter()).flat_map(|frame| frame.recipients.iter());
            recipients.for_each(|sealed| drop(canonical::<SealedQueueInformation>(sealed)));
        }
        _ => {}
    }
    match canonical::<PeerResponse>(octets) {
        Some(PeerResponse::Proxy(response)) => answer(&response),
        Some(PeerResponse::Lanes(answers)) => drop(answers),
        _ => {}
    }
    canonical::<Hello>(octets);
    canonical::<LaneFrame>(octets);
}

/// Structs within opaque fields: details of rejections, queue information and what is stored by others for us.
pub(super) fn details(octets: &[u8]) {
    static KEYS: LazyLock<Vec<QsKeyPair>> = LazyLock::new(|| vec![QsKeyPair::generate(1).expect("a key")]);
    if let Some(rejection) = canonical::<Rejection>(octets) {
        let _ = rejection.to_string();
    }
    canonical::<CurrentEpoch>(octets);
    canonical::<ServerTime>(octets);
    canonical::<WrongEpoch>(octets);
    canonical::<PendingProposals>(octets);
    canonical::<RetryAfter>(octets);
    canonical::<UnreachableDomain>(octets);
    canonical::<ProbeReport>(octets);
    canonical::<Delivery>(octets);
    canonical::<QueueingServiceResponse>(octets);
    canonical::<ClientQueueConfig>(octets);
    canonical::<QueueInformation>(octets);
    canonical::<SealedQueueInformation>(octets);
    assert!(sealed::open(&KEYS, octets).is_none(), "sealed without the key's public half");
}

/// Lines that people paste, names, and files of the operator.
pub(super) fn text(octets: &[u8]) {
    comes_back::<Domain>(octets, Domain::from_bytes(octets).ok());
    comes_back::<UserUri>(octets, UserUri::from_bytes(octets).ok());
    comes_back::<ClientUri>(octets, ClientUri::from_bytes(octets).ok());
    comes_back::<GroupUri>(octets, GroupUri::from_bytes(octets).ok());
    let Ok(text) = std::str::from_utf8(octets) else { return };
    if let Ok(invitation) = text.parse::<Invitation>() {
        assert_eq!(invitation.to_string().parse(), Ok(invitation));
    }
    if let Ok(config) = Config::parse(text) {
        let _ = config.limits.check();
        let written = config.to_toml().expect("what was read can be written");
        assert_eq!(Config::parse(&written).expect("and read again"), config);
    }
    let _ = certificates_from_pem(text);
    let _ = key_from_pem(text);
}

/// A name has one spelling.
fn comes_back<T: ToString + FromStr + PartialEq + Debug>(octets: &[u8], read: Option<T>) {
    let Some(name) = read else { return };
    assert_eq!(name.to_string().as_bytes(), octets);
    assert_eq!(name.to_string().parse().ok(), Some(name));
}

/// MLSMessages, as far as a server reads them.
pub(super) fn mls_message(octets: &[u8]) {
    if let Ok(frame) = application_frame(octets) {
        let _ = GroupUri::from_bytes(&frame.group_id);
    }
    let _ = framed_commit(octets);
    let _ = framed_proposal(octets);
    let _ = welcome_recipients(octets);
}

/// KeyPackages that clients publish or bring.
pub(super) fn key_package(octets: &[u8]) {
    if let Ok(key_package) = validate_key_package(octets) {
        certificates(&key_package.claim.chain);
    }
}

/// The GroupInfo of a new group.
pub(super) fn group_info(octets: &[u8]) {
    static EXTERNAL_SENDER: LazyLock<Vec<u8>> =
        LazyLock::new(|| encode_external_sender(&[9; 32], &[b"a certificate".to_vec()]).expect("encodes"));
    let rules = ContextRules { external_sender: &EXTERNAL_SENDER, extensions_bytes_max: 16 * 1024 };
    let _ = Tree::create(b"mimi://a.test/g/0", octets, rules);
}

/// X.509: a certificate, and the same as each part of a chain.
pub(super) fn certificate(octets: &[u8]) {
    let one = vec![octets.to_vec()];
    let _ = claimed_client(&one);
    let _ = claimed_user(&one);
    let _ = claimed_validity_end(&one);
    let _ = domain_of_root(octets);
    let _: Result<CertificateSummary, _> = summary::summarise(octets);
    let _ = issue::key_of_request(octets);
    if let Ok(domain) = domain_of_root(octets) {
        let _ = AsRoots::new(domain, one.clone());
    }
    certificates(&one);
    // As one of two: the other half is right.
    let real = &CHAIN.1;
    certificates(&[octets.to_vec(), real[1].clone()]);
    certificates(&[real[0].clone(), octets.to_vec()]);
}

/// An AS root of a.test, and a client's chain under it.
static CHAIN: LazyLock<(AsRoots, Vec<Vec<u8>>)> = LazyLock::new(|| {
    let domain: Domain = "a.test".parse().expect("a domain");
    let root = AsRoot::create(&domain, NOW).expect("a root");
    let user = UserUri::new(&domain, "alice").expect("a user");
    let (user_key, key) = (SigningKey::generate().expect("a key"), SigningKey::generate().expect("a key"));
    let request = issue::user_csr(&user_key, &user).expect("a request");
    let user_certificate = root.issue_user(&request, &user, NOW).expect("a certificate");
    let client = user.client("phone").expect("a client");
    let certificate = issue::issue_client(&user_key, &user_certificate, &client, key.public(), NOW).expect("a certificate");
    let roots = AsRoots::new(domain, vec![root.certificate().to_vec()]).expect("roots");
    (roots, vec![certificate, user_certificate])
});

fn certificates(chain: &[Vec<u8>]) {
    let _ = claimed_client(chain);
    let _ = claimed_user(chain);
    let _ = validate_user_chain(chain, &CHAIN.0, NOW);
    if let Ok(identity) = validate_client_chain(chain, &CHAIN.0, NOW) {
        assert_eq!(chain, CHAIN.1, "nobody else has the root's signature: {identity:?}");
    }
}

/// Our own records, as a damaged disk or another version would leave them. The first octet says which kind.
pub(super) fn record(octets: &[u8]) {
    let Some((kind, record)) = octets.split_first() else { return };
    match kind % 4 {
        0 => {
            if let Ok(head) = Head::from_record(record) {
                let again = Head::from_record(&head.to_record().expect("encodes")).expect("can be read");
                assert_eq!(again, head);
            }
        }
        1 => {
            if let Ok(member) = Member::from_record(record) {
                let again = Member::from_record(&member.to_record().expect("encodes")).expect("can be read");
                assert_eq!(again, member);
            }
        }
        2 => drop(QsKeyPair::from_record(record)),
        _ => drop(Tree::restore(b"mimi://a.test/g/0", record, [])),
    }
    let _ = decode::<DomainInfo>(record);
}
