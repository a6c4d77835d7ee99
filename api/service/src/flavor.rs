//! `[[flavor]]`: named sets of devices, with the extra specs of Nova's flavors.

use std::collections::HashSet;

use hotslot_driver::text;
use hotslot_model::rules::{AliasRequests, Inventory, NumaPolicy};

use crate::config::{ConfigError, Flavor};

/// The extra spec with the devices that a flavor requests.
pub const PCI_ALIAS: &str = "pci_passthrough:alias";

/// The extra spec with the NUMA policy for these devices.
pub const NUMA_POLICY: &str = "hw:pci_numa_affinity_policy";

/// The last part of the path `flavors/detail`, which therefore cannot be the id of a flavor.
const DETAIL: &str = "detail";

/// The flavor of an id or a name.
pub fn called<'a>(flavors: &'a [Flavor], id: &str) -> Option<&'a Flavor> {
    flavors.iter().find(|flavor| flavor.id() == id || flavor.name == id)
}

impl Flavor {
    /// Returns the id in the API: the configured id, else the name.
    pub fn id(&self) -> &str {
        self.id.as_deref().unwrap_or(&self.name)
    }
}

/// Returns all errors in the flavors, each with its place. Flavors may name the aliases of `inventory`.
pub fn problems(flavors: &[Flavor], inventory: &Inventory) -> Vec<ConfigError> {
    let mut problems = Vec::new();
    let mut names = HashSet::new();
    for (index, flavor) in flavors.iter().enumerate() {
        let mut bad = |key: &str, reason: String| {
            problems.push(ConfigError::Value { key: format!("[[flavor]][{index}] {key}"), reason });
        };
        // A flavor is found by its id or name, so the name of one must not be the id of another.
        for (key, text) in [("name", Some(&flavor.name)), ("id", flavor.id.as_ref())] {
            let Some(text) = text else { continue };
            if key == "id" && *text == flavor.name {
                continue;
            }
            if !(1..=255).contains(&text.chars().count()) || text.trim() != text {
                bad(
                    key,
                    format!("`{text}` is not valid: write 1 to 255 characters without spaces around them"),
                );
            } else if let Err(reason) = text::visible(text) {
                bad(key, reason);
            } else if text == DETAIL {
                bad(key, format!("`{DETAIL}` is a path of the API; choose another"));
            } else if !names.insert(text) {
                bad(key, format!("two flavors are called `{text}`; names and ids must differ"));
            }
        }
        if let Some(text) = flavor.extra_specs.get(PCI_ALIAS) {
            match text.parse::<AliasRequests>() {
                Err(error) => bad(&format!("extra_specs: {PCI_ALIAS}"), error.to_string()),
                Ok(requests) => {
                    for part in requests.0.iter().filter(|part| inventory.alias(&part.name).is_none()) {
                        let known: Vec<_> = inventory.alias_names().collect();
                        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                        let reason = format!("no [pci] alias is called `{}`; known: {known}", part.name);
                        bad(&format!("extra_specs: {PCI_ALIAS}"), reason);
                    }
                }
            }
        }
        if let Some(Err(reason)) = flavor.extra_specs.get(NUMA_POLICY).map(|word| word.parse::<NumaPolicy>())
        {
            bad(&format!("extra_specs: {NUMA_POLICY}"), reason);
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::config::Config;

    #[test]
    fn wrong_flavors_are_refused_with_the_reason() {
        let cases: Vec<Value> = serde_json::from_str(include_str!("../tests/data/flavor.json")).unwrap();
        let alias = r#"{"name": "a1", "vendor_id": "8086", "product_id": "10ca"}"#;
        for case in cases {
            let config =
                Config::parse(&format!("[pci]\nalias = ['{alias}']\n{}", case["toml"].as_str().unwrap()));
            let config = config.unwrap();
            let inventory = Inventory::new(&config.pci).unwrap();
            let problems: Vec<_> =
                problems(&config.flavor, &inventory).iter().map(ToString::to_string).collect();
            let wanted = case["problems"].as_array().unwrap();
            assert_eq!(problems.len(), wanted.len(), "{case}: {problems:#?}");
            for (problem, says) in problems.iter().zip(wanted) {
                assert!(problem.contains(says.as_str().unwrap()), "{case}: {problem}");
            }
        }
    }
}
