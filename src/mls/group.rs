//! The public state of one group: its ratchet tree and context, and the Commits that change them (S10, S11).

use std::collections::{BTreeMap, BTreeSet};

use openmls::group::PublicGroup;
use openmls::messages::group_info::VerifiableGroupInfo;
use openmls::prelude::{
    ConfirmationTag, GroupId, LeafNodeIndex, MlsMessageBodyIn, OpenMlsSignaturePublicKey, ProcessedMessageContent, Proposal,
    ProposalOrRefType, ProposalStore, ProtocolMessage, Sender, SignaturePublicKey, StagedCommit,
};
use tls_codec::Serialize as _;

use super::credential::LeafClaim;
use super::external_sender::context_names;
use super::key_package::{ValidKeyPackage, capabilities_are_interoperable, examine};
use super::message::{FramedCommit, read};
use super::provider::{GroupStore, VerifyOnly};
use crate::base::fault::{Context as _, Fault};
use crate::wire::{ErrorCode, Rejection};

/// The format of snapshots and log records; postcard does not describe itself, so every record begins with this octet.
const RECORD_FORMAT: u8 = 1;

/// The public state of one group in one epoch.
pub struct Tree {
    group: PublicGroup,
    /// The octets of the records that it was made of; see [`Tree::octets`].
    record_octets: usize,
}

/// A Commit that fits the group and its GroupInfo, not yet merged.
pub struct StagedUpdate {
    staged: StagedCommit,
    /// The staged Commit as a log record: serialised *before* merging, which consumes it.
    pub record: Vec<u8>,
    /// What it does to the leaves.
    pub changes: Changes,
    /// The epoch that it begins.
    pub epoch: u64,
}

/// What a Commit does to the leaves of the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Leaves brought by Adds, with the index where each will land.
    pub added: Vec<(u32, ValidKeyPackage)>,
    /// Leaves removed.
    pub removed: BTreeSet<u32>,
    /// New leaf nodes of leaves that stay, by path or Update.
    pub updated: BTreeMap<u32, LeafClaim>,
    /// Whether the Commit has a path.
    pub has_path: bool,
    /// Proposals that the Commit carries by value.
    pub by_value: usize,
    /// The proposals are Adds, Removes and Updates only.
    pub only_membership: bool,
}

/// A group that was just created.
pub struct NewTree {
    /// Its state.
    pub tree: Tree,
    /// Its only leaf.
    pub leaf: LeafClaim,
    /// The state as a record.
    pub snapshot: Vec<u8>,
}

impl Tree {
    /// Imports a new group from its GroupInfo with ratchet_tree extension (S5, S6): epoch 0, one leaf. Returns the group and its
    /// only leaf with its first snapshot. OpenMLS verifies the tree, the leaf and the GroupInfo's signature.
    pub fn create(group_id: &[u8], group_info: &[u8], external_sender: &[u8]) -> Result<NewTree, Rejection> {
        let refused = || Rejection::from(ErrorCode::InvalidGroupInfo);
        let info = read_group_info(group_info)?;
        if info.group_id().as_slice() != group_id
            || info.epoch().as_u64() != 0
            || u16::from(info.ciphersuite()) != super::CIPHERSUITE
            || info.extensions().external_pub().is_none()
        {
            return Err(refused());
        }
        let tree = info.extensions().ratchet_tree().ok_or_else(refused)?.ratchet_tree().clone();
        let store = GroupStore::recording();
        let (group, _) =
            PublicGroup::from_external(&VerifyOnly, &store, tree, info, ProposalStore::new()).map_err(|_| refused())?;
        // The DS must be able to propose Removes from the first epoch on (S12).
        if !context_names(group.group_context(), external_sender) {
            return Err(refused());
        }
        let leaf = match group.treesync().full_leaves().collect::<Vec<_>>()[..] {
            [(index, leaf)] if index.u32() == 0 => {
                // DS-046 (R3): capabilities list no default type. The KeyPackage beside it has capabilities of its own.
                if !capabilities_are_interoperable(leaf.capabilities()) {
                    return Err(refused());
                }
                LeafClaim::of(leaf)?
            }
            _ => return Err(refused()),
        };
        let snapshot = snapshot(&store).map_err(|_| Rejection::from(ErrorCode::Internal))?;
        Ok(NewTree { tree: Self { group, record_octets: snapshot.len() }, leaf, snapshot })
    }

    /// The epoch of this state.
    pub fn epoch(&self) -> u64 {
        self.group.group_context().epoch().as_u64()
    }

    /// The encoded RFC 9420 ratchet_tree.
    pub fn ratchet_tree(&self) -> Result<Vec<u8>, Fault> {
        self.group.export_ratchet_tree().tls_serialize_detached().context("could not encode a ratchet tree")
    }

    /// About how much memory the tree takes, in octets: twice its records, as `benches/` measures it. Costs nothing to ask.
    pub fn octets(&self) -> usize {
        2 * self.record_octets
    }

    /// How many leaves are not blank.
    pub fn leaf_count(&self) -> usize {
        self.group.treesync().full_leaves().count()
    }

