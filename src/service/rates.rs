//! How many requests about groups a client may make, and how many may be made about one group.

use std::sync::{Mutex, PoisonError};

use crate::base::limits::{Limits, RATE_KEYS_MAX};
use crate::base::rate::{Rate, RateLimiter};
use crate::base::{GroupUri, UnixMillis, UserUri};
use crate::wire::Rejection;

/// The rates of one node. Memory: at most [`RATE_KEYS_MAX`] clients and as many groups, whatever is asked.
#[derive(Debug)]
pub struct RequestRates {
    per_client: Mutex<RateLimiter<Vec<u8>>>,
    per_group: Mutex<RateLimiter<GroupUri>>,
    external_commits: Mutex<RateLimiter<(GroupUri, UserUri)>>,
}

impl RequestRates {
    /// The rates that the limits name.
    pub fn new(limits: &Limits) -> Self {
        Self {
            per_client: Mutex::new(RateLimiter::new(Rate::per_second(limits.requests_per_client_per_second_max), RATE_KEYS_MAX)),
            per_group: Mutex::new(RateLimiter::new(Rate::per_second(limits.requests_per_group_per_second_max), RATE_KEYS_MAX)),
            external_commits: Mutex::new(RateLimiter::new(Rate::per_hour(limits.external_commits_per_hour_max), RATE_KEYS_MAX)),
        }
    }

    /// Counts a request that was verified with `key`. An unverified one must not come here: anybody could use up what is somebody
    /// else's.
    pub fn count_client(&self, key: &[u8], now: UnixMillis) -> Result<(), Rejection> {
        let mut limiter = self.per_client.lock().unwrap_or_else(PoisonError::into_inner);
        limiter.take(&key.to_vec(), now).map_err(Rejection::rate_limited)
    }

    /// Counts a request about `group` by somebody who may make one, for the same reason.
    pub fn count_group(&self, group: &GroupUri, now: UnixMillis) -> Result<(), Rejection> {
        let mut limiter = self.per_group.lock().unwrap_or_else(PoisonError::into_inner);
        limiter.take(group, now).map_err(Rejection::rate_limited)
    }

    /// Counts an external Commit of `user` to `group` that would be accepted: each costs all members the same as it costs us.
    pub fn count_external_commit(&self, group: &GroupUri, user: &UserUri, now: UnixMillis) -> Result<(), Rejection> {
        let mut limiter = self.external_commits.lock().unwrap_or_else(PoisonError::into_inner);
        limiter.take(&(group.clone(), user.clone()), now).map_err(Rejection::rate_limited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Domain;
    use crate::wire::ErrorCode;

    #[test]
    fn a_client_and_a_group_have_their_own_rates() {
        let limits = Limits { requests_per_client_per_second_max: 2, requests_per_group_per_second_max: 3, ..Limits::default() };
        let (rates, now) = (RequestRates::new(&limits), UnixMillis(1_700_000_000_000));
        let hub: Domain = "a.test".parse().expect("a domain");
        let group = GroupUri::new(&hub, &[1; 16]);
        for _ in 0..20 {
            rates.count_client(b"alice", now).expect("ten times the rate at once");
            rates.count_group(&group, now).expect("more than that");
        }
        let refused = rates.count_client(b"alice", now).expect_err("refused");
        assert_eq!(refused.code, ErrorCode::RateLimited);
        assert_eq!(refused.as_rate_limited().map(|detail| detail.retry_after_ms), Some(500));
        rates.count_client(b"bob", now).expect("another client's is untouched");
        for _ in 0..10 {
            rates.count_group(&group, now).expect("ten times the rate at once");
        }
        let refused = rates.count_group(&group, now).expect_err("refused");
        assert_eq!(refused.as_rate_limited().map(|detail| detail.retry_after_ms), Some(334));
        rates.count_group(&GroupUri::new(&hub, &[2; 16]), now).expect("another group's is untouched");
    }
}
