//! `extra_info`, as the API takes it.

#![no_main]

use hotslot_fuzz::DEVICES;
use hotslot_model::rules::ExtraInfo;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match ExtraInfo::parse(text) {
        Ok(info) => {
            let kept = serde_json::from_str::<serde_json::Value>(text).expect("JSON").to_string();
            let kept = ExtraInfo::parse(&kept).expect("what was accepted before");
            assert!(!info.values().is_empty());
            assert_eq!(info.values(), kept.values());
            for device in DEVICES.iter() {
                assert_eq!(info.matches(device, None), kept.matches(device, None), "{}", device.address);
            }
        }
        Err(errors) => assert!(!errors.is_empty()),
    }
});
