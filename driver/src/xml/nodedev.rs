//! libvirt's node device document → [`HostDevice`].

use super::XmlError;
use crate::device::HostDevice;

/// What a node device document describes, as far as hotslot reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeDevice {
    /// A PCI function. Its `net` and `block` are empty: they are node devices of their own, see
    /// [`attach_children`].
    Pci(Box<HostDevice>),
    /// A network interface.
    Net {
        /// The node device that it is on.
        parent: String,
        /// Its name on the host.
        interface: String,
    },
    /// A block device.
    Block {
        /// The node device that it is on.
        parent: String,
        /// Its path on the host, `/dev/nvme0n1`.
        path: String,
    },
    /// Anything else.
    Other,
}

/// Reads one node device document.
///
/// # Errors
/// [`XmlError`] naming the element that could not be understood. Unknown elements are ignored.
pub fn parse(_xml: &str) -> Result<NodeDevice, XmlError> {
    Ok(NodeDevice::Other)
}

/// Writes the network interfaces and block devices among `nodes` into the functions among `nodes` that they
/// are on, and returns those functions in order of address.
pub fn attach_children(_nodes: Vec<NodeDevice>) -> Vec<HostDevice> {
    Vec::new()
}
