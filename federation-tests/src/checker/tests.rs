#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;

use rand::Rng as _;
use rand::seq::IndexedRandom as _;

use super::log::{Event, Kind, Line, LogError, read_log};
use super::synthetic::{After, Run};
use super::{Verdict, check};

const SEEDS: u64 = 60;

fn run(seed: u64) -> Run {
    Run::new(seed, 9, 3, 150)
}

fn kinds(verdict: &Verdict) -> BTreeSet<&'static str> {
    verdict.findings.iter().map(|finding| finding.name()).collect()
}

/// Breaks a correct run for each seed and expects findings of the one kind. `breaks` says whether it found a place to break.
fn expect(kind: &'static str, rule: u8, breaks: impl Fn(&mut Run) -> bool) {
    let mut broken = 0;
    for seed in 0..SEEDS {
        let mut run = run(seed);
        if !breaks(&mut run) {
            continue;
        }
        broken += 1;
        let verdict = check(&run.render());
        assert_eq!(kinds(&verdict), BTreeSet::from([kind]), "seed {seed}: {verdict}");
        assert!(!verdict.ok && verdict.findings.iter().all(|finding| finding.rule() == rule), "seed {seed}: {verdict}");
    }
    assert!(broken >= 50, "only {broken} of {SEEDS} seeds gave a place to break");
}

/// Picks one of `places`, if there are any.
fn pick(run: &mut Run, places: &[(usize, usize)]) -> Option<(usize, usize)> {
    places.choose(&mut run.rng).copied()
}

#[test]
fn a_correct_run_has_no_findings_and_its_figures_add_up() {
    for seed in 0..SEEDS {
        let lines = run(seed).render();
        let verdict = check(&lines);
        assert!(verdict.ok, "seed {seed}: {verdict}");
        let figures = &verdict.figures;
        let clients: BTreeSet<&str> = lines.iter().map(|line| line.client.as_str()).collect();
        assert_eq!((figures.domains, figures.clients, figures.groups), (3, clients.len(), 3), "seed {seed}");
        let accepted = lines.iter().filter(|line| matches!(line.event, Event::Accepted { .. })).count();
        let commits = lines.iter().filter(|line| matches!(line.event, Event::CommitAccepted { .. })).count();
        let read =
            |line: &&Line| matches!(&line.event, Event::Received { kind: Kind::Application, outcome, .. } if outcome == "ok");
        assert_eq!((figures.sent, figures.epochs), (accepted, commits), "seed {seed}");
        assert_eq!(figures.delivered, lines.iter().filter(read).count(), "seed {seed}");
        assert!(figures.expected <= figures.delivered + figures.still_queued, "seed {seed}");
        assert_eq!((figures.lost, figures.duplicated, figures.out_of_order), (0, 0, 0), "seed {seed}");
        assert!(figures.p50_ms > 0.0 && figures.p50_ms <= figures.p99_ms, "seed {seed}");
    }
}

#[test]
fn the_mix_of_clients_does_not_matter() {
    let mut lines = run(1).render();
    let before = check(&lines);
    lines.sort_by(|a, b| a.client.cmp(&b.client));
    let after = check(&lines);
    assert!(after.ok, "{after}");
    assert_eq!(before.figures, after.figures);
}

#[test]
fn a_hundred_thousand_entries_are_judged() {
    let mut run = Run::new(7, 24, 2, 20_000);
    let entries: usize = run.queues.iter().map(Vec::len).sum();
    assert!(entries > 100_000, "{entries}");
    let places = run.positions(|_, _, slot| slot.owed && slot.kind == Kind::Application);
    let (client, position) = pick(&mut run, &places).unwrap();
    run.queues[client].remove(position);
    let last = last_owed(&run, client);
    run.queues[client].insert(0, last);
    let verdict = check(&run.render());
    assert_eq!(kinds(&verdict), BTreeSet::from(["not_delivered", "out_of_order", "received_twice"]), "{verdict}");
}

