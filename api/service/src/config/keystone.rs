//! `[identity.keystone]`: the Keystone that validates tokens.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use schemars::JsonSchema;
use serde::Deserialize;

use super::secret_file::SecretFile;
use super::value::Seconds;

/// The longest time for which Keystone's answer about a token may be used.
const LONGEST_CACHE: Duration = Duration::from_secs(3600);

/// `[identity.keystone]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Keystone {
    /// The URL of Keystone, with or without `/v3`; `https`, or `http` for a Keystone on this machine.
    pub url: String,
    /// The URL at which callers find Keystone, for `WWW-Authenticate`. Without it, `url`.
    pub public_url: Option<String>,
    /// The name of hotslot's own user.
    pub username: Option<String>,
    /// The name of the domain of that user.
    #[serde(default = "default_domain")]
    pub user_domain: String,
    /// The file with the password of that user.
    pub password_file: Option<SecretFile>,
    /// The name of the project in which that user has the role `service`.
    #[serde(default = "default_project")]
    pub project: String,
    /// The name of the domain of that project.
    #[serde(default = "default_domain")]
    pub project_domain: String,
    /// The id of an application credential, instead of user and password.
    pub application_credential_id: Option<String>,
    /// The file with the secret of the application credential.
    pub application_credential_secret_file: Option<SecretFile>,
    /// A PEM file with the certificates of the authorities that may sign Keystone's certificate. Without it, the
    /// authorities that the system trusts.
    pub ca: Option<PathBuf>,
    /// The time limit for the validation of a token, in seconds.
    #[serde(default = "default_timeout")]
    pub timeout: Seconds,
    /// How long Keystone's answer about a token is used, in seconds, at most 3600. A token that is revoked may be used
    /// for so long.
    #[serde(default = "default_cache")]
    pub cache: Seconds,
}

fn default_domain() -> String {
    "Default".into()
}

fn default_project() -> String {
    "service".into()
}

fn default_timeout() -> Seconds {
    Seconds(Duration::from_secs(10))
}

/// keystonemiddleware uses 300 seconds. A minute keeps the load on Keystone low too (one request a minute for each token
/// that is in use), and honours a revocation sooner, for hotslot gives devices of the host to guests.
fn default_cache() -> Seconds {
    Seconds(Duration::from_secs(60))
}

/// How hotslot authenticates to Keystone.
#[derive(Debug, Clone)]
pub enum Credential {
    /// By user and password.
    Password {
        /// The name of the user, and the name of the user's domain.
        user: (String, String),
        /// The name of the project, and the name of the project's domain.
        project: (String, String),
        /// The file with the password.
        file: SecretFile,
    },
    /// By an application credential.
    ApplicationCredential {
        /// Its id.
        id: String,
        /// The file with its secret.
        file: SecretFile,
    },
}

impl Credential {
    /// The file with the secret.
    pub fn file(&self) -> &SecretFile {
        match self {
            Self::Password { file, .. } | Self::ApplicationCredential { file, .. } => file,
        }
    }
}

/// Parses the URL of a Keystone, and adds `/v3` where it is missing. The URL may be one over which anyone on the way can
/// read; see [`expect_private`].
///
/// # Errors
/// It is not a URL that may be used; the text says what is wrong with it.
pub fn keystone_url(text: &str) -> Result<Url, String> {
    const WRITE: &str = "write a URL such as https://keystone.example.org:5000/v3";
    let mut url = Url::parse(text).map_err(|error| format!("not a URL ({error}); {WRITE}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("`{}` is not supported; {WRITE}", url.scheme()));
    }
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err(format!("it has a user, password, query or fragment; {WRITE}"));
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&if path.ends_with("/v3") { path } else { path + "/v3" });
    Ok(url)
}

