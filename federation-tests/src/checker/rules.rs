//! The rules of [`super`] except order.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::Figures;
use super::facts::{Entry, Facts, Key};
use super::finding::{Finding, Place};
use super::log::Kind;

/// What can be counted without judging.
pub(super) fn figures(facts: &Facts<'_>) -> Figures {
    let domain = |client: &&str| client.strip_prefix("mimi://").and_then(|rest| rest.split('/').next()).unwrap_or("").to_owned();
    let mut delivered: HashSet<(&str, Key<'_>)> = HashSet::new();
    let mut latencies_us: Vec<u64> = Vec::new();
    for entry in &facts.entries {
        let Some(key) = entry.key().filter(|_| entry.kind == Kind::Application && entry.outcome.is_some()) else { continue };
        let sent = facts.sent.get(&key);
        if sent.is_some_and(|sent| sent.client == entry.client) || !delivered.insert((entry.client, key)) {
            continue;
        }
        if let Some(sent) = sent.filter(|_| facts.accepted.contains_key(&key)) {
            latencies_us.push(entry.at_us.saturating_sub(sent.at_us));
        }
    }
    latencies_us.sort_unstable();
    Figures {
        domains: facts.clients.iter().map(domain).collect::<BTreeSet<_>>().len(),
        clients: facts.clients.len(),
        groups: facts.groups.len(),
        sent: facts.accepted.len(),
        delivered: delivered.len(),
        epochs: facts.commits.values().filter(|commit| commit.accepted || commit.seen).count(),
        p50_ms: percentile_ms(&latencies_us, 50),
        p99_ms: percentile_ms(&latencies_us, 99),
        ..Figures::default()
    }
}

/// The nearest-rank percentile of sorted microseconds, in milliseconds; 0 of nothing.
fn percentile_ms(sorted_us: &[u64], percent: usize) -> f64 {
    let rank = (sorted_us.len() * percent).div_ceil(100).max(1);
    sorted_us.get(rank - 1).map_or(0.0, |us| *us as f64 / 1000.0)
}

/// Rule 1.
pub(super) fn delivery(facts: &Facts<'_>, findings: &mut Vec<Finding>, figures: &mut Figures) {
    let mut received: HashSet<(&str, Key<'_>)> = HashSet::new();
    let mut queued: HashSet<(&str, Key<'_>)> = HashSet::new();
    for entry in &facts.entries {
        if let Some(key) = entry.key() {
            if entry.outcome.is_some() { &mut received } else { &mut queued }.insert((entry.client, key));
        }
    }
    let mut members_of: HashMap<(&str, u64), Option<BTreeSet<&str>>> = HashMap::new();

    for (key, accepted) in &facts.accepted {
        let (group, message) = *key;
        let sent_epoch = facts.sent.get(key).map_or(accepted.epoch, |sent| sent.epoch);
        for epoch in [sent_epoch, accepted.epoch] {
            members_of.entry((group, epoch)).or_insert_with(|| facts.members(group, epoch));
        }
        let unknown = [sent_epoch, accepted.epoch].into_iter().find(|epoch| members_of[&(group, *epoch)].is_none());
        let (Some(then), Some(now)) = (&members_of[&(group, sent_epoch)], &members_of[&(group, accepted.epoch)]) else {
            let epoch = unknown.unwrap_or(accepted.epoch);
            findings.push(Finding::MembersUnknown { group: group.to_owned(), epoch, message: message.to_owned() });
            continue;
        };
        for recipient in then.intersection(now).filter(|member| **member != accepted.client) {
            figures.expected += 1;
            if received.contains(&(recipient, *key)) {
                continue;
            }
            if queued.contains(&(recipient, *key)) {
                figures.still_queued += 1;
                continue;
            }
            figures.lost += 1;
            findings.push(Finding::NotDelivered {
                group: group.to_owned(),
                kind: Kind::Application,
                message: message.to_owned(),
                sender: accepted.client.to_owned(),
                recipient: (*recipient).to_owned(),
                epoch: accepted.epoch,
                lost_marker: facts.lost_markers.contains(&(*recipient, group)),
            });
        }
    }

    for (key, commit) in &facts.commits {
        let (group, message) = *key;
        let (Some(from), true) = (commit.from, commit.accepted || commit.seen) else { continue };
        let Some(members) = facts.members(group, from) else {
            findings.push(Finding::MembersUnknown { group: group.to_owned(), epoch: from, message: message.to_owned() });
            continue;
        };
        for recipient in members.into_iter().filter(|member| Some(*member) != commit.committer) {
            if !received.contains(&(recipient, *key)) && !queued.contains(&(recipient, *key)) {
                findings.push(Finding::NotDelivered {
                    group: group.to_owned(),
                    kind: Kind::Commit,
                    message: message.to_owned(),
                    sender: commit.committer.unwrap_or("?").to_owned(),
                    recipient: recipient.to_owned(),
                    epoch: from,
                    lost_marker: facts.lost_markers.contains(&(recipient, group)),
                });
            }
        }
    }
}

/// Rule 2.
pub(super) fn duplicates(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    let mut by_message: HashMap<(&str, Key<'_>), &Entry<'_>> = HashMap::new();
    let mut by_place: HashMap<(&str, u64), &Entry<'_>> = HashMap::new();
    for entry in &facts.entries {
        if let Some(acked) = entry.acked {
            findings.push(Finding::ReceivedAfterAck { client: entry.client.to_owned(), place: entry.place(), acked });
            continue;
        }
        // Ed25519 signatures repeat, so a DS that withdraws a Remove and issues it again sends the same octets.
        let first_of_message = entry.key().filter(|_| entry.kind != Kind::Proposal).map(|key| {
            let first = *by_message.entry((entry.client, key)).or_insert(entry);
            (first, !std::ptr::eq(first, entry))
        });
        let first_of_place = match by_place.entry((entry.queue, entry.sequence)) {
            Slot::Vacant(slot) => {
                slot.insert(entry);
                None
            }
            Slot::Occupied(slot) => Some(*slot.get()),
        };
        // An entry may be processed and, as its acknowledgement never went out, still be queued; it may not be processed twice.
        let processed_twice = |first: &Entry<'_>| {
            (first.queue, first.sequence) != (entry.queue, entry.sequence) || (first.outcome.is_some() && entry.outcome.is_some())
        };
        let first = match (first_of_message, first_of_place) {
            (Some((first, true)), _) if processed_twice(first) => first,
            (_, Some(first)) if first.message == entry.message && processed_twice(first) => first,
            _ => continue,
        };
        findings.push(Finding::ReceivedTwice {
            client: entry.client.to_owned(),
            message: entry.message.unwrap_or("a marker").to_owned(),
            first: first.place(),
            second: entry.place(),
        });
    }
}

/// Rule 4.
pub(super) fn epochs(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    let mut made: HashMap<(&str, u64), &str> = HashMap::new();
    for ((group, hash), commit) in &facts.commits {
        let (Some(from), true) = (commit.from, commit.accepted || commit.seen) else { continue };
        let first = *made.entry((group, from + 1)).or_insert(hash);
        if first != *hash {
            findings.push(Finding::TwoCommits {
                group: (*group).to_owned(),
                epoch: from + 1,
                first: first.to_owned(),
                second: (*hash).to_owned(),
            });
        }
    }
    for ((group, epoch), views) in &facts.views {
        let Some((first, others)) = views.split_first() else { continue };
        for other in others {
            let evidence = || ((*group).to_owned(), *epoch, first.client.to_owned(), other.client.to_owned());
            if first.authenticator != other.authenticator {
                let (group, epoch, first, second) = evidence();
                findings.push(Finding::AuthenticatorsDiffer { group, epoch, first, second });
            }
            if first.members != other.members {
                let (group, epoch, first, second) = evidence();
                findings.push(Finding::MembersDiffer { group, epoch, first, second });
            }
        }
    }
}

/// Rule 5.
pub(super) fn sequences(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    let mut queues: BTreeMap<&str, BTreeMap<u64, Option<&str>>> = BTreeMap::new();
    for entry in &facts.entries {
        let first = *queues.entry(entry.queue).or_default().entry(entry.sequence).or_insert(entry.message);
        if first != entry.message {
            let name = |message: Option<&str>| message.unwrap_or("a marker").to_owned();
            findings.push(Finding::SequenceReused { place: entry.place(), first: name(first), second: name(entry.message) });
        }
    }
    for (queue, sequences) in queues {
        let mut next = 1;
        for sequence in sequences.into_keys() {
            // Sequence 0 does not exist; it is reported as the gap 0–0.
            if sequence != next {
                let (from, to) = if sequence == 0 { (0, 0) } else { (next, sequence - 1) };
                findings.push(Finding::Gap { queue: queue.to_owned(), from, to });
            }
            next = sequence + 1;
        }
    }
}

/// Rule 6.
pub(super) fn provenance(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    let never_sent = |key: Key<'_>, kind: Kind, client: &str, place: Option<Place>| Finding::NeverSent {
        group: key.0.to_owned(),
        kind,
        message: key.1.to_owned(),
        client: client.to_owned(),
        place,
    };
    for entry in &facts.entries {
        let Some(key) = entry.key() else { continue };
        let sender = match entry.kind {
            Kind::Application => facts.sent.get(&key).map(|sent| sent.client),
            Kind::Commit => facts.commits.get(&key).and_then(|commit| commit.committer),
            Kind::Proposal | Kind::Welcome | Kind::Lost => continue,
        };
        let Some(sender) = sender else {
            findings.push(never_sent(key, entry.kind, entry.client, Some(entry.place())));
            continue;
        };
        let differs = |field, sent: &str, received: &str| Finding::ContentDiffers {
            group: key.0.to_owned(),
            message: key.1.to_owned(),
            client: entry.client.to_owned(),
            field,
            sent: sent.to_owned(),
            received: received.to_owned(),
        };
        if let Some(claimed) = entry.sender.filter(|claimed| *claimed != sender) {
            findings.push(differs("sender", sender, claimed));
        }
        let sent_text = facts.sent.get(&key).map(|sent| sent.text_hash).filter(|_| entry.kind == Kind::Application);
        if let (Some(sent), Some(received)) = (sent_text, entry.text_hash)
            && sent != received
        {
            findings.push(differs("text_hash", sent, received));
        }
    }
    // An answer to a request that its client never logged is a mistake of the client, which must not pass for evidence.
    for (key, accepted) in facts.accepted.iter().filter(|(key, _)| !facts.sent.contains_key(*key)) {
        findings.push(never_sent(*key, Kind::Application, accepted.client, None));
    }
    for (key, _) in facts.commits.iter().filter(|(_, commit)| commit.committer.is_none()) {
        findings.push(never_sent(*key, Kind::Commit, "its committer", None));
    }
}

/// Rule 7. Only two outcomes mean that the message was read.
pub(super) fn readable(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    for entry in facts.entries.iter().filter(|entry| entry.kind == Kind::Application) {
        let (Some(outcome), Some((group, message))) = (entry.outcome, entry.key()) else { continue };
        if !matches!(outcome, "ok" | "own") {
            findings.push(Finding::Undecryptable {
                group: group.to_owned(),
                message: message.to_owned(),
                client: entry.client.to_owned(),
                place: entry.place(),
                outcome: outcome.to_owned(),
            });
        }
    }
}

/// Rule 8. Removals are those that the removed clients or, by their member lists, the others logged.
pub(super) fn removal(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    let mut removed = facts.left.clone();
    let mut joined = facts.joined.clone();
    let mut before: Option<(&str, u64, &BTreeSet<&str>)> = None;
    for ((group, epoch), views) in &facts.views {
        let Some(members) = views.first().map(|view| &view.members) else { continue };
        if let Some((_, _, earlier)) = before.filter(|(of, previous, _)| of == group && previous + 1 == *epoch) {
            for client in earlier.difference(members) {
                removed.entry((group, client)).or_default().insert(*epoch);
            }
            for client in members.difference(earlier) {
                joined.entry((group, client)).or_default().insert(*epoch);
            }
        }
        before = Some((group, *epoch, members));
    }
    for entry in &facts.entries {
        // A Welcome is how one comes back, and a marker's epoch is that of nothing in particular.
        if matches!(entry.kind, Kind::Welcome | Kind::Lost) {
            continue;
        }
        let own_commit = entry.kind == Kind::Commit
            && entry.key().and_then(|key| facts.commits.get(&key)).is_some_and(|commit| commit.committer == Some(entry.client));
        let epoch = facts.epoch_of(entry);
        let latest_before = |epochs: &HashMap<Key<'_>, BTreeSet<u64>>| {
            epochs.get(&(entry.group, entry.client)).and_then(|epochs| epochs.range(..=epoch).next_back().copied())
        };
        let Some(removed_by_epoch) = latest_before(&removed).filter(|_| !own_commit) else { continue };
        // One commit may remove a client and bring it back (resync).
        if latest_before(&joined).is_none_or(|joined| joined < removed_by_epoch) {
            findings.push(Finding::AfterRemoval {
                group: entry.group.to_owned(),
                client: entry.client.to_owned(),
                place: entry.place(),
                removed_by_epoch,
                epoch,
            });
        }
    }
}
