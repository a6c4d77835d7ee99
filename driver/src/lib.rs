//! The hypervisor side of hotslot: PCI and libvirt. It does not depend on HTTP or SQL.
//!
//! ```text
//! pci, net               values that are checked when they are parsed
//! text                   escapes text from others
//! device, domain         a PCI function of a host, and a guest
//! ownership              the project that owns a guest
//! mdev                   mediated devices and their types
//! vf, vgpu               settings of VFs; virtual GPUs that VFs are
//! vfio                   whether the driver of a function is a VFIO driver
//! device_type            the use of a function: GPU, FPGA, NIC, …
//! xml                    reads and writes libvirt's documents, without a connection
//! topology               a domain's PCI tree: bus numbers from firmware, free hot-plug ports
//! guest                  the guest's own view of its PCI buses, and commands in the guest
//! local                  facts from the host's sysfs and procfs: guards, reset methods, BARs
//! hypervisor             the trait that hosts implement: calls and events
//! libvirt, sim           the two implementations of the trait: real hosts and simulated hosts
//! hotplug                plug and unplug: preflight, attach, read back; detach until the device is gone
//! binding, host_driver   a function for the host's own use: its driver, reset and release
//! overdue, calls_out     calls that were given up and have not returned
//! helper                 changes of the host's sysfs, and hooks, by a process that may make them
//! hook                   commands of the administrator that run on a host for functions of a class
//! capture                writes a host's documents into a directory
//! ```

pub mod binding;
mod calls_out;
pub mod capture;
pub mod device;
pub mod device_type;
pub mod domain;
pub mod guest;
pub mod helper;
pub mod hook;
pub mod host_driver;
pub mod hotplug;
pub mod hypervisor;
pub mod libvirt;
pub mod local;
pub mod mdev;
pub mod net;
mod netlink;
mod overdue;
pub mod ownership;
pub mod pci;
pub mod sim;
pub mod text;
pub mod topology;
pub mod vf;
pub mod vfio;
pub mod vgpu;
pub mod xml;
