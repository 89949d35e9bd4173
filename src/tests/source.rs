//! The crate's own source, as far as the tests of the house need to understand it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// One file of `src/`.
pub(super) struct SourceFile {
    /// Its path within `src/`, such as `ds/commit.rs`.
    pub(super) path: String,
    /// All of it but what is compiled for tests only.
    pub(super) text: String,
    /// As `text`, with comments and the contents of strings blanked; lines stay where they are.
    pub(super) code: String,
}

impl SourceFile {
    /// Makes one of a path and a text.
    pub(super) fn new(path: &str, text: &str) -> Self {
        let text = without_test_modules(text);
        Self { path: path.to_owned(), code: blank(&text), text }
    }

    /// The layer that the file belongs to; `None` for the files of the crate's root.
    pub(super) fn layer(&self) -> Option<&str> {
        self.path.split_once('/').map(|(layer, _)| layer)
    }
}

/// The directory of the crate.
pub(super) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files of `src/` that are compiled without `cfg(test)`.
pub(super) fn sources() -> Vec<SourceFile> {
    let src = root().join("src");
    let read: Vec<(String, String)> = rust_files(&src)
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&src).expect("it was found there").to_str().expect("a UTF-8 path").to_owned();
            (name, std::fs::read_to_string(&path).expect("a readable source file"))
        })
        .collect();
    let test_modules: BTreeSet<String> = read.iter().flat_map(|(path, text)| test_modules(path, text)).collect();
    let is_test = |path: &str| {
        let module = path.trim_end_matches("/mod.rs").trim_end_matches(".rs");
        test_modules.iter().any(|test| module == test || module.starts_with(&format!("{test}/")))
    };
    read.iter().filter(|(path, _)| !is_test(path)).map(|(path, text)| SourceFile::new(path, text)).collect()
}

/// All `.rs` files below `directory`.
pub(super) fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a readable directory") {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The modules that `path` declares for tests only, as paths within `src/` without ending: `#[cfg(test)] mod tests;`.
fn test_modules(path: &str, text: &str) -> Vec<String> {
    let home = match path {
        "lib.rs" => String::new(),
        path => format!("{}/", path.trim_end_matches(".rs").trim_end_matches("/mod")),
    };
    let mut found = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(next) = lines.peek().filter(|_| line.trim() == "#[cfg(test)]") else { continue };
        let declared = next.trim().trim_start_matches("pub(crate) ").strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';'));
        found.extend(declared.map(|name| format!("{home}{name}")));
    }
    found
}

/// `text` with `#[cfg(test)] mod … { … }` blanked. Such a module ends with the first brace that is indented as it is.
fn without_test_modules(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let lines: Vec<&str> = text.lines().collect();
    let mut end_of_module: Option<String> = None;
    for (number, line) in lines.iter().enumerate() {
        let follows_cfg = number > 0 && lines[number - 1].trim() == "#[cfg(test)]";
        if follows_cfg && line.trim_start().contains("mod ") && line.ends_with('{') {
            let indent = line.len() - line.trim_start().len();
            end_of_module = Some(format!("{}}}", " ".repeat(indent)));
        }
        if end_of_module.is_none() {
            kept.push_str(line);
        } else if end_of_module.as_deref() == Some(line) {
            end_of_module = None;
        }
        kept.push('\n');
    }
    kept
}

/// `text` with comments and the contents of string and character literals replaced by spaces.
fn blank(text: &str) -> String {
    let octets = text.as_bytes();
    let mut out = octets.to_vec();
    let mut wipe =
        |from: usize, to: usize| out[from..to].iter_mut().filter(|octet| **octet != b'\n').for_each(|octet| *octet = b' ');
    let find = |from: usize, wanted: &str| text.get(from..).and_then(|rest| rest.find(wanted)).map(|at| from + at);
    let mut at = 0;
    while at < octets.len() {
        let rest = &octets[at..];
        let begins_word = at == 0 || !(octets[at - 1].is_ascii_alphanumeric() || octets[at - 1] == b'_');
        let end = if rest.starts_with(b"//") {
            find(at, "\n").unwrap_or(octets.len())
        } else if rest.starts_with(b"/*") {
            find(at, "*/").map_or(octets.len(), |end| end + 2)
        } else if rest[0] == b'"' {
            let mut end = at + 1;
            while end < octets.len() && octets[end] != b'"' {
                end += if octets[end] == b'\\' { 2 } else { 1 };
            }
            end + 1
        } else if begins_word && (rest.starts_with(b"r\"") || rest.starts_with(b"r#")) {
            let hashes = rest[1..].iter().take_while(|octet| **octet == b'#').count();
            if rest.get(1 + hashes) == Some(&b'"') {
                let close = format!("\"{}", "#".repeat(hashes));
                find(at + hashes + 2, &close).map_or(octets.len(), |end| end + close.len())
            } else {
                at + 1
            }
        } else if rest[0] == b'\'' && rest.get(1) == Some(&b'\\') {
            find(at + 3, "'").map_or(octets.len(), |end| end + 1)
        } else if rest[0] == b'\'' && rest.get(2) == Some(&b'\'') {
            at + 3
        } else {
            at += 1;
            continue;
        };
        let end = end.min(octets.len());
        wipe(at, end);
        at = end.max(at + 1);
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[test]
fn only_code_is_seen() {
    let text = "use a; // use b;\n/* use c; */ let x = \"use d;\"; let y = r#\"use \" e;\"#; let q = '\"'; fn f<'a>(z: &'a str) {}\n\
                #[cfg(test)]\nmod tests {\n    use f;\n}\nuse g;\n";
    let file = SourceFile::new("base/sample.rs", text);
    let uses: Vec<_> = file.code.match_indices("use ").map(|(at, _)| &file.code[at + 4..at + 5]).collect();
    assert_eq!(uses, ["a", "g"], "{}", file.code);
    assert!(file.code.contains("fn f<'a>(z: &'a str) {}"));
    assert_eq!(file.code.lines().count(), text.lines().count());
    assert_eq!(test_modules("ds/mod.rs", "#[cfg(test)]\nmod tests;\nmod other;\n"), ["ds/tests"]);
    assert_eq!(test_modules("identity/tls.rs", "#[cfg(test)]\npub(crate) mod tests;\n"), ["identity/tls/tests"]);
}
