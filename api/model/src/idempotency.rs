//! `Idempotency-Key`: the name of a POST that may be sent again, and what is kept of it.

use uuid::Uuid;

use crate::id::RequestId;

/// The longest route that is kept as it is, in bytes.
const ROUTE: usize = 1024;

/// A POST that may be sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// What its client calls it, 1 to 255 visible ASCII characters.
    pub key: String,
    /// The path that it was sent to, and by whom, or a name of these.
    pub route: String,
    /// A name of its body, the same for each spelling of the same JSON.
    pub fingerprint: Uuid,
}

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredResponse {
    /// A name of the body that it came with.
    pub fingerprint: Uuid,
    /// The request that an attach has made.
    pub request: Option<RequestId>,
    /// What was answered; none when it was not done, or cut off.
    pub answer: Option<Answer>,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status code.
    pub status: u16,
    /// A JSON text; may be empty.
    pub body: String,
    /// Where what was made is, when that was answered.
    pub location: Option<String>,
}

impl IdempotencyKey {
    /// Names a POST.
    ///
    /// # Errors
    /// What is wrong, when the key is not 1 to 255 visible ASCII characters.
    pub fn new(key: &[u8], route: &str, body: &[u8]) -> Result<Self, String> {
        let wrong = || "Idempotency-Key is not 1 to 255 visible ASCII characters; send a UUID".to_owned();
        if key.is_empty() || key.len() > 255 || !key.iter().all(u8::is_ascii_graphic) {
            return Err(wrong());
        }
        let key = std::str::from_utf8(key).map_err(|_| wrong())?;
        // The keys of an object have no order.
        let json = serde_json::from_slice::<serde_json::Value>(body).map(|json| json.to_string());
        let text = json.as_ref().map_or(body, |json| json.as_bytes());
        let fingerprint = Uuid::new_v5(&Uuid::NAMESPACE_OID, text);
        Ok(Self { key: key.to_owned(), route: route.to_owned(), fingerprint })
    }

    /// As somebody sends it: each caller has keys of their own.
    #[must_use]
    pub fn of(self, caller: &str) -> Self {
        let route = if caller.is_empty() { self.route } else { format!("{} by {caller}", self.route) };
        // PostgreSQL keeps no longer ones in an index.
        let route = if route.len() <= ROUTE {
            route
        } else {
            Uuid::new_v5(&Uuid::NAMESPACE_URL, route.as_bytes()).to_string()
        };
        Self { route, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_has_one_name_in_every_spelling_and_no_other_body_has_it() {
        let named = |body: &str| IdempotencyKey::new(b"k", "/x", body.as_bytes()).unwrap().fingerprint;
        assert_eq!(named(r#"{"a": 1, "b": {"c": null}}"#), named(r#"{"b":{"c":null},"a":1}"#));
        let others = ["", "{", "{}", "[]", r#"{"a": 1}"#, r#"{"a": "1"}"#, r#"{"a": 2}"#, r#"{"b": 1}"#];
        let names: std::collections::HashSet<_> = others.map(named).into();
        assert_eq!(names.len(), others.len());
    }

    #[test]
    fn a_key_is_short_and_can_be_seen() {
        for good in ["k", "\"8e03978e-40d5\"", &"x".repeat(255)] {
            IdempotencyKey::new(good.as_bytes(), "/x", b"").unwrap();
        }
        for bad in ["", "a b", "a\tb", "b\u{fc}ro", &"x".repeat(256)] {
            IdempotencyKey::new(bad.as_bytes(), "/x", b"").unwrap_err();
        }
    }
}
