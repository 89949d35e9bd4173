//! The fuzzers' corpus, replayed.

use std::collections::BTreeSet;
use std::path::Path;

use federation_tests::fuzzing::{TARGETS, run};

// Shows: every input that the fuzzers start from, and every one that once made one fail, passes; and each target has inputs and
// a program, and nothing else has.
#[test]
fn every_input_of_the_corpus_passes() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let names = |directory: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(fuzz.join(directory)).expect("a directory");
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
    };
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("corpus"), targets);
    assert_eq!(names("fuzz_targets"), targets.iter().map(|name| format!("{name}.rs")).collect::<BTreeSet<_>>());
    let mut octets = 0;
    for target in &targets {
        let inputs = names(&format!("corpus/{target}"));
        assert!(inputs.len() >= 2, "{target} has {} inputs", inputs.len());
        for input in inputs {
            let input = std::fs::read(fuzz.join("corpus").join(target).join(&input)).expect("readable");
            octets += input.len();
            run(target, &input);
        }
    }
    assert!(octets < 1024 * 1024, "the corpus has {octets} octets");
}

#[test]
fn nothing_and_one_octet_pass_everywhere() {
    for (name, _) in TARGETS {
        run(name, &[]);
        (0..=u8::MAX).for_each(|octet| run(name, &[octet]));
    }
}
