//! The table *Conformance* in `docs/protocol.md`: every requirement has its row, with exactly the rules that say they serve it, and
//! tests that there are.

use std::collections::{BTreeMap, BTreeSet};

use super::rules;
use super::source::{root, rust_files};
use super::unit_tests::{tests_of, unit_tests};

/// The kinds of requirements and how many there are of each.
const REQUIREMENTS: [(&str, usize); 4] = [("S", 21), ("R", 10), ("X", 10), ("C", 7)];

/// What may say that it is not built yet, or that a part of it is not.
const NOT_YET: [&str; 4] = ["S17", "S18", "S21", "X9"];

/// What may be without a test, because nothing of it is there.
const NOTHING_YET: [&str; 2] = ["S17", "S21"];

struct Row {
    id: String,
    built: String,
    rules: BTreeSet<String>,
    tests: BTreeSet<String>,
}

/// The items of a cell: separated by commas, perhaps in backticks; a dash for none.
fn items(cell: &str) -> BTreeSet<String> {
    cell.split(',').map(|item| item.trim().trim_matches('`').to_owned()).filter(|item| item != "–").collect()
}

/// The rows `| id | built | rules | tests |` of the section.
fn table(document: &str) -> Vec<Row> {
    let (_, section) = document.split_once("\n## Conformance\n").expect("the section");
    let section = section.split("\n## ").next().expect("its text");
    let rows = section.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let &["", id, built, rules, tests, ""] = cells.as_slice() else { return None };
        let is_id = id.starts_with(['S', 'R', 'X', 'C']) && id[1..].parse::<usize>().is_ok();
        is_id.then(|| Row { id: id.to_owned(), built: built.to_owned(), rules: items(rules), tests: items(tests) })
    });
    rows.collect()
}

/// The system tests, by the path that the table gives them.
fn system_tests() -> BTreeSet<String> {
    let all = root().join("federation-tests/tests/all");
    let tests = rust_files(&all).into_iter().flat_map(|path| {
        let name = path.strip_prefix(&all).expect("it was found there").to_str().expect("a UTF-8 path").to_owned();
        tests_of(&name, &std::fs::read_to_string(&path).expect("a readable source file"))
    });
    tests.map(|test| format!("all::{}", test.path)).collect()
}

/// What is wrong with the table, a sentence each.
fn differences(rows: &[Row], rules: &BTreeMap<String, BTreeSet<String>>, tests: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    let ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    let wanted: Vec<String> =
        REQUIREMENTS.iter().flat_map(|(kind, count)| (1..=*count).map(move |number| format!("{kind}{number}"))).collect();
    if ids != wanted {
        found.push(format!("the rows are {ids:?}"));
    }
    for Row { id, built, rules: named, tests: shown } in rows {
        let serving = rules.get(id).cloned().unwrap_or_default();
        found.extend(named.difference(&serving).map(|rule| format!("{id} names {rule}, which does not say that it serves it")));
        found.extend(serving.difference(named).map(|rule| format!("{id} does not name {rule}, which serves it")));
        found.extend(shown.difference(tests).map(|test| format!("{id}: there is no test {test}")));
        if built.contains("not yet") != NOT_YET.contains(&id.as_str()) {
            found.push(format!("{id} is {built:?}"));
        }
        if shown.is_empty() != NOTHING_YET.contains(&id.as_str()) {
            found.push(format!("{id} has {} tests", shown.len()));
        }
    }
    found
}

#[test]
fn every_requirement_has_its_rules_and_tests() {
    let mut rules = BTreeMap::<String, BTreeSet<String>>::new();
    for (id, rule) in rules::table(&rules::read("docs/rules.md")).expect("a table") {
        for requirement in rule.requirements {
            rules.entry(requirement).or_default().insert(id.clone());
        }
    }
    let mut tests = system_tests();
    assert!(tests.len() > 20, "the system tests are found");
    tests.extend(unit_tests().into_iter().map(|test| test.path));
    let found = differences(&table(&rules::read("docs/protocol.md")), &rules, &tests);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn what_does_not_conform_is_found() {
    let text = |s17: &str| {
        let mut text = String::from("x\n## Conformance\n\n| id | built | rules | tests |\n|---|---|---|---|\n");
        for (kind, count) in REQUIREMENTS {
            for number in 1..=count {
                let id = format!("{kind}{number}");
                let built = if NOT_YET.contains(&id.as_str()) { "not yet" } else { "all" };
                let tests = if NOTHING_YET.contains(&id.as_str()) { "–" } else { "`a::b`" };
                let rules = if id == "S2" { "DS-001" } else { "–" };
                let row = format!("| {id} | {built} | {rules} | {tests} |\n");
                text.push_str(if id == "S17" && !s17.is_empty() { s17 } else { &row });
            }
        }
        text + "\n## Next\n| X11 | not a row | – | – |\n"
    };
    let rules = BTreeMap::from([("S2".to_owned(), BTreeSet::from(["DS-001".to_owned()]))]);
    let tests = BTreeSet::from(["a::b".to_owned()]);
    let found = |s17: &str| differences(&table(&text(s17)), &rules, &tests).len();
    assert_eq!(found(""), 0);
    assert_eq!(found("| S17 | not yet | DS-001 | – |\n"), 1, "a rule that serves something else");
    assert_eq!(found("| S17 | not yet | – | `a::c` |\n"), 2, "a test that is none, where there is nothing to test");
    assert_eq!(found("| S17 | all | – | – |\n"), 1);
    assert_eq!(found("\n"), 1, "no row");
    assert_eq!(differences(&table(&text("")), &BTreeMap::new(), &tests).len(), 1, "a rule that serves nothing");
    let more = BTreeMap::from([("S2".to_owned(), BTreeSet::from(["DS-001".to_owned(), "DS-002".to_owned()]))]);
    assert_eq!(differences(&table(&text("")), &more, &tests).len(), 1, "a rule that is not named");
}
