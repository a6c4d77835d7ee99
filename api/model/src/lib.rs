//! The nouns of the service and every rule that is pure: ids, devices, the rules of `[pci]`, the state machine of
//! assignments, what disagrees between records and hosts, accelerators, events.
//!
//! Nothing here reads a clock, makes a random id, waits, or knows of a database or of HTTP: time and ids are arguments.

pub mod accelerator;
pub mod assignment;
pub mod cyborg;
pub mod device;
mod device_status;
pub mod event;
pub mod hot_unplug;
pub mod id;
pub mod idempotency;
pub mod overdue;
pub mod rules;
mod string_enum;
pub mod texts;
pub mod time;

pub use device_status::{DeviceEvent, InvalidTransition};
