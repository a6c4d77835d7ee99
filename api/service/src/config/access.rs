//! Checks that callers are identified, and makes the rules of who may do what.

use hotslot_driver::text::visible;
use hotslot_model::identity::{Policy, policy};

use super::policy_file::PolicyFile;
use super::{
    Account, Api, ChangedBy, Config, ConfigError, Identity, IdentityFrom, Keystone, Listen, known_role,
};

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
    if identity.policy.as_ref().is_some_and(|path| !path.is_absolute()) {
        bad("[identity] policy", "write an absolute path, such as /etc/hotslot/policy.yaml");
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
    if let Listen::Tcp(address) = api.listen {
        found.extend(tcp_problem(api, identity, address.ip().is_loopback()));
    }
    found
}

/// Returns what is wrong about how clients of a TCP port are identified.
fn tcp_problem(api: &Api, identity: &Identity, loopback: bool) -> Option<(String, String)> {
    if api.insecure_tcp {
        let reason = "the port can be reached from other machines, and every client would be the administrator; remove \
                      insecure_tcp, or listen on 127.0.0.1 or [::1]";
        return (!loopback).then(|| ("[api] insecure_tcp".into(), reason.into()));
    }
    if identity.tokens.is_some() || identity.keystone.is_some() || identifies_proxy(api) {
        return None;
    }
    let (who, tests) = if loopback {
        let tests = "; for tests, insecure_tcp = true makes every client the administrator";
        ("every user and program of this machine, and guests with user networking,", tests)
    } else {
        ("every machine on the network", "")
    };
    let reason = format!(
        "{who} can connect to a TCP port, and nothing identifies them; listen on unix:/run/hotslot/api.sock, or set \
         [identity] tokens or [identity.keystone], or [api] identity = \"headers\" with proxy_secret_file or with client_ca \
         in [api.tls]{tests}"
    );
    Some(("[api] listen".into(), reason))
}

/// Whether requests over TCP with headers that identify the caller are known to come from the proxy.
fn identifies_proxy(api: &Api) -> bool {
    api.identity == IdentityFrom::Headers
        && (api.proxy_secret_file.is_some() || api.demands_client_certificates())
}

impl Config {
    /// Whether every client of the port is the administrator.
    pub fn is_open(&self) -> bool {
        matches!(self.api.listen, Listen::Tcp(_))
            && self.api.insecure_tcp
            && self.api.identity == IdentityFrom::None
    }

    /// Returns the rules of who may do what: the defaults, `[accelerators] change`, and the policy file.
    ///
    /// # Errors
    /// What is wrong with the policy file: that it cannot be read, or each rule that is wrong, with its line.
    pub fn policy(&self) -> Result<Policy, Vec<ConfigError>> {
        let file = self.policy_file().map_err(|error| vec![error])?;
        let own = file.rules.iter().map(|rule| (rule.name.as_str(), rule.requirement.as_str()));
        let policy = Policy::new(self.change_of_accelerators().iter().copied().chain(own));
        policy.map_err(|wrong| wrong.iter().map(|problem| file.error(problem)).collect())
    }

    /// Reads the policy file; without one there are no rules in it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn policy_file(&self) -> Result<PolicyFile, ConfigError> {
        let file =
            self.identity.policy.as_deref().map_or_else(|| Ok(PolicyFile::default()), PolicyFile::read);
        // What is wrong is then the key that names the file.
        file.map_err(|error| match error {
            ConfigError::Read { path, source } => ConfigError::Value {
                key: "[identity] policy".into(),
                reason: format!("{path} cannot be read: {source}"),
            },
            other @ (ConfigError::Syntax { .. } | ConfigError::Value { .. }) => other,
        })
    }

    /// The rules that `[accelerators] change` replaces.
    pub fn change_of_accelerators(&self) -> &'static [(&'static str, &'static str)] {
        match self.accelerators.change {
            ChangedBy::Admin => &[],
            ChangedBy::Owner => &policy::CHANGE_BY_OWNER,
        }
    }
}
