//! Every rule is needed by its tests: without it they fail.
//!
//! A check asks whether its rule is on (`base::rule`); here each rule of `docs/rules.md` is switched off in turn, in a process of
//! its own, in which the tests run that say they cover it. What counts as failure: a rule without a unit test, a rule that
//! nothing can switch off, a covering test that passes without its rule, and one that was not run at all.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use super::rules::{self, Rule};
use super::source::{SourceFile, sources};
use super::unit_tests::{UnitTest, unit_tests};

/// How long the tests of one rule may take without it: they may wait for something that never comes.
const RULE_TIMEOUT: Duration = Duration::from_secs(60);

/// How far below its citation, in lines, a check asks for its rule; a citation may stand above its function's signature.
const CITATION_DISTANCE_MAX: usize = 25;

/// Where a file asks for a rule: (id, line counted from 0).
fn switches(file: &SourceFile) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for call in ["on(", "answer("] {
        // Found where comments are blank, read where strings are not; both have the same offsets.
        for (at, _) in file.code.match_indices(call) {
            if file.code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let argument = file.text[at + call.len()..].trim_start();
            let Some(id) = argument.strip_prefix('"').and_then(|rest| rest.split('"').next()) else { continue };
            if rules::ids(id).iter().any(|(whole, _)| whole == id) {
                found.push((id.to_owned(), file.text[..at].matches('\n').count()));
            }
        }
    }
    found
}

fn table() -> BTreeMap<String, Rule> {
    rules::table(&rules::read("docs/rules.md")).expect("a table")
}

#[test]
fn every_rule_is_asked_for_at_its_citation() {
    let table = table();
    let (mut asked, mut found) = (BTreeMap::<String, BTreeSet<String>>::new(), Vec::new());
    for file in sources() {
        let citations = rules::citations(&file);
        for (id, line) in switches(&file) {
            let near = |cited: usize| cited <= line && line - cited <= CITATION_DISTANCE_MAX;
            if !citations.iter().any(|citation| citation.id == id && near(citation.line)) {
                found.push(format!("src/{}:{}: {id} is asked for far from any citation of it", file.path, line + 1));
            }
            asked.entry(id).or_default().insert(format!("src/{}", file.path));
        }
    }
    for (id, rule) in &table {
        let places = asked.get(id).cloned().unwrap_or_default();
        if places != rule.files {
            found.push(format!("{id} is asked for in {places:?}, the table says {:?}", rule.files));
        }
    }
    found.extend(asked.keys().filter(|id| !table.contains_key(*id)).map(|id| format!("{id} is asked for and is no rule")));
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn every_rule_has_a_unit_test() {
    let table = table();
    let tests = unit_tests();
    let mut found = Vec::new();
    for test in &tests {
        let unknown = test.covers.iter().filter(|id| !table.contains_key(*id));
        found.extend(unknown.map(|id| format!("{}: {} covers {id}, which is no rule", test.file, test.path)));
    }
    let uncovered = table.keys().filter(|id| !tests.iter().any(|test| test.covers.contains(*id)));
    found.extend(uncovered.map(|id| format!("{id} has no unit test")));
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn the_tests_of_a_rule_fail_without_it() {
    let tests = unit_tests();
    let table = table();
    let wanted: Vec<(&String, Vec<&UnitTest>)> = table
        .keys()
        .map(|id| (id, tests.iter().filter(|test| test.covers.contains(id)).collect()))
        .filter(|(_, tests): &(_, Vec<_>)| !tests.is_empty())
        .collect();
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, |threads| threads.get().min(8)) {
            scope.spawn(|| {
                while let Some((id, tests)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(wrong) = fail_without(id, tests) {
                        found.lock().expect("no thread panics").push(wrong);
                    }
                }
            });
        }
    });
    let mut found = found.into_inner().expect("no thread panics");
    found.sort();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// Runs `tests` without the rule `id`; all of them must fail.
fn fail_without(id: &str, tests: &[&UnitTest]) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|error| format!("this program cannot be found: {error}"))?;
    let mut child = Command::new(program)
        .arg("--exact")
        .args(tests.iter().map(|test| test.path.as_str()))
        .args(["--test-threads", "1", "--color", "never"])
        .env("MIMI_RULE_OFF", id)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("{id}: this program cannot be run: {error}"))?;
    let mut stdout = child.stdout.take().ok_or("a child has no output")?;
    let (read, all) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let _ = stdout.read_to_string(&mut text);
        let _ = read.send(text);
    });
    let text = all.recv_timeout(RULE_TIMEOUT);
    if text.is_err() {
        let _ = child.kill();
    }
    let _ = child.wait();
    let text = text.map_err(|_| format!("{id}: its tests did not end within {RULE_TIMEOUT:?} without it"))?;
    verdict(id, tests.iter().map(|test| test.path.as_str()), &text)
}

/// What libtest's output `text` says of `paths`, each of which must have failed.
fn verdict<'a>(id: &str, paths: impl Iterator<Item = &'a str>, text: &str) -> Result<(), String> {
    let failures: BTreeSet<&str> =
        text.rsplit("\nfailures:\n").next().unwrap_or_default().lines().filter_map(|line| line.strip_prefix("    ")).collect();
    let (mut passed, mut run) = (Vec::new(), 0);
    for path in paths {
        run += 1;
        if !failures.contains(path) {
            passed.push(path);
        }
    }
    if !text.contains(&format!("running {run} test")) {
        return Err(format!("{id}: not all of its {run} tests were run:\n{text}"));
    }
    if passed.is_empty() { Ok(()) } else { Err(format!("{id}: without it these tests pass: {}", passed.join(", "))) }
}

#[test]
fn what_libtest_says_is_understood() {
    let all = "\nrunning 2 tests\ntest a::b ... FAILED\ntest c ... FAILED\n\nfailures:\n\n---- a::b stdout ----\n\nfailures:\n    c\n\n\
               failures:\n    a::b\n    c\n\ntest result: FAILED. 0 passed; 2 failed\n";
    assert_eq!(verdict("DS-001", ["a::b", "c"].into_iter(), all), Ok(()));
    let some = all.replace("failures:\n    a::b\n    c", "failures:\n    a::b");
    assert!(verdict("DS-001", ["a::b", "c"].into_iter(), &some).is_err_and(|wrong| wrong.ends_with("pass: c")));
    let none = "\nrunning 0 tests\n\ntest result: ok. 0 passed; 0 failed\n";
    assert!(verdict("DS-001", ["a::b"].into_iter(), none).is_err_and(|wrong| wrong.contains("were run")));
    let file = SourceFile::new(
        "ds/a.rs",
        "// DS-001: x, on(\"DS-004\").\nif on(\"DS-001\") && rule::answer(\n    \"DS-002\", a, b) && person(\"DS-003\") {}",
    );
    assert_eq!(switches(&file), [("DS-001".to_owned(), 1), ("DS-002".to_owned(), 1)]);
}
