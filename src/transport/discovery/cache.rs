//! What was answered before, and for how long it counts. Pure: it takes `now`.
//!
//! | outcome | asked again after | until then |
//! |---|---|---|
//! | records | their TTL, clamped | the records |
//! | no such name (NXDOMAIN) | the zone's negative TTL (RFC 2308), clamped | the same failure |
//! | no such records | the same, clamped lower: whoever has the name is about to add them | the same failure |
//! | the name server failed | [`limits::DNS_FAILURE_KEPT`] | earlier records, however old within bounds (RFC 8767), else the failure |
//! | no answer in time | [`limits::DNS_SILENCE_KEPT`] | the same |

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::base::limits;

/// Why a question has no records for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// NXDOMAIN.
    NoSuchName,
    /// The name exists, records of this type do not.
    NoRecords,
    /// SERVFAIL, REFUSED, or no name server could be reached.
    Server(String),
    /// Silence.
    TimedOut,
}

/// What a question led to: the records with their TTL, or why there are none with the zone's negative TTL, if it has one.
pub(super) type Outcome<V> = Result<(V, Duration), (Failure, Option<Duration>)>;

/// How sure an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Written in the configuration.
    Configured,
    /// Answered just now.
    Asked,
    /// Answered before, within its TTL.
    Cached,
    /// Older than its TTL, because the name servers fail.
    Stale,
}

/// How long answers count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetimes {
    pub(super) ttl_min: Duration,
    pub(super) ttl_max: Duration,
    pub(super) stale_max: Duration,
}

/// Answers to questions `K`, at most so many.
#[derive(Debug)]
pub(super) struct Cache<K, V> {
    entries: HashMap<K, Entry<V>>,
    entries_max: usize,
    lifetimes: Lifetimes,
}

#[derive(Debug)]
struct Entry<V> {
    /// The last records, and until when they serve while nothing better is known.
    records: Option<(V, Instant)>,
    /// Why the last question had none, if it had none.
    failure: Option<Failure>,
    /// When to ask again.
    fresh_until: Instant,
    used: Instant,
}

impl<K: Clone + Eq + Hash, V: Clone> Cache<K, V> {
    pub(super) fn new(entries_max: usize, lifetimes: Lifetimes) -> Self {
        Self { entries: HashMap::new(), entries_max, lifetimes }
    }

    /// The answer that counts now; `None`: ask.
    pub(super) fn known(&mut self, question: &K, now: Instant) -> Option<Result<(V, Origin), Failure>> {
        let entry = self.entries.get_mut(question).filter(|entry| now < entry.fresh_until)?;
        entry.used = now;
        Some(match (&entry.failure, &entry.records) {
            (None, Some((records, _))) => Ok((records.clone(), Origin::Cached)),
            (Some(_), Some((records, stale_until))) if now < *stale_until => Ok((records.clone(), Origin::Stale)),
            (failure, _) => Err(failure.clone().unwrap_or(Failure::TimedOut)),
        })
    }

    /// Takes what a question led to and returns what to answer.
    pub(super) fn learn(&mut self, question: K, outcome: Outcome<V>, now: Instant) -> Result<(V, Origin), Failure> {
        let clamped = |ttl: Option<Duration>, max| ttl.unwrap_or_default().clamp(self.lifetimes.ttl_min.min(max), max);
        let (records, failure, fresh_for) = match outcome {
            Ok((records, ttl)) => {
                let ttl = clamped(Some(ttl), self.lifetimes.ttl_max);
                (Some((records, now + ttl + self.lifetimes.stale_max)), None, ttl)
            }
            Err((Failure::NoSuchName, ttl)) => (None, Some(Failure::NoSuchName), clamped(ttl, limits::DNS_NO_SUCH_NAME_KEPT_MAX)),
            Err((Failure::NoRecords, ttl)) => (None, Some(Failure::NoRecords), clamped(ttl, limits::DNS_NO_RECORDS_KEPT_MAX)),
            // The records' owner has not spoken: what it said before still stands.
            Err((failure, _)) => {
                let before = self.entries.remove(&question).and_then(|entry| entry.records);
                let kept = if failure == Failure::TimedOut { limits::DNS_SILENCE_KEPT } else { limits::DNS_FAILURE_KEPT };
                (before.filter(|(_, stale_until)| now < *stale_until), Some(failure), kept)
            }
        };
        let answer = match (&records, &failure) {
            (Some((records, _)), None) => Ok((records.clone(), Origin::Asked)),
            (Some((records, _)), Some(_)) => Ok((records.clone(), Origin::Stale)),
            (None, failure) => Err(failure.clone().unwrap_or(Failure::TimedOut)),
        };
        if self.entries.len() >= self.entries_max && !self.entries.contains_key(&question) {
            self.make_room();
        }
        self.entries.insert(question, Entry { records, failure, fresh_until: now + fresh_for, used: now });
        answer
    }

    /// The answer is in doubt, as when nobody was found where it points: ask again, but keep it for when that fails.
    pub(super) fn doubt(&mut self, question: &K, now: Instant) {
        if let Some(entry) = self.entries.get_mut(question) {
            entry.fresh_until = entry.fresh_until.min(now);
        }
    }

    /// What was last known, whatever it is worth now.
    pub(super) fn last_records(&self, question: &K) -> Option<&V> {
        self.entries.get(question)?.records.as_ref().map(|(records, _)| records)
    }

    pub(super) fn forget(&mut self, question: &K) {
        self.entries.remove(question);
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }

