//! The types of the service and all its pure rules: ids, devices, the rules of `[pci]`, the state machine of
//! assignments, drift between records and hosts, accelerators, and events.
//!
//! Nothing here reads a clock, makes a random id, waits, or uses a database or HTTP. Times and ids are arguments.

pub mod accelerator;
pub mod assignment;
pub mod cyborg;
pub mod device;
mod device_status;
pub mod event;
mod functions;
pub mod host_mode;
pub mod hot_unplug;
pub mod id;
pub mod idempotency;
pub mod identity;
pub mod json;
pub mod overdue;
pub mod quota;
pub mod rate;
pub mod remedy;
pub mod rules;
pub mod scan;
mod string_enum;
pub mod texts;
pub mod time;
pub mod under_way;

pub use device_status::{DeviceEvent, InvalidTransition};
