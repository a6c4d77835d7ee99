//! `device_spec`, as the file has it and as the API keeps it.

#![no_main]

use hotslot_fuzz::DEVICES;
use hotslot_model::rules::DeviceSpec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for placement in [false, true] {
        let Ok(spec) = DeviceSpec::parse(text, placement) else { continue };
        // What came by the API is kept as serde_json writes it, and read again at each start.
        let kept = serde_json::from_str::<serde_json::Value>(text).expect("JSON").to_string();
        let kept = DeviceSpec::parse(&kept, placement).expect("what was accepted before");
        assert_eq!(spec.tags(), kept.tags());
        for device in DEVICES.iter() {
            assert_eq!(spec.mismatch(device, None), kept.mismatch(device, None), "{}", device.address);
            assert_eq!(spec.matches(device, None), spec.mismatch(device, None).is_none());
        }
    }
});
