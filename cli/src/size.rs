//! Sizes of memory on the command line: `64G`.

use std::fmt;
use std::str::FromStr;

/// A number of bytes, written with a unit of 1024: K, M, G or T.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

/// The units and the powers of two that they stand for, the largest first.
const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("invalid size `{text}`: expected a number and K, M, G or T, such as 64G");
        let unit = text.chars().last().ok_or_else(wrong)?.to_ascii_uppercase();
        let (_, shift) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let digits = &text[..text.len() - 1];
        // `parse` also accepts a sign.
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let bytes = number.checked_mul(1 << shift).filter(|bytes| *bytes > 0);
        bytes.map(Self).ok_or_else(|| format!("invalid size `{text}`: it is 0, or too large"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, shift)| self.0.trailing_zeros() >= *shift) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, expected) in
            [("64G", Some(64 << 30)), ("1k", Some(1024)), ("2T", Some(2 << 40)), ("256M", Some(256 << 20))]
        {
            assert_eq!(text.parse::<Size>().ok().map(|size| size.0), expected, "{text}");
        }
        for wrong in ["", "G", "64", "-1G", "+1G", "0G", "1.5G", "64 G", "64GiB", "99999999999T", "é", "6é"]
        {
            let error = wrong.parse::<Size>().unwrap_err();
            assert!(error.contains("invalid size"), "{wrong}: {error}");
        }
        assert_eq!(Size(64 << 30).to_string(), "64G");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_same(number in 1u64..1 << 23, shift in prop::sample::select(vec![10, 20, 30, 40])) {
            let size = Size(number << shift);
            prop_assert_eq!(size.to_string().parse::<Size>(), Ok(size));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,12}") {
            let _ = text.parse::<Size>();
        }
    }
}
