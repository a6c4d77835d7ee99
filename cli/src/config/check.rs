//! `hotslot config check`: reports every error in a configuration file.

use std::path::Path;

use hotslot_driver::xml::hostdev::Templates;
use hotslot_service::config::{Config, ConfigError, earlier_names, line_of};
use hotslot_service::start;
use serde_json::json;

use crate::exit::Exit;
use crate::output::{self, Output};

/// An error in the configuration.
#[derive(Debug, PartialEq, Eq)]
struct Problem {
    /// The section and key, or the file and line.
    place: String,
    /// The line of the file, from 1; `None` when the problem is not at a line of it.
    line: Option<usize>,
    reason: String,
}

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Self {
        match error {
            ConfigError::Read { path, source } => {
                Self { place: path, line: None, reason: format!("cannot be read: {source}") }
            }
            ConfigError::Syntax { path, line: Some(line), reason, .. } => {
                Self { place: format!("{path}:{line}"), line: Some(line), reason }
            }
            ConfigError::Syntax { path, line: None, reason, .. } => Self { place: path, line: None, reason },
            ConfigError::Value { key, reason } => Self { place: key, line: None, reason },
        }
    }
}

/// Prints every problem of the file, one in each line, or a summary of a valid file.
pub(crate) fn run(file: &Path, output: Output) -> anyhow::Result<Exit> {
    let (config, problems) = examine(file);
    let earlier = earlier_names(&std::fs::read_to_string(file).unwrap_or_default());
    let earlier = earlier.into_iter().map(|warning| format!("{}: {warning}", file.display()));
    let without_effect = config.without_effect();
    let without_effect = without_effect.into_iter().map(|warning| format!("{}: {warning}", file.display()));
    for warning in config.exposed(file).into_iter().chain(earlier).chain(without_effect) {
        output::complain(&warning);
    }
    if output.is_data() {
        let list =
            problems.iter().map(|it| json!({ "place": it.place, "line": it.line, "reason": it.reason }));
        output::data(output, &list.collect())?;
    } else if output.is_names() {
        output::names(problems.iter().map(|it| it.place.clone()))?;
    } else if problems.is_empty() {
        output::print(&format!("{}: valid: {}\n", file.display(), summary(&config)))?;
    } else {
        let name = file.display().to_string();
        let lines = problems.iter().map(|it| match it.line {
            Some(line) if it.place.starts_with('[') => {
                format!("{name}:{line}: {}: {}\n", it.place, it.reason)
            }
            Some(_) | None => format!("{}: {}\n", it.place, it.reason),
        });
        output::print(&lines.collect::<String>())?;
    }
    Ok(if problems.is_empty() { Exit::Done } else { Exit::Failed })
}

fn examine(file: &Path) -> (Config, Vec<Problem>) {
    let (config, problems) = Config::examine(file);
    let mut problems: Vec<Problem> =
        problems.into_iter().chain(start::problems(&config)).map(Problem::from).collect();
    // An invalid value is among the problems already.
    if problems.is_empty()
        && let Err(error) = config.clone().with_secrets()
    {
        problems.push(error.into());
    }
    if let Err(error) = Templates::load(config.pci.templates.as_deref()) {
        problems.push(Problem { place: "[pci] templates".into(), line: None, reason: error.to_string() });
    }
    let text = std::fs::read_to_string(file).unwrap_or_default();
    for problem in &mut problems {
        // The reason why an entry is refused begins with its key, which has a line of its own in a table.
        let key = problem.reason.split_once(": ").map_or("", |(key, _)| key);
        let is_entry = ["[pci] ", "[[pci.extra_info]]"].iter().any(|start| problem.place.starts_with(start));
        let place = if is_entry && !key.contains([' ', '`']) {
            format!("{} {key}", problem.place)
        } else {
            problem.place.clone()
        };
        problem.line = problem.line.or_else(|| line_of(&text, place.trim_end()));
        // A reason may quote an entry with line breaks; each problem is printed in one line.
        problem.reason = problem.reason.replace('\n', " ");
    }
    // Those in other files come last, and those of one line in the order in which they were found.
    let name = file.display().to_string();
    let in_file = |problem: &Problem| problem.place.starts_with('[') || problem.place.starts_with(&name);
    problems.sort_by_key(|problem| problem.line.filter(|_| in_file(problem)).unwrap_or(usize::MAX));
    (config, problems)
}

