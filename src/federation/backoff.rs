//! The only back-off policy of the node: exponential, jittered, capped (C4). Pure.

use std::time::Duration;

use rand::Rng;

use crate::base::limits;

/// How long to wait between tries that fail; the default is [`limits::BACKOFF_FIRST`] to [`limits::BACKOFF_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure, about.
    pub first: Duration,
    /// Never longer.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: limits::BACKOFF_FIRST, max: limits::BACKOFF_MAX }
    }
}

impl Backoff {
    /// How long to wait after the `failures`-th failure in a row (counted from 1): the first wait, doubled with each further
    /// failure, at most the longest; spread by ±[`limits::BACKOFF_JITTER_PERCENT`], so that the peers of a node that was down do
    /// not all return at once.
    pub fn delay(&self, failures: u32, rng: &mut impl Rng) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        // The cap leaves room for the jitter, which would otherwise pile up at the maximum.
        let cap = self.max * 100 / (100 + limits::BACKOFF_JITTER_PERCENT);
        let nominal = self.first.saturating_mul(1 << doublings).min(cap);
        let percent = rng.random_range(100 - limits::BACKOFF_JITTER_PERCENT..=100 + limits::BACKOFF_JITTER_PERCENT);
        nominal * percent / 100
    }
}

/// [`Backoff::delay`] with the default waits.
pub fn delay(failures: u32, rng: &mut impl Rng) -> Duration {
    Backoff::default().delay(failures, rng)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn delays_double_within_their_jitter_up_to_the_cap() {
        let mut rng = StdRng::seed_from_u64(1);
        for failures in 1..=8 {
            let nominal = limits::BACKOFF_FIRST * (1 << (failures - 1));
            for _ in 0..100 {
                let delay = delay(failures, &mut rng);
                assert!((nominal * 8 / 10..=nominal * 12 / 10).contains(&delay), "{failures}: {delay:?}");
            }
        }
        for failures in [10, 40, u32::MAX] {
            let delays: Vec<_> = (0..100).map(|_| delay(failures, &mut rng)).collect();
            assert!(delays.iter().all(|delay| (limits::BACKOFF_MAX / 2..=limits::BACKOFF_MAX).contains(delay)));
            assert!(delays.windows(2).any(|two| two[0] != two[1]), "there is jitter at the cap too");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_delays() {
        let delays = |seed| -> Vec<_> {
            let mut rng = StdRng::seed_from_u64(seed);
            (1..9).map(|failures| delay(failures, &mut rng)).collect()
        };
        assert_eq!(delays(5), delays(5));
        assert_ne!(delays(5), delays(6));
    }

    #[test]
    fn a_cap_below_the_first_wait_holds_too() {
        let mut rng = StdRng::seed_from_u64(2);
        let impatient = Backoff { max: Duration::from_millis(300), ..Backoff::default() };
        assert!((1..40).all(|failures| impatient.delay(failures, &mut rng) <= impatient.max));
    }
}
