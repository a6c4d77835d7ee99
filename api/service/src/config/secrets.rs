//! Secrets that the configuration names by their files, and who may read those that it has itself.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::{Config, ConfigError, Database, SecretFile};

/// Read access of users who are neither the owner nor in the group of a file.
const ALL: u32 = 0o004;

impl Config {
    /// Reads the secrets that are in files of their own. The tokens of callers, the secret of a proxy and the password of
    /// Keystone are read where they are used.
    ///
    /// # Errors
    /// The first file that cannot be read, or value that cannot be used. The text does not quote it.
    pub fn with_secrets(mut self) -> Result<Self, ConfigError> {
        let read = |key: String, file: &SecretFile| {
            let bad = |reason| ConfigError::Value { key, reason };
            file.read().map_err(bad)
        };
        if let Some(file) = self.database.url_file.take() {
            self.database.url = read("[database] url_file".into(), &file)?.0;
        }
        for webhook in &mut self.webhook {
            let key = |name: &str| format!("[[webhook]] {}: {name}", webhook.name);
            let (url, secret) = (key("url_file"), key("secret_file"));
            if let Some(file) = webhook.url_file.take() {
                webhook.url = read(url, &file)?;
            }
            if let Some(file) = webhook.secret_file.take() {
                webhook.secret = read(secret, &file)?;
            }
        }
        self.problems().into_iter().next().map_or(Ok(self), Err)
    }

    /// Returns the keys that are given both as a value and as a file.
    pub(super) fn given_twice(&self) -> Vec<(String, String)> {
        let mut twice = Vec::new();
        let mut check = |key: String, both: bool| {
            if both {
                twice.push((
                    format!("{key}_file"),
                    "the value is given too; write one or the other".to_owned(),
                ));
            }
        };
        let database = &self.database;
        let has_url = database.url != Database::default().url;
        check("[database] url".into(), database.url_file.is_some() && has_url);
        for webhook in &self.webhook {
            let place = format!("[[webhook]] {}:", webhook.name);
            check(format!("{place} url"), webhook.url_file.is_some() && !webhook.url.0.is_empty());
            check(format!("{place} secret"), webhook.secret_file.is_some() && !webhook.secret.0.is_empty());
        }
        twice
    }

    /// Whether the configuration itself has a secret: of a webhook, or in the URL of the database.
    pub fn has_secret(&self) -> bool {
        let url = &self.database.url;
        let password = url.split_once("://").is_some_and(|(_, rest)| {
            let authority = rest.split(['/', '?']).next().and_then(|authority| authority.rsplit_once('@'));
            authority.is_some_and(|(user, _)| user.contains(':'))
        });
        let of_webhook =
            self.webhook.iter().any(|webhook| !webhook.secret.0.is_empty() || !webhook.url.0.is_empty());
        of_webhook || password || url.contains("password=")
    }

    /// Returns a warning for each file with a secret that every user of this machine may read. `file` is that of the
    /// configuration.
    pub fn exposed(&self, file: &Path) -> Vec<String> {
        let warning = |path: &str| {
            format!("every user of this machine may read the secret in {path}; run `chmod o-rwx {path}`")
        };
        let is_open = file.metadata().is_ok_and(|found| found.mode() & ALL != 0);
        let own = (is_open && self.has_secret()).then(|| warning(&file.display().to_string()));
        let keystone = self.identity.keystone.as_ref();
        let files = [
            self.database.url_file.as_ref(),
            self.api.proxy_secret_file.as_ref(),
            keystone.and_then(|keystone| keystone.password_file.as_ref()),
            keystone.and_then(|keystone| keystone.application_credential_secret_file.as_ref()),
        ];
        let of_webhooks = self.webhook.iter().flat_map(|webhook| [&webhook.url_file, &webhook.secret_file]);
        let files = files.into_iter().flatten().chain(of_webhooks.flatten());
        own.into_iter()
            .chain(files.filter(|file| file.is_open_to_all()).map(|file| warning(&file.to_string())))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn secrets_are_read_from_files_and_errors_do_not_quote_them() {
        let dir = tempfile::tempdir().unwrap();
        let (url, secret, hook) =
            (dir.path().join("url"), dir.path().join("secret"), dir.path().join("hook"));
        let text = format!(
            "[database]\nurl_file = '{}'\n[[webhook]]\nname = 'w'\nurl_file = '{}'\nsecret_file = '{}'\n",
            url.display(),
            hook.display(),
            secret.display()
        );
        let config = || Config::parse(&text).unwrap().with_secrets();
        assert!(config().unwrap_err().to_string().starts_with("[database] url_file: cannot read"));
        fs::write(&url, "postgres://hotslot:s3cret@127.0.0.1/hotslot\n").unwrap();
        fs::write(&hook, "http://127.0.0.1:1/s3cret\n").unwrap();
        fs::write(&secret, "s3cret-s3cret-s3cret\n").unwrap();
        let read = config().unwrap();
        assert_eq!(read.database.url, "postgres://hotslot:s3cret@127.0.0.1/hotslot");
        assert_eq!(read.webhook[0].secret.0, "s3cret-s3cret-s3cret");
        assert!(!format!("{read:?}").contains("s3cret"));
        for (file, content) in [(&secret, "s3cret"), (&hook, "ftp://s3cret"), (&url, "mysql://u:s3cret@x/")] {
            let before = fs::read(file).unwrap();
            fs::write(file, content).unwrap();
            let said = config().unwrap_err().to_string();
            assert!(!said.contains("s3cret") && !said.is_empty(), "{said}");
            fs::write(file, before).unwrap();
        }
        for both in [
            "[database]\nurl = 'sqlite:///x'\nurl_file = '/y'",
            "[[webhook]]\nname = 'w'\nurl = 'http://x/'\nsecret = '0123456789abcdef'\nsecret_file = '/s'",
        ] {
            assert!(Config::parse(both).unwrap_err().to_string().contains("one or the other"), "{both}");
        }
    }

    #[test]
    fn files_with_secrets_that_everybody_may_read_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let (file, secret) = (dir.path().join("hotslot.toml"), dir.path().join("secret"));
        fs::write(&secret, "s").unwrap();
        let own = "[database]\nurl = 'postgres://u:p@127.0.0.1/d'";
        let other = format!("[database]\nurl_file = '{}'", secret.display());
        for (text, mode, of_file, exposed) in [
            ("", 0o644, 0o600, 0),
            (own, 0o644, 0o600, 1),
            (own, 0o640, 0o600, 0),
            (&other, 0o644, 0o600, 0),
            (&other, 0o644, 0o604, 1),
        ] {
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            fs::set_permissions(&secret, Permissions::from_mode(of_file)).unwrap();
            let found = Config::parse(text).unwrap().exposed(&file);
            assert_eq!(found.len(), exposed, "{text}: {found:?}");
        }
    }
}
