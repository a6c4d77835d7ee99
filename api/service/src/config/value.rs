//! The types of values that several keys have.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::{Span, SpanRelativeTo};
use serde::{Deserialize, Deserializer};

/// A text that is never printed.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// A duration in seconds, such as 20 or 0.5; above 0, at most one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seconds(pub Duration);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number of seconds, such as 20 or 0.5")]
        enum Number {
            Whole(u64),
            Fraction(f64),
        }
        let seconds = match Number::deserialize(deserializer)? {
            Number::Whole(seconds) => seconds as f64,
            Number::Fraction(seconds) => seconds,
        };
        const DAY: f64 = 86_400.0;
        if seconds > 0.0 && seconds <= DAY {
            Ok(Self(Duration::from_secs_f64(seconds)))
        } else {
            Err(serde::de::Error::custom(format!(
                "expected more than 0 and at most {DAY} seconds, not {seconds}"
            )))
        }
    }
}

/// A duration with its unit, such as `90d`, `12h`, `30m` or `45s`; at least 1 second, at most 100 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age(pub Duration);

impl FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const LEAST: Duration = Duration::from_secs(1);
        const MOST: Duration = Duration::from_secs(36_500 * 24 * 3600);
        let time = duration(text)
            .ok_or_else(|| format!("`{text}` is not a duration; write 90d, 12h, 30m or 45s"))?;
        let admitted = (LEAST..=MOST).contains(&time);
        admitted
            .then_some(Self(time))
            .ok_or_else(|| format!("`{text}` is not from 1s to 36500d; write 90d, 12h, 30m or 45s"))
    }
}

/// Reads a duration with its unit, such as `90d`, `1h30m` or `500ms`. A day has 24 hours. `None` for any other text.
pub fn duration(text: &str) -> Option<Duration> {
    let span: Span = text.parse().ok()?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    Duration::try_from(duration).ok()
}

impl<'de> Deserialize<'de> for Age {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Whether a text may be the name of a webhook or of a token: 1 to 64 letters, digits, `-`, `_` or `.`.
pub fn is_plain_name(text: &str) -> bool {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    (1..=64).contains(&text.len()) && text.chars().all(plain)
}
