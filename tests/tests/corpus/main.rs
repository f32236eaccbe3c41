//! The committed corpora of the fuzz targets, replayed, and mutated a bounded and repeatable number of times.
//!
//! Files called `valid-…` have to be accepted and `bad-…` to be refused; of the others only that nothing breaks is asked.
//! A finding of a fuzzer goes into its target's corpus and is replayed here from then on. `UPDATE_CORPUS=1` writes the
//! samples of `samples.rs` anew, such as after a change of a format; `MUTATIONS=1000000` goes hunting without libFuzzer.

mod mutate;
mod samples;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tests::fuzz::{TARGETS, Target};
use tests::sim::Rng;

/// Mutations for each target: together seconds in a debug build.
const MUTATIONS: u64 = 3000;
/// Fewer for those that need milliseconds.
const SLOW: [(&str, u64); 4] = [("journal", 150), ("hot_log", 300), ("identity", 600), ("bitmap", 1000)];
/// No input may take a target as long as this, on the slowest machine.
const LONGEST: Duration = Duration::from_secs(20);

fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// The committed files of a target, by name.
fn corpus(target: &str) -> BTreeMap<String, Vec<u8>> {
    let dir = directory(target);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let file = |path: PathBuf| {
        (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap())
    };
    entries.map(|entry| file(entry.unwrap().path())).collect()
}

/// Runs a target and keeps the input if it breaks.
fn run(name: &str, target: Target, input: &[u8], what: &str) -> bool {
    let started = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| target(input)));
    let elapsed = started.elapsed();
    match result {
        Ok(accepted) if elapsed < LONGEST => accepted,
        result => {
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-broken"));
            std::fs::write(&path, input).unwrap();
            eprintln!("{name}: {what} took {elapsed:?} or broke it; the input is in {}", path.display());
            match result {
                Ok(_) => panic!("{name}: {what} took {elapsed:?}"),
                Err(panic) => resume_unwind(panic),
            }
        }
    }
}

fn replay(name: &str) {
    let (_, target) = *TARGETS.iter().find(|(n, _)| *n == name).expect("a target of that name");
    if std::env::var_os("UPDATE_CORPUS").is_some() {
        update(name);
    }
    let corpus = corpus(name);
    assert!(corpus.len() >= 10, "{name}: {} files", corpus.len());
    assert!(corpus.keys().any(|file| file.starts_with("valid-")), "{name} has no valid sample");
    for (file, bytes) in &corpus {
        let accepted = run(name, target, bytes, file);
        assert!(accepted || !file.starts_with("valid-"), "{name}: {file} was refused");
        assert!(!accepted || !file.starts_with("bad-"), "{name}: {file} was accepted");
    }
    let seeds: Vec<&Vec<u8>> = corpus.values().collect();
    let mut rng = Rng::new(1);
    for n in 0..mutations(name) {
        let input = mutate::mutate(&mut rng, &seeds);
        run(name, target, &input, &format!("mutation {n}"));
    }
}

/// How many mutations of `name` to run.
fn mutations(name: &str) -> u64 {
    match std::env::var("MUTATIONS") {
        Ok(text) => text.parse().expect("MUTATIONS is a number"),
        Err(_) => SLOW.iter().find(|(slow, _)| *slow == name).map_or(MUTATIONS, |(_, n)| *n),
    }
}

/// Writes the samples.
fn update(name: &str) {
    let dir = directory(name);
    std::fs::create_dir_all(&dir).unwrap();
    for (file, bytes) in samples::of(name) {
        std::fs::write(dir.join(file), bytes).unwrap();
    }
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        /// A target without a test, a corpus or a fuzzer, or one of them without a target.
        #[test]
        fn every_target_is_replayed_and_has_its_fuzzer() {
            let mut replayed = vec![$(stringify!($name)),*];
            let mut targets: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
            replayed.sort();
            targets.sort();
            assert_eq!(replayed, targets);
            let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
            let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
            for name in &targets {
                assert!(manifest.contains(&format!("name = \"{name}\"")), "no fuzzer for {name} in tests/fuzz/Cargo.toml");
                let body = std::fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs"))).unwrap();
                assert!(body.contains(&format!("\"{name}\"")), "the fuzzer {name} runs something else");
            }
            for entry in std::fs::read_dir(fuzz.join("corpus")).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!(targets.contains(&name.as_str()), "a corpus for {name}, which is no target");
            }
        }
    };
}

replays! {
    frame chunk source_message target_message nbd_handshake nbd_request group_state superblock hot_log bitmap journal config
    admin_request admin_response pairing_token pins identity
}
