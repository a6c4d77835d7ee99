//! Facts that only the host's own sysfs and procfs contain: the devices that the host needs, the reset methods of a
//! function, the sizes of its BARs, and the processes that use it.
//!
//! ```text
//! guard        the devices that must not be assigned, and why
//! finding      the types of the findings
//! block        mounts, swap and open disks → the PCI functions below them
//! mount        parses mountinfo and swaps
//! net          addresses, routes and stacked interfaces → the PCI functions below them
//! reset, bar   the reset methods and the memory of a function
//! health       whether a function works as before
//! hooks        runs the hooks of functions
//! open_nodes   the device nodes of functions, and who has one open
//! vf_count     the number of VFs of a PF, which it also changes
//! vf_port      where the settings of a VF are
//! vfio         whether a function is bound to a VFIO driver
//! vgpu         the types of virtual GPUs of VFs, which it also changes
//! root         reads files below the host's root directory
//! ```
//!
//! All files are read below the host's [`sysroot`](crate::hypervisor::Hypervisor::sysroot). A remote host has none, so
//! that these facts are unknown there. The functions read files and block.

mod bar;
mod block;
mod finding;
mod guard;
mod health;
mod hooks;
mod mount;
mod net;
mod open_nodes;
mod reset;
mod root;
mod vf_count;
mod vf_port;
mod vfio;
mod vgpu;

pub use self::bar::{Bar, BarKind, bars};
pub use self::finding::{Guard, GuardKind};
pub use self::guard::{guards, guards_of_remote};
pub use self::health::{Condition, PortLink, condition, new_fatal_errors, why_unhealthy};
pub use self::hooks::run_hook;
pub use self::open_nodes::{InUse, NodeProcess, OpenNodes, open_nodes};
pub use self::reset::reset_methods;
pub use self::vf_count::{OF_ANOTHER_MACHINE, set_vf_count};
pub use self::vf_port::{VfPort, vf_port};
pub use self::vfio::vfio_dev;
pub(crate) use self::vgpu::vgpus_on_another_machine;
pub use self::vgpu::{set_vgpu_type, vgpu_vfs};
