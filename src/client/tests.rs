//! The core against a hub played by the test. What counts as failure: a message that is lost, doubled or readable by the wrong
//! ones; a Commit applied without the hub's word; a restart that forgets what was promised. Networks are other tests' business.

#![allow(clippy::panic, reason = "a test that cannot go on says why")]

mod joining;
mod removals;
mod roots;
mod upkeep;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use openmls::prelude::{Credential, CredentialType, ExternalProposal, ExternalSender, SenderExtensionIndex};
use serde_json::Value;
use tempfile::TempDir;
use tls_codec::Serialize as _;

use super::core::Core;
use super::event::Event;
use super::history::read_history;
use super::mls::{self, Leaf, Provider};
use super::outgoing::{Answer, CommitOutcome, MessageOutcome};
use super::receive::{Need, WaitingWelcome};
use super::state::tests::sample;
use super::state::{Blob, GroupStatus, Outgoing, Plan, Purpose, Queue, Store};
use crate::base::crypto::{SigningKey, sha256};
use crate::base::ids::QueueId;
use crate::base::{ClientUri, Domain, GroupUri, UnixMillis, UserUri};
use crate::identity::AsRoot;
use crate::identity::issue::{issue_client, user_csr};
use crate::wire::ds::{DsRequest, GroupUpdate};
use crate::wire::info::{DomainInfo, QsKey};
use crate::wire::keys::KeysRequest;
use crate::wire::qs::{DeliveredMessage, Delivery, QueueEntry};
use crate::wire::receipt::ReceiptContent;
use crate::wire::reply::{GroupState, MessageAccepted};
use crate::wire::request::Service;
use crate::wire::{ErrorCode, List, Opaque, Receipt, Rejection, Reply, decode, encode};

/// A domain: its AS, and the key of its DS.
struct Authority {
    domain: Domain,
    root: AsRoot,
    ds_key: SigningKey,
    info: DomainInfo,
}

impl Authority {
    fn new(name: &str) -> Self {
        let domain: Domain = name.parse().expect("a domain");
        let root = AsRoot::create(&domain, UnixMillis::now()).expect("a root");
        let ds_key = SigningKey::generate().expect("a key");
        let credential = Credential::new(CredentialType::X509, encode(&Opaque::from(b"certificate".as_slice())));
        let sender = ExternalSender::new(ds_key.public().to_vec().into(), credential);
        let info = DomainInfo {
            domain: domain.as_bytes().into(),
            as_roots: vec![Opaque::from(root.certificate())].into(),
            qs_keys: vec![QsKey { key_id: 0, public_key: vec![9; 32].into() }].into(),
            external_sender: sender.tls_serialize_detached().expect("encodes").into(),
            root_statements: List::default(),
            server_time_ms: 0,
        };
        Self { domain, root, ds_key, info }
    }

    /// The DS's word that `commit` began `epoch`.
    fn receipt(&self, group: &GroupUri, epoch: u64, commit: &[u8]) -> Receipt {
        ReceiptContent { group_id: group.to_bytes().into(), epoch, commit_hash: sha256(commit) }.sign(&self.ds_key)
    }
}

/// A client, and how far its queue is filled.
struct Party {
    dir: TempDir,
    core: Core,
    sent: u64,
}

impl Party {
    fn new(authority: &Authority, name: &str) -> Self {
        let user = UserUri::new(&authority.domain, name).expect("a user");
        let user_key = SigningKey::generate().expect("a key");
        let csr = user_csr(&user_key, &user).expect("a request");
        let user_certificate = authority.root.issue_user(&csr, &user, UnixMillis::now()).expect("a certificate");
        Self::of_user(authority, &user.client("phone").expect("a client"), &user_key, &user_certificate)
    }

    /// A client of the same user, or the same client with new keys.
    fn again(&self, authority: &Authority, device: &str) -> Self {
        let account = &self.core.state.account;
        let user_key = SigningKey::from_pkcs8(&account.user_key.0).expect("a key");
        let client = self.core.me.user().client(device).expect("a client");
        Self::of_user(authority, &client, &user_key, &account.user_certificate.0)
    }

