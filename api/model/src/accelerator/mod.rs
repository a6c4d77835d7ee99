//! Accelerators: named devices that can be attached to a server, or bound for use by the host itself.

mod spec;
mod view;

pub use spec::{AccSpec, MAX_BYTES, MAX_NUM, is_accelerator};
pub use view::{Accelerator, Held, Status, Target, View, disambiguated, discovered, in_use_message};
