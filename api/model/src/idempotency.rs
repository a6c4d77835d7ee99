//! `Idempotency-Key`: the key of a POST that a client may repeat, and the stored response.

use uuid::Uuid;

use crate::id::RequestId;

/// The longest route that is recorded in full, in bytes. A longer one is recorded as a UUID.
const ROUTE: usize = 1024;

/// The key of a POST that a client may repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The key from the client, 1 to 255 visible ASCII characters.
    pub key: String,
    /// The path of the request and its caller, or a UUID made from them when they are long.
    pub route: String,
    /// A UUID made from the body. Equal JSON documents have the same fingerprint, however they are formatted.
    pub fingerprint: Uuid,
    /// The project of the caller, against whose quota it counts.
    pub project: Option<String>,
}

/// The record of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredResponse {
    /// The fingerprint of the body of the first request.
    pub fingerprint: Uuid,
    /// The attach request that was made with the key.
    pub request: Option<RequestId>,
    /// The answer, or `None` when the request was not completed.
    pub answer: Option<Answer>,
}

/// The stored answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status code.
    pub status: u16,
    /// The body: JSON text, or empty.
    pub body: String,
    /// The `Location` header, if there was one.
    pub location: Option<String>,
}

impl IdempotencyKey {
    /// Makes the key of a POST from the header, the path and the body.
    ///
    /// # Errors
    /// Returns a message when the key is not 1 to 255 visible ASCII characters.
    pub fn new(key: &[u8], route: &str, body: &[u8]) -> Result<Self, String> {
        let wrong = || "Idempotency-Key is not 1 to 255 visible ASCII characters; send a UUID".to_owned();
        if key.is_empty() || key.len() > 255 || !key.iter().all(u8::is_ascii_graphic) {
            return Err(wrong());
        }
        let key = std::str::from_utf8(key).map_err(|_| wrong())?;
        // serde_json sorts the keys of objects, so the order of keys does not matter.
        let json = serde_json::from_slice::<serde_json::Value>(body).map(|json| json.to_string());
        let text = json.as_ref().map_or(body, |json| json.as_bytes());
        let fingerprint = Uuid::new_v5(&Uuid::NAMESPACE_OID, text);
        Ok(Self { key: key.to_owned(), route: route.to_owned(), fingerprint, project: None })
    }

    /// Returns the key of a particular caller in a project, so that callers do not share keys.
    #[must_use]
    pub fn of(self, caller: &str, project: Option<&str>) -> Self {
        let route = if caller.is_empty() { self.route } else { format!("{} by {caller}", self.route) };
        // PostgreSQL cannot have longer values in an index.
        let route = if route.len() <= ROUTE {
            route
        } else {
            Uuid::new_v5(&Uuid::NAMESPACE_URL, route.as_bytes()).to_string()
        };
        Self { route, project: project.map(str::to_owned), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_the_same_fingerprint_only_if_they_are_the_same_json() {
        let named = |body: &str| IdempotencyKey::new(b"k", "/x", body.as_bytes()).unwrap().fingerprint;
        assert_eq!(named(r#"{"a": 1, "b": {"c": null}}"#), named(r#"{"b":{"c":null},"a":1}"#));
        let others = ["", "{", "{}", "[]", r#"{"a": 1}"#, r#"{"a": "1"}"#, r#"{"a": 2}"#, r#"{"b": 1}"#];
        let names: std::collections::HashSet<_> = others.map(named).into();
        assert_eq!(names.len(), others.len());
    }

    #[test]
    fn a_key_is_1_to_255_visible_ascii_characters() {
        for good in ["k", "\"8e03978e-40d5\"", &"x".repeat(255)] {
            IdempotencyKey::new(good.as_bytes(), "/x", b"").unwrap();
        }
        for bad in ["", "a b", "a\tb", "b\u{fc}ro", &"x".repeat(256)] {
            IdempotencyKey::new(bad.as_bytes(), "/x", b"").unwrap_err();
        }
    }
}
