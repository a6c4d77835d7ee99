//! The rules of ARCHITECTURE.md that can be checked in the sources.

use std::collections::{BTreeMap, BTreeSet};
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

/// Fails when a word occurs in a source file outside of the places that may use it.
fn only_in(word: &str, places: &[&str]) {
    for folder in [
        "driver/src",
        "api/model/src",
        "api/store/src",
        "api/service/src",
        "api/web/src",
        "api/src",
        "cli/src",
    ] {
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
    only_in("axum::", &["api/src/http/", "api/web/src/"]);
    only_in("maud::", &["api/web/src/"]);
    only_in("hyper::", &["api/src/http/"]);
    only_in(
        "reqwest::",
        &[
            "api/service/src/config/keystone.rs",
            "api/service/src/config/trace.rs",
            "api/service/src/keystone/",
            "api/service/src/tls.rs",
            "api/service/src/trace.rs",
            "api/service/src/trace_export.rs",
            "api/service/src/webhook.rs",
            "cli/src/address.rs",
            "cli/src/client.rs",
            "cli/src/event_stream.rs",
            "cli/src/login.rs",
            "cli/src/tls.rs",
        ],
    );
    only_in(
        "opentelemetry",
        &[
            "api/service/src/trace.rs",
            "api/service/src/trace_export.rs",
            "api/service/src/under_way.rs",
            "api/store/src/actor.rs",
        ],
    );
    only_in("ratatui::", &["cli/src/top.rs"]);
    let tls = ["connections.rs", "requests.rs", "tls.rs"].map(|file| format!("api/src/http/{file}"));
    only_in("rustls::", &["api/service/src/tls.rs", &tls[0], &tls[1], &tls[2]]);
    only_in("unsafe ", &["driver/src/libvirt/ffi.rs", "cli/src/heap.rs"]);
    only_in("anyhow", &["cli/src/"]);
    // All records of assignments change through the engine.
    only_in("store.settle(", &["api/service/src/assignment/engine.rs", "api/store/src/tests/"]);
}

/// A handler takes the parts of the service that it uses. Only the router and its state have the whole service.
#[test]
fn no_handler_takes_the_whole_service() {
    let places = ["api/src/http/mod.rs", "api/src/http/state.rs", "api/service/src/", "cli/src/"];
    only_in("service::Service", &places);
    only_in("Arc<Service>", &places);
    only_in("State<App>", &[]);
}

/// The crates, lowest first: each may use only those before it.
const CRATES: [(&str, &str); 7] = [
    ("driver", "hotslot-driver"),
    ("api/model", "hotslot-model"),
    ("api/store", "hotslot-store"),
    ("api/service", "hotslot-service"),
    ("api/web", "hotslot-web"),
    ("api", "hotslot-api"),
    ("cli", "hotslot"),
];

#[test]
fn a_crate_uses_only_lower_crates() {
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

/// The files of a crate by their module paths, with the file name and the text of each.
struct Modules(BTreeMap<Vec<String>, (String, String)>);

impl Modules {
    fn read(folder: &str) -> Self {
        let source = format!("{folder}/src");
        let of = |(name, text): (String, String)| {
            let place = name.strip_prefix(&source)?.strip_suffix(".rs")?;
            let mut path: Vec<_> =
                place.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
            if path.last().is_some_and(|last| last == "tests") || path.iter().any(|part| part == "tests") {
                return None;
            }
            path.pop_if(|last| ["mod", "lib", "main"].contains(&last.as_str()));
            let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default().to_owned();
            Some((path, (name, text)))
        };
        Self(sources(&source).into_iter().filter_map(of).collect())
    }

    /// Returns the file that defines the item of a path, following re-exports of parent modules.
    fn find(&self, path: &[String]) -> Option<&str> {
        let module = (0..=path.len()).rev().find(|len| self.0.contains_key(&path[..*len]))?;
        let (file, text) = &self.0[&path[..module]];
        if let Some(name) = path.get(module) {
            for used in uses(text, &path[..module]).filter(|used| used.last() == Some(name)) {
                if used != path && used.len() > module + 1 && used[..module] == path[..module] {
                    return self.find(&used);
                }
            }
        }
        Some(file)
    }

    fn arrows(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut arrows = BTreeMap::new();
        for (path, (file, text)) in &self.0 {
            let named = uses(text, path).filter_map(|used| self.find(&used)).filter(|other| other != file);
            arrows.insert(file.as_str(), named.collect());
        }
        arrows
    }
}

/// Returns the paths, from the root of the crate, that the `use` statements of a file name.
fn uses(text: &str, module: &[String]) -> impl Iterator<Item = Vec<String>> {
    let statements = text.split("use ").skip(1).filter_map(|rest| Some(rest.split_once(';')?.0));
    let mut found = Vec::new();
    for statement in statements {
        expand(&statement.split_whitespace().collect::<String>(), &mut Vec::new(), &mut found);
    }
    let module = module.to_vec();
    found.into_iter().filter_map(move |path| match path.first()?.as_str() {
        "crate" => Some(path[1..].to_vec()),
        "self" => Some([&module[..], &path[1..]].concat()),
        "super" => Some([module.get(..module.len().checked_sub(1)?)?, &path[1..]].concat()),
        // A module's re-export of its own submodules.
        first if first.starts_with(char::is_lowercase) => Some([&module[..], &path[..]].concat()),
        _ => None,
    })
}

/// Expands `a::{b, c::d}` to `a::b` and `a::c::d`.
fn expand(tree: &str, before: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let mut depth = 0;
    let parts = tree.split(|letter| {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        letter == ',' && depth == 0
    });
    for part in parts.filter(|part| !part.is_empty()) {
        let (path, list) = part.split_once('{').map_or((part, None), |(path, list)| (path, Some(list)));
        let names: Vec<_> = path.split("::").filter(|name| !name.is_empty() && *name != "self").collect();
        let first_self = before.is_empty() && path.starts_with("self::");
        let names = first_self.then_some("self").into_iter().chain(names).map(str::to_owned);
        let kept = before.len();
        before.extend(names);
        match list.and_then(|list| list.strip_suffix('}')) {
            Some(list) => expand(list, before, found),
            None => found.push(before.clone()),
        }
        before.truncate(kept);
    }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let mut circles = Vec::new();
    for (folder, _) in CRATES {
        let modules = Modules::read(folder);
        let mut arrows = modules.arrows();
        // Remove the files that import no remaining file or are imported by none: they are in no circle.
        loop {
            let before = arrows.len();
            let left: BTreeSet<_> = arrows.keys().copied().collect();
            let named: BTreeSet<_> = arrows.values().flatten().copied().collect();
            arrows.retain(|file, others| {
                others.retain(|other| left.contains(other));
                named.contains(file) && !others.is_empty()
            });
            if arrows.len() == before {
                break;
            }
        }
        circles.extend(arrows.iter().map(|(file, named)| format!("{file} -> {named:?}")));
    }
    assert!(circles.is_empty(), "{}", circles.join("\n"));
}

/// Returns what follows the closing parenthesis that belongs to an opening one before `text`.
fn after_parentheses(text: &str) -> &str {
    let mut depth = 1;
    let end = text.find(|letter| {
        depth += i32::from(letter == '(') - i32::from(letter == ')');
        depth == 0
    });
    text[end.unwrap_or_default()..].trim_start_matches([')', ' ', '\n', '}'])
}

/// A conflict is for the client. Where the service itself goes on differently, it has a typed reason.
#[test]
fn no_control_flow_depends_on_a_conflict() {
    const CONFLICT: &str = "Error::Conflict(";
    let maps = ["api/service/src/error.rs", "api/service/src/metrics.rs", "api/src/http/error.rs"];
    for (file, text) in [sources("api/service/src"), sources("api/src")].concat() {
        if maps.contains(&file.as_str()) {
            continue;
        }
        for (at, _) in text.match_indices(CONFLICT) {
            let rest = &text[at + CONFLICT.len()..];
            let (wild, after) = (rest.starts_with(['_', '.']), after_parentheses(rest));
            let is_pattern = wild || ["=>", "= ", "| ", "if "].iter().any(|next| after.starts_with(next));
            assert!(
                !is_pattern,
                "{file} matches on a conflict: {CONFLICT}{}",
                rest.lines().next().unwrap_or_default()
            );
        }
    }
}

/// A build that changes `Cargo.lock` would use versions that nobody has tested.
#[test]
fn every_command_of_cargo_uses_the_versions_in_the_lock_file() {
    let mut files = vec![root().join("Makefile")];
    for folder in ["tools", ".ci"] {
        let entries = std::fs::read_dir(root().join(folder)).unwrap();
        files.extend(entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()));
    }
    let mut commands = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
            let words: Vec<_> = line.split([' ', '(', '\t']).collect();
            let resolves = words.windows(2).any(|pair| {
                pair[0] == "cargo"
                    && matches!(
                        pair[1],
                        "auditable"
                            | "bench"
                            | "build"
                            | "clippy"
                            | "deny"
                            | "doc"
                            | "fetch"
                            | "run"
                            | "test"
                    )
            });
            commands += usize::from(resolves);
            assert!(!resolves || line.contains("--locked"), "{}: {line}", file.display());
        }
    }
    assert!(commands > 8, "{commands}");
}
