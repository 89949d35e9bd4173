//! [`DialBudget`]: how often one address is dialled, whoever it is said to belong to. Pure: it takes `now`.
//!
//! Anyone can make records that point many domains at one machine, and have a node asked for each of them. Every domain has a
//! gate of its own, so without this the machine would get packets from this node for all of them. Attempts at an address draw on
//! one budget; those that found a peer there give back what they drew, so that a host of many domains is not slowed down.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use crate::base::limits;
use crate::transport::addresses::machine;

/// The budgets of all addresses that were dialled lately.
#[derive(Debug, Default)]
pub(super) struct DialBudget {
    spent: HashMap<IpAddr, Spent>,
}

/// Attempts that have not been earned back, as of some time.
#[derive(Clone, Copy, Debug)]
struct Spent {
    attempts: u32,
    as_of: Instant,
}

impl Spent {
    /// What is left of it now: one attempt is earned back each [`limits::DIAL_BUDGET_REFILL`].
    fn at(self, now: Instant) -> Self {
        let earned = now.saturating_duration_since(self.as_of).as_nanos() / limits::DIAL_BUDGET_REFILL.as_nanos();
        let earned = u32::try_from(earned).unwrap_or(u32::MAX).min(self.attempts);
        // What is earned in part stays earned.
        Self { attempts: self.attempts - earned, as_of: self.as_of + limits::DIAL_BUDGET_REFILL * earned }
    }
}

impl DialBudget {
    /// Whether `address` may be dialled once more; if so, that is counted.
    pub(super) fn draw(&mut self, address: IpAddr, now: Instant) -> bool {
        let machine = machine(address);
        if self.spent.len() >= limits::DIAL_BUDGETS_MAX && !self.spent.contains_key(&machine) {
            self.make_room(now);
        }
        let spent = self.spent.entry(machine).or_insert(Spent { attempts: 0, as_of: now });
        *spent = spent.at(now);
        if spent.attempts == 0 {
            spent.as_of = now;
        }
        if spent.attempts >= limits::DIAL_BUDGET {
            return false;
        }
        spent.attempts += 1;
        true
    }

    /// An attempt found a peer: it counts for nothing.
    pub(super) fn give_back(&mut self, address: IpAddr) {
        let machine = machine(address);
        if let Some(spent) = self.spent.get_mut(&machine) {
            spent.attempts = spent.attempts.saturating_sub(1);
            if spent.attempts == 0 {
                self.spent.remove(&machine);
            }
        }
    }

    /// Drops what is earned back, or else the budget that is least used: the one worth most to whoever attacks stays.
    fn make_room(&mut self, now: Instant) {
        self.spent.retain(|_, spent| spent.at(now).attempts > 0);
        if self.spent.len() >= limits::DIAL_BUDGETS_MAX
            && let Some(least) = self.spent.iter().min_by_key(|(_, spent)| spent.at(now).attempts).map(|(machine, _)| *machine)
        {
            self.spent.remove(&least);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// How many attempts pass at once.
    fn drawn(budget: &mut DialBudget, address: &str, now: Instant) -> u32 {
        let mut drawn = 0;
        while budget.draw(ip(address), now) {
            drawn += 1;
        }
        drawn
    }

    #[test]
    fn an_address_has_a_budget_that_is_earned_back_slowly() {
        let (mut budget, now) = (DialBudget::default(), Instant::now());
        assert_eq!(drawn(&mut budget, "192.0.2.1", now), limits::DIAL_BUDGET);
        assert_eq!(drawn(&mut budget, "192.0.2.2", now), limits::DIAL_BUDGET, "others have their own");
        let step = limits::DIAL_BUDGET_REFILL;
        assert_eq!(drawn(&mut budget, "192.0.2.1", now + step / 2), 0);
        assert_eq!(drawn(&mut budget, "192.0.2.1", now + step), 1, "the half was not lost");
        assert_eq!(drawn(&mut budget, "192.0.2.1", now + step * 4), 3);
        assert_eq!(drawn(&mut budget, "192.0.2.1", now + step * 10_000), limits::DIAL_BUDGET, "and never more");
    }

    #[test]
    fn what_found_a_peer_costs_nothing() {
        let (mut budget, now) = (DialBudget::default(), Instant::now());
        for _ in 0..10 * limits::DIAL_BUDGET {
            assert!(budget.draw(ip("192.0.2.1"), now));
            budget.give_back(ip("192.0.2.1"));
        }
        assert!(budget.spent.is_empty());
        budget.give_back(ip("192.0.2.1"));
    }

    #[test]
    fn an_ipv6_network_shares_one() {
        let (mut budget, now) = (DialBudget::default(), Instant::now());
        assert_eq!(drawn(&mut budget, "2001:db8::1", now), limits::DIAL_BUDGET);
        assert_eq!(drawn(&mut budget, "2001:db8::2:1", now), 0);
        assert_eq!(drawn(&mut budget, "2001:db8:0:1::1", now), limits::DIAL_BUDGET);
    }

    #[test]
    fn the_table_is_bounded_and_keeps_those_most_spent() {
        let (mut budget, now) = (DialBudget::default(), Instant::now());
        drawn(&mut budget, "192.0.2.1", now);
        for number in 0..2 * limits::DIAL_BUDGETS_MAX {
            let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(number).expect("a small number"));
            assert!(budget.draw(address.into(), now));
        }
        assert!(budget.spent.len() <= limits::DIAL_BUDGETS_MAX);
        assert_eq!(drawn(&mut budget, "192.0.2.1", now), 0);
    }
}
