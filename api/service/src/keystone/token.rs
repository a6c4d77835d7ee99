//! A valid token, as Keystone describes it.
//!
//! Source: Identity API v3, "Validate and show information for token".

use std::collections::BTreeSet;

use hotslot_model::identity::access_rule::AccessRule;
use hotslot_model::time::Millis;
use serde::{Deserialize, Deserializer};

/// A valid token.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Token {
    /// The user to whom it was issued.
    pub user: Entity,
    /// The names of the user's roles in the scope, in lower case; empty without a scope.
    #[serde(default, deserialize_with = "names")]
    pub roles: BTreeSet<String>,
    /// The project that is its scope.
    pub project: Option<Entity>,
    /// The domain that is its scope.
    pub domain: Option<Entity>,
    /// Present when the whole system is its scope.
    pub system: Option<System>,
    /// When it expires.
    #[serde(deserialize_with = "time")]
    pub expires_at: Millis,
    /// The application credential with which it was obtained.
    pub application_credential: Option<ApplicationCredential>,
}

/// A user, project or domain.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Entity {
    /// The id.
    pub id: String,
    /// The name, which may be any text.
    #[serde(default)]
    pub name: String,
}

/// The scope of a token for the whole system.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct System {
    /// Whether it is really the whole system. Keystone has no other system scope today.
    pub all: bool,
}

/// An application credential.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ApplicationCredential {
    /// The only requests for which its tokens may be used; `None` for no such limit.
    pub access_rules: Option<Vec<AccessRule>>,
}

impl Token {
    /// Parses the body of Keystone's response.
    ///
    /// # Errors
    /// The body does not describe a token; the text does not quote it.
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Body {
            token: Token,
        }
        let body: Result<Body, serde_json::Error> = serde_json::from_slice(body);
        body.map(|body| body.token)
            .map_err(|error| format!("line {} column {} is not as expected", error.line(), error.column()))
    }

    /// Whether the user has a role in the scope. `role` is in lower case.
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.contains(role)
    }

    /// Whether the token may be used for a request: always, unless its application credential has access rules.
    /// `service` is the type in Keystone's catalog; `path` is percent-encoded.
    pub fn admits(&self, service: &str, method: &str, path: &str) -> bool {
        let rules =
            self.application_credential.as_ref().and_then(|credential| credential.access_rules.as_ref());
        rules.is_none_or(|rules| rules.iter().any(|rule| rule.admits(service, method, path)))
    }
}

fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<String>, D::Error> {
    #[derive(Deserialize)]
    struct Role {
        name: String,
    }
    let roles = Vec::<Role>::deserialize(deserializer)?;
    Ok(roles.into_iter().map(|role| role.name.to_lowercase()).collect())
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Millis, D::Error> {
    let text = String::deserialize(deserializer)?;
    let time: jiff::Timestamp = text.parse().map_err(|_| serde::de::Error::custom("not a time"))?;
    Ok(time.as_millisecond())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_response_of_keystone_is_read() {
        let body = json!({ "token": {
            "methods": ["application_credential"], "is_domain": false,
            "user": { "id": "u1", "name": "alice", "domain": { "id": "default", "name": "Default" } },
            "project": { "id": "p1", "name": "demo", "domain": { "id": "default", "name": "Default" } },
            "roles": [{ "id": "r1", "name": "Member" }, { "id": "r2", "name": "reader" }],
            "issued_at": "2026-11-28T14:01:54.000000Z", "expires_at": "2026-11-28T15:01:54.000000Z",
            "application_credential": { "id": "a1", "restricted": true, "access_rules": [
                { "id": "x", "service": "compute", "method": "GET", "path": "/v2.1/servers" }] },
        }});
        let token = Token::parse(body.to_string().as_bytes()).unwrap();
        assert_eq!((token.user.id.as_str(), token.expires_at), ("u1", 1_795_878_114_000));
        assert!(token.has_role("member") && !token.has_role("admin"));
        assert!(token.admits("compute", "GET", "/v2.1/servers"));
        assert!(!token.admits("compute", "POST", "/v2.1/servers"));
    }

    #[test]
    fn a_token_without_a_scope_has_no_roles() {
        let body =
            json!({ "token": { "user": { "id": "u1" }, "expires_at": "2026-11-28T15:01:54.000000Z" } });
        let token = Token::parse(body.to_string().as_bytes()).unwrap();
        assert!(token.roles.is_empty() && token.project.is_none() && token.admits("compute", "GET", "/"));
    }

    #[test]
    fn an_error_does_not_quote_the_body() {
        for body in
            ["", "[]", r#"{"token":{}}"#, r#"{"token":{"user":{"id":"secret"},"expires_at":"secret"}}"#]
        {
            let error = Token::parse(body.as_bytes()).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
