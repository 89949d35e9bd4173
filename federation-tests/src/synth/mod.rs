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

use encode::{Encoder, hash};
use leaf::{CIPHERSUITE, LeafSource, PROTOCOL_VERSION, encode_extensions, leaf_node};
pub use leaf::{Capabilities, Extension, Identity, KeyPackage};
use tree::Tree;

const WIRE_FORMAT_PUBLIC_MESSAGE: u16 = 1;
const WIRE_FORMAT_WELCOME: u16 = 3;
const WIRE_FORMAT_GROUP_INFO: u16 = 4;
const EXTENSION_RATCHET_TREE: u16 = 2;
const EXTENSION_EXTERNAL_PUB: u16 = 4;
const PROPOSAL_ADD: u16 = 1;
const PROPOSAL_REMOVE: u16 = 3;
const CONTENT_TYPE_COMMIT: u8 = 3;
const SENDER_MEMBER: u8 = 1;
/// ProposalOrRef: by value.
const BY_VALUE: u8 = 1;

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

/// What a commit is to do.
#[derive(Clone, Default)]
pub struct Change {
    /// Leaves to remove, each by value.
    pub remove: Vec<u32>,
    /// KeyPackages to add, each by value.
    pub add: Vec<KeyPackage>,
    /// Leave out the path, which is allowed when something is added and nothing removed.
    pub without_path: bool,
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
        Encoder::new()
            .u16(PROTOCOL_VERSION)
            .u16(CIPHERSUITE)
            .vector(&self.group_id)
            .u64(self.epoch)
            .vector(&self.tree.hash())
            .vector(&self.confirmed_transcript_hash)
            .raw(&self.extensions)
            .finish()
    }

    /// The MLSMessage of a GroupInfo of this epoch with the tree, as a group is created with.
    pub fn group_info_with_tree(&mut self, signer: u32) -> Result<Vec<u8>, SynthError> {
        let tree = Extension { kind: EXTENSION_RATCHET_TREE, data: self.tree.encode() };
        self.group_info(signer, vec![tree])
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
        let framed = Encoder::new()
            .vector(&self.group_id)
            .u64(self.epoch)
            .u8(SENDER_MEMBER)
            .u32(committer)
            .vector(&[])
            .u8(CONTENT_TYPE_COMMIT)
            .raw(&self.apply(committer, &change))
            .finish();
        let to_sign = Encoder::new().u16(PROTOCOL_VERSION).u16(WIRE_FORMAT_PUBLIC_MESSAGE).raw(&framed).raw(&context_before);
        let signature = self.members[&committer].identity.sign("FramedContentTBS", &to_sign.finish());

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

    fn check(&self, committer: u32, change: &Change) -> Result<(), SynthError> {
        if change.remove.contains(&committer) {
            return Err(SynthError::RemovesItself(committer));
        }
        let mut leaves = std::iter::once(&committer).chain(&change.remove);
        leaves.find(|leaf| !self.members.contains_key(leaf)).map_or(Ok(()), |blank| Err(SynthError::NotAMember(*blank)))
    }

    /// Changes the tree, in the order of RFC 9420 §12.4.2, and encodes the Commit that says so.
    fn apply(&mut self, committer: u32, change: &Change) -> Vec<u8> {
        let mut proposals = Encoder::new();
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
        let identity = &self.members.get(&signer).ok_or(SynthError::NotAMember(signer))?.identity;
        let external_pub = Encoder::new().vector(&self.rng.random::<[u8; 32]>()).finish();
        extensions.push(Extension { kind: EXTENSION_EXTERNAL_PUB, data: external_pub });
        let info = Encoder::new()
            .raw(&self.context())
            .raw(&encode_extensions(&extensions))
            .vector(&self.confirmation_tag)
            .u32(signer)
            .finish();
        let signature = identity.sign("GroupInfoTBS", &info);
        Ok(Encoder::new().u16(PROTOCOL_VERSION).u16(WIRE_FORMAT_GROUP_INFO).raw(&info).vector(&signature).finish())
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

fn random_octets<const N: usize>(rng: &mut ChaCha20Rng) -> [u8; N] {
    let mut octets = [0; N];
    rng.fill(&mut octets[..]);
    octets
}