/// A copy of the last application entry of `client`'s queue: at the front it is both a duplicate and out of order.
fn last_owed(run: &Run, client: usize) -> super::synthetic::Slot {
    run.queues[client].iter().rev().find(|slot| slot.kind == Kind::Application && slot.owed).unwrap().clone()
}

#[test]
fn rule_1_a_dropped_delivery() {
    expect("not_delivered", 1, |run| {
        let owed = |_, _, slot: &super::synthetic::Slot| slot.owed && slot.kind == Kind::Application;
        let places = run.positions(owed);
        let Some((client, position)) = pick(run, &places) else { return false };
        run.queues[client].remove(position);
        true
    });
}

#[test]
fn rule_1_a_dropped_commit() {
    expect("not_delivered", 1, |run| {
        let places = run.positions(|_, _, slot| slot.owed && slot.kind == Kind::Commit);
        let Some((client, position)) = pick(run, &places) else { return false };
        run.queues[client].remove(position);
        true
    });
}

#[test]
fn rule_1_accepted_but_nobody_got_it() {
    expect("not_delivered", 1, |run| {
        let places = run.positions(|_, _, slot| slot.owed && slot.kind == Kind::Application);
        let Some((client, position)) = pick(run, &places) else { return false };
        let message = run.queues[client][position].message.clone();
        for queue in &mut run.queues {
            queue.retain(|slot| slot.message != message);
        }
        true
    });
}

#[test]
fn rule_1_members_that_nobody_logged_cannot_be_judged() {
    let mut lines = run(3).render();
    lines.retain(|line| !matches!(&line.event, Event::Epoch { epoch: 1, .. }));
    let verdict = check(&lines);
    assert!(kinds(&verdict).contains("members_unknown"), "{verdict}");
}

#[test]
fn rule_2_a_duplicate_under_a_new_sequence_number() {
    expect("received_twice", 2, |run| {
        let places = run.positions(|_, _, slot| matches!(slot.kind, Kind::Application | Kind::Commit));
        let Some((client, position)) = pick(run, &places) else { return false };
        let slot = run.queues[client][position].clone();
        let again = run.rng.random_range(position + 1..=run.queues[client].len());
        run.queues[client].insert(again, slot);
        true
    });
}

#[test]
fn rule_2_an_entry_processed_again_before_its_acknowledgement() {
    for seed in 0..SEEDS {
        let mut lines = run(seed).render();
        let receipts: Vec<usize> =
            (0..lines.len()).filter(|index| matches!(lines[*index].event, Event::Received { .. })).collect();
        let index = *receipts.choose(&mut run(seed).rng).unwrap();
        lines.insert(index + 1, lines[index].clone());
        let verdict = check(&lines);
        assert_eq!(kinds(&verdict), BTreeSet::from(["received_twice"]), "seed {seed}: {verdict}");
    }
}

#[test]
fn rule_2_received_again_after_the_acknowledgement() {
    expect("received_after_ack", 2, |run| {
        let processed: Vec<usize> = (0..run.queues.len()).map(|client| run.processed(client)).collect();
        let places = run.positions(|client, position, _| position < processed[client]);
        let Some(place) = pick(run, &places) else { return false };
        run.replays.push(place);
        true
    });
}

#[test]
fn rule_3_two_entries_swapped_in_one_queue() {
    expect("out_of_order", 3, |run| {
        let ordered = |kind| matches!(kind, Kind::Application | Kind::Commit);
        let mut places = Vec::new();
        for (client, queue) in run.queues.iter().enumerate() {
            for (position, slot) in queue.iter().enumerate().filter(|(_, slot)| ordered(slot.kind)) {
                let of_group = |(_, later): &(usize, &super::synthetic::Slot)| later.group == slot.group && ordered(later.kind);
                let Some((next, later)) = queue.iter().enumerate().skip(position + 1).find(of_group) else { continue };
                let has_both = |other: &&Vec<super::synthetic::Slot>| {
                    [&slot.message, &later.message].iter().all(|message| other.iter().any(|slot| slot.message == **message))
                };
                if run.queues.iter().filter(has_both).count() >= 2 {
                    places.push((client, position, next));
                }
            }
        }
        let Some((client, position, next)) = places.choose(&mut run.rng).copied() else { return false };
        run.queues[client].swap(position, next);
        true
    });
}

