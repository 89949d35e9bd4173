//! An MLS group that only looks like one: commits, GroupInfos and Welcomes that a Delivery Service must accept, made without any group
//! secret, at the cost of a few hashes.
//!
//! A Delivery Service can check signatures, tree hashes and parent hashes, and those are right. It cannot check confirmation tags,
//! membership tags and ciphertexts, and those are random. So thousands of groups cost a load generator next to nothing, and a test can
//! spoil any one part of an otherwise right commit.

mod encode;
mod leaf;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeMap;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha20Rng;

use encode::{Encoder, hash, ref_hash};
use leaf::{CIPHERSUITE, LeafSource, PROTOCOL_VERSION, encode_extensions, leaf_node};
pub use leaf::{Capabilities, Extension, Identity, KeyPackage};
use tree::Tree;

const WIRE_FORMAT_PUBLIC_MESSAGE: u16 = 1;
const WIRE_FORMAT_PRIVATE_MESSAGE: u16 = 2;
const WIRE_FORMAT_WELCOME: u16 = 3;
const WIRE_FORMAT_GROUP_INFO: u16 = 4;
const EXTENSION_RATCHET_TREE: u16 = 2;
const EXTENSION_EXTERNAL_PUB: u16 = 4;
const PROPOSAL_ADD: u16 = 1;
const PROPOSAL_UPDATE: u16 = 2;
const PROPOSAL_REMOVE: u16 = 3;
const PROPOSAL_EXTERNAL_INIT: u16 = 6;
const PROPOSAL_GROUP_CONTEXT_EXTENSIONS: u16 = 7;
/// ContentType of an application message (RFC 9420 §6).
pub const CONTENT_TYPE_APPLICATION: u8 = 1;
/// ContentType of a proposal.
pub const CONTENT_TYPE_PROPOSAL: u8 = 2;
/// ContentType of a commit.
pub const CONTENT_TYPE_COMMIT: u8 = 3;
const SENDER_MEMBER: u8 = 1;
const SENDER_NEW_MEMBER_COMMIT: u8 = 4;
/// ProposalOrRef: by value, by reference.
const BY_VALUE: u8 = 1;
const BY_REFERENCE: u8 = 2;

/// A commit asked for cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SynthError {
    /// There is no member at this leaf.
    #[error("leaf {0} is blank")]
    NotAMember(u32),
    /// MLS has no commit by which a member removes itself.
    #[error("leaf {0} cannot remove itself")]
    RemovesItself(u32),
}

/// A proposal that was sent by itself, for commits of its epoch to cover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Its ProposalRef (RFC 9420 §5.2).
    pub reference: [u8; 32],
    /// What it does to the tree.
    pub effect: Effect,
}

/// What a [`Proposal`] does to the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Removes this leaf.
    Remove(u32),
    /// Replaces this leaf by this encoded LeafNode.
    Update(u32, Vec<u8>),
}

impl Proposal {
    /// An external sender's Remove of `leaf`, as the MLSMessage that the DS sent.
    pub fn external_remove(message: &[u8], leaf: u32) -> Self {
        // Behind the version it is the AuthenticatedContent: what is not a member's has no membership tag.
        let content = message.get(2..).unwrap_or_default();
        Self { reference: ref_hash("Proposal Reference", content), effect: Effect::Remove(leaf) }
    }
}

/// What a commit is to do.
#[derive(Clone, Default)]
pub struct Change {
    /// Proposals that the commit covers by reference.
    pub cover: Vec<Proposal>,
    /// Leaves to remove, each by value.
    pub remove: Vec<u32>,
    /// KeyPackages to add, each by value.
    pub add: Vec<KeyPackage>,
    /// Leave out the path, which is allowed when something is added and nothing removed.
    pub without_path: bool,
    /// Further proposals by value, encoded. The tree is not changed for them.
    pub other: Vec<Vec<u8>>,
    /// The extensions that a GroupContextExtensions proposal sets.
    pub extensions: Option<Vec<Extension>>,
    /// The identity that the committer's new leaf has instead of its own: another key, another chain.
    pub identity: Option<Identity>,
    /// The capabilities that the committer's new leaf has instead of its own.
    pub capabilities: Option<Capabilities>,
}

