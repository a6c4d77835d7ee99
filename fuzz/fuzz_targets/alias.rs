//! `alias`: an entry that is accepted can be asked for by its name.

#![no_main]

use std::sync::LazyLock;

use hotslot_fuzz::DEVICES;
use hotslot_model::device::DeviceFacts;
use hotslot_model::rules::{Alias, AliasGrammar, AliasRequests, Inventory};
use libfuzzer_sys::fuzz_target;

static FACTS: LazyLock<Vec<DeviceFacts>> = LazyLock::new(|| {
    let pci =
        hotslot_model::rules::Pci { device_spec: vec![r#"{"address": "*"}"#.into()], ..Default::default() };
    let inventory = Inventory::new(&pci).expect("every device is offered");
    DEVICES.iter().filter_map(|device| inventory.facts(device, None)).collect()
});

fuzz_target!(|text: &str| {
    for pci_in_placement in [false, true] {
        let extra_info = ["switch", "physical_network", "trusted"].map(str::to_owned).into();
        let grammar = AliasGrammar { extra_info, pci_in_placement };
        let Ok(alias) = Alias::parse(text, &grammar) else { continue };
        let asked: AliasRequests = format!("{}:1", alias.name).parse().expect("a name that can be asked for");
        assert!(matches!(&asked.0[..], [one] if one.name == alias.name), "{asked:?}");
        let kept = serde_json::from_str::<serde_json::Value>(text).expect("JSON").to_string();
        assert_eq!(Alias::parse(&kept, &grammar).ok().as_ref(), Some(&alias));
        for device in FACTS.iter() {
            assert_eq!(alias.matches(device), alias.mismatch(device).is_empty(), "{device:?}");
        }
    }
});
