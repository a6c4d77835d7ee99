//! Parses device requests such as `a1:2,b1:1` (Nova's `pci_passthrough:alias`).

use std::str::FromStr;

/// The largest length of an alias name in characters, as in Nova.
pub(super) const NAME: usize = 256;

/// The largest number of devices of one request.
pub const MAX_DEVICES: usize = 256;

/// One part of a request: an alias and a number of devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasRequest {
    /// The name of the alias.
    pub name: String,
    /// The number of devices, 1 to 256.
    pub count: usize,
}

/// The error for a text that is not a valid request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not NAME:COUNT[,NAME:COUNT…] with counts of 1 to 256, such as a1:2,b1:1: {reason}")]
pub struct RequestError {
    text: String,
    reason: String,
}

/// The parts of one request, 1 to 256 devices in total.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasRequests(pub Vec<AliasRequest>);

impl FromStr for AliasRequests {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shortened = |text: &str| text.chars().take(300).collect::<String>();
        let error = |reason: String| RequestError { text: shortened(text), reason };
        let part = |part: &str| {
            let (name, count) = part
                .split_once(':')
                .ok_or_else(|| error(format!("`{}` has no count", shortened(part.trim()))))?;
            let name = name.trim();
            if name.is_empty() {
                return Err(error("a name is missing".into()));
            }
            if name.chars().count() > NAME {
                return Err(error(format!("a name has more than {NAME} characters")));
            }
            let digits = count.trim_end();
            let count = Some(digits)
                .filter(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|digits| digits.parse().ok())
                .filter(|count| (1..=MAX_DEVICES).contains(count))
                .ok_or_else(|| error(format!("`{}` is not a count of 1 to 256", shortened(digits))))?;
            Ok(AliasRequest { name: name.to_owned(), count })
        };
        let parts = text.split(',').map(part).collect::<Result<Vec<_>, _>>()?;
        if parts.iter().map(|part| part.count).sum::<usize>() > MAX_DEVICES {
            return Err(error("that is more than 256 devices".into()));
        }
        Ok(Self(parts))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn requests_are_parsed_as_in_nova() {
        let cases: Vec<Value> = serde_json::from_str(include_str!("../../tests/data/request.json")).unwrap();
        for case in cases {
            match (case["text"].as_str().unwrap().parse::<AliasRequests>(), case["refused"].as_str()) {
                (Ok(requests), None) => {
                    let requests: Vec<_> =
                        requests.0.iter().map(|part| json!([part.name, part.count])).collect();
                    assert_eq!(Value::from(requests), case["requests"], "{case}");
                }
                (Err(error), Some(says)) => assert!(error.to_string().contains(says), "{case}: {error}"),
                (outcome, _) => panic!("{case}: {outcome:?}"),
            }
        }
    }

    #[test]
    fn an_error_quotes_only_the_start_of_a_long_text() {
        for text in ["a:1".repeat(10_000), "a".repeat(10_000), format!("a:{}", "1".repeat(10_000))] {
            let shortened = text.parse::<AliasRequests>().unwrap_err().to_string();
            assert!(shortened.len() < 1000, "{shortened}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC*") {
            let _ = text.parse::<AliasRequests>();
        }
    }
}
