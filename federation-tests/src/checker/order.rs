//! Rule 3: one order of each group that every queue agrees with.
//!
//! Each queue says "this before that". Those statements, with the order in which epochs follow one another and in which messages were
//! accepted, must not form a circle. That is more than comparing queues in pairs (a<b, b<c, c<a in three queues is caught) and costs
//! one topological sort; only a run that fails is searched for who disagrees with whom.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::facts::Facts;
use super::finding::Finding;

/// One queue's entries of one group, in queue order, as node numbers.
struct Chain<'a> {
    queue: &'a str,
    nodes: Vec<u32>,
}

/// Sequence numbers and messages of one group, by queue.
type Queues<'a> = BTreeMap<&'a str, Vec<(u64, &'a str)>>;

/// The things of one group that have an order.
#[derive(Default)]
struct Nodes<'a> {
    numbers: HashMap<&'a str, u32>,
    names: Vec<&'a str>,
}

impl<'a> Nodes<'a> {
    fn number(&mut self, name: &'a str) -> u32 {
        *self.numbers.entry(name).or_insert_with(|| {
            self.names.push(name);
            u32::try_from(self.names.len() - 1).expect("a run logs fewer than 2^32 messages")
        })
    }
}

/// Rule 3.
pub(super) fn one_order(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    let mut by_group: BTreeMap<&str, Queues<'_>> = BTreeMap::new();
    for entry in facts.entries.iter().filter(|entry| entry.acked.is_none()) {
        if let Some((group, message)) = entry.key() {
            by_group.entry(group).or_default().entry(entry.queue).or_default().push((entry.sequence, message));
        }
    }
    for (group, queues) in by_group {
        let mut nodes = Nodes::default();
        let levels = levels(facts, group, &mut nodes);
        let chains = queues
            .into_iter()
            .map(|(queue, mut entries)| {
                entries.sort_unstable_by_key(|(sequence, _)| *sequence);
                // What came twice is rule 2's; the order is that of the first time.
                let mut seen = HashSet::new();
                let nodes =
                    entries.into_iter().map(|(_, message)| nodes.number(message)).filter(|node| seen.insert(*node)).collect();
                Chain { queue, nodes }
            })
            .collect();
        one_order_in_group(group, chains, &nodes, &levels, findings);
    }
}

/// What is known about the order from epochs alone: the commit that makes epoch E has level 2E, a message accepted in E has 2E + 1.
fn levels<'a>(facts: &Facts<'a>, group: &'a str, nodes: &mut Nodes<'a>) -> HashMap<u32, u64> {
    let mut levels = HashMap::new();
    let mut made = HashSet::new();
    for (hash, commit) in facts.commits_of(group).filter(|(_, commit)| commit.accepted || commit.seen) {
        // A second commit for one epoch is rule 4's.
        if let Some(from) = commit.from.filter(|from| made.insert(*from)) {
            levels.insert(nodes.number(hash), 2 * (from + 1));
        }
    }
    for ((_, message), accepted) in facts.accepted.range((group, "")..).take_while(|((of, _), _)| *of == group) {
        levels.insert(nodes.number(message), 2 * accepted.epoch + 1);
    }
    levels
}

fn one_order_in_group(
    group: &str,
    chains: Vec<Chain<'_>>,
    nodes: &Nodes<'_>,
    levels: &HashMap<u32, u64>,
    findings: &mut Vec<Finding>,
) {
    let finding = |queue: &str, earlier: u32, later: u32, other: Option<&str>| Finding::OutOfOrder {
        group: group.to_owned(),
        queue: queue.to_owned(),
        earlier: nodes.names[earlier as usize].to_owned(),
        later: nodes.names[later as usize].to_owned(),
        other: other.map(str::to_owned),
    };

    // First those that disagree with the epochs on their own …
    let mut kept = Vec::new();
    for chain in chains {
        let levelled = chain.nodes.iter().filter_map(|node| Some((*node, *levels.get(node)?)));
        match first_descent(levelled) {
            Some((earlier, later)) => findings.push(finding(chain.queue, earlier, later, None)),
            None => kept.push(chain),
        }
    }
    // … then those that disagree with other queues, one at a time, until the rest agree.
    let epoch_edges = epoch_edges(levels, nodes.names.len());
    while !agree(&epoch_edges, &kept) {
        // Adding queues keeps a circle a circle, so the queue that closes the first one can be bisected.
        let (mut agreeing, mut circular) = (0, kept.len());
        while agreeing + 1 < circular {
            let middle = (agreeing + circular) / 2;
            if agree(&epoch_edges, &kept[..middle]) { agreeing = middle } else { circular = middle }
        }
        let closing = circular - 1;
        let opposed = opponents(&kept, closing);
        let Some(&(other, earlier, later)) = opposed.first() else {
            let chain = kept.remove(closing);
            if let [first, .., last] = chain.nodes[..] {
                findings.push(finding(chain.queue, first, last, None));
            }
            continue;
        };
        // Of two that disagree, the one that more others disagree with is to blame.
        let opposed_to_other = opponents(&kept, other);
        let (blamed, (against, earlier, later)) = match opposed_to_other.iter().find(|(queue, ..)| *queue == closing) {
            Some(&mirror) if opposed_to_other.len() > opposed.len() => (other, mirror),
            _ => (closing, (other, earlier, later)),
        };
        findings.push(finding(kept[blamed].queue, earlier, later, Some(kept[against].queue)));
        kept.remove(blamed);
    }
}

