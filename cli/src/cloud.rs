//! How a user authenticates to a cloud: the `OS_*` variables and `clouds.yaml` of the OpenStack clients.
//!
//! Passwords, application credentials and tokens of the Identity API v3 are supported. Settings for other services are
//! ignored.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use hotslot_model::identity::login::{LoginScope, Method, Reference};
use serde::Deserialize;

use crate::exit::{Exit, Failure};

/// The directories in which `clouds.yaml` is looked for, after the current one and `~/.config/openstack`.
const SYSTEM: &str = "/etc/openstack";

/// A cloud, and how a user authenticates to it.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Cloud {
    auth: Auth,
    auth_type: Option<String>,
    pub(crate) region_name: Option<String>,
    /// Which endpoint of the catalog is used: `public` by default.
    pub(crate) interface: Option<String>,
    /// A PEM file with the certificates of authorities.
    pub(crate) cacert: Option<PathBuf>,
}

/// The part `auth` of a cloud.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth_url: Option<String>,
    username: Option<String>,
    user_id: Option<String>,
    user_domain_name: Option<String>,
    user_domain_id: Option<String>,
    password: Option<String>,
    project_name: Option<String>,
    project_id: Option<String>,
    project_domain_name: Option<String>,
    project_domain_id: Option<String>,
    domain_name: Option<String>,
    domain_id: Option<String>,
    system_scope: Option<String>,
    application_credential_id: Option<String>,
    application_credential_name: Option<String>,
    application_credential_secret: Option<String>,
    token: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Clouds {
    clouds: BTreeMap<String, Cloud>,
}

/// Returns a setting without which Keystone cannot tell who calls.
///
/// # Errors
/// [`Exit::NotIdentified`] with this message, when it is missing.
fn required<T>(setting: Option<T>, message: &str) -> anyhow::Result<T> {
    setting.ok_or_else(|| Failure::new(Exit::NotIdentified, message).into())
}

impl Cloud {
    /// Returns the cloud with this name in `clouds.yaml`; without a name, the cloud that the `OS_*` variables describe,
    /// or `None` when `OS_AUTH_URL` is not set.
    ///
    /// # Errors
    /// There is no such cloud, or its file cannot be read.
    pub(crate) fn found(name: Option<&str>) -> anyhow::Result<Option<Self>> {
        match name {
            Some(name) => Self::of_file(name).map(Some),
            None => Ok(Self::of_variables(|name| std::env::var(name).ok())),
        }
    }

    fn of_variables(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let get = |name: &str| variable(&format!("OS_{name}")).filter(|value| !value.is_empty());
        let auth_url = Some(get("AUTH_URL")?);
        let auth = Auth {
            auth_url,
            username: get("USERNAME"),
            user_id: get("USER_ID"),
            user_domain_name: get("USER_DOMAIN_NAME"),
            user_domain_id: get("USER_DOMAIN_ID"),
            password: get("PASSWORD"),
            project_name: get("PROJECT_NAME"),
            project_id: get("PROJECT_ID"),
            project_domain_name: get("PROJECT_DOMAIN_NAME"),
            project_domain_id: get("PROJECT_DOMAIN_ID"),
            domain_name: get("DOMAIN_NAME"),
            domain_id: get("DOMAIN_ID"),
            system_scope: get("SYSTEM_SCOPE"),
            application_credential_id: get("APPLICATION_CREDENTIAL_ID"),
            application_credential_name: get("APPLICATION_CREDENTIAL_NAME"),
            application_credential_secret: get("APPLICATION_CREDENTIAL_SECRET"),
            token: get("TOKEN"),
        };
        Some(Self {
            auth,
            auth_type: get("AUTH_TYPE"),
            region_name: get("REGION_NAME"),
            interface: get("INTERFACE"),
            cacert: get("CACERT").map(PathBuf::from),
        })
    }

