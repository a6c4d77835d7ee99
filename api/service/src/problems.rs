//! Finds what is wrong with the rules, flavors and policy of a configuration, whose values were checked before.

use hotslot_model::rules::{Rule, Rules};

use crate::config::{Config, ConfigError};
use crate::flavor;

/// Returns all errors in the rules, flavors and policy of a configuration, each with its place.
pub fn problems(config: &Config) -> Vec<ConfigError> {
    let rules = Rules::read(Rule::of_file(&config.pci), &config.pci);
    let mut problems: Vec<_> = rules.problems().into_iter().map(ConfigError::from).collect();
    problems.extend(flavor::problems(&config.flavor, &rules.inventory));
    problems.extend(config.policy().err().into_iter().flatten());
    problems
}
