//! The crate's own unit tests, as they stand in its source: what libtest calls each, and the rules that it covers.
//!
//! A test says so in a comment above its attribute: `// covers DS-010, DS-011`.

use std::collections::BTreeSet;

use super::rules::ids;
use super::source::{root, rust_files};

/// One test function.
#[derive(Debug)]
pub(super) struct UnitTest {
    /// Its module path and name, such as `ds::tests::a_group_is_made`: what `--exact` wants.
    pub(super) path: String,
    /// The file that it stands in, such as `src/ds/tests.rs`.
    pub(super) file: String,
    /// The rules that it says it covers.
    pub(super) covers: BTreeSet<String>,
    /// From its `fn` to its closing brace.
    pub(super) body: String,
}

/// All unit tests of the crate that stand in its source as such; those that a macro writes are not seen.
pub(super) fn unit_tests() -> Vec<UnitTest> {
    let src = root().join("src");
    let mut found = Vec::new();
    for path in rust_files(&src) {
        let name = path.strip_prefix(&src).expect("it was found there").to_str().expect("a UTF-8 path");
        found.extend(tests_of(name, &std::fs::read_to_string(&path).expect("a readable source file")));
    }
    found
}

/// The tests in one file; `path` is within `src/`.
pub(super) fn tests_of(path: &str, text: &str) -> Vec<UnitTest> {
    let module = path.trim_end_matches(".rs").trim_end_matches("/mod");
    let mut modules: Vec<(usize, String)> = match module {
        "lib" => Vec::new(),
        module => vec![(0, module.replace('/', "::"))],
    };
    let file_depth = modules.len();
    let mut found = Vec::new();
    let mut covers = BTreeSet::new();
    let mut is_test = false;
    let lines: Vec<&str> = text.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        if let Some(covered) = trimmed.strip_prefix("// covers ") {
            covers.extend(ids(covered).into_iter().map(|(id, _)| id));
        } else if trimmed.starts_with("#[test]") || trimmed.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(name) = declared(trimmed, "mod ").filter(|_| trimmed.ends_with('{')) {
            modules.push((indent, name));
        } else if trimmed == "}" && modules.len() > file_depth && modules.last().is_some_and(|(opened, _)| *opened == indent) {
            modules.pop();
        } else if let Some(name) = declared(trimmed, "fn ") {
            if is_test {
                let names: Vec<&str> = modules.iter().map(|(_, name)| name.as_str()).chain([name.as_str()]).collect();
                let end = format!("{}}}", " ".repeat(indent));
                let length = lines[number..].iter().position(|line| *line == end).map_or(1, |length| length + 1);
                found.push(UnitTest {
                    path: names.join("::"),
                    file: format!("src/{path}"),
                    covers: std::mem::take(&mut covers),
                    body: lines[number..number + length].join("\n"),
                });
            }
            // A comment above anything else covers nothing, and must not slip down to the next test.
            (is_test, covers) = (false, BTreeSet::new());
        }
    }
    found
}

/// The name that a line declares with `keyword`, whatever stands before it.
fn declared(line: &str, keyword: &str) -> Option<String> {
    let mut rest = line;
    for qualifier in ["pub(crate) ", "pub(super) ", "pub ", "const ", "async "] {
        rest = rest.strip_prefix(qualifier).unwrap_or(rest);
    }
    let name: String = rest.strip_prefix(keyword)?.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    if name.is_empty() { None } else { Some(name) }
}

#[test]
fn tests_are_found_with_their_paths_and_rules() {
    let text = "// covers DS-001\nfn helper() {}\n\nmod tests {\n    // covers DS-002, QS-003\n    // covers AS-004\n    // Why.\n    \
                #[test]\n    fn a() {\n        one();\n    }\n    mod deep {\n        #[tokio::test]\n        async fn b() {}\n    }\n    \
                #[test]\n    fn c() {}\n}\n#[test]\nfn d() {}\n";
    let found = tests_of("ds/sample.rs", text);
    let paths: Vec<&str> = found.iter().map(|test| test.path.as_str()).collect();
    assert_eq!(paths, ["ds::sample::tests::a", "ds::sample::tests::deep::b", "ds::sample::tests::c", "ds::sample::d"]);
    assert_eq!(found[0].covers.iter().collect::<Vec<_>>(), ["AS-004", "DS-002", "QS-003"]);
    assert!(found[1..].iter().all(|test| test.covers.is_empty()), "{found:?}");
    assert_eq!(found[0].body, "    fn a() {\n        one();\n    }");
    assert_eq!(tests_of("ds/mod.rs", "#[test]\nfn a() {}")[0].path, "ds::a");
    assert_eq!(tests_of("lib.rs", "#[test]\nfn a() {}")[0].path, "a");
}