    fn of_file(name: &str) -> anyhow::Result<Self> {
        let named = std::env::var_os("OS_CLIENT_CONFIG_FILE").map(PathBuf::from);
        let home = std::env::home_dir().map(|home| home.join(".config/openstack"));
        let usual = [Some(PathBuf::from(".")), home, Some(PathBuf::from(SYSTEM))];
        let usual = usual.into_iter().flatten().map(|directory| directory.join("clouds.yaml"));
        let files: Vec<_> = named.into_iter().chain(usual).collect();
        for file in &files {
            let text = match std::fs::read_to_string(file) {
                Ok(text) => text,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error).context(format!("cannot read {}", file.display())),
            };
            let clouds = Self::all(&text).with_context(|| file.display().to_string())?;
            return Self::pick(clouds, name).with_context(|| file.display().to_string());
        }
        let looked: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
        bail!(
            "there is no clouds.yaml for the cloud `{name}`; write it to one of {}, or name it with \
             OS_CLIENT_CONFIG_FILE",
            looked.join(", ")
        );
    }

    /// Parses `clouds.yaml`. An error does not quote the file, because it has passwords.
    fn all(text: &str) -> anyhow::Result<BTreeMap<String, Self>> {
        let clouds: Clouds = serde_saphyr::from_str(text).map_err(|error| {
            let line =
                error.location().map_or_else(String::new, |location| format!("line {}: ", location.line()));
            anyhow::anyhow!("{line}this is not the YAML of a clouds.yaml, or a value has the wrong type")
        })?;
        Ok(clouds.clouds)
    }

    fn pick(mut clouds: BTreeMap<String, Self>, name: &str) -> anyhow::Result<Self> {
        let known = clouds.keys().cloned().collect::<Vec<_>>().join(", ");
        clouds.remove(name).with_context(|| format!("there is no cloud `{name}`; it has: {known}"))
    }

    /// The URL of Keystone.
    pub(crate) fn auth_url(&self) -> anyhow::Result<&str> {
        self.auth.auth_url.as_deref().context("the cloud has no auth_url (OS_AUTH_URL)")
    }

    /// A token that the user already has, to be used as it is.
    pub(crate) fn token(&self) -> Option<&str> {
        self.auth.token.as_deref().filter(|_| self.scope().is_ok_and(|scope| scope == LoginScope::Default))
    }

    fn user(&self) -> anyhow::Result<Reference> {
        let Auth { username, user_id, user_domain_name, user_domain_id, .. } = &self.auth;
        required(
            reference(user_id, username, user_domain_id, user_domain_name),
            "the user is missing; set username and user_domain_name (OS_USERNAME, OS_USER_DOMAIN_NAME)",
        )
    }

    /// How the user authenticates, for [`login`](hotslot_model::identity::login::login); `use_it` gets it.
    ///
    /// # Errors
    /// A setting is missing, or the way to authenticate is not supported.
    pub(crate) fn with_method<T>(&self, use_it: impl FnOnce(&Method<'_>) -> T) -> anyhow::Result<T> {
        let Auth { application_credential_id, application_credential_name, .. } = &self.auth;
        let has_credential = application_credential_id.is_some() || application_credential_name.is_some();
        let kind = self.auth_type.as_deref().unwrap_or_else(|| {
            if self.auth.token.is_some() {
                "token"
            } else if has_credential {
                "v3applicationcredential"
            } else {
                "password"
            }
        });
        match kind {
            "password" | "v3password" => {
                let password = self.auth.password.as_deref();
                let password = required(password, "the password is missing; set password (OS_PASSWORD)")?;
                Ok(use_it(&Method::Password(&self.user()?, password)))
            }
            "v3applicationcredential" => {
                let secret = self.auth.application_credential_secret.as_deref();
                let secret = required(
                    secret,
                    "the secret is missing; set application_credential_secret (OS_APPLICATION_CREDENTIAL_SECRET)",
                )?;
                if let Some(id) = application_credential_id {
                    let credential = Reference::Id(id.clone());
                    return Ok(use_it(&Method::ApplicationCredential { credential, user: None, secret }));
                }
                let name = application_credential_name.clone();
                let credential = Reference::Name(required(
                    name,
                    "the application credential is missing; set application_credential_id \
                     (OS_APPLICATION_CREDENTIAL_ID)",
                )?);
                let user = self.user()?;
                Ok(use_it(&Method::ApplicationCredential { credential, user: Some(&user), secret }))
            }
            "token" | "v3token" => {
                let token = self.auth.token.as_deref();
                let token = required(token, "the token is missing; set token (OS_TOKEN)")?;
                Ok(use_it(&Method::Token(token)))
            }
            other => bail!(
                "auth_type `{other}` is not supported; use password, v3applicationcredential or token, or set \
                 HOTSLOT_URL and HOTSLOT_TOKEN to what `openstack token issue -f value -c id` prints"
            ),
        }
    }

    /// Returns the scope that a token is requested for.
    ///
    /// # Errors
    /// The domain of a project is missing, or there are several scopes.
    pub(crate) fn scope(&self) -> anyhow::Result<LoginScope> {
        let auth = &self.auth;
        if auth.application_credential_id.is_some() || auth.application_credential_name.is_some() {
            return Ok(LoginScope::Default);
        }
        if auth.system_scope.is_some() {
            return Ok(LoginScope::System);
        }
        if auth.project_id.is_some() || auth.project_name.is_some() {
            let Auth { project_id, project_name, project_domain_id, project_domain_name, .. } = auth;
            return reference(project_id, project_name, project_domain_id, project_domain_name)
                .map(LoginScope::Project)
                .context(
                    "the domain of the project is missing; set project_domain_name (OS_PROJECT_DOMAIN_NAME)",
                );
        }
        let domain = auth.domain_id.clone().map(Reference::Id);
        let domain = domain.or_else(|| auth.domain_name.clone().map(Reference::Name));
        Ok(domain.map_or(LoginScope::Default, LoginScope::Domain))
    }
}

