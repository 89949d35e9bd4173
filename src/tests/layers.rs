//! The layers keep to the table in the crate's documentation: what is written there is what is checked.
//!
//! Code that is compiled for tests only is exempt: a test may set its layer up from above, and reads whatever clock it likes.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{SourceFile, sources};

/// The crate's documentation, with the table.
const CRATE: &str = include_str!("../lib.rs");

/// Names that decisions and encodings do without: they take the time and return what to do.
const PURE: [&str; 6] = ["ds", "qs", "accounts", "wire", "identity", "mls"];
const IMPURE_NAMES: [&str; 14] = [
    "tokio",
    "sqlx",
    "quinn",
    "quinn_proto",
    "rustls",
    "hickory_resolver",
    "socket2",
    "SystemTime",
    "Instant",
    "UnixMillis::now",
    "std::env",
    "std::fs",
    "std::net",
    "std::thread",
];

/// Names with one home each: (name, layers or files that may use it).
const HOMES: [(&str, &[&str]); 9] = [
    ("sqlx", &["storage"]),
    ("openmls", &["mls", "client"]),
    ("openmls_rust_crypto", &["client"]),
    ("hickory_resolver", &["transport"]),
    // The admin interface, both ends of it; what is counted elsewhere is named and shown in one place.
    ("hyper", &["node", "cli"]),
    ("prometheus_client", &["node/metrics.rs"]),
    // Only the pool's dial sequences reach another node, so that the gate, the address policy and the budgets hold for whatever
    // wants one; a client reaches its own.
    ("connect_with", &["federation", "client"]),
    // The environment configures nothing but what people type; fault points are for tests of real processes, the switch of a rule
    // is compiled for unit tests only.
    ("std::env", &["cli", "base/fault_points.rs", "base/rule.rs", "main.rs", "bin"]),
    // `base::UnixMillis` is the node's clock. The client's log has microseconds.
    ("SystemTime", &["base/clock.rs", "client/log.rs"]),
];

/// What one layer may import.
type Table = BTreeMap<String, BTreeSet<String>>;

/// Reads the table: rows ``| [`layer`] | is | imports |``, in order.
fn table(documentation: &str) -> Table {
    let mut table = Table::new();
    let mut above: BTreeSet<String> = BTreeSet::new();
    let mut everyone = Vec::new();
    for line in documentation.lines() {
        let cells: Vec<&str> = line.trim_start_matches("//! ").split('|').map(str::trim).collect();
        let &["", name, _, imports, ""] = cells.as_slice() else { continue };
        let Some(name) = name.strip_prefix("[`").and_then(|name| name.strip_suffix("`]")) else { continue };
        let allowed = match imports {
            "–" => BTreeSet::new(),
            "all above" => above.clone(),
            "all" => {
                everyone.push(name.to_owned());
                above.clone()
            }
            named => named.split(',').map(|layer| layer.trim().to_owned()).collect(),
        };
        assert!(allowed.is_subset(&above), "{name} may import only what stands above it");
        above.insert(name.to_owned());
        assert!(table.insert(name.to_owned(), allowed).is_none(), "{name} stands in the table twice");
    }
    for name in everyone {
        table.insert(name, above.clone());
    }
    table
}

/// The layers that `code` names: after `crate::`, also in braces.
fn named_layers(code: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        // `$crate::` and the end of a longer word are no paths of ours.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => named.extend(first_segments(group)),
            None => named.extend(word(rest)),
        }
    }
    named
}

/// The first path segments of the elements of `{a::b, c, d::{e, f}}`, from behind the opening brace.
fn first_segments(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut segments) = (0, true, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => start = true,
            c if start && !c.is_whitespace() => {
                segments.extend(word(&group[at..]));
                start = false;
            }
            _ => {}
        }
    }
    segments
}

fn word(text: &str) -> Option<String> {
    let word: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    if word.is_empty() { None } else { Some(word) }
}

/// Whether `code` names `name`: as a whole path segment or segments.
fn names(code: &str, name: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(name).any(|(at, _)| {
        let before = !code[..at].ends_with(|c| is_word(c) || c == '.');
        let after = !code[at + name.len()..].starts_with(is_word);
        before && after
    })
}

