//! Parts of a configuration that can be used and have no effect.

use nix::unistd::{Group, User};

use super::{Account, Config};

impl Config {
    /// Returns a warning for each module of the log and each local user or group that does not exist. They are not errors: a
    /// user database may have a user later.
    pub fn without_effect(&self) -> Vec<String> {
        let levels = self.log.levels.unknown().into_iter().map(|reason| format!("[log] levels: {reason}"));
        let locals = self.identity.local.iter().enumerate().filter_map(|(index, entry)| {
            let absent = |account: &Option<Account>, kind, exists: fn(&str) -> bool| {
                // An entry with a number applies to this number also where it has no name.
                let Some(Account::Name(name)) = account else { return None };
                let place = format!("[[identity.local]][{index}] {kind}");
                (!exists(name)).then(|| {
                    format!(
                        "{place}: this machine has no {kind} `{name}`, so the entry applies to nobody; correct the name, or \
                         create the {kind}"
                    )
                })
            };
            let user = absent(&entry.user, "user", |name| !matches!(User::from_name(name), Ok(None)));
            user.or_else(|| absent(&entry.group, "group", |name| !matches!(Group::from_name(name), Ok(None))))
        });
        levels.chain(locals).collect()
    }

    /// Logs what has no effect.
    pub fn warn_without_effect(&self) {
        for warning in self.without_effect() {
            tracing::warn!("{warning}");
        }
    }
}
