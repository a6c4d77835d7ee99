//! Accelerators: named devices that can be attached to a server, or bound for use by the host itself.

mod name;
mod spec;
mod view;

pub use name::{LONGEST_NAME, check_name};
pub use spec::{AccSpec, MAX_BYTES, MAX_NUM, is_accelerator};
pub use view::{Accelerator, Held, Status, Target, View, disambiguated, discovered, in_use_message};
