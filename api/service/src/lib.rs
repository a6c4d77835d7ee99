//! The service: it keeps the records and serves the routes, and delegates to the driver.
//!
//! ```text
//! http          routes, wire formats, status codes
//! accelerator   devices that are given away under names of their own, to a server or to the host itself
//! cyborg        Cyborg's nouns: cards, device profiles, accelerator requests
//! attachment    attach, detach, reconcile: intents in, outcomes settled in one place
//! inventory     device specs, aliases, the device table, which device a request gets
//! host          the configured hypervisors
//! idempotency   requests that are sent again
//! store         SQL, one file a table
//! others        the other processes over one database
//! fence         what began before others took this process over changes no host any more
//! webhook       events told by POST: signed, again and again, dead letters
//! who           on whose behalf a task works: the events say it
//! retention     how long it is kept what happened
//! feed          events, for those who follow them
//! config        hotslot.toml
//! flavor        named sets of devices
//! ```

pub mod accelerator;
pub mod attachment;
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