/// The queues that have two entries the other way round than `kept[of]`, each with such a pair in the order of `kept[of]`.
fn opponents(kept: &[Chain<'_>], of: usize) -> Vec<(usize, u32, u32)> {
    let positions: HashMap<u32, usize> = kept[of].nodes.iter().enumerate().map(|(position, node)| (*node, position)).collect();
    let conflict = |chain: &Chain<'_>| first_descent(chain.nodes.iter().filter_map(|node| Some((*node, *positions.get(node)?))));
    let others = kept.iter().enumerate().filter(|(index, _)| *index != of);
    others.filter_map(|(index, chain)| conflict(chain).map(|(later, earlier)| (index, earlier, later))).collect()
}

/// The first two neighbours of which the second has the smaller rank.
fn first_descent<R: PartialOrd>(ranked: impl Iterator<Item = (u32, R)>) -> Option<(u32, u32)> {
    let mut previous: Option<(u32, R)> = None;
    for (node, rank) in ranked {
        if let Some((before, higher)) = &previous
            && *higher > rank
        {
            return Some((*before, node));
        }
        previous = Some((node, rank));
    }
    None
}

/// Edges between nodes of neighbouring levels. Messages of one epoch have one level and no edge between them, so an extra node for
/// each level keeps the edges as few as the nodes.
fn epoch_edges(levels: &HashMap<u32, u64>, nodes: usize) -> Vec<(u32, u32)> {
    let mut by_level: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    for (node, level) in levels {
        by_level.entry(*level).or_default().push(*node);
    }
    let mut edges = Vec::new();
    let first_gate = u32::try_from(nodes).expect("a run logs fewer than 2^32 messages");
    for (gate, of_level) in (first_gate..).zip(by_level.values()) {
        edges.extend(of_level.iter().flat_map(|node| [(gate, *node), (*node, gate + 1)]));
    }
    edges
}

/// Whether one order fits all (Kahn's algorithm).
fn agree(epoch_edges: &[(u32, u32)], chains: &[Chain<'_>]) -> bool {
    let edges = || {
        let of_chains = chains.iter().flat_map(|chain| chain.nodes.windows(2).map(|pair| (pair[0], pair[1])));
        epoch_edges.iter().copied().chain(of_chains)
    };
    let count = edges().map(|(from, to)| from.max(to) as usize + 1).max().unwrap_or(0);
    let mut incoming = vec![0_u32; count];
    let mut starts = vec![0_usize; count + 1];
    for (from, to) in edges() {
        incoming[to as usize] += 1;
        starts[from as usize + 1] += 1;
    }
    for node in 0..count {
        starts[node + 1] += starts[node];
    }
    let mut targets = vec![0_u32; starts[count]];
    let mut fill = starts.clone();
    for (from, to) in edges() {
        targets[fill[from as usize]] = to;
        fill[from as usize] += 1;
    }
    let mut free: Vec<usize> = (0..count).filter(|node| incoming[*node] == 0).collect();
    let mut ordered = 0;
    while let Some(node) = free.pop() {
        ordered += 1;
        for &target in &targets[starts[node]..starts[node + 1]] {
            incoming[target as usize] -= 1;
            if incoming[target as usize] == 0 {
                free.push(target as usize);
            }
        }
    }
    ordered == count
}