    fn of_user(authority: &Authority, client: &ClientUri, user_key: &SigningKey, user_certificate: &[u8]) -> Self {
        let client_key = SigningKey::generate().expect("a key");
        let client_certificate =
            issue_client(user_key, user_certificate, client, client_key.public(), UnixMillis::now()).expect("a certificate");
        let mut state = sample();
        state.account.domain = authority.domain.to_string();
        state.account.client = client.to_string();
        state.account.user_key = Blob(user_key.pkcs8().expose().to_vec());
        state.account.client_key = Blob(client_key.pkcs8().expose().to_vec());
        state.account.user_certificate = Blob(user_certificate.to_vec());
        state.account.client_certificate = Blob(client_certificate);
        (state.groups, state.outbox, state.unlogged, state.log_count) = Default::default();
        state.key_packages.clear();
        state.domains = [(authority.domain.to_string(), Blob(encode(&authority.info)))].into();
        state.queue = Some(Queue { id: QueueId::random(), generation: 1, retiring: None, next: 1, acked: 0 });
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("opens");
        store.save(&state, &HashMap::new()).expect("saves");
        drop(store);
        let core = open(&dir);
        Self { dir, core, sent: 0 }
    }

    /// What a crash leaves: the disk.
    fn crash(self) -> Self {
        let Self { dir, core, sent } = self;
        drop(core);
        let core = open(&dir);
        Self { dir, core, sent }
    }

    fn uri(&self) -> ClientUri {
        self.core.me.clone()
    }

    fn user(&self) -> String {
        self.core.me.user().to_string()
    }

    /// Puts a message into this client's queue and takes it.
    fn deliver(&mut self, group: &GroupUri, epoch: u64, message: &[u8], receipt: Option<Receipt>) {
        self.sent += 1;
        let message = Delivery::Message(DeliveredMessage { message: message.into(), receipt });
        let entry = entry(self.sent, group, epoch, message);
        self.core.take_batch(vec![entry]).expect("is taken");
    }

    fn events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.core.events)
    }

    fn texts(&mut self) -> Vec<String> {
        let text = |event| match event {
            Event::Message { text, .. } => Some(text),
            _ => None,
        };
        self.events().into_iter().filter_map(text).collect()
    }

    fn log(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(log_path(&self.dir)).expect("a log");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Sends `text`; the hub accepts.
    fn says(&mut self, group: &GroupUri, text: &str) -> (u64, Vec<u8>) {
        let made = self.core.make_message(group, text.to_owned(), None).expect("is made");
        let (epoch, message) = message_of(&made);
        let accepted = Ok(Reply::MessageAccepted(MessageAccepted { epoch, accepted_at_ms: 5 }));
        let outcome = self.core.settle_message(made.request, accepted).expect("settles");
        assert!(matches!(outcome, MessageOutcome::Accepted(_)));
        (epoch, message)
    }

    fn authenticator(&self, group: &GroupUri) -> Vec<u8> {
        self.core.groups[group].epoch_authenticator().as_slice().to_vec()
    }
}

fn log_path(dir: &TempDir) -> PathBuf {
    dir.path().join("events.jsonl")
}

fn open(dir: &TempDir) -> Core {
    let store = Store::open(dir.path()).expect("opens");
    let (state, values) = store.load().expect("reads").expect("a state");
    let account = &state.account;
    let leaf = Leaf {
        key: SigningKey::from_pkcs8(&account.client_key.0).expect("a key"),
        chain: vec![account.client_certificate.0.clone(), account.user_certificate.0.clone()],
    };
    Core::new(store, state, Provider::with_values(values), Arc::new(leaf), Some(&log_path(dir))).expect("opens")
}

fn entry(sequence: u64, group: &GroupUri, epoch: u64, delivery: Delivery) -> QueueEntry {
    QueueEntry {
        sequence,
        arrived_at_ms: UnixMillis::now().0,
        hub: group.hub().as_bytes().into(),
        group_id: group.to_bytes().into(),
        epoch,
        delivery,
    }
}

