//! The service: serves requests and works in the background. It keeps its records in the store and changes the hosts
//! through the driver.
//!
//! ```text
//! start, service  opens the database and the hosts; the service as one value
//! accelerator     accelerators, attached to servers or bound for the host itself
//! assignment      attach, detach, reconciliation
//! inventory       discovery of devices; changes of the rules by the API; availability
//! cyborg          Cyborg's cards and accelerator requests
//! host            the configured hosts
//! locks           the work in progress, within this process and between processes
//! peers           the other processes that use the same database
//! fence           stops host changes of a process whose work was taken over; shares overdue calls between processes
//! idempotency     requests that are repeated with an Idempotency-Key
//! events, feed    an event as JSON; events for the clients that follow them
//! webhook         posts events to URLs: signatures, repetitions, dead letters
//! retention       removes old events and ended rows
//! config, flavor  hotslot.toml
//! task            tasks that continue when their caller's future is dropped
//! ```

pub mod accelerator;
pub mod assignment;
pub mod config;
pub mod cyborg;
pub mod error;
pub mod events;
pub mod feed;
mod fence;
pub mod flavor;
pub mod host;
pub mod idempotency;
pub mod inventory;
pub mod locks;
mod peers;
mod retention;
pub mod service;
pub mod start;
pub mod task;
pub mod webhook;
