//! OpenMLS's storage, with one difference: message secrets are written once per state write, not once per message.
//!
//! OpenMLS writes a group's message secrets, those of past epochs and their members included, after every single message. Only
//! the state write makes any of it durable, so what counts is that they are there by then: [`Storage`] remembers which groups'
//! secrets have changed, and `Core::save` has them written.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use openmls_memory_storage::{MemoryStorage, MemoryStorageError};
use openmls_traits::storage::{CURRENT_VERSION, StorageProvider, traits};

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Storage {
    pub(super) memory: MemoryStorage,
    /// Groups whose message secrets in memory are newer than here, by their encoded ids.
    behind: Mutex<HashSet<Vec<u8>>>,
    /// Whether message secrets are written as they come.
    writing: AtomicBool,
}

impl Storage {
    /// Runs `write` for each group whose message secrets are behind; it must have OpenMLS write them.
    pub(super) fn catch_up<E>(&self, mut write: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let behind = std::mem::take(&mut *self.behind.lock().unwrap_or_else(PoisonError::into_inner));
        self.writing.store(true, Ordering::Relaxed);
        let done = behind.iter().try_for_each(|group| write(group));
        self.writing.store(false, Ordering::Relaxed);
        done
    }

    /// A group's id as [`Storage::catch_up`] names it.
    pub(super) fn name_of(group_id: &impl serde::Serialize) -> Result<Vec<u8>, MemoryStorageError> {
        Ok(serde_json::to_vec(group_id)?)
    }
}