fn ds_request(made: &Outgoing) -> DsRequest {
    match decode(&made.service.0).expect("decodes") {
        Service::Ds(message) => message.request,
        other => panic!("{other:?}"),
    }
}

fn message_of(made: &Outgoing) -> (u64, Vec<u8>) {
    match (&made.purpose, ds_request(made)) {
        (Purpose::Message { epoch, .. }, DsRequest::SendMessage(body)) => (*epoch, body.message.into_vec()),
        other => panic!("{other:?}"),
    }
}

fn update_of(made: &Outgoing) -> (GroupUpdate, List<Opaque>) {
    match ds_request(made) {
        DsRequest::AddUsers(body) | DsRequest::AddClients(body) => (body.group_update, body.welcomes),
        DsRequest::RemoveUsers(body) | DsRequest::UpdateClient(body) => (body.group_update, List::default()),
        DsRequest::RemoveClients(body) | DsRequest::UpdateGroup(body) => (body.group_update, List::default()),
        DsRequest::DeleteGroup(body) => (body.group_update, List::default()),
        DsRequest::JoinClient(body) | DsRequest::JoinGroup(body) => (body.group_update, List::default()),
        DsRequest::ResyncClient(body) => (body.group_update, List::default()),
        other => panic!("{other:?}"),
    }
}

/// A group of alice (a.test, the hub's own) and bob (b.test), both in epoch 1.
fn pair() -> (Authority, Authority, Party, Party, GroupUri) {
    let (a, b) = (Authority::new("a.test"), Authority::new("b.test"));
    let (mut alice, mut bob) = (Party::new(&a, "alice"), Party::new(&b, "bob"));
    let made = alice.core.make_group(Some("us".into())).expect("is made");
    alice.core.settle_other(made.request, Ok(Reply::Done)).expect("settles");
    let Purpose::CreateGroup { group } = made.purpose else { panic!("{:?}", made.purpose) };
    let group: GroupUri = group.parse().expect("a group");

    let made = bob.core.make_key_packages(2, true, UnixMillis::now()).expect("are made");
    bob.core.settle_other(made.request, Ok(Reply::Done)).expect("settles");
    let Ok(Service::Keys(message)) = decode(&made.service.0) else { panic!("no keys request") };
    let KeysRequest::Publish(published) = message.request else { panic!("no publish") };
    assert!(published.key_packages.len() == 2 && published.last_resort.is_some());
    let package = mls::read_key_package(&alice.core.provider, &published.key_packages[0]).expect("is valid");

    alice.core.pin(&b.domain, &b.info).expect("is pinned, as a claim does");
    let made = alice.core.make_commit(&group, Plan::Add(vec![bob.user()]), vec![package], None).expect("is made");
    let (update, welcomes) = update_of(&made);
    let receipt = a.receipt(&group, 1, &update.commit);
    let outcome = alice.core.settle_commit(made.request, Ok(Reply::CommitAccepted(receipt))).expect("settles");
    assert!(matches!(outcome, CommitOutcome::Won(1)), "{outcome:?}");

    bob.deliver(&group, 1, &welcomes[0], None);
    let tree = tree_of(&alice, &group);
    assert!(matches!(bob.core.take_backlog(&group, None), Ok(Some(Need::Domain(domain))) if domain == a.domain));
    bob.core.pin(&a.domain, &a.info).expect("is pinned");
    assert!(matches!(bob.core.take_backlog(&group, None), Ok(Some(Need::Tree(WaitingWelcome { epoch: 1, .. })))));
    // Neither another entry's tree nor giving up another entry touches this one.
    assert!(matches!(bob.core.take_backlog(&group, Some((2, &tree))), Ok(Some(Need::Tree(WaitingWelcome { sequence: 1, .. })))));
    bob.core.skip_backlog(&group, 2, "not this one".into()).expect("does nothing");
    assert!(matches!(bob.core.take_backlog(&group, Some((1, &tree))), Ok(None)));
    assert_eq!(bob.events(), [Event::Joined { group: group.clone(), epoch: 1 }]);
    alice.events();
    (a, b, alice, bob, group)
}

