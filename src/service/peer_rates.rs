//! How much each peer asks of this node, whoever of its users it is, against what it may ([`PeerLimits`]). Pure: it takes `now`.
//!
//! Who is over a limit is told how long to wait. Who goes on all the same uses up its patience, which is as large as what it may
//! ask for and comes back as fast: asking three times as much as allowed uses it up within ten seconds, asking twice as much never.
//! Then the peer is refused for [`PEER_REFUSED_FOR`]. Everything is counted for each peer on its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::base::limits::{PEER_REFUSED_FOR, PEER_STREAMS_RETRY_AFTER, PeerLimits, RATE_KEYS_MAX};
use crate::base::rate::{Rate, RateLimiter};
use crate::base::{Domain, UnixMillis};

/// A peer is over a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// What it asks is not done; it may ask again after this long.
    Wait(Duration),
    /// It was told so too often: nothing of it is taken before this long.
    Refused(Duration),
}

impl Over {
    /// After how long it may come back.
    pub fn wait(self) -> Duration {
        match self {
            Self::Wait(wait) | Self::Refused(wait) => wait,
        }
    }

    /// Whether it is to be hung up on.
    pub fn is_refused(self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

/// What is counted in one unit, and what is over its limit.
#[derive(Debug)]
struct Meter {
    used: RateLimiter<Domain>,
    patience: RateLimiter<Domain>,
}

impl Meter {
    fn new() -> Self {
        // Each peer brings its own rate.
        let limiter = || RateLimiter::new(Rate::per_second(1), RATE_KEYS_MAX);
        Self { used: limiter(), patience: limiter() }
    }

    /// Counts `count` units of a peer. `Err`: how long it has to wait, and whether its patience is used up.
    fn take(&mut self, peer: &Domain, rate: Rate, count: u32, now: UnixMillis) -> Result<(), (Duration, bool)> {
        self.used.take_at(peer, rate, count, now).map_err(|wait| (wait, self.patience.take_at(peer, rate, count, now).is_err()))
    }
}

/// What peers have used up lately. Memory: for each of the three meters at most [`RATE_KEYS_MAX`] peers, twice; as many that are
/// refused; and those that have a stream open.
#[derive(Debug)]
pub struct PeerRates(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    requests: Meter,
    octets: Meter,
    connections: Meter,
    streams: HashMap<Domain, u32>,
    refused: HashMap<Domain, Refused>,
    /// The peers that have told us to wait, and until when.
    waits: HashMap<Domain, UnixMillis>,
}

#[derive(Clone, Copy, Debug)]
struct Refused {
    until: UnixMillis,
    is_told: bool,
}

/// A stream that is counted as long as this is held.
#[derive(Debug)]
pub struct OpenStream {
    rates: Arc<PeerRates>,
    peer: Domain,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut inner = self.rates.inner();
        if let Some(streams) = inner.streams.get_mut(&self.peer) {
            *streams -= 1;
            if *streams == 0 {
                inner.streams.remove(&self.peer);
            }
        }
    }
}

impl Default for PeerRates {
    fn default() -> Self {
        let (requests, octets, connections) = (Meter::new(), Meter::new(), Meter::new());
        let inner =
            Inner { requests, octets, connections, streams: HashMap::new(), refused: HashMap::new(), waits: HashMap::new() };
        Self(Mutex::new(inner))
    }
}

impl PeerRates {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a connection that `peer` has made.
    pub fn connection(&self, peer: &Domain, limits: &PeerLimits, now: UnixMillis) -> Result<(), Over> {
        let mut inner = self.inner();
        inner.check_refused(peer, now)?;
        let taken = inner.connections.take(peer, Rate::per_minute(limits.handshakes_per_minute_max), 1, now);
        taken.map_err(|(wait, spent)| inner.over(peer, wait, spent, now))
    }

    /// Counts a stream that `peer` has opened.
    pub fn stream(self: &Arc<Self>, peer: &Domain, limits: &PeerLimits, now: UnixMillis) -> Result<OpenStream, Over> {
        let mut inner = self.inner();
        inner.check_refused(peer, now)?;
        let open = inner.streams.get(peer).copied().unwrap_or(0);
        if open >= limits.streams_max {
            // Each is answered like a request.
            let rate = Rate::per_second(limits.requests_per_second_max);
            let spent = inner.requests.patience.take_at(peer, rate, 1, now).is_err();
            return Err(inner.over(peer, PEER_STREAMS_RETRY_AFTER, spent, now));
        }
        inner.streams.insert(peer.clone(), open + 1);
        Ok(OpenStream { rates: self.clone(), peer: peer.clone() })
    }

