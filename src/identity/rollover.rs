//! How what is pinned of a domain's AS roots follows the domain (X2): it changes by steps that one of the pinned roots signed, and by
//! nothing else. An operator's own decision is made elsewhere.

use super::chain::{AsRoots, ChainError};
use crate::base::UnixMillis;
use crate::base::crypto::sha256;
use crate::base::limits::AS_ROOT_STATEMENTS_MAX;

/// Tells whether a raw Ed25519 key signed something.
pub type SignedBy<'a> = dyn Fn(&[u8; 32]) -> bool + 'a;

/// A statement of a domain as far as it is judged here.
pub struct RootStep<'a> {
    /// Its number; later ones have greater ones.
    pub version: u64,
    /// All roots (DER) that are good from then on.
    pub roots: Vec<Vec<u8>>,
    /// Whether a raw Ed25519 key signed it, for the domain whose roots are followed.
    pub is_signed_by: Box<SignedBy<'a>>,
}

/// Why a domain's published roots cannot be followed to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotFollowed {
    /// There are more statements than a domain publishes.
    #[error("it publishes more than {AS_ROOT_STATEMENTS_MAX} statements about its AS roots")]
    TooMany,
    /// Statements are to be told apart by their numbers.
    #[error("its statements about its AS roots are not in the order of their numbers")]
    OutOfOrder,
    /// No way that pinned roots signed leads to the published set.
    #[error("it publishes AS roots that none of those pinned here vouches for")]
    Unsigned,
    /// A root that a pinned one vouches for is not usable.
    #[error("it vouches for an AS root that cannot be used: {0}")]
    Unusable(#[from] ChainError),
}

/// The fingerprint of a root: SHA-256 of its certificate (DER).
pub fn fingerprint(root: &[u8]) -> [u8; 32] {
    sha256(root)
}

