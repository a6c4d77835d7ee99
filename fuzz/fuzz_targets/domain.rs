//! Domain documents, live and persistent, and the PCI tree that is worked out of them.

#![no_main]

use hotslot_driver::topology::Topology;
use hotslot_driver::xml::domain;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|xml: &str| {
    let Ok(domain) = domain::parse(xml) else { return };
    let topology = Topology::of(&domain);
    for address in &domain.occupied {
        let route = topology.route(*address);
        assert!(
            topology.guest_address(*address).is_none() || route.is_some(),
            "{address} without a way to it"
        );
        assert!(
            route.is_none_or(|route| route.bridges.len() <= domain.controllers.len()),
            "{address} in a circle"
        );
    }
    for express in [true, false] {
        let mut free = topology.free_ports();
        for left in (0..free.count_for(express)).rev() {
            let taken = free.take(express);
            assert!(
                taken.is_some_and(|address| !domain.occupied.contains(&address)),
                "{taken:?} was not free"
            );
            assert_eq!(free.count_for(express), left);
        }
        assert_eq!(free.take(express), None);
    }
});
