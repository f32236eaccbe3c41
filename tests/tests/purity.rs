//! `protocol/` is pure: it has no way to a clock, a file, a socket or a random number.
//!
//! `protocol/clippy.toml` forbids single types and functions. Here is the coarser net: which crates the core depends on,
//! and which modules of the standard library its source names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// What the core may depend on: crates that compute, and do nothing else. Whoever adds one has looked. Procedural macros
/// run at compile time and are not counted.
const CRATES: [&str; 12] = [
    "bincode",
    "bytes",
    "lz4_flex",
    "serde",
    "serde_core",
    "thiserror",
    "twox-hash",
    "unty",
    "xxhash-rust",
    "zstd",
    "zstd-safe",
    "zstd-sys",
];

/// Modules of the standard library that have no way out of the process.
const MODULES: [&str; 11] =
    ["array", "cell", "cmp", "collections", "fmt", "iter", "mem", "num", "ops", "slice", "sync"];

/// Lines that name no more of another module than traits: LZ4's streams are spoken to over them, in memory.
const TRAITS: [&str; 2] = ["use std::io::{Read, Write};", "use std::io::Write;"];

#[test]
fn the_core_depends_on_nothing_that_reaches_out() {
    let found = dependencies("afterimage-protocol");
    assert!(found.contains("bytes"), "the dependencies were not found: {found:?}");
    let unknown: Vec<_> = found.iter().filter(|name| !CRATES.contains(&name.as_str())).collect();
    assert!(unknown.is_empty(), "protocol/ depends on {unknown:?}");
}

#[test]
fn the_core_names_no_module_that_reaches_out() {
    let mut files = 0;
    let mut found = Vec::new();
    for path in sources(&root().join("protocol/src")) {
        let text = fs::read_to_string(&path).unwrap();
        files += 1;
        let counts = |line: &str| !line.trim_start().starts_with("//") && !TRAITS.contains(&line);
        for (index, line) in text.lines().enumerate().filter(|(_, line)| counts(line)) {
            let unknown = modules(line).into_iter().filter(|name| !MODULES.contains(name));
            found.extend(unknown.map(|name| format!("{}:{}: std::{name}", path.display(), index + 1)));
        }
    }
    assert!(files > 10, "only {files} files found");
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_module_is_seen_behind_each_crate_of_the_standard_library() {
    assert_eq!(modules("use std::time::Instant;"), ["time"]);
    assert_eq!(modules("let a = core::mem::take(b); ::std::fs::read(c)"), ["mem", "fs"]);
    assert_eq!(modules("use std::{fmt, net::IpAddr};"), ["{"]);
    assert!(modules("zstd::bulk::compress").is_empty());
}

/// What follows `std::`, `core::` and `alloc::` in a line; `{` for a list, which is not looked into.
fn modules(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (at, _) in line.match_indices("::") {
        let part = |c: char| c.is_alphanumeric() || c == '_';
        let name = line[..at].rsplit(|c| !part(c)).next().unwrap_or_default();
        if matches!(name, "std" | "core" | "alloc") {
            let rest = &line[at + 2..];
            let end = rest.find(|c| !part(c)).unwrap_or(rest.len());
            found.push(if end == 0 { &rest[..rest.len().min(1)] } else { &rest[..end] });
        }
    }
    found
}

/// The crates that are linked with `package`, directly or not.
fn dependencies(package: &str) -> BTreeSet<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args([
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform=x86_64-unknown-linux-gnu",
    ]);
    let output = command.current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();

    let packages: BTreeMap<String, Value> =
        list(&metadata["packages"]).into_iter().map(|p| (text(&p["id"]), p)).collect();
    let nodes: BTreeMap<String, Value> =
        list(&metadata["resolve"]["nodes"]).into_iter().map(|n| (text(&n["id"]), n)).collect();
    let is_macro = |id: &str| {
        list(&packages[id]["targets"]).iter().any(|t| list(&t["kind"]).contains(&Value::from("proc-macro")))
    };
    // `null` is an ordinary dependency; the others are `build` and `dev`.
    let is_linked = |dep: &Value| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());

    let start = packages.values().find(|p| p["name"] == package).expect("the package is in the workspace");
    let (mut found, mut next) = (BTreeSet::new(), vec![text(&start["id"])]);
    while let Some(id) = next.pop() {
        for dep in list(&nodes[&id]["deps"]).iter().filter(|dep| is_linked(dep)) {
            let dep = text(&dep["pkg"]);
            if !is_macro(&dep) && found.insert(text(&packages[&dep]["name"])) {
                next.push(dep);
            }
        }
    }
    found
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
