//! The public half of a ratchet tree (RFC 9420 §4, §7).

use super::encode::{Encoder, hash};

/// A subtree: `width` leaves (a power of two) from leaf `first`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subtree {
    first: usize,
    width: usize,
}

impl Subtree {
    fn halves(self) -> (Self, Self) {
        let width = self.width / 2;
        (Self { first: self.first, width }, Self { first: self.first + width, width })
    }

    /// The position of its root among all nodes (Appendix C).
    fn node(self) -> usize {
        if self.width == 1 { 2 * self.first } else { 2 * self.parent() + 1 }
    }

    /// The position of its root among the parents, which lie between their leaves.
    fn parent(self) -> usize {
        self.first + self.width / 2 - 1
    }

    /// Whether `leaf` is in it.
    pub(super) fn contains(self, leaf: usize) -> bool {
        (self.first..self.first + self.width).contains(&leaf)
    }
}

/// A node of a direct path with its copath child.
#[derive(Clone, Copy)]
pub(super) struct Step {
    node: Subtree,
    pub(super) copath: Subtree,
}

/// A parent node.
#[derive(Clone)]
pub(super) struct Parent {
    encryption_key: [u8; 32],
    parent_hash: Vec<u8>,
    unmerged_leaves: Vec<u32>,
}

impl Parent {
    fn encode(&self) -> Vec<u8> {
        let unmerged: Vec<u8> = self.unmerged_leaves.iter().flat_map(|leaf| leaf.to_be_bytes()).collect();
        Encoder::new().vector(&self.encryption_key).vector(&self.parent_hash).vector(&unmerged).finish()
    }

    /// What the next node down the path states as its `parent_hash` (§7.9).
    fn hash_with_sibling(&self, sibling_tree_hash: &[u8]) -> Vec<u8> {
        let input = Encoder::new().vector(&self.encryption_key).vector(&self.parent_hash).vector(sibling_tree_hash);
        hash(&input.finish()).to_vec()
    }
}

/// A ratchet tree: encoded leaves and parents; `None` is blank.
#[derive(Clone)]
pub(super) struct Tree {
    /// Always a power of two of them.
    leaves: Vec<Option<Vec<u8>>>,
    parents: Vec<Option<Parent>>,
    /// The tree hash of each node: every change leaves those along a path to be computed again.
    hashes: Vec<[u8; 32]>,
}

impl Tree {
    /// A tree of one leaf.
    pub(super) fn new(leaf: Vec<u8>) -> Self {
        let mut tree = Self { leaves: vec![Some(leaf)], parents: Vec::new(), hashes: vec![[0; 32]] };
        tree.hash_anew(tree.root());
        tree
    }

    fn root(&self) -> Subtree {
        Subtree { first: 0, width: self.leaves.len() }
    }

    /// The leaf's direct path, from the bottom.
    fn direct_path(&self, leaf: usize) -> Vec<Step> {
        let mut path = Vec::new();
        let mut width = 2;
        while width <= self.leaves.len() {
            let node = Subtree { first: leaf / width * width, width };
            let (left, right) = node.halves();
            path.push(Step { node, copath: if left.contains(leaf) { right } else { left } });
            width *= 2;
        }
        path
    }

    /// The part of the direct path below which others are (§4.2).
    pub(super) fn filtered_path(&self, leaf: usize) -> Vec<Step> {
        self.direct_path(leaf).into_iter().filter(|step| !self.is_empty(step.copath)).collect()
    }

    fn is_empty(&self, subtree: Subtree) -> bool {
        self.leaves[subtree.first..subtree.first + subtree.width].iter().all(Option::is_none)
    }

    /// How many nodes a secret for `subtree` is encrypted to, the leaves in `except` left out (§4.1.1, §7.6).
    pub(super) fn resolution(&self, subtree: Subtree, except: &[usize]) -> usize {
        if subtree.width == 1 {
            return usize::from(self.leaves[subtree.first].is_some() && !except.contains(&subtree.first));
        }
        match &self.parents[subtree.parent()] {
            Some(parent) => 1 + parent.unmerged_leaves.iter().filter(|leaf| !except.contains(&(**leaf as usize))).count(),
            None => {
                let (left, right) = subtree.halves();
                self.resolution(left, except) + self.resolution(right, except)
            }
        }
    }

    /// Adds a leaf where §12.1.1 puts it, and says where that is.
    pub(super) fn add(&mut self, leaf: Vec<u8>) -> usize {
        let blank = self.leaves.iter().position(Option::is_none);
        let index = blank.unwrap_or(self.leaves.len());
        if blank.is_none() {
            let width = self.leaves.len() * 2;
            self.leaves.resize(width, None);
            self.parents.resize(width - 1, None);
            self.hashes.resize(2 * width - 1, [0; 32]);
            self.hash_anew(self.root());
        }
        self.leaves[index] = Some(leaf);
        for step in self.direct_path(index) {
            if let Some(parent) = &mut self.parents[step.node.parent()] {
                parent.unmerged_leaves.push(index as u32);
                parent.unmerged_leaves.sort_unstable();
            }
        }
        self.hash_path(index);
        index
    }

