//! Who may ask what of a queue, and how many queues there are of a client (X3).

use crate::base::ClientUri;
use crate::base::limits::Limits;
use crate::base::rule::{answer, on};
use crate::identity::{ClientIdentity, UserIdentity};
use crate::wire::qs::{CreateQueue, QsRequest, QsSender, RetireGeneration};
use crate::wire::{ClientRequest, ErrorCode, Rejection};

/// Whose a queue is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueOwner {
    /// Ed25519 public key that signs requests about it.
    pub owner_key: Vec<u8>,
    /// Its client.
    pub client: ClientUri,
}

/// Whether this kind of sender may ask this at all.
pub fn check_sender(sender: &QsSender, request: &QsRequest) -> Result<(), Rejection> {
    let fits = match sender {
        QsSender::Client(_) => matches!(request, QsRequest::Create(_)),
        QsSender::Owner(_) => !matches!(request, QsRequest::Create(_)),
        QsSender::User(_) => matches!(request, QsRequest::Delete),
    };
    // QS-026: a queue is made by a client key, deleted by owner or user key, and everything else is by the owner key.
    if fits { Ok(()) } else { Err(answer("QS-026", ErrorCode::NotAuthorized, ErrorCode::Internal).into()) }
}

/// Whether `signer`, whose chain is valid, may have this queue made. `connected`: the client of the connection.
pub fn check_create(
    request: &ClientRequest,
    signer: &ClientIdentity,
    connected: &ClientUri,
    body: &CreateQueue,
) -> Result<(), Rejection> {
    // QS-020: a queue is made by the client that the connection belongs to.
    if on("QS-020") && signer.client != *connected {
        return Err(ErrorCode::NotAuthorized.into());
    }
    if on("QS-020") && !request.is_signed_by(&signer.public_key) {
        return Err(ErrorCode::BadSignature.into());
    }
    // QS-021: its owner key is an Ed25519 key.
    if on("QS-021") && body.owner_key.len() != 32 {
        return Err(ErrorCode::Malformed.into());
    }
    Ok(())
}

/// QS-023: a client has at most so many queues. `there`: those that it has.
pub fn has_room_for_queue(there: u64, limits: &Limits) -> bool {
    !on("QS-023") || there < limits.queues_per_client_max as u64
}

/// Whether the owner of `queue` made this request. `queue`: `None` when there is none of that name. `connected`: the client of
/// the connection.
pub fn check_owner<'a, Q: AsRef<QueueOwner>>(
    request: &ClientRequest,
    queue: Option<&'a Q>,
    connected: &ClientUri,
) -> Result<&'a Q, Rejection> {
    // QS-022: a queue is there, belongs to the client of the connection, and its owner key signed the request.
    let queue = queue.ok_or_else(|| answer("QS-022", ErrorCode::UnknownQueue, ErrorCode::Internal))?;
    let owner = queue.as_ref();
    if on("QS-022") && owner.client != *connected {
        return Err(ErrorCode::UnknownQueue.into());
    }
    if on("QS-022") && !request.is_signed_by(&owner.owner_key) {
        return Err(ErrorCode::BadSignature.into());
    }
    Ok(queue)
}

/// Whether `user`, who is authenticated, may delete `queue`. `None` when there is none of that name.
pub fn check_user<'a>(queue: Option<&'a QueueOwner>, user: &UserIdentity) -> Result<&'a QueueOwner, Rejection> {
    // QS-025: a user deletes queues of its own clients.
    let queue = queue.ok_or_else(|| answer("QS-025", ErrorCode::UnknownQueue, ErrorCode::Internal))?;
    if on("QS-025") && *queue.client.user() != user.user {
        return Err(ErrorCode::UnknownQueue.into());
    }
    Ok(queue)
}

/// Whether a generation may be retired, when queue informations are sealed in `current` now.
pub fn check_retire(current: u32, body: &RetireGeneration) -> Result<(), Rejection> {
    // QS-024 (X3): only generations before the current one are retired; whoever wants the current one gone begins a new one first.
    if on("QS-024") && body.generation >= current {
        return Err(ErrorCode::NotAuthorized.into());
    }
    Ok(())
}