#[test]
fn rule_3_one_queue_is_blamed_not_those_it_disagrees_with() {
    let mut blamed_alone = 0;
    for seed in 0..SEEDS {
        let mut run = run(seed);
        let of_epoch = |slot: &super::synthetic::Slot| (slot.group, slot.epoch, slot.kind, slot.owed);
        let pairs = |queue: &Vec<super::synthetic::Slot>| {
            queue
                .windows(2)
                .position(|pair| of_epoch(&pair[0]) == of_epoch(&pair[1]) && pair[0].kind == Kind::Application && pair[0].owed)
        };
        let Some((client, position)) = (0..9).find_map(|client| Some((client, pairs(&run.queues[client])?))) else { continue };
        run.queues[client].swap(position, position + 1);
        let verdict = check(&run.render());
        if verdict.figures.out_of_order == 1 {
            blamed_alone += 1;
        }
    }
    assert!(blamed_alone >= 40, "{blamed_alone}");
}

/// A run of one epoch and three members, each of whose queues holds the given messages, that nobody was told are accepted.
fn three_queues(queues: [&[&str]; 3]) -> Vec<Line> {
    let members: Vec<String> = (0..4).map(|n| format!("mimi://a.test/d/user{n}/phone")).collect();
    let group = "mimi://a.test/g/1".to_owned();
    let mut lines = Vec::new();
    let mut log = |client: usize, event| lines.push(Line { at_us: 1, client: members[client].clone(), event });
    for client in 0..4 {
        let view = Event::Epoch { group: group.clone(), epoch: 1, members: members.clone(), authenticator: "00".into() };
        log(client, view);
    }
    for message in ["a", "b", "c"] {
        let (request, message, text_hash) = (message.to_owned(), message.to_owned(), message.to_owned());
        log(3, Event::Sending { group: group.clone(), request, message, epoch: 1, text_hash });
    }
    for (client, queue) in queues.into_iter().enumerate() {
        for (position, message) in queue.iter().enumerate() {
            log(
                client,
                Event::Received {
                    queue: format!("queue-{client}"),
                    sequence: position as u64 + 1,
                    group: group.clone(),
                    epoch: 1,
                    kind: Kind::Application,
                    message: Some((*message).to_owned()),
                    sender: Some(members[3].clone()),
                    text_hash: Some((*message).to_owned()),
                    outcome: "ok".into(),
                },
            );
        }
    }
    lines
}

#[test]
fn rule_3_a_circle_through_three_queues_is_found_and_unrelated_orders_are_not() {
    let circle = check(&three_queues([&["a", "b"], &["b", "c"], &["c", "a"]]));
    assert_eq!(kinds(&circle), BTreeSet::from(["out_of_order"]), "{circle}");
    let line = check(&three_queues([&["a", "b"], &["b", "c"], &["a", "c"]]));
    assert!(line.ok, "{line}");
}

