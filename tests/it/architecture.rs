//! The rules of docs/architecture.md that can be read off the source: who may name whom.

use std::path::{Path, PathBuf};

/// Every source file, with its text.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut dirs = vec![root.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("text");
                let name = path.strip_prefix(&root).expect("below the root").to_path_buf();
                found.push((name, text));
            }
        }
    }
    assert!(found.len() > 30, "the sources were not found");
    found
}

/// Lines of code, without comments and without what follows the unit tests' head.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    product
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
}

/// The rings, inner ones first: each may name those before it, and the leaves.
const RINGS: [&str; 9] = [
    "storage", "mvcc", "state", "backup", "raft", "server", "api", "http", "cli",
];
const LEAVES: [&str; 8] = [
    "pb", "error", "config", "journal", "metrics", "tls", "dns", "wire",
];

fn ring(name: &str) -> Option<usize> {
    RINGS.iter().position(|ring| *ring == name)
}

/// The modules of this crate that a file names.
fn named(text: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for line in code(text) {
        for part in line.split("crate::").skip(1) {
            let module: String = part
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            modules.push(module);
        }
    }
    modules
}

#[test]
fn imports_point_inwards() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let module = file
            .iter()
            .next()
            .expect("a name")
            .to_string_lossy()
            .replace(".rs", "");
        let Some(own) = ring(&module) else { continue };
        for other in named(&text) {
            let pure = ["pb", "error"].contains(&other.as_str());
            let inner = LEAVES.contains(&other.as_str()) && (own >= 4 || pure);
            let client = other == "client" && module == "cli";
            // The server starts the services, which are given the server.
            let starts_services = ["api", "http"].contains(&other.as_str()) && module == "server";
            let inwards = ring(&other).is_some_and(|other| other <= own);
            if !(inner || client || starts_services || inwards) {
                wrong.push(format!("{} names crate::{other}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn libraries_are_named_where_they_belong() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let name = file.to_string_lossy().into_owned();
        let pure = ["storage", "mvcc", "state"]
            .iter()
            .any(|ring| file.starts_with(ring));
        let is_test = name.ends_with("sim.rs") || name.ends_with("tests.rs");
        for line in code(&text) {
            let says = |word: &str| line.contains(word);
            let openraft = says("openraft::") && !file.starts_with("raft");
            let sled = says("sled::") && !["storage/sled.rs", "storage/mod.rs"].contains(&name.as_str());
            let outside = ["tokio::", "tonic::", "std::env", "Instant::now", "SystemTime"]
                .iter()
                .any(|w| says(w));
            let random = says("rand::") && pure && !is_test;
            let left_over = ["dbg!", "todo!", "unimplemented!", "unsafe "]
                .iter()
                .any(|word| says(word));
            if openraft || sled || (pure && outside) || random || left_over {
                wrong.push(format!("{name}: {line}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
