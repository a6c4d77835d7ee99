//! PCI addresses, ids and classes, node device names, MAC addresses: what is read is written so that it reads the
//! same.

#![no_main]

use std::collections::BTreeSet;
use std::fmt::{Debug, Display};
use std::str::FromStr;
use std::sync::LazyLock;

use hotslot_driver::domain::UserAlias;
use hotslot_driver::net::MacAddress;
use hotslot_driver::pci::{PciAddress, PciClass, PciId};
use libfuzzer_sys::fuzz_target;

static CLASSES: LazyLock<BTreeSet<&str>> = LazyLock::new(PciClass::descriptions);

fn same_again<T: FromStr<Err: Display + Debug> + Display + PartialEq + Debug>(text: &str) -> Option<T> {
    match text.parse::<T>() {
        Ok(value) => {
            assert_eq!(value.to_string().parse::<T>().as_ref().ok(), Some(&value), "{text}");
            Some(value)
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

fuzz_target!(|text: &str| {
    if let Some(address) = same_again::<PciAddress>(text) {
        assert_eq!(PciAddress::from_node_name(&address.node_name()), Ok(address));
    }
    if let Ok(address) = PciAddress::from_node_name(text) {
        assert_eq!(PciAddress::from_node_name(&address.node_name()), Ok(address));
    }
    same_again::<PciId>(text);
    if let Some(class) = same_again::<PciClass>(text) {
        assert!(CLASSES.contains(class.description()));
    }
    same_again::<MacAddress>(text);
    if let Some(alias) = UserAlias::parse(text) {
        assert_eq!(UserAlias::parse(&alias.to_string()), Some(alias));
    }
});
