//! Accelerators: devices that are given away under names of their own, to a server or to the host itself.
//!
//! An accelerator is a name and a spec; which device it is, is decided when it is attached. What it holds is told by
//! the attachments, bindings and mediated devices that were made on its behalf ([`Holder`]): it has no state of its own
//! that a crash could leave behind.

mod accelerators;
mod attach;
mod records;

pub use self::accelerators::Accelerators;
