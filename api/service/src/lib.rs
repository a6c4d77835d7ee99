//! The service: what is done for a request, and what is done without one. It keeps the records in the store and asks
//! the hosts by the driver.
//!
//! ```text
//! start, service  everything is opened; the service as one value, made of its parts
//! accelerator     accelerators: into servers, for the host itself, in parts
//! assignment      devices in servers and in the use of their hosts: attach, detach, reconciliation
//! inventory       the device table follows the hosts; rules that come by the API; what may be offered
//! cyborg          Cyborg's cards and accelerator requests
//! hosts, host     the configured hypervisors, and on which of them a server is
//! records         the records, to be read
//! lifecycle       the end of the service
//! locks           what is being worked on, within this process and between processes
//! peers           the other processes over one database
//! fence           work of a process that was taken off the record changes no host; calls that are out are told to all
//! idempotency     requests that are sent again
//! events, feed    an event as JSON; events for those who follow them
//! webhook         events told by POST: signed, repeated, dead letters
//! retention       how long events and ended rows are kept
//! config, flavor  hotslot.toml
//! task            tasks that go on when the one that waits for them goes away
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
pub mod hosts;
pub mod idempotency;
pub mod inventory;
pub mod lifecycle;
pub mod locks;
mod peers;
pub mod records;
mod retention;
pub mod service;
pub mod start;
pub mod task;
pub mod webhook;
