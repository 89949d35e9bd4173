//! Requests to a Delivery Service (S2–S9): the draft's DSMessage and the eighteen request types.

use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::codec::{List, Opaque};

/// `DSSenderID` of the draft (S2): which key signed the request.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum DsSenderId {
    /// A member's leaf: the leaf's signature key.
    #[tls_codec(discriminant = 0)]
    LeafIndex(u32),
    /// A KeyPackageRef (RFC 9420 §5.2): the KeyPackage's leaf key.
    KeyPackageRef(Opaque),
    /// SHA-256 of the user certificate's SubjectPublicKeyInfo: the user key.
    UserKeyHash(Opaque),
}

/// `DSMessage` of the draft without its signature, which the envelope carries (S3).
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct DsMessage {
    /// Who asks.
    pub sender_id: DsSenderId,
    /// With `user_key_hash`: the user's certificate (DER) in a list of one. Else empty.
    pub certificates: List<Opaque>,
    /// What is asked.
    pub request: DsRequest,
}

/// `DSRequest`, with the type's number as its first octet (S4).
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum DsRequest {
    /// S5.
    #[tls_codec(discriminant = 0)]
    CreateGroup(CreateGroup),
    /// S7.
    DeleteGroup(GroupCommit),
    /// S8.
    UpdateQueueInfo(UpdateQueueInfo),
    /// The past state that a Welcome joiner needs (S11).
    WelcomeInfo(WelcomeInfo),
    /// The current GroupInfo and tree, for an external commit.
    ExternalCommitInfo(GroupOnly),
    /// Adds of users who are not members yet.
    AddUsers(GroupAdd),
    /// Removes of all leaves of users.
    RemoveUsers(GroupCommit),
    /// Adds of further clients of member users.
    AddClients(GroupAdd),
    /// Removes of clients whose users stay.
    RemoveClients(GroupCommit),
    /// A path and nothing by value.
    UpdateClient(GroupCommit),
    /// External commit of a new user.
    JoinGroup(GroupJoin),
    /// External commit of a further client of a member user.
    JoinClient(GroupJoin),
    /// External commit that replaces the sender's own leaf (R4).
    ResyncClient(GroupJoin),
    /// Standalone proposals.
    Propose(Propose),
    /// Asks the DS to issue Removes of the sender's user, or declines an invitation.
    LeaveGroup(GroupOnly),
    /// An application message (R1, R2).
    SendMessage(SendMessage),
    /// A GroupContextExtensions commit.
    UpdateGroup(GroupCommit),
    /// The groups of this hub that the user is in (X6).
    ListGroups,
}

impl DsRequest {
    /// The group the request is about; `None` for `list_groups`.
    pub fn group_id(&self) -> Option<&[u8]> {
        Some(match self {
            Self::CreateGroup(body) => &body.group_id,
            Self::DeleteGroup(body) | Self::RemoveUsers(body) | Self::RemoveClients(body) => &body.group_id,
            Self::UpdateClient(body) | Self::UpdateGroup(body) => &body.group_id,
            Self::UpdateQueueInfo(body) => &body.group_id,
            Self::WelcomeInfo(body) => &body.group_id,
            Self::ExternalCommitInfo(body) | Self::LeaveGroup(body) => &body.group_id,
            Self::AddUsers(body) | Self::AddClients(body) => &body.group_id,
            Self::JoinGroup(body) | Self::JoinClient(body) | Self::ResyncClient(body) => &body.group_id,
            Self::Propose(body) => &body.group_id,
            Self::SendMessage(body) => &body.group_id,
            Self::ListGroups => return None,
        })
    }
}

/// Where a client's messages go (S15): the domain of its QS, and octets that only that QS can open.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ClientQueueConfig {
    /// The QS's domain; must be the domain of the leaf's credential.
    pub qs_domain: Opaque,
    /// HPKE-sealed [`super::qs::QueueInformation`].
    pub client_queue_information: Opaque,
}

/// `CreateGroupRequest` (S5). The new group has epoch 0 and one member.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct CreateGroup {
    /// The group's URI, which is its MLS group id.
    pub group_id: Opaque,
    /// MLSMessage with the creator's KeyPackage.
    pub key_package: Opaque,
    /// The creator's queue.
    pub client_queue_config: ClientQueueConfig,
    /// MLSMessage with the GroupInfo, ratchet_tree extension included.
    pub group_info: Opaque,
}

/// A Commit with the GroupInfo of the epoch it begins (S11, R5).
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct GroupUpdate {
    /// MLSMessage with the Commit as PublicMessage (R1).
    pub commit: Opaque,
    /// MLSMessage with the new GroupInfo, without ratchet_tree.
    pub group_info: Opaque,
}

/// A Commit of a member, as several request types carry it.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct GroupCommit {
    /// The group.
    pub group_id: Opaque,
    /// Commit and GroupInfo.
    pub group_update: GroupUpdate,
}

/// A Commit with Adds, and the Welcomes for those added (R6).
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct GroupAdd {
    /// The group.
    pub group_id: Opaque,
    /// Commit and GroupInfo.
    pub group_update: GroupUpdate,
    /// MLSMessages with Welcomes; together they name exactly the KeyPackages that the Commit adds.
    pub welcomes: List<Opaque>,
}

/// An external Commit, and the queue of the leaf it brings.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct GroupJoin {
    /// The group.
    pub group_id: Opaque,
    /// Commit and GroupInfo.
    pub group_update: GroupUpdate,
    /// The joiner's queue.
    pub client_queue_config: ClientQueueConfig,
}

/// Requests about a group with nothing else to say.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct GroupOnly {
    /// The group.
    pub group_id: Opaque,
}

/// `update_queue_info` (S8), for the sender's own leaf.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct UpdateQueueInfo {
    /// The group.
    pub group_id: Opaque,
    /// The leaf's new queue.
    pub client_queue_config: ClientQueueConfig,
}

/// `welcome_info`: the tree of the epoch that the sender's Welcome begins.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct WelcomeInfo {
    /// The group.
    pub group_id: Opaque,
    /// The epoch that came beside the Welcome.
    pub epoch: u64,
}

/// `propose`: standalone proposals of a member.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct Propose {
    /// The group.
    pub group_id: Opaque,
    /// MLSMessages with proposals as PublicMessages.
    pub proposals: List<Opaque>,
}

/// `send_message`: an application message.
#[derive(Clone, Debug, PartialEq, Eq, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct SendMessage {
    /// The group.
    pub group_id: Opaque,
    /// MLSMessage with a PrivateMessage of content type application (R1).
    pub message: Opaque,
}
