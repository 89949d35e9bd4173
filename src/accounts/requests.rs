//! Requests about accounts: who asks, and what may be asked (S20, X1, X5).

use crate::base::limits::BLOCKS_PER_USER_MAX;
use crate::base::rule::{answer, on};
use crate::base::{ClientUri, Domain, UnixMillis, UserUri};
use crate::identity::chain::validate_user_chain;
use crate::identity::issue::key_of_request;
use crate::identity::{AsRoots, ClientIdentity, RevokedKeys, UserIdentity};
use crate::wire::accounts::{BlockedName, Enrol, RevokeClient};
use crate::wire::{ClientRequest, ErrorCode, List, Opaque, Rejection};

/// The key that `enrol` asks a certificate for. The envelope's signature is checked before anything is looked up: a repeat is
/// answered to the key's holder only.
pub fn check_enrol(request: &ClientRequest, body: &Enrol) -> Result<[u8; 32], Rejection> {
    // AS-002: the certificate request proves possession of its Ed25519 key.
    let public_key = key_of_request(&body.certificate_request)
        .map_err(|_| answer("AS-002", ErrorCode::InvalidCredential, ErrorCode::Internal))?;
    // AS-003: the envelope is signed by that same key.
    if on("AS-003") && !request.is_signed_by(&public_key) {
        return Err(ErrorCode::BadSignature.into());
    }
    Ok(public_key)
}

/// AS-001: the token is of an invitation that is neither used nor expired. `invited`: whom such an invitation is for.
pub fn check_invited(invited: Option<UserUri>) -> Result<UserUri, Rejection> {
    invited.ok_or_else(|| answer("AS-001", ErrorCode::InvalidToken, ErrorCode::Internal).into())
}

/// The user who signed a request. `certificates`: the user certificate; `roots`: of this domain. Whether the account still
/// stands is asked afterwards, see [`check_account`]: a repeat of the request that ended it is answered.
pub fn authenticate(
    request: &ClientRequest,
    certificates: &List<Opaque>,
    roots: &AsRoots,
    now: UnixMillis,
) -> Result<UserIdentity, Rejection> {
    let chain: Vec<Vec<u8>> = certificates.iter().map(|certificate| certificate.to_vec()).collect();
    // AS-004 (S20): the user certificate is this domain's, and valid now.
    let user = validate_user_chain(&chain, roots, now)
        .map_err(|_| answer("AS-004", ErrorCode::InvalidCredential, ErrorCode::Internal))?;
    // AS-005: the request is signed by the key that it certifies.
    if on("AS-005") && !request.is_signed_by(&user.public_key) {
        return Err(ErrorCode::BadSignature.into());
    }
    Ok(user)
}

/// Whether the account of `user` stands. `enrolled_key_hash`: of the certificate that the user is enrolled with.
pub fn check_account(
    user: &UserIdentity,
    enrolled_key_hash: Option<[u8; 32]>,
    revoked: Option<&RevokedKeys>,
) -> Result<(), Rejection> {
    // AS-006 (S20): the user is enrolled with this key.
    if on("AS-006") && enrolled_key_hash != Some(user.user_key_hash) {
        return Err(ErrorCode::InvalidCredential.into());
    }
    // AS-007 (X1): the user's key is not revoked.
    if on("AS-007") && revoked.is_some_and(|revoked| revoked.contains(&user.user_key_hash)) {
        return Err(ErrorCode::InvalidCredential.into());
    }
    Ok(())
}

/// AS-008 (X1): a client whose key or whose user's key is revoked is not served.
pub fn check_client(client: &ClientIdentity, revoked: Option<&RevokedKeys>) -> Result<(), Rejection> {
    if on("AS-008") && revoked.is_some_and(|revoked| revoked.revokes(client)) {
        return Err(ErrorCode::InvalidCredential.into());
    }
    Ok(())
}

/// The client that `user` wants revoked.
pub fn client_to_revoke(user: &UserUri, body: &RevokeClient) -> Result<ClientUri, Rejection> {
    let client = ClientUri::from_bytes(&body.client).map_err(|_| ErrorCode::Malformed)?;
    // AS-009 (X1): a user revokes its own clients.
    if on("AS-009") && client.user() != user {
        return Err(ErrorCode::NotAuthorized.into());
    }
    Ok(client)
}

