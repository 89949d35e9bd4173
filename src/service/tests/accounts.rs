//! Accounts: who is not enrolled.

use crate::accounts::hash_token;
use crate::base::crypto::SigningKey;
use crate::base::{Domain, UnixMillis, UserUri};
use crate::identity::issue::user_csr;
use crate::service::testing::{TestNode, Via};
use crate::storage::accounts::Invite;
use crate::tests::forged::content;
use crate::wire::accounts::{AccountsMessage, AccountsRequest, Enrol};
use crate::wire::{ClientRequest, ErrorCode, List, Service};

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