/// What is wrong in one file, a sentence each.
fn violations(table: &Table, file: &SourceFile) -> Vec<String> {
    let SourceFile { path, code, .. } = file;
    let mut found = Vec::new();
    let layer = file.layer().unwrap_or(path);
    match table.get(layer) {
        Some(allowed) => {
            let wrong = named_layers(code).into_iter().filter(|named| {
                // What is no layer is the crate's own root, which has nothing but layers.
                named != layer && !allowed.contains(named)
            });
            found.extend(wrong.map(|named| format!("src/{path}: {layer} may not import {named}")));
            // A chain of `super` long enough to leave the layer would hide an import.
            let depth = path.trim_end_matches("/mod.rs").matches('/').count() + 1;
            if code.contains(&"super::".repeat(depth)) {
                found.push(format!("src/{path}: name other layers by `crate::`, not by `super`"));
            }
        }
        None if file.layer().is_some_and(|layer| layer != "bin") => {
            found.push(format!("src/{path}: {layer} is not in the table"))
        }
        None => {}
    }
    if PURE.contains(&layer) {
        // PEM and DER types; no TLS.
        let code = if layer == "identity" { code.replace("rustls::pki_types", "pki_types") } else { code.clone() };
        let named = IMPURE_NAMES.iter().filter(|name| names(&code, name));
        found.extend(named.map(|name| format!("src/{path}: {layer} is pure and may not name {name}")));
    }
    for (name, homes) in HOMES {
        if names(code, name) && !homes.iter().any(|home| *home == layer || home == path) {
            found.push(format!("src/{path}: {name} is named only in {}", homes.join(", ")));
        }
    }
    found
}

#[test]
fn every_import_is_one_that_the_table_allows() {
    let table = table(CRATE);
    let declared: BTreeSet<String> =
        CRATE.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).map(str::to_owned).collect();
    assert_eq!(table.keys().cloned().collect::<BTreeSet<_>>(), declared, "the table has a row for each module");
    let sources = sources();
    let seen: BTreeSet<&str> = sources.iter().filter_map(SourceFile::layer).filter(|layer| *layer != "bin").collect();
    assert_eq!(seen.len(), declared.len(), "{seen:?}: every layer has files, and is looked at");
    let found: Vec<String> = sources.iter().flat_map(|file| violations(&table, file)).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn what_should_stay_apart_does() {
    let table = table(CRATE);
    let may = |layer: &str, other: &str| table[layer].contains(other);
    for (one, other) in [("ds", "qs"), ("qs", "ds"), ("federation", "storage"), ("client", "service"), ("base", "wire")] {
        assert!(!may(one, other), "{one} must not import {other}");
    }
    assert!(may("cli", "client") && may("service", "federation") && may("storage", "ds"));
}

#[test]
fn a_wrong_import_is_found() {
    let table = table(CRATE);
    let wrong = |path: &str, text: &str| violations(&table, &SourceFile::new(path, text));
    for (path, text) in [
        ("ds/commit.rs", "use crate::qs::sealed;"),
        ("ds/commit.rs", "use crate::{base::Domain, storage::{Storage, writer}};"),
        ("ds/commit.rs", "fn f() { crate::service::g() }"),
        ("ds/commit.rs", "use super::super::storage;"),
        ("ds/mod.rs", "use super::storage;"),
        ("identity/tls/names.rs", "use super::super::super::wire;"),
        ("federation/pool.rs", "use crate::storage::Storage;"),
        ("wire/codec.rs", "use tokio::io;"),
        ("mls/group.rs", "let now = UnixMillis::now();"),
        ("qs/sealed.rs", "let t = std::time::Instant::now();"),
        ("accounts/mod.rs", "use std::time::SystemTime;"),
        ("identity/tls.rs", "use rustls::ServerConfig;"),
        ("service/keys.rs", "sqlx::query(\"\")"),
        ("service/keys.rs", "use openmls::prelude::*;"),
        ("node/config.rs", "std::env::var(\"X\")"),
        ("extra/mod.rs", "use crate::base::Domain;"),
    ] {
        assert!(!wrong(path, text).is_empty(), "{path}: {text}");
    }
    for (path, text) in [
        ("ds/commit.rs", "use super::Hub; use crate::{base::{Domain, limits}, wire}; // crate::qs"),
        ("ds/commit.rs", "#[cfg(test)]\nmod tests {\n    use crate::storage::Storage;\n}\n"),
        ("identity/pem.rs", "use rustls::pki_types::CertificateDer;"),
        ("wire/codec.rs", "/// Like tokio's. \nlet x = \"sqlx\"; let my_tokio = y.tokio;"),
        ("base/fault_points.rs", "std::env::var(\"X\")"),
        ("base/clock.rs", "use std::time::SystemTime;"),
        ("cli/node.rs", "use crate::client::Client; use crate::storage::Storage;"),
    ] {
        assert_eq!(wrong(path, text), Vec::<String>::new(), "{text}");
    }
}
