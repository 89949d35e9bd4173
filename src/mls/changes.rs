//! What a Commit does to the leaves of a tree, and where those that are new will land.

use std::collections::{BTreeMap, BTreeSet};

use openmls::group::PublicGroup;
use openmls::prelude::{LeafNode, LeafNodeIndex, Proposal, ProposalOrRefType, Sender, StagedCommit};
use openmls::treesync::LeafNodeSource;
use tls_codec::Size as _;

use super::credential::LeafClaim;
use super::key_package::{ValidKeyPackage, capabilities_are_interoperable, examine};
use super::policy::{ContextFacts, ContextRules, check_required, examine_context};
use crate::base::rule::on;
use crate::wire::{ErrorCode, Rejection};

/// What a Commit does to the leaves of the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Leaves brought by Adds, with the index where each will land.
    pub added: Vec<(u32, ValidKeyPackage)>,
    /// Leaves removed, by whichever proposal.
    pub removed: BTreeSet<u32>,
    /// Those of them that the Commit removes by value.
    pub removed_by_value: BTreeSet<u32>,
    /// Those of them that the Commit removes because the DS proposed it.
    pub removed_by_ds: BTreeSet<u32>,
    /// New leaf nodes of leaves that stay, by path or Update.
    pub updated: BTreeMap<u32, LeafClaim>,
    /// Those of them whose credential and signature key are the ones of the leaf before, itself not out of a KeyPackage: nothing
    /// about who they are is new.
    pub same_identity: BTreeSet<u32>,
    /// The leaf that an external Commit brings, with the index where it will land.
    pub joined: Option<(u32, LeafClaim)>,
    /// Whether the Commit has a path.
    pub has_path: bool,
    /// Proposals that the Commit carries by value.
    pub by_value: usize,
    /// How many of the proposals are ExternalInits.
    pub external_inits: usize,
    /// What the new GroupContext says, if the Commit replaces its extensions.
    pub context: Option<ContextFacts>,
    /// The octets of the leaf nodes that are new, and of those that they replace or that are gone.
    pub(super) leaf_octets: (usize, usize),
    /// Proposals of any other type than Add, Remove, Update, ExternalInit and GroupContextExtensions, or from where they may not
    /// come.
    pub others: usize,
}

impl Changes {
    /// Reads them from a staged Commit.
    pub(super) fn of(
        group: &PublicGroup,
        sender: &Sender,
        staged: &StagedCommit,
        rules: ContextRules<'_>,
    ) -> Result<Self, Rejection> {
        let refused = || Rejection::from(ErrorCode::InvalidCommit);
        let mut changes = Self::default();
        let mut joins = Vec::new();
        let mut replaces_context = false;
        for queued in staged.queued_proposals() {
            let by_value = queued.proposal_or_ref_type() == ProposalOrRefType::Proposal;
            changes.by_value += usize::from(by_value);
            match (queued.proposal(), queued.sender()) {
                (Proposal::Add(add), _) if by_value => {
                    changes.leaf_octets.0 += add.key_package().leaf_node().tls_serialized_len();
                    joins.push(examine(add.key_package())?);
                }
                (Proposal::Remove(remove), _) if by_value => {
                    changes.removed_by_value.insert(remove.removed().u32());
                }
                (Proposal::Remove(remove), Sender::External(_)) => {
                    changes.removed_by_ds.insert(remove.removed().u32());
                }
                (Proposal::Update(update), Sender::Member(index)) => {
                    changes.update(group, *index, update.leaf_node())?;
                }
                (Proposal::ExternalInit(_), Sender::NewMemberCommit) => changes.external_inits += 1,
                (Proposal::GroupContextExtensions(_), _) if by_value => replaces_context = true,
                _ => changes.others += 1,
            }
        }
        changes.removed = changes.removed_by_value.union(&changes.removed_by_ds).copied().collect();
        let path_leaf = staged.update_path_leaf_node();
        changes.has_path = path_leaf.is_some();
        let joining = match (path_leaf, sender) {
            (Some(leaf), Sender::Member(index)) => {
                changes.update(group, *index, leaf)?;
                None
            }
            (Some(leaf), _) => {
                changes.leaf_octets.0 += leaf.tls_serialized_len();
                Some(examine_leaf(leaf, ErrorCode::InvalidCommit)?)
            }
            (None, _) => None,
        };
        let replaced =
            changes.removed.iter().chain(changes.updated.keys()).filter_map(|index| group.leaf(LeafNodeIndex::new(*index)));
        changes.leaf_octets.1 = replaced.map(|leaf| leaf.tls_serialized_len()).sum();
        changes.place(group, joining, joins).ok_or_else(refused)?;
        if replaces_context {
            let staying = group.treesync().full_leaves().filter(|(index, _)| !changes.removed.contains(&index.u32()));
            check_required(staged.group_context(), staying.map(|(_, leaf)| leaf))?;
            changes.context = Some(examine_context(staged.group_context(), rules, ErrorCode::InvalidCommit)?);
        }
        Ok(changes)
    }

