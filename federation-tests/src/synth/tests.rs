#![allow(clippy::unwrap_used, clippy::panic)]

use openmls::prelude::tls_codec::{Deserialize as _, Serialize as _};
use openmls::prelude::{
    LeafNodeIndex, MlsMessageBodyIn, MlsMessageIn, ProcessedMessageContent, ProposalStore, ProtocolMessage, PublicGroup,
    RatchetTreeIn,
};
use openmls_rust_crypto::{MemoryStorage, OpenMlsRustCrypto};
use openmls_traits::OpenMlsProvider as _;

use super::*;

fn now_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// Makes identities and KeyPackages.
struct People {
    rng: ChaCha20Rng,
    count: u32,
    now_s: u64,
}

impl People {
    fn new(seed: u64) -> Self {
        println!("seed {seed}");
        Self { rng: ChaCha20Rng::seed_from_u64(seed), count: 0, now_s: now_s() }
    }

    fn next(&mut self) -> KeyPackage {
        self.count += 1;
        let chain = [b"a client's certificate".to_vec(), self.count.to_be_bytes().to_vec()];
        let identity = Identity::new(&self.rng.random(), &chain);
        let extension = Extension { kind: 0xF0C0, data: vec![7; 100] };
        KeyPackage::new(identity, Capabilities::default(), &[extension], self.now_s, &mut self.rng)
    }

    fn several(&mut self, count: usize) -> Vec<KeyPackage> {
        (0..count).map(|_| self.next()).collect()
    }
}

fn body(octets: &[u8]) -> MlsMessageBodyIn {
    MlsMessageIn::tls_deserialize_exact(octets).unwrap().extract()
}

/// What an independent implementation makes of the group.
struct Observer {
    provider: OpenMlsRustCrypto,
    storage: MemoryStorage,
    group: PublicGroup,
}

impl Observer {
    fn new(group_info: &[u8], tree: &[u8]) -> Self {
        let (provider, storage) = (OpenMlsRustCrypto::default(), MemoryStorage::default());
        let MlsMessageBodyIn::GroupInfo(info) = body(group_info) else { panic!("not a GroupInfo") };
        let tree = RatchetTreeIn::tls_deserialize_exact(tree).unwrap();
        let (group, _) = PublicGroup::from_external(provider.crypto(), &storage, tree, info, ProposalStore::new()).unwrap();
        Self { provider, storage, group }
    }

    fn try_process(&mut self, commit: &[u8]) -> Result<(), String> {
        let message = MlsMessageIn::tls_deserialize_exact(commit).map_err(|error| error.to_string())?;
        let message: ProtocolMessage = message.try_into_protocol_message().map_err(|error| error.to_string())?;
        let processed = self.group.process_message(self.provider.crypto(), message).map_err(|error| format!("{error:?}"))?;
        let ProcessedMessageContent::StagedCommitMessage(staged) = processed.into_content() else {
            return Err("not a commit".into());
        };
        self.group.merge_commit(&self.storage, *staged).map_err(|error| format!("{error:?}"))
    }

    /// Follows a commit and agrees with its maker on everything, as does one who only now looks at the group.
    fn follow(&mut self, group: &SynthGroup, forged: &Forged) {
        self.try_process(&forged.commit).unwrap();
        self.agree(group);
        let fresh = Self::new(&forged.group_info, &group.ratchet_tree());
        fresh.agree(group);
    }

    fn agree(&self, group: &SynthGroup) {
        let context = self.group.group_context();
        assert_eq!(context.tree_hash(), group.tree_hash());
        assert_eq!(context.tls_serialize_detached().unwrap(), group.context());
        assert_eq!(self.group.export_ratchet_tree().tls_serialize_detached().unwrap(), group.ratchet_tree());
        let leaves: Vec<u32> = self.group.members().map(|member| member.index.u32()).collect();
        assert_eq!(leaves, group.leaves());
        for (leaf, member) in &group.members {
            let key = self.group.leaf(LeafNodeIndex::new(*leaf)).unwrap().signature_key();
            assert_eq!(key.as_slice(), member.identity.public_key());
        }
    }
}

fn create(people: &mut People, seed: u64) -> (SynthGroup, Observer) {
    let ds_key = [9; 32];
    let senders = Extension::external_senders(&[(&ds_key, &[b"the DS's certificate".to_vec()])]);
    let mut group = SynthGroup::create(b"mimi://a.test/g/0", &people.next(), &[senders], seed);
    let group_info = group.group_info_with_tree(0).unwrap();
    let observer = Observer::new(&group_info, &group.ratchet_tree());
    observer.agree(&group);
    (group, observer)
}

#[test]
fn a_group_of_any_size_is_accepted_step_by_step() {
    for size in 1..=9 {
        let mut people = People::new(size as u64);
        let (mut group, mut observer) = create(&mut people, size as u64);
        if size > 1 {
            let forged = group.add(0, people.several(size - 1)).unwrap();
            observer.follow(&group, &forged);
        }
        for leaf in group.leaves() {
            let forged = group.update(leaf).unwrap();
            observer.follow(&group, &forged);
        }
        if let Some(leaf) = group.leaves().into_iter().nth(size / 2).filter(|leaf| *leaf != 0) {
            let forged = group.remove(0, leaf).unwrap();
            observer.follow(&group, &forged);
            let committer = *group.leaves().last().unwrap();
            let forged = group.update(committer).unwrap();
            observer.follow(&group, &forged);
        }
        let committer = *group.leaves().last().unwrap();
        let forged = group.add(committer, people.several(3)).unwrap();
        observer.follow(&group, &forged);
        assert_eq!(group.epoch(), observer.group.group_context().epoch().as_u64());
    }
}