impl AsRef<QueueOwner> for QueueOwner {
    fn as_ref(&self) -> &QueueOwner {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::crypto::SigningKey;
    use crate::base::ids::{QueueId, RequestId};
    use crate::base::{Domain, UnixMillis};
    use crate::wire::qs::{AckEntries, FetchEntries, QsMessage, UserOfQueue};
    use crate::wire::{Content, List, Service};

    fn client(name: &str) -> ClientUri {
        format!("mimi://a.test/d/{name}/phone").parse().expect("a client")
    }

    fn request(key: &SigningKey) -> ClientRequest {
        let domain: Domain = "a.test".parse().expect("a domain");
        let message = QsMessage { sender: QsSender::Owner(QueueId([1; 16])), request: QsRequest::Delete };
        Content::new(&domain, RequestId([1; 16]), UnixMillis(1), Service::Qs(message)).sign(key)
    }

    fn identity(name: &str, key: &SigningKey) -> ClientIdentity {
        ClientIdentity {
            user: client(name).user().clone(),
            client: client(name),
            public_key: key.public().to_vec(),
            user_public_key: vec![0; 32],
            user_key_hash: [0; 32],
            not_after: UnixMillis(u64::MAX),
        }
    }

    // covers QS-020, QS-021
    #[test]
    fn a_queue_is_made_by_the_client_of_the_connection() {
        let (key, other) = (SigningKey::generate().expect("a key"), SigningKey::generate().expect("a key"));
        let alice = identity("alice", &key);
        let body = CreateQueue { owner_key: vec![7; 32].into() };
        let check = |request: &ClientRequest, connected: &str, body: &CreateQueue| {
            check_create(request, &alice, &client(connected), body).map_err(|rejection| rejection.code)
        };
        assert_eq!(check(&request(&key), "alice", &body), Ok(()));
        assert_eq!(check(&request(&key), "anna", &body), Err(ErrorCode::NotAuthorized));
        assert_eq!(check(&request(&other), "alice", &body), Err(ErrorCode::BadSignature));
        for octets in [0, 31, 33] {
            let body = CreateQueue { owner_key: vec![7; octets].into() };
            assert_eq!(check(&request(&key), "alice", &body), Err(ErrorCode::Malformed), "{octets} octets");
        }
    }

    // covers QS-022
    #[test]
    fn a_queue_obeys_its_owner_key_on_its_clients_connection() {
        let (key, other) = (SigningKey::generate().expect("a key"), SigningKey::generate().expect("a key"));
        let queue = QueueOwner { owner_key: key.public().to_vec(), client: client("alice") };
        let check = |request: &ClientRequest, queue: Option<&QueueOwner>, connected: &str| {
            check_owner(request, queue, &client(connected)).map(|_| ()).map_err(|rejection| rejection.code)
        };
        assert_eq!(check(&request(&key), Some(&queue), "alice"), Ok(()));
        assert_eq!(check(&request(&key), None, "alice"), Err(ErrorCode::UnknownQueue));
        assert_eq!(check(&request(&key), Some(&queue), "anna"), Err(ErrorCode::UnknownQueue));
        assert_eq!(check(&request(&other), Some(&queue), "alice"), Err(ErrorCode::BadSignature));
    }

    // covers QS-025
    #[test]
    fn a_user_deletes_queues_of_its_own_clients() {
        let queue = QueueOwner { owner_key: vec![1; 32], client: client("alice") };
        let user = |name: &str| UserIdentity {
            user: client(name).user().clone(),
            public_key: vec![0; 32],
            user_key_hash: [0; 32],
            not_after: UnixMillis(u64::MAX),
        };
        assert!(check_user(Some(&queue), &user("alice")).is_ok());
        let unknown = Err(ErrorCode::UnknownQueue.into());
        assert_eq!(check_user(Some(&queue), &user("anna")), unknown);
        assert_eq!(check_user(None, &user("alice")), unknown);
    }

    // covers QS-023, QS-024
    #[test]
    fn queues_are_few_and_the_current_generation_is_not_retired() {
        let limits = Limits { queues_per_client_max: 2, ..Limits::default() };
        assert_eq!([0, 1, 2, 3].map(|there| has_room_for_queue(there, &limits)), [true, true, false, false]);
        let retired = |generation| check_retire(3, &RetireGeneration { generation }).map_err(|rejection| rejection.code);
        assert_eq!([0, 1, 2].map(retired), [Ok(()); 3]);
        assert_eq!([3, 4, u32::MAX].map(retired), [Err(ErrorCode::NotAuthorized); 3]);
    }

    // covers QS-026
    #[test]
    fn each_request_has_its_kind_of_sender() {
        let (by_client, by_owner) = (QsSender::Client(List::default()), QsSender::Owner(QueueId([1; 16])));
        let by_user = QsSender::User(UserOfQueue { certificates: List::default(), queue_id: QueueId([1; 16]) });
        let create = QsRequest::Create(CreateQueue { owner_key: vec![7; 32].into() });
        let (fetch, ack) = (FetchEntries { from: 1, max: 1 }, AckEntries { up_to: 1 });
        let by_owner_only = [
            QsRequest::Fetch(fetch.clone()),
            QsRequest::Subscribe(fetch),
            QsRequest::Ack(ack),
            QsRequest::NewGeneration,
            QsRequest::RetireGeneration(RetireGeneration { generation: 1 }),
        ];
        let refused = Err(ErrorCode::NotAuthorized.into());
        for request in &by_owner_only {
            assert_eq!(check_sender(&by_owner, request), Ok(()));
            assert_eq!(check_sender(&by_client, request), refused);
            assert_eq!(check_sender(&by_user, request), refused);
        }
        let of_delete = [&by_client, &by_owner, &by_user].map(|sender| check_sender(sender, &QsRequest::Delete).is_ok());
        assert_eq!(of_delete, [false, true, true]);
        assert_eq!([&by_client, &by_owner, &by_user].map(|sender| check_sender(sender, &create).is_ok()), [true, false, false]);
    }
}
