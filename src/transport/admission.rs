//! [`Admission`]: which connections a port begins a handshake with. Pure: it takes `now`.
//!
//! A handshake costs milliseconds of CPU and the memory of a connection before anybody knows who is there; a forged address costs
//! whoever makes it up nothing. So, in this order:
//!
//! - an address that has not shown that it receives what is sent to it is asked to (Retry, RFC 9000 §8.1.2) once as many such
//!   handshakes as configured are going on, or its machine has begun them faster than its rate. A Retry keeps no state;
//! - one that has shown it and is still over its rate is refused. Only proven handshakes count here: nobody can use up the rate of
//!   somebody else's address;
//! - nobody is let in beyond the connections of the port, nor of one machine.

use std::collections::HashMap;
use std::net::IpAddr;

use super::addresses::machine;
use crate::base::UnixMillis;
use crate::base::limits::{self, Limits};
use crate::base::rate::{Rate, RateLimiter};

/// What the connections of one port may use up: a part of [`Limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortLimits {
    /// Connections at once, handshakes included.
    pub connections_max: usize,
    /// Of them, from one IPv4 address or IPv6 /64.
    pub connections_per_address_max: usize,
    /// Handshakes a second from one of these, ten times as many at once.
    pub handshakes_per_address_per_second_max: u32,
    /// Handshakes at once with addresses that have not proven themselves; with more, a Retry comes first.
    pub unvalidated_handshakes_max: usize,
    /// Octets of requests being read or served and answers being sent, of all connections together.
    pub held_bytes_max: usize,
}

impl From<&Limits> for PortLimits {
    fn from(limits: &Limits) -> Self {
        Self {
            connections_max: limits.connections_max,
            connections_per_address_max: limits.connections_per_address_max,
            handshakes_per_address_per_second_max: limits.handshakes_per_address_per_second_max,
            unvalidated_handshakes_max: limits.unvalidated_handshakes_max,
            held_bytes_max: limits.held_bytes_max,
        }
    }
}

impl Default for PortLimits {
    fn default() -> Self {
        Self::from(&Limits::default())
    }
}

/// What becomes of a connection's first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The handshake begins; the connection is counted until [`Admission::leave`].
    Begin,
    /// Its address has to prove itself first.
    Retry,
    /// It is told to go away.
    Refuse(Full),
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// All places of the port are taken.
    Port,
    /// All places of one machine are.
    Machine,
    /// The machine has begun too many handshakes of late.
    Rate,
}

impl Full {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Port => "as many connections as allowed are open",
            Self::Machine => "as many connections as one address may have are open",
            Self::Rate => "the address begins more handshakes than allowed",
        }
    }
}

/// The connections of one port, by machine.
#[derive(Debug)]
pub(super) struct Admission {
    limits: PortLimits,
    open: usize,
    unproven: usize,
    by_machine: HashMap<IpAddr, usize>,
    unproven_rates: RateLimiter<IpAddr>,
    proven_rates: RateLimiter<IpAddr>,
    /// The last time that refusals were spoken of, and how many there were since.
    told: Option<UnixMillis>,
    refused: u64,
}

impl Admission {
    pub(super) fn new(limits: PortLimits) -> Self {
        let rates = || RateLimiter::new(Rate::per_second(limits.handshakes_per_address_per_second_max), limits::RATE_KEYS_MAX);
        Self {
            limits,
            open: 0,
            unproven: 0,
            by_machine: HashMap::new(),
            unproven_rates: rates(),
            proven_rates: rates(),
            told: None,
            refused: 0,
        }
    }

    /// A first packet from `address`. `is_proven`: it brought the token of a Retry.
    pub(super) fn arrive(&mut self, address: IpAddr, is_proven: bool, now: UnixMillis) -> Verdict {
        let machine = machine(address);
        if is_proven {
            if self.proven_rates.take(&machine, now).is_err() {
                return Verdict::Refuse(Full::Rate);
            }
        } else if self.unproven >= self.limits.unvalidated_handshakes_max || self.unproven_rates.take(&machine, now).is_err() {
            return Verdict::Retry;
        }
        if self.open >= self.limits.connections_max {
            return Verdict::Refuse(Full::Port);
        }
        let of_machine = self.by_machine.entry(machine).or_default();
        if *of_machine >= self.limits.connections_per_address_max {
            return Verdict::Refuse(Full::Machine);
        }
        *of_machine += 1;
        self.open += 1;
        self.unproven += usize::from(!is_proven);
        Verdict::Begin
    }

    /// A handshake with an unproven address is over, well or not.
    pub(super) fn handshake_over(&mut self) {
        self.unproven = self.unproven.saturating_sub(1);
    }

