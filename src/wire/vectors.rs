//! Checks `vectors.txt`, which is written for readers and other implementers, against [`super::samples`].

// A test's message says which vector is wrong.
#![allow(clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};

use super::error::ErrorCode;
use super::samples::{self, VARIANTS};
use crate::base::bytes::{hex, unhex};

const TEXT: &str = include_str!("vectors.txt");

/// The modules whose structs and enums have vectors.
const SOURCES: [&str; 11] = [
    include_str!("accounts.rs"),
    include_str!("ds.rs"),
    include_str!("error.rs"),
    include_str!("info.rs"),
    include_str!("keys.rs"),
    include_str!("peer.rs"),
    include_str!("probe.rs"),
    include_str!("qs.rs"),
    include_str!("receipt.rs"),
    include_str!("reply.rs"),
    include_str!("request.rs"),
];

/// A vector: per field the octets and the label.
struct Vector {
    name: &'static str,
    fields: Vec<(Vec<u8>, &'static str)>,
}

impl Vector {
    fn octets(&self) -> Vec<u8> {
        self.fields.iter().flat_map(|(octets, _)| octets.clone()).collect()
    }
}

fn vectors() -> Vec<Vector> {
    let mut vectors: Vec<Vector> = Vec::new();
    for line in TEXT.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            vectors.push(Vector { name, fields: Vec::new() });
            continue;
        }
        let (octets, label) = line.split_once("  # ").unwrap_or_else(|| panic!("no label: {line}"));
        let octets = unhex(&octets.replace(' ', "")).unwrap_or_else(|| panic!("not hexadecimal: {line}"));
        assert!(!octets.is_empty(), "a field has octets: {line}");
        vectors.last_mut().unwrap_or_else(|| panic!("no name before: {line}")).fields.push((octets, label));
    }
    vectors
}

#[test]
fn each_vector_is_its_samples_encoding_and_the_only_one() {
    let mut samples: BTreeMap<String, _> = BTreeMap::new();
    for sample in samples::all() {
        assert!(samples.insert(sample.name.clone(), sample).is_none(), "two samples of one name");
    }
    for vector in vectors() {
        let name = vector.name;
        let sample = samples.remove(name).unwrap_or_else(|| panic!("no sample, or a second vector: {name}"));
        let octets = vector.octets();
        assert_eq!(hex(&octets), hex(&sample.octets), "{name}: encodes otherwise");
        assert_eq!((sample.decodes)(&octets), Some(true), "{name}: decodes to another value or not at all");
        for length in 0..octets.len() {
            assert_eq!((sample.decodes)(&octets[..length]), None, "{name}: the first {length} octets decode");
        }
        let longer = [octets, vec![0]].concat();
        assert_eq!((sample.decodes)(&longer), None, "{name}: decodes with an octet too many");
    }
    assert!(samples.is_empty(), "no vectors for {:?}", samples.keys());
}

/// A length beyond the end of the input is refused wherever it stands. That nothing is allocated for it follows from the codec:
/// `split_vector` takes the content out of the input before any of it is copied, so that no vector outgrows its frame.
#[test]
fn a_huge_length_is_refused_in_every_place() {
    let samples: BTreeMap<_, _> = samples::all().into_iter().map(|sample| (sample.name, sample.decodes)).collect();
    let mut places = 0;
    for vector in vectors() {
        for (index, (octets, label)) in vector.fields.iter().enumerate() {
            if ![" = \"", " octets", " is empty"].iter().any(|sign| label.contains(sign)) {
                continue;
            }
            let (before, after) = (&vector.fields[..index], &vector.fields[index + 1..]);
            let join = |fields: &[(Vec<u8>, &str)]| fields.iter().flat_map(|(octets, _)| octets.clone()).collect::<Vec<u8>>();
            let length_octets = 1 << (octets[0] >> 6);
            // 2^30 - 1 octets are said to follow; none of them, some of them, or as many as before do.
            let lying = [&join(before)[..], &[0xbf, 0xff, 0xff, 0xff]].concat();
            let full = [&lying[..], &octets[length_octets..], &join(after)].concat();
            for octets in [&full[..], &full[..full.len().min(lying.len() + 1)], &lying] {
                assert_eq!((samples[vector.name])(octets), None, "{}: {label}", vector.name);
            }
            places += 1;
        }
    }
    assert!(places >= 350, "only {places} lengths found");
}