    /// Counts a request of `peer` of so many octets.
    pub fn request(&self, peer: &Domain, octets: usize, limits: &PeerLimits, now: UnixMillis) -> Result<(), Over> {
        let mut inner = self.inner();
        inner.check_refused(peer, now)?;
        let octets = u32::try_from(octets).unwrap_or(u32::MAX);
        let taken = inner.requests.take(peer, Rate::per_second(limits.requests_per_second_max), 1, now);
        let taken = taken.and_then(|()| inner.octets.take(peer, Rate::per_second(limits.bytes_per_second_max), octets, now));
        taken.map_err(|(wait, spent)| inner.over(peer, wait, spent, now))
    }

    /// Forgets what `peer` has used up, and that it is refused: its limits have changed.
    pub fn forget(&self, peer: &Domain) {
        let mut inner = self.inner();
        let Inner { requests, octets, connections, refused, .. } = &mut *inner;
        for meter in [requests, octets, connections] {
            meter.used.forget(peer);
            meter.patience.forget(peer);
        }
        refused.remove(peer);
    }

    /// Whether `peer` is refused and nobody has been told so.
    pub fn is_newly_refused(&self, peer: &Domain) -> bool {
        let mut inner = self.inner();
        inner.refused.get_mut(peer).is_some_and(|refused| !std::mem::replace(&mut refused.is_told, true))
    }

    /// Until when `peer` is refused.
    pub fn refused_until(&self, peer: &Domain, now: UnixMillis) -> Option<UnixMillis> {
        self.inner().refused.get(peer).map(|refused| refused.until).filter(|until| *until > now)
    }

    /// How many streams of `peer` are open.
    pub fn streams(&self, peer: &Domain) -> u32 {
        self.inner().streams.get(peer).copied().unwrap_or(0)
    }

    /// `peer` has told us to ask again after `wait`.
    pub fn told_to_wait(&self, peer: &Domain, wait: Duration, now: UnixMillis) {
        let waits = &mut self.inner().waits;
        if waits.len() >= RATE_KEYS_MAX {
            waits.retain(|_, until| *until > now);
        }
        // No more than a peer could still want that has refused us: what it says is bounded by us.
        if waits.len() < RATE_KEYS_MAX {
            waits.insert(peer.clone(), now.plus(wait.min(PEER_REFUSED_FOR)));
        }
    }

    /// How long `peer` wants us to wait.
    pub fn must_wait(&self, peer: &Domain, now: UnixMillis) -> Option<Duration> {
        let mut inner = self.inner();
        let until = *inner.waits.get(peer)?;
        if until <= now || until.distance(now) > PEER_REFUSED_FOR {
            // It is over, or the clock was set back.
            inner.waits.remove(peer);
            return None;
        }
        Some(until.distance(now))
    }
}

impl Inner {
    fn check_refused(&mut self, peer: &Domain, now: UnixMillis) -> Result<(), Over> {
        let Some(refused) = self.refused.get(peer) else { return Ok(()) };
        let left = refused.until.distance(now);
        if refused.until <= now || left > PEER_REFUSED_FOR {
            // It is over, or the clock was set back.
            self.refused.remove(peer);
            return Ok(());
        }
        Err(Over::Refused(left))
    }

