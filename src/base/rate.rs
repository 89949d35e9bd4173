//! How often somebody may do something: a rate per key, in bounded memory, without a clock of its own.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::Duration;

use super::UnixMillis;

/// `count` times in `per`, in the long run, and `burst` times at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many times; at least once.
    pub count: u32,
    /// In how long.
    pub per: Duration,
    /// How many times at once, after a rest; at least once.
    pub burst: u32,
}

impl Rate {
    /// `count` a second, and ten times as many at once.
    pub fn per_second(count: u32) -> Self {
        Self { count, per: Duration::from_secs(1), burst: count.saturating_mul(10) }
    }

    /// `count` a minute, all of them at once if need be.
    pub fn per_minute(count: u32) -> Self {
        Self { count, per: Duration::from_secs(60), burst: count }
    }

    /// `count` an hour, all of them at once if need be.
    pub fn per_hour(count: u32) -> Self {
        Self { count, per: Duration::from_secs(60 * 60), burst: count }
    }

    /// What one token takes to come back, in nanoseconds; at least 1.
    fn token_nanos(self) -> u64 {
        let per = u64::try_from(self.per.as_nanos()).unwrap_or(u64::MAX);
        (per / u64::from(self.count.max(1))).max(1)
    }
}

/// A bucket of tokens for each key, which fills at a [`Rate`]. A bucket is one number, the time at which it will be full again
/// (the generic cell rate algorithm); a full one is not kept, because it is like one that was never used.
///
/// At most `keys_max` buckets are kept. When another one is needed, the one that is nearest to full goes: that forgives the least.
#[derive(Debug)]
pub struct RateLimiter<K> {
    /// Of every key that is not given another one.
    rate: Rate,
    keys_max: usize,
    /// When each bucket is full, in nanoseconds since 1970.
    full_at: HashMap<K, u64>,
    by_time: BTreeSet<(u64, K)>,
}

impl<K: Clone + Eq + Hash + Ord> RateLimiter<K> {
    /// Full buckets for everyone. `keys_max`: how many that are not full are remembered, at least one.
    pub fn new(rate: Rate, keys_max: usize) -> Self {
        Self { rate, keys_max: keys_max.max(1), full_at: HashMap::new(), by_time: BTreeSet::new() }
    }

    /// Takes a token of `key`. `Err`: there is none, and will be one after this long; nothing changes.
    pub fn take(&mut self, key: &K, now: UnixMillis) -> Result<(), Duration> {
        self.take_at(key, self.rate, 1, now)
    }

    /// As [`RateLimiter::take`], of a key with a rate of its own, and `count` tokens at once; as many as the bucket holds where that
    /// is fewer, so that nothing has to wait for ever.
    pub fn take_at(&mut self, key: &K, rate: Rate, count: u32, now: UnixMillis) -> Result<(), Duration> {
        let now = now.0.saturating_mul(1_000_000);
        self.forget_full(now);
        let token_nanos = rate.token_nanos();
        let burst_nanos = token_nanos.saturating_mul(u64::from(rate.burst.max(1)));
        let latest = now.saturating_add(burst_nanos);
        let stored = self.full_at.get(key).copied().unwrap_or(now);
        if stored > latest {
            // The clock was set back: an empty bucket is the most that it costs.
            self.put(key, latest);
        }
        let cost = token_nanos.saturating_mul(u64::from(count)).min(burst_nanos);
        let after = stored.clamp(now, latest).saturating_add(cost);
        if after > latest {
            return Err(Duration::from_nanos(after - latest));
        }
        self.put(key, after);
        while self.full_at.len() > self.keys_max {
            let Some((_, key)) = self.by_time.pop_first() else { break };
            self.full_at.remove(&key);
        }
        Ok(())
    }

    /// Fills the bucket of a key, as when its rate has changed.
    pub fn forget(&mut self, key: &K) {
        if let Some(full_at) = self.full_at.remove(key) {
            self.by_time.remove(&(full_at, key.clone()));
        }
    }

    fn put(&mut self, key: &K, full_at: u64) {
        if let Some(old) = self.full_at.insert(key.clone(), full_at) {
            self.by_time.remove(&(old, key.clone()));
        }
        self.by_time.insert((full_at, key.clone()));
    }