/// The fields that a vector's labels name, each where it first appears: of `content.service.request` after
/// `content.service.certificates[1]` only `request` is new.
fn labelled_fields(vector: &Vector) -> Vec<String> {
    let mut fields = Vec::new();
    let mut before: Vec<String> = Vec::new();
    for (_, label) in &vector.fields {
        let path = label.split([' ', ',']).next().unwrap_or_default();
        let mut parts = Vec::new();
        for part in path.split('.') {
            // `(variant)` says what a select holds; a name in capitals is that of the outermost type, which is no field.
            let mut part = part.to_owned();
            while let (Some(start), Some(end)) = (part.find('('), part.find(')')) {
                part.replace_range(start..=end, "");
            }
            parts.push(part);
        }
        let shared = parts.iter().zip(&before).take_while(|(part, before)| part == before).count();
        for (index, part) in parts.iter().enumerate().skip(shared) {
            let field = part.split('[').next().unwrap_or_default();
            // Another element of the same vector is no new field; what is in it is.
            let same = index == shared && before.get(index).is_some_and(|before| before.split('[').next() == Some(field));
            if !same && field.starts_with(|first: char| first.is_ascii_lowercase()) {
                fields.push(field.to_owned());
            }
        }
        before = parts;
    }
    fields
}

/// The fields that `{:#?}` prints, in order.
fn debug_fields(debug: &str) -> Vec<String> {
    let is_name = |name: &&str| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    debug
        .lines()
        .filter_map(|line| line.trim().split_once(": "))
        .map(|(name, _)| name)
        .filter(is_name)
        .map(str::to_owned)
        .collect()
}

#[test]
fn labels_name_every_field_in_order() {
    let samples: BTreeMap<_, _> = samples::all().into_iter().map(|sample| (sample.name, sample.debug)).collect();
    for vector in vectors() {
        let debug = &samples[vector.name];
        assert_eq!(labelled_fields(&vector), debug_fields(debug), "{}", vector.name);
    }
}

#[test]
fn every_variant_has_a_vector_that_names_it() {
    let vectors: BTreeMap<_, _> = vectors().into_iter().map(|vector| (vector.name, vector)).collect();
    for (r#enum, names) in VARIANTS {
        for name in *names {
            assert!(vectors.contains_key(name), "{enum}: no vector {name}");
        }
    }
    // The selects whose variants have vectors of the same name.
    for prefix in ["ds", "ds_sender_id", "qs", "qs_sender", "keys", "accounts", "reply", "peer_request", "peer_response", "sent"]
    {
        for (_, names) in VARIANTS {
            for name in names.iter().filter(|name| name.split('/').next() == Some(prefix)) {
                let variant = name.rsplit('/').next().unwrap_or_default();
                let label = format!(" = {variant}(");
                assert!(vectors[name].fields.iter().any(|(_, text)| text.contains(&label)), "{name} is not of its variant");
            }
        }
    }
    for code in ErrorCode::ALL {
        let vector = &vectors[format!("rejection/{}", code.name()).as_str()];
        assert_eq!(vector.fields[0].1, format!("code = {}({})", code.name(), *code as u16));
    }
}

#[test]
fn every_wire_type_occurs_in_a_vector() {
    let debug: String = samples::all().into_iter().map(|sample| sample.debug + "\n").collect();
    let words: BTreeSet<&str> = debug.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let enums: BTreeSet<&str> = VARIANTS.iter().map(|(name, _)| *name).collect();
    let mut types = 0;
    for source in SOURCES {
        let mut derived = false;
        for line in source.lines() {
            derived |= line.contains("TlsSerialize") && line.starts_with("#[derive");
            let declares = |keyword| line.strip_prefix(keyword).and_then(|rest: &str| rest.split([' ', '(']).next());
            let (r#struct, r#enum) = (declares("pub struct "), declares("pub enum "));
            if let Some(name) = r#struct.filter(|_| derived) {
                assert!(words.contains(name), "no sample has a {name}");
            }
            if let Some(name) = r#enum.filter(|_| derived) {
                assert!(enums.contains(name), "the variants of {name} have no list of vectors");
            }
            if r#struct.or(r#enum).is_some() {
                types += usize::from(derived);
                derived = false;
            }
        }
    }
    // Written once by hand, so that a change of the sources' form cannot make this test see nothing.
    assert!(types >= 60, "only {types} wire types found");
}

/// A type's fields or variants, each with its type, in the words of the sources: `(name, "List<Opaque>")`.
type Definition = Vec<(String, String)>;