    /// Failures go before records, for anyone can ask for names that do not exist; then what was not used for longest.
    fn make_room(&mut self) {
        let least = self.entries.iter().min_by_key(|(_, entry)| (entry.records.is_some(), entry.used));
        if let Some(question) = least.map(|(question, _)| question.clone()) {
            self.entries.remove(&question);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIMES: Lifetimes =
        Lifetimes { ttl_min: Duration::from_secs(5), ttl_max: Duration::from_secs(100), stale_max: Duration::from_secs(1_000) };

    fn cache() -> (Cache<&'static str, u8>, Instant) {
        (Cache::new(3, LIFETIMES), Instant::now())
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const MOMENT: Duration = Duration::from_millis(1);

    #[test]
    fn records_count_for_their_ttl_within_bounds() {
        let (mut cache, now) = cache();
        for (ttl, counts) in [(0, 5), (5, 5), (60, 60), (100, 100), (1_000_000, 100)] {
            assert_eq!(cache.learn("a", Ok((1, seconds(ttl))), now), Ok((1, Origin::Asked)));
            assert_eq!(cache.known(&"a", now + seconds(counts) - MOMENT), Some(Ok((1, Origin::Cached))));
            assert_eq!(cache.known(&"a", now + seconds(counts)), None, "TTL {ttl}");
        }
    }

    #[test]
    fn each_failure_counts_for_a_time_of_its_own() {
        let (mut cache, now) = cache();
        let server = || Failure::Server("SERVFAIL".to_owned());
        for (failure, ttl, counts) in [
            (Failure::NoSuchName, Some(seconds(60)), seconds(60)),
            (Failure::NoSuchName, None, seconds(5)),
            (Failure::NoSuchName, Some(seconds(1 << 30)), limits::DNS_NO_SUCH_NAME_KEPT_MAX),
            (Failure::NoRecords, Some(seconds(1 << 30)), limits::DNS_NO_RECORDS_KEPT_MAX),
            (Failure::NoRecords, Some(seconds(7)), seconds(7)),
            (server(), Some(seconds(60)), limits::DNS_FAILURE_KEPT),
            (Failure::TimedOut, None, limits::DNS_SILENCE_KEPT),
        ] {
            assert_eq!(cache.learn("a", Err((failure.clone(), ttl)), now), Err(failure.clone()));
            assert_eq!(cache.known(&"a", now + counts - MOMENT), Some(Err(failure.clone())));
            assert_eq!(cache.known(&"a", now + counts), None, "{failure:?}");
        }
        let kept = [
            limits::DNS_NO_SUCH_NAME_KEPT_MAX,
            limits::DNS_NO_RECORDS_KEPT_MAX,
            limits::DNS_SILENCE_KEPT,
            limits::DNS_FAILURE_KEPT,
        ];
        assert!(kept.is_sorted_by(|a, b| a > b), "different outcomes, different caching");
    }

    #[test]
    fn old_records_serve_through_failures_and_not_through_denials() {
        for failure in [Failure::Server("SERVFAIL".to_owned()), Failure::TimedOut] {
            let (mut cache, now) = cache();
            let _ = cache.learn("a", Ok((1, seconds(60))), now);
            let later = now + seconds(61);
            assert_eq!(cache.known(&"a", later), None, "it is asked first");
            assert_eq!(cache.learn("a", Err((failure.clone(), None)), later), Ok((1, Origin::Stale)));
            assert_eq!(cache.known(&"a", later + MOMENT), Some(Ok((1, Origin::Stale))), "nobody waits for the failure again");
            let last = now + seconds(60 + 1_000) - MOMENT;
            assert_eq!(cache.learn("a", Err((failure.clone(), None)), last), Ok((1, Origin::Stale)));
            assert_eq!(cache.known(&"a", last + MOMENT), Some(Err(failure.clone())), "not for ever");
            assert_eq!(cache.learn("a", Err((failure.clone(), None)), last + MOMENT), Err(failure));
        }
        for denial in [Failure::NoSuchName, Failure::NoRecords] {
            let (mut cache, now) = cache();
            let _ = cache.learn("a", Ok((1, seconds(60))), now);
            let later = now + seconds(61);
            assert_eq!(cache.learn("a", Err((denial.clone(), None)), later), Err(denial.clone()));
            assert_eq!(cache.learn("a", Err((Failure::TimedOut, None)), later), Err(Failure::TimedOut), "gone for good");
        }
    }

    #[test]
    fn a_doubted_answer_is_asked_for_again_and_kept() {
        let (mut cache, now) = cache();
        let _ = cache.learn("a", Ok((1, seconds(60))), now);
        cache.doubt(&"a", now);
        cache.doubt(&"b", now);
        assert_eq!(cache.known(&"a", now), None);
        assert_eq!(cache.learn("a", Err((Failure::TimedOut, None)), now), Ok((1, Origin::Stale)));
        cache.forget(&"a");
        assert_eq!(cache.learn("a", Err((Failure::TimedOut, None)), now), Err(Failure::TimedOut));
    }

    #[test]
    fn it_is_bounded_and_names_that_do_not_exist_push_nobody_out() {
        let (mut cache, now) = cache();
        let _ = cache.learn("a", Ok((1, seconds(60))), now);
        let _ = cache.learn("b", Ok((2, seconds(60))), now + MOMENT);
        for name in ["x", "y", "z"] {
            let _ = cache.learn(name, Err((Failure::NoSuchName, Some(seconds(60)))), now + MOMENT * 2);
        }
        assert_eq!(cache.entries.len(), 3);
        assert!(cache.known(&"a", now + MOMENT * 3).is_some() && cache.known(&"z", now).is_some());
        let _ = cache.learn("c", Ok((3, seconds(60))), now + MOMENT * 4);
        let _ = cache.learn("d", Ok((4, seconds(60))), now + MOMENT * 5);
        assert!(cache.known(&"b", now + MOMENT * 6).is_none(), "used longest ago");
        assert_eq!(cache.entries.len(), 3);
    }
}
