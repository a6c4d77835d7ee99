//! Parsers of arguments whose own types do not say what would be right.

use std::num::NonZeroU16;
use std::ops::RangeInclusive;
use std::time::Duration;

use hotslot_model::rules::MAX_DEVICES;
use hotslot_service::config::duration;
use uuid::Uuid;

/// Returns a parser of whole numbers of a range.
pub(crate) fn number<T: TryFrom<u64>>(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| {
            match (*range.start(), *range.end()) {
                (first, u64::MAX) => format!("expected a whole number from {first} up"),
                (first, last) => format!("expected a whole number from {first} to {last}"),
            }
        })
    }
}

/// Parses an alias with the number of devices of a request: `a1` (one device) or `a1:2`. `None` for a text of another form,
/// such as an address.
pub(crate) fn alias(text: &str) -> Option<Result<(&str, NonZeroU16), String>> {
    let (name, count) = text.split_once(':').unwrap_or((text, "1"));
    if name.is_empty() || name.contains(',') || count.contains(':') {
        return None;
    }
    let count = count.parse::<NonZeroU16>().ok().filter(|count| usize::from(count.get()) <= MAX_DEVICES);
    Some(count.map(|count| (name, count)).ok_or_else(|| {
        format!("expected a number of devices from 1 to {MAX_DEVICES} after the alias: {name} or {name}:2")
    }))
}

/// Checks a time limit as the service reads it: `30s`, `500ms`, `2m` or `1h`, or a number of seconds, up to a day.
pub(crate) fn time_limit(text: &str) -> Result<String, String> {
    const DAY: Duration = Duration::from_secs(86_400);
    let time = match text.trim_start_matches(|letter: char| letter.is_ascii_digit()) {
        "" => text.parse().map(Duration::from_secs).ok(),
        "ms" | "s" | "m" | "h" => duration(text),
        _ => None,
    };
    let time = time.filter(|time| !time.is_zero() && *time <= DAY);
    time.map(|_| text.to_owned())
        .ok_or_else(|| "expected a time up to a day; write 30s, 500ms, 2m or 1h".into())
}

/// Parses a UUID.
pub(crate) fn uuid(text: &str) -> Result<Uuid, String> {
    Uuid::try_parse(text).map_err(|_| "expected a UUID, such as 3f0c7c2e-6f0e-4c0b-9f3a-0d3c7f0a4a55".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_outside_of_the_range_are_refused_with_the_range() {
        assert_eq!(number::<u8>(1..=30)("30"), Ok(30));
        assert_eq!(number::<u64>(0..=u64::MAX)("18446744073709551615"), Ok(u64::MAX));
        for wrong in ["", "x", "-1", "0", "31", "1.5", "99999999999999999999"] {
            let right = "expected a whole number from 1 to 30";
            assert_eq!(number::<u8>(1..=30)(wrong), Err(right.into()), "{wrong}");
        }
        assert_eq!(number::<u64>(0..=u64::MAX)("x"), Err("expected a whole number from 0 up".into()));
        assert!(uuid("3f0c7c2e").unwrap_err().contains("expected a UUID"));
    }

    #[test]
    fn a_time_limit_is_a_number_with_an_optional_unit() {
        for good in ["30", "30s", "500ms", "2m", "1h", "24h"] {
            assert_eq!(time_limit(good), Ok(good.to_owned()));
        }
        for bad in ["", "s", "0", "0s", "1x", "25h", "1h30m", "-1s", "1.5s"] {
            assert!(time_limit(bad).unwrap_err().contains("30s, 500ms, 2m or 1h"), "{bad}");
        }
    }
}