/// Hands everything else on as it is.
macro_rules! hand_on {
    ($(fn $name:ident<$($generic:ident: $bound:ident),*>($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        impl StorageProvider<CURRENT_VERSION> for Storage {
            type Error = MemoryStorageError;

            fn write_message_secrets<
                GroupId: traits::GroupId<CURRENT_VERSION>,
                MessageSecrets: traits::MessageSecrets<CURRENT_VERSION>,
            >(
                &self,
                group_id: &GroupId,
                message_secrets: &MessageSecrets,
            ) -> Result<(), Self::Error> {
                if self.writing.load(Ordering::Relaxed) {
                    return self.memory.write_message_secrets(group_id, message_secrets);
                }
                self.behind.lock().unwrap_or_else(PoisonError::into_inner).insert(Self::name_of(group_id)?);
                Ok(())
            }

            $(
                fn $name<$($generic: traits::$bound<CURRENT_VERSION>),*>(&self, $($argument: $type),*) -> Result<$answer, Self::Error> {
                    self.memory.$name::<$($generic),*>($($argument),*)
                }
            )*
        }
    };
}

hand_on! {
    fn write_mls_join_config<GroupId: GroupId, MlsGroupJoinConfig: MlsGroupJoinConfig>(group_id: &GroupId, config: &MlsGroupJoinConfig) -> ();
    fn append_own_leaf_node<GroupId: GroupId, LeafNode: LeafNode>(group_id: &GroupId, leaf_node: &LeafNode) -> ();
    fn queue_proposal<GroupId: GroupId, ProposalRef: ProposalRef, QueuedProposal: QueuedProposal>(group_id: &GroupId, proposal_ref: &ProposalRef, proposal: &QueuedProposal) -> ();
    fn write_tree<GroupId: GroupId, TreeSync: TreeSync>(group_id: &GroupId, tree: &TreeSync) -> ();
    fn write_interim_transcript_hash<GroupId: GroupId, InterimTranscriptHash: InterimTranscriptHash>(group_id: &GroupId, interim_transcript_hash: &InterimTranscriptHash) -> ();
    fn write_context<GroupId: GroupId, GroupContext: GroupContext>(group_id: &GroupId, group_context: &GroupContext) -> ();
    fn write_confirmation_tag<GroupId: GroupId, ConfirmationTag: ConfirmationTag>(group_id: &GroupId, confirmation_tag: &ConfirmationTag) -> ();
    fn write_group_state<GroupState: GroupState, GroupId: GroupId>(group_id: &GroupId, group_state: &GroupState) -> ();
    fn write_resumption_psk_store<GroupId: GroupId, ResumptionPskStore: ResumptionPskStore>(group_id: &GroupId, resumption_psk_store: &ResumptionPskStore) -> ();
    fn write_own_leaf_index<GroupId: GroupId, LeafNodeIndex: LeafNodeIndex>(group_id: &GroupId, own_leaf_index: &LeafNodeIndex) -> ();
    fn write_group_epoch_secrets<GroupId: GroupId, GroupEpochSecrets: GroupEpochSecrets>(group_id: &GroupId, group_epoch_secrets: &GroupEpochSecrets) -> ();
    fn write_signature_key_pair<SignaturePublicKey: SignaturePublicKey, SignatureKeyPair: SignatureKeyPair>(public_key: &SignaturePublicKey, signature_key_pair: &SignatureKeyPair) -> ();
    fn write_encryption_key_pair<EncryptionKey: EncryptionKey, HpkeKeyPair: HpkeKeyPair>(public_key: &EncryptionKey, key_pair: &HpkeKeyPair) -> ();
    fn write_encryption_epoch_key_pairs<GroupId: GroupId, EpochKey: EpochKey, HpkeKeyPair: HpkeKeyPair>(group_id: &GroupId, epoch: &EpochKey, leaf_index: u32, key_pairs: &[HpkeKeyPair]) -> ();
    fn write_key_package<HashReference: HashReference, KeyPackage: KeyPackage>(hash_ref: &HashReference, key_package: &KeyPackage) -> ();
    fn write_psk<PskId: PskId, PskBundle: PskBundle>(psk_id: &PskId, psk: &PskBundle) -> ();
    fn mls_group_join_config<GroupId: GroupId, MlsGroupJoinConfig: MlsGroupJoinConfig>(group_id: &GroupId) -> Option<MlsGroupJoinConfig>;
    fn own_leaf_nodes<GroupId: GroupId, LeafNode: LeafNode>(group_id: &GroupId) -> Vec<LeafNode>;
    fn queued_proposal_refs<GroupId: GroupId, ProposalRef: ProposalRef>(group_id: &GroupId) -> Vec<ProposalRef>;
    fn queued_proposals<GroupId: GroupId, ProposalRef: ProposalRef, QueuedProposal: QueuedProposal>(group_id: &GroupId) -> Vec<(ProposalRef, QueuedProposal)>;
    fn tree<GroupId: GroupId, TreeSync: TreeSync>(group_id: &GroupId) -> Option<TreeSync>;
    fn group_context<GroupId: GroupId, GroupContext: GroupContext>(group_id: &GroupId) -> Option<GroupContext>;
    fn interim_transcript_hash<GroupId: GroupId, InterimTranscriptHash: InterimTranscriptHash>(group_id: &GroupId) -> Option<InterimTranscriptHash>;
    fn confirmation_tag<GroupId: GroupId, ConfirmationTag: ConfirmationTag>(group_id: &GroupId) -> Option<ConfirmationTag>;
    fn group_state<GroupState: GroupState, GroupId: GroupId>(group_id: &GroupId) -> Option<GroupState>;
    fn message_secrets<GroupId: GroupId, MessageSecrets: MessageSecrets>(group_id: &GroupId) -> Option<MessageSecrets>;
    fn resumption_psk_store<GroupId: GroupId, ResumptionPskStore: ResumptionPskStore>(group_id: &GroupId) -> Option<ResumptionPskStore>;
    fn own_leaf_index<GroupId: GroupId, LeafNodeIndex: LeafNodeIndex>(group_id: &GroupId) -> Option<LeafNodeIndex>;
    fn group_epoch_secrets<GroupId: GroupId, GroupEpochSecrets: GroupEpochSecrets>(group_id: &GroupId) -> Option<GroupEpochSecrets>;
    fn signature_key_pair<SignaturePublicKey: SignaturePublicKey, SignatureKeyPair: SignatureKeyPair>(public_key: &SignaturePublicKey) -> Option<SignatureKeyPair>;
    fn encryption_key_pair<HpkeKeyPair: HpkeKeyPair, EncryptionKey: EncryptionKey>(public_key: &EncryptionKey) -> Option<HpkeKeyPair>;
    fn encryption_epoch_key_pairs<GroupId: GroupId, EpochKey: EpochKey, HpkeKeyPair: HpkeKeyPair>(group_id: &GroupId, epoch: &EpochKey, leaf_index: u32) -> Vec<HpkeKeyPair>;
    fn key_package<KeyPackageRef: HashReference, KeyPackage: KeyPackage>(hash_ref: &KeyPackageRef) -> Option<KeyPackage>;
    fn psk<PskBundle: PskBundle, PskId: PskId>(psk_id: &PskId) -> Option<PskBundle>;
    fn remove_proposal<GroupId: GroupId, ProposalRef: ProposalRef>(group_id: &GroupId, proposal_ref: &ProposalRef) -> ();
    fn delete_own_leaf_nodes<GroupId: GroupId>(group_id: &GroupId) -> ();
    fn delete_group_config<GroupId: GroupId>(group_id: &GroupId) -> ();
    fn delete_tree<GroupId: GroupId>(group_id: &GroupId) -> ();
    fn delete_confirmation_tag<GroupId: GroupId>(group_id: &GroupId) -> ();
    fn delete_group_state<GroupId: GroupId>(group_id: &GroupId) -> ();
    fn delete_context<GroupId: GroupId>(group_id: &GroupId) -> ();
    fn delete_interim_transcript_hash<GroupId: GroupId>(group_id: &GroupId) -> ();
    fn delete_message_secrets<GroupId: GroupId>(group_id: &GroupId) -> ();
    fn delete_all_resumption_psk_secrets<GroupId: GroupId>(group_id: &GroupId) -> ();
    fn delete_own_leaf_index<GroupId: GroupId>(group_id: &GroupId) -> ();
    fn delete_group_epoch_secrets<GroupId: GroupId>(group_id: &GroupId) -> ();
    fn clear_proposal_queue<GroupId: GroupId, ProposalRef: ProposalRef>(group_id: &GroupId) -> ();
    fn delete_signature_key_pair<SignaturePublicKey: SignaturePublicKey>(public_key: &SignaturePublicKey) -> ();
    fn delete_encryption_key_pair<EncryptionKey: EncryptionKey>(public_key: &EncryptionKey) -> ();
    fn delete_encryption_epoch_key_pairs<GroupId: GroupId, EpochKey: EpochKey>(group_id: &GroupId, epoch: &EpochKey, leaf_index: u32) -> ();
    fn delete_key_package<KeyPackageRef: HashReference>(hash_ref: &KeyPackageRef) -> ();
    fn delete_psk<PskKey: PskId>(psk_id: &PskKey) -> ();
}
