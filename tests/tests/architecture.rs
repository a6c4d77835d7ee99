//! The invariants of ARCHITECTURE.md that can be read off the sources.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(folder: &str) -> Vec<(String, String)> {
    let (mut found, mut folders) = (Vec::new(), vec![root().join(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                found.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty());
    found
}

/// Fails when a word stands in a source outside of the places that may use it.
fn only_in(word: &str, places: &[&str]) {
    for folder in ["driver/src", "api/model/src", "api/store/src", "api/service/src", "api/src", "cli/src"] {
        for (file, text) in sources(folder) {
            let whole = |line: &str| {
                line.match_indices(word).any(|(at, _)| !line[..at].ends_with(char::is_alphanumeric))
            };
            let used = text.lines().any(|line| !line.trim_start().starts_with("//") && whole(line));
            let allowed = places.iter().any(|place| file.starts_with(place));
            assert!(!used || allowed, "{file} uses {word}");
        }
    }
}

#[test]
fn each_library_is_used_in_its_own_place() {
    only_in("virt::", &["driver/src/libvirt/"]);
    only_in("sqlx::", &["api/store/"]);
    only_in("axum::", &["api/src/http/"]);
    only_in("hyper::", &["api/src/http/"]);
    only_in("reqwest::", &["api/service/src/webhook.rs", "cli/src/client.rs"]);
    only_in("unsafe ", &["driver/src/libvirt/ffi.rs"]);
    only_in("anyhow", &["cli/src/"]);
}

/// The crates, lowest first: each may use those before it and no other.
const CRATES: [(&str, &str); 6] = [
    ("driver", "hotslot-driver"),
    ("api/model", "hotslot-model"),
    ("api/store", "hotslot-store"),
    ("api/service", "hotslot-service"),
    ("api", "hotslot-api"),
    ("cli", "hotslot"),
];

#[test]
fn a_crate_uses_only_those_below_it() {
    for (level, (folder, _)) in CRATES.iter().enumerate() {
        let manifest = std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        let (_, dependencies) = manifest.split_once("[dependencies]").unwrap();
        for (_, above) in &CRATES[level..] {
            let used = dependencies.lines().any(|line| line.split(['.', ' ', '=']).next() == Some(above));
            assert!(!used, "{folder} uses {above}");
        }
    }
}

#[test]
fn the_model_is_pure() {
    let manifest = std::fs::read_to_string(root().join("api/model/Cargo.toml")).unwrap();
    for banned in ["tokio", "sqlx", "axum", "tracing", "reqwest", "jiff"] {
        assert!(!manifest.contains(banned), "api/model uses {banned}");
    }
}