/// Whether a URL has a loopback address, so that nothing that is sent to it leaves this machine.
pub fn is_of_this_machine(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Requires `https`, or `http` within this machine, of the URL of a Keystone. `ca` is the key that names the PEM file of
/// its authority, for the advice.
///
/// # Errors
/// The text says what to write.
pub fn expect_private(url: &Url, ca: &str) -> Result<(), String> {
    if url.scheme() == "https" || is_of_this_machine(url) {
        return Ok(());
    }
    let host = url.host_str().unwrap_or_default();
    Err(format!(
        "over http anyone on the way to {host} can read passwords and tokens; write https://, and name the PEM file of \
         the authority in {ca} if the system does not trust it"
    ))
}

impl Keystone {
    /// Returns the URL of the v3 API.
    ///
    /// # Errors
    /// It is not a URL, or anyone on the way can read what is sent.
    pub fn base(&self) -> Result<Url, String> {
        let url = keystone_url(&self.url)?;
        expect_private(&url, "`ca`").map(|()| url)
    }

    /// Returns how hotslot authenticates to Keystone.
    ///
    /// # Errors
    /// Returns the key that is wrong, and why.
    pub fn credential(&self) -> Result<Credential, (&'static str, String)> {
        const EITHER: &str = "write `username` and `password_file`, or `application_credential_id` and \
                              `application_credential_secret_file`";
        let by_password = (&self.username, &self.password_file);
        let by_credential = (&self.application_credential_id, &self.application_credential_secret_file);
        match (by_password, by_credential) {
            ((Some(user), Some(file)), (None, None)) => Ok(Credential::Password {
                user: (user.clone(), self.user_domain.clone()),
                project: (self.project.clone(), self.project_domain.clone()),
                file: file.clone(),
            }),
            ((None, None), (Some(id), Some(file))) => {
                Ok(Credential::ApplicationCredential { id: id.clone(), file: file.clone() })
            }
            ((None, None), (None, None)) => {
                Err(("username", format!("hotslot needs a user of its own in Keystone; {EITHER}")))
            }
            ((Some(_), None), (None, None)) => {
                Err(("password_file", "a user needs the file with its password".into()))
            }
            ((None, Some(_)), (None, None)) => Err(("username", "the password has no user".into())),
            ((None, None), (Some(_), None)) => Err((
                "application_credential_secret_file",
                "an application credential needs the file with its secret".into(),
            )),
            ((None, None), (None, Some(_))) => {
                Err(("application_credential_id", "the secret has no application credential".into()))
            }
            ((Some(_), _) | (_, Some(_)), (Some(_), _) | (_, Some(_))) => {
                Err(("username", format!("there are two ways to authenticate; {EITHER}")))
            }
        }
    }

    /// Returns the keys that cannot be used, and why.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        problems.extend(self.base().err().map(|reason| ("url", reason)));
        if let Some(Err(reason)) = self.public_url.as_deref().map(keystone_url) {
            problems.push(("public_url", reason));
        }
        problems.extend(self.credential().err());
        if self.ca.as_ref().is_some_and(|file| !file.is_absolute()) {
            problems.push(("ca", "it is not an absolute path".into()));
        }
        if self.cache.0 > LONGEST_CACHE {
            let most = LONGEST_CACHE.as_secs();
            problems.push((
                "cache",
                format!("a token that is revoked would be used for too long; write at most {most}"),
            ));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_gets_the_version_and_must_be_secret_on_its_way() {
        for (text, url) in [
            ("https://k.example.org:5000", "https://k.example.org:5000/v3"),
            ("https://k.example.org/identity/", "https://k.example.org/identity/v3"),
            ("https://k.example.org/identity/v3/", "https://k.example.org/identity/v3"),
            ("http://127.0.0.1:5000/v3", "http://127.0.0.1:5000/v3"),
            ("http://[::1]:5000", "http://[::1]:5000/v3"),
            ("http://localhost", "http://localhost/v3"),
        ] {
            let parsed = keystone_url(text).unwrap();
            assert_eq!((parsed.as_str(), expect_private(&parsed, "`ca`")), (url, Ok(())));
        }
        let insecure = keystone_url("http://k.example.org").unwrap();
        assert!(expect_private(&insecure, "`ca`").unwrap_err().contains("https://"));
        for text in ["k.example.org", "ftp://x", "https://u:s3cret@x/", "https://x/?a=s3cret"] {
            let error = keystone_url(text).unwrap_err();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn there_is_exactly_one_way_to_authenticate() {
        let problems = |text: &str| {
            let text = format!("url = 'https://x'\n{text}");
            toml::from_str::<Keystone>(&text)
                .unwrap()
                .problems()
                .into_iter()
                .map(|(key, _)| key)
                .collect::<Vec<_>>()
        };
        let (user, password) = ("username = 'u'\n", "password_file = '/p'\n");
        let (id, secret) =
            ("application_credential_id = 'a'\n", "application_credential_secret_file = 's'\n");
        let none: [&str; 0] = [];
        assert_eq!(problems(&format!("{user}{password}")), none);
        assert_eq!(problems(&format!("{id}{secret}")), none);
        assert_eq!(problems(""), ["username"]);
        assert_eq!(problems(user), ["password_file"]);
        assert_eq!(problems(password), ["username"]);
        assert_eq!(problems(id), ["application_credential_secret_file"]);
        assert_eq!(problems(secret), ["application_credential_id"]);
        assert_eq!(problems(&format!("{user}{password}{id}")), ["username"]);
        assert_eq!(problems(&format!("{user}{password}cache = 3601")), ["cache"]);
        assert_eq!(problems(&format!("{user}{password}ca = 'ca.pem'")), ["ca"]);
    }
}
