//! The public state of one group: its ratchet tree and context, and the Commits that change them (S10, S11).

use openmls::group::PublicGroup;
use openmls::prelude::{
    GroupId, LeafNode, LeafNodeIndex, ProcessedMessageContent, Proposal, ProposalStore, ProtocolMessage, Sender, StagedCommit,
};
use openmls::treesync::LeafNodeSource;
use tls_codec::{Serialize as _, Size as _};

use super::changes::{Changes, examine_leaf};
use super::credential::LeafClaim;
use super::group_info::{check_group_info, read_group_info};
use super::message::{FramedCommit, read_protocol};
use super::policy::{ContextFacts, ContextRules, examine_context};
use super::proposal::FramedProposal;
use super::provider::{GroupStore, VerifyOnly};
use crate::base::UnixMillis;
use crate::base::fault::{Context as _, Fault};
use crate::base::limits::LEAF_NODES_BYTES_MAX;
use crate::base::rule::{answer, on};
use crate::wire::{ErrorCode, Rejection};

/// The format of snapshots and log records; postcard does not describe itself, so every record begins with this octet.
const RECORD_FORMAT: u8 = 1;

/// The public state of one group in one epoch.
pub struct Tree {
    group: PublicGroup,
    /// The proposals of this epoch that Commits may refer to.
    learned: Vec<Learned>,
    /// The octets of all leaf nodes.
    leaf_octets: usize,
    /// The octets of the records that it was made of; see [`Tree::octets`].
    record_octets: usize,
}

/// A proposal in the tree's store.
struct Learned {
    message: Vec<u8>,
    /// The encryption key that an Update brings, encoded, and its signature key.
    keys: Option<(Vec<u8>, Vec<u8>)>,
}

/// A Commit that fits the group and its GroupInfo, not yet merged.
pub struct StagedUpdate {
    staged: StagedCommit,
    /// The staged Commit as a log record: serialised *before* merging, which consumes it.
    pub record: Vec<u8>,
    /// What it does to the leaves.
    pub changes: Changes,
    /// The committer's leaf, after the Commit.
    pub committer: u32,
    /// The epoch that it begins.
    pub epoch: u64,
}

/// A group that was just created.
pub struct NewTree {
    /// Its state.
    pub tree: Tree,
    /// Its only leaf.
    pub leaf: LeafClaim,
    /// The end of that leaf's lifetime.
    pub not_after: UnixMillis,
    /// What the DS reads out of the context.
    pub context: ContextFacts,
    /// The state as a record.
    pub snapshot: Vec<u8>,
}

impl Tree {
    /// Imports a new group from its GroupInfo with ratchet_tree extension (S5, S6): epoch 0, one leaf. Returns the group and its
    /// only leaf with its first snapshot. OpenMLS verifies the tree, the leaf and the GroupInfo's signature.
    pub fn create(group_id: &[u8], group_info: &[u8], rules: ContextRules<'_>) -> Result<NewTree, Rejection> {
        // DS-034 (S6): the GroupInfo is valid, of epoch 0, with one leaf and the DS in its external_senders.
        let refused = || Rejection::from(answer("DS-034", ErrorCode::InvalidGroupInfo, ErrorCode::Internal));
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
        let context = examine_context(group.group_context(), rules, ErrorCode::InvalidGroupInfo)?;
        let (leaf, not_after) = match group.treesync().full_leaves().collect::<Vec<_>>()[..] {
            // The KeyPackage beside it has capabilities of its own.
            [(index, leaf)] if index.u32() == 0 => (examine_leaf(leaf, ErrorCode::InvalidGroupInfo)?, lifetime_end(leaf)),
            _ => return Err(refused()),
        };
        let snapshot = snapshot(&store).map_err(|_| Rejection::from(ErrorCode::Internal))?;
        let tree = Self { leaf_octets: leaf_octets(&group), group, learned: Vec::new(), record_octets: snapshot.len() };
        Ok(NewTree { tree, leaf, not_after, context, snapshot })
    }

    /// The epoch of this state.
    pub fn epoch(&self) -> u64 {
        self.group.group_context().epoch().as_u64()
    }

    /// The encoded RFC 9420 ratchet_tree.
    pub fn ratchet_tree(&self) -> Result<Vec<u8>, Fault> {
        self.group.export_ratchet_tree().tls_serialize_detached().context("could not encode a ratchet tree")
    }

    /// About how much memory the tree takes, in octets: half as much again as its records, as `benches/` measures. Costs nothing to ask.
    pub fn octets(&self) -> usize {
        self.record_octets + self.record_octets / 2
    }

    /// How many leaves are not blank.
    pub fn leaf_count(&self) -> usize {
        self.group.treesync().full_leaves().count()
    }

    /// The indices of the leaves that are not blank.
    pub fn leaf_indices(&self) -> Vec<u32> {
        self.group.treesync().full_leaves().map(|(index, _)| index.u32()).collect()
    }