    /// The indices of the leaves that are not blank.
    pub fn leaf_indices(&self) -> Vec<u32> {
        self.group.treesync().full_leaves().map(|(index, _)| index.u32()).collect()
    }

    /// Validates a member's Commit and the GroupInfo of the epoch it begins (R3, R5, S13). Nothing changes yet.
    ///
    /// `external_sender`: the DS's own encoded entry, which must stay in the context.
    pub fn stage(&self, commit: FramedCommit, group_info: &[u8], external_sender: &[u8]) -> Result<StagedUpdate, Rejection> {
        let refused = || Rejection::from(ErrorCode::InvalidCommit);
        // DS-042 (R3): a valid Commit of this group and epoch, as far as a server can see: framing, signature, proposals, path.
        let tag = commit.message.confirmation_tag().cloned().ok_or_else(refused)?;
        let processed = self.group.process_message(&VerifyOnly, ProtocolMessage::from(commit.message)).map_err(|_| refused())?;
        let sender = processed.sender().clone();
        let ProcessedMessageContent::StagedCommitMessage(staged) = processed.into_content() else { return Err(refused()) };
        let changes = self.changes(&sender, &staged)?;
        self.check_signature_keys(&changes)?;
        // DS-044 (S12): the DS stays among the external_senders.
        if !context_names(staged.group_context(), external_sender) {
            return Err(refused());
        }
        self.check_group_info(&sender, &staged, tag, group_info)?;
        let mut record = vec![RECORD_FORMAT];
        record.extend(postcard::to_stdvec(&*staged).map_err(|_| Rejection::from(ErrorCode::Internal))?);
        Ok(StagedUpdate { epoch: staged.group_context().epoch().as_u64(), record, changes, staged: *staged })
    }

    /// Merges a staged Commit. Only after its record is on disk: memory must never run ahead. Returns a snapshot of the new
    /// state when `with_snapshot` asks for one; OpenMLS writes a group out only while it merges.
    pub fn merge(&mut self, update: StagedUpdate, with_snapshot: bool) -> Result<Option<Vec<u8>>, Fault> {
        let store = if with_snapshot { GroupStore::recording() } else { GroupStore::null() };
        self.group.merge_commit(&store, update.staged).context("could not merge a validated Commit")?;
        // Where added leaves land is predicted, not told by OpenMLS: a wrong prediction would misdeliver from here on.
        for (index, key_package) in &update.changes.added {
            let landed = self.group.leaf(LeafNodeIndex::new(*index)).map(|leaf| leaf.signature_key().as_slice());
            if landed != Some(&key_package.claim.signature_key) {
                return Err(Fault::new(format!("an added leaf did not land at index {index} as predicted")));
            }
        }
        if with_snapshot {
            let snapshot = snapshot(&store)?;
            self.record_octets = snapshot.len();
            return Ok(Some(snapshot));
        }
        self.record_octets += update.record.len();
        Ok(None)
    }

