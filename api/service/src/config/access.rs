//! Checks that callers are identified, and makes the rules of who may do what.

use hotslot_driver::text::visible;
use hotslot_model::identity::{Policy, policy};

use super::{Account, Api, ChangedBy, Config, Identity, IdentityFrom, Keystone, Listen, known_role};

/// Returns what is wrong about who is identified how, by key.
pub(super) fn problems(config: &Config) -> Vec<(String, String)> {
    let Config { api, identity, .. } = config;
    let mut found = Vec::new();
    for (index, entry) in identity.local.iter().enumerate() {
        let mut bad = |key: &str, reason| found.push((format!("[[identity.local]][{index}] {key}"), reason));
        match (&entry.user, &entry.group) {
            (Some(_), Some(_)) | (None, None) => bad("user", "write either user or group".to_owned()),
            (Some(Account::Name(name)), None) | (None, Some(Account::Name(name)))
                if name.trim().is_empty() =>
            {
                bad("user", "the name is empty".to_owned());
            }
            (Some(_), None) | (None, Some(_)) => {}
        }
        if let Err(reason) = known_role(&entry.role) {
            bad("role", reason);
        }
        if entry.project.as_ref().is_some_and(|project| project.trim().is_empty()) {
            bad("project", "it is empty; omit it for the whole system".to_owned());
        }
        if let Some(Err(reason)) = entry.project.as_deref().map(visible) {
            bad("project", reason);
        }
    }
    let mut bad = |key: &str, reason: &str| found.push((key.to_owned(), reason.to_owned()));
    if identity.tokens.as_ref().is_some_and(|path| !path.is_absolute()) {
        bad("[identity] tokens", "write an absolute path, such as /etc/hotslot/tokens");
    }
    for (key, reason) in identity.keystone.iter().flat_map(Keystone::problems) {
        bad(&format!("[identity.keystone] {key}"), &reason);
    }
    let others = identity.tokens.is_some() || identity.keystone.is_some() || !identity.local.is_empty();
    if api.identity == IdentityFrom::Headers && others {
        bad(
            "[api] identity",
            "a proxy identifies all callers (identity = \"headers\"), so what [identity] configures has no \
             effect; remove one or the other",
        );
    }
    if api.proxy_secret_file.is_some() && api.identity != IdentityFrom::Headers {
        bad(
            "[api] proxy_secret_file",
            "it has an effect with identity = \"headers\" only; remove it, or set identity",
        );
    }
    if matches!(api.listen, Listen::Tcp(_)) && !identifies_tcp(api, identity) {
        bad(
            "[api] listen",
            "every user and program of this machine, and guests with user networking, can connect to a TCP port, and \
             nothing identifies them; listen on unix:/run/hotslot/api.sock, or set [identity] tokens or \
             [identity.keystone], or [api] identity = \"headers\" with proxy_secret_file; for tests, insecure_tcp = \
             true makes every client the administrator",
        );
    }
    found
}

/// Whether clients of a TCP port are identified, or are deliberately not.
fn identifies_tcp(api: &Api, identity: &Identity) -> bool {
    api.insecure_tcp
        || identity.tokens.is_some()
        || identity.keystone.is_some()
        || (api.identity == IdentityFrom::Headers && api.proxy_secret_file.is_some())
}

impl Config {
    /// Whether every client of the port is the administrator.
    pub fn is_open(&self) -> bool {
        matches!(self.api.listen, Listen::Tcp(_))
            && self.api.insecure_tcp
            && self.api.identity == IdentityFrom::None
    }

    /// Returns the rules of who may do what.
    ///
    /// # Errors
    /// What is wrong with a rule, for each that is.
    pub fn policy(&self) -> Result<Policy, Vec<String>> {
        let by_owner = match self.accelerators.change {
            ChangedBy::Admin => &[][..],
            ChangedBy::Owner => &policy::CHANGE_BY_OWNER[..],
        };
        Policy::new(by_owner.iter().copied())
    }
}