    /// The leaves that are not blank, each with its index and what was checked of it when it came in.
    pub fn claims(&self) -> impl Iterator<Item = (u32, LeafClaim)> {
        self.group.treesync().full_leaves().filter_map(|(index, leaf)| Some((index.u32(), LeafClaim::of(leaf).ok()?)))
    }

    /// Puts the proposals of the epoch (MLSMessages that were accepted in it, in order) where Commits can refer to them. Those
    /// that are there already are passed over.
    pub fn learn<'a>(&mut self, proposals: impl Iterator<Item = &'a [u8]>) -> Result<(), Fault> {
        for (position, message) in proposals.enumerate() {
            match self.learned.get(position) {
                Some(known) if known.message == message => continue,
                Some(_) => return Err(Fault::new("a group's pending proposals are not the ones that its tree has learned")),
                None => {}
            }
            let accepted = "a pending proposal that was accepted is not valid";
            let read = read_protocol(message).context(accepted)?;
            let processed = self.group.process_message(&VerifyOnly, read).context(accepted)?;
            let ProcessedMessageContent::ProposalMessage(queued) = processed.into_content() else {
                return Err(Fault::new(accepted));
            };
            let keys = match queued.proposal() {
                Proposal::Update(update) => Some(keys_of(update.leaf_node())),
                _ => None,
            };
            self.group.add_proposal(&GroupStore::null(), *queued).context("could not keep a pending proposal")?;
            self.learned.push(Learned { message: message.to_vec(), keys });
        }
        Ok(())
    }

    /// Validates a member's proposal: an Update of its own leaf that a later Commit can carry (R3). Returns whose leaf it says it
    /// is.
    pub fn check_update(&self, proposal: FramedProposal) -> Result<LeafClaim, Rejection> {
        let proposer = LeafNodeIndex::new(proposal.proposer);
        // DS-084 (R3): a proposal is valid, as far as a server can see: framing, signatures (OpenMLS).
        let refused = || Rejection::from(answer("DS-084", ErrorCode::InvalidProposal, ErrorCode::Internal));
        let message = ProtocolMessage::from(proposal.message);
        let processed = self.group.process_message(&VerifyOnly, message).map_err(|_| refused())?;
        let ProcessedMessageContent::ProposalMessage(queued) = processed.into_content() else { return Err(refused()) };
        // DS-085 (S9): it is the Update of the sender's own leaf; to leave there is leave_group, and the rest is for Commits.
        let Proposal::Update(update) = queued.proposal() else {
            return Err(answer("DS-085", ErrorCode::InvalidProposal, ErrorCode::Internal).into());
        };
        let leaf = update.leaf_node();
        self.check_leaf_fits(leaf)?;
        let (encryption_key, signature_key) = keys_of(leaf);
        let in_tree = self.group.treesync().full_leaves().any(|(index, other)| {
            let (others_encryption_key, others_signature_key) = keys_of(other);
            others_encryption_key == encryption_key || (index != proposer && others_signature_key == signature_key)
        });
        let mut pending = self.learned.iter().filter_map(|learned| learned.keys.as_ref());
        // DS-087 (R3): an Update brings an encryption key that is nowhere in the tree and a signature key that is nobody else's.
        if on("DS-087") && (in_tree || pending.any(|keys| keys.0 == encryption_key || keys.1 == signature_key)) {
            return Err(ErrorCode::InvalidProposal.into());
        }
        examine_leaf(leaf, ErrorCode::InvalidProposal)
    }

    /// DS-086 (R3): an Update's leaf supports what the group uses: ciphersuite, credentials, extensions, and what is required. OpenMLS
    /// asks only when a Commit carries it, and then it is the Commit that fails.
    fn check_leaf_fits(&self, leaf: &LeafNode) -> Result<(), Rejection> {
        let capabilities = leaf.capabilities();
        let context = self.group.group_context();
        let has_extension = |wanted: u16| {
            matches!(wanted, 1..=5) || capabilities.extensions().iter().any(|extension| u16::from(*extension) == wanted)
        };
        let has_proposal = |wanted: u16| {
            matches!(wanted, 1..=7) || capabilities.proposals().iter().any(|proposal| u16::from(*proposal) == wanted)
        };
        let x509 = openmls::prelude::CredentialType::X509;
        let required = context.extensions().required_capabilities();
        let fits = capabilities.ciphersuites().contains(&self.group.ciphersuite().into())
            && capabilities.versions().contains(&openmls::prelude::ProtocolVersion::Mls10)
            && capabilities.credentials().contains(&x509)
            && leaf.credential().credential_type() == x509
            && context.extensions().iter().all(|extension| has_extension(u16::from(extension.extension_type())))
            && leaf.extensions().iter().all(|extension| has_extension(u16::from(extension.extension_type())))
            && required.is_none_or(|required| {
                required.extension_types().iter().all(|extension| has_extension(u16::from(*extension)))
                    && required.proposal_types().iter().all(|proposal| has_proposal(u16::from(*proposal)))
                    && required.credential_types().iter().all(|credential| capabilities.credentials().contains(credential))
            });
        if on("DS-086") && !fits { Err(ErrorCode::InvalidProposal.into()) } else { Ok(()) }
    }

    /// Validates a Commit, a member's or an external one, and the GroupInfo of the epoch it begins (R3, R5). Nothing changes yet.
    pub fn stage(&self, commit: FramedCommit, group_info: &[u8], rules: ContextRules<'_>) -> Result<StagedUpdate, Rejection> {
        // DS-042 (R3): the Commit is valid, as far as a server can see: framing, signature, proposals, path (OpenMLS).
        let refused = || Rejection::from(answer("DS-042", ErrorCode::InvalidCommit, ErrorCode::Internal));
        let listed = commit.proposals;
        let tag = commit.message.confirmation_tag().cloned().ok_or_else(refused)?;
        let processed = self.group.process_message(&VerifyOnly, ProtocolMessage::from(commit.message)).map_err(|_| refused())?;
        let sender = processed.sender().clone();
        let ProcessedMessageContent::StagedCommitMessage(staged) = processed.into_content() else { return Err(refused()) };
        // DS-097 (R3): a Commit lists no proposal twice. OpenMLS takes it once, and others refuse it.
        if on("DS-097") && staged.queued_proposals().count() != listed {
            return Err(ErrorCode::InvalidCommit.into());
        }
        let changes = Changes::of(&self.group, &sender, &staged, rules)?;
        changes.check_signature_keys(&self.group)?;
        let (new, old) = changes.leaf_octets;
        // DS-098: the leaf nodes of a group are together within their limit, so that its tree fits a frame.
        if on("DS-098") && new > old && self.leaf_octets + new - old > LEAF_NODES_BYTES_MAX {
            return Err(ErrorCode::TooLarge.into());
        }
        let committer = match (&sender, &changes.joined) {
            (Sender::Member(index), _) => *index,
            (Sender::NewMemberCommit, Some((index, _))) => LeafNodeIndex::new(*index),
            _ => return Err(refused()),
        };
        // DS-045 (R5): the GroupInfo has the staged context, the Commit's confirmation tag, an external_pub, no tree, and the signature of
        // the committer's key after the Commit.
        let fits = check_group_info(&self.group, committer, &staged, tag, group_info);
        if on("DS-045") {
            fits?;
        }
        let mut record = vec![RECORD_FORMAT];
        record.extend(postcard::to_stdvec(&*staged).map_err(|_| Rejection::from(ErrorCode::Internal))?);
        let epoch = staged.group_context().epoch().as_u64();
        Ok(StagedUpdate { epoch, record, changes, committer: committer.u32(), staged: *staged })
    }

    /// Merges a staged Commit. Only after its record is on disk: memory must never run ahead. Returns a snapshot of the new
    /// state when `with_snapshot` asks for one; OpenMLS writes a group out only while it merges.
    pub fn merge(&mut self, update: StagedUpdate, with_snapshot: bool) -> Result<Option<Vec<u8>>, Fault> {
        let store = if with_snapshot { GroupStore::recording() } else { GroupStore::null() };
        self.group.merge_commit(&store, update.staged).context("could not merge a validated Commit")?;
        self.learned.clear();
        let (new, old) = update.changes.leaf_octets;
        self.leaf_octets = (self.leaf_octets + new).saturating_sub(old);
        // Where new leaves land is predicted, not told by OpenMLS: a wrong prediction would misdeliver from here on.
        let added = update.changes.added.iter().map(|(index, key_package)| (*index, &key_package.claim));
        for (index, claim) in added.chain(update.changes.joined.iter().map(|(index, claim)| (*index, claim))) {
            let landed = self.group.leaf(LeafNodeIndex::new(index)).map(|leaf| leaf.signature_key().as_slice());
            if landed != Some(&claim.signature_key) {
                return Err(Fault::new(format!("a new leaf did not land at index {index} as predicted")));
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
        Ok(Self { leaf_octets: leaf_octets(&group), group, learned: Vec::new(), record_octets })
    }
}

/// The encoded encryption key and the signature key of a leaf.
fn keys_of(leaf: &LeafNode) -> (Vec<u8>, Vec<u8>) {
    (leaf.encryption_key().tls_serialize_detached().unwrap_or_default(), leaf.signature_key().as_slice().to_vec())
}

/// The octets of all leaf nodes.
fn leaf_octets(group: &PublicGroup) -> usize {
    group.treesync().full_leaves().map(|(_, leaf)| leaf.tls_serialized_len()).sum()
}

/// When the lifetime of a leaf ends; only one from a KeyPackage has one (RFC 9420 §7.2).
fn lifetime_end(leaf: &LeafNode) -> UnixMillis {
    match leaf.leaf_node_source() {
        LeafNodeSource::KeyPackage(lifetime) => UnixMillis(lifetime.not_after().saturating_mul(1000)),
        LeafNodeSource::Update | LeafNodeSource::Commit(_) => UnixMillis(u64::MAX),
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
