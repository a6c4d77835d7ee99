//! `hotslot policy`: shows the rules of who may do what.

use std::path::Path;

use clap::Subcommand;
use hotslot_api::http::routes_of;
use hotslot_model::identity::policy::RULES;
use hotslot_service::config::{Config, ConfigError};
use serde_json::{Value, json};

use crate::exit::Exit;
use crate::output::{self, Output};
use crate::table::{Column, column};

pub(crate) const HELP: &str = "\
Examples:
  hotslot policy list --config /etc/hotslot/hotslot.toml
  hotslot policy list -o json
The file is [identity] policy of the configuration. It has the form of oslo.policy, such as:
  \"hotslot:attachment:create\": \"role:operator and project_id:%(project_id)s or rule:service_or_admin\"";

/// The configuration, when none is named.
const CONFIG: &str = "/etc/hotslot/hotslot.toml";

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// List the rules: what each requires, where that comes from, and the routes that need it. This needs no service.
    List,
}

impl PolicyCommand {
    pub(crate) fn run(self, config: Option<&Path>, output: Output) -> anyhow::Result<Exit> {
        let Self::List = self;
        let config = match config {
            Some(path) => Config::load(path)?,
            None if Path::new(CONFIG).exists() => Config::load(Path::new(CONFIG))?,
            None => Config::default(),
        };
        let rules = rules(&config).map_err(|errors| {
            anyhow::anyhow!(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
        })?;
        let columns = [
            column("RULE", "/rule").name(),
            column("FROM", "/from"),
            column("REQUIRES", "/requires").wrapped(),
            Column::new("ROUTES", routes).wrapped(),
            column("DESCRIPTION", "/description").wrapped(),
        ];
        output::list(output, "rules", &rules, &columns)?;
        Ok(Exit::Done)
    }
}

/// The first route that needs a rule, and the number of further ones.
fn routes(rule: &Value) -> String {
    let routes: Vec<_> = rule["routes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    match &routes[..] {
        [] => "-".to_owned(),
        [route] => (*route).to_owned(),
        [route, more @ ..] => format!("{route} and {} more", more.len()),
    }
}

/// Returns all rules as JSON: those that hotslot has, in their order, and then those that only the file has.
fn rules(config: &Config) -> Result<Vec<Value>, Vec<ConfigError>> {
    // This checks all rules together, for unknown names and circles.
    config.policy()?;
    let file = config.policy_file().map_err(|error| vec![error])?;
    let shown = |name: &str, default: Option<&str>, description: &str| {
        let of_file = file.rules.iter().find(|rule| rule.name == name);
        let of_config = config.change_of_accelerators().iter().find(|(rule, _)| *rule == name);
        let (requires, from) = match (of_file, of_config) {
            (Some(rule), _) => (rule.requirement.as_str(), format!("line {} of the policy file", rule.line)),
            (None, Some((_, requirement))) => (*requirement, "[accelerators] change".to_owned()),
            (None, None) => (default.unwrap_or_default(), "default".to_owned()),
        };
        json!({
            "rule": name,
            "default": default,
            "requires": requires,
            "from": from,
            "routes": routes_of(name).collect::<Vec<_>>(),
            "description": description,
        })
    };
    let known = RULES.iter().map(|rule| shown(rule.name, Some(rule.default), rule.description));
    let others = file.rules.iter().filter(|rule| RULES.iter().all(|known| known.name != rule.name));
    Ok(known.chain(others.map(|rule| shown(&rule.name, None, "part of other rules"))).collect())
}