    /// Removes a leaf, and the right half of the tree while that is empty (§12.1.3).
    pub(super) fn remove(&mut self, leaf: usize) {
        self.leaves[leaf] = None;
        for step in self.direct_path(leaf) {
            self.parents[step.node.parent()] = None;
        }
        self.hash_path(leaf);
        while self.leaves.len() > 1 && self.is_empty(self.root().halves().1) {
            let width = self.leaves.len() / 2;
            self.leaves.truncate(width);
            self.parents.truncate(width - 1);
            self.hashes.truncate(2 * width - 1);
        }
    }

    /// Replaces a leaf and blanks its path, as an Update does (§12.1.2).
    pub(super) fn update(&mut self, index: usize, leaf: Vec<u8>) {
        self.leaves[index] = Some(leaf);
        for step in self.direct_path(index) {
            self.parents[step.node.parent()] = None;
        }
        self.hash_path(index);
    }

    /// Replaces the nodes of the leaf's path: those of the filtered path by `keys`, from the bottom, the others by blanks. The answer is
    /// what the new leaf must state as its `parent_hash`.
    pub(super) fn replace_path(&mut self, leaf: usize, keys: &[[u8; 32]]) -> Vec<u8> {
        let filtered = self.filtered_path(leaf);
        for step in self.direct_path(leaf) {
            self.parents[step.node.parent()] = None;
        }
        // From the root, which has no parent to hash; siblings of a path are not on it, so their hashes stay.
        let mut parent_hash = Vec::new();
        for (step, key) in filtered.iter().zip(keys).rev() {
            let parent = Parent { encryption_key: *key, parent_hash, unmerged_leaves: Vec::new() };
            parent_hash = parent.hash_with_sibling(&self.hash_of(step.copath));
            self.parents[step.node.parent()] = Some(parent);
        }
        self.hash_path(leaf);
        parent_hash
    }

    /// Replaces a leaf.
    pub(super) fn set_leaf(&mut self, index: usize, leaf: Vec<u8>) {
        self.leaves[index] = Some(leaf);
        self.hash_path(index);
    }

    /// The tree hash (§7.8).
    pub(super) fn hash(&self) -> [u8; 32] {
        self.hash_of(self.root())
    }

    fn hash_of(&self, subtree: Subtree) -> [u8; 32] {
        self.hashes[subtree.node()]
    }

    /// Computes the hashes of a leaf and of all above it.
    fn hash_path(&mut self, leaf: usize) {
        self.hash_node(Subtree { first: leaf, width: 1 });
        for step in self.direct_path(leaf) {
            self.hash_node(step.node);
        }
    }

    /// Computes all hashes in a subtree.
    fn hash_anew(&mut self, subtree: Subtree) {
        if subtree.width > 1 {
            let (left, right) = subtree.halves();
            self.hash_anew(left);
            self.hash_anew(right);
        }
        self.hash_node(subtree);
    }

    /// Computes the hash of a node from those of its children.
    fn hash_node(&mut self, subtree: Subtree) {
        let input = if subtree.width == 1 {
            let input = Encoder::new().u8(1).u32(subtree.first as u32);
            match &self.leaves[subtree.first] {
                Some(leaf) => input.u8(1).raw(leaf),
                None => input.u8(0),
            }
        } else {
            let (left, right) = subtree.halves();
            let input = match &self.parents[subtree.parent()] {
                Some(parent) => Encoder::new().u8(2).u8(1).raw(&parent.encode()),
                None => Encoder::new().u8(2).u8(0),
            };
            input.vector(&self.hash_of(left)).vector(&self.hash_of(right))
        };
        self.hashes[subtree.node()] = hash(&input.finish());
    }

    /// `optional<Node> ratchet_tree<V>`, without the blanks at its end (§12.4.3.3).
    pub(super) fn encode(&self) -> Vec<u8> {
        let node = |index: usize| {
            if index.is_multiple_of(2) {
                self.leaves[index / 2].as_ref().map(|leaf| Encoder::new().u8(1).u8(1).raw(leaf))
            } else {
                self.parents[index / 2].as_ref().map(|parent| Encoder::new().u8(1).u8(2).raw(&parent.encode()))
            }
        };
        let last = (0..2 * self.leaves.len() - 1).rev().find(|index| node(*index).is_some()).unwrap_or(0);
        let nodes = (0..=last).fold(Encoder::new(), |nodes, index| match node(index) {
            Some(node) => nodes.raw(&node.finish()),
            None => nodes.u8(0),
        });
        Encoder::new().vector(&nodes.finish()).finish()
    }
}
