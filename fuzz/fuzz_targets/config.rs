//! The configuration file, with all that a start looks at before it touches anything.

#![no_main]

use hotslot_service::config::Config;
use hotslot_service::start;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match Config::parse(text) {
        Ok(config) => {
            for problem in start::problems(&config) {
                assert!(!problem.to_string().is_empty());
            }
            assert!(!config.hypervisors().is_empty());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
