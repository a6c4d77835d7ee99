//! The request with which a user obtains a token from Keystone.
//!
//! Source: Identity API v3, "Authentication and token management".

use serde_json::{Map, Value, json};

/// A user, project or domain, by id or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// By its id.
    Id(String),
    /// A domain by its name.
    Name(String),
    /// A user or project by its name, and its domain.
    InDomain(String, Box<Reference>),
}

impl Reference {
    /// A user or project by its name and the name of its domain.
    pub fn named(name: &str, domain: &str) -> Self {
        Self::InDomain(name.into(), Box::new(Self::Name(domain.into())))
    }

    fn to_map(&self) -> Map<String, Value> {
        let one = |key: &str, value: Value| Map::from_iter([(key.to_owned(), value)]);
        match self {
            Self::Id(id) => one("id", id.as_str().into()),
            Self::Name(name) => one("name", name.as_str().into()),
            Self::InDomain(name, domain) => {
                let mut map = one("name", name.as_str().into());
                map.insert("domain".into(), domain.to_map().into());
                map
            }
        }
    }

    fn with(&self, key: &str, value: Value) -> Value {
        let mut map = self.to_map();
        map.insert(key.into(), value);
        map.into()
    }
}

/// A way to authenticate.
pub enum Method<'a> {
    /// The user's password.
    Password(&'a Reference, &'a str),
    /// An application credential, which has its scope in it. A name needs the user.
    ApplicationCredential {
        /// Its id or name.
        credential: Reference,
        /// The user whose credential has this name.
        user: Option<&'a Reference>,
        /// Its secret.
        secret: &'a str,
    },
    /// Another token of the user.
    Token(&'a str),
}

/// The scope that a token is requested for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoginScope {
    /// A project.
    Project(Reference),
    /// A domain.
    Domain(Reference),
    /// The whole system.
    System,
    /// The scope that Keystone chooses: that of the application credential, or the default project of the user.
    Default,
}

/// Returns the body of `POST /v3/auth/tokens`.
pub fn login(method: &Method<'_>, scope: &LoginScope) -> Value {
    let identity = match method {
        Method::Password(user, password) => json!({
            "methods": ["password"],
            "password": { "user": user.with("password", (*password).into()) },
        }),
        Method::ApplicationCredential { credential, user, secret } => {
            let mut described = credential.with("secret", (*secret).into());
            if let Some(user) = user {
                described["user"] = user.to_map().into();
            }
            json!({ "methods": ["application_credential"], "application_credential": described })
        }
        Method::Token(token) => json!({ "methods": ["token"], "token": { "id": token } }),
    };
    let mut auth = json!({ "identity": identity });
    match scope {
        LoginScope::Project(project) => auth["scope"] = json!({ "project": project.to_map() }),
        LoginScope::Domain(domain) => auth["scope"] = json!({ "domain": domain.to_map() }),
        LoginScope::System => auth["scope"] = json!({ "system": { "all": true } }),
        LoginScope::Default => {}
    }
    json!({ "auth": auth })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bodies_are_those_of_the_identity_api() {
        let user = Reference::named("alice", "Default");
        let project = LoginScope::Project(Reference::Id("p1".into()));
        assert_eq!(
            login(&Method::Password(&user, "s"), &project),
            json!({ "auth": {
                "identity": { "methods": ["password"], "password": { "user": {
                    "name": "alice", "domain": { "name": "Default" }, "password": "s" } } },
                "scope": { "project": { "id": "p1" } },
            } })
        );
        let method = Method::ApplicationCredential {
            credential: Reference::Name("c".into()),
            user: Some(&user),
            secret: "s",
        };
        assert_eq!(
            login(&method, &LoginScope::Default),
            json!({ "auth": { "identity": { "methods": ["application_credential"], "application_credential": {
                "name": "c", "user": { "name": "alice", "domain": { "name": "Default" } }, "secret": "s" } } } })
        );
        assert_eq!(
            login(&Method::Token("t"), &LoginScope::System),
            json!({ "auth": { "identity": { "methods": ["token"], "token": { "id": "t" } },
                "scope": { "system": { "all": true } } } })
        );
    }
}