fn summary(config: &Config) -> String {
    let count = |number: usize, one: &str, several: &str| {
        format!("{number} {}", if number == 1 { one } else { several })
    };
    [
        count(config.pci.device_spec.len(), "device_spec entry", "device_spec entries"),
        count(config.pci.alias.len(), "alias entry", "alias entries"),
        count(config.pci.extra_info.len(), "extra_info entry", "extra_info entries"),
        count(config.hypervisors().len(), "host", "hosts"),
    ]
    .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the summary of a configuration, and its problems.
    fn read(text: &str) -> (String, Vec<(String, String)>) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hotslot.toml");
        std::fs::write(&file, text).unwrap();
        let (config, found) = examine(&file);
        let name = file.display().to_string();
        let found = found.into_iter().map(|it| (it.place.replace(&name, "FILE"), it.reason));
        (summary(&config), found.collect())
    }

    #[test]
    fn every_error_is_reported_with_its_place() {
        let (_, found) = read(
            r#"
[detach]
attempts = 0
timeout = 'long'
[pci]
device_spec = ['{"vendor_id": "8086"}', '{"vendor_id": "80867"}', "[{}, {\n]"]
alias = ['{"name": "a1", "vendor_id": "8086", "product_id": "10ca"}', '{"vendor_id": "8086"}']
templates = "/nonexistent/templates"
[[hypervisor]]
name = ""
uri = "qemu:///system"
"#,
        );
        let places: Vec<_> = found.iter().map(|(place, _)| place.as_str()).collect();
        assert_eq!(
            places,
            [
                "[detach] attempts",
                "FILE:4",
                "[pci] device_spec[1]",
                "[pci] device_spec[2]",
                "[pci] alias[1]",
                "[pci] templates",
                "[[hypervisor]][0] name",
            ]
        );
        assert!(found.iter().all(|(_, reason)| !reason.contains('\n') && !reason.is_empty()), "{found:?}");
    }

    #[test]
    fn a_syntax_error_is_reported_with_its_line() {
        let (_, found) = read("[api]\nlisen = '127.0.0.1:1'");
        let [(place, reason)] = &found[..] else { panic!("{found:?}") };
        assert_eq!(place, "FILE:2");
        assert!(reason.contains("did you mean `listen`?"), "{reason}");
        assert!(read("[api\n").1[0].0.starts_with("FILE:1"));
    }

    #[test]
    fn an_entry_may_be_a_table_whose_keys_have_lines() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hotslot.toml");
        let text = "\
[[pci.device_spec]]
vendor_id = \"8086\"
product_id = \"10cax\"
[[pci.device_spec]]
address = { bus = \"3b\", slot = \".*\" }
managed = false
[[pci.alias]]
vendor_id = \"8086\"
product_id = \"10ca\"
[[pci.extra_info]]
match = { address = \"0000:05:00.0\" }
values = { switch = \"tor-3\" }
";
        std::fs::write(&file, text).unwrap();
        let (config, found) = examine(&file);
        let found: Vec<_> = found.iter().map(|it| (it.line, it.place.as_str())).collect();
        assert_eq!(found, [(Some(3), "[pci] device_spec[0]"), (Some(7), "[pci] alias[0]")]);
        assert_eq!(config.pci.device_spec[1].0, r#"{"address":{"bus":"3b","slot":".*"},"managed":false}"#);
        assert!(summary(&config).contains("1 extra_info entry"));
    }

    #[test]
    fn a_valid_file_is_summarized() {
        let (summary, problems) = read("[pci]\ndevice_spec = ['{\"address\": \"*\"}']\nalias = []");
        assert_eq!(problems, []);
        assert_eq!(summary, "1 device_spec entry, 0 alias entries, 0 extra_info entries, 1 host");
    }
}
