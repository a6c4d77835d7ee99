//! A limit on how often something may be done: a token bucket, which is refilled at a steady rate.

use std::num::NonZeroU32;
use std::time::Duration;

/// The rate at which a bucket is refilled, and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Tokens per second.
    pub per_second: NonZeroU32,
    /// The tokens of a full bucket.
    pub burst: NonZeroU32,
}

impl Rate {
    /// The time after which the bucket has one more token.
    fn period(self) -> Duration {
        Duration::from_secs(1) / self.per_second.get()
    }
}

/// A bucket, which is full at first. Times are given since any fixed time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bucket {
    /// When it is full again. This says how many tokens it has at any time.
    full_at: Duration,
}

impl Bucket {
    /// Returns the time after which the bucket has a token; zero when it has one now.
    pub fn wait(self, rate: Rate, now: Duration) -> Duration {
        let without_one = self.full_at.max(now) + rate.period();
        without_one.saturating_sub(now + rate.period() * rate.burst.get())
    }

    /// Takes a token.
    ///
    /// # Errors
    /// The time after which there is one, when there is none.
    pub fn take(&mut self, rate: Rate, now: Duration) -> Result<(), Duration> {
        match self.wait(rate, now) {
            Duration::ZERO => {
                self.full_at = self.full_at.max(now) + rate.period();
                Ok(())
            }
            wait => Err(wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(per_second: u32, burst: u32) -> Rate {
        Rate { per_second: NonZeroU32::new(per_second).unwrap(), burst: NonZeroU32::new(burst).unwrap() }
    }

    proptest! {
        #[test]
        fn no_period_has_more_than_the_burst_and_what_was_refilled(
            per_second in 1_u32..2000,
            burst in 1_u32..50,
            steps in prop::collection::vec(0_u64..20_000, 1..200),
        ) {
            let rate = rate(per_second, burst);
            let (mut bucket, mut now, mut taken) = (Bucket::default(), Duration::from_secs(7), Vec::new());
            for step in steps {
                now += Duration::from_micros(step);
                match bucket.take(rate, now) {
                    Ok(()) => taken.push(now),
                    Err(wait) => {
                        prop_assert!(!wait.is_zero() && wait <= rate.period(), "{wait:?}");
                        let mut later = bucket;
                        prop_assert!(later.take(rate, now + wait - Duration::from_nanos(1)).is_err());
                        prop_assert!(later.take(rate, now + wait).is_ok(), "the announced time is enough");
                    }
                }
            }
            for (first, from) in taken.iter().enumerate() {
                for (last, until) in taken.iter().enumerate().skip(first) {
                    let refilled = (*until - *from).as_nanos() / rate.period().as_nanos();
                    prop_assert!((last - first + 1) as u128 <= u128::from(burst) + refilled);
                }
            }
        }
    }

    #[test]
    fn a_full_bucket_gives_its_burst_at_once() {
        let (rate, mut bucket, now) = (rate(10, 3), Bucket::default(), Duration::from_secs(9));
        for _ in 0..3 {
            bucket.take(rate, now).unwrap();
        }
        assert_eq!(bucket.take(rate, now), Err(Duration::from_millis(100)));
        assert_eq!(bucket.take(rate, now + Duration::from_millis(100)), Ok(()));
    }
}
