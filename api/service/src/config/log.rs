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
        for bad in ["", "loud", "info,", "=info", "a b=info", "a=", "a=5", "3", "a=info=b"] {
            assert!(bad.parse::<Levels>().is_err(), "{bad}");
        }
    }
}
