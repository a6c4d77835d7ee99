//! The service: it keeps the records and serves the routes, and delegates to the driver.
//!
//! ```text
//! http          routes, wire formats, status codes
//! attachment    attach, detach, reconcile: intents in, outcomes settled in one place
//! inventory     device specs, aliases, the device table, which device a request gets
//! host          the configured hypervisors
//! store         SQL, one file a table
//! others        the other processes over one database
//! config        hotslot.toml
//! flavor        named sets of devices
//! ```

pub mod attachment;
mod busy;
pub mod config;
pub mod error;
pub mod flavor;
pub mod host;
pub mod http;
pub mod id;
pub mod inventory;
mod others;
pub mod service;
pub mod store;