    fn update(&mut self, group: &PublicGroup, index: LeafNodeIndex, leaf: &LeafNode) -> Result<(), Rejection> {
        self.leaf_octets.0 += leaf.tls_serialized_len();
        self.updated.insert(index.u32(), examine_leaf(leaf, ErrorCode::InvalidCommit)?);
        let is_same = |old: &LeafNode| {
            old.credential() == leaf.credential()
                && old.signature_key() == leaf.signature_key()
                && !matches!(old.leaf_node_source(), LeafNodeSource::KeyPackage(_))
        };
        if group.leaf(index).is_some_and(is_same) {
            self.same_identity.insert(index.u32());
        }
        Ok(())
    }

    /// Where new leaves will land: RFC 9420 §12.4.2 applies Removes, then each Add takes the leftmost blank leaf, or a new one at
    /// the right. A new member's own leaf is placed like an Add.
    fn place(&mut self, group: &PublicGroup, joining: Option<LeafClaim>, joins: Vec<ValidKeyPackage>) -> Option<()> {
        if joining.is_none() && joins.is_empty() {
            return Some(());
        }
        let mut free: BTreeSet<u32> = group.treesync().blank_leaves().map(|index| index.u32()).collect();
        free.extend(&self.removed);
        let mut end = u32::try_from(group.treesync().leaves().len()).ok()?;
        let mut next = || {
            free.pop_first().unwrap_or_else(|| {
                end += 1;
                end - 1
            })
        };
        self.joined = joining.map(|claim| (next(), claim));
        self.added = joins.into_iter().map(|join| (next(), join)).collect();
        Some(())
    }

    /// DS-043 (R3): a signature key stands in the tree once, whatever brings it (RFC 9420 §7.3). OpenMLS checks Adds only; a key brought by a path or Update
    /// would pass, and the group could never be imported again.
    pub(super) fn check_signature_keys(&self, group: &PublicGroup) -> Result<(), Rejection> {
        let mut keys: BTreeSet<&[u8]> = BTreeSet::new();
        let gone = |index: LeafNodeIndex| self.removed.contains(&index.u32()) || self.updated.contains_key(&index.u32());
        let staying = group.treesync().full_leaves().filter(|(index, _)| !gone(*index));
        let unchanged = staying.map(|(_, leaf)| leaf.signature_key().as_slice());
        let updated = self.updated.values().map(|claim| claim.signature_key.as_slice());
        let added = self.added.iter().map(|(_, key_package)| key_package.claim.signature_key.as_slice());
        let joined = self.joined.iter().map(|(_, claim)| claim.signature_key.as_slice());
        for key in unchanged.chain(updated).chain(added).chain(joined) {
            if on("DS-043") && !keys.insert(key) {
                return Err(ErrorCode::InvalidCommit.into());
            }
        }
        Ok(())
    }
}

/// Who a leaf node says it is, if other libraries can read it.
pub(super) fn examine_leaf(leaf: &LeafNode, refused: ErrorCode) -> Result<LeafClaim, Rejection> {
    // DS-046 (R3): capabilities list no default extension or proposal type.
    if on("DS-046") && !capabilities_are_interoperable(leaf.capabilities()) {
        return Err(refused.into());
    }
    LeafClaim::of(leaf)
}
