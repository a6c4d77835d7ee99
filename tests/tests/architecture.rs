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
    for folder in ["driver/src", "api/src", "cli/src"] {
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
fn each_library_is_spoken_in_its_own_room() {
    only_in("virt::", &["driver/src/libvirt/"]);
    only_in("sqlx::", &["api/src/store/", "api/src/error.rs", "api/src/service.rs", "api/src/http/error.rs"]);
    only_in("axum::", &["api/src/http/"]);
    only_in("hyper::", &["api/src/http/"]);
    only_in("reqwest::", &["api/src/webhook.rs", "cli/src/client.rs"]);
    only_in("unsafe ", &["driver/src/libvirt/ffi.rs"]);
    only_in("anyhow", &["cli/src/"]);
}

#[test]
fn arrows_point_one_way() {
    let manifest = |name: &str| std::fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
    assert!(!manifest("driver").contains("hotslot-api"));
    assert!(!manifest("api").contains("name = \"hotslot\""));
    only_in("hotslot_api", &["cli/src/"]);
}
