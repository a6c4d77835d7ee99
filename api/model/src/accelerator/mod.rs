//! Accelerators: devices that are given away under names of their own, to a server or to the host itself.

mod spec;
mod view;

pub use spec::{AccSpec, MAX_NUM};
pub use view::{Accelerator, Held, Status, Target, View, discovered, taken, told_apart};
