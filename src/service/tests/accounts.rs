//! Accounts: who is not enrolled, and what may be asked about one.

use crate::accounts::hash_token;
use crate::base::crypto::SigningKey;
use crate::base::limits::BLOCKS_PER_USER_MAX;
use crate::base::{Domain, UnixMillis, UserUri};
use crate::identity::issue::user_csr;
use crate::service::testing::{TestNode, Via};
use crate::storage::accounts::Invite;
use crate::tests::forged::content;
use crate::wire::accounts::{AccountsMessage, AccountsRequest, BlockedName, Enrol, RevokeClient};
use crate::wire::keys::{ClaimKeyPackages, KeysRequest, PublishKeyPackages};
use crate::wire::qs::{FetchEntries, QsMessage, QsRequest, QsSender};
use crate::wire::{ClientRequest, Content, ErrorCode, List, Reply, Service};

const TOKEN: &[u8] = &[5; 16];

fn enrol(domain: &Domain, token: &[u8], certificate_request: &[u8], key: &SigningKey) -> ClientRequest {
    let body = Enrol { token: token.into(), certificate_request: certificate_request.into() };
    let message = AccountsMessage { certificates: List::default(), request: AccountsRequest::Enrol(body) };
    content(domain, Service::Accounts(message)).sign(key)
}

// covers AS-001, AS-002, AS-003
#[tokio::test]
async fn a_token_enrols_once() {
    let node = TestNode::new().await;
    let domain = node.service.domain();
    let user = UserUri::new(domain, "zoe").expect("a user");
    let invite = |token_hash, expires_at| Invite { token_hash, user: user.clone(), expires_at };
    let hour = std::time::Duration::from_secs(3_600);
    let write = async |invite| node.service.storage().write(invite).await.expect("written");
    write(invite(hash_token(TOKEN), UnixMillis::now().plus(hour))).await;
    write(invite(hash_token(&[6; 16]), UnixMillis::now().minus(hour))).await;
    let (key, other) = (SigningKey::generate().expect("a key"), SigningKey::generate().expect("a key"));
    let csr = user_csr(&key, &user).expect("a request");
    let mut spoilt = csr.clone();
    *spoilt.last_mut().expect("octets") ^= 1;
    for unknown in [[9; 16], [6; 16]] {
        node.refuses("AS-001", Via::Stranger, &enrol(domain, &unknown, &csr, &key), ErrorCode::InvalidToken).await;
    }
    node.refuses("AS-002", Via::Stranger, &enrol(domain, TOKEN, &spoilt, &key), ErrorCode::InvalidCredential).await;
    node.refuses("AS-003", Via::Stranger, &enrol(domain, TOKEN, &csr, &other), ErrorCode::BadSignature).await;
    node.accepts(Via::Stranger, &enrol(domain, TOKEN, &csr, &key)).await;
    node.refuses("AS-001", Via::Stranger, &enrol(domain, TOKEN, &csr, &key), ErrorCode::InvalidToken).await;
}

fn revoke(client: &str) -> AccountsRequest {
    AccountsRequest::RevokeClient(RevokeClient { client: client.as_bytes().into() })
}

fn block(name: &str) -> AccountsRequest {
    AccountsRequest::Block(BlockedName { name: name.as_bytes().into() })
}

// covers AS-004, AS-005, AS-006, AS-009, AS-010, AS-011
#[tokio::test]
async fn an_account_obeys_its_users_key() {
    let node = TestNode::new().await;
    let (alice, anna) = (node.device("alice@a.test").await, node.device("anna@a.test").await);
    let bob = node.device("bob@b.test").await;
    let hubs = alice.accounts_request(AccountsRequest::Hubs);
    node.refuses("AS-006", Via::Home(&alice), &hubs, ErrorCode::InvalidCredential).await;
    node.enrol(&alice).await;
    node.enrol(&anna).await;
    node.accepts(Via::Home(&alice), &hubs).await;
    let of_bob = Content { destination: b"a.test".as_slice().into(), ..bob.accounts_request(AccountsRequest::Hubs).content };
    node.refuses("AS-004", Via::Home(&alice), &of_bob.sign(&bob.user_key), ErrorCode::InvalidCredential).await;
    let by_device = alice.accounts_request(AccountsRequest::DeleteUser).content.sign(&alice.key);
    node.refuses("AS-005", Via::Home(&alice), &by_device, ErrorCode::BadSignature).await;
    let again = crate::tests::forged::Device::new(&node.as_roots[node.service.domain()], "alice");
    let request = again.accounts_request(AccountsRequest::DeleteUser);
    node.refuses("AS-006", Via::Home(&alice), &request, ErrorCode::InvalidCredential).await;
    for (rule, request, code) in [
        ("AS-009", revoke("mimi://a.test/d/anna/phone"), ErrorCode::NotAuthorized),
        ("AS-010", revoke("mimi://a.test/d/alice/watch"), ErrorCode::UnknownUser),
        ("AS-011", block("mimi://a.test/u/alice"), ErrorCode::Malformed),
        ("AS-011", block("nobody"), ErrorCode::Malformed),
    ] {
        node.refuses(rule, Via::Home(&alice), &alice.accounts_request(request), code).await;
    }
}