    /// Rebuilds the state from a snapshot and the log records that follow it. No signature is checked: what was written was valid.
    pub fn restore<'a>(group_id: &[u8], snapshot: &[u8], records: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, Fault> {
        let store = GroupStore::from_snapshot(strip_format(snapshot)?).context("a group's snapshot cannot be read")?;
        let mut group = PublicGroup::load(&store, &GroupId::from_slice(group_id))
            .context("a group's snapshot cannot be loaded")?
            .context("a group's snapshot is not complete")?;
        let mut record_octets = snapshot.len();
        for record in records {
            record_octets += record.len();
            let staged: StagedCommit =
                postcard::from_bytes(strip_format(record)?).context("a group's log record cannot be read")?;
            group.merge_commit(&GroupStore::null(), staged).context("a group's log record cannot be merged")?;
        }
        Ok(Self { group, record_octets })
    }

    /// What the Commit does to the leaves, and where Adds will land: RFC 9420 §12.4.2 applies Removes, then each Add takes the
    /// leftmost blank leaf, or a new one at the right.
    fn changes(&self, sender: &Sender, staged: &StagedCommit) -> Result<Changes, Rejection> {
        let refused = || Rejection::from(ErrorCode::InvalidCommit);
        let mut changes = Changes { only_membership: true, ..Changes::default() };
        let mut joins = Vec::new();
        for queued in staged.queued_proposals() {
            if queued.proposal_or_ref_type() == ProposalOrRefType::Proposal {
                changes.by_value += 1;
            }
            match (queued.proposal(), queued.sender()) {
                (Proposal::Add(add), _) => joins.push(examine(add.key_package())?),
                (Proposal::Remove(remove), _) => {
                    changes.removed.insert(remove.removed().u32());
                }
                (Proposal::Update(update), Sender::Member(index)) => {
                    changes.updated.insert(index.u32(), examine_leaf(update.leaf_node())?);
                }
                _ => changes.only_membership = false,
            }
        }
        if let Some(leaf) = staged.update_path_leaf_node() {
            changes.has_path = true;
            // External Commits are a later part; the sender of every Commit here is a member.
            let Sender::Member(index) = sender else { return Err(refused()) };
            changes.updated.insert(index.u32(), examine_leaf(leaf)?);
        }
        let mut free: BTreeSet<u32> = self.group.treesync().blank_leaves().map(|index| index.u32()).collect();
        free.extend(&changes.removed);
        let mut end = u32::try_from(self.group.treesync().leaves().len()).map_err(|_| refused())?;
        for join in joins {
            let index = free.pop_first().unwrap_or_else(|| {
                end += 1;
                end - 1
            });
            changes.added.push((index, join));
        }
        Ok(changes)
    }

    /// DS-043 (R3): a signature key stands in the tree once (RFC 9420 §7.3). OpenMLS checks Adds only; a key brought by a path or Update
    /// would pass, and the group could never be imported again.
    fn check_signature_keys(&self, changes: &Changes) -> Result<(), Rejection> {
        let mut keys: BTreeSet<&[u8]> = BTreeSet::new();
        let staying = self
            .group
            .treesync()
            .full_leaves()
            .filter(|(index, _)| !changes.removed.contains(&index.u32()) && !changes.updated.contains_key(&index.u32()));
        let unchanged = staying.map(|(_, leaf)| leaf.signature_key().as_slice());
        let updated = changes.updated.values().map(|claim| claim.signature_key.as_slice());
        let added = changes.added.iter().map(|(_, key_package)| key_package.claim.signature_key.as_slice());
        for key in unchanged.chain(updated).chain(added) {
            if !keys.insert(key) {
                return Err(ErrorCode::InvalidCommit.into());
            }
        }
        Ok(())
    }

    /// DS-045 (R5): the GroupInfo has exactly the staged context, the Commit's confirmation tag and an external_pub, and is signed by the
    /// committer's key after the Commit.
    fn check_group_info(
        &self,
        sender: &Sender,
        staged: &StagedCommit,
        tag: ConfirmationTag,
        group_info: &[u8],
    ) -> Result<(), Rejection> {
        let refused = || Rejection::from(ErrorCode::InvalidGroupInfo);
        let Sender::Member(index) = sender else { return Err(refused()) };
        let info = read_group_info(group_info)?;
        let extensions = info.extensions().clone();
        if info.group_context() != staged.group_context()
            || extensions.external_pub().is_none()
            // The tree is ours to give, and would have to be verified against the context.
            || extensions.ratchet_tree().is_some()
        {
            return Err(refused());
        }
        let key: SignaturePublicKey = match staged.update_path_leaf_node() {
            Some(leaf) => leaf.signature_key().clone(),
            None => self.group.leaf(*index).ok_or_else(refused)?.signature_key().clone(),
        };
        let key = OpenMlsSignaturePublicKey::from_signature_key(key, self.group.ciphersuite().signature_algorithm());
        let octets = info.tls_serialize_detached().map_err(|_| refused())?;
        let verified = verify(info, &key).ok_or_else(refused)?;
        // Signer index and confirmation tag have no getters: rebuild the GroupInfo from what we know, and compare octets.
        let rebuilt = VerifiableGroupInfo::new(staged.group_context().clone(), extensions, tag, *index, verified);
        if rebuilt.tls_serialize_detached().map_err(|_| refused())? != octets {
            return Err(refused());
        }
        Ok(())
    }
}

fn verify(info: VerifiableGroupInfo, key: &OpenMlsSignaturePublicKey) -> Option<openmls::ciphersuite::signature::Signature> {
    use openmls::messages::group_info::GroupInfo;
    use openmls::prelude::Verifiable as _;
    let info: GroupInfo = info.verify(&VerifyOnly, key).ok()?;
    Some(info.signature().clone())
}

fn examine_leaf(leaf: &openmls::prelude::LeafNode) -> Result<LeafClaim, Rejection> {
    // DS-046 (R3): capabilities list no default type.
    if !capabilities_are_interoperable(leaf.capabilities()) {
        return Err(ErrorCode::InvalidCommit.into());
    }
    LeafClaim::of(leaf)
}

fn read_group_info(octets: &[u8]) -> Result<VerifiableGroupInfo, Rejection> {
    match read(octets, ErrorCode::InvalidGroupInfo)? {
        MlsMessageBodyIn::GroupInfo(info) => Ok(info),
        _ => Err(ErrorCode::InvalidGroupInfo.into()),
    }
}

fn snapshot(store: &GroupStore) -> Result<Vec<u8>, Fault> {
    let mut record = vec![RECORD_FORMAT];
    record.extend(store.to_snapshot().context("could not encode a group's snapshot")?);
    Ok(record)
}

fn strip_format(record: &[u8]) -> Result<&[u8], Fault> {
    match record.split_first() {
        Some((&RECORD_FORMAT, rest)) => Ok(rest),
        Some((format, _)) => Err(Fault::new(format!(
            "a group record has format {format}, this version reads format {RECORD_FORMAT}: run the version that wrote it"
        ))),
        None => Err(Fault::new("a group record is empty")),
    }
}
