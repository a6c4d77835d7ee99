//! The part `Settings`: the configuration and the policy in force, and how they are read again while the service runs.

use std::sync::Arc;

use hotslot_model::identity::Policy;
use hotslot_model::rules::Rules;

use crate::config::{Config, ConfigError, Levels, Reloaded};
use crate::current::Current;
use crate::error::Error;
use crate::identity::tokens;
use crate::inventory::{Catalog, read_rules};
use crate::{log, problems, tls};

/// What was read and checked, before any of it is in force.
struct Read {
    config: Config,
    policy: Policy,
    rules: Rules,
    found: Reloaded,
}

/// The configuration and the policy in force.
pub struct Settings {
    pub(crate) policy: Arc<Current<Policy>>,
    /// The rules, and the configuration.
    pub(crate) catalog: Arc<Catalog>,
}

impl Settings {
    /// Reads the configuration file again, with the policy, the certificates and the tokens that it names. What is new is
    /// put in force as a whole, or not at all; keys that need a restart are only reported. Certificates and tokens are
    /// also followed without this.
    ///
    /// # Errors
    /// [`Error::Invalid`] with everything that is wrong; then nothing has changed. Errors of the database.
    pub async fn reload(&self) -> Result<Reloaded, Error> {
        // Neither another reading nor a change of the rules by the API may come in between.
        let turn = self.catalog.changing.lock().await;
        let Read { config, policy, rules, found } = self.read_again().await?;
        let levels = config.log.levels.clone();
        let levels_changed = levels != self.catalog.config.get().log.levels;
        config.warn_without_effect();
        self.policy.set(policy);
        self.catalog.config.set(config);
        self.catalog.put_in_force(rules, turn).await;
        // Levels that somebody has set at run time stay, unless the file has others now.
        if levels_changed && let Err(reason) = log::set_levels(&levels) {
            tracing::warn!("[log] levels: {reason}");
        }
        tracing::info!(
            changed = found.changed.join(", "),
            needs_restart = found.needs_restart.join(", "),
            "the configuration was read again"
        );
        Ok(found)
    }

    /// The levels of the log that the configuration has.
    pub fn configured_levels(&self) -> Levels {
        self.catalog.config.get().log.levels.clone()
    }

    async fn read_again(&self) -> Result<Read, Error> {
        let refuse = |wrong: Vec<String>| {
            let wrong = wrong.join("; ");
            Error::Invalid(format!(
                "the configuration is refused, and the previous one stays in force: {wrong}"
            ))
        };
        let one = |error: ConfigError| refuse(vec![with_cause(&error)]);
        let old = self.catalog.config.get();
        let (config, mut found) = old.read_again().map_err(one)?;
        let mut wrong: Vec<_> = problems::problems(&config).iter().map(with_cause).collect();
        wrong.extend(unusable_files(&old));
        let policy = match config.policy() {
            Ok(policy) if wrong.is_empty() => policy,
            // `problems` names what is wrong with the policy.
            Ok(_) | Err(_) => return Err(refuse(wrong)),
        };
        let named = |key: &String| key == "[identity] policy" || key.starts_with("[accelerators]");
        if policy != *self.policy.get() && !found.changed.iter().any(named) {
            found.changed.push("the rules in the file of [identity] policy".into());
        }
        let rules = read_rules(&config, &self.catalog.store).await?;
        Ok(Read { config, policy, rules, found })
    }
}

/// Returns what is wrong with the tokens and the certificate in use, which are read again whenever they change.
fn unusable_files(config: &Config) -> Vec<String> {
    let mut wrong = Vec::new();
    if let Some(Err(error)) = config.identity.tokens.as_deref().map(tokens::load) {
        wrong.push(format!("[identity] tokens: {error}"));
    }
    if let Some(tls) = &config.api.tls {
        let pair = tls.key.path().and_then(|key| tls::identity(&tls.certificate, &key).map(drop));
        let authorities = tls.client_ca.as_deref().map_or(Ok(()), |file| tls::authorities(file).map(drop));
        wrong.extend(
            [pair, authorities].into_iter().filter_map(Result::err).map(|why| format!("[api.tls] {why}")),
        );
    }
    wrong
}

/// Returns the text of an error with that of its cause.
fn with_cause(error: &ConfigError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
