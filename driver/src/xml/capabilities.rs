//! Reads the CPU socket of each of the host's NUMA nodes from libvirt's capabilities document.

use std::collections::BTreeMap;

use super::XmlError;
use super::read::{self, Fault, child, children, number, required_number};
use super::tree::Element;

/// Returns the socket of each NUMA node that has online CPUs, or `None` when the document does not contain sockets or
/// when a node spans several sockets.
///
/// # Errors
/// [`XmlError`] with the element that could not be read. Unknown elements are ignored.
pub fn node_sockets(xml: &str) -> Result<Option<BTreeMap<u32, u32>>, XmlError> {
    let document = read::document(xml, "capabilities", "capabilities")?;
    sockets(&document.root).map_err(|fault| document.error("capabilities", fault))
}

fn sockets(root: &Element<'_>) -> Result<Option<BTreeMap<u32, u32>>, Fault> {
    let mut sockets = BTreeMap::new();
    let host = child(root, "host").and_then(|host| child(host, "topology"));
    for cell in
        host.and_then(|topology| child(topology, "cells")).iter().flat_map(|cells| children(cells, "cell"))
    {
        let node: u32 = required_number(cell, "id")?;
        for cpu in child(cell, "cpus").iter().flat_map(|cpus| children(cpus, "cpu")) {
            // An offline CPU has no socket.
            let Some(socket) = number::<u32>(cpu, "socket_id")? else { continue };
            if sockets.insert(node, socket).is_some_and(|other| other != socket) {
                return Ok(None);
            }
        }
    }
    Ok((!sockets.is_empty()).then_some(sockets))
}
