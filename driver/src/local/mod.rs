//! What only the kernel of the local host tells, in sysfs and procfs: what the host itself lives on, how a
//! function can be reset, how large its BARs are.
//!
//! ```text
//! guard        what must not be given away, and why
//! finding      what was found so
//! block        mounts, swap and held disks → the PCI functions below them
//! mount        mountinfo and swaps, read
//! net          addresses, routes and what is stacked on a NIC → its PCI function
//! reset, bar   one function's reset methods and memory
//! ```
//!
//! Everything is read from files below a directory, which is
//! [`sysroot`](crate::hypervisor::Hypervisor::sysroot) of the host: none for a remote one, where all of this
//! is unknown. The calls read files and block.

mod bar;
mod block;
mod finding;
mod guard;
mod mount;
mod net;
mod reset;
mod root;

pub use self::bar::{Bar, BarKind, bars};
pub use self::finding::{Guard, GuardKind};
pub use self::guard::{guards, guards_of_remote};
pub use self::reset::reset_methods;