#[test]
fn rule_4_a_second_commit_in_an_epoch() {
    expect("two_commits", 4, |run| {
        let places = run.positions(|_, _, slot| slot.owed && slot.kind == Kind::Commit);
        let Some((client, position)) = pick(run, &places) else { return false };
        let first = run.queues[client][position].clone();
        let (commit, request) = (run.hash(), run.hash());
        for queue in &mut run.queues {
            if let Some(at) = queue.iter().position(|slot| slot.message == first.message) {
                let mut second = queue[at].clone();
                (second.message, second.after) = (commit.clone(), After::Nothing);
                queue.insert(at + 1, second);
            }
        }
        let group = run.groups[first.group].clone();
        let committing =
            Event::Committing { group: group.clone(), request: request.clone(), commit: commit.clone(), epoch: first.epoch };
        run.log(first.sender, first.at_us, committing);
        // Whether or not its committer learns that it was accepted.
        if run.rng.random_bool(0.5) {
            run.log(first.sender, first.at_us, Event::CommitAccepted { group, request, commit, epoch: first.epoch + 1 });
        }
        true
    });
}

/// Positions whose processing logs a view of an epoch.
fn views(run: &Run) -> Vec<(usize, usize)> {
    let processed: Vec<usize> = (0..run.queues.len()).map(|client| run.processed(client)).collect();
    run.positions(|client, position, slot| position < processed[client] && matches!(slot.after, After::View { .. }))
}

#[test]
fn rule_4_a_differing_authenticator() {
    expect("authenticators_differ", 4, |run| {
        let Some((client, position)) = pick(run, &views(run)) else { return false };
        let other = run.hash();
        let After::View { authenticator, .. } = &mut run.queues[client][position].after else { return false };
        *authenticator = other;
        true
    });
}

#[test]
fn rule_4_a_differing_member_list() {
    expect("members_differ", 4, |run| {
        let Some((client, position)) = pick(run, &views(run)) else { return false };
        let After::View { members, .. } = &mut run.queues[client][position].after else { return false };
        members.pop();
        true
    });
}

#[test]
fn rule_5_a_gap() {
    expect("gap", 5, |run| {
        let places = run.positions(|_, _, _| true);
        let Some((client, position)) = pick(run, &places) else { return false };
        run.queues[client][position].gap_before = run.rng.random_range(1..3);
        true
    });
}

#[test]
fn rule_5_a_sequence_number_used_twice() {
    let mut lines = three_queues([&["a", "b"], &["a", "b"], &["a", "b"]]);
    let last = lines.last_mut().unwrap();
    let Event::Received { sequence, .. } = &mut last.event else { panic!("the last line is a receipt") };
    *sequence = 1;
    let verdict = check(&lines);
    assert_eq!(kinds(&verdict), BTreeSet::from(["sequence_reused"]), "{verdict}");
}

#[test]
fn rule_6_a_forged_message() {
    expect("never_sent", 6, |run| {
        let places = run.positions(|_, _, slot| matches!(slot.kind, Kind::Application | Kind::Commit));
        let Some((client, position)) = pick(run, &places) else { return false };
        let mut forged = run.queues[client][position].clone();
        (forged.message, forged.after) = (run.hash(), After::Nothing);
        run.queues[client].insert(position, forged);
        true
    });
}

#[test]
fn rule_6_a_message_with_another_sender_or_text() {
    expect("content_differs", 6, |run| {
        let processed: Vec<usize> = (0..run.queues.len()).map(|client| run.processed(client)).collect();
        let places = run.positions(|client, position, slot| position < processed[client] && slot.kind == Kind::Application);
        let Some((client, position)) = pick(run, &places) else { return false };
        let text = run.hash();
        let by_sender = run.rng.random_bool(0.5);
        let slot = &mut run.queues[client][position];
        if by_sender {
            slot.sender = (slot.sender + 1) % 9
        } else {
            slot.text_hash = Some(text)
        }
        true
    });
}

#[test]
fn rule_7_an_undecryptable_message() {
    expect("undecryptable", 7, |run| {
        let processed: Vec<usize> = (0..run.queues.len()).map(|client| run.processed(client)).collect();
        let places = run.positions(|client, position, slot| position < processed[client] && slot.kind == Kind::Application);
        let Some((client, position)) = pick(run, &places) else { return false };
        run.queues[client][position].outcome = "undecryptable".into();
        true
    });
}