    /// A connection that had begun is gone.
    pub(super) fn leave(&mut self, address: IpAddr) {
        self.open = self.open.saturating_sub(1);
        if let Some(of_machine) = self.by_machine.get_mut(&machine(address)) {
            *of_machine = of_machine.saturating_sub(1);
            if *of_machine == 0 {
                self.by_machine.remove(&machine(address));
            }
        }
    }

    /// A connection was refused: how many have been since this was last answered, at most once in
    /// [`limits::REFUSALS_TOLD_INTERVAL`], so that no flood of packets becomes one of log lines.
    pub(super) fn refused(&mut self, now: UnixMillis) -> Option<u64> {
        self.refused += 1;
        if self.told.is_some_and(|told| told.distance(now) < limits::REFUSALS_TOLD_INTERVAL) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.refused))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn limits() -> PortLimits {
        PortLimits {
            connections_max: 100,
            connections_per_address_max: 100,
            handshakes_per_address_per_second_max: 100,
            unvalidated_handshakes_max: 100,
            held_bytes_max: 1,
        }
    }

    #[test]
    fn beyond_the_configured_number_an_unproven_address_proves_itself_first() {
        let mut port = Admission::new(PortLimits { unvalidated_handshakes_max: 2, ..limits() });
        let mut arrive = |address, is_proven| port.arrive(ip(address), is_proven, NOW);
        assert_eq!(arrive("192.0.2.1", false), Verdict::Begin);
        assert_eq!(arrive("192.0.2.2", false), Verdict::Begin);
        assert_eq!(arrive("192.0.2.3", false), Verdict::Retry);
        assert_eq!(arrive("192.0.2.3", true), Verdict::Begin, "and is let in when it has");
        port.handshake_over();
        assert_eq!(port.arrive(ip("192.0.2.4"), false, NOW), Verdict::Begin, "a handshake was over");
    }

    #[test]
    fn one_machine_has_so_many_connections_and_the_others_theirs() {
        let mut port = Admission::new(PortLimits { connections_per_address_max: 2, connections_max: 5, ..limits() });
        let mut arrive = |address| port.arrive(ip(address), true, NOW);
        assert_eq!([arrive("2001:db8::1"), arrive("2001:db8::2")], [Verdict::Begin; 2]);
        assert_eq!(arrive("2001:db8::3:1"), Verdict::Refuse(Full::Machine), "an IPv6 network of 64 bits is one machine");
        assert_eq!([arrive("192.0.2.1"), arrive("192.0.2.1"), arrive("192.0.2.2")], [Verdict::Begin; 3]);
        assert_eq!(arrive("192.0.2.3"), Verdict::Refuse(Full::Port));
        port.leave(ip("2001:db8::2"));
        assert_eq!(port.arrive(ip("2001:db8::3:1"), true, NOW), Verdict::Begin);
        for address in ["2001:db8::1", "2001:db8::3:1", "192.0.2.1", "192.0.2.1", "192.0.2.2"] {
            port.leave(ip(address));
        }
        assert_eq!((port.open, port.by_machine.len()), (0, 0), "nothing is left of those that are gone");
    }

    #[test]
    fn over_its_rate_an_address_proves_itself_and_is_refused_when_it_has() {
        let mut port = Admission::new(PortLimits { handshakes_per_address_per_second_max: 1, ..limits() });
        let mut begun = |is_proven| {
            let mut begun = 0;
            loop {
                match port.arrive(ip("192.0.2.1"), is_proven, NOW) {
                    Verdict::Begin => begun += 1,
                    other => return (begun, other),
                }
                port.handshake_over();
                port.leave(ip("192.0.2.1"));
            }
        };
        assert_eq!(begun(false), (10, Verdict::Retry), "whoever forges an address costs its owner a round trip");
        assert_eq!(begun(true), (10, Verdict::Refuse(Full::Rate)), "but not its rate");
        assert_eq!(port.arrive(ip("192.0.2.2"), false, NOW), Verdict::Begin);
        let later = NOW.plus(Duration::from_secs(1));
        assert_eq!(port.arrive(ip("192.0.2.1"), true, later), Verdict::Begin);
        assert_eq!(port.arrive(ip("192.0.2.1"), true, later), Verdict::Refuse(Full::Rate));
    }

    #[test]
    fn a_flood_of_refusals_is_told_of_once_in_a_while() {
        let mut port = Admission::new(limits());
        assert_eq!(port.refused(NOW), Some(1));
        for _ in 0..1_000 {
            assert_eq!(port.refused(NOW), None);
        }
        assert_eq!(port.refused(NOW.plus(limits::REFUSALS_TOLD_INTERVAL)), Some(1_001));
    }
}