/// AS-010 (X1): a client that is revoked has shown itself here, and with it the key that is to be revoked. `keys`: of the client.
pub fn check_known_client(keys: usize) -> Result<(), Rejection> {
    if on("AS-010") && keys == 0 { Err(ErrorCode::UnknownUser.into()) } else { Ok(()) }
}

/// The user or domain that is to be blocked, or no longer.
pub fn blocked_name(user: &UserUri, body: &BlockedName) -> Result<String, Rejection> {
    // AS-011 (X5): what is blocked is a user or a domain, and not oneself.
    let refused = || answer("AS-011", ErrorCode::Malformed, ErrorCode::Internal);
    let name = match UserUri::from_bytes(&body.name) {
        Ok(name) if on("AS-011") && name == *user => return Err(refused().into()),
        Ok(name) => name.to_string(),
        Err(_) => Domain::from_bytes(&body.name).map_err(|_| refused())?.to_string(),
    };
    Ok(name)
}

/// AS-012 (X5): a user blocks at most so many. `blocked`: those that it blocks already.
pub fn has_room_for_block(blocked: u64) -> bool {
    !on("AS-012") || blocked < BLOCKS_PER_USER_MAX
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::crypto::SigningKey;
    use crate::base::ids::RequestId;
    use crate::identity::AsRoot;
    use crate::identity::issue::user_csr;
    use crate::identity::revoked::key_hash;
    use crate::mls::testing::TestClient;
    use crate::wire::accounts::{AccountsMessage, AccountsRequest};
    use crate::wire::{Content, Service};

    fn domain(name: &str) -> Domain {
        name.parse().expect("a domain")
    }

    fn user(name: &str) -> UserUri {
        UserUri::new(&domain("a.test"), name).expect("a user")
    }

    fn key() -> SigningKey {
        SigningKey::generate().expect("a key")
    }

    fn signed(request: AccountsRequest, key: &SigningKey) -> ClientRequest {
        let message = AccountsMessage { certificates: List::default(), request };
        Content::new(&domain("a.test"), RequestId([1; 16]), UnixMillis::now(), Service::Accounts(message)).sign(key)
    }

    // covers AS-001, AS-002, AS-003
    #[test]
    fn an_invited_user_proves_possession_of_the_new_key() {
        let (new, other) = (key(), key());
        let enrol =
            Enrol { token: vec![1; 16].into(), certificate_request: user_csr(&new, &user("invited")).expect("a request").into() };
        let check = |enrol: &Enrol, key: &SigningKey| {
            check_enrol(&signed(AccountsRequest::Enrol(enrol.clone()), key), enrol).map_err(|rejection| rejection.code)
        };
        assert_eq!(check(&enrol, &new).expect("accepted").as_slice(), new.public());
        assert_eq!(check(&enrol, &other), Err(ErrorCode::BadSignature));
        let mut spoilt = enrol.certificate_request.to_vec();
        *spoilt.last_mut().expect("octets") ^= 1;
        let spoilt = Enrol { certificate_request: spoilt.into(), ..enrol };
        assert_eq!(check(&spoilt, &new), Err(ErrorCode::InvalidCredential));
        assert_eq!(check_invited(Some(user("alice"))), Ok(user("alice")));
        assert_eq!(check_invited(None), Err(ErrorCode::InvalidToken.into()));
    }

    // covers AS-004, AS-005
    #[test]
    fn a_request_about_an_account_is_signed_by_its_users_key() {
        let now = UnixMillis::now();
        let root = |name: &str| AsRoot::create(&domain(name), now).expect("a root");
        let (a, b) = (root("a.test"), root("b.test"));
        let roots = AsRoots::new(domain("a.test"), vec![a.certificate().to_vec()]).expect("roots");
        let alice = key();
        let certificate = |root: &AsRoot, name: &UserUri| {
            let certificate = root.issue_user(&user_csr(&alice, name).expect("a request"), name, now).expect("a certificate");
            List::from(vec![Opaque::from(certificate)])
        };
        let here = certificate(&a, &user("alice"));
        let elsewhere = certificate(&b, &UserUri::new(&domain("b.test"), "alice").expect("a user"));
        let check = |certificates: &List<Opaque>, key: &SigningKey, now: UnixMillis| {
            authenticate(&signed(AccountsRequest::Hubs, key), certificates, &roots, now).map_err(|rejection| rejection.code)
        };
        assert_eq!(check(&here, &alice, now).expect("accepted").user, user("alice"));
        assert_eq!(check(&here, &key(), now), Err(ErrorCode::BadSignature));
        let invalid = Err(ErrorCode::InvalidCredential);
        assert_eq!(check(&elsewhere, &alice, now), invalid);
        assert_eq!(check(&List::default(), &alice, now), invalid);
        assert_eq!(check(&here, &alice, now.plus(Duration::from_secs(400 * 86_400))), invalid, "expired");
    }

    // covers AS-006, AS-007, AS-008
    #[test]
    fn an_account_stands_as_long_as_its_key_is_the_enrolled_one_and_not_revoked() {
        let now = UnixMillis::now();
        let root = AsRoot::create(&domain("a.test"), now).expect("a root");
        let roots = AsRoots::new(domain("a.test"), vec![root.certificate().to_vec()]).expect("roots");
        let phone = TestClient::new(&root, "alice");
        let alice = validate_user_chain(&phone.chain[1..], &roots, now).expect("valid");
        let enrolled = Some(alice.user_key_hash);
        let check = |enrolled, revoked: Option<&RevokedKeys>| {
            check_account(&alice, enrolled, revoked).map_err(|rejection| rejection.code)
        };
        let revoked = |hash: [u8; 32]| RevokedKeys::new([hash], UnixMillis(u64::MAX));
        let (user_key, other) = (revoked(alice.user_key_hash), revoked([1; 32]));
        assert_eq!(check(enrolled, None), Ok(()));
        assert_eq!(check(enrolled, Some(&other)), Ok(()));
        let invalid = Err(ErrorCode::InvalidCredential);
        assert_eq!(check(enrolled, Some(&user_key)), invalid);
        assert_eq!(check(None, None), invalid, "deleted");
        assert_eq!(check(Some([9; 32]), None), invalid, "enrolled anew with another key");

        let client = crate::identity::chain::validate_client_chain(&phone.chain, &roots, now).expect("valid");
        let client_key = revoked(key_hash(phone.key.public()));
        let check = |revoked: Option<&RevokedKeys>| check_client(&client, revoked).map_err(|rejection| rejection.code);
        assert_eq!([None, Some(&other)].map(check), [Ok(()); 2]);
        assert_eq!([Some(&user_key), Some(&client_key)].map(check), [invalid; 2]);
    }

    // covers AS-009, AS-010
    #[test]
    fn a_user_revokes_its_own_known_clients() {
        let revoke = |client: &str| {
            let body = RevokeClient { client: client.as_bytes().into() };
            client_to_revoke(&user("alice"), &body).map_err(|rejection| rejection.code)
        };
        assert_eq!(revoke("mimi://a.test/d/alice/phone").expect("accepted").device(), "phone");
        assert_eq!(revoke("mimi://a.test/d/anna/phone"), Err(ErrorCode::NotAuthorized));
        assert_eq!(revoke("mimi://b.test/d/alice/phone"), Err(ErrorCode::NotAuthorized));
        assert_eq!(revoke("phone"), Err(ErrorCode::Malformed));
        assert_eq!([0, 1, 2].map(|keys| check_known_client(keys).is_ok()), [false, true, true]);
    }

    // covers AS-011, AS-012
    #[test]
    fn others_are_blocked_and_not_too_many() {
        let block = |name: &str| {
            blocked_name(&user("alice"), &BlockedName { name: name.as_bytes().into() }).map_err(|rejection| rejection.code)
        };
        for name in ["mimi://b.test/u/bob", "mimi://a.test/u/anna", "b.test", "a.test"] {
            assert_eq!(block(name), Ok(name.to_owned()));
        }
        for name in ["mimi://a.test/u/alice", "", "bob", "mimi://b.test/d/bob/phone", "B.test"] {
            assert_eq!(block(name), Err(ErrorCode::Malformed), "{name}");
        }
        assert!(has_room_for_block(BLOCKS_PER_USER_MAX - 1) && !has_room_for_block(BLOCKS_PER_USER_MAX));
    }
}
