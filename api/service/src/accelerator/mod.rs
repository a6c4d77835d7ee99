//! Accelerators: devices under names of their own, attached to a server or bound for the host itself.
//!
//! An accelerator is a name and a spec; its devices are chosen when it is attached. It has no recorded state that a
//! crash could leave wrong: its status follows from the assignments that were made on its behalf.

mod accelerators;
mod attach;
mod records;

pub use self::accelerators::Accelerators;
