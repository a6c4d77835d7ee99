//! `a1:2,b1:1`: which devices a request wants.

#![no_main]

use hotslot_model::rules::AliasRequests;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match text.parse::<AliasRequests>() {
        Ok(requests) => {
            let count: usize = requests.0.iter().map(|part| part.count).sum();
            assert!(
                (1..=256).contains(&count) && requests.0.iter().all(|part| part.count > 0),
                "{requests:?}"
            );
            let parts: Vec<_> =
                requests.0.iter().map(|part| format!("{}:{}", part.name, part.count)).collect();
            assert_eq!(parts.join(",").parse::<AliasRequests>(), Ok(requests));
        }
        Err(error) => assert!(error.to_string().chars().count() < 2000, "a long text is shortened"),
    }
});
