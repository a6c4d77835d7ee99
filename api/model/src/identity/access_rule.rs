//! The access rules of an application credential: the only requests for which its tokens may be used.

use regex::{Regex, RegexBuilder};
use serde::Deserialize;

/// The maximum size of a compiled pattern, in bytes.
const COMPILED: usize = 256 * 1024;

/// One of the requests for which a token may be used.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AccessRule {
    /// The type of the service in Keystone's catalog, such as `compute` or `accelerator`.
    pub service: String,
    /// The method, such as `GET`.
    pub method: String,
    /// The path, in which `*` and `{name}` stand for one segment, and `**` for any text.
    pub path: String,
}

impl AccessRule {
    /// Whether the rule admits a request. `path` is the path as it was sent, percent-encoded and without a query.
    ///
    /// As in keystonemiddleware, the whole path must match. A pattern that is too large admits nothing.
    pub fn admits(&self, service: &str, method: &str, path: &str) -> bool {
        self.service == service
            && self.method == method
            && pattern(&self.path).is_some_and(|pattern| pattern.is_match(path))
    }
}

/// Compiles the pattern of a path.
fn pattern(path: &str) -> Option<Regex> {
    let mut regex = String::from("^");
    let mut rest = path;
    while let Some(letter) = rest.chars().next() {
        let tag = rest.strip_prefix('{').and_then(|name| name.split_once('}'));
        if let Some((_, after)) = tag {
            regex += "[^/]+";
            rest = after;
        } else if let Some(after) = rest.strip_prefix("**") {
            regex += ".*";
            rest = after;
        } else if let Some(after) = rest.strip_prefix('*') {
            regex += "[^/]+";
            rest = after;
        } else {
            let (literal, after) = rest.split_at(letter.len_utf8());
            regex += &regex::escape(literal);
            rest = after;
        }
    }
    RegexBuilder::new(&(regex + "$")).size_limit(COMPILED).dot_matches_new_line(true).build().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn admits(pattern: &str, path: &str) -> bool {
        let rule = AccessRule { service: "compute".into(), method: "GET".into(), path: pattern.into() };
        rule.admits("compute", "GET", path)
    }

    #[test]
    fn a_pattern_stands_for_segments_or_for_any_text() {
        for (pattern, path) in [
            ("/v2.1/servers", "/v2.1/servers"),
            ("/v2.1/servers/*", "/v2.1/servers/abc"),
            ("/v2.1/servers/{server_id}/os-pci_attachments", "/v2.1/servers/abc/os-pci_attachments"),
            ("/v2.1/**", "/v2.1/servers/abc/os-pci_attachments"),
            ("**", "/"),
            ("/a{b", "/a{b"),
        ] {
            assert!(admits(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("/v2.1/servers", "/v2.1/servers/abc"),
            ("/v2.1/servers", "/x/v2.1/servers"),
            ("/v2.1/servers", "/v2x1/servers"),
            ("/v2.1/servers/*", "/v2.1/servers/"),
            ("/v2.1/servers/*", "/v2.1/servers/abc/os-pci_attachments"),
            ("/v2.1/servers/{id}", "/v2.1/servers/abc/def"),
            ("", "/"),
        ] {
            assert!(!admits(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn service_and_method_must_be_equal() {
        let rule = AccessRule { service: "compute".into(), method: "GET".into(), path: "/**".into() };
        assert!(rule.admits("compute", "GET", "/x"));
        assert!(!rule.admits("accelerator", "GET", "/x"));
        assert!(!rule.admits("compute", "POST", "/x"));
        assert!(!rule.admits("compute", "get", "/x"));
    }

    #[test]
    fn a_pattern_that_is_too_large_admits_nothing() {
        assert!(!admits(&"*".repeat(100_000), &"/x".repeat(10)));
    }

    proptest! {
        #[test]
        fn a_path_without_wildcards_admits_itself_and_nothing_longer(path in "[^*{}]{0,40}", more in ".{1,5}") {
            prop_assert!(admits(&path, &path));
            let longer = format!("{path}{more}");
            prop_assert!(!admits(&path, &longer));
        }

        #[test]
        fn any_pattern_and_path_are_safe(pattern in ".{0,60}", path in ".{0,60}") {
            admits(&pattern, &path);
        }
    }
}