    /// How many buckets are remembered.
    pub fn len(&self) -> usize {
        self.full_at.len()
    }

    /// Whether every bucket is full.
    pub fn is_empty(&self) -> bool {
        self.full_at.is_empty()
    }

    /// A few of them each time, so that no call is slow; more than can become new.
    fn forget_full(&mut self, now: u64) {
        for _ in 0..2 {
            if self.by_time.first().is_none_or(|(full_at, _)| *full_at > now) {
                return;
            }
            if let Some((_, key)) = self.by_time.pop_first() {
                self.full_at.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: UnixMillis = UnixMillis(1_700_000_000_000);

    fn limiter(keys_max: usize) -> RateLimiter<u32> {
        RateLimiter::new(Rate::per_second(5), keys_max)
    }

    /// How many tokens of `key` there are at once.
    fn drain(limiter: &mut RateLimiter<u32>, key: u32, now: UnixMillis) -> (u32, Duration) {
        for taken in 0.. {
            if let Err(wait) = limiter.take(&key, now) {
                return (taken, wait);
            }
        }
        unreachable!("a bucket is finite")
    }

    #[test]
    fn ten_times_the_rate_at_once_and_then_the_rate() {
        let mut limiter = limiter(10);
        assert_eq!(drain(&mut limiter, 1, START), (50, Duration::from_millis(200)));
        assert_eq!(drain(&mut limiter, 2, START).0, 50, "another key has a bucket of its own");
        let second = START.plus(Duration::from_secs(1));
        assert_eq!(drain(&mut limiter, 1, second).0, 5);
        assert!(limiter.take(&1, second.plus(Duration::from_millis(199))).is_err());
        assert!(limiter.take(&1, second.plus(Duration::from_millis(200))).is_ok(), "the wait that it was told is enough");
        assert_eq!(drain(&mut limiter, 1, START.plus(Duration::from_secs(3_600))).0, 50, "never more than full");
    }

    #[test]
    fn an_hourly_rate_may_be_used_at_once() {
        let mut limiter = RateLimiter::new(Rate::per_hour(60), 10);
        assert_eq!(drain(&mut limiter, 1, START), (60, Duration::from_secs(60)));
    }

    #[test]
    fn a_key_may_have_a_rate_of_its_own_and_take_many_at_once() {
        let mut limiter = limiter(10);
        let own = Rate::per_second(1_000_000);
        assert_eq!(limiter.take_at(&1, own, 9_000_000, START), Ok(()));
        assert_eq!(limiter.take_at(&1, own, 2_000_000, START), Err(Duration::from_secs(1)));
        assert_eq!(limiter.take_at(&1, own, 1_000_000, START), Ok(()), "what was refused cost nothing");
        assert_eq!(drain(&mut limiter, 2, START).0, 50, "the others have the common one");
        assert_eq!(limiter.take_at(&3, own, u32::MAX, START), Ok(()), "more than a bucket holds costs a whole one");
        assert!(limiter.take_at(&3, own, 1, START).is_err());
        limiter.forget(&3);
        assert_eq!((limiter.take_at(&3, own, 1, START), limiter.len()), (Ok(()), 3));
    }

    #[test]
    fn memory_is_bounded_and_the_fullest_bucket_goes_first() {
        let mut limiter = limiter(3);
        assert_eq!(drain(&mut limiter, 1, START).0, 50);
        for key in 2..=100 {
            assert!(limiter.take(&key, START).is_ok());
            assert!(limiter.len() <= 3);
        }
        assert!(limiter.take(&1, START).is_err(), "many keys do not buy a new bucket to one that is used up");
        // Once full, they are forgotten as others ask.
        let later = START.plus(Duration::from_secs(60));
        for _ in 0..3 {
            limiter.take(&7, later).expect("full");
        }
        assert_eq!(limiter.len(), 1);
        assert!(!limiter.is_empty());
    }

    #[test]
    fn a_clock_that_is_set_back_locks_nobody_out() {
        let mut limiter = limiter(10);
        drain(&mut limiter, 1, START);
        let earlier = START.minus(Duration::from_secs(86_400));
        let (_, wait) = drain(&mut limiter, 1, earlier);
        assert!(wait <= Duration::from_millis(200), "{wait:?}");
        assert!(limiter.take(&1, earlier.plus(wait)).is_ok());
    }
}
