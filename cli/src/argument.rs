//! Parsers of arguments whose own types do not say what would be right.

use std::ops::RangeInclusive;

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
}
