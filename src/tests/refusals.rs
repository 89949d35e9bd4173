//! Every rule has a refusal that is compared, table by table, with what was there before.
//!
//! `service::testing::TestNode::refuses` and its kin take the rule's id: whoever calls them in a test that covers the rule has shown
//! that the request is refused, by that rule (`switched_off` runs the test without it), and that nothing has changed.

use std::collections::BTreeSet;

use super::rules;
use super::unit_tests::{UnitTest, unit_tests};

/// Rules that refuse no request, and what they do instead.
const NO_REFUSAL: &[(&str, &str)] = &[
    ("DS-021", "asks for roots, after which the request is decided again"),
    ("QS-001", "answers for one recipient of a frame, which is taken for the others"),
    ("QS-002", "answers for one recipient of a frame, which is taken for the others"),
    ("QS-003", "answers for one recipient of a frame, which is taken for the others"),
    ("QS-004", "answers for one recipient of a frame, which is taken for the others"),
    ("QS-005", "answers for one recipient of a frame, which is taken for the others"),
    ("QS-006", "answers for one recipient of a frame, which is taken for the others"),
    ("QS-007", "loses a message and says so, in the queue itself"),
    ("QS-008", "answers for one recipient of a frame, which is taken for the others"),
    ("QS-031", "is never reached by such a request: the peer port hands on claims only"),
];

/// The rules whose refusals a test compares: the first argument of every `refuses…(` and `expect_unchanged(`.
fn refused(test: &UnitTest) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let calls = ["refuses", "expect_unchanged"].into_iter().flat_map(|call| test.body.match_indices(call));
    for (at, _) in calls {
        let rest = test.body[at..].trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
        let Some(argument) = rest.strip_prefix('(').map(str::trim_start) else { continue };
        let Some(id) = argument.strip_prefix('"').and_then(|rest| rest.split('"').next()) else { continue };
        found.extend(rules::ids(id).into_iter().map(|(id, _)| id));
    }
    // Where a loop goes through rules, their ids stand alone in what it goes through.
    if test.body.contains("(rule,") {
        let literals = test.body.split('"').skip(1).step_by(2);
        found.extend(literals.filter(|text| rules::ids(text).iter().any(|(id, _)| id == text)).map(str::to_owned));
    }
    found
}

#[test]
fn every_rule_has_a_refusal_that_changes_no_table() {
    let table = rules::table(&rules::read("docs/rules.md")).expect("a table");
    let (mut shown, mut found) = (BTreeSet::new(), Vec::new());
    for test in unit_tests().iter().filter(|test| test.file.starts_with("src/service/tests/")) {
        let refused = refused(test);
        let unsaid = refused.difference(&test.covers);
        found.extend(unsaid.map(|id| format!("{}: {} refuses by {id} and does not say that it covers it", test.file, test.path)));
        shown.extend(refused);
    }
    for id in table.keys() {
        let excused = NO_REFUSAL.iter().any(|(excused, _)| excused == id);
        match (shown.contains(id), excused) {
            (false, false) => found.push(format!("{id} has no refusal that is compared with every table")),
            (true, true) => found.push(format!("{id} has a refusal and needs no excuse")),
            _ => {}
        }
    }
    let listed = NO_REFUSAL.iter().map(|(id, _)| id);
    found.extend(listed.filter(|id| !table.contains_key(**id)).map(|id| format!("{id} is no rule")));
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}