    fn over(&mut self, peer: &Domain, wait: Duration, spent: bool, now: UnixMillis) -> Over {
        if !spent {
            return Over::Wait(wait);
        }
        if self.refused.len() >= RATE_KEYS_MAX {
            self.refused.retain(|_, refused| refused.until > now);
        }
        if self.refused.len() < RATE_KEYS_MAX {
            self.refused.insert(peer.clone(), Refused { until: now.plus(PEER_REFUSED_FOR), is_told: false });
        }
        Over::Refused(PEER_REFUSED_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::Limits;

    const START: UnixMillis = UnixMillis(1_700_000_000_000);

    fn domain(name: &str) -> Domain {
        name.parse().expect("a domain")
    }

    fn limits() -> PeerLimits {
        PeerLimits {
            requests_per_second_max: 5,
            bytes_per_second_max: 1_000,
            streams_max: 2,
            handshakes_per_minute_max: 3,
            ..Limits::default().per_peer()
        }
    }

    /// What becomes of `count` requests of `octets` octets in each of `seconds` seconds: taken, told to wait, refused.
    fn asked(rates: &PeerRates, peer: &Domain, limits: &PeerLimits, rate: (u32, usize), seconds: u64) -> (u32, u32, u32) {
        let (count, octets) = rate;
        let mut came = (0, 0, 0);
        for second in 0..seconds {
            let now = START.plus(Duration::from_secs(second));
            for _ in 0..count {
                match rates.request(peer, octets, limits, now) {
                    Ok(()) => came.0 += 1,
                    Err(Over::Wait(_)) => came.1 += 1,
                    Err(Over::Refused(_)) => came.2 += 1,
                }
            }
        }
        came
    }

    #[test]
    fn who_is_over_a_rate_is_told_to_wait_and_who_goes_on_is_refused_for_a_while() {
        let (rates, b, c) = (PeerRates::default(), domain("b.test"), domain("c.test"));
        let at_once = asked(&rates, &b, &limits(), (120, 1), 1);
        assert_eq!(at_once, (50, 50, 20), "ten seconds' worth, as much patience, and then nothing");
        assert!(rates.is_newly_refused(&b) && !rates.is_newly_refused(&b), "said once");
        assert_eq!(asked(&rates, &c, &limits(), (40, 1), 1), (40, 0, 0), "another one has its own");
        asked(&rates, &c, &limits(), (120, 1), 1);
        assert!(rates.refused_until(&c, START).is_some());
        rates.forget(&c);
        assert_eq!(asked(&rates, &c, &limits(), (40, 1), 1), (40, 0, 0), "new limits, new bucket");
        let later = START.plus(PEER_REFUSED_FOR).minus(Duration::from_millis(1));
        let over = Over::Refused(Duration::from_millis(1));
        assert_eq!(rates.request(&b, 1, &limits(), later), Err(over));
        assert_eq!(rates.connection(&b, &limits(), later), Err(over), "nor a connection");
        assert_eq!(rates.refused_until(&b, later), Some(START.plus(PEER_REFUSED_FOR)));
        let after = START.plus(PEER_REFUSED_FOR);
        assert_eq!((rates.request(&b, 1, &limits(), after), rates.refused_until(&b, after)), (Ok(()), None));
        assert!(!rates.is_newly_refused(&b));
    }

    #[test]
    fn asking_twice_as_much_is_slowed_down_and_never_refused() {
        let (rates, b) = (PeerRates::default(), domain("b.test"));
        let (taken, told, refused) = asked(&rates, &b, &limits(), (10, 1), 300);
        assert!((5 * 300..=5 * 300 + 50).contains(&taken) && told > 1_000 && refused == 0, "{taken} {told} {refused}");
        let (rates, b) = (PeerRates::default(), domain("b.test"));
        assert!(asked(&rates, &b, &limits(), (16, 1), 30).2 > 0, "three times as much is");
    }

    #[test]
    fn octets_are_counted_and_a_frame_over_a_whole_bucket_passes_once_it_is_full() {
        let (rates, b) = (PeerRates::default(), domain("b.test"));
        assert_eq!(rates.request(&b, 50_000, &limits(), START), Ok(()));
        assert_eq!(rates.request(&b, 500, &limits(), START), Err(Over::Wait(Duration::from_millis(500))));
        assert_eq!(rates.request(&b, 500, &limits(), START.plus(Duration::from_millis(500))), Ok(()));
        // Twenty buckets at once are more than anyone's patience.
        assert!((0..20).any(|_| rates.request(&b, 9_000, &limits(), START).is_err_and(Over::is_refused)));
    }

    #[test]
    fn connections_and_streams_have_limits_of_their_own() {
        let (rates, b) = (Arc::new(PeerRates::default()), domain("b.test"));
        let at_once: Vec<_> = (0..7).map(|_| rates.connection(&b, &limits(), START)).collect();
        let wait = Err(Over::Wait(Duration::from_secs(20)));
        assert_eq!(at_once, [Ok(()), Ok(()), Ok(()), wait, wait, wait, Err(Over::Refused(PEER_REFUSED_FOR))]);

        let c = domain("c.test");
        let first = rates.stream(&c, &limits(), START).expect("free");
        let _second = rates.stream(&c, &limits(), START).expect("free");
        assert_eq!(rates.stream(&c, &limits(), START).expect_err("too many"), Over::Wait(PEER_STREAMS_RETRY_AFTER));
        drop(first);
        let again = rates.stream(&c, &limits(), START).expect("one has ended");
        assert_eq!(rates.streams(&c), 2);
        assert!((0..51).any(|_| rates.stream(&c, &limits(), START).is_err_and(|over| over.is_refused())));
        drop(again);
        assert_eq!(rates.streams(&c), 1);
        drop(_second);
        assert!(rates.inner().streams.is_empty(), "nothing is kept of who has none");
    }

    #[test]
    fn what_a_peer_wants_us_to_wait_is_kept_and_bounded() {
        let (rates, b) = (PeerRates::default(), domain("b.test"));
        assert_eq!(rates.must_wait(&b, START), None);
        rates.told_to_wait(&b, Duration::from_secs(2), START);
        assert_eq!(rates.must_wait(&b, START), Some(Duration::from_secs(2)));
        assert_eq!(rates.must_wait(&b, START.plus(Duration::from_secs(2))), None);
        rates.told_to_wait(&b, Duration::from_secs(1 << 40), START);
        assert_eq!(rates.must_wait(&b, START), Some(PEER_REFUSED_FOR));
        assert_eq!(rates.must_wait(&b, START.minus(Duration::from_secs(9))), None, "the clock was set back");
    }
}