#[test]
fn rule_8_a_delivery_after_removal() {
    expect("after_removal", 8, |run| {
        let mut places = Vec::new();
        for (client, queue) in run.queues.iter().enumerate() {
            for (position, removal) in queue.iter().enumerate() {
                let After::Left { epoch } = removal.after else { continue };
                let back = |slot: &&super::synthetic::Slot| slot.group == removal.group && slot.kind == Kind::Welcome;
                let until = queue[position..].iter().find(back).map_or(u64::MAX, |welcome| welcome.epoch);
                let missed = |slot: &&super::synthetic::Slot| {
                    slot.kind == Kind::Application && slot.group == removal.group && (epoch..until - 1).contains(&slot.epoch)
                };
                if let Some(slot) = run.queues.iter().flatten().find(missed) {
                    places.push((client, position + 1, slot.clone()));
                }
            }
        }
        let Some((client, position, mut slot)) = places.choose(&mut run.rng).cloned() else { return false };
        slot.outcome = "ok".into();
        run.queues[client].insert(position, slot);
        true
    });
}

#[test]
fn rule_8_also_counts_removals_that_the_removed_client_never_logged() {
    let mut lines = run(2).render();
    let left = lines.iter().position(|line| matches!(line.event, Event::Left { .. })).unwrap();
    let Line { client, event: Event::Left { group, epoch }, .. } = lines.remove(left) else { panic!("just matched") };
    lines.push(Line {
        at_us: 1,
        client,
        event: Event::Queued {
            queue: "another".into(),
            sequence: 1,
            group,
            epoch,
            kind: Kind::Proposal,
            message: Some("ff".into()),
        },
    });
    let verdict = check(&lines);
    assert_eq!(kinds(&verdict), BTreeSet::from(["after_removal"]), "{verdict}");
}

#[test]
fn a_log_is_read_as_the_format_says() {
    let text = concat!(
        r#"{"at_us":5,"client":"mimi://a.test/d/alice/phone","event":"sending","group":"mimi://a.test/g/1","request":"0a","#,
        r#""message":"0b","epoch":3,"text_hash":"0c","extra":{"ignored":true}}"#,
        "\n\n",
        r#"{"at_us":6,"client":"mimi://b.test/d/bob/phone","event":"received","queue":"q","sequence":1,"group":"mimi://a.test/g/1","#,
        r#""epoch":3,"kind":"application","message":"0b","sender":null,"text_hash":null,"outcome":"undecryptable"}"#,
        "\n",
    );
    let lines = read_log(text.as_bytes()).unwrap();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0].at_us, 5);
    assert!(matches!(&lines[1].event, Event::Received { kind: Kind::Application, sender: None, .. }));
    let again: String = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
    assert_eq!(read_log(again.as_bytes()).unwrap(), lines);
    let cut_short = format!("{}\n{again}{}", &again[..30], &again[..50]);
    assert_eq!(read_log(cut_short.as_bytes()).unwrap(), lines);
    for bad in [r#"{"at_us":5,"client":"c","event":"invented"}"#, r#"{"at_us":5,"event":"left","group":"g","epoch":1}"#, "x"] {
        assert!(matches!(read_log(bad.as_bytes()), Err(LogError::Malformed { line: 1, .. })), "{bad}");
    }
}

#[test]
fn a_verdict_is_readable_by_people_and_programs() {
    let mut run = run(4);
    run.queues[0].clear();
    let verdict = check(&run.render());
    let text = verdict.to_string();
    assert!(text.starts_with("NOT ok\n") && text.contains("[1] ") && text.contains(" more not_delivered"), "{text}");
    let json: serde_json::Value = serde_json::to_value(&verdict).unwrap();
    assert_eq!(json["ok"], false);
    assert_eq!(json["findings"][0]["finding"], "not_delivered");
    assert_eq!(json["figures"]["lost"], verdict.figures.lost);
}
