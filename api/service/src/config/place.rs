//! Where in the text of a configuration a key is.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The keys of `[pci]` that have several names. The first name is the current one in Nova.
pub(super) const NAMES: [&[&str]; 2] =
    [&["device_spec", "passthrough_whitelist", "pci_passthrough_whitelist"], &["alias", "pci_alias"]];

/// Returns the number, from 1, of the line at a byte offset.
pub(super) fn line(text: &str, byte: usize) -> usize {
    1 + text.bytes().take(byte).filter(|byte| *byte == b'\n').count()
}

/// A step from a table or list to something in it.
enum Step<'a> {
    Key(&'a str),
    Index(usize),
    /// The item of a list that has this `name`.
    Named(&'a str),
}

/// Returns the steps to a place, such as `[detach] attempts`, `[pci] device_spec[2]`, `[pci] alias[1] name`, `[[hypervisor]][0] name`,
/// `[[flavor]][0] extra_specs: key` or `[[webhook]] billing: url`.
fn steps(place: &str) -> Option<Vec<Step<'_>>> {
    let (section, rest) = place.strip_prefix('[')?.trim_start_matches('[').split_once(']')?;
    let mut steps: Vec<_> = section.split('.').map(Step::Key).collect();
    let (index, rest) = indexes(rest.strip_prefix(']').unwrap_or(rest));
    let key = match rest.trim_start().split_once(": ") {
        // An item of a list has a number or a name.
        Some((name, key)) if index.is_empty() => {
            steps.push(Step::Named(name));
            key
        }
        Some(_) | None => rest.trim_start(),
    };
    steps.extend(index);
    let (key, rest) = key.split_at(key.find(['[', ' ']).unwrap_or(key.len()));
    if !key.is_empty() {
        steps.push(Step::Key(key.trim_end_matches(':')));
    }
    let (index, rest) = indexes(rest);
    steps.extend(index);
    // The key of an entry that is a table, as in `[pci] alias[1] name`.
    steps.extend(rest.strip_prefix(' ').filter(|key| !key.is_empty()).map(Step::Key));
    Some(steps)
}