fn tree_of(party: &Party, group: &GroupUri) -> GroupState {
    let mls = &party.core.groups[group];
    GroupState {
        epoch: mls.epoch().as_u64(),
        ratchet_tree: mls.export_ratchet_tree().tls_serialize_detached().expect("encodes").into(),
        group_info: Opaque::default(),
        proposals: List::default(),
    }
}

fn refused(code: ErrorCode) -> Answer {
    Err(Rejection::new(code))
}

#[test]
fn two_members_of_two_domains_talk_across_restarts() {
    let (_a, _b, mut alice, mut bob, group) = pair();
    assert_eq!(alice.core.members_now(&group), [alice.uri(), bob.uri()]);
    assert_eq!(alice.authenticator(&group), bob.authenticator(&group));
    let (epoch, hello) = alice.says(&group, "hello");
    bob.deliver(&group, epoch, &hello, None);
    assert_eq!(bob.texts(), ["hello"]);
    let (mut alice, mut bob) = (alice.crash(), bob.crash());
    let (epoch, answer) = bob.says(&group, "hello, alice");
    alice.deliver(&group, epoch, &answer, None);
    assert_eq!(alice.texts(), ["hello, alice"]);
    // The same entry again is no second message, and the same message in another entry cannot be read twice.
    let again = entry(1, &group, epoch, Delivery::MessagesLost);
    alice.core.take_batch(vec![again]).expect("is passed over");
    alice.deliver(&group, epoch, &answer, None);
    assert!(matches!(&alice.events()[..], [Event::Unprocessable { sequence: 2, .. }]));

    let lines = read_history(bob.dir.path(), None).expect("reads");
    let texts: Vec<_> = lines.iter().map(|line| (line.line, line.sequence, line.text.as_str())).collect();
    assert_eq!(texts, [(1, Some(2), "hello"), (2, None, "hello, alice")]);
    let received: Vec<_> = bob.log().into_iter().filter(|line| line["event"] == "received").collect();
    assert_eq!(received.len(), 2);
    assert_eq!((&received[0]["kind"], &received[0]["outcome"]), (&"welcome".into(), &"ok".into()));
    assert_eq!(received[1]["sender"], alice.uri().to_string());
    let sending = alice.log().into_iter().find(|line| line["event"] == "sending").expect("is logged");
    for field in ["message", "epoch", "text_hash", "group"] {
        assert_eq!(received[1][field], sending[field], "{field}");
    }
}

#[test]
fn messages_of_the_next_epoch_wait_for_the_answer_to_the_own_commit() {
    let (a, _b, mut alice, mut bob, group) = pair();
    let made = alice.core.make_commit(&group, Plan::Update, Vec::new(), None).expect("is made");
    let (update, _) = update_of(&made);
    // Accepted; the answer is lost, alice is killed, and bob's message of the new epoch comes first.
    bob.deliver(&group, 2, &update.commit, Some(a.receipt(&group, 2, &update.commit)));
    let (epoch, message) = bob.says(&group, "already here");
    assert_eq!(epoch, 2);
    let mut alice = alice.crash();
    alice.deliver(&group, epoch, &message, None);
    assert!(matches!(alice.core.take_backlog(&group, None), Ok(Some(Need::OwnCommit))));
    let mut alice = alice.crash();
    let left = alice.core.pending_commit(&group).expect("is in the outbox");
    assert_eq!((left.request, &left.service), (made.request, &made.service), "the same request, octet for octet");
    let hash = sha256(&update.commit);
    let answer = Err(Rejection::wrong_epoch(2, Some(hash)));
    assert!(matches!(alice.core.settle_commit(left.request, answer), Ok(CommitOutcome::Won(2))));
    assert_eq!(alice.texts(), ["already here"]);
    assert_eq!(alice.authenticator(&group), bob.authenticator(&group));
    assert!(alice.core.state.backlog.is_empty() && alice.core.state.outbox.is_empty());
}

