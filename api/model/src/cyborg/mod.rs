//! Cyborg's records: device profiles, attributes of deployables, and accelerator requests.

mod profile;
mod request;

pub use profile::{Attribute, DeviceProfile, Group, MAX_UNITS};
pub use request::{Arq, ArqState, ArqTarget, ArqView, seen};
