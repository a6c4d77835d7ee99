//! `[log]`: how the service writes its log.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};
use tracing::level_filters::LevelFilter;

/// `[log]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// The form of the lines.
    pub format: LogFormat,
    /// The lowest level that is written, for all modules or for some.
    pub levels: Levels,
}

/// The form of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// The journal's own protocol where standard error is the journal, and text otherwise.
    #[default]
    Auto,
    /// One line of text for each message.
    Text,
    /// One JSON object in a line for each message.
    Json,
    /// The protocol of systemd-journald, with a field of the journal for each field of the message.
    Journald,
}

/// The lowest levels that are written: `info`, or `info,hotslot_driver=debug`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Levels {
    /// The level of modules that are not named.
    pub all: LevelFilter,
    /// Modules (and those in them), each with its level.
    pub modules: Vec<(String, LevelFilter)>,
}

impl Default for Levels {
    fn default() -> Self {
        Self { all: LevelFilter::INFO, modules: Vec::new() }
    }
}

/// The most modules that can be named.
const MODULES: usize = 50;

/// The modules that log, by crate. The last line has the libraries that log.
const KNOWN: [(&str, &[&str]); 6] = [
    ("hotslot", &["audit", "heap", "logging", "notify", "serve"]),
    ("hotslot_api", &["http"]),
    ("hotslot_driver", &["guest", "hotplug", "libvirt", "local", "sim"]),
    (
        "hotslot_service",
        &[
            "accelerator",
            "assignment",
            "audit",
            "config",
            "cyborg",
            "feed",
            "fence",
            "host_mode",
            "identity",
            "inventory",
            "keystone",
            "log",
            "peers",
            "quota",
            "retention",
            "settings",
            "start",
            "tls",
            "trace_export",
            "webhook",
        ],
    ),
    ("hotslot_store", &["backup", "commits", "locks", "notices", "pool", "private"]),
    (
        "",
        &["hyper_util", "jiff", "mio", "netlink_packet_route", "reqwest", "rustls_platform_verifier", "sqlx"],
    ),
];

impl Levels {
    /// Says of each module that its level has no effect, and why: no line of the log comes from it, or only lines of
    /// another level.
    pub fn unknown(&self) -> Vec<String> {
        let useless = |(module, level): &(String, LevelFilter)| match origin(module) {
            Some(Origin::Own) => None,
            // The log of the program leaves these lines out.
            Some(Origin::Library) if *level > LevelFilter::INFO => Some(format!(
                "{module}={level}: lines of libraries below info are never written, because they may have secrets; \
                 name a level from off to info, or a module of hotslot"
            )),
            Some(Origin::Library) => None,
            None => Some(no_module(module)),
        };
        self.modules.iter().filter_map(useless).collect()
    }
}

enum Origin {
    Own,
    Library,
}

/// Returns who writes the lines of the log that come from a module, from one that is in it, or from one whose name begins
/// like this; `None` when there are no such lines.
fn origin(module: &str) -> Option<Origin> {
    let is_in = |path: &str| {
        path.starts_with(module) || module.strip_prefix(path).is_some_and(|rest| rest.starts_with("::"))
    };
    KNOWN.iter().find_map(|(of, names)| match *of {
        "" => names.iter().any(|library| is_in(library)).then_some(Origin::Library),
        of => names.iter().any(|name| is_in(&format!("{of}::{name}"))).then_some(Origin::Own),
    })
}

fn no_module(module: &str) -> String {
    let of = |(of, names): &(&str, &[&str])| match *of {
        "" => format!("and the libraries {}", names.join(", ")),
        of => format!("{of} ({})", names.join(", ")),
    };
    let known: Vec<_> = KNOWN.iter().map(of).collect();
    format!("no line of the log comes from a module `{module}`; the modules are {}", known.join(", "))
}