#[test]
fn of_two_commits_the_one_with_the_hubs_receipt_counts() {
    let (a, b, mut alice, mut bob, group) = pair();
    let mine = alice.core.make_commit(&group, Plan::Update, Vec::new(), None).expect("is made");
    let theirs = bob.core.make_commit(&group, Plan::Update, Vec::new(), None).expect("is made");
    let (update, _) = update_of(&theirs);
    // Without the hub's word nothing happens: no receipt, another hub's, one for another epoch, one for other octets.
    for receipt in [
        None,
        Some(b.receipt(&group, 2, &update.commit)),
        Some(a.receipt(&group, 3, &update.commit)),
        Some(a.receipt(&group, 2, b"other")),
    ] {
        alice.deliver(&group, 2, &update.commit, receipt);
        assert!(matches!(&alice.events()[..], [Event::Unprocessable { .. }]));
        assert_eq!(alice.core.groups[&group].epoch().as_u64(), 1);
    }
    let receipt = a.receipt(&group, 2, &update.commit);
    let won = bob.core.settle_commit(theirs.request, Ok(Reply::CommitAccepted(receipt.clone())));
    assert!(matches!(won, Ok(CommitOutcome::Won(2))));
    alice.deliver(&group, 2, &update.commit, Some(receipt));
    let events = alice.events();
    assert!(matches!(&events[..], [Event::EpochChanged { epoch: 2, by, .. }] if *by == bob.uri()), "{events:?}");
    let lost = alice.core.settle_commit(mine.request, Err(Rejection::wrong_epoch(2, Some(sha256(&update.commit)))));
    assert!(matches!(lost, Ok(CommitOutcome::Lost { epoch: 1 })));
    assert_eq!(alice.authenticator(&group), bob.authenticator(&group));
    // And the next one passes.
    let next = alice.core.make_commit(&group, Plan::Update, Vec::new(), Some(mine.request)).expect("is made");
    let (update, _) = update_of(&next);
    let receipt = a.receipt(&group, 3, &update.commit);
    let won = alice.core.settle_commit(next.request, Ok(Reply::CommitAccepted(receipt.clone())));
    assert!(matches!(won, Ok(CommitOutcome::Won(3))));
    bob.deliver(&group, 3, &update.commit, Some(receipt));
    assert_eq!(alice.authenticator(&group), bob.authenticator(&group));
    // A message of the past epoch still arrives.
    let events: Vec<_> = alice.log().iter().map(|line| line["event"].as_str().unwrap_or_default().to_owned()).collect();
    assert_eq!(events.iter().filter(|event| *event == "committing").count(), 3);
    assert_eq!(events.iter().filter(|event| *event == "commit_accepted").count(), 2);
    assert_eq!(events.iter().filter(|event| *event == "commit_refused").count(), 1);
}

#[test]
fn a_hub_that_accepts_with_a_false_receipt_is_not_believed() {
    let (_a, b, mut alice, _bob, group) = pair();
    let made = alice.core.make_commit(&group, Plan::Update, Vec::new(), None).expect("is made");
    let (update, _) = update_of(&made);
    let forged = b.receipt(&group, 2, &update.commit);
    assert!(alice.core.settle_commit(made.request, Ok(Reply::CommitAccepted(forged))).is_err());
    assert_eq!(alice.core.groups[&group].epoch().as_u64(), 1);
    assert!(alice.core.pending_commit(&group).is_some(), "it may still turn out either way");
}

#[test]
fn late_messages_of_past_epochs_are_read() {
    let (a, _b, mut alice, mut bob, group) = pair();
    let (epoch, late) = bob.says(&group, "sent before the Commit");
    let made = alice.core.make_commit(&group, Plan::Update, Vec::new(), None).expect("is made");
    let (update, _) = update_of(&made);
    let receipt = a.receipt(&group, 2, &update.commit);
    alice.core.settle_commit(made.request, Ok(Reply::CommitAccepted(receipt))).expect("settles");
    alice.deliver(&group, epoch, &late, None);
    assert_eq!(alice.texts(), ["sent before the Commit"]);
}