/// A commit and what goes with it. Everything is octets, for tests to spoil.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forged {
    /// The MLSMessage of the commit.
    pub commit: Vec<u8>,
    /// The MLSMessage of the GroupInfo after it, with `external_pub` and without the tree.
    pub group_info: Vec<u8>,
    /// The MLSMessage of the Welcome for everyone added; empty if nobody is.
    pub welcome: Vec<u8>,
}

/// What a GroupInfo is made of, for tests to change before it is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupInfoParts {
    /// The encoded GroupContext.
    pub context: Vec<u8>,
    /// The GroupInfo's own extensions.
    pub extensions: Vec<Extension>,
    /// The confirmation tag.
    pub confirmation_tag: Vec<u8>,
    /// The leaf that says it signed.
    pub signer: u32,
}

impl GroupInfoParts {
    /// The MLSMessage of the GroupInfo, signed by `identity`.
    pub fn sign(&self, identity: &Identity) -> Vec<u8> {
        let info = Encoder::new()
            .raw(&self.context)
            .raw(&encode_extensions(&self.extensions))
            .vector(&self.confirmation_tag)
            .u32(self.signer)
            .finish();
        let signature = identity.sign("GroupInfoTBS", &info);
        Encoder::new().u16(PROTOCOL_VERSION).u16(WIRE_FORMAT_GROUP_INFO).raw(&info).vector(&signature).finish()
    }
}

/// The group as its Delivery Service sees it, with the members' signature keys.
#[derive(Clone)]
pub struct SynthGroup {
    group_id: Vec<u8>,
    epoch: u64,
    tree: Tree,
    members: BTreeMap<u32, Member>,
    extensions: Vec<u8>,
    confirmed_transcript_hash: Vec<u8>,
    confirmation_tag: [u8; 32],
    rng: ChaCha20Rng,
}

#[derive(Clone)]
struct Member {
    identity: Identity,
    capabilities: Capabilities,
}

