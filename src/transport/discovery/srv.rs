//! The order in which the nodes of a domain are tried: RFC 2782. Pure but for the generator it is given.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_resolver::proto::rr::rdata::SRV;
use rand::Rng;
use rand::seq::SliceRandom as _;

/// One SRV record (RFC 2782).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SrvRecord {
    pub(super) priority: u16,
    pub(super) weight: u16,
    pub(super) port: u16,
    /// Absolute, with its final dot; "." alone means that the service is not offered.
    pub(super) target: String,
}

impl From<&SRV> for SrvRecord {
    fn from(srv: &SRV) -> Self {
        let mut target = srv.target.to_ascii().to_ascii_lowercase();
        if !target.ends_with('.') {
            target.push('.');
        }
        Self { priority: srv.priority, weight: srv.weight, port: srv.port, target }
    }
}

/// The domain says that it does not offer the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotOffered;

/// The records to try, in order, at most `records_max`: the first ones in that order, so that a preferred target is never the one
/// left out. Records that repeat another's target and port are left out.
pub(super) fn usable(records: &[SrvRecord], records_max: usize, rng: &mut impl Rng) -> Result<Vec<SrvRecord>, NotOffered> {
    let offered: Vec<_> = records.iter().filter(|record| record.target != ".").cloned().collect();
    if offered.is_empty() {
        return Err(NotOffered);
    }
    let mut ordered: Vec<SrvRecord> = Vec::new();
    for record in order(offered, rng) {
        let again = ordered.iter().any(|other| (&other.target, other.port) == (&record.target, record.port));
        if !again && ordered.len() < records_max {
            ordered.push(record);
        }
    }
    Ok(ordered)
}

/// RFC 2782: lower priority first; within one priority repeatedly a record at random, in proportion to its weight, those of
/// weight 0 with a small chance.
fn order(mut records: Vec<SrvRecord>, rng: &mut impl Rng) -> Vec<SrvRecord> {
    // "In any order, except that all those with weight 0 are placed at the beginning": an order that is random anew, for the first
    // place has a slightly larger chance, and among weights of 0 it has all of it.
    records.shuffle(rng);
    records.sort_by_key(|record| (record.priority, record.weight != 0));
    let mut ordered = Vec::with_capacity(records.len());
    while let Some(first) = records.first() {
        let priority = first.priority;
        let same = records.iter().take_while(|record| record.priority == priority);
        let total: u64 = same.map(|record| u64::from(record.weight)).sum();
        let mut draw = rng.random_range(0..=total);
        let chosen = records.iter().position(|record| {
            let weight = u64::from(record.weight);
            let here = draw <= weight;
            draw = draw.saturating_sub(weight);
            here
        });
        ordered.push(records.remove(chosen.expect("the draw is at most the sum of the weights of this priority")));
    }
    ordered
}

