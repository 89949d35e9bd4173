//! `docs/rules.md` and the citations in the code keep in step.
//!
//! A *citation* is a comment that begins with a rule: `DS-012 (S16): what is checked`. It stands at the check. A rule that is
//! mentioned in any other way only has to exist.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{SourceFile, root, rust_files, sources};

/// A row of the table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) requirements: BTreeSet<String>,
    pub(super) codes: Vec<String>,
    pub(super) files: BTreeSet<String>,
}

/// A citation in a file.
#[derive(Debug)]
pub(super) struct Citation {
    pub(super) id: String,
    pub(super) file: String,
    /// Counted from 0.
    pub(super) line: usize,
    requirements: BTreeSet<String>,
    /// What is checked, up to the first comma or stop.
    what: String,
}

/// The ids in `text`, with where each ends.
pub(super) fn ids(text: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for service in ["DS-", "QS-", "AS-"] {
        for (at, _) in text.match_indices(service) {
            let end = at + service.len() + 3;
            let digits =
                text.get(at + service.len()..end).is_some_and(|number| number.bytes().all(|octet| octet.is_ascii_digit()));
            if digits && !text[..at].ends_with(|c: char| c.is_alphanumeric()) {
                found.push((text[at..end].to_owned(), end));
            }
        }
    }
    found
}

fn list(text: &str) -> BTreeSet<String> {
    text.split(',').map(|item| item.trim().trim_matches('`').to_owned()).filter(|item| !item.is_empty() && item != "–").collect()
}

/// The rows `| id | what is checked | requirements | answer | files |`.
pub(super) fn table(text: &str) -> Result<BTreeMap<String, Rule>, String> {
    let mut table = BTreeMap::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let &["", id, what, requirements, codes, files, ""] = cells.as_slice() else { continue };
        if ids(id).is_empty() {
            continue;
        }
        let id = id.trim_matches('`');
        if what.is_empty() {
            return Err(format!("{id} says nothing"));
        }
        let rule = Rule { requirements: list(requirements), codes: list(codes).into_iter().collect(), files: list(files) };
        if table.insert(id.to_owned(), rule).is_some() {
            return Err(format!("{id} stands in the table twice"));
        }
    }
    Ok(table)
}

/// The citations of a file.
pub(super) fn citations(file: &SourceFile) -> Vec<Citation> {
    let mut found = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        let line = line.trim_start();
        let Some(comment) = line.strip_prefix("///").or_else(|| line.strip_prefix("//")).map(str::trim_start) else { continue };
        let Some((id, end)) = ids(comment).into_iter().find(|(id, end)| id.len() == *end) else { continue };
        let rest = comment[end..].trim_start();
        let (requirements, rest) = match rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some((requirements, rest)) => (list(requirements), rest),
            None => (BTreeSet::new(), rest),
        };
        let Some(what) = rest.trim_start().strip_prefix(':') else { continue };
        let what = what.split([',', '.', ';', ':']).next().unwrap_or_default().trim().to_owned();
        found.push(Citation { id, file: format!("src/{}", file.path), line: number, requirements, what });
    }
    found
}

/// What does not fit, a sentence each.
fn differences(table: &BTreeMap<String, Rule>, citations: &[Citation]) -> Vec<String> {
    let mut found = Vec::new();
    let mut cited: BTreeMap<&str, Vec<&Citation>> = BTreeMap::new();
    for citation in citations {
        cited.entry(&citation.id).or_default().push(citation);
    }
    for (id, places) in &cited {
        let Some(rule) = table.get(*id) else {
            found.push(format!("{id} is cited in {} and not in the table", places[0].file));
            continue;
        };
        let files: BTreeSet<String> = places.iter().map(|place| place.file.clone()).collect();
        if files != rule.files {
            found.push(format!("{id} is cited in {files:?}, the table says {:?}", rule.files));
        }
        for place in places {
            if place.requirements != rule.requirements {
                found.push(format!("{id} cites {:?} in {}, the table {:?}", place.requirements, place.file, rule.requirements));
            }
            if place.what != places[0].what {
                found.push(format!("{id} means two things: {:?} and {:?}", places[0].what, place.what));
            }
        }
    }
    found.extend(table.keys().filter(|id| !cited.contains_key(id.as_str())).map(|id| format!("{id} is cited nowhere")));
    found
}

pub(super) fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).expect("a readable document")
}

#[test]
fn table_and_code_keep_in_step() {
    let table = table(&read("docs/rules.md")).expect("a table");
    let citations: Vec<Citation> = sources().iter().flat_map(citations).collect();
    assert!(table.len() > 40 && citations.len() >= table.len(), "{} rules, {} citations", table.len(), citations.len());
    let found = differences(&table, &citations);
    assert!(found.is_empty(), "\n{}", found.join("\n"));

    // Whatever else mentions a rule, tests among it, means one that exists.
    for directory in ["src", "federation-tests"] {
        let this = root().join("src/tests");
        for path in rust_files(&root().join(directory)).into_iter().filter(|path| !path.starts_with(&this)) {
            let text = std::fs::read_to_string(&path).expect("a readable source file");
            for (id, _) in ids(&text) {
                assert!(table.contains_key(&id), "{}: there is no rule {id}", path.display());
            }
        }
    }
}

#[test]
fn the_table_names_codes_and_requirements_that_there_are() {
    let protocol = read("docs/protocol.md");
    for (id, rule) in table(&read("docs/rules.md")).expect("a table") {
        assert!(!rule.codes.is_empty(), "{id} says what its sender is told");
        for code in &rule.codes {
            assert!(protocol.contains(&format!("`{code}`")), "{id}: the protocol has no `{code}`");
        }
        for requirement in &rule.requirements {
            let (kind, number) = requirement.split_at(1);
            assert!("SRXC".contains(kind) && number.parse::<u8>().is_ok(), "{id}: {requirement} is no requirement");
        }
    }
}

#[test]
fn what_is_out_of_step_is_found() {
    let row = |id: &str, requirements: &str, file: &str| format!("| {id} | x | {requirements} | `malformed` | `{file}` |\n");
    let good = row("DS-001", "S1, R2", "src/ds/a.rs");
    let file = |text: &str| SourceFile::new("ds/a.rs", text);
    let found = |rows: &str, text: &str| differences(&table(rows).expect("a table"), &citations(&file(text))).len();
    assert_eq!(found(&good, "/// DS-001 (R2, S1): x, at y.\n// DS-001 (R2, S1): x.\n// As DS-001 says.\n"), 0);
    assert_eq!(found(&good, "// DS-001 (R2, S1): x.\n// DS-001 (R2, S1): something else.\n"), 1);
    assert_eq!(found(&good, "// DS-001 (R2): x.\n"), 1);
    assert_eq!(found(&good, "// As DS-001 says.\n"), 1, "cited nowhere");
    assert_eq!(found(&good, "#[cfg(test)]\nmod tests {\n    // DS-001 (R2, S1): x.\n}\n"), 1, "a test is no check");
    assert_eq!(found(&good, "// DS-001 (R2, S1): x.\n// DS-002: y.\n"), 1);
    assert_eq!(found(&row("DS-001", "S1, R2", "src/ds/b.rs"), "// DS-001 (R2, S1): x.\n"), 1);
    assert!(table(&format!("{good}{good}")).is_err());
    assert_eq!(ids("DS-012 … DS-0x1, ADS-003").len(), 1);
}