#[test]
fn who_is_removed_learns_it_and_forgets_the_group() {
    let (a, _b, mut alice, mut bob, group) = pair();
    assert!(alice.core.make_commit(&group, Plan::Remove(vec![alice.user()]), Vec::new(), None).is_err(), "not oneself");
    let made = alice.core.make_commit(&group, Plan::Remove(vec![bob.user()]), Vec::new(), None).expect("is made");
    let (update, _) = update_of(&made);
    let receipt = a.receipt(&group, 2, &update.commit);
    alice.core.settle_commit(made.request, Ok(Reply::CommitAccepted(receipt.clone()))).expect("settles");
    bob.deliver(&group, 2, &update.commit, Some(receipt));
    assert_eq!(bob.events(), [Event::Left { group: group.clone(), epoch: 2 }]);
    let mut bob = bob.crash();
    assert_eq!(bob.core.state.groups[&group.to_string()].status, GroupStatus::Left);
    assert!(bob.core.make_message(&group, "still here?".into(), None).is_err());
    let (epoch, message) = alice.says(&group, "among ourselves");
    bob.deliver(&group, epoch, &message, None);
    assert!(matches!(&bob.events()[..], [Event::Unprocessable { .. }]));
    assert!(bob.log().iter().any(|line| line["event"] == "left" && line["epoch"] == 2));
}

#[test]
fn entries_that_make_no_sense_are_told_and_passed_over() {
    let (_a, _b, mut alice, _bob, group) = pair();
    let garbage = |sequence, message: &[u8]| {
        let message = DeliveredMessage { message: message.into(), receipt: None };
        entry(sequence, &group, 1, Delivery::Message(message))
    };
    let mut of_another_hub = garbage(2, b"");
    of_another_hub.hub = b"b.test".as_slice().into();
    let mut nameless = garbage(3, b"");
    nameless.group_id = vec![0xff].into();
    let lost = entry(4, &group, 1, Delivery::MessagesLost);
    alice.core.take_batch(vec![garbage(1, b"\x00\x01\x00\x02\xff"), of_another_hub, nameless, lost]).expect("are taken");
    let events = alice.events();
    assert!(matches!(
        &events[..],
        [
            Event::Unprocessable { sequence: 1, .. },
            Event::Unprocessable { sequence: 2, .. },
            Event::Unprocessable { sequence: 3, .. },
            Event::MessagesLost { .. }
        ]
    ));
    assert_eq!(alice.core.unacked(), Some(4));
    alice.core.acked(4).expect("is noted");
    assert_eq!(alice.core.unacked(), None);
    // A gap is no entry to pass over; what comes before it is taken.
    let more = vec![entry(5, &group, 1, Delivery::MessagesLost), entry(7, &group, 1, Delivery::MessagesLost)];
    assert!(alice.core.take_batch(more).is_err());
    assert_eq!(alice.core.queue().expect("a queue").next, 6);
}

#[test]
fn refused_messages_and_groups_leave_nothing_behind() {
    let (_a, _b, mut alice, mut bob, group) = pair();
    let made = alice.core.make_message(&group, "too late".into(), None).expect("is made");
    assert!(matches!(
        alice.core.settle_message(made.request, refused(ErrorCode::InvalidMessage)),
        Ok(MessageOutcome::Refused(_))
    ));
    let made = alice.core.make_message(&group, "too much".into(), None).expect("is made");
    let outcome = alice.core.settle_message(made.request, refused(ErrorCode::TooLarge));
    assert!(matches!(outcome, Ok(MessageOutcome::Refused(_))));
    assert!(alice.core.state.outbox.is_empty());
    let codes: Vec<_> = alice.log().into_iter().filter(|line| line["event"] == "refused").collect();
    assert_eq!((codes.len(), &codes[1]["code"]), (2, &"too_large".into()));

    let made = bob.core.make_group(None).expect("is made");
    assert!(bob.core.settle_other(made.request, refused(ErrorCode::InvalidGroupId)).is_err());
    let bob = bob.crash();
    assert_eq!(bob.core.state.groups.len(), 1, "only the one it is in");
}

