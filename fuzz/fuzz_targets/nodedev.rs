//! Node device documents.

#![no_main]

use hotslot_driver::pci::PciAddress;
use hotslot_driver::xml::nodedev::{self, NodeDevice};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|xml: &str| {
    let Ok(device) = nodedev::parse(xml) else { return };
    if let NodeDevice::Pci(device) = &device {
        assert_eq!(PciAddress::from_node_name(&device.address.node_name()), Ok(device.address));
    }
    assert!(nodedev::attach_children(vec![device]).len() <= 1);
});
