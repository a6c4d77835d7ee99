//! The hypervisor side of hotslot: PCI and libvirt. It knows no HTTP and no SQL.
//!
//! ```text
//! pci, net               values: parsed once, never invalid
//! text                   what others wrote, made safe to show
//! device, domain         what hotslot knows of a host's function, and of a guest
//! mdev                   the mediated devices that a function's driver makes
//! device_type            what a function is used for: GPU, FPGA, NIC, …
//! xml                    documents in and out: node device, domain, hostdev; no connection here
//! topology               a domain's PCI tree: the bus numbers its firmware gives, its free hot-plug ports
//! local                  what only the local host's sysfs and procfs know: guards, reset methods, BARs
//! hypervisor             the port: what hotslot asks of a hypervisor, and the events it hears from it
//! libvirt, sim           the two adapters behind the port: real hosts, simulated ones
//! hotplug                plug and unplug over the port: preflight, attach, confirm; detach until it is gone
//! binding                a function used by the host itself: its driver meanwhile, reset, and back
//! capture                a host's documents, written into a directory as they are
//! ```

pub mod binding;
mod calls_out;
pub mod capture;
pub mod device;
pub mod device_type;
pub mod domain;
pub mod guest;
pub mod host_driver;
pub mod hotplug;
pub mod hypervisor;
pub mod libvirt;
pub mod local;
pub mod mdev;
pub mod net;
mod overdue;
pub mod pci;
pub mod sim;
pub mod text;
pub mod topology;
pub mod xml;