/// At first sight of a domain that publishes these roots and says this about them: the last word must be theirs. Returns its
/// version; 0 without one.
pub fn begin(published: &AsRoots, steps: &[RootStep<'_>]) -> Result<u64, NotFollowed> {
    check_order(steps)?;
    let Some(last) = steps.last() else { return Ok(0) };
    let is_theirs = published.is_exactly(&last.roots) && published.public_keys().any(|key| (last.is_signed_by)(key));
    if is_theirs { Ok(last.version) } else { Err(NotFollowed::Unsigned) }
}

fn check_order(steps: &[RootStep<'_>]) -> Result<(), NotFollowed> {
    if steps.len() > AS_ROOT_STATEMENTS_MAX {
        return Err(NotFollowed::TooMany);
    }
    let in_order = steps.iter().map(|step| step.version).is_sorted_by(|before, next| before < next);
    if in_order { Ok(()) } else { Err(NotFollowed::OutOfOrder) }
}

/// The roots and the version that `pinned`, of `version`, come to by `steps`, oldest first, when `published` is the set that the
/// domain says is its own now. `None`: nothing has changed. Whatever is refused leaves the pinned roots as they are.
pub fn follow(
    pinned: &AsRoots,
    version: u64,
    published: &[Vec<u8>],
    steps: &[RootStep<'_>],
    now: UnixMillis,
) -> Result<Option<(AsRoots, u64)>, NotFollowed> {
    check_order(steps)?;
    let mut reached: Option<(AsRoots, u64)> = None;
    for step in steps {
        let (roots, version) = reached.as_ref().map_or((pinned, version), |(roots, version)| (roots, *version));
        // One from before, or one that only roots of before could vouch for, is passed over: another may lead on.
        if step.version <= version || !roots.keys_valid(now).any(|key| (step.is_signed_by)(key)) {
            continue;
        }
        reached = Some((AsRoots::new(pinned.domain().clone(), step.roots.clone())?, step.version));
    }
    let here = reached.as_ref().map_or(pinned, |(roots, _)| roots);
    if here.is_exactly(published) { Ok(reached) } else { Err(NotFollowed::Unsigned) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::{Rng as _, SeedableRng as _};

    use super::*;
    use crate::base::Domain;
    use crate::base::limits::ROOT_LIFETIME;
    use crate::identity::AsRoot;

    const NOW: UnixMillis = UnixMillis(1_750_000_000_000);

    fn domain() -> Domain {
        "a.test".parse().expect("a domain")
    }

    fn root() -> AsRoot {
        AsRoot::create(&domain(), NOW).expect("a root")
    }

    fn set(roots: &[&AsRoot]) -> Vec<Vec<u8>> {
        roots.iter().map(|root| root.certificate().to_vec()).collect()
    }

    fn pins(roots: &[&AsRoot]) -> AsRoots {
        AsRoots::new(domain(), set(roots)).expect("roots")
    }

    fn step<'a>(version: u64, roots: &[&AsRoot], signer: &'a AsRoot) -> RootStep<'a> {
        RootStep { version, roots: set(roots), is_signed_by: Box::new(|key| key[..] == *signer.key().public()) }
    }

    fn certificates(roots: &AsRoots) -> Vec<Vec<u8>> {
        roots.certificates().map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn a_root_comes_and_goes_by_the_word_of_one_that_is_known() {
        let (one, two, three) = (root(), root(), root());
        let at_first = pins(&[&one]);
        assert!(follow(&at_first, 0, &set(&[&one]), &[], NOW).expect("as pinned").is_none());
        let rolled = [step(1, &[&one, &two], &one)];
        let (both, version) = follow(&at_first, 0, &set(&[&one, &two]), &rolled, NOW).expect("signed").expect("new");
        assert_eq!((certificates(&both), version), (set(&[&one, &two]), 1));
        assert!(follow(&both, 1, &set(&[&two, &one]), &rolled, NOW).expect("known").is_none(), "in whatever order");
        let all =
            [step(1, &[&one, &two], &one), step(2, &[&two], &two), step(3, &[&two, &three], &two), step(4, &[&three], &three)];
        let (only, version) = follow(&at_first, 0, &set(&[&three]), &all, NOW).expect("a chain of steps").expect("new");
        assert_eq!((certificates(&only), version), (set(&[&three]), 4));
        let (only, _) = follow(&both, 1, &set(&[&three]), &all, NOW).expect("from the middle").expect("new");
        assert_eq!(certificates(&only), set(&[&three]));
    }

    #[test]
    fn nothing_else_moves_what_is_pinned() {
        let (one, two) = (root(), root());
        let at_first = pins(&[&one]);
        let refused = |published: &[&AsRoot], steps: &[RootStep<'_>], version, now| {
            follow(&at_first, version, &set(published), steps, now).expect_err("refused")
        };
        assert_eq!(refused(&[&one, &two], &[], 0, NOW), NotFollowed::Unsigned, "no statement at all");
        assert_eq!(refused(&[&one, &two], &[step(1, &[&one, &two], &two)], 0, NOW), NotFollowed::Unsigned, "by itself");
        assert_eq!(refused(&[&one, &two], &[step(3, &[&one, &two], &one)], 3, NOW), NotFollowed::Unsigned, "an old one");
        assert_eq!(refused(&[&two], &[step(1, &[&one, &two], &one)], 0, NOW), NotFollowed::Unsigned, "another set than is said");
        let late = NOW.plus(ROOT_LIFETIME).plus(Duration::from_secs(1));
        let expired = refused(&[&one, &two], &[step(1, &[&one, &two], &one)], 0, late);
        assert_eq!(expired, NotFollowed::Unsigned, "by one whose time is over");
        let many: Vec<_> = (1..=AS_ROOT_STATEMENTS_MAX as u64 + 1).map(|version| step(version, &[&one], &one)).collect();
        assert_eq!(refused(&[&one], &many, 0, NOW), NotFollowed::TooMany);
        let foreign = AsRoot::create(&"b.test".parse().expect("a domain"), NOW).expect("a root");
        let unusable = refused(&[&foreign], &[step(1, &[&foreign], &one)], 0, NOW);
        assert!(matches!(unusable, NotFollowed::Unusable(ChainError::WrongDomain { .. })), "a root of another domain");
        let nobody = RootStep { version: 1, roots: vec![], is_signed_by: Box::new(|_| true) };
        assert_eq!(refused(&[], &[nobody], 0, NOW), NotFollowed::Unusable(ChainError::NoRoots), "none at all");
    }

    #[test]
    fn at_first_sight_the_last_word_is_the_published_roots() {
        let (one, two) = (root(), root());
        assert_eq!(begin(&pins(&[&one]), &[]), Ok(0));
        let said = [step(1, &[&one, &two], &one), step(4, &[&two], &two)];
        assert_eq!(begin(&pins(&[&two]), &said), Ok(4));
        assert_eq!(begin(&pins(&[&one]), &said), Err(NotFollowed::Unsigned), "another set");
        assert_eq!(begin(&pins(&[&two]), &[step(4, &[&two], &one)]), Err(NotFollowed::Unsigned), "another's word");
        let twice = [step(4, &[&two], &two), step(4, &[&two], &two)];
        assert_eq!(begin(&pins(&[&two]), &twice), Err(NotFollowed::OutOfOrder));
    }

    /// Whatever is published in whatever order: each pinned set differs from the one before only if a root of a pinned set on the
    /// way signed a step to it, and versions grow.
    #[test]
    fn the_pinned_set_changes_by_signed_steps_only() {
        let seed: u64 = std::env::var("MIMI_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
        println!("MIMI_TEST_SEED={seed}");
        let mut rng = rand_chacha::ChaCha20Rng::seed_from_u64(seed);
        let all: Vec<AsRoot> = (0..5).map(|_| root()).collect();
        let mut moved = 0;
        for _ in 0..400 {
            let first = rng.random_range(0..all.len());
            let (mut pinned, mut version) = (pins(&[&all[first]]), 0);
            for _ in 0..6 {
                // (version, members as bits, signer)
                let mut said: Vec<(u64, u8, usize)> = (0..rng.random_range(0..5))
                    .map(|_| (rng.random_range(0..20), rng.random_range(1..32), rng.random_range(0..all.len())))
                    .collect();
                if rng.random_range(0..8) > 0 {
                    said.sort_unstable();
                    said.dedup_by_key(|(version, ..)| *version);
                }
                let of = |bits: u8| -> Vec<&AsRoot> {
                    all.iter().enumerate().filter(|(bit, _)| bits >> bit & 1 == 1).map(|(_, root)| root).collect()
                };
                let steps: Vec<RootStep<'_>> =
                    said.iter().map(|(version, bits, signer)| step(*version, &of(*bits), &all[*signer])).collect();
                let published = match said.last() {
                    Some((_, bits, _)) if rng.random_range(0..4) > 0 => set(&of(*bits)),
                    _ => set(&of(rng.random_range(1..32))),
                };
                let before = certificates(&pinned);
                let Ok(Some((roots, next))) = follow(&pinned, version, &published, &steps, NOW) else { continue };
                moved += 1;
                assert!(next > version);
                // An independent walk: which sets the steps allow from here.
                let (mut here, mut at) = (before, version);
                for (version, bits, signer) in &said {
                    if *version > at && here.contains(&all[*signer].certificate().to_vec()) {
                        (here, at) = (set(&of(*bits)), *version);
                    }
                }
                let (mut found, mut wanted) = (certificates(&roots), here);
                found.sort();
                wanted.sort();
                assert_eq!((found, next), (wanted.clone(), at));
                let mut published = published;
                published.sort();
                assert_eq!(wanted, published, "and it is what the domain says it is");
                (pinned, version) = (roots, next);
            }
        }
        assert!(moved > 20, "only {moved} moves: nothing was tried");
    }
}