/// Reads the numbers of list items, as in `[2][0]`, and returns the text after them.
fn indexes(mut text: &str) -> (Vec<Step<'_>>, &str) {
    let mut found = Vec::new();
    while let Some((number, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let Ok(number) = number.parse() else { break };
        found.push(Step::Index(number));
        text = rest;
    }
    (found, text)
}

fn key<'a, 'i>(table: &'a DeTable<'i>, name: &str) -> Option<&'a Spanned<DeValue<'i>>> {
    let other_names = NAMES.iter().filter(|names| names.contains(&name)).copied().flatten();
    [name].iter().chain(other_names).find_map(|name| table.get(*name))
}

fn text<'a>(value: &'a DeValue<'_>) -> Option<&'a str> {
    match value {
        DeValue::String(text) => Some(text),
        DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) => None,
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

fn inside<'a, 'i>(value: &'a DeValue<'i>, step: &Step<'_>) -> Option<&'a Spanned<DeValue<'i>>> {
    match (value, step) {
        (DeValue::Table(table), Step::Key(name)) => key(table, name),
        (DeValue::Array(items), Step::Index(index)) => items.get(*index),
        (DeValue::Array(items), Step::Named(name)) => items.iter().find(|item| match item.get_ref() {
            DeValue::Table(table) => table.get("name").and_then(|own| text(own.get_ref())) == Some(name),
            DeValue::String(_) | DeValue::Integer(_) | DeValue::Float(_) => false,
            DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) => false,
        }),
        (_, Step::Key(_) | Step::Index(_) | Step::Named(_)) => None,
    }
}

/// Returns the number, from 1, of the line at which a value is; of the section when the text does not have the key. `place`
/// is a place as a [`ConfigError`](super::ConfigError) names it. `None` when the text has neither.
pub fn line_of(source: &str, place: &str) -> Option<usize> {
    let (table, _) = DeTable::parse_recoverable(source);
    let steps = steps(place)?;
    let Some((Step::Key(first), others)) = steps.split_first() else { return None };
    let mut found = key(table.get_ref(), first)?;
    for step in others {
        match inside(found.get_ref(), step) {
            Some(value) => found = value,
            None => break,
        }
    }
    Some(line(source, found.span().start))
}

/// Returns the key whose value is at a byte offset, as in `[api] queue`. `None` when there is none.
pub(super) fn key_at(source: &str, offset: usize) -> Option<String> {
    let (table, _) = DeTable::parse_recoverable(source);
    let mut keys = Vec::new();
    let mut tables = vec![table.get_ref()];
    while let Some(table) = tables.pop() {
        let at = table.iter().find(|(key, value)| {
            // The span of a table begins at its header, and that of a table in dotted keys at its first key.
            value.span().contains(&offset) || key.span().contains(&offset) || holds(value.get_ref(), offset)
        });
        let Some((key, value)) = at else { break };
        keys.push(key.get_ref().to_string());
        match value.get_ref() {
            DeValue::Table(table) => tables.push(table),
            DeValue::Array(items) => {
                let item = items.iter().find(|item| holds(item.get_ref(), offset));
                if let Some(DeValue::Table(table)) = item.map(Spanned::get_ref) {
                    tables.push(table);
                }
            }
            DeValue::String(_) | DeValue::Integer(_) | DeValue::Float(_) => {}
            DeValue::Boolean(_) | DeValue::Datetime(_) => {}
        }
    }
    let (last, sections) = keys.split_last()?;
    Some(if sections.is_empty() { last.clone() } else { format!("[{}] {last}", sections.join(".")) })
}

/// Whether something in a value is at a byte offset.
fn holds(value: &DeValue<'_>, offset: usize) -> bool {
    match value {
        DeValue::Table(table) => table.iter().any(|(key, value)| {
            key.span().contains(&offset) || value.span().contains(&offset) || holds(value.get_ref(), offset)
        }),
        DeValue::Array(items) => {
            items.iter().any(|item| item.span().contains(&offset) || holds(item.get_ref(), offset))
        }
        DeValue::String(_) | DeValue::Integer(_) | DeValue::Float(_) => false,
        DeValue::Boolean(_) | DeValue::Datetime(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_place_in_the_text_is_found() {
        const TEXT: &str = "\
[api]
queue = 0
tls = { key = 3 }
[[webhook]]
name = \"a\"
attempts = \"x\"
[identity.keystone]
timeout = true
[[pci.extra_info]]
values = { a = 1 }
";
        for (value, key) in [
            ("0", "[api] queue"),
            ("3", "[api.tls] key"),
            ("\"x\"", "[webhook] attempts"),
            ("true", "[identity.keystone] timeout"),
            ("1", "[pci.extra_info.values] a"),
        ] {
            assert_eq!(key_at(TEXT, TEXT.find(value).unwrap()).as_deref(), Some(key), "{value}");
        }
        assert_eq!(key_at(TEXT, TEXT.len() + 5), None);
        assert_eq!(key_at("", 0), None);
    }

    #[test]
    fn a_place_has_the_line_of_its_value() {
        const TEXT: &str = "\
[detach]
attempts = 0
[pci]
passthrough_whitelist = [
  '{}',
  '[{}]',
]
[[webhook]]
name = \"a\"
[[webhook]]
name = \"billing\"
url = \"x\"
[[hypervisor]]
name = \"\"
[[identity.local]]
role = \"x\"
[api.tls]
key = \"k\"
[[flavor]]
name = \"f\"
[flavor.extra_specs]
\"a:b\" = \"x\"
[[detach.class]]
quiesce = []
class = \"x\"
[[pci.extra_info]]
match = {}
";
        for (place, line) in [
            ("[detach] attempts", Some(2)),
            ("[detach] timeout", Some(1)),
            ("[pci] device_spec[1]", Some(6)),
            ("[pci] device_spec[1][0]", Some(6)),
            ("[[webhook]] billing: url", Some(12)),
            ("[[webhook]] billing: ca", Some(10)),
            ("[[hypervisor]][0] name", Some(14)),
            ("[[identity.local]][0] role", Some(16)),
            ("[api.tls] key", Some(18)),
            ("[[flavor]][0] name", Some(20)),
            ("[[flavor]][0] extra_specs: a:b", Some(22)),
            ("[[detach.class]][0] class", Some(25)),
            ("[[pci.extra_info]][0] match", Some(27)),
            ("[events] most", None),
            ("nonsense", None),
        ] {
            assert_eq!(line_of(TEXT, place), line, "{place}");
        }
    }
}
