//! `a1:2,b1:1`: which devices a request wants (Nova's `pci_passthrough:alias`).

use std::str::FromStr;

/// The most characters that the name of an alias has (Nova's).
pub(super) const NAME: usize = 256;

/// How many devices of which kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasRequest {
    /// The alias.
    pub name: String,
    /// How many, 1 to 256.
    pub count: usize,
}

/// A text that asks for nothing that could be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not NAME:COUNT[,NAME:COUNT…] with counts of 1 to 256, such as a1:2,b1:1: {reason}")]
pub struct RequestError {
    text: String,
    reason: String,
}

/// The parts of one request, 1 to 256 devices in all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasRequests(pub Vec<AliasRequest>);

impl FromStr for AliasRequests {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let told = |text: &str| text.chars().take(300).collect::<String>();
        let error = |reason: String| RequestError { text: told(text), reason };
        let part = |part: &str| {
            let (name, count) =
                part.split_once(':').ok_or_else(|| error(format!("`{}` has no count", told(part.trim()))))?;
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
                .filter(|count| (1..=256).contains(count))
                .ok_or_else(|| error(format!("`{}` is no such count", told(digits))))?;
            Ok(AliasRequest { name: name.to_owned(), count })
        };
        let parts = text.split(',').map(part).collect::<Result<Vec<_>, _>>()?;
        if parts.iter().map(|part| part.count).sum::<usize>() > 256 {
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
    fn parts_are_read_as_nova_reads_them() {
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
    fn a_long_text_is_not_told_whole() {
        for text in ["a:1".repeat(10_000), "a".repeat(10_000), format!("a:{}", "1".repeat(10_000))] {
            let told = text.parse::<AliasRequests>().unwrap_err().to_string();
            assert!(told.len() < 1000, "{told}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC*") {
            let _ = text.parse::<AliasRequests>();
        }
    }
}