/// Returns a user or project by its id, or by its name and its domain.
fn reference(
    id: &Option<String>,
    name: &Option<String>,
    domain_id: &Option<String>,
    domain_name: &Option<String>,
) -> Option<Reference> {
    if let Some(id) = id {
        return Some(Reference::Id(id.clone()));
    }
    let domain = domain_id.clone().map(Reference::Id).or_else(|| domain_name.clone().map(Reference::Name))?;
    Some(Reference::InDomain(name.clone()?, Box::new(domain)))
}

#[cfg(test)]
mod tests {
    use hotslot_model::identity::login::login;
    use serde_json::{Value, json};

    use super::*;

    fn of(variables: &[(&str, &str)]) -> anyhow::Result<Value> {
        let get =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let cloud = Cloud::of_variables(get).context("no cloud")?;
        let scope = cloud.scope()?;
        cloud.with_method(|method| login(method, &scope))
    }

    const USER: [(&str, &str); 4] = [
        ("OS_AUTH_URL", "https://k/v3"),
        ("OS_USERNAME", "alice"),
        ("OS_USER_DOMAIN_NAME", "Default"),
        ("OS_PASSWORD", "s3cret"),
    ];

    #[test]
    fn variables_describe_a_cloud() {
        let project = [("OS_PROJECT_NAME", "demo"), ("OS_PROJECT_DOMAIN_ID", "default")];
        let body = of(&[&USER[..], &project[..]].concat()).unwrap();
        assert_eq!(body["auth"]["identity"]["password"]["user"]["domain"], json!({ "name": "Default" }));
        assert_eq!(
            body["auth"]["scope"]["project"],
            json!({ "name": "demo", "domain": { "id": "default" } })
        );
        let system = of(&[&USER[..], &[("OS_SYSTEM_SCOPE", "all")]].concat()).unwrap();
        assert_eq!(system["auth"]["scope"], json!({ "system": { "all": true } }));
        assert!(Cloud::of_variables(|_| None).is_none());
    }

    #[test]
    fn what_is_missing_is_named() {
        for (variables, missing) in [
            (USER[..3].to_vec(), "OS_PASSWORD"),
            ([&USER[..2], &USER[3..]].concat(), "OS_USER_DOMAIN_NAME"),
            ([&USER[..], &[("OS_PROJECT_NAME", "demo")]].concat(), "OS_PROJECT_DOMAIN_NAME"),
            ([&USER[..], &[("OS_AUTH_TYPE", "v3oidcpassword")]].concat(), "not supported"),
            (
                [&USER[..1], &[("OS_APPLICATION_CREDENTIAL_ID", "a")]].concat(),
                "OS_APPLICATION_CREDENTIAL_SECRET",
            ),
        ] {
            let error = of(&variables).unwrap_err().to_string();
            assert!(error.contains(missing), "{error}");
        }
    }

    #[test]
    fn a_file_has_several_clouds_and_is_not_quoted() {
        let text = "clouds:\n  a:\n    auth_type: v3applicationcredential\n    region_name: R1\n    verify: false\n    auth:\n      \
                    auth_url: https://k\n      application_credential_id: c1\n      application_credential_secret: s3cret\n  \
                    b: {}\n";
        let cloud = Cloud::pick(Cloud::all(text).unwrap(), "a").unwrap();
        assert_eq!((cloud.auth_url().unwrap(), cloud.region_name.as_deref()), ("https://k", Some("R1")));
        let error = Cloud::pick(Cloud::all(text).unwrap(), "c").err().unwrap().to_string();
        assert!(error.contains("a, b"), "{error}");
        for broken in [
            "clouds: [s3cret",
            "clouds:\n  a: s3cret",
            "clouds:\n  a:\n    auth:\n      password: [s3cret]\n",
            "- s3cret",
        ] {
            let error = format!("{:#}", Cloud::all(broken).err().unwrap());
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