impl SynthGroup {
    /// A group in epoch 0 with one member, who brings `creator` and is leaf 0. `extensions` go into the GroupContext; everything random
    /// comes from `seed` and `group_id`.
    pub fn create(group_id: &[u8], creator: &KeyPackage, extensions: &[Extension], seed: u64) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        // Keys must differ from those of other groups, and of KeyPackages, that a test makes from the same seed.
        let [a, b, c, d, e, f, g, h, ..] = hash(group_id);
        rng.set_stream(u64::from_be_bytes([a, b, c, d, e, f, g, h]));
        let member = Member { identity: creator.identity.clone(), capabilities: creator.capabilities.clone() };
        Self {
            group_id: group_id.to_vec(),
            epoch: 0,
            tree: Tree::new(creator.leaf.clone()),
            members: BTreeMap::from([(0, member)]),
            extensions: encode_extensions(extensions),
            confirmed_transcript_hash: Vec::new(),
            confirmation_tag: rng.random(),
            rng,
        }
    }

    /// The current epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The leaves that are not blank.
    pub fn leaves(&self) -> Vec<u32> {
        self.members.keys().copied().collect()
    }

    /// The current tree hash.
    pub fn tree_hash(&self) -> [u8; 32] {
        self.tree.hash()
    }

    /// The tree, as `ratchet_tree` extensions carry it.
    pub fn ratchet_tree(&self) -> Vec<u8> {
        self.tree.encode()
    }

    /// The encoded GroupContext.
    pub fn context(&self) -> Vec<u8> {
        self.context_with(self.epoch, &self.confirmed_transcript_hash)
    }

    /// The GroupContext that a group of this tree would have if no commit had made it.
    pub fn context_without_history(&self) -> Vec<u8> {
        self.context_with(0, &[])
    }

    fn context_with(&self, epoch: u64, confirmed_transcript_hash: &[u8]) -> Vec<u8> {
        Encoder::new()
            .u16(PROTOCOL_VERSION)
            .u16(CIPHERSUITE)
            .vector(&self.group_id)
            .u64(epoch)
            .vector(&self.tree.hash())
            .vector(confirmed_transcript_hash)
            .raw(&self.extensions)
            .finish()
    }

    /// The MLSMessage of a GroupInfo of this epoch with the tree, as a group is created with.
    pub fn group_info_with_tree(&mut self, signer: u32) -> Result<Vec<u8>, SynthError> {
        let tree = self.ratchet_tree_extension();
        self.group_info(signer, vec![tree])
    }

    /// The tree as an extension of a GroupInfo.
    pub fn ratchet_tree_extension(&self) -> Extension {
        Extension { kind: EXTENSION_RATCHET_TREE, data: self.tree.encode() }
    }

    /// The identity at a leaf.
    pub fn identity(&self, leaf: u32) -> Result<&Identity, SynthError> {
        self.members.get(&leaf).map(|member| &member.identity).ok_or(SynthError::NotAMember(leaf))
    }

    /// The parts of a GroupInfo of this epoch: `external_pub`, and no tree.
    pub fn group_info_parts(&mut self, signer: u32) -> GroupInfoParts {
        let external_pub = Encoder::new().vector(&self.rng.random::<[u8; 32]>()).finish();
        GroupInfoParts {
            context: self.context(),
            extensions: vec![Extension { kind: EXTENSION_EXTERNAL_PUB, data: external_pub }],
            confirmation_tag: self.confirmation_tag.to_vec(),
            signer,
        }
    }

    /// The MLSMessage of a PrivateMessage of this epoch, all ciphertext random: nobody can read it, and no server can tell.
    pub fn private_message(&mut self, content_type: u8) -> Vec<u8> {
        self.private_message_of(self.epoch, content_type)
    }

    /// As [`SynthGroup::private_message`], of any epoch.
    pub fn private_message_of(&mut self, epoch: u64, content_type: u8) -> Vec<u8> {
        Encoder::new()
            .u16(PROTOCOL_VERSION)
            .u16(WIRE_FORMAT_PRIVATE_MESSAGE)
            .vector(&self.group_id)
            .u64(epoch)
            .u8(content_type)
            .vector(&[])
            .vector(&random_octets::<28>(&mut self.rng))
            .vector(&random_octets::<96>(&mut self.rng))
            .finish()
    }

    /// The MLSMessage of a PublicMessage of this epoch that is no commit: `content` is the encoded content of `content_type`.
    pub fn public_message(&mut self, sender: u32, content_type: u8, content: &[u8]) -> Result<Vec<u8>, SynthError> {
        let framed = self.framed(sender, content_type, content);
        let signature = sign_framed(self.identity(sender)?, &framed, &self.context());
        let tag = self.rng.random::<[u8; 32]>();
        let message = Encoder::new().u16(PROTOCOL_VERSION).u16(WIRE_FORMAT_PUBLIC_MESSAGE).raw(&framed).vector(&signature);
        Ok(message.vector(&tag).finish())
    }

    /// A member's Update of its own leaf, as a proposal by itself: the MLSMessage, and what a commit needs to cover it.
    pub fn propose_update(&mut self, leaf: u32) -> Result<(Vec<u8>, Proposal), SynthError> {
        let Member { identity, capabilities } = self.members.get(&leaf).ok_or(SynthError::NotAMember(leaf))?.clone();
        self.propose_leaf(leaf, &identity, &capabilities)
    }

    /// As [`SynthGroup::propose_update`], of a leaf node with any identity and capabilities.
    pub fn propose_leaf(
        &mut self,
        leaf: u32,
        identity: &Identity,
        capabilities: &Capabilities,
    ) -> Result<(Vec<u8>, Proposal), SynthError> {
        let source = LeafSource::Update { group_id: &self.group_id, leaf_index: leaf };
        let node = leaf_node(identity, capabilities, &source, &mut self.rng);
        let content = Encoder::new().u16(PROPOSAL_UPDATE).raw(&node).finish();
        let message = self.public_message(leaf, CONTENT_TYPE_PROPOSAL, &content)?;
        // The AuthenticatedContent is all but the version before it and the membership tag behind it.
        let tag = Encoder::new().vector(&[0; 32]).finish().len();
        let reference = ref_hash("Proposal Reference", &message[2..message.len() - tag]);
        Ok((message, Proposal { reference, effect: Effect::Update(leaf, node) }))
    }

    /// FramedContent of a member.
    fn framed(&self, sender: u32, content_type: u8, content: &[u8]) -> Vec<u8> {
        Encoder::new()
            .vector(&self.group_id)
            .u64(self.epoch)
            .u8(SENDER_MEMBER)
            .u32(sender)
            .vector(&[])
            .u8(content_type)
            .raw(content)
            .finish()
    }

    /// A commit that adds everyone in `add`, with a path.
    pub fn add(&mut self, committer: u32, add: Vec<KeyPackage>) -> Result<Forged, SynthError> {
        self.commit(committer, Change { add, ..Change::default() })
    }

    /// A commit of nothing but a path.
    pub fn update(&mut self, committer: u32) -> Result<Forged, SynthError> {
        self.commit(committer, Change::default())
    }

    /// A commit that removes `leaf`.
    pub fn remove(&mut self, committer: u32, leaf: u32) -> Result<Forged, SynthError> {
        self.commit(committer, Change { remove: vec![leaf], ..Change::default() })
    }

    /// Makes a commit and enters the epoch that it makes. To go on as if it was refused, work on a clone.
    pub fn commit(&mut self, committer: u32, change: Change) -> Result<Forged, SynthError> {
        self.check(committer, &change)?;
        let context_before = self.context();
        // A commit is signed with the key that its maker had before it.
        let identity = self.identity(committer)?.clone();
        let content = self.apply(committer, &change);
        let framed = self.framed(committer, CONTENT_TYPE_COMMIT, &content);
        let signature = sign_framed(&identity, &framed, &context_before);

        self.enter_next_epoch(&framed, &signature);
        let commit = Encoder::new()
            .u16(PROTOCOL_VERSION)
            .u16(WIRE_FORMAT_PUBLIC_MESSAGE)
            .raw(&framed)
            .vector(&signature)
            .vector(&self.confirmation_tag)
            .vector(&self.rng.random::<[u8; 32]>()) // membership tag
            .finish();
        let group_info = self.group_info(committer, Vec::new())?;
        let welcome = if change.add.is_empty() { Vec::new() } else { self.welcome(&change.add) };
        Ok(Forged { commit, group_info, welcome })
    }

    /// Makes an external commit by which `identity` joins and `remove`, a leaf it had before, goes; enters the epoch that it makes.
    /// Says at which leaf it joined.
    pub fn join(
        &mut self,
        identity: &Identity,
        capabilities: &Capabilities,
        remove: Option<u32>,
    ) -> Result<(u32, Forged), SynthError> {
        if let Some(blank) = remove.filter(|leaf| !self.members.contains_key(leaf)) {
            return Err(SynthError::NotAMember(blank));
        }
        let context_before = self.context();
        let kem_output = self.rng.random::<[u8; 32]>();
        let mut proposals = Encoder::new().u8(BY_VALUE).u16(PROPOSAL_EXTERNAL_INIT).vector(&kem_output);
        if let Some(leaf) = remove {
            proposals = proposals.u8(BY_VALUE).u16(PROPOSAL_REMOVE).u32(leaf);
            self.tree.remove(leaf as usize);
            self.members.remove(&leaf);
        }
        let joined = self.tree.add(Vec::new()) as u32;
        let member = Member { identity: identity.clone(), capabilities: capabilities.clone() };
        self.members.insert(joined, member);
        let content = Encoder::new().vector(&proposals.finish()).u8(1).raw(&self.apply_path(joined, &[])).finish();
        let framed = Encoder::new()
            .vector(&self.group_id)
            .u64(self.epoch)
            .u8(SENDER_NEW_MEMBER_COMMIT)
            .vector(&[])
            .u8(CONTENT_TYPE_COMMIT)
            .raw(&content)
            .finish();
        let signature = sign_framed(self.identity(joined)?, &framed, &context_before);
        self.enter_next_epoch(&framed, &signature);
        let commit = Encoder::new()
            .u16(PROTOCOL_VERSION)
            .u16(WIRE_FORMAT_PUBLIC_MESSAGE)
            .raw(&framed)
            .vector(&signature)
            .vector(&self.confirmation_tag)
            .finish();
        let group_info = self.group_info(joined, Vec::new())?;
        Ok((joined, Forged { commit, group_info, welcome: Vec::new() }))
    }

    fn check(&self, committer: u32, change: &Change) -> Result<(), SynthError> {
        let is_covered = change.cover.iter().any(|proposal| proposal.effect == Effect::Remove(committer));
        if is_covered || change.remove.contains(&committer) {
            return Err(SynthError::RemovesItself(committer));
        }
        let covered = change.cover.iter().map(|proposal| match &proposal.effect {
            Effect::Remove(leaf) | Effect::Update(leaf, _) => leaf,
        });
        let mut leaves = std::iter::once(&committer).chain(&change.remove).chain(covered);
        leaves.find(|leaf| !self.members.contains_key(leaf)).map_or(Ok(()), |blank| Err(SynthError::NotAMember(*blank)))
    }

    /// Changes the tree, in the order of RFC 9420 §12.4.2, and encodes the Commit that says so.
    fn apply(&mut self, committer: u32, change: &Change) -> Vec<u8> {
        let mut proposals = Encoder::new();
        if let Some(extensions) = &change.extensions {
            self.extensions = encode_extensions(extensions);
            proposals = proposals.u8(BY_VALUE).u16(PROPOSAL_GROUP_CONTEXT_EXTENSIONS).raw(&self.extensions);
        }
        for proposal in &change.other {
            proposals = proposals.u8(BY_VALUE).raw(proposal);
        }
        for proposal in &change.cover {
            proposals = proposals.u8(BY_REFERENCE).vector(&proposal.reference);
        }
        for proposal in &change.cover {
            if let Effect::Update(leaf, node) = &proposal.effect {
                self.tree.update(*leaf as usize, node.clone());
            }
        }
        for proposal in &change.cover {
            if let Effect::Remove(leaf) = &proposal.effect {
                self.tree.remove(*leaf as usize);
                self.members.remove(leaf);
            }
        }
        for leaf in &change.remove {
            proposals = proposals.u8(BY_VALUE).u16(PROPOSAL_REMOVE).u32(*leaf);
            self.tree.remove(*leaf as usize);
            self.members.remove(leaf);
        }
        let mut added = Vec::new();
        for package in &change.add {
            proposals = proposals.u8(BY_VALUE).u16(PROPOSAL_ADD).raw(package.octets());
            let index = self.tree.add(package.leaf.clone());
            let member = Member { identity: package.identity.clone(), capabilities: package.capabilities.clone() };
            self.members.insert(index as u32, member);
            added.push(index);
        }
        if let Some(member) = self.members.get_mut(&committer) {
            member.identity = change.identity.clone().unwrap_or(member.identity.clone());
            member.capabilities = change.capabilities.clone().unwrap_or(member.capabilities.clone());
        }
        let commit = Encoder::new().vector(&proposals.finish());
        if change.without_path { commit.u8(0).finish() } else { commit.u8(1).raw(&self.apply_path(committer, &added)).finish() }
    }

    /// Replaces the committer's path and encodes the UpdatePath. The leaves in `added` get their secrets by Welcome instead.
    fn apply_path(&mut self, committer: u32, added: &[usize]) -> Vec<u8> {
        let index = committer as usize;
        let path = self.tree.filtered_path(index);
        let keys: Vec<[u8; 32]> = path.iter().map(|_| self.rng.random()).collect();
        let mut nodes = Encoder::new();
        for (step, key) in path.iter().zip(&keys) {
            let recipients = self.tree.resolution(step.copath, added);
            let ciphertexts = (0..recipients).fold(Encoder::new(), |list, _| list.raw(&self.ciphertext()));
            nodes = nodes.vector(key).vector(&ciphertexts.finish());
        }
        let parent_hash = self.tree.replace_path(index, &keys);
        let source = LeafSource::Commit { parent_hash: &parent_hash, group_id: &self.group_id, leaf_index: committer };
        let Member { identity, capabilities } = &self.members[&committer];
        let leaf = leaf_node(identity, capabilities, &source, &mut self.rng);
        self.tree.set_leaf(index, leaf.clone());
        Encoder::new().raw(&leaf).vector(&nodes.finish()).finish()
    }

    /// An HPKECiphertext of a path secret that nobody can open.
    fn ciphertext(&mut self) -> Vec<u8> {
        Encoder::new().vector(&self.rng.random::<[u8; 32]>()).vector(&random_octets::<48>(&mut self.rng)).finish()
    }

    /// Advances epoch and transcript hashes (RFC 9420 §8.2).
    fn enter_next_epoch(&mut self, framed: &[u8], signature: &[u8]) {
        let confirmed_and_tag = Encoder::new().raw(&self.confirmed_transcript_hash).vector(&self.confirmation_tag);
        let interim = hash(&confirmed_and_tag.finish());
        let input = Encoder::new().raw(&interim).u16(WIRE_FORMAT_PUBLIC_MESSAGE).raw(framed).vector(signature);
        self.confirmed_transcript_hash = hash(&input.finish()).to_vec();
        self.confirmation_tag = self.rng.random();
        self.epoch += 1;
    }

    /// The MLSMessage of a GroupInfo of this epoch.
    fn group_info(&mut self, signer: u32, mut extensions: Vec<Extension>) -> Result<Vec<u8>, SynthError> {
        let identity = self.identity(signer)?.clone();
        let mut parts = self.group_info_parts(signer);
        extensions.append(&mut parts.extensions);
        Ok(GroupInfoParts { extensions, ..parts }.sign(&identity))
    }

    /// The MLSMessage of a Welcome that names every KeyPackage and tells nothing.
    fn welcome(&mut self, added: &[KeyPackage]) -> Vec<u8> {
        let secrets = added.iter().fold(Encoder::new(), |list, package| {
            list.vector(&package.reference()).vector(&self.rng.random::<[u8; 32]>()).vector(&random_octets::<84>(&mut self.rng))
        });
        Encoder::new()
            .u16(PROTOCOL_VERSION)
            .u16(WIRE_FORMAT_WELCOME)
            .u16(CIPHERSUITE)
            .vector(&secrets.finish())
            .vector(&random_octets::<300>(&mut self.rng))
            .finish()
    }
}

fn sign_framed(identity: &Identity, framed: &[u8], context: &[u8]) -> [u8; 64] {
    let to_sign = Encoder::new().u16(PROTOCOL_VERSION).u16(WIRE_FORMAT_PUBLIC_MESSAGE).raw(framed).raw(context);
    identity.sign("FramedContentTBS", &to_sign.finish())
}

fn random_octets<const N: usize>(rng: &mut ChaCha20Rng) -> [u8; N] {
    let mut octets = [0; N];
    rng.fill(&mut octets[..]);
    octets
}