// covers AS-012
#[tokio::test]
async fn a_user_blocks_so_many_and_no_more() {
    let node = TestNode::new().await;
    let alice = node.device("alice@a.test").await;
    node.enrol(&alice).await;
    for number in 0..BLOCKS_PER_USER_MAX {
        let request = alice.accounts_request(block(&format!("x{number}.test")));
        node.accepts(Via::Home(&alice), &request).await;
    }
    let one_more = alice.accounts_request(block("one-more.test"));
    node.refuses("AS-012", Via::Home(&alice), &one_more, ErrorCode::TooLarge).await;
    let again = alice.accounts_request(block("x0.test"));
    node.accepts(Via::Home(&alice), &again).await;
}

// covers AS-008
#[tokio::test]
async fn a_revoked_client_is_not_served() {
    let node = TestNode::new().await;
    let alice = node.device("alice@a.test").await;
    let laptop = alice.sibling("laptop");
    node.enrol(&alice).await;
    let (queue, _) = (node.queue(&alice).await, node.queue(&laptop).await);
    let fetch = || {
        let request = QsRequest::Fetch(FetchEntries { from: 1, max: 1 });
        content(alice.domain(), Service::Qs(QsMessage { sender: QsSender::Owner(queue.id), request })).sign(&queue.owner)
    };
    node.accepts(Via::Home(&alice), &fetch()).await;
    let gone = alice.accounts_request(revoke("mimi://a.test/d/alice/phone"));
    let answer = node.accepts(Via::Home(&alice), &gone).await;
    node.refuses("AS-008", Via::Home(&alice), &fetch(), ErrorCode::InvalidCredential).await;
    assert_eq!(node.accepts(Via::Home(&alice), &gone).await, answer, "a repeat is answered");
    assert_eq!(node.tables().await.rows("queues").len(), 1, "the laptop's");
    let count = laptop.keys_request(laptop.domain(), KeysRequest::Count);
    node.accepts(Via::Home(&laptop), &count).await;
}

// covers AS-007, QS-034, QS-038
#[tokio::test]
async fn a_deleted_user_is_gone_until_it_is_invited_again() {
    let node = TestNode::new().await;
    let (alice, bob) = (node.device("alice@a.test").await, node.device("bob@b.test").await);
    node.enrol(&alice).await;
    node.queue(&alice).await;
    let package = alice.key_package(Some(&node.invite_config(&alice, false).await)).message();
    let publish = KeysRequest::Publish(PublishKeyPackages { key_packages: vec![package.into()].into(), last_resort: None });
    node.accepts(Via::Home(&alice), &alice.keys_request(alice.domain(), publish)).await;
    let invite = Invite {
        token_hash: hash_token(TOKEN),
        user: alice.uri.user().clone(),
        expires_at: UnixMillis::now().plus(std::time::Duration::from_secs(60)),
    };
    node.service.storage().write(invite).await.expect("written");
    let delete = alice.accounts_request(AccountsRequest::DeleteUser);
    for via in [Via::Home(&alice), Via::Home(&alice), Via::Stranger] {
        assert_eq!(node.accepts(via, &delete).await, Reply::Done, "a repeat is answered, whoever's connection it comes by");
    }
    let tables = node.tables().await;
    for table in ["queues", "key_packages", "users", "invitations", "client_keys"] {
        assert!(tables.rows(table).is_empty(), "{table}");
    }
    let claim = KeysRequest::Claim(ClaimKeyPackages { user: alice.uri.user().to_bytes().into(), ciphersuite: 1 });
    let request = bob.keys_request(alice.domain(), claim.clone());
    node.refuses("QS-034", Via::Home(&bob), &request, ErrorCode::UnknownUser).await;
    let request = alice.keys_request(alice.domain(), claim);
    node.refuses("QS-038", Via::Peer("a.test"), &request, ErrorCode::InvalidCredential).await;
    // The name comes back with another key only.
    node.enrol(&alice).await;
    let hubs = alice.accounts_request(AccountsRequest::Hubs);
    node.refuses("AS-007", Via::Stranger, &hubs, ErrorCode::InvalidCredential).await;
    let other = crate::tests::forged::Device::new(&node.as_roots[node.service.domain()], "alice");
    node.enrol(&other).await;
    node.accepts(Via::Home(&other), &other.accounts_request(AccountsRequest::Hubs)).await;
}
