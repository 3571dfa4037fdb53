//! What the fuzzer starts from, and what it once broke something with, holds.

use std::fs;
use std::path::{Path, PathBuf};

/// The inputs of a target below `folder`, in order.
fn inputs(folder: &str, target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(folder)
        .join(target);
    let mut paths: Vec<_> = match fs::read_dir(&folder) {
        Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
        Err(_) => Vec::new(),
    };
    paths.sort();
    paths
}

#[test]
fn every_seed_and_every_find_holds() {
    for target in kiln_fuzz::TARGETS {
        let seeds = inputs("seeds", target.name);
        assert!(!seeds.is_empty(), "{} has no seed", target.name);
        for path in seeds.into_iter().chain(inputs("found", target.name)) {
            println!("{}", path.display());
            (target.run)(&fs::read(&path).unwrap());
        }
    }
}

/// What is meant to be right, and would otherwise be no seed of anything: the fuzzer would start behind the first refusal.
#[test]
fn good_seeds_are_taken() {
    /// Those that are refused as they are meant to be. The other hostile packages are unpacked below their root.
    const WRONG: [&str; 8] = [
        "deb/dots",
        "deb/hard",
        "deb/hardlink-through-link",
        "deb/link",
        "release/none",
        "release/other-text",
        "tar/attribute-of-no-kind",
        "tar/links",
    ];
    let mut refused = Vec::new();
    for target in kiln_fuzz::TARGETS {
        for path in inputs("seeds", target.name) {
            if !(target.run)(&fs::read(&path).unwrap()) {
                let name = path.file_name().unwrap().to_string_lossy();
                refused.push(format!("{}/{name}", target.name));
            }
        }
    }
    refused.sort();
    assert_eq!(refused, WRONG);
}
