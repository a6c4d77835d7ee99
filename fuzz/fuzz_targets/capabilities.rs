//! libvirt's capabilities document.

#![no_main]

use hotslot_driver::xml::capabilities::node_sockets;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|xml: &str| {
    if let Ok(Some(sockets)) = node_sockets(xml) {
        assert!(!sockets.is_empty());
    }
});