impl FromStr for Levels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut levels = Self::default();
        let level = |word: &str| {
            let known = ["off", "error", "warn", "info", "debug", "trace"].contains(&word);
            let level = word.parse::<LevelFilter>().ok().filter(|_| known);
            level.ok_or_else(|| "a level is off, error, warn, info, debug or trace".to_owned())
        };
        for part in text.split(',').map(str::trim) {
            match part.split_once('=') {
                None => levels.all = level(part)?,
                Some((module, word)) => {
                    let named = |letter: char| letter.is_ascii_alphanumeric() || "_:".contains(letter);
                    if module.is_empty() || module.len() > 100 || !module.chars().all(named) {
                        return Err("write a module as in hotslot_service::webhook".into());
                    }
                    levels.modules.push((module.to_owned(), level(word)?));
                }
            }
        }
        if levels.modules.len() > MODULES {
            return Err(format!("name at most {MODULES} modules"));
        }
        Ok(levels)
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.all)?;
        self.modules.iter().try_for_each(|(module, level)| write!(f, ",{module}={level}"))
    }
}

impl<'de> Deserialize<'de> for Levels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(|reason| {
            serde::de::Error::custom(format!("{reason}; write `info`, or `info,hotslot_driver=debug`"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_and_shown() {
        for text in ["info", "off", "debug,hotslot_service::webhook=trace", "warn,a=off,b=error"] {
            assert_eq!(text.parse::<Levels>().unwrap().to_string(), text);
        }
        assert_eq!("a=debug".parse::<Levels>().unwrap().to_string(), "info,a=debug");
        for known in [
            "hotslot",
            "hotslot_service",
            "hotslot_service::webhook",
            "hotslot::audit",
            "hotslot_service::assignment::attach",
            "hotslot_driver::libvirt::ffi",
        ] {
            let levels: Levels = format!("{known}=debug").parse().unwrap();
            assert_eq!(levels.unknown(), [""; 0], "{known}");
        }
        for unknown in
            ["hotslot_servce", "hotslot_service::webhok", "hotslot_service::webhookx", "hotslot_web", "sqlxs"]
        {
            let levels: Levels = format!("info,{unknown}=debug,hotslot_store=warn").parse().unwrap();
            let said = levels.unknown();
            let [said] = &said[..] else { panic!("{unknown}: {said:?}") };
            assert!(said.contains(&format!("`{unknown}`; the modules are hotslot (audit")), "{said}");
        }
        let of_libraries: Levels = "sqlx=info,hyper=warn,jiff::tz=off".parse().unwrap();
        assert_eq!(of_libraries.unknown(), [""; 0]);
        for library in ["sqlx=debug", "hyper=trace", "mio::poll=debug"] {
            let said = library.parse::<Levels>().unwrap().unknown();
            assert!(
                said[0].contains(&format!("{library}: lines of libraries below info are never")),
                "{said:?}"
            );
        }
        for bad in ["", "loud", "info,", "=info", "a b=info", "a=", "a=5", "3", "a=info=b"] {
            assert!(bad.parse::<Levels>().is_err(), "{bad}");
        }
    }

    /// The modules are those of the source whose files log.
    #[test]
    fn every_module_that_logs_is_known() {
        let sources = [
            ("hotslot", "../../cli/src"),
            ("hotslot_api", "../src"),
            ("hotslot_driver", "../../driver/src"),
            ("hotslot_service", "src"),
            ("hotslot_store", "../store/src"),
            ("hotslot_model", "../model/src"),
            ("hotslot_web", "../web/src"),
        ];
        let mut found = std::collections::BTreeSet::from(["hotslot::audit".to_owned()]);
        for (name, directory) in sources {
            let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
            let mut directories = vec![root.clone()];
            while let Some(directory) = directories.pop() {
                for entry in std::fs::read_dir(directory).unwrap() {
                    let path = entry.unwrap().path();
                    if path.is_dir() {
                        directories.push(path);
                        continue;
                    }
                    let text = std::fs::read_to_string(&path).unwrap_or_default();
                    let macros =
                        ["error!(", "warn!(", "info!(", "debug!("].map(|word| format!("tracing::{word}"));
                    if text.contains("use tracing::") || macros.iter().any(|word| text.contains(word)) {
                        let first = path.strip_prefix(&root).unwrap().iter().next().unwrap();
                        let module = first.to_str().unwrap().trim_end_matches(".rs");
                        found.insert(format!("{name}::{module}"));
                    }
                }
            }
        }
        let own = KNOWN.iter().filter(|(of, _)| !of.is_empty());
        let known = own.flat_map(|(of, names)| names.iter().map(move |name| format!("{of}::{name}")));
        assert_eq!(known.collect::<std::collections::BTreeSet<_>>(), found);
    }
}