#[test]
fn log_lines_lost_in_a_crash_are_written_on_opening() {
    let (_a, _b, mut alice, _bob, group) = pair();
    alice.core.make_message(&group, "on its way".into(), None).expect("is made");
    let text = std::fs::read_to_string(log_path(&alice.dir)).expect("a log");
    let last = text.trim_end().rfind('\n').expect("several lines") + 1;
    // The state was written; the process died before the log was.
    std::fs::write(log_path(&alice.dir), &text[..last]).expect("writes");
    let alice = alice.crash();
    assert_eq!(std::fs::read_to_string(log_path(&alice.dir)).expect("a log"), text);
    let alice = alice.crash();
    assert_eq!(std::fs::read_to_string(log_path(&alice.dir)).expect("a log"), text, "and only once");
}

#[test]
fn a_domains_roots_are_pinned_at_first_sight() {
    let (_a, _b, mut alice, ..) = pair();
    let (first, second) = (Authority::new("c.test"), Authority::new("c.test"));
    alice.core.pin(&first.domain, &first.info).expect("is pinned");
    alice.core.pin(&first.domain, &first.info).expect("the same again");
    assert!(alice.core.pin(&second.domain, &second.info).is_err(), "other roots");
    let b: Domain = "b.test".parse().expect("a domain");
    assert!(alice.core.pin(&b, &first.info).is_err(), "another domain's");
}

#[test]
fn a_member_that_its_domain_does_not_vouch_for_cannot_come_in() {
    let (a, _b, mut alice, mut bob, group) = pair();
    // A domain that calls itself c.test has carol; alice has pinned the real one.
    let (real, false_) = (Authority::new("c.test"), Authority::new("c.test"));
    let mut carol = Party::new(&false_, "carol");
    let made = carol.core.make_key_packages(1, false, UnixMillis::now()).expect("are made");
    let Ok(Service::Keys(message)) = decode(&made.service.0) else { panic!("no keys request") };
    let KeysRequest::Publish(published) = message.request else { panic!("no publish") };
    let package = mls::read_key_package(&bob.core.provider, &published.key_packages[0]).expect("is valid MLS");
    let plan = Plan::Add(vec![carol.user()]);
    assert!(bob.core.make_commit(&group, plan.clone(), vec![package.clone()], None).is_err(), "bob knows no c.test at all");
    bob.core.pin(&false_.domain, &false_.info).expect("is pinned: bob is taken in");
    let made = bob.core.make_commit(&group, plan, vec![package], None).expect("is made");
    let (update, _) = update_of(&made);
    alice.deliver(&group, 2, &update.commit, Some(a.receipt(&group, 2, &update.commit)));
    assert!(matches!(alice.core.take_backlog(&group, None), Ok(Some(Need::Domain(domain))) if domain == real.domain));
    alice.core.pin(&real.domain, &real.info).expect("is pinned");
    assert!(matches!(alice.core.take_backlog(&group, None), Ok(None)));
    assert!(matches!(&alice.events()[..], [Event::Unprocessable { .. }]));
    assert_eq!(alice.core.state.groups[&group.to_string()].status, GroupStatus::Stuck);
    assert_eq!(alice.core.groups[&group].epoch().as_u64(), 1);
}

#[test]
fn a_client_that_cannot_write_or_is_closed_does_nothing_more() {
    let (_a, _b, mut alice, mut bob, group) = pair();
    let (epoch, message) = alice.says(&group, "hello");
    // The state file cannot be replaced.
    std::fs::create_dir(bob.dir.path().join("state.new")).expect("is in the way");
    let message = Delivery::Message(DeliveredMessage { message: message.into(), receipt: None });
    let taken = entry(2, &group, epoch, message);
    assert!(bob.core.run(move |core| core.take_batch(vec![taken])).is_err());
    assert!(bob.events().is_empty(), "nothing is told that the disk does not hold");
    assert!(bob.core.run(|core| Ok(core.unacked())).is_err(), "and nothing acknowledged");
    std::fs::remove_dir(bob.dir.path().join("state.new")).expect("is removed");
    assert!(bob.core.run(|core| core.make_message(&group, "from memory".into(), None)).is_err());

    alice.core.close();
    assert!(alice.core.run(|core| core.make_message(&group, "closed".into(), None)).is_err());
}