/// A host's addresses in the order in which they are tried, at most `addresses_max`: families in turn, IPv6 first (RFC 8305 §4),
/// so that neither a family that does not work nor the limit hides the other.
pub(super) fn in_turn(v6: &[Ipv6Addr], v4: &[Ipv4Addr], addresses_max: usize) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for index in 0..v6.len().max(v4.len()) {
        let pair = [v6.get(index).map(|address| IpAddr::V6(*address)), v4.get(index).map(|address| IpAddr::V4(*address))];
        for address in pair.into_iter().flatten() {
            if !addresses.contains(&address) && addresses.len() < addresses_max {
                addresses.push(address);
            }
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    fn record(priority: u16, weight: u16, target: &str) -> SrvRecord {
        SrvRecord { priority, weight, port: 1, target: target.to_owned() }
    }

    /// How often, of 10,000 orders, each target came first.
    fn first_of(records: &[SrvRecord], target: &str, rng: &mut StdRng) -> u32 {
        (0..10_000).map(|_| u32::from(order(records.to_vec(), rng)[0].target == target)).sum()
    }

    #[test]
    fn priorities_come_in_order_and_weights_in_proportion() {
        let mut rng = StdRng::seed_from_u64(7);
        let records = vec![record(20, 0, "last."), record(10, 10, "light."), record(10, 30, "heavy."), record(5, 0, "first.")];
        let mut heavy_first = 0;
        for _ in 0..4_000 {
            let ordered = order(records.clone(), &mut rng);
            let targets: Vec<_> = ordered.iter().map(|record| record.target.as_str()).collect();
            assert_eq!((targets[0], targets[3]), ("first.", "last."));
            heavy_first += u32::from(targets[1] == "heavy.");
        }
        // 30 of 40, less half of the one place in 41 that the RFC's inclusive draw gives to whoever stands first.
        assert!((2_880..3_100).contains(&heavy_first), "{heavy_first} of 4000");
    }

    #[test]
    fn weight_zero_has_a_small_chance_and_an_even_one_among_its_like() {
        let mut rng = StdRng::seed_from_u64(8);
        let zero = first_of(&[record(1, 0, "zero."), record(1, 9, "nine.")], "zero.", &mut rng);
        // One draw of ten.
        assert!((850..1_150).contains(&zero), "{zero} of 10000");
        let zeros = [record(1, 0, "a."), record(1, 0, "b."), record(1, 0, "c.")];
        for target in ["a.", "b.", "c."] {
            let first = first_of(&zeros, target, &mut rng);
            assert!((3_150..3_520).contains(&first), "{target} {first} of 10000");
        }
    }

    #[test]
    fn the_root_as_target_refuses_and_many_records_are_cut() {
        let mut rng = StdRng::seed_from_u64(9);
        assert_eq!(usable(&[record(0, 0, ".")], 4, &mut rng), Err(NotOffered));
        let one = usable(&[record(0, 0, "."), record(1, 0, "n.")], 4, &mut rng);
        assert_eq!(one, Ok(vec![record(1, 0, "n.")]), "a root beside others is left out");
        let many: Vec<_> = (0..40).rev().map(|n| record(n, 1, &format!("n{n}."))).collect();
        let cut = usable(&many, 4, &mut rng).expect("targets");
        assert_eq!(cut.iter().map(|record| record.priority).collect::<Vec<_>>(), [0, 1, 2, 3]);
        let twice = usable(&[record(0, 0, "n."), record(3, 0, "n.")], 4, &mut rng);
        assert_eq!(twice, Ok(vec![record(0, 0, "n.")]));
    }

    #[test]
    fn families_take_turns() {
        let v6: Vec<Ipv6Addr> = ["2001:db8::1", "2001:db8::2", "2001:db8::3"].map(|text| text.parse().expect("v6")).into();
        let v4 = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 1)];
        let all: Vec<IpAddr> = vec![v6[0].into(), v4[0].into(), v6[1].into(), v6[2].into()];
        assert_eq!(in_turn(&v6, &v4, 9), all);
        assert_eq!(in_turn(&v6, &v4, 2), all[..2]);
        assert_eq!(in_turn(&[], &v4, 9), [IpAddr::V4(v4[0])]);
    }

    proptest! {
        #[test]
        fn an_order_is_a_permutation_by_priority(
            records in prop::collection::vec((0u16..4, prop_oneof![Just(0u16), 0u16..5, Just(u16::MAX)]), 1..24),
            seed: u64,
        ) {
            let records: Vec<_> =
                records.iter().enumerate().map(|(n, (priority, weight))| record(*priority, *weight, &format!("{n}."))).collect();
            let ordered = order(records.clone(), &mut StdRng::seed_from_u64(seed));
            prop_assert!(ordered.is_sorted_by_key(|record| record.priority));
            prop_assert_eq!(ordered.len(), records.len());
            prop_assert!(records.iter().all(|record| ordered.contains(record)));
            // The same seed, the same order.
            prop_assert_eq!(order(records, &mut StdRng::seed_from_u64(seed)), ordered);
        }
    }
}
