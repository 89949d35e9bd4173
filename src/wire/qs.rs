//! Requests to a Queueing Service, what its queues hold, and the sealed queue information (S14, X3, X4).

use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::codec::{List, Opaque};
use super::receipt::Receipt;
use crate::base::ids::{InviteId, QueueId};

/// Which key signed a queue request.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum QsSender {
    /// The client key; its chain (client, user; DER). For `create`.
    #[tls_codec(discriminant = 0)]
    Client(List<Opaque>),
    /// The queue's owner key.
    Owner(QueueId),
    /// The user key; its certificate (DER) in a list of one, and the queue. For `delete`.
    User(UserOfQueue),
}

/// A user that acts on one of its clients' queues.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct UserOfQueue {
    /// The user's certificate (DER) in a list of one.
    pub certificates: List<Opaque>,
    /// The queue.
    pub queue_id: QueueId,
}

/// A request to a client's own QS.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct QsMessage {
    /// Who asks.
    pub sender: QsSender,
    /// What is asked.
    pub request: QsRequest,
}

/// The operations on a queue.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum QsRequest {
    /// A new queue; the owner key (Ed25519, 32 octets) signs every later request.
    #[tls_codec(discriminant = 0)]
    Create(CreateQueue),
    /// Entries from a sequence on.
    Fetch(FetchEntries),
    /// As fetch; the stream stays open and entries are pushed as they arrive.
    Subscribe(FetchEntries),
    /// Entries up to and including a sequence are no longer needed.
    Ack(AckEntries),
    /// The queue and all it holds go away.
    Delete,
    /// A new generation for queue informations sealed from now on (X3).
    NewGeneration,
    /// Queue informations of that generation and older stop working (X3).
    RetireGeneration(RetireGeneration),
}

/// `create`.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct CreateQueue {
    /// Ed25519 public key.
    pub owner_key: Opaque,
}

/// `fetch` and `subscribe`.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct FetchEntries {
    /// The first sequence wanted; sequences begin at 1.
    pub from: u64,
    /// The most entries in one answer; the node may send fewer.
    pub max: u32,
}

/// `ack`.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct AckEntries {
    /// The last sequence that the client holds durably.
    pub up_to: u64,
}

/// `retire_generation`.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct RetireGeneration {
    /// The newest generation that stops working.
    pub generation: u32,
}

/// One entry of a queue.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct QueueEntry {
    /// 1, 2, 3, … without gaps in each queue.
    pub sequence: u64,
    /// When the QS took it, in milliseconds since 1970.
    pub arrived_at_ms: u64,
    /// The authenticated hub it came from.
    pub hub: Opaque,
    /// The group.
    pub group_id: Opaque,
    /// A Commit's or Welcome's new epoch; else the epoch of the message.
    pub epoch: u64,
    /// What happened.
    pub delivery: Delivery,
}

/// What a Delivery Service hands to a Queueing Service, and the QS to the client.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum Delivery {
    /// An MLSMessage, byte for byte as its sender sent it (R9).
    #[tls_codec(discriminant = 0)]
    Message(DeliveredMessage),
    /// Messages of the group were dropped; the client resyncs (X4).
    MessagesLost,
    /// First frame of a lane's new incarnation: what the old one had not delivered is lost (X8).
    Reset,
}

/// `Delivery::Message`.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct DeliveredMessage {
    /// The MLSMessage.
    pub message: Opaque,
    /// With every Commit: the hub's receipt for it (X9).
    pub receipt: Option<Receipt>,
}

/// `QueueingServiceResponse` of the draft (S14).
#[derive(Clone, Copy, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum QueueingServiceResponse {
    /// The message is in the queue, durably.
    Ok = 0,
    /// The QS cannot or will not deliver by this queue information.
    InvalidClientQueueInformation = 1,
}

/// What a client seals to its QS: the DS only ever sees the sealed octets.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct QueueInformation {
    /// The queue.
    pub queue_id: QueueId,
    /// The queue's generation when it was sealed (X3).
    pub generation: u32,
    /// Who may use it.
    pub binding: QueueBinding,
}

/// To whom a queue information is bound (X3).
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum QueueBinding {
    /// The authenticated domain of the hub.
    #[tls_codec(discriminant = 0)]
    Hub(Opaque),
    /// The first authenticated {hub, group} that uses it: in a KeyPackage the hub is not known yet.
    Invite(Invite),
}

/// `QueueBinding::Invite`.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct Invite {
    /// Names the invitation.
    pub invite_id: InviteId,
    /// 1 for a last-resort KeyPackage, which several groups may use; else 0.
    pub last_resort: u8,
    /// The KeyPackage's end of life, in milliseconds since 1970.
    pub expires_at_ms: u64,
}

/// `client_queue_information`: HPKE base mode to one of the QS's keys, info `MIMI queue info`.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct SealedQueueInformation {
    /// Which of the QS's keys ([`super::info::QsKey`]).
    pub key_id: u8,
    /// HPKE `enc`.
    pub kem_output: Opaque,
    /// HPKE ciphertext of a [`QueueInformation`].
    pub ciphertext: Opaque,
}