#[test]
fn work_that_panicked_is_the_last() {
    let (_a, _b, mut alice, ..) = pair();
    let interrupted = std::panic::AssertUnwindSafe(|| alice.core.run(|_| -> super::core::Result<()> { panic!("a bug") }));
    assert!(std::panic::catch_unwind(interrupted).is_err());
    assert!(alice.core.run(|core| core.save()).is_err());
}

#[test]
fn what_is_to_be_made_anew_stays_in_the_outbox_until_it_is() {
    let (a, _b, mut alice, mut bob, group) = pair();
    let early = alice.core.make_message(&group, "too early".into(), None).expect("is made");
    let mine = alice.core.make_commit(&group, Plan::Update, Vec::new(), None).expect("is made");
    let theirs = bob.core.make_commit(&group, Plan::Update, Vec::new(), None).expect("is made");
    let (update, _) = update_of(&theirs);
    let receipt = a.receipt(&group, 2, &update.commit);
    let lost = Rejection::wrong_epoch(2, Some(sha256(&update.commit)));
    assert!(matches!(alice.core.settle_commit(mine.request, Err(lost.clone())), Ok(CommitOutcome::Lost { epoch: 1 })));
    assert!(matches!(alice.core.settle_message(early.request, Err(lost)), Ok(MessageOutcome::Outdated)));
    // Killed before either is made anew.
    let mut alice = alice.crash();
    alice.deliver(&group, 2, &update.commit, Some(receipt));
    assert!(alice.core.state.outbox.iter().all(|kept| kept.stale));
    let [kept] = &alice.core.messages_out(&group)[..] else { panic!("{:?}", alice.core.state.outbox) };
    let Purpose::Message { text, .. } = &kept.purpose else { panic!("{kept:?}") };
    let again = alice.core.make_message(&group, text.clone(), Some(kept.request)).expect("is made anew");
    let commit = alice.core.pending_commit(&group).expect("its plan is there");
    assert!(alice.core.make_commit(&group, Plan::Update, Vec::new(), None).is_err(), "that one comes first");
    let commit = alice.core.make_commit(&group, Plan::Update, Vec::new(), Some(commit.request)).expect("is made anew");
    let alice = alice.crash();
    let left: Vec<_> = alice.core.state.outbox.iter().map(|kept| (kept.request, kept.stale)).collect();
    assert_eq!(left, [(again.request, false), (commit.request, false)], "each replaces its predecessor");
}

#[test]
fn a_message_whose_answer_may_be_forgotten_is_not_sent_twice() {
    let (_a, _b, mut alice, _bob, group) = pair();
    let made = alice.core.make_message(&group, "yesterday's".into(), None).expect("is made");
    let kept_ms = u64::try_from(crate::base::limits::ANSWERS_KEPT.as_millis()).expect("fits");
    alice.core.state.outbox[0].made_at_ms -= kept_ms;
    let outcome = alice.core.settle_message(made.request, Err(Rejection::wrong_epoch(9, None)));
    assert!(matches!(outcome, Ok(MessageOutcome::Unknown)), "{outcome:?}");
    assert!(alice.core.state.outbox.is_empty());
}

#[test]
fn a_message_overtaken_by_many_is_still_read() {
    let (_a, _b, mut alice, mut bob, group) = pair();
    let (epoch, late) = bob.says(&group, "late");
    for _ in 0..100 {
        let (epoch, message) = bob.says(&group, "newer");
        alice.deliver(&group, epoch, &message, None);
    }
    assert_eq!(alice.texts().len(), 100);
    alice.deliver(&group, epoch, &late, None);
    assert_eq!(alice.texts(), ["late"]);
}