/// Reads the definitions in the presentation language from `docs/protocol.md`.
fn documented_definitions() -> BTreeMap<String, Definition> {
    let mut definitions = BTreeMap::new();
    let mut numbers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let blocks: String = include_str!("../../docs/protocol.md").split("```").skip(1).step_by(2).collect();
    // A definition ends with `} Name;` and begins with the last keyword before at the start of a line.
    for block in format!("\n{blocks}").split("\nstruct {").flat_map(|part| part.split_inclusive("\nenum {")) {
        let Some((body, name)) = block.rsplit_once("} ").and_then(|(body, rest)| Some((body, rest.split_once(';')?.0))) else {
            continue;
        };
        if let Some(variants) = body.trim().strip_suffix("(255)") {
            let variants = variants.split(',').map(|variant| variant.trim().to_owned()).filter(|variant| !variant.is_empty());
            numbers.insert(name.to_owned(), variants.collect());
        } else if let Some((_, cases)) = body.split_once(&format!("select ({name}.type) {{")) {
            let declared = &numbers[&format!("{name}Type")];
            let cases: Vec<_> = cases.split("case ").skip(1).filter_map(|case| case.split_once(": ")).collect();
            assert_eq!(cases.len(), declared.len(), "{name}: cases and numbers");
            let typed = declared.iter().zip(cases).map(|(number, (case, field))| {
                assert_eq!(number.split('(').next(), Some(case), "{name}: order of cases");
                (number.clone(), if field.starts_with("struct {}") { String::new() } else { field_of(field).1 })
            });
            definitions.insert(name.to_owned(), typed.collect());
        } else {
            definitions.insert(name.to_owned(), body.split(';').filter(|field| !field.trim().is_empty()).map(field_of).collect());
        }
    }
    for (name, variants) in numbers.into_iter().filter(|(name, _)| !name.ends_with("Type")) {
        definitions.insert(name, variants.into_iter().map(|variant| (variant, String::new())).collect());
    }
    definitions
}

/// `Octets name<V>` → `(name, "List<Opaque>")`.
fn field_of(field: &str) -> (String, String) {
    let field = field.split(';').next().unwrap_or_default().trim();
    let (kind, name) = field.rsplit_once(' ').unwrap_or_else(|| panic!("not a field: {field}"));
    let rust = |kind: &str| match kind {
        "Octets" => "Opaque".to_owned(),
        "Hash" => "[u8; 32]".to_owned(),
        _ => kind.strip_prefix("uint").map_or_else(|| kind.to_owned(), |bits| format!("u{bits}")),
    };
    if let Some(name) = name.strip_suffix("<V>") {
        let list = if kind == "opaque" { "Opaque".to_owned() } else { format!("List<{}>", rust(kind)) };
        (name.to_owned(), list)
    } else if let Some((name, length)) = name.split_once('[') {
        (name.to_owned(), format!("[u8; {}", length))
    } else if let Some(inner) = kind.strip_prefix("optional<").and_then(|rest| rest.strip_suffix('>')) {
        (name.to_owned(), format!("Option<{}>", rust(inner)))
    } else {
        (name.to_owned(), rust(kind))
    }
}

/// Reads the same from the sources.
fn coded_definitions() -> BTreeMap<String, Definition> {
    let mut definitions: BTreeMap<String, Definition> = BTreeMap::new();
    for source in SOURCES {
        let (mut derived, mut open) = (false, None);
        for line in source.lines() {
            derived |= line.starts_with("#[derive") && line.contains("TlsSerialize");
            let declares = |keyword| line.strip_prefix(keyword).and_then(|rest: &str| rest.split(' ').next());
            if let Some(name) = declares("pub struct ").or_else(|| declares("pub enum ")) {
                open = derived.then(|| definitions.entry(name.to_owned()).or_default());
                derived = false;
            } else if line == "}" {
                open = None;
            } else if let (Some(definition), Some(item)) = (open.as_mut(), line.trim().strip_suffix(',')) {
                if let Some((name, kind)) = item.strip_prefix("pub ").and_then(|field| field.split_once(": ")) {
                    definition.push((name.to_owned(), kind.to_owned()));
                } else if item.starts_with(|first: char| first.is_ascii_uppercase()) {
                    let (name, kind) = item.split_once('(').unwrap_or((item, ")"));
                    let (name, number) = name
                        .split_once(" = ")
                        .map_or((name, definition.len().to_string()), |(name, number)| (name, number.to_owned()));
                    let snake: String = name.chars().fold(String::new(), |text, letter| match letter.is_ascii_uppercase() {
                        true if !text.is_empty() => text + "_" + &letter.to_ascii_lowercase().to_string(),
                        _ => text + &letter.to_ascii_lowercase().to_string(),
                    });
                    definition.push((format!("{snake}({number})"), kind.trim_end_matches(')').to_owned()));
                }
            }
        }
    }
    definitions
}

#[test]
fn the_documented_definitions_are_those_of_the_code() {
    let (documented, coded) = (documented_definitions(), coded_definitions());
    assert!(coded.len() >= 60, "only {} types found", coded.len());
    for (name, definition) in &coded {
        assert_eq!(documented.get(name), Some(definition), "{name}");
    }
    assert_eq!(documented.len(), coded.len(), "docs/protocol.md defines what the code does not");
}