#[test]
fn random_changes_are_accepted() {
    for seed in 0..8 {
        let mut people = People::new(seed);
        let (mut group, mut observer) = create(&mut people, seed);
        for _ in 0..25 {
            let leaves = group.leaves();
            let committer = leaves[people.rng.random_range(0..leaves.len())];
            let mut change = Change::default();
            if people.rng.random_bool(0.4) {
                let others = leaves.iter().copied().filter(|leaf| *leaf != committer);
                change.remove = others.filter(|_| people.rng.random_bool(0.3)).collect();
            }
            if people.rng.random_bool(0.6) {
                let count = people.rng.random_range(1..5);
                change.add = people.several(count);
            }
            change.without_path = change.remove.is_empty() && !change.add.is_empty() && people.rng.random_bool(0.5);
            let forged = group.commit(committer, change).unwrap();
            observer.follow(&group, &forged);
        }
    }
}

#[test]
fn a_welcome_names_those_who_were_added() {
    let mut people = People::new(1);
    let (mut group, _) = create(&mut people, 1);
    let added = people.several(3);
    let forged = group.add(0, added.clone()).unwrap();
    let MlsMessageBodyIn::Welcome(welcome) = body(&forged.welcome) else { panic!("not a Welcome") };
    let named: Vec<Vec<u8>> = welcome.secrets().iter().map(|secret| secret.new_member().as_slice().to_vec()).collect();
    assert_eq!(named, added.iter().map(|package| package.reference().to_vec()).collect::<Vec<_>>());
    assert!(group.update(0).unwrap().welcome.is_empty());
}

#[test]
fn a_key_package_is_valid_and_its_reference_right() {
    let (mut people, provider) = (People::new(1), OpenMlsRustCrypto::default());
    let made = people.next();
    let MlsMessageBodyIn::KeyPackage(package) = body(&made.message()) else { panic!("not a KeyPackage") };
    let package = package.validate(provider.crypto(), openmls::prelude::ProtocolVersion::Mls10).unwrap();
    assert_eq!(package.tls_serialize_detached().unwrap(), made.octets());
    assert_eq!(package.hash_ref(provider.crypto()).unwrap().as_slice(), made.reference());
    assert_eq!(package.extensions().unknown(0xF0C0).unwrap().0, vec![7; 100]);
}

#[test]
fn what_is_made_depends_on_the_seed_alone() {
    let run = |seed| {
        let mut people = People { now_s: 1_700_000_000, ..People::new(5) };
        let first = people.next();
        let added = people.several(2);
        let mut group = SynthGroup::create(b"mimi://a.test/g/0", &first, &[], seed);
        group.add(0, added).unwrap()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).commit, run(2).commit);
}

#[test]
fn a_spoilt_commit_is_refused_and_an_impossible_one_is_not_made() {
    let mut people = People::new(1);
    let (mut group, mut observer) = create(&mut people, 1);
    let forged = group.add(0, people.several(2)).unwrap();
    observer.follow(&group, &forged);
    let before = group.clone();
    let forged = group.update(1).unwrap();
    let mut spoilt = forged.commit.clone();
    // Inside the new leaf: past the header, in its signature key.
    spoilt[80] ^= 1;
    assert!(observer.try_process(&spoilt).is_err());
    // The refused commit never was: another one of the same epoch follows.
    group = before;
    let forged = group.update(2).unwrap();
    observer.follow(&group, &forged);
    assert_eq!(group.update(3), Err(SynthError::NotAMember(3)));
    assert_eq!(group.remove(0, 3), Err(SynthError::NotAMember(3)));
    assert_eq!(group.remove(0, 0), Err(SynthError::RemovesItself(0)));
}

#[test]
fn external_commits_and_covered_proposals_are_accepted() {
    let mut people = People::new(2);
    let (mut group, mut observer) = create(&mut people, 2);
    let forged = group.add(0, people.several(4)).unwrap();
    observer.follow(&group, &forged);
    for seed in 0..12 {
        let identity = people.next().identity;
        let leaves = group.leaves();
        // Resync: who comes back removes what it was.
        let remove = (seed % 3 == 1).then(|| leaves[seed % leaves.len()]);
        let joiner = remove.map_or(identity, |leaf| group.identity(leaf).unwrap().clone());
        let (joined, forged) = group.join(&joiner, &Capabilities::default(), remove).unwrap();
        observer.follow(&group, &forged);
        assert!(group.leaves().contains(&joined));

        let proposer = *group.leaves().first().unwrap();
        let (message, proposal) = group.propose_update(proposer).unwrap();
        let message = MlsMessageIn::tls_deserialize_exact(&message).unwrap().try_into_protocol_message().unwrap();
        let processed = observer.group.process_message(observer.provider.crypto(), message).unwrap();
        let ProcessedMessageContent::ProposalMessage(queued) = processed.into_content() else { panic!("not a proposal") };
        assert_eq!(queued.proposal_reference_ref().as_slice(), proposal.reference);
        observer.group.add_proposal(&observer.storage, *queued).unwrap();
        let change = Change { cover: vec![proposal], ..Change::default() };
        let forged = group.commit(joined, change).unwrap();
        observer.follow(&group, &forged);
    }
    assert!(group.join(&people.next().identity, &Capabilities::default(), Some(99)).is_err());
}
